"""Samplers: from the name and options of a study file to Optuna's objects, and to points.

A new one is a function here, whose keyword parameters are its options, and a line in `SAMPLERS`. Options are
named as Optuna names them. Seeds come from the plan, never from a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from pydantic import Field

from hpo.errors import InputError, RunError
from hpo.planning._components import Count, Positive, build
from hpo.planning.cma_es import CmaEsSampler, check_installed
from hpo.planning.history import as_shown, for_sampler
from hpo.planning.hub import check_name, from_hub, is_hub
from hpo.space.axes import Axis, Choices
from hpo.space.parameters import ParamValue, ParamValues
from hpo.space.study_file import StudySpec
from hpo.storage.optuna_views import IndexedQmcSampler

MODEL_DRAWS = 100
"""How often a sampler is asked for a point that satisfies the constraints, before chance is."""
GP_DRAWS = 3  # it proposes nearly the same optimum again, at a second or more each time
MAX_DRAWS = 10_000
MAX_REPEATS = 200
"""After so many draws of points that were tried before, one of those that are left is taken."""
AUTO_GP_POINTS = 250
"""So many points are drawn by GP before CMA-ES goes on: as in AutoSampler."""
QMC_POINTS = 10_007
"""Of a study with more, two may be the same. A prime, as multiples of a power of two would fall into one part
of a Sobol sequence's space; no larger, as to skip a hundred million samples takes a second."""


@dataclass(frozen=True)
class Place:
    """Which point of which study a sampler is made for."""

    index: int
    point_seed: int
    study_seed: int
    choices: tuple[str, ...]
    """The axes that are lists of two values or more."""


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
    # drawn again, a point comes after the first draws of all that a study has, and may have later
    return IndexedQmcSampler(qmc_type, seed=place.study_seed, index=place.index, stride=QMC_POINTS)


def _gp(place: Place, *, n_startup_trials: Positive = 10) -> BaseSampler:
    return optuna.samplers.GPSampler(n_startup_trials=n_startup_trials, seed=place.point_seed)


def _cma_es(place: Place, *, popsize: Annotated[int, Field(ge=4)] | None = None) -> BaseSampler:
    if place.choices:
        name = place.choices[0]
        raise InputError(
            f"name = 'cma-es' searches ranges alone, and search.{name} is a list of values; write it as a "
            "range, {low = …, high = …}, or take 'tpe'"
        )
    return CmaEsSampler(seed=place.point_seed, popsize=popsize)


def _auto(place: Place) -> BaseSampler:
    """Choose as AutoSampler of OptunaHub does for one objective.

    It counts what has ended, where the number of the point decides here: so nobody's choice depends on when.
    """
    if place.choices:
        return _tpe(place)
    if place.index < AUTO_GP_POINTS:
        return _gp(place)
    return CmaEsSampler(seed=place.point_seed, n_source=AUTO_GP_POINTS)


SAMPLERS: dict[str, Callable[..., BaseSampler | None]] = {
    "grid": _grid,
    "tpe": _tpe,
    "random": _random,
    "qmc": _qmc,
    "gp": _gp,
    "cma-es": _cma_es,
    "auto": _auto,
}


def build_sampler(spec: StudySpec, index: int, seed: int) -> BaseSampler | None:
    """Make the sampler of a study for one of its points; None for a grid, which samples nothing.

    Args:
        spec: of the study.
        index: of the point.
        seed: the plan's.

    Raises:
        InputError: an unknown name or option, or a value that it cannot have; the text starts with its key.
    """
    choices = [name for name, axis in _free(spec).items() if isinstance(axis, CategoricalDistribution)]
    place = Place(index, _seed(seed, spec.name, index), _seed(seed, spec.name), tuple(choices))
    if is_hub(spec.sampler):
        theirs: BaseSampler = from_hub("sampler", spec.sampler, place.point_seed)
        return theirs
    return build("sampler", SAMPLERS, spec.sampler, place)


def check_sampler(spec: StudySpec, *, here: bool) -> None:
    """Check that the sampler of a study can be made, for its first point and for its last.

    Args:
        spec: of the study.
        here: whether what it needs is to be on this machine; else it is loaded by nobody.

    Raises:
        InputError: as from `build_sampler`.
    """
    if is_hub(spec.sampler) and not here:
        check_name("sampler", spec.sampler)
        return
    made = [build_sampler(spec, index, 0) for index in (0, (spec.trials or 1) - 1)]
    if here and isinstance(made[-1], CmaEsSampler):
        from_ = f" from point {AUTO_GP_POINTS + 1} on" if spec.sampler.name == "auto" else ""
        check_installed(f"sampler.name = {spec.sampler.name!r}{from_}")


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Return the axes of a study in Optuna's terms; a list is categorical, its order means nothing."""
    return {
        name: _distribution(axis, spec.parameters.numbers.get(name)) for name, axis in spec.search.items()
    }


