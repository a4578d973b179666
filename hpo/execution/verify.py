"""Whether a stored result can be had again: the trial is trained anew and compared epoch by epoch."""

from __future__ import annotations

from typing import Any

import torch
from optuna.trial import FrozenTrial

from hpo.errors import Diverged, MissingError
from hpo.execution.context import device_here
from hpo.execution.plan_data import data_of_trial, load_plan_data
from hpo.execution.plan_recipe import recipe_of
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import Plan, versions
from hpo.storage.queue import Reason, reason_of
from hpo.training import fused
from hpo.training.devices import processor
from hpo.training.loop import train


def verify(plan: Plan, name: str, trial: FrozenTrial, place: str | None = None) -> str | None:
    """Train a trial again from nothing, with its seeds, precision and number of threads.

    Args:
        plan: of the trial.
        name: its study's.
        trial: a trial with stored epochs.
        place: where the plan's data are on this machine, if elsewhere than where it was created.

    Returns:
        None when every stored epoch is equal to the bit (seconds aside), or what differs first.

    Raises:
        MissingError: the trial has stored no epoch.
        ConflictError: the data are not the plan's.
    """
    stored = epochs_of(trial.user_attrs)
    if not stored:
        raise MissingError(f"{name}/{trial.number} has no finished epoch to compare with")
    entry, data = load_plan_data(plan, place)
    data = data_of_trial(plan, name, trial, entry, data)
    torch.set_num_threads(plan.identity.threads)
    fused.use(plan.identity.kernels)
    device = device_here(plan)
    epochs = train(
        recipe_of(plan).recipe,
        trial.user_attrs["config"],
        data,
        trial.user_attrs["seeds"],
        device=device,
        precision=plan.identity.precision,
    )
    elsewhere = _elsewhere(trial, device)
    for number, before in enumerate(stored, start=1):
        try:
            now = [seed.to_dict() for seed in next(epochs).seeds]
        except Diverged as error:
            return f"epoch {number} differs: it now diverges ({error})"
        for old, new in zip(before, now, strict=True):
            key = _first_difference(old, new)
            if key is not None:
                found = f"epoch {number}, seed {old['seed']} differs: {key} was {old[key]}, is {new[key]}"
                return found + elsewhere
    if reason_of(trial) == Reason.DIVERGED:
        try:
            next(epochs)
        except Diverged:
            return None
        return f"epoch {len(stored) + 1} differs: it does not diverge any more"
    return None


def _elsewhere(trial: FrozenTrial, device: str) -> str:
    """Return what explains a difference: where the trial was trained, if that was not here."""
    there = f"{trial.user_attrs['processor']} with torch {trial.user_attrs['versions']['torch']}"
    here = f"{processor(device)} with torch {versions()['torch']}"
    said = [] if there == here else [f"it was trained on {there}, this is {here}"]
    return "".join(f" ({text})" for text in [*said, *trial.user_attrs.get("notes", [])])


def _first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    return next((key for key in old if key != "seconds" and old[key] != new[key]), None)
