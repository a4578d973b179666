"""Results carried between plans: nothing is trained twice, and every bit is as if it had been."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

import hpo as library
from hpo.errors import InputError
from hpo.execution.plan_recipe import with_recipe
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.planning.crossing import open_price
from hpo.planning.plan import CONFIRM, FINAL, FINAL_SEED_OFFSET, PRICE, Plan
from hpo.planning.reuse import LIBRARY, ORIGIN_KEY
from hpo.storage.queue import Reason, reason_of
from hpo.storage.trials import SEED_EPOCHS_KEY
from tests.support.command import hpo
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, TINY_SIZES, accepted_epochs, as_options

SIZES = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1, "epochs": 2}
RATES = f"{SMALL}[search]\nlearning_rate = [0.01, 0.001, 0.0001]"
SIMULATED = """
import random, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(1, ge=1, le=9)
    quality: int = hpo.Field(0, ge=-9, le=9)
    idle: int = hpo.Field(0, ge=0, le=9)

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize", "luck": "maximize"}
    def inactive(self, params):
        return ("idle",)
    def train(self, params, data, seed, context, resume=None):
        for epoch in range(1, params.epochs + 1):
            luck = random.Random(f"{seed} {params.quality} {epoch}").gauss(0, 0.002)
            bad = float("nan") if params.quality == -9 and epoch > 1 else 0.0
            yield hpo.Epoch({"accuracy": 0.5 + 0.01 * params.quality + luck + bad, "luck": luck}, state={})
            if params.quality == -7:
                return
    def test(self, params, data, state):
        return {"accuracy": 0.5, "luck": 0.5}
"""
"""A recipe that trains nothing; with a quality of -9 it diverges, with -7 it ends after an epoch."""
QUALITIES = "[search]\nquality = [1, 2, 3]"


def ended(
    folder: Path, out: str, studies: dict[str, str] | str, *names: str, reuse: str | None = None, **given: Any
) -> Plan:
    """A plan of such studies, trained in this process; a single one is `rate`."""
    plan = begun(folder, out, studies, *names, reuse=reuse, **given)
    assert work(plan.storage, out=folder / out, studies=names) is None
    return plan


def begun(
    folder: Path, out: str, studies: dict[str, str] | str, *names: str, reuse: str | None = None, **given: Any
) -> Plan:
    """Such a plan, before anything is trained."""
    files = folder / f"studies-{out}"
    files.mkdir(exist_ok=True)
    for name, text in ({"rate": studies} if isinstance(studies, str) else studies).items():
        (files / f"{name}.toml").write_text(text)
    other = None if reuse is None else str(folder / reuse)
    return find_or_create_plan(folder / out, studies=files, names=names, given=given, reuse=other)


def itself(plan: Plan, name: str = "rate") -> list[int]:
    """How many epochs of single seeds each trial of a study has trained itself."""
    return [trial.user_attrs.get(SEED_EPOCHS_KEY, 0) for trial in plan.trials(name)]


def by_param(plan: Plan, param: str, name: str = "rate") -> dict[Any, FrozenTrial]:
    return {trial.params[param]: trial for trial in plan.trials(name)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the simulated recipe; it is a module of its own for every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{module(tmp_path)}.py").write_text(SIMULATED)
    return tmp_path


def module(folder: Path) -> str:
    return f"reused_{re.sub('[^a-z0-9]', '_', folder.name.lower())}"


def simulated(folder: Path, **given: Any) -> dict[str, Any]:
    return {**SIZES, "recipe": f"python:{module(folder)}:Simulated", **given}


# --- to the bit ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plan `three`, of three rates at two seeds."""
    folder = tmp_path_factory.mktemp("reuse")
    ended(folder, "three", RATES, "rate", **TINY_SIZES, seeds=2)
    return folder


