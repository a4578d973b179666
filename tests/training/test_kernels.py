"""Triton's kernels and what uses them, on a GPU where there is one, or else by Triton's interpreter."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hpo.errors import InputError
from hpo.space.parameters import Params
from hpo.training import fused, loop
from hpo.training.fused import resolve_kernels, triton_hindrance
from hpo.training.learner import Learner, build
from hpo.training.loop import state_of
from hpo.training.optimizers import OPTIMIZERS
from hpo.training.recipe import Recipe
from hpo.training.slots import Slots, structure_of
from tests.support.recipes import RECIPE, SCHEMA, SMALL_CNN
from tests.support.toy_images import toy_data

pytest.importorskip("triton")
from hpo.training import kernels
from hpo.training.flat_optimizer import FlatOptimizer, Weight, can_be_flat

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
DATA = toy_data(n_train=48, n_valid=12)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CONFIG = {**SMALL_CNN, "epochs": 2, "learning_rate": 3e-3, "batch_size": 20}


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_in_use", "triton")


def quarters(seed: int, *shape: int) -> Tensor:
    """Sums of them are exact in bfloat16, which the interpreter rounds otherwise; and many are equal."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (4 * drawn).round().to(DEVICE) / 4


@few
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(2, 9), st.integers(2, 9), DTYPES, st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_pooling_has_the_values_and_gradients_of_the_plain_operations(
    n: int, channels: int, height: int, width: int, dtype: torch.dtype, has_bias: bool, seed: int
) -> None:
    images = quarters(seed, n, channels, height, width).to(dtype, memory_format=torch.channels_last)
    bias = quarters(seed + 1, channels).to(dtype) if has_bias else None
    gradient = quarters(seed + 2, n, channels, height // 2, width // 2).to(dtype)
    found = []
    for is_fused in (True, False):
        x, b = images.clone().requires_grad_(), None if bias is None else bias.clone().requires_grad_()
        if is_fused:
            y = kernels.bias_max_pool_relu(x, b)
        else:
            moved = x if b is None else x + b.view(1, -1, 1, 1)
            y = nn.functional.relu(nn.functional.max_pool2d(moved, 2))
        y.backward(gradient)  # type: ignore[no-untyped-call]
        found.append((y, x.grad, None if b is None else b.grad))
    (y, dx, db), (expected, expected_dx, expected_db) = found
    assert torch.equal(y, expected)
    assert dx is not None
    assert expected_dx is not None
    assert torch.equal(dx, expected_dx)
    if db is not None and expected_db is not None:
        assert torch.allclose(db, expected_db, rtol=2**-7)


def test_pooling_passes_on_what_is_no_number() -> None:
    images = torch.ones(1, 1, 2, 4, device=DEVICE)
    images[0, 0, 1, 0] = math.nan
    pooled = kernels.bias_max_pool_relu(images, None)
    assert pooled.isnan().tolist() == [[[[True, False]]]]


@few
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([1, 3]), DTYPES, st.integers(0, 99))
def test_gathering_normalises_as_the_plain_operations_do(
    n: int, side: int, channels: int, dtype: torch.dtype, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (7, side, side, channels), generator=drawn, dtype=torch.uint8).to(DEVICE)
    order = torch.randint(7, (n,), generator=drawn).to(DEVICE)
    scale, shift = quarters(seed, side, side, channels), quarters(seed + 1, side, side, channels)
    found = kernels.gather_normalised(images, order, scale, shift, dtype)
    expected = torch.addcmul(shift, images[order], scale).permute(0, 3, 1, 2)
    assert found.dtype == dtype
    assert found.stride() == expected.stride()
    assert torch.allclose(found.float(), expected, rtol=2**-7)


