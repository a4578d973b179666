"""Metrics: what a plan tunes for and what is shown beside it; their directions, names and writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from hpo._text import cost_text, percent
from hpo.space.parameters import Direction

_SHARES = {"macro_f1": ("macro F1", "F1"), "accuracy": ("accuracy", "acc.")}
"""Label and short name of the metrics that are shares, written in percent; all others are plain numbers."""
_MEANINGS = {
    "macro_f1": "the mean of the F1 of all classes, each counted the same however rare it is; the F1 of a "
    "class is the harmonic mean of precision (how many of those taken for it are it) and recall (how many of "
    "it are found)",
    "r2": "the share of the targets' variance that is explained: 1 is perfect, 0 no better than their mean",
    "mae": "the mean absolute error",
}


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is, and its direction."""

    name: str
    """In records: `macro_f1`."""
    direction: Direction

    @property
    def is_share(self) -> bool:
        """Whether it is a fraction that people read in percent."""
        return self.name in _SHARES

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        if self.is_share:
            return _SHARES[self.name][0]
        name, is_count = self.name.removeprefix("n_"), self.name.startswith("n_")
        return f"{'number of ' if is_count else ''}{name.replace('_', ' ')}"

    @property
    def title(self) -> str:
        """Its label at the beginning of a sentence."""
        return f"{self.label[0].upper()}{self.label[1:]}"

    @property
    def short(self) -> str:
        """Its name where there is little room."""
        return _SHARES[self.name][1] if self.is_share else self.label

    @property
    def head(self) -> str:
        """Its short name with the unit, as a table's column."""
        return f"{self.short} %" if self.is_share else self.short

    @property
    def slug(self) -> str:
        """Its name in those of files and figures."""
        return self.name.replace("_", "-")

    @property
    def meaning(self) -> str:
        """What it is, as the end of a sentence; empty where its name says it or nobody knows."""
        return _MEANINGS.get(self.name, "")

    @property
    def axis(self) -> str:
        """Its label with the unit."""
        return f"{self.label}, %" if self.is_share else self.label

    @property
    def scale(self) -> int:
        """Times so much it has the unit that people read."""
        return 100 if self.is_share else 1

    # --- what is better ------------------------------------------------------------------------------

    @property
    def is_maximized(self) -> bool:
        """Whether more is better."""
        return self.direction == "maximize"

    @property
    def best_word(self) -> str:
        """As in "the highest macro F1"."""
        return "highest" if self.is_maximized else "lowest"

    def score(self, value: float) -> float:
        """Return a number that is the higher the better the value."""
        return value if self.is_maximized else -value

    def gain(self, value: float, over: float) -> float:
        """Return by how much a value is better than another; negative where it is worse."""
        return self.score(value) - self.score(over)

    def best_of(self, values: Mapping[int, float]) -> int | None:
        """Return the first key, in ascending order, of the best value; None where there are none."""
        return min(values, key=lambda key: (-self.score(values[key]), key)) if values else None

    def chance(self, n_classes: int) -> float | None:
        """Return what guessing reaches; None where that is not known.

        Args:
            n_classes: 0 where targets are numbers.
        """
        if self.is_share:
            return 1 / n_classes if n_classes else None
        return 0.0 if self.name == "r2" else None  # of always the mean of the targets

    # --- how it is written ---------------------------------------------------------------------------

    def text(self, value: float | None, deviation: float | None = None) -> str:
        """Return a value as tables write it, as "70.5 ± 0.4"; the unit stands in the column's head."""
        if value is None:
            return "–"
        number = percent if self.is_share else partial(_number, beside=value)
        return number(value) + ("" if deviation is None else f" ± {number(deviation)}")

    def with_unit(self, value: float | None, deviation: float | None = None) -> str:
        """Return a value as sentences write it, as "70.5 ± 0.4 %"."""
        text = self.text(value, deviation)
        return text if value is None or not self.is_share else f"{text} %"

    def amount(self, value: float) -> str:
        """Return a value of this or, as if it were a metric, of a cost, as sentences write it."""
        return self.with_unit(value) if self.is_share else cost_text(value)

    def gap(self, difference: float | None) -> str:
        """Return a difference with its sign, as tables write it."""
        if difference is None:
            return "–"
        return _points(difference, sign="+") if self.is_share else _number(difference, sign="+")

    def signed(self, difference: float) -> str:
        """Return a difference with its sign, as sentences write it."""
        return f"{'+' if difference >= 0 else '−'}{self.distance(abs(difference))}"

    def distance(self, difference: float) -> str:
        """Return a difference as sentences write it."""
        return f"{_points(difference)} points" if self.is_share else f"{difference:.3g}"


def _points(difference: float, sign: str = "") -> str:
    """Return a difference of shares in points, as 2.0, 0.034, 0.0004: zero stands for zero alone."""
    points = round(100 * difference, 9)  # what the mean of equal numbers leaves is no lead
    size = abs(points)
    digits = ".1f" if size >= 0.1 or size == 0 else ".3f" if size >= 0.001 else ".1g"
    return f"{points or 0.0:{sign}{digits}}"


def _number(value: float, *, beside: float | None = None, sign: str = "") -> str:
    """Return a number that is no share, rounded as that beside it is: 0.305, 48.250, 279.8, 7,483."""
    size = abs(value if beside is None else beside)
    if 0 < size < 0.01 or size >= 1e6:
        return f"{value:{sign}.4g}"
    return f"{value:{sign},.{3 if size < 100 else 1 if size < 1000 else 0}f}"
