"""What is resolved when a plan is created, and must be the same wherever a trial of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpo._process import without_garbage_collection
from hpo.data import load_training
from hpo.execution.plan_data import prepared
from hpo.planning.manifest import Identity, Options
from hpo.space.parameters import ParamValue

Config = Mapping[str, ParamValue]
Resolve = Callable[[str, str, str, str, str, Sequence[Config]], tuple[str, str, str]]
"""`resolve_here`, or what does the same elsewhere."""


def resolve_here(
    device: str, precision: str, kernels: str, recipe: str, entry: str, configs: Sequence[Config]
) -> tuple[str, str, str]:
    """Return the device, the precision and the kernels that options mean on this machine, in this process.

    Args:
        device: as in `Options`.
        precision: as in `Options`.
        kernels: likewise.
        recipe: likewise; data that it cannot train on are refused here, not in every trial.
        entry: the prepared data.
        configs: complete configurations that are going to be trained: a user's own recipe is tried with them
            on a few examples.

    Raises:
        InputError: device, precision or kernels cannot be had, or the recipe cannot train on the data.
    """
    # here and not above: what can be refused without torch is not to wait for it
    with without_garbage_collection():
        from hpo.training.devices import resolve_device, resolve_precision
        from hpo.training.dry_run import check_recipe
        from hpo.training.fused import resolve_kernels
        from hpo.training.registry import load_recipe

    resolved_device = resolve_device(device)
    named, data = load_recipe(recipe), load_training(Path(entry))
    if not named.is_users:  # tested already: only the data may not fit, and any sizes show that
        configs = [named.recipe.schema.defaults]
    for config in configs:
        check_recipe(named, data, config)
    return (
        resolved_device,
        resolve_precision(precision, resolved_device),
        resolve_kernels(kernels, resolved_device),
    )


def identify(
    options: Options, threads: int, configs: Sequence[Config], resolve: Resolve = resolve_here
) -> Identity:
    """Resolve what must be the same wherever the plan is worked on; prepares the data.

    Args:
        options: of the plan.
        threads: of every worker.
        configs: as of `resolve_here`.
        resolve: `resolve_here`, or what does the same elsewhere.

    Raises:
        InputError: data, limits, device, precision or kernels cannot be had, or the recipe cannot train on
            the data.
    """
    entry, data = prepared(options, options.data)
    n_classes = len(data.info.class_names)
    device, precision, kernels = resolve(
        options.device, options.precision, options.kernels, options.recipe, str(entry), configs
    )
    return Identity(
        fingerprint=data.fingerprint,
        input_shape=data.info.input_shape,
        is_images=data.info.is_images,
        class_names=data.info.class_names,
        n_outputs=data.info.n_outputs,
        class_counts=tuple(np.bincount(data.train.targets, minlength=n_classes).tolist())
        if n_classes
        else (),
        n_train=len(data.train),
        n_valid=len(data.valid),
        data_notes=data.notes,
        precision=precision,
        kernels=kernels,
        device=device.partition(":")[0],
        threads=threads,
    )
