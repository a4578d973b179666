"""Image folders: `train/CLASS/*`, `test/CLASS/*` and, where there is one, `validation/CLASS/*`."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.data.dataset import ImageData, Images
from hpo.data.images import read_image
from hpo.data.npy import map_array, write_blocks
from hpo.errors import DataError

CHANNELS = 3

_BLOCK = 256
_PROBLEMS_SHOWN = 20
_MISNAMED = ("val", "valid")  # beside train and test they must be meant for validation


@dataclass(frozen=True)
class Listing:
    """What an image folder holds, by its directories alone: nothing is decoded yet.

    Attributes:
        files: for each part its files, class by class.
        labels: for each part the index into `class_names` of each file.
        class_names: the class folders of all parts together, sorted.
        n_bytes: size of all files together.
        problems: one line each.
        identity: changes with every name, size and modification time in the folder.
    """

    files: dict[str, list[str]]
    labels: dict[str, list[int]]
    class_names: tuple[str, ...]
    n_bytes: int
    problems: tuple[str, ...]
    identity: str


def list_folder(root: Path) -> Listing:
    """List an image folder; names that start with a dot are ignored everywhere.

    Raises:
        DataError: there is no such folder, it has no `train` or `test`, or a directory cannot be listed.
    """
    try:
        parts, problems = _parts(root)
        class_names = _class_names(root, parts, problems)
        return _list_classes(root, parts, class_names, problems)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be listed: {error.strerror}") from error


def read_folder(listing: Listing, *, size: int, scratch: Path) -> ImageData:
    """Decode all files to RGB, size × size; the arrays are memory-mapped files in `scratch`.

    Raises:
        DataError: with every problem of the listing and every unreadable file, the first 20 in words.
    """
    problems = list(listing.problems)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a file that matters is named as a problem
        for part, files in listing.files.items():
            blocks = _decode(files, size, _threads(listing), problems)
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


def _parts(root: Path) -> tuple[list[str], list[str]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    parts = [part for part in ("train", "test", "validation") if (root / part).is_dir()]
    for needed in ("train", "test"):
        if needed not in parts:
            there = ", ".join(entry.name for entry in _visible(root)) or "nothing"
            raise DataError(f"{root}: needs the folders train/CLASS and test/CLASS; in it: {there}")
    misnamed = [root / name for name in _MISNAMED if "validation" not in parts and (root / name).is_dir()]
    return parts, [f"{folder}: is used only under the name validation" for folder in misnamed]


def _class_names(root: Path, parts: list[str], problems: list[str]) -> tuple[str, ...]:
    names = set()
    for part in parts:
        for entry in _visible(root / part):
            if entry.is_dir():
                names.add(entry.name)
            else:
                problems.append(f"{entry.path}: lies outside the class folders")
    if len(names) < 2:
        problems.append(f"{root / 'train'}: needs two class folders or more")
    return tuple(sorted(names))


def _list_classes(root: Path, parts: list[str], class_names: tuple[str, ...], problems: list[str]) -> Listing:
    files: dict[str, list[str]] = {part: [] for part in parts}
    labels: dict[str, list[int]] = {part: [] for part in parts}
    n_bytes = 0
    digest = hashlib.sha256()
    for part in parts:
        splits = part == "train" and "validation" not in parts
        for label, name in enumerate(class_names):
            folder = root / part / name
            if not folder.is_dir():
                problems.append(f"{folder}: is missing; another part has this class")
                continue
            n_before = len(files[part])
            for entry in _visible(folder):
                if entry.is_dir():
                    problems.append(f"{entry.path}: is a folder; pictures lie directly in their class folder")
                    continue
                n_file_bytes, modified_ns = _size_and_time(entry)
                digest.update(os.fsencode(f"\0{part}/{name}/{entry.name}\0{n_file_bytes}\0{modified_ns}"))
                n_bytes += n_file_bytes
                files[part].append(entry.path)
                labels[part].append(label)
            n_found = len(files[part]) - n_before
            if n_found == 0:
                problems.append(f"{folder}: has no pictures")
            elif n_found == 1 and splits:
                problems.append(f"{folder}: has one picture; two are needed, one is held out for validation")
    digest.update(os.fsencode("\0".join(problems)))
    return Listing(files, labels, class_names, n_bytes, tuple(problems), digest.hexdigest())


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
        )


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
    return min(os.cpu_count() or 1, 8) if listing.n_bytes > 16384 * n_files else 1


def _decode(files: list[str], size: int, threads: int, problems: list[str]) -> Iterator[Images]:
    def decode_block(block: list[str]) -> tuple[Images, list[str]]:
        images = np.zeros((len(block), size, size, CHANNELS), dtype=np.uint8)
        unreadable = []
        for image, path in zip(images, block, strict=True):
            try:
                image[...] = read_image(path, size=size, channels=CHANNELS)
            except DataError as error:
                unreadable.append(str(error))
        return images, unreadable

    blocks = [files[start : start + _BLOCK] for start in range(0, len(files), _BLOCK)]
    with ThreadPoolExecutor(threads) as pool:
        for images, unreadable in pool.map(decode_block, blocks):
            problems += unreadable
            yield images
