"""A claimed trial, trained to its end: parameters in; epochs out, reported, pruned, checkpointed."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Annotated, Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from hpo._imports import place_in_user_code
from hpo._text import short_duration
from hpo.errors import (
    DeviceFull,
    DeviceLostError,
    Diverged,
    HpoError,
    InputError,
    Interrupted,
    RunError,
    StorageError,
    TrialLost,
)
from hpo.execution.context import WorkerContext
from hpo.planning.audit import is_audited
from hpo.planning.closing import Ending
from hpo.planning.decisions import TrialRef, costs_of, epochs_of, objectives_at
from hpo.planning.history import for_pruner
from hpo.planning.inheritance import config_of_trial, context_of, control_config, inherited_by, replicate_of
from hpo.planning.known_points import known_trials
from hpo.planning.plan import FINAL, Plan, versions
from hpo.planning.pruners import Runs, TrialPruner, build_pruner
from hpo.planning.reuse import (
    ELSEWHERE,
    MIXED_BITS,
    ORIGIN_KEY,
    Known,
    find_beginnings,
    find_known,
    origins_text,
    reports_of,
)
from hpo.planning.samplers import distributions, draw
from hpo.planning.scheduler import is_control
from hpo.space.constraints import SECONDS_AN_EPOCH, Constraint
from hpo.space.parameters import ParamValue
from hpo.space.study_file import StudySpec
from hpo.storage.outbox import Outbox
from hpo.storage.queue import Queue, Reason, reason_of, slot_of
from hpo.storage.trials import (
    AUDIT_KEY,
    CHECKPOINTS_KEY,
    COSTS_KEY,
    KEPT_KEY,
    OBJECTIVES_KEY,
    OUTPUTS_KEY,
    SECONDS_KEY,
    SEED_EPOCHS_KEY,
    id_of,
)
from hpo.training.blobs import open_blobs
from hpo.training.checkpoints import Checkpoints, folder_of
from hpo.training.costs import costs as costs_of_config
from hpo.training.cuda import is_lost, is_out_of_memory
from hpo.training.devices import processor
from hpo.training.loop import EpochResult, SeedEpoch, check_state, state_of, train
from hpo.training.recipe import Recipe

T = TypeVar("T")
Config = Mapping[str, ParamValue]
"""A complete configuration."""

NO_STATE = "the recipe has no state to resume from: a trial that is killed begins anew"
TRACEBACK_LENGTH = 8000
"""So much of its end is stored."""
RELEASE_SECONDS = 3.0
"""How long a worker that was asked to stop waits for the database: it has ten seconds to be gone."""


class TrialCallback:
    """What a kind of trial records beyond the epochs themselves; a trial of the search: nothing."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        """Travels in the checkpoints: tensors and plain types."""
        self.last_epoch: int | None = None
        """The epoch after which training ends, and whose result counts; None: the last of the configuration
        ends it, and the best on validation counts."""
        self.notes: tuple[str, ...] = ()
        """What is to be said of the trial."""
        self.kept: dict[str, Any] | None = None
        """What is kept of the last epoch besides, where checkpoints are: tensors and plain types."""

    def known_elsewhere(self, config: Config) -> Known | None:
        """Return what another plan has of such a trial besides its results; of the search it has none."""
        return None

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

    def after_epoch(self, epoch: EpochResult, config: Config, *, is_best: bool) -> dict[str, Any]:
        """Return attributes to store with an epoch; `is_best`: so far, by the objective on validation."""
        return {}

    def at_end(self, config: Config, selected_epoch: int, cut_short: str) -> dict[str, Any]:
        """Return attributes to store with the result; `cut_short`: by what and when, in words, if it was."""
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
    pruned_after: Annotated[int, Field(ge=1)] | None = None
    """Of a trial that is trained on for the audit."""
    origins: list[dict[str, Any]] = field(default_factory=list)
    """Whose checkpoint the training went on from, if it was another plan's."""


_SAVED = TypeAdapter(_Saved)


