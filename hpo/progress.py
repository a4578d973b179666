"""How a plan gets on, look by look: for the live screen, and for lines and JSON lines of what has happened.

Everything comes from the database, so workers on other machines are seen like local ones. Only what is new is
read, and what a look has to read is bounded, however many trials there are.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from hpo.config import ParamValue
from hpo.decision import best_epoch, epoch_records, recorded_epochs
from hpo.plan import CONTROL_SLOT, FINAL, FINAL_SLOT, Plan
from hpo.queue import Reason, Slot, Slots, SlotState, is_dead, reason_of, this_process
from hpo.results import StudyStatus, findings, study_status

CATCH_UP = 40
"""Ended trials that one look examines for flags; the latest first, until all have been."""
SEEN_SECONDS = 20.0
"""A worker that trained so recently counts as one for the time that is left: it may be between two trials."""
FINAL_TITLE = "The best configuration on fresh seeds, and the test set"
ENDED = (SlotState.COMPLETE, SlotState.PRUNED, SlotState.FAILED)


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
    """Validation macro F1 of each epoch so far, mean over seeds."""
    seconds_per_epoch: float | None
    worker: str
    """host:pid"""
    is_local: bool
    """Whether the worker is a process of this host."""
    silence: float
    """Seconds since its last heartbeat, 0 below half a lease; infinite where the process is gone."""
    flags: Sequence[str]
    """Names of findings (`hpo.diagnostics`)."""


@dataclass(frozen=True)
class Best:
    """The best trial of the search so far."""

    study: str
    trial: int
    params: Mapping[str, ParamValue]
    """What it searched."""
    config: Mapping[str, ParamValue]
    value: float
    """Validation macro F1, mean over seeds."""
    deviation: float | None
    """Over seeds; None with one."""
    n_seeds: int
    curve: Sequence[float]
    """Validation macro F1 of each epoch."""
    seconds_per_epoch: float


@dataclass(frozen=True)
class StudyProgress:
    """A study of the tree."""

    status: StudyStatus
    title: str
    inherits: str | None
    is_over: bool
    """Nothing more happens to it, unless somebody retries."""
    reasons: Mapping[str, Mapping[str, int]]
    """Why points were pruned or failed, and how many; by `pruned` and `failed`."""
    n_lost: int
    """Attempts that were lost and are queued again or were."""
    flags: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Numbers of ended trials by the name of what was found in them, as far as they have been examined."""


