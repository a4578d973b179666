"""The one place where a trial meets training: parameters in, epochs out, reported, pruned, checkpointed."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from hpo import sampling
from hpo.advance import is_control
from hpo.checkpoint import Checkpoints
from hpo.compute import processor
from hpo.config import ParamValue, TrialConfig
from hpo.data import TrainingData
from hpo.delivery import Delivery
from hpo.errors import Diverged, Interrupted, RunError, StorageError, TrialLost
from hpo.plan import FINAL, Plan, versions
from hpo.queue import Queue, Reason, slot_of
from hpo.store import Store
from hpo.train import EpochResult, state_of, train

RELEASE_SECONDS = 3.0
"""How long a worker that was asked to stop waits for the database: it has ten seconds to be gone."""


@dataclass(frozen=True)
class Workplace:
    """What a worker has at hand for every trial."""

    data: TrainingData
    device: str
    checkpoints: Store
    should_stop: Callable[[], bool]


class Recorder:
    """What a kind of trial records beyond the epochs themselves; a trial of the search: nothing."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        """Travels in the checkpoints: tensors and plain types."""

    def after_epoch(self, epoch: EpochResult, *, is_best: bool) -> dict[str, Any]:
        """Attributes to store with an epoch; `is_best`: it is the best so far by validation macro F1."""
        return {}

    def at_end(self, config: TrialConfig, selected_epoch: int) -> dict[str, Any]:
        """Attributes to store with the result."""
        return {}


class TrialFailedError(Exception):
    """Training raised something else than what `train` documents; the text is the traceback."""


def run_trial(plan: Plan, name: str, trial: FrozenTrial, place: Workplace, recorder: Recorder) -> TrialState:
    """Trains a claimed trial to its end, from its last checkpoint if there is one.

    Returns:
        How it ended; FAIL when training raised an error, which is recorded with its traceback.

    Raises:
        Interrupted: the worker was asked to stop; the trial is closed as released.
        TrialLost: somebody else closed the trial meanwhile.
        RunError: checkpoints or results cannot be written; the trial is closed as released.
    """
    queue = Queue(plan.storage, name)
    try:
        return _train_trial(plan, name, trial, place, recorder)
    except Interrupted:
        with contextlib.suppress(StorageError):  # then its lease gives it back
            detail = "the worker was asked to stop"
            queue.close(trial._trial_id, Reason.RELEASED, detail, patience_seconds=RELEASE_SECONDS)
        raise
    except StorageError:
        raise  # nothing can be written any more; the lease gives the trial back
    except TrialFailedError as error:
        text = str(error)
        last_line = text.strip().splitlines()[-1]
        queue.close(trial._trial_id, Reason.ERROR, last_line, attrs={"traceback": text[-8000:]})
    except RunError as error:  # no point could be drawn
        queue.close(trial._trial_id, Reason.ERROR, str(error))
    except OSError as error:
        if not queue.close(trial._trial_id, Reason.RELEASED, str(error)):
            # paused in the middle of a checkpoint while a successor ended the trial and cleared the folder
            raise TrialLost(f"trial {trial._trial_id} was closed by somebody else") from error
        # the disk is full or not writable: not the trial's fault, and the next one would fare no better
        raise RunError(f"{name}/{trial.number}: {error}") from error
    return TrialState.FAIL


def _train_trial(
    plan: Plan, name: str, trial: FrozenTrial, place: Workplace, recorder: Recorder
) -> TrialState:
    trial_id, storage = trial._trial_id, plan.storage
    config = _configure(plan, name, trial, place)
    checkpoints = _checkpoints(plan, name, trial, config, place)
    attrs: dict[str, Any] = {}
    reports: dict[int, float] = {}
    saved = checkpoints.latest()
    if saved is not None:
        attrs, reports, recorder.state = saved["attrs"], saved["reports"], saved["recorder"]
        storage.write(trial_id, attrs={**attrs, "resumed_after_epoch": len(reports)}, reports=reports)
    here = f"{processor(place.device)} with torch {versions()['torch']}"
    trained_on = list(dict.fromkeys([*(saved or {}).get("trained_on", []), here]))
    notes = list(checkpoints.notes)
    if len(trained_on) > 1:
        # better than to begin anew on each new machine of a cluster; but it is said
        notes.append(f"trained on {', then '.join(trained_on)}: its last bits are those of no single machine")
    if notes:
        storage.write(trial_id, attrs={"notes": notes})
    pruner = _pruner(plan, name, trial, config)

    study = storage.study(name, pruner) if pruner is not None else None

    def should_prune(epoch: int) -> bool:
        # after the last epoch nothing is saved by it
        if pruner is None or study is None or epoch == config.training.epochs:
            return False
        return storage.retry(lambda: pruner.prune(study, storage.trial(trial_id)))

    epochs = train(
        config,
        place.data,
        trial.user_attrs["seeds"],
        device=place.device,
        precision=plan.identity.precision,
        resume=saved["training"] if saved is not None else None,
        should_stop=place.should_stop,
    )
    delivery = Delivery(storage, trial_id)
    try:
        with delivery:
            # the kill may have come between the last report and the verdict on it
            pruned = bool(reports) and should_prune(len(reports))
            while not pruned and (epoch := _next(epochs)) is not None:
                value = epoch.valid_macro_f1
                new = {f"epoch:{epoch.number}": [seed.to_dict() for seed in epoch.seeds]}
                new |= recorder.after_epoch(epoch, is_best=value > max(reports.values(), default=-1.0))
                attrs |= new
                reports[epoch.number] = value
                # first the database, which knows whether the trial is still ours, then the checkpoint:
                # who has lost his trial writes neither
                delivered = delivery.send(new, {epoch.number: value})
                state = {
                    "training": state_of(epoch),
                    "attrs": attrs,
                    "reports": reports,
                    "recorder": recorder.state,
                    "trained_on": trained_on,
                }
                checkpoints.save(trial.user_attrs["attempt"], epoch.number, state)
                if delivered:  # an outage postpones the verdict; training goes on
                    pruned = should_prune(epoch.number)
            delivery.complete(place.should_stop)
    except Diverged as error:
        # PRUNED, not FAIL: it is a result, never the best one, never tried again
        storage.finish(trial_id, TrialState.PRUNED, attrs={"reason": f"{Reason.DIVERGED}: {error}"})
        checkpoints.clear()
        return TrialState.PRUNED
    best = max(reports.values())
    if pruned:
        detail = f"by {plan.specs[name].pruner.name} after epoch {len(reports)}"
        storage.finish(trial_id, TrialState.PRUNED, best, {"reason": f"pruned: {detail}"})
    else:
        selected = min(epoch for epoch, value in reports.items() if value == best)
        storage.finish(trial_id, TrialState.COMPLETE, best, recorder.at_end(config, selected))
    checkpoints.clear()
    return TrialState.PRUNED if pruned else TrialState.COMPLETE


def _configure(plan: Plan, name: str, trial: FrozenTrial, place: Workplace) -> TrialConfig:
    """Completes the trial's parameters and writes down what it is going to train, and where."""
    params: dict[str, ParamValue] = dict(trial.params)
    drawn: dict[str, ParamValue] = {}
    axes = {}
    study = plan.specs.get(name)
    is_sample = trial.user_attrs["point"].startswith("#")
    if study is not None and is_sample and not params:
        axes = {axis: sampling.distribution(axis, values) for axis, values in study.search.items()}
        drawn = params = sampling.draw(
            plan.storage.study(name),
            trial,
            study,
            plan.context(name, plan.inherited(name)),
            trial.user_attrs["index"],
            plan.options.seed,
        )
    config = plan.trial_config(name, trial, params)
    attrs = {
        "config": config.params(),
        "device": place.device,
        "processor": processor(place.device),
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
        "versions": versions(),
    }
    plan.storage.write(trial._trial_id, attrs=attrs, params=drawn, distributions=axes)
    return config


def _checkpoints(
    plan: Plan, name: str, trial: FrozenTrial, config: TrialConfig, place: Workplace
) -> Checkpoints:
    attrs = trial.user_attrs
    identity = {
        "config": config.params(),
        "seeds": attrs["seeds"],
        "fingerprint": plan.identity.fingerprint,
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
    }
    return Checkpoints(place.checkpoints, name, attrs["point"], attrs["replicate"], identity)


def _pruner(plan: Plan, name: str, trial: FrozenTrial, config: TrialConfig) -> BasePruner | None:
    # a pruned control could not be compared with
    if name == FINAL or not plan.options.pruning or is_control(plan, name, slot_of(trial)):
        return None
    return sampling.build_pruner(plan.specs[name], config.training.epochs)


def _next(epochs: Iterator[EpochResult]) -> EpochResult | None:
    """The next epoch; what training raises by mistake is told from what storage or disk raise."""
    try:
        return next(epochs, None)
    except (Diverged, Interrupted):
        raise
    except Exception as error:
        raise TrialFailedError("".join(traceback.format_exception(error))) from error
