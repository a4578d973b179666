"""What is shown while a plan runs: a line a worker on a terminal, a line an event elsewhere.

Everything comes from the database, so trials of workers on other machines are shown like local ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo import results
from hpo.cli.tables import STATE_STYLES, Screen
from hpo.plan import FINAL, Plan
from hpo.results import Running, StudyStatus
from hpo.text import duration, params_text, percent, printable


@contextmanager
def watching(plan: Plan, studies: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Shows a plan while the context lasts; the function it gives is to be called about once a second.

    Args:
        plan: read from a storage of its own, which takes no locks.
        studies: as given to `hpo run`; empty: the whole plan.
    """
    names = [*plan.with_ancestors(studies)] if studies else plan.all_names
    console = Screen(stderr=True)
    if not console.is_terminal:
        yield _PlainLines(plan, names, console).tick
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_screen(plan, names), refresh=True)


def _screen(plan: Plan, names: Sequence[str]) -> Group:
    records = [record for record in results.status(plan) if record.name in names]
    running = [each for each in results.running(plan) if each.study in names]
    return Group(_studies(records), _workers(running))


def _studies(records: Sequence[StudyStatus]) -> Table:
    table = Table.grid(padding=(0, 2))
    for record in records:
        done, total = record.n_ended, record.n_points
        table.add_row(
            Text(printable(record.section), "dim"),
            record.name,
            Text(record.state, STATE_STYLES[record.state]),
            ProgressBar(total=total or 1, completed=done, width=20),
            f"{done}/{total}",
            f"F1 {percent(record.best['value'])} %" if record.best and record.name != FINAL else "",
        )
    return table


def _workers(running: Sequence[Running]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)  # what is too long is cut here alone
    if not running:
        table.add_row(Text("workers are starting …", "dim"))
    for each in running:
        epoch = f"epoch {each.epoch}/{each.epochs}" if each.epochs else "starting"
        table.add_row(
            Text(f"{each.study}/{each.trial}", "cyan"),
            epoch,
            "" if each.macro_f1 is None else f"F1 {percent(each.macro_f1)} %",
            _time_left(each),
            Text(params_text(each.params) or each.point, "dim"),
        )
    return table


def _time_left(each: Running) -> str:
    if each.seconds_per_epoch is None:
        return ""
    return f"{duration(each.seconds_per_epoch * (each.epochs - each.epoch))} left"


class _PlainLines:
    """One line for every point that ended and every study that decided, since the command began."""

    def __init__(self, plan: Plan, names: Sequence[str], console: Console) -> None:
        self._plan, self._names, self._console = plan, names, console
        self._said: set[str] = set(self._lines())

    def tick(self) -> None:
        """Prints what is new."""
        for line in self._lines():
            if line not in self._said:
                self._said.add(line)
                self._console.print(Text(printable(line)), soft_wrap=True)

    def _lines(self) -> list[str]:
        lines = []
        attrs = self._plan.storage.study_attrs()
        for name in self._names:
            for row in results.rows(self._plan, name):
                if row.state in ("waiting", "running"):
                    continue
                f1 = f"macro F1 {percent(row.macro_f1)} %"
                why = f" ({row.reason})" if row.reason else ""
                what = params_text(row.params) or row.point
                lines.append(f"{name}/{row.trial} {row.state}{why}: {f1}, {what}")
            decision = attrs[name].get("decision")
            if decision is not None:
                lines.append(f"{name}: {decision['text']}")
        return lines
