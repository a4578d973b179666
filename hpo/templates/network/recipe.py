"""A network on images: change `build`, and the parameters that may be searched.

`hpo doctor --recipe python:recipe:Net --data digits` tries it in seconds.
"""

from typing import Any

from torch import nn

import hpo


class Sizes(hpo.Params):
    """Beside learning_rate, batch_size, optimizer and whatever else every recipe has."""

    channels: int = hpo.Field(16, ge=1, le=1024)
    hidden: int = hpo.Field(64, ge=1, le=4096)
    dropout: float = hpo.Field(0.0, ge=0, lt=1)


class Net(hpo.Recipe):
    """Two convolutions and a hidden layer."""

    Params = Sizes

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return the network: images (n, c, h, w) go in, a number for each class comes out."""
        n_colours, _, _ = data.input_shape
        width = params.channels
        return nn.Sequential(
            nn.Conv2d(n_colours, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, params.hidden),
            nn.ReLU(),
            nn.Dropout(params.dropout),
            nn.Linear(params.hidden, data.n_classes),
        )
