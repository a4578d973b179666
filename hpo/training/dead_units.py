"""Units that are zero on every input: dying ReLU (Lu et al. 2019, arXiv:1903.06733)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hpo.training.devices import in_float64
from hpo.training.recipe import Layer


class _Watch:
    """Which units of a layer were ever above zero, on the first inputs."""

    def __init__(self, n_watched: int) -> None:
        self._n_left = n_watched
        self.alive: Tensor | None = None

    def see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Look at an output (n, units, …)."""
        if self._n_left > 0:
            positions = [dim for dim in range(output.dim()) if dim != 1]
            active = output[: self._n_left].amax(positions) > 0
            self.alive = active if self.alive is None else self.alive | active
            self._n_left -= len(output)


@contextmanager
def watching(layers: Mapping[str, Layer], n_watched: int) -> Iterator[Mapping[str, float]]:
    """Watch activations while the context lasts; afterwards the mapping has the share of dead units by layer.

    A unit is a channel of a convolution or a unit of a linear layer; it is dead if it is zero on all of the
    first `n_watched` inputs and at all positions. Where pooling follows the ReLU, what it discards is not
    looked at.
    """
    watches = {name: _Watch(n_watched) for name, layer in layers.items() if layer.relu is not None}
    dead: dict[str, float] = {}
    with ExitStack() as hooks:
        for name, watch in watches.items():
            relu = layers[name].relu
            assert relu is not None
            hooks.callback(relu.register_forward_hook(watch.see).remove)
        yield dead
    for name, watch in watches.items():
        if watch.alive is not None:
            dead[name] = 1 - in_float64(watch.alive).mean().item()
