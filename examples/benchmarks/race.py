"""What `--seeds race` costs and finds, beside the same number of seeds for every point.

    python examples/benchmarks/race.py [--replays 200] [--half judged|tuned] [--max-seeds 5 12]

`hpo.planning.race` runs as in `hpo run`: after each look it says which points get which further seeds. Two
tables follow.

1. The recorded tables `recorded/joint-*.csv`, whose seed columns come in another order in each replay. Best
   is the point with the best mean over all of them, which 12 of 15 nearly are. The rule was tuned on a half
   of the digits' seeds; what stands in `results/` was judged on the other half, and on the other data.
2. Simulated worlds of 16 points, in points of macro F1, as in verdicts.py.

Columns: `cost`: seed-epochs as a share of `--seeds 5`, both with the same pruner; `three_seeds`: what the
first three seeds of every point cost of that, and no race is cheaper; `cost_of_most`: as a share of as many
seeds for every point as a racer may get; `same`: races whose winner is that of the same seeds for every
point, or within delta of it; `within`: whose winner is the best or within delta of it, and the same for 5
(`within_5`) and for the most seeds (`within_most`) of every point; `all_left`: where one point alone was
left; `best_left`: whose best point, better than the winner by delta or more, was pruned or left before the
end, with the upper end of a 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import numpy as np
import numpy.typing as npt
from grids import recorded
from scipy.stats import beta
from tables import Table, heading
from verdicts import TABLES, Simulated

from hpo.planning.race import Stop, looks, race

HALVES = dict(zip(("tuned", "judged"), np.split(np.random.default_rng(0).permutation(30), 2), strict=True))
"""Seed columns."""
N_STARTUP = 5
"""Trials that Optuna's median pruner lets end before it stops any."""
RECORDED_DELTA = 0.005
N_POINTS, DELTA = 16, 0.5
WORLDS = {
    "equal": Simulated(),
    "one +0.5": Simulated(0.5),
    "one +1": Simulated(1.0),
    "one +0.5, deviation 0.9": Simulated(0.5, deviations=(0.9,)),
    "unequal deviations, one +0.5": Simulated(0.5, deviations=(0.2, 0.9)),
    "collapsed, one +0.5": Simulated(0.5, collapsed=0.2),
    "correlated, one +0.5": Simulated(0.5, common=0.5),
}

Scores = npt.NDArray[np.float64]
"""(points, seeds, epochs)."""


@dataclass(frozen=True)
class Replay:
    """What one race found."""

    cost: float
    three_seeds: float
    cost_of_most: float
    winner: int
    n_left: int
    """Points that were not told apart, the winner among them."""
    has_left: npt.NDArray[np.bool_]
    """By point, whether it left before the end."""
    of_5: int
    of_most: int
    """The winners of fixed numbers of seeds."""


def replay(scores: Scores, delta: float, max_seeds: int, kept: Callable[[Scores], list[int]]) -> Replay:
    """Race points whose seeds come in this order.

    Args:
        scores: of all seeds that a race may need.
        delta: as of `race`.
        max_seeds: likewise.
        kept: says after which epoch a pruner stops each point.
    """
    n_epochs = scores.shape[2]
    stopped, stopped_of_5, stopped_of_most = (kept(scores[:, :n]) for n in (3, 5, max_seeds))
    racers = [point for point, epochs in enumerate(stopped) if epochs == n_epochs]
    n_seeds = dict.fromkeys(map(str, racers), 3)
    while True:
        found = race({name: scores[int(name), :n] for name, n in n_seeds.items()}, delta, max_seeds)
        if not found.due:
            break
        n_seeds |= dict.fromkeys(found.due, looks(max_seeds)[found.block])
    stops = {int(name): each.stop for name, each in found.standings.items()}
    winner = next(point for point, stop in stops.items() if stop == Stop.WON)
    first = 3 * sum(stopped)
    further = n_epochs * sum(n - 3 for n in n_seeds.values())
    whole = 5 * sum(stopped_of_5)
    still = [point for point, stop in stops.items() if stop in (Stop.WON, Stop.NOT_TOLD_APART)]
    has_left = np.ones(len(scores), bool)
    has_left[still] = False
    return Replay(
        (first + further) / whole,
        first / whole,
        (first + further) / (max_seeds * sum(stopped_of_most)),
        winner,
        len(still),
        has_left,
        _winner(scores[:, :5], stopped_of_5),
        _winner(scores[:, :max_seeds], stopped_of_most),
    )


