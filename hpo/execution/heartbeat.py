"""A thread that renews leases."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from hpo._process import JITTER
from hpo.errors import DatabaseGoneError
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance, fail_stale_trials

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 6


def fail_stale_and_log(plan: Plan, names: Sequence[str] | None) -> list[str]:
    """Fail the trials whose worker is gone, and say which; `advance` queues them again."""
    closed = fail_stale_trials(plan, names)
    for lost in closed:
        log.warning("%s: its worker is gone; queued again", lost)
    return closed


class HeartbeatThread:
    """A thread that renews the leases on this process's trials, and looks after those of others meanwhile.

    Args:
        plan: that they belong to.
        names: the studies to look after; None: all.
        give_up: has the trials stop soon; called when the database is gone.
    """

    def __init__(self, plan: Plan, names: Sequence[str] | None, give_up: Callable[[], None]) -> None:
        self._trial_ids: set[int] = set()
        self._give_up = give_up
        self._plan, self._names = plan, names
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> HeartbeatThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    @contextlib.contextmanager
    def beating_for(self, trial_id: int) -> Iterator[None]:
        """Renew the lease on a trial while the context lasts."""
        self._trial_ids.add(trial_id)
        try:
            yield
        finally:
            self._trial_ids.discard(trial_id)

    def _beat(self) -> None:
        pause_seconds = self._plan.options.lease_seconds / BEATS_PER_LEASE
        due = time.monotonic()
        # what hung in a database that was away is followed by a beat at once: others are waiting for it
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            # not all at the same time: workers are often started together
            due = time.monotonic() + pause_seconds * JITTER.uniform(0.75, 1.0)
            trial_ids = sorted(self._trial_ids.copy())
            try:
                self._plan.storage.check_in_place()
                for trial_id in trial_ids:
                    self._plan.storage.heartbeat(trial_id)
                is_open = trial_ids and fail_stale_and_log(self._plan, self._names)
                # networks that tell what points cost are built where no trial of this process draws numbers
                if is_open and not any(study.costs for study in self._plan.specs.values()):
                    advance(self._plan, self._names)
            except DatabaseGoneError as error:
                log.error("%s", error)
                self._give_up()
                return
            except Exception:
                # whatever it is, the next beat may succeed; a missed lease is told by the next write
                log.exception("heartbeat failed, trials: %s", trial_ids)
