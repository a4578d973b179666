"""Draws charts with matplotlib: an SVG for pages light and dark, and a PNG.

An SVG holds its light colours plainly, so that every program draws it, and a style sheet that exchanges each
of them where the reader prefers dark. Drawing is deterministic: salted ids, no dates.
"""

from __future__ import annotations

import io
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hpo._text import printable
from hpo.reporting import palette
from hpo.reporting.charts import (
    Bar,
    Bars,
    Chart,
    Curves,
    Effects,
    Figure,
    Forest,
    Line,
    Matrix,
    Scatter,
    TradeOff,
    short_name,
)
from hpo.reporting.palette import BLUE, GREY, SERIES, Colour

INK, FAINT, GRID, PAPER = (each.light for each in (palette.INK, palette.FAINT, palette.GRID, palette.PAPER))
DASHED, DOTTED = (0, (3, 2)), (0, (1, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MARKS = {GREY: "o", **dict(zip(SERIES, MARKERS, strict=True))}
"""Lines differ in marks too: colour alone tells nothing to some."""

WIDTH = 4.7  # inches; such a figure is still readable on a telephone, two of them stand side by side
LABEL_LENGTH = 26
TICK_LENGTH = 14
"""Of a label along an axis that has many."""
LEGEND_LENGTH = 64
"""Characters of a line of a legend that has a column to itself."""
LEGEND_COLUMNS = {4: 9, 3: 15, 2: 28}
"""Columns of a legend for names of so many characters at most."""
MAX_NUMBERS, MAX_TICKS = 15, 30
"""A matrix with more rows holds no numbers, or no names either."""
MAX_PATHS = 300
"""More bars than these are pixels instead of paths: files stay small."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, searchable, escaped by the writer
    "svg.hashsalt": "hpo",
    "text.parse_math": False,  # a $ in somebody's class name is a $
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    **{f"{axis}tick.{name}": FAINT for axis in "xy" for name in ("color", "labelcolor")},
    **{f"{axis}tick.{name}.size": 0 for axis in "xy" for name in ("major", "minor")},
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.0,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Drawing:
    """A figure as files hold it."""

    svg: bytes
    png: bytes


def draw(figure: Figure) -> Drawing:
    """Draw a figure; its title and caption are left to those who show it."""
    with styled():
        return written(_drawn(figure.chart))


def styled() -> AbstractContextManager[None]:
    """Return the context in which everything is drawn."""
    return matplotlib.rc_context(SETTINGS)


def canvas(height: float, width: float = WIDTH) -> Canvas:
    """Return an empty drawing, sizes in inches; call it inside `styled`."""
    drawing = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def written(drawing: Canvas) -> Drawing:
    """Write a drawing as SVG and PNG."""
    svg, png = io.BytesIO(), io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # a script that the font lacks shows as boxes in the PNG, and in the reader's own font in the SVG
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        if (layout := drawing.get_layout_engine()) is not None:
            layout.execute(drawing)
            drawing.set_layout_engine()  # none: once for both files
        drawing.savefig(svg, format="svg", metadata=nothing)
        drawing.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return Drawing(_with_dark(svg.getvalue().decode()).encode(), png.getvalue())


# --- the charts --------------------------------------------------------------------------------------------


def _drawn(chart: Chart) -> Canvas:
    match chart:
        case Curves():
            return _curves(chart)
        case Bars():
            return _bars(chart)
        case Matrix():
            return _matrix(chart)
        case Effects():
            return _effects(chart)
        case Scatter():
            return _scatter(chart)
        case TradeOff():
            return _trade_off(chart)
        case Forest():
            return _forest(chart)
    assert_never(chart)


def _curves(chart: Curves) -> Canvas:
    n_panels = len(chart.panels)
    drawing = canvas(3.3 if n_panels == 1 else 2.8, WIDTH if chart.has_one_scale else 2 * WIDTH)
    parts = drawing.subplots(1, n_panels, sharey=chart.has_one_scale, squeeze=False)[0]
    handles: dict[str, Artist] = {}
    for axes, panel in zip(parts, chart.panels, strict=True):
        for line in panel.lines:
            handle = _line(axes, line, chart.zero)
            if line.label:
                handles.setdefault(str(handle.get_label()), handle)
        if chart.marked is not None:
            mark = axes.axvline(chart.marked, color=FAINT, linewidth=1.2, linestyle=DOTTED, zorder=0)
            handles["chosen epoch"] = mark
        width = drawing.get_figwidth() / n_panels - (0 if chart.has_one_scale else 0.35)
        axes.set_title(_wrapped(panel.title, width), fontweight="normal" if n_panels == 1 else "bold")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=12 // n_panels + 2))
        if all(len(line.values) < 2 for line in panel.lines):
            axes.set_xlim(0.5, 1.5)  # there are no tenths of an epoch
        if chart.limits is not None:
            axes.set_ylim(chart.limits)
        if chart.zero is not None:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(partial(_tick, chart.zero)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            low, high = axes.get_ylim()
            if high < 100 * low:  # powers of ten alone would be one or two
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    parts[-1].set_xlabel("epoch", loc="right", labelpad=2)
    if chart.axis:
        drawing.suptitle(chart.axis, x=0.01, ha="left", color=FAINT, fontsize=9, fontweight="normal")
    _legend(drawing, handles, textwrap.fill(chart.legend, LEGEND_LENGTH))
    return drawing


def _tick(zero: float, value: float, _position: object) -> str:
    """Return a tick's label; matplotlib's own on log axes need its mathematical notation."""
    return "0" if value <= 1.01 * zero else f"{value:g}"


def _line(axes: Axes, line: Line, zero: float | None) -> Artist:
    values = _drawable(line.values, zero)
    epochs = range(1, len(values) + 1)
    colour = line.colour.light
    if line.band is not None:
        low, high = (_drawable(edge, zero) for edge in line.band)
        if any(map(math.isfinite, low)):  # a logarithmic axis finds no limits for nothing
            axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    (drawn,) = axes.plot(
        epochs,
        values,
        color=colour,
        linestyle=DASHED if line.is_dashed else "-",
        linewidth={"strong": 2.4, "normal": 1.6, "faint": 0.7}[line.weight],
        alpha=0.7 if line.weight == "faint" else 1,
        marker=MARKS[line.colour] if line.is_marked else "",
        zorder=2.5 if line.weight == "strong" else 2,
        label=textwrap.fill(printable(line.label), LEGEND_LENGTH, max_lines=3),
    )
    return drawn


def _wrapped(text: str, inches: float) -> str:
    """Return a title that fits into so much of a drawing, beside others and the labels of ticks."""
    return textwrap.fill(printable(text), round(11 * inches), max_lines=2, placeholder="…")


def _drawable(values: Sequence[float | None], zero: float | None) -> list[float]:
    """Return values with gaps for what cannot be drawn; on a logarithmic axis none is below its zero."""
    found = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    return found if zero is None else [max(value, zero) for value in found]


def _legend(drawing: Canvas, handles: dict[str, Artist], title: str) -> None:
    """Put a legend under all of it, where it covers nothing."""
    if not handles:
        return
    longest = max(len(line) for name in handles for line in name.split("\n"))
    columns = next((count for count, most in LEGEND_COLUMNS.items() if longest <= most), 1)
    drawing.legend(
        handles.values(),
        handles.keys(),
        title=title or None,
        alignment="left",
        loc="outside lower left",
        ncols=columns,
        columnspacing=1.4,
        fontsize=7.5 if columns == 1 else 8.5,
        title_fontsize=8.5,
    )


def _bars(chart: Bars) -> Canvas:
    rows = chart.rows
    groups = {bar.group: Patch(color=bar.colour.light) for bar in chart.bars if bar.group}
    drawing = canvas(0.65 + 0.3 * math.ceil(len(groups) / 7) + 0.28 * len(rows), (1 + chart.is_wide) * WIDTH)
    axes = drawing.subplots()
    is_many = len(chart.bars) > MAX_PATHS
    shortest = (chart.limits[1] - chart.limits[0]) / 300
    alike: dict[tuple[str, Colour, bool], list[Bar]] = {}
    for bar in chart.bars:
        alike.setdefault((bar.row, bar.colour, bar.is_pale), []).append(bar)
    for (row, colour, is_pale), bars in alike.items():
        axes.broken_barh(
            # what is short or nothing is still seen
            [(bar.start, max(bar.end - bar.start, shortest, key=abs)) for bar in bars],
            (rows.index(row) - 0.32, 0.64),
            facecolors=colour.light,
            edgecolor=PAPER,
            linewidth=0.6 if groups and not is_many else 0,
            rasterized=is_many,
            alpha=0.35 if is_pale else 1,
        )
    if chart.reference is not None:
        axes.axvline(chart.reference, color=INK, linewidth=1, linestyle=DASHED)
    for bar in chart.bars if not groups else ():
        i = rows.index(bar.row)
        if chart.is_chain and bar.start == bar.end:
            axes.plot([bar.end], [i], "o", color=bar.colour.light, markersize=6)
        if bar.deviation:
            axes.errorbar(bar.end, i, xerr=bar.deviation, color=INK, capsize=3, linewidth=1.2)
        if chart.is_chain and i + 1 < len(rows):
            axes.plot([bar.end, bar.end], [i, i + 1], color=GREY.light, linewidth=0.8, zorder=0)
        # on paper of its own, should a line cross it
        box = {"facecolor": PAPER, "linewidth": 0, "pad": 0.6}
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(bar.label, (bar.right, i), fontsize=8, bbox=box, **place)
    axes.set_yticks(range(len(rows)), [short_name(row, LABEL_LENGTH) for row in rows], color=INK)
    axes.set(xlim=chart.limits, ylim=(len(rows) - 0.4, -0.6), xlabel=chart.axis)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10 if chart.is_wide else 5, steps=[1, 2, 5, 10]))
    if groups:
        names = [short_name(group, LABEL_LENGTH) for group in groups]
        drawing.legend(groups.values(), names, loc="outside lower left", ncols=7)
    return drawing


def _matrix(chart: Matrix) -> Canvas:
    """Draw a coloured matrix with numbers in it, readable on every shade."""
    n_rows, n_columns = len(chart.rows), len(chart.columns)
    rows, columns = (
        [short_name(name, TICK_LENGTH) for name in names] for names in (chart.rows, chart.columns)
    )
    is_dense = max(n_rows, n_columns) > MAX_NUMBERS
    drawing = canvas(1.0 + 0.42 * n_rows if n_rows < 8 else 4.2)
    axes = drawing.subplots()
    values = np.array(chart.values, dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    colours = "cividis_r" if chart.is_less_better else "cividis"
    axes.imshow(values, cmap=colours, aspect="auto", interpolation="none")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value) and not is_dense:
            # not the paper's white: that one turns dark with the page, these shades do not
            shade = (value - low) / (high - low) if high > low else 0.0
            is_dark = (1 - shade if chart.is_less_better else shade) < 0.55
            colour = "#fefefe" if is_dark else "#010101"
            axes.text(
                column, row, f"{value:.{chart.digits}f}", ha="center", va="center", color=colour, fontsize=8
            )
    if max(n_rows, n_columns) <= MAX_TICKS:
        size = 6 if is_dense else 8
        tilt: dict[str, Any] = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if n_columns > 5 else {}
        )
        axes.set_xticks(range(n_columns), columns, fontsize=size, **tilt)
        axes.set_yticks(range(n_rows), rows, fontsize=size)
    axes.set_xlabel(_wrapped(chart.column_axis, WIDTH))
    axes.set_ylabel(_wrapped(chart.row_axis, drawing.get_figheight() - 0.6))
    return drawing


def _effects(chart: Effects) -> Canvas:
    n_panels = len(chart.effects)
    n_rows = math.ceil(n_panels / 2)  # two beside each other stay readable
    drawing = canvas(0.6 + 2.0 * n_rows)
    parts = drawing.subplots(n_rows, min(n_panels, 2), sharey=True, squeeze=False).flatten()
    for axes in parts[n_panels:]:
        axes.set_visible(False)
    for axes, effect in zip(parts, chart.effects, strict=False):
        places = range(len(effect.levels))
        axes.axhline(chart.reference, color=FAINT, linewidth=1, linestyle=DASHED)
        axes.plot(places, effect.values, color=BLUE.light, marker="o", markersize=5.5)
        longest = max(map(len, effect.levels))
        tilt: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(
            places,
            [short_name(level, TICK_LENGTH) for level in effect.levels],
            **(tilt if longest * len(places) > 20 else {}),
        )
        axes.set_xlim(-0.4, len(places) - 0.6)
        axes.grid(visible=False, axis="x")
        axes.set_title(_wrapped(effect.name, WIDTH / 2))
    drawing.suptitle(chart.axis, x=0.01, ha="left", color=FAINT, fontsize=9, fontweight="normal")
    return drawing


def _trade_off(chart: TradeOff) -> Canvas:
    drawing = canvas(3.6)
    axes = drawing.subplots()
    if chart.has_log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    x, y = zip(*chart.points, strict=True)
    axes.plot(
        x, y, "o", color=FAINT, alpha=0.55, markeredgewidth=0, markersize=5, rasterized=len(x) > MAX_PATHS
    )
    if chart.front:
        x, y = zip(*chart.line, strict=True)
        axes.plot(x, y, color=BLUE.light, marker="o", markersize=5.5)
    if chart.chosen is not None:
        x_, y_ = chart.points[chart.chosen]
        axes.plot(
            x_,
            y_,
            "o",
            markersize=12,
            markerfacecolor="none",
            markeredgecolor=palette.ORANGE.light,
            markeredgewidth=2,
        )
    axes.set(xlabel=chart.x_axis, ylabel=chart.y_axis)
    return drawing


def _scatter(chart: Scatter) -> Canvas:
    drawing = canvas(4.2)
    axes = drawing.subplots()
    x, y = zip(*chart.pairs, strict=True)
    axes.plot(chart.limits, chart.limits, color=INK, linewidth=1, linestyle=DASHED)
    axes.plot(
        x,
        y,
        "o",
        color=BLUE.light,
        alpha=0.55,
        markeredgewidth=0,
        markersize=5,
        rasterized=len(x) > MAX_PATHS,
    )
    axes.set(xlim=chart.limits, ylim=chart.limits, xlabel=chart.x_axis, ylabel=chart.y_axis)
    axes.set_box_aspect(1)
    return drawing


def _forest(chart: Forest) -> Canvas:
    n_rows = len(chart.estimates)
    drawing = canvas(0.65 + 0.5 * n_rows)
    axes = drawing.subplots()
    for row, each in enumerate(chart.estimates):
        axes.fill_betweenx(
            [row - 0.5, row + 0.5], -each.delta, each.delta, color=GREY.light, alpha=0.25, linewidth=0
        )
        axes.plot([each.low, each.high], [row + 0.2] * 2, color=each.colour.light, linewidth=2)
        axes.plot([each.value], [row + 0.2], MARKS[each.colour], color=each.colour.light, markersize=6)
        axes.text(
            0.01,
            row - 0.2,
            printable(each.text),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
        )
        axes.vlines(0, row, row + 0.5, color=INK, linewidth=1, linestyle=DASHED)  # not across the text
    names = [
        textwrap.fill(printable(each.row), LABEL_LENGTH, max_lines=2, placeholder="…")
        for each in chart.estimates
    ]
    axes.set_yticks(range(n_rows), names, color=INK)
    axes.set(xlim=chart.limits, ylim=(n_rows - 0.5, -0.5), xlabel=chart.axis)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    return drawing


# --- dark pages --------------------------------------------------------------------------------------------

_RULES = "".join(
    f'[style*="{kind}: {colour.light}"]{{{kind}:{colour.dark}!important}}'
    for colour in palette.ALL
    for kind in ("fill", "stroke")
)
_FONTS = re.compile(r'(<text style="[^"]*?font-family: )[^;"]*')


def _with_dark(svg: str) -> str:
    """Add the dark colours, and take out the reference to a DTD on the network."""
    svg = re.sub(r"<!DOCTYPE[^>]*>\s*", "", svg, count=1)
    sheet = f"@media (prefers-color-scheme: dark){{{_RULES}}}"
    svg = svg.replace("</style>", f"{sheet}</style>", 1)
    return _FONTS.sub(r"\1'DejaVu Sans', Verdana, sans-serif", svg)
