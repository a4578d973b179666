"""Looks at a plan again and again: how it gets on, what has happened since, and the time that is left.

Everything comes from the database, so workers on other machines are seen like local ones. Only what is new is
read, and what a look has to read is bounded, however many trials there are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from hpo.monitor.results import best_so_far, best_values, deviation, own_params, point_name
from hpo.monitor.status import StudyStatus, study_status
from hpo.planning.closing import trained
from hpo.planning.confirmation import outcome_in_words
from hpo.planning.decisions import TrialRef, best_epoch, epochs_of
from hpo.planning.diagnostics import findings
from hpo.planning.inheritance import best_decided, decided_point
from hpo.planning.manifest import StudyRecord
from hpo.planning.metrics import Metric
from hpo.planning.plan import CLAIMS, CONFIRM, CONTROL_SLOT, FINAL, FINAL_SLOT, PRICE, Plan
from hpo.planning.scheduler import is_orphaned
from hpo.space.parameters import ParamValue
from hpo.storage.queue import Reason, Slot, Slots, SlotState, is_dead, reason_of, this_process, told_state
from hpo.storage.trials import id_of

CATCH_UP = 40
"""Ended trials that one look examines for flags; the latest first, until all have been."""
TITLES = {
    FINAL: "The best configuration on fresh seeds, and the test set",
    CONFIRM: "What was adopted, tried again on fresh seeds",
    CLAIMS: "Cells of claims",
    PRICE: "Points across studies",
}


# --- what one look finds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened: a point ended, a study decided, the final stage ended."""

    event: Literal["point", "study", "final"]
    study: str
    record: Mapping[str, Any]
    """The rest, in plain types."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON line has it."""
        return {"event": self.event, "study": self.study, **self.record}


@dataclass(frozen=True)
class Running:
    """A trial that is being trained now."""

    study: str
    trial: int
    point: str
    params: Mapping[str, ParamValue]
    epochs: int
    """That it is going to have; 0 while it is being prepared."""
    curve: Sequence[float]
    """The objective after each epoch so far, mean over seeds."""
    seconds_per_epoch: float | None
    """All seeds together; None before the first epoch."""
    host: str
    pid: int
    """Of the worker's process."""
    is_local: bool
    """Whether the worker is a process of this host."""
    silent_seconds: float
    """Seconds since its last heartbeat, 0 below half a lease; infinite where the process is gone."""
    flags: Sequence[str]
    """What was found (`hpo.planning.diagnostics`), each in a few words."""

    @property
    def worker(self) -> str:
        """Host and process, as one name."""
        return f"{self.host}:{self.pid}"

    @property
    def seconds_left(self) -> float | None:
        """Of its training; None before the first epoch."""
        rate = self.seconds_per_epoch
        return None if rate is None else rate * (self.epochs - len(self.curve))

    def beyond(self, curve: Sequence[float]) -> float | None:
        """Return its lead over another curve at its last epoch; None where either has no value there."""
        done = len(self.curve)
        return self.curve[-1] - curve[done - 1] if 0 < done <= len(curve) else None


@dataclass(frozen=True)
class Best:
    """The best trial of the search so far."""

    study: str
    trial: int
    params: Mapping[str, ParamValue]
    """What it searched."""
    config: Mapping[str, ParamValue]
    value: float
    """The objective, mean over seeds."""
    deviation: float | None
    """Over seeds; None with one."""
    n_seeds: int
    curve: Sequence[float]
    """The objective after each epoch."""
    seconds_per_epoch: float
    """All seeds together."""


