"""What is shown while a plan is worked on: a screen on a terminal, a line an event elsewhere, JSON lines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import NoReturn

from rich.live import Live
from rich.text import Text

from hpo._process import on_stop_signals
from hpo._text import point_text, write_json
from hpo.cli.screen import Display
from hpo.cli.tables import Screen
from hpo.monitor.results import answer_text
from hpo.monitor.watch import Event, Progress, Watch
from hpo.planning.metrics import Metric
from hpo.planning.plan import CONTROL_SLOT, Plan
from hpo.storage.queue import told_state

TICK_SECONDS = 1.0
Draw = Callable[[Progress], None]


@contextmanager
def watching(
    plan: Plan, studies: Sequence[str], *, as_json: bool = False, stderr: bool = True
) -> Iterator[Looks]:
    """Show a plan while the context lasts; what it gives looks once: call it about once a second.

    Args:
        plan: read from a storage of its own, which takes no locks.
        studies: as given to `hpo run`; empty: the whole plan.
        as_json: one JSON line an event, on stdout, and nothing else.
        stderr: of a command with workers of its own, whose screen or plain lines go there; of one that only
            looks they go to stdout, where the last screen stays.
    """
    eyes = Watch(plan, plan.with_ancestors(studies) if studies else plan.all_names)
    with _drawing(as_json=as_json, stderr=stderr) as draw:
        looks = Looks(eyes, draw)
        looks()  # events count from here on
        yield looks


class Looks:
    """Looks at a plan once each time that it is called, and shows what it found."""

    last: Progress

    def __init__(self, eyes: Watch, draw: Draw) -> None:
        self.eyes, self._draw = eyes, draw

    def __call__(self) -> Progress:
        """Look once."""
        self.last = self.eyes.look()
        self._draw(self.last)
        return self.last


def watch(plan: Plan, *, as_json: bool) -> Progress:
    """Show a plan on stdout until it has ended or everybody has left it; what the screen showed last stays.

    Returns:
        What was found last.

    Raises:
        SystemExit: stopped by a signal, with the terminal as it was.
    """
    with on_stop_signals(_stop), watching(plan, (), as_json=as_json, stderr=False) as look:
        while not ((progress := look()).is_over or look.eyes.is_left(progress.running)):
            time.sleep(TICK_SECONDS)
    return progress


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _drawing(*, as_json: bool, stderr: bool) -> AbstractContextManager[Draw]:
    if as_json:
        return nullcontext(_print_json)
    console = Screen(stderr=stderr)
    # FORCE_COLOR makes rich take a file for a terminal
    is_terminal = console.file.isatty() and not console.is_dumb_terminal
    if is_terminal and console.encoding.startswith("utf"):
        return _screen(console, keeps=not stderr)
    return nullcontext(partial(_print_lines, console))


# --- a screen -------------------------------------------------------------------------------------


@contextmanager
def _screen(console: Screen, *, keeps: bool) -> Iterator[Draw]:
    """Draw on the terminal's other screen, which is put away afterwards: it may be resized as one likes.

    Args:
        console: of a terminal.
        keeps: leave what was drawn last on the terminal's own screen.
    """
    notes = Notes()
    last: Progress | None = None
    ours = logging.getLogger("hpo")
    ours.addHandler(notes)
    try:
        with Live(
            Text("reading the plan …", "dim"), console=console, screen=True, auto_refresh=False
        ) as live:

            def draw(progress: Progress) -> None:
                nonlocal last
                last = progress
                notes.on_note = lambda: live.update(
                    Display(progress, notes.texts, has_workers=not keeps), refresh=True
                )
                notes.on_note()

            yield draw
    finally:
        ours.removeHandler(notes)
        if keeps and last is not None:
            console.print(Display(last))
        for text in notes.texts:
            console.print(text, soft_wrap=True)


class Notes(logging.Handler):
    """Keeps what is logged meanwhile, an outage of the database say, and has it drawn at once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.on_note: Callable[[], None] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text, and have it drawn."""
        self.texts.append(record.getMessage())
        self.on_note()


# --- lines ----------------------------------------------------------------------------------------


def _print_lines(console: Screen, progress: Progress) -> None:
    """Print one line for every point that has ended and every study that has decided."""
    for event in progress.events:
        console.print(_sentence(event, progress.objective), soft_wrap=True)


def _print_json(progress: Progress) -> None:
    """Print one JSON object a line for every event."""
    for event in progress.events:
        write_json(event.to_json(), sys.stdout, indent=None)
    sys.stdout.flush()


def _sentence(event: Event, objective: Metric) -> str:
    record = event.record
    if event.event == "study":
        return f"{event.study}: {record['text']}"
    state = told_state(record["state"], record["reason"])
    ended = f"{event.study}/{record['trial']} {state}"
    if record.get("test"):
        return f"{ended}: {answer_text(record, objective)}"
    reason = record["reason"].removeprefix(f"{state}: ")
    why = f" ({reason})" if reason else ""
    # of what searched nothing the record has the whole configuration
    searched = {} if record["point"] in (CONTROL_SLOT.point, "{}") else record["params"]
    what = point_text(searched, record["point"])
    if "further_seeds" in record:
        first, *more = record["further_seeds"]
        what += f", further seed{f's {first} to {more[-1]}' if more else f' {first}'}"
    return f"{ended}{why}: {objective.label} {objective.with_unit(record[objective.name])}, {what}"
