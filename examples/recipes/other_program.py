"""Another program as a recipe: it is told the parameters, and prints a line of JSON after every epoch.

In this folder: `hpo run --recipe python:other_program:Program --data digits --studies studies-other`

Any program in any language will do; this one is Python, and stands below. It cannot go on from a state, so a
trial that is killed begins anew, and `hpo show` says so.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import hpo

PROGRAM = """
import json, sys
import numpy as np

order = json.load(open(sys.argv[1]))
data = np.load(order["data"])
rng = np.random.default_rng(order["seed"])
centres = np.zeros((order["n_classes"], data["inputs"].shape[1]))
for epoch in range(order["epochs"]):
    for row in rng.permutation(len(data["inputs"])):
        label = data["targets"][row]
        centres[label] += order["rate"] * (data["inputs"][row] - centres[label])
    print(json.dumps(centres.tolist()), flush=True)
"""


class Rate(hpo.LoopParams):
    """What the program is told."""

    rate: float = hpo.Field(0.1, gt=0, le=1)


class Program(hpo.Recipe):
    """The nearest of ten centres, which a program of its own moves."""

    Params = Rate
    metrics = {"accuracy": "maximize"}  # noqa: RUF012

    def train(
        self,
        params: Any,
        data: hpo.TrainingData,
        seed: int,
        context: hpo.LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[hpo.Epoch]:
        """Start the program, and yield what it prints."""
        arrays, order = context.scratch / "data.npz", context.scratch / "order.json"
        np.savez(arrays, inputs=_flat(data.train.inputs), targets=data.train.targets)
        told = {**params.model_dump(), "seed": seed, "n_classes": data.n_classes, "data": str(arrays)}
        order.write_text(json.dumps(told))
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, order], stdout=subprocess.PIPE, text=True
        ) as child:
            try:
                for line in child.stdout or ():
                    state = {"centres": np.array(json.loads(line))}
                    yield hpo.Epoch(_metrics(state, data.valid), state, resumable=False)
            finally:  # the trial may be pruned, or the worker asked to stop
                child.kill()

    def test(self, params: Any, data: Any, state: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the metrics on the test part."""
        return _metrics(state, data)


def _flat(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return inputs.reshape(len(inputs), -1) / 255.0


def _metrics(state: Mapping[str, Any], data: Any) -> dict[str, float]:
    offsets = _flat(data.inputs)[:, np.newaxis] - state["centres"]
    predicted = np.square(offsets).sum(axis=2).argmin(axis=1)
    return {"accuracy": float((predicted == data.targets).mean())}
