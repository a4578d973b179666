"""Longer trainings that go on from checkpoints that another plan has kept: every bit as from the start."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.errors import RunError
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.monitor.results import final_result
from hpo.planning.plan import FINAL, MODEL, Plan
from hpo.planning.reuse import BEGINNINGS, ORIGIN_KEY, Setting
from hpo.storage.trials import KEPT_KEY, SEED_EPOCHS_KEY
from hpo.training.tensors import dump, load
from tests.support.checkpoints import signed
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, TINY_SIZES, accepted_epochs

RATES = f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]"
FALLING = f'{SMALL}schedule = "cosine"\n[search]\nlearning_rate = [0.01, 0.001]'
COUNTING = """
import pathlib, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(1, ge=1, le=99)
    step: int = hpo.Field(1, ge=1, le=9)

class Counting(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    reads_epochs = READS

    def train(self, params, data, seed, context, resume=None):
        total, first = (resume["total"], resume["epoch"] + 1) if resume else (0, 1)
        for epoch in range(first, params.epochs + 1):
            if epoch == 5 and pathlib.Path("broken").exists():
                pathlib.Path("broken").unlink()
                raise OSError("the disk was full for a moment")
            total += params.step
            if params.step == 9 and epoch == 4:
                return
            yield hpo.Epoch({"accuracy": total / 1000}, state={"total": total, "epoch": epoch})
            if params.step == 8 and epoch == 3:
                return

    def test(self, params, data, state):
        return {"accuracy": state["total"] / 1000}
"""
"""A recipe that trains nothing; where there is a file `broken` it fails once, before epoch 5. With steps of
8 or 9 it ends after epoch 3."""
STEPS = "[search]\nstep = [1, 2]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def counting(folder: Path, reads: bool = False) -> dict[str, Any]:
    """Options of a plan of the recipe that counts; it is a module of its own for every test."""
    module = f"counting_{re.sub('[^a-z0-9]', '_', folder.name.lower())}"
    (folder / f"{module}.py").write_text(COUNTING.replace("READS", repr(reads)))
    return {"recipe": f"python:{module}:Counting", "data": "digits", "final_seeds": 1}


def ended(
    folder: Path,
    out: str,
    study: str,
    *names: str,
    reuse: str | None = None,
    store: Path | None = None,
    **given: Any,
) -> Plan:
    """A plan of one study `rate`, trained in this process; None: its checkpoints are in its own folder."""
    files = folder / f"studies-{out}"
    files.mkdir(exist_ok=True)
    (files / "rate.toml").write_text(study)
    other = None if reuse is None else str(folder / reuse)
    plan = find_or_create_plan(folder / out, studies=files, names=names, given=given, reuse=other)
    checkpoints = None if store is None else str(store)
    assert work(plan.storage, out=folder / out, studies=names, checkpoints=checkpoints) is None
    return plan


def itself(plan: Plan, name: str = "rate") -> list[int]:
    """How many epochs of single seeds each trial of a study has trained itself."""
    return [trial.user_attrs.get(SEED_EPOCHS_KEY, 0) for trial in plan.trials(name)]


def kept(out: Path) -> list[str]:
    return sorted(file.name for file in (out / "checkpoints").glob("*/*/*.checkpoint"))


# --- to the bit ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole plan `short`, of two rates at two seeds for three epochs, all of it kept."""
    folder = tmp_path_factory.mktemp("longer")
    ended(folder, "short", RATES, **TINY_SIZES, seeds=2, keep_checkpoints=True)
    return folder


def test_a_longer_training_trains_what_is_new_and_ends_as_if_from_the_start(short: Path) -> None:
    sizes = {**TINY_SIZES, "epochs": 5, "seeds": 2}
    plan = ended(short, "long", RATES, reuse="short", **sizes)
    fresh = ended(short, "fresh", RATES, **sizes)
    assert itself(plan) == [4, 4]
    assert itself(fresh) == [10, 10]
    assert plan.decision("rate") == fresh.decision("rate")
    assert itself(plan, FINAL) == [2]  # the same winner, at the same seed
    assert same_answer(plan, fresh)


def test_who_has_trained_the_first_epochs_is_said(short: Path, cli: Cli) -> None:
    sizes = {**TINY_SIZES, "epochs": 4, "seeds": 2}
    plan = ended(short, "said", RATES, "rate", reuse="short", **sizes)
    trial = plan.trials("rate")[1]
    name = f"sqlite:///{short / 'short' / 'hpo.db'}"
    assert trial.user_attrs["notes"] == [f"epochs 1 to 3 not trained here, but in {name} as rate/1"]
    origin = {"plan": name, "study": "rate", "trial": 1, "seeds": [0, 1], "epochs": 3}
    assert trial.user_attrs[ORIGIN_KEY] == [origin]
    assert "checkpoints of 3 trials to go on from" in " ".join(
        cli("status", "--out", short / "said").out.split()
    )
    verified = cli("verify", "rate/1", "--out", short / "said")
    told = f"rate/1: equal to the bit in every epoch; taken over in part from {name} as rate/1"
    assert " ".join(verified.out.split()) == told


def test_only_the_last_checkpoint_is_kept_and_without_the_option_none(short: Path, place: Path) -> None:
    assert kept(short / "short") == ["epoch-000003-attempt-0001.checkpoint"] * 3
    ended(place, "out", RATES, "rate", **TINY_SIZES)
    assert kept(place / "out") == []


def test_the_forecast_counts_the_epochs_that_are_new(short: Path, cli: Cli) -> None:
    sizes = ["--data=digits", "--limit-train=100", "--limit-valid=50", "--seeds=2", "--epochs=5"]
    at = ["--studies", short / "studies-short", "--reuse", short / "short"]
    line, final = json.loads(cli("plan", *at, *sizes, "--final-seeds=1", "--json").out)
    assert (line["epochs"], line["reused"], line["reused_in_part"]) == (8, 0, 2)
    assert final["epochs"] == 2
    sizes[-1] = "--epochs=3"
    line, final = json.loads(cli("plan", *at, *sizes, "--final-seeds=3", "--json").out)
    assert (line["epochs"], line["reused"], final["epochs"]) == (0, 2, 2 * 3)


def test_where_the_rate_depends_on_the_number_of_epochs_all_are_trained(place: Path) -> None:
    ended(place, "short", FALLING, "rate", **TINY_SIZES, keep_checkpoints=True)
    plan = ended(place, "long", FALLING, "rate", reuse="short", **{**TINY_SIZES, "epochs": 4})
    assert itself(plan) == [4, 4]


def test_what_was_pruned_is_gone_on_with_by_who_does_not_prune(place: Path) -> None:
    # of as many epochs, so that the schedule does not matter
    pruner = '[pruner]\nname = "threshold"\nlower = 0.99'
    sizes = {**TINY_SIZES, "epochs": 4}
    control = f"{FALLING}\n{pruner}"
    first = ended(place, "short", control, "rate", **sizes, keep_checkpoints=True)
    assert {trial.state for trial in first.trials("rate")} == {TrialState.PRUNED}
    plan = ended(place, "whole", control, "rate", reuse="short", **sizes, pruning=False)
    fresh = ended(place, "fresh", control, "rate", **sizes, pruning=False)
    assert itself(plan) == [3, 3]
    assert accepted_epochs(plan) == accepted_epochs(fresh)


@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_who_prunes_stops_a_point_where_it_would_have_stopped_without_checkpoints(
    place: Path, audit: float
) -> None:
    ended(place, "short", RATES, "rate", **TINY_SIZES, keep_checkpoints=True)
    sizes = {**TINY_SIZES, "epochs": 5, "audit": audit}
    # one rate is stopped after its first epoch
    pruned = f'{RATES}\n[pruner]\nname = "threshold"\nlower = 0.06\nn_warmup_steps = 1'
    plan = ended(place, "long", pruned, "rate", reuse="short", **sizes)
    fresh = ended(place, "fresh", pruned, "rate", **sizes)
    reasons = [[trial.user_attrs.get("reason") for trial in each.trials("rate")] for each in (plan, fresh)]
    assert reasons[0] == reasons[1]
    assert len({reason is None for reason in reasons[0]}) == 2  # one was stopped
    assert accepted_epochs(plan) == accepted_epochs(fresh)
    assert itself(plan) == ([2, 2] if audit else [2, 0])
    (note,) = plan.trials("rate")[1].user_attrs["notes"]
    (origin,) = plan.trials("rate")[1].user_attrs[ORIGIN_KEY]
    assert note.startswith("epochs 1 to 3 not trained here" if audit else "epoch 1 not trained here")
    assert origin["epochs"] == (3 if audit else 1)


def test_what_was_trained_on_for_an_audit_was_pruned_there_alone(place: Path) -> None:
    pruner = '[pruner]\nname = "threshold"\nlower = 0.99'
    ended(place, "short", f"{RATES}\n{pruner}", "rate", **TINY_SIZES, audit=1.0, keep_checkpoints=True)
    plan = ended(place, "long", RATES, "rate", reuse="short", **{**TINY_SIZES, "epochs": 4})
    assert itself(plan) == [1, 1]
    assert {trial.state for trial in plan.trials("rate")} == {TrialState.COMPLETE}


# --- the final stage -------------------------------------------------------------------------------------


def same_answer(plan: Plan, fresh: Plan) -> bool:
    """Whether two plans have trained the same and ended with the same answer and model."""
    ours, theirs = ({**final_result(each), "shared_folder": ...} for each in (plan, fresh))
    assert ours == theirs  # with a digest of the model
    return accepted_epochs(plan) == accepted_epochs(fresh)


@pytest.mark.parametrize("final_data", ["limited", "train+validation"])
def test_of_further_final_seeds_only_those_are_trained(place: Path, final_data: str) -> None:
    sizes = {**TINY_SIZES, "final_data": final_data}
    ended(place, "two", RATES, **{**sizes, "final_seeds": 2}, keep_checkpoints=True)
    sizes["final_seeds"] = 4
    fresh = ended(place, "fresh", RATES, **sizes)
    n_epochs = itself(fresh, FINAL)[0] // 4
    plan = ended(place, "four", RATES, reuse="two", **sizes, keep_checkpoints=True)
    assert itself(plan, FINAL) == [2 * n_epochs]
    assert same_answer(plan, fresh)
    (note,) = (n for n in plan.trials(FINAL)[0].user_attrs["notes"] if "not trained here" in n)
    assert note.startswith("seeds 10000, 10001 not trained here, but in sqlite:///")
    (origin,) = plan.trials(FINAL)[0].user_attrs[ORIGIN_KEY]
    assert (origin["seeds"], "epochs" in origin) == ([10000, 10001], False)
    if final_data == "train+validation":  # validation chooses nothing that has seen it
        assert final_result(plan)["model"]["seed"] == 10000
    # all of them, of which some were from elsewhere there
    again = ended(place, "again", RATES, reuse="four", **sizes)
    assert itself(again, FINAL) == [0]
    assert same_answer(again, fresh)
    # other data are another training
    other = {**sizes, "final_data": "all" if final_data == "limited" else "limited"}
    assert itself(ended(place, "other", RATES, reuse="two", **other), FINAL) == [4 * sizes["epochs"]]


def test_a_longer_final_stage_can_have_further_seeds_later(place: Path) -> None:
    ended(place, "short", SMALL, **TINY_SIZES, keep_checkpoints=True)
    sizes = {**TINY_SIZES, "epochs": 5}
    plan = find_or_create_plan(
        place / "long",
        studies=place / "studies-short",
        given={**sizes, "keep_checkpoints": True},
        reuse=str(place / "short"),
    )
    (place / "long" / MODEL).mkdir()
    with pytest.raises(RunError):  # after the last epoch
        work(plan.storage, out=place / "long")
    (place / "long" / MODEL).rmdir()
    assert work(plan.storage, out=place / "long") is None
    assert itself(plan, FINAL) == [2, 0]
    sizes["final_seeds"] = 2
    more = ended(place, "more", SMALL, reuse="long", **sizes)
    assert itself(more, FINAL) == [5]
    assert same_answer(more, ended(place, "fresh", SMALL, **sizes))


def test_the_model_is_of_the_best_seed_wherever_that_was_trained(place: Path) -> None:
    sizes = {**TINY_SIZES, "epochs": 2}
    for seed in range(3):
        fresh = ended(place, f"fresh-{seed}", RATES, **{**sizes, "final_seeds": 4}, seed=seed)
        best = final_result(fresh)["seeds"].index(final_result(fresh)["model"]["seed"])
        for n_known in {best, best + 1} - {0, 4}:
            given = {**sizes, "seed": seed}
            ended(
                place, f"{seed}-{n_known}", RATES, **given | {"final_seeds": n_known}, keep_checkpoints=True
            )
            given["final_seeds"] = 4
            plan = ended(place, f"{seed}-{n_known}-4", RATES, reuse=f"{seed}-{n_known}", **given)
            assert itself(plan, FINAL) == [2 * (4 - n_known)]
            assert same_answer(plan, fresh)


def test_where_seeds_have_other_bits_in_other_company_a_final_stage_is_known_as_a_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setting, "may_mix", False)  # as on a GPU
    given = {**counting(place), "epochs": 2, "final_seeds": 2}
    ended(place, "two", STEPS, **given, keep_checkpoints=True)
    assert itself(ended(place, "again", STEPS, reuse="two", **given), FINAL) == [0]
    given["final_seeds"] = 3
    assert itself(ended(place, "three", STEPS, reuse="two", **given), FINAL) == [2 * 3]


