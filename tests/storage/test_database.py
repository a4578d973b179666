"""URLs, locks, outages and old tables of real databases."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from hpo import _lock
from hpo.errors import InputError, MissingError, RunError, StorageError, TrialLost
from hpo.storage import database
from hpo.storage.outbox import Outbox
from hpo.storage.queue import Job, Queue, Reason, Slot, Slots
from hpo.storage.storage import Storage
from tests.support.fixtures import StartedServers
from tests.support.locks import lock_holder
from tests.support.queues import claim_first

SECRET = "geheim"
SERVERS = ["postgresql", "mariadb"]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/hpo",
        f"mysql+pymysql://me:{SECRET}@127.0.0.1:1/hpo",
        f"postgresql+psycopg://127.0.0.1:1/hpo?password={SECRET}",
        f"oracle://me:{SECRET}@host/hpo",
        f"postgresql+pg8000://me:{SECRET}@host/hpo",
        f"postgresql+psycopg://me:pass@{SECRET}@127.0.0.1:1/hpo",
        f"postgresql+psycopg://me:pass@word/{SECRET}@127.0.0.1:1/hpo",
        f"not a url {SECRET}",
    ],
)
def test_an_error_names_the_database_and_never_the_password(url: str) -> None:
    with pytest.raises(InputError) as error:
        Storage(url, create=True)
    assert SECRET not in str(error.value)
    assert "--storage" in str(error.value) or "127.0.0.1" in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///plan?v2.db",
        "sqlite:///plan.db?timeout=5",
        "sqlite:///plan.db?",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///file:x.db",
        "sqlite:///file::memory:",
        "sqlite:///:memory:",
        "sqlite://",
        "sqlite:///",
        "sqlite://plan.db",
        "sqlite://folder/plan.db",
    ],
)
def test_a_sqlite_url_that_means_another_file_than_it_shows_or_none_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for take in (lambda: Storage(url, create=True), lambda: Storage(url), lambda: database.sqlite_file(url)):
        with pytest.raises(InputError, match=f"--storage {re.escape(url)}: must be sqlite:///FILE"):
            take()
    assert not list(tmp_path.iterdir())


def test_the_tilde_in_a_sqlite_url_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Storage("sqlite:///~/plans/hpo.db", create=True)
    assert (tmp_path / "plans" / "hpo.db").is_file()
    assert Storage("sqlite:///~/plans/hpo.db").name.endswith(f"{tmp_path}/plans/hpo.db")


@pytest.mark.parametrize(
    ("kind", "refused"), [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("", False)]
)
def test_sqlite_on_a_network_file_system_is_refused(
    kind: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "tmpfs"), (str(tmp_path), kind)]
    assert database.filesystem_kind(tmp_path, mounts) == kind
    monkeypatch.setattr(database, "filesystem_kind", lambda _folder: kind)
    url = f"sqlite:///{tmp_path / 'hpo.db'}"
    if not refused:
        Storage(url, create=True)
        return
    with pytest.raises(InputError, match=f"network file system .{kind}.*postgresql"):
        Storage(url, create=True)


def test_the_kind_of_a_real_file_system() -> None:
    if Path("/dev/shm").is_mount():
        assert database.filesystem_kind(Path("/dev/shm")) == "tmpfs"
    assert database.filesystem_kind(Path("/proc")) == "proc"


@pytest.mark.parametrize("fate", ["works", "ends", "stands still"])
def test_a_lock_is_waited_for_as_long_as_its_holder_works(
    fate: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock, "STILL_SECONDS", 2.0)
    monkeypatch.setattr(_lock, "STILL_POLLS", 20)

    def enter() -> int | None:
        with database.exclusive(database_url):
            return holder.poll()

    with ThreadPoolExecutor(1) as pool, lock_holder(database_url) as holder:
        if fate == "stands still":
            holder.send_signal(signal.SIGSTOP)
        entered = pool.submit(enter)
        if fate == "stands still":
            with pytest.raises(RunError, match=r"(process|session) \d+ .*has stood still for \d+ s"):
                entered.result(timeout=300)
            return
        if fate == "ends":
            holder.kill()
        else:
            time.sleep(6)  # longer than it may stand still
            assert not entered.done()
            holder.communicate("\n")
        entered.result(timeout=300)


def test_who_finds_the_tables_current_needs_no_lock(database_url: str) -> None:
    Storage(database_url, create=True)
    with ThreadPoolExecutor(1) as pool, lock_holder(database_url):
        for create, reader in ((True, False), (False, False), (False, True)):
            opening = pool.submit(Storage, database_url, create=create, reader=reader)
            assert opening.result(timeout=300).study_attrs() == {}


def test_who_does_not_create_makes_no_tables(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        Path(database_url.removeprefix("sqlite:///")).touch()
    for reader in (False, True):
        with pytest.raises(MissingError, match="holds no plan"):
            Storage(database_url, reader=reader)
    with database.short_lived_connection(database_url) as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []


def test_the_database_of_another_program_is_left_as_it_is(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        Path(database_url.removeprefix("sqlite:///")).touch()
    with database.short_lived_connection(database_url, "create") as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('dc11669786a5')")
        connection.commit()
    with pytest.raises(InputError, match="is the database of another program"):
        Storage(database_url, create=True)
    for reader in (False, True):
        with pytest.raises(MissingError, match="holds no plan"):
            Storage(database_url, reader=reader)
    with database.short_lived_connection(database_url) as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == ["alembic_version"]


def test_who_reads_does_not_wait_for_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_SECONDS", 1)
    storage = Storage(f"sqlite:///{tmp_path / 'hpo.db'}", create=True)
    storage.create_study("s", {}, "maximize")
    study_id = storage.study_id("s")
    writer = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)
    with contextlib.closing(writer):
        writer.execute("BEGIN IMMEDIATE")
        with database.reading():  # as the dashboard does around all that one request reads
            assert storage.system_attrs(study_id) == {}
            assert [study.study_name for study in storage.for_optuna.get_all_studies()] == ["s"]
        with pytest.raises(StorageInternalError):
            storage.for_optuna.get_all_studies()  # not said to be a reader


def test_only_one_process_at_a_time_is_exclusive(database_url: str) -> None:
    Storage(database_url, create=True)
    inside, most = 0, 0
    count = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with database.exclusive(database_url):
            with count:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with count:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_tables_of_an_older_optuna_are_upgraded_by_a_writer_alone(database_url: str) -> None:
    Storage(database_url, create=True).create_study("s", {"a": 1}, "maximize")
    rdb = RDBStorage(database_url)
    older = sorted(rdb.get_all_versions())[-2]
    with rdb.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{older}'")
    rdb.engine.dispose()
    with pytest.raises(InputError, match="older Optuna"):
        Storage(database_url, reader=True)
    assert Storage(database_url).study_attrs()["s"] == {"a": 1}
    assert Storage(database_url, reader=True).study_attrs()["s"] == {"a": 1}


def test_migrations_are_read_for_the_first_database_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    monkeypatch.setattr("alembic.util.load_python_file", None)
    url = f"sqlite:///{tmp_path / 'b.db'}"
    Storage(url, create=True).create_study("s", {"a": 1}, "maximize")
    assert Storage(url).study_attrs()["s"] == {"a": 1}


def test_a_study_of_a_plan_that_was_never_made_is_made_anew_for_another_metric(database_url: str) -> None:
    storage = Storage(database_url, create=True)
    storage.create_study("s", {"options": {"metric": "loss"}, "definition": "killed after it"}, "minimize")
    for _ in range(2):
        storage.create_study("s", {"options": {}}, "maximize")
        assert storage.study("s").direction == optuna.study.StudyDirection.MAXIMIZE
        assert storage.study_attrs() == {"s": {"options": {}}}


def test_what_depends_on_another_study_is_written_only_while_that_is_as_it_was(database_url: str) -> None:
    storage = Storage(database_url, create=True)
    for name in ("parent", "child"):
        storage.create_study(name, {"decision": name}, "maximize")
    parent, child = map(storage.study_id, ("parent", "child"))
    for decision, is_written in (("another", False), ("parent", True)):
        found = storage.swap_study_attr(
            child, "inherited", 1, expected={"inherited": None}, elsewhere={parent: {"decision": decision}}
        )
        assert found == is_written
        assert storage.study_attrs()["child"].get("inherited") == (1 if is_written else None)
    # the other way round, two that wait for each other would wait for ever
    assert not storage.swap_study_attr(
        parent, "decision", None, expected={"decision": "parent"}, elsewhere={child: {"inherited": None}}
    )
    assert storage.study_attrs()["parent"] == {"decision": "parent"}


def running_trial(url: str) -> tuple[Storage, int]:
    """A trial that this process has claimed."""
    storage = Storage(url, create=True)
    storage.create_study("s", {}, "maximize")
    queue = Queue(storage, "s")
    queue.enqueue([Job(Slot("a"), 0, (0,))], Slots({}))
    trial = claim_first(queue)
    assert trial is not None
    return storage, trial._trial_id


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_the_server_is_waited_out(started_servers: StartedServers, kind: str, how: str) -> None:
    server = started_servers(kind)
    storage, trial_id = running_trial(server.new_database())
    server.restart(how)
    storage.write(trial_id, attrs={"epoch:1": []}, reports={1: 0.5})
    assert storage.trial(trial_id).intermediate_values == {1: 0.5}


@pytest.mark.parametrize("kind", SERVERS)
def test_training_goes_on_while_the_server_is_away_and_all_is_delivered(
    started_servers: StartedServers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.storage.outbox.PATIENCE_SECONDS", 0.3)
    server = started_servers(kind)
    storage, trial_id = running_trial(server.new_database())
    outbox = Outbox(storage, trial_id)
    assert outbox.send({"epoch:1": ["first"]}, {1: 0.1})
    server.stop()
    assert not outbox.send({"epoch:2": ["second"]}, {2: 0.2})
    assert not outbox.send({"epoch:3": ["third"]}, {3: 0.3})
    server.start()
    outbox.flush(lambda: False)
    trial = storage.trial(trial_id)
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    assert [trial.user_attrs[f"epoch:{n}"] for n in (1, 2, 3)] == [["first"], ["second"], ["third"]]


def test_training_goes_on_while_the_server_hangs(
    started_servers: StartedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.storage.outbox.PATIENCE_SECONDS", 0.3)
    server = started_servers("postgresql")
    storage, trial_id = running_trial(server.new_database())
    outbox = Outbox(storage, trial_id)
    with server.paused():
        assert not outbox.send({}, {1: 0.1})
    outbox.flush(lambda: False)
    assert storage.trial(trial_id).intermediate_values == {1: 0.1}


def test_a_process_ends_although_it_could_not_deliver(started_servers: StartedServers) -> None:
    server = started_servers("postgresql")
    storage, trial_id = running_trial(server.new_database())
    code = (
        "import sys; from hpo.storage.outbox import Outbox; from hpo.storage.storage import Storage\n"
        "outbox = Outbox(Storage(sys.argv[1]), int(sys.argv[2]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "assert not outbox.send({}, {1: 0.1})\n"
    )
    command = [sys.executable, "-c", code, storage.url, str(trial_id)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        server.stop()
        try:
            process.communicate("go\n", timeout=300)  # an outage is sat out for ten minutes
        finally:
            process.kill()
            server.start()
    assert process.returncode == 0


def test_nobody_is_declared_lost_because_the_server_was_away(started_servers: StartedServers) -> None:
    server = started_servers("postgresql")
    storage, trial_id = running_trial(server.new_database())
    queue = Queue(storage, "s")
    server.restart(down_seconds=3)
    assert queue.fail_stale_trials(lease_seconds=2) == []  # all leases look expired
    storage.heartbeat(trial_id)
    time.sleep(1.5)
    storage.heartbeat(trial_id)
    assert queue.fail_stale_trials(lease_seconds=2) == []


def test_an_outbox_says_when_the_trial_was_lost(database_url: str) -> None:
    storage, trial_id = running_trial(database_url)
    Queue(storage, "s").close(trial_id, Reason.LOST)
    with pytest.raises(TrialLost):
        Outbox(storage, trial_id).send({}, {1: 0.1})


def test_a_database_that_takes_no_writes_is_an_error_in_words(tmp_path: Path) -> None:
    storage, trial_id = running_trial(f"sqlite:///{tmp_path / 'hpo.db'}")
    with storage._rdb.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        # SQLite's own limit: what a full disk is to it, "database or disk is full"
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.rollback()
    with pytest.raises(StorageError, match=r"hpo\.db.*full"):
        storage.write(trial_id, attrs={f"a{n}": "x" * 10_000 for n in range(100)})
