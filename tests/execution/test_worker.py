"""One worker in this process, over every sampler and pruner there is; real SQLite, real training."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from hpo.data import TrainingData
from hpo.errors import (
    ConflictError,
    DeviceLostError,
    MissingError,
    PointsFailedError,
    RunError,
    TrialLost,
)
from hpo.execution.context import WorkerContext
from hpo.execution.run import find_or_create_plan, run
from hpo.execution.trial import TrialCallback, run_trial
from hpo.execution.verify import verify
from hpo.execution.worker import Limits, work
from hpo.monitor import results
from hpo.monitor.status import status
from hpo.planning.compatibility import check_compatible, with_more_trials
from hpo.planning.decisions import Decision, decide, epochs_of
from hpo.planning.inheritance import best_decided, inherited_by
from hpo.planning.plan import FINAL, Plan
from hpo.planning.pruners import PRUNERS
from hpo.planning.samplers import SAMPLERS
from hpo.planning.scheduler import advance
from hpo.planning.studies import read_studies
from hpo.reporting import write_report
from hpo.reporting.data import read
from hpo.storage.queue import Queue, Reason, Slots, SlotState, reason_of
from hpo.training.blobs import FolderBlobs
from hpo.training.tensors import dump, load
from tests.support.checkpoints import signed
from tests.support.plans import SMALL, made_plan
from tests.support.queues import claim_first
from tests.support.recipes import RECIPE, SCHEMA
from tests.support.toml import toml

PRUNER_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": {"n_startup_trials": 1},
    "percentile": {"percentile": 50.0, "n_startup_trials": 1},
    "successive-halving": {"reduction_factor": 2},
    "hyperband": {"reduction_factor": 2},
    "patient": {"patience": 1, "wrapped": {"name": "median", "n_startup_trials": 1}},
    "threshold": {"lower": 0.9},
    "chance": {"factor": 9.0, "at_most": 0.9},
}


SAMPLED = """
[search]
conv1_channels = [2, 4]
conv2_channels = [2, 4]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
"""
RANGES_ALONE = SAMPLED.replace("[2, 4]", "{low = 2, high = 4, step = 2}")
BEGINNINGS = {"tpe": "n_startup_trials = 3", "gp": "n_startup_trials = 3", "cma-es": "popsize = 4"}
"""Options by which samplers learn something within a few points."""


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_fills_its_budget_with_feasible_points_beside_a_control(
    sampler: str, tmp_path: Path
) -> None:
    rest = 'constraints = ["conv1_channels <= conv2_channels"]\ntrials = 12\n'
    search = RANGES_ALONE if sampler == "cma-es" else SAMPLED
    options = BEGINNINGS.get(sampler, "")
    study = f'inherits = "first"\n{rest}{search}[sampler]\nname = "{sampler}"\n{options}'
    first = f"{SMALL}[search]\nbatch_size = [20]\n[published]\nchoice = {{batch_size = 20}}"
    plan = made_plan(tmp_path, {"first": first, "second": study}, inherit="published", epochs=1)
    assert work(plan.storage, out=tmp_path, studies=["second"]) is None
    rows = results.rows(plan, "second")
    assert [row.point for row in rows] == ["control", *[f"#{index}" for index in range(12)]]
    assert {row.state for row in rows} == {"complete"}
    channels: list[tuple[Any, Any]] = [
        (row.params["conv1_channels"], row.params["conv2_channels"]) for row in rows[1:]
    ]
    assert all(first <= second for first, second in channels)
    assert len({row.params["learning_rate"] for row in rows[1:]}) >= 10  # GP may try an end of a range twice
    assert len(plan.trials("second")) == 13  # what broke the constraint cost no trial


def test_always_adopts_what_is_behind_and_hands_it_on_to_the_final_stage(tmp_path: Path) -> None:
    studies = {
        "a": f"{SMALL}[search]\nlearning_rate = [0.01]",
        "b": 'inherits = "a"\n[search]\nlearning_rate = [1e-6]',
    }
    final = {}
    for adopt in ("better", "always"):
        plan = made_plan(tmp_path / adopt, studies, adopt=adopt, epochs=2)
        assert work(plan.storage, out=tmp_path / adopt) is None
        decision = plan.decision("b")
        assert decision is not None
        assert decision.adopted is (adopt == "always")
        (trial,) = plan.trials("final")
        final[adopt] = trial.user_attrs["config"]["learning_rate"]
    assert final == {"better": 0.01, "always": 1e-6}


def test_of_several_last_studies_the_best_goes_to_the_final_stage(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path,
        {
            "a": f"{SMALL}[search]\nlearning_rate = [1e-6]",
            "b": 'inherits = "a"\n[search]\nlearning_rate = [1e-5, 0.01]',
            "c": 'inherits = "a"\n[search]\nbatch_size = [100]',
            "alone": f"{SMALL}[search]\nlearning_rate = [1e-7]",
        },
        epochs=2,
    )
    assert plan.with_ancestors(["c"]) == ["a", "c"]
    assert work(plan.storage, out=tmp_path, studies=["c"]) is None
    assert plan.decision("b") is None
    assert not plan.trials("final")
    assert work(plan.storage, out=tmp_path) is None
    best = best_decided(plan)
    assert best is not None
    assert (best.study, best.params["learning_rate"]) == ("b", 0.01)
    shown = results.best(plan)
    assert (shown["study"], list(shown["decisions"])) == ("b", ["a", "b"])
    assert shown["test"] == results.final_result(plan)["test"]
    (final,) = plan.trials("final")
    assert final.user_attrs["config"] == best.params


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_leaves_a_winner_and_ends_the_plan(pruner: str, tmp_path: Path) -> None:
    table = toml({"name": pruner, **PRUNER_OPTIONS[pruner]})
    study = f"pruner = {table}\n{SMALL}[search]\nlearning_rate = [0.01, 0.003, 0.001, 1e-5, 1e-6]"
    plan = made_plan(tmp_path, {"rate": study})
    assert work(plan.storage, out=tmp_path) is None
    rows = results.rows(plan, "rate")
    assert {row.state for row in rows} <= {"complete", "pruned"}
    for row in rows:
        assert (row.epochs == 3) is (row.state == "complete")
        assert (f"by {pruner} after epoch {row.epochs}" in row.reason) is (row.state == "pruned")
    if pruner == "none":
        assert {row.state for row in rows} == {"complete"}
    if pruner not in ("none", "hyperband", "patient"):  # whose judgement comes after these few trials
        assert "pruned" in {row.state for row in rows}
    assert Queue(plan.storage, "final").slots().attempts or pruner in ("threshold", "chance")


def test_pruning_can_be_switched_off_for_the_whole_plan(tmp_path: Path) -> None:
    study = f'{SMALL}[search]\nlearning_rate = [0.01, 1e-6]\n[pruner]\nname = "threshold"\nlower = 0.99'
    plan = made_plan(tmp_path, {"rate": study}, pruning=False)
    work(plan.storage, out=tmp_path)
    assert {row.state for row in results.rows(plan, "rate")} == {"complete"}


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def without_times(trial: FrozenTrial) -> list[list[dict[str, Any]]]:
    return [[{**seed, "seconds": 0} for seed in epoch] for epoch in epochs_of(trial.user_attrs)]


@pytest.mark.parametrize("device", DEVICES)
def test_trials_beside_each_other_end_as_they_would_alone(device: str, tmp_path: Path) -> None:
    # chunks of steps enough to be recorded and replayed; the last one is not whole
    base = f"{SMALL}batch_size = 2\nmixup_alpha = 0.2\nmixup_first_epoch = 2\n"
    study = {"rate": f"{base}[search]\nlearning_rate = [0.01, 0.003, 0.001]\nbatch_norm = [true, false]"}
    trials = []
    for size in (1, 4):
        plan = made_plan(tmp_path / str(size), study, device=device)
        assert work(plan.storage, out=tmp_path / str(size), trials_per_device=size) is None
        assert results.final_result(plan)["selected_epoch"]
        trials.append({trial.user_attrs["point"]: trial for trial in plan.trials("rate")})
        assert len(trials[-1]) == len(plan.trials("rate")) == 6  # each point was tried once
    alone, together = trials
    assert {point: without_times(t) for point, t in alone.items()} == {
        point: without_times(t) for point, t in together.items()
    }
    (_, first_end), (second_begin, _) = sorted(
        (trial.datetime_start, trial.datetime_complete) for trial in together.values()
    )[:2]
    assert first_end is not None
    assert second_begin is not None
    assert first_end > second_begin
    attempts = read(plan).attempts  # in the time line they lie beside each other too
    assert {1, 2} <= {attempt.lane for attempt in attempts} <= {1, 2, 3, 4}
    for attempt in attempts:
        beside = [each for each in attempts if each is not attempt and each.row == attempt.row]
        assert all(each.end <= attempt.begin or each.begin >= attempt.end for each in beside)


def test_a_worker_that_is_stopped_puts_all_its_trials_back(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01, 0.003]"}, epochs=100_000)
    limits = Limits(deadline_seconds=3)
    assert work(plan.storage, out=tmp_path, trials_per_device=2, limits=limits) is None
    assert [reason_of(trial) for trial in plan.trials("rate")] == ["released", "released"]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("in training", torch.cuda.AcceleratorError("CUDA error: an illegal memory access\nmore")),
        ("in training", RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")),
        ("in saving", torch.cuda.AcceleratorError("CUDA error: an illegal memory access\nmore")),
    ],
)
def test_a_device_that_does_nothing_more_loses_the_trial_but_not_the_point(
    where: str, error: Exception, tmp_path: Path
) -> None:
    class Failing(TrialCallback):
        def after_epoch(self, *_: object, **__: object) -> dict[str, Any]:
            if where == "in training":
                raise error
            return {}

    class FailingStore(FolderBlobs):
        def write(self, *_: object, **__: object) -> None:
            raise error

    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=1)
    trial, data = claimed_with_data(plan)
    place = WorkerContext(RECIPE, data, "cpu", FailingStore(tmp_path / "checkpoints"), lambda: False)
    with pytest.raises(DeviceLostError, match=f"^cpu: {str(error).splitlines()[0]}$"):
        run_trial(plan, "rate", trial, place, Failing())
    assert reason_of(plan.trials("rate")[0]) == "lost"
    assert work(plan.storage, out=tmp_path, studies=["rate"]) is None
    assert [row.state for row in results.rows(plan, "rate")] == ["complete"]


@pytest.mark.parametrize("limits", [Limits(), Limits(max_trials=2)], ids=["looks for more", "waits"])
def test_a_disk_that_fails_one_trial_ends_the_worker_and_puts_the_others_back(
    limits: Limits, tmp_path: Path
) -> None:
    study = f"{SMALL}[search]\nlearning_rate = [0.01]"
    plan = made_plan(tmp_path, {"a": study, "b": study}, epochs=500)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "b").write_text("a file where a folder should be")
    with pytest.raises(RunError, match=r"b/0: .*checkpoints"):
        work(plan.storage, out=tmp_path, trials_per_device=2, limits=limits)
    assert [reason_of(plan.trials(name)[0]) for name in ("a", "b")] == ["released", "released"]


IN_LITTLE_MEMORY = """
import psutil, resource, sys, threading
from contextlib import suppress
from pathlib import Path
import optuna.samplers
from hpo.training import losses
from hpo.storage.storage import Storage
from hpo.execution.worker import work
most = psutil.Process().memory_info().vms + 1000 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
loss, both = losses.F.cross_entropy, threading.Barrier(2)
def meet(*arguments, **named):
    # on a busy machine one might have ended before the other begins: here they go step by step together
    with suppress(threading.BrokenBarrierError):
        both.wait(5)
    return loss(*arguments, **named)
