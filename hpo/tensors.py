"""Files of tensors, read without running code from them."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import torch


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
