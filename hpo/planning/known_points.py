"""Known points of a study: parameters and values that others have measured, for its sampler to learn from.

They are kept in an Optuna study of their own beside that of the plan's study, so that nothing takes them
for trials of the plan: no decision, table or figure looks there. The best of them may be queued as points of
the study. Then they are trained as all points are, and only so can they win.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo._files import read_text, user_path
from hpo._text import params_text
from hpo.errors import ConflictError, InputError, MissingError, did_you_mean
from hpo.planning.inheritance import context_of, inherited_by
from hpo.planning.plan import Plan
from hpo.planning.samplers import distributions
from hpo.space.parameters import ParamValue, as_written, canonical_json
from hpo.storage.foreign import foreign_name, load_foreign
from hpo.storage.trials import attempt_key

ORIGIN_KEY = "imported"
"""The attribute of a known point that says where it is from."""
MAX_PROBLEMS = 5
"""Of a file with more wrong, the first are told."""
POINTS_AT_ONCE = 2_000
"""So many are written in one transaction: 100,000 in one kept workers of a SQLite plan waiting for 8 s."""
OPTUNAS_COLUMN = "params_"
"""What Optuna's own tables put before the name of a parameter."""


@dataclass(frozen=True)
class KnownPoint:
    """A point of a study's space, and what others measured there."""

    params: Mapping[str, ParamValue]
    value: float
    origin: str
    """As "old.csv, row 7"."""

    @property
    def source(self) -> str:
        """The file or the study that it is from."""
        return self.origin.rpartition(", ")[0]


@dataclass
class Source:
    """What was read."""

    points: list[KnownPoint] = field(default_factory=list)
    unfinished: int = 0
    """How many had no result."""
    outside: list[str] = field(default_factory=list)
    """Which lie outside of the study's space, and why."""
    unused: list[str] = field(default_factory=list)
    """Columns that mean nothing here."""


def imported_name(name: str) -> str:
    """Return what the Optuna study of a study's known points is called; no study file can have that name."""
    return f"{name}: imported"


def known_trials(plan: Plan, name: str) -> list[FrozenTrial]:
    """Return the known points of a study as trials; none where nothing was imported."""
    try:
        return plan.trials(imported_name(name))
    except MissingError:
        return []


def known_points(plan: Plan, name: str) -> list[KnownPoint]:
    """Return the known points of a study, the best first."""
    found = [
        KnownPoint(trial.params, trial.value, trial.user_attrs[ORIGIN_KEY])
        for trial in known_trials(plan, name)
        if trial.value is not None
    ]
    return sorted(found, key=lambda point: -plan.objective.score(point.value))


def import_points(plan: Plan, name: str, points: Sequence[KnownPoint], n_trained_first: int) -> int:
    """Make points known to a study, and queue the best of them; done twice, it does nothing.

    Args:
        plan: that the study belongs to.
        name: of the study.
        points: as from `read_points`.
        n_trained_first: so many of the best are trained as points of the study, before it samples further.

    Returns:
        How many were not known yet.

    Raises:
        InputError: the study is a grid.
        ConflictError: it has decided, or was closed.
    """
    stored = check_importable(plan, name)
    space = distributions(plan.spec(name))
    trials: dict[str, FrozenTrial] = {}
    for point in points:
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=dict(point.params),
            distributions=space,
            value=point.value,
            user_attrs={ORIGIN_KEY: point.origin},
        )
        # equal parameters with another value are another measurement
        trials[attempt_key(canonical_json({"params": point.params, "value": point.value}), 0, 1)] = trial
    attrs = {"options": plan.options.model_dump(), "imported_for": name}
    plan.storage.create_study(imported_name(name), attrs, plan.objective.direction)
    study_id, new = plan.storage.study_id(imported_name(name)), iter(trials.items())
    n_new = 0
    while some := dict(islice(new, POINTS_AT_ONCE)):
        n_new += plan.storage.enqueue(study_id, some)
    best = sorted(points, key=lambda point: -plan.objective.score(point.value))
    distinct = {canonical_json(point.params): dict(point.params) for point in best}
    before: list[dict[str, ParamValue]] = stored.get("trained_first", [])
    tried = {canonical_json(each) for each in before} | _points_tried(plan, name)
    first = [params for key, params in list(distinct.items())[:n_trained_first] if key not in tried]
    if first:
        expected = {key: stored.get(key) for key in ("decision", "closed", "trained_first")}
        if not plan.storage.swap_study_attr(
            plan.storage.study_id(name), "trained_first", [*before, *first], expected=expected
        ):
            raise ConflictError(f"{plan.storage.name}: study {name!r} has changed meanwhile; try again")
    return n_new


