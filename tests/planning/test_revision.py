"""Decisions that are taken back: what counts afterwards, what is kept, and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo.errors import ConflictError, InputError
from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning.plan import Plan
from hpo.planning.revision import discard
from hpo.planning.scheduler import advance
from hpo.reporting import prose
from hpo.reporting.data import read
from tests.support.fixtures import Cli
from tests.support.scripted_worker import Worker, new_plan

RATES = "[search]\nlearning_rate = [0.1, 0.01, 0.001]"
CHILD = 'inherits = "rate"\n[search]\nbatch_size = [20, 40]'


def _decided(folder: Path, **given: object) -> Plan:
    """A plan whose first study has decided for the first of three points; nothing was trained after it."""
    plan = new_plan(folder, {"rate": RATES, "size": CHILD}, **given)
    advance(plan, ["rate"])
    worker = Worker(plan)
    for best in (0.6, 0.5, 0.4):
        worker.finish(worker.claim("rate"), [0.1, best])
    advance(plan, ["rate"])
    return plan


def test_a_discarded_trial_decides_nothing_and_the_old_decision_is_kept(tmp_path: Path, cli: Cli) -> None:
    plan = _decided(tmp_path)
    before = plan.decision("rate")
    assert before is not None
    assert before.params["learning_rate"] == 0.1
    done = cli("discard", "rate/0", "--reason", "its\nGPU was broken", "--storage", plan.storage.url)
    assert done.code == 0, done.err
    after = plan.decision("rate")
    assert after is not None
    assert (after.params["learning_rate"], after.value) == (0.01, 0.5)
    assert done.out.splitlines() == [f"before: {before.text}", f"now: {after.text}"]

    (kept,) = plan.record("rate").superseded
    assert kept.decision == before
    assert kept.because == "trial 0 was discarded: its GPU was broken"
    assert plan.trials("rate")[0].value == 0.6  # it stays
    assert advance(plan, ["rate"])
    assert len(plan.trials("rate")) == 3  # and is not tried again
    rows = results.rows(plan, "rate")
    assert [row.state for row in rows] == ["discarded", "complete", "complete"]
    assert results.best(plan)["source"] == {"study": "rate", "trial": 1}
    first = status(plan)[0]
    assert (first.best and first.best["trial"], first.state) == (1, "done")

    shown = " ".join(cli("show", "rate", "--storage", plan.storage.url).out.split())
    assert "trial 0: discarded: its GPU was broken " in shown
    assert f"decision: {after.text} before: {before.text}; superseded on 20" in shown
    assert "discarded" in cli("show", "rate/0", "--storage", plan.storage.url).out
    record = json.loads(cli("show", "rate", "--json", "--storage", plan.storage.url).out)
    assert record["superseded"][0]["decision"] == before.model_dump(mode="json")
    section = read(plan).sections[0]
    assert [point.row.trial for point in section.ranked] == [1, 2]
    assert f" Before: {before.text}; superseded on " in prose.decision_text(section)


def test_what_comes_after_starts_from_the_new_decision(tmp_path: Path) -> None:
    plan = _decided(tmp_path)
    discard(plan, "rate", plan.trials("rate")[0], "broken")
    advance(plan)
    inherited = plan.record("size").inherited
    assert inherited is not None
    assert inherited.params["learning_rate"] == 0.01
    discarded = plan.trials("rate")[1]
    with pytest.raises(
        ConflictError, match=r"^size: trained on top of what rate decided; .*, 2 points would have"
    ):
        discard(plan, "rate", discarded, "broken, too")
    assert list(plan.record("rate").discarded) == [0]


def test_a_trial_may_be_discarded_before_its_study_decides(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, {"rate": RATES})
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [0.1, 0.6])
    done = cli("discard", "rate/0", "--reason", "broken", "--storage", plan.storage.url)
    assert done.out.startswith("rate has not decided; `hpo run ")
    for best in (0.5, 0.4):
        worker.finish(worker.claim("rate"), [0.1, best])
    advance(plan, ["rate"])
    decision = plan.decision("rate")
    assert decision is not None
    assert decision.value == 0.5
    assert plan.record("rate").superseded == ()


def test_where_all_are_discarded_nothing_is_decided(tmp_path: Path) -> None:
    plan = _decided(tmp_path)
    for trial in plan.trials("rate"):
        discard(plan, "rate", trial, "broken")
        advance(plan, ["rate"])
    decision = plan.decision("rate")
    assert decision is not None
    assert (decision.winner, decision.params) == (None, {})
    assert [each.decision.value for each in plan.record("rate").superseded] == [0.6, 0.5, 0.4]


def test_what_cannot_be_discarded_is_refused_in_words(tmp_path: Path, cli: Cli) -> None:
    plan = _decided(tmp_path)
    discard(plan, "rate", plan.trials("rate")[2], "broken")
    advance(plan)
    worker = Worker(plan)
    pruned = worker.claim("size")
    worker.prune(pruned, "pruned: by median after epoch 2")
    worker.finish(worker.claim("size"), [0.1, 0.7])
    advance(plan)
    worker.finish(worker.claim("final"), [0.1, 0.7])
    for trial, said in (
        ("rate/2", "rate/2 is discarded already: broken"),
        ("size/0", "size/0 has no result that could decide anything"),
        ("final/0", "final/0: the final stage decides nothing"),
        ("size/1", "final: trained on top of what size decided"),
        ("rate/7", "study 'rate' has 3 trials"),
    ):
        refused = cli("discard", trial, "--reason", "broken", "--storage", plan.storage.url)
        assert refused.code == 2
        assert said in refused.err
    refused = cli("discard", "size/1", "--reason", " ", "--storage", plan.storage.url)
    assert "--reason is empty" in refused.err
    assert plan.record("size").superseded == ()


def test_a_control_cannot_be_discarded(tmp_path: Path) -> None:
    plan = new_plan(
        tmp_path,
        {"rate": f"{RATES}\n[published]\nchoice = {{learning_rate = 0.01}}", "size": CHILD},
        inherit="published",
    )
    advance(plan)
    worker = Worker(plan)
    worker.finish_all("size", [0.1, 0.5])
    decision = plan.decision("size")
    assert decision is not None
    assert decision.control is not None
    trial = plan.trials("size")[decision.control.source.trial]
    with pytest.raises(InputError, match="is the control, without which"):
        discard(plan, "size", trial, "broken")
    # its parent's decision is not what it started from
    worker.finish_all("rate", [0.1, 0.5])
