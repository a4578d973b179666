"""Two objectives: the Pareto front, and the rule that names the point which is carried on."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import InputError
from hpo.space.choice import Choice, front
from hpo.space.parameters import Direction

NAMES = ("macro_f1", "n_parameters")
WAYS: Mapping[str, Direction] = {"macro_f1": "maximize", "n_parameters": "minimize"}
POINTS = [(0.70, 900), (0.81, 400), (0.815, 800), (0.60, 100), (0.80, 300)]


def picked(text: str, points: list[tuple[float, int]] = POINTS) -> int | None:
    found = [dict(zip(NAMES, point, strict=True)) for point in points]
    ranks = Choice.parse(text, NAMES).ranks(found, WAYS)
    return None if ranks is None else ranks.index(max(ranks))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best macro_f1", 2),
        ("best n_parameters", 3),
        ("smallest n_parameters", 3),
        ("largest macro_f1", 2),
        ("best macro_f1 with n_parameters <= 500", 1),
        ("best macro_f1 with n_parameters <= 5_00 and n_parameters != 400", 4),
        ("smallest n_parameters within 0.01 of best macro_f1", 1),
        ("smallest n_parameters within 0.02 of best macro_f1", 4),
        ("smallest n_parameters within 0 of best macro_f1", 2),
        ("smallest n_parameters  within 0.02 of best macro_f1 with n_parameters > 300 ", 1),
        ("smallest n_parameters with macro_f1 >= 0.7", 4),
        ("best macro_f1 within 300 of best n_parameters", 1),
        ("best macro_f1 with macro_f1 > 0.9", None),
    ],
)
def test_a_rule_names_a_point(text: str, expected: int | None) -> None:
    assert picked(text) == expected
    assert picked(str(Choice.parse(text, NAMES))) == expected  # as it is told


def test_of_equal_ones_the_better_by_the_other_objective_then_the_first() -> None:
    assert picked("best macro_f1", [(0.8, 5), (0.8, 3), (0.8, 3)]) == 1
    assert picked("smallest n_parameters", [(0.7, 3), (0.8, 3), (0.8, 3)]) == 1


def test_what_lacks_an_objective_is_out_of_the_question() -> None:
    found = [{"macro_f1": 0.9}, {"macro_f1": 0.5, "n_parameters": 3.0}]
    ranks = Choice.parse("best macro_f1", NAMES).ranks(found, WAYS)
    assert ranks is not None
    assert ranks.index(max(ranks)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must read '<best|smallest|largest> NAME'"),
        ("most macro_f1", "must read"),
        ("best macro_f1 at n_parameters < 3", "must read"),
        ("best accuracy", "accuracy is not one of the objectives, macro_f1 and n_parameters"),
        ("best n_paramters", "n_paramters is not one of the objectives, macro_f1 and n_parameters"),
        ("smallest n_parameters within 0.01 of best accuracy", "accuracy is not one of the objectives"),
        ("best macro_f1 within 0.01 of best macro_f1", "macro_f1 is on both sides"),
        ("smallest n_parameters within a bit of best macro_f1", "must read"),
        ("smallest n_parameters within much of best macro_f1", "within much: must be a number"),
        (
            "smallest n_parameters within -1 of best macro_f1",
            "within -1: must be a number that is not negative",
        ),
        ("smallest n_parameters within nan of best macro_f1", "within nan: must be a number"),
        ("best macro_f1 with n_parameters", "'n_parameters' is not a comparison"),
        ("best macro_f1 with width < 3", "width is not one of the objectives"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^choose = ") as caught:
        Choice.parse(text, NAMES)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("smallest n_parameters", True), ("largest n_parameters", False), ("smallest macro_f1", False)],
)
def test_who_asks_for_the_worst_is_told(text: str, is_right: bool) -> None:
    choice = Choice.parse(text, NAMES)
    if is_right:
        choice.check_directions(WAYS)
    else:
        with pytest.raises(InputError, match=f"is the worst; write 'best {choice.objective}'"):
            choice.check_directions(WAYS)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_a_front_is_what_no_other_dominates(scores: list[tuple[float, float]]) -> None:
    def is_dominated(one: tuple[float, float]) -> bool:
        return any(all(a >= b for a, b in zip(each, one, strict=True)) and each != one for each in scores)

    assert front(scores) == [place for place, each in enumerate(scores) if not is_dominated(each)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.integers(0, 3))
def test_what_a_rule_chooses_is_on_the_front(points: list[tuple[int, int]], within: int) -> None:
    on_front = front([(value, -cost) for value, cost in points])
    for text in ("best macro_f1", f"smallest n_parameters within {within} of best macro_f1"):
        place = picked(text, [(float(value), cost) for value, cost in points])
        assert place is not None
        assert points[place] in [points[each] for each in on_front]
