"""The studies of a plan as files define them: read, checked whole, and who inherits from whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpo.errors import InputError, StudyFileError, did_you_mean
from hpo.planning.pruners import check_pruner
from hpo.planning.samplers import check_sampler
from hpo.space.axes import read_each
from hpo.space.parameters import Direction, ParamValue, as_written
from hpo.space.schema import Schema
from hpo.space.study_file import StudySpec, load_studies, study_of

Studies = Path | Mapping[str, Any]
"""A folder of study files; or a single study without one: what its file would hold."""
ONE_STUDY = "search"
"""The name of a study without a file."""


def read_studies(studies: Studies, schema: Schema) -> dict[str, StudySpec]:
    """Read and check studies, samplers and pruners included; parents before children.

    Args:
        studies: where they are.
        schema: of the recipe's parameters.

    Raises:
        StudyFileError: file, key, value, and what would be right.
    """
    if isinstance(studies, Path):
        specs = load_studies(studies, schema)
        read_each(lambda name: check_study(specs[name], studies / f"{name}.toml"), specs)
        return specs
    where = f"study {ONE_STUDY!r}"
    if "inherits" in studies:
        raise StudyFileError(where, f"inherits = {studies['inherits']!r}: there is no other study")
    spec = study_of(studies, ONE_STUDY, where, schema)
    check_study(spec, where)
    return {ONE_STUDY: spec}


def with_fixed(specs: Mapping[str, StudySpec], params: Mapping[str, ParamValue]) -> dict[str, StudySpec]:
    """Return the studies with parameters fixed in all of them, as `--set` asks.

    Raises:
        InputError: a study searches one of them, or its constraints leave no point then.
    """
    try:
        return {name: study.with_fixed(params) for name, study in specs.items()}
    except InputError as error:
        raise InputError(f"{set_text(params)}: {error}") from None


def set_text(params: Mapping[str, ParamValue]) -> str:
    """Return fixed parameters as they are written for a command."""
    texts = {name: value if isinstance(value, str) else as_written(value) for name, value in params.items()}
    return " ".join(f"--set {name}={text}" for name, text in texts.items())


def check_study(spec: StudySpec, file: Path | str, *, here: bool = True) -> None:
    """Check what only Optuna's side knows: the sampler, the pruner, and their options.

    Args:
        spec: the study.
        file: that the error begins with.
        here: whether it is to be worked on here, so that what these two need has to be on this machine. Who
            only looks at a plan needs none of it, and runs no code of OptunaHub.

    Raises:
        StudyFileError: an unknown name or option, or a value that it cannot have.
    """
    checks: list[Callable[[], object]] = [
        lambda: check_sampler(spec, here=here),
        lambda: check_pruner(spec, here=here),
    ]
    try:
        read_each(lambda check: check(), checks)
    except InputError as error:
        raise StudyFileError(file, str(error)) from None


def check_objectives(
    specs: Mapping[str, StudySpec],
    metrics: Mapping[str, Direction],
    metric: str | None,
    where: Callable[[str], Path | str],
    *,
    races: bool,
) -> None:
    """Check the objectives of studies, and by which rule they choose.

    Args:
        specs: the studies.
        metrics: of the recipe, with their directions.
        metric: the plan's objective; None: the first of these.
        where: names a study in errors.
        races: whether seeds are raced.

    Raises:
        StudyFileError: an unknown name, or a rule that cannot be followed.
    """
    first = metric or next(iter(metrics))

    def check(name: str) -> None:
        study = specs[name]
        if study.objectives is None:
            return
        for objective in study.objectives:
            known = (*metrics, *study.parameters.all_costs)
            if objective not in known:
                hint = did_you_mean(objective, known)
                raise StudyFileError(
                    where(name), f"objectives: {objective} is neither a metric nor a cost; {hint}"
                )
        if study.objectives[0] != first:
            raise StudyFileError(
                where(name),
                f"objectives: the first must be {first}, which the plan is tuned for, and not "
                f"{study.objectives[0]}; --metric says what that is",
            )
        if study.choice is None:
            return
        try:
            study.choice.check_directions(directions(study, metrics))
        except InputError as error:
            raise StudyFileError(where(name), str(error)) from None
        if races:
            raise StudyFileError(
                where(name),
                f"choose = {study.choose!r}: --seeds race gives seeds by {first} alone, so that the points "
                "which this rule compares would have unequal ones; give a number of seeds",
            )

    read_each(check, specs)


def directions(study: StudySpec, metrics: Mapping[str, Direction]) -> dict[str, Direction]:
    """Return the directions of a study's two objectives; costs are to be small."""
    return {name: metrics.get(name, "minimize") for name in study.objectives or ()}


def root_configs(specs: Mapping[str, StudySpec]) -> list[dict[str, ParamValue]]:
    """Return what the studies that inherit nothing lay their points over, as complete configurations."""
    return [study.context() for study in specs.values() if study.inherits is None]


def with_ancestors(specs: Mapping[str, StudySpec], names: Iterable[str], inherit: str) -> list[str]:
    """Return the named studies and the earlier ones that they need, in order; published choices need none.

    Raises:
        InputError: an unknown name; the text says what is near.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in specs:
            raise InputError(f"{name} is not a study of this plan; {did_you_mean(name, specs)}")
        wanted |= {study.name for study in lineage(specs, name)} if inherit == "winners" else {name}
    return [name for name in specs if name in wanted]


def lineage(specs: Mapping[str, StudySpec], name: str) -> list[StudySpec]:
    """Return a study and those before it that it inherits from, the study itself last."""
    chain = [specs[name]]
    while (parent := chain[0].inherits) is not None:
        chain.insert(0, specs[parent])
    return chain


def published_config(
    specs: Mapping[str, StudySpec], name: str, fixed: Mapping[str, ParamValue] | None = None
) -> dict[str, ParamValue]:
    """Return what the original carried on after a study: its own choices and those before it.

    Args:
        specs: all studies.
        name: of the study.
        fixed: what `--set` lays over it.

    Raises:
        InputError: a study on the way has no published choice.
    """
    chain = lineage(specs, name)
    first = chain[0]
    params = {**first.parameters.defaults, **(first.base if first.start is None else first.start.params)}
    for study in chain:
        if study.published is None or not study.published.choice:
            raise StudyFileError(f"{study.name}.toml", "has no published.choice for --inherit published")
        params.update(study.published.choice)
    return chain[0].parameters.complete({**params, **(fixed or {})})


def check_epochs(specs: Mapping[str, StudySpec], epochs: int | None) -> None:
    """Check that `--epochs` overrides no axis.

    Raises:
        InputError: a study searches the epochs.
    """
    searching = [name for name, study in specs.items() if "epochs" in study.search]
    if epochs is not None and searching:
        raise InputError(f"--epochs {epochs}: study {searching[0]!r} searches epochs; leave one of them out")
