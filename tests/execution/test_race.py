"""Seeds where a decision is open: `--seeds race`, from the option to the decision in words."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

import hpo as library
from hpo.errors import ConflictError, InputError
from hpo.execution.backends.local import local_processes
from hpo.execution.plan_recipe import with_recipe
from hpo.execution.run import find_or_create_plan, run
from hpo.execution.verify import verify
from hpo.execution.worker import Limits, work
from hpo.monitor.comparison import compare_trained
from hpo.monitor.export import export
from hpo.monitor.results import TrialRow, best, rows
from hpo.monitor.status import status
from hpo.planning.closing import finish
from hpo.planning.crossing import open_price
from hpo.planning.decisions import Decision
from hpo.planning.inheritance import best_of_search, decided_trial
from hpo.planning.plan import PRICE, Plan
from hpo.planning.race import RaceResult, Stop, looks
from hpo.planning.revision import discard
from hpo.planning.scheduler import advance
from hpo.storage.queue import Queue, Reason, claim, reason_of, slot_of
from hpo.storage.trials import id_of
from tests.support import simulated
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, TINY_SIZES, accepted_epochs

RECIPE = """
import random, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(2, ge=1, le=9)
    quality: int = hpo.Field(0, ge=0, le=99)
    shape: int = hpo.Field(0, ge=0, le=9)

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        common = random.Random(seed).gauss(0, 0.02)
        own = random.Random(f"{seed} {params}").gauss(0, 0.004)
        for epoch in range(1, params.epochs + 1):
            value = 0.4 + common + own + 0.002 * params.quality + 0.01 * epoch
            yield hpo.Epoch({"accuracy": value}, state=None)
    def test(self, params, data, state):
        return {"accuracy": 0.5}
"""
"""Where `quality` helps, and `shape` makes no difference."""
STUDIES = {
    "first": "[search]\nquality = [1, 20, 39, 40]",
    "second": 'inherits = "first"\n[search]\nshape = [0, 1]',
    "sampled": """
        inherits = "second"
        trials = 3
        [search]
        quality = {low = 0, high = 40}
        [sampler]
        name = "tpe"
    """,
}
SIZES = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1, "seeds": "race"}
LOOKS = looks(12)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for recipe, studies and plans, where commands are carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def new_plan(out: Path, code: str = RECIPE, studies: dict[str, str] = STUDIES, **given: Any) -> Plan:
    name = simulated.write(out.parent, code)
    for file in (out.parent / "studies").glob("*.toml"):
        file.unlink()
    for study, text in studies.items():
        (out.parent / "studies" / f"{study}.toml").write_text(text)
    return find_or_create_plan(out, studies=out.parent / "studies", given={**SIZES, "recipe": name, **given})


def worked(plan: Plan, out: Path, *names: str, n_trials: int | None = None) -> Plan:
    assert work(plan.storage, out=out, studies=names, limits=Limits(max_trials=n_trials)) is None
    return library.find_plan(out)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan that has ended."""
    folder = tmp_path_factory.mktemp("raced")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return worked(new_plan(folder / "out"), folder / "out")


def decided(plan: Plan, name: str) -> tuple[Decision, RaceResult]:
    decision = plan.decision(name)
    assert decision is not None
    assert decision.race is not None
    return decision, decision.race


def by_point(plan: Plan, name: str) -> dict[str, list[FrozenTrial]]:
    found: dict[str, list[FrozenTrial]] = {}
    for trial in plan.trials(name):
        found.setdefault(trial.user_attrs["point"], []).append(trial)
    return found


def row_of(plan: Plan, name: str, **params: int) -> TrialRow:
    (row,) = [row for row in rows(plan, name) if row.params == params]
    return row


# --- what it does ---------------------------------------------------------------------------------------


def test_further_seeds_are_for_points_that_can_still_win(raced: Plan) -> None:
    n_seeds = {
        point: sum(len(t.user_attrs["seeds"]) for t in trials)
        for point, trials in by_point(raced, "first").items()
    }
    assert n_seeds['{"quality":1}'] == n_seeds['{"quality":20}'] == 3
    assert n_seeds['{"quality":39}'] > 3
    assert n_seeds['{"quality":40}'] > 3


