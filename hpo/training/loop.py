"""Training: a generator that yields the result of every epoch, for one or several seeds in lockstep.

All randomness is derived from (seed, epoch, purpose), so a resumed run needs weights and optimizer
state only, and on one machine with one thread count it ends bit for bit like an undisturbed one. A
seed shares nothing with its companions but the pixels it reads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hpo.errors import Diverged, Interrupted
from hpo.space.parameters import TrainingConfig, TrialConfig
from hpo.training.cuda import Backlog, CudaGraph, joining, on, prepare, streams
from hpo.training.dead_units import logits_and_dead_shares
from hpo.training.devices import (
    Normaliser,
    as_tensor,
    batches,
    evaluating,
    predict_logits,
    resolve_device,
    resolve_precision,
)
from hpo.training.learner import Learner, entropy, generator_of
from hpo.training.metrics import score
from hpo.training.mixup import Mix, draw_mixes
from hpo.training.tensors import is_like

if TYPE_CHECKING:
    from hpo.data import TrainingData
    from hpo.data.dataset import Split

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
    """Training and validation together: the seed's share of the trial's time."""
    layers: dict[str, LayerHealth]
    """From the input to the logits."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
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
    """Train one network per seed and yield after every epoch, up to `config.training.epochs`.

    Args:
        config: what to train.
        data: training and validation images.
        seeds: non-negative, one network each; a seed's result does not depend on the others.
        device: as `resolve_device` returns it.
        precision: as `resolve_precision` returns it.
        resume: what `state_of` returned after an epoch; training goes on with the next one.
        should_stop: asked before every step; on a GPU before every chunk of steps.

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
    lanes = [
        _Lane(task, learner, stream)
        for learner, stream in zip(learners, streams(device, len(learners)), strict=True)
    ]
    for number in range(last_epoch + 1, config.training.epochs + 1):
        start = time.perf_counter()
        for _ in zip(*[lane.training(number) for lane in lanes], strict=True):
            pass  # a chunk of each seed in turn
        results = [lane.result(number) for lane in lanes]
        seconds = (time.perf_counter() - start) / len(lanes)
        yield EpochResult(number, tuple(replace(each, seconds=seconds) for each in results), learners)


def state_of(epoch: EpochResult) -> dict[str, Any]:
    """Return what `train(resume=…)` needs to go on after this epoch: tensors and plain types.

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
    """Check that `train` can go on from a state of unknown origin, and that these are its epochs so far.

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
    """What all seeds of a trial share: images on the device, and how the steps of an epoch are taken."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        device: str,
        precision: str,
        should_stop: Callable[[], bool],
    ) -> None:
        prepare(device, precision)
        self.config = config
        self.n_classes = len(data.class_names)
        self.device = device
        self.precision = precision
        self.should_stop = should_stop
        self.images, self.labels = _resident(data.train, device)
        self.valid_images, self.valid_labels = _resident(data.valid, device)
        self.normalise = Normaliser(data.mean, data.std, data.image_shape, device)

    def is_mixing(self, epoch: int) -> bool:
        """Return whether the images of that epoch are mixed."""
        config = self.config
        return config.mixup_alpha > 0 and config.mixup_first_epoch <= epoch <= config.mixup_last_epoch

    def steps(
        self, learner: Learner, order: Tensor, partners: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Step on consecutive batches; mixed, if there are partners.

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


class _Lane:
    """One seed on its way through a task; on a GPU with a stream of its own, beside the other seeds."""

    def __init__(self, task: _Task, learner: Learner, stream: torch.cuda.Stream | None) -> None:
        self._task, self._learner, self._stream = task, learner, stream
        self._graphs: dict[tuple[bool, int], CudaGraph] = {}
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=task.device)
        self._norms: list[Tensor] = []
        self._backlog = Backlog(stream)

    def training(self, epoch: int) -> Iterator[None]:
        """Train an epoch; hand over after every chunk of steps."""
        # sums stay on the device: fetching each loss would stall a GPU at every step
        self._loss_sum.zero_()
        self._norms.clear()
        inputs = self._inputs(epoch)
        with joining(self._stream):
            for chunk in zip(*inputs, strict=True):
                if self._task.should_stop():  # no step asks when it is replayed
                    raise Interrupted(f"seed {self._learner.seed}")
                with on(self._stream):
                    loss, norm = self._steps(chunk)
                    self._loss_sum += loss
                    self._norms.append(norm.clone())
                self._backlog.add()
                yield

    def result(self, epoch: int) -> SeedEpoch:
        """Evaluate after the training of an epoch; the time is not yet in it."""
        task, learner = self._task, self._learner
        train_loss = self._loss_sum.item() / len(task.labels)
        gradients = torch.stack(self._norms).mean(dim=0).tolist()
        with evaluating(learner.network, task.precision) as runner:
            images = batches(task.valid_images, task.normalise, task.precision)
            logits, dead = logits_and_dead_shares(runner, images, HEALTH_IMAGES)
        scores = score(torch.cat(logits), task.valid_labels, task.n_classes)
        if not (math.isfinite(train_loss) and math.isfinite(scores.loss)):
            losses = f"training loss {train_loss}, validation loss {scores.loss}"
            raise Diverged(f"seed {learner.seed}, epoch {epoch}: {losses}")
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
            seconds=0.0,
            layers=layers,
        )

    def _inputs(self, epoch: int) -> Sequence[Sequence[Tensor]]:
        """Return what `_Task.steps` takes after the learner, each cut into chunks."""
        task, seed = self._task, self._learner.seed
        size = task.config.batch_size
        order = torch.randperm(len(task.labels), generator=generator_of(seed, epoch, "order"))
        inputs = [torch.split(order.to(task.device), CHUNK_STEPS * size)]
        if task.is_mixing(epoch):
            rng = np.random.default_rng(entropy(seed, epoch, "mixup"))
            sizes = [len(each) for each in torch.split(order, size)]
            weights, partners = draw_mixes(sizes, task.config.mixup_alpha, rng)
            inputs.append(torch.split(partners.to(task.device), CHUNK_STEPS * size))
            inputs.append(torch.split(weights.to(task.device), CHUNK_STEPS))
        return inputs

    def _steps(self, chunk: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Take `_Task.steps`, on a GPU as a graph; an epoch's last chunk and mixed ones have their own."""
        call = partial(self._task.steps, self._learner)
        if self._task.device == "cpu":
            return call(*chunk)
        is_mixing, n_images = len(chunk) > 1, len(chunk[0])
        graph = self._graphs.setdefault((is_mixing, n_images), CudaGraph(call, self._task.device))
        return graph(*chunk)


_RESIDENTS: WeakKeyDictionary[Split, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
_RESIDENTS_LOCK = threading.Lock()


def _resident(split: Split, device: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of a part on a device: there once, however many trials train on them."""
    with _RESIDENTS_LOCK:
        there = _RESIDENTS.setdefault(split, {})
        if device not in there:
            there[device] = as_tensor(split.images, device), as_tensor(split.labels, device)
        return there[device]
