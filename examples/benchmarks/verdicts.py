"""How often a plan's verdicts are wrong: the search's rule, and fresh seeds that decide, in plan after plan.

    python examples/benchmarks/verdicts.py [--replays 4000]

A replay is a plan of several studies. Each tries changes of what it inherits on the seeds of the search and
adopts by `hpo.planning.decisions.decide`, as `hpo run` does. What was adopted is then left out again,
decision by decision, on fresh seeds, and `hpo.planning.verdicts.judge` says after every look which
decisions need more seeds. Values are points of macro F1; a difference of half a point matters (`delta`).

Simulated plans have five studies of four changes:

| world | what is different in it |
|---|---|
| equal | no change makes any difference; the deviation between seeds is 0.4 points |
| one +0.25, +0.5, +1 | the first change of the first study is so much better |
| unequal deviations | 0.2 and 0.9 points in turn |
| collapsed | one training in five ends 40 points lower |
| correlated | half of the variance between seeds is common to all configurations |

The others replay what was really trained: `recorded/joint-*.csv`, 54 points of four parameters on the same 30
seeds. A plan begins at a point that is drawn, and has a study for each parameter. Seeds are drawn whole, each
with what all points reached at it, so that they stay paired.

| world | seeds are drawn from | a change is worth its mean over |
|---|---|---|
| TABLE | all, with replacement | all: this is known exactly |
| TABLE, no effects | likewise; all points are shifted to one mean | nothing: it is worth 0 |
| TABLE, by its other half | half of them, each once, so that the last look is at 12 | the other half |
| TABLE, by OTHER | likewise | the seeds of other data, which may want something else |

Columns: `useless_before`, `useless_after`: plans that carry a change that does not help into the final
configuration, by the search's rule and confirmed, with the upper end of a 95 % interval; `kept`: plans that
keep a change that helps, of all; `power`: of those that adopted one; `better_right`: decisions called better
that are; `equivalent_wrong`: decisions that make a difference of delta or more and are called equivalent;
`covered`: intervals that hold the true difference; `seeds`: mean number of seeds a decision took.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from math import sqrt

import numpy as np
import numpy.typing as npt
import optuna
from grids import recorded
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import beta
from tables import Table, heading

from hpo.planning.decisions import candidate, decide
from hpo.planning.metrics import Metric
from hpo.planning.verdicts import LOOKS, Verdict, bounds, judge
from hpo.space.parameters import Params
from hpo.space.schema import Schema

TABLES = ("joint-digits", "joint-cifar10")
N_STUDIES, N_POINTS, DELTA = 5, 4, 0.5
MAX_SEARCH_SEEDS = 3
OBJECTIVE = Metric("macro_f1", "maximize")
SCHEMA = Schema.of(Params, (), lambda config: set())
Values = npt.NDArray[np.float64]
"""In points."""


@dataclass(frozen=True)
class Search:
    """What a search adopted, and what fresh seeds say of it."""

    gains: Sequence[float]
    """Of each change, in truth."""
    differences: Sequence[Sequence[float]]
    """Of each change, by fresh seed."""


# --- worlds that are simulated ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated:
    """What trainings end at, in points."""

    gain: float = 0.0
    """Of the first change of the first study; all others make no difference."""
    deviations: tuple[float, ...] = (0.4,)
    """Between seeds, of configurations in turn."""
    collapsed: float = 0.0
    """Share of trainings that end 40 points lower."""
    common: float = 0.0
    """Share of the variance that seeds have in common."""
    looks = LOOKS
    is_exact = True
    """Whether the truth is known exactly."""

    @property
    def helps(self) -> bool:
        """Whether there is a change that helps."""
        return self.gain > 0

    def values(self, rng: np.random.Generator, gains: Sequence[float], n_seeds: int) -> Values:
        """Draw what configurations reach, (configurations, seeds); their seeds are the same."""
        deviations = np.resize(self.deviations, len(gains))[:, None]
        own, common = rng.standard_normal((len(gains), n_seeds)), rng.standard_normal(n_seeds)
        noise = sqrt(1 - self.common) * own + sqrt(self.common) * common
        lost = 40 * (rng.random((len(gains), n_seeds)) < self.collapsed)
        drawn: Values = np.asarray(gains)[:, None] + deviations * noise - lost
        return drawn

    def search(self, rng: np.random.Generator, n_seeds: int) -> Search:
        """Search five studies, and draw fresh seeds of what was adopted."""
        adopted = []
        for study in range(N_STUDIES):
            gains = [0.0, self.gain if study == 0 else 0.0, *[0.0] * (N_POINTS - 1)]
            values = self.values(rng, gains, n_seeds)
            control, *others = (_trial(number, each[:, None]) for number, each in enumerate(values))
            winner = _decided(others, control)
            if winner is not None:
                adopted.append(gains[winner])
        if not adopted:
            return Search([], [])
        values = self.values(rng, [0.0, *(-gain for gain in adopted)], LOOKS[-1])
        return Search(adopted, (values[0] - values[1:]).tolist())


# --- worlds that were recorded ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A table of points and seeds."""

    table: str
    judge: str | None = None
    """The table whose seeds say what a change is worth; its own name: half of its seeds say so, and the other
    half are drawn, each once. None: all are drawn, and say so."""
    has_effects: bool = True
    """Whether points keep the means that they have."""

    @property
    def is_exact(self) -> bool:
        """Whether the truth is known exactly."""
        return self.judge is None

    @property
    def helps(self) -> bool:
        """Whether there are changes that help."""
        return self.has_effects

    @property
    def looks(self) -> tuple[int, ...]:
        """Those that there are seeds enough for."""
        n_fresh = read_table(self.table).shape[-2] // 2 - MAX_SEARCH_SEEDS
        return LOOKS if self.is_exact else tuple(look for look in LOOKS if look <= n_fresh)

    def search(self, rng: np.random.Generator, n_seeds: int) -> Search:
        """Search a study a parameter, and draw fresh seeds of what was adopted."""
        values = read_table(self.table)
        *n_values, n_recorded, _ = values.shape
        n_drawn = n_seeds + self.looks[-1]
        if self.is_exact:
            drawn, judging = rng.integers(n_recorded, size=n_drawn), np.arange(n_recorded)
        else:
            shuffled = rng.permutation(n_recorded)
            drawn, judging = shuffled[:n_drawn], shuffled[n_recorded // 2 :]
        of_judge = values[..., judging, :] if self.judge in (None, self.table) else read_table(self.judge)
        worth = of_judge.max(axis=-1).mean(axis=-1)
        if not self.has_effects:
            values, worth = values - worth[..., None, None], np.zeros_like(worth)
        at, before = [int(rng.integers(n)) for n in n_values], dict[int, int]()
        for axis, n in enumerate(n_values):
            points = [(*at[:axis], place, *at[axis + 1 :]) for place in range(n)]
            trials = [_trial(place, values[point][drawn[:n_seeds]]) for place, point in enumerate(points)]
            winner = _decided(trials, trials[at[axis]])
            if winner is not None:
                before[axis], at[axis] = at[axis], winner
        chosen = tuple(at)
        without = [(*chosen[:axis], place, *chosen[axis + 1 :]) for axis, place in before.items()]
        ends = values[..., drawn[n_seeds:], :].max(axis=-1)
        return Search(
            [float(worth[chosen] - worth[each]) for each in without],
            [(ends[chosen] - ends[each]).tolist() for each in without],
        )


def read_table(name: str) -> Values:
    """Return what was recorded in points, (values of each parameter in turn, seeds, epochs)."""
    return 100 * recorded(name).macro_f1


# --- replays ---------------------------------------------------------------------------------------------


def _decided(points: Sequence[FrozenTrial], control: FrozenTrial) -> int | None:
    """Return the number of the trial that a study adopts; None where it keeps the control."""
    inherited = candidate("parent", [control], OBJECTIVE)
    decision = decide("study", [[each] for each in points], None, inherited, OBJECTIVE, SCHEMA, always=False)
    return decision.winner.source.trial if decision.adopted and decision.winner else None


def _trial(number: int, values: Values) -> FrozenTrial:
    """Return a trial of these values, (seeds, epochs); its batch size tells it from others."""
    means = {epoch: float(mean) for epoch, mean in enumerate(values.mean(axis=0), start=1)}
    records = {
        f"epoch:{epoch}": [
            {"seed": seed, "metrics": {OBJECTIVE.name: float(value)}} for seed, value in enumerate(of_epoch)
        ]
        for epoch, of_epoch in enumerate(values.T, start=1)
    }
    trial = optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        value=max(means.values()),
        intermediate_values=means,
        user_attrs={"config": {**SCHEMA.defaults, "batch_size": 21 + number}, **records},
    )
    trial.number = number
    return trial


