"""Numbers instead of classes: a table by `hpo.ArrayData`, squared error, and metrics that fit.

In this folder:
`hpo run --recipe python:regression:Regressor --data python:regression:data --studies studies-regression`
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from torch import nn

import hpo


def data() -> hpo.ArrayData:
    """Return scikit-learn's 442 patients: ten numbers each, and the state of their disease a year later."""
    inputs, targets = load_diabetes(return_X_y=True)
    targets = (targets - targets.mean()) / targets.std()
    order = np.random.default_rng(0).permutation(len(targets))
    train, test = order[:360], order[360:]
    return hpo.ArrayData(
        train_inputs=inputs[train],
        train_targets=targets[train],
        test_inputs=inputs[test],
        test_targets=targets[test],
    )


class Sizes(hpo.Params):
    """What is searched beside the training parameters."""

    width: int = hpo.Field(32, ge=1, le=1024)


class Regressor(hpo.Recipe):
    """One hidden layer; the default loss of numbers is the squared error."""

    Params = Sizes
    metrics = {"loss": "minimize", "r2": "maximize"}  # noqa: RUF012
    draws_in_training = False

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return a network of one output for each number to predict."""
        return nn.Sequential(
            nn.Linear(data.input_shape[0], params.width), nn.ReLU(), nn.Linear(params.width, data.n_outputs)
        )
