"""`hpo plan`: what a run would train and how long it would take, from a few timed steps; runs no trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hpo._process import n_cores
from hpo.data import TrainingData
from hpo.execution.identity import identify
from hpo.execution.plan_data import training_data
from hpo.execution.run import threads_each
from hpo.planning.manifest import Identity, Options
from hpo.planning.plan import FINAL
from hpo.planning.studies import check_epochs, lineage, published_config, with_ancestors
from hpo.space.parameters import ParamValue, TrialConfig, canonical_json
from hpo.space.study_file import StudySpec
from hpo.training.cuda import CudaGraph, prepare
from hpo.training.devices import DTYPES, resolve_device, visible_gpus
from hpo.training.learner import Learner

STEPS_A_CALL = 4
WARM_UP_CALLS = 2
"""On a GPU the second one records what the others replay."""
TIMED_CALLS = 2


@dataclass(frozen=True)
class Line:
    """One study of a run that has not begun."""

    study: str
    section: str
    points: int
    seeds: int
    epochs: int
    """Of all points and seeds together, if none is pruned."""
    seconds: float
    """Predicted for all workers together, if none is pruned."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo plan --json` prints it."""
        return asdict(self)


def forecast(
    specs: Mapping[str, StudySpec],
    options: Options,
    *,
    workers: int | None = None,
    names: Sequence[str] = (),
) -> list[Line]:
    """Forecast a run with these options, the final stage last unless studies are named.

    What a study will inherit is not known yet; its points are timed with the defaults instead, so the
    prediction is as good as the winners cost what the defaults cost. What a GPU gains by training several
    trials at once is not in it.

    Raises:
        InputError: data, device or precision cannot be had, a study is unknown, or searches the epochs that
            `options` give.
    """
    check_epochs(specs, options.epochs)
    device = resolve_device(options.device)
    n_gpus = len(visible_gpus()) if options.device in ("auto", "cuda") else 1
    count = workers or (n_cores() if device == "cpu" else n_gpus)
    identity = identify(options, threads_each(workers))
    served = with_ancestors(specs, names, options.inherit) if names else list(specs)
    torch.set_num_threads(identity.threads)
    data = training_data(options)
    timed: dict[str, float] = {}

    def seconds_per_epoch(config: TrialConfig) -> float:
        # epochs, rates and mixup cost nothing worth timing
        key = canonical_json({**config.network.model_dump(), "batch_size": config.training.batch_size})
        if key not in timed:
            timed[key] = _seconds_per_epoch(config, data, identity, device)
        return timed[key]

    lines = []
    for name in served:
        configs = _configs(specs, name, options)
        # a point of a grid may be what an earlier study has trained; of a sampled one nobody knows the points
        known = _known(specs, name, options) if specs[name].is_grid else None
        runs = [config.training.epochs * options.seeds * (config != known) for config in configs]
        seconds = [n * seconds_per_epoch(config) for n, config in zip(runs, configs, strict=True)]
        busy = min(count, len(configs)) or 1
        lines.append(
            Line(name, specs[name].section, len(configs), options.seeds, sum(runs), sum(seconds) / busy)
        )
    if not names:
        config = TrialConfig.from_params(_start(specs, served[-1], options))
        epochs = config.training.epochs * options.final_seeds
        seconds_final = epochs * seconds_per_epoch(config)  # one trial, so one worker
        lines.append(Line(FINAL, "", 1, options.final_seeds, epochs, seconds_final))
    return lines


def _start(specs: Mapping[str, StudySpec], name: str, options: Options) -> dict[str, ParamValue]:
    """Return what a study's points are laid over, as far as files say: base, and what is fixed on the way."""
    return _with_epochs(specs[name].context(_inherited(specs, name, options)), options)


def _with_epochs(params: dict[str, ParamValue], options: Options) -> dict[str, ParamValue]:
    return params if options.epochs is None else {**params, "epochs": options.epochs}


def _inherited(specs: Mapping[str, StudySpec], name: str, options: Options) -> dict[str, ParamValue] | None:
    parent = specs[name].inherits
    if parent is None:
        return None
    if options.inherit == "published":
        return published_config(specs, parent).params()
    params: dict[str, ParamValue] | None = None
    for study in lineage(specs, parent):
        params = study.context(params)
    return params


def _known(specs: Mapping[str, StudySpec], name: str, options: Options) -> TrialConfig | None:
    """Return the configuration that an earlier study has trained already, as far as the files say."""
    inherited = _inherited(specs, name, options) if options.inherit == "winners" else None
    return TrialConfig.from_params(_with_epochs(inherited, options)) if inherited is not None else None


def _configs(specs: Mapping[str, StudySpec], name: str, options: Options) -> list[TrialConfig]:
    """Return one configuration for each point; for a sampled study the one that it samples around."""
    study, context = specs[name], _start(specs, name, options)
    points = study.grid(context) if study.is_grid else [{}] * (study.trials or 0)
    configs = [TrialConfig.from_params({**context, **point}) for point in points]
    inherited = _inherited(specs, name, options)
    if options.inherit == "published" and inherited is not None:
        # nobody has trained what was published: where it is no point of the grid, a control is
        control = TrialConfig.from_params(_with_epochs(inherited, options))
        if not study.is_grid or control not in configs:
            configs.insert(0, control)
    return configs


def _seconds_per_epoch(config: TrialConfig, data: TrainingData, identity: Identity, device: str) -> float:
    """Measure the time of one epoch of training, by a few steps after a warm-up."""
    prepare(device, identity.precision)
    size = min(config.training.batch_size, len(data.train.labels))
    learner = Learner(
        config, data.image_shape, len(data.class_names), 0, device=device, precision=identity.precision
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, data.image_shape[2], *data.image_shape[:2], generator=generator)
    images = images.to(device, DTYPES[identity.precision]).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(len(data.class_names), (size,), generator=generator).to(device)

    def steps() -> tuple[Tensor, ...]:
        return tuple(learner.step(images, labels) for _ in range(STEPS_A_CALL))

    def seconds(n_calls: int) -> float:
        began = time.perf_counter()
        for _ in range(n_calls):
            *_, loss = call()
        loss.item()  # waits for a GPU
        return time.perf_counter() - began

    call = steps if device == "cpu" else CudaGraph(steps, device)
    seconds(WARM_UP_CALLS)
    return seconds(TIMED_CALLS) / (TIMED_CALLS * STEPS_A_CALL) * len(data.train.labels) / size
