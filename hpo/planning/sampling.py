"""Samplers and pruners: from the names and options of a study file to Optuna's objects, and to points.

A new one is a function here, whose keyword parameters are its options, and a line in its table. Options are
named as Optuna names them; steps are epochs, counted from 1. Seeds come from the plan, never from a file.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict, Field, ValidationError, validate_call

from hpo.errors import InputError, RunError, StudyFileError, did_you_mean
from hpo.space.axes import Axis, Choices
from hpo.space.constraints import NUMBERS
from hpo.space.parameters import Params, ParamValue, as_written, demand
from hpo.space.study_file import Component, StudySpec

T = TypeVar("T")

MODEL_DRAWS = {"gp": 3}  # it proposes nearly the same optimum again, at a second or more each time
MODEL_DRAWS_ELSE = 100
"""How often a sampler is asked for a point that satisfies the constraints, before chance is."""
MAX_DRAWS = 10_000
QMC_POINTS = 10_007
"""Of a study with more, two may be the same. A prime, as multiples of a power of two would fall into one part
of a Sobol sequence's space; no larger, as to skip a hundred million samples takes a second."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Place:
    """Which point of which study a sampler is made for."""

    index: int
    point_seed: int
    study_seed: int


@dataclass(frozen=True)
class Runs:
    """What a pruner has to know of the runs that it judges."""

    epochs: int
    n_classes: int


# --- samplers ------------------------------------------------------------------------------------------


class _QmcSampler(optuna.samplers.QMCSampler):
    """Optuna counts the samples of a study in the database, where two workers can read one number."""

    def __init__(self, place: Place, qmc_type: str) -> None:
        super().__init__(qmc_type=qmc_type, scramble=True, seed=place.study_seed)
        # drawn again, a point comes after the first draws of all that a study has, and may have later
        self._sample_ids = itertools.count(place.index, QMC_POINTS)

    def _find_sample_id(self, study: optuna.Study, search_space: Mapping[str, BaseDistribution]) -> int:
        return next(self._sample_ids)


def _grid(place: Place) -> None:
    """Sample nothing: `StudySpec.grid` has the points."""


def _random(place: Place) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=place.point_seed)


def _tpe(place: Place, *, n_startup_trials: Count = 10, n_ei_candidates: Positive = 24) -> BaseSampler:
    return optuna.samplers.TPESampler(
        n_startup_trials=n_startup_trials,
        n_ei_candidates=n_ei_candidates,
        multivariate=True,
        constant_liar=True,
        seed=place.point_seed,
    )


def _qmc(place: Place, *, qmc_type: Literal["sobol", "halton"] = "sobol") -> BaseSampler:
    return _QmcSampler(place, qmc_type)


def _gp(place: Place, *, n_startup_trials: Positive = 10) -> BaseSampler:
    return optuna.samplers.GPSampler(n_startup_trials=n_startup_trials, seed=place.point_seed)


SAMPLERS: dict[str, Callable[..., BaseSampler | None]] = {
    "grid": _grid,
    "tpe": _tpe,
    "random": _random,
    "qmc": _qmc,
    "gp": _gp,
}


# --- pruners; each is told what it judges ----------------------------------------------------------------


def _none(runs: Runs) -> BasePruner:
    return optuna.pruners.NopPruner()


def _median(
    runs: Runs,
    *,
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials
    )


def _percentile(
    runs: Runs,
    *,
    percentile: Annotated[float, Field(ge=0, le=100)],
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> BasePruner:
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials
    )


def _successive_halving(
    runs: Runs,
    *,
    min_resource: Positive = 1,
    reduction_factor: Annotated[int, Field(ge=2)] = 4,
    min_early_stopping_rate: Count = 0,
    bootstrap_count: Count = 0,
) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count
    )


