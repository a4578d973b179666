"""What a report says in sentences: the answer, what to be warned of, and what each study asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpo._text import params_text, percent, percentage, printable, show_value
from hpo.planning.decisions import MIN_SEEDS_TO_TEST, idle_params
from hpo.reporting.contrasts import ALPHA
from hpo.reporting.data import Origin, ReportData, Section
from hpo.space.axes import Choices, Range
from hpo.space.parameters import ParamValue

SMALL_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Answer:
    """The report in a line, and in a sentence."""

    headline: str
    sentence: str


def answer(report: ReportData) -> Answer:
    """Return what came out, or how far the plan is."""
    final = report.final
    data = data_text(report)
    if final is not None:
        test, deviation, n_seeds = final["test"], final["std"], len(final["seeds"])
        seeds = (
            "the result of one fresh seed"
            if n_seeds == 1
            else f"mean and deviation over {count_text(n_seeds)} fresh seeds"
        )
        macro_f1 = percentage(test["macro_f1"], deviation["macro_f1"])
        return Answer(
            f"Test macro F1 {macro_f1}",
            f"The configuration that the studies chose reaches a macro F1 of {macro_f1}, an accuracy of "
            f"{percent(test['accuracy'])} % and a loss of {test['loss']:.3f} on the test set: {seeds}, at "
            f"epoch {final['selected_epoch']}, which validation chose. Data: {data}.",
        )
    decided = [s.decision for s in report.sections if s.decision and s.decision.params]
    if report.final_inherited is not None and report.final_inherited.value is not None:
        best = percent(report.final_inherited.value)
        ended = report.final_point.row.reason if report.final_point else ""
        state = "Every study has decided; " + (
            f"the final stage has no result: {ended}" if ended else "the test set has not been opened"
        )
        return Answer(
            f"Validation macro F1 {best} %, no test result yet",
            f"{state}. On validation the best configuration reaches a macro F1 of {best} %, on {data}.",
        )
    values = [decision.value for decision in decided if decision.value is not None]
    best_so_far = f" The best so far reaches {percent(max(values))} % on validation." if values else ""
    how_many = count_text(len(decided)).capitalize() if decided else "None"
    return Answer(
        "No answer yet",
        f"{how_many} of {count_text(len(report.sections))} studies "
        f"{'has' if len(decided) < 2 else 'have'} decided.{best_so_far} Data: {data}.",
    )


def data_text(report: ReportData) -> str:
    """Return the data set at hand in words."""
    identity = report.identity
    height, width, channels = identity.image_shape
    source = report.options.data
    known = f"CIFAR-10 ({source})" if report.is_cifar10 and not source.startswith("cifar10") else source
    parts = f"{identity.n_train:,} training and {identity.n_valid:,} validation images"
    if report.final:
        n_test = round(sum(map(sum, report.final["confusion_matrix"])))
        parts = f"{identity.n_train:,} training, {identity.n_valid:,} validation and {n_test:,} test images"
    return printable(
        f"{known}: {parts} of {height}×{width}×{channels} in {len(identity.class_names)} classes"
    )


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
            lead = decision.winner.value - decision.control.value
            if 0 < lead < 1 / report.identity.n_valid:
                found.append(f"{section.name}: the winner's lead is less than one validation image.")
        if decision and decision.adopted and decision.p_value is not None and decision.p_value >= ALPHA:
            found.append(
                f"{section.name}: the winner was adopted although seeds alone may explain its lead "
                f"(p = {decision.p_value:.2g})."
            )
    if report.options.limit_train or report.options.limit_valid:
        identity = report.identity
        found.append(
            f"The data were cut to {identity.n_train:,} training and {identity.n_valid:,} validation images."
        )
    return [*found, *[f"{remark[0].upper()}{remark[1:]}." for remark in report.remarks]]


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
        rising = [text for text in point.findings if text.startswith("still rising")]
        if rising and decision and decision.source == point.ref:
            yield f"{point.name}, the chosen configuration, was {rising[0]}; more epochs may be better."


def question(section: Section) -> str:
    """Return what a study asks, in a sentence."""
    spec = section.spec
    axes = [f"{name.replace('_', ' ')} ({_values(axis)})" for name, axis in spec.search.items()]
    which = " and ".join([", ".join(axes[:-1]), axes[-1]] if len(axes) > 1 else axes)
    with_ = f", with {params_text(spec.fixed)}," if spec.fixed else ""
    return f"Which {which}{with_} gives the highest macro F1 on validation?"


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
    return f"{text} The control, trial {control.source.name}, reaches {percent(control.value)} %; {rule}."


def grouped_origins(section: Section) -> list[tuple[Origin, dict[str, ParamValue]]]:
    """Return the values that a study did not search, by where they come from; defaults last."""
    groups: dict[Origin, dict[str, ParamValue]] = {}
    for name, value in section.context.items():
        if name not in section.spec.search and name not in idle_params(section.context):
            groups.setdefault(section.origins[name], {})[name] = value
    return sorted(groups.items(), key=lambda group: group[0].text == "default")


def shrinkage(report: ReportData) -> str:
    """Return how search, fresh seeds and test set compare."""
    final = report.final
    if final is None or final["search_macro_f1"] is None:
        return ""
    return (
        f"Macro F1 of this configuration: {percent(final['search_macro_f1'])} % on validation in the search, "
        f"{percent(final['fresh_macro_f1'])} % on validation at fresh seeds, "
        f"{percent(final['test']['macro_f1'])} % on the test set. The first step "
        "takes away the luck of the search's own seeds, the second that configuration and epoch were chosen "
        "on the validation images; chance is in both."
    )


def count_text(number: int) -> str:
    """Return a count as a sentence writes it."""
    return SMALL_NUMBERS[number] if number < len(SMALL_NUMBERS) else f"{number:,}"
