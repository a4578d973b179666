"""An optimizer's step as one kernel over all weights: Triton's, for the optimizers that recipes name.

A small network spends a third of a step in an optimizer that is several kernels, each of which occupies a few
of a GPU's multiprocessors. Here weights, their bf16 copies and the optimizer's state lie one after the other
in flat buffers, and networks and optimizers hold views of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpo.training import kernels

ALIGNED_ELEMENTS = 128
"""Every tensor begins at a multiple, as cuDNN is slower on addresses that are not aligned."""
LARGE = 2**18
"""A gradient of so many elements is read where it is, and not copied into a flat buffer first."""


@dataclass(frozen=True, eq=False)
class Weight:
    """What is trained: a parameter of the network, and its bf16 copy where arithmetic is bf16."""

    master: nn.Parameter
    low: nn.Parameter | None

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the last step, in the precision of the arithmetic."""
        return (self.low if self.low is not None else self.master).grad


_KINDS: tuple[tuple[type[torch.optim.Optimizer], int, tuple[str | None, str | None]], ...] = (
    (torch.optim.AdamW, kernels.ADAMW, ("exp_avg", "exp_avg_sq")),
    (torch.optim.Adam, kernels.ADAM, ("exp_avg", "exp_avg_sq")),
    (torch.optim.SGD, kernels.SGD, ("momentum_buffer", None)),
    (torch.optim.RMSprop, kernels.RMSPROP, ("momentum_buffer", "square_avg")),
)
"""AdamW first, as it is an Adam too; then what PyTorch calls the parts of its state."""


class FlatOptimizer:
    """Takes the steps of one of the optimizers in `hpo.training.optimizers`.

    Args:
        optimizer: of all the masters, in one group. Its state becomes views of the flat buffers.
        weights: of the network, on the GPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Sequence[Weight]) -> None:
        self._optimizer = optimizer
        self._kind, self._names = next(
            (kind, names) for cls, kind, names in _KINDS if isinstance(optimizer, cls)
        )
        self._settings = torch.zeros(7, dtype=torch.float64, device=weights[0].master.device)
        self._segments: list[_Segment] = []
        self._weights: list[Weight] = []
        self._configure(optimizer.param_groups[0])
        self._lay_out(weights)

    def begin_anew(self, group: Mapping[str, Any]) -> None:
        """Be as before the first step, with the learning rate, l2 and momentum of an optimizer's group."""
        self._configure(group)
        for segment in self._segments:
            for each in (segment.first, segment.second, segment.counters):
                if each is not None:
                    each.zero_()

    def _configure(self, group: Mapping[str, Any]) -> None:
        """Take over the settings of an optimizer's group, for recorded steps too."""
        beta1, beta2 = group.get("betas", (group.get("alpha", 0.0), 0.0))
        values = [
            float(group["lr"]), 1.0, group["weight_decay"], group.get("momentum", 0.0), beta1, beta2,
            group.get("eps", 0.0),
        ]  # fmt: skip
        self._settings.copy_(torch.tensor(values, dtype=torch.float64))

    def scale_rate(self, factor: float | Tensor) -> None:
        """Multiply the learning rate by a factor, from the next step on."""
        self._settings[1:2].copy_(torch.as_tensor(factor))

    def step(self) -> None:
        """Take a step by the gradients that are there; refresh the bf16 copies.

        Raises:
            RuntimeError: a weight has no gradient that had one before.
        """
        missing = [weight for weight in self._weights if weight.gradient is None]
        if missing:
            if any(segment.has_stepped for segment in self._segments):
                raise RuntimeError("a weight has no gradient in some steps")
            self._lay_out([weight for weight in self._weights if weight.gradient is not None])
        for segment in self._segments:
            kernels.update_(
                self._kind, segment.weights, segment.lows, segment.gathered(), segment.first, segment.second,
                segment.counters, self._settings,
            )  # fmt: skip

    def load(self, stored: Mapping[int, Mapping[str, Any]]) -> None:
        """Take over a copy of a stored state of such an optimizer, as its `state_dict()["state"]` has it."""
        masters = self._optimizer.param_groups[0]["params"]
        names = [name for name in self._names if name]
        states = {id(masters[index]): state for index, state in stored.items()}
        unused = [weight for weight in self._weights if states and id(weight.master) not in states]
        if unused:
            self._lay_out([weight for weight in self._weights if weight not in unused])
        for weight in self._weights:
            mine, theirs = self._optimizer.state[weight.master], states.get(id(weight.master), {})
            for name in names:
                if mine.get(name) is not None:
                    mine[name].copy_(theirs[name])
        steps = [float(state["step"]) for state in states.values() if "step" in state]
        for segment in self._segments:
            segment.counters.fill_(max(steps, default=0.0))

    def _lay_out(self, weights: Sequence[Weight]) -> None:
        """Move weights, copies and state into new buffers; the state begins anew."""
        self._weights = list(weights)
        self._optimizer.state.clear()
        has_first = self._kind in (kernels.ADAM, kernels.ADAMW) or bool(
            self._optimizer.param_groups[0].get("momentum")
        )
        has = has_first, self._kind != kernels.SGD
        self._segments = [_Segment(part, *has) for part in _parts(weights)]
        for segment in self._segments:
            for weight, views in segment.states():
                state = dict(zip(self._names, views, strict=True))
                if self._kind != kernels.SGD:
                    state["step"] = segment.counters[0]
                self._optimizer.state[weight.master] = {
                    name: each for name, each in state.items() if name and each is not None
                }


