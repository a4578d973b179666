"""What plans and results show of themselves: the commands' words as HTML, as text, and as plain records."""

from __future__ import annotations

import html
import json
import pickle
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import hpo as library
from hpo.api.html import progress_html
from hpo.api.records import as_text
from hpo.cli.screen import Display
from hpo.monitor import results
from hpo.monitor import status as states
from hpo.planning.plan import Plan
from tests.support.fixtures import Cli
from tests.support.scripted_worker import HOSTILE, look

THEMES = {"light": ("true", (255, 255, 255)), "dark": ("false", (17, 17, 17))}
"""What JupyterLab says of a theme, and the background of its outputs."""
MIN_CONTRAST = 4.5  # of text, as WCAG 2 asks
MEASURE = """() => [...document.querySelectorAll('.hpo-shown *')]
    .filter(each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())
        && !each.closest('style, title'))
    .map(each => ({text: each.textContent.slice(0, 40), colour: getComputedStyle(each).color,
        mark: getComputedStyle(each.closest('tbody') ?? each).backgroundColor}))"""


class Words(HTMLParser):
    """The text of a page, and whether every element that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag != "span":
            self.text += " "

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text += data


def words(text: str) -> list[str]:
    """The words of a text, without what draws lines, bars and curves."""
    return re.findall(r"[^\s━╸─├└│▁▂▃▄▅▆▇█·…`]+", text)


def test_a_look_as_html_has_the_words_of_the_screen(under_way: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # the page is wide, and says all that a wide screen does
    progress = look(under_way)
    page = progress_html(progress, ["a note"], about="on what")
    read = Words(page)
    assert not read.open
    missing = set(words(as_text(Display(progress)))) - set(words(read.text))
    assert missing <= {w for w in missing if w in HOSTILE or "nnn" in w}, missing
    assert {"a", "note", "on", "what"} <= set(words(read.text))
    assert page.count("<svg") == 3  # the best so far, and two that are being trained


def test_what_others_wrote_is_text_on_the_page(under_way: Plan) -> None:
    plan = library.find_plan(storage=under_way.storage.url)
    live = progress_html(look(under_way), [HOSTILE], about=HOSTILE)
    assert "<b>" not in live
    assert live.count("&lt;b&gt;") > 3
    for shown in (plan, library.status(plan), library.rows(plan, "rate")):
        page = shown._repr_html_()
        assert "<b>" not in page
        assert html.escape(r"\x1b[2J\u202e<b>") in page
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", repr(shown))


def test_a_page_has_room_for_it_and_its_text_can_be_read(browser: Any, under_way: Plan) -> None:
    plan = library.find_plan(storage=under_way.storage.url)
    shown = "".join(
        each._repr_html_()
        for each in (plan, library.rows(plan, "rate"), library.best(plan), library.status(plan))
    )
    for is_light, background in THEMES.values():
        page = browser.new_page(viewport={"width": 560, "height": 800})
        body = f'<body data-jp-theme-light="{is_light}" style="background: rgb{background}">'
        page.set_content(f"<!doctype html>{body}{shown}")
        for width in (1200, 560, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for each in page.evaluate(MEASURE):
            below = numbers(each["mark"])
            behind = background if len(below) == 4 else below[:3]  # transparent: the page's
            assert contrast(numbers(each["colour"])[:3], behind) >= MIN_CONTRAST, each
        page.close()


def numbers(colour: str) -> tuple[float, ...]:
    return tuple(map(float, re.findall(r"[\d.]+", colour)))


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: tuple[float, ...]) -> float:
        shares = [value / 255 for value in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_results_are_the_records_that_they_were(finished: Path) -> None:
    plan = library.find_plan(finished)
    for ours, plain in (
        (library.rows(plan, "rate"), results.rows(plan, "rate")),
        (library.status(plan), states.status(plan)),
        (library.best(plan), results.best(plan)),
        (library.final_result(plan), results.final_result(plan)),
    ):
        assert ours == plain
        copy = pickle.loads(pickle.dumps(ours))
        assert copy == plain
        assert type(copy) is type(plain)
    final = library.final_result(plan)
    assert json.loads(json.dumps(final)) == final


def test_a_folder_or_url_stands_for_its_plan(finished: Path) -> None:
    plan = library.find_plan(finished)
    for place in (finished, str(finished), plan.storage.url):
        assert library.find_plan(place).name == plan.name
        assert library.status(place) == library.status(plan)
        assert library.rows(place, "rate") == library.rows(plan, "rate")
        assert library.best(place) == library.best(plan)
        assert library.final_result(place) == library.final_result(plan)
        assert library.export(place) == library.export(plan)
        assert library.export_epochs(place) == library.export_epochs(plan)
        assert library.trials_frame(place).equals(library.trials_frame(plan))
        assert library.epochs_frame(place).equals(library.epochs_frame(plan))
        assert words(repr(library.status(place))) == words(repr(library.status(plan)))


def test_a_folder_without_a_plan_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(library.HpoError, match="no database here"):
        library.status(tmp_path)


def test_results_say_at_a_prompt_what_the_commands_print(finished: Path, cli: Cli) -> None:
    plan = library.find_plan(finished)
    for shown, command in (
        (library.status(plan), ["status"]),
        (library.rows(plan, "rate"), ["show", "rate"]),
        (library.best(plan), ["best"]),
        (library.final_result(plan), ["final"]),
    ):
        printed = words(cli(*command, "--out", finished).out)
        assert words(repr(shown)) == printed[: len(words(repr(shown)))]
        assert set(words(repr(shown))) <= set(words(Words(shown._repr_html_()).text))


def test_a_plan_says_where_it_stands(finished: Path) -> None:
    plan = library.find_plan(finished)
    for text in (repr(plan), Words(plan._repr_html_()).text):
        said = " ".join(words(text))
        assert "200 + 100 images" in said
        assert "2 of 2 studies decided" in said
        for name in ("rate", "shape"):
            decision = plan.decision(name)
            assert decision is not None
            assert " ".join(words(decision.text)) in said


def test_a_plan_whose_database_is_gone_says_so(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "hpo.db", tmp_path / "hpo.db")
    plan = library.find_plan(tmp_path)
    best = library.best(plan)
    (tmp_path / "hpo.db").unlink()
    for text in (repr(plan), plan._repr_html_()):
        assert "cannot be read now" in text
    assert "macro F1" in repr(best)


def test_a_study_that_is_not_there_is_refused_as_before(finished: Path) -> None:
    with pytest.raises(library.InputError, match="did you mean 'rate'"):
        library.rows(library.find_plan(finished), "rat")
