"""`hpo report` on real runs: what it writes, and that nothing in it is obeyed or fetched."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from optuna.trial import FrozenTrial
from PIL import Image

import hpo as library
from hpo.monitor.files import files_in
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.planning.verdicts import SAID
from hpo.reporting import figures
from hpo.reporting.charts import (
    Chart,
    Curves,
    Effect,
    Effects,
    Estimate,
    Figure,
    Forest,
    Line,
    Matrix,
    Panel,
)
from hpo.reporting.data import CIFAR10_CLASSES, Point, ReportData, read
from hpo.reporting.figures import main_effect
from hpo.reporting.page import markdown_text
from hpo.reporting.palette import BLUE
from hpo.reporting.render.matplotlib import draw
from hpo.reporting.render.plotly import Plot
from hpo.space.study_file import StudySpec, load_studies, shipped_studies
from hpo.storage.queue import Job, Queue, Slot
from hpo.training.registry import DEFAULT_RECIPE, load_recipe
from tests.support.command import hpo
from tests.support.fixtures import Cli
from tests.support.hostile_plan import HOSTILE_NAMES, train_hostile
from tests.support.pictures import write_folder
from tests.support.plans import train
from tests.support.scripted_worker import Worker, new_plan

SHIPPED_SIZES: dict[str, Any] = {
    "data": "digits",
    "limit_train": 80,
    "limit_valid": 100,
    "epochs": 2,
    "seeds": 2,
    "final_seeds": 2,
}


def shipped() -> dict[str, StudySpec]:
    return load_studies(shipped_studies(), load_recipe(DEFAULT_RECIPE).recipe.schema)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the six shipped studies, with its report."""
    out = tmp_path_factory.mktemp("report") / "out"
    train(out, **SHIPPED_SIZES)
    result = hpo("report", "--out", out)
    assert result.code == 0, result.err
    assert result.out.strip() == str(out / "report" / "report.html")
    return out


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of the six shipped studies on images like those of the original, with its report."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "cifar.py").write_text(
        "import numpy as np\n"
        "import hpo\n"
        f"NAMES = {sorted(CIFAR10_CLASSES)}\n"
        "def images():\n"
        "    labels = np.arange(200) % 10\n"
        "    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3)).astype(np.uint8)\n"
        "    return hpo.ImageData(pixels, labels, pixels[:20], labels[:20], NAMES)\n"
    )
    sizes: dict[str, Any] = {"limit_train": 20, "limit_valid": 20, "epochs": 2, "final_seeds": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        train(folder / "out", data="python:cifar:images", **sizes)
        assert hpo("report", "--out", folder / "out").code == 0
        yield folder / "out"


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report" / "report.html").read_text("utf-8")


def rows(out: Path, table: str) -> list[dict[str, str]]:
    with (out / "report" / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> dict[str, bytes]:
    report = out / "report"
    return {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*") if path.is_file()}


class Links(HTMLParser):
    """Collects what a page refers to, the ids that it has, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


# --- what is written ---------------------------------------------------------------------------------------


def test_tables_and_figures_are_there(out: Path) -> None:
    written = files(out)
    for name in shipped():
        assert f"tables/points-{name}.csv" in written
        assert {
            f"figures/{name}-{kind}.{ext}" for kind in ("accuracy", "loss") for ext in ("svg", "png")
        } <= (written.keys())
    for figure in (
        "waterfall",
        "network-setup-heat-map",
        "network-setup-main-effects",
        "network-setup-joint-effects",
        "network-setup-importance",
        "learning-rate-gradients-weights",
        "learning-rate-gradients-biases",
        "learning-rate-dead-units",
        "final-accuracy",
        "final-loss",
        "per-class",
        "confusion-matrix",
        "time-line",
    ):
        assert written[f"figures/{figure}.png"].startswith(b"\x89PNG")
        root = ElementTree.fromstring(written[f"figures/{figure}.svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert written["figures/most-confidently-wrong.png"] == (out / "most-confidently-wrong.png").read_bytes()
    assert "test set" in written["figures/waterfall.svg"].decode()
    assert written["report.md"].decode().startswith("# Test macro F1 ")


def test_the_page_says_what_the_database_says(out: Path, page: str, cli: Cli) -> None:
    final = json.loads(cli("final", "--out", out, "--json").out)
    deviation = f"{100 * final['test']['macro_f1']:.1f} ± {100 * final['std']['macro_f1']:.1f}\u00a0%"
    assert f"<h1>Test macro F1 {deviation}</h1>" in page
    for study in json.loads(cli("status", "--out", out, "--json").out)["studies"][:-1]:
        shown = rows(out, f"points-{study['name']}")
        own = [row for row in shown if "/" not in row["trial"]]  # the control may be an earlier study's
        best = max(float(row["macro_f1"]) for row in own if row["state"] == "complete")
        assert best == pytest.approx(study["best"]["value"])
        assert len(own) == sum(study["points"].values())
        assert study["decision"][1:] in Links(page).text
    seeds = [float(row["macro_f1"]) for row in rows(out, "final-seeds")]
    assert sum(seeds) / len(seeds) == pytest.approx(final["test"]["macro_f1"])


def test_inherited_values_link_to_the_trial_that_chose_them(out: Path, page: str) -> None:
    links = Links(page)
    anchors = {reference.removeprefix("#") for reference in links.references if reference.startswith("#")}
    assert anchors <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    (chosen,) = [row for row in rows(out, "points-network-setup") if "best" in row["remarks"]]
    assert f'<a href="#trial-network-setup-{chosen["trial"]}">' in page


def test_every_value_of_the_final_configuration_is_that_of_the_trial_it_came_from(out: Path) -> None:
    plan = library.find_plan(out)
    chosen = [row for row in rows(out, "final-configuration") if "/" in row["origin"]]
    assert {row["parameter"] for row in chosen} >= {"conv1_channels", "conv2_kernel"}
    for row in chosen:
        study, _, number = row["origin"].partition("/")
        trial = plan.trials(study)[int(number)]
        assert str(trial.user_attrs["config"][row["parameter"]]) == row["value"]


def test_every_printed_number_is_compared(original: Path) -> None:
    shown = rows(original, "published")
    expected = []
    for name, spec in shipped().items():
        assert spec.published is not None
        for result in spec.published.results:
            study = "final" if result.on == "test" else name
            for metric in ("macro_f1", "accuracy", "loss"):
                value = getattr(result, metric)
                if value is not None:
                    expected.append((study, f"{result.epoch} {metric.replace('_f1', ' F1')}", value))
    found = [(row["study"], row["metric"], float(row["published"])) for row in shown if row["published"]]
    assert sorted(found) == sorted(expected)
    assert len(found) > 25
    compared = [row for row in shown if row["difference"]]
    assert len(compared) > 25
    for row in compared:
        assert float(row["difference"]) == pytest.approx(float(row["ours"]) - float(row["published"]))
    last = {row["loss"] for row in rows(original, "final-epochs") if row["epoch"] == "2"}
    assert {row["ours"] for row in shown if (row["study"], row["metric"]) == ("final", "last loss")} == last


def test_a_report_leaves_alone_what_is_not_its_own(tmp_path: Path, cli: Cli, small_studies: Path) -> None:
    out = tmp_path / "out"
    cli("create", "--data=digits", "--studies", small_studies, "--out", out)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (out / "report" / "tables").mkdir(parents=True)
    (out / "report" / "report.md").symlink_to(mine)
    (out / "report" / "tables" / "mine.csv").write_text("mine")
    assert cli("report", "--out", out).code == 0
    assert mine.read_text() == (out / "report" / "tables" / "mine.csv").read_text() == "mine"
    assert (out / "report" / "report.md").read_text().startswith("# No answer yet")


def test_all_files_of_a_report_are_known_as_hpo_s(original: Path) -> None:
    ours = files_in(original, library.find_plan(original))["outputs"]
    assert {*(original / "report").rglob("*.*")} <= {*ours}


def test_trials_that_run_now_lie_beside_each_other(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    worker = Worker(plan)
    for _ in range(2):  # the second one begins last of all
        worker.claim("setup")
    assert [(each.state, each.lane) for each in read(plan).attempts] == [("running", 1), ("running", 2)]


def test_a_report_is_written_while_trials_are_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    seen = Plan.trials

    def queued_after_a_look(self: Plan, name: str) -> list[FrozenTrial]:
        found = seen(self, name)
        queue = Queue(self.storage, name)
        queue.enqueue([Job(Slot(f"#{len(found)}"), len(found), (0,))], queue.slots())
        return found

    monkeypatch.setattr(Plan, "trials", queued_after_a_look)
    assert len(read(plan).points) >= 2


def test_of_some_of_the_images_the_claims_stay_open(original: Path) -> None:
    assert [row["verdict"] for row in rows(original, "claims")] == ["open"] * 7
    page = (original / "report" / "report.html").read_text("utf-8")
    assert "only 20 + 20 of the images were used" in page
    assert 'class="verdict confirmed"' not in page


def test_on_other_data_nothing_is_said_of_the_original(out: Path, page: str) -> None:
    text = (out / "report" / "report.md").read_text("utf-8")
    for each in (text, re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.DOTALL)):
        assert not re.search(r"[Cc]laim|[Pp]ublished|CIFAR|original", each)
    tables = {file.stem for file in (out / "report" / "tables").iterdir()}
    assert not {"published", "claims", "claim-cells"} & tables


def test_macro_f1_is_explained_once(page: str) -> None:
    assert page.count("harmonic mean of precision") == 1


def test_a_point_that_is_the_control_again_is_shown_once(out: Path) -> None:
    n_again = 0
    for section in read(library.find_plan(out)).sections[1:]:
        (control,) = [row for row in rows(out, f"points-{section.name}") if "control" in row["remarks"]]
        is_again = any(point.is_reused for point in section.points)
        assert ("/" not in control["trial"]) == is_again
        n_again += is_again
    assert n_again > 1


def test_warnings(page: str) -> None:
    assert "trained on two seeds" in page
    assert "is on the edge of the search" in page
    assert "mixup_first_epoch 6 has no effect with the rest of the configuration" in page
    assert "cut to 80 training and 100 validation images" in page


def test_nothing_outside_the_file_is_referred_to(page: str, out: Path) -> None:
    links = Links(page)
    assert all(reference.startswith(("#", "data:")) for reference in links.references)
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"https?:", page)
    images = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(images) > 15
    for image in images:
        svg = base64.b64decode(image).decode()
        assert "DOCTYPE" not in svg
        targets = re.findall(r"href=\"([^\"]*)\"", svg)
        assert all(target.startswith(("#", "data:")) for target in targets)
        assert not re.search(r"https?:(?!//www\.w3\.org/)", svg)
    markdown = (out / "report" / "report.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)]*)\)", markdown):
        assert (out / "report" / target).is_file()


def test_the_same_database_gives_the_same_bytes(out: Path, cli: Cli) -> None:
    before = files(out)
    assert cli("report", "--out", out).code == 0
    assert files(out) == before


def test_no_torch(out: Path) -> None:
    code = (
        "import sys; from hpo.cli import main; sys.argv = ['hpo', 'report', '--out', sys.argv[1]]\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- plans under way ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("original")  # for its module
def test_a_plan_that_has_only_been_written(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    assert cli("create", "--data=python:cifar:images", "--out", out).code == 0
    assert cli("report", "--out", out).code == 0
    page = (out / "report" / "report.html").read_text("utf-8")
    assert "<h1>No answer yet</h1>" in page
    assert "None of six studies has decided" in page
    assert {row["published"] for row in rows(out, "published")} > {"0.71"}
    assert not any(row["ours"] for row in rows(out, "published"))
    assert [row["verdict"] for row in rows(out, "claims")] == ["open"] * 7


def test_it_names_no_folder_of_this_machine_and_no_pruner_that_was_not_asked(
    tmp_path: Path, cli: Cli
) -> None:
    pictures = write_folder(tmp_path / "on-this-disk" / "pictures", train=8, test=2, validation=2)
    out = tmp_path / "on-this-disk" / "out"
    data = f"--data=folder:{pictures}"
    assert cli("create", data, "--image-size=8", "--no-pruning", "--out", out).code == 0
    assert cli("report", "--out", out).code == 0
    text = (out / "report" / "report.md").read_text("utf-8")
    assert "pruned nothing" in text
    assert "pruner " not in text
    (command,) = (row["value"] for row in rows(out, "provenance") if row["what"] == "command")
    assert command == "hpo run --data folder:pictures --image-size 8 --no-pruning"
    assert not [name for name, content in files(out).items() if b"on-this-disk" in content]


def test_a_plan_that_is_half_done(small_studies: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    train(out, "rate", studies=small_studies, data="digits", limit_train=100, limit_valid=50, epochs=1)
    assert cli("report", "--out", out).code == 0
    page = (out / "report" / "report.html").read_text("utf-8")
    assert "One of two studies has decided." in page
    assert "Not begun: 0 of 3 points have ended." in page
    assert len(rows(out, "points-rate")) == 2
    assert not list((out / "report" / "figures").glob("final*"))
    assert "test set" not in (out / "report" / "figures" / "waterfall.svg").read_text("utf-8")


def test_missing_plan_and_unwritable_folder(tmp_path: Path, out: Path, cli: Cli) -> None:
    assert cli("report", "--out", tmp_path / "nothing").code == 2
    (tmp_path / "report").write_text("a file, where a folder must be")
    refused = cli("report", "--out", tmp_path, "--storage", f"sqlite:///{out / 'hpo.db'}")
    assert refused.code == 1
    assert "cannot be written" in refused.err
    assert "--to FOLDER" in refused.err
    assert "Traceback" not in refused.err


def test_the_report_of_a_plan_in_a_folder_of_others_goes_elsewhere(
    out: Path, tmp_path: Path, cli: Cli
) -> None:
    theirs = shutil.copytree(out, tmp_path / "theirs", ignore=shutil.ignore_patterns("report"))
    ours = tmp_path / "a" / "b"
    said = cli("report", "--out", theirs, "--to", ours)
    assert (said.code, said.out.strip()) == (0, str(ours / "report.html"))
    assert not (theirs / "report").exists()
    names = {file.relative_to(ours) for file in ours.rglob("*")}
    assert names == {file.relative_to(out / "report") for file in (out / "report").rglob("*")}


# --- what others named -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = train_hostile(tmp_path_factory.mktemp("hostile"))
    done = hpo("report", "--out", out)
    assert (done.code, "Warning" in done.err) == (0, False), done.err
    return out


def test_hostile_names_are_shown_and_not_obeyed(hostile: Path) -> None:
    page = (hostile / "report" / "report.html").read_text("utf-8")
    links = Links(page)
    assert links.tags.count("script") == 1  # ours
    assert links.tags.count("b") == 0
    assert all(reference.startswith(("#", "data:")) for reference in links.references)
    assert '<b>bold</b> ]]> & "quoted" {{ 7 * 7 }}' in links.text
    for name in HOSTILE_NAMES[:4]:
        assert name in links.text
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)
    for file in (hostile / "report" / "figures").glob("*.svg"):
        root = ElementTree.fromstring(file.read_bytes())
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not names & {"script", "foreignObject", "b", "img"}
    text = "".join(ElementTree.parse(hostile / "report" / "figures" / "per-class.svg").getroot().itertext())
    assert "<script>alert(1)</script>" in text
    assert "$\\frac{1}{0}$" in text
    markdown = (hostile / "report" / "report.md").read_text("utf-8")
    assert "\\<script\\>alert(1)" in markdown
    assert not re.search(r"(?<!\\)<", markdown)


def test_published_choices_are_named_where_they_were_inherited(hostile: Path) -> None:
    origins = {row["parameter"]: row["origin"] for row in rows(hostile, "final-configuration")}
    assert origins["learning_rate"] == "published choice"  # and not the winner of the study before
    assert origins["batch_size"].startswith("size/")
    assert origins["conv1_channels"] == "default"
    assert origins["epochs"] == "'--epochs"


def test_no_cell_is_a_formula_to_a_spreadsheet(hostile: Path) -> None:
    found = 0
    for file in (hostile / "report" / "tables").glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines):
                for cell in row:
                    is_number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)
                    assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (file, cell)
                    found += cell.startswith("'=cmd") or cell.startswith("'-2+3")
    assert found >= 3


def test_markdown_text_is_one_plain_line() -> None:
    assert markdown_text("# a|b\n<i>*x*</i> [y](z)") == "\\# a\\|b\\\\n\\<i\\>\\*x\\*\\</i\\> \\[y\\](z)"
    assert [markdown_text(text) for text in ("1. x", "- x", "33.7")] == ["1\\. x", "\\- x", "33.7"]


def test_main_effect() -> None:
    a, b = [0, 0, 1, 1] * 3, [0, 1, 0, 1] * 3
    assert main_effect(a, np.array(a, dtype=float)) == pytest.approx(1)
    assert main_effect(b, np.array(a, dtype=float)) == 0
    numbers = [float(n) for n in range(100)]
    assert main_effect(numbers, np.array(numbers)) > 0.95  # in ranges of equal count


# --- every figure ------------------------------------------------------------------------------------------


def with_one_of_everything(report: ReportData) -> ReportData:
    """A point a study, an epoch a run, and a class that the test set does not have."""
    sections = []
    for section in report.sections:
        points = [replace(p, row=replace(p.row, history=p.row.history[:1])) for p in section.ranked[:1]]
        sections.append(replace(section, points=points))
    assert report.final is not None
    counts = [[0.0] * len(report.final["per_class"]), *report.final["confusion_matrix"][1:]]
    final = {**report.final, "confusion_matrix": counts, "selected_epoch": 1}
    return replace(report, sections=sections, final=final, test_epochs=report.test_epochs[:1])


def with_nothing_finite(report: ReportData) -> ReportData:
    """Losses and gradients that grew beyond all bounds, and names longer than any figure has room for."""

    def broken(point: Point) -> Point:
        gradients = {"weight_gradient": math.inf, "bias_gradient": 0.0}
        layers = {
            "l" * 300: {**gradients, "dead_share": None},
            "m" * 300: {**gradients, "dead_share": math.nan},
        }
        history = [
            [
                {
                    **seed,
                    "metrics": dict.fromkeys(seed["metrics"], math.nan) | {"accuracy": math.inf},
                    "layers": layers,
                }
                for seed in epoch
            ]
            for epoch in point.row.history
        ]
        return replace(point, row=replace(point.row, history=history))

    sections = [replace(each, points=[*map(broken, each.points)]) for each in report.sections]
    attempts = [replace(each, worker="w" * 300, state="lost", end=each.begin) for each in report.attempts]
    epochs = [[{**seed, "loss": math.inf} for seed in epoch] for epoch in report.test_epochs]
    return replace(report, sections=sections, attempts=attempts, test_epochs=epochs)


@pytest.mark.parametrize(
    ("plan", "change"),
    [
        ("out", lambda report: report),
        ("out", with_one_of_everything),
        ("out", with_nothing_finite),
        ("hostile", lambda report: report),
    ],
    ids=["usual", "one of everything", "nothing finite", "hostile"],
)
def test_each_figure_of_the_table_is_drawn_for_page_and_dashboard(
    plan: str, change: Callable[[ReportData], ReportData], request: pytest.FixtureRequest
) -> None:
    report = change(read(library.find_plan(request.getfixturevalue(plan))))
    some = report.sections[:2]  # they have all there is to see of a study
    placed = [each for each in figures.figures(report) if each.study in {"", *(s.name for s in some)}]
    pictures = [figures.trial_curves(report, section.ranked[0]) for section in some]
    for figure in [*(each.figure for each in placed), *pictures]:
        drawing = draw(figure)
        assert ElementTree.fromstring(drawing.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert drawing.png.startswith(b"\x89PNG")
        text = Plot(figure).to_json()
        assert not re.search(r"NaN|Infinity|<(?!br>|sub>|/sub>|extra>|/extra>)|[\x00-\x1f]", text)
        assert all(trace["type"] in ("scatter", "bar", "heatmap") for trace in json.loads(text)["data"])
        assert figure.title
        assert figure.caption.endswith(".")
    assert len({each.name for each in placed}) == len(placed)
    drawn = {each.entry.name for each in placed}
    assert drawn >= {"waterfall", "per-class", "time-line"}
    # of one epoch there is no curve
    lengths = [len(point.row.history) for section in some for point in section.points]
    assert ({"accuracy", "loss"} <= drawn) == (max(lengths) > 1)
    assert ({"final-accuracy", "final-loss"} <= drawn) == (len(report.test_epochs) > 1)
    if plan == "out" and report.sections[0].points[1:]:
        known = {entry.name for entry in figures.entries(report)}
        # a new figure must be seen here, in test_any_recipe.py, _confirmation.py, _claims.py, _objectives
        assert drawn == known - {"predictions", "confirmation", "claims", "trade-off"}


# --- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Opens a report; gives the page and what the browser complained of or asked for."""
    pages = []

    def open_(out: Path, **settings: Any) -> tuple[Any, list[str]]:
        seen: list[str] = []

        def dismiss(dialog: Any) -> None:
            seen.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page = browser.new_page(**settings)
        pages.append(page)
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", dismiss)
        file = (out / "report" / "report.html").resolve().as_uri()
        page.on("request", lambda request: seen.append(request.url) if request.url != file else None)
        page.goto(file)
        return page, [url for url in seen if not url.startswith("data:")]

    yield open_
    for page in pages:
        page.close()


def test_figures_are_drawn_and_nothing_is_fetched(out: Path, hostile: Path, opened: Any) -> None:
    for folder in (out, hostile):
        for width in (400, 1280):
            page, seen = opened(folder, viewport={"width": width, "height": 800})
            assert seen == []
            sizes = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
            assert len(sizes) > 5
            assert all(complete and size > 0 for complete, size in sizes)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_table_of_a_study_needs_a_scroll_bar_on_a_desk(out: Path, opened: Any) -> None:
    page, _ = opened(out, viewport={"width": 1280, "height": 800})
    hidden = page.locator(".scroll").evaluate_all(
        "all => all.filter(each => each.scrollWidth > each.clientWidth).map(each => each.innerText)"
    )
    assert hidden == []


@pytest.mark.parametrize(
    "chart",
    [
        Curves(
            [Panel([Line([1.0, 2.0], BLUE)], f"{word}: learning rate 0.000123 {'n' * 30}") for word in "ab"]
        ),
        Curves([Panel([Line([1.0, 2.0], BLUE)], "validation " + "word " * 12)] * 4, has_one_scale=False),
        Effects([Effect(f"{'long name ' * 5}{i}", ["a", "b"], [1.0, 2.0]) for i in range(4)], "", 1.0),
        Matrix(["a", "b"], ["c", "d"], [[1.0, 2.0]] * 2, "down and " * 12, "across and " * 12, digits=1),
        Forest([Estimate("word " * 30, 1.0, -1.0, 2.0, f"{SAID[None]}; kept", BLUE, 0.5)] * 3, "difference"),
    ],
    ids=["two panels", "four panels", "effects", "matrix", "forest"],
)
def test_titles_are_neither_cut_nor_on_top_of_each_other(chart: Chart, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "figure.svg").write_bytes(draw(Figure("Title", "Caption.", chart)).svg)
    page = browser.new_page()
    page.goto((tmp_path / "figure.svg").as_uri())
    whole, *texts = page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('text')]"
        ".map(each => each.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])"
    )
    page.close()
    assert len(texts) > 5
    for left, top, right, bottom in texts:
        assert whole[0] <= left <= right <= whole[2]
        assert whole[1] <= top <= bottom <= whole[3]
    for one, other in combinations(texts, 2):
        is_apart = (
            one[2] < other[0] + 1 or other[2] < one[0] + 1 or one[3] < other[1] + 3 or other[3] < one[1] + 3
        )
        assert is_apart, (one, other)


def test_a_click_on_a_head_sorts_the_table(out: Path, opened: Any) -> None:
    page, _ = opened(out)

    def column(head: str) -> list[float]:
        cells = page.locator("#table-points-network-setup tbody tr").evaluate_all(
            "(rows, column) => rows.map(row => row.cells[column].dataset.v)",
            heads.index(head),
        )
        return [float(cell) for cell in cells]

    button = page.locator("#table-points-network-setup th button")
    heads = button.all_inner_texts()
    before = column("F1 %")
    button.nth(heads.index("F1 %")).click()
    assert column("F1 %") == sorted(before)
    button.nth(heads.index("F1 %")).press("Enter")
    assert column("F1 %") == sorted(before, reverse=True)
    assert page.locator("th[aria-sort=descending]").count() == 1


def test_dark_mode_is_dark_and_so_are_its_figures(out: Path, opened: Any) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page, _ = opened(out, color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        picture = page.locator("#figure-waterfall img").screenshot()
        brightness[scheme] = (sum(map(int, re.findall(r"\d+", colour)[:3])), mean_grey(picture))
    assert brightness["dark"][0] < 150 < 600 < brightness["light"][0]
    assert brightness["dark"][1] < 80 < 180 < brightness["light"][1]


def mean_grey(png: bytes) -> float:
    with Image.open(io.BytesIO(png)) as image:
        return float(np.asarray(image.convert("L")).mean())
