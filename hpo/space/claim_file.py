"""Claims: sentences about results, each with the contrasts of configurations that would confirm it.

    [[claims]]                          # in claims.toml, beside the study files; or in a study file
    text = "Momentum matters more at large batches"
    study = "momentum"                  # cells are laid over what its points are; in its own file left out

    [[claims.contrasts]]                # a claim is confirmed if all of its contrasts are
    better = {momentum = 0.9}           # this cell, or the mean of a list of cells, scores higher …
    worse = {momentum = 0.0}            # … than this one
    more_at = {batch_size = 80}         # and by more here …
    less_at = {batch_size = 20}         # … than here: an interaction
    across = {l2 = [0.0, 1e-5]}         # all of it at each of these values, and the mean of that
    delta = 0.01                        # a smaller difference does not matter

Instead of `better` and `worse` a contrast may have `inside = {l2 = [0.0, 1e-4, 1e-2]}`: one of the values
within scores higher than both ends. Or `state = "dying ReLU"` with `at` and `not_at`: more seeds end so at
these cells than at those. `[about]` says what the claims are about: see `About`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hpo.errors import InputError, StudyFileError, did_you_mean
from hpo.space.axes import read_param, read_params
from hpo.space.parameters import ParamValue, canonical_json, explain
from hpo.space.schema import Schema
from hpo.space.study_file import CLAIMS_FILE, StudySpec, read_document

State = Literal["dying ReLU", "constant prediction", "no better than guessing"]
"""How a network may end; `hpo.planning.diagnostics` finds out."""
Cell = dict[str, Any]
"""What a cell has other than the configuration that it is laid over."""
Weighted = tuple[float, Cell]

MAX_CLAIMS = 100
MAX_CELLS = 256
"""Of one contrast."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Contrast(_Model):
    """A comparison of cells that differ in nothing but what a claim is about."""

    better: tuple[Cell, ...] = ()
    worse: tuple[Cell, ...] = ()
    more_at: Cell = {}
    less_at: Cell = {}
    inside: dict[str, tuple[Any, ...]] = {}
    state: State | None = None
    at: tuple[Cell, ...] = ()
    not_at: tuple[Cell, ...] = ()
    across: dict[str, tuple[Any, ...]] = {}
    delta: Annotated[float, Field(ge=0)] | None = None
    """In the unit of the objective, of a state the share of the seeds; None: see `hpo.planning.claims`."""

    @property
    def comparisons(self) -> list[list[Weighted]]:
        """The sums of weighted cells that are to be above 0.

        Of a best value inside, two for each: against the lower end, and against the upper one.
        """
        if not self.inside:
            return [list(self._across(self._signed()))]
        ((name, values),) = self.inside.items()
        return [
            list(self._across([(1.0, {name: value}), (-1.0, {name: end})]))
            for value in values[1:-1]
            for end in (values[0], values[-1])
        ]

    def _signed(self) -> list[Weighted]:
        sides = [(1, self.at or self.better), (-1, self.not_at or self.worse)]
        places = [(1, self.more_at), (-1, self.less_at)] if self.more_at else [(1, {})]
        return [
            (sign * place / len(cells), {**cell, **where})
            for place, where in places
            for sign, cells in sides
            for cell in cells
        ]

    def _across(self, weighted: Sequence[Weighted]) -> Iterator[Weighted]:
        blocks = [
            dict(zip(self.across, values, strict=True)) for values in itertools.product(*self.across.values())
        ]
        for block in blocks:
            for weight, cell in weighted:
                yield weight / len(blocks), {**cell, **block}

    # --- validation ----------------------------------------------------------------------------------

    @field_validator("better", "worse", "at", "not_at", mode="before")
    @classmethod
    def _check_cells(cls, cells: Any, info: ValidationInfo) -> Any:
        tables = [cells] if isinstance(cells, dict) else cells
        if not isinstance(tables, list | tuple) or not tables:
            raise ValueError("must be a table of parameters, as {batch_size = 20}, or a list of such tables")
        return tuple(_read(info, table) for table in tables)

    @field_validator("more_at", "less_at", mode="before")
    @classmethod
    def _check_place(cls, cell: Any, info: ValidationInfo) -> Any:
        return _read(info, cell)

    @field_validator("inside", "across", mode="before")
    @classmethod
    def _check_axes(cls, axes: Any, info: ValidationInfo) -> Any:
        if not isinstance(axes, dict):
            return axes
        found = {}
        for name, values in axes.items():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{name} must be a list of values, as {name} = [1, 2]")
            found[name] = tuple(_read_value(info, name, value) for value in values)
        return found

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        kinds = {
            "better and worse": bool(self.better or self.worse),
            "inside": bool(self.inside),
            "state, at and not_at": bool(self.state or self.at or self.not_at),
        }
        given = [kind for kind, is_given in kinds.items() if is_given]
        if len(given) != 1:
            which = "none of them is" if not given else f"{' as well as '.join(given)} are"
            raise ValueError(f"must have better and worse, or inside, or state, at and not_at; {which} given")
        complete = (self.better and self.worse) or self.inside or (self.state and self.at and self.not_at)
        if not complete:
            raise ValueError(f"needs {given[0]}; one of them is missing")
        if bool(self.more_at) != bool(self.less_at) or (self.more_at and not self.better):
            raise ValueError("more_at and less_at go together, with better and worse")
        self._check_inside()
        self._check_names()
        cells = {canonical_json(cell) for weighted in self.comparisons for _, cell in weighted}
        if len(cells) > MAX_CELLS:
            raise ValueError(f"has {len(cells)} cells, at most {MAX_CELLS} are allowed; shorten across")
        return self

    def _check_inside(self) -> None:
        for name, values in self.inside.items():
            is_number = all(
                isinstance(value, int | float) and not isinstance(value, bool) for value in values
            )
            if (
                len(self.inside) > 1
                or len(values) < 3
                or not is_number
                or sorted(set(values)) != list(values)
            ):
                raise ValueError(
                    f"inside must be three numbers or more of one parameter, rising, as {name} = [1, 2, 3]"
                )

    def _check_names(self) -> None:
        """Check that no cell says something twice, and that no cell is on both sides."""
        sides = [*self.better, *self.worse, *self.at, *self.not_at, self.inside]
        names = [set(itertools.chain(*sides)), {*self.more_at, *self.less_at}, set(self.across)]
        for first, second in itertools.combinations(names, 2):
            for name in sorted(first & second):
                raise ValueError(
                    f"{name} is both in the cells that are compared and in where they are; keep one"
                )
        for first_side, second_side in ((self.better, self.worse), (self.at, self.not_at)):
            for cell in first_side:
                if cell in second_side:
                    raise ValueError(f"the cell {cell} stands on both sides")
        if self.more_at and self.more_at == self.less_at:
            raise ValueError("more_at and less_at are the same")