losses.F.cross_entropy = meet
work(Storage(sys.argv[1]), out=Path(sys.argv[2]), studies=["units"], trials_per_device=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_trials_that_do_not_fit_beside_each_other_are_trained_one_after_the_other(tmp_path: Path) -> None:
    # one step on these takes some 740 MB, two at once 1,270
    base = "[base]\nconv1_channels = 512\nconv2_channels = 8\nbatch_size = 1000\n"
    study = f"{base}[search]\nhidden_units = [16, 17]"
    plan = made_plan(tmp_path, {"units": study}, epochs=4, precision="fp32", limit_train=1000)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, plan.storage.url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {row.state for row in results.rows(plan, "units")} == {"complete"}
    reasons = {trial.user_attrs.get("reason") for trial in plan.trials("units")}
    assert reasons == {None, "released: no memory on cpu for a trial beside the others"}


def test_k_seeds_train_in_lockstep_and_each_as_it_would_alone(tmp_path: Path) -> None:
    study = {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}
    together = made_plan(tmp_path / "together", study, seeds=3)
    alone = made_plan(tmp_path / "alone", study, seed=2)
    for plan, name in ((together, "together"), (alone, "alone")):
        work(plan.storage, out=tmp_path / name, studies=["rate"])
    records = [epochs_of(plan.trials("rate")[0].user_attrs) for plan in (together, alone)]
    for epochs in zip(*records, strict=True):
        third, only = epochs[0][2], epochs[1][0]
        assert third["seed"] == only["seed"] == 2
        for key in ("train_loss", "metrics", "predicted_classes", "layers"):
            assert third[key] == only[key]
    mean = sum(seed["metrics"]["macro_f1"] for seed in records[0][0]) / 3
    assert together.trials("rate")[0].intermediate_values[1] == pytest.approx(mean)


def test_the_winner_travels_down_the_chain(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path,
        {
            "a": f"{SMALL}[search]\nlearning_rate = [1e-6, 0.01]",
            "b": 'inherits = "a"\n[search]\nbatch_size = [20, 100]',
            "c": 'inherits = "b"\n[fixed]\nbatch_norm = true\n[search]\nhidden_units = [8, 16]',
        },
    )
    assert work(plan.storage, out=tmp_path) is None
    decisions = {name: plan.decision(name) for name in plan.specs}
    for child, parent in (("b", "a"), ("c", "b")):
        inherited, decided = inherited_by(plan, child), decisions[parent]
        assert inherited is not None
        assert decided is not None
        assert inherited.params == decided.params
        assert decided.params["learning_rate"] == 0.01
        for trial in plan.trials(child):
            changed = set(trial.params) | ({"batch_norm"} if child == "c" else set())
            config = trial.user_attrs["config"]
            assert {key for key in config if config[key] != decided.params[key]} <= changed
        # the control is the earlier trial, by reference: nothing is trained for it
        assert {row.point for row in results.rows(plan, child)} == {
            trial.user_attrs["point"] for trial in plan.trials(child)
        }
        assert "control" not in {trial.user_attrs["point"] for trial in plan.trials(child)}
    last = decisions["c"]
    assert last is not None
    (final,) = plan.trials("final")
    assert final.user_attrs["config"] == last.params


def test_a_worker_alone_goes_on_with_what_its_own_look_queued(tmp_path: Path) -> None:
    rate = "title = 'r'\nsection = '1'\n[search]\nlearning_rate = [0.01]\n"
    size = "title = 's'\nsection = '2'\ninherits = 'rate'\n[search]\nbatch_size = [20]\n"
    plan = made_plan(tmp_path, {"rate": rate, "size": size}, lease_seconds=3600)
    # without a new look it would wait for a sixth of the lease
    work(plan.storage, out=tmp_path / "out", limits=Limits(idle_seconds=5))
    assert [study.state for study in status(plan)] == ["done", "done", "done"]


def test_a_constraint_that_the_inherited_values_break_leaves_what_was_inherited(tmp_path: Path) -> None:
    plan = made_plan(
        tmp_path,
        {
            "a": f"{SMALL}[search]\nlearning_rate = [0.01]",
            "b": 'inherits = "a"\nconstraints = ["conv1_channels > 4"]\n[search]\nbatch_size = [20]',
        },
    )
    assert work(plan.storage, out=tmp_path) is None
    decision = plan.decision("b")
    assert decision is not None
    assert not decision.adopted
    assert decision.params["conv1_channels"] == 4
    assert Slots.of(plan.trials("b")).attempts == {}


def test_a_damaged_checkpoint_is_put_aside_and_the_result_is_the_same(tmp_path: Path) -> None:
    study = {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}
    ends = []
    for name in ("undisturbed", "disturbed"):
        plan = made_plan(tmp_path / name, study)
        if name == "disturbed":
            stop_after_two_epochs(plan, tmp_path / name)
            newest = max((tmp_path / name).glob("checkpoints/**/*.checkpoint"))
            newest.write_bytes(newest.read_bytes()[:-100])
        work(plan.storage, out=tmp_path / name, studies=["rate"])
        slots = Slots.of(plan.trials("rate"))
        (slot,) = slots.attempts
        assert slots.state(slot) == SlotState.COMPLETE
        trial = slots.accepted(slot)
        assert trial is not None
        ends.append((trial.value, trial.intermediate_values))
        if name == "disturbed":
            assert trial.user_attrs["resumed_after_epoch"] == 1
            assert "put aside" in trial.user_attrs["notes"][0]
    assert ends[0] == ends[1]


def test_a_trial_that_goes_on_from_another_machine_s_checkpoint_says_so(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"})
    stop_after_two_epochs(plan, tmp_path)
    for file in tmp_path.glob("checkpoints/**/*.checkpoint"):
        stored = load(file.read_bytes()[32:])
        assert len(stored["state"]["trained_on"]) == 1
        stored["state"]["trained_on"] = ["Another CPU with torch 2.10.0"]
        stored["state"]["epochs"][1][0]["metrics"]["loss"] += 1e-6  # as another machine may have it
        content = bytes(dump(stored))
        file.write_bytes(signed(content))
    work(plan.storage, out=tmp_path, studies=["rate"])
    first, second = plan.trials("rate")
    assert second.user_attrs["resumed_after_epoch"] == 2
    (row,) = results.rows(plan, "rate")
    (note,) = row.checkpoint_notes
    assert note.startswith("trial 1: trained on Another CPU with torch 2.10.0, then ")
    assert verify(plan, "rate", first) is None
    difference = verify(plan, "rate", second)
    assert difference is not None
    assert difference.startswith("epoch 1, seed 0 differs: metrics was ")
    assert "trained on Another CPU with torch 2.10.0, then " in difference


def test_an_audited_trial_that_is_stopped_resumes_as_one(tmp_path: Path) -> None:
    study = f'{SMALL}[search]\nlearning_rate = [0.01]\n[pruner]\nname = "threshold"\nlower = 0.99'
    ends: list[dict[str, Any]] = []
    for name in ("undisturbed", "disturbed"):
        plan = made_plan(tmp_path / name, {"rate": study}, audit=1.0)
        if name == "disturbed":
            stop_after_two_epochs(plan, tmp_path / name)
        assert work(plan.storage, out=tmp_path / name, studies=["rate"]) is None
        trial = plan.trials("rate")[-1]
        assert ("resumed_after_epoch" in trial.user_attrs) is (name == "disturbed")
        kept = {key: trial.user_attrs[key] for key in ("audit", "reason")}
        kept |= {"state": trial.state, "value": trial.value, "reports": trial.intermediate_values}
        ends.append({**kept, "epochs": without_times(trial)})
    assert ends[0] == ends[1]
    assert (ends[0]["audit"]["pruned_after_epoch"], len(ends[0]["reports"])) == (1, 3)
    assert ends[0]["reason"] == "pruned: by threshold after epoch 1; trained on for the audit"


def mutilated(value: Any) -> Iterator[Any]:
    """A value of a checkpoint with something of it missing, or of another kind; each damage once."""
    if isinstance(value, dict):
        for key in value:
            yield {other: each for other, each in value.items() if other != key}
            if key != "dead_share":  # a number or nothing
                yield {**value, key: None}
            if key != "trained_on":  # any number of texts
                yield from ({**value, key: damaged} for damaged in mutilated(value[key]))
    elif isinstance(value, list):
        yield value[1:]
        yield from ([damaged, *value[1:]] for damaged in mutilated(value[0]))
    elif isinstance(value, torch.Tensor):
        yield value.new_zeros(3, 5, 7)
        yield value.to_sparse() if value.dim() else value.double()
    elif not isinstance(value, str):
        yield "x"


@pytest.mark.parametrize("name", ["rate", FINAL])
def test_what_is_no_checkpoint_inside_is_put_aside_whatever_its_sum_says(name: str, tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, seeds=2, final_seeds=2)
    if name == FINAL:
        work(plan.storage, out=tmp_path, studies=["rate"])
    stop_after_two_epochs(plan, tmp_path, name)
    good = max(tmp_path.glob("checkpoints/**/*.checkpoint"))
    stored = load(good.read_bytes()[32:])
    forged = list(mutilated(stored))
    assert len(forged) > 150
    for number, each in enumerate(forged, start=3):  # as if of epochs after the good one
        content = bytes(dump(each))
        digest = hashlib.sha256(content).digest()
        good.with_name(f"epoch-{number:06}-attempt-0009.checkpoint").write_bytes(digest + content)
    work(plan.storage, out=tmp_path, studies=["rate"] if name == "rate" else [])
    first, second = plan.trials(name)
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert len(second.user_attrs["notes"]) == len(forged)
    assert second.user_attrs["resumed_after_epoch"] == 2
    assert verify(plan, name, second) is None
    assert not [row for row in results.rows(plan, name) if row.state != "complete"]


def claimed_with_data(plan: Plan, name: str = "rate") -> tuple[FrozenTrial, TrainingData]:
    """The first waiting trial of a study, ours, and what it trains on."""
    from hpo.data import load_training, prepare

    options = plan.options
    data = load_training(
        prepare(options.data), limit_train=options.limit_train, limit_valid=options.limit_valid
    )
    advance(plan, None if name == FINAL else [name])
    trial = claim_first(Queue(plan.storage, name))
    assert trial is not None
    return trial, data


def stop_after_two_epochs(plan: Plan, out: Path, name: str = "rate") -> None:
    """Trains two epochs of the first trial and is then asked to stop, as by SIGTERM."""
    from hpo.data import prepare
    from hpo.errors import Interrupted
    from hpo.execution.final_stage import TestSetCallback
    from hpo.training.blobs import open_blobs

    torch.set_num_threads(plan.identity.threads)  # as every worker does
    trial, data = claimed_with_data(plan, name)

    def should_stop() -> bool:
        return len(epochs_of(plan.storage.trial(trial._trial_id).user_attrs)) == 2

    place = WorkerContext(RECIPE, data, "cpu", open_blobs(out / "checkpoints"), should_stop)
    entry = prepare(plan.options.data)
    callback = TestSetCallback(plan, trial._trial_id, place, entry, out) if name == FINAL else TrialCallback()
    with pytest.raises(Interrupted):
        run_trial(plan, name, trial, place, callback)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_checkpoint_that_cannot_be_written_is_the_disk_s_fault_or_a_successor_s(
    is_lost: bool, tmp_path: Path
) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=2)
    trial, data = claimed_with_data(plan)

    class Cleared(FolderBlobs):
        def write(self, name: str, *parts: bytes | memoryview) -> None:
            if is_lost:
                Queue(plan.storage, "rate").close(trial._trial_id, Reason.LOST)
            raise FileNotFoundError(name)

    place = WorkerContext(RECIPE, data, "cpu", Cleared(tmp_path), lambda: False)
    with pytest.raises(TrialLost if is_lost else RunError):
        run_trial(plan, "rate", trial, place, TrialCallback())
    (ended,) = plan.trials("rate")
    assert ended.user_attrs["reason"].startswith("lost" if is_lost else "released")


def test_a_point_retried_after_the_decision_survives_a_second_loss(tmp_path: Path) -> None:
    from hpo.planning.scheduler import retry
    from hpo.storage.queue import ERROR_CAP

    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]"}, epochs=1)
    advance(plan, ["rate"])
    queue = Queue(plan.storage, "rate")
    for _ in range(ERROR_CAP):  # the first point fails for good
        trial = claim_first(queue)
        assert trial is not None
        queue.close(trial._trial_id, Reason.ERROR, "for a test")
        slot = next(iter(queue.slots().attempts))
        if queue.slots().state(slot) == SlotState.WAITING:
            other = claim_first(queue)
            assert other is not None
            queue.close(other._trial_id, Reason.RELEASED)
            advance(plan, ["rate"])
    work(plan.storage, out=tmp_path, studies=["rate"])
    decided = plan.decision("rate")
    assert decided is not None
    assert SlotState.FAILED in {queue.slots().state(slot) for slot in queue.slots().attempts}
    assert len(retry(plan)[0]) == 1
    again = claim_first(queue)
    assert again is not None
    queue.close(again._trial_id, Reason.RELEASED, "asked to stop")
    assert not advance(plan, ["rate"])  # it is queued once more, not forgotten
    work(plan.storage, out=tmp_path, studies=["rate"])
    assert {queue.slots().state(slot) for slot in queue.slots().attempts} == {SlotState.COMPLETE}
    assert plan.decision("rate") == decided  # it stands


