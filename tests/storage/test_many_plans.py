"""Many plans in one database of a server, each for itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from hpo.errors import InputError, MissingError
from hpo.monitor.plans import find_plans
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage import database
from hpo.storage.storage import Storage
from tests.support.fixtures import Cli, StartedServers
from tests.support.plans import RATES, made_plan
from tests.support.scripted_worker import Worker

SERVERS = ["postgresql", "mariadb"]
ROOMS = {
    "postgresql": "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'hpo%%'",
    "mariadb": "SELECT schema_name FROM information_schema.schemata "
    "WHERE schema_name LIKE CONCAT(DATABASE(), '$%%')",
}


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, started_servers: StartedServers) -> str:
    """The URL of an empty database on each kind of server."""
    return started_servers(request.param).new_database()


def rooms(url: str) -> list[str]:
    """What there is on a server for plans beside others of this database."""
    kind = "postgresql" if url.startswith("postgresql") else "mariadb"
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        found = sorted(name for (name,) in connection.exec_driver_sql(ROOMS[kind]))
    engine.dispose()
    return found


def worked_on(folder: Path, url: str, best: float) -> Plan:
    """A plan whose study has decided."""
    plan = made_plan(folder, RATES, url)
    advance(plan)
    Worker(plan).finish_all("rate", [best])
    return plan


def test_each_plan_has_its_own(cli: Cli, tmp_path: Path, url: str) -> None:
    names = {"first": 0.5, "second-2": 0.6}
    for name, best in names.items():
        worked_on(tmp_path / name, f"{url}?plan={name}", best)
    assert {line.name: line.best for line in find_plans(url).plans} == names
    assert not find_plans(url).problems
    own = worked_on(tmp_path / "own", url, 0.7)
    assert {line.name: line.best for line in find_plans(url).plans} == {**names, own.name: 0.7}
    (line,) = find_plans(f"{url}?plan=first").plans
    assert line.storage.endswith("?plan=first")
    assert line.n_bytes > 10_000
    deleted = cli("delete", "--storage", f"{url}?plan=first", "--out", tmp_path / "first", "--yes")
    assert deleted.code == 0, deleted.err
    assert {line.name for line in find_plans(url).plans} == {"second-2", own.name}
    (room,) = rooms(url)
    assert room.endswith("second-2")
    with pytest.raises(MissingError, match="holds no plan"):
        Storage(f"{url}?plan=first", reader=True)


def test_who_only_looks_makes_nothing(cli: Cli, url: str) -> None:
    for command in ("status", "delete"):
        refused = cli(command, "--storage", f"{url}?plan=nothing")
        assert refused.code == 2
        assert "plan=nothing: holds no plan" in refused.err
    assert rooms(url) == []


def test_what_others_put_beside_a_plan_s_tables_stays(cli: Cli, tmp_path: Path, url: str) -> None:
    made_plan(tmp_path / "a", RATES, f"{url}?plan=a")
    with database.short_lived_connection(f"{url}?plan=a") as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text INTEGER)")
        connection.commit()
    assert cli("delete", "--storage", f"{url}?plan=a", "--yes").code == 0
    with database.short_lived_connection(f"{url}?plan=a") as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == ["notes"]
    made_plan(tmp_path / "b", RATES, f"{url}?plan=a")
    assert [line.name for line in find_plans(url).plans] == ["a"]


def test_many_make_the_same_plan_s_tables_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Storage(f"{url}?plan=a", create=True), range(4)))
    assert [storage.study_attrs() for storage in opened] == [{}] * 4


@pytest.mark.parametrize("plan", ["", "Photos", "a b", "-a", "a;drop", 'a"b', "ä", "a" * 41, "a&plan=b"])
def test_a_name_that_no_server_takes_is_refused_before_it_is_asked(plan: str) -> None:
    with pytest.raises(InputError, match="plan= takes up to 40 lower-case letters"):
        Storage(f"postgresql://me:secret@127.0.0.1:1/lab?plan={plan}", create=True)


def test_plain_optuna_opens_it_by_the_documented_address(tmp_path: Path, url: str) -> None:
    plan = worked_on(tmp_path / "a", f"{url}?plan=a", 0.5)
    plain = f"{url}?options=-csearch_path%3Dhpo_a" if url.startswith("postgresql") else f"{url}$a"
    storage = optuna.storages.RDBStorage(plain)
    study = optuna.load_study(study_name="rate", storage=storage)
    assert [trial.value for trial in study.trials] == [trial.value for trial in plan.trials("rate")]
    storage.engine.dispose()
