"""What is stored of the studies of a plan besides their trials, as records that are checked when read.

Anybody can change a database by hand, and another version of hpo may have written it: what cannot be read is
refused in words that name database, study and key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hpo.errors import InputError
from hpo.planning.decisions import Decision, Inherited
from hpo.planning.defaults import Adopt, Defaults, Inherit, Precision
from hpo.planning.studies import check_study
from hpo.space.parameters import demand
from hpo.space.study_file import StudySpec
from hpo.storage.storage import Storage

M = TypeVar("M", bound=BaseModel)

MAJOR_VERSIONS = ("hpo", "optuna", "torch")


class Options(BaseModel):
    """The options that change results: stored with the plan, not to be contradicted by later commands."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: str = Defaults.data
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Defaults.image_size
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Defaults.seed
    seeds: Annotated[int, Field(ge=1, le=1000)] = Defaults.seeds
    final_seeds: Annotated[int, Field(ge=1, le=1000)] = Defaults.final_seeds
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = Defaults.epochs
    limit_train: Annotated[int, Field(ge=1)] | None = Defaults.limit_train
    limit_valid: Annotated[int, Field(ge=1)] | None = Defaults.limit_valid
    precision: Precision = Defaults.precision
    device: str = Defaults.device
    pruning: bool = Defaults.pruning
    inherit: Inherit = Defaults.inherit
    adopt: Adopt = Defaults.adopt
    lease_seconds: Annotated[float, Field(ge=4, le=86_400, strict=False)] = Defaults.lease_seconds
    """A worker that is silent for so long has lost its trial. Not a matter of results, but of agreement."""

    @classmethod
    def from_given(cls, given: Mapping[str, Any]) -> Options:
        """Make options of those that the user gave; the rest keep their defaults.

        Raises:
            InputError: a value is out of its range; the text names the option.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise InputError(f"--{option} {first['input']}: {demand(first)}") from None


class Identity(BaseModel):
    """What was resolved when the plan was created, and must be the same wherever a trial of it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Of the data: content, labels, class order, split, limits."""
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    n_train: int
    n_valid: int
    precision: Literal["fp32", "tf32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: Annotated[int, Field(ge=1)]
    """Threads per worker; sums on a CPU depend on it in the last bit."""


def _with_all_majors(versions: dict[str, str]) -> dict[str, str]:
    for package in MAJOR_VERSIONS:
        if package not in versions:
            raise ValueError(f"{package} is missing")
    return versions


class StudyRecord(BaseModel):
    """What the database holds of a study besides its trials; checked, as anybody may have changed it."""

    model_config = ConfigDict(frozen=True)

    definition: str = ""
    """As `StudySpec.to_json` wrote it; the final stage has none."""
    inherited: Inherited | None = None
    decision: Decision | None = None


class PlanManifest(BaseModel):
    """What the final stage holds besides: written last, it says that the plan is whole."""

    plan: Annotated[list[str], Field(min_length=1)]
    options: Options
    identity: Identity
    versions: Annotated[dict[str, str], AfterValidator(_with_all_majors)]


@cache
def _parsed(definition: str) -> StudySpec:
    study = StudySpec.from_json(definition)
    check_study(study, Path("definition"))
    return study


def defined(storage: Storage, name: str, record: StudyRecord) -> StudySpec:
    """Return the study that a record defines.

    Raises:
        InputError: it defines none that can be used here.
    """
    try:
        study = _parsed(record.definition)
        if study.name != name:
            raise InputError(f"definition.name = {study.name!r}: must be {name!r}")
    except InputError as error:
        raise unreadable(storage, name, str(error)) from None
    return study


def checked(kind: type[M], storage: Storage, name: str, attrs: Mapping[str, Any]) -> M:
    """Return the attributes of a study as a record.

    Args:
        kind: of record.
        storage: where they were read.
        name: of the study.
        attrs: as `Storage.study_attrs` has them.

    Raises:
        InputError: they are no such record, or there is no such study.
    """
    if name not in attrs:
        raise unreadable(storage, name, "is gone")
    try:
        return kind.model_validate(attrs[name])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise unreadable(storage, name, f"{key}: {demand(first)}") from None


def unreadable(storage: Storage, name: str, problem: str) -> InputError:
    """Return an error that says what cannot be read, and where: hand damage and newer versions look alike."""
    ours = version("hpo-studies")
    return InputError(f"{storage.name}: holds no plan that hpo {ours} can read: study {name!r}, {problem}")
