from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pictures import write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures."""
    return write_folder(tmp_path / "pictures", train=10, test=3)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder of a data cache that is empty."""
    return tmp_path / "cache"