def _winner(scores: Scores, stopped: list[int]) -> int:
    values = scores.mean(axis=1).max(axis=1)
    return max(range(len(scores)), key=lambda point: (stopped[point] == scores.shape[2], values[point]))


def no_pruner(scores: Scores) -> list[int]:
    """Stop nothing."""
    return [scores.shape[2]] * len(scores)


def median(scores: Scores) -> list[int]:
    """Stop points as Optuna's median pruner does, one point after the other."""
    curves, whole, stopped = scores.mean(axis=1), list[npt.NDArray[np.float64]](), []
    n_epochs = scores.shape[2]
    for curve in curves:
        epoch = next(
            (
                n
                for n in range(1, n_epochs)
                if len(whole) >= N_STARTUP and curve[:n].max() < np.median([each[n - 1] for each in whole])
            ),
            n_epochs,
        )
        stopped.append(epoch)
        if epoch == n_epochs:
            whole.append(curve)
    return stopped


PRUNERS = {"none": no_pruner, "median": median}


def summary(replays: list[Replay], truths: list[npt.NDArray[np.float64]], delta: float) -> dict[str, object]:
    """Put replays into shares.

    Args:
        replays: of one world or table.
        truths: what each point is worth, by replay.
        delta: likewise.
    """
    pairs = list(zip(replays, truths, strict=True))
    bad = sum(
        bool(each.has_left[truth.argmax()]) and truth.max() - truth[each.winner] >= delta
        for each, truth in pairs
    )
    count = len(replays)

    def within(which: Callable[[Replay], int]) -> float:
        # a rounding error is no difference
        return fmean(bool(truth.max() - truth[which(each)] < delta - 1e-9) for each, truth in pairs)

    return {
        "cost": fmean(each.cost for each in replays),
        "three_seeds": fmean(each.three_seeds for each in replays),
        "cost_of_most": fmean(each.cost_of_most for each in replays),
        "same": fmean(
            bool(abs(truth[each.winner] - truth[each.of_most]) < delta - 1e-9) for each, truth in pairs
        ),
        "all_left": fmean(each.n_left == 1 for each in replays),
        "within": within(lambda each: each.winner),
        "within_5": within(lambda each: each.of_5),
        "within_most": within(lambda each: each.of_most),
        "best_left": bad / count,
        "best_left_at_most": float(beta.ppf(0.975, bad + 1, count - bad)) if bad < count else 1.0,
    }


def main() -> None:
    """Replay all tables and worlds, and write a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replays", type=int, default=200, help="races a line")
    parser.add_argument("--half", choices=HALVES, default="judged", help="of the recorded seeds")
    parser.add_argument("--max-seeds", type=int, nargs="+", default=[5, 12])
    options = parser.parse_args()
    heading(f"{options.replays} races a line")
    table = Table()
    for table_name in sorted(TABLES):
        macro_f1 = recorded(table_name).macro_f1
        scores = macro_f1.reshape(-1, *macro_f1.shape[-2:])[:, HALVES[options.half]]
        truth = scores.mean(axis=1).max(axis=1)
        for (name, kept), max_seeds in product(PRUNERS.items(), options.max_seeds):
            rng, replays, truths = np.random.default_rng(0), list[Replay](), []
            for _ in range(options.replays):
                points, seeds = (rng.permutation(scores.shape[axis]) for axis in (0, 1))
                replays.append(replay(scores[points][:, seeds], RECORDED_DELTA, max_seeds, kept))
                truths.append(truth[points])
            found = summary(replays, truths, RECORDED_DELTA)
            table.add(
                {"table": table_name, "points": len(scores), "pruner": name, "max_seeds": max_seeds, **found}
            )
    for (number, (name, world)), max_seeds in product(enumerate(WORLDS.items()), options.max_seeds):
        rng, gains = np.random.default_rng(number), [world.gain, *[0.0] * (N_POINTS - 1)]
        drawn = (world.values(rng, gains, max(5, max_seeds))[:, :, None] for _ in range(options.replays))
        replays = [replay(scores, DELTA, max_seeds, no_pruner) for scores in drawn]
        found = summary(replays, [np.array(gains)] * len(replays), DELTA)
        table.add({"world": name, "points": N_POINTS, "max_seeds": max_seeds, **found})


if __name__ == "__main__":
    main()
