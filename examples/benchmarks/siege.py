"""Processes that are killed at named places and by chance, and a count of what comes of it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

import servers

N_WORKERS, N_CREATORS = 3, 4
CROWD = 16
FAULTS_A_PLAN = 20
PLAN_SECONDS = 300
LEASE_SECONDS = 6.0
LONG_OUTAGE_SECONDS = 60.0
FULL_DISK_SECONDS = 5.0
REFUSED, NO_SPACE = 3, 4
"""How the worker of a subject ends that may not work here, and one that can write nothing."""
ORDERLY = (0, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)
"""Ends of a worker that are no crash; the last: SIGTERM came before it could set a handler."""
Places = Mapping[str, tuple[Any, str, str]]
"""By what a person calls it: an object, the name of a function in it, `before` or `after`."""


@dataclass
class Tally:
    """What happened on one back end."""

    subject: str
    back_end: str
    faults: int = 0
    plans: int = 0
    points: int = 0
    points_lost: int = 0
    double_results: int = 0
    worker_crashes: int = 0
    false_losses: int = 0
    attempts_lost: int = 0
    max_epochs_repeated: int = 0
    resumed: int = 0
    resumed_equal: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    """What was not looked at; its figures stay empty."""

    def count(self, kind: str) -> None:
        """One fault more."""
        self.faults += 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def trouble(self) -> tuple[int, ...]:
        """What should never change."""
        unequal = self.resumed - self.resumed_equal
        return (self.points_lost, self.double_results, self.worker_crashes, self.false_losses, unequal)

    def record(self) -> dict[str, Any]:
        """The tally with the recovery times summed up."""
        record = asdict(self)
        times = sorted(record.pop("recovery_seconds"))
        cuts = quantiles(times, n=100) if len(times) > 1 else times * 99 or [0.0] * 99
        kinds = record.pop("kinds")
        record |= {"recovery_p50_s": round(cuts[49], 2), "recovery_p99_s": round(cuts[98], 2)}
        return {**record, **dict.fromkeys(record.pop("unknown"), ""), "kinds": kinds}


class Subject(Protocol):
    """What is besieged. All but `ended` run in processes of their own."""

    @property
    def places(self) -> Places:
        """Where workers can be killed."""

    @property
    def misfits(self) -> Mapping[str, Callable[[int], int]]:
        """Workers in special trouble, by what a person calls it; each takes a seed, returns its exit code."""

    def create(self) -> None:
        """Prepares the work; several processes do so at once."""

    def work(self, seed: int) -> int:
        """A worker; returns its exit code."""

    def ended(self) -> bool:
        """Whether all work is done."""


def fork(body: Callable[[], int | None], log: Path) -> int:
    """Runs a function in a child process and returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        logging.basicConfig(format=f"%(asctime)s {os.getpid()} %(message)s", level=logging.INFO, force=True)
        code = body() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill_at(places: Places, place: str, nth: int) -> None:
    """Makes this process kill itself the nth time that it comes to a place."""
    owner, name, when = places[place]
    original = getattr(owner, name)
    left = nth

    @wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapper)


