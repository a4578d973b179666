"""What there is to see of a plan. To add a figure: a function, and a line in `FIGURES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from hpo._text import duration, show_value
from hpo.reporting.charts import Bar, Bars, Curves, Figure, Line, Matrix, Panel
from hpo.reporting.data import Point, ReportData, Section
from hpo.reporting.metrics import METRICS, OBJECTIVE, Metric
from hpo.reporting.palette import BLUE, GREEN, GREY, ORANGE, RED, SKY, Colour, series
from hpo.space.parameters import ParamValue

T = TypeVar("T")

MAX_SERIES = 8
"""So many runs have colours of their own; of more only the best and the worst have."""
MAX_LINES = 60
"""So many runs are drawn at most, evenly by rank."""
MAX_CLASSES = 30
"""So many classes have a bar, the worst."""
MAX_ROWS, MAX_COLUMNS = 16, 12
"""Of the matrix of a grid."""
MAX_WORKERS = 40
MIN_IMPORTANCE_POINTS = 8
MAX_LEVELS = 8
"""So many values, or ranges of values, of a parameter are told apart when its importance is judged."""
NO_GRADIENT = 1e-10
"""Gradients below this are drawn as none at all."""


@dataclass(frozen=True)
class Entry:
    """A line of the table of figures."""

    name: str
    """Of its files; those of a study begin with the study's name."""
    place: Literal["answer", "study", "final", "provenance"]
    """Where on the page."""
    describe: Callable[..., Figure | None]
    """Takes the report, and of a figure of a study its section; None: there is nothing to see yet."""
    dashboard: str = ""
    """Its id there; empty where the dashboard has such a figure itself, or no room."""
    picture: str = ""
    """The name of its PNG at the trial of the final stage; empty: it has none."""


@dataclass(frozen=True)
class Placed:
    """A figure with its place in the table."""

    entry: Entry
    figure: Figure
    study: str = ""
    """Empty for a figure of the whole plan."""

    @property
    def name(self) -> str:
        """Its files' name."""
        return f"{self.study}-{self.entry.name}" if self.study else self.entry.name


def figures(report: ReportData) -> Iterator[Placed]:
    """Yield every figure that there is something to see on."""
    for entry in FIGURES:
        if entry.place != "study":
            if (figure := entry.describe(report)) is not None:
                yield Placed(entry, figure)
            continue
        for section in report.sections:
            if (figure := entry.describe(report, section)) is not None:
                yield Placed(entry, figure, section.name)


# --- the answer ------------------------------------------------------------------------------------------


def waterfall(report: ReportData) -> Figure | None:
    """Describe what each study gained on validation, down to the test set."""
    bars = []
    for section in report.chain:
        decision = section.decision
        if decision is None or decision.value is None:
            continue
        after = 100 * decision.value
        if decision.control is None:
            bars.append(Bar(section.label, after, after, f"{after:.1f} %"))
        elif not decision.adopted:
            bars.append(Bar(section.label, after, after, "kept", colour=GREY))
        else:
            bars.append(_gain(section.label, 100 * decision.control.value, after))
    if not bars:
        return None
    caption = f"{OBJECTIVE.title} on validation, carried from study to study"
    if report.final is not None:
        fresh = 100 * report.final[f"fresh_{OBJECTIVE.name}"]
        test, deviation = (100 * (report.final[key][OBJECTIVE.name] or 0.0) for key in ("test", "std"))
        label = f"{test:.1f}{f' ± {deviation:.1f}' if deviation else ''} %"
        bars.append(_gain("fresh seeds", bars[-1].end, fresh, SKY))
        bars.append(Bar("test set", test, fresh, label, colour=SKY, deviation=deviation))
        caption += "; then at fresh seeds and on the test set (whisker: one standard deviation)"
    ends = [bar.end + sign * bar.deviation for bar in bars for sign in (-1, 1)]
    spread = max(max(ends) - min(ends), 1.0)
    limits = min(ends) - 0.1 * spread, max(ends) + 0.32 * spread
    return Figure("What each study gained", f"{caption}.", Bars(bars, OBJECTIVE.axis, limits, is_chain=True))


def _gain(name: str, before: float, after: float, colour: Colour | None = None) -> Bar:
    points = after - before
    # a gain that one decimal would round to nothing is still a gain
    label = f"{points:+.{1 if abs(points) >= 0.05 else 3}f}"
    return Bar(name, after, before, label, colour=colour or (GREEN if points > 0 else RED))


# --- a study ---------------------------------------------------------------------------------------------


