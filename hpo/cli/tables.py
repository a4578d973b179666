"""Records as tables that a person likes to read."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hpo._text import (
    age_text,
    bytes_text,
    cost_text,
    duration,
    params_text,
    percent,
    point_text,
    printable,
    show_value,
)
from hpo.cli.advice import command, completed
from hpo.cli.grid import Grid, Kind, sparkline
from hpo.cli.output import waiting
from hpo.errors import MAX_NAMES

if TYPE_CHECKING:
    from hpo.execution.doctor import Check, RecipeCheck
    from hpo.execution.forecast import Line
    from hpo.execution.housekeeping import Holdings
    from hpo.monitor.comparison import PairComparison
    from hpo.monitor.plans import PlanLine
    from hpo.monitor.results import ImportedRow, TrialDetail, TrialRow
    from hpo.monitor.status import StudyStatus
    from hpo.monitor.watch import Progress
    from hpo.planning.audit import Audit
    from hpo.planning.claims import Judgement
    from hpo.planning.metrics import Metric
    from hpo.planning.plan import Plan
    from hpo.planning.price import Price
    from hpo.training.dry_run import DryRun, LoopRun

T = TypeVar("T")

STATE_STYLES = {
    "done": "green",
    "complete": "green",
    "running": "cyan",
    "waiting": "dim",
    "pending": "dim",
    "idle": "dim",
    "pruned": "yellow",
    "diverged": "yellow",
    "infeasible": "yellow",
    "discarded": "yellow",
    "lost": "yellow",
    "failed": "bold red",
    "error": "bold red",
    "ok": "green",
    "warning": "yellow",
    "wrong": "bold red",
    "skipped": "dim",
    "confirmed": "green",
    "denied": "bold red",
    "open": "dim",
}

STAGES = {
    "final": "final stage",
    "confirm": "confirmation",
    "claims": "cells of claims",
    "price": "points across studies",
}
"""Of what is no study."""

WIDE_COLUMNS = 160


class Screen(Console):
    """A console that shows text as it stands: no markup in it, nothing that the terminal would obey."""

    def __init__(self, **options: Any) -> None:
        # no highlighting: numbers in names are not numbers to look at; in a kernel rich would print elsewhere
        super().__init__(**options, highlight=False, markup=False, emoji=False, force_jupyter=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Make text printable before it wraps: afterwards its own line ends look like those of wrapping."""
        super().print(*(_one_line(each) for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is printed, made printable piece by piece; line ends and rich's own control codes stay.

        Cells have their width by then, so tables make free text printable themselves, and lose none of it.
        """
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                lines = segment.text.split("\n")
                yield segment._replace(text="\n".join(printable(line) for line in lines))


def _one_line(thing: Any) -> Any:
    if isinstance(thing, str):
        return printable(thing)
    if isinstance(thing, Text) and not thing.spans:
        return Text(printable(thing.plain), thing.style)
    return thing


def console() -> Screen:
    """Return standard output; a pipe has no width of its own, so a table is as wide there as it likes."""
    is_wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Screen(width=WIDE_COLUMNS if is_wide else None)


def show_status(records: Sequence[StudyStatus], objective: Metric, screen: Screen | None = None) -> None:
    """Print one line a study."""
    grid = Grid(
        ("§", Kind.NAME),
        ("study", Kind.NAME),
        ("state", Kind.WORD),
        ("points", Kind.TEXT),
        (f"best {objective.head}", Kind.NUMBER),
        ("decision", Kind.SENTENCE),
    )
    for record in records:
        badly = ", ".join(f"{count} {word}" for word, count in record.ended_badly.items())
        ended = f"{record.n_ended}/{record.n_points}"
        grid.add(
            record.section,
            record.name,
            Text(record.shown_state, STATE_STYLES[record.shown_state]),
            f"{ended} ({badly})" if badly else ended,
            objective.text(record.best["value"] if record.best else None),
            record.decision,
        )
    screen = screen or console()
    screen.print(grid)
    for record in records:
        if record.front:
            screen.print(f"{record.name}: Pareto front {_front_text(record.front, objective)}")


def _front_text(front: Sequence[Mapping[str, Any]], objective: Metric) -> str:
    """Return the trials of a front, each with its values."""
    from hpo.planning.metrics import Metric

    metrics = [Metric(name, objective.direction) for name in front[0] if name != "trial"]
    texts = [
        f"{each['trial']} ({', '.join(metric.amount(each[metric.name]) for metric in metrics)})"
        for each in front[:MAX_NAMES]
    ]
    more = f" and {len(front) - MAX_NAMES} more" if len(front) > MAX_NAMES else ""
    names = " and ".join(metric.label for metric in metrics)
    plural = "trial" if len(front) == 1 else "trials"
    return f"of {names}: {plural} {', '.join(texts)}{more}"


def show_plans(lines: Sequence[PlanLine], place: str) -> None:
    """Print one line a plan.

    Args:
        lines: of the plans.
        place: the folder that they were found in, or a database.
    """
    from hpo.monitor.plans import best_texts

    grid = Grid(
        ("plan", Kind.NAME),
        ("state", Kind.WORD),
        ("studies", Kind.NUMBER),
        ("best", Kind.NUMBER),
        ("test", Kind.NUMBER),
        ("last work", Kind.WORD),
        ("size", Kind.NUMBER),
        ("folder", Kind.SENTENCE),
    )
    for line, best in zip(lines, best_texts(lines), strict=True):
        folder = "" if line.folder is None or "://" in place else os.path.relpath(line.folder, place)
        grid.add(
            line.name,
            Text(line.state, STATE_STYLES[line.state]),
            f"{line.decided}/{line.studies}",
            best,
            line.objective.with_unit(line.test),
            age_text(line.last_work),
            bytes_text(line.n_bytes),
            "" if folder in (line.name, ".") else folder,
        )
    console().print(grid)


def show_holdings(holdings: Holdings) -> None:
    """Print what there is of a plan, and how much."""
    plan, screen = holdings.plan, console()
    trials = "1 trial" if holdings.n_trials == 1 else f"{holdings.n_trials:,} trials"
    n_studies = len(holdings.studies)
    studies = "1 study" if n_studies == 1 else f"{n_studies} studies"
    screen.print(f"{plan.name}, in {plan.storage.name}: {studies}, {trials}", soft_wrap=True)
    grid = Grid(("what", Kind.WORD), ("size", Kind.NUMBER), ("where", Kind.TEXT))
    sizes = holdings.n_bytes
    rest = "" if holdings.database else "rows of a database that stays"
    grid.add("database", bytes_text(sizes["database"]) if holdings.database else "", rest)
    for kind in ("checkpoints", "outputs"):
        files = holdings.files.get(kind, ())
        count = len(files) + (len(holdings.checkpoints) if kind == "checkpoints" else 0)
        if count:
            grid.add(kind, bytes_text(sizes[kind]), _told_files(kind, holdings))
    screen.print(grid)


def _told_files(kind: str, holdings: Holdings) -> str:
    files = holdings.files.get(kind, ())
    names = sorted({file.relative_to(holdings.out).parts[0] for file in files})
    told = [f"{holdings.out}: {', '.join(names)}"] if names else []
    if kind == "checkpoints" and holdings.checkpoints:
        told.append(f"folders of checkpoints: {len(holdings.checkpoints)}")
    return "; ".join(told)


def show_comparison(found: PairComparison) -> None:
    """Print what differs between two trained configurations, what each reached, and the verdict."""
    from hpo.monitor.results import deviation, mean

    first, second = found.sides
    grid = Grid(("", Kind.NAME), (first.name, Kind.NUMBER), (second.name, Kind.NUMBER))
    for name, values in found.differing.items():
        grid.add(name, *("–" if value is None else show_value(value) for value in values))
    by_seed = [list(side.values.values()) for side in found.sides]
    reached = [found.metric.text(mean(each), deviation(each)) for each in by_seed]
    grid.add(Text(f"{found.part} {found.metric.head}", "bold"), *(Text(each, "bold") for each in reached))
    grid.add("seeds", *(str(len(side.values)) for side in found.sides))
    screen = console()
    screen.print(grid)
    if not found.differing:
        screen.print("the two do not differ in what was recorded")
    screen.print(Text(found.text, "bold"))


def show_claims(found: Judgement) -> None:
    """Print every claim with its verdict and evidence, and what it takes to train what is missing."""
    screen = console()
    if found.off_topic or not found.results:
        none = "the plan has no claims; write claims.toml beside its study files, and give --studies DIR"
        screen.print(found.off_topic or none)
        return
    grid = Grid(
        ("", Kind.NUMBER),
        ("verdict", Kind.WORD),
        ("claim", Kind.TEXT),
        ("seeds missing", Kind.NUMBER),
        ("evidence", Kind.SENTENCE),
    )
    for number, each in enumerate(found.results, start=1):
        trials = ", ".join(trial.name for trial in each.trials)
        missing = found.price([each]).seeds
        grid.add(
            str(number),
            Text(each.verdict, STATE_STYLES[each.verdict]),
            each.claim.text,
            str(missing or ""),
            f"{each.text} Trials: {trials}." if trials else each.text,
        )
    screen.print(grid)
    screen.print(Text(found.noise.text(found.metric), "dim"))
    price, at_power = (found.price(found.results, at_power=each) for each in (False, True))
    if price.seeds:
        screen.print(f"`hpo run --claims` trains what is missing. For the next look: {price.text}.")
    if at_power.seeds > price.seeds:
        screen.print(
            f"To show a difference as small as a claim's delta in four of five cases: {at_power.text}."
        )


def show_study(
    plan: Plan,
    name: str,
    rows: Sequence[TrialRow],
    audit: Audit | None,
    screen: Screen | None = None,
    *,
    with_costs: bool = False,
) -> None:
    """Print the points of a study, what was decided, and what is to be known about single runs.

    Args:
        plan: that it belongs to.
        name: of the study.
        rows: its points.
        audit: of its pruning.
        screen: where to; None: standard output.
        with_costs: whether to show all that points cost; else what constraints name.
    """
    from hpo.monitor.origins import start_text
    from hpo.monitor.results import all_costs, confirmed_in_words, imported, in_effect, pareto_front
    from hpo.monitor.watch import TITLES
    from hpo.planning.audit import in_words
    from hpo.planning.edges import advice, edges
    from hpo.planning.plan import CONFIRM, FINAL
    from hpo.planning.revision import extended_as
    from hpo.storage.queue import Reason

    spec = plan.specs.get(name)
    screen = screen or console()
    is_confirmation = plan.confirms and name == CONFIRM
    title = f"{spec.section} {spec.title}".strip() if spec else TITLES[name]
    screen.print(Text(title or name, "bold"))
    record = plan.record(name)
    inherited, decision = record.inherited, record.decision
    if inherited:
        source = inherited.source
        origin = f"{source.study}/{source.trial}" if source else f"published, {inherited.study}"
        if spec and spec.start:
            origin = start_text(spec.start)
        told = in_effect(plan, inherited.params, [source.study] if source else [])
        screen.print(Text(f"from {origin}: {params_text(told)}", "dim"))
    if spec and spec.fixed:
        screen.print(Text(f"fixed in this study: {params_text(spec.fixed)}", "dim"))
    axes = list(spec.search) if spec else _differing(rows)
    costs = all_costs(rows) if with_costs else (spec.costs if spec else [])
    front = pareto_front(plan, name, record, plan.storage.outlines.of(plan.storage.study_id(name)))
    screen.print(_points_grid(plan, axes, rows, screen.width, costs, [each["trial"] for each in front]))
    for line in _imported_texts(plan, imported(plan, name, rows)):
        screen.print(line)
    control = decision.control if decision else None
    # a point that is the control says so once, with the control
    mark = f"{Reason.REUSED}: {control.source.name} " if control else "-"
    same = [row for row in rows if row.reason.startswith(mark)]
    findings: dict[str, list[str]] = {}
    for row in rows:
        if row.reason and row not in same:
            findings.setdefault(row.reason, []).append(str(row.trial))
    for row in rows:
        for text in dict.fromkeys(finding.text for finding in row.findings):
            if text != row.reason:
                findings.setdefault(text, []).append(str(row.trial))
    for text, trials in findings.items():
        plural = "trial" if len(trials) == 1 else "trials"
        screen.print(Text(f"{plural} {', '.join(trials)}: {text}", "yellow"))
    if decision and decision.race:
        for finish in decision.race.finishes:
            plural = "trial" if len(finish.trials) == 1 else "trials"
            words = decision.race.words_of(finish, plan.objective)
            screen.print(Text(f"{plural} {', '.join(map(str, finish.trials))}: {words}", "dim"))
    tracebacks = {row.reason: row for row in reversed(rows) if row.traceback}
    for row in reversed(tracebacks.values()):  # of equal reasons the first
        _print_traceback(screen, row)
    for row in rows:
        for note in (*row.earlier, *row.checkpoint_notes):
            screen.print(Text(note, "dim"))
    if name == FINAL and any(row.state == "complete" for row in rows):
        screen.print(
            completed("these metrics are of the validation part; `hpo final` has those of the test set")
        )
    if control:
        value = f"{plan.objective.label} {plan.objective.with_unit(control.value)}"
        here = "".join(f"; trial {row.trial} has its result" for row in same)
        screen.print(Text(f"control: {control.source.name}, the inherited configuration, {value}{here}"))
    if decision:
        screen.print(Text(f"decision: {decision.text}", "bold"))
    if found := edges(plan.specs[name], decision, plan.schema) if spec else []:
        texts, further = ", ".join(edge.text for edge in found), ""
        if later := extended_as(plan, name):
            further = f"; {later} tries values beyond"
        elif command_ := advice(name, found):
            further = f"; {completed(f'`{command_}`')} tries values beyond"
        screen.print(f"the winner is on the edge of the search: {texts}{further}")
    for each in reversed(record.superseded):
        screen.print(Text(f"before: {each.text}", "dim"))
    if audit:
        screen.print(in_words(audit, plan.objective))
    if name in (said := confirmed_in_words(plan)):
        screen.print(Text(f"on fresh seeds: {said[name]}", "bold"))
    if is_confirmation and record.confirmation is not None:
        _print_decisions(screen, plan)


def _imported_texts(plan: Plan, found: Sequence[ImportedRow]) -> Iterator[Text]:
    """Yield what is to be said of the known points of a study."""
    if not found:
        return
    best = found[0]
    n_points = "1 point" if len(found) == 1 else f"{len(found):,} points"
    yield Text(
        f"imported: {n_points} that the sampler learns from; none of them can win as it is. Best: "
        f"{plan.objective.label} {plan.objective.with_unit(best.value)} at {params_text(best.params)} "
        f"({best.origin})"
    )
    for each in found:
        if each.trial is not None:
            value = plan.objective.with_unit(each.value)
            yield Text(f"trial {each.trial}: imported with {value} ({each.origin}), trained here", "dim")


def _differing(rows: Sequence[TrialRow]) -> list[str]:
    """Return the parameters in which rows differ."""
    seen: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.params.items():
            seen.setdefault(name, set()).add(value)
    return [name for name, values in seen.items() if len(values) > 1]


def _points_grid(
    plan: Plan,
    axes: Sequence[str],
    rows: Sequence[TrialRow],
    width: int,
    costs: Sequence[str],
    front: Sequence[int],
) -> Grid:
    """Return a line a point, a column an axis; where these do not fit, one column or a line below for all."""
    objective = plan.objective
    races = any(row.replicates for row in rows)
    complete = [row for row in rows if row.state == "complete"]
    most = max((len(row.seeds) for row in complete if races), default=0)  # who has fewer has lost to them
    values = {row.trial: row.metrics[objective.name] for row in complete if len(row.seeds) >= most}
    best = objective.best_of({trial: value for trial, value in values.items() if value is not None})
    metrics = [(head, Kind.NUMBER) for head in (*(metric.head for metric in plan.metrics), *costs)]
    last = [("best epoch", Kind.NUMBER), ("epochs", Kind.NUMBER), ("state", Kind.WORD)]
    last = [*([("seeds", Kind.NUMBER), ("to best", Kind.NUMBER)] if races else []), *last]
    last = [*([("front", Kind.WORD)] if front else []), *last]
    leader = next((row for row in complete if row.trial == best), None)
    if won := [row for row in complete if row.stop == "won"]:  # by the seeds that all had, if it was closed
        (leader,), best = won, won[0].trial
        values[best] = leader.metrics[objective.name]
    wide = Grid(("trial", Kind.NUMBER), *[(axis, Kind.NUMBER) for axis in axes], *metrics, *last)
    narrow = Grid(("trial", Kind.NUMBER), ("point", Kind.TEXT), *metrics, *last)
    below = Grid(("trial", Kind.NUMBER), *metrics, *last, ("point", Kind.SENTENCE))
    for row in rows:
        shown = row.active_params
        points = [Text(show_value(shown[axis]) if axis in shown else "–") for axis in axes]
        if axes and not row.params:
            points = [Text(row.point, "italic"), *[Text("")] * (len(axes) - 1)]
        cells: list[str | Text] = [
            *[metric.text(row.metrics[metric.name]) for metric in plan.metrics],
            *[cost_text(row.costs.get(cost)) for cost in costs],
            *(["●" if row.trial in front else ""] if front else []),
            *([str(len(row.seeds)), _gap(row, leader, objective)] if races else []),
            str(row.best_epoch or "–"),
            f"{row.epochs}/{row.epochs_asked or '–'}",
            Text(row.shown_state, STATE_STYLES[row.shown_state]),
        ]
        style = "bold" if best is not None and values.get(row.trial) == values[best] else ""
        wide.add(str(row.trial), *points, *cells, style=style)
        point = point_text(shown, row.point)
        narrow.add(str(row.trial), point, *cells, style=style)
        below.add(str(row.trial), *cells, point, style=style)
    # arms of a confirmation differ in their names alone
    is_told_by_axes = axes or len({row.point for row in rows}) == 1
    fitting = (grid for grid in ([wide] if is_told_by_axes else []) + [narrow, below] if grid.fits(width))
    return next(fitting, narrow)


def _gap(row: TrialRow, leader: TrialRow | None, objective: Metric) -> str:
    """Return how far a point is from the leader at the seeds that both have; other seeds compare nothing."""
    if leader is None or row is leader or row.state != "complete":
        return ""
    ours, theirs = (
        {seed["seed"]: seed["metrics"][objective.name] for seed in each.history[(each.best_epoch or 1) - 1]}
        for each in (row, leader)
    )
    shared = ours.keys() & theirs.keys()
    return objective.gap(fmean(ours[s] - theirs[s] for s in shared)) if shared else ""


def show_trial(plan: Plan, found: TrialDetail) -> None:
    """Print one trial, whole."""
    screen, row, objective = console(), found.row, plan.objective
    value = objective.with_unit(row.metrics[objective.name])
    reached = f", {objective.label} {value} in epoch {row.best_epoch}" if row.best_epoch else ""
    state = Text(row.shown_state, STATE_STYLES.get(row.shown_state, ""))
    screen.print(Text.assemble((f"{found.study}/{row.trial} ", "bold"), state, (reached, "bold")))
    seeds = ", ".join(map(str, found.seeds))
    of_asked = f" of {row.epochs_asked}" if row.epochs_asked else ""
    asked = f"seed{'s' if len(found.seeds) > 1 else ''} {seeds}; epochs: {row.epochs}{of_asked}"
    screen.print(Text(f"{point_text(row.active_params, row.point)}; {asked}"))
    if row.costs:
        costs = ", ".join(f"{name} {cost_text(value)}" for name, value in row.costs.items())
        screen.print(Text(f"costs: {costs}", "dim"))
    for text in dict.fromkeys(
        [row.reason, *(finding.text for finding in row.findings), *row.checkpoint_notes]
    ):
        if text:
            screen.print(Text(text, "yellow"))
    if row.history:
        screen.print(_curves(plan, row, screen.width))
    if len(found.seeds) > 1 and row.best_epoch:
        screen.print(_seeds(plan, row, row.best_epoch))
    grid = Grid(
        *[(head, Kind.NUMBER) for head in ("trial", "epochs")],
        ("state", Kind.WORD),
        ("host", Kind.NAME),
        *[(head, Kind.NUMBER) for head in ("process", "began", "took")],
        ("reason", Kind.SENTENCE),
    )
    for each in found.attempts:
        grid.add(
            str(each.trial),
            str(each.epochs),
            Text(each.shown_state, STATE_STYLES.get(each.shown_state, "")),
            each.host,
            str(each.pid or ""),
            each.began[:19].replace("T", " "),
            "" if each.seconds is None else duration(each.seconds),
            each.reason,
        )
    screen.print(grid)
    machine = [found.machine[key] for key in ("processor", "device", "precision") if key in found.machine]
    if machine:
        screen.print(Text(f"{', '.join(machine)}, threads {found.machine['threads']}", "dim"))
    if found.config:
        grid = Grid(("parameter", Kind.NAME), ("value", Kind.TEXT), ("from", Kind.TEXT))
        for name, param in found.config.items():
            idle = "means nothing here" if name in row.inactive else ""
            grid.add(name, show_value(param), idle or found.origins[name].name)
        screen.print(grid)
    _print_traceback(screen, row)


def _curves(plan: Plan, row: TrialRow, width: int) -> Grid:
    """Return a line a metric: its means over seeds, epoch by epoch."""
    head = f"epochs 1 to {row.epochs}"
    numbers = [(head, Kind.NUMBER) for head in ("first", "best", "in epoch", "last")]
    grid = Grid(("metric", Kind.NAME), (head, Kind.WORD), *numbers)
    for metric in plan.metrics:
        curve = [fmean(seed["metrics"][metric.name] for seed in epoch) for epoch in row.history]
        best = metric.best_of({n: value for n, value in enumerate(curve, start=1) if math.isfinite(value)})
        shown = [metric.text(curve[0]), metric.text(curve[best - 1]) if best else "–", str(best or "–")]
        grid.add(metric.head, sparkline(curve, max(8, width - 50)), *shown, metric.text(curve[-1]))
    return grid


def _seeds(plan: Plan, row: TrialRow, epoch: int) -> Grid:
    """Return a line a seed: its metrics at the epoch whose mean is the best."""
    grid = Grid(("seed", Kind.NUMBER), *[(metric.head, Kind.NUMBER) for metric in plan.metrics])
    for seed in row.history[epoch - 1]:
        grid.add(str(seed["seed"]), *[metric.text(seed["metrics"][metric.name]) for metric in plan.metrics])
    return grid


def _print_traceback(screen: Screen, row: TrialRow) -> None:
    if row.traceback:
        screen.print(Text(f"traceback of trial {row.trial}:", "dim"))
        for line in row.traceback.rstrip().splitlines():
            screen.print(Text(f"  {line}", "dim"), soft_wrap=True)


def show_price(found: Price, metric: Metric) -> None:
    """Print what going study by study has missed at most, and what that rests on."""
    from hpo.planning.price import bound_in_words, evidence_in_words

    screen = console()
    screen.print(Text(bound_in_words(found, metric), "bold"))
    screen.print(evidence_in_words(found, metric))


def show_confirmation(plan: Plan) -> None:
    """Print what fresh seeds say of each decision, and the configuration that is left."""
    from hpo.monitor.results import confirmation, final_trial, in_effect
    from hpo.planning.plan import CONFIRM, FINAL

    screen, found = console(), confirmation(plan)
    _print_decisions(screen, plan)
    configuration = params_text(in_effect(plan, found.inherited.params, (CONFIRM, FINAL)))
    screen.print(Text(f"configuration: {configuration}", "bold" if found.taken_back else ""))
    if final_trial(plan) is None:
        screen.print(completed("the test set is locked; `hpo final` trains this configuration and opens it"))


def _print_decisions(screen: Screen, plan: Plan) -> None:
    """Print a line a decision of the confirmation, once it has ended, and what is left of them."""
    from hpo.monitor.results import confirmation, confirmed_in_words
    from hpo.planning.confirmation import change_text, outcome_in_words

    found, words = confirmation(plan), confirmed_in_words(plan)
    grid = Grid(("study", Kind.NAME), ("change", Kind.TEXT), ("on fresh seeds", Kind.SENTENCE))
    for each in found.decisions:
        grid.add(each.study, change_text(each), words[each.study])
    if found.decisions:
        screen.print(grid)
    outcome = outcome_in_words(found)
    screen.print(Text(f"{outcome[0].upper()}{outcome[1:]}.", "bold"))


def show_best(record: Mapping[str, Any], plan: Plan, screen: Screen | None = None) -> None:
    """Print the best configuration and the decisions that led to it."""
    from hpo.monitor.results import in_effect, shrinkage_text, uncertainty_text
    from hpo.planning.decisions import TrialRef
    from hpo.planning.plan import CONFIRM, FINAL

    screen, objective = screen or console(), plan.objective
    if record["source"] is None:
        where, trained = "fresh seeds of the confirmation", [*([CONFIRM] if plan.confirms else []), FINAL]
    else:
        source = TrialRef(**record["source"])
        where, trained = source.name, [source.study]
    why = "" if record["tested"] else ", with too few seeds to test it against noise"
    if not record["decided"]:
        why = f", so far: {record['study']} has not decided"
    value = objective.with_unit(record["value"], record["deviation"])
    said = f"{objective.label} {value} on validation ({where}{why})"
    if record["value"] is None:
        said = "what the confirmation left of the decisions; nobody has trained all of it together yet"
    screen.print(Text(said, "bold"))
    if record["test"]:
        answer = objective.with_unit(record["test"][objective.name])
        off = uncertainty_text(record["final"], objective, plan.identity.examples)
        screen.print(f"on the test set {objective.label} {answer}{off and f': {off}'}")
        if said := shrinkage_text(record["final"], objective):
            screen.print(f"on validation {said}")
        screen.print(completed("`hpo final` has more"))
    grid = Grid(("parameter", Kind.NAME), ("value", Kind.TEXT))
    for name, param in in_effect(plan, record["params"], trained).items():
        grid.add(name, show_value(param))
    screen.print(grid)
    for study, text in record["decisions"].items():
        screen.print(Text.assemble((printable(f"{study}: "), "dim"), printable(text)))


def show_final(record: Mapping[str, Any], plan: Plan, screen: Screen | None = None) -> None:
    """Print the answer of the final stage of a plan: by epoch, by class, and in short where it is seen."""
    screen, objective = screen or console(), plan.objective
    metrics = [*[metric for metric in plan.metrics if metric != objective], objective]
    grid = Grid(("epoch", Kind.NUMBER), *[(f"test {metric.head}", Kind.NUMBER) for metric in metrics])
    for epoch in record["per_epoch"]:
        chosen = epoch["epoch"] == record["selected_epoch"]
        cells = [metric.text(epoch[metric.name]) for metric in metrics]
        grid.add(f"{'→ ' if chosen else ''}{epoch['epoch']}", *cells, style="bold" if chosen else "")
    screen.print(grid)
    if "per_class" in record:
        grid = Grid(("class", Kind.NAME), ("F1 %", Kind.NUMBER))
        for name, scores in record["per_class"].items():
            grid.add(name, percent(scores["f1"]))
        screen.print(grid)
    show_answer(record, plan, screen)


def show_answer(record: Mapping[str, Any], plan: Plan, screen: Screen | None = None) -> None:
    """Print the answer of the final stage of a plan, in a few lines."""
    from hpo.monitor.results import in_effect, shrinkage_text, trained_text, uncertainty_text
    from hpo.planning.plan import FINAL

    screen, objective = screen or console(), plan.objective
    test, deviation, n_seeds = record["test"], record["std"], len(record["seeds"])
    others = [metric for metric in plan.metrics if metric != objective]
    answers = [
        f"test {objective.label} {objective.with_unit(test[objective.name], deviation[objective.name])}"
    ]
    answers += [f"{metric.label} {metric.with_unit(test[metric.name])}" for metric in others]
    screen.print(Text(", ".join(answers), "bold green"))
    seeds = "one fresh seed" if n_seeds == 1 else f"mean over {n_seeds} fresh seeds"
    screen.print(f"{seeds}, {trained_text(record, plan.identity.examples)}; data {record['data']}")
    if said := uncertainty_text(record, objective, plan.identity.examples):
        screen.print(f"{objective.label} is {said}")
    if said := shrinkage_text(record, objective):
        screen.print(f"on validation {said}")
    screen.print(Text(f"configuration: {params_text(in_effect(plan, record['config'], [FINAL]))}", "dim"))


def describe(plan: Plan) -> str:
    """Return one line that says what is being run on what."""
    identity, data = plan.identity, plan.options.data
    inputs = f"{identity.n_train:,} + {identity.n_valid:,} {identity.inputs_text}, {identity.targets_text}"
    how = f"{identity.precision} on {identity.device_text}, threads a worker: {identity.threads}"
    last = {
        "limited": "",
        "all": "; the final stage on all training data",
        "train+validation": "; the final stage on the validation data as well",
    }[plan.options.final_data]
    return f"{data}: {inputs}; {how}{last}; {plan.storage.name}"


def show_outcome(plan: Plan, out: Path) -> None:
    """Print every study, the answer of the final stage where it has ended, and what to do next.

    Args:
        plan: that has ended.
        out: its folder.
    """
    from hpo.monitor.results import final_trial
    from hpo.monitor.status import status
    from hpo.planning.plan import CONFIRM, FINAL, MODEL, WRONG_IMAGES

    screen, final = console(), final_trial(plan)
    # the answer stands below, where it stays in sight
    show_status([each for each in status(plan) if final is None or each.name != FINAL], plan.objective)
    screen.print()
    if plan.confirms and plan.record(CONFIRM).confirmation is not None:
        _print_decisions(screen, plan)
        screen.print()
    if final is not None:
        record = final.user_attrs["final"]
        show_answer(record, plan)
        model, worst = out / MODEL, out / WRONG_IMAGES
        if model.exists():
            screen.print(f"network: {model}", soft_wrap=True)
            if worst.exists():
                screen.print(f"the images it is most wrong about: {worst}", soft_wrap=True)
        elif record["model"]:
            host = final.user_attrs["owner"]["host"]
            screen.print(f"{MODEL} is on {host}, in the --out of the worker that trained the final stage")
    decided = [name for name in plan.specs if plan.decision(name)]
    more = [command("show", decided[-1])] if decided else []
    more += [*([command("final")] if final is not None else []), command("report")]
    for line in more:
        screen.print(f"more: {line}", soft_wrap=True)


def stopped_text(progress: Progress) -> str:
    """Return what is done and what is open of a run that was stopped, in words."""
    studies = [study.status for study in progress.studies if not study.is_stage]
    n_decided = sum(each.state in ("done", "failed") for each in studies)
    counted = studies or [study.status for study in progress.studies]  # cells of claims are asked for alone
    n_ended, n_points = sum(each.n_ended for each in counted), sum(each.n_points for each in counted)
    open_ = [study.status.name for study in progress.studies if not study.is_over]
    of_studies = f"{n_decided} of {len(studies)} studies, " if studies else ""
    return (
        f"stopped; nothing is lost. Done: {of_studies}{n_ended} of {n_points} points; "
        f"open: {', '.join(open_) or 'nothing'}"
    )


def _reused(line: Line) -> str:
    """Return how many points are taken over, and of how many only some seeds."""
    if line.reused is None:
        return ""
    return f"{line.reused}, {line.reused_in_part} in part" if line.reused_in_part else str(line.reused)


def show_forecast(lines: Sequence[Line], budget: float | None = None) -> None:
    """Print what a run would train, and what of it a budget affords."""
    from hpo.planning.verdicts import LOOKS

    has_budget = ["afforded"] if any(line.afforded is not None for line in lines) else []
    has_reuse = ["taken over"] if any(line.reused is not None for line in lines) else []
    costs = list(dict.fromkeys(name for line in lines for name in line.costs))
    heads = ("points", *has_reuse, "seeds", "epochs", "time", *has_budget, *costs)
    grid = Grid(("§", Kind.NAME), ("study", Kind.NAME), *[(head, Kind.NUMBER) for head in heads])
    for line in lines:
        grid.add(
            line.section,
            line.study,
            str(line.points),
            *(_reused(line) for _ in has_reuse),
            _from_to([line.least_seeds or line.seeds, line.seeds], str),
            _from_to([_least_epochs(line), line.epochs], "{:,}".format),
            _times([line]),
            *(f"{100 * (line.afforded or 0):.0f} %" for _ in has_budget),
            *(_from_to(line.costs[name], cost_text) if name in line.costs else "" for name in costs),
        )
    epochs = [sum(map(_least_epochs, lines)), sum(line.epochs for line in lines)]
    together = [
        "together",
        *("" for _ in ("points", *has_reuse, "seeds")),
        _from_to(epochs, "{:,}".format),
        _times(lines),
        *("" for _ in (*has_budget, *costs)),
    ]
    grid.add("", *together, style="bold")
    console().print(grid)
    if has_budget:
        console().print("afforded: what the budget pays for, as long as nothing is pruned")
    elif budget is not None:
        console().print("what the budget affords cannot be told: a loop of one's own is not timed")
    if short := [line.study for line in lines if _affords_no_point(line)]:
        console().print(f"too little for a single point to its end: {', '.join(short)}", style="yellow")
    if any(line.least_seeds for line in lines):
        console().print("least and most: further seeds are for points that can still win")
    for line in lines:
        if line.is_at_most and line.epochs and line.least_seeds is None:
            least = line.epochs * LOOKS[0] // LOOKS[-1]
            console().print(
                f"{line.study}: at most; {least:,} epochs where each of {line.points - 1} decisions is clear "
                f"after {LOOKS[0]} seeds, less where fewer studies adopt a change"
            )


def _affords_no_point(line: Line) -> bool:
    n_trained = line.points - (line.reused or 0)
    return line.afforded is not None and line.epochs > 0 and line.afforded * n_trained < 1


def _least_epochs(line: Line) -> int:
    return line.epochs if line.least_epochs is None else line.least_epochs


def _times(lines: Sequence[Line]) -> str:
    """Return the time that lines take together, from the least to the most; a dash where nobody knows."""
    times = [line.seconds for line in lines if line.seconds is not None]
    if len(times) < len(lines):
        return "–"
    shares = [_least_epochs(line) / line.epochs if line.epochs else 1.0 for line in lines]
    return _from_to(
        [sum(share * each for share, each in zip(shares, times, strict=True)), sum(times)], duration
    )


def _from_to(ends: Sequence[T], text: Callable[[T], str]) -> str:
    """Return a range in words; where its ends read alike, one of them."""
    return "–".join(dict.fromkeys(map(text, ends)))


def show_checks(checks: Iterable[Check]) -> list[Check]:
    """Print a line a check, as soon as it is made; a terminal's lines break at words, below their column."""
    made: list[Check] = []
    screen, left = console(), iter(checks)
    while True:
        with waiting("trying"):
            check = next(left, None)
        if check is None:
            return made
        made.append(check)
        state, name = f"{check.state:{len('skipped ')}}", f"{check.name:{len('checkpoints  ')}}"
        margin = " " * len(state + name)
        if screen.width < len(margin) + 20:
            margin, name = "  ", f"{name}\n  "
        text = Text(printable(check.text))
        # elsewhere it stays whole: it may be copied into a message to somebody
        lines = text.wrap(screen, max(1, screen.width - len(margin))) if screen.is_terminal else [text]
        for line in lines:
            line.rstrip()
        head, below = lines[0], "".join(f"\n{margin}{line.plain}" for line in lines[1:])
        screen.print(Text.assemble((state, STATE_STYLES[check.state]), name, head, below), soft_wrap=True)


def show_recipe(check: RecipeCheck) -> None:
    """Print what a recipe is made of, and what a few steps of it told."""
    screen = console()
    on = f"on {check.data}, {check.precision} on {check.device}"
    screen.print(Text(f"{check.recipe}: works {on}", "bold green"))
    grid = Grid(("parameter", Kind.NAME), ("type", Kind.WORD), ("default", Kind.TEXT), ("domain", Kind.TEXT))
    for name, parameter in check.schema.parameters.items():
        grid.add(name, parameter.kind, show_value(parameter.default), parameter.domain)
    screen.print(grid)
    for constraint in check.schema.constraints:
        screen.print(f"constraint: {constraint}")
    objective, *others = [f"{name} ({direction})" for name, direction in check.metrics.items()]
    besides = f"; also told: {', '.join(others)}" if others else ""
    screen.print(f"tuned for: {objective}{besides}")
    for line in _told_by(check.found):
        screen.print(line)


def _told_by(found: DryRun | LoopRun) -> Iterable[str]:
    """Yield what a try told, a line each."""
    from hpo.training.dry_run import LoopRun

    if isinstance(found, LoopRun):
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
        yield f"one epoch: {metrics}; {found.seconds:.2g} s"
        if found.resumes is False:
            yield "a trial that is killed resumes after its last epoch, and ends otherwise than undisturbed"
        elif found.keeps_state:
            yield "a trial that is killed resumes after its last epoch"
        else:
            yield "no state to resume from: a trial that is killed begins anew"
        return
    yield f"network: {found.n_parameters:,} weights; a batch's outputs have the shape {found.output_shape}"
    yield f"a step: {found.ms_per_step:.3g} ms with one thread"
    if found.repeats:
        yield "repeatable: the same seed trained twice is equal to the bit"
    else:
        yield "not repeatable: the same seed trained twice differs; verify and resumed trials may, too"
    if found.graph_hindrance is None:
        yield "CUDA graphs: steps are recorded on a GPU"
    else:
        yield f"CUDA graphs: steps are not recorded on a GPU: {found.graph_hindrance}"
