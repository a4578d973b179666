"""The lock on the test set: only the final stage imports this module, and an import contract keeps it so."""

from __future__ import annotations

from pathlib import Path

from hpo.data.cache import load_split
from hpo.data.dataset import Split


def load_test(entry: Path) -> Split:
    """Open the test part of an entry of the cache, in the order of the source.

    Args:
        entry: what `prepare` returned.

    Raises:
        DataError: the entry is damaged.
    """
    return load_split(entry, "test")
