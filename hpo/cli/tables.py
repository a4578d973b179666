"""Records as tables that a person likes to read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hpo._text import duration, params_text, percent, point_text, printable, show_value

if TYPE_CHECKING:
    from hpo.execution.doctor import Check, RecipeCheck
    from hpo.execution.forecast import Line
    from hpo.monitor.comparison import PairComparison
    from hpo.monitor.results import TrialRow
    from hpo.monitor.status import StudyStatus
    from hpo.planning.metrics import Metric
    from hpo.planning.plan import Plan
    from hpo.training.dry_run import DryRun, LoopRun

STATE_STYLES = {
    "done": "green",
    "complete": "green",
    "running": "cyan",
    "waiting": "dim",
    "pending": "dim",
    "idle": "dim",
    "pruned": "yellow",
    "failed": "bold red",
    "ok": "green",
    "warning": "yellow",
    "wrong": "bold red",
    "skipped": "dim",
}


WIDE_COLUMNS = 160


class Screen(Console):
    """A console that shows text as it stands: no markup in it, nothing that the terminal would obey."""

    def __init__(self, **options: Any) -> None:
        # no highlighting: numbers in names are not numbers to look at
        super().__init__(**options, highlight=False, markup=False, emoji=False)

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


def show_status(records: Sequence[StudyStatus], objective: Metric) -> None:
    """Print one line a study."""
    table = _table("§", "study", "state", "points", f"best {objective.head}", "decision")
    for record in records:
        ended = f"{record.n_ended}/{record.n_points}"
        extra = [f"{record.points[state]} {state}" for state in ("pruned", "failed") if record.points[state]]
        table.add_row(
            printable(record.section),
            record.name,
            Text(record.shown_state, STATE_STYLES[record.shown_state]),
            f"{ended} ({', '.join(extra)})" if extra else ended,
            objective.text(record.best["value"] if record.best else None),
            printable(record.decision),
        )
    console().print(table)


def show_comparison(found: PairComparison) -> None:
    """Print what differs between two trained configurations, what each reached, and the verdict."""
    first, second = found.sides
    table = _table("", printable(first.name), printable(second.name))
    for name, values in found.differing.items():
        table.add_row(name, *("–" if value is None else printable(show_value(value)) for value in values))
    means = [fmean(side.values.values()) for side in found.sides]
    spreads = [stdev(side.values.values()) if len(side.values) > 1 else None for side in found.sides]
    reached = [found.metric.text(*pair) for pair in zip(means, spreads, strict=True)]
    table.add_row(
        Text(f"{found.part} {found.metric.head}", "bold"), *(Text(each, "bold") for each in reached)
    )
    table.add_row("seeds", *(str(len(side.values)) for side in found.sides))
    screen = console()
    screen.print(table)
    if not found.differing:
        screen.print("the two do not differ in what was recorded")
    screen.print(Text(found.text, "bold"))


def show_study(plan: Plan, name: str, rows: Sequence[TrialRow]) -> None:
    """Print the points of a study, what was decided, and what is to be known about single runs."""
    spec = plan.specs.get(name)
    screen = console()
    title = f"{spec.section} {spec.title}".strip() if spec else "final stage"
    screen.print(Text(title or name, "bold"))
    record = plan.record(name)
    inherited, decision = record.inherited, record.decision
    if inherited:
        source = inherited.source
        origin = f"{source.study}/{source.trial}" if source else f"published, {inherited.study}"
        screen.print(Text(f"from {origin}: {params_text(plan.schema.told(inherited.params))}", "dim"))
    if spec and spec.fixed:
        screen.print(Text(f"fixed in this study: {params_text(spec.fixed)}", "dim"))
    screen.print(_points_table(plan, list(spec.search) if spec else [], rows, screen))
    findings: dict[str, list[str]] = {}
    for row in rows:
        for text in dict.fromkeys([row.reason, *(finding.text for finding in row.findings)]):
            if text:
                findings.setdefault(text, []).append(str(row.trial))
    for text, trials in findings.items():
        plural = "trial" if len(trials) == 1 else "trials"
        screen.print(Text(f"{plural} {', '.join(trials)}: {text}", "yellow"))
    tracebacks = {row.reason: row for row in reversed(rows) if row.traceback}
    for row in reversed(tracebacks.values()):  # of equal reasons the first
        screen.print(Text(f"traceback of trial {row.trial}:", "dim"))
        for each in row.traceback.rstrip().splitlines():
            screen.print(Text(f"  {each}", "dim"), soft_wrap=True)
    for row in rows:
        for note in (*row.earlier, *row.checkpoint_notes):
            screen.print(Text(note, "dim"))
    if spec is None and any(row.state == "complete" for row in rows):
        screen.print("these metrics are of the validation part; hpo final has those of the test set")
    if decision and decision.control:
        control = decision.control
        value = f"{plan.objective.label} {plan.objective.with_unit(control.value)}"
        screen.print(Text(f"control: {control.source.name}, the inherited configuration, {value}"))
    if decision:
        screen.print(Text(f"decision: {decision.text}", "bold"))


def _points_table(plan: Plan, axes: Sequence[str], rows: Sequence[TrialRow], screen: Screen) -> Table:
    """Return a line a point, a column an axis; where these do not fit, one column with all of them."""
    objective = plan.objective
    values = {row.trial: row.metrics[objective.name] for row in rows if row.state == "complete"}
    best = objective.best_of({trial: value for trial, value in values.items() if value is not None})
    # headers break where they can, so that a table of four axes fits 80 columns with every number whole
    heads = [axis.replace("_", "_\n") for axis in axes]
    metrics = (*[metric.head.replace(" ", "\n") for metric in plan.metrics], "best\nepoch", "state")
    wide = _table("trial", *heads, *metrics, numeric=heads)
    narrow = _table("trial", "point", *metrics)
    for row in rows:
        shown = {axis: value for axis, value in row.params.items() if axis not in row.inactive}
        points = [Text(show_value(shown[axis]) if axis in shown else "–") for axis in axes]
        if axes and not row.params:
            points = [Text(row.point, "italic"), *[Text("")] * (len(axes) - 1)]
        cells: list[str | Text] = [
            *[metric.text(row.metrics[metric.name]) for metric in plan.metrics],
            f"{row.best_epoch or '–'}/{row.epochs}",
            Text(row.state, STATE_STYLES[row.state]),
        ]
        style = "bold" if best is not None and values.get(row.trial) == values[best] else ""
        wide.add_row(str(row.trial), *points, *cells, style=style)
        narrow.add_row(str(row.trial), point_text(row.params, row.point), *cells, style=style)
    # measured against the screen itself it would never be wider than that
    needed = Measurement.get(screen, screen.options.update(width=10_000), wide).maximum
    return wide if needed <= screen.width else narrow


def show_best(record: Mapping[str, Any], plan: Plan) -> None:
    """Print the best configuration and the decisions that led to it."""
    screen, objective = console(), plan.objective
    tested = "" if record["tested"] else " (too few seeds to test it against noise)"
    screen.print(
        Text(f"{objective.label} {objective.with_unit(record['value'])} on validation{tested}", "bold")
    )
    if record["test"]:
        answer = objective.with_unit(record["test"][objective.name])
        screen.print(f"{objective.label} {answer} on the test set: hpo final has more")
    table = _table("parameter", "value")
    for name, param in plan.schema.told(record["params"]).items():
        table.add_row(name, show_value(param))
    screen.print(table)
    for study, text in record["decisions"].items():
        screen.print(Text.assemble((printable(f"{study}: "), "dim"), printable(text)))


def show_final(record: Mapping[str, Any], plan: Plan) -> None:
    """Print the answer of the final stage of a plan."""
    screen, objective = console(), plan.objective
    test, deviation, n_seeds = record["test"], record["std"], len(record["seeds"])
    others = [metric for metric in plan.metrics if metric != objective]
    answers = [
        f"test {objective.label} {objective.with_unit(test[objective.name], deviation[objective.name])}"
    ]
    answers += [f"{metric.label} {metric.with_unit(test[metric.name])}" for metric in others]
    screen.print(Text(", ".join(answers), "bold green"))
    seeds = "one fresh seed" if n_seeds == 1 else f"mean over {n_seeds} fresh seeds"
    screen.print(
        f"{seeds}, at epoch {record['selected_epoch']}, which validation chose; data {record['data']}"
    )
    if record["shrinkage"] is not None:
        search, fresh = (objective.with_unit(record[key]) for key in ("search_value", "fresh_value"))
        screen.print(
            f"validation {objective.label}: {search} in the search, {fresh} on fresh seeds "
            f"(shrinkage {objective.distance(record['shrinkage'])})"
        )
    metrics = [*others, objective]
    table = _table("epoch", *[f"test {metric.head}" for metric in metrics])
    for epoch in record["per_epoch"]:
        chosen = epoch["epoch"] == record["selected_epoch"]
        cells = [metric.text(epoch[metric.name]) for metric in metrics]
        table.add_row(f"{epoch['epoch']}{' ←' if chosen else ''}", *cells, style="bold" if chosen else "")
    screen.print(table)
    if "per_class" in record:
        table = _table("class", "F1 %")
        for name, scores in record["per_class"].items():
            table.add_row(printable(name), percent(scores["f1"]))
        screen.print(table)
    screen.print(Text(f"configuration: {params_text(plan.schema.told(record['config']))}", "dim"))


def describe(plan: Plan) -> str:
    """Return one line that says what is being run on what."""
    identity, data = plan.identity, plan.options.data
    inputs = f"{identity.n_train:,} + {identity.n_valid:,} {identity.inputs_text}, {identity.targets_text}"
    how = f"{identity.precision} on {identity.device}, threads a worker: {identity.threads}"
    return f"{data}: {inputs}; {how}; {plan.storage.name}"


def show_outcome(plan: Plan, out: Path, storage: str | None) -> None:
    """Print every study, the final stage where it has ended, and what to do next.

    Args:
        plan: that has ended.
        out: its folder.
        storage: the database URL as it was given; None: it is that of the folder.
    """
    from hpo.monitor.results import final_trial
    from hpo.monitor.status import status
    from hpo.planning.plan import MODEL, WRONG_IMAGES
    from hpo.storage.database import sqlite_file

    show_status(status(plan), plan.objective)
    final = final_trial(plan)
    if final is not None:
        show_final(final.user_attrs["final"], plan)
    ended = [name for name in plan.specs if plan.decision(name)]
    where = f"--out {out}"
    if storage is not None:
        # the URL of a server may hold a password, in more than one place
        where += f" --storage {storage if sqlite_file(storage) else '…'}"
    lines = [f"hpo report {where}"]
    if ended:
        lines.insert(0, f"hpo show {ended[-1]} {where}")
    model = out / MODEL
    if model.exists():
        lines += (
            [f"hpo predict {model} IMAGE…"]
            if plan.identity.is_images and plan.identity.class_names
            else [str(model)]
        )
        lines += [str(worst)] if (worst := out / WRONG_IMAGES).exists() else []
    elif final is not None and final.user_attrs["final"]["model"]:
        host = final.user_attrs["owner"]["host"]
        lines.append(f"{MODEL} is on {host}, in the --out of the worker that trained the final stage")
    screen = console()
    screen.print()
    for index, line in enumerate(lines):
        screen.print(f"{'      ' if index else 'more: '}{line}", soft_wrap=True)


def show_forecast(lines: Sequence[Line]) -> None:
    """Print what a run would train."""
    table = _table("§", "study", "points", "seeds", "epochs", "time")
    for line in lines:
        table.add_row(
            printable(line.section),
            line.study,
            str(line.points),
            str(line.seeds),
            f"{line.epochs:,}",
            "–" if line.seconds is None else duration(line.seconds),
        )
    times = [line.seconds for line in lines if line.seconds is not None]
    total = duration(sum(times)) if len(times) == len(lines) else "–"
    table.add_section()
    table.add_row("", "together", "", "", f"{sum(line.epochs for line in lines):,}", total, style="bold")
    console().print(table)


def show_checks(checks: Iterable[Check]) -> list[Check]:
    """Print a line a check, as soon as it is made; a terminal's lines break at words, below their column."""
    screen, made = console(), []
    for check in checks:
        made.append(check)
        state, name = f"{check.state:{len('skipped ')}}", f"{check.name:{len('checkpoints  ')}}"
        margin = " " * len(state + name)
        text = Text(printable(check.text))
        # elsewhere it stays whole: it may be copied into a message to somebody
        lines = text.wrap(screen, max(20, screen.width - len(margin))) if screen.is_terminal else [text]
        for line in lines:
            line.rstrip()
        head, below = lines[0], "".join(f"\n{margin}{line.plain}" for line in lines[1:])
        screen.print(Text.assemble((state, STATE_STYLES[check.state]), name, head, below), soft_wrap=True)
    return made


def show_recipe(check: RecipeCheck) -> None:
    """Print what a recipe is made of, and what a few steps of it told."""
    screen = console()
    on = f"on {check.data}, {check.precision} on {check.device}"
    screen.print(Text(f"{check.recipe}: works {on}", "bold green"))
    table = _table("parameter", "type", "default", "domain")
    for name, parameter in check.schema.parameters.items():
        table.add_row(name, parameter.kind, show_value(parameter.default), parameter.domain)
    screen.print(table)
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
        if found.keeps_state:
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


def _table(*columns: str, numeric: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    words = {
        "type",
        "default",
        "domain",
        "study",
        "state",
        "decision",
        "parameter",
        "value",
        "class",
        "point",
        "§",
    }
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in words and column not in numeric else "right",
            no_wrap=column not in ("decision", "point"),
            overflow="fold",
        )
    return table
