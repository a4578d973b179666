"""Training: a generator that yields the result of every epoch, for one or several seeds in lockstep.

All randomness is derived from (seed, epoch, purpose), so a resumed run needs weights and optimizer
state only, and on one machine with one thread count it ends bit for bit like an undisturbed one. A
seed shares nothing with its companions but the inputs it reads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hpo.errors import Diverged, InputError, Interrupted, did_you_mean
from hpo.space.parameters import Params, as_written
from hpo.training import fused
from hpo.training.augmentations import AUGMENTATIONS, active
from hpo.training.cuda import Backlog, CudaGraph, is_cuda, is_lost, is_out_of_memory, prepare
from hpo.training.dead_units import watching
from hpo.training.devices import (
    DTYPES,
    Normaliser,
    as_tensor,
    batches,
    evaluating,
    normaliser,
    sum_dtype,
    targets_tensor,
)
from hpo.training.learner import Learner, build, check_outputs, graph_hindrance
from hpo.training.losses import balanced
from hpo.training.mixup import Mix, draw_mixes
from hpo.training.randomness import drawing_on_the_device, entropy, generator_of, seed_generators
from hpo.training.recipe import Layer, Recipe
from hpo.training.schedules import is_constant
from hpo.training.slots import Key, Slot, Slots, structure_of
from hpo.training.tensors import is_like

if TYPE_CHECKING:
    from hpo.data import TrainingData
    from hpo.data.dataset import Split

HEALTH_INPUTS = 1000
"""A unit counts as dead when it is zero on the first so many validation inputs."""
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
    """Share of units (channels, in a convolution) that are zero on all of the first `HEALTH_INPUTS`
    validation inputs, at all positions; None for a layer without ReLU."""


@dataclass(frozen=True)
class SeedEpoch:
    """One seed's epoch."""

    seed: int
    metrics: dict[str, float]
    """On the validation part, by the names that the recipe declares."""
    train_loss: float | None
    """Mean over the training part, taken while training; None where a loop of one's own has told none."""
    predicted_classes: int | None
    """How many classes were predicted at all on the validation part; None where targets are numbers."""
    seconds: float
    """Training and validation together: the seed's share of the trial's time."""
    layers: dict[str, LayerHealth]
    """Of the layers that the recipe has watched, from the input to the output."""

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
    learners: tuple[Learner, ...] = ()
    """Empty where the recipe has a loop of its own."""
    states: tuple[Mapping[str, Any] | None, ...] = ()
    """What a loop of one's own yielded, by seed."""
    resumable: bool = True
    """Whether training can go on from them."""
    notes: tuple[str, ...] = ()
    """What is to be said of how it was trained."""

    def mean(self, metric: str) -> float:
        """Return a metric, mean over the seeds."""
        return fmean(seed.metrics[metric] for seed in self.seeds)

    @property
    def seconds(self) -> float:
        """Sum over the seeds."""
        return sum(seed.seconds for seed in self.seeds)


