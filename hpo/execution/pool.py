"""Several trials at once in one process: small networks leave most of a GPU idle, one at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from hpo.errors import DeviceFull
from hpo.storage.queue import Claim

log = logging.getLogger(__name__)


class Pool:
    """Trains claimed trials, each in a thread of its own; a pool of one in the thread that calls it.

    Args:
        size: how many at once; fewer from when the device's memory did not hold so many.
        train: trains one to its end. What it raises, the next call raises; but a trial that did not fit
            beside the others (DeviceFull) is back in the queue, and the pool has become smaller.
        give_up: has all trials stop soon; called when the context is left by an error.
    """

    def __init__(self, size: int, train: Callable[[Claim], None], give_up: Callable[[], None]) -> None:
        self.size = size
        self.n_begun = 0
        self._train, self._give_up = train, give_up
        # one: where it is called. glibc's heap of a thread other than the main one is 64 MB at most, and what
        # does not fit is mapped anew at every step, whatever `keep_freed_memory` asks for
        self._threads = ThreadPoolExecutor(size, "trial") if size > 1 else None
        self._running: set[Future[None]] = set()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the trials that are being trained."""
        if error is not None:
            self._give_up()
        if self._threads is not None:
            try:
                while self._running:
                    wait(self._running, return_when=FIRST_COMPLETED)
                    self._collect()
            except BaseException:
                self._give_up()
                if error is None:
                    raise
            finally:
                self._threads.shutdown()

    @property
    def is_empty(self) -> bool:
        """Whether no trial is being trained."""
        return not self._running

    @property
    def is_shared(self) -> bool:
        """Whether several trials may be in the device's memory; threads ask too."""
        return len(self._running) > 1

    def has_room(self, patience_seconds: float) -> bool:
        """Return whether one more trial can begin, at once or within some time."""
        self._collect()
        if len(self._running) >= self.size:
            wait(self._running, patience_seconds, FIRST_COMPLETED)
            self._collect()
        return len(self._running) < self.size

    def begin(self, claimed: Claim) -> None:
        """Begin to train; there must be room."""
        self.n_begun += 1
        if self._threads is None:
            self._train(claimed)
        else:
            self._running.add(self._threads.submit(self._train, claimed))

    def rest(self, seconds: float) -> None:
        """Let time pass, as long as no trial ends."""
        if self._running:
            wait(self._running, seconds, FIRST_COMPLETED)
        else:
            time.sleep(seconds)

    def _collect(self) -> None:
        for each in [each for each in self._running if each.done()]:
            n_running = len(self._running)
            self._running.remove(each)
            try:
                each.result()
            except DeviceFull as error:
                error.__traceback__ = None  # it leads to the trial's tensors, and in a circle back to here
                self.size = max(1, min(self.size, n_running - 1))
                log.warning("%s; from now on trials at once: %d", error, self.size)
