"""Schemas: a recipe's parameters as data, stored and read back."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

import hpo
from hpo.errors import InputError
from hpo.space.parameters import EXTRAS, LoopParams, Params
from hpo.space.schema import Schema
from tests.support.older_plans import RECIPE_BEFORE_ACTIVATION
from tests.support.recipes import RECIPE, SCHEMA, LoopRecipeParams, Mlp, MlpParams
from tests.support.studies import spec_of

MLP = Mlp().schema


def read_back(schema: Schema) -> Schema:
    """The schema as another process reads it from a database."""
    return Schema.model_validate_json(schema.model_dump_json())


def params_with(name: str, base: type[LoopParams] = Params, **fields: Any) -> type[LoopParams]:
    """A class of parameters with more fields, each (type, default)."""
    made: type[LoopParams] = create_model(name, __base__=base, **fields)
    return made


# --- what it holds -------------------------------------------------------------------------------


def test_types_defaults_bounds_and_choices_are_those_of_the_class() -> None:
    parameters = MLP.parameters
    kinds = {"depth": "int", "dropout": "float", "bias": "bool", "activation": "text", "l2": "float"}
    assert {name: parameters[name].kind for name in kinds} == kinds
    assert MLP.defaults == MlpParams().model_dump()
    assert (parameters["depth"].ge, parameters["depth"].le) == (1, 8)
    assert (parameters["dropout"].ge, parameters["dropout"].lt) == (0, 1)
    assert (parameters["learning_rate"].gt, parameters["learning_rate"].le) == (0, 100)
    assert parameters["activation"].choices == ("relu", "tanh")
    assert MLP.numbers["depth"] is int
    assert MLP.numbers["dropout"] is float
    assert not {"bias", "activation", "flip", "optimizer"} & MLP.numbers.keys()


def test_the_recipes_own_parameters_come_first() -> None:
    own = ["depth", "width", "dropout", "bias", "activation"]
    assert list(MLP.parameters) == [*own, *(n for n in Params.model_fields if n != "epochs"), "epochs"]
    assert list(Schema.of(LoopRecipeParams).parameters) == ["rate", "epochs"]
    assert list(read_back(MLP).parameters) == list(MLP.parameters)


def test_a_subclass_may_change_defaults_and_narrow_domains() -> None:
    schema = Schema.of(
        params_with("Narrow", batch_size=(int, hpo.Field(32, ge=16, le=64)), flip=(bool, True))
    )
    assert (schema.defaults["batch_size"], schema.defaults["flip"]) == (32, True)
    for same in (schema, read_back(schema)):
        with pytest.raises(InputError, match=r"^batch_size = 8: must be at least 16$"):
            same.check("batch_size", 8)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"width": (int, ...)}, "X.width has no default; give one, as hpo.Field(2, ge=1)"),
        ({"width": (int, hpo.Field(default_factory=lambda: 1))}, "X.width has no default; give one"),
        ({"width": (int, hpo.Field(0, ge=1))}, "X.width = 0: must be at least 1"),
        ({"width": (int, 1.5)}, "X.width = 1.5: must be a whole number"),
        ({"kind": (Literal["a", "b"], "c")}, "X.kind = 'c': is not known; known: a, b"),
        ({"sizes": (list[int], [1])}, "X.sizes: list is not a type that can be searched; use int, float, "),
        ({"width": (int | None, None)}, "X.width: int | None is not a type that can be searched"),
        ({"width": (Literal[1, 2], 1)}, "X.width: Literal[1, 2] is not a type that can be searched"),
        ({"width": (complex, 1)}, "X.width: complex is not a type that can be searched"),
        (
            {"learning_rate": (int, 1)},
            "X.learning_rate: learning_rate is a training parameter that every recipe has, of type float, "
            "not int; give yours another name",
        ),
        ({"optimizer": (bool, True)}, "X.optimizer: optimizer is a training parameter"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_parameters_that_cannot_be_searched_are_refused(field: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Schema.of(params_with("X", **field))
    assert str(caught.value).startswith(said)


def test_a_loop_of_its_own_may_not_hide_a_training_parameter_either() -> None:
    with pytest.raises(InputError, match="batch_size is a training parameter"):
        Schema.of(params_with("X", LoopParams, batch_size=(float, 1.0)))


# --- values --------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.integers(-2, 130),
    st.integers(),
    st.floats(-2, 130),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["relu", "tanh", "adam", "cosine", "none", "1", "true"]),
    st.none(),
    st.lists(st.integers(0, 3), max_size=2),
)


def checked(schema: Schema, name: str, value: object) -> tuple[type, str]:
    """What a schema makes of a value, or says about it."""
    try:
        found = schema.check(name, value)
    except InputError as error:
        return InputError, str(error)
    return type(found), repr(found)


@given(name=st.sampled_from(list(MLP.parameters)), value=VALUES)
def test_law_the_stored_schema_accepts_what_the_class_accepts(name: str, value: object) -> None:
    found = checked(MLP, name, value)
    assert checked(read_back(MLP), name, value) == found
    try:
        params = MlpParams(**{name: value})  # type: ignore[arg-type]
    except ValidationError:
        assert found[0] is InputError
    else:
        assert found == (type(getattr(params, name)), repr(getattr(params, name)))


@given(name=st.sampled_from(list(MLP.parameters)), value=VALUES)
def test_law_complete_checks_each_value_and_params_of_takes_them(name: str, value: Any) -> None:
    kind, text = checked(MLP, name, value)
    if kind is InputError:
        with pytest.raises(InputError) as caught:
            MLP.complete({name: value})
        assert str(caught.value) == text
    else:
        config = MLP.complete({name: value})
        assert list(config) == list(MLP.parameters)
        assert repr(config[name]) == text
        assert {key: v for key, v in config.items() if key != name} == {
            key: v for key, v in MLP.defaults.items() if key != name
        }
        assert Mlp().params_of(config).model_dump() == config


def test_the_stored_form_is_the_same_once_more() -> None:
    for schema in (SCHEMA, MLP):
        text = schema.model_dump_json()
        assert read_back(schema).model_dump_json() == text
        assert read_back(schema).defaults == schema.defaults
        assert read_back(schema).constraints == schema.constraints


def test_a_validator_is_asked_by_the_class_alone() -> None:
    with pytest.raises(InputError, match="conv1_kernel = 4: must be odd"):
        SCHEMA.check("conv1_kernel", 4)
    assert read_back(SCHEMA).check("conv1_kernel", 4) == 4
    with pytest.raises(InputError, match="conv1_kernel = 4: must be odd"):
        RECIPE.params_of({**SCHEMA.defaults, "conv1_kernel": 4})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"^widht is not a parameter; did you mean 'width'"):
        MLP.complete({"widht": 3})
    with pytest.raises(InputError, match=r"^widht = 3: is not known here"):
        Mlp().params_of({"widht": 3})


# --- constraints ---------------------------------------------------------------------------------


def test_constraints_hold_for_whole_configurations() -> None:
    schema = Schema.of(MlpParams, ("depth <= width", "dropout < 0.5"))
    for same in (schema, read_back(schema)):
        assert same.complete({"depth": 4, "width": 4})["depth"] == 4
        with pytest.raises(InputError, match=r"^depth = 8, width = 4: must satisfy depth <= width$"):
            same.complete({"depth": 8, "width": 4})
        with pytest.raises(InputError, match=r"^dropout = 0.5: must satisfy dropout < 0.5$"):
            same.complete({"dropout": 0.5})
        spec = spec_of(schema=same, search={"depth": [1, 2, 8], "width": [2, 4]})
        assert all(int(point["depth"]) <= int(point["width"]) for point in spec.grid(same.defaults))
        assert len(spec.grid(same.defaults)) == 4


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("depth > width", "MlpParams: its defaults break the constraint depth > width"),
        ("depth", "constraints: 'depth' is not a comparison"),
        (
            "depth < wdith",
            "constraints: wdith in 'depth < wdith' is neither a parameter nor a cost; did",
        ),
        ("activation == 1", "constraints: activation in 'activation == 1' is not a number"),
    ],
)
def test_constraints_that_cannot_be_used_are_refused(constraint: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Schema.of(MlpParams, (constraint,))
    assert str(caught.value).startswith(said)


# --- what means nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({}, ["momentum", "mixup", "mixup_first_epoch", "mixup_last_epoch"]),
        ({"optimizer": "sgd", "mixup_alpha": 0.1}, ["mixup"]),
        ({"optimizer": "rmsprop", "mixup_alpha": 0.1, "schedule": "one-cycle"}, ["mixup", "warmup_epochs"]),
        (
            {"mixup_alpha": 0.1, "mixup_first_epoch": 12, "mixup_last_epoch": 12},
            ["momentum", "mixup", "mixup_alpha", "mixup_first_epoch", "mixup_last_epoch"],
        ),
    ],
    ids=str,
)
def test_what_means_nothing_is_at_its_default(params: dict[str, Any], names: list[str]) -> None:
    config = SCHEMA.complete(params)
    assert SCHEMA.inactive(config) == set(names)
    defaults = {name: SCHEMA.defaults[name] for name in names}
    assert SCHEMA.effective(config) == {**config, **defaults}
    assert read_back(SCHEMA).inactive(config) == set()
    assert read_back(SCHEMA).effective(config) == config


@given(
    st.fixed_dictionaries(
        {
            "optimizer": st.sampled_from(["adam", "sgd"]),
            "momentum": st.sampled_from([0.0, 0.9]),
            "schedule": st.sampled_from(["constant", "cosine", "one-cycle"]),
            "warmup_epochs": st.integers(0, 2),
            "mixup_alpha": st.sampled_from([0.0, 0.2]),
            "mixup_first_epoch": st.integers(1, 10),
            "epochs": st.integers(1, 10),
        }
    )
)
def test_law_what_is_in_effect_is_in_effect_of_itself(params: dict[str, Any]) -> None:
    config = SCHEMA.complete(params)
    effective = SCHEMA.effective(config)
    assert SCHEMA.effective(effective) == effective
    assert {name for name in config if effective[name] != config[name]} <= SCHEMA.inactive(config)


def test_a_recipe_that_names_no_parameter_is_told() -> None:
    schema = Schema.of(MlpParams, (), lambda params: ["widht"])
    with pytest.raises(
        InputError, match=r"inactive\(\) names 'widht', which is not a parameter; did you mean"
    ):
        schema.inactive(schema.defaults)


def test_extras_that_are_off_are_not_told() -> None:
    extras = {*EXTRAS, "activation"}
    assert {*SCHEMA.extras} == extras
    on: dict[str, Any] = {"momentum": 0.9, "flip": True, "activation": "leaky_relu"}
    for schema in (SCHEMA, read_back(SCHEMA)):
        told = schema.told(schema.defaults)
        assert list(told) == [name for name in schema.parameters if name not in extras]
        assert schema.told({**schema.defaults, **on}) == {**told, **on}


def test_an_extra_must_be_a_parameter() -> None:
    with pytest.raises(
        InputError, match=r"^MlpParams: extras: dept is not a parameter; did you mean 'depth'"
    ):
        Schema.of(MlpParams, extras=("dept",))


# --- as an older plan has it -------------------------------------------------------------------------


def test_a_schema_that_grew_serves_a_plan_from_before_without_what_is_new() -> None:
    grown = Schema.of(
        params_with("Grown", MlpParams, residual=(bool, False)),
        ("depth <= width",),
        lambda params: ["residual", "dropout"] if params["depth"] == 1 else [],
    )
    before = Schema.of(MlpParams, ("depth <= width",))
    found = grown.as_before(read_back(before))
    assert found is not None
    assert list(found.parameters) == list(before.parameters)
    assert found.inactive(found.defaults) == {"dropout"}
    with pytest.raises(InputError, match="residual is not a parameter"):
        found.complete({"residual": True})
    assert grown.as_before(read_back(grown)) is grown


def test_what_is_new_keeps_the_checks_of_the_recipes_class() -> None:
    older = RECIPE_BEFORE_ACTIVATION.parameters
    found = SCHEMA.as_before(older)
    assert found is not None
    assert found.defaults == older.defaults
    assert older.check("conv1_kernel", 4) == 4
    with pytest.raises(InputError, match="conv1_kernel = 4: must be odd"):
        found.check("conv1_kernel", 4)
    assert found.inactive(found.defaults) == SCHEMA.inactive(SCHEMA.defaults)


@pytest.mark.parametrize(
    "older",
    [
        Schema.of(params_with("Wider", MlpParams, residual=(bool, False))),
        Schema.of(params_with("Other", MlpParams, width=(int, hpo.Field(32, ge=1, le=4096)))),
        Schema.of(params_with("Narrower", MlpParams, width=(int, hpo.Field(16, ge=1, le=64)))),
        Schema.of(MlpParams, ("depth <= width",)),
    ],
    ids=["one parameter more", "another default", "another domain", "a constraint more"],
)
def test_a_schema_that_changed_otherwise_serves_none(older: Schema) -> None:
    assert MLP.as_before(read_back(older)) is None


def test_a_grid_leaves_out_points_that_differ_only_in_what_means_nothing() -> None:
    search = {"optimizer": ["adam", "sgd"], "momentum": [0.0, 0.9]}
    spec = spec_of(search=search)
    assert spec.grid(SCHEMA.defaults) == [
        {"optimizer": "adam", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.9},
    ]
    assert len(spec_of(schema=read_back(SCHEMA), search=search).grid(SCHEMA.defaults)) == 4
    assert spec.idle_values(SCHEMA.defaults) == {}
    mixup = spec_of(search={"mixup_alpha": [0.0, 0.2], "mixup_first_epoch": [1, 6]})
    assert len(mixup.grid(SCHEMA.defaults)) == 3


@pytest.mark.parametrize(
    ("fixed", "search", "idle"),
    [
        ({"optimizer": "adam"}, {"momentum": [0.0, 0.9]}, {"momentum": [0.0, 0.9]}),
        ({"optimizer": "sgd"}, {"momentum": [0.0, 0.9]}, {}),
        (
            {"mixup_alpha": 0.2, "mixup_last_epoch": 20},
            {"mixup_first_epoch": [1, 11, 12, 13]},
            {"mixup_first_epoch": [12, 13]},
        ),
    ],
    ids=str,
)
def test_values_that_change_nothing_are_found(
    fixed: dict[str, Any], search: dict[str, Any], idle: dict[str, list[Any]]
) -> None:
    assert spec_of(fixed=fixed, search=search).idle_values(SCHEMA.defaults) == idle
