"""What `hpo delete` removes, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from hpo._text import bytes_text
from hpo.errors import MissingError
from hpo.execution.housekeeping import Holdings, delete, holdings_of, prune_checkpoints
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.monitor.plans import find_plans
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance, study_jobs
from hpo.reporting.figures import FIGURES, Entry
from hpo.storage.queue import Queue, Reason, slot_of, this_process
from hpo.storage.storage import Storage
from hpo.storage.trials import id_of
from hpo.training.blobs import open_blobs
from tests.support import timed
from tests.support.fixtures import Cli, StartedServers
from tests.support.plans import RATES, TINY_SIZES, made_plan, train
from tests.support.scripted_worker import REMOTE, Worker

GRID = {"first": "[search]\nquality = [0, 1]"}
STOPS_ONCE = f"""{timed.EPOCH}
            import os, pathlib
            if epoch == 3 and not pathlib.Path('stopped').exists():
                pathlib.Path('stopped').touch()
                os.kill(os.getpid(), 15)"""
"""An epoch of a recipe whose first trial is stopped in its third epoch."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def begun(url: str, out: Path, *, checkpoints: Path | str | None = None, quality: int = 0) -> Plan:
    """A plan whose first trial was stopped in its third epoch; its checkpoints wait for who resumes it."""
    Path("stopped").unlink(missing_ok=True)
    study = GRID["first"].replace("0", str(quality))
    recipe = timed.write(Path(), {"first": study}, STOPS_ONCE)
    given = {**TINY_SIZES, "recipe": recipe, "epochs": 4}
    plan = find_or_create_plan(out, storage=url, studies=Path("studies"), given=given)
    work(plan.storage, out=out, checkpoints=checkpoints)
    return plan


def test_all_that_hpo_wrote_goes_and_nothing_else(cli: Cli, place: Path, small_studies: Path) -> None:
    out = Path("out")
    train(out, studies=small_studies, **TINY_SIZES)
    assert cli("report", "--out", out).code == 0
    notes = (
        *("notes.md", "report/notes.md", "checkpoints/mine", "logs/other.log", "logs/worker-mine.log"),
        *("report/tables/mine.txt", "report/tables/mine.csv", "report/tables/points-mine.csv"),
    )
    (out / "logs").mkdir()
    (out / "logs" / "worker-12.log").write_text("what a worker said")
    (place / "jobs").mkdir()
    (place / "jobs" / "1_log.out").write_text("mine")
    (out / "slurm").symlink_to(place / "jobs")
    for name in notes:
        (out / name).write_text("mine")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "worker-1.log").write_text("mine")
    (out / "artifacts" / "link").symlink_to(place / "elsewhere")
    (out / "report" / "figures").rename(place / "figures")
    (out / "report" / "figures").symlink_to(place / "figures")
    drawn = files(place / "figures")
    result = cli("delete", "--out", out, "--yes")
    assert result.code == 0, result.err
    assert files(out) - {f"report/figures/{name}" for name in drawn} == {*notes}
    assert files(place / "jobs") == {"1_log.out"}
    assert files(place / "elsewhere") == {"worker-1.log"}
    assert files(place / "figures") == drawn
    again = cli("delete", "--out", out, "--yes")
    assert again.code == 2
    assert "no database here" in again.err


@pytest.mark.parametrize("entry", FIGURES, ids=lambda entry: entry.name)
def test_every_figure_of_the_report_goes(cli: Cli, place: Path, entry: Entry) -> None:
    plan = made_plan(place / "out", RATES)
    name = entry.of(plan.objective, dashboard_has_it=False).name
    figure = place / "out" / "report" / "figures" / (f"rate-{name}" if entry.place == "study" else name)
    mine = figure.with_name(f"my-{figure.name}.png")
    figure.parent.mkdir(parents=True)
    for path in (mine, *(figure.with_name(f"{figure.name}.{kind}") for kind in ("svg", "png"))):
        path.write_bytes(b"a drawing")
    assert cli("delete", "--out", "out", "--yes").code == 0
    assert [*figure.parent.iterdir()] == [mine]


