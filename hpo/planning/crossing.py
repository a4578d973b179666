"""Points that cross studies: the space that the studies of a plan span together, and what is trained of it.

A cell is a combination of points, one of each study that led to the configuration that the search chose, laid
over one another as the plan would have done, had each of them been chosen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from optuna.trial import FrozenTrial

from hpo.errors import InputError
from hpo.planning.decisions import Inherited, TrialRef, best_epoch, epochs_of
from hpo.planning.inheritance import best_of_search, chain_of, constraints_on, context_of, control_config
from hpo.planning.manifest import StudyRecord
from hpo.planning.metrics import Metric
from hpo.planning.plan import PRICE, Plan
from hpo.planning.price import Crossing, Evidence, Price, at_most_better, at_most_missed
from hpo.planning.reuse import is_from_another_plan
from hpo.space.parameters import ParamValue, ParamValues, canonical_json
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Job, Reason, Slot, Slots, reason_of

MAX_CELLS, MAX_LEVELS = 5_000, 30
"""Of the space and of each study; where there are more, the worst points of the studies are left out."""
POINT_KEY = "point:"
"""Attributes that hold the points, one each: no database takes all of many in one."""

Config = dict[str, ParamValue]
Cells = dict[str, Config]
"""By what they train."""


@dataclass(frozen=True)
class _Trained:
    """What was found of a configuration."""

    source: TrialRef
    params: Config
    seeds: Mapping[int, float]
    """The objective by seed, at the best epoch of their mean."""

    @property
    def value(self) -> float:
        return math.fsum(self.seeds.values()) / len(self.seeds)

    def at(self, seeds: Container[int]) -> _Trained:
        """Return it at these seeds alone: a race has given it more than points across studies get."""
        return replace(self, seeds={seed: value for seed, value in self.seeds.items() if seed in seeds})


@dataclass(frozen=True)
class _Space:
    """All that the studies span."""

    chosen: Inherited
    chain: Sequence[StudySpec]
    cells: Cells
    trained: Mapping[str, _Trained]
    """By the studies, likewise; also what is no cell, as before a later study fixed something else."""
    n_epochs: int
    """Of all seeds that the studies trained."""

    @property
    def untried(self) -> Cells:
        """The cells that no study has trained."""
        return {key: cell for key, cell in self.cells.items() if key not in self.trained}


def open_price(plan: Plan, share: float) -> None:
    """Draw points across studies, as many as a share of the search's epochs trains; keep those drawn before.

    Args:
        plan: bound to its recipe, and decided.
        share: of the epochs that the search has trained.

    Raises:
        InputError: there is nothing that crosses studies.
    """
    if PRICE in plan.specs:
        raise InputError(f"the plan has a study {PRICE!r}, whose name the points across studies would need")
    space = _space(plan)
    untried = list(space.untried.items())
    if not untried:
        raise InputError("the studies have tried every combination of their points: nothing can be missed")
    random.Random(plan.options.seed).shuffle(untried)
    n_each = int(space.chosen.params["epochs"]) * len(plan.seeds)
    n_points = min(len(untried), max(1, round(share * space.n_epochs / n_each)))
    if not plan.has_price:
        inherited = space.chosen.model_dump(mode="json")
        plan.storage.create_study(PRICE, {"inherited": inherited}, plan.objective.direction)
    study_id = plan.storage.study_id(PRICE)
    # the same points in the same order whoever draws them; their number comes last, and counts
    for place in range(plan.record(PRICE).n_points or 0, n_points):
        plan.storage.set_study_attr(study_id, f"{POINT_KEY}{place}", untried[place][1])
    if n_points > (plan.record(PRICE).n_points or 0):
        plan.storage.set_study_attr(study_id, "n_points", n_points)


def crossing_jobs(plan: Plan) -> list[Job]:
    """Return the points across studies that are to be trained, in their order."""
    attrs = plan.storage.study_attrs()[PRICE]
    points = [attrs[f"{POINT_KEY}{place}"] for place in range(attrs.get("n_points", 0))]
    return [Job(Slot(canonical_json(point)), place, plan.seeds) for place, point in enumerate(points)]


def price_of(plan: Plan) -> Price:
    """Return what the points across studies say, once all have ended.

    Args:
        plan: bound to its recipe.
    """
    space, objective, trials = _space(plan), plan.objective, plan.trials(PRICE)
    crossed = _trained(plan, PRICE, trials)
    chosen = space.trained[_key(plan, space.chosen.params)].at(plan.seeds)
    n_tried = len(Slots.of(trials).attempts)
    n_better = sum(objective.gain(each.value, chosen.value) > 0 for each in crossed.values())
    best = max(crossed.values(), key=lambda each: objective.score(each.value), default=None)
    return Price(
        value=chosen.value,
        cells=len(space.cells),
        n_seen=len(space.cells) - len(space.untried),
        n_tried=n_tried,
        n_better=n_better,
        at_most_better=at_most_better(len(space.untried) - n_tried, n_tried, n_better),
        share=sum(map(_n_epochs, trials)) / space.n_epochs,
        best=best and _crossing(best, chosen),
        at_most=at_most_missed(_evidence(plan, space, crossed), objective) if crossed else None,
    )


def _crossing(found: _Trained, chosen: _Trained) -> Crossing:
    other = {name: value for name, value in found.params.items() if value != chosen.params[name]}
    return Crossing(source=found.source, params=found.params, searched=other, value=found.value)


def _space(plan: Plan) -> _Space:
    best = best_of_search(plan)
    if best is None:
        raise InputError("no study has a result")
    chain = chain_of(plan, best.study)
    chosen = best.model_copy(update={"params": control_config(plan, best)})
    trained: dict[str, _Trained] = {}
    levels, n_epochs = list[list[Config]](), 0
    for study in chain:
        trials, record = plan.trials(study.name), plan.record(study.name)
        found = _trained(plan, study.name, trials, without=record.discarded)
        trained = {**found, **trained}
        levels.append(_levels(study, record, found.values(), plan.objective))
        n_epochs += sum(map(_n_epochs, trials))
    if len(chain) < 2:
        raise InputError(f"only one study led to what the plan chose, {best.study}: nothing crosses it")
    return _Space(chosen, chain, _cells(plan, chosen.params, chain, _few(levels)), trained, n_epochs)


def _n_epochs(trial: FrozenTrial) -> int:
    """Return how many epochs of single seeds a trial trained, here or in another plan.

    One that took over a result of this plan trained none.
    """
    if reason_of(trial) == Reason.REUSED and not is_from_another_plan(trial):
        return 0
    return len(trial.intermediate_values) * len(trial.user_attrs.get("seeds", ()))


def _key(plan: Plan, params: ParamValues) -> str:
    return canonical_json(plan.schema.effective(params))


_NO_RESULT = (Reason.DIVERGED, Reason.INFEASIBLE)


def _trained(
    plan: Plan, name: str, trials: Sequence[FrozenTrial], without: Container[int] = ()
) -> dict[str, _Trained]:
    """Return what the trials of a study found, by what they trained.

    Of points that diverged on any seeds, broke a constraint or are discarded with any, there is nothing.
    """
    objective, found, slots = plan.objective, dict[str, _Trained](), Slots.of(trials)
    accepted = {slot: trial for slot in slots.attempts if (trial := slots.accepted(slot))}
    out = {
        slot.point
        for slot, trial in accepted.items()
        if trial.number in without or reason_of(trial) in _NO_RESULT
    }
    for slot, trial in accepted.items():
        if slot.point in out:
            continue
        epoch = best_epoch(trial, objective)
        if epoch is None:
            continue
        records = epochs_of(trial.user_attrs)[epoch - 1]
        seeds = {record["seed"]: record["metrics"][objective.name] for record in records}
        params = plan.schema.effective(trial.user_attrs["config"])
        key = canonical_json(params)
        known = found.get(key)
        # further seeds of a point are a replicate of it
        source = known.source if known else TrialRef(study=name, trial=trial.number)
        found[key] = _Trained(source, params, {**(known.seeds if known else {}), **seeds})
    return found


def _names(study: StudySpec) -> list[str]:
    """Return the parameters that a study decides: to keep what it inherited undoes what it fixes, too."""
    return sorted({*study.search, *study.fixed})


def _levels(
    study: StudySpec, record: StudyRecord, found: Iterable[_Trained], objective: Metric
) -> list[Config]:
    """Return what a study tried of its parameters: its choice first, then by value, the inherited last."""
    assert record.decision is not None  # as of all that led to what was chosen
    ranked = sorted(found, key=lambda each: -objective.score(each.value))
    configs = [record.decision.params, *(each.params for each in ranked)]
    configs += [record.inherited.params] if record.inherited else []
    levels = [{name: config[name] for name in _names(study)} for config in configs]
    return list({canonical_json(level): level for level in levels}.values())[:MAX_LEVELS]


def _few(levels: Sequence[Sequence[Config]]) -> list[list[Config]]:
    """Leave out the last levels of the studies that have most, until the space is small enough."""
    left = [list(each) for each in levels]
    while math.prod(map(len, left)) > MAX_CELLS:
        max(left, key=len).pop()
    return left


def _cells(
    plan: Plan, chosen: Config, chain: Sequence[StudySpec], levels: Sequence[Sequence[Config]]
) -> Cells:
    """Return every combination of levels that satisfies the constraints, and the chosen one in any case."""
    first = plan.record(chain[0].name).inherited
    start = context_of(plan, chain[0].name, first)
    demanded = [each for some in constraints_on(plan, chain[-1].name).values() for each in some]
    configs = [chosen]
    for combination in product(*levels):
        config = dict(start)
        for level in combination:
            config.update(level)
        if plan.schema.first_broken(demanded, config) is None:
            configs.append(config)
    cells = [plan.schema.effective(config) for config in configs]
    return {canonical_json(cell): cell for cell in cells}


def _evidence(plan: Plan, space: _Space, crossed: Mapping[str, _Trained]) -> Evidence:
    trained = {**space.trained, **crossed}
    axes = [_names(study) for study in space.chain]
    numbers: list[dict[str, int]] = [{} for _ in axes]

    def levels_of(params: ParamValues) -> list[int]:
        keys = [canonical_json({name: params[name] for name in names}) for names in axes]
        return [number.setdefault(key, len(number)) for key, number in zip(keys, numbers, strict=True)]

    objective = plan.objective
    return Evidence(
        levels=np.array([levels_of(each.params) for each in trained.values()]),
        scores=[[objective.score(value) for value in each.seeds.values()] for each in trained.values()],
        cells=np.array([levels_of(cell) for cell in space.cells.values()]),
        chosen=list(space.cells).index(_key(plan, space.chosen.params)),
    )
