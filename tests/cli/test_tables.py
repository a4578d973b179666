"""What commands print for people, at every width: a number is whole, whatever becomes of texts."""

from __future__ import annotations

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from hpo.cli.grid import Grid, Kind, shortened
from hpo.cli.tables import Screen, show_forecast, show_recipe
from hpo.execution.forecast import Line
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from tests.support.fixtures import Cli
from tests.support.scripted_worker import Worker, new_plan

NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?(/(\d+|–))?")
WIDTHS = [20, 30, 40, 55, 66, 80, 100]
WIDE = """
    title = "Both layers"
    section = "4.1"
    [search]
    conv1_channels = [4, 16]
    conv1_kernel = [3, 5]
    conv2_channels = [4, 128]
    hidden_units = [16]
"""


def numbers(text: str) -> Counter[str]:
    """The numbers of a text that stand alone."""
    words = (word.strip("()[],;:%") for word in text.split())
    return Counter(word for word in words if NUMBER.fullmatch(word))


def check_numbers(shown: Callable[[int], str]) -> None:
    """No width breaks a number, or leaves one out that stands in no shortened text."""
    whole = numbers(shown(1000))
    assert whole
    for width in WIDTHS:
        text = shown(width)
        assert numbers(text).keys() <= whole.keys(), f"{width} columns:\n{text}"
        if "…" not in text:
            assert numbers(text) >= whole, f"{width} columns:\n{text}"


def printed(thing: object, width: int) -> str:
    screen = Screen(file=io.StringIO(), width=width, record=True)
    screen.print(thing)
    return screen.export_text()


def test_the_numbers_of_a_text_are_found() -> None:
    assert numbers("F1 2.306, (-0.5) 1e-07; 10/– 1,234 conv1 x2") == Counter(
        ["2.306", "-0.5", "1e-07", "10/–", "1,234"]
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan with four axes, one point of which has failed for good."""
    plan = new_plan(tmp_path_factory.mktemp("wide"), {"setup": WIDE})
    advance(plan)
    Worker(plan).finish_all("setup", [0.2, 0.456789, 0.3, 0.4])
    return plan


SHOWN = [
    ("under_way", "status"),
    ("under_way", "best"),
    ("under_way", "show", "setup"),
    ("under_way", "show", "rate"),
    ("under_way", "show", "setup/0"),
    ("under_way", "show", "rate/2"),
    ("under_way", "show", "rate/5"),
    ("under_way", "show", "rate/7"),
    ("under_way", "compare", "setup/0", "setup/1"),
    ("wide", "status"),
    ("wide", "show", "setup"),
    ("wide", "show", "setup/3"),
    ("wide", "compare", "setup/0", "setup/3"),
]


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_no_command_prints_half_a_number(
    words: tuple[str, ...], request: pytest.FixtureRequest, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    which, *command = words
    plan: Plan = request.getfixturevalue(which)

    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        result = cli(*command, "--storage", plan.storage.url)
        assert result.code == 0, result.err
        return result.out

    check_numbers(shown)


def test_a_point_stands_below_its_numbers_before_every_row_becomes_a_list(
    wide: Plan, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = cli("show", "setup", "--storage", wide.storage.url).out
    point = "conv1_channels 4, conv1_kernel 3, conv2_channels 4"
    assert re.search(rf"^ +0 +[\d.]+ .* complete\n  {point}", shown, re.M), shown


@pytest.mark.parametrize(
    "words", [("final",), ("best",), ("show", "final"), ("show", "final/0"), ("status",)]
)
def test_the_answer_is_whole_at_every_width(
    words: tuple[str, ...], finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        result = cli(*words, "--out", finished)
        assert result.code == 0, result.err
        return result.out

    check_numbers(shown)


def test_two_plans_side_by_side_are_whole_at_every_width(
    finished: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):  # numbers of a long path are no numbers of the table's
        Path(name).mkdir()
        shutil.copy(finished / "hpo.db", name)

    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        result = cli("compare", "one", "two")
        assert result.code == 0, result.err
        return result.out

    check_numbers(shown)


def test_a_forecast_and_a_recipe_are_whole_at_every_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo.execution.doctor import try_recipe

    found = try_recipe("constrained-cnn", "digits", "cpu", "fp32")
    lines = [Line("n" * 40, "4.1", 16, 3, 1234, 3600.0), Line("short", "", 1, 1, 5, None)]
    for show in (lambda: show_forecast(lines), lambda: show_recipe(found)):

        def shown(width: int, show: Callable[[], None] = show) -> str:
            monkeypatch.setenv("COLUMNS", str(width))
            show()
            return capsys.readouterr().out

        check_numbers(shown)


CELLS = {
    Kind.NUMBER: st.floats(allow_nan=False).map(lambda value: f"{value:.4g}"),
    Kind.WORD: st.sampled_from(["complete", "pruned", "2/16"]),
    Kind.NAME: st.text("ab-1234日本", max_size=30),
    Kind.TEXT: st.lists(st.sampled_from(["learning_rate", "0.0001", "12", "日本語"])).map(" ".join),
    Kind.SENTENCE: st.lists(st.sampled_from(["kept", "0.0001:", "by", "12.5", "points"]), max_size=30).map(
        " ".join
    ),
}


@st.composite
def grids(draw: st.DrawFn) -> tuple[Grid, list[list[str]], list[Kind]]:
    kinds = draw(st.lists(st.sampled_from(Kind), min_size=1, max_size=9))
    grid = Grid(*[(f"head_{at} of it", kind) for at, kind in enumerate(kinds)])
    rows = draw(st.lists(st.tuples(*[CELLS[kind] for kind in kinds]), min_size=1, max_size=4))
    for row in rows:
        grid.add(*row)
    return grid, [[*row] for row in rows], kinds


@given(grids(), st.integers(20, 150))
def test_a_grid_keeps_to_its_width_and_every_number(
    made: tuple[Grid, list[list[str]], list[Kind]], width: int
) -> None:
    grid, rows, kinds = made
    text = printed(grid, width)
    assert max(map(cell_len, text.split("\n"))) <= width
    kept = numbers(text)
    for row in rows:
        for kind, cell in zip(kinds, row, strict=True):
            if kind is not Kind.NAME:
                assert numbers(cell).keys() <= kept.keys(), text


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("learning_rate", 20, "learning_rate"),
        ("learning_rate", 9, "learning…"),
        ("trial 12345 of", 9, "trial…"),
        ("x 1e-07 y", 6, "x…"),
        ("at 12.75 %", 6, "at…"),
        ("日本語日本語", 6, "日本…"),
        ("12345", 3, "…"),
    ],
)
def test_a_text_is_shortened_beside_its_numbers(text: str, width: int, short: str) -> None:
    assert str(shortened(Text(text), width)) == short


def test_a_sentence_stands_below_its_row_where_a_column_would_be_narrow() -> None:
    grid = Grid(("study", Kind.NAME), ("best F1 %", Kind.NUMBER), ("decision", Kind.SENTENCE))
    sentence = "kept learning_rate 0.001: 5.0 points ahead of learning_rate 0.0001 (one seed, not tested)"
    grid.add("learning-rate", "93.1", sentence)
    grid.add("mixup", "–", "")
    assert sentence in printed(grid, 130)
    lines = printed(grid, 50).splitlines()
    assert lines[0].split() == ["study", "best", "F1", "%"]
    assert lines[2:] == [
        "  kept learning_rate 0.001: 5.0 points ahead of",
        "  learning_rate 0.0001 (one seed, not tested)",
        "mixup                  –",
    ]
