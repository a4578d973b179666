"""The schema of a recipe's parameters: names, types, defaults and domains as data.

A study file is checked against it, and it is stored with the plan: what shows a plan never imports a recipe.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hpo.errors import InputError, did_you_mean
from hpo.space.constraints import SECONDS_AN_EPOCH, Constraint
from hpo.space.parameters import EXTRAS, LoopParams, Params, ParamValue, ParamValues, as_written, demand

Kind = Literal["int", "float", "bool", "text"]
Inactive = Callable[[ParamValues], Iterable[str]]
"""Names of the parameters that mean nothing in a complete configuration."""
CostsOf = Callable[[ParamValues, Collection[str]], Mapping[str, float]]
"""What a complete configuration costs, of the costs of these names; nothing where that cannot be told."""
Rules = tuple[Inactive | None, CostsOf | None]

_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "text": str}
_BOUNDS = ("ge", "gt", "le", "lt")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Parameter(BaseModel):
    """One parameter as data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    default: ParamValue
    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None
    choices: tuple[str, ...] = ()
    """Of a text: all that it can be; empty: anything."""

    @property
    def domain(self) -> str:
        """What it can be, in words."""
        if self.choices:
            return ", ".join(self.choices)
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        bounds = {key: value for key in _BOUNDS if (value := getattr(self, key)) is not None}
        any_ = {"bool": "on, off"}.get(self.kind, "any")
        return ", ".join(f"{signs[key]} {value:,.15g}" for key, value in bounds.items()) or any_

    def adapter(self) -> TypeAdapter[Any]:
        """Return the check of a single value."""
        bounds = {key: value for key in _BOUNDS if (value := getattr(self, key)) is not None}
        return _adapter_of(self.kind, self.choices, **bounds)


# pydantic makes one in 0.8 ms, and every plan that is opened asks for the same two dozen
@lru_cache(512, typed=True)
def _adapter_of(kind: Kind, choices: tuple[str, ...], **bounds: float) -> TypeAdapter[Any]:
    if choices:
        literal: Any = Literal[choices]
        return TypeAdapter(literal, config=_STRICT)
    python: Any = _TYPES[kind]
    return TypeAdapter(Annotated[python, Field(**bounds)] if bounds else python, config=_STRICT)


