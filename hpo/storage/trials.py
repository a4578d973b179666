"""The rows of trials in Optuna's tables: read for many trials at once, as deep as is asked for, and written.

Optuna reads whole trials through its mapped classes: for 10,000 trials of eleven epochs that takes 14 s and
over a gigabyte. Most who look need little of a trial, and what has ended never changes.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from hpo.errors import InputError

T = TypeVar("T")
Reader = Callable[[Callable[[Session], list[FrozenTrial]]], list[FrozenTrial]]
"""Runs a transaction that only reads."""

ATTEMPT_KEY = "attempt_key"
"""The attribute that every trial of ours has: point, replicate and attempt in one text."""

SECONDS_KEY, SEED_EPOCHS_KEY = "trained_seconds", "trained_seed_epochs"
"""The attributes that say what an attempt trained itself: a worker's time, and epochs times seeds."""

CHECKPOINTS_KEY = "checkpoints"
"""The attribute that says in which folder of the store a trial's checkpoints are."""

KEPT_KEY = "kept_checkpoint"
"""The attribute of an ended trial whose last checkpoint was kept: epoch, seeds, store and folder."""

OUTPUTS_KEY = "kept_outputs"
"""The attribute of a final stage whose outputs on the test set were kept, of every epoch: as `KEPT_KEY`."""

AUDIT_KEY = "audit"
"""The attribute of a trial that is trained on after a pruner stopped it: after which epoch, and its value."""


COSTS_KEY = "costs"
"""The attribute that says what a trial's configuration costs, as far as that is known before it trains."""

OBJECTIVES_KEY = "objectives"
"""The attribute of a complete trial whose study has two objectives: the value of each by name."""


@dataclass(frozen=True)
class Projection:
    """What is read of a trial beside number, state and value."""

    attrs: tuple[str, ...] | None
    """User attributes of these names; None: all."""
    reports_of: tuple[TrialState, ...] = tuple(TrialState)
    """States of the trials whose reports are read."""
    has_params: bool = True
    """Whether parameters, times and Optuna's own attributes are read."""


OUTLINE = Projection(
    (ATTEMPT_KEY, "reason", "retry", AUDIT_KEY, OBJECTIVES_KEY),
    (TrialState.RUNNING, TrialState.FAIL),
    has_params=False,
)
"""Where a trial of ours stands.

Its attributes are point, replicate, attempt, reason, retry, audit and objectives.
"""
HISTORY = Projection((ATTEMPT_KEY, "index", "seeds", "reason", AUDIT_KEY))
"""What samplers and pruners learn from: all but the epochs' records, which are nine tenths of a trial, and
but what an audit reported after the pruner had stopped the trial. Point, replicate and attempt are among the
attributes."""
WHOLE = Projection(None)


def id_of(trial: FrozenTrial) -> int:
    """Return Optuna's id of a trial, which has no public name."""
    return trial._trial_id


class Trials:
    """The trials of a database in one projection. Finished ones never change: they are read once.

    In the projection `OUTLINE` those that others put into a study are left out. Several threads may use it.
    """

    def __init__(self, read: Reader, projection: Projection) -> None:
        self._read, self._projection = read, projection
        self._lock = threading.Lock()
        self._known: dict[int, dict[int, FrozenTrial]] = defaultdict(dict)
        self._open: dict[int, set[int]] = defaultdict(set)
        self._last: dict[int, int] = defaultdict(lambda: -1)
        self.revisions: Counter[int] = Counter()
        """How often a study, by its id, was found changed: trials added to it, or in other states."""

    def of(self, study_id: int) -> list[FrozenTrial]:
        """Return the trials of a study by number, as the database has them now; do not change them."""
        with self._lock:
            self._refresh(study_id)
            return list(self._known[study_id].values())

    def first_open(self, study_id: int) -> int:
        """Return a trial id below which all trials of the study have ended, as far as has been read."""
        with self._lock:
            return self._first_open(study_id)

    def _first_open(self, study_id: int) -> int:
        return min(self._open[study_id], default=self._last[study_id] + 1)

    def _refresh(self, study_id: int) -> None:
        known, open_, last = self._known[study_id], self._open[study_id], self._last[study_id]
        id_ = models.TrialModel.trial_id
        # Trials of one study are added under a lock on it: what is new has a higher id than what is known.
        # The first of the two conditions on the id is one that an index answers.
        where = (
            models.TrialModel.study_id == study_id,
            id_ >= self._first_open(study_id),
            sqlalchemy.or_(id_ > last, id_.in_(open_)),
        )
        trials = self._read(lambda session: fetch(session, self._projection, *where))
        before = {trial_id: known[trial_id].state for trial_id in open_}
        for trial in trials:
            trial_id = trial._trial_id
            self._last[study_id] = max(self._last[study_id], trial_id)
            if self._projection is OUTLINE and "point" not in trial.user_attrs:
                continue
            known[trial_id] = trial
            (open_.discard if trial.state.is_finished() else open_.add)(trial_id)
        self.revisions[study_id] += any(before.get(t._trial_id) != t.state for t in trials)