def test_of_several_final_stages_that_of_the_most_seeds_is_taken(place: Path) -> None:
    given = counting(place)
    for n_seeds in (1, 3, 2):
        ended(
            place, f"of-{n_seeds}", STEPS, **given | {"final_seeds": n_seeds}, epochs=2, keep_checkpoints=True
        )
    given |= {"final_seeds": 4, "epochs": 2}
    for n_seeds in (1, 3, 2):
        plan = find_or_create_plan(
            place / "more", studies=place / "studies-of-1", given=given, reuse=f"of-{n_seeds}"
        )
    assert work(plan.storage, out=place / "more") is None
    assert itself(plan, FINAL) == [2]


@pytest.mark.parametrize("changed", [{"epochs": 4}, {"final_seeds": 2}])
def test_a_final_stage_for_another_metric_is_trained_whole(place: Path, changed: dict[str, Any]) -> None:
    one = "[base]\nconv1_channels = 4\nconv2_channels = 4\nhidden_units = 16"  # the same winner by any metric
    ended(place, "one", one, **TINY_SIZES, metric="accuracy", keep_checkpoints=True)
    given = {**TINY_SIZES, **changed}
    plan = ended(place, "two", one, reuse="one", **given)
    assert itself(plan, FINAL) == [given["epochs"] * given["final_seeds"]]


