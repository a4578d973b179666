"""Arrays on disk: what is written here is on the disk when the call returns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt


def write_blocks(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[npt.NDArray[Any]]
) -> None:
    """Write a .npy file of the given shape from consecutive blocks, one in memory at a time.

    Plain writes, not a memory map: on a full disk they raise OSError, a map would kill the process.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
        file.flush()
        os.fsync(file.fileno())


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as a .npy file."""
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map a .npy file into memory, copy-on-write: of read-only arrays torch makes tensors with a warning.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="c")
    except (EOFError, SyntaxError, TokenError) as error:  # the header is an expression of Python's
        raise ValueError(f"{path.name}: {error}") from None
    return array
