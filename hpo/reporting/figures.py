"""What there is to see of a plan. To add a figure: a function, and a line in `FIGURES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np

from hpo._text import duration, params_text, show_value
from hpo.monitor.results import mean
from hpo.planning.metrics import Metric
from hpo.planning.samplers import distributions
from hpo.planning.verdicts import SAID, Verdict
from hpo.reporting.charts import (
    Bar,
    Bars,
    Curves,
    Effect,
    Effects,
    Estimate,
    Figure,
    Forest,
    Line,
    Matrix,
    Panel,
    Scatter,
    TradeOff,
)
from hpo.reporting.data import Point, ReportData, Section
from hpo.reporting.palette import BLUE, GREEN, GREY, ORANGE, RED, SKY, Colour, series
from hpo.reporting.prose import in_words
from hpo.space.parameters import ParamValue, canonical_json

T = TypeVar("T")

MAX_SERIES = 8
"""So many runs have colours of their own; of more only the best and the worst have."""
MAX_LINES = 60
"""So many runs are drawn at most, evenly by rank."""
MAX_CLASSES = 30
"""So many classes have a bar, the worst."""
MAX_ROWS, MAX_COLUMNS = 16, 12
"""Of the matrix of a grid."""
MAX_EFFECTS = 4
"""So many axes of a grid have a panel, those with the largest effects."""
MAX_PANELS = 4
MAX_WORKERS = 40
MIN_GRID_POINTS = 8
MIN_SAMPLED_POINTS = 20
"""PED-ANOVA looks at the best tenth of the points, of which there must be two at least."""
MAX_LEVELS = 8
"""So many values, or ranges of values, of a parameter are told apart when its importance is judged."""
NO_GRADIENT = 1e-10
"""Gradients below this are drawn as none at all."""


MIN_DECADE = 10
"""A cost that differs by more than so many times is shown on a logarithmic axis."""


@dataclass(frozen=True)
class Entry:
    """A line of the table of figures."""

    name: str
    """Of its files; those of a study begin with the study's name."""
    place: Literal["answer", "study", "confirmation", "final", "claims", "provenance"]
    """Where on the page."""
    describe: Callable[..., Figure | None]
    """Takes the report, and of a figure of a study its section; None: there is nothing to see yet."""
    dashboard: str = ""
    """Its id there; empty where the dashboard has such a figure itself, or no room."""
    picture: str = ""
    """The name of its PNG at the trial of the final stage; empty: it has none."""
    is_of_metric: bool = False
    """Whether there is one for every metric that is shown; its names hold `{metric}`."""

    def of(self, metric: Metric, *, dashboard_has_it: bool) -> Entry:
        """Return the line of one metric."""
        name, dashboard, picture = (
            text.replace("{metric}", metric.slug) for text in (self.name, self.dashboard, self.picture)
        )
        if dashboard_has_it:
            dashboard = ""
        describe = partial(self.describe, metric=metric)
        return Entry(name, self.place, describe, dashboard, picture)


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
    for entry in entries(report):
        if entry.place != "study":
            if (figure := entry.describe(report)) is not None:
                yield Placed(entry, figure)
            continue
        for section in report.sections:
            if (figure := entry.describe(report, section)) is not None:
                yield Placed(entry, figure, section.name)


def entries(report: ReportData) -> Iterator[Entry]:
    """Yield the lines of the table as they are for a plan's metrics."""
    for entry in FIGURES:
        if not entry.is_of_metric:
            yield entry
            continue
        for metric in shown_metrics(report):
            # of the objective on validation, the dashboard has curves of its own
            is_known = metric == report.objective and entry.place == "study"
            yield entry.of(metric, dashboard_has_it=is_known)


def shown_metrics(report: ReportData) -> list[Metric]:
    """Return the metrics that have curves: all of the recipe's, the objective first."""
    return sorted(report.metrics, key=lambda metric: metric != report.objective)


# --- the answer ------------------------------------------------------------------------------------------


