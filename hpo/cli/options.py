"""The options that several commands share, each also by environment variable (`HPO_STORAGE`, …).

An option that was not given is None and stays out of what is compared with the plan: the defaults live in
`hpo.planning.manifest.Options` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from hpo.planning.plan import Plan

Command = TypeVar("Command", bound=Callable[..., Any])

PLAN_OPTIONS = (
    "data",
    "image_size",
    "seed",
    "seeds",
    "final_seeds",
    "epochs",
    "limit_train",
    "limit_valid",
    "precision",
    "device",
    "inherit",
    "adopt",
    "lease_seconds",
)
"""The options that change results, as `hpo.planning.manifest.Options` names them."""


class Count(click.ParamType[int | None]):
    """A number of something from 1 on, or `auto`."""

    name = "N|auto"

    def __init__(self, things: str) -> None:
        self._things = things

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return None for `auto`."""
        if value == "auto" or value is None:
            return None
        text = str(value)
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
        if number < 1:
            self.fail(f"{text[:40]!r} is neither a number of {self._things} from 1 on nor 'auto'", param, ctx)
        return number


class Port(click.ParamType[int | None]):
    """A TCP port, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return None for `auto`."""
        if value == "auto" or value is None:
            return None
        if not str(value).isdecimal() or len(str(value)) > 5 or int(value) > 65_535:
            self.fail(f"{value!r} is neither a port from 0 to 65535 nor 'auto'", param, ctx)
        return int(value)


class Duration(click.ParamType[float | None]):
    """Seconds, or a number with a unit: `45s`, `30m`, `2h`, `1d`."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the duration in seconds."""
        if value is None or isinstance(value, float):
            return value
        text = str(value).strip()
        unit = UNITS.get(text[-1:], 1)
        try:
            seconds = float(text[:-1] if text[-1:] in UNITS else text) * unit
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is no duration; write it like 90, 45s, 30m or 2h", param, ctx)
        return seconds


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class StorageUrl(click.ParamType[str | None]):
    """A database URL, or `@FILE` whose first line is one."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
        """Return the URL; one with a password draws a warning if everybody on the machine can read it."""
        if not value:
            return None
        if value.startswith("@"):
            try:
                lines = Path(value[1:]).expanduser().read_text("utf-8").split()
            except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last: a home that nobody has
                why = error.strerror if isinstance(error, OSError) else error
                self.fail(f"{value[1:]} cannot be read: {why}", param, ctx)
            if len(lines) != 1:
                self.fail(f"{value[1:]} must hold one database URL and nothing else", param, ctx)
            return lines[0]
        if "://" not in value and Path(value).is_file():
            self.fail(f"{value} is a file; if it holds the database's URL, write @{value}", param, ctx)
        is_argument = (
            ctx and param and ctx.get_parameter_source(str(param.name)) == ParameterSource.COMMANDLINE
        )
        # as database.shown finds it; SQLAlchemy takes 0.1 s to import
        if is_argument and re.search(r"^(?!sqlite)[^/]*://[^/@]*:[^@]+@|[?&][^=&]*(pass|pwd)", value, re.I):
            click.echo(
                "warning: the password in --storage can be seen by every user of this machine (ps); "
                "put the URL into HPO_STORAGE, or into a file and give --storage @FILE",
                err=True,
            )
        return str(value)


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "HPO_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _out(default: str) -> Callable[[Command], Command]:
    return _option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        show_default=True,
        help="Folder for database, checkpoints, logs and model.",
    )


out = _out("hpo-out")
demo_out = _out("hpo-demo")
storage = _option(
    "--storage",
    type=StorageUrl(),
    metavar="URL|@FILE",
    help="Database, or a file that holds its URL.  [default: sqlite:///OUT/hpo.db]",
)
studies = _option(
    "--studies",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of study files.  [default: the six that are shipped]",
)
data = _option(
    "--data",
    metavar="SOURCE",
    help="digits | cifar10[:DIR] | folder:PATH | python:MODULE:FUNCTION.  [default: cifar10; demo: digits]",
)
worker_data = _option(
    "--data", metavar="SOURCE", help="Where the plan's data are here.  [default: where the plan found them]"
)
checkpoints = _option(
    "--checkpoints",
    metavar="URL",
    help="Folder of checkpoints that all workers share, or s3://…, gs://…  [default: OUT/checkpoints]",
)


def _workers(text: str) -> Callable[[Command], Command]:
    settings = {"metavar": Count.name, "default": "auto", "show_default": True, "help": text}
    return _option("--workers", type=Count("processes"), **settings)


workers = _workers("Worker processes; auto: one a core or GPU, or as many as the cluster has room for.")
planned_workers = _workers(
    "Workers that a machine like this one will have: sets the threads of each; auto: one thread."
)
trials_per_device = _option(
    "--trials-per-device",
    type=Count("trials"),
    metavar=Count.name,
    default="auto",
    show_default=True,
    help="Trials a worker trains at once; auto: one on a CPU, up to 16 on a GPU.",
)
_ENGINE = (
    _option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who places the workers: this machine, or a Ray cluster.",
    ),
    _option(
        "--address",
        metavar="auto|HOST:PORT|ray://…",
        help="The Ray cluster.  [default: auto, the one that this machine belongs to]",
    ),
    _option(
        "--cpus-per-worker",
        type=click.FloatRange(min=0, min_open=True),
        metavar="N",
        help="CPUs of the cluster a worker gets.  [default: the plan's threads a worker]",
    ),
    _option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        metavar="N",
        help="GPUs, 0.25 for a quarter of one.  [default: 1 where the plan trains on CUDA]",
    ),
)


def engine(command: Command) -> Command:
    """Add the options that say who places the workers."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


