"""A stratified sample of an image folder as a folder of its own, so that all contenders have the same images.

    python examples/benchmarks/sample.py PATH TARGET [--train 4000] [--validation 2000]

PATH has `train/CLASS/*`, as `hpo run --data folder:PATH` takes it; TARGET gets the parts train, validation
and test as links to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.model_selection import train_test_split

N_TEST = 100
"""No benchmark looks at the test set, but a folder has to have one."""


def files_of(folder: Path) -> tuple[list[Path], list[int]]:
    """The pictures of a folder by class, and the numbers of the classes."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [(path, n) for n, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    return [path for path, _ in found], [label for _, label in found]


def sample(source: Path, target: Path, *, n_train: int, n_valid: int) -> None:
    """Links to a sample of the training images of `source`, the same at every call."""
    files, labels = files_of(source / "train")
    for part, size in {"train": n_train, "validation": n_valid, "test": N_TEST}.items():
        chosen, files, chosen_labels, labels = train_test_split(
            files, labels, train_size=size, stratify=labels, random_state=0
        )
        for file, label in zip(chosen, chosen_labels, strict=True):
            link = target / part / f"{label}" / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def main() -> None:
    """Makes one by hand, for `plain_script.py`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--validation", type=int, default=2000)
    options = parser.parse_args()
    sample(options.source, options.target, n_train=options.train, n_valid=options.validation)


if __name__ == "__main__":
    main()