def test_a_space_without_a_feasible_point_fails_in_words_and_crashes_nobody(tmp_path: Path) -> None:
    study = (
        'constraints = ["conv1_channels > conv2_channels"]\ntrials = 2\n'
        'inherits = "first"\n[search]\nconv1_channels = {low = 2, high = 4}\n'
        'learning_rate = {low = 1e-4, high = 1e-1}\n[sampler]\nname = "random"'
    )
    first = f"{SMALL}[search]\nbatch_size = [20]"
    plan = made_plan(tmp_path, {"first": first, "second": study}, epochs=1)
    assert work(plan.storage, out=tmp_path) is None
    rows = results.rows(plan, "second")
    assert {row.state for row in rows} == {"failed"}
    assert all("draws found no new point" in row.reason for row in rows)
    decision = plan.decision("second")
    assert decision is not None
    assert not decision.adopted


def test_a_finite_space_without_a_feasible_point_is_over_at_once_and_says_so(tmp_path: Path) -> None:
    study = (
        'constraints = ["conv1_channels > conv2_channels"]\ntrials = 2\n'
        'inherits = "first"\n[search]\nconv1_channels = {low = 2, high = 4}\n[sampler]\nname = "random"'
    )
    first = f"{SMALL}[search]\nbatch_size = [20]"
    plan = made_plan(tmp_path, {"first": first, "second": study}, epochs=1)
    assert work(plan.storage, out=tmp_path) is None
    assert results.rows(plan, "second") == []
    decision = plan.decision("second")
    assert decision is not None
    assert not decision.adopted
    assert decision.params["conv1_channels"] == 4
    assert "nothing in the space satisfies the constraints" in decision.text
    assert results.final_trial(plan) is not None


