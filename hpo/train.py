"""Training: a generator that yields the result of every epoch, for one or several seeds in lockstep.

All randomness is derived from (seed, epoch, purpose), so a resumed run needs weights and optimizer
state only, and on one machine with one thread count it ends bit for bit like an undisturbed one. A
seed shares nothing with its companions but the pixels it reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpo.compute import (
    Normaliser,
    as_tensor,
    batches,
    evaluating,
    predict_logits,
    resolve_device,
    resolve_precision,
)
from hpo.config import TrainingConfig, TrialConfig
from hpo.cuda_graph import CudaGraph
from hpo.diagnostics import logits_and_dead_shares
from hpo.errors import Diverged, Interrupted
from hpo.learner import Learner, entropy, generator_of
from hpo.metrics import score
from hpo.mixup import Mix, draw_mixes
from hpo.tensors import is_like

if TYPE_CHECKING:
    from hpo.data import TrainingData

__all__ = [
    "EpochResult",
    "LayerHealth",
    "SeedEpoch",
    "check_state",
    "predict_logits",
    "resolve_device",
    "resolve_precision",
    "state_of",
    "train",
]

HEALTH_IMAGES = 1000
"""A unit counts as dead when it is zero on the first so many validation images."""
CHUNK_STEPS = 16
"""So many steps are one launch on a GPU. Gradient norms are taken at the first of them, which costs less than
1 % of the time."""


@dataclass(frozen=True)
class LayerHealth:
    """What one epoch says about a layer."""

    weight_gradient: float
    """L2 norm of the gradient of the loss without the L2 penalty, mean over the sampled steps."""
    bias_gradient: float
    dead_share: float | None
    """Share of units (channels, in a convolution) that are zero on all of the first `HEALTH_IMAGES`
    validation images, at all positions; None for the layer without ReLU."""


@dataclass(frozen=True)
class SeedEpoch:
    """One seed's epoch. Losses are mean cross-entropies; `train_loss` is taken while training."""

    seed: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    valid_macro_f1: float
    predicted_classes: int
    """How many classes were predicted at all on the validation images."""
    seconds: float
    """Training and validation together."""
    layers: dict[str, LayerHealth]
    """From the input to the logits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class EpochResult:
    """One epoch of all seeds.

    `learners` are alive: they change when the generator goes on, so take what you need of them before.
    """

    number: int
    """Counted from 1."""
    seeds: tuple[SeedEpoch, ...]
    learners: tuple[Learner, ...]

    @property
    def train_loss(self) -> float:
        """Mean over the seeds."""
        return fmean(seed.train_loss for seed in self.seeds)

    @property
    def valid_loss(self) -> float:
        """Mean over the seeds."""
        return fmean(seed.valid_loss for seed in self.seeds)

    @property
    def valid_accuracy(self) -> float:
        """Mean over the seeds."""
        return fmean(seed.valid_accuracy for seed in self.seeds)

    @property
    def valid_macro_f1(self) -> float:
        """Mean over the seeds."""
        return fmean(seed.valid_macro_f1 for seed in self.seeds)

    @property
    def seconds(self) -> float:
        """Sum over the seeds."""
        return sum(seed.seconds for seed in self.seeds)


def train(
    config: TrialConfig,
    data: TrainingData,
    seeds: Sequence[int],
    *,
    device: str = "cpu",
    precision: str = "fp32",
    resume: Mapping[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Trains one network per seed and yields after every epoch, up to `config.training.epochs`.

    Args:
        config: what to train.
        data: training and validation images.
        seeds: non-negative, one network each; a seed's result does not depend on the others.
        device: as `resolve_device` returns it.
        precision: "fp32" or "bf16".
        resume: what `state_of` returned after an epoch; training goes on with the next one.
        should_stop: asked before every step.

    Raises:
        InputError: the images are too small for the network.
        Diverged: a training or validation loss of an epoch is not finite.
        Interrupted: `should_stop` said so.
    """
    learners = tuple(
        Learner(config, data.image_shape, len(data.class_names), seed, device=device, precision=precision)
        for seed in seeds
    )
    last_epoch = 0
    if resume is not None:
        last_epoch = resume["epoch"]
        for learner, state in zip(learners, resume["learners"], strict=True):
            learner.load_state_dict(state)
    task = _Task(config.training, data, device, precision, should_stop)
    for number in range(last_epoch + 1, config.training.epochs + 1):
        results = tuple(task.epoch(learner, number) for learner in learners)
        yield EpochResult(number, results, learners)


def state_of(epoch: EpochResult) -> dict[str, Any]:
    """What `train(resume=…)` needs to go on after this epoch: tensors and plain types.

    The tensors are the live ones: store them before the next epoch begins.
    """
    return {"epoch": epoch.number, "learners": [learner.state_dict() for learner in epoch.learners]}


