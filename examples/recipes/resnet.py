"""A small residual network for images; how it is trained stands in the study file alone.

In this folder: `hpo run --recipe python:resnet:ResNet --data cifar10 --studies studies-resnet`

The common parameters bring SGD with momentum, the cosine schedule, flips, shifts and label smoothing.
"""

from typing import Any

from torch import Tensor, nn

import hpo


class Sizes(hpo.Params):
    """Added to the training parameters that every recipe has."""

    channels: int = hpo.Field(16, ge=4, le=256)
    blocks: int = hpo.Field(1, ge=1, le=9)


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        is_same = n_in == n_out and stride == 1
        self.around = nn.Identity() if is_same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps (n, n_out, h/stride, w/stride)."""
        return nn.functional.relu(self.body(images) + self.around(images))


class ResNet(hpo.Recipe):
    """Three stages of blocks, each of twice the channels and half the size of the one before."""

    Params = Sizes
    draws_in_training = False

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return stem, stages, and a linear layer on the mean of each feature map."""
        width = params.channels
        layers: list[nn.Module] = [nn.Conv2d(data.input_shape[0], width, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        n_in = width
        for stage in range(3):
            n_out = width * 2**stage
            for block in range(params.blocks):
                layers.append(Block(n_in, n_out, stride=2 if stage and not block else 1))
                n_in = n_out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, data.n_classes))
