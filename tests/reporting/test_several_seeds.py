"""What the report shows of points with several seeds: their mean, with how far they are apart."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from hpo.planning.scheduler import advance
from hpo.reporting import figures, tables
from hpo.reporting.charts import Curves, Figure
from hpo.reporting.data import ReportData, read
from tests.support.scripted_worker import Worker, new_plan

DEAD = [False, True, True]


def trained(folder: Path, dead: list[bool]) -> ReportData:
    """A study of learning rates; at the highest some of three seeds died."""
    study = "[search]\nlearning_rate = [0.1, 0.01]"
    plan = new_plan(folder, {"rate": study}, seeds=3)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [[0.2, 0.1, 0.1], [0.5, 0.1, 0.0]], dead=dead)
    worker.finish(worker.claim("rate"), [[0.3, 0.4, 0.5], [0.6, 0.7, 0.8]])
    advance(plan)
    return read(plan)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    """As `trained`, where the second and third seed died."""
    return trained(tmp_path_factory.mktemp("seeds"), DEAD)


def drawn(report: ReportData, name: str) -> Figure:
    (figure,) = [each.figure for each in figures.figures(report) if each.name == name]
    return figure


def test_a_table_tells_the_deviation_and_its_file_has_both_as_numbers(report: ReportData) -> None:
    table = tables.points_table(report, report.sections[0])
    heads = [column.head for column in table.columns]
    assert [row.cells[heads.index("F1 %")].text for row in table.rows] == ["20.0 ± 26.5", "70.0 ± 10.0"]
    assert "mean ± standard deviation over seeds" in table.caption
    _, best = csv.DictReader(io.StringIO(table.csv()))
    assert [float(best["macro_f1"]), float(best["macro_f1_std"])] == pytest.approx([0.7, 0.1])
    assert {f"{metric.name}_std" for metric in report.metrics} <= best.keys()


@pytest.mark.parametrize("metric", ["macro-f1", "accuracy", "loss"])
def test_every_curve_has_a_band_over_seeds(report: ReportData, metric: str) -> None:
    figure = drawn(report, f"rate-{metric}")
    assert isinstance(figure.chart, Curves)
    bands = [line.band for line in figure.chart.panels[0].lines]
    assert len(bands) == 2
    assert all(bands)
    assert "bands from the lowest to the highest seed" in figure.caption
    if metric == "macro-f1":
        low, high = bands[1] or ([], [])
        assert [*low, *high] == pytest.approx([30, 60, 50, 80])


@pytest.mark.parametrize(
    ("name", "mean", "band"),
    [("dead-units", 70.0, (10.0, 100.0)), ("gradients-weights", 1 / 3, (0.0, 1.0))],
)
def test_layers_are_those_of_all_seeds_and_no_run_is_called_the_worst(
    report: ReportData, name: str, mean: float, band: tuple[float, float]
) -> None:
    figure = drawn(report, f"rate-{name}")
    assert isinstance(figure.chart, Curves)
    died, best = figure.chart.panels
    assert died.lines[0].values == pytest.approx([mean, mean])
    low, high = died.lines[0].band or ([], [])
    assert [*low, *high] == pytest.approx([band[0]] * 2 + [band[1]] * 2)
    assert (died.title, best.title) == ("died: learning rate 0.1", "best: learning rate 0.01")
    assert "2 of 3 seeds died (rate/0)" in figure.caption
    assert "worst" not in f"{figure.caption} {died.title} {best.title}"


def test_a_run_that_did_not_die_is_not_called_the_worst_for_its_high_rate(tmp_path: Path) -> None:
    figure = drawn(trained(tmp_path, [False] * 3), "rate-gradients-weights")
    assert isinstance(figure.chart, Curves)
    titles = [panel.title for panel in figure.chart.panels]
    assert titles == ["other: learning rate 0.1", "best: learning rate 0.01"]
    assert "of the run of the highest other rate (rate/0) and the best (rate/1)" in figure.caption
