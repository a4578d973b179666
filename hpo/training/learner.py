"""One seed's network and optimizer, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hpo.data.dataset import DataInfo
from hpo.errors import InputError
from hpo.training import fused, losses
from hpo.training.cuda import is_cuda
from hpo.training.devices import bf16_copy, to_dtype
from hpo.training.mixup import Mix
from hpo.training.randomness import seeded_alone
from hpo.training.recipe import Recipe
from hpo.training.schedules import is_constant

if TYPE_CHECKING:
    from hpo.training.flat_optimizer import FlatOptimizer


class Learner:
    """One seed's network and optimizer.

    `network` is the fp32 network on the device, whatever the precision of the arithmetic.

    Args:
        recipe: what is trained.
        params: a `Params` of it.
        info: what the network is for.
        seed: of the initialisation.
        device: as `resolve_device` returns it.
        precision: as `resolve_precision` returns it.
        class_weights: (n_classes,) float32 on the device, where the recipe's loss is the default.
        network: what `build` returned for this seed, if that has been called; the learner's from now on.
    """

    def __init__(
        self,
        recipe: Recipe,
        params: Any,
        info: DataInfo,
        seed: int,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        class_weights: Tensor | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.seed = seed
        self._recipe, self._params, self._info = recipe, params, info
        self.network = (network or build(recipe, params, info, seed)).to(device)
        self.optimizer = recipe.optimizer(params, self.network)
        self.is_scheduled = recipe.overrides("schedule") or not is_constant(params)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._settings = self._settings_now()
        if self.is_scheduled and is_cuda(device):
            for group in self.optimizer.param_groups:  # a recorded step reads it from there
                group["lr"] = torch.tensor(group["lr"], device=device)
        self._precision = precision
        self._class_weights = class_weights
        self._runner = bf16_copy(self.network) if precision == "bf16" else self.network
        self.layers = recipe.layers(self.network)
        pairs = list(zip(self.network.parameters(), self._runner.parameters(), strict=True))
        # frozen weights have no gradient, and stay what they are
        copies = [(master, low) for master, low in pairs if master is not low and master.requires_grad]
        self._masters: list[Tensor] = [master for master, _ in copies]
        self._lows: list[Tensor] = [low for _, low in copies]
        self._runners = {id(master): low for master, low in pairs}
        self._flat = self._flat_optimizer(pairs)
        for master in self._masters if self._flat is None else []:
            master.grad = torch.zeros_like(master)
        buffers = zip(self.network.buffers(), self._runner.buffers(), strict=True)
        self._buffers = [(buffer, low) for buffer, low in buffers if buffer is not low]

    @property
    def reads_its_rate(self) -> bool:
        """Whether a recorded step reads learning rate, l2 and momentum anew, and none is part of it."""
        return self._flat is not None

    @property
    def is_resumable(self) -> bool:
        """Whether `state_dict` has all that the next epoch depends on.

        It has not where an optimizer of the recipe's own changes its settings by itself, as by a hook.
        """
        return self._settings_now() == self._settings

    def _settings_now(self) -> list[dict[str, Any]]:
        """Return the settings that an optimizer of the recipe's own has, but for a rate that hpo sets."""
        if not self._recipe.overrides("optimizer"):
            return []
        hpos = {"params", "lr"} if self.is_scheduled else {"params"}
        groups = self.optimizer.param_groups
        return [{name: str(group[name]) for name in group.keys() - hpos} for group in groups]

    def begin_anew(self, params: Any, seed: int, network: nn.Module) -> None:
        """Become the learner of another seed and other parameters, with tensors that stay where they are.

        Args:
            params: a `Params` of the recipe that differs in nothing that a recorded step is made of.
            seed: of the initialisation.
            network: what `build` returned for them, alike in everything but the values of its tensors.
        """
        self.seed, self._params = seed, params
        with torch.no_grad():
            for mine, new in zip(tensors_of(self.network), tensors_of(network), strict=True):
                mine.copy_(new)
            if self._flat is not None:
                self._flat.begin_anew(self._recipe.optimizer(params, network).param_groups[0])
            else:
                for state in self.optimizer.state.values():
                    for value in state.values():
                        if isinstance(value, Tensor):
                            value.zero_()
            self._refresh()

    def step(
        self, inputs: Tensor, targets: Any, mix: Mix | None = None, rate: float | Tensor | None = None
    ) -> Tensor:
        """Take one step on a batch; return the loss before it.

        The gradients stay on `network.parameters()` until the next step.

        Args:
            inputs: (n, …), normalised.
            targets: (n,) or (n, …).
            mix: how the batch is mixed, if it is.
            rate: the factor of the learning rate, where there is a schedule.
        """
        if rate is not None:
            self._set_rate(rate)
        self._runner.zero_grad(set_to_none=True)
        if mix:
            inputs = mix.inputs(inputs)
        outputs = self._outputs(inputs)
        loss = (
            mix.loss(lambda each: self._loss(outputs, each), targets) if mix else self._loss(outputs, targets)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if self._flat is not None:
                self._flat.step()
                for buffer, low in self._buffers:
                    buffer.copy_(low)
                return loss.detach()
            if self._lows:  # a call for all of them is one kernel on a GPU
                for master, low in zip(self._masters, self._lows, strict=True):
                    if low.grad is None:  # not used by the network: then nothing decays it either
                        master.grad = None
                torch._foreach_copy_(_gradients(self._masters), _gradients(self._lows))
            self.optimizer.step()
            for buffer, low in self._buffers:  # what the network keeps count of
                buffer.copy_(low)
            self._refresh()
        return loss.detach()

    def _flat_optimizer(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> FlatOptimizer | None:
        """Return what takes the steps by fused kernels, where they are in use and steps are all alike."""
        device = pairs[0][0].device
        if fused.in_use_on(device) != "triton" or graph_hindrance(self._recipe, self.network):
            return None
        from hpo.training.flat_optimizer import FlatOptimizer, Weight, can_be_flat

        trained = [(master, low) for master, low in pairs if master.requires_grad]
        weights = [Weight(master, None if low is master else low) for master, low in trained]
        return FlatOptimizer(self.optimizer, weights) if can_be_flat(self.optimizer, weights) else None

    def _outputs(self, inputs: Tensor) -> Tensor:
        outputs = self._runner(to_dtype(inputs, self._precision))
        check_outputs(outputs, len(inputs), self._info)
        return outputs.float().reshape(len(inputs), -1)  # type: ignore[no-any-return]

    def _loss(self, outputs: Tensor, targets: Any) -> Tensor:
        if self._recipe.overrides("loss"):
            loss = self._recipe.loss(self._params, outputs, targets)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = (
                    f"shape {tuple(loss.shape)}"
                    if isinstance(loss, Tensor)
                    else f"type {type(loss).__name__}"
                )
                raise InputError(
                    f"loss must return a tensor of one number, the mean of a batch; it is of {found}"
                )
            return loss
        return losses.loss(outputs, targets, self._params.label_smoothing, self._class_weights)

    def _set_rate(self, factor: float | Tensor) -> None:
        if self._flat is not None:
            self._flat.scale_rate(factor)
            return
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            if isinstance(factor, Tensor):
                group["lr"].copy_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _refresh(self) -> None:
        """Give the bf16 copy the values of the network."""
        if self._lows:
            torch._foreach_copy_(self._lows, self._masters)
        for buffer, low in self._buffers:
            low.copy_(buffer)

    def gradient_norms(self) -> Tensor:
        """Return norms of the last step's gradients, (layers, 2): weight and bias of each watched layer."""
        watched = [each for layer in self.layers.values() for each in (layer.weight, layer.bias)]
        if self._flat is not None:  # the gradients are where the arithmetic is
            watched = [self._runners[id(each)] for each in watched]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in _gradients(watched)]
        return torch.stack(norms).view(-1, 2) if norms else torch.empty(0, 2)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on; the tensors are the live ones, not copies."""
        return {
            "seed": self.seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],  # its settings are the configuration's
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a stored state of the same configuration and seed."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state belongs to seed {state['seed']}, not {self.seed}")
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            if self._flat is not None:
                self._flat.load(state["optimizer"])
            else:
                stored = copy.deepcopy(state["optimizer"])
                self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": stored})
            self._refresh()


def tensors_of(network: nn.Module) -> list[Tensor]:
    """Return parameters and buffers of a network, in its order."""
    return [*network.parameters(), *network.buffers()]


def graph_hindrance(recipe: Recipe, network: nn.Module) -> str | None:
    """Return why steps of a recipe's network cannot be recorded as CUDA graphs; None where it can be tried.

    What draws from a GPU's generator, as dropout does, can be recorded: a replay draws what single steps do.
    """
    if recipe.overrides("augment"):
        return "augment draws numbers at every step"
    if recipe.overrides("optimizer"):
        return "the recipe has an optimizer of its own"
    if not recipe.draws_in_training:
        return None
    for module in network.modules():
        if isinstance(module, nn.RNNBase) and module.dropout:
            return f"dropout of {type(module).__name__} keeps a state that no recording reads"
    if recipe.draws_in_training == "device":
        return None
    strange = _strange_part(recipe, network)
    return strange and (
        f"{strange} may draw random numbers; say draws_in_training = False if nothing does, and 'device' if "
        "PyTorch does on the device alone"
    )


def _strange_part(recipe: Recipe, network: nn.Module) -> str | None:
    """Return what of the training is not PyTorch's own, which draws from the device's generator alone."""
    if recipe.overrides("loss"):
        return "loss"
    for module in network.modules():
        name = type(module).__name__
        if type(module).__module__.split(".")[:2] != ["torch", "nn"]:
            return name
        if any(map(vars(module).get, _MODULE_HOOKS)) or any(
            getattr(weight, hooks, None) for weight in module.parameters(False) for hooks in _WEIGHT_HOOKS
        ):
            return f"a hook of {name}"
        # one may be given at construction, as a nonlinearity, or put over a method, as over `forward`
        for own, value in vars(module).items():
            if callable(value) and not _is_of_torch(value):
                return f"{own} of {name}"
    return None


_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def _is_of_torch(function: object) -> bool:
    home = getattr(function, "__module__", None)  # builtins have none; what they draw is found
    return not isinstance(home, str) or home.partition(".")[0] == "torch"


def build(recipe: Recipe, params: Any, info: DataInfo, seed: int) -> nn.Module:
    """Return a recipe's network, in fp32 on the CPU, in training mode, images in channels_last memory.

    Raises:
        InputError: the recipe returns no network, or refuses the data.
    """
    with seeded_alone(seed, 0, "init"):
        network = recipe.build(params, info)
    if not isinstance(network, nn.Module):
        raise InputError(f"build must return a torch.nn.Module, returned {type(network).__name__}")
    if not any(weight.requires_grad for weight in network.parameters()):
        raise InputError("build returned a network without weights to train")
    if info.is_images:
        network.to(memory_format=torch.channels_last)
    return network.train()


def check_outputs(outputs: object, n_inputs: int, info: DataInfo) -> None:
    """Check what a network returned for a batch.

    Raises:
        InputError: no tensor, or of another shape than the data's targets need.
    """
    if not isinstance(outputs, Tensor):
        raise InputError(f"the network must return a tensor, returned {type(outputs).__name__}")
    expected = (n_inputs, info.n_outputs)
    allowed = [expected] if info.n_classes or info.n_outputs > 1 else [expected, (n_inputs,)]
    if tuple(outputs.shape) not in allowed:
        what = f"{info.n_classes} classes" if info.n_classes else f"{info.n_outputs} numbers to predict"
        raise InputError(
            f"the network returned outputs of shape {tuple(outputs.shape)} for {n_inputs} inputs; "
            f"{what} need {expected}"
        )


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
