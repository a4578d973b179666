"""What leaves for the terminal: names from files, databases and URLs are shown there, never obeyed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from hpo._text import printable


class OutputError(Exception):
    """What was printed does not arrive. No OSError: others would take it for one of theirs."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause
        super().__init__(f"the output could not be written: {cause.strerror}")


class _Stream(io.TextIOWrapper):
    """The standard output; it tells its own errors from those of files and connections."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


def prepare_streams() -> None:
    """Have both streams take all that is printed, closed ones and those that know few letters too.

    Only stdout's errors are told apart: on stderr logging passes over an OSError, as of a full disk.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if type(sys.stdout) is io.TextIOWrapper:
        encoding, line_buffering = sys.stdout.encoding, sys.stdout.line_buffering
        binary = sys.stdout.detach()
        sys.stdout = _Stream(binary, encoding, "backslashreplace", line_buffering=line_buffering)


def message(text: str) -> str:
    """Return the text of an error, its lines indented, so that none can pass for another message."""
    return "\n  ".join(printable(line.strip()) for line in text.split("\n"))


def say(text: str, *, err: bool = False) -> None:
    """Print one line on stdout, or stderr; the commands that it advises are completed."""
    from hpo.cli.advice import completed  # `hpo --help` advises nothing

    click.echo(printable(completed(text)), err=err)


_waits: list[str] = []
"""What is being waited for, the innermost last."""


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Tell whoever sits at a terminal what takes more than a second; the line is gone afterwards.

    Yields:
        What tells something else instead, as the work gets on.
    """
    _waits.append(what)
    _tell(erases=len(_waits) > 1)

    def update(text: str) -> None:
        _waits[-1] = text
        _tell(erases=True)

    try:
        yield update
    finally:
        _waits.pop()
        _tell(erases=True)


def _tell(*, erases: bool) -> None:
    if sys.stderr.isatty():
        end = "\n" if os.environ.get("TERM", "dumb") == "dumb" else "\r\x1b[K"
        text = f"{printable(_waits[-1])} …" if _waits else ""
        click.echo(f"{end if erases else ''}{text}", err=True, nl=False)
