"""How often a plan's verdicts are wrong: today's rule, and fresh seeds that decide, in simulated worlds.

    python examples/benchmarks/verdicts.py [--replays 4000]

A replay is a plan of five studies. Each tries four changes of what it inherits on the seeds of the search
and adopts by `hpo.planning.decisions.decide`, as `hpo run` does. What was adopted is then left out again,
decision by decision, on fresh seeds, and `hpo.planning.verdicts.judge` says after every look which
decisions need more seeds. Values are points of macro F1; a difference of half a point matters (`delta`).

| world | what is different in it |
|---|---|
| equal | no change makes any difference; the deviation between seeds is 0.4 points |
| one +0.25, +0.5, +1 | the first change of the first study is so much better |
| unequal deviations | 0.2 and 0.9 points in turn |
| collapsed | one training in five ends 40 points lower |
| correlated | half of the variance between seeds is common to all configurations |

Columns: `useless_before`, `useless_after`: plans that carry a change that does not help into the final
configuration, by today's rule and confirmed, with the upper end of a 95 % interval; `kept`: helpful changes
that were adopted and confirmed, of all; `power`: of those adopted; `better_right`: decisions called better
that are; `equivalent_wrong`: decisions that make a difference of delta or more and are called equivalent;
`covered`: intervals that hold the true difference; `seeds`: mean number of seeds a decision took.
"""

from __future__ import annotations

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
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import beta
from tables import Table, heading

from hpo.planning.decisions import Candidate, TrialRef, decide
from hpo.planning.metrics import Metric
from hpo.planning.verdicts import LOOKS, Verdict, bounds, judge
from hpo.space.parameters import Params
from hpo.space.schema import Schema

N_STUDIES, N_POINTS, DELTA = 5, 4, 0.5
OBJECTIVE = Metric("macro_f1", "maximize")
SCHEMA = Schema.of(Params, (), lambda config: set())
DEFAULTS = SCHEMA.defaults


@dataclass(frozen=True)
class World:
    """What trainings end at, in points."""

    gain: float = 0.0
    """Of the first change of the first study; all others make no difference."""
    deviations: tuple[float, ...] = (0.4,)
    """Between seeds, of configurations in turn."""
    collapsed: float = 0.0
    """Share of trainings that end 40 points lower."""
    common: float = 0.0
    """Share of the variance that seeds have in common."""

    def values(
        self, rng: np.random.Generator, gains: Sequence[float], n_seeds: int
    ) -> npt.NDArray[np.float64]:
        """Draw what configurations reach, (configurations, seeds); their seeds are the same."""
        deviations = np.resize(self.deviations, len(gains))[:, None]
        own, common = rng.standard_normal((len(gains), n_seeds)), rng.standard_normal(n_seeds)
        noise = sqrt(1 - self.common) * own + sqrt(self.common) * common
        lost = 40 * (rng.random((len(gains), n_seeds)) < self.collapsed)
        drawn: npt.NDArray[np.float64] = np.asarray(gains)[:, None] + deviations * noise - lost
        return drawn


WORLDS = {
    "equal": World(),
    "one +0.25": World(0.25),
    "one +0.5": World(0.5),
    "one +1": World(1.0),
    "unequal deviations": World(deviations=(0.2, 0.9)),
    "unequal deviations, one +0.5": World(0.5, deviations=(0.2, 0.9)),
    "collapsed": World(collapsed=0.2),
    "collapsed, one +0.5": World(0.5, collapsed=0.2),
    "correlated": World(common=0.5),
    "correlated, one +0.5": World(0.5, common=0.5),
}


