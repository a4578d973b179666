"""The options that several commands share, each also by environment variable (`HPO_STORAGE`, …).

An option that changes results and was not given is None, and stays out of what is compared with the plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from hpo._files import user_path
from hpo._text import MAX_PLAN_NAME, read_duration, read_plan_name
from hpo.cli.advice import completed, quoted, remember
from hpo.cli.completion import study_names, study_or_trial_names, trial_names
from hpo.cli.help import Option
from hpo.cli.output import say, waiting
from hpo.errors import HpoError, InputError
from hpo.planning.defaults import Adopt, Defaults, FinalData, Fit, Inherit, Keep, Kernels, Precision

if TYPE_CHECKING:
    from hpo.planning.plan import Plan

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

TRAINED, SEEDS, DECISIONS = "What is trained", "Seeds and length", "Decisions"
HARDWARE, PLACES, WORKERS = "Hardware", "Places", "Workers"
"""Groups of options in the help of commands that have many."""

MAX_AT_ONCE = 1000
"""Of workers, and of trials that one trains: a typing mistake is not to take the whole machine."""


class NumberOrAuto(click.ParamType[int | None]):
    """A whole number in a range, or `auto`."""

    name = "N|auto"

    def __init__(self, what: str, low: int, high: int) -> None:
        self._what, self._range = what, range(low, high + 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return None for `auto`."""
        if value == "auto" or value is None:
            return None
        text = str(value)
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if number not in self._range:
            self.fail(f"{text[:40]!r} is neither {self._what} nor 'auto'", param, ctx)
        return number


class SeedsOrRace(click.ParamType[int | str]):
    """A number of seeds, or `race`."""

    name = "K|race"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or `race`."""
        text = str(value)
        if text == "race":
            return text
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            self.fail(f"{text[:40]!r} is neither a number of seeds nor 'race'", param, ctx)
        return int(text)


class Finite(click.FloatRange):
    """A number in a range, neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return float(number)


class Duration(click.ParamType[float | None]):
    """Seconds, or a number with a unit: `45s`, `30m`, `2h`, `1d`."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the duration in seconds."""
        if value is None or isinstance(value, float):
            return value
        seconds = read_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is not a duration; write it as 90, 45s, 30m or 2h", param, ctx)
        return seconds


