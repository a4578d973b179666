"""Mixup (Zhang et al. 2018, arXiv:1710.09412): training on weighted pairs of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: input i becomes weight · input i + (1 - weight) · input partners[i]."""

    weight: Tensor
    """() float32, in 0..1."""
    partners: Tensor
    """(n,) int64, a permutation."""

    def inputs(self, inputs: Tensor) -> Tensor:
        """Mix float32 inputs (n, …)."""
        return torch.lerp(inputs[self.partners], inputs, self.weight)

    def loss(self, loss_of: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        """Return the loss against both targets of each pair, weighted like the inputs."""
        own = loss_of(targets)
        other = loss_of(targets[self.partners])
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
