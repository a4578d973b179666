"""The figures of a report. To add one: a function and a line in `draw`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from hpo.report import style
from hpo.report.facts import Facts, Point, Section
from hpo.report.style import Drawing, canvas, drawn, label, styled
from hpo.text import params_text, percent, show_value

MAX_SERIES = 6
"""So many runs have colours of their own; of more only the best and the worst have."""
MAX_LINES = 60
"""So many runs are drawn at most, evenly by rank."""
MAX_WORKERS = 40
MAX_CLASSES = 40
MAX_BARS = 300
"""From so many bars on they are pixels instead of paths: files stay small."""
MIN_IMPORTANCE_POINTS = 12
NO_GRADIENT = 1e-10
"""A logarithmic axis has no zero; gradients below this are drawn here."""

Figures = dict[str, list[Drawing]]
"""By place on the page: `answer`, a study's name, `final`, `provenance`."""


def draw(facts: Facts) -> Figures:
    """All figures that the facts allow."""
    figures: Figures = {"answer": [], "final": [], "provenance": []}
    with styled():
        figures["answer"] += waterfall(facts)
        for section in facts.sections:
            figures[section.name] = [
                *curves(section, _without_norm(section, facts.sections)),
                *heat_map(section),
                *gradients(section),
                *importance(section),
            ]
        if facts.final is not None:
            figures["final"] += [*test_curves(facts), *per_class(facts.final), *confusion(facts.final)]
        figures["provenance"] += time_line(facts)
    return figures


# --- the answer ------------------------------------------------------------------------------------------


def waterfall(facts: Facts) -> Iterator[Drawing]:
    """What each study gained on validation, down to the test set."""
    steps = [(s.label, s.control.row.macro_f1 if s.control else None, s.decision) for s in facts.chain]
    rows: list[tuple[str, float | None, float, str]] = [
        (name, before if decision.adopted else decision.value, decision.value, style.GREEN)
        for name, before, decision in steps
        if decision is not None and decision.value is not None
    ]
    if not rows:
        return
    deviation = None
    if facts.final is not None:
        fresh, test = facts.final["fresh_macro_f1"], facts.final["test"]["macro_f1"]
        rows += [("fresh seeds", rows[-1][2], fresh, style.BLUE), ("test set", fresh, test, style.BLUE)]
        deviation = facts.final["std"]["macro_f1"]
    figure = canvas(0.75 + 0.34 * len(rows))
    axes = figure.subplots()
    longest = max(len(label(name)) for name, *_ in rows)
    figure.subplots_adjust(
        left=min(0.42, 0.04 + 0.0145 * longest),
        right=0.97,
        top=1 - 0.1 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(),
    )
    ends = [100 * value for _, before, after, _ in rows for value in (before, after) if value is not None]
    ends += [ends[-1] + 100 * each for each in (deviation or 0.0, -(deviation or 0.0))]
    spread = max(max(ends) - min(ends), 1.0)
    axes.set_xlim(min(ends) - 0.1 * spread, max(ends) + 0.32 * spread)
    for i, (_, before, after, colour) in enumerate(rows):
        start, end = 100 * (after if before is None else before), 100 * after
        if before is not None and before != after:
            axes.barh(i, end - start, left=start, height=0.56, color=colour if end > start else style.RED)
        else:
            axes.plot([end], [i], "o", color=style.BLUE if before is None else style.GREY, markersize=6)
        is_last = i == len(rows) - 1
        if is_last and deviation is not None:
            axes.errorbar(end, i, xerr=100 * deviation, color=style.INK, capsize=3, linewidth=1.2)
        text = f"{end:.1f} %" if before is None else f"{end - start:+.1f}" if before != after else "kept"
        if is_last and before is not None:
            text = f"{text} → {end:.1f} %"
        right = max(start, end) + (100 * deviation if is_last and deviation else 0)
        axes.text(right + 0.025 * spread, i, text, va="center", fontsize=8.5)
        if not is_last:
            axes.plot([end, end], [i, i + 1], color=style.GREY, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), [label(name) for name, *_ in rows])
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("macro F1, %")
    yield drawn(
        figure,
        "waterfall",
        "What each study gained",
        "Macro F1 on validation, carried from study to study; then the same configuration at fresh seeds, "
        "and on the test set (the whisker is one standard deviation over seeds).",
    )