_LIMITS = (
    _option(
        "--idle-timeout", type=Duration(), metavar="DURATION", help="Stop after so long without work (30m)."
    ),
    _option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Stop after N trials."),
    _option(
        "--deadline",
        type=Duration(),
        metavar="DURATION",
        help="Stop so long from now; the trial goes back to the queue.",
    ),
)


def limits(command: Command) -> Command:
    """Add the options that say when a worker stops by itself."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


_SERVER = (
    _option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on. There is no password: others can reach any address but the default.",
    ),
    _option(
        "--port",
        type=Port(),
        metavar=Port.name,
        default="auto",
        show_default=True,
        help="auto: 8080, or a free one where that is taken; 0: a free one.",
    ),
    _option("--read-only", is_flag=True, help="Refuse every request that could change something."),
    _option("--no-browser", is_flag=True, help="Open no browser."),
)


def server(command: Command) -> Command:
    """Add the options of what is served."""
    for option in reversed(_SERVER):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, alone on stdout.")
as_json_lines = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON line for every event, alone on stdout; no screen."
)

_PLAN = (
    studies,
    data,
    _option("--image-size", type=int, metavar="PIXELS", help="Size that folder: images get.  [default: 32]"),
    _option("--seed", type=int, help="First seed of the search.  [default: 0]"),
    _option("--seeds", type=int, metavar="K", help="Seeds a point is trained on.  [default: 1]"),
    _option("--final-seeds", type=int, metavar="K", help="Seeds of the final stage.  [default: 5]"),
    _option("--epochs", type=int, metavar="N", help="Epochs a trial has, over what the study files say."),
    _option("--limit-train", type=int, metavar="N", help="Train on N images only, stratified."),
    _option("--limit-valid", type=int, metavar="N", help="Validate on N images only, stratified."),
    _option(
        "--precision",
        type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
        help="auto: bf16 where the hardware has it, else fp32.  [default: auto]",
    ),
    _option("--device", metavar="auto|cpu|cuda[:N]", help="auto: a GPU where there is one.  [default: auto]"),
    _option("--no-pruning", is_flag=True, help="Train every trial to its last epoch."),
    _option(
        "--inherit",
        type=click.Choice(["winners", "published"]),
        help="What a study starts from: the winner before it, or the published choice.  [default: winners]",
    ),
    _option(
        "--adopt",
        type=click.Choice(["better", "always"]),
        help="Adopt a study's winner if it scores above what was inherited, or always.  [default: better]",
    ),
    _option(
        "--lease-seconds",
        type=float,
        metavar="SECONDS",
        help="A worker that is silent for so long has lost its trial.  [default: 60]",
    ),
)


def plan_options(command: Command) -> Command:
    """Add every option that a plan is created with."""
    for option in reversed(_PLAN):
        command = option(command)
    return command


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that change results which the user gave."""
    found = {name: options[name] for name in PLAN_OPTIONS if options.get(name) is not None}
    return {**found, "pruning": False} if options.get("no_pruning") else found


def storage_url(options: Mapping[str, Any]) -> str:
    """Return the database that `--storage` or else `--out` names."""
    from hpo.storage.database import default_url

    return options["storage"] or default_url(options["out"])


def read_plan(options: Mapping[str, Any]) -> Plan:
    """Return the plan of that database, to be read.

    Raises:
        MissingError: there is none.
    """
    from hpo.planning.plan import Plan
    from hpo.storage.storage import Storage

    return Plan.open(Storage(storage_url(options), reader=True))
