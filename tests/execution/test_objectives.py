"""Studies with two objectives: what is kept of them, what is carried on, and what is said of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpo.cli.tables import Screen, show_status
from hpo.errors import InputError
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.monitor.results import best, best_trial, pareto_front
from hpo.monitor.status import status
from hpo.planning.confirmation import Obstacle
from hpo.planning.plan import CONFIRM, FINAL, Plan
from hpo.reporting.charts import TradeOff
from hpo.reporting.data import read
from hpo.reporting.figures import trade_off
from hpo.reporting.render.matplotlib import draw
from hpo.reporting.render.plotly import Plot
from tests.support import timed
from tests.support.fixtures import Cli

SIZES: dict[str, Any] = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1}
MORE = """    cost_names = ("size",)
    def costs(self, params, data):
        return {"size": 10 * params.quality + 100 * params.slow}
"""
"""Accuracy is 50.0 % and a tenth of a point more for each step of quality."""
OBJECTIVES = 'objectives = ["accuracy", "size"]\n'
SEARCH = "[search]\nquality = [0, 10, 20, 30]\nslow = [0, 1]"
NEAR = 'choose = "smallest size within 0.015 of best accuracy"\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    timed.use_clock(monkeypatch)


def made(studies: dict[str, str], more: str = MORE, **given: Any) -> Plan:
    recipe = timed.write(
        Path.cwd(), studies, recipe=timed.RECIPE.replace("    def test(", f"{more}    def test(")
    )
    options = {**SIZES, "recipe": recipe, **given}
    return find_or_create_plan(Path("hpo-out"), studies=Path("studies"), given=options)


def trained(studies: dict[str, str], *names: str, **given: Any) -> Plan:
    plan = made(studies, **given)
    assert work(plan.storage, out=Path("hpo-out"), studies=names) is None
    return Plan.open(plan.storage)


def front_of(plan: Plan, name: str) -> list[dict[str, Any]]:
    outlines = plan.storage.outlines.of(plan.storage.study_id(name))
    return pareto_front(plan, name, plan.record(name), outlines)


def test_a_study_keeps_its_front_and_carries_on_what_the_rule_names(cli: Cli) -> None:
    plan = trained({"a": f"{OBJECTIVES}{NEAR}{SEARCH}"}, "a")
    # slow ones are as good and larger; the first of each pair is on the front
    values = [(each["trial"], each["size"]) for each in front_of(plan, "a")]
    assert values == [(6, 300), (4, 200), (2, 100), (0, 0)]
    decision = plan.decision("a")
    assert decision is not None
    assert decision.params["quality"] == 20
    assert decision.value == pytest.approx(0.520004)
    assert decision.text == (
        "chose quality 20, slow 0 of 8: smallest size within 0.015 of best accuracy: size 200 "
        "(one seed; nothing inherited to compare with)"
    )
    (found, _) = status(plan)
    assert found.best is not None
    assert (found.best["trial"], found.best["params"]) == (4, {"quality": 20, "slow": 0})
    assert list(found.front) == front_of(plan, "a")
    assert best(plan)["params"]["quality"] == 20

    shown = cli("show", "a").out.splitlines()
    assert [line.split()[0] for line in shown if "●" in line] == ["0", "2", "4", "6"]
    assert json.loads(cli("show", "a", "--json").out)["front"] == front_of(plan, "a")
    told = "a: Pareto front of accuracy and size: trials 6 (53.0 %, 300), 4 (52.0 %, 200), 2 (51.0 %, 100), "
    assert told in " ".join(cli("status").out.split())
    assert json.loads(cli("status", "--json").out)["studies"][0]["front"] == front_of(plan, "a")
    screen = Screen(file=io.StringIO(), width=200, record=True)
    show_status([replace(found, front=found.front[:1])], plan.objective, screen)
    assert "front of accuracy and size: trial 6 (53.0 %, 300)\n" in screen.export_text()


def test_while_it_runs_the_rule_says_what_is_best_so_far() -> None:
    plan = made({"a": f"{OBJECTIVES}{NEAR}{SEARCH}"})
    from hpo.execution.worker import Limits

    work(plan.storage, out=Path("hpo-out"), studies=["a"], limits=Limits(max_trials=5))
    trials = plan.storage.outlines.of(plan.storage.study_id("a"))
    found = best_trial(plan, "a", plan.record("a"), trials)
    assert found is not None
    assert found.params == {"quality": 10, "slow": 0}


def test_without_a_rule_the_best_by_the_first_objective_is_carried_on() -> None:
    plan = trained({"a": f"{OBJECTIVES}{SEARCH}"}, "a")
    decision = plan.decision("a")
    assert decision is not None
    assert (decision.params["quality"], decision.params["slow"]) == (30, 0)
    assert decision.text.startswith("chose quality 30, slow 0: best of 8, the first of 2 equal ones")
    assert len(front_of(plan, "a")) == 4


def test_the_second_may_be_a_metric_or_be_measured() -> None:
    more = MORE.replace(
        "    cost_names", '    metrics = {"accuracy": "maximize", "mae": "minimize"}\n    cost_names'
    )
    recipe = timed.RECIPE.replace(
        "epoch / 1e6}", 'epoch / 1e6, "mae": 3.0 + params.slow - params.quality / 100}'
    )
    recipe = recipe.replace('return {"accuracy": 0.5}', 'return {"accuracy": 0.5, "mae": 1.0}')
    studies = {
        "a": f'objectives = ["accuracy", "mae"]\nchoose = "best mae"\n{SEARCH}',
        "b": 'objectives = ["accuracy", "seconds_an_epoch"]\nchoose = "best seconds_an_epoch"\n'
        "[search]\nslow = [1, 0]",
    }
    name = timed.write(Path.cwd(), studies, recipe=recipe.replace("    def test(", f"{more}    def test("))
    plan = find_or_create_plan(Path("hpo-out"), studies=Path("studies"), given={**SIZES, "recipe": name})
    work(plan.storage, out=Path("hpo-out"), studies=["a", "b"])
    assert [(each["trial"], each["mae"]) for each in front_of(plan, "a")] == [(6, 2.7)]
    decision = plan.decision("b")
    assert decision is not None
    assert decision.params["slow"] == 0
    assert "best seconds_an_epoch: seconds an epoch 1 " in decision.text


# --- against what was inherited ----------------------------------------------------------------------------

FIRST = "[search]\nquality = [30]\nslow = [1]"


def test_what_is_inherited_takes_part_and_a_smaller_one_is_adopted_though_behind() -> None:
    child = f'inherits = "a"\n{OBJECTIVES}{NEAR}[search]\nslow = [0, 1]\nquality = [10, 20]'
    plan = trained({"a": FIRST, "b": child}, "b")
    decision = plan.decision("b")
    assert decision is not None
    assert decision.adopted
    assert decision.text == (
        "adopted slow 0, quality 20: smallest size within 0.015 of best accuracy: size 200 instead of 400, "
        "although 1.0 points behind slow 1, quality 30 (one seed, not tested)"
    )


def test_ties_keep_what_was_inherited() -> None:
    child = f'inherits = "a"\n{OBJECTIVES}choose = "smallest size"\n[search]\nslow = [1]\nquality = [30, 40]'
    plan = trained({"a": FIRST, "b": child}, "b")
    decision = plan.decision("b")
    assert decision is not None
    assert not decision.adopted
    assert decision.text == (
        "kept quality 30: smallest size: size 400 instead of 500, 1.0 points behind quality 40 "
        "(one seed, not tested)"
    )


def test_where_nothing_satisfies_the_rule_the_first_objective_decides() -> None:
    limited = f'{OBJECTIVES}choose = "best accuracy with size < 0"\n{SEARCH}'
    plan = trained({"a": limited}, "a")
    decision = plan.decision("a")
    assert decision is not None
    assert decision.params["quality"] == 30
    assert decision.text.startswith(
        "nothing satisfies 'best accuracy with size < 0', so that accuracy decides; chose quality 30"
    )


def test_several_seeds_test_the_first_objective_for_one_of_many() -> None:
    child = f'inherits = "a"\n{OBJECTIVES}{NEAR}[search]\nslow = [0]\nquality = [10, 20]'
    plan = trained({"a": FIRST, "b": child}, "b", seeds=3)
    decision = plan.decision("b")
    assert decision is not None
    assert decision.adopted
    assert decision.tested
    assert decision.text.endswith("(3 seeds, p = 0 for one of 2)")


def test_a_confirmation_leaves_such_a_decision_as_it_is() -> None:
    child = f'inherits = "a"\n{OBJECTIVES}{NEAR}[search]\nslow = [0]\nquality = [20]'
    plan = trained({"a": FIRST, "b": child}, confirm=True)
    confirmation = plan.record(CONFIRM).confirmation
    assert confirmation is not None
    (decision,) = confirmation.decisions
    assert (decision.study, decision.kept, decision.obstacle) == ("b", True, Obstacle.CHOSEN)
    assert plan.trials(FINAL)[0].user_attrs["config"]["quality"] == 20


# --- the figure --------------------------------------------------------------------------------------------


def test_the_report_draws_front_and_choice() -> None:
    plan = trained({"a": f"{OBJECTIVES}{NEAR}{SEARCH}"}, "a")
    report = read(plan)
    figure = trade_off(report, report.sections[0])
    assert figure is not None
    chart = figure.chart
    assert isinstance(chart, TradeOff)
    assert len(chart.points) == 8
    assert [size for size, _ in chart.line] == [0, 100, 200, 300]
    assert chart.chosen == 4
    assert (chart.x_axis, chart.y_axis, chart.has_log_x) == ("size", "accuracy, %", False)
    for has_log_x in (False, True):
        drawn = replace(
            figure, chart=replace(chart, points=[(x + 1, y) for x, y in chart.points], has_log_x=has_log_x)
        )
        assert b"<svg" in draw(drawn).svg
        everything, line, ring = json.loads(Plot(drawn).to_json())["data"]
        assert (len(everything["x"]), line["x"], ring["x"]) == (8, [1, 101, 201, 301], [201])


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said", "given"),
    [
        (
            'objectives = ["accuracy", "sise"]',
            "sise is neither a metric nor a cost; did you mean 'size'?",
            {},
        ),
        ('objectives = ["size", "accuracy"]', "the first must be accuracy, which the plan is tuned for", {}),
        ('objectives = ["accuracy", "accuracy"]', "must be two different ones", {}),
        ('objectives = ["accuracy"]', "objectives.1 is missing", {}),
        ('objectives = ["accuracy", "mae", "size"]', "must have at most 2 entries", {}),
        ('choose = "best accuracy"', "goes with objectives", {}),
        (f'{OBJECTIVES}choose = "best sise"', "sise is not one of the objectives", {}),
        (f'{OBJECTIVES}choose = "largest size"', "size is minimized, so the largest is the worst", {}),
        (
            f'{OBJECTIVES}choose = "best size"',
            "--seeds race gives seeds by accuracy alone",
            {"seeds": "race"},
        ),
    ],
)
def test_a_study_that_cannot_be_used_is_refused_by_file_and_key(
    text: str, said: str, given: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        made({"a": f"{text}\n{SEARCH}"}, **given)
    assert said in str(caught.value)
    assert "a.toml: " in str(caught.value)
    assert not Path("hpo-out", "hpo.db").exists()
