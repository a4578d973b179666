"""The network of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hpo.errors import InputError
from hpo.training import fused, winograd

if TYPE_CHECKING:
    from hpo.recipes.constrained_cnn import ConstrainedCnnParams


class ConstrainedCnnNetwork(nn.Module):
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
    value or a gradient, and the ReLU then has a quarter of the elements. With a leaky ReLU in its place the
    same holds.

    Weights and biases start as `nn.Conv2d` and `nn.Linear` do (uniform in ±1/√fan_in), but drawn from
    nothing else than PyTorch's default generator.

    Args:
        sizes: the recipe's parameters.
        input_shape: (c, h, w).
        n_classes: k.

    Raises:
        InputError: the image is so small that pooling leaves nothing of it.
    """

    LAYERS = ("conv1", "conv2", "hidden", "output")
    """Every layer with weights, from the input to the logits; all but the last end in an activation."""

    def __init__(self, sizes: ConstrainedCnnParams, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 4:
            raise InputError(
                f"images of {height}×{width} pixels are too small: two poolings need at least 4×4; "
                "give a larger image size"
            )
        features = sizes.conv2_channels * (height // 4) * (width // 4)
        bias = not sizes.batch_norm  # the norm would cancel it, and brings a shift of its own
        # on "meta" the layers draw no numbers of their own; `_initialise` gives them their tensors
        self.conv1 = _conv(channels, sizes.conv1_channels, sizes.conv1_kernel, bias)
        self.conv2 = _conv(sizes.conv1_channels, sizes.conv2_channels, sizes.conv2_kernel, bias)
        self.hidden = nn.Linear(features, sizes.hidden_units, device="meta")
        self.output = nn.Linear(sizes.hidden_units, n_classes, device="meta")
        for layer in (self.conv1, self.conv2, self.hidden, self.output):
            _initialise(layer)
        self.norm1 = nn.BatchNorm2d(sizes.conv1_channels) if sizes.batch_norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(sizes.conv2_channels) if sizes.batch_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2)
        kind = _ACTIVATIONS[sizes.activation]
        self.activation1, self.activation2, self.activation_hidden = kind(), kind(), kind()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, n_classes) of images (n, c, h, w)."""
        x = self._stage(images, self.conv1, self.norm1, self.activation1)
        x = self._stage(x, self.conv2, self.norm2, self.activation2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order in memory: costs no copy
        x = self.activation_hidden(self.hidden(x))
        logits: Tensor = self.output(x)
        return logits

    def _stage(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, activation: nn.Module) -> Tensor:
        """Return what a convolution and what follows it make of (n, c, h, w)."""
        # evaluation goes through the modules, where dead units are watched
        kernels = fused.in_use_on(x.device) if self.training else "plain"
        if kernels != "triton" or not isinstance(activation, nn.ReLU):
            is_cheaper = kernels == "winograd" and winograd.pays(x, conv.weight)
            x = winograd.conv2d(x, conv.weight, conv.bias) if is_cheaper else conv(x)
            return activation(self.pool(norm(x)))  # type: ignore[no-any-return]
        from hpo.training.kernels import bias_max_pool_relu

        if isinstance(norm, nn.Identity):
            x = nn.functional.conv2d(x, conv.weight, padding=conv.padding)
            return bias_max_pool_relu(x, conv.bias)
        return bias_max_pool_relu(norm(conv(x)), None)

    def weight_and_bias(self, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the weight of a layer, and what is added after it: its bias, or its batch norm's shift."""
        module = self.get_submodule(layer)
        norm = {"conv1": self.norm1, "conv2": self.norm2}.get(layer)
        shift = norm if isinstance(norm, nn.BatchNorm2d) else module
        return module.get_parameter("weight"), shift.get_parameter("bias")

    def activation(self, layer: str) -> nn.Module | None:
        """Return the ReLU that ends a layer; None where no unit of it can die, as with a leaky one."""
        module = {
            "conv1": self.activation1,
            "conv2": self.activation2,
            "hidden": self.activation_hidden,
        }.get(layer)
        return module if isinstance(module, nn.ReLU) else None


_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


def _conv(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias, device="meta")


@torch.no_grad()
def _initialise(layer: nn.Conv2d | nn.Linear) -> None:
    bound = layer.weight[0].numel() ** -0.5
    for name, meta in list(layer.named_parameters()):
        # `Module.to_empty` would do, but imports sympy for 0.4 s
        setattr(layer, name, nn.Parameter(torch.empty(meta.shape).uniform_(-bound, bound)))
