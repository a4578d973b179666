"""The metrics that a report shows: how each is named, stored and written. They are spelt out here alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo._text import percent


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is."""

    name: str
    """In records: `macro_f1`, and `valid_macro_f1` of an epoch."""
    label: str
    head: str
    """Of a table's column."""
    best: Callable[[Sequence[float]], float] = max
    is_share: bool = True
    """A fraction that people read in percent."""

    @property
    def title(self) -> str:
        """Its label at the beginning of a sentence."""
        return f"{self.label[0].upper()}{self.label[1:]}"

    @property
    def slug(self) -> str:
        """Its name in those of files and figures."""
        return self.name.replace("_", "-")

    @property
    def valid(self) -> str:
        """Its name in what an epoch recorded on validation."""
        return f"valid_{self.name}"

    @property
    def scale(self) -> int:
        """Times so much it has the unit that people read."""
        return 100 if self.is_share else 1

    @property
    def axis(self) -> str:
        """Its label with the unit."""
        return f"{self.label}, %" if self.is_share else self.label

    def text(self, value: float | None) -> str:
        """Return a value as tables write it; the unit stands in the column's head."""
        return percent(value) if value is None or self.is_share else f"{value:.3f}"

    def gap(self, difference: float | None) -> str:
        """Return a difference with its sign."""
        if difference is None:
            return "–"
        return f"{self.scale * difference:+.{1 if self.is_share else 3}f}"


MACRO_F1 = Metric("macro_f1", "macro F1", "F1 %")
ACCURACY = Metric("accuracy", "accuracy", "acc. %")
LOSS = Metric("loss", "loss", "loss", min, is_share=False)
METRICS: tuple[Metric, ...] = (MACRO_F1, ACCURACY, LOSS)
OBJECTIVE = MACRO_F1
"""What studies maximise; the others are shown beside it."""
