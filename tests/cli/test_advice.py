"""Every command that a message advises can be pasted into a shell, and works on the plan that was meant."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import click
import pytest

from hpo import find_plan
from hpo.cli import options as opt
from hpo.cli.main import hpo as hpo_commands
from hpo.errors import MissingError
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage.queue import Queue, Reason
from tests.support.command import Result, hpo, start_hpo
from tests.support.fixtures import Cli
from tests.support.plans import SMALL
from tests.support.scripted_worker import Worker, new_plan

OUT = "my plan"
RATE = f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]"


def advised(result: Result) -> list[str]:
    """The commands that an output advises."""
    text = f"{result.out}\n{result.err}"
    return [*re.findall(r"`(hpo [^`]+)`", text), *re.findall(r"^(?:more|resume): (hpo .*)$", text, re.M)]


def paste(line: str) -> Result:
    """What a line does in a shell of the current folder."""
    script = f"hpo() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    return hpo(*words.split("\0")[:-1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "rate.toml").write_text(RATE)
    # who names no data means the 60,000 images of CIFAR-10
    sizes = {"DATA": "digits", "LIMIT_TRAIN": 100, "LIMIT_VALID": 50, "EPOCHS": 2, "FINAL_SEEDS": 1}
    for name, value in {**sizes, "STUDIES": "studies"}.items():
        monkeypatch.setenv(f"HPO_{name}", str(value))
    return tmp_path


def databases(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in folder.glob("**/*.db")]


def test_what_is_advised_before_anything_is_trained_can_be_pasted(folder: Path, cli: Cli) -> None:
    before = [(name, 2) for name in ("status", "resume", "best", "final", "export", "worker")]
    lines = set[str]()
    for commands in (before, [("create", 0), ("best", 2), ("final", 2)]):
        for name, code in commands:
            result = cli(name, "--out", OUT)
            assert result.code == code, result.err
            lines |= {*advised(result)}
    assert {line.split()[1] for line in lines} == {"run", "create", "worker", "status", "resume"}
    for line in sorted(lines):
        done = paste(line)
        assert done.code == 0, f"{line}: {done.err}"
    assert databases(folder) == [f"{OUT}/hpo.db"]


def test_what_is_advised_of_a_plan_names_no_data_that_it_knows(folder: Path, cli: Cli) -> None:
    assert "`hpo run` or `hpo worker` trains it" in cli("create", "--data", "digits").out


def test_what_a_run_advises_when_it_is_stopped_and_when_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_EPOCHS", "40")  # a quick machine has trained two before the signal comes
    with start_hpo("run", "--out", OUT, "--workers=1") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        while not said.startswith("rate/"):
            said = process.stderr.readline()
            assert said, "it ended before a trial did"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = Result(130, out, err)
    assert re.search(
        r"nothing is lost\. Done: [01] of 1 studies, [12] of 2 points; open: (rate, )?final\n", err
    )
    assert advised(stopped) == [f"hpo resume --out '{OUT}' --workers 1"]
    ended = paste(advised(stopped)[0])
    assert ended.code == 0, ended.err
    lines = advised(ended)
    assert [line.split()[1] for line in lines] == ["show", "final", "report"]
    for line in lines:
        done = paste(line)
        assert done.code == 0, f"{line}: {done.err}"
    for words in (("best",), ("show", "final")):
        (line,) = advised(hpo(*words, "--out", OUT))
        assert paste(line).out == hpo("final", "--out", OUT).out
    assert databases(folder) == [f"{OUT}/hpo.db"]


def ended(folder: Path, reason: Reason) -> Plan:
    """A plan whose study `rate` has ended; its first point failed or diverged."""
    plan = new_plan(folder, {"rate": RATE})
    advance(plan)
    worker, queue = Worker(plan), Queue(plan.storage, "rate")
    while plan.storage.waiting([queue.study_id], 1):
        trial = worker.claim("rate")
        if trial.params["learning_rate"] == 0.001:
            worker.finish(trial, [0.5])
        elif reason == Reason.DIVERGED:
            worker.prune(trial, f"{reason}: the loss is nan")
        else:
            queue.close(trial._trial_id, reason, "ValueError: no")
        advance(plan)
    return plan


def test_what_is_advised_of_a_point_that_failed(tmp_path: Path, cli: Cli) -> None:
    ended(tmp_path, Reason.ERROR)
    failed = hpo("run", "rate", "--out", tmp_path)
    assert failed.code == 1
    assert "failed for good: rate/2 (learning_rate 0.01)." in failed.err
    why, retry = [line for line in advised(failed) if "more" not in line][:2]
    assert paste(why).out.startswith("rate/2 error")
    again = paste(retry)
    assert again.out.startswith("queued again: rate/2 (error) as rate/3; ")
    (run,) = advised(again)
    assert paste(run).code == 0
    assert "no point has failed for good" in cli("retry", "--out", tmp_path).out


def test_points_that_diverged_are_called_so_everywhere(tmp_path: Path, cli: Cli) -> None:
    plan = ended(tmp_path, Reason.DIVERGED)
    assert advance(plan, ["rate"])
    shown = [
        cli(*words, "--out", tmp_path).out for words in (("status",), ("show", "rate"), ("show", "rate/0"))
    ]
    assert all("diverged" in text for text in shown)
    assert not any("pruned" in text or "failed" in text for text in shown)
    told = cli("retry", "--out", tmp_path)
    assert told.out == "no point has failed for good\ndiverged, and would diverge again: rate/0\n"


def test_a_study_whose_points_all_diverged_has_not_failed_for_good(tmp_path: Path, cli: Cli) -> None:
    plan = new_plan(tmp_path, {"rate": RATE})
    advance(plan)
    worker = Worker(plan)
    for _ in range(2):
        worker.prune(worker.claim("rate"), f"{Reason.DIVERGED}: the loss is nan")
    result = hpo("run", "rate", "--out", tmp_path)
    assert result.code == 1
    assert "hpo run: rate: no point has a result (2 diverged). `hpo show rate" in result.err
    assert "failed for good" not in result.err
    assert "would diverge again: rate/0, rate/1" in cli("retry", "--out", tmp_path).out


def test_a_resumed_run_says_which_trials_are_tried_again(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"rate": RATE})
    advance(plan)
    queue = Queue(plan.storage, "rate")
    queue.close(Worker(plan).claim("rate")._trial_id, Reason.RELEASED, "the worker was asked to stop")
    result = hpo("resume", "rate", "--out", tmp_path, "--workers=1")
    assert result.code == 0, result.err
    assert "tried again: rate/0 (released) as rate/2\n" in result.err
    assert find_plan(tmp_path).decision("rate") is not None


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--out", "it's"], "hpo run --out 'it'\"'\"'s'"),
        (["--out", "a\nb"], r"hpo run --out $'a\nb'"),
        (["--storage", "sqlite:///a b.db"], "hpo run --storage 'sqlite:///a b.db'"),
        (["--storage", "@url.txt"], "hpo run --storage @url.txt"),
        (["--storage", "mysql://me:secret@host/db"], 'hpo run --storage "${HPO_STORAGE:?}"'),
        (["--out", "hpo-out"], "hpo run --out hpo-out"),
    ],
)
def test_a_place_is_written_as_a_shell_reads_it(
    given: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("url.txt").write_text("sqlite:///of-a-file.db")

    @hpo_commands.command("fail")
    @opt.database
    def fail(**options: object) -> None:
        raise MissingError("there is nothing; `hpo run` makes it")

    try:
        result = cli("fail", *given)
    finally:
        del hpo_commands.commands["fail"]
    assert "secret" not in result.err
    assert advised(result) == [line]


def test_nothing_is_added_outside_a_command() -> None:
    from hpo.cli.advice import completed

    assert click.get_current_context(silent=True) is None
    assert completed("`hpo run` trains it") == "`hpo run` trains it"