def adopted(world: World, rng: np.random.Generator, n_seeds: int) -> list[float]:
    """Search five studies, and return the true gain of each change that was adopted."""
    found = []
    for study in range(N_STUDIES):
        gains = [0.0, world.gain if study == 0 else 0.0, *[0.0] * (N_POINTS - 1)]
        values = world.values(rng, gains, n_seeds)
        control = _candidate(values[0])
        points = [[_trial(number, each)] for number, each in enumerate(values[1:])]
        decision = decide("study", points, None, control, OBJECTIVE, SCHEMA, always=False)
        if decision.adopted and decision.winner is not None:
            found.append(gains[1 + decision.winner.source.trial])
    return found


def _candidate(values: npt.NDArray[np.float64]) -> Candidate:
    seeds = {seed: float(value) for seed, value in enumerate(values)}
    source = TrialRef(study="parent", trial=0)
    return Candidate(source=source, params=DEFAULTS, value=float(values.mean()), seeds=seeds)


def _trial(number: int, values: npt.NDArray[np.float64]) -> FrozenTrial:
    records = [{"seed": seed, "metrics": {OBJECTIVE.name: float(value)}} for seed, value in enumerate(values)]
    trial = optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        value=float(values.mean()),
        intermediate_values={1: float(values.mean())},
        user_attrs={"config": {**DEFAULTS, "batch_size": 21 + number}, "epoch:1": records},
    )
    trial.number = number
    return trial


def confirmed(
    world: World, rng: np.random.Generator, gains: Sequence[float], tally: Counter[str]
) -> list[float]:
    """Leave each decision out on fresh seeds, and return the gains of those that are shown to help."""
    values = world.values(rng, [0.0, *(-gain for gain in gains)], LOOKS[-1])
    differences = (values[0] - values[1:]).tolist()
    n_seeds = dict.fromkeys(map(str, range(len(gains))), 0)
    open_ = set(n_seeds)
    for look in LOOKS:
        n_seeds |= dict.fromkeys(open_, look)
        found = judge({name: differences[int(name)][:n] for name, n in n_seeds.items()}, DELTA)
        open_ = {name for name, each in found.items() if each.verdict is None}
        if not open_:
            break
    for name, each in found.items():
        gain = gains[int(name)]
        tally["decisions"] += 1
        tally["seeds"] += each.n_seeds
        assert each.interval is not None  # it has seeds enough
        tally["covered"] += each.interval[0] <= gain <= each.interval[1]
        tally["better"] += each.verdict == Verdict.BETTER
        tally["better_right"] += each.verdict == Verdict.BETTER and gain > 0
        tally["matters"] += abs(gain) >= DELTA
        tally["equivalent_wrong"] += each.verdict == Verdict.EQUIVALENT and abs(gain) >= DELTA
    return [gains[int(name)] for name, each in found.items() if each.verdict == Verdict.BETTER]


def replay(world: World, seed: int, n_replays: int, n_seeds: int) -> Counter[str]:
    """Replay plans, and count what happened."""
    rng, tally = np.random.default_rng(seed), Counter[str]()
    for _ in range(n_replays):
        before = adopted(world, rng, n_seeds)
        after = confirmed(world, rng, before, tally) if before else []
        tally["plans"] += 1
        tally["useless_before"] += any(gain <= 0 for gain in before)
        tally["useless_after"] += any(gain <= 0 for gain in after)
        tally["helpful_before"] += any(gain > 0 for gain in before)
        tally["helpful_after"] += any(gain > 0 for gain in after)
    return tally


def row(name: str, world: World, n_seeds: int, tally: Counter[str]) -> dict[str, object]:
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
        "kept": share("helpful_after", "plans") if world.gain else "",
        "power": share("helpful_after", "helpful_before"),
        "better_right": share("better_right", "better"),
        "equivalent_wrong": share("equivalent_wrong", "matters"),
        "covered": share("covered", "decisions"),
        "seeds": share("seeds", "decisions"),
    }


def main() -> None:
    """Replay all worlds, and write a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replays", type=int, default=4000, help="plans a world")
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[1, 3], help="of the search")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    for n_decisions in range(1, N_STUDIES + 1):
        bounds(0.05 / n_decisions)  # found once, and not in every process
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
