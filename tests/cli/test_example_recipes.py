"""The recipes of `examples/recipes`: each runs small as its first lines say; two are killed and resumed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from hpo import HpoError, final_result, find_plan, rows
from tests.support.command import hpo, start_hpo, wait_for

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "recipes"
RECIPES = ["mlp", "sklearn_partial_fit", "other_program", "regression", "resnet"]
EPOCHS = 15
"""Of a run that is killed: enough to be in the middle of one."""
SMALL = ("--limit-train=200", "--limit-valid=50", "--final-seeds=1", "--epochs=2", "--workers=2")

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "recipes"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)
    return copy


def command_of(name: str) -> list[str]:
    """The command that an example's first lines give, on data that need no download."""
    found = re.search(r"`hpo (run --recipe [^`]*)`", (EXAMPLES / f"{name}.py").read_text())
    assert found is not None
    return shlex.split(found[1].replace("cifar10", "digits"))


@pytest.mark.parametrize("name", RECIPES)
def test_an_example_runs_to_its_final_stage(folder: Path, name: str) -> None:
    result = hpo(*command_of(name), *SMALL)
    assert result.code == 0, result.err
    plan = find_plan("hpo-out")
    answer = final_result(plan)
    assert set(answer["test"]) == {metric.name for metric in plan.metrics}
    assert plan.recipe.name == command_of(name)[2]
    study = list(plan.specs)[-1]
    for command in ("show", "best", "final", "export"):
        shown = hpo(command, *([study] if command == "show" else []))
        assert (shown.code, shown.err) == (0, "")
    assert hpo("verify", f"{study}/0").out == f"{study}/0: equal to the bit in every epoch\n"


@pytest.mark.parametrize(("name", "study"), [("mlp", "size"), ("sklearn_partial_fit", "penalty")])
def test_an_example_that_is_killed_resumes_and_ends_equal(folder: Path, name: str, study: str) -> None:
    command = [*command_of(name), "--workers=1", f"--epochs={EPOCHS}", "--seeds=1", "--limit-train=500"]
    running = start_hpo(*command, study, "--out=killed")
    wait_for(lambda: is_in_the_middle_of_a_trial(study), running)
    kill_everything(running)
    result = hpo("resume", study, "--out=killed", "--workers=1")
    assert result.code == 0, result.err
    trials = find_plan("killed").trials(study)
    assert any("resumed_after_epoch" in trial.user_attrs for trial in trials)
    result = hpo(*command, study, "--out=undisturbed")
    assert result.code == 0, result.err
    killed, undisturbed = (epochs_of_study(out, study) for out in ("killed", "undisturbed"))
    assert killed == undisturbed
    assert {len(epochs) for epochs in killed.values()} == {EPOCHS}


def kill_everything(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and its workers at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=300)
    process.communicate()


def is_in_the_middle_of_a_trial(study: str) -> bool:
    try:
        trials = find_plan("killed").trials(study)
    except HpoError:
        return False  # the plan is still to be written
    return any(t.state == TrialState.RUNNING and 2 <= len(t.intermediate_values) < EPOCHS - 3 for t in trials)


def epochs_of_study(out: str, study: str) -> dict[str, list[dict[str, object]]]:
    """Every stored epoch of each point, seconds apart."""
    return {
        row.point: [{**seed, "seconds": None} for epoch in row.history for seed in epoch]
        for row in rows(find_plan(out), study)
    }


def test_the_plain_script_goes_on_where_it_was(folder: Path) -> None:
    for n_trials in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "plain_optuna.py", n_trials], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "macro F1 0." in done.stdout
    assert done.stderr.count("finished with value") == 1