def test_of_a_further_value_only_that_is_trained_and_every_bit_is_as_if_all_had_been(three: Path) -> None:
    four = RATES.replace("0.0001]", "0.0001, 0.003]")
    plan = ended(three, "four", four, "rate", reuse="three", **TINY_SIZES, seeds=2)
    fresh = ended(three, "fresh-four", four, "rate", **TINY_SIZES, seeds=2)
    assert itself(plan) == [0, 0, 0, 6]
    assert itself(fresh) == [6, 6, 6, 6]
    assert accepted_epochs(plan) == accepted_epochs(fresh)
    assert plan.decision("rate") == fresh.decision("rate")


def test_of_further_seeds_only_those_are_trained(three: Path) -> None:
    plan = ended(three, "seeds", RATES, "rate", reuse="three", **TINY_SIZES, seeds=3)
    fresh = ended(three, "fresh-seeds", RATES, "rate", **TINY_SIZES, seeds=3)
    assert itself(plan) == [3, 3, 3]
    assert accepted_epochs(plan) == accepted_epochs(fresh)
    (note,) = plan.trials("rate")[0].user_attrs["notes"]
    assert note.startswith("seeds 0, 1 not trained here, but in sqlite:///")


def test_who_has_taken_results_over_says_from_where_and_verify_trains_them_again(
    three: Path, cli: Cli
) -> None:
    plan = ended(three, "told", RATES, "rate", reuse="three", **TINY_SIZES)
    where = ("--storage", plan.storage.url, "--out", str(three / "told"))
    name = f"sqlite:///{three / 'three' / 'hpo.db'}"
    assert f"already trained: in {name} as rate/1, the same" in " ".join(
        cli("show", "rate", *where).out.split()
    )
    kinds = re.findall(r"(already trained|still improving)", cli("show", "rate", *where).out)
    assert kinds == ["already trained"] * 3 + ["still improving"]
    shown = json.loads(cli("show", "rate/1", "--json", *where).out)
    assert shown["machine"][ORIGIN_KEY] == [{"plan": name, "study": "rate", "trial": 1, "seeds": [0]}]
    status = cli("status", *where)
    assert f"3 results of {name} at hand; taken over whole so far: 3" in " ".join(status.out.split())
    assert json.loads(cli("status", "--json", *where).out)["studies"][0]["reused"] == 3
    assert cli("verify", "rate/1", *where).out.strip() == (
        f"rate/1: equal to the bit in every epoch; taken over from {name} as rate/1"
    )


# --- what is the same ------------------------------------------------------------------------------------


def test_plans_that_share_a_database_of_results_hand_them_on(place: Path) -> None:
    ended(place, "a", QUALITIES, **simulated(place))
    ended(place, "b", "[search]\nquality = [4]", reuse="a", **simulated(place))
    plan = ended(place, "c", "[search]\nquality = [1, 4, 5]", reuse="b", **simulated(place))
    assert itself(plan) == [0, 0, 2]
    origins = [trial.user_attrs[ORIGIN_KEY][0] for trial in plan.trials("rate")[:2]]
    assert [each["plan"].split("/")[-2] for each in origins] == ["a", "b"]


def test_of_a_trial_that_was_known_in_part_each_seed_has_its_own_origin(place: Path) -> None:
    ended(place, "a", "[search]\nquality = [1]", "rate", **simulated(place))
    ended(place, "b", "[search]\nquality = [1]", "rate", reuse="a", **simulated(place, seeds=2))
    both = ended(place, "c", "[search]\nquality = [1]", "rate", reuse="b", **simulated(place, seeds=2))
    second = ended(place, "d", "[search]\nquality = [1]", "rate", reuse="b", **simulated(place, seed=1))
    found = [
        [
            (each["plan"].split("/")[-2], each["seeds"])
            for each in plan.trials("rate")[0].user_attrs[ORIGIN_KEY]
        ]
        for plan in (both, second)
    ]
    assert found == [[("a", [0]), ("b", [1])], [("b", [1])]]
    assert itself(both) == itself(second) == [0]


