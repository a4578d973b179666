"""The parameters that recipes have in common, and how values and mistakes are written.

A recipe's parameters are a frozen pydantic model: a subclass of `Params`, or of `LoopParams` where the recipe
brings a training loop of its own. Files, Optuna and tables see one flat mapping with one name per parameter;
its domains as data are a `hpo.space.schema.Schema`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hpo.errors import did_you_mean

ParamValue = bool | int | float | str
ParamValues = Mapping[str, ParamValue]
Direction = Literal["maximize", "minimize"]
"""Of a metric."""


class LoopParams(BaseModel):
    """What every recipe has: the number of epochs. Base of the parameters of a recipe with its own loop."""

    # strict: "20" is no number and true is no count; an int is accepted where a float is meant
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 11


class Params(LoopParams):
    """What every PyTorch recipe has; a recipe's own parameters are added by a subclass.

    A subclass may change defaults and narrow domains, but neither rename a parameter nor change its type.
    From `momentum` on all are off by default.
    """

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 20
    l2: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Added to the gradient (penalty l2/2·‖w‖², biases included); decoupled decay with `adamw`."""
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of `sgd` and `rmsprop`."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """How the learning rate changes over training; see `hpo.training.schedules`."""
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    """In so many epochs the rate rises to its value; `one-cycle` has a rise of its own."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: each class weighs in the loss as if all were equally frequent."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    shift: Annotated[int, Field(ge=0, le=1024)] = 0
    """Move images by up to so many pixels in each direction."""
    cutout: Annotated[int, Field(ge=0, le=1024)] = 0
    """Blank a square of so many pixels a side, anywhere in an image."""
    mixup: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Train on weighted pairs; parameter of the Beta distribution of their weights; 0 = no mixup."""


EXTRAS = (
    "momentum",
    "schedule",
    "warmup_epochs",
    "label_smoothing",
    "class_weights",
    "flip",
    "shift",
    "cutout",
    "mixup",
)
"""The parameters of `Params` that are off by default, and not worth a word then."""


def explain(error: ValidationError) -> str:
    """Return the problems of a pydantic error, a line each, as `key = value: what is wrong`."""
    return "\n".join(map(explain_one, error.errors()))


def explain_one(problem: ErrorDetails) -> str:
    """Return one of them."""
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key} = {as_written(problem['input'])}: {demand(problem)}" if key else demand(problem)


_DEMANDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}
"""What pydantic demands, by the type of its complaint, in the words of study files."""
_QUOTED = "'([^']*)'"
_MAX_WRITTEN = 200


def demand(problem: ErrorDetails) -> str:
    """Return what a value must be, from one of pydantic's complaints about it."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error" and isinstance(problem["input"], str):
        return f"is not known; {did_you_mean(problem['input'], re.findall(_QUOTED, context['expected']))}"
    bounds = {key: f"{value:.15g}" if isinstance(value, float) else value for key, value in context.items()}
    return _DEMANDS[kind].format(**bounds) if kind in _DEMANDS else problem["msg"]


def as_written(value: object) -> str:
    """Return a value as a study file writes it; of a long one its beginning."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_WRITTEN else f"{text[:_MAX_WRITTEN]} …"


def canonical_json(params: Mapping[str, object]) -> str:
    """Return JSON with sorted keys and no spaces: one text for one mapping."""
    return json.dumps(params, sort_keys=True, separators=(",", ":"), allow_nan=False)
