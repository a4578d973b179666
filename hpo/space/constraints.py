"""Constraints: one comparison of parameters and numbers each, parsed, never run as code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import InputError, did_you_mean
from hpo.space.parameters import ParamValues

Number = int | float
Bounds = tuple[Number, Number]

N_PARAMETERS, N_MULTIPLICATIONS, MODEL_MEGABYTES = "n_parameters", "n_multiplications", "model_megabytes"
NETWORK_COSTS = (N_PARAMETERS, N_MULTIPLICATIONS, MODEL_MEGABYTES)
"""What a network costs, known before it trains; a recipe may have costs of its own instead."""
SECONDS_AN_EPOCH = "seconds_an_epoch"
"""What is measured while a trial trains: the mean over its epochs and seeds."""

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
_DIGITS = "[0-9](?:_?[0-9])*"
_TERM = rf"([A-Za-z_][A-Za-z0-9_]*|[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?[0-9]+)?)"
_COMPARISON = re.compile(rf"\s*{_TERM}\s*({'|'.join(_HOLDS)})\s*{_TERM}\s*")


@dataclass(frozen=True)
class Constraint:
    """One comparison, as `batch_size <= 64`; a term is a number, or the name of a parameter or a cost."""

    left: str | Number
    comparison: str
    right: str | Number

    @classmethod
    def parse(
        cls,
        text: object,
        numbers: Collection[str],
        parameters: Collection[str],
        costs: Collection[str] = (),
    ) -> Constraint:
        """Read a comparison.

        Args:
            text: as `width <= 64`.
            numbers: the names of all parameters that are numbers.
            parameters: the names of all parameters.
            costs: the names of all costs.

        Raises:
            InputError: the text is not a comparison, or names something that is neither a numeric parameter
                nor a cost.
        """
        match = _COMPARISON.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InputError(
                f"constraints: {text!r} is not a comparison of parameters, costs and numbers, as "
                "'batch_size <= 64' or 'n_parameters <= 500_000'"
            )
        left, comparison, right = match.groups()
        terms = [_term(term, match.string, numbers, parameters, costs) for term in (left, right)]
        constraint = cls(terms[0], comparison, terms[1])
        if not constraint.names:
            raise InputError(f"constraints: {text!r} names no parameter and no cost")
        return constraint

    @property
    def names(self) -> frozenset[str]:
        """The parameters and costs that it compares."""
        return frozenset(term for term in (self.left, self.right) if isinstance(term, str))

    def holds(self, params: ParamValues) -> bool:
        """Return whether it is true; `params` must hold all that it names."""
        left, right = (params[t] if isinstance(t, str) else t for t in (self.left, self.right))
        return _HOLDS[self.comparison](left, right)

    def possible(self, bounds: Mapping[str, Bounds]) -> bool:
        """Return whether it can be true for parameters that range independently between (low, high)."""
        left, right = (bounds[t] if isinstance(t, str) else (t, t) for t in (self.left, self.right))
        return _POSSIBLE[self.comparison](left, right)

    def __str__(self) -> str:
        return f"{self.left} {self.comparison} {self.right}"


def _term(
    text: str,
    constraint: str,
    numbers: Collection[str],
    parameters: Collection[str],
    costs: Collection[str],
) -> str | Number:
    if text in numbers or (text in costs and text not in parameters):
        return text
    if text in parameters:
        raise InputError(
            f"constraints: {text} in {constraint!r} is not a number; a list in [search] can limit it"
        )
    if text in NETWORK_COSTS:
        raise InputError(
            f"constraints: {text} in {constraint!r} is a cost of networks, and nobody knows the network of a "
            f"training loop of one's own; give the recipe a method costs(self, params, data), and "
            f"cost_names = ({text!r},)"
        )
    if text[0].isalpha() or text[0] == "_":
        known = f"; costs: {', '.join(costs)}" if costs else ""
        hint = did_you_mean(text, [*numbers, *costs])
        raise InputError(
            f"constraints: {text} in {constraint!r} is neither a parameter nor a cost; {hint}"
            f"{'' if hint.endswith('?') else known}"
        )
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"constraints: {text} in {constraint!r} is too large for a number")
    return int(number) if number.is_integer() else number
