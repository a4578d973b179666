"""Recipes: what a trial trains. A user's own network, loss, metrics or whole training loop is a subclass.

Nothing here imports torch: a study file is checked against a recipe before torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationError

from hpo._imports import in_one_line, place_in_user_code, place_of
from hpo.errors import InputError, did_you_mean
from hpo.space.constraints import NETWORK_COSTS
from hpo.space.parameters import Direction, LoopParams, Params, ParamValues, explain
from hpo.space.schema import Schema
from hpo.training.schedules import is_constant

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from hpo.data import TrainingData
    from hpo.data.dataset import DataInfo


@dataclass(frozen=True)
class Epoch:
    """What a training loop of one's own yields after every epoch.

    Attributes:
        metrics: on the validation part, by the names that the recipe declares; plain numbers.
        state: what `train` needs to go on from here, and `test` to predict: tensors, NumPy arrays and plain
            types. None: a trial that was killed begins anew.
        train_loss: the loss on the training part, if there is one.
        resumable: whether `train` can go on from the state. False: it is for `test` alone, and a trial that
            was killed begins anew.
    """

    metrics: Mapping[str, float]
    state: Mapping[str, Any] | None = None
    train_loss: float | None = None
    resumable: bool = True


@dataclass(frozen=True)
class LoopContext:
    """What a training loop of one's own may use.

    Attributes:
        device: "cpu", "cuda:N" or "mps".
        precision: "fp32", "tf32" or "bf16".
        threads: how many this trial may use.
        should_stop: to be asked from time to time; when it says so, the loop may return at once: the trial
            goes back to the queue.
        scratch: an empty folder for files of the trial, removed when it ends.
    """

    device: str
    precision: str
    threads: int
    should_stop: Callable[[], bool]
    scratch: Path


@dataclass(frozen=True)
class Layer:
    """A layer to be watched: the norms of its gradients, and its dead units.

    Attributes:
        weight: its weight.
        bias: what is added after it: its bias, or the shift of its normalisation.
        relu: the module whose output (n, units, …) is the layer's after its ReLU; None: no unit of it can be
            dead.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    relu: nn.Module | None = None