def curves(report: ReportData, section: Section, metric: Metric) -> Figure | None:
    """Describe a metric on validation over the epochs of every run of a study."""
    points = [point for point in section.points if point.row.history]
    if not points:
        return None
    few = len(points) <= MAX_SERIES
    without_norm = _without_norm_of(section, report.sections) if few else []
    lines = _series(section, points, without_norm, metric) if few else _crowd(section, points, metric)
    some = f" ({MAX_LINES} of {len(points):,} runs, evenly by rank)" if len(points) > MAX_LINES else ""
    dashed = " Dashed: the same without batch norm." if without_norm else ""
    return Figure(
        f"{metric.title} per epoch",
        f"Validation {metric.label} of every run of {section.name}{some}; means over seeds.{dashed}",
        Curves(
            [Panel(lines)],
            axis=f"validation {metric.axis}",
            legend=", ".join(section.spec.search).replace("_", " ") if few else "",
            names="trial",
        ),
    )


def _series(
    section: Section, points: Sequence[Point], without_norm: Sequence[Point], metric: Metric
) -> list[Line]:
    """Return each run in its own colour, the control or the counterparts dashed."""
    best = section.ranked[0] if section.ranked else None
    lines = []
    for i, point in enumerate(points):
        params = point.row.params
        # the legend's title says which parameters these are
        values = ", ".join(show_value(params[axis]) for axis in section.spec.search if axis in params)
        lines.append(_run(point, metric, series(i), label=values or "control", is_best=point is best))
        for other in without_norm:
            if all(other.config.get(axis) == value for axis, value in params.items()):
                lines.append(_run(other, metric, series(i), name=other.name, is_dashed=True, has_marks=False))
    control = section.control
    if control and all(control.config != point.config for point in points) and not without_norm:
        lines.append(
            _run(
                control,
                metric,
                GREY,
                label="control",
                name=f"{control.name} (control)",
                is_dashed=True,
                has_marks=False,
            )
        )
    return lines


def _crowd(section: Section, points: Sequence[Point], metric: Metric) -> list[Line]:
    """Return faint lines, and the best and the worst run."""
    best, *others = [*section.ranked, *[point for point in points if not point.has_result]]
    others.sort(key=lambda point: (point.has_result, -(point.row.macro_f1 or 0.0)))
    drawn = evenly([best, *others], MAX_LINES)
    lines = [_run(point, metric, GREY, weight="faint", has_marks=False) for point in drawn]
    if section.ranked:
        lines[0] = _run(best, metric, BLUE, label=f"best: {best.text}", is_best=True)
    if len(section.ranked) > 1:
        worst = drawn[-1]
        lines[-1] = _run(worst, metric, RED, label=f"worst: {worst.text}", is_dashed=True)
    return lines


def _run(
    point: Point, metric: Metric, colour: Colour, *, name: str = "", is_best: bool = False, **settings: Any
) -> Line:
    name = name or f"{point.row.trial}{' (best)' if is_best else ''}"
    return Line(
        [metric.scale * value for value in point.curve(metric.valid)],
        colour,
        name=name,
        text=f"trial {name}: {point.text}",
        **{"weight": "strong" if is_best else "normal", **settings},
    )


def evenly(things: Sequence[T], most: int) -> list[T]:
    """Select so many at most, evenly by their place, the first and the last among them.

    Args:
        things: in order.
        most: two or more.
    """
    if len(things) <= most:
        return list(things)
    return [things[round(i * (len(things) - 1) / (most - 1))] for i in range(most)]


def _without_norm_of(section: Section, sections: Sequence[Section]) -> list[Point]:
    """Return, for a study of batch norm, the runs of another study of the same axes without it."""
    if section.spec.fixed.get("batch_norm") is not True:
        return []
    axes = section.spec.search.keys()
    same = [s for s in sections if s.spec.search.keys() == axes and s is not section]
    return [p for s in same for p in s.points if p.row.history and p.config.get("batch_norm") is False]


