"""Workers as a SLURM array, tried against a stand-in for SLURM's commands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo.execution.run import find_or_create_plan
from hpo.monitor.results import final_trial
from hpo.planning.plan import Plan
from hpo.storage.queue import reason_of
from hpo.storage.storage import Storage
from tests.support import stand_in_slurm, timed
from tests.support.command import wait_for
from tests.support.fixtures import Cli, StartedServers
from tests.support.plans import TINY_SIZES

SECRET = "geheim"
WAITS = """if epoch == 3:
                while not (pathlib.Path('go').exists() or context.should_stop()):
                    time.sleep(0.05)"""
"""An epoch in which a trial waits for a signal, or for the test."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for SLURM in PATH."""
    folder = stand_in_slurm.install(place / "slurm-commands")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    stand_in_slurm.end(folder)


@pytest.fixture
def plan(place: Path, started_servers: StartedServers) -> Plan:
    """A plan of two trials and a final stage, on a server."""
    epoch = f"import pathlib\n            {WAITS}"
    recipe = timed.write(Path(), {"first": "[search]\nquality = [0, 1]"}, epoch)
    given = {**TINY_SIZES, "recipe": recipe, "epochs": 4}
    url = f"{started_servers('postgresql').new_database()}?plan=night"
    return find_or_create_plan(Path("out"), storage=url, studies=Path("studies"), given=given)


def begun(plan: Plan) -> bool:
    """Whether the first trial has two epochs."""
    trials = plan.trials("first")
    return bool(trials) and len(trials[0].intermediate_values) == 2


@pytest.mark.parametrize("happens", [stand_in_slurm.time_is_up, stand_in_slurm.preempt])
def test_a_task_whose_time_is_up_or_that_is_preempted_comes_again_and_resumes(
    cli: Cli, place: Path, slurm: Path, plan: Plan, happens: Callable[[Path, int], None]
) -> None:
    submitted = cli("submit", "--slurm", "--workers", 1, "--storage", plan.storage.url, "--out", "out")
    assert submitted.code == 0, submitted.err
    wait_for(lambda: begun(plan))
    happens(slurm, 0)
    wait_for(lambda: (slurm / "codes-0").exists())
    Path("go").touch()
    stand_in_slurm.wait_until_over(slurm)
    codes = (slurm / "codes-0").read_text().split()
    assert codes[0] != "0"
    assert codes[1:] == ["0"]
    before, after, *_ = sorted(plan.trials("first"), key=lambda trial: trial.params["quality"])
    assert reason_of(before) == "released"  # by the worker itself, within its time
    assert after.params == before.params
    assert after.user_attrs["resumed_after_epoch"] >= 2
    assert final_trial(Plan.open(Storage(plan.storage.url))) is not None
    logs = {file.name for file in Path("out/slurm").iterdir()}
    assert {"77_submission.sh", "77_0_log.err", "77_0_0_log.err"} & logs
    assert cli("delete", "--storage", plan.storage.url, "--out", "out", "--yes").code == 0


def test_what_is_asked_of_slurm_stands_in_the_script(cli: Cli, place: Path, slurm: Path, plan: Plan) -> None:
    Path("go").touch()
    plan = plan.named("night; touch x\n#")
    options = ("--partition", "gpu", "--time", "90m", "--cpus", 2, "--gpus", 1)
    Path("database-url").write_text(plan.storage.url.replace("postgres@", f"postgres:{SECRET}@"))
    place_of_plan = ("--storage", "@database-url", "--out", "out")
    done = cli("submit", "--slurm", "--workers", 2, *options, *place_of_plan)
    assert done.code == 0, done.err
    assert done.out == "submitted: 77_0 to 77_1\n"
    assert "hpo status --watch --out out --storage @database-url" in done.err
    assert "scancel 77" in done.err
    stand_in_slurm.wait_until_over(slurm)
    lines = set((slurm / "script").read_text().splitlines())
    assert lines >= {
        "#SBATCH --array=0-1%2",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --job-name=hpo-night-touch-x",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=gpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@60",
        "#SBATCH --time=90",
    }
    assert (slurm / "codes-0").read_text() == (slurm / "codes-1").read_text() == "0\n"
    written = b"".join(file.read_bytes() for file in Path("out").rglob("*") if file.is_file())
    assert b"serving postgresql+psycopg://postgres:***@" in written
    assert SECRET.encode() not in written
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "there is no srun here"),
        (("--out", "lr-50%a"), r"--out .*lr-50%a: SLURM reads '%' in the path of a log as its own"),
        (("--cpus", "1"), r"--cpus 1: a worker of this plan trains with 2 threads"),
        (("--storage", "sqlite:///out/hpo.db"), "no database here"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    cli: Cli, place: Path, started_servers: StartedServers, options: tuple[str, ...], says: str
) -> None:
    recipe = timed.write(Path(), {"first": "[search]\nquality = [0]"})
    url = started_servers("postgresql").new_database()
    given = {**TINY_SIZES, "recipe": recipe}
    find_or_create_plan(Path("out"), storage=url, studies=Path("studies"), given=given, threads=2)
    refused = cli("submit", "--slurm", "--out", "out", "--storage", url, *options)
    assert refused.code == 2
    assert re.search(says, refused.err), refused.err
    assert not Path("out/slurm").exists()


def test_a_file_serves_no_array(cli: Cli, place: Path) -> None:
    recipe = timed.write(Path(), {"first": "[search]\nquality = [0]"})
    find_or_create_plan(Path("out"), studies=Path("studies"), given={**TINY_SIZES, "recipe": recipe})
    refused = cli("submit", "--slurm", "--out", "out")
    assert refused.code == 2
    assert "SQLite serves one machine" in refused.err
    assert cli("submit", "--out", "out").code == 2  # where to, it must be said


def test_what_sbatch_refuses_is_told(cli: Cli, slurm: Path, plan: Plan) -> None:
    error = "sbatch: error: invalid partition specified: gpu"
    (slurm / "sbatch").write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    refused = cli("submit", "--slurm", "--partition", "gpu", "--out", "out", "--storage", plan.storage.url)
    assert refused.code == 1
    assert "invalid partition specified: gpu" in refused.err
    assert "Traceback" not in refused.err
