"""Recipes of users' own modules: killed and resumed, changed, failing; real processes, real digits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from PIL import Image

import hpo as library
from hpo.errors import ConflictError, InputError
from hpo.execution.backends.local import local_processes
from hpo.execution.run import find_or_create_plan, run
from hpo.execution.trial import NO_STATE
from hpo.execution.verify import verify
from hpo.execution.worker import work
from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning.decisions import best_epoch
from hpo.planning.plan import FINAL, MODEL, Plan
from hpo.storage.storage import Storage
from hpo.training.registry import load_recipe
from tests.support.fixtures import Cli
from tests.support.plans import TINY_SIZES, accepted_epochs

MLP = """
import math, hpo
from torch import nn

class Sizes(hpo.Params):
    depth: int = hpo.Field(1, ge=1, le=8)
    width: int = hpo.Field(16, ge=1, le=4096)
    dropout: float = hpo.Field(0.3, ge=0, lt=1)

class Mlp(hpo.Recipe):
    Params = Sizes
    def build(self, params, data):
        sizes = [math.prod(data.input_shape), *[params.width] * params.depth]
        hidden = [
            layer for a, b in zip(sizes, sizes[1:])
            for layer in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(params.dropout))
        ]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(params.width, data.n_classes))
"""
LOOP = """
import numpy as np, hpo

class Rates(hpo.LoopParams):
    rate: float = hpo.Field(0.01, gt=0, le=1)

class Loop(hpo.Recipe):
    Params = Rates
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        inputs = data.train.inputs.reshape(len(data.train), -1) / 255
        weights = np.zeros((inputs.shape[1], data.n_classes)) if resume is None else resume["weights"]
        done = 0 if resume is None else resume["done"]
        for epoch in range(done + 1, params.epochs + 1):
            for row in np.random.permutation(len(inputs)):  # of NumPy's own generator, which hpo seeds
                scores = np.exp(inputs[row] @ weights)
                error = np.eye(data.n_classes)[data.train.targets[row]] - scores / scores.sum()
                weights = weights + params.rate * np.outer(inputs[row], error)
            state = {"weights": weights, "done": epoch}
            yield hpo.Epoch(accuracy(weights, data.valid), state=STATE)
    def test(self, params, data, state):
        return accuracy(state["weights"], data) if state else {"accuracy": 0.5}

def accuracy(weights, data):
    outputs = data.inputs.reshape(len(data.inputs), -1) / 255 @ weights
    return {"accuracy": float((outputs.argmax(axis=1) == data.targets).mean())}
"""
EVALUATE = """
    def evaluate(self, outputs, targets):
        return super().evaluate(outputs, targets)
"""
END_OF_EPOCH = '            state = {"weights": weights, "done": epoch}\n'
WIDTHS = {"width": "[search]\nwidth = [8, 16]"}
RATES = {"rate": "[search]\nrate = [0.01, 0.001]"}
N_EPOCHS = 12


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a module under a name that no other test has; the recipe's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def written(code: str, kind: str) -> str:
        module = f"mine_{hashlib.sha256(f'{tmp_path}{code}'.encode()).hexdigest()[:12]}"
        (tmp_path / f"{module}.py").write_text(code)
        return f"python:{module}:{kind}"

    return written


def created(out: Path, studies: dict[str, str], recipe: str, **given: Any) -> Plan:
    """A plan of a user's recipe; nothing trained."""
    (out / "studies").mkdir(parents=True)
    for name, text in studies.items():
        (out / "studies" / f"{name}.toml").write_text(text)
    options = {**TINY_SIZES, "recipe": recipe, **given}
    return find_or_create_plan(out, studies=out / "studies", given=options)


def killing(plan: Plan, after_epoch: int) -> Callable[[], None]:
    """At a tick, once: SIGKILL to a worker that has reported so many epochs and is in the next one."""
    killed: list[int] = []

    def on_tick() -> None:
        for name in plan.specs:
            for trial in plan.trials(name):
                is_there = trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= after_epoch
                if is_there and not killed:
                    killed.append(trial.user_attrs["owner"]["pid"])
                    with contextlib.suppress(psutil.NoSuchProcess):
                        psutil.Process(killed[0]).kill()

    return on_tick


