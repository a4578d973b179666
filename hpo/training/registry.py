"""The recipes by name: those that come with hpo, and those of users, `python:module:Class`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import get_args

from hpo._imports import in_one_line, load_object, place_in_user_code, place_of, source_hashes
from hpo.errors import InputError, did_you_mean
from hpo.space.constraints import NETWORK_COSTS
from hpo.space.parameters import Direction, LoopParams, Params
from hpo.training.recipe import Recipe

DEFAULT_RECIPE = "constrained-cnn"
"""What the shipped studies are for; `hpo.planning.defaults` has it as well."""
RECIPES = {"constrained-cnn": "hpo.recipes.constrained_cnn:ConstrainedCnn"}
"""Name → module and class. A recipe is a plug-in: nothing else names its module."""


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
    place = f"{place_of(found)}: class {found.__name__}"
    try:
        recipe = found()
        _check(recipe)
    except InputError as error:
        raise InputError(f"{name}: {place}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever __init__ raises
        line = place_in_user_code(error)
        where, why = (line, "") if line else (place, "cannot be made without arguments: ")
        raise InputError(f"{name}: {where}: {why}{in_one_line(error)}") from error
    return NamedRecipe(name, recipe, source_hashes(found.__module__))


def _check(recipe: Recipe) -> None:
    """Check what can be checked without data.

    Raises:
        InputError: something is missing or of another kind.
    """
    base: type[LoopParams]
    if recipe.has_own_loop:
        if not recipe.overrides("test"):
            raise InputError("has train, so it needs test(self, params, data, state) for the final stage")
        base, owner = LoopParams, "a recipe"
    else:
        if not recipe.overrides("build"):
            raise InputError("has no build(self, params, data), which returns the network")
        base, owner = Params, "a recipe without a train of its own"
    if not isinstance(recipe.Params, type) or not issubclass(recipe.Params, base):
        found = getattr(recipe.Params, "__name__", repr(recipe.Params))
        raise InputError(f"Params is a {found}; {owner} needs a subclass of hpo.{base.__name__}")
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
    if not isinstance(recipe.reads_epochs, bool):
        raise InputError(f"reads_epochs = {recipe.reads_epochs!r}: must be True or False")
    if recipe.draws_in_training not in (True, False, "device"):
        raise InputError(f"draws_in_training = {recipe.draws_in_training!r}: must be True, False or 'device'")
    if not isinstance(recipe.constraints, tuple | list) or not all(
        isinstance(each, str) for each in recipe.constraints
    ):
        raise InputError(f"constraints = {recipe.constraints!r}: must be texts, as ('width <= 64',)")
    if not isinstance(recipe.cost_names, tuple | list) or not all(
        isinstance(each, str) and each.isidentifier() for each in recipe.cost_names
    ):
        raise InputError(f"cost_names = {recipe.cost_names!r}: must be names, as ('n_trees',)")
    if not recipe.overrides("costs") and (more := [*set(recipe.cost_names) - {*NETWORK_COSTS}]):
        raise InputError(f"cost_names: {more[0]!r} needs a method costs(self, params, data) that returns it")
    _ = recipe.schema  # raises where a parameter or a constraint cannot be used
