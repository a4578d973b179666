"""Locks that one process holds at a time, whoever waits for them, and however slow the machine is.

What a process held that has ended is free at once. A wait ends in words where the holder stands still, which
no number of seconds tells alone: the holder shows a beat, and who waits counts the looks that found none.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from hpo.errors import RunError

if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30
    """The byte that is locked, behind the text that says who has it: on Windows nobody else can read it."""

    def _lock(file: int) -> None:
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _unlock(file: int) -> None:
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


BEAT_SECONDS = 1.0
POLL_SECONDS = 0.1
STILL_SECONDS = 10.0
"""Who has shown no beat for so long does not move just now: paused, hanging, or in want of a CPU."""
STILL_POLLS = 600
"""So many looks in a row that found no beat: a minute, and longer where who waits is short of CPU as well."""


class Lock(Protocol):
    """What one at a time can have."""

    name: str

    def take(self) -> bool:
        """Take it and return True; False where somebody has it."""

    def beat(self) -> None:
        """Show that who has it is alive; called from another thread than the one that took it."""

    def holder(self) -> tuple[str, float]:
        """Return who has it, and the seconds since the last beat."""

    def give_back(self) -> None:
        """Let others take it."""


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold a lock while the context lasts, and wait for it before.

    Raises:
        RunError: who has it stands still.
    """
    n_still = 0
    while not lock.take():
        who, seconds = lock.holder()
        n_still = n_still + 1 if seconds > STILL_SECONDS else 0
        if n_still > STILL_POLLS:
            raise RunError(
                f"{lock.name}: {who} has the lock and has stood still for {seconds:.0f} s; "
                "let it go on (kill -CONT), or end it"
            )
        time.sleep(POLL_SECONDS)
    is_over = threading.Event()

    def beat() -> None:
        with suppress(Exception):  # of a connection that broke giving back tells, too
            while not is_over.wait(BEAT_SECONDS):
                lock.beat()

    beating = threading.Thread(target=beat, name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        is_over.set()
        beating.join()
        lock.give_back()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock that a file is; it is made where it is missing, and stays.

    Raises:
        RunError: who has it stands still.
        OSError: it cannot be made.
    """
    with file.open("a+") as opened, held(_FileLock(str(file), opened)):
        yield


class _FileLock:
    """The system gives it back when its holder ends; the time of the file's last change is the beat."""

    def __init__(self, name: str, opened: IO[str]) -> None:
        self.name, self._opened = name, opened

    def take(self) -> bool:
        try:
            _lock(self._opened.fileno())
        except (BlockingIOError, PermissionError):  # of flock, and of Windows
            return False
        self._opened.truncate(0)
        self._opened.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._opened.flush()
        return True

    def beat(self) -> None:
        os.utime(self._opened.fileno())

    def holder(self) -> tuple[str, float]:
        self._opened.seek(0)
        beat = os.fstat(self._opened.fileno()).st_mtime
        return self._opened.read() or "a process", time.time() - beat

    def give_back(self) -> None:
        _unlock(self._opened.fileno())