def confirmed(world: Simulated | Recorded, found: Search, tally: Counter[str]) -> list[float]:
    """Leave each decision out on fresh seeds, and return the gains of those that are shown to help."""
    n_seeds = dict.fromkeys(map(str, range(len(found.gains))), 0)
    open_ = set(n_seeds)
    for look in world.looks:
        n_seeds |= dict.fromkeys(open_, look)
        differences = {name: found.differences[int(name)][:n] for name, n in n_seeds.items()}
        judged = judge(differences, DELTA, world.looks)
        open_ = {name for name, each in judged.items() if each.verdict is None}
        if not open_:
            break
    for name, each in judged.items():
        gain = found.gains[int(name)]
        tally["decisions"] += 1
        tally["seeds"] += each.n_seeds
        assert each.interval is not None  # it has seeds enough
        tally["covered"] += each.interval[0] <= gain <= each.interval[1]
        tally["better"] += each.verdict == Verdict.BETTER
        tally["better_right"] += each.verdict == Verdict.BETTER and gain > 0
        tally["matters"] += abs(gain) >= DELTA
        tally["equivalent_wrong"] += each.verdict == Verdict.EQUIVALENT and abs(gain) >= DELTA
    return [found.gains[int(name)] for name, each in judged.items() if each.verdict == Verdict.BETTER]


