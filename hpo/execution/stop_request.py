"""Whether a worker is to stop: a signal, a deadline, an end of patience, or a parent that is gone."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil

from hpo._process import PARENT_VARIABLE, STOP_SIGNALS, on_stop_signals

STOP_SECONDS = 7.0
"""A worker that is to stop and still hangs, in a database that is away say, is ended after so long."""
PARENT_SECONDS = 0.5


class StopRequest:
    """Whether this process was asked to stop, and by which signal; the second SIGINT ends it at once."""

    def __init__(self, deadline_seconds: float | None = None) -> None:
        self.signal: int | None = None
        self.gave_up = False
        self.idle_until = math.inf
        """When `--idle-timeout` is over; never while a trial trains."""
        parent = os.environ.get(PARENT_VARIABLE)
        self._parent = int(parent) if parent else None
        self._deadline = math.inf if deadline_seconds is None else time.monotonic() + deadline_seconds

    def __call__(self) -> bool:
        """Return whether to stop; asked before every step, so it must be cheap (the clock: 0.1 µs)."""
        return self.signal is not None or self.gave_up or time.monotonic() >= self._deadline

    def give_up(self) -> None:
        """Have the trials of this process go back to the queue, whose worker ends by an error."""
        self.gave_up = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM of the main thread while the context lasts."""
        heard, woken = socket.socketpair()
        woken.setblocking(False)
        wakes_before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        with on_stop_signals(self._on_signal):
            threading.Thread(target=self._watch, args=(heard,), name="stop watch", daemon=True).start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(wakes_before)
                woken.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            # SIGTERM may well come twice: schedulers send it to a job's script and to all its processes
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.signal = number

    def _is_orphan(self) -> bool:
        if self._parent is None:
            return False
        if sys.platform == "win32":  # where an environment's python is started by a process of its own
            return not psutil.pid_exists(self._parent)
        return os.getppid() != self._parent

    def _watch(self, heard: socket.socket) -> None:
        """End a process that hangs though it is to stop, or idle for too long; ask an orphan to stop.

        A thread, because Python handles signals in the main thread, which may be in C code that waits for
        a lock of SQLite's for a minute. It says nothing: the log may be what hangs.
        """
        end_at, code = self._deadline + STOP_SECONDS, 0
        with heard:
            while time.monotonic() < min(end_at, self.idle_until + STOP_SECONDS):
                if code == 0 and self._is_orphan():
                    os.kill(os.getpid(), signal.SIGTERM)
                if not select.select([heard], [], [], PARENT_SECONDS)[0]:
                    continue
                number = heard.recv(1)
                if not number:
                    return  # the context was left
                if code == 0 and number[0] in STOP_SIGNALS:
                    end_at, code = min(end_at, time.monotonic() + STOP_SECONDS), 128 + number[0]
        os._exit(code)
