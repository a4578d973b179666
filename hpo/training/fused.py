"""Which kernels train: PyTorch's own ("plain"), or on an NVIDIA GPU fused ones in Triton ("triton").

What is fused is in `hpo.training.kernels`. Results differ in their last bits between the two, so the choice
is part of a plan, like its precision; the process takes it over before it trains.
"""

from __future__ import annotations

import os
from functools import cache

import torch

from hpo.errors import InputError, did_you_mean

KERNELS = ("auto", "plain", "triton")
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


def resolve_kernels(name: str, device: str) -> str:
    """Return the kernels that a name means on a resolved device: "plain" or "triton".

    Raises:
        InputError: an unknown name, or Triton's cannot be used there.
    """
    if name not in KERNELS:
        raise InputError(f"kernels = {name!r}: {did_you_mean(name, KERNELS)}")
    if name == "plain":
        return "plain"
    hindrance = triton_hindrance(device)
    if hindrance and name == "triton":
        raise InputError(f"kernels = 'triton': {hindrance}; use 'plain' or 'auto'")
    return "plain" if hindrance else "triton"


def use(kernels: str) -> None:
    """Have all training of this process from now on use these kernels, as `resolve_kernels` returns them."""
    global _in_use
    _in_use = kernels


def are_used_on(device: torch.device) -> bool:
    """Return whether what this process trains there is to be computed by Triton's kernels."""
    # the interpreter runs them on a CPU, for tests
    is_possible = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return _in_use == "triton" and is_possible