def test_nothing_is_left_of_a_folder_that_was_hpo_s_alone(cli: Cli, place: Path) -> None:
    plan = begun("sqlite:///out/hpo.db", Path("out"))
    assert any(name.endswith(".checkpoint") for name in files(Path("out")))
    told = cli("delete", "--out", "out", "--yes").out
    assert f"out, in {plan.storage.name}: 2 studies, 2 trials" in told
    assert "checkpoints" in told
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("owner", "name"), [(this_process(), f":{os.getpid()}"), (REMOTE, "node-7:")], ids=["here", "elsewhere"]
)
def test_a_plan_with_workers_is_not_deleted(
    cli: Cli, place: Path, owner: dict[str, object], name: str
) -> None:
    plan = made_plan(place / "out", RATES)
    advance(plan)
    trial = Worker(plan).claim("rate", owner)
    refused = cli("delete", "--out", "out", "--yes")
    assert refused.code == 2
    assert name in refused.err
    assert "is training for this plan" in refused.err
    assert len(plan.trials("rate")) == 3
    Worker(plan).finish(trial, [0.5])
    assert cli("delete", "--out", "out", "--yes").code == 0


def test_who_cannot_be_asked_deletes_nothing(cli: Cli, place: Path) -> None:
    made_plan(place / "out", RATES)
    before = files(place)
    refused = cli("delete", "--out", "out")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert files(place) == before


@pytest.mark.parametrize(("answer", "is_deleted"), [("n\n", False), ("\n", False), ("y\n", True)])
def test_the_question(place: Path, answer: str, is_deleted: bool) -> None:
    made_plan(place / "out", RATES)
    master, terminal = pty.openpty()
    os.write(master, answer.encode())
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "delete", "--out", "out"],
        stdin=terminal,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(master)
    os.close(terminal)
    assert done.returncode == 0, done.stderr
    assert "Delete all of it? [y/N]" in done.stdout
    assert (place / "out" / "hpo.db").exists() != is_deleted


def test_two_plans_in_one_folder_keep_what_is_theirs(cli: Cli, place: Path) -> None:
    """Both have one --out and one store of checkpoints, and databases elsewhere."""
    out, shared = Path("out"), place / "shared"
    begun("sqlite:///a.db", out, checkpoints=shared)
    of_a = files(shared)
    b = begun("sqlite:///b.db", out, checkpoints=shared, quality=7)
    of_b = files(shared) - of_a
    assert of_a
    assert of_b
    assert cli("delete", "--storage", "sqlite:///a.db", "--checkpoints", shared, "--yes").code == 0
    assert files(shared) == of_b
    assert not Path("a.db").exists()
    work(b.storage, out=out, checkpoints=shared)
    out.mkdir(exist_ok=True)
    (out / "report.md").write_text("mine")
    assert cli("delete", "--storage", "sqlite:///b.db", "--checkpoints", shared, "--yes").code == 0
    assert files(shared) == set()
    assert files(out) == {"report.md"}


def test_another_s_study_in_the_database_stays(cli: Cli, place: Path) -> None:
    made_plan(place / "out", RATES)
    others = optuna.create_study(study_name="others", storage="sqlite:///out/hpo.db")
    others.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    told = cli("delete", "--out", "out", "--yes")
    assert told.code == 0, told.err
    assert "rows of a database that stays" in told.out
    left = optuna.load_study(study_name="others", storage="sqlite:///out/hpo.db")
    assert len(left.trials) == 2
    assert optuna.get_all_study_names("sqlite:///out/hpo.db") == ["others"]


def test_nothing_goes_that_only_the_database_says_is_of_the_plan(cli: Cli, place: Path) -> None:
    """Anybody may have written there."""
    plan = begun("sqlite:///a.db", Path("out"), checkpoints="shared")
    precious = ["precious/thesis.tex", "shared/.keep/0123456789abcdef-0/key", "out/artifacts/thesis.tex"]
    for name in precious:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("mine")
    (trial,) = [each for each in plan.trials("first") if each.number == 0]
    digest = hashlib.sha256(b"mine").hexdigest()
    attrs = {
        "checkpoints": "../precious",
        "final": {
            "shared_folder": str(place / "precious"),
            "shared_files": {"../precious/thesis.tex": digest},
        },
    }
    with closing(sqlite3.connect("a.db")) as database, database:
        for key, value in attrs.items():
            row = [id_of(trial), key, json.dumps(value)]
            database.execute(
                "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                row,
            )
        for artifact in ("thesis.tex", "../../precious/thesis.tex"):
            told = json.dumps(json.dumps({"artifact_id": artifact}))
            database.execute(
                "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                [id_of(trial), f"artifacts:{artifact}", told],
            )
    deleted = cli("delete", "--storage", "sqlite:///a.db", "--out", "out", "--checkpoints", "shared", "--yes")
    assert deleted.code == 0, deleted.err
    assert [Path(name).read_text() for name in precious] == ["mine"] * 3


