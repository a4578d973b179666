"""Pruners: from the name and options of a study file to Optuna's objects, asked about each epoch once.

A new one is a function here, whose keyword parameters are its options, and a line in `PRUNERS`. Options are
named as Optuna names them; steps are epochs, counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial
from pydantic import Field

from hpo.errors import InputError
from hpo.planning._components import Count, Positive, build
from hpo.planning.history import as_judged
from hpo.planning.hub import check_name, from_hub, is_hub
from hpo.space.study_file import Component, StudySpec


@dataclass(frozen=True)
class Runs:
    """What a pruner has to know of the runs that it judges."""

    epochs: int
    n_classes: int
    """0 where targets are numbers."""
    is_share: bool = True
    """Whether the objective is a share, as macro F1 and accuracy are."""


def _none(runs: Runs) -> BasePruner:
    return optuna.pruners.NopPruner()


def _median(
    runs: Runs,
    *,
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials
    )


def _percentile(
    runs: Runs,
    *,
    percentile: Annotated[float, Field(ge=0, le=100)],
    n_startup_trials: Count = 5,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
    n_min_trials: Positive = 1,
) -> BasePruner:
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials
    )


def _successive_halving(
    runs: Runs,
    *,
    min_resource: Positive = 1,
    reduction_factor: Annotated[int, Field(ge=2)] = 4,
    min_early_stopping_rate: Count = 0,
    bootstrap_count: Count = 0,
) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count
    )


def _hyperband(
    runs: Runs,
    *,
    min_resource: Positive = 1,
    reduction_factor: Annotated[int, Field(ge=2)] = 3,
    bootstrap_count: Count = 0,
) -> BasePruner:
    return optuna.pruners.HyperbandPruner(min_resource, runs.epochs, reduction_factor, bootstrap_count)


def _patient(
    runs: Runs,
    *,
    patience: Count,
    min_delta: Annotated[float, Field(ge=0)] = 0.0,
    wrapped: dict[str, Any] | None = None,
) -> BasePruner:
    inner = None
    if wrapped is not None:
        if not isinstance(wrapped.get("name"), str):
            raise InputError(f"wrapped.name is missing; known: {', '.join(PRUNERS)}")
        inner = _build("wrapped", Component.model_validate(wrapped), runs)
    return optuna.pruners.PatientPruner(inner, patience, min_delta)


def _threshold(
    runs: Runs,
    *,
    lower: float | None = None,
    upper: float | None = None,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
) -> BasePruner:
    if lower is None and upper is None:
        raise InputError("lower is missing; 'threshold' needs lower or upper, as lower = 0.15")
    if lower is not None and upper is not None and lower > upper:
        raise InputError(f"lower = {lower}: is above upper = {upper}")
    return optuna.pruners.ThresholdPruner(lower, upper, n_warmup_steps, interval_steps)


def _chance(
    runs: Runs,
    *,
    factor: Annotated[float, Field(gt=0)] = 1.5,
    at_most: Annotated[float, Field(gt=0, le=1)] = 0.15,
    n_warmup_steps: Count = 0,
    interval_steps: Positive = 1,
) -> BasePruner:
    """Stop what is no better than chance, whose macro F1 is one divided by the number of classes.

    With few classes that is so much that a network which is slow to learn may be below it for a while: what
    is above `at_most` goes on. For numbers, and for metrics that are no shares, it is not known what chance
    reaches: nothing is stopped.
    """
    if not (runs.n_classes and runs.is_share):
        return optuna.pruners.NopPruner()
    lower = min(factor / runs.n_classes, at_most)
    return optuna.pruners.ThresholdPruner(lower, None, n_warmup_steps, interval_steps)


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": _none,
    "median": _median,
    "percentile": _percentile,
    "successive-halving": _successive_halving,
    "hyperband": _hyperband,
    "patient": _patient,
    "threshold": _threshold,
    "chance": _chance,
}


def build_pruner(spec: StudySpec, runs: Runs) -> BasePruner:
    """Make the pruner of a study for such runs.

    Raises:
        InputError: an unknown name or option, or a value that it cannot have; the text starts with its key.
    """
    if is_hub(spec.pruner):
        theirs: BasePruner = from_hub("pruner", spec.pruner)
        return theirs
    return _build("pruner", spec.pruner, runs)


def check_pruner(spec: StudySpec, *, here: bool) -> None:
    """Check that the pruner of a study can be made, as `check_sampler` does.

    Raises:
        InputError: as from `build_pruner`.
    """
    if is_hub(spec.pruner) and not here:
        check_name("pruner", spec.pruner)
    else:
        build_pruner(spec, Runs(epochs=1, n_classes=2))


def _build(where: str, component: Component, runs: Runs) -> BasePruner:
    if component.name == "wilcoxon":
        raise InputError(
            f"{where}.name = 'wilcoxon' compares seeds or folds that are trained one after the other; here a "
            "pruner looks after each epoch, at all seeds together. Further seeds for those points alone that "
            "can still win: --seeds race"
        )
    return build(where, PRUNERS, component, runs)


class TrialPruner:
    """Asks a pruner about one trial: about every epoch but the last, once, and in order.

    Optuna's pruners judge the epoch before they are asked, and some note what the trial had reached by then.
    One that is resumed, or that trained through an outage, has several epochs at once: it is judged as if it
    had been asked after each of them.

    Args:
        pruner: of this trial alone.
        study: whose trials it is compared with, as from `for_pruner`.
        epochs: how many the trial is going to have; to stop it after the last one would save nothing.
    """

    def __init__(self, pruner: BasePruner, study: optuna.Study, epochs: int) -> None:
        self._pruner, self._study, self._last = pruner, study, epochs - 1
        self._n_judged = 0

    def should_prune(self, read: Callable[[], FrozenTrial], n_epochs: int) -> bool:
        """Return whether the trial was to be stopped after any of its new epochs, now that it has so many.

        Args:
            read: the trial as it stands in the database, an object that nobody else has.
            n_epochs: that it has reported.
        """
        is_stopped = False
        for epoch in range(self._n_judged + 1, min(n_epochs, self._last) + 1):
            trial = as_judged(read())  # with what the pruner noted of the epoch before
            reports = trial.intermediate_values
            trial.intermediate_values = {
                number: value for number, value in reports.items() if number <= epoch
            }
            # of several at once any counts: what would have been stopped has not trained the others
            is_stopped = self._pruner.prune(self._study, trial) or is_stopped
            self._n_judged = epoch
        return is_stopped
