"""Constraints on what points cost: those known before cost no training, measured ones end a trial."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.errors import InputError
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning.plan import FINAL, Plan
from hpo.reporting.data import read
from hpo.reporting.prose import method
from hpo.reporting.tables import points_table
from hpo.storage.queue import Reason, reason_of
from hpo.training.costs import costs
from hpo.training.registry import load_recipe
from tests.support import timed
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, as_options, train, write_study
from tests.support.recipes import RECIPE

SIZES: dict[str, Any] = {
    "data": "digits",
    "limit_train": 60,
    "limit_valid": 40,
    "epochs": 1,
    "final_seeds": 1,
}
TIMED: dict[str, Any] = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1}
BASE = SMALL.replace("hidden_units = 16\n", "")
HIDDEN = f"{BASE}[search]\nhidden_units = [8, 16, 32, 64]"
"""They have 670, 886, 1,318 and 2,182 weights on digits, which are of 8 × 8."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def made(studies: dict[str, str], **given: Any) -> Plan:
    """A plan of the shipped recipe; nothing trained."""
    for name, text in studies.items():
        write_study(name, text)
    return find_or_create_plan(Path("hpo-out"), studies=Path("studies"), given={**SIZES, **given})


def hidden_units(plan: Plan, name: str) -> list[int]:
    return [trial.user_attrs["config"]["hidden_units"] for trial in plan.trials(name)]


# --- known before ------------------------------------------------------------------------------------------


def test_a_grid_leaves_out_what_costs_too_much_and_says_so_everywhere(cli: Cli) -> None:
    write_study("width", f'constraints = ["n_parameters <= 1_000"]\n{HIDDEN}')
    write_study("rate", 'inherits = "width"\n[search]\nlearning_rate = [0.01, 0.001]')
    plan = train(Path("hpo-out"), studies=Path("studies"), **SIZES)
    assert hidden_units(plan, "width") == [8, 16]
    assert plan.record("width").n_points == 2
    trials = [trial for name in plan.all_names for trial in plan.trials(name)]
    for trial in trials:
        config = trial.user_attrs["config"]
        assert trial.user_attrs["costs"] == costs(RECIPE, plan.identity.data_info, config, RECIPE.cost_names)
    assert trials[0].user_attrs["costs"]["n_parameters"] == 670

    shown = cli("show", "width").out
    assert re.search(r" n_(parameters|\s)", shown)  # the head of a column, on two lines where it is narrow
    assert "886" in shown
    assert "model_megabytes" not in shown
    assert "n_parameters" not in cli("show", "rate").out
    assert "model_megabytes" in cli("show", "rate", "--costs").out
    assert "costs: n_parameters 670, n_multiplications" in cli("show", "width/0").out
    (first, _) = json.loads(cli("show", "width", "--json").out)["points"]
    assert first["costs"].keys() == {*RECIPE.cost_names, "seconds_an_epoch"}

    rows = list(csv.DictReader(cli("export").out.splitlines()))
    assert [row["n_parameters"] for row in rows[:2]] == ["670", "886"]
    assert all(float(row["seconds_an_epoch"]) > 0 for row in rows)

    report = read(plan)
    table = points_table(report, report.sections[0])
    assert "n parameters" in [column.head for column in table.columns]
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert [(row["n_parameters"], row["model_megabytes"]) for row in rows] == [
        ("670", "0.00268"),
        ("886", "0.003544"),
    ]


def test_of_a_sampled_study_no_trial_is_spent_on_what_costs_too_much() -> None:
    text = f'trials = 6\nconstraints = ["n_multiplications <= 10_000"]\n{BASE}[search]\n'
    text += "hidden_units = {low = 8, high = 128, log = true}\nlearning_rate = {low = 1e-4, high = 1e-2}\n"
    plan = made({"width": text + '[sampler]\nname = "random"'})
    work(plan.storage, out=Path("hpo-out"), studies=["width"])
    trials = plan.trials("width")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    found = [trial.user_attrs["costs"]["n_multiplications"] for trial in trials]
    assert max(found) <= 10_000
    assert max(hidden_units(plan, "width")) < 50  # chance alone draws 120 as the second one


def test_a_sampled_space_of_few_points_has_only_those_that_it_can_afford() -> None:
    text = f'trials = 9\nconstraints = ["n_parameters <= 1000"]\n{HIDDEN}\n[sampler]\nname = "random"'
    plan = made({"width": text})
    work(plan.storage, out=Path("hpo-out"), studies=["width"])
    assert sorted(hidden_units(plan, "width")) == [8, 16]
    decision = plan.decision("width")
    assert decision is not None
    assert decision.text.startswith("the space has 2 points, all tried; ")