def test_folders_behind_a_link_stay_even_where_they_are_empty(cli: Cli, place: Path) -> None:
    made_plan(place / "out", RATES)
    (place / "mine" / "to-come").mkdir(parents=True)
    (place / "out" / "report").symlink_to(place / "mine")
    assert cli("delete", "--out", "out", "--yes").code == 0
    assert (place / "mine" / "to-come").is_dir()


def test_a_database_takes_another_plan_afterwards(cli: Cli, place: Path, database_url: str) -> None:
    plan = made_plan(place / "first", RATES, database_url)
    advance(plan)
    worker = Worker(plan)
    worker.finish_all("rate", [0.5, 0.4])
    assert cli("delete", "--storage", database_url, "--out", "first", "--yes").code == 0
    if not plan.storage.is_sqlite:
        assert Storage(database_url).study_attrs() == {}
    again = made_plan(place / "second", RATES, database_url)
    assert again.trials("rate") == []
    (line,) = find_plans(database_url).plans
    assert line.state == "pending"


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_of_several_that_delete_a_plan_of_a_server_at_once_one_does(
    place: Path, started_servers: StartedServers, kind: str
) -> None:
    url = f"{started_servers(kind).new_database()}?plan=night"
    made_plan(place / "out", RATES, url)
    # each has looked at the plan when the first begins
    found = [holdings_of(Plan.open(Storage(url, reader=True)), place / "out") for _ in range(3)]

    def delete_one(holdings: Holdings) -> str:
        try:
            delete(holdings)
        except MissingError as error:
            return str(error)
        return "deleted"

    with ThreadPoolExecutor(3) as pool:
        deleted, *others = sorted(pool.map(delete_one, found))
    assert deleted == "deleted"
    assert all("holds no plan" in each for each in others)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_only_what_has_a_result_loses_its_checkpoints(cli: Cli, place: Path, kind: str) -> None:
    """What is left of a worker that was killed between the result and its checkpoints' removal."""
    where = {"folder": "shared", "memory": f"memory://{place.name}"}[kind]
    plan, store = begun("sqlite:///out/hpo.db", Path("out"), checkpoints=where), open_blobs(where)
    first, *_ = plan.trials("first")
    open_, of_another = first.user_attrs["checkpoints"], "first/0123456789abcdef-0"
    copies = {name: store.read(f"{open_}/{name}") for name in store.names(open_)}
    assert len(copies) == 2
    store.write(f"{of_another}/epoch-000001-attempt-0001.checkpoint", b"12345")
    prune = ("prune-checkpoints", "--checkpoints", where)
    kept = sum(map(len, copies.values()))
    told = cli(*prune, "--out", "out")
    assert told.out.splitlines() == [
        "nothing to remove",
        f"{bytes_text(kept)} in 1 folder kept, as trials resume from them",
        "0 kB in 1 folder left, as no trial of this plan names them",
    ]
    assert {name: store.read(f"{open_}/{name}") for name in store.names(open_)} == copies
    work(plan.storage, out=Path("out"), checkpoints=where)
    resumed = plan.trials("first")[-1].user_attrs
    assert resumed["resumed_after_epoch"] == 3
    assert store.names(open_) == []
    for name, content in copies.items():
        store.write(f"{open_}/{name}", content)
    told = cli(*prune, "--out", "out")
    assert told.out.splitlines()[0] == f"{bytes_text(kept)} in 1 folder freed"
    assert store.names(open_) == []
    assert store.size(of_another) == 5


def test_a_point_that_is_trained_again_keeps_its_checkpoints(place: Path) -> None:
    """Two attempts at one point: one has the result, the other does not know yet that it is too late."""
    plan, store = made_plan(place / "out", RATES), open_blobs(place / "checkpoints")
    advance(plan)
    worker = Worker(plan)
    trial = worker.claim("rate")
    folder = "rate/0123456789abcdef-0"
    plan.storage.write(trial._trial_id, attrs={"checkpoints": folder})
    store.write(f"{folder}/epoch-000001-attempt-0001.checkpoint", b"12345")
    queue = Queue(plan.storage, "rate")
    slots = queue.slots()
    job = next(job for job in study_jobs(plan, "rate", None) if job.slot == slot_of(trial))
    queue.enqueue([job], slots)
    worker.finish(trial, [0.5])
    assert prune_checkpoints(plan, store).kept == {folder: 5}
    (again,) = [t for t in queue.slots().attempts[job.slot] if not t.state.is_finished()]
    queue.close(again._trial_id, Reason.SUPERSEDED)
    assert prune_checkpoints(plan, store).freed == {folder: 5}