@few
@given(
    st.sampled_from(sorted(OPTIMIZERS)), st.sampled_from([0.0, 0.03]), st.sampled_from([0.0, 0.5]), DTYPES,
    st.integers(0, 99),
)  # fmt: skip
def test_flat_optimizers_step_as_pytorchs_do(
    name: str, l2: float, momentum: float, dtype: torch.dtype, seed: int
) -> None:
    params = Params(optimizer=name, learning_rate=0.01, l2=l2, momentum=momentum)  # type: ignore[arg-type]
    shapes = [(3, 5), (7,), (2, 3, 3, 3)]
    plain = [nn.Parameter(quarters(seed + n, *shape)) for n, shape in enumerate(shapes)]
    masters = [nn.Parameter(each.detach().clone()) for each in plain]
    lows = [nn.Parameter(each.detach().to(dtype)) for each in plain]
    is_low = dtype != torch.float32
    weights = [Weight(m, low if is_low else None) for m, low in zip(masters, lows, strict=True)]
    theirs, mine = OPTIMIZERS[name](plain, params), OPTIMIZERS[name](masters, params)
    assert can_be_flat(mine, weights)
    flat = FlatOptimizer(mine, weights)
    for step in range(3):
        for number, (one, other) in enumerate(zip(plain, weights, strict=True)):
            gradient = quarters(seed + 10 * step + number, *one.shape)
            one.grad = gradient
            (other.low if other.low is not None else other.master).grad = gradient.to(dtype)
        with torch.no_grad():
            theirs.step()
            flat.step()
    for one, other in zip(plain, weights, strict=True):
        assert torch.allclose(one, other.master, rtol=1e-4, atol=1e-5)
        if other.low is not None:
            assert torch.allclose(other.low.float(), other.master, rtol=2**-7)
        for key, value in theirs.state[one].items():
            assert torch.allclose(
                value.float().to(DEVICE), mine.state[other.master][key].float(), rtol=1e-4, atol=1e-5
            )


def curves(epochs: Iterator[Any]) -> list[tuple[Any, ...]]:
    return [(seed.train_loss, seed.metrics, seed.layers) for epoch in epochs for seed in epoch.seeds]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("precision", "extra"),
    [
        ("fp32", {}),
        ("bf16", {"l2": 0.01, "mixup_alpha": 0.3}),
        ("fp32", {"batch_norm": True, "schedule": "cosine", "flip": True}),
    ],
)
def test_training_goes_the_same_way_and_resumes_to_the_bit(
    precision: str, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SCHEMA.complete({**CONFIG, **extra})
    options: dict[str, Any] = {"device": DEVICE, "precision": precision}
    whole, state = [], None
    for epoch in loop.train(RECIPE, config, DATA, [0], **options):
        whole += curves(iter([epoch]))
        if epoch.number == 1:
            (learner,) = epoch.learners
            assert learner.reads_its_rate
            state = {"epoch": 1, "learners": [copied(learner.state_dict())]}
    resumed = curves(loop.train(RECIPE, config, DATA, [0], resume=state, **options))
    if DEVICE == "cpu" and precision == "bf16":  # the interpreter cuts to bfloat16 where all else rounds
        assert resumed[0][0] == pytest.approx(whole[1][0], rel=0.01)
    else:
        assert resumed == whole[1:]
    monkeypatch.setattr(fused, "_in_use", "plain")
    plain = curves(loop.train(RECIPE, config, DATA, [0], **options))
    for one, other in zip(whole, plain, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_below_zero_the_network_of_training_is_that_of_validation(activation: str) -> None:
    config = SCHEMA.complete({**CONFIG, "activation": activation})
    network = build(RECIPE, RECIPE.params_of(config), DATA.info, 0).to(DEVICE)
    with torch.no_grad():
        network.get_submodule("conv2").get_parameter("bias").fill_(-9.0)
    inputs = quarters(0, 4, *DATA.info.input_shape)
    seen = [network.train(is_training)(inputs) for is_training in (True, False)]
    torch.testing.assert_close(*seen)


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(each) for each in state]
    return state.clone() if isinstance(state, Tensor) else state


@pytest.mark.parametrize(("chosen", "optimizer"), [("plain", "adam"), ("plain", "sgd"), ("triton", "adam")])
def test_a_slot_trains_the_next_trial_as_a_new_network_would(
    chosen: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_in_use", chosen)
    slots = Slots()

    def trained(slots: Slots | None, seed: int = 0, **changed: Any) -> tuple[Learner, list[tuple[Any, ...]]]:
        config = SCHEMA.complete({**CONFIG, "optimizer": optimizer, "momentum": 0.5, "epochs": 1, **changed})
        (epoch,) = loop.train(RECIPE, config, DATA, [seed], device=DEVICE, slots=slots)
        return epoch.learners[0], curves(iter([epoch]))

    first, _ = trained(slots)
    again, found = trained(slots, seed=1)
    assert again is first
    assert found == trained(None, seed=1)[1]
    rates = {"learning_rate": 0.01, "l2": 0.02}
    other_rates, found = trained(slots, seed=2, **rates)
    assert (other_rates is first) == (chosen == "triton")  # whose steps read the rates anew
    assert found == trained(None, seed=2, **rates)[1]
    n_slots = len(slots)
    assert trained(slots, conv1_channels=2)[0] is not first
    assert len(slots) == n_slots + 1


def test_few_slots_are_kept_and_those_of_stopped_trials_are_not() -> None:
    slots = Slots(most=1)

    def trained(channels: int) -> Learner:
        config = SCHEMA.complete({**CONFIG, "conv1_channels": channels, "epochs": 1})
        (epoch,) = loop.train(RECIPE, config, DATA, [0], device=DEVICE, slots=slots)
        return epoch.learners[0]

    first, second = trained(2), trained(3)
    assert len(slots) == 1
    assert trained(3) is second
    assert trained(2) is not first
    slots.clear()
    training = loop.train(RECIPE, SCHEMA.complete(CONFIG), DATA, [0], device=DEVICE, slots=slots)
    next(training)
    del training
    assert len(slots) == 0


def test_networks_are_alike_that_differ_in_the_values_of_their_tensors_alone() -> None:
    alike = [structure_of(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))) for _ in range(2)]
    others = [
        structure_of(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.4))),
        structure_of(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))),
        structure_of(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Dropout(0.5))),
        structure_of(nn.Sequential(nn.Linear(2, 3).requires_grad_(False), nn.Dropout(0.5))),
    ]
    assert alike[0] == alike[1]
    assert len({*alike, *others}) == 5
    network = nn.Linear(1, 1)
    network.table = torch.ones(2)  # neither a parameter nor a buffer: its values count
    another = copy.deepcopy(network)
    another.table = torch.zeros(2)
    assert structure_of(network) != structure_of(another)
    network.activation = lambda x: x  # type: ignore[assignment]
    assert structure_of(network) is None


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(64, 3), nn.Linear(2, 2), nn.Linear(64, 3)
        self.frozen.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.used(flat) + self.frozen(flat)  # type: ignore[no-any-return]


