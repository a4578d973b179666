"""What a worker has at hand for every trial, checked before it begins: data, a device, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hpo._process import n_cores
from hpo.data import TrainingData
from hpo.errors import ConflictError
from hpo.execution.plan_data import load_plan_data
from hpo.execution.plan_recipe import recipe_of
from hpo.planning.compatibility import check_sqlite_is_local, check_versions
from hpo.planning.plan import Plan
from hpo.training import fused
from hpo.training.blobs import BlobStore
from hpo.training.cuda import is_cuda
from hpo.training.devices import keep_freed_memory, resolve_device, resolve_precision
from hpo.training.recipe import Recipe
from hpo.training.slots import Slots


@dataclass(frozen=True)
class WorkerContext:
    """What a worker has at hand for every trial."""

    recipe: Recipe
    data: TrainingData
    device: str
    checkpoints: BlobStore
    should_stop: Callable[[], bool]
    slots: Slots | None = None
    """What earlier trials have left on a GPU; None on a CPU."""
    count: Callable[[int], None] = lambda n_examples: None
    """Told of examples that have been trained on."""
    is_shared: Callable[[], bool] = lambda: False
    """Whether other trials of this process may be in the device's memory."""
    n_at_once: Callable[[], int] = lambda: 1
    """How many trials this process trains now."""


def device_here(plan: Plan) -> str:
    """Return the device of this machine that the plan's trials train on."""
    return resolve_device("cpu" if plan.identity.device == "cpu" else plan.options.device)


def check_machine(plan: Plan) -> str:
    """Check that this machine computes as the plan's workers do, and return the device to train on.

    Raises:
        ConflictError: cores, device, precision or kernels differ from the plan's; both are named.
        InputError: there is no such device, or it does not know the plan's precision.
    """
    if n_cores() < plan.identity.threads:
        raise ConflictError(
            f"the plan trains with {plan.identity.threads} threads a worker, and results depend on that in "
            f"their last bits; this process may use {n_cores()} cores only: give it more"
        )
    device = device_here(plan)
    if device.partition(":")[0] != plan.identity.device:
        raise ConflictError(f"the plan trains on {plan.identity.device}; this machine has only {device}")
    resolve_precision(plan.identity.precision, device)
    native = resolve_precision("auto", device)
    if plan.identity.precision == "bf16" and plan.options.precision == "auto" and native != "bf16":
        raise ConflictError(
            f"the plan trains in bf16, which this machine's {device} does not compute natively (fp32 here); "
            "create plans for mixed machines with --precision fp32"
        )
    hindrance = plan.identity.kernels == "triton" and fused.triton_hindrance(device)
    if hindrance:
        raise ConflictError(
            f"the plan trains with Triton's kernels, which this machine's {device} cannot use: {hindrance}; "
            "create plans for mixed machines with --kernels plain"
        )
    return device


def set_up(
    plan: Plan, data: str | None, checkpoints: BlobStore, should_stop: Callable[[], bool]
) -> tuple[Path, WorkerContext]:
    """Check that what is done here is the plan's work, and bring in its data.

    Raises:
        ConflictError: versions, cores, device, precision, kernels or data differ from the plan's; both are
            named.
        InputError: the device does not know the plan's precision.
    """
    check_versions(plan)
    check_sqlite_is_local(plan)
    device = check_machine(plan)
    torch.set_num_threads(plan.identity.threads)
    fused.use(plan.identity.kernels)
    keep_freed_memory()
    entry, training = load_plan_data(plan, data)
    slots = Slots() if is_cuda(device) else None
    recipe = recipe_of(plan).recipe
    return entry, WorkerContext(recipe, training, device, checkpoints, should_stop, slots)
