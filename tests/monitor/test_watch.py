"""What is found of a plan under way, look by look."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from hpo import find_plan
from hpo.cli.screen import headline
from hpo.monitor.status import status, study_status
from hpo.monitor.watch import StudyProgress, Watch, seconds_left
from hpo.planning.compatibility import with_more_trials
from hpo.planning.inheritance import config_of_trial
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import advance, retry
from hpo.planning.studies import read_studies
from hpo.storage.queue import LOST_CAP, Queue, Reason, this_process
from hpo.storage.trials import SECONDS_KEY
from tests.support.queues import claim_first
from tests.support.scripted_worker import EPOCHS, REMOTE, SECONDS, STUDIES, Worker, look, new_plan, watch


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three studies, the second of hostile title; nothing trained, the first is queued."""
    plan = new_plan(tmp_path)
    advance(plan)
    return plan


@pytest.fixture
def worker(plan: Plan) -> Worker:
    """Who works on it."""
    return Worker(plan)


def test_where_nothing_can_be_decided_all_is_over(plan: Plan, worker: Worker) -> None:
    for _ in range(2):
        worker.prune(worker.claim("setup"), f"{Reason.DIVERGED}: the loss is nan")
    assert not look(plan).is_over
    assert advance(plan)
    progress = look(plan)
    assert progress.is_over
    assert [study.status.state for study in progress.studies] == ["failed", "pending", "pending", "pending"]


def test_time_left_is_what_remains_at_the_speed_so_far(plan: Plan, worker: Worker) -> None:
    assert look(plan).seconds_left is None
    worker.finish(worker.claim("setup"), [0.5] * EPOCHS)
    worker.report(worker.claim("setup"), [0.5])
    # three epochs of this trial, four of nine points (two of them a control's), and two final seeds of four
    n_epochs = 3 + 4 * (7 + 2) + 4 * 2
    assert look(plan).seconds_left == pytest.approx(n_epochs * SECONDS)


def test_time_left_is_no_more_than_a_budget_has(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, budget=2 * SECONDS)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("setup"), [0.5] * EPOCHS)
    trial = worker.claim("setup")
    worker.report(trial, [0.5])
    assert look(plan).seconds_left == pytest.approx(2 * SECONDS)
    plan.storage.write(trial._trial_id, attrs={SECONDS_KEY: 1.5 * SECONDS})
    assert look(plan).seconds_left == pytest.approx(0.5 * SECONDS)


def test_further_seeds_of_a_race_may_take_longer(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, seeds="race")
    assert look(plan).may_take_longer
    assert "at least 25 s left" in headline(replace(look(plan), seconds_left=25.0)).plain
    assert "about 25 s left" in headline(replace(look(plan), seconds_left=25.0, may_take_longer=False)).plain


def test_each_event_is_told_once(plan: Plan, worker: Worker) -> None:
    eyes = watch(plan)
    assert eyes.look().events == []
    worker.finish(worker.claim("setup"), [0.5])
    (event,) = eyes.look().events
    assert event.to_json() == {
        "event": "point",
        "study": "setup",
        "trial": 0,
        "point": '{"conv1_channels":4}',
        "params": {"conv1_channels": 4},
        "state": "complete",
        "reason": "",
        "macro_f1": 0.5,
        "best_epoch": 1,
        "epochs": 1,
    }
    assert eyes.look().events == []
    worker.prune(worker.claim("setup"), "pruned: by median after epoch 2")
    advance(plan)
    pruned, decided = eyes.look().events
    assert (pruned.record["state"], pruned.record["reason"]) == ("pruned", "pruned: by median after epoch 2")
    decision = plan.decision("setup")
    assert decision is not None
    assert (decided.event, decided.record["text"]) == ("study", decision.text)
    assert eyes.look().events == []


def test_a_point_that_failed_is_told_again_when_it_ends_otherwise(plan: Plan, worker: Worker) -> None:
    fail(plan, "setup")
    eyes = watch(plan)
    assert eyes.look().events == []  # what had happened before
    worker.finish(worker.claim("setup"), [0.5])
    assert [event.record["state"] for event in eyes.look().events] == ["complete"]
    advance(plan)
    assert [event.event for event in eyes.look().events] == ["study"]
    assert len(retry(plan)[0]) == 1
    assert not eyes.look().studies[0].is_over  # decided, and yet something is to come
    fail(plan, "setup", n_times=1)
    advance(plan)
    assert eyes.look().events == []  # it will be tried again
    fail(plan, "setup", n_times=1)
    (event,) = eyes.look().events
    assert (event.record["state"], event.record["reason"]) == ("failed", "error: ValueError")
    assert eyes.look().studies[0].is_over
    assert len(retry(plan)[0]) == 1
    worker.finish(worker.claim("setup"), [0.4])
    assert [event.record["state"] for event in eyes.look().events] == ["complete"]