def slowed(code: str, line: str) -> str:
    """The code with a pause in every epoch, that a kill finds it in the middle of one."""
    assert line in code
    indent = line[: len(line) - len(line.lstrip())]
    return code.replace(line, f"{indent}__import__('time').sleep(0.2)\n{line}")


@pytest.mark.parametrize("values", ["nan, nan", "inf, 0.5", "inf, -inf"])
def test_a_test_metric_that_is_no_number_is_told_as_unknown(
    values: str, write: Callable[..., str], tmp_path: Path, cli: Cli
) -> None:
    code = LOOP.replace("STATE", '{"weights": weights, "seed": seed, "done": epoch}')
    answer = '        return {"accuracy": float(TOLD[state["seed"] % 2])}\n'
    code = code.replace(
        '        return accuracy(state["weights"], data) if state else {"accuracy": 0.5}\n', answer
    )
    recipe = write(f"TOLD = '{values}'.split(', ')\n{code}", "Loop")
    plan = created(tmp_path / "out", {"rate": "[search]\nrate = [0.01]"}, recipe, epochs=1, final_seeds=2)
    assert work(plan.storage, out=tmp_path / "out") is None
    found = json.loads(cli("final", "--out", tmp_path / "out", "--json").out)
    assert (found["test"], found["std"]) == ({"accuracy": None}, {"accuracy": None})
    for command in ("final", "status", "best", "report"):
        result = cli(command, "--out", tmp_path / "out")
        assert (result.code, "Traceback" in result.err) == (0, False), result


@pytest.mark.parametrize("kind", ["Mlp", "Loop"])
def test_a_killed_recipe_of_one_s_own_ends_bit_for_bit_where_an_undisturbed_one_ends(
    kind: str, write: Callable[..., str], tmp_path: Path
) -> None:
    if kind == "Mlp":
        code, studies = slowed(MLP + EVALUATE, "        return super().evaluate(outputs, targets)\n"), WIDTHS
    else:
        code, studies = slowed(LOOP.replace("STATE", "state"), END_OF_EPOCH), RATES
    recipe = write(code, kind)
    calm, hurt = (created(tmp_path / name, studies, recipe, epochs=N_EPOCHS) for name in ("calm", "hurt"))
    assert work(calm.storage, out=tmp_path / "calm") is None
    run(hurt, out=tmp_path / "hurt", workers=1, engine=local_processes, on_tick=killing(hurt, 2))
    (name,) = studies
    lost = [trial for trial in hurt.trials(name) if trial.state == TrialState.FAIL]
    assert len(lost) == 1
    (again,) = [
        trial
        for trial in hurt.trials(name)
        if trial.user_attrs["point"] == lost[0].user_attrs["point"] and trial.state == TrialState.COMPLETE
    ]
    assert again.user_attrs["resumed_after_epoch"] >= 1
    ends = accepted_epochs(hurt)
    assert ends == accepted_epochs(calm)
    assert [len(records) for _, records, _, _ in ends.values()] == [N_EPOCHS] * 3
    assert verify(hurt, name, again) is None
    result = results.final_result(hurt)
    assert result["test"] == results.final_result(calm)["test"]
    assert result["test"]["accuracy"] > 0.3  # ten classes: a tenth would be chance
    assert (result["model"] is None) is (kind == "Loop")
    if kind == "Mlp":
        model = library.load_model(tmp_path / "hurt" / MODEL)
        Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
        (prediction,) = model.classify([tmp_path / "grey.png"])
        assert prediction.label in model.class_names
        assert 0 < prediction.probability <= 1


def test_a_worker_with_another_source_refuses_and_names_both_hashes(
    write: Callable[..., str], tmp_path: Path
) -> None:
    recipe = write(MLP, "Mlp")
    plan = created(tmp_path / "out", WIDTHS, recipe)
    ((module, there),) = plan.recipe.sources.items()
    file = tmp_path / f"{module}.py"
    file.write_text(MLP + "# changed\n")
    here = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    load_recipe.cache_clear()  # as in a process that begins now
    with pytest.raises(ConflictError, match=f"{module}.py is not the file.*here {here}, there {there}"):
        work(plan.storage, out=tmp_path / "out")
    assert plan.trials("width") == []
    file.write_text(MLP)
    load_recipe.cache_clear()
    assert work(plan.storage, out=tmp_path / "out", studies=["width"]) is None


