"""A worker: one process that claims trials, trains them and delivers, until the plan has ended.

It can be killed at any moment: what it held is found to be lost, queued again, and resumed from its last
checkpoint. SIGINT and SIGTERM stop it in the middle of an epoch, with its trial back in the queue.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from optuna.trial import FrozenTrial

from hpo.advance import advance
from hpo.compute import keep_freed_memory, resolve_device
from hpo.data import load_training, prepare
from hpo.errors import ConflictError, Interrupted, TrialLost
from hpo.final import TestRecorder
from hpo.objective import Recorder, Workplace, run_trial
from hpo.plan import FINAL, Plan
from hpo.queue import LEASE_SECONDS, Queue
from hpo.storage import Storage

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = LEASE_SECONDS / 4
POLL_SECONDS = 0.5
PARENT_VARIABLE = "HPO_PARENT_PID"
"""Set by `hpo run` for its own workers: they stop when that process is gone."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal; the second signal ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        parent = os.environ.get(PARENT_VARIABLE)
        self._parent = int(parent) if parent else None

    def __call__(self) -> bool:
        """Asked before every training step, so it must be cheap (getppid: 0.1 µs)."""
        if self.signal is None and self._parent is not None and os.getppid() != self._parent:
            self.signal = signal.SIGTERM
        return self.signal is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM of the main thread while the context lasts."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


def work(
    storage: Storage,
    *,
    out: Path,
    studies: Sequence[str] = (),
    data: str | None = None,
    checkpoints: Path | None = None,
) -> int | None:
    """Serves a plan until it has ended or a signal comes.

    Args:
        storage: where the plan is.
        out: folder for the model and pictures of the final stage.
        studies: serve only these and the earlier ones they need, no final stage; empty: the whole plan.
        data: where the plan's data are on this machine, if elsewhere than where it was created.
        checkpoints: shared folder of the plan's checkpoints; default `out/checkpoints`.

    Returns:
        The signal that stopped it, or None when everything asked for has ended.

    Raises:
        InputError: the plan, its data or its device cannot be served from here.
    """
    stop = StopRequest()
    with stop.installed():
        plan = Plan.open(storage)
        names = plan.with_ancestors(studies) if studies else None
        torch.set_num_threads(plan.identity.threads)
        keep_freed_memory()
        device = resolve_device("cpu" if plan.identity.device == "cpu" else plan.options.device)
        if device.partition(":")[0] != plan.identity.device:
            raise ConflictError(f"the plan trains on {plan.identity.device}; this machine has only {device}")
        entry = prepare(data or plan.options.data, image_size=plan.options.image_size)
        training = load_training(
            entry, limit_train=plan.options.limit_train, limit_valid=plan.options.limit_valid
        )
        plan.refuse_other_data(training.fingerprint, training.source)
        place = Workplace(training, device, checkpoints or out / "checkpoints", stop)
        with _Heart(storage) as heart:
            while not stop():
                ended = _close_lost_and_advance(plan, names)
                claimed = _claim(plan, names)
                if claimed is None:
                    if ended:
                        return None
                    time.sleep(POLL_SECONDS)
                    continue
                name, trial = claimed
                heart.trial_id = trial._trial_id
                recorder = (
                    TestRecorder(plan, trial._trial_id, place, entry, out) if name == FINAL else Recorder()
                )
                try:
                    end = run_trial(plan, name, trial, place, recorder)
                    log.info("%s/%d: %s", name, trial.number, end.name.lower())
                except Interrupted:
                    log.info("%s/%d: released", name, trial.number)
                except TrialLost:
                    log.warning("%s/%d: lost to another worker; taking the next", name, trial.number)
                finally:
                    heart.trial_id = None
        return stop.signal


def _close_lost_and_advance(plan: Plan, names: Sequence[str] | None) -> bool:
    for name in _served(plan, names):
        for number in Queue(plan.storage, name).close_lost():
            log.warning("%s/%d: its worker is gone; queued again", name, number)
    return advance(plan, names)


def _claim(plan: Plan, names: Sequence[str] | None) -> tuple[str, FrozenTrial] | None:
    for name in _served(plan, names):
        trial = Queue(plan.storage, name).claim()
        if trial is not None:
            return name, trial
    return None


def _served(plan: Plan, names: Sequence[str] | None) -> list[str]:
    return plan.all_names if names is None else list(names)


class _Heart:
    """A thread that renews the lease on the current trial."""

    def __init__(self, storage: Storage) -> None:
        self.trial_id: int | None = None
        self._storage = storage
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            trial_id = self.trial_id
            if trial_id is None:
                continue
            try:
                self._storage.heartbeat(trial_id)
            except Exception:
                # whatever it is, the next beat may succeed; a missed lease is told by the next write
                log.exception("heartbeat of trial %d failed", trial_id)
