"""The report's claims, judged on cells made for the purpose."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from hpo.planning.diagnostics import Finding
from hpo.monitor.results import TrialRow
from hpo.recipes.constrained_cnn import ConstrainedCnn
from hpo.recipes.constrained_cnn.conclusions import CLAIMS
from hpo.recipes.constrained_cnn.contrasts import Cells, seed_noise
from hpo.reporting.data import Point
from hpo.reporting.evidence import Evidence

NUMBERS = itertools.count()
SCHEMA = ConstrainedCnn().schema


def point(f1: float | list[float], *, dead: float = 0.1, died: bool = False, **config: Any) -> Point:
    """A trained configuration: its macro F1 per epoch, of three seeds that differ by one point each."""
    epochs = f1 if isinstance(f1, list) else [f1 / 2, f1]
    layers = {"conv1": {"weight_gradient": 1.0, "bias_gradient": 1.0, "dead_share": dead}}
    history = [
        [{"seed": s, "metrics": {"macro_f1": value + 0.01 * (s - 1)}, "layers": layers} for s in range(3)]
        for value in epochs
    ]
    params = SCHEMA.complete(config)
    row = TrialRow(
        trial=next(NUMBERS),
        point="",
        params=config,
        state="complete",
        reason="",
        earlier=(),
        checkpoint_notes=(),
        attempt=1,
        epochs=len(epochs),
        best_epoch=len(epochs),
        metrics={"macro_f1": max(epochs)},
        std={"macro_f1": 0.01},
        inactive=sorted(SCHEMA.inactive(params)),
        seconds=1.0,
        history=history,
        findings=[Finding("dying ReLU", 1, "conv1", "dying ReLU", 3)] * died,
    )
    return Point("study", row, params, max(epochs), (0, 1, 2))


def judge(claim: str, *points: Point) -> Evidence:
    """What the cells say about the claim that holds this word."""
    (function,) = [function for text, function in CLAIMS.items() if claim in text]
    return function(Cells(points, points, n_classes=10))


@pytest.mark.parametrize(
    "claim", ["channels", "Kernels", "ReLU", "Small batches", "L2", "Batch norm", "Mixup"]
)
def test_a_claim_without_cells_that_contrast_it_is_open(claim: str) -> None:
    assert judge(claim).verdict == "open"
    assert judge(claim, point(0.5), point(0.9, optimizer="sgd")).verdict == "open"


@pytest.mark.parametrize(("small", "verdict"), [(0.7, "confirmed"), (0.5, "denied"), (0.605, "open")])
def test_l2(small: float, verdict: str) -> None:
    # no L2 at all is no small L2, and what differs in more than L2 is no contrast
    others = (point(0.9, l2=0.0), point(0.1, l2=0.1, batch_size=80))
    evidence = judge("L2", point(small, l2=1e-5), point(0.6, l2=1e-3), point(0.6, l2=1e-2), *others)
    assert evidence.verdict == verdict
    assert [float(p.config["l2"]) for p in evidence.points] == [1e-5, 1e-2]


def test_without_seeds_to_measure_noise_by_nothing_is_decided() -> None:
    def first_seed(each: Point) -> Point:
        history = [epoch[:1] for epoch in each.row.history]
        return replace(each, seeds=(0,), row=replace(each.row, history=history))

    points = (point(0.7, l2=1e-5), point(0.3, l2=1e-2))
    assert judge("L2", *points).verdict == "confirmed"
    evidence = judge("L2", *map(first_seed, points))
    assert evidence.verdict == "open"
    assert "no seeds to tell it from noise" in evidence.text
    # one configuration with seeds is enough to know the noise
    cells = Cells(map(first_seed, points), points, 10)
    assert CLAIMS["L2 must be small on a small network"](cells).verdict == "confirmed"


def test_what_was_pruned_is_judged_by_how_far_apart_seeds_are_by_then() -> None:
    def early(f1: float, **params: Any) -> Point:
        """Seeds that are ten times as far apart after the first epoch as after the second."""
        whole = point(f1, **params)
        spread = [{"seed": s, "metrics": {"macro_f1": f1 - 0.1 + 0.1 * (s - 1)}} for s in range(3)]
        return replace(whole, row=replace(whole.row, epochs=2, history=[spread, whole.row.history[-1]]))

    def pruned(each: Point) -> Point:
        return replace(each, row=replace(each.row, state="pruned", epochs=1, history=each.row.history[:1]))

    better, worse = early(0.7, l2=1e-5), early(0.6, l2=1e-2)
    claim = CLAIMS["L2 must be small on a small network"]
    assert claim(Cells([better, worse], [better], 10)).verdict == "confirmed"
    assert claim(Cells([better, pruned(worse)], [better], 10)).verdict == "open"


def test_networks_that_collapsed_say_nothing_of_noise() -> None:
    healthy = point(0.7)
    found = Finding("constant prediction", 1, None, "constant prediction", 1)
    collapsed = replace(healthy, row=replace(healthy.row, findings=[found]))
    assert seed_noise([healthy]).deviation == pytest.approx(0.01)
    assert seed_noise([healthy, collapsed]) == seed_noise([healthy])
    assert seed_noise([collapsed]).deviation is None


def test_the_same_runs_in_two_studies_are_counted_once() -> None:
    first, other = point(0.7), point(0.6, l2=1e-2)
    again = replace(first, study="another")
    assert seed_noise([first, again, other]) == seed_noise([first, other])
    assert seed_noise([first, replace(again, seeds=(10, 11, 12)), other]).df == 6


def test_a_pruned_cell_is_compared_over_the_epochs_that_both_have() -> None:
    late = point([0.2, 0.3, 0.9], l2=1e-5)
    assert judge("L2", late, point([0.2, 0.3], l2=1e-2)).verdict == "open"
    assert judge("L2", late, point([0.2, 0.3, 0.3], l2=1e-2)).verdict == "confirmed"


@pytest.mark.parametrize(
    ("few", "many", "equal", "verdict"),
    [
        (0.5, 0.7, 0.6, "confirmed"),
        (0.5, 0.7, 0.8, "denied"),
        (0.8, 0.7, 0.6, "denied"),
        (0.7, 0.7, 0.6, "open"),
        (None, 0.7, 0.6, "open"),  # the six studies: nobody tried too few
    ],
)
def test_channels(few: float | None, many: float, equal: float, verdict: str) -> None:
    points = [
        point(many, conv1_channels=32, conv2_channels=64),
        point(equal, conv1_channels=64, conv2_channels=64),
    ]
    if few is not None:
        # so many fewer than 64 that they bear on the first half of the claim, as on the second
        points.append(point(few, conv1_channels=16, conv2_channels=48))
        points.append(point(many, conv1_channels=32, conv2_channels=48))
    assert judge("channels", *points).verdict == verdict


@pytest.mark.parametrize(("growing", "verdict"), [(0.7, "confirmed"), (0.5, "denied"), (0.6, "open")])
def test_kernels(growing: float, verdict: str) -> None:
    points = [
        point(growing, conv1_kernel=3, conv2_kernel=5),
        point(growing, conv1_kernel=5, conv2_kernel=7),
        point(0.6, conv1_kernel=5, conv2_kernel=5),
    ]
    evidence = judge("Kernels", *points)
    assert evidence.verdict == verdict
    assert "mean of 2 contrasts" in evidence.text


def test_a_cell_in_two_contrasts_is_counted_once() -> None:
    a, b, c = (
        point(f1, conv1_kernel=one, conv2_kernel=two)
        for f1, one, two in ((0.7, 3, 5), (0.8, 5, 7), (0.6, 5, 5))
    )
    cells = Cells([a, b, c], [a, b, c], 10)
    contrast = cells.contrast([[(1, a), (-1, c)], [(1, b), (-1, c)]])
    assert contrast.difference == pytest.approx(0.15)
    # variances of (a + b) / 2 and of c, each cell the mean of three seeds of deviation 0.01
    assert contrast.standard_error == pytest.approx(0.01 * ((0.25 + 0.25 + 1) / 3) ** 0.5)


@pytest.mark.parametrize(
    ("high", "verdict"),
    [
        (point(0.02, learning_rate=0.01, dead=1.0, died=True), "confirmed"),
        (point(0.3, learning_rate=0.01), "denied"),  # too high it is, and the units live
        (point(0.02, learning_rate=0.01, dead=1.0), "open"),  # dead units, and gradients that still flow
        (point(0.7, learning_rate=0.01), "open"),  # not too high at all
    ],
    ids=["dying", "living", "undecided", "fine"],
)
def test_learning_rate(high: Point, verdict: str) -> None:
    points = (high, point(0.7, learning_rate=0.001), point(0.6, learning_rate=0.0001))
    assert judge("ReLU", *points).verdict == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "confirmed"), (-0.2, "denied"), (0.0, "open")])
def test_interactions(gain: float, verdict: str) -> None:
    norm = [
        point(0.5 + (gain if size == 80 and on else 0), batch_size=size, batch_norm=on)
        for size in (20, 80)
        for on in (False, True)
    ]
    assert judge("Batch norm", *norm).verdict == verdict
    rates = [
        point(0.5 + (gain if (size, rate) == (20, 1e-4) else 0), batch_size=size, learning_rate=rate)
        for size in (20, 80)
        for rate in (1e-3, 1e-4)
    ]
    assert judge("Small batches", *rates).verdict == verdict
    assert judge("Small batches", *rates[:3]).verdict == "open"


@pytest.mark.parametrize(
    ("at_once", "later", "verdict"),
    [(0.05, 0.7, "confirmed"), (0.68, 0.7, "denied"), (0.25, 0.7, "open"), (0.05, 0.05, "open")],
)
def test_mixup(at_once: float, later: float, verdict: str) -> None:
    first = point(at_once, mixup_alpha=0.2, mixup_first_epoch=1)
    evidence = judge("Mixup", first, point(later, mixup_alpha=0.2, mixup_first_epoch=6))
    assert evidence.verdict == verdict
