"""Files of tensors: written in one go, read without running code from them."""

from __future__ import annotations

import io
import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import torch


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file that appears under its name complete and on the disk, or not at all.

    Several processes may write one path at once: one of them wins. A kill leaves at most a file
    `NAME.….unfinished` beside it.

    Raises:
        OSError: the disk is full or not writable.
    """
    # a name of its own: a worker that was paused may write the file that its successor is writing
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with unfinished.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # a full disk needs the room
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename too
    finally:
        os.close(folder)


def dump(content: dict[str, Any]) -> memoryview:
    """The bytes of a `torch.save` file of tensors and plain types."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load(data: bytes | memoryview) -> dict[str, Any]:
    """The inverse of `dump`, tensors on the CPU.

    Raises:
        ValueError: the bytes are no such file, are damaged, or hold more than tensors and plain types.
    """
    buffer = io.BytesIO(data)
    if not zipfile.is_zipfile(buffer):  # torch.load would try the formats of old versions
        raise ValueError("not a file of tensors")
    buffer.seek(0)
    try:
        content = torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever a broken file leads it to
        raise ValueError(f"not a file of tensors ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError("not a file of named tensors")
    return content
