"""Another program as a recipe: it is told the parameters in a file, and prints a line of JSON an epoch.

`hpo doctor --recipe python:recipe:Program --data digits` tries an epoch of it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hpo

COMMAND = [sys.executable, str(Path(__file__).with_name("program.py"))]
"""Yours, in whatever language. hpo does not see that a program changes: give another --out then."""


class Settings(hpo.LoopParams):
    """What the program is told, beside the number of epochs."""

    rate: float = hpo.Field(0.1, gt=0, le=1)
    noise: float = hpo.Field(0.0, ge=0, le=1)


class Program(hpo.Recipe):
    """Class centres, which the program moves; an example is of the class whose centre is nearest."""

    Params = Settings
    metrics = {"accuracy": "maximize"}

    def train(
        self,
        params: Any,
        data: hpo.TrainingData,
        seed: int,
        context: hpo.LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[hpo.Epoch]:
        """Start the program, and yield what it prints. It cannot resume: a killed trial begins anew."""
        arrays, order = context.scratch / "data.npz", context.scratch / "order.json"
        np.savez(arrays, inputs=_flat(data.train.inputs), targets=data.train.targets)
        told = {**params.model_dump(), "seed": seed, "n_classes": data.n_classes, "data": str(arrays)}
        order.write_text(json.dumps(told))
        with subprocess.Popen([*COMMAND, order], stdout=subprocess.PIPE, text=True) as child:
            try:
                for line in child.stdout or ():
                    centres = np.array(json.loads(line))
                    yield hpo.Epoch(_metrics(centres, data.valid), {"centres": centres}, resumable=False)
            finally:  # the trial may be pruned, or the worker asked to stop
                child.kill()

    def test(self, params: Any, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics on the test part; called at the very end."""
        return _metrics(state["centres"], data)


def _flat(inputs: Any) -> Any:
    return inputs.reshape(len(inputs), -1) / 255


def _metrics(centres: Any, data: Any) -> dict[str, float]:
    distances = np.square(_flat(data.inputs)[:, np.newaxis] - centres).sum(axis=2)
    return {"accuracy": float((distances.argmin(axis=1) == data.targets).mean())}
