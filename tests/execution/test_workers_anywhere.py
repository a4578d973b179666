"""Workers that come and go: limits, the identity of the work, secrets, signals; real processes, databases."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers
from optuna.trial import TrialState

import hpo as library
from hpo.errors import ConflictError, Diverged
from hpo.execution.doctor import examine
from hpo.execution.run import find_or_create_plan, run
from hpo.execution.worker import Limits, work
from hpo.planning.plan import FINAL, MODEL, WRONG_IMAGES, Plan
from hpo.planning.scheduler import advance
from hpo.storage.database import sqlite_file
from hpo.storage.queue import Queue, Reason, Slots, SlotState, reason_of
from hpo.training.loop import EpochResult, train
from tests.support.command import hpo, start_hpo, wait_for
from tests.support.fixtures import Cli, StartedServers
from tests.support.locks import lock_holder
from tests.support.plans import RATES, SMALL, SMALL_RUN, made_plan
from tests.support.queues import claim_first


def states(plan: Plan, name: str) -> list[str]:
    slots = Slots.of(plan.trials(name))
    return [slots.state(slot).value for slot in slots.attempts]


# --- when a worker stops ----------------------------------------------------------------------------------


def test_a_worker_stops_after_so_many_trials(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    assert work(plan.storage, out=tmp_path, limits=Limits(max_trials=2)) is None
    assert sorted(states(plan, "rate")) == ["complete", "complete", "waiting"]


def test_a_worker_without_work_stops_after_its_idle_timeout(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"})
    advance(plan, ["rate"])
    assert claim_first(Queue(plan.storage, "rate")) is not None  # somebody is at work on all there is
    assert work(plan.storage, out=tmp_path, studies=["rate"], limits=Limits(idle_seconds=1.0)) is None
    assert states(plan, "rate") == ["running"]


def test_an_idle_timeout_ends_a_worker_although_the_server_hangs(
    started_servers: StartedServers, tmp_path: Path
) -> None:
    server = started_servers("postgresql")
    url = server.new_database()
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, url=url)
    advance(plan, ["rate"])
    assert claim_first(Queue(plan.storage, "rate")) is not None  # somebody is at work on all there is
    options = ["--idle-timeout=6s", "--out", tmp_path / "out", "--storage", url]
    process = start_hpo("worker", "rate", *options)
    assert process.stderr is not None
    assert "serving" in process.stderr.readline()
    with server.paused():
        process.communicate(timeout=300)
    assert process.returncode == 0


def test_a_trial_that_diverges_while_the_server_is_away_is_a_result(
    started_servers: StartedServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.storage.outbox.PATIENCE_SECONDS", 0.3)
    server = started_servers("postgresql")

    def diverging(*arguments: Any, **options: Any) -> Iterator[EpochResult]:
        first = next(train(*arguments, **options))
        server.stop()
        yield first  # cannot be delivered yet
        threading.Timer(2.0, server.start).start()
        raise Diverged("the loss is nan")

    monkeypatch.setattr("hpo.execution.trial.train", diverging)
    url = server.new_database()
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, url=url)
    work(plan.storage, out=tmp_path, studies=["rate"], limits=Limits(max_trials=1))
    (trial,) = plan.trials("rate")
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, "diverged: the loss is nan")
    assert list(trial.intermediate_values) == [1]


def test_a_deadline_puts_the_trial_back(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=100_000)
    assert work(plan.storage, out=tmp_path, studies=["rate"], limits=Limits(deadline_seconds=3.0)) is None
    assert states(plan, "rate") == ["waiting"]
    (trial,) = plan.trials("rate")
    assert trial.user_attrs["reason"].startswith("released")


def test_a_deadline_ends_a_worker_that_waits_for_sqlite_s_lock(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    with closing(sqlite3.connect(str(sqlite_file(plan.storage.url)), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        process = start_hpo(
            "worker", "--deadline=2s", "--out", tmp_path / "out", "--storage", plan.storage.url
        )
        process.communicate(timeout=300)  # the lock is waited for 60 s, and then again
    assert process.returncode == 0
    assert states(plan, "rate") == []


@pytest.mark.parametrize("wrong", ["soon", "-5", "0", "5x", "nan"])
def test_a_duration_that_is_none(cli: Cli, wrong: str) -> None:
    result = cli("worker", f"--deadline={wrong}")
    assert result.code == 2
    assert "30m" in result.err


def test_a_worker_says_what_it_serves_what_became_of_it_and_why_it_leaves(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    out = f"--out={tmp_path}"
    first = hpo("worker", out, "--max-trials=1")
    assert first.code == 0
    lines = [line.split(" ", 2)[2] for line in first.err.splitlines()]
    assert lines[0].startswith(f"serving {plan.storage.name}: digits")
    assert lines[1:] == ["rate/0: complete", "leaving: --max-trials; trials: 1"]
    assert "leaving: the plan has ended; trials: 3" in hpo("worker", out).err


def test_who_finds_a_plan_needs_no_lock(database_url: str, tmp_path: Path) -> None:
    made_plan(tmp_path, RATES, url=database_url)
    with ThreadPoolExecutor(1) as pool, lock_holder(database_url):
        plan = pool.submit(find_or_create_plan, tmp_path, storage=database_url).result(timeout=300)
    assert list(plan.specs) == ["rate"]


# --- the identity of the work -----------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["hpo", "optuna", "torch"])
def test_another_major_version_is_refused_naming_both(tmp_path: Path, package: str) -> None:
    plan = made_plan(tmp_path, RATES)
    recorded = plan.storage.study_attrs()[FINAL]["versions"]
    older = {**recorded, package: "999.1"}
    plan.storage.set_study_attr(plan.storage.study_id(FINAL), "versions", older)
    with pytest.raises(ConflictError, match=rf"{package} {recorded[package]}.*{package} 999\.1") as error:
        work(plan.storage, out=tmp_path)
    assert "install the same major version" in str(error.value)
    assert plan.trials("rate") == []


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    threads = (os.cpu_count() or 1) + 1
    identity = {**plan.identity.model_dump(mode="json"), "threads": threads}
    plan.storage.set_study_attr(plan.storage.study_id(FINAL), "identity", identity)
    with pytest.raises(ConflictError, match=f"{threads} threads a worker.* cores"):
        work(plan.storage, out=tmp_path)


def test_sqlite_serves_one_machine(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    advance(plan, ["rate"])
    trial = claim_first(Queue(plan.storage, "rate"))
    assert trial is not None
    elsewhere = {**trial.user_attrs["owner"], "host": "node7", "boot": "another boot"}
    plan.storage.write(trial._trial_id, attrs={"owner": elsewhere})
    refused = pytest.raises(ConflictError, match=r"node7.*SQLite serves one machine.*postgresql")
    with refused:
        work(plan.storage, out=tmp_path)
    with refused:
        run(plan, out=tmp_path)
    assert not (tmp_path / "logs").exists()  # no worker was started for it
    checks = {check.name: check for check in examine(plan.storage.url, out=tmp_path)}
    assert checks["plan"].state == "wrong"
    assert "node7" in checks["plan"].text


# --- secrets ------------------------------------------------------------------------------------------------


def test_a_password_on_the_command_line_draws_a_warning_and_is_never_repeated(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = "postgresql://me:geheim@127.0.0.1:1/hpo"
    on_command_line = cli("status", "--storage", url)
    assert on_command_line.code == 2
    assert "visible" in on_command_line.err or "can be seen" in on_command_line.err
    (tmp_path / "url").write_text(f"{url}\n")
    by_file = cli("status", "--storage", f"@{tmp_path / 'url'}")
    monkeypatch.setenv("HPO_STORAGE", url)
    by_environment = cli("status")
    for result in (by_file, by_environment):
        assert result.code == 2
        assert "warning" not in result.err
    for result in (on_command_line, by_file, by_environment):
        assert "geheim" not in result.err + result.out
        assert "127.0.0.1" in result.err


@pytest.mark.parametrize(
    "url", ["postgresql://me:gehe/im@127.0.0.1:1/hpo", "postgresql://127.0.0.1:1/hpo?password=geheim"]
)
def test_a_password_of_any_form_draws_the_warning(cli: Cli, url: str) -> None:
    assert "can be seen" in cli("status", "--storage", url).err


def test_a_storage_file_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    result = cli("status", "--storage", f"@{tmp_path / 'none'}")
    assert result.code == 2
    assert "cannot be read" in result.err
    (tmp_path / "two").write_text("a b")
    assert "one database URL" in cli("status", "--storage", f"@{tmp_path / 'two'}").err
    assert f"write @{tmp_path / 'two'}" in cli("status", "--storage", tmp_path / "two").err


def test_the_password_is_in_no_file_and_no_argument(started_servers: StartedServers, tmp_path: Path) -> None:
    """A whole run on a server that asks for a password; it trusts everybody, so any password is right."""
    url = started_servers("postgresql").new_database().replace("postgres@", "postgres:geheim@")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "rate.toml").write_text(f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]")
    (tmp_path / "url").write_text(url)
    out = tmp_path / "out"
    command = ("run", "--studies", tmp_path / "studies", "--out", out, "--workers=2", *SMALL_RUN)
    process = start_hpo(*command, "--storage", f"@{tmp_path / 'url'}")
    arguments: set[str] = set()
    while process.poll() is None:
        ps = ("ps", "-ww", "-eo", "args")
        found = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
        arguments |= {line for line in found.splitlines() if "hpo" in line}
        time.sleep(0.2)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert any(f"worker --out {out}" in line for line in arguments)
    said = [output, errors, *arguments]
    said += [path.read_text(errors="replace") for path in out.rglob("*") if path.is_file()]
    plan = library.find_plan(out, storage=url)
    said += [str(plan.storage.study_attrs())]
    said += [str(t.user_attrs) for name in plan.all_names for t in plan.trials(name)]
    assert not [text for text in said if "geheim" in text]
    assert {study.state for study in library.status(plan)} == {"done"}


# --- loss ---------------------------------------------------------------------------------------------------


def test_status_puts_lost_trials_back(cli: Cli, tmp_path: Path) -> None:
    plan = made_plan(tmp_path, RATES)
    advance(plan, ["rate"])
    code = (
        "import sys; from hpo.storage.storage import Storage; from hpo.storage.queue import claim\n"
        "assert claim(Storage(sys.argv[1]), ['rate'])"
    )
    subprocess.run([sys.executable, "-c", code, plan.storage.url], check=True)
    assert "running" in states(plan, "rate")
    assert cli("status", "--storage", plan.storage.url).code == 0
    assert states(plan, "rate") == ["waiting"] * 3


def test_show_says_how_every_attempt_ended(cli: Cli, tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=100_000)
    work(plan.storage, out=tmp_path, studies=["rate"], limits=Limits(deadline_seconds=2.0))
    work(plan.storage, out=tmp_path, studies=["rate"], limits=Limits(deadline_seconds=2.0))
    shown = " ".join(cli("show", "rate", "--storage", plan.storage.url).out.split())
    assert f"process {os.getpid()}" in shown
    assert "released: the worker was asked to stop" in shown
    assert "epochs finished" in shown


def test_sigterm_ends_a_worker_although_the_server_hangs(
    started_servers: StartedServers, tmp_path: Path
) -> None:
    server = started_servers("postgresql")
    url = server.new_database()
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, url=url, epochs=100_000)
    process = start_hpo("worker", "--out", tmp_path / "out", "--storage", url)
    wait_for(lambda: list((tmp_path / "out").glob("checkpoints/**/*.checkpoint")), process)
    with server.paused():
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
    assert process.returncode == 143
    assert list((tmp_path / "out").glob("checkpoints/**/*.checkpoint"))
    assert states(plan, "rate") == ["running"]  # nobody could be told; the next one finds the process dead
    Queue(plan.storage, "rate").fail_stale_trials(lease_seconds=60)
    assert states(plan, "rate") == ["waiting"]


def test_sigterm_ends_a_run_although_the_server_hangs(
    started_servers: StartedServers, tmp_path: Path
) -> None:
    server = started_servers("postgresql")
    url = server.new_database()
    made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, url=url, epochs=100_000)
    process = start_hpo("resume", "--workers=1", "--out", tmp_path / "out", "--storage", url)
    wait_for(lambda: list((tmp_path / "out").glob("checkpoints/**/*.checkpoint")), process)
    with server.paused():
        time.sleep(2)  # by then it looks at the database, and waits for an answer
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which signals are handled")
@pytest.mark.parametrize("parent", ["killed", "alive"])
def test_a_worker_that_waits_for_sqlite_s_lock_can_be_stopped(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = made_plan(tmp_path, RATES)
    if parent == "killed":
        monkeypatch.setenv("HPO_PARENT_PID", "0")
    with closing(sqlite3.connect(str(sqlite_file(plan.storage.url)), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        process = start_hpo("worker", "--out", tmp_path / "out", "--storage", plan.storage.url)
        if parent == "alive":
            wait_for(lambda: handles_sigterm(process) and is_still(process), process)
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
    assert process.returncode == 143


def handles_sigterm(process: subprocess.Popen[Any]) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def is_still(process: subprocess.Popen[Any]) -> bool:
    """Whether it uses no CPU: it waits for something."""
    before = psutil.Process(process.pid).cpu_times()
    time.sleep(2)
    return bool(psutil.Process(process.pid).cpu_times() == before)


def test_sigterm_that_comes_twice_is_one_request(tmp_path: Path) -> None:
    """SLURM sends it to the script of a job and to all its processes, and the script passes it on."""
    plan = made_plan(tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=100_000)
    process = start_hpo("worker", "--out", tmp_path / "out", "--storage", plan.storage.url)
    wait_for(lambda: any(t.intermediate_values for t in plan.trials("rate")), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143
    assert [reason_of(trial) for trial in plan.trials("rate")] == [Reason.RELEASED]


@pytest.mark.parametrize("limits", [[], ["--max-trials=1"]], ids=["goes on", "leaves"])
def test_a_worker_that_was_paused_past_its_lease_has_lost_its_trial(
    limits: list[str], tmp_path: Path
) -> None:
    plan = made_plan(
        tmp_path, {"rate": f"{SMALL}[search]\nlearning_rate = [0.01]"}, epochs=100_000, lease_seconds=4
    )
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "hpo", "worker", "--storage", plan.storage.url, "--out", str(tmp_path)]
    process = subprocess.Popen([*command, *limits], stdout=log, stderr=log)
    try:
        wait_for(lambda: any(t.intermediate_values for t in plan.trials("rate")), process)
        wait_for(lambda: paused_outside_a_transaction(process, plan), process)
        queue = Queue(plan.storage, "rate")
        wait_for(lambda: queue.fail_stale_trials(lease_seconds=4), process)
        (lost,) = plan.trials("rate")
        n_epochs = len(lost.intermediate_values)
        process.send_signal(signal.SIGCONT)
        if limits:
            assert process.wait(timeout=300) == 0
            # an epoch that was reported in time may still be saved afterwards; none that nobody accepted
            files = tmp_path.glob("checkpoints/**/*.checkpoint")
            assert max(int(path.name.split("-")[1]) for path in files) <= n_epochs
        else:
            wait_for(
                lambda: len(plan.trials("rate")) == 2 and plan.trials("rate")[1].intermediate_values, process
            )
        assert len(plan.trials("rate")[0].intermediate_values) == n_epochs
        assert (tmp_path / "log").read_text().count("rate/0: lost to another worker; taking the next") == 1
    finally:
        process.kill()
        process.wait()
        log.close()


def paused_outside_a_transaction(process: subprocess.Popen[Any], plan: Plan) -> bool:
    """Pauses a process, unless it holds SQLite's lock just then: nobody could write until it goes on."""
    process.send_signal(signal.SIGSTOP)
    with closing(sqlite3.connect(str(sqlite_file(plan.storage.url)), timeout=0.5)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            return False
    return True


# --- whole runs on servers --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_run_on_a_server_ends_like_one_on_sqlite(
    kind: str, cli: Cli, finished: Path, small_studies: Path, started_servers: StartedServers, tmp_path: Path
) -> None:
    from tests.support.plans import accepted_epochs

    url = started_servers(kind).new_database()
    out = tmp_path / "out"
    checkpoints = f"file://{tmp_path / 'shared'}"
    result = hpo(
        *("run", "--studies", small_studies, "--out", out, "--workers=2", *SMALL_RUN),
        *("--storage", url, "--checkpoints", checkpoints),
    )
    assert result.code == 0, result.err
    assert not list(out.glob("*.db"))
    plan = library.find_plan(out, storage=url)
    assert accepted_epochs(plan) == accepted_epochs(library.find_plan(finished))
    slots = Slots.of(plan.trials("rate"))
    assert {slots.state(slot) for slot in slots.attempts} == {SlotState.COMPLETE}
    # the final stage's files reach a machine that did not train it
    elsewhere = tmp_path / "elsewhere"
    result = cli("run", "--out", elsewhere, "--storage", url, "--checkpoints", checkpoints)
    assert result.code == 0, result.err
    for name in (MODEL, WRONG_IMAGES):
        assert (elsewhere / name).read_bytes() == (out / name).read_bytes()
    # and where they cannot, it is said who has them
    unshared = cli("run", "--out", tmp_path / "third", "--storage", url)
    assert "checkpoints stay in" in unshared.err
    assert f"{MODEL} is on {socket.gethostname()}" in unshared.out
    assert "predict" not in unshared.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_short_siege(kind: str) -> None:
    """The fault harness in short: `examples/benchmarks/faults.py` says what it does."""
    import json

    script = Path(servers.__file__).with_name("faults.py")
    command = [sys.executable, str(script), kind, "--faults=10", "--subjects", "hpo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (tally,) = json.loads(done.stdout)
    assert tally["faults"] >= 10
    wrong = ("points_lost", "double_results", "worker_crashes", "false_losses")
    assert {key: tally[key] for key in wrong} == dict.fromkeys(wrong, 0), done.stderr
    assert tally["max_epochs_repeated"] <= 1
    assert tally["resumed_equal"] == tally["resumed"]
