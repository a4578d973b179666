"""A plan and its results as users of the library hold them: each shows itself, as text and as HTML."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import RenderableType

from hpo.api.html import progress_html, sheet_html
from hpo.cli.advice import about
from hpo.cli.screen import Display
from hpo.cli.tables import (
    WIDE_COLUMNS,
    Screen,
    console,
    describe,
    show_best,
    show_final,
    show_status,
    show_study,
)
from hpo.errors import HpoError
from hpo.monitor import results
from hpo.monitor import status as states
from hpo.monitor.results import TrialRow
from hpo.monitor.status import StudyStatus
from hpo.monitor.watch import Progress, Watch
from hpo.planning import plan as planning
from hpo.storage.database import FILE_NAME, sqlite_file
from hpo.storage.queue import Slots
from hpo.storage.storage import Storage

T = TypeVar("T")
DEFAULT_OUT = "hpo-out"
_ALL = 10_000
"""Lines that are more than there are."""


class Plan(planning.Plan):
    """The studies of one database, with options and identity as recorded; shows where it stands.

    What is shown is read from the database each time.
    """

    def __repr__(self) -> str:
        try:
            return f"{describe(self)}\n\n{as_text(Display(self._look()))}"
        except HpoError as error:
            return f"{describe(self)}\n\ncannot be read now: {error}"

    def _repr_html_(self) -> str:
        try:
            return progress_html(self._look(), about=describe(self))
        except HpoError as error:
            return sheet_html([describe(self), f"cannot be read now: {error}"])

    def _look(self) -> Progress:
        return Watch(self, self.all_names).look()


class _Shown:
    """What shows itself as the command of its name prints it."""

    _plan: planning.Plan
    _show: Callable[[Any, Screen], object]

    def __repr__(self) -> str:
        return as_text(*self._pieces())

    def _repr_html_(self) -> str:
        return sheet_html(self._pieces())

    def _pieces(self) -> list[Any]:
        sheet = _Sheet(width=WIDE_COLUMNS)
        try:
            with about(*_place(self._plan)):
                self._show(self, sheet)
        except HpoError as error:  # part of it is read from the database when it is shown
            sheet.print(f"cannot be read now: {error}")
        return sheet.pieces


class Record(_Shown, dict[str, Any]):
    """A record that shows itself; otherwise an ordinary dictionary, and a copy of it is no more."""

    def __init__(
        self,
        plan: planning.Plan,
        content: dict[str, Any],
        show: Callable[[dict[str, Any], Screen], object],
    ) -> None:
        super().__init__(content)
        self._plan, self._show = plan, show

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Records(_Shown, list[T]):
    """Records that show themselves as a table; otherwise an ordinary list, and a copy of it is no more."""

    def __init__(
        self, plan: planning.Plan, content: list[T], show: Callable[[list[T], Screen], object]
    ) -> None:
        super().__init__(content)
        self._plan, self._show = plan, show

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class _Sheet(Screen):
    """Keeps what it is told to print."""

    def __init__(self, width: int) -> None:
        super().__init__(file=io.StringIO(), width=width)
        self.pieces: list[Any] = []

    def print(self, *objects: Any, **_options: Any) -> None:
        self.pieces += objects or [""]


def _place(plan: planning.Plan) -> list[str]:
    """Return the options by which a command finds a plan; of one on a server the environment has its URL."""
    url = plan.storage.url
    if (file := sqlite_file(url)) is None or str(file.parent) == DEFAULT_OUT:
        return []
    return ["--out", str(file.parent)] if file.name == FILE_NAME else ["--storage", url]


def as_text(*pieces: RenderableType) -> str:
    """Return what a terminal shows, as wide as this one is."""
    screen = Screen(file=io.StringIO(), width=console().width, height=_ALL)
    for piece in pieces:
        screen.print(piece)
    assert isinstance(screen.file, io.StringIO)
    return "\n".join(line.rstrip() for line in screen.file.getvalue().splitlines())


def find_plan(out: Path | str = DEFAULT_OUT, *, storage: str | None = None) -> Plan:
    """Return the plan of an output folder or database, to be read.

    Args:
        out: the output folder, or a database URL.
        storage: a database URL; None: that of `out`.

    Raises:
        MissingError: there is none.
    """
    return Plan.at(out) if storage is None else Plan.open(Storage(storage, reader=True))


def status(plan: planning.Plan | Path | str) -> Records[StudyStatus]:
    """Return where every study stands, the final stage last.

    Args:
        plan: or its output folder, or the URL of its database; so for all that take a plan.

    Raises:
        MissingError: there is no plan.
    """
    plan = planning.opened(plan)
    return Records(
        plan, states.status(plan), lambda found, screen: show_status(found, plan.objective, screen)
    )


def rows(plan: planning.Plan | Path | str, name: str) -> Records[TrialRow]:
    """Return one row a point of a study: its accepted trial, or else its latest.

    Raises:
        InputError: an unknown study.
    """
    plan = planning.opened(plan)

    def show(found: list[TrialRow], screen: Screen) -> None:
        audit = states.study_audit(plan, plan.record(name).decision, Slots.of(plan.trials(name)))
        show_study(plan, name, found, audit, screen)

    return Records(plan, results.rows(plan, name), show)


def best(plan: planning.Plan | Path | str) -> Record:
    """Return the best configuration so far, with where it comes from.

    Raises:
        MissingError: no trial has a result yet.
    """
    plan = planning.opened(plan)
    return Record(plan, results.best(plan), lambda found, screen: show_best(found, plan, screen))


def final_result(plan: planning.Plan | Path | str) -> Record:
    """Return the result of the final stage.

    Raises:
        MissingError: it has not ended yet.
    """
    plan = planning.opened(plan)
    return Record(plan, results.final_result(plan), lambda found, screen: show_final(found, plan, screen))
