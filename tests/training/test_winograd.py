"""Winograd's convolutions beside PyTorch's, through their public faces and through training."""

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpo.data import TrainingData
from hpo.errors import InputError
from hpo.training import fused, winograd
from hpo.training.fused import resolve_kernels
from hpo.training.loop import state_of, train
from tests.support.recipes import RECIPE
from tests.support.toy_images import toy_data

CONFIG = RECIPE.schema.complete(
    {"conv1_channels": 32, "conv2_channels": 64, "hidden_units": 8, "batch_size": 7, "epochs": 2}
)
"""Its second convolution is one that Winograd's kernels compute, on images of 16 × 16 pixels and more."""


LARGE, SMALL = (toy_data(n_train=30, n_valid=12, shape=(side, side, 3)) for side in (32, 8))


@pytest.fixture
def winograds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_in_use", "winograd")


def copied(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def trained(data: TrainingData, resume: Any = None, **changed: Any) -> dict[str, Tensor]:
    """The weights in the end."""
    *_, last = train(RECIPE, {**CONFIG, **changed}, data, [3], resume=resume)
    return last.learners[0].network.state_dict()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


sizes = st.integers(1, 45)  # of one tile, and of more than are transformed at once


@given(
    n=st.integers(1, 11),
    height=sizes,
    width=sizes,
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.sampled_from([5, 7]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_those_of_a_plain_convolution(
    n: int, height: int, width: int, channels: tuple[int, int], size: int, has_bias: bool, seed: int
) -> None:
    inputs = [
        drawn(seed, n, channels[0], height, width),
        drawn(seed + 1, channels[1], channels[0], size, size),
    ]
    inputs += [drawn(seed + 2, channels[1])] if has_bias else []
    gradient = drawn(seed + 3, n, channels[1], height, width)
    found = []
    for is_winograd in (False, True):
        mine = [
            each.clone().to(torch.float32 if is_winograd else torch.float64).requires_grad_()
            for each in inputs
        ]
        bias = mine[2] if has_bias else None
        if is_winograd:
            output = winograd.conv2d(mine[0], mine[1], bias)
        else:
            output = F.conv2d(mine[0], mine[1], bias, padding=size // 2)
        output.backward(gradient.to(output.dtype))  # type: ignore[no-untyped-call]
        found.append([output, *(each.grad for each in mine if each.grad is not None)])
    assert len(found[0]) == len(inputs) + 1
    for plain, ours in zip(*found, strict=True):
        assert ours.shape == plain.shape
        error = (ours - plain).abs().max() / plain.abs().max()
        assert error < (1e-3 if size == 7 else 1e-4)


def test_the_same_images_are_convolved_to_the_same_bits() -> None:
    inputs, weight = drawn(0, 10, 32, 16, 16), drawn(1, 64, 32, 5, 5)
    together, again = (winograd.conv2d(inputs, weight, None) for _ in range(2))
    assert torch.equal(together, again)
    assert torch.equal(together[5:], winograd.conv2d(inputs[5:], weight, None))


@pytest.mark.parametrize(
    ("images", "weight", "pays"),
    [
        ((20, 32, 16, 16), (128, 32, 5, 5), True),
        ((20, 64, 8, 8), (64, 64, 7, 7), True),
        ((20, 32, 16, 16), (128, 32, 3, 3), False),
        ((20, 3, 32, 32), (64, 3, 5, 5), False),
        ((20, 32, 16, 16), (32, 32, 5, 5), False),
        ((20, 32, 4, 4), (128, 32, 5, 5), False),  # of the handwritten digits
        ((20, 32, 9, 9), (128, 32, 5, 5), False),
    ],
)
def test_it_is_used_where_it_pays(images: tuple[int, ...], weight: tuple[int, ...], pays: bool) -> None:
    assert winograd.pays(torch.empty(images), torch.empty(weight)) == pays
    assert not winograd.pays(
        torch.empty(images, dtype=torch.bfloat16), torch.empty(weight, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_training_ends_near_where_plain_training_ends(
    monkeypatch: pytest.MonkeyPatch, winograds: None, batch_norm: bool, activation: str
) -> None:
    calls, conv2d = [], winograd.conv2d

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return conv2d(*arguments)

    monkeypatch.setattr(winograd, "conv2d", counted)
    changed = {"batch_norm": batch_norm, "activation": activation}
    # steps of a fixed length, as Adam makes a whole step of a gradient's last bit
    changed |= {"optimizer": "sgd", "learning_rate": 0.005}
    by_winograd = trained(LARGE, **changed)
    assert len(calls) == 2 * 5  # every step of both epochs, and no evaluation
    fused.use("plain")
    plain = trained(LARGE, **changed)
    assert len(calls) == 2 * 5
    assert any(not torch.equal(by_winograd[name], plain[name]) for name in plain)
    assert all(torch.allclose(by_winograd[name], plain[name], atol=1e-4) for name in plain)


def test_small_images_train_to_the_bit_as_with_plain_kernels(winograds: None) -> None:
    by_winograd = trained(SMALL)
    fused.use("plain")
    plain = trained(SMALL)
    assert all(torch.equal(by_winograd[name], plain[name]) for name in plain)


def test_training_goes_on_to_the_bit_from_a_checkpoint(winograds: None) -> None:
    epochs = train(RECIPE, CONFIG, LARGE, [3])
    state = copied(state_of(next(epochs)))
    ends = next(epochs).learners[0].network.state_dict()
    resumed = trained(LARGE, resume=state)
    assert all(torch.equal(ends[name], resumed[name]) for name in ends)


def test_they_are_chosen_by_name_and_by_themselves_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert RECIPE.has_winograd(LARGE.info)
    assert not RECIPE.has_winograd(SMALL.info)
    assert resolve_kernels("auto", "cpu", "fp32", 1, True) == "winograd"
    assert resolve_kernels("auto", "cpu", "fp32", 2, True) == "plain"
    assert resolve_kernels("winograd", "cpu", "fp32", 2, True) == "winograd"
    assert resolve_kernels("auto", "cpu", "bf16", 1, True) == "plain"
    assert resolve_kernels("auto", "cpu", "fp32", 1, False) == "plain"
    assert resolve_kernels("plain", "cpu", "fp32", 1, True) == "plain"
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert resolve_kernels("auto", "cpu", "fp32", 1, True) == "plain"


@pytest.mark.parametrize(
    ("device", "precision", "has_winograd", "words"),
    [
        ("cuda:0", "fp32", True, "they are for CPUs"),
        ("cpu", "bf16", True, r"they compute in fp32 \(--precision fp32\), and the plan in bf16"),
        ("cpu", "fp32", False, "the recipe has no convolutions for them, on images of this size"),
    ],
)
def test_they_are_refused_by_name_where_they_have_no_place(
    device: str, precision: str, has_winograd: bool, words: str
) -> None:
    with pytest.raises(InputError, match=f"kernels = 'winograd': {words}; use 'plain' or 'auto'"):
        resolve_kernels("winograd", device, precision, 1, has_winograd)