def fetch(session: Session, projection: Projection, *where: ColumnElement[bool]) -> list[FrozenTrial]:
    """Return the trials that satisfy conditions on Optuna's table of trials, by id."""
    table = models.TrialModel.__table__
    times = (table.c.datetime_start, table.c.datetime_complete) if projection.has_params else ()
    query = select(models.TrialModel.trial_id, models.TrialModel.number, models.TrialModel.state, *times)
    heads = session.execute(query.where(*where).order_by(models.TrialModel.trial_id)).all()
    if not heads:
        return []
    # reports first: what has been reported is among the attributes by then, as both are written together
    reports = _reports(session, where, projection.reports_of)
    attrs = _attrs(session, models.TrialUserAttributeModel, where, projection.attrs)
    if projection is HISTORY:
        for trial_id, of_trial in attrs.items():
            if AUDIT_KEY in of_trial:
                last = of_trial[AUDIT_KEY]["pruned_after_epoch"]
                reports[trial_id] = {n: value for n, value in reports[trial_id].items() if n <= last}
    values = _values(session, where)
    params = _params(session, where) if projection.has_params else {}
    system = _attrs(session, models.TrialSystemAttributeModel, where, None) if projection.has_params else {}
    return [
        FrozenTrial(
            number=number,
            state=state,
            value=values.get(trial_id),
            datetime_start=_local(times[0]) if times else None,
            datetime_complete=_local(times[1]) if times else None,
            params={
                name: axis.to_external_repr(value) for name, (axis, value) in params.get(trial_id, {}).items()
            },
            distributions={name: axis for name, (axis, _) in params.get(trial_id, {}).items()},
            user_attrs=(dict if projection is WHOLE else _outlined)(attrs.get(trial_id, {})),
            system_attrs=system.get(trial_id, {}),
            intermediate_values=reports.get(trial_id, {}),
            trial_id=trial_id,
        )
        for trial_id, number, state, *times in heads
    ]


def attempt_key(point: str, replicate: int, attempt: int) -> str:
    """Return the text that an attempt's `ATTEMPT_KEY` holds."""
    return f"{point} {replicate} {attempt}"


def _outlined(attrs: Mapping[str, Any]) -> dict[str, Any]:
    if ATTEMPT_KEY not in attrs:
        return {}
    rest = dict(attrs)
    key = rest.pop(ATTEMPT_KEY)
    try:
        point, replicate, attempt = str(key).rsplit(" ", 2)
        return {"point": point, "replicate": int(replicate), "attempt": int(attempt), **rest}
    except ValueError:
        raise InputError(f"attribute {ATTEMPT_KEY!r} is {key!r}, which hpo did not write") from None


