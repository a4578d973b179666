"""Where all randomness of training comes from: generators derived from (seed, epoch, purpose)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from hpo.training.cuda import is_cuda

_PURPOSES = {
    "init": 0,
    "order": 1,
    "mixup": 2,
    "training": 3,
    "evaluation": 4,
    "augment": 5,
    "flip": 6,
    "shift": 7,
    "cutout": 8,
    "loop": 9,
}
"""Their numbers are part of every result: a new one gets the next."""
_BUILDING = threading.RLock()
Result = TypeVar("Result")


def entropy(seed: int, epoch: int, purpose: str, chunk: int | None = None) -> np.random.SeedSequence:
    """Return what the randomness of a seed is derived from, for a purpose, and for a chunk of steps."""
    parts = [seed, epoch, _PURPOSES[purpose]]
    return np.random.SeedSequence(parts if chunk is None else [*parts, chunk])


def generator_of(seed: int, epoch: int, purpose: str, chunk: int | None = None) -> torch.Generator:
    """Return PyTorch's generator on the CPU of that entropy."""
    return torch.Generator().manual_seed(_state(entropy(seed, epoch, purpose, chunk)))


def seed_generators(device: str, seed: int, epoch: int, purpose: str, chunk: int | None = None) -> None:
    """Seed the generators of PyTorch (of the CPU and of a device), NumPy and Python, for code of others."""
    state = _state(entropy(seed, epoch, purpose, chunk))
    # not torch.manual_seed: as long as CUDA sleeps, that formats a stack trace at every call
    torch.default_generator.manual_seed(state)
    if is_cuda(device):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(state)
    elif device == "mps":
        torch.mps.manual_seed(state)
    np.random.seed(state % 2**32)
    random.seed(state)


def generator_states(device: str) -> tuple[object, ...]:
    """Return the states of the generators that `seed_generators` seeds, to be compared."""
    on_device = None
    if is_cuda(device):
        on_device = bytes(torch.cuda.get_rng_state(device).tolist())
    elif device == "mps":
        on_device = bytes(torch.mps.get_rng_state().tolist())
    _, numbers, *rest = np.random.get_state()
    return (
        bytes(torch.get_rng_state().tolist()),
        on_device,
        random.getstate(),
        (np.asarray(numbers).tobytes(), *rest),
    )


def drawing_on_the_device(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function that is not recorded as a CUDA graph where it draws on the CPU.

    A replay would repeat what was drawn there while it was recorded.

    Raises:
        RuntimeError: on the call that is being recorded.
    """

    def checked(*inputs: Any) -> Result:
        before = generator_states("cpu")
        result = function(*inputs)
        if torch.cuda.is_current_stream_capturing() and generator_states("cpu") != before:
            raise RuntimeError("training draws random numbers on the CPU")
        return result

    return checked


@contextmanager
def seeded_alone(seed: int, epoch: int, purpose: str) -> Iterator[None]:
    """Seed the generators, and keep other threads that do the same out until the context ends."""
    with _BUILDING:
        seed_generators("cpu", seed, epoch, purpose)
        yield


def _state(sequence: np.random.SeedSequence) -> int:
    (state,) = sequence.generate_state(1, np.uint64)
    return int(state)
