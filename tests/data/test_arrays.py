"""Arrays: what is checked when they are handed over, and what training sees of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpo
from hpo.data import ArrayData, load_training, prepare
from hpo.data.test_set import load_test
from hpo.errors import DataError, InputError

NAMES = ("a", "b", "c")


def classes(n: int = 30, kind: type = np.float64) -> ArrayData:
    """A table (n, 4) of three classes; every number occurs once, and rows keep their label as remainder."""
    inputs = np.arange(4 * n).reshape(n, 4)
    labels = np.arange(n) % 3
    return ArrayData(inputs.astype(kind), labels, (inputs[:6] + 100).astype(kind), labels[:6], NAMES)


def numbers(n: int = 30, n_outputs: int = 0) -> ArrayData:
    """A table whose targets are the first columns, times 10; without `n_outputs` (n,)."""
    inputs = np.arange(4 * n).reshape(n, 4).astype(np.float64)
    targets = 10 * (inputs[:, :n_outputs] if n_outputs else inputs[:, 0])
    return ArrayData(inputs, targets, inputs[:6] + 1000, targets[:6])


def with_nan(array: np.ndarray[Any, Any], row: int, value: float = np.nan) -> np.ndarray[Any, Any]:
    copy = array.astype(np.float64)
    copy[row, 0] = value
    return copy


CLASSES = classes()
NUMBERS = numbers()
REFUSED: list[tuple[ArrayData, dict[str, Any], str]] = [
    (CLASSES, {"train_inputs": [[1.0]]}, "train_inputs: must be a numeric array, is list"),
    (CLASSES, {"train_inputs": np.full((30, 4), "x")}, "train_inputs: must be a numeric array, is <U1"),
    (CLASSES, {"train_inputs": np.full((30, 4), None)}, "train_inputs: must be a numeric array, is object"),
    (
        CLASSES,
        {"train_inputs": np.ones((30, 4), complex)},
        "train_inputs: must be a numeric array, is complex",
    ),
    (CLASSES, {"train_inputs": np.ones(30)}, r"train_inputs: must have the shape \(n, features\) .* \(30,\)"),
    (CLASSES, {"train_inputs": np.ones((30, 0))}, r"train_inputs: must have the shape .* has \(30, 0\)"),
    (CLASSES, {"test_inputs": np.ones((0, 4))}, r"test_inputs: must have the shape .* has \(0, 4\)"),
    (
        CLASSES,
        {"test_inputs": np.ones((6, 5))},
        r"test_inputs: rows of float64 \(5,\), those of train_inputs",
    ),
    (
        CLASSES,
        {"test_inputs": np.ones((6, 4), int)},
        r"test_inputs: rows of int64 \(4,\), those of .* float64",
    ),
    (
        CLASSES,
        {"train_inputs": with_nan(np.ones((30, 4)), 7)},
        "train_inputs: holds NaN, infinity or a number too large for float32, first in row 7, in 1 rows",
    ),
    (
        CLASSES,
        {"test_inputs": with_nan(np.ones((6, 4)), 2, np.inf)},
        "test_inputs: holds NaN, infinity or a number too large for float32, first in row 2",
    ),
    (
        CLASSES,
        {"train_inputs": with_nan(np.ones((30, 4)), 3, 1e39)},
        "train_inputs: holds NaN, infinity or a number too large for float32, first in row 3, in 1 rows",
    ),
    (CLASSES, {"train_targets": np.arange(30) / 30}, "train_targets: must be an integer array, is float64"),
    (CLASSES, {"train_targets": [0] * 30}, "train_targets: must be an integer array, is list"),
    (
        CLASSES,
        {"train_targets": np.zeros(29, int)},
        r"train_targets: must have the shape \(30,\), one for each",
    ),
    (CLASSES, {"train_targets": np.zeros((30, 1), int)}, r"train_targets: must have the shape .* \(30, 1\)"),
    (CLASSES, {"test_targets": np.array([0, 1, 2, 3, 0, 1])}, "test_targets: must be 0 to 2, .* is 3"),
    (CLASSES, {"test_targets": np.array([0, 1, 2, -1, 0, 1])}, "test_targets: must be 0 to 2, .* is -1"),
    (CLASSES, {"test_targets": np.array([0, 1, 0, 1, 0, 1])}, "test_targets: class 'c' has 0 rows; one is"),
    (
        CLASSES,
        {"train_targets": np.array([0] * 14 + [1] * 15 + [2])},
        "train_targets: class 'c' has 1 rows; two are needed, one is held out for validation",
    ),
    (CLASSES, {"class_names": ("a",)}, "class_names: must be at least two different names"),
    (CLASSES, {"class_names": ("a", "b", "b")}, "class_names: must be at least two different names"),
    (CLASSES, {"class_names": "abc"}, "class_names: must be a tuple of names"),
    (CLASSES, {"class_names": ("a", "b", "c\0")}, "class_names: .* is not valid text"),
    (
        CLASSES,
        {"valid_inputs": np.ones((3, 4))},
        "valid_inputs and valid_targets: give both, or none of them",
    ),
    (CLASSES, {"valid_targets": np.zeros(3, int)}, "valid_inputs and valid_targets: give both, or none"),
    (
        CLASSES,
        {"valid_inputs": np.ones((3, 5)), "valid_targets": np.arange(3)},
        r"valid_inputs: rows of float64 \(5,\)",
    ),
    (
        CLASSES,
        {"valid_inputs": np.ones((3, 4)), "valid_targets": np.array([0, 1, 1])},
        "valid_targets: class 'c' has 0 rows; one is needed",
    ),
    (NUMBERS, {"train_targets": np.full(30, "x")}, "train_targets: must be a numeric array, is <U1"),
    (NUMBERS, {"train_targets": [0.0] * 30}, "train_targets: must be a numeric array, is list"),
    (
        NUMBERS,
        {"train_targets": np.ones(29)},
        r"train_targets: must have the shape \(30,\) or \(30, outputs\)",
    ),
    (NUMBERS, {"train_targets": np.ones((30, 0))}, r"train_targets: must have the shape .* \(30, 0\)"),
    (NUMBERS, {"train_targets": np.ones((30, 2, 2))}, r"train_targets: must have the shape .* \(30, 2, 2\)"),
    (
        NUMBERS,
        {"test_targets": np.ones((6, 2))},
        r"test_targets: must have the outputs of train_targets, has",
    ),
    (
        NUMBERS,
        {"test_targets": np.array([1, 2, np.nan, 4, np.inf, 6])},
        "test_targets: holds NaN, infinity or a number too large for float32, first in row 2, in 2 rows",
    ),
    (
        NUMBERS,
        {"train_inputs": np.ones((1, 4)), "train_targets": np.ones(1)},
        "train_inputs: two rows are needed, one is held out for validation",
    ),
]


@pytest.mark.parametrize(("data", "change", "said"), REFUSED, ids=[said[:50] for *_, said in REFUSED])
def test_arrays_are_checked_when_they_are_made(data: ArrayData, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"^{said}"):
        replace(data, **change)


def test_arrays_that_are_accepted() -> None:
    names: Any = list(NAMES)
    assert replace(CLASSES, class_names=names).class_names == NAMES
    one_each = replace(
        CLASSES,
        train_inputs=np.ones((3, 4)),
        train_targets=np.arange(3),
        valid_inputs=np.ones((3, 4)),
        valid_targets=np.arange(3, dtype=np.uint8),
    )
    assert one_each.valid_inputs is not None
    assert hpo.ArrayData is ArrayData


# --- what training sees --------------------------------------------------------------------------

Prepared = Callable[[ArrayData], Path]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Prepares data by way of a function of the user's own; gives the entry of the cache."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name}"
    Path(f"{name}.py").write_text("data = None\ndef load():\n    return data\n")
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = __import__(name)

    def of(data: ArrayData) -> Path:
        module.data = data
        return prepare(f"python:{name}:load", cache=tmp_path / "cache")

    return of


def test_a_table_of_classes(prepared: Prepared) -> None:
    entry = prepared(CLASSES)
    data, test = load_training(entry), load_test(entry)
    assert (data.input_shape, data.class_names, data.n_classes, data.n_outputs) == ((4,), NAMES, 3, 3)
    assert not data.info.is_images
    for split, n in ((data.train, 24), (data.valid, 6), (test, 6)):
        assert isinstance(split.inputs, np.memmap)
        assert split.inputs.dtype == np.float32
        assert split.targets.dtype == np.int64
        assert (split.inputs.shape, split.targets.shape) == ((n, 4), (n,))
    assert np.bincount(data.valid.targets).tolist() == [2, 2, 2]
    for split in (data.train, data.valid):
        np.testing.assert_array_equal(split.inputs[:, 0] // 4 % 3, split.targets)
    rows = np.concatenate([data.train.inputs, data.valid.inputs])
    np.testing.assert_array_equal(rows[rows[:, 0].argsort()], CLASSES.train_inputs)
    np.testing.assert_array_equal(test.inputs, CLASSES.test_inputs)
    np.testing.assert_allclose(data.mean, data.train.inputs.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, data.train.inputs.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("n_outputs", [0, 1, 2])
def test_a_table_of_numbers(prepared: Prepared, n_outputs: int) -> None:
    entry = prepared(numbers(n_outputs=n_outputs))
    data, test = load_training(entry), load_test(entry)
    assert (data.n_classes, data.class_names, data.n_outputs) == (0, (), max(n_outputs, 1))
    for split, n in ((data.train, 24), (data.valid, 6)):
        assert split.targets.dtype == np.float32
        assert split.targets.shape == ((n, n_outputs) if n_outputs else (n,))
        first = split.targets[:, 0] if n_outputs else split.targets
        np.testing.assert_array_equal(first, 10 * split.inputs[:, 0])
    assert len(test) == 6
    assert data.train.inputs[:, 0].tolist() != sorted(data.train.inputs[:, 0])


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64])
def test_integers_are_handed_over_as_they_are(prepared: Prepared, kind: type) -> None:
    data = load_training(prepared(classes(kind=kind)))
    assert data.train.inputs.dtype == np.int64
    assert set(data.train.inputs.flat) | set(data.valid.inputs.flat) == set(range(120))
    assert (data.mean.tolist(), data.std.tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.bool_])
def test_floats_become_float32(prepared: Prepared, kind: type) -> None:
    data = load_training(prepared(classes(kind=kind)))
    assert data.train.inputs.dtype == np.float32
    assert data.mean.shape == data.std.shape == (4,)


def test_inputs_of_more_dimensions_have_one_mean(prepared: Prepared) -> None:
    inputs = np.random.default_rng(0).normal(3, 2, (30, 5, 2))
    series = replace(CLASSES, train_inputs=inputs, test_inputs=inputs[:6])
    data = load_training(prepared(series))
    assert data.input_shape == (5, 2)
    assert data.mean == pytest.approx([data.train.inputs.mean()], rel=1e-5)
    assert data.std == pytest.approx([data.train.inputs.std()], rel=1e-5)


def test_a_feature_that_is_always_the_same_has_a_deviation_of_1(prepared: Prepared) -> None:
    inputs = np.array(CLASSES.train_inputs)
    inputs[:, 2] = 7
    data = load_training(prepared(replace(CLASSES, train_inputs=inputs)))
    assert (data.mean[2], data.std[2]) == (7, 1)
    assert data.std[1] > 1


def test_a_validation_part_of_ones_own_is_used(prepared: Prepared) -> None:
    valid = np.full((6, 4), -1.0)
    own = replace(CLASSES, valid_inputs=valid, valid_targets=np.arange(6) % 3)
    data = load_training(prepared(own))
    assert (len(data.train), len(data.valid)) == (30, 6)
    np.testing.assert_array_equal(data.valid.inputs, valid)
    assert data.train.inputs.min() == 0


def test_limits_take_stratified_subsets_and_their_statistics(prepared: Prepared) -> None:
    entry = prepared(CLASSES)
    some = load_training(entry, limit_train=9, limit_valid=3)
    assert np.bincount(some.train.targets).tolist() == [3, 3, 3]
    assert np.bincount(some.valid.targets).tolist() == [1, 1, 1]
    np.testing.assert_allclose(some.mean, some.train.inputs.mean(axis=0), rtol=1e-6)
    assert some.fingerprint != load_training(entry).fingerprint
    with pytest.raises(InputError, match="limit_train = 2: at least 3 are needed"):
        load_training(entry, limit_train=2)
    one = load_training(prepared(NUMBERS), limit_train=1, limit_valid=1)
    assert (len(one.train), len(one.valid)) == (1, 1)
    with pytest.raises(InputError, match="limit_valid = 0: at least 1 "):
        load_training(prepared(NUMBERS), limit_valid=0)
    with pytest.raises(InputError, match="limit_train = 25: the train part has 24 examples"):
        load_training(prepared(NUMBERS), limit_train=25)


CHANGES: dict[str, dict[str, Any]] = {
    "train input": {"train_inputs": with_nan(CLASSES.train_inputs, 29, 7)},
    "test input": {"test_inputs": with_nan(CLASSES.test_inputs, 5, 7)},
    "train target": {"train_targets": np.roll(CLASSES.train_targets, 1)},
    "test target": {"test_targets": np.roll(CLASSES.test_targets, 1)},
    "class order": {"class_names": ("b", "a", "c")},
    "numbers": {"class_names": None},
    "split": {"valid_inputs": np.ones((3, 4)), "valid_targets": np.arange(3)},
    "type": {
        "train_inputs": CLASSES.train_inputs.astype(int),
        "test_inputs": CLASSES.test_inputs.astype(int),
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_other_data(prepared: Prepared, change: str) -> None:
    before = load_training(prepared(CLASSES)).fingerprint
    assert load_training(prepared(replace(CLASSES, **CHANGES[change]))).fingerprint != before


def test_the_fingerprint_is_of_what_training_sees(prepared: Prepared) -> None:
    before = load_training(prepared(CLASSES)).fingerprint
    narrow = replace(
        CLASSES,
        train_inputs=np.asfortranarray(CLASSES.train_inputs.astype(np.float32)),
        test_inputs=CLASSES.test_inputs.astype(np.float32),
        train_targets=CLASSES.train_targets.astype(np.uint8),
    )
    assert load_training(prepared(narrow)).fingerprint == before


@pytest.mark.parametrize("n", [2, 3, 5, 7, 8, 23])
def test_a_fifth_of_the_rows_is_held_out(prepared: Prepared, n: int) -> None:
    data = load_training(prepared(numbers(n)))
    assert len(data.train) + len(data.valid) == n
    assert len(data.valid) == min(max(round(0.2 * n), 1), n - 1)
    rows = [*data.train.inputs[:, 0].tolist(), *data.valid.inputs[:, 0].tolist()]
    assert sorted(rows) == [4.0 * row for row in range(n)]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_])
def test_integers_without_class_names_are_numbers_to_be_predicted(prepared: Prepared, kind: type) -> None:
    counts: np.ndarray[Any, Any] = (NUMBERS.train_targets % 7).astype(kind)
    entry = prepared(replace(NUMBERS, train_targets=counts, test_targets=counts[:6]))
    data, test = load_training(entry), load_test(entry)
    assert (data.n_classes, data.n_outputs) == (0, 1)
    for split in (data.train, data.valid, test):
        assert split.targets.dtype == np.float32  # by which losses and metrics tell numbers from classes
    found = np.concatenate([data.train.targets, data.valid.targets])
    np.testing.assert_array_equal(np.sort(found), np.sort(counts).astype(np.float32))
