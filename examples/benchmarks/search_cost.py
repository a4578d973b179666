"""What pruning saves and what it costs: learning curves, recorded once whole, searched again many times.

    python examples/benchmarks/search_cost.py record PATH [--tables NAME…] [--out hpo-search-cost]
    python examples/benchmarks/search_cost.py replay [FILE…] [--orders 200]

Goal: at most 35 % of the epochs, at a regret of at most 0.5 points of macro F1 at the 90th percentile.

`record` takes hours, and goes on where it stopped. It trains grids without pruning, those of CIFAR-10 on the
image folder PATH, and leaves a CSV file a grid in its own folder. `recorded/` holds them:

| table | points | seeds | epochs | training + validation images |
|---|---|---|---|---|
| network-setup-by-batch-size | 48 | 3 | 11 | 4,000 + 2,000 of CIFAR-10 |
| learning-rate-by-batch-size-by-batch-norm | 18 | 3 | 11 | as above |
| joint-digits | 54: learning rate × batch size × L2 × batch norm | 30 | 4 | 600 + 287 handwritten digits |
| joint-cifar10 | the same 54 | 30 | 4 | 1,000 + 1,000 of CIFAR-10 |
| network-setup | 16 | 1 | 11 | 40,000 + 10,000 of CIFAR-10, as `examples/cifar10` has it |

The two joint tables are for questions that take many seeds, or studies that touch each other
(`plan_or_joint.py`, `price.py`).

`replay` runs searches of one seed on such a table as `hpo run` would for a study that inherits nothing: each
worker takes the next point when its last one has ended, reports every epoch when that has taken its time (the
shortest that an epoch of that point took: the machine is not always alone), and asks Optuna's own pruner as
a study file names it. Points come in random order, the seeds in turn, or as the study lists them. Shares are
of what the whole table takes. Regret, in points of F1, is the best run of the table less the best that the
search trained to its end; `lost_on_other_seeds` is what the point so chosen reaches on the other seeds, less
than the point that is best without pruning reaches there, on average. CSV on stdout.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import repeat
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from grids import RECORDED, read_grid
from optuna.trial import TrialState
from tables import Table, heading

import hpo
from hpo.monitor.export import export_epochs
from hpo.planning.inheritance import context_of
from hpo.planning.plan import Plan
from hpo.planning.pruners import Runs, build_pruner
from hpo.space.parameters import canonical_json
from hpo.space.study_file import StudySpec
from hpo.training.registry import DEFAULT_RECIPE, load_recipe


@dataclass(frozen=True)
class Grid:
    """A study that is recorded whole."""

    study: str
    """As its file has it."""
    options: Mapping[str, Any]
    """Of the plan."""


_PRUNED = {"epochs": None, "seeds": 3, "limit_train": 4000, "limit_valid": 2000}
_JOINT = """
    [base]
    conv1_channels = 8
    conv1_kernel = 3
    conv2_channels = 16
    conv2_kernel = 3
    hidden_units = 32

    [search]
    learning_rate = [0.001, 0.003, 0.01]
    batch_size = [20, 40, 80]
    l2 = [0, 0.001, 0.01]
    batch_norm = [false, true]
