"""Rows below one another, in as much width as there is: whatever it is, a number stays whole.

Where not all fits, headers break, long texts break between words, sentences go below their rows, names are
shortened with "…"; and where that is not enough, every row becomes a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hpo._text import printable

INDENT = 2
_NUMERIC = re.compile(r"(?=[.,eE+-]*\d)[\d.,eE+-]+")
BLOCKS = "▁▂▃▄▅▆▇█"


class Kind(Enum):
    """What becomes of a column's cells where there is little room."""

    NUMBER = auto()
    """They stay whole, to the right."""
    WORD = auto()
    """They stay whole, to the left."""
    NAME = auto()
    """They are shortened with "…"."""
    TEXT = auto()
    """They break between words."""
    SENTENCE = auto()
    """They break between words, below their row rather than in a narrow column."""


_MIN_CELLS = {Kind.NAME: 8, Kind.TEXT: 24, Kind.SENTENCE: 60}


@dataclass(frozen=True)
class _Layout:
    heads: Sequence[str]
    widths: Mapping[int, int]
    """Of the columns that stand in the table, by their places among all."""
    gap: int


class Grid:
    """A table that rich can print.

    Args:
        columns: the head and the kind of each; one without any text is left out.
    """

    def __init__(self, *columns: tuple[str, Kind]) -> None:
        self._heads = [printable(head) for head, _ in columns]
        self._kinds = [kind for _, kind in columns]
        self._rows: list[tuple[list[Text], str]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row, a cell for each column."""
        self._rows.append(([_printable(cell) for cell in cells], style))

    def fits(self, width: int) -> bool:
        """Return whether the rows keep the form of a table in so many cells."""
        return self._layout(width) is not None

    def table(self) -> tuple[list[tuple[str, Kind]], list[tuple[list[Text], str]]]:
        """Return heads and kinds of the columns that have any text, and the rows: cells and style."""
        used = self._used()
        columns = [(self._heads[at], self._kinds[at]) for at in used]
        return columns, [([cells[at] for at in used], style) for cells, style in self._rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        layout = self._layout(options.max_width)
        if layout is None:
            yield from self._list(console, options.max_width)
        else:
            yield from self._table(console, options.max_width, layout)

    def _layout(self, width: int) -> _Layout | None:
        """Return how the columns stand in a table; None where they have no room."""
        used = self._used()
        beside = [at for at in used if self._kinds[at] is not Kind.SENTENCE]
        broken = [re.sub(r"(?<=[_ ])(?=.)", "\n", head) for head in self._heads]
        # rather a sentence below than a head broken or a name shortened for its sake
        for columns, heads, kinds, gap in (
            (used, self._heads, {Kind.SENTENCE}, 2),
            (beside, self._heads, {*Kind}, 2),
            (beside, broken, {*Kind}, 2),
            (beside, broken, {*Kind}, 1),
        ):
            widths = {at: self._natural(at, heads[at]) for at in columns}
            for at in reversed(columns):
                if self._kinds[at] in kinds:
                    excess = sum(widths.values()) + gap * (len(columns) - 1) - width
                    least = min(widths[at], _MIN_CELLS.get(self._kinds[at], widths[at]))
                    widths[at] = max(least, widths[at] - max(excess, 0))
            if sum(widths.values()) + gap * (len(columns) - 1) <= width:
                return _Layout(heads, widths, gap)
        return None

    def _used(self) -> list[int]:
        return [at for at in range(len(self._heads)) if any(cells[at] for cells, _ in self._rows)]

    def _natural(self, at: int, head: str) -> int:
        cells = [cells[at].cell_len for cells, _ in self._rows]
        return max([*cells, *map(cell_len, head.split("\n"))])

    def _table(self, console: Console, width: int, layout: _Layout) -> Iterator[Text]:
        titles = [Text(layout.heads[at], "bold").split("\n") for at in layout.widths]
        height = max(map(len, titles), default=0)
        # a head of fewer lines stands right above its column
        yield from self._lines(layout, [[Text()] * (height - len(each)) + [*each] for each in titles], "")
        for cells, style in self._rows:
            wrapped = [self._cell(console, cells, at, n_cells) for at, n_cells in layout.widths.items()]
            yield from self._lines(layout, wrapped, style)
            for at, kind in enumerate(self._kinds):
                if kind is Kind.SENTENCE and at not in layout.widths and cells[at]:
                    for line in _wrapped(console, cells[at], width - INDENT):
                        yield Text.assemble(" " * INDENT, line)

    def _cell(self, console: Console, cells: Sequence[Text], at: int, width: int) -> Sequence[Text]:
        kind = self._kinds[at]
        if kind in (Kind.TEXT, Kind.SENTENCE):
            return _wrapped(console, cells[at], width)
        return [shortened(cells[at], width) if kind is Kind.NAME else cells[at]]

    def _lines(self, layout: _Layout, cells: Sequence[Sequence[Text]], style: str) -> Iterator[Text]:
        for pieces in zip_longest(*cells, fillvalue=Text()):
            line = Text(style=style)
            for (at, width), piece in zip(layout.widths.items(), pieces, strict=True):
                margin = " " * (width - piece.cell_len)
                is_right = self._kinds[at] is Kind.NUMBER
                line.append_text(Text.assemble(margin, piece) if is_right else Text.assemble(piece, margin))
                line.append(" " * layout.gap)
            line.rstrip()
            yield line

    def _list(self, console: Console, width: int) -> Iterator[Text]:
        for cells, style in self._rows:
            indent = 0
            for head, cell in zip(self._heads, cells, strict=True):
                if not cell:
                    continue
                first, *rest = _wrapped(console, Text.assemble((head, "bold"), " ", cell), width - indent)
                yield Text.assemble(" " * indent, first, style=style)
                indent = INDENT
                for line in _wrapped(console, Text(" ").join(rest), width - 2 * indent) if rest else ():
                    yield Text.assemble(" " * 2 * indent, line, style=style)


def shortened(text: Text, width: int) -> Text:
    """Return a text in so many cells, its end as "…"; a number is whole or not there."""
    if text.cell_len <= width:
        return text
    kept, room = 0, width - 1
    while (room := room - cell_len(text.plain[kept])) >= 0:
        kept += 1
    for number in _NUMERIC.finditer(text.plain):
        if number.start() < kept < number.end():
            kept = number.start()
    cut = text[:kept]
    cut.rstrip()
    return cut.append("…")


def _printable(cell: str | Text) -> Text:
    """Return a cell on one line, with nothing that a terminal would obey."""
    return Text(printable(cell)) if isinstance(cell, str) else Text(printable(cell.plain), cell.style)


def _wrapped(console: Console, text: Text, width: int) -> list[Text]:
    lines = list(text.wrap(console, max(width, 1)))
    for line in lines:
        line.rstrip()
    return lines


def sparkline(curve: Sequence[float], width: int) -> str:
    """Return a curve in so many cells at most, one an epoch or the last of each of as many parts."""
    finite = [value for value in curve if math.isfinite(value)]
    scale = (min(finite), max(finite)) if finite else (0.0, 0.0)
    n_cells = min(width, len(curve))
    return "".join(block(curve[(cell + 1) * len(curve) // n_cells - 1], scale) for cell in range(n_cells))


def block(value: float, scale: tuple[float, float]) -> str:
    """Return a value as a block between what is lowest and what is highest."""
    low, high = scale
    if not math.isfinite(value) or high <= low:
        return BLOCKS[0]
    return BLOCKS[min(len(BLOCKS) - 1, int((value - low) / (high - low) * len(BLOCKS)))]