class Claim(_Model):
    """A sentence about results, and what would confirm it."""

    text: Annotated[str, Field(min_length=1, max_length=500)]
    study: str
    """Its cells are laid over what the points of this study are laid over."""
    contrasts: tuple[Contrast, ...]

    @field_validator("contrasts", mode="before")
    @classmethod
    def _as_tuple(cls, contrasts: Any) -> Any:
        if not contrasts:  # pydantic's own minimum counts what is left of those that are wrong
            raise ValueError("must have a contrast at least")
        return tuple(contrasts) if isinstance(contrasts, list) else contrasts


class About(_Model):
    """What the claims of a file are about: on other data nobody judges them, on less of it they stay open."""

    classes: tuple[str, ...] = ()
    """Names of the classes of the data, in any order; empty: any data."""
    n_train: Annotated[int, Field(ge=0)] = 0
    """Training examples at least."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at least that a trial has."""

    @field_validator("classes", mode="before")
    @classmethod
    def _as_tuple(cls, classes: Any) -> Any:
        return tuple(classes) if isinstance(classes, list) else classes


class Claims(_Model):
    """The claims of a plan: those of its `claims.toml`, then those of its study files."""

    about: About = About()
    claims: Annotated[tuple[Claim, ...], Field(max_length=MAX_CLAIMS)] = ()

    @field_validator("claims", mode="before")
    @classmethod
    def _as_tuple(cls, claims: Any) -> Any:
        return tuple(claims) if isinstance(claims, list) else claims

    @classmethod
    def from_json(cls, record: Any, schema: Schema) -> Claims:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls.model_validate(record, context={"schema": schema})
        except ValidationError as error:
            raise InputError(explain(error)) from None

    def to_json(self) -> dict[str, Any]:
        """Return a record for JSON: equal exactly when the claims are."""
        return self.model_dump(mode="json", exclude_defaults=True)


def load_claims(folder: Path, specs: Mapping[str, StudySpec], schema: Schema) -> Claims:
    """Read the claims in a folder of study files.

    Args:
        folder: that holds them.
        specs: its studies.
        schema: of the recipe's parameters.

    Raises:
        StudyFileError: file, key, value, and what would be right.
    """
    about, claims = About(), list[Claim]()
    file = folder / CLAIMS_FILE
    if file.exists():
        found = _checked(file, read_document(file), schema)
        about, claims = found.about, list(found.claims)
        for number, claim in enumerate(claims):
            if claim.study not in specs:
                hint = did_you_mean(claim.study, specs)
                raise StudyFileError(file, f"claims.{number}.study = {claim.study!r}: no such study; {hint}")
    for name in specs:
        file = folder / f"{name}.toml"
        document = read_document(file)
        if "claims" not in document:
            continue
        own = document["claims"]
        for number, claim in enumerate(own if isinstance(own, list) else []):
            if isinstance(claim, dict) and claim.setdefault("study", name) != name:
                raise StudyFileError(
                    file,
                    f"claims.{number}.study = {claim['study']!r}: a claim in a study file is of that study; "
                    f"leave the key out, or put the claim into {CLAIMS_FILE}",
                )
        claims += _checked(file, {"claims": own}, schema).claims
    if len(claims) > MAX_CLAIMS:
        raise StudyFileError(folder, f"has {len(claims)} claims, at most {MAX_CLAIMS} are allowed")
    return Claims(about=about, claims=tuple(claims))


def _checked(file: Path, document: Mapping[str, Any], schema: Schema) -> Claims:
    try:
        return Claims.model_validate(document, context={"schema": schema})
    except ValidationError as error:
        raise StudyFileError(file, explain(error)) from None


def _read(info: ValidationInfo, table: Any) -> Any:
    if not isinstance(table, dict) or not table:
        raise ValueError("must be a table of parameters, as {batch_size = 20}")
    try:
        return read_params(_schema_of(info), str(info.field_name), table)
    except InputError as error:
        raise ValueError(str(error)) from None


def _read_value(info: ValidationInfo, name: str, value: object) -> ParamValue:
    try:
        return read_param(_schema_of(info), str(info.field_name), name, value)
    except InputError as error:
        raise ValueError(str(error)) from None


def _schema_of(info: ValidationInfo) -> Schema:
    schema: Schema = (info.context or {})["schema"]
    return schema
