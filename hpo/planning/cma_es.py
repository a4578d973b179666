"""CMA-ES, rebuilt at each draw from the points that have ended: nothing of it is stored.

Optuna's own sampler keeps its state in the database as a pickle, and so runs whatever somebody writes there.
Here the state follows from the study: its points, in their order, are told in generations, each when all its
points have ended. What workers draw meanwhile comes from the state before, and is told with its own
generation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import InputError, install

if TYPE_CHECKING:
    from cmaes import CMA

Vector = npt.NDArray[np.float64]

FIRST_DEVIATION = 1 / 6
"""Of the first generation about the middle of each axis, as Optuna has it: all but 0.3 % fall on the axis."""
LEAST_DEVIATION = 1e-8
BEST_SHARE = 0.1
"""So many of the points that tell where to begin count as good (Nomura et al. 2021, as in cmaes)."""
MORE_POINTS = 2
"""Where the search has come to a standstill, it begins anew with so many times the points a generation
(Auger & Hansen 2005)."""


class CmaEsSampler(BaseSampler):
    """Samples ranges alone, of any kind: a whole number or a step is the middle of a cell, and rounded to.

    Args:
        seed: of the one point that is drawn.
        popsize: points of a generation; None: 4 + 3 ln(axes).
        n_source: so many of the study's first points tell where to begin, and are not told again; imported
            points do so as well.
    """

    def __init__(self, *, seed: int, popsize: int | None = None, n_source: int = 0) -> None:
        self._seed, self._popsize, self._n_source = seed, popsize, n_source
        self._optimizer: CMA | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the axes that all points have."""
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw all axes at once; asked again, another point of the same distribution."""
        if not search_space:
            return {}
        if self._optimizer is None:
            self._optimizer = self._rebuilt(study, search_space)
            self._optimizer.reseed_rng(self._seed)
        units = self._optimizer.ask()
        return {
            name: _value(axis, unit) for (name, axis), unit in zip(search_space.items(), units, strict=True)
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one axis by itself."""
        return self.sample_relative(study, trial, {param_name: param_distribution})[param_name]

    def _rebuilt(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> CMA:
        is_maximized = study.direction == StudyDirection.MAXIMIZE
        points = list(_ended(study.get_trials(deepcopy=False)))
        start = self._n_source + sum(trial.number < 0 for trial in points)
        optimizer = self._begun(len(space), points[:start], space, is_maximized)
        while len(points) - start >= optimizer.population_size:
            end = start + optimizer.population_size
            optimizer.tell(_ranked(points[start:end], space, is_maximized))
            start = end
            if optimizer.should_stop():
                optimizer = _new(len(space), MORE_POINTS * optimizer.population_size)
        return optimizer

    def _begun(
        self,
        n_axes: int,
        source: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
        is_maximized: bool,
    ) -> CMA:
        from cmaes import get_warm_start_mgd

        if not any(trial.state == TrialState.COMPLETE for trial in source):
            return _new(n_axes, self._popsize)
        best = max(BEST_SHARE, 1 / len(source))  # one at least
        mean, deviation, covariance = get_warm_start_mgd(_ranked(source, space, is_maximized), best)
        return _new(n_axes, self._popsize, mean, max(deviation, LEAST_DEVIATION), covariance)


def check_installed(needed_by: str) -> None:
    """Check that the package is there that CMA-ES comes from.

    Args:
        needed_by: what needs it, as an error begins.

    Raises:
        InputError: it is not; the text names the extra.
    """
    try:
        import cmaes  # noqa: F401
    except ImportError:
        raise InputError(f"{needed_by} needs the package cmaes; {install('cma-es')}") from None


def _new(
    n_axes: int,
    popsize: int | None,
    mean: Vector | None = None,
    deviation: float = FIRST_DEVIATION,
    covariance: Vector | None = None,
) -> CMA:
    from cmaes import CMA

    return CMA(
        mean=np.full(n_axes, 0.5) if mean is None else mean,
        sigma=deviation,
        bounds=np.tile((0.0, 1.0), (n_axes, 1)),
        population_size=popsize,
        cov=covariance,
        seed=0,  # it draws for the one point alone, with a seed of its own
    )


def _ended(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yield the points before the first of ours that is open; for open trials of others nobody waits."""
    for trial in trials:
        if trial.state.is_finished():
            yield trial
        elif "point" in trial.user_attrs:
            return


def _ranked(
    points: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution], is_maximized: bool
) -> list[tuple[Vector, float]]:
    """Return points with their ranks, which are all that CMA-ES asks for: the best has the lowest.

    After those with a result come the pruned ones, the longest first, and last what diverged.
    """

    def key(trial: FrozenTrial) -> tuple[int, int, float]:
        if trial.value is None or not math.isfinite(trial.value):
            return 2, 0, 0.0
        loss = -trial.value if is_maximized else trial.value
        return (
            (0, 0, loss) if trial.state == TrialState.COMPLETE else (1, -len(trial.intermediate_values), loss)
        )

    ordered = sorted(points, key=key)
    return [
        (np.array([_unit(axis, trial.params[name]) for name, axis in space.items()]), float(rank))
        for rank, trial in enumerate(ordered)
    ]


def _ends(axis: BaseDistribution) -> tuple[float, float]:
    """Return where an axis begins and ends, the cells of its first and last step included."""
    assert isinstance(axis, IntDistribution | FloatDistribution)
    half = (axis.step or 0) / 2
    low, high = axis.low - half, axis.high + half
    return (math.log(low), math.log(high)) if axis.log else (low, high)


def _unit(axis: BaseDistribution, value: float) -> float:
    low, high = _ends(axis)
    assert isinstance(axis, IntDistribution | FloatDistribution)
    return ((math.log(value) if axis.log else value) - low) / (high - low)


def _value(axis: BaseDistribution, unit: float) -> float:
    low, high = _ends(axis)
    assert isinstance(axis, IntDistribution | FloatDistribution)
    value = low + float(unit) * (high - low)
    value = math.exp(value) if axis.log else value
    if axis.step is not None:
        value = axis.low + round((value - axis.low) / axis.step) * axis.step
    return type(axis.low)(min(max(value, axis.low), axis.high))
