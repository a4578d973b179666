"""What is shown of a plan under way: real databases, half-finished ones among them, and a real terminal."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_RUN, SMALL_SIZES, hpo
from optuna.trial import FrozenTrial, TrialState
from rich.cells import cell_len
from rich.terminal_theme import SVG_EXPORT_THEME

from hpo import find_plan, results
from hpo.advance import advance
from hpo.cli.screen import Display
from hpo.cli.tables import Screen
from hpo.plan import Plan
from hpo.progress import Progress, Watch
from hpo.queue import Queue, Reason, this_process
from hpo.run import open_plan
from hpo.train import LayerHealth, SeedEpoch

HOSTILE = "[red]x[/red] \x1b[2J\u202e<b> " + "n" * 300
REMOTE = {**this_process(), "host": "node-7", "boot": "another machine"}
STUDIES = {
    "setup": 'title = "Channels"\nsection = "1"\n[search]\nconv1_channels = [4, 8]',
    "rate": f"""
        title = {json.dumps(HOSTILE)}
        section = {json.dumps(HOSTILE)}
        inherits = "setup"
        [search]
        learning_rate = [0.1, 0.01, 0.001, 0.0001, 0.00001, 0.000001, 0.0000001]
        [pruner]
        name = "median"
    """,
    "shift": 'section = "3"\ninherits = "setup"\n[search]\nl2 = [0.0, 0.1]',
}
EPOCHS = 4
SECONDS = 10.0


class Worker:
    """Writes what a worker would write, with figures of the test's choice."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def claim(self, study: str, owner: dict[str, Any] | None = None) -> FrozenTrial:
        """The next trial of a study, as it is while it is being trained."""
        queue = Queue(self.plan.storage, study)
        if owner is None:
            trial = queue.claim()
            assert trial is not None
        else:
            (_, trial_id), *_ = self.plan.storage.waiting([queue.study_id], 1)
            assert self.plan.storage.claim(trial_id, owner)
            trial = self.plan.storage.trial(trial_id)
        config = self.plan.trial_config(study, trial, trial.params)
        self.plan.storage.write(trial._trial_id, attrs={"config": config.params()})
        return trial

    def report(self, trial: FrozenTrial, curve: Sequence[float], *, dead: bool = False) -> None:
        """Epochs with these values, 10 s each."""
        layers = {
            "conv1": LayerHealth(0.0 if dead else 1.0, 0.0 if dead else 1.0, 1.0 if dead else 0.1),
            "output": LayerHealth(1.0, 1.0, None),
        }
        epochs = {
            f"epoch:{n}": [SeedEpoch(0, 1.0, 1.0, f1, f1, 5, SECONDS, layers).to_dict()]
            for n, f1 in enumerate(curve, start=1)
        }
        self.plan.storage.write(trial._trial_id, attrs=epochs, reports=dict(enumerate(curve, start=1)))

    def finish(self, trial: FrozenTrial, curve: Sequence[float], *, dead: bool = False) -> None:
        """A result."""
        self.report(trial, curve, dead=dead)
        self.plan.storage.finish(trial._trial_id, TrialState.COMPLETE, max(curve))

    def prune(self, trial: FrozenTrial, reason: str) -> None:
        """An end without the last epoch."""
        self.report(trial, [0.3, 0.2])
        self.plan.storage.finish(trial._trial_id, TrialState.PRUNED, 0.3, {"reason": reason})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three studies, the second of hostile title; nothing trained."""
    (tmp_path / "studies").mkdir()
    for name, text in STUDIES.items():
        (tmp_path / "studies" / f"{name}.toml").write_text(text)
    given = {**SMALL_SIZES, "epochs": EPOCHS}
    return open_plan(tmp_path, studies=tmp_path / "studies", given=given)


@pytest.fixture
def worker(plan: Plan) -> Worker:
    """Who works on it."""
    advance(plan)
    return Worker(plan)


@pytest.fixture
def under_way(plan: Plan, worker: Worker) -> Plan:
    """The first study decided, the second amid all that can happen."""
    for curve in ([0.2, 0.6, 0.5, 0.4], [0.2, 0.5, 0.4, 0.4]):
        worker.finish(worker.claim("setup"), curve)
    advance(plan)
    worker.finish(worker.claim("rate"), [0.1] * EPOCHS, dead=True)
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 2")
    worker.prune(worker.claim("rate"), f"{Reason.DIVERGED}: the loss is nan {HOSTILE}")
    queue = Queue(plan.storage, "rate")
    broken = worker.claim("rate")
    queue.close(broken._trial_id, Reason.ERROR, f"ValueError: {HOSTILE}")
    advance(plan)
    worker.finish(worker.claim("rate"), [0.2, 0.3, 0.4, 0.55])
    worker.report(worker.claim("rate"), [0.3, 0.4])
    worker.report(worker.claim("rate", REMOTE), [0.1, 0.05, 0.05], dead=True)
    (again,) = [t for t in plan.trials("rate") if t.state == TrialState.WAITING]
    assert again.params == broken.params
    worker.claim("rate")
    queue.close(again._trial_id, Reason.ERROR, f"ValueError: {HOSTILE}")
    return plan


def look(plan: Plan) -> Progress:
    return Watch(find_plan(storage=plan.storage.url), plan.all_names).look()


def shown(progress: Progress, width: int, height: int = 60, **options: Any) -> str:
    """The screen of a terminal of this size, as text."""
    console = Screen(file=io.StringIO(), width=width, height=height, record=True, **options)
    console.print(Display(progress))
    return console.export_text()


def test_the_first_line_says_where_the_plan_stands(under_way: Plan) -> None:
    for width in (80, 140):
        first = shown(look(under_way), width).splitlines()[0]
        assert first.startswith("section 2 of 3 · best F1 60.0 %")
        assert "about 2 min left" in first
        assert first.endswith("test set locked")


@pytest.mark.parametrize("width", [80, 140])
def test_the_screen_of_a_plan_under_way(under_way: Plan, width: int) -> None:
    text = shown(look(under_way), width)
    rows = text.splitlines()
    assert re.search(r"├ 1 +setup +done +━+  2/2 +Channels", text)
    assert "chose conv1_channels 4: best of 2 (one seed, not tested)" in text
    assert re.search(r"rate +running +━+╸?─+  5/7 +2 pruned, 1 failed", text)
    assert re.search(r"shift +idle +─+  0/2 +from setup", text)
    assert re.search(r"└ +final +pending +0/1", text)
    assert "pruned: 1 by median after epoch 2; 1 diverged: the loss is nan" in text
    assert "failed: 1 error: ValueError" in text
    assert "dying ReLU: trial 0" in text
    assert "diverged: trial 2" in text
    assert "still rising at the last epoch: trial 4" in text
    (best,) = [row for row in rows if row.startswith("setup/0")]
    assert "▃█▇▆" in best
    assert "60.0" in best
    (local,) = [row for row in rows if row.startswith("rate/5")]
    # two epochs of its own, then the best trial's
    assert re.search(r"━━━━━╸─+  2/4 +▄▆▇▆ +40\.0  -20\.0 +20 s", local)
    (remote,) = [row for row in rows if row.startswith("rate/6")]
    assert "node-7" in remote
    assert "dying ReLU" in remote


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 6), (100, 12), (140, 40), (200, 60), (40, 10)])
def test_no_row_is_too_long_and_none_too_many(under_way: Plan, width: int, height: int) -> None:
    rows = shown(look(under_way), width, height).splitlines()
    assert len(rows) <= height
    assert max(map(cell_len, rows)) <= width
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", "".join(rows))
    assert rows[0].startswith("section 2 of 3")


def test_a_short_terminal_loses_what_matters_least(under_way: Plan) -> None:
    progress = look(under_way)
    assert "chose conv1_channels" in shown(progress, 80, 24)
    six = shown(progress, 80, 6)
    assert "rate/5" in six
    assert "running" in six
    assert "├ 1" not in six
    assert "shift" not in six
    assert "… 3 more studies" in shown(progress, 80, 7)


def test_of_many_workers_it_says_how_many_more(plan: Plan, worker: Worker) -> None:
    (first, *_), n_workers = plan.specs, 2
    for number in range(n_workers):
        worker.report(worker.claim(first, {**REMOTE, "pid": number}), [0.1])
    progress = look(plan)
    many = Progress(**{**vars(progress), "running": [*progress.running] * 20})
    text = shown(many, 80, 24)
    assert len(text.splitlines()) <= 24
    (more,) = re.findall(r"… (\d+) more workers", text)
    assert int(more) + len(re.findall("^setup/", text, re.MULTILINE)) == 40


def test_without_colours_it_says_the_same(under_way: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = look(under_way)
    coloured = shown(progress, 100, force_terminal=True, color_system="truecolor")
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Screen(file=file, width=100, height=60, force_terminal=True).print(Display(progress))
    codes = re.findall("\x1b\\[([0-9;]*)m", file.getvalue())
    assert set(";".join(codes).split(";")) <= {"", "0", "1", "2"}  # bold and dim are no colours
    assert re.sub("\x1b\\[[0-9;]*m", "", file.getvalue()) == coloured


def test_markup_in_names_is_no_markup_in_a_picture(under_way: Plan) -> None:
    console = Screen(file=io.StringIO(), width=200, height=60, record=True, force_terminal=True)
    console.print(Display(look(under_way)))
    picture = console.export_svg(theme=SVG_EXPORT_THEME)
    assert "<b>" not in picture
    assert "[red]x[/red]" in picture.replace("&#160;", " ")


def test_time_left_is_what_remains_at_the_speed_so_far(plan: Plan, worker: Worker) -> None:
    assert look(plan).seconds_left is None
    worker.finish(worker.claim("setup"), [0.5] * EPOCHS)
    worker.report(worker.claim("setup"), [0.5])
    # three epochs of this trial, four of nine points (two of them a control's), and two final seeds of four
    n_epochs = 3 + 4 * (7 + 2) + 4 * 2
    assert look(plan).seconds_left == pytest.approx(n_epochs * SECONDS)


def test_each_event_is_told_once(plan: Plan, worker: Worker) -> None:
    watch = Watch(find_plan(storage=plan.storage.url), plan.all_names)
    assert watch.look().events == []
    worker.finish(worker.claim("setup"), [0.5])
    (event,) = watch.look().events
    assert event.to_json() == {
        "event": "point",
        "study": "setup",
        "trial": 0,
        "point": '{"conv1_channels":4}',
        "params": {"conv1_channels": 4},
        "state": "complete",
        "reason": "",
        "macro_f1": 0.5,
        "best_epoch": 1,
        "epochs": 1,
    }
    assert watch.look().events == []
    worker.prune(worker.claim("setup"), "pruned: by median after epoch 2")
    advance(plan)
    pruned, decided = watch.look().events
    assert (pruned.record["state"], pruned.record["reason"]) == ("pruned", "pruned: by median after epoch 2")
    assert (decided.event, decided.record["text"]) == ("study", plan.decision("setup").text)
    assert watch.look().events == []


def test_a_worker_that_is_gone_is_said_to_be(plan: Plan, worker: Worker) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    worker.claim("setup", {**this_process(), "pid": ended.pid})
    progress = look(plan)
    assert math.isinf(progress.running[0].silence)
    assert "its process is gone" in shown(progress, 100)


def test_where_nothing_can_be_decided_all_is_over(plan: Plan, worker: Worker) -> None:
    for _ in range(2):
        worker.prune(worker.claim("setup"), f"{Reason.DIVERGED}: the loss is nan")
    assert not look(plan).is_over
    assert advance(plan)
    progress = look(plan)
    assert progress.is_over
    assert "0 of 3 sections decided" in shown(progress, 80)


def test_a_finished_plan(finished: Path) -> None:
    plan = find_plan(finished)
    progress = look(plan)
    assert progress.is_over
    text = shown(progress, 140)
    first = text.splitlines()[0]
    assert first.startswith("2 of 2 sections decided · best F1 ")
    assert re.search(r"test F1 [\d.]+ ± [\d.]+ % · test set opened$", first)
    assert plan.decision("shape").text in text


def test_outlines_say_of_studies_what_whole_trials_say(under_way: Plan, finished: Path) -> None:
    for plan in (under_way, find_plan(finished)):
        records = plan.records()
        whole = [results.study_status(plan, n, records[n], plan.trials(n)) for n in plan.all_names]
        assert results.status(plan) == whole


# --- commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched_run(
    tmp_path_factory: pytest.TempPathFactory, small_studies: Path
) -> Iterator[dict[str, list[str]]]:
    """One run on a terminal that is resized meanwhile, watched by two others through pipes."""
    out = tmp_path_factory.mktemp("watched") / "out"
    assert hpo("create", "--out", out, "--studies", small_studies, "--workers=2", *SMALL_RUN).code == 0
    command = [sys.executable, "-m", "hpo"]
    watch = [*command, "status", "--watch", "--out", str(out)]
    with (
        subprocess.Popen([*watch, "--json"], stdout=subprocess.PIPE, text=True) as as_json,
        subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as plain,
    ):
        time.sleep(5)  # they look before anything has happened
        seen = on_terminal([*command, "run", "--out", str(out), "--workers=2"], sizes=[(24, 80), (40, 120)])
        codes = [process.wait(timeout=60) for process in (as_json, plain)]
        assert codes == [0, 0]
        yield {"screen": seen, "json": as_json.stdout.readlines(), "plain": plain.stdout.readlines()}


def on_terminal(
    command: Sequence[str], sizes: Sequence[tuple[int, int]], *, stop_after: str = ""
) -> list[str]:
    """Runs a command on a real terminal; returns what it wrote, at each size, and its exit code."""
    ours, theirs = pty.openpty()
    resize(theirs, *sizes[0])
    # readline, which pytest imports, may set these behind Python's back; they override the real size
    env = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=env,
        # a shell that started the tests in the background has had SIGINT ignored, by their children too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    parts, left = [""], list(sizes[1:])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 0.5)
        try:
            parts[-1] += os.read(ours, 65536).decode(errors="replace") if ready else ""
        except OSError:  # the other end is closed
            break
        if left and "/3" in parts[-1]:
            resize(ours, *left.pop(0))
            parts.append("")
        if stop_after and stop_after in parts[-1]:
            process.send_signal(signal.SIGINT)
            stop_after = ""
    os.close(ours)
    return [*parts, str(process.wait(timeout=20))]


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def plain(text: str) -> str:
    return re.sub("\x1b(\\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9])", "", text)


def frames(text: str) -> list[list[str]]:
    """The screens that were drawn, one after the other; rich goes to the first cell for each."""
    return [plain(frame).split("\r\n") for frame in text.split("\x1b[H")[1:]]


def test_a_run_on_a_terminal_that_is_resized(watched_run: dict[str, list[str]]) -> None:
    small, large, code = watched_run["screen"]
    assert code == "0"
    assert "\x1b[?1049h" in small  # the terminal's other screen, and back, and the cursor shown again
    assert "\x1b[?1049l" in large
    assert (small + large).rindex("\x1b[?25h") > (small + large).rindex("\x1b[?25l")
    assert {len(frame) for frame in frames(small)[1:-1]} == {24}  # the last was cut off by the resizing
    assert max(cell_len(row) for frame in frames(small) for row in frame) <= 80
    last, _, outcome = large.rpartition("\x1b[?1049l")
    resized = frames(last)[2:]  # the first may have been on its way
    assert {len(frame) for frame in resized} == {40}
    assert {cell_len(row) for frame in resized for row in frame} == {120}
    assert any("section 1 of 2" in frame[0] for frame in frames(small))
    assert any("test set opened" in frame[0] for frame in resized)
    assert "test macro F1" in plain(outcome)


def test_json_lines_of_a_run(watched_run: dict[str, list[str]]) -> None:
    events = [json.loads(line) for line in watched_run["json"]]
    kinds = [(event["event"], event["study"]) for event in events]
    assert kinds.count(("point", "rate")) == 2
    assert kinds.count(("point", "shape")) == 3
    assert kinds.index(("study", "rate")) < kinds.index(("study", "shape"))
    assert kinds[-1] == ("final", "final")
    assert len(kinds) == 2 + 3 + 2 + 1
    assert 0 <= events[-1]["test"]["macro_f1"] <= 1


def test_plain_lines_of_a_run(watched_run: dict[str, list[str]]) -> None:
    lines = watched_run["plain"]
    assert len(lines) == 2 + 3 + 2 + 1
    assert re.match(r"rate/\d complete: macro F1 [\d.]+ %, learning_rate 0\.00[13]\n", lines[0])
    assert lines[-1].startswith("final/0 complete: test macro F1 ")
    assert "\x1b" not in "".join(lines)


def test_run_with_json_prints_events_alone(tmp_path: Path, small_studies: Path) -> None:
    command = ("run", "rate", "--json", "--studies", small_studies, "--out", tmp_path / "out", "--workers=1")
    result = hpo(*command, *SMALL_RUN)
    assert result.code == 0, result.err
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [(event["event"], event["study"]) for event in events] == [
        ("point", "rate"),
        ("point", "rate"),
        ("study", "rate"),
    ]
    assert hpo(*command, *SMALL_RUN).out == ""  # nothing more has happened


def test_a_watch_that_is_interrupted_leaves_the_terminal_as_it_was(under_way: Plan, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpo", "status", "--watch", "--out", str(tmp_path)]
    before = [t.state for t in under_way.trials("rate")]
    text, code = on_terminal(command, [(24, 80)], stop_after="section 2 of 3")
    assert code == "130"
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    left = plain(text.rpartition("\x1b[?1049l")[2])
    assert "section 2 of 3" in left  # what it showed last stays
    assert "Traceback" not in text
    assert [t.state for t in under_way.trials("rate")] == before


def test_a_watch_of_a_plan_that_has_ended_ends(finished: Path) -> None:
    result = hpo("status", "--watch", "--json", "--out", finished)
    assert (result.code, result.out, result.err) == (0, "", "")
