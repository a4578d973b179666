"""The real command: in a process of its own, or started and left to run."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def hpo(*arguments: object, timeout: float = 300, max_bytes: int | None = None) -> Result:
    """Runs the real command to its end, with so much address space at most for it and for each worker.

    The time limit is for a command that hangs: on two busy cores a sound one may take minutes.
    """
    command = [sys.executable, "-m", "hpo", *map(str, arguments)]
    if max_bytes is not None:
        command = ["bash", "-c", f'ulimit -v {max_bytes // 1024}; exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def start_hpo(*arguments: object, as_reader: bool = False) -> subprocess.Popen[str]:
    """Starts the real command in a process group of its own."""
    command = [sys.executable, "-m", "hpo", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_drop_override if as_reader else None,
    )


def hpo_as_reader(*arguments: object) -> Result:
    """Runs the command without root's right to write everywhere, which tests in containers have."""
    process = start_hpo(*arguments, as_reader=True)
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


def _drop_override() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def read_only(folder: Path) -> Path:
    """Return a folder whose files nobody may write, root neither once the right to override is dropped."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def wait_for(what: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Waits until something is so, as long as a process lives.

    The time limit is for what never comes: on two busy cores what does may take minutes.
    """
    deadline = time.monotonic() + 300
    while not what():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def at_work() -> list[psutil.Process]:
    """The processes below this one that train; the fork server, which has workers below it, does not."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended between two looks
            # a worker may have a child too: the process that tests.support.preloaded keeps for its copies
            if _is_worker(process) and not any(map(_is_worker, process.children())):
                workers.append(process)
    return workers


def _is_worker(process: psutil.Process) -> bool:
    return "worker" in process.cmdline()
