"""What leaves for the terminal: names from files, databases and URLs are shown there, never obeyed."""

from __future__ import annotations

import re

import click

# control characters, line separators, marks that turn the direction of writing, bytes that are no UTF-8
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""One line of text in which everything that a terminal would obey is written out.

    >>> print(printable("\x1b[31mred\n"))
    \x1b[31mred\n
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message(text: str) -> str:
    """The text of an error: its lines are kept, and indented, so that none can pass for another message."""
    return "\n  ".join(printable(line.strip()) for line in text.split("\n"))


def say(text: str, *, err: bool = False) -> None:
    """Prints one line on stdout, or stderr."""
    click.echo(printable(text), err=err)