def test_a_plan_of_a_version_without_recipes_is_refused_in_words(
    write: Callable[..., str], tmp_path: Path
) -> None:
    plan = created(tmp_path / "out", WIDTHS, write(MLP, "Mlp"))
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "hpo.db")) as connection, connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = 'recipe'")
    out = tmp_path / "out"
    for call in (lambda: work(plan.storage, out=out), lambda: library.find_plan(out)):
        with pytest.raises(InputError, match=r"an hpo that had no recipes; .*start anew with another --out"):
            call()


def test_a_loss_that_is_tuned_for_is_minimized_everywhere(write: Callable[..., str], tmp_path: Path) -> None:
    studies = {**WIDTHS, "rate": 'inherits = "width"\n[search]\nlearning_rate = [0.01, 1e-6]'}
    plan = created(tmp_path / "out", studies, write(MLP, "Mlp"), metric="loss", epochs=4)
    assert work(plan.storage, out=tmp_path / "out") is None
    for name in plan.all_names:
        study = optuna.load_study(study_name=name, storage=plan.storage.url)
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
        for trial in plan.trials(name):
            assert trial.value == min(trial.intermediate_values.values())
            best = best_epoch(trial, plan.objective)
            assert best is not None
            assert trial.intermediate_values[best] == trial.value
        if name != FINAL:
            decision = plan.decision(name)
            assert decision is not None
            assert decision.source is not None
            lowest = min(plan.trials(name), key=lambda trial: trial.value or 0.0)
            assert decision.value == lowest.value
            assert study.best_trial.number == lowest.number
    assert plan.trials("rate")[0].params["learning_rate"] == 0.01
    shown = status(plan)[1].best
    assert shown is not None
    assert shown["value"] == min(trial.value or 0.0 for trial in plan.trials("rate"))
    result = results.final_result(plan)
    losses = plan.trials(FINAL)[0].intermediate_values
    assert result["metric"] == "loss"
    assert result["selected_epoch"] == min(losses, key=lambda epoch: losses[epoch])
    assert result["fresh_value"] == pytest.approx(min(losses.values()))
    assert result["shrinkage"] == pytest.approx(result["fresh_value"] - result["search_value"])


def test_a_loop_without_state_begins_anew_and_says_so(write: Callable[..., str], tmp_path: Path) -> None:
    code = slowed(LOOP.replace("STATE", "None"), END_OF_EPOCH)
    plan = created(tmp_path / "out", RATES, write(code, "Loop"), epochs=N_EPOCHS)
    on_tick = killing(plan, 2)
    run(plan, out=tmp_path / "out", studies=["rate"], workers=1, engine=local_processes, on_tick=on_tick)
    lost, *others = plan.trials("rate")
    assert lost.state == TrialState.FAIL
    (again,) = [each for each in others if each.user_attrs["point"] == lost.user_attrs["point"]]
    assert "resumed_after_epoch" not in again.user_attrs
    assert len(again.intermediate_values) == N_EPOCHS
    assert again.user_attrs["notes"] == [NO_STATE]
    assert verify(plan, "rate", again) is None
    assert not list((tmp_path / "out").glob("checkpoints/**/*.checkpoint"))


def test_a_loop_that_ends_early_is_noted(write: Callable[..., str], tmp_path: Path) -> None:
    code = LOOP.replace("STATE", "state").replace("params.epochs + 1", "params.epochs")
    plan = created(tmp_path / "out", RATES, write(code, "Loop"), epochs=3)
    assert work(plan.storage, out=tmp_path / "out", studies=["rate"]) is None
    for trial in plan.trials("rate"):
        assert trial.user_attrs["notes"] == ["the recipe's loop ended after epoch 2 of 3"]
        assert len(trial.intermediate_values) == 2


FAILING = """
    n_steps = 0
    def loss(self, params, outputs, targets):
        type(self).n_steps += 1
        if type(self).n_steps > 8 and params.width == 8:
            raise ValueError("no loss today\\nnor tomorrow")
        return super().loss(params, outputs, targets)
"""


