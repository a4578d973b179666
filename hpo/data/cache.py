"""The cache: each source decoded once a machine, in files that all processes map into memory.

An entry is a folder of `{train,valid,test}_{inputs,targets}.npy` and `meta.json`. It is built beside its
place and renamed when all of it is on the disk, so an entry that is there is whole; its name changes with the
content of the source, so it is never out of date. Entries may be deleted whenever nothing runs. What is read
of an entry is compared with the sums in `meta.json`, and that with a sum of its own: disks lose bits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from hpo._files import resolved, sync_folder, user_path
from hpo._lock import locked
from hpo._process import provide_caches
from hpo.data.dataset import (
    HELD_OUT,
    ArrayData,
    DataInfo,
    ImageData,
    Images,
    Indices,
    Source,
    Split,
    TrainingData,
    hold_out,
    stratified_order,
)
from hpo.data.images import DEFAULT_FIT
from hpo.data.npy import map_array, write_array, write_blocks
from hpo.data.sources import open_source
from hpo.errors import DataError, InputError
from hpo.space.parameters import canonical_json, explain

FORMAT = 5
"""Part of every entry's name: to be raised when its files, or a source's pictures, split or order, change."""

_BLOCK = 1024


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    is_images: bool
    class_names: list[str]
    """Empty where targets are numbers."""
    is_split_off: bool
    """Whether the validation part was split off the training part here."""
    content: dict[str, str]
    """SHA-256 of the arrays of each part."""
    mean: list[float]
    std: list[float]
    fit: str
    notes: list[str]
    sha256: str = ""
    """Of all the rest."""

    def signed(self) -> _Meta:
        """Return the same with the right sum."""
        rest = self.model_dump_json(exclude={"sha256"})
        return self.model_copy(update={"sha256": hashlib.sha256(rest.encode()).hexdigest()})


def prepare(
    source: str,
    *,
    image_size: int | None = None,
    fit: str = DEFAULT_FIT,
    cache: str | Path | None = None,
) -> Path:
    """Decode a source into the cache, unless that is done already, and return the folder of its entry.

    Of several processes that prepare the same source at once, one works and the others wait for it.

    Args:
        source: `digits`, `cifar10`, `cifar10:FOLDER`, `folder:PATH` or `python:module:function`.
        image_size: height and width of the images in pixels, for `folder:` alone; default 32.
        fit: how its pictures that are no squares become squares: `crop`, `pad` or `squash`.
        cache: folder of the cache; default `$HPO_CACHE`, or else the user's cache directory.

    Raises:
        InputError: there is no such source, or the size cannot be had.
        DataError: the source cannot be read; of an image folder all problems are named at once.
        RunError: another process that prepares it stands still.
    """
    opened = open_source(source, image_size, fit)
    root = resolved(cache_folder() if cache is None else cache)
    key = hashlib.sha256(os.fsencode(f"{FORMAT}\0{opened.name}\0{opened.identity}")).hexdigest()[:16]
    entry = root / f"{source.partition(':')[0]}-{key}"
    if entry.is_dir():
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{entry.name}.lock"):
            if not entry.is_dir():
                _build(opened, entry)
    except OSError as error:
        raise DataError(
            f"{opened.name}: cannot be written to the cache {root} (HPO_CACHE names another one): {error}"
        ) from error
    return entry


def cache_folder() -> Path:
    """Return where the cache is unless something else is asked for.

    Raises:
        InputError: `HPO_CACHE` can be no folder, or it is not given, and there is no place for caches.
    """
    if given := os.environ.get("HPO_CACHE"):
        try:
            return user_path(given)
        except InputError as error:
            raise InputError(f"HPO_CACHE={error}") from None
    provide_caches()
    try:
        return platformdirs.user_cache_path("hpo")
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"there is no place for the data cache ({error}); HPO_CACHE=FOLDER names one"
        ) from None


def load_training(
    entry: str | Path,
    *,
    limit_train: int | None = None,
    limit_valid: int | None = None,
    split_seed: int | None = None,
    with_validation: bool = False,
) -> TrainingData:
    """Open the training and the validation part of an entry; the files of the test part stay closed.

    Args:
        entry: what `prepare` returned.
        limit_train: train on so many images only, the classes in proportion, at least one of each.
        limit_valid: the same of the validation images.
        split_seed: draw another validation part with this seed; without effect where the data came with one.
        with_validation: train on the validation part as well, of which `valid` then says nothing new.

    Raises:
        InputError: a limit is larger than the part or smaller than the number of classes.
        DataError: the entry is damaged.
    """
    entry = user_path(entry)
    meta = _load_meta(entry)
    fewest = len(meta.class_names) or 1
    parts = load_split(entry, "train"), load_split(entry, "valid")
    if not meta.is_split_off:
        split_seed = None
    if split_seed is not None:
        parts = _split_anew(*parts, meta.class_names, split_seed)
    if with_validation:
        parts = _joined(*parts, meta.class_names), parts[1]
    train = _limited("train", parts[0], limit_train, fewest)
    valid = _limited("valid", parts[1], limit_valid, fewest)
    is_usual = limit_train is None and split_seed is None and not with_validation
    mean, std = (meta.mean, meta.std) if is_usual else _statistics(train.inputs)
    identity: dict[str, Any] = {
        "content": meta.content,
        "class_names": meta.class_names,
        "used": [len(train), len(valid)],
    }
    if split_seed is not None:
        identity["split_seed"] = split_seed
    if with_validation:
        identity["with_validation"] = True
    shape = train.inputs.shape[1:]
    n_numbers = 1 if train.targets.ndim == 1 else train.targets.shape[1]
    return TrainingData(
        train=train,
        valid=valid,
        mean=np.array(mean, dtype=np.float32),
        std=np.array(std, dtype=np.float32),
        info=DataInfo(
            input_shape=(shape[2], shape[0], shape[1]) if meta.is_images else shape,
            class_names=tuple(meta.class_names),
            n_outputs=len(meta.class_names) or n_numbers,
            is_images=meta.is_images,
        ),
        source=meta.source,
        fingerprint=hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16],
        fit=meta.fit,
        notes=tuple(meta.notes),
        split_seed=split_seed,
    )


def _joined(train: Split, valid: Split, class_names: list[str]) -> Split:
    """Put both parts together, the classes again in proportion in every leading stretch."""
    inputs = np.concatenate([train.inputs, valid.inputs])
    targets = np.concatenate([train.targets, valid.targets])
    order = stratified_order(_strata(targets, class_names))
    return Split(inputs[order], targets[order])


def _split_anew(train: Split, valid: Split, class_names: list[str], seed: int) -> tuple[Split, Split]:
    """Put both parts together and split another validation part off."""
    inputs = np.concatenate([train.inputs, valid.inputs])
    targets = np.concatenate([train.targets, valid.targets])
    strata = _strata(targets, class_names)
    order = [indices[stratified_order(strata[indices], seed)] for indices in hold_out(strata, HELD_OUT, seed)]
    first, second = (Split(inputs[indices], targets[indices]) for indices in order)
    return first, second


def _statistics(inputs: npt.NDArray[Any]) -> tuple[list[float], list[float]]:
    """Return mean and deviation of inputs, as `TrainingData` has them."""
    if inputs.dtype == np.uint8:
        return pixel_statistics(inputs)
    if inputs.dtype != np.float32:
        return [0.0], [1.0]
    axis = 0 if inputs.ndim == 2 else None
    values = inputs.astype(np.float64)
    mean, std = np.atleast_1d(values.mean(axis)), np.atleast_1d(values.std(axis))
    return mean.tolist(), np.where(std == 0, 1.0, std).tolist()


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
        _write(data, source, building)
        shutil.rmtree(scratch)
        sync_folder(building)
        building.rename(entry)
        sync_folder(entry.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(data: ImageData | ArrayData, source: Source, folder: Path) -> None:
    parts = _parts(data)
    _, train_targets = parts["train"]
    class_names = list(data.class_names or ())
    is_split_off = "valid" not in parts
    if not is_split_off:
        stay, held_out = np.arange(len(train_targets)), np.arange(len(parts["valid"][1]))
    else:
        parts["valid"] = parts["train"]
        stay, held_out = hold_out(_strata(train_targets, class_names), HELD_OUT)
    stay = stay[stratified_order(_strata(train_targets[stay], class_names))]
    held_out = held_out[stratified_order(_strata(parts["valid"][1][held_out], class_names))]
    order = {"train": stay, "valid": held_out, "test": np.arange(len(parts["test"][1]))}
    is_images = isinstance(data, ImageData)
    content = {
        part: _write_part(folder, part, *parts[part], order[part], is_images=is_images) for part in order
    }
    mean, std = _statistics(map_array(folder / "train_inputs.npy"))
    meta = _Meta(
        source=source.name,
        is_images=is_images,
        class_names=class_names,
        is_split_off=is_split_off,
        content=content,
        mean=mean,
        std=std,
        fit=source.fit,
        notes=list(source.notes),
    )
    with (folder / "meta.json").open("w") as file:
        file.write(meta.signed().model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Inputs and targets of a part."""


