"""Image folders: what is read, and every problem named before anything fails."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpo.data import Split, load_training, prepare
from hpo.data.images import FITS
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
    another = load_training(prepare(f"folder:{root}", cache=cache), split_seed=1)
    assert another.fingerprint == data.fingerprint  # there is nothing to be split in another way
    assert another.split_seed is None


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


def test_what_systems_leave_behind_is_skipped_and_counted(root: Path, cache: Path) -> None:
    before = prepare(f"folder:{root}", cache=cache)
    for name in ("Thumbs.db", "desktop.ini", "._0.png", "._1.png", ".DS_Store", ".gitkeep"):
        for folder in (root, root / "train", root / "train" / "cat"):
            (folder / name).write_bytes(b"x")
    (root / "train" / "__MACOSX").mkdir()
    (root / "__MACOSX").mkdir()

    assert prepare(f"folder:{root}", cache=cache) == before
    anew = load_training(prepare(f"folder:{root}", cache=cache.with_name("another")))
    assert anew.notes == (
        "skipped what systems and archivers leave in folders: 3 .DS_Store, 6 ._*, 3 Thumbs.db, 2 __MACOSX, 3 "
        "desktop.ini",
    )
    assert anew.fingerprint == load_training(before).fingerprint


def write_flat(root: Path, per_class: int) -> Path:
    write_folder(root, train=per_class)
    for folder in (root / "train").iterdir():
        folder.rename(root / folder.name)
    (root / "train").rmdir()
    return root


def test_of_class_folders_alone_a_test_part_is_split_off_once(tmp_path: Path, cache: Path) -> None:
    root = write_flat(tmp_path / "flat", per_class=10)
    (root / "README.txt").write_text("where the pictures come from")

    entry = prepare(f"folder:{root}", cache=cache)

    data, test = load_training(entry), load_test(entry)
    parts = [colours(part) for part in (data.train, data.valid, test)]
    assert [len(part) for part in parts] == [18, 6, 6]
    assert len(set.union(*parts)) == 30
    assert np.bincount(test.targets).tolist() == [2, 2, 2]
    assert data.class_names == CLASSES
    assert data.notes == (
        "left out 1 file beside the class folders",
        "split off 6 of 30 pictures as the test part, a fifth of each class, always the same ones",
    )
    moved = root.rename(root.with_name("moved"))
    again = prepare(f"folder:{moved}", cache=cache)
    assert load_training(again).fingerprint == data.fingerprint
    assert colours(load_test(again)) == colours(test)


@pytest.mark.parametrize(("per_class", "works"), [(2, False), (3, True)])
def test_a_class_that_is_too_small_for_three_parts_is_named(
    tmp_path: Path, cache: Path, per_class: int, works: bool
) -> None:
    root = write_flat(tmp_path / "flat", per_class)
    if works:
        assert len(load_training(prepare(f"folder:{root}", cache=cache)).train) == 3
    else:
        assert f"{root / 'cat'}: has too few pictures; three are needed" in problems(root, cache)


def test_class_folders_in_other_unicode_spellings_are_one_class(tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "pictures", train=4, test=2)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (root / "train" / "cat").rename(root / "train" / composed)
    (root / "test" / "cat").rename(root / "test" / decomposed)

    data = load_training(prepare(f"folder:{root}", cache=cache))

    assert data.class_names == (composed, "dog", "emu")
    assert data.notes == (f"took folders {composed!r} in different Unicode spellings for one class",)
    write_folder(tmp_path / "more", train=4, test=2)
    (tmp_path / "more" / "train" / "cat").rename(root / "train" / decomposed)
    assert f"{root / 'train' / composed}: another folder beside it has the same name" in problems(
        root, cache.with_name("another")
    )


def test_folders_in_one_spelling_keep_it(tmp_path: Path, cache: Path) -> None:
    root, decomposed = write_folder(tmp_path / "pictures", train=4, test=2), "cafe\u0301"
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / decomposed)
    data = load_training(prepare(f"folder:{root}", cache=cache))
    assert (data.class_names[0], data.notes) == (decomposed, ())


@pytest.mark.parametrize("fit", FITS)
def test_the_fit_is_part_of_the_data_of_pictures_that_are_not_square(
    root: Path, cache: Path, fit: str
) -> None:
    square = load_training(prepare(f"folder:{root}", cache=cache))
    assert load_training(prepare(f"folder:{root}", fit=fit, cache=cache)).fingerprint == square.fingerprint
    wide = Image.new("RGB", (40, 20))
    wide.paste((0, 255, 0), (10, 0, 30, 20))
    wide.save(root / "train" / "cat" / "wide.png")

    data = load_training(prepare(f"folder:{root}", fit=fit, cache=cache))

    assert data.fit == fit
    default = load_training(prepare(f"folder:{root}", cache=cache))
    assert (data.fingerprint == default.fingerprint) == (fit == "crop")


def test_all_problems_are_named_at_once(root: Path, cache: Path) -> None:
    (root / "train" / "dog" / "0.png").write_bytes(b"no picture")
    (root / "test" / "cat" / "1.png").write_bytes((root / "test" / "cat" / "1.png").read_bytes()[:45])
    (root / "test" / "cat" / "notes.txt").write_bytes(b"x")
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
        "test/cat/notes.txt": "cannot be read: not a picture",
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
