"""Command lines that are read as click reads them, and not carried out."""

from __future__ import annotations

import click

from hpo.cli.main import hpo


def command_of(name: str) -> click.Command:
    """Return the command of that name.

    Raises:
        click.UsageError: there is none.
    """
    _, command, _ = hpo.resolve_command(click.Context(hpo), [name])
    assert command is not None
    return command


def check_command(words: list[str]) -> None:
    """Parses a command line of hpo as click does, and runs nothing."""
    # placeholders like N stand for values; what click opens, it opens when the command runs
    command_of(words[0]).make_context(words[0], words[1:], resilient_parsing=False)