def test_what_a_study_inherits_is_part_of_what_its_points_cost() -> None:
    studies = {
        "kernel": f"{BASE}[search]\nconv2_channels = [8]".replace("conv2_channels = 4\n", ""),
        "width": 'inherits = "kernel"\nconstraints = ["n_parameters <= 1_300"]\n'
        "[search]\nhidden_units = [8, 16]",
    }
    plan = made(studies)
    work(plan.storage, out=Path("hpo-out"), studies=["width"])
    assert hidden_units(plan, "width") == [8]


def test_where_all_cost_too_much_no_plan_is_made(cli: Cli) -> None:
    write_study("width", f'constraints = ["n_parameters <= 500"]\n{HIDDEN}')
    result = cli("create", "--studies=studies", *as_options(SIZES))
    assert result.code == 2
    assert (
        "constraints leave no point: nothing in the search space satisfies n_parameters <= 500" in result.err
    )
    assert not Path("hpo-out").exists()


def test_plan_counts_what_is_left_and_shows_what_it_costs(cli: Cli) -> None:
    write_study("width", f'constraints = ["n_parameters <= 2_000"]\n{HIDDEN}')
    options = ["--studies=studies", *as_options(SIZES)]
    width, _ = json.loads(cli("plan", *options, "--json").out)
    assert (width["points"], width["costs"]) == (3, {"n_parameters": [670, 1318]})
    assert "670–1,318" in cli("plan", *options).out
    width, _ = json.loads(cli("plan", *options, "--costs", "--json").out)
    assert width["costs"].keys() == {*RECIPE.cost_names, "seconds_an_epoch"}


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (
            "n_paramters <= 5",
            "n_paramters in 'n_paramters <= 5' is neither a parameter nor a cost; did you mean",
        ),
        ("weight <= 5", "; costs: n_parameters, n_multiplications, model_megabytes, seconds_an_epoch"),
        ("n_parameters <= 5_", "is not a comparison of parameters, costs and numbers"),
        ("n_parameters <= _5", "_5 in 'n_parameters <= _5' is neither"),
        ("n_parameters <= 1__000", "is not a comparison"),
    ],
)
def test_what_cannot_be_told_is_refused(constraint: str, said: str, cli: Cli) -> None:
    write_study("width", f'constraints = ["{constraint}"]\n{HIDDEN}')
    result = cli("plan", "--studies=studies", *as_options(SIZES))
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "studies/width.toml: constraints: " in result.err


COSTLY = """
import hpo
from torch import nn

class Sizes(hpo.Params):
    width: int = hpo.Field(4, ge=1)

class Net(hpo.Recipe):
    Params = Sizes
    constraints = ("n_parameters <= 1_000",)
    def build(self, params, data):
        if params.width == 13:
            raise ValueError("unlucky")
        return nn.Sequential(nn.Flatten(), nn.Linear(64, params.width), nn.Linear(params.width, 10))
"""


