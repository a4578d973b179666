"""`TrialConfig`: everything that one training run depends on besides data and seeds.

A configuration is frozen, complete and checked once, when it is made. It has two parts, because a
network brings its own parameters and training brings its own; files, Optuna and tables see one flat
mapping with one name per parameter (`TrialConfig.params`, `TrialConfig.from_params`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from hpo.errors import InputError, did_you_mean

ParamValue = bool | int | float | str
Params = Mapping[str, ParamValue]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that 'same' padding is symmetric")
    return value


Channels = Annotated[int, Field(ge=1, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]


class _Part(BaseModel):
    # strict: "20" is no number and true is no count; an int is accepted where a float is meant
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NetworkConfig(_Part):
    """The constrained CNN of the original: two convolutions and one hidden linear layer."""

    conv1_channels: Channels = 32
    conv1_kernel: Kernel = 3
    conv2_channels: Channels = 128
    conv2_kernel: Kernel = 5
    hidden_units: Annotated[int, Field(ge=1, le=65536)] = 128
    batch_norm: bool = False


class TrainingConfig(_Part):
    """How a network is trained. Epochs count from 1; both ends of the mixup range are included."""

    learning_rate: Annotated[float, Field(gt=0, le=100)] = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 20
    l2: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Added to the gradient (penalty l2/2·‖w‖², biases included); decoupled decay with `adamw`."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    mixup_alpha: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Parameter of the Beta distribution; 0 = no mixup."""
    mixup_first_epoch: Annotated[int, Field(ge=1, le=100_000)] = 1
    mixup_last_epoch: Annotated[int, Field(ge=1, le=100_000)] = 10
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 11

    @model_validator(mode="after")
    def _range_in_order(self) -> Self:
        if self.mixup_first_epoch > self.mixup_last_epoch:
            raise ValueError(
                f"mixup_first_epoch {self.mixup_first_epoch} comes after "
                f"mixup_last_epoch {self.mixup_last_epoch}"
            )
        return self


class TrialConfig(_Part):
    """One complete configuration. Equal configurations train to equal bits (same data, seed, machine)."""

    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    @classmethod
    def from_params(cls, params: Params) -> TrialConfig:
        """Build a configuration from flat parameters; what is not given keeps the original's default.

        Raises:
            InputError: an unknown parameter, or a value out of its domain.
        """
        for name in params:
            if name not in PARAMETERS:
                raise InputError(f"{name} is not a parameter; {did_you_mean(name, PARAMETERS)}")
        network = {name: value for name, value in params.items() if name in NetworkConfig.model_fields}
        training = {name: value for name, value in params.items() if name in TrainingConfig.model_fields}
        try:
            return cls(network=NetworkConfig(**network), training=TrainingConfig(**training))  # type: ignore[arg-type]
        except ValidationError as error:
            raise InputError(explain(error)) from None

    def params(self) -> dict[str, ParamValue]:
        """Return all parameters as one flat mapping, in the order of `PARAMETERS`."""
        return {**self.network.model_dump(), **self.training.model_dump()}

    def replace(self, **params: ParamValue) -> TrialConfig:
        """Return a copy with some parameters changed.

        Raises:
            InputError: an unknown parameter, or a value out of its domain.
        """
        return TrialConfig.from_params({**self.params(), **params})


PARAMETERS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(
        Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation,  # type: ignore[arg-type]
        config=ConfigDict(strict=True, allow_inf_nan=False),
    )
    for part in (NetworkConfig, TrainingConfig)
    for name, field in part.model_fields.items()
}
"""Every parameter by its one name, with the check of a single value."""


def check_param(name: str, value: object) -> ParamValue:
    """Check one value against the domain of a known parameter and return it in its own type (1 → 1.0).

    Raises:
        InputError: the value is of the wrong type or out of range; the text names parameter and value.
    """
    try:
        checked: ParamValue = PARAMETERS[name].validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name} = {as_written(value)}: {demand(error.errors()[0])}") from None
    return checked


def explain(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as `key = value: what is wrong`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key} = {as_written(first['input'])}: {demand(first)}" if key else demand(first)


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
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
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
