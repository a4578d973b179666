"""The recipes by name: those that come with hpo, and those of users, `python:module:Class`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import get_args

from hpo._imports import load_object, source_hashes
from hpo.errors import InputError, did_you_mean
from hpo.space.parameters import Direction, Params
from hpo.training.recipe import Recipe

DEFAULT_RECIPE = "constrained-cnn"
"""What the shipped studies are for; `hpo.planning.defaults` has it as well."""
RECIPES = {"constrained-cnn": "hpo.recipes.constrained_cnn:ConstrainedCnn"}
"""Name → module and class. A recipe is a plug-in: nothing else names its module."""
CONCLUSIONS = {"constrained-cnn": "hpo.recipes.constrained_cnn.conclusions"}
"""Name → module whose `conclusions(report)` judges what others have concluded, for the report's page."""


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with the name that it is asked for by, and the hashes of its source files."""

    name: str
    recipe: Recipe
    sources: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by module, of a user's own recipe; those that come with hpo have hpo's version."""

    @property
    def is_users(self) -> bool:
        """Whether it is a user's own."""
        return self.name not in RECIPES


@cache
def load_recipe(name: str) -> NamedRecipe:
    """Return the recipe of a name.

    Raises:
        InputError: there is no such recipe, or it does not keep the contract; the text says where.
    """
    if name in RECIPES:
        module, _, kind = RECIPES[name].partition(":")
        return NamedRecipe(name, getattr(import_module(module), kind)())
    if not name.startswith("python:"):
        hint = did_you_mean(name, RECIPES)
        hint += "" if hint.endswith("?") else "."
        raise InputError(
            f"recipe = {name!r} is not known; {hint} A recipe of your own is python:module:Class"
        )
    found = load_object(name)
    if not isinstance(found, type) or not issubclass(found, Recipe):
        what = found.__name__ if isinstance(found, type) else type(found).__name__
        raise InputError(f"{name}: must be a subclass of hpo.Recipe, is {what}")
    place = f"{inspect.getfile(found)}:{inspect.getsourcelines(found)[1]}: class {found.__name__}"
    try:
        recipe = found()
        _check(recipe)
    except InputError as error:
        raise InputError(f"{name}: {place}: {error}") from None
    except TypeError as error:
        raise InputError(f"{name}: {place}: cannot be made without arguments: {error}") from None
    return NamedRecipe(name, recipe, source_hashes(found.__module__))


def _check(recipe: Recipe) -> None:
    """Check what can be checked without data.

    Raises:
        InputError: something is missing or of another kind.
    """
    if recipe.has_own_loop:
        if not recipe.overrides("test"):
            raise InputError("has train, so it needs test(self, params, data, state) for the final stage")
    else:
        if not recipe.overrides("build"):
            raise InputError("has no build(self, params, data), which returns the network")
        if not issubclass(recipe.Params, Params):
            raise InputError(
                f"Params is a {recipe.Params.__name__}; a recipe without a train of its own needs a subclass "
                "of hpo.Params"
            )
    directions = get_args(Direction)
    if not isinstance(recipe.metrics, Mapping) or not recipe.metrics:
        raise InputError("metrics must be a mapping, as {'macro_f1': 'maximize', 'loss': 'minimize'}")
    for metric, direction in recipe.metrics.items():
        if not isinstance(metric, str) or not metric.isidentifier():
            raise InputError(f"metrics: {metric!r} must be a name of letters, digits and '_'")
        if direction not in directions:
            raise InputError(
                f"metrics[{metric!r}] = {direction!r}: must be {' or '.join(map(repr, directions))}"
            )
    _ = recipe.schema  # raises where a parameter or a constraint cannot be used