# --- a study ---------------------------------------------------------------------------------------------

PANELS = (
    ("accuracy", "valid_accuracy", "validation accuracy, %", 100),
    ("loss", "valid_loss", "validation loss", 1),
)


def curves(section: Section, without_norm: Sequence[Point]) -> Iterator[Drawing]:
    """Validation accuracy and loss per epoch of every run of a study."""
    points = [point for point in section.points if point.row.history]
    if not points:
        return
    few = len(points) <= MAX_SERIES
    for name, key, axis, scale in PANELS:
        figure = canvas(3.4 if few else 3.5)
        axes = figure.subplots()
        handles = (
            _series(axes, section, points, without_norm, key, scale)
            if few
            else _crowd(axes, section.ranked or points, key, scale)
        )
        _frame(figure, axes, axis, handles)
        shown = min(len(points), MAX_LINES)
        some = f" ({shown} of {len(points):,} runs, evenly by rank)" if shown < len(points) else ""
        dashed = " Dashed: the same without batch norm." if without_norm else ""
        yield drawn(
            figure,
            f"{section.name}-{name}",
            f"{'Accuracy' if name == 'accuracy' else 'Loss'} per epoch",
            f"{axis[0].upper()}{axis[1:].removesuffix(', %')} per epoch of every run of "
            f"{section.name}{some}; means over seeds.{dashed}",
        )


def _series(
    axes: Axes, section: Section, points: Sequence[Point], dashed: Sequence[Point], key: str, scale: float
) -> list[Line2D]:
    """Each run in its own colour, the control or the counterparts dashed."""
    handles = []
    for i, point in enumerate(points):
        settings: dict[str, Any] = {"color": style.SERIES[i], "marker": style.MARKERS[i]}
        name = params_text(point.row.params) or "control"
        if len(section.spec.search) == 1 and point.row.params:
            (axis, value), *_ = point.row.params.items()
            name = f"{axis.replace('_', ' ')} {show_value(value)}"
        handles += _line(axes, point, key, scale, label=label(name), **settings)
        for other in dashed:
            if all(other.config.get(axis) == value for axis, value in point.row.params.items()):
                _line(axes, other, key, scale, linestyle=(0, (3, 2)), linewidth=1.2, color=style.SERIES[i])
    control = section.control
    if control and all(control.config != point.config for point in points) and not dashed:
        handles += _line(
            axes,
            control,
            key,
            scale,
            color=style.GREY,
            linestyle=(0, (3, 2)),
            label=label(f"control, {control.name}"),
        )
    return handles


def _crowd(axes: Axes, points: Sequence[Point], key: str, scale: float) -> list[Line2D]:
    """Thin grey lines, the best and the worst run marked."""
    if len(points) > MAX_LINES:
        points = [points[round(i * (len(points) - 1) / (MAX_LINES - 1))] for i in range(MAX_LINES)]
    for point in points[1:-1]:
        _line(axes, point, key, scale, color=style.GREY, linewidth=0.7, alpha=0.7)
    handles = []
    for point, word, colour, dash in (
        (points[-1], "worst", style.RED, (0, (3, 2))),
        (points[0], "best", style.BLUE, "-"),
    ):
        text = textwrap.fill(f"{word}: {params_text(point.row.params) or point.row.point}", 78, max_lines=2)
        handles += _line(
            axes, point, key, scale, color=colour, linestyle=dash, marker="o", linewidth=2.2, label=text
        )
    return handles[::-1]


def _line(axes: Axes, point: Point, key: str, scale: float, **settings: Any) -> list[Line2D]:
    values = [scale * value if math.isfinite(value) else math.nan for value in point.curve(key)]
    if len(values) == 1:
        settings.setdefault("marker", "o")
    if len(values) > 25:
        settings["marker"] = ""
    return axes.plot(range(1, len(values) + 1), values, **settings)


