"""The cache: whole or absent, decoded once however many ask, and the test part locked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo import _lock
from hpo.data import ImageData, Split, load_training, prepare
from hpo.data.cache import pixel_statistics
from hpo.data.test_set import load_test
from hpo.errors import DataError, InputError, RunError

N_PICTURES = 3 * (10 + 3)

PROCESS = """
import os, sys
from pathlib import Path
from hpo.data import folder, prepare

read_image, count = folder.read_image, 0

def counting(path, **options):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return read_image(path, **options)

folder.read_image = counting
print(prepare("folder:" + sys.argv[1], cache=Path(sys.argv[2])), count)
"""
"""Prepares a folder and prints the entry and how many pictures it decoded; kills itself before the n-th."""


def start(root: Path, cache: Path, kill_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(root), str(cache), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def entry(root: Path, cache: Path) -> Path:
    return prepare(f"folder:{root}", cache=cache)


def folders(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir()]


# --- processes -----------------------------------------------------------------------------------


def test_of_several_processes_one_decodes(root: Path, cache: Path) -> None:
    processes = [start(root, cache) for _ in range(4)]
    results = [process.communicate()[0].split() for process in processes]

    assert len({entry for entry, _ in results}) == 1
    assert sorted(int(count) for _, count in results) == [0, 0, 0, N_PICTURES]


@pytest.mark.parametrize("kill_at", [1, N_PICTURES])
def test_a_killed_process_leaves_nothing_half_cached(root: Path, cache: Path, kill_at: int) -> None:
    process = start(root, cache, kill_at)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [name for name in folders(cache) if not name.startswith(".")] == []

    entry = prepare(f"folder:{root}", cache=cache)

    assert folders(cache) == [entry.name]
    assert len(load_training(entry).train.targets) == 24


def test_who_decodes_and_stands_still_is_named(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(prepare(f"folder:{root}", cache=cache))
    (lock,) = cache.glob(".*.lock")
    monkeypatch.setattr(_lock, "BEAT_SECONDS", 1e6)
    monkeypatch.setattr(_lock, "STILL_SECONDS", 0.0)
    monkeypatch.setattr(_lock, "STILL_POLLS", 3)

    with _lock.locked(lock), pytest.raises(RunError, match=rf"process {os.getpid()} .* stood still"):
        prepare(f"folder:{root}", cache=cache)


# --- where it lies -------------------------------------------------------------------------------


def test_hpo_cache_names_the_cache(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_CACHE", str(cache))

    assert prepare(f"folder:{root}").parent == cache


def test_a_cache_that_cannot_be_written_to_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=rf"cannot be written to the cache {tmp_path}/file/cache \(HPO_CACHE"):
        prepare(f"folder:{root}", cache=tmp_path / "file" / "cache")


OTHER_FILES = {
    "meta.json": "test_targets.npy",
    "train_inputs.npy": "valid_inputs.npy",
    "valid_targets.npy": "train_targets.npy",
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 20),
        lambda path: shutil.copy(path.with_name(OTHER_FILES[path.name]), path),
    ],
    ids=["missing", "truncated", "another part's"],
)
def test_a_damaged_entry_is_named(entry: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(entry / name)

    with pytest.raises(DataError, match=f"(?s){entry}: the cached data are damaged .* delete this folder"):
        load_training(entry)


def is_same_json(content: bytes, whole: bytes) -> bool:
    """Whether other bytes say the same: between words, or beyond the precision of a number."""
    try:
        return bool(json.loads(content) == json.loads(whole))
    except ValueError:
        return False


@pytest.mark.parametrize("part", ["meta", "train", "valid", "test"])
def test_an_entry_with_one_bit_flipped_is_named(entry: Path, part: str) -> None:
    load_training(entry)  # what was right before is looked at again
    load_test(entry)
    n_flipped = 0
    for file in entry.glob(f"{part}*"):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 200)):
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            if part == "meta" and is_same_json(bytes(content), whole):
                continue
            file.write_bytes(content)
            with pytest.raises(
                DataError, match=f"(?s){entry}: the cached data are damaged .* delete this folder"
            ):
                load_test(entry) if part == "test" else load_training(entry)
            n_flipped += 1
        file.write_bytes(whole)
    assert n_flipped > 100
    load_training(entry)
    load_test(entry)


# --- what training sees --------------------------------------------------------------------------


def test_training_data_open_without_the_test_part(entry: Path) -> None:
    for path in entry.glob("test_*"):
        path.unlink()

    assert len(load_training(entry).train.targets) == 24
    with pytest.raises(DataError, match="damaged"):
        load_test(entry)


def test_writing_to_an_image_changes_neither_the_cache_nor_others(entry: Path) -> None:
    first, second = load_training(entry), load_training(entry)
    before = second.train.inputs.copy()

    first.train.inputs[:] = 77

    np.testing.assert_array_equal(second.train.inputs, before)
    np.testing.assert_array_equal(load_training(entry).train.inputs, before)


def images_of(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.inputs]


def test_limits_take_stratified_subsets(entry: Path) -> None:
    whole, some = load_training(entry), load_training(entry, limit_train=9, limit_valid=3)

    assert np.bincount(some.train.targets).tolist() == [3, 3, 3]
    assert np.bincount(some.valid.targets).tolist() == [1, 1, 1]
    assert set(images_of(some.train)) < set(images_of(whole.train))
    assert set(images_of(some.valid)) < set(images_of(whole.valid))
    mean, std = pixel_statistics(some.train.inputs)
    np.testing.assert_allclose(some.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(some.std, std, rtol=1e-6)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"limit_train": 25}, "limit_train = 25: the train part has 24 examples"),
        ({"limit_valid": 7}, "limit_valid = 7: the valid part has 6 examples"),
        ({"limit_train": 2}, "limit_train = 2: at least 3 are needed"),
        ({"limit_valid": 0}, "limit_valid = 0: at least 3 are needed"),
        ({"limit_train": -1}, "limit_train = -1: at least 3 are needed"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(entry: Path, limits: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_training(entry, **limits)


@given(st.integers(1, 3), st.integers(0, 255), st.integers(0, 2**32))
def test_statistics_are_those_of_the_pixels(n_channels: int, low: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(low, 256, (generator.integers(1, 20), 3, 2, n_channels), dtype=np.uint8)

    mean, std = pixel_statistics(images)

    scaled = images.astype(np.float64) / 255
    expected = scaled.std(axis=(0, 1, 2))
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, np.where(np.ptp(images, axis=(0, 1, 2)) == 0, 1, expected), rtol=1e-9)


# --- fingerprint ---------------------------------------------------------------------------------


@pytest.fixture
def fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageData], str]:
    """Gives the fingerprint of image data by way of a function of the user's own."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name}"
    Path(f"{name}.py").write_text("data = None\ndef load():\n    return data\n")
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = __import__(name)

    def of(data: ImageData) -> str:
        module.data = data
        return load_training(prepare(f"python:{name}:load", cache=tmp_path / "cache")).fingerprint

    return of


