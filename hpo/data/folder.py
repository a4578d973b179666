"""Image folders: `train/CLASS/*`, `test/CLASS/*`, perhaps `validation/CLASS/*`; or `CLASS/*` alone."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo._process import n_cores
from hpo.data.dataset import HELD_OUT, ImageData, Images, hold_out
from hpo.data.images import picture_endings, read_image
from hpo.data.npy import map_array, write_blocks
from hpo.errors import DataError

CHANNELS = 3

_BLOCK = 256
_PROBLEMS_SHOWN = 20
_PARTS = ("train", "test", "validation")
_MISNAMED = ("val", "valid")  # beside train and test they must be meant for validation
_WHOLE = "all"
"""The part of a folder that has none."""
_JUNK = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "__macosx"))
"""What systems and archivers leave in folders of pictures, in small letters; and `._NAME`, macOS's."""


@dataclass(frozen=True)
class Listing:
    """What an image folder holds, by its directories alone: nothing is decoded yet.

    Attributes:
        files: for each part its files, class by class.
        labels: for each part the index into `class_names` of each file.
        class_names: the class folders of all parts together, sorted.
        n_bytes: size of all files together.
        problems: one line each.
        notes: what was skipped, split off or taken for the same, a sentence each.
        identity: changes with every name, size and modification time in the folder.
    """

    files: dict[str, list[str]]
    labels: dict[str, list[int]]
    class_names: tuple[str, ...]
    n_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    identity: str


def list_folder(root: Path) -> Listing:
    """List an image folder; junk, and other names that start with a dot, are ignored everywhere.

    Raises:
        DataError: there is no such folder, it has neither `train` and `test` nor class folders, or a
            directory cannot be listed.
    """
    try:
        return _Look(root).listing()
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be listed: {error.strerror}") from error


