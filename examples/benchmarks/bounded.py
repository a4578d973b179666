"""Child processes with a time limit, of which nothing is left behind, nor of what they have started.

A process that uses a GPU may stand still where no signal is heard, and workers of hpo have sessions of their
own, which a signal to the group of `hpo run` does not reach.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

import psutil

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: within so long hpo promises to have stopped."""
POLL_SECONDS = 0.05


class Child:
    """A process in a session of its own, gone with all its descendants when the context ends.

    Args:
        command: what to run.
        seconds: from now on; then it is stopped.
        variables: environment variables beside those of this process; None: not set.
    """

    def __init__(
        self, command: Sequence[str], seconds: float, variables: Mapping[str, str | None] | None = None
    ) -> None:
        merged = {**os.environ, **(variables or {})}
        self.is_late = False
        """Whether it was stopped because its time was up."""
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        # files, not pipes: who reads none of it stops nobody, and nobody waits for a pipe that a worker holds
        with ExitStack() as files:
            self._out, self._err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            self._files = files.pop_all()
        self.process = subprocess.Popen(
            command,
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._files.close()

    def is_running(self) -> bool:
        """Whether it goes on; one whose time is up does not."""
        if self.process.poll() is None and time.monotonic() >= self._deadline:
            self.is_late = True
            self.end()
        return self.process.poll() is None

    def wait(self) -> int | None:
        """Its exit code; None where it had to be stopped."""
        while self.is_running():
            time.sleep(POLL_SECONDS)
        return None if self.is_late else self.process.returncode

    def lines(self) -> Iterator[str]:
        """What it prints, line by line, until it ends or is stopped."""
        place, rest = 0, ""
        goes_on = True
        while goes_on:
            goes_on = self.is_running()
            text = self.out[place:]
            place += len(text)
            *whole, rest = (rest + text).split("\n")
            yield from whole
            if goes_on and not text:
                time.sleep(POLL_SECONDS)

    @property
    def out(self) -> str:
        """What it has printed."""
        return self._read(self._out.fileno())

    @property
    def err(self) -> str:
        """What it has said on standard error."""
        return self._read(self._err.fileno())

    @staticmethod
    def _read(number: int) -> str:
        # by position: the child writes at the place where reading would leave the file
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.is_late:
            return f"stopped after {self._deadline - self._began:.0f} s"
        if self.process.returncode == 0:
            return "done"
        last = (self.err.strip().splitlines() or ["it said nothing"])[-1]
        return f"failed with code {self.process.returncode}: {last}"

    def end(self) -> None:
        """Ask it to stop, then kill whatever is left of it and of those that it has started."""
        family: list[psutil.Process] = []
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        # killed is not gone: the system ends them in its own time
        psutil.wait_procs(family, timeout=1)
        with suppress(subprocess.TimeoutExpired):  # the system may hold one whose device does not answer
            self.process.wait(1)


def exit_at_sigterm() -> None:
    """Have SIGTERM end this process as an exception does, so that contexts end and children with them."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
