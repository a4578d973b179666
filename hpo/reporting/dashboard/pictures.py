"""The pictures that trials carry as artifacts: curves of the best runs, the final stage's figures, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.ticker import MaxNLocator

from hpo.planning.plan import FINAL
from hpo.reporting import figures, style
from hpo.reporting.data import Point, ReportData
from hpo.reporting.study_figures import ACCURACY, LOSS, MACRO_F1

MAX_PICTURES = 50
"""So many runs of a study, the best, have a picture of their curves."""


@dataclass(frozen=True)
class Picture:
    """A PNG that belongs to a trial and is drawn only where it is missing."""

    study: str
    trial: int
    file_name: str
    draw: Callable[[], bytes]


def pictures(report: ReportData) -> Iterator[Picture]:
    """Yield the pictures of all trials that have ended, the final stage's first."""
    final, point = report.final, report.final_point
    if final is not None and point is not None:
        for name, draw in _final_drawings(report, final).items():
            yield Picture(FINAL, point.row.trial, name, draw)
    for section in report.sections:
        for each in section.ranked[:MAX_PICTURES]:
            yield Picture(section.name, each.row.trial, "curves.png", partial(curves, each))


def _final_drawings(report: ReportData, final: Mapping[str, object]) -> dict[str, Callable[[], bytes]]:
    return {
        "confusion-matrix.png": partial(_png, figures.confusion, final),
        "f1-per-class.png": partial(_png, figures.per_class, final),
        "test-accuracy.png": partial(_png, figures.test_curves, report, [ACCURACY]),
        "test-loss.png": partial(_png, figures.test_curves, report, [LOSS]),
    }


def _png(draw: Callable[..., Iterator[style.Drawing]], *what: object) -> bytes:
    """Return the first drawing of what draws."""
    with style.styled():
        return next(draw(*what)).png


def curves(point: Point) -> bytes:
    """Return accuracy, loss and macro F1 of a run per epoch, a line a seed."""
    with style.styled():
        figure = style.canvas(2.6, width=2 * style.WIDTH)
        panels = (ACCURACY, LOSS, MACRO_F1)
        parts = figure.subplots(1, len(panels))
        figure.subplots_adjust(left=0.05, right=0.985, top=0.87, bottom=0.15, wspace=0.18)
        for axes, panel in zip(parts, panels, strict=True):
            for i in range(len(point.seeds)):
                values = [panel.scale * epoch[i][panel.key] for epoch in point.row.history]
                axes.plot(range(1, len(values) + 1), values, "o-", color=style.SERIES[i % len(style.SERIES)])
            axes.set_title(panel.label, fontweight="normal", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        parts[-1].set_xlabel("epoch; one line a seed", loc="right", labelpad=2)
        return style.drawn(figure, "curves", "", "").png