class TrialFailedError(Exception):
    """Training, a sampler or a pruner raised what it does not document; the text is one line.

    Attributes:
        traceback: of what was raised.
    """

    def __init__(self, cause: BaseException, recipe: Recipe | None = None) -> None:
        place = place_in_user_code(cause, None if recipe is None else type(recipe))
        lines = str(cause).strip().splitlines()
        self.traceback = "".join(traceback.format_exception(cause))
        what = type(cause).__name__ + (f": {lines[0]}" if lines else "")
        if isinstance(cause, HpoError):  # its text is written for people
            what = str(cause)
        super().__init__(f"{place}: {what}" if place else what)


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
        plan.storage.check_in_place()  # by the heartbeat of a database that is gone
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
        attrs = {"traceback": error.traceback[-TRACEBACK_LENGTH:]}
        queue.close(id_of(trial), Reason.ERROR, str(error), attrs=attrs)
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
    limit, is_resumed = _Limit(plan, name, trial), trial.user_attrs["attempt"] > 1
    if not is_resumed and (why := limit.reached(0, 0.0)):
        return _closed_unbegun(plan, name, trial, why)
    config, costs = _configure(plan, name, trial, context)
    pruning, measured = _Pruning(plan, name, trial, config), _Measured(plan, name, trial, config)
    if (reused := _reuse_result(plan, name, trial, config, pruning, measured)) is not None:
        return reused
    if name == FINAL:
        known = callback.known_elsewhere(config)
    else:
        seeds, split_seed = trial.user_attrs["seeds"], context.data.split_seed
        known = find_known(plan, config, seeds, split_seed, processor(context.device))
        if known is not None and known.seeds.keys() == {*seeds}:
            return _take_over(plan, name, trial, costs, known, pruning, measured)
    attempt = _Attempt(plan, name, trial, context, callback, config, costs, known)
    training = attempt.training()
    ended_by: Diverged | TrialFailedError | None = None
    # the kill may have come between the last report and the pruner's answer to it
    is_asked = attempt.n_epochs > 0
    if is_resumed and not is_asked and (why := limit.reached(0, 0.0)):
        return _closed_unbegun(plan, name, trial, why)
    try:
        while True:
            if attempt.pruned_after is None:
                attempt.infeasible = measured.broken(attempt.records)
            if attempt.infeasible:
                break
            if is_asked and attempt.pruned_after is None and pruning.should_prune(attempt.n_epochs):
                attempt.pruned_after = attempt.n_epochs
            if attempt.has_ended or (attempt.pruned_after is not None and not attempt.is_audited):
                break
            is_last = attempt.n_epochs == attempt.n_asked
            if is_asked and not is_last and (why := limit.reached(attempt.n_epochs, attempt.seconds)):
                attempt.cut_short = why
                break
            epoch = _computed(context, lambda: next(training, None))
            if epoch is None:
                attempt.ended_itself = attempt.n_epochs < attempt.n_asked
                break
            is_asked = attempt.add(epoch)  # an outage postpones the pruner's answer; training goes on
    except Diverged as error:
        ended_by = error
    except TrialFailedError as error:
        if attempt.pruned_after is None:
            raise
        ended_by = error  # without the audit it would not have come so far
    finally:
        training.close()  # the scratch folder of a recipe's own loop goes with it, and not at some time later
    return attempt.finish(ended_by)


class _Pruning:
    """Whether the study's pruner wants a trial to stop."""

    def __init__(self, plan: Plan, name: str, trial: FrozenTrial, config: Config) -> None:
        self._plan, self._trial_id = plan, id_of(trial)
        self._pruner: TrialPruner | None = None
        slot = slot_of(trial)
        # further replicates are to be pooled with the first, so each has to be whole
        if name not in plan.specs or not plan.options.pruning or slot.replicate:
            return
        epochs = int(config["epochs"])
        runs = Runs(epochs, len(plan.identity.class_names), plan.objective.is_share)
        pruner = build_pruner(plan.specs[name], runs)
        study = for_pruner(plan.storage.study(name, pruner), lambda: plan.discarded(name))
        self._pruner = TrialPruner(pruner, study, epochs)
        # a pruned control could not be compared with; it is asked about, as others are compared with it
        self._is_prunable = not is_control(plan, name, slot)

    def should_prune(self, n_epochs: int) -> bool:
        """Ask the pruner about the epochs that are new, now that so many are reported."""
        pruner = self._pruner
        if pruner is None:
            return False
        read = partial(self._plan.storage.trial, self._trial_id)
        stops = _asked(self._plan, self._trial_id, lambda: pruner.should_prune(read, n_epochs))
        return stops and self._is_prunable


def _closed_unbegun(plan: Plan, name: str, trial: FrozenTrial, why: str) -> TrialState:
    """Close a trial that has not begun to train, as its study takes no more."""
    Queue(plan.storage, name).close(id_of(trial), Reason.CUT_SHORT, f"{why} before its first epoch")
    return TrialState.FAIL