@dataclass(frozen=True)
class StudyProgress:
    """A study of the tree."""

    status: StudyStatus
    title: str
    inherits: str | None
    is_stage: bool
    """Whether it is none of the plan's studies, but its confirmation or its final stage."""
    is_over: bool
    """Nothing more happens to it, unless somebody retries."""
    reasons: Mapping[str, Mapping[str, int]]
    """Why points were pruned, diverged, infeasible or failed, and how many; by these words."""
    n_lost: int
    """Attempts that were lost and are queued again or were."""
    flags: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Numbers of ended trials by what was found in them, as far as they have been examined."""


@dataclass(frozen=True)
class Progress:
    """What one look found."""

    objective: Metric
    studies: Sequence[StudyProgress]
    n_in_plan: int
    """Studies that the plan has, also those that nobody looks at; without the final stage."""
    current: int
    """Which of `studies` is being worked on; else the first that is not over, or the last."""
    running: Sequence[Running]
    best: Best | None
    seconds_left: float | None
    """None: cannot be told yet, or nobody is at work."""
    may_take_longer: bool
    """Whether points may get further seeds, of which that knows nothing."""
    is_test_open: bool
    """Whether the final stage has begun to look at the test set."""
    test: Mapping[str, Any] | None
    """The answer of the final stage, as `hpo final --json` has it."""
    events: Sequence[Event]
    """What has happened since the look before; of the first look: nothing."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return all(study.is_over for study in self.studies)


# --- the looks -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Examined:
    """What is remembered of an ended trial."""

    number: int
    flags: Sequence[str]
    seconds: float