def test_a_recipe_may_limit_what_all_of_its_studies_cost() -> None:
    Path("costly.py").write_text(COSTLY)
    recipe = load_recipe("python:costly:Net")
    plan = made({"width": "[search]\nwidth = [4, 12, 13, 14]"}, recipe=recipe.name)
    work(plan.storage, out=Path("hpo-out"), studies=["width"])
    # what cannot be built is no matter of costs: its trial says what is wrong
    complete, pruned, failed, again = plan.trials("width")
    assert [trial.params["width"] for trial in (complete, pruned, failed, again)] == [4, 12, 13, 13]
    assert complete.user_attrs["costs"]["n_parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert "costly.py:13: ValueError: unlucky" in failed.user_attrs["reason"]


# --- a loop of one's own -----------------------------------------------------------------------------------


def of_timed(studies: dict[str, str], more: str = "", **given: Any) -> Plan:
    """A plan of the timed recipe; nothing trained."""
    timed_recipe = timed.RECIPE.replace("    def test(", f"{more}    def test(")
    recipe = timed.write(Path.cwd(), studies, recipe=timed_recipe)
    return find_or_create_plan(
        Path("hpo-out"), studies=Path("studies"), given={**TIMED, "recipe": recipe, **given}
    )


def test_of_a_loop_without_a_network_nobody_can_tell_its_size() -> None:
    with pytest.raises(
        InputError, match=r"n_parameters .* is a cost of networks.*; give the recipe a method"
    ):
        of_timed({"a": 'constraints = ["n_parameters < 5"]\n[search]\nquality = [1, 2]'})


def test_but_it_may_tell_costs_of_its_own() -> None:
    more = '    cost_names = ("n_trees",)\n'
    more += '    def costs(self, params, data):\n        return {"n_trees": 10 * params.quality}\n'
    plan = of_timed({"a": 'constraints = ["n_trees <= 20"]\n[search]\nquality = [1, 2, 3]'}, more)
    work(plan.storage, out=Path("hpo-out"), studies=["a"])
    assert [trial.user_attrs["costs"] for trial in plan.trials("a")] == [{"n_trees": 10}, {"n_trees": 20}]


def test_costs_that_are_told_wrongly_are_refused_before_a_plan_is_made() -> None:
    more = '    cost_names = ("n_trees",)\n    def costs(self, params, data):\n        return {}\n'
    with pytest.raises(InputError, match=r"\.py:\d+: costs must return a finite number 'n_trees'"):
        of_timed({"a": "[search]\nquality = [1, 2]"}, more)


# --- measured ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch takes as long as the recipe says."""
    timed.use_clock(monkeypatch)


SLOW = 'constraints = ["seconds_an_epoch <= 5"]\n[search]\nquality = [1, 2]\nslow = [0, 1]'


@pytest.mark.usefixtures("clock")
def test_a_trial_that_is_found_to_be_too_slow_ends_after_that_epoch_and_is_never_best(cli: Cli) -> None:
    plan = of_timed({"a": SLOW})
    work(plan.storage, out=Path("hpo-out"), studies=["a"])
    by_point = {(t.params["quality"], t.params["slow"]): t for t in plan.trials("a")}
    slow = by_point[2, 1]
    assert (slow.state, slow.last_step, reason_of(slow)) == (TrialState.PRUNED, 1, Reason.INFEASIBLE)
    said = "infeasible: seconds_an_epoch was 10 after epoch 1 of 4, which breaks seconds_an_epoch <= 5"
    assert slow.user_attrs["reason"] == said
    assert by_point[2, 0].state == TrialState.COMPLETE
    decision = plan.decision("a")
    assert decision is not None
    assert decision.params["slow"] == 0
    (found, _) = status(plan)
    assert (found.infeasible, found.ended_badly) == (2, {"infeasible": 2})
    assert said in " ".join(cli("show", "a").out.split())
    report = read(plan)
    assert method(report.sections[0]).endswith("pruner none. 2 complete, 2 infeasible.")
    told = points_table(report, report.sections[0])
    at = [column.head for column in told.columns].index("state")
    assert [row.cells[at].text for row in told.rows] == ["complete", "infeasible"] * 2
    assert not any("infeasible" in row.cells[at + 1].text for row in told.rows)
    assert [row.costs for row in results.rows(plan, "a")][:2] == [
        {"seconds_an_epoch": 1},
        {"seconds_an_epoch": 10},
    ]


@pytest.mark.usefixtures("clock")
def test_it_is_the_mean_that_counts_and_it_may_be_broken_later() -> None:
    epoch = "from tests.support.timed import clock; clock.seconds += 1 + 9 * params.slow * (epoch == 3)"
    studies = {"a": 'constraints = ["seconds_an_epoch <= 3.5"]\n[search]\nslow = [0, 1]'}
    recipe = timed.write(Path.cwd(), studies, epoch)
    plan = find_or_create_plan(Path("hpo-out"), studies=Path("studies"), given={**TIMED, "recipe": recipe})
    work(plan.storage, out=Path("hpo-out"), studies=["a"])
    fast, slow = plan.trials("a")
    assert fast.state == TrialState.COMPLETE
    assert "was 4 after epoch 3 of 4, which breaks" in slow.user_attrs["reason"]


@pytest.mark.usefixtures("clock")
def test_what_was_inherited_is_compared_with_however_slow_it_is() -> None:
    studies = {
        "a": "[search]\nslow = [1]",
        "b": 'inherits = "a"\nconstraints = ["seconds_an_epoch <= 5"]\n[search]\nslow = [1, 0]',
    }
    plan = of_timed(studies)
    work(plan.storage, out=Path("hpo-out"))
    again, fast = plan.trials("b")
    assert (again.state, again.last_step) == (TrialState.PRUNED, 4)
    assert again.user_attrs["reason"].endswith("breaks seconds_an_epoch <= 5 (in a/0)")
    assert fast.state == TrialState.COMPLETE
    decision = plan.decision("b")
    assert decision is not None
    assert not decision.adopted  # ties keep what was inherited
    assert plan.trials(FINAL)[0].user_attrs["config"]["slow"] == 1


@pytest.mark.usefixtures("clock")
def test_what_is_too_slow_is_so_in_the_study_that_takes_it_over(cli: Cli) -> None:
    plan = of_timed({"a": SLOW, "b": 'inherits = "a"\n[search]\nquality = [5]'})
    work(plan.storage, out=Path("hpo-out"), studies=["b"])
    assert cli("extend", "a", "quality=3").code == 0
    plan = Plan.open(plan.storage)
    work(plan.storage, out=Path("hpo-out"), studies=["a-2"])
    over = {(t.params["quality"], t.params["slow"]): t for t in plan.trials("a-2")}[2, 1]
    assert (over.state, reason_of(over)) == (TrialState.PRUNED, Reason.INFEASIBLE)
    assert over.user_attrs["reason"].endswith("breaks seconds_an_epoch <= 5 (in a/3)")
