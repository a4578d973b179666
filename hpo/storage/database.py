"""A database URL becomes an engine that is safe to share between processes and machines.

SQLite serves one machine; PostgreSQL and MySQL/MariaDB serve many. Nothing here knows what a trial is.

It is long because nearly all that differs between the databases is here; how they
insert or update a row is in `trials`, and how they tell the time in `hpo doctor`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
import tenacity
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from sqlalchemy.engine import URL, make_url

from hpo._files import user_path
from hpo.errors import InputError, MissingError, install

DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
"""The driver that hpo is tested with, by kind of database; the extras of `pip install` bring them."""
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

SQLITE_BUSY_SECONDS = 60
VERSION_TABLE = "alembic_version"
CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60
LOCK_SECONDS = 60
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
    file = str(user_path(out) / "hpo.db")
    url = f"sqlite:///{file}"
    if make_url(url).database != file:
        raise InputError(f"--out {out}: no database URL can name a file there; take a name without ? and %")
    return url


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
    return parsed if kind != "sqlite" else parsed.set(database=str(_sqlite_path(url, parsed)))


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


def open_rdb(url: str, *, create: bool, reader: bool, patience_seconds: float = 0.0) -> RDBStorage:
    """Open Optuna's storage on a database that several processes may open and create at once.

    Args:
        url: SQLAlchemy URL.
        create: make the database file, and the tables where they are missing.
        reader: only reads; on SQLite it then never takes the write lock that claims need.
        patience_seconds: how long to try again while the server is away or starting.

    Raises:
        MissingError: there is no such SQLite file and `create` is false.
        InputError: the database cannot be opened, lies on a network file system (SQLite), or was written by
            another major version of Optuna.
    """
    parsed, file = parse(url), sqlite_file(url)
    if file is not None:
        _check_file(file, create=create)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_passing(error) and not _is_refusal(error)),
        wait=tenacity.wait_random(0.2, 2.0),
        stop=tenacity.stop_after_delay(patience_seconds),
        reraise=True,
    )
    try:
        rdb = retrying(_connect, url, reader=reader)
    except OSError as error:
        raise InputError(f"{shown(parsed)}: cannot be opened: {error}") from None
    except ImportError as error:
        extra = EXTRAS[parsed.get_backend_name()]
        raise InputError(
            f"{shown(parsed)}: the driver is not installed ({error}); {install(extra)}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise InputError(f"{shown(parsed)}: cannot be opened: {first_line(error)}") from None
    if file is not None:
        _make_sqlite_safe(rdb.engine, reader=reader)
    return rdb


def _connect(url: str, *, reader: bool) -> RDBStorage:
    parsed = parse(url)
    if reader:
        _require_tables(url)
    # several processes that create or upgrade the tables at once crash each other; a reader does neither
    with nullcontext() if reader else exclusive(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        rdb = RDBStorage(
            # Optuna keeps the URL as it is given: with the password, which it needs
            parsed.render_as_string(hide_password=False),
            engine_kwargs=_engine_arguments(parsed, reader=reader),
            skip_compatibility_check=True,
        )
        try:
            _check_versions(rdb, shown(parsed), upgrade=not reader)
        except BaseException:
            rdb.engine.dispose()
            raise
    return rdb


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


_SERVER_LOCKS = {
    # the number is ours alone, as far as advisory locks can be anybody's: "hpo" in ASCII
    "postgresql": ("SELECT pg_advisory_lock(6844527)", "SELECT pg_advisory_unlock(6844527)"),
    "mysql": (f"SELECT GET_LOCK('hpo', {LOCK_SECONDS})", "SELECT RELEASE_LOCK('hpo')"),
}
_SERVER_LOCKS["mariadb"] = _SERVER_LOCKS["mysql"]


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """Let one process at a time, of all that use this database, do what must not be done twice."""
    parsed = parse(url)
    is_held = f"{shown(parsed)}: another process has held its lock for {LOCK_SECONDS} s"
    if parsed.get_backend_name() == "sqlite":
        try:
            held = FileLock(f"{parsed.database}.lock").acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise InputError(is_held) from None
        with held:
            yield
        return
    take, release = _SERVER_LOCKS[parsed.get_backend_name()]
    with short_lived_connection(url) as connection:
        taken = connection.exec_driver_sql(take).scalar()
        if taken == 0:  # MySQL's word for a time-out; PostgreSQL raises an error
            raise InputError(is_held)
        try:
            yield
        finally:
            connection.exec_driver_sql(release)


def _engine_arguments(url: URL, *, reader: bool = False, impatient: bool = False) -> dict[str, Any]:
    """Return arguments of `create_engine`: dead connections are noticed, nothing waits for ever, UTC."""
    kind = url.get_backend_name()
    # Optuna reads a trial with several queries, which must agree for a reader; a writer's transaction has to
    # see what others committed meanwhile (MySQL's default is the other way round)
    isolation = "REPEATABLE READ" if reader else "READ COMMITTED"
    if kind == "sqlite":
        busy = CONNECT_SECONDS if impatient else SQLITE_BUSY_SECONDS
        if not reader:
            return {"connect_args": {"timeout": busy}}
        # opened anew each time: how a file that cannot be written can be read, changes with its writer
        pool = {} if _may_write_beside(url) else {"poolclass": sqlalchemy.NullPool}
        return {"creator": lambda: _connect_reading(url, busy), **pool}
    if kind == "postgresql":
        settings = {
            "timezone": "UTC",  # heartbeats are compared in the session's time zone
            "statement_timeout": 1000 * STATEMENT_SECONDS,
            "idle_in_transaction_session_timeout": 1000 * STATEMENT_SECONDS,
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
    file = _file_of(url)

    def connect(mode: str) -> sqlite3.Connection:
        # the pool hands a connection to one thread at a time
        return sqlite3.connect(
            f"{file.as_uri()}?{mode}", uri=True, timeout=busy_seconds, check_same_thread=False
        )

    connection = connect("mode=ro")
    try:
        connection.execute("SELECT name FROM sqlite_master")
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        if _is_busy(error) or _may_write_beside(url):
            raise
    log = Path(f"{file}-wal")
    if log.exists() and log.stat().st_size:
        raise sqlite3.OperationalError(
            f"its writer left changes in {log.name}, and nothing can be written here; "
            "copy the folder to where you may write"
        )
    return connect("mode=ro&immutable=1")


def _may_write_beside(url: URL) -> bool:
    return os.access(_file_of(url).parent, os.W_OK)


def _file_of(url: URL) -> Path:
    return Path(url.database or "").resolve()


@contextmanager
def short_lived_connection(url: str, *, reader: bool = False) -> Iterator[sqlalchemy.Connection]:
    """Lend a connection of its own, which on SQLite does not wait for a lock as long as a worker's does."""
    parsed = parse(url)
    engine = sqlalchemy.create_engine(parsed, **_engine_arguments(parsed, reader=reader, impatient=True))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _require_tables(url: str) -> None:
    """Keep a reader from making tables, which Optuna does at once where it finds none.

    Raises:
        MissingError: they are not there, or not all of them yet.
    """
    with short_lived_connection(url, reader=True) as connection:
        # Optuna writes the version last
        ready = sqlalchemy.inspect(connection).has_table(VERSION_TABLE) and connection.scalar(
            sqlalchemy.text(f"SELECT count(*) FROM {VERSION_TABLE}")
        )
    if not ready:
        raise MissingError(f"{shown(parse(url))}: holds no plan; `hpo run` or `hpo create` writes one")


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


def _check_versions(rdb: RDBStorage, name: str, *, upgrade: bool) -> None:
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
        return
    if current not in rdb.get_all_versions():
        raise InputError(f"{name}: written by a newer Optuna than {optuna.__version__}; update it here")
    if not upgrade:
        raise InputError(f"{name}: its tables are of an older Optuna; `hpo resume` or a worker upgrades them")
    rdb.upgrade()


def _make_sqlite_safe(engine: sqlalchemy.Engine, *, reader: bool) -> None:
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
