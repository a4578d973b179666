"""Tune a small network study by study with Optuna: resumable, parallel, with verdicts that hold.

The command line as a library; names are imported when they are first used, so that `import hpo` is quick:

    from hpo import final_result, run_plan

    plan = run_plan(data="digits", out="hpo-out")
    print(final_result(plan)["test"]["macro_f1"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import Field as Field

    from hpo.api.records import Plan as Plan
    from hpo.api.records import best as best
    from hpo.api.records import final_result as final_result
    from hpo.api.records import find_plan as find_plan
    from hpo.api.records import rows as rows
    from hpo.api.records import status as status
    from hpo.api.run import run_plan as run_plan
    from hpo.data import ArrayData as ArrayData
    from hpo.data import DataInfo as DataInfo
    from hpo.data import ImageData as ImageData
    from hpo.data import TrainingData as TrainingData
    from hpo.data import load_training as load_training
    from hpo.data import prepare as prepare
    from hpo.errors import HpoError as HpoError
    from hpo.errors import InputError as InputError
    from hpo.monitor.export import epochs_frame as epochs_frame
    from hpo.monitor.export import export as export
    from hpo.monitor.export import export_epochs as export_epochs
    from hpo.monitor.export import trials_frame as trials_frame
    from hpo.monitor.watch import Progress as Progress
    from hpo.space.parameters import LoopParams as LoopParams
    from hpo.space.parameters import Params as Params
    from hpo.training.recipe import Epoch as Epoch
    from hpo.training.recipe import Layer as Layer
    from hpo.training.recipe import LoopContext as LoopContext
    from hpo.training.recipe import Recipe as Recipe
    from hpo.training.saved_model import load_model as load_model

_HOMES = {
    "Epoch": "hpo.training.recipe",
    "Field": "pydantic",
    "Layer": "hpo.training.recipe",
    "LoopContext": "hpo.training.recipe",
    "LoopParams": "hpo.space.parameters",
    "Params": "hpo.space.parameters",
    "Recipe": "hpo.training.recipe",
    "ArrayData": "hpo.data",
    "DataInfo": "hpo.data",
    "TrainingData": "hpo.data",
    "ImageData": "hpo.data",
    "load_training": "hpo.data",
    "prepare": "hpo.data",
    "HpoError": "hpo.errors",
    "InputError": "hpo.errors",
    "load_model": "hpo.training.saved_model",
    "Plan": "hpo.api.records",
    "Progress": "hpo.monitor.watch",
    "epochs_frame": "hpo.monitor.export",
    "export": "hpo.monitor.export",
    "export_epochs": "hpo.monitor.export",
    "trials_frame": "hpo.monitor.export",
    "best": "hpo.api.records",
    "final_result": "hpo.api.records",
    "rows": "hpo.api.records",
    "status": "hpo.api.records",
    "find_plan": "hpo.api.records",
    "run_plan": "hpo.api.run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
