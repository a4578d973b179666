"""`hpo init`: each folder that it writes is whole, and runs as it is."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from hpo import final_result
from hpo.execution.plan_recipe import given_options, read_folder
from hpo.templates import SCHEMA_FILE, TEMPLATES
from tests.support.command_line import check_command
from tests.support.fixtures import Cli
from tests.support.plans import train

TINY = {"limit_train": 100, "limit_valid": 40, "epochs": 1, "final_seeds": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; what is imported from below it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "recipe", raising=False)
    return tmp_path


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_folder_to_begin_with_is_whole_and_its_plan_runs(
    template: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("init", "my-plan", "--template", template)
    assert result.code == 0, result.err
    folder = here / "my-plan"
    files = sorted(entry.name for entry in folder.iterdir())
    studies = [name for name in files if name.endswith(".toml") and name != "plan.toml"]
    assert len(studies) == 2
    assert {*files} - {"program.py"} == {"README.md", "plan.toml", "recipe.py", SCHEMA_FILE, *studies}
    assert result.out.splitlines()[-1] == "next: cd my-plan && hpo run --studies ."
    schema = json.loads((folder / SCHEMA_FILE).read_text())
    for name in studies:
        text = (folder / name).read_text()
        assert text.startswith(f"#:schema {SCHEMA_FILE}\n")
        jsonschema.Draft202012Validator(schema).validate(tomllib.loads(text))
    readme = (folder / "README.md").read_text()
    assert len(readme.splitlines()) == 5
    for command in re.findall(r"`hpo ([^`]*)`", readme):
        check_command(shlex.split(command.partition(" > ")[0]))
    assert all(f"`{name}`" in readme for name in files if name not in ("README.md", SCHEMA_FILE))

    monkeypatch.chdir(folder)
    options, named, specs = read_folder(Path(), given_options(Path(), {}))
    assert (options.recipe, options.final_seeds, len(specs)) == (named.name, 3, 2)
    plan = train(here / "out", studies=Path(), **TINY)
    assert final_result(plan)["test"].keys() == {metric.name for metric in plan.metrics}
    assert all(plan.decision(name) for name in specs)


def test_what_is_there_is_left_alone(here: Path, cli: Cli) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "recipe.py").write_text("mine")
    result = cli("init", "mine")
    assert result.code == 2
    assert "mine: is not empty (it has recipe.py); name another folder" in result.err
    assert [file.name for file in (here / "mine").iterdir()] == ["recipe.py"]
    assert cli("init", "mine/recipe.py").code == 2
    (here / "empty").mkdir()
    assert cli("init", "empty").code == 0


def test_in_the_folder_itself_nobody_is_told_to_go_there(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mine").mkdir()
    monkeypatch.chdir(here / "mine")
    assert cli("init", ".").out.splitlines()[-1] == "next: hpo run --studies ."


def test_who_forgets_to_name_the_folder_is_told(here: Path, cli: Cli) -> None:
    (here / "plan.toml").write_text('data = "digits"\n')
    (here / "rate.toml").write_text("[search]\nlearning_rate = [0.01]\n")
    said = "with --studies . it takes those beside plan.toml"
    assert said in cli("create", "--data", "digits").err
    assert said not in cli("create", "--data", "digits").err  # the plan is there by now
    assert said not in cli("create", "--studies", ".", "--out", "other").err
