"""`hpo report` of recipes that it has never seen: other parameters, other metrics, numbers for targets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpo import export
from hpo.planning.plan import Plan
from hpo.recipes.constrained_cnn import ConstrainedCnnParams
from hpo.reporting import figures
from hpo.reporting.charts import Bars, Matrix, Scatter
from hpo.reporting.data import read
from hpo.reporting.page import write_report
from hpo.reporting.render.matplotlib import draw
from hpo.reporting.render.plotly import Plot
from hpo.space.parameters import Params
from tests.support.plans import train

MODULE = """
import math
from typing import Literal

import hpo
import numpy as np


class Bowl(hpo.LoopParams):
    a: int = hpo.Field(0, ge=0, le=9)
    b: float = hpo.Field(0.0, ge=-10, le=10)
    kind: Literal["flat", "steep"] = "flat"
    is_tilted: bool = False


class NoTraining(hpo.Recipe):
    Params = Bowl
    metrics = {"error": "minimize"}

    def train(self, params, data, seed, context, resume=None):
        steep = 2 if params.kind == "steep" else 1
        error = 1500 + 100 * steep * (params.a - 1) ** 2 + params.b**2 + 30 * params.is_tilted + seed % 7
        for epoch in range(1, params.epochs + 1):
            yield hpo.Epoch(metrics={"error": error + 1 / epoch}, state={"error": error})

    def test(self, params, data, state):
        return {"error": state["error"] + 5.0}

    def inactive(self, params):
        return ("b",) if params.is_tilted else ()


class Line(hpo.Params):
    width: int = hpo.Field(4, ge=1, le=64)


class Numbers(hpo.Recipe):
    Params = Line
    metrics = {"loss": "minimize", "r2": "maximize"}

    def build(self, params, data):
        from torch import nn

        n_inputs = math.prod(data.input_shape)
        last = nn.Linear(params.width, data.n_outputs)
        return nn.Sequential(nn.Linear(n_inputs, params.width), nn.ReLU(), last)


def numbers():
    inputs = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    targets = inputs @ np.array([1.0, -2.0, 0.5], dtype=np.float32) + 3
    return hpo.ArrayData(inputs[:60], targets[:60], inputs[60:], targets[60:])
