"""The figures that the dashboard lacks, as Plotly draws them. To add one: a function and a line in `plots`.

A figure is the JSON that Plotly reads; the package plotly, which does nothing else for us, is not needed.
The dashboard sends all figures of a study with every look at it, so they are kept small.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpo._text import finite, params_text
from hpo.planning.plan import FINAL
from hpo.reporting import style
from hpo.reporting.data import Point, ReportData, Section
from hpo.reporting.figures import waterfall_steps
from hpo.reporting.study_figures import (
    MAX_LINES,
    PANELS,
    channels_by_kernels,
    evenly,
    layer_health,
    worst_and_best,
)

MAX_EPOCHS = 100
"""Of longer curves so many epochs are drawn, evenly."""
MAX_CLASSES = 50
MAX_BARS = 1500
COLOURS = (style.SKY, style.ORANGE, style.DARK[style.GREEN], style.PURPLE, style.RED, style.OCHRE, style.BLUE)
"""Of middle brightness: the dashboard puts the same figure on white and on black."""
INK, GRID = "#7d8592", "rgba(128,128,128,0.25)"
AXIS = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
SHADES = [[0, "#00224e"], [0.5, "#7d7c78"], [1, "#fee838"]]  # cividis, as in the report


@dataclass(frozen=True)
class Plot:
    """A figure as `optuna_dashboard.save_plotly_graph_object` takes it."""

    name: str
    """Its id in the dashboard: of the same name there is one in a study."""
    title: str
    traces: Sequence[Mapping[str, Any]]
    subtitle: str = ""
    """With names of others as `shown` makes them."""
    x: Mapping[str, Any] = field(default_factory=dict)
    """What is particular to the axis."""
    y: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return what Plotly draws; NaN and infinity are gaps."""
        title = f"{self.title}<br><sub>{self.subtitle}</sub>" if self.subtitle else self.title
        layout = {
            "title": {"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 16}},
            "font": {"color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 60, "r": 20, "t": 72, "b": 50},
            "hovermode": "closest",
            "xaxis": {**AXIS, **self.x},
            "yaxis": {**AXIS, **self.y},
            **self.layout,
        }
        return json.dumps(finite({"data": list(self.traces), "layout": layout}), separators=(",", ":"))


def plots(report: ReportData) -> dict[str, list[Plot]]:
    """Return the figures of every study, by its name."""
    found = {
        section.name: [*curves(section), *heat_map(section), *layers(section)] for section in report.sections
    }
    final = list(waterfall(report))
    if report.final is not None:
        final += [*test_curves(report), *confusion(report.final), *per_class(report.final)]
    return {**found, FINAL: [*final, *time_line(report)]}


def shown(text: str) -> str:
    """Escape somebody's text for a figure: Plotly reads some of HTML."""
    return html.escape(style.label(text, 60), quote=False)


# --- a study -----------------------------------------------------------------------------------------------


def curves(section: Section) -> Iterator[Plot]:
    """Yield accuracy and loss per epoch of every run, the best marked; macro F1 the dashboard shows."""
    others = [point for point in section.points if point.row.history and not point.has_result]
    drawn = evenly([*section.ranked, *others], MAX_LINES)
    if not drawn:
        return
    best = section.ranked[0] if section.ranked else None
    few = len(drawn) <= len(COLOURS)
    for panel in PANELS:
        traces = []
        for i, point in enumerate(drawn):
            is_best = point is best
            colour = COLOURS[i] if few else COLOURS[0] if is_best else INK
            traces.append(
                _line(
                    point,
                    point.curve(panel.key),
                    panel.scale,
                    line={"color": colour, "width": 3 if is_best else 1.5},
                    opacity=1.0 if few or is_best else 0.5,
                    name=f"{point.row.trial}{' (best)' if is_best else ''}",
                    text=shown(params_text(point.row.params) or point.row.point),
                )
            )
        # the last trace lies on top
        traces = [{**trace, "legendrank": i} for i, trace in enumerate(traces)][::-1]
        yield Plot(
            f"hpo-{panel.name}",
            panel.caption,
            traces,
            x=_epochs(traces),
            y={"title": {"text": panel.label}},
            layout={"legend": {"title": {"text": "trial"}}, "showlegend": few or len(drawn) <= 20},
        )


def _line(point: Point, values: Sequence[float | None], scale: float, **settings: Any) -> dict[str, Any]:
    drawn = evenly([*enumerate(values, start=1)], MAX_EPOCHS)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(drawn) < 25 else "lines",
        "x": [epoch for epoch, _ in drawn],
        "y": [None if value is None else _short(scale * value) for _, value in drawn],
        "hovertemplate": f"trial {point.row.trial}, epoch %{{x}}: %{{y}}<br>%{{text}}<extra></extra>",
        **settings,
    }


def _epochs(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an axis without half epochs."""
    last = max((int(trace["x"][-1]) for trace in traces), default=1)
    return {"title": {"text": "epoch"}, **({"dtick": 1} if last <= 20 else {})}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def heat_map(section: Section) -> Iterator[Plot]:
    """Yield macro F1 over channels and kernels."""
    grid = channels_by_kernels(section)
    if grid is None:
        return
    rows, columns, values = grid
    yield _matrix(
        "hpo-channels-kernels",
        "Macro F1 in % by channels and kernels",
        (rows, columns, np.round(values, 1)),
        ("channels, C1 → C2", "kernels, C1 → C2"),
        "channels %{y}, kernels %{x}: %{z} %<extra></extra>",
    )


def _matrix(
    name: str, title: str, grid: tuple[list[str], list[str], Any], axes: tuple[str, str], hover: str
) -> Plot:
    rows, columns, values = grid
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": values.tolist(),
        "colorscale": SHADES,
        "hovertemplate": hover,
        "colorbar": {"outlinewidth": 0, "thickness": 14},
    }
    if values.size <= 400:
        trace["texttemplate"] = "%{z}"
    # a category's name may look like a number
    return Plot(
        name,
        title,
        [trace],
        x={"title": {"text": axes[1], "standoff": 12}, "type": "category"},
        y={"title": {"text": axes[0], "standoff": 12}, "type": "category", "autorange": "reversed"},
    )


def layers(section: Section) -> Iterator[Plot]:
    """Yield gradients and dead units per layer, of the worst run beside the best."""
    pair = worst_and_best(section)
    if pair is None:
        return
    for key, name, title, axis in (
        (
            "weight_gradient",
            "hpo-gradients",
            "Gradients of the weights",
            {"type": "log", "exponentformat": "e", "nticks": 5},
        ),
        ("dead_share", "hpo-dead-units", "Dead units in %", {"range": [-4, 104]}),
    ):
        traces = []
        for point, word, dash in zip(pair, ("worst", "best"), ("dot", "solid"), strict=True):
            for i, layer in enumerate(point.row.history[0][0]["layers"]):
                values = [layer_health(epoch[0]["layers"].get(layer, {}), key) for epoch in point.row.history]
                if any(value is not None for value in values):
                    line = {"color": COLOURS[i % len(COLOURS)], "dash": dash}
                    label = f"{word}, {layer}"
                    traces.append(_line(point, values, 1, line=line, name=shown(label), text=shown(label)))
        rates = " and ".join(f"{point.config['learning_rate']:g}" for point in pair[::-1])
        yield Plot(
            name,
            f"{title} per layer",
            traces,
            f"of the best run (solid) and the worst (dotted), learning rates {rates}",
            x=_epochs(traces),
            y=axis,
        )


# --- the plan and its answer -------------------------------------------------------------------------------


def waterfall(report: ReportData) -> Iterator[Plot]:
    """Yield what each study gained, down to the test set."""
    steps = waterfall_steps(report)
    if not steps:
        return
    gains = [step.after if step.before is None else step.after - step.before for step in steps]
    low = min(step.after for step in steps)
    high = max(step.after for step in steps)
    spread = max(high - low, 1.0)
    trace = {
        "type": "waterfall",
        "orientation": "v",
        "measure": ["absolute" if step.before is None else "relative" for step in steps],
        "x": [shown(step.name) for step in steps],
        "y": [_short(gain) for gain in gains],
        "text": [step.text for step in steps],
        "textposition": "outside",
        "constraintext": "none",
        "cliponaxis": False,
        "increasing": {"marker": {"color": COLOURS[2]}},
        "decreasing": {"marker": {"color": style.RED}},
        "totals": {"marker": {"color": style.SKY}},
        "connector": {"line": {"color": GRID}},
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }
    yield Plot(
        "hpo-waterfall",
        "What each study gained: macro F1, %",
        [trace],
        x={"type": "category"},
        y={"range": [low - 0.6 * spread, high + 0.3 * spread]},
    )


def test_curves(report: ReportData) -> Iterator[Plot]:
    """Yield test and validation accuracy and loss per epoch, means over seeds."""
    final, point = report.final or {}, report.final_point
    if point is None:
        return
    for name, title, scale in (("accuracy", "Accuracy in %", 100), ("loss", "Loss", 1)):
        test = [epoch[name] for epoch in final["per_epoch"]]
        traces = [
            _line(point, test, scale, name="test", text="test", line={"color": style.SKY, "width": 3}),
            _line(
                point,
                point.curve(f"valid_{name}"),
                scale,
                name="validation",
                text="validation",
                line={"color": style.ORANGE, "dash": "dash"},
            ),
        ]
        chosen = {
            "type": "line",
            **dict.fromkeys(("x0", "x1"), final["selected_epoch"]),
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": INK, "width": 1, "dash": "dot"},
        }
        yield Plot(
            f"hpo-test-{name}",
            f"{title} per epoch on the test set",
            traces,
            "mean over seeds; dotted: the epoch that validation chose",
            x=_epochs(traces),
            layout={"shapes": [chosen]},
        )


def confusion(final: Mapping[str, Any]) -> Iterator[Plot]:
    """Yield the confusion matrix in percent of the true class."""
    names = _distinct([*final["per_class"]])
    if len(names) > MAX_CLASSES:
        return
    counts = np.array(final["confusion_matrix"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    yield _matrix(
        "hpo-confusion",
        "Confusion matrix on the test set, % of each true class",
        (names, names, np.round(shares, 0 if len(names) <= 20 else 1)),
        ("true class", "predicted class"),
        "%{y} taken for %{x}: %{z} %<extra></extra>",
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Return class names as an axis holds them: two that look alike stay two."""
    labels = [shown(name) for name in names]
    return [f"{label} ({i})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def per_class(final: Mapping[str, Any]) -> Iterator[Plot]:
    """Yield test F1 per class, the worst below; of many classes the worst."""
    names = _distinct([*final["per_class"]])
    scores = [100 * each["f1"] for each in final["per_class"].values()]
    ranked = sorted(zip(names, scores, strict=True), key=lambda pair: pair[1])[:MAX_CLASSES]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [_short(score) for _, score in ranked],
        "y": [name for name, _ in ranked],
        "texttemplate": "%{x:.1f}",
        "marker": {"color": style.SKY},
        "hovertemplate": "%{y}: %{x} %<extra></extra>",
    }
    yield Plot(
        "hpo-per-class",
        "Test F1 of each class, %",
        [trace],
        x={"range": [0, 105]},
        y={"type": "category", "tickmode": "linear" if len(ranked) <= 25 else "auto"},
    )


def time_line(report: ReportData) -> Iterator[Plot]:
    """Yield who trained what, and when."""
    attempts = report.attempts[-MAX_BARS:]
    if not attempts:
        return
    traces = []
    for i, study in enumerate(dict.fromkeys(attempt.study for attempt in attempts)):
        bars = [attempt for attempt in attempts if attempt.study == study]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": shown(study),
                "base": [round(bar.begin, 1) for bar in bars],
                "x": [round(bar.end - bar.begin, 1) for bar in bars],
                "y": [shown(bar.row) for bar in bars],
                "text": [f"{shown(study)}/{bar.trial}: {shown(bar.state)}" for bar in bars],
                "textposition": "none",
                "marker": {"color": COLOURS[i % len(COLOURS)], "line": {"color": GRID, "width": 1}},
                "hovertemplate": "%{text}, %{x} s<extra>%{y}</extra>",
            }
        )
    yield Plot(
        "hpo-time-line",
        "Who trained what, and when",
        traces,
        x={"title": {"text": "seconds since the first trial"}},
        y={"type": "category"},
        layout={"barmode": "overlay"},
    )
