"""A claimed trial, trained to its end: parameters in; epochs out, reported, pruned, checkpointed."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Annotated, Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from hpo.data import TrainingData
from hpo.errors import (
    DeviceFull,
    DeviceLostError,
    Diverged,
    HpoError,
    Interrupted,
    RunError,
    StorageError,
    TrialLost,
)
from hpo.execution.context import WorkerContext
from hpo.planning.inheritance import config_of_trial, context_of, control_config, decided_trial, inherited_by
from hpo.planning.plan import FINAL, Plan, versions
from hpo.planning.pruners import Runs, TrialPruner, build_pruner
from hpo.planning.samplers import distribution, draw
from hpo.planning.scheduler import is_control
from hpo.space.parameters import ParamValue, TrialConfig
from hpo.storage.outbox import Outbox
from hpo.storage.queue import Queue, Reason, slot_of
from hpo.storage.trials import id_of
from hpo.training.checkpoints import Checkpoints
from hpo.training.cuda import is_lost, is_out_of_memory
from hpo.training.devices import processor
from hpo.training.loop import EpochResult, SeedEpoch, check_state, state_of, train

T = TypeVar("T")

RELEASE_SECONDS = 3.0
"""How long a worker that was asked to stop waits for the database: it has ten seconds to be gone."""


class TrialCallback:
    """What a kind of trial records beyond the epochs themselves; a trial of the search: nothing."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        """Travels in the checkpoints: tensors and plain types."""

    def restore(self, state: dict[str, Any], training: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint.

        Args:
            state: of unknown origin.
            training: the checkpoint's state of training, which has been checked.

        Raises:
            ValueError: it is no state of such a callback.
        """
        if state:
            raise ValueError("such a trial records nothing more")

    def attrs(self) -> dict[str, Any]:
        """Return the attributes of the epochs so far."""
        return {}

    def after_epoch(self, epoch: EpochResult, *, is_best: bool) -> dict[str, Any]:
        """Return attributes to store with an epoch; `is_best`: so far, by validation macro F1."""
        return {}

    def at_end(self, config: TrialConfig, selected_epoch: int) -> dict[str, Any]:
        """Return attributes to store with the result."""
        return {}


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint holds. Pydantic reads it: a file may have the right sum and be anybody's."""

    training: dict[str, Any]
    """As `hpo.training.loop.state_of` has it."""
    epochs: dict[int, list[SeedEpoch]]
    # "recorder" in the checkpoints of plans that were begun before 2026-11-27
    callback: Annotated[dict[str, Any], Field(validation_alias=AliasChoices("callback", "recorder"))]
    trained_on: list[str]
    """Processors and versions of torch, in order."""


_SAVED = TypeAdapter(_Saved)


class TrialFailedError(Exception):
    """Training, a sampler or a pruner raised what it does not document; the text is the traceback."""


def run_trial(
    plan: Plan, name: str, trial: FrozenTrial, context: WorkerContext, callback: TrialCallback
) -> TrialState:
    """Train a claimed trial to its end, from its last checkpoint if there is one.

    Returns:
        How it ended; FAIL when training raised an error, which is recorded with its traceback.

    Raises:
        Interrupted: the worker was asked to stop; the trial is closed as released.
        DeviceFull: there was no memory for it beside other trials; it is closed as released.
        TrialLost: somebody else closed the trial meanwhile.
        DeviceLostError: the GPU does nothing more for this process; the trial is closed as lost.
        RunError: checkpoints or results cannot be written; the trial is closed as released.
    """
    queue = Queue(plan.storage, name)
    try:
        return _train_trial(plan, name, trial, context, callback)
    except Interrupted:
        with contextlib.suppress(StorageError):  # then its lease gives it back
            detail = "the worker was asked to stop"
            queue.close(id_of(trial), Reason.RELEASED, detail, patience_seconds=RELEASE_SECONDS)
        raise
    except DeviceFull as error:
        queue.close(id_of(trial), Reason.RELEASED, str(error))
        raise
    except DeviceLostError as error:
        queue.close(id_of(trial), Reason.LOST, str(error))
        raise
    except StorageError:
        raise  # nothing can be written any more; the lease gives the trial back
    except TrialFailedError as error:
        text = str(error)
        last_line = text.strip().splitlines()[-1]
        queue.close(id_of(trial), Reason.ERROR, last_line, attrs={"traceback": text[-8000:]})
    except RunError as error:  # no point could be drawn
        queue.close(id_of(trial), Reason.ERROR, str(error))
    except OSError as error:
        if not queue.close(id_of(trial), Reason.RELEASED, str(error)):
            # paused in the middle of a checkpoint while a successor ended the trial and cleared the folder
            raise TrialLost(f"trial {id_of(trial)} was closed by somebody else") from error
        # the disk is full or not writable: not the trial's fault, and the next one would fare no better
        raise RunError(f"{name}/{trial.number}: {error}") from error
    return TrialState.FAIL


