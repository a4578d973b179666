"""Small tables that a network can learn in a second."""

from __future__ import annotations

import numpy as np

from hpo.data.dataset import DataInfo, Split, TrainingData


def toy_table(
    n_train: int = 96, n_valid: int = 60, n_features: int = 5, n_classes: int = 0, n_outputs: int = 1
) -> TrainingData:
    """A table whose targets are linear in its features: numbers, or the largest of `n_classes`."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(n_features, n_classes or n_outputs))
    mean, std = rng.normal(size=n_features), 1 + rng.random(n_features)

    def split(n: int) -> Split:
        inputs = rng.normal(size=(n, n_features))
        numbers = inputs @ weights
        targets = numbers.argmax(axis=1) if n_classes else numbers.astype(np.float32)
        if not n_classes and n_outputs == 1:
            targets = targets[:, 0]
        return Split((mean + std * inputs).astype(np.float32), targets)

    return TrainingData(
        train=split(n_train),
        valid=split(n_valid),
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        info=DataInfo(
            (n_features,),
            tuple(f"class {k}" for k in range(n_classes)),
            n_classes or n_outputs,
            is_images=False,
        ),
        source="toy table",
        fingerprint="1" * 16,
    )
