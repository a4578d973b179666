"""The cache: each source decoded once a machine, in files that all processes map into memory.

An entry is a folder of `{train,valid,test}_{images,labels}.npy` and `meta.json`. It is built beside its place
and renamed when all of it is on the disk, so an entry that is there is whole; its name changes with the
content of the source, so it is never out of date. Entries may be deleted whenever nothing runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpo.data.dataset import (
    HELD_OUT,
    ImageData,
    Images,
    Indices,
    Source,
    Split,
    TrainingData,
    hold_out,
    stratified_order,
)
from hpo.data.npy import map_images, write_images, write_labels
from hpo.data.sources import open_source
from hpo.errors import DataError, InputError
from hpo.space.parameters import canonical_json, explain

FORMAT = 1
"""Part of every entry's name: to be raised when a source's pictures, split or order come out differently."""

_BLOCK = 1024


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    class_names: Annotated[list[str], Field(min_length=2)]
    content: dict[str, str]
    mean: list[float]
    std: list[float]


def prepare(source: str, *, image_size: int | None = None, cache: Path | None = None) -> Path:
    """Decode a source into the cache, unless that is done already, and return the folder of its entry.

    Of several processes that prepare the same source at once, one works and the others wait for it.

    Args:
        source: `digits`, `cifar10`, `cifar10:FOLDER`, `folder:PATH` or `python:module:function`.
        image_size: height and width of the images in pixels, for `folder:` alone; default 32.
        cache: folder of the cache; default `$HPO_CACHE`, or else the user's cache directory.

    Raises:
        InputError: there is no such source, or the size cannot be had.
        DataError: the source cannot be read; of an image folder all problems are named at once.
    """
    opened = open_source(source, image_size)
    root = (cache or cache_folder()).resolve()
    key = hashlib.sha256(os.fsencode(f"{FORMAT}\0{opened.name}\0{opened.identity}")).hexdigest()[:16]
    entry = root / f"{source.partition(':')[0]}-{key}"
    if entry.is_dir():
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{entry.name}.lock"):
            if not entry.is_dir():
                _build(opened, entry)
    except OSError as error:
        raise DataError(
            f"{opened.name}: cannot be written to the cache {root} (HPO_CACHE names another one): {error}"
        ) from error
    return entry


def cache_folder() -> Path:
    """Return where the cache is unless something else is asked for."""
    return Path(os.environ.get("HPO_CACHE") or platformdirs.user_cache_path("hpo"))


def load_training(
    entry: Path, *, limit_train: int | None = None, limit_valid: int | None = None
) -> TrainingData:
    """Open the training and the validation part of an entry; the files of the test part stay closed.

    Args:
        entry: what `prepare` returned.
        limit_train: train on so many images only, the classes in proportion, at least one of each.
        limit_valid: the same of the validation images.

    Raises:
        InputError: a limit is larger than the part or smaller than the number of classes.
        DataError: the entry is damaged.
    """
    meta = _load_meta(entry)
    n_classes = len(meta.class_names)
    train = _limited("train", load_split(entry, "train"), limit_train, n_classes)
    valid = _limited("valid", load_split(entry, "valid"), limit_valid, n_classes)
    mean, std = (meta.mean, meta.std) if limit_train is None else pixel_statistics(train.images)
    identity = {
        "content": meta.content,
        "class_names": meta.class_names,
        "used": [len(train.labels), len(valid.labels)],
    }
    return TrainingData(
        train=train,
        valid=valid,
        mean=np.array(mean, dtype=np.float32),
        std=np.array(std, dtype=np.float32),
        class_names=tuple(meta.class_names),
        source=meta.source,
        fingerprint=hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16],
    )


def pixel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel of images (n, h, w, c) scaled to 0..1; 0 becomes 1.

    Sums are exact integers, so the result depends neither on the order of the images nor on the machine.
    """
    n_channels = images.shape[-1]
    n_pixels = images.size // n_channels
    counts = np.zeros((n_channels, 256), dtype=np.int64)
    for start in range(0, len(images), _BLOCK):
        pixels = images[start : start + _BLOCK].reshape(-1, n_channels)
        for channel in range(n_channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values = np.arange(256)
    mean, std = [], []
    for total, squares in zip((counts @ values).tolist(), (counts @ values**2).tolist(), strict=True):
        mean.append(total / n_pixels / 255)
        std.append((n_pixels * squares - total**2) ** 0.5 / n_pixels / 255 or 1.0)
    return mean, std


def _build(source: Source, entry: Path) -> None:
    building = entry.with_name(f".{entry.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # what a killed process left
    scratch = building / "scratch"
    scratch.mkdir(parents=True)
    try:
        try:
            data = source.read(scratch)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from error
        _write(data, source.name, building)
        shutil.rmtree(scratch)
        _sync_folder(building)
        building.rename(entry)
        _sync_folder(entry.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(data: ImageData, source: str, folder: Path) -> None:
    if data.valid_images is None or data.valid_labels is None:
        stay, held_out = hold_out(data.train_labels, HELD_OUT)
        valid_images, valid_labels = data.train_images, data.train_labels
    else:
        stay, held_out = np.arange(len(data.train_labels)), np.arange(len(data.valid_labels))
        valid_images, valid_labels = data.valid_images, data.valid_labels
    stay = stay[stratified_order(data.train_labels[stay])]
    held_out = held_out[stratified_order(valid_labels[held_out])]
    content = {
        "train": _write_part(folder, "train", data.train_images, data.train_labels, stay),
        "valid": _write_part(folder, "valid", valid_images, valid_labels, held_out),
        "test": _write_part(
            folder, "test", data.test_images, data.test_labels, np.arange(len(data.test_labels))
        ),
    }
    mean, std = pixel_statistics(map_images(folder / "train_images.npy"))
    meta = _Meta(source=source, class_names=list(data.class_names), content=content, mean=mean, std=std)
    with (folder / "meta.json").open("w") as file:
        file.write(meta.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())


def _write_part(
    folder: Path, part: str, images: Images, labels: npt.NDArray[np.integer], order: Indices
) -> str:
    shape = (len(order), *images.shape[1:])
    digest = hashlib.sha256(repr(shape).encode())

    def blocks() -> Iterator[Images]:
        for start in range(0, len(order), _BLOCK):
            block = np.ascontiguousarray(images[order[start : start + _BLOCK]])
            digest.update(block.data)
            yield block

    write_images(folder / f"{part}_images.npy", shape, blocks())
    ordered = labels[order].astype(np.int64)
    write_labels(folder / f"{part}_labels.npy", ordered)
    digest.update(ordered.data)
    return digest.hexdigest()


def _load_meta(entry: Path) -> _Meta:
    try:
        return _Meta.model_validate_json((entry / "meta.json").read_bytes())
    except OSError as error:
        raise _damaged(entry, str(error)) from error
    except ValidationError as error:
        raise _damaged(entry, f"meta.json: {explain(error)}") from error


def load_split(entry: Path, part: str) -> Split:
    """Map one part of an entry: `train`, `valid` or, by `hpo.data.test_set` alone, `test`.

    Raises:
        DataError: the entry is damaged.
    """
    try:
        images = map_images(entry / f"{part}_images.npy")
        labels = np.load(entry / f"{part}_labels.npy")
        if len(images) != len(labels):
            raise ValueError(f"{part}: {len(images)} images and {len(labels)} labels")
        return Split(images, labels)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(entry, str(error)) from error


def _damaged(entry: Path, reason: str) -> DataError:
    return DataError(f"{entry}: the cached data are damaged ({reason}); delete this folder and run again")


def _limited(part: str, split: Split, limit: int | None, n_classes: int) -> Split:
    if limit is None:
        return split
    n_images = len(split.labels)
    if limit > n_images:
        raise InputError(f"limit_{part} = {limit}: the {part} part has {n_images} images")
    if limit < n_classes:
        raise InputError(f"limit_{part} = {limit}: at least {n_classes} are needed, one image of each class")
    return Split(split.images[:limit], split.labels[:limit])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