def channels_by_kernels(_report: ReportData, section: Section) -> Figure | None:
    """Describe the objective over channels and kernels, for a grid over both."""
    sides = [[name for name in section.spec.search if name.endswith(end)] for end in ("_channels", "_kernel")]
    if not all(sides) or not section.spec.is_grid or not section.ranked:
        return None
    found = {
        tuple(tuple(point.config[name] for name in side) for side in sides): point for point in section.ranked
    }
    rows, columns = (sorted({key[side] for key in found}) for side in (0, 1))
    if len(rows) > MAX_ROWS or len(columns) > MAX_COLUMNS or {*sides[0], *sides[1]} != {*section.spec.search}:
        return None
    n_pruned = sum(point.row.state == "pruned" for point in section.ranked)
    pruned = (
        f" {n_pruned} of the {len(section.ranked)} were pruned: theirs is of fewer epochs."
        if n_pruned
        else ""
    )
    return Figure(
        "Channels and kernels",
        f"{OBJECTIVE.title} in % on validation by channels and kernels; the best is "
        f"{OBJECTIVE.text(section.ranked[0].row.macro_f1)} %.{pruned}",
        Matrix(
            [" → ".join(map(str, row)) for row in rows],
            [" → ".join(f"{kernel}×{kernel}" for kernel in column) for column in columns],
            [
                [
                    100 * (found[row, column].row.macro_f1 or 0.0) if (row, column) in found else math.nan
                    for column in columns
                ]
                for row in rows
            ],
            "channels, C1 → C2",
            "kernels, C1 → C2",
            digits=1,
        ),
    )


def layers(_report: ReportData, section: Section, key: str, title: str) -> Figure | None:
    """Describe what reaches each layer, in a study of learning rates.

    Of a run that died, or else that of the highest rate, beside the best.
    """
    if "learning_rate" not in section.spec.search or len(section.ranked) < 2:
        return None
    best, *rest = section.ranked
    worst = max(rest, key=lambda point: (point.n_dying, float(point.config["learning_rate"])))
    is_share = key == "dead_share"
    panels = []
    for point, word in ((worst, "died" if worst.n_dying else "other"), (best, "best")):
        lines = []
        for i, layer in enumerate(worst.row.history[0][0]["layers"]):
            values = [epoch[0]["layers"].get(layer, {}).get(key) for epoch in point.row.history]
            if any(value is not None for value in values):
                scaled = [None if value is None else 100 * value if is_share else value for value in values]
                lines.append(Line(scaled, series(i), label=layer))
        panels.append(Panel(lines, f"{word}: learning rate {point.config['learning_rate']:.3g}"))
    which = "a run that died" if worst.n_dying else "the run of the highest other rate"
    return Figure(
        title,
        f"{title} per layer over training, of {which} ({worst.name}) and the best ({best.name}), "
        f"first seed of each{'' if is_share else '; logarithmic'}.",
        Curves(
            panels,
            axis="share of dead units, %" if is_share else "norm of the gradient",
            limits=(-4, 104) if is_share else None,
            zero=None if is_share else NO_GRADIENT,
        ),
    )