def test_each_replicate_is_the_next_block_of_seeds(raced: Plan) -> None:
    for trials in by_point(raced, "first").values():
        seeds = [seed for trial in trials for seed in trial.user_attrs["seeds"]]
        assert seeds == list(range(len(seeds)))
        assert len(seeds) in LOOKS
        assert [trial.user_attrs["replicate"] for trial in trials] == list(range(len(trials)))


def test_the_decision_says_how_many_seeds_each_point_got_and_why_no_more(raced: Plan) -> None:
    decision, race = decided(raced, "first")
    told = {trial: (each.stop, each.seeds) for each in race.finishes for trial in each.trials}
    firsts = {point: trials[0].number for point, trials in by_point(raced, "first").items()}
    assert told.keys() == set(firsts.values())
    assert told[firsts['{"quality":1}']] == (Stop.BEHIND, 3)
    assert decision.winner is not None
    assert told[decision.winner.source.trial] == (Stop.WON, len(decision.winner.seeds))
    assert "2 left after 3" in decision.text


def test_the_value_of_a_point_is_that_of_all_its_seeds_together(raced: Plan) -> None:
    decision, _ = decided(raced, "first")
    winner = decision.winner
    assert winner is not None
    trials = by_point(raced, "first")[json.dumps(winner.searched, separators=(",", ":"))]
    values = [seed["metrics"]["accuracy"] for trial in trials for seed in trial.user_attrs["epoch:2"]]
    assert len(values) > 3
    assert decision.value == pytest.approx(sum(values) / len(values))


def test_the_control_races_and_is_trained_only_on_seeds_that_nobody_has_trained(raced: Plan) -> None:
    before = len(decided(raced, "first")[0].winner.seeds)  # type: ignore[union-attr]
    control = by_point(raced, "second")['{"shape":0}']
    for trial in control:
        is_known = max(trial.user_attrs["seeds"]) < before
        assert (reason_of(trial) == Reason.REUSED) is is_known
    assert decided(raced, "second")[0].control is not None


def test_a_sampled_study_races_after_its_search_has_ended(raced: Plan) -> None:
    trials = raced.trials("sampled")
    first = [trial for trial in trials if trial.user_attrs["replicate"] == 0]
    further = [trial for trial in trials if trial.user_attrs["replicate"] > 0]
    assert len(first) == 4  # with the control
    assert further
    assert max(trial.number for trial in first) < min(trial.number for trial in further)
    params = {trial.user_attrs["point"]: trial.params for trial in first}
    assert all(trial.params == params[trial.user_attrs["point"]] for trial in further)


def test_what_was_pruned_gets_no_further_seeds(place: Path) -> None:
    study = {"s": "[search]\nquality = [30, 31, 1]\n[pruner]\nname = 'threshold'\nlower = 0.45"}
    # on further seeds all are where the first were stopped; yet these are to be pooled, so none is
    code = RECIPE.replace("0.4 +", "0.4 - 0.1 * (seed > 2) +")
    plan = worked(new_plan(place / "out", code, study), place / "out", "s")
    _, race = decided(plan, "s")
    assert [len(each) for each in by_point(plan, "s").values()][2] == 1
    assert {each.stop for each in race.finishes if each.trials == (2,)} == {Stop.PRUNED}
    assert "1 pruned" in decided(plan, "s")[0].text
    replicates = [trial for trial in plan.trials("s") if trial.user_attrs["replicate"]]
    assert {trial.state for trial in replicates} == {TrialState.COMPLETE}


def test_a_point_that_fails_on_further_seeds_is_out(place: Path) -> None:
    code = RECIPE.replace("common =", "assert seed < 3 or params.quality != 40, 'no'\n        common =")
    plan = worked(new_plan(place / "out", code=code), place / "out", "first")
    decision, race = decided(plan, "first")
    assert decision.params["quality"] == 39
    assert [each.stop for each in race.finishes if 3 in each.trials] == [Stop.FAILED]
    assert row_of(plan, "first", quality=40).state == "failed"
    assert "no" in row_of(plan, "first", quality=40).reason


# --- interrupted and shared --------------------------------------------------------------------------------


