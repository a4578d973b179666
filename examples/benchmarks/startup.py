"""What a user waits for before anything happens: commands, and workers that are started.

    python examples/benchmarks/startup.py [--rounds 5] [--workers 2] [--against FOLDER]

Claims: `hpo --help` takes at most twice as long as `import click`; `hpo status` and a study file that is
refused take less than `import torch`; `hpo run` of two points of 60 images imports torch once. Workers that
are copies of one process that has imported torch, as `hpo run` starts them on Linux, cost less CPU time than
workers started from nothing; they find a plan that has ended, and leave. Medians over rounds, contenders in
turn, all files in the system's cache; CSV on stdout. Measured alone on the machine.

Each command is measured with cached bytecode and, as in containers whose images set PYTHONDONTWRITEBYTECODE,
with none at all. `--against` names a checkout of an earlier version, whose commands take turns with these.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tables import Table, heading

import hpo
from hpo.execution.backends.base import OpenBackend
from hpo.execution.backends.local import forked_processes, spawned_processes
from hpo.execution.backends.worker_spec import WorkerSpec
from hpo.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
[base]
conv1_channels = 4
conv2_channels = 4
hidden_units = 8
[search]
learning_rate = [0.001]
"""
PYTHON = {
    "python": "pass",
    "python, import click": "import click",
    "python, import torch": "import torch",
    "python, import optuna and sqlalchemy": "import optuna, sqlalchemy",
}
WRONG_STUDY = "[search]\nlr = [0.001]\n"
TWO_POINTS = STUDY.replace("[0.001]", "[0.001, 0.003]")
SIZES = ["--data=digits", "--limit-train=60", "--limit-valid=30", "--epochs=1", "--workers=1"]


def cpu_seconds() -> float:
    """CPU time of the processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of the processes that a function starts and waits for."""
    began, busy = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - began, cpu_seconds() - busy


def command(*arguments: str, bytecode: Path | None, tree: Path = ROOT, code: int = 0) -> Callable[[], object]:
    """Python with these arguments, as a process that imports hpo from a checkout.

    Args:
        arguments: of Python.
        bytecode: where compiled modules are kept; None: all are compiled anew.
        tree: the checkout.
        code: what the process is to end with.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if bytecode:
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    else:  # nothing is in this folder, and nothing gets there
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/nonexistent"}

    def work() -> None:
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr

    return work


def commands(folder: Path, bytecode: Path | None, tree: Path) -> dict[str, Callable[[], object]]:
    """What users type, on the plan of a folder."""

    def hpo_command(*arguments: str, code: int = 0) -> Callable[[], object]:
        return command("-m", "hpo", *arguments, bytecode=bytecode, tree=tree, code=code)

    out, studies = folder / "run", ["--studies", str(folder / "two-points")]
    run = hpo_command("run", "rate", *studies, f"--out={out}", *SIZES)

    def run_anew() -> None:
        shutil.rmtree(out, ignore_errors=True)
        run()

    return {
        "hpo --help": hpo_command("--help"),
        "hpo status": hpo_command("status", "--out", str(folder)),
        "hpo run, study file refused": hpo_command("run", "--studies", str(folder / "wrong"), code=2),
        "hpo run, two points of 60 images": run_anew,
        "the same again, all done": run,
    }


def workers(plan: Plan, folder: Path, engine: OpenBackend, count: int) -> Callable[[], object]:
    """So many workers, from the order to start until the last has left."""

    def work() -> None:
        with engine(WorkerSpec.of(plan, folder, (), None)) as backend:
            for number in range(1, count + 1):
                backend.start(number)
            n_ended = 0
            while n_ended < count:
                ended = backend.ended()
                assert not any(ended.values()), backend.last_words(min(ended))
                n_ended += len(ended)
                time.sleep(0.01)

    return work


def main() -> None:
    """A line a contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    trees = {"": ROOT, **({"before: ": options.against.resolve()} if options.against else {})}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, study in (("studies", STUDY), ("two-points", TWO_POINTS), ("wrong", WRONG_STUDY)):
            (folder / name).mkdir()
            (folder / name / "rate.toml").write_text(study)
        sizes: dict[str, Any] = {"limit_train": 200, "limit_valid": 100, "epochs": 1, "final_seeds": 1}
        plan = hpo.run_plan(out=folder, studies=folder / "studies", data="digits", **sizes)
        contenders: dict[str, Callable[[], object]] = {}
        for suffix, bytecode in (("", folder / "bytecode"), (", no bytecode", None)):
            for name, code in PYTHON.items():
                contenders[f"{name}{suffix}"] = command("-c", code, bytecode=bytecode)
            for prefix, tree in trees.items():
                for name, work in commands(folder, bytecode, tree).items():
                    contenders[f"{prefix}{name}{suffix}"] = work
        for name, engine in (("forked", forked_processes), ("spawned", spawned_processes)):
            contenders[f"{options.workers} workers, {name}"] = workers(plan, folder, engine, options.workers)
        for name, work in contenders.items():
            if "no bytecode" not in name:
                work()  # compiles
        rounds = [{name: timed(work) for name, work in contenders.items()} for _ in range(options.rounds)]
    heading(f"{options.rounds} rounds")
    table = Table()
    for name in contenders:
        wall, cpu = (median(each[name][i] for each in rounds) for i in range(2))
        table.add({"what": name, "wall_seconds": wall, "cpu_seconds": cpu})


if __name__ == "__main__":
    main()
