"""The live screen, as text, of real databases: half-finished ones, large ones, hostile ones."""

from __future__ import annotations

import io
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.terminal_theme import SVG_EXPORT_THEME

from hpo import find_plan
from hpo.cli.screen import Display
from hpo.cli.tables import Screen, stopped_text
from hpo.monitor.status import StudyStatus
from hpo.monitor.watch import Progress
from hpo.planning.plan import Plan
from hpo.planning.revision import extend
from hpo.planning.scheduler import advance
from hpo.storage.queue import this_process
from tests.support.scripted_worker import HOSTILE, REMOTE, Worker, look, new_plan, watch


def shown(progress: Progress, width: int, height: int = 60, *, styles: bool = False, **options: Any) -> str:
    """The screen of a terminal of this size, as text, with its colours' codes or without."""
    console = Screen(file=io.StringIO(), width=width, height=height, record=True, **options)
    console.print(Display(progress))
    return console.export_text(styles=styles)


def test_the_first_line_says_where_the_plan_stands(under_way: Plan) -> None:
    for width in (80, 140):
        first = shown(look(under_way), width).splitlines()[0]
        assert first.startswith("study 2 of 3 · best F1 60.0 %")
        assert "about 2 min left" in first
        assert first.endswith("test set locked")


@pytest.mark.parametrize("width", [80, 140])
def test_the_screen_of_a_plan_under_way(under_way: Plan, width: int) -> None:
    text = shown(look(under_way), width)
    rows = text.splitlines()
    assert re.search(r"├ 1 +setup +done +━+  2/2 +Channels", text)
    assert "chose conv1_channels 4: best of 2, 10.0 points ahead of the runner-up" in text
    assert re.search(r"rate +running +━+╸?─+  5/7 +1 pruned, 1 diverged, 1 failed", text)
    assert re.search(r"shift +idle +─+  0/2 +from setup", text)
    assert re.search(r"└ +final +pending +0/1", text)
    assert "pruned: 1 by median after epoch 2" in text
    assert "diverged: 1 the loss is nan" in text
    assert "failed: 1 error: ValueError" in text
    assert "dying ReLU: trial 0" in text
    assert "still improving: trial 4" in text
    (best,) = [row for row in rows if row.startswith("setup/0")]
    assert "▃█▇▆" in best
    assert "60.0" in best
    (local,) = [row for row in rows if row.startswith("rate/5")]
    # two epochs of its own, then the best trial's
    assert re.search(r"━━━━━╸─+  2/4 +▄▆▇▆ +40\.0  -20\.0 +20 s", local)
    (at,) = [index for index, row in enumerate(rows) if row.startswith("rate/6")]
    # where it has room beside the figures, or else on a row of its own
    assert re.search(r"node-7(:\d+)?  dying ReLU  learning_rate 1e-07", " ".join(rows[at : at + 2]))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 6), (100, 12), (140, 40), (200, 60), (40, 10)])
def test_no_row_is_too_long_and_none_too_many(under_way: Plan, width: int, height: int) -> None:
    rows = shown(look(under_way), width, height).splitlines()
    assert len(rows) <= height
    assert max(map(cell_len, rows)) <= width
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", "".join(rows))
    assert rows[0].startswith("study 2 of 3")


def test_a_short_terminal_loses_what_matters_least(under_way: Plan) -> None:
    progress = look(under_way)
    assert "chose conv1_channels" in shown(progress, 80, 24)
    six = shown(progress, 80, 6)
    assert "rate/5" in six
    assert "running" in six
    assert "├ 1" not in six
    assert "shift" not in six
    assert "… 3 more studies" in shown(progress, 80, 7)


def with_status(progress: Progress, change: Callable[[StudyStatus], StudyStatus]) -> Progress:
    """What was found, with other facts said of every study."""
    studies = [replace(study, status=change(study.status)) for study in progress.studies]
    return replace(progress, studies=studies)