def test_whoever_works_on_it_in_however_many_steps_finds_the_same(raced: Plan, place: Path) -> None:
    plan = new_plan(place / "out")
    while (again := worked(plan, place / "out", n_trials=5)).record("final").test_opened is None:
        pass
    undisturbed = library.find_plan(storage=raced.storage.url)
    assert accepted_epochs(library.find_plan(place / "out")) == accepted_epochs(undisturbed)
    for name in STUDIES:
        assert decided(again, name) == decided(raced, name)


def test_a_further_replicate_that_is_lost_is_tried_again(raced: Plan, place: Path) -> None:
    plan = new_plan(place / "out")
    worked(plan, place / "out", "first", n_trials=4)
    assert not advance(with_recipe(plan), ["first"])
    lost = claim(plan.storage, ["first"])
    assert lost is not None
    assert lost.trial.user_attrs["replicate"] == 1
    assert Queue(plan.storage, "first").close(id_of(lost.trial), Reason.LOST)
    again = worked(plan, place / "out", "first")
    assert decided(again, "first")[0].params == decided(raced, "first")[0].params
    assert row_of(again, "first", **lost.trial.params).state == "complete"


def test_a_plan_that_is_finished_amid_a_race_decides_by_the_seeds_that_all_have(
    cli: Cli, place: Path
) -> None:
    # the fourth seed is good for whoever gets it first
    code = RECIPE.replace("value = 0.4", "value = 0.4 + 0.2 * (seed == 3)")
    plan = new_plan(place / "out", code)
    worked(plan, place / "out", n_trials=5)
    assert finish(plan, plan.all_names) == list(STUDIES)
    plan = worked(plan, place / "out")
    decision, race = decided(plan, "first")
    assert decision.params["quality"] == 40
    assert decision.text.startswith(
        "closed by `hpo finish` before its race had ended: 4 of 4 points ended; chose quality 40: best of 4"
    )
    assert "(3 seeds, not told apart from one other; of all, 2 left after 3; nothing" in decision.text
    assert {each.stop: each.seeds for each in race.finishes} == dict.fromkeys(
        (Stop.WON, Stop.NOT_TOLD_APART, Stop.BEHIND), 3
    )
    # a point whose further seeds were queued and never begun is as whole as the others
    assert [(row.state, row.reason) for row in rows(plan, "first")] == [("complete", "")] * 4
    assert status(plan)[0].points["complete"] == status(plan)[0].n_points == 4
    lines = [line.split() for line in cli("show", "first", "--storage", plan.storage.url).out.splitlines()]
    # trial, quality, accuracy, seeds, to best: the fourth seed makes no leader of quality 39
    gaps = {line[1]: line[4] for line in lines if line[1:2] and line[1] in ("1", "20", "39")}
    assert all(gap.startswith("-") for gap in gaps.values())
    assert len(gaps) == 3
    second = plan.decision("second")
    assert second is not None
    assert second.text.endswith(
        "0 of 2 points ended; no point has a result; the inherited configuration stays"
    )
    assert len(plan.trials("final")) == 1


def test_the_value_of_a_winner_that_had_a_seed_more_is_that_by_which_it_was_judged(place: Path) -> None:
    code = RECIPE.replace("value = 0.4", "value = 0.4 + 0.2 * (seed == 3)")
    plan = new_plan(place / "out", code, {"s": "[search]\nquality = [40, 39]"})
    worked(plan, place / "out", "s", n_trials=3)  # the first has its fourth seed
    assert finish(plan, ["s"]) == ["s"]
    decision, _ = decided(plan := worked(plan, place / "out", "s"), "s")
    assert decision.source is not None
    assert len(by_point(plan, "s")[json.dumps({"quality": 40}, separators=(",", ":"))]) == 2
    assert decision.source.trial == 0
    assert best(plan)["value"] == pytest.approx(decision.value)


STOPPED = """
trials = 6
[search]
shape = {low = 0, high = 9}
[sampler]
name = "random"
[stop]
patience = 2
delta = 1.0
"""


def test_what_stop_has_left_of_a_sampled_study_races(place: Path) -> None:
    plan = new_plan(place / "out", studies={"s": STOPPED}, max_seeds=5, delta=0.0)
    decision, race = decided(worked(plan, place / "out", "s"), "s")
    assert decision.text.startswith(
        "closed by [stop], no gain of 100.0 points in 2 points: 3 of 6 points ended; chose"
    )
    assert max(each.seeds for each in race.finishes) == 5