class _Limit:
    """Whether a trial is to end before its last epoch because time is up, or its study was closed."""

    def __init__(self, plan: Plan, name: str, trial: FrozenTrial) -> None:
        self._ending = Ending(plan, name, trial.number, is_further=bool(slot_of(trial).replicate))
        # as of pruning: others are compared with a control
        is_limited = name in plan.specs and not is_control(plan, name, slot_of(trial))
        self._timeout = plan.specs[name].trial_timeout if is_limited else None

    def reached(self, n_epochs: int, seconds: float) -> str:
        """Return by what it is to end now, in words; empty where it is to go on.

        Args:
            n_epochs: that have ended.
            seconds: that they took.
        """
        if self._timeout is not None and seconds >= self._timeout:
            return f"by trial_timeout = {short_duration(self._timeout)}"
        closed = self._ending.reached(n_epochs)
        return "" if closed is None else f"by {closed.text}"


class _Measured:
    """Whether a trial is found to break a constraint on what is measured while it trains."""

    def __init__(self, plan: Plan, name: str, trial: FrozenTrial, config: Config) -> None:
        self._config, self._constraints = config, list[Constraint]()
        slot = slot_of(trial)
        # as of pruning: others are compared with a control, and further replicates are to be whole
        if name in plan.specs and not slot.replicate and not is_control(plan, name, slot):
            study = plan.specs[name]
            self._constraints = [each for each in study.all_constraints if plan.schema.is_measured(each)]

    def broken(self, attrs: Mapping[str, Any]) -> str:
        """Return what is broken and since when, in words; empty where nothing is.

        Args:
            attrs: of the trial, as far as they are known: what it costs, and its epochs.
        """
        costs = costs_of(attrs) if self._constraints else {}
        if SECONDS_AN_EPOCH not in costs:
            return ""
        values = {**self._config, **costs}
        broken = next((each for each in self._constraints if not each.holds(values)), None)
        if broken is None:
            return ""
        how_far = f"after epoch {len(epochs_of(attrs))} of {self._config['epochs']}"
        found = f"{costs[SECONDS_AN_EPOCH]:.3g} {how_far}, which breaks {broken}"
        return f"{Reason.INFEASIBLE}: {SECONDS_AN_EPOCH} was {found}"


