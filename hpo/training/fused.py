"""Which kernels train: PyTorch's own ("plain"), or others that are faster where they can be used.

"triton": on an NVIDIA GPU, fused ones, in `hpo.training.kernels`. "winograd": on a CPU without bf16, cheaper
convolutions, in `hpo.training.winograd`. Results differ in their last bits between them, so the choice is
part of a plan, like its precision; the process takes it over before it trains.
"""

from __future__ import annotations

import os
import platform
from functools import cache

import torch

from hpo.errors import InputError, did_you_mean

KERNELS = ("auto", "plain", "triton", "winograd")
X86 = ("x86_64", "amd64")
"""As `platform.machine` says it, in small letters."""
_in_use = "plain"


@cache
def triton_hindrance(device: str) -> str | None:
    """Return why Triton's kernels cannot be used on a device; None where they can.

    They are compiled and tried beside the plain operations, which takes seconds the first time on a machine:
    Triton needs a C compiler, and does not support every GPU.

    Args:
        device: as `resolve_device` returns it.
    """
    if not device.startswith("cuda"):
        return "they are for NVIDIA GPUs"
    try:
        from hpo.training import kernels

        wrong = kernels.first_wrong(device)
    except Exception as error:  # of a compiler, a driver, or Triton itself, which may not be there
        return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
    return None if wrong is None else f"{wrong} differs from the plain operations"


def winograd_hindrance(device: str, precision: str, has_winograd: bool) -> str | None:
    """Return why Winograd's convolutions cannot be used; None where they can.

    Args:
        device: as `resolve_device` returns it.
        precision: as `resolve_precision` returns it.
        has_winograd: what `Recipe.has_winograd` returns.
    """
    if device != "cpu":
        return "they are for CPUs"
    if precision != "fp32":
        return f"they compute in fp32 (--precision fp32), and the plan in {precision}"
    return None if has_winograd else "the recipe has no convolutions for them, on images of this size"


def resolve_kernels(
    name: str, device: str, precision: str, threads: int = 1, has_winograd: bool = False
) -> str:
    """Return the kernels that a name means on a resolved device: "plain", "triton" or "winograd".

    Args:
        name: one of `KERNELS`.
        device: as `resolve_device` returns it.
        precision: as `resolve_precision` returns it.
        threads: of a worker.
        has_winograd: what `Recipe.has_winograd` returns.

    Raises:
        InputError: an unknown name, or those cannot be used there.
    """
    if name not in KERNELS:
        raise InputError(f"kernels = {name!r}: {did_you_mean(name, KERNELS)}")
    if name == "auto":
        if triton_hindrance(device) is None:
            return "triton"
        # with two threads its small products gain nothing (0.9 to 1.1 of plain); on ARM it was never measured
        pays = threads == 1 and platform.machine().lower() in X86
        is_used = pays and winograd_hindrance(device, precision, has_winograd) is None
        return "winograd" if is_used else "plain"
    hindrance = None
    if name == "triton":
        hindrance = triton_hindrance(device)
    elif name == "winograd":
        hindrance = winograd_hindrance(device, precision, has_winograd)
    if hindrance:
        raise InputError(f"kernels = {name!r}: {hindrance}; use 'plain' or 'auto'")
    return name


def use(kernels: str) -> None:
    """Have all training of this process from now on use these kernels, as `resolve_kernels` returns them."""
    global _in_use
    _in_use = kernels


def in_use_on(device: torch.device) -> str:
    """Return the kernels by which this process trains what is on a device."""
    if _in_use == "triton":  # its interpreter runs them on a CPU, for tests
        is_possible = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    else:
        is_possible = device.type == "cpu"
    return _in_use if is_possible else "plain"