class Watch:
    """Looks at a plan again and again; remembers what cannot change.

    Args:
        plan: read from a storage of its own, which takes no locks.
        names: the studies to look at, parents first; the final stage may be the last.
    """

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self._plan, self._names = plan, names
        self._outlines = plan.storage.outlines
        self._events = {name: _StudyEvents(plan, name) for name in names}
        self._trials: dict[str, list[FrozenTrial]] = {}
        self._slots: dict[str, tuple[int, Slots]] = {}
        self._studies: dict[str, tuple[object, StudyProgress]] = {}
        self._recorded: dict[int, tuple[Mapping[int, float], Mapping[str, Any]]] = {}
        self._examined: dict[str, dict[int, _Examined]] = {name: {} for name in names}
        self._best: Best | None = None
        self._test: Mapping[str, Any] | None = None
        self._at_work = time.monotonic()
        """When trials were seen to wait or to be trained last."""
        self._seen: dict[str, tuple[float, int]] = {}
        """When each worker was seen to train last, and how many trials."""

    def look(self) -> Progress:
        """Return what the database says now.

        Raises:
            DatabaseGoneError: as from `Storage.check_in_place`.
        """
        self._plan.storage.check_in_place()
        records = self._plan.records()
        for name in dict.fromkeys([*self._names, FINAL]):
            self._read(name)
        studies = self._ends([self._study(name, records[name]) for name in self._names], records)
        open_ = [index for index, study in enumerate(studies) if not study.is_over]
        at_work = [index for index in open_ if studies[index].status.points["running"]]
        current = (at_work or open_ or [len(studies) - 1])[0]
        running, best = self._running(), self._find_best(studies, records)
        busy = {each.study for each in running} | {studies[current].status.name}
        studies = [self._with_flags(study) if study.status.name in busy else study for study in studies]
        n_at_once = self._count_at_once()
        left = seconds_left(
            self._plan, studies, running, best, n_at_once=n_at_once, trial_seconds=self._trial_seconds()
        )
        if left is not None:
            left = min(left, self._budget_left(running) / n_at_once)
        return Progress(
            objective=self._plan.objective,
            studies=studies,
            n_in_plan=len(self._plan.specs),
            current=current,
            running=running,
            best=best,
            seconds_left=left,
            may_take_longer=self._plan.races
            and any(each.status.name in self._plan.specs for each in studies if not each.is_over),
            is_test_open=records[FINAL].test_opened is not None
            or any(trial.state != TrialState.WAITING for trial in self._trials[FINAL]),
            test=self._test_result(),
            events=[
                event
                for name in self._names
                for event in self._events[name].find(self._slots[name][1], _decision_of(records[name]))
            ],
        )

    def _budget_left(self, running: Sequence[Running]) -> float:
        """Return the seconds that the workers may still train; infinite where nothing limits them."""
        plan = self._plan
        # what is trained for claims, or across studies, costs nothing of it
        if plan.options.budget is None or not any(each.study in plan.all_names for each in running):
            return math.inf
        return max(0.0, plan.options.budget - math.fsum(each.seconds for each in trained(plan).values()))

    def is_left(self, running: Sequence[Running]) -> bool:
        """Return whether the plan has begun, nothing is queued, and no worker lives that could queue more.

        Args:
            running: as the last look found them. Who has claimed trials is asked where none runs alone: that
                is a look at every trial.
        """
        states = {trial.state for trials in self._trials.values() for trial in trials}
        lease = self._plan.options.lease_seconds
        if TrialState.WAITING in states or any(each.silent_seconds < lease for each in running):
            self._at_work = time.monotonic()
        elif states:
            here = this_process()
            for owner in self._plan.storage.owners([self._plan.storage.study_id(n) for n in self._trials]):
                is_near = (owner["host"], owner["boot"]) == (here["host"], here["boot"])
                # one elsewhere may be between two trials
                if not is_dead(owner) and (is_near or time.monotonic() - self._at_work < lease / 2):
                    return False
            return True
        return False

    def _read(self, name: str) -> None:
        study_id = self._plan.storage.study_id(name)
        self._trials[name] = self._outlines.of(study_id)
        revision = self._outlines.revisions[study_id]
        if name not in self._slots or self._slots[name][0] != revision:
            self._slots[name] = revision, Slots.of(self._trials[name])

    # --- studies -----------------------------------------------------------------------------------------

    def _study(self, name: str, record: StudyRecord) -> StudyProgress:
        revision, slots = self._slots[name]
        if name not in self._studies or self._studies[name][0] != (revision, record):
            trials, spec = self._trials[name], self._plan.specs.get(name)
            progress = StudyProgress(
                status=study_status(self._plan, name, record, trials),
                title=spec.title if spec else TITLES[name],
                inherits=spec.inherits if spec else None,
                is_stage=spec is None,
                is_over=False,
                reasons=_reasons(slots),
                n_lost=sum(reason_of(trial) == Reason.LOST for trial in trials),
            )
            self._studies[name] = (revision, record), progress
        return self._studies[name][1]

    def _ends(
        self, studies: Sequence[StudyProgress], records: Mapping[str, StudyRecord]
    ) -> list[StudyProgress]:
        """Say of each study whether it is over; parents come before children."""
        over: dict[str, bool] = {}
        for study in studies:
            name, points = study.status.name, study.status.points
            if name in (CLAIMS, PRICE) and study.is_stage:
                over[name] = study.status.state == "done"
            elif study.is_stage:
                has_ended = (
                    study.status.state in ("done", "failed") and not points["waiting"] + points["running"]
                )
                over[name] = has_ended or (all(over.values()) and best_decided(self._plan) is None)
            elif over.get(study.inherits or "") and is_orphaned(self._plan, name, records):
                over[name] = True
            else:
                is_decided = records[name].decision is not None
                over[name] = is_decided and not points["waiting"] + points["running"]
        return [replace(study, is_over=over[study.status.name]) for study in studies]

    def _with_flags(self, study: StudyProgress) -> StudyProgress:
        """Add what was found in its ended trials; examine some more of them."""
        examined, (_, slots) = self._examined[study.status.name], self._slots[study.status.name]
        ended = [trial for slot in slots.attempts if (trial := slots.accepted(slot))]
        todo = [trial for trial in ended if id_of(trial) not in examined][-CATCH_UP:]
        recorded = self._attributes_of(todo)
        for trial in todo:
            epochs = epochs_of(recorded[id_of(trial)])
            flags = _flags(self._plan, epochs, is_complete=trial.state == TrialState.COMPLETE)
            examined[id_of(trial)] = _Examined(trial.number, flags, sum(_seconds(epochs)))
        by_flag: dict[str, list[int]] = {}
        for each in sorted(examined.values(), key=lambda each: each.number):
            for flag in each.flags:
                by_flag.setdefault(flag, []).append(each.number)
        return replace(study, flags=by_flag)

    # --- trials ------------------------------------------------------------------------------------------

    def _running(self) -> list[Running]:
        trials = {
            id_of(trial): (name, trial)
            for name in self._names
            for trial in self._trials[name]
            if trial.state == TrialState.RUNNING
        }
        recorded = self._what_they_recorded([trial for _, trial in trials.values()])
        seconds_since_heartbeat = self._plan.storage.seconds_since_heartbeat(trials)
        found = [
            _running_trial(self._plan, name, trial, recorded[id_], seconds_since_heartbeat.get(id_, 0.0))
            for id_, (name, trial) in trials.items()
            if "owner" in recorded[id_]
        ]
        now = time.monotonic()
        at_work = Counter(each.worker for each in found if not each.silent_seconds)
        self._seen |= {worker: (now, n_trials) for worker, n_trials in at_work.items()}
        return sorted(found, key=lambda each: (not each.is_local, each.worker))

    def _what_they_recorded(self, running: Sequence[FrozenTrial]) -> dict[int, Mapping[str, Any]]:
        """Return the attributes of running trials by id, read again once one has reported another epoch."""
        kept = {
            id_of(trial): self._recorded[id_of(trial)]
            for trial in running
            if trial.intermediate_values  # before the first report its configuration may be new
            and self._recorded.get(id_of(trial), ({}, {}))[0] == trial.intermediate_values
        }
        news = [trial for trial in running if id_of(trial) not in kept]
        read = self._attributes_of(news)
        new = {id_of(t): (t.intermediate_values, read[id_of(t)]) for t in news}
        self._recorded = kept | new
        return {id_: attrs for id_, (_, attrs) in self._recorded.items()}

    def _attributes_of(self, outlines: Sequence[FrozenTrial]) -> dict[int, Mapping[str, Any]]:
        whole = self._plan.storage.whole([id_of(trial) for trial in outlines])
        return {id_of(trial): trial.user_attrs for trial in whole}

    def _count_at_once(self) -> int:
        # one that trained a moment ago may be between two trials, which on a busy machine takes its time
        since = time.monotonic() - self._plan.options.lease_seconds / 2
        return sum(n_trials for seen, n_trials in self._seen.values() if seen >= since)

    def _trial_seconds(self) -> dict[str, float]:
        """Return what an ended trial of each study took, on average over those that have been examined."""
        return {
            name: fmean(each.seconds for each in examined.values())
            for name, examined in self._examined.items()
            if examined
        }

    def _find_best(self, studies: Sequence[StudyProgress], records: Mapping[str, StudyRecord]) -> Best | None:
        values = {
            study.status.name: (best["trial"], best["value"])
            for study in studies
            if study.status.name in self._plan.specs and (best := study.status.best)
        }
        found = best_so_far(self._plan, records, values)
        if found is None:
            return None
        _, ref = found
        if self._best is None or (self._best.study, self._best.trial) != (ref.study, ref.trial):
            self._best = _best_trial(self._plan, ref)
        return self._best

    def _test_result(self) -> Mapping[str, Any] | None:
        accepted = self._slots[FINAL][1].accepted(FINAL_SLOT)
        if accepted is not None and self._test is None:
            self._test = self._plan.storage.trial(id_of(accepted)).user_attrs.get("final")
        return self._test


