"""What a GPU makes of the report: one trial, sixteen at once, all six studies.

    python examples/benchmarks/gpu.py PATH [--parts trial together report] [--limit-train N] [--epochs 11]

Goals, not yet measured, for one H200 and the full data: one trial at batch 20 trains at least 3 times the
images a second of an eager loop over images that are on the GPU too, and 15 times those of the plain script;
the sixteen points of `network-setup` at once take a third of the time that they take one after the other; the
whole report (six studies and the final stage with one seed, 11 epochs, nothing pruned) trains in under 40 s.

PATH is an image folder as `hpo run --data folder:PATH` takes it. Validation after each epoch is included
everywhere, decoding and the start of processes nowhere; CUDA's own start is in the parts together and report.
CSV on stdout. Each is run once: compare the ratios of one run of this file, on a machine that does nothing
else. With `--device cpu` the same calls run without graphs and streams, which shows that they run and nothing
more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from plain_script import evaluate, network
from sample import N_TEST, files_of, sample
from tables import Table, heading

import hpo
from hpo.data import Split, TrainingData
from hpo.execution.plan_data import training_data
from hpo.planning.manifest import Options
from hpo.training.devices import resolve_precision
from hpo.training.loop import train
from hpo.training.registry import load_recipe

BATCH_SIZE, LEARNING_RATE = 20, 1e-4
LIMITS = ("limit_train", "limit_valid")


def trial_of_hpo(data: TrainingData, device: str, precision: str) -> float:
    """Images a second of a seed's third and fourth epoch: the first two record the graphs."""
    recipe = load_recipe("constrained-cnn").recipe
    config = recipe.schema.complete({"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "epochs": 4})
    epochs = list(train(recipe, config, data, [0], device=device, precision=precision))
    return 2 * len(data.train) / sum(epoch.seconds for epoch in epochs[2:])


def eager_loop(data: TrainingData, device: str) -> float:
    """Images a second of the second epoch of a loop as one would write it, all images on the device."""
    mean, std = (torch.as_tensor(each, device=device).view(1, -1, 1, 1) for each in (data.mean, data.std))

    def on_device(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.array(split.inputs)).to(device).permute(0, 3, 1, 2)
        return (images / 255 - mean) / std, torch.from_numpy(np.array(split.targets)).to(device)

    (images, labels), (valid_images, valid_labels) = on_device(data.train), on_device(data.valid)
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(2):
        began = time.perf_counter()
        for batch in torch.split(torch.randperm(len(labels), device=device), BATCH_SIZE):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        batches = zip(torch.split(valid_images, 250), torch.split(valid_labels, 250), strict=True)
        evaluate(model, list(batches), device)
        seconds = time.perf_counter() - began
    return len(labels) / seconds


def plain_script(folder: Path, n_images: int, device: str) -> float:
    """Images a second of one epoch of one point of `plain_script.py`."""
    script = Path(__file__).with_name("plain_script.py")
    command = [sys.executable, str(script), str(folder), "--epochs", "1", "--points", "0", "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(n_images / json.loads(done.stdout)["seconds"])


def training_seconds(out: Path, *arguments: str) -> float:
    """Runs `hpo run` with these arguments; seconds from its first claim to its last result."""
    command = [sys.executable, "-m", "hpo", "run", "--no-pruning", "--out", str(out), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    plan = hpo.find_plan(out)
    trials = [trial for name in plan.all_names for trial in plan.trials(name) if trial.datetime_complete]
    begin = min(each.datetime_start for each in trials if each.datetime_start)
    end = max(each.datetime_complete for each in trials if each.datetime_complete)
    return (end - begin).total_seconds()


def measure_trial(folder: Path, options: argparse.Namespace, work: Path, table: Table) -> None:
    """One trial beside what one would write."""
    limits = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    data = training_data(Options.from_given({"data": f"folder:{folder}", **limits}))
    precision = resolve_precision("auto", options.device)
    contenders: dict[str, Callable[[], float]] = {
        # first, with PyTorch's own settings (TF32 in convolutions, whatever is quickest): hpo changes them
        "eager loop, resident images, fp32": lambda: eager_loop(data, options.device),
        f"hpo, {precision}": lambda: trial_of_hpo(data, options.device, precision),
        "hpo, fp32": lambda: trial_of_hpo(data, options.device, "fp32"),
    }
    images = work / "sample"
    # of the training images alone, whatever hpo validates on: a tenth more or less changes no rate
    n_files = len(files_of(folder / "train")[0])
    n_valid = min(len(data.valid), n_files // 5)
    n_train = min(len(data.train), n_files - n_valid - 2 * N_TEST)  # scikit-learn leaves some over
    sample(folder, images, n_train=n_train, n_valid=n_valid)
    contenders["plain script, DataLoader, fp32"] = lambda: plain_script(images, n_train, options.device)
    speeds = {name: contender() for name, contender in contenders.items()}
    ours = speeds[f"hpo, {precision}"]
    for name, speed in speeds.items():
        table.add({"contender": name, "images_per_second": round(speed), "hpo_is_faster_by": ours / speed})


def main() -> None:
    """A table a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--parts", nargs="+", choices=["trial", "together", "report"], default=["trial", "together", "report"]
    )
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="of the part together")
    parser.add_argument("--epochs", type=int, default=11, help="of the part report; together has two")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--limit-valid", type=int)
    options = parser.parse_args()
    heading("one run", device=options.device)
    table = Table()
    common = [f"--data=folder:{options.folder}", f"--device={options.device}"]
    for name in LIMITS:
        if getattr(options, name) is not None:
            common.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    with tempfile.TemporaryDirectory(prefix="hpo-gpu-") as folder:
        work = Path(folder)
        os.environ.setdefault("HPO_CACHE", str(work / "cache"))
        if "trial" in options.parts:
            measure_trial(options.folder, options, work, table)
        if "together" in options.parts:
            seconds: list[float] = []
            for count in options.at_once:
                arguments = ["--epochs=2", "--workers=1", f"--trials-per-device={count}", "network-setup"]
                seconds.append(training_seconds(work / f"together-{count}", *common, *arguments))
                table.add(
                    {
                        "trials_at_once": count,
                        "seconds": seconds[-1],
                        "faster_than_the_first_by": seconds[0] / seconds[-1],
                    }
                )
        if "report" in options.parts:
            took = training_seconds(
                work / "report", *common, f"--epochs={options.epochs}", "--final-seeds=1", "--workers=1"
            )
            table.add({"epochs": options.epochs, "training_seconds": took})


if __name__ == "__main__":
    main()