@pytest.mark.parametrize("other_setting", [{"limit_train": 200}, {"precision": "bf16"}])
def test_what_a_plan_took_over_whose_making_was_cut_short_is_nothing_to_another_plan(
    place: Path, monkeypatch: pytest.MonkeyPatch, other_setting: dict[str, Any]
) -> None:
    given = simulated(place, precision="fp32")  # some processors would choose the other by themselves
    ended(place, "a", QUALITIES, "rate", **given)
    with monkeypatch.context() as killed:
        killed.setattr(Plan, "create", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun(place, "b", QUALITIES, reuse="a", **given)
    other = {**given, **other_setting}
    two = "[search]\nquality = [1, 2]"
    assert itself(ended(place, "b", two, "rate", **other)) == [2, 2]
    # nor to one that takes over from that
    assert itself(ended(place, "c", QUALITIES, "rate", reuse="b", **other)) == [0, 0, 2]


def test_sampled_points_inherited_configurations_and_whole_plans_are_known_again(place: Path) -> None:
    studies = {
        "rate": 'trials = 4\n[search]\nquality = {low = -8, high = 9}\n[sampler]\nname = "random"',
        "next": 'inherits = "rate"\n[fixed]\nidle = 1\n[search]\nquality = [5, 6]',
    }
    before = ended(place, "a", studies, **simulated(place))
    plan = ended(place, "b", studies, reuse="a", **simulated(place, final_seeds=3))
    assert itself(plan) == [0] * 4
    assert itself(plan, "next") == [0] * len(before.trials("next"))
    assert itself(plan, FINAL) == [6]  # it keeps models and answers of all its seeds, so it trains them
    kept = {key: value for key, value in accepted_epochs(plan).items() if key[0] != FINAL}
    assert kept == {key: value for key, value in accepted_epochs(before).items() if key[0] != FINAL}


def test_the_final_stage_trains_even_what_a_search_of_its_seeds_has_trained(place: Path) -> None:
    """It needs the networks."""
    ended(place, "a", QUALITIES, "rate", **simulated(place, seed=FINAL_SEED_OFFSET))
    plan = ended(place, "b", QUALITIES, reuse="a", **simulated(place))
    (trial,) = plan.trials(FINAL)
    assert trial.user_attrs["seeds"] == plan.trials(LIBRARY)[0].user_attrs["seeds"]
    assert itself(plan, FINAL) == [2]


def test_a_plan_that_exists_takes_over_what_is_there_by_now(place: Path) -> None:
    begun(place, "b", "[search]\nquality = [1, 2, 7]", **simulated(place))
    ended(place, "a", QUALITIES, **simulated(place))
    plan = ended(place, "b", "[search]\nquality = [1, 2, 7]", reuse="a", **simulated(place))
    again = ended(place, "b", "[search]\nquality = [1, 2, 7]", reuse="a", **simulated(place))
    assert sorted(itself(plan)) == [0, 0, 2]
    assert len(again.trials(LIBRARY)) == 3  # the final stage is none of them


def test_results_at_another_metric_count_by_this_ones(place: Path) -> None:
    ended(place, "a", QUALITIES, **simulated(place))
    plan = ended(place, "b", QUALITIES, reuse="a", **simulated(place, metric="luck"))
    fresh = ended(place, "c", QUALITIES, **simulated(place, metric="luck"))
    assert itself(plan) == [0, 0, 0]
    assert [trial.value for trial in plan.trials("rate")] == [trial.value for trial in fresh.trials("rate")]


def test_what_diverged_is_taken_over_and_what_was_pruned_is_trained(place: Path) -> None:
    study = '[search]\nquality = [-9, 9, 8, -8]\n[pruner]\nname = "median"\nn_startup_trials = 1'
    before = by_param(ended(place, "a", study, "rate", **simulated(place, epochs=4)), "quality")
    assert reason_of(before[-8]) == "pruned"
    plan = ended(place, "b", study, "rate", reuse="a", **simulated(place, epochs=4))
    after = by_param(plan, "quality")
    assert SEED_EPOCHS_KEY in after[-8].user_attrs
    assert {q: after[q].state for q in after} == {q: before[q].state for q in before}
    assert after[-9].state == TrialState.PRUNED
    assert SEED_EPOCHS_KEY not in after[-9].user_attrs
    assert after[-9].user_attrs["reason"].startswith("diverged: ")
    assert "as rate/0" in after[-9].user_attrs["reason"]


def test_a_loop_that_ended_early_is_known_seed_by_seed(place: Path) -> None:
    """All its seeds ended after the same epoch, or it would have failed."""
    study = "[search]\nquality = [-7, 1]"
    ended(place, "a", study, "rate", **simulated(place, seeds=2))
    plan = ended(place, "b", study, "rate", reuse="a", **simulated(place))
    fresh = ended(place, "c", study, "rate", **simulated(place))
    assert itself(plan) == [0, 0]
    assert itself(fresh) == [1, 2]
    assert accepted_epochs(plan) == accepted_epochs(fresh)


def test_what_diverged_at_other_seeds_is_trained_as_nobody_knows_by_which(place: Path) -> None:
    ended(place, "a", "[search]\nquality = [-9, 1]", "rate", **simulated(place, seeds=2))
    plan = ended(place, "b", "[search]\nquality = [-9, 1]", "rate", reuse="a", **simulated(place))
    assert itself(plan) == [1, 0]
    assert reason_of(plan.trials("rate")[0]) == Reason.DIVERGED


def test_pruners_are_told_of_what_is_taken_over(place: Path) -> None:
    study = f'{QUALITIES}\n[pruner]\nname = "successive-halving"\nmin_resource = 1'
    told = [
        [
            trial.system_attrs
            for trial in ended(place, out, study, "rate", reuse=reuse, **given).trials("rate")
        ]
        for given in [simulated(place, epochs=4)]
        for out, reuse in (("a", None), ("b", "a"))
    ]
    assert all(told[0])
    assert told[1] == told[0]


def test_a_discarded_result_is_not_taken_over(place: Path, cli: Cli) -> None:
    before = ended(place, "a", QUALITIES, "rate", **simulated(place))
    assert cli("discard", "rate/0", "--reason", "a power cut", "--storage", before.storage.url).code == 0
    assert itself(ended(place, "b", QUALITIES, "rate", reuse="a", **simulated(place))) == [2, 0, 0]


def test_a_race_and_a_confirmation_take_over_every_seed_that_is_known(place: Path) -> None:
    studies = {"rate": QUALITIES, "next": 'inherits = "rate"\n[search]\nquality = [3, 9]'}
    given = simulated(place, seeds="race", max_seeds=6, confirm=True)
    before = ended(place, "a", studies, **given)
    plan = ended(place, "b", studies, reuse="a", **given)
    for name in ("rate", "next", CONFIRM):
        assert sum(itself(before, name)) > 0
        assert sum(itself(plan, name)) == 0
    assert plan.record(CONFIRM).confirmation == before.record(CONFIRM).confirmation
    # seeds are known one by one: those of a race count where each point has one, and the other way round
    assert itself(ended(place, "c", QUALITIES, "rate", reuse="a", **simulated(place))) == [0, 0, 0]
    ended(place, "one", QUALITIES, "rate", **simulated(place, seeds=1))
    raced = ended(place, "d", QUALITIES, "rate", reuse="one", **simulated(place, seeds="race", max_seeds=3))
    assert itself(raced) == [4, 4, 4]


def test_the_price_of_a_plan_is_a_share_of_what_its_results_took_wherever_that_was(place: Path) -> None:
    studies = {"rate": QUALITIES, "next": 'inherits = "rate"\n[search]\nepochs = [1, 2]'}
    given = {key: value for key, value in simulated(place).items() if key != "epochs"}
    plans = [ended(place, "a", studies, **given), ended(place, "b", studies, reuse="a", **given)]
    for plan in plans:
        open_price(with_recipe(plan), 1.0)
    assert [plan.record(PRICE).n_points for plan in plans] == [2, 2]


def test_a_report_tells_no_more_of_another_plans_place_than_its_folder(place: Path, cli: Cli) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    study = f'inherits = "plan:{place}/a/rate"\n[search]\nquality = [3, 4]'
    plan = ended(place, "b", study, "rate", reuse="a", **simulated(place))
    assert cli("report", "--to", "page", "--storage", plan.storage.url).code == 0
    for page in ("report.md", "report.html"):
        text = Path("page", page).read_text()
        assert "a/hpo.db" in text
        assert str(place) not in text


@pytest.mark.parametrize(
    "url", ["plan:postgresql://me:secret@host/db/rate", "plan:mysql://host/db?password=x/rate"]
)
def test_no_password_is_stored_with_a_study(place: Path, cli: Cli, url: str) -> None:
    Path("files").mkdir()
    Path("files/rate.toml").write_text(f'inherits = "{url}"\n[search]\nquality = [1]')
    refused = cli("create", "--studies", "files", *as_options(simulated(place)))
    assert refused.code == 2
    assert "rate.toml: inherits holds a password, which would be stored with the plan" in refused.err
    assert "secret" not in refused.err


def test_what_is_taken_over_costs_no_budget(place: Path) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    plan = ended(place, "b", QUALITIES, "rate", reuse="a", **simulated(place, budget=1e-9))
    decision = plan.decision("rate")
    assert decision is not None
    assert decision.cut is None
    assert [trial.state for trial in plan.trials("rate")] == [TrialState.COMPLETE] * 3


# --- what is not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"limit_train": 200}, r"its data are others \(--limit-train 100 there, 200 here\)"),
        ({"precision": "bf16"}, r"precision: fp32 there, bf16 here \(--precision sets it\)"),
    ],
)
def test_where_nothing_can_be_taken_over_it_is_said_why(place: Path, given: dict[str, Any], why: str) -> None:
    before = simulated(place, precision="fp32")
    ended(place, "a", QUALITIES, "rate", **before)
    with pytest.raises(library.InputError, match=rf"^--reuse sqlite:///.*: nothing of it .*: {why}$"):
        begun(place, "b", QUALITIES, reuse="a", **{**before, **given})
    assert not (place / "b").exists()