class Schema(BaseModel):
    """The parameters of a recipe, and what must hold between them.

    One made by `of` checks values by the recipe's own class, validators included; one that was read from a
    database checks types and bounds, and knows of no parameter that it means nothing. What a configuration
    costs depends on the data, too: only one from `with_costs` knows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    parameters: dict[str, Parameter]
    """By name, the recipe's own first."""
    constraints: tuple[str, ...] = ()
    """Comparisons that hold in every study, written in its file or not."""
    extras: tuple[str, ...] = EXTRAS
    """Parameters that are not worth a word at their default; those of plans that say nothing of it."""
    costs: tuple[str, ...] = ()
    """Names of what is known of a configuration before it trains, besides its parameters."""

    _adapters: dict[str, TypeAdapter[Any]] = PrivateAttr(default_factory=dict)
    _inactive: Inactive | None = PrivateAttr(default=None)
    _costs_of: CostsOf | None = PrivateAttr(default=None)

    @classmethod
    def of(
        cls,
        params: type[LoopParams],
        constraints: Iterable[str] = (),
        inactive: Inactive | None = None,
        extras: Iterable[str] = (),
        costs: Iterable[str] = (),
    ) -> Self:
        """Return the schema of a class of parameters.

        Args:
            params: a recipe's class.
            constraints: of the recipe.
            inactive: of the recipe, for complete flat configurations.
            extras: the recipe's own.
            costs: names of what the recipe can tell of a configuration. A parameter of the same name goes
                before it.

        Raises:
            InputError: a parameter has no default, a type that cannot be searched, or hides one that every
                recipe has; or an extra is not a parameter.
        """
        fields = {name: params.model_fields[name] for name in _in_order(params)}
        schema = cls(
            parameters={name: _parameter(params, name, field) for name, field in fields.items()},
            constraints=tuple(constraints),
            extras=(*EXTRAS, *extras),
            costs=tuple(name for name in costs if name not in fields),
        )
        for name in extras:
            schema.check_name(name, f"{params.__name__}: extras: ")
        schema._adapters.update((name, _adapter(field)) for name, field in fields.items())
        schema._inactive = inactive
        for constraint in schema.parsed_constraints:
            if constraint.names <= fields.keys() and not constraint.holds(schema.defaults):
                raise InputError(f"{params.__name__}: its defaults break the constraint {constraint}")
        return schema

    @property
    def defaults(self) -> dict[str, ParamValue]:
        """Every parameter's default."""
        return {name: parameter.default for name, parameter in self.parameters.items()}

    @cached_property
    def numbers(self) -> dict[str, type[int] | type[float]]:
        """The parameters that are numbers, each with its type."""
        types_ = {"int": int, "float": float}
        return {name: types_[p.kind] for name, p in self.parameters.items() if p.kind in types_}

    @cached_property
    def parsed_constraints(self) -> tuple[Constraint, ...]:
        """The constraints that hold in every study.

        Raises:
            InputError: one is not a comparison of numeric parameters and costs.
        """
        return tuple(map(self.parse_constraint, self.constraints))

    def parse_constraint(self, text: object) -> Constraint:
        """Read a comparison.

        Raises:
            InputError: as `Constraint.parse` does.
        """
        return Constraint.parse(text, self.numbers, self.parameters, self.all_costs)

    @property
    def all_costs(self) -> tuple[str, ...]:
        """The names of all costs, that which is measured last."""
        return (*self.costs, SECONDS_AN_EPOCH)

    def is_measured(self, constraint: Constraint) -> bool:
        """Return whether nobody can tell before a trial trains if a constraint holds."""
        return SECONDS_AN_EPOCH in constraint.names and SECONDS_AN_EPOCH not in self.parameters

    def first_broken(self, constraints: Iterable[Constraint], params: ParamValues) -> Constraint | None:
        """Return a constraint that a configuration breaks; None where all hold, as far as can be told.

        What names parameters that the configuration has not is left out, and so are costs as long as nobody
        knows them: before the data are known, of an incomplete configuration, and those that are measured.
        Constraints on parameters alone come first: costs take some milliseconds.
        """
        on_costs = []
        for constraint in constraints:
            if not constraint.names <= params.keys():
                on_costs.append(constraint)
            elif not constraint.holds(params):
                return constraint
        for constraint in on_costs:
            values = {**params, **self._known_costs(params, constraint.names)}
            if constraint.names <= values.keys() and not constraint.holds(values):
                return constraint
        return None

    def _known_costs(self, params: ParamValues, names: Iterable[str]) -> Mapping[str, float]:
        asked = [name for name in names if name in self.costs]
        if self._costs_of is None or not asked or not self.parameters.keys() <= params.keys():
            return {}
        return self._costs_of(params, asked)

    def with_costs(self, costs_of: CostsOf) -> Schema:
        """Return the same schema, which knows what configurations cost."""
        found = self.model_copy()
        found._costs_of = costs_of
        return found

    @property
    def inactive_rule(self) -> Inactive | None:
        """What says which parameters mean nothing; None where the recipe itself, which knows, is not here."""
        return self._inactive

    @property
    def rules(self) -> Rules:
        """What only a recipe itself knows, with its data: schemas that are equal may differ in it."""
        return self._inactive, self._costs_of

    def inactive(self, params: ParamValues) -> frozenset[str]:
        """Return the parameters that mean nothing in a complete configuration.

        Raises:
            InputError: the recipe names something that is not a parameter.
        """
        if self._inactive is None:
            return frozenset()
        names = frozenset(self._inactive(params))
        for name in names:
            if name not in self.parameters:
                hint = did_you_mean(name, self.parameters)
                raise InputError(f"inactive() names {name!r}, which is not a parameter; {hint}")
        return names

    def effective(self, params: ParamValues) -> dict[str, ParamValue]:
        """Return a complete configuration with what means nothing in it at its default.

        Configurations that train the same are equal so.
        """
        idle = self.inactive(params)
        return {
            name: self.parameters[name].default if name in idle else value for name, value in params.items()
        }

    def told(self, params: ParamValues) -> dict[str, ParamValue]:
        """Return a configuration as sentences and tables tell it: without extras that are off."""
        return {
            name: value
            for name, value in params.items()
            if name not in self.extras
            or name not in self.parameters
            or value != self.parameters[name].default
        }

    def as_before(self, older: Schema) -> Schema | None:
        """Return the schema without the parameters that it has beyond an older one.

        What is new must train as before at its default: then the older plan ends where it would have ended.

        Args:
            older: as a plan stored it.

        Returns:
            None if it is not this schema but for what is new.
        """
        kept = {name: self.parameters.get(name) for name in older.parameters}
        if kept != older.parameters or self.constraints != older.constraints:
            return None
        if len(kept) == len(self.parameters):
            return self
        found = older.model_copy()
        found._adapters = {name: adapter for name, adapter in self._adapters.items() if name in kept}
        if (inactive := self._inactive) is not None:
            found._inactive = lambda params: kept.keys() & set(inactive(params))
        return found

    def check_name(self, name: str, where: str = "") -> None:
        """Check that there is such a parameter.

        Raises:
            InputError: there is none; the text says what is near.
        """
        if name not in self.parameters:
            raise InputError(f"{where}{name} is not a parameter; {did_you_mean(name, self.parameters)}")

    def check(self, name: str, value: object) -> ParamValue:
        """Check one value of a known parameter; return it in the parameter's own type (1 → 1.0).

        Raises:
            InputError: the value is of the wrong type or out of range; the text names parameter and value.
        """
        if name not in self._adapters:
            self._adapters[name] = self.parameters[name].adapter()
        try:
            checked: ParamValue = self._adapters[name].validate_python(value)
        except ValidationError as error:
            raise InputError(f"{name} = {as_written(value)}: {demand(error.errors()[0])}") from None
        return checked

    def complete(self, params: ParamValues) -> dict[str, ParamValue]:
        """Return a complete configuration; what is not given keeps its default.

        Raises:
            InputError: an unknown parameter, a value out of its domain, or a constraint that does not hold.
        """
        for name in params:
            self.check_name(name)
        found = {**self.defaults, **{name: self.check(name, value) for name, value in params.items()}}
        for constraint in self.parsed_constraints:
            if constraint.names <= found.keys() and not constraint.holds(found):
                values = ", ".join(f"{name} = {as_written(found[name])}" for name in sorted(constraint.names))
                raise InputError(f"{values}: must satisfy {constraint}")
        return found