def sampled_study(plan: Plan) -> str:
    """Return the study of a plan that samples its points.

    Raises:
        InputError: it has none, or several.
    """
    names = [name for name, study in plan.specs.items() if not study.is_grid]
    if len(names) == 1:
        return names[0]
    raise InputError(
        f"name a study that samples: {', '.join(names)}" if names else "the plan has no study that samples"
    )


def check_importable(plan: Plan, name: str) -> Mapping[str, Any]:
    """Check that known points can make a difference to a study; return what is stored of it.

    Raises:
        InputError: it is a grid.
        ConflictError: it has decided, or was closed.
    """
    if name not in plan.specs:
        raise InputError(f"{name} searches nothing, so there is nothing to learn from known points")
    if plan.spec(name).is_grid:
        raise InputError(
            f"{name} is a grid: each of its points is trained, whatever is known; points are imported into "
            'studies that sample, as by [sampler] name = "tpe"'
        )
    stored = plan.storage.study_attrs()[name]
    if (stored.get("decision") or {}).get("params"):
        raise ConflictError(f"{name} has decided: no sampler learns from known points any more")
    if stored.get("closed"):
        raise ConflictError(f"{name} was closed, and takes no more points")
    return stored


def _points_tried(plan: Plan, name: str) -> set[str]:
    return {canonical_json(trial.params) for trial in plan.trials(name) if trial.params}


# --- reading ---------------------------------------------------------------------------------------------


def read_points(plan: Plan, name: str, source: str, optuna_study: str | None = None) -> Source:
    """Read points and values for a study.

    Args:
        plan: that the study belongs to.
        name: of the study.
        source: a CSV file, or where Optuna keeps a study: URL, SQLite or journal file.
        optuna_study: the name of the study there; None: the only one.

    Raises:
        InputError: it cannot be read, or holds what no point of the study can have; the text says where.
    """
    if "://" not in source and Path(source).suffix.lower() == ".csv":
        if optuna_study is not None:
            raise InputError(f"--optuna-study {optuna_study} and {source}: a CSV file holds no studies")
        found = _from_csv(plan, name, source)
    else:
        found = _from_optuna(plan, name, source, optuna_study)
    if not found.points:
        why = f": {found.outside[0]}" if found.outside else ""
        raise InputError(f"{foreign_name(source)}: holds no point for {name} with a result{why}")
    return found


class _OutsideError(InputError):
    """A point that could not be one of the study."""


class _Reader:
    """Checks points one by one, and collects what is wrong.

    Args:
        plan: that the study belongs to.
        name: of the study.
        skips: leave out what lies outside of the study's space; otherwise that is wrong as well.
    """

    def __init__(self, plan: Plan, name: str, *, skips: bool) -> None:
        self.spec, self._schema, self._objective = plan.spec(name), plan.schema, plan.objective
        inherited = inherited_by(plan, name)
        is_open = inherited is None and self.spec.inherits is not None
        self._known = dict(self.spec.fixed) if is_open else context_of(plan, name, inherited)
        self.source = Source()
        self._wrong: list[str] = []
        self._outside = self.source.outside if skips else self._wrong

    def add(self, origin: str, params: Mapping[str, Any], value: object, place: Callable[[str], str]) -> None:
        """Check a point and take it.

        Args:
            origin: where it is from.
            params: its parameters, and others that it was measured with.
            value: that was measured.
            place: tells where a parameter stands; of an empty name, where the value does.
        """
        try:
            self._check_others(params, place)
            point = self._checked(params, place)
            if broken := self._broken(point):
                raise _OutsideError(f"{origin}: {params_text(point)}: must satisfy {broken}")
            self.source.points.append(KnownPoint(point, self._number(value, place("")), origin))
        except _OutsideError as error:
            self._outside.append(str(error))
        except InputError as error:
            self._wrong.append(str(error))

    def end(self) -> Source:
        """Return what was read.

        Raises:
            InputError: something is wrong, a line each.
        """
        if self._wrong:
            n_more = len(self._wrong) - MAX_PROBLEMS
            more = [f"and {n_more} more"] if n_more > 0 else []
            raise InputError("\n".join([*self._wrong[:MAX_PROBLEMS], *more]))
        return self.source

    def _checked(self, params: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, ParamValue]:
        """Return the parameters that the study searches, each on its axis and in its own type."""
        point: dict[str, ParamValue] = {}
        for name, axis in self.spec.search.items():
            try:
                point[name] = self._schema.check(name, params[name])
            except InputError as error:
                raise _OutsideError(f"{place(name)}: {error}") from None
            if point[name] not in axis:
                raise _OutsideError(
                    f"{place(name)}: {name} = {as_written(point[name])}: is not in [search] of "
                    f"{self.spec.name}"
                )
        return point

    def _check_others(self, params: Mapping[str, Any], place: Callable[[str], str]) -> None:
        """Check that parameters that are not searched are as the study trains them."""
        for name in params.keys() - self.spec.search.keys():
            if name not in self._schema.parameters:
                hint = did_you_mean(name, self._schema.parameters)
                raise InputError(f"{place(name)}: {name} is not a parameter; {hint}")
            if self._known.get(name, params[name]) != params[name]:
                raise InputError(
                    f"{place(name)}: {name} = {as_written(params[name])}, and {self.spec.name} trains "
                    f"{as_written(self._known[name])}; give a CSV file without {name} if the values hold for "
                    "that all the same"
                )

    def _number(self, value: object, where: str) -> float:
        name = self._objective.name
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{where}: {name} = {as_written(value)}: must be a finite number")
        if self._objective.is_share and not 0 <= value <= 1:
            raise InputError(f"{where}: {name} = {value:g}: must be a share from 0 to 1, as 0.912")
        return float(value)

    def _broken(self, point: Mapping[str, ParamValue]) -> str:
        """Return the constraints that a point breaks, as far as is known what else it is trained with."""
        params = {**self._known, **point}
        told = [each for each in self.spec.all_constraints if each.names <= params.keys()]
        broken = [str(each) for each in told if not each.holds(params)]
        return " and ".join(broken)


