"""Calls the builder that a table has for a sampler or a pruner, with the options of a study file."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from optuna.exceptions import ExperimentalWarning
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, validate_call

from hpo.errors import InputError, did_you_mean
from hpo.space.parameters import as_written, demand
from hpo.space.study_file import Component

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def build(where: str, table: Mapping[str, Callable[..., T]], component: Component, argument: object) -> T:
    """Call a builder of a table with the options of a component.

    Raises:
        InputError: an unknown name or option, or a value that it cannot have; the text starts with its key.
    """
    name = component.name
    if name not in table:
        raise InputError(f"{where}.name = {name!r} is not known; {did_you_mean(name, table)}")
    parameters = inspect.signature(table[name]).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in component.options:
        if option not in options:
            hint = did_you_mean(option, options) if options else "it has none"
            raise InputError(f"{where}.{option} is not an option of {name!r}; {hint}")
    builder = validate_call(config=ConfigDict(strict=True, allow_inf_nan=False))(table[name])
    try:
        with _experimental_allowed():
            return builder(argument, **component.options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "missing_keyword_only_argument":
            raise InputError(f"{where}.{option} is missing; {name!r} needs it") from None
        raise InputError(f"{where}.{option} = {as_written(first['input'])}: {demand(first)}") from None
    except InputError as error:
        raise InputError(f"{where}.{error}") from None


def option_schemas(table: Mapping[str, Callable[..., object]]) -> dict[str, dict[str, Any]]:
    """Return what each builder of a table takes: `properties` and `required`, as in a JSON schema."""
    found = {}
    for name, builder in table.items():
        options = [
            parameter
            for parameter in inspect.signature(builder, eval_str=True).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        found[name] = {
            "properties": {option.name: _option_schema(option) for option in options},
            "required": [option.name for option in options if option.default is option.empty],
        }
    return found


def _option_schema(option: inspect.Parameter) -> dict[str, Any]:
    schema = TypeAdapter(option.annotation).json_schema()
    # None is what stands where nobody gives the option: TOML has no such value
    given = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    has_default = option.default not in (None, option.empty)
    return {**given[0], **({"default": option.default} if has_default else {})}


@contextmanager
def _experimental_allowed() -> Iterator[None]:
    """Silence warnings of parts whose interface may change; the studies' files name them on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
