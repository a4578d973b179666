"""What a user's own recipe costs beside the shipped one, and beside a plain loop of its own: CPU, one thread.

    python examples/benchmarks/recipes.py [--images 2000] [--batch-size 40] [--rounds 5]

Claims: the original's network written as a user's recipe trains at 95 % or more of the images a second of the
shipped recipe; and a residual network as a recipe (SGD with momentum, cosine schedule, flips, label
smoothing) trains no slower than the same in a plain eager loop over images that are normalised and in memory.
Each contender trains an epoch of made-up images of 32×32 pixels and evaluates a fifth as many; the first
epoch warms up and is not counted. Rounds take the contenders in turn; medians, and the median over rounds of
the ratio to the contender named beside it. CSV on stdout.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tables import Table, heading
from torch import Tensor, nn

import hpo
from hpo.data import Split
from hpo.training.loop import train
from hpo.training.registry import load_recipe
from hpo.training.schedules import SCHEDULES

N_CLASSES, SIDE = 10, 32
EPOCHS = 1000
"""More than are ever trained: the schedule needs an end."""
RATE = 0.05
RESIDUAL = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "learning_rate": RATE,
    "schedule": "cosine",
    "flip": True,
    "label_smoothing": 0.1,
}


class OwnCnn(hpo.Recipe):
    """The original's network, layer by layer, as somebody writes it who has no eye for memory formats."""

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return two convolutions and two linear layers."""
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(32, 128, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128 * (SIDE // 4) ** 2, 128), nn.ReLU()),
            nn.Linear(128, data.n_classes),
        )


class Block(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute (n, channels, h, w) from the same."""
        return F.relu(x + self.body(x))


def residual_network() -> nn.Module:
    """Two stages of one block each."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Block(32)),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), Block(64)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, N_CLASSES)),
    )


class Residual(hpo.Recipe):
    """The residual network as a recipe."""

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return the network."""
        return residual_network()


def made_up(n_images: int) -> hpo.TrainingData:
    """Images of noise, and labels."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Split:
        images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        return Split(images, rng.integers(0, N_CLASSES, count))

    names = tuple(f"class {number}" for number in range(N_CLASSES))
    mean, std = np.full(3, 0.5, dtype=np.float32), np.full(3, 0.25, dtype=np.float32)
    info = hpo.DataInfo((3, SIDE, SIDE), names, N_CLASSES)
    return hpo.TrainingData(part(n_images), part(n_images // 5), mean, std, info, "made up", "0")


def as_recipe(recipe: hpo.Recipe, data: hpo.TrainingData, **params: Any) -> Iterator[None]:
    """Yield after every epoch of a recipe."""
    config = recipe.schema.complete({**params, "epochs": EPOCHS})
    for _ in train(recipe, config, data, [0]):
        yield


def plain_loop(data: hpo.TrainingData, batch_size: int) -> Iterator[None]:
    """Yield after every epoch of a loop as a person writes it who knows what is slow."""

    def tensors(split: Split) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(split.inputs).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(split.targets)

    (images, labels), (valid_images, valid_labels) = tensors(data.train), tensors(data.valid)
    network = residual_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    n_steps = len(images) // batch_size
    for epoch in range(EPOCHS):
        network.train()
        for step, batch in enumerate(torch.split(torch.randperm(len(images)), batch_size)):
            progress = (epoch * n_steps + step) / (EPOCHS * n_steps)
            optimizer.param_groups[0]["lr"] = RATE * SCHEDULES["cosine"](progress)
            x = images[batch]
            x = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, x.flip(3), x)
            loss = F.cross_entropy(network(x), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            parts = [network(part).argmax(dim=1) for part in torch.split(valid_images, 250)]
            _ = (torch.cat(parts) == valid_labels).float().mean().item()
        yield


def main() -> None:
    """A line a contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    heading(f"one thread, fp32, {options.images} images, {options.rounds} rounds")
    torch.set_num_threads(1)
    data, batch = made_up(options.images), {"batch_size": options.batch_size}
    shipped = load_recipe("constrained-cnn").recipe
    contenders: dict[str, tuple[Callable[[], Iterator[None]], str]] = {
        "shipped": (lambda: as_recipe(shipped, data, **batch), "shipped"),
        "the same network, a user's recipe": (lambda: as_recipe(OwnCnn(), data, **batch), "shipped"),
        "residual, plain loop": (lambda: plain_loop(data, options.batch_size), "residual, plain loop"),
        "residual, a recipe": (
            lambda: as_recipe(Residual(), data, **batch, **RESIDUAL),
            "residual, plain loop",
        ),
    }
    loops = {name: begin() for name, (begin, _) in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds + 1):
        for name, loop in loops.items():
            began = time.perf_counter()
            next(loop)
            seconds[name].append(time.perf_counter() - began)
    table = Table()
    for name, (_, beside) in contenders.items():
        ratios = [theirs / ours for ours, theirs in zip(seconds[name][1:], seconds[beside][1:], strict=True)]
        speed = options.images / median(seconds[name][1:])
        table.add(
            {"contender": name, "images_per_second": round(speed), "beside": beside, "ratio": median(ratios)}
        )


if __name__ == "__main__":
    main()
