"""`StudySpec`: one study file, read by tomllib, validated by pydantic, frozen.

    inherits = "batch-size"                           # the study whose winner this one starts from;
                                                      # "plan:OUT/STUDY": another plan's
    constraints = ["batch_size <= 64"]
    trials = 30                                       # exactly where the study is no grid

    [search]
    l2 = [1e-2, 1e-3]                                 # a list: these values
    learning_rate = {low = 1e-5, high = 1e-2, log = true}
    batch_size = {low = 20, high = 80, step = 20}     # a range with a step can be enumerated

`[base]` (over the original's defaults), `[fixed]`, `[sampler]`, `[pruner]` and `[published]` are explained
in the shipped files. Which samplers and pruners there are, `hpo.planning` knows and checks.
"""

from __future__ import annotations

import datetime
import heapq
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from hpo._files import read_text
from hpo._text import read_duration
from hpo.errors import InputError, StudyFileError, did_you_mean
from hpo.space.axes import Choices, Range, read_axis, read_each, read_params
from hpo.space.choice import Choice
from hpo.space.constraints import Constraint
from hpo.space.parameters import ParamValue, ParamValues, canonical_json, explain_one
from hpo.space.schema import Schema

T = TypeVar("T")

MAX_GRID_POINTS = 100_000
MAX_LISTED_POINTS = 10_000
"""Of a sampled space with more, it is not listed which points are left."""
FINAL_NAME, CONFIRM_NAME = "final", "confirm"
RESERVED_NAMES = {FINAL_NAME: "the final stage", CONFIRM_NAME: "the confirmation"}
"""What studies may not be called."""
PLAN_FILE, CLAIMS_FILE = "plan.toml", "claims.toml"
"""In a folder of study files, but no studies: options of the plan, as `hpo run` would take them, and claims
(`hpo.space.claim_file`)."""
PLAN_PREFIX = "plan:"
"""What `inherits` begins with where it names another plan."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MISTAKE = "mistake"
"""The type of what `_collected` has pydantic collect."""


def _collected(check: Callable[..., T]) -> Callable[..., T]:
    """Have pydantic collect what a check of one key finds wrong; an InputError would end at the first key."""

    @wraps(check)
    def collecting(*values: Any) -> T:
        try:
            return check(*values)
        except InputError as error:
            raise PydanticCustomError(_MISTAKE, "{text}", {"text": str(error)}) from None

    return collecting


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Component(_Model):
    """A sampler or a pruner: its name and its options, in a file one flat table."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_table(cls, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        options = dict(table)
        name = {"name": options.pop("name")} if "name" in table else {}
        return {**name, "options": options}

    @model_serializer
    def _to_table(self) -> dict[str, Any]:
        return {"name": self.name, **{key: self.options[key] for key in sorted(self.options)}}


def _seconds(value: object) -> object:
    seconds = read_duration(value) if isinstance(value, str) else value
    if seconds is None:
        raise ValueError("must be a duration, as '90s', '20m' or '2h'")
    return seconds


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_seconds)]
"""Seconds; in a file also a text with a unit, as "20m"."""


class Stop(_Model):
    """When a sampled study is done before all its points are tried."""

    patience: Annotated[int, Field(ge=1)]
    """After so many points in a row that brought no gain."""
    delta: Annotated[float, Field(ge=0)] | None = None
    """Less than this is none; None: the plan's delta."""


class Start(_Model):
    """The winner of another plan that a study starts from. It is looked up once, when the plan is created."""

    origin: str
    """As `inherits` names it: plan:OUT/STUDY."""
    source: str = ""
    """The trial that trained it there, as STUDY/NUMBER; empty where no single one has."""
    params: dict[str, Any] = {}
    """The complete configuration; empty before it was looked up."""
    metric: str = ""
    value: float | None = None
    """Of that metric, there."""


Fraction = Annotated[float, Field(ge=0, le=1)]


