"""Records as tables that a person likes to read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hpo._text import duration, params_text, percent, percentage, point_text, printable, show_value

if TYPE_CHECKING:
    from hpo.execution.doctor import Check
    from hpo.execution.forecast import Line
    from hpo.monitor.results import TrialRow
    from hpo.monitor.status import StudyStatus
    from hpo.planning.plan import Plan

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


def show_status(records: Sequence[StudyStatus]) -> None:
    """Print one line a study."""
    table = _table("§", "study", "state", "points", "best F1 %", "decision")
    for record in records:
        ended = f"{record.n_ended}/{record.n_points}"
        extra = [f"{record.points[state]} {state}" for state in ("pruned", "failed") if record.points[state]]
        table.add_row(
            printable(record.section),
            record.name,
            Text(record.shown_state, STATE_STYLES[record.shown_state]),
            f"{ended} ({', '.join(extra)})" if extra else ended,
            percent(record.best["value"] if record.best else None),
            printable(record.decision),
        )
    console().print(table)


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
        screen.print(Text(f"from {origin}: {params_text(inherited.params)}", "dim"))
    if spec and spec.fixed:
        screen.print(Text(f"fixed in this study: {params_text(spec.fixed)}", "dim"))
    screen.print(_points_table(list(spec.search) if spec else [], rows, screen))
    findings: dict[str, list[str]] = {}
    for row in rows:
        for text in dict.fromkeys([row.reason, *(finding.text for finding in row.findings)]):
            if text:
                findings.setdefault(text, []).append(str(row.trial))
    for text, trials in findings.items():
        plural = "trial" if len(trials) == 1 else "trials"
        screen.print(Text(f"{plural} {', '.join(trials)}: {text}", "yellow"))
    for row in rows:
        for note in (*row.earlier, *row.checkpoint_notes):
            screen.print(Text(note, "dim"))
    if spec is None and any(row.state == "complete" for row in rows):
        screen.print("these metrics are of the validation images; hpo final has those of the test set")
    if decision and decision.control:
        control = decision.control
        at = f"{control.source.study}/{control.source.trial}"
        screen.print(Text(f"control: {at}, the inherited configuration, F1 {percent(control.value)} %"))
    if decision:
        screen.print(Text(f"decision: {decision.text}", "bold"))


def _points_table(axes: Sequence[str], rows: Sequence[TrialRow], screen: Screen) -> Table:
    """Return a line a point, a column an axis; where these do not fit, one column with all of them."""
    best = max((row.macro_f1 or 0.0 for row in rows if row.state == "complete"), default=None)
    # headers break where they can, so that a table of four axes fits 80 columns with every number whole
    heads = [axis.replace("_", "_\n") for axis in axes]
    metrics = ("F1\n%", "acc.\n%", "loss", "best\nepoch", "state")
    wide = _table("trial", *heads, *metrics, numeric=heads)
    narrow = _table("trial", "point", *metrics)
    for row in rows:
        values = [Text(show_value(row.params[axis]) if axis in row.params else "–") for axis in axes]
        if axes and not row.params:
            values = [Text(row.point, "italic"), *[Text("")] * (len(axes) - 1)]
        cells = (
            percent(row.macro_f1),
            percent(row.accuracy),
            "–" if row.loss is None else f"{row.loss:.3f}",
            f"{row.best_epoch or '–'}/{row.epochs}",
            Text(row.state, STATE_STYLES[row.state]),
        )
        style = "bold" if row.state == "complete" and row.macro_f1 == best else ""
        wide.add_row(str(row.trial), *values, *cells, style=style)
        narrow.add_row(str(row.trial), point_text(row.params, row.point), *cells, style=style)
    # measured against the screen itself it would never be wider than that
    needed = Measurement.get(screen, screen.options.update(width=10_000), wide).maximum
    return wide if needed <= screen.width else narrow


def show_best(record: Mapping[str, Any]) -> None:
    """Print the best configuration and the decisions that led to it."""
    screen = console()
    tested = "" if record["tested"] else " (too few seeds to test it against noise)"
    screen.print(Text(f"macro F1 {percent(record['value'])} % on validation{tested}", "bold"))
    if record["test"]:
        screen.print(f"macro F1 {percent(record['test']['macro_f1'])} % on the test set: hpo final has more")
    table = _table("parameter", "value")
    for name, value in record["params"].items():
        table.add_row(name, show_value(value))
    screen.print(table)
    for study, text in record["decisions"].items():
        screen.print(Text.assemble((printable(f"{study}: "), "dim"), printable(text)))


def show_final(record: Mapping[str, Any]) -> None:
    """Print the answer of the final stage."""
    screen = console()
    test, deviation, n_seeds = record["test"], record["std"], len(record["seeds"])
    screen.print(
        Text(
            f"test macro F1 {percentage(test['macro_f1'], deviation['macro_f1'])}, "
            f"accuracy {percent(test['accuracy'])} %, loss {test['loss']:.3f}",
            "bold green",
        )
    )
    seeds = "one fresh seed" if n_seeds == 1 else f"mean over {n_seeds} fresh seeds"
    screen.print(
        f"{seeds}, at epoch {record['selected_epoch']}, which validation chose; data {record['data']}"
    )
    if record["shrinkage"] is not None:
        search, fresh = record["search_macro_f1"], record["fresh_macro_f1"]
        screen.print(
            f"validation macro F1: {percent(search)} % in the search, {percent(fresh)} % on fresh seeds "
            f"(shrinkage {round(100 * search, 1) - round(100 * fresh, 1):.1f} points)"
        )
    table = _table("epoch", "test accuracy %", "test loss", "test F1 %")
    for epoch in record["per_epoch"]:
        chosen = epoch["epoch"] == record["selected_epoch"]
        metrics = (percent(epoch["accuracy"]), f"{epoch['loss']:.3f}", percent(epoch["macro_f1"]))
        table.add_row(f"{epoch['epoch']}{' ←' if chosen else ''}", *metrics, style="bold" if chosen else "")
    screen.print(table)
    table = _table("class", "F1 %")
    for name, metrics in record["per_class"].items():
        table.add_row(printable(name), percent(metrics["f1"]))
    screen.print(table)
    screen.print(Text(f"configuration: {params_text(record['config'])}", "dim"))


def describe(plan: Plan) -> str:
    """Return one line that says what is being run on what."""
    identity, data = plan.identity, plan.options.data
    height, width, channels = identity.image_shape
    images = f"{identity.n_train:,} + {identity.n_valid:,} images of {height}×{width}×{channels}"
    classes = f"{len(identity.class_names)} classes"
    how = f"{identity.precision} on {identity.device}, threads a worker: {identity.threads}"
    return f"{data}: {images}, {classes}; {how}; {plan.storage.name}"


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

    show_status(status(plan))
    final = final_trial(plan)
    if final is not None:
        show_final(final.user_attrs["final"])
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
        lines += [f"hpo predict {model} IMAGE…", str(out / WRONG_IMAGES)]
    elif final is not None:
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
            duration(line.seconds),
        )
    total = sum(line.epochs for line in lines), sum(line.seconds for line in lines)
    table.add_section()
    table.add_row("", "together", "", "", f"{total[0]:,}", duration(total[1]), style="bold")
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


def _table(*columns: str, numeric: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    words = {"study", "state", "decision", "parameter", "value", "class", "point", "§"}
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in words and column not in numeric else "right",
            no_wrap=column not in ("decision", "point"),
            overflow="fold",
        )
    return table