def _frame(figure: Any, axes: Axes, ylabel: str, handles: Sequence[Line2D]) -> None:
    """Epochs below, a name for the values, and a legend under all of it, where it covers nothing."""
    names = [str(each.get_label()) for each in handles]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = 1 if longest > 42 else 2 if longest > 22 else 3
    lines = sum(name.count("\n") + 1 for name in names) if columns == 1 else math.ceil(len(names) / columns)
    height = figure.get_figheight()
    bottom = (0.48 + 0.175 * lines) / height
    figure.subplots_adjust(left=0.115, right=0.975, top=1 - 0.32 / height, bottom=bottom)
    axes.legend(
        handles=handles,
        loc="lower left",
        ncol=columns,
        columnspacing=1.4,
        bbox_to_anchor=(0.1, 0.05 / height),
        bbox_transform=figure.transFigure,
        fontsize=7.5 if columns == 1 else 8.5,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("epoch", loc="right", labelpad=2)
    axes.set_title(ylabel, fontweight="normal", color=style.FAINT, fontsize=9)


def _without_norm(section: Section, sections: Sequence[Section]) -> list[Point]:
    """For a study of batch norm: the runs of another study of the same axes without it."""
    if section.spec.fixed.get("batch_norm") is not True:
        return []
    axes = section.spec.search.keys()
    same = [s for s in sections if s.spec.search.keys() == axes and s is not section]
    return [p for s in same for p in s.points if p.row.history and p.config.get("batch_norm") is False]


def heat_map(section: Section) -> Iterator[Drawing]:
    """Macro F1 over channels and kernels, for a study that searched both."""
    sides = [[name for name in section.spec.search if name.endswith(end)] for end in ("_channels", "_kernel")]
    if not all(sides) or not section.spec.is_grid or not section.ranked:
        return
    found = {
        tuple(tuple(point.config[name] for name in side) for side in sides): point for point in section.ranked
    }
    rows, columns = (sorted({key[side] for key in found}) for side in (0, 1))
    if len(rows) > 16 or len(columns) > 12 or set(sides[0] + sides[1]) != set(section.spec.search):
        return
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), point in found.items():
        values[rows.index(row), columns.index(column)] = 100 * (point.row.macro_f1 or 0.0)
    figure = canvas(1.0 + 0.42 * len(rows))
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.2, right=0.97, top=1 - 0.2 / height, bottom=0.62 / height)
    _matrix(axes, values, lambda value: f"{value:.1f}")
    axes.set_yticks(range(len(rows)), [" → ".join(map(str, row)) for row in rows])
    axes.set_xticks(range(len(columns)), [" → ".join(f"{k}×{k}" for k in column) for column in columns])
    axes.set_ylabel("channels, C1 → C2")
    axes.set_xlabel("kernels, C1 → C2")
    best = section.ranked[0]
    yield drawn(
        figure,
        f"{section.name}-channels-kernels",
        "Channels and kernels",
        f"Macro F1 in % on validation by channels and kernels; the best is {percent(best.row.macro_f1)} %.",
    )


def _matrix(axes: Axes, values: Any, text: Any) -> None:
    """A coloured matrix with numbers in it, readable on every shade."""
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


def gradients(section: Section) -> Iterator[Drawing]:
    """What reaches each layer in a run that died, or the one of the highest rate, beside a healthy run."""
    if "learning_rate" not in section.spec.search or len(section.ranked) < 2:
        return
    healthy = section.ranked[0]
    rest = [point for point in section.ranked if point is not healthy]
    worst = max(rest, key=lambda p: (p.n_dying, -(p.row.macro_f1 or 0.0)))
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
        for axes, point, word in zip(panels, (worst, healthy), ("worst", "best"), strict=True):
            rate = show_value(point.config["learning_rate"])
            axes.set_title(f"{word}: learning rate {rate}", fontsize=9)
            for i, layer in enumerate(layers):
                values = [_health(epoch[0]["layers"].get(layer, {}), key) for epoch in point.row.history]
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
            f"{title} per layer over training, of the worst run ({worst.name}) and the best "
            f"({healthy.name}), first seed of each{'' if key == 'dead_share' else '; logarithmic'}.",
        )