def _local(time: datetime | None) -> datetime | None:
    # Optuna keeps UTC and shows local time, both without saying so
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _as_kept(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


def _parts(session: Session, model: Any, where: Collection[Any], *columns: Any) -> Iterator[Any]:
    trial = models.TrialModel
    query = select(model.trial_id, *columns).join(trial, trial.trial_id == model.trial_id).where(*where)
    yield from session.execute(query)


def _attrs(
    session: Session, model: Any, where: Collection[Any], keys: Collection[str] | None
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    if keys is None or keys:
        of_these = where if keys is None else (*where, model.key.in_(keys))
        for trial_id, key, text in _parts(session, model, of_these, model.key, model.value_json):
            try:
                found[trial_id][sys.intern(key)] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"attribute {key!r} of trial {trial_id} is not valid JSON: {error}"
                ) from None
    return found


def _values(session: Session, where: Collection[Any]) -> dict[int, float]:
    model = models.TrialValueModel
    rows = _parts(session, model, where, model.value, model.value_type)
    return {trial_id: model.stored_repr_to_value(value, kind) for trial_id, value, kind in rows}


def _reports(
    session: Session, where: Collection[Any], states: Collection[TrialState]
) -> dict[int, dict[int, float]]:
    model = models.TrialIntermediateValueModel
    columns = (model.step, model.intermediate_value, model.intermediate_value_type)
    found: dict[int, dict[int, float]] = defaultdict(dict)
    of_these = (*where, models.TrialModel.state.in_(states))
    for trial_id, step, value, kind in _parts(session, model, of_these, *columns):
        found[trial_id][step] = model.stored_repr_to_intermediate_value(value, kind)
    return found


def _params(session: Session, where: Collection[Any]) -> dict[int, dict[str, tuple[BaseDistribution, float]]]:
    model = models.TrialParamModel
    columns = (model.param_id, model.param_name, model.param_value, model.distribution_json)
    found: dict[int, dict[str, tuple[BaseDistribution, float]]] = defaultdict(dict)
    for trial_id, _, name, value, axis in sorted(_parts(session, model, where, *columns)):
        found[trial_id][sys.intern(name)] = (_distribution(axis), value)
    return found


@cache  # all trials of a study have the same few
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


# Optuna's own way to write an attribute, a parameter or a report takes three queries each; an epoch has two,
# a trial has eleven epochs. These take one for any number, and leave it to the caller to lock and to look.


def add_trials(session: Session, study_id: int, trials: Mapping[str, FrozenTrial]) -> None:
    """Add trials of ours, by key, to a study; numbered as Optuna does, by those before them.

    They wait, or have ended; reports are not written.
    """
    model, values, attrs, params = models.TrialModel, [], [], []
    new = sqlalchemy.insert(model.__table__)
    count = session.scalar(select(sqlalchemy.func.count()).where(model.study_id == study_id)) or 0
    for number, (key, trial) in enumerate(trials.items(), start=count):
        row: dict[str, Any] = {"study_id": study_id, "number": number, "state": trial.state}
        if trial.state.is_finished():
            times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
            row |= {name: time and _as_kept(time) for name, time in times.items()}
        # one by one, as their ids must rise as their numbers do; SQLAlchemy's ORM takes six times as long
        added: Any = session.execute(new, row)
        (trial_id,) = added.inserted_primary_key
        if trial.value is not None:
            values.append(_value_row(trial_id, trial.value))
        attrs += [
            {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)}
            for name, value in {**trial.user_attrs, ATTEMPT_KEY: key}.items()
        ]
        params += _param_rows(trial_id, trial.params, trial.distributions)
    for table, rows in (
        (models.TrialValueModel, values),
        (models.TrialUserAttributeModel, attrs),
        (models.TrialParamModel, params),
    ):
        if rows:
            session.execute(sqlalchemy.insert(table.__table__), rows)


def lock(session: Session, trial_id: int) -> TrialState | None:
    """Return the state of a trial, which nobody else changes before this transaction ends; None: no trial."""
    state = models.TrialModel.state
    query = select(state).where(models.TrialModel.trial_id == trial_id).with_for_update()
    return session.execute(query).scalar_one_or_none()


def get_attr(session: Session, trial_id: int, key: str) -> Any:
    """Return an attribute of a trial; None where there is none."""
    model = models.TrialUserAttributeModel
    text = session.scalar(select(model.value_json).where(model.trial_id == trial_id, model.key == key))
    return None if text is None else json.loads(text)


def set_attrs(session: Session, trial_id: int, attrs: Mapping[str, Any]) -> None:
    """Write user attributes of a trial."""
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(attrs[key])} for key in attrs]
    _upsert(session, models.TrialUserAttributeModel, rows)


def set_params(
    session: Session, trial_id: int, params: Mapping[str, Any], axes: Mapping[str, BaseDistribution]
) -> None:
    """Write parameters of a trial, each with its axis."""
    _upsert(session, models.TrialParamModel, _param_rows(trial_id, params, axes))


def _param_rows(
    trial_id: int, params: Mapping[str, Any], axes: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": axes[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(axes[name]),
        }
        for name, value in params.items()
    ]


def set_reports(session: Session, trial_id: int, reports: Mapping[int, float]) -> None:
    """Write reports of a trial, by step."""
    model, rows = models.TrialIntermediateValueModel, []
    for step, report in reports.items():
        value, kind = model.intermediate_value_to_stored_repr(report)
        row = {"intermediate_value": value, "intermediate_value_type": kind}
        rows.append({"trial_id": trial_id, "step": step, **row})
    _upsert(session, model, rows)


def set_value(session: Session, trial_id: int, value: float) -> None:
    """Write the value of a trial."""
    _upsert(session, models.TrialValueModel, [_value_row(trial_id, value)])


def _value_row(trial_id: int, value: float) -> dict[str, Any]:
    stored, kind = models.TrialValueModel.value_to_stored_repr(value)
    return {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}


def _upsert(session: Session, model: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of a table that knows a row by its first two columns here, or update them."""
    if rows:
        kind = session.get_bind().dialect.name
        session.execute(_upserting(kind, model.__table__, *rows[0]), rows)


@cache
def _upserting(kind: str, table: Any, trial_id: str, name: str, *rest: str) -> Any:
    dialect = "mysql" if kind == "mariadb" else kind
    # a twentieth of `hpo status` is the import of three dialects, two of which are not that of its database
    new = import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    if dialect == "mysql":  # it finds the index itself
        return new.on_duplicate_key_update({column: new.inserted[column] for column in rest})
    return new.on_conflict_do_update(
        index_elements=[trial_id, name], set_={column: new.excluded[column] for column in rest}
    )
