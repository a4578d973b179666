"""Which files of an output folder hpo wrote, and what they take of the disk.

A user may keep notes, pictures and study files in the same folder: what is not listed here is theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hpo.planning.plan import MODEL, WRONG_IMAGES, Plan
from hpo.storage.database import FILE_NAME

BESIDE = ("", "-wal", "-shm", "-journal", ".lock")
"""What SQLite and hpo add to the name of a database file for the files beside it."""

_FOLDER = r"(?!\.)[^/]+/[0-9a-f]{16}-\d+"
_FINAL_FOLDER = r"final-files/[0-9a-f]{16}"
_ARTIFACT = r"[0-9a-f-]{36}"
_UNFINISHED = r"(\.[0-9a-f]{8}\.unfinished)?"
_FINAL = f"({re.escape(MODEL)}|{re.escape(WRONG_IMAGES)})"
_OURS = {
    "database": "|".join(re.escape(f"{FILE_NAME}{suffix}") for suffix in BESIDE),
    "checkpoints": rf"checkpoints/{_FOLDER}/(epoch-\d+-attempt-\d+\.(checkpoint|bad)|epoch-\d+\.outputs)"
    rf"|checkpoints/{_FINAL_FOLDER}/{_FINAL}",
    "outputs": rf"{_FINAL}|artifacts/{_ARTIFACT}|report/report\.(html|md)|logs/(workers|worker-\d+)\.log"
    r"|slurm/\d[\d_]*_(log\.(out|err)|submitted\.pkl|result\.pkl|submission\.sh)",
}
_TABLES = (
    *("claim-cells", "claims", "confirmation", "confirmation-seeds", "confusion-matrix", "epochs"),
    *("final-configuration", "final-epochs", "final-seeds", "most-confidently-wrong", "per-class"),
    *("points-{study}", "provenance", "published"),
)
_FIGURES = (
    *("claims", "confirmation", "confusion-matrix", "final-{metric}", "per-class", "predictions"),
    *("time-line", "waterfall", "{study}-{metric}", "{study}-dead-units", "{study}-gradients-biases"),
    *("{study}-gradients-weights", "{study}-heat-map", "{study}-importance", "{study}-joint-effects"),
    *("{study}-main-effects", "{study}-trade-off"),
)
"""What the report calls its files."""
FOLDERS = ("checkpoints", "artifacts", "report", "logs", "slurm")


def files_in(out: Path, plan: Plan) -> dict[str, list[Path]]:
    """Return the files of a plan's output folder that hpo wrote: database, checkpoints, outputs."""
    found: dict[str, list[Path]] = {kind: [] for kind in _OURS}
    ours = {**_OURS, "outputs": f"{_OURS['outputs']}|{_report(plan)}"}
    for path in _walked(out):
        name = path.relative_to(out).as_posix()
        for kind, pattern in ours.items():
            if re.fullmatch(f"({pattern}){_UNFINISHED}", name):
                found[kind].append(path)
    return found


def _report(plan: Plan) -> str:
    """Return what the report's tables and figures are called, by the plan's studies and metrics."""
    of_plan = {"study": [*plan.specs], "metric": [metric.slug for metric in plan.metrics]}
    choices = {key: f"({'|'.join(map(re.escape, names))})" for key, names in of_plan.items()}
    tables, figures = ("|".join(names).format(**choices) for names in (_TABLES, _FIGURES))
    sheet = re.escape(WRONG_IMAGES)
    return rf"report/tables/({tables})\.csv|report/figures/(({figures})\.(svg|png)|{sheet})"


def _walked(out: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in sorted(out.iterdir()) if path.is_file() and not path.is_symlink())
    for name in FOLDERS:
        folder = out / name
        if folder.is_symlink():  # what it leads to may be anybody's
            continue
        for where, _, names in os.walk(folder):
            yield from (Path(where, each) for each in sorted(names) if not Path(where, each).is_symlink())


def is_checkpoint_folder(name: str) -> bool:
    """Return whether a name can be that of a folder of checkpoints, as a database should have it."""
    return re.fullmatch(f"{_FOLDER}|{_FINAL_FOLDER}", name) is not None


def is_artifact(name: str) -> bool:
    """Return whether a name can be that of an artifact, likewise."""
    return re.fullmatch(_ARTIFACT, name) is not None


def beside(database: Path) -> list[Path]:
    """Return a database file and those that belong to it, as far as they are there."""
    files = [Path(f"{database}{suffix}") for suffix in BESIDE]
    return [file for file in files if file.is_file()]


def bytes_of(files: Iterable[Path]) -> int:
    """Return how many bytes files have; one that has just gone has none."""
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total