def test_of_studies_the_last_go_first_and_of_decisions_the_oldest(under_way: Plan) -> None:
    decisions = {"setup": "FIRST", "rate": "SECOND", "shift": "THIRD"}
    progress = with_status(
        look(under_way), lambda status: replace(status, decision=decisions.get(status.name, ""))
    )
    seen = []
    for height in range(40, 4, -1):
        rows = shown(progress, 100, height).splitlines()
        said = [word for row in rows for word in decisions.values() if row.endswith(word)]
        assert said == [*decisions.values()][3 - len(said) :]
        here = [name for row in rows for name in ("setup", "final") if re.match(rf"[├└] .* {name} ", row)]
        assert here in (["setup", "final"], ["setup"], [])
        # the study of the last decision stays as long as that, the one that is worked on to the end
        assert [row for row in rows if re.match("├ .* rate ", row)]
        assert len([row for row in rows if re.match("├ .* shift ", row)]) >= said.count("THIRD")
        seen.append((len(said), len(here)))
    assert {each[0] for each in seen} == {0, 1, 2, 3}
    assert {each[1] for each in seen} == {0, 2}
    assert (1, 0) in seen  # the last decision outlives studies that say nothing new
    rows = shown(progress, 100, 8).splitlines()
    (place,) = [index for index, row in enumerate(rows) if row == "… 3 more studies"]
    assert place > max(index for index, row in enumerate(rows) if "rate " in row)
    two = watch(under_way, ["setup", "rate"]).look()
    assert "… 1 more study\n" in shown(two, 100, 8)


@pytest.mark.parametrize("width", [30, 40, 50, 60, 70, 80, 100, 140])
def test_the_first_line_keeps_what_fits(under_way: Plan, finished: Path, width: int) -> None:
    for progress in (look(under_way), look(find_plan(finished))):
        first = shown(progress, width).splitlines()[0]
        whole = shown(progress, 200).splitlines()[0]
        parts = [re.sub(r" \(.*\)", "", part) for part in first.rstrip("…").split(" · ")]
        assert all(part in whole for part in parts)
        assert cell_len(first) <= width
        if width >= (70 if progress.is_over else 60):
            assert "…" not in first
            assert re.search("test set (locked|opened)$", first)
        if width == 140:
            assert first == whole


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "5 s"), (47, "45 s"), (151, "3 min"), (5399, "90 min"), (5401, "1 h 30 min")]
)
def test_time_left_is_no_more_exact_than_it_is(under_way: Plan, seconds: float, text: str) -> None:
    assert f"about {text} left" in shown(replace(look(under_way), seconds_left=seconds), 140)


def test_why_and_what_was_found_is_counted_the_most_first(under_way: Plan) -> None:
    progress = look(under_way)
    reasons = {"pruned": {f"reason-{n}": n for n in range(1, 9)}, "failed": {}}
    flags = {"dying ReLU": range(8), "diverged": range(6)}
    (setup, rate, *rest) = progress.studies
    studies = [setup, replace(rate, reasons=reasons, flags=flags, n_lost=1), *rest]
    text = shown(replace(progress, studies=studies), 140)
    listed = "; ".join(f"{n} reason-{n}" for n in range(8, 2, -1))
    assert f"pruned: {listed} and 2 more\n" in text
    assert "failed: " not in text
    assert "dying ReLU: trials 0, 1, 2, 3, 4, 5 and 2 more\n" in text
    assert "diverged: trials 0, 1, 2, 3, 4, 5\n" in text
    assert "1 attempt lost with its worker, tried again" in text
    studies[1] = replace(rate, n_lost=2)
    assert "2 attempts lost with their workers, tried again" in shown(replace(progress, studies=studies), 140)


def test_notes_are_said_below_the_first_line_the_last_two(under_way: Plan) -> None:
    console = Screen(file=io.StringIO(), width=80, height=24, record=True)
    console.print(Display(look(under_way), ["one", "two", HOSTILE]))
    rows = console.export_text().splitlines()
    assert rows[1] == "two"
    assert rows[2].startswith("[red]x[/red] \\x1b[2J\\u202e<b> nnn")


