"""The command `hpo`: its commands gathered, errors and signals as exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys

import click

from hpo.cli import reading, training
from hpo.cli.text import message
from hpo.errors import HpoError
from hpo.text import printable


def main() -> None:
    """Runs the command line and exits: 0 done, 1 a run failed, 2 bad input, 130/143 stopped by a signal."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    name = f"hpo {command}".strip()
    try:
        code = hpo.main(prog_name="hpo", standalone_mode=False)
    except HpoError as error:
        click.echo(message(f"{name}: {error}"), err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show(said := io.StringIO())
        click.echo("\n".join(map(printable, said.getvalue().rstrip().split("\n"))), err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hpo-studies", prog_name="hpo")
def hpo() -> None:
    """Tune a small network study by study; resumable, parallel, with verdicts that hold.

    `hpo demo` shows all of it in a minute or two. Everything lives in one database under --out;
    a stopped or killed run goes on with the same command.
    """


for each in (*training.COMMANDS, *reading.COMMANDS):
    hpo.add_command(each)
