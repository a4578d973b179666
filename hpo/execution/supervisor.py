"""Workers kept at work: placed by an engine, watched, replaced when they die, stopped by a signal.

They are ordinary `hpo worker` processes, wherever an engine puts them, and know each other through the
database alone; so a worker that is lost costs its epoch in progress, and further ones may be added by hand.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from hpo._files import resolved
from hpo.errors import DeviceLostError, InputError, RunError
from hpo.execution.backends.fork_server import ForkServer
from hpo.execution.worker import PARENT_VARIABLE
from hpo.planning.plan import Plan
from hpo.storage.database import sqlite_file
from hpo.storage.outbox import in_background
from hpo.storage.queue import Queue, SlotState
from hpo.training.devices import n_cores, visible_gpus

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK_SECONDS = 1.0
POLL_SECONDS = 0.05
STOP_SECONDS = 7.5
"""Workers end by themselves before; what then still has to be done is done ten seconds after the signal."""
MAX_RESTARTS = 20
"""Of workers in a row without a trial that ended meanwhile."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker has to be told, wherever it runs; plain values, paths absolute."""

    out: str
    studies: tuple[str, ...]
    threads: int
    device: str
    """What the plan trains on: cpu, cuda (any GPU) or cuda:N."""
    trials_per_device: int | None
    """How many trials a worker trains at once; None: as it sees fit."""
    settings: Mapping[str, str]
    """Environment variables; the database URL is one: it may hold a password, and arguments are public."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        out: Path,
        studies: Sequence[str],
        checkpoints: str | Path | None,
        data: str | None = None,
        trials_per_device: int | None = None,
    ) -> WorkerSpec:
        """Specify workers that serve a plan; `data`: where its data are here, if not where it was created."""
        is_of_one_gpu = plan.identity.device == "cuda" and ":" in plan.options.device
        device = plan.options.device if is_of_one_gpu else plan.identity.device
        file = sqlite_file(plan.storage.url)
        settings = {
            "HPO_STORAGE": plan.storage.url if file is None else f"sqlite:///{file.resolve()}",
            # before torch is imported, or its pools are as large as the machine
            "OMP_NUM_THREADS": str(plan.identity.threads),
        }
        if checkpoints:
            place = str(checkpoints)
            settings["HPO_CHECKPOINTS"] = place if "://" in place else str(resolved(place))
        if data is not None:
            settings["HPO_DATA"] = data
        threads = plan.identity.threads
        return cls(str(out.resolve()), tuple(studies), threads, device, trials_per_device, settings)

    @property
    def logs(self) -> Path:
        """Where the workers of a machine write."""
        return Path(self.out, "logs")

    def start(
        self, number: int, keep: Sequence[str] = ("HPO_CACHE",), place: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker on this machine; it stops when the process that called this is gone.

        Args:
            number: of the worker, from 1.
            place: variables that tell this worker where to train.
            keep: variables `HPO_…` of this process that are meant for workers, before what is ordered. What
                else these are to do the plan says, not the options of whoever started this process.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.log(number).open("ab") as file:
            # a session of its own: Ctrl-C reaches `hpo run` alone, which then stops its workers in order
            return subprocess.Popen(
                [sys.executable, "-m", "hpo", *self._arguments],
                env={**self._environment(keep), **(place or {}), PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def fork_server(self) -> ForkServer:
        """Start what then starts workers on this machine quickly."""
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = self._environment(("HPO_CACHE",))
        return ForkServer(self._arguments, environment, PARENT_VARIABLE, self._server_log)

    def log(self, number: int) -> Path:
        """Return the file that a worker of this machine writes to."""
        return self.logs / f"worker-{number}.log"

    def last_words(self, number: int) -> str:
        """Return the last line of a worker of this machine, and where there is more."""
        log = self.log(number) if self.log(number).exists() else self._server_log
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {log})"

    @property
    def _arguments(self) -> list[str]:
        at_once = [] if self.trials_per_device is None else [f"--trials-per-device={self.trials_per_device}"]
        return ["worker", "--out", self.out, *at_once, *self.studies]

    @property
    def _server_log(self) -> Path:
        return self.logs / "workers.log"

    def _environment(self, keep: Sequence[str]) -> dict[str, str]:
        kept = {key: os.environ[key] for key in keep if key in os.environ}
        others = {key: value for key, value in os.environ.items() if key[:4] != "HPO_"}
        return {**others, **self.settings, **kept}


class WorkerBackend(Protocol):
    """The workers that an engine has placed, by number from 1."""

    def room(self) -> int:
        """Return how many workers there is room for."""

    def start(self, number: int) -> None:
        """Place a worker, or places it again."""

    def ended(self) -> dict[int, int]:
        """Return the exit codes of the workers that have ended since this was asked last."""

    def last_words(self, number: int) -> str:
        """Return what a worker that has ended said last."""

    def terminate(self) -> None:
        """Ask all workers to put their trials back and end; return at once."""


OpenBackend = Callable[[WorkerSpec], AbstractContextManager[WorkerBackend]]
"""Opens a backend for such workers; all of them have ended when the context is left."""


@contextmanager
def forked_processes(spec: WorkerSpec) -> Iterator[WorkerBackend]:
    """Run workers as copies of one process of this machine that has imported what they need."""
    backend = _ForkedBackend(spec)
    try:
        yield backend
    finally:
        backend.kill()


@contextmanager
def spawned_processes(spec: WorkerSpec) -> Iterator[WorkerBackend]:
    """Run workers as processes of this machine, each started from nothing."""
    backend = _SpawnedBackend(spec)
    try:
        yield backend
    finally:
        backend.kill()


local_processes = forked_processes if sys.platform == "linux" else spawned_processes
"""Workers on this machine, as this system starts them best."""


class _LocalBackend:
    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._gpus = visible_gpus() if spec.device == "cuda" else []

    def room(self) -> int:
        if self._spec.device == "cpu":
            return max(1, n_cores() // self._spec.threads)
        return len(self._gpus) or 1

    def _place(self, number: int) -> dict[str, str]:
        """Return variables that give a worker a GPU of its own, as far as there are so many."""
        return {"CUDA_VISIBLE_DEVICES": self._gpus[(number - 1) % len(self._gpus)]} if self._gpus else {}

    def last_words(self, number: int) -> str:
        return self._spec.last_words(number)


class _ForkedBackend(_LocalBackend):
    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._server = spec.fork_server()
        self._died_with_server: dict[int, int] = {}

    def start(self, number: int) -> None:
        if not self._server.is_alive:
            self._died_with_server |= self._server.ended()
            self._server.kill()
            self._server = self._spec.fork_server()
        self._server.start(number, self._spec.log(number), self._place(number))

    def ended(self) -> dict[int, int]:
        codes = self._died_with_server | self._server.ended()
        self._died_with_server = {}
        return codes

    def terminate(self) -> None:
        self._server.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._server.kill()


class _SpawnedBackend(_LocalBackend):
    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        self._workers[number] = self._spec.start(number, place=self._place(number))

    def ended(self) -> dict[int, int]:
        codes = {number: worker.poll() for number, worker in self._workers.items()}
        ended = {number: code for number, code in codes.items() if code is not None}
        for number in ended:
            del self._workers[number]
        return ended

    def terminate(self) -> None:
        for worker in self._workers.values():
            ask_to_stop(worker)

    def kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.wait()


def supervise(
    backend: WorkerBackend,
    plan: Plan,
    names: Sequence[str] | None,
    count: int | None,
    on_tick: Callable[[], object],
) -> int | None:
    """Keep workers alive until they end by themselves, which they do when the plan has ended.

    Args:
        backend: who works.
        plan: what they work on.
        names: the studies that they serve; None: all, and the final stage.
        count: how many workers; None: as many as there is room for.
        on_tick: called about once a second.

    Returns:
        The signal that stopped it, or None.

    Raises:
        InputError: a worker refused to work here.
        RunError: workers give up, or die again and again and no trial ends. One whose device had failed
            before is missed only where it was the last.
    """
    n_restarts, n_ended_before = 0, -1
    leave_at = math.inf
    lost_devices = set[int]()
    at_work = set(range(1, (count or backend.room()) + 1))
    with _signals() as received:
        for number in sorted(at_work):
            backend.start(number)
        while at_work and time.monotonic() < leave_at:
            _unless(lambda: bool(received), on_tick)
            if _wait(TICK_SECONDS, lambda: bool(received)):
                _stop(backend, at_work, received)
                _look_once_more(on_tick)
                return received[0]
            for number, code in backend.ended().items():
                at_work.discard(number)
                if code == 0:  # all is done: one that still waits for a place has come too late
                    leave_at = min(leave_at, time.monotonic() + STOP_SECONDS)
                    continue
                n_ended = _unless(lambda: bool(received), lambda: _n_ended(plan, names))
                if n_ended is None:
                    break
                n_restarts = n_restarts + 1 if n_ended == n_ended_before else 0
                n_ended_before = n_ended
                # one that was killed is replaced; one that gave up (1) or refused (2) would do so again
                if code in (1, 2) or n_restarts > MAX_RESTARTS:
                    if number in lost_devices and at_work:  # this device does not come back
                        words = backend.last_words(number)
                        log.warning("worker %d ended with code %d: %s; the others go on", number, code, words)
                        continue
                    kind = InputError if code == 2 else RunError
                    raise kind(f"worker {number} ended with code {code}: {backend.last_words(number)}")
                if code == DeviceLostError.exit_code:
                    lost_devices.add(number)
                backend.start(number)
                at_work.add(number)
    return None


def _unless(given_up: Callable[[], bool], call: Callable[[], T]) -> T | None:
    """Return what a call returns; None when it was given up, as where it hangs in a database that is away."""
    answer = in_background(call)
    while not wait([answer], POLL_SECONDS).done:
        if given_up():
            return None
    return answer.result()


def _wait(seconds: float, until: Callable[[], bool]) -> bool:
    """Return whether something became so in that time. A handled signal wakes nobody who sleeps."""
    deadline = time.monotonic() + seconds
    while not (is_so := until()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return is_so


def _stop(backend: WorkerBackend, at_work: set[int], received: Sequence[int]) -> None:
    def is_over() -> bool:
        at_work.difference_update(backend.ended())
        return not at_work or signal.SIGINT in received[1:]

    backend.terminate()
    _wait(STOP_SECONDS, is_over)


def ask_to_stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask a worker to put its trial back and end, one that is paused (SIGSTOP) too."""
    worker.terminate()
    worker.send_signal(signal.SIGCONT)


def _look_once_more(on_tick: Callable[[], object]) -> None:
    deadline = time.monotonic() + TICK_SECONDS
    _unless(lambda: time.monotonic() > deadline, on_tick)


def _n_ended(plan: Plan, names: Sequence[str] | None) -> int:
    """Return how many points have ended; lost attempts are no progress."""
    count = 0
    for name in plan.all_names if names is None else names:
        slots = Queue(plan.storage, name).slots()
        states = [slots.state(slot) for slot in slots.attempts]
        count += sum(state not in (SlotState.WAITING, SlotState.RUNNING) for state in states)
    return count


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the SIGINT and SIGTERM received while the context lasts, in order."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python handles signals in the main thread alone
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
