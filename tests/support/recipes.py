"""The shipped recipe, and small ones that use what it leaves alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import hpo
from hpo.data.dataset import DataInfo, TrainingData
from hpo.space.parameters import Direction
from hpo.training.recipe import Epoch, Layer, LoopContext, Recipe
from hpo.training.registry import NamedRecipe, load_recipe

CNN = load_recipe("constrained-cnn")
RECIPE = CNN.recipe
SCHEMA = RECIPE.schema
SMALL_CNN: dict[str, Any] = {"conv1_channels": 4, "conv2_channels": 8, "hidden_units": 16, "batch_size": 8}


class MlpParams(hpo.Params):
    """Parameters of every type."""

    depth: int = hpo.Field(1, ge=1, le=8)
    width: int = hpo.Field(16, ge=1, le=4096)
    dropout: float = hpo.Field(0.0, ge=0, lt=1)
    bias: bool = True
    activation: Literal["relu", "tanh"] = "relu"


class Mlp(Recipe):
    """A perceptron for inputs of any shape, classes and numbers alike."""

    Params = MlpParams

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        kind = {"relu": nn.ReLU, "tanh": nn.Tanh}[params.activation]
        sizes = [math.prod(data.input_shape), *[params.width] * params.depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, params.bias), kind(), nn.Dropout(params.dropout)]
        return nn.Sequential(*layers, nn.Linear(params.width, data.n_outputs))


class NoisyParams(MlpParams):
    """Dropout, noise and a schedule are on unless a test says otherwise."""

    dropout: float = hpo.Field(0.3, ge=0, lt=1)
    noise: float = hpo.Field(0.1, ge=0, le=1)
    schedule: Literal["constant", "cosine", "one-cycle"] = "cosine"


class Noisy(Recipe):
    """Dropout, batch norm, an augmentation of its own and a schedule: all that draws or keeps a state."""

    Params = NoisyParams

    def build(self, params: NoisyParams, data: DataInfo) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(data.input_shape), params.width),
            nn.BatchNorm1d(params.width),
            nn.ReLU(),
            nn.Dropout(params.dropout),
            nn.Linear(params.width, data.n_outputs),
        )

    def augment(
        self, params: NoisyParams, inputs: Tensor, targets: Tensor, epoch: int, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        return inputs + params.noise * torch.randn(inputs.shape, generator=generator), targets

    def layers(self, model: Any) -> Mapping[str, Layer]:
        return {"hidden": Layer(model[1].weight, model[2].bias, model[3])}


class Regression(Mlp):
    """Numbers to predict."""

    metrics: ClassVar[Mapping[str, Direction]] = {"loss": "minimize", "mae": "minimize", "r2": "maximize"}


class Frozen(Mlp):
    """A first layer that stays as it is, weights that nothing uses, an optimizer with two rates."""

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        network = super().build(params, data)
        network.get_submodule("1").requires_grad_(False)
        network.register_parameter("unused", nn.Parameter(torch.ones(3)))
        return network

    def optimizer(self, params: MlpParams, model: nn.Module) -> torch.optim.Optimizer:
        *_, last = model.children()
        groups: list[dict[str, Any]] = [
            {"params": list(model.parameters())[:-2]},
            {"params": last.parameters(), "lr": 0.1},
        ]
        return torch.optim.AdamW(groups, lr=params.learning_rate, weight_decay=0.1)


class Tally(nn.Module):
    """Keeps count of the inputs that it was trained on, as a running statistic does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += len(inputs)
        return inputs


class Counting(Mlp):
    """A network with a buffer that training changes."""

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        return nn.Sequential(Tally(), super().build(params, data))


class Words(Recipe):
    """Takes integers: an embedding of each, and their mean."""

    def build(self, params: hpo.Params, data: DataInfo) -> nn.Module:
        return nn.EmbeddingBag(200, data.n_outputs)


class LoopRecipeParams(hpo.LoopParams):
    """Of a loop of its own."""

    rate: float = hpo.Field(0.05, gt=0, le=1)


class OwnLoop(Recipe):
    """A perceptron in NumPy whose state is arrays; it draws from NumPy's own generator, seeded by hpo."""

    Params = LoopRecipeParams
    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "maximize"}

    def train(
        self,
        params: LoopRecipeParams,
        data: TrainingData,
        seed: int,
        context: LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[Epoch]:
        inputs = data.train.inputs.reshape(len(data.train), -1) / 255
        weights = np.zeros((inputs.shape[1], data.n_classes)) if resume is None else resume["weights"]
        done = 0 if resume is None else resume["epoch"]
        for epoch in range(done + 1, params.epochs + 1):
            for row in np.random.permutation(len(inputs)):
                label = data.train.targets[row]
                scores = np.exp(inputs[row] @ weights)
                error = np.eye(data.n_classes)[label] - scores / scores.sum()
                weights = weights + params.rate * np.outer(inputs[row], error)
            yield Epoch(
                {"accuracy": accuracy(weights, data.valid.inputs, data.valid.targets)},
                state={"weights": weights, "epoch": epoch},
            )

    def test(self, params: LoopRecipeParams, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        return {"accuracy": accuracy(state["weights"], data.inputs, data.targets)}


def accuracy(weights: Any, inputs: Any, targets: Any) -> float:
    """Return the share of inputs that linear weights get right."""
    outputs = inputs.reshape(len(inputs), -1) / 255 @ weights
    return float((outputs.argmax(axis=1) == targets).mean())


def named(recipe: Recipe) -> NamedRecipe:
    """Return a recipe as if it had been asked for by name."""
    return NamedRecipe(type(recipe).__name__, recipe)