def test_a_control_that_is_a_point_of_the_grid_is_never_pruned(tmp_path: Path) -> None:
    study = (
        'inherits = "first"\n[search]\nlearning_rate = [0.01, 1e-6]\n'
        '[pruner]\nname = "threshold"\nlower = 0.9\n'
    )
    first = f"{SMALL}[search]\nbatch_size = [20]\n[published]\nchoice = {{learning_rate = 1e-6}}"
    plan = made_plan(tmp_path, {"first": first, "second": study}, inherit="published")
    work(plan.storage, out=tmp_path, studies=["second"])
    by_rate = {row.params["learning_rate"]: row for row in results.rows(plan, "second")}
    assert by_rate[1e-6].state == "complete"
    decision = plan.decision("second")
    assert decision is not None
    assert decision.control is not None
    assert decision.control.params["learning_rate"] == 1e-6


def test_a_point_that_an_earlier_study_has_trained_is_not_trained_again(tmp_path: Path) -> None:
    strict = '[pruner]\nname = "threshold"\nlower = 0.999\n'
    studies = {
        "rate": f"{SMALL}[search]\nlearning_rate = [0.01, 1e-6]",
        "size": f'inherits = "rate"\n[search]\nbatch_size = [20, 50]\n{strict}',
        "norm": 'inherits = "size"\n[fixed]\nbatch_norm = true\n[search]\nbatch_size = [20]',
    }
    plan = made_plan(tmp_path, studies, seeds=2)
    assert work(plan.storage, out=tmp_path) is None
    before = plan.trials("rate")[0]
    known, trained = plan.trials("size")
    # seconds and all: two trainings never take the same time
    assert epochs_of(known.user_attrs) == epochs_of(before.user_attrs)
    assert (known.value, known.intermediate_values) == (before.value, before.intermediate_values)
    assert known.user_attrs["reason"].startswith("already trained: rate/0 ")
    assert trained.state == TrialState.PRUNED
    assert verify(plan, "size", known) is None
    decision = plan.decision("size")
    assert decision is not None
    assert decision.text.startswith("kept what was inherited")
    # what is fixed beside the same value makes another configuration
    (with_norm,) = plan.trials("norm")
    assert "reason" not in with_norm.user_attrs
    facts = read(plan)
    assert ("size", 0) not in {(attempt.study, attempt.trial) for attempt in facts.attempts}
    assert sum(facts.machines.values()) == 5


