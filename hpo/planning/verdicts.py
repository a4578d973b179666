"""Verdicts: of two samples, and of decisions on fresh seeds, a few at a time, until a verdict holds.

Seeds come in looks. At each look a decision is judged by all the seeds so far, and is trained no further
once it has a verdict. Looking several times would make chance findings likely; so each look has a bound of
its own, and all of them together keep the error rate:

- The error rate α is spent as 0.8·α·t³ over the share t of the seeds (Lan & DeMets 1983; the family is Kim &
  DeMets 1987). The bounds are those of Student's t itself, found by simulation where nothing makes a
  difference: the usual ones, a t-test at the levels of the normal distribution's bounds, let 5.4 % through
  instead of 5. A fifth of α is kept back, and little of it spent on few seeds, as real noise is not normal.
- Of several decisions, each is tested as Holm (1979) has it, with the bounds of its share of α; by closed
  testing that may look back at earlier looks (for group sequential tests: Maurer & Bretz 2013).
- *Equivalent* are two one-sided tests (Schuirmann 1987), each with bounds for α. It needs no correction for
  the number of decisions: it takes nothing into the final configuration.
- *Not shown*, before the seeds are used up: where even a difference one standard error better than what was
  seen would not end in a verdict. This only makes fewer claims, so that no bound depends on it.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import fmean

import numpy as np
import numpy.typing as npt

from hpo.planning.metrics import Metric

LOOKS = (4, 6, 8, 10, 12, 16, 20)
"""Seeds at each look. With three at the first, its bound is so far out that nothing passes it."""
ERROR_RATE = 0.05
SHARE_SPENT = 0.8
"""Of an error rate. Of plans of recorded trainings in which nothing makes a difference, 4.8 to 6.1 % keep
something where all of 5 % is spent, by t², and 3.7 to 5.0 % so. Half a point is found as often, by 8 % more
seeds."""
N_SIMULATED = 200_000
"""Sets of differences by which the bounds are found: 5 % are then right to 1 % of it, 1 % to 2 %."""
DELTA = 0.005
"""Half a point: less of a share does not matter, unless somebody says otherwise."""
LEVEL = 0.95
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""What p-values are rounded up to; below the first too few simulated sets are left to find bounds."""
INTERVAL_LEVEL = 0.96
"""Of t intervals, which then cover 93 to 97 % although an early end favours large differences
(examples/benchmarks/verdicts.py)."""


def default_delta(metric: Metric) -> float:
    """Return the difference of a metric that does not matter; of one that is no share none is known."""
    return DELTA if metric.is_share else 0.0


class Verdict(StrEnum):
    """What a comparison shows."""

    BETTER = "better"
    EQUIVALENT = "equivalent"
    WORSE = "worse"
    NOT_SHOWN = "not shown"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Comparison:
    """What seeds say of a change, compared with what would be without it."""

    verdict: Verdict | None
    """None: more seeds are needed."""
    n_seeds: int
    difference: float
    """Mean over the seeds; above 0 the change is better."""
    interval: tuple[float, float] | None
    """In which the true difference lies, with 95 % confidence, whatever the other decisions are; None: a
    single seed has no deviation."""


@cache
def bounds(error_rate: float, looks: tuple[int, ...] = LOOKS) -> tuple[float, ...]:
    """Return what Student's t must exceed at each look, so that it does at any look with this probability.

    That is what training's noise makes of it; normal noise does so with `SHARE_SPENT` of the probability.

    Args:
        error_rate: one-sided.
        looks: seeds at each look, rising.
    """
    statistics = _null_statistics(looks)
    inside, n_crossed, found = np.ones(len(statistics), bool), 0, []
    for number, n_seeds in enumerate(looks):
        spent = round(SHARE_SPENT * error_rate * (n_seeds / looks[-1]) ** 3 * len(statistics))
        values = np.sort(statistics[inside, number])
        n_beyond = max(0, spent - n_crossed)
        bound = float(values[-n_beyond - 1 :][:2].mean()) if n_beyond else math.inf
        inside &= statistics[:, number] <= bound
        n_crossed += n_beyond
        found.append(bound)
    return tuple(found)


