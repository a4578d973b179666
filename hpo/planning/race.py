"""The race: further seeds for those points of a study alone that can still win it.

Every racer, the control among them, is trained on `FIRST_SEEDS` seeds. At each look all racers have the same
seeds, and who is shown not to be ahead of the leader by more than delta leaves; the others get more seeds,
up to the most that there may be. What stays then is not told apart, and the highest mean wins.

- A racer leaves where the upper limit of its lead over the leader is no more than delta: eliminated as in
  Paulson (1964), with an indifference zone as Kim & Nelson (2001) have it. A lead below delta does not
  matter, so that no seeds are spent on finding out who of two has it.
- Racers are compared on common seeds, the blocks of a two-way layout (F-race, Birattari et al. 2002, does so
  by ranks): what a seed does to all of them cancels out. With three seeds a racer's own variance of the rest
  has 2 degrees of freedom, and next to nobody would leave; so it is moderated by that of all who still race
  (Smyth 2004). With the mean of all for each, 10 % of the best left where deviations were unequal.
- Each look spends a part of the error rate α, in proportion to the seeds that it adds (Kim & DeMets 1987, of
  Lan & DeMets 1983), and divides it among the racers but one (Bonferroni). All parts add up to α, whatever
  the looks have in common. Not divided, 11 % of the best left in favour of a worse one of 16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from hpo._text import seeds_text
from hpo.planning.metrics import Metric
from hpo.planning.verdicts import ERROR_RATE, t_quantile

Curves = npt.NDArray[np.float64]
"""Scores of a racer, the higher the better: (seeds, epochs)."""

FIRST_SEEDS = 3
"""Seeds of the first look."""
TINY = 1e-30
"""The least variance whose logarithm is taken."""


class Stop(StrEnum):
    """Why a point got no further seeds."""

    WON = "won"
    BEHIND = "behind"
    """Shown to be behind the leader."""
    NO_BETTER = "no better"
    """Shown not to be ahead of the leader by more than delta."""
    NOT_TOLD_APART = "not told apart"
    """Still in the race with the most seeds that there may be, or when it was closed."""
    PRUNED = "pruned"
    CUT_SHORT = "cut short"
    DIVERGED = "diverged"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    DISCARDED = "discarded"


@dataclass(frozen=True)
class Standing:
    """Where a racer is."""

    n_seeds: int
    """With which it was judged last."""
    stop: Stop | None
    """None: it races on."""


@dataclass(frozen=True)
class Race:
    """Where a race stands."""

    standings: Mapping[str, Standing]
    block: int = 0
    """Of `blocks`, the one that is due."""
    due: tuple[str, ...] = ()
    """Racers that lack it; none where the race is over."""
    is_cut: bool = False
    """Whether it is over because it was closed."""


@cache
def looks(max_seeds: int) -> tuple[int, ...]:
    """Return how many seeds a racer has at each look: a quarter more each time, and one more at least."""
    found = [min(FIRST_SEEDS, max_seeds)]
    while found[-1] < max_seeds:
        found.append(min(max_seeds, found[-1] + max(1, found[-1] // 4)))
    return tuple(found)


def blocks(max_seeds: int) -> list[range]:
    """Return the seeds that each look adds, counted from 0; each block is a replicate of a point."""
    return [range(*ends) for ends in pairwise((0, *looks(max_seeds)))]


def race(
    curves: Mapping[str, Curves],
    delta: float,
    max_seeds: int,
    gone: Mapping[str, Stop] | None = None,
    *,
    is_closed: bool = False,
) -> Race:
    """Judge the racers, and tell which seeds the race needs next.

    What it tells follows from whole looks alone: whoever asks finds the same.

    Args:
        curves: of the seeds of each racer that have ended, whole blocks of them from the first on. Of racers
            level with each other the first leads.
        delta: differences below it do not matter.
        max_seeds: that a racer may get.
        gone: why racers cannot get the further seeds that they would need.
        is_closed: nobody gets any more: the last look that all who race can have is the last.
    """
    standings = {name: Standing(len(each), None) for name, each in curves.items()}
    racing, spent, is_cut = list(curves), 0.0, False
    for block, n_seeds in enumerate(looks(max_seeds)):
        if len(racing) <= 1 and block:
            break
        lacking = [name for name in racing if len(curves[name]) < n_seeds]
        for name in lacking:
            if gone and name in gone:
                standings[name] = Standing(len(curves[name]), gone[name])
                racing.remove(name)
        if due := tuple(name for name in lacking if name in racing):
            if is_closed:  # seeds that only some have would favour them, or the others
                is_cut = True
                break
            return Race(standings, block, due)
        share = n_seeds / max_seeds
        with np.errstate(all="ignore"):  # of scores beyond a float's range nobody leaves
            stops = _judged({name: curves[name][:n_seeds] for name in racing}, delta, share - spent)
        spent = share
        standings |= {name: Standing(n_seeds, stop) for name, stop in stops.items()}
        racing = [name for name in racing if stops[name] is None]
    lengths = {name: standings[name].n_seeds if is_closed else len(curves[name]) for name in racing}
    with np.errstate(all="ignore"):  # likewise
        leader = _leader({name: curves[name][: lengths[name]] for name in racing})
    for name in racing:
        stop = Stop.WON if name == leader else Stop.NOT_TOLD_APART
        standings[name] = Standing(lengths[name], stop)
    return Race(standings, is_cut=is_cut)


def _leader(curves: Mapping[str, Curves]) -> str:
    """Return whose mean is the best, of equal ones the first; empty of none."""
    means = {name: _at_best_epoch(each).mean() for name, each in curves.items()}
    return max(means, key=lambda name: means[name], default="")


def _judged(curves: Mapping[str, Curves], delta: float, share: float) -> dict[str, Stop | None]:
    """Return who leaves at a look, and why; None for those who stay.

    Args:
        curves: of all who race, with the same seeds.
        delta: differences below it do not matter.
        share: of the error rate, for this look.
    """
    values = {name: _at_best_epoch(each) for name, each in curves.items()}
    stops: dict[str, Stop | None] = {
        name: None if np.isfinite(each).all() else Stop.DIVERGED for name, each in values.items()
    }
    names = [name for name, stop in stops.items() if stop is None]
    if not names:
        return stops
    scores = np.array([values[name] for name in names])
    means = scores.mean(axis=1)
    leader = int(means.argmax())
    if len(names) > 1 and scores.shape[1] > 1:
        variances, df = _variances(scores)
        level = 1 - 2 * ERROR_RATE * share / (len(names) - 1)
        reach = t_quantile(df, level) * np.sqrt((variances + variances[leader]) / scores.shape[1])
        for name, most in zip(names, means - means[leader] + reach, strict=True):
            if most < 0:
                stops[name] = Stop.BEHIND
            elif most <= delta:
                stops[name] = Stop.NO_BETTER
    stops[names[leader]] = None
    return stops


def _variances(scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the variance of each racer beside what seeds do to all, and the degrees of freedom of each.

    A racer's own is moderated by that of all as Smyth (2004) does it: the more alike the variances of the
    racers are, the more the common one counts.
    """
    from scipy.special import digamma, polygamma  # scipy takes 0.1 s to import

    n_racers, n_seeds = scores.shape
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    own = (rest**2).sum(axis=1) / (n_seeds - 1) * n_racers / (n_racers - 1)
    df, all_df = n_seeds - 1, (n_seeds - 1) * (n_racers - 1)
    logs = np.log(np.maximum(own, TINY)) - digamma(df / 2) + np.log(df / 2)
    spread = logs.var(ddof=1) - polygamma(1, df / 2)
    if spread <= 0:
        return np.full(n_racers, own.mean()), all_df
    prior_df = 2 * _inverse_trigamma(spread)
    prior = np.exp(logs.mean() + digamma(prior_df / 2) - np.log(prior_df / 2))
    return (prior_df * prior + df * own) / (prior_df + df), min(prior_df + df, all_df)


