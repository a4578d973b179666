"""A cell's output that is updated in place while a plan is worked on; nothing where no notebook is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hpo.cli.live import Notes
from hpo.cli.screen import Display
from hpo.library.html import progress_html, text_html
from hpo.library.records import as_text
from hpo.monitor.watch import Progress


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
        self._last: Progress | None = None
        self._drawn = text_html("loading data and plan …")
        show: Any = display  # IPython has no types for it
        self._handle = show(
            {"text/html": self._drawn, "text/plain": "loading data and plan …"}, raw=True, display_id=True
        )

    def draw(self, progress: Progress, notes: Sequence[str] = (), *, has_workers: bool = True) -> None:
        """Show what was found, and what else has to be said."""
        self._last = progress
        texts = [*self.notes.texts, *notes]
        html = progress_html(progress, texts, has_workers=has_workers)
        if html != self._drawn:  # what is sent is kept by whoever records the kernel's messages
            self._drawn = html
            self._update({"text/html": html, "text/plain": as_text(Display(progress, texts))})

    def finish(self, note: str = "") -> None:
        """Show the last look as one that nobody works on any more."""
        if self._last is not None:
            self.draw(self._last, [note] if note else [], has_workers=False)

    def _update(self, bundle: dict[str, Any]) -> None:
        self._handle.update(bundle, raw=True)
