"""A cell's output that is updated in place while a plan is worked on; nothing where no notebook is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpo.api.html import progress_html, text_html
from hpo.api.records import as_text
from hpo.cli.live import Notes
from hpo.cli.screen import Display
from hpo.monitor.watch import Progress

_LOADING, _NOT_BEGUN = "loading data and plan …", "not begun"


@contextmanager
def live_output() -> Iterator[LiveOutput | None]:
    """Yield an output of the cell that runs while the context lasts; None where no kernel runs."""
    if not is_notebook():
        yield None
        return
    output = LiveOutput()
    ours = logging.getLogger("hpo")
    ours.addHandler(output.notes)
    try:
        yield output
    finally:
        ours.removeHandler(output.notes)
        output.finish()


def is_notebook() -> bool:
    """Return whether this process is a kernel; IPython is not imported for it: a kernel has."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class LiveOutput:
    """One output of a cell, drawn again with each look; what is logged meanwhile stands in it."""

    def __init__(self) -> None:
        from IPython.display import display  # there is a kernel

        self.notes = Notes()
        self._has_begun = False
        self._drawn = text_html(_LOADING)
        show: Any = display  # IPython has no types for it
        self._handle = show({"text/html": self._drawn, "text/plain": _LOADING}, raw=True, display_id=True)

    def draw(self, progress: Progress, *, has_workers: bool = True) -> None:
        """Show what was found, and what was logged.

        Args:
            progress: what was found.
            has_workers: whether workers of this run are there, or are about to be.
        """
        self._has_begun = True
        notes = self.notes.texts
        text = as_text(Display(progress, notes, has_workers=has_workers))
        self._update(progress_html(progress, notes, has_workers=has_workers), text)

    def finish(self) -> None:
        """Say so where nothing was ever drawn: an error follows."""
        if not self._has_begun:
            self._update(text_html(_NOT_BEGUN), _NOT_BEGUN)

    def _update(self, html: str, text: str) -> None:
        if html != self._drawn:  # what is sent is kept by whoever records the kernel's messages
            self._drawn = html
            self._handle.update({"text/html": html, "text/plain": text}, raw=True)
