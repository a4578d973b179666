"""`hpo doctor` on real databases, real disks and a plan at work."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

import hpo as library
from hpo.execution.worker import work
from hpo.storage.storage import Storage
from tests.support.command import start_hpo, wait_for
from tests.support.devices import pretended_mps
from tests.support.fixtures import Cli, StartedServers
from tests.support.pictures import write_folder
from tests.support.plans import SMALL, SMALL_RUN, made_plan

NAMES = (
    *("storage", "writable", "claims", "latency", "clock", "file system", "plan", "data", "devices"),
    *("versions", "checkpoints", "space"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in; in this process two race for claims, for the sake of speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpo.execution.doctor.N_RACERS", 2)
    # less than what importing takes: on a slow machine nothing is wrong
    monkeypatch.setattr("hpo.execution.doctor.RACE_SECONDS", 1)
    return tmp_path


@pytest.fixture
def claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No race, which takes a process of 2.5 CPU seconds: tests of claims and of each database have one."""
    monkeypatch.setattr("hpo.execution.doctor._try_claims", lambda *_: ("ok", "claimed once"))


@pytest.fixture
def created(cli: Cli, folder: Path, small_studies: Path) -> Path:
    """A folder with a plan that nobody works on yet."""
    result = cli("create", "--studies", small_studies, *SMALL_RUN)
    assert result.code == 0, result.err
    return folder


def run_sql(url: str, *statements: str) -> list[Any]:
    """Runs statements on a database server; the rows of the last."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    rows: list[Any] = []
    with engine.connect() as connection:
        for statement in statements:
            found = connection.exec_driver_sql(statement)
            rows = list(found) if found.returns_rows else []
    engine.dispose()
    return rows


def examined(command: Cli, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and checks by name."""
    result = command("doctor", "--json", *arguments)
    record = json.loads(result.out)
    assert record["ok"] is (result.code == 0)
    assert [check["name"] for check in record["checks"]] == list(NAMES)
    for check in record["checks"]:
        assert check["state"] in ("ok", "warning", "wrong", "skipped")
        assert check["text"]
        assert "\n" not in check["text"]
    return result.code, {check["name"]: check for check in record["checks"]}


def states(checks: dict[str, dict[str, str]], *names: str) -> list[str]:
    return [checks[name]["state"] for name in names]


def tree(folder: Path) -> set[str]:
    """All files; SQLite's own beside the database come and go with its connections."""
    return {str(path) for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm", ".lock"))}


def n_rows(file: Path) -> dict[str, int]:
    with sqlite3.connect(file) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    connection.close()
    return counts


# --- a plan that is well -----------------------------------------------------------------------------------


def test_a_plan_that_is_well_and_nothing_is_left_behind(cli: Cli, created: Path) -> None:
    database = created / "hpo-out" / "hpo.db"
    before = tree(created), n_rows(database)
    code, checks = examined(cli)
    assert code == 0
    assert states(checks, "storage", "writable", "claims", "plan", "data", "versions") == ["ok"] * 6
    plan = library.find_plan()
    assert plan.identity.fingerprint in checks["data"]["text"]
    assert (tree(created), n_rows(database)) == before


@pytest.mark.usefixtures("claimed_once")
def test_a_person_gets_one_line_a_check(cli: Cli, created: Path) -> None:
    result = cli("doctor")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line[8:20].strip().split("  ")[0] for line in lines] == list(NAMES)
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "skipped"}


@pytest.mark.usefixtures("claimed_once")
def test_what_a_killed_doctor_left_is_removed_and_no_reader_stumbles_over_it(cli: Cli, created: Path) -> None:
    storage = Storage("sqlite:///hpo-out/hpo.db")
    young = f".doctor-{time.time():.0f}-beef"
    for name in (".doctor-1600000000-beef", young):
        storage.create_study(name, {}, "maximize")
    assert [study["name"] for study in json.loads(cli("status", "--json").out)["studies"]] == [
        *("rate", "shape", "final")
    ]
    assert examined(cli)[0] == 0
    assert set(storage.study_attrs()) == {"rate", "shape", "final", young}


def test_a_plan_that_is_worked_on_is_not_disturbed(cli: Cli, folder: Path, small_studies: Path) -> None:
    process = start_hpo("run", "--studies", small_studies, "--workers=2", *SMALL_RUN)
    try:
        wait_for((folder / "hpo-out" / "logs").exists, process)
        n_looks = 0
        while process.poll() is None:
            assert examined(cli)[0] == 0
            n_looks += 1
            time.sleep(1)  # the run needs the cores as well
        assert n_looks
        err = process.communicate(timeout=300)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    plan = library.find_plan()
    for name, n_points in (("rate", 2), ("shape", 3), ("final", 1)):
        assert [trial.state.name for trial in plan.trials(name)] == ["COMPLETE"] * n_points


