"""The audit of pruning: who is trained on, that the search does not notice, and what is said of it."""

from __future__ import annotations

import itertools
import json
import re
from math import comb
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import InputError
from hpo.execution.worker import work
from hpo.monitor.status import status
from hpo.planning.audit import Audit, audit_of, in_words, is_audited
from hpo.planning.manifest import Options
from hpo.planning.metrics import Metric
from hpo.planning.scheduler import advance
from hpo.reporting import prose
from hpo.reporting.caveats import caveats
from hpo.reporting.data import read
from hpo.storage.queue import Reason
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, made_plan
from tests.support.scripted_worker import Worker, new_plan

F1 = Metric("macro_f1", "maximize")
LOSS = Metric("loss", "minimize")
ADAPTIVE = f"""
trials = 5
{SMALL}
[search]
learning_rate = {{low = 1e-6, high = 1e-1, log = true}}
[sampler]
name = "tpe"
n_startup_trials = 2
[pruner]
name = "median"
n_startup_trials = 1
"""


def test_the_search_does_not_notice_an_audit(tmp_path: Path) -> None:
    found = {}
    for share in (0.0, 1.0):
        plan = made_plan(tmp_path / str(share), {"rate": ADAPTIVE}, audit=share)
        assert work(plan.storage, out=tmp_path / str(share), studies=["rate"]) is None
        found[share] = plan, plan.trials("rate")
    (plan, without), (audited_plan, audited) = found.values()
    assert [trial.params for trial in without] == [trial.params for trial in audited]
    assert [(trial.state, trial.value) for trial in without] == [(t.state, t.value) for t in audited]
    assert plan.decision("rate") == audited_plan.decision("rate")
    pruned = [pair for pair in zip(without, audited, strict=True) if pair[0].state == TrialState.PRUNED]
    assert pruned
    for stopped, went_on in pruned:
        n_epochs = len(stopped.intermediate_values)
        assert n_epochs < 3
        assert len(went_on.intermediate_values) == 3
        assert went_on.user_attrs["audit"] == {
            "pruned_after_epoch": n_epochs,
            "value": max(went_on.intermediate_values.values()),
        }
        assert went_on.user_attrs["reason"] == f"{stopped.user_attrs['reason']}; trained on for the audit"
    seen = [each.storage.study("rate").get_trials() for each in (plan, audited_plan)]  # by samplers, pruners
    assert [trial.intermediate_values for trial in seen[0]] == [t.intermediate_values for t in seen[1]]
    (before, _), (after, _) = status(plan), status(audited_plan)
    assert before.points == after.points
    assert before.audit is None
    assert after.audit is not None
    assert after.audit.audited == after.audit.pruned == len(pruned)


# --- who is drawn ----------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1), st.text(max_size=20))
def test_a_larger_share_audits_whom_a_smaller_one_does(
    one: float, other: float, seed: int, point: str
) -> None:
    low, high = sorted((one, other))
    assert is_audited(low, seed, "rate", point) <= is_audited(high, seed, "rate", point)
    assert is_audited(1.0, seed, "rate", point)
    assert not is_audited(0.0, seed, "rate", point)


def test_a_share_is_drawn_by_plan_study_and_point() -> None:
    drawn = {
        (seed, study): [is_audited(0.1, seed, study, f"#{index}") for index in range(10_000)]
        for seed, study in itertools.product((0, 1), ("rate", "size"))
    }
    for each in drawn.values():
        assert sum(each) == pytest.approx(1000, abs=100)
    for one, other in itertools.combinations(drawn.values(), 2):
        both = sum(a and b for a, b in zip(one, other, strict=True))
        assert both == pytest.approx(100, abs=40)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=f"--audit {share}: must be"):
        Options.from_given({"audit": share})


# --- what is said of it ----------------------------------------------------------------------------------


def _pruned(*values: float | None, n_unaudited: int = 0) -> list[FrozenTrial]:
    audits: list[dict[str, Any]] = [{"audit": {"pruned_after_epoch": 1, "value": value}} for value in values]
    return [
        create_trial(state=TrialState.PRUNED, value=0.1, user_attrs={"reason": "pruned: by median", **each})
        for each in [*audits, *[{}] * n_unaudited]
    ]


