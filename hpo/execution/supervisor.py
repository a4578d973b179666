"""Keeps workers at work: a backend places them; they are watched, replaced when they die, stopped.

They are ordinary `hpo worker` processes, wherever a backend puts them, and know each other through the
database alone; so a worker that is lost costs its epoch in progress, and further ones may be added by hand.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from types import FrameType
from typing import TypeVar

from hpo._process import on_stop_signals
from hpo.errors import DeviceLostError, InputError, RunError
from hpo.execution.backends.base import WorkerBackend
from hpo.planning.plan import Plan
from hpo.storage.outbox import in_background
from hpo.storage.queue import LOST_CAP, Queue

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK_SECONDS = 1.0
POLL_SECONDS = 0.05
STOP_SECONDS = 7.5
"""Workers end by themselves before; what then still has to be done is done ten seconds after the signal."""
MAX_RESTARTS = 20
"""Of workers in a row without a trial that ended meanwhile; more where each can be at one that kills it."""


def supervise(
    backend: WorkerBackend,
    plan: Plan,
    names: Sequence[str] | None,
    count: int | None,
    on_tick: Callable[[], object],
    after_tick: Callable[[], object] = lambda: None,
) -> int | None:
    """Keep workers alive until they end by themselves, which they do when the plan has ended.

    Args:
        backend: who works.
        plan: what they work on.
        names: the studies that they serve; None: all, and the final stage.
        count: how many workers; None: as many as there is room for.
        on_tick: called about once a second, in a thread of its own: it may hang in a database that is away.
        after_tick: called after it, in the caller's own thread. Where it raises, workers put their trials
            back and end before the error goes on. The first Ctrl-C meanwhile waits for it, the second does
            not.

    Returns:
        The signal that stopped it, or None.

    Raises:
        InputError: a worker refused to work here.
        DatabaseGoneError: its file was removed or replaced.
        RunError: workers give up, or die again and again and no trial ends. One whose device had failed
            before is missed only where it was the last.
    """
    n_restarts, n_ended_before = 0, -1
    leave_at = math.inf
    lost_devices = set[int]()
    at_work = set(range(1, (count or backend.room()) + 1))
    max_restarts = max(MAX_RESTARTS, LOST_CAP * len(at_work))
    received: list[int] = []
    is_telling = False

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if is_telling and signal.SIGINT in received[1:]:
            raise KeyboardInterrupt

    with on_stop_signals(receive):
        for number in sorted(at_work):
            backend.start(number)
        while at_work and time.monotonic() < leave_at:
            plan.storage.check_in_place()
            _unless(lambda: bool(received), on_tick)
            is_telling = True
            try:
                after_tick()
            except BaseException:
                is_telling = False
                _stop(backend, at_work, received)
                _look_once_more(on_tick)
                raise
            is_telling = False
            if _wait(TICK_SECONDS, lambda: bool(received)):
                _stop(backend, at_work, received)
                _look_once_more(on_tick)
                return received[0]
            for number, code in backend.ended().items():
                at_work.discard(number)
                if code == 0:  # all is done: one that still waits for a place has come too late
                    leave_at = min(leave_at, time.monotonic() + STOP_SECONDS)
                    continue
                n_ended = _unless(lambda: bool(received), lambda: _n_ended(plan, names))
                if n_ended is None:
                    break
                n_restarts = n_restarts + 1 if n_ended == n_ended_before else 0
                n_ended_before = n_ended
                # one that was killed is replaced; one that gave up (1) or refused (2) would do so again
                if code in (1, 2) or n_restarts > max_restarts:
                    if number in lost_devices and at_work:  # this device does not come back
                        words = backend.last_words(number)
                        log.warning("worker %d ended with code %d: %s; the others go on", number, code, words)
                        continue
                    kind = InputError if code == 2 else RunError
                    raise kind(f"worker {number} ended with code {code}: {backend.last_words(number)}")
                if code == DeviceLostError.exit_code:
                    lost_devices.add(number)
                backend.start(number)
                at_work.add(number)
    return None


def _unless(given_up: Callable[[], bool], call: Callable[[], T]) -> T | None:
    """Return what a call returns; None when it was given up, as where it hangs in a database that is away."""
    answer = in_background(call)
    while not wait([answer], POLL_SECONDS).done:
        if given_up():
            return None
    return answer.result()


def _wait(seconds: float, until: Callable[[], bool]) -> bool:
    """Return whether something became so in that time. A handled signal wakes nobody who sleeps."""
    deadline = time.monotonic() + seconds
    while not (is_so := until()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return is_so


def _stop(backend: WorkerBackend, at_work: set[int], received: Sequence[int]) -> None:
    def is_over() -> bool:
        at_work.difference_update(backend.ended())
        return not at_work or signal.SIGINT in received[1:]

    backend.terminate()
    _wait(STOP_SECONDS, is_over)


def _look_once_more(on_tick: Callable[[], object]) -> None:
    deadline = time.monotonic() + TICK_SECONDS
    _unless(lambda: time.monotonic() > deadline, on_tick)


def _n_ended(plan: Plan, names: Sequence[str] | None) -> int:
    """Return how many points have ended; lost attempts are no progress."""
    count = 0
    for name in plan.all_names if names is None else names:
        slots = Queue(plan.storage, name).slots()
        states = [slots.state(slot) for slot in slots.attempts]
        count += sum(not state.is_open for state in states)
    return count