class Recipe:
    """What a trial trains: parameters, network, loss, metrics. Only `build` must be there.

    Randomness: hpo seeds the generators of PyTorch, NumPy and Python by (seed, epoch, chunk of steps) around
    `build` and around every stretch of training, so that dropout and the like are the same after a kill.
    """

    Params: ClassVar[type[LoopParams]] = Params
    """The parameters; every one of them may be searched."""
    metrics: ClassVar[Mapping[str, Direction]] = {
        "macro_f1": "maximize",
        "accuracy": "maximize",
        "loss": "minimize",
    }
    """What `evaluate` returns, by name; the first is the objective unless `--metric` names another."""
    constraints: ClassVar[tuple[str, ...]] = ()
    """Comparisons between parameters that hold in every study, as `"width <= 64"`."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Parameters that sentences and tables leave out at their default, as they do `momentum` and the like."""
    cost_names: ClassVar[tuple[str, ...]] = NETWORK_COSTS
    """What `costs` returns, by name; constraints and objectives may name them."""
    draws_in_training: ClassVar[bool | Literal["device"]] = True
    """Whether training may draw random numbers, as dropout does. False: several trials may train in threads
    of one process on a GPU, as the process's generators need not be theirs alone. "device": it draws by
    PyTorch's operations on the device alone, so that steps can be recorded as CUDA graphs."""
    reads_epochs: ClassVar[bool] = True
    """Whether an epoch may depend on how many there are to be, as where a loop of its own lets the rate fall
    to the last one. False: a longer training goes on from the checkpoint of a shorter one. A class says it of
    itself alone: what is derived from it may read them."""

    def build(self, params: Any, data: DataInfo) -> nn.Module:
        """Return a new network, on the CPU.

        Args:
            params: a `Params` of this recipe.
            data: what the network is for: `input_shape` ((c, h, w) of images, (features,) of a table),
                `n_classes` or `n_outputs`, `class_names`.

        Returns:
            A module that takes inputs, n of `input_shape`, and returns (n, n_classes) or (n, n_outputs).
        """
        raise NotImplementedError

    def optimizer(self, params: Any, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a network; default: the one that `params.optimizer` names."""
        from hpo.training.optimizers import OPTIMIZERS

        return OPTIMIZERS[params.optimizer](list(model.parameters()), params)

    def schedule(self, params: Any, progress: float) -> float:
        """Return the factor of the learning rate when so much of the training is done.

        Args:
            params: a `Params` of this recipe.
            progress: from 0 up to, but not including 1. The factor is a function of it and `params` alone: a
                resumed trial needs nothing else.
        """
        from hpo.training.schedules import factor

        return factor(params, progress)

    def at_epoch(self, params: Any, epoch: int) -> Any:
        """Return the parameters as they hold in an epoch, counted from 1; default: the same in all.

        Augmentations ask it: to switch one off for a while, return `params.model_copy(update={…})`.
        """
        return params

    def augment(
        self, params: Any, inputs: Tensor, targets: Tensor, epoch: int, generator: torch.Generator
    ) -> tuple[Tensor, Any]:
        """Return a batch of training inputs and targets, changed by chance.

        Args:
            params: a `Params` of this recipe.
            inputs: n of `input_shape`, normalised, on the device.
            targets: (n,) or (n, …).
            epoch: counted from 1.
            generator: PyTorch's, on the CPU, seeded by (seed, epoch, chunk of steps).
        """
        return inputs, targets

    def loss(self, params: Any, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of a batch, differentiable; default: cross-entropy, squared error of numbers.

        Args:
            params: a `Params` of this recipe. `class_weights` is up to the default alone.
            outputs: (n, n_classes) or (n, n_outputs) float32.
            targets: (n,) int64 classes, or (n, n_outputs) float32 numbers; or what `augment` made of them.
        """
        from hpo.training.losses import loss

        return loss(outputs, targets, params.label_smoothing)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Return the metrics of all validation outputs; more names than `metrics` has are left out."""
        from hpo.training.metrics import default_metrics

        return default_metrics(outputs, targets)

    def inactive(self, params: Any) -> Iterable[str]:
        """Return the names of those that mean nothing beside the others; points that differ so are one."""
        return ()

    def layers(self, model: nn.Module) -> Mapping[str, Layer]:
        """Return the layers to be watched, from the input to the output; default: none."""
        return {}

    def costs(self, params: Any, data: DataInfo) -> Mapping[str, float]:
        """Return what a configuration costs, known before it trains, by the names in `cost_names`.

        Default: of the network that `build` returns. More names than `cost_names` has are left out.

        Args:
            params: a `Params` of this recipe.
            data: as of `build`.
        """
        from hpo.training.costs import network_costs

        return network_costs(self, params, data)

    # --- a loop of one's own -----------------------------------------------------------------------------

    def train(
        self,
        params: Any,
        data: TrainingData,
        seed: int,
        context: LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[Epoch]:
        """Train one seed, and yield after every epoch. To be overridden by who brings a loop of their own.

        Args:
            params: a `Params` of this recipe.
            data: `train.inputs`, `train.targets`, `valid.inputs`, `valid.targets` are NumPy arrays.
            seed: of all randomness.
            context: device, threads, when to stop.
            resume: the `state` of the last epoch that was stored; go on after it.
        """
        raise NotImplementedError

    def test(self, params: Any, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics on the test part; needed beside `train`, and called by the final stage alone.

        Args:
            params: a `Params` of this recipe.
            data: `inputs` and `targets` of the test part.
            state: of the epoch that validation chose.
        """
        raise NotImplementedError

    # --- what hpo asks -----------------------------------------------------------------------------------

    @cached_property
    def schema(self) -> Schema:
        """The schema of its parameters.

        Raises:
            InputError: a parameter or a constraint that cannot be used.
        """
        tells_none = self.has_own_loop and not self.overrides("costs")
        costs = () if tells_none else self.cost_names
        return Schema.of(self.Params, self.constraints, self._inactive, self.extras, costs)

    def overrides(self, method: str) -> bool:
        """Return whether it has a method of its own instead of the default."""
        return getattr(type(self), method) is not getattr(Recipe, method)

    @property
    def has_own_loop(self) -> bool:
        """Whether it overrides `train`."""
        return self.overrides("train")

    def has_winograd(self, data: DataInfo) -> bool:
        """Return whether networks for such data may have convolutions for `hpo.training.winograd`."""
        return False

    def depends_on_epochs(self, params: Any) -> bool:
        """Return whether an epoch may be another one where more are to come.

        Args:
            params: a `Params` of this recipe.
        """
        if not self.has_own_loop and (self.overrides("schedule") or not is_constant(params)):
            return True
        return self.may_read_epochs

    @property
    def may_read_epochs(self) -> bool:
        """Whether its class does not deny `reads_epochs` itself."""
        return bool(vars(type(self)).get("reads_epochs", True))

    def params_of(self, config: ParamValues) -> Any:
        """Return a complete flat configuration as the recipe's parameters.

        Raises:
            InputError: the recipe's class refuses them.
        """
        try:
            return self.Params(**config)  # type: ignore[arg-type]
        except ValidationError as error:
            raise InputError(explain(error)) from None

    def _inactive(self, config: ParamValues) -> set[str]:
        params = self.params_of(config)
        names = self._named_inactive(params)
        if isinstance(params, Params):
            if params.optimizer not in ("sgd", "rmsprop"):
                names.add("momentum")
            if params.schedule == "one-cycle":
                names.add("warmup_epochs")
        return names

    def _named_inactive(self, params: Any) -> set[str]:
        """Return what `inactive` does, checked.

        Raises:
            InputError: it fails, or returns something else than names of parameters.
        """
        try:
            found = self.inactive(params)
            names = set() if isinstance(found, str) else set(found)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            place = place_in_user_code(error, type(self))
            raise InputError(f"{place}: inactive: {in_one_line(error)}") from error
        if isinstance(found, str):
            raise InputError(f"{self._said_inactive(found)}; return several names, as ({found!r},)")
        for name in names - self.Params.model_fields.keys():
            hint = did_you_mean(str(name), self.Params.model_fields)
            raise InputError(f"{self._said_inactive(found)}: {name!r} is not a parameter; {hint}")
        return names

    def _said_inactive(self, found: object) -> str:
        # only for what is wrong: the place takes 2 ms, and a grid asks 100,000 times
        return f"{place_of(type(self))}: inactive returned {found!r}"
