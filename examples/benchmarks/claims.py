"""How often claims are called confirmed that are not true, in simulated worlds.

    python examples/benchmarks/claims.py [--worlds 4000]

A world is a plan that trains the cells of its claims as `hpo run --claims` does: `hpo.planning.claims` says
after every look what is shown, and which cells lack how many seeds for the next. `original` are the shipped
claims, all in one plan, where they share cells; the others are a claim of each kind, in a plan of its own.
Nothing makes any difference unless there is a `gain`. The plan has ten further points, with three seeds each.

| world | what is different in it |
|---|---|
| equal | the deviation between seeds is 1 point, as large as the difference that matters (`delta`) |
| unequal deviations | 0.5 and 2 points in turn |
| collapsed | one training in five ends 40 points lower |
| correlated | half of the variance between seeds is common to all configurations |

Of a claim about a state half of all seeds end in it, at every cell; a gain of 0.8 is 9 in 10 against 1 in 10.

Columns: `gain`: by how much the claim is true, as a share; `confirmed`, with the upper end of a 95 %
interval, and `denied`: shares of the worlds; `covered`: intervals that hold the true difference; `seeds`:
mean number of seeds a cell. `any of the original`: worlds in which one of them was confirmed at least;
nothing corrects for their number.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from math import sqrt

import numpy as np
from scipy.stats import beta
from tables import Table, heading

from hpo.planning.claims import (
    DELTA_OF_STATE,
    LOOKS,
    Cell,
    ClaimResult,
    ClaimVerdict,
    Noise,
    Run,
    claim_verdict,
    judge_contrast,
)
from hpo.planning.decisions import TrialRef
from hpo.planning.metrics import Metric
from hpo.space.claim_file import Claim, Claims, Contrast, load_claims
from hpo.space.parameters import Params, ParamValues, canonical_json
from hpo.space.schema import Schema
from hpo.space.study_file import load_studies, shipped_studies
from hpo.training.registry import load_recipe

OBJECTIVE = Metric("macro_f1", "maximize")
POINT = 0.01
N_OTHERS, SEEDS_OF_OTHERS = 10, 3


@dataclass(frozen=True)
class World:
    """What trainings end at."""

    deviations: tuple[float, ...] = (POINT,)
    """Between seeds, of configurations in turn."""
    collapsed: float = 0.0
    """Share of trainings that end 40 points lower."""
    common: float = 0.0
    """Share of the variance that seeds have in common."""


WORLDS = {
    "equal": World(),
    "unequal deviations": World(deviations=(0.5 * POINT, 2 * POINT)),
    "collapsed": World(collapsed=0.2),
    "correlated": World(common=0.5),
}


@dataclass(frozen=True)
class Kind:
    """A claim of one kind: its contrast, and which of its cells are ahead of the others by the gain."""

    contrast: Mapping[str, object]
    is_ahead: Callable[[ParamValues], bool]

    @property
    def claim(self) -> Claim:
        """The claim, as a study file would state it."""
        stated = {"claims": [{"text": "A claim", "study": "study", "contrasts": [self.contrast]}]}
        (claim,) = Claims.from_json(stated, Schema.of(Params)).claims
        return claim


_FAST = {"better": {"momentum": 0.9}, "worse": {"momentum": 0.0}, "delta": POINT}
_DYING = {"state": "dying ReLU", "at": {"momentum": 0.9}, "not_at": {"momentum": 0.0}}
KINDS = {
    "two cells": Kind(_FAST, lambda cell: cell["momentum"] == 0.9),
    "mean of three": Kind(
        {**_FAST, "across": {"batch_size": [20, 40, 80]}}, lambda cell: cell["momentum"] == 0.9
    ),
    "interaction": Kind(
        {**_FAST, "more_at": {"batch_size": 80}, "less_at": {"batch_size": 20}},
        lambda cell: (cell["momentum"], cell["batch_size"]) == (0.9, 80),
    ),
    "best of three inside": Kind(
        {"inside": {"l2": [0.0, 1e-5, 1e-4, 1e-3, 1e-2]}, "delta": POINT}, lambda cell: cell["l2"] == 1e-4
    ),
    "state": Kind(_DYING, lambda cell: cell["momentum"] == 0.9),
}


@dataclass
class Plan:
    """Cells and what their seeds end at; seeds are drawn when a look first asks for them."""

    world: World
    rng: np.random.Generator
    gain: float = 0.0
    is_ahead: Callable[[ParamValues], bool] = lambda cell: False
    may_die: Collection[str] = ()
    """The cells that a claim about a state asks about."""
    runs: dict[str, list[Run]] = field(default_factory=dict)
    n_seeds: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.common = self.rng.standard_normal(LOOKS[-1])
        for number in range(N_OTHERS):
            name = f"other {number}"
            self._draw(name, 0.0, 0.0)
            self.n_seeds[name] = SEEDS_OF_OTHERS

    def cell(self, params: ParamValues) -> Cell:
        """Return a cell with the seeds it has so far."""
        name = canonical_json(params)
        if name not in self.runs:
            is_ahead = self.is_ahead(params)
            dying = 0.5 + (is_ahead - 0.5) * self.gain if name in self.may_die else 0.0
            self._draw(name, self.gain * is_ahead, dying)
        found = dict(enumerate(self.runs[name][: self.n_seeds[name]]))
        return Cell(params, dict(params), found, found)

    @property
    def noise(self) -> Noise:
        """The deviation between seeds, over all that was trained."""
        return Noise.of(self.runs[name][:n] for name, n in self.n_seeds.items())

    def _draw(self, name: str, ahead: float, share_dying: float) -> None:
        world, n = self.world, LOOKS[-1]
        deviation = world.deviations[len(self.runs) % len(world.deviations)]
        own = sqrt(1 - world.common) * self.rng.standard_normal(n)
        scores = 0.5 + ahead + deviation * (own + sqrt(world.common) * self.common)
        scores -= 0.4 * (self.rng.random(n) < world.collapsed)
        dies = self.rng.random(n) < share_dying
        self.runs[name] = [
            Run(TrialRef(study=name, trial=0), float(score), _STATES[bool(dead)], True)
            for score, dead in zip(scores, dies, strict=True)
        ]


_STATES = {True: frozenset({"dying ReLU"}), False: frozenset[str]()}


def judged(plan: Plan, claims: Sequence[Claim]) -> list[ClaimResult]:
    """Train what claims lack, look by look, and return what is found in the end."""
    while True:
        noise, results = plan.noise, []
        for claim in claims:
            contrasts = [
                judge_contrast(
                    each,
                    plan.cell,
                    noise,
                    OBJECTIVE,
                    DELTA_OF_STATE if each.delta is None else each.delta,
                )
                for each in claim.contrasts
            ]
            results.append(ClaimResult(claim, claim_verdict(contrasts), contrasts))
        lacking = {
            cell.key: len(cell.runs) + n_seeds for result in results for cell, n_seeds in result.missing
        }
        if not lacking:
            return results
        for key, n_seeds in lacking.items():
            plan.n_seeds[key] = max(plan.n_seeds[key], n_seeds)


def truth(contrast: Contrast, plan: Plan) -> float:
    """Return the difference that a contrast would show with seeds without end."""
    return sum(weight * plan.gain * plan.is_ahead(cell) for weight, cell in contrast.comparisons[0])


def replay(
    world: World, claims: Sequence[Claim], kind: str, gain: float, seed: int, n: int
) -> list[Counter[str]]:
    """Judge the claims in so many worlds, and count for each of them what happened; and for all together."""
    rng, tallies = np.random.default_rng(seed), [Counter[str]() for _ in [*claims, "any"]]
    may_die = {
        canonical_json(cell)
        for claim in claims
        for contrast in claim.contrasts
        if contrast.state
        for _, cell in contrast.comparisons[0]
    }
    for _ in range(n):
        is_ahead = KINDS[kind].is_ahead if gain else Plan.is_ahead
        plan = Plan(world, rng, gain, is_ahead, may_die)
        results = judged(plan, claims)
        for result, tally in zip(results, tallies, strict=False):
            tally["worlds"] += 1
            tally[result.verdict] += 1
            tally["cells"] += len(result.cells)
            tally["seeds"] += sum(len(cell.runs) for cell in result.cells)
            for each in result.contrasts:
                if each.comparison.interval is not None and not each.contrast.inside:
                    low, high = each.comparison.interval
                    tally["intervals"] += 1
                    tally["covered"] += low <= truth(each.contrast, plan) <= high
        tallies[-1]["worlds"] += 1
        for verdict in {result.verdict for result in results}:
            tallies[-1][verdict] += 1
    return tallies


def row(world: str, claim: str, gain: float, tally: Counter[str]) -> dict[str, object]:
    """Put the counts of a claim into shares."""

    def share(part: str, whole: str) -> float | str:
        return round(tally[part] / tally[whole], 3) if tally[whole] else ""

    n, confirmed = tally["worlds"], tally[ClaimVerdict.CONFIRMED]
    return {
        "world": world,
        "claim": claim,
        "gain": gain,
        "confirmed": share(ClaimVerdict.CONFIRMED, "worlds"),
        # Clopper & Pearson
        "confirmed_at_most": round(float(beta.ppf(0.975, confirmed + 1, n - confirmed)), 3)
        if confirmed < n
        else 1,
        "denied": share(ClaimVerdict.DENIED, "worlds"),
        "covered": share("covered", "intervals"),
        "seeds": share("seeds", "cells"),
    }


def original() -> Sequence[Claim]:
    """Return the claims that are shipped."""
    schema = load_recipe("constrained-cnn").recipe.schema
    return load_claims(shipped_studies(), load_studies(shipped_studies(), schema), schema).claims


def main() -> None:
    """Judge claims in all worlds, and write a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worlds", type=int, default=4000, help="plans of each kind")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    heading(f"{options.worlds} plans of each kind")
    table, shipped = Table(), original()
    names = [*(f"original {number}" for number in range(1, len(shipped) + 1)), "any of the original"]
    runs: list[tuple[str, list[str], str, Sequence[Claim], float]] = [
        (world, names, "", shipped, 0.0) for world in WORLDS
    ]
    for kind, each in KINDS.items():
        claims: Sequence[Claim] = [each.claim]
        gains = (0.4, 0.8) if each.claim.contrasts[0].state else (POINT, 2 * POINT)
        runs += [(world, [kind], kind, claims, 0.0) for world in WORLDS]
        runs += [("equal", [kind], kind, claims, gain) for gain in gains]
    with ProcessPoolExecutor(options.workers) as pool:
        for number, (world, names, kind, claims, gain) in enumerate(runs):
            n = -(-options.worlds // options.workers)
            seeds = [1000 * number + worker for worker in range(options.workers)]
            found = pool.map(
                replay, repeat(WORLDS[world]), repeat(claims), repeat(kind), repeat(gain), seeds, repeat(n)
            )
            for name, *tallies in zip(names, *found, strict=False):
                table.add(row(world, name, gain, sum(tallies, Counter[str]())))


if __name__ == "__main__":
    main()
