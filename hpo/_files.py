"""Files that appear whole or not at all, and paths as people write them."""

from __future__ import annotations

import errno
import os
import stat
import sys
import uuid
from contextlib import suppress
from pathlib import Path

from hpo.errors import InputError

MAX_NAME_BYTES = 255
"""The longest name that file systems take; one in a folder that is not there yet is not tried before."""


def user_path(given: str | Path) -> Path:
    """Return the path that somebody means, with ~ for a home. Every path that users give comes through here.

    Raises:
        InputError: it is empty, can be the name of no file, leads in a circle, or is in a home that nobody
            has.
    """
    if not str(given):
        raise InputError("a path must not be empty; write . for the current folder")
    try:
        path = Path(given).expanduser()
        if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{given}: {reason}") from None
    return path


def read_text(path: Path) -> str:
    """Return the text of a file that a user has written, in UTF-8 with or without a mark at its begin.

    Raises:
        OSError: it cannot be read; or it is a pipe or a device, which might wait or go on for ever.
        UnicodeDecodeError: it is not UTF-8.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")
    return path.read_text("utf-8-sig")


def resolved(given: str | Path) -> Path:
    """Return the absolute path that somebody means, links followed.

    Raises:
        InputError: as from `user_path`.
    """
    return user_path(given).resolve()


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that appears under its name complete and on the disk, or not at all.

    Several processes may write one path at once: one of them wins. A kill leaves at most a file
    `NAME.….unfinished` beside it.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write(path, parts, durably=True)
    sync_folder(path.parent)  # the rename too


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can open a folder for that; Windows cannot."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
