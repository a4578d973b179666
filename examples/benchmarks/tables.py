"""How benchmarks print what they measured, and read it again: CSV under a line that says where and when.

Several tables may follow one another; each begins with the names of its columns, and a blank line is between.
"""

from __future__ import annotations

import csv
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any


def heading(runs: str, *, device: str = "cpu") -> None:
    """Prints when, on what machine, with which versions and in how many runs the figures were measured."""
    from hpo._process import n_cores
    from hpo.training.devices import processor  # imports torch, which nobody who reads a table needs

    machine = f"{processor(device)}, {n_cores()} cores"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "optuna"))
    when = time.strftime("%Y-%m-%d")
    # which folders these are is nobody's business who reads the table
    command = " ".join([Path(sys.argv[0]).name, *("PATH" if "/" in word else word for word in sys.argv[1:])])
    print(
        f"# {command}: {when}, {machine}, Python {platform.python_version()}, {versions}, {runs}", flush=True
    )


class Table:
    """Prints records as they come; other columns than before begin another table."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """A line."""
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if list(record) != self._columns:
            if self._columns:
                print()
            self._columns = list(record)
            writer.writerow(self._columns)
        writer.writerow(f"{value:.4g}" if isinstance(value, float) else value for value in record.values())
        sys.stdout.flush()


def print_table(records: Iterable[Mapping[str, Any]]) -> None:
    """Prints records at once."""
    table = Table()
    for record in records:
        table.add(record)


def read_tables(file: Path) -> list[list[dict[str, str]]]:
    """The tables of a file, each its rows by column."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    blocks = (list(block) for is_table, block in groupby(lines, key=bool) if is_table)
    return [list(csv.DictReader(block)) for block in blocks]
