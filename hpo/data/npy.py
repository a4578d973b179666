"""Arrays on disk: what is written here is on the disk when the call returns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hpo.data.dataset import Images, Labels


def write_images(path: Path, shape: tuple[int, ...], blocks: Iterable[Images]) -> None:
    """Write a .npy file of the given shape (n, h, w, c) from consecutive blocks, one in memory at a time.

    Plain writes, not a memory map: on a full disk they raise OSError, a map would kill the process.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
        file.flush()
        os.fsync(file.fileno())


def write_labels(path: Path, labels: Labels) -> None:
    """Write labels as a .npy file."""
    with path.open("wb") as file:
        np.save(file, labels)
        file.flush()
        os.fsync(file.fileno())


def map_images(path: Path) -> Images:
    """Map a .npy file into memory, copy-on-write: of read-only arrays torch makes tensors with a warning.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    images: Images = np.load(path, mmap_mode="c")
    return images
