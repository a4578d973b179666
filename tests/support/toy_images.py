"""Small image data that a network can learn in a second."""

from __future__ import annotations

import numpy as np
import torch

from hpo.data.dataset import DataInfo, Split, TrainingData

torch.set_num_threads(1)  # tensors this small only make a second thread wait, for long on a busy machine


def toy_data(
    n_train: int = 96, n_valid: int = 60, shape: tuple[int, int, int] = (8, 8, 1), n_classes: int = 3
) -> TrainingData:
    """Each class is a fixed random picture (h, w, c) under noise."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (n_classes, *shape))

    def split(n: int) -> Split:
        labels = np.arange(n) % n_classes
        images = 0.5 * pictures[labels] + 0.5 * rng.integers(0, 256, (n, *shape))
        return Split(images.astype(np.uint8), labels.astype(np.int64))

    train, valid = split(n_train), split(n_valid)
    pixels = (train.inputs / 255).reshape(-1, shape[2])
    return TrainingData(
        train=train,
        valid=valid,
        mean=pixels.mean(axis=0).astype(np.float32),
        std=pixels.std(axis=0).astype(np.float32),
        info=DataInfo((shape[2], *shape[:2]), tuple(f"class {k}" for k in range(n_classes)), n_classes),
        source="toy",
        fingerprint="0" * 16,
    )
