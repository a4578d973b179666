"""Every trial and every epoch of a plan as flat records, for other programs: CSV, JSON, Parquet, pandas.

Columns bear the names that parameters and metrics have everywhere; of two with one name the parameter's is
`param_NAME`, as where it is called `state`. Lost and superseded attempts are records
too: `state` says what they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO

from optuna.trial import FrozenTrial

from hpo._files import write_whole
from hpo._text import harmless_cell, printable, write_json
from hpo.errors import InputError, install
from hpo.monitor.results import attempt_state, best_values, reason_text
from hpo.planning.decisions import best_epoch, costs_of, epochs_of, test_epochs_of
from hpo.planning.plan import CONTROL_SLOT, Plan, opened
from hpo.space.constraints import SECONDS_AN_EPOCH
from hpo.storage.trials import ATTEMPT_KEY

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]


def export(plan: Plan | Path | str) -> list[Record]:
    """Return one record a trial; its metrics are those of the best epoch, means over seeds."""
    plan = opened(plan)
    return [
        _joined(
            {
                **_identity(name, trial, discarded),
                "reason": reason_text(trial, discarded) if attrs else "",
                "control": attrs.get("point") == CONTROL_SLOT.point,
                "point": attrs.get("point"),
                "replicate": attrs.get("replicate"),
                "attempt": attrs.get("attempt"),
                "seeds": " ".join(map(str, attrs.get("seeds", []))),
                "best_epoch": best_epoch(trial, plan.objective),
                "epochs_trained": len(trial.intermediate_values),
                "start": _iso(trial.datetime_start),
                "complete": _iso(trial.datetime_complete),
            },
            metric=_metrics(plan, trial, is_ours=bool(attrs)),
            cost=_costs(plan, attrs),
            param=_params(plan, attrs),
        )
        for name, trial, attrs, discarded in _trials(plan)
    ]


def export_epochs(plan: Plan | Path | str) -> list[Record]:
    """Return one record a trial, epoch and seed: what training recorded, gradients and dead units by layer.

    Metrics on validation are `valid_NAME`. Records of the final stage hold those on the test set as well,
    `test_NAME`.
    """
    plan, records = opened(plan), []
    for name, trial, attrs, discarded in _trials(plan):
        epochs = zip_longest(epochs_of(attrs), test_epochs_of(attrs), fillvalue=())
        for number, (seeds, tests) in enumerate(epochs, start=1):
            tested = {test["seed"]: test for test in tests}
            for seed in seeds:
                records.append(
                    _joined(
                        {
                            **_identity(name, trial, discarded),
                            "epoch": number,
                            **{key: value for key, value in seed.items() if key not in ("layers", "metrics")},
                            **{f"valid_{metric}": value for metric, value in seed["metrics"].items()},
                        },
                        layer={
                            f"{layer}_{metric}": value
                            for layer, health in seed["layers"].items()
                            for metric, value in health.items()
                        },
                        metric={
                            f"test_{metric}": value
                            for metric, value in tested.get(seed["seed"], {}).items()
                            if metric != "seed"
                        },
                        param=_params(plan, attrs),
                    )
                )
    return records


def trials_frame(plan: Plan | Path | str) -> pd.DataFrame:
    """Return every trial as a pandas DataFrame, a row each, columns as in `export`; times are datetimes.

    Raises:
        InputError: pandas is not installed.
    """
    frame = _frame(export(plan))
    times = frame.columns.intersection(["start", "complete"])
    frame[times] = frame[times].apply(_pandas().to_datetime, utc=True)
    return frame


def epochs_frame(plan: Plan | Path | str) -> pd.DataFrame:
    """Return every epoch of every seed as a pandas DataFrame, a row each, columns as in `export_epochs`.

    Raises:
        InputError: pandas is not installed.
    """
    return _frame(export_epochs(plan))


def write_csv(records: Sequence[Record], file: TextIO) -> None:
    """Write records as CSV; what a spreadsheet would take for a formula is quoted with an apostrophe.

    Every record is one line, and nothing in it is obeyed by a terminal; JSON holds the text as it is.
    """
    columns = _columns(records)
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writerow({name: harmless_cell(name) for name in columns})
    for record in records:
        writer.writerow({name: harmless_cell(value) for name, value in record.items()})


def write_file(plan: Plan, rows: str, path: Path) -> int:
    """Write every trial or every epoch into a file, CSV, JSON or Parquet by its name.

    Args:
        plan: whose trials.
        rows: `trials` or `epochs`, a key of `ROWS`.
        path: a file that exists is replaced.

    Returns:
        How many rows were written.

    Raises:
        InputError: a name of no known kind, a file that cannot be written, or Parquet without pandas.
    """
    kinds: Mapping[str, Callable[[list[Record], TextIO], None]] = {".csv": write_csv, ".json": write_json}
    kind = path.suffix.lower()
    if kind not in (*kinds, ".parquet"):
        raise InputError(f"{path}: ends in none of .csv, .json, .parquet")
    try:
        if kind == ".parquet":
            frame = trials_frame(plan) if rows == "trials" else epochs_frame(plan)
            content, count = frame.to_parquet(index=False), len(frame)
        else:
            records = ROWS[rows](plan)
            kinds[kind](records, text := io.StringIO())
            content, count = text.getvalue().encode("utf-8"), len(records)
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow; {install('parquet')}") from None
    return count


ROWS: Mapping[str, Callable[[Plan], list[Record]]] = {"trials": export, "epochs": export_epochs}
"""What one row of an export can be."""


def _trials(plan: Plan) -> Iterator[tuple[str, FrozenTrial, Mapping[str, Any], Mapping[int, str]]]:
    """Yield all trials with the study's name, attributes as far as ours, and what the study discarded."""
    for name, record in plan.records().items():
        for trial in plan.trials(name):
            is_ours = ATTEMPT_KEY in trial.user_attrs
            yield name, trial, trial.user_attrs if is_ours else {}, record.discarded


