"""Mixup (Zhang et al. 2018, arXiv:1710.09412): training on weighted pairs of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: image i becomes weight · image i + (1 - weight) · image partners[i]."""

    weight: float
    partners: Tensor
    """(n,) int64, a permutation."""

    def images(self, images: Tensor) -> Tensor:
        """Mixes floating-point images (n, …)."""
        return torch.lerp(images[self.partners], images, self.weight)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against both labels of each pair, weighted like the images; mean over the batch."""
        own = F.cross_entropy(logits, labels)
        other = F.cross_entropy(logits, labels[self.partners])
        return self.weight * own + (1 - self.weight) * other


def draw_mix(n: int, alpha: float, rng: np.random.Generator, device: str = "cpu") -> Mix:
    """Draws one weight ~ Beta(alpha, alpha) and a permutation of n images; alpha > 0.

    The generator is NumPy's because PyTorch's Beta distribution accepts none.
    """
    weight = float(rng.beta(alpha, alpha))
    return Mix(weight, torch.from_numpy(rng.permutation(n)).to(device))
