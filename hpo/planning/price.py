"""The price of going study by study: at most how much was missed, by points that cross studies.

Study by study the plan sees one line through the space after the other. What lies off these lines is bounded
by a model: a score is a sum of effects of the studies, of interactions between any two of them, of what is
the cell's own, and of seeds. Effects are normal; how large they are is uncertain over two orders of
magnitude, and an interaction is likely large where the effects that meet in it are (effect heredity: Box &
Meyer 1986, Chipman 1996). That is a Gaussian process over the functional ANOVA of the space (Durrande et al.
2012; Hutter et al. 2014). Its scales are drawn from their prior and weighted by the likelihood of all points,
those of the search and those across, which are drawn at random; whole fields are then drawn as Matheron's
rule has it (Wilson et al. 2020), and the bound is a quantile of how far their maximum lies above the chosen
configuration. Noise shrinks the chosen configuration, too: it was chosen for its score. Shares count by the
logarithm of what is missing to 1, in which settings add up better than in points.

`examples/benchmarks/price.py` measures how often the bound holds, and where it does not: of a single cell
that stands out from all others no sample knows. Without any model there is the count of better cells that
the hypergeometric distribution leaves possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from hpo._text import params_text
from hpo.planning.decisions import Configuration, Record, TrialRef
from hpo.planning.metrics import Metric
from hpo.space.parameters import ParamValue

LEVEL = 0.95
QUANTILE = 0.98
"""Of the fields, which holds in `LEVEL` of recorded grids and more; the 95th percentile did so in 94 % of the
replays of one of them (`examples/benchmarks/price.py`)."""
N_SCALES, N_FIELDS = 1000, 500
"""Sets of scales that are weighted, and fields that are drawn by them."""
EFFECT, INTERACTION, OWN, NOISE = (0.02, 3.0), (0.1, 2.0), (0.01, 2.0), (0.005, 1.0)
"""What scales lie between, their logarithm being uniform, in deviations of all scores: of a study's effect;
of an interaction, times the geometric mean of its two effects; of what is a cell's own; of the noise, where
one seed cannot tell it."""
MEAN = 3.0
"""Deviation of the mean, likewise."""
JITTER = 1e-8
MAX_NUMBERS = 10_000_000
"""In one array: 80 MB."""
LEAST_ERROR = 1e-3
"""A share is taken to be so far from 1 at least."""

Floats = npt.NDArray[np.float64]
Levels = npt.NDArray[np.intp]


class Crossing(Record):
    """A point across studies that was trained."""

    source: TrialRef
    params: Configuration
    searched: dict[str, ParamValue]
    """What it has otherwise than the chosen configuration."""
    value: float


class Price(Record):
    """What points across studies say of going study by study."""

    value: float
    """Of the chosen configuration at the search's seeds."""
    cells: int
    """Combinations of the points that the studies tried."""
    n_seen: int
    """How many of them the studies themselves have trained."""
    n_tried: int
    """How many were tried across, whatever became of them."""
    n_better: int
    """How many of these reached more than the chosen configuration."""
    at_most_better: int
    """So many of those that nobody tried may do so, by their number alone, with `LEVEL` confidence."""
    share: float
    """Of the search's epochs, that it took."""
    best: Crossing | None
    """The best of these; None where none has a result."""
    at_most: float | None
    """So much of the metric was missed at most, with `LEVEL` confidence and by the model; None: no result."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo price --json` prints it."""
        return {**self.model_dump(mode="json"), "confidence": LEVEL}


@dataclass(frozen=True)
class Evidence:
    """Scores of configurations, by the level that each study's parameters have in them."""

    levels: Levels
    """(configurations, studies)."""
    scores: Sequence[Sequence[float]]
    """Of each, by seed; the higher the better."""
    cells: Levels
    """Of the whole space, (cells, studies)."""
    chosen: int
    """The place of the chosen configuration among the cells."""