def _hyperband(
    runs: Runs,
    *,
    min_resource: Positive = 1,
    reduction_factor: Annotated[int, Field(ge=2)] = 3,
    bootstrap_count: Count = 0,
) -> BasePruner:
    return optuna.pruners.HyperbandPruner(min_resource, runs.epochs, reduction_factor, bootstrap_count)


def _patient(
    runs: Runs,
    *,
    patience: Count,
    min_delta: Annotated[float, Field(ge=0)] = 0.0,
    wrapped: dict[str, Any] | None = None,
) -> BasePruner:
    inner = None
    if wrapped is not None:
        if not isinstance(wrapped.get("name"), str):
            raise InputError(f"wrapped.name is missing; known: {', '.join(PRUNERS)}")
        inner = _build("wrapped", PRUNERS, Component.model_validate(wrapped), runs)
    return optuna.pruners.PatientPruner(inner, patience, min_delta)


def _threshold(
    runs: Runs,
    *,
    lower: float | None = None,
    upper: float | None = None,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
) -> BasePruner:
    if lower is None and upper is None:
        raise InputError("lower is missing; 'threshold' needs lower or upper, as lower = 0.15")
    if lower is not None and upper is not None and lower > upper:
        raise InputError(f"lower = {lower}: is above upper = {upper}")
    return optuna.pruners.ThresholdPruner(lower, upper, n_warmup_steps, interval_steps)


def _chance(
    runs: Runs,
    *,
    factor: Annotated[float, Field(gt=0)] = 1.5,
    at_most: Annotated[float, Field(gt=0, le=1)] = 0.15,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
) -> BasePruner:
    """Stop what is no better than chance, whose macro F1 is one divided by the number of classes.

    With few classes that is so much that a network which is slow to learn may be below it for a while: what
    is above `at_most` goes on.
    """
    lower = min(factor / runs.n_classes, at_most)
    return optuna.pruners.ThresholdPruner(lower, None, n_warmup_steps, interval_steps)


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": _none,
    "median": _median,
    "percentile": _percentile,
    "successive-halving": _successive_halving,
    "hyperband": _hyperband,
    "patient": _patient,
    "threshold": _threshold,
    "chance": _chance,
}


def check(spec: StudySpec, file: Path) -> None:
    """Check what only Optuna's side knows: the sampler, the pruner, and their options.

    Raises:
        StudyFileError: an unknown name or option, or a value that it cannot have.
    """
    try:
        _build("sampler", SAMPLERS, spec.sampler, Place(0, 0, 0))
        build_pruner(spec, Runs(epochs=1, n_classes=2))
    except InputError as error:
        raise StudyFileError(file, str(error)) from None


def build_pruner(spec: StudySpec, runs: Runs) -> BasePruner:
    """Make the pruner of a study for such runs.

    Raises:
        InputError: as `check`.
    """
    return _build("pruner", PRUNERS, spec.pruner, runs)


def distribution(name: str, axis: Axis) -> BaseDistribution:
    """Return the axis of a parameter in Optuna's terms; a list is categorical, its order means nothing."""
    if isinstance(axis, Choices):
        return CategoricalDistribution(axis.choices)
    if NUMBERS[name] is int:
        return IntDistribution(int(axis.low), int(axis.high), axis.log, int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, axis.log, axis.step)


