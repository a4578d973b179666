"""Grids for searches to be replayed on: recorded ones, and simulated ones whose studies interact.

A grid is an array of macro F1, an axis a parameter, the seeds last. A study searches one axis.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt

RECORDED = Path(__file__).with_name("recorded")
OF_RUNS = ("seed", "epoch")
Floats = npt.NDArray[np.float64]
Cell = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What the cells of a recorded table reached, and what that took."""

    axes: Mapping[str, Sequence[str]]
    macro_f1: Floats
    """(axes…, seeds, epochs)."""
    epoch_seconds: Floats
    """Likewise, as it took them then; the machine was not always alone."""

    @property
    def values(self) -> Floats:
        """What each cell reaches with each seed, (axes…, seeds): the best epoch."""
        best: Floats = self.macro_f1.max(-1)
        return best

    @property
    def seconds(self) -> Floats:
        """What one seed of each cell takes, (axes…), at the shortest that its epochs took."""
        *_, n_epochs = self.epoch_seconds.shape
        shortest: Floats = n_epochs * self.epoch_seconds.min((-1, -2))
        return shortest


def is_recorded(name: str) -> bool:
    """Return whether there is such a table."""
    return (RECORDED / f"{name}.csv").exists()


@cache
def recorded(name: str) -> Grid:
    """Return a recorded table by its name."""
    return read_grid(RECORDED / f"{name}.csv")


def read_grid(file: Path) -> Grid:
    """Return a table as `search_cost.py record` writes it, values in the order of their first line.

    Raises:
        SystemExit: points, seeds or epochs of it are missing.
    """
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    *names, _, _ = rows[0]
    axes = {name: list(dict.fromkeys(row[name] for row in rows)) for name in names}
    found = {
        tuple(row[name] for name in names): (float(row["macro_f1"]), float(row["seconds"])) for row in rows
    }
    try:
        values = np.array([found[each] for each in product(*axes.values())])
    except KeyError:
        raise SystemExit(f"{file}: points or epochs are missing") from None
    macro_f1, seconds = values.T.reshape(2, *map(len, axes.values()))
    return Grid({name: axes[name] for name in names if name not in OF_RUNS}, macro_f1, seconds)


WORLDS: Mapping[str, tuple[float, float, float, float]] = {
    "equal": (0, 0, 0, 0),
    "additive": (3, 0, 0, 0),
    "pairs interact": (3, 1, 0, 0),
    "pairs interact strongly": (3, 2, 0, 0),
    "every cell its own": (3, 0, 2, 0),
    "rugged": (3, 0, 6, 0),
    "one cell stands out": (3, 0, 0, 5),
}
"""Deviations in points of the axes' effects, of the interactions of any two, of each cell's own part; and by
how much one cell stands out."""


def simulated(
    rng: np.random.Generator, world: str, shape: Cell = (3, 3, 3, 2), n_seeds: int = 30, noise: float = 0.005
) -> tuple[Floats, Floats]:
    """Draw a grid; return what its cells are worth, and what seeds say of it."""
    effects, interactions, own, outlier = (each / 100 for each in WORLDS[world])
    axes = range(len(shape))
    worth = np.full(shape, 0.6) + rng.normal(0, own, shape)
    for together, deviation in [((axis,), effects) for axis in axes] + [
        (pair, interactions) for pair in combinations(axes, 2)
    ]:
        part = tuple(length if axis in together else 1 for axis, length in enumerate(shape))
        worth = worth + rng.normal(0, deviation, part)
    worth[tuple(int(rng.integers(length)) for length in shape)] += outlier
    return worth, worth[..., None] + rng.normal(0, noise, (*shape, n_seeds))


@dataclass(frozen=True)
class Walk:
    """A plan that went study by study."""

    chosen: Cell
    trained: Sequence[Cell]
    """In their order, each once."""
    best_so_far: Sequence[Cell]
    """What would have been chosen after each of them."""


def study_by_study(values: Floats, order: Sequence[int], start: Cell) -> Walk:
    """Search one axis after the other, each from the winner so far; of equal values what was there stays.

    Args:
        values: of each cell at the search's seeds.
        order: of the axes.
        start: what the first study's other parameters are.
    """
    current, trained, so_far = start, list[Cell](), list[Cell]()
    for number, axis in enumerate(order):
        points = [
            tuple(level if at == axis else old for at, old in enumerate(current))
            for level in range(values.shape[axis])
        ]
        best = None if number == 0 else current
        for point in points:
            if best is None or values[point] > values[best]:
                best = point
            if point not in trained:
                trained.append(point)
                so_far.append(best)
        assert best is not None  # no axis is empty
        current = best
    return Walk(current, trained, so_far)
