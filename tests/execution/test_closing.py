"""Plans that end before all their points are tried: budget, time-out, `[stop]`, `hpo finish`, deadline."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

import hpo as library
from hpo.cli.tables import show_forecast
from hpo.errors import MissingError
from hpo.execution.forecast import Line, afforded
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import Limits, work
from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning import closing as closing_module
from hpo.planning.closing import finish, trained
from hpo.planning.plan import CONFIRM, CONTROL_SLOT, FINAL, Plan
from hpo.planning.scheduler import advance
from hpo.storage.queue import Queue, Reason, reason_of
from hpo.storage.trials import SECONDS_KEY, SEED_EPOCHS_KEY
from tests.support import timed
from tests.support.command import hpo, start_hpo, wait_for
from tests.support.fixtures import Cli

SIZES: dict[str, Any] = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1}
GRID = {"first": "[search]\nquality = {low = 0, high = 39, step = 1}"}
CHILD = 'inherits = "first"\n[search]\nslow = [0, 1]'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for recipe, studies and plans; in this process an epoch takes as long as the recipe says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    timed.use_clock(monkeypatch)
    return tmp_path


def plan_of(studies: dict[str, str], epoch: str = timed.EPOCH, **given: Any) -> Plan:
    """A plan of the timed recipe; nothing trained."""
    options = {**SIZES, "recipe": timed.write(Path.cwd(), studies, epoch), **given}
    return find_or_create_plan(Path("out"), studies=Path("studies"), given=options)


def work_on(plan: Plan, *names: str, n_trials: int | None = None) -> Plan:
    """The plan after a worker in this process, read anew."""
    assert work(plan.storage, out=Path("out"), studies=names, limits=Limits(max_trials=n_trials)) is None
    return Plan.open(plan.storage)


def trained_seconds(plan: Plan) -> dict[str, float]:
    return {name: each.seconds for name, each in trained(plan).items()}


def cut_short(plan: Plan, name: str) -> list[FrozenTrial]:
    return [trial for trial in plan.trials(name) if reason_of(trial) == Reason.CUT_SHORT]


# --- a budget -----------------------------------------------------------------------------------------------


def test_a_budget_is_shared_and_ends_with_the_test_set(cli: Cli) -> None:
    plan = work_on(plan_of({**GRID, "second": CHILD}, budget=30.0))
    # 5 s are kept for the final stage, 8 s for the second study, so that the first has time for four points;
    # an epoch of the second takes ten seconds, which nobody could know
    assert trained_seconds(plan) == {"first": 16, "second": 10, FINAL: 4}
    assert results.final_result(plan)["test"] == {"accuracy": 0.5}
    assert advance(plan)  # nothing is left to do
    first, second = (plan.decision(name) for name in plan.specs)
    assert first is not None
    assert first.cut is not None
    assert first.cut.closed is not None
    assert (first.cut.closed.by, first.cut.closed.budget_seconds) == ("budget", 30)
    assert (first.cut.n_points, first.cut.n_ended, first.cut.n_cut_short) == (40, 4, 0)
    assert first.text.startswith("closed by the budget of 30s: 4 of 40 points ended; chose quality 3")
    assert second is not None
    assert second.text.startswith("closed by the budget of 30s: 1 of 2 points ended, 1 cut short; kept ")
    (slow,) = cut_short(plan, "second")
    assert slow.user_attrs["reason"] == "cut short: by the budget of 30s after epoch 1 of 4"
    assert (slow.state, slow.value) == (TrialState.PRUNED, slow.intermediate_values[1])

    # and it is said wherever the decision is
    url = plan.storage.url
    record = json.loads(cli("show", "first", "--json", "--storage", url).out)
    assert record["decision"]["cut"] == first.cut.model_dump(mode="json")
    for command in (["status"], ["show", "first"], ["best"]):
        shown = " ".join(cli(*command, "--storage", url).out.split())
        assert "closed by the budget of 30s" in shown, command
        assert ("budget of 30 s: 30 s used" in shown) == (command == ["status"])
    points = [(each.state, each.points["waiting"], each.n_points) for each in status(plan)]
    assert points == [("done", 0, 4), ("done", 0, 2), ("done", 0, 1)]
    assert [row.trial for row in results.rows(plan, "first")] == [0, 1, 2, 3]


def test_a_confirmation_has_its_share_of_a_budget_and_concludes_by_what_there_is() -> None:
    studies = {"first": "[search]\nquality = [0]", "second": 'inherits = "first"\n[search]\nquality = [1, 9]'}
    plan = plan_of(studies, confirm=True, epochs=1, budget=9.0)
    for _ in range(20):  # as if killed after each trial: what is left is looked at anew, with nothing running
        plan = work_on(plan, n_trials=1)
    found = trained_seconds(plan)
    assert (found["first"] + found["second"], found[FINAL]) == (3, 1)
    assert 2 <= found[CONFIRM] <= 9 - 3 - 1
    (told,) = [each.decision for each in status(plan) if each.name == CONFIRM]
    assert told.startswith("closed by the budget of 9s")
    assert advance(plan)


def test_the_best_of_a_plan_whose_seeds_all_answer_the_same_is_shown(cli: Cli) -> None:
    plan = work_on(plan_of({"first": "[search]\nquality = [0, 1]"}, epochs=1, final_seeds=2))
    shown = cli("best", "--storage", plan.storage.url)
    assert "50.0 % with each seed; what other seeds" in " ".join(shown.out.split())


def test_a_budget_for_everything_cuts_nothing() -> None:
    plan = work_on(plan_of({"first": "[search]\nquality = [0, 1, 2]"}, budget=17.0))
    decision = plan.decision("first")
    assert decision is not None
    assert decision.cut is None
    assert trained_seconds(plan) == {"first": 12, FINAL: 4}


def test_where_nothing_was_trained_to_its_end_decides_what_was_reached() -> None:
    studies = {"first": "[search]\nquality = [0, 1]", "second": CHILD}
    plan = work_on(plan_of(studies, budget=4.0, epochs=50))
    assert trained_seconds(plan) == {"first": 2, "second": 0, FINAL: 2}
    first = plan.decision("first")
    assert first is not None
    assert first.winner is not None
    assert first.winner.is_cut_short
    assert results.best(plan)["params"] == first.params
    final = results.final_result(plan)
    assert final["config"] == first.params
    assert final["cut_short"] == "cut short: by the budget of 4s after epoch 2 of 50"
    assert final["search_value"] is None  # after one epoch is no value to compare the final stage's with
    (last,) = (each.decision for each in status(plan) if each.name == FINAL)
    assert last.endswith("; cut short: by the budget of 4s after epoch 2 of 50")


def test_of_a_race_that_trained_nothing_to_its_end_decides_what_was_reached(cli: Cli) -> None:
    plan = work_on(plan_of(GRID, budget=4.0, epochs=50, seeds="race", max_seeds=3, confirm=True))
    first = plan.decision("first")
    assert first is not None
    assert first.winner is not None
    assert first.winner.is_cut_short
    assert results.final_result(plan)["config"] == first.params
    for command in (["status"], ["show", "first"], ["best"], ["report"]):
        assert cli(*command, "--storage", plan.storage.url).code == 0


def test_only_what_an_attempt_trained_itself_counts() -> None:
    once = f"""{timed.EPOCH}
            import os, pathlib
            if epoch == 3 and not pathlib.Path('once').exists():
                pathlib.Path('once').touch()
                os.kill(os.getpid(), 15)"""
    plan = plan_of({"first": "[search]\nquality = [0]"}, once)
    assert work(plan.storage, out=Path("out")) == signal.SIGTERM
    work_on(plan)
    before, after = (trial.user_attrs for trial in plan.trials("first"))
    assert after["resumed_after_epoch"] == before[SEED_EPOCHS_KEY] == before[SECONDS_KEY] >= 2
    assert after[SEED_EPOCHS_KEY] == after[SECONDS_KEY] == 4 - before[SECONDS_KEY]


@pytest.mark.slow
def test_a_budget_holds_over_a_kill(place: Path) -> None:
    recipe = timed.write(place, {**GRID, "second": CHILD}, timed.REAL_EPOCH)
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    command = ["run", "--recipe", recipe, "--studies", "studies", "--out", "out", "--workers=2", *sizes]
    process = start_hpo(*command, "--budget", "10s")
    wait_for(lambda: _n_epochs() >= 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = hpo("resume", "--out", "out", "--workers=2")
    assert done.code == 0, done.err
    plan = library.find_plan("out")
    trials = [trial for name in plan.all_names for trial in plan.trials(name)]
    epochs = [value for t in trials for key, value in t.user_attrs.items() if key.startswith("epoch:")]
    longest = max(sum(seed["seconds"] for seed in seeds) for seeds in epochs)
    assert sum(trained_seconds(plan).values()) <= 10 + 2 * longest  # two workers
    assert results.final_result(plan)["test"] == {"accuracy": 0.5}
    first = plan.decision("first")
    assert first is not None
    assert first.cut is not None


def _n_epochs() -> float:
    try:
        return sum(each.seed_epochs for each in trained(library.find_plan("out")).values())
    except MissingError:
        return 0.0


# --- trial_timeout ------------------------------------------------------------------------------------------


def test_a_trial_over_its_time_ends_after_the_epoch_with_what_it_has() -> None:
    studies = {
        "first": "trial_timeout = 5\n[search]\nslow = [0, 1]\nquality = [0]\n[published.choice]\nslow = 1",
        "second": 'inherits = "first"\ntrial_timeout = "20s"\n[search]\nquality = [1, 2]',
    }
    plan = work_on(plan_of(studies, inherit="published"), "first", "second")
    quick, slow = plan.trials("first")
    assert quick.state == TrialState.COMPLETE
    assert slow.state == TrialState.PRUNED
    assert slow.user_attrs["reason"] == "cut short: by trial_timeout = 5s after epoch 1 of 4"
    assert slow.value == slow.intermediate_values[1]
    decision = plan.decision("first")
    assert decision is not None
    assert decision.text.startswith("1 of 2 points was cut short by trial_timeout; chose slow 0, quality 0")

    states = {trial.user_attrs["point"]: trial.state for trial in plan.trials("second")}
    assert states.pop(CONTROL_SLOT.point) == TrialState.COMPLETE  # others are compared with it
    assert list(states.values()) == [TrialState.PRUNED] * 2


# --- [stop] -------------------------------------------------------------------------------------------------


# with seed 2 the second point is ahead of the first by less than delta
@pytest.mark.parametrize("seed", [0, 2])
def test_a_sampled_study_stops_when_points_bring_no_gain(seed: int) -> None:
    study = """
        trials = 16
        [search]
        quality = {low = 0, high = 99}
        [sampler]
        name = "random"
        [stop]
        patience = 3
        delta = 0.02
    """
    plan = work_on(plan_of({"first": study}, epochs=1, seed=seed), "first")
    decision = plan.decision("first")
    assert decision is not None
    assert decision.cut is not None
    values = [trial.value or 0.0 for trial in plan.trials("first") if trial.state == TrialState.COMPLETE]
    assert len(values) == decision.cut.n_ended < 16
    best, n_without = values[0], 0
    for value in values[1:]:
        assert n_without < 3  # it stopped as soon as it was done
        best, n_without = (value, 0) if value - best >= 0.02 else (best, n_without + 1)
    assert n_without == 3
    assert decision.text.startswith(
        f"closed by [stop], no gain of 2.0 points in 3 points: {len(values)} of 16 points ended; chose "
    )


# --- hpo finish, --deadline ---------------------------------------------------------------------------------


def test_finish_decides_by_what_there_is_and_opens_the_test_set() -> None:
    plan = work_on(plan_of({**GRID, "second": CHILD}), n_trials=3)
    assert finish(plan, plan.all_names) == ["first", "second"]
    plan = work_on(plan)
    first, second = (plan.decision(name) for name in plan.specs)
    assert first is not None
    assert first.text.startswith("closed by `hpo finish`: 3 of 40 points ended; chose quality 2: best of 3")
    assert second is not None
    assert second.text == (
        "closed by `hpo finish`: 0 of 2 points ended; no point has a result; "
        "the inherited configuration stays"
    )
    assert results.final_result(plan)["config"]["quality"] == 2
    assert finish(plan, plan.all_names) == []  # once more does no harm


def test_what_runs_when_a_plan_is_finished_goes_to_its_epochs_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing_module, "LOOK_SECONDS", 0.0)
    closing = f"""{timed.EPOCH}
            from hpo.planning import closing, plan; from hpo.storage.storage import Storage
            if epoch == 3 and params.quality == 1:
                closing.finish(plan.Plan.open(Storage('sqlite:///out/hpo.db')), ['first'])"""
    plan = work_on(plan_of(GRID, closing), "first")
    (running,) = [t for t in cut_short(plan, "first") if t.state == TrialState.PRUNED]
    assert running.user_attrs["reason"] == "cut short: by `hpo finish` after epoch 3 of 4"
    decision = plan.decision("first")
    assert decision is not None
    assert decision.cut is not None
    assert (decision.cut.n_ended, decision.cut.n_cut_short) == (1, 1)
    assert decision.params["quality"] == 0  # what was trained to its end is there to decide by
    assert [row.state for row in results.rows(plan, "first")] == ["complete", "pruned"]


def test_a_lost_trial_of_a_closed_study_keeps_what_it_had_reached() -> None:
    plan = plan_of(GRID)
    advance(plan)
    queue = Queue(plan.storage, "first")
    (_, trial_id), *_ = plan.storage.waiting([queue.study_id], 1)
    assert plan.storage.claim(trial_id, {"host": "gone", "boot": "x", "pid": 1, "started": 0.0})
    plan.storage.write(trial_id, attrs={"config": plan.schema.complete({"quality": 0})}, reports={1: 0.5})
    queue.close(trial_id, Reason.LOST, "its machine is gone")
    advance(plan)
    assert finish(plan, ["first"]) == ["first"]
    assert not advance(plan)  # its checkpoint may be there
    plan = work_on(plan, "first")
    attempts = [t for t in plan.trials("first") if t.user_attrs["point"] == '{"quality":0}']
    assert len(attempts) == 2  # it is looked for once
    assert reason_of(attempts[1]) == Reason.CUT_SHORT
    assert plan.decision("first") is not None


def test_there_is_nothing_to_finish_with_before_an_epoch_has_ended(cli: Cli) -> None:
    plan = plan_of(GRID)
    done = cli("finish", "--storage", plan.storage.url)
    assert done.code == 2
    assert "nothing to decide by" in done.err
    assert plan.record("first").closed is None


def test_a_confirmation_that_is_finished_early_keeps_what_it_could_not_test(place: Path) -> None:
    studies = {"first": "[search]\nquality = [0]", "second": 'inherits = "first"\n[search]\nquality = [1, 9]'}
    plan = work_on(plan_of(studies, confirm=True, epochs=1), *studies)
    assert finish(plan, plan.all_names) == [CONFIRM]
    plan = work_on(plan)
    (decision,) = plan.record(CONFIRM).confirmation.decisions  # type: ignore[union-attr]
    assert (decision.verdict, decision.kept, decision.obstacle) == ("not tested", True, "closed")
    assert plan.trials(CONFIRM) == []
    (closed,) = [each.decision for each in status(plan) if each.name == CONFIRM]
    assert closed == "closed by `hpo finish`; kept second (quality 9)"
    assert len(plan.trials(FINAL)) == 1


@pytest.mark.slow
def test_a_run_has_its_answer_by_the_deadline_and_finish_at_once(place: Path) -> None:
    recipe = timed.write(place, GRID, timed.REAL_EPOCH)
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    run = ["run", "--recipe", recipe, "--studies", "studies", "--workers=1", *sizes]
    done = hpo(*run, "--deadline", "2s", "--out", "out")
    assert done.code == 0, done.err
    process = start_hpo(*run, "--out", "other")
    wait_for(lambda: Path("other/hpo.db").exists() and hpo("finish", "--out", "other").code == 0, process)
    process.communicate()
    assert process.returncode == 0  # it has nothing left to do
    for out, by in (("out", "--deadline"), ("other", "`hpo finish`")):
        plan = library.find_plan(out)
        decision = plan.decision("first")
        assert decision is not None
        assert decision.text.startswith(f"closed by {by}: ")
        assert results.final_result(plan)["test"] == {"accuracy": 0.5}


def test_the_forecast_says_what_a_budget_affords(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        Line(name, "", 1, 1, 1, seconds, trained_seconds=seconds)
        for name, seconds in (("first", 100.0), ("second", 10.0), (FINAL, 8.0))
    ]
    found = {line.study: line.afforded for line in afforded(lines, 50.0)}
    assert found == {"first": 0.3, "second": 1.0, FINAL: 1.0}
    assert {line.afforded for line in afforded(lines, 200.0)} == {1.0}
    assert [line.afforded for line in afforded(lines, 8.0)] == [0.02, 0.2, 0.5]
    show_forecast(afforded(lines, 8.0))
    assert "too little for a single point to its end: first, second, final\n" in capsys.readouterr().out
    show_forecast(afforded(lines, 200.0))
    assert "too little" not in capsys.readouterr().out
    untimed = replace(lines[0], trained_seconds=None)
    assert [line.afforded for line in afforded([untimed, *lines[1:]], 50.0)] == [None] * 3


def test_of_a_loop_of_one_s_own_the_forecast_says_that_it_does_not_know(cli: Cli, place: Path) -> None:
    plan = ("plan", "--recipe", timed.write(place, GRID), "--studies", "studies", "--data=digits")
    says = "what the budget affords cannot be told: a loop of one's own is not timed"
    for given, is_said in ((["--budget=1h"], True), ([], False)):
        forecast = cli(*plan, *given)
        assert forecast.code == 0, forecast.err
        assert (says in " ".join(forecast.out.split())) == is_said