def _health(layer: Mapping[str, Any], key: str) -> float | None:
    value = layer.get(key)
    if value is None or not math.isfinite(value):
        return None
    return 100.0 * float(value) if key == "dead_share" else max(float(value), NO_GRADIENT)


def _gradient_tick(value: float, position: object = None) -> str:
    return "0" if value <= NO_GRADIENT * 1.01 else style.number(value, position)


def importance(section: Section) -> Iterator[Drawing]:
    """How much of the differences each searched parameter explains (fANOVA)."""
    points = [point for point in section.ranked if point.row.state == "complete"]
    if len(section.spec.search) < 2 or len(points) < MIN_IMPORTANCE_POINTS:
        return
    shares = _importances(section, points)
    if not shares:
        return
    figure = canvas(0.75 + 0.34 * len(shares))
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.28, right=0.95, top=1 - 0.1 / height, bottom=0.5 / height)
    names, values = list(shares), [100 * share for share in shares.values()]
    axes.barh(range(len(names)), values, height=0.56, color=style.BLUE)
    for i, value in enumerate(values):
        axes.text(value + 1, i, f"{value:.0f} %", va="center", fontsize=8.5)
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, min(112, max(values) * 1.15 + 5))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the variance explained, %")
    yield drawn(
        figure,
        f"{section.name}-importance",
        "Importance of the parameters",
        f"How much of the differences in macro F1 between the {len(points)} complete points of "
        f"{section.name} each parameter explains (fANOVA).",
    )


def _importances(section: Section, points: Sequence[Point]) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from hpo import sampling

    axes = {name: sampling.distribution(name, axis) for name, axis in section.spec.search.items()}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(p.row.params), distributions=axes, value=p.row.macro_f1)
            for p in points
            if p.row.params.keys() == axes.keys()
        ]
    )
    try:
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=32, seed=0))
    except (RuntimeError, ValueError):  # all points have the same value: there is nothing to explain
        return {}


# --- the final stage -------------------------------------------------------------------------------------


def test_curves(facts: Facts) -> Iterator[Drawing]:
    """Accuracy and loss on the test set per epoch, beside those on validation."""
    final, epochs = facts.final or {}, facts.test_epochs
    chosen = final["selected_epoch"]
    for name, axis, scale in (("accuracy", "accuracy, %", 100), ("loss", "loss", 1)):
        values = scale * np.array([[seed[name] for seed in epoch] for epoch in epochs], dtype=float)
        if not values.size:
            return
        numbers = range(1, len(values) + 1)
        figure = canvas(3.1)
        axes = figure.subplots()
        axes.fill_between(
            numbers, values.min(axis=1), values.max(axis=1), color=style.BLUE, alpha=0.18, linewidth=0
        )
        mean = values.mean(axis=1)
        handles = axes.plot(numbers, mean, color=style.BLUE, marker="o", label="test")
        if facts.final_point is not None:
            handles += _line(
                axes,
                facts.final_point,
                f"valid_{name}",
                scale,
                color=style.ORANGE,
                linestyle=(0, (3, 2)),
                marker="s",
                label="validation",
            )
        handles += axes.plot(
            [chosen],
            [mean[chosen - 1]],
            "o",
            color=style.BLUE,
            markersize=11,
            markerfacecolor="none",
            linestyle="",
            label="chosen by validation",
        )
        _frame(figure, axes, axis, handles)
        yield drawn(
            figure,
            f"final-{name}",
            f"{'Accuracy' if name == 'accuracy' else 'Loss'} on the test set",
            f"Test {name} per epoch: mean over seeds, and from the lowest to the highest; the ring is the "
            "epoch that validation chose.",
        )


