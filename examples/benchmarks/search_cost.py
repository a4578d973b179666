"""What pruning saves and what it costs: learning curves, recorded once whole, searched again many times.

    python examples/benchmarks/search_cost.py record PATH [--out hpo-search-cost]
    python examples/benchmarks/search_cost.py replay [FILE…] [--orders 200]

Goal: at most 35 % of the epochs, at a regret of at most 0.5 points of macro F1 at the 90th percentile.

`record` takes hours, and goes on where it stopped. It trains two grids without pruning on an image folder, 11
epochs a run, three seeds: network-setup × batch size (48 points), learning rate × batch size × batch norm
(18). It leaves a CSV file a grid in its folder; `recorded/` holds those of 4,000 + 2,000 images of CIFAR-10.

`replay` runs a search of one seed on such a table as `hpo run` would: points in random order, workers in
step, a report an epoch, Optuna's own pruner as a study file names it. Regret is the best run of the table
less the best that the search trained to its end. CSV on stdout.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import optuna
from optuna.trial import TrialState
from tables import Table, heading

import hpo
from hpo.config import canonical_json
from hpo.records import export_epochs
from hpo.sampling import build_pruner
from hpo.spec import StudySpec

RECORDED = Path(__file__).with_name("recorded")
TABLES = {
    "network-setup-by-batch-size": """
        constraints = ["conv1_channels <= conv2_channels", "conv1_kernel <= conv2_kernel"]
        [search]
        conv1_channels = [32, 64]
        conv1_kernel = [3, 5]
        conv2_channels = [64, 128]
        conv2_kernel = [5, 7]
        batch_size = [20, 40, 80]
    """,
    "learning-rate-by-batch-size-by-batch-norm": """
        [search]
        learning_rate = [0.01, 0.001, 0.0001]
        batch_size = [20, 40, 80]
        batch_norm = [false, true]
    """,
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "threshold": {"name": "threshold", "lower": 0.15, "n_warmup_steps": 3},
    "median": {"name": "median"},
    "median from epoch 3": {"name": "median", "n_warmup_steps": 3},
    "median from epoch 6": {"name": "median", "n_warmup_steps": 6},
    "best quarter": {"name": "percentile", "percentile": 25.0, "n_startup_trials": 2},
    "best quarter from epoch 3": {"name": "percentile", "percentile": 25.0, "n_warmup_steps": 3},
    "successive halving": {"name": "successive-halving"},
    "successive halving by 2": {"name": "successive-halving", "reduction_factor": 2},
    "successive halving by 3 from epoch 2": {
        "name": "successive-halving",
        "min_resource": 2,
        "reduction_factor": 3,
    },
    "hyperband": {"name": "hyperband"},
    "patient 2, median": {"name": "patient", "patience": 2, "wrapped": {"name": "median"}},
}
Curves = Mapping[str, Sequence[float]]
"""Macro F1 by epoch, of every point, with one seed."""


@dataclass(frozen=True)
class Search:
    """What one replayed search came to."""

    epochs_share: float
    """Of the epochs that the whole table took."""
    regret: float
    best_was_pruned: bool


def record(options: argparse.Namespace) -> None:
    """Trains the tables and writes them."""
    for name, text in TABLES.items():
        studies = options.out / f"{name}-studies"
        studies.mkdir(parents=True, exist_ok=True)
        (studies / f"{name}.toml").write_text(text)
        plan = hpo.run_plan(
            [name],
            out=options.out / name,
            studies=studies,
            data=f"folder:{options.folder}",
            limit_train=options.limit_train,
            limit_valid=options.limit_valid,
            epochs=options.epochs,
            seeds=options.seeds,
            pruning=False,
        )
        axes = list(plan.specs[name].search)
        with (options.out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*axes, "seed", "epoch", "macro_f1"])
            for each in export_epochs(plan):
                if each["state"] == "complete":
                    figures = each["seed"], each["epoch"], f"{each['valid_macro_f1']:.4f}"
                    writer.writerow([*(each[axis] for axis in axes), *figures])


def curves_by_seed(file: Path) -> list[Curves]:
    """The table of every seed."""
    found: dict[str, dict[str, list[float]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            seed, _, f1 = row.pop("seed"), row.pop("epoch"), float(row.pop("macro_f1"))
            found.setdefault(seed, {}).setdefault(canonical_json(row), []).append(f1)
    return list(found.values())


def search(curves: Curves, pruner: Mapping[str, Any], order: int, workers: int) -> Search:
    """Searches a table with workers that train an epoch each in turn."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = max(map(len, curves.values()))
    spec = StudySpec.model_validate(
        {"name": "replay", "search": {"l2": [0.0]}, "sampler": {"name": "grid"}, "pruner": dict(pruner)}
    )
    study = optuna.create_study(
        study_name=f"replay {order}", direction="maximize", pruner=build_pruner(spec, epochs)
    )
    waiting = sorted(curves)
    random.Random(order).shuffle(waiting)
    running: dict[str, tuple[optuna.Trial, int]] = {}
    best_point = max(curves, key=lambda point: max(curves[point]))
    n_epochs, found, best_was_pruned = 0, 0.0, False
    while waiting or running:
        while waiting and len(running) < workers:
            running[waiting.pop(0)] = study.ask(), 0
        for point, (trial, done) in list(running.items()):
            n_epochs += 1
            running[point] = trial, done + 1
            trial.report(curves[point][done], done + 1)
            if done + 1 == len(curves[point]):
                found = max(found, max(curves[point]))
                study.tell(trial, max(curves[point]))
            elif trial.should_prune():
                best_was_pruned |= point == best_point
                study.tell(trial, state=TrialState.PRUNED)
            else:
                continue
            del running[point]
    share = n_epochs / sum(map(len, curves.values()))
    return Search(share, max(curves[best_point]) - found, best_was_pruned)


