"""A few steps of a recipe on real data, to see whether it works before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hpo._imports import in_one_line, place_in_user_code
from hpo.data.dataset import Split
from hpo.errors import Diverged, HpoError, InputError
from hpo.training.costs import costs
from hpo.training.cuda import CudaGraph, is_cuda, is_lost, is_out_of_memory, prepare
from hpo.training.devices import as_tensor, normaliser, targets_tensor
from hpo.training.learner import Learner, build, graph_hindrance
from hpo.training.loop import EpochResult, check_settings, checked_metrics, params_at, state_of, train
from hpo.training.own_loop import unpacked
from hpo.training.randomness import generator_states, seed_generators
from hpo.training.registry import NamedRecipe

if TYPE_CHECKING:
    from hpo.data import TrainingData

N_EXAMPLES = 8
STEPS_A_CALL = 4
WARM_UP_CALLS = 2
"""On a GPU the second one records what the others replay."""
TIMED_CALLS = 2


@contextmanager
def blaming(named: NamedRecipe) -> Iterator[None]:
    """Turn what goes wrong in a recipe's code into one line that says where.

    Raises:
        InputError: something did.
    """
    try:
        yield
    except HpoError as error:
        if named.name in str(error):
            raise
        raise InputError(f"recipe {named.name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        place = place_in_user_code(error, type(named.recipe))
        if not place:
            raise
        raise InputError(f"recipe {named.name}: {place}: {in_one_line(error)}") from error


def check_recipe(named: NamedRecipe, data: TrainingData, config: Mapping[str, Any] | None = None) -> None:
    """Check that a recipe can train on data: all that it overrides, in one epoch of a few examples.

    A loop of one's own is not tried, but for what it tells of costs: how long it takes nobody knows.

    Args:
        named: the recipe.
        data: to be trained on.
        config: complete; None: the defaults.

    Raises:
        InputError: something does not fit; the text says what, and where in the user's file.
    """
    recipe, config = named.recipe, config or named.recipe.schema.defaults
    if recipe.overrides("costs"):
        with blaming(named):
            costs(recipe, data.info, config, recipe.schema.costs)
    if recipe.has_own_loop:
        return
    with blaming(named):
        params = recipe.params_of(config)
        recipe.schema.inactive(config)
        if recipe.overrides("at_epoch"):
            for epoch in range(1, params.epochs + 1):
                params_at(recipe, params, epoch)
        check_settings(recipe, params, data)
        learner = Learner(recipe, params, data.info, 0)
        _check_builds_anew(learner.network, build(recipe, params, data.info, 0))
        inputs, targets = _examples(data, N_EXAMPLES)
        _check_last_batch(learner, inputs, targets, params.batch_size, len(data.train))
        if not recipe.draws_in_training:
            _check_draws_nothing(learner, inputs, targets)
        few = Split(data.train.inputs[:N_EXAMPLES], data.train.targets[:N_EXAMPLES])
        with suppress(Diverged):  # a metric of so few may be no number
            begin = partial(train, recipe, data=replace(data, train=few, valid=few), seeds=[0])
            first = next(begin(config=config))
            if not recipe.depends_on_epochs(params):
                _check_epochs(first, begin, config)


def _check_builds_anew(one: nn.Module, other: nn.Module) -> None:
    """Check two networks that were built alike.

    Raises:
        InputError: they share weights, so that trials would train on each other's, or are not alike.
    """
    if {id(weight) for weight in one.parameters() if weight.requires_grad} & set(map(id, other.parameters())):
        raise InputError("build must make a new network in every call; it returned weights of an earlier one")
    shapes = [{name: weight.shape for name, weight in each.named_parameters()} for each in (one, other)]
    if shapes[0] != shapes[1]:
        raise InputError(
            "build returned networks of different shapes for the same parameters; draw, if at all, from the "
            "generators of PyTorch, NumPy and Python, which hpo seeds"
        )


def _check_draws_nothing(learner: Learner, inputs: Tensor, targets: Tensor) -> None:
    """Check that a step draws no random numbers, as a recipe says.

    Raises:
        InputError: it does.
    """
    before = generator_states("cpu")
    learner.step(inputs, targets)
    if generator_states("cpu") != before:
        raise InputError(
            "draws_in_training is False, but a step of training draws random numbers, which nobody would "
            "seed: trials would not repeat. Leave it out; or say 'device', if PyTorch draws them on the "
            "device alone"
        )


def _check_last_batch(
    learner: Learner, inputs: Tensor, targets: Tensor, batch_size: int, n_train: int
) -> None:
    """Check that the network can train on one example, where the last batch of an epoch has no more.

    Raises:
        InputError: it cannot, as one with `BatchNorm1d`.
    """
    if n_train % batch_size != 1 % batch_size:
        return
    try:
        learner.step(inputs[:1], targets[:1])
    except Exception as error:  # whatever the user's network raises
        raise InputError(
            f"batch_size = {batch_size}: of {n_train} examples the last is a batch of its own, and "
            f"the network cannot train on one: {' '.join(str(error).split())}"
        ) from error


@dataclass(frozen=True)
class DryRun:
    """What a few steps of a recipe told."""

    n_parameters: int
    output_shape: tuple[int, ...]
    """Of one batch."""
    ms_per_step: float
    repeats: bool
    """Whether two trainings of the same seed end bit for bit the same."""
    draws: bool
    """Whether its steps drew from the generators of PyTorch, NumPy or Python."""
    graph_hindrance: str | None
    """Why steps are not recorded as CUDA graphs on a GPU; None: nothing known speaks against it."""


@dataclass(frozen=True)
class LoopRun:
    """What one epoch of a training loop of one's own told."""

    metrics: Mapping[str, float]
    seconds: float
    keeps_state: bool
    """Whether a trial that was killed goes on where it was."""
    resumes: bool | None
    """Whether it then finds the same as undisturbed, to the bit; None: it has no state, or one epoch."""


