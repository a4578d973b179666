"""`hpo plan`: what a run would train and how long it would take, from a few timed steps; runs no trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from hpo._process import n_workers
from hpo.execution.identity import identify
from hpo.execution.plan_data import data_of_final_stage, prepared
from hpo.execution.plan_recipe import CostRule, record_of
from hpo.execution.run import threads_each
from hpo.planning.closing import FINAL_MARGIN, MAX_FINAL_SHARE, fair_level
from hpo.planning.manifest import Options
from hpo.planning.plan import CONFIRM, FINAL, final_seeds
from hpo.planning.reuse import Elsewhere, Setting
from hpo.planning.scheduler import n_samples
from hpo.planning.studies import check_epochs, lineage, published_config, with_ancestors
from hpo.planning.verdicts import LOOKS
from hpo.space.constraints import SECONDS_AN_EPOCH
from hpo.space.parameters import ParamValue, canonical_json
from hpo.space.study_file import StudySpec
from hpo.training import fused
from hpo.training.devices import resolve_device, visible_gpus
from hpo.training.dry_run import seconds_per_step
from hpo.training.registry import load_recipe

Config = Mapping[str, ParamValue]
Decided = Mapping[str, Config]
"""What studies have decided for already, by name; for the others the files have to say it."""
UNTIMED = ("epochs", "learning_rate", "l2", "momentum", "schedule", "warmup_epochs", "label_smoothing")
"""Parameters that cost nothing worth timing."""


@dataclass(frozen=True)
class Line:
    """One study of a run that has not begun."""

    study: str
    section: str
    points: int
    seeds: int
    epochs: int
    """Of all points and seeds together, if none is pruned."""
    seconds: float | None
    """Predicted for all workers together, if none is pruned; None of a recipe with a loop of its own."""
    is_at_most: bool = False
    """Whether it is the most that it can take, as of a confirmation, which ends when verdicts are clear."""
    least_seeds: int | None = None
    """Seeds that a point gets in any case, where it is a race; None: it is none."""
    least_epochs: int | None = None
    """Of all points and these seeds together."""
    trained_seconds: float | None = None
    """Predicted training time of all workers, which a budget limits."""
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The least and the most that points of a grid cost, by what was asked for or a constraint names."""
    afforded: float | None = None
    """The share of that which the budget affords; None: no budget, or nobody knows."""
    reused: int | None = None
    """Points that another plan has trained at all their seeds; None: none was named.

    Which points a sampler will draw nobody knows before: they count as not trained.
    """
    reused_in_part: int | None = None
    """Points that it has trained at some of their seeds, or for some of their epochs."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo plan --json` prints it."""
        return asdict(self)


