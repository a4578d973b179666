"""A recipe whose training does to a device what must not be done, for `gpu_faults.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import hpo

MARK_VARIABLE = "FAULTY_MARK"
"""Names a file. What a process does not survive is done once, by whoever finds it not there."""
N_TRIED = 8
"""Batches of so many are of `hpo`'s own trial of a recipe before a plan begins."""


class Sizes(hpo.Params):
    """What goes wrong, and the width of the network."""

    fault: Literal["none", "too_large", "asserts", "reads"] = "none"
    width: int = hpo.Field(16, ge=1, le=1024)


class Fault(nn.Module):
    """Passes its inputs on, and in training does something to the device that they are on."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs."""
        if self.training and len(inputs) > N_TRIED:
            if self._fault == "too_large":
                torch.empty(2**50, device=inputs.device)
            elif self._fault in ("asserts", "reads") and _is_first():
                {"asserts": _assert, "reads": _read_out_of_bounds}[self._fault](inputs.device)
        return inputs


class Faulty(hpo.Recipe):
    """One hidden layer."""

    Params = Sizes
    draws_in_training = False

    def build(self, params: Any, data: hpo.DataInfo) -> nn.Module:
        """Return the network."""
        n_inputs = data.input_shape[1] * data.input_shape[2]
        layers = [nn.Flatten(), Fault(params.fault), nn.Linear(n_inputs, params.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(params.width, data.n_classes))


def _is_first() -> bool:
    mark = Path(os.environ[MARK_VARIABLE])
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _assert(device: torch.device) -> None:
    """Have a kernel find an index out of range."""
    torch.zeros(1, device=device)[torch.full((1,), 9, device=device)]


def _read_out_of_bounds(device: torch.device) -> None:
    """Have a kernel read at an address that is nobody's."""
    storage = torch._C._construct_storage_from_data_pointer(16, device, 4096)
    torch.empty(0, device=device).set_(storage, 0, (1024,), (1,)).sum()
