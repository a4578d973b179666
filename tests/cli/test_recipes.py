"""Recipes of one's own on the command line: tried by the doctor, refused in one line, trained, shown."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from tests.support.command import hpo
from tests.support.fixtures import Cli

PARAMS = """
class Sizes(hpo.Params):
    width: int = hpo.Field(16, ge=1, le=64)
"""
BUILD = """
    def build(self, params, data):
        n_inputs = math.prod(data.input_shape)
        first, last = nn.Linear(n_inputs, params.width), nn.Linear(params.width, data.n_classes)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
"""
MLP = f"""
import math

import hpo
import torch
from torch import nn

{PARAMS}

class Mlp(hpo.Recipe):
    Params = Sizes
{BUILD}
"""
LOOP = """
import hpo


class Counts(hpo.LoopParams):
    step: int = hpo.Field(1, ge=1, le=9)


class Counter(hpo.Recipe):
    Params = Counts
    metrics = {"score": "maximize"}

    def train(self, params, data, seed, context, resume=None):
        total = resume["total"] if resume else 0
        while total < params.step * params.epochs:
            total += params.step
            yield hpo.Epoch({"score": total}, STATE)

    def test(self, params, data, state):
        return {"score": 0.0}
"""

numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> str:
    """A module of a name of its own: this process imports each once."""
    name = f"mine{next(numbers)}"
    (folder / f"{name}.py").write_text(text)
    return name


def test_the_doctor_tries_a_recipe_without_a_plan(cli: Cli, folder: Path) -> None:
    recipe = f"python:{written(folder, MLP)}:Mlp"
    result = cli("doctor", "--recipe", recipe, "--device=cpu")
    assert (result.code, result.err) == (0, "")
    for text in (
        f"{recipe}: works on digits, ",
        "network: 1,210 weights; a batch's outputs have the shape (20, 10)",
        "repeatable: the same seed trained twice is equal to the bit",
        "CUDA graphs: steps are recorded on a GPU",
        "tuned for: macro_f1 (maximize)",
    ):
        assert text in result.out
    assert re.search(r"width +int +16 +≥ 1, ≤ 64", result.out)
    assert not list(folder.glob("**/*.db"))
    record = json.loads(cli("doctor", "--recipe", recipe, "--device=cpu", "--json").out)
    assert record["ok"]
    assert record["parameters"]["width"] == {"kind": "int", "default": 16, "ge": 1, "le": 64}
    assert record["network"]["n_parameters"] == 1210
    assert record["network"]["repeats"]
    assert record["metrics"] == {"macro_f1": "maximize", "accuracy": "maximize", "loss": "minimize"}


def test_the_doctor_says_on_which_data_it_tried_where_none_were_named(cli: Cli, folder: Path) -> None:
    for_numbers = MLP.replace("n_inputs = ", "assert not data.n_classes, 'for numbers'; n_inputs = ")
    recipe = f"python:{written(folder, for_numbers)}:Mlp"
    hint = " (tried on digits; --data names others)"
    without, named = (cli("doctor", "--recipe", recipe, *data) for data in ([], ["--data=digits"]))
    assert without.err == named.err.rstrip() + hint + "\n"
    assert "AssertionError: for numbers" in named.err


@pytest.mark.parametrize(
    ("state", "says"), [('{"total": total}', "resumes after its last epoch"), ("None", "begins anew")]
)
def test_the_doctor_tries_an_epoch_of_an_own_loop(cli: Cli, folder: Path, state: str, says: str) -> None:
    recipe = f"python:{written(folder, LOOP.replace('STATE', state))}:Counter"
    result = cli("doctor", "--recipe", recipe)
    assert (result.code, result.err) == (0, "")
    assert "one epoch: score 1;" in result.out
    assert says in result.out
    record = json.loads(cli("doctor", "--recipe", recipe, "--json").out)
    assert record["loop"]["metrics"] == {"score": 1.0}
    assert record["loop"]["keeps_state"] == (state != "None")


def test_the_shipped_recipe_can_be_tried_too(cli: Cli, folder: Path) -> None:
    record = json.loads(cli("doctor", "--recipe", "constrained-cnn", "--device=cpu", "--json").out)
    assert "conv1_channels" in record["parameters"]
    assert record["network"]["output_shape"] == [20, 10]


def with_method(text: str) -> str:
    return MLP + text


MISTAKES = {
    "a type that cannot be searched": (
        MLP.replace("width: int = hpo.Field(16, ge=1, le=64)", "width: list = [16]"),
        "AT_CLASS: Sizes.width: list is not a type that can be searched; use int, float, bool, str or a",
    ),
    "no default": (
        MLP.replace("hpo.Field(16, ge=1, le=64)", "hpo.Field(ge=1)"),
        "AT_CLASS: Sizes.width has no default; give one",
    ),
    "a default out of its bounds": (
        MLP.replace("hpo.Field(16, ge=1, le=64)", "hpo.Field(0, ge=1)"),
        "AT_CLASS: Sizes.width = 0: must be at least 1",
    ),
    "a training parameter hidden": (
        MLP.replace("    width: int", "    l2: int = 0\n    width: int"),
        "AT_CLASS: Sizes.l2: l2 is a training parameter that every recipe has, of type float, not int",
    ),
    "no build": (
        MLP.replace(BUILD, ""),
        "AT_CLASS: has no build(self, params, data), which returns the network",
    ),
    "no recipe": (MLP.replace("(hpo.Recipe)", ""), "must be a subclass of hpo.Recipe, is Mlp"),
    "outputs of another shape": (
        MLP.replace("data.n_classes)", "3)"),
        "the network returned outputs of shape (8, 3) for 8 inputs; 10 classes need (8, 10)",
    ),
    "no network": (
        with_method("\n    def build(self, params, data):\n        return 3\n"),
        "build must return a torch.nn.Module, returned int",
    ),
    "an error in build": (
        with_method("\n    def build(self, params, data):\n        return nn.Linear(params.breadth, 10)\n"),
        "AT_LAST: AttributeError: 'Sizes' object has no attribute 'breadth'",
    ),
    "an error in forward": (
        MLP.replace("n_inputs, params.width", "7, params.width"),
        "AT_FILE: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    ),
    "an error in loss": (
        with_method("\n    def loss(self, params, outputs, targets):\n        return outputs / None\n"),
        "AT_LAST: TypeError: unsupported operand",
    ),
    "a loss that is no mean": (
        with_method("\n    def loss(self, params, outputs, targets):\n        return outputs.sum(dim=1)\n"),
        "loss must return a tensor of one number, the mean of a batch; it is of shape (8,)",
    ),
    "an error in evaluate": (
        with_method("\n    def evaluate(self, outputs, targets):\n        raise ValueError('no idea')\n"),
        "AT_LAST: ValueError: no idea",
    ),
    "a metric that evaluate leaves out": (
        with_method("\n    def evaluate(self, outputs, targets):\n        return {'macro_f2': 0.5}\n"),
        "evaluate returned no 'macro_f1', which metrics declares; did you mean 'macro_f2'?",
    ),
    "a metric that is no number": (
        with_method(
            "\n    metrics = {'top': 'maximize'}\n"
            "    def evaluate(self, outputs, targets):\n        return {'top': 'high'}\n"
        ),
        "evaluate: top = 'high': must be a number",
    ),
    "a direction that is none": (
        with_method("\n    metrics = {'top': 'up'}\n"),
        "AT_CLASS: metrics['top'] = 'up': must be 'maximize' or 'minimize'",
    ),
    "a constraint on what is no parameter": (
        with_method("\n    constraints = ('widht <= 3',)\n"),
        "did you mean 'width'?",
    ),
    "constraints that are no texts": (
        with_method("\n    constraints = (lambda params: params.width < 3,)\n"),
        "AT_CLASS: constraints = (<function",
    ),
    "a constraint outside of a list": (
        with_method("\n    constraints = 'width <= 3'\n"),
        "AT_CLASS: constraints = 'width <= 3': must be texts, as ('width <= 64',)",
    ),
    "parameters instead of their class": (
        MLP.replace("Params = Sizes", "Params = Sizes()"),
        "AT_CLASS: Params is a Sizes(",
    ),
    "an error in __init__": (
        with_method("\n    def __init__(self):\n        raise ValueError('no\\nidea')\n"),
        "AT_LAST: ValueError: no idea",
    ),
    "an end of the program in build": (
        with_method("\n    def build(self, params, data):\n        raise SystemExit('no idea')\n"),
        "AT_LAST: SystemExit: no idea",
    ),
    "an error in inactive": (
        with_method("\n    def inactive(self, params):\n        return 1 / 0\n"),
        "AT_LAST: inactive: ZeroDivisionError: division by zero",
    ),
    "nothing from inactive": (
        with_method("\n    def inactive(self, params):\n        pass\n"),
        "AT_FILE: inactive: TypeError: 'NoneType' object is not iterable",
    ),
    "one name from inactive": (
        with_method("\n    def inactive(self, params):\n        return 'width'\n"),
        "AT_FILE: inactive returned 'width'; return several names, as ('width',)",
    ),
    "an unknown name from inactive": (
        with_method("\n    def inactive(self, params):\n        return ['widht']\n"),
        "AT_FILE: inactive returned ['widht']: 'widht' is not a parameter; did you mean 'width'?",
    ),
    "a network that is always the same": (
        MLP.replace("        return nn", "        self.net = self.net or nn")
        + "        return self.net\n    net = None\n",
        "build must make a new network in every call; it returned weights of an earlier one",
    ),
    "a network of any shape": (
        MLP.replace("params.width, data", "params.width + self.more(), data").replace(
            "n_inputs, params.width", "n_inputs, params.width + self.count"
        )
        + "    count = 0\n"
        + "    def more(self):\n        self.count += 1\n        return self.count - 1\n",
        "build returned networks of different shapes for the same parameters",
    ),
    "a network without weights": (
        MLP.replace(
            "        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)", "        return nn.ReLU()"
        ),
        "build returned a network without weights to train",
    ),
    "an error in augment": (
        with_method(
            "\n    def augment(self, params, inputs, targets, epoch, generator):\n"
            "        return inputs / None, targets\n"
        ),
        "AT_LAST: TypeError: unsupported operand",
    ),
    "an error in schedule": (
        with_method("\n    def schedule(self, params, progress):\n        return 1 / 0\n"),
        "AT_LAST: ZeroDivisionError: division by zero",
    ),
    "an error in at_epoch": (
        with_method(
            "\n    def at_epoch(self, params, epoch):\n        return params if epoch < 9 else 1 / 0\n"
        ),
        "AT_LAST: ZeroDivisionError: division by zero",
    ),
    "nothing from at_epoch": (
        with_method("\n    def at_epoch(self, params, epoch):\n        pass\n"),
        "at_epoch must return Sizes, returned NoneType",
    ),
    "a rate that at_epoch cannot change": (
        with_method(
            "\n    def at_epoch(self, params, epoch):\n"
            "        return params.model_copy(update={'learning_rate': params.learning_rate / epoch})\n"
        ),
        "at_epoch changes learning_rate in epoch 2, to no effect: ",
    ),
    "layers that are none": (
        with_method("\n    def layers(self, model):\n        return {'first': 3}\n"),
        "AT_FILE: AttributeError: 'int' object has no attribute",
    ),
    "a module that is not installed": (
        "import no_such_module\n" + MLP,
        "AT_FIRST: ModuleNotFoundError: No module named 'no_such_module'; install it, or set PYTHONPATH",
    ),
    "a syntax error": (MLP + "\n    def (:\n", "SyntaxError"),
    "an error at import": (MLP + "\nraise OSError('no weights')\n", "AT_LAST: OSError: no weights"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_in_a_recipe_is_one_line_with_its_place(
    cli: Cli, folder: Path, text: str, says: str
) -> None:
    module = written(folder, text)
    file = f"{folder / module}.py"
    lines = text.splitlines()
    at_class = next(n for n, line in enumerate(lines, 1) if line.startswith("class Mlp"))
    says = says.replace("AT_FILE", f"{file}:{at_class}")
    says = says.replace("AT_CLASS", f"{file}:{at_class}: class Mlp")
    says = says.replace("AT_FIRST", f"{file}:1")
    says = says.replace("AT_LAST", f"{file}:{len(lines)}")
    result = cli("doctor", "--recipe", f"python:{module}:Mlp", "--device=cpu")
    assert (result.code, result.out) == (2, ""), result
    assert says in result.err
    assert len(result.err.splitlines()) == 1
    assert f"{module}" in result.err


def test_targets_that_are_no_classes_of_the_data_are_named(cli: Cli, folder: Path) -> None:
    module = written(
        folder,
        MLP
        + """

