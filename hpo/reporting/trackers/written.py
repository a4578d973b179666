"""What the modules of trackers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hpo.errors import InputError, install


@dataclass
class Written:
    """What a tracker was given."""

    place: str
    """Where the runs are."""
    then: str
    """What to do with them, in words; empty where nothing is left to do."""
    n_new: int = 0
    n_changed: int = 0
    n_same: int = 0

    def count(self, *, is_known: bool, is_same: bool) -> None:
        """Count a run that was looked at."""
        self.n_same += is_same
        self.n_changed += is_known and not is_same
        self.n_new += not is_known

    @property
    def text(self) -> str:
        """How many runs there are, in words."""
        n_runs = self.n_new + self.n_changed + self.n_same
        counts = {"new": self.n_new, "changed": self.n_changed}
        news = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
        return f"{n_runs:,} runs, {news or 'nothing new'}"


def needed(module: str, tracker: str) -> Any:
    """Import a module of a tracker's package.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"--to {tracker}: {error}; {install(tracker)}") from None