def fail(plan: Plan, study: str, n_times: int = 2) -> None:
    """The next point of a study ends in an error, for good the second time."""
    queue = Queue(plan.storage, study)
    slot = None
    for _ in range(n_times):
        trial = next(
            t
            for t in plan.trials(study)
            if t.state == TrialState.WAITING and slot in (None, t.user_attrs["point"])
        )
        slot = trial.user_attrs["point"]
        assert plan.storage.claim(trial._trial_id, this_process())
        queue.close(trial._trial_id, Reason.ERROR, "ValueError")
        advance(plan)


def test_the_study_that_is_worked_on_is_the_current_one(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"a": STUDIES["setup"], "b": STUDIES["setup"]})
    advance(plan)
    assert look(plan).current == 0
    worker = Worker(plan)
    trial = worker.claim("b")
    assert look(plan).current == 1
    worker.finish_all("a", [0.5])
    worker.finish(trial, [0.5])
    worker.finish_all("b", [0.5])
    progress = look(plan)
    assert (progress.current, progress.studies[0].is_over, progress.is_over) == (2, True, False)
    (only,) = watch(plan, ["a"]).look().studies
    assert only.is_over


def test_the_test_set_is_open_from_the_moment_that_somebody_may_look(plan: Plan, worker: Worker) -> None:
    for study in plan.specs:
        worker.finish_all(study, [0.5, 0.6])
    few, all_ = watch(plan, ["setup"]), watch(plan)
    assert not few.look().is_test_open
    trial = worker.claim(FINAL)
    assert few.look().is_test_open
    assert all_.look().is_test_open
    worker.finish(trial, [0.99])
    progress = all_.look()
    assert (progress.is_over, progress.current) == (True, len(plan.specs))
    assert progress.best is not None
    assert progress.best.study != FINAL  # not what the search found
    assert [event.event for event in progress.events] == ["final"]


def test_a_study_that_was_given_more_trials_is_shown_so(tmp_path: Path) -> None:
    text = 'trials = 2\n[search]\nlearning_rate = {low = 0.001, high = 0.1}\n[sampler]\nname = "random"'
    plan = new_plan(tmp_path, {"sampled": text})
    eyes = watch(plan)
    assert eyes.look().studies[0].status.n_points == 2
    (tmp_path / "studies" / "sampled.toml").write_text(text.replace("trials = 2", "trials = 3"))
    with_more_trials(plan, read_studies(tmp_path / "studies", plan.schema))
    assert eyes.look().studies[0].status.n_points == 3


def test_a_study_with_nothing_to_go_on_from_waits_only_for_its_parent(tmp_path: Path) -> None:
    choice = "\n[published]\nchoice = {conv1_channels = 4}"
    shift = STUDIES["shift"].replace("[0.0, 0.1]", "[0.1, 0.2]")
    studies = {"setup": STUDIES["setup"] + choice, "shift": shift}
    plan = new_plan(tmp_path, studies, inherit="published")
    advance(plan)
    worker = Worker(plan)
    for _ in range(2):
        worker.prune(worker.claim("setup"), f"{Reason.DIVERGED}: the loss is nan")
    advance(plan)
    assert [study.is_over for study in look(plan).studies] == [
        True,
        False,
        False,
    ]  # it starts from what was published
    for _ in range(2):
        worker.claim("shift")
    running = {each.point: each.params for each in look(plan).running}
    assert running == {"control": {}, '{"l2":0.1}': {"l2": 0.1}}


