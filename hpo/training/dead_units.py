"""Units that are zero on every image: dying ReLU (Lu et al. 2019, arXiv:1903.06733)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hpo.recipes.constrained_cnn.network import Network


def logits_and_dead_shares(
    network: Network, batches: Iterable[Tensor], n_watched: int
) -> tuple[list[Tensor], dict[str, float]]:
    """Return logits, and the share of units of each ReLU layer that the first images leave at zero.

    A unit is a channel of a convolution or a unit of a linear layer; it is dead if it is zero on all those
    images and at all positions (dying ReLU). Where pooling follows the
    ReLU, what it discards is not looked at.

    Args:
        network: in evaluation mode, in the batches' dtype.
        batches: each (n, c, h, w), normalised; one at least.
        n_watched: on how many images units are watched.

    Returns:
        By batch (n, n_classes) float32, and the shares by layer.
    """
    logits: list[Tensor] = []
    alive: dict[str, Tensor] = {}
    n_seen = 0
    for images in batches:
        for name, output in network.layer_outputs(images):
            if name == network.layer_names[-1]:
                logits.append(output.float())
            elif n_seen < n_watched:
                positions = [dim for dim in range(output.dim()) if dim != 1]
                active = output[: n_watched - n_seen].amax(positions) > 0
                alive[name] = alive[name] | active if name in alive else active
        n_seen += len(images)
    dead = {name: 1 - active.double().mean().item() for name, active in alive.items()}
    return logits, dead
