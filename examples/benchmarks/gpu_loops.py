"""The parts trial, slots and recipes of `gpu.py`, which runs this file with a time limit: one process.

    python examples/benchmarks/gpu_loops.py PATH trial|slots|recipes [--device cuda:0] [--limit-train N]

A line of JSON with the names of the rows to come, then one a row, as soon as it is known.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_script import evaluate, network
from sample import N_TEST, files_of, sample
from torch import nn

from hpo.data import Split, TrainingData
from hpo.execution.plan_data import prepared
from hpo.planning.manifest import Options
from hpo.training import fused
from hpo.training.devices import resolve_precision
from hpo.training.learner import build
from hpo.training.loop import train
from hpo.training.recipe import Recipe
from hpo.training.registry import load_recipe
from hpo.training.slots import Slots

BATCH_SIZE, LEARNING_RATE = 20, 1e-4
LIMITS = ("limit_train", "limit_valid")
OWN_RECIPES = {"Mlp, dropout": "python:mlp:Mlp", "ResNet": "python:resnet:ResNet"}
"""Of `examples/recipes`: the twelve lines of a user's own, and a small residual network."""
EAGER = "eager loop, resident images, fp32"
PLAIN = "plain script, DataLoader, fp32"


def trial_of_hpo(recipe: Recipe, data: TrainingData, device: str, precision: str, kernels: str) -> float:
    """Images a second of a seed's third and fourth epoch: the first two record the graphs."""
    fused.use(kernels)
    config = recipe.schema.complete({"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "epochs": 4})
    epochs = list(train(recipe, config, data, [0], device=device, precision=precision))
    return 2 * len(data.train) / sum(epoch.seconds for epoch in epochs[2:])


def eager_loop(model: nn.Module, data: TrainingData, device: str) -> float:
    """Images a second of the second epoch of a loop as one would write it, all images on the device."""
    mean, std = (torch.as_tensor(each, device=device).view(1, -1, 1, 1) for each in (data.mean, data.std))

    def on_device(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.array(split.inputs)).to(device).permute(0, 3, 1, 2)
        normalised = ((images / 255 - mean) / std).contiguous()
        return normalised, torch.from_numpy(np.array(split.targets)).to(device)

    (images, labels), (valid_images, valid_labels) = on_device(data.train), on_device(data.valid)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    seconds = math.inf
    for _ in range(2):
        began = time.perf_counter()
        for batch in torch.split(torch.randperm(len(labels), device=device), BATCH_SIZE):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        batches = zip(torch.split(valid_images, 250), torch.split(valid_labels, 250), strict=True)
        evaluate(model, list(batches), device)  # waits for the device
        seconds = time.perf_counter() - began
    return len(labels) / seconds


def plain_script(source: Path, n_valid: int, n_train: int, device: str) -> float:
    """Images a second of one epoch of one point of `plain_script.py`."""
    # of the training images alone, whatever hpo validates on: a tenth more or less changes no rate
    n_files = len(files_of(source / "train")[0])
    n_valid = min(n_valid, n_files // 5)
    n_train = min(n_train, n_files - n_valid - 2 * N_TEST)  # scikit-learn leaves some over
    with tempfile.TemporaryDirectory(prefix="hpo-gpu-") as images:
        sample(source, Path(images), n_train=n_train, n_valid=n_valid)
        script = Path(__file__).with_name("plain_script.py")
        command = [sys.executable, str(script), images, "--epochs", "1", "--points", "0", "--device", device]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(n_train / json.loads(done.stdout)["seconds"])


Contenders = dict[tuple[str, ...], Callable[[], float]]
"""What is measured, by what its row is named by."""


def of_trial(folder: Path, data: TrainingData, device: str) -> Contenders:
    """One trial beside what one would write."""
    shipped = load_recipe("constrained-cnn").recipe
    contenders: Contenders = {
        # first, with PyTorch's own settings (TF32 in convolutions, whatever is quickest): hpo changes them
        (EAGER,): lambda: eager_loop(network(), data, device),
        (PLAIN,): lambda: plain_script(folder, len(data.valid), len(data.train), device),
    }
    for precision, kernels in _arithmetics(device):
        call = partial(trial_of_hpo, shipped, data, device, precision, kernels)
        contenders[(f"hpo, {precision}, {kernels} kernels",)] = call
    return contenders


def of_slots(data: TrainingData, device: str) -> Contenders:
    """The first epoch of a trial whose steps are to be recorded, later ones, and the first in a warm slot."""
    recipe = load_recipe("constrained-cnn").recipe
    precision, kernels = _arithmetics(device)[0]
    slots = Slots()

    def epochs(first: int, last: int, **changed: Any) -> float:
        fused.use(kernels)
        config = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "epochs": last, **changed}
        trained = train(
            recipe, recipe.schema.complete(config), data, [0], device=device, precision=precision, slots=slots
        )
        seconds = [epoch.seconds for epoch in trained][first - 1 :]
        return len(seconds) * len(data.train) / sum(seconds)

    return {
        ("epoch 1, nothing recorded in this process",): lambda: epochs(1, 1),
        ("epoch 1 of another shape",): lambda: epochs(1, 1, conv1_channels=16),
        ("epochs 3 and 4",): lambda: epochs(3, 4),
        ("epoch 1 in a warm slot",): lambda: epochs(1, 1, learning_rate=2e-4, l2=1e-4),
    }


def of_recipes(data: TrainingData, device: str) -> Contenders:
    """A user's own recipes, each beside its eager loop."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
    recipes = {name: load_recipe(source).recipe for name, source in OWN_RECIPES.items()}

    def eager(recipe: Recipe) -> float:
        params = recipe.params_of(recipe.schema.complete({}))
        model = build(recipe, params, data.info, 0).to(memory_format=torch.contiguous_format)
        return eager_loop(model, data, device)

    contenders: Contenders = {(name, EAGER): partial(eager, recipe) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        for precision, kernels in _arithmetics(device):
            call = partial(trial_of_hpo, recipe, data, device, precision, kernels)
            contenders[name, f"hpo, {precision}, {kernels} kernels"] = call
    return contenders


def _arithmetics(device: str) -> list[tuple[str, str]]:
    """Precision and kernels: what hpo takes by itself, the same with plain kernels, and fp32."""
    precision = resolve_precision("auto", device)
    kernels = fused.resolve_kernels("auto", device, precision)
    return list(dict.fromkeys([(precision, kernels), (precision, "plain"), ("fp32", kernels)]))


def rows(contenders: Contenders, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Measures one after the other; one that fails leaves the others their turn."""
    speeds: dict[tuple[str, ...], float] = {}
    for names, contender in contenders.items():
        try:
            speeds[names] = contender()
            outcome = "done"
        except Exception as error:
            traceback.print_exc()
            outcome = f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"
        yield {
            **dict(zip(columns, names, strict=True)),
            "images_per_second": round(speeds[names]) if names in speeds else "",
            "times_eager_loop": _ratio(speeds, names, (*names[:-1], EAGER)),
            **({"times_plain_script": _ratio(speeds, names, (PLAIN,))} if (PLAIN,) in contenders else {}),
            "outcome": outcome,
        }


def _ratio(speeds: Mapping[tuple[str, ...], float], ours: tuple[str, ...], theirs: tuple[str, ...]) -> Any:
    return speeds[ours] / speeds[theirs] if ours in speeds and theirs in speeds else ""


def main() -> None:
    """A line a row."""
    # says where it stands when it has to be stopped, and then ends as usual
    faulthandler.register(signal.SIGTERM, chain=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["trial", "slots", "recipes"])
    parser.add_argument("--device", default="cuda:0")
    for name in LIMITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    options = parser.parse_args()
    limits = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    source = f"folder:{options.folder}"
    _, data = prepared(Options.from_given({"data": source, **limits}), source)
    columns: tuple[str, ...] = ("contender",)
    if options.part == "trial":
        contenders = of_trial(options.folder, data, options.device)
    elif options.part == "slots":
        contenders = of_slots(data, options.device)
    else:
        contenders, columns = of_recipes(data, options.device), ("recipe", "contender")
    print(json.dumps([dict(zip(columns, names, strict=True)) for names in contenders]), flush=True)
    for row in rows(contenders, columns):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
