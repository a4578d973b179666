"""How a budget is shared, written and recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo._text import read_duration, short_duration
from hpo.errors import ConflictError, StudyFileError
from hpo.planning.closing import fair_level
from hpo.planning.compatibility import check_compatible
from hpo.planning.manifest import read_plan_file
from hpo.space.study_file import load_study
from tests.support.plans import made_plan
from tests.support.recipes import SCHEMA
from tests.support.studies import spec_of, stored

SECONDS = st.floats(0, 1e6) | st.just(math.inf)


@given(st.floats(0, 1e6), st.lists(SECONDS, min_size=1, max_size=8))
def test_a_budget_is_shared_max_min_fairly(capacity: float, needs: list[float]) -> None:
    level = fair_level(capacity, needs)
    given_ = [min(need, level) for need in needs]
    if math.fsum(needs) <= capacity:
        assert given_ == needs  # nobody lacks anything
        return
    assert math.fsum(given_) == pytest.approx(capacity)  # nothing is left, nothing is given twice
    assert all(each == need or each >= max(given_) - 1e-6 for each, need in zip(given_, needs, strict=True))


@given(st.sampled_from([1, 60, 3600, 86_400]), st.integers(1, 1000))
def test_a_duration_is_read_as_it_is_written(unit: int, count: int) -> None:
    assert read_duration(short_duration(float(unit * count))) == unit * count


@pytest.mark.parametrize("text", ["", "h", "-1h", "0", "inf", "nan", "1y", "8 hours"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert read_duration(text) is None


def test_a_budget_stands_in_plan_toml_and_is_not_contradicted(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text('budget = "90m"')
    assert read_plan_file(tmp_path) == {"budget": 5400}
    plan = made_plan(tmp_path / "plan", {"rate": "[search]\nl2 = [0.1]"}, budget="90m")
    check_compatible(plan, {"budget": 5400.0})
    with pytest.raises(ConflictError, match=r"^--budget 8h contradicts .* was created with 90m; "):
        check_compatible(plan, {"budget": 28_800.0})
    (tmp_path / "plan.toml").write_text('budget = "soon"')
    with pytest.raises(StudyFileError, match=r"budget.*must be a duration, as '90s', '20m' or '2h'"):
        read_plan_file(tmp_path)


def test_limits_of_a_study_are_stored_and_others_leave_no_trace() -> None:
    ranged: dict[str, Any] = {"search": {"l2": {"low": 0.1, "high": 0.2}}, "trials": 9}
    limited = spec_of(**ranged, trial_timeout="20m", stop={"patience": 3, "delta": 0.01})
    assert stored(limited) == limited
    assert (limited.trial_timeout, limited.stop and limited.stop.patience) == (1200, 3)
    assert not {"trial_timeout", "stop"} & {*spec_of(**ranged).to_json().split('"')}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('trial_timeout = "soon"', "trial_timeout"),
        ("trial_timeout = 0", "trial_timeout"),
        ("[stop]\npatience = 0", "stop.patience"),
        ("[stop]\ndelta = 0.1", "stop.patience is missing"),
        ("[stop]\npatience = 3\ngain = 1", "stop.gain is not a key of a study file"),
        ("[stop]\npatience = 3", "stop: a grid tries each of its points"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "x.toml").write_text(f"{line}\n[search]\nl2 = [0.1, 0.2]")
    with pytest.raises(StudyFileError, match=said):
        load_study(tmp_path / "x.toml", SCHEMA)
