"""A worker: one process that claims trials, trains them and delivers, until the plan has ended.

It can be killed at any moment: what it held is found to be lost, queued again, and resumed from its last
checkpoint. SIGINT and SIGTERM stop it in the middle of an epoch, with its trial back in the queue.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from optuna.trial import TrialState

from hpo._text import printable
from hpo.data import TrainingData, load_training, prepare
from hpo.errors import ConflictError, DataError, Interrupted, PointsFailedError, TrialLost
from hpo.execution.final_stage import TestSetCallback
from hpo.execution.pool import Pool
from hpo.execution.trial import TrialCallback, WorkerContext, run_trial
from hpo.planning.compatibility import check_data, check_sqlite_is_local, check_versions, unshared_checkpoints
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import advance, fail_stale_trials, require_result
from hpo.storage.queue import Claim, claim
from hpo.storage.storage import Storage
from hpo.storage.trials import id_of
from hpo.training.blobs import BlobStore, open_blobs
from hpo.training.cuda import beside_others
from hpo.training.devices import keep_freed_memory, n_cores, resolve_device, resolve_precision

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 6
POLL_SECONDS = 0.5
HANDLED = (signal.SIGINT, signal.SIGTERM)
TRIALS_PER_GPU = 16
"""A first guess, which `examples/benchmarks/gpu.py` measures; one small network leaves a GPU idle."""
LOW_WATER = 8
"""Who leaves so many trials waiting queues more: one of the workers, before the others find nothing."""
STOP_SECONDS = 7.0
"""A worker that is to stop and still hangs, in a database that is away say, is ended after so long."""
PARENT_SECONDS = 0.5
PARENT_VARIABLE = "HPO_PARENT_PID"
"""Set by `hpo run` for its own workers: they stop when that process is gone."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal; the second SIGINT ends it at once."""

    def __init__(self, deadline_seconds: float | None = None) -> None:
        self.signal: int | None = None
        self.gave_up = False
        self.idle_until = math.inf
        """When `--idle-timeout` is over; never while a trial trains."""
        parent = os.environ.get(PARENT_VARIABLE)
        self._parent = int(parent) if parent else None
        self._deadline = math.inf if deadline_seconds is None else time.monotonic() + deadline_seconds

    def __call__(self) -> bool:
        """Return whether to stop; asked before every step, so it must be cheap (the clock: 0.1 µs)."""
        return self.signal is not None or self.gave_up or time.monotonic() >= self._deadline

    def give_up(self) -> None:
        """Have the trials of this process go back to the queue, whose worker ends by an error."""
        self.gave_up = True

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM of the main thread while the context lasts."""
        heard, woken = socket.socketpair()
        woken.setblocking(False)
        wakes_before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        threading.Thread(target=self._watch, args=(heard,), name="stop watch", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakes_before)
            woken.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            # SIGTERM may well come twice: schedulers send it to a job's script and to all its processes
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.signal = number

    def _watch(self, heard: socket.socket) -> None:
        """End a process that hangs though it is to stop, or idle for too long; ask an orphan to stop.

        A thread, because Python handles signals in the main thread, which may be in C code that waits for
        a lock of SQLite's for a minute. It says nothing: the log may be what hangs.
        """
        end_at, code = self._deadline + STOP_SECONDS, 0
        with heard:
            while time.monotonic() < min(end_at, self.idle_until + STOP_SECONDS):
                if code == 0 and self._parent is not None and os.getppid() != self._parent:
                    os.kill(os.getpid(), signal.SIGTERM)
                if not select.select([heard], [], [], PARENT_SECONDS)[0]:
                    continue
                number = heard.recv(1)
                if not number:
                    return  # the context was left
                if code == 0 and number[0] in HANDLED:
                    end_at, code = min(end_at, time.monotonic() + STOP_SECONDS), 128 + number[0]
        os._exit(code)


@dataclass(frozen=True)
class Limits:
    """When a worker stops although the plan has not ended. None: never for that reason."""

    idle_seconds: float | None = None
    """After so long without a trial to train."""
    max_trials: int | None = None
    """After so many trials."""
    deadline_seconds: float | None = None
    """So long after its start, in the middle of a trial too, which goes back to the queue."""


def work(
    storage: Storage,
    *,
    out: Path,
    studies: Sequence[str] = (),
    data: str | None = None,
    checkpoints: str | Path | None = None,
    limits: Limits | None = None,
    trials_per_device: int | None = None,
) -> int | None:
    """Serve a plan until it has ended, a limit is reached or a signal comes.

    Args:
        storage: where the plan is.
        out: folder for the model and pictures of the final stage.
        studies: serve only these and the earlier ones they need, no final stage; empty: the whole plan.
        data: where the plan's data are on this machine, if elsewhere than where it was created.
        checkpoints: folder or fsspec URL of the plan's checkpoints; default `out/checkpoints`.
        limits: when to stop early.
        trials_per_device: how many to train at a time; None: one on a CPU, `TRIALS_PER_GPU` on a GPU. Fewer
            where the device's memory does not hold them.

    Returns:
        The signal that stopped it, or None when everything asked for has ended or a limit was reached.

    Raises:
        InputError: the plan, its data or its device cannot be served from here.
        StorageError: the database is gone for good.
    """
    limits = limits or Limits()
    stop = StopRequest(limits.deadline_seconds)
    with stop.installed():
        plan = Plan.open(storage)
        names = plan.with_ancestors(studies) if studies else None
        served = plan.all_names if names is None else names
        entry, context = _set_up(plan, data, open_blobs(checkpoints or out / "checkpoints"), stop)
        how = f"{plan.identity.precision} on {context.device}, threads: {plan.identity.threads}"
        log.info("serving %s: %s, %s", plan.storage.name, printable(context.data.source), how)
        unshared = unshared_checkpoints(plan, out, checkpoints)
        if unshared:
            log.warning(unshared)
        idle_seconds = math.inf if limits.idle_seconds is None else limits.idle_seconds

        def train(claimed: Claim) -> None:
            with heart.beating_for(id_of(claimed.trial)), beside_others(context.device):
                _train(plan, claimed, replace(context, is_shared=lambda: pool.is_shared), entry, out)

        size = trials_per_device or (1 if context.device == "cpu" else TRIALS_PER_GPU)
        ended, stop.idle_until = False, time.monotonic() + idle_seconds
        with _Heart(plan, names) as heart, Pool(size, train, stop.give_up) as pool:
            ended, pulse = _fail_stale_and_advance(plan, names), _Pulse(plan, served)
            while not stop() and pool.n_begun != limits.max_trials:
                if not pool.has_room(POLL_SECONDS) or stop():
                    continue
                if pool.is_empty and stop.idle_until == math.inf:
                    stop.idle_until = time.monotonic() + idle_seconds
                claimed = claim(plan.storage, served)
                if pulse.changed() if claimed is None else claimed.n_waiting == LOW_WATER:
                    # not at each claim: a look at everything costs as much as a trial's own eleven reports
                    ended = _fail_stale_and_advance(plan, names)
                    claimed = claimed or claim(plan.storage, served)
                if claimed is None:
                    if ended or time.monotonic() >= stop.idle_until:
                        break
                    pool.rest(POLL_SECONDS)
                    continue
                stop.idle_until = math.inf
                pool.begin(claimed)
        log.info("leaving: %s; trials: %d", _why(stop, ended, pool.n_begun, limits), pool.n_begun)
        if ended:
            try:
                require_result(plan, names)
            except PointsFailedError as error:  # `hpo run` fails by it; this worker has done its work
                log.warning("%s", error)
        return stop.signal


def _train(plan: Plan, claimed: Claim, context: WorkerContext, entry: Path, out: Path) -> None:
    """Train a claimed trial, and say how it ended."""
    name, trial = claimed.study, claimed.trial
    try:
        callback = (
            TestSetCallback(plan, id_of(trial), context, entry, out) if name == FINAL else TrialCallback()
        )
        end = run_trial(plan, name, trial, context, callback)
        log.info("%s/%d: %s", name, trial.number, _said(plan, id_of(trial), end))
    except Interrupted:
        log.info("%s/%d: released", name, trial.number)
    except TrialLost:
        log.warning("%s/%d: lost to another worker; taking the next", name, trial.number)


def _said(plan: Plan, trial_id: int, end: TrialState) -> str:
    """Return how a trial ended, in words; why, where it has no result."""
    if end == TrialState.COMPLETE:
        return "complete"
    return str(plan.storage.trial(trial_id).user_attrs.get("reason", end.name.lower()))


def _why(stop: StopRequest, ended: bool, n_begun: int, limits: Limits) -> str:
    """Return why a worker leaves."""
    if stop.signal is not None:
        return f"asked to by {signal.Signals(stop.signal).name}"
    if stop():
        return "--deadline"
    if ended:
        return "the plan has ended"
    return "--max-trials" if n_begun == limits.max_trials else "--idle-timeout"


def _set_up(plan: Plan, data: str | None, store: BlobStore, stop: StopRequest) -> tuple[Path, WorkerContext]:
    """Check that what is done here is the plan's work, and bring in its data.

    Raises:
        ConflictError: versions, cores, device, precision or data differ from the plan's; both are named.
        InputError: the device does not know the plan's precision.
    """
    check_versions(plan)
    check_sqlite_is_local(plan)
    if n_cores() < plan.identity.threads:
        raise ConflictError(
            f"the plan trains with {plan.identity.threads} threads a worker, and results depend on that in "
            f"their last bits; this process may use {n_cores()} cores only: give it more"
        )
    torch.set_num_threads(plan.identity.threads)
    keep_freed_memory()
    device = resolve_device("cpu" if plan.identity.device == "cpu" else plan.options.device)
    if device.partition(":")[0] != plan.identity.device:
        raise ConflictError(f"the plan trains on {plan.identity.device}; this machine has only {device}")
    resolve_precision(plan.identity.precision, device)
    native = resolve_precision("auto", device)
    if plan.identity.precision == "bf16" and plan.options.precision == "auto" and native != "bf16":
        raise ConflictError(
            f"the plan trains in bf16, which this machine's {device} does not compute natively (fp32 here); "
            "create plans for mixed machines with --precision fp32"
        )
    entry, training = load_plan_data(plan, data)
    return entry, WorkerContext(training, device, store, stop)


def load_plan_data(plan: Plan, place: str | None = None) -> tuple[Path, TrainingData]:
    """Bring in the plan's data, and check that they are what it was created on.

    Args:
        plan: whose data.
        place: where they are on this machine, if elsewhere than where the plan was created.

    Returns:
        The prepared data, the test set among them unopened; and those to train on.

    Raises:
        ConflictError: the fingerprints differ.
        DataError: the data cannot be read.
    """
    options = plan.options
    try:
        entry = prepare(place or options.data, image_size=options.image_size)
        training = load_training(entry, limit_train=options.limit_train, limit_valid=options.limit_valid)
    except DataError as error:
        if place is not None:
            raise
        raise DataError(f"{error}; --data says where the plan's data are on this machine") from None
    check_data(plan, training.fingerprint, training.source)
    return entry, training


def _fail_stale_and_advance(plan: Plan, names: Sequence[str] | None) -> bool:
    _fail_stale_trials(plan, names)
    return advance(plan, names)


def _fail_stale_trials(plan: Plan, names: Sequence[str] | None) -> list[str]:
    closed = fail_stale_trials(plan, names)
    for lost in closed:
        log.warning("%s: its worker is gone; queued again", lost)
    return closed


class _Pulse:
    """Tells an idle worker whether a look at everything can find something to do, by one cheap query.

    Fifteen idle workers that looked twice a second took both cores from the sixteenth.
    """

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self._storage = plan.storage
        self._study_ids = [plan.storage.study_id(name) for name in names]
        self._longest_seconds = plan.options.lease_seconds / BEATS_PER_LEASE
        self._first = plan.storage.first_open(self._study_ids)
        self._seen: object = None
        self._seen_at = time.monotonic()

    def changed(self) -> bool:
        """Return whether trials were queued or lost, a study has none running now, or time has passed."""
        now = time.monotonic()
        if self._seen == self._counts() and now - self._seen_at < self._longest_seconds:
            return False
        self._first = self._storage.first_open(self._study_ids)  # what had ended before counts no more
        self._seen, self._seen_at = self._counts(), now
        return True

    def _counts(self) -> tuple[int, dict[tuple[int, TrialState], int]]:
        counts = self._storage.counts(self._first)
        return (
            # all: what was queued by this worker's own look and has ended since left the rest as it was
            sum(counts.values()),
            {
                (study_id, state): 1 if state == TrialState.RUNNING else count
                for (study_id, state), count in counts.items()
                # that one of several running trials has ended well gives nobody anything to do
                if state in (TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL)
            },
        )


class _Heart:
    """A thread that renews the leases on this process's trials, and looks after those of others meanwhile."""

    def __init__(self, plan: Plan, names: Sequence[str] | None) -> None:
        self._trial_ids: set[int] = set()
        self._plan, self._names = plan, names
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Heart:
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
            due = time.monotonic() + pause_seconds * random.uniform(0.75, 1.0)
            trial_ids = sorted(self._trial_ids.copy())
            if not trial_ids:
                continue
            try:
                for trial_id in trial_ids:
                    self._plan.storage.heartbeat(trial_id)
                if _fail_stale_trials(self._plan, self._names):
                    advance(self._plan, self._names)
            except Exception:
                # whatever it is, the next beat may succeed; a missed lease is told by the next write
                log.exception("heartbeat failed, trials: %s", trial_ids)
