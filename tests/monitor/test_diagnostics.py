import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hpo.monitor.diagnostics import diagnose
from hpo.planning.metrics import Metric
from hpo.training.dead_units import watching
from hpo.training.learner import build
from hpo.training.loop import train
from tests.support.recipes import RECIPE, SCHEMA
from tests.support.toy_images import toy_data

F1 = Metric("macro_f1", "maximize")


def epoch(
    *,
    f1: float = 0.5,
    predicted: int = 10,
    dead: Sequence[float] = (0.0, 0.0, 0.0),
    gradients: Sequence[float] = (0.1, 0.1, 0.1, 0.1),
) -> dict[str, Any]:
    layers = {
        name: {"weight_gradient": gradient, "bias_gradient": gradient / 2, "dead_share": share}
        for name, gradient, share in zip(
            ("conv1", "conv2", "hidden", "output"), gradients, (*dead, None), strict=True
        )
    }
    return {"metrics": {"macro_f1": f1, "loss": 1 - f1}, "predicted_classes": predicted, "layers": layers}


HEALTHY = epoch()
DEAD = epoch(f1=0.018, predicted=1, dead=(0.3, 1.0, 1.0), gradients=(0.0, 0.0, 0.0, 0.2))


def names(history: list[dict[str, Any]]) -> list[str]:
    return [finding.name for finding in diagnose(history, F1)]


def test_dying_relu_names_the_first_dead_layer_and_the_epoch() -> None:
    (finding,) = diagnose([HEALTHY, DEAD, DEAD, DEAD], F1)
    assert (finding.name, finding.layer, finding.epoch) == ("dying ReLU", "conv2", 2)
    assert "conv2" in finding.text
    assert "epoch 2" in finding.text


def test_a_layer_after_living_ones_may_be_the_dead_one() -> None:
    dead = epoch(predicted=1, dead=(0.1, 0.2, 0.99), gradients=(0.0, 0.0, 1e-9, 0.0))
    (finding,) = diagnose([dead, dead], F1)
    assert (finding.layer, finding.epoch) == ("hidden", 1)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([DEAD, HEALTHY, DEAD, HEALTHY], id="never twice running"),
        pytest.param([epoch(dead=(0.0, 0.98, 0.0), gradients=(0, 0, 0, 0.1))] * 2, id="too few units"),
        pytest.param([epoch(dead=(0.0, 1.0, 0.0), gradients=(0.1, 0, 0, 0.1))] * 2, id="gradient before it"),
        pytest.param([epoch(dead=(0.0, 1.0, 0.0), gradients=(0, 0.1, 0, 0.1))] * 2, id="gradient of it"),
        pytest.param([epoch(f1=f1) for f1 in (0.3, 0.6, 0.6)], id="best is not the last"),
        pytest.param([HEALTHY], id="one epoch"),
        pytest.param([], id="no epoch"),
    ],
)
def test_nothing_is_found(history: list[dict[str, Any]]) -> None:
    assert names(history) == []


def test_constant_prediction_without_dead_layers() -> None:
    (finding,) = diagnose([epoch(), epoch(predicted=1), epoch(predicted=1)], F1)
    assert (finding.name, finding.epoch, finding.layer) == ("constant prediction", 2, None)
    assert names([epoch(predicted=1), epoch(f1=0.5), epoch(f1=0.4)]) == []


def test_still_rising_at_the_last_epoch() -> None:
    (finding,) = diagnose([epoch(f1=0.1), epoch(f1=0.3), epoch(f1=0.31)], F1)
    assert (finding.name, finding.epoch) == ("still improving at the last epoch", 3)


def test_a_loss_that_is_still_falling_is_found_and_one_that_rises_is_not() -> None:
    loss, falling = Metric("loss", "minimize"), [epoch(f1=0.1), epoch(f1=0.3), epoch(f1=0.31)]
    (finding,) = diagnose(falling, loss)
    assert (finding.name, finding.epoch) == ("still improving at the last epoch", 3)
    assert diagnose(falling[::-1], loss) == ()


def test_dead_shares_count_units_that_no_image_wakes_anywhere() -> None:
    params = RECIPE.params_of({"conv1_channels": 4, "conv2_channels": 8, "hidden_units": 10})
    network: Any = build(RECIPE, params, toy_data().info, 0)
    (weight1, bias1), (_, bias2), (_, hidden_bias) = map(
        network.weight_and_bias, ("conv1", "conv2", "hidden")
    )
    with torch.no_grad():
        weight1.fill_(1.0)
        bias1.zero_()
        weight1[3] = 0.0  # passes on nothing
        bias2.fill_(1e3)
        bias2[:6] = -1e3
        hidden_bias.fill_(1e6)
    asleep, awake = -torch.ones(4, 1, 8, 8), -torch.ones(4, 1, 8, 8)
    awake[3, 0, 7, 7] = 100.0

    def dead(*batches: torch.Tensor, n_watched: int = 100) -> dict[str, float]:
        with torch.inference_mode():
            unwatched = [network(batch) for batch in batches]
            with watching(RECIPE.layers(network), n_watched) as shares:
                outputs = [network(batch) for batch in batches]
        assert all(map(torch.equal, outputs, unwatched))
        return dict(shares)

    assert dead(asleep) == {"conv1": 1.0, "conv2": 0.75, "hidden": 0.0}
    assert dead(asleep, awake, asleep)["conv1"] == 0.25
    assert dead(asleep, awake, n_watched=7)["conv1"] == 1.0  # the one that wakes it is the eighth
    assert dead(asleep, awake, n_watched=8)["conv1"] == 0.25


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learning_rate_that_kills_a_network_is_recognised(precision: str) -> None:
    config = SCHEMA.complete(
        {"conv1_channels": 4, "conv2_channels": 8, "hidden_units": 8, "batch_size": 8, "epochs": 4}
    )
    history = [
        copy.deepcopy(result.seeds[0].to_dict())
        for result in train(RECIPE, {**config, "learning_rate": 10.0}, toy_data(), [3], precision=precision)
    ]
    assert names(history) == ["dying ReLU"]
    assert history[-1]["predicted_classes"] == 1
    epochs = train(RECIPE, config, toy_data(), [3], precision=precision)
    healthy = [result.seeds[0].to_dict() for result in epochs]
    assert "dying ReLU" not in names(healthy)
