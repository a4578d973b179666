"""Recipes are plug-ins: what one has of its own, nothing else in the house knows by name."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import hpo
from hpo.training.registry import RECIPES, load_recipe

HOUSE = Path(hpo.__file__).parent
SHOWN = (".py", ".j2", ".html", ".css", ".js")


def own_names(recipe: str) -> list[str]:
    """The parameters that a recipe adds to those that every recipe has."""
    return [
        name for name in load_recipe(recipe).recipe.schema.parameters if name not in hpo.Params.model_fields
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_but_a_recipe_knows_its_parameters(recipe: str) -> None:
    """A search of all files outside `hpo/recipes`, comments and templates included."""
    names = own_names(recipe)
    assert len(names) > 3
    words = re.compile("|".join(rf"\b{name}\b" for name in names))
    files = [file for file in HOUSE.rglob("*") if file.suffix in SHOWN and "recipes" not in file.parts]
    assert len(files) > 80
    found = [
        f"{file.relative_to(HOUSE)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_the_registry_names_a_recipe_s_module(recipe: str) -> None:
    module = RECIPES[recipe].partition(":")[0]
    assert find_spec(module) is not None
    files = [file for file in HOUSE.rglob("*.py") if "recipes" not in file.parts]
    naming = [file.relative_to(HOUSE).as_posix() for file in files if module in file.read_text("utf-8")]
    assert naming == ["training/registry.py"]
