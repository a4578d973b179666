"""What went wrong in a training run, and the name for it, from what was stored of its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hpo.planning.metrics import Metric

DEAD_SHARE = 0.99
"""From this share of dead units on a layer passes nothing on."""
VANISHED_NORM = 1e-6
"""Below it a gradient moves nothing: healthy layers of these networks have norms of 1e-2 to 1e1."""


@dataclass(frozen=True)
class Finding:
    """One diagnosis of a seed's run."""

    name: str
    """"dying ReLU", "constant prediction" or "still improving at the last epoch"."""
    epoch: int
    """Since when; counted from 1."""
    layer: str | None
    """The first layer that it hit, for dying ReLU."""
    text: str
    """One line for people."""


def diagnose(history: Sequence[Mapping[str, Any]], objective: Metric) -> tuple[Finding, ...]:
    """Name what is wrong with a run, from the stored epochs (`SeedEpoch.to_dict`) of one seed in order.

    - dying ReLU: at least `DEAD_SHARE` of a layer's units are dead, and the gradients of this layer and
      of all layers before it have vanished, in two epochs running.
    - constant prediction: without dying ReLU, one class is predicted for everything at the end.
    - still improving at the last epoch: without either, the last value of the objective is the best, so that
      more epochs might be better.
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
        text = f"constant prediction: one class for everything since epoch {since}"
        return (Finding("constant prediction", since, None, text),)
    scores = [objective.score(epoch["metrics"][objective.name]) for epoch in history]
    if len(scores) > 1 and max(scores[:-1]) < scores[-1]:
        best = f"{objective.label} is best in epoch {len(scores)}, the last one"
        text = f"still improving at the last epoch: {best}"
        return (Finding("still improving at the last epoch", len(scores), None, text),)
    return ()


def findings(
    history: Sequence[Sequence[Mapping[str, Any]]], objective: Metric, *, is_complete: bool
) -> list[Finding]:
    """Return what is wrong with the runs of a trial, seed by seed.

    Args:
        history: per epoch, per seed, what training recorded.
        objective: what is tuned for.
        is_complete: whether the runs came to their end.
    """
    n_seeds = len(history[0]) if history else 0
    found = [f for seed in range(n_seeds) for f in diagnose([epoch[seed] for epoch in history], objective)]
    # of a run that was cut short nobody asks whether it was still improving
    return found if is_complete else [f for f in found if not f.name.startswith("still improving")]


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
    """Return the layers that are dead in one epoch and cut off every layer before them."""
    dead = []
    for name, health in epoch["layers"].items():
        if max(health["weight_gradient"], health["bias_gradient"]) >= VANISHED_NORM:
            break
        if health["dead_share"] is not None and health["dead_share"] >= DEAD_SHARE:
            dead.append(name)
    return dead
