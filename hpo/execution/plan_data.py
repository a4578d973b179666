"""The data of a plan as this machine has them; needs no torch, so that a command can refuse quickly."""

from __future__ import annotations

from pathlib import Path

from hpo.data import TrainingData, load_training, prepare
from hpo.errors import DataError
from hpo.planning.compatibility import check_data
from hpo.planning.manifest import Options
from hpo.planning.plan import Plan


def training_data(options: Options) -> TrainingData:
    """Return the training and validation part that the options name."""
    _, training = prepared(options, options.data)
    return training


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


def prepared(options: Options, source: str) -> tuple[Path, TrainingData]:
    """Return the entry of a source in the cache, and what of it is trained on.

    Raises:
        InputError: the source or a limit cannot be used.
    """
    entry = prepare(source, image_size=options.image_size, fit=options.fit)
    return entry, load_training(entry, limit_train=options.limit_train, limit_valid=options.limit_valid)
