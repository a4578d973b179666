"""The figures of a report. To add one: a function and a line in `draw`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hpo.reporting import style
from hpo.reporting.data import ReportData
from hpo.reporting.study_figures import (
    PANELS,
    Panel,
    curves,
    frame,
    gradients,
    heat_map,
    importance,
    line,
    matrix,
    without_norm_of,
)
from hpo.reporting.style import Drawing, canvas, drawn, label, styled

MAX_WORKERS = 40
MAX_CLASSES = 25
MAX_BARS = 300
"""From so many bars on they are pixels instead of paths: files stay small."""

PLAIN_BOX = {"facecolor": style.PAPER, "linewidth": 0, "pad": 0.6}
"""Behind a number that a line would cross."""

Figures = dict[str, list[Drawing]]
"""By place on the page: `answer`, a study's name, `final`, `provenance`."""


def draw(report: ReportData) -> Figures:
    """Return all figures that the facts allow."""
    figures: Figures = {"answer": [], "final": [], "provenance": []}
    with styled():
        figures["answer"] += waterfall(report)
        for section in report.sections:
            figures[section.name] = [
                *curves(section, without_norm_of(section, report.sections)),
                *heat_map(section),
                *gradients(section),
                *importance(section),
            ]
        if report.final is not None:
            figures["final"] += [
                *test_curves(report, PANELS),
                *per_class(report.final),
                *confusion(report.final),
            ]
        figures["provenance"] += time_line(report)
    return figures


# --- the answer ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One row of the waterfall; figures in percent."""

    name: str
    before: float | None
    """None for the study that starts."""
    after: float
    colour: str
    text: str
    deviation: float = 0.0


def waterfall(report: ReportData) -> Iterator[Drawing]:
    """Yield what each study gained on validation, down to the test set."""
    steps = waterfall_steps(report)
    if not steps:
        return
    figure = canvas(0.75 + 0.34 * len(steps))
    axes = figure.subplots()
    longest = max(len(label(step.name)) for step in steps)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=min(0.42, 0.04 + 0.0145 * longest), right=0.97, top=1 - 0.1 / height, bottom=0.5 / height
    )
    ends = [step.after + sign * step.deviation for step in steps for sign in (-1, 1)]
    spread = max(max(ends) - min(ends), 1.0)
    axes.set_xlim(min(ends) - 0.1 * spread, max(ends) + 0.32 * spread)
    for i, step in enumerate(steps):
        start = step.after if step.before is None else step.before
        if start == step.after:
            axes.plot(
                [start], [i], "o", color=style.BLUE if step.before is None else style.GREY, markersize=6
            )
        else:
            axes.barh(i, step.after - start, left=start, height=0.56, color=step.colour)
        if step.deviation:
            axes.errorbar(step.after, i, xerr=step.deviation, color=style.INK, capsize=3, linewidth=1.2)
        right = max(start, step.after + step.deviation)
        axes.text(right + 0.03 * spread, i, step.text, va="center", fontsize=8.5)
        if i + 1 < len(steps):
            axes.plot([step.after, step.after], [i, i + 1], color=style.GREY, linewidth=0.8, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(steps)), [label(step.name) for step in steps])
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("macro F1, %")
    test = (
        "; then the same configuration at fresh seeds, and on the test set (whisker: one standard deviation)"
    )
    yield drawn(
        figure,
        "waterfall",
        "What each study gained",
        f"Macro F1 on validation, carried from study to study{test if report.final else ''}.",
    )