def _reasons(slots: Slots) -> dict[str, Counter[str]]:
    """Return why points ended badly, and how many; by the words that people are told."""
    words = ("pruned", Reason.DIVERGED, Reason.INFEASIBLE, "failed")
    reasons: dict[str, Counter[str]] = {word: Counter() for word in words}
    for slot in slots.attempts:
        reason = slots.accepted_or_latest(slot).user_attrs.get("reason", "")
        state = told_state(slots.state(slot).value, reason)
        if state in reasons:
            reasons[state][reason.removeprefix(f"{state}: ")] += 1
    return reasons


def _flags(plan: Plan, epochs: Sequence[Sequence[Mapping[str, Any]]], *, is_complete: bool) -> list[str]:
    found = findings(epochs, plan.objective, plan.chances, is_complete=is_complete)
    return [finding.remark for finding in found]


def _running_trial(
    plan: Plan, name: str, outline: FrozenTrial, recorded: Mapping[str, Any], silent_seconds: float
) -> Running:
    epochs, owner, config = epochs_of(recorded), recorded["owner"], recorded.get("config", {})
    spec = plan.specs.get(name)
    if is_dead(owner):
        silent_seconds = math.inf
    elif silent_seconds < plan.options.lease_seconds / 2:
        silent_seconds = 0.0
    searched = spec.search if spec and outline.user_attrs["point"] != CONTROL_SLOT.point else {}
    return Running(
        study=name,
        trial=outline.number,
        point=point_name(plan, name, recorded),
        params={axis: config[axis] for axis in searched if axis in config},
        epochs=config.get("epochs", 0),
        curve=[value for _, value in sorted(outline.intermediate_values.items())][: len(epochs)],
        seconds_per_epoch=fmean(_seconds(epochs)) if epochs else None,
        host=owner["host"],
        pid=owner["pid"],
        is_local=owner["host"] == this_process()["host"],
        silent_seconds=silent_seconds,
        flags=_flags(plan, epochs, is_complete=False),
    )


