"""Constraints: one comparison of parameters and numbers each, parsed, never run as code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import InputError, did_you_mean
from hpo.space.parameters import PARAMETERS, NetworkConfig, Params, TrainingConfig

NUMBERS: dict[str, type[int] | type[float]] = {
    name: int if field.annotation is int else float
    for part in (NetworkConfig, TrainingConfig)
    for name, field in part.model_fields.items()
    if field.annotation in (int, float)
}
"""The parameters that are numbers, each with its type."""

Number = int | float
Bounds = tuple[Number, Number]

_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_POSSIBLE: dict[str, Callable[[Bounds, Bounds], bool]] = {
    "<=": lambda left, right: left[0] <= right[1],
    ">=": lambda left, right: left[1] >= right[0],
    "==": lambda left, right: left[0] <= right[1] and right[0] <= left[1],
    "!=": lambda left, right: len({*left, *right}) > 1,
    "<": lambda left, right: left[0] < right[1],
    ">": lambda left, right: left[1] > right[0],
}
_TERM = r"([A-Za-z_][A-Za-z0-9_]*|[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_COMPARISON = re.compile(rf"\s*{_TERM}\s*({'|'.join(_HOLDS)})\s*{_TERM}\s*")


@dataclass(frozen=True)
class Constraint:
    """One comparison, as `conv1_channels <= conv2_channels`; a term is a parameter's name or a number."""

    left: str | Number
    comparison: str
    right: str | Number

    @classmethod
    def parse(cls, text: object) -> Constraint:
        """Read a comparison.

        Raises:
            InputError: the text is not a comparison, or names something that is not a numeric parameter.
        """
        match = _COMPARISON.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InputError(
                f"constraints: {text!r} is not a comparison of parameters and numbers, "
                "as 'conv1_channels <= conv2_channels'"
            )
        left, comparison, right = match.groups()
        constraint = cls(_term(left, match.string), comparison, _term(right, match.string))
        if not constraint.names:
            raise InputError(f"constraints: {text!r} names no parameter")
        return constraint

    @property
    def names(self) -> frozenset[str]:
        """The parameters that it compares."""
        return frozenset(term for term in (self.left, self.right) if isinstance(term, str))

    def holds(self, params: Params) -> bool:
        """Return whether it is true; `params` must hold every parameter that it names."""
        left, right = (params[t] if isinstance(t, str) else t for t in (self.left, self.right))
        return _HOLDS[self.comparison](left, right)

    def possible(self, bounds: Mapping[str, Bounds]) -> bool:
        """Return whether it can be true for parameters that range independently between (low, high)."""
        left, right = (bounds[t] if isinstance(t, str) else (t, t) for t in (self.left, self.right))
        return _POSSIBLE[self.comparison](left, right)

    def __str__(self) -> str:
        return f"{self.left} {self.comparison} {self.right}"


def _term(text: str, constraint: str) -> str | Number:
    if text in NUMBERS:
        return text
    if text in PARAMETERS:
        raise InputError(
            f"constraints: {text} in {constraint!r} is not a number; a list in [search] can limit it"
        )
    if text[0].isalpha() or text[0] == "_":
        raise InputError(
            f"constraints: {text} in {constraint!r} is not a parameter; {did_you_mean(text, NUMBERS)}"
        )
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"constraints: {text} in {constraint!r} is too large for a number")
    return int(number) if number.is_integer() else number