def _train_trial(
    plan: Plan, name: str, trial: FrozenTrial, context: WorkerContext, callback: TrialCallback
) -> TrialState:
    config = _configure(plan, name, trial, context)
    pruning = _Pruning(plan, name, trial, config)
    if _reuse_result(plan, name, trial, config, pruning):
        return TrialState.COMPLETE
    attempt = _Attempt(plan, name, trial, context, callback, config)
    training = train(
        config,
        context.data,
        trial.user_attrs["seeds"],
        device=context.device,
        precision=plan.identity.precision,
        resume=attempt.restore(),
        should_stop=context.should_stop,
    )
    pruned, diverged = False, None
    try:
        # the kill may have come between the last report and the pruner's answer to it
        pruned = attempt.n_epochs > 0 and pruning.should_prune(attempt.n_epochs)
        while not pruned and (epoch := _computed(context, lambda: next(training, None))) is not None:
            if attempt.add(epoch):  # an outage postpones the pruner's answer; training goes on
                pruned = pruning.should_prune(attempt.n_epochs)
    except Diverged as error:
        diverged = error
    return attempt.finish(pruned=pruned, diverged=diverged)


class _Pruning:
    """Whether the study's pruner wants a trial to stop."""

    def __init__(self, plan: Plan, name: str, trial: FrozenTrial, config: TrialConfig) -> None:
        self._plan, self._trial_id = plan, id_of(trial)
        self._pruner: TrialPruner | None = None
        if name == FINAL or not plan.options.pruning:
            return
        epochs = config.training.epochs
        pruner = build_pruner(plan.specs[name], Runs(epochs, len(plan.identity.class_names)))
        self._pruner = TrialPruner(pruner, plan.storage.study(name, pruner), epochs)
        # a pruned control could not be compared with; it is asked about, as others are compared with it
        self._is_prunable = not is_control(plan, name, slot_of(trial))

    def should_prune(self, n_epochs: int) -> bool:
        """Ask the pruner about the epochs that are new, now that so many are reported."""
        pruner = self._pruner
        if pruner is None:
            return False
        read = partial(self._plan.storage.trial, self._trial_id)
        stops = _asked(self._plan, self._trial_id, lambda: pruner.should_prune(read, n_epochs))
        return stops and self._is_prunable