def altered(out: str, key: str, value: object) -> str:
    """A copy of a plan's folder whose trials all have another value of an attribute."""
    shutil.copytree(out, f"{out}-{key}")
    with closing(sqlite3.connect(Path(f"{out}-{key}", "hpo.db"))) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key = ?", [key])
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, ?, ? FROM trials",
            [key, json.dumps(value)],
        )
    return f"{out}-{key}"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("versions", {"torch": "1.0"}, "3 trials by torch 1.0, here is "),
        (
            "notes",
            ["on a, then b: its last bits are those of no single machine"],
            "on several kinds of machines",
        ),
        ("config", {"depth": 1}, "3 trials with other parameters"),
    ],
)
def test_who_trained_a_result_otherwise_is_said_to_be_why(
    place: Path, cli: Cli, key: str, value: object, why: str
) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    other = altered("a", key, value)
    run = ("run", "--studies", "studies-a", *as_options(simulated(place)), "--reuse", other, "--out", "b")
    refused = cli(*run)
    assert refused.code == 2
    assert f"--reuse sqlite:///{other}/hpo.db: nothing of it has the bits" in refused.err
    assert why in refused.err
    assert not Path("b").exists()


def test_results_that_hpo_did_not_write_are_left_out(place: Path) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    shutil.copytree("a", "damaged")
    with closing(sqlite3.connect("damaged/hpo.db")) as database, database:
        for number, key, value in (
            (0, "seeds", "1"),
            (0, "reason", "1"),
            (1, "epoch:2", '[{"seed": 0, "metrics": {"accuracy": NaN, "luck": 0.1}}]'),
        ):
            database.execute(
                "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json) "
                "SELECT trial_id, ?, ? FROM trials WHERE number = ? ORDER BY trial_id LIMIT 1",
                [key, value, number],
            )
    plan = ended(place, "b", QUALITIES, "rate", reuse="damaged", **simulated(place))
    assert itself(plan) == [2, 2, 0]
    with pytest.raises(InputError, match="3 trials with results that hpo did not write"):
        begun(place, "c", QUALITIES, reuse=altered("a", "seeds", ["0"]), **simulated(place))


