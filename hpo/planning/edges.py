"""Winners on the edge of what was tried: the best may lie beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from hpo._text import show_value
from hpo.errors import InputError
from hpo.planning.decisions import Decision
from hpo.space.axes import Choices, Range
from hpo.space.schema import Schema
from hpo.space.study_file import StudySpec

GEOMETRIC = 4.0
"""An axis whose values span so many times the least goes on by factors, another by differences."""


@dataclass(frozen=True)
class Edge:
    """An axis on whose edge a winner is."""

    param: str
    value: int | float
    side: str
    """`lowest` or `highest`."""
    beyond: int | float | None
    """The next value outwards of a grid; None where there can be none."""

    @property
    def text(self) -> str:
        """What is so, in words."""
        return f"{self.param.replace('_', ' ')} {show_value(self.value)} is the {self.side} tried"


def edges(spec: StudySpec, decision: Decision | None, schema: Schema) -> list[Edge]:
    """Return the axes on whose edges the winner of a study is that was adopted."""
    if decision is None or not decision.adopted or decision.winner is None:
        return []
    found = []
    for name, axis in spec.search.items():
        value = decision.winner.searched.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if side := _side(axis, value):
            beyond = _beyond(axis, side, schema, name) if spec.is_grid else None
            found.append(Edge(name, value, side, beyond))
    return found


def advice(name: str, found: list[Edge]) -> str:
    """Return the command that tries values beyond the edges of a study; empty where there is none."""
    beyond = [f"{edge.param}={edge.beyond!r}" for edge in found if edge.beyond is not None]
    return f"hpo extend {name} {' '.join(beyond)}" if beyond else ""


def _side(axis: Choices | Range, value: float) -> str:
    low, high = (float(bound) for bound in axis.bounds)
    # a range is hardly ever drawn at its very end
    near = 0.0 if isinstance(axis, Choices) or axis.step else 0.02
    if isinstance(axis, Range) and axis.log:
        near_low, near_high = low * (high / low) ** near, high / (high / low) ** near
    else:
        near_low, near_high = low + near * (high - low), high - near * (high - low)
    if value >= near_high:
        return "highest"
    return "lowest" if value <= near_low else ""


def _n_digits(value: float) -> int:
    """Return how many significant digits a number is written with."""
    return len(Decimal(repr(value)).normalize().as_tuple().digits)


def _beyond(axis: Choices | Range, side: str, schema: Schema, name: str) -> int | float | None:
    numbers = sorted(value for value in axis.values() if isinstance(value, int | float))
    if len(numbers) < 2:
        return None
    last, before = numbers[:2] if side == "lowest" else (numbers[-1], numbers[-2])
    is_geometric = numbers[0] > 0 and numbers[-1] >= GEOMETRIC * numbers[0]
    further = last * (last / before) if is_geometric else last + (last - before)
    is_int = schema.parameters[name].kind == "int"
    # as round as the values so far: 0.03 after 0.003 and 0.01; but 1e-05 for 1.0000000000000001e-05
    value = round(further) if is_int else float(f"{further:.{max(map(_n_digits, numbers))}g}")
    if value == last:
        value = float(f"{further:.6g}")
    try:
        schema.check(name, value)
    except InputError:
        return None
    return None if value in numbers else value