class _Attempt:
    """What an attempt has trained so far: in the database, in its checkpoints, and for its callback."""

    def __init__(
        self,
        plan: Plan,
        name: str,
        trial: FrozenTrial,
        context: WorkerContext,
        callback: TrialCallback,
        config: TrialConfig,
    ) -> None:
        self._plan, self._name, self._trial = plan, name, trial
        self._context, self._callback, self._config = context, callback, config
        self._checkpoints = _checkpoints(plan, name, trial, config, context)
        self._outbox = Outbox(plan.storage, id_of(trial))
        self._epochs: dict[int, Sequence[SeedEpoch]] = {}
        self._reports: dict[int, float] = {}
        self._trained_on: list[str] = []

    @property
    def n_epochs(self) -> int:
        """How many epochs have ended."""
        return len(self._reports)

    def restore(self) -> dict[str, Any] | None:
        """Bring in the newest checkpoint, if there is one, and return its state of training."""
        seeds = self._trial.user_attrs["seeds"]
        saved = self._checkpoints.latest(
            lambda state: _restored(state, self._config, self._context.data, seeds, self._callback)
        )
        if saved is not None:
            self._epochs |= saved.epochs
            self._reports |= {
                number: fmean(seed.valid_macro_f1 for seed in each) for number, each in saved.epochs.items()
            }
            attrs = {_key(number): _records(each) for number, each in saved.epochs.items()}
            attrs |= self._callback.attrs() | {"resumed_after_epoch": len(saved.epochs)}
            self._plan.storage.write(id_of(self._trial), attrs=attrs, reports=self._reports)
        here = f"{processor(self._context.device)} with torch {versions()['torch']}"
        self._trained_on = list(dict.fromkeys([*(saved.trained_on if saved else []), here]))
        notes = list(self._checkpoints.notes)
        if len(self._trained_on) > 1:
            # better than to begin anew on each new machine of a cluster; but it is said
            machines = ", then ".join(self._trained_on)
            notes.append(f"trained on {machines}: its last bits are those of no single machine")
        if notes:
            self._plan.storage.write(id_of(self._trial), attrs={"notes": notes})
        return saved.training if saved else None

    def add(self, epoch: EpochResult) -> bool:
        """Report an epoch and store its checkpoint.

        First the database, which knows whether the trial is still ours, then the checkpoint: who has lost the
        trial writes neither, unless the database is away.

        Returns:
            Whether the database has it; False: it follows later.
        """
        value = epoch.valid_macro_f1
        attrs = {_key(epoch.number): _records(epoch.seeds)}
        is_best = value > max(self._reports.values(), default=-1.0)
        attrs |= _computed(self._context, partial(self._callback.after_epoch, epoch, is_best=is_best))
        self._epochs[epoch.number] = epoch.seeds
        self._reports[epoch.number] = value
        delivered = self._outbox.send(attrs, {epoch.number: value})
        state = {
            "training": state_of(epoch),
            "epochs": {number: _records(each) for number, each in self._epochs.items()},
            "callback": self._callback.state,
            "trained_on": self._trained_on,
        }
        with _telling_lost_devices(self._context):  # it copies tensors from there
            self._checkpoints.save(self._trial.user_attrs["attempt"], epoch.number, state)
        return delivered

    def finish(self, *, pruned: bool, diverged: Diverged | None) -> TrialState:
        """End the trial with its result, and remove its checkpoints."""
        self._outbox.flush(self._context.should_stop)
        state, value, attrs = self._result(pruned=pruned, diverged=diverged)
        self._plan.storage.finish(id_of(self._trial), state, value, attrs)
        self._checkpoints.clear()
        return state

    def _result(
        self, *, pruned: bool, diverged: Diverged | None
    ) -> tuple[TrialState, float | None, dict[str, Any]]:
        if diverged is not None:
            # PRUNED, not FAIL: it is a result, never the best one, never tried again
            return TrialState.PRUNED, None, {"reason": f"{Reason.DIVERGED}: {diverged}"}
        best = max(self._reports.values())
        if pruned:
            by = self._plan.specs[self._name].pruner.name
            return TrialState.PRUNED, best, {"reason": f"pruned: by {by} after epoch {self.n_epochs}"}
        selected = min(epoch for epoch, value in self._reports.items() if value == best)
        return TrialState.COMPLETE, best, self._callback.at_end(self._config, selected)


def _configure(plan: Plan, name: str, trial: FrozenTrial, context: WorkerContext) -> TrialConfig:
    """Complete the trial's parameters and write down what it is going to train, and where."""
    params: dict[str, ParamValue] = dict(trial.params)
    drawn: dict[str, ParamValue] = {}
    axes = {}
    study = plan.specs.get(name)
    is_sample = trial.user_attrs["point"].startswith("#")
    if study is not None and is_sample and not params:
        axes = {axis: distribution(axis, values) for axis, values in study.search.items()}
        known = context_of(plan, name, inherited_by(plan, name))
        index, seed = trial.user_attrs["index"], plan.options.seed
        optunas = plan.storage.study(name)
        drawn = params = _asked(
            plan,
            id_of(trial),
            lambda: draw(optunas, trial, study, known, index, seed),
        )
    config = config_of_trial(plan, name, trial, params)
    attrs = {
        "config": config.params(),
        "device": context.device,
        "processor": processor(context.device),
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
        "versions": versions(),
    }
    plan.storage.write(id_of(trial), attrs=attrs, params=drawn, distributions=axes)
    return config


