"""Mixup (Zhang et al. 2018, arXiv:1710.09412): training on weighted pairs of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: image i becomes weight · image i + (1 - weight) · image partners[i]."""

    weight: Tensor
    """() float32, in 0..1."""
    partners: Tensor
    """(n,) int64, a permutation."""

    def images(self, images: Tensor) -> Tensor:
        """Mix float32 images (n, …)."""
        return torch.lerp(images[self.partners], images, self.weight)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy against both labels of each pair, weighted like the images; a mean."""
        own = F.cross_entropy(logits, labels)
        other = F.cross_entropy(logits, labels[self.partners])
        return self.weight * own + (1 - self.weight) * other


def draw_mixes(sizes: Sequence[int], alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a weight ~ Beta(alpha, alpha) and a permutation for each batch; alpha > 0.

    The generator is NumPy's because PyTorch's Beta distribution accepts none.

    Args:
        sizes: of the batches, one at least.
        alpha: see above.
        rng: the only source of randomness.

    Returns:
        Weights (batches,) float32; the batches' partners one after the other, (sum of sizes,) int64.
    """
    drawn = [(rng.beta(alpha, alpha), rng.permutation(size)) for size in sizes]
    weights = torch.tensor([weight for weight, _ in drawn], dtype=torch.float32)
    return weights, torch.from_numpy(np.concatenate([partners for _, partners in drawn]))