def train(
    recipe: Recipe,
    config: Mapping[str, Any],
    data: TrainingData,
    seeds: Sequence[int],
    *,
    device: str = "cpu",
    precision: str = "fp32",
    resume: Mapping[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    slots: Slots | None = None,
    count: Callable[[int], None] = lambda n_examples: None,
) -> Generator[EpochResult, None, None]:
    """Train one model per seed and yield after every epoch, up to `config["epochs"]`.

    Args:
        recipe: what to train.
        config: all its parameters.
        data: training and validation part.
        seeds: non-negative, one model each; a seed's result does not depend on the others.
        device: as `resolve_device` returns it.
        precision: as `resolve_precision` returns it.
        resume: what `state_of` returned after an epoch; training goes on with the next one.
        should_stop: asked before every step; on a GPU before every chunk of steps.
        slots: what earlier calls have left of their recordings, of the same recipe, data, device and
            precision; this one leaves its own there. None: nothing is kept.
        count: told of the examples of every chunk of steps.

    Raises:
        InputError: the recipe refuses the parameters or the data, or does not keep its contract.
        Diverged: a training loss or a metric of an epoch is not finite.
        Interrupted: `should_stop` said so.
    """
    params = recipe.params_of(config)
    if recipe.has_own_loop:
        from hpo.training.own_loop import train_own

        yield from train_own(
            recipe,
            params,
            data,
            seeds,
            device=device,
            precision=precision,
            resume=resume,
            should_stop=should_stop,
        )
        return
    task = _Task(recipe, params, data, device, precision, should_stop, count)
    taken = [task.slot(seed, slots) for seed in seeds]
    learners = tuple(slot.learner for slot in taken)
    last_epoch = 0
    if resume is not None:
        last_epoch = resume["epoch"]
        for learner, state in zip(learners, resume["learners"], strict=True):
            learner.load_state_dict(state)
    lanes = [_Lane(task, slot) for slot in taken]
    for number in range(last_epoch + 1, params.epochs + 1):
        start = time.perf_counter()
        for _ in zip(*[lane.training(number) for lane in lanes], strict=True):
            pass  # a chunk of each seed in turn
        results = [lane.result(number) for lane in lanes]
        seconds = (time.perf_counter() - start) / len(lanes)
        yield EpochResult(
            number,
            tuple(replace(each, seconds=seconds) for each in results),
            learners,
            notes=tuple(dict.fromkeys(note for lane in lanes for note in lane.notes)),
        )
    for slot in taken:  # not where training was cut short: the device may be at work on it
        if slots is not None:
            slots.give(slot)


def state_of(epoch: EpochResult) -> dict[str, Any] | None:
    """Return what `train(resume=…)` needs to go on after this epoch: tensors and plain types.

    The tensors are the live ones: store them before the next epoch begins. None: a loop of one's own keeps no
    state, or an optimizer of one's own changes its settings, and a trial begins anew.
    """
    if not all(learner.is_resumable for learner in epoch.learners):
        return None
    if epoch.learners:
        return {"epoch": epoch.number, "learners": [learner.state_dict() for learner in epoch.learners]}
    if not epoch.resumable or any(state is None for state in epoch.states):
        return None
    return {"epoch": epoch.number, "states": [dict(state or {}) for state in epoch.states]}


def check_state(
    state: Mapping[str, Any],
    epochs: Mapping[int, Sequence[SeedEpoch]],
    recipe: Recipe,
    config: Mapping[str, Any],
    data: TrainingData,
    seeds: Sequence[int],
) -> None:
    """Check that `train` can go on from a state of unknown origin, and that these are its epochs so far.

    Raises:
        ValueError: they are not what `state_of` and `train` return for this configuration and these seeds.
    """
    params = recipe.params_of(config)
    layers: set[str] = set()
    if recipe.has_own_loop:
        if set(state) != {"epoch", "states"} or not isinstance(state["epoch"], int):
            raise ValueError("it is no state of a training loop")
        if len(state["states"]) != len(seeds):
            raise ValueError("its seeds are others")
    else:
        blank = Learner(recipe, params, data.info, 0)
        inputs = as_tensor(data.train.inputs[:2], "cpu")
        # weights that nothing uses, or that are frozen, have no gradient and no optimizer's state
        blank.network(normaliser(data.mean, data.std, data.info, "cpu")(inputs)).sum().backward()
        with torch.no_grad():  # the optimizers of hpo leave that to who calls them
            blank.optimizer.step()  # before its first step an optimizer has no state
        if not is_like(state, {"epoch": 1, "learners": [blank.state_dict()] * len(seeds)}):
            raise ValueError("its networks or optimizers are not those of this configuration")
        if [each["seed"] for each in state["learners"]] != list(seeds):
            raise ValueError("its seeds are others")
        layers = set(blank.layers)
        all_epochs = [each for epoch in epochs.values() for each in epoch]
        if any(each.train_loss is None for each in all_epochs):
            raise ValueError("a training loss is missing")
        if any((each.predicted_classes is None) == bool(data.n_classes) for each in all_epochs):
            raise ValueError("it does not say how many classes were predicted")
    last = state["epoch"]
    if not 1 <= last <= params.epochs or list(epochs) != list(range(1, last + 1)):
        raise ValueError(f"it is of epoch {last}, and does not have the epochs up to there")
    if any([each.seed for each in epoch] != list(seeds) for epoch in epochs.values()):
        raise ValueError("its seeds are others")
    if any(each.layers.keys() != layers for epoch in epochs.values() for each in epoch):
        raise ValueError("its layers are others")
    if any(each.metrics.keys() != recipe.metrics.keys() for epoch in epochs.values() for each in epoch):
        raise ValueError("its metrics are others")


LARGEST = 1e150
"""A metric beyond it counts as infinite: no mean or variance of those below overflows."""
_DIRECTIONS = {**Recipe.metrics, "r2": "maximize"}
"""Of the metrics that `default_metrics` returns, as far as they are not to be minimised."""


def checked_metrics(recipe: Recipe, found: object, where: str) -> dict[str, float]:
    """Return the metrics that a recipe declares, of what it returned.

    Raises:
        InputError: one is missing, or no number.
    """
    if not isinstance(found, Mapping):
        raise InputError(f"{where} must return a mapping of metrics, returned {type(found).__name__}")
    metrics = {}
    for name in recipe.metrics:
        if name not in found:
            raise InputError(
                f"{where} returned no {name!r}, which metrics declares; {_hint(recipe, name, found)}"
            )
        try:
            number = float(found[name])
            metrics[name] = number if abs(number) <= LARGEST else number * math.inf
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{where}: {name} = {found[name]!r}: must be a number") from None
    return metrics


def _hint(recipe: Recipe, name: str, found: Mapping[str, Any]) -> str:
    near = did_you_mean(name, found)
    if recipe.metrics is Recipe.metrics and near.startswith("known"):  # nobody has declared any
        declared = ", ".join(f"{each!r}: {_DIRECTIONS.get(each, 'minimize')!r}" for each in found)
        return f"declare what it returns, as metrics = {{{declared}}}, each 'minimize' or 'maximize'"
    return near


def params_at(recipe: Recipe, params: Any, epoch: int) -> Any:
    """Return the parameters as they hold in an epoch.

    Raises:
        InputError: `at_epoch` changes one that nothing asks for by epoch: it would change nothing.
    """
    found = recipe.at_epoch(params, epoch)
    if not isinstance(found, type(params)):
        raise InputError(f"at_epoch must return {type(params).__name__}, returned {type(found).__name__}")
    own = type(params).model_fields.keys() - Params.model_fields.keys()
    asked = {*AUGMENTATIONS, "mixup", *(own if recipe.overrides("augment") else ())}
    for name in type(params).model_fields:
        if name not in asked and getattr(found, name) != getattr(params, name):
            raise InputError(
                f"at_epoch changes {name} in epoch {epoch}, to no effect: it is asked by "
                f"{', '.join(AUGMENTATIONS)}, mixup and an augment of yours; schedule changes the rate"
            )
    return found


def check_settings(recipe: Recipe, params: Params, data: TrainingData) -> None:
    """Check that what is on, and off by default, can do something to these data.

    Raises:
        InputError: it cannot: points that differ in it would be trained twice, to the same end.
    """
    info, has_own_loss = data.info, recipe.overrides("loss")
    no_images = "" if info.is_images else f"changes images, and the inputs are arrays {info.input_shape}"
    no_classes = "" if info.n_classes else "is for classes, and the targets are numbers"
    own_loss = "is for the default loss, and the recipe has a loss of its own" if has_own_loss else ""
    is_weighable = info.is_images or np.issubdtype(data.train.inputs.dtype, np.floating)
    hindrances = {
        **dict.fromkeys(AUGMENTATIONS, no_images),
        "mixup": "" if is_weighable else "weighs inputs, and the inputs are integers",
        "label_smoothing": "" if has_own_loss else no_classes,
        "class_weights": own_loss or no_classes,
    }
    for name, hindrance in hindrances.items():
        value = getattr(params, name)
        if hindrance and value != Params.model_fields[name].default:
            raise InputError(f"{name} = {as_written(value)}: {hindrance}")


class _Task:
    """What all seeds of a trial share: data on the device, and how the steps of an epoch are taken."""

    def __init__(
        self,
        recipe: Recipe,
        params: Any,
        data: TrainingData,
        device: str,
        precision: str,
        should_stop: Callable[[], bool],
        count: Callable[[int], None],
    ) -> None:
        prepare(device, precision)
        check_settings(recipe, params, data)
        self.recipe, self.params, self.info = recipe, params, data.info
        self.device = device
        self.precision = precision
        self.should_stop, self.count = should_stop, count
        self.inputs, self.targets = _resident(data.train, device)
        self.valid_inputs, self.valid_targets = _resident(data.valid, device)
        self.normalise = normaliser(data.mean, data.std, data.info, device)
        self.class_weights = None
        if params.class_weights == "balanced":
            self.class_weights = balanced(data.train.targets, data.n_classes).to(device)

    def slot(self, seed: int, slots: Slots | None) -> Slot:
        """Return a learner with what has been recorded of its steps: one that was kept, or a new one."""
        network = build(self.recipe, self.params, self.info, seed)
        keys = [] if slots is None or graph_hindrance(self.recipe, network) else self._keys(network)
        for key in keys:
            found = slots.take(key) if slots else None
            if found is not None:
                found.learner.begin_anew(self.params, seed, network)
                return found
        learner = Learner(
            self.recipe,
            self.params,
            self.info,
            seed,
            device=self.device,
            precision=self.precision,
            class_weights=self.class_weights,
            network=network,
        )
        return Slot(learner, keys[0 if learner.reads_its_rate else 1] if keys else None)

    def _keys(self, network: nn.Module) -> list[Key]:
        """Return what recorded steps depend on: where they read the rates anew, and where they do not."""
        structure = structure_of(network)
        if structure is None:
            return []
        params = self.params
        shared: Key = (structure, params.batch_size, params.optimizer, is_constant(params))
        shared += (params.label_smoothing, params.class_weights)
        if self.recipe.overrides("loss"):
            shared += (repr(params),)
        return [shared, (*shared, params.learning_rate, params.l2, params.momentum)]

    @property
    def n_steps(self) -> int:
        """How many steps an epoch has."""
        size: int = self.params.batch_size
        return math.ceil(len(self.targets) / size)

    def steps(
        self, learner: Learner, epoch: int, chunk: int, names: Sequence[str], *drawn: Tensor
    ) -> Outcome:
        """Step on consecutive batches.

        Args:
            learner: takes the steps.
            epoch: counted from 1.
            chunk: which stretch of the epoch it is, from 0.
            names: of what was drawn: `order`; then augmentations, `partners` and `weights` of mixup, `rates`.
            drawn: order (inputs,) int64; of augmentations a row an input; partners (inputs,) int64, of each
                batch in turn; weights and rates (batches,) float32.

        Returns:
            Losses summed over the inputs, () of `sum_dtype`; gradient norms of the first step, (layers, 2)
            float32.
        """
        size, recipe = self.params.batch_size, self.recipe
        at_epoch = params_at(recipe, self.params, epoch)
        by_name = dict(zip(names, drawn, strict=True))
        parts = {name: torch.split(by_name[name], size) for name in names if name not in PER_STEP}
        own = generator_of(learner.seed, epoch, "augment", chunk) if recipe.overrides("augment") else None
        is_changed = own is not None or any(name in AUGMENTATIONS or name == "partners" for name in names)
        loss_sum = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        norms = None
        for step, batch in enumerate(parts["order"]):
            if self.should_stop():
                raise Interrupted(f"seed {learner.seed}")
            inputs, targets = self._inputs(batch, is_changed), self.targets[batch]
            for name in names:
                if name in AUGMENTATIONS:
                    inputs = AUGMENTATIONS[name].apply(at_epoch, inputs, parts[name][step])
            if own is not None:
                inputs, targets = recipe.augment(at_epoch, inputs, targets, epoch, own)
            mix = None
            if "partners" in parts:
                mix = Mix(by_name["weights"][step], parts["partners"][step])
            rate: float | Tensor | None = None
            if "rates" in by_name:
                rate = by_name["rates"][step]
                rate = rate if is_cuda(self.device) else rate.item()
            loss_sum += learner.step(inputs, targets, mix, rate) * len(batch)
            if norms is None:
                norms = learner.gradient_norms()
        assert norms is not None
        return loss_sum, norms

    def _inputs(self, batch: Tensor, is_changed: bool) -> Tensor:
        """Return normalised training inputs; as arithmetic wants them unless they are yet to be changed."""
        if not (isinstance(self.normalise, Normaliser) and fused.in_use_on(self.inputs.device) == "triton"):
            return self.normalise(self.inputs[batch])
        dtype = torch.float32 if is_changed else DTYPES[self.precision]
        return self.normalise.gathered(self.inputs, batch, dtype)


Outcome = tuple[Tensor, Tensor]
PER_STEP = ("weights", "rates")
"""What has one number a step; all else has one row an input."""


class _Lane:
    """One seed on its way through a task.

    On a GPU, too, seeds take turns: beside each other on streams of one thread a step of one of two, four,
    eight took 1.3, 1.6, 2.4 times as long as alone (H200), while other trials fill the device as well.
    """

    def __init__(self, task: _Task, slot: Slot) -> None:
        self._task, self._learner, self._graphs = task, slot.learner, slot.graphs
        self._loss_sum = torch.zeros((), dtype=sum_dtype(task.device), device=task.device)
        self._norms: list[Tensor] = []
        self._backlog = Backlog(task.device)
        self._is_recorded = is_cuda(task.device)
        self.notes: list[str] = []
        if self._is_recorded and (hindrance := graph_hindrance(task.recipe, slot.learner.network)):
            self._take_plain_steps(hindrance)

    def _take_plain_steps(self, why: str) -> None:
        self._is_recorded = False
        self.notes.append(f"steps are not recorded as CUDA graphs: {why}")

    def training(self, epoch: int) -> Iterator[None]:
        """Train an epoch; hand over after every chunk of steps."""
        # sums stay on the device: fetching each loss would stall a GPU at every step
        self._loss_sum.zero_()
        self._norms.clear()
        drawn = self._drawn(epoch)
        for number, chunk in enumerate(zip(*drawn.values(), strict=True)):
            if self._task.should_stop():  # no step asks when it is replayed
                raise Interrupted(f"seed {self._learner.seed}")
            loss, norm = self._steps(epoch, number, tuple(drawn), chunk)
            self._loss_sum += loss
            self._norms.append(norm.clone())
            self._backlog.add()
            self._task.count(len(chunk[0]))
            yield

    def result(self, epoch: int) -> SeedEpoch:
        """Evaluate after the training of an epoch; the time is not yet in it."""
        task, learner = self._task, self._learner
        train_loss = self._loss_sum.item() / len(task.targets)
        gradients = torch.stack(self._norms).mean(dim=0).tolist()
        if task.recipe.draws_in_training:
            seed_generators(task.device, learner.seed, epoch, "evaluation")
        with evaluating(learner.network, task.precision) as runner:
            layers: Mapping[str, Layer] = task.recipe.layers(runner) if learner.layers else {}
            with watching(layers, HEALTH_INPUTS) as dead:
                parts = batches(task.valid_inputs, task.normalise, task.precision)
                outputs = torch.cat([runner(part).float() for part in parts])
        check_outputs(outputs, len(task.valid_targets), task.info)
        outputs = outputs.reshape(len(outputs), -1)
        if not math.isfinite(train_loss) or outputs.isnan().any():
            numbers = "" if not outputs.isnan().any() else ", and outputs that are no numbers"
            raise Diverged(f"seed {learner.seed}, epoch {epoch}: training loss {train_loss}{numbers}")
        metrics = checked_metrics(task.recipe, task.recipe.evaluate(outputs, task.valid_targets), "evaluate")
        check_finite(metrics, train_loss, learner.seed, epoch)
        return SeedEpoch(
            seed=learner.seed,
            metrics=metrics,
            train_loss=train_loss,
            predicted_classes=len(torch.unique(outputs.argmax(dim=1))) if task.info.n_classes else None,
            seconds=0.0,
            layers={
                name: LayerHealth(weight_gradient, bias_gradient, dead.get(name))
                for name, (weight_gradient, bias_gradient) in zip(learner.layers, gradients, strict=True)
            },
        )

    def _drawn(self, epoch: int) -> dict[str, Sequence[Tensor]]:
        """Return what `_Task.steps` takes by name, each cut into chunks."""
        task, seed = self._task, self._learner.seed
        at_epoch = params_at(task.recipe, task.params, epoch)
        size = task.params.batch_size
        order = torch.randperm(len(task.targets), generator=generator_of(seed, epoch, "order"))
        sizes = [len(each) for each in torch.split(order, size)]
        drawn = {"order": order}
        for name in active(at_epoch):
            rng = np.random.default_rng(entropy(seed, epoch, name))
            drawn[name] = AUGMENTATIONS[name].draw(at_epoch, sizes, task.info.input_shape, rng)
        if at_epoch.mixup > 0:
            rng = np.random.default_rng(entropy(seed, epoch, "mixup"))
            drawn["weights"], drawn["partners"] = draw_mixes(sizes, at_epoch.mixup, rng)
        if self._learner.is_scheduled:
            done, all_steps = (epoch - 1) * task.n_steps, task.params.epochs * task.n_steps
            rates = [
                task.recipe.schedule(task.params, (done + step) / all_steps) for step in range(task.n_steps)
            ]
            # only where a recorded step reads them are they numbers of the device
            drawn["rates"] = torch.tensor(
                rates, dtype=torch.float32 if is_cuda(task.device) else torch.float64
            )
        homes = {"rates": task.device if is_cuda(task.device) else "cpu"}
        return {
            name: torch.split(
                each.to(homes.get(name, task.device)), CHUNK_STEPS * (1 if name in PER_STEP else size)
            )
            for name, each in drawn.items()
        }

    def _steps(self, epoch: int, number: int, names: tuple[str, ...], chunk: tuple[Tensor, ...]) -> Outcome:
        """Take `_Task.steps`, on a GPU as a graph; an epoch's last chunk and mixed ones have their own."""
        call = partial(self._task.steps, self._learner, epoch, number, names)
        self._seed_generators(epoch, number)
        if not self._is_recorded:
            return call(*chunk)
        at_epoch = params_at(self._task.recipe, self._task.params, epoch)
        key = names, len(chunk[0]), *(getattr(at_epoch, name) for name in AUGMENTATIONS)
        try:
            recordable = drawing_on_the_device(call) if self._task.recipe.draws_in_training else call
            loss, norms = self._graphs.setdefault(key, CudaGraph(recordable, self._task.device))(*chunk)
        except Exception as error:
            # what the recipe of somebody else does may not be recordable
            if isinstance(error, Interrupted) or is_lost(error) or is_out_of_memory(error):
                raise
            self._take_plain_steps((str(error).strip() or type(error).__name__).splitlines()[0])
            self._seed_generators(epoch, number)
            return call(*chunk)
        return loss, norms

    def _seed_generators(self, epoch: int, chunk: int) -> None:
        """Seed those that a chunk of steps may draw from: a graph that is replayed reads the seed anew."""
        if self._task.recipe.draws_in_training:
            seed_generators(self._task.device, self._learner.seed, epoch, "training", chunk)


def check_finite(metrics: Mapping[str, float], train_loss: float | None, seed: int, epoch: int) -> None:
    """Check that an epoch ended with numbers.

    Raises:
        Diverged: a metric or the training loss is not finite.
    """
    values = dict(metrics) if train_loss is None else {"training loss": train_loss, **metrics}
    if not all(map(math.isfinite, values.values())):
        texts = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
        raise Diverged(f"seed {seed}, epoch {epoch}: {texts}")


_RESIDENTS: WeakKeyDictionary[Split, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
_RESIDENTS_LOCK = threading.Lock()


def _resident(split: Split, device: str) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a part on a device: there once, however many trials train on them."""
    with _RESIDENTS_LOCK:
        there = _RESIDENTS.setdefault(split, {})
        if device not in there:
            there[device] = as_tensor(split.inputs, device), targets_tensor(split.targets, device)
        return there[device]