def _inverse_trigamma(value: np.float64) -> np.float64:
    """Return where the trigamma function has a value; Newton's method, as Smyth (2004) has it."""
    from scipy.special import polygamma

    at = 0.5 + 1 / value
    for _ in range(50):
        trigamma = polygamma(1, at)
        step = trigamma * (1 - trigamma / value) / polygamma(2, at)
        at += step
        if -step < 1e-8 * at:
            break
    return at


def _at_best_epoch(curves: Curves) -> npt.NDArray[np.float64]:
    """Return the score of each seed at the epoch whose mean over the seeds is the best."""
    means = curves.mean(axis=0)
    found: npt.NDArray[np.float64] = curves[:, np.where(np.isfinite(means), means, -np.inf).argmax()]
    return found


# --- what it found, as facts and in words ----------------------------------------------------------------


class Finish(BaseModel):
    """Points that stopped for the same reason with as many seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop: Stop
    seeds: int
    trials: tuple[int, ...]
    """The first trial of each."""


class RaceResult(BaseModel):
    """How many seeds each point of a study got, and why no more."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_seeds: int
    delta: float
    finishes: tuple[Finish, ...]

    def finish_of(self, trial: int) -> Finish | None:
        """Return how the point ended whose first trial this is."""
        return next((each for each in self.finishes if trial in each.trials), None)

    def in_words(self, latter: int | None, metric: Metric) -> str:
        """Return how many seeds the winner got, and when the others left.

        Args:
            latter: the first trial of what it is compared with, the latter in that sentence; None: nothing.
            metric: the plan's objective.
        """
        left, ended = Counter[int](), Counter[str]()
        for each in self.finishes:
            if each.stop in (Stop.BEHIND, Stop.NO_BETTER):
                left[each.seeds] += len(each.trials)
            elif each.stop not in (Stop.WON, Stop.NOT_TOLD_APART):
                ended[each.stop] += len(each.trials)
        won = sum(each.seeds for each in self.finishes if each.stop == Stop.WON)
        n_level = sum(len(each.trials) for each in self.finishes if each.stop == Stop.NOT_TOLD_APART)
        level = f", not told apart from {_others(n_level)}" if n_level else ""
        after = ", ".join(f"{count} after {n}" for n, count in sorted(left.items()))
        finish = None if latter is None else self.finish_of(latter)
        return "; ".join(
            [
                f"{seeds_text(won)}{level}",
                *([f"the latter {self.words_of(finish, metric)}"] if finish else []),
                *([f"of all, {after.replace('after', 'left after', 1)}"] if after else []),
                *(f"{count} {word}" for word, count in ended.items()),
            ]
        )

    def words_of(self, finish: Finish, metric: Metric) -> str:
        """Return why a point got no further seeds, as it follows what names the point."""
        after = f"left the race after {finish.seeds} seeds"
        than = f" by more than {metric.distance(self.delta)}" if self.delta else ""
        return {
            Stop.WON: f"won the race with {finish.seeds} seeds",
            Stop.BEHIND: f"{after}, shown to be behind",
            Stop.NO_BETTER: f"{after}, shown not to be ahead{than}",
            Stop.NOT_TOLD_APART: f"could not be told apart from the winner by {finish.seeds} seeds",
        }.get(finish.stop, f"left the race: {finish.stop}")


def _others(count: int) -> str:
    return "one other" if count == 1 else f"{count} others"


def result_of(standings: Iterable[tuple[int, Standing]], delta: float, max_seeds: int) -> RaceResult:
    """Return a race that is over as it is stored; standings by the first trial of each point."""
    groups: dict[tuple[Stop, int], list[int]] = {}
    for trial, each in standings:
        assert each.stop is not None  # it is over
        groups.setdefault((each.stop, each.n_seeds), []).append(trial)
    finishes = [
        Finish(stop=stop, seeds=n_seeds, trials=tuple(trials)) for (stop, n_seeds), trials in groups.items()
    ]
    return RaceResult(max_seeds=max_seeds, delta=delta, finishes=tuple(finishes))
