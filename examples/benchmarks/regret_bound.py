"""Whether a bound of the regret tells when a sampled study is done.

    python examples/benchmarks/regret_bound.py [--replays 200]

Optuna's `RegretBoundEvaluator` fits a Gaussian process to the points of a study and bounds how far its best
one is from the best of the space (Makarova et al., "Automatic Termination for Hyperparameter Optimization",
AutoML-Conf 2022). A replay draws a seed of a recorded grid (`search_cost.py record`) and its cells in random
order, and asks for the bound after every fourth. The truth is what the best cell reaches on all other seeds,
less what the chosen one does there; both in points of macro F1.

First table, by the number of points: medians of the bound and means of the truth, and how often the bound
`holds`. Second table, for a study that ends once the bound is below `delta`: how many do before they have
tried all, after how many points on average (those that never do with all), and how often the truth is below
`delta`, too, which is what the study would claim.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from statistics import fmean, median

import numpy as np
import optuna
import torch
from grids import recorded
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import create_trial
from search_cost import replay_options
from tables import Table

DELTAS = (0.5, 1.0, 2.0, 3.0)
FIRST, STEP = 12, 4
"""Points before the first bound, and from one to the next."""

Bounds = dict[int, tuple[float, float]]
"""Bound and truth by the number of points."""


def replay(name: str, number: int) -> Bounds:
    """Go through a grid in random order."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    torch.set_num_threads(1)
    grid, rng = recorded(name), np.random.default_rng(number)
    seed = int(rng.integers(grid.values.shape[-1]))
    means, truth = grid.values[..., seed], np.delete(grid.values, seed, axis=-1).mean(-1)
    # levels are a step of their scale apart, and so are their numbers
    space = {axis: IntDistribution(0, len(levels) - 1) for axis, levels in grid.axes.items()}
    cells = list(np.ndindex(means.shape))
    tried, found = [], {}
    for n, place in enumerate(rng.permutation(len(cells)), start=1):
        cell = cells[place]
        params = dict(zip(space, cell, strict=True))
        tried.append(create_trial(params=params, distributions=dict(space), value=100 * float(means[cell])))
        if n < FIRST or n % STEP:
            continue
        bound = RegretBoundEvaluator(seed=number).evaluate(tried, StudyDirection.MAXIMIZE)
        chosen = tuple(max(tried, key=lambda trial: trial.value or 0.0).params.values())
        found[n] = float(bound), 100 * float(truth.max() - truth[chosen])
    return found


def main() -> None:
    """Write both tables."""
    options = replay_options(__doc__ or "")
    with ProcessPoolExecutor(options.workers) as pool:
        found = {name: list(pool.map(replay, repeat(name), range(options.replays))) for name in options.grids}
    table = Table()
    for name, replays in found.items():
        for n in replays[0]:
            pairs = [each[n] for each in replays]
            table.add(
                {
                    "grid": name,
                    "points": n,
                    "bound": median(bound for bound, _ in pairs),
                    "truth": fmean(truth for _, truth in pairs),
                    "holds": fmean(bound >= truth for bound, truth in pairs),
                }
            )
    for name, replays in found.items():
        n_cells = int(recorded(name).values[..., 0].size)
        for delta in DELTAS:
            ends = [next((n for n, (bound, _) in each.items() if bound < delta), None) for each in replays]
            right = [each[n][1] < delta for each, n in zip(replays, ends, strict=True) if n is not None]
            table.add(
                {
                    "grid": name,
                    "delta": delta,
                    "end": len(right) / len(ends),
                    "mean_points": fmean(n or n_cells for n in ends),
                    "right": fmean(right) if right else "",
                }
            )


if __name__ == "__main__":
    main()
