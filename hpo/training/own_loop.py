"""Recipes that bring a training loop of their own: scikit-learn, another program, another framework."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpo.errors import InputError, Interrupted
from hpo.training.loop import EpochResult, SeedEpoch, check_finite, checked_metrics
from hpo.training.randomness import seed_generators
from hpo.training.recipe import Epoch, LoopContext, Recipe

if TYPE_CHECKING:
    from hpo.data import TrainingData

_ARRAY, _BYTES = "hpo:numpy", "hpo:bytes"
"""Keys of mappings that stand for a NumPy array and for bytes in a checkpoint, which holds tensors: what
PyTorch writes of empty bytes it does not read back. No state has such keys."""


def train_own(
    recipe: Recipe,
    params: Any,
    data: TrainingData,
    seeds: Sequence[int],
    *,
    device: str,
    precision: str,
    resume: Mapping[str, Any] | None,
    should_stop: Callable[[], bool],
) -> Iterator[EpochResult]:
    """Do what `hpo.training.loop.train` does, by the recipe's own loop."""
    with tempfile.TemporaryDirectory(prefix="hpo-") as scratch:
        loops = []
        for number, seed in enumerate(seeds):
            folder = Path(scratch, str(seed))
            folder.mkdir()
            context = LoopContext(device, precision, torch.get_num_threads(), should_stop, folder)
            state = unpacked(resume["states"][number]) if resume is not None else None
            loop = recipe.train(params, data, seed, context, resume=state)
            if not isinstance(loop, Iterator):
                kind = type(loop).__name__
                raise InputError(f"train must be a generator that yields hpo.Epoch, it returned {kind}")
            loops.append(loop)
        first = 1 if resume is None else resume["epoch"] + 1
        for epoch in range(first, params.epochs + 1):
            if should_stop():
                raise Interrupted(f"before epoch {epoch}")
            found = [
                _next(recipe, loop, seed, epoch, device) for loop, seed in zip(loops, seeds, strict=True)
            ]
            if any(each is None for each in found):
                if should_stop():
                    raise Interrupted(f"in epoch {epoch}")
                if not all(each is None for each in found):
                    raise InputError(
                        f"train: of {len(seeds)} seeds some ended before epoch {epoch}, others go on"
                    )
                if epoch == 1:
                    raise InputError("train ended without having yielded an epoch")
                return
            results = [each for each in found if each is not None]
            yield EpochResult(
                epoch,
                tuple(result for result, _ in results),
                states=tuple(None if own.state is None else packed(own.state) for _, own in results),
                resumable=all(own.resumable for _, own in results),
            )


def _next(
    recipe: Recipe, loop: Iterator[Epoch], seed: int, epoch: int, device: str
) -> tuple[SeedEpoch, Epoch] | None:
    """Return a seed's next epoch, as hpo records it and as it was yielded; None where its loop has ended."""
    seed_generators(device, seed, epoch, "loop")
    began = time.perf_counter()
    result = next(loop, None)
    if result is None:
        return None
    if not isinstance(result, Epoch):
        raise InputError(f"train must yield hpo.Epoch, yielded {type(result).__name__}")
    metrics = checked_metrics(recipe, result.metrics, "train")
    train_loss = None if result.train_loss is None else float(result.train_loss)
    check_finite(metrics, train_loss, seed, epoch)
    seconds = time.perf_counter() - began
    return SeedEpoch(seed, metrics, train_loss, None, seconds, {}), result


def packed(state: Any, where: str = "state") -> Any:
    """Return a state as a checkpoint can hold it: tensors and plain types.

    Raises:
        InputError: something in it is neither a tensor, an array nor of a plain type.
    """
    if isinstance(state, Mapping):
        return {key: packed(value, f"{where}[{key!r}]") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [packed(value, f"{where}[{number}]") for number, value in enumerate(state)]
    if isinstance(state, np.ndarray) and state.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.array(state))}
    if isinstance(state, bytes | bytearray):
        return {_BYTES: torch.from_numpy(np.frombuffer(state, np.uint8).copy())}
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise InputError(
        f"{where} is of type {type(state).__name__}; a state holds tensors, arrays and plain types, so that "
        "a checkpoint runs no code when it is read"
    )


def unpacked(state: Any) -> Any:
    """Return what `packed` made a checkpoint's content of; tuples have become lists."""
    if isinstance(state, Mapping):
        if state.keys() == {_ARRAY}:
            return state[_ARRAY].numpy().copy()
        if state.keys() == {_BYTES}:
            return state[_BYTES].numpy().tobytes()
        return {key: unpacked(value) for key, value in state.items()}
    if isinstance(state, list):
        return [unpacked(value) for value in state]
    return state
