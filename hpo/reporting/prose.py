"""What a report says in sentences: the answer, what to be warned of, and what each study asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpo._text import duration, params_text, percent, printable, show_value, spread
from hpo.planning.decisions import MIN_SEEDS_TO_TEST
from hpo.planning.manifest import Options
from hpo.reporting.contrasts import ALPHA
from hpo.reporting.data import Origin, ReportData, Section
from hpo.reporting.tables import Cell, Column, Row, Table, data_text
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
            else f"mean and deviation over {_count(n_seeds)} fresh seeds"
        )
        macro_f1 = f"{percent(test['macro_f1'])}{spread(deviation['macro_f1'])} %"
        return Answer(
            f"Test macro F1 {macro_f1}",
            f"The configuration that the studies chose reaches a macro F1 of {macro_f1}, an accuracy of "
            f"{percent(test['accuracy'])} % and a loss of {test['loss']:.3f} on the test set: {seeds}, at "
            f"epoch {final['selected_epoch']}, which validation chose. Data: {data}.",
        )
    decided = [section for section in report.sections if section.decision and section.decision.params]
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
    values = [s.decision.value for s in decided if s.decision and s.decision.value is not None]
    best_so_far = f" The best so far reaches {percent(max(values))} % on validation." if values else ""
    how_many = _count(len(decided)).capitalize() if decided else "None"
    return Answer(
        "No answer yet",
        f"{how_many} of {_count(len(report.sections))} studies "
        f"{'has' if len(decided) < 2 else 'have'} decided.{best_so_far} Data: {data}.",
    )


def warnings(report: ReportData) -> list[str]:
    """Return what a reader should know before believing the answer."""
    found = [*_edges(report), *_rising(report)]
    seeds = report.options.seeds
    if seeds < MIN_SEEDS_TO_TEST:
        each = "a single seed" if seeds == 1 else f"{_count(seeds)} seeds"
        found.append(f"Every point of the search was trained on {each}: no decision is tested against noise.")
    if report.final is not None and len(report.final["seeds"]) == 1:
        found.append("The test result is of a single seed: it has no deviation.")
    for section in report.sections:
        failed = section.status.points["failed"]
        if failed:
            points = "point" if failed == 1 else "points"
            found.append(f"{section.name}: {_count(failed)} {points} failed for good and count for nothing.")
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
    for section in report.chain[-1:]:
        source = section.decision.source if section.decision else None
        if source is None:
            continue
        point = next(
            (p for p in report.points if (p.study, p.row.trial) == (source.study, source.trial)), None
        )
        rising = [text for text in (point.findings if point else ()) if text.startswith("still rising")]
        if point and rising:
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
    trial = f"{control.source.study}/{control.source.trial}"
    return f"{text} The control, trial {trial}, reaches {percent(control.value)} %; {rule}."


def grouped_origins(section: Section) -> list[tuple[Origin, dict[str, ParamValue]]]:
    """Return the values that a study did not search, by where they come from; defaults last."""
    groups: dict[Origin, dict[str, ParamValue]] = {}
    for name, value in section.context.items():
        if name not in section.spec.search and not _is_unused(name, section.context):
            groups.setdefault(section.origins[name], {})[name] = value
    return sorted(groups.items(), key=lambda group: group[0].text == "default")


def _is_unused(name: str, context: Mapping[str, ParamValue]) -> bool:
    return name in ("mixup_first_epoch", "mixup_last_epoch") and context.get("mixup_alpha") == 0


def provenance(report: ReportData, version: str) -> Table:
    """Return what the results depend on, and what they took."""
    options, identity = report.options, report.identity
    points = [point for point in report.trained if not point.is_reused]
    trained = sum(point.row.epochs * len(point.seeds) for point in points)
    pruned = [point for point in points if point.row.state == "pruned"]
    saved = sum((int(p.config.get("epochs", 0)) - p.row.epochs) * len(p.seeds) for p in pruned)
    busy = sum(point.row.seconds for point in points)
    seconds_saved = sum(
        point.row.seconds / point.row.epochs * (int(point.config.get("epochs", 0)) - point.row.epochs)
        for point in pruned
        if point.row.epochs
    )
    wall = max((attempt.end for attempt in report.attempts), default=0.0)
    workers = len({attempt.worker for attempt in report.attempts})
    lost = sum(attempt.state in ("lost", "released", "superseded", "error") for attempt in report.attempts)
    search_seeds = (
        f"{options.seed} to {options.seed + options.seeds - 1}" if options.seeds > 1 else options.seed
    )
    final_seeds = ", ".join(map(str, report.final["seeds"])) if report.final else "not trained yet"
    lines: list[tuple[str, object]] = [
        ("data", data_text(report)),
        ("data fingerprint", identity.fingerprint),
        ("classes", ", ".join(identity.class_names)),
        ("seed of the search" if options.seeds == 1 else "seeds of the search", search_seeds),
        ("seeds of the final stage", final_seeds),
        (
            "precision, device, threads a worker",
            f"{identity.precision}, {identity.device}, {identity.threads}",
        ),
        ("trained on", "; ".join(f"{text} ({_trials(n)})" for text, n in report.machines.items())),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
        ("this page", f"hpo {version}"),
        ("database", report.storage),
        ("command", command(options)),
        ("first trial began", report.began),
        ("last trial ended", report.ended),
        ("time from first to last", duration(wall)),
        ("time of training", f"{duration(busy)} on {_count(workers)} worker{'' if workers == 1 else 's'}"),
        ("epochs trained", f"{trained:,}, those of each seed counted"),
        ("epochs saved by pruning", f"{saved:,} (about {duration(seconds_saved)})"),
        ("attempts lost, released or failed", lost),
    ]
    rows = [Row([Cell(name), Cell(printable(str(value)), value)]) for name, value in lines if value != ""]
    columns = [Column("what", "what", numeric=False), Column("value", "value", numeric=False)]
    return Table("provenance", "What the results depend on, and what they took.", columns, rows)


def command(options: Options) -> str:
    """Return a command that makes such a plan."""
    words = ["hpo run"]
    for name, value in options.model_dump().items():
        if name == "pruning":
            words += [] if value else ["--no-pruning"]
        elif value != Options.model_fields[name].default or name == "data":
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [f"--{name.replace('_', '-')}", shlex.quote(text)]
    return " ".join(words)


def shrinkage(report: ReportData) -> str:
    """Return how search, fresh seeds and test set compare."""
    final = report.final or {}
    search, fresh, test = (
        final.get("search_macro_f1"),
        final.get("fresh_macro_f1"),
        final.get("test", {}).get("macro_f1"),
    )
    if search is None or fresh is None or test is None:
        return ""
    return (
        f"Macro F1 of this configuration: {percent(search)} % on validation in the search, "
        f"{percent(fresh)} % on validation at fresh seeds, {percent(test)} % on the test set. The first step "
        "takes away the luck of the search's own seeds, the second that configuration and epoch were chosen "
        "on the validation images; chance is in both."
    )


def _trials(count: int) -> str:
    return "one trial" if count == 1 else f"{count:,} trials"


def _count(number: int) -> str:
    return SMALL_NUMBERS[number] if number < len(SMALL_NUMBERS) else f"{number:,}"