"""
BOWL = {
    "grid": "[search]\na = [0, 1, 2]\nb = [0.0, 3.0]\nkind = ['flat', 'steep']",
    "sampled": "inherits = 'grid'\ntrials = 24\n[search]\na = {low = 0, high = 9}\nb = {low = -9, high = 9}",
    "tilted": "inherits = 'grid'\n[fixed]\nis_tilted = true\n[search]\nb = [1.0, 2.0]",
    "upright": "inherits = 'grid'\n[search]\nb = [1.0, 2.0]",
}
LINE = {"width": "[base]\nlearning_rate = 0.02\n[search]\nwidth = [2, 8]\nbatch_size = [10, 20]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the module with the recipes lies, and is found."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "unseen_recipes.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def trained(folder: Path, name: str, studies: dict[str, str], **options: object) -> tuple[Plan, Path]:
    (folder / name).mkdir()
    for study, text in studies.items():
        (folder / name / f"{study}.toml").write_text(text)
    out = folder / f"{name}-out"
    plan = train(out, studies=folder / name, recipe=f"python:unseen_recipes:{name}", **options)
    write_report(plan, out)
    return plan, out


@pytest.fixture(scope="module")
def bowl(folder: Path) -> tuple[Plan, Path]:
    return trained(
        folder, "NoTraining", BOWL, data="digits", limit_train=20, limit_valid=20, epochs=2, final_seeds=2
    )


@pytest.fixture(scope="module")
def line(folder: Path) -> tuple[Plan, Path]:
    return trained(folder, "Numbers", LINE, data="python:unseen_recipes:numbers", epochs=6, final_seeds=2)


def text_of(out: Path) -> str:
    return (out / "report" / "report.md").read_text("utf-8").replace("\\", "")


def rows(out: Path, table: str) -> list[dict[str, str]]:
    with (out / "report" / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["bowl", "line"])
def test_nothing_is_said_of_what_the_plan_has_not(name: str, request: pytest.FixtureRequest) -> None:
    _, out = request.getfixturevalue(name)
    page = (out / "report" / "report.html").read_text("utf-8")
    seen = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.DOTALL)
    for text in (text_of(out), seen):
        assert not re.search(r"F1|macro|accuracy|CIFAR|[Cc]onclusion|[Pp]ublished|mixup|momentum", text)
        assert not re.search(r"[Cc]onfusion|confidently|batch norm|per class", text)
    names = {file.stem for file in (out / "report" / "tables").iterdir()}
    assert not names & {"published", "claims", "per-class", "confusion-matrix", "most-confidently-wrong"}


def test_less_is_better_where_the_metric_says_so(bowl: tuple[Plan, Path]) -> None:
    plan, out = bowl
    text = text_of(out)
    assert "gives the lowest error on validation?" in text
    assert text.startswith("# Test error 1,5")
    best = [row for row in rows(out, "points-grid") if "best of the study" in row["remarks"]]
    assert [(row["a"], row["b"]) for row in best] == [("1", "0.0")]
    assert float(best[0]["error"]) == min(float(row["error"]) for row in rows(out, "points-grid"))
    report = read(plan)
    values = [point.value for point in report.sections[0].ranked]
    assert values == sorted(values, key=lambda value: value or 0.0)


def test_a_grid_and_a_sampled_study_of_unknown_axes_have_their_figures(bowl: tuple[Plan, Path]) -> None:
    plan, _ = bowl
    placed = {each.name: each.figure for each in figures.figures(read(plan))}
    assert {
        "waterfall",
        "grid-error",
        "grid-heat-map",
        "grid-main-effects",
        "grid-joint-effects",
        "grid-importance",
        "sampled-error",
        "sampled-importance",
        "final-error",
        "time-line",
    } <= placed.keys()
    assert not {"sampled-heat-map", "sampled-main-effects", "predictions", "per-class"} & placed.keys()
    grid = placed["grid-heat-map"].chart
    assert isinstance(grid, Matrix)
    assert (grid.rows, grid.row_axis) == (["0", "1", "2"], "a")
    assert (grid.columns, grid.column_axis) == (["0, flat", "0, steep", "3, flat", "3, steep"], "b, kind")
    assert grid.is_less_better
    assert grid.values[1][0] == pytest.approx(1500.5)
    for study in ("grid", "sampled"):
        importance = placed[f"{study}-importance"].chart
        assert isinstance(importance, Bars)
        assert importance.rows[0] == "a"


def test_what_means_nothing_at_a_point_is_a_dash_and_a_warning(bowl: tuple[Plan, Path]) -> None:
    _, out = bowl
    assert {row["b"] for row in rows(out, "points-tilted") if "/" not in row["trial"]} == {""}
    assert "tilted: b 1 has no effect with the rest of the configuration" in text_of(out).replace(
        "Tilted", "tilted"
    )


def test_runs_with_one_thing_the_other_way_are_dashed(bowl: tuple[Plan, Path]) -> None:
    plan, _ = bowl
    placed = {each.name: each.figure for each in figures.figures(read(plan))}
    assert "Dashed: the same with is tilted off." in placed["tilted-error"].caption
    assert "Dashed" not in placed["upright-error"].caption


def test_numbers_are_compared_with_the_true_ones(line: tuple[Plan, Path]) -> None:
    plan, out = line
    report = read(plan)
    assert report.final is not None
    (figure,) = [each.figure for each in figures.figures(report) if each.name == "predictions"]
    assert isinstance(figure.chart, Scatter)
    assert [list(pair) for pair in figure.chart.pairs] == report.final["predictions"]
    assert "rows of 3 numbers, each with one number to predict" in text_of(out)
    assert {"loss", "r2"} <= rows(out, "final-epochs")[0].keys()
    assert all(isinstance(record[metric], float) for record in export(plan) for metric in ("loss", "r2"))
    assert {f"width-{metric}" for metric in ("loss", "r2")} <= {
        file.stem for file in (out / "report" / "figures").iterdir()
    }


@pytest.mark.parametrize("name", ["bowl", "line"])
def test_every_figure_is_drawn_for_page_and_dashboard(name: str, request: pytest.FixtureRequest) -> None:
    plan, _ = request.getfixturevalue(name)
    report = read(plan)
    for figure in [
        *(each.figure for each in figures.figures(report)),
        figures.trial_curves(report, report.sections[0].ranked[0]),
    ]:
        assert ElementTree.fromstring(draw(figure).svg).tag == "{http://www.w3.org/2000/svg}svg"
        traces = json.loads(Plot(figure).to_json())["data"]
        assert all(trace["type"] in ("scatter", "bar", "heatmap") for trace in traces)
        assert figure.caption.endswith(".")


def test_reporting_knows_no_parameter_of_a_single_recipe() -> None:
    own = ConstrainedCnnParams.model_fields.keys() - Params.model_fields.keys()
    assert {"conv1_channels", "batch_norm"} <= own
    words = re.compile("|".join([*own, "conv1", "conv2", "kernel", "channels", "mixup"]))
    files = [
        file
        for file in Path(figures.__file__).parent.rglob("*")
        if file.suffix in (".py", ".j2", ".js", ".css")
    ]
    assert len(files) > 15
    found = {(file.name, hit[0]) for file in files if (hit := words.search(file.read_text("utf-8")))}
    assert not found
