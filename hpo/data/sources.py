"""The table of sources: what may stand in `--data`, and how each becomes `ImageData`."""

from __future__ import annotations

import hashlib
import http.client
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path, PurePath

import numpy as np

from hpo._files import resolved, user_path
from hpo._imports import load_object, place_in_user_code
from hpo.data.dataset import HELD_OUT, ArrayData, ImageData, Source, hold_out, is_text
from hpo.data.folder import list_folder, read_folder
from hpo.data.images import DEFAULT_FIT, FITS
from hpo.errors import DataError, InputError, did_you_mean

DEFAULT_IMAGE_SIZE = 32
MAX_IMAGE_SIZE = 1024
CIFAR10_FOLDER, CIFAR10_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
"""As torchvision has them; importing that imports torch, which data that are in the cache do not need."""
PATH_KINDS = ("folder", "cifar10")
"""Kinds of sources whose argument is a path."""


def absolute_source(text: str) -> str:
    """Return the same source from every folder.

    Raises:
        InputError: its path can be none.
    """
    if not text:
        raise InputError("a source of data must not be empty")
    kind, _, path = text.partition(":")
    try:
        return f"{kind}:{resolved(path)}" if kind in PATH_KINDS and path else text
    except InputError as error:
        raise InputError(f"{kind}:{error}") from None


def without_folders(text: str) -> str:
    """Return a source with its folder's name alone, for those who need not know a disk."""
    kind, colon, path = text.partition(":")
    return f"{kind}{colon}{PurePath(path).name}" if kind in PATH_KINDS else text


def open_source(text: str, image_size: int | None = None, fit: str = DEFAULT_FIT) -> Source:
    """Open what stands in `--data`: a name of `SOURCES`, with `:` and an argument where it takes one.

    Raises:
        InputError: an unknown name, an argument missing or too many, or a size or a fit of images where none
            can be given.
        DataError: the source cannot be opened.
    """
    if not is_text(text):
        raise InputError(f"{text!r} is not valid text (UTF-8 without NUL); rename the folder or file")
    kind, _, argument = absolute_source(text).partition(":")
    if kind not in SOURCES:
        hint = did_you_mean(kind, SOURCES)
        with suppress(InputError):
            hint = f"did you mean 'folder:{text}'?" if user_path(text).is_dir() else hint
        raise InputError(f"{text!r} is not a source of data; {hint}")
    if image_size is not None and kind != "folder":
        raise InputError(
            f"image_size = {image_size}: only folder:PATH is resized, {kind!r} has a size of its own"
        )
    if fit not in FITS:
        raise InputError(f"fit = {fit!r}: {did_you_mean(fit, FITS)}")
    if fit != DEFAULT_FIT and kind != "folder":
        raise InputError(f"fit = {fit!r}: only folder:PATH is resized, {kind!r} has images of one size")
    return folder(argument, image_size, fit) if kind == "folder" else SOURCES[kind](argument)


def digits(argument: str) -> Source:
    """Load scikit-learn's 1,797 handwritten digits, 8 × 8 × 1; a fifth of each class is the test part."""
    if argument:
        raise InputError(f"'digits:{argument}': digits takes no argument")
    return Source("digits", identity="", read=_read_digits)


def _read_digits(scratch: Path) -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = bunch.target
    train, test = hold_out(labels, HELD_OUT)
    names = tuple(str(name) for name in bunch.target_names)
    return ImageData(images[train], labels[train], images[test], labels[test], names)


def cifar10(argument: str) -> Source:
    """Load CIFAR-10, 32 × 32 × 3: downloaded by torchvision, or from the folder that is its argument."""
    given = Path(argument) if argument else None
    name = f"cifar10:{given}" if given else "cifar10"
    if given and not any((given / part).exists() for part in (CIFAR10_FOLDER, CIFAR10_ARCHIVE)):
        raise DataError(f"{name}: neither {CIFAR10_FOLDER} nor {CIFAR10_ARCHIVE} is in this folder")
    return Source(name, CIFAR10_MD5, read=lambda scratch: _read_cifar10(given, scratch))


def _read_cifar10(given: Path | None, scratch: Path) -> ImageData:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    by_hand = f"download {CIFAR10.url} by hand and give its folder: --data cifar10:FOLDER"
    if given and (given / CIFAR10.base_folder).exists():
        root = given
    else:
        root = scratch
        if given:
            archive = given / CIFAR10.filename
            if not check_integrity(archive, CIFAR10.tgz_md5):
                raise DataError(
                    f"{archive}: the checksum is wrong, the file is damaged or incomplete; {by_hand}"
                )
            (root / CIFAR10.filename).symlink_to(archive)  # torchvision unpacks it instead of downloading
        try:
            CIFAR10(root, download=True)  # shows its progress on stderr
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(f"the download failed: {error}; try again, or {by_hand}") from error
    try:
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError as error:
        raise DataError(
            f"{root / CIFAR10.base_folder}: a file is missing or its checksum is wrong; {by_hand}"
        ) from error
    return ImageData(
        np.ascontiguousarray(train.data),
        np.array(train.targets),
        np.ascontiguousarray(test.data),
        np.array(test.targets),
        tuple(train.classes),
    )


def folder(argument: str, image_size: int | None = None, fit: str = DEFAULT_FIT) -> Source:
    """Return an image folder (see `hpo.data.folder`), resized to `image_size` (default 32), RGB."""
    if not argument:
        raise InputError("'folder' needs a path: folder:PATH")
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    if not 1 <= size <= MAX_IMAGE_SIZE:
        raise InputError(f"image_size = {size}: must be 1 to {MAX_IMAGE_SIZE} pixels")
    root = Path(argument)
    listing = list_folder(root)
    return Source(
        f"folder:{root}",
        f"{listing.identity} {size} {fit}",
        read=lambda scratch: read_folder(listing, size=size, fit=fit, scratch=scratch),
        fit=fit,
        notes=listing.notes,
    )


def python(argument: str) -> Source:
    """Return the result of your own function without arguments, `module:function`; it is called each time.

    The module is looked for in the current directory, too. The function returns `ImageData` or `ArrayData`.
    """
    name = f"python:{argument}"
    function = load_object(name, DataError)
    if not callable(function):
        raise DataError(f"{name}: must be a function, is {type(function).__name__}")
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no JSON
            data = function()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        place = place_in_user_code(error)
        raise DataError(f"{name}: {place and f'{place}: '}{type(error).__name__}: {error}") from error
    if not isinstance(data, ImageData | ArrayData):
        raise DataError(f"{name}: must return hpo.ImageData or hpo.ArrayData, returned {type(data).__name__}")
    return Source(name, _content(data), read=lambda scratch: data)


def _content(data: ImageData | ArrayData) -> str:
    digest = hashlib.sha256(repr(data.class_names).encode())
    for field in fields(data):
        array = getattr(data, field.name)
        if isinstance(array, np.ndarray):
            digest.update(f"{field.name} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


SOURCES: dict[str, Callable[[str], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "folder": folder,
    "python": python,
}
"""Name → function of the text after the colon; "" where there is none, and a path is absolute."""
