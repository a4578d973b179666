"""The data of a plan as this machine has them; needs no torch, so that a command can refuse quickly."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from optuna.trial import FrozenTrial

from hpo.data import TrainingData, load_training, prepare
from hpo.errors import DataError
from hpo.planning.compatibility import check_data
from hpo.planning.manifest import Options
from hpo.planning.plan import CONFIRM, FINAL, Plan


def load_plan_data(plan: Plan, place: str | None = None) -> tuple[Path, TrainingData]:
    """Bring in the plan's data, and check that they are what it was created on.

    Args:
        plan: whose data.
        place: where they are on this machine, if elsewhere than where the plan was created.

    Returns:
        The prepared data, the test set among them unopened; and those to train on.

    Raises:
        ConflictError: the fingerprints differ.
        DataError: the data cannot be read.
    """
    options = plan.options
    try:
        entry, training = prepared(options, place or options.data)
    except DataError as error:
        if place is not None:
            raise
        raise DataError(f"{error}; --data says where the plan's data are on this machine") from None
    check_data(plan, training.fingerprint, training.source)
    return entry, training


def data_of_trial(plan: Plan, name: str, trial: FrozenTrial, entry: Path, data: TrainingData) -> TrainingData:
    """Return the data that a trial is trained on.

    In the confirmation they have a split of the seed's own; in the final stage they may be more.

    Args:
        plan: that the trial belongs to.
        name: of its study.
        trial: that is to be trained.
        entry: as from `load_plan_data`.
        data: likewise.
    """
    if name == FINAL:
        return data_of_final_stage(plan.options, entry, data)
    if not (plan.confirms and name == CONFIRM) or plan.options.same_split:
        return data
    (seed,) = trial.user_attrs["seeds"]
    return _split_by(entry, plan.options.limit_train, plan.options.limit_valid, seed)


@lru_cache(maxsize=2)  # the arms of a seed are trained one after the other
def _split_by(entry: Path, limit_train: int | None, limit_valid: int | None, seed: int) -> TrainingData:
    return load_training(entry, limit_train=limit_train, limit_valid=limit_valid, split_seed=seed)


def data_of_final_stage(options: Options, entry: Path, data: TrainingData) -> TrainingData:
    """Return what the final stage is trained on.

    Args:
        options: of the plan.
        entry: as from `load_plan_data`.
        data: likewise; what the search is trained on.
    """
    with_validation = options.final_data == "train+validation"
    if not with_validation and (options.final_data == "limited" or options.limit_train is None):
        return data
    return load_training(entry, limit_valid=options.limit_valid, with_validation=with_validation)


def prepared(options: Options, source: str) -> tuple[Path, TrainingData]:
    """Return the entry of a source in the cache, and what of it is trained on.

    Raises:
        InputError: the source or a limit cannot be used.
    """
    entry = prepare(source, image_size=options.image_size, fit=options.fit)
    return entry, load_training(entry, limit_train=options.limit_train, limit_valid=options.limit_valid)
