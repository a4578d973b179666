"""What a plan has trained, as trackers of experiments have it: a run a trial, and one a study above them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import zip_longest
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning.decisions import best_epoch, epochs_of, test_epochs_of
from hpo.planning.plan import FINAL, Plan
from hpo.space.parameters import ParamValue, canonical_json
from hpo.storage.queue import Reason, reason_of, told_state
from hpo.storage.trials import ATTEMPT_KEY

STUDY, TRIAL = "study", "trial"
COMPLETE, RUNNING, FAILED = "complete", "running", "error"
"""Of the states that `Run.state` may have, those that trackers have a word of their own for."""
DIVERGED, DISCARDED = Reason.DIVERGED.value, results.DISCARDED
NEVER_TRAINED = (Reason.SUPERSEDED, Reason.LOST, Reason.RELEASED, Reason.CUT_SHORT)
"""Who ended so before an epoch has nothing to show: another attempt stands for the point, or nothing does."""


@dataclass(frozen=True)
class Point:
    """A value of a metric."""

    step: int
    """The epoch, counted from 1."""
    time: float
    """When it ended, in seconds since 1970, as far as the seconds that were spent on epochs tell."""
    value: float


@dataclass(frozen=True)
class Run:
    """A trial, or a study with its trials below it."""

    id: str
    """The same for the same trial whenever and wherever it is exported, other plans' trials have others."""
    kind: str
    """`study` or `trial`."""
    name: str
    """STUDY or STUDY/NUMBER."""
    study: str
    parent: str | None
    """The id of the study's run; None of a study."""
    state: str
    """As `hpo export` has it: complete, pruned, diverged, discarded, running, error, lost, …; of a study as
    `hpo status`."""
    began: float
    """In seconds since 1970."""
    ended: float | None
    params: Mapping[str, ParamValue]
    tags: Mapping[str, str]
    """What is said in words: why it ended, the decision and what fresh seeds say of it."""
    metrics: Mapping[str, float]
    """Of the best epoch, means over seeds; of a study those of what it has decided."""
    series: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """By epoch, means over seeds."""

    @property
    def digest(self) -> str:
        """A text that is equal exactly for equal runs: who has it already need not write the run again."""
        return _hashed(asdict(self))


def runs_of(plan: Plan) -> Iterator[Run]:
    """Yield the runs of a plan, each study before its trials.

    Studies without a trial that began are left out, and so are trials that never trained anything, and those
    that others put into a study.
    """
    said, records = results.confirmed_in_words(plan), plan.records()
    confirmation = results.confirmation(plan) if said else None
    verdicts = {each.study: each.verdict for each in confirmation.decisions} if confirmation else {}
    statuses = {each.name: each for each in status(plan)}
    for name, record in records.items():
        trials = [trial for trial in plan.trials(name) if _has_begun(trial)]
        if not trials:
            continue
        first, stands = trials[0], statuses[name]
        decision = record.decision
        of_study = {
            "recipe": plan.recipe.name,
            "data": plan.options.data,
            "decision": stands.decision,
            "configuration": canonical_json(decision.params) if decision and decision.params else "",
            "verdict": verdicts.get(name, "not tested" if decision and not decision.tested else ""),
            "fresh_seeds": said.get(name, ""),
        }
        ends = [trial.datetime_complete for trial in trials]
        is_over = stands.state in ("done", "failed")
        best = stands.best
        study = Run(
            id=_hashed([name, plan.identity.fingerprint, _identity(first)])[:32],
            kind=STUDY,
            name=name,
            study=name,
            parent=None,
            state=stands.state,
            began=_seconds(first.datetime_start),
            ended=max(map(_seconds, filter(None, ends)), default=None) if is_over else None,
            params={},
            tags=_told(of_study),
            metrics={plan.objective.name: best["value"]} if best and best["value"] is not None else {},
        )
        yield study
        for trial in trials:
            if _has_something_to_show(trial):
                yield _run_of(plan, trial, study, record.discarded)


def _has_begun(trial: FrozenTrial) -> bool:
    return ATTEMPT_KEY in trial.user_attrs and trial.datetime_start is not None


def _has_something_to_show(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.RUNNING or reason_of(trial) in NEVER_TRAINED:
        return "epoch:1" in trial.user_attrs
    return True


def _run_of(plan: Plan, trial: FrozenTrial, study: Run, discarded: Mapping[int, str]) -> Run:
    attrs, state = trial.user_attrs, results.attempt_state(trial, discarded)
    reason = results.reason_text(trial, discarded)
    seeds = results.best_values(plan, trial)
    metrics = {name: results.mean(values) for name, values in seeds.items() if values}
    if study.name == FINAL and "final" in attrs:
        metrics |= {f"test_{name}": value for name, value in attrs["final"]["test"].items()}
    return Run(
        id=_hashed([study.id, _identity(trial)])[:32],
        kind=TRIAL,
        name=f"{study.name}/{trial.number}",
        study=study.name,
        parent=study.id,
        state=told_state(state, reason),
        began=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete) if trial.datetime_complete else None,
        params=attrs.get("config", {}),
        tags=_told(
            {
                "point": attrs["point"],
                "replicate": attrs["replicate"],
                "attempt": attrs["attempt"],
                "seeds": " ".join(map(str, attrs["seeds"])),
                "searched": " ".join(trial.params),
                "best_epoch": best_epoch(trial, plan.objective) or "",
                "reason": reason,
                "notes": "; ".join(attrs.get("notes", [])),
                "host": attrs.get("owner", {}).get("host", ""),
            }
        ),
        metrics=metrics,
        series=_series(trial),
    )


def _series(trial: FrozenTrial) -> dict[str, list[Point]]:
    """Return the metrics of a trial by epoch, named as `hpo export --rows epochs` names them."""
    found: dict[str, list[Point]] = {}
    time = _seconds(trial.datetime_start)
    epochs = zip_longest(epochs_of(trial.user_attrs), test_epochs_of(trial.user_attrs), fillvalue=())
    for number, (seeds, tests) in enumerate(epochs, start=1):
        time += sum(seed["seconds"] for seed in seeds)
        values: dict[str, list[Any]] = {"train_loss": [seed["train_loss"] for seed in seeds]}
        for prefix, records in (("valid", [seed["metrics"] for seed in seeds]), ("test", tests)):
            for record in records:
                for name, value in record.items():
                    if name != "seed" or prefix == "valid":
                        values.setdefault(f"{prefix}_{name}", []).append(value)
        for name, of_seeds in values.items():
            if of_seeds and None not in of_seeds:
                found.setdefault(name, []).append(Point(number, time, fmean(of_seeds)))
    return found


def _identity(trial: FrozenTrial) -> list[Any]:
    """Return what tells a trial from all others, of copies of the database and of other plans too."""
    assert trial.datetime_start is not None
    return [trial.number, trial.datetime_start.astimezone().timestamp(), trial.user_attrs.get("owner")]


def _told(tags: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in tags.items() if value != ""}


def _seconds(time: datetime | None) -> float:
    assert time is not None
    return time.astimezone().timestamp()  # Optuna's times are local ones


def _hashed(content: Any) -> str:
    return hashlib.sha256(repr(content).encode("utf-8", "surrogateescape")).hexdigest()
