"""What a worker has to be told, and how it is started on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpo._files import resolved
from hpo._process import PARENT_VARIABLE
from hpo.execution.backends.fork_server import ForkServer
from hpo.planning.hub import ALLOWED
from hpo.planning.plan import Plan
from hpo.storage.database import sqlite_file

KEPT = ("HPO_CACHE", ALLOWED)
"""Variables `HPO_…` that are meant for the workers of a machine, too."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker has to be told, wherever it runs; plain values, paths absolute."""

    out: str
    studies: tuple[str, ...]
    threads: int
    device: str
    """What the plan trains on: cpu, cuda (any GPU), cuda:N or mps."""
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
        self, number: int, keep: Sequence[str] = KEPT, place: Mapping[str, str] | None = None
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
                [sys.executable, "-m", "hpo", *self.arguments],
                env={**self.environment(keep), **(place or {}), PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def fork_server(self, *, is_early: bool = False) -> ForkServer:
        """Start what then starts workers on this machine quickly; early: before there may be a folder."""
        if not is_early:
            self.logs.mkdir(parents=True, exist_ok=True)
        log = None if is_early else self._server_log
        return ForkServer(self.arguments, self.environment(KEPT), log)

    def log(self, number: int) -> Path:
        """Return the file that a worker of this machine writes to."""
        return self.logs / f"worker-{number}.log"

    def last_words(self, number: int) -> str:
        """Return the last line of a worker of this machine, and where there is more."""
        log = self.log(number) if self.log(number).exists() else self._server_log
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"{lines[-1] if lines else 'it said nothing'} (see {log})"

    @property
    def arguments(self) -> list[str]:
        """The command that a worker is, without `hpo`."""
        at_once = [] if self.trials_per_device is None else [f"--trials-per-device={self.trials_per_device}"]
        return ["worker", "--out", self.out, *at_once, *self.studies]

    @property
    def _server_log(self) -> Path:
        return self.logs / "workers.log"

    def environment(self, keep: Sequence[str]) -> dict[str, str]:
        """Return the variables that a worker has: those of this process, and what it is told.

        Args:
            keep: variables `HPO_…` of this process that are meant for workers.
        """
        kept = {key: os.environ[key] for key in keep if key in os.environ}
        others = {key: value for key, value in os.environ.items() if key[:4] != "HPO_"}
        return {**others, **self.settings, **kept}


def ask_to_stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask a worker to put its trial back and end, one that is paused (SIGSTOP) too."""
    worker.terminate()
    if sys.platform != "win32":
        worker.send_signal(signal.SIGCONT)
