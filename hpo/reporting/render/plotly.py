"""Draws charts as Plotly does: the JSON that it reads. The package plotly is not needed for that.

The dashboard sends all figures of a study with every look at it, so they are kept small.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from hpo._text import finite
from hpo.reporting import palette
from hpo.reporting.charts import (
    Bar,
    Bars,
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
from hpo.reporting.figures import evenly

INK, GRID = palette.INK.middle, palette.GRID.middle
AXIS = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
SHADES = [[0, "#00224e"], [0.5, "#7d7c78"], [1, "#fee838"]]  # cividis, as matplotlib has it
LABEL_LENGTH = 60
CAPTION_LENGTH = 70
"""Characters of a line of the caption, which Plotly does not break; two figures share 1,100 pixels."""
MAX_EPOCHS = 100
"""Of longer curves so many epochs are drawn, evenly."""
MAX_BARS = 1500
"""So many bars are drawn, the last."""
MAX_CELLS, MAX_NUMBERS = 2500, 400
"""A larger matrix is not drawn at all, or has no numbers in it."""
MAX_NAMED = 20
"""Lines that a legend lists."""


@dataclass(frozen=True)
class Plot:
    """A figure as `optuna_dashboard.save_plotly_graph_object` takes it."""

    figure: Figure

    def to_json(self) -> str:
        """Return what Plotly draws; NaN and infinity are gaps."""
        caption = textwrap.wrap(shown(self.figure.caption, 1000), CAPTION_LENGTH)
        traces, layout = _drawn(self.figure)
        common = {
            "title": {
                "text": "<br>".join([shown(self.figure.title), *[f"<sub>{line}</sub>" for line in caption]]),
                "x": 0.02,
                "y": 1,
                "yanchor": "top",
                "pad": {"t": 20},
                "font": {"size": 16},
            },
            "font": {"color": INK},
            "paper_bgcolor": palette.PAPER.middle,
            "plot_bgcolor": palette.PAPER.middle,
            "margin": {"l": 60, "r": 20, "t": 68 + 18 * len(caption), "b": 50},
            "hovermode": "closest",
        }
        return json.dumps(finite({"data": traces, "layout": {**common, **layout}}), separators=(",", ":"))


def is_drawn(figure: Figure) -> bool:
    """Return whether a figure is small enough for the dashboard."""
    chart = figure.chart
    return not isinstance(chart, Matrix) or len(chart.rows) * len(chart.columns) <= MAX_CELLS


def shown(text: str, length: int = LABEL_LENGTH) -> str:
    """Escape somebody's text for a figure: Plotly reads some of HTML."""
    return html.escape(short_name(text, length), quote=False)


# --- the charts --------------------------------------------------------------------------------------------

