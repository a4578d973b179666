"""How often the interval of the test set's answer holds the truth, in simulated worlds where that is known.

    python examples/benchmarks/uncertainty.py [--replays 1000]

Every replay draws other seeds and other test examples, of ten classes. How hard an example is, is the same
for all seeds (0.7 of the variance), seeds differ in skill (`skill`, its deviation), and the rest is chance.
What is wrong is taken for any other class. So accuracy and macro F1 are, over all seeds and examples that
there could be, 90 %.

`covered` and `covered_f1` are the shares of replays whose 95 % interval by `hpo.execution.uncertainty` holds
that, for accuracy and for macro F1. `bootstrap` is the same for accuracy by what was tried first and dropped:
percentiles of a bootstrap that draws seeds and examples anew, together. `seeds_share` is the share of the
variance that comes from the seeds, as hpo finds it in the mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import sqrt
from statistics import NormalDist, fmean
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tables import Table, heading
from torch import Tensor, nn

import hpo
from hpo.execution.uncertainty import uncertainty

N_SEEDS, N_CLASSES, TRUTH = 5, 10, 0.9
SHARED = 0.7
"""Of the variance that is not of skill, what all seeds have in common."""
N_DRAWS = 200
"""Of the bootstrap that was dropped; as many as hpo's own has."""
Labels = npt.NDArray[np.int64]


class Judge(hpo.Recipe):
    """The metrics that people read, counted fast; it trains nothing."""

    metrics: ClassVar = {"accuracy": "maximize", "macro_f1": "maximize"}

    def build(self, params: hpo.Params, data: hpo.DataInfo) -> nn.Module:
        """Return what nobody asks for."""
        return nn.Identity()

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Return the metrics of labels that were predicted."""
        counts = torch.bincount(N_CLASSES * targets + outputs, minlength=N_CLASSES**2).double()
        confusion = counts.reshape(N_CLASSES, N_CLASSES)
        right = confusion.diagonal()
        f1 = 2 * right / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
        return {"accuracy": float(right.sum() / counts.sum()), "macro_f1": float(f1.mean())}


@dataclass(frozen=True)
class World:
    """How seeds and examples differ."""

    n_examples: int
    skill: float
    """Deviation between seeds."""

    def predicted(self, rng: np.random.Generator) -> tuple[Labels, Labels]:
        """Draw what seeds predict, (seeds, examples), and the truth."""
        # so that over all seeds and examples the share of right ones is the truth
        ease = NormalDist().inv_cdf(TRUTH) * sqrt(1 + self.skill**2)
        skill = self.skill * rng.standard_normal((N_SEEDS, 1))
        common = rng.standard_normal(self.n_examples)
        own = rng.standard_normal((N_SEEDS, self.n_examples))
        is_right = ease + skill + sqrt(SHARED) * common + sqrt(1 - SHARED) * own > 0
        targets = rng.integers(N_CLASSES, size=self.n_examples)
        others = (targets + rng.integers(1, N_CLASSES, size=is_right.shape)) % N_CLASSES
        return np.where(is_right, targets, others), targets


def replay(world: World, seed: int, n_replays: int) -> npt.NDArray[np.float64]:
    """Return the share of the seeds, and for each method whether its interval holds the truth, by replay."""
    torch.set_num_threads(1)
    rng, recipe, found = np.random.default_rng(seed), Judge(), []
    for _ in range(n_replays):
        predicted, targets = world.predicted(rng)
        outputs, truth = [torch.from_numpy(each) for each in predicted], torch.from_numpy(targets)
        by_metric = uncertainty(recipe, [recipe.evaluate(each, truth) for each in outputs], outputs, truth)
        accuracy, f1 = by_metric["accuracy"], by_metric["macro_f1"]
        variance = accuracy["seeds"] ** 2 + accuracy["examples"] ** 2
        found.append(
            (
                accuracy["seeds"] ** 2 / variance,
                _holds(accuracy["interval"]),
                _holds(f1["interval"]),
                _holds(_percentiles(predicted == targets, rng)),
            )
        )
    return np.array(found, dtype=float)


def _holds(interval: list[float]) -> bool:
    return interval[0] <= TRUTH <= interval[1]


def _percentiles(is_right: npt.NDArray[np.bool_], rng: np.random.Generator) -> list[float]:
    """Return the interval by a bootstrap of both levels at once."""
    n_seeds, n_examples = is_right.shape
    drawn = [
        is_right[rng.integers(n_seeds, size=(n_seeds, 1)), rng.integers(n_examples, size=n_examples)].mean()
        for _ in range(N_DRAWS)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [float(low), float(high)]


WORLDS = [World(n_examples, skill) for n_examples, skill in product((400, 2000), (0.02, 0.1, 0.3))]


def main() -> None:
    """Replay all worlds, and write a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replays", type=int, default=1000, help="tests a world")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    heading(f"{options.replays} tests a world")
    table = Table()
    each = -(-options.replays // options.workers)
    with ProcessPoolExecutor(options.workers) as pool:
        for number, world in enumerate(WORLDS):
            jobs = [pool.submit(replay, world, 1000 * number + i, each) for i in range(options.workers)]
            share, accuracy, f1, bootstrap = np.concatenate([job.result() for job in jobs]).T
            table.add(
                {
                    "examples": world.n_examples,
                    "skill": world.skill,
                    "seeds_share": round(fmean(share), 2),
                    "covered": round(fmean(accuracy), 3),
                    "covered_f1": round(fmean(f1), 3),
                    "bootstrap": round(fmean(bootstrap), 3),
                }
            )


if __name__ == "__main__":
    main()