def forecast(
    specs: Mapping[str, StudySpec],
    options: Options,
    *,
    workers: int | None = None,
    names: Sequence[str] = (),
    reuse: str | None = None,
    with_costs: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Line]:
    """Forecast a run with these options, confirmation and final stage last unless studies are named.

    What a study will inherit is not known yet; its points are timed with the defaults instead, so the
    prediction is as good as the winners cost what the defaults cost. What a GPU gains by training several
    trials at once is not in it.

    Args:
        specs: the studies.
        options: of the plan.
        workers: how many there will be; None: one a core or GPU.
        names: only these studies and those they need; empty: all, and the final stage.
        reuse: output folder or database URL of a plan whose results are to be taken over. What its studies
            have decided is taken for what those of the same names will.
        with_costs: whether to tell all that points cost; else what constraints name.
        tell: is told what is being timed.

    Raises:
        InputError: data, device or precision cannot be had, a study is unknown, or searches the epochs that
            `options` give.
    """
    check_epochs(specs, options.epochs)
    device = resolve_device(options.device)
    n_gpus = len(visible_gpus()) if options.device in ("auto", "cuda") else 1
    count = workers or (n_workers() if device == "cpu" else n_gpus)
    identity = identify(options, threads_each(workers), specs)
    served = with_ancestors(specs, names, options.inherit) if names else list(specs)
    torch.set_num_threads(identity.threads)
    fused.use(identity.kernels)
    entry, data = prepared(options, options.data)
    named = load_recipe(options.recipe)
    costs_of = CostRule(named.recipe, data.info)
    schema = named.recipe.schema.with_costs(costs_of)
    specs = {name: study.bound_to(schema) for name, study in specs.items()}
    elsewhere = None
    if reuse is not None:
        elsewhere = Elsewhere.open(reuse, Setting(options, identity, record_of(named), schema))
    decided = elsewhere.decisions if elsewhere else {}
    search_seeds = range(options.seed, options.seed + options.most_seeds)
    first_seeds = search_seeds[: options.first_seeds]
    timed: dict[str, float] = {}

    def seconds_per_epoch(config: Config) -> float:
        if named.recipe.has_own_loop:
            return math.nan
        key = canonical_json({name: config[name] for name in config if name not in UNTIMED})
        if key not in timed:
            step = seconds_per_step(named, data, config, device=device, precision=identity.precision)
            n_steps = -(-len(data.train) // int(config["batch_size"]))
            timed[key] = step * n_steps
        return timed[key]

    def known_epochs(config: Config, seeds: Sequence[int], *, is_final: bool = False) -> int:
        if elsewhere is None:
            return 0
        depends = named.recipe.depends_on_epochs(named.recipe.params_of(config))
        return elsewhere.known_epochs(config, seeds, depends_on_epochs=depends, is_final=is_final)

    def costs(study: StudySpec, configs: Sequence[Config]) -> dict[str, tuple[float, float]]:
        asked = [*schema.costs, SECONDS_AN_EPOCH] if with_costs else study.costs
        before = [name for name in asked if name in schema.costs]
        found: dict[str, list[float]] = {}
        for config in configs if study.is_grid else ():
            known = dict(costs_of(config, before))
            if SECONDS_AN_EPOCH in asked and not named.recipe.has_own_loop:
                known[SECONDS_AN_EPOCH] = seconds_per_epoch(config)
            for cost, value in known.items():
                found.setdefault(cost, []).append(value)
        return {cost: (min(values), max(values)) for cost, values in found.items()}

    lines = []
    for name in served:
        configs = _configs(specs, name, options, decided)
        # a point of a grid may be what an earlier study has trained; of a sampled one nobody knows the points
        known = _known(specs, name, options, decided) if specs[name].is_grid else None
        n_seeds = [options.most_seeds * (config != known) for config in configs]
        n_epochs = [int(config["epochs"]) for config in configs]
        reused = in_part = None
        if elsewhere is not None:
            is_grid = specs[name].is_grid
            there = [len(elsewhere.known_seeds(config, search_seeds)) * is_grid for config in configs]
            n_seeds = [max(0, n - n_there) for n, n_there in zip(n_seeds, there, strict=True)]
            reused = sum(n_there == options.most_seeds for n_there in there)
            begun = [
                known_epochs(config, first_seeds) if is_grid and not n_there else 0
                for config, n_there in zip(configs, there, strict=True)
            ]
            n_epochs = [n - n_begun for n, n_begun in zip(n_epochs, begun, strict=True)]
            in_part = sum(0 < n_there < options.most_seeds for n_there in there) + sum(map(bool, begun))
        runs = [n * of_seeds for n, of_seeds in zip(n_epochs, n_seeds, strict=True)]
        seconds = []
        for number, (n, config) in enumerate(zip(runs, configs, strict=True), start=1):
            tell(f"timing a few steps of each network: {name}, {number} of {len(configs)}")
            seconds.append(n * seconds_per_epoch(config) if n or named.recipe.has_own_loop else 0.0)
        busy = min(count, len(configs)) or 1
        lines.append(
            Line(
                name,
                specs[name].section,
                len(configs),
                options.most_seeds,
                sum(runs),
                _known_time(sum(seconds) / busy),
                is_at_most=options.races,
                least_seeds=options.first_seeds if options.races else None,
                least_epochs=sum(runs) * options.first_seeds // options.most_seeds if options.races else None,
                trained_seconds=_known_time(sum(seconds)),
                reused=reused,
                reused_in_part=in_part,
                costs=costs(specs[name], configs),
            )
        )
    if not names:
        winner = decided.get(served[-1]) or _start(specs, served[-1], options, decided)
        config = schema.complete(_with_epochs(dict(winner), options))
        if options.confirm:
            lines.append(_confirmation(specs, served[-1], options, config, seconds_per_epoch(config), count))
        seeds = final_seeds(options)
        known_seeds = elsewhere.known_final_seeds(config, seeds) if elsewhere else 0
        n_begun = 0 if known_seeds else known_epochs(config, seeds, is_final=True)
        epochs = (int(config["epochs"]) - n_begun) * (options.final_seeds - known_seeds)
        n_train = len(data_of_final_stage(options, entry, data).train)
        # one trial, so one worker
        seconds_final = epochs * seconds_per_epoch(config) * n_train / len(data.train)
        final = _known_time(seconds_final)
        lines.append(Line(FINAL, "", 1, options.final_seeds, epochs, final, trained_seconds=final))
    return lines if options.budget is None else afforded(lines, options.budget)


def afforded(lines: Sequence[Line], budget: float) -> list[Line]:
    """Return the lines with what a budget affords of each, shared as `hpo.planning.closing` does."""
    needs = {line.study: line.trained_seconds for line in lines}
    known = {study: need for study, need in needs.items() if need is not None}
    if len(known) < len(lines):
        return list(lines)
    final = known.pop(FINAL, 0.0)
    reserved = min(FINAL_MARGIN * final, MAX_FINAL_SHARE * budget)
    level = fair_level(budget - reserved, known.values())
    shares = {study: min(1.0, level / need) if need else 1.0 for study, need in known.items()}
    left = budget - sum(min(need, level) for need in known.values())
    shares[FINAL] = min(1.0, left / final) if final else 1.0
    return [replace(line, afforded=shares[line.study]) for line in lines]


def _confirmation(
    specs: Mapping[str, StudySpec],
    last: str,
    options: Options,
    config: Config,
    seconds_per_epoch: float,
    n_workers: int,
) -> Line:
    """Return the most that a confirmation can take: all studies adopt a change, and none is clear early."""
    chain = lineage(specs, last) if options.inherit == "winners" else [specs[last]]
    n_decisions = sum(study.has_control for study in chain)
    n_arms = n_decisions + 1 if n_decisions else 0
    epochs = int(config["epochs"]) * n_arms * LOOKS[-1]
    busy = min(n_workers, max(1, n_arms * LOOKS[0]))
    return Line(
        CONFIRM,
        "",
        n_arms,
        LOOKS[-1],
        epochs,
        _known_time(epochs * seconds_per_epoch / busy),
        is_at_most=True,
        trained_seconds=_known_time(epochs * seconds_per_epoch),
    )


def _known_time(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _start(
    specs: Mapping[str, StudySpec], name: str, options: Options, decided: Decided
) -> dict[str, ParamValue]:
    """Return what a study's points are laid over, as far as files say: base, and what is fixed on the way."""
    return _with_epochs(specs[name].context(_inherited(specs, name, options, decided)), options)


def _with_epochs(params: dict[str, ParamValue], options: Options) -> dict[str, ParamValue]:
    return params if options.epochs is None else {**params, "epochs": options.epochs}


def _inherited(
    specs: Mapping[str, StudySpec], name: str, options: Options, decided: Decided
) -> dict[str, ParamValue] | None:
    parent = specs[name].inherits
    if parent is None:
        return None
    if options.inherit == "published":
        return published_config(specs, parent, options.set)
    params: dict[str, ParamValue] | None = None
    for study in lineage(specs, parent):
        params = dict(decided.get(study.name) or study.context(params))
    return params


def _known(specs: Mapping[str, StudySpec], name: str, options: Options, decided: Decided) -> Config | None:
    """Return the configuration that an earlier study has trained already, as far as the files say."""
    inherited = _inherited(specs, name, options, decided) if options.inherit == "winners" else None
    if inherited is None:
        return None
    return specs[name].parameters.complete(_with_epochs(inherited, options))


def _configs(specs: Mapping[str, StudySpec], name: str, options: Options, decided: Decided) -> list[Config]:
    """Return one configuration for each point; for a sampled study the one that it samples around."""
    study, context = specs[name], _start(specs, name, options, decided)
    schema = study.parameters
    points = study.grid(context) if study.is_grid else [{}] * n_samples(study, context)
    configs: list[Config] = [schema.complete({**context, **point}) for point in points]
    inherited = _inherited(specs, name, options, decided) if options.inherit == "published" else None
    if study.start is not None:
        inherited = {**study.start.params, **(options.set or {})}
    if inherited is not None:
        # no study of the plan has trained it: where it is no point of the grid, a control is
        control = schema.complete(_with_epochs(inherited, options))
        if not study.is_grid or control not in configs:
            configs.insert(0, control)
    return configs