def waterfall(report: ReportData) -> Figure | None:
    """Describe what each study gained on validation, down to the test set."""
    objective, bars = report.objective, list[Bar]()
    for section in report.chain:
        decision = section.decision
        if decision is None or decision.value is None:
            continue
        after = objective.scale * decision.value
        if decision.control is None:
            bars.append(Bar(section.label, after, after, objective.with_unit(decision.value)))
        elif not decision.adopted:
            bars.append(Bar(section.label, after, after, "kept", colour=GREY))
        else:
            bars.append(_gain(objective, section.label, objective.scale * decision.control.value, after))
    if not bars:
        return None
    caption = f"{objective.title} on validation, carried from study to study"
    if report.final is not None:
        value = report.final["fresh_value"]
        fresh = bars[-1].end if value is None else objective.scale * value
        test, deviation = report.final["test"][objective.name], report.final["std"][objective.name]
        if value is not None:
            bars.append(_gain(objective, "fresh seeds", bars[-1].end, fresh, SKY))
        bars.append(
            Bar(
                "test set",
                objective.scale * test,
                fresh,
                objective.with_unit(test, deviation or None),
                colour=SKY,
                deviation=objective.scale * (deviation or 0.0),
            )
        )
        if report.confirmation and report.confirmation.taken_back:
            caption += "; then what fresh seeds did not confirm was taken back"
        caption += "; then " + ("at fresh seeds and " if value is not None else "")
        caption += "on the test set (whisker: one standard deviation)"
    if not objective.is_maximized:
        caption += ". Less is better"
    ends = [bar.end + sign * bar.deviation for bar in bars for sign in (-1, 1)]
    # one point of a share; of another metric a hundredth of what it is
    least = 1.0 if objective.is_share else max(map(abs, ends)) / 100 or 1.0
    spread = max(max(ends) - min(ends), least)
    limits = min(ends) - 0.1 * spread, max(ends) + 0.32 * spread
    return Figure("What each study gained", f"{caption}.", Bars(bars, objective.axis, limits, is_chain=True))


def _gain(metric: Metric, name: str, before: float, after: float, colour: Colour | None = None) -> Bar:
    better = metric.gain(after, before) > 0
    label = metric.gap((after - before) / metric.scale)
    return Bar(name, after, before, label, colour=colour or (GREEN if better else RED))


# --- a study ---------------------------------------------------------------------------------------------


def curves(report: ReportData, section: Section, metric: Metric) -> Figure | None:
    """Describe a metric on validation over the epochs of every run of a study."""
    points = [point for point in section.points if point.row.history]
    if max((len(point.row.history) for point in points), default=0) < 2:
        return None  # of one epoch there is no curve
    few = len(points) <= MAX_SERIES
    other, counterparts = _counterparts(section, report.sections) if few else ("", [])
    lines = _series(section, points, counterparts, metric) if few else _crowd(section, points, metric)
    some = f" ({MAX_LINES} of {len(points):,} runs, evenly by rank)" if len(points) > MAX_LINES else ""
    dashed = f" Dashed: the same with {other}." if counterparts else ""
    return Figure(
        f"{metric.title} per epoch",
        f"Validation {metric.label} of every run of {section.name}{some}.{_seeds_text(points)}{dashed}",
        Curves(
            [Panel(lines)],
            axis=f"validation {metric.axis}",
            legend=", ".join(section.spec.search).replace("_", " ") if few else "",
            names="trial",
        ),
    )


def _series(
    section: Section, points: Sequence[Point], counterparts: Sequence[Point], metric: Metric
) -> list[Line]:
    """Return each run in its own colour, the control or the counterparts dashed."""
    best = section.ranked[0] if section.ranked else None
    lines = []
    for i, point in enumerate(points):
        params = point.row.params
        # the legend's title says which parameters these are
        values = ", ".join(show_value(params[axis]) for axis in section.spec.search if axis in params)
        label = f"{values} (control)" if values and point is section.control else values or "control"
        lines.append(_run(point, metric, series(i), label=label, is_best=point is best))
        for other in counterparts:
            if all(other.config.get(axis) == value for axis, value in params.items()):
                lines.append(_run(other, metric, series(i), name=other.name, is_dashed=True, has_marks=False))
    control = section.control
    if control and control not in points and not counterparts:
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
    others.sort(key=lambda point: (point.has_result, -section.objective.score(point.value or 0.0)))
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
    return _over_seeds(
        point.seeds_by_epoch(metric.name),
        metric.scale,
        colour,
        name=name,
        text=f"trial {name}: {point.text}",
        **{"weight": "strong" if is_best else "normal", **settings},
    )


