"""A worker: one process that claims trials, trains them and delivers, until the plan has ended.

It can be killed at any moment: what it held is found to be lost, queued again, and resumed from its last
checkpoint. SIGINT and SIGTERM stop it in the middle of an epoch, with its trial back in the queue.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import TrialState

from hpo._process import refuse_nested_run, without_runs
from hpo._text import printable
from hpo.errors import DeviceFull, Interrupted, PointsFailedError, TrialLost
from hpo.execution.context import WorkerContext, set_up
from hpo.execution.final_stage import TestSetCallback
from hpo.execution.heartbeat import BEATS_PER_LEASE, HeartbeatThread, fail_stale_and_log
from hpo.execution.plan_data import data_of_trial
from hpo.execution.plan_recipe import with_costs, with_recipe
from hpo.execution.pool import Pool, SizeSearch, Throughput
from hpo.execution.stop_request import StopRequest
from hpo.execution.trial import TrialCallback, run_trial
from hpo.planning.compatibility import unshared_checkpoints
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import advance, require_result
from hpo.planning.studies import check_study
from hpo.storage.queue import Claim, claim
from hpo.storage.storage import Storage
from hpo.storage.trials import id_of
from hpo.training.blobs import open_blobs
from hpo.training.cuda import beside_others, is_cuda, is_recording

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MOST_PER_GPU = 16
"""One H200 trains eight at once of the original's networks 3.26 times as fast as one, 16 3.17 times."""
LOW_WATER = 8
"""Who leaves so many trials waiting queues more: one of the workers, before the others find nothing."""


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
        trials_per_device: how many to train at a time; None: on a CUDA device as many as are fastest,
            `MOST_PER_GPU` at most, on others one. Fewer where the device's memory does not hold them.

    Returns:
        The signal that stopped it, or None when everything asked for has ended or a limit was reached.

    Raises:
        InputError: the plan, its data or its device cannot be served from here.
        StorageError: the database is gone for good.
    """
    refuse_nested_run()
    limits = limits or Limits()
    stop = StopRequest(limits.deadline_seconds)
    with stop.installed(), without_runs("a worker trains", whole_process=True):
        plan = with_costs(with_recipe(Plan.open(storage)))
        names = plan.with_ancestors(studies) if studies else None
        served = plan.all_names if names is None else names
        for name in served:
            if name in plan.specs:  # what its sampler or pruner needs may not be on this machine
                check_study(plan.specs[name], f"study {name!r}")
        entry, context = set_up(plan, data, open_blobs(checkpoints or out / "checkpoints"), stop)
        how = f"{plan.identity.precision} on {context.device}, threads: {plan.identity.threads}"
        log.info("serving %s: %s, %s", plan.storage.name, printable(context.data.source), how)
        unshared = unshared_checkpoints(plan, out, checkpoints)
        if unshared:
            log.warning(unshared)
        idle_seconds = math.inf if limits.idle_seconds is None else limits.idle_seconds

        def train(claimed: Claim) -> None:
            slots = context.slots
            here = replace(
                context,
                is_shared=lambda: pool.is_shared or bool(slots),
                n_at_once=lambda: pool.n_running,
                count=throughput.count,
            )
            try:
                with heart.beating_for(id_of(claimed.trial)), beside_others(context.device):
                    _train(plan, claimed, here, entry, out)
            except DeviceFull:
                if not slots:
                    raise
                slots.clear()  # first what nobody uses; the trial is back in the queue

        size = trials_per_device or (MOST_PER_GPU if is_cuda(context.device) else 1)
        if size > 1 and context.recipe.draws_in_training:
            # trials in threads would share the process's generators of random numbers
            log.warning(
                "recipe %s may draw random numbers in training: one trial at a time", plan.recipe.name
            )
            size = 1
        throughput = Throughput(SizeSearch(1 if trials_per_device else size), is_recording)
        ended, stop.idle_until = False, time.monotonic() + idle_seconds
        with HeartbeatThread(plan, names, stop.give_up) as heart, Pool(size, train, stop.give_up) as pool:
            ended, changes = _fail_stale_and_advance(plan, names), _ChangeDetector(plan, served)
            while not stop() and pool.n_begun != limits.max_trials:
                if size > 1 and not trials_per_device:
                    pool.resize(throughput.look(is_full=not pool.has_room(0)))
                if not pool.has_room(POLL_SECONDS) or stop():
                    continue
                if pool.is_empty and stop.idle_until == math.inf:
                    stop.idle_until = time.monotonic() + idle_seconds
                claimed = claim(plan.storage, served)
                if changes.found() if claimed is None else claimed.n_waiting == LOW_WATER:
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
        storage.check_in_place()  # one that is gone stopped the trials
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
        data = data_of_trial(plan, name, trial, entry, context.data)
        if data is not context.data:
            # what was recorded on a GPU reads the data that it was recorded on
            context = replace(context, data=data, slots=None)
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


def _fail_stale_and_advance(plan: Plan, names: Sequence[str] | None) -> bool:
    fail_stale_and_log(plan, names)
    return advance(plan, names)


class _ChangeDetector:
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

    def found(self) -> bool:
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
