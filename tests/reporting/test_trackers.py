"""Runs in trackers of experiments, read back by the trackers' own readers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpo.monitor.results import find_trial
from hpo.planning.plan import Plan
from hpo.planning.revision import discard
from hpo.planning.scheduler import advance
from hpo.reporting.trackers import TRACKERS
from hpo.storage.queue import Queue, Reason
from tests.support.fixtures import Cli
from tests.support.scripted_worker import EPOCHS, Worker, new_plan
from tests.support.tracked import READERS

STUDIES = {
    "setup": '[search]\nconv1_channels = [4, 8]\n[pruner]\nname = "median"',
    "rate": 'inherits = "setup"\n[search]\nlearning_rate = [0.1, 0.01, 0.0001, 0.00001]',
}
WORDS = {
    "tensorboard": {"complete": "STATUS_SUCCESS", "pruned": "STATUS_FAILURE", "error": "STATUS_FAILURE"},
    "mlflow": {"complete": "FINISHED", "pruned": "KILLED", "error": "FAILED", "diverged": "FAILED"},
    "wandb": {"complete": "exit 0", "pruned": "exit 0", "error": "exit 1"},
}
"""How each tracker itself calls states."""


@pytest.fixture(autouse=True)
def no_settings_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def train_a_little(plan: Plan) -> Worker:
    """One trial with a result, and one amid its epochs."""
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("setup"), [0.2, 0.6, 0.5, 0.4])
    worker.report(worker.claim("setup"), [0.2, 0.3])
    return worker


def train_more(plan: Plan, worker: Worker) -> None:
    """All ways in which trials end."""
    _, second = plan.trials("setup")
    worker.finish(second, [0.2, 0.3, 0.1, 0.1])
    discard(plan, *find_trial(plan, "setup/1"), "the lamp was off")
    advance(plan)
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 2")
    worker.prune(worker.claim("rate"), f"{Reason.DIVERGED}: the loss is nan")
    broken = worker.claim("rate")
    Queue(plan.storage, "rate").close(broken._trial_id, Reason.ERROR, "ValueError: no such layer")
    lost = worker.claim("rate")
    Queue(plan.storage, "rate").close(lost._trial_id, Reason.LOST, "no heartbeat")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own use of SQLAlchemy
@pytest.mark.parametrize(
    "tracker",
    # seven seconds of CPU each are imports, and the tables that MLflow makes
    [pytest.param(name, marks=[] if name == "tensorboard" else pytest.mark.slow) for name in TRACKERS],
)
def test_runs_are_those_of_the_plan_and_written_once(tmp_path: Path, cli: Cli, tracker: str) -> None:
    plan, folder, read = new_plan(tmp_path, STUDIES, seeds=2), tmp_path / "runs", READERS[tracker]
    command = ("export", "--to", tracker, folder, "--out", tmp_path)
    worker = train_a_little(plan)
    assert "3 runs, 3 new" in cli(*command).out
    seen = read(folder)
    assert {name: run.state for name, run in seen.items()} == {
        "setup": "running",
        "setup/0": "complete",
        "setup/1": "running",
    }
    assert seen["setup/1"].series["valid_macro_f1"] == pytest.approx({1: 0.2, 2: 0.3})

    train_more(plan, worker)
    assert "7 runs, 4 new, 2 changed" in cli(*command).out
    seen = read(folder)
    assert {name: run.state for name, run in seen.items() if run.parent} == {
        "setup/0": "complete",
        "setup/1": "discarded",
        "rate/0": "pruned",
        "rate/1": "diverged",
        "rate/2": "error",  # rate/3 was lost before an epoch
    }
    for name, run in seen.items():
        study, _, number = name.partition("/")
        assert (run.kind, run.parent) == (("trial", study) if number else ("study", None))
        assert run.status == WORDS[tracker].get(run.state, run.status)
        if number:
            config = plan.trials(study)[int(number)].user_attrs["config"]
            assert run.params.keys() == config.keys()
            assert float(run.params["learning_rate"]) == config["learning_rate"]
    assert seen["setup/0"].series["valid_macro_f1"] == pytest.approx({1: 0.2, 2: 0.6, 3: 0.5, 4: 0.4})
    assert len(seen["setup/1"].series["train_loss"]) == EPOCHS
    assert seen["rate/0"].said["reason"] == "pruned: by median after epoch 2"
    assert seen["rate/2"].said["reason"] == "error: ValueError: no such layer"
    assert seen["setup/1"].said["reason"] == "discarded: the lamp was off"

    assert "7 runs, nothing new" in cli(*command).out
    assert read(folder) == seen


def test_a_folder_of_another_plans_runs_is_left_as_it_is(tmp_path: Path, cli: Cli) -> None:
    for out in ("a", "b"):
        (tmp_path / out).mkdir()
        train_a_little(new_plan(tmp_path / out, STUDIES, seeds=2))
    command = ("export", "--to", "tensorboard", tmp_path / "runs", "--out")
    assert cli(*command, tmp_path / "a").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    refused = cli(*command, tmp_path / "b")
    assert refused.code == 2
    assert "its setup is a run of another plan, which would be lost" in refused.err
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
    assert "nothing new" in cli(*command, tmp_path / "a").out


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_package_that_is_missing_is_named_with_its_extra(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == tracker]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, tracker, None)
    result = cli("export", "--to", tracker, tmp_path / "runs", "--out", finished)
    assert result.code == 2
    assert f"'.[{tracker}]'" in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to=wandbb"], "--to wandbb: did you mean 'wandb'?"),
        (["--to=comet"], "--to comet: known: tensorboard, mlflow, wandb"),
        (["--to=mlflow", "--json"], "--json"),
        (["--to=mlflow", "--rows=epochs"], "--rows epochs"),
        (["--to=tensorboard", "a-file"], "a-file"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    finished: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("mine")
    result = cli("export", "--out", finished, *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_server_that_is_not_there_is_named_without_its_password(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = cli("export", "--to", "mlflow", tmp_path / "runs", "--out", finished)
    assert result.code == 2
    assert "http://127.0.0.1:1" in result.err
    assert "secret" not in result.err
