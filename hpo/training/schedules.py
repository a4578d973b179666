"""Schedules of the learning rate, by the names in study files. To add one: a line in `SCHEDULES`."""

from __future__ import annotations

import math
from collections.abc import Callable

from hpo.space.parameters import Params

ONE_CYCLE_RISE = 0.3
"""Share of the training in which the rate of `one-cycle` rises."""
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4
"""Its factors at the beginning and at the end; PyTorch's `OneCycleLR` has the same."""


def factor(params: Params, progress: float) -> float:
    """Return the factor of the learning rate when a share of the training is done, from 0 to 1."""
    if params.schedule == "one-cycle":
        return SCHEDULES["one-cycle"](progress)
    warmup = min(1.0, params.warmup_epochs / params.epochs)
    if progress < warmup:
        return progress / warmup
    return SCHEDULES[params.schedule]((progress - warmup) / (1 - warmup) if warmup < 1 else 1.0)


def is_constant(params: Params) -> bool:
    """Return whether `factor` is always 1."""
    return params.schedule == "constant" and params.warmup_epochs == 0


def _cosine(progress: float) -> float:
    """Fall from 1 to 0 along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(progress: float) -> float:
    """Rise to 1 and fall far below the beginning (Smith & Topin 2018, arXiv:1708.07120)."""
    if progress < ONE_CYCLE_RISE:
        return 1 - (1 - ONE_CYCLE_START) * _cosine(progress / ONE_CYCLE_RISE)
    left = _cosine((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
    return ONE_CYCLE_END + (1 - ONE_CYCLE_END) * left


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
"""Name → factor of the learning rate by progress, 0 to 1, after the warm-up."""
