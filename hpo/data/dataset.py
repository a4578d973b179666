"""The shapes of a data set: as a source hands it over, as training sees it, and one part of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpo.data.images import DEFAULT_FIT
from hpo.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

SPLIT_SEED = 0
"""Not an option: two people who name the same data mean the same split."""

_NUMERIC = "buif"
"""NumPy's kinds of what can be an input: truth values, integers, floats."""

HELD_OUT = 0.2
"""Share of each class that becomes the validation part, as 10,000 of CIFAR-10's 50,000 training images."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images, checked when it is made. What a source returns, your own function included.

    Attributes:
        train_images: uint8 array (n, h, w, c), 0..255; the other images have the same h, w, c.
        train_labels: integer array (n,), each an index into `class_names`.
        test_images, test_labels: likewise. The final stage alone looks at them.
        class_names: at least two different names; a list becomes a tuple.
        valid_images, valid_labels: likewise. None: a fifth of each class is split off the training part.

    Raises:
        DataError: an array has another type or shape, a label is out of range, or a class has no image in one
            of the parts (two are needed in a training part that is to be split).
    """

    train_images: Images
    train_labels: npt.NDArray[np.integer]
    test_images: Images
    test_labels: npt.NDArray[np.integer]
    class_names: tuple[str, ...]
    valid_images: Images | None = None
    valid_labels: npt.NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        names = self.class_names
        if isinstance(names, list):  # as torchvision's data sets have them
            object.__setattr__(self, "class_names", names := tuple(names))
        _check_class_names(names)
        if (self.valid_images is None) != (self.valid_labels is None):
            raise DataError("valid_images and valid_labels: give both, or none of them")
        _check_part(
            "train", self.train_images, self.train_labels, names, 2 if self.valid_images is None else 1
        )
        _check_part("test", self.test_images, self.test_labels, names)
        if self.valid_images is not None and self.valid_labels is not None:
            _check_part("valid", self.valid_images, self.valid_labels, names)
        for part, images in (("test", self.test_images), ("valid", self.valid_images)):
            if images is not None and images.shape[1:] != self.train_images.shape[1:]:
                raise DataError(
                    f"{part}_images: images are {_by(images)}, those of train_images {_by(self.train_images)}"
                )


