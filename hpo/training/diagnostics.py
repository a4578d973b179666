"""What went wrong in a training run: dead units, vanished gradients, and the name for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `hpo show` names findings without waiting for torch
    from torch import Tensor

    from hpo.training.network import Network

DEAD_SHARE = 0.99
"""From this share of dead units on a layer passes nothing on."""
VANISHED_NORM = 1e-6
"""Below it a gradient moves nothing: healthy layers of these networks have norms of 1e-2 to 1e1."""


def logits_and_dead_shares(
    network: Network, batches: Iterable[Tensor], n_watched: int
) -> tuple[list[Tensor], dict[str, float]]:
    """Logits of all images, and the share of units of each ReLU layer that the first images leave at zero.

    A unit is a channel of a convolution or a unit of a linear layer; it is dead if it is zero on all those
    images and at all positions (dying ReLU: Lu et al. 2019, arXiv:1903.06733). Where pooling follows the
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


@dataclass(frozen=True)
class Finding:
    """One diagnosis of a seed's run."""

    name: str
    """"dying ReLU", "constant prediction" or "still rising at the last epoch"."""
    epoch: int
    """Since when; counted from 1."""
    layer: str | None
    """The first layer that it hit, for dying ReLU."""
    text: str
    """One line for people."""


def diagnose(history: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Names what is wrong with a run, from the stored epochs (`SeedEpoch.to_dict`) of one seed in order.

    - dying ReLU: at least `DEAD_SHARE` of a layer's units are dead, and the gradients of this layer and
      of all layers before it have vanished, in two epochs running.
    - constant prediction: without dying ReLU, one class is predicted for everything at the end.
    - still rising at the last epoch: without either, the best macro F1 is the last one, so that more
      epochs might be better.
    """
    if not history:
        return ()
    dying = _dying_relu(history)
    if dying:
        return (dying,)
    if history[-1]["predicted_classes"] == 1:
        since = len(history)
        while since > 1 and history[since - 2]["predicted_classes"] == 1:
            since -= 1
        text = f"constant prediction: one class for every image since epoch {since}"
        return (Finding("constant prediction", since, None, text),)
    scores = [epoch["valid_macro_f1"] for epoch in history]
    if len(scores) > 1 and max(scores[:-1]) < scores[-1]:
        text = f"still rising at the last epoch: macro F1 is best in epoch {len(scores)}, the last one"
        return (Finding("still rising at the last epoch", len(scores), None, text),)
    return ()


def _dying_relu(history: Sequence[Mapping[str, Any]]) -> Finding | None:
    for number, (first, second) in enumerate(pairwise(history), start=1):
        lasting = [layer for layer in _dead_layers(first) if layer in _dead_layers(second)]
        if lasting:
            layer = lasting[0]
            share = second["layers"][layer]["dead_share"]
            text = (
                f"dying ReLU: since epoch {number} {share:.0%} of the units of {layer} are dead, "
                "and no gradient reaches it or the layers before it"
            )
            return Finding("dying ReLU", number, layer, text)
    return None


def _dead_layers(epoch: Mapping[str, Any]) -> list[str]:
    """The layers that are dead in one epoch and cut off every layer before them."""
    dead = []
    for name, health in epoch["layers"].items():
        if max(health["weight_gradient"], health["bias_gradient"]) >= VANISHED_NORM:
            break
        if health["dead_share"] is not None and health["dead_share"] >= DEAD_SHARE:
            dead.append(name)
    return dead
