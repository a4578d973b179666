"""`hpo dashboard` on real runs: what it writes into the database, what it serves, what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import optuna_dashboard
import pytest
from optuna.artifacts import upload_artifact

import hpo as library
from hpo.monitor.plans import find_plans
from hpo.monitor.results import final_trial
from hpo.planning.inheritance import inherited_by
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import advance
from hpo.reporting import figures
from hpo.reporting.charts import Figure
from hpo.reporting.dashboard import is_loopback
from hpo.reporting.dashboard.notes import study_note
from hpo.reporting.dashboard.plans_page import plans_page
from hpo.reporting.dashboard.publish import ArtifactFolder
from hpo.reporting.dashboard.server import address
from hpo.reporting.data import Section
from hpo.reporting.data import read as read_report
from hpo.reporting.render import plotly
from hpo.storage.storage import Storage
from tests.support.command import read_only, start_hpo
from tests.support.fixtures import Cli
from tests.support.hostile_plan import HOSTILE_NAMES, train_hostile
from tests.support.plans import SMALL_SIZES, train
from tests.support.scripted_worker import Worker, new_plan

DEADLINE_SECONDS = 300


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running `hpo dashboard`."""

    process: subprocess.Popen[str]
    address: str

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=300)
        text = None if body is None else json.dumps(body)
        head = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, text, head)
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def studies(self) -> dict[str, int]:
        listed = self.ask("GET", "/api/studies").json["study_summaries"]
        return {study["study_name"]: study["study_id"] for study in listed}

    def detail(self, study: str) -> Any:
        return self.ask("GET", f"/api/studies/{self.studies()[study]}").json

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Exit code, and what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, err


@contextlib.contextmanager
def serving(out: Path, *options: str, as_reader: bool = False) -> Iterator[Served]:
    process = start_hpo("dashboard", "--out", out, *(options or ("--port=0",)), as_reader=as_reader)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("http://"), process.communicate(timeout=DEADLINE_SECONDS)[1]
        yield Served(process, line)
        if process.poll() is None:
            code, err = Served(process, line).stop()
            assert code == 130
            assert "Traceback" not in err
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(condition: Callable[[], object], served: Served) -> None:
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert served.process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.2)


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "out"))


def written(out: Path) -> dict[str, dict[str, Any]]:
    """The system attributes of every study, which is where notes and figures are."""
    plan = library.find_plan(out)
    return {name: plan.storage.system_attrs(plan.storage.study_id(name)) for name in plan.all_names}


def artifact_names(detail: Any) -> dict[int, list[str]]:
    return {trial["number"]: [each["filename"] for each in trial["artifacts"]] for trial in detail["trials"]}