class _UnusedRecipe(Recipe):
    draws_in_training = False

    def build(self, params: Any, data: Any) -> nn.Module:
        return _Unused()


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_without_gradients_stay_what_they_are(precision: str) -> None:
    recipe = _UnusedRecipe()
    config = recipe.schema.complete({"l2": 0.1, "epochs": 2, "batch_size": 20})
    fresh = Learner(recipe, recipe.params_of(config), DATA.info, 0, device=DEVICE).network.state_dict()
    state = None
    for epoch in loop.train(recipe, config, DATA, [0], device=DEVICE, precision=precision):
        state = state or copied(state_of(epoch))
        ends = epoch.learners[0].network.state_dict()
    for name, before in fresh.items():
        assert torch.equal(before, ends[name]) == (not name.startswith("used"))
    for epoch in loop.train(recipe, config, DATA, [0], device=DEVICE, precision=precision, resume=state):
        resumed = epoch.learners[0].network.state_dict()
    assert all(torch.allclose(ends[name], resumed[name], atol=1e-3) for name in ends)


def test_kernels_are_chosen_by_name() -> None:
    assert resolve_kernels("plain", DEVICE, "fp32") == "plain"
    assert resolve_kernels("auto", "cpu", "fp32") == "plain"
    assert triton_hindrance("cpu") == "they are for NVIDIA GPUs"
    with pytest.raises(
        InputError, match="kernels = 'triton': they are for NVIDIA GPUs; use 'plain' or 'auto'"
    ):
        resolve_kernels("triton", "cpu", "fp32")
    with pytest.raises(InputError, match="kernels = 'tritom': did you mean 'triton'"):
        resolve_kernels("tritom", "cpu", "fp32")


def test_the_trial_of_all_kernels_finds_them_right_and_finds_wrong_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernels.first_wrong(DEVICE) is None
    monkeypatch.setattr(kernels, "update_", lambda kind, weights, *rest: weights.add_(1))
    assert kernels.first_wrong(DEVICE) == "update_"
