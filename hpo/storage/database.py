"""A database URL becomes an engine that is safe to share between processes and machines.

SQLite serves one machine; PostgreSQL and MySQL/MariaDB serve many. Nothing here knows what a trial is.

It is long because nearly all that differs between the databases is here; how they
insert or update a row is in `trials`, and how they tell the time in `hpo doctor`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import optuna
import psutil
import sqlalchemy
import tenacity
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session, _VersionManager
from sqlalchemy.engine import URL, make_url

from hpo._files import user_path
from hpo._lock import held, locked
from hpo._process import JITTER
from hpo.errors import DatabaseGoneError, InputError, MissingError, install

T = TypeVar("T")
log = logging.getLogger(__name__)

DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
"""The driver that hpo is tested with, by kind of database; the extras of `pip install` bring them."""
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

FILE_NAME = "hpo.db"
"""Of the database in an output folder."""
SQLITE_BUSY_SECONDS = 60
VERSION_TABLE = "alembic_version"
IMPATIENT_SECONDS = 10  # of who only wants to know whether there is a lock
CONNECT_SECONDS = 30
STATEMENT_SECONDS = 60
OPTUNA_MAJOR = optuna.__version__.split(".")[0]

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "ncpfs", "webdav", "davfs"),
        *("fuse.davfs", "sshfs", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse"),
        *("lustre", "gpfs", "beegfs", "fhgfs_client", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs"),
        *("panfs", "pvfs2", "ocfs2", "gfs2"),
    )
)
"""Kinds on which SQLite's locks or its shared memory do not work between machines."""


def default_url(out: str | Path) -> str:
    """Return the URL of the database in an output folder.

    Raises:
        InputError: no URL can name it.
    """
    file = str(user_path(out) / FILE_NAME)
    url = f"sqlite:///{file}"
    if make_url(url).database != file:
        raise InputError(f"--out {out}: no database URL can name a file there; take a name without ? and %")
    return url


def url_of(place: str) -> str:
    """Return the URL of the database that an output folder has, or of one that a URL names already.

    Raises:
        InputError: no URL can name it.
    """
    return place if "://" in place else default_url(place)


def has_password(url: str) -> bool:
    """Return whether a URL has a password, in its query too."""
    return shown(url) != make_url(url).render_as_string(hide_password=False)


def is_same(one: str, other: str) -> bool:
    """Return whether two URLs name the same database, as far as they tell."""
    files = sqlite_file(one), sqlite_file(other)
    if files[0] is None or files[1] is None:
        return parse(one) == parse(other)
    return files[0].resolve() == files[1].resolve()


def default_name(url: str) -> str:
    """Return what a plan is called that nobody has named: as its folder, or its database on a server."""
    file = sqlite_file(url)
    if file is None:
        return plan_of(parse(url)) or parse(url).database or ""
    file = file.resolve()
    return file.parent.name if file.name == FILE_NAME and file.parent.name else file.stem


def parse(url: str) -> URL:
    """Return the parts of a database URL; the driver that hpo uses and the home that ~ means are filled in.

    Raises:
        InputError: no URL, or of a database that hpo does not know. A password in it is not shown.
    """
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # the text may hold a password in any form: it is not repeated
        raise InputError(
            "--storage is not a database URL, like sqlite:///hpo.db or postgresql+psycopg://host/name"
        ) from None
    kind = parsed.get_backend_name()
    if kind != "sqlite" and url.partition("?")[0].count("@") > 1:
        # SQLAlchemy takes what follows the first @ for the host, and hosts are shown
        raise InputError("--storage: more than one @; in a user name or a password write %40 for it")
    if kind not in DRIVERS:
        known = ", ".join(f"{driver}://" for driver in dict.fromkeys(DRIVERS.values()))
        raise InputError(f"--storage {shown(parsed)}: {kind!r} is not a database for hpo; known: {known}")
    if parsed.drivername == kind:
        parsed = parsed.set(drivername=DRIVERS[kind])
    if parsed.drivername != DRIVERS[kind]:
        raise InputError(
            f"--storage {shown(parsed)}: the driver {parsed.get_driver_name()!r} is not supported; "
            f"write {DRIVERS[kind]}://"
        )
    if kind == "sqlite":
        return parsed.set(database=str(_sqlite_path(url, parsed)))
    # SQLAlchemy passes over a parameter that is empty, as where a shell's variable is not set
    plan = "" if re.search(rf"[?&]{PLAN_KEY}=(&|$)", url) else parsed.query.get(PLAN_KEY)
    if plan is not None and not re.fullmatch(_PLAN_NAME, str(plan)):
        raise InputError(
            f"--storage {shown(parsed)}: {PLAN_KEY}= takes up to 40 lower-case letters, digits, - and _, "
            "a letter or digit first"
        )
    return parsed


