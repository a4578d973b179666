"""A plan that goes study by study against one joint search, at equal training seconds.

    python examples/benchmarks/plan_or_joint.py [--replays 200] [--grids NAME…]

Both search recorded grids (`search_cost.py record`), whose cells take what they took. A replay draws the seed
to search with, and from what values the plan starts; the plan then goes through learning rate, batch size, L2
and batch norm, or through these in random order: each study inherits the winner, and of equal values what was
there stays. A joint search tries the whole space as one study: cells by Optuna's TPE, or at random, both as
`hpo.planning.samplers` draws them, none twice. What a search has chosen is judged by what that reaches on the
other seeds, as far as the best cell is ahead there.

First table: when the plan has ended, and the others have spent as many seconds: `regret` in points of macro
F1, mean over the replays, and how much more of it than the plan a search has, with a 95 % bootstrap interval
over the replays. Second table: the regret by the share of the plan's seconds that was spent; after its last
study a plan has nothing more to try.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, repeat
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from grids import Cell, Floats, Grid, recorded, study_by_study
from search_cost import replay_options
from tables import Table

from hpo.planning.samplers import distributions, draw
from hpo.space.parameters import ParamValue
from hpo.space.study_file import StudySpec
from hpo.training.registry import DEFAULT_RECIPE, load_recipe

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5)
PLAN, REORDERED, TPE, RANDOM = "study by study", "in random order", "joint, TPE", "joint, random"
N_RESAMPLED = 10_000


@dataclass(frozen=True)
class Anytime:
    """What a search would choose, by the seconds that it has spent."""

    seconds: list[float]
    chosen: list[Cell]

    def at(self, seconds: float) -> Cell:
        """Return the choice after so many seconds; before the first result the first cell."""
        place = int(np.searchsorted(self.seconds, seconds * (1 + 1e-9), side="right")) - 1
        return self.chosen[max(0, place)]


def plan(grid: Grid, means: Floats, start: Cell, order: list[int]) -> Anytime:
    """Go study by study."""
    walk = study_by_study(means, order, start)
    spent = accumulate(float(grid.seconds[cell]) for cell in walk.trained)
    return Anytime(list(spent), list(walk.best_so_far))


def joint(grid: Grid, means: Floats, sampler: str, number: int, limit: float) -> Anytime:
    """Search all of the space at once, until the next cell would go beyond so many seconds."""
    found, spent = Anytime([], []), 0.0
    for cell in _drawn(grid, means, sampler, number):
        spent += float(grid.seconds[cell])
        if spent > limit * (1 + 1e-9):
            break
        known = found.chosen[-1] if found.chosen else cell
        found.seconds.append(spent)
        found.chosen.append(cell if means[cell] > means[known] else known)
    return found


def _drawn(grid: Grid, means: Floats, sampler: str, number: int) -> Iterator[Cell]:
    """Yield the cells that a sampler asks for, told what each before has reached."""
    search = {axis: [_value(level) for level in levels] for axis, levels in grid.axes.items()}
    schema = load_recipe(DEFAULT_RECIPE).recipe.schema
    definition = {"name": "joint", "search": search, "sampler": {"name": sampler}, "trials": means.size}
    spec = StudySpec.model_validate(definition, context={"schema": schema})
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(direction="maximize", storage=storage)
    known, axes, tried = spec.context(), distributions(spec), set[str]()
    for index in range(means.size):
        trial_id = storage.create_new_trial(study._study_id)
        point = draw(study, storage.get_trial(trial_id), spec, known, index, number, tried)
        tried.add(spec.key(known, point))
        for name, value in point.items():
            storage.set_trial_param(trial_id, name, axes[name].to_internal_repr(value), axes[name])
        cell = tuple(levels.index(point[axis]) for axis, levels in search.items())
        storage.set_trial_state_values(trial_id, optuna.trial.TrialState.COMPLETE, [float(means[cell])])
        yield cell


def _value(text: str) -> ParamValue:
    """Return a value of a table."""
    value: ParamValue = json.loads(text.lower())
    return value


def replay(grid: Grid, number: int) -> tuple[dict[str, Anytime], float, Floats]:
    """Search once each way; return that, the seconds of the plan, and the regret of every cell."""
    rng = np.random.default_rng(number)
    seed = int(rng.integers(grid.values.shape[-1]))
    means, truth = grid.values[..., seed], np.delete(grid.values, seed, axis=-1).mean(-1)
    start = tuple(int(rng.integers(length)) for length in means.shape)
    order = list(range(means.ndim))
    ours = plan(grid, means, start, order)
    seconds = ours.seconds[-1]
    limit = max(SHARES) * seconds
    found = {
        PLAN: ours,
        REORDERED: plan(grid, means, start, [int(axis) for axis in rng.permutation(means.ndim)]),
        TPE: joint(grid, means, "tpe", number, limit),
        RANDOM: joint(grid, means, "random", number, limit),
    }
    return found, seconds, 100 * (truth.max() - truth)


def regrets_of(name: str, number: int) -> dict[str, list[float]]:
    """Return the regret of each search of a replay at each share."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searches, seconds, regret = replay(recorded(name), number)
    return {
        search: [float(regret[each.at(share * seconds)]) for share in SHARES]
        for search, each in searches.items()
    }


def regrets(pool: Executor, name: str, n_replays: int) -> dict[str, Floats]:
    """Return the regret of each search, (replays, shares)."""
    found = list(pool.map(regrets_of, repeat(name), range(n_replays), chunksize=5))
    return {search: np.array([each[search] for each in found]) for search in found[0]}


def interval(differences: Floats) -> tuple[float, float]:
    """Return in what the mean lies with 95 % confidence, by resampling."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (N_RESAMPLED, len(differences))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Write both tables."""
    options = replay_options(__doc__ or "")
    with ProcessPoolExecutor(options.workers) as pool:
        found = {name: regrets(pool, name, options.replays) for name in options.grids}
    table = Table()
    for name, by_search in found.items():
        for search, regret in by_search.items():
            behind = regret[:, SHARES.index(1.0)] - by_search[PLAN][:, SHARES.index(1.0)]
            low, high = interval(behind)
            record: dict[str, Any] = {"grid": name, "search": search}
            record["regret"] = fmean(regret[:, SHARES.index(1.0)])
            if search != PLAN:
                record |= {"behind_the_plan": fmean(behind), "low": low, "high": high}
            else:
                record |= dict.fromkeys(("behind_the_plan", "low", "high"), "")
            table.add(record)
    for name, by_search in found.items():
        for search, regret in by_search.items():
            for share, each in zip(SHARES, regret.mean(0), strict=True):
                table.add({"grid": name, "search": search, "share": share, "mean_regret": float(each)})


if __name__ == "__main__":
    main()
