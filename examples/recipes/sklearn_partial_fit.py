"""A training loop of one's own, without PyTorch: scikit-learn's SGDClassifier, an epoch at a time.

In this folder:
`hpo run --recipe python:sklearn_partial_fit:LinearSgd --data digits --studies studies-sklearn`

Its state is three arrays, so a trial that is killed resumes after its last epoch, and ends equal to the bit.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, f1_score

import hpo

Array = npt.NDArray[Any]


class Penalties(hpo.LoopParams):
    """Not `hpo.Params`: what scikit-learn has no use for is not there to be searched."""

    penalty: Literal["l2", "l1"] = "l2"
    alpha: float = hpo.Field(1e-4, gt=0, le=1)


class LinearSgd(hpo.Recipe):
    """A linear classifier."""

    Params = Penalties
    metrics = {"macro_f1": "maximize", "accuracy": "maximize"}  # noqa: RUF012
    reads_epochs = False  # but for when to end: a longer training may go on from a shorter one

    def train(
        self,
        params: Any,
        data: hpo.TrainingData,
        seed: int,
        context: hpo.LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[hpo.Epoch]:
        """Yield after every pass over the training part."""
        inputs, targets = _flat(data.train.inputs), np.asarray(data.train.targets)
        model = SGDClassifier(loss="log_loss", penalty=params.penalty, alpha=params.alpha)
        for epoch in range(resume["epoch"] + 1 if resume else 1, params.epochs + 1):
            # a function of seed and epoch: a resumed trial draws what an undisturbed one draws
            order = np.random.default_rng([seed, epoch]).permutation(len(targets))
            model.set_params(random_state=seed + epoch)
            if resume:
                model.coef_, model.intercept_ = resume["coef"], resume["intercept"]
                model.t_, model.classes_ = resume["t"], np.arange(data.n_classes)
                resume = None
            model.partial_fit(inputs[order], targets[order], classes=np.arange(data.n_classes))
            state = {"epoch": epoch, "coef": model.coef_, "intercept": model.intercept_, "t": model.t_}
            yield hpo.Epoch(_metrics(state, data.valid), state)

    def test(self, params: Any, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics on the test part."""
        return _metrics(state, data)


def _flat(inputs: Array) -> Array:
    return inputs.reshape(len(inputs), -1) / 255.0


def _metrics(state: Mapping[str, Any], data: Any) -> dict[str, float]:
    predicted = (_flat(data.inputs) @ state["coef"].T + state["intercept"]).argmax(axis=1)
    return {
        "macro_f1": f1_score(data.targets, predicted, average="macro", zero_division=0),
        "accuracy": accuracy_score(data.targets, predicted),
    }
