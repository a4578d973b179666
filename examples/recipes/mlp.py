"""A network of one's own in twelve lines: a perceptron whose depth, width and dropout are searched.

In this folder: `hpo run --recipe python:mlp:Mlp --data digits --studies studies-mlp`
"""

import math
from itertools import pairwise
from typing import Any

from torch import nn

import hpo


class Sizes(hpo.Params):
    """Added to the training parameters that every recipe has."""

    depth: int = hpo.Field(2, ge=1, le=8)
    width: int = hpo.Field(64, ge=1, le=4096)
    dropout: float = hpo.Field(0.1, ge=0, lt=1)


class Mlp(hpo.Recipe):
    """A multilayer perceptron."""

    Params = Sizes

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return `depth` hidden layers of `width` units."""
        sizes = [math.prod(data.input_shape), *[params.width] * params.depth]
        hidden: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            hidden += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(params.dropout)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(params.width, data.n_classes))