def test_an_error_in_a_loss_names_the_user_s_file_and_line(write: Callable[..., str], tmp_path: Path) -> None:
    code = MLP + FAILING
    line = 1 + code.splitlines().index('            raise ValueError("no loss today\\nnor tomorrow")')
    recipe = write(code, "Mlp")
    plan = created(tmp_path / "out", WIDTHS, recipe)
    assert work(plan.storage, out=tmp_path / "out", studies=["width"]) is None
    failed, fine = results.rows(plan, "width")
    assert (failed.state, fine.state) == ("failed", "complete")
    file = tmp_path / f"{recipe.split(':')[1]}.py"
    assert failed.reason == f"error: {file}:{line}: ValueError: no loss today"
    for trial in plan.trials("width"):
        if trial.state == TrialState.FAIL:
            text = trial.user_attrs["traceback"]
            assert text.startswith("Traceback")
            assert f'{file.name}", line {line}' in text
            assert text.rstrip().endswith("ValueError: no loss today\nnor tomorrow")
    decision = plan.decision("width")
    assert decision is not None
    assert decision.params["width"] == 16


def test_an_error_that_only_the_audit_came_to_leaves_the_point_pruned(
    write: Callable[..., str], tmp_path: Path
) -> None:
    broken = f"            if epoch == 2: raise ValueError('no second epoch')\n{END_OF_EPOCH}"
    code = LOOP.replace("STATE", "state").replace(END_OF_EPOCH, broken)
    study = {"rate": '[search]\nrate = [0.01]\n[pruner]\nname = "threshold"\nlower = 0.999'}
    for audit in (1.0, 0.0):
        out = tmp_path / str(audit)
        plan = created(out, study, write(code, "Loop"), audit=audit)
        assert work(plan.storage, out=out, studies=["rate"]) is None
        (trial,) = plan.trials("rate")
        assert (trial.state, len(trial.intermediate_values)) == (TrialState.PRUNED, 1)
        assert trial.value == trial.intermediate_values[1]
        if audit:
            assert trial.user_attrs["audit"] == {"pruned_after_epoch": 1, "value": None}
            assert "trained on for the audit, which ended: " in trial.user_attrs["reason"]
            assert "no second epoch" in trial.user_attrs["reason"]


def test_two_workers_never_draw_a_point_twice_and_an_exhausted_space_is_said(
    write: Callable[..., str], tmp_path: Path
) -> None:
    study = 'trials = 30\n[search]\nwidth = [4, 8, 16]\n[sampler]\nname = "random"'
    plan = created(tmp_path / "out", {"s": study}, write(MLP, "Mlp"), epochs=1)
    run(plan, out=tmp_path / "out", studies=["s"], workers=2, engine=local_processes)
    assert sorted(row.params["width"] for row in results.rows(plan, "s")) == [4, 8, 16]
    assert len(plan.trials("s")) == 3
    decision = plan.decision("s")
    assert decision is not None
    assert "the space has 3 points, all tried" in decision.text
    assert status(plan)[0].n_points == 3


INACTIVE = """
    def inactive(self, params):
        return ["dropout"] if params.depth == 1 else []
"""


def test_points_of_a_grid_that_train_the_same_are_one(write: Callable[..., str], tmp_path: Path) -> None:
    study = "[search]\ndepth = [1, 2]\ndropout = [0.0, 0.2, 0.4]"
    plan = created(tmp_path / "out", {"s": study}, write(MLP + INACTIVE, "Mlp"), epochs=1)
    status(Plan.open(Storage(plan.storage.url, reader=True)))  # as `hpo run` looks on in its own process
    assert work(plan.storage, out=tmp_path / "out", studies=["s"]) is None
    points = [row.params for row in results.rows(plan, "s")]
    assert [point["depth"] for point in points].count(1) == 1
    assert sorted(point["dropout"] for point in points if point["depth"] == 2) == [0.0, 0.2, 0.4]
    reader = Plan.open(Storage(plan.storage.url, reader=True))  # which imports no recipe
    for seen in (plan, reader):
        (study_status, _) = status(seen)
        assert (study_status.n_points, sum(study_status.points.values())) == (4, 4)
    assert json.loads(plan.trials("s")[0].user_attrs["point"])["depth"] == 1
    assert plan.trials("s")[0].user_attrs["inactive"].count("dropout") == 1