@pytest.mark.parametrize("width", [40, 80, 140])
def test_hostile_names_bend_no_row(under_way: Plan, width: int) -> None:
    progress = with_status(
        look(under_way),
        lambda status: (
            replace(status, name=HOSTILE, section=f"\x1b{HOSTILE}", decision=HOSTILE)
            if status.name == "rate"
            else status
        ),
    )
    running = [replace(each, study=HOSTILE, host=HOSTILE, point=HOSTILE) for each in progress.running]
    studies = [
        replace(each, title=HOSTILE, inherits=f"{HOSTILE}2", reasons={"pruned": {HOSTILE: 1}})
        for each in progress.studies
    ]
    text = shown(replace(progress, studies=studies, running=running), width)
    rows = text.splitlines()
    assert max(map(cell_len, rows)) <= width
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", "".join(rows))
    # states and counts stand below one another
    places = {found.start() for row in rows if (found := re.search(" [0-9]/[0-9]", row)) and row[0] in "├└"}
    assert len(places) == (width > 40)


def test_what_no_study_has_takes_no_room(under_way: Plan) -> None:
    text = shown(with_status(look(under_way), lambda status: replace(status, section="")), 80)
    assert "\n├ setup " in text


def test_a_curve_is_drawn_over_all_epochs_of_its_run(under_way: Plan) -> None:
    progress = look(under_way)
    assert progress.best is not None
    best = replace(progress.best, curve=[0.5] * 22 + [1.0] * 11)
    curves = (
        (33, [math.nan] * 2, "gdddddddddd", "▁▄▄▄▄▄▄████"),
        (33, [n / 40 for n in range(1, 21)], "mmmmmmgdddd", "▁▂▂▃▃▄▄████"),
        (33, [0.5] * 3 + [0.9] * 30, "gggggggmmmm", "▄██████████"),
        (44, [0.9] * 44, "gggggmmmggg", "███████████"),
        (2, [0.6], "gd", "▅▄"),
    )
    running = [replace(progress.running[0], epochs=epochs, curve=curve) for epochs, curve, _, _ in curves]
    progress = replace(progress, best=best, running=running)
    text = shown(progress, 80, 60, force_terminal=True, color_system="standard", styles=True)
    codes = {"32": "g", "35": "m", "2": "d"}
    rows = [row for row in text.splitlines() if re.search(r"rate/5|setup/0.*best so far", row)]
    drawn = [re.findall(r"\x1b\[(32|35|2)m([▁▂▃▄▅▆▇█]+)", row) for row in rows]
    found = [
        ("".join(codes[code] * len(part) for code, part in row), "".join(part for _, part in row))
        for row in drawn
    ]
    # 33 epochs in 11 columns: the last of each three; behind the own ones, dim, those of the best trial
    assert found == [("ddddddddddd", "▄▄▄▄▄▄▄████"), *((colours, blocks) for _, _, colours, blocks in curves)]


def test_a_trial_that_is_being_prepared_is_starting(under_way: Plan) -> None:
    progress = look(under_way)
    running = [replace(progress.running[0], epochs=0, curve=[], flags=[], silent_seconds=40.0)]
    text = shown(replace(progress, running=running), 80)
    assert re.search(r"^rate/5 +starting$", text, re.MULTILINE)
    assert "\n  silent for 40 s  learning_rate 1e-06\n" in text
    nobody = replace(progress, running=[], seconds_left=None)
    assert "no worker is training" in shown(nobody, 80)
    assert " · no worker · " in shown(nobody, 80).splitlines()[0]
    over = replace(nobody, studies=[replace(study, is_over=True) for study in nobody.studies])
    assert "no worker" not in shown(over, 80)


def test_workers_of_its_own_are_about_to_train_not_missing(under_way: Plan) -> None:
    nobody = replace(look(under_way), running=[], seconds_left=None)
    console = Screen(file=io.StringIO(), width=80, height=40, record=True)
    console.print(Display(nobody, has_workers=True))
    text = console.export_text()
    assert "trials are starting · test set" in text.splitlines()[0]
    assert re.search(r"shift +starting ", text)
    assert "the next trials are starting" in text
    assert "no worker" not in text
    assert "idle" not in text


def test_a_part_of_a_plan_is_counted_as_what_was_asked_for(under_way: Plan) -> None:
    asked = watch(under_way, ["setup", "rate"]).look()
    assert shown(asked, 80).startswith("study 2 of 2 asked for · ")


