"""How often the bound of `hpo price` holds, and how far away it is.

    python examples/benchmarks/price.py [--replays 200] [--shares 0.1 0.5]

A replay is a plan that goes study by study through a grid, an axis a study, in random order and from random
values, on seeds drawn at random. Then it tries cells across studies as `hpo price` does and asks
`hpo.planning.price` for the bound. The truth is what the best cell reaches on all other seeds, less what the
chosen one does there; of a simulated grid it is known. Of recorded grids with three seeds the best of so many
means of two is best by luck as well, and their truth is larger than it is.

| grid | what it is |
|---|---|
| recorded ones | as `search_cost.py record` leaves them |
| equal … one cell stands out | simulated, 54 cells, as `grids.py` has them; seeds deviate by 0.5 points |

Columns, in points of macro F1: `holds`: share of the replays whose bound is no less than the truth, with the
lower end of a 95 % interval; `bound`: its median; `missed`, `missed_p95`: the truth, mean and 95th
percentile; `room`: what the chosen cell lacks to 100 %, which is a bound without any work.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat
from statistics import fmean, median

import numpy as np
from grids import WORLDS, Floats, is_recorded, recorded, simulated, study_by_study
from scipy.stats import beta
from search_cost import JOINT
from tables import Table, heading

from hpo.planning.metrics import Metric
from hpo.planning.price import Evidence, at_most_missed

OBJECTIVE = Metric("macro_f1", "maximize")
GRIDS = [
    *filter(is_recorded, JOINT),
    "learning-rate-by-batch-size-by-batch-norm",
    "network-setup-by-batch-size",
    *WORLDS,
]
MANY = 3
"""Seeds of a search that has more than one, where the grid has enough."""


@dataclass(frozen=True)
class Replay:
    """One plan and its bound, in points."""

    bound: float
    missed: float
    room: float


def replay(grid: str, n_seeds: int, share: float, number: int) -> Replay:
    """Go through a grid and bound what was missed."""
    rng = np.random.default_rng([number, n_seeds])
    worth: Floats | None = None
    if grid in WORLDS:
        worth, values = simulated(rng, grid)
    else:
        values = recorded(grid).values
    seeds = rng.permutation(values.shape[-1])
    search, rest = values[..., seeds[:n_seeds]], values[..., seeds[n_seeds:]]
    truth = rest.mean(-1) if worth is None else worth
    means = search.mean(-1)
    order = [int(axis) for axis in rng.permutation(means.ndim)]
    walk = study_by_study(means, order, tuple(int(rng.integers(length)) for length in means.shape))
    cells = list(np.ndindex(means.shape))
    untried = [cell for cell in cells if cell not in walk.trained]
    n_across = max(1, round(share * len(walk.trained)))
    across = [untried[place] for place in rng.permutation(len(untried))[:n_across]]
    trained = [*walk.trained, *across]
    scores = [search[cell].tolist() for cell in trained]
    evidence = Evidence(np.array(trained), scores, np.array(cells), cells.index(walk.chosen))
    found = at_most_missed(evidence, OBJECTIVE), truth.max() - truth[walk.chosen], 1 - means[walk.chosen]
    return Replay(*(100 * float(each) for each in found))


def main() -> None:
    """Write a line a grid, number of seeds and share."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replays", type=int, default=200, help="plans a grid")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.5], help="of the search's cost")
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=GRIDS, metavar="GRID")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    heading(f"{options.replays} plans a grid")
    table = Table()
    with ProcessPoolExecutor(options.workers) as pool:
        for share, grid in product(options.shares, options.grids):
            for n_seeds in (1, MANY) if grid in JOINT or grid in WORLDS else (1,):
                numbers = range(options.replays)
                found = list(pool.map(replay, repeat(grid), repeat(n_seeds), repeat(share), numbers))
                n_held = sum(each.bound >= each.missed - 1e-9 for each in found)
                table.add(
                    {
                        "grid": grid,
                        "seeds": n_seeds,
                        "share": share,
                        "holds": n_held / len(found),
                        "holds_at_least": float(beta.ppf(0.025, n_held, len(found) - n_held + 1)),
                        "bound": median(each.bound for each in found),
                        "missed": fmean(each.missed for each in found),
                        "missed_p95": float(np.quantile([each.missed for each in found], 0.95)),
                        "room": fmean(each.room for each in found),
                    }
                )


if __name__ == "__main__":
    main()
