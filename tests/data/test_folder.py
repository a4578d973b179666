"""Image folders: what is read, and every problem named before anything fails."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpo.data import Split, load_training, prepare
from hpo.data.test_set import load_test
from hpo.errors import DataError
from tests.support.pictures import CLASSES, PARTS, write_folder


def colours(split: Split) -> set[tuple[int, ...]]:
    np.testing.assert_array_equal(split.inputs[:, 0, 0, 0], 10 * split.targets)
    return {tuple(image[0, 0].tolist()) for image in split.inputs}


def problems(root: Path, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(f"folder:{root}", cache=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()], "something is half cached"
    return str(caught.value)


def test_pictures_come_with_their_labels_and_each_in_one_part(root: Path, cache: Path) -> None:
    entry = prepare(f"folder:{root}", cache=cache)
    data = load_training(entry)

    assert data.input_shape == (3, 32, 32)
    assert data.class_names == CLASSES
    assert len(colours(data.train)) == 24
    assert len(colours(data.valid)) == 6
    assert len(colours(data.train) | colours(data.valid)) == 30
    assert colours(load_test(entry)) == {(10 * label, 1, number) for label in range(3) for number in range(3)}


def test_a_validation_folder_is_used(tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "pictures", train=1, test=1, validation=2)

    data = load_training(prepare(f"folder:{root}", cache=cache))

    assert colours(data.train) == {(10 * label, 0, 0) for label in range(3)}
    assert colours(data.valid) == {(10 * label, 2, number) for label in range(3) for number in range(2)}


def test_the_image_size_is_part_of_the_entry(root: Path, cache: Path) -> None:
    small = prepare(f"folder:{root}", image_size=5, cache=cache)

    assert load_training(small).input_shape == (3, 5, 5)
    assert small != prepare(f"folder:{root}", cache=cache)
    assert (
        load_training(small).fingerprint != load_training(prepare(f"folder:{root}", cache=cache)).fingerprint
    )


def test_relative_paths_are_understood(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)

    entry = prepare("folder:pictures", cache=cache)

    assert entry == prepare(f"folder:{root}", cache=cache)
    assert load_training(entry).source == f"folder:{root}"


@pytest.mark.parametrize("change", ["added", "removed", "overwritten", "renamed"])
def test_a_changed_folder_is_read_again(root: Path, cache: Path, change: str) -> None:
    before = prepare(f"folder:{root}", cache=cache)
    picture = root / "train" / "cat" / "3.png"
    if change == "added":
        Image.new("RGB", (6, 6)).save(picture.with_name("new.png"))
    elif change == "removed":
        picture.unlink()
    elif change == "renamed":
        picture.rename(picture.with_name("new.png"))
    else:
        modified_ns = picture.stat().st_mtime_ns + 1000
        os.utime(picture, ns=(modified_ns, modified_ns))

    assert prepare(f"folder:{root}", cache=cache) != before


def test_hidden_files_and_folders_are_ignored(root: Path, cache: Path) -> None:
    before = prepare(f"folder:{root}", cache=cache)
    for folder in (root, root / "train", root / "train" / "cat"):
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / ".checkpoints").mkdir()
    (root / "README.txt").write_text("where the pictures come from")

    assert prepare(f"folder:{root}", cache=cache) == before


def test_all_problems_are_named_at_once(root: Path, cache: Path) -> None:
    (root / "train" / "dog" / "0.png").write_bytes(b"no picture")
    (root / "test" / "cat" / "1.png").write_bytes((root / "test" / "cat" / "1.png").read_bytes()[:45])
    (root / "test" / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "emu" / "gone.png").symlink_to("nowhere.png")
    Image.new("1", (8200, 8200)).save(root / "train" / "emu" / "bomb.png")
    (root / "train" / "cat" / "more").mkdir()
    (root / "train" / "stray.png").write_bytes(b"x")
    (root / "train" / "fox").mkdir()
    for number in range(3):
        (root / "test" / "emu" / f"{number}.png").unlink()
    (root / "val").mkdir()

    text = problems(root, cache)

    assert text.startswith(f"folder:{root}: 11 problems\n")
    for path, problem in {
        "train/dog/0.png": "cannot be read: not a picture",
        "test/cat/1.png": "cannot be read",
        "test/cat/Thumbs.db": "cannot be read: not a picture",
        "train/emu/gone.png": "cannot be read: No such file",
        "train/emu/bomb.png": "possible decompression bomb",
        "train/cat/more": "is a folder",
        "train/stray.png": "lies outside the class folders",
        "train/fox": "has no pictures",
        "test/fox": "is missing",
        "test/emu": "has no pictures",
        "val": "is used only under the name validation",
    }.items():
        assert f"\n  {root / path}: {problem}" in text


def test_twenty_problems_are_shown_and_all_are_counted(root: Path, cache: Path) -> None:
    for path in [*(root / "train").rglob("*.png")][:23]:
        path.write_bytes(b"x")

    lines = problems(root, cache).splitlines()

    assert lines[0] == f"folder:{root}: 23 problems"
    assert len(lines) == 22
    assert lines[-1] == "  … and 3 more"


@pytest.mark.parametrize("part", PARTS)
def test_a_class_missing_from_a_part_is_named(tmp_path: Path, cache: Path, part: str) -> None:
    root = write_folder(tmp_path / "pictures", train=2, test=2, validation=2)
    for path in (root / part / "dog").iterdir():
        path.unlink()
    (root / part / "dog").rmdir()

    assert f"{root / part / 'dog'}: is missing" in problems(root, cache)


def test_one_picture_cannot_be_split(tmp_path: Path, cache: Path) -> None:
    assert "train/emu: has one picture; two are needed" in problems(
        write_folder(tmp_path / "pictures", train=1, test=1), cache
    )


def test_an_emptied_class_is_noticed_though_the_rest_is_cached(root: Path, cache: Path) -> None:
    prepare(f"folder:{root}", cache=cache)
    (root / "train" / "fox").mkdir()

    with pytest.raises(DataError, match="train/fox: has no pictures"):
        prepare(f"folder:{root}", cache=cache)


@pytest.mark.parametrize("folder", ["absent", "empty", "Train"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, cache: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "Train" / "Train").mkdir(parents=True)
    problem = {"absent": "no such folder", "empty": "in it: nothing", "Train": "in it: Train"}[folder]

    with pytest.raises(DataError, match=f"{tmp_path / folder}: .*{problem}"):
        prepare(f"folder:{tmp_path / folder}", cache=cache)
