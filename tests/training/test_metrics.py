import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)

from hpo.training.metrics import default_metrics, score

K = 5


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, K - 1), st.integers(0, K - 1)), min_size=1, max_size=40))
def test_scores_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), K).float() * 3
    scores = score(logits, torch.tensor(labels), K)
    probabilities = logits.softmax(1).double().numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert scores.loss == pytest.approx(log_loss(labels, probabilities, labels=range(K)), rel=1e-5)
    assert (scores.confusion_matrix == confusion_matrix(labels, predicted, labels=range(K))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_class = f1_score(labels, predicted, average=None, labels=range(K), zero_division=0)
    assert scores.per_class_f1 == pytest.approx(per_class)
    assert scores.predicted_classes == len(set(predicted))


def test_a_uniform_prediction_loses_the_logarithm_of_the_number_of_classes() -> None:
    scores = score(torch.zeros(20, 10), torch.arange(20) % 10, 10)
    assert scores.loss == pytest.approx(math.log(10))
    assert (scores.accuracy, scores.predicted_classes) == (0.1, 1)
    assert scores.macro_f1 == pytest.approx(2 / 11 / 10)  # the report's dead network: 0.018


@pytest.mark.parametrize("shape", [(30,), (30, 1), (30, 3)])
def test_errors_of_numbers_are_scikit_learns(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(5, 3, shape).astype(np.float32)
    outputs = (targets + rng.normal(0, 2, shape)).astype(np.float32).reshape(30, -1)
    found = default_metrics(torch.from_numpy(outputs), torch.from_numpy(targets))
    theirs = targets.reshape(30, -1)
    assert found == {
        "loss": pytest.approx(mean_squared_error(theirs, outputs), rel=1e-5),
        "mae": pytest.approx(mean_absolute_error(theirs, outputs), rel=1e-5),
        "r2": pytest.approx(r2_score(theirs, outputs), rel=1e-4),
    }


def test_numbers_that_are_all_the_same_have_finite_metrics() -> None:
    found = default_metrics(torch.tensor([[1.0], [2.0]]), torch.ones(2))
    assert all(map(math.isfinite, found.values()))


def test_the_default_metrics_of_classes_are_those_of_the_scores() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 4
    scores = score(logits, labels, 4)
    assert default_metrics(logits, labels) == {
        "macro_f1": scores.macro_f1,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
    }
