"""The queue on a real SQLite file, with real processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import InputError, MissingError, TrialLost
from hpo.storage.queue import (
    ERROR_CAP,
    LOST_CAP,
    Job,
    Queue,
    Reason,
    Slot,
    Slots,
    SlotState,
    is_dead,
    this_process,
    workers_at,
)
from hpo.storage.storage import Storage
from tests.support.queues import claim_first

POINT = Slot("a")
# copies of one process that has imported what they need: each alone would take a CPU second for it
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hpo.storage.queue", "hpo.storage.storage", "psycopg", "pymysql"])


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    storage = Storage(database_url, create=True)
    storage.create_study("s", {}, "maximize")
    yield storage
    storage._rdb.engine.dispose()


@pytest.fixture
def queue(storage: Storage) -> Queue:
    return Queue(storage, "s")


def jobs(n: int) -> list[Job]:
    return [Job(Slot(f"p{i}"), i, (0,)) for i in range(n)]


def test_trials_of_others_are_none_of_ours(queue: Queue, storage: Storage) -> None:
    theirs = storage.study("s").ask()
    for key, value in (("point", "theirs"), ("seeds", 3), ("config", "a.yaml")):
        theirs.set_user_attr(key, value)
    queue.enqueue(jobs(1), Slots({}))
    ours = claim_first(queue)
    assert ours is not None
    for _ in range(2):  # the first look would write a suspicion, the second one would act
        time.sleep(1.1)
        storage.heartbeat(ours._trial_id)
        assert queue.fail_stale_trials(lease_seconds=2) == []
    assert "suspected" not in storage.trials(queue.study_id)[0].user_attrs
    assert storage.trials(queue.study_id)[0].state == TrialState.RUNNING
    assert [slot.point for slot in queue.slots().attempts] == ["p0"]
    assert [slot.point for slot in Slots.of(storage.trials(queue.study_id)).attempts] == ["p0"]


def enqueue_and_drain(url: str, n: int, results: multiprocessing.Queue[list[int]]) -> None:
    storage = Storage(url)
    queue = Queue(storage, "s")
    queue.enqueue(jobs(n), Slots({}))
    mine = []
    while (trial := claim_first(queue)) is not None:
        mine.append(trial.number)
        storage.write(trial._trial_id, attrs={"epoch:1": []}, reports={1: 0.5})
        storage.finish(trial._trial_id, TrialState.COMPLETE, 0.5)
    results.put(mine)


def test_processes_that_enqueue_and_claim_at_once_get_each_point_once(storage: Storage) -> None:
    results = PROCESSES.Queue()
    arguments = (storage.url, 40, results)
    processes = [PROCESSES.Process(target=enqueue_and_drain, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    claimed = [number for _ in processes for number in results.get(timeout=300)]
    for process in processes:
        process.join()
    assert sorted(claimed) == list(range(40))
    slots = Queue(storage, "s").slots()
    assert len(slots.attempts) == 40
    assert {slots.state(slot) for slot in slots.attempts} == {SlotState.COMPLETE}


def create_study(url: str, results: multiprocessing.Queue[int]) -> None:
    storage = Storage(url, create=True)
    storage.create_study("s", {"k": 1}, "maximize")
    results.put(storage.study_attrs()["s"]["k"])


def test_create_study_and_schema_by_many_processes_at_once(database_url: str) -> None:
    results = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=create_study, args=(database_url, results)) for _ in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * 16
    assert {results.get(timeout=1) for _ in processes} == {1}


def test_a_claimed_trial_has_owner_params_and_start(queue: Queue) -> None:
    axis = CategoricalDistribution([1, 2])
    queue.enqueue([Job(POINT, 0, (0, 1), {"x": 2}, {"x": axis})], Slots({}))
    trial = claim_first(queue)
    assert trial is not None
    assert trial.params == {"x": 2}
    assert trial.user_attrs["owner"] == this_process()
    assert trial.user_attrs["seeds"] == [0, 1]
    assert trial.datetime_start is not None
    assert claim_first(queue) is None


def test_of_two_trials_of_one_slot_the_lower_number_wins(queue: Queue) -> None:
    queue.enqueue([Job(POINT, 0, (0,))], Slots({}))
    first = claim_first(queue)
    assert first is not None
    queue.enqueue([Job(POINT, 0, (0,))], queue.slots())  # attempt 2, although attempt 1 still runs
    assert claim_first(queue) is None
    second = queue.slots().attempts[POINT][1]
    assert second.state == TrialState.FAIL
    assert second.user_attrs["reason"] == Reason.SUPERSEDED


def claim_and_end(url: str) -> None:
    assert claim_first(Queue(Storage(url), "s")) is not None


def test_a_trial_whose_process_died_is_found_at_once_and_queued_again(queue: Queue, storage: Storage) -> None:
    queue.enqueue([Job(POINT, 0, (0,))], Slots({}))
    process = PROCESSES.Process(target=claim_and_end, args=(storage.url,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert queue.slots().state(POINT) == SlotState.RUNNING
    assert queue.fail_stale_trials(lease_seconds=60) == [0]
    assert queue.fail_stale_trials(lease_seconds=60) == []
    assert queue.slots().state(POINT) == SlotState.WAITING
    queue.enqueue([Job(POINT, 0, (0,))], queue.slots())
    again = claim_first(queue)
    assert again is not None
    assert (again.number, again.user_attrs["attempt"]) == (1, 2)


@pytest.mark.parametrize(("points", "following"), [(["#0", "#1"], "#0"), (["p", "q"], "q")])
def test_a_sample_that_was_lost_comes_before_new_ones(
    queue: Queue, points: list[str], following: str
) -> None:
    jobs = [Job(Slot(point), index, (0,)) for index, point in enumerate(points)]
    queue.enqueue(jobs, Slots({}))
    lost = claim_first(queue)
    assert lost is not None
    assert queue.close(lost._trial_id, Reason.LOST)
    queue.enqueue(jobs[:1], queue.slots())
    again = claim_first(queue)
    assert again is not None
    assert again.user_attrs["point"] == following


def claimed(queue: Queue) -> FrozenTrial:
    queue.enqueue([Job(POINT, 0, (0,))], Slots({}))
    trial = claim_first(queue)
    assert trial is not None
    return trial


def test_a_silent_trial_is_suspected_first_and_lost_when_it_does_not_answer(queue: Queue) -> None:
    claimed(queue)
    assert queue.fail_stale_trials(lease_seconds=60) == []
    time.sleep(2.1)  # the clocks of SQLite and MySQL count whole seconds
    assert queue.fail_stale_trials(lease_seconds=2) == []  # silent, but nobody had asked
    time.sleep(1.1)
    assert queue.fail_stale_trials(lease_seconds=2) == [0]
    (trial,) = queue.slots().attempts[POINT]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"].startswith("lost: no heartbeat")
    assert queue.slots().state(POINT) == SlotState.WAITING


def test_a_heartbeat_answers_a_suspicion(queue: Queue) -> None:
    trial = claimed(queue)
    time.sleep(2.1)
    assert queue.fail_stale_trials(lease_seconds=2) == []
    queue.storage.heartbeat(trial._trial_id)
    time.sleep(1.1)
    assert queue.fail_stale_trials(lease_seconds=2) == []
    assert queue.slots().state(POINT) == SlotState.RUNNING


def test_a_suspicion_that_nobody_followed_up_is_void(queue: Queue) -> None:
    """As after an outage of the database, in which no worker could be heard."""
    claimed(queue)
    time.sleep(2.1)
    assert queue.fail_stale_trials(lease_seconds=2) == []
    time.sleep(3.1)
    other = Queue(Storage(queue.storage.url), "s")  # it knows nothing of any outage
    assert other.fail_stale_trials(lease_seconds=2) == []
    time.sleep(1.1)
    assert other.fail_stale_trials(lease_seconds=2) == [0]


def test_a_machine_on_which_every_look_takes_seconds_finds_the_lost(queue: Queue) -> None:
    claimed(queue)
    for expected in ([], [0]):
        time.sleep(5.1)
        queue.storage.retry(lambda: time.sleep(1.1))  # as a query does where sixteen share a core
        assert queue.fail_stale_trials(lease_seconds=8) == expected


def test_times_are_right_in_every_time_zone(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        trial = claimed(queue)
        assert trial.datetime_start is not None
        assert abs((datetime.now() - trial.datetime_start).total_seconds()) < 60
        assert queue.fail_stale_trials(lease_seconds=60) == []
        queue.storage.finish(trial._trial_id, TrialState.COMPLETE, 0.5)
        ended = queue.storage.trial(trial._trial_id)
        assert ended.duration is not None
        assert 0 <= ended.duration.total_seconds() < 60
    finally:
        monkeypatch.undo()
        time.tzset()


CLOCK = """
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int ahead(void) { return atoi(getenv("SECONDS_AHEAD")); }
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) now->tv_sec += ahead();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exactly;
    clock_gettime(CLOCK_REALTIME, &exactly);
    now->tv_sec = exactly.tv_sec, now->tv_usec = exactly.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *seconds) {
    struct timeval now;
    gettimeofday(&now, NULL);
    if (seconds) *seconds = now.tv_sec;
    return now.tv_sec;
}
"""
WORK = """
import sys, time
from optuna.trial import TrialState
from hpo.storage.queue import claim
from hpo.storage.storage import Storage

