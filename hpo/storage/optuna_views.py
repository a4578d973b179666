"""Optuna's own classes, seeing trials as hpo does; each overrides what Optuna has no public hook for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
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


def showing(study: optuna.Study, shown: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]]) -> optuna.Study:
    """Return a study whose trials are what a function makes of them, for all who ask it or its storage.

    Hyperband and some samplers make studies of their own from a study's storage.
    """
    storage = cast(BaseStorage, _ShownStorage(study._storage, shown))
    return optuna.Study(study.study_name, storage, study.sampler, study.pruner)


class _ShownStorage:
    """A storage as another, but for the trials that it shows."""

    def __init__(
        self, storage: BaseStorage, shown: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]]
    ) -> None:
        self._storage, self._shown = storage, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return what Optuna does, of those that are shown."""
        trials = self._shown(self._storage.get_all_trials(study_id, deepcopy=False))
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return what Optuna does, of those that are shown."""
        return BaseStorage.get_best_trial(cast(BaseStorage, self), study_id)


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
