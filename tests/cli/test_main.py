"""What the command line says when something is wrong, and what it does not load when nothing is."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from hpo import find_plan
from hpo.cli.main import COMMANDS
from hpo.cli.main import hpo as hpo_commands
from hpo.planning.scheduler import advance
from hpo.storage.queue import this_process
from tests.support.command import hpo, hpo_as_reader, read_only
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, SMALL_RUN
from tests.support.scripted_worker import Worker, new_plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    return tmp_path


WRONG_FILES = {
    "search.lr is not a parameter; did you mean 'learning_rate'?": "[search]\nlr = [0.1]",
    "did you mean 'search'?": "[serch]\nlearning_rate = [0.1]",
    "learning_rate = -1": "[search]\nlearning_rate = [-1]",
    "median": '[search]\nlearning_rate = [0.1]\n[pruner]\nname = "medain"',
    "did you mean 'n_warmup_steps'?": (
        '[search]\nlearning_rate = [0.1]\n[pruner]\nname = "median"\nn_warmup_step = 3'
    ),
    "tpe": '[search]\nlearning_rate = [0.1]\n[sampler]\nname = "tpee"',
    "nobody": 'inherits = "nobody"\n[search]\nlearning_rate = [0.1]',
    "line 1": "[search\n",
}


@pytest.mark.parametrize("command", ["run", "create", "plan"])
@pytest.mark.parametrize(("says", "text"), WRONG_FILES.items(), ids=[str(n) for n in range(len(WRONG_FILES))])
def test_a_wrong_study_file_is_named_with_key_and_cure(
    cli: Cli, folder: Path, command: str, says: str, text: str
) -> None:
    (folder / "studies" / "lr.toml").write_text(text)
    result = cli(command, "--studies=studies", "--data=digits")
    assert result.code == 2
    assert result.err.startswith(f"hpo {command}: studies/lr.toml: ")
    assert says in result.err
    assert result.out == ""
    assert not list(folder.glob("**/*.db"))


def test_every_mistake_of_a_folder_is_told_a_line_each(cli: Cli, folder: Path) -> None:
    (folder / "studies" / "a.toml").write_text(
        """
        constraint = ["l2 < 1"]
        constraints = ["l2 < x", "l2 <"]
        fixed = {batch_size = 0, lr = 1}
        [search]
        l2 = []
        learning_rate = [-1]
        """
    )
    pruner = '[pruner]\nname = "medain"\n'
    (folder / "studies" / "b.toml").write_text(
        f'trials = 3\n[search]\nl2 = [0.1]\n{pruner}[sampler]\nname = "grit"'
    )
    (folder / "studies" / "c.toml").write_text("title = 3\n[serch]\nl2 = [0.1]")
    result = cli("create", "--studies=studies", "--data=digits")
    assert result.code == 2
    lines = [line.strip() for line in result.err.removeprefix("hpo create: ").splitlines()]
    says = [
        ("a", "constraint is not a key"),
        ("a", "fixed.batch_size = 0"),
        ("a", "fixed.lr is not a parameter"),
        ("a", "search.l2 is empty"),
        ("a", "learning_rate = -1"),
        ("a", "l2 < x"),
        ("a", "l2 <"),
        ("c", "serch is not a key"),
        ("c", "title = 3: must be text"),
    ]
    assert [line.partition(": ")[0] for line in lines] == [f"studies/{name}.toml" for name, _ in says]
    assert all(text in line for (_, text), line in zip(says, lines, strict=True)), lines
    for name in ("a", "c"):
        (folder / "studies" / f"{name}.toml").unlink()
    result = cli("create", "--studies=studies", "--data=digits")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert "grit" in lines[0]
    assert "medain" in lines[1]


WRONG_OPTIONS = [
    (["run", "--data=fodler:x"], "did you mean 'folder'?"),
    (["run", "--data=folder:missing"], "missing"),
    (["run", "--data=folder:~nobody-s-name/x"], "~nobody-s-name/x: Could not determine home directory"),
    (["run", "--storage=@~nobody-s-name/x"], "~nobody-s-name/x: Could not determine home directory"),
    (["run", "--data=digits", "--fit=pad"], "fit = 'pad': only folder:PATH is resized"),
    (["run", "--fit=stretch"], "'crop', 'pad', 'squash'"),
    (["dashboard", f"--port={'1' * 5000}"], "is neither a port"),
    (["run", "--data=python:nomodule:f"], "nomodule"),
    (["run", "--data=python:__main__:load"], "write python:mine:load"),
    (["run", "--data=digits", "--recipe=python:__main__:Mine"], "write python:mine:Mine"),
    (["run", "--data=digits", "--epochs=0"], "--epochs 0: must be at least 1"),
    (["run", "--data=digits", "--final-seeds=0"], "--final-seeds 0: must be at least 1"),
    (["run", "--data=digits", "--seed=4294967296"], "--seed 4294967296: must be less than 4294967296"),
    (["run", "--data=digits", "--lease-seconds=1e9"], "--lease-seconds 1000000000.0: must be at most 86400$"),
    (["run", "--data=digits", "--limit-train=5"], "5"),
    (["run", "--data=digits", "--limit-train=5000"], "5000|5,000"),
    (["run", "--data=digits", "--image-size=16"], "folder"),
    (["run", "--data=digits", "--device=cuda:99"], "device"),
    (["run", "--data=digits", "--device=gpu"], "device = 'gpu': known: auto, cpu, cuda"),
    (["run", "--workers=many"], "auto"),
    (["run", "--workers=1_0"], "'1_0' is neither a number of processes"),
    (["status", "--out=a?b"], "--out a.b: no database URL can name a file there"),
    (["run", "--data=digits", "--out=50%20"], "--out 50%20: no database URL can name a file there"),
    (["run", "--trials-per-device=0"], "'0' is neither a number of trials from 1 to 1,000 nor 'auto'"),
    (["run", "--workers=1001"], "'1001' is neither a number of processes from 1 to 1,000 nor 'auto'"),
    (["compare", "a/0", "a/1", "--delta=nan"], "'nan' is not a finite number"),
    (["run", "--engine=ray", "--cpus-per-worker=inf"], "'inf' is not a finite number"),
    (["run", "--engine=ray", "--gpus-per-worker=nan"], "'nan' is not a finite number"),
    (["run", "--precision=fp8"], "fp32"),
    (
        ["run", "--data=digits", "--device=cpu", "--precision=tf32"],
        "precision = 'tf32'",
    ),
    (["run", "--storage=nonsense"], "database URL"),
    (["run", "--studies=nowhere"], "nowhere"),
    (["plan", "lerning-rate", "--data=digits"], "did you mean 'learning-rate'?"),
    (["status"], "hpo run"),
    (["resume"], "hpo run"),
    (["worker"], "hpo run"),
    (["final"], "hpo run"),
    (["export"], "hpo run"),
    (["predict", "nothing.pt", "cat.jpg"], "nothing.pt"),
    (["frobnicate"], "No such command"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_OPTIONS, ids=[" ".join(a) for a, _ in WRONG_OPTIONS])
def test_wrong_input_is_exit_2_and_one_message(
    cli: Cli, folder: Path, arguments: list[str], says: str
) -> None:
    result = cli(*arguments)
    assert result.code == 2, result
    assert re.search(says, result.err), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.fixture
def created(cli: Cli, folder: Path, small_studies: Path) -> Path:
    result = cli("create", "--studies", small_studies, *SMALL_RUN)
    assert result.code == 0, result.err
    return folder / "hpo-out"


def test_create_writes_the_plan_and_no_trial(cli: Cli, created: Path) -> None:
    studies = json.loads(cli("status", "--json").out)["studies"]
    assert [study["state"] for study in studies] == ["pending"] * 3
    assert [study["points"]["waiting"] for study in studies] == [2, 3, 1]
    assert json.loads(cli("show", "rate", "--json").out)["points"] == []


@pytest.mark.parametrize(
    ("arguments", "both"),
    [
        (["--epochs=4"], ("4", "3")),
        (["--data=cifar10"], ("cifar10", "digits")),
        (["--seeds=2"], ("2", "1")),
        (["--no-pruning"], ("--no-pruning", "created without it")),
        (["--inherit=published"], ("published", "winners")),
        (["--fit=squash"], ("squash", "crop")),
    ],
)
def test_an_option_that_contradicts_the_plan_names_both_sides(
    cli: Cli, created: Path, arguments: list[str], both: tuple[str, str]
) -> None:
    for command in ("create", "run"):
        result = cli(command, *arguments)
        assert result.code == 2
        assert arguments[0].split("=")[0] in result.err
        assert all(side in result.err for side in both)
        # other data have other bits: there would be nothing to take over
        advises_reuse = "--reuse sqlite:///hpo-out/hpo.db takes over what is the same" in result.err
        assert advises_reuse == (arguments[0].split("=")[0] not in ("--epochs", "--data", "--fit"))


def asking_for(folder: Path, small_studies: Path, trials: int) -> Path:
    """A copy of the small study files in which the sampled study asks for so many trials."""
    copy = shutil.copytree(small_studies, folder / f"studies-{trials}")
    text = (copy / "shape.toml").read_text()
    (copy / "shape.toml").write_text(text.replace("trials = 3", f"trials = {trials}"))
    return copy


def test_more_trials_are_taken_up_and_fewer_refused(
    cli: Cli, created: Path, folder: Path, small_studies: Path
) -> None:
    assert cli("create", "--studies", asking_for(folder, small_studies, 5)).code == 0
    points = {s["name"]: s["points"]["waiting"] for s in json.loads(cli("status", "--json").out)["studies"]}
    assert points == {"rate": 2, "shape": 5, "final": 1}
    assert cli("create").code == 0
    fewer = cli("run", "--studies", asking_for(folder, small_studies, 4))
    assert fewer.code == 2
    assert "'shape' has trials = 4, which can only be raised" in fewer.err
    assert "it is 5 in the plan in sqlite:///hpo-out/hpo.db" in fewer.err


def test_a_refused_study_raises_no_other(cli: Cli, created: Path, folder: Path, small_studies: Path) -> None:
    studies = asking_for(folder, small_studies, 5)
    text = (studies / "rate.toml").read_text()
    (studies / "rate.toml").write_text(text.replace("0.003", "0.004"))
    assert cli("create", "--studies", studies).code == 2
    assert find_plan("hpo-out").spec("shape").trials == 3


def test_a_plan_in_a_folder_that_nobody_may_write_is_read(cli: Cli, created: Path) -> None:
    before = cli("status", "--json", "--out", created).out
    files = sorted(created.rglob("*"))
    read_only(created)
    result = hpo_as_reader("status", "--json", "--out", created)
    assert (result.code, result.err) == (0, "")
    assert result.out == before
    assert hpo_as_reader("export", "--out", created).code == 0
    refused = hpo_as_reader("run", "--out", created)
    assert refused.code == 2
    assert "hpo.db: cannot be opened: file or folder cannot be written" in refused.err
    assert sorted(created.rglob("*")) == files


def test_what_a_killed_writer_left_unread_is_said(created: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(created / "hpo.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE more (n)")
        copy = shutil.copytree(created, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    result = hpo_as_reader("status", "--out", read_only(copy))
    assert result.code == 2
    assert "left changes in hpo.db-wal" in result.err
    assert "copy the folder to where you may write" in result.err


def test_the_same_options_again_are_no_contradiction(cli: Cli, created: Path, small_studies: Path) -> None:
    assert cli("create", "--studies", small_studies, *SMALL_RUN).code == 0
    assert cli("create").code == 0


def test_other_study_files_contradict_the_plan(cli: Cli, created: Path, folder: Path) -> None:
    (folder / "studies" / "rate.toml").write_text("[search]\nlearning_rate = [0.5]")
    result = cli("create", "--studies=studies")
    assert result.code == 2
    assert "rate" in result.err or "shape" in result.err
    assert "another --out, where --reuse sqlite:///hpo-out/hpo.db takes over what is the same" in result.err


def test_an_unknown_study_is_met_with_the_nearest(cli: Cli, created: Path) -> None:
    for command in ("show", "run", "retry"):
        result = cli(command, "rat")
        assert result.code == 2
        assert "did you mean 'rate'?" in result.err


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ("rate", "STUDY/NUMBER"),
        ("rate/9", "0 trials"),
        ("x/0", "not a study"),
        ("rate/" + "9" * 20, "does not name a trial"),
    ],
)
def test_verify_of_what_is_not_there(cli: Cli, created: Path, trial: str, says: str) -> None:
    result = cli("verify", trial)
    assert result.code == 2
    assert says in result.err


def test_options_come_from_the_environment_too(
    cli: Cli, folder: Path, small_studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_OUT", "elsewhere")
    monkeypatch.setenv("HPO_EPOCHS", "7")
    monkeypatch.setenv("HPO_STUDIES", str(small_studies))
    monkeypatch.setenv("HPO_DATA", "digits")
    assert cli("create").code == 0
    assert (folder / "elsewhere" / "hpo.db").exists()
    monkeypatch.setenv("HPO_EPOCHS", "8")
    assert "--epochs 8" in cli("create").err


@pytest.mark.parametrize(("value", "pruning"), [("1", False), ("true", False), ("0", True), ("false", True)])
def test_no_pruning_by_environment_means_what_it_says(
    cli: Cli, folder: Path, small_studies: Path, monkeypatch: pytest.MonkeyPatch, value: str, pruning: bool
) -> None:
    monkeypatch.setenv("HPO_NO_PRUNING", value)
    assert cli("create", "--studies", small_studies, *SMALL_RUN).code == 0
    assert find_plan("hpo-out").options.pruning is pruning


@pytest.mark.parametrize("mistake", [["learning-rat"], ["--limit-train=5000"], ["--data=python:tall:images"]])
def test_a_mistake_leaves_nothing_behind(cli: Cli, folder: Path, mistake: list[str]) -> None:
    (folder / "tall.py").write_text(
        "import numpy as np\nfrom hpo import ImageData\n"
        "def images():\n    x = np.zeros((20, 2, 9, 1), np.uint8); y = np.arange(20) % 2\n"
        "    return ImageData(x, y, x, y, ('a', 'b'))\n"
    )
    result = cli("run", "--data=digits", *mistake)
    assert result.code == 2, result.err
    assert not (folder / "hpo-out").exists()


def test_epochs_cannot_override_a_study_that_searches_them(cli: Cli, folder: Path) -> None:
    (folder / "studies" / "length.toml").write_text("[search]\nepochs = [2, 4]")
    for command in ("create", "plan"):
        result = cli(command, "--studies=studies", "--data=digits", "--epochs=3")
        assert result.code == 2
        assert "length" in result.err
    assert cli("create", "--studies=studies", "--data=digits").code == 0


def test_plan_forecasts_and_writes_nothing(cli: Cli, folder: Path, small_studies: Path) -> None:
    result = cli("plan", "--data=digits", "--limit-train=200", "--epochs=2", "--seeds=3", "--json")
    assert result.code == 0, result.err
    lines = {line["study"]: line for line in json.loads(result.out)}
    assert [line["points"] for line in lines.values()] == [16, 3, 3, 4, 3, 2, 1]
    assert lines["network-setup"]["epochs"] == 16 * 2 * 3
    assert lines["batch-size"]["epochs"] == 2 * 2 * 3  # what is inherited is one of its three points
    assert all(line["seconds"] > 0 for line in lines.values())
    assert not list(folder.glob("**/*.db"))
    published = cli(
        "plan", "--data=digits", "--limit-train=200", "--epochs=1", "--inherit=published", "--json"
    )
    # where no point of the grid is what was published, a control is trained beside them
    assert [line["points"] for line in json.loads(published.out)] == [16, 3, 3, 5, 4, 3, 1]
    sampled = cli(
        "plan", "--studies", small_studies, "--data=digits", "--limit-train=200", "--epochs=2", "--json"
    )
    assert [line["epochs"] for line in json.loads(sampled.out)] == [2 * 2, 3 * 2, 5 * 2]
    table = cli("plan", "learning-rate", "--data=digits", "--limit-train=200")
    assert "learning-rate" in table.out
    assert "batch-size" not in table.out


def loaded_by(*commands: Sequence[object], code: int = 0) -> list[set[str]]:
    """What a process has loaded after each of these commands; each ends in it with that code."""
    # one process for all of them: each alone would take 2 CPU seconds to load Optuna
    script = (
        "import contextlib, os, sys\nfrom hpo.__main__ import main\n"
        "codes, leave, os._exit = [], os._exit, lambda code: codes.append(code)\n"
        f"for words in {[[*map(str, words)] for words in commands]!r}:\n"
        "    sys.argv = ['hpo', *words]\n"
        "    with contextlib.suppress(SystemExit): main()\n"
        "    print('loaded:', *sys.modules, file=sys.stderr)\n"
        f"leave(codes != [{code}] * {len(commands)})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("loaded:")]
    assert len(lines) == len(commands)
    return [set(modules) for _, *modules in lines]


HEAVY = {"torch", "optuna", "sqlalchemy", "pydantic", "numpy", "rich"}


def test_help_loads_little_more_than_click() -> None:
    (loaded,) = loaded_by(["--help"])
    ours = {"hpo", "hpo.__main__", "hpo.errors", "hpo._text", "hpo.cli", "hpo.cli.main", "hpo.cli.output"}
    assert {name for name in loaded if name.split(".")[0] == "hpo"} == ours
    assert not loaded & {*HEAVY, "dataclasses", "difflib", "json", "pathlib"}


def test_the_help_of_no_command_loads_a_library() -> None:
    script = (
        "import sys\nfrom hpo.cli.main import COMMANDS, hpo\n"
        "for name in COMMANDS: hpo([name, '--help'], prog_name='hpo', standalone_mode=False)\n"
        f"assert not {HEAVY} & {{*sys.modules}}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^Usage: hpo ([\w-]+) \[OPTIONS\]", done.stdout, re.MULTILINE) == [*COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_list_of_commands_says_is_what_the_command_says(name: str) -> None:
    context = click.Context(hpo_commands)
    listed = hpo_commands.get_command(context, name)
    _, loaded, _ = hpo_commands.resolve_command(context, [name])
    assert listed is not None
    assert loaded is not None
    assert loaded.name == name
    assert listed.get_short_help_str(200) == loaded.get_short_help_str(200) != ""


def test_defaults_in_help_are_those_that_hold(cli: Cli) -> None:
    from hpo.data.sources import DEFAULT_IMAGE_SIZE
    from hpo.execution.worker import MOST_PER_GPU
    from hpo.planning.manifest import Options
    from hpo.reporting.dashboard.server import HOST, PORT

    run, dashboard = (" ".join(cli(name, "--help").out.split()) for name in ("run", "dashboard"))
    for name, field in Options.model_fields.items():
        if not isinstance(field.default, bool | None):
            option = run.partition(f" --{name.replace('_', '-')} ")[2].partition(" --")[0]
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert re.search(rf"\[default: {shown}[\];]", option), name
    assert f"[default: {DEFAULT_IMAGE_SIZE}]" in run
    assert f"up to {MOST_PER_GPU} on a GPU" in run
    assert f"default: {HOST}]" in dashboard
    assert f"auto: {PORT}," in dashboard


READERS = [("status",), ("show", "rate")]
MISTAKES = [("verify", "rate/9"), ("run", "--epochs=4"), ("run", "rat")]


@pytest.mark.parametrize(("commands", "code"), [(READERS, 0), (MISTAKES, 2)], ids=["read", "mistakes"])
def test_a_plan_is_read_and_mistakes_are_found_without_torch(
    created: Path, commands: list[tuple[str, ...]], code: int
) -> None:
    for loaded in loaded_by(*commands, code=code):
        assert {"optuna", "torch"} & loaded == {"optuna"}


def test_a_wrong_study_file_is_refused_before_torch_is_imported(folder: Path) -> None:
    (folder / "studies" / "lr.toml").write_text("[search]\nlr = [0.1]")
    commands = [(name, "--studies=studies", "--data=digits") for name in ("run", "create", "plan")]
    for loaded in loaded_by(*commands, code=2):
        assert {"optuna", "torch"} & loaded == {"optuna"}


def test_a_wrong_option_is_refused_before_torch_is_imported(folder: Path) -> None:
    mistakes = ("--data=fodler:x", "--limit-train=5", "--workers=many", "--seeds=0")
    for loaded in loaded_by(*(("run", "--data=digits", mistake) for mistake in mistakes), code=2):
        assert "torch" not in loaded


OWN = """
import hpo
import numpy as np
from torch import nn