storage = Storage(sys.argv[1])
first, second = claim(storage, ["s"]).trial, claim(storage, ["s"]).trial
storage.finish(first._trial_id, TrialState.COMPLETE, 0.5)
storage.heartbeat(second._trial_id)
print(time.time())
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a compiler")
def test_workers_whose_clocks_differ_tell_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c"], cwd=tmp_path, check=True)
    storage = Storage(f"sqlite:///{tmp_path / 'hpo.db'}", create=True)
    storage.create_study("s", {}, "maximize")
    queue = Queue(storage, "s")
    queue.enqueue(jobs(4), Slots({}))
    for ahead in (3600, -3600):
        began = time.time()
        env = {**os.environ, "LD_PRELOAD": str(tmp_path / "clock.so"), "SECONDS_AHEAD": str(ahead)}
        command = [sys.executable, "-c", WORK, storage.url]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert abs(float(done.stdout) - began) > 3000  # its own clock
    trials = storage.trials(queue.study_id)
    times = [each for trial in trials for each in (trial.datetime_start, trial.datetime_complete) if each]
    assert len(times) == 6
    assert max(times) - min(times) < timedelta(minutes=10)
    assert abs(datetime.now() - max(times)) < timedelta(minutes=10)
    running = [trial._trial_id for trial in trials if not trial.state.is_finished()]
    assert all(0 <= seconds < 600 for seconds in storage.seconds_since_heartbeat(running).values())


