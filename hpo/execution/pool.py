"""Several trials at once in one process: small networks leave most of a GPU idle, one at a time.

How many train fastest depends on the network, the GPU and the processor that launches its work; so it is
tried while the plan runs, from `FIRST_SIZE` on: on one H200, eight trials of the original's network train
3.3 times as fast as one, and thirty-two 2.6 times.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from hpo.errors import DeviceFull
from hpo.storage.queue import Claim

log = logging.getLogger(__name__)

FIRST_SIZE = 4
GAIN = 1.05
"""More at once are kept only where they are so many times as fast: less may be chance, and takes memory."""
WINDOW_SECONDS, SETTLE_SECONDS = 3.0, 10.0
"""How long a size is measured; and how long, at most, it waits for trials that still record their steps."""


class SizeSearch:
    """Finds how many trials at once train the most examples a second: doubles, or halves, while that helps.

    Args:
        most: the largest size.
    """

    def __init__(self, most: int) -> None:
        self.size = min(FIRST_SIZE, most)
        self.is_done = most == 1
        self.rates: dict[int, float] = {}
        """Examples a second, by size."""
        self._most = most

    def add(self, rate: float) -> None:
        """Take note of what the current size trains, in examples a second, and set the next size."""
        self.rates[self.size] = rate
        enough = max(self.rates.values()) / GAIN
        best = min(size for size, each in self.rates.items() if each >= enough)
        untried = [size for size in (2 * best, best // 2) if 1 <= size <= self._most]
        untried = [size for size in untried if size not in self.rates] if rate else []
        self.size = untried[0] if untried else best
        self.is_done = not untried


class Throughput:
    """Measures what a full pool trains, and has it try other sizes until the fastest is found.

    Args:
        search: of the size.
        is_recording: whether steps are being recorded right now.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        search: SizeSearch,
        is_recording: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search, self._is_recording, self._clock = search, is_recording, clock
        self._n_examples, self._lock = 0, threading.Lock()
        self._full_since: float | None = None
        self._window: tuple[float, int] | None = None
        self._was_recording = True

    def count(self, n_examples: int) -> None:
        """Take note of examples that were trained on; several threads may at once."""
        with self._lock:
            self._n_examples += n_examples

    def look(self, *, is_full: bool) -> int:
        """Look at the pool, several times a second; return how many are to be trained at once.

        Args:
            is_full: whether it trains as many as it is to.
        """
        search, now = self._search, self._clock()
        if search.is_done or not is_full:
            self._full_since = self._window = None
            return search.size
        if self._full_since is None:
            self._full_since, self._was_recording = now, True
        if self._window is None:
            is_recording = self._is_recording()
            is_settled = not (is_recording or self._was_recording)
            self._was_recording = is_recording
            if is_settled or now - self._full_since >= SETTLE_SECONDS:
                self._window = now, self._n_examples
            return search.size
        began, before = self._window
        if now - began >= WINDOW_SECONDS:
            search.add((self._n_examples - before) / (now - began))
            self._full_since = self._window = None
            rates = ", ".join(f"{size}: {rate:,.0f}" for size, rate in sorted(search.rates.items()))
            log.info("trials at once: %d (examples a second: %s)", search.size, rates)
        return search.size


class Pool:
    """Trains claimed trials, each in a thread of its own; a pool of one in the thread that calls it.

    Args:
        size: how many at once, at most; fewer from when the device's memory did not hold so many.
        train: trains one to its end. What it raises, the next call raises; but a trial that did not fit
            beside the others (DeviceFull) is back in the queue, and the pool has become smaller.
        give_up: has all trials stop soon; called when the context is left by an error.
    """

    def __init__(self, size: int, train: Callable[[Claim], None], give_up: Callable[[], None]) -> None:
        self.size = self._most = size
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
    def n_running(self) -> int:
        """How many trials are being trained in threads; threads ask too."""
        return len(self._running)

    @property
    def is_shared(self) -> bool:
        """Whether several trials may be in the device's memory; threads ask too."""
        return len(self._running) > 1

    def resize(self, size: int) -> None:
        """Have so many trials at once from now on, or as many as the device's memory holds."""
        self.size = min(size, self._most)

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
                self.size = self._most = max(1, min(self.size, n_running - 1))
                log.warning("%s; from now on trials at once: %d", error, self.size)