def _parts(data: ImageData | ArrayData) -> dict[str, Arrays]:
    """Return inputs and targets of each part; the validation part only where there is one."""
    parts: dict[str, Arrays]
    if isinstance(data, ImageData):
        parts = {
            "train": (data.train_images, data.train_labels),
            "test": (data.test_images, data.test_labels),
        }
        if data.valid_images is not None and data.valid_labels is not None:
            parts["valid"] = data.valid_images, data.valid_labels
        return parts
    # without names integers are counts to be predicted; losses and metrics tell them from classes by type
    kind = np.int64 if data.class_names else np.float32
    parts = {
        "train": (data.train_inputs, data.train_targets.astype(kind)),
        "test": (data.test_inputs, data.test_targets.astype(kind)),
    }
    if data.valid_inputs is not None and data.valid_targets is not None:
        parts["valid"] = data.valid_inputs, data.valid_targets.astype(kind)
    return parts


def _strata(targets: npt.NDArray[Any], class_names: list[str]) -> npt.NDArray[np.integer]:
    """Return what a split keeps in proportion: classes; of numbers nothing."""
    return targets if class_names else np.zeros(len(targets), dtype=np.int64)


def _write_part(
    folder: Path,
    part: str,
    inputs: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    order: Indices,
    *,
    is_images: bool,
) -> str:
    shape = (len(order), *inputs.shape[1:])
    dtype = np.dtype(np.uint8) if is_images else np.dtype(np.float32 if _is_real(inputs) else np.int64)
    digest = hashlib.sha256(repr(shape).encode())

    def blocks() -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(order), _BLOCK):
            block = np.ascontiguousarray(inputs[order[start : start + _BLOCK]], dtype=dtype)
            digest.update(block.data)  # before it is written: what the disk makes of it is checked when read
            yield block

    write_blocks(folder / f"{part}_inputs.npy", shape, dtype, blocks())
    ordered = targets[order].astype(np.float32 if _is_real(targets) else np.int64)
    write_array(folder / f"{part}_targets.npy", ordered)
    digest.update(ordered.data)
    return digest.hexdigest()


