"""What a report says in sentences: the answer, what to be warned of, and what each study asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpo._text import params_text, printable, show_value
from hpo.planning.decisions import MIN_SEEDS_TO_TEST
from hpo.reporting.data import Origin, ReportData, Section
from hpo.space.axes import Choices, Range
from hpo.space.parameters import ParamValue

ALPHA = 0.05
"""A p-value below it is taken for more than chance."""
SMALL_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Answer:
    """The report in a line, and in a sentence."""

    headline: str
    sentence: str


def answer(report: ReportData) -> Answer:
    """Return what came out, or how far the plan is."""
    final = report.final
    data, objective = data_text(report), report.objective
    if final is not None:
        test, deviation, n_seeds = final["test"], final["std"], len(final["seeds"])
        seeds = (
            "the result of one fresh seed"
            if n_seeds == 1
            else f"mean and deviation over {count_text(n_seeds)} fresh seeds"
        )
        reached = objective.with_unit(test[objective.name], deviation[objective.name])
        others = [
            f"{metric.label} {metric.with_unit(test[metric.name])}"
            for metric in report.metrics
            if metric != objective
        ]
        metrics = in_words([f"{objective.label} {reached}", *others])
        return Answer(
            f"Test {objective.label} {reached}",
            f"On the test set, the configuration that the studies chose has {metrics}: {seeds}, at "
            f"epoch {final['selected_epoch']}, which validation chose. Data: {data}.",
        )
    decided = [s.decision for s in report.sections if s.decision and s.decision.params]
    if report.final_inherited is not None and report.final_inherited.value is not None:
        best = objective.with_unit(report.final_inherited.value)
        ended = report.final_point.row.reason if report.final_point else ""
        state = "Every study has decided; " + (
            f"the final stage has no result: {ended}" if ended else "the test set has not been opened"
        )
        return Answer(
            f"Validation {objective.label} {best}, no test result yet",
            f"{state}. On validation, the best configuration has {objective.label} {best}. Data: {data}.",
        )
    values = [decision.value for decision in decided if decision.value is not None]
    best = objective.with_unit(max(values, key=objective.score)) if values else ""
    best_so_far = f" The best so far has {objective.label} {best} on validation." if values else ""
    how_many = count_text(len(decided)).capitalize() if decided else "None"
    return Answer(
        "No answer yet",
        f"{how_many} of {count_text(len(report.sections))} studies "
        f"{'has' if len(decided) < 2 else 'have'} decided.{best_so_far} Data: {data}.",
    )


def data_text(report: ReportData) -> str:
    """Return the data set at hand in words."""
    identity = report.identity
    source = report.options.data
    known = f"CIFAR-10 ({source})" if report.is_original_data and not source.startswith("cifar10") else source
    parts = f"{identity.n_train:,} training and {identity.n_valid:,} validation"
    if report.final and "confusion_matrix" in report.final:
        n_test = round(sum(map(sum, report.final["confusion_matrix"])))
        parts = f"{identity.n_train:,} training, {identity.n_valid:,} validation and {n_test:,} test"
    targets = identity.targets_text
    what = f" in {targets}" if identity.class_names else f", each with {targets} to predict"
    return printable(f"{known}: {parts} {identity.inputs_text}{what}")


def warnings(report: ReportData) -> list[str]:
    """Return what a reader should know before believing the answer."""
    found = [*_edges(report), *_rising(report)]
    seeds = report.options.seeds
    if seeds < MIN_SEEDS_TO_TEST:
        each = "a single seed" if seeds == 1 else f"{count_text(seeds)} seeds"
        found.append(f"Every point of the search was trained on {each}: no decision is tested against noise.")
    if report.final is not None and len(report.final["seeds"]) == 1:
        found.append("The test result is of a single seed: it has no deviation.")
    for section in report.sections:
        failed = section.status.points["failed"]
        if failed:
            points = "point" if failed == 1 else "points"
            found.append(
                f"{section.name}: {count_text(failed)} {points} failed for good and count for nothing."
            )
        decision = section.decision
        if decision and decision.adopted and decision.winner and decision.control:
            lead = report.objective.gain(decision.winner.value, decision.control.value)
            if report.objective.is_share and 0 < lead < 1 / report.identity.n_valid:
                one = report.examples.removesuffix("s")
                found.append(f"{section.name}: the winner's lead is less than one validation {one}.")
        if decision and decision.adopted and decision.p_value is not None and decision.p_value >= ALPHA:
            found.append(
                f"{section.name}: the winner was adopted although seeds alone may explain its lead "
                f"(p = {decision.p_value:.2g})."
            )
    if report.options.limit_train or report.options.limit_valid:
        identity = report.identity
        found.append(
            f"The data were cut to {identity.n_train:,} training and {identity.n_valid:,} validation "
            f"{report.examples}."
        )
    remarks = dict.fromkeys([*report.remarks, *_without_effect(report)])
    return [*found, *[f"{remark[0].upper()}{remark[1:]}." for remark in remarks]]


def _without_effect(report: ReportData) -> Iterator[str]:
    """Yield which values of the search meant nothing at any point that has them, as workers noted there."""
    for section in report.sections:
        for name in section.spec.search:
            seen: dict[ParamValue, bool] = {}
            for point in section.points:
                if name in point.row.params and point.config:
                    value = point.row.params[name]
                    seen[value] = seen.get(value, True) and name in point.row.inactive
            idle = [show_value(value) for value, is_idle in seen.items() if is_idle]
            if idle and section.spec.is_grid:
                what = f"{section.name}: {name} {', '.join(idle)}"
                yield f"{what} has no effect with the rest of the configuration"


def _edges(report: ReportData) -> Iterator[str]:
    for section in report.chain:
        decision = section.decision
        if decision is None or not decision.adopted or decision.winner is None:
            continue
        edges = []
        for name, axis in section.spec.search.items():
            value = decision.winner.searched.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            side = _edge(axis, value)
            if side:
                edges.append(f"{name.replace('_', ' ')} {show_value(value)} is the {side} tried")
        if edges:
            yield f"{section.name}: the winner is on the edge of the search: {', '.join(edges)}."


def _edge(axis: Choices | Range, value: float) -> str:
    low, high = (float(bound) for bound in axis.bounds)
    # a range is hardly ever drawn at its very end
    near = 0.0 if isinstance(axis, Choices) or axis.step else 0.02
    if isinstance(axis, Range) and axis.log:
        near_low, near_high = low * (high / low) ** near, high / (high / low) ** near
    else:
        near_low, near_high = low + near * (high - low), high - near * (high - low)
    if value >= near_high:
        return "highest"
    return "lowest" if value <= near_low else ""


def _rising(report: ReportData) -> Iterator[str]:
    decision = report.chain[-1].decision
    for point in report.points:
        rising = [text for text in point.findings if text.startswith("still improving")]
        if rising and decision and decision.source == point.ref:
            yield f"{point.name}, the chosen configuration, was {rising[0]}; more epochs may be better."


def question(section: Section) -> str:
    """Return what a study asks, in a sentence."""
    spec = section.spec
    axes = [f"{name.replace('_', ' ')} ({_values(axis)})" for name, axis in spec.search.items()]
    with_ = f", with {params_text(spec.fixed)}," if spec.fixed else ""
    objective = section.objective
    return f"Which {in_words(axes)}{with_} gives the {objective.best_word} {objective.label} on validation?"


def _values(axis: Choices | Range) -> str:
    if isinstance(axis, Choices):
        return ", ".join(show_value(value) for value in axis.choices)
    how = ", on a log scale" if axis.log else f" in steps of {axis.step:g}" if axis.step else ""
    return f"{axis.low:g} to {axis.high:g}{how}"


def method(section: Section) -> str:
    """Return how a study searched."""
    spec, points = section.spec, section.status.points
    parts = [f"{section.status.n_points} points, sampler {spec.sampler.name}"]
    if spec.constraints:
        parts.append(f"under {' and '.join(map(str, spec.constraints))}")
    options = params_text(spec.pruner.options)
    pruner = f"pruner {spec.pruner.name}{f' ({options})' if options else ''}"
    parts.append(pruner if section.prunes else "pruned nothing (--no-pruning)")
    counts = [f"{count} {state}" for state, count in points.items() if count]
    return f"{'; '.join(parts)}. {', '.join(counts).capitalize()}."


def decision_text(section: Section) -> str:
    """Return what a study decided and on what ground."""
    decision = section.decision
    if decision is None:
        waiting = "Not begun" if section.status.state == "pending" else "Not decided yet"
        return f"{waiting}: {section.status.n_ended} of {section.status.n_points} points have ended."
    text = printable(f"{decision.text[0].upper()}{decision.text[1:]}.")
    control = decision.control
    if control is None:
        return text
    rule = "a winner replaces what was inherited only where it beats it at the same seeds"
    return (
        f"{text} The control, trial {control.source.name}, has {section.objective.label} "
        f"{section.objective.with_unit(control.value)}; {rule}."
    )


def grouped_origins(report: ReportData, section: Section) -> list[tuple[Origin, dict[str, ParamValue]]]:
    """Return the values that a study did not search, by where they come from; defaults last."""
    groups: dict[Origin, dict[str, ParamValue]] = {}
    inactive = [set(point.row.inactive) for point in section.points]
    nowhere = set.intersection(*inactive) if inactive else set()
    for name, value in report.told(section.context).items():
        if name not in section.spec.search and name not in nowhere:
            groups.setdefault(section.origins[name], {})[name] = value
    return sorted(groups.items(), key=lambda group: group[0].text == "default")


def shrinkage(report: ReportData) -> str:
    """Return how search, fresh seeds and test set compare."""
    final = report.final
    if final is None or final["search_value"] is None:
        return ""
    objective = report.objective
    search, fresh, test = (
        objective.with_unit(value)
        for value in (final["search_value"], final["fresh_value"], final["test"][objective.name])
    )
    return (
        f"{objective.title} of this configuration: {search} on validation in the search, {fresh} on "
        f"validation at fresh seeds, {test} on the test set. The first step takes away the luck of the "
        "search's own seeds, the second that configuration and epoch were chosen on the validation "
        f"{report.examples}; chance is in both."
    )


def in_words(things: Sequence[str]) -> str:
    """Return things as a sentence lists them."""
    *some, last = things
    return f"{', '.join(some)} and {last}" if some else last


def count_text(number: int) -> str:
    """Return a count as a sentence writes it."""
    return SMALL_NUMBERS[number] if number < len(SMALL_NUMBERS) else f"{number:,}"
