"""What a plan has trained, written into other programs that keep track of experiments.

A further one is a function like `write_mlflow` in a module of its own, and a line in `TRACKERS`. None of
them does harm when it is called twice: what is there already stays, what is new comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpo._lock import locked
from hpo.errors import InputError, did_you_mean
from hpo.planning.plan import Plan
from hpo.reporting.trackers.mlflow import write_mlflow
from hpo.reporting.trackers.runs import Run, runs_of
from hpo.reporting.trackers.tensorboard import write_tensorboard
from hpo.reporting.trackers.wandb import write_wandb
from hpo.reporting.trackers.written import Written

TRACKERS: Mapping[str, tuple[Callable[[Sequence[Run], Path], Written], str]] = {
    "tensorboard": (write_tensorboard, "tensorboard"),
    "mlflow": (write_mlflow, "mlflow"),
    "wandb": (write_wandb, "."),  # which makes a folder of its name itself
}
"""Of each what writes runs into a folder, or to the server that its own environment variables name, and that
folder in an output folder."""
LOCK_FILE = ".hpo-export.lock"


def export_runs(plan: Plan, tracker: str, folder: Path | None, out: Path) -> Written:
    """Write the runs of a plan for a tracker; those that it has already are not written again.

    Args:
        plan: whose runs.
        tracker: a key of `TRACKERS`.
        folder: made where it is missing; None: one in the output folder.
        out: the plan's output folder.

    Raises:
        InputError: there is no such tracker, its package is not installed, or it cannot write there.
    """
    if tracker not in TRACKERS:
        raise InputError(f"--to {tracker}: {did_you_mean(tracker, TRACKERS)}")
    write, default = TRACKERS[tracker]
    folder = folder or out / default
    runs = list(runs_of(plan))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_FILE):  # of two at once both would find a run missing
            return write(runs, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None
