"""Workers kept at work on this machine, forked or spawned: real processes that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hpo.errors import DeviceLostError, InputError, RunError
from hpo.execution import supervisor
from hpo.execution.backends.base import OpenBackend
from hpo.execution.backends.fork_server import ForkServer
from hpo.execution.backends.local import forked_processes, spawned_processes
from hpo.execution.backends.worker_spec import WorkerSpec
from hpo.execution.run import run
from hpo.execution.supervisor import supervise
from hpo.planning.plan import Plan
from hpo.storage.queue import LOST_CAP, Reason, Slots, SlotState, reason_of
from tests.support.command import at_work, start_hpo, wait_for
from tests.support.plans import RATES, made_plan

ENGINES = {
    "forked": pytest.param(
        forked_processes, marks=pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
    ),
    "spawned": pytest.param(spawned_processes, marks=pytest.mark.slow),
}


def states(plan: Plan) -> set[SlotState]:
    slots = Slots.of(plan.trials("rate"))
    return {slots.state(slot) for slot in slots.attempts}


def once(plan: Plan, what: Callable[[], None]) -> Callable[[], None]:
    """Does something at the first tick at which a trial has reported."""
    left = [what]

    def on_tick() -> None:
        if left and any(trial.intermediate_values for trial in plan.trials("rate")):
            left.pop()()

    return on_tick


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_a_worker_that_was_killed_is_replaced_and_none_outlives_the_run(
    engine: OpenBackend, tmp_path: Path
) -> None:
    plan = made_plan(tmp_path, RATES, epochs=60)
    seen: list[psutil.Process] = []

    def kill_one() -> None:
        seen.extend(at_work())
        seen[0].kill()

    on_tick = once(plan, kill_one)
    assert run(plan, out=tmp_path, studies=["rate"], workers=1, engine=engine, on_tick=on_tick) is None
    assert states(plan) == {SlotState.COMPLETE}
    assert sum(trial.state.name == "FAIL" for trial in plan.trials("rate")) == 1
    assert seen
    assert not at_work()


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_workers_that_are_paused_put_their_trials_back_too_when_the_run_is_stopped(
    engine: OpenBackend, tmp_path: Path
) -> None:
    plan = made_plan(tmp_path, RATES, epochs=100_000)

    def pause_and_stop() -> None:
        for process in psutil.Process().children(recursive=True):
            if "worker" in process.cmdline():  # the fork server too
                process.suspend()
        os.kill(os.getpid(), signal.SIGTERM)

    on_tick = once(plan, pause_and_stop)
    stopped_by = run(plan, out=tmp_path, studies=["rate"], workers=1, engine=engine, on_tick=on_tick)
    assert stopped_by == signal.SIGTERM
    (ended,) = [trial for trial in plan.trials("rate") if trial.state.is_finished()]
    assert reason_of(ended) == Reason.RELEASED
    assert not at_work()


def test_a_fork_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES, epochs=60)

    def kill_server() -> None:
        (worker,) = at_work()
        server = worker.parent()
        assert server is not None
        assert server.pid != os.getpid()
        server.kill()

    on_tick = once(plan, kill_server)
    stopped_by = run(
        plan, out=tmp_path, studies=["rate"], workers=1, engine=forked_processes, on_tick=on_tick
    )
    assert stopped_by is None
    assert states(plan) == {SlotState.COMPLETE}


def test_workers_that_cannot_even_start_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made_plan(tmp_path, RATES)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "optuna.py").write_text("raise ImportError('this optuna is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(
        RunError, match=r"ended with code 1: ImportError: this optuna is broken \(see .*\.log"
    ):
        run(plan, out=tmp_path, studies=["rate"], workers=2, engine=forked_processes)


class _Scripted:
    """Workers that end with these codes, one each time that they are started; after that they work on."""

    def __init__(self, codes: dict[int, list[int]]) -> None:
        self._codes, self._running = codes, set[int]()

    def room(self) -> int:
        return len(self._codes)

    def start(self, number: int) -> None:
        self._running.add(number)

    def ended(self) -> dict[int, int]:
        ended = {number: self._codes[number].pop(0) for number in self._running if self._codes[number]}
        self._running -= ended.keys()
        return ended

    def last_words(self, number: int) -> str:
        return "only a CPU here"

    def terminate(self) -> None:
        raise AssertionError("nobody has asked for that")


# no machine at hand loses a GPU when it is asked to: what is real here is who keeps workers at work
def test_a_device_that_does_not_come_back_costs_the_others_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = made_plan(tmp_path, RATES)
    lost = DeviceLostError.exit_code
    assert supervise(_Scripted({1: [lost, 2], 2: [lost, lost, lost, 0]}), plan, None, None, int) is None
    assert "worker 1 ended with code 2: only a CPU here; the others go on" in caplog.text
    with pytest.raises(InputError, match="worker 1 ended with code 2: only a CPU here"):
        supervise(_Scripted({1: [lost, 2]}), plan, None, None, int)
    with pytest.raises(InputError, match="worker 2 ended with code 2"):
        supervise(_Scripted({1: [lost, lost, lost, 0], 2: [2]}), plan, None, None, int)


def test_workers_may_each_be_at_a_point_that_kills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.01)
    plan, kills = made_plan(tmp_path, RATES), [-9] * (LOST_CAP - 1)
    assert supervise(_Scripted({n: [*kills, 0] for n in (1, 2, 3)}), plan, None, None, int) is None
    with pytest.raises(RunError, match="ended with code -9"):
        supervise(_Scripted({n: [*kills, *kills] for n in (1, 2, 3)}), plan, None, None, int)


def test_workers_are_told_of_checkpoints_where_there_is_a_place_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, key = made_plan(tmp_path, RATES), "HPO_CHECKPOINTS"
    told = {
        place: WorkerSpec.of(plan, tmp_path, (), place).settings.get(key) for place in ("", "there", "s3://b")
    }
    assert told == {"": None, "there": str(tmp_path.resolve() / "there"), "s3://b": "s3://b"}


def test_workers_stop_when_their_parent_is_killed(small_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--data=digits", "--limit-train=1000", "--limit-valid=100", "--epochs=200")
    process = start_hpo("run", "rate", "--studies", small_studies, "--out", out, "--workers=2", *options)
    wait_for(lambda: list(out.glob("checkpoints/**/*.checkpoint")), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive


def test_how_a_forked_worker_ended_is_told_and_each_has_variables_of_its_own(tmp_path: Path) -> None:
    server = ForkServer(["status"], dict(os.environ), tmp_path / "log")
    for number, name in ((1, "here"), (2, "there")):
        server.start(number, tmp_path / f"{number}.log", {"HPO_OUT": name})
        assert server.ended(300) == {number: 2}
        assert f"{name}/hpo.db" in (tmp_path / f"{number}.log").read_text()
    server._process.send_signal(signal.SIGSTOP)  # until it has both orders: else the worker may end by itself
    server.start(3, tmp_path / "3.log", {})
    server._send({"signal": signal.SIGKILL})
    server._process.send_signal(signal.SIGCONT)
    assert server.ended(300) == {3: -signal.SIGKILL}
    server.kill()
    assert not server.is_alive


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_no_worker_outlives_a_server_that_has_not_come_to_killing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = made_plan(tmp_path, RATES, epochs=100_000)
    server = WorkerSpec.of(plan, tmp_path, (), None).fork_server()
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start(1, tmp_path / "1.log", {})
        wait_for(psutil.Process(server._process.pid).children)
        workers = at_work()
        workers[0].suspend()  # else it would notice that its parent is gone
        monkeypatch.setattr("hpo.execution.backends.fork_server.END_SECONDS", 0.0)
        monkeypatch.setattr(server, "send_signal", lambda _: None)  # the order is on its way
    assert psutil.wait_procs(workers, timeout=300)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_function_is_called_in_a_copy_of_the_fork_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = ForkServer(["status"], dict(os.environ), None)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        assert server.call("os.path:join", "a", "b") == "a/b"
        with pytest.raises(InputError, match=r"^device = 'gpu': known: auto, cpu"):
            server.call("hpo.training.devices:resolve_device", "gpu")
        with pytest.raises(RunError, match="ended with code 1"):
            server.call("os.path:join", 1)
        server._process.kill()
        with pytest.raises(RunError, match="ended with code -9"):
            server.call("os.path:join", "a", "b")
    assert "TypeError" in capfd.readouterr().err
