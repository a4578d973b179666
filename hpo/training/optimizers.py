"""The optimizers, by the names that study files give them. To add one: a line in `OPTIMIZERS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from hpo.space.parameters import Params

OptimizerBuilder = Callable[[list[nn.Parameter], Params], torch.optim.Optimizer]
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
_RmsProp = _uncompiled(torch.optim.RMSprop)

OPTIMIZERS: dict[str, OptimizerBuilder] = {
    "adam": lambda weights, params: _Adam(
        weights,
        lr=params.learning_rate,
        weight_decay=params.l2,
        fused=True,
        capturable=weights[0].is_cuda,
    ),
    "adamw": lambda weights, params: _AdamW(
        weights,
        lr=params.learning_rate,
        weight_decay=params.l2,
        fused=True,
        capturable=weights[0].is_cuda,
    ),
    "sgd": lambda weights, params: _Sgd(
        weights, lr=params.learning_rate, momentum=params.momentum, weight_decay=params.l2, fused=True
    ),
    "rmsprop": lambda weights, params: _RmsProp(
        weights,
        lr=params.learning_rate,
        momentum=params.momentum,
        weight_decay=params.l2,
        capturable=weights[0].is_cuda,
    ),
}
"""Name → optimizer of weights with the parameters of a recipe, everything else as PyTorch has it."""