def dry_run(
    named: NamedRecipe, data: TrainingData, config: Mapping[str, Any], *, device: str, precision: str
) -> DryRun | LoopRun:
    """Build a recipe's network, take two steps twice, and evaluate; try two epochs of a loop of one's own.

    Raises:
        InputError: something does not fit; the text says what, and where in the user's file.
    """
    with blaming(named):
        if named.recipe.has_own_loop:
            return _loop_run(named, data, config, device, precision)
        check_recipe(named, data, config)
        params = named.recipe.params_of(config)
        size = min(params.batch_size, len(data.train))
        inputs, targets = _examples(data, size, device)
        ends, generators = [], []
        for _ in range(2):
            learner = Learner(named.recipe, params, data.info, 0, device=device, precision=precision)
            seed_generators(device, 0, 1, "training", 0)
            generators.append(generator_states(device))
            for _ in range(2):
                learner.step(inputs, targets)
            generators.append(generator_states(device))
            ends.append([parameter.detach().clone() for parameter in learner.network.parameters()])
        with torch.inference_mode():
            outputs = learner.network.eval()(inputs)
        seconds, hindrance = _timed(named, data, config, device=device, precision=precision)
        return DryRun(
            n_parameters=sum(parameter.numel() for parameter in learner.network.parameters()),
            output_shape=tuple(outputs.shape),
            ms_per_step=1000 * seconds,
            repeats=all(torch.equal(one, other) for one, other in zip(*ends, strict=True)),
            draws=generators[0] != generators[1],
            graph_hindrance=hindrance,
        )


