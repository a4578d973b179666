"""Checkpoint files as hpo writes them: what is stored, after its digest."""

from __future__ import annotations

import hashlib


def signed(content: bytes) -> bytes:
    """A file with this content, whatever that is."""
    return hashlib.sha256(content).digest() + content
