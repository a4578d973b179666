"""A recipe whose epochs take a known time, and whose metric follows from its parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.execution import trial
from hpo.training import own_loop
from tests.support import simulated

RECIPE = """
import time, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(4, ge=1, le=99)
    quality: int = hpo.Field(0, ge=0, le=99)
    slow: int = hpo.Field(0, ge=0, le=9)

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        first = 1 if resume is None else resume["epoch"] + 1
        for epoch in range(first, params.epochs + 1):
            EPOCH
            yield hpo.Epoch({"accuracy": 0.5 + params.quality / 1000 + epoch / 1e6}, state={"epoch": epoch})
    def test(self, params, data, state):
        return {"accuracy": 0.5}
"""
"""An epoch of a slow one takes as long as ten others."""
EPOCH = "from tests.support.timed import clock; clock.seconds += 1 + 9 * params.slow"
REAL_EPOCH = "time.sleep(0.2 * (1 + 9 * params.slow))"


class Clock:
    """A clock that only a recipe moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        """Return what `time.perf_counter` would."""
        return self.seconds


clock = Clock()


def use_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an epoch in this process take as long as the recipe says."""
    for module in (own_loop, trial):
        monkeypatch.setattr(module, "time", clock)


def write(folder: Path, studies: dict[str, str], epoch: str = EPOCH, recipe: str = RECIPE) -> str:
    """Write studies and module into a folder, under a name that no other has; the recipe's name.

    Args:
        folder: where to.
        studies: their files by name.
        epoch: what is done in an epoch; it may use what `train` has.
        recipe: another one of its form.
    """
    return simulated.write(folder, recipe.replace("EPOCH", epoch), studies)
