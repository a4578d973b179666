"""What a backend does with workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from hpo.execution.backends.worker_spec import WorkerSpec


class WorkerBackend(Protocol):
    """The workers that a backend has placed, by number from 1."""

    def room(self) -> int:
        """Return how many workers there is room for."""

    def start(self, number: int) -> None:
        """Place a worker, or place it again."""

    def ended(self) -> dict[int, int]:
        """Return the exit codes of the workers that have ended since this was asked last."""

    def last_words(self, number: int) -> str:
        """Return what a worker that has ended said last."""

    def terminate(self) -> None:
        """Ask all workers to put their trials back and end; return at once."""


OpenBackend = Callable[[WorkerSpec], AbstractContextManager[WorkerBackend]]
"""Opens a backend for such workers; all of them have ended when the context is left."""
