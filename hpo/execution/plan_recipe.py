"""The recipe of a plan as this process has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hpo.data.dataset import DataInfo
from hpo.data.sources import absolute_source
from hpo.errors import ConflictError, InputError, StudyFileError
from hpo.planning.manifest import Options, RecipeRecord, read_plan_file
from hpo.planning.plan import Plan
from hpo.planning.reuse import with_starts
from hpo.planning.studies import Studies, check_objectives, read_studies, with_fixed
from hpo.space.parameters import ParamValue, ParamValues
from hpo.space.schema import Schema
from hpo.space.study_file import StudySpec, shipped_studies
from hpo.training.recipe import Recipe
from hpo.training.registry import DEFAULT_RECIPE, NamedRecipe, load_recipe


def given_options(studies: Studies | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the folder's own `plan.toml`, under those that the user gave.

    Raises:
        InputError: the file cannot be used.
    """
    of_folder = read_plan_file(studies) if isinstance(studies, Path) else {}
    merged = {**of_folder, **given}
    if "set" in of_folder and "set" in given:
        merged["set"] = {**of_folder["set"], **given["set"]}
    if "data" in merged:
        merged["data"] = absolute_source(merged["data"])
    return merged


def read_folder(
    studies: Studies | None, given: Mapping[str, Any], plan: Plan | None = None
) -> tuple[Options, NamedRecipe, dict[str, StudySpec]]:
    """Read the options and the study files of a plan that is to be written, by its recipe.

    Args:
        studies: where they are; None: the shipped ones.
        given: as from `given_options`.
        plan: that is there already: what its studies started from is not looked up again.

    Raises:
        InputError: an option, the recipe or a study file cannot be used.
    """
    options = Options.from_given(given)
    named = load_recipe(options.recipe)
    schema = named.recipe.schema
    if options.set is not None:
        options = options.model_copy(update={"set": _checked(options.set, schema)})
    try:
        specs = read_studies(studies if studies is not None else shipped_studies(), schema)
    except StudyFileError as error:
        if named.name == DEFAULT_RECIPE or studies is not None:
            raise
        raise InputError(
            f"--recipe {named.name}: the shipped studies are for {DEFAULT_RECIPE} ({error.problem}); write a "
            "study file that searches parameters of your recipe "
            f"({', '.join(list(schema.parameters)[:4])}, …), and give its folder: --studies DIR"
        ) from None
    starts = [study.start for study in plan.specs.values() if study.start] if plan else []
    specs = with_starts(specs, named.name, {start.origin: start for start in starts})
    specs = with_fixed(specs, options.set or {})
    metrics = named.recipe.metrics
    check_objectives(specs, metrics, options.metric, partial(_where, studies), races=options.races)
    return options, named, specs


def _where(studies: Studies | None, name: str) -> Path | str:
    return (
        f"study {name!r}" if isinstance(studies, Mapping) else (studies or shipped_studies()) / f"{name}.toml"
    )


def _checked(fixed: Mapping[str, ParamValue], schema: Schema) -> dict[str, ParamValue]:
    """Return the parameters that `--set` fixes, each in its own type."""
    for name, value in fixed.items():
        if name == "epochs":
            raise InputError(f"--set epochs={value}: epochs have an option of their own, --epochs {value}")
        schema.check_name(name, "--set ")
    try:
        return {name: schema.check(name, value) for name, value in fixed.items()}
    except InputError as error:
        raise InputError(f"--set {error}") from None


def record_of(named: NamedRecipe) -> RecipeRecord:
    """Return what is stored of a recipe."""
    recipe = named.recipe
    return RecipeRecord(
        name=named.name, sources=dict(named.sources), parameters=recipe.schema, metrics=dict(recipe.metrics)
    )


def recipe_of(plan: Plan) -> NamedRecipe:
    """Return the plan's recipe, and check that it is the one that the plan was created with.

    It may have more parameters by now; the plan goes on without them, which is with their defaults.

    Raises:
        ConflictError: its source files or its parameters are others; both sides are named.
        InputError: it cannot be loaded here.
    """
    return _recipe_and_schema(plan)[0]


def with_recipe(plan: Plan) -> Plan:
    """Return the plan bound to its recipe, which knows which points are the same.

    Raises:
        InputError: as from `recipe_of`.
    """
    return plan.bound_to(_recipe_and_schema(plan)[1])


@dataclass(frozen=True)
class CostRule:
    """What configurations of a recipe cost on such data; loads torch when it is asked."""

    recipe: Recipe
    info: DataInfo

    def __call__(self, config: ParamValues, names: Collection[str]) -> Mapping[str, float]:
        """Return nothing where it cannot be told: then the trial says why, and fails."""
        from hpo.training.costs import costs

        try:
            return costs(self.recipe, self.info, config, names)
        except (Exception, SystemExit):  # whatever the user's code raises
            return {}


def with_costs(plan: Plan) -> Plan:
    """Return a plan, bound to its recipe, that knows what its points cost if a constraint asks for that.

    Needed wherever points are made: elsewhere constraints on costs are not applied.
    """
    if not any(study.costs for study in plan.specs.values()):
        return plan
    rule = CostRule(load_recipe(plan.recipe.name).recipe, plan.identity.data_info)
    return plan.bound_to(plan.schema.with_costs(rule))


def _recipe_and_schema(plan: Plan) -> tuple[NamedRecipe, Schema]:
    named, stored = load_recipe(plan.recipe.name), plan.recipe
    for module in sorted(stored.sources.keys() | named.sources.keys()):
        theirs, ours = stored.sources.get(module, "missing"), named.sources.get(module, "missing")
        if theirs != ours:
            raise ConflictError(
                f"recipe {stored.name}: {module}.py is not the file that the plan in {plan.storage.name} was "
                f"created with (here {ours}, there {theirs}); put the file back to go on, or start anew with "
                "another --out"
            )
    schema = named.recipe.schema.as_before(stored.parameters)
    if schema is None or list(named.recipe.metrics.items()) != list(stored.metrics.items()):
        raise ConflictError(
            f"recipe {stored.name}: its parameters or metrics are not those of the plan in "
            f"{plan.storage.name}; use the version of hpo that created it"
        )
    return named, schema