def _best_trial(plan: Plan, ref: TrialRef) -> Best:
    trial = decided_point(plan, ref)
    epochs, seeds = epochs_of(trial.user_attrs), best_values(plan, trial)[plan.objective.name]
    return Best(
        study=ref.study,
        trial=ref.trial,
        params=trial.params,
        config=trial.user_attrs["config"],
        value=trial.value or 0.0,
        deviation=deviation(seeds),
        n_seeds=len(seeds),
        curve=[value for _, value in sorted(trial.intermediate_values.items())],
        seconds_per_epoch=fmean(_seconds(epochs)) if epochs else 0.0,
    )


def _seconds(epochs: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Return how long each epoch took, its seeds together."""
    return [sum(seed["seconds"] for seed in epoch) for epoch in epochs]


# --- what is new -----------------------------------------------------------------------------------------


def _decision_of(record: StudyRecord) -> Mapping[str, Any] | None:
    """Return what a study, or the confirmation, has decided, in plain types and in words."""
    if record.confirmation is not None:
        return {**record.confirmation.to_json(), "text": outcome_in_words(record.confirmation)}
    return record.decision.model_dump(mode="json") if record.decision else None


class _StudyEvents:
    """Finds what is new of a study since it was looked at last."""

    def __init__(self, plan: Plan, study: str) -> None:
        self._plan, self._study = plan, study
        self._slots: Slots | None = None
        self._decision: Mapping[str, Any] | None = None
        self._ended: dict[Slot, int] = {}
        """By slot the number of the trial with which it ended last: a point that failed may end again."""

    def find(self, slots: Slots, decision: Mapping[str, Any] | None) -> list[Event]:
        """Return what has happened since the call before; of the first call: nothing.

        Args:
            slots: the study's trials, at least in outline; the same object where nothing has changed.
            decision: what it has decided by now.
        """
        is_first = self._slots is None
        ended = [] if slots is self._slots else self._newly_ended(slots)
        before, self._slots, self._decision = self._decision, slots, decision
        if is_first:
            return []
        events = [self._end(state, trial) for state, trial in ended]
        if decision is not None and decision != before:
            events.append(Event("study", self._study, decision))
        return events

    def _newly_ended(self, slots: Slots) -> list[tuple[SlotState, FrozenTrial]]:
        """Return the slots that have ended since, each with its trial, and remember these."""
        found = []
        for slot in slots.attempts:
            state, trial = slots.state(slot), slots.accepted_or_latest(slot)
            if not state.is_open and self._ended.get(slot) != trial.number:
                self._ended[slot] = trial.number
                found.append((state, trial))
        return found

    def _end(self, state: SlotState, outline: FrozenTrial) -> Event:
        trial = self._plan.storage.trial(id_of(outline))
        epoch = best_epoch(trial, self._plan.objective)
        is_arm = self._plan.confirms and self._study == CONFIRM
        record = {
            "trial": trial.number,
            "point": point_name(self._plan, self._study, trial.user_attrs),
            # what tells an arm from the others is its name
            "params": {} if is_arm else own_params(self._plan, trial),
            "state": state.value,
            "reason": trial.user_attrs.get("reason", ""),
            self._plan.objective.name: trial.intermediate_values.get(epoch) if epoch else None,
            "best_epoch": epoch,
            "epochs": len(trial.intermediate_values),
        }
        if self._study in self._plan.specs and trial.user_attrs["replicate"] > 0:
            record["further_seeds"] = trial.user_attrs["seeds"]
        if self._study != FINAL:
            return Event("point", self._study, record)
        result = trial.user_attrs.get("final", {})
        answer = {key: result.get(key) for key in ("selected_epoch", "cut_short", "seeds", "test", "std")}
        return Event("final", self._study, record | answer)


# --- the time that is left -------------------------------------------------------------------------------


def seconds_left(
    plan: Plan,
    studies: Sequence[StudyProgress],
    running: Sequence[Running],
    best: Best | None,
    *,
    n_at_once: int,
    trial_seconds: Mapping[str, float],
) -> float | None:
    """Return what remains at the speed so far; None where that cannot be told, or nobody is at work.

    Args:
        plan: that the studies belong to.
        studies: what is to be done.
        running: the trials that are being trained.
        best: the best trial so far: a study without a result yet is taken to cost what it cost.
        n_at_once: how many trials the workers train at a time; they share what remains of a study.
        trial_seconds: what a trial took so far, by study; a study without ended trials is left out.
    """
    if not n_at_once or not running:
        return None
    total = 0.0
    for study in studies:
        if study.is_over:
            continue
        name = study.status.name
        here = [each for each in running if each.study == name]
        rate = _seconds_per_epoch(plan, name, here, best)
        if rate is None:
            return None
        whole = trial_seconds.get(name, rate * _n_epochs(plan, name, best))
        begun = [
            (each.seconds_per_epoch or rate) * (each.epochs - len(each.curve)) if each.epochs else whole
            for each in here
        ]
        n_waiting = study.status.points["waiting"]
        n_busy = max(1, min(n_at_once, n_waiting + len(begun)))
        total += max([(n_waiting * whole + sum(begun)) / n_busy, *begun])
    return total


def _seconds_per_epoch(plan: Plan, study: str, running: Sequence[Running], best: Best | None) -> float | None:
    """Return the time of all seeds of a trial of a study together."""
    rates = [each.seconds_per_epoch for each in running if each.seconds_per_epoch is not None]
    if rates:
        return fmean(rates)
    if best is None:
        return None
    n_seeds = len(plan.seeds) if study in plan.specs else plan.options.final_seeds if study == FINAL else 1
    return best.seconds_per_epoch * n_seeds / best.n_seeds


def _n_epochs(plan: Plan, study: str, best: Best | None) -> int:
    """Return how many epochs a trial of a study is going to have, as far as is known."""
    if plan.options.epochs is not None:
        return plan.options.epochs
    config = best.config if best else {}
    if study in plan.specs:
        spec = plan.specs[study]
        config = spec.context(config if spec.inherits else None)
    return int(config.get("epochs", 0))