def read_folder(listing: Listing, *, size: int, fit: str, scratch: Path) -> ImageData:
    """Decode all files to RGB, size × size; the arrays are memory-mapped files in `scratch`.

    Raises:
        DataError: with every problem of the listing and every unreadable file, the first 20 in words.
    """
    problems = list(listing.problems)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a file that matters is named as a problem
        for part, files in listing.files.items():
            blocks = _decode(files, size, fit, _threads(listing), problems)
            shape = (len(files), size, size, CHANNELS)
            write_blocks(scratch / f"{part}.npy", shape, np.dtype(np.uint8), blocks)
    if problems:
        lines = problems[:_PROBLEMS_SHOWN]
        if len(problems) > len(lines):
            lines.append(f"… and {len(problems) - len(lines)} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError("\n  ".join([count, *lines]))
    images = {part: map_array(scratch / f"{part}.npy") for part in listing.files}
    labels = {part: np.array(of_part, dtype=np.int64) for part, of_part in listing.labels.items()}
    return ImageData(
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        class_names=listing.class_names,
        valid_images=images.get("validation"),
        valid_labels=labels.get("validation"),
    )


def pictures_below(folder: Path) -> tuple[list[Path], int]:
    """Return the pictures in a folder and in those below it, by name, and how many other files there are.

    What ends as pictures do is one; junk and names that start with a dot are ignored.

    Raises:
        DataError: the folder cannot be listed, or has none.
    """
    endings = picture_endings()
    found, n_others = list[Path](), 0
    try:
        for path in sorted(folder.rglob("*")):
            names = path.relative_to(folder).parts
            if not path.is_file() or any(n.startswith(".") or n.lower() in _JUNK for n in names):
                continue
            if path.suffix.lower() in endings:
                found.append(path)
            else:
                n_others += 1
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be listed: {error.strerror}") from error
    if not found:
        raise DataError(f"{folder}: holds no pictures")
    return found, n_others


class _Look:
    """One look through the directories of an image folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._junk: set[str] = set()
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def listing(self) -> Listing:
        folders = self._parts()
        classes = self._classes(folders)
        names = tuple(sorted(classes))
        files: dict[str, list[str]] = {}
        labels: dict[str, list[int]] = {}
        for part, folder in folders.items():
            found = [
                self._pictures(part, folder, name, classes[name], _n_needed(part, folders)) for name in names
            ]
            files[part] = [file for of_class in found for file in of_class]
            labels[part] = [label for label, of_class in enumerate(found) for _ in of_class]
        if _WHOLE in folders and not self._problems:
            files, labels = self._split_off(files[_WHOLE], labels[_WHOLE])
        if self._junk:
            kinds = Counter("._*" if name[:2] == "._" else name for name in map(os.path.basename, self._junk))
            counts = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
            self._notes.append(f"skipped what systems and archivers leave in folders: {counts}")
        self._digest.update(os.fsencode("\0".join(self._problems)))
        return Listing(
            files=files,
            labels=labels,
            class_names=names,
            n_bytes=self._n_bytes,
            problems=tuple(self._problems),
            notes=tuple(self._notes),
            identity=self._digest.hexdigest(),
        )

    def _parts(self) -> dict[str, Path]:
        """Return the folder of each part; where there are class folders alone, the root as one part."""
        if not self._root.is_dir():
            raise DataError(f"{self._root}: no such folder")
        entries = self._visible(self._root)
        folders = [entry.name for entry in entries if entry.is_dir()]
        parts = [part for part in _PARTS if part in folders]
        if len(folders) > 1 and not {name.lower() for name in folders}.intersection((*_PARTS, *_MISNAMED)):
            if beside := len(entries) - len(folders):
                files = "1 file" if beside == 1 else f"{beside} files"
                self._notes.append(f"left out {files} beside the class folders")
            return {_WHOLE: self._root}
        if "train" not in parts or "test" not in parts:
            there = ", ".join(entry.name for entry in entries) or "nothing"
            raise DataError(
                f"{self._root}: needs the folders train/CLASS and test/CLASS, or class folders alone; in it: "
                f"{there}"
            )
        for name in _MISNAMED:
            if name in folders and "validation" not in parts:
                self._problems.append(f"{self._root / name}: is used only under the name validation")
        return {part: self._root / part for part in parts}

    def _classes(self, folders: dict[str, Path]) -> dict[str, dict[str, str]]:
        """Return for each class the name of its folder in each part that has one.

        Names are compared as people see them: the same letters may be spelt in several ways in Unicode, and
        macOS spells them otherwise than other systems.
        """
        found: dict[str, dict[str, str]] = {}
        for part, folder in folders.items():
            for entry in self._visible(folder):
                if not entry.is_dir():
                    if part != _WHOLE:
                        self._problems.append(f"{entry.path}: lies outside the class folders")
                    continue
                spellings = found.setdefault(unicodedata.normalize("NFC", entry.name), {})
                if part in spellings:
                    self._problems.append(
                        f"{entry.path}: another folder beside it has the same name in another Unicode "
                        "spelling; merge them, or rename one"
                    )
                spellings[part] = entry.name
        if len(found) < 2:
            self._problems.append(f"{next(iter(folders.values()))}: needs two class folders or more")
        classes = {}
        for name, spellings in found.items():
            first, *others = set(spellings.values())
            classes[name if others else first] = spellings
            if others:
                self._notes.append(f"took folders {name!r} in different Unicode spellings for one class")
        return classes

    def _pictures(
        self, part: str, folder: Path, name: str, spellings: dict[str, str], n_needed: int
    ) -> list[str]:
        """Return the files of a class in a part."""
        if part not in spellings:
            self._problems.append(f"{folder / name}: is missing; another part has this class")
            return []
        files = []
        for entry in self._visible(folder / spellings[part]):
            if entry.is_dir():
                self._problems.append(
                    f"{entry.path}: is a folder; pictures lie directly in their class folder"
                )
                continue
            n_file_bytes, modified_ns = _size_and_time(entry)
            where = f"\0{part}/{name}/{entry.name}\0{n_file_bytes}\0{modified_ns}"
            self._digest.update(os.fsencode(where))
            self._n_bytes += n_file_bytes
            files.append(entry.path)
        if not files:
            self._problems.append(f"{folder / spellings[part]}: has no pictures")
        elif len(files) < n_needed:
            few = "has one picture; two are needed, one is held out for validation"
            few = "has too few pictures; three are needed, one for each part" if part == _WHOLE else few
            self._problems.append(f"{folder / spellings[part]}: {few}")
        return files

    def _split_off(
        self, files: list[str], labels: list[int]
    ) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
        """Return a training and a test part of what has none, always the same of the same files."""
        train, test = hold_out(np.array(labels), HELD_OUT)
        self._notes.append(
            f"split off {len(test):,} of {len(files):,} pictures as the test part, a fifth of each class, "
            "always the same ones"
        )
        parts = {"train": train.tolist(), "test": test.tolist()}
        return (
            {part: [files[index] for index in indices] for part, indices in parts.items()},
            {part: [labels[index] for index in indices] for part, indices in parts.items()},
        )

    def _visible(self, folder: Path) -> list[os.DirEntry[str]]:
        visible = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower() in _JUNK or entry.name.startswith("._"):
                    self._junk.add(entry.path)
                elif not entry.name.startswith("."):
                    visible.append(entry)
        return sorted(visible, key=lambda entry: entry.name)


def _n_needed(part: str, folders: dict[str, Path]) -> int:
    """Return how many pictures a class must have in a part: one for each part that is split off, and one."""
    if part == _WHOLE:
        return 3
    return 2 if part == "train" and "validation" not in folders else 1


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except FileNotFoundError:  # a link to nowhere: decoding it will name it
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _threads(listing: Listing) -> int:
    # Pillow decodes outside the interpreter's lock, but pictures of a few kB cost mostly Python: there two
    # threads took 1.6 times as long as one
    n_files = sum(len(files) for files in listing.files.values())
    return min(n_cores(), 8) if listing.n_bytes > 16384 * n_files else 1


def _decode(files: list[str], size: int, fit: str, threads: int, problems: list[str]) -> Iterator[Images]:
    def decode_block(block: list[str]) -> tuple[Images, list[str]]:
        images = np.zeros((len(block), size, size, CHANNELS), dtype=np.uint8)
        unreadable = []
        for image, path in zip(images, block, strict=True):
            try:
                image[...] = read_image(path, size=size, channels=CHANNELS, fit=fit)
            except DataError as error:
                unreadable.append(str(error))
        return images, unreadable

    blocks = [files[start : start + _BLOCK] for start in range(0, len(files), _BLOCK)]
    with ThreadPoolExecutor(threads) as pool:
        for images, unreadable in pool.map(decode_block, blocks):
            problems += unreadable
            yield images
