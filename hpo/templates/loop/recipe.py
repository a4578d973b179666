"""A training loop of your own: change `train` and `test`, and the parameters that may be searched.

`hpo doctor --recipe python:recipe:Linear --data digits` tries an epoch of it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import hpo


class Settings(hpo.LoopParams):
    """All that may be searched, beside the number of epochs."""

    rate: float = hpo.Field(0.1, gt=0, le=10)
    decay: float = hpo.Field(0.0, ge=0, lt=1)


class Linear(hpo.Recipe):
    """Softmax regression in NumPy."""

    Params = Settings
    metrics = {"accuracy": "maximize"}
    reads_epochs = False  # but for when to end: a longer training may go on from a shorter one

    def train(
        self,
        params: Any,
        data: hpo.TrainingData,
        seed: int,
        context: hpo.LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[hpo.Epoch]:
        """Yield after every epoch; the state is what a trial that was killed goes on from."""
        inputs, classes = _flat(data.train.inputs), np.eye(data.n_classes)[data.train.targets]
        weights, last = np.zeros((inputs.shape[1], data.n_classes)), 0
        if resume is not None:
            weights, last = resume["weights"], resume["epoch"]
        for epoch in range(last + 1, params.epochs + 1):
            # a function of seed and epoch: so a resumed trial ends where an undisturbed one ends
            order = np.random.default_rng([seed, epoch]).permutation(len(inputs))
            for batch in np.array_split(order, max(1, len(order) // 20)):
                wrong = _probabilities(inputs[batch], weights) - classes[batch]
                weights = (1 - params.decay) * weights - params.rate * inputs[batch].T @ wrong / len(batch)
            yield hpo.Epoch(_metrics(weights, data.valid), {"weights": weights, "epoch": epoch})

    def test(self, params: Any, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics on the test part; called at the very end."""
        return _metrics(state["weights"], data)


def _flat(inputs: Any) -> Any:
    rows = inputs.reshape(len(inputs), -1) / 255
    return np.hstack([rows, np.ones((len(rows), 1))])


def _probabilities(inputs: Any, weights: Any) -> Any:
    outputs = inputs @ weights
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _metrics(weights: Any, data: Any) -> dict[str, float]:
    predicted = (_flat(data.inputs) @ weights).argmax(axis=1)
    return {"accuracy": float((predicted == data.targets).mean())}
