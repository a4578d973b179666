"""How a plan gets on: what one look at it finds (`hpo.monitor.watch`), and the time that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hpo.monitor.events import Event
from hpo.monitor.status import StudyStatus
from hpo.planning.plan import FINAL, Plan
from hpo.space.parameters import ParamValue


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
    """All seeds together; None before the first epoch."""
    host: str
    pid: int
    """Of the worker's process."""
    is_local: bool
    """Whether the worker is a process of this host."""
    silent_seconds: float
    """Seconds since its last heartbeat, 0 below half a lease; infinite where the process is gone."""
    flags: Sequence[str]
    """Names of findings (`hpo.monitor.diagnostics`)."""

    @property
    def worker(self) -> str:
        """Host and process, as one name."""
        return f"{self.host}:{self.pid}"


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
    """All seeds together."""


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
    n_seeds = plan.options.final_seeds if study == FINAL else plan.options.seeds
    return best.seconds_per_epoch * n_seeds / best.n_seeds


def _n_epochs(plan: Plan, study: str, best: Best | None) -> int:
    """Return how many epochs a trial of a study is going to have, as far as is known."""
    if plan.options.epochs is not None:
        return plan.options.epochs
    config = best.config if best else {}
    if study != FINAL:
        spec = plan.specs[study]
        config = spec.context(config if spec.inherits else None)
    return int(config.get("epochs", 0))
