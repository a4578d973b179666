from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.data.dataset import DataInfo
from hpo.errors import InputError
from hpo.training.learner import build
from tests.support.recipes import RECIPE

Shape = tuple[int, int, int]
"""(c, h, w)"""


def network_of(shape: Shape, n_classes: int, seed: int = 0, **params: Any) -> Any:
    """The shipped recipe's network, as training builds it."""
    info = DataInfo(shape, tuple(f"class {k}" for k in range(n_classes)), n_classes)
    return build(RECIPE, RECIPE.params_of(RECIPE.schema.complete(params)), info, seed)


def small(shape: Shape, n_classes: int, seed: int = 0, **params: Any) -> Any:
    sizes = {"conv1_channels": 4, "conv2_channels": 6, "hidden_units": 5}
    return network_of(shape, n_classes, seed, **{**sizes, **params})


def images(n: int, shape: Shape) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def outputs_of(network: Any, inputs: Tensor) -> dict[str, Tensor]:
    """What every watched layer puts out, in the order in which it does."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, output: found.update({name: output})

    for name, layer in RECIPE.layers(network).items():
        module = layer.relu or network.get_submodule(name)
        module.register_forward_hook(keep(name))
    network(inputs)
    return found


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (4, 9, 7), (3, 32, 32)])
def test_the_network_maps_any_image_shape_to_logits_layer_by_layer(batch_norm: bool, shape: Shape) -> None:
    network = network_of(shape, 7, batch_norm=batch_norm)
    outputs = outputs_of(network, images(2, shape))
    assert list(outputs) == list(RECIPE.layers(network)) == ["conv1", "conv2", "hidden", "output"]
    *hidden, logits = outputs.values()
    assert logits.shape == (2, 7)
    assert [output.shape[1] for output in hidden] == [32, 128, 128]
    assert all((output >= 0).all() and (output > 0).any() for output in hidden)
    assert [layer.relu is None for layer in RECIPE.layers(network).values()] == [False] * 3 + [True]
    assert all(layer.bias.shape == layer.weight.shape[:1] for layer in RECIPE.layers(network).values())


@pytest.mark.parametrize(("batch_norm", "parameters"), [(False, 1_153_418), (True, 1_153_578)])
def test_the_reports_network_has_the_parameters_of_the_documented_formula(
    batch_norm: bool, parameters: int
) -> None:
    network = network_of((3, 32, 32), 10, batch_norm=batch_norm)
    formula = (3 * 3 * 3 + 1) * 32 + (5 * 5 * 32 + 1) * 128 + (8 * 8 * 128 + 1) * 128 + (128 + 1) * 10
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert parameters == formula + (32 + 128) * batch_norm


def test_pooling_before_the_relu_changes_neither_values_nor_gradients() -> None:
    network = small((2, 9, 8), 3, batch_norm=True)
    pictures = images(5, (2, 9, 8))

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


def test_a_leaky_relu_lets_a_hundredth_through_below_zero_and_no_unit_of_it_is_called_dead() -> None:
    network = small((2, 8, 8), 3, activation="leaky_relu")
    pictures = images(4, (2, 8, 8))

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    x = F.max_pool2d(leaky(network.conv1(pictures)), 2)
    x = F.max_pool2d(leaky(network.conv2(x)), 2)
    x = leaky(network.hidden(x.permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(network(pictures), network.output(x))
    assert {layer.relu for layer in RECIPE.layers(network).values()} == {None}
    # and it starts from the weights that a ReLU starts from
    assert all(map(torch.equal, network.parameters(), small((2, 8, 8), 3).parameters()))


def test_weights_come_from_the_seed_alone() -> None:
    networks: list[nn.Module] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(networks))
        networks.append(small((1, 8, 8), 3, seed))
    first, again, other = networks
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not any(map(torch.equal, first.parameters(), other.parameters()))


def test_weights_start_as_torchs_own_layers_do() -> None:
    network = network_of((3, 32, 32), 10)
    for ours, theirs in (
        (network.conv2, nn.Conv2d(32, 128, 5)),
        (network.hidden, nn.Linear(8192, 128)),
    ):
        for name in ("weight", "bias"):
            got, wanted = getattr(ours, name), getattr(theirs, name)
            torch.testing.assert_close(got.abs().max(), wanted.abs().max(), rtol=0.05, atol=0)
            torch.testing.assert_close(got.std(), wanted.std(), rtol=0.2, atol=0)


@pytest.mark.parametrize("shape", [(1, 3, 8), (3, 8, 3)])
def test_images_of_which_pooling_leaves_nothing_are_refused(shape: Shape) -> None:
    with pytest.raises(InputError, match=f"{shape[1]}×{shape[2]} pixels are too small.*4×4"):
        small(shape, 3)


@pytest.mark.parametrize(
    "info",
    [DataInfo((5,), ("a", "b"), 2, is_images=False), DataInfo((3, 8, 8), (), 1)],
    ids=["table", "numbers"],
)
def test_what_is_no_image_of_a_class_is_refused(info: DataInfo) -> None:
    with pytest.raises(InputError, match="constrained-cnn takes images of classes; give another --recipe"):
        build(RECIPE, RECIPE.params_of(RECIPE.schema.defaults), info, 0)
