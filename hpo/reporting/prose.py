"""What a report says in sentences: the answer, what to be warned of, and what each study asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpo._text import params_text, printable, show_value
from hpo.monitor.origins import Origin
from hpo.monitor.results import shrinkage_text, trained_text, uncertainty_text
from hpo.planning.audit import in_words as audit_text
from hpo.planning.confirmation import outcome_in_words
from hpo.reporting.data import ReportData, Section
from hpo.reporting.test_set import baseline
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
            f"On the test set, the configuration that the studies chose{_left(report)} has {metrics}: "
            f"{seeds}, {trained_text(final, report.examples)}. Data: {data}.",
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


def _left(report: ReportData) -> str:
    """Return what a confirmation made of the configuration, after "the configuration that was chosen"."""
    if report.confirmation is None:
        return ""
    back = report.confirmation.taken_back
    return f", without what fresh seeds did not confirm ({in_words(back)})," if back else ""


def confirmation_text(report: ReportData) -> str:
    """Return what a confirmation did, in sentences; empty where there is none or it has not ended."""
    found = report.confirmation
    if found is None:
        return ""
    outcome = outcome_in_words(found)
    also = ""
    if report.options.keep == "equivalent":
        also = ", and so is what is shown to make no difference that matters (5 % for each)"
    splits = ", each with a validation part of its own," if found.has_own_splits else ""
    how = (
        f"On seeds that the search did not use{splits} the chosen configuration was trained beside itself "
        "without each adopted decision. What is shown to be better is kept, at an error rate of 5 % for all "
        f"decisions together, however often the seeds were looked at{also}. The rest is taken back: the "
        "final stage trains what is left."
    )
    return printable(f"{outcome[0].upper()}{outcome[1:]}. {how if found.decisions else ''}".rstrip())


def data_text(report: ReportData) -> str:
    """Return the data set at hand in words."""
    identity = report.identity
    source = report.options.data
    known = f"CIFAR-10 ({source})" if report.repeats_original and not source.startswith("cifar10") else source
    parts = f"{identity.n_train:,} training and {identity.n_valid:,} validation"
    if report.n_test:
        parts = f"{identity.n_train:,} training, {identity.n_valid:,} validation and {report.n_test:,} test"
    targets = identity.targets_text
    what = f" in {targets}" if identity.class_names else f", each with {targets} to predict"
    return printable(f"{known}: {parts} {identity.inputs_text}{what}")


def question(section: Section) -> str:
    """Return what a study asks, in a sentence."""
    spec = section.spec
    axes = [f"{name.replace('_', ' ')} ({_values(axis)})" for name, axis in spec.search.items()]
    with_ = f", with {params_text(spec.fixed)}," if spec.fixed else ""
    objective = section.objective
    if not axes:
        return f"What {objective.label} does a single point{with_.rstrip(',')} reach on validation?"
    return f"Which {in_words(axes)}{with_} gives the {objective.best_word} {objective.label} on validation?"


def _values(axis: Choices | Range) -> str:
    if isinstance(axis, Choices):
        return ", ".join(show_value(value) for value in axis.choices)
    how = ", on a log scale" if axis.log else f" in steps of {axis.step:g}" if axis.step else ""
    return f"{axis.low:g} to {axis.high:g}{how}"


def method(section: Section) -> str:
    """Return how a study searched."""
    spec, status = section.spec, section.status
    parts = [f"{status.n_points} points, sampler {spec.sampler.name}"]
    if spec.constraints:
        parts.append(f"under {' and '.join(map(str, spec.constraints))}")
    options = params_text(spec.pruner.options)
    pruner = f"pruner {spec.pruner.name}{f' ({options})' if options else ''}"
    parts.append(pruner if section.prunes else "pruned nothing (--no-pruning)")
    told = {state: status.points[state] for state in ("waiting", "running", "complete")} | status.ended_badly
    counts = [f"{count} {state}" for state, count in told.items() if count and state != "discarded"]
    audit = status.audit
    audited = f" {audit_text(audit, section.objective).capitalize()}." if audit else ""
    return f"{'; '.join(parts)}. {', '.join(counts).capitalize()}.{audited}"


def decision_text(section: Section) -> str:
    """Return what a study decided and on what ground."""
    decision = section.decision
    before = "".join(printable(f" Before: {each.text}.") for each in reversed(section.superseded))
    if decision is None:
        waiting = "Not begun" if section.status.state == "pending" else "Not decided yet"
        return f"{waiting}: {section.status.n_ended} of {section.status.n_points} points have ended.{before}"
    text = printable(f"{decision.text[0].upper()}{decision.text[1:]}.")
    fresh = printable(f" On fresh seeds {section.confirmed}.") if section.confirmed else ""
    control = decision.control
    if control is None:
        return text + fresh + before
    rule = "a winner replaces what was inherited only where it beats it at the same seeds"
    return (
        f"{text} The control, trial {control.source.name}, has {section.objective.label} "
        f"{section.objective.with_unit(control.value)}; {rule}.{fresh}{before}"
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


def uncertainty(report: ReportData) -> str:
    """Return how far the answer on the test set may be off."""
    if report.final is None:
        return ""
    objective, test = report.objective, report.final["test"]
    said = uncertainty_text(report.final, objective, report.examples)
    return (
        said and f"{objective.title} {objective.with_unit(test[objective.name])} on the test set is {said}."
    )


def shrinkage(report: ReportData) -> str:
    """Return how search, fresh seeds and test set compare."""
    said = shrinkage_text(report.final, report.objective) if report.final else ""
    if not said:
        return ""
    assert report.final is not None
    luck = ""
    if report.final["shrinkage"] > 0:
        luck = " That is the luck of the search's own seeds, by which it was chosen."
    return (
        f"On validation this configuration has {said}.{luck} The test set takes away besides that it was "
        f"chosen on the validation {report.examples}."
    )


def baseline_text(report: ReportData) -> str:
    """Return what a constant answer would reach on the test set; empty where that is not known."""
    if report.confusion is None or not report.shares:
        return ""
    reached, frequent = baseline(report.confusion)
    name = report.identity.class_names[frequent]
    metrics = in_words([f"{each.label} {each.with_unit(reached[each.name])}" for each in report.shares])
    return printable(
        f"Always answering {name}, the most frequent class of the test set, would have {metrics}."
    )


def meanings(report: ReportData) -> str:
    """Return what metrics are that not everybody knows, in sentences."""
    return " ".join(f"{metric.title} is {metric.meaning}." for metric in report.metrics if metric.meaning)


def in_words(things: Sequence[str]) -> str:
    """Return things as a sentence lists them."""
    *some, last = things
    return f"{', '.join(some)} and {last}" if some else last


def count_text(number: int) -> str:
    """Return a count as a sentence writes it."""
    return SMALL_NUMBERS[number] if number < len(SMALL_NUMBERS) else f"{number:,}"