class Mine(hpo.Recipe):
    def build(self, params, data):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, data.n_classes))

def load():
    images, labels = np.arange(300 * 16, dtype=np.uint8).reshape(300, 4, 4, 1), np.arange(300) % 2
    return hpo.ImageData(images[:240], labels[:240], images[240:], labels[240:], ("a", "b"))
"""
OWN_RUN = ("--recipe=python:mine:Mine", "--data=python:mine:load", "--epochs=1", "--final-seeds=1")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
@pytest.mark.parametrize(("base", "options"), [(SMALL, SMALL_RUN), ("", OWN_RUN)], ids=["shipped", "own"])
def test_a_run_leaves_torch_and_a_user_s_modules_to_the_process_that_its_workers_are_copies_of(
    folder: Path, base: str, options: Sequence[str]
) -> None:
    (folder / "mine.py").write_text(OWN)
    (folder / "studies" / "rate.toml").write_text(f"{base}[search]\nlearning_rate = [0.01, 0.001]")
    command = ("run", "rate", "--studies=studies", "--workers=1", *options)
    (loaded,) = loaded_by(command)
    assert not {"torch", "mine"} & loaded
    assert find_plan("hpo-out").decision("rate") is not None


def test_csv_holds_no_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    from hpo.monitor.export import write_csv

    write_csv([{"a": "=1+1", "b": "-2", "c": -2, "d": "@x", "e": "plain"}], sys.stdout)
    assert capsys.readouterr().out.splitlines()[1] == "'=1+1,'-2,-2,'@x,plain"


def test_a_study_that_nobody_works_on_is_idle_to_a_person(cli: Cli, created: Path) -> None:
    from hpo.planning.plan import Plan
    from hpo.planning.scheduler import advance
    from hpo.storage.storage import Storage

    advance(Plan.open(Storage(f"sqlite:///{created / 'hpo.db'}")))
    assert json.loads(cli("status", "--json").out)["studies"][0]["state"] == "running"
    said = cli("status").out
    assert "idle" in said
    assert "study 1 of 2 · no worker · test set locked" in said


def test_status_answers_while_somebody_holds_the_lock(cli: Cli, tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    Worker(plan).claim("setup", {**this_process(), "started": 0.0})  # of a process that is gone
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        held = cli("status", "--json", "--out", tmp_path)
    assert held.code == 0
    assert "the database's lock is held, or this machine is busy" in held.err
    assert json.loads(held.out)["studies"][0]["points"]["running"] == 1


@pytest.mark.parametrize("error", [EOFError(), BrokenPipeError(32, "a server has gone")])
def test_an_end_of_something_else_is_not_taken_for_one_of_input_or_output(cli: Cli, error: Exception) -> None:
    @hpo_commands.command("fail")
    def fail() -> None:
        raise error

    try:
        with pytest.raises(RuntimeError, match="unexpected"):
            cli("fail")
    finally:
        del hpo_commands.commands["fail"]


def test_an_attribute_that_is_no_json_is_named(cli: Cli, tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as connection, connection:
        connection.execute("update trial_user_attributes set value_json = '{' where key = 'seeds'")
    shown = cli("show", "setup", "--out", tmp_path)
    assert shown.code == 2
    assert "attribute 'seeds' of trial 1 is not valid JSON" in shown.err


def test_mixup_that_never_begins_is_said(folder: Path, cli: Cli) -> None:
    from hpo.execution.plan_recipe import with_recipe
    from hpo.monitor.status import remarks

    assert cli("create", "--data=digits", "--limit-train=200", "--epochs=3").code == 0
    plan = find_plan("hpo-out")
    (remark,) = remarks(with_recipe(plan), plan.all_names)
    assert remark == "mixup: mixup_first_epoch 6 has no effect beside the others"
    assert remarks(plan, plan.all_names) == []  # only the recipe knows
    assert remarks(with_recipe(plan), ["network-setup"]) == []


def test_remarks_are_on_studies_that_were_asked_for(folder: Path, cli: Cli) -> None:
    (folder / "studies" / "rate.toml").write_text(f"{SMALL}[search]\nlearning_rate = [0.01]")
    (folder / "studies" / "late.toml").write_text("[search]\nmixup_first_epoch = [1, 6]")
    command = ("run", "rate", "--studies=studies", "--workers=1", *SMALL_RUN)
    result = hpo(*command)
    assert result.code == 0, result.err
    assert "mixup" not in result.err
    assert cli("report").code == 0
    assert "mixup_first_epoch 6" not in (folder / "hpo-out" / "report" / "report.md").read_text()


def test_a_pruner_that_knows_no_chance_level_is_said_to_stop_nothing(folder: Path, cli: Cli) -> None:
    from hpo.monitor.status import remarks

    assert cli("create", "--data=digits", "--limit-train=200", "--metric=loss").code == 0
    said = remarks(find_plan("hpo-out"), ["l2", "network-setup"])
    assert "l2: pruner 'chance' stops nothing, as the chance level of loss is not known" in said
    assert not any("network-setup" in text for text in said)  # which has another pruner


def test_a_command_closes_its_database_although_it_leaves_at_once(tmp_path: Path) -> None:
    assert hpo("create", "--data=digits", "--out", tmp_path).code == 0
    assert not list(tmp_path.glob("*.db-*"))  # who copies the file alone has all of it
