"""What is stored of the studies of a plan besides their trials, as records that are checked when read.

Anybody can change a database by hand, and another version of hpo may have written it: what cannot be read is
refused in words that name database, study and key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from hpo._files import read_text
from hpo._text import short_duration
from hpo.data.dataset import DataInfo
from hpo.errors import InputError, StudyFileError, did_you_mean
from hpo.planning.confirmation import Arms, Confirmation
from hpo.planning.decisions import Closed, Decision, Inherited
from hpo.planning.defaults import Adopt, Defaults, FinalData, Fit, Inherit, Keep, Kernels, Precision
from hpo.planning.metrics import Metric
from hpo.planning.price import Price
from hpo.planning.race import FIRST_SEEDS
from hpo.planning.studies import check_study, set_text
from hpo.space.parameters import Direction, ParamValue, demand, explain
from hpo.space.schema import Schema
from hpo.space.study_file import FINAL_NAME, PLAN_FILE, Seconds, StudySpec
from hpo.storage.storage import Storage

M = TypeVar("M", bound=BaseModel)

MAX_SEEDS = 1000
MAJOR_VERSIONS = ("hpo", "optuna", "torch")


OF_THE_CONFIRMATION = ("keep", "same_split")
"""Options that mean nothing without `confirm`."""


def option_text(key: str, value: object) -> str:
    """Return an option as it is written for a command."""
    if key == "pruning":
        return "--no-pruning"
    if isinstance(value, Mapping):
        return option_value(key, value)
    name = f"--{key.replace('_', '-')}"
    return name if isinstance(value, bool) else f"{name} {option_value(key, value)}"


def option_value(key: str, value: object) -> str:
    """Return the value of an option as it is written for a command."""
    if isinstance(value, Mapping):
        return set_text(value)
    return short_duration(value) if key == "budget" and isinstance(value, float) else str(value)


def _seeds_or_race(value: object) -> object:
    """Say in one sentence what a union of types would complain about in two."""
    if value != "race":
        if type(value) is not int:
            raise PydanticCustomError("seeds", "must be a whole number, or 'race'")
        if not 1 <= value <= MAX_SEEDS:
            raise PydanticCustomError("seeds", f"must be at least 1 and at most {MAX_SEEDS}, or 'race'")
    return value


class Options(BaseModel):
    """The options that change results: stored with the plan, not to be contradicted by later commands."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    recipe: str = Defaults.recipe
    data: str = Defaults.data
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Defaults.image_size
    fit: Fit = Defaults.fit
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Defaults.seed
    seeds: Annotated[int | Literal["race"], BeforeValidator(_seeds_or_race)] = Defaults.seeds
    """Of each point; `race`: more of them where a decision is open."""
    max_seeds: Annotated[int, Field(ge=FIRST_SEEDS, le=MAX_SEEDS)] = Defaults.max_seeds
    """The most that a point gets in a race."""
    final_seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = Defaults.final_seeds
    budget: Seconds | None = Defaults.budget
    """Of training, all workers together."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = Defaults.epochs
    set: dict[str, ParamValue] | None = Defaults.set
    """Parameters that are fixed in every study, whatever its file says of them."""
    metric: str | None = Defaults.metric
    """The objective; None: the recipe's first metric."""
    limit_train: Annotated[int, Field(ge=1)] | None = Defaults.limit_train
    limit_valid: Annotated[int, Field(ge=1)] | None = Defaults.limit_valid
    final_data: FinalData = Defaults.final_data
    """What the final stage trains on: what the search did, all of the training part, or the validation part
    as well."""
    precision: Precision = Defaults.precision
    kernels: Kernels = Defaults.kernels
    device: str = Defaults.device
    pruning: bool = Defaults.pruning
    audit: Annotated[float, Field(ge=0, le=1)] = Defaults.audit
    """The share of the pruned points that are trained on, to see what pruning misses."""
    keep_checkpoints: bool = Defaults.keep_checkpoints
    """Whether the last checkpoint of a trial that has ended is kept, for a plan that trains it for longer."""
    inherit: Inherit = Defaults.inherit
    adopt: Adopt = Defaults.adopt
    confirm: bool = Defaults.confirm
    """Whether fresh seeds try each adopted decision again before the test set is opened."""
    keep: Keep = Defaults.keep
    """Which verdict at least keeps a decision."""
    delta: Annotated[float, Field(ge=0, strict=False)] | None = Defaults.delta
    """Differences below it do not matter; None: as `default_delta` has it."""
    same_split: bool = Defaults.same_split
    """Whether the fresh seeds are all tried on the search's validation part."""
    lease_seconds: Annotated[float, Field(ge=4, le=86_400, strict=False)] = Defaults.lease_seconds
    """A worker that is silent for so long has lost its trial. Not a matter of results, but of agreement."""

    @property
    def races(self) -> bool:
        """Whether points get further seeds where a decision is open."""
        return self.seeds == "race"

    @property
    def first_seeds(self) -> int:
        """How many seeds every point gets."""
        return FIRST_SEEDS if self.seeds == "race" else self.seeds

    @property
    def most_seeds(self) -> int:
        """How many seeds a point may get."""
        return self.max_seeds if self.races else self.first_seeds

    @classmethod
    def from_given(cls, given: Mapping[str, Any]) -> Options:
        """Make options of those that the user gave; the rest keep their defaults.

        Raises:
            InputError: a value is out of its range; the text names the option.
        """
        try:
            options = cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise InputError(f"--{option} {first['input']}: {demand(first)}") from None
        for key in OF_THE_CONFIRMATION:
            if key in given and not options.confirm:
                raise InputError(f"{option_text(key, given[key])} goes with --confirm")
        if "delta" in given and not (options.confirm or options.races):
            raise InputError(f"{option_text('delta', given['delta'])} goes with --confirm or --seeds race")
        if options.max_seeds != Defaults.max_seeds and not options.races:
            raise InputError(f"{option_text('max_seeds', options.max_seeds)} goes with --seeds race")
        return options


