"""The figures of one study: its runs over time, its grid, its gradients, what mattered."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from hpo._text import params_text, percent, show_value
from hpo.reporting import style
from hpo.reporting.data import Point, Section
from hpo.reporting.style import Drawing, canvas, drawn, label
from hpo.space.parameters import ParamValue

T = TypeVar("T")

MAX_SERIES = 6
"""So many runs have colours of their own; of more only the best and the worst have."""
MAX_LINES = 60
"""So many runs are drawn at most, evenly by rank."""
MIN_IMPORTANCE_POINTS = 8
MAX_LEVELS = 8
"""So many values, or ranges of values, of a parameter are told apart when its importance is judged."""
LEGEND_LENGTH = 64
"""Characters of a line of a legend that has a column to itself."""
LEGEND_COLUMNS = {4: 9, 3: 15, 2: 28}
"""Columns of a legend for names of so many characters at most."""
NO_GRADIENT = 1e-10
"""A logarithmic axis has no zero; gradients below this are drawn here."""


class Panel(NamedTuple):
    """A figure of every epoch, as it is drawn over the epochs."""

    name: str
    """In file names and ids."""
    key: str
    """As epochs are stored (`SeedEpoch.to_dict`)."""
    label: str
    """Of its axis, with the unit."""
    scale: int
    """Times so much it has that unit."""

    @property
    def caption(self) -> str:
        """What there is to see."""
        return f"{self.label[0].upper()}{self.label[1:].removesuffix(', %')} per epoch"


ACCURACY = Panel("accuracy", "valid_accuracy", "validation accuracy, %", 100)
LOSS = Panel("loss", "valid_loss", "validation loss", 1)
MACRO_F1 = Panel("macro-f1", "valid_macro_f1", "validation macro F1, %", 100)
PANELS = (ACCURACY, LOSS)
"""What the report draws, and the dashboard, which has macro F1 itself."""


def curves(section: Section, without_norm: Sequence[Point]) -> Iterator[Drawing]:
    """Yield validation accuracy and loss per epoch of every run of a study."""
    points = [point for point in section.points if point.row.history]
    if not points:
        return
    ranked = sorted(section.ranked[1:], key=lambda point: -(point.row.macro_f1 or 0.0))
    few = len(points) <= MAX_SERIES
    for panel in PANELS:
        figure = canvas(3.4 if few else 3.5)
        axes = figure.subplots()
        handles = (
            _series(axes, section, points, without_norm, panel)
            if few
            else _crowd(axes, [*section.ranked[:1], *ranked] or points, panel)
        )
        title = ", ".join(section.spec.search).replace("_", " ") if few else ""
        frame(figure, axes, panel.label, handles, title)
        shown = min(len(points), MAX_LINES)
        some = f" ({shown} of {len(points):,} runs, evenly by rank)" if shown < len(points) else ""
        dashed = " Dashed: the same without batch norm." if without_norm else ""
        yield drawn(
            figure,
            f"{section.name}-{panel.name}",
            f"{panel.name.capitalize()} per epoch",
            f"{panel.caption} of every run of {section.name}{some}; means over seeds.{dashed}",
        )


def _series(
    axes: Axes, section: Section, points: Sequence[Point], dashed: Sequence[Point], panel: Panel
) -> list[Line2D]:
    """Return each run in its own colour, the control or the counterparts dashed."""
    handles = []
    for i, point in enumerate(points):
        settings: dict[str, Any] = {"color": style.SERIES[i], "marker": style.MARKERS[i]}
        # the legend's title says which parameters these are
        params = point.row.params
        values = ", ".join(show_value(params[axis]) for axis in section.spec.search if axis in params)
        handles += line(axes, point, panel, label=label(values or "control", LEGEND_LENGTH), **settings)
        for other in dashed:
            if all(other.config.get(axis) == value for axis, value in point.row.params.items()):
                line(axes, other, panel, linestyle=(0, (3, 2)), linewidth=1.2, color=style.SERIES[i])
    control = section.control
    if control and all(control.config != point.config for point in points) and not dashed:
        handles += line(axes, control, panel, color=style.GREY, linestyle=(0, (3, 2)), label="control")
    return handles


def _crowd(axes: Axes, points: Sequence[Point], panel: Panel) -> list[Line2D]:
    """Draw thin grey lines, the best and the worst run marked."""
    points = evenly(points, MAX_LINES)
    for point in points[1:-1]:
        line(axes, point, panel, color=style.GREY, linewidth=0.7, alpha=0.7)
    handles = []
    for point, word, colour, dash in (
        (points[-1], "worst", style.RED, (0, (3, 2))),
        (points[0], "best", style.BLUE, "-"),
    ):
        text = textwrap.fill(
            f"{word}: {params_text(point.row.params) or point.row.point}", LEGEND_LENGTH, max_lines=3
        )
        handles += line(
            axes, point, panel, color=colour, linestyle=dash, marker="o", linewidth=2.2, label=text
        )
    return handles[::-1]


def evenly(things: Sequence[T], most: int) -> list[T]:
    """Select so many at most, evenly by their place, the first and the last among them.

    Args:
        things: in order.
        most: two or more.
    """
    if len(things) <= most:
        return list(things)
    return [things[round(i * (len(things) - 1) / (most - 1))] for i in range(most)]


def line(axes: Axes, point: Point, panel: Panel, **settings: Any) -> list[Line2D]:
    """Draw a figure of every epoch of a point, mean over seeds; return the line."""
    values = [panel.scale * value if math.isfinite(value) else math.nan for value in point.curve(panel.key)]
    if len(values) == 1:
        settings.setdefault("marker", "o")
    if len(values) > 25:
        settings["marker"] = ""
    return axes.plot(range(1, len(values) + 1), values, **settings)


def frame(figure: Any, axes: Axes, ylabel: str, handles: Sequence[Line2D], title: str = "") -> None:
    """Put epochs below, a name for the values, and a legend under all of it, where it covers nothing."""
    title = textwrap.fill(title, LEGEND_LENGTH)
    names = [str(each.get_label()) for each in handles]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = next((count for count, most in LEGEND_COLUMNS.items() if longest <= most), 1)
    lines = sum(name.count("\n") + 1 for name in names) if columns == 1 else math.ceil(len(names) / columns)
    height = figure.get_figheight()
    bottom = (0.48 + 0.175 * (lines + len(title.splitlines()))) / height
    figure.subplots_adjust(left=0.125, right=0.975, top=1 - 0.32 / height, bottom=bottom)
    axes.legend(
        handles=handles,
        title=title or None,
        alignment="left",
        loc="lower left",
        ncol=columns,
        columnspacing=1.4,
        bbox_to_anchor=(0.1, 0.05 / height),
        bbox_transform=figure.transFigure,
        fontsize=7.5 if columns == 1 else 8.5,
        title_fontsize=8.5,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("epoch", loc="right", labelpad=2)
    axes.set_title(ylabel, fontweight="normal", color=style.FAINT, fontsize=9)


def without_norm_of(section: Section, sections: Sequence[Section]) -> list[Point]:
    """Return, for a study of batch norm, the runs of another study of the same axes without it."""
    if section.spec.fixed.get("batch_norm") is not True:
        return []
    axes = section.spec.search.keys()
    same = [s for s in sections if s.spec.search.keys() == axes and s is not section]
    return [p for s in same for p in s.points if p.row.history and p.config.get("batch_norm") is False]


def channels_by_kernels(section: Section) -> tuple[list[str], list[str], Any] | None:
    """Name of rows (channels) and columns (kernels), and macro F1 in % as (rows, columns) float64.

    NaN where there is no result; None where the study is no grid over both, or has none at all.
    """
    sides = [[name for name in section.spec.search if name.endswith(end)] for end in ("_channels", "_kernel")]
    if not all(sides) or not section.spec.is_grid or not section.ranked:
        return None
    found = {
        tuple(tuple(point.config[name] for name in side) for side in sides): point for point in section.ranked
    }
    rows, columns = (sorted({key[side] for key in found}) for side in (0, 1))
    if len(rows) > 16 or len(columns) > 12 or set(sides[0] + sides[1]) != set(section.spec.search):
        return None
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), point in found.items():
        values[rows.index(row), columns.index(column)] = 100 * (point.row.macro_f1 or 0.0)
    names = [" → ".join(map(str, row)) for row in rows]
    return names, [" → ".join(f"{k}×{k}" for k in column) for column in columns], values


def heat_map(section: Section) -> Iterator[Drawing]:
    """Yield macro F1 over channels and kernels, for a study that searched both."""
    grid = channels_by_kernels(section)
    if grid is None:
        return
    rows, columns, values = grid
    figure = canvas(1.0 + 0.42 * len(rows))
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.2, right=0.97, top=1 - 0.2 / height, bottom=0.62 / height)
    matrix(axes, values, lambda value: f"{value:.1f}")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("channels, C1 → C2")
    axes.set_xlabel("kernels, C1 → C2")
    best = section.ranked[0]
    yield drawn(
        figure,
        f"{section.name}-channels-kernels",
        "Channels and kernels",
        f"Macro F1 in % on validation by channels and kernels; the best is {percent(best.row.macro_f1)} %."
        f"{_of_pruned(section)}",
    )


def _of_pruned(section: Section) -> str:
    count = sum(point.row.state == "pruned" for point in section.ranked)
    return f" {count} of the {len(section.ranked)} were pruned: theirs is of fewer epochs." if count else ""


def matrix(axes: Axes, values: Any, text: Any) -> None:
    """Draw a coloured matrix with numbers in it, readable on every shade."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    axes.imshow(values, cmap="cividis", aspect="auto", interpolation="none")
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    if text is None:
        return
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            # not the paper's white: that one turns dark with the page, these shades do not
            colour = "#fefefe" if value < low + 0.55 * (high - low) else "#010101"
            axes.text(column, row, text(value), ha="center", va="center", color=colour, fontsize=8)