def per_class(final: Mapping[str, Any]) -> Iterator[Drawing]:
    """F1 per class, the best first."""
    ranked = sorted(final["per_class"].items(), key=lambda item: -item[1]["f1"])
    shown = ranked[-MAX_CLASSES:]
    figure = canvas(0.75 + 0.24 * len(shown))
    axes = figure.subplots()
    longest = max(len(label(name)) for name, _ in shown)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=min(0.42, 0.05 + 0.0145 * longest), right=0.95, top=1 - 0.1 / height, bottom=0.5 / height
    )
    values = [100 * figures["f1"] for _, figures in shown]
    mean = 100 * final["test"]["macro_f1"]
    axes.barh(range(len(shown)), values, height=0.62, color=style.BLUE)
    axes.axvline(mean, color=style.INK, linewidth=1, linestyle=(0, (3, 2)))
    for i, value in enumerate(values):
        axes.text(value + 1, i, f"{value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [label(name) for name, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("test F1, %; dashed: macro F1")
    some = f" The worst {len(shown)} of {len(ranked)} classes." if len(shown) < len(ranked) else ""
    yield drawn(
        figure, "per-class", "F1 per class", f"Test F1 of each class, mean over seeds, the best first.{some}"
    )


def confusion(final: Mapping[str, Any]) -> Iterator[Drawing]:
    """The confusion matrix in percent of the true class."""
    counts = np.array(final["confusion_matrix"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    names = [label(name, 14) for name in final["per_class"]]
    n = len(names)
    figure = canvas(4.6)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.2, right=0.98, top=0.98, bottom=0.2)
    _matrix(axes, shares, (lambda share: f"{share:.0f}") if n <= 15 else None)
    if n <= MAX_CLASSES:
        size = 8 if n <= 15 else 6
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    yield drawn(
        figure,
        "confusion-matrix",
        "Confusion matrix",
        "Of the test images of each class (a row), the share in % that was taken for each class (a column).",
    )


# --- the run ---------------------------------------------------------------------------------------------


def time_line(facts: Facts) -> Iterator[Drawing]:
    """Who worked on what and when."""
    if not facts.attempts:
        return
    workers = list(dict.fromkeys(attempt.worker for attempt in facts.attempts))
    workers.sort(key=lambda worker: min(a.begin for a in facts.attempts if a.worker == worker))
    shown = workers[:MAX_WORKERS]
    studies = list(dict.fromkeys(attempt.study for attempt in facts.attempts))
    colours = {study: style.SERIES[i % len(style.SERIES)] for i, study in enumerate(studies)}
    last = max(attempt.end for attempt in facts.attempts)
    unit, seconds = next(
        (name, size)
        for name, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if last > 2 * size or size == 1
    )
    rows = math.ceil(len(studies) / 4)
    figure = canvas(0.85 + 0.19 * rows + 0.26 * len(shown), width=2 * style.WIDTH)
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.11, right=0.985, top=1 - 0.08 / height, bottom=(0.55 + 0.19 * rows) / height
    )
    is_many = len(facts.attempts) > MAX_BARS
    for row, worker in enumerate(shown):
        for study in studies:
            taken = [a for a in facts.attempts if a.worker == worker and a.study == study]
            for is_broken in (False, True):
                bars = [
                    (a.begin / seconds, max(a.end - a.begin, last / 2000) / seconds)
                    for a in taken
                    if (a.state not in ("complete", "pruned", "running")) == is_broken
                ]
                if bars:
                    axes.broken_barh(
                        bars,
                        (row - 0.36, 0.72),
                        facecolors=colours[study],
                        edgecolor=style.PAPER,
                        linewidth=0.0 if is_many else 0.6,
                        rasterized=is_many,
                        alpha=0.35 if is_broken else 1.0,
                    )
    axes.set_yticks(range(len(shown)), [label(worker, 16) for worker in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, max(last / seconds, 1e-9))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(unit, loc="right", labelpad=2)
    handles = [Patch(color=colour, label=label(study)) for study, colour in colours.items()]
    figure.legend(handles=handles[: 4 * rows], loc="lower left", ncol=7, bbox_to_anchor=(0.1, 0.02 / height))
    more = f" The first {len(shown)} of {len(workers)} workers." if len(shown) < len(workers) else ""
    yield drawn(
        figure,
        "time-line",
        "Who trained what, and when",
        f"Each bar is a trial; pale ones were lost, released or failed.{more}",
    )