def check_state(
    state: Mapping[str, Any],
    epochs: Mapping[int, Sequence[SeedEpoch]],
    config: TrialConfig,
    data: TrainingData,
    seeds: Sequence[int],
) -> None:
    """Checks that `train` can go on from a state of unknown origin, and that these are its epochs so far.

    Raises:
        ValueError: they are not what `state_of` and `train` return for this configuration and these seeds.
    """
    blank = Learner(config, data.image_shape, len(data.class_names), 0)
    for parameter in blank.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    blank.optimizer.step()  # before its first step an optimizer has no state
    if not is_like(state, {"epoch": 1, "learners": [blank.state_dict()] * len(seeds)}):
        raise ValueError("its networks or optimizers are not those of this configuration")
    last = state["epoch"]
    if not 1 <= last <= config.training.epochs or list(epochs) != list(range(1, last + 1)):
        raise ValueError(f"it is of epoch {last}, and does not have the epochs up to there")
    trained = [[each["seed"] for each in state["learners"]]]
    recorded = [[each.seed for each in epoch] for epoch in epochs.values()]
    if any(each != list(seeds) for each in trained + recorded):
        raise ValueError("its seeds are others")
    layers = set(blank.network.layer_names)
    if any(each.layers.keys() != layers for epoch in epochs.values() for each in epoch):
        raise ValueError("its layers are others")


class _Task:
    """What all seeds of a trial share: images on the device, and how an epoch is run."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        device: str,
        precision: str,
        should_stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.n_classes = len(data.class_names)
        self.device = device
        self.precision = precision
        self.should_stop = should_stop
        self.images = as_tensor(data.train.images, device)
        self.labels = as_tensor(data.train.labels, device)
        self.valid_images = as_tensor(data.valid.images, device)
        self.valid_labels = as_tensor(data.valid.labels, device)
        self.normalise = Normaliser(data.mean, data.std, data.image_shape, device)
        self.graphs: dict[tuple[int, bool], CudaGraph] = {}
        if device != "cpu":  # same seed, same bits: cuDNN's fastest gradients of weights add up in any order
            torch.backends.cudnn.deterministic = True

    def epoch(self, learner: Learner, number: int) -> SeedEpoch:
        start = time.perf_counter()
        train_loss, gradients = self._pass_over_training(learner, number)
        with evaluating(learner.network, self.precision) as runner:
            images = batches(self.valid_images, self.normalise, self.precision)
            logits, dead = logits_and_dead_shares(runner, images, HEALTH_IMAGES)
        scores = score(torch.cat(logits), self.valid_labels, self.n_classes)
        if not (math.isfinite(train_loss) and math.isfinite(scores.loss)):
            losses = f"training loss {train_loss}, validation loss {scores.loss}"
            raise Diverged(f"seed {learner.seed}, epoch {number}: {losses}")
        layers = {
            name: LayerHealth(weight_gradient, bias_gradient, dead.get(name))
            for name, (weight_gradient, bias_gradient) in zip(
                learner.network.layer_names, gradients, strict=True
            )
        }
        return SeedEpoch(
            seed=learner.seed,
            train_loss=train_loss,
            valid_loss=scores.loss,
            valid_accuracy=scores.accuracy,
            valid_macro_f1=scores.macro_f1,
            predicted_classes=scores.predicted_classes,
            seconds=time.perf_counter() - start,
            layers=layers,
        )

    def _pass_over_training(self, learner: Learner, number: int) -> tuple[float, list[list[float]]]:
        """The mean loss, and per layer the mean gradient norms of weight and bias."""
        config = self.config
        size = config.batch_size
        order = torch.randperm(len(self.labels), generator=generator_of(learner.seed, number, "order"))
        inputs = [torch.split(order.to(self.device), CHUNK_STEPS * size)]
        is_mixing = config.mixup_alpha > 0 and config.mixup_first_epoch <= number <= config.mixup_last_epoch
        if is_mixing:
            rng = np.random.default_rng(entropy(learner.seed, number, "mixup"))
            weights, partners = draw_mixes(
                [len(each) for each in torch.split(order, size)], config.mixup_alpha, rng
            )
            inputs.append(torch.split(partners.to(self.device), CHUNK_STEPS * size))
            inputs.append(torch.split(weights.to(self.device), CHUNK_STEPS))
        recorded = self._recorded(learner, is_mixing)
        # sums stay on the device: fetching each loss would stall a GPU at every step
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        norms = []
        for chunk in zip(*inputs, strict=True):
            is_whole = len(chunk[0]) == CHUNK_STEPS * size
            steps = recorded if recorded and is_whole else partial(self._steps, learner)
            loss, norm = steps(*chunk)
            loss_sum += loss
            norms.append(norm.clone())
        return loss_sum.item() / len(order), torch.stack(norms).mean(dim=0).tolist()

    def _recorded(self, learner: Learner, is_mixing: bool) -> CudaGraph | None:
        """`_steps` as a graph; None on a CPU."""
        if self.device == "cpu":
            return None
        key = (learner.seed, is_mixing)
        if key not in self.graphs:
            self.graphs[key] = CudaGraph(partial(self._steps, learner))
        return self.graphs[key]

    def _steps(
        self, learner: Learner, order: Tensor, partners: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Steps on consecutive batches; mixed, if there are partners.

        Args:
            learner: takes the steps.
            order: (images,) int64, numbers of images.
            partners: (images,) int64, of each batch in turn.
            weights: (batches,) float32.

        Returns:
            Losses summed over the images, () float64; gradient norms of the first step (layers, 2) float32.
        """
        size = self.config.batch_size
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        norms = None
        for step, batch in enumerate(torch.split(order, size)):
            if self.should_stop():
                raise Interrupted(f"seed {learner.seed}")
            mix = None
            if partners is not None and weights is not None:
                mix = Mix(weights[step], partners[step * size : (step + 1) * size])
            images = self.normalise(self.images[batch])
            loss_sum += learner.step(images, self.labels[batch], mix) * len(batch)
            if norms is None:
                norms = learner.gradient_norms()
        assert norms is not None
        return loss_sum, norms
