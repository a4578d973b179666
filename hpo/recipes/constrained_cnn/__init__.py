"""The recipe of the original: a CNN of two convolutions, kept within bounds, with mixup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hpo.errors import InputError
from hpo.space.parameters import Params
from hpo.training.recipe import Layer, Recipe

if TYPE_CHECKING:
    from torch import nn

    from hpo.data.dataset import DataInfo


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that 'same' padding is symmetric")
    return value


Channels = Annotated[int, Field(ge=1, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]


class ConstrainedCnnParams(Params):
    """Two convolutions, one hidden linear layer, and when mixup is used: both ends are included."""

    conv1_channels: Channels = 32
    conv1_kernel: Kernel = 3
    conv2_channels: Channels = 128
    conv2_kernel: Kernel = 5
    hidden_units: Annotated[int, Field(ge=1, le=65536)] = 128
    batch_norm: bool = False
    activation: Literal["relu", "leaky_relu"] = "relu"
    """After both convolutions and the hidden layer; `leaky_relu` has PyTorch's slope of 0.01 below zero."""
    mixup_alpha: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Parameter of the Beta distribution; 0 = no mixup."""
    mixup_first_epoch: Annotated[int, Field(ge=1, le=100_000)] = 1
    mixup_last_epoch: Annotated[int, Field(ge=1, le=100_000)] = 10


class ConstrainedCnn(Recipe):
    """The original's network and training."""

    Params = ConstrainedCnnParams
    constraints = ("mixup_first_epoch <= mixup_last_epoch",)
    extras = ("activation",)
    draws_in_training = False
    reads_epochs = False

    def build(self, params: ConstrainedCnnParams, data: DataInfo) -> nn.Module:
        """Return the network; see `hpo.recipes.constrained_cnn.network.ConstrainedCnnNetwork`.

        Raises:
            InputError: inputs are no images, or so small that pooling leaves nothing of them.
        """
        from hpo.recipes.constrained_cnn.network import ConstrainedCnnNetwork

        if not data.is_images or not data.n_classes:
            raise InputError("the recipe constrained-cnn takes images of classes; give another --recipe")
        return ConstrainedCnnNetwork(params, data.input_shape, data.n_classes)

    def layers(self, model: Any) -> Mapping[str, Layer]:
        """Return all four layers with weights."""
        return {
            name: Layer(weight, bias, model.activation(name))
            for name in model.LAYERS
            for weight, bias in [model.weight_and_bias(name)]
        }

    def has_winograd(self, data: DataInfo) -> bool:
        """Return whether images are large enough; channels and kernels are up to the configuration."""
        from hpo.training import winograd

        _, height, width = data.input_shape
        return winograd.pays_for((height // 2, width // 2))  # conv2 sees them after the first pooling

    def at_epoch(self, params: ConstrainedCnnParams, epoch: int) -> ConstrainedCnnParams:
        """Return parameters with mixup in its epochs alone."""
        is_mixing = params.mixup_first_epoch <= epoch <= params.mixup_last_epoch
        return params.model_copy(update={"mixup": params.mixup_alpha if is_mixing else 0.0})

    def inactive(self, params: ConstrainedCnnParams) -> Iterator[str]:
        """Return when mixup begins and ends, where there is none; all of mixup, where it never begins.

        And `mixup` itself, which this recipe sets by its epochs.
        """
        yield "mixup"
        never = params.mixup_first_epoch > params.epochs
        if never:
            yield "mixup_alpha"
        if never or not params.mixup_alpha:
            yield from ("mixup_first_epoch", "mixup_last_epoch")