def test_whoever_finishes_a_plan_ends_such_a_race_as_well(place: Path) -> None:
    plan = new_plan(place / "out", studies={"s": STOPPED}, max_seeds=5, delta=0.0)
    worked(plan, place / "out", "s", n_trials=4)
    closed = plan.record("s").closed
    assert closed is not None
    assert closed.by == "stop"
    assert finish(plan, ["s"]) == ["s"]
    decision, race = decided(worked(plan, place / "out", "s"), "s")
    assert decision.text.startswith("closed by `hpo finish` before its race had ended: 3 of 6 points ended")
    assert {each.seeds for each in race.finishes} == {3}


def test_a_point_that_diverged_on_further_seeds_is_out_of_a_closed_race_too(place: Path) -> None:
    code = RECIPE.replace("value = 0.4", "value = float('nan') if seed > 2 and params.quality > 38 else 0.4")
    study = {"s": "[search]\nquality = [38, 40, 37]"}
    plan = new_plan(place / "out", code, study, delta=0.0)
    worked(plan, place / "out", "s", n_trials=5)
    assert finish(plan, ["s"]) == ["s"]
    decision, race = decided(worked(plan, place / "out", "s"), "s")
    assert decision.params["quality"] == 38
    assert [each.stop for each in race.finishes if 1 in each.trials] == [Stop.DIVERGED]


@pytest.mark.slow
def test_a_further_replicate_that_is_killed_resumes_and_ends_with_the_same_bits(place: Path) -> None:
    (place / "studies").mkdir()
    (place / "studies" / "rate.toml").write_text(f"{SMALL}[search]\nlearning_rate = [0.01, 0.009]")
    # so many epochs that a look every second finds a trial that is in the middle of them
    sizes = {**TINY_SIZES, "epochs": 60, "seeds": "race", "max_seeds": 4, "delta": 0.0}
    plan = find_or_create_plan(place / "out", studies=place / "studies", given=sizes)
    killed: list[int] = []

    def on_tick() -> None:
        for trial in plan.trials("rate"):
            # after the second report the checkpoint of the first epoch is there
            is_amid = trial.state == TrialState.RUNNING and len(trial.intermediate_values) > 1
            if not killed and trial.user_attrs["replicate"] and is_amid:
                killed.append(trial.number)
                os.kill(trial.user_attrs["owner"]["pid"], signal.SIGKILL)

    assert run(plan, out=place / "out", workers=2, engine=local_processes, on_tick=on_tick) is None
    trials = plan.trials("rate")
    lost = trials[killed[0]]
    (again,) = (
        trial for trial in trials if slot_of(trial) == slot_of(lost) and trial.user_attrs["attempt"] == 2
    )
    assert reason_of(lost) == Reason.LOST
    assert again.user_attrs["resumed_after_epoch"] >= 1
    assert verify(plan, "rate", again) is None
    assert decided(plan, "rate")[0].winner is not None


# --- how it is shown ---------------------------------------------------------------------------------------


def test_a_point_is_one_row_with_all_its_seeds(raced: Plan) -> None:
    found = rows(raced, "first")
    assert len(found) == 4
    row = row_of(raced, "first", quality=40)
    assert row.seeds == list(range(len(row.seeds)))
    assert len(row.replicates) == LOOKS.index(len(row.seeds)) + 1
    assert [len(epoch) for epoch in row.history] == [len(row.seeds)] * 2
    assert row_of(raced, "first", quality=1).stop == Stop.BEHIND


def test_status_and_best_are_of_points_not_of_lucky_replicates(raced: Plan) -> None:
    decision, _ = decided(raced, "sampled")
    found = {each.name: each for each in status(raced)}
    assert found["first"].n_points == found["first"].n_ended == 4
    assert found["sampled"].best is not None
    assert found["sampled"].best["value"] == pytest.approx(decision.value)
    assert best(raced)["value"] == pytest.approx(decision.value)
    assert best(raced)["tested"]


def test_show_tells_seeds_and_why_each_stopped(raced: Plan, cli: Cli) -> None:
    result = cli("show", "first", "--storage", raced.storage.url)
    assert result.code == 0
    assert "to best" in result.out
    assert "trials 0, 1: left the race after 3 seeds, shown to be behind" in result.out
    record = json.loads(cli("show", "first", "--json", "--storage", raced.storage.url).out)
    assert [point["stop"] for point in record["points"]][:2] == ["behind", "behind"]