@dataclass(frozen=True)
class Event:
    """Something that happened: a point ended, a study decided, the final stage ended."""

    event: Literal["point", "study", "final"]
    study: str
    record: Mapping[str, Any]
    """The rest, in plain types."""

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON line has it."""
        return {"event": self.event, "study": self.study, **self.record}


@dataclass(frozen=True)
class Progress:
    """What one look found."""

    studies: Sequence[StudyProgress]
    current: int
    """Which of `studies` is being worked on; else the first that is not over, or the last."""
    running: Sequence[Running]
    best: Best | None
    seconds_left: float | None
    """None: cannot be told yet, or nobody is at work."""
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
        names: the studies to look at, in order; the final stage may be one.
    """

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self._plan, self._names = plan, names
        self._outlines = plan.storage.outlines
        self._ids = {name: plan.storage.study_id(name) for name in names}
        self._trials: dict[str, list[FrozenTrial]] = {}
        self._slots: dict[str, Slots] = {}
        self._studies: dict[str, tuple[object, StudyProgress]] = {}
        self._ended: dict[str, tuple[int, dict[Slot, int]]] = {}
        self._decided: dict[str, str] = {}
        self._recorded: dict[int, tuple[object, dict[str, Any]]] = {}
        self._examined: dict[str, dict[int, _Examined]] = {name: {} for name in names}
        self._best: tuple[int, Best] | None = None
        self._seen: dict[str, float] = {}

    def look(self) -> Progress:
        """What the database says now."""
        attrs = self._plan.storage.study_attrs()
        studies = self._ends([self._study(name, attrs[name]) for name in self._names], attrs)
        open_ = [index for index, study in enumerate(studies) if not study.is_over]
        at_work = [index for index in open_ if studies[index].status.points["running"]]
        current = (at_work or open_ or [len(studies) - 1])[0]
        running, best = self._running(), self._find_best(studies)
        busy = {each.study for each in running} | {studies[current].status.name}
        studies = [self._with_flags(study) if study.status.name in busy else study for study in studies]
        final = Slots.of(self._trials.get(FINAL, []))
        accepted = final.accepted(FINAL_SLOT)
        return Progress(
            studies=studies,
            current=current,
            running=running,
            best=best,
            seconds_left=self._seconds_left(studies, running, best),
            is_test_open=any(t.state != TrialState.WAITING for t in final.attempts.get(FINAL_SLOT, [])),
            test=self._plan.storage.trial(accepted._trial_id).user_attrs.get("final") if accepted else None,
            events=[event for name in self._names for event in self._events(name, attrs[name])],
        )

    # --- studies -----------------------------------------------------------------------------------------

    def _study(self, name: str, attrs: Mapping[str, Any]) -> StudyProgress:
        trials = self._trials[name] = self._outlines.of(self._ids[name])
        key = (self._outlines.revisions[self._ids[name]], attrs.get("decision"), attrs.get("inherited"))
        if name not in self._studies or self._studies[name][0] != key:
            slots = self._slots[name] = Slots.of(trials)
            spec = self._plan.specs.get(name)
            self._studies[name] = (
                key,
                StudyProgress(
                    status=study_status(self._plan, name, attrs, trials),
                    title=spec.title if spec else FINAL_TITLE,
                    inherits=spec.inherits if spec else None,
                    is_over=False,
                    reasons=_reasons(slots),
                    n_lost=sum(reason_of(trial) == Reason.LOST for trial in trials),
                ),
            )
        return self._studies[name][1]

    def _ends(
        self, studies: Sequence[StudyProgress], attrs: Mapping[str, Mapping[str, Any]]
    ) -> list[StudyProgress]:
        """Says of each study whether it is over; parents come before children."""
        over: dict[str, bool] = {}
        for study in studies:
            name, points = study.status.name, study.status.points
            if name == FINAL:
                over[name] = study.status.state in ("done", "failed") or (
                    all(over.values()) and self._plan.best_decided() is None
                )
                continue
            parent = study.inherits if self._plan.options.inherit == "winners" else None
            # one whose parent decided nothing has nothing to go on from
            orphaned = over.get(parent or "", False) and not attrs[parent or ""].get("decision", {}).get(
                "params"
            )
            over[name] = orphaned or ("decision" in attrs[name] and not points["waiting"] + points["running"])
        return [replace(study, is_over=over[study.status.name]) for study in studies]

    def _with_flags(self, study: StudyProgress) -> StudyProgress:
        """Adds what was found in its ended trials; examines some more of them."""
        name = study.status.name
        examined, slots = self._examined[name], self._slots[name]
        ended = [trial for slot in slots.attempts if (trial := slots.accepted(slot))]
        todo = [trial for trial in ended if trial._trial_id not in examined][-CATCH_UP:]
        recorded = self._all_recorded([trial._trial_id for trial in todo])
        for trial in todo:
            epochs = recorded_epochs(recorded[trial._trial_id])
            flags = _flags(epochs, is_complete=trial.state == TrialState.COMPLETE)
            if reason_of(trial) == Reason.DIVERGED:
                flags.append("diverged")
            seconds = sum(seed["seconds"] for epoch in epochs for seed in epoch)
            examined[trial._trial_id] = _Examined(trial.number, flags, seconds)
        by_flag: dict[str, list[int]] = {}
        for each in sorted(examined.values(), key=lambda each: each.number):
            for flag in each.flags:
                by_flag.setdefault(flag, []).append(each.number)
        return replace(study, flags=by_flag)

    # --- trials ------------------------------------------------------------------------------------------

    def _running(self) -> list[Running]:
        trials = {
            trial._trial_id: (name, trial)
            for name in self._names
            for trial in self._trials[name]
            if trial.state == TrialState.RUNNING
        }
        # what a running trial recorded is read again once it has reported another epoch
        reports = {id_: tuple(trial.intermediate_values.items()) for id_, (_, trial) in trials.items()}
        kept = {id_: self._recorded[id_] for id_ in trials if id_ in self._recorded}
        news = [id_ for id_ in trials if id_ not in kept or not reports[id_] or kept[id_][0] != reports[id_]]
        read = self._all_recorded(news)
        self._recorded = kept | {id_: (reports[id_], read[id_]) for id_ in news}
        silences = self._plan.storage.silences(trials)
        found = [
            _running_trial(self._plan, name, trial, self._recorded[id_][1], silences.get(id_, 0.0))
            for id_, (name, trial) in trials.items()
            if "owner" in self._recorded[id_][1]
        ]
        now = time.monotonic()
        self._seen |= {each.worker: now for each in found if not each.silence}
        return sorted(found, key=lambda each: (not each.is_local, each.worker))

    def _all_recorded(self, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {trial._trial_id: trial.user_attrs for trial in self._plan.storage.whole(trial_ids)}

    def _find_best(self, studies: Sequence[StudyProgress]) -> Best | None:
        found = [
            (study.status.best["value"], study.status.name, study.status.best["trial"])
            for study in studies
            if study.status.best and study.status.name != FINAL
        ]
        if not found:
            return None
        _, name, number = max(found, key=lambda each: each[0])
        trial_id = next(trial._trial_id for trial in self._trials[name] if trial.number == number)
        if self._best is None or self._best[0] != trial_id:
            self._best = trial_id, _best_trial(name, self._plan.storage.trial(trial_id))
        return self._best[1]

    # --- time --------------------------------------------------------------------------------------------

    def _seconds_left(
        self, studies: Sequence[StudyProgress], running: Sequence[Running], best: Best | None
    ) -> float | None:
        """What remains at the speed so far, shared by the workers that are at work.

        An epoch of a study without a result yet is taken to cost what one of the best trial costs.
        """
        now = time.monotonic()
        n_workers = sum(now - seen <= SEEN_SECONDS for seen in self._seen.values())
        if not n_workers or not running:
            return None
        seconds = 0.0
        for study in studies:
            if study.is_over:
                continue
            name, options = study.status.name, self._plan.options
            here = [each for each in running if each.study == name]
            rates = [each.seconds_per_epoch for each in here if each.seconds_per_epoch is not None]
            n_seeds = options.final_seeds if name == FINAL else options.seeds
            if rates:
                rate = fmean(rates)
            elif best is not None:
                rate = best.seconds_per_epoch * n_seeds / best.n_seeds
            else:
                return None
            ended = self._examined[name].values()
            whole = fmean(each.seconds for each in ended) if ended else rate * self._n_epochs(name, best)
            begun = [
                (each.seconds_per_epoch or rate) * (each.epochs - len(each.curve)) if each.epochs else whole
                for each in here
            ]
            n_waiting = study.status.points["waiting"]
            work = n_waiting * whole + sum(begun)
            seconds += max([work / max(1, min(n_workers, n_waiting + len(begun))), *begun])
        return seconds

    def _n_epochs(self, name: str, best: Best | None) -> int:
        if self._plan.options.epochs is not None:
            return self._plan.options.epochs
        config = best.config if best else {}
        epochs = (
            config.get("epochs", 0) if name == FINAL else self._plan.specs[name].context(config)["epochs"]
        )
        return int(epochs)

    # --- events ------------------------------------------------------------------------------------------

    def _events(self, name: str, attrs: Mapping[str, Any]) -> Iterator[Event]:
        """What is new of a study since the last look."""
        slots, is_first = self._slots[name], name not in self._ended
        revision = self._outlines.revisions[self._ids[name]]
        seen, known = self._ended.get(name, (-1, {}))
        if seen != revision:
            for slot, attempts in slots.attempts.items():
                state, trial = slots.state(slot), slots.accepted(slot) or attempts[-1]
                # a point that failed may end once more, after a retry
                if state in ENDED and known.get(slot) != trial.number:
                    known[slot] = trial.number
                    if not is_first:
                        yield self._point_ended(name, state, trial)
            self._ended[name] = revision, known
        decision = attrs.get("decision")
        if decision is not None and self._decided.get(name) != decision["text"]:
            self._decided[name] = decision["text"]
            if not is_first:
                yield Event("study", name, decision)

    def _point_ended(self, name: str, state: SlotState, outline: FrozenTrial) -> Event:
        trial = self._plan.storage.trial(outline._trial_id)
        epoch = best_epoch(trial)
        record = {
            "trial": trial.number,
            "point": trial.user_attrs["point"],
            "params": trial.params or trial.user_attrs.get("config", {}),
            "state": state.value,
            "reason": trial.user_attrs.get("reason", ""),
            "macro_f1": trial.intermediate_values.get(epoch) if epoch else None,
            "best_epoch": epoch,
            "epochs": len(trial.intermediate_values),
        }
        if name != FINAL:
            return Event("point", name, record)
        result = trial.user_attrs.get("final", {})
        answer = {key: result.get(key) for key in ("selected_epoch", "seeds", "test", "std")}
        return Event("final", name, record | answer)


def _reasons(slots: Slots) -> dict[str, Counter[str]]:
    """Why points were pruned or failed, and how many."""
    reasons: dict[str, Counter[str]] = {"pruned": Counter(), "failed": Counter()}
    for slot, attempts in slots.attempts.items():
        state = slots.state(slot).value
        if state in reasons:
            trial = slots.accepted(slot) or attempts[-1]
            reasons[state][trial.user_attrs.get("reason", "").removeprefix("pruned: ")] += 1
    return reasons


def _flags(epochs: Sequence[Sequence[Mapping[str, Any]]], *, is_complete: bool) -> list[str]:
    return list(dict.fromkeys(found.name for found in findings(epochs, is_complete=is_complete)))


def _running_trial(
    plan: Plan, name: str, outline: FrozenTrial, recorded: Mapping[str, Any], silence: float
) -> Running:
    epochs, owner, config = recorded_epochs(recorded), recorded["owner"], recorded.get("config", {})
    spec = plan.specs.get(name)
    if is_dead(owner):
        silence = math.inf
    elif silence < plan.options.lease_seconds / 2:
        silence = 0.0
    searched = spec.search if spec and outline.user_attrs["point"] != CONTROL_SLOT.point else {}
    return Running(
        study=name,
        trial=outline.number,
        point=outline.user_attrs["point"],
        params={axis: config[axis] for axis in searched if axis in config},
        epochs=config.get("epochs", 0),
        curve=[f1 for _, f1 in sorted(outline.intermediate_values.items())][: len(epochs)],
        seconds_per_epoch=fmean(_seconds(epochs)) if epochs else None,
        worker=f"{owner['host']}:{owner['pid']}",
        is_local=owner["host"] == this_process()["host"],
        silence=silence,
        flags=_flags(epochs, is_complete=False),
    )


def _best_trial(name: str, trial: FrozenTrial) -> Best:
    epochs, epoch = epoch_records(trial), best_epoch(trial)
    seeds = [seed["valid_macro_f1"] for seed in epochs[epoch - 1]] if epoch else []
    return Best(
        study=name,
        trial=trial.number,
        params=trial.params,
        config=trial.user_attrs["config"],
        value=trial.value or 0.0,
        deviation=stdev(seeds) if len(seeds) > 1 else None,
        n_seeds=len(seeds),
        curve=[f1 for _, f1 in sorted(trial.intermediate_values.items())],
        seconds_per_epoch=fmean(_seconds(epochs)) if epochs else 0.0,
    )


def _seconds(epochs: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """How long each epoch took, its seeds together."""
    return [sum(seed["seconds"] for seed in epoch) for epoch in epochs]