def test_checkpoints_that_cannot_be_written_stop_the_worker_and_cost_no_point(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=1)
    (tmp_path / "file").touch()
    for _ in range(3):
        with pytest.raises(RunError, match=r"rate/\d"):
            work(plan.storage, out=tmp_path, checkpoints=tmp_path / "file", studies=["rate"])
    assert {row.state for row in results.rows(plan, "rate")} == {"waiting"}
    assert work(plan.storage, out=tmp_path, studies=["rate"]) is None
    assert {row.state for row in results.rows(plan, "rate")} == {"complete"}


def test_trials_are_raised_under_a_worker_until_the_study_decides(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"shape": f"trials = 2\n{SAMPLED}"})
    file = tmp_path / "studies" / "shape.toml"
    file.write_text(file.read_text().replace("trials = 2", "trials = 3"))
    more = read_studies(file.parent, SCHEMA)
    check_compatible(plan, {}, more, file.parent)
    with_more_trials(plan, more)
    # a worker that was there before: what it read then says two
    assert plan.specs["shape"].trials == 2
    while not advance(plan, ["shape"]):
        work(plan.storage, out=tmp_path, studies=["shape"], limits=Limits(max_trials=1))
    assert len(Queue(plan.storage, "shape").slots().attempts) == 3

    file.write_text(file.read_text().replace("trials = 3", "trials = 4"))
    with pytest.raises(ConflictError, match=r"trials = 4, .* until the study has decided; it is 3 in"):
        check_compatible(Plan.open(plan.storage), {}, read_studies(file.parent, SCHEMA), file.parent)


