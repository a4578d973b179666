"""How far the answer on the test set may be off, and what fresh seeds leave of a selected value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hpo.execution.uncertainty import uncertainty
from hpo.monitor.results import shrinkage_text, uncertainty_text
from hpo.planning.metrics import Metric
from tests.support.recipes import RECIPE, Mlp, Regression

F1, LOSS = Metric("macro_f1", "maximize"), Metric("loss", "minimize")


def _outputs(n_right: int, n: int, n_seeds: int, *, is_same: bool = True) -> list[Tensor]:
    """Of each seed, two classes; every seed is wrong about the same examples, or each about others."""
    found = []
    for seed in range(n_seeds):
        wrong = (
            torch.arange(n) >= n_right if is_same else (torch.arange(n) + seed * (n - n_right)) % n >= n_right
        )
        labels = torch.arange(n) % 2
        found.append(torch.nn.functional.one_hot(torch.where(wrong, 1 - labels, labels), 2).float())
    return found


def _found(outputs: list[Tensor], recipe: Any = RECIPE) -> Mapping[str, Any]:
    targets = torch.arange(len(outputs[0])) % 2
    return uncertainty(recipe, [RECIPE.evaluate(each, targets) for each in outputs], outputs, targets)


def test_examples_that_all_seeds_get_wrong_count_once() -> None:
    accuracy = _found(_outputs(360, 400, 5))["accuracy"]
    assert accuracy["seeds"] == 0.0
    assert accuracy["examples"] == pytest.approx((0.9 * 0.1 / 400) ** 0.5, rel=0.15)
    reach = 1.966 * accuracy["examples"]  # t of 399 degrees of freedom
    assert accuracy["interval"] == pytest.approx([0.9 - reach, 0.9 + reach], abs=1e-4)
    apart = _found(_outputs(360, 400, 5, is_same=False))["accuracy"]
    assert apart["examples"] < 0.6 * accuracy["examples"]  # what one seed gets wrong others get right


def test_seeds_that_differ_widen_the_interval_by_the_t_distribution() -> None:
    outputs = [_outputs(n_right, 400, 1)[0] for n_right in (340, 380)]
    accuracy = _found(outputs)["accuracy"]
    assert accuracy["seeds"] == pytest.approx(0.05)
    assert accuracy["examples"] < accuracy["seeds"]
    # with one degree of freedom, or hardly more, and cut off at what there can be
    assert accuracy["interval"] == [pytest.approx(0.4, abs=0.05), 1.0]


def test_one_seed_tells_nothing_of_seeds_and_a_loop_of_one_s_own_nothing_of_examples() -> None:
    (outputs,) = _outputs(360, 400, 1)
    one = _found([outputs])["accuracy"]
    assert one["seeds"] is None
    reach = 1.966 * one["examples"]
    assert one["interval"] == pytest.approx([0.9 - reach, 0.9 + reach], abs=1e-4)
    metrics = [{"macro_f1": value, "accuracy": value, "loss": 1.0} for value in (0.8, 0.9)]
    loop = uncertainty(RECIPE, metrics, [], torch.zeros(400))
    assert loop["macro_f1"] == {
        "interval": [pytest.approx(0.2147, abs=1e-4), 1.0],
        "seeds": pytest.approx(0.05),
        "examples": None,
    }
    assert loop["loss"]["interval"] == [1.0, 1.0]
    assert uncertainty(RECIPE, metrics[:1], [], torch.zeros(400))["accuracy"]["interval"] is None


class Touchy(Mlp):
    """Its metric is not defined for every set of examples."""

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        if len(set(range(len(targets))) - set(outputs.argmax(dim=1).tolist())) < len(targets):
            raise ValueError("some class is missing")
        return super().evaluate(outputs, targets)


def test_a_metric_that_is_not_defined_for_some_examples_ends_nothing() -> None:
    found = _found(_outputs(360, 400, 2), Touchy())["accuracy"]
    assert (found["examples"], found["seeds"]) == (None, 0.0)
    infinite = [{"macro_f1": 0.5, "accuracy": 0.5, "loss": value} for value in (1.0, float("inf"))]
    assert uncertainty(RECIPE, infinite, [], torch.zeros(400))["loss"]["interval"] is None


def test_numbers_that_are_predicted_have_an_interval_too() -> None:
    targets = torch.linspace(0, 1, 200)
    outputs = [targets + 0.1 * (-1) ** (torch.arange(200) + seed) for seed in range(2)]
    recipe = Regression()
    found = uncertainty(recipe, [recipe.evaluate(each, targets) for each in outputs], outputs, targets)
    low, high = found["r2"]["interval"]
    assert low < 1 - 0.01 / float(targets.var()) < high


RESULT: dict[str, Any] = {
    "seeds": [10_000, 10_001, 10_002],
    "n_test": 1800,
    "search_value": 0.99,
    "fresh_value": 0.984,
    "shrinkage": 0.006,
    "shrinkage_interval": [-0.001, 0.013],
    "uncertainty": {
        "macro_f1": {"interval": [0.971, 0.989], "seeds": 0.001, "examples": 0.004},
        "loss": {"interval": [0.1, 0.2], "seeds": 0.02, "examples": 0.01},
    },
}


def test_both_sources_are_told_and_which_is_the_larger() -> None:
    assert uncertainty_text(RESULT, F1, "images") == (
        "between 97.1 and 98.9 % with 95 % confidence, for other seeds and other test images; the 1,800 "
        "images of the test leave more open than the 3 seeds (standard errors 0.4 points and 0.1 points)"
    )
    rows = uncertainty_text(RESULT, LOSS, "rows")
    assert "the 3 seeds leave more open than the 1,800 rows of the test" in rows
    for missing, said in (
        ("seeds", "one seed cannot tell"),
        ("examples", "other test rows would change is not"),
    ):
        found = {"loss": {**RESULT["uncertainty"]["loss"], missing: None}}
        assert said in uncertainty_text({**RESULT, "uncertainty": found}, LOSS, "rows")
    level = {"macro_f1": {"interval": [1.0, 1.0], "seeds": 0.0, "examples": 0.0}}
    assert uncertainty_text({**RESULT, "uncertainty": level}, F1, "images") == (
        "100.0 % with each seed; what other seeds and other test images would change is not known"
    )
    before = {key: value for key, value in RESULT.items() if key not in ("uncertainty", "shrinkage_interval")}
    assert uncertainty_text(before, F1, "images") == ""
    assert shrinkage_text(before, F1).endswith("too good by 0.6 points")


def test_what_fresh_seeds_leave_of_a_selected_value_is_told_with_an_interval() -> None:
    assert shrinkage_text(RESULT, F1) == (
        "macro F1 99.0 % in the search, 98.4 % on 3 seeds that it did not use: the search's value was too "
        "good by 0.6 points, which may be chance alone (between −0.1 and +1.3 points with 95 % confidence)"
    )
    better = {"fresh_value": 0.996, "shrinkage": -0.006, "shrinkage_interval": [-0.007, -0.005]}
    assert shrinkage_text({**RESULT, **better}, F1) == (
        "macro F1 99.0 % in the search, 99.6 % on 3 seeds that it did not use: these did better by 0.6 "
        "points (between +0.5 and +0.7 points with 95 % confidence)"
    )
    assert shrinkage_text({**RESULT, "search_value": None, "shrinkage": None}, F1) == ""
    wide = shrinkage_text({**RESULT, "shrinkage_interval": [-2.021, 2.55]}, F1)
    assert "between −100.0 and +100.0 points" in wide