def waterfall_steps(report: ReportData) -> list[Step]:
    """Return what led from the first study to the test set; none before the first decision."""
    steps = []
    for section in report.chain:
        decision = section.decision
        if decision is None or decision.value is None:
            continue
        after = 100 * decision.value
        if decision.control is None:
            steps.append(Step(section.label, None, after, style.BLUE, f"{after:.1f} %"))
            continue
        before = 100 * decision.control.value if decision.adopted else after
        text = _gain(after - before) if decision.adopted else "kept"
        colour = style.GREEN if after > before else style.RED
        steps.append(Step(section.label, before, after, colour, text))
    if report.final is None or not steps:
        return steps
    fresh, test = 100 * report.final["fresh_macro_f1"], 100 * report.final["test"]["macro_f1"]
    deviation = 100 * (report.final["std"]["macro_f1"] or 0.0)
    searched = steps[-1].after
    spread = f" ± {deviation:.1f}" if deviation else ""
    return [
        *steps,
        Step("fresh seeds", searched, fresh, style.SKY, _gain(fresh - searched)),
        Step("test set", fresh, test, style.SKY, f"{test:.1f}{spread} %", deviation),
    ]


def _gain(points: float) -> str:
    # a gain that one decimal would round to nothing is still a gain
    return f"{points:+.{1 if abs(points) >= 0.05 else 3}f}"


# --- the final stage -------------------------------------------------------------------------------------


def test_curves(report: ReportData, panels: Iterable[Panel]) -> Iterator[Drawing]:
    """Yield accuracy and loss on the test set per epoch, beside those on validation."""
    final, epochs = report.final or {}, report.test_epochs
    chosen = final["selected_epoch"]
    for panel in panels:
        values = panel.scale * np.array(
            [[seed[panel.name] for seed in epoch] for epoch in epochs], dtype=float
        )
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
        if report.final_point is not None:
            handles += line(
                axes,
                report.final_point,
                panel,
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
            label="chosen epoch",
        )
        frame(figure, axes, panel.label.removeprefix("validation "), handles)
        yield drawn(
            figure,
            f"final-{panel.name}",
            f"{panel.name.capitalize()} on the test set",
            f"Test {panel.name} per epoch: mean over seeds, and from the lowest to the highest; the ring is "
            "the epoch that validation chose.",
        )


def per_class(final: Mapping[str, Any]) -> Iterator[Drawing]:
    """Yield F1 per class, the best first."""
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
        axes.text(value + 1, i, f"{value:.1f}", va="center", fontsize=8, bbox=PLAIN_BOX)
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
    """Yield the confusion matrix in percent of the true class."""
    counts = np.array(final["confusion_matrix"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    names = [label(name, 14) for name in final["per_class"]]
    n = len(names)
    longest = max(map(len, names)) if n <= MAX_CLASSES else 2
    figure = canvas(3.6 + 0.06 * longest)
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.09 + 0.013 * longest, right=0.98, top=0.98, bottom=(0.5 + 0.05 * longest) / height
    )
    matrix(axes, shares, (lambda share: f"{share:.0f}") if n <= 15 else None)
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


def time_line(report: ReportData) -> Iterator[Drawing]:
    """Yield who worked on what and when."""
    if not report.attempts:
        return
    workers = list(dict.fromkeys(attempt.row for attempt in report.attempts))  # by their beginnings
    shown = workers[:MAX_WORKERS]
    studies = list(dict.fromkeys(attempt.study for attempt in report.attempts))
    colours = {study: style.SERIES[i % len(style.SERIES)] for i, study in enumerate(studies)}
    last = max(attempt.end for attempt in report.attempts)
    unit, seconds = next(
        (name, size)
        for name, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if last > 2 * size or size == 1
    )
    rows = math.ceil(len(studies) / 7)
    figure = canvas(0.75 + 0.19 * rows + 0.26 * len(shown), width=2 * style.WIDTH)
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.11, right=0.985, top=1 - 0.08 / height, bottom=(0.5 + 0.16 * rows) / height)
    is_many = len(report.attempts) > MAX_BARS
    for row, worker in enumerate(shown):
        for study in studies:
            taken = [a for a in report.attempts if a.row == worker and a.study == study]
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
    figure.legend(handles=handles, loc="lower left", ncol=7, bbox_to_anchor=(0.1, 0.02 / height))
    more = f" The first {len(shown)} of {len(workers)} workers." if len(shown) < len(workers) else ""
    yield drawn(
        figure,
        "time-line",
        "Who trained what, and when",
        f"Each bar is a trial; pale ones were lost, released or failed.{more}",
    )
