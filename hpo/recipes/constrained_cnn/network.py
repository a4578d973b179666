"""Networks: from the network part of a configuration to an `nn.Module`.

To add one: a subclass of `Network`, a line in `NETWORKS`, and its parameters in `hpo.space.parameters`, where
`TrialConfig` and `PARAMETERS` know one family so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.errors import InputError
from hpo.space.parameters import NetworkConfig

ImageShape = tuple[int, int, int]
"""Height, width, channels."""


class Network(nn.Module, ABC):
    """A classifier whose layers can be watched one by one."""

    layer_names: ClassVar[tuple[str, ...]]
    """Every layer with weights, from the input to the logits; all but the last end in a ReLU."""

    @abstractmethod
    def layer_outputs(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield name and output of each layer in turn; the last output is the logits.

        Args:
            images: (n, c, h, w), normalised, in the weights' dtype, best in channels_last memory.

        Yields:
            (n, channels, h', w') or (n, units), after the ReLU; at last (n, n_classes).
        """

    @abstractmethod
    def weight_and_bias(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the weight of a layer, and what is added after it: its bias, or its batch norm's shift."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, n_classes) of images (n, c, h, w)."""
        for _, output in self.layer_outputs(images):
            logits = output
        return logits


class ConstrainedCnn(Network):
    """The original's network: two convolutions and one hidden linear layer.

    For images of h × w pixels and c channels, k classes, C1 and C2 channels with kernels K1 and K2,
    H hidden units:

    | layer  | does                                                   | output (n, …)            |
    |--------|--------------------------------------------------------|--------------------------|
    | conv1  | K1×K1 "same" → [batch norm] → 2×2 max-pool → ReLU       | C1 × ⌊h/2⌋ × ⌊w/2⌋       |
    | conv2  | K2×K2 "same" → [batch norm] → 2×2 max-pool → ReLU       | C2 × ⌊h/4⌋ × ⌊w/4⌋ = C2 × P |
    | hidden | linear → ReLU                                          | H                        |
    | output | linear                                                 | k                        |

    Parameters: (K1²·c + 1)·C1 + (K2²·C1 + 1)·C2 + (P·C2 + 1)·H + (H + 1)·k, and C1 + C2 more with
    batch norm, whose scale and shift take the place of the convolutions' biases.

    The original pools after the ReLU. The maximum and the ReLU can change places without changing a
    value or a gradient, and the ReLU then has a quarter of the elements.

    Weights and biases start as `nn.Conv2d` and `nn.Linear` do (uniform in ±1/√fan_in), but drawn from
    the generator alone.

    Args:
        config: the sizes.
        image_shape: (h, w, c).
        n_classes: k.
        generator: a CPU generator, the only source of randomness.

    Raises:
        InputError: the image is so small that pooling leaves nothing of it.
    """

    layer_names = ("conv1", "conv2", "hidden", "output")

    def __init__(
        self, config: NetworkConfig, image_shape: ImageShape, n_classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        height, width, channels = image_shape
        if min(height, width) < 4:
            raise InputError(
                f"images of {height}×{width} pixels are too small: two poolings need at least 4×4; "
                "give a larger image size"
            )
        features = config.conv2_channels * (height // 4) * (width // 4)
        bias = not config.batch_norm  # the norm would cancel it, and brings a shift of its own
        # on "meta" the layers draw no numbers of their own; `_initialise` gives them their tensors
        self.conv1 = _conv(channels, config.conv1_channels, config.conv1_kernel, bias)
        self.conv2 = _conv(config.conv1_channels, config.conv2_channels, config.conv2_kernel, bias)
        self.hidden = nn.Linear(features, config.hidden_units, device="meta")
        self.output = nn.Linear(config.hidden_units, n_classes, device="meta")
        for layer in (self.conv1, self.conv2, self.hidden, self.output):
            _initialise(layer, generator)
        self.norm1 = nn.BatchNorm2d(config.conv1_channels) if config.batch_norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(config.conv2_channels) if config.batch_norm else nn.Identity()
        self.to(memory_format=torch.channels_last)

    def layer_outputs(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield what `Network.layer_outputs` says."""
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(images)), 2))
        yield "conv1", x
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))
        yield "conv2", x
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order in memory: costs no copy
        x = F.relu(self.hidden(x))
        yield "hidden", x
        yield "output", self.output(x)

    def weight_and_bias(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return what `Network.weight_and_bias` says."""
        module = self.get_submodule(layer)
        norm = {"conv1": self.norm1, "conv2": self.norm2}.get(layer)
        shift = norm if isinstance(norm, nn.BatchNorm2d) else module
        return module.get_parameter("weight"), shift.get_parameter("bias")


def _conv(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias, device="meta")


@torch.no_grad()
def _initialise(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    bound = layer.weight[0].numel() ** -0.5
    for name, meta in list(layer.named_parameters()):
        # `Module.to_empty` would do, but imports sympy for 0.4 s
        values = torch.empty(meta.shape).uniform_(-bound, bound, generator=generator)
        setattr(layer, name, nn.Parameter(values))


Builder = Callable[[NetworkConfig, ImageShape, int, torch.Generator], Network]

NETWORKS: dict[type[NetworkConfig], Builder] = {NetworkConfig: ConstrainedCnn}


def build_network(
    config: NetworkConfig, image_shape: ImageShape, n_classes: int, generator: torch.Generator
) -> Network:
    """Return the network that belongs to a config part, in fp32 on the CPU, in training mode.

    Raises:
        InputError: the images are too small for the network.
    """
    return NETWORKS[type(config)](config, image_shape, n_classes, generator)
