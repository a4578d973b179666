"""Other processes that hold a lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HOLD = """
import sys
import hpo._lock
from hpo.storage.database import exclusive

hpo._lock.BEAT_SECONDS = 0.2
with exclusive(sys.argv[1]):
    print(flush=True)
    sys.stdin.readline()
"""


@contextmanager
def lock_holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a database until it reads a line."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, url], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            yield process
        finally:
            process.kill()
