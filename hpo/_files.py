"""Files that appear whole or not at all, and paths as people write them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hpo.errors import InputError


def resolved(path: str) -> Path:
    """Return the absolute path that somebody means, with ~ for a home.

    Raises:
        InputError: it leads in a circle, or is in a home that nobody has.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: {error}") from None


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that appears under its name complete and on the disk, or not at all.

    Several processes may write one path at once: one of them wins. A kill leaves at most a file
    `NAME.….unfinished` beside it.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write(path, parts, durably=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename too
    finally:
        os.close(folder)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that can be made again: it appears whole, but a crash of the machine may take it along.

    What a link of that name leads to is left alone.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write(path, parts, durably=False)


def _write(path: Path, parts: tuple[bytes | memoryview, ...], *, durably: bool) -> None:
    # a name of its own: a worker that was paused may write the file that its successor is writing
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with unfinished.open("xb") as file:
            for part in parts:
                file.write(part)
            if durably:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # a full disk needs the room
        raise