def test_who_asks_for_more_trials_while_a_study_decides_is_told(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"shape": f"trials = 1\n{SAMPLED}"})
    file = tmp_path / "studies" / "shape.toml"
    file.write_text(file.read_text().replace("trials = 1", "trials = 2"))
    work(plan.storage, out=tmp_path, studies=["shape"])
    assert plan.decision("shape") is not None
    with pytest.raises(ConflictError, match="decided"):
        with_more_trials(plan, read_studies(file.parent, SCHEMA))
    assert Plan.open(plan.storage).specs["shape"].trials == 1


class _Broken(optuna.pruners.BasePruner):
    """Raises, or has its trial closed by somebody else, whenever it is asked."""

    def __init__(self, close: Callable[[FrozenTrial], object]) -> None:
        self._close = close

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self._close(trial)
        study._storage.set_trial_system_attr(trial._trial_id, "noted", 1)
        raise ValueError("no idea")


def test_a_pruner_that_raises_fails_the_point_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = made_plan(tmp_path, {"s": f'{SMALL}[search]\nbatch_size = [20, 50]\n[pruner]\nname = "median"'})
    monkeypatch.setitem(PRUNERS, "median", lambda epochs: _Broken(lambda trial: None))
    assert work(plan.storage, out=tmp_path, studies=["s"]) is None
    assert {row.state for row in results.rows(plan, "s")} == {"failed"}
    assert all("no idea" in row.reason for row in results.rows(plan, "s"))