def test_what_another_processor_has_trained_is_kept_for_its_like(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    plan = ended(place, "b", QUALITIES, "rate", reuse=altered("a", "processor", "Abacus"), **simulated(place))
    assert "trained on Abacus, and only workers on the same take it over" in caplog.text
    assert itself(plan) == [2, 2, 2]
    assert len(plan.trials(LIBRARY)) == 3
    # what its like has trained is at hand beside it
    begun(place, "c", QUALITIES, "rate", reuse="a-processor", **simulated(place))
    assert itself(ended(place, "c", QUALITIES, "rate", reuse="a", **simulated(place))) == [0, 0, 0]


def test_a_recipe_that_was_changed_since_is_said_to_be_why(place: Path) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    (place / "changed.py").write_text(f"{SIMULATED}\n# changed\n")
    with pytest.raises(
        library.InputError, match=f"its recipe is python:{module(place)}:Simulated, not python"
    ):
        begun(place, "b", QUALITIES, reuse="a", **{**simulated(place), "recipe": "python:changed:Simulated"})
    (place / f"{module(place)}.py").write_text(f"{SIMULATED}\n# changed\n")
    # this process has read it before
    given = ("--studies", "studies-a", *as_options(simulated(place)), "--reuse", "a")
    refused = hpo("create", *given, "--out", "b")
    assert refused.code == 2
    why = f"its recipe was another {module(place)}.py, which has been changed since"
    assert why in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("reuse", "why"),
    [
        ("nowhere", "--reuse: nowhere/hpo.db: no database here"),
        ("a", "--reuse sqlite:///a/hpo.db: is the plan itself; leave the option out"),
        ("idle", "nothing of it has the bits that it would have here: none of its trials has ended yet"),
    ],
)
def test_a_plan_that_is_not_there_or_has_nothing_is_refused(
    place: Path, cli: Cli, reuse: str, why: str
) -> None:
    given = ("--studies", "studies-a", *as_options(simulated(place)))
    begun(place, "a", QUALITIES, **simulated(place))
    begun(place, "idle", QUALITIES, **simulated(place))
    refused = cli("create", *given, "--reuse", reuse, "--out", "a")
    assert refused.code == 2
    assert why in " ".join(refused.err.split())


