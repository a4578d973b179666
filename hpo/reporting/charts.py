"""What a figure shows, as plain data that knows nothing of how it is drawn.

A figure is a title, a caption and a chart. `hpo.reporting.render` draws every chart twice: with matplotlib
for the page, with Plotly for the dashboard. Names that others gave are in here as they are: the renderers
make them harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpo._text import printable
from hpo.reporting.palette import BLUE, Colour

MAX_MARKS = 25
"""A line of more epochs has no marks: they would touch."""


def short_name(name: str, length: int) -> str:
    """Return somebody's name as a figure can show it: printable, and short."""
    text = printable(name)
    return text if len(text) <= length else f"{text[: length - 1]}…"


@dataclass(frozen=True)
class Line:
    """One value an epoch."""

    values: Sequence[float | None]
    """Of epoch 1, 2, …; None, NaN and infinity are gaps."""
    colour: Colour
    label: str = ""
    """In a printed legend, which has room for few; empty: not in it."""
    name: str = ""
    """In a legend that scrolls; empty: the label."""
    text: str = ""
    """What a browser says of it under the pointer; empty: the name."""
    weight: Literal["strong", "normal", "faint"] = "normal"
    is_dashed: bool = False
    has_marks: bool = True
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """From the lowest to the highest value of every epoch."""

    @property
    def is_marked(self) -> bool:
        """Whether each of its epochs is drawn as a mark, as one epoch alone must be."""
        n_epochs = len(self.values)
        return n_epochs == 1 or (self.has_marks and n_epochs <= MAX_MARKS)


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    lines: Sequence[Line]
    title: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines over epochs, in panels side by side."""

    panels: Sequence[Panel]
    axis: str = ""
    """What the values are."""
    legend: str = ""
    """What a printed legend names."""
    names: str = ""
    """What the names of the lines are."""
    limits: tuple[float, float] | None = None
    zero: float | None = None
    """The axis is logarithmic, and what is not above this value is drawn at it."""
    marked: int | None = None
    """An epoch with a line across."""
    has_one_scale: bool = True
    """Whether the values of all panels are of one kind."""


@dataclass(frozen=True)
class Bar:
    """From one value to another."""

    row: str
    end: float
    start: float = 0.0
    label: str = ""
    """Printed at its end."""
    text: str = ""
    """What a browser says of it under the pointer; empty: row and label."""
    colour: Colour = BLUE
    group: str = ""
    """In the legend; empty: there is none."""
    is_pale: bool = False
    deviation: float = 0.0
    """Of its end: a whisker."""

    @property
    def right(self) -> float:
        """Where there is room for its label."""
        return max(self.start, self.end + self.deviation)


@dataclass(frozen=True)
class Bars:
    """Bars in rows, the first row above."""

    bars: Sequence[Bar]
    axis: str
    limits: tuple[float, float]
    reference: float | None = None
    """A dashed line across all rows."""
    is_chain: bool = False
    """Whether each bar begins where the one above ends, which a thin line shows."""
    is_wide: bool = False

    @property
    def rows(self) -> list[str]:
        """The rows' names, in order."""
        return list(dict.fromkeys(bar.row for bar in self.bars))


@dataclass(frozen=True)
class Matrix:
    """A table of numbers, coloured by size."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    """NaN: a gap."""
    row_axis: str
    column_axis: str
    digits: int
    unit: str = ""
    is_less_better: bool = False
    """Whether small values are the bright ones."""


@dataclass(frozen=True)
class Effect:
    """What a parameter does: a value for each of its levels."""

    name: str
    levels: Sequence[str]
    values: Sequence[float]

    @property
    def extent(self) -> float:
        """How far apart its values are."""
        return max(self.values) - min(self.values)


@dataclass(frozen=True)
class Effects:
    """Effects side by side, on one scale."""

    effects: Sequence[Effect]
    axis: str
    reference: float
    """A dashed line across all panels."""


@dataclass(frozen=True)
class Scatter:
    """Pairs of numbers, with the line on which both are equal."""

    pairs: Sequence[tuple[float, float]]
    x_axis: str
    y_axis: str

    @property
    def limits(self) -> tuple[float, float]:
        """Of both axes, with a little room."""
        numbers = [number for pair in self.pairs for number in pair]
        low, high = min(numbers), max(numbers)
        room = 0.05 * (high - low) or 1.0
        return low - room, high + room


@dataclass(frozen=True)
class TradeOff:
    """Points in a plane, and a line through those that no other is better than both ways."""

    points: Sequence[tuple[float, float]]
    names: Sequence[str]
    """What each is, for a browser."""
    front: Sequence[int]
    """Places of the points on the front, in the order of the line."""
    chosen: int | None
    """The place of the point that is carried on."""
    x_axis: str
    y_axis: str
    has_log_x: bool

    @property
    def line(self) -> list[tuple[float, float]]:
        """The points on the front, in order."""
        return [self.points[place] for place in self.front]


@dataclass(frozen=True)
class Estimate:
    """A difference, and between what it lies."""

    row: str
    value: float
    low: float
    high: float
    text: str
    """What is printed above it."""
    colour: Colour
    delta: float
    """A difference up to it, to either side, does not matter."""


@dataclass(frozen=True)
class Forest:
    """Differences in rows, the first above, around a line at 0."""

    estimates: Sequence[Estimate]
    axis: str

    @property
    def limits(self) -> tuple[float, float]:
        """Of the axis: all intervals, and what does not matter, with a little room."""
        ends = [end for each in self.estimates for end in (each.low, each.high, each.delta, -each.delta)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        room = 0.08 * (high - low) or 1.0
        return low - room, high + room


Chart = Curves | Bars | Matrix | Effects | Scatter | TradeOff | Forest


@dataclass(frozen=True)
class Figure:
    """Something to be seen."""

    title: str
    caption: str
    """What there is to see, in a sentence; also for those who do not see it."""
    chart: Chart
