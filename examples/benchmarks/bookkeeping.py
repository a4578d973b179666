"""What a trial costs beside its training, and how many workers one database serves.

    python examples/benchmarks/bookkeeping.py [sqlite postgresql mariadb] [--trials 500] [--workers 16]

Claims: 16 workers drain 500 trials of one second with little loss (efficiency: ideal time / wall time, from
the first claim to the last result); a trial of 11 reports costs under 30 ms on SQLite, whatever has ended.
Real workers and databases; the trials sleep instead of training, and their epochs are as large as real ones.
Checkpoints are left out, which cost what the disk takes. Beside it plain Optuna, which keeps 11 reports and
no epochs: `study.optimize` with random values, the same database as Optuna opens it. CSV on stdout. Measured
alone on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import optuna
import servers
from report_size import LAYERS, finish
from siege import fork
from tables import Table, heading

from hpo.execution import run, worker
from hpo.execution import trial as objective
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage import queue
from hpo.storage.queue import Slots
from hpo.storage.storage import Storage
from hpo.training.checkpoints import Checkpoints
from hpo.training.loop import EpochResult, LayerHealth, SeedEpoch

EPOCHS = 11
MANY_POINTS = "[search]\nlearning_rate = [{}]\nbatch_size = [{}]"


def sleeping(seconds: float) -> Callable[..., Generator[EpochResult, None, None]]:
    """A stand-in for `train` that sleeps, with epochs as large as real ones."""

    def train(
        _recipe: Any, _config: Any, _data: Any, seeds: Sequence[int], **_: Any
    ) -> Generator[EpochResult, None, None]:
        layers = {name: LayerHealth(0.123456789, 0.123456789, 0.1) for name in LAYERS}
        for number in range(1, EPOCHS + 1):
            time.sleep(seconds / EPOCHS)
            a, b, c, d = (random.random() for _ in range(4))
            metrics = {"macro_f1": a, "accuracy": b, "loss": c}
            epochs = tuple(SeedEpoch(seed, metrics, d, 10, 0.1, layers) for seed in seeds)
            yield EpochResult(number, epochs)

    return train


def plan_of(url: str, folder: Path, n_trials: int) -> Plan:
    """A plan of one grid of at least so many points."""
    (folder / "studies").mkdir(parents=True)
    rates = ", ".join(f"{1e-6 * (1 + number):.6f}" for number in range(-(-n_trials // 10)))
    sizes = ", ".join(str(10 + number) for number in range(10))
    (folder / "studies" / "grid.toml").write_text(MANY_POINTS.format(rates, sizes))
    given = {"data": "digits", "limit_train": 200, "limit_valid": 100, "epochs": EPOCHS, "pruning": False}
    return run.find_or_create_plan(folder, storage=url, studies=folder / "studies", given=given)


def drain(url: str, folder: Path, seconds: float, max_trials: int | None) -> None:
    """One worker whose trials sleep; writes how long each claim took."""
    objective.train = sleeping(seconds)  # type: ignore[attr-defined]
    Checkpoints.save = lambda *_: None  # type: ignore[method-assign]
    claims = []

    def claim(storage: Storage, studies: Sequence[str]) -> Any:
        began = time.perf_counter()
        claimed = queue.claim(storage, studies)
        if claimed is not None:
            claims.append(time.perf_counter() - began)
        return claimed

    worker.claim = claim  # type: ignore[attr-defined]
    worker.work(
        Storage(url, patience_seconds=60),
        out=folder,
        studies=["grid"],
        limits=worker.Limits(max_trials=max_trials),
    )
    (folder / f"claims-{os.getpid()}").write_text("\n".join(map(str, claims)))


def backend(kind: str, url: str, folder: Path, n_trials: int, n_workers: int) -> dict[str, Any]:
    """So many workers on so many trials of one second."""
    plan = plan_of(url, folder, n_trials)
    pids = [fork(lambda: drain(url, folder, 1.0, None), folder / "log") for _ in range(n_workers)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    trials = plan.trials("grid")
    slots = Slots.of(trials)
    wall = max(t.datetime_complete for t in trials if t.datetime_complete) - min(
        t.datetime_start for t in trials if t.datetime_start
    )
    claims = [float(line) for file in folder.glob("claims-*") for line in file.read_text().split()]
    seconds = wall.total_seconds()
    return {
        "what": f"{n_workers} workers, {n_trials} trials of 1 s",
        "back_end": kind,
        "efficiency": round(-(-len(slots.attempts) // n_workers) / seconds, 3),
        "wall_s": round(seconds, 1),
        "claim_p50_ms": round(1000 * median(claims), 1),
        "claim_p99_ms": round(1000 * quantiles(claims, n=100)[98], 1),
        "results": sum(slots.accepted(slot) is not None for slot in slots.attempts),
        "trials": len(trials),
        "worker_failures": sum(code != 0 for code in codes),
    }


def per_trial(
    kind: str, url: str, folder: Path, finished: Sequence[int], n: int = 100
) -> list[dict[str, Any]]:
    """Milliseconds a trial that takes no time, after so many have ended."""
    plan = plan_of(url, folder, max(finished) + n)
    records = []
    for goal in finished:
        _finish_quickly(plan, goal - sum(t.state.is_finished() for t in plan.trials("grid")))
        os.waitpid(
            fork(lambda: drain(url, folder, 0.0, 5), folder / "log"), 0
        )  # the first loads what it needs
        pid = fork(lambda: _timed(url, folder, n), folder / "log")
        if os.waitpid(pid, 0)[1]:
            raise SystemExit((folder / "log").read_text())
        ms = float((folder / "per-trial").read_text())
        records.append(
            {
                "what": f"bookkeeping a trial of {EPOCHS} reports",
                "back_end": kind,
                "finished": goal,
                "ms": round(ms, 1),
            }
        )
    return records


def _timed(url: str, folder: Path, n: int) -> None:
    marks: list[float] = []
    end = objective.run_trial

    def run_trial(*arguments: Any) -> Any:
        result = end(*arguments)
        marks.append(time.perf_counter())
        return result

    worker.run_trial = run_trial  # type: ignore[attr-defined, assignment]
    drain(url, folder, 0.0, n)
    # the mean: now and then a trial pays for looking at all others and queueing more
    (folder / "per-trial").write_text(str(1000 * (marks[-1] - marks[0]) / (len(marks) - 1)))


def _finish_quickly(plan: Plan, n: int) -> None:
    """Ends so many points with results, a transaction each, to have many finished trials."""
    chance = random.Random(0)
    while n > 0:
        advance(plan, ["grid"])
        while n > 0 and (claimed := queue.claim(plan.storage, ["grid"])) is not None:
            finish(plan, claimed.trial, EPOCHS, chance)
            n -= 1


def plain(kind: str, url: str, n: int = 100) -> dict[str, Any]:
    """The same with Optuna alone."""
    warnings.simplefilter("ignore")
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(url), direction="maximize", sampler=optuna.samplers.RandomSampler()
    )
    marks: list[float] = []

    def objective_(trial: optuna.Trial) -> float:
        trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        for number in range(1, EPOCHS + 1):
            trial.report(random.random(), number)
        marks.append(time.perf_counter())
        return 0.5

    study.optimize(objective_, n_trials=n)
    ms = round(1000 * (marks[-1] - marks[0]) / (n - 1), 1)
    return {"what": f"plain Optuna, a trial of {EPOCHS} reports", "back_end": kind, "finished": 0, "ms": ms}


def main() -> None:
    """Runs the back ends one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("back_ends", nargs="*", default=["sqlite", "postgresql", "mariadb"])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1000, 10_000])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    heading("one run")
    table = Table()
    for kind in options.back_ends:
        if kind != "sqlite" and not servers.is_installed(kind):
            print(f"{kind}: not installed here", file=sys.stderr)
            continue
        with contextlib.ExitStack() as stack:
            server = None if kind == "sqlite" else stack.enter_context(servers.running(kind))

            def database(server: servers.Server | None = server) -> tuple[str, Path]:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpo-books-")))
                return (server.new_database() if server else f"sqlite:///{folder / 'hpo.db'}"), folder

            records = [backend(kind, *database(), options.trials, options.workers)]
            records += [plain(kind, database()[0])]
            records += per_trial(kind, *database(), options.finished)
            for record in records:
                table.add(record)


if __name__ == "__main__":
    main()
