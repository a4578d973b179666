"""What `mlp.py` does, by Optuna and PyTorch alone: pruning, seeds, a checkpoint an epoch, resuming.

`python plain_optuna.py` runs it; run it again after a kill. What would take more lines still is left out:
several workers, a second study that inherits, controls, tests of differences, a final stage on the test set,
GPUs, a report.
"""

import math
import os
import random
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import optuna
import torch
from optuna.trial import Trial, TrialState
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

OUT = Path("plain-out")
EPOCHS, SEEDS, BATCH_SIZE = 5, (0, 1, 2), 20
N_TRIALS = int(sys.argv[1]) if len(sys.argv) > 1 else 12
STUDY = "mlp"


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and validation part; the test part stays away."""
    inputs, targets = load_digits(return_X_y=True)
    rest, _, rest_targets, _ = train_test_split(
        inputs, targets, test_size=0.2, stratify=targets, random_state=0
    )
    train, valid, train_targets, valid_targets = train_test_split(
        rest, rest_targets, test_size=0.2, stratify=rest_targets, random_state=0
    )
    mean, std = train.mean(), train.std()
    return (
        torch.tensor((train - mean) / std, dtype=torch.float32),
        torch.tensor(train_targets),
        torch.tensor((valid - mean) / std, dtype=torch.float32),
        torch.tensor(valid_targets),
    )


def build(depth: int, width: int, dropout: float, n_inputs: int, n_classes: int) -> nn.Module:
    """Return the network of `mlp.py`."""
    layers: list[nn.Module] = []
    for n_in in [n_inputs, *[width] * (depth - 1)]:
        layers += [nn.Linear(n_in, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def seed_everything(seed: int, epoch: int) -> None:
    """Make an epoch a function of seed and number."""
    torch.manual_seed(1000 * seed + epoch)
    np.random.seed(1000 * seed + epoch)
    random.seed(1000 * seed + epoch)


def save(file: Path, state: object) -> None:
    """Replace a checkpoint whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def objective(trial: Trial) -> float:
    """Train all seeds of a point in lockstep; report their mean after every epoch."""
    depth = trial.suggest_int("depth", 1, 2)
    width = trial.suggest_categorical("width", [32, 64])
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    train, train_targets, valid, valid_targets = load()
    networks, optimizers = [], []
    for seed in SEEDS:
        seed_everything(seed, 0)
        networks.append(build(depth, width, dropout, train.shape[1], 10))
        optimizers.append(torch.optim.Adam(networks[-1].parameters(), lr=rate))
    origin = trial.user_attrs.get("origin", trial.number)
    checkpoint = OUT / f"{origin}.pt"
    values: list[float] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        values = state["values"]
        for network, optimizer, stored in zip(networks, optimizers, state["seeds"], strict=True):
            network.load_state_dict(stored["network"])
            optimizer.load_state_dict(stored["optimizer"])
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
    for epoch in range(len(values) + 1, EPOCHS + 1):
        scores = []
        for seed, network, optimizer in zip(SEEDS, networks, optimizers, strict=True):
            seed_everything(seed, epoch)
            network.train()
            for batch in torch.split(torch.randperm(len(train)), BATCH_SIZE):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(train[batch]), train_targets[batch])
                if not math.isfinite(loss.item()):
                    raise optuna.TrialPruned("diverged")
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            network.eval()
            with torch.inference_mode():
                predicted = network(valid).argmax(dim=1)
            scores.append(float(f1_score(valid_targets, predicted, average="macro")))
        values.append(fmean(scores))
        trial.report(values[-1], epoch)
        stored = [
            {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            for network, optimizer in zip(networks, optimizers, strict=True)
        ]
        save(checkpoint, {"values": values, "seeds": stored})
        if trial.should_prune():
            raise optuna.TrialPruned
    checkpoint.unlink()
    return max(values)


def requeue(study: optuna.Study) -> None:
    """Queue the trials that a killed process left behind; there must be no other process."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, user_attrs={"origin": trial.user_attrs.get("origin", trial.number)})
        study.tell(trial.number, state=TrialState.FAIL)


def main() -> None:
    """Go on until there are enough trials."""
    OUT.mkdir(exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{OUT / 'plain.db'}",
        study_name=STUDY,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=2),
        load_if_exists=True,
    )
    requeue(study)
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    study.optimize(objective, n_trials=max(0, N_TRIALS - len(ended)))
    print(f"macro F1 {study.best_value:.3f} with {study.best_params}")


if __name__ == "__main__":
    main()