def test_what_is_stopped_counts_studies_where_any_were_asked_for(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"setup": "[search]\nconv1_channels = [4, 8]"})
    advance(plan)
    Worker(plan).finish(Worker(plan).claim("setup"), [0.5])
    assert stopped_text(look(plan)).endswith("Done: 0 of 1 studies, 1 of 2 points; open: setup, final")
    alone = replace(look(plan), studies=look(plan).studies[-1:])  # as a run for claims has it
    assert stopped_text(alone).endswith("Done: 0 of 1 points; open: final")


def test_the_test_set_is_being_read_until_the_final_stage_has_ended(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"setup": "[search]\nconv1_channels = [4]"})
    advance(plan)
    worker = Worker(plan)
    worker.finish_all("setup", [0.5])
    assert "test set locked" in shown(look(plan), 140)
    final = worker.claim("final")
    assert "test set being read" in shown(look(plan), 140)
    worker.finish(final, [0.5])
    extend(plan, "setup", {"conv1_channels": [8]})  # a study that is yet to be trained
    plan = Plan.open(plan.storage)
    assert "test set opened" in shown(replace(look(plan), test=None), 140)


def test_parameters_are_whole_beside_the_figures_or_below(under_way: Plan) -> None:
    progress = look(under_way)
    places = set()
    for width in range(80, 141):
        rows = shown(progress, width).splitlines()
        (row,) = [row for row in rows if row.endswith("  learning_rate 1e-06")]
        places.add(row[:4])
    assert places == {"  le", "rate"}


def test_what_is_wrong_with_a_trial_stays_longer_than_its_parameters(under_way: Plan) -> None:
    progress = look(under_way)
    for height in range(40, 10, -1):
        text = shown(progress, 80, height)
        assert "node-7  dying ReLU  learning_rate 1e-07" in text
    assert "learning_rate 1e-06" not in text


def test_a_decision_has_two_rows_where_there_is_room(under_way: Plan) -> None:
    progress = with_status(look(under_way), lambda status: replace(status, decision="word " * 60 + "END"))
    two = [row for row in shown(progress, 80, 60).splitlines() if "word" in row]
    assert len(two) == 2 * len(progress.studies)
    (one,) = [row for row in shown(progress, 80, 16).splitlines() if "word" in row]
    assert one.endswith("…")
    hostile = with_status(progress, lambda status: replace(status, decision="\x1b" * 40 + "END"))
    assert "x1bEND" in shown(hostile, 100, 60).replace("\n│     ", "")


@pytest.mark.parametrize("width", range(30, 140, 10))
def test_a_row_that_is_cut_ends_before_a_number_or_after_it(under_way: Plan, width: int) -> None:
    progress = look(under_way)
    words = {word for row in shown(progress, 400).splitlines() for word in row.split()}
    for row in shown(progress, width).splitlines():
        if row.endswith("…"):
            last = row.removesuffix("…").split()[-1]
            assert not re.fullmatch(r"[\d.+-]+", last) or last in words, row


def test_of_many_workers_it_says_how_many_more(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    worker = Worker(plan)
    (first, *_), n_workers = plan.specs, 2
    for number in range(n_workers):
        worker.report(worker.claim(first, {**REMOTE, "pid": number}), [0.1])
    progress = look(plan)
    many = Progress(**{**vars(progress), "running": [*progress.running] * 20})
    text = shown(many, 80, 24)
    assert len(text.splitlines()) <= 24
    (more,) = re.findall(r"… (\d+) more workers", text)
    assert int(more) + len(re.findall("^setup/", text, re.MULTILINE)) == 40
    assert "40 trials at once" in text.splitlines()[0]


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


def test_a_worker_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    advance(plan)
    worker = Worker(plan)
    ended = subprocess.Popen(["true"])
    ended.wait()
    worker.claim("setup", {**this_process(), "pid": ended.pid})
    progress = look(plan)
    assert math.isinf(progress.running[0].silent_seconds)
    assert "its process is gone" in shown(progress, 100)


def test_a_finished_plan(finished: Path) -> None:
    plan = find_plan(finished)
    progress = look(plan)
    assert progress.is_over
    text = shown(progress, 140)
    first = text.splitlines()[0]
    assert first.startswith("2 of 2 studies decided · best F1 ")
    assert re.search(r"test F1 [\d.]+ ± [\d.]+ % · test set opened$", first)
    decision = plan.decision("shape")
    assert decision is not None
    assert decision.text in text
