"""A stand-in for SLURM's commands: it places the tasks of an array on this machine, one after another.

What is real in tests with it: the script that submitit writes, its tasks, and what these do. `sbatch` runs
the script for each task, and again when that was queued again; `srun` runs a command with its logs; `scontrol
requeue` queues a task again. The test itself has the signals sent that SLURM would send.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ARRAY = "77"
COMMANDS = ("sbatch", "srun", "scontrol")


def install(folder: Path) -> Path:
    """Write the commands into a folder for PATH, and return where they keep what has become of tasks."""
    folder.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "{folder}" "$@"\n')
        command.chmod(0o755)
    return folder


def requeue(folder: Path, task: int) -> None:
    """Have a task come again once it has ended, as SLURM does where it preempts."""
    (folder / f"requeue-{task}").touch()


def sbatch(folder: Path, script: str) -> None:
    """Place the tasks that a script asks for, and return at once."""
    (folder / "script").write_text(Path(script).read_text())
    found = re.search(r"^#SBATCH --array=0-(\d+)%", Path(script).read_text(), re.MULTILINE)
    count = int(found[1]) + 1 if found else 1
    with (folder / "log").open("ab") as log:
        placer = subprocess.Popen(
            [sys.executable, __file__, "place", str(folder), script, str(count), "array" if found else ""],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / "placer").write_text(str(placer.pid))
    print(f"Submitted batch job {ARRAY}")


def place(folder: Path, script: str, count: str, is_array: str) -> None:
    """Run each task until it ends without being queued again."""
    text = (folder / "script").read_text()  # submitit moves the file, as SLURM has taken a copy
    copy = folder / "copy.sh"
    copy.write_text(text)
    for task in range(int(count)):
        variables = {"SLURM_JOB_ID": ARRAY, "SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
        if is_array:
            variables |= {"SLURM_ARRAY_JOB_ID": ARRAY, "SLURM_ARRAY_TASK_ID": str(task)}
        while True:
            running = subprocess.Popen(
                ["bash", str(copy)], env={**os.environ, **variables}, start_new_session=True
            )
            (folder / f"script-{task}").write_text(str(running.pid))
            code = running.wait()
            while _is_alive(folder, task):  # what it has started, too, as SLURM does
                time.sleep(0.05)
            with (folder / f"codes-{task}").open("a") as codes:
                codes.write(f"{code}\n")
            if not (folder / f"requeue-{task}").exists():
                break
            (folder / f"requeue-{task}").unlink()
    (folder / "over").touch()


def srun(folder: Path, *words: str) -> None:
    """Run a command, its output in files; the placeholders in their names are SLURM's."""
    os.setsid()
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "0")
    (folder / f"step-{task}").write_text(str(os.getpid()))
    rest, files = list(words), dict[str, str]()
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            files[option] = rest.pop(0)
    known = {"%j": ARRAY, "%A": ARRAY, "%a": task, "%t": "0"}
    for option, number in (("--output", 1), ("--error", 2)):
        name = files[option]
        for mark, value in known.items():
            name = name.replace(mark, value)
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(rest[0], rest)


def _step(folder: Path, task: int) -> int:
    return int((folder / f"step-{task}").read_text())


def _is_alive(folder: Path, task: int) -> bool:
    try:
        os.killpg(_step(folder, task), 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def time_is_up(folder: Path, task: int) -> None:
    """Signal all processes of a task that `srun` has started, as SLURM does a while before the limit."""
    os.killpg(_step(folder, task), signal.SIGUSR2)


def preempt(folder: Path, task: int) -> None:
    """Signal all processes of a task, which SLURM queues again by itself."""
    requeue(folder, task)
    for group in (_step(folder, task), int((folder / f"script-{task}").read_text())):
        os.killpg(group, signal.SIGTERM)


def scontrol(folder: Path, verb: str, job: str) -> None:
    """Queue a task again."""
    assert verb == "requeue"
    requeue(folder, int(job.partition("_")[2] or 0))


def end(folder: Path) -> None:
    """End what still runs, where a test failed amid it."""
    if not (folder / "over").exists():
        for file in (*folder.glob("placer"), *folder.glob("script-*"), *folder.glob("step-*")):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(file.read_text()), signal.SIGKILL)


def wait_until_over(folder: Path) -> None:
    """Wait until all tasks have ended; what never comes fails by the test's own limit."""
    deadline = time.monotonic() + 300
    while not (folder / "over").exists():
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


if __name__ == "__main__":
    name, folder, *arguments = sys.argv[1:]
    commands: dict[str, Callable[..., None]] = {
        "sbatch": sbatch,
        "place": place,
        "srun": srun,
        "scontrol": scontrol,
    }
    commands[name](Path(folder), *arguments)
