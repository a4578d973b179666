"""What benchmarks conclude from their figures: the test of equality, and searches replayed on tables."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bounded
import claims
import equality
import faults
import numpy as np
import plan_or_joint
import psutil
import pytest
from grids import RECORDED, recorded, simulated, study_by_study
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from search_cost import PRUNERS, Curve, search, searches, tables_by_seed
from siege import Tally

from hpo.planning.claims import ClaimVerdict
from hpo.storage.queue import Reason

EPOCHS, POINTS = 11, 20


def normal(mean: float, deviation: float, n: int, seed: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(mean, deviation) for _ in range(n)]


def difference(ours: list[float], theirs: list[float]) -> dict[str, object]:
    return equality.compared({equality.HPO: ours, equality.PLAIN: theirs})[-1]


@pytest.mark.parametrize(
    ("shift", "n", "is_equal"), [(0.0, 100, True), (0.0, 4, False), (0.6, 100, False), (-0.6, 100, False)]
)
def test_equal_is_what_is_close_and_known_well_enough(shift: float, n: int, is_equal: bool) -> None:
    record = difference(normal(70 + shift, 1.0, n, 1), normal(70, 1.0, n, 2))
    assert (record["verdict"] == "equal") == is_equal


@given(
    shift=st.floats(-1, 1),
    deviations=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    sizes=st.tuples(st.integers(3, 80), st.integers(3, 80)),
    seed=st.integers(0, 1000),
)
def test_means_are_equal_exactly_where_the_interval_is_within_the_margin(
    shift: float, deviations: tuple[float, float], sizes: tuple[int, int], seed: int
) -> None:
    ours = normal(70 + shift, deviations[0], sizes[0], seed)
    theirs = normal(70, deviations[1], sizes[1], seed + 1)
    record, swapped = difference(ours, theirs), difference(theirs, ours)
    low, high = float(str(record["interval_90_from"])), float(str(record["interval_90_to"]))
    assert low < float(str(record["difference"])) < high
    assert (float(str(swapped["interval_90_from"])), float(str(swapped["interval_90_to"]))) == pytest.approx(
        (-high, -low)
    )
    if min(abs(low + equality.MARGIN), abs(high - equality.MARGIN)) > 1e-6:  # not on the edge
        assert (record["verdict"] == "equal") == (low > -equality.MARGIN and high < equality.MARGIN)


@pytest.mark.parametrize(("shift", "is_equal"), [(0.0, True), (0.2, True), (0.6, False), (-0.6, False)])
def test_kernels_are_compared_by_seed(shift: float, is_equal: bool) -> None:
    plain = normal(70, 5.0, 20, 1)
    ours = [value + shift + change for value, change in zip(plain, normal(0, 0.3, 20, 2), strict=True)]
    points = {equality.HPO: ours, equality.PLAIN_KERNELS: plain, equality.PLAIN: normal(70, 5.0, 20, 3)}
    *_, by_seed, by_mean = equality.compared(points)
    assert by_seed["against"] == equality.PLAIN_KERNELS
    assert (by_seed["verdict"] == "equal") == is_equal
    assert by_mean["verdict"] == "not shown to be equal"  # seeds of their own leave more open


def test_a_worker_passes_every_place_where_faults_kills_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: set[str] = set()

    def watched(place: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            passed.add(place)
            return call(*arguments, **options)

        return wrapper

    monkeypatch.setitem(faults.OPTIONS, "limit_train", 100)
    monkeypatch.setitem(faults.OPTIONS, "epochs", 1)
    plan = faults.HpoPlan(f"sqlite:///{tmp_path / 'hpo.db'}", tmp_path)
    plan.create()
    for place, (owner, name, _) in faults.PLACES.items():
        monkeypatch.setattr(owner, name, watched(place, getattr(owner, name)))
    monkeypatch.setattr(faults, "pose_as_elsewhere", lambda *_: None)  # this process stays where it is
    monkeypatch.setenv("TZ", "UTC")
    assert plan.work(seed=0) == 0
    monkeypatch.undo()
    time.tzset()
    assert passed == set(faults.PLACES)


@pytest.mark.parametrize(
    ("ended", "repeated"),
    [({"resumed_after_epoch": 4}, 1), ({}, 5), ({"reason": Reason.REUSED}, 0)],
    ids=["resumed", "anew", "taken over"],
)
def test_faults_counts_the_epochs_that_were_trained_twice(ended: dict[str, Any], repeated: int) -> None:
    reports = dict.fromkeys(range(1, 6), 0.5)
    lost = {"owner": {"pid": 7}, "reason": Reason.LOST}
    before = create_trial(state=TrialState.FAIL, intermediate_values=reports, user_attrs=lost)
    after = create_trial(value=0.5, intermediate_values=reports, user_attrs={"owner": {"pid": 8}, **ended})
    tally = Tally("hpo", "sqlite")
    faults.judge_attempts([before, after], tally, {7: 0.0})
    assert (tally.max_epochs_repeated, tally.attempts_lost, tally.false_losses) == (repeated, 1, 0)


def table(noise: float, seed: int) -> list[Curve]:
    """Points of rising levels, whose epochs take from one to two seconds."""
    chance = random.Random(seed)
    return [
        Curve(
            [0.3 + 0.02 * point + 0.02 * epoch + chance.gauss(0, noise) for epoch in range(EPOCHS)],
            [1 + point / POINTS + chance.random() for _ in range(EPOCHS)],
        )
        for point in range(POINTS)
    ]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_search_trains_no_more_than_the_table_has_and_finds_no_more(pruner: str) -> None:
    order = list(range(POINTS))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        curves = table(0.05, seed)
        result = search(curves, PRUNERS[pruner], order, workers=2)
        assert 0 < result.epochs_share <= 1
        assert 0 < result.seconds_share <= 1 + 1e-9
        assert curves[result.chosen].best >= sorted(curve.best for curve in curves)[POINTS // 2]
        assert result == search(curves, PRUNERS[pruner], order, workers=2)


def test_without_pruning_a_search_costs_everything_and_loses_nothing() -> None:
    curves = table(0.05, 0)
    result = search(curves, PRUNERS["none"], range(POINTS), workers=3)
    assert (result.epochs_share, curves[result.chosen].best) == (1, max(curve.best for curve in curves))
    assert result.seconds_share == pytest.approx(1)


def test_where_curves_keep_their_order_the_median_costs_less_and_loses_nothing() -> None:
    order = list(range(POINTS))
    random.Random(0).shuffle(order)
    result = search(table(0.0, 0), PRUNERS["median"], order, workers=2)
    assert result.chosen == POINTS - 1
    assert result.epochs_share < 0.8


def test_what_was_pruned_is_not_found_though_it_would_have_been_the_best() -> None:
    late = Curve([0.1] * (EPOCHS - 1) + [0.99], [1.0] * EPOCHS)
    curves = [*table(0.0, 0), late]
    result = search(curves, PRUNERS["successive halving by 2"], range(len(curves)), workers=1)
    assert result.chosen == POINTS - 1
    assert search(curves, PRUNERS["none"], range(len(curves)), workers=1).chosen == POINTS


def written(file: Path, n_seeds: int, n_points: int) -> Path:
    lines = ["learning_rate,seed,epoch,macro_f1,seconds"]
    for point in range(n_points):
        for seed in range(n_seeds):
            curve = table(0.05, seed)[point]
            lines += [f"{point},{seed},{epoch},{curve.macro_f1[epoch - 1]:.4f},1.0" for epoch in (1, 2, 3)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_table_is_read_seed_by_seed_in_its_order(tmp_path: Path) -> None:
    file = written(tmp_path / "table.csv", n_seeds=2, n_points=4)
    tables = tables_by_seed(file)
    assert [len(each) for each in tables] == [4, 4]
    assert tables[1][3].macro_f1 == [round(f1, 4) for f1 in table(0.05, 1)[3].macro_f1[:3]]
    figures = searches(file, PRUNERS["none"], 5, 2)
    assert (figures["epochs_share"], figures["regret_p90"], figures["lost_on_other_seeds"]) == (1, 0, 0)


def test_a_table_with_a_hole_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "table.csv", n_seeds=2, n_points=4)
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(SystemExit, match="missing"):
        tables_by_seed(file)


@pytest.mark.parametrize(
    ("name", "n_points", "n_seeds", "n_epochs"),
    [
        ("network-setup-by-batch-size", 48, 3, 11),
        ("learning-rate-by-batch-size-by-batch-norm", 18, 3, 11),
        ("network-setup", 16, 1, 11),
        ("joint-digits", 54, 30, 4),
        ("joint-cifar10", 54, 30, 4),
    ],
)
def test_recorded_tables_are_whole(name: str, n_points: int, n_seeds: int, n_epochs: int) -> None:
    tables = tables_by_seed(RECORDED / f"{name}.csv")
    assert [len(points) for points in tables] == [n_points] * n_seeds
    assert {len(point.macro_f1) for points in tables for point in points} == {n_epochs}


def test_a_plan_and_joint_searches_spend_no_more_than_is_theirs() -> None:
    grid = recorded("joint-digits")
    searches, seconds, regret = plan_or_joint.replay(grid, 0)
    assert regret.min() == 0
    ours = searches[plan_or_joint.PLAN]
    assert len(ours.seconds) == 3 + 2 + 2 + 1  # each study begins with what the one before has trained
    for name, each in searches.items():
        assert each.seconds == sorted(each.seconds), name
        assert each.seconds[-1] <= max(plan_or_joint.SHARES) * seconds * (1 + 1e-6) or "order" in name
    random_cells = searches[plan_or_joint.RANDOM]
    assert random_cells.at(0) == random_cells.chosen[0]
    assert random_cells.at(math.inf) == random_cells.chosen[-1]


def test_a_plan_finds_the_best_where_studies_do_not_interact() -> None:
    rng = np.random.default_rng(0)
    worth, _ = simulated(rng, "additive")
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        walk = study_by_study(worth, order, (1, 2, 0, 1))
        assert worth[walk.chosen] == worth.max()
        assert walk.best_so_far[-1] == walk.chosen
        assert len(set(walk.trained)) == len(walk.trained) == 8


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(child, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_child_whose_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "GRACE_SECONDS", 0.1)
    with bounded.Child([sys.executable, "-c", STUBBORN], 2) as child:
        (pid,) = child.lines()  # ends although nobody else does
        assert child.wait() is None
        assert child.outcome == "stopped after 2 s"
    assert not psutil.pid_exists(child.process.pid)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("print('a\\nb')", "done"), ("raise SystemExit('no room')", "failed with code 1: no room")],
)
def test_a_child_says_how_it_ended(code: str, outcome: str) -> None:
    with bounded.Child([sys.executable, "-c", code], 60) as child:
        lines = list(child.lines())
        assert child.outcome == outcome
        assert lines == ([] if "room" in outcome else ["a", "b"])


@pytest.mark.parametrize("kind", claims.KINDS)
@pytest.mark.parametrize(("gain", "n_confirmed"), [(0.9, 3), (-0.9, 0)])
def test_a_claim_is_counted_as_confirmed_where_it_is_clearly_true(
    kind: str, gain: float, n_confirmed: int
) -> None:
    stated = [claims.KINDS[kind].claim]
    for tally in claims.replay(claims.WORLDS["equal"], stated, kind, gain, 0, 3):
        assert (tally[ClaimVerdict.CONFIRMED], tally["worlds"]) == (n_confirmed, 3)
