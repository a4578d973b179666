"""What leaves for the terminal: names from files, databases and URLs are shown there, never obeyed."""

from __future__ import annotations

import click

from hpo._text import printable


def message(text: str) -> str:
    """Return the text of an error, its lines indented, so that none can pass for another message."""
    return "\n  ".join(printable(line.strip()) for line in text.split("\n"))


def say(text: str, *, err: bool = False) -> None:
    """Print one line on stdout, or stderr."""
    click.echo(printable(text), err=err)
