"""The price of going study by study: its bound by itself, and over plans that scripted workers train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo import find_plan
from hpo.errors import ConflictError, InputError
from hpo.planning.crossing import crossing_jobs, open_price
from hpo.planning.metrics import Metric
from hpo.planning.plan import PRICE, Plan
from hpo.planning.price import Evidence, Price, at_most_better, at_most_missed, in_words
from hpo.planning.revision import discard, extend
from hpo.planning.scheduler import advance, is_control
from hpo.space.parameters import ParamValues
from hpo.storage.queue import slot_of
from tests.support.scripted_worker import EPOCHS, Worker, new_plan

F1, LOSS = Metric("macro_f1", "maximize"), Metric("loss", "minimize")
SHAPE = (3, 3, 2)
CELLS = np.array(list(np.ndindex(SHAPE)))


def evidence(worth: np.ndarray[Any, Any], trained: list[int], n_seeds: int = 1) -> Evidence:
    """All cells of a grid with what some of them are worth; the best of these is chosen."""
    scores = [[float(worth.flat[place])] * n_seeds for place in trained]
    chosen = max(trained, key=lambda place: worth.flat[place])
    return Evidence(CELLS[trained], scores, CELLS, chosen)


def lines() -> list[int]:
    """The places of the cells that studies train which go along one axis after the other from (0, 0, 0)."""
    return [place for place, cell in enumerate(CELLS) if np.count_nonzero(cell) <= 1]


def additive(scale: float) -> np.ndarray[Any, Any]:
    """A grid without interactions, whose best is (0, 0, 0)."""
    parts = np.meshgrid(*(-scale * np.arange(length) for length in SHAPE), indexing="ij")
    return np.asarray(0.7 + np.sum(parts, axis=0))


# --- the bound --------------------------------------------------------------------------------------------


def test_interactions_that_are_seen_raise_the_bound() -> None:
    calm = additive(0.02)
    rough = calm + 0.1 * np.random.default_rng(0).standard_normal(SHAPE)
    rough.flat[lines()] = calm.flat[lines()]  # the studies themselves see the same
    across = [place for place in range(len(CELLS)) if place not in lines()][:5]
    low, high = (
        at_most_missed(evidence(worth, [*lines(), *across]), F1) for worth in (calm, np.minimum(rough, calm))
    )
    assert 0 <= low < high / 1.5


def test_what_is_tried_brings_the_bound_down() -> None:
    worth = additive(0.02)
    bounds = [at_most_missed(evidence(worth, sorted({*lines(), *range(n)})), F1) for n in (0, 9, len(CELLS))]
    assert bounds[0] > bounds[1] > bounds[2]
    assert bounds[2] < 0.005


def test_where_all_is_equal_nothing_was_missed() -> None:
    assert at_most_missed(evidence(np.full(SHAPE, 0.5), lines()), F1) == 0


def test_a_share_that_is_known_cannot_miss_more_than_it_lacks() -> None:
    worth = additive(0.1) + 0.29
    assert 0 < at_most_missed(evidence(worth, lines(), n_seeds=3), F1) < 0.0101


def test_a_metric_is_bounded_in_its_own_unit_whatever_its_scale() -> None:
    """A loss of 1.3 to 1.6, and the same in a thousandth."""
    worth = -2.0 + additive(0.02)
    large = at_most_missed(evidence(worth, lines()), LOSS)
    small = at_most_missed(evidence(worth / 1000, lines()), LOSS)
    assert small == pytest.approx(large / 1000, rel=1e-6)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(1, 30), st.data())
def test_the_count_needs_no_model(n_untried: int, n_tried: int, data: st.DataObject) -> None:
    """All that were better so far, and of the others no more than chance allows; each find allows more."""
    n_better = data.draw(st.integers(0, n_tried))
    found = at_most_better(n_untried, n_tried, n_better)
    assert 0 <= found <= n_untried
    if n_better:
        assert found >= at_most_better(n_untried, n_tried, n_better - 1)


@pytest.mark.parametrize(
    # of 100 cells five were tried: C(56, 5) / C(100, 5) is 0.051, C(55, 5) / C(100, 5) is 0.046
    ("n_untried", "n_tried", "expected"),
    [(11, 1, 11), (0, 9, 0), (95, 5, 44), (3, 97, 0)],
)
def test_counts_that_are_known(n_untried: int, n_tried: int, expected: int) -> None:
    assert at_most_better(n_untried, n_tried, 0) == expected


# --- the plan ---------------------------------------------------------------------------------------------

STUDIES = {
    "rate": "[search]\nlearning_rate = [0.1, 0.01, 0.001]",
    "penalty": 'inherits = "rate"\n[search]\nl2 = [0.0, 0.01, 0.1]',
    "batch": 'inherits = "penalty"\n[search]\nbatch_size = [20, 40]',
}


def value_of(config: ParamValues) -> float:
    """What a configuration reaches: 0.01 and 0.1 are good only together, which no study sees."""
    if (config["learning_rate"], config["l2"]) == (0.01, 0.1):
        return 0.9
    return (
        0.5
        + 0.1 * (config["learning_rate"] == 0.001)
        + 0.05 * (config["l2"] == 0.01)
        - 0.1 * (config["l2"] == 0.1)
    )


def train(plan: Plan, name: str, value: Callable[[ParamValues], float] = value_of) -> None:
    """All that waits of a study, as it should come out, until the study has ended."""
    worker = Worker(plan)
    while not advance(plan, [name]) and plan.storage.waiting([plan.storage.study_id(name)], 1):
        trial = worker.claim(name)
        reached = value(plan.storage.trial(trial._trial_id).user_attrs["config"])
        worker.finish(trial, [reached / 2] * (EPOCHS - 1) + [reached])


@pytest.fixture
def decided(tmp_path: Path) -> Plan:
    return decided_plan(tmp_path)


def decided_plan(folder: Path, **options: Any) -> Plan:
    """A plan of three studies that have decided."""
    plan = new_plan(folder, STUDIES, **options)
    for name in STUDIES:
        advance(plan)
        train(plan, name)
    return plan


def priced(plan: Plan, share: float) -> Price:
    open_price(plan, share)
    train(plan, PRICE)
    found = plan.record(PRICE).price
    assert found is not None
    return found


def test_points_cross_studies_at_the_searchs_own_seeds(decided: Plan) -> None:
    found = priced(decided, 0.5)
    trials = decided.trials(PRICE)
    known = {json.dumps(trial.user_attrs["config"]) for name in STUDIES for trial in decided.trials(name)}
    assert (found.cells, found.n_seen, found.n_tried) == (18, 6, 4)
    assert found.share == pytest.approx(0.5)
    assert len(trials) == 4
    for trial in trials:
        assert tuple(trial.user_attrs["seeds"]) == decided.seeds
        assert json.dumps(trial.user_attrs["config"]) not in known


def test_points_across_are_drawn_by_the_plans_seed(tmp_path: Path) -> None:
    drawn = []
    for place, seed in enumerate([0, 0, 1, 2]):
        (tmp_path / str(place)).mkdir()
        plan = decided_plan(tmp_path / str(place), seed=seed)
        open_price(plan, 0.5)
        drawn.append(tuple(job.slot.point for job in crossing_jobs(plan)))
    assert drawn[0] == drawn[1]
    assert len({*drawn}) == 3


def test_more_points_go_on_where_fewer_ended(decided: Plan) -> None:
    first = priced(decided, 0.1)
    before = {trial.user_attrs["point"] for trial in decided.trials(PRICE)}
    second = priced(decided, 1.0)
    points = [trial.user_attrs["point"] for trial in decided.trials(PRICE)]
    assert (first.n_tried, second.n_tried) == (1, 8)
    assert len(set(points)) == len(points) == 8
    assert before < set(points)
    assert priced(decided, 0.1) == second


def test_what_studies_have_only_together_is_found_and_said(decided: Plan) -> None:
    open_price(decided, 1.0)
    for _ in range(2):  # all there are
        open_price(decided, 10.0)
    train(decided, PRICE)
    found = decided.record(PRICE).price
    assert found is not None
    assert found.best is not None
    assert (found.n_tried, found.n_better, found.at_most_better) == (12, 2, 0)
    assert found.best.value == pytest.approx(0.9)
    assert found.at_most is not None
    assert found.at_most > 0.2
    assert "25.0 points ahead of what the search chose" in in_words(found, F1)


def test_decisions_stay_and_can_no_longer_be_revised(decided: Plan) -> None:
    before = {name: decided.decision(name) for name in STUDIES}
    priced(decided, 0.5)
    assert {name: decided.decision(name) for name in STUDIES} == before
    trial = next(each for each in decided.trials("batch") if not is_control(decided, "batch", slot_of(each)))
    with pytest.raises(ConflictError, match="price: trained on top of"):
        discard(decided, "batch", trial, "to see")
    extended = extend(decided, "batch", {"batch_size": [80]})
    assert (extended.study, extended.on_top) == ("batch-2", ("price",))


def test_a_plan_of_one_study_has_nothing_to_cross(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"rate": STUDIES["rate"]})
    advance(plan)
    train(plan, "rate")
    with pytest.raises(InputError, match="only one study"):
        open_price(plan, 0.1)
    assert not find_plan(tmp_path).has_price


def test_constraints_hold_across_studies(tmp_path: Path) -> None:
    plan = new_plan(
        tmp_path,
        {
            "first": "[search]\nconv1_channels = [4, 8, 16]",
            "second": 'inherits = "first"\nconstraints = ["conv1_channels <= conv2_channels"]\n'
            "[search]\nconv2_channels = [8, 16]",
        },
    )
    for name in ("first", "second"):
        advance(plan)
        train(plan, name, lambda config: 0.5 - 0.01 * float(config["conv1_channels"]))
    # three by three, as the inherited 128 is one of the second study's, without (16, 8)
    assert priced(plan, 10.0).cells == 8
    for trial in plan.trials(PRICE):
        assert trial.user_attrs["config"]["conv1_channels"] <= trial.user_attrs["config"]["conv2_channels"]


def test_points_that_all_failed_bound_nothing() -> None:
    found = Price(
        value=0.5,
        cells=9,
        n_seen=5,
        n_tried=1,
        n_better=0,
        at_most_better=3,
        share=0.2,
        best=None,
        at_most=None,
    )
    assert in_words(found, F1).startswith("No point across studies has a result")