Drawn = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout."""


def _drawn(figure: Figure) -> Drawn:
    match figure.chart:
        case Curves() as chart:
            return _curves(chart)
        case Bars() as chart:
            return _bars(chart)
        case Matrix() as chart:
            return _matrix(chart)
        case Effects() as chart:
            return _effects(chart)
        case Scatter() as chart:
            return _scatter(chart)
        case TradeOff() as chart:
            return _trade_off(chart)
        case Forest() as chart:
            return _forest(chart)
    assert_never(figure.chart)


def _axis(title: str = "", **settings: Any) -> dict[str, Any]:
    return {**AXIS, "title": {"text": title, "standoff": 12}, **settings}


def _curves(chart: Curves) -> Drawn:
    lines = [line for panel in chart.panels for line in panel.lines]
    last = max((len(line.values) for line in lines), default=1)
    x = _axis("epoch", **({"dtick": 1} if last <= 20 else {}))
    y = _axis(chart.axis)
    if chart.zero is not None:
        y |= {"type": "log", "exponentformat": "e", "nticks": 5}
    elif chart.limits is not None:
        y["range"] = list(chart.limits)
    layout: dict[str, Any] = {
        # many names scroll at the side, a few have room below
        "legend": {"title": {"text": chart.names}} if chart.names else {"orientation": "h", "y": -0.2},
        "showlegend": len(lines) <= MAX_NAMED or all(line.weight != "faint" for line in lines),
    }
    traces: list[dict[str, Any]] = []
    notes = []
    for i, panel in enumerate(chart.panels):
        number = str(i + 1) if i else ""
        layout[f"xaxis{number}"] = x
        layout[f"yaxis{number}"] = {**y, "matches": "y", "title": {}} if i else y
        above = {"xref": f"x{number} domain", "yref": f"y{number} domain", "yanchor": "bottom"}
        notes += [_note(shown(panel.title), 0.5, 1, **above)] if panel.title else []
        place = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        traces += [{**_band(line, chart.zero), **place} for line in panel.lines if line.band is not None]
        named = {trace.get("name") for trace in traces}
        # the strong line is named first and drawn last, on top
        for rank, line in reversed(
            [*enumerate(sorted(panel.lines, key=lambda each: each.weight != "strong"))]
        ):
            trace = _line(line, chart.zero)
            traces.append({**trace, **place, "legendrank": rank, "showlegend": trace["name"] not in named})
    layout |= {
        "annotations": notes,
        "grid": {"rows": 1, "columns": len(chart.panels), "pattern": "independent"},
    }
    if chart.marked is not None:
        layout["shapes"] = [_rule(chart.marked, "dot")]
    return traces, layout


def _line(line: Line, zero: float | None) -> dict[str, Any]:
    epochs, values = _drawn_epochs(line.values, zero)
    name = shown(line.name or line.label)
    return {
        "type": "scatter",
        "mode": "lines+markers" if line.is_marked else "lines",
        "x": epochs,
        "y": values,
        "name": name,
        "legendgroup": name,
        "text": shown(line.text or line.name or line.label, 200),
        "hovertemplate": "%{text}<br>epoch %{x}: %{y}<extra></extra>",
        "opacity": 0.5 if line.weight == "faint" else 1,
        "line": {
            "color": line.colour.middle,
            "width": 3 if line.weight == "strong" else 1.5,
            **({"dash": "dash"} if line.is_dashed else {}),
        },
    }


def _band(line: Line, zero: float | None) -> dict[str, Any]:
    (epochs, low), (_, high) = (_drawn_epochs(edge, zero) for edge in line.band or ([], []))
    return {
        "type": "scatter",
        "mode": "none",
        "fill": "toself",
        "x": [*epochs, *epochs[::-1]],
        "y": [*low, *high[::-1]],
        "fillcolor": line.colour.middle,
        "opacity": 0.18,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _drawn_epochs(values: Sequence[float | None], zero: float | None) -> tuple[list[int], list[float | None]]:
    """Return the epochs that are drawn, and their values; on a logarithmic axis none is below its zero."""
    drawn = evenly([*enumerate(values, start=1)], MAX_EPOCHS)
    least = -math.inf if zero is None else zero
    return [epoch for epoch, _ in drawn], [None if y is None else _short(max(y, least)) for _, y in drawn]


def _bars(chart: Bars) -> Drawn:
    names = dict(zip(chart.rows, _distinct(chart.rows), strict=True))
    order = [*names.values()][::-1]  # Plotly draws the first row below
    groups: dict[str, list[Bar]] = {bar.group: [] for bar in chart.bars}
    for bar in chart.bars[::-1][:MAX_BARS]:
        groups[bar.group].append(bar)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": shown(group),
            "base": [_short(bar.start) for bar in bars],
            "x": [_short(bar.end - bar.start) for bar in bars],
            "y": [names[bar.row] for bar in bars],
            "customdata": [shown(bar.text or f"{bar.row}: {bar.label}", 200) for bar in bars],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "color": [bar.colour.middle for bar in bars],
                "opacity": [0.35 if bar.is_pale else 1 for bar in bars],
                # a bar of no length is its line alone
                "line": {
                    "color": [bar.colour.middle if bar.start == bar.end else GRID for bar in bars],
                    "width": 1,
                },
            },
            **({"error_x": {"array": deviations, "color": INK}} if any(deviations) else {}),
        }
        for group, bars in groups.items()
        for deviations in [[bar.deviation for bar in bars]]
    ]
    layout: dict[str, Any] = {
        "xaxis": _axis(chart.axis, range=list(chart.limits)),
        "yaxis": _axis(type="category", tickmode="linear", categoryorder="array", categoryarray=order),
        "barmode": "overlay",
        "showlegend": len(groups) > 1,
    }
    # by its place: a name may look like a number, and is then taken for one
    place = {row: i for i, row in enumerate(chart.rows[::-1])}
    layout["annotations"] = [
        _note(shown(bar.label), bar.right, place[bar.row], xanchor="left", xshift=4)
        for bar in chart.bars
        if bar.label
    ]
    if chart.reference is not None:
        layout["shapes"] = [_rule(chart.reference, "dash")]
    if chart.is_chain:
        pairs = zip(chart.bars, chart.bars[1:], strict=False)
        layout["shapes"] = [
            _rule(one.end, "solid", y0=place[one.row], y1=place[other.row]) for one, other in pairs
        ]

    return traces, layout


def _note(text: str, x: float, y: object, **settings: Any) -> dict[str, Any]:
    return {"text": text, "x": x, "y": y, "showarrow": False, "font": {"size": 12, "color": INK}, **settings}


def _rule(x: float, dash: str, **ends: Any) -> dict[str, Any]:
    """Return a line upwards, from the bottom to the top where no ends are given."""
    line = {"color": INK, "width": 1, "dash": dash}
    across = {"yref": "paper", "y0": 0, "y1": 1}
    return {"type": "line", "x0": x, "x1": x, "line": line, **(ends or across)}


def _matrix(chart: Matrix) -> Drawn:
    trace = {
        "type": "heatmap",
        "x": _distinct(chart.columns),
        "y": _distinct(chart.rows),
        "z": [[round(value, chart.digits) for value in row] for row in chart.values],
        "colorscale": SHADES,
        "reversescale": chart.is_less_better,
        "hovertemplate": (
            f"{shown(chart.row_axis)} %{{y}}<br>{shown(chart.column_axis)} %{{x}}<br>"
            f"%{{z}}{chart.unit}<extra></extra>"
        ),
        "colorbar": {"outlinewidth": 0, "thickness": 14},
    }
    if len(chart.rows) * len(chart.columns) <= MAX_NUMBERS:
        trace["texttemplate"] = "%{z}"
    return [trace], {
        "xaxis": _axis(shown(chart.column_axis), type="category"),
        "yaxis": _axis(shown(chart.row_axis), type="category", autorange="reversed"),
    }


def _effects(chart: Effects) -> Drawn:
    layout: dict[str, Any] = {
        "showlegend": False,
        "grid": {"rows": 1, "columns": len(chart.effects), "pattern": "independent"},
    }
    traces = []
    for i, effect in enumerate(chart.effects):
        number = str(i + 1) if i else ""
        levels = _distinct(effect.levels)
        layout[f"xaxis{number}"] = _axis(shown(effect.name), type="category")
        layout[f"yaxis{number}"] = _axis(matches="y") if i else _axis(chart.axis)
        place = {"xaxis": f"x{number}", "yaxis": f"y{number}", "type": "scatter"}
        whole: dict[str, Any] = {"x": [levels[0], levels[-1]], "y": [_short(chart.reference)] * 2}
        dashed = {"color": INK, "width": 1, "dash": "dash"}
        traces += [
            {**place, **whole, "mode": "lines", "line": dashed, "hoverinfo": "skip"},
            {
                **place,
                "mode": "lines+markers",
                "x": levels,
                "y": [_short(value) for value in effect.values],
                "line": {"color": palette.BLUE.middle, "width": 2},
                "marker": {"size": 8},
                "hovertemplate": "%{x}: %{y}<extra></extra>",
            },
        ]
    return traces, layout


def _trade_off(chart: TradeOff) -> Drawn:
    axes = f"{chart.y_axis} %{{y}}<br>{chart.x_axis} %{{x}}"

    def marks(places: Sequence[int], colour: str, **settings: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "x": [_short(chart.points[place][0]) for place in places],
            "y": [_short(chart.points[place][1]) for place in places],
            "text": [shown(chart.names[place]) for place in places],
            "hovertemplate": f"%{{text}}<br>{axes}<extra></extra>",
            "marker": {"color": colour, "size": 8},
            **settings,
        }

    traces = [
        marks(range(len(chart.points)), palette.FAINT.middle),
        marks(chart.front, palette.BLUE.middle, mode="lines+markers"),
    ]
    if chart.chosen is not None:
        ring = {"symbol": "circle-open", "size": 14, "color": palette.ORANGE.middle, "line": {"width": 2}}
        traces.append(marks([chart.chosen], "", marker=ring))
    kind = {"type": "log"} if chart.has_log_x else {}
    return traces, {
        "xaxis": _axis(chart.x_axis, **kind),
        "yaxis": _axis(chart.y_axis),
        "showlegend": False,
    }


def _scatter(chart: Scatter) -> Drawn:
    x, y = zip(*chart.pairs, strict=True)
    low, high = map(_short, chart.limits)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [_short(value) for value in x],
        "y": [_short(value) for value in y],
        "marker": {"color": palette.BLUE.middle, "opacity": 0.55, "size": 7},
        "hovertemplate": f"{chart.x_axis} %{{x}}<br>{chart.y_axis} %{{y}}<extra></extra>",
    }
    exact = {"color": INK, "width": 1, "dash": "dash"}
    return [trace], {
        "xaxis": _axis(chart.x_axis, range=[low, high]),
        "yaxis": _axis(chart.y_axis, range=[low, high]),
        "showlegend": False,
        "shapes": [{"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "line": exact}],
    }


def _forest(chart: Forest) -> Drawn:
    estimates = chart.estimates
    names = _distinct([each.row for each in estimates])
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [_short(each.value) for each in estimates],
        "y": names,
        "customdata": [shown(each.text, 200) for each in estimates],
        "hovertemplate": "%{y}: %{x}<br>%{customdata}<extra></extra>",
        "marker": {"color": [each.colour.middle for each in estimates], "size": 9},
    }
    rows = [
        # not `error_x`, whose bars have one colour
        {
            "type": "line",
            **{"x0": _short(each.low), "x1": _short(each.high), "y0": place, "y1": place},
            "line": {"color": each.colour.middle, "width": 3},
        }
        for place, each in enumerate(estimates)
    ]
    bands = [
        {
            "type": "rect",
            **{"x0": -each.delta, "x1": each.delta, "y0": place - 0.5, "y1": place + 0.5},
            "fillcolor": GRID,
            "line": {"width": 0},
            "layer": "below",
        }
        for place, each in enumerate(estimates)
    ]
    said = [
        _note(shown(each.text), 0, place, xref="paper", xanchor="left", yshift=14)
        for place, each in enumerate(estimates)
    ]
    return [trace], {
        "xaxis": _axis(chart.axis, range=list(map(_short, chart.limits))),
        "yaxis": _axis(
            type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.6]
        ),
        "shapes": [*bands, *rows, _rule(0, "dash")],
        "annotations": said,
        "showlegend": False,
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names as an axis of categories holds them: two that look alike stay two."""
    labels = [shown(name) for name in names]
    return [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else math.nan
