"""Folders to begin with: `hpo init` writes one, and it runs as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpo.errors import InputError

TEMPLATES = {
    "network": "a network of your own on images",
    "table": "a network on a table of numbers",
    "loop": "a training loop of your own, without PyTorch",
    "program": "another program, in any language",
}
"""Each a folder beside this file."""
SCHEMA_FILE = "study.schema.json"
"""In such a folder, for editors: the study files name it in their first line."""


def write_template(name: str, folder: Path) -> list[str]:
    """Copy a template into a folder, which is made; return the names of its files.

    Args:
        name: one of `TEMPLATES`.
        folder: that gets them; what it has is left alone.

    Raises:
        InputError: it is there and not empty, or cannot be written.
    """
    source = Path(__file__).with_name(name)
    files = sorted(file for file in source.iterdir() if file.is_file() and file.name != "__init__.py")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if there := sorted(entry.name for entry in folder.iterdir()):
            raise InputError(f"{folder}: is not empty (it has {there[0]}); name another folder")
        for file in files:
            shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror}") from None
    return [file.name for file in files]
