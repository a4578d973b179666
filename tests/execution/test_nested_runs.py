"""A module that starts a run when it is imported, by every way that leads there: refused, once, in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpo.errors import InputError
from hpo.execution.run import find_or_create_plan
from tests.support.command import hpo

START_LIBRARY = "run_plan(data='python:mine:load', workers=1, epochs=1, out='inner')"
START_RECIPE = "run_plan(data='digits', recipe='python:mine:Mine', workers=1, epochs=1, out='inner')"
START_COMMAND = "subprocess.run([sys.executable, '-m', 'hpo', 'run', '--data=digits', '--out=inner'])"
MODULE = """
import os, subprocess, sys
import numpy as np
from hpo import ImageData, Recipe, run_plan


class Mine(Recipe):
    def build(self, params, data):
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(64, data.n_classes))


def load():
    images, labels = np.zeros((80, 8, 8, 1), np.uint8), np.arange(80) % 2
    return ImageData(images[:60], labels[:60], images[60:], labels[60:], ("a", "b"))


if "GUARDED" not in os.environ:
    {start}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_refusal(said: str, folder: Path) -> None:
    assert said.count('`if __name__ == "__main__":`') == 1
    assert "is being imported" in said
    assert not (folder / "inner").exists()


@pytest.mark.parametrize("start", [START_LIBRARY, START_RECIPE])
def test_a_script_that_imports_itself_is_told_what_it_lacks(start: str, folder: Path) -> None:
    (folder / "mine.py").write_text(MODULE.format(start=start))
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    check_refusal(last, folder)
    assert f"mine.py:{MODULE.splitlines().index('    {start}') + 1}" in last


@pytest.mark.parametrize(
    ("start", "option"),
    [
        (START_LIBRARY, "--data=python:mine:load"),
        (START_RECIPE, "--recipe=python:mine:Mine"),
        (START_COMMAND, "--recipe=python:mine:Mine"),
    ],
    ids=["library, data", "library, recipe", "command, recipe"],
)
def test_a_command_refuses_a_module_that_starts_a_run(start: str, option: str, folder: Path) -> None:
    (folder / "mine.py").write_text(MODULE.format(start=start))
    (folder / "studies").mkdir()
    (folder / "studies" / "rate.toml").write_text("[search]\nlearning_rate = [0.1, 0.01]")
    data = [] if "data" in option else ["--data=digits"]
    result = hpo("create", option, *data, "--studies=studies", "--out=outer")
    check_refusal(result.err, folder)
    # a program of its own may fail, and the module that started it may be sound nevertheless
    assert result.code == (0 if start == START_COMMAND else 2), result.err


def test_a_worker_refuses_it_too_whoever_started_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text(MODULE.format(start=START_LIBRARY))
    (folder / "studies").mkdir()
    (folder / "studies" / "rate.toml").write_text("[search]\nlearning_rate = [0.1, 0.01]")
    monkeypatch.setenv("GUARDED", "1")
    made = hpo("create", "--data=python:mine:load", "--epochs=1", "--studies=studies", "--out=outer")
    assert made.code == 0, made.err
    monkeypatch.delenv("GUARDED")
    result = hpo("worker", "--out=outer")  # as local backends and Ray start it
    assert result.code == 2
    check_refusal(result.err, folder)


def test_a_worker_starts_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo._process import without_runs

    with without_runs("a worker trains", whole_process=True), pytest.raises(InputError, match="worker"):
        find_or_create_plan(folder / "inner")
    assert not (folder / "inner").exists()
