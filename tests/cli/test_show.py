"""One trial whole, and the best configuration: what is asked in two ways has one answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hpo.execution.worker import work
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage.queue import Queue, Reason
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, made_plan
from tests.support.scripted_worker import Worker, new_plan

STUDIES = {
    "setup": "[base]\nbatch_size = 40\n[search]\nconv1_channels = [4, 8]",
    "rate": 'inherits = "setup"\n[fixed]\nl2 = 0.01\n[search]\nlearning_rate = [0.1, 0.01, 0.001]',
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan of two seeds whose first study has decided for trial 1; of the second one trial was lost."""
    plan = new_plan(tmp_path, STUDIES, seeds=2)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("setup"), [0.1, 0.2, 0.3, 0.25])
    worker.finish(worker.claim("setup"), [0.1, 0.4, 0.3, 0.25])
    advance(plan)
    queue, lost = Queue(plan.storage, "rate"), worker.claim("rate")
    worker.report(lost, [0.2, 0.3])
    plan.storage.write(lost._trial_id, attrs={"notes": ["a checkpoint was put aside"]})
    queue.close(lost._trial_id, Reason.LOST, "process 1 on node-7 is gone", attrs={"traceback": "Oh\n  no"})
    advance(plan)
    return plan


def test_one_trial_is_shown_whole(plan: Plan, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = cli("show", "rate/0", "--storage", plan.storage.url)
    assert result.code == 0, result.err
    text = result.out
    assert text.startswith("rate/0 lost, macro F1 30.0 % in epoch 2\n")
    assert "learning_rate 0.1; seeds 0, 1; epochs: 2 of 4\n" in text
    assert re.search(r"^F1 % +▁█ +20\.0 +30\.0 +2 +30\.0$", text, re.M)
    assert re.search(r"^ +0 +31\.0 ", text, re.M)  # a seed at the best epoch
    for name, value, origin in (
        ("conv1_channels", "8", "chosen by setup, setup/1"),
        ("batch_size", "40", "base of setup"),
        ("l2", "0.01", "fixed here"),
        ("learning_rate", "0.1", "searched"),
        ("epochs", "4", "--epochs"),
        ("optimizer", "adam", "default"),
    ):
        assert re.search(rf"^{name} +{value} +{origin}$", text, re.M), name
    assert "lost: process 1 on node-7 is gone\n" in text
    assert "trial 0: a checkpoint was put aside\n" in text
    assert re.search(r"^ +0 +2 +lost ", text, re.M)  # both attempts
    assert re.search(r"^ +3 +0 +waiting", text, re.M)
    assert text.endswith("traceback of trial 0:\n  Oh\n    no\n")
    waiting = cli("show", "rate/3", "--storage", plan.storage.url).out
    assert waiting.startswith("rate/3 waiting\n")


def test_one_trial_as_json(plan: Plan, cli: Cli) -> None:
    found = json.loads(cli("show", "rate/0", "--json", "--storage", plan.storage.url).out)
    assert (found["study"], found["trial"], found["state"], found["epochs"]) == ("rate", 0, "lost", 2)
    assert found["config"]["learning_rate"] == 0.1
    assert found["origins"]["conv1_channels"] == "chosen by setup, setup/1"
    assert found["origins"].keys() >= found["config"].keys()
    assert [(each["trial"], each["state"]) for each in found["attempts"]] == [(0, "lost"), (3, "waiting")]


def test_every_trial_of_a_finished_plan_can_be_shown(finished: Path, cli: Cli) -> None:
    for study, count in (("rate", 2), ("shape", 3), ("final", 1)):
        for number in range(count):
            text = cli("show", f"{study}/{number}", "--out", finished).out
            assert text.startswith(f"{study}/{number} complete, macro F1 ")
            assert "threads 1\n" in text


def test_what_means_nothing_in_a_configuration_is_no_part_of_it(tmp_path: Path, cli: Cli) -> None:
    search = '[search]\noptimizer = ["adam"]\nmomentum = [0.5]'
    plan, where = made_plan(tmp_path, {"rate": f"{SMALL}{search}"}, epochs=1), ("--out", tmp_path)
    work(plan.storage, out=tmp_path)
    for command in (["best"], ["final"], ["show", "final"]):
        text = cli(*command, *where).out.partition("\nrate: chose ")[0]
        assert re.search(r"optimizer +adam", text), command
        assert "momentum" not in text, command
    text = cli("show", "rate/0", *where).out
    assert "\noptimizer adam; seed 0; " in text
    assert re.search(r"^momentum +0\.5 +means nothing here$", text, re.M)


@pytest.mark.parametrize(
    ("name", "says"),
    [("rate/9", "has 3 trials"), ("rate/x", "write STUDY/NUMBER"), ("rats/0", "did you mean 'rate'")],
)
def test_a_trial_that_is_not_there_is_refused(cli: Cli, tmp_path: Path, name: str, says: str) -> None:
    plan = new_plan(tmp_path, {"rate": STUDIES["rate"].replace('inherits = "setup"', "")})
    advance(plan)
    result = cli("show", name, "--out", tmp_path)
    assert result.code == 2
    assert says in result.err


def test_the_epochs_of_a_trial_that_was_not_trained_to_its_end_are_told_so(plan: Plan, cli: Cli) -> None:
    worker = Worker(plan)
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 2")
    text = cli("show", "rate", "--storage", plan.storage.url).out
    assert re.search(r"^ +1 +0\.01 .* 1 +2/4 +pruned$", text, re.M)


def check_best_is_one(plan: Plan, cli: Cli, where: str) -> None:
    """`hpo status` and `hpo best` answer the same."""
    said = re.search(r"best F1 ([\d.]+(?: ± [\d.]+)? %)", cli("status", "--storage", plan.storage.url).out)
    best = cli("best", "--storage", plan.storage.url)
    assert best.code == 0, best.err
    assert said is not None
    assert best.out.startswith(f"macro F1 {said[1]} on validation ({where}")


def test_the_best_so_far_is_the_same_for_every_command(plan: Plan, cli: Cli, tmp_path: Path) -> None:
    worker = Worker(plan)
    check_best_is_one(plan, cli, "setup/1, with too few seeds")
    worker.finish(worker.claim("rate"), [0.35])
    check_best_is_one(plan, cli, "setup/1, with too few seeds")
    worker.finish(worker.claim("rate"), [0.45])
    check_best_is_one(plan, cli, "rate/2, so far: rate has not decided")
    worker.finish_all("rate", [0.1])
    check_best_is_one(plan, cli, "rate/2, with too few seeds")


def test_the_best_of_a_plan_in_its_first_study(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, STUDIES)
    advance(plan)
    nothing = cli("best", "--out", tmp_path)
    assert (nothing.code, "no trial has a result yet" in nothing.err) == (2, True)
    assert "best F1 %" not in cli("status", "--out", tmp_path).out.splitlines()[-1]
    worker = Worker(plan)
    worker.finish(worker.claim("setup"), [0.408])
    check_best_is_one(plan, cli, "setup/0, so far: setup has not decided")
    assert json.loads(cli("best", "--json", "--out", tmp_path).out)["source"] == {
        "study": "setup",
        "trial": 0,
    }


def test_with_adopt_always_the_best_is_what_was_adopted(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, STUDIES, adopt="always")
    advance(plan)
    worker = Worker(plan)
    worker.finish_all("setup", [0.6])
    worker.finish_all("rate", [0.5])
    check_best_is_one(plan, cli, "rate/0")


def test_the_best_of_a_finished_plan(finished: Path, cli: Cli) -> None:
    from hpo import find_plan

    check_best_is_one(find_plan(finished), cli, "")