def _over_seeds(epochs: Sequence[Sequence[float]], scale: float, colour: Colour, **settings: Any) -> Line:
    """Return the mean over seeds of every epoch, in a band from the lowest to the highest of several."""
    scaled = [[scale * value for value in seeds] for seeds in epochs]
    lowest, highest = ([edge(seeds, default=math.nan) for seeds in scaled] for edge in (min, max))
    is_faint, has_several = settings.get("weight") == "faint", any(len(seeds) > 1 for seeds in scaled)
    return Line(
        [mean(seeds) if seeds else None for seeds in scaled],
        colour,
        band=(lowest, highest) if has_several and not is_faint else None,
        **settings,
    )


def _seeds_text(points: Sequence[Point]) -> str:
    """Return how several seeds are drawn, as a sentence; nothing where there is one."""
    if all(len(point.seeds) < 2 for point in points):
        return ""
    return " Lines are means over seeds, bands from the lowest to the highest seed."


def evenly(things: Sequence[T], most: int) -> list[T]:
    """Select so many at most, evenly by their place, the first and the last among them.

    Args:
        things: in order.
        most: two or more.
    """
    if len(things) <= most:
        return list(things)
    return [things[round(i * (len(things) - 1) / (most - 1))] for i in range(most)]


def _counterparts(section: Section, sections: Sequence[Section]) -> tuple[str, list[Point]]:
    """Return, for a study that fixed one thing on or off, the runs of the same axes with it the other way.

    Returns:
        What is other, in words, and the runs.
    """
    fixed = [(name, value) for name, value in section.spec.fixed.items() if isinstance(value, bool)]
    if len(fixed) != 1:
        return "", []
    name, value = fixed[0]
    axes = section.spec.search.keys()
    same = [s for s in sections if s.spec.search.keys() == axes and s is not section]
    found = [p for s in same for p in s.points if p.row.history and p.config.get(name) is (not value)]
    return f"{_words(name)} {show_value(not value)}", found


# --- a grid ----------------------------------------------------------------------------------------------


def heat_map(_report: ReportData, section: Section) -> Figure | None:
    """Describe the objective at every point of a grid: some of its axes down, the others across."""
    sides = _sides(list(_varied(section)))
    if not section.spec.is_grid or not all(sides) or not section.ranked:
        return None
    found = {
        tuple(tuple(point.config[name] for name in side) for side in sides): point
        for point in section.ranked[::-1]
    }
    rows, columns = (_in_order(section, side, [key[i] for key in found]) for i, side in enumerate(sides))
    if len(rows) > MAX_ROWS or len(columns) > MAX_COLUMNS:
        return None
    values = [
        [found[row, column].value if (row, column) in found else None for column in columns] for row in rows
    ]
    objective, best = section.objective, section.ranked[0]
    down, across = (in_words([_words(name) for name in side]) for side in sides)
    return Figure(
        "Every point of the grid",
        f"{objective.title}{' in %' if objective.is_share else ''} on validation by {down} (down) and "
        f"{across} (across), brighter is better; the best is {objective.with_unit(best.value)}."
        f"{_pruned_text(section)}",
        _matrix(objective, sides, rows, columns, values),
    )


