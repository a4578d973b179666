"""What is resolved when a plan is created, and must be the same wherever a trial of it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpo._process import without_garbage_collection
from hpo.data import load_training
from hpo.execution.plan_data import prepared
from hpo.execution.plan_recipe import CostRule
from hpo.planning.manifest import Identity, Options
from hpo.planning.studies import root_configs
from hpo.space.parameters import ParamValue
from hpo.space.study_file import StudySpec

Config = Mapping[str, ParamValue]
Resolve = Callable[[str, str, str, int, str, str, Sequence[Config], Sequence[str]], tuple[str, str, str]]
"""`resolve_here`, or what does the same elsewhere."""


def resolve_here(
    device: str,
    precision: str,
    kernels: str,
    threads: int,
    recipe: str,
    entry: str,
    configs: Sequence[Config],
    studies: Sequence[str],
) -> tuple[str, str, str]:
    """Return the device, the precision and the kernels that options mean on this machine, in this process.

    Args:
        device: as in `Options`.
        precision: as in `Options`.
        kernels: likewise.
        threads: of every worker.
        recipe: as in `Options`; data that it cannot train on are refused here, not in every trial.
        entry: the prepared data.
        configs: complete configurations that are going to be trained: a user's own recipe is tried with them
            on a few examples.
        studies: definitions of studies that inherit nothing, and are limited by what points cost.

    Raises:
        InputError: device, precision or kernels cannot be had, the recipe cannot train on the data, or all
            points of a study cost too much.
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
    schema = named.recipe.schema.with_costs(CostRule(named.recipe, data.info))
    for study in studies:
        StudySpec.from_json(study, schema)  # refuses one without a point
    resolved_precision = resolve_precision(precision, resolved_device)
    has_winograd = named.recipe.has_winograd(data.info)
    return (
        resolved_device,
        resolved_precision,
        resolve_kernels(kernels, resolved_device, resolved_precision, threads, has_winograd),
    )


def identify(
    options: Options, threads: int, specs: Mapping[str, StudySpec], resolve: Resolve = resolve_here
) -> Identity:
    """Resolve what must be the same wherever the plan is worked on; prepares the data.

    Args:
        options: of the plan.
        threads: of every worker.
        specs: the studies that are going to be trained.
        resolve: `resolve_here`, or what does the same elsewhere.

    Raises:
        InputError: data, limits, device, precision or kernels cannot be had, or the recipe cannot train on
            the data, or all points of a study cost too much.
    """
    entry, data = prepared(options, options.data)
    n_classes = len(data.info.class_names)
    limited = [study.to_json() for study in specs.values() if study.inherits is None and study.costs]
    asked = options.device, options.precision, options.kernels
    device, precision, kernels = resolve(
        *asked, threads, options.recipe, str(entry), root_configs(specs), limited
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