def importance(_report: ReportData, section: Section) -> Figure | None:
    """Describe how much of the differences each searched parameter explains by itself."""
    points = [point for point in section.ranked if point.row.state == "complete" and point.row.params]
    scores = np.array([point.row.macro_f1 for point in points], dtype=float)
    if len(section.spec.search) < 2 or len(points) < MIN_IMPORTANCE_POINTS or scores.max() == scores.min():
        return None
    shares = {
        name: 100 * main_effect([point.row.params[name] for point in points], scores)
        for name in section.spec.search
    }
    if not any(shares.values()):
        return None
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    bars = [Bar(name, share, label=f"{share:.0f} %") for name, share in ranked]
    return Figure(
        "Importance of the parameters",
        f"How much of the variance of {OBJECTIVE.label} between {len(points):,} complete points of "
        f"{section.name} each parameter explains by itself; the rest is how they act together, and noise.",
        Bars(bars, "share of the variance explained, %", (0, min(112, 1.15 * bars[0].end + 5))),
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


# --- the final stage -------------------------------------------------------------------------------------


def test_curves(report: ReportData, metric: Metric) -> Figure | None:
    """Describe a metric on the test set per epoch, beside that on validation."""
    if report.final is None or not report.test_epochs:
        return None
    seeds = metric.scale * np.array([[seed[metric.name] for seed in epoch] for epoch in report.test_epochs])
    band = seeds.min(axis=1).tolist(), seeds.max(axis=1).tolist()
    lines = [Line(seeds.mean(axis=1).tolist(), BLUE, label="test", weight="strong", band=band)]
    if report.final_point is not None:
        valid = [metric.scale * value for value in report.final_point.curve(metric.valid)]
        lines.append(Line(valid, ORANGE, label="validation", is_dashed=True))
    return Figure(
        f"{metric.title} on the test set",
        "Mean over seeds, and from the lowest to the highest; dotted: the epoch that validation chose.",
        Curves([Panel(lines)], axis=metric.axis, marked=report.final["selected_epoch"]),
    )


def per_class(report: ReportData) -> Figure | None:
    """Describe test F1 per class, the best first."""
    if report.final is None:
        return None
    scores = {name: 100 * each["f1"] for name, each in report.final["per_class"].items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    shown = ranked[-MAX_CLASSES:]
    some = f" The worst {len(shown)} of {len(ranked)} classes." if len(shown) < len(ranked) else ""
    return Figure(
        "F1 per class",
        f"Test F1 of each class, mean over seeds, the best first; the dashed line is macro F1.{some}",
        Bars(
            [Bar(name, scores[name], label=f"{scores[name]:.1f}") for name in shown],
            "test F1, %",
            (0, 108),
            reference=100 * report.final["test"]["macro_f1"],
        ),
    )


def confusion(report: ReportData) -> Figure | None:
    """Describe the confusion matrix in percent of the true class."""
    if report.final is None:
        return None
    counts = np.array(report.final["confusion_matrix"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    names = list(report.final["per_class"])
    return Figure(
        "Confusion matrix",
        "Of the test images of each class (a row), the share in % that was taken for each class (a column).",
        Matrix(names, names, shares.tolist(), "true class", "predicted class", digits=0),
    )


# --- the run ---------------------------------------------------------------------------------------------


def time_line(report: ReportData) -> Figure | None:
    """Describe who worked on what and when."""
    if not report.attempts:
        return None
    last = max(attempt.end for attempt in report.attempts)
    units: Mapping[str, int] = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit, seconds = next((name, size) for name, size in units.items() if last > 2 * size or size == 1)
    workers = list(dict.fromkeys(attempt.row for attempt in report.attempts))  # by their beginnings
    shown = workers[:MAX_WORKERS]
    studies = list(dict.fromkeys(attempt.study for attempt in report.attempts))
    bars = [
        Bar(
            each.row,
            each.end / seconds,
            each.begin / seconds,
            text=f"{each.study}/{each.trial}: {each.state}, {duration(each.end - each.begin)}",
            colour=series(studies.index(each.study)),
            group=each.study,
            is_pale=each.state not in ("complete", "pruned", "running"),
        )
        for each in report.attempts
        if each.row in shown
    ]
    more = f" The first {len(shown)} of {len(workers)} workers." if len(shown) < len(workers) else ""
    return Figure(
        "Who trained what, and when",
        f"Each bar is a trial; pale ones were lost, released or failed.{more}",
        Bars(bars, f"{unit} since the first trial", (0, max(last / seconds, 1e-9)), is_wide=True),
    )


# --- a trial ---------------------------------------------------------------------------------------------


def trial_curves(point: Point) -> Figure:
    """Describe the metrics of a run per epoch, a line a seed: the picture that its trial carries."""
    panels = [
        Panel(
            [
                Line([metric.scale * epoch[seed][metric.valid] for epoch in point.row.history], series(seed))
                for seed in range(len(point.seeds))
            ],
            f"validation {metric.axis}",
        )
        for metric in METRICS
    ]
    caption = "Validation metrics per epoch, a line a seed."
    return Figure(point.name, caption, Curves(panels, has_one_scale=False))


SHOWN = [metric for metric in METRICS if metric is not OBJECTIVE]
"""The dashboard draws the objective itself, and a report says it in tables."""
FIGURES: Sequence[Entry] = (
    Entry("waterfall", "answer", waterfall, "hpo-waterfall"),
    *(Entry(m.slug, "study", partial(curves, metric=m), f"hpo-{m.slug}") for m in SHOWN),
    Entry("channels-kernels", "study", channels_by_kernels, "hpo-channels-kernels"),
    Entry(
        "gradients-weights",
        "study",
        partial(layers, key="weight_gradient", title="Gradients of the weights"),
        "hpo-gradients",
    ),
    Entry("gradients-biases", "study", partial(layers, key="bias_gradient", title="Gradients of the biases")),
    Entry("dead-units", "study", partial(layers, key="dead_share", title="Dead units"), "hpo-dead-units"),
    Entry("importance", "study", importance),
    *(
        Entry(
            f"final-{m.slug}",
            "final",
            partial(test_curves, metric=m),
            f"hpo-test-{m.slug}",
            f"test-{m.slug}.png",
        )
        for m in SHOWN
    ),
    Entry("per-class", "final", per_class, "hpo-per-class", "f1-per-class.png"),
    Entry("confusion-matrix", "final", confusion, "hpo-confusion", "confusion-matrix.png"),
    Entry("time-line", "provenance", time_line, "hpo-time-line"),
)