def test_flags_are_found_bit_by_bit_the_latest_first(
    plan: Plan, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.monitor.watch.CATCH_UP", 1)
    eyes = watch(plan)
    worker.finish(worker.claim("setup"), [0.1] * EPOCHS, dead=True)
    worker.finish(worker.claim("setup"), [0.1] * EPOCHS, dead=True)
    assert [eyes.look().studies[0].flags for _ in range(3)] == [
        {"dying ReLU": [1]},
        {"dying ReLU": [0, 1]},
        {"dying ReLU": [0, 1]},
    ]


def test_each_flag_names_the_trials_that_have_it(under_way: Plan) -> None:
    assert look(under_way).studies[1].flags == {
        "dying ReLU": [0],
        "still improving": [4],
    }


def test_a_trial_is_followed_from_its_claim_on(plan: Plan, worker: Worker) -> None:
    eyes = watch(plan)
    trial = claim_first(Queue(plan.storage, "setup"))
    assert trial is not None
    (running,) = eyes.look().running
    assert (running.epochs, running.curve, running.seconds_per_epoch) == (0, [], None)
    config = config_of_trial(plan, "setup", trial, trial.params)
    plan.storage.write(trial._trial_id, attrs={"config": config})
    (running,) = eyes.look().running
    assert (running.epochs, running.params) == (EPOCHS, {"conv1_channels": 4})
    worker.report(trial, [0.1])
    (running,) = eyes.look().running
    assert (running.curve, running.seconds_per_epoch, running.flags) == ([0.1], SECONDS, [])
    worker.report(trial, [0.1, 0.1], dead=True)
    (running,) = eyes.look().running
    assert (running.curve, running.flags) == ([0.1, 0.1], ["dying ReLU"])
    # other databases than SQLite may show a report before the figures that were written with it
    plan.storage.write(trial._trial_id, reports={3: 0.9})
    assert eyes.look().running[0].curve == [0.1, 0.1]


def test_trials_of_others_are_none_of_ours(plan: Plan, worker: Worker) -> None:
    study = plan.storage.study("setup")
    study.add_trial(create_trial(value=0.9, params={}, distributions={}))
    eyes = watch(plan)
    assert eyes.look().best is None
    worker.claim("setup", REMOTE)
    # somebody's own script takes one of ours, and nobody is said to own it
    ((_, trial_id),) = plan.storage.waiting([plan.storage.study_id("setup")], 2)
    plan.storage.for_optuna.set_trial_state_values(trial_id, TrialState.RUNNING)
    progress = eyes.look()
    assert progress.studies[0].status.points["running"] == 2
    assert [each.host for each in progress.running] == [REMOTE["host"]]


def test_workers_of_this_machine_come_first(under_way: Plan) -> None:
    assert [each.is_local for each in look(under_way).running] == [True, False]


def test_the_best_trial_is_followed(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, seeds=2)
    advance(plan)
    worker, eyes = Worker(plan), watch(plan)
    for number, value in enumerate((0.4, 0.6)):
        worker.finish(worker.claim("setup"), [0.1, value, 0.2])
        best = eyes.look().best
        assert best is not None
        assert (best.trial, best.value, best.curve) == (number, value, [0.1, value, 0.2])
        assert best.n_seeds == 2
        assert best.deviation == pytest.approx(0.02 / 2**0.5)


def test_a_worker_is_silent_after_half_a_lease_and_counts_no_more(plan: Plan, worker: Worker) -> None:
    worker.finish(worker.claim("setup"), [0.5] * EPOCHS)
    trial = worker.claim("setup", REMOTE)
    worker.report(trial, [0.5])
    progress = look(plan)
    assert progress.running[0].silent_seconds == 0.0
    assert progress.seconds_left is not None
    file = plan.storage.url.removeprefix("sqlite:///")
    for seconds, is_silent in ((15, False), (40, True)):
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            change = "update trial_heartbeats set heartbeat = datetime('now', ?) where trial_id = ?"
            connection.execute(change, (f"-{seconds} seconds", trial._trial_id))
        progress = look(plan)
        assert (39 < progress.running[0].silent_seconds < 60) == is_silent
        assert (progress.seconds_left is None) == is_silent


def has_left(eyes: Watch) -> bool:
    return eyes.is_left(eyes.look().running)


def test_all_have_left_when_nothing_is_queued_and_no_worker_lives(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, lease_seconds=4)
    worker, dead = Worker(plan), {**this_process(), "started": 0.0}
    assert not has_left(watch(plan))  # it has not begun
    advance(plan)
    assert not has_left(watch(plan))  # and now is queued
    for owner in (dead, REMOTE):
        worker.finish(worker.claim("setup", owner), [0.5] * EPOCHS)
    eyes = watch(plan)
    assert not has_left(eyes)  # one elsewhere may be between two trials
    time.sleep(2.1)
    assert has_left(eyes)
    advance(plan)
    assert not has_left(eyes)
    while plan.storage.waiting([plan.storage.study_id(name) for name in plan.all_names], 1):
        for name in ("rate", "shift"):
            for _ in plan.storage.waiting([plan.storage.study_id(name)], 100):
                worker.claim(name, dead)
    time.sleep(2.1)
    assert has_left(eyes)  # nobody trains what the dead had


def test_what_a_study_takes(plan: Plan, worker: Worker) -> None:
    worker.finish(worker.claim("setup"), [0.5] * EPOCHS)
    worker.report(worker.claim("setup"), [0.5])
    progress = look(plan)
    setup, final = progress.studies[0], progress.studies[-1]

    def left(studies: Sequence[StudyProgress], n_workers: int, **trial_seconds: float) -> float | None:
        running, best = progress.running, progress.best
        return seconds_left(plan, studies, running, best, n_at_once=n_workers, trial_seconds=trial_seconds)

    assert left([setup], 0) is None
    assert left([setup], 1) == pytest.approx(3 * SECONDS)
    assert left([setup], 8) == pytest.approx(3 * SECONDS)  # one trial is not shared
    assert left([replace(setup, is_over=True)], 1) == 0.0
    three = replace(setup, status=replace(setup.status, points={**setup.status.points, "waiting": 3}))
    assert left([three], 1, setup=7.0) == pytest.approx(3 * SECONDS + 3 * 7)
    assert left([three], 8, setup=7.0) == pytest.approx(3 * SECONDS)  # nothing ends before the longest
    assert left([three], 2, setup=50.0) == pytest.approx((3 * SECONDS + 3 * 50) / 2)
    # what nobody has trained yet: two final seeds, where a point of the search has one
    assert left([final], 1) == left([final], 8) == pytest.approx(EPOCHS * 2 * SECONDS)


def test_epochs_that_nobody_gave_are_those_of_the_study(tmp_path: Path) -> None:
    studies = {
        "a": "[fixed]\nepochs = 3\n[search]\nconv1_channels = [4]",
        "b": 'inherits = "a"\n[search]\nl2 = [0.0]',
        "c": "[search]\nl2 = [0.0]",
    }
    plan = new_plan(tmp_path, studies, epochs=None)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("a"), [0.5] * 3)
    worker.report(worker.claim("c"), [0.5])
    progress = look(plan)
    n_epochs = {"b": 3, "c": 11}
    for name, study in zip(plan.all_names, progress.studies, strict=True):
        if name in n_epochs:
            alone = replace(study, status=replace(study.status, points={**study.status.points, "waiting": 1}))
            taken = seconds_left(
                plan, [alone], progress.running, progress.best, n_at_once=1, trial_seconds={}
            )
            begun = 10 if name == "c" else 0
            assert taken == pytest.approx((n_epochs[name] + begun) * SECONDS)