def test_export_has_a_row_for_each_replicate(raced: Plan) -> None:
    records = [record for record in export(raced) if record["study"] == "first"]
    assert len(records) == len(raced.trials("first"))
    assert {record["replicate"] for record in records} > {0, 1}


def test_points_are_compared_by_all_their_seeds(raced: Plan) -> None:
    found = compare_trained("first/0", "first/3", lambda: raced)
    assert [len(side.values) for side in found.sides] == [3, len(row_of(raced, "first", quality=40).seeds)]
    assert found.n_shared_seeds == 3


def test_the_report_shows_it(raced: Plan, cli: Cli, place: Path) -> None:
    result = cli("report", "--storage", raced.storage.url, "--out", "shown")
    assert result.code == 0
    text = (place / "shown" / "report" / "report.md").read_text()
    assert "2 left after 3" in text


def test_the_price_compares_the_chosen_at_the_seeds_that_points_across_studies_have(place: Path) -> None:
    # later seeds are better for all, and no point across studies has them
    code = RECIPE.replace("value = 0.4", "value = 0.4 + 0.1 * (seed > 2)")
    studies = {"first": "[search]\nquality = [1, 39, 40]", "second": STUDIES["second"]}
    plan = new_plan(place / "out", code, studies, delta=0.0)
    assert len(decided(worked(plan, place / "out", *studies), "first")[0].winner.seeds) > 3  # type: ignore[union-attr]
    open_price(with_recipe(plan), 0.1)
    assert work(plan.storage, out=place / "out", studies=[PRICE]) is None
    found = plan.record(PRICE).price
    assert found is not None
    chosen = best_of_search(plan)
    assert chosen is not None
    first = decided_trial(plan, chosen.source)  # type: ignore[arg-type]
    assert found.value == pytest.approx(first.value)
    assert found.best is not None
    assert abs(found.best.value - found.value) < 0.09


# --- what is refused, and what it costs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"seeds": 3, "max_seeds": 9}, "--max-seeds 9 goes with --seeds race"),
        ({"seeds": "race", "max_seeds": 2}, "--max-seeds 2"),
        ({"seeds": "rase"}, "--seeds rase"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 3, "delta": 0.01}, "--delta 0.01 goes with --confirm or --seeds race"),
    ],
)
def test_options_that_make_no_race_are_refused(given: dict[str, Any], named: str, place: Path) -> None:
    with pytest.raises(InputError, match=named):
        new_plan(place / "out", **given)


def test_the_plan_keeps_to_what_it_was_created_with(raced: Plan) -> None:
    from hpo.planning.compatibility import check_compatible

    check_compatible(raced, {"seeds": "race"})
    with pytest.raises(ConflictError, match="created with race"):
        check_compatible(raced, {"seeds": 3})


def test_the_price_is_a_range(place: Path, cli: Cli) -> None:
    name = simulated.write(place, RECIPE)
    for file in (place / "studies").glob("*.toml"):
        file.unlink()
    (place / "studies" / "first.toml").write_text(STUDIES["first"])
    options = (
        "--studies",
        "studies",
        "--recipe",
        name,
        "--data",
        "digits",
        "--limit-train",
        "100",
        "--limit-valid",
        "50",
    )
    line, _ = json.loads(cli("plan", "--json", "--seeds", "race", *options).out)
    assert (line["least_seeds"], line["seeds"]) == (3, 12)
    assert (line["least_epochs"], line["epochs"]) == (4 * 3 * 2, 4 * 12 * 2)
    assert "3–12" in cli("plan", "--seeds", "race", *options).out


def test_a_decision_is_derived_anew_without_a_discarded_point(place: Path) -> None:
    plan = new_plan(place / "out")
    worked(plan, place / "out", "first")
    before, _ = decided(plan, "first")
    assert before.winner is not None
    (trial,) = [t for t in plan.trials("first") if t.number == before.winner.source.trial]
    discard(plan, "first", trial, "wrong card")
    after, race = decided(worked(plan, place / "out", "first"), "first")
    assert after.winner is not None
    assert after.winner.source != before.winner.source
    assert [each.stop for each in race.finishes if trial.number in each.trials] == [Stop.DISCARDED]
