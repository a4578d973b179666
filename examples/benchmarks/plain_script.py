"""The study `l2` as one would write it without hpo: Optuna, torchvision transforms, a DataLoader, fp32.

The yardstick of `throughput.py`; also runs alone:

    python examples/benchmarks/plain_script.py PATH --epochs 2

PATH has the parts train and validation, as `sample.py` makes them, of 32×32 pixels and ten classes. The
images are decoded into memory first, as torchvision's CIFAR10 has them; the clock starts after that, and
after a GPU's own start. Same network, optimiser, batch size, images and metrics as the study of hpo: two
convolutions, Adam, batches of 20, loss, accuracy and macro F1 after each epoch. `equality.py` trains one
point of it with many seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import optuna
import torch
from PIL import Image
from sample import files_of
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

L2 = [0.01, 0.001, 0.0001, 0.00001]
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Pictures in memory, transformed one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def read(folder: Path) -> Images:
    """All pictures of a part, by class."""
    files, labels = files_of(folder)
    return Images(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), np.array(labels))


def network() -> nn.Sequential:
    """The report's network as the report chose it."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 128, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128 * 8 * 8, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def evaluate(model: nn.Module, loader: Batches, device: str) -> tuple[float, float, float]:
    """Loss, accuracy, macro F1."""
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for images, truth in loader:
            logits.append(model(images.to(device)).cpu())
            labels.append(truth.cpu())
    model.train()
    scores, truth = torch.cat(logits), torch.cat(labels)
    predicted = scores.argmax(1)
    loss = nn.functional.cross_entropy(scores, truth).item()
    return loss, (predicted == truth).double().mean().item(), f1_score(truth, predicted, average="macro")


def main() -> None:
    """Trains the points one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own, one a core")
    parser.add_argument(
        "--points", type=int, nargs="+", default=list(range(len(L2))), help="which of the four"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each point is trained with each")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train, valid = read(options.folder / "train"), read(options.folder / "validation")

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(options.seeds[trial.number % len(options.seeds)])
        l2 = trial.suggest_categorical("l2", L2)
        model = network().to(options.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, weight_decay=l2)
        best = 0.0
        for epoch in range(1, options.epochs + 1):
            for images, labels in DataLoader(train, batch_size=20, shuffle=True):
                optimizer.zero_grad()
                images, labels = images.to(options.device), labels.to(options.device)
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            *_, f1 = evaluate(model, DataLoader(valid, batch_size=250), options.device)
            best = max(best, f1)
            trial.report(f1, epoch)
        return best

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for point in options.points:
        for _ in options.seeds:
            study.enqueue_trial({"l2": L2[point]})
    torch.zeros(1, device=options.device)
    began = time.perf_counter()
    study.optimize(objective, n_trials=len(options.points) * len(options.seeds))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "macro_f1": [trial.value for trial in study.trials]}))


if __name__ == "__main__":
    main()
