"""The trials of a plan in outline: where they stand and how good they are, without what they recorded.

A whole trial of eleven epochs is a hundred times as much to read and to parse as what a table of studies
or a live screen says of it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Select, func, or_, select

from hpo.storage import ATTEMPT_KEY, Storage

_KEYS = (ATTEMPT_KEY, "reason", "retry")


class Outlines:
    """The trials of a storage in outline. Finished ones never change: they are read once.

    An outline is a `FrozenTrial` with number, state and value, and with point, replicate, attempt, reason
    and retry as its attributes. It has reports only while it runs and where it failed, and no parameters,
    epochs or times.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._trials: dict[int, dict[int, FrozenTrial]] = defaultdict(dict)
        self._open: dict[int, set[int]] = defaultdict(set)
        self._last: dict[int, int] = defaultdict(lambda: -1)
        self.revisions: Counter[str] = Counter()
        """How often a study was found changed: trials added to it, or in other states."""

    def of(self, study: str) -> list[FrozenTrial]:
        """The trials of a study that are ours, by number, as the database has them now."""
        study_id = self._storage.study_id(study)
        self.revisions[study] += self._refresh(study_id)
        return sorted(self._trials[study_id].values(), key=lambda trial: trial.number)

    def recorded(self, trial_ids: Collection[int]) -> dict[int, dict[str, Any]]:
        """All that trials recorded, by trial id: their user attributes, in one query."""
        attribute = models.TrialUserAttributeModel
        query = select(attribute.trial_id, attribute.key, attribute.value_json)
        return self._by_trial(query.where(attribute.trial_id.in_(trial_ids))) if trial_ids else {}

    def silences(self, trial_ids: Collection[int]) -> dict[int, float]:
        """For how many seconds the workers of trials have not been heard, by the database's clock."""
        if not trial_ids:
            return {}
        beat = models.TrialHeartbeatModel
        query = select(beat.trial_id, beat.heartbeat, func.now()).where(beat.trial_id.in_(trial_ids))
        return {
            trial_id: (now.replace(tzinfo=None) - heard.replace(tzinfo=None)) / timedelta(seconds=1)
            for trial_id, heard, now in self._storage.read(query)
        }

    def _refresh(self, study_id: int) -> bool:
        """Reads what is new; returns whether anything is, reports of running trials aside."""
        known, open_ = self._trials[study_id], self._open[study_id]
        trial = models.TrialModel
        # trials of one study are added under a lock on it: what is new has a higher id than all that is known
        news: ColumnElement[bool] = trial.trial_id > self._last[study_id]
        if open_:
            news = or_(news, trial.trial_id.in_(open_))
        here = (trial.study_id == study_id, news)
        rows = self._storage.read(select(trial.trial_id, trial.number, trial.state).where(*here))
        if not rows:
            return False
        attrs, values, reports = self._attrs(here), self._values(here), self._reports(here)
        before = {trial_id: known[trial_id].state for trial_id in open_}
        for trial_id, number, state in rows:
            self._last[study_id] = max(self._last[study_id], trial_id)
            user_attrs = attrs.get(trial_id, {})
            if ATTEMPT_KEY not in user_attrs:
                continue  # trials that others put into the study are none of ours
            point, replicate, attempt = user_attrs.pop(ATTEMPT_KEY).rsplit(" ", 2)
            user_attrs |= {"point": point, "replicate": int(replicate), "attempt": int(attempt)}
            known[trial_id] = FrozenTrial(
                number=number,
                state=state,
                value=values.get(trial_id),
                datetime_start=None,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs=user_attrs,
                system_attrs={},
                intermediate_values=reports[trial_id],
                trial_id=trial_id,
            )
            (open_.discard if state.is_finished() else open_.add)(trial_id)
        return any(before.get(trial_id) != state for trial_id, _, state in rows)

    def _attrs(self, here: Sequence[ColumnElement[bool]]) -> dict[int, dict[str, Any]]:
        attribute = models.TrialUserAttributeModel
        query = _of(here, attribute, attribute.key, attribute.value_json)
        return self._by_trial(query.where(attribute.key.in_(_KEYS)))

    def _by_trial(self, query: Select[Any]) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for trial_id, key, text in self._storage.read(query):
            found[trial_id][key] = json.loads(text)
        return found

    def _values(self, here: Sequence[ColumnElement[bool]]) -> dict[int, float]:
        model = models.TrialValueModel
        rows = self._storage.read(_of(here, model, model.value, model.value_type))
        return {trial_id: model.stored_repr_to_value(value, kind) for trial_id, value, kind in rows}

    def _reports(self, here: Sequence[ColumnElement[bool]]) -> dict[int, dict[int, float]]:
        model = models.TrialIntermediateValueModel
        query = _of(here, model, model.step, model.intermediate_value, model.intermediate_value_type)
        states = (TrialState.RUNNING, TrialState.FAIL)
        found: dict[int, dict[int, float]] = defaultdict(dict)
        for trial_id, step, value, kind in self._storage.read(
            query.where(models.TrialModel.state.in_(states))
        ):
            found[trial_id][step] = model.stored_repr_to_intermediate_value(value, kind)
        return found


def _of(here: Sequence[ColumnElement[bool]], model: Any, *columns: Any) -> Select[Any]:
    trial = models.TrialModel
    return select(model.trial_id, *columns).join(trial, trial.trial_id == model.trial_id).where(*here)