# --- the database ------------------------------------------------------------------------------------------


def test_without_a_database_none_is_made(cli: Cli, folder: Path) -> None:
    code, checks = examined(cli, "--out=deep/er")
    assert code == 0
    assert states(checks, "storage", "writable", "claims") == ["ok"] * 3
    assert states(checks, "plan", "data") == ["skipped"] * 2
    assert not tree(folder)


@pytest.mark.usefixtures("claimed_once")
def test_a_database_of_somebody_else_is_left_alone(cli: Cli, folder: Path) -> None:
    for name in ("empty.db", "other.db"):
        with sqlite3.connect(folder / name) as connection:
            if name == "other.db":
                connection.execute("CREATE TABLE mine (x)")
        connection.close()
        before = n_rows(folder / name)
        code, checks = examined(cli, "--storage", f"sqlite:///{folder / name}")
        assert (code, checks["plan"]["state"]) == (0, "skipped")
        assert n_rows(folder / name) == before


def test_a_file_that_is_no_database(cli: Cli, folder: Path) -> None:
    (folder / "hpo.db").write_text(
        "a text of some length, so that nobody takes it for an empty database" * 20
    )
    code, checks = examined(cli, "--out=.")
    assert code == 1
    assert "not a database" in checks["storage"]["text"]
    assert states(checks, "storage", "writable", "claims", "latency") == ["wrong", *["skipped"] * 3]
    assert checks["checkpoints"]["state"] != "wrong"


def test_where_no_database_can_be_made(cli: Cli) -> None:
    code, checks = examined(cli, "--out=/proc/hpo")
    assert code == 1
    assert states(checks, "storage", "checkpoints") == ["wrong", "wrong"]


def test_a_server_that_is_away_and_no_password_shown(cli: Cli) -> None:
    result = cli("doctor", "--storage", "postgresql+psycopg://someone:secret@127.0.0.1:1/plan")
    assert result.code == 1
    assert "wrong   storage" in result.out
    assert "start the server" in result.out
    assert "secret" not in result.out + result.err


@pytest.mark.parametrize("url", ["nonsense", "sqlite://"])
def test_an_url_that_cannot_be_used_is_bad_input(cli: Cli, url: str) -> None:
    result = cli("doctor", "--storage", url)
    assert (result.code, result.out) == (2, "")
    assert "--storage" in result.err


def test_claims_that_are_not_atomic_are_found(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sitecustomize.py").write_text(
        "from hpo.storage.storage import Storage\nStorage.claim = lambda self, trial_id, owner: True\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(library.__file__).parents[1]}")
    code, checks = examined(cli)
    assert code == 1
    assert "16 were not claimed exactly once" in checks["claims"]["text"]


