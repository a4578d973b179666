"""Networks on a GPU, kept with their recorded steps for the next trial whose steps are the same.

To record a network's steps takes as long as several epochs of replaying them, and the trials of a study
mostly differ in what no recording depends on: initial weights, learning rate, l2. So a trial that has ended
leaves its learner and its graphs in a slot, and the next one is copied into it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hpo.training.cuda import CudaGraph
from hpo.training.learner import Learner, tensors_of

Key = tuple[Hashable, ...]
"""What steps depend on beside the values of tensors."""
MOST = 16
"""So many slots are kept; one takes about 0.7 GiB of a GPU (the original's network, 16 steps a graph)."""


@dataclass(frozen=True)
class Slot:
    """A learner with the graphs that step it."""

    learner: Learner
    key: Key | None = None
    """None: nobody else can use it."""
    graphs: dict[Any, CudaGraph] = field(default_factory=dict)


class Slots:
    """The free slots of a process; several threads may ask at once.

    Args:
        most: how many are kept; the one that was given back first goes first.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._free = OrderedDict[int, Slot]()
        self._lock, self._n_given = threading.Lock(), 0

    def __len__(self) -> int:
        return len(self._free)

    def take(self, key: Key) -> Slot | None:
        """Return a free slot of such steps, which is the caller's from now on; None where there is none."""
        with self._lock:
            number = next((number for number, slot in self._free.items() if slot.key == key), None)
            return None if number is None else self._free.pop(number)

    def give(self, slot: Slot) -> None:
        """Keep a slot for another trial; nothing may be under way on its tensors."""
        if slot.key is None:
            return
        with self._lock:
            self._n_given += 1
            self._free[self._n_given] = slot
            if len(self._free) > self._most:
                self._free.popitem(last=False)

    def clear(self) -> None:
        """Free the memory of all that are free."""
        with self._lock:
            self._free.clear()


def structure_of(network: nn.Module) -> str | None:
    """Return a hash of everything that a network is apart from the values of its parameters and buffers.

    None where that cannot be told, as modules hold something that cannot be pickled.
    """
    places = {id(tensor): place for place, tensor in enumerate(tensors_of(network))}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Tensor) or id(value) not in places:
                return None  # a tensor that is neither goes in with its values
            kind = tuple(value.shape), value.stride(), str(value.dtype), value.requires_grad
            return places[id(value)], kind

    buffer = io.BytesIO()
    try:
        Pickler(buffer).dump(network)
    except Exception:  # whatever the modules of somebody else raise
        return None
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
