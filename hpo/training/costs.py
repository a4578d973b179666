"""What a configuration costs, known before it trains: of its network, or as the recipe tells."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hpo._imports import place_of
from hpo.data.dataset import DataInfo
from hpo.errors import InputError
from hpo.space.constraints import MODEL_MEGABYTES, N_MULTIPLICATIONS, N_PARAMETERS
from hpo.space.parameters import ParamValues, canonical_json
from hpo.training.learner import build
from hpo.training.recipe import Recipe

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def costs(recipe: Recipe, info: DataInfo, config: ParamValues, names: Collection[str]) -> dict[str, float]:
    """Return what a configuration costs.

    It calls `build`, which may draw random numbers: not to be called beside a trial that draws some, too.

    Args:
        recipe: that is asked.
        info: what the network is for.
        config: complete.
        names: of costs that the recipe knows.

    Raises:
        InputError: the recipe's `costs` does not return what it is to return.
    """
    is_run = N_MULTIPLICATIONS in names and not recipe.overrides("costs")
    found = _costs(recipe, info, canonical_json(config), is_run=is_run) if names else {}
    return {name: found[name] for name in names}


@lru_cache(2**14)  # every look at a grid asks for all of its points
def _costs(recipe: Recipe, info: DataInfo, config: str, *, is_run: bool) -> Mapping[str, float]:
    params = recipe.params_of(json.loads(config))
    if not recipe.overrides("costs"):
        return network_costs(recipe, params, info, is_run=is_run)
    found = recipe.costs(params, info)
    for name in recipe.cost_names:
        value = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(
                f"{place_of(type(recipe))}: costs must return a finite number {name!r}; it returned {found!r}"
            )
    return {name: found[name] for name in recipe.cost_names}


def network_costs(recipe: Recipe, params: Any, info: DataInfo, *, is_run: bool = True) -> dict[str, float]:
    """Return what the network of a recipe costs.

    Args:
        recipe: whose network.
        params: a `Params` of it.
        info: what the network is for.
        is_run: whether to run it on one example, for `n_multiplications`.
    """
    network = _built(recipe, params, info)
    tensors = [*network.parameters(), *network.buffers()]
    found: dict[str, float] = {
        N_PARAMETERS: sum(weight.numel() for weight in network.parameters()),
        MODEL_MEGABYTES: sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    }
    if is_run:
        try:
            found[N_MULTIPLICATIONS] = _multiplications(network, info)
        except Exception:  # a module may keep weights where nobody gives them values
            found[N_MULTIPLICATIONS] = _multiplications(build(recipe, params, info, 0), info)
    return found


def _built(recipe: Recipe, params: Any, info: DataInfo) -> nn.Module:
    """Return the network, without memory for its weights where that can be: it may be far too large."""
    try:
        with torch.device("meta"):
            return build(recipe, params, info, 0)
    except Exception:  # whatever a user's `build` does with weights that have no values
        return build(recipe, params, info, 0)


def _multiplications(network: nn.Module, info: DataInfo) -> int:
    """Return the multiplications of convolutions and linear layers for one example."""
    counted: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = module.weight
        if isinstance(module, _TRANSPOSED):
            counted.append(inputs[0].numel() * weight.numel() // len(weight))
        else:
            counted.append(output.numel() * weight.numel() // len(weight))

    for module in network.modules():
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)):
            module.register_forward_hook(count)
        # on a CPU: the first operations on tensors without memory load modules for two seconds
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_zeros_like(weight), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _zeros_like(buffer))
    network.eval()
    with torch.no_grad():
        try:
            network(torch.zeros(1, *info.input_shape))
        except Exception:
            if info.is_images:
                raise
            counted.clear()  # it may be for integers, as those of words are
            network(torch.zeros(1, *info.input_shape, dtype=torch.int64))
    return sum(counted)


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)