def test_a_trial_that_is_closed_while_its_pruner_writes_is_lost_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = made_plan(tmp_path, {"s": f'{SMALL}[search]\nbatch_size = [20, 50]\n[pruner]\nname = "median"'})
    queue, closed = Queue(plan.storage, "s"), list[int]()

    def close(trial: FrozenTrial) -> None:
        closed.append(trial.number)
        queue.close(trial._trial_id, Reason.LOST)
        monkeypatch.undo()

    monkeypatch.setitem(PRUNERS, "median", lambda epochs: _Broken(close))
    trial, data = claimed_with_data(plan, "s")
    place = WorkerContext(RECIPE, data, "cpu", FolderBlobs(tmp_path / "checkpoints"), lambda: False)
    with pytest.raises(TrialLost):
        run_trial(plan, "s", trial, place, TrialCallback())
    assert closed == [0]
    assert work(plan.storage, out=tmp_path, studies=["s"]) is None
    assert [row.state for row in results.rows(plan, "s")] == ["complete", "complete"]


def test_a_final_stage_that_diverges_has_no_answer_and_says_so(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"s": f"{SMALL}[search]\nbatch_size = [20]"}, epochs=1)
    assert work(plan.storage, out=tmp_path, studies=["s"]) is None
    advance(plan)
    trial = claim_first(Queue(plan.storage, "final"))
    assert trial is not None
    reason = {"reason": f"{Reason.DIVERGED}: seed 1000, epoch 1: training loss nan"}
    plan.storage.finish(trial._trial_id, TrialState.PRUNED, attrs=reason)
    for _ in range(2):
        with pytest.raises(
            PointsFailedError, match=r"final/0 diverged: .*no answer on the test set"
        ) as caught:
            run(plan, out=tmp_path)
        assert "retry" not in str(caught.value)
    assert results.final_trial(plan) is None
    assert results.best(plan)["test"] is None
    assert status(plan)[-1].state == "failed"
    with pytest.raises(MissingError):
        results.final_result(plan)
    page = write_report(plan, tmp_path).read_text()
    assert "diverged" in page
    assert "original" not in page  # whose claims are no business of a plan of one's own