"""
_MANY_SEEDS = {"epochs": 4, "seeds": 30, "precision": "fp32"}
JOINT = {
    "joint-digits": Grid(_JOINT, {**_MANY_SEEDS, "data": "digits", "limit_train": 600}),
    "joint-cifar10": Grid(_JOINT, {**_MANY_SEEDS, "limit_train": 1000, "limit_valid": 1000}),
}
TABLES = {
    "network-setup-by-batch-size": Grid(
        """
        [search]
        conv1_channels = [32, 64]
        conv1_kernel = [3, 5]
        conv2_channels = [64, 128]
        conv2_kernel = [5, 7]
        batch_size = [20, 40, 80]
        """,
        _PRUNED,
    ),
    "learning-rate-by-batch-size-by-batch-norm": Grid(
        """
        [search]
        learning_rate = [0.01, 0.001, 0.0001]
        batch_size = [20, 40, 80]
        batch_norm = [false, true]
        """,
        _PRUNED,
    ),
    **JOINT,
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "median": {"name": "median"},
    "median after 2 trials": {"name": "median", "n_startup_trials": 2},
    "median from epoch 2": {"name": "median", "n_warmup_steps": 2},
    "median from epoch 6": {"name": "median", "n_warmup_steps": 6},
    "best quarter": {"name": "percentile", "percentile": 25.0},
    "best quarter from epoch 2": {"name": "percentile", "percentile": 25.0, "n_warmup_steps": 2},
    "successive halving by 2": {"name": "successive-halving", "reduction_factor": 2},
    "successive halving by 3": {"name": "successive-halving", "reduction_factor": 3},
    "successive halving by 4": {"name": "successive-halving", "reduction_factor": 4},
    "by 2 from epoch 2": {"name": "successive-halving", "min_resource": 2, "reduction_factor": 2},
    "by 3 from epoch 2": {"name": "successive-halving", "min_resource": 2, "reduction_factor": 3},
    "by 4 from epoch 2": {"name": "successive-halving", "min_resource": 2, "reduction_factor": 4},
    "hyperband": {"name": "hyperband"},
    "patient 2, median": {"name": "patient", "patience": 2, "wrapped": {"name": "median"}},
}


@dataclass(frozen=True)
class Curve:
    """A point of a table, trained with one seed."""

    macro_f1: list[float]
    """By epoch."""
    seconds: list[float]

    @property
    def best(self) -> float:
        """The value of the trial."""
        return max(self.macro_f1)

    @property
    def epoch_seconds(self) -> float:
        """What an epoch takes where nothing else runs."""
        return min(self.seconds)


@dataclass(frozen=True)
class Search:
    """What one replayed search came to."""

    epochs_share: float
    """Of the epochs that the whole table took."""
    seconds_share: float
    """Of the processor time."""
    chosen: int
    """The point that is best of those that were trained to their end."""


def record(options: argparse.Namespace) -> None:
    """Trains the tables and writes them."""
    given = {name: getattr(options, name) for name in ("limit_train", "limit_valid", "epochs", "seeds")}
    for name in options.tables:
        studies = options.out / f"{name}-studies"
        studies.mkdir(parents=True, exist_ok=True)
        (studies / f"{name}.toml").write_text(TABLES[name].study)
        plan = hpo.run_plan(
            [name],
            out=options.out / name,
            studies=studies,
            pruning=False,
            **{"data": f"folder:{options.folder}", **TABLES[name].options}
            | {key: value for key, value in given.items() if value is not None},
        )
        write_table(plan, options.out / f"{name}.csv")


def write_table(plan: Plan, target: Path) -> None:
    """Writes what the one study of a plan has trained, as `tables_by_seed` reads it."""
    ((name, spec),) = plan.specs.items()
    axes, points = list(spec.search), [*map(canonical_json, spec.grid(context_of(plan, name, None)))]
    found = [each for each in export_epochs(plan) if each["state"] == "complete"]
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, "seed", "epoch", "macro_f1", "seconds"])
        found.sort(key=lambda each: points.index(canonical_json({axis: each[axis] for axis in axes})))
        for each in found:
            figures = f"{each['valid_macro_f1']:.4f}", f"{each['seconds']:.3g}"
            writer.writerow([*(each[axis] for axis in axes), each["seed"], each["epoch"], *figures])


def tables_by_seed(file: Path) -> list[list[Curve]]:
    """The points of a table in the order of its study, for every seed."""
    grid = read_grid(file)
    *_, n_seeds, n_epochs = grid.macro_f1.shape
    # (points, seeds, epochs)
    f1, seconds = (each.reshape(-1, n_seeds, n_epochs) for each in (grid.macro_f1, grid.epoch_seconds))
    return [
        [Curve(*curves) for curves in zip(f1[:, seed].tolist(), seconds[:, seed].tolist(), strict=True)]
        for seed in range(n_seeds)
    ]


def search(table: Sequence[Curve], pruner: Mapping[str, Any], order: Sequence[int], workers: int) -> Search:
    """Searches a table, its points in that order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = StudySpec.model_validate(
        {"name": "replay", "search": {"l2": [0.0]}, "sampler": {"name": "grid"}, "pruner": dict(pruner)},
        context={"schema": load_recipe(DEFAULT_RECIPE).recipe.schema},
    )
    n_epochs = len(table[0].macro_f1)
    # a name of its own for every order: Hyperband assigns its brackets by the study's name
    study = optuna.create_study(
        study_name=f"replay {order}", direction="maximize", pruner=build_pruner(spec, Runs(n_epochs, 10))
    )
    waiting = iter(order)
    due = [(0.0, worker) for worker in range(workers)]
    running: dict[int, tuple[int, optuna.Trial]] = {}
    trained, pruned = dict.fromkeys(order, 0), set()
    while due:
        now, worker = heappop(due)
        if worker in running:
            point, trial = running[worker]
            curve = table[point]
            trained[point] += 1
            trial.report(curve.macro_f1[trained[point] - 1], trained[point])
            if trained[point] == n_epochs:
                study.tell(trial, curve.best)
                del running[worker]
            elif trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                pruned.add(point)
                del running[worker]
        if worker not in running:
            following = next(waiting, None)
            if following is None:
                continue
            running[worker] = following, study.ask()
        heappush(due, (now + table[running[worker][0]].epoch_seconds, worker))
    return Search(
        epochs_share=sum(trained.values()) / (n_epochs * len(order)),
        seconds_share=sum(n * table[point].epoch_seconds for point, n in trained.items())
        / sum(n_epochs * curve.epoch_seconds for curve in table),
        chosen=max(set(order) - pruned, key=lambda point: table[point].best),
    )