class _Attempt:
    """What an attempt has trained so far: in the database, in its checkpoints, and for its callback."""

    def __init__(
        self,
        plan: Plan,
        name: str,
        trial: FrozenTrial,
        context: WorkerContext,
        callback: TrialCallback,
        config: Config,
        costs: Mapping[str, float],
        known: Known | None,
    ) -> None:
        self._plan, self._name, self._trial = plan, name, trial
        self._context, self._callback, self._config = context, callback, config
        self._costs, self._known = costs, known
        known_seeds = known.seeds if known else {}
        self.seeds = tuple(seed for seed in trial.user_attrs["seeds"] if seed not in known_seeds)
        """That are trained here; another plan has trained the others."""
        self._checkpoints = _checkpoints(plan, name, trial, config, context, self.seeds)
        identity = identity_of(plan, config, context, trial.user_attrs["seeds"])
        self._outputs = Checkpoints(context.checkpoints, self._checkpoints.folder, identity)
        """As the checkpoints, but of the seeds too that another plan has trained."""
        self._outbox = Outbox(plan.storage, id_of(trial))
        self._epochs: dict[int, list[dict[str, Any]]] = {}
        """The records of what was trained here, by seed."""
        self._reports: dict[int, float] = {}
        self._trained_on: list[str] = []
        self._notes: list[str] = []
        self._notes_of_beginnings: list[str] = []
        self._origins: list[dict[str, Any]] = []
        """Who has trained the first epochs, where another plan has."""
        self._begun: Mapping[int, list[SeedEpoch]] = {}
        """Those epochs, where they are reported one after the other as if they were trained here."""
        self.pruned_after: int | None = None
        """The epoch after which the pruner stopped the trial."""
        self.cut_short = ""
        """By what it was cut short, in words."""
        self.ended_itself = False
        """Whether a loop of the recipe's own ended before its last epoch."""
        self.infeasible = ""
        """Which constraint it was found to break, in words."""
        self._trained_seconds, self._trained_seed_epochs = 0.0, 0
        self.is_audited = is_audited(plan.options.audit, plan.options.seed, name, slot_of(trial).point)
        """Whether it is trained on after that."""

    @property
    def n_epochs(self) -> int:
        """How many epochs have ended."""
        return len(self._reports)

    @property
    def has_ended(self) -> bool:
        """Whether it was told to end here."""
        return self.n_epochs == self._callback.last_epoch

    @property
    def n_asked(self) -> int:
        """How many epochs it is to have."""
        return self._callback.last_epoch or int(self._config["epochs"])

    @property
    def _selected(self) -> int | None:
        """The epoch whose result counts, as of now; None before any."""
        if self._callback.last_epoch is not None:
            return max(self._reports, default=None)
        return self._plan.objective.best_of(self._reports)

    @property
    def seconds(self) -> float:
        """How long they took, by the worker's clock."""
        return float(sum(seed["seconds"] for seeds in self._epochs.values() for seed in seeds))

    @property
    def records(self) -> dict[str, Any]:
        """What is recorded of the configuration and its epochs, as attributes of the trial."""
        epochs = {_key(number): self._with_known(number, each) for number, each in self._epochs.items()}
        return {COSTS_KEY: self._costs, **epochs}

    def training(self) -> Generator[EpochResult, None, None]:
        """Return what is trained here, from the newest checkpoint if there is one."""
        state, context = self._restore(), self._context
        if not self.seeds:  # all that the final stage would train is known
            return (EpochResult(number, ()) for number in range(1, self.n_asked + 1))
        trained = train(
            context.recipe,
            self._config,
            context.data,
            self.seeds,
            device=context.device,
            precision=self._plan.identity.precision,
            resume=state,
            should_stop=context.should_stop,
            slots=context.slots,
            count=context.count,
        )
        return self._after_begun(trained)

    def _after_begun(self, trained: Generator[EpochResult, None, None]) -> Generator[EpochResult, None, None]:
        for number, seeds in self._begun.items():
            yield EpochResult(number, tuple(seeds))
        yield from trained

    def _restore(self) -> dict[str, Any] | None:
        """Bring in the newest checkpoint, if there is one, and return its state of training."""
        saved = self._checkpoints.latest(
            lambda state: _restored(state, self._config, self._context, self.seeds, self._callback)
        )
        if saved is None and (saved := self._beginning()) is not None and self._name != FINAL:
            self._begun = saved.epochs  # this plan's pruner may stop it after any of them
        elif saved is not None:
            self._epochs |= {number: _records(each) for number, each in saved.epochs.items()}
            whole = {number: self._with_known(number, each) for number, each in self._epochs.items()}
            self._reports |= {number: self._value(each) for number, each in whole.items()}
            attrs = {_key(number): each for number, each in whole.items()}
            attrs |= self._callback.attrs() | {"resumed_after_epoch": len(saved.epochs)}
            self.pruned_after = saved.pruned_after
            attrs |= self._audit()
            self._plan.storage.write(id_of(self._trial), attrs=attrs, reports=self._reports)
        here = f"{processor(self._context.device)} with torch {versions()['torch']}"
        self._trained_on = list(dict.fromkeys([*(saved.trained_on if saved else []), here]))
        notes = [*self._callback.notes, *self._checkpoints.notes, *self._notes_of_beginnings]
        if self._known is not None:
            known = sorted(self._known.seeds)
            plural = "seed" if len(known) == 1 else "seeds"
            notes.append(f"{plural} {', '.join(map(str, known))} not trained here, but in {self._known.text}")
        if saved is not None and saved.origins:
            self._origins = saved.origins
            notes.append(_note_of(saved.origins))
        if len(self._trained_on) > 1:
            # better than to begin anew on each new machine of a cluster; but it is said
            machines = ", then ".join(self._trained_on)
            notes.append(f"trained on {machines}: {MIXED_BITS}")
        last = self._callback.last_epoch
        attrs = self._said(*notes) | ({} if last is None else {"last_epoch": last})
        if origins := [*(self._known.origins if self._known else []), *self._origins]:
            attrs[ORIGIN_KEY] = origins
        if attrs:
            self._plan.storage.write(id_of(self._trial), attrs=attrs)
        return saved.training if saved else None

    def _beginning(self) -> _Saved | None:
        """Return what a checkpoint of another plan holds that this training goes on from; None: none does."""
        params = self._context.recipe.params_of(self._config)
        found = find_beginnings(
            self._plan,
            self._name,
            self._config,
            self.seeds,
            self._context.data.split_seed,
            processor(self._context.device),
            self.n_asked,
            depends_on_epochs=self._context.recipe.depends_on_epochs(params),
        )
        for each in found:
            identity = identity_of(self._plan, each.config, self._context, self.seeds)
            try:
                there = Checkpoints(open_blobs(each.store), each.folder, identity)
                saved = there.latest(
                    lambda state: _restored(state, self._config, self._context, self.seeds, self._callback),
                    only_reads=True,
                )
            except (InputError, OSError) as error:
                self._notes_of_beginnings.append(f"the checkpoint of {each.text} cannot be read: {error}")
                continue
            if saved is not None:
                if each.epoch == found[0].epoch:  # another copy of it was no loss
                    self._notes_of_beginnings.clear()
                if self._name == FINAL and self._plan.options.keep_checkpoints:
                    self._copy_outputs(there, len(saved.epochs))
                return replace(saved, origins=each.origins, pruned_after=None)
            why = there.notes[0] if there.notes else f"{each.store} has it no more"
            self._notes_of_beginnings.append(f"not gone on with the checkpoint of {each.text}: {why}")
        return None

    def _copy_outputs(self, there: Checkpoints, n_epochs: int) -> None:
        """Keep what another plan has kept of the first epochs of a final stage, as far as it can be read."""
        with suppress(OSError, ValueError):
            for number in range(1, n_epochs + 1):
                self._outputs.save_outputs(number, there.outputs(number))

    def add(self, epoch: EpochResult) -> bool:
        """Report an epoch and store its checkpoint.

        First the database, which knows whether the trial is still ours, then the checkpoint: who has lost the
        trial writes neither, unless the database is away.

        Returns:
            Whether the database has it; False: it follows later.
        """
        trained = _records(epoch.seeds)
        whole = self._with_known(epoch.number, trained)
        value = self._value(whole)
        attrs: dict[str, Any] = {_key(epoch.number): whole}
        self._reports[epoch.number] = value
        if epoch.number in self._begun:
            self._epochs[epoch.number] = trained
            return self._outbox.send(attrs | self._audit(), {epoch.number: value})
        is_best = self._selected == epoch.number
        if not self._trained_seed_epochs:
            attrs[CHECKPOINTS_KEY] = self._checkpoints.folder  # before anything is in it
        began = time.perf_counter()
        attrs |= _computed(
            self._context, partial(self._callback.after_epoch, epoch, self._config, is_best=is_best)
        )
        # of several trials at once each takes its part of the worker's time
        seconds = epoch.seconds + time.perf_counter() - began
        self._trained_seconds += seconds / max(1, self._context.n_at_once())
        self._trained_seed_epochs += len(epoch.seeds)
        attrs |= {SECONDS_KEY: self._trained_seconds, SEED_EPOCHS_KEY: self._trained_seed_epochs}
        self._epochs[epoch.number] = trained
        training = state_of(epoch) if self.seeds else None
        has_no_state = training is None and self.seeds
        attrs |= self._said(*epoch.notes, *([NO_STATE] if has_no_state else [])) | self._audit()
        delivered = self._outbox.send(attrs, {epoch.number: value})
        if self._plan.options.keep_checkpoints and self._callback.kept is not None:
            self._outputs.save_outputs(epoch.number, {"records": whole, **self._callback.kept})
        if training is None:
            return delivered
        state = {
            "training": training,
            "epochs": dict(self._epochs),
            "callback": self._callback.state,
            "trained_on": self._trained_on,
            **({"origins": self._origins} if self._origins else {}),
            **({} if self.pruned_after is None else {"pruned_after": self.pruned_after}),
        }
        with _telling_lost_devices(self._context):  # it copies tensors from there
            self._checkpoints.save(self._trial.user_attrs["attempt"], epoch.number, state)
        return delivered

    def _with_known(self, number: int, trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the records of an epoch of all seeds, in the trial's order."""
        by_seed = {each["seed"]: each for each in trained}
        if self._known is not None:
            by_seed |= {seed: epochs[number - 1] for seed, epochs in self._known.seeds.items()}
        return [by_seed[seed] for seed in self._trial.user_attrs["seeds"]]

    def _value(self, seeds: Sequence[Mapping[str, Any]]) -> float:
        """Return the objective of an epoch, mean over seeds."""
        return fmean(seed["metrics"][self._plan.objective.name] for seed in seeds)

    def _said(self, *notes: str) -> dict[str, Any]:
        """Return the attribute of what is to be said of the trial, if there is anything new."""
        new = [note for note in notes if note not in self._notes]
        self._notes += new
        return {"notes": list(self._notes)} if new else {}

    def _cut_origins(self) -> dict[str, Any]:
        """Return attributes that say who has trained the epochs of a trial that ended before them all."""
        before = _note_of(self._origins)
        self._origins = [{**each, "epochs": min(each["epochs"], self.n_epochs)} for each in self._origins]
        self._notes = [_note_of(self._origins) if note == before else note for note in self._notes]
        origins = [*(self._known.origins if self._known else []), *self._origins]
        return {"notes": self._notes, ORIGIN_KEY: origins}

    def _audit(self) -> dict[str, Any]:
        """Return the attribute that says which reports the search must not see, if there are such."""
        return {} if self.pruned_after is None else {AUDIT_KEY: {"pruned_after_epoch": self.pruned_after}}

    def finish(self, ended_by: Diverged | TrialFailedError | None) -> TrialState:
        """End the trial with its result, and remove its checkpoints, but for the last where they are kept.

        Args:
            ended_by: what ended it before its last epoch, other than the pruner.
        """
        self._outbox.flush(self._context.should_stop)
        state, value, attrs = self._result(ended_by)
        if self.n_epochs < len(self._begun):
            attrs |= self._cut_origins()
        kept = self._kept() if self._plan.options.keep_checkpoints else {}
        self._plan.storage.finish(id_of(self._trial), state, value, {**attrs, **kept})
        if kept:
            self._checkpoints.keep_newest(with_outputs=OUTPUTS_KEY in kept)
        else:
            self._checkpoints.clear()
        return state

    def _kept(self) -> dict[str, Any]:
        """Return attributes that say what of the trial is kept, and where."""
        if self.ended_itself:  # asked for more epochs it might not see that it had ended
            return {}
        place = {"store": self._context.checkpoints.url, "folder": self._checkpoints.folder}
        kept, newest = dict[str, Any](), self._checkpoints.newest_epoch
        if newest is not None:
            kept[KEPT_KEY] = {"epoch": newest, "seeds": list(self.seeds), **place}
        if self._name == FINAL and self._outputs.has_outputs(self.n_epochs):
            kept[OUTPUTS_KEY] = {"epoch": self.n_epochs, "seeds": self._trial.user_attrs["seeds"], **place}
        return kept

    def _result(
        self, ended_by: Diverged | TrialFailedError | None
    ) -> tuple[TrialState, float | None, dict[str, Any]]:
        if self.pruned_after is not None:
            return TrialState.PRUNED, *self._pruned_result(self.pruned_after, ended_by)
        if self.infeasible:
            return TrialState.PRUNED, self._best(self._reports), {"reason": self.infeasible}
        cut_short = ""
        if self.cut_short:
            how_far = f"after epoch {self.n_epochs} of {self.n_asked}"
            cut_short = f"{Reason.CUT_SHORT}: {self.cut_short} {how_far}"
            if self._name != FINAL:
                return TrialState.PRUNED, self._best(self._reports), {"reason": cut_short}
        if ended_by is not None:
            # PRUNED, not FAIL: it is a result, never the best one, never tried again
            return TrialState.PRUNED, None, {"reason": f"{Reason.DIVERGED}: {ended_by}"}
        selected = self._selected
        if selected is None:
            raise TrialFailedError(RuntimeError("training ended without an epoch"))
        attrs = dict(self._callback.at_end(self._config, selected, cut_short))
        attrs |= _objectives(self._plan, self._name, {**self.records, **attrs}, self._reports)
        if cut_short:
            attrs |= self._said(cut_short)
        elif self.ended_itself:
            attrs |= self._said(f"the recipe's loop ended after epoch {self.n_epochs} of {self.n_asked}")
        return TrialState.COMPLETE, self._reports[selected], attrs

    def _pruned_result(self, after: int, ended_by: Exception | None) -> tuple[float | None, dict[str, Any]]:
        """Return the value that the trial had when it was stopped, and what the audit says of it."""
        reason = f"pruned: by {self._plan.specs[self._name].pruner.name} after epoch {after}"
        value = self._best({n: value for n, value in self._reports.items() if n <= after})
        if not self.is_audited:
            return value, {"reason": reason}
        why = str(ended_by) if ended_by is not None else self.cut_short
        whole = None if why else self._best(self._reports)
        reason += "; trained on for the audit" + (f", which ended: {why}" if why else "")
        return value, {"reason": reason, AUDIT_KEY: {"pruned_after_epoch": after, "value": whole}}

    def _best(self, reports: Mapping[int, float]) -> float:
        """Return the best of some reports."""
        return max(reports.values(), key=self._plan.objective.score)


def _configure(
    plan: Plan, name: str, trial: FrozenTrial, context: WorkerContext
) -> tuple[Config, Mapping[str, float]]:
    """Complete the trial's parameters and write down what it is going to train, and where.

    Returns:
        The configuration, and what it costs, as far as that can be told before it trains.

    Raises:
        TrialFailedError: a constraint of the study is about a cost that cannot be told.
    """
    params: dict[str, ParamValue] = dict(trial.params)
    study = plan.specs.get(name)
    if study is not None and trial.user_attrs["point"].startswith("#") and not params:
        params = _draw(plan, study, trial)
    config = config_of_trial(plan, name, trial, params)
    attrs = {
        "config": config,
        "inactive": sorted(plan.schema.inactive(config)),
        "device": context.device,
        "processor": processor(context.device),
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
        "versions": versions(),
    }
    if context.data.split_seed is not None:
        attrs["split_seed"] = context.data.split_seed
    told, untold = _costs(plan, config, context)
    plan.storage.write(id_of(trial), attrs={**attrs, COSTS_KEY: told})
    for cost, cause in untold.items():
        if study is not None and cost in study.costs:
            raise TrialFailedError(cause, context.recipe) from cause
    return config, told


def _costs(
    plan: Plan, config: Config, context: WorkerContext
) -> tuple[dict[str, float], dict[str, BaseException]]:
    """Return what a configuration costs before it trains, and why some of that cannot be told."""
    tell = partial(costs_of_config, context.recipe, context.data.info, config)
    with suppress(Exception, SystemExit):  # whatever the user's code raises
        return tell(plan.schema.costs), {}  # of one network for all
    told, untold = dict[str, float](), dict[str, BaseException]()
    for cost in plan.schema.costs:
        try:
            told |= tell([cost])
        except (Exception, SystemExit) as error:
            untold[cost] = error
    return told, untold


def _draw(plan: Plan, study: StudySpec, trial: FrozenTrial) -> dict[str, ParamValue]:
    """Draw the trial's point and write it down, unlike any that the study has.

    Two workers may draw the same at once: who writes last sees the other's, and draws again.
    """
    known = context_of(plan, study.name, inherited_by(plan, study.name))
    optunas, index, seed = plan.storage.study(study.name), trial.user_attrs["index"], plan.options.seed
    may_repeat, imported = study.listed(known) is None, known_trials(plan, study.name)

    def tried() -> set[str]:
        others = [each for each in optunas.get_trials(deepcopy=False) if id_of(each) != id_of(trial)]
        points = [each.params for each in others if each.params.keys() == study.search.keys()]
        return {study.key(known, point) for point in points}

    before = set[str]() if may_repeat else tried()
    while True:
        discarded = plan.discarded(study.name)
        point = partial(draw, optunas, trial, study, known, index, seed, before, imported, discarded)
        params = _asked(plan, id_of(trial), point)
        plan.storage.write(id_of(trial), params=params, distributions=distributions(study))
        if may_repeat or study.key(known, params) not in (before := tried()):
            return params


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
        raise TrialFailedError(error) from error


def _reuse_result(
    plan: Plan,
    name: str,
    trial: FrozenTrial,
    config: Config,
    pruning: _Pruning,
    measured: _Measured,
) -> TrialState | None:
    """Give a trial the result of an earlier one, if that trained the same: nothing is trained twice.

    Grids often hold the value that was inherited, as a control (2 of the original's 32 points).

    Returns:
        How the trial ended; None: it has to be trained.
    """
    found = _trained_before(plan, name, trial, config)
    if found is None:
        return None
    source, before = found
    # with where that was, and what is to be said of it
    attrs = {
        key: value
        for key, value in before.user_attrs.items()
        if key in ("device", "processor", "versions", "notes", AUDIT_KEY) or key.startswith("epoch:")
    }
    plan.storage.write(id_of(trial), attrs=attrs, reports=before.intermediate_values)
    pruning.should_prune(len(before.intermediate_values))
    reason = f"{Reason.REUSED}: {source.name} is the same configuration at the same seeds"
    state = before.state
    if state == TrialState.PRUNED:
        was = before.user_attrs["reason"]
        is_found = reason_of(before) in (Reason.DIVERGED, Reason.INFEASIBLE)
        reason = f"{was} (in {source.name})" if is_found else f"{reason}; {was}"
    elif broken := measured.broken(before.user_attrs):
        state, reason = TrialState.PRUNED, f"{broken} (in {source.name})"
    of_end = {"reason": reason}
    if state == TrialState.COMPLETE:
        of_end |= _objectives(plan, name, before.user_attrs, before.intermediate_values)
    plan.storage.finish(id_of(trial), state, before.value, of_end)
    return state


def _objectives(
    plan: Plan, name: str, attrs: Mapping[str, Any], reports: Mapping[int, float]
) -> dict[str, Any]:
    """Return the attribute of the values of two objectives; nothing where a study has one alone."""
    study = plan.specs.get(name)
    if study is None or study.objectives is None:
        return {}
    epoch = plan.objective.best_of(reports)
    return {OBJECTIVES_KEY: objectives_at(attrs, epoch, study.objectives)}


def _trained_before(
    plan: Plan, name: str, trial: FrozenTrial, config: Config
) -> tuple[TrialRef, FrozenTrial] | None:
    """Return the earlier trial that trained the same and has a result; None where none did.

    It is the inherited one or, of the study that this one extends, that of the same point.
    """
    record = plan.record(name) if name in plan.specs else None
    if record is None:
        return None
    inherited, effective = record.inherited, plan.schema.effective
    source = inherited.source if inherited else None
    if inherited and source and effective(config) == effective(control_config(plan, inherited)):
        of_same_seeds = replicate_of(plan, source, slot_of(trial).replicate)
        if of_same_seeds is not None:
            return TrialRef(study=source.study, trial=of_same_seeds.number), of_same_seeds
    if record.extends is None:
        return None
    outline = Queue(plan.storage, record.extends).slots().accepted(slot_of(trial))
    if outline is None or outline.number in plan.record(record.extends).discarded:
        return None
    before = plan.storage.trial(id_of(outline))
    is_same = (
        before.user_attrs["config"] == config and before.user_attrs["seeds"] == trial.user_attrs["seeds"]
    )
    return (TrialRef(study=record.extends, trial=before.number), before) if is_same else None


def _take_over(
    plan: Plan,
    name: str,
    trial: FrozenTrial,
    costs: Mapping[str, float],
    known: Known,
    pruning: _Pruning,
    measured: _Measured,
) -> TrialState:
    """Give a trial the results that other plans have for all its seeds."""
    first = known.trials[0]
    by_seed = [known.seeds[seed] for seed in trial.user_attrs["seeds"]]
    epochs = [list(records) for records in zip(*by_seed, strict=True)]
    reports = reports_of(epochs, plan.objective)
    attrs = {key: first.user_attrs[key] for key in ("device", "processor", "versions")}
    notes = [note for each in known.trials for note in each.user_attrs.get("notes", [])]
    attrs |= {_key(number): records for number, records in enumerate(epochs, start=1)}
    attrs |= {ORIGIN_KEY: known.origins, **({"notes": list(dict.fromkeys(notes))} if notes else {})}
    plan.storage.write(id_of(trial), attrs=attrs, reports=reports)
    pruning.should_prune(len(reports))
    state, value, reason = (
        first.state,
        None,
        f"{ELSEWHERE}{known.text}, the same configuration at the same seeds",
    )
    if state == TrialState.COMPLETE:
        best = plan.objective.best_of(reports)
        value = None if best is None else reports[best]
        if broken := measured.broken(attrs):
            state, reason = TrialState.PRUNED, f"{broken} ({reason})"
    else:
        reason = f"{first.user_attrs['reason']} ({reason})"
    of_end = {"reason": reason}
    if state == TrialState.COMPLETE:
        of_end |= _objectives(plan, name, {**attrs, COSTS_KEY: costs}, reports)
    plan.storage.finish(id_of(trial), state, value, of_end)
    return state


def _checkpoints(
    plan: Plan,
    name: str,
    trial: FrozenTrial,
    config: Config,
    context: WorkerContext,
    seeds: Sequence[int],
) -> Checkpoints:
    attrs, identity = trial.user_attrs, identity_of(plan, config, context, seeds)
    folder = folder_of(name, attrs["point"], attrs["replicate"], {**identity, **plan.mark})
    return Checkpoints(context.checkpoints, folder, identity)


def identity_of(plan: Plan, config: Config, context: WorkerContext, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what a checkpoint has to have been saved with."""
    return {
        "recipe": {"name": plan.recipe.name, "sources": plan.recipe.sources},
        "config": dict(config),
        "seeds": list(seeds),
        "fingerprint": context.data.fingerprint,  # of the trial's own split where it has one
        "device": plan.identity.device,
        "precision": plan.identity.precision,
        "threads": plan.identity.threads,
    }


def _restored(
    state: Mapping[str, Any],
    config: Config,
    context: WorkerContext,
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
    check_state(saved.training, saved.epochs, context.recipe, config, context.data, seeds)
    callback.restore(saved.callback, saved.training)
    return saved


def _note_of(origins: Sequence[Mapping[str, Any]]) -> str:
    """Return what is said of a trial whose first epochs other plans have trained."""
    last_there = max(each["epochs"] for each in origins)
    plural = "epoch 1" if last_there == 1 else f"epochs 1 to {last_there}"
    return f"{plural} not trained here, but in {origins_text(origins)}"


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
            raise TrialFailedError(error, context.recipe) from error
    # not while the error is handled: it would go along, and its frames hold what has to be freed
    raise DeviceFull(f"no memory on {context.device} for a trial beside the others")
