"""What a study starts from; the configurations of its points, its control and the final stage."""

from __future__ import annotations

import json

from optuna.trial import FrozenTrial

from hpo.planning.decisions import Inherited, TrialRef
from hpo.planning.plan import CLAIMS, CONTROL_SLOT, FINAL, FINAL_SLOT, Plan
from hpo.planning.studies import published_config
from hpo.space.parameters import ParamValue, ParamValues


def inherited_by(plan: Plan, name: str) -> Inherited | None:
    """Return the configuration that a study starts from; None where nothing is inherited, or not yet.

    Raises:
        InputError: `--inherit published`, and an ancestor has no published choice.
    """
    parent = plan.specs[name].inherits
    if parent is None:
        return None
    if plan.options.inherit == "published":
        return Inherited(study=parent, source=None, params=published_config(plan.specs, parent))
    decision = plan.decision(parent)
    if decision is None or not decision.params:
        return None
    return Inherited(study=parent, source=decision.source, params=decision.params, value=decision.value)


def context_of(plan: Plan, name: str, inherited: Inherited | None) -> dict[str, ParamValue]:
    """Return what a point of a study is laid over: defaults, inherited or base, fixed, `--epochs`."""
    params = plan.specs[name].context(inherited.params if inherited else None)
    if plan.options.epochs is not None:
        params["epochs"] = plan.options.epochs
    return params


def config_of(
    plan: Plan, name: str, inherited: Inherited | None, point: ParamValues
) -> dict[str, ParamValue]:
    """Return the complete configuration of a point."""
    return plan.schema.complete({**context_of(plan, name, inherited), **point})


def control_config(plan: Plan, inherited: Inherited) -> dict[str, ParamValue]:
    """Return the inherited configuration as the study's control trains it: with `--epochs` applied."""
    epochs = plan.options.epochs
    return plan.schema.complete({**inherited.params, **({} if epochs is None else {"epochs": epochs})})


def decided_trial(plan: Plan, source: TrialRef) -> FrozenTrial:
    """Return the COMPLETE trial that a decision names."""
    trial = plan.storage.numbered(plan.storage.study_id(source.study), source.trial)
    assert trial is not None
    return trial


def config_of_trial(plan: Plan, name: str, trial: FrozenTrial, params: ParamValues) -> dict[str, ParamValue]:
    """Return the configuration that a claimed trial trains."""
    if name == CLAIMS and name not in plan.specs:
        cell: dict[str, ParamValue] = json.loads(trial.user_attrs["point"])
        return plan.schema.complete(cell)
    inherited = plan.record(name).inherited
    if trial.user_attrs["point"] in (CONTROL_SLOT.point, FINAL_SLOT.point):
        assert inherited is not None  # written before the trial was queued
        return control_config(plan, inherited)
    return config_of(plan, name, inherited, params)


def best_decided(plan: Plan) -> Inherited | None:
    """Return what the final stage trains: as of then, the best of the studies that none inherits from."""
    parents, records = {study.inherits for study in plan.specs.values()}, plan.records()
    leaves = [(name, record.decision) for name, record in records.items() if name not in parents]
    decided = [(name, decision) for name, decision in leaves if decision and decision.params]
    begun = records[FINAL].inherited
    if begun is not None or not decided:
        return begun
    name, decision = max(decided, key=lambda pair: plan.objective.score(pair[1].value or 0.0))
    return Inherited(study=name, source=decision.source, params=decision.params, value=decision.value)