def searches(file: Path, pruner: Mapping[str, Any], n_orders: int, workers: int) -> dict[str, Any]:
    """What as many searches of a table with one pruner came to; 0: one a seed, in the order of the study."""
    tables = tables_by_seed(file)
    found, regrets, lost = [], [], []
    for number in range(n_orders or len(tables)):
        seed = number % len(tables)
        order = list(range(len(tables[seed])))
        if n_orders:
            random.Random(number).shuffle(order)
        found.append(search(tables[seed], pruner, order, workers))
        best = max(order, key=lambda point: tables[seed][point].best)
        behind = [100 * (table[best].best - table[found[-1].chosen].best) for table in tables]
        regrets.append(behind.pop(seed))
        lost += behind
    return {
        "epochs_share": fmean(each.epochs_share for each in found),
        "seconds_share": fmean(each.seconds_share for each in found),
        "regret_p50": float(np.quantile(regrets, 0.5)),
        "regret_p90": float(np.quantile(regrets, 0.9)),
        "regret_mean": fmean(regrets),
        "lost_on_other_seeds": fmean(lost) if lost else "",
        "best_pruned_share": fmean(regret > 0 for regret in regrets),
    }


def replay(options: argparse.Namespace) -> None:
    """A line a table, order and pruner."""
    files = options.files or sorted(file for file in RECORDED.glob("*.csv") if file.stem not in JOINT)
    if not files:
        raise SystemExit(f"{RECORDED} is empty; copy what `record` leaves")
    kinds = {"random": options.orders, "as listed": 0}
    jobs = [(file, kind, name) for file in files for kind in kinds for name in PRUNERS]
    heading(f"{options.orders} random orders, {options.workers} workers")
    table = Table()
    with ProcessPoolExecutor() as pool:
        found = pool.map(
            searches,
            [file for file, _, _ in jobs],
            [PRUNERS[name] for _, _, name in jobs],
            [kinds[kind] for _, kind, _ in jobs],
            repeat(options.workers),
        )
        for (file, kind, name), figures in zip(jobs, found, strict=True):
            table.add({"table": file.stem, "order": kind, "pruner": name, **figures})


def replay_options(about: str) -> argparse.Namespace:
    """Read the options of a benchmark that replays the joint grids, and write the heading."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--replays", type=int, default=200, help="of each grid")
    parser.add_argument("--grids", nargs="+", default=list(JOINT), metavar="NAME")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    heading(f"{options.replays} replays a grid")
    return options


def main() -> None:
    """Records or replays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--out", type=Path, default=Path("hpo-search-cost"))
    recording.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="NAME")
    for name in ("limit-train", "limit-valid", "epochs", "seeds"):
        recording.add_argument(f"--{name}", type=int, help="instead of the table's own")
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
