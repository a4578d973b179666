"""Two trained configurations beside each other: what differs, and what difference that makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo._files import user_path
from hpo.errors import InputError, MissingError
from hpo.monitor.results import DISCARDED, best_values, final_result, final_trial, find_trial
from hpo.planning.decisions import TrialRef
from hpo.planning.inheritance import decided_point
from hpo.planning.metrics import Metric
from hpo.planning.plan import Plan
from hpo.planning.verdicts import Comparison, compare, default_delta, in_words
from hpo.space.parameters import ParamValue

Pair = tuple[ParamValue | None, ParamValue | None]
"""A parameter or fact of both; None where there is none."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    config: Mapping[str, ParamValue]
    facts: Mapping[str, str]
    """What else results depend on."""
    values: Mapping[int, float]
    """The objective by seed."""


@dataclass(frozen=True)
class PairComparison:
    """What differs between two trained configurations, and what difference that makes."""

    metric: Metric
    part: str
    """Of the data, on which both are compared: "validation" or "test"."""
    sides: tuple[Side, Side]
    differing: Mapping[str, Pair]
    """Parameters and facts in which the two differ."""
    n_shared_seeds: int
    comparison: Comparison
    """Of the second against the first."""

    @property
    def text(self) -> str:
        """The verdict in words."""
        first, second = self.sides
        found = f"{second.name} against {first.name}: {in_words(self.comparison, self.metric)}"
        if self.comparison.interval is None:
            return found
        if self.n_shared_seeds > 1:
            return f"{found} (seed by seed, on the {self.n_shared_seeds} that both have)"
        return f"{found} (by their means, as the two share no two seeds)"

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo compare --json` prints it."""
        found = self.comparison
        return {
            "metric": self.metric.name,
            "part": self.part,
            "sides": [asdict(side) for side in self.sides],
            "differing": {name: list(values) for name, values in self.differing.items()},
            "verdict": found.verdict,
            "difference": self.metric.score(found.difference),
            "interval": found.interval and sorted(map(self.metric.score, found.interval)),
            "seeds": found.n_seeds,
            "shared_seeds": self.n_shared_seeds,
        }


def compare_trained(
    first: str, second: str, plan: Callable[[], Plan], delta: float | None = None
) -> PairComparison:
    """Compare two trials of a plan on the validation part, or two final stages on the test part.

    Args:
        first: STUDY/NUMBER, a trial of the plan; or folder or database URL of a plan, for its final stage.
        second: likewise; it is compared with the first.
        plan: opens the plan that trials are of.
        delta: differences below it do not matter; None: half a point of a share, of other metrics nothing.

    Raises:
        InputError: the two cannot be compared; the text says why.
        MissingError: there is no such plan or trial, or it has no result.
    """
    if first == second:
        raise InputError(f"{first} is compared with itself; give another")
    are_plans = _is_plan(first), _is_plan(second)
    if are_plans == (True, True):
        plans = Plan.at(first), Plan.at(second)
        _check_comparable((first, second), plans)
        defaults = _shared_defaults(*plans)
        sides = tuple(
            _final_side(name, each, defaults) for name, each in zip((first, second), plans, strict=True)
        )
        part, metric = "test", plans[0].objective
    elif are_plans == (False, False):
        opened = plan()
        sides = _trial_side(opened, first), _trial_side(opened, second)
        part, metric = "validation", opened.objective
    else:
        raise InputError(
            f"{first} and {second}: one is a plan, one a trial; give two plans, or two trials of one, as "
            "STUDY/NUMBER"
        )
    one, other = sides
    scores = [{seed: metric.score(value) for seed, value in side.values.items()} for side in sides]
    least = default_delta(metric) if delta is None else delta
    return PairComparison(
        metric=metric,
        part=part,
        sides=(one, other),
        differing=_differing(one, other),
        n_shared_seeds=len(one.values.keys() & other.values.keys()),
        comparison=compare(scores[1], scores[0], least),
    )


def _is_plan(text: str) -> bool:
    return "://" in text or user_path(text).is_dir()


def _check_comparable(names: tuple[str, str], plans: tuple[Plan, Plan]) -> None:
    """Check that two plans were tuned for the same on the same data.

    Raises:
        InputError: they were not.
    """
    first, second = plans
    if first.objective != second.objective:
        metrics = [f"{each.objective.label} ({each.objective.direction})" for each in plans]
        raise InputError(
            f"{names[0]} was tuned for {metrics[0]}, {names[1]} for {metrics[1]}: no number is of both"
        )
    if first.identity.fingerprint != second.identity.fingerprint:
        data = [f"{each.options.data}, fingerprint {each.identity.fingerprint}" for each in plans]
        raise InputError(
            f"{names[0]} and {names[1]} have other data ({data[0]}; {data[1]}): "
            "a difference would be one of data"
        )


def _shared_defaults(first: Plan, second: Plan) -> dict[str, ParamValue]:
    """Return what parameters of a recipe are for a plan that was begun before it had them."""
    ours, theirs = ((each.recipe.name, each.recipe.sources) for each in (first, second))
    return {**first.schema.defaults, **second.schema.defaults} if ours == theirs else {}


def _final_side(name: str, plan: Plan, defaults: Mapping[str, ParamValue]) -> Side:
    trial, result = final_trial(plan), final_result(plan)
    assert trial is not None  # it has a result
    values = {each["seed"]: each[plan.objective.name] for each in result["per_seed"]}
    return Side(name, {**defaults, **result["config"]}, _facts(plan, trial), values)


def _trial_side(plan: Plan, text: str) -> Side:
    name, trial = find_trial(plan, text)
    if trial.state != TrialState.COMPLETE:
        state = trial.user_attrs.get("reason") or trial.state.name.lower()
        raise MissingError(f"{text} has no result to be compared: {state}")
    trial = decided_point(plan, TrialRef(study=name, trial=trial.number))
    values = best_values(plan, trial)[plan.objective.name]
    seeds = dict(zip(trial.user_attrs["seeds"], values, strict=True))
    facts, why = _facts(plan, trial), plan.record(name).discarded.get(trial.number)
    if why is not None:
        facts[DISCARDED] = why
    return Side(f"{name}/{trial.number}", trial.user_attrs["config"], facts, seeds)


def _facts(plan: Plan, trial: FrozenTrial) -> dict[str, str]:
    return {
        "recipe": plan.recipe.name,
        "precision": plan.identity.precision,
        "kernels": plan.identity.kernels,
        "threads": str(plan.identity.threads),
        "processor": trial.user_attrs.get("processor", ""),
        "torch": trial.user_attrs.get("versions", {}).get("torch", ""),
    }


def _differing(one: Side, other: Side) -> dict[str, Pair]:
    ours, theirs = {**one.config, **one.facts}, {**other.config, **other.facts}
    pairs = {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
