"""What is resolved when a plan is created, and must be the same wherever a trial of it runs."""

from __future__ import annotations

from collections.abc import Callable

from hpo._process import without_garbage_collection
from hpo.execution.plan_data import training_data
from hpo.planning.manifest import Identity, Options
from hpo.space.parameters import NetworkConfig

ImageShape = tuple[int, int, int]
Resolve = Callable[[str, str, ImageShape, int], tuple[str, str]]
"""`resolve_here`, or what does the same elsewhere."""


def resolve_here(device: str, precision: str, image_shape: ImageShape, n_classes: int) -> tuple[str, str]:
    """Return the device and the precision that options mean on this machine, in this process.

    Args:
        device: as in `Options`.
        precision: as in `Options`.
        image_shape: (h, w, c); images that no network can take are refused here, not in every trial.
        n_classes: of the data.

    Raises:
        InputError: device or precision cannot be had, or images of that shape cannot be trained on.
    """
    # here and not above: what can be refused without torch is not to wait for it
    with without_garbage_collection():
        import torch

        from hpo.recipes.constrained_cnn.network import build_network
        from hpo.training.devices import resolve_device, resolve_precision

    resolved_device = resolve_device(device)
    build_network(NetworkConfig(), image_shape, n_classes, torch.Generator())
    return resolved_device, resolve_precision(precision, resolved_device)


def identify(options: Options, threads: int, resolve: Resolve = resolve_here) -> Identity:
    """Resolve what must be the same wherever the plan is worked on; prepares the data.

    Raises:
        InputError: data, limits, device or precision cannot be had.
    """
    data = training_data(options)
    device, precision = resolve(options.device, options.precision, data.image_shape, len(data.class_names))
    return Identity(
        fingerprint=data.fingerprint,
        image_shape=data.image_shape,
        class_names=data.class_names,
        n_train=len(data.train.labels),
        n_valid=len(data.valid.labels),
        precision=precision,
        device=device.partition(":")[0],
        threads=threads,
    )
