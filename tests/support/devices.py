"""Devices that are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def pretended_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has the CPU be taken for Apple's GPU in this thread, and refuses what that one does not know."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with _Pretending():
        yield


class _Pretending(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(options or {})
        given = [*arguments, *options.values()]
        is_there = any(_is_mps(each) for each in given)
        of_cuda = any(isinstance(each, str) and each.startswith("cuda") for each in given)
        if of_cuda or (is_there and any(each is torch.float64 for each in given)):
            raise TypeError(f"{function} with {given}: there is no such thing on mps")
        return function(
            *["cpu" if _is_mps(each) else each for each in arguments],
            **{name: "cpu" if _is_mps(each) else each for name, each in options.items()},
        )


def _is_mps(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value) == "mps"
