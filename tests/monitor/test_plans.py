"""What `hpo list` finds, and what plans are called."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import make_url

from hpo.errors import InputError, MissingError
from hpo.monitor.plans import find_plans
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.reporting.trackers import TRACKERS
from hpo.storage.database import default_name
from hpo.storage.queue import Queue, Reason
from hpo.storage.storage import Storage
from tests.support.fixtures import Cli
from tests.support.plans import RATES, SMALL_RUN, made_plan
from tests.support.scripted_worker import Worker


def listed(cli: Cli, *arguments: object) -> dict[str, Any]:
    result = cli("list", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_a_line_says_what_the_other_commands_say(cli: Cli, finished: Path) -> None:
    best = json.loads(cli("best", "--out", finished, "--json").out)
    (line,) = listed(cli, finished)["plans"]
    assert (line["name"], line["state"], line["studies"], line["decided"]) == ("finished", "done", 2, 2)
    assert (line["metric"], line["best"], line["test"]) == (
        "macro_f1",
        best["value"],
        best["test"]["macro_f1"],
    )
    assert line["folder"] == str(finished)
    assert line["begun"] < line["last_work"]
    assert (
        line["n_bytes"]
        > (finished / "hpo.db").stat().st_size + (finished / "model.safetensors").stat().st_size
    )


def queue(plan: Plan) -> None:
    advance(plan)


def begin(plan: Plan) -> None:
    advance(plan)
    Worker(plan).claim("rate")


def release(plan: Plan) -> None:
    advance(plan)
    trial = Worker(plan).claim("rate")
    Queue(plan.storage, "rate").close(trial._trial_id, Reason.RELEASED)


def decide(plan: Plan) -> None:
    advance(plan)
    Worker(plan).finish_all("rate", [0.5, 0.625])


@pytest.mark.parametrize(
    ("do", "state", "n_decided", "best"),
    [
        (queue, "pending", 0, None),
        (begin, "running", 0, None),
        (release, "idle", 0, None),
        (decide, "idle", 1, 0.625),
    ],
)
def test_how_far_a_plan_is(
    database_url: str,
    tmp_path: Path,
    do: Callable[[Plan], None],
    state: str,
    n_decided: int,
    best: float | None,
) -> None:
    plan = made_plan(tmp_path / "night", RATES, database_url)
    do(plan)
    (line,) = find_plans(database_url).plans
    assert (line.state, line.decided, line.best, line.test) == (state, n_decided, best, None)
    assert (line.begun is None) == (state == "pending")


def test_what_is_no_plan_is_said_and_the_rest_is_listed(cli: Cli, tmp_path: Path) -> None:
    made_plan(tmp_path / "good", RATES)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "hpo.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (tmp_path / "thumbs.db").write_text("no database")
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('1')")
        connection.commit()
    changed = made_plan(tmp_path / "changed", RATES)
    changed.storage.set_study_attr(changed.storage.study_id("final"), "options", "none")
    found = listed(cli, tmp_path)
    assert [line["name"] for line in found["plans"]] == ["good"]
    problems = {
        Path(each["storage"]).relative_to(f"sqlite:/{tmp_path}"): each["problem"]
        for each in found["problems"]
    }
    assert sorted(map(str, problems)) == [
        "broken/hpo.db",
        "changed/hpo.db",
        "foreign.db",
        "optuna.db",
        "thumbs.db",
    ]
    assert problems[Path("optuna.db")] == problems[Path("foreign.db")] == "holds no plan"
    assert "study 'final', options" in problems[Path("changed/hpo.db")]
    plain = cli("list", tmp_path)
    assert plain.code == 0
    assert plain.err.count("left out sqlite:///") == 5


def test_a_database_without_a_plan_is_said_without_its_password(database_url: str) -> None:
    if database_url.startswith("postgresql"):  # which trusts whoever is on this machine
        database_url = make_url(database_url).set(password="secret").render_as_string(hide_password=False)
    Storage(database_url, create=True)
    found = find_plans(database_url)
    assert found.plans == []
    assert [problem for _, problem in found.problems] == ["holds no plan"]
    assert "secret" not in str(found.problems)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_what_was_written_for_a_tracker_is_not_looked_into(cli: Cli, tmp_path: Path, tracker: str) -> None:
    made_plan(tmp_path / "night", RATES)
    (tmp_path / "night" / tracker).mkdir()
    (tmp_path / "night" / tracker / f"{tracker}.db").touch()
    assert listed(cli, tmp_path)["problems"] == []


def test_folders_are_looked_into_three_deep(cli: Cli, tmp_path: Path) -> None:
    plan = made_plan(tmp_path / "a" / "b" / "c", RATES)
    del plan
    for place in ("a/b/c/d", ".hidden/plan", "a/b/c/checkpoints"):
        shutil.copytree(tmp_path / "a" / "b" / "c", tmp_path / "copy")
        shutil.move(tmp_path / "copy", tmp_path / place)
    assert [line["folder"] for line in listed(cli, tmp_path)["plans"]] == [str(tmp_path / "a" / "b" / "c")]


@pytest.mark.parametrize("width", [80, 120])
def test_a_list_fits_the_screen(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("night", "lab/a-plan-with-a-rather-long-name-of-its-own"):
        decide(made_plan(Path(name), RATES))
    lines = cli("list").out.splitlines()
    heads = ["plan", "state", "studies", "best", "test", "last", "work", "size"]
    assert lines[0].split()[: len(heads)] == heads
    assert all(len(line) <= width for line in lines)
    assert any("62.5 %" in line and "night" in line for line in lines)


def test_no_plan_is_no_error_but_no_folder_is(cli: Cli, tmp_path: Path) -> None:
    nothing = cli("list", tmp_path)
    assert (nothing.code, nothing.out) == (0, "")
    assert "no plan here" in nothing.err
    with pytest.raises(InputError, match="no such folder"):
        find_plans(str(tmp_path / "typo"))
    with pytest.raises(MissingError, match="no database here"):
        find_plans(f"sqlite:///{tmp_path / 'hpo.db'}")
    assert list(tmp_path.iterdir()) == []


def test_the_database_of_the_environment_is_listed(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_STORAGE", f"sqlite:///{finished / 'hpo.db'}")
    assert [line["name"] for line in listed(cli)["plans"]] == ["finished"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:////plans/night/hpo.db", "night"),
        ("sqlite:////plans/photos.db", "photos"),
        ("sqlite:////hpo.db", "hpo"),
        ("postgresql://me:secret@host/lab", "lab"),
    ],
)
def test_a_plan_that_nobody_named_is_called_as_its_place(url: str, name: str) -> None:
    assert default_name(url) == name


def test_a_plan_is_renamed_and_nothing_else_changes(
    cli: Cli, tmp_path: Path, small_studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def create(*more: str) -> None:
        result = cli("create", "--studies", small_studies, *SMALL_RUN, "--out", "night", *more)
        assert result.code == 0, result.err

    create()
    before = Plan.open(Storage("sqlite:///night/hpo.db", reader=True))
    assert before.name == "night"
    for name in ("Photos, second try", "\x1b[31mred"):
        create("--name", name)
        assert json.loads(cli("status", "--out", "night", "--json").out)["name"] == name
    after = Plan.open(Storage("sqlite:///night/hpo.db", reader=True))
    assert (after.specs, after.options) == (before.specs, before.options)
    create()
    assert "\x1b" not in cli("list").out
    shown = cli("status", "--out", "night").out
    assert r"plan \x1b[31mred, in sqlite:///night/hpo.db" in shown
    assert cli("report", "--out", "night").code == 0
    page = (tmp_path / "night" / "report" / "report.html").read_text()
    assert r"Tuning report: \x1b[31mred" in page
    for name in ("", "  ", "n" * 101):
        refused = cli("create", "--out", "night", "--name", name)
        assert refused.code == 2
        assert "must have 1 to 100 characters" in refused.err