def test_what_is_within_delta_is_counted_by_the_direction_of_the_metric() -> None:
    others = [
        create_trial(state=TrialState.PRUNED, user_attrs={"reason": f"{Reason.DIVERGED}: the loss is nan"}),
        create_trial(state=TrialState.COMPLETE, value=0.9),
    ]
    trials = [*_pruned(0.91, 0.8951, 0.8949, None, n_unaudited=2), *others]
    assert audit_of(trials, 0.9, F1, 0.005) == Audit(6, 4, 2, 0.005, (2, 4))
    assert audit_of(trials, 0.893, LOSS, 0.002).within_delta == 1
    assert audit_of(_pruned(n_unaudited=2), 0.9, F1, 0.005) == Audit(2, 0, 0, 0.005, None)


@pytest.mark.parametrize("total", [1, 4, 9, 20])
def test_the_interval_holds_the_truth_as_often_as_it_says(total: int) -> None:
    for drawn, true in itertools.product(range(1, total + 1), range(total + 1)):
        covered = 0
        for hits in range(max(0, drawn - (total - true)), min(drawn, true) + 1):
            values = [0.9] * hits + [0.1] * (drawn - hits)
            found = audit_of(_pruned(*values, n_unaudited=total - drawn), 0.9, F1, 0.005).interval
            assert found is not None
            assert drawn < total or found == (hits, hits)
            if found[0] <= true <= found[1]:
                covered += comb(true, hits) * comb(total - true, drawn - hits)
        assert covered / comb(total, drawn) >= 0.95


def test_an_audit_in_words() -> None:
    assert in_words(audit_of(_pruned(0.9, 0.1, n_unaudited=18), 0.9, F1, 0.005), F1) == (
        "audit of pruning: 2 of 20 pruned points were trained on to their end; 1 of them came within 0.5 "
        "points of the winner, and of all 20 it would be 1 to 19 (95 % confidence)"
    )
    assert in_words(audit_of(_pruned(0.9), 0.1, LOSS, 0.0), LOSS) == (
        "audit of pruning: 1 of 1 pruned points were trained on to their end; none of them reached the winner"
    )
    assert in_words(audit_of(_pruned(n_unaudited=3), 0.9, F1, 0.005), F1) == (
        "audit of pruning: none of 3 pruned points was drawn to be trained on"
    )


def test_an_audit_is_shown_wherever_a_study_is(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, {"rate": "[search]\nlearning_rate = [0.1, 0.01, 0.001]"}, audit=0.5)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [0.5, 0.6])
    for value in (0.598, None):
        trial = worker.claim("rate")
        if value:
            plan.storage.write(trial._trial_id, attrs={"audit": {"pruned_after_epoch": 1, "value": value}})
        worker.prune(trial, "pruned: by median after epoch 1")
    advance(plan)
    said = (
        "audit of pruning: 1 of 2 pruned points were trained on to their end; 1 of them came within 0.5 "
        "points of the winner, and of all 2 it would be 1 to 2 (95 % confidence)"
    )
    shown = cli("show", "rate", "--storage", plan.storage.url)
    assert said in re.sub(r"\s+", " ", shown.out)
    as_json = {"pruned": 2, "audited": 1, "within_delta": 1, "delta": 0.005, "interval": [1, 2]}
    assert json.loads(cli("show", "rate", "--json", "--storage", plan.storage.url).out)["audit"] == as_json
    first, final = json.loads(cli("status", "--json", "--storage", plan.storage.url).out)["studies"]
    assert (first["audit"], final["audit"]) == (as_json, None)
    report = read(plan)
    assert prose.method(report.sections[0]).endswith(f" {said[0].upper()}{said[1:]}.")
    (warning,) = [text for text in caveats(report) if "runing" in text]
    assert warning == f"Pruning may have stopped good points. {said[0].upper()}{said[1:]}."


def test_the_report_says_where_nobody_has_looked_what_pruning_misses(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"rate": "[search]\nlearning_rate = [0.1, 0.01]"})
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [0.5, 0.6])
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 1")
    advance(plan)
    (warning,) = [text for text in caveats(read(plan)) if "pruner" in text]
    assert warning.startswith("A pruner stopped one point: whether that was right is not known")
