"""The axes of a search space: a list of values, or a range of numbers; and how a study file writes them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, TypeVar

from hpo.errors import InputError, did_you_mean
from hpo.space.constraints import Bounds
from hpo.space.parameters import ParamValue, as_written
from hpo.space.schema import Schema

K = TypeVar("K")
V = TypeVar("V")

_MAX_STEPS = 2**31


@dataclass(frozen=True)
class Choices:
    """A categorical axis: these values, in this order."""

    choices: tuple[ParamValue, ...]

    @property
    def size(self) -> int:
        """How many values the axis has."""
        return len(self.choices)

    def values(self) -> tuple[ParamValue, ...]:
        """Return all values, in the file's order."""
        return self.choices

    def __contains__(self, value: ParamValue) -> bool:
        """Return whether a value of the parameter's own type is one of them."""
        return value in self.choices

    @property
    def finite(self) -> Choices:
        """The axis itself, as it has so many values only."""
        return self

    @property
    def bounds(self) -> Bounds:
        """Its least and greatest value; only numbers have them."""
        numbers = [choice for choice in self.choices if isinstance(choice, int | float)]
        return min(numbers), max(numbers)

    def plain(self) -> object:
        """Return the axis as a study file writes it."""
        return list(self.choices)


@dataclass(frozen=True)
class Range:
    """A numeric axis from low to high, both included. With a step, high is low plus a multiple of it."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def size(self) -> int | None:
        """How many values the axis has; None where it has no step."""
        if self.step is None:
            return None
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step))) + 1

    def values(self) -> tuple[ParamValue, ...]:
        """Return all values of a range with a step, ascending, each the nearest number to low + i·step."""
        kind = type(self.low)
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        return tuple(kind(low + i * step) for i in range(self.size or 0))

    def __contains__(self, value: ParamValue) -> bool:
        """Return whether a value of the parameter's own type lies on the axis."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = None if self.step is None else Decimal(str(self.step))
        return step is None or (Decimal(str(value)) - Decimal(str(self.low))) % step == 0

    @property
    def finite(self) -> Range | None:
        """The axis with a step, where it has so many values only: whole numbers go by one."""
        if self.step is None and isinstance(self.low, int) and isinstance(self.high, int):
            return replace(self, step=1, log=False)
        return self if self.step is not None else None

    @property
    def bounds(self) -> Bounds:
        """Its least and greatest value."""
        return self.low, self.high

    def plain(self) -> object:
        """Return the axis as a study file writes it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


Axis = Choices | Range


def read_each(read: Callable[[K], V], keys: Iterable[K]) -> dict[K, V]:
    """Return what is read of each key.

    Raises:
        InputError: what is wrong with any of them, a line each.
    """
    found, wrong = dict[K, V](), list[InputError]()
    for key in keys:
        try:
            found[key] = read(key)
        except InputError as error:
            wrong.append(error)
    if wrong:
        wrong[0].args = ("\n".join(map(str, wrong)),)
        raise wrong[0]
    return found


def read_params(schema: Schema, where: str, table: Any) -> Any:
    """Check a table of parameter values, and sort it: order means nothing. What is no table comes back as is.

    Raises:
        InputError: as from `read_param`, a line for each parameter.
    """
    if not isinstance(table, dict):
        return table
    return read_each(lambda name: read_param(schema, where, name, table[name]), sorted(table))


def read_param(schema: Schema, where: str, name: str, value: object) -> ParamValue:
    """Check one value of the table `where`; return it in the parameter's own type (1 → 1.0).

    Raises:
        InputError: an unknown parameter, or a value out of its domain; names table, parameter and value.
    """
    schema.check_name(name, f"{where}.")
    try:
        return schema.check(name, value)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None


def read_axis(schema: Schema, name: str, axis: object) -> Axis:
    """Check one entry of [search].

    Raises:
        InputError: an unknown parameter, no list and no range, or values that the parameter cannot take.
    """
    where = f"search.{name}"
    schema.check_name(name, "search.")
    if isinstance(axis, dict):
        return _range(schema, name, axis)
    if not isinstance(axis, list):
        raise InputError(
            f"{where} = {axis!r}: must be a list of values or a range {{low = …, high = …}}; "
            "a single value belongs in [fixed]"
        )
    if not axis:
        raise InputError(f"{where} is empty; give at least one value")
    choices = tuple(read_param(schema, "search", name, value) for value in axis)
    for i, choice in enumerate(choices):
        if choice in choices[:i]:
            raise InputError(f"{where} repeats {as_written(choice)}; each value once")
    return Choices(choices)


def read_values(text: str) -> list[object]:
    """Return the values that a command line lists, by commas: as TOML writes them; texts need no quotes."""
    try:
        found: list[object] = tomllib.loads(f"x = [{text}]")["x"]
    except tomllib.TOMLDecodeError:
        return [_value(each.strip()) for each in text.split(",")]
    return found


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def read_assignment(text: str) -> tuple[str, str]:
    """Split `PARAM=VALUE`.

    Raises:
        InputError: it is none.
    """
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (name and sign and value):
        raise InputError(f"{text!r} names no value; write PARAM=VALUE, as learning_rate=1e-05")
    return name, value


def read_written_axis(text: str) -> tuple[str, object]:
    """Read an axis as a command line writes it; return its parameter and what a study file would have.

    `batch_size=20,40,80` is a list; `learning_rate=1e-5..1e-2 log` and `width=64..256 step=64` are ranges.

    Raises:
        InputError: it is neither. Whether the parameter can have these values, `read_axis` tells.
    """
    name, written = read_assignment(text)
    values, *words = written.split(" ") if ".." in written else [written]
    low, dots, high = values.partition("..")
    if not dots:
        return name, read_values(values)
    axis: dict[str, object] = {"low": _value(low), "high": _value(high)}
    for word in filter(None, words):
        key, sign, value = word.partition("=")
        if key == "log" and not sign:
            axis["log"] = True
        elif key == "step" and value:
            axis["step"] = _value(value)
        else:
            raise InputError(
                f"{text!r}: {word!r} means nothing after a range; log or step=… may stand there, as in "
                "learning_rate=1e-5..1e-2 log"
            )
    return name, axis


def _range(schema: Schema, name: str, table: dict[str, Any]) -> Range:
    where = f"search.{name}"
    if name not in schema.numbers:
        raise InputError(f"{where}: only a number can have a range; give a list of values")
    for key in table:
        if key not in Range.__dataclass_fields__:
            hint = did_you_mean(key, Range.__dataclass_fields__)
            raise InputError(f"{where}.{key} is not a key of a range; {hint}")
    for key in ("low", "high"):
        if key not in table:
            raise InputError(f"{where}.{key} is missing; a range needs low and high")
    low, high = (_number(schema, name, key, table[key]) for key in ("low", "high"))
    step, log = table.get("step"), table.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{where}.log = {log!r}: must be true or false")
    if low >= high:
        raise InputError(f"{where}: low {low} must be less than high {high}")
    if log and low <= 0:
        raise InputError(f"{where}.low = {low}: a log range starts above 0")
    if log and step is not None:
        raise InputError(f"{where}: log and step exclude each other; give a list of values instead")
    if step is not None:
        step = _step(name, schema.numbers[name], low, high, step)
    if schema.numbers[name] is int:
        # together with low and high it shows every value: domains are intervals, some of odd numbers only
        _number(schema, name, "low + step", low + (step or 1))
    return Range(low, high, step, log)


def _number(schema: Schema, name: str, key: str, value: object) -> int | float:
    try:
        number = schema.check(name, value)
    except InputError as error:
        raise InputError(f"search.{name}.{key}{str(error).removeprefix(name)}") from None
    assert isinstance(number, int | float)
    return number


def _step(
    name: str, kind: type[int] | type[float], low: int | float, high: int | float, step: object
) -> int | float:
    where = f"search.{name}.step = {as_written(step)}"
    if isinstance(step, bool) or not isinstance(step, int if kind is int else int | float) or step <= 0:
        raise InputError(f"{where}: must be {'a whole' if kind is int else 'a'} number above 0")
    if (high - low) / step > _MAX_STEPS:
        raise InputError(f"{where}: too small for the range; leave it out for a continuous axis")
    spare = (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step))
    if spare:
        last = kind(Decimal(str(high)) - spare)
        raise InputError(f"{where}: does not lead from low {low} to high {high}; the last value is {last}")
    return kind(step)
