"""How values are written for people, and how text of others is made harmless where it is shown.

Names come from study files, databases, data sets and URLs: they are shown, never obeyed,
whether by a terminal, a spreadsheet or a page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_PLAN_NAME = 100
"""Of characters: more would fill a line of every table."""

# control characters, line separators, marks that turn the direction of writing, bytes that are no UTF-8
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return one line of text in which everything that a terminal would obey is written out.

    >>> print(printable("\x1b[31mred\n"))
    \x1b[31mred\n
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def harmless_cell(value: Any) -> Any:
    """Return a cell of a CSV file: on one line, and no formula to a spreadsheet."""
    if not isinstance(value, str):
        return value
    # spreadsheets pass over blanks before a formula
    formula = value.lstrip()[:1] in ("=", "+", "-", "@") or value[:1] in ("\t", "\r", "\n")
    return printable(f"'{value}" if formula else value)


def show_value(value: bool | int | float | str) -> str:
    """Return a parameter's value as tables and sentences write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def params_text(params: Mapping[str, Any]) -> str:
    """Return parameters in one line."""
    return ", ".join(f"{name} {show_value(value)}" for name, value in params.items())


def point_text(params: Mapping[str, Any], point: str) -> str:
    """Return what a point searched, in one line; of one that searched nothing its name, as `control`."""
    return params_text(params) or ("single point" if point == "{}" else printable(point))


def cost_text(value: float | None) -> str:
    """Return what a configuration costs, in three digits or whole thousands; a dash where nobody knows.

    >>> cost_text(28148992), cost_text(0.04713)
    ('28,148,992', '0.0471')
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def seeds_text(count: int) -> str:
    """Return how many seeds there are."""
    return "one seed" if count == 1 else f"{count} seeds"


def percent(value: float | None) -> str:
    """Return a fraction as a percentage, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def age_text(time: datetime | None) -> str:
    """Return how long ago something was, no more exact than one wants to know; a dash where it never was."""
    if time is None:
        return "–"
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "now"


def bytes_text(count: int) -> str:
    """Return an amount of data as a person says it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_duration(text: str) -> float | None:
    """Return the seconds of a number with a unit or without (`45s`, `30m`, `2h`, `1d`); None: it is none."""
    text = text.strip()
    unit = UNIT_SECONDS.get(text[-1:])
    try:
        seconds = float(text if unit is None else text[:-1]) * (unit or 1)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def read_plan_name(text: str) -> str | None:
    """Return what a plan may be called; None where nothing can be seen of it, or it fills a screen."""
    name = text.strip()
    return name if 0 < len(name) <= MAX_PLAN_NAME else None


def short_duration(seconds: float) -> str:
    """Return seconds as `read_duration` takes them, in the largest unit that they are a whole number of."""
    units = [(unit, size) for unit, size in UNIT_SECONDS.items() if seconds % size == 0]
    unit, size = units[-1] if units else ("s", 1)
    return f"{seconds / size:g}{unit}"


def write_json(record: object, file: TextIO, indent: int | None = 2) -> None:
    """Write JSON and end the line; it has no infinity, so a gradient that became infinite is null."""
    import json  # 5 ms that `hpo --help` does not need

    json.dump(finite(record), file, indent=indent, allow_nan=False)
    file.write("\n")


def finite(record: Any) -> Any:
    """Return a record as JSON can hold it."""
    if isinstance(record, Mapping):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record
