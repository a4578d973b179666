"""Metrics of a set of predictions: loss, accuracy and macro F1 of classes; errors of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.devices import in_float64


@dataclass(frozen=True, eq=False)
class Scores:
    """What `score` found."""

    loss: float
    """Mean cross-entropy, natural logarithm."""
    accuracy: float
    macro_f1: float
    """Mean F1 of the classes that occur among labels or predictions."""
    confusion_matrix: NDArray[np.int64]
    """(k, k): rows are true classes, columns predictions."""
    per_class_f1: NDArray[np.float64]
    """(k,): 0 for a class that occurs in neither labels nor predictions."""

    @property
    def predicted_classes(self) -> int:
        """How many classes were predicted at all."""
        return int((self.confusion_matrix.sum(axis=0) > 0).sum())


def score(logits: Tensor, labels: Tensor, n_classes: int) -> Scores:
    """Score logits (n, k) float32 against labels (n,) int64 in 0..k-1, n ≥ 1.

    Macro F1 is scikit-learn's `f1_score(average="macro", zero_division=0)`.
    """
    predicted = logits.argmax(dim=1)
    pairs = (labels * n_classes + predicted).cpu().numpy()
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)
    hits = confusion.diagonal()
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = 2 * hits / np.maximum(occurrences, 1)
    return Scores(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=float(hits.sum() / len(pairs)),
        macro_f1=float(f1[occurrences > 0].mean()),
        confusion_matrix=confusion,
        per_class_f1=f1,
    )


def default_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what recipes are judged by that bring no `evaluate` of their own.

    Args:
        outputs: (n, n_classes) or (n, n_outputs) float32.
        targets: (n,) int64, or (n,) or (n, n_outputs) float32.

    Returns:
        Of classes `macro_f1`, `accuracy` and `loss`; of numbers `loss` (mean squared error), `mae` (mean
        absolute error) and `r2` (coefficient of determination, mean over outputs).
    """
    if not targets.is_floating_point():
        scores = score(outputs, targets, outputs.shape[1])
        return {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy, "loss": scores.loss}
    errors = in_float64(outputs.reshape(targets.shape) - targets).reshape(len(targets), -1)
    spread = in_float64(targets - targets.mean(dim=0)).reshape(len(targets), -1)
    unexplained = errors.square().sum(dim=0) / spread.square().sum(dim=0).clamp_min(1e-12)
    return {
        "loss": errors.square().mean().item(),
        "mae": errors.abs().mean().item(),
        "r2": 1 - unexplained.mean().item(),
    }
