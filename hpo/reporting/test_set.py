"""What a confusion matrix says of the test metrics: how sure they are, and what is easily had."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.float64]
"""(k, k): examples by true class (rows) and predicted class (columns), means over seeds."""
N_DRAWS = 500


def interval(confusion: Confusion, metric: str) -> tuple[float, float]:
    """Return between what a metric lies for other test examples of the same kind: 95 %, by the bootstrap.

    Args:
        confusion: whose examples are drawn anew, with replacement.
        metric: `accuracy` or `macro_f1`.
    """
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    draws = np.random.default_rng(0).multinomial(round(counts.sum()), counts / counts.sum(), N_DRAWS)
    found = [_scores(rows, columns, drawn, len(confusion))[metric] for drawn in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def baseline(confusion: Confusion) -> tuple[dict[str, float], int]:
    """Return the metrics of always answering the most frequent class, and which class that is."""
    counts = confusion.sum(axis=1)
    frequent = int(counts.argmax())
    always = np.full(len(counts), frequent)
    return _scores(np.arange(len(counts)), always, counts, len(counts)), frequent


def _scores(
    rows: NDArray[np.intp], columns: NDArray[np.intp], counts: NDArray[np.generic], n_classes: int
) -> dict[str, float]:
    """Return accuracy and macro F1 as `hpo.training.metrics` does, of counts in some cells of a matrix."""
    true, predicted, right = (
        np.bincount(side, weights, n_classes)
        for side, weights in ((rows, counts), (columns, counts), (rows, counts * (rows == columns)))
    )
    occurrences = true + predicted
    occurs = occurrences > 0
    return {
        "accuracy": float(right.sum() / true.sum()),
        "macro_f1": float((2 * right[occurs] / occurrences[occurs]).mean()),
    }