# --- many plans in one database of a server ----------------------------------------------------------------
#
# Each has Optuna's tables for itself, where nobody else's are: on PostgreSQL in a schema, on MySQL, which has
# none, in a database beside the one that is named. A prefix to study names in common tables would be seen in
# every query, in Optuna's dashboard and by who opens a study in plain Optuna; and a plan of 10,000 trials
# would slow its neighbours down.

PLAN_KEY = "plan"
"""The parameter of a URL that names one of several plans in a database."""
_PLAN_NAME = r"[a-z0-9][a-z0-9_-]{0,39}"


def plan_of(parsed: URL) -> str | None:
    """Return the name of the plan that a URL names beside the database; None: the database is its own."""
    found = parsed.query.get(PLAN_KEY)
    return None if found is None else str(found)


def _room(parsed: URL) -> str:
    """Return the schema, on MySQL the database, that has the tables of a plan beside others."""
    is_postgresql = parsed.get_backend_name() == "postgresql"
    return f"hpo_{plan_of(parsed)}" if is_postgresql else f"{parsed.database}${plan_of(parsed)}"


def _address(parsed: URL) -> URL:
    """Return a URL as SQLAlchemy's driver takes it."""
    if plan_of(parsed) is None:
        return parsed
    bare = _without_plan(parsed)
    return bare if parsed.get_backend_name() == "postgresql" else bare.set(database=_room(parsed))


def _without_plan(parsed: URL) -> URL:
    return parsed.difference_update_query([PLAN_KEY])