def at_most_missed(evidence: Evidence, objective: Metric) -> float:
    """Return what was missed at most, with `LEVEL` confidence, in the metric's own unit.

    Args:
        evidence: all that was trained.
        objective: whose scores they are.
    """
    to_scale, from_scale = _scale_of(objective, evidence.scores)
    seeds = [[to_scale(score) for score in each] for each in evidence.scores]
    means = np.array([np.mean(each) for each in seeds])
    center, unit = float(means.mean()), float(means.std())
    if unit == 0:
        return 0.0
    pooled = _pooled_variance(seeds)
    best, chosen = _fields(
        evidence,
        (means - center) / unit,
        None if pooled is None else np.array([pooled / unit**2 / len(each) for each in seeds]),
    )
    missed = from_scale(center + unit * best) - from_scale(center + unit * chosen)
    return float(np.quantile(missed, QUANTILE))


def _scale_of(
    objective: Metric, scores: Sequence[Sequence[float]]
) -> tuple[Callable[[float], float], Callable[[Floats], Floats]]:
    """Return functions from scores to where effects add up, and back."""
    if objective.is_share and objective.is_maximized:
        return lambda score: -math.log(max(1 - score, LEAST_ERROR)), lambda found: 1 - np.exp(-found)
    if not objective.is_maximized and all(score < 0 for each in scores for score in each):
        return lambda score: -math.log(-score), lambda found: -np.exp(-found)
    return lambda score: score, lambda found: found


def _pooled_variance(seeds: Sequence[Sequence[float]]) -> float | None:
    """Return the variance between seeds of one configuration; None where nobody knows."""
    df = sum(len(each) - 1 for each in seeds)
    return math.fsum(float(np.var(each)) * len(each) for each in seeds) / df if df else None


def _fields(evidence: Evidence, seen: Floats, noise: Floats | None) -> tuple[Floats, Floats]:
    """Draw fields over the space, given what was seen; return their maxima, and what is chosen in them."""
    rng = np.random.default_rng(0)
    levels, cells = evidence.levels, evidence.cells
    n_studies = levels.shape[1]
    pairs = list(combinations(range(n_studies), 2))
    effects = _log_uniform(rng, EFFECT, (N_SCALES, n_studies))
    met = np.array([np.sqrt(effects[:, one] * effects[:, other]) for one, other in pairs]).T
    interactions = met * _log_uniform(rng, INTERACTION, met.shape)
    # a column a term: effects, interactions, a cell's own, the mean
    own = _log_uniform(rng, OWN, (N_SCALES, 1))
    variances = np.hstack([effects, interactions, own, np.full_like(own, MEAN)]) ** 2
    noises = _log_uniform(rng, NOISE, (N_SCALES, 1)) ** 2 * np.ones(len(seen))
    if noise is not None:
        noises = np.broadcast_to(noise, noises.shape)
    terms = [*((study,) for study in range(n_studies)), *pairs, range(n_studies)]
    # what levels meet in each term, by number: equal numbers share what is drawn for them
    both = np.vstack([levels, cells])
    groups = [np.unique(both[:, list(term)], axis=0, return_inverse=True)[1].reshape(-1) for term in terms]
    groups.append(np.zeros(len(both), dtype=np.intp))
    seen_groups = [each[: len(levels)] for each in groups]
    cell_groups = [each[len(levels) :] for each in groups]
    shared = np.array([each[:, None] == each for each in seen_groups], dtype=float)
    across = np.array([each[:, None] == of for each, of in zip(cell_groups, seen_groups, strict=True)])

    def covariances(numbers: Levels) -> Floats:
        found: Floats = np.tensordot(variances[numbers], shared, 1)
        found[:, range(len(seen)), range(len(seen))] += noises[numbers] + JITTER
        return found

    likelihoods = []
    for numbers in np.array_split(np.arange(N_SCALES), math.ceil(N_SCALES * len(seen) ** 2 / MAX_NUMBERS)):
        factors = np.linalg.cholesky(covariances(numbers))
        white = np.linalg.solve(factors, np.broadcast_to(seen[:, None], (len(numbers), len(seen), 1)))
        diagonals = np.diagonal(factors, axis1=1, axis2=2)
        likelihoods.append(-0.5 * np.square(white).sum((1, 2)) - np.log(diagonals).sum(1))
    likelihood = np.concatenate(likelihoods)
    weights = np.exp(likelihood - likelihood.max())
    maxima, chosen = np.empty(N_FIELDS), np.empty(N_FIELDS)
    for place, number in enumerate(rng.choice(N_SCALES, N_FIELDS, p=weights / weights.sum())):
        field = np.zeros(len(both))
        for variance, group in zip(variances[number], groups, strict=True):
            field += math.sqrt(variance) * rng.standard_normal(group.max() + 1)[group]
        there, field = field[: len(levels)], field[len(levels) :]
        there = there + np.sqrt(noises[number] + JITTER) * rng.standard_normal(len(seen))
        weighted = np.tensordot(variances[number], across, 1)
        (covariance,) = covariances(np.array([number]))
        field = field + weighted @ np.linalg.solve(covariance, seen - there)
        maxima[place], chosen[place] = field.max(), field[evidence.chosen]
    return maxima, chosen


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float], shape: tuple[int, ...]) -> Floats:
    low, high = map(math.log, ends)
    return np.exp(rng.uniform(low, high, shape))


