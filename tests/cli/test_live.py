"""`hpo run` and `hpo status --watch` on a real terminal, in a pipe, and as JSON lines."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from hpo import find_plan
from hpo.cli.live import watching
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage.queue import Reason
from tests.support.command import hpo
from tests.support.fixtures import Cli
from tests.support.plans import SMALL_RUN
from tests.support.scripted_worker import Worker, new_plan


def on_terminal(
    command: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    stop_after: str = "",
    stop_with: signal.Signals = signal.SIGINT,
) -> list[str]:
    """Runs a command on a real terminal; returns what it wrote, at each size, and its exit code."""
    ours, theirs = pty.openpty()
    resize(theirs, *sizes[0])
    # readline, which pytest imports, may set these behind Python's back; they override the real size
    env = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=env
    )
    os.close(theirs)
    parts, left = [b""], list(sizes[1:])  # bytes: a read may end in the middle of a character
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 0.5)
        try:
            parts[-1] += os.read(ours, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if left and b"/3" in parts[-1]:
            resize(ours, *left.pop(0))
            parts.append(b"")
        if stop_after and stop_after.encode() in parts[-1]:
            process.send_signal(stop_with)
            stop_after = ""
    os.close(ours)
    return [*(part.decode(errors="replace") for part in parts), str(process.wait(timeout=300))]


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def plain(text: str) -> str:
    return re.sub("\x1b(\\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9])", "", text)


def frames(text: str) -> list[list[str]]:
    """The screens that were drawn, one after the other; rich goes to the first cell for each."""
    return [plain(frame).split("\r\n") for frame in text.split("\x1b[H")[1:]]


def test_a_run_on_a_terminal_that_is_resized_and_watched_through_pipes(
    tmp_path: Path, small_studies: Path, cli: Cli
) -> None:
    out = tmp_path / "out"
    assert cli("create", "--out", out, "--studies", small_studies, "--workers=2", *SMALL_RUN).code == 0
    command = [sys.executable, "-m", "hpo"]
    watch = [*command, "status", "--watch", "--out", str(out)]
    with (
        subprocess.Popen([*watch, "--json"], stdout=subprocess.PIPE, text=True) as as_json,
        subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as in_words,
    ):
        time.sleep(5)  # they look before anything has happened
        seen = on_terminal([*command, "run", "--out", str(out), "--workers=2"], sizes=[(24, 80), (40, 120)])
        assert [process.wait(timeout=300) for process in (as_json, in_words)] == [0, 0]
        assert as_json.stdout is not None
        assert in_words.stdout is not None
        lines, words = as_json.stdout.readlines(), in_words.stdout.readlines()
    check_screens(*seen)
    check_events([json.loads(line) for line in lines])
    n_events = 2 + 3 + 2 + 1
    assert "".join(words[n_events:]) == hpo("status", "--out", out).out
    assert re.match(r"rate/\d complete: macro F1 [\d.]+ %, learning_rate 0\.00[13]\n", words[0])
    assert words[n_events - 1].startswith("final/0 complete: test macro F1 ")
    assert "\x1b" not in "".join(words)


def check_screens(small: str, large: str, code: str) -> None:
    assert code == "0"
    assert "\x1b[?1049h" in small  # the terminal's other screen, and back, and the cursor shown again
    assert "\x1b[?1049l" in large
    assert (small + large).rindex("\x1b[?25h") > (small + large).rindex("\x1b[?25l")
    assert {len(frame) for frame in frames(small)[1:-1]} == {24}  # the last was cut off by the resizing
    assert max(cell_len(row) for frame in frames(small) for row in frame) <= 80
    last, _, outcome = large.rpartition("\x1b[?1049l")
    resized = frames(last)[2:]  # the first may have been on its way
    assert {len(frame) for frame in resized} == {40}
    assert [row for frame in resized for row in frame if cell_len(row) != 120] == []
    assert any("study 1 of 2" in frame[0] for frame in frames(small))
    assert "trials are starting" in small
    assert "no worker" not in small + large
    assert any("test set opened" in frame[0] for frame in resized)
    assert "test macro F1" in plain(outcome)
    assert "test set opened" not in plain(outcome)  # the table at the end is enough


def check_events(events: list[dict[str, Any]]) -> None:
    kinds = [(event["event"], event["study"]) for event in events]
    assert kinds.count(("point", "rate")) == 2
    assert kinds.count(("point", "shape")) == 3
    assert kinds.index(("study", "rate")) < kinds.index(("study", "shape"))
    assert kinds[-1] == ("final", "final")
    assert len(kinds) == 2 + 3 + 2 + 1
    assert 0 <= events[-1]["test"]["macro_f1"] <= 1


def test_run_with_json_prints_events_alone(tmp_path: Path, small_studies: Path, cli: Cli) -> None:
    command = ("run", "rate", "--json", "--studies", small_studies, "--out", tmp_path / "out", "--workers=1")
    result = hpo(*command, *SMALL_RUN)
    assert result.code == 0, result.err
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [(event["event"], event["study"]) for event in events] == [
        ("point", "rate"),
        ("point", "rate"),
        ("study", "rate"),
    ]
    assert cli(*command, *SMALL_RUN).out == ""  # nothing more has happened


@pytest.mark.parametrize("stopped_with", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_that_is_stopped_leaves_the_terminal_as_it_was(
    under_way: Plan, stopped_with: signal.Signals
) -> None:
    command = [sys.executable, "-m", "hpo", "status", "--watch", "--storage", under_way.storage.url]
    before = [t.state for t in under_way.trials("rate")]
    text, code = on_terminal(command, [(24, 80)], stop_after="study 2 of 3", stop_with=stopped_with)
    assert code == str(128 + stopped_with)
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    left = plain(text.rpartition("\x1b[?1049l")[2])
    assert "study 2 of 3" in left  # what it showed last stays
    assert "Traceback" not in text
    assert [t.state for t in under_way.trials("rate")] == before


def test_a_watch_of_a_plan_that_has_ended_ends(finished: Path) -> None:
    result = hpo("status", "--watch", "--json", "--out", finished)
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_watch_ends_when_all_have_left_and_says_how_to_go_on(tmp_path: Path, small_studies: Path) -> None:
    out = tmp_path / "my out"
    options = ["--studies", small_studies, "--out", out, "--workers=1", *SMALL_RUN]
    assert hpo("run", "rate", *options).code == 0
    for as_json in ([], ["--json"]):
        result = hpo("status", "--watch", *as_json, "--out", out)
        assert result.code == 0
        assert "nothing is queued; left: shape, final; " in result.err
    assert result.out == ""
    (advice,) = re.findall("`hpo (.*)`", result.err)
    assert hpo(*shlex.split(advice)).code == 0
    assert hpo("status", "--watch", "--json", "--out", out).err == ""


def test_what_is_no_terminal_gets_no_screen(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # rich takes any file for a terminal then
        table = hpo("status", "--out", finished).out
        assert "final" in table
        assert hpo("status", "--watch", "--out", finished).out == table
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # has no blocks to draw curves with
    command = [sys.executable, "-m", "hpo", "status", "--watch", "--out", str(finished)]
    said, code = on_terminal(command, [(24, 80)])
    assert (re.sub("[^\r]*…\r\x1b\\[K", "", said), code) == ("", "0")  # what was waited for is gone again


def test_what_takes_long_says_on_a_terminal_what_it_does(tmp_path: Path, small_studies: Path) -> None:
    options = ["--studies", str(small_studies), "--out", str(tmp_path), *SMALL_RUN]
    text, code = on_terminal([sys.executable, "-m", "hpo", "create", *options], [(24, 80)])
    assert code == "0"
    assert re.match(
        r"loading data …(\r\x1b\[K|\r\n)[\w-]+, in sqlite:///", text
    )  # and the line is gone afterwards


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("status",), "reading the plan"),
        (("show", "rate"), "reading the trials"),
        (("show", "rate/0"), "reading the plan"),
        (("best",), "reading the plan"),
        (("export",), "reading the trials"),
        (("final",), "reading the plan"),
        (("doctor",), "loading PyTorch"),
        (("run",), "loading data and plan"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_command_says_what_it_does_before_it_answers(
    finished: Path, words: tuple[str, ...], says: str
) -> None:
    text, _ = on_terminal([sys.executable, "-m", "hpo", *words, "--out", str(finished)], [(24, 80)])
    before = text.partition("\r\n")[0]  # the first line of the answer, and what stood there before
    assert f"{says} …" in before
    left = before.rpartition("\r\x1b[K")[2]
    assert "…" not in left
    piped = hpo(*words, "--out", finished)
    assert "…" not in piped.err


def test_a_forecast_says_how_far_it_is(tmp_path: Path, small_studies: Path) -> None:
    options = ["--studies", str(small_studies), *SMALL_RUN]
    text, code = on_terminal([sys.executable, "-m", "hpo", "plan", *options], [(24, 80)])
    assert code == "0"
    told = re.findall(r"([^\r\x1b]*) …", text)
    assert told[:2] == ["reading the study files", "[Kloading PyTorch and the data"]
    assert told[-1] == "[Ktiming a few steps of each network: shape, 3 of 3"


def test_a_run_ends_with_its_answer_in_sight(finished: Path) -> None:
    text, code = on_terminal([sys.executable, "-m", "hpo", "run", "--out", str(finished)], [(24, 80)])
    assert code == "0"
    rows = plain(text.rpartition("\x1b[?1049l")[2]).rstrip().split("\r\n")
    assert max(map(cell_len, rows)) <= 80 or str(finished) in text
    (answer,) = [index for index, row in enumerate(rows) if row.startswith("test macro F1 ")]
    assert answer > len(rows) - 18  # of 24, with room for a prompt, and for lines of long paths that wrap
    assert "\n".join(rows).count(re.findall(r"[\d.]+", rows[answer])[1]) == 1  # said once
    decision = find_plan(finished).decision("rate")
    assert decision is not None
    told = [row for row in rows if row.strip() and row.strip() in decision.text]
    assert " ".join(row.strip() for row in told) == decision.text
    assert len(told) <= 3


def test_a_line_is_out_as_soon_as_something_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    plan = new_plan(tmp_path, {"rate": f"[search]\nlearning_rate = {[n / 100 for n in range(1, 21)]}"})
    advance(plan)
    worker = Worker(plan)
    command = [sys.executable, "-m", "hpo", "status", "--watch", "--json", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready: list[Any] = []
        try:
            while not ready:  # what ends before its first look is no news; all together would fill no buffer
                worker.finish(worker.claim("rate"), [0.5])
                ready, _, _ = select.select([process.stdout], [], [], 1.5)
            assert process.poll() is None
            assert json.loads(process.stdout.readline())["study"] == "rate"
        finally:
            process.terminate()
        assert process.wait(timeout=300) == 143


def test_a_point_that_diverged_is_called_so_in_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = new_plan(tmp_path, {"rate": "[search]\nlearning_rate = [0.01, 0.001]"})
    advance(plan)
    worker = Worker(plan)
    with watching(find_plan(tmp_path), ()) as look:
        worker.prune(worker.claim("rate"), f"{Reason.DIVERGED}: the loss is nan")
        look()
    assert capsys.readouterr().err.startswith("rate/0 diverged (the loss is nan): ")


def test_what_searched_nothing_is_called_by_its_name_in_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = {"rate": "[search]\nlearning_rate = [0.01]", "one": 'inherits = "rate"\n[fixed]\nl2 = 0.1'}
    plan = new_plan(tmp_path, studies)
    advance(plan)
    worker = Worker(plan)
    with watching(find_plan(tmp_path), ()) as look:
        worker.finish_all("rate", [0.5])
        advance(plan)
        while plan.storage.waiting([plan.storage.study_id("one")], 1):
            worker.finish(worker.claim("one"), [0.5])
        look()
    lines = capsys.readouterr().err.splitlines()
    points = {line.rpartition(", ")[2] for line in lines if line.startswith("one/")}
    assert points == {"single point"}


def test_what_is_logged_meanwhile_is_drawn_at_once_and_said_at_the_end(
    under_way: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    resize(theirs, 24, 80)
    parts: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65536):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    log = logging.getLogger("hpo.storage.storage")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with watching(find_plan(storage=under_way.storage.url), (), stderr=False):
            log.warning("the database is away %s", "\x1b[2J")
    reader.join(timeout=300)
    os.close(ours)
    drawn, _, left = b"".join(parts).decode().rpartition("\x1b[?1049l")
    assert frames(drawn)[-1][1].startswith("the database is away \\x1b[2J")
    assert plain(left).rstrip().endswith("the database is away \\x1b[2J")
    assert not logging.getLogger("hpo").handlers