class PublishedResult(_Model):
    """One row that the original printed; metrics as fractions (0.705), None where it printed none."""

    params: dict[str, Any] = {}
    accuracy: Fraction | None = None
    loss: Annotated[float, Field(ge=0)] | None = None
    macro_f1: Fraction | None = None
    epoch: Literal["best", "last"] = "best"
    """Each metric's own best epoch, or the last one."""
    on: Literal["validation", "test"] = "validation"
    """The images that it was measured on."""
    note: str = ""

    @field_validator("params", mode="before")
    @classmethod
    @_collected
    def _check_params(cls, table: Any, info: ValidationInfo) -> Any:
        return read_params(_schema_of(info), "published.results.params", table)


class Published(_Model):
    """What the original printed for a study, and the parameters that it carried on."""

    choice: dict[str, Any] = {}
    results: Annotated[tuple[PublishedResult, ...], Field(strict=False)] = ()

    @field_validator("choice", mode="before")
    @classmethod
    @_collected
    def _check_choice(cls, table: Any, info: ValidationInfo) -> Any:
        return read_params(_schema_of(info), "published.choice", table)


class StudySpec(_Model):
    """One section of the original: what is searched, from where, and how. Equal specs have equal JSON."""

    name: str
    title: str = ""
    section: str = ""
    inherits: str | None = None
    """The study of the same plan whose winner it starts from."""
    start: Start | None = None
    """What it starts from where that is another plan's; of files `inherits` has it."""
    base: dict[str, Any] = {}
    """Over the original's defaults; only where nothing is inherited."""
    fixed: dict[str, Any] = {}
    """Over what is inherited; carried on with the winner."""
    search: dict[str, Annotated[Choices | Range, PlainSerializer(lambda axis: axis.plain())]] = {}
    """Axes in the file's order; none: the study has one point."""
    constraints: tuple[Annotated[Constraint, PlainSerializer(str)], ...] = ()
    sampler: Component
    pruner: Component = Component(name="none")
    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many points to sample; None for a grid."""
    trial_timeout: Seconds | None = None
    """A trial that has trained for so long ends after the epoch, with what it has reached."""
    stop: Stop | None = None
    objectives: Annotated[tuple[str, str], Field(strict=False)] | None = None
    """The plan's objective, and what is looked at beside it: a metric, or a cost."""
    choose: str | None = None
    """Which point is carried on, as `Choice` has it; None: the best by the plan's objective."""
    published: Published | None = None

    _schema: Schema = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Keep the schema that the study was checked against."""
        self._schema = context["schema"]

    @property
    def parameters(self) -> Schema:
        """The parameters of the recipe that it was written for."""
        return self._schema

    def bound_to(self, schema: Schema) -> StudySpec:
        """Return the same study with another form of the same schema."""
        bound = self.model_copy()
        bound._schema = schema
        return bound

    def with_fixed(self, params: ParamValues) -> StudySpec:
        """Return the same study with parameters fixed, whatever its file says of them.

        Raises:
            InputError: it searches one of them, or its constraints leave no point then.
        """
        for name in params:
            if name in self.search:
                raise InputError(f"study {self.name!r} searches {name}; leave one of them out")
        document = self.model_dump()
        document["base"] = {name: value for name, value in self.base.items() if name not in params}
        document["fixed"] = {**self.fixed, **params}
        try:
            return StudySpec.from_json(json.dumps(document), self._schema)
        except InputError as error:
            raise InputError(f"study {self.name!r}: {error}") from None

    @classmethod
    def from_json(cls, text: str, schema: Schema) -> StudySpec:
        """Read what `to_json` wrote.

        Args:
            text: as stored.
            schema: of the plan's recipe.

        Raises:
            InputError: the text is no study.
        """
        try:
            return cls.model_validate(json.loads(text), context={"schema": schema})
        except ValidationError as error:
            raise InputError(_explain(error)) from None
        except ValueError as error:
            raise InputError(f"a stored study is not readable: {error}") from None

    def to_json(self) -> str:
        """Return canonical JSON: equal exactly when the studies are, the order of their axes included."""
        table = self.model_dump()
        # not in what was stored before there were such keys
        unset = [
            key for key in ("start", "trial_timeout", "stop", "objectives", "choose") if table[key] is None
        ]
        for key in unset:
            del table[key]
        return json.dumps(table, separators=(",", ":"), allow_nan=False)

    def __eq__(self, other: object) -> bool:
        # dict equality would take 1 for true and forget the order of the axes
        return isinstance(other, StudySpec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def has_control(self) -> bool:
        """Whether there is an inherited configuration that its winner is compared with."""
        return self.inherits is not None or self.start is not None

    @property
    def is_grid(self) -> bool:
        """Whether the points are enumerated rather than sampled."""
        return self.sampler.name == "grid"

    def context(self, inherited: ParamValues | None = None) -> dict[str, ParamValue]:
        """Return the configuration that a point is laid over: defaults, base or inherited, then fixed."""
        start = self.base if self.start is None else self.start.params
        return {**self.parameters.defaults, **start, **(inherited or {}), **self.fixed}

    def starting_from(self, start: Start) -> StudySpec:
        """Return the same study with what it starts from looked up.

        Raises:
            InputError: its constraints leave no point then.
        """
        document = {**self.model_dump(), "start": start.model_dump()}
        return StudySpec.from_json(json.dumps(document), self._schema)

    def feasible(self, params: ParamValues) -> bool:
        """Return whether a complete configuration satisfies every constraint that can be told."""
        return self.parameters.first_broken(self.all_constraints, params) is None

    @property
    def all_constraints(self) -> tuple[Constraint, ...]:
        """Those of the recipe, and its own."""
        return (*self.parameters.parsed_constraints, *self.constraints)

    @property
    def costs(self) -> list[str]:
        """The costs that its constraints and objectives name."""
        names = dict.fromkeys(name for each in self.all_constraints for name in sorted(each.names))
        costs = [name for name in names if name not in self.parameters.parameters]
        of_objectives = [name for name in self.objectives or () if name in self.parameters.all_costs]
        return list(dict.fromkeys([*costs, *of_objectives]))

    @property
    def choice(self) -> Choice | None:
        """The rule that chooses which point is carried on; None: it is the best by the plan's objective."""
        return None if self.choose is None else Choice.parse(self.choose, self.objectives or ())

    def grid(self, known: ParamValues, *, with_costs: bool = True) -> list[dict[str, ParamValue]]:
        """Return the points of a grid that satisfy the constraints: what is searched, last axis fastest.

        Of points that differ only in what means nothing there, the first.

        Args:
            known: values of the parameters that are not searched, as from `context`. A constraint on a
                parameter that is neither known nor fixed nor searched is not applied.
            with_costs: whether constraints on costs are applied, as far as the schema knows these.
        """
        return list(self._distinct(known, self.search, with_costs=with_costs))

    def key(self, known: ParamValues, point: ParamValues) -> str:
        """Return a text that is equal exactly for points that train the same."""
        return canonical_json(self.parameters.effective({**known, **self.fixed, **point}))

    def listed(self, known: ParamValues) -> list[dict[str, ParamValue]] | None:
        """Return the points of a space that has few; None where it has many, or an axis of real numbers.

        Args:
            known: as of `grid`.
        """
        axes = {name: axis.finite for name, axis in self.search.items()}
        finite = {name: axis for name, axis in axes.items() if axis is not None}
        if (
            len(finite) < len(axes)
            or math.prod(axis.size or 0 for axis in finite.values()) > MAX_LISTED_POINTS
        ):
            return None
        return list(self._distinct(known, finite))

    def idle_values(self, known: ParamValues) -> dict[str, list[ParamValue]]:
        """Return the searched values that change nothing: beside them their parameter means nothing."""
        idle: dict[tuple[str, ParamValue], bool] = {}
        # what points cost takes torch to find out, and makes no value idle
        for point in self._points(known, self.search, with_costs=False):
            names = self.parameters.inactive({**known, **self.fixed, **point})
            for name, value in point.items():
                idle[name, value] = idle.get((name, value), True) and name in names
        found: dict[str, list[ParamValue]] = {}
        for (name, value), is_idle in idle.items():
            if is_idle:
                found.setdefault(name, []).append(value)
        return found

    def _distinct(
        self, known: ParamValues, axes: Mapping[str, Choices | Range], *, with_costs: bool = True
    ) -> Iterable[dict[str, ParamValue]]:
        points: dict[str, dict[str, ParamValue]] = {}
        for point in self._points(known, axes, with_costs=with_costs):
            points.setdefault(self.key(known, point), point)
        return points.values()

    def _points(
        self,
        known: ParamValues,
        axes: Mapping[str, Choices | Range],
        *,
        with_costs: bool = True,
    ) -> Iterator[dict[str, ParamValue]]:
        context, schema = {**known, **self.fixed}, self.parameters
        constraints = self.all_constraints if with_costs else self._constraints_on(context)
        for values in itertools.product(*(axis.values() for axis in axes.values())):
            point = dict(zip(axes, values, strict=True))
            if schema.first_broken(constraints, {**context, **point}) is None:
                yield point

    def _constraints_on(self, context: ParamValues) -> list[Constraint]:
        names = context.keys() | self.search.keys()
        return [constraint for constraint in self.all_constraints if constraint.names <= names]

    # Validation. What fails raises InputError, which pydantic lets through.

    @model_validator(mode="before")
    @classmethod
    def _choose_sampler(cls, table: Any) -> Any:
        search = table.get("search", {}) if isinstance(table, dict) else None
        if not isinstance(search, dict) or "sampler" in table:
            return table
        grid = all(not isinstance(axis, dict) or "step" in axis for axis in search.values())
        return {**table, "sampler": {"name": "grid" if grid else "tpe"}}

    @model_validator(mode="before")
    @classmethod
    def _read_start(cls, table: Any) -> Any:
        inherits = table.get("inherits") if isinstance(table, dict) else None
        if not isinstance(inherits, str) or not inherits.startswith(PLAN_PREFIX):
            return table
        place, _, study = inherits.removeprefix(PLAN_PREFIX).rpartition("/")
        if not place or not study:
            raise InputError(
                f"inherits = {inherits!r} does not name another plan's study; write {PLAN_PREFIX}OUT/STUDY, "
                f"as {PLAN_PREFIX}hpo-out/learning-rate"
            )
        return {**table, "inherits": None, "start": {"origin": inherits}}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a study; use letters, digits, '_', '.' and '-', at most 64, "
                "the first a letter or digit"
            )
        return name

    @field_validator("base", "fixed", mode="before")
    @classmethod
    @_collected
    def _check_params(cls, table: Any, info: ValidationInfo) -> Any:
        return read_params(_schema_of(info), str(info.field_name), table)

    @field_validator("search", mode="before")
    @classmethod
    @_collected
    def _check_search(cls, table: Any, info: ValidationInfo) -> Any:
        if not isinstance(table, dict):
            return table
        return read_each(lambda name: read_axis(_schema_of(info), name, table[name]), table)

    @field_validator("constraints", mode="before")
    @classmethod
    @_collected
    def _check_constraints(cls, texts: Any, info: ValidationInfo) -> Any:
        if not isinstance(texts, list | tuple):
            raise InputError(f"constraints = {texts!r}: must be a list, as ['batch_size <= 64']")
        schema = _schema_of(info)
        parsed = read_each(lambda at: schema.parse_constraint(texts[at]), range(len(texts)))
        return tuple(parsed.values())

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.has_control and self.base:
            raise InputError("base and inherits exclude each other; what shall differ belongs in [fixed]")
        for first, second in itertools.combinations(("base", "fixed", "search"), 2):
            for name in getattr(self, first):
                if name in getattr(self, second):
                    raise InputError(f"{name} is in both [{first}] and [{second}]; keep one")
        if self.choose is not None and self.objectives is None:
            raise InputError(
                f"choose = {self.choose!r}: goes with objectives, as ['macro_f1', 'n_parameters']"
            )
        if self.objectives and self.objectives[0] == self.objectives[1]:
            raise InputError(f"objectives = {list(self.objectives)}: must be two different ones")
        _ = self.choice  # raises where it is no rule
        self._check_trials()
        self._check_a_point_is_left()
        return self

    def _check_trials(self) -> None:
        if not self.is_grid:
            if not self.search:
                raise InputError(f"search is missing, which sampler {self.sampler.name!r} draws points of")
            if self.trials is None:
                raise InputError(f"trials is missing; sampler {self.sampler.name!r} needs it, as trials = 30")
            return
        for name, axis in self.search.items():
            if axis.size is None:
                raise InputError(
                    f"search.{name} has no step, so a grid cannot enumerate it; add one or a list, or choose "
                    "another [sampler]"
                )
        if self.stop is not None:
            raise InputError("stop: a grid tries each of its points; remove it, or choose a [sampler]")
        if self.trials is not None and not self.search:
            raise InputError(f"trials = {self.trials}: there is no [search], and so a single point")
        if self.trials is not None:
            raise InputError(f"trials = {self.trials}: a grid tries each of its points; remove the key")
        size = self._size()
        if size is not None and size > MAX_GRID_POINTS:
            raise InputError(
                f"search: the grid has {size:,} points, at most {MAX_GRID_POINTS:,} are allowed; shorten its "
                "axes, or choose a [sampler] and trials"
            )

    def _size(self) -> int | None:
        sizes = [axis.size for axis in self.search.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def _check_a_point_is_left(self) -> None:
        is_open = self.inherits or (self.start is not None and not self.start.params)
        known = dict(self.fixed) if is_open else self.context()
        bounds = {name: (value, value) for name, value in known.items() if isinstance(value, int | float)}
        bounds |= {name: axis.bounds for name, axis in self.search.items() if name in self.parameters.numbers}
        size = self._size()
        wrong = [constraint for constraint in self._constraints_on(known) if not constraint.possible(bounds)]
        if (
            not wrong
            and size is not None
            and size <= MAX_GRID_POINTS
            and next(self._points(known, self.search), None) is None
        ):
            wrong = list(self.constraints or self.parameters.parsed_constraints)
        if wrong:
            texts = " and ".join(str(constraint) for constraint in wrong)
            raise InputError(f"constraints leave no point: nothing in the search space satisfies {texts}")


def _schema_of(info: ValidationInfo) -> Schema:
    schema: Schema = (info.context or {})["schema"]
    return schema


def load_study(path: Path, schema: Schema) -> StudySpec:
    """Read one study file; the study is named by it.

    Raises:
        StudyFileError: the file cannot be used; the text says where, and what would be right.
    """
    document = read_document(path)
    document.pop("claims", None)  # `claim_file` reads them; they are no part of what is trained
    return study_of(document, path.stem, path, schema)


def study_of(document: Mapping[str, Any], name: str, where: Path | str, schema: Schema) -> StudySpec:
    """Return the study that a document of a file's form defines.

    Args:
        document: what the file holds.
        name: of the study.
        where: named in errors.
        schema: of the recipe's parameters.

    Raises:
        StudyFileError: the document cannot be used; the text says where, and what would be right.
    """
    try:
        if name in RESERVED_NAMES:  # not where plans are read: an older one may have a study `confirm`
            raise InputError(f"{name!r} is the name of {RESERVED_NAMES[name]}; give the study another")
        if "name" in document:
            raise InputError("name is not a key of a study file; a study is named by its file")
        if not document:  # nobody saves an empty file to have the defaults trained
            raise InputError("says nothing of a study; give at least a title, [fixed] or [search]")
        if "start" in document:
            raise InputError(f'start is not a key of a study file; write inherits = "{PLAN_PREFIX}OUT/STUDY"')
        if document.get("search") == {}:
            raise InputError(
                "search is empty; give at least one parameter, as l2 = [0.01, 0.001], or leave [search] out "
                "to train a single point"
            )
        return StudySpec.model_validate({**document, "name": name}, context={"schema": schema})
    except ValidationError as error:
        raise StudyFileError(where, _explain(error)) from None
    except InputError as error:
        raise StudyFileError(where, str(error)) from None


def read_document(path: Path) -> dict[str, Any]:
    """Read a TOML file that holds nothing which no file of a plan can use.

    Raises:
        StudyFileError: it cannot be read, is not TOML, or holds dates or numbers beyond all bounds.
    """
    try:
        document = tomllib.loads(read_text(path))
        _check_leaves(document)
    except OSError as error:
        raise StudyFileError(path, error.strerror or str(error)) from None
    except RecursionError:
        raise StudyFileError(path, "is nested too deeply") from None
    except InputError as error:
        raise StudyFileError(path, str(error)) from None
    except ValueError as error:  # of TOML's syntax, of UTF-8, or a number of thousands of digits
        raise StudyFileError(path, f"is not valid TOML: {error}") from None
    return document


def load_studies(folder: Path, schema: Schema) -> dict[str, StudySpec]:
    """Read all study files of a folder, parents before children, else by section and name.

    Raises:
        StudyFileError: a file cannot be used, inherits from a study that is not there, or from itself.
    """
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise StudyFileError(folder, "no such folder") from None
    except OSError as error:
        raise StudyFileError(folder, error.strerror or str(error)) from None
    files = {}
    for file in found:
        is_no_study = file.name.startswith(".") or file.name in (PLAN_FILE, CLAIMS_FILE)
        if is_no_study or file.suffix.lower() != ".toml":
            continue
        if file.suffix != ".toml":
            raise StudyFileError(file, "would be left out: names end in .toml, in small letters; rename it")
        files[file.stem] = file
    if not files:
        raise StudyFileError(folder, "holds no study files (*.toml)")
    specs = read_each(lambda name: load_study(files[name], schema), files)
    for name, spec in specs.items():
        if spec.inherits is not None and spec.inherits not in specs:
            hint = did_you_mean(spec.inherits, [other for other in specs if other != name])
            raise StudyFileError(files[name], f"inherits = {spec.inherits!r} is not in this folder; {hint}")

    ordered: dict[str, StudySpec] = {}
    ready = [(_section_key(spec), name) for name, spec in specs.items() if spec.inherits is None]
    heapq.heapify(ready)
    while ready:
        _, parent = heapq.heappop(ready)
        ordered[parent] = specs[parent]
        for name, spec in specs.items():
            if spec.inherits == parent:
                heapq.heappush(ready, (_section_key(spec), name))
    left = [name for name in specs if name not in ordered]
    if left:
        cycle = _cycle(specs, left[0])
        raise StudyFileError(files[cycle[0]], f"inherits from itself: {' → '.join(cycle)}")
    return ordered


def shipped_studies() -> Path:
    """Return the folder of the original's six studies: in an installed wheel, or beside `hpo/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "shipped_studies"
    return installed if installed.is_dir() else package.parent / "studies"


_TABLES: dict[tuple[str, ...], type[BaseModel]]
_TABLES = {
    (): StudySpec,
    ("stop",): Stop,
    ("published",): Published,
    ("published", "results"): PublishedResult,
}


def _explain(error: ValidationError) -> str:
    """Return what pydantic found wrong, a line each, in the words of study files."""
    problems = error.errors()
    misspelt = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    # that a key is missing may follow from its being misspelt, and nobody has to give a sampler
    others = [
        problem
        for problem in problems
        if problem not in misspelt
        and not (problem["type"] == "missing" and (misspelt or problem["loc"] == ("sampler",)))
    ]
    return "\n".join(map(_explain_one, [*misspelt, *others]))


def _explain_one(problem: ErrorDetails) -> str:
    path = tuple(part for part in problem["loc"] if isinstance(part, str))
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == _MISTAKE:
        return problem["msg"]
    if problem["type"] == "extra_forbidden" and path[:-1] in _TABLES:
        known = [name for name in _TABLES[path[:-1]].model_fields if name not in ("name", "start")]
        return f"{key} is not a key of a study file; {did_you_mean(path[-1], known)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    return explain_one(problem)


def _check_leaves(document: Mapping[str, Any]) -> None:
    """Refuse what TOML can write and no study can use, wherever it stands."""
    stack: list[tuple[str, Any]] = list(document.items())
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{key}.{name}", child) for name, child in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}[{i}]", child) for i, child in enumerate(value)]
        elif isinstance(value, datetime.date | datetime.time):
            raise InputError(f"{key} = {value}: dates and times mean nothing here")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key} = {value}: must be a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{key}: the number needs more than 64 bits")


def _section_key(spec: StudySpec) -> tuple[bool, list[int]]:
    numbers = [int(number) for number in re.findall(r"[0-9]{1,18}", spec.section)]
    return not numbers, numbers


def _cycle(specs: Mapping[str, StudySpec], name: str) -> list[str]:
    """Follow the parents of a study that no root leads to, until one comes again."""
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = specs[name].inherits or ""
    return [*path[path.index(name) :], name]