def _sides(axes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which axes lie along which side of a matrix; nothing where they are too few or too many.

    Axes of one kind, by the last word of their names, lie along one side; else the first half of them does.
    """
    kinds: dict[str, list[str]] = {}
    for axis in axes:
        kinds.setdefault(_kind(axis), []).append(axis)
    if not 2 <= len(axes) <= 4:
        return [], []
    if len(kinds) == 2:
        first, second = kinds.values()
        return first, second
    return list(axes[: len(axes) // 2]), list(axes[len(axes) // 2 :])


def main_effects(_report: ReportData, section: Section) -> Figure | None:
    """Describe the mean of the objective at each value of every axis of a grid."""
    axes = _varied(section)
    if not section.spec.is_grid or len(axes) < 2 or len(section.ranked) < MIN_GRID_POINTS:
        return None
    objective = section.objective
    effects = [
        Effect(
            _words(name),
            [show_value(value) for value in values],
            [objective.scale * _mean(section, {name: value}) for value in values],
        )
        for name, values in axes.items()
        if len(values) <= MAX_LEVELS
    ]
    largest = sorted(effects, key=lambda effect: -effect.extent)[:MAX_EFFECTS]
    if not largest:
        return None
    shown = [effect for effect in effects if effect in largest]
    some = f" The {len(shown)} of {len(axes)} with the largest effects." if len(shown) < len(axes) else ""
    return Figure(
        "Effect of each parameter",
        f"Mean {objective.label} on validation of all points with a value, whatever the others are; "
        f"dashed: the mean of all.{some}{_pruned_text(section)}",
        Effects(shown, objective.axis, objective.scale * _mean(section, {})),
    )


def joint_effects(_report: ReportData, section: Section) -> Figure | None:
    """Describe the mean of the objective by the two axes of a grid that together explain most."""
    varied, points = _varied(section), section.ranked
    axes = {name: values for name, values in varied.items() if len(values) <= MAX_COLUMNS}
    if not section.spec.is_grid or len(varied) < 3 or len(axes) < 2 or len(points) < MIN_GRID_POINTS:
        return None
    scores = np.array([point.value for point in points], dtype=float)
    if scores.max() == scores.min():
        return None

    def explained(pair: tuple[str, str]) -> float:
        return main_effect([canonical_json({n: p.config[n] for n in pair}) for p in points], scores)

    one, other = max(combinations(axes, 2), key=explained)
    if explained((one, other)) <= 0:
        return None
    objective = section.objective
    values = [[_mean(section, {one: a, other: b}) for b in axes[other]] for a in axes[one]]
    return Figure(
        "Two parameters together",
        f"Mean {objective.label}{' in %' if objective.is_share else ''} on validation by {_words(one)} and "
        f"{_words(other)}, whatever the others are; brighter is better. No other two explain more of the "
        f"differences.{_pruned_text(section)}",
        _matrix(
            objective,
            ([one], [other]),
            [(value,) for value in axes[one]],
            [(value,) for value in axes[other]],
            values,
        ),
    )


Key = tuple[ParamValue, ...]


def _varied(section: Section) -> dict[str, list[ParamValue]]:
    """Return the axes of two values or more, each with those that points with a result have, in order."""
    found = {}
    for name, axis in section.spec.search.items():
        if axis.size is None:
            continue
        there = {point.config[name] for point in section.ranked}
        found[name] = [value for value in axis.values() if value in there]
    return {name: values for name, values in found.items() if len(values) > 1}


def _in_order(section: Section, side: Sequence[str], keys: Sequence[Key]) -> list[Key]:
    """Return the different keys, in the order that the study's axes have."""
    orders = [section.spec.search[name].values() for name in side]
    return sorted(
        set(keys), key=lambda key: [order.index(value) for order, value in zip(orders, key, strict=True)]
    )


def _mean(section: Section, values: Mapping[str, ParamValue]) -> float:
    """Return the mean of the objective of all points with these values; NaN where there are none."""
    found = [
        point.value or 0.0
        for point in section.ranked
        if all(point.config[name] == value for name, value in values.items())
    ]
    return float(np.mean(found)) if found else math.nan


def _matrix(
    metric: Metric,
    sides: tuple[Sequence[str], Sequence[str]],
    rows: Sequence[Key],
    columns: Sequence[Key],
    values: Sequence[Sequence[float | None]],
) -> Matrix:
    # axes of one kind follow each other, as the widths of layers do
    down, across = (" → " if len({_kind(name) for name in side}) == 1 else ", " for side in sides)
    scaled = [[math.nan if value is None else metric.scale * value for value in row] for row in values]
    return Matrix(
        [down.join(map(show_value, row)) for row in rows],
        [across.join(map(show_value, column)) for column in columns],
        scaled,
        down.join(map(_words, sides[0])),
        across.join(map(_words, sides[1])),
        digits=1 if metric.is_share else _digits([value for row in scaled for value in row]),
        unit=" %" if metric.is_share else "",
        is_less_better=not metric.is_maximized,
    )


def _digits(values: Sequence[float]) -> int:
    """Return how many decimals show three digits of the largest of some numbers."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if largest else 0


def _pruned_text(section: Section) -> str:
    rows = [point.row for point in section.ranked if point.row.state == "pruned"]
    n_short = sum(row.epochs < (row.epochs_asked or 0) for row in rows)  # those for the audit are not
    if not n_short:
        return ""
    return f" {n_short} of the {len(section.ranked)} were pruned: theirs is of fewer epochs."


def _kind(axis: str) -> str:
    return axis.rpartition("_")[2]


def _words(name: str) -> str:
    return name.replace("_", " ")


# --- layers and importance -------------------------------------------------------------------------------


def trade_off(report: ReportData, section: Section) -> Figure | None:
    """Describe the points of a study with two objectives, and its Pareto front."""
    front = [each["trial"] for each in section.status.front]
    if len(front) == 0:
        return None
    first, second = section.objectives
    metrics = {metric.name for metric in report.metrics}
    points = [
        (point, x, y)
        for point in section.points
        if point.row.state == "complete"
        and (x := {**point.row.costs, **point.row.metrics}.get(second.name)) is not None
        and (y := point.row.metrics[first.name]) is not None
    ]
    places = {point.row.trial: place for place, (point, _, _) in enumerate(points)}
    source = section.decision.source if section.decision else None
    pairs = [(second.scale * x, first.scale * y) for _, x, y in points]
    xs = [x for x, _ in pairs]
    return Figure(
        f"{first.title} and {second.label}",
        f"Every point of {section.name} that trained to its end; on the line those that no other is better "
        "than by one objective and level with by the other"
        f"{', in the ring the one that is carried on' if source else ''}.",
        TradeOff(
            pairs,
            [f"trial {point.row.trial}: {params_text(point.row.params)}" for point, _, _ in points],
            sorted((places[trial] for trial in front if trial in places), key=lambda place: pairs[place]),
            places.get(source.trial) if source and source.study == section.name else None,
            second.axis,
            first.axis,
            has_log_x=second.name not in metrics and min(xs) > 0 and max(xs) > MIN_DECADE * min(xs),
        ),
    )


def layers(_report: ReportData, section: Section, key: str, title: str) -> Figure | None:
    """Describe what reaches each layer, in a study of learning rates.

    Of a run that died, or else that of the highest rate, beside the best.
    """
    if "learning_rate" not in section.spec.search or len(section.ranked) < 2:
        return None
    best, *rest = section.ranked
    other = max(rest, key=lambda point: (point.n_dying, float(point.config["learning_rate"])))
    is_share = key == "dead_share"
    panels = []
    for point, word in ((other, "died" if other.n_dying else "other"), (best, "best")):
        seeds = [[seed.get("layers", {}) for seed in epoch] for epoch in point.row.history]
        lines = []
        for i, layer in enumerate(seeds[0][0]):
            found = [[each.get(layer, {}).get(key) for each in epoch] for epoch in seeds]
            values = [[value for value in epoch if value is not None] for epoch in found]
            if any(values):
                lines.append(_over_seeds(values, 100 if is_share else 1, series(i), label=layer))
        panels.append(Panel(lines, f"{word}: learning rate {point.config['learning_rate']:.3g}"))
    if not any(panel.lines for panel in panels):
        return None
    n_seeds = len(other.seeds)
    died = "a run that died" if n_seeds == 1 else f"a point of which {other.n_dying} of {n_seeds} seeds died"
    which = died if other.n_dying else "the run of the highest other rate"
    return Figure(
        title,
        f"{title} per layer over training, of {which} ({other.name}) and the best ({best.name})"
        f"{'' if is_share else '; logarithmic'}.{_seeds_text([other, best])}",
        Curves(
            panels,
            axis="share of dead units, %" if is_share else "norm of the gradient",
            limits=(-4, 104) if is_share else None,
            zero=None if is_share else NO_GRADIENT,
        ),
    )


def importance(_report: ReportData, section: Section) -> Figure | None:
    """Describe how much each searched parameter matters for the objective."""
    points = [point for point in section.ranked if point.row.state == "complete" and point.row.params]
    scores = np.array([point.value for point in points], dtype=float)
    least = MIN_GRID_POINTS if section.spec.is_grid else MIN_SAMPLED_POINTS
    if len(section.spec.search) < 2 or len(points) < least or scores.max() == scores.min():
        return None
    label, n_points = section.objective.label, f"{len(points):,} complete points of {section.name}"
    if section.spec.is_grid:
        shares = {
            name: 100 * main_effect([point.row.params[name] for point in points], scores)
            for name in section.spec.search
        }
        axis = "share of the variance explained, %"
        caption = (
            f"How much of the variance of {label} between {n_points} each parameter explains by itself; the "
            "rest is how they act together, and noise."
        )
    else:
        shares = {name: 100 * share for name, share in _ped_anova(section, points).items()}
        axis = "share of the importance, %"
        caption = (
            f"How much each parameter has to do with whether one of {n_points} is among the best tenth by "
            f"{label} (PED-ANOVA)."
        )
    if not any(shares.values()):
        return None
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    bars = [Bar(_words(name), share, label=f"{share:.0f} %") for name, share in ranked]
    return Figure(
        "Importance of the parameters", caption, Bars(bars, axis, (0, min(112, 1.15 * bars[0].end + 5)))
    )


def _ped_anova(section: Section, points: Sequence[Point]) -> dict[str, float]:
    """Return Optuna's PED-ANOVA importances, which add up to 1; nothing where it can tell nothing."""
    import optuna  # most plans are grids and have no use for it here

    study = optuna.create_study(direction=section.objective.direction)
    space = distributions(section.spec)
    study.add_trials(
        optuna.trial.create_trial(params=dict(point.row.params), distributions=space, value=point.value)
        for point in points
    )
    return optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
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


# --- verdicts --------------------------------------------------------------------------------------------

_VERDICT_COLOURS = {Verdict.BETTER: GREEN, Verdict.WORSE: RED, Verdict.EQUIVALENT: BLUE}
_BAND_TEXT = "Within the grey band it does not matter; a line that crosses 0 may be either way."


def confirmed(report: ReportData) -> Figure | None:
    """Describe what fresh seeds say of each decision."""
    estimates = [
        _estimate(
            report.objective,
            f"{each.study}: {params_text(each.change)}",
            (each.difference, each.interval),
            each.verdict,
            report.delta,
            f"; {'kept' if each.kept else 'taken back'}",
        )
        for each in (report.confirmation.decisions if report.confirmation else ())
        if each.difference is not None and each.interval is not None
    ]
    return _forest(
        report,
        "What fresh seeds say of each decision",
        f"The chosen configuration against the same without the decision, with 95 % intervals. {_BAND_TEXT}",
        estimates,
    )


def claimed(report: ReportData) -> Figure | None:
    """Describe the differences that claims are judged by."""
    score = report.objective.score
    estimates = [
        _estimate(
            report.objective,
            f"{number}. {found.what}",
            (score(comparison.difference), (score(comparison.interval[0]), score(comparison.interval[1]))),
            comparison.verdict,
            found.delta,
        )
        for number, result in enumerate(report.claims.results if report.claims else (), start=1)
        for found in result.contrasts
        for comparison in [found.comparison]
        if found.contrast.state is None and comparison.interval is not None
    ]
    return _forest(
        report,
        "What the claims are judged by",
        f"A line a contrast, after the number of its claim, with 95 % intervals. {_BAND_TEXT}",
        estimates,
    )


def _estimate(
    metric: Metric,
    row: str,
    found: tuple[float, tuple[float, float]],
    verdict: Verdict | None,
    delta: float,
    more: str = "",
) -> Estimate:
    """Return a line of a forest plot.

    Args:
        metric: the differences are of.
        row: what is compared.
        found: the difference, and between what it lies.
        verdict: on it.
        delta: a smaller one does not matter.
        more: what is to be said after the verdict.
    """
    value, ends = found
    low, high = sorted(ends)
    colour = ORANGE if verdict is None else _VERDICT_COLOURS.get(verdict, ORANGE)
    scale, text = metric.scale, f"{SAID[verdict]}{more}"
    return Estimate(row, scale * value, scale * low, scale * high, text, colour, scale * delta)


def _forest(report: ReportData, title: str, caption: str, estimates: Sequence[Estimate]) -> Figure | None:
    if not estimates:
        return None
    metric = report.objective
    unit = ", points" if metric.is_share else ""
    way = "above" if metric.is_maximized else "below"
    return Figure(title, caption, Forest(estimates, f"difference in {metric.label}{unit}; {way} 0 is better"))


# --- the final stage -------------------------------------------------------------------------------------


def test_curves(report: ReportData, metric: Metric) -> Figure | None:
    """Describe a metric on the test set per epoch, beside that on validation."""
    point = report.final_point
    if report.final is None or point is None or len(report.test_epochs) < 2:
        return None
    test = [[seed[metric.name] for seed in epoch] for epoch in report.test_epochs]
    lines = [_over_seeds(test, metric.scale, BLUE, label="test", weight="strong")]
    said = "Dotted: the epoch that was settled before."
    if report.options.final_data != "train+validation":  # there the other one is of what was trained on
        said = "Beside that on validation; dotted: the epoch that validation chose."
        valid = point.seeds_by_epoch(metric.name)
        lines.append(_over_seeds(valid, metric.scale, ORANGE, label="validation", is_dashed=True))
    return Figure(
        f"{metric.title} on the test set",
        f"{said}{_seeds_text([point])}",
        Curves([Panel(lines)], axis=metric.axis, marked=report.final["selected_epoch"]),
    )


def per_class(report: ReportData) -> Figure | None:
    """Describe test F1 per class, the best first."""
    if report.final is None or "per_class" not in report.final:
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
            reference=sum(scores.values()) / len(scores),
        ),
    )