@dataclass(frozen=True, eq=False)
class ArrayData:
    """A data set of arrays, for what is no picture: tables, series, features. Checked when it is made.

    Attributes:
        train_inputs: numeric array (n, features) or (n, …). Floats become float32 and are standardised by the
            training part before a network sees them, each feature of a table by itself; integers become int64
            and are handed over as they are.
        train_targets: with `class_names` integers (n,), each an index into them; without, numbers (n,) or
            (n, outputs) to be predicted.
        test_inputs, test_targets: likewise. The final stage alone looks at them.
        class_names: at least two different names where targets are classes; None where they are numbers.
        valid_inputs, valid_targets: likewise. None: a fifth of the training part is split off, of each class
            where there are classes.

    Raises:
        DataError: an array has another type or shape, or holds what is no number.
    """

    train_inputs: npt.NDArray[np.generic]
    train_targets: npt.NDArray[np.generic]
    test_inputs: npt.NDArray[np.generic]
    test_targets: npt.NDArray[np.generic]
    class_names: tuple[str, ...] | None = None
    valid_inputs: npt.NDArray[np.generic] | None = None
    valid_targets: npt.NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.class_names, list):
            object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.class_names is not None:
            _check_class_names(self.class_names)
        if (self.valid_inputs is None) != (self.valid_targets is None):
            raise DataError("valid_inputs and valid_targets: give both, or none of them")
        for part in ("train", "test", "valid"):
            inputs = getattr(self, f"{part}_inputs")
            if inputs is None and part == "valid":
                continue
            self._check_inputs(part, inputs)
            targets = getattr(self, f"{part}_targets")
            if self.class_names is None:
                self._check_numbers(part, len(inputs), targets)
            else:
                splits = part == "train" and self.valid_inputs is None
                _check_labels(f"{part}_targets", len(inputs), targets, self.class_names, 2 if splits else 1)
        if self.valid_inputs is None and len(self.train_inputs) < 2:
            raise DataError("train_inputs: two rows are needed, one is held out for validation")

    def _check_inputs(self, part: str, inputs: object) -> None:
        where = f"{part}_inputs"
        if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in _NUMERIC:
            found = inputs.dtype if isinstance(inputs, np.ndarray) else type(inputs).__name__
            raise DataError(f"{where}: must be a numeric array, is {found}")
        if inputs.ndim < 2 or 0 in inputs.shape:
            raise DataError(f"{where}: must have the shape (n, features) or (n, …), has {inputs.shape}")
        if (
            inputs.shape[1:] != self.train_inputs.shape[1:]
            or inputs.dtype.kind != self.train_inputs.dtype.kind
        ):
            ours, theirs = self.train_inputs, inputs
            raise DataError(
                f"{where}: rows of {theirs.dtype} {theirs.shape[1:]}, those of train_inputs are {ours.dtype} "
                f"{ours.shape[1:]}"
            )
        _check_finite(where, inputs)

    def _check_numbers(self, part: str, n_rows: int, targets: object) -> None:
        where = f"{part}_targets"
        if not isinstance(targets, np.ndarray) or targets.dtype.kind not in _NUMERIC:
            found = targets.dtype if isinstance(targets, np.ndarray) else type(targets).__name__
            raise DataError(f"{where}: must be a numeric array, is {found}")
        if len(targets) != n_rows or targets.ndim not in (1, 2) or 0 in targets.shape:
            raise DataError(
                f"{where}: must have the shape ({n_rows},) or ({n_rows}, outputs), has {targets.shape}"
            )
        if targets.shape[1:] != np.shape(self.train_targets)[1:]:
            raise DataError(f"{where}: must have the outputs of train_targets, has {targets.shape}")
        _check_finite(where, targets)


