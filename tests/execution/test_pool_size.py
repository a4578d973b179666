"""How many trials at once: what is measured while they train, and what is made of it."""

from collections.abc import Callable
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.execution.pool import GAIN, SETTLE_SECONDS, WINDOW_SECONDS, SizeSearch, Throughput

SIZES = [1, 2, 4, 8, 16]


def searched(rate_of: Callable[[int], float], most: int = 16) -> SizeSearch:
    search = SizeSearch(most)
    while not search.is_done:
        search.add(rate_of(search.size))
    return search


@given(st.floats(1, 1e6), st.lists(st.floats(0.2, 3), min_size=4, max_size=4), st.sampled_from(SIZES))
def test_the_size_found_is_about_the_fastest_and_never_much_slower_than_one(
    first: float, gains: list[float], most: int
) -> None:
    # twice as many bring less each time: after a size that brings nothing there is none that does
    rates = list(accumulate(sorted(gains, reverse=True), mul, initial=first))
    by_size = dict(zip(SIZES, rates, strict=True))
    found = searched(by_size.__getitem__, most)
    possible = [rate for size, rate in by_size.items() if size <= most]
    # each step that is not taken gives up less than one gain
    assert by_size[found.size] >= max(possible) / GAIN ** len(SIZES)
    assert by_size[found.size] * GAIN ** len(SIZES) >= by_size[1]
    assert by_size[found.size] >= max(found.rates.values(), default=0) / GAIN
    assert found.size <= most


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({1: 69, 2: 109, 4: 166, 8: 226, 16: 220}, 8),  # one H200, thousands of images a second
        ({1: 69, 2: 60, 4: 50, 8: 40, 16: 30}, 1),
        ({1: 10, 2: 10, 4: 10, 8: 10, 16: 10}, 1),  # of equal ones the smallest, which takes least memory
        ({1: 1, 2: 2, 4: 4, 8: 8, 16: 16}, 16),
    ],
)
def test_sizes_are_tried_until_the_fastest_is_known(rates: dict[int, float], size: int) -> None:
    assert searched(rates.__getitem__).size == size


def test_where_nothing_is_counted_the_first_size_stays() -> None:
    assert searched(lambda size: 0).size == 4


def test_a_full_pool_is_measured_once_nothing_is_recorded() -> None:
    now, is_recording, search = [0.0], [True], SizeSearch(16)
    throughput = Throughput(search, lambda: is_recording[0], lambda: now[0])

    def looked(seconds: float, is_full: bool = True) -> int:
        size = search.size
        for _ in range(int(2 * seconds)):
            now[0] += 0.5
            throughput.count(500 * search.size)
            size = throughput.look(is_full=is_full)
        return size

    assert looked(60, is_full=False) == 4
    assert looked(SETTLE_SECONDS - 1) == 4
    is_recording[0] = False
    looked(WINDOW_SECONDS + 3)
    assert search.rates[4] == pytest.approx(4000)
    assert search.size == 8
    is_recording[0] = True  # for ever: every trial has another shape
    assert looked(SETTLE_SECONDS + WINDOW_SECONDS + 2) == 16
    assert search.rates[8] == pytest.approx(8000)
    assert not search.is_done
    looked(SETTLE_SECONDS + WINDOW_SECONDS + 2)
    assert search.is_done
    assert looked(60) == search.size == 16
