"""Your own images: a function that returns `ImageData`, named by module and function.

The command line takes the same: `hpo run --data python:own_dataset:stripes` from this folder. The name
travels to worker processes and other machines, so the function must give the same images everywhere;
`hpo` compares their fingerprint.
"""

import os
from pathlib import Path

import numpy as np

from hpo import ImageData, rows, run_plan


def stripes(n_per_class: int = 60, size: int = 16) -> ImageData:
    """Grey images of noisy stripes: horizontal, vertical, diagonal."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    patterns = np.stack([y, x, x + y]) // 3 % 2 * 120
    labels = np.repeat(np.arange(3), 2 * n_per_class)
    noise = generator.integers(0, 136, (len(labels), size, size))
    images = (patterns[labels] + noise).astype(np.uint8)[..., np.newaxis]
    train, test = slice(0, None, 2), slice(1, None, 2)
    return ImageData(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=("horizontal", "vertical", "diagonal"),
    )


if __name__ == "__main__":
    out = Path("stripes-out").resolve()
    os.chdir(Path(__file__).parent)  # the workers import `own_dataset` from the current folder
    plan = run_plan(["learning-rate"], data="python:own_dataset:stripes", out=out, epochs=2)
    for row in rows(plan, "learning-rate"):
        print(row.params, f"macro F1 {row.metrics['macro_f1']:.3f}")