@dataclass(frozen=True)
class DataInfo:
    """What a network is built for.

    Attributes:
        input_shape: of one input as a network sees it: (c, h, w) of images, (features,) of a table.
        class_names: one name for each class; empty where targets are numbers.
        n_outputs: how many numbers a network returns for one input: one a class, or one a number to predict.
        is_images: whether inputs are images.
    """

    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    n_outputs: int
    is_images: bool = True

    @property
    def n_classes(self) -> int:
        """How many classes there are; 0 where targets are numbers."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Attributes:
        inputs: uint8 images (n, h, w, c), 0..255; float32 or int64 arrays (n, …). Memory-mapped: all
            processes of a machine share its pages. Writing to it changes the process's own copy alone.
        targets: int64 classes (n,), or float32 numbers (n,) or (n, outputs).
    """

    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What the search may see of a data set: nothing of the test part is in it.

    Both parts are shuffled once and for all such that every leading stretch holds the classes in their
    proportions, from the first example of each class on.

    Attributes:
        train, valid: the parts.
        mean, std: float32 arrays: mean and deviation of `train`; of images (c,), scaled to 0..1, of tables
            (features,), of other float inputs (1,); 0 and 1 for integers. A deviation of 0 is given as 1.
        info: what a network is built for.
        source: where the data came from, as `prepare` takes it, with an absolute path.
        fingerprint: 16 hex digits; equal exactly when content, targets, class order, split (test part too)
            and limits are equal.
        fit: how pictures became squares, a name of `hpo.data.images.FITS`; further ones are to be made so.
        notes: what its user should know of the data, a sentence each.
        split_seed: of the draw that split the validation part off, where it is not the usual one.
    """

    train: Split
    valid: Split
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    info: DataInfo
    source: str
    fingerprint: str
    fit: str = DEFAULT_FIT
    notes: tuple[str, ...] = ()
    split_seed: int | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input as a network sees it; see `DataInfo`."""
        return self.info.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class; empty where targets are numbers."""
        return self.info.class_names

    @property
    def n_classes(self) -> int:
        """How many classes there are; 0 where targets are numbers."""
        return self.info.n_classes

    @property
    def n_outputs(self) -> int:
        """How many numbers are predicted for one input."""
        return self.info.n_outputs


@dataclass(frozen=True)
class Source:
    """Where images come from, opened as far as is quick.

    Attributes:
        name: canonical text of the source (paths absolute).
        identity: text that changes with the content; together with `name` it names the entry of the cache.
        read: does the slow part; its argument is an empty folder for intermediate files.
        fit: how pictures became squares, a name of `hpo.data.images.FITS`.
        notes: what its user should know of it, a sentence each.
    """

    name: str
    identity: str
    read: Callable[[Path], ImageData | ArrayData]
    fit: str = DEFAULT_FIT
    notes: tuple[str, ...] = ()


def is_text(name: str) -> bool:
    """Return whether a name can be stored: names of files may hold bytes that are not UTF-8."""
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def hold_out(
    labels: npt.NDArray[np.integer], share: float, seed: int = SPLIT_SEED
) -> tuple[Indices, Indices]:
    """Split a part by class, drawing with a seed: (indices that stay, indices held out).

    Of each class the rounded share is held out, at least one image; at least one stays where it has two.
    """
    generator = np.random.default_rng((seed, 0))
    stay, out = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        out.append(members[:count])
        stay.append(members[count:])
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(out))


def stratified_order(labels: npt.NDArray[np.integer], seed: int = SPLIT_SEED) -> Indices:
    """Return a fixed shuffled order whose every prefix holds the classes in proportion.

    The first k of n images hold one of each class once k reaches the number of classes, so that a limit is
    nothing but a prefix.
    """
    generator = np.random.default_rng((seed, 1))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        spread = (np.arange(len(members)) + generator.random(len(members))) / len(members)
        spread[0] -= 1
        position[members] = spread
    return np.argsort(position, kind="stable")


def _check_part(
    part: str, images: object, labels: object, class_names: tuple[str, ...], images_per_class: int = 1
) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{part}_images: must be a uint8 array (values 0 to 255), is {found}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(
            f"{part}_images: must have the shape (n, height, width, channels), has {images.shape}"
        )
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise DataError(
            f"{part}_images: the shape {images.shape} looks like (n, channels, height, width); the channels "
            "come last here"
        )
    _check_labels(f"{part}_labels", len(images), labels, class_names, images_per_class)


def _check_labels(
    where: str, n_rows: int, labels: object, class_names: tuple[str, ...], n_per_class: int
) -> None:
    noun = "image" if where.endswith("_labels") else "row"
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DataError(f"{where}: must be an integer array, is {found}")
    if labels.shape != (n_rows,):
        raise DataError(f"{where}: must have the shape ({n_rows},), one for each {noun}, has {labels.shape}")
    wrong = labels[(labels < 0) | (labels >= len(class_names))]
    if len(wrong):
        raise DataError(
            f"{where}: must be 0 to {len(class_names) - 1}, one for each class name, is {wrong[0]}"
        )
    for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True):
        if count < n_per_class:
            wanted = "one is needed" if n_per_class == 1 else "two are needed, one is held out for validation"
            raise DataError(f"{where}: class {name!r} has {count} {noun}s; {wanted}")


def _check_class_names(names: object) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"class_names: must be a tuple of names, is {names!r}")
    if len(names) < 2 or len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
        raise DataError(
            "class_names: must be at least two different names, no name in two Unicode spellings, is "
            f"{names!r}"
        )
    for name in names:
        if not is_text(name):
            raise DataError(f"class_names: {name!r} is not valid text (UTF-8 without NUL); rename the class")


def _check_finite(where: str, array: npt.NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))  # as training sees it
    wrong = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{where}: holds NaN, infinity or a number too large for float32, first in row {wrong[0]}, in "
            f"{len(wrong)} rows"
        )


def _by(images: Images) -> str:
    return " × ".join(str(side) for side in images.shape[1:])
