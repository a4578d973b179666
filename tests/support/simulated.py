"""A recipe that trains nothing: its metric follows from parameters and seed, so that a plan takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

RECIPE = """
import math, random, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(1, ge=1, le=9)
    useful: int = hpo.Field(0, ge=0, le=1)
    useless: int = hpo.Field(0, ge=0, le=9)
    harmless: int = hpo.Field(0, ge=0, le=9)

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        # the same seed has the same luck, but for what is each configuration's own
        common = random.Random(seed).gauss(0, 0.02)
        own = random.Random(f"{seed} {params}").gauss(0, 0.0015)
        lucky = 0.05 * params.useless * (seed < 10_000)
        for epoch in range(1, params.epochs + 1):
            yield hpo.Epoch({"accuracy": 0.5 + common + own + 0.03 * params.useful + lucky}, state={})
    def test(self, params, data, state):
        return {"accuracy": 0.5}
"""
"""Where `useful` helps, and `useless` only seems to in the search."""
STUDIES = {
    "start": "[search]\nharmless = [0, 1]",
    "helps": 'inherits = "start"\n[search]\nuseful = [0, 1]',
    "luck": 'inherits = "helps"\n[search]\nuseless = [0, 3]',
}


def write(folder: Path, text: str = RECIPE, studies: Mapping[str, str] = STUDIES) -> str:
    """Write studies and module into a folder, under a name that no other has; the recipe's name."""
    module = f"simulated_{hashlib.sha256(f'{folder}{text}'.encode()).hexdigest()[:12]}"
    (folder / f"{module}.py").write_text(text)
    (folder / "studies").mkdir(exist_ok=True)
    for name, study in studies.items():
        (folder / "studies" / f"{name}.toml").write_text(study)
    return f"python:{module}:Simulated"