def _from_csv(plan: Plan, name: str, source: str) -> Source:
    # a file can be mended, and what it holds was put there for this
    reader, objective = _Reader(plan, name, skips=False), plan.objective.name
    try:
        lines = csv.DictReader(io.StringIO(read_text(user_path(source)), newline=""), strict=True)
        heads = list(lines.fieldnames or [])
        rows = [(lines.line_num, row) for row in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{source}: cannot be read: {reason}") from None
    columns = {head.removeprefix(OPTUNAS_COLUMN): head for head in heads if head}
    named = Counter(head.removeprefix(OPTUNAS_COLUMN) for head in heads)
    for each in (*plan.schema.parameters, objective, "value"):
        if named[each] > 1:
            raise InputError(f"{source}: has {named[each]} columns {each}; leave in the one that holds")
    values = [head for head in (objective, "value") if head in heads and head not in reader.spec.search]
    missing = [each for each in reader.spec.search if each not in columns]
    if missing or not values:
        lacking = missing[0] if missing else f"{objective}, or value"
        known = did_you_mean(missing[0], columns) if missing else did_you_mean(objective, columns)
        raise InputError(f"{source}: has no column {lacking}; {known}")
    params = {each: head for each, head in columns.items() if each in plan.schema.parameters}
    reader.source.unused = [
        head for head in heads if head not in (*params.values(), values[0], "state") and head
    ]
    for number, row in rows:
        where = f"{source}, row {number}"
        if None in row or None in row.values():
            raise InputError(f"{where}: has {'more' if None in row else 'fewer'} cells than the first row")
        if row.get("state", "complete").lower() != "complete":
            reader.source.unfinished += 1
            continue
        places = {
            **{each: f"{where}, column {head}" for each, head in params.items()},
            "": f"{where}, column {values[0]}",
        }
        reader.add(
            where,
            {each: _cell(row[head], plan.schema.parameters[each].kind) for each, head in params.items()},
            _cell(row[values[0]], "float"),
            places.__getitem__,
        )
    return reader.end()


def _cell(text: str, kind: str) -> object:
    """Return what a cell holds, as a parameter of a kind would have it; the text where it holds no such."""
    try:
        if kind == "bool":
            return {"true": True, "false": False, "1": True, "0": False}.get(text.strip().lower(), text)
        if kind == "int":  # tables with gaps have 20.0 for 20
            number = float(text)
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        return float(text) if kind == "float" else text
    except ValueError:
        return text


def _from_optuna(plan: Plan, name: str, source: str, optuna_study: str | None) -> Source:
    study, reader = load_foreign(source, optuna_study), _Reader(plan, name, skips=True)
    told = f"{foreign_name(source)}, study {study.name}"
    if len(study.directions) > 1:
        raise InputError(f"{told}: has {len(study.directions)} objectives, and {name} has one")
    if list(study.directions) != [plan.objective.direction]:
        raise InputError(
            f"{told}: its values are to be {study.directions[0]}d, and {name} is to "
            f"{plan.objective.direction} {plan.objective.name}: they are not of that metric"
        )
    for trial in study.trials:
        where = f"{told}, trial {trial.number}"
        has_value = trial.state == TrialState.COMPLETE and math.isfinite(trial.value or 0.0)
        if not has_value or not reader.spec.search.keys() <= trial.params.keys():
            reader.source.unfinished += 1
            continue
        places = {**{each: f"{where}, parameter {each}" for each in trial.params}, "": where}
        reader.add(where, trial.params, trial.value, places.__getitem__)
    return reader.end()
