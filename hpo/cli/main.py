"""The command `hpo`: its commands by name, errors and signals as exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from keyword import iskeyword
from typing import Any

import click

from hpo._text import printable
from hpo.cli.output import OutputError, message, prepare_streams
from hpo.errors import HpoError

GROUPS = {
    "Train": {
        "init": ("training", "Write a folder to begin with, which runs as it is."),
        "demo": ("training", "Run the whole plan on scikit-learn's handwritten digits."),
        "plan": ("reading", "Show what a run would train, and how long it takes."),
        "create": ("training", "Write the plan into the database and train nothing."),
        "run": ("training", "Run the plan, or only STUDY… and the earlier studies they need."),
        "resume": ("training", "Resume a plan that exists."),
        "finish": ("training", "Close STUDY… now, or the whole plan, and decide by what there is."),
        "extend": ("training", "Try further values of a grid."),
        "discard": ("training", "Leave a trial out of what its study decides."),
        "retry": ("training", "Queue the points that failed for good once more."),
        "final": ("training", "Show the test set's answer; train it first if need be."),
    },
    "Look": {
        "list": ("managing", "List the plans in a folder, or in a database."),
        "status": ("reading", "Show where every study stands, and the time left."),
        "show": ("reading", "Show the points of a study and its decision, or one trial whole."),
        "best": ("reading", "Show the best configuration so far, and why."),
        "dashboard": ("reading", "Serve optuna-dashboard on the plan, or on several."),
        "report": ("reading", "Write a page about the plan."),
    },
    "Judge": {
        "confirm": ("training", "Try again, on fresh seeds, what was adopted."),
        "claims": ("reading", "Judge the plan's claims, and say what is missing."),
        "price": ("training", "Bound what going study by study has missed."),
        "compare": ("reading", "Show what differs between two trials or plans, and what it makes."),
        "verify": ("training", "Train TRIAL again and compare every bit."),
    },
    "Machines": {
        "worker": ("training", "Train for a plan until it has ended."),
        "submit": ("training", "Submit workers to SLURM, as an array job."),
        "doctor": ("reading", "Try what a worker needs on this machine."),
    },
    "Files": {
        "predict": ("reading", "Classify pictures with the final model."),
        "import": ("training", "Have a study learn from points that others measured."),
        "export": ("reading", "Write every trial as CSV, JSON or Parquet, or for a tracker."),
        "schema": ("reading", "Print the JSON schema of study files, for editors."),
        "prune-checkpoints": ("managing", "Remove checkpoints that nothing needs any more."),
        "delete": ("managing", "Delete a plan, after a question."),
    },
}
"""By what a person wants; of each its module, where it has the same name, and its help's first sentence."""

MAX_NAME_WIDTH = 10
"""What a longer one does stands in a line below it."""

COMMANDS = {name: place for group in GROUPS.values() for name, place in group.items()}


class _NotLoaded(click.Command):
    """A command by name and first sentence: all that `hpo --help` and a mistyped name need."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._place = f"hpo.cli.{module}", name

    def load(self) -> click.Command:
        module, name = self._place
        function = f"{name}_" if iskeyword(name) else name.replace("-", "_")
        command: click.Command = getattr(import_module(module), function)
        command.name = name  # click makes it of the function's, `import-` of `import_`
        return command


class _Commands(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, group by group; descriptions in one column throughout."""
        width = max(len(name) for name in self.commands if len(name) <= MAX_NAME_WIDTH)
        room = formatter.width - formatter.indent_increment - width - 2
        for title, names in GROUPS.items():
            with formatter.section(title):
                listed = [self.commands[name] for name in names]
                formatter.write_dl(
                    [(each.name.ljust(width), each.get_short_help_str(room)) for each in listed if each.name],
                    col_max=width,
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name, imported now, and the other arguments."""
        name, command, others = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _NotLoaded) else command, others

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; keep errors that click takes for an end of the input or of the output."""
        from hpo._process import provide_caches  # pathlib, which `hpo --help` does not need

        provide_caches()
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError) as error:
            raise RuntimeError(f"unexpected: {error!r}") from error


@click.group(
    cls=_Commands,
    commands=[_NotLoaded(name, *place) for name, place in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="hpo-studies", prog_name="hpo")
def hpo() -> None:
    """Tune a small network study by study; resumable, parallel, with verdicts that hold.

    `hpo demo` shows all of it in a minute or two. Everything lives in one database under --out; to
    resume a run that was stopped or killed, run the same command.

    Trials are compared by macro F1 on validation data, unless a recipe or --metric says otherwise: the
    mean over classes of F1, the harmonic mean of precision and recall. A rare class counts as much as a
    frequent one.
    """


def main() -> None:
    """Run the command line and exit: 0 done, 1 a run failed, 2 bad input, 130/143 stopped by a signal."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    name = f"hpo {command}".strip()
    prepare_streams()
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
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "torchvision"):
            raise
        click.echo(
            f"{name}: PyTorch is not installed here, and this needs it: pip install torch torchvision; "
            "what only shows a plan, as `hpo status` and `hpo report`, does without",
            err=True,
        )
        return 2
    except click.ClickException as error:
        error.show(said := io.StringIO())
        click.echo("\n".join(map(printable, said.getvalue().rstrip().split("\n"))), err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return code if isinstance(code, int) else 0
