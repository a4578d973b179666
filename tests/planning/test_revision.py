"""Decisions that are taken back: what counts afterwards, what is kept, and when it is refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.errors import ConflictError, InputError
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.monitor import results
from hpo.monitor.export import export
from hpo.monitor.status import status
from hpo.planning.decisions import epochs_of
from hpo.planning.edges import edges
from hpo.planning.plan import CONFIRM, Plan
from hpo.planning.revision import discard, extend
from hpo.planning.scheduler import advance
from hpo.reporting import prose
from hpo.reporting.caveats import caveats
from hpo.reporting.dashboard.notes import notes
from hpo.reporting.data import read
from hpo.reporting.tables import points_table
from hpo.storage.storage import Storage
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, made_plan
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
    record = json.loads(cli("show", "rate", "--json", "--storage", plan.storage.url).out)
    assert record["superseded"][0]["decision"] == before.model_dump(mode="json")
    section = read(plan).sections[0]
    assert [point.row.trial for point in section.ranked] == [1, 2]
    assert f" Before: {before.text}; superseded on " in prose.decision_text(section)


def test_a_discarded_trial_is_said_to_be_so_wherever_it_is_shown(tmp_path: Path, cli: Cli) -> None:
    plan = _decided(tmp_path)
    where, why = ("--storage", plan.storage.url), "discarded: its GPU was broken"
    assert cli("discard", "rate/0", "--reason", "its GPU was broken", *where).code == 0
    assert status(plan)[0].ended_badly == {"discarded": 1}
    assert "3/3 (1 discarded)" in cli("status", *where).out

    found = json.loads(cli("show", "rate/0", "--json", *where).out)
    assert [(each["state"], each["reason"]) for each in (found, *found["attempts"])] == [
        ("discarded", why),
        ("discarded", why),
    ]
    for rows in ("trials", "epochs"):
        records = json.loads(cli("export", "--json", "--rows", rows, *where).out)
        states = {record["trial"]: record["state"] for record in records}
        assert states == {0: "discarded", 1: "complete", 2: "complete"}
    assert export(plan)[0]["reason"] == why
    compared = json.loads(cli("compare", "rate/0", "rate/1", "--json", *where).out)
    assert compared["differing"]["discarded"] == ["its GPU was broken", None]

    report = read(plan)
    assert [attempt.state for attempt in report.attempts] == ["discarded", "complete", "complete"]
    table = points_table(report, report.sections[0])
    assert table.csv().count("discarded") == 1  # the state of one point
    assert f"Trial 0: {why}." in notes(report, dict.fromkeys(plan.all_names, 1))["rate"]


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
        ("final/0", "final/0: final decides nothing"),
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


# --- further values of a grid ----------------------------------------------------------------------------


def test_the_command_that_an_edge_advises_adds_points_and_trains_no_other_again(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # no line of a long path is broken within a word
    plan = _decided(tmp_path)
    before = plan.decision("rate")
    assert before is not None
    shown = " ".join(cli("show", "rate", "--storage", plan.storage.url).out.split())
    advised = re.search(
        r"learning rate 0.1 is the highest tried; `hpo (extend rate [^`]*)` tries values beyond", shown
    )
    assert advised is not None
    assert advised[1].startswith("extend rate learning_rate=1.0 ")
    (warning,) = [text for text in caveats(read(plan)) if "on the edge" in text]
    assert "`hpo extend rate learning_rate=1.0` tries values beyond" in warning

    done = cli(*shlex.split(advised[1]))
    assert done.code == 0, done.err
    assert done.out.startswith(f"before: {before.text}\n")
    assert not advance(plan, ["rate"])  # by one who has read the plan before
    assert [trial.params for trial in plan.trials("rate")] == [
        {"learning_rate": rate} for rate in (0.1, 0.01, 0.001, 1.0)
    ]
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [0.1, 0.7])
    assert advance(plan, ["rate"])
    after = plan.decision("rate")
    assert after is not None
    assert (after.params["learning_rate"], after.value) == (1.0, 0.7)
    assert [each.because for each in plan.record("rate").superseded] == ["learning_rate 1 came to it"]
    assert (
        status(Plan.open(plan.storage))[0].points["complete"]
        == status(Plan.open(plan.storage))[0].n_points
        == 4
    )


def test_study_files_may_stay_or_follow_and_say_nothing_else(tmp_path: Path) -> None:
    plan = _decided(tmp_path)
    extend(plan, "rate", {"learning_rate": [0.03, 0.3]})
    file = tmp_path / "studies" / "rate.toml"
    for listed in ("0.1, 0.01, 0.001", "0.3, 0.1, 0.03, 0.01, 0.001"):
        file.write_text(f"[search]\nlearning_rate = [{listed}]")
        again = find_or_create_plan(tmp_path, studies=file.parent)
        assert again.specs["rate"].search["learning_rate"].values() == (0.1, 0.01, 0.001, 0.03, 0.3)
    for listed in ("0.1, 0.01", "0.1, 0.01, 0.001, 0.03", "0.1, 0.01, 0.001, 0.5"):
        file.write_text(f"[search]\nlearning_rate = [{listed}]")
        with pytest.raises(ConflictError, match="differs in search"):
            find_or_create_plan(tmp_path, studies=file.parent)


def _inherited_from(folder: Path) -> Plan:
    """Likewise, but that the next study has begun."""
    plan = _decided(folder)
    assert not advance(plan, ["size"])
    return plan


def test_whose_study_was_extended_is_sent_to_the_new_one(tmp_path: Path, cli: Cli) -> None:
    plan = _inherited_from(tmp_path)
    assert extend(plan, "rate", {"learning_rate": [1.0]}).study == "rate-2"
    shown = " ".join(cli("show", "rate", "--storage", plan.storage.url).out.split())
    assert "learning rate 0.1 is the highest tried; rate-2 tries values beyond" in shown
    (warning,) = [text for text in caveats(read(Plan.open(plan.storage))) if "on the edge" in text]
    assert warning.endswith("is the highest tried; rate-2 tries values beyond.")


def test_of_two_who_extend_at_once_one_is_told_to_try_again(tmp_path: Path) -> None:
    plan = _inherited_from(tmp_path)
    extend(plan, "rate", {"learning_rate": [0.3]})
    # who has read the plan before writes the same name, with other values
    other = plan.specs["rate"].model_copy(update={"name": "rate-2"})
    with pytest.raises(ConflictError, match="was given another study meanwhile"):
        plan.with_study(other, "rate")
    assert Plan.open(plan.storage).spec("rate-2").search["learning_rate"].values()[-1] == 0.3


def test_what_a_kill_left_of_a_new_study_is_made_anew(tmp_path: Path) -> None:
    plan = _inherited_from(tmp_path)
    attrs = plan.storage.study_attrs()["rate"]
    plan.storage.create_study("rate-2", {**attrs, "definition": "killed"}, plan.objective.direction)
    assert extend(plan, "rate", {"learning_rate": [0.3]}).study == "rate-2"
    assert Plan.open(plan.storage).spec("rate-2").search["learning_rate"].values()[-1] == 0.3


def test_what_cannot_be_extended_is_refused_in_words(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(
        tmp_path,
        {
            "rate": RATES,
            "drawn": "trials = 2\n[search]\nl2 = {low = 0.0, high = 0.1}",
            "size": CHILD,
        },
    )
    for study, value, said in (
        ("drawn", "l2=0.2", "drawn is no grid; raise its trials = 2"),
        ("rate", "learning_rat=0.2", "learning_rat is not searched by rate; did you mean 'learning_rate'?"),
        ("rate", "learning_rate=0.01,0.1", "rate tries learning_rate 0.01, 0.1 already"),
        ("rate", "learning_rate=fast", "learning_rate = 'fast': must be a number"),
        ("rate", "learning_rate=-1", "learning_rate = -1: must be"),
        ("rate", "learning_rate", "names no value; write PARAM=VALUE"),
        ("rat", "learning_rate=1", "rat is not a study of this plan; did you mean 'rate'?"),
    ):
        refused = cli("extend", study, value, "--storage", plan.storage.url)
        assert (refused.code, refused.out) == (2, "")
        assert said in refused.err


def test_a_study_that_was_inherited_from_is_extended_as_a_new_one_and_trains_nothing_twice(
    tmp_path: Path, cli: Cli
) -> None:
    strict = '[pruner]\nname = "threshold"\nlower = 0.999\n'
    plan = made_plan(
        tmp_path,
        {
            "size": f"{SMALL}[search]\nbatch_size = [20]",
            "rate": f'inherits = "size"\n[search]\nlearning_rate = [0.01, 0.001, 1e-6]\n{strict}',
            "decay": 'inherits = "rate"\n[search]\nl2 = [0.1]',
        },
        epochs=2,
    )
    where = ("--storage", plan.storage.url)
    assert work(plan.storage, out=tmp_path, studies=["decay"]) is None
    before = plan.trials("rate")
    states = [trial.state for trial in before]
    assert TrialState.COMPLETE in states
    assert TrialState.PRUNED in states

    done = cli("extend", "rate", "learning_rate=0.03", *where)
    assert done.code == 0, done.err
    words = " ".join(done.out.split())
    assert "rate keeps its decision, as decay started from it made rate-2: rate with the new values" in words
    assert "`hpo run rate-2 " in words
    assert "the final stage takes the best of what the last studies of the plan decide, rate-2 among" in words
    assert [study.name for study in plan.specs.values()] == ["size", "rate", "decay"]
    with pytest.raises(ConflictError, match="was given the study rate-2 meanwhile; run the command again"):
        advance(plan)

    plan = Plan.open(plan.storage)
    assert list(plan.specs) == ["size", "rate", "rate-2", "decay"]
    assert work(plan.storage, out=tmp_path, studies=["rate-2"]) is None
    *known, new = plan.trials("rate-2")
    assert [(t.params, t.state, t.value) for t in known] == [(t.params, t.state, t.value) for t in before]
    # seconds and all: two trainings never take the same time
    assert [epochs_of(t.user_attrs) for t in known] == [epochs_of(t.user_attrs) for t in before]
    reasons = {t.user_attrs["reason"].partition(" is")[0] for t in known}
    assert reasons <= {f"already trained: rate/{number}" for number in range(3)} | {"already trained: size/0"}
    assert new.params == {"learning_rate": 0.03}
    assert "reason" not in new.user_attrs or new.state == TrialState.PRUNED
    assert plan.record("rate-2").inherited == plan.record("rate").inherited
    assert plan.decision("rate-2") is not None
    assert plan.record("rate").superseded == ()
    section = next(each for each in read(plan).sections if each.name == "rate-2")
    assert section.control is not None
    assert section.control.row.reason.startswith("already trained: size/0 ")

    # who gives the same files again goes on
    assert list(find_or_create_plan(tmp_path, studies=tmp_path / "studies").specs) == list(plan.specs)
    refused = cli("extend", "rate", "learning_rate=0.1", *where)
    assert "rate was extended already, as rate-2; extend that study instead" in refused.err
    assert cli("extend", "rate-2", "learning_rate=0.1", *where).code == 0
    assert plan.spec("rate-2").search["learning_rate"].values() == (0.01, 0.001, 1e-6, 0.03, 0.1)


def test_once_the_test_set_is_open_that_is_said(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, {"rate": RATES})
    advance(plan)
    Worker(plan).finish_all("rate", [0.1, 0.5])
    done = cli("extend", "rate", "learning_rate=1", "--storage", plan.storage.url)
    assert done.out.startswith("rate keeps its decision, as final started from it\nmade rate-2: ")
    assert "the final stage has begun, and stays as it is;" in done.out
    Worker(plan).finish_all("final", [0.1, 0.5])
    again = cli("extend", "rate-2", "learning_rate=3", "--storage", plan.storage.url)
    assert "made rate-3: rate-2 with the new values" in again.out


# --- who begins meanwhile --------------------------------------------------------------------------------


class _Interrupted(Storage):
    """A storage on which somebody else does something right before a write that depends on a look."""

    meanwhile: Callable[[], object] | None = None

    def swap_study_attrs(self, study_id: int, *args: Any, **options: Any) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().swap_study_attrs(study_id, *args, **options)


def _two_looks(plan: Plan) -> tuple[Plan, _Interrupted]:
    storage = _Interrupted(plan.storage.url)
    return Plan.open(storage), storage


@pytest.mark.parametrize("confirm", [False, True])
@pytest.mark.parametrize("with_child", [False, True])
def test_a_decision_that_is_being_taken_back_is_not_gone_on_from(
    with_child: bool, confirm: bool, tmp_path: Path
) -> None:
    """What looked at the old decision begins only if nobody has taken it back before it writes."""
    studies = {"size": "[search]\nbatch_size = [20]", "rate": f'inherits = "size"\n{RATES}'}
    plan = new_plan(
        tmp_path,
        {**studies, **({"decay": 'inherits = "rate"\n[search]\nl2 = [0.1]'} if with_child else {})},
        confirm=confirm,
    )
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("size"), [0.1, 0.2])
    advance(plan)
    for best in (0.6, 0.5, 0.4):
        worker.finish(worker.claim("rate"), [0.1, best])
    advance(plan, ["rate"])
    ours, storage = _two_looks(plan)
    trial = plan.trials("rate")[0]
    storage.meanwhile = lambda: discard(plan, "rate", trial, "broken")
    assert not advance(ours)
    assert storage.meanwhile is None  # it came between
    assert plan.decision("rate") is None
    later = [record for name, record in plan.records().items() if name not in studies]
    assert not any(record.inherited or record.arms for record in later)
    advance(plan)
    decision = plan.decision("rate")
    assert decision is not None
    assert decision.value == 0.5
    advance(plan)
    found = plan.record("decay" if with_child else CONFIRM if confirm else "final")
    assert (found.inherited.value if found.inherited else found.arms and found.arms.chosen.value) == 0.5


@pytest.mark.parametrize("studies", [{"rate": RATES, "size": CHILD}, {"rate": RATES}])
def test_a_study_that_begins_meanwhile_keeps_the_decision_that_it_started_from(
    studies: dict[str, str], tmp_path: Path
) -> None:
    plan = new_plan(tmp_path, studies)
    advance(plan)
    worker = Worker(plan)
    for best in (0.6, 0.5, 0.4):
        worker.finish(worker.claim("rate"), [0.1, best])
    advance(plan, ["rate"])
    before = plan.decision("rate")
    ours, storage = _two_looks(plan)
    begun = "size" if "size" in studies else "final"
    storage.meanwhile = lambda: advance(plan)
    with pytest.raises(ConflictError, match=f"^{begun}: trained on top of what rate decided"):
        discard(ours, "rate", plan.trials("rate")[0], "broken")
    assert plan.decision("rate") == before
    assert plan.record("rate").discarded == {}

    ours, storage = _two_looks(plan)
    assert extend(ours, "rate", {"learning_rate": [1.0]}).on_top == (begun,)
    assert plan.decision("rate") == before


@pytest.mark.parametrize(
    ("search", "winner", "text", "beyond"),
    [
        ("batch_size = [20, 40, 80]", {"batch_size": 20}, "batch size 20 is the lowest tried", 10),
        ("batch_size = [20, 40, 60]", {"batch_size": 60}, "batch size 60 is the highest tried", 80),
        ("batch_size = [5, 20, 80]", {"batch_size": 80}, "batch size 80 is the highest tried", 320),
        (
            "learning_rate = [0.001, 0.0001]",
            {"learning_rate": 0.0001},
            "learning rate 0.0001 is the lowest",
            1e-05,
        ),
        ("hidden_units = [1, 2]", {"hidden_units": 1}, "hidden units 1 is the lowest tried", None),
    ],
)
def test_an_edge_names_the_next_value_that_can_be(
    search: str, winner: dict[str, float], text: str, beyond: float | None, tmp_path: Path
) -> None:
    plan = new_plan(tmp_path, {"s": f"[search]\n{search}"})
    advance(plan)
    worker = Worker(plan)
    while plan.storage.waiting([plan.storage.study_id("s")], 1):
        trial = worker.claim("s")
        worker.finish(trial, [0.1, 0.9 if trial.params == winner else 0.5])
    advance(plan, ["s"])
    (edge,) = edges(plan.specs["s"], plan.decision("s"), plan.schema)
    assert text in edge.text
    assert edge.beyond == beyond


@pytest.mark.parametrize(
    ("values", "winner", "beyond"),
    [
        ([0.01, 0.003, 0.001], 0.01, 0.03),
        ([0.01, 0.003, 0.001], 0.001, 0.0003),
        ([0.5, 0.25, 0.125], 0.125, 0.0625),
        ([9.0, 8.9, 1.0], 9.0, 9.1),
        ([0.01, 0.0099, 0.001], 0.01, 0.010101),
    ],
)
def test_the_next_value_is_as_round_as_those_tried(
    values: list[float], winner: float, beyond: float, tmp_path: Path
) -> None:
    plan = new_plan(tmp_path, {"s": f"[search]\nlearning_rate = {values}"})
    advance(plan)
    worker = Worker(plan)
    for value in values:
        worker.finish(worker.claim("s"), [0.9 if value == winner else 0.5])
    advance(plan, ["s"])
    (edge,) = edges(plan.specs["s"], plan.decision("s"), plan.schema)
    assert edge.beyond == beyond


def test_a_study_that_searches_nothing_says_so(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"s": "[fixed]\nl2 = 0.1"})
    with pytest.raises(InputError, match="not searched by s; it searches nothing, and is a single point"):
        extend(plan, "s", {"l2": [0.01]})