def _free(spec: StudySpec) -> dict[str, BaseDistribution]:
    return {name: axis for name, axis in distributions(spec).items() if not axis.single()}


def _distribution(axis: Axis, kind: type | None) -> BaseDistribution:
    if isinstance(axis, Choices):
        return CategoricalDistribution(axis.choices)
    if kind is int:
        return IntDistribution(int(axis.low), int(axis.high), axis.log, int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, axis.log, axis.step)


def draw(
    study: optuna.Study,
    trial: FrozenTrial,
    spec: StudySpec,
    known: ParamValues,
    index: int,
    seed: int,
    tried: Collection[str] = (),
    imported: Sequence[FrozenTrial] = (),
    discarded: Collection[int] = (),
) -> dict[str, ParamValue]:
    """Draw one point of a sampled study that satisfies its constraints.

    What breaks a constraint is drawn again, here, before there is anything to train. Nothing is written but
    what Optuna's samplers write for their neighbours (the attribute `relative_params` of the trial). With
    the random and QMC samplers the point depends on seed, study and index alone.

    Args:
        study: the Optuna study; its points are what TPE and GP learn from, as `for_sampler` shows them.
        trial: the running trial that the point is for.
        spec: of the study.
        known: the complete configuration that the point is laid over, as from `StudySpec.context`.
        index: place of the point in its study, from 0 to `spec.trials` − 1.
        seed: the plan's seed.
        tried: the points that are not to be drawn once more, by `StudySpec.key`.
        imported: known points, as `known_trials` has them, that TPE and GP learn from as well.
        discarded: numbers of the trials that nobody is to learn from.

    Raises:
        RunError: 10,000 draws found no new point that satisfies the constraints.
    """
    listed = spec.listed(known) if tried else None
    left = [point for point in listed or () if spec.key(known, point) not in tried]
    space, free = distributions(spec), _free(spec)
    sampler = build_sampler(spec, index, seed)
    assert sampler is not None, f"{spec.name} is a grid"
    chance = optuna.samplers.RandomSampler(seed=_seed(seed, spec.name, index, "chance"))
    shown = for_sampler(study, free, imported, discarded)
    trial = as_shown(shown, trial)
    sampler.before_trial(shown, trial)
    model_draws = GP_DRAWS if isinstance(sampler, optuna.samplers.GPSampler) else MODEL_DRAWS
    n_repeats = 0
    for n in range(MAX_DRAWS):
        source = sampler if n < model_draws else chance
        values = source.sample_relative(shown, trial, free)
        for name, axis in free.items():
            if name not in values:
                values[name] = source.sample_independent(shown, trial, name, axis)
        point = {name: _value(axis, values.get(name)) for name, axis in space.items()}
        if spec.feasible({**known, **point}):
            if not tried or spec.key(known, point) not in tried:
                return point
            n_repeats += 1
            if left and n_repeats >= MAX_REPEATS:  # chance may take long to hit the last ones
                return left[_seed(seed, spec.name, index, "rest") % len(left)]
    raise RunError(
        f"study {spec.name!r}: {MAX_DRAWS:,} draws found no new point{_demands(spec, known)}; "
        "widen [search], relax its constraints, or ask for fewer trials"
    )


def _value(axis: BaseDistribution, value: Any) -> ParamValue:
    """Return the drawn value in its parameter's type and range; where none was drawn, the only one."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[0] if axis.single() else value  # type: ignore[return-value]
    assert isinstance(axis, IntDistribution | FloatDistribution)
    if axis.single():
        return axis.low
    # the back transformation of a log axis may miss its end by one bit, which Optuna would refuse later
    return type(axis.low)(min(max(value, axis.low), axis.high))


def _demands(spec: StudySpec, known: ParamValues) -> str:
    texts = [str(constraint) for constraint in spec.constraints]
    given = {name for constraint in spec.constraints for name in constraint.names} - spec.search.keys()
    texts += [f"{name} = {known[name]}" for name in sorted(given) if name in known]
    return f" with {' and '.join(texts)}" if texts else ""


def _seed(*parts: object) -> int:
    """Return a seed of 32 bits that is the same in every process and for every Python version."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4])
