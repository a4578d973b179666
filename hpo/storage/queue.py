"""Who works on what: Optuna's database as a queue of attempts.

A *slot* is one (point, replicate) of a study: a configuration and a block of seeds. An *attempt* is one
try at it, and one Optuna trial. A slot gets exactly one accepted result: of two trials of one slot the
lower number wins, and the other is closed when it is claimed. What is lost is closed as FAIL and queued
again as a new trial; a trial never goes from RUNNING back to WAITING: its old owner could still write.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import TrialLost
from hpo.storage.storage import RETRY_SECONDS, Storage
from hpo.storage.trials import attempt_key

CLAIM_WINDOW = 16
"""How many waiting trials are looked at together; who comes second at one tries the next."""
ERROR_CAP = 2
"""Attempts of one slot that may end in an error of the trial itself (training is deterministic)."""
LOST_CAP = 10
"""Attempts of one slot in a row that may be lost without finishing one more epoch: it kills its workers.

Five gave an innocent point up in one of 16 plans whose workers were killed every two seconds (faults.py).
"""


class Reason(StrEnum):
    """Why a trial ended otherwise than by its own training; the attribute `reason` starts with it."""

    SUPERSEDED = "superseded"
    LOST = "lost"
    RELEASED = "released"
    ERROR = "error"
    DIVERGED = "diverged"
    REUSED = "already trained"
    CUT_SHORT = "cut short"
    """By a limit on time, or because its study was closed; with what it has reached, if it had begun."""
    INFEASIBLE = "infeasible"
    """As it breaks a constraint on what is measured while it trains."""


class SlotState(StrEnum):
    """Where a slot stands. `status` counts slots, not Optuna trials."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        """Whether an attempt is still to come or under way."""
        return self in (SlotState.WAITING, SlotState.RUNNING)


class Slot(NamedTuple):
    """One block of seeds spent on one point of a study."""

    point: str
    """Canonical JSON of a grid point's parameters, `#index` of a sampled one, `control`, or `final`."""
    replicate: int = 0


@dataclass(frozen=True)
class Job:
    """A slot with what is needed to try it."""

    slot: Slot
    index: int
    """Place among the ordered points of the study; the control and known points have -1."""
    seeds: tuple[int, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)


@dataclass(frozen=True)
class Slots:
    """The trials of one study, at least in outline, grouped by slot."""

    attempts: Mapping[Slot, list[FrozenTrial]]

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> Slots:
        """Group trials; within a slot they stay in the order of their numbers."""
        attempts: dict[Slot, list[FrozenTrial]] = {}
        for trial in trials:
            if trial.user_attrs.keys() >= _OURS:  # trials that others put into the study are none of ours
                attempts.setdefault(slot_of(trial), []).append(trial)
        return cls(attempts)

    def accepted(self, slot: Slot) -> FrozenTrial | None:
        """Return the one trial whose result counts."""
        for trial in self.attempts.get(slot, ()):
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                return trial
        return None

    def accepted_or_latest(self, slot: Slot) -> FrozenTrial:
        """Return the trial that stands for a slot which has been tried."""
        return self.accepted(slot) or self.attempts[slot][-1]

    def state(self, slot: Slot) -> SlotState:
        """Return where the slot stands."""
        accepted = self.accepted(slot)
        if accepted is not None:
            return SlotState.COMPLETE if accepted.state == TrialState.COMPLETE else SlotState.PRUNED
        states = {trial.state for trial in self.attempts.get(slot, [])}
        if TrialState.RUNNING in states:
            return SlotState.RUNNING
        if TrialState.WAITING not in states and self._exhausted(slot):
            return SlotState.FAILED
        return SlotState.WAITING

    def queued(self, slot: Slot) -> bool:
        """Return whether an attempt waits or runs."""
        return any(not trial.state.is_finished() for trial in self.attempts.get(slot, []))

    def replicates(self, point: str) -> list[Slot]:
        """Return the slots of a point that have been tried, in order.

        What was only queued, and closed when it was claimed, is no replicate.
        """
        found: list[Slot] = []
        while (slot := Slot(point, len(found))) in self.attempts and not (found and self.never_began(slot)):
            found.append(slot)
        return found

    def state_at(self, point: str) -> SlotState:
        """Return where a point stands, all its replicates together.

        A further one that was cut short, as its study was closed, leaves it as it was.
        """
        first, *more = self.replicates(point)
        states = [self.state(first), *(self.state(slot) for slot in more if not self._was_cut_short(slot))]
        order = (SlotState.RUNNING, SlotState.WAITING, SlotState.FAILED, SlotState.PRUNED)
        return next((state for state in order if state in states), SlotState.COMPLETE)

    def attempts_at(self, point: str, n_replicates: int | None = None) -> list[FrozenTrial]:
        """Return all attempts at a point, replicate by replicate; None: at as many as there are."""
        return [trial for slot in self.replicates(point)[:n_replicates] for trial in self.attempts[slot]]

    def was_under_way(self, slot: Slot) -> bool:
        """Return whether the latest attempt was lost or released with epochs that can be resumed."""
        trial = self.attempts[slot][-1]
        return reason_of(trial) in (Reason.LOST, Reason.RELEASED) and trial.last_step is not None

    def never_began(self, slot: Slot) -> bool:
        """Return whether the slot was only queued, and closed when it was claimed, as its study was."""
        attempts = self.attempts.get(slot, ())
        return all(t.state == TrialState.FAIL and reason_of(t) == Reason.CUT_SHORT for t in attempts)

    def _was_cut_short(self, slot: Slot) -> bool:
        accepted = self.accepted(slot)
        return accepted is not None and reason_of(accepted) == Reason.CUT_SHORT

    def next_attempt(self, slot: Slot) -> int:
        """Return the number, from 1, of the next attempt at the slot."""
        return 1 + max((trial.user_attrs["attempt"] for trial in self.attempts.get(slot, [])), default=0)

    def _exhausted(self, slot: Slot) -> bool:
        failed = [t for t in self.attempts.get(slot, []) if t.state == TrialState.FAIL]
        retried = [i for i, trial in enumerate(failed) if trial.user_attrs.get("retry")]
        since_retry = failed[retried[-1] :] if retried else failed
        errors = sum(reason_of(trial) == Reason.ERROR for trial in since_retry)
        lost = [trial for trial in since_retry if reason_of(trial) == Reason.LOST][-LOST_CAP:]
        stuck = len(lost) == LOST_CAP and len({trial.last_step for trial in lost}) == 1
        return errors >= ERROR_CAP or stuck