class Siege:
    """Workers on one plan, and what is done to them."""

    def __init__(
        self,
        subject: Subject,
        log: Path,
        server: servers.Server | None,
        tally: Tally,
        chance: random.Random,
        n_faults: int = FAULTS_A_PLAN,
        *,
        crowded: bool = False,
        long_outage: bool = False,
        disk: Path | None = None,
    ) -> None:
        """Prepares a siege.

        Args:
            subject: what is besieged.
            log: where its processes write.
            server: its database server, if it has one.
            tally: where faults are counted.
            chance: decides which and when.
            n_faults: how many; a few more may happen.
            crowded: 16 create at once, and 16 work.
            long_outage: the server is away for a minute, once.
            disk: a small file system of its own for database and checkpoints, to be full for a while.
        """
        self._subject, self._log, self._server = subject, log, server
        self._tally, self._chance = tally, chance
        self._n_creators, self._n_workers = (CROWD, CROWD) if crowded else (N_CREATORS, N_WORKERS)
        self._disk, self._disk_was_full = disk, False
        self._misfits = list(subject.misfits) if n_faults else []
        chance.shuffle(self._misfits)  # a short plan may have room for the first of them alone
        self._once: list[Callable[[], str]] = []  # faults that happen first, and one time
        if crowded:
            tally.count(f"{CROWD} create at once")
            tally.count(f"{CROWD} start at once")
        if long_outage and server is not None:
            self._once.append(self._long_outage)
        if disk is not None:
            self._once.append(self._fill_disk)
        self._workers: dict[int, str] = {}  # by process id the place at which it is going to die
        self.hurt: dict[int, float] = {}
        """When a process was killed or stopped, by its id."""
        self._left = n_faults

    def hold(self) -> None:
        """Keeps workers at work and strikes them until all is done, or for five minutes at most."""
        creators = [fork(self._subject.create, self._log) for _ in range(self._n_creators)]
        for pid in creators:
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                self._tally.worker_crashes += 1
        deadline = time.monotonic() + PLAN_SECONDS
        next_fault = time.monotonic()
        while not self._subject.ended() or self._workers:
            if time.monotonic() > deadline:
                self._stop_all()
                break
            self._reap()
            ended = self._subject.ended()
            while len(self._workers) < self._n_workers and not ended:
                self._start()
            if self._left > 0 and self._workers and not ended and time.monotonic() >= next_fault:
                self._strike()
                next_fault = time.monotonic() + self._chance.uniform(0.3, 2.0)
            time.sleep(0.05)

    def _start(self) -> None:
        seed = self._chance.randrange(2**31)
        place, nth = self._chance.choice(list(self._subject.places)), self._chance.randint(1, 6)
        is_doomed = self._left > 0 and self._chance.random() < 0.6
        misfit = self._misfits.pop() if self._misfits and self._chance.random() < 0.2 else None

        def body() -> int:
            if misfit is not None:
                return self._subject.misfits[misfit](seed)
            if is_doomed:
                kill_at(self._subject.places, place, nth)
            return self._subject.work(seed)

        self._workers[fork(body, self._log)] = misfit or place

    def _reap(self) -> None:
        for pid in list(self._workers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            place, code = self._workers.pop(pid), os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL and pid not in self.hurt:
                self.hurt[pid] = time.time()
                self._tally.count(place)
                self._left -= 1
            elif code == REFUSED:
                self._tally.count(place)
            elif code not in ORDERLY and not (code == NO_SPACE and self._disk_was_full):
                self._tally.worker_crashes += 1

    def _strike(self) -> None:
        kinds: list[Callable[[], str]] = [self._kill_one, self._kill_one, self._terminate, self._pause_one]
        kinds += [self._kill_all]
        if self._server is not None:
            kinds += [self._restart, self._crash, self._pause_server]
        name = self._once.pop()() if self._once else self._chance.choice(kinds)()
        self._tally.count(name)
        self._left -= 1

    def _victim(self) -> int:
        return self._chance.choice(sorted(self._workers))

    def _signal(self, pid: int, number: int) -> None:
        self.hurt[pid] = time.time()
        os.kill(pid, number)

    def _kill_one(self) -> str:
        self._signal(self._victim(), signal.SIGKILL)
        return "SIGKILL"

    def _kill_all(self) -> str:
        for pid in self._workers:
            self._signal(pid, signal.SIGKILL)
        return "SIGKILL to all workers"

    def _terminate(self) -> str:
        self._signal(self._victim(), signal.SIGTERM)
        return "SIGTERM"

    def _pause_one(self) -> str:
        victim = self._victim()
        self._signal(victim, signal.SIGSTOP)
        time.sleep(1.8 * LEASE_SECONDS)
        os.kill(victim, signal.SIGCONT)
        return "SIGSTOP past the lease"

    def _restart(self) -> str:
        assert self._server is not None
        self._server.restart("fast", self._chance.uniform(0, 2))
        return "server restarted"

    def _crash(self) -> str:
        assert self._server is not None
        self._server.restart("immediate", self._chance.uniform(0, 4))
        return "server crashed"

    def _pause_server(self) -> str:
        assert self._server is not None
        with self._server.paused():
            time.sleep(self._chance.uniform(0.5, 1.5) * LEASE_SECONDS)
        return "server paused"

    def _long_outage(self) -> str:
        assert self._server is not None
        self._server.restart("fast", LONG_OUTAGE_SECONDS)
        return "server away for a minute"

    def _fill_disk(self) -> str:
        assert self._disk is not None
        self._disk_was_full = True
        filler = self._disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        time.sleep(FULL_DISK_SECONDS)
        filler.unlink()
        return "disk full"

    def _stop_all(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._workers.clear()
