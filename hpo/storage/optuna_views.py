"""Optuna's own classes, seeing trials as hpo does; each overrides what Optuna has no public hook for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Container, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.trials import Trials


class StorageView(_CachedStorage):
    """A database as Optuna's functions see it, with trials in the projection that we read them in."""

    def __init__(self, rdb: RDBStorage, trials: Trials) -> None:
        super().__init__(rdb)
        self._trials = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return what Optuna does."""
        trials = [t for t in self._trials.of(study_id) if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class StorageWithoutFailed(StorageView):
    """What samplers and pruners learn from: failed attempts, which another one stands for, are left out."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return what Optuna does, but for those."""
        trials = super().get_all_trials(study_id, deepcopy=False, states=states)
        found = [trial for trial in trials if trial.state != TrialState.FAIL]
        return copy.deepcopy(found) if deepcopy else found


class StudyOfPoints(optuna.Study):
    """A study as its samplers see it: without the finished trials that are no points of this space.

    Args:
        study: the study.
        space: its axes.
        known: trials elsewhere that they are to learn from as well, as if these had come before.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Mapping[str, BaseDistribution],
        known: Sequence[FrozenTrial] = (),
    ) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._space = space
        self._known = [copy.copy(trial) for trial in known]
        for place, trial in enumerate(self._known, start=-len(self._known)):
            trial.number = place  # TPE gives older trials less weight

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        known = [trial for trial in self._known if states is None or trial.state in states]
        trials = [*known, *super()._get_trials(deepcopy, states, use_cache)]
        return [trial for trial in trials if not trial.state.is_finished() or self._is_sample(trial)]

    def _is_sample(self, trial: FrozenTrial) -> bool:
        return all(trial.distributions.get(name) == axis for name, axis in self._space.items())


class IndexedQmcSampler(optuna.samplers.QMCSampler):
    """A QMC sampler that draws the sample of a number; Optuna counts in the database, where two may read one.

    Args:
        qmc_type: `sobol` or `halton`.
        seed: of the scrambled sequence; the same for all points of a study.
        index: number of the first sample.
        stride: how far ahead each further sample is.
    """

    def __init__(self, qmc_type: str, *, seed: int, index: int, stride: int) -> None:
        super().__init__(qmc_type=qmc_type, scramble=True, seed=seed)
        self._sample_ids = itertools.count(index, stride)

    def _find_sample_id(self, study: optuna.Study, search_space: Mapping[str, BaseDistribution]) -> int:
        return next(self._sample_ids)
