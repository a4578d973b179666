"""The JSON schema of study files, for editors: all keys, and a recipe's parameters with types and bounds.

It refuses nothing that hpo accepts. The other way round it cannot know all: whether constraints leave a
point, say, or what validators of a recipe's own demand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from hpo.planning._components import option_schemas
from hpo.planning.hub import PATTERN
from hpo.planning.pruners import PRUNERS
from hpo.planning.samplers import SAMPLERS
from hpo.space.claim_file import MAX_CLAIMS, State
from hpo.space.schema import Parameter, Schema

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "text": "string"}
_TEXT: Json = {"type": "string"}
_DURATION: Json = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {**_TEXT, "pattern": r"^[\s\d._eE+-]+[smhd]?\s*$"}]
}
_OF_HUB: Json = {**_TEXT, "pattern": PATTERN}
_FRACTION: Json = {"type": "number", "minimum": 0, "maximum": 1}


def study_file_schema(recipe: str, schema: Schema, metrics: Iterable[str]) -> Json:
    """Return the JSON schema, draft 2020-12, of a study file.

    Args:
        recipe: its name.
        schema: of its parameters.
        metrics: their names.
    """
    parameters = schema.parameters
    values = {name: _value(parameter) for name, parameter in parameters.items()}
    numbers = schema.numbers
    return {
        "$schema": DIALECT,
        "title": f"A study file of hpo, for the recipe {recipe}",
        **_table(
            {
                "title": _said("A line for tables, screen and report.", _TEXT),
                "section": _said("Orders studies that do not depend on each other, as 2.4.1.", _TEXT),
                "inherits": _said(
                    "The study, in the same folder, whose winner this one starts from; or plan:OUT/STUDY, "
                    "another plan's.",
                    _TEXT,
                ),
                "base": _said(
                    "Laid over the defaults, only where nothing is inherited.", {"$ref": "#/$defs/values"}
                ),
                "fixed": _said("Laid over what is inherited, at every point.", {"$ref": "#/$defs/values"}),
                "search": _said(
                    "What is searched: a list of values, or a range.",
                    {
                        **_table({name: _axis(values[name], name in numbers) for name in values}),
                        "minProperties": 1,
                    },
                ),
                "constraints": _said(
                    "Comparisons that every point must satisfy, as n_parameters <= 500_000.",
                    _list(_TEXT),
                ),
                "trials": _said(
                    "How many points to sample; a grid has no such key.",
                    {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                ),
                "trial_timeout": _said(
                    "A trial that has trained for so long ends after the epoch, as 20m.", _DURATION
                ),
                "stop": _said(
                    "When a sampled study is done before all its points are tried.",
                    _table(
                        {
                            "patience": {"type": "integer", "minimum": 1},
                            "delta": {"type": "number", "minimum": 0},
                        },
                        required=["patience"],
                    ),
                ),
                "objectives": _said(
                    "The plan's metric, and a metric or cost beside it; the study keeps a Pareto front.",
                    {
                        **_list({"enum": [*metrics, *schema.all_costs]}, least=2),
                        "maxItems": 2,
                        "uniqueItems": True,
                    },
                ),
                "choose": _said(
                    "Which point is carried on, as smallest n_parameters within 0.01 of best macro_f1.",
                    {**_TEXT, "pattern": "^\\s*(best|smallest|largest)\\s"},
                ),
                "sampler": _said("How points are chosen.", _component(option_schemas(SAMPLERS))),
                "pruner": _said("What stops points early.", {"$ref": "#/$defs/pruner"}),
                "published": _said("What somebody printed about this study.", _published()),
                "claims": _said("Sentences about this study.", {**_list(_claim()), "maxItems": MAX_CLAIMS}),
            },
        ),
        "minProperties": 1,
        "$defs": {
            "values": _table(values),
            "lists": _table({name: _list(value, least=1) for name, value in values.items()}),
            "pruner": _component(_pruners()),
        },
    }


def _value(parameter: Parameter) -> Json:
    found: Json = {"type": _TYPES[parameter.kind], "default": parameter.default}
    if parameter.choices:
        found["enum"] = list(parameter.choices)
    found |= {word: bound for key, word in _BOUNDS.items() if (bound := getattr(parameter, key)) is not None}
    return found


def _axis(value: Json, is_number: bool) -> Json:
    item = {key: each for key, each in value.items() if key != "default"}
    values = {**_list(item, least=1), "uniqueItems": True}
    if not is_number:
        return values
    step = {"type": item["type"], "exclusiveMinimum": 0}
    range_ = _table(
        {"low": item, "high": item, "step": step, "log": {"type": "boolean"}}, required=["low", "high"]
    )
    is_both: Json = {"required": ["step", "log"], "properties": {"log": {"const": True}}}
    return {"anyOf": [values, {**range_, "not": is_both}]}


def _component(variants: dict[str, Json]) -> Json:
    """Return the schema of a table whose key `name` says what else may stand in it."""
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"anyOf": [{"enum": list(variants)}, _OF_HUB]}},
        "oneOf": [
            *(
                _table(
                    {"name": {"const": name}, **options["properties"]},
                    required=["name", *options["required"]],
                )
                for name, options in variants.items()
            ),
            {"properties": {"name": _OF_HUB}},  # with options of its own
        ],
    }


def _pruners() -> dict[str, Json]:
    variants = option_schemas(PRUNERS)
    variants["patient"]["properties"]["wrapped"] = {"$ref": "#/$defs/pruner"}
    return variants


def _published() -> Json:
    result = _table(
        {
            "params": {"$ref": "#/$defs/values"},
            "accuracy": _FRACTION,
            "macro_f1": _FRACTION,
            "loss": {"type": "number", "minimum": 0},
            "epoch": {"enum": ["best", "last"]},
            "on": {"enum": ["validation", "test"]},
            "note": _TEXT,
        }
    )
    return _table({"choice": {"$ref": "#/$defs/values"}, "results": _list(result)})


def _claim() -> Json:
    cell: Json = {"$ref": "#/$defs/values", "minProperties": 1}
    cells: Json = {"anyOf": [cell, _list(cell, least=1)]}
    contrast = _table(
        {
            **dict.fromkeys(("better", "worse", "at", "not_at"), cells),
            **dict.fromkeys(("more_at", "less_at"), cell),
            "inside": {"$ref": "#/$defs/lists"},
            "across": {"$ref": "#/$defs/lists"},
            "state": {"enum": list(get_args(State))},
            "delta": {"type": "number", "minimum": 0},
        }
    )
    text: Json = {**_TEXT, "minLength": 1, "maxLength": 500}
    return _table(
        {"text": text, "study": _TEXT, "contrasts": _list(contrast, least=1)}, required=["text", "contrasts"]
    )


def _table(properties: Json, required: list[str] | None = None) -> Json:
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _list(items: Json, least: int = 0) -> Json:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def _said(description: str, schema: Json) -> Json:
    return {"description": description, **schema}
