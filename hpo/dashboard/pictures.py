"""The pictures that trials carry as artifacts: curves of the best runs, the final stage's figures, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from hpo.plan import FINAL
from hpo.report import figures, style
from hpo.report.facts import Facts, Point
from hpo.report.study_figures import PANELS

MAX_PICTURES = 50
"""So many runs of a study, the best, have a picture of their curves."""
FIGURES = (*PANELS, ("macro-f1", "valid_macro_f1", "validation macro F1, %", 100))


@dataclass(frozen=True)
class Picture:
    """A PNG that belongs to a trial and is drawn only where it is missing."""

    study: str
    trial: int
    file_name: str
    draw: Callable[[], bytes]


def pictures(facts: Facts) -> Iterator[Picture]:
    """The pictures of all trials that have ended, the final stage's first."""
    final, point = facts.final, facts.final_point
    if final is not None and point is not None:
        for name, draw in _final_drawings(facts, final).items():
            yield Picture(FINAL, point.row.trial, name, draw)
    for section in facts.sections:
        for each in section.ranked[:MAX_PICTURES]:
            yield Picture(section.name, each.row.trial, "curves.png", lambda each=each: curves(each))  # type: ignore[misc]


def _final_drawings(facts: Facts, final: Mapping[str, object]) -> dict[str, Callable[[], bytes]]:
    def png(drawings: Callable[[], Iterator[style.Drawing]], index: int = 0) -> Callable[[], bytes]:
        def draw() -> bytes:
            with style.styled():
                return list(drawings())[index].png

        return draw

    return {
        "confusion-matrix.png": png(lambda: figures.confusion(final)),
        "f1-per-class.png": png(lambda: figures.per_class(final)),
        "test-accuracy.png": png(lambda: figures.test_curves(facts), 0),
        "test-loss.png": png(lambda: figures.test_curves(facts), 1),
    }


def curves(point: Point) -> bytes:
    """Accuracy, loss and macro F1 of a run per epoch, a line a seed."""
    with style.styled():
        figure = style.canvas(2.6, width=2 * style.WIDTH)
        panels = figure.subplots(1, len(FIGURES))
        figure.subplots_adjust(left=0.05, right=0.985, top=0.87, bottom=0.15, wspace=0.18)
        for axes, (_, key, title, scale) in zip(panels, FIGURES, strict=True):
            for i in range(len(point.seeds)):
                values = [scale * epoch[i][key] for epoch in point.row.history]
                axes.plot(range(1, len(values) + 1), values, "o-", color=style.SERIES[i % len(style.SERIES)])
            axes.set_title(title, fontweight="normal", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        panels[-1].set_xlabel("epoch", loc="right", labelpad=2)
        return style.drawn(figure, "curves", "", "").png
