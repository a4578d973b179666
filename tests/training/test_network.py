from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.errors import InputError
from hpo.recipes.constrained_cnn.network import NETWORKS, ConstrainedCnn, ImageShape, build_network
from hpo.space.parameters import NetworkConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**params: Any) -> NetworkConfig:
    return NetworkConfig(**{"conv1_channels": 4, "conv2_channels": 6, "hidden_units": 5, **params})


def images(n: int, shape: ImageShape) -> Tensor:
    height, width, channels = shape
    return torch.randn(n, channels, height, width, generator=generator(1))


@pytest.mark.parametrize("config_type", NETWORKS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8, 1), (9, 7, 4), (32, 32, 3)])
def test_every_network_maps_any_image_shape_to_logits_layer_by_layer(
    config_type: type[NetworkConfig], batch_norm: bool, shape: ImageShape
) -> None:
    network = build_network(config_type(batch_norm=batch_norm), shape, 7, generator())
    outputs = dict(network.layer_outputs(images(2, shape)))
    assert tuple(outputs) == network.layer_names
    *hidden, logits = outputs.values()
    assert logits.shape == (2, 7)
    assert all((output >= 0).all() and (output > 0).any() for output in hidden)
    weights = [network.weight_and_bias(name) for name in network.layer_names]
    assert all(bias.shape == weight.shape[:1] for weight, bias in weights)


@pytest.mark.parametrize(("batch_norm", "parameters"), [(False, 1_153_418), (True, 1_153_578)])
def test_the_reports_network_has_the_parameters_of_the_documented_formula(
    batch_norm: bool, parameters: int
) -> None:
    config = NetworkConfig(batch_norm=batch_norm)
    network = build_network(config, (32, 32, 3), 10, generator())
    formula = (3 * 3 * 3 + 1) * 32 + (5 * 5 * 32 + 1) * 128 + (8 * 8 * 128 + 1) * 128 + (128 + 1) * 10
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert parameters == formula + (32 + 128) * batch_norm


def test_pooling_before_the_relu_changes_neither_values_nor_gradients() -> None:
    network = build_network(small(batch_norm=True), (9, 8, 2), 3, generator())
    assert isinstance(network, ConstrainedCnn)
    pictures = images(5, (9, 8, 2))

    def textbook(x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(network.norm1(network.conv1(x))), 2)
        x = F.max_pool2d(F.relu(network.norm2(network.conv2(x))), 2)
        logits: Tensor = network.output(F.relu(network.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return logits

    gradients = []
    for forward in (network, textbook):
        logits = forward(pictures)
        loss = logits.square().sum()
        gradients.append([logits.detach(), *torch.autograd.grad(loss, list(network.parameters()))])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_network(small(), (8, 8, 1), 3, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not any(map(torch.equal, first.parameters(), other.parameters()))


def test_weights_start_as_torchs_own_layers_do() -> None:
    network = build_network(NetworkConfig(), (32, 32, 3), 10, generator())
    for ours, theirs in (
        (network.conv2, nn.Conv2d(32, 128, 5)),
        (network.hidden, nn.Linear(8192, 128)),
    ):
        for name in ("weight", "bias"):
            got, wanted = getattr(ours, name), getattr(theirs, name)
            torch.testing.assert_close(got.abs().max(), wanted.abs().max(), rtol=0.05, atol=0)
            torch.testing.assert_close(got.std(), wanted.std(), rtol=0.2, atol=0)


@pytest.mark.parametrize("shape", [(3, 8, 1), (8, 3, 3)])
def test_images_of_which_pooling_leaves_nothing_are_refused(shape: ImageShape) -> None:
    with pytest.raises(InputError, match=f"{shape[0]}×{shape[1]} pixels are too small.*4×4"):
        build_network(small(), shape, 3, generator())