@cache
def _null_statistics(looks: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return t at each look where nothing makes a difference, (N_SIMULATED, looks)."""
    drawn = np.random.default_rng(0).standard_normal((N_SIMULATED, looks[-1]))
    n_seeds, last = np.array(looks), np.array(looks) - 1
    means = drawn.cumsum(axis=1)[:, last] / n_seeds
    squares = (drawn**2).cumsum(axis=1)[:, last]
    variances = (squares - n_seeds * means**2) / (n_seeds - 1)
    statistics: npt.NDArray[np.float64] = means / np.sqrt(variances / n_seeds)
    return statistics


@dataclass(frozen=True)
class _Look:
    number: int
    n_seeds: int
    mean: float
    error: float
    """Standard error of the mean."""

    @property
    def statistic(self) -> float:
        if self.error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error


def judge(
    differences: Mapping[str, Sequence[float]], delta: float, looks: tuple[int, ...] = LOOKS
) -> dict[str, Comparison]:
    """Judge all decisions of a plan by the seeds so far.

    Args:
        differences: by decision, the gain of each seed, in the order of the seeds; at least two.
        delta: differences below it do not matter.
        looks: seeds at each look; of seeds between two looks the verdict takes no notice.
    """
    seen = {name: _looks_at(values, looks) for name, values in differences.items()}
    better = _shown_better(seen, looks)
    return {
        name: _comparison(differences[name], each, name in better, delta, looks)
        for name, each in seen.items()
    }


def p_values(
    differences: Mapping[str, Sequence[float]], looks: tuple[int, ...] = LOOKS
) -> dict[str, tuple[float, float]]:
    """Return p of each decision being better, alone and, by Holm (1979), among all of them.

    It is the least error rate at which the same procedure would have shown the decision to be better,
    rounded up: at `ERROR_RATE` p says what the verdict says.

    Args:
        differences: as of `judge`.
        looks: likewise.
    """
    steps = {*P_VALUES, *(ERROR_RATE / count for count in range(1, len(differences) + 1))}
    rates = sorted(rate for rate in steps if rate >= P_VALUES[0])
    alone = {name: _p_value(_looks_at(values, looks), looks, rates) for name, values in differences.items()}
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(alone, key=lambda name: alone[name])):
        least = max(least, min(1.0, (len(alone) - place) * alone[name]))
        adjusted[name] = least
    return {name: (alone[name], adjusted[name]) for name in alone}


def _p_value(seen: Sequence[_Look], looks: tuple[int, ...], rates: Sequence[float]) -> float:
    """Return the first of the error rates, rising, at which these looks show something; 1 for none."""

    def is_shown(rate: float) -> bool:
        limits = bounds(rate, looks)
        return any(look.statistic > limits[look.number] for look in seen)

    place = bisect_left(rates, True, key=is_shown)
    return rates[place] if place < len(rates) else 1.0


def _looks_at(differences: Sequence[float], looks: tuple[int, ...]) -> list[_Look]:
    taken = [n_seeds for n_seeds in looks if n_seeds <= len(differences)]
    return [_Look(number, n, *_mean_and_error(differences[:n])) for number, n in enumerate(taken)]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    # `statistics.stdev` counts in fractions, which took most of the time of a replay
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _shown_better(seen: Mapping[str, Sequence[_Look]], looks: tuple[int, ...]) -> set[str]:
    """Return the decisions that are shown to be better, by Holm's procedure."""
    better: set[str] = set()
    while True:
        limits = bounds(ERROR_RATE / max(1, len(seen) - len(better)), looks)
        more = {
            name
            for name, each in seen.items()
            if name not in better and any(look.statistic > limits[look.number] for look in each)
        }
        if not more:
            return better
        better |= more


def _comparison(
    differences: Sequence[float], seen: Sequence[_Look], is_better: bool, delta: float, looks: tuple[int, ...]
) -> Comparison:
    limits = bounds(ERROR_RATE, looks)
    verdict = None
    if is_better:
        verdict = Verdict.BETTER
    elif any(look.statistic < -limits[look.number] for look in seen):
        verdict = Verdict.WORSE
    elif any(abs(look.mean) + limits[look.number] * look.error < delta for look in seen):
        verdict = Verdict.EQUIVALENT
    elif seen and (len(seen) == len(looks) or _is_hopeless(seen[-1], delta, looks)):
        verdict = Verdict.NOT_SHOWN
    mean, error = _mean_and_error(differences)
    reach = t_quantile(len(differences) - 1, INTERVAL_LEVEL) * error
    return Comparison(verdict, len(differences), mean, (mean - reach, mean + reach))


@cache
def t_quantile(degrees_of_freedom: float, level: float) -> float:
    """Return so many standard errors as an interval of a level reaches to each side (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return in what the mean lies with 95 % confidence; None where nothing can be said."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    mean, error = _mean_and_error(values)
    reach = t_quantile(len(values) - 1, LEVEL) * error
    return mean - reach, mean + reach


def _is_hopeless(look: _Look, delta: float, looks: tuple[int, ...]) -> bool:
    """Return whether not even a difference better by a standard error would end in a verdict."""
    limit, n_last = bounds(ERROR_RATE, looks)[-1], looks[-1]
    share = look.n_seeds / n_last
    error_then = look.error * math.sqrt(share)
    at_best = look.mean + (1 - share) * look.error
    nearest = max(0.0, abs(look.mean) - (1 - share) * look.error)
    return at_best < limit * error_then and nearest + limit * error_then >= delta


def compare(ours: Mapping[int, float], theirs: Mapping[int, float], delta: float) -> Comparison:
    """Compare two samples of seeds by a t-test: paired where they share two seeds and more, or else Welch's.

    Args:
        ours: score by seed; the higher the better.
        theirs: likewise, of what it is compared with.
        delta: differences below it do not matter.
    """
    from scipy.stats import ttest_ind, ttest_rel  # 0.3 s to import

    shared = sorted(ours.keys() & theirs.keys())
    is_paired = len(shared) > 1
    samples = [[each[seed] for seed in (shared if is_paired else each)] for each in (ours, theirs)]
    n_seeds = min(map(len, samples))
    difference = fmean(samples[0]) - fmean(samples[1])
    if n_seeds == 1:
        return Comparison(None, n_seeds, difference, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that all differ by the same
        found = ttest_rel(*samples) if is_paired else ttest_ind(*samples, equal_var=False)
        (low, high), (lowest, highest) = (found.confidence_interval(level) for level in (0.95, 0.9))
    verdict = verdict_of((low, high), (lowest, highest), delta)
    return Comparison(verdict, n_seeds, difference, (float(low), float(high)))


def verdict_of(interval: tuple[float, float], narrower: tuple[float, float], delta: float) -> Verdict:
    """Return what an interval of a difference shows.

    Args:
        interval: with the error rate of both sides together.
        narrower: with as much on each side, as two one-sided tests have it.
        delta: differences below it do not matter.
    """
    low, high = interval
    if low > 0 or high < 0:
        return Verdict.BETTER if low > 0 else Verdict.WORSE
    return Verdict.EQUIVALENT if -delta < narrower[0] and narrower[1] < delta else Verdict.NOT_SHOWN


SAID: dict[Verdict | None, str] = {
    None: "needs more seeds",
    Verdict.BETTER: "shown to be better",
    Verdict.WORSE: "shown to be worse",
    Verdict.EQUIVALENT: "shown to make no difference that matters",
    Verdict.NOT_SHOWN: "not shown either way",
}
"""Verdicts as sentences have them."""


def in_words(comparison: Comparison, metric: Metric) -> str:
    """Return what was found, as it follows the names of what was compared."""
    found = f"{metric.label} {metric.signed(metric.score(comparison.difference))}"
    if comparison.interval is None:
        return f"not tested, as one seed does not tell how much of it is luck: {found}"
    low, high = sorted(map(metric.score, comparison.interval))
    between = f"between {metric.signed(low).removesuffix(' points')} and {metric.signed(high)}"
    return f"{SAID[comparison.verdict]}: {found}, {between} with 95 % confidence"
