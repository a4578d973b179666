import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from hpo.training.metrics import score

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
