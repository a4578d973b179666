"""Verdicts on fresh seeds: the error rates that they keep, and the laws of the procedure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.planning.verdicts import (
    ERROR_RATE,
    LOOKS,
    P_VALUES,
    SHARE_SPENT,
    Comparison,
    Verdict,
    bounds,
    judge,
    p_values,
)

DELTA = 0.5
FEW_LOOKS = (3, 5, 8)
numbers = st.floats(-8, 8).map(lambda value: round(value, 3))
seeds = st.lists(numbers, min_size=LOOKS[0], max_size=LOOKS[-1])
plans = st.dictionaries(st.sampled_from("abcdef"), seeds, min_size=1)


def draws(seed: int, n_plans: int, n_seeds: int = LOOKS[-1]) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(seed).normal(0, 0.5, (n_plans, n_seeds)).tolist()
    return found


def one(differences: Sequence[float], looks: tuple[int, ...] = LOOKS) -> Comparison:
    return judge({"change": differences}, DELTA, looks)["change"]


@pytest.mark.parametrize("looks", [LOOKS, FEW_LOOKS, (12,)], ids=str)
@pytest.mark.parametrize("error_rate", [0.05, 0.01])
def test_the_bounds_let_their_error_rate_through(error_rate: float, looks: tuple[int, ...]) -> None:
    n_tried = 40_000
    values = np.random.default_rng(7).normal(0, 3, (n_tried, looks[-1]))  # not those that the bounds are from
    means = [values[:, :n].mean(axis=1) / (values[:, :n].std(axis=1, ddof=1) / math.sqrt(n)) for n in looks]
    limits = bounds(error_rate, looks)
    crossed = np.any([each > limit for each, limit in zip(means, limits, strict=True)], axis=0).mean()
    spent = SHARE_SPENT * error_rate
    assert crossed == pytest.approx(spent, abs=4 * math.sqrt(spent / n_tried))


def test_a_single_look_is_a_t_test() -> None:
    rate = 0.05 / SHARE_SPENT
    assert bounds(rate, (12,))[0] == pytest.approx(1.796, abs=0.02)  # Student's t, 11 degrees of freedom


def test_bounds_fall_from_look_to_look_and_rise_with_the_demand() -> None:
    for error_rate in (0.05, 0.01):
        limits = bounds(error_rate)
        assert list(limits) == sorted(limits, reverse=True)
    assert all(strict > lax for strict, lax in zip(bounds(0.01), bounds(0.05), strict=True))


def test_what_is_plain_is_shown_at_once_and_what_is_not_takes_seeds() -> None:
    rng = np.random.default_rng(3)
    plain = rng.normal(5.0, 0.1, LOOKS[-1]).tolist()
    assert one(plain[: LOOKS[0]]).verdict == Verdict.BETTER
    assert one([-value for value in plain[: LOOKS[0]]]).verdict == Verdict.WORSE
    assert one([value - 5.0 for value in plain[: LOOKS[1]]]).verdict == Verdict.EQUIVALENT
    slight = rng.normal(0.35, 0.4, LOOKS[-1]).tolist()
    assert one(slight[: LOOKS[0]]).verdict is None
    assert one(slight).verdict is not None


def test_nothing_is_shown_before_the_first_look_and_everything_ends_with_the_last() -> None:
    for differences in draws(1, 30):
        early = one(differences[: LOOKS[0] - 1])
        assert early.verdict is None
        assert early.n_seeds == LOOKS[0] - 1
        assert one(differences).verdict is not None


def test_equal_differences_end_without_a_fault() -> None:
    assert one([0.0] * LOOKS[0]).verdict == Verdict.EQUIVALENT
    assert one([2.0] * LOOKS[0]).verdict == Verdict.BETTER
    assert one([-2.0] * LOOKS[0]).verdict == Verdict.WORSE
    assert one([2.0] * LOOKS[0]).interval == (2.0, 2.0)


def test_useless_changes_are_called_better_in_five_plans_of_a_hundred_at_most() -> None:
    n_plans, n_decisions = 1500, 4
    wrong = 0
    for number in range(n_plans):
        differences = {str(name): each for name, each in enumerate(draws(number, n_decisions))}
        wrong += any(each.verdict == Verdict.BETTER for each in judge(differences, DELTA).values())
    assert wrong / n_plans <= ERROR_RATE + 2 * math.sqrt(ERROR_RATE / n_plans)
    assert wrong > 0  # it is not by never saying anything


def test_a_difference_of_delta_is_called_equivalent_in_one_of_twenty_at_most() -> None:
    found = [one([DELTA + value for value in each]).verdict for each in draws(99, 1500)]
    assert found.count(Verdict.EQUIVALENT) / len(found) <= ERROR_RATE + 2 * math.sqrt(ERROR_RATE / len(found))


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    n_held, n_plans = 0, 1500
    for differences in draws(5, n_plans):
        taken = next(n for n in LOOKS if one([0.3 + value for value in differences[:n]]).verdict is not None)
        interval = one([0.3 + value for value in differences[:taken]]).interval
        assert interval is not None
        n_held += interval[0] <= 0.3 <= interval[1]
    assert 0.93 <= n_held / n_plans <= 0.97


@given(plans)
def test_the_order_of_the_decisions_does_not_matter(differences: dict[str, list[float]]) -> None:
    backwards = dict(reversed(differences.items()))
    assert judge(differences, DELTA) == judge(backwards, DELTA)


@given(plans, seeds)
def test_one_more_decision_shows_no_other_to_be_better(
    differences: dict[str, list[float]], another: list[float]
) -> None:
    alone, beside = judge(differences, DELTA), judge({**differences, "another": another}, DELTA)
    for name, comparison in alone.items():
        assert comparison.verdict == Verdict.BETTER or beside[name].verdict != Verdict.BETTER


@given(plans, st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_unit_does_not_matter(differences: dict[str, list[float]], factor: float) -> None:
    scaled = {name: [factor * value for value in each] for name, each in differences.items()}
    found, again = judge(differences, DELTA), judge(scaled, factor * DELTA)
    assert {name: each.verdict for name, each in found.items()} == {
        k: each.verdict for k, each in again.items()
    }


@given(seeds)
def test_what_was_shown_stays_shown(differences: list[float]) -> None:
    verdicts = [one(differences[:n]).verdict for n in LOOKS if n <= len(differences)]
    better = [verdict == Verdict.BETTER for verdict in verdicts]
    assert better == sorted(better)


@given(seeds)
def test_seeds_between_two_looks_change_no_verdict(differences: list[float]) -> None:
    taken = max(n for n in LOOKS if n <= len(differences))
    assert one(differences).verdict == one(differences[:taken]).verdict
    assert one(differences).n_seeds == len(differences)


@given(plans)
def test_p_says_at_the_error_rate_what_the_verdict_says(differences: dict[str, list[float]]) -> None:
    found, p_of = judge(differences, DELTA), p_values(differences)
    for name, comparison in found.items():
        alone, among_all = p_of[name]
        assert 0 < alone <= among_all <= 1
        assert (among_all <= ERROR_RATE + 1e-12) == (comparison.verdict == Verdict.BETTER)


def test_the_bounds_of_every_p_lie_in_order() -> None:
    limits = [bounds(rate) for rate in P_VALUES]
    for strict, lax in itertools.pairwise(limits):
        assert all(high >= low for high, low in zip(strict, lax, strict=True))