def confusion(report: ReportData) -> Figure | None:
    """Describe the confusion matrix in percent of the true class."""
    if report.final is None or "confusion_matrix" not in report.final:
        return None
    counts = np.array(report.final["confusion_matrix"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    names = list(report.final["per_class"])
    return Figure(
        "Confusion matrix",
        f"Of the test {report.examples} of each class (a row), the share in % that was taken for each class "
        "(a column).",
        Matrix(names, names, shares.tolist(), "true class", "predicted class", digits=0, unit=" %"),
    )


def predictions(report: ReportData) -> Figure | None:
    """Describe the numbers that were predicted on the test set against the true ones."""
    pairs = [
        (float(true), float(predicted))
        for true, predicted in (report.final or {}).get("predictions", ())
        if true is not None and predicted is not None and math.isfinite(true) and math.isfinite(predicted)
    ]
    if not pairs:
        return None
    return Figure(
        "Predicted against true",
        f"{len(pairs):,} numbers of the test set, predicted by the network of one seed: on the dashed line "
        "they would be exact.",
        Scatter(pairs, "true", "predicted"),
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
        f"Each bar is a trial; pale ones were lost, released, discarded or failed.{more}",
        Bars(bars, f"{unit} since the first trial", (0, max(last / seconds, 1e-9)), is_wide=True),
    )


# --- a trial ---------------------------------------------------------------------------------------------


def trial_curves(report: ReportData, point: Point) -> Figure:
    """Describe the metrics of a run per epoch, a line a seed: the picture that its trial carries."""
    panels = [
        Panel(
            [
                Line(
                    [metric.scale * epoch[seed]["metrics"][metric.name] for epoch in point.row.history],
                    series(seed),
                )
                for seed in range(len(point.seeds))
            ],
            f"validation {metric.axis}",
        )
        for metric in report.metrics[:MAX_PANELS]
    ]
    caption = "Validation metrics per epoch, a line a seed."
    return Figure(point.name, caption, Curves(panels, has_one_scale=False))


FIGURES: Sequence[Entry] = (
    Entry("waterfall", "answer", waterfall, "hpo-waterfall"),
    Entry("{metric}", "study", curves, "hpo-{metric}", is_of_metric=True),
    Entry("heat-map", "study", heat_map, "hpo-heat-map"),
    Entry("main-effects", "study", main_effects, "hpo-main-effects"),
    Entry("joint-effects", "study", joint_effects, "hpo-joint-effects"),
    Entry("trade-off", "study", trade_off, "hpo-trade-off"),
    Entry(
        "gradients-weights",
        "study",
        partial(layers, key="weight_gradient", title="Gradients of the weights"),
        "hpo-gradients",
    ),
    Entry("gradients-biases", "study", partial(layers, key="bias_gradient", title="Gradients of the biases")),
    Entry("dead-units", "study", partial(layers, key="dead_share", title="Dead units"), "hpo-dead-units"),
    Entry("importance", "study", importance),
    Entry("confirmation", "confirmation", confirmed, "hpo-confirmation"),
    Entry("claims", "claims", claimed, "hpo-claims"),
    Entry(
        "final-{metric}", "final", test_curves, "hpo-test-{metric}", "test-{metric}.png", is_of_metric=True
    ),
    Entry("per-class", "final", per_class, "hpo-per-class", "f1-per-class.png"),
    Entry("confusion-matrix", "final", confusion, "hpo-confusion", "confusion-matrix.png"),
    Entry("predictions", "final", predictions, "hpo-predictions", "predictions.png"),
    Entry("time-line", "provenance", time_line, "hpo-time-line"),
)