def data():
    import numpy as np

    inputs = np.zeros((30, 4), np.float32)
    return hpo.ArrayData(inputs, np.arange(30), inputs, np.arange(30), class_names=("a", "b"))
""",
    )
    result = cli("doctor", "--recipe", f"python:{module}:Mlp", "--data", f"python:{module}:data")
    assert result.code == 2
    assert "train_targets: must be 0 to 1, one for each class name, is 2" in result.err
    assert len(result.err.splitlines()) == 1


def test_the_shipped_studies_do_not_fit_and_it_says_what_to_do(cli: Cli, folder: Path) -> None:
    result = cli("run", "--recipe", f"python:{written(folder, MLP)}:Mlp", "--data=digits")
    assert (result.code, result.out) == (2, "")
    for text in (
        "the shipped studies are for constrained-cnn",
        "write a study file",
        "width",
        "--studies DIR",
    ):
        assert text in result.err


def test_an_unknown_recipe_or_metric_is_refused_with_what_is_near(cli: Cli, folder: Path) -> None:
    result = cli("run", "--recipe=constrained-cn", "--data=digits")
    assert result.code == 2
    assert "did you mean 'constrained-cnn'? A recipe of your own is python:module:Class" in result.err
    result = cli("run", "--metric=acuracy", "--data=digits")
    assert result.code == 2
    assert "--metric acuracy: did you mean 'accuracy'?" in result.err


def test_a_device_alone_means_nothing_to_the_doctor(cli: Cli, folder: Path) -> None:
    result = cli("doctor", "--device=cpu")
    assert result.code == 2
    assert "--device cpu goes with --recipe" in result.err


def test_an_error_in_the_middle_of_a_trial_is_shown_with_its_place(cli: Cli, folder: Path) -> None:
    text = LOOP.replace("STATE", '{"total": total}').replace(
        "            total += params.step\n", "            total += 1 + 0 // (2 - total)\n"
    )
    module = written(folder, text)
    (folder / "studies").mkdir()
    (folder / "studies" / "steps.toml").write_text("[search]\nstep = [1]\n")
    recipe = f"--recipe=python:{module}:Counter"
    result = hpo("run", recipe, "--data=digits", "--studies=studies", "--workers=1", "--epochs=4", "steps")
    assert result.code == 1
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "0 //" in line)
    shown = cli("show", "steps")
    place = f"error: {folder / module}.py:{line}: ZeroDivisionError: "  # long lines are broken
    assert "".join(place.split()) in "".join(shown.out.split())
    assert "traceback of trial 1:\n  Traceback (most recent call last):\n" in shown.out
