"""How long `hpo report` and `hpo status` take on a large plan, and how large the report is.

    python examples/benchmarks/report_size.py [--trials 1000] [--epochs 11]

The plan is real and its trials are written by the functions that workers use; their figures are made up, as a
learning curve with noise. Aim: 1,000 trials of 11 epochs in less than 10 s, the page smaller than 5 MB.
CSV on stdout. Measured alone on the machine.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from tables import heading, print_table

from hpo.execution import run
from hpo.planning.inheritance import config_of_trial
from hpo.planning.plan import Plan, versions
from hpo.planning.scheduler import advance
from hpo.storage.queue import claim
from hpo.training.loop import LayerHealth, SeedEpoch

LAYERS = ("conv1", "conv2", "hidden", "output")


def plan_of(folder: Path, n_trials: int, epochs: int) -> Plan:
    """A plan of one grid of three axes, of so many points."""
    shortest = _divisor(n_trials, n_trials ** (1 / 3))
    middle = _divisor(n_trials // shortest, (n_trials / shortest) ** 0.5)
    axes = {
        "learning_rate": [1e-4 * 1.1**i for i in range(shortest)],
        "batch_size": [10 * (1 + i) for i in range(middle)],
        "conv1_channels": [4 * (1 + i) for i in range(n_trials // shortest // middle)],
    }
    lines = "\n".join(f"{name} = {values}" for name, values in axes.items())
    (folder / "studies").mkdir(parents=True)
    (folder / "studies" / "grid.toml").write_text(f'section = "1"\ntitle = "A large grid"\n[search]\n{lines}')
    given = {"data": "digits", "limit_train": 200, "limit_valid": 100, "epochs": epochs}
    return run.find_or_create_plan(folder, studies=folder / "studies", threads=1, given=given)


def _divisor(number: int, most: float) -> int:
    """The largest one that is not above `most`, a root that may be a little off."""
    return next(found for found in range(round(most), 0, -1) if number % found == 0)


def train_all(plan: Plan, epochs: int, chance: random.Random) -> int:
    """Gives every point of the grid a result, as a worker would write it; returns how many."""
    count = 0
    while not advance(plan, ["grid"]):
        while (claimed := claim(plan.storage, ["grid"])) is not None:
            finish(plan, claimed.trial, epochs, chance)
            count += 1
    return count


def metrics(f1: float) -> dict[str, float]:
    """What an epoch of such a macro F1 may have found."""
    return {"macro_f1": f1, "accuracy": f1, "loss": 2.2 * (1 - f1)}


def finish(plan: Plan, trial: FrozenTrial, epochs: int, chance: random.Random) -> None:
    """Writes one trial's epochs and its end."""
    config = config_of_trial(plan, "grid", trial, trial.params)
    skill = chance.uniform(0.3, 0.9)
    curve = [skill * (1 - math.exp(-epoch / 3)) + chance.gauss(0, 0.01) for epoch in range(1, epochs + 1)]
    layers = {
        name: LayerHealth(chance.random(), chance.random(), None if name == "output" else chance.random())
        for name in LAYERS
    }
    attrs: dict[str, Any] = {
        f"epoch:{epoch}": [SeedEpoch(0, metrics(f1), 2 * (1 - f1), 10, 0.5, layers).to_dict()]
        for epoch, f1 in enumerate(curve, start=1)
    }
    attrs |= {"config": config, "device": "cpu", "precision": plan.identity.precision, "threads": 1}
    attrs["versions"] = versions()
    plan.storage.write(trial._trial_id, attrs=attrs, reports=dict(enumerate(curve, start=1)))
    plan.storage.finish(trial._trial_id, TrialState.COMPLETE, max(curve))


def seconds(*arguments: str) -> float:
    """How long one command takes, the start of Python included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hpo", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Makes the plan, reports on it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=11)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpo-report-") as name:
        out = Path(name)
        count = train_all(plan_of(out, options.trials, options.epochs), options.epochs, random.Random(0))
        times = {command: seconds(command, "--out", name) for command in ("report", "status")}
        page = (out / "report" / "report.html").stat().st_size
        everything = sum(path.stat().st_size for path in (out / "report").rglob("*") if path.is_file())
        record = {
            "trials": count,
            "epochs": count * options.epochs,
            **{f"{command}_s": taken for command, taken in times.items()},
            "page_mb": page / 1e6,
            "all_files_mb": everything / 1e6,
        }
    heading("one run")
    print_table([record])


if __name__ == "__main__":
    main()