def test_a_worker_that_lost_its_trial_can_write_nothing(queue: Queue) -> None:
    trial = claimed(queue)
    queue.close(trial._trial_id, Reason.LOST)
    with pytest.raises(TrialLost):
        queue.storage.write(trial._trial_id, reports={1: 0.5})
    with pytest.raises(TrialLost):
        queue.storage.finish(trial._trial_id, TrialState.COMPLETE, 0.5)
    assert queue.storage.trial(trial._trial_id).intermediate_values == {}
    assert queue.slots().accepted(POINT) is None


def test_finishing_twice_is_one_result(queue: Queue) -> None:
    queue.enqueue([Job(POINT, 0, (0,))], Slots({}))
    trial = claim_first(queue)
    assert trial is not None
    queue.storage.finish(trial._trial_id, TrialState.COMPLETE, 0.5, {"a": 1})
    queue.storage.finish(trial._trial_id, TrialState.COMPLETE, 0.5, {"a": 1})  # as after a broken connection
    accepted = queue.slots().accepted(POINT)
    assert accepted is not None
    assert accepted.value == 0.5


def attempt(queue: Queue, end: Reason, *, epochs: int = 0, retry: bool = False) -> None:
    queue.enqueue([Job(POINT, 0, (0,))], queue.slots(), retry=retry)
    trial = claim_first(queue)
    assert trial is not None
    if epochs:
        queue.storage.write(trial._trial_id, reports=dict.fromkeys(range(1, epochs + 1), 0.1))
    assert queue.close(trial._trial_id, end, "for a test")


def test_errors_exhaust_a_slot_and_a_retry_counts_anew(queue: Queue) -> None:
    for _ in range(ERROR_CAP):
        assert queue.slots().state(POINT) in (SlotState.WAITING,)
        attempt(queue, Reason.ERROR)
    assert queue.slots().state(POINT) == SlotState.FAILED
    attempt(queue, Reason.ERROR, retry=True)
    assert queue.slots().state(POINT) == SlotState.WAITING


