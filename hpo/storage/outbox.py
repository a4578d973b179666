"""Results on their way to the database while training goes on.

An outage of the database, or a server that hangs, must not stop a network in the middle of its training: what
cannot be delivered within a few seconds waits here, and goes with the next epoch, or at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from hpo.errors import Interrupted
from hpo.storage.storage import Storage

T = TypeVar("T")

PATIENCE_SECONDS = 5.0
"""How long training waits for the database after an epoch."""
POLL_SECONDS = 0.1


def in_background(call: Callable[[], T]) -> Future[T]:
    """Make a call in a thread that nobody has to wait for, not at the end of the process either.

    A thread of a pool would be waited for then, as long as the database is away.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


class Outbox:
    """The epochs of one trial, written in order and in the background.

    Args:
        storage: where to.
        trial_id: Optuna's id of the trial.
    """

    def __init__(self, storage: Storage, trial_id: int) -> None:
        self._storage, self._trial_id = storage, trial_id
        self._attrs: dict[str, Any] = {}
        self._reports: dict[int, float] = {}
        self._under_way: Future[None] | None = None

    def send(self, attrs: Mapping[str, Any], reports: Mapping[int, float]) -> bool:
        """Add what was measured and try to deliver all there is.

        Returns:
            Whether the database has it; False: it follows later.

        Raises:
            TrialLost: somebody else closed the trial.
            StorageError: the database takes no writes.
        """
        self._attrs |= attrs
        self._reports |= reports
        return self._deliver(PATIENCE_SECONDS)

    def flush(self, should_stop: Callable[[], bool]) -> None:
        """Wait until all is delivered.

        Raises:
            Interrupted: `should_stop` said so first.
            TrialLost, StorageError: as `send`.
        """
        while not self._deliver(POLL_SECONDS):
            if should_stop():
                raise Interrupted

    def _deliver(self, patience_seconds: float) -> bool:
        while self._under_way is not None or self._attrs or self._reports:
            if self._under_way is None:
                # the same values again do no harm, so what a broken connection did is of no interest
                self._under_way = in_background(
                    partial(self._storage.write, self._trial_id, attrs=self._attrs, reports=self._reports)
                )
                self._attrs, self._reports = {}, {}
            # not `result` with a time-out: what ends just when the time is up is no error
            if not wait([self._under_way], patience_seconds).done:
                return False
            self._under_way.result()
            self._under_way = None
        return True