def read_plan_file(folder: Path) -> dict[str, Any]:
    """Return the options that a folder of study files gives; none where it has no such file.

    Raises:
        StudyFileError: the file cannot be read, or a key or value of it is not an option's.
    """
    file = folder / PLAN_FILE
    try:
        given = tomllib.loads(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise StudyFileError(file, error.strerror or str(error)) from None
    except RecursionError:
        raise StudyFileError(file, "is nested too deeply") from None
    except ValueError as error:
        raise StudyFileError(file, f"is not valid TOML: {error}") from None
    for key in given:
        if key not in Options.model_fields:
            hint = did_you_mean(key, Options.model_fields)
            if key == "name":
                hint = "several may begin from this file, and each has a name of its own, --name TEXT"
            raise StudyFileError(file, f"{key} is not an option of a plan; {hint}")
    try:
        return {key: getattr(Options.model_validate(given), key) for key in given}
    except ValidationError as error:
        raise StudyFileError(file, explain(error)) from None


class Identity(BaseModel):
    """What was resolved when the plan was created, and must be the same wherever a trial of it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Of the data: content, targets, class order, split, limits."""
    input_shape: tuple[int, ...]
    """Of one input as a network sees it: (c, h, w) of images, (features,) of a table."""
    is_images: bool
    class_names: tuple[str, ...]
    """Empty where targets are numbers."""
    n_outputs: int
    class_counts: tuple[int, ...] = ()
    """Of the training part, by class; empty where targets are numbers."""
    n_train: int
    n_valid: int
    data_notes: tuple[str, ...] = ()
    """What the user should know of the data, a sentence each."""
    precision: Literal["fp32", "tf32", "bf16"]
    kernels: Literal["plain", "triton", "winograd"] = "plain"
    """As `hpo.training.fused` has them."""
    device: Literal["cpu", "cuda", "mps"]
    threads: Annotated[int, Field(ge=1)]
    """Threads per worker; sums on a CPU depend on it in the last bit."""

    @property
    def data_info(self) -> DataInfo:
        """What a network is built for."""
        return DataInfo(self.input_shape, self.class_names, self.n_outputs, self.is_images)

    @property
    def examples(self) -> str:
        """What the data are made of, in a word."""
        return "images" if self.is_images else "rows"

    @property
    def device_text(self) -> str:
        """What the plan trains on, in words."""
        is_told = self.device == "cuda" or self.kernels != "plain"
        return f"{self.device} with {self.kernels} kernels" if is_told else self.device

    @property
    def inputs_text(self) -> str:
        """What the inputs are, in words."""
        if not self.is_images:
            return f"rows of {'×'.join(map(str, self.input_shape))} numbers"
        channels, height, width = self.input_shape
        return f"images of {height}×{width}×{channels}"

    @property
    def targets_text(self) -> str:
        """What the targets are, in words."""
        if self.class_names:
            return f"{len(self.class_names)} classes"
        return "one number" if self.n_outputs == 1 else f"{self.n_outputs} numbers"


class RecipeRecord(BaseModel):
    """What is stored of a recipe: all that showing a plan needs, so that nobody imports it for that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As `--recipe` names it."""
    sources: dict[str, str] = {}
    """SHA-256 of a user's own source files, by module; empty for recipes that come with hpo."""
    parameters: Schema
    metrics: Annotated[dict[str, Direction], Field(min_length=1)]
    """In the recipe's order; the first is the objective unless `metric` names another."""

    def objective(self, metric: str | None) -> Metric:
        """Return what a plan tunes for.

        Raises:
            InputError: the recipe has no such metric.
        """
        name = next(iter(self.metrics)) if metric is None else metric
        if name not in self.metrics:
            raise InputError(f"--metric {name}: {did_you_mean(name, self.metrics)}")
        return Metric(name, self.metrics[name])


def _with_all_majors(versions: dict[str, str]) -> dict[str, str]:
    for package in MAJOR_VERSIONS:
        if package not in versions:
            raise ValueError(f"{package} is missing")
    return versions


class Superseded(BaseModel):
    """A decision that was taken back."""

    model_config = ConfigDict(frozen=True)

    decision: Decision
    because: str
    at: str
    """UTC, as ISO 8601 has it."""

    @property
    def text(self) -> str:
        """The decision and why it holds no more, in words."""
        return f"{self.decision.text}; superseded on {self.at[:10]}, as {self.because}"


class StudyRecord(BaseModel):
    """What the database holds of a study besides its trials; checked, as anybody may have changed it."""

    model_config = ConfigDict(frozen=True)

    definition: str = ""
    """As `StudySpec.to_json` wrote it; the final stage has none."""
    inherited: Inherited | None = None
    decision: Decision | None = None
    n_points: int | None = None
    """How many points it has, the control included; None before it begins. Only a recipe itself knows which
    points of a grid are the same."""
    test_opened: int | None = None
    """Of the final stage: the number of the trial that opened the test set last; None before one has."""
    extends: str | None = None
    """The study of the plan whose grid it has with further values, and whose results it takes over."""
    extended: dict[str, list[ParamValue]] = {}
    """Values that were added to axes of a grid, by parameter."""
    closed: Closed | None = None
    """Why it takes no more points; None: it does."""
    discarded: dict[int, str] = {}
    """Why trials do not count, by number."""
    trained_first: tuple[dict[str, ParamValue], ...] = ()
    """Known points (`hpo.planning.known_points`) that are points of the study besides those it samples."""
    superseded: tuple[Superseded, ...] = ()
    """The decisions that were taken back, the oldest first."""
    arms: Arms | None = None
    """What the confirmation trains; None before it begins, and for all other studies."""
    confirmation: Confirmation | None = None
    """What it found."""
    price: Price | None = None
    """What points across studies say, of their study."""


class PlanManifest(BaseModel):
    """What the final stage holds besides: written last, it says that the plan is whole."""

    plan: Annotated[list[str], Field(min_length=1)]
    name: str = ""
    """That somebody gave the plan."""
    id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    """What tells its files from those of others in a store; plans of before 2026-11-28 have none."""
    recipe: RecipeRecord
    options: Options
    identity: Identity
    versions: Annotated[dict[str, str], AfterValidator(_with_all_majors)]


def defined(storage: Storage, name: str, record: StudyRecord, schema: Schema) -> StudySpec:
    """Return the study that a record defines, of a recipe with such parameters.

    Raises:
        InputError: it defines none that can be used here.
    """
    try:
        study = StudySpec.from_json(record.definition, schema)
        check_study(study, Path("definition"), here=False)
        if study.name != name:
            raise InputError(f"definition.name = {study.name!r}: must be {name!r}")
    except InputError as error:
        raise unreadable(storage, name, str(error)) from None
    return study


def checked(
    kind: type[M], storage: Storage, name: str, attrs: Mapping[str, Any], schema: Schema | None = None
) -> M:
    """Return the attributes of a study as a record.

    Args:
        kind: of record.
        storage: where they were read.
        name: of the study.
        attrs: as `Storage.study_attrs` has them.
        schema: of the recipe's parameters, for records that hold configurations.

    Raises:
        InputError: they are no such record, or there is no such study.
    """
    if name not in attrs:
        raise deleted(storage, name)
    try:
        return kind.model_validate(attrs[name], context={"schema": schema})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise unreadable(storage, name, f"{key}: {demand(first)}") from None


def deleted(storage: Storage, name: str) -> InputError:
    """Return an error that says what somebody has taken out of a database, and what can be done."""
    what = "its trials"
    if name == FINAL_NAME:
        what = "the list of the studies and whether the test set has been opened"
    return InputError(
        f"{storage.name}: study {name!r} of its plan is missing: it was deleted, and with it {what}; "
        "put back a copy of the database, or start anew in another one"
    )


def deleted_final_trial(storage: Storage, number: int) -> InputError:
    """Return an error that says that a trial of the final stage was taken out of a database."""
    return InputError(
        f"{storage.name}: trial {FINAL_NAME}/{number} was deleted, and it had opened the test set: what "
        "that answered is gone, and no other trial may open it; put back a copy of the database, or start "
        "anew in another one"
    )


def unreadable(storage: Storage, name: str, problem: str) -> InputError:
    """Return an error that says what cannot be read, and where: hand damage and newer versions look alike."""
    ours = version("hpo-studies")
    return InputError(f"{storage.name}: holds no plan that hpo {ours} can read: study {name!r}, {problem}")