def image_data() -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(40) % 2
    return ImageData(
        images[:20], labels[:20], images[20:30], labels[20:30], ("a", "b"), images[30:], labels[30:]
    )


def changed(array: np.ndarray | None, value: int) -> np.ndarray:
    copy = np.array(array)
    copy.flat[-1] = value
    return copy


CHANGES: dict[str, Callable[[ImageData], ImageData]] = {
    "train pixel": lambda data: replace(data, train_images=changed(data.train_images, 1)),
    "valid pixel": lambda data: replace(data, valid_images=changed(data.valid_images, 1)),
    "test pixel": lambda data: replace(data, test_images=changed(data.test_images, 1)),
    "train label": lambda data: replace(data, train_labels=changed(data.train_labels, 0)),
    "valid label": lambda data: replace(data, valid_labels=changed(data.valid_labels, 0)),
    "test label": lambda data: replace(data, test_labels=changed(data.test_labels, 0)),
    "class order": lambda data: replace(data, class_names=("b", "a")),
    "split": lambda data: replace(data, valid_images=None, valid_labels=None),
    "shape": lambda data: replace(
        data,
        train_images=data.train_images.reshape(-1, 2, 8, 1),
        valid_images=np.array(data.valid_images).reshape(-1, 2, 8, 1),
        test_images=data.test_images.reshape(-1, 2, 8, 1),
    ),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_fingerprint_tells_other_data(fingerprint: Callable[[ImageData], str], change: str) -> None:
    assert fingerprint(CHANGES[change](image_data())) != fingerprint(image_data())


def test_the_fingerprint_tells_limits(entry: Path) -> None:
    limits: list[dict[str, Any]] = [{}, {"limit_train": 20}, {"limit_train": 21}, {"limit_valid": 5}]

    assert len({load_training(entry, **limit).fingerprint for limit in limits}) == 4
    assert load_training(entry, limit_train=24).fingerprint == load_training(entry).fingerprint


def test_the_fingerprint_knows_the_same_data_in_another_place(root: Path, cache: Path, entry: Path) -> None:
    moved = root.rename(root.with_name("moved"))

    elsewhere = load_training(prepare(f"folder:{moved}", cache=cache))

    assert elsewhere.source == f"folder:{moved}"
    assert elsewhere.fingerprint == load_training(entry).fingerprint


def test_equal_data_of_another_type_have_one_fingerprint(fingerprint: Callable[[ImageData], str]) -> None:
    data = image_data()
    narrow = replace(data, train_labels=data.train_labels.astype(np.uint8))
    strided = replace(data, train_images=np.repeat(data.train_images, 2, axis=0)[::2])

    assert fingerprint(narrow) == fingerprint(strided) == fingerprint(data)


def test_another_split_is_of_the_same_images_and_of_the_same_sizes(entry: Path) -> None:
    usual = load_training(entry)
    other, again = (load_training(entry, split_seed=1) for _ in range(2))

    for data in (other, load_training(entry, split_seed=2)):
        assert sorted(images_of(data.train) + images_of(data.valid)) == sorted(
            images_of(usual.train) + images_of(usual.valid)
        )
        assert np.bincount(data.valid.targets).tolist() == np.bincount(usual.valid.targets).tolist()
        assert set(images_of(data.valid)) != set(images_of(usual.valid))
        mean, _ = pixel_statistics(data.train.inputs)
        np.testing.assert_allclose(data.mean, mean, rtol=1e-6)
    np.testing.assert_array_equal(other.train.inputs, again.train.inputs)
    assert other.fingerprint == again.fingerprint
    assert len({data.fingerprint for data in (usual, other, load_training(entry, split_seed=2))}) == 3
    some = load_training(entry, split_seed=1, limit_train=9, limit_valid=3)
    assert images_of(some.train) == images_of(other.train)[:9]
    assert np.bincount(some.valid.targets).tolist() == [1, 1, 1]
    assert (usual.split_seed, other.split_seed) == (None, 1)