def slot_of(trial: FrozenTrial) -> Slot:
    """Return the slot that a trial of ours is an attempt at."""
    return Slot(trial.user_attrs["point"], trial.user_attrs["replicate"])


def reason_of(trial: FrozenTrial) -> str:
    """Return the kind of end that a trial's `reason` names; empty where it has none."""
    reason = str(trial.user_attrs.get("reason", ""))  # anybody may have written it
    return reason.split(":")[0]


def told_state(state: str, reason: str) -> str:
    """Return a state as people are told it: some are PRUNED to Optuna, yet no pruner stopped them."""
    kind = reason.split(":")[0]
    return kind if kind in (Reason.DIVERGED, Reason.INFEASIBLE) else state


_OURS = {"point", "replicate", "attempt"}


class Queue:
    """The attempts of one study."""

    def __init__(self, storage: Storage, study: str) -> None:
        self.storage = storage
        self.study = study
        self.study_id = storage.study_id(study)

    def slots(self) -> Slots:
        """Return all slots that have an attempt, with their trials in outline (`hpo.storage.trials`)."""
        return Slots.of(self.storage.outlines.of(self.study_id))

    def enqueue(self, jobs: Iterable[Job], slots: Slots, *, retry: bool = False) -> None:
        """Queue the next attempt at each slot, all or none. Done twice at once, one of them does nothing."""
        trials = {}
        for job in jobs:
            attempt = slots.next_attempt(job.slot)
            attrs = {
                "point": job.slot.point,
                "index": job.index,
                "replicate": job.slot.replicate,
                "attempt": attempt,
                "seeds": list(job.seeds),
            }
            if retry:
                attrs["retry"] = True
            trials[attempt_key(job.slot.point, job.slot.replicate, attempt)] = create_trial(
                state=TrialState.WAITING,
                params=dict(job.params),
                distributions=dict(job.distributions),
                user_attrs=attrs,
            )
        known = [trial._trial_id for attempts in slots.attempts.values() for trial in attempts]
        self.storage.enqueue(self.study_id, trials, after=max(known, default=-1))

    def is_superseded(self, trial: FrozenTrial) -> bool:
        """Return whether another attempt at the same slot comes before this one."""
        if trial.user_attrs["attempt"] == 1:
            return False  # of a slot and an attempt there is one trial, by its key
        rivals = self.slots().attempts[slot_of(trial)]
        return any(r.state != TrialState.FAIL and r.number < trial.number for r in rivals)

    def close(
        self,
        trial_id: int,
        reason: Reason,
        detail: str = "",
        attrs: Mapping[str, Any] | None = None,
        patience_seconds: float = RETRY_SECONDS,
    ) -> bool:
        """End an attempt without a result; False when somebody else had ended it."""
        text = f"{reason}: {detail}" if detail else str(reason)
        try:
            self.storage.finish(
                trial_id,
                TrialState.FAIL,
                attrs={**(attrs or {}), "reason": text},
                patience_seconds=patience_seconds,
            )
        except TrialLost:
            return False
        return True

    def fail_stale_trials(self, lease_seconds: float) -> list[int]:
        """Close the running trials whose worker is gone: dead on this host, or silent for a lease.

        Costs one query where nothing runs, two where something does.

        Returns:
            The numbers of the trials that this call closed.
        """
        running = self.storage.running(self.study_id)
        if not running:
            return []
        stale = set(self.storage.stale(self.study_id, lease_seconds))
        closed = []
        for trial_id, number, owner in running:
            if is_dead(owner):
                detail = f"process {owner['pid']} on {owner['host']} is gone"
            elif trial_id in stale:
                detail = f"no heartbeat from {owner.get('host', 'its worker')} for {lease_seconds:g} s"
            else:
                continue
            if self.close(trial_id, Reason.LOST, detail):
                closed.append(number)
        return closed


