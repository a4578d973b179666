"""Systems that are not at hand: what they lack is taken away, and what was written is imported and used.

Neither macOS nor Windows has been tried; this shows that nothing is imported or called that is not there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.plans import SMALL, write_study

# other packages are imported before: they have their own tests on these systems
FAKE = """
import importlib, pkgutil, resource, select, signal, socket

def import_all():
    import hpo
    for module in pkgutil.walk_packages(hpo.__path__, "hpo."):
        if module.name.rpartition(".")[2] not in ("__main__", "ray"):
            importlib.import_module(module.name)

import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "hpo"]:
    del sys.modules[name]
sys.platform, missing = sys.argv[1], sys.argv[2].split()
for name in missing:
    module, _, attribute = name.partition(".")
    if attribute:
        delattr(sys.modules[module], attribute)
    else:
        sys.modules[module] = None  # importing it fails
"""
MACOS = ["os.sched_getaffinity", "os.sched_setaffinity", "select.epoll", "resource.prlimit"]
WINDOWS = [
    *("fcntl", "grp", "pwd", "resource", "termios", "tty"),
    *("os.fork", "os.getuid", "os.geteuid", "os.killpg", "os.sched_getaffinity", "os.setsid", "os.uname"),
    *("os.WNOHANG", "os.O_NONBLOCK", "os.register_at_fork", "os.getpgid", "os.statvfs"),
    *("select.poll", "select.epoll", "socket.SOCK_SEQPACKET"),
    *("signal.SIGKILL", "signal.SIGSTOP", "signal.SIGCONT", "signal.SIGHUP", "signal.SIGUSR1"),
]
# locks of a byte at the file's place, as `msvcrt` has them, by what this system has
MSVCRT = """
import fcntl, os, sys, types
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.LK_UNLCK = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
msvcrt.locking = lambda file, mode, n, lockf=fcntl.lockf: lockf(file, mode, n, 0, os.SEEK_CUR)
"""
USE = """
if sys.platform == "win32":
    sys.modules["msvcrt"] = msvcrt  # not before: `subprocess` would take this for Windows
import_all()
from pathlib import Path
from hpo import find_plan
from hpo._lock import locked
from hpo.execution.backends.local import local_processes, spawned_processes
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
assert local_processes is spawned_processes
with locked(Path("lock")):
    print("locked", flush=True)
    sys.stdin.readline()
print("free", flush=True)
sys.stdin.readline()
sizes = {"data": "digits", "limit_train": 60, "limit_valid": 30, "epochs": 1, "final_seeds": 1}
plan = find_or_create_plan(Path("out"), studies=Path("studies"), given=sizes)
assert work(plan.storage, out=Path("out")) is None
from hpo.cli import main
for words in (["status"], ["show", "rate"], ["final"], ["best"], ["export"], ["report"]):
    sys.argv = ["hpo", *words, "--out", "out"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""
TRY = """
import fcntl, sys
with open("lock", "r+") as file:
    print(file.read())
    if sys.argv[1] == "win32":
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2**30)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def is_locked(system: str) -> bool:
    """Whether another process cannot take the lock, and can read who has it."""
    done = subprocess.run([sys.executable, "-c", TRY, system], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("process ")
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what is there is taken away from Linux")
@pytest.mark.parametrize(("system", "missing"), [("darwin", MACOS), ("win32", WINDOWS)])
def test_a_plan_is_worked_on_and_shown_without_what_another_system_lacks(
    system: str, missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study("rate", f"{SMALL}[search]\nlearning_rate = [0.01]")
    command = [sys.executable, "-c", MSVCRT + FAKE + USE, system, " ".join(missing)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        assert said == "locked\n", process.stderr.read()
        assert is_locked(system)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "free\n"
        assert not is_locked(system)
        out, err = process.communicate("\n")
    assert (process.returncode, "Traceback" in err) == (0, False), err
    assert "learning_rate" in out
