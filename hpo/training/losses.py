"""The losses of recipes that bring none of their own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def loss(
    outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return cross-entropy against classes, squared error against numbers; a mean over the batch.

    Args:
        outputs: (n, n_classes) or (n, n_outputs) float32.
        targets: (n,) int64, or (n,) or (n, n_outputs) float32.
        label_smoothing: share of the target that all classes have alike.
        class_weights: (n_classes,) float32.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs.reshape(targets.shape), targets)
    return F.cross_entropy(outputs, targets, class_weights, label_smoothing=label_smoothing)


def balanced(labels: npt.NDArray[np.integer], n_classes: int) -> Tensor:
    """Return the weight of each class, (n_classes,) float32, that makes all weigh alike: n / (k · count)."""
    counts = np.bincount(labels, minlength=n_classes)
    return torch.tensor(len(labels) / (n_classes * np.maximum(counts, 1)), dtype=torch.float32)