@pytest.fixture(scope="module")
def out(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(finished, tmp_path_factory.mktemp("dashboard"))


@pytest.fixture(scope="module")
def served(out: Path) -> Iterator[Served]:
    """The dashboard of a finished plan, with all its pictures."""
    with serving(out, "--port=0", "--read-only", "--no-browser") as served:
        until(lambda: artifact_names(served.detail("shape"))[1], served)
        yield served


# --- what it writes ----------------------------------------------------------------------------------------


def test_every_study_has_note_metric_and_figures(out: Path, served: Served) -> None:
    plan = library.find_plan(out)
    rate, shape, final = (served.detail(name) for name in ("rate", "shape", FINAL))
    note = shape["note"]["body"]
    decision = plan.decision("shape")
    assert decision is not None
    assert note.startswith("# 2 A sampled study under a constraint\n")
    assert decision.text.replace("_", "\\_")[1:] in note
    chosen = inherited_by(plan, "shape")
    assert chosen is not None
    assert chosen.source is not None
    link = f"/dashboard/studies/{served.studies()['rate']}/trials?numbers={chosen.source.trial}"
    assert f"| learning\\_rate {chosen.params['learning_rate']:g} | chosen by rate: rate/" in note
    assert f"rate/{chosen.source.trial} ([show]({link}))" in note
    assert "Test macro F1" in final["note"]["body"]
    assert {tuple(each["objective_names"]) for each in (rate, shape, final)} == {("validation macro F1",)}
    figures = {
        name: {each["id"] for each in served.detail(name)["plotly_graph_objects"]} for name in plan.specs
    }
    assert figures["rate"] == {"hpo-accuracy", "hpo-loss", "hpo-gradients", "hpo-dead-units"}
    assert figures["shape"] == {"hpo-accuracy", "hpo-loss"}
    assert {each["id"] for each in final["plotly_graph_objects"]} == {
        f"hpo-{name}"
        for name in (
            *("waterfall", "test-macro-f1", "test-accuracy", "test-loss"),
            *("confusion", "per-class", "time-line"),
        )
    }


def test_figures_say_what_the_database_says(out: Path, served: Served) -> None:
    plan = library.find_plan(out)
    rate, answer = (
        {each["id"]: json.loads(each["graph_object"]) for each in served.detail(name)["plotly_graph_objects"]}
        for name in ("rate", FINAL)
    )
    lines = {trace["name"].split()[0]: trace["y"] for trace in rate["hpo-accuracy"]["data"]}
    trials = plan.trials("rate")
    for trial in trials:
        values = [100 * trial.user_attrs[f"epoch:{n}"][0]["metrics"]["accuracy"] for n in (1, 2, 3)]
        assert lines[str(trial.number)] == pytest.approx(values, rel=1e-3)
    best = max(trials, key=lambda trial: trial.value or 0.0)
    top = rate["hpo-accuracy"]["data"][-1]  # drawn last, named first
    assert (top["name"], top["legendrank"]) == (f"{best.number} (best)", 0)
    final = library.final_result(plan)
    (matrix,) = answer["hpo-confusion"]["data"]
    assert [sum(row) for row in matrix["z"]] == pytest.approx([100] * 10, abs=5)
    assert matrix["y"] == list(final["per_class"])
    (bars,) = answer["hpo-per-class"]["data"]
    assert bars["x"] == sorted(bars["x"])  # the worst below
    scores = {name: 100 * figures["f1"] for name, figures in final["per_class"].items()}
    assert dict(zip(bars["y"], bars["x"], strict=True)) == pytest.approx(scores, rel=1e-3)
    (chosen,) = answer["hpo-test-loss"]["layout"]["shapes"]
    assert chosen["x0"] == chosen["x1"] == final["selected_epoch"]
    (steps,) = answer["hpo-waterfall"]["data"]
    assert steps["y"][0] == "test set"  # the first is below
    assert steps["base"][0] + steps["x"][0] == pytest.approx(100 * final["test"]["macro_f1"], abs=0.1)
    assert steps["base"][0] == pytest.approx(100 * final["fresh_value"], abs=0.1)
    (took,) = (trace for trace in answer["hpo-time-line"]["data"] if trace["name"] == "shape")
    seconds = [
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in plan.trials("shape")
        if trial.datetime_start and trial.datetime_complete
    ]
    assert took["x"][::-1] == pytest.approx(seconds, abs=0.06)


def drawn(figure: Figure | None) -> list[dict[str, Any]]:
    assert figure is not None
    traces: list[dict[str, Any]] = json.loads(plotly.Plot(figure).to_json())["data"]
    return traces


def test_large_and_odd_figures(finished: Path) -> None:
    report = read_report(library.find_plan(finished))
    section = report.sections[0]
    accuracy, loss = Metric("accuracy", "maximize"), Metric("loss", "minimize")

    def with_rows(**changes: Any) -> Section:
        points = [replace(point, row=replace(point.row, **changes)) for point in section.points]
        return replace(section, points=points)

    history = [epoch for _ in range(100) for epoch in section.points[0].row.history]
    for metric in (accuracy, loss):
        for trace in drawn(figures.curves(report, with_rows(history=history), metric)):
            assert (trace["x"][0], trace["x"][-1], len(trace["x"]), len(trace["y"])) == (1, 300, 100, 100)
        failed = drawn(figures.curves(report, with_rows(state="failed"), metric))
        assert len(failed) == len(section.points)
        assert not any("best" in trace["name"] for trace in failed)  # none has a result
        assert figures.curves(report, with_rows(history=[]), metric) is None
    odd = [
        [{**seed, "metrics": {**seed["metrics"], "loss": math.inf}} for seed in epoch]
        for epoch in section.points[0].row.history
    ]
    assert drawn(figures.curves(report, with_rows(history=odd), loss))[0]["y"] == [None] * 3
    names = [f"{'n' * 100} {i}" for i in range(figures.MAX_CLASSES + 30)]
    final = {
        "per_class": {name: {"f1": i / 100} for i, name in enumerate(names)},
        "confusion_matrix": [[1] * len(names)] * len(names),
        "test": {"macro_f1": 0.5},
    }
    many = replace(report, final=final)
    matrix = figures.confusion(many)
    assert matrix is not None
    assert not plotly.is_drawn(matrix)
    (bars,) = drawn(figures.per_class(many))
    assert bars["x"] == [float(i) for i in range(figures.MAX_CLASSES)]  # the best has no room
    assert len(set(bars["y"])) == figures.MAX_CLASSES  # cut to the same length, and yet told apart
    small = {
        "per_class": {name: {"f1": 0.0} for name in ("<b>a</b>", "b")},
        "confusion_matrix": [[3, 1], [0, 0]],
    }
    (trace,) = drawn(figures.confusion(replace(report, final=small)))
    assert trace["z"] == [[75, 25], [0, 0]]
    assert trace["y"] == ["&lt;b&gt;a&lt;/b&gt;", "b"]  # Plotly would make it bold


def test_a_note_links_to_the_trial_that_it_names(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    worker = Worker(plan)
    for value in (0.2, 0.6):
        worker.finish(worker.claim("setup"), [value])
    advance(plan)
    report = read_report(plan)
    note = study_note(report, report.sections[0], {"setup": 7, "rate": 8})
    assert "Carried on: setup/1 ([show](/dashboard/studies/7/trials?numbers=1))." in note


def test_trials_carry_pictures(served: Served) -> None:
    final = served.detail(FINAL)
    (trial,) = final["trials"]
    names = {each["filename"]: each["artifact_id"] for each in trial["artifacts"]}
    assert {
        "confusion-matrix.png",
        "f1-per-class.png",
        "test-accuracy.png",
        "test-loss.png",
        "most-confidently-wrong.png",
    } <= names.keys()
    for name, artifact in names.items():
        answer = served.ask("GET", f"/artifacts/{served.studies()[FINAL]}/{trial['trial_id']}/{artifact}")
        assert answer.status == 200
        if name.endswith(".png"):
            assert answer.body.startswith(b"\x89PNG")
            assert answer.headers["content-type"] == "image/png"
    rate = served.detail("rate")
    assert artifact_names(rate) == {0: ["curves.png"], 1: ["curves.png"]}
    others = [each["artifact_id"] for trial in rate["trials"] for each in trial["artifacts"]]
    assert len({*names.values(), *others}) == len(names) + 2
    curves = [
        served.ask("GET", f"/artifacts/{served.studies()[FINAL]}/{trial['trial_id']}/{names[name]}").body
        for name in ("test-accuracy.png", "test-loss.png")
    ]
    assert curves[0] != curves[1]


def test_started_twice_it_changes_nothing_and_a_note_of_others_stays(
    served: Served, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: all(artifact_names(served.detail("shape")).values()), served)  # the last to be drawn
    copy = copied(out, tmp_path)
    before, files = written(copy), sorted(path.name for path in (copy / "artifacts").iterdir())
    with serving(copy) as again:
        until(lambda: artifact_names(again.detail("shape"))[1], again)
        assert written(copy) == before
        study, note = again.studies()["rate"], again.detail("rate")["note"]
        mine = {"version": note["version"] + 1, "body": "mine"}
        assert again.ask("PUT", f"/api/studies/{study}/note", mine).status == 204
        unwanted, wanted = again.detail("rate")["trials"]
        deleted = unwanted["artifacts"][0]["artifact_id"]
        path = f"/api/artifacts/{study}/{unwanted['trial_id']}/{deleted}"
        # it does so and then answers 500: of a trial that has ended it wants to write down more than it may
        assert again.ask("DELETE", path).status in (204, 500)
        (sheet,) = (
            each["artifact_id"]
            for each in again.detail(FINAL)["trials"][0]["artifacts"]
            if each["filename"] == "most-confidently-wrong.png"
        )
    (copy / "artifacts" / sheet).unlink()
    storage = Storage(f"sqlite:///{copy / 'hpo.db'}")
    stale = "dashboard:plot_data:hpo-of-an-earlier-version:0"
    storage.replace_system_attrs(storage.study_id("shape"), [stale], {stale: "{}"})
    files.remove(deleted)
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # a picture is the same wherever it is looked at
    (copy / "artifacts" / wanted["artifacts"][0]["artifact_id"]).unlink()  # as on another machine
    with serving(copy) as again:
        until(lambda: sorted(path.name for path in (copy / "artifacts").iterdir()) == files, again)
        assert again.detail("rate")["note"]["body"] == "mine"
        assert artifact_names(again.detail("rate")) == {0: [], 1: ["curves.png"]}
        assert again.detail("shape")["note"] == {**note, "body": again.detail("shape")["note"]["body"]}
    assert written(copy)["shape"] == before["shape"]


def test_notes_follow_a_plan_and_do_not_disturb_it(tmp_path: Path, small_studies: Path) -> None:
    train(tmp_path / "out", "rate", studies=small_studies, **SMALL_SIZES)
    with serving(tmp_path / "out") as served:
        assert "Decision.** Chose" in served.detail("rate")["note"]["body"]
        assert "Decision.** Not begun" in served.detail("shape")["note"]["body"]
        assert served.detail(FINAL)["note"]["body"].startswith("# No answer yet")
        plan = train(tmp_path / "out", studies=small_studies, **SMALL_SIZES)
        assert final_trial(plan) is not None
        until(lambda: "Not begun" not in served.detail("shape")["note"]["body"], served)
        until(lambda: len(served.detail("shape")["plotly_graph_objects"]) == 2, served)


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_notes_and_figures_on_a_server(database_url: str, finished: Path) -> None:
    source = library.find_plan(finished)
    storage = Storage(database_url, create=True)
    plan = Plan.create(storage, source.specs, source.options, source.identity, source.recipe)
    id_ = storage.study_id("rate")
    text = "ä" * 5000
    attrs = {f"dashboard:plot_data:hpo-x:{i}": text for i in range(1200)}
    storage.replace_system_attrs(id_, ["dashboard:plot_data:hpo-"], attrs)
    storage.replace_system_attrs(id_, ["dashboard:plot_data:hpo-"], {"dashboard:plot_data:hpo-y:0": "z"})
    assert plan.storage.system_attrs(id_) == {"dashboard:plot_data:hpo-y:0": "z"}


# --- what it refuses ---------------------------------------------------------------------------------------


def test_read_only_refuses_what_could_change_something(out: Path, served: Served) -> None:
    before = written(out)
    study = served.studies()["rate"]
    for method, path, body in (
        ("POST", "/api/studies", {"study_name": "new", "directions": ["maximize"]}),
        ("PUT", f"/api/studies/{study}/note", {"version": 2, "body": "mine"}),
        ("DELETE", f"/api/studies/{study}", None),
        ("POST", f"/api/artifacts/{study}", {"file": "data:text/plain;base64,eA==", "filename": "x"}),
        ("PATCH", "/", None),
        ("OPTIONS", "/api/studies", None),
    ):
        answer = served.ask(method, path, body)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert "read-only" in answer.json["reason"]
    page = served.ask("HEAD", "/dashboard")
    assert (page.status, page.headers["x-content-type-options"]) == (200, "nosniff")
    assert written(out) == before
    assert "new" not in served.studies()


def test_the_plan_is_not_damaged_even_where_writing_is_allowed(out: Path, tmp_path: Path) -> None:
    copy = copied(out, tmp_path)
    with serving(copy) as served:
        study, trial = served.studies()["rate"], served.detail("rate")["trials"][0]["trial_id"]
        for method, path, body in (
            ("DELETE", f"/api/studies/{study}", None),
            ("DELETE", f"/api/studies/{study}//", None),
            ("delete", f"/api/studies/{study}", None),
            ("DELETE", f"/api/studies/00{study}", None),
            ("POST", f"/api/studies/{study}/rename", {"study_name": "x"}),
            ("POST", f"/api/trials/{trial}/tell", {"state": "Complete", "values": [1.0]}),
        ):
            assert served.ask(method, path, body).status == 403
        # the dashboard leaves out bytes that are no UTF-8, and reads the digits of every script
        # and does not see a line end at the end
        for path in ("%FF", "%0a", "/%0a", "%0d%0a"):
            assert served.ask("DELETE", f"/api/studies/{study}{path}").status == 400
        assert served.ask("DELETE", f"/api/studies/{quote(chr(0xFF10 + study))}").status == 400
        renamed = served.ask("POST", f"/api/studies/{study}/rename%0a", {"study_name": "x"})
        assert renamed.status == 400
        other = served.ask("POST", "/api/studies", {"study_name": "x", "directions": ["maximize"]})
        assert other.status == 201
        assert served.ask("DELETE", f"/api/studies/{served.studies()['x']}").status == 204
        assert set(served.studies()) == {"rate", "shape", FINAL}
        note = {"version": served.detail("rate")["note"]["version"] + 1, "body": "theirs"}
        path = f"/api/studies/{study}/note"
        assert served.ask("PUT", path, note, Origin="http://elsewhere.example").status == 403
        assert served.ask("GET", "/api/studies", Host="elsewhere.example").status == 403
        assert served.ask("GET", "/api/studies", Host="localhost:1").status == 200
        assert served.ask("PUT", path, note, Origin=served.address.rstrip("/")).status == 204
        assert served.stop(signal.SIGTERM)[0] == 143


@pytest.mark.parametrize(
    ("name", "mimetype"),
    [
        ("page.html", "text/html"),
        ("drawing.svg", "image/svg+xml"),
        ("page.png", "TEXT/HTML; charset=utf-8"),
        ("page.xml", "application/xhtml+xml"),
        ("odd", "image/png\r\nX: y"),
    ],
)
def test_no_artifact_is_a_page(out: Path, served: Served, name: str, mimetype: str, tmp_path: Path) -> None:
    plan = Plan.open(Storage(f"sqlite:///{out / 'hpo.db'}"))
    (tmp_path / name).write_text("<script>alert(1)</script>")
    study = plan.storage.study("rate")
    artifact = upload_artifact(
        artifact_store=ArtifactFolder(out),
        file_path=str(tmp_path / name),
        study_or_trial=study,
        mimetype=mimetype,
    )
    answer = served.ask("GET", f"/artifacts/{study._study_id}/{artifact}")
    assert "x" not in answer.headers
    if answer.status == 200:
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert served.ask("GET", f"/arti%FFfacts/{study._study_id}/{artifact}").status == 400
    assert "access-control-allow-origin" not in answer.headers
    (out / "artifacts" / artifact).unlink()
    assert served.ask("GET", f"/artifacts/{study._study_id}/{artifact}").status in (404, 500)


@pytest.mark.usefixtures("served")  # has written notes
def test_a_database_that_takes_no_writes_is_served(out: Path, tmp_path: Path) -> None:
    copy = copied(out, tmp_path)
    with serving(read_only(copy), as_reader=True) as served:
        assert "Decision" in served.detail("rate")["note"]["body"]
        answer = served.ask(
            "PUT", f"/api/studies/{served.studies()['rate']}/note", {"version": 2, "body": ""}
        )
        assert answer.status == 405
        assert "takes no writes" in served.stop()[1]


@pytest.mark.parametrize(
    ("host", "is_ours", "opened"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80/"),
        ("127.3.2.1", True, "http://127.3.2.1:80/"),
        ("::1", True, "http://[::1]:80/"),
        ("localhost", True, "http://localhost:80/"),
        ("example.org", False, "http://example.org:80/"),
        ("192.0.2.1", False, "http://192.0.2.1:80/"),
        # they are everywhere, and nowhere to go to
        ("0.0.0.0", False, f"http://{socket.gethostname()}:80/"),
        ("::", False, f"http://{socket.gethostname()}:80/"),
    ],
)
def test_who_reaches_an_address_and_how(host: str, is_ours: bool, opened: str) -> None:
    assert is_loopback(host) == is_ours
    assert address(host, 80) == opened


def test_where_it_listens(out: Path, tmp_path: Path, cli: Cli) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = cli("dashboard", "--out", out, "--port", port)
        assert result.code == 2
        assert f"--host 127.0.0.1 --port {port}: cannot listen there" in result.err
    for options, text in (
        (["--port", "65536"], "neither a port"),
        (["--port", "http"], "neither a port"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1"),
    ):
        result = cli("dashboard", "--out", out, *options)
        assert result.code == 2
        assert text in result.err
        assert result.out == ""
    assert "no database here" in cli("dashboard", "--out", tmp_path).err
    with contextlib.closing(socket.socket()) as taken:
        with contextlib.suppress(OSError):  # somebody else may have it
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with serving(out, "--host", "0.0.0.0", "--read-only") as served:
            assert urlsplit(served.address).port != 8080
            local = Served(served.process, f"http://127.0.0.1:{urlsplit(served.address).port}")
            assert local.ask("GET", "/api/studies", Host="any.example").status == 200
            assert "warning: --host 0.0.0.0: there is no password" in served.stop()[1]


# --- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Opens a page, in the place of the last one; gives it and what the browser complained of."""
    pages = []

    def open_(address: str, **settings: Any) -> tuple[Any, list[str]]:
        seen: list[str] = []

        def dismiss(dialog: Any) -> None:
            seen.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        close()
        page = browser.new_page(**settings)
        pages.append(page)
        page.set_default_timeout(1000 * DEADLINE_SECONDS)
        page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", dismiss)
        page.goto(address)
        return page, seen

    def close() -> None:
        while pages:
            pages.pop().close()

    yield open_
    close()


def test_studies_notes_figures_and_pictures_are_seen(served: Served, opened: Any) -> None:
    studies = served.studies()
    page, seen = opened(f"{served.address}dashboard")
    for name in ("rate", "shape", FINAL):
        page.get_by_text(re.compile(rf"^\d+\. {name}$")).first.wait_for()
    for scheme in ("light", "dark"):
        page, more = opened(f"{served.address}dashboard/studies/{studies[FINAL]}", color_scheme=scheme)
        for figure in served.detail(FINAL)["plotly_graph_objects"]:
            page.locator(f'[id="user-defined-plot:{figure["id"]}"] svg.main-svg').first.wait_for()
        page.get_by_text("Test F1 of each class").first.wait_for()
        assert page.locator(".barlayer path").count() >= 10
        seen += more
    page, more = opened(f"{served.address}dashboard/studies/{studies['shape']}/note")
    page.get_by_role("heading", name="2 A sampled study under a constraint").wait_for()
    page.get_by_role("link", name="show").first.click()
    page.get_by_text(re.compile(r"^Trial \d \(trial_id=")).first.wait_for()
    seen += more
    page, more = opened(f"{served.address}dashboard/studies/{studies[FINAL]}/trials?numbers=0")
    page.get_by_text("confusion-matrix.png").first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('img')].filter(i => i.src.includes('/artifacts/')).length >= 5 && "
        "[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert seen + more == []


def test_hostile_names_are_shown_and_not_obeyed(
    tmp_path_factory: pytest.TempPathFactory, opened: Any
) -> None:
    out = train_hostile(tmp_path_factory.mktemp("hostile"))
    with serving(out) as served:
        studies = served.studies()
        page, seen = opened(f"{served.address}dashboard/studies/{studies['rate']}/note")
        heading = page.get_by_role("heading", name="<b>bold</b>")
        assert heading.inner_text() == '=1+1 <b>bold</b> ]]> & "quoted" {{ 7 * 7 }}'
        page, more = opened(f"{served.address}dashboard/studies/{studies[FINAL]}")
        page.locator('[id="user-defined-plot:hpo-per-class"] svg.main-svg').first.wait_for()
        labels = page.locator('[id="user-defined-plot:hpo-per-class"] .ytick').all_text_contents()
        assert HOSTILE_NAMES[0] in labels
        assert "$\\frac{1}{0}$ _x_ **b** `c` | d" in labels
        assert page.locator("img[src=x]").count() == 0
        assert seen + more == []
    plan = library.find_plan(out)
    for name in plan.all_names:
        note = optuna_dashboard.get_note(plan.storage.study(name))
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", note)
        assert not re.search(r"(?<!\\)<", note)


def test_a_page_leads_to_the_dashboard_of_each_plan(tmp_path: Path) -> None:
    """Two plans in a folder, one with a name that is no HTML, and a database that is none."""
    for name, best in (("night", 0.5), ("day", 0.6)):
        (tmp_path / name).mkdir()
        plan = new_plan(tmp_path / name)
        advance(plan)
        Worker(plan).finish_all("setup", [best])
    plan.named("<b>day</b>")
    (tmp_path / "hpo.db").write_text("no database")
    with serving(tmp_path / "out", str(tmp_path), "--port=0") as page:
        shown = page.ask("GET", "/")
        text = shown.body.decode()
        assert (shown.status, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        assert "&lt;b&gt;day&lt;/b&gt;" in text
        assert "file is not a database" in text
        links = re.findall(r'<a href="(/\w+)">([^<]+)</a>', text)
        assert [name for _, name in links] == ["&lt;b&gt;day&lt;/b&gt;", "night"]
        values = []
        for link, _ in links:
            answers = [page.ask("GET", link) for _ in range(2)]
            (place,) = {answer.headers["location"] for answer in answers}  # the same one again
            assert [answer.status for answer in answers] == [302, 302]
            one = Served(page.process, place)
            trials = one.detail("setup")["trials"]
            values.append(max(trial["values"][0] for trial in trials if trial["values"]))
            assert one.ask("GET", "/api/studies", Host="evil.example").status == 403
        assert values == [0.6, 0.5]
        assert page.ask("GET", "/nothing").status == 404
        assert page.ask("GET", "/", Host="evil.example").status == 403
        assert page.ask("POST", "/").status == 405


def test_the_page_names_the_metrics_of_plans_that_are_tuned_for_several(tmp_path: Path) -> None:
    for name, metric in (("one", "macro_f1"), ("other", "accuracy")):
        (tmp_path / name).mkdir()
        advance(plan := new_plan(tmp_path / name, metric=metric))
        Worker(plan).finish_all("setup", [0.5])
    found = find_plans(str(tmp_path))
    links = {line.storage: line.name for line in found.plans}
    assert re.findall(r">(\S+ 50\.0 %)<", plans_page(found, links)) == ["F1 50.0 %", "acc. 50.0 %"]


def test_no_page_for_what_is_no_place(cli: Cli, tmp_path: Path) -> None:
    refused = cli("dashboard", tmp_path / "typo", "--port=0")
    assert refused.code == 2
    assert "no such folder" in refused.err