def _in_order(params: type[LoopParams]) -> list[str]:
    """Return the names of all fields, those of the most derived class first."""
    names: dict[str, None] = {}
    for base in params.__mro__:
        if issubclass(base, LoopParams):
            inherited = {name for parent in base.__mro__[1:] for name in getattr(parent, "model_fields", {})}
            names.update(dict.fromkeys(name for name in base.model_fields if name not in inherited))
    return list(names)


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(annotation, config=_STRICT)


def _parameter(params: type[LoopParams], name: str, field: FieldInfo) -> Parameter:
    where = f"{params.__name__}.{name}"
    kind, choices = _kind(where, field.annotation)
    bounds = {key: getattr(each, key) for each in field.metadata for key in _BOUNDS if hasattr(each, key)}
    _check_not_hidden(where, name, kind)
    if field.default is PydanticUndefined:
        raise InputError(f"{where} has no default; give one, as hpo.Field(2, ge=1)")
    parameter = Parameter(kind=kind, default=field.default, choices=choices, **bounds)
    try:
        _adapter(field).validate_python(field.default)
    except ValidationError as error:
        raise InputError(f"{where} = {as_written(field.default)}: {demand(error.errors()[0])}") from None
    if kind == "float":
        parameter = parameter.model_copy(update={"default": float(field.default)})
    return parameter


def _kind(where: str, annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    for kind, known in _TYPES.items():
        if annotation is known:
            return kind, ()  # type: ignore[return-value]
    if get_origin(annotation) is Literal and all(isinstance(each, str) for each in get_args(annotation)):
        return "text", get_args(annotation)
    name = getattr(annotation, "__name__", None)
    if name is None or get_origin(annotation) in (Union, types.UnionType, Literal):
        name = str(annotation).replace("typing.", "")
    raise InputError(
        f"{where}: {name} is not a type that can be searched; use int, float, bool, str or a Literal of texts"
    )


def _check_not_hidden(where: str, name: str, kind: Kind) -> None:
    """Check that a parameter which every recipe has is still of its type."""
    common = Params.model_fields.get(name)
    if common is None:
        return
    expected, _ = _kind(where, common.annotation)
    if kind != expected:
        raise InputError(
            f"{where}: {name} is a training parameter that every recipe has, of type {expected}, not {kind}; "
            "give yours another name"
        )