def test_a_final_stage_that_ended_early_is_trained_again(place: Path) -> None:
    given = {**counting(place), "epochs": 6}
    early = "[search]\nstep = [9]"
    ended(place, "one", early, **given, keep_checkpoints=True)
    plan = ended(place, "two", early, reuse="one", **given | {"final_seeds": 2})
    assert itself(plan, FINAL) == [2 * 3]
    assert plan.trials(FINAL)[0].user_attrs["notes"] == ["the recipe's loop ended after epoch 3 of 6"]


def test_a_final_stage_of_a_loop_of_ones_own_is_known_too_and_survives_a_failure(place: Path) -> None:
    given = {**counting(place), "epochs": 6}
    ended(place, "one", STEPS, **given, keep_checkpoints=True)
    given["final_seeds"] = 3
    fresh = ended(place, "fresh", STEPS, **given)
    plan = find_or_create_plan(place / "three", studies=place / "studies-one", given=given, reuse="one")
    (place / "broken").touch()
    assert work(plan.storage, out=place / "three") is None
    assert [trial.state.name for trial in plan.trials(FINAL)] == ["FAIL", "COMPLETE"]
    assert itself(plan, FINAL) == [2 * 4, 2 * 2]
    assert same_answer(plan, fresh)


@pytest.mark.parametrize("damage", ["gone", "damaged", "metric", "network"])
def test_a_final_stage_whose_outputs_cannot_be_read_is_trained_whole_and_says_so(
    place: Path, damage: str
) -> None:
    ended(place, "one", RATES, **TINY_SIZES, keep_checkpoints=True)
    first, second = sorted((place / "one" / "checkpoints").glob("final/*/*.outputs"))[:2]
    if damage in ("metric", "network"):
        content = load(first.read_bytes()[32:])
        if damage == "metric":
            content["state"]["test"][0]["accuracy"] = "0.9"
        else:
            content["state"]["network"].popitem()
        second.write_bytes(signed(bytes(dump(content))))
    else:
        first.unlink() if damage == "gone" else first.write_bytes(b"damaged")
    sizes = {**TINY_SIZES, "final_seeds": 2}
    plan = ended(place, "two", RATES, reuse="one", **sizes)
    assert itself(plan, FINAL) == [2 * TINY_SIZES["epochs"]]
    (note,) = plan.trials(FINAL)[0].user_attrs["notes"]
    assert note.startswith("all seeds are trained here, as what sqlite:///")
    assert same_answer(plan, ended(place, "fresh", RATES, **sizes))