# --- hpo plan --------------------------------------------------------------------------------------------


def test_the_forecast_says_how_many_points_are_taken_over(place: Path, cli: Cli) -> None:
    studies = {"rate": QUALITIES, "next": 'inherits = "rate"\n[search]\nquality = [4, 5]'}
    ended(place, "a", studies, **simulated(place))
    Path("studies-a/rate.toml").write_text("[search]\nquality = [1, 2, 3, -3]")
    asked = ("plan", "--studies", "studies-a", *as_options(simulated(place)), "--reuse", "a")
    rate, following, final = json.loads(cli(*asked, "--json").out)
    assert (rate["points"], rate["reused"], rate["epochs"]) == (4, 3, 2)
    assert (following["points"], following["reused"], following["epochs"]) == (2, 2, 0)
    assert (final["reused"], final["epochs"]) == (None, 2)
    assert "taken over" in cli(*asked).out
    more = json.loads(cli(*asked, "--seeds", "3", "--json").out)[0]
    assert (more["reused"], more["reused_in_part"], more["epochs"]) == (0, 3, 2 * (2 + 2 + 2 + 3))
    assert re.search(r"^ *rate +4 +0, 3 in part +3 ", cli(*asked, "--seeds", "3").out, re.M)


# --- another plan's winner -------------------------------------------------------------------------------

FROM = 'inherits = "plan:a/rate"\n'