def test_a_process_that_cannot_claim_is_said_and_none_is_left(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sitecustomize.py").write_text(
        "import hpo.storage.storage\n"
        "class Storage(hpo.storage.storage.Storage):\n"
        "    def __init__(self, url): raise OSError('no such luck')\n"
        "hpo.storage.storage.Storage = Storage\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(library.__file__).parents[1]}")
    before = set(psutil.Process().children(recursive=True))  # the servers of other tests
    code, checks = examined(cli)
    assert code == 1
    assert checks["claims"]["text"].endswith("one of them failed: OSError: no such luck")
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_locked_database_is_said_and_not_waited_for(cli: Cli, created: Path) -> None:
    holder = sqlite3.connect(created / "hpo-out" / "hpo.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    code, checks = examined(cli)
    holder.execute("ROLLBACK")
    holder.close()
    assert code == 1
    assert "locked" in checks["writable"]["text"]
    assert states(checks, "claims", "latency", "data") == ["skipped", "skipped", "ok"]


@pytest.mark.usefixtures("claimed_once")
def test_a_network_file_system_is_wrong_for_sqlite(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # none can be mounted here without a server: what the kernel would call it is all that is made up
    monkeypatch.setattr("hpo.storage.database.filesystem_kind", lambda folder: "nfs4")
    code, checks = examined(cli)
    assert code == 1
    assert "postgresql" in checks["file system"]["text"]


# --- servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_plan_on_a_server(
    kind: str, cli: Cli, started_servers: StartedServers, small_studies: Path
) -> None:
    url = started_servers(kind).new_database()
    code, checks = examined(cli, "--storage", url)
    assert (code, checks["plan"]["state"]) == (0, "skipped")
    assert "have been made" in checks["storage"]["text"]
    assert cli("create", "--storage", url, "--studies", small_studies, *SMALL_RUN).code == 0
    code, checks = examined(cli, "--storage", url)
    assert code == 0
    assert states(checks, "storage", "claims", "clock", "plan", "data") == ["ok"] * 5
    assert checks["checkpoints"]["state"] == "warning"  # those in ./hpo-out: who else reaches them?
    assert "--checkpoints" in checks["checkpoints"]["text"]
    assert checks["file system"]["state"] == "skipped"
    tables = ("studies", "trials", "trial_heartbeats", "trial_user_attributes")
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    assert [tuple(row) for row in run_sql(url, f"SELECT {counts}")] == [(3, 0, 0, 0)]


@pytest.mark.usefixtures("claimed_once")
@pytest.mark.parametrize("seconds", [8, -45])
def test_a_clock_that_differs_is_said_and_does_no_harm(
    cli: Cli, started_servers: StartedServers, seconds: int
) -> None:
    url = started_servers("postgresql").new_database()
    run_sql(
        url,
        "CREATE SCHEMA late",
        "CREATE FUNCTION late.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        f"$$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds' $$",
        f"ALTER DATABASE {url.rpartition('/')[2]} SET search_path = public, late, pg_catalog",
    )
    code, checks = examined(cli, "--storage", url)
    assert (code, checks["clock"]["state"]) == (0, "warning")
    assert ("ahead" in checks["clock"]["text"]) is (seconds > 0)


# --- data, versions, disks ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("claimed_once")
def test_other_data_here_than_in_the_plan(cli: Cli, created: Path) -> None:
    write_folder(created / "pictures", train=80, test=1, validation=40)
    code, checks = examined(cli, "--data=folder:pictures")
    assert code == 1
    assert library.find_plan().identity.fingerprint in checks["data"]["text"]
    assert "not the same images" in checks["data"]["text"]
    code, checks = examined(cli, "--data=folder:nowhere")
    assert code == 1
    assert "no such folder" in checks["data"]["text"]
    assert examined(cli, "--data=digits")[0] == 0


@pytest.mark.usefixtures("claimed_once")
def test_data_without_a_plan(cli: Cli) -> None:
    code, checks = examined(cli, "--data=digits")
    assert (code, checks["data"]["state"]) == (0, "ok")
    assert "fingerprint" in checks["data"]["text"]


@pytest.mark.usefixtures("claimed_once")
@pytest.mark.parametrize(("version", "state"), [("1.13.1", "wrong"), ("2.99.0", "warning"), (None, "ok")])
def test_versions_of_the_plan(cli: Cli, created: Path, version: str | None, state: str) -> None:
    storage = Storage("sqlite:///hpo-out/hpo.db")
    if version is not None:
        recorded = storage.study_attrs()["final"]["versions"]
        storage.set_study_attr(storage.study_id("final"), "versions", {**recorded, "torch": version})
    code, checks = examined(cli)
    assert checks["versions"]["state"] == state
    assert code == (1 if state == "wrong" else 0)
    assert (version or "as in the plan") in checks["versions"]["text"]


@pytest.mark.usefixtures("claimed_once")
@pytest.mark.parametrize(
    ("options", "says"), [("ro", "ead-only"), ("size=256k", "No space"), ("size=64m", "make room")]
)
def test_a_disk_that_takes_no_checkpoints(cli: Cli, created: Path, options: str, says: str) -> None:
    disk = created / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
    try:
        code, checks = examined(cli, f"--checkpoints={disk / 'checkpoints'}")
        assert not tree(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert code == 1
    assert checks["checkpoints"]["state"] == "wrong"
    assert says in checks["checkpoints"]["text"]
    assert states(checks, "storage", "claims", "data") == ["ok"] * 3


@pytest.mark.usefixtures("claimed_once")
def test_checkpoints_in_an_object_store(cli: Cli, created: Path) -> None:
    code, checks = examined(cli, "--checkpoints=memory://doctor")
    assert (code, checks["checkpoints"]["state"]) == (0, "ok")
    code, checks = examined(cli, "--checkpoints=nowhere://doctor")
    assert (code, checks["checkpoints"]["state"]) == (1, "wrong")


@pytest.mark.usefixtures("claimed_once")
def test_apples_gpu_is_served_and_said_to_be_untested(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_mps(monkeypatch):
        plan = made_plan(folder, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, device="mps")
        assert work(plan.storage, out=folder) is None
        (trial,) = plan.trials("rate")
        assert (trial.state.name, trial.user_attrs["device"]) == ("COMPLETE", "mps")
        _, checks = examined(cli, "--out", folder)
    assert checks["devices"]["state"] == "warning"
    assert "an Apple GPU (mps, untested)" in checks["devices"]["text"]
    assert "never been tested on mps" in checks["devices"]["text"]
