"""What `--help` shows, and what a shell completes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from hpo.cli.help import Command, Option
from hpo.cli.main import COMMANDS, GROUPS
from hpo.cli.main import hpo as commands
from hpo.planning.plan import Plan
from hpo.storage.storage import Storage
from tests.support.fixtures import Cli


def loaded(name: str) -> Command:
    _, command, _ = commands.resolve_command(click.Context(commands), [name])
    assert isinstance(command, Command)
    return command


@pytest.mark.parametrize("width", [80, 120])
def test_commands_stand_in_groups_a_line_each(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    # what a long one does stands in a line below it
    lines = re.sub(r"^(  [\w-]+)\n +", r"\1 ", cli("--help").out, flags=re.MULTILINE).splitlines()
    for title, names in GROUPS.items():
        first = lines.index(f"{title}:") + 1
        listed = lines[first : first + len(names)]
        assert [line.split()[0] for line in listed] == [*names]
        assert all(line.endswith(".") and "..." not in line for line in listed)
        assert all(line[12:13] == " " != line[13] for line in listed if len(line.split()[0]) < 10)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_two_examples_that_can_be_given(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command = loaded(name)
    shown = cli(name, "--help").out
    assert len(command.examples) == 2
    monkeypatch.chdir(tmp_path)
    for file in ("database-url", "model.safetensors"):
        Path(file).write_text("sqlite:///hpo.db")
    for text, effect in command.examples:
        assert f"  {text}\n" in shown.partition("\nExamples:\n")[2]
        assert effect.endswith(".")
        program, first, *words = shlex.split(re.split(" && | > ", text)[0])
        assert (program, first) == ("hpo", name)
        words = [word.removeprefix("hpo-out/") for word in words]
        assert command.make_context(name, words).params  # raises what a wrong option or value would


def test_options_of_a_command_with_many_stand_in_groups(cli: Cli) -> None:
    *groups, others, last = re.findall(r"^(\w[\w ]+):$", cli("run", "--help").out, re.MULTILINE)
    assert (others, last) == ("Options", "Examples")
    assert len(groups) == len({*groups}) > 4
    assert {param.group for param in loaded("run").params if isinstance(param, Option)} == {*groups}
    assert re.findall(r"^(\w[\w ]+):$", cli("best", "--help").out, re.MULTILINE) == ["Options", "Examples"]


def completions(*words: str) -> list[str]:
    return [
        item.value
        for item in ShellComplete(commands, {}, "hpo", "_HPO_COMPLETE").get_completions(
            [*words[:-1]], words[-1]
        )
    ]


def test_studies_and_trials_of_the_plan_are_completed(finished: Path) -> None:
    out = ("--out", str(finished))
    plan = Plan.open(Storage(f"sqlite:///{finished / 'hpo.db'}", reader=True))
    first, second, *_ = plan.specs
    trials = [f"{first}/{trial.number}" for trial in plan.trials(first)]
    assert completions("run", *out, "") == [*plan.specs]  # and not `final`, which it refuses
    assert completions("show", *out, "") == plan.all_names
    assert completions("export", "--to", "") == ["tensorboard", "mlflow", "wandb"]
    assert completions("run", *out, first, second[:2]) == [second]
    assert completions("show", *out, first[:2]) == [first]
    assert completions("show", *out, f"{first}/") == trials
    assert completions("verify", *out, first[:2]) == trials
    assert completions("discard", *out, "") == plan.all_names


def test_without_a_plan_study_files_are_completed(
    tmp_path: Path, small_studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(file.stem for file in small_studies.glob("*.toml"))
    assert completions("run", "--studies", str(small_studies), "") == names
    assert "learning-rate" in completions("run", "l")
    assert completions("verify", "l") == []
    assert completions("run", "--storage", "nonsense://x", "l2") == ["l2"]
    assert list(tmp_path.iterdir()) == []