def _asked(plan: Plan, trial_id: int, call: Callable[[], T]) -> T:
    """Return what a sampler or a pruner answers; they write past what `storage` looks after.

    Raises:
        TrialLost: somebody else closed the trial.
        TrialFailedError: Optuna raised anything else.
    """
    try:
        return plan.storage.retry(call)
    except UpdateFinishedTrialError as error:
        raise TrialLost(f"trial {trial_id} was closed by somebody else") from error
    except HpoError:
        raise
    except Exception as error:
        raise TrialFailedError("".join(traceback.format_exception(error))) from error


def _reuse_result(plan: Plan, name: str, trial: FrozenTrial, config: TrialConfig, pruning: _Pruning) -> bool:
    """Give a trial the result of the inherited trial, if that trained the same: nothing is trained twice.

    Grids often hold the value that was inherited, as a control (2 of the original's 32 points).
    """
    inherited = plan.record(name).inherited if name != FINAL else None
    if inherited is None or inherited.source is None or config != control_config(plan, inherited):
        return False
    before = decided_trial(plan, inherited.source)
    # with where that was, and what is to be said of it
    attrs = {
        key: value
        for key, value in before.user_attrs.items()
        if key in ("device", "processor", "versions", "notes") or key.startswith("epoch:")
    }
    plan.storage.write(id_of(trial), attrs=attrs, reports=before.intermediate_values)
    pruning.should_prune(len(before.intermediate_values))
    source = f"{inherited.source.study}/{inherited.source.trial}"
    reason = f"{Reason.REUSED}: {source} is the same configuration at the same seeds"
    plan.storage.finish(id_of(trial), TrialState.COMPLETE, before.value, {"reason": reason})
    return True


def _checkpoints(
    plan: Plan, name: str, trial: FrozenTrial, config: TrialConfig, context: WorkerContext
) -> Checkpoints:
    attrs = trial.user_attrs
    identity = {
        "config": config.params(),
        "seeds": attrs["seeds"],
        "fingerprint": plan.identity.fingerprint,
        "device": plan.identity.device,
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
    }
    return Checkpoints(context.checkpoints, name, attrs["point"], attrs["replicate"], identity)


def _restored(
    state: Mapping[str, Any],
    config: TrialConfig,
    data: TrainingData,
    seeds: Sequence[int],
    callback: TrialCallback,
) -> _Saved:
    """Return what a checkpoint holds, with the callback's part given back to it.

    Raises:
        ValueError: it is not what a trial of this configuration and these seeds saves.
    """
    try:
        saved = _SAVED.validate_python(state)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"{key} is not there, or of another kind") from None
    check_state(saved.training, saved.epochs, config, data, seeds)
    callback.restore(saved.callback, saved.training)
    return saved


def _key(epoch: int) -> str:
    """Return the attribute that holds what training recorded of an epoch."""
    return f"epoch:{epoch}"


def _records(epoch: Sequence[SeedEpoch]) -> list[dict[str, Any]]:
    return [seed.to_dict() for seed in epoch]


@contextlib.contextmanager
def _telling_lost_devices(context: WorkerContext) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_lost(error):
            raise DeviceLostError(f"{context.device}: {str(error).splitlines()[0]}") from error
        raise


def _computed(context: WorkerContext, call: Callable[[], T]) -> T:
    """Return what a computation returns; what it raises by mistake is told from what storage or disk raise.

    Raises:
        DeviceFull: there was no memory for it, and it is not alone.
        DeviceLostError: every further call would fail.
        TrialFailedError: anything else but the end of a trial.
    """
    was_shared = context.is_shared()  # the neighbour that took the memory may end meanwhile
    try:
        with _telling_lost_devices(context):
            return call()
    except (Diverged, Interrupted, DeviceLostError):
        raise
    except Exception as error:
        if not ((was_shared or context.is_shared()) and is_out_of_memory(error)):
            raise TrialFailedError("".join(traceback.format_exception(error))) from error
    # not while the error is handled: it would go along, and its frames hold what has to be freed
    raise DeviceFull(f"no memory on {context.device} for a trial beside the others")
