"""The optimizers, by the names that study files give them. To add one: a line in `OPTIMIZERS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

OptimizerBuilder = Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]
T = TypeVar("T", bound=torch.optim.Optimizer)


def _uncompiled(kind: type[T]) -> type[T]:
    """Return an optimizer that does not import torch.compile, only to shut it out: that takes 1.3 s.

    Its `step` has to be called without autograd, which the original sees to.
    """
    methods = ("add_param_group", "state_dict", "load_state_dict", "step")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    return type(kind.__name__, (kind,), plain)


_Adam = _uncompiled(torch.optim.Adam)
_AdamW = _uncompiled(torch.optim.AdamW)
_Sgd = _uncompiled(torch.optim.SGD)

OPTIMIZERS: dict[str, OptimizerBuilder] = {
    "adam": lambda weights, rate, l2: _Adam(
        weights, lr=rate, weight_decay=l2, fused=True, capturable=weights[0].is_cuda
    ),
    "adamw": lambda weights, rate, l2: _AdamW(
        weights, lr=rate, weight_decay=l2, fused=True, capturable=weights[0].is_cuda
    ),
    "sgd": lambda weights, rate, l2: _Sgd(weights, lr=rate, weight_decay=l2, fused=True),
}
"""Name → optimizer of weights with a learning rate and an L2 factor, everything else as PyTorch has it."""
