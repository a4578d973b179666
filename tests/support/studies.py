"""Studies of the shipped recipe, made of what a file would hold."""

from __future__ import annotations

from typing import Any

from hpo.space.schema import Schema
from hpo.space.study_file import StudySpec
from tests.support.recipes import SCHEMA


def spec_of(name: str = "x", schema: Schema = SCHEMA, **document: Any) -> StudySpec:
    """Return the study of a file with this name and content."""
    return StudySpec.model_validate({"name": name, **document}, context={"schema": schema})


def stored(spec: StudySpec) -> StudySpec:
    """Return a study as another process reads it from a database, by the recipe's own schema."""
    return StudySpec.from_json(spec.to_json(), spec.parameters)