def replay(world: Simulated | Recorded, seed: int, n_replays: int, n_seeds: int) -> Counter[str]:
    """Replay plans, and count what happened."""
    rng, tally = np.random.default_rng(seed), Counter[str]()
    for _ in range(n_replays):
        found = world.search(rng, n_seeds)
        after = confirmed(world, found, tally) if found.gains else []
        tally["plans"] += 1
        tally["useless_before"] += any(gain <= 0 for gain in found.gains)
        tally["useless_after"] += any(gain <= 0 for gain in after)
        tally["helpful_before"] += any(gain > 0 for gain in found.gains)
        tally["helpful_after"] += any(gain > 0 for gain in after)
    return tally


def row(name: str, world: Simulated | Recorded, n_seeds: int, tally: Counter[str]) -> dict[str, object]:
    """Put the counts of a world into shares."""

    def share(part: str, whole: str) -> float | str:
        return round(tally[part] / tally[whole], 3) if tally[whole] else ""

    bad, plans = tally["useless_after"], tally["plans"]
    return {
        "world": name,
        "search_seeds": n_seeds,
        "useless_before": share("useless_before", "plans"),
        "useless_after": share("useless_after", "plans"),
        # Clopper & Pearson
        "useless_after_at_most": round(float(beta.ppf(0.975, bad + 1, plans - bad)), 3) if bad < plans else 1,
        "kept": share("helpful_after", "plans") if world.helps else "",
        "power": share("helpful_after", "helpful_before"),
        "better_right": share("better_right", "better"),
        "equivalent_wrong": share("equivalent_wrong", "matters"),
        "covered": share("covered", "decisions") if world.is_exact else "",
        "seeds": share("seeds", "decisions"),
    }


WORLDS: dict[str, Simulated | Recorded] = {
    "equal": Simulated(),
    "one +0.25": Simulated(0.25),
    "one +0.5": Simulated(0.5),
    "one +1": Simulated(1.0),
    "unequal deviations": Simulated(deviations=(0.2, 0.9)),
    "unequal deviations, one +0.5": Simulated(0.5, deviations=(0.2, 0.9)),
    "collapsed": Simulated(collapsed=0.2),
    "collapsed, one +0.5": Simulated(0.5, collapsed=0.2),
    "correlated": Simulated(common=0.5),
    "correlated, one +0.5": Simulated(0.5, common=0.5),
    **{
        f"{table}{name}": world
        for table in TABLES
        for name, world in (
            ("", Recorded(table)),
            (", no effects", Recorded(table, has_effects=False)),
            *[
                (f", by {'its other half' if judge == table else judge}", Recorded(table, judge))
                for judge in TABLES
            ],
        )
    },
}


def main() -> None:
    """Replay all worlds, and write a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replays", type=int, default=4000, help="plans a world")
    parser.add_argument(
        "--search-seeds",
        type=int,
        nargs="+",
        default=[1, MAX_SEARCH_SEEDS],
        choices=range(1, MAX_SEARCH_SEEDS + 1),
        help="of the search",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    for looks in {world.looks for world in WORLDS.values()}:
        for n_decisions in range(1, N_STUDIES + 1):
            bounds(0.05 / n_decisions, looks)  # found once, and not in every process
    heading(f"{options.replays} plans a world")
    table = Table()
    with ProcessPoolExecutor(options.workers) as pool:
        for n_seeds in options.search_seeds:
            for number, (name, world) in enumerate(WORLDS.items()):
                each = -(-options.replays // options.workers)
                seeds = [1000 * number + worker for worker in range(options.workers)]
                tallies = pool.map(replay, repeat(world), seeds, repeat(each), repeat(n_seeds))
                table.add(row(name, world, n_seeds, sum(tallies, Counter[str]())))


if __name__ == "__main__":
    main()
