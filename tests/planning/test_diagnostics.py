import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from hpo import rows
from hpo.monitor.watch import Progress
from hpo.planning.diagnostics import Finding, findings
from hpo.planning.metrics import Metric
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.reporting import tables
from hpo.reporting.caveats import caveats
from hpo.reporting.data import read
from hpo.training.dead_units import watching
from hpo.training.learner import build
from hpo.training.loop import train
from tests.support.recipes import RECIPE, SCHEMA
from tests.support.scripted_worker import Worker, look, new_plan
from tests.support.toy_images import toy_data

F1, LOSS, R2 = Metric("macro_f1", "maximize"), Metric("loss", "minimize"), Metric("r2", "maximize")
CHANCES = {F1: 0.1}


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


def found(
    *seeds: list[dict[str, Any]],
    objective: Metric = F1,
    chances: Mapping[Metric, float] = CHANCES,
    is_complete: bool = True,
) -> list[Finding]:
    """What is found at a point with the histories of these seeds."""
    return findings(list(zip(*seeds, strict=True)), objective, chances, is_complete=is_complete)


def names(*seeds: list[dict[str, Any]]) -> list[str]:
    return [finding.name for finding in found(*seeds)]


def rising(*f1: float) -> list[dict[str, Any]]:
    return [epoch(f1=each) for each in f1]


def test_dying_relu_names_the_first_dead_layer_and_the_epoch() -> None:
    (finding,) = found([HEALTHY, DEAD, DEAD, DEAD])
    assert (finding.name, finding.layer, finding.epoch) == ("dying ReLU", "conv2", 2)
    assert "conv2" in finding.text
    assert "epoch 2" in finding.text


def test_a_layer_after_living_ones_may_be_the_dead_one() -> None:
    dead = epoch(predicted=1, dead=(0.1, 0.2, 0.99), gradients=(0.0, 0.0, 1e-9, 0.0))
    (finding,) = found([dead, dead])
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
    (finding,) = found([epoch(), epoch(predicted=1), epoch(predicted=1)])
    assert (finding.name, finding.epoch, finding.layer) == ("constant prediction", 2, None)
    assert names([epoch(predicted=1), epoch(f1=0.5), epoch(f1=0.4)]) == []


def test_still_rising_at_the_last_epoch() -> None:
    (finding,) = found(rising(0.2, 0.3, 0.31))
    assert (finding.name, finding.epoch) == ("still improving at the last epoch", 3)
    assert found(rising(0.2, 0.3, 0.31), is_complete=False) == []


def test_a_loss_that_is_still_falling_is_found_and_one_that_rises_is_not() -> None:
    falling = rising(0.2, 0.3, 0.31)
    (finding,) = found(falling, objective=LOSS)
    assert (finding.name, finding.epoch) == ("still improving at the last epoch", 3)
    assert found(falling[::-1], objective=LOSS) == []


@pytest.mark.parametrize("objective", [F1, LOSS])
def test_the_mean_over_seeds_is_what_rises_or_not(objective: Metric) -> None:
    one_rises = [rising(0.2, 0.6, 0.7), rising(0.2, 0.6, 0.5), rising(0.2, 0.6, 0.5)]
    assert found(*one_rises, objective=objective) == []
    (finding,) = found(rising(0.2, 0.6, 0.8), rising(0.2, 0.6, 0.55), objective=objective)
    assert (finding.remark, finding.epoch, finding.n_seeds) == ("still improving", 3, 2)


@pytest.mark.parametrize("objective", [F1, LOSS])
def test_what_is_no_better_than_guessing_is_not_called_rising(objective: Metric) -> None:
    (finding,) = found(rising(0.01, 0.02, 0.03), objective=objective)
    assert (finding.name, finding.epoch) == ("no better than guessing", 3)
    assert "macro F1 3.0 %, where guessing reaches 10.0 %" in finding.text
    numbers = [{**epoch(), "metrics": {"loss": 4.5e10 - n, "r2": -1e9 + n}, "layers": {}} for n in range(3)]
    (finding,) = found(numbers, objective=LOSS, chances={R2: 0.0})
    assert finding.name == "no better than guessing"
    assert [each.name for each in found(numbers, objective=LOSS, chances={})] == [
        "still improving at the last epoch"  # what a metric of somebody's own should reach, nobody knows
    ]


def test_seeds_that_collapsed_are_counted_and_the_rest_is_said_of_the_mean() -> None:
    dies, lives = [HEALTHY, DEAD, DEAD], rising(0.2, 0.3, 0.9)
    dying, improving = found(dies, lives, lives)
    assert dying.text.startswith("dying ReLU in 1 of 3 seeds: since epoch 2, 100 % of the units of conv2")
    assert (dying.n_seeds, improving.name) == (1, "still improving at the last epoch")
    dying, constant = found([DEAD, DEAD, DEAD], dies, [epoch(predicted=1)] * 3)
    assert dying.text.startswith("dying ReLU in 2 of 3 seeds: since epoch 1 at the earliest")
    assert constant.text == "constant prediction in 1 of 3 seeds: one class for everything since epoch 1"


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Progress]:
    """Points of three seeds, and a look: one rises by a seed alone, one by the mean, one is useless."""
    plan = new_plan(
        tmp_path_factory.mktemp("seeds"),
        {"rate": "[search]\nlearning_rate = [0.1, 0.01, 0.001]"},
        seeds=3,
    )
    advance(plan)
    worker = Worker(plan)
    for last in ([0.7, 0.5, 0.5], [0.9, 0.5, 0.5]):
        worker.finish(worker.claim("rate"), [0.2, 0.4, 0.6, last])
    worker.finish(worker.claim("rate"), [0.01, 0.01, 0.02, 0.03])
    progress = look(plan)
    advance(plan)
    return plan, progress


def test_show_status_and_report_say_the_same_of_a_point_with_several_seeds(
    three_seeds: tuple[Plan, Progress],
) -> None:
    plan, progress = three_seeds
    shown = rows(plan, "rate")
    assert [(row.best_epoch, row.epochs) for row in shown] == [(3, 4), (4, 4), (4, 4)]
    remarks = [[finding.remark for finding in row.findings] for row in shown]
    assert remarks == [[], ["still improving"], ["no better than guessing"]]
    assert progress.studies[0].flags == {"still improving": [1], "no better than guessing": [2]}
    report = read(plan)
    table = tables.points_table(report, report.sections[0])
    last = [column.head for column in table.columns].index("remarks")
    assert [row.cells[last].text for row in table.rows] == [
        "",
        "best of the study; carried on; still improving",
        "no better than guessing",
    ]
    (said,) = [text for text in caveats(report) if "still improving" in text]
    assert said.startswith("rate/1, the chosen configuration: still improving: macro F1 is best in epoch 4")


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
