"""One picture file to one array: the preparation that training data and `hpo predict` share."""

from __future__ import annotations

import stat
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from hpo.errors import DataError

MAX_PIXELS = 2**26
"""Larger pictures (8,192 × 8,192) are refused before they are decoded: a small file can hide gigabytes."""

_PROGRAMS = frozenset(("EPS", "WMF", "FPX", "MPEG", "GRIB", "HDF5", "BUFR"))
"""Formats that Pillow hands to others, or whose pictures are programs."""
_MODES = {1: "L", 3: "RGB"}
_BILINEAR = Image.Resampling.BILINEAR

Sides = tuple[int, int]
"""Width and height in pixels."""


def _crop(image: Image.Image, size: Sides) -> Image.Image:
    side = min(image.size)  # `ImageOps.fit` would let in a little of what it cuts off
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize(size, _BILINEAR)


FITS: dict[str, Callable[[Image.Image, Sides], Image.Image]] = {
    "crop": _crop,
    "pad": partial(ImageOps.pad, method=_BILINEAR),
    "squash": partial(Image.Image.resize, resample=_BILINEAR),
}
"""How a picture that is no square becomes one: its middle, black bars beside it, or its sides scaled
independently. Bilinear over all covered pixels, and all the same of a square."""
DEFAULT_FIT = "crop"


def picture_endings() -> set[str]:
    """Return what names of files end in that `read_image` can read, in small letters, as `.png`."""
    kinds = Image.registered_extensions()
    return {ending for ending, kind in kinds.items() if kind in Image.OPEN and kind not in _PROGRAMS}


def read_image(
    path: Path | str, *, size: int, channels: int, fit: str = DEFAULT_FIT
) -> npt.NDArray[np.uint8]:
    """Read a picture of any format and mode that Pillow knows as it is meant to be seen, scaled to a square.

    The orientation in the EXIF data is applied, transparent pixels are laid over white, 16 bits a channel
    become 8, of an animation the first frame is taken.

    Args:
        path: the file.
        size: height and width of the result, in pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: a name of `FITS`.

    Returns:
        uint8 array (size, size, channels), 0..255.

    Raises:
        DataError: the file cannot be read as a picture, or is a decompression bomb; the text starts with
            the path.
    """
    if channels not in _MODES:
        raise DataError(f"{path}: a picture can be read with 1 or 3 channels, not with {channels}")
    try:
        if stat.S_ISFIFO(Path(path).stat().st_mode):  # would wait for somebody to write into it
            raise ValueError("a pipe, not a file")
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _bomb(path, f"{width} × {height} pixels")
            image.draft(None, (2 * size, 2 * size))  # lets JPEG photos be decoded at 1/2, 1/4 or 1/8 scale
            ImageOps.exif_transpose(image, in_place=True)
            flat = _opaque_8_bit(image).convert(_MODES[channels])
            if flat.size != (size, size):
                is_square = flat.width == flat.height  # bit for bit what versions without a choice made of it
                flat = FITS["squash" if is_square else fit](flat, (size, size))
            return np.array(flat, dtype=np.uint8).reshape(size, size, channels)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(path, str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture in a format that Pillow knows"
        raise DataError(f"{path}: cannot be read: {reason}") from error


@cache
def _formats() -> list[str]:
    """Return all that Pillow reads itself: a picture must not start a program, as PostScript does."""
    Image.init()
    return [name for name in Image.OPEN if name not in _PROGRAMS]


def _bomb(path: Path | str, found: str) -> DataError:
    return DataError(f"{path}: possible decompression bomb ({found}; the limit is {MAX_PIXELS:,} pixels)")


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):
        # convert() would clip 16-bit values at 255 and leave a white picture
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image
