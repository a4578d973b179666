"""What a command line says of parameters: values, lists and ranges, as a study file would have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import InputError
from hpo.space.axes import read_assignment, read_axis, read_values, read_written_axis
from tests.support.recipes import SCHEMA


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("batch_size=20,40,80", [20, 40, 80]),
        ("batch_size = 20, 40", [20, 40]),
        ("batch_size=20", [20]),
        ("optimizer=adam,sgd", ["adam", "sgd"]),
        ('optimizer="adam","sgd"', ["adam", "sgd"]),
        ("flip=true,false", [True, False]),
        ("learning_rate=1e-5..1e-2 log", {"low": 1e-5, "high": 1e-2, "log": True}),
        ("l2=0..1", {"low": 0, "high": 1}),
        ("shift=0..8 step=2", {"low": 0, "high": 8, "step": 2}),
        ("shift=0..8   step=2  ", {"low": 0, "high": 8, "step": 2}),
    ],
)
def test_an_axis_reads_as_a_study_file_has_it(text: str, axis: object) -> None:
    name, found = read_written_axis(text)
    assert found == axis
    read_axis(SCHEMA, name, found)  # raises where the parameter could not have it


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_size", "names no value; write PARAM=VALUE"),
        ("=3", "names no value"),
        ("batch_size=", "names no value"),
        ("learning_rate=1e-5..1e-2 lgo", "'lgo' means nothing after a range; log or step=… may stand there"),
        ("learning_rate=1e-5..1e-2 log=true", "'log=true' means nothing"),
        ("shift=0..8 step", "'step' means nothing"),
    ],
)
def test_what_is_no_axis_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_written_axis(text)
    assert said in str(caught.value)


@given(st.lists(st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_come_back_as_they_were_written(values: list[bool | int | float]) -> None:
    text = ",".join(str(value).lower() if isinstance(value, bool) else repr(value) for value in values)
    found = read_values(text)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_value_may_hold_an_equals_sign() -> None:
    assert read_assignment("name=a=b") == ("name", "a=b")
