"""This process: the cores and caches that it may use, the signals that ask it to stop, and its garbage."""

from __future__ import annotations

import gc
import logging
import math
import os
import platform
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hpo.errors import InputError

log = logging.getLogger(__name__)

JITTER = random.SystemRandom()
"""For waits. Python's own generator is seeded for recipes in each epoch, and draws of another thread from it
would change what they draw."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARENT_VARIABLE = "HPO_PARENT_PID"
"""Set by `hpo run` for its own workers: they stop when that process is gone."""
WORKER_BYTES = 500_000_000
"""What a worker is taken to need: the original's network in batches of 80 takes 0.3 GB (PSS), others more."""
_NO_RUN_VARIABLE = "HPO_NO_RUN"
"""Set while no run may be started, by this process or by those that it starts: process, thread, why."""


def n_workers(threads: int = 1, root: Path = Path("/")) -> int:
    """Return how many workers of so many threads this process has cores and memory for, one at least.

    Args:
        threads: of each.
        root: as of `n_cores`.
    """
    by_cores, free = max(1, n_cores(root) // threads), available_bytes(root)
    found = max(1, min(by_cores, free // WORKER_BYTES))
    if found < by_cores:
        log.warning(
            "memory is for fewer workers, %d instead of %d: %.1f GB are free, one is taken to need %.1f GB; "
            "--workers sets their number",
            *(found, by_cores, free / 1e9, WORKER_BYTES / 1e9),
        )
    return found


def n_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use: its affinity, or its quota of CPU time, rounded up.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def cpu_model() -> str:
    """Return the model of this machine's CPU, as its maker names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def available_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may still use: what the machine has free, or its limit leaves.

    Cached files count as free, as the kernel does without them first.

    Args:
        root: as of `n_cores`.
    """
    import psutil  # which `hpo --help` does not need

    free = [int(psutil.virtual_memory().available)]
    for folder, is_old in _control_groups(root, "memory"):
        names = ("limit_in_bytes", "usage_in_bytes") if is_old else ("max", "current")
        limit, used = (_text(folder / f"memory.{name}").strip() for name in names)
        if limit.isdecimal() and used.isdecimal():  # else there is none: "max"
            fields = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            cached = int(fields.get("total_inactive_file" if is_old else "inactive_file", 0))
            free.append(int(limit) - int(used) + cached)
    return max(0, min(free))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of CPU time of this process's control groups, in cores."""
    for folder, is_old in _control_groups(root, "cpu"):
        if is_old:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        else:
            quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):  # else there is none: "max", or -1
            yield int(quota) / int(period)


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's control groups, and of those above them.

    In a container its own group is often mounted as the root, while `/proc/self/cgroup` still names it by its
    path on the host: where that leads nowhere, the mounted root counts, which is on the way anyhow.

    Args:
        root: as of `n_cores`.
        controller: what they limit.

    Yields:
        A folder, and whether it is of version 1.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # one mount each in version 1, where they have names
        mount = mount if mount.is_dir() or not controllers else root / "sys/fs/cgroup" / controller
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            yield folder, bool(controllers)


def _text(file: Path) -> str:
    """Return the content of a file of the kernel's; empty where there is none."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


def provide_caches() -> None:
    """Have caches of this process and its children lie under TMPDIR where the user's can hold none.

    In containers a user is often a mere number without a home: platformdirs fails there, matplotlib and
    fontconfig warn.
    """
    homes = {"XDG_CACHE_HOME": "~/.cache", "MPLCONFIGDIR": os.environ.get("XDG_CONFIG_HOME") or "~/.config"}
    for variable, home in homes.items():
        if not _can_hold(Path(os.environ.get(variable) or home)):
            with suppress(OSError):  # no room there either: whoever needs a cache will say so
                os.environ[variable] = str(_folder_of_user() / variable.lower())


def _can_hold(folder: Path) -> bool:
    """Return whether a folder can be written, or made."""
    try:
        folder = folder.expanduser()
        nearest = next(each for each in (folder, *folder.parents) if each.exists())
    except (OSError, RuntimeError, StopIteration):
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _folder_of_user() -> Path:
    """Return a folder under TMPDIR that this user alone can write.

    Raises:
        OSError: there is none, or somebody else has taken its name.
    """
    import tempfile  # only where there is no home

    if sys.platform == "win32":
        return Path(tempfile.gettempdir())  # where a user has one alone
    folder = Path(tempfile.gettempdir(), f"hpo-of-user-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise FileExistsError(f"{folder}: is not this user's")
    return folder


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call a function while the context lasts, and what they called before after it.

    In another than the main thread it does nothing: Python handles signals in the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Look for no garbage while the context lasts."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def without_runs(why: str, *, whole_process: bool = False) -> Iterator[None]:
    """Let no run be started while the context lasts, here or by processes that are started meanwhile.

    Args:
        why: what this process does, as "X is being imported".
        whole_process: by no other thread of this process either.
    """
    before = os.environ.get(_NO_RUN_VARIABLE)
    thread = 0 if whole_process else threading.get_ident()
    os.environ[_NO_RUN_VARIABLE] = f"{os.getpid()} {thread} {why}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_RUN_VARIABLE]
        else:
            os.environ[_NO_RUN_VARIABLE] = before


def refuse_nested_run() -> None:
    """Check that a run may be started here: those that imports or workers start would start more without end.

    Raises:
        InputError: it may not; the text says what is missing.
    """
    process, thread, why = os.environ.get(_NO_RUN_VARIABLE, "0 0 ").split(" ", 2)
    is_of_others = int(process) == os.getpid() and int(thread) not in (0, threading.get_ident())
    if why and not is_of_others:
        raise InputError(
            f"a run was started while {why}: each process that imports the module would start one more; "
            'put what starts it under `if __name__ == "__main__":`'
        )