def test_losses_with_progress_never_exhaust_a_slot_and_those_without_do(queue: Queue) -> None:
    for epochs in range(LOST_CAP + 2):
        attempt(queue, Reason.LOST, epochs=epochs)
        assert queue.slots().state(POINT) == SlotState.WAITING
    for _ in range(LOST_CAP - 1):
        attempt(queue, Reason.LOST, epochs=LOST_CAP + 1)
    assert queue.slots().state(POINT) == SlotState.FAILED


def test_releases_never_exhaust_a_slot(queue: Queue) -> None:
    for _ in range(2 * (LOST_CAP + ERROR_CAP)):
        attempt(queue, Reason.RELEASED)
    assert queue.slots().state(POINT) == SlotState.WAITING


def test_who_is_dead() -> None:
    me = this_process()
    assert not is_dead(me)
    assert not is_dead({**me, "host": "elsewhere", "pid": 2**22 + 1})
    assert not is_dead({})
    assert is_dead({**me, "started": me["started"] - 1})  # the pid lives on in another process
    child = subprocess.Popen([sys.executable, "-c", ""])
    owner = {**me, "pid": child.pid}
    time.sleep(0.5)
    assert is_dead(owner)  # a zombie, not yet waited for
    child.wait()
    assert is_dead(owner)


def test_who_is_at_work(queue: Queue) -> None:
    me = this_process()
    dead = {**me, "started": me["started"] - 1}
    elsewhere = {**me, "host": "node-7", "boot": "another machine"}
    queue.enqueue(jobs(3), Slots({}))
    for owner in (me, dead, elsewhere):
        (_, trial_id), *_ = queue.storage.waiting([queue.study_id], 1)
        assert queue.storage.claim(trial_id, owner)
        if owner is me:
            mine = trial_id
    here = f"{me['host']}:{me['pid']}"
    assert workers_at(queue.storage, lease_seconds=60) == sorted([here, f"node-7:{me['pid']}"])
    time.sleep(3.1)  # the clocks of SQLite and MySQL count whole seconds
    queue.storage.heartbeat(mine)
    assert workers_at(queue.storage, lease_seconds=2) == [here]


def test_a_reader_sees_what_is_written_and_takes_no_lock(storage: Storage, queue: Queue) -> None:
    reader = Storage(storage.url, reader=True)
    with storage._rdb.engine.begin():  # a worker in the middle of a claim
        assert Queue(reader, "s").slots().attempts == {}
    queue.enqueue(jobs(2), Slots({}))
    assert len(Queue(reader, "s").slots().attempts) == 2


def write_epochs(url: str, trial_id: int, n: int) -> None:
    storage = Storage(url)
    for epoch in range(1, n + 1):
        storage.write(trial_id, attrs={f"epoch:{epoch}": []}, reports={epoch: 0.5})


def test_a_reader_never_sees_half_an_epoch(storage: Storage, queue: Queue) -> None:
    queue.enqueue(jobs(1), Slots({}))
    trial = claim_first(queue)
    assert trial is not None
    n = 150
    arguments = (storage.url, trial._trial_id, n)
    writer = PROCESSES.Process(target=write_epochs, args=arguments)
    writer.start()
    reader = Storage(storage.url, reader=True)
    seen = 0
    while seen < n and writer.is_alive():
        (now,) = reader.trials(reader.study_id("s"))
        epochs = {int(key[6:]) for key in now.user_attrs if key.startswith("epoch:")}
        assert epochs == now.intermediate_values.keys()
        seen = len(epochs)
    writer.join()
    assert writer.exitcode == 0


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite://", "in memory"),
        ("postgresql+nodriver://h/d", "driver|opened|load"),
    ],
)
def test_urls_that_cannot_be_used(url: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Storage(url, create=True)


def test_a_missing_database_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no database"):
        Storage(f"sqlite:///{tmp_path / 'no.db'}", reader=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "hpo.db").write_text("hello " * 1000)
    with pytest.raises(InputError, match="not a database"):
        Storage(f"sqlite:///{tmp_path / 'hpo.db'}", create=True)


def test_a_database_of_another_major_optuna_is_refused(storage: Storage) -> None:
    with storage._rdb.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE version_info SET library_version = '4.9.0'")
    with pytest.raises(InputError, match=r"Optuna 4\.9\.0"):
        Storage(storage.url)