class UserPath(click.Path[Path]):
    """A path as people write it: ~ is a home, and what can be no path is refused."""

    def __init__(self, *, is_folder: bool = False, is_file: bool = False) -> None:
        super().__init__(file_okay=not is_folder, dir_okay=not is_file, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        try:
            return super().convert(user_path(value), param, ctx)
        except InputError as error:
            self.fail(str(error), param, ctx)


class FolderOrUrl(click.ParamType[str]):
    """A folder, or a URL of a store."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the folder or the URL as text."""
        kind, colon, rest = value.partition("://")
        if colon and kind != "file":
            return str(value)
        return str(UserPath(is_folder=True).convert(rest if colon else value, param, ctx))


class DataSource(click.ParamType[str]):
    """A source of data; one that is a path becomes absolute."""

    name = "SOURCE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the source."""
        from hpo.data.sources import absolute_source  # NumPy, which nobody needs who names no data

        try:
            return absolute_source(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


class StorageUrl(click.ParamType[str | None]):
    """A database URL, or `@FILE` whose first line is one."""

    name = "URL|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
        """Return the URL; one with a password draws a warning if everybody on the machine can read it."""
        if value is None:
            return None
        has_password = _has_password(value)
        remember(ctx, "storage", '"${HPO_STORAGE:?}"' if has_password else quoted(value))
        if value.startswith("@"):
            return _url_in(value[1:], self, param, ctx)
        kind, colon, rest = value.partition("://")
        if not colon and UserPath().convert(value, param, ctx).is_file():
            self.fail(f"{value} is a file; if it holds the database's URL, write @{value}", param, ctx)
        if kind == "sqlite" and rest.strip("/"):
            UserPath().convert(rest.removeprefix("/"), param, ctx)
        if has_password:
            _warn_of_password("storage", param, ctx)
        return str(value)


class PlanPlace(click.ParamType[str | None]):
    """Another plan: its output folder, the URL of its database, or `@FILE` whose first line is one."""

    name = "OUT|URL|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
        """Return the folder or the URL."""
        if value is None or "://" in value:
            if value is not None and _has_password(value):
                _warn_of_password("reuse", param, ctx)
            return value
        if value.startswith("@"):
            return _url_in(value[1:], self, param, ctx)
        return str(UserPath(is_folder=True).convert(value, param, ctx))


def _has_password(url: str) -> bool:
    """Do what the storage room's function of that name does; SQLAlchemy takes 0.1 s to import."""
    return bool(re.search(r"^(?!sqlite)[^/]*://[^/@]*:[^@]+@|[?&][^=&]*(pass|pwd)", url, re.I))


def _warn_of_password(name: str, param: click.Parameter | None, ctx: click.Context | None) -> None:
    """Say that a password was given where every user of the machine can read it, if it was."""
    if ctx and param and ctx.get_parameter_source(str(param.name)) == ParameterSource.COMMANDLINE:
        click.echo(
            f"warning: the password in --{name} can be seen by every user of this machine (ps); "
            f"put the URL into HPO_{name.upper()}, or into a file and give --{name} @FILE",
            err=True,
        )


def _url_in(
    name: str, kind: click.ParamType[Any], param: click.Parameter | None, ctx: click.Context | None
) -> str:
    """Return the database URL that a file holds."""
    file = UserPath(is_file=True).convert(name, param, ctx)
    try:
        lines = file.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        kind.fail(f"{file} cannot be read: {why}", param, ctx)
    if len(lines) != 1:
        kind.fail(f"{file} must hold one database URL and nothing else", param, ctx)
    return lines[0]


class PointsSource(click.ParamType[str]):
    """A file, the URL of a database, or `@FILE` whose first line is one."""

    name = "FILE|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path or the URL."""
        if "://" in value:
            return str(value)
        if value.startswith("@"):
            return _url_in(value[1:], self, param, ctx)
        return str(UserPath(is_file=True).convert(value, param, ctx))


class Assignment(click.ParamType[tuple[str, Any]]):
    """A parameter and its value."""

    name = "PARAM=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return both; whether the recipe has such a parameter, it is asked later."""
        from hpo.space.axes import read_assignment, read_values

        try:
            name, text = read_assignment(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        first, *others = read_values(text)
        if others or not isinstance(first, bool | int | float | str):
            self.fail(f"{value!r} is not a single value; --search {value} tries several", param, ctx)
        return name, first


class SearchAxis(click.ParamType[tuple[str, Any]]):
    """A parameter and what is searched of it: a list of values, or a range."""

    name = "PARAM=VALUES"
    envvar_list_splitter = ";"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the parameter, and its axis as a study file has it."""
        from hpo.space.axes import read_written_axis

        try:
            return read_written_axis(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _by_name(
    context: click.Context, option: click.Parameter, given: tuple[tuple[str, Any], ...]
) -> dict[str, Any] | None:
    """Return what a repeated option gave, by parameter; None: it was not given.

    Raises:
        click.BadParameter: it names a parameter twice.
    """
    found = dict(given)
    if len(found) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"{twice} is given twice; keep one", context, option)
    return found or None


def _option(*names: str, **settings: Any) -> Decorator:
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "HPO_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, cls=Option, **settings)


def _group(title: str, *options: Decorator) -> Decorator:
    """Return the options as one decorator; the help of a command with many shows them under that title."""

    def add(command: Command) -> Command:
        before = len(_params(command))
        command = _together(*options)(command)
        for option in _params(command)[before:]:
            option.group = title
        return command

    return add


def _params(command: Command) -> list[Any]:
    # where click keeps them until the command is made
    return getattr(command, "__click_params__", [])


def _together(*options: Decorator) -> Decorator:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _database(default_out: str) -> Decorator:
    options = _group(
        PLACES,
        _option(
            "--out",
            type=UserPath(is_folder=True),
            default=default_out,
            show_default=True,
            help="Folder for database, checkpoints, logs and model.",
        ),
        _option(
            "--storage",
            type=StorageUrl(),
            help="Database, or a file that holds its URL.  [default: sqlite:///OUT/hpo.db]",
        ),
    )

    def add(command: Command) -> Command:
        @wraps(command)
        def advising(**values: Any) -> Any:
            """Carry out the command; what its errors advise names the same plan."""
            try:
                return command(**values)
            except HpoError as error:
                error.args = (completed(str(error)),)
                raise

        return options(advising)

    return add


def _valid_name(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """Return a name for a plan.

    Raises:
        click.BadParameter: it cannot be one.
    """
    name = None if given is None else read_plan_name(given)
    if name is None and given is not None:
        raise click.BadParameter(f"must have 1 to {MAX_PLAN_NAME} characters", context, option)
    return name


plan_name = _group(
    PLACES,
    _option(
        "--name",
        callback=_valid_name,
        metavar="TEXT",
        help="What lists and reports call the plan; may be changed.  [default: its folder's name]",
    ),
)
database = _database("hpo-out")
demo_database = _database("hpo-demo")
worker_data = _group(
    PLACES,
    _option(
        "--data",
        type=DataSource(),
        help="Where the plan's data are here.  [default: where the plan found them]",
    ),
)
doctor_data = _option(
    "--data",
    type=DataSource(),
    help="Where the plan's data are here.  [default: where the plan found them; with --recipe: digits]",
)
checkpoints = _group(
    PLACES,
    _option(
        "--checkpoints",
        type=FolderOrUrl(),
        metavar="URL",
        help="Folder of checkpoints that all workers share, or s3://…, gs://…  [default: OUT/checkpoints]",
    ),
)


def _count(flag: str, things: str, text: str) -> Decorator:
    kind = NumberOrAuto(f"a number of {things} from 1 to {MAX_AT_ONCE:,}", 1, MAX_AT_ONCE)
    option = _option(flag, type=kind, metavar=kind.name, default="auto", show_default=True, help=text)
    return _group(WORKERS, option)


workers = _count(
    "--workers",
    "processes",
    "Worker processes; auto: one a core, as far as memory goes, or a GPU; or as the cluster has room for.",
)
planned_workers = _count(
    "--workers",
    "processes",
    "Workers that a machine like this one will have: sets the threads of each; auto: one thread.",
)
trials_per_device = _count(
    "--trials-per-device",
    "trials",
    "Trials a worker trains at once; auto: one on a CPU, up to 16 on a GPU.",
)

engine = _group(
    WORKERS,
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
        type=Finite(min=0, min_open=True),
        metavar="N",
        help="CPUs of the cluster a worker gets.  [default: the plan's threads a worker]",
    ),
    _option(
        "--gpus-per-worker",
        type=Finite(min=0),
        metavar="N",
        help="GPUs, 0.25 for a quarter of one.  [default: 1 where the plan trains on CUDA]",
    ),
)
"""Who places the workers."""

slurm = _together(
    click.option("--slurm", is_flag=True, required=True, help="Submit to SLURM.", expose_value=False),
    click.option(
        "--workers",
        "n_workers",
        type=click.IntRange(1, MAX_AT_ONCE),
        metavar="N",
        default=4,
        show_default=True,
        help="Tasks of the array, each a worker.",
    ),
    click.option("--partition", metavar="NAME", help="SLURM's partition.  [default: that of the cluster]"),
    click.option(
        "--time",
        type=Duration(),
        default="4h",
        show_default=True,
        help="Limit on a task's time; the task is queued again then.",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPUs of a task.  [default: the plan's threads a worker]",
    ),
    click.option(
        "--gpus",
        type=click.IntRange(min=0),
        metavar="N",
        help="GPUs of a task.  [default: 1 where the plan trains on GPUs]",
    ),
)
"""What is asked of SLURM."""

limits = _together(
    _option("--idle-timeout", type=Duration(), help="Stop after so long without work (30m)."),
    _option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Stop after N trials."),
    _option(
        "--deadline",
        type=Duration(),
        help="Stop so long from now; the trial goes back to the queue.",
    ),
)
"""When a worker stops by itself."""

deadline = _group(
    SEEDS,
    _option(
        "--deadline",
        type=Duration(),
        help="Have the answer so long from now (7h): in time for the final stage, do as `hpo finish` does.",
    ),
)
"""When a run closes what is open."""

server = _together(
    _option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on. There is no password, and others can reach any address but the default.",
    ),
    _option(
        "--port",
        type=NumberOrAuto("a port from 0 to 65535", 0, 65_535),
        metavar=NumberOrAuto.name,
        default="auto",
        show_default=True,
        help="auto: 8080, or a free one where that is taken; 0: a free one.",
    ),
    _option("--read-only", is_flag=True, help="Refuse every request that could change something."),
    _option("--no-browser", is_flag=True, help="Open no browser."),
)
"""How the dashboard is served."""

costs = click.option(
    "--costs", is_flag=True, help="Show all that points cost; without it only what a constraint names."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, alone on stdout.")
as_json_lines = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON line for every event, alone on stdout; no screen."
)


def _recorded(flag: str, text: str, *, only_demo: str = "", **settings: Any) -> Decorator:
    """Return an option that is recorded with the plan; its help ends with its default."""
    default = getattr(Defaults, flag.removeprefix("--").replace("-", "_"))
    if default is not None and default is not False:
        shown = f"{default:g}" if isinstance(default, float) else default
        text += f"  [default: {shown}{only_demo}]"
    return _option(flag, help=text, **settings)


of_confirmation = _group(
    DECISIONS,
    _recorded(
        "--keep",
        "What the confirmation keeps: what is shown to be better, or equivalent as well.",
        type=click.Choice(get_args(Keep)),
    ),
    _recorded(
        "--delta",
        "Differences below it do not matter there and in a race.  [default: 0.005 of a share, half a point]",
        type=float,
        metavar="D",
    ),
    _recorded(
        "--same-split",
        "Its seeds all have the search's validation part; otherwise each splits its own off.",
        is_flag=True,
        default=None,
    ),
)
"""How a confirmation decides."""

plan_options = _together(
    _group(
        TRAINED,
        _option(
            "--studies",
            type=UserPath(is_folder=True),
            metavar="DIR",
            help="Folder of study files.  [default: the six that are shipped]",
        ),
        _option(
            "--search",
            type=SearchAxis(),
            multiple=True,
            callback=_by_name,
            help="One study without a file: a list, batch_size=20,40,80, or a range, "
            "'learning_rate=1e-5..1e-2 log', 'shift=0..8 step=2'; repeatable.",
        ),
        _option(
            "--trials",
            type=click.IntRange(min=1),
            metavar="N",
            help="Points that are sampled of ranges in --search; lists alone are a grid.",
        ),
        _recorded(
            "--set",
            "Fix a parameter in every study, whatever its file says; repeatable.",
            type=Assignment(),
            multiple=True,
            callback=_by_name,
        ),
        _recorded(
            "--recipe",
            "What is trained: constrained-cnn | python:MODULE:CLASS, a file of yours.",
            metavar="NAME",
        ),
        _recorded(
            "--metric",
            "What is tuned for: one of the recipe's metrics.  [default: its first]",
            metavar="NAME",
        ),
        _recorded(
            "--data",
            "digits | cifar10[:DIR] | folder:PATH | python:MODULE:FUNCTION.",
            only_demo="; demo: digits",
            type=DataSource(),
        ),
        _recorded("--image-size", "Size that folder: images get.  [default: 32]", type=int, metavar="PIXELS"),
        _recorded(
            "--fit",
            "How pictures of that folder become squares.",
            type=click.Choice(get_args(Fit)),
        ),
    ),
    _group(
        SEEDS,
        _recorded("--seed", "First seed of the search.", type=int),
        _recorded(
            "--seeds",
            "Seeds a point is trained on. race: 3, and more for points that can still win.",
            type=SeedsOrRace(),
            metavar=SeedsOrRace.name,
        ),
        _recorded("--max-seeds", "The most that a point gets in a race.", type=int, metavar="K"),
        _recorded("--final-seeds", "Seeds of the final stage.", type=int, metavar="K"),
        _recorded("--epochs", "Epochs a trial has, over what the study files say.", type=int, metavar="N"),
        _recorded(
            "--budget",
            "Training time of all workers together (8h), shared by the studies; a part is kept for the end.",
            type=Duration(),
        ),
        _recorded("--limit-train", "Train on N examples only, stratified.", type=int, metavar="N"),
        _recorded("--limit-valid", "Validate on N examples only, stratified.", type=int, metavar="N"),
        _recorded(
            "--final-data",
            "What the final stage trains on: as limited, all training data, or the validation data as well, "
            "for as many epochs as the search chose.",
            type=click.Choice(get_args(FinalData)),
        ),
        _option("--no-pruning", is_flag=True, help="Train every trial to its last epoch."),
        _recorded(
            "--audit",
            "Share of the pruned points, drawn at random, that are trained on to see what pruning misses.",
            type=float,
            metavar="SHARE",
        ),
        _recorded(
            "--keep-checkpoints",
            "Keep the last checkpoint of every trial; --reuse goes on from it to more epochs or final seeds.",
            is_flag=True,
            default=None,
        ),
    ),
    _group(
        DECISIONS,
        _recorded(
            "--inherit",
            "What a study starts from: the winner before it, or the published choice.",
            type=click.Choice(get_args(Inherit)),
        ),
        _recorded(
            "--adopt",
            "Adopt a study's winner if it scores above what was inherited, or always.",
            type=click.Choice(get_args(Adopt)),
        ),
        _recorded(
            "--confirm",
            "Try what was adopted again, on fresh seeds, before the test set is opened; see `hpo confirm`.",
            is_flag=True,
            default=None,
        ),
        of_confirmation,
    ),
    _group(
        HARDWARE,
        _recorded(
            "--device",
            "auto: a CUDA device where there is one; mps (Apple) is untested.",
            metavar="auto|cpu|cuda[:N]|mps",
        ),
        _recorded(
            "--precision",
            "auto: bf16 where the hardware has it, else fp32.",
            type=click.Choice(get_args(Precision)),
        ),
        _recorded(
            "--kernels",
            "auto: Triton's on a GPU, Winograd's on a CPU without bf16, where they pay; else PyTorch's.",
            type=click.Choice(get_args(Kernels)),
        ),
    ),
    _group(
        WORKERS,
        _recorded(
            "--lease-seconds",
            "A trial without a heartbeat for so long is queued again.",
            type=float,
            metavar="SECONDS",
        ),
    ),
)
"""Everything that a plan is created with."""

reuse = _group(
    TRAINED,
    _option(
        "--reuse",
        type=PlanPlace(),
        help="Take over what the plan in another folder or database has trained, where it is the same to the "
        "bit.",
    ),
)

share = _option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Of the epochs that the search took, to be spent on points across studies.",
)

for_claims = _group(
    DECISIONS,
    click.option(
        "--claims",
        "for_claims",
        is_flag=True,
        cls=Option,
        help="Train the cells alone that the plan's claims lack.",
    ),
)
claim_studies = _option(
    "--studies",
    type=UserPath(is_folder=True),
    metavar="DIR",
    help="Judge the claims in this folder of study files.  [default: those stored with the plan]",
)


some_studies = click.argument("study", nargs=-1, metavar="[STUDY…]", shell_complete=study_names)
maybe_study = click.argument("study", required=False, shell_complete=study_names)
one_study = click.argument("study", shell_complete=study_names)
one_trial = click.argument("trial", metavar="STUDY/NUMBER", shell_complete=trial_names)
study_or_trial = click.argument("study", metavar="STUDY[/NUMBER]", shell_complete=study_or_trial_names)


def studies(options: Mapping[str, Any]) -> Path | dict[str, Any] | None:
    """Return the folder of study files that the user gave, or the study that `--search` describes.

    Raises:
        InputError: options that go together are not, or others are.
    """
    search, trials = options.get("search"), options.get("trials")
    folder: Path | None = options.get("studies")
    if search is None:
        if trials is not None:
            raise InputError(f"--trials {trials} goes with --search; of a study file it is a key")
        if folder is None:
            _point_at_plan_file(options)
        return folder
    if folder is not None:
        raise InputError(f"--search and --studies {folder} exclude each other; leave one of them out")
    sampled = [name for name, axis in search.items() if isinstance(axis, dict) and "step" not in axis]
    if sampled and trials is None:
        raise InputError(f"--search {sampled[0]}: a range is sampled; say how often, as --trials 20")
    if trials is not None and not sampled:
        raise InputError(
            f"--trials {trials}: lists alone are a grid, and that tries each of its points; leave it out"
        )
    return {"search": search, **({} if trials is None else {"trials": trials})}


def _point_at_plan_file(options: Mapping[str, Any]) -> None:
    """Tell who is in a folder of study files, and begins a plan without it, how to begin that one."""
    from hpo.space.study_file import PLAN_FILE

    is_begun = options.get("storage") or (options.get("out", Path()) / "hpo.db").exists()
    if not is_begun and Path(PLAN_FILE).exists():
        say(f"this takes the shipped studies; with --studies . it takes those beside {PLAN_FILE}", err=True)


def given(options: Mapping[str, Any], *besides: str) -> dict[str, Any]:
    """Return those of the options that change results which the user gave, but for some."""
    names = [name for name in Defaults.__annotations__ if name not in besides]
    found = {name: options[name] for name in names if options.get(name) is not None}
    return {**found, "pruning": False} if options.get("no_pruning") else found


def storage_url(options: Mapping[str, Any]) -> str:
    """Return the database that `--storage` or else `--out` names."""
    from hpo.storage.database import default_url

    return default_url(options["out"]) if options["storage"] is None else str(options["storage"])


def open_plan(options: Mapping[str, Any], *, reader: bool = False) -> Plan:
    """Return the plan of that database; a `reader` takes no locks.

    Raises:
        MissingError: there is none.
    """
    with waiting("reading the plan"):
        from hpo.planning.plan import Plan
        from hpo.storage.storage import Storage

        return Plan.open(Storage(storage_url(options), reader=reader))
