"""The command `hpo`: its commands gathered, errors and signals as exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import click

from hpo._text import printable
from hpo.cli import reading, training
from hpo.cli.text import message
from hpo.errors import HpoError


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


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; keep errors that click takes for an end of the input or of the output."""
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError) as error:
            raise RuntimeError(f"unexpected: {error!r}") from error


def main() -> None:
    """Run the command line and exits: 0 done, 1 a run failed, 2 bad input, 130/143 stopped by a signal."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    name = f"hpo {command}".strip()
    _prepare_streams()
    try:
        code = _run(name)
        sys.stdout.flush()
    except OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
        if not isinstance(error.cause, BrokenPipeError):  # the reader, `head` say, may have gone
            click.echo(f"{name}: {error}", err=True)
            code = 1
    sys.exit(code)


def _run(name: str) -> int:
    try:
        code = hpo.main(prog_name="hpo", standalone_mode=False)
    except HpoError as error:
        click.echo(message(f"{name}: {error}"), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show(said := io.StringIO())
        click.echo("\n".join(map(printable, said.getvalue().rstrip().split("\n"))), err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
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


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="hpo-studies", prog_name="hpo")
def hpo() -> None:
    """Tune a small network study by study; resumable, parallel, with verdicts that hold.

    `hpo demo` shows all of it in a minute or two. Everything lives in one database under --out;
    a stopped or killed run goes on with the same command.
    """


for each in (*training.COMMANDS, *reading.COMMANDS):
    hpo.add_command(each)