def searches(file: Path, pruner: Mapping[str, Any], orders: int, workers: int) -> list[Search]:
    """As many searches of one table with one pruner; each order takes the next seed's curves."""
    tables = curves_by_seed(file)
    return [search(tables[order % len(tables)], pruner, order, workers) for order in range(orders)]


def replay(options: argparse.Namespace) -> None:
    """A line a table and pruner."""
    files = options.files or sorted(RECORDED.glob("*.csv"))
    if not files:
        raise SystemExit(f"{RECORDED} is empty; copy what `record` leaves")
    jobs = [(file, name) for file in files for name in PRUNERS]
    heading(f"{options.orders} orders, {options.workers} workers")
    table = Table()
    with ProcessPoolExecutor() as pool:
        found = pool.map(
            searches,
            [file for file, _ in jobs],
            [PRUNERS[name] for _, name in jobs],
            repeat(options.orders),
            repeat(options.workers),
        )
        for (file, name), results in zip(jobs, found, strict=True):
            cuts = quantiles((100 * each.regret for each in results), n=10)
            table.add(
                {
                    "table": file.stem,
                    "pruner": name,
                    "epochs_share": fmean(each.epochs_share for each in results),
                    "regret_p50": cuts[4],
                    "regret_p90": cuts[8],
                    "regret_mean": fmean(100 * each.regret for each in results),
                    "best_pruned_share": fmean(each.best_was_pruned for each in results),
                }
            )


def main() -> None:
    """Records or replays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--out", type=Path, default=Path("hpo-search-cost"))
    recording.add_argument("--limit-train", type=int, default=4000)
    recording.add_argument("--limit-valid", type=int, default=2000)
    recording.add_argument("--epochs", type=int)
    recording.add_argument("--seeds", type=int, default=3)
    recording.set_defaults(run=record)
    replaying = commands.add_parser("replay")
    replaying.add_argument("files", nargs="*", type=Path)
    replaying.add_argument("--orders", type=int, default=200)
    replaying.add_argument("--workers", type=int, default=2)
    replaying.set_defaults(run=replay)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