def at_most_better(n_untried: int, n_tried: int, n_better: int) -> int:
    """Return how many of those that were not tried may be better, by the number of better ones alone.

    Args:
        n_untried: how many were not tried.
        n_tried: how many were, drawn at random.
        n_better: how many of them were better.
    """
    from scipy.stats import hypergeom

    total = n_untried + n_tried
    possible = np.arange(n_better, n_better + n_untried + 1)
    chances = hypergeom.cdf(n_better, total, possible, n_tried)
    return int(possible[chances > 1 - LEVEL].max()) - n_better


def in_words(price: Price, objective: Metric) -> str:
    """Return what was found, in sentences."""
    return " ".join([bound_in_words(price, objective), evidence_in_words(price, objective)])


def bound_in_words(price: Price, objective: Metric) -> str:
    """Return the bound in a sentence, or why there is none."""
    if price.at_most is None:
        return "No point across studies has a result: what going study by study has missed is not known."
    return (
        f"By going study by study at most {objective.distance(price.at_most)} of {objective.label} were "
        f"missed ({100 * LEVEL:.0f} % confidence, by a model of how studies interact)."
    )


def evidence_in_words(price: Price, objective: Metric) -> str:
    """Return what the bound rests on, and what can be said without a model."""
    n_left = price.cells - price.n_seen
    tried = "one" if price.n_tried == 1 else f"{price.n_tried:,}"
    said = (
        f"Of {n_left:,} combinations of the studies' points that no study tried, {tried} drawn at random "
        f"took {100 * price.share:.0f} % of the search's epochs."
    )
    if price.best is not None:
        gain = objective.gain(price.best.value, price.value)
        way = f"{objective.distance(gain)} ahead of" if gain > 0 else f"{objective.distance(-gain)} behind"
        way = way if gain else "level with"
        best = "It" if price.n_tried == 1 else "The best of them"
        said += (
            f" {best}, {price.best.source.name} ({params_text(price.best.searched)}), is {way} what the "
            "search chose, at the same seeds."
        )
    n_untried = n_left - price.n_tried
    if price.at_most_better < n_untried:
        reach = f"at most {price.at_most_better:,} of the other {n_untried:,} reach more there"
        said += f" Without any model: {reach}."
    elif n_untried:
        said += (
            f" Without a model that says nothing yet: each of the other {n_untried:,} may reach more; "
            "`--share` tries more of them."
        )
    return said
