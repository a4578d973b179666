"""Which steps are recorded as CUDA graphs, and that recorded ones draw what single steps would."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpo.data.dataset import DataInfo
from hpo.training import fused, loop
from hpo.training.learner import build, graph_hindrance
from hpo.training.loop import CHUNK_STEPS, train
from hpo.training.randomness import drawing_on_the_device
from hpo.training.recipe import Recipe
from tests.support.recipes import RECIPE, Mlp, MlpParams, Noisy
from tests.support.toy_images import toy_data

DATA = toy_data(n_train=2 * (3 * CHUNK_STEPS + 1))
CONFIG: dict[str, Any] = {"batch_size": 2, "epochs": 2, "learning_rate": 3e-3, "dropout": 0.3}


class Block(nn.Module):
    """A module of a user's own, with dropout in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, width), nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.dropout(self.linear(inputs))  # type: ignore[no-any-return]


class Blocks(Mlp):
    """Says nothing of its draws."""

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        *first, last = super().build(params, data).children()
        return nn.Sequential(*first, Block(params.width), last)


class DeviceBlocks(Blocks):
    """Draws on the device alone, and says so."""

    draws_in_training: ClassVar[bool | Literal["device"]] = "device"


class HookedMlp(Mlp):
    """Has a hook on one of PyTorch's modules."""

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        network = super().build(params, data)
        network.get_submodule("1").register_forward_hook(lambda module, given, output: output)
        return network


def with_forward(linear: nn.Module) -> None:
    linear.forward = lambda inputs: inputs


def with_activation(linear: nn.Module) -> None:
    linear.add_module("extra", nn.TransformerEncoderLayer(4, 2, 4, activation=lambda inputs: inputs))


def with_activation_of_torch(linear: nn.Module) -> None:
    linear.add_module("extra", nn.TransformerEncoderLayer(4, 2, 4, activation=nn.functional.gelu))
    linear.compile()


class ChangedMlp(Mlp):
    """Has something done to its first linear layer."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        self._change = change

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        network = super().build(params, data)
        self._change(network.get_submodule("1"))
        return network


class OwnLoss(Mlp):
    """Says nothing of its draws."""

    def loss(self, params: MlpParams, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


class Recurrent(Mlp):
    """A recurrent network, whose dropout is cuDNN's."""

    draws_in_training: ClassVar[bool | Literal["device"]] = "device"

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LSTM(4, 4, 2, dropout=params.dropout))


def hindrance(recipe: Recipe, **params: Any) -> str | None:
    complete = recipe.params_of(recipe.schema.complete(params))
    return graph_hindrance(recipe, build(recipe, complete, DATA.info, 0))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (RECIPE, None),
        (Mlp(), None),  # of PyTorch's modules alone, which draw on the device
        (Blocks(), "Block may draw random numbers; say draws_in_training = False"),
        (DeviceBlocks(), None),
        (HookedMlp(), "a hook of Linear may draw random numbers"),
        (OwnLoss(), "loss may draw random numbers"),
        (Noisy(), "augment draws numbers at every step"),
        (Recurrent(), "dropout of LSTM keeps a state"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Recipe) else None,
)
def test_what_is_recorded_follows_from_what_may_draw(recipe: Recipe, words: str | None) -> None:
    found = hindrance(recipe, **({"dropout": 0.3} if "dropout" in recipe.schema.parameters else {}))
    assert (found is None) if words is None else (words in (found or ""))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_forward, "forward of Linear"),
        (with_activation, "activation of TransformerEncoderLayer"),
        (with_activation_of_torch, None),
        (lambda linear: nn.utils.parametrizations.weight_norm(linear), None),
        (lambda linear: linear.register_forward_pre_hook(lambda *_: None), "a hook of Linear"),
        (lambda linear: linear.register_full_backward_hook(lambda *_: None), "a hook of Linear"),
        (lambda linear: linear.register_full_backward_pre_hook(lambda *_: None), "a hook of Linear"),
        (lambda linear: linear.weight.register_hook(lambda gradient: gradient), "a hook of Linear"),
        (
            lambda linear: linear.weight.register_post_accumulate_grad_hook(lambda weight: None),
            "a hook of Linear",
        ),
    ],
)
def test_a_users_own_function_in_pytorchs_modules_may_draw(
    change: Callable[[Any], object], words: str | None
) -> None:
    found = hindrance(ChangedMlp(change))
    assert found is None if words is None else (found or "").startswith(f"{words} may draw random numbers")


