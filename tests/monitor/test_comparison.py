"""Two trials of a plan, or two plans, beside each other: what differs, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from tests.support.fixtures import Cli
from tests.support.plans import SMALL_SIZES, train
from tests.support.scripted_worker import Worker, new_plan

RATES = {"rate": "[search]\nlearning_rate = [0.1, 0.01, 0.001, 0.0001, 0.00001]"}
BASE = [0.60, 0.62, 0.58, 0.61, 0.59, 0.60]
AHEAD = [value + gain for value, gain in zip(BASE, [0.03, 0.031, 0.029, 0.03, 0.032, 0.028], strict=True)]
LEVEL = [value + gain for value, gain in zip(BASE, [0.001, -0.001, 0.0, 0.001, -0.001, 0.0], strict=True)]
NOISY = [value + gain for value, gain in zip(BASE, [0.2, -0.1, 0.1, -0.2, 0.15, -0.1], strict=True)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study of five points, four of which are trained, on six seeds."""
    plan = new_plan(tmp_path_factory.mktemp("searched"), RATES, seeds=6)
    advance(plan)
    worker = Worker(plan)
    for seeds in (BASE, AHEAD, LEVEL, NOISY):
        worker.finish(worker.claim("rate"), [[0.1] * 6, seeds])
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 2")
    return plan


@pytest.mark.parametrize(
    ("second", "verdict", "says"),
    [
        (1, "better", "shown to be better: macro F1 +3.0 points, between +2.9 and +3.1 points"),
        (2, "equivalent", "shown to make no difference that matters: macro F1 +0.0 points"),
        (3, "not shown", "not shown either way: macro F1 +0.8 points"),
    ],
)
def test_trials_are_compared_seed_by_seed(
    cli: Cli, searched: Plan, second: int, verdict: str, says: str
) -> None:
    place = ("--storage", searched.storage.url)
    record = json.loads(cli("compare", "rate/0", f"rate/{second}", "--json", *place).out)
    assert record["verdict"] == verdict
    assert (record["metric"], record["part"]) == ("macro_f1", "validation")
    assert (record["seeds"], record["shared_seeds"]) == (6, 6)
    assert record["interval"][0] < record["difference"] < record["interval"][1]
    assert list(record["differing"]) == ["learning_rate"]
    shown = cli("compare", "rate/0", f"rate/{second}", *place)
    assert (shown.code, shown.err) == (0, "")
    text = " ".join(shown.out.split())
    assert f"rate/{second} against rate/0: {says}" in text
    assert "with 95 % confidence (seed by seed, on the 6 that both have)" in text


def test_the_other_way_round_says_the_opposite(cli: Cli, searched: Plan) -> None:
    place = ("--storage", searched.storage.url, "--json")
    one = json.loads(cli("compare", "rate/0", "rate/1", *place).out)
    other = json.loads(cli("compare", "rate/1", "rate/0", *place).out)
    assert (one["verdict"], other["verdict"]) == ("better", "worse")
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["interval"] == pytest.approx([-end for end in reversed(other["interval"])])


def test_what_matters_is_the_users_choice(cli: Cli, searched: Plan) -> None:
    place = ("--storage", searched.storage.url, "--json")
    strict = json.loads(cli("compare", "rate/0", "rate/2", "--delta=0.0005", *place).out)
    assert strict["verdict"] == "not shown"


def test_a_metric_to_be_minimized_is_better_where_it_is_less(cli: Cli, tmp_path: Path) -> None:
    plan = new_plan(tmp_path, RATES, seeds=3, metric="loss")
    advance(plan)
    worker = Worker(plan)
    for _ in range(2):
        worker.finish(worker.claim("rate"), [0.5])
    found = json.loads(cli("compare", "rate/0", "rate/1", "--json", "--storage", plan.storage.url).out)
    assert (found["metric"], found["difference"], found["verdict"]) == ("loss", 0.0, "not shown")


def test_one_seed_is_not_tested(cli: Cli, tmp_path: Path) -> None:
    plan = new_plan(tmp_path, RATES)
    advance(plan)
    worker = Worker(plan)
    for value in (0.5, 0.6):
        worker.finish(worker.claim("rate"), [value])
    found = " ".join(cli("compare", "rate/0", "rate/1", "--storage", plan.storage.url).out.split())
    assert "rate/1 against rate/0: not tested, as one seed does not tell how much of it is luck: " in found
    assert "macro F1 +10.0 points" in found


def test_plans_are_compared_on_the_test_part(cli: Cli, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    study = "[base]\nconv1_channels = 4\nconv2_channels = 4\n[search]\nlearning_rate = [1e-7]"
    (tmp_path / "studies" / "rate.toml").write_text(study)
    out = tmp_path / "out"
    train(out, studies=tmp_path / "studies", **SMALL_SIZES)
    record = json.loads(cli("compare", out, finished, "--json").out)
    assert record["part"] == "test"
    assert record["shared_seeds"] == SMALL_SIZES["final_seeds"]
    assert {"learning_rate", "conv1_channels"} <= record["differing"].keys()
    finals = [json.loads(cli("final", "--json", "--out", each).out) for each in (out, finished)]
    gain = finals[1]["test"]["macro_f1"] - finals[0]["test"]["macro_f1"]
    assert record["difference"] == pytest.approx(gain)
    values = [fmean(side["values"].values()) for side in record["sides"]]
    assert values[1] - values[0] == pytest.approx(gain)


def test_what_cannot_be_compared_is_refused_with_the_reason(
    cli: Cli, searched: Plan, finished: Path, tmp_path: Path
) -> None:
    other = new_plan(tmp_path, RATES, limit_train=50)
    place = ("--storage", searched.storage.url)
    refused = {
        ("rate/0", "rate/4"): "rate/4 has no result to be compared: pruned: by median",
        ("rate/0", "rate/0"): "rate/0 is compared with itself",
        ("rate/0", "rate/99"): "study 'rate' has 5 trials",
        ("rate/0", "best"): "'best' does not name a trial; write STUDY/NUMBER",
        ("rate/0", str(finished)): "one is a plan, one a trial",
        (str(finished), other.storage.url): "have other data (digits, fingerprint",
        (str(finished), searched.storage.url): "the final stage has no result yet",
    }
    for names, says in refused.items():
        result = cli("compare", *names, *place)
        assert (result.code, result.out) == (2, ""), (names, result)
        assert says in result.err
        assert len(result.err.splitlines()) == 1