@dataclass(frozen=True)
class Claim:
    """A trial that is ours now."""

    study: str
    trial: FrozenTrial
    n_waiting: int
    """How many trials were still waiting behind it; exact below `CLAIM_WINDOW` - 1."""


def claim(storage: Storage, studies: Sequence[str]) -> Claim | None:
    """Take the first waiting trial of these studies that is nobody's; None when there is none."""
    names = {storage.study_id(name): name for name in studies}
    while waiting := storage.waiting(list(names), CLAIM_WINDOW):
        for place, (study_id, trial_id) in enumerate(waiting, start=1):
            if not storage.claim(trial_id, this_process()):
                continue
            trial = storage.trial(trial_id)
            queue = Queue(storage, names[study_id])
            if queue.is_superseded(trial):
                queue.close(trial_id, Reason.SUPERSEDED)
                continue
            return Claim(queue.study, trial, len(waiting) - place)
    return None


@cache
def this_process() -> dict[str, Any]:
    """Return who this process is, so that others on the host can tell at once whether it still lives."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def workers_at(storage: Storage, lease_seconds: float) -> list[str]:
    """Return who trains for the plan of a database now, as `host:pid`."""
    running = {
        trial_id: owner
        for study in storage.study_attrs()
        for trial_id, _, owner in storage.running(storage.study_id(study))
    }
    silent = storage.seconds_since_heartbeat(running)
    alive = [
        owner
        for trial_id, owner in running.items()
        if not is_dead(owner) and abs(silent.get(trial_id, 0.0)) <= lease_seconds
    ]
    return sorted({f"{owner['host']}:{owner['pid']}" for owner in alive})


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Return whether the owner was a process of this host, since it was started, that no longer runs."""
    if not owner or owner["host"] != socket.gethostname() or owner["boot"] != _boot_id():
        return False
    try:
        # a pid is used again, a pid with the same start is not
        return bool(_started(owner["pid"]) != owner["started"])
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True


def is_elsewhere(owner: Mapping[str, Any]) -> bool:
    """Return whether the owner is a process of another machine; another container of this one is not."""
    return bool(owner["boot"].split()[0] != _boot_id().split()[0])


def _started(pid: int) -> float:
    """Return when a process started; on Linux in ticks since boot, which no change of the clock moves."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return float(psutil.Process(pid).create_time())
    fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold spaces
    state, ticks = fields[0], fields[19]
    if state in "ZX":
        raise ProcessLookupError(pid)
    return float(ticks)


@cache
def _boot_id() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    if file.exists():
        # containers share the kernel's boot id but not the process ids
        namespace = Path("/proc/self/ns/pid").readlink() if Path("/proc/self/ns/pid").exists() else ""
        return f"{file.read_text().strip()} {namespace}"
    return f"{platform.node()} {psutil.boot_time():.0f}"