def _written(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def _house(parsed: URL) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection to the database that has the rooms of all plans, which commits each statement."""
    with short_lived_connection(_written(_without_plan(parsed))) as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def plans_on(url: str) -> list[str]:
    """Return URLs of a database and of the plans beside it; of one that names a plan, itself alone.

    A database that has no tables of its own is left out, where it has others' rooms.

    Raises:
        InputError: it cannot be opened.
    """
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite" or plan_of(parsed) is not None:
        return [url]
    is_postgresql = parsed.get_backend_name() == "postgresql"
    names, head = (
        ("nspname FROM pg_namespace", "hpo_")
        if is_postgresql
        else (
            "schema_name FROM information_schema.schemata",
            f"{parsed.database}$",
        )
    )

    def look() -> tuple[list[str], bool]:
        with _house(parsed) as house:
            found = [name for (name,) in house.exec_driver_sql(f"SELECT {names}") if name.startswith(head)]
            return sorted(room.removeprefix(head) for room in found), _has_tables(house)

    plans, is_plan = _told(parsed, look)
    beside = [
        _written(parsed.update_query_dict({PLAN_KEY: plan}))
        for plan in plans
        if re.fullmatch(_PLAN_NAME, plan)
    ]
    return [url, *beside] if is_plan or not beside else beside


def _has_room(parsed: URL) -> bool:
    """Return whether a server has what the tables of a plan would be in."""
    if plan_of(parsed) is None or parsed.get_backend_name() == "postgresql":
        return True  # a schema that is not there is one without tables
    query = "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s"
    with _house(parsed) as house:
        return house.exec_driver_sql(query, (_room(parsed),)).first() is not None


def _make_room(parsed: URL) -> None:
    if plan_of(parsed) is None:
        return
    with _house(parsed) as house:
        kind = "SCHEMA" if parsed.get_backend_name() == "postgresql" else "DATABASE"
        room = house.dialect.identifier_preparer.quote_identifier(_room(parsed))
        house.exec_driver_sql(f"CREATE {kind} IF NOT EXISTS {room}")


def remove_room(url: str) -> None:
    """Remove the tables of a plan beside others, which has no study any more, and what they were in.

    What somebody else has put there stays. Of a database that is one plan's own nothing is removed.
    """
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite" or plan_of(parsed) is None:
        return
    with short_lived_connection(url) as connection:
        if connection.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(models.StudyModel)):
            return
        connection.commit()
        models.BaseModel.metadata.drop_all(connection)
        connection.exec_driver_sql(f"DROP TABLE {VERSION_TABLE}")
        connection.commit()
        is_empty = not sqlalchemy.inspect(connection).get_table_names()
    if is_empty:
        with _house(parsed) as house:
            kind = "SCHEMA" if parsed.get_backend_name() == "postgresql" else "DATABASE"
            room = house.dialect.identifier_preparer.quote_identifier(_room(parsed))
            house.exec_driver_sql(f"DROP {kind} {room}")


def size_of(url: str) -> int:
    """Return how many bytes the tables of a plan take on a server."""
    parsed = parse(url)
    query = (
        "SELECT sum(data_length + index_length) FROM information_schema.tables "
        "WHERE table_schema = DATABASE()"
    )
    if parsed.get_backend_name() == "postgresql":
        query = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
    with short_lived_connection(url, "read") as connection:
        return int(connection.exec_driver_sql(query).scalar() or 0)


def _sqlite_path(url: str, parsed: URL) -> Path:
    """Return the file of a SQLite URL.

    Raises:
        InputError: it names none that processes can share, or can be opened in another way than it reads.
    """
    name = parsed.database or ""
    if parsed.host or "?" in url or name in ("", ":memory:") or name.startswith("file:"):
        raise InputError(
            f"--storage {url}: must be sqlite:///FILE (four slashes before an absolute path), a file that "
            "processes can share: no database in memory, no file: URI, no ? in it"
        )
    try:
        return user_path(name)
    except InputError as error:
        raise InputError(f"--storage {url}: {error}") from None


def shown(url: URL | str) -> str:
    """Return a URL as people may see it: the password is hidden, in the query too."""
    parsed = make_url(url)
    secret = [key for key in parsed.query if "pass" in key.lower() or "pwd" in key.lower()]
    parsed = parsed.update_query_dict(dict.fromkeys(secret, "***")) if secret else parsed
    return parsed.render_as_string(hide_password=True)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for other databases.

    Raises:
        InputError: the URL cannot be used.
    """
    parsed = parse(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


N_LOOKS, LOOK_SECONDS = 50, 0.02
"""How often, and after what time, a look that falls into another process's checkpoint is repeated."""


class FileGuard:
    """Knows a database file again, and the two that SQLite has beside it while a connection is open.

    What is written into one that was removed or replaced is stored nowhere, or spoils the other; SQLite says
    nothing of it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self._opened, self._size = _identity(self._file)
        self._mark: int | None = None
        self._gone: Path | None = None

    def check(self, beside: MutableMapping[Any, Any] | None = None) -> None:
        """Check that the files are still those which were opened; costs 7 µs.

        Args:
            beside: what a connection has open beside the file, kept here by this function. None of it is
                removed by SQLite before the connection is closed.

        Raises:
            DatabaseGoneError: one is not there, or another is in its place; then at each later call as well.
        """
        least_size = self._size  # before the look: another thread may find it longer meanwhile
        found, size = _identity(self._file)
        # SQLite never makes it shorter: another's content was written into it
        if found != self._opened or size < least_size:
            self._gone = self._gone or self._file
        self._size = size
        if beside is not None:
            for suffix in ("-wal", "-shm"):
                file = Path(f"{self._file}{suffix}")
                found, _ = _identity(file)
                if found != (beside.get(suffix) or found):
                    self._gone = self._gone or file
                beside[suffix] = found
        if self._gone:
            again = "put it back and" if self._gone == self._file else "once all that use it have ended,"
            raise DatabaseGoneError(
                f"{self._gone}: the database file was removed or replaced while it was in use, and nothing "
                f"more is stored; {again} run the same command to resume, or give another --out"
            )

    @property
    def has_lost_log(self) -> bool:
        """Whether what is beside the file was found to be gone, and not the file itself."""
        return self._gone not in (None, self._file)

    def check_content(self) -> None:
        """Check also that nobody has written another database into the file; costs 0.1 ms.

        Raises:
            DatabaseGoneError: as from `check`.
        """
        self.check()
        mark = self._mark_now()
        if self._mark is None:
            self._mark = mark
        if mark != self._mark:
            self._gone = self._file
            self.check()

    def _mark_now(self) -> int | None:
        """Return the number that `_make_tables` gave the database; 0 if none, None where it is no database.

        Nobody changes it, so it is read past all locks and the log. To open the file in another way would
        lose this process its locks on it, when it is closed again.
        """
        url = f"{self._file.as_uri()}?mode=ro&immutable=1"
        for _ in range(N_LOOKS):
            try:
                with closing(sqlite3.connect(url, uri=True)) as connection:
                    return int(connection.execute("PRAGMA user_version").fetchone()[0])
            except sqlite3.OperationalError:  # it cannot be opened now, for want of file handles say
                return self._mark
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_CORRUPT:
                    return None
                # somebody's checkpoint writes the first page, which counts pages, before those that it adds
                time.sleep(LOOK_SECONDS)
        return None


def _identity(file: Path) -> tuple[tuple[int, int] | None, int]:
    """Return device and inode of a file, None where there is none, and its size in bytes."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


def open_rdb(
    url: str, *, create: bool, reader: bool, patience_seconds: float = 0.0
) -> tuple[RDBStorage, FileGuard | None]:
    """Open Optuna's storage on a database that several processes may open and create at once.

    Args:
        url: SQLAlchemy URL.
        create: make the database file, and the tables where they are missing.
        reader: only reads; on SQLite it then never takes the write lock that claims need.
        patience_seconds: how long to try again while the server is away or starting.

    Returns:
        The storage, and what knows the file of SQLite again: each of its transactions asks.

    Raises:
        MissingError: there is no such SQLite file, or there are no tables, and `create` is false.
        InputError: the database cannot be opened, lies on a network file system (SQLite), or was written by
            another major version of Optuna.
    """
    parsed, file = parse(url), sqlite_file(url)
    if file is not None:
        _check_file(file, create=create)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_passing(error) and not _is_refusal(error)),
        wait=lambda _: JITTER.uniform(0.2, 2.0),
        stop=tenacity.stop_after_delay(patience_seconds),
        before_sleep=_say_once,
        reraise=True,
    )
    return _told(parsed, lambda: retrying(_connect, url, create=create, reader=reader))


