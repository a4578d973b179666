"""The three shapes of a data set: as a source hands it over, as training sees it, one part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpo.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

SPLIT_SEED = 0
"""Not an option: two people who name the same data mean the same split."""

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
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"class_names: must be a tuple of names, is {names!r}")
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(f"class_names: must be at least two different names, is {names!r}")
        for name in names:
            if not is_text(name):
                raise DataError(
                    f"class_names: {name!r} is not valid text (UTF-8 without NUL); rename the class"
                )
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
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 array (n, h, w, c), 0..255, memory-mapped: all processes of a machine share its pages.
            Writing to it changes the process's own copy, never the cache.
        labels: int64 array (n,).
    """

    images: Images
    labels: Labels


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What the search may see of a data set: no test images are in it.

    The images of both parts are shuffled once and for all such that every leading stretch holds the classes
    in their proportions, from the first image of each class on.

    Attributes:
        train, valid: the parts.
        mean, std: float32 arrays (c,): mean and deviation of the pixels of `train`, scaled to 0..1; the
            deviation of a constant channel is given as 1.
        class_names: one name for each label.
        source: where the data came from, as `prepare` takes it, with an absolute path.
        fingerprint: 16 hex digits; equal exactly when content, labels, class order, split (test part too)
            and limits are equal.
    """

    train: Split
    valid: Split
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    class_names: tuple[str, ...]
    source: str
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


@dataclass(frozen=True)
class Source:
    """Where images come from, opened as far as is quick.

    Attributes:
        name: canonical text of the source (paths absolute).
        identity: text that changes with the content; together with `name` it names the entry of the cache.
        read: does the slow part; its argument is an empty folder for intermediate files.
    """

    name: str
    identity: str
    read: Callable[[Path], ImageData]


def is_text(name: str) -> bool:
    """Return whether a name can be stored: names of files may hold bytes that are not UTF-8."""
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def hold_out(labels: npt.NDArray[np.integer], share: float) -> tuple[Indices, Indices]:
    """Split a part by class, drawing with the fixed seed: (indices that stay, indices held out).

    Of each class the rounded share is held out, at least one image; at least one stays where it has two.
    """
    generator = np.random.default_rng((SPLIT_SEED, 0))
    stay, out = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        out.append(members[:count])
        stay.append(members[count:])
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(out))


def stratified_order(labels: npt.NDArray[np.integer]) -> Indices:
    """Return a fixed shuffled order whose every prefix holds the classes in proportion.

    The first k of n images hold one of each class once k reaches the number of classes, so that a limit is
    nothing but a prefix.
    """
    generator = np.random.default_rng((SPLIT_SEED, 1))
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
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DataError(f"{part}_labels: must be an integer array, is {found}")
    if labels.shape != (len(images),):
        raise DataError(
            f"{part}_labels: must have the shape ({len(images)},), one for each image, has {labels.shape}"
        )
    wrong = labels[(labels < 0) | (labels >= len(class_names))]
    if len(wrong):
        raise DataError(
            f"{part}_labels: must be 0 to {len(class_names) - 1}, one for each class name, is {wrong[0]}"
        )
    for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True):
        if count < images_per_class:
            wanted = (
                "one is needed" if images_per_class == 1 else "two are needed, one is held out for validation"
            )
            raise DataError(f"{part}_labels: class {name!r} has {count} images; {wanted}")


def _by(images: Images) -> str:
    return " × ".join(str(side) for side in images.shape[1:])
