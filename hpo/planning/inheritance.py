"""What a study starts from; the configurations of its points, its control and the final stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median_low

from optuna.trial import FrozenTrial, TrialState

from hpo.planning.confirmation import Arms, Change, Obstacle, first_broken, without
from hpo.planning.decisions import Inherited, TrialRef, best_epoch, pooled
from hpo.planning.manifest import StudyRecord
from hpo.planning.plan import CLAIMS, CONFIRM, CONTROL_SLOT, FINAL, FINAL_SLOT, PRICE, Plan
from hpo.planning.race import looks
from hpo.planning.studies import lineage, published_config
from hpo.space.constraints import Constraint
from hpo.space.parameters import ParamValue, ParamValues
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Queue, Slot
from hpo.storage.trials import id_of


def inherited_by(plan: Plan, name: str) -> Inherited | None:
    """Return the configuration that a study starts from; None where nothing is inherited, or not yet.

    Raises:
        InputError: `--inherit published`, and an ancestor has no published choice.
    """
    parent, start = plan.specs[name].inherits, plan.specs[name].start
    if start is not None:
        params = {**start.params, **(plan.options.set or {})}
        return Inherited(study=start.origin, source=None, params=plan.schema.complete(params))
    if parent is None:
        return None
    if plan.options.inherit == "published":
        return Inherited(
            study=parent, source=None, params=published_config(plan.specs, parent, plan.options.set)
        )
    decision = plan.decision(parent)
    if decision is None or not decision.params:
        return None
    return Inherited(study=parent, source=decision.result, params=decision.params, value=decision.value)


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
    """Return the trial that a decision names."""
    trial = plan.storage.numbered(plan.storage.study_id(source.study), source.trial)
    assert trial is not None
    return trial


def replicate_of(plan: Plan, source: TrialRef, replicate: int) -> FrozenTrial | None:
    """Return the COMPLETE trial of a replicate of the point that a decision names; None where it has none."""
    first = decided_trial(plan, source)
    if replicate == 0:
        return first
    slots = Queue(plan.storage, source.study).slots()
    found = slots.accepted(Slot(first.user_attrs["point"], replicate))
    if found is None or found.state != TrialState.COMPLETE:
        return None
    return plan.storage.trial(id_of(found))


def decided_point(plan: Plan, source: TrialRef) -> FrozenTrial:
    """Return the point that a decision names as one trial, all replicates pooled by which it was judged."""
    first = decided_trial(plan, source)
    if not plan.races or source.study not in plan.specs:
        return first
    slots, decision = Queue(plan.storage, source.study).slots(), plan.decision(source.study)
    finish = decision.race.finish_of(source.trial) if decision and decision.race else None
    n_judged = None if finish is None else looks(plan.options.max_seeds).index(finish.seeds) + 1
    accepted = map(slots.accepted, slots.replicates(first.user_attrs["point"])[:n_judged])
    done = [id_of(trial) for trial in accepted if trial and trial.state == TrialState.COMPLETE]
    if not done:  # the study was closed before any had ended, and what was cut short decided
        return first
    return pooled(list(plan.storage.whole(done)), plan.objective)


def config_of_trial(plan: Plan, name: str, trial: FrozenTrial, params: ParamValues) -> dict[str, ParamValue]:
    """Return the configuration that a claimed trial trains."""
    if name in (CLAIMS, PRICE) and name not in plan.specs:
        cell: dict[str, ParamValue] = json.loads(trial.user_attrs["point"])
        return plan.schema.complete(cell)
    record = plan.record(name)
    inherited = record.inherited
    if name == CONFIRM and plan.confirms:
        assert record.arms is not None  # likewise
        return record.arms.configs[trial.user_attrs["point"]]
    if trial.user_attrs["point"] in (CONTROL_SLOT.point, FINAL_SLOT.point):
        assert inherited is not None  # written before the trial was queued
        return control_config(plan, inherited)
    return config_of(plan, name, inherited, params)


def best_decided(plan: Plan) -> Inherited | None:
    """Return what the final stage trains: as of then, what is left of the best that the search found."""
    records = plan.records()
    begun = records[FINAL].inherited
    if begun is None and plan.confirms and (confirmation := records[CONFIRM].confirmation) is not None:
        return confirmation.inherited
    return begun or best_of_search(plan, records)


def chosen_epoch(plan: Plan) -> int:
    """Return the epoch that validation has chosen for what the final stage trains.

    That is the best one of the trial which was decided for; of what a confirmation left, the middle one of
    its seeds. Of what nobody has trained exactly so it is the last.
    """
    best = best_decided(plan)
    assert best is not None  # written before the final stage was queued
    if best.source is not None:
        trials = [decided_point(plan, best.source)]
    else:
        trials = [
            trial
            for trial in (plan.trials(CONFIRM) if plan.confirms else [])
            if trial.state == TrialState.COMPLETE and trial.user_attrs.get("config") == best.params
        ]
    epochs = [epoch for trial in trials if (epoch := best_epoch(trial, plan.objective)) is not None]
    return median_low(epochs) if epochs else int(control_config(plan, best)["epochs"])


def best_of_search(plan: Plan, records: Mapping[str, StudyRecord] | None = None) -> Inherited | None:
    """Return the best of the studies that none inherits from.

    Args:
        plan: that was searched.
        records: as `Plan.records` has them, where they have been read already.
    """
    records = records or plan.records()
    parents = {study.inherits for study in plan.specs.values()}
    leaves = [(name, records[name].decision) for name in plan.specs if name not in parents]
    decided = [(name, decision) for name, decision in leaves if decision and decision.params]
    if not decided:
        return None
    name, decision = max(decided, key=lambda pair: plan.objective.score(pair[1].value or 0.0))
    return Inherited(study=name, source=decision.result, params=decision.params, value=decision.value)


# --- the confirmation ------------------------------------------------------------------------------------


def arms_of(plan: Plan) -> Arms | None:
    """Return what the confirmation of a decided plan compares; None where no study has a result.

    Args:
        plan: bound to its recipe, which knows what means nothing.
    """
    records = plan.records()
    best = best_of_search(plan, records)
    if best is None:
        return None
    chosen = best.model_copy(update={"params": control_config(plan, best)})
    chain = chain_of(plan, best.study)
    root, inherited = records[chain[0].name].decision, inherited_by(plan, chain[0].name)
    assert root is not None  # what comes after it has decided
    start = root.params if inherited is None else control_config(plan, inherited)
    changes: dict[str, dict[str, ParamValue]] = {}
    at = dict(start)
    for study in chain:
        decision = records[study.name].decision
        assert decision is not None
        changed = {name: value for name, value in decision.params.items() if value != at[name]}
        if decision.adopted and changed:
            changes[study.name] = changed
        at |= changed
    found = []
    at = dict(start)
    for name, change in changes.items():
        before = {param: at[param] for param in change}
        found.append(_change(plan, name, change, before, without(start, changes, [name]), chosen))
        at |= change
    return Arms(chosen=chosen, start=start, changes=tuple(found))


def _change(
    plan: Plan,
    name: str,
    change: dict[str, ParamValue],
    before: dict[str, ParamValue],
    params: dict[str, ParamValue],
    chosen: Inherited,
) -> Change:
    constraint = first_broken(params, constraints_on(plan, chosen.study), [name], plan.schema)
    obstacle = None
    if params == chosen.params:
        obstacle = Obstacle.OVERRULED
    elif constraint:
        obstacle = Obstacle.CONSTRAINT
    elif plan.schema.effective(params) == plan.schema.effective(chosen.params):
        obstacle = Obstacle.NO_EFFECT
    elif plan.specs[name].choose is not None:
        obstacle = Obstacle.CHOSEN
    is_config = obstacle != Obstacle.CONSTRAINT
    return Change(
        study=name,
        params=change,
        before=before,
        without=params if is_config else None,
        obstacle=obstacle,
        constraint="" if is_config else constraint,
    )


def chain_of(plan: Plan, name: str) -> list[StudySpec]:
    """Return the studies whose decisions are in what a study hands on, in order, the study itself last."""
    return lineage(plan.specs, name) if plan.options.inherit == "winners" else [plan.specs[name]]


def constraints_on(plan: Plan, name: str) -> dict[str, tuple[Constraint, ...]]:
    """Return what has to hold in what a study hands on, by the study that demands it; "" for the recipe."""
    studies = {study.name: study.constraints for study in chain_of(plan, name)}
    return {"": plan.schema.parsed_constraints, **studies}
