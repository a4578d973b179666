"""`read_image`: every kind of file becomes the picture that a viewer would show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from hpo.data import read_image
from hpo.data.images import DEFAULT_FIT, FITS
from hpo.errors import DataError
from hpo.planning.defaults import Defaults, Fit

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8)


def corners(size: int = 32) -> Image.Image:
    """Red, green over blue, white."""
    return Image.fromarray(CORNERS.repeat(size // 2, axis=0).repeat(size // 2, axis=1))


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def quarters(array: np.ndarray) -> np.ndarray:
    """The pixel in the middle of each quarter."""
    quarter = len(array) // 4
    return array[quarter :: 2 * quarter, quarter :: 2 * quarter]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_every_colour_mode_keeps_its_colours(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    path = saved(corners().convert(mode), tmp_path / f"a.{suffix}")

    image = read_image(path, size=32, channels=3)

    assert image.dtype == np.uint8
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(quarters(image).astype(int), CORNERS, atol=2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I"])
def test_every_grey_mode_keeps_its_brightness(tmp_path: Path, mode: str) -> None:
    grey = np.array([[0, 255], [255, 0]], dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    wide = {"I;16": np.uint16, "I": np.int32}.get(mode)
    image = Image.fromarray(grey.astype(wide) * 257) if wide else Image.fromarray(grey).convert(mode)
    path = saved(image, tmp_path / ("a.tif" if wide else "a.png"))
    with Image.open(path) as written:
        assert written.mode == mode

    np.testing.assert_array_equal(read_image(path, size=16, channels=1)[..., 0], grey)
    np.testing.assert_array_equal(read_image(path, size=16, channels=3), np.stack([grey] * 3, axis=-1))


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = saved(Image.fromarray(shades * 256 + 200), tmp_path / "a.png")

    np.testing.assert_array_equal(read_image(path, size=16, channels=1)[..., 0], shades)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        saved(Image.new("P", (8, 8), 0), path, transparency=0)
    elif mode == "RGB":
        saved(Image.new("RGB", (8, 8), (0, 0, 0)), path, transparency=(0, 0, 0))
    else:
        saved(black.convert(mode), path)

    assert (read_image(path, size=8, channels=3) == 255).all()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[RED, GREEN], [BLUE, WHITE]]),
        (3, [[WHITE, BLUE], [GREEN, RED]]),
        (6, [[BLUE, RED], [WHITE, GREEN]]),
        (8, [[GREEN, WHITE], [RED, BLUE]]),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(corners(), tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)

    np.testing.assert_allclose(quarters(read_image(path, size=32, channels=3)).astype(int), expected, atol=6)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
@pytest.mark.parametrize("shape", [(300, 80), (8, 8), (1000, 1000)])
def test_any_size_is_scaled_to_the_square_without_cropping(
    tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    path = saved(corners(8).resize(shape, Image.Resampling.NEAREST), tmp_path / name)

    image = read_image(path, size=32, channels=3)

    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(quarters(image).astype(int), CORNERS, atol=40)


def test_a_large_jpeg_is_averaged_over_all_its_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "a.jpg", quality=95)

    assert abs(read_image(path, size=8, channels=1).astype(int) - 128).max() < 12


def test_the_array_can_be_written_to(tmp_path: Path) -> None:
    assert read_image(saved(corners(), tmp_path / "a.png"), size=32, channels=3).flags.writeable


def broken_files(folder: Path) -> dict[str, Path]:
    whole = saved(corners(256), folder / "whole.jpg").read_bytes()
    files = {
        "truncated": whole[: len(whole) // 2],
        "no picture": b"hello",
        "empty": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), folder / "float.tif")
    os.mkfifo(folder / "pipe.png")
    return {name: folder / name for name in (*files, *OTHERS)}


OTHERS = ("folder", "float.tif", "missing.png", "pipe.png")


@pytest.mark.parametrize("kind", ["truncated", "no picture", "empty", *OTHERS])
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = broken_files(tmp_path)[kind]

    with pytest.raises(DataError) as caught:
        read_image(path, size=8, channels=3)

    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_a_picture_starts_no_program(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png", "EPS")  # PostScript: Pillow would have Ghostscript draw it
    with pytest.raises(DataError, match="not a picture in a format that Pillow knows"):
        read_image(tmp_path / "a.png", size=8, channels=3)


@pytest.mark.parametrize("side", [8200, 14000])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_unread(tmp_path: Path, side: int) -> None:
    path = saved(Image.new("1", (side, side)), tmp_path / "bomb.png")
    assert path.stat().st_size < 100_000

    with pytest.raises(DataError, match=r"bomb\.png: possible decompression bomb"):
        read_image(path, size=8, channels=3)


def test_other_channel_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 or 3 channels, not with 4"):
        read_image(saved(corners(), tmp_path / "a.png"), size=8, channels=4)


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_a_picture_that_is_no_square_becomes_one(tmp_path: Path, size: tuple[int, int]) -> None:
    middle = Image.new("RGB", size, RED)
    middle.paste(GREEN, (20, 0, 40, 20) if size[0] > size[1] else (0, 20, 20, 40))
    path = saved(middle, tmp_path / "a.png")

    cropped, padded, squashed = (read_image(path, size=12, channels=3, fit=fit) for fit in FITS)

    assert (cropped == GREEN).all()
    assert np.array_equal(cropped, read_image(path, size=12, channels=3))  # the default
    padded, squashed = (each if size[0] < size[1] else each.transpose(1, 0, 2) for each in (padded, squashed))
    assert (padded[:, :4] == 0).all()
    assert (padded[:, 8:] == 0).all()
    assert (padded[1, 4:8] == RED).all()
    assert (padded[6, 4:8] == GREEN).all()
    assert (squashed[[0, 11]] == RED).all()
    assert (squashed[6] == GREEN).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("side", [9, 12, 40])
def test_of_a_square_picture_every_fit_makes_the_same(tmp_path: Path, fit: str, side: int) -> None:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    path = saved(picture, tmp_path / "a.png")

    image = read_image(path, size=12, channels=3, fit=fit)

    np.testing.assert_array_equal(image, np.asarray(picture.resize((12, 12), Image.Resampling.BILINEAR)))


def test_the_fits_are_those_of_the_option() -> None:
    assert tuple(FITS) == get_args(Fit)
    assert Defaults.fit == DEFAULT_FIT
