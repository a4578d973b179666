"""What `hpo run` itself keeps in memory while its workers train: it places them and looks on.

    python examples/benchmarks/onlooker.py [--against FOLDER]

Claim: the process that looks on has neither PyTorch nor a user's module loaded, whatever recipe is
trained. Two plans on digits, one of the shipped recipe and one of `examples/recipes/mlp.py`; a line a
plan, once a worker has ended an epoch. Resident memory counts pages that other processes map, too; of its
own are those that would be free without it (USS). `--against` names a checkout of an earlier version,
measured as well. In MB, as psutil has it: Linux alone. CSV on stdout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tables import Table, heading

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"
STUDY = "[search]\nlearning_rate = [0.001, 0.002]\n"
PLANS = {"the shipped recipe": (), "examples/recipes/mlp.py": ("--recipe=python:mlp:Mlp",)}
EPOCHS = 1000
"""More than are trained before the run is ended."""


def memory_mb(tree: Path, folder: Path, recipe: tuple[str, ...]) -> tuple[float, float]:
    """Memory of a run's own process while a worker trains: resident, and what is that process's alone."""
    out = folder / "out"
    sizes = ["--data=digits", f"--epochs={EPOCHS}", "--workers=1", "--no-pruning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo", "run", f"--studies={folder}", f"--out={out}", *recipe, *sizes],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=RECIPES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not any(out.glob("checkpoints/**/*.checkpoint")):
        assert process.poll() is None, f"the run of {recipe or 'the shipped recipe'} has ended"
        time.sleep(0.2)
    found = psutil.Process(process.pid).memory_full_info()
    process.terminate()
    process.wait()
    return found.rss / 1e6, found.uss / 1e6


def main() -> None:
    """A line a plan and version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    trees = {"now": ROOT}
    if options.against:
        trees["before"] = options.against.resolve()
    heading("one run each")
    table = Table()
    for version, tree in trees.items():
        for plan, recipe in PLANS.items():
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "rate.toml").write_text(STUDY)
                resident, own = memory_mb(tree, Path(folder), recipe)
            table.add({"plan": plan, "version": version, "resident_mb": resident, "own_mb": own})


if __name__ == "__main__":
    main()