def _is_real(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind in "fb"


def _load_meta(entry: Path) -> _Meta:
    try:
        meta = _Meta.model_validate_json((entry / "meta.json").read_bytes())
    except OSError as error:
        raise _damaged(entry, str(error)) from error
    except ValidationError as error:
        raise _damaged(entry, f"meta.json: {explain(error)}") from error
    if meta.signed() != meta:
        raise _damaged(entry, "meta.json: its checksum is wrong")
    return meta


def load_split(entry: Path, part: str) -> Split:
    """Map one part of an entry: `train`, `valid` or, by `hpo.data.test_set` alone, `test`.

    Raises:
        DataError: the entry is damaged.
    """
    try:
        files = [entry / f"{part}_{kind}.npy" for kind in ("inputs", "targets")]
        inputs, targets = map_array(files[0]), np.array(map_array(files[1]))
        states = [(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
        if not _checked.issuperset(states):
            _check(part, inputs, targets, _load_meta(entry).content.get(part))
            _checked.update(states)
        return Split(inputs, targets)
    except (OSError, ValueError) as error:
        raise _damaged(entry, str(error)) from error


_checked: set[tuple[Path, int, int]] = set()
"""Files as they were when this process found their sums right: a command opens an entry up to three times."""


def _check(part: str, inputs: npt.NDArray[Any], targets: npt.NDArray[Any], expected: str | None) -> None:
    """Compare arrays as they are on the disk with what was written.

    Raises:
        ValueError: they are not the same.
    """
    # no sum is of the types, of which one could become another by one bit
    if inputs.dtype not in (np.uint8, np.float32, np.int64) or targets.dtype not in (np.float32, np.int64):
        raise ValueError(f"{part}: arrays of {inputs.dtype} and {targets.dtype}")
    digest = hashlib.sha256(repr(inputs.shape).encode())
    digest.update(np.ascontiguousarray(inputs).data)
    digest.update(np.ascontiguousarray(targets).data)
    if digest.hexdigest() != expected:
        raise ValueError(f"{part}: the checksum is wrong")


def _damaged(entry: Path, reason: str) -> DataError:
    return DataError(f"{entry}: the cached data are damaged ({reason}); delete this folder and run again")


def _limited(part: str, split: Split, limit: int | None, fewest: int) -> Split:
    if limit is None:
        return split
    if limit > len(split):
        raise InputError(f"limit_{part} = {limit}: the {part} part has {len(split)} examples")
    if limit < fewest:
        raise InputError(f"limit_{part} = {limit}: at least {fewest} are needed, one of each class")
    return Split(split.inputs[:limit], split.targets[:limit])