def _loop_run(
    named: NamedRecipe,
    data: TrainingData,
    config: Mapping[str, Any],
    device: str,
    precision: str,
) -> LoopRun:
    """Try an epoch of a loop of one's own; and, where it has a state, the second one as after a kill."""
    begin = partial(train, named.recipe, data=data, seeds=[0], device=device, precision=precision)
    undisturbed = begin(config=config)
    first = next(undisturbed)
    # the final stage would find out last: `test` gets the state, on the validation part for once
    params, (packed_state,), state = named.recipe.params_of(config), first.states, state_of(first)
    checked_metrics(named.recipe, named.recipe.test(params, data.valid, unpacked(packed_state)), "test")
    second = None if state is None or params.epochs == 1 else next(undisturbed, None)
    undisturbed.close()  # and with it its scratch folder goes, as with a kill
    resumes = None
    if second is not None:
        resumed = next(begin(config=config, resume=state), None)
        one, two, again = (each and each.seeds[0].metrics for each in (first, second, resumed))
        resumes = again == two
        if again == one and not resumes:
            raise InputError(
                "train yields a state, but given it as resume begins anew: the epochs of a trial that was "
                "killed would be wrong. Go on from resume; or yield state=None, and hpo begins it anew"
            )
    if not named.recipe.depends_on_epochs(params):
        _check_epochs(first, begin, config)
    return LoopRun(first.seeds[0].metrics, first.seconds, keeps_state=state is not None, resumes=resumes)


def _check_epochs(
    first: EpochResult, begin: Callable[..., Iterator[EpochResult]], config: Mapping[str, Any]
) -> None:
    """Check that the first epoch is the same where one more is to come, as a recipe says.

    Raises:
        InputError: it is not.
    """
    n_epochs = int(config["epochs"])
    of_more = next(iter(begin(config={**config, "epochs": n_epochs + 1})))
    one, other = (replace(each.seeds[0], seconds=0.0) for each in (first, of_more))
    if one != other:
        raise InputError(
            f"reads_epochs is False, but the first of {n_epochs} epochs is not the first of {n_epochs + 1}: "
            "longer trainings would go on from wrong epochs. Leave it out"
        )


def seconds_per_step(
    named: NamedRecipe, data: TrainingData, config: Mapping[str, Any], *, device: str, precision: str
) -> float:
    """Measure the time of one step, by a few after a warm-up."""
    return _timed(named, data, config, device=device, precision=precision)[0]


def _timed(
    named: NamedRecipe, data: TrainingData, config: Mapping[str, Any], *, device: str, precision: str
) -> tuple[float, str | None]:
    """Return the seconds of one step, and why steps are not recorded on a GPU."""
    prepare(device, precision)
    params = named.recipe.params_of(config)
    learner = Learner(named.recipe, params, data.info, 0, device=device, precision=precision)
    inputs, targets = _examples(data, min(params.batch_size, len(data.train)), device)

    def steps() -> tuple[Tensor, ...]:
        return tuple(learner.step(inputs, targets) for _ in range(STEPS_A_CALL))

    def seconds(call: Callable[[], tuple[Tensor, ...]], n_calls: int) -> float:
        began = time.perf_counter()
        for _ in range(n_calls):
            *_, loss = call()
        loss.item()  # waits for a GPU
        return time.perf_counter() - began

    hindrance = graph_hindrance(named.recipe, learner.network)
    call: Callable[[], tuple[Tensor, ...]] = steps
    if is_cuda(device) and hindrance is None:
        call = CudaGraph(steps, device)
    try:
        seconds(call, WARM_UP_CALLS)
    except Exception as error:
        if call is steps or is_lost(error) or is_out_of_memory(error):
            raise
        # as training does, it takes plain steps
        call, hindrance = steps, (str(error).strip() or type(error).__name__).splitlines()[0]
        seconds(call, WARM_UP_CALLS)
    return seconds(call, TIMED_CALLS) / (TIMED_CALLS * STEPS_A_CALL), hindrance


def _examples(data: TrainingData, count: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the first training examples, inputs as a network sees them."""
    normalise = normaliser(data.mean, data.std, data.info, device)
    inputs = as_tensor(data.train.inputs[:count], device)
    return normalise(inputs), targets_tensor(data.train.targets[:count], device)
