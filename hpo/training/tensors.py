"""Files of tensors, read without running code from them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dump(content: dict[str, Any]) -> memoryview:
    """Return the bytes of a `torch.save` file of tensors and plain types."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load(data: bytes | memoryview) -> dict[str, Any]:
    """Return the inverse of `dump`, tensors on the CPU.

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


def is_like(value: object, example: object) -> bool:
    """Return whether a value has keys, lengths, types of an example, and tensors of the same kind.

    >>> is_like({"rate": 0.1, "steps": [1, 2]}, {"rate": 0.5, "steps": [3, 4]})
    True
    >>> is_like({"rate": 0.1}, {"rate": "fast"})
    False
    """
    if isinstance(example, Tensor):
        if not isinstance(value, Tensor):
            return False
        return (value.shape, value.dtype, value.layout) == (example.shape, example.dtype, example.layout)
    if isinstance(example, Mapping):
        if not isinstance(value, Mapping) or value.keys() != example.keys():
            return False
        return all(is_like(value[key], each) for key, each in example.items())
    if isinstance(example, list):
        return isinstance(value, list) and len(value) == len(example) and all(map(is_like, value, example))
    return type(value) is type(example)
