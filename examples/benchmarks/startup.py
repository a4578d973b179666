"""What a user waits for before anything happens: commands, and workers that are started.

    python examples/benchmarks/startup.py [--rounds 7] [--workers 4]

Claims: `hpo --help` answers in less than 0.3 s, and `hpo status` sooner than Python imports torch. Workers
that are copies of one process that has imported torch, as `hpo run` starts them on Linux, cost less CPU time
than workers started from nothing; they find a plan that has ended, and leave. Medians over rounds, contenders
in turn, all files in the system's cache; CSV on stdout. Measured alone on the machine.
"""

from __future__ import annotations

import argparse
import os
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
from hpo.execution.backends.base import OpenBackend, WorkerSpec
from hpo.execution.backends.local import forked_processes, spawned_processes
from hpo.planning.plan import Plan

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
    "python, import torch": "import torch",
    "python, import optuna and sqlalchemy": "import optuna, sqlalchemy",
}


def cpu_seconds() -> float:
    """CPU time of the processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of the processes that a function starts and waits for."""
    began, busy = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - began, cpu_seconds() - busy


def command(*arguments: str) -> Callable[[], object]:
    """Python with these arguments, as a process."""
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "studies").mkdir()
        (folder / "studies" / "rate.toml").write_text(STUDY)
        sizes: dict[str, Any] = {"limit_train": 200, "limit_valid": 100, "epochs": 1, "final_seeds": 1}
        plan = hpo.run_plan(out=folder, studies=folder / "studies", data="digits", **sizes)
        contenders: dict[str, Callable[[], object]] = {
            **{name: command("-c", code) for name, code in PYTHON.items()},
            "hpo --help": command("-m", "hpo", "--help"),
            "hpo status": command("-m", "hpo", "status", "--out", text),
            f"{options.workers} workers, forked": workers(plan, folder, forked_processes, options.workers),
            f"{options.workers} workers, spawned": workers(plan, folder, spawned_processes, options.workers),
        }
        # no round to warm up: a median of several bears a first one that is slower
        rounds = [{name: timed(work) for name, work in contenders.items()} for _ in range(options.rounds)]
    heading(f"{options.rounds} rounds")
    table = Table()
    for name in contenders:
        wall, cpu = (median(each[name][i] for each in rounds) for i in range(2))
        table.add({"what": name, "wall_seconds": wall, "cpu_seconds": cpu})


if __name__ == "__main__":
    main()
