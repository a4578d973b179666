"""What went wrong at a point, and the name for it, from what was stored of its epochs.

Seeds collapse one by one, so they are counted; all else is said of the mean over seeds, which decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from hpo.planning.metrics import Metric

DEAD_SHARE = 0.99
"""From this share of dead units on a layer passes nothing on."""
VANISHED_NORM = 1e-6
"""Below it a gradient moves nothing: healthy layers of these networks have norms of 1e-2 to 1e1."""
LEARNT_SHARE = 0.02
"""Of the way from guessing to perfect; what has come less far has learnt nothing. Guessing among ten classes
comes so far by luck on 1,000 validation images at one seed in forty."""

Records = Sequence[Mapping[str, Any]]
"""What training recorded (`SeedEpoch.to_dict`): of one epoch by seed, or of one seed by epoch."""


@dataclass(frozen=True)
class Finding:
    """One diagnosis of a point."""

    name: Literal[
        "dying ReLU", "constant prediction", "no better than guessing", "still improving at the last epoch"
    ]
    epoch: int
    """Since when, of several seeds the earliest; counted from 1."""
    layer: str | None
    """The first layer that it hit, for dying ReLU."""
    text: str
    """One line for people; where there is little room, what stands before the colon will do."""
    n_seeds: int
    """How many of the point's seeds it is true of; of what is said of their mean, all."""

    @property
    def remark(self) -> str:
        """The diagnosis in a few words."""
        return self.text.partition(":")[0]

    @property
    def is_collapse(self) -> bool:
        """Whether seeds learnt nothing, or forgot it."""
        return self.name in ("dying ReLU", "constant prediction")


def findings(
    history: Sequence[Records], objective: Metric, chances: Mapping[Metric, float], *, is_complete: bool
) -> list[Finding]:
    """Name what is wrong with a point.

    - dying ReLU: at least `DEAD_SHARE` of a layer's units are dead, and the gradients of this layer and
      of all layers before it have vanished, in two epochs running.
    - constant prediction: without dying ReLU, one class is predicted for everything at the end.
    - no better than guessing: the mean over seeds, at its best epoch.
    - still improving at the last epoch: the mean over seeds is better than guessing and best there, so that
      more epochs might be better.

    The last two are asked of points that were trained to the end, unless all seeds have collapsed.

    Args:
        history: per epoch, per seed.
        objective: what is tuned for.
        chances: what guessing reaches, by metric as far as that is known.
        is_complete: whether training came to its end.
    """
    seeds = list(zip(*history, strict=True))
    dying = [death for seed in seeds if (death := _dying_relu(seed))]
    constant = [since for seed in seeds if not _dying_relu(seed) and (since := _constant_since(seed))]
    found = []
    if dying:
        epoch, layer, share = min(dying)
        text = (
            f"dying ReLU{_among(dying, seeds)}: {_since([each[0] for each in dying])}, {100 * share:.0f} % "
            f"of the units of {layer} are dead, and no gradient reaches it or the layers before it"
        )
        found.append(Finding("dying ReLU", epoch, layer, text, len(dying)))
    if constant:
        text = f"constant prediction{_among(constant, seeds)}: one class for everything {_since(constant)}"
        found.append(Finding("constant prediction", min(constant), None, text, len(constant)))
    if is_complete and len(dying) + len(constant) < len(seeds):
        found += _of_the_mean(history, objective, chances)
    return found


def _of_the_mean(
    history: Sequence[Records], objective: Metric, chances: Mapping[Metric, float]
) -> list[Finding]:
    n_epochs, n_seeds = len(history), len(history[0])
    best = objective.best_of({n: _mean(epoch, objective) for n, epoch in enumerate(history, start=1)})
    if best is None:
        return []
    for metric, chance in chances.items():
        reached = _mean(history[best - 1], metric)
        if reached - chance <= LEARNT_SHARE * (1 - chance):
            text = (
                f"no better than guessing: {metric.label} {metric.with_unit(reached)}, "
                f"where guessing reaches {metric.with_unit(chance)}"
            )
            return [Finding("no better than guessing", best, None, text, n_seeds)]
    if 1 < best == n_epochs:
        text = f"still improving: {objective.label} is best in epoch {best}, the last one"
        return [Finding("still improving at the last epoch", best, None, text, n_seeds)]
    return []


def _mean(epoch: Records, metric: Metric) -> float:
    """Return a metric of one epoch, mean over seeds."""
    return fmean(seed["metrics"][metric.name] for seed in epoch)


def _among(some: Sequence[object], seeds: Sequence[object]) -> str:
    return f" in {len(some)} of {len(seeds)} seeds" if len(seeds) > 1 else ""


def _since(epochs: Sequence[int]) -> str:
    return f"since epoch {min(epochs)}{' at the earliest' if len(set(epochs)) > 1 else ''}"


def _constant_since(seed: Records) -> int | None:
    """Return since when a seed predicts one class for everything; None where it does not at its end."""
    since = None
    for number, epoch in reversed([*enumerate(seed, start=1)]):
        if epoch["predicted_classes"] != 1:
            break
        since = number
    return since


def _dying_relu(seed: Records) -> tuple[int, str, float] | None:
    """Return since when a layer of a seed is dead, which, and with what share of its units; None of none."""
    for number, (first, second) in enumerate(pairwise(seed), start=1):
        lasting = [layer for layer in _dead_layers(first) if layer in _dead_layers(second)]
        if lasting:
            return number, lasting[0], second["layers"][lasting[0]]["dead_share"]
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