def test_finished_trials_are_read_once_and_a_change_is_one(plan: Plan, worker: Worker) -> None:
    outlines, setup = plan.storage.outlines, plan.storage.study_id("setup")
    assert len(outlines.of(setup)) == 2
    first, second = worker.claim("setup"), worker.claim("setup")
    outlines.of(setup)
    revision = outlines.revisions[setup]
    worker.report(first, [0.5])
    assert outlines.of(setup)[0].intermediate_values == {1: 0.5}
    assert outlines.revisions[setup] == revision  # a report changes no state
    worker.finish(first, [0.5])
    ended, running = outlines.of(setup)
    assert outlines.revisions[setup] == revision + 1
    assert (ended.value, ended.intermediate_values) == (0.5, {})
    worker.finish(second, [0.6])
    again, other = outlines.of(setup)
    assert again is ended
    assert [other.number, running.number] == [1, 1]
    assert outlines.of(setup) == [again, other]
    assert outlines.revisions[setup] == revision + 2


def test_outlines_know_what_decides_whether_a_point_is_given_up(plan: Plan, worker: Worker) -> None:
    queue = Queue(plan.storage, "setup")
    fail(plan, "setup")
    assert len(retry(plan)[0]) == 1
    fail(plan, "setup", n_times=1)  # once since it was retried
    for n_epochs in range(LOST_CAP):  # the other one: lost again and again, each time an epoch further
        trial = worker.claim("setup")
        if trial.user_attrs["point"] != '{"conv1_channels":8}':
            trial = worker.claim("setup")
        if n_epochs:
            worker.report(trial, [0.1] * n_epochs)
        queue.close(trial._trial_id, Reason.LOST)
        if n_epochs < LOST_CAP - 1:
            advance(plan)
    for trial in plan.trials("setup"):
        if trial.state == TrialState.RUNNING:
            queue.close(trial._trial_id, Reason.LOST)
    whole = study_status(plan, "setup", plan.record("setup"), plan.trials("setup"))
    assert status(plan)[0] == whole
    assert whole.points["failed"] == 0
    assert look(plan).studies[0].n_lost == LOST_CAP + 1


def test_outlines_say_of_studies_what_whole_trials_say(under_way: Plan, finished: Path) -> None:
    for plan in (under_way, find_plan(finished)):
        whole = [study_status(plan, n, r, plan.trials(n)) for n, r in plan.records().items()]
        assert status(plan) == whole
