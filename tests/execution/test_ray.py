"""Workers on a Ray cluster: real nodes on a loopback address, one of them killed while trials run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_nodes

import hpo as library
from hpo.errors import InputError
from hpo.execution.backends.worker_spec import WorkerSpec
from hpo.planning.plan import MODEL
from hpo.storage.queue import Reason, Slots, reason_of
from tests.support.command import Result, hpo, wait_for
from tests.support.plans import SMALL_RUN, accepted_epochs

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, list[Any], Any]]:
    """The address of a cluster of two nodes with one CPU each, its nodes, and the cluster."""
    with ray_nodes.nodes(2) as running:
        yield running


def test_a_cluster_ends_where_local_workers_end(
    cluster: tuple[str, list[Any], Any], finished: Path, small_studies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("run", "--studies", small_studies, "--out", out, *SMALL_RUN)
    result = hpo(*command, "--engine=ray", f"--address={cluster[0]}")
    assert result.code == 0, result.err
    plan = library.find_plan(out)
    assert accepted_epochs(plan) == accepted_epochs(library.find_plan(finished))
    # as many workers as the cluster has room for
    assert {log.name for log in (out / "logs").iterdir()} == {"worker-1.log", "worker-2.log"}
    assert (out / MODEL).exists()
    assert "raylet" not in result.err + result.out
    said = [log.read_text() for log in (out / "logs").iterdir()]
    assert all("Traceback" not in text for text in said)


@pytest.mark.slow
def test_a_node_that_dies_costs_an_epoch_at_most(tmp_path: Path) -> None:
    record = ray_nodes.run(
        tmp_path / "out", 2, 2, ["--data=digits", "--epochs=8", "--limit-valid=100", "--precision=fp32"]
    )
    assert record["exit_code"] == 0
    assert record["nodes_killed"] == 1
    assert (record["points"], record["results_a_point"]) == (3, [1])
    assert record["attempts_lost"] >= 1
    assert record["max_epochs_repeated"] <= 1


def test_a_signal_puts_the_trials_back(
    cluster: tuple[str, list[Any], Any], tmp_path: Path, small_studies: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hpo", "run", "--studies", str(small_studies), "--out", str(out)]
    options = ["--data=digits", "--epochs=200", "--engine=ray", f"--address={cluster[0]}"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: ray_nodes.epochs_by_pid(out), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    trials = library.find_plan(out).trials("rate")
    ended = [reason_of(trial) for trial in trials if "owner" in trial.user_attrs]
    assert ended
    assert set(ended) == {Reason.RELEASED}
    assert all(len(attempts) <= 2 for attempts in Slots.of(trials).attempts.values())


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "nobody answers"), ("nonsense", "HOST:PORT"), ("ray://127.0.0.1:1", "nobody answers")],
)
def test_a_cluster_that_is_not_there_is_named(
    address: str, words: str, cli: Callable[..., Result], tmp_path: Path, small_studies: Path
) -> None:
    options = ("--studies", small_studies, "--out", tmp_path, *SMALL_RUN)
    result = cli("run", *options, "--engine=ray", f"--address={address}")
    assert result.code == 2
    assert address in result.err
    assert words in result.err
    assert "Traceback" not in result.err


def test_more_than_the_cluster_has_is_refused(
    cluster: tuple[str, list[Any], Any], tmp_path: Path, small_studies: Path
) -> None:
    options = ("--studies", small_studies, "--out", tmp_path, *SMALL_RUN, "--cpus-per-worker=1.5")
    result = hpo("run", *options, "--engine=ray", f"--address={cluster[0]}")
    assert result.code == 2
    assert "1.5 CPUs" in result.err
    assert "--cpus-per-worker" in result.err


def test_options_of_ray_need_ray(cli: Callable[..., Result], tmp_path: Path) -> None:
    result = cli("run", "--out", tmp_path, "--address=auto")
    assert result.code == 2
    assert "--engine ray" in result.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"HPO_STORAGE": "sqlite:////plan/hpo.db"}, "SQLite serves one machine"),
        ({"HPO_STORAGE": "postgresql+psycopg://db/plan"}, "--checkpoints"),
    ],
)
def test_what_several_machines_cannot_share_is_refused(settings: dict[str, str], words: str) -> None:
    from hpo.execution.backends.ray import _refuse_what_is_not_shared

    spec = WorkerSpec("/out", (), 1, "cpu", None, settings)
    with pytest.raises(InputError, match=words):
        _refuse_what_is_not_shared(spec, {"another-machine"})
    _refuse_what_is_not_shared(spec, {socket.gethostname()})
