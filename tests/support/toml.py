"""Values as TOML has them; Python reads TOML, and writes none."""

from __future__ import annotations

from typing import Any


def toml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if not hasattr(value, "year")
        else str(value)
    )
