"""A network on a table: change `data` to read yours, `build`, and the parameters that may be searched.

`hpo doctor --recipe python:recipe:Mlp --data python:recipe:data` tries it in seconds.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

import hpo


def data() -> hpo.ArrayData:
    """Return the table; here scikit-learn's 569 tumours, 30 numbers each, a fifth of them as the test part.

    Yours may come from `numpy.loadtxt` or pandas. It must be the same at each call, the split included.
    """
    table = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(table.target))
    test, train = np.split(order, [len(order) // 5])
    return hpo.ArrayData(
        train_inputs=table.data[train],
        train_targets=table.target[train],
        test_inputs=table.data[test],
        test_targets=table.target[test],
        class_names=tuple(map(str, table.target_names)),  # left out where targets are numbers to predict
    )


class Sizes(hpo.Params):
    """Beside learning_rate, batch_size, optimizer and whatever else every recipe has."""

    depth: int = hpo.Field(1, ge=1, le=8)
    width: int = hpo.Field(32, ge=1, le=4096)
    dropout: float = hpo.Field(0.0, ge=0, lt=1)


class Mlp(hpo.Recipe):
    """Hidden layers of one width."""

    Params = Sizes

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return the network: rows (n, features) go in, a number for each class comes out."""
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([*data.input_shape, *[params.width] * params.depth]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(params.dropout)]
        return nn.Sequential(*layers, nn.Linear(params.width, data.n_outputs))
