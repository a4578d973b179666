"""Which plans there are in a folder or on a server, and how each of them stands, in a line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hpo.errors import HpoError, InputError, MissingError
from hpo.monitor.files import FOLDERS, beside, bytes_of, files_in
from hpo.monitor.results import best
from hpo.monitor.status import StudyStatus, status
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import is_orphaned
from hpo.storage.database import FILE_NAME, plans_on, shown, size_of, sqlite_file
from hpo.storage.queue import workers_at
from hpo.storage.storage import Storage

DEPTH = 3
"""So many folders below the one that is asked about are looked into: a data set may lie there, too."""

EXPORTED = ("tensorboard", "mlflow", "wandb")
"""The folders that `hpo export --to` writes into an output folder: MLflow has a database there."""

PlanState = Literal["pending", "running", "idle", "done", "failed"]


@dataclass(frozen=True)
class PlanLine:
    """What `hpo list` says of a plan."""

    name: str
    storage: str
    """The database as people may see it, without password."""
    folder: str | None
    """The output folder; None where the database is in none."""
    state: PlanState
    studies: int
    decided: int
    """How many of the studies have."""
    objective: Metric
    best: float | None
    """The objective of the best configuration so far, on validation."""
    test: float | None
    """What the final stage found."""
    begun: datetime | None
    """When the first trial was claimed; None before that."""
    last_work: datetime | None
    """When a trial was claimed or ended last, or a worker gave a sign of life."""
    n_bytes: int
    """Of the database, and of what hpo wrote beside it in the output folder."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo list --json` prints it."""
        record = {**asdict(self), "metric": self.objective.name}
        record |= {
            key: None if time is None else time.isoformat(timespec="seconds")
            for key, time in (("begun", self.begun), ("last_work", self.last_work))
        }
        del record["objective"]
        return record


@dataclass(frozen=True)
class Plans:
    """What was found in one place."""

    plans: Sequence[PlanLine]
    problems: Sequence[tuple[str, str]]
    """Databases that hold no plan, or none that can be read; with why."""
    urls: Mapping[str, str]
    """Of the plans' databases, with passwords, by what people may see of them."""


def best_texts(plans: Sequence[PlanLine]) -> list[str]:
    """Return the best value of each plan, with the name of the metric where plans are tuned for several."""
    is_named = len({line.objective for line in plans}) > 1
    return [
        f"{line.objective.short if is_named and line.best is not None else ''} "
        f"{line.objective.with_unit(line.best)}".lstrip()
        for line in plans
    ]


def find_plans(place: str) -> Plans:
    """Return the plans of a folder and of those below it, or of a database.

    Args:
        place: a folder, or a database URL.

    Raises:
        InputError: there is no such folder, or the URL cannot be used.
    """
    found, problems, urls = [], [], {}
    for url in _databases(place):
        try:
            found.append(_line(url))
            urls[found[-1].storage] = url
        except MissingError:
            problems.append((shown(url), "holds no plan"))
        except HpoError as error:
            problems.append((shown(url), str(error).removeprefix(f"{shown(url)}: ")))
    return Plans(sorted(found, key=lambda line: (line.name, line.storage)), problems, urls)


def _databases(place: str) -> Iterator[str]:
    if "://" in place:
        file = sqlite_file(place)
        if file is not None and not file.is_file():
            raise MissingError(f"{file}: no database here")
        yield from plans_on(place)
        return
    folder = Path(place)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that plans are in, or a database URL")
    for where, folders, names in os.walk(folder):
        is_plans = FILE_NAME in names
        depth = len(Path(where).relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < DEPTH and not name.startswith(".") and not (is_plans and name in (*FOLDERS, *EXPORTED))
        )
        for name in sorted(names):
            if name.endswith(".db"):
                yield f"sqlite:///{Path(where, name)}"


def _line(url: str) -> PlanLine:
    plan = Plan.open(Storage(url, reader=True))
    statuses = status(plan)
    value = test = None
    with suppress(MissingError):
        found = best(plan)
        value = found["value"]
        test = found["test"][plan.objective.name] if found["test"] else None
    names = [study.name for study in statuses]
    lifetime = plan.storage.lifetime([plan.storage.study_id(name) for name in names])
    file = sqlite_file(url)
    folder = file.parent if file is not None and file.name == FILE_NAME else None
    return PlanLine(
        name=plan.name,
        storage=plan.storage.name,
        folder=None if folder is None else str(folder),
        state=_state(plan, statuses) if lifetime else "pending",
        studies=len(plan.specs),
        decided=sum(study.state in ("done", "failed") for study in statuses if study.name in plan.specs),
        objective=plan.objective,
        best=value,
        test=test,
        begun=lifetime[0] if lifetime else None,
        last_work=lifetime[1] if lifetime else None,
        n_bytes=_n_bytes(plan, file, folder),
    )


def _state(plan: Plan, studies: Sequence[StudyStatus]) -> PlanState:
    states = {study.name: study.state for study in studies}
    if states[FINAL] in ("done", "failed"):
        return "done" if states[FINAL] == "done" else "failed"
    if workers_at(plan.storage, plan.options.lease_seconds):
        return "running"
    is_hopeless = all(states[name] == "failed" or is_orphaned(plan, name) for name in plan.specs)
    return "failed" if is_hopeless else "idle"


def _n_bytes(plan: Plan, file: Path | None, folder: Path | None) -> int:
    if folder is not None:
        return sum(bytes_of(files) for files in files_in(folder, plan).values())
    return size_of(plan.storage.url) if file is None else bytes_of(beside(file))