def draw(
    study: optuna.Study, trial: FrozenTrial, spec: StudySpec, known: Params, index: int, seed: int
) -> dict[str, ParamValue]:
    """Draw one point of a sampled study that satisfies its constraints.

    What breaks a constraint is drawn again, here, before there is anything to train. Nothing is written but
    what Optuna's samplers write for their neighbours (the attribute `relative_params` of the trial). With
    the random and QMC samplers the point depends on seed, study and index alone.

    Args:
        study: the Optuna study; its trials are what TPE and GP learn from. Those without the study's own
            parameters, as a control's, are not shown to them.
        trial: the running trial that the point is for.
        spec: of the study.
        known: the complete configuration that the point is laid over, as from `StudySpec.context`.
        index: place of the point in its study, from 0 to `spec.trials` − 1.
        seed: the plan's seed.

    Raises:
        RunError: 10,000 draws found no point that satisfies the constraints.
    """
    space = {name: distribution(name, axis) for name, axis in spec.search.items()}
    free = {name: axis for name, axis in space.items() if not axis.single()}
    place = Place(index, _seed(seed, spec.name, index), _seed(seed, spec.name))
    sampler = _build("sampler", SAMPLERS, spec.sampler, place)
    assert sampler is not None, f"{spec.name} is a grid"
    chance = optuna.samplers.RandomSampler(seed=_seed(seed, spec.name, index, "chance"))
    shown = _Samples(study, free)
    model_draws = MODEL_DRAWS.get(spec.sampler.name, MODEL_DRAWS_ELSE)
    for n in range(MAX_DRAWS):
        source = sampler if n < model_draws else chance
        values = source.sample_relative(shown, trial, free)
        for name, axis in free.items():
            if name not in values:
                values[name] = source.sample_independent(shown, trial, name, axis)
        point = {name: _value(axis, values.get(name)) for name, axis in space.items()}
        if spec.feasible({**known, **point}):
            return point
    raise RunError(
        f"study {spec.name!r}: {MAX_DRAWS:,} draws found no point with {_demands(spec, known)}; "
        "widen [search] or relax its constraints"
    )


class _Samples(optuna.Study):
    """A study as its samplers see it: without the finished trials that are no points of this space."""

    def __init__(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._space = space

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, states, use_cache)
        return [trial for trial in trials if not trial.state.is_finished() or self._is_sample(trial)]

    def _is_sample(self, trial: FrozenTrial) -> bool:
        return all(trial.distributions.get(name) == axis for name, axis in self._space.items())


def _value(axis: BaseDistribution, value: Any) -> ParamValue:
    """Return the drawn value in its parameter's type and range; where none was drawn, the only one."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[0] if axis.single() else value  # type: ignore[return-value]
    assert isinstance(axis, IntDistribution | FloatDistribution)
    if axis.single():
        return axis.low
    # the back transformation of a log axis may miss its end by one bit, which Optuna would refuse later
    return type(axis.low)(min(max(value, axis.low), axis.high))


def _demands(spec: StudySpec, known: Params) -> str:
    texts = [str(constraint) for constraint in spec.constraints]
    given = {name for constraint in spec.constraints for name in constraint.names} - spec.search.keys()
    texts += [f"{name} = {known[name]}" for name in sorted(given)]
    return " and ".join(texts)


def _build(where: str, table: Mapping[str, Callable[..., T]], component: Component, argument: object) -> T:
    """Call a builder of a table with the options of a component.

    Raises:
        InputError: an unknown name or option, or a value that it cannot have; the text starts with its key.
    """
    name = component.name
    if name not in table:
        raise InputError(f"{where}.name = {name!r} is not known; {did_you_mean(name, table)}")
    parameters = inspect.signature(table[name]).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in component.options:
        if option not in options:
            hint = did_you_mean(option, options) if options else "it has none"
            raise InputError(f"{where}.{option} is not an option of {name!r}; {hint}")
    builder = validate_call(config=ConfigDict(strict=True, allow_inf_nan=False))(table[name])
    try:
        with _experimental_allowed():
            return builder(argument, **component.options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "missing_keyword_only_argument":
            raise InputError(f"{where}.{option} is missing; {name!r} needs it") from None
        raise InputError(f"{where}.{option} = {as_written(first['input'])}: {demand(first)}") from None
    except InputError as error:
        raise InputError(f"{where}.{error}") from None


@contextmanager
def _experimental_allowed() -> Iterator[None]:
    """Silence warnings of parts whose interface may change; the studies' files name them on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _seed(*parts: object) -> int:
    """Return a seed of 32 bits that is the same in every process and for every Python version."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4])
