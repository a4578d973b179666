"""What a confusion matrix says of the test metrics: what is easily had."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.float64]
"""(k, k): examples by true class (rows) and predicted class (columns), means over seeds."""


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
