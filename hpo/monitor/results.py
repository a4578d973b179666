"""What the trials of a plan found, as plain records: rows of points, the best configuration, the final one.

Nothing in this room writes, imports torch, or looks anywhere else than into the database.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import InputError, MissingError
from hpo.monitor.diagnostics import Finding, findings
from hpo.planning.decisions import best_epoch, epochs_of
from hpo.planning.inheritance import best_decided
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL, FINAL_SLOT, Plan
from hpo.planning.studies import lineage
from hpo.space.parameters import ParamValue
from hpo.storage.queue import Slots, reason_of, slot_of


@dataclass(frozen=True)
class TrialRow:
    """One point of a study, as a table shows it. Metrics are of the best epoch, means over seeds."""

    trial: int
    point: str
    params: Mapping[str, ParamValue]
    state: str
    reason: str
    earlier: Sequence[str]
    """How earlier attempts at the point ended, as `trial N: reason`."""
    checkpoint_notes: Sequence[str]
    """Which checkpoints an attempt had to put aside, as `trial N: file put aside: why`."""
    attempt: int
    epochs: int
    best_epoch: int | None
    metrics: Mapping[str, float | None]
    std: Mapping[str, float | None]
    """Standard deviations of the metrics over seeds; None with one."""
    inactive: Sequence[str]
    """Names of the parameters that mean nothing in its configuration."""
    seconds: float
    history: Sequence[Sequence[Mapping[str, Any]]]
    """Per epoch, per seed, what training recorded."""
    findings: Sequence[Finding]
    """What is wrong with the point."""
    traceback: str = ""
    """Of an error in training."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo show --json` prints it."""
        return asdict(self)


def own_params(trial: FrozenTrial) -> Mapping[str, ParamValue]:
    """Return what tells a trial from the others of its study."""
    # a control or the final trial searched nothing: its whole configuration is what it is
    return trial.params or trial.user_attrs.get("config", {})


def rows(plan: Plan, name: str, trials: Sequence[FrozenTrial] | None = None) -> list[TrialRow]:
    """Return one row a point of a study: its accepted trial, or else its latest.

    Args:
        plan: that the study belongs to.
        name: of the study.
        trials: all of the study, by number, where they have been read already.

    Raises:
        InputError: an unknown study.
    """
    if name != FINAL:
        plan.with_ancestors([name])
    slots = Slots.of(plan.trials(name) if trials is None else trials)
    chosen = map(slots.accepted_or_latest, slots.attempts)
    return [_row(plan, trial, slots) for trial in sorted(chosen, key=lambda t: t.user_attrs["index"])]


def _row(plan: Plan, trial: FrozenTrial, slots: Slots) -> TrialRow:
    history, values = epochs_of(trial.user_attrs), best_values(plan, trial)
    slot = slot_of(trial)
    state = slots.state(slot).value
    return TrialRow(
        trial=trial.number,
        point=slot.point,
        params=trial.params,
        state=state,
        reason=trial.user_attrs.get("reason", ""),
        traceback=trial.user_attrs.get("traceback", ""),
        earlier=[
            f"trial {each.number}{_by(each)}: {each.user_attrs['reason']}, "
            f"epochs finished: {len(each.intermediate_values)}; now trial {trial.number}"
            for each in slots.attempts[slot]
            if each.number < trial.number and "reason" in each.user_attrs
        ],
        checkpoint_notes=[
            f"trial {each.number}: {note}"
            for each in slots.attempts[slot]
            for note in each.user_attrs.get("notes", [])
        ],
        attempt=trial.user_attrs["attempt"],
        epochs=len(history),
        best_epoch=best_epoch(trial, plan.objective),
        seconds=sum(seed["seconds"] for records in history for seed in records),
        history=history,
        metrics={name: fmean(seeds) if seeds else None for name, seeds in values.items()},
        std={name: deviation(seeds) for name, seeds in values.items()},
        inactive=trial.user_attrs.get("inactive", []),
        findings=findings(history, plan.objective, plan.chances, is_complete=state == "complete"),
    )


def best_values(plan: Plan, trial: FrozenTrial) -> dict[str, list[float]]:
    """Return the metrics of a trial at its best epoch, by seed; of each none before any report."""
    epoch = best_epoch(trial, plan.objective)
    seeds = trial.user_attrs[f"epoch:{epoch}"] if epoch else []
    return {name: [seed["metrics"][name] for seed in seeds] for name in plan.recipe.metrics}


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds; None where there is none."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def attempt_state(trial: FrozenTrial) -> str:
    """Return how an attempt stands; one that was lost, released or superseded is no failure of the point."""
    return (reason_of(trial) or "fail") if trial.state == TrialState.FAIL else trial.state.name.lower()


def _by(trial: FrozenTrial) -> str:
    owner = trial.user_attrs.get("owner")
    return f" ({owner['host']}, process {owner['pid']})" if owner else ""


def find_trial(plan: Plan, text: str) -> tuple[str, FrozenTrial]:
    """Return the trial that `STUDY/NUMBER` names.

    Raises:
        InputError: not of that form, or an unknown study.
        MissingError: no trial of that number.
    """
    name, slash, number = text.rpartition("/")
    if not slash or not number.isdecimal() or len(number) > 9:
        raise InputError(f"{text!r} does not name a trial; write STUDY/NUMBER, like learning-rate/2")
    if name != FINAL:
        plan.with_ancestors([name])
    study_id = plan.storage.study_id(name)
    trial = plan.storage.numbered(study_id, int(number))
    if trial is None:
        n_trials = sum(plan.storage.counts({study_id: 0}).values())
        raise MissingError(f"{text}: study {name!r} has {n_trials} trials, counted from 0")
    return name, trial


def final_trial(plan: Plan) -> FrozenTrial | None:
    """Return the trial of the final stage, once it has a result; one that diverged has none."""
    trial = Slots.of(plan.trials(FINAL)).accepted(FINAL_SLOT)
    return trial if trial is not None and trial.state == TrialState.COMPLETE else None


def final_result(plan: Plan) -> dict[str, Any]:
    """Return the result of the final stage.

    Raises:
        MissingError: it has not ended yet.
    """
    trial = final_trial(plan)
    if trial is None:
        raise MissingError(f"{plan.storage.name}: the final stage has no result yet; `hpo run` ends with it")
    result: dict[str, Any] = trial.user_attrs["final"]
    return result


def answer_text(result: Mapping[str, Any], objective: Metric) -> str:
    """Return the result of the final stage in words."""
    value = objective.with_unit(result["test"][objective.name], result["std"][objective.name])
    return f"test {objective.label} {value}, at epoch {result['selected_epoch']}"


def best(plan: Plan) -> dict[str, Any]:
    """Return the best decided configuration so far, with where it comes from.

    Raises:
        MissingError: no study has decided yet.
    """
    decided = {name: decision for name in plan.specs if (decision := plan.decision(name)) and decision.params}
    if not decided:
        raise MissingError(
            f"{plan.storage.name}: no study has a winner yet; `hpo status` shows how far they are"
        )
    # what goes to the final stage, or as long as no last study has decided, what was decided last
    chosen = best_decided(plan)
    name = chosen.study if chosen else list(decided)[-1]
    decision = decided[name]
    trial = final_trial(plan)
    return {
        "study": name,
        "source": decision.source.model_dump() if decision.source else None,
        "value": decision.value,
        "tested": decision.tested,
        "params": decision.params,
        "decisions": {
            each.name: decided[each.name].text for each in lineage(plan.specs, name) if each.name in decided
        },
        "test": trial.user_attrs["final"]["test"] if trial else None,
    }