def _told(parsed: URL, call: Callable[[], T]) -> T:
    """Return what a call returns, or tell in words why the database cannot be opened."""
    try:
        return call()
    except OSError as error:
        raise InputError(f"{shown(parsed)}: cannot be opened: {error}") from None
    except ImportError as error:
        extra = EXTRAS[parsed.get_backend_name()]
        raise InputError(
            f"{shown(parsed)}: the driver is not installed ({error}); {install(extra)}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise InputError(f"{shown(parsed)}: cannot be opened: {first_line(error)}") from None


def _say_once(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error is not None and state.attempt_number == 1:
        log.warning("the database cannot be opened yet: %s; trying again", first_line(error))


def _connect(url: str, *, create: bool, reader: bool) -> tuple[RDBStorage, FileGuard | None]:
    opened = _opened(url, create=create, reader=reader)
    if opened is not None:
        return opened
    # half a CPU second, and more where Python may keep no bytecode: not while others wait
    import_module("alembic.command")
    # several processes that create or upgrade the tables at once crash each other
    with exclusive(url):
        _make_room(parse(url))
        opened = _opened(url, create=create, reader=reader)
        if opened is None:
            _make_tables(url)
            opened = _opened(url, create=False, reader=reader)
    assert opened is not None
    return opened


def _opened(url: str, *, create: bool, reader: bool) -> tuple[RDBStorage, FileGuard | None] | None:
    """Return what `open_rdb` does; None where tables must be made or upgraded first, and may be."""
    parsed, file = parse(url), sqlite_file(url)
    if (file is not None and not file.exists()) or not has_tables(url):
        if create:
            _refuse_anothers(url)
            return None
        raise MissingError(f"{shown(parsed)}: holds no plan; `hpo run` or `hpo create` writes one")
    if file is not None and not reader and not (os.access(file, os.W_OK) and _may_write_beside(parsed)):
        raise InputError(f"{shown(parsed)}: cannot be opened: file or folder cannot be written")
    rdb = _storage(parsed, _engine_arguments(parsed, "read" if reader else "write"))
    guard = None if file is None else FileGuard(file)
    try:
        if guard is not None:
            _make_sqlite_safe(rdb.engine, guard, reader=reader)
        with reading():
            is_current = _check_versions(rdb, shown(parsed), reader=reader)
    except BaseException:
        rdb.engine.dispose()
        raise
    if is_current:
        return rdb, guard
    rdb.engine.dispose()
    return None


def _make_tables(url: str) -> None:
    """Make what tables are missing, and upgrade those of an older Optuna; under the lock."""
    parsed = parse(url)
    rdb = _storage(parsed, _engine_arguments(parsed, "create"))
    try:
        if rdb.get_current_version() != rdb.get_head_version():
            rdb.upgrade()
        if parsed.get_backend_name() == "sqlite":
            with rdb.engine.connect() as connection:
                # a new file: in one that is in use already the number would stay in the log for a while
                if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                    number = 1 + secrets.randbelow(2**31 - 1)
                    connection.exec_driver_sql(f"PRAGMA user_version = {number}")
    finally:
        rdb.engine.dispose()


_read_migrations = _VersionManager._create_alembic_script
_migrations: list[Any] = []
"""What Optuna's migrations are, once they have been read."""


def _migrations_read_once(manager: _VersionManager) -> Any:
    """Return Optuna's migrations: Python files, the same for all databases, that are run to be read.

    Optuna does so whenever it is asked for the newest version, in 45 ms of CPU: once to open a database, and
    four times to make its tables, which was half of what that took.
    """
    if not _migrations:
        _migrations.append(_read_migrations(manager))
    return _migrations[0]


_VersionManager._create_alembic_script = _migrations_read_once  # type: ignore[method-assign, assignment]


def _storage(url: URL, engine_arguments: dict[str, Any]) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(
            # Optuna keeps the URL as it is given: with the password, which it needs
            _written(_address(url)),
            engine_kwargs=engine_arguments,
            skip_compatibility_check=True,
        )


def first_line(error: BaseException) -> str:
    """Return what a database said, without SQLAlchemy's wrapping."""
    cause = error.__cause__ or error
    text = str(getattr(cause, "orig", None) or cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__


def is_passing(error: BaseException) -> bool:
    """Return whether the same call may succeed later: the database is locked, restarting or away."""
    # Optuna wraps every SQLAlchemy error in one class
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # the pool of connections is used up; or a connection broke, and SQLAlchemy wants to hear of it once more
    if isinstance(cause, sqlalchemy.exc.TimeoutError | sqlalchemy.exc.PendingRollbackError):
        return True
    if not isinstance(cause, sqlalchemy.exc.DBAPIError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        # a full or read-only disk does not pass by itself
        return _is_busy(cause.orig)
    away = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    return cause.connection_invalidated or isinstance(cause, away)


def _is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process holds SQLite's lock."""
    return "locked" in str(error) or "busy" in str(error)


def _is_refusal(error: BaseException) -> bool:
    """Return whether a server is there and does not let us in: no waiting helps."""
    text = str(error).lower()
    words = (
        "password authentication",
        "does not exist",
        "pg_hba",
        "access denied",
        "unknown database",
        "resolve",
    )
    return any(word in text for word in words)


class _LockQueries(NamedTuple):
    """How a server lends its lock of ours: one a database."""

    take: str
    holder: str
    """Returns the id of the session that has it, and the seconds since that asked for anything."""
    give_back: str
    end: str
    """Ends a session."""


_PG_LOCK = 6844527
"""Ours alone, as far as an advisory lock can be anybody's: "hpo" in ASCII."""
_MYSQL_LOCK = "CONCAT('hpo ', MD5(DATABASE()))"
"""Its locks are the whole server's, and their names have 64 letters at most."""
_SERVER_LOCKS = {
    "postgresql": _LockQueries(
        f"SELECT pg_try_advisory_lock({_PG_LOCK})",
        "SELECT a.pid, extract(epoch FROM clock_timestamp() - a.query_start) "
        "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' "
        f"AND l.objid = {_PG_LOCK} AND l.granted AND a.datname = current_database()",
        f"SELECT pg_advisory_unlock({_PG_LOCK})",
        "SELECT pg_terminate_backend({})",
    ),
    "mysql": _LockQueries(
        f"SELECT GET_LOCK({_MYSQL_LOCK}, 0)",
        f"SELECT id, time FROM information_schema.processlist WHERE id = IS_USED_LOCK({_MYSQL_LOCK})",
        f"SELECT RELEASE_LOCK({_MYSQL_LOCK})",
        "KILL {}",
    ),
}
_SERVER_LOCKS["mariadb"] = _SERVER_LOCKS["mysql"]


class _ServerLock:
    """A lock that a server gives back when the connection ends; each query is a beat."""

    def __init__(self, name: str, queries: _LockQueries, connection: sqlalchemy.Connection) -> None:
        self.name, self._queries = name, queries
        # a transaction that is open as long as a lock is waited for would be ended by the server
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")

    def take(self) -> bool:
        return bool(self._connection.exec_driver_sql(self._queries.take).scalar())

    def beat(self) -> None:
        self._connection.exec_driver_sql("SELECT 1")

    def holder(self) -> tuple[str, float]:
        session, seconds = self._connection.exec_driver_sql(self._queries.holder).first() or (None, None)
        # one of another user of the server is not shown, or not since when
        return f"session {session} ({self._queries.end.format(session)} ends it)", float(seconds or 0.0)

    def give_back(self) -> None:
        self._connection.exec_driver_sql(self._queries.give_back)


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """Let one process at a time, of all that use this database, do what must not be done twice.

    Raises:
        RunError: another one has been let in and stands still.
    """
    parsed = parse(url)
    queries = _SERVER_LOCKS.get(parsed.get_backend_name())
    if queries is None:
        with locked(Path(f"{parsed.database}.lock")):
            yield
        return
    with (
        # of all plans in a database: what may not be done twice is soon done
        short_lived_connection(_written(_without_plan(parsed))) as connection,
        held(_ServerLock(shown(parsed), queries, connection)),
    ):
        yield


Mode = Literal["read", "write", "create"]
"""What a connection may do; only one that creates makes a SQLite file."""


def _engine_arguments(url: URL, mode: Mode, *, impatient: bool = False) -> dict[str, Any]:
    """Return arguments of `create_engine`: dead connections are noticed, nothing waits for ever, UTC."""
    kind = url.get_backend_name()
    # Optuna reads a trial with several queries, which must agree for a reader; a writer's transaction has to
    # see what others committed meanwhile (MySQL's default is the other way round)
    isolation = "REPEATABLE READ" if mode == "read" else "READ COMMITTED"
    if kind == "sqlite":
        busy = IMPATIENT_SECONDS if impatient else SQLITE_BUSY_SECONDS
        if mode != "read":
            access = "rwc" if mode == "create" else "rw"
            return {"creator": lambda: _connect_sqlite(url, f"mode={access}", busy)}
        # opened anew each time: how a file that cannot be written can be read, changes with its writer
        pool = {} if _may_write_beside(url) else {"poolclass": sqlalchemy.NullPool}
        return {"creator": lambda: _connect_reading(url, busy), **pool}
    if kind == "postgresql":
        settings = {
            "timezone": "UTC",  # heartbeats are compared in the session's time zone
            "lock_timeout": 1000 * STATEMENT_SECONDS,  # a long answer of a slow server is none of its faults
            "idle_in_transaction_session_timeout": 1000 * STATEMENT_SECONDS,
            **({} if plan_of(url) is None else {"search_path": f'"{_room(url)}"'}),
        }
        connect = {
            "connect_timeout": CONNECT_SECONDS,
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            # a server that vanished without a word is noticed within half a minute
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        return {"pool_pre_ping": True, "connect_args": connect, "isolation_level": isolation}
    connect = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": STATEMENT_SECONDS,
        "write_timeout": STATEMENT_SECONDS,
        "init_command": "SET time_zone = '+00:00'",
    }
    return {"pool_pre_ping": True, "connect_args": connect, "isolation_level": isolation}


def _connect_reading(url: URL, busy_seconds: float) -> sqlite3.Connection:
    """Open a SQLite file that is only read, on a disk or in a folder that cannot be written too.

    To read a file in WAL mode SQLite makes two others beside it. Where it may not, the file can be read as it
    is, but only while no writer has left anything in the log beside it.
    """
    connection = _connect_sqlite(url, "mode=ro", busy_seconds)
    try:
        connection.execute("SELECT name FROM sqlite_master")
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        if _is_busy(error) or _may_write_beside(url):
            raise
    log = Path(f"{_file_of(url)}-wal")
    if log.exists() and log.stat().st_size:
        raise sqlite3.OperationalError(
            f"its writer left changes in {log.name}, and nothing can be written here; "
            "copy the folder to where you may write"
        )
    return _connect_sqlite(url, "mode=ro&immutable=1", busy_seconds)


def _connect_sqlite(url: URL, mode: str, busy_seconds: float) -> sqlite3.Connection:
    # the pool hands a connection to one thread at a time
    return sqlite3.connect(
        f"{_file_of(url).as_uri()}?{mode}", uri=True, timeout=busy_seconds, check_same_thread=False
    )


def _may_write_beside(url: URL) -> bool:
    return os.access(_file_of(url).parent, os.W_OK)


def _file_of(url: URL) -> Path:
    return Path(url.database or "").resolve()


@contextmanager
def short_lived_connection(
    url: str, mode: Mode = "write", *, impatient: bool = False
) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection of its own; an impatient one does not wait for SQLite's lock as long as a worker."""
    parsed = parse(url)
    engine = sqlalchemy.create_engine(
        _address(parsed), **_engine_arguments(parsed, mode, impatient=impatient)
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def has_tables(url: str) -> bool:
    """Return whether all tables are there."""
    if not _has_room(parse(url)):
        return False
    with short_lived_connection(url, "read") as connection:
        return _has_tables(connection)


def _has_tables(connection: sqlalchemy.Connection) -> bool:
    return _has_version(connection) and _has_studies(connection)


def _has_version(connection: sqlalchemy.Connection) -> bool:
    # Optuna writes the version last
    return sqlalchemy.inspect(connection).has_table(VERSION_TABLE) and bool(
        connection.scalar(sqlalchemy.text(f"SELECT count(*) FROM {VERSION_TABLE}"))
    )


def _has_studies(connection: sqlalchemy.Connection) -> bool:
    return sqlalchemy.inspect(connection).has_table(models.StudyModel.__tablename__)


def _refuse_anothers(url: str) -> None:
    """Check that a database is not that of another program which, as MLflow does, keeps a version by Alembic.

    Raises:
        InputError: it is; Optuna would take that version for its own.
    """
    file = sqlite_file(url)
    if (file is not None and not file.exists()) or not _has_room(parse(url)):
        return
    with short_lived_connection(url, "read") as connection:
        if _has_version(connection) and not _has_studies(connection):
            raise InputError(
                f"{shown(parse(url))}: is the database of another program, with a table {VERSION_TABLE} of "
                "its own; give the plan a database of its own"
            )


def _check_file(file: Path, *, create: bool) -> None:
    try:
        exists = file.exists()
    except OSError as error:  # a folder that is closed to us
        raise InputError(f"--storage sqlite:///{file}: {error}") from None
    if not exists:
        if not create:
            raise MissingError(
                f"{file}: no database here; `hpo run` or `hpo create` makes one, --out or --storage "
                "(HPO_STORAGE) names another"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{file.parent}: cannot be made: {error}") from None
    kind = filesystem_kind(file.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise InputError(
            f"{file}: lies on a network file system ({kind}), where SQLite loses writes; put --out on a "
            "local disk, or share the plan through a server: --storage postgresql+psycopg://HOST/NAME"
        )


def filesystem_kind(folder: Path, mounts: Iterable[tuple[str, str]] | None = None) -> str:
    """Return the kind of the file system that holds a folder, as the kernel names it; empty where unknown.

    Args:
        folder: an existing folder.
        mounts: pairs of mount point and kind; None: those of this machine.
    """
    if mounts is None:
        mounts = [(each.mountpoint, each.fstype) for each in psutil.disk_partitions(all=True)]
    path = folder.resolve()
    # of mounts at one point the last is the one that is seen
    holding = [
        (len(Path(point).parts), n, kind)
        for n, (point, kind) in enumerate(mounts)
        if path.is_relative_to(point)
    ]
    return max(holding)[2] if holding else ""


def _check_versions(rdb: RDBStorage, name: str, *, reader: bool) -> bool:
    """Return whether the tables are those of this Optuna; False: they can be upgraded.

    Raises:
        InputError: another major version or a newer one wrote them, or an older one, and nobody may write.
    """
    with _create_scoped_session(rdb.scoped_session) as session:
        info = models.VersionInfoModel.find(session)
        wrote = info.library_version if info is not None else optuna.__version__
    if wrote.split(".")[0] != OPTUNA_MAJOR:
        # their time stamps differ, so leases and durations would be wrong
        raise InputError(
            f"{name}: written by Optuna {wrote}, this is Optuna {optuna.__version__}; use one major version"
        )
    current, head = rdb.get_current_version(), rdb.get_head_version()
    if current == head:
        return True
    if current not in rdb.get_all_versions():
        raise InputError(f"{name}: written by a newer Optuna than {optuna.__version__}; update it here")
    if reader:
        raise InputError(f"{name}: its tables are of an older Optuna; `hpo resume` or a worker upgrades them")
    return False


def _make_sqlite_safe(engine: sqlalchemy.Engine, guard: FileGuard, *, reader: bool) -> None:
    """Make claims atomic: as Optuna opens SQLite, a transaction that reads first and writes later is not."""
    engine.dispose()  # connections made before the listeners would not have them

    @sqlalchemy.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # pysqlite must not begin on its own
        if reader:
            return  # the mode is the file's, and a reader may have no right to change it
        connection.execute("PRAGMA journal_mode=WAL")
        # In WAL mode NORMAL is safe against a killed process and never corrupts; after a power cut the last
        # commits may be missing. Their epochs are trained again from the checkpoint, or all of a trial whose
        # end was among them, as that has removed its checkpoints; with the same bits either way.
        connection.execute("PRAGMA synchronous=NORMAL")

    # A reader's transaction is one too: Optuna reads a trial with several queries, which must agree.
    @sqlalchemy.event.listens_for(engine, "begin")
    def on_begin(connection: sqlalchemy.Connection) -> None:
        try:
            guard.check(connection.info)
        except DatabaseGoneError:
            if not reader and guard.has_lost_log:  # into the file with what it holds, while we have it open
                connection.exec_driver_sql("PRAGMA wal_checkpoint")
            raise
        only_reads = reader or getattr(_this_thread, "only_reads", False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


_this_thread = threading.local()


@contextmanager
def reading() -> Iterator[None]:
    """Have this thread only read meanwhile: on SQLite it does not queue for the one write lock."""
    before = getattr(_this_thread, "only_reads", False)  # one may be inside another
    _this_thread.only_reads = True
    try:
        yield
    finally:
        _this_thread.only_reads = before
