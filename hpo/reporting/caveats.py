"""What a reader should know before believing the answer, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpo._text import show_value
from hpo.monitor.results import uncertainty_text
from hpo.planning.audit import in_words as audit_text
from hpo.planning.audit import together
from hpo.planning.decisions import MIN_SEEDS_TO_TEST
from hpo.planning.edges import advice, edges
from hpo.reporting.data import ReportData
from hpo.reporting.prose import baseline_text, count_text, in_words
from hpo.reporting.test_set import baseline
from hpo.space.parameters import ParamValue

ALPHA = 0.05
"""A p-value below it is taken for more than chance."""
UNEVEN = 3.0
"""So many times as many examples as the rarest class, and the most frequent one is worth a word."""
WIDE = 0.02
"""An interval from one point below to one above: 10,000 examples give that at an accuracy of 50 %."""
FEW_EXAMPLES = 1000
"""So few test examples are worth a word where there is no interval."""
MAX_NAMES = 5


def caveats(report: ReportData) -> list[str]:
    """Return what a reader should know before believing the answer."""
    remarks = dict.fromkeys([*report.remarks, *_without_effect(report)])
    return [
        *_of_the_test_set(report),
        *_of_the_data(report),
        *_of_the_chosen(report),
        *_edges(report),
        *_of_the_search(report),
        *[f"{remark}." for remark in remarks],
    ]


def _of_the_test_set(report: ReportData) -> Iterator[str]:
    final = report.final
    if final is None:
        return
    n_seeds, n_test = len(final["seeds"]), report.n_test or 0
    if n_seeds == 1:
        yield "The test result is of a single seed: it has no deviation."
    elif n_seeds < MIN_SEEDS_TO_TEST:
        yield (
            f"The deviation of the test result is of {count_text(n_seeds)} seeds: by chance it may be a "
            "thirtieth of what many seeds would give, or twice as much."
        )
    never = [name for name, each in final.get("per_class", {}).items() if not each["f1"]]
    if never:
        yield f"Never right on the test set, F1 0: {_some(never)}."
    known = report.confusion
    if known is None or not report.shares:
        if 0 < n_test < FEW_EXAMPLES:
            yield (
                f"The test set has only {n_test:,} {report.examples}: with others of the same kind "
                f"{report.objective.label} may differ."
            )
        return
    found = {each: final.get("uncertainty", {}).get(each.name, {}).get("interval") for each in report.shares}
    intervals = {metric: interval for metric, interval in found.items() if interval}
    (low, high), metric = intervals.get(report.shares[0], (0.0, 0.0)), report.shares[0]
    if high - low >= WIDE:
        yield f"{metric.title} on the test set is {uncertainty_text(final, metric, report.examples)}."
    reached, _ = baseline(known)
    weak = [each.label for each, (low, _) in intervals.items() if low <= reached[each.name]]
    if weak:
        shown = f"By {in_words(weak)} it is not shown to be better than a constant answer."
        yield f"{shown} {baseline_text(report)}"


def _of_the_data(report: ReportData) -> Iterator[str]:
    identity, options = report.identity, report.options
    counts = sorted(zip(identity.class_counts, identity.class_names, strict=False), key=lambda each: each[0])
    if counts and counts[-1][0] >= UNEVEN * counts[0][0]:
        (least, rarest), (most, frequent) = counts[0], counts[-1]
        times = f"{most / least:.1f} times as many as" if least else "and there is none of"
        yield (
            f"The classes are uneven: of {frequent} there are {most:,} training {report.examples}, {times} "
            f"of {rarest} ({least:,}). {baseline_text(report)}".rstrip()
        )
    if options.limit_train or options.limit_valid:
        yield (
            f"The data were cut to {identity.n_train:,} training and {identity.n_valid:,} validation "
            f"{report.examples}"
            + ("." if options.final_data == "limited" else "; the final stage was trained on more.")
        )
    if options.final_data == "train+validation" and report.final:
        yield (
            f"The final stage was trained on the validation {report.examples}, too: what it reached on these "
            "tells nothing."
        )


def _of_the_chosen(report: ReportData) -> Iterator[str]:
    """Yield what was found in the runs of the chosen configuration, in the search and at fresh seeds."""
    is_as_chosen = report.confirmation is None or not report.confirmation.taken_back
    decision = report.chain[-1].decision if is_as_chosen else None
    names: dict[str, list[str]] = {}
    for point in report.trained:
        if point is report.final_point or (decision and decision.source == point.ref):
            for found in point.row.findings:
                is_rising = found.name == "still improving at the last epoch"
                text = f"{found.text}{'; more epochs may be better' if is_rising else ''}."
                names.setdefault(text, []).append(point.name)
    for text, points in names.items():
        yield f"{in_words(points)}, the chosen configuration: {text}"


def _of_the_search(report: ReportData) -> Iterator[str]:
    seeds = report.options.first_seeds
    confirmation = report.confirmation
    if seeds < MIN_SEEDS_TO_TEST and confirmation is None:
        each = "a single seed" if seeds == 1 else f"{count_text(seeds)} seeds"
        yield f"Every point of the search was trained on {each}: no decision is tested against noise."
    n_pruned = sum(section.status.ended_badly.get("pruned", 0) for section in report.sections)
    audits = [section.status.audit for section in report.sections if section.status.audit]
    if n_pruned and not report.options.audit:
        points = "point" if n_pruned == 1 else "points"
        yield (
            f"A pruner stopped {count_text(n_pruned)} {points}: whether that was right is not known, as none "
            "was trained on to see (--audit 0.1)."
        )
    if (audit := together(audits)) and audit.within_delta:
        yield f"Pruning may have stopped good points. {audit_text(audit, report.objective).capitalize()}."
    for section in report.sections:
        failed = section.status.points["failed"]
        if failed:
            points = "point" if failed == 1 else "points"
            yield f"{section.name}: {count_text(failed)} {points} failed for good and count for nothing."
        decision = section.decision
        if section.confirmed:
            continue  # fresh seeds say more than those of the search
        if decision and decision.adopted and decision.winner and decision.control:
            lead = report.objective.gain(decision.winner.value, decision.control.value)
            if report.objective.is_share and 0 < lead < 1 / report.identity.n_valid:
                one = report.examples.removesuffix("s")
                yield f"{section.name}: the winner's lead is less than one validation {one}."
        if decision and decision.adopted and decision.p_value is not None and decision.p_value >= ALPHA:
            yield (
                f"{section.name}: the winner was adopted although seeds alone may explain its lead "
                f"(p = {decision.p_value:.2g})."
            )
    untested = (
        [each.study for each in confirmation.decisions if each.difference is None] if confirmation else []
    )
    if untested:
        yield f"Kept, although fresh seeds could not test it: {_some(untested)}."


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
    back = report.confirmation.taken_back if report.confirmation else []
    for section in report.chain:
        if section.name in back:
            continue
        found = edges(section.spec, section.decision, report.recipe.parameters)
        if found:
            texts = ", ".join(edge.text for edge in found)
            # what a confirmation or the final stage has taken over cannot be extended any more
            is_over = report.final_point or report.confirmation
            command = "" if is_over else advice(section.name, found)
            further = f"; before the next study begins, `{command}` tries values beyond" if command else ""
            if section.extended_as:
                further = f"; {section.extended_as} tries values beyond"
            yield f"{section.name}: the winner is on the edge of the search: {texts}{further}."


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return in_words([*names[:MAX_NAMES], *[f"{more} more"] * (more > 0)])
