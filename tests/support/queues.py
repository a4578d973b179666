"""Claims of trials by tests, one study at a time."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from hpo.storage.queue import Queue, claim


def claim_first(queue: Queue) -> FrozenTrial | None:
    """Take the first waiting trial of a study that is nobody's; None when there is none."""
    found = claim(queue.storage, [queue.study])
    return found.trial if found else None
