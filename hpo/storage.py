"""A database URL becomes an Optuna storage that is safe to share, plus the few transactions of ours.

Optuna's own calls commit one row at a time, so a process that is killed between two of them leaves a
trial half written. What belongs together is written here in one transaction: a claim with its owner and
first heartbeat, an epoch with its report and figures, an end with its reason.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
import tenacity
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from hpo.errors import InputError, MissingError, TrialLost

T = TypeVar("T")
log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created in RDB" is no news to our users

SQLITE_BUSY_SECONDS = 60
RETRY_SECONDS = 600  # an outage shorter than this costs nobody his trial
ATTEMPT_KEY = "attempt_key"
OPTUNA_MAJOR = optuna.__version__.split(".")[0]


class Storage:
    """One database that holds one plan.

    Args:
        url: SQLAlchemy URL (`sqlite:///hpo-out/hpo.db`, `postgresql+psycopg://…`).
        create: make the database and its tables where they are missing.
        reader: only reads; on SQLite it then never takes the write lock that claims need.

    Raises:
        MissingError: there is no such database and `create` is false.
        InputError: the URL cannot be used, or another major version of Optuna wrote the database.
    """

    def __init__(self, url: str, *, create: bool = False, reader: bool = False) -> None:
        self.url = _checked_url(url)
        self.name = make_url(self.url).render_as_string(hide_password=True)
        file = sqlite_file(self.url)
        if file is not None and not file.exists():
            if not create:
                raise MissingError(
                    f"{file}: no database here; `hpo run` or `hpo create` makes one, --out names another"
                )
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{file.parent}: cannot be made: {error}") from None
        self._rdb = _open(self.url, file, reader=reader)
        _refuse_other_major(self._rdb, self.name)
        if file is not None:
            _make_sqlite_safe(self._rdb.engine, reader=reader)
        self._cached = _CachedStorage(self._rdb)

    @property
    def for_optuna(self) -> BaseStorage:
        """The storage as Optuna's own functions take it."""
        return self._cached

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Lets one process of this host at a time look for a plan and write one."""
        with _lock(sqlite_file(self.url)):
            yield

    # --- studies -------------------------------------------------------------------------------

    def create_study(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Creates a study that maximises, or finds it; its attributes are written either way."""
        try:
            study_id = self.retry(lambda: self._cached.create_new_study([StudyDirection.MAXIMIZE], name))
        except optuna.exceptions.DuplicatedStudyError:
            study_id = self.study_id(name)
            ours = "options" in self.study_attrs()[name]
            if not ours and self.trials(study_id):
                raise InputError(
                    f"{self.name}: holds a study {name!r} that hpo did not make; use another database"
                ) from None
        for key, value in attrs.items():
            self.set_study_attr(study_id, key, value)

    def study_id(self, name: str) -> int:
        """Optuna's id of a study.

        Raises:
            MissingError: there is no such study.
        """
        try:
            return self.retry(lambda: self._cached.get_study_id_from_name(name))
        except KeyError:
            raise MissingError(f"{self.name}: no study {name!r}") from None

    def study(self, name: str, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
        """The live Optuna study; its sampler is never asked, `sampling.draw` is."""
        return self.retry(
            lambda: optuna.load_study(
                study_name=name,
                storage=self._cached,
                sampler=optuna.samplers.RandomSampler(),
                pruner=pruner or optuna.pruners.NopPruner(),
            )
        )

    def study_attrs(self) -> dict[str, dict[str, Any]]:
        """The user attributes of every study, by study name."""
        return {study.study_name: study.user_attrs for study in self.retry(self._rdb.get_all_studies)}

    def set_study_attr(self, study_id: int, key: str, value: object) -> None:
        """Writes one attribute of a study."""
        self.retry(lambda: self._cached.set_study_user_attr(study_id, key, value))

    def trials(self, study_id: int) -> list[FrozenTrial]:
        """All trials of a study, by number. Finished ones come from memory: do not change them."""
        return self.retry(lambda: self._cached.get_all_trials(study_id, deepcopy=False))

    # --- trials: each of these is one transaction ------------------------------------------------

    def enqueue(self, study_id: int, trials: Mapping[str, FrozenTrial]) -> None:
        """Adds WAITING trials in one transaction; a trial whose key the study has already is left out."""
        if not trials:
            return

        def transaction(session: Session) -> None:
            # the lock that Optuna itself takes to number trials; it makes looking and adding one step
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            queued = session.scalars(
                sqlalchemy.select(models.TrialUserAttributeModel.value_json)
                .join(models.TrialModel)
                .where(
                    models.TrialModel.study_id == study_id, models.TrialUserAttributeModel.key == ATTEMPT_KEY
                )
            )
            there = {json.loads(str(key)) for key in queued}
            for key, template in trials.items():
                if key not in there:
                    trial = self._rdb._get_prepared_new_trial(study_id, template, session)
                    self._set_attrs(session, trial.trial_id, {ATTEMPT_KEY: key})  # type: ignore[arg-type]
                    session.flush()  # the next one is numbered by those before it

        self._write(transaction)

    def claim(self, trial_id: int, owner: Mapping[str, Any]) -> bool:
        """Makes a WAITING trial ours, with owner and first heartbeat; False when somebody was quicker."""

        def transaction(session: Session) -> bool:
            claimed = session.execute(
                sqlalchemy.update(models.TrialModel)
                .where(models.TrialModel.trial_id == trial_id, models.TrialModel.state == TrialState.WAITING)
                .values(state=TrialState.RUNNING, datetime_start=datetime.now())
                .execution_options(synchronize_session=False)
            )
            if claimed.rowcount == 1:  # type: ignore[attr-defined]
                session.add(models.TrialHeartbeatModel(trial_id=trial_id))
                self._set_attrs(session, trial_id, {"owner": dict(owner)})
                return True
            # an earlier try of ours may have committed before its connection broke
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
            found = models.TrialUserAttributeModel.find_by_trial_and_key(trial, "owner", session)
            running = bool(trial.state == TrialState.RUNNING)
            return running and found is not None and json.loads(str(found.value_json)) == dict(owner)

        return self._write(transaction)

    def heartbeat(self, trial_id: int) -> None:
        """Renews the lease on a trial."""
        self.retry(lambda: self._rdb.record_heartbeat(trial_id))

    def write(
        self,
        trial_id: int,
        *,
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
        reports: Mapping[int, float] | None = None,
    ) -> None:
        """Writes parameters, attributes and reports of a running trial together.

        Raises:
            TrialLost: somebody closed the trial.
        """

        def transaction(session: Session) -> None:
            for name, value in (params or {}).items():
                distribution = (distributions or {})[name]
                internal = distribution.to_internal_repr(value)
                self._rdb._set_trial_param_without_commit(session, trial_id, name, internal, distribution)
            self._set_attrs(session, trial_id, attrs or {})
            for step, report in (reports or {}).items():
                self._rdb._set_trial_intermediate_value_without_commit(session, trial_id, step, report)

        try:
            self._write(transaction)
        except UpdateFinishedTrialError:
            raise TrialLost(f"trial {trial_id} was closed by somebody else") from None

    def finish(
        self,
        trial_id: int,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends a trial, with its last attributes (they are refused afterwards).

        Raises:
            TrialLost: somebody else had closed the trial.
        """

        def transaction(session: Session) -> None:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self._rdb.check_trial_is_updatable(trial_id, trial.state)  # type: ignore[arg-type]
            self._set_attrs(session, trial_id, attrs or {})
            if value is not None:
                self._rdb._set_trial_value_without_commit(session, trial, 0, value)
            trial.state = state
            trial.datetime_complete = datetime.now()

        try:
            self._write(transaction)
        except UpdateFinishedTrialError:
            # Others only ever close a trial as FAIL: any other end is a try of ours that had committed.
            if state == TrialState.FAIL or self.trial(trial_id).state != state:
                raise TrialLost(f"trial {trial_id} was closed by somebody else") from None

    def trial(self, trial_id: int) -> FrozenTrial:
        """One trial as it stands in the database now."""
        return self.retry(lambda: self._rdb.get_trial(trial_id))

    def stale(self, study_id: int, lease_seconds: float) -> list[int]:
        """Ids of the RUNNING trials whose last heartbeat is older than the lease, by the database's clock."""

        def transaction(session: Session) -> list[int]:
            now = session.execute(sqlalchemy.func.now()).scalar_one().replace(tzinfo=None)
            rows = session.execute(
                sqlalchemy.select(models.TrialModel.trial_id, models.TrialHeartbeatModel.heartbeat)
                .outerjoin(
                    models.TrialHeartbeatModel,
                    models.TrialHeartbeatModel.trial_id == models.TrialModel.trial_id,
                )
                .where(models.TrialModel.study_id == study_id, models.TrialModel.state == TrialState.RUNNING)
            )
            lease = timedelta(seconds=lease_seconds)
            return [id_ for id_, beat in rows if beat is None or now - beat.replace(tzinfo=None) > lease]

        return self._write(transaction)

    # --- how ------------------------------------------------------------------------------------

    def retry(self, call: Callable[[], T]) -> T:
        """Calls, and again with back-off while the database is locked or away."""
        return _RETRYING(call)

    def _write(self, transaction: Callable[[Session], T]) -> T:
        def attempt() -> T:
            with _create_scoped_session(self._rdb.scoped_session) as session:
                return transaction(session)

        return self.retry(attempt)

    def _set_attrs(self, session: Session, trial_id: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._rdb._set_trial_attr_without_commit(
                session, models.TrialUserAttributeModel, trial_id, key, value
            )


def _is_passing(error: BaseException) -> bool:
    # Optuna wraps every SQLAlchemy error in one class; only a locked or absent database is worth another try
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return False
    # a full or read-only disk does not pass by itself
    return not isinstance(cause.orig, sqlite3.Error) or "locked" in str(cause.orig)


_RETRYING = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_passing),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
    stop=tenacity.stop_after_delay(RETRY_SECONDS),
    before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
    reraise=True,
)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases."""
    parsed = make_url(_checked_url(url))
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise InputError(f"--storage {url}: an in-memory database cannot be shared; give sqlite:///FILE")
    return Path(parsed.database)


def _checked_url(url: str) -> str:
    try:
        make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(
            f"--storage {url!r} is no database URL; like sqlite:///hpo.db or postgresql+psycopg://host/name"
        ) from None
    return url


@contextmanager
def _lock(file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    with FileLock(f"{file}.lock"):
        yield


def _open(url: str, file: Path | None, *, reader: bool) -> RDBStorage:
    engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if file is not None:
        engine_kwargs = {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
    try:
        # several processes that create the tables at once crash each other; a reader creates none
        with _lock(None if reader else file), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(url, engine_kwargs=engine_kwargs)
    except OSError as error:
        raise InputError(f"{url}: cannot be opened: {error}") from None
    except ImportError as error:
        raise InputError(
            f"{make_url(url).render_as_string()}: the driver is not installed ({error})"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise InputError(f"{make_url(url).render_as_string()}: cannot be opened: {reason}") from None


def _refuse_other_major(rdb: RDBStorage, name: str) -> None:
    with _create_scoped_session(rdb.scoped_session) as session:
        info = models.VersionInfoModel.find(session)
        wrote = info.library_version if info is not None else optuna.__version__
    if wrote.split(".")[0] != OPTUNA_MAJOR:
        # their time stamps differ, so leases and durations would be wrong
        raise InputError(
            f"{name}: written by Optuna {wrote}, this is Optuna {optuna.__version__}; use one major version"
        )


def _make_sqlite_safe(engine: sqlalchemy.Engine, *, reader: bool) -> None:
    """Makes claims atomic: as Optuna opens SQLite, a transaction that reads first and writes later is not."""
    engine.dispose()  # connections made before the listeners would not have them

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # pysqlite must not begin on its own
        if reader:
            return  # the mode is the file's, and a reader may have no right to change it
        connection.execute("PRAGMA journal_mode=WAL")
        # In WAL mode NORMAL is safe against a killed process and never corrupts; after a power cut the last
        # commits may be missing, and their epochs are trained again from the checkpoint.
        connection.execute("PRAGMA synchronous=NORMAL")

    # A reader's transaction is one too: Optuna reads a trial with several queries, which must agree.
    begin = "BEGIN" if reader else "BEGIN IMMEDIATE"

    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(begin)