def worst_and_best(section: Section) -> tuple[Point, Point] | None:
    """Return, of a study of learning rates, a run that died or else of the highest rate, and the best."""
    if "learning_rate" not in section.spec.search or len(section.ranked) < 2:
        return None
    best, *rest = section.ranked
    return max(rest, key=lambda p: (p.n_dying, float(p.config["learning_rate"]))), best


def gradients(section: Section) -> Iterator[Drawing]:
    """Yield what reaches each layer in a run that died, or that of the highest rate, beside a healthy one."""
    pair = worst_and_best(section)
    if pair is None:
        return
    worst, healthy = pair
    which = "a run that died" if worst.n_dying else "the run of the highest other rate"
    layers = list(worst.row.history[0][0]["layers"])
    kinds = (
        ("weight_gradient", "gradients-weights", "Gradients of the weights", "norm of the gradient"),
        ("bias_gradient", "gradients-biases", "Gradients of the biases", "norm of the gradient"),
        ("dead_share", "dead-units", "Dead units", "share of dead units, %"),
    )
    for key, name, title, axis in kinds:
        figure = canvas(3.0)
        panels = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.125, right=0.975, top=0.83, bottom=0.235, wspace=0.08)
        words = ("died" if worst.n_dying else "other", "best")
        for axes, point, word in zip(panels, (worst, healthy), words, strict=True):
            axes.set_title(f"{word}: learning rate {point.config['learning_rate']:.3g}", fontsize=9)
            for i, layer in enumerate(layers):
                values = [layer_health(epoch[0]["layers"].get(layer, {}), key) for epoch in point.row.history]
                if not all(value is None for value in values):
                    axes.plot(
                        range(1, len(values) + 1),
                        [math.nan if v is None else v for v in values],
                        color=style.SERIES[i % 8],
                        marker=style.MARKERS[i % 8],
                        label=label(layer),
                    )
            if key != "dead_share":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(_gradient_tick))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_ylim(-4, 104)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        panels[1].set_xlabel("epoch", loc="right", labelpad=2)
        figure.text(0.012, 0.955, axis, color=style.FAINT, fontsize=8.5, va="center")
        handles, names = panels[1].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="lower left", ncol=4, bbox_to_anchor=(0.1, 0.015), columnspacing=1.2
        )
        yield drawn(
            figure,
            f"{section.name}-{name}",
            title,
            f"{title} per layer over training, of {which} ({worst.name}) and the best ({healthy.name}), "
            f"first seed of each{'' if key == 'dead_share' else '; logarithmic'}.",
        )