def test_a_recurrent_network_without_dropout_is_recorded() -> None:
    assert hindrance(Recurrent(), dropout=0.0) is None


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda n: random.random()])
def test_what_draws_on_the_cpu_cannot_be_recorded(
    draw: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = drawing_on_the_device(lambda n: draw(n) if n else None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    checked(1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    checked(0)
    with pytest.raises(RuntimeError, match="training draws random numbers on the CPU"):
        checked(1)


REFUSAL = "CUDA error: operation not permitted when stream is capturing"
"""PyTorch raises it as an error of the device, which then works on all the same."""


class Refusing:
    """In place of a graph: like a GPU that cannot record, after what it has tried has drawn numbers."""

    error: ClassVar[Exception]

    def __init__(self, function: Callable[..., Any], device: str) -> None:
        self._function, self._n_calls = function, 0

    def __call__(self, *inputs: Tensor) -> Any:
        self._n_calls += 1
        if self._n_calls > 1:
            torch.rand(7)
            raise self.error
        return self._function(*inputs)


def trained(recipe: Recipe, device: str = "cpu", **changed: Any) -> tuple[list[Any], tuple[str, ...]]:
    """Weights of two seeds and losses after every epoch; what was said."""
    config = recipe.schema.complete({**CONFIG, **changed})
    found: list[Any] = []
    notes: tuple[str, ...] = ()
    for epoch in train(recipe, config, DATA, [4, 5], device=device):
        weights = [copy.deepcopy(learner.network.state_dict()) for learner in epoch.learners]
        found += [[each.train_loss for each in epoch.seeds], *weights]
        notes = epoch.notes
    return found, notes


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return bool(one == other)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.cuda.AcceleratorError(f"{REFUSAL}\nmore"), REFUSAL),
        (NotImplementedError(), "NotImplementedError"),
    ],
    ids=["the device", "the recipe"],
)
def test_where_recording_fails_plain_steps_draw_what_they_would_have_drawn(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    plain, _ = trained(Mlp())
    monkeypatch.setattr(loop, "is_cuda", lambda device: True)
    monkeypatch.setattr(Refusing, "error", error, raising=False)
    monkeypatch.setattr(loop, "CudaGraph", Refusing)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    found, notes = trained(Mlp())
    assert notes == (f"steps are not recorded as CUDA graphs: {why}",)
    assert all(same(*pair) for pair in zip(plain, found, strict=True))


@pytest.fixture
def kernels() -> Iterator[Callable[[str], None]]:
    yield fused.use
    fused.use("plain")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["plain", "triton"])
@pytest.mark.parametrize("recipe", [Mlp(), DeviceBlocks()], ids=lambda recipe: type(recipe).__name__)
def test_recorded_steps_draw_what_single_steps_draw(
    recipe: Recipe, name: str, kernels: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels(name)
    recorded, notes = trained(recipe, "cuda:0")
    assert notes == ()
    monkeypatch.setattr(loop, "CudaGraph", lambda function, device: function)
    single, _ = trained(recipe, "cuda:0")
    assert all(same(*pair) for pair in zip(recorded, single, strict=True))
    without, _ = trained(recipe, "cuda:0", dropout=0.0)
    assert recorded[0] != without[0]


class Jittering(Mlp):
    """Draws a factor by Python's generator in every step, and says that it draws on the device."""

    draws_in_training: ClassVar[bool | Literal["device"]] = "device"

    def loss(self, params: MlpParams, outputs: Tensor, targets: Tensor) -> Tensor:
        return random.random() * nn.functional.cross_entropy(outputs, targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recipe_that_draws_on_the_cpu_after_all_takes_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found, notes = trained(Jittering(), "cuda:0")
    assert notes == ("steps are not recorded as CUDA graphs: training draws random numbers on the CPU",)
    monkeypatch.setattr(loop, "CudaGraph", lambda function, device: function)
    single, _ = trained(Jittering(), "cuda:0")
    assert all(same(*pair) for pair in zip(found, single, strict=True))


class Syncing(Mlp):
    """PyTorch's modules alone, one of which reads a number from the device in every step."""

    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        *first, last = super().build(params, data).children()
        return nn.Sequential(*first, nn.BatchNorm1d(params.width, momentum=None), last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_goes_on_in_plain_steps_where_the_device_refuses_to_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, notes = trained(Syncing(), "cuda:0")
    assert len(notes) == 1
    assert notes[0].startswith("steps are not recorded as CUDA graphs: ")
    monkeypatch.setattr(loop, "CudaGraph", lambda function, device: function)
    single, _ = trained(Syncing(), "cuda:0")
    assert all(same(*pair) for pair in zip(found, single, strict=True))