def _identity(name: str, trial: FrozenTrial, discarded: Mapping[int, str]) -> Record:
    return {"study": name, "trial": trial.number, "state": attempt_state(trial, discarded)}


def _joined(record: Record, **groups: Record) -> Record:
    """Return a record with the columns of further groups; one whose name is taken is `GROUP_NAME`.

    A recipe may have a parameter `state`, or one with the name of a metric.
    """
    for group, columns in groups.items():
        record |= {f"{group}_{name}" if name in record else name: value for name, value in columns.items()}
    return record


def _metrics(plan: Plan, trial: FrozenTrial, *, is_ours: bool) -> Record:
    """Return the metrics of a trial with a result; one that diverged has none."""
    seeds = best_values(plan, trial) if is_ours and trial.value is not None else {}
    means = {name: fmean(seeds[name]) if seeds.get(name) else None for name in plan.recipe.metrics}
    return {**means, plan.objective.name: trial.value}


def _params(plan: Plan, attrs: Mapping[str, Any]) -> Record:
    config = attrs.get("config", {})
    return {name: config.get(name) for name in plan.schema.parameters}


def _costs(plan: Plan, attrs: Mapping[str, Any]) -> Record:
    found = costs_of(attrs)
    return {name: found.get(name) for name in (*plan.schema.costs, SECONDS_AN_EPOCH)}


def _iso(time: datetime | None) -> str | None:
    # with the offset from UTC; Optuna's times are local ones
    return time.astimezone().isoformat(timespec="seconds") if time else None


def _columns(records: Sequence[Record]) -> list[str]:
    """Return the columns of all records; those that only some have stand where they first appear."""
    return list(dict.fromkeys(name for record in records for name in record))


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    pandas = _pandas()
    columns = {name: [_sound(record.get(name)) for record in records] for name in _columns(records)}
    return pandas.DataFrame(
        {name: pandas.Series(values, dtype=_dtype(values)) for name, values in columns.items()}
    )


def _sound(value: Any) -> Any:
    """Return a value that Parquet takes: names of files may hold bytes that are not UTF-8."""
    return printable(value) if isinstance(value, str) else value


def _dtype(values: Sequence[Any]) -> str:
    """Return the type of a column by its values, some of them missing; pandas would turn 0.0 into 0."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds or float in kinds:
        return "float64"
    return {int: "Int64", bool: "boolean"}.get(kinds.pop(), "string") if len(kinds) == 1 else "string"


def _pandas() -> Any:
    try:
        import pandas  # half a second, and 60 MB that nothing else needs
    except ImportError:
        raise InputError(f"data frames need pandas; {install('pandas')}") from None
    return pandas
