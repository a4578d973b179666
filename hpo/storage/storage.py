"""A database URL becomes an Optuna storage that is safe to share, plus the few transactions of ours.

Optuna's own calls commit one row at a time, so a process that is killed between two of them leaves a
trial half written. What belongs together is written here in one transaction: a claim with its owner and
first heartbeat, an epoch with its report and metrics, an end with its reason.

It is long because all transactions on the trials of a plan are here: who locks what can be read in one place.
"""

from __future__ import annotations

import json
import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
import tenacity
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from hpo._process import JITTER
from hpo.errors import InputError, MissingError, StorageError, TrialLost
from hpo.space.parameters import Direction
from hpo.storage import database
from hpo.storage.optuna_views import StorageView
from hpo.storage.trials import (
    ATTEMPT_KEY,
    HISTORY,
    OUTLINE,
    WHOLE,
    Trials,
    add_trials,
    fetch,
    get_attr,
    lock,
    set_attrs,
    set_params,
    set_reports,
    set_value,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

# neither "A new study created in RDB" nor what it says of an outage, which is retried, is news to our users
optuna.logging.set_verbosity(optuna.logging.ERROR)

RETRY_SECONDS = 600  # no worker loses its trial in a shorter outage
MAX_WAIT_SECONDS = 1  # between two tries: heartbeats are back well within half a lease after an outage
TRIALS_PER_QUERY = 200  # whole ones: at eleven epochs some 5 MB
KEYS_PER_QUERY = 500  # SQLite takes so many arguments everywhere
HANGING_SECONDS = 1.0  # a call that takes longer is remembered: others may have waited as long
SUSPICION_KEY = "suspected"


class Storage:
    """One database that holds one plan.

    Args:
        url: SQLAlchemy URL (`sqlite:///hpo-out/hpo.db`, `postgresql+psycopg://…`).
        create: make the database and its tables where they are missing.
        reader: only reads; on SQLite it then never takes the write lock that claims need.
        patience_seconds: how long to wait for a server that is away or starting.

    Raises:
        MissingError: there is no such database and `create` is false.
        InputError: the URL cannot be used, or another major version of Optuna wrote the database.
    """

    def __init__(
        self, url: str, *, create: bool = False, reader: bool = False, patience_seconds: float = 0.0
    ) -> None:
        self.url = url
        self.name = database.shown(database.parse(url))
        """The URL as people may see it, without password."""
        self.is_sqlite = database.sqlite_file(url) is not None
        self._rdb, self._guard = database.open_rdb(
            url, create=create, reader=reader, patience_seconds=patience_seconds
        )
        self._whole = Trials(self._read, WHOLE)
        self._cached = StorageView(self._rdb, self._whole)
        self._for_samplers = StorageView(self._rdb, Trials(self._read, HISTORY))
        self.outlines = Trials(self._read, OUTLINE)
        """Where the trials of ours stand, for all who do not need more of them."""
        self._study_ids: dict[str, int] = {}
        self._disturbances: deque[tuple[float, float]] = deque(maxlen=100)
        """When calls ended that waited for the database, and how long they took; infinite after an error."""
        weakref.finalize(self, self._rdb.engine.dispose)  # connections end with the one who uses them

    @property
    def for_optuna(self) -> BaseStorage:
        """The storage as Optuna's own functions take it."""
        return self._cached

    # --- studies -------------------------------------------------------------------------------

    def create_study(self, name: str, attrs: Mapping[str, Any], direction: Direction) -> None:
        """Create a study, or find it; its attributes are written either way."""
        directions = [StudyDirection[direction.upper()]]
        try:
            study_id = self.retry(lambda: self._cached.create_new_study(directions, name))
        except optuna.exceptions.DuplicatedStudyError:
            study_id = self.study_id(name)
            ours = "options" in self.study_attrs()[name]
            if not ours and self.trials(study_id):
                raise InputError(
                    f"{self.name}: holds a study {name!r} that hpo did not make; use another database"
                ) from None
            if self._rdb.get_study_directions(study_id) != directions and not self.trials(study_id):
                # of a plan for another metric, whose making was cut short: samplers would look for the worst
                self.delete_studies([name])
                self.create_study(name, attrs, direction)
                return
        for key, value in attrs.items():
            self.set_study_attr(study_id, key, value)

    def study_id(self, name: str) -> int:
        """Return Optuna's id of a study.

        Raises:
            MissingError: there is no such study.
        """
        if name not in self._study_ids:
            try:
                self._study_ids[name] = self.retry(lambda: self._cached.get_study_id_from_name(name))
            except KeyError:
                raise MissingError(f"{self.name}: no study {name!r}") from None
        return self._study_ids[name]

    def study(self, name: str, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
        """Return the live Optuna study; its sampler is never asked, `hpo.planning.samplers.draw` is."""
        return self.retry(
            lambda: optuna.load_study(
                study_name=name,
                storage=self._for_samplers,
                sampler=optuna.samplers.RandomSampler(),
                pruner=pruner or optuna.pruners.NopPruner(),
            )
        )

    def study_attrs(self) -> dict[str, dict[str, Any]]:
        """Return the user attributes of every study, by study name, studies in the order of their creation.

        Raises:
            InputError: an attribute is not valid JSON.
        """
        study, attribute = models.StudyModel, models.StudyUserAttributeModel
        query = (
            sqlalchemy.select(study.study_name, attribute.key, attribute.value_json)
            .outerjoin(attribute, attribute.study_id == study.study_id)
            .order_by(study.study_id)
        )
        attrs: dict[str, dict[str, Any]] = {}
        for name, key, text in self.read(query):
            of_study = attrs.setdefault(name, {})
            if key is not None:
                of_study[key] = self._parsed(name, key, text)
        return attrs

    def _parsed(self, study: str, key: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self.name}: attribute {key!r} of study {study!r} is not valid JSON: {error}"
            ) from None

    def study_attr(self, study_id: int, key: str) -> Any:
        """Return one attribute of a study; None where it has none."""
        model = models.StudyUserAttributeModel
        query = sqlalchemy.select(model.value_json).where(model.study_id == study_id, model.key == key)
        return next((json.loads(text) for (text,) in self.read(query)), None)

    def set_study_attr(self, study_id: int, key: str, value: object) -> None:
        """Write one attribute of a study."""
        self.retry(lambda: self._cached.set_study_user_attr(study_id, key, value))

    def swap_study_attr(
        self,
        study_id: int,
        key: str,
        value: object,
        *,
        expected: Mapping[str, Any],
        elsewhere: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> bool:
        """Write one attribute, as `swap_study_attrs` does."""
        return self.swap_study_attrs(study_id, {key: value}, expected=expected, elsewhere=elsewhere)

    def swap_study_attrs(
        self,
        study_id: int,
        attrs: Mapping[str, Any],
        *,
        expected: Mapping[str, Any],
        elsewhere: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> bool:
        """Write attributes of a study, all or none, if nothing has changed that they depend on.

        Args:
            study_id: the study.
            attrs: to be written.
            expected: what the study must still have; None: nothing.
            elsewhere: likewise what other studies must, by their ids.

        Returns:
            Whether they are written now.
        """
        model = models.StudyUserAttributeModel
        demanded = {**(elsewhere or {}), study_id: expected}

        def transaction(session: Session) -> bool:
            # the locks that make looking and writing one step; in order, or two would wait for each other
            for each in sorted(demanded):
                models.StudyModel.find_or_raise_by_id(each, session, for_update=True)
            query = sqlalchemy.select(model).where(model.study_id.in_(demanded))
            rows: dict[tuple[Any, str], Any] = {
                (row.study_id, str(row.key)): row for row in session.scalars(query)
            }
            held = {place: json.loads(row.value_json) for place, row in rows.items()}
            if all(held.get((study_id, key)) == value for key, value in attrs.items()):
                return True  # an earlier try of ours may have committed before its connection broke
            if any(
                held.get((each, name)) != before
                for each, wanted in demanded.items()
                for name, before in wanted.items()
            ):
                return False
            for key, value in attrs.items():
                row = rows.get((study_id, key)) or model(study_id=study_id, key=key)
                row.value_json = json.dumps(value)
                session.add(row)
            return True

        return self._write(transaction)

    def system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return Optuna's own attributes of a study, and those of its dashboard."""
        with database.reading():
            return self.retry(lambda: self._rdb.get_study_system_attrs(study_id))

    def replace_system_attrs(self, study_id: int, owned: Sequence[str], attrs: Mapping[str, Any]) -> None:
        """Replace the system attributes of a study that begin with one of `owned`, in one transaction.

        Two that do it at once leave what one of them wanted, never a mixture.
        """
        model = models.StudySystemAttributeModel

        def transaction(session: Session) -> None:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            rows = session.execute(
                sqlalchemy.select(model.key, model.value_json).where(model.study_id == study_id)
            )
            there = {key: text for key, text in rows if key.startswith(tuple(owned))}
            wanted = {key: json.dumps(value) for key, value in attrs.items()}
            changed = [key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key)]
            for start in range(0, len(changed), KEYS_PER_QUERY):
                some = changed[start : start + KEYS_PER_QUERY]
                session.execute(
                    sqlalchemy.delete(model).where(model.study_id == study_id, model.key.in_(some))
                )
            new = [
                {"study_id": study_id, "key": key, "value_json": wanted[key]}
                for key in changed
                if key in wanted
            ]
            if new:
                session.execute(sqlalchemy.insert(model), new)

        self._write(transaction)

    def delete_studies(self, names: Collection[str]) -> None:
        """Delete studies with all that belongs to them, in one transaction."""
        study_ids = [self.study_id(name) for name in names]
        trial_ids = sqlalchemy.select(models.TrialModel.trial_id).where(
            models.TrialModel.study_id.in_(study_ids)
        )

        def transaction(session: Session) -> None:
            id_ = models.StudyModel.study_id
            # nobody adds a trial meanwhile; somebody else may have deleted them already
            session.execute(sqlalchemy.select(id_).where(id_.in_(study_ids)).order_by(id_).with_for_update())
            for table in reversed(models.BaseModel.metadata.sorted_tables):  # those before which others need
                if "study_id" in table.c:
                    session.execute(sqlalchemy.delete(table).where(table.c.study_id.in_(study_ids)))
                elif "trial_id" in table.c:
                    session.execute(sqlalchemy.delete(table).where(table.c.trial_id.in_(trial_ids)))

        self._write(transaction)
        self._study_ids.clear()

    def lifetime(self, study_ids: Collection[int]) -> tuple[datetime, datetime] | None:
        """Return when trials of studies first began and last did anything, in UTC; None: none has begun."""
        trial, beat = models.TrialModel.__table__.c, models.TrialHeartbeatModel
        least, most = sqlalchemy.func.min, sqlalchemy.func.max
        query = (
            sqlalchemy.select(
                least(trial.datetime_start),
                most(trial.datetime_start),
                most(trial.datetime_complete),
                most(beat.heartbeat),
            )
            .select_from(models.TrialModel)
            .outerjoin(beat, beat.trial_id == trial.trial_id)
            .where(trial.study_id.in_(study_ids))
        )
        ((first, *last),) = self.read(query)
        times = [time.replace(tzinfo=UTC) for time in (first, *last) if time is not None]
        return (times[0], max(times)) if first is not None else None

    def trials(self, study_id: int) -> list[FrozenTrial]:
        """Return all trials of a study, by number. Finished ones come from memory: do not change them."""
        return self._whole.of(study_id)

    def whole(self, trial_ids: Sequence[int]) -> Iterator[FrozenTrial]:
        """Yield some trials as they stand in the database now, in the order of the ids; a few at a time."""
        for start in range(0, len(trial_ids), TRIALS_PER_QUERY):
            some = trial_ids[start : start + TRIALS_PER_QUERY]
            trials = {trial._trial_id: trial for trial in self._fetch(models.TrialModel.trial_id.in_(some))}
            yield from (trials[trial_id] for trial_id in some)

    def numbered(self, study_id: int, number: int) -> FrozenTrial | None:
        """Return the trial of a study that has this number; None where there is none."""
        trial = models.TrialModel
        return next(iter(self._fetch(trial.study_id == study_id, trial.number == number)), None)

    def _fetch(self, *where: sqlalchemy.ColumnElement[bool]) -> list[FrozenTrial]:
        return self._read(lambda session: fetch(session, WHOLE, *where))

    def seconds_since_heartbeat(self, trial_ids: Collection[int]) -> dict[int, float]:
        """Return seconds since the last heartbeat of trials, by id, by the database's clock."""
        if not trial_ids:
            return {}
        beat = models.TrialHeartbeatModel
        query = sqlalchemy.select(beat.trial_id, beat.heartbeat, self._clock())
        return {
            trial_id: (now.replace(tzinfo=None) - heard.replace(tzinfo=None)) / timedelta(seconds=1)
            for trial_id, heard, now in self.read(query.where(beat.trial_id.in_(trial_ids)))
        }

    # --- trials: each of these is one transaction ------------------------------------------------

    def enqueue(self, study_id: int, trials: Mapping[str, FrozenTrial], *, after: int = -1) -> int:
        """Add trials in one transaction; a trial whose key the study has already is left out.

        Args:
            study_id: the study's.
            trials: parameters and user attributes, by key; WAITING, or ended elsewhere with a result.
            after: no trial up to this id has one of the keys.

        Returns:
            How many the study did not have.
        """
        if not trials:
            return 0

        def transaction(session: Session) -> int:
            # the lock that Optuna itself takes to number trials; it makes looking and adding one step
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial, attribute = models.TrialModel, models.TrialUserAttributeModel
            queued = session.scalars(
                sqlalchemy.select(attribute.value_json)
                .join(trial, trial.trial_id == attribute.trial_id)
                .where(trial.study_id == study_id, trial.trial_id > after, attribute.key == ATTEMPT_KEY)
            )
            there = set(queued)
            new = {key: trials[key] for key in trials if json.dumps(key) not in there}
            add_trials(session, study_id, new)
            return len(new)

        return self._write(transaction)

    def waiting(self, study_ids: Sequence[int], limit: int) -> list[tuple[int, int]]:
        """Return our first WAITING trials as (study id, trial id): older studies first, then by number.

        A sample that is tried again comes before the rest of its study: after a kill a worker alone goes on
        where it was, so that the sampler sees what it would have seen. What kills its workers is never among
        the first of a grid. Much cheaper than all of `trials`.
        """
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        key = attribute.value_json  # of a sample `"#INDEX REPLICATE ATTEMPT"`
        is_again = sqlalchemy.and_(key.like('"#%'), sqlalchemy.not_(key.like('% 1"')))
        query = (
            sqlalchemy.select(trial.study_id, trial.trial_id)
            .join(attribute, (attribute.trial_id == trial.trial_id) & (attribute.key == ATTEMPT_KEY))
            .where(self._may_be_open(study_ids), trial.state == TrialState.WAITING)
            .order_by(trial.study_id, sqlalchemy.case((is_again, 0), else_=1), trial.number)
            .limit(limit)
        )
        return [(study_id, trial_id) for study_id, trial_id in self.read(query)]

    def running(self, study_id: int) -> list[tuple[int, int, dict[str, Any]]]:
        """Return the RUNNING trials of ours in a study as (trial id, number, owner)."""
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        query = (
            # claimed by us: those that others put into the study have no owner
            sqlalchemy.select(trial.trial_id, trial.number, attribute.value_json)
            .join(attribute, (attribute.trial_id == trial.trial_id) & (attribute.key == "owner"))
            .where(self._may_be_open([study_id]), trial.state == TrialState.RUNNING)
            .order_by(trial.number)
        )
        return [(id_, number, json.loads(owner)) for id_, number, owner in self.read(query)]

    def owners(self, study_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return who has claimed trials of studies, ended ones too; each once."""
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        query = (
            sqlalchemy.select(attribute.value_json)
            .join(trial, trial.trial_id == attribute.trial_id)
            .where(trial.study_id.in_(study_ids), attribute.key == "owner")
            .distinct()
        )
        return [json.loads(owner) for (owner,) in self.read(query)]

    def counts(self, first: Mapping[int, int]) -> dict[tuple[int, TrialState], int]:
        """Return how many trials there are, by study id and state.

        Args:
            first: the trial id to count from, by study id.
        """
        study_id, state = models.TrialModel.study_id, models.TrialModel.state
        query = (
            sqlalchemy.select(study_id, state, sqlalchemy.func.count())
            .where(_from(first))
            .group_by(study_id, state)
        )
        return {(id_, state): count for id_, state, count in self.read(query)}

    def values_of(self, study_id: int, key: str) -> dict[int, Any]:
        """Return a user attribute of the trials of a study that have it, by trial id."""
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        query = (
            sqlalchemy.select(trial.trial_id, attribute.value_json)
            .join(attribute, trial.trial_id == attribute.trial_id)
            .where(trial.study_id == study_id, attribute.key == key)
        )
        return {trial_id: json.loads(text) for trial_id, text in self.read(query)}

    def sums(self, study_ids: Sequence[int], keys: Sequence[str]) -> dict[tuple[int, str], float]:
        """Return the sums of user attributes that are numbers, by study id and key, over all its trials."""
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        value = sqlalchemy.cast(attribute.value_json, sqlalchemy.Double)
        query = (
            sqlalchemy.select(trial.study_id, attribute.key, sqlalchemy.func.sum(value))
            .join(attribute, attribute.trial_id == trial.trial_id)
            .where(trial.study_id.in_(study_ids), attribute.key.in_(keys))
            .group_by(trial.study_id, attribute.key)
        )
        return {(study_id, key): float(total) for study_id, key, total in self.read(query)}

    def first_open(self, study_ids: Sequence[int]) -> dict[int, int]:
        """Return by study id a trial id below which all have ended, as far as this process has seen."""
        return {study_id: self.outlines.first_open(study_id) for study_id in study_ids}

    def _may_be_open(self, study_ids: Sequence[int]) -> sqlalchemy.ColumnElement[bool]:
        return _from(self.first_open(study_ids))

    def claim(self, trial_id: int, owner: Mapping[str, Any]) -> bool:
        """Make a WAITING trial ours, with owner and first heartbeat; False when somebody was quicker."""

        def transaction(session: Session) -> bool:
            claimed = session.execute(
                sqlalchemy.update(models.TrialModel)
                .where(models.TrialModel.trial_id == trial_id, models.TrialModel.state == TrialState.WAITING)
                .values(state=TrialState.RUNNING, datetime_start=self._clock())
                .execution_options(synchronize_session=False)
            )
            if claimed.rowcount == 1:  # type: ignore[attr-defined]
                session.add(models.TrialHeartbeatModel(trial_id=trial_id, heartbeat=self._clock()))
                set_attrs(session, trial_id, {"owner": dict(owner)})
                return True
            # an earlier try of ours may have committed before its connection broke
            is_running = lock(session, trial_id) == TrialState.RUNNING
            return is_running and bool(get_attr(session, trial_id, "owner") == dict(owner))

        return self._write(transaction)

    def heartbeat(self, trial_id: int) -> None:
        """Renew the lease on a trial."""
        beat = models.TrialHeartbeatModel
        renew = sqlalchemy.update(beat).where(beat.trial_id == trial_id)
        self._write(lambda session: session.execute(renew.values(heartbeat=self._clock())))

    def write(
        self,
        trial_id: int,
        *,
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
        reports: Mapping[int, float] | None = None,
    ) -> None:
        """Write parameters, attributes and reports of a running trial together.

        Raises:
            TrialLost: somebody closed the trial.
        """

        def transaction(session: Session) -> None:
            self._lock_open(session, trial_id)
            set_params(session, trial_id, params or {}, distributions or {})
            set_attrs(session, trial_id, attrs or {})
            set_reports(session, trial_id, reports or {})

        try:
            self._write(transaction)
        except UpdateFinishedTrialError:
            raise TrialLost(f"trial {trial_id} was closed by somebody else") from None

    def _lock_open(self, session: Session, trial_id: int) -> None:
        """Check that a trial is open; nobody closes it between this and the commit."""
        state = lock(session, trial_id)
        if state is None:
            raise TrialLost(f"trial {trial_id} is not in the database any more: its study was deleted")
        self._rdb.check_trial_is_updatable(trial_id, state)

    def finish(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
        patience_seconds: float = RETRY_SECONDS,
    ) -> None:
        """End a trial, with its last attributes (they are refused afterwards).

        Raises:
            TrialLost: somebody else had closed the trial.
            StorageError: the database was away for longer than `patience_seconds`.
        """

        def transaction(session: Session) -> None:
            self._lock_open(session, trial_id)
            set_attrs(session, trial_id, attrs or {})
            if value is not None:
                set_value(session, trial_id, value)
            session.execute(
                sqlalchemy.update(models.TrialModel)
                .where(models.TrialModel.trial_id == trial_id)
                .values(state=state, datetime_complete=self._clock())
                .execution_options(synchronize_session=False)
            )

        try:
            self._write(transaction, patience_seconds)
        except UpdateFinishedTrialError:
            # Others only ever close a trial as FAIL: any other end is a try of ours that had committed.
            if state == TrialState.FAIL or self.trial(trial_id).state != state:
                raise TrialLost(f"trial {trial_id} was closed by somebody else") from None

    def trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial as it stands in the database now."""
        (trial,) = self.whole([trial_id])
        return trial

    def stale(self, study_id: int, lease_seconds: float) -> list[int]:
        """Return ids of our RUNNING trials without a heartbeat for a lease, by the database's clock.

        Silence alone is no proof: while the database was away nobody could be heard. So it takes two looks,
        half a lease apart. The first writes a suspicion, and a live worker has time to answer it by a
        heartbeat; the second finds the suspicion unanswered. One that nobody followed up, or that is from
        before this process's own connection broke, is void and written anew.
        """
        half = timedelta(seconds=lease_seconds / 2)
        owner = models.TrialUserAttributeModel

        def transaction(session: Session) -> list[int]:
            now = session.execute(sqlalchemy.select(self._clock())).scalar_one().replace(tzinfo=None)
            trial, beat_of = models.TrialModel, models.TrialHeartbeatModel
            rows = session.execute(
                sqlalchemy.select(trial.trial_id, beat_of.heartbeat)
                .join(owner, (owner.trial_id == trial.trial_id) & (owner.key == "owner"))
                .outerjoin(beat_of, beat_of.trial_id == trial.trial_id)
                .where(self._may_be_open([study_id]), trial.state == TrialState.RUNNING)
            ).all()
            lost = []
            for trial_id, beat in rows:
                if beat is not None and abs(now - beat.replace(tzinfo=None)) <= half:  # a clock may be set
                    continue
                if lock(session, trial_id) != TrialState.RUNNING:
                    continue  # it ended since the query
                suspicion = get_attr(session, trial_id, SUSPICION_KEY) or {}
                age = now - datetime.fromisoformat(suspicion["at"]) if suspicion else timedelta.max
                is_void = not timedelta(0) <= age <= 2 * half or self._disturbed(half)
                if suspicion.get("heartbeat") != str(beat) or is_void:
                    suspicion = {"at": now.isoformat(), "heartbeat": str(beat)}
                    set_attrs(session, trial_id, {SUSPICION_KEY: suspicion})
                elif age >= half:
                    lost.append(trial_id)
            return lost

        return self._write(transaction)

    def _disturbed(self, within: timedelta) -> bool:
        """Return whether workers may have been unheard lately, so that silence proves nothing.

        A third of half a lease is what they let pass between two heartbeats. A shorter wait leaves room for
        one; and where every look takes seconds, on a slow machine, the lost are to be found nevertheless.
        """
        now, seconds = time.monotonic(), within.total_seconds()
        return any(now - ended < seconds and took > seconds / 3 for ended, took in self._disturbances)

    # --- how ------------------------------------------------------------------------------------

    def _clock(self) -> sqlalchemy.ColumnElement[datetime]:
        """Return the time now by the one clock of all who use the database, for a query."""
        return sqlalchemy.literal(_machine_time()) if self.is_sqlite else sqlalchemy.func.now()

    def check_in_place(self) -> None:
        """Check that the database is the one that was opened, more closely than every transaction does.

        Raises:
            DatabaseGoneError: its file was removed, replaced or overwritten.
        """
        if self._guard is not None:
            self._guard.check_content()

    def retry(self, call: Callable[[], T], patience_seconds: float = RETRY_SECONDS) -> T:
        """Call, and again with back-off while the database is locked or away.

        Raises:
            DatabaseGoneError: as from `check_in_place`.
            StorageError: it was away for longer than `patience_seconds`, or does not take what is written
                (a full disk, no right to write).
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(database.is_passing),
            wait=_back_off,
            stop=tenacity.stop_after_delay(patience_seconds),
            before_sleep=self._note_disturbance,
            reraise=True,
        )
        began = time.monotonic()
        try:
            return retrying(call)
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            self.check_in_place()  # the reason, where somebody has overwritten the file
            raise StorageError(f"{self.name}: {database.first_line(error)}") from error
        finally:
            ended = time.monotonic()
            if ended - began > HANGING_SECONDS:  # a server that hangs raises nothing
                self._disturbances.append((ended, ended - began))

    def _note_disturbance(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.attempt_number == 3:  # of the first tries nobody needs to know
            log.warning("%s: %s; trying again", self.name, database.first_line(error))
        self._disturbances.append((time.monotonic(), math.inf))

    def read(self, query: sqlalchemy.Select[Any]) -> Sequence[Any]:
        """Return the rows of a query on Optuna's tables."""
        return self._read(lambda session: session.execute(query).all())

    def _read(self, transaction: Callable[[Session], T]) -> T:
        with database.reading():
            return self._write(transaction)

    def _write(self, transaction: Callable[[Session], T], patience_seconds: float = RETRY_SECONDS) -> T:
        def attempt() -> T:
            with _create_scoped_session(self._rdb.scoped_session) as session:
                return transaction(session)

        return self.retry(attempt, patience_seconds)


def _back_off(state: tenacity.RetryCallState) -> float:
    return JITTER.uniform(0, min(MAX_WAIT_SECONDS, 0.1 * 2 ** min(state.attempt_number - 1, 10)))


def _machine_time() -> datetime:
    """Return the time by the kernel's clock, naive UTC as Optuna's columns hold it.

    Each process of a machine may have been given a clock of its own, and SQLite asks that of who uses it.
    """
    stat, uptime = Path("/proc/stat"), Path("/proc/uptime")
    # some containers are shown a file of their own there, which does not belong to the other one
    if not uptime.exists() or uptime.stat().st_dev != Path("/proc").stat().st_dev:
        return datetime.now(UTC).replace(tzinfo=None)
    booted = next(line for line in stat.read_text().splitlines() if line.startswith("btime")).split()[1]
    since = float(uptime.read_text().split()[0])
    return datetime.fromtimestamp(int(booted) + since, UTC).replace(tzinfo=None)


def _from(first: Mapping[int, int]) -> sqlalchemy.ColumnElement[bool]:
    """Return the trials of studies from a trial id on: an index finds them, however many there are before."""
    trial = models.TrialModel
    return sqlalchemy.or_(
        *((trial.study_id == study_id) & (trial.trial_id >= id_) for study_id, id_ in first.items())
    )