def test_a_study_without_a_result_ends_those_that_build_on_it_and_no_others(tmp_path: Path, cli: Any) -> None:
    hopeless = '[search]\nlearning_rate = [1e-6]\n[pruner]\nname = "threshold"\nlower = 0.99\n'
    studies = {
        "first": SMALL + hopeless,
        "child": 'inherits = "first"\n[search]\nbatch_size = [20]',
        "grandchild": 'inherits = "child"\n[search]\nl2 = [0.001]',
        "apart": f"{SMALL}[search]\nbatch_size = [20]",
    }
    plan = made_plan(tmp_path, studies, epochs=2)
    assert work(plan.storage, out=tmp_path, limits=Limits(idle_seconds=30)) is None
    assert advance(plan)
    decisions = {name: plan.decision(name) for name in studies}
    decided = {name: bool(decision.params) for name, decision in decisions.items() if decision}
    assert decided == {"first": False, "apart": True}
    shown = cli("final", "--out", tmp_path)
    assert shown.code == 0
    assert "test" in shown.out
    told = r"first: no point has a result \(1 pruned\); child: not begun, as first .*grandchild: not"
    with pytest.raises(PointsFailedError, match=told):
        run(plan, out=tmp_path)


def test_what_is_decided_after_the_final_stage_changes_no_answer(tmp_path: Path) -> None:
    late = (
        f"trials = 1\n{SMALL}[search]\nlearning_rate = {{low = 1e-6, high = 1e-5}}\n"
        '[sampler]\nname = "random"\n[pruner]\nname = "threshold"\nlower = 0.99'
    )
    plan = made_plan(tmp_path, {"late": late, "s": f"{SMALL}[search]\nlearning_rate = [1e-5]"}, epochs=2)
    assert work(plan.storage, out=tmp_path) is None
    test = results.final_result(plan)["test"]
    (tmp_path / "studies" / "late.toml").write_text(late.replace("trials = 1", "trials = 2"))
    with pytest.raises(ConflictError, match="late"):
        find_or_create_plan(tmp_path, studies=tmp_path / "studies", given={})
    # as another worker may do that began before
    decision = plan.decision("s")
    assert decision is not None
    better = decision.model_copy(update={"value": 0.9999}).model_dump(mode="json")
    plan.storage.set_study_attr(plan.storage.study_id("late"), "decision", better)
    shown = results.best(plan)
    assert (shown["study"], shown["test"]) == ("s", test)


def test_who_decides_late_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made_plan(tmp_path, {"s": f"{SMALL}[search]\nbatch_size = [20]"}, epochs=1)
    trial, data = claimed_with_data(plan, "s")
    place = WorkerContext(RECIPE, data, "cpu", FolderBlobs(tmp_path / "checkpoints"), lambda: False)
    assert run_trial(plan, "s", trial, place, TrialCallback()) == TrialState.COMPLETE

    def overtaken(*arguments: Any, **options: Any) -> Decision:
        monkeypatch.undo()
        assert advance(Plan.open(plan.storage), ["s"])
        decision = decide(*arguments, **options)
        return decision.model_copy(update={"text": "late"})

    monkeypatch.setattr("hpo.planning.scheduler.decide", overtaken)
    assert not advance(plan, ["s"])
    decision = plan.decision("s")
    assert decision is not None
    assert decision.text != "late"