def layer_health(layer: Mapping[str, Any], key: str) -> float | None:
    """Return a gradient's norm, or dead units in %, as it can be drawn; None where there is none."""
    value = layer.get(key)
    if value is None or not math.isfinite(value):
        return None
    return 100.0 * float(value) if key == "dead_share" else max(float(value), NO_GRADIENT)


def _gradient_tick(value: float, position: object = None) -> str:
    return "0" if value <= NO_GRADIENT * 1.01 else style.number(value, position)


def importance(section: Section) -> Iterator[Drawing]:
    """Yield how much of the differences each searched parameter explains by itself."""
    points = [point for point in section.ranked if point.row.state == "complete" and point.row.params]
    if len(section.spec.search) < 2 or len(points) < MIN_IMPORTANCE_POINTS:
        return
    scores = np.array([point.row.macro_f1 for point in points], dtype=float)
    if scores.max() == scores.min():
        return
    found = {
        name: main_effect([point.row.params[name] for point in points], scores)
        for name in section.spec.search
    }
    if not any(found.values()):
        return
    shares = dict(sorted(found.items(), key=lambda item: -item[1]))
    figure = canvas(0.75 + 0.34 * len(shares))
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.28, right=0.95, top=1 - 0.1 / height, bottom=0.5 / height)
    names, values = list(shares), [100 * share for share in shares.values()]
    limit = min(112, max(values) * 1.15 + 5)
    axes.barh(range(len(names)), values, height=0.56, color=style.BLUE)
    for i, value in enumerate(values):
        axes.text(value + 0.012 * limit, i, f"{value:.0f} %", va="center", fontsize=8.5)
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the variance explained, %")
    yield drawn(
        figure,
        f"{section.name}-importance",
        "Importance of the parameters",
        f"How much of the variance of macro F1 between {len(points):,} complete points of "
        f"{section.name} each parameter explains by itself; the rest is how they act together, and noise.",
    )


def main_effect(values: Sequence[ParamValue], scores: Any) -> float:
    """Return the share of the variance that a parameter explains alone (one-way ANOVA, adjusted R²).

    On a complete grid that is what fANOVA estimates as its main effect, at no cost: Optuna's fANOVA takes
    half a minute for 1,000 points, and far longer where an axis has many values.

    Args:
        values: the parameter's, one per score; numbers of many values are cut into ranges of equal count.
        scores: (n,) float, not all equal.
    """
    if len(set(values)) > MAX_LEVELS and not isinstance(values[0], bool | str):
        numbers = np.array(values, dtype=float)
        edges = np.quantile(numbers, np.arange(1, MAX_LEVELS) / MAX_LEVELS)
        levels = np.searchsorted(edges, numbers, side="right").tolist()
    else:
        levels = list(values)
    groups = [scores[[level == each for level in levels]] for each in dict.fromkeys(levels)]
    spare = len(scores) - len(groups)
    if spare < 1:
        return 0.0
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    total = float(((scores - scores.mean()) ** 2).sum())
    return max(0.0, 1 - within / total * (len(scores) - 1) / spare)