def test_a_study_starts_from_another_plans_winner_and_needs_that_plan_once(place: Path, cli: Cli) -> None:
    before = ended(place, "a", QUALITIES, "rate", **simulated(place)).decision("rate")
    assert before is not None
    studies = {"next": f"{FROM}[search]\nquality = [4, 5]", "after": f"{FROM}[fixed]\nquality = 6"}
    begun(place, "b", studies, reuse="a", **simulated(place))
    shutil.rmtree("a")
    plan = ended(place, "b", studies, **simulated(place))
    for name, qualities in (("next", [3, 4, 5]), ("after", [3, 6])):
        configs = [trial.user_attrs["config"]["quality"] for trial in plan.trials(name)]
        assert configs == qualities
        assert itself(plan, name) == [0, *[2] * (len(qualities) - 1)]  # the control is the other plan's
        decision = plan.decision(name)
        assert decision is not None
        assert decision.adopted
        assert decision.params == {**before.params, "quality": qualities[-1]}
        inherited = plan.record(name).inherited
        assert inherited is not None
        assert inherited.study == "plan:a/rate"
    where = ("--storage", plan.storage.url)
    assert "from plan:a/rate (trial rate/2, accuracy" in " ".join(cli("show", "next", *where).out.split())
    assert json.loads(cli("show", "next/1", "--json", *where).out)["origins"]["idle"].startswith(
        "plan:a/rate"
    )
    for page in ("report.md", "report.html"):
        assert cli("report", "--to", "page", *where).code == 0
        assert "plan:a/rate" in Path("page", page).read_text()


def test_a_confirmation_tries_what_was_adopted_over_another_plans_winner(place: Path) -> None:
    ended(place, "a", QUALITIES, "rate", **simulated(place))
    given = simulated(place, confirm=True, set={"idle": 1})
    plan = ended(place, "b", f"{FROM}[search]\nquality = [9]", **given)
    found = plan.record(CONFIRM).confirmation
    assert found is not None
    (decision,) = found.decisions
    assert (decision.change, decision.kept) == ({"quality": 9}, True)
    assert plan.decision("rate").params["idle"] == 1  # type: ignore[union-attr]


def test_a_plan_starts_from_what_another_has_ended_with(place: Path) -> None:
    ended(place, "a", QUALITIES, **simulated(place))
    plan = ended(place, "b", 'inherits = "plan:a/final"\n[search]\nidle = [0, 1]', "rate", **simulated(place))
    assert plan.decision("rate").params["quality"] == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inherits", "why"),
    [
        ("plan:nowhere/rate", "nowhere/hpo.db: no database here"),
        ("plan:a/rat", "rat is not a study of that plan; did you mean 'rate'?"),
        ("plan:a/rate", "sqlite:///a/hpo.db: rate has not decided yet"),
        ("plan:other/rate", "that plan's recipe is constrained-cnn, this one's python:"),
    ],
)
def test_where_there_is_no_winner_to_start_from_it_is_said_why(
    place: Path, cli: Cli, inherits: str, why: str
) -> None:
    begun(place, "a", QUALITIES, **simulated(place))
    if "other" in inherits:
        ended(place, "other", SMALL, "rate", **TINY_SIZES)
    Path("files").mkdir()
    Path("files/rate.toml").write_text(f'inherits = "{inherits}"\n[search]\nquality = [1]')
    refused = cli("create", "--studies", "files", *as_options(simulated(place)), "--out", "b")
    assert refused.code == 2
    assert f"rate.toml: inherits = '{inherits}': {why}" in " ".join(refused.err.split())
    assert not Path("b").exists()


# --- a single point --------------------------------------------------------------------------------------


def test_a_study_without_a_search_has_one_point(place: Path, cli: Cli) -> None:
    studies = {"rate": "[fixed]\nquality = 2", "next": 'inherits = "rate"\n[fixed]\nquality = 7'}
    plan = ended(place, "a", studies, **simulated(place))
    assert [trial.user_attrs["config"]["quality"] for trial in plan.trials("rate")] == [2]
    first, following = plan.decision("rate"), plan.decision("next")
    assert first is not None
    assert following is not None
    assert first.text == "took the single point that there is (one seed; nothing inherited to compare with)"
    assert following.adopted
    assert following.text.startswith("adopted quality 7: ")
    where = ("--storage", plan.storage.url)
    for command in ("status", "show rate", "show rate/0", "report --to page", "export"):
        assert cli(*command.split(), *where).code == 0
    assert json.loads(cli("status", "--json", *where).out)["studies"][0]["best"]["params"]["quality"] == 2
