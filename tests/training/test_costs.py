"""What configurations cost before they train: counted on networks whose sizes are known by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

import hpo
from hpo.data.dataset import DataInfo
from hpo.errors import InputError
from hpo.space.constraints import NETWORK_COSTS
from hpo.training.costs import costs
from hpo.training.recipe import Recipe
from hpo.training.registry import _check
from tests.support.recipes import Counting, Mlp, OwnLoop, Words

IMAGES = DataInfo((3, 8, 8), ("a", "b"), 2)
WORDS = DataInfo((5,), ("a", "b"), 2, is_images=False)


def all_costs(recipe: Recipe, info: DataInfo = IMAGES, **params: Any) -> dict[str, float]:
    return costs(recipe, info, {**recipe.schema.defaults, **params}, recipe.schema.costs)


class Layers(Recipe):
    """One of each kind that is counted, one of them used twice, and one that normalises."""

    def build(self, params: hpo.Params, data: DataInfo) -> nn.Module:
        again = nn.Conv2d(6, 6, 1, bias=False)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3),  # (6, 6, 6) of 3 × 3 each
            nn.BatchNorm2d(6),
            again,
            again,  # (6, 6, 6) of 6 each
            nn.ConvTranspose2d(6, 2, 2, stride=2),  # each of (6, 6, 6) goes into 2 × 2 × 2
            nn.Flatten(),
            nn.Linear(2 * 12 * 12, 2),
        )


def test_convolutions_and_linear_layers_are_counted_as_by_hand() -> None:
    found = all_costs(Layers())
    assert found["n_parameters"] == (6 * 9 + 6) + 2 * 6 + 36 + (6 * 2 * 4 + 2) + (288 * 2 + 2)
    assert found["n_multiplications"] == 216 * 9 + 2 * 216 * 6 + 216 * 8 + 288 * 2
    assert found["model_megabytes"] == pytest.approx((4 * (found["n_parameters"] + 12) + 8) / 1e6)


def test_a_perceptron_multiplies_once_for_each_weight() -> None:
    found = all_costs(Mlp(), width=7, depth=2, bias=False)
    weights = 192 * 7 + 7 * 7 + 7 * 2
    assert found == {
        "n_parameters": weights + 2,
        "n_multiplications": weights,
        "model_megabytes": 4 * (weights + 2) / 1e6,
    }


def test_inputs_may_be_integers() -> None:
    assert all_costs(Words(), WORDS) == {
        "n_parameters": 400,
        "n_multiplications": 0,
        "model_megabytes": 0.0016,
    }


class Huge(Mlp):
    """Tells where its weights are."""

    devices: ClassVar[list[str]] = []

    def build(self, params: Any, data: DataInfo) -> nn.Module:
        network = super().build(params, data)
        self.devices.append(next(network.parameters()).device.type)
        return network


def test_sizes_are_told_without_memory_for_them() -> None:
    recipe = Huge()
    config = {**recipe.schema.defaults, "width": 4096, "depth": 8}
    found = costs(recipe, IMAGES, config, ["n_parameters"])
    assert found == {"n_parameters": 193 * 4096 + 7 * 4097 * 4096 + 4097 * 2}
    assert recipe.devices == ["meta"]


class Valued(Counting):
    """A build that looks at its weights, which have no values without memory."""

    def build(self, params: Any, data: DataInfo) -> nn.Module:
        network = super().build(params, data)
        if float(next(network.parameters()).abs().sum()) == 0:
            raise AssertionError("weights were to be drawn")
        return network


def test_a_build_that_needs_values_has_them() -> None:
    assert all_costs(Valued(), width=7) == all_costs(Counting(), width=7)


class Inside(nn.Module):
    """Keeps a weight where only it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 2)
        self.hidden = [self.layer.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1)) + self.hidden[0].sum()  # type: ignore[no-any-return]


class Hidden(Recipe):
    def build(self, params: hpo.Params, data: DataInfo) -> nn.Module:
        return Inside()


def test_weights_that_a_module_hides_have_values_where_it_runs() -> None:
    assert all_costs(Hidden())["n_multiplications"] == 384


class Trees(OwnLoop):
    """A loop of its own that tells what it costs."""

    cost_names = ("n_trees",)
    told: ClassVar[Any] = {"n_trees": 3, "more": 1}

    def costs(self, params: Any, data: DataInfo) -> Mapping[str, float]:
        return self.told  # type: ignore[no-any-return]


def test_a_loop_of_its_own_has_the_costs_that_it_tells() -> None:
    assert OwnLoop().schema.costs == ()
    assert all_costs(Trees()) == {"n_trees": 3}


@pytest.mark.parametrize("told", [{}, {"n_trees": float("nan")}, {"n_trees": True}, {"n_trees": "3"}, 3])
def test_what_is_told_must_be_numbers(told: Any) -> None:
    class Wrong(Trees):
        pass

    Wrong.told = told
    with pytest.raises(InputError, match=r"costs must return a finite number 'n_trees'; it returned"):
        all_costs(Wrong())


class Own(Mlp):
    """A cost of its own beside those of its network."""

    cost_names = (*NETWORK_COSTS, "width_squared")

    def costs(self, params: Any, data: DataInfo) -> Mapping[str, float]:
        return {**super().costs(params, data), "width_squared": params.width**2}


def test_costs_of_the_network_may_be_added_to() -> None:
    assert all_costs(Own(), width=7) == {**all_costs(Mlp(), width=7), "width_squared": 49}


def test_a_parameter_goes_before_a_cost_of_its_name() -> None:
    class Params(hpo.Params):
        n_parameters: int = 3

    class Named(Mlp):
        pass

    Named.Params = Params  # type: ignore[assignment]
    assert Named().schema.costs == ("n_multiplications", "model_megabytes")


@pytest.mark.parametrize(
    ("names", "said"),
    [("n_trees", "must be names"), (("n trees",), "must be names"), (("n_trees",), "needs a method costs")],
)
def test_names_that_cannot_be_used_are_refused(names: Any, said: str) -> None:
    class Wrong(Mlp):
        cost_names = names

    with pytest.raises(InputError, match=said):
        _check(Wrong())
