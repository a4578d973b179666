"""A database's file or studies vanish under those who use them: said in words, and nothing is made anew."""

from __future__ import annotations

import gc
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo import find_plan
from hpo.errors import DatabaseGoneError
from hpo.execution.worker import work
from hpo.planning.scheduler import advance
from hpo.storage.storage import Storage
from tests.support.command import start_hpo, wait_for
from tests.support.fixtures import Cli
from tests.support.plans import RATES, SMALL, made_plan
from tests.support.scripted_worker import new_plan, watch


def remove(file: Path) -> None:
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink()


def replace(file: Path) -> None:
    shutil.copy(file, file.with_name("other"))
    file.with_name("other").replace(file)


def remove_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def overwrite(file: Path) -> None:
    """Write another plan's database into the file, as `cp` does."""
    other = file.with_name("other.db")
    Storage(f"sqlite:///{other}", create=True)
    gc.collect()  # its connections, which have a log beside it
    file.write_bytes(other.read_bytes())
    other.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


VANISH = [remove, replace, remove_log, overwrite, empty]


@pytest.mark.parametrize("vanish", VANISH)
@pytest.mark.parametrize("command", [("run", "rate", "--workers=1"), ("worker",)], ids=["run", "worker"])
def test_a_database_file_that_is_removed_or_replaced_ends_all_who_work_on_it(
    command: tuple[str, ...], vanish: Callable[[Path], None], tmp_path: Path
) -> None:
    made_plan(tmp_path, RATES, epochs=100_000, lease_seconds=4)
    file = tmp_path / "hpo.db"
    process = start_hpo(*command, "--out", tmp_path)
    wait_for(lambda: list(tmp_path.glob("checkpoints/**/*.checkpoint")), process)
    vanish(file)
    left = file.read_bytes() if file.exists() else None
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "the database file was removed or replaced" in said
    assert "Traceback" not in said
    if vanish in (remove, replace):
        assert (file.read_bytes() if file.exists() else None) == left


@pytest.mark.parametrize("vanish", [remove, replace, remove_log, empty])
def test_who_looks_at_such_a_database_or_writes_into_it_is_told(
    vanish: Callable[[Path], None], tmp_path: Path
) -> None:
    plan = new_plan(tmp_path)
    eyes, study_id = watch(plan), plan.storage.study_id("setup")
    eyes.look()
    vanish(tmp_path / "hpo.db")
    for use in (
        eyes.look,
        lambda: advance(plan),
        lambda: plan.storage.for_optuna.set_study_user_attr(study_id, "a", 1),  # as the dashboard does
        plan.storage.check_in_place,
    ):
        with pytest.raises(DatabaseGoneError, match="was removed or replaced"):
            use()
    assert sorted(tmp_path.glob("*.db")) == ([] if vanish is remove else [tmp_path / "hpo.db"])


def test_another_database_written_into_the_file_is_not_taken_for_the_plans(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    eyes = watch(plan)
    eyes.look()
    plan.storage.check_in_place()
    overwrite(tmp_path / "hpo.db")
    for use in (eyes.look, plan.storage.check_in_place):
        with pytest.raises(DatabaseGoneError, match="was removed or replaced"):
            use()


def test_a_look_into_the_middle_of_a_checkpoint_finds_the_same_database(tmp_path: Path) -> None:
    plan, file = new_plan(tmp_path), tmp_path / "hpo.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    plan.storage.check_in_place()

    def count_pages(count: bytes) -> bytes:
        with file.open("r+b") as opened:
            opened.seek(28)  # https://www.sqlite.org/fileformat.html: the size of the database in pages
            before = opened.read(4)
            opened.seek(28)
            opened.write(count)
        return before

    written = count_pages(
        (1_000_000).to_bytes(4, "big")
    )  # the first page is there, those that it counts are not
    rest = threading.Timer(0.1, count_pages, (written,))
    rest.start()
    plan.storage.check_in_place()
    rest.join()


def test_a_lost_log_costs_nothing_once_all_have_ended(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)  # all of it is in the log
    eyes = watch(plan)
    eyes.look()
    before = plan.storage.study_attrs()
    remove_log(tmp_path / "hpo.db")
    with pytest.raises(DatabaseGoneError, match=r"hpo\.db-wal: .* once all that use it have ended"):
        advance(plan)
    del plan
    gc.collect()
    del eyes  # leaves last, and only reads: SQLite would save nothing
    gc.collect()
    assert find_plan(tmp_path).storage.study_attrs() == before


@pytest.mark.parametrize("study", ["setup", "rate", "final"])
def test_a_study_that_was_deleted_is_named_and_never_made_anew(study: str, cli: Cli, tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    plan.storage.for_optuna.delete_study(plan.storage.study_id(study))
    left = plan.storage.study_attrs()
    commands = ["run", "resume", "create", "worker", "retry", "final", "status", "best", "report", "export"]
    for command in [*([name] for name in commands), ["show", "setup"], ["verify", "setup/0"]]:
        result = cli(*command, "--out", tmp_path)
        assert result.code == 2, (command, result)
        assert f"study {study!r} of its plan is missing" in result.err
        assert "put back a copy of the database, or start anew" in result.err
    assert "is missing" in cli("doctor", "--out", tmp_path).out
    assert plan.storage.study_attrs() == left


@pytest.mark.parametrize("study", ["rate", "final"])
def test_a_study_that_is_deleted_under_a_worker_ends_it_in_words(study: str, tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES, epochs=60 if study == "final" else 100_000)
    process = start_hpo("worker", "--out", tmp_path)
    wait_for(lambda: any(trial.intermediate_values for trial in plan.trials("rate")), process)
    plan.storage.for_optuna.delete_study(plan.storage.study_id(study))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert f"study {study!r} of its plan is missing" in said
    assert "Traceback" not in said


def test_an_opened_test_set_stays_opened_when_the_trial_that_opened_it_is_deleted(
    cli: Cli, tmp_path: Path
) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, final_seeds=1)
    assert work(plan.storage, out=tmp_path) is None
    (final,) = plan.trials("final")
    with sqlite3.connect(tmp_path / "hpo.db") as connection:
        connection.execute("DELETE FROM trials WHERE trial_id = ?", (final._trial_id,))
    connection.close()
    for command in ("run", "worker", "final"):
        result = cli(command, "--out", tmp_path)
        assert result.code == 2, (command, result)
        assert "trial final/0 was deleted, and it had opened the test set" in result.err
    assert "test set locked" not in cli("status", "--out", tmp_path).out
    assert find_plan(tmp_path).trials("final") == []