# --- a loop of one's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("reads", "trained"), [(False, [2, 2]), (True, [5, 5])])
def test_a_loop_of_ones_own_says_whether_it_reads_the_number_of_epochs(
    place: Path, reads: bool, trained: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    given = counting(place, reads)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    assert ("does not say reads_epochs = False" in caplog.text) == reads
    plan = ended(place, "long", STEPS, "rate", reuse="short", **given, epochs=5)
    assert itself(plan) == trained
    assert [trial.value for trial in plan.trials("rate")] == [0.005, 0.01]


def test_a_loop_that_has_ended_itself_is_not_gone_on_with(place: Path) -> None:
    given, early = counting(place), "[search]\nstep = [8]"
    ended(place, "short", early, "rate", **given, epochs=4, keep_checkpoints=True)
    assert kept(place / "short") == []
    plan = ended(place, "long", early, "rate", reuse="short", **given, epochs=8)
    assert accepted_epochs(plan) == accepted_epochs(ended(place, "fresh", early, "rate", **given, epochs=8))


def test_an_attempt_that_failed_later_still_knows_who_trained_the_first_epochs(place: Path) -> None:
    given = counting(place)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    (place / "broken").touch()
    plan = ended(place, "long", STEPS, "rate", reuse="short", **given, epochs=6)
    failed, _, again = plan.trials("rate")
    assert (failed.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.user_attrs["resumed_after_epoch"] == 4
    assert again.user_attrs[ORIGIN_KEY] == failed.user_attrs[ORIGIN_KEY]
    assert any(note.startswith("epochs 1 to 3 not trained here") for note in again.user_attrs["notes"])


def test_of_three_plans_each_is_named_that_has_trained_a_part(place: Path) -> None:
    given = counting(place)
    ended(place, "a", STEPS, "rate", **given, epochs=2, keep_checkpoints=True)
    ended(place, "b", STEPS, "rate", reuse="a", **given, epochs=4, keep_checkpoints=True)
    plan = ended(place, "c", STEPS, "rate", reuse="b", **given, epochs=5)
    assert itself(plan) == [1, 1]
    origins = plan.trials("rate")[0].user_attrs[ORIGIN_KEY]
    assert [(each["plan"].split("/")[-2], each["epochs"]) for each in origins] == [("a", 2), ("b", 4)]
    whole = ended(place, "d", STEPS, "rate", reuse="c", **given, epochs=5)
    assert itself(whole) == [0, 0]
    assert [each["plan"].split("/")[-2] for each in whole.trials("rate")[0].user_attrs[ORIGIN_KEY]] == [
        "a",
        "b",
        "c",
    ]


def test_a_plan_that_has_taken_over_results_passes_on_where_their_checkpoints_are(place: Path) -> None:
    given = {**counting(place), "epochs": 2, "seeds": 2}
    ended(place, "a", STEPS, **given, keep_checkpoints=True)
    b = ended(place, "b", STEPS, reuse="a", **given)
    assert (itself(b), itself(b, FINAL)) == ([0, 0], [0])
    given["epochs"] = 3
    plan = ended(place, "c", STEPS, reuse="b", **given)
    assert (itself(plan), itself(plan, FINAL)) == ([2, 2], [1])
    assert same_answer(plan, ended(place, "fresh", STEPS, **given))
    with closing(sqlite3.connect(place / "b" / "hpo.db")) as database, database:
        database.execute(
            "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = ? AND trial_id IN "
            "(SELECT trial_id FROM trials JOIN studies USING (study_id) WHERE study_name = ?)",
            [KEPT_KEY, BEGINNINGS],
        )
    assert itself(ended(place, "d", STEPS, "rate", reuse="b", **given)) == [6, 6]


def test_of_several_checkpoints_the_newest_that_is_not_too_long_is_taken(place: Path) -> None:
    given = counting(place)
    for n_epochs in (2, 4, 8):
        ended(place, f"of-{n_epochs}", STEPS, "rate", **given, epochs=n_epochs, keep_checkpoints=True)
    ended(place, "long", STEPS, "rate", reuse="of-2", **given, epochs=6)
    find_or_create_plan(place / "more", studies=place / "studies-long", given={**given, "epochs": 6})
    for n_epochs in (2, 4, 8):
        plan = find_or_create_plan(place / "more", reuse=str(place / f"of-{n_epochs}"))
    assert work(plan.storage, out=place / "more", studies=["rate"]) is None
    assert itself(plan) == [2, 2]
    assert all(len(trial.user_attrs["notes"]) == 1 for trial in plan.trials("rate"))


# --- what is not there -----------------------------------------------------------------------------------


def test_a_checkpoint_that_is_gone_or_damaged_costs_a_training_and_is_said(place: Path) -> None:
    given = counting(place)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    files = sorted((place / "short" / "checkpoints").glob("rate/*/*.checkpoint"))
    files[0].unlink()
    files[1].write_bytes(b"damaged")
    plan = ended(place, "long", STEPS, "rate", reuse="short", **given, epochs=5)
    assert itself(plan) == [5, 5]
    notes = sorted(
        note.partition("rate/")[2][3:] for trial in plan.trials("rate") for note in trial.user_attrs["notes"]
    )
    assert notes[0].startswith(f"{place / 'short' / 'checkpoints'} has it no more")
    assert notes[1] == f"{files[1].name} cannot be used: damaged or cut off"
    assert files[1].read_bytes() == b"damaged"  # it is another plan's


def test_what_was_discarded_is_not_gone_on_with(place: Path, cli: Cli) -> None:
    given = counting(place)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    assert cli("discard", "rate/1", "--reason", "the room was too hot", "--out", place / "short").code == 0
    plan = ended(place, "long", STEPS, "rate", reuse="short", **given, epochs=5)
    assert itself(plan) == [2, 5]


def test_a_plan_that_was_moved_has_its_checkpoints_with_it(place: Path) -> None:
    given = counting(place)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    (place / "short").rename(place / "moved")
    plan = ended(place, "long", STEPS, "rate", reuse="moved", **given, epochs=5)
    assert itself(plan) == [2, 2]


def test_of_a_plan_that_is_moved_later_the_new_place_can_be_given(place: Path, cli: Cli) -> None:
    given = counting(place)
    ended(place, "short", STEPS, **given, epochs=3, keep_checkpoints=True)
    for epochs, trained in ((5, [2]), (3, [0])):
        out = place / f"long-{epochs}"
        given["epochs"] = epochs
        find_or_create_plan(out, studies=place / "studies-short", given=given, reuse=str(place / "short"))
        (place / "short").rename(place / "moved")
        plan = find_or_create_plan(out, reuse=str(place / "moved"))
        assert work(plan.storage, out=out) is None
        assert itself(plan) == 2 * trained
        assert itself(plan, FINAL) == trained
        for trial in (*plan.trials("rate"), *plan.trials(FINAL)):
            notes = trial.user_attrs.get("notes", [])
            assert not any("not gone on" in note or "cannot" in note for note in notes)
        assert "checkpoints of 3 trials" in " ".join(cli("status", "--out", out).out.split())
        (place / "moved").rename(place / "short")


def test_a_plan_of_which_nothing_but_checkpoints_can_be_used_is_no_mistake(place: Path, cli: Cli) -> None:
    given = counting(place)
    short = ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    answer = cli("run", "rate", "--epochs", 5, "--out", place / "short")
    assert answer.code == 2
    assert f"where --reuse {short.storage.name} takes over what is the same" in " ".join(answer.err.split())


def test_kept_checkpoints_go_with_prune_checkpoints_and_with_the_plan(place: Path, cli: Cli) -> None:
    given = counting(place)
    ended(place, "short", STEPS, **given, epochs=3, keep_checkpoints=True)
    assert len(kept(place / "short")) == 3
    assert cli("prune-checkpoints", "--out", place / "short").code == 0
    assert kept(place / "short") == []
    ended(place, "again", STEPS, **given, epochs=3, keep_checkpoints=True)
    assert cli("delete", "--out", place / "again", "--yes").code == 0
    assert not (place / "again" / "checkpoints").exists()


def test_what_a_database_says_of_kept_checkpoints_may_be_anybodys(place: Path) -> None:
    given = counting(place)
    ended(place, "short", STEPS, "rate", **given, epochs=3, keep_checkpoints=True)
    with closing(sqlite3.connect(place / "short" / "hpo.db")) as database, database:
        damage = (
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = ? AND trial_id = "
            "(SELECT trial_id FROM trials WHERE number = ? ORDER BY trial_id LIMIT 1)"
        )
        database.execute(damage, ['{"epoch": "3"}', KEPT_KEY, 0])
        database.execute(damage, ['"checkpoints"', KEPT_KEY, 1])
    plan = ended(place, "long", STEPS, "rate", reuse="short", **given, epochs=5)
    assert itself(plan) == [5, 5]


def test_nothing_is_left_that_nobody_can_use(place: Path) -> None:
    given = counting(place)
    ended(place, "short", STEPS, **given, epochs=3, keep_checkpoints=True)
    for file in (place / "short" / "checkpoints").glob("final/*/epoch-000002.outputs"):
        file.unlink()
    plan = ended(place, "long", STEPS, reuse="short", **given, epochs=5, keep_checkpoints=True)
    assert itself(plan, FINAL) == [2]
    # of the outputs an epoch is missing, so that nobody can take over the final stage
    assert {Path(name).name for name in files_in(place / "long" / "checkpoints")} == {
        "epoch-000005-attempt-0001.checkpoint"
    }


# --- a store that plans share ----------------------------------------------------------------------------


def files_in(store: Path) -> set[str]:
    return {file.relative_to(store).as_posix() for file in store.rglob("*") if file.is_file()}


def test_plans_that_share_a_store_train_each_for_itself_and_leave_what_the_other_has_kept(
    place: Path, cli: Cli
) -> None:
    store, pruner = place / "store", '[pruner]\nname = "threshold"\nlower = 0.99'
    sizes = {**TINY_SIZES, "final_seeds": 2}
    ended(place, "one", SMALL, **sizes, metric="accuracy", store=store, keep_checkpoints=True)
    audited = f"{RATES}\n{pruner}"
    ended(place, "audited", audited, "rate", **sizes, audit=1.0, store=store, keep_checkpoints=True)
    there = files_in(store)
    assert there
    # the same networks on the same data, by another metric and without a pruner
    other = ended(place, "other", SMALL, **sizes, metric="loss", store=store)
    assert same_answer(other, ended(place, "fresh", SMALL, **sizes, metric="loss"))
    assert (itself(other), itself(other, FINAL)) == ([3], [6])
    unpruned = ended(place, "unpruned", RATES, "rate", **sizes, store=store)
    assert {trial.state for trial in unpruned.trials("rate")} == {TrialState.COMPLETE}
    assert files_in(store) >= there
    for out in ("other", "unpruned"):
        assert cli("prune-checkpoints", "--out", place / out, "--checkpoints", store).code == 0
        assert cli("delete", "--yes", "--out", place / out, "--checkpoints", store).code == 0
    assert files_in(store) == there
    # and the kept ones are gone on with from there
    longer = ended(
        place, "longer", SMALL, reuse="one", **sizes | {"epochs": 4}, metric="accuracy", store=store
    )
    assert (itself(longer), itself(longer, FINAL)) == ([1], [2])