class _Segment:
    """Weights one after the other, and what their steps need."""

    def __init__(self, weights: Sequence[Weight], has_first: bool, has_second: bool) -> None:
        self._members = list(weights)
        self._offsets, size = [], 0
        for weight in weights:
            self._offsets.append(size)
            size += -(-weight.master.numel() // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS
        is_low = weights[0].low is not None
        device, dtype = weights[0].master.device, torch.bfloat16 if is_low else torch.float32
        self.weights = torch.zeros(size, device=device)
        self.lows = torch.zeros(size, dtype=dtype, device=device) if is_low else None
        self.first = torch.zeros(size, device=device) if has_first else None
        self.second = torch.zeros(size, device=device) if has_second else None
        self.counters = torch.zeros(kernels.n_counters(size), device=device)
        self._gathered = torch.zeros(size, dtype=dtype, device=device)
        self._padding = torch.zeros(ALIGNED_ELEMENTS, dtype=dtype, device=device)
        with torch.no_grad():
            for weight, offset in zip(self._members, self._offsets, strict=True):
                for flat, parameter in ((self.weights, weight.master), (self.lows, weight.low)):
                    if flat is not None and parameter is not None:
                        view = _view(flat, offset, parameter)
                        view.copy_(parameter)
                        parameter.data = view
        self.has_stepped = False

    def states(self) -> Iterable[tuple[Weight, tuple[Tensor | None, Tensor | None]]]:
        """Yield each weight with views of its part of the state, in its own shape."""
        for weight, offset in zip(self._members, self._offsets, strict=True):
            first, second = (
                None if flat is None else _view(flat, offset, weight.master)
                for flat in (self.first, self.second)
            )
            yield weight, (first, second)

    def gathered(self) -> Tensor:
        """Return the gradients in the order of the weights."""
        self.has_stepped = True
        pieces = []
        for weight in self._members:
            gradient = weight.gradient
            assert gradient is not None
            n = gradient.numel()
            pieces += [gradient.as_strided((n,), (1,)), self._padding[: -n % ALIGNED_ELEMENTS]]
        if len(self._members) == 1 and not len(pieces[1]):
            return pieces[0]
        return torch.cat(pieces, out=self._gathered)


def _parts(weights: Sequence[Weight]) -> list[list[Weight]]:
    """Return the weights of each segment: every large one alone, the rest by the type of their gradients."""
    parts: dict[object, list[Weight]] = {}
    for number, weight in enumerate(weights):
        is_large = weight.master.numel() >= LARGE and weight.master.numel() % ALIGNED_ELEMENTS == 0
        parts.setdefault(number if is_large else f"{weight.low is None}", []).append(weight)
    return list(parts.values())


def _view(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    return flat.as_strided(like.shape, like.stride(), offset)


def can_be_flat(optimizer: torch.optim.Optimizer, weights: Sequence[Weight]) -> bool:
    """Return whether these weights can lie in flat buffers, and the optimizer's steps be taken there."""
    return (
        len(optimizer.param_groups) == 1
        and bool(weights)
        and all(each.master.dtype == torch.float32 and _is_dense(each.master) for each in weights)
    )


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements lie one after the other in memory, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
