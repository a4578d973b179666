"""A plan's decisions tried again on fresh seeds, from the command to the final configuration."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import hpo as library
from hpo.errors import ConflictError, InputError
from hpo.execution.backends.local import local_processes
from hpo.execution.plan_recipe import with_recipe
from hpo.execution.run import find_or_create_plan, run
from hpo.execution.verify import verify
from hpo.execution.worker import Limits, work
from hpo.monitor.files import files_in
from hpo.planning.plan import CONFIRM, FINAL, Plan
from hpo.planning.scheduler import advance
from hpo.planning.verdicts import LOOKS
from hpo.reporting.charts import Forest
from hpo.reporting.data import read
from hpo.reporting.figures import figures
from hpo.reporting.render.matplotlib import draw
from hpo.reporting.render.plotly import Plot
from hpo.storage.queue import Reason, reason_of, slot_of
from hpo.storage.storage import Storage
from tests.support import simulated
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, TINY_SIZES, accepted_epochs

SIZES = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for recipe, studies and plans, where commands are carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan that has ended, its confirmation before its final stage."""
    folder = tmp_path_factory.mktemp("confirmed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return simulated_plan(folder / "out")


def simulated_plan(
    out: Path, *names: str, code: str = simulated.RECIPE, n_trials: int | None = None, **given: Any
) -> Plan:
    """A plan of the simulated recipe, worked on in this process."""
    options = {**SIZES, "recipe": simulated.write(out.parent, code), "confirm": True, **given}
    plan = find_or_create_plan(out, studies=out.parent / "studies", given=options)
    assert work(plan.storage, out=out, studies=names, limits=Limits(max_trials=n_trials)) is None
    return library.find_plan(out)


def found(plan: Plan) -> dict[str, tuple[str, bool, int]]:
    """Verdict, whether kept, and seeds of each decision."""
    confirmation = plan.record(CONFIRM).confirmation
    assert confirmation is not None
    return {each.study: (each.verdict, each.kept, each.seeds) for each in confirmation.decisions}


def n_trials(plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for trial in plan.trials(CONFIRM):
        arm = trial.user_attrs["point"]
        counts[arm] = counts.get(arm, 0) + 1
    return counts


# --- what it does -----------------------------------------------------------------------------------------


def test_what_helps_is_kept_and_what_was_luck_is_taken_back(confirmed: Plan, cli: Cli) -> None:
    assert found(confirmed)["helps"][:2] == ("better", True)
    assert found(confirmed)["luck"][:2] == ("equivalent", False)
    (final,) = confirmed.trials(FINAL)
    assert final.user_attrs["config"] == {"useful": 1, "useless": 0, "harmless": 1, "epochs": 1}
    assert final.user_attrs["final"]["search_value"] is None  # the search has not trained that


@pytest.mark.slow
def test_how_long_to_train_on_everything_is_what_fresh_seeds_chose(place: Path) -> None:
    """Of what is left nobody has trained all together in the search."""
    code = simulated.RECIPE.replace("+ lucky}", "+ lucky - 0.01 * abs(epoch - 2)}")
    plan = simulated_plan(place / "out", code=code, epochs=3, final_data="train+validation")
    assert found(plan)["luck"][:2] == ("equivalent", False)
    (final,) = plan.trials(FINAL)
    assert (final.user_attrs["config"]["epochs"], final.user_attrs["final"]["selected_epoch"]) == (3, 2)
    assert [*final.intermediate_values] == [1, 2]


def test_confirm_json_is_the_contract(confirmed: Plan, cli: Cli) -> None:
    result = cli("confirm", "--json", "--storage", confirmed.storage.url)
    assert result.code == 0
    record = json.loads(result.out)
    assert record.keys() == {"decisions", "configuration"}
    contract = {"study", "change", "verdict", "difference", "interval", "seeds", "p_value", "p_adjusted"}
    assert all(contract <= decision.keys() for decision in record["decisions"])
    helps, luck = record["decisions"]
    assert (helps["study"], helps["change"]) == ("helps", {"useful": 1})
    assert helps["interval"][0] < helps["difference"] < helps["interval"][1]
    assert helps["difference"] == pytest.approx(0.03, abs=0.01)
    assert helps["p_value"] <= helps["p_adjusted"] <= 0.05 < luck["p_value"]
    assert record["configuration"] == confirmed.trials(FINAL)[0].user_attrs["config"]


def test_nothing_is_trained_for_a_decision_that_has_its_verdict(confirmed: Plan) -> None:
    counts, decided = n_trials(confirmed), found(confirmed)
    assert counts["without helps"] == decided["helps"][2] == LOOKS[0]
    assert counts["without luck"] == decided["luck"][2] == counts["as chosen"] > LOOKS[0]


def test_its_seeds_are_its_own_and_so_are_their_splits(confirmed: Plan) -> None:
    seeds = {
        name: {seed for trial in confirmed.trials(name) for seed in trial.user_attrs["seeds"]}
        for name in confirmed.all_names
    }
    assert seeds[CONFIRM].isdisjoint(seeds[FINAL] | seeds["start"] | seeds["luck"])
    for trial in confirmed.trials(CONFIRM):
        assert [trial.user_attrs["split_seed"]] == trial.user_attrs["seeds"]
    others = [trial for name in (*confirmed.specs, FINAL) for trial in confirmed.trials(name)]
    assert all("split_seed" not in trial.user_attrs for trial in others)


# --- how it is shown ---------------------------------------------------------------------------------------


def test_every_page_says_the_same_of_a_decision(confirmed: Plan, cli: Cli, tmp_path: Path) -> None:
    where = ("--storage", confirmed.storage.url)
    words = "taken back, shown to make no difference that matters: accuracy"
    seeds = f"({found(confirmed)['luck'][2]} fresh seeds, each with its own split)"
    for command in (("confirm",), ("show", "confirm"), ("show", "luck"), ("best",)):
        result = cli(*command, *where)
        assert result.code == 0, result.err
        text = " ".join(result.out.split())
        assert words in text, command
        assert seeds in text, command
    assert "without luck, seed 20000" in cli("show", "confirm", *where).out
    folder = tmp_path / "report"
    page = Path(cli("report", "--to", folder, *where).out.strip()).with_suffix(".md")
    text = page.read_text()
    assert words in text
    assert "without what fresh seeds did not confirm (luck)" in text
    assert "no decision is tested against noise" not in text
    assert (folder / "tables" / "confirmation.csv").read_text().count("\n") == 3
    assert "](figures/confirmation.svg)" in text
    assert {*folder.rglob("*.*")} <= {*files_in(tmp_path, confirmed)["outputs"]}  # `hpo delete` knows them


def test_a_figure_shows_each_decision_with_its_interval(confirmed: Plan) -> None:
    (figure,) = [each.figure for each in figures(read(confirmed)) if each.name == "confirmation"]
    assert isinstance(figure.chart, Forest)
    record = confirmed.record(CONFIRM).confirmation
    assert record is not None
    assert [(each.row, each.text) for each in figure.chart.estimates] == [
        ("helps: useful 1", "shown to be better; kept"),
        ("luck: useless 3", "shown to make no difference that matters; taken back"),
    ]
    for drawn, decision in zip(figure.chart.estimates, record.decisions, strict=True):
        assert decision.difference is not None
        assert decision.interval is not None
        points = [100 * number for number in (decision.difference, *decision.interval)]
        assert [drawn.value, drawn.low, drawn.high] == points
        assert drawn.delta == 100 * confirmed.delta
    low, high = figure.chart.limits
    assert low < min(each.low for each in figure.chart.estimates)
    assert high > max(each.high for each in figure.chart.estimates)
    assert draw(figure).png.startswith(b"\x89PNG")
    assert len(json.loads(Plot(figure).to_json())["data"][0]["x"]) == 2


def test_it_is_a_study_to_all_who_look(confirmed: Plan, cli: Cli) -> None:
    where = ("--storage", confirmed.storage.url)
    studies = json.loads(cli("status", "--json", *where).out)["studies"]
    assert [study["name"] for study in studies] == ["start", "helps", "luck", "confirm", "final"]
    assert studies[3]["state"] == "done"
    assert studies[3]["points"]["complete"] == sum(n_trials(confirmed).values())
    assert studies[3]["decision"] == "took back luck (useless 0); kept helps (useful 1)"
    record = json.loads(cli("best", "--json", *where).out)
    assert record["params"] == confirmed.trials(FINAL)[0].user_attrs["config"]
    assert record["source"] is None
    trial = json.loads(cli("show", "confirm/1", "--json", *where).out)
    assert trial["point"] == "without helps"
    assert trial["origins"]["useful"] == "default"
    assert trial["origins"]["useless"] == "chosen by luck, luck/1"
    final = json.loads(cli("show", "final/0", "--json", *where).out)
    assert final["origins"]["useful"] == "chosen by helps, helps/1"
    assert final["origins"]["useless"] == "default"
    assert "confirm" in cli("export", *where).out


def test_what_it_will_cost_at_most_is_told_before(place: Path, cli: Cli) -> None:
    recipe = simulated.write(place)
    plan = ("plan", "--studies=studies", f"--recipe={recipe}", "--data=digits", "--confirm")
    lines = {line["study"]: line for line in json.loads(cli(*plan, "--json").out)}
    assert list(lines) == ["start", "helps", "luck", "confirm", "final"]
    assert lines["confirm"]["epochs"] == 3 * LOOKS[-1]
    assert lines["confirm"]["is_at_most"]
    assert f"at most; {3 * LOOKS[0]} epochs where each of 2 decisions is clear" in cli(*plan).out


# --- as it is asked for ------------------------------------------------------------------------------------


def test_on_the_same_split_no_seed_draws_another(place: Path, cli: Cli) -> None:
    plan = simulated_plan(place / "out", CONFIRM, same_split=True)
    assert all("split_seed" not in trial.user_attrs for trial in plan.trials(CONFIRM))
    assert "with its own split" not in cli("confirm", "--out", place / "out").out


def test_what_makes_no_difference_may_be_kept(place: Path) -> None:
    plan = simulated_plan(place / "out", keep="equivalent", delta=0.05)
    assert found(plan)["luck"][:2] == ("equivalent", True)
    (final,) = plan.trials(FINAL)
    assert final.user_attrs["config"]["useless"] == 3
    assert final.user_attrs["final"]["search_value"] is not None


def test_a_seed_that_diverges_counts_against_the_change(place: Path) -> None:
    diverging = "lucky - (math.nan if params.useless and seed == 20_002 else 0)}"
    plan = simulated_plan(place / "out", code=simulated.RECIPE.replace("lucky}", diverging))
    assert found(plan)["luck"][1] is False
    confirmation = plan.record(CONFIRM).confirmation
    assert confirmation is not None
    assert confirmation.decisions[1].difference == pytest.approx(-0.5 / found(plan)["luck"][2], rel=0.2)
    assert plan.trials(FINAL)[0].state == TrialState.COMPLETE


def test_what_cannot_be_trained_without_is_kept_and_that_is_said(place: Path, cli: Cli) -> None:
    failing = "        assert params.useful or seed < 20_000\n        for epoch"
    code = simulated.RECIPE.replace("        for epoch", failing)
    plan = simulated_plan(place / "out", CONFIRM, code=code)
    assert found(plan)["helps"] == ("not tested", True, 0)
    shown = " ".join(cli("confirm", "--out", place / "out").out.split())
    assert "kept, not tested: a training that the test takes failed for good" in shown


# --- on a plan that exists ---------------------------------------------------------------------------------


def test_a_plan_that_exists_is_given_a_confirmation(place: Path, cli: Cli) -> None:
    plan = simulated_plan(place / "out", *simulated.STUDIES, confirm=False)
    assert CONFIRM not in plan.all_names
    early = cli("confirm", "--out", place / "out", "--keep", "equivalent", "--delta", "0.05")
    assert early.code == 0, early.err
    plan = library.find_plan(place / "out")
    assert plan.options.keep == "equivalent"
    assert "the test set is locked" in early.out
    refused = cli("confirm", "--out", place / "out", "--keep", "better")
    assert (refused.code, refused.out) == (2, "")
    assert "--keep better contradicts the plan" in refused.err
    find_or_create_plan(place / "out", given={"confirm": True})  # what is recorded is no contradiction
    assert work(Storage(plan.storage.url), out=place / "out") is None
    confirmation = plan.record(CONFIRM).confirmation
    assert confirmation is not None
    assert plan.trials(FINAL)[0].user_attrs["config"] == confirmation.inherited.params


def test_a_final_stage_that_has_begun_is_not_confirmed_any_more(place: Path, cli: Cli) -> None:
    simulated_plan(place / "out", confirm=False)
    refused = cli("confirm", "--out", place / "out")
    assert (refused.code, refused.out) == (2, "")
    assert "the final stage has begun" in refused.err
    assert "start anew with --confirm and another --out" in refused.err
    assert library.find_plan(place / "out").all_names[-2:] == ["luck", FINAL]


def test_no_confirmation_before_every_study_has_decided(place: Path, cli: Cli) -> None:
    simulated_plan(place / "out", "start", confirm=False)
    refused = cli("confirm", "--out", place / "out")
    assert refused.code == 2
    assert "no confirmation before every study has decided; open: helps, luck" in refused.err


def test_a_worker_that_knows_of_no_confirmation_does_not_open_the_test_set(place: Path) -> None:
    simulated_plan(place / "out", *simulated.STUDIES, confirm=False)
    url = f"sqlite:///{place / 'out' / 'hpo.db'}"
    stale, other = with_recipe(Plan.open(Storage(url))), Plan.open(Storage(url))
    other.with_confirmation({})
    with pytest.raises(ConflictError, match="was given a confirmation meanwhile"):
        advance(stale)
    assert stale.record(FINAL).inherited is None


def test_options_of_the_confirmation_go_with_it(place: Path, cli: Cli) -> None:
    recipe = simulated.write(place)
    for option in (("--keep", "equivalent"), ("--delta", "0.01"), ("--same-split",)):
        refused = cli("create", "--studies=studies", f"--recipe={recipe}", "--data=digits", *option)
        assert refused.code == 2
        assert f"{' '.join(option)} goes with --confirm" in refused.err
    contradicting = simulated_plan(place / "out", "start", confirm=False)
    with pytest.raises(InputError, match=r"--confirm contradicts the plan.*`hpo confirm` adds it"):
        find_or_create_plan(place / "out", given={"confirm": True})
    assert not contradicting.confirms


# --- wherever it is stopped --------------------------------------------------------------------------------


def test_worked_on_in_pieces_it_ends_with_the_same_bits(place: Path, confirmed: Plan) -> None:
    code = simulated.RECIPE
    plan = simulated_plan(place / "out", code=code, n_trials=10)
    assert plan.record(CONFIRM).confirmation is None
    plan = simulated_plan(place / "out", code=code, n_trials=5)
    plan = simulated_plan(place / "out", code=code)
    assert plan.record(CONFIRM).confirmation == confirmed.record(CONFIRM).confirmation
    assert accepted_epochs(plan) == accepted_epochs(confirmed)


@pytest.mark.slow
def test_a_lost_seed_is_trained_again_on_its_own_split(place: Path) -> None:
    """Images this time, and checkpoints: killed after an epoch, it resumes, and ends with the same bits."""
    studies = {
        "setup": f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]",
        "shape": 'inherits = "setup"\n[search]\nhidden_units = [32, 64]',  # neither is what it inherits
    }
    for name, text in studies.items():
        (place / "studies").mkdir(exist_ok=True)
        (place / "studies" / f"{name}.toml").write_text(text)
    # so many epochs that a look every second finds a trial that is in the middle of them
    sizes = {**TINY_SIZES, "epochs": 60, "confirm": True, "adopt": "always", "delta": 0.5}
    plan = find_or_create_plan(place / "out", studies=place / "studies", given=sizes)
    killed: list[int] = []

    def on_tick() -> None:
        for trial in plan.trials(CONFIRM):
            # after the second report the checkpoint of the first epoch is there
            if not killed and trial.state == TrialState.RUNNING and len(trial.intermediate_values) > 1:
                killed.append(trial.number)
                os.kill(trial.user_attrs["owner"]["pid"], signal.SIGKILL)

    assert run(plan, out=place / "out", workers=2, engine=local_processes, on_tick=on_tick) is None
    trials = plan.trials(CONFIRM)
    lost = trials[killed[0]]
    (again,) = (
        trial for trial in trials if slot_of(trial) == slot_of(lost) and trial.user_attrs["attempt"] == 2
    )
    assert reason_of(lost) == Reason.LOST
    assert again.user_attrs["resumed_after_epoch"] >= 1
    assert again.user_attrs["split_seed"] == lost.user_attrs["split_seed"]
    assert verify(plan, CONFIRM, again) is None
    assert len({trial.user_attrs["owner"]["pid"] for trial in trials}) > 1
