"""Workers that train nothing: they write what real ones would write, with figures of the test's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo import find_plan
from hpo.execution.run import find_or_create_plan
from hpo.monitor.watch import Progress, Watch
from hpo.planning.inheritance import config_of_trial
from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance
from hpo.storage.queue import Queue, Reason, this_process
from hpo.training.loop import LayerHealth, SeedEpoch
from tests.support.plans import SMALL_SIZES
from tests.support.queues import claim_first

HOSTILE = "[red]x[/red] \x1b[2J\u202e<b> " + "n" * 300
REMOTE = {**this_process(), "host": "node-7", "boot": "another machine"}
STUDIES = {
    "setup": 'title = "Channels"\nsection = "1"\n[search]\nconv1_channels = [4, 8]',
    "rate": f"""
        title = {json.dumps(HOSTILE)}
        section = {json.dumps(HOSTILE)}
        inherits = "setup"
        [search]
        learning_rate = [0.1, 0.01, 0.001, 0.0001, 0.00001, 0.000001, 0.0000001]
        [pruner]
        name = "median"
    """,
    "shift": 'section = "3"\ninherits = "setup"\n[search]\nl2 = [0.0, 0.1]',
}
EPOCHS = 4
SECONDS = 10.0
LAYERS = {
    is_dead: {
        "conv1": LayerHealth(flow, flow, 1.0 if is_dead else 0.1),
        "output": LayerHealth(1.0, 1.0, None),
    }
    for is_dead, flow in ((True, 0.0), (False, 1.0))
}
"""By whether the first layer is dead."""


class Worker:
    """Writes what a worker would write, with figures of the test's choice."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def claim(self, study: str, owner: dict[str, Any] | None = None) -> FrozenTrial:
        """The next trial of a study, as it is while it is being trained."""
        queue = Queue(self.plan.storage, study)
        if owner is None:
            trial = claim_first(queue)
            assert trial is not None
        else:
            (_, trial_id), *_ = self.plan.storage.waiting([queue.study_id], 1)
            assert self.plan.storage.claim(trial_id, owner)
            trial = self.plan.storage.trial(trial_id)
        config = config_of_trial(self.plan, study, trial, trial.params)
        self.plan.storage.write(trial._trial_id, attrs={"config": config})
        return trial

    def report(
        self, trial: FrozenTrial, curve: Sequence[float | list[float]], *, dead: bool | list[bool] = False
    ) -> None:
        """Epochs with these means over seeds, two of which differ by 0.02, or these values by seed; 10 s."""
        seeds = trial.user_attrs["seeds"]
        died = dead if isinstance(dead, list) else [dead] * len(seeds)
        offsets = [0.01 * (-1) ** place if len(seeds) > 1 else 0.0 for place in range(len(seeds))]
        by_seed = [f1 if isinstance(f1, list) else [f1 + offset for offset in offsets] for f1 in curve]
        means = [fmean(f1) if isinstance(f1, list) else f1 for f1 in curve]
        epochs = {
            f"epoch:{n}": [
                SeedEpoch(
                    seed,
                    {"macro_f1": f1, "accuracy": mean, "loss": 1.0},
                    1.0,
                    5,
                    SECONDS / len(seeds),
                    LAYERS[is_dead],
                ).to_dict()
                for seed, f1, is_dead in zip(seeds, values, died, strict=True)
            ]
            for n, (mean, values) in enumerate(zip(means, by_seed, strict=True), start=1)
        }
        self.plan.storage.write(trial._trial_id, attrs=epochs, reports=dict(enumerate(means, start=1)))

    def finish(
        self, trial: FrozenTrial, curve: Sequence[float | list[float]], *, dead: bool | list[bool] = False
    ) -> None:
        """A result."""
        self.report(trial, curve, dead=dead)
        reports = self.plan.storage.trial(trial._trial_id).intermediate_values
        self.plan.storage.finish(trial._trial_id, TrialState.COMPLETE, max(reports.values()))

    def finish_all(self, study: str, curve: Sequence[float]) -> None:
        """The same result for all that waits; the study decides."""
        while self.plan.storage.waiting([self.plan.storage.study_id(study)], 1):
            self.finish(self.claim(study), curve)
        advance(self.plan)

    def prune(self, trial: FrozenTrial, reason: str) -> None:
        """An end without the last epoch."""
        self.report(trial, [0.3, 0.2])
        self.plan.storage.finish(trial._trial_id, TrialState.PRUNED, 0.3, {"reason": reason})


def new_plan(folder: Path, studies: Mapping[str, str] = STUDIES, **given: Any) -> Plan:
    """A plan of these studies, to be looked at in `folder`; nothing trained."""
    (folder / "studies").mkdir()
    for name, text in studies.items():
        (folder / "studies" / f"{name}.toml").write_text(text)
    return find_or_create_plan(
        folder, studies=folder / "studies", given={**SMALL_SIZES, "epochs": EPOCHS, **given}
    )


def plan_under_way(folder: Path) -> Plan:
    """A plan whose first study has decided, the second is amid all that can happen."""
    plan = new_plan(folder, lease_seconds=86_400)  # its workers are silent for as long as tests take
    advance(plan)
    worker = Worker(plan)
    for curve in ([0.2, 0.6, 0.5, 0.4], [0.2, 0.5, 0.4, 0.4]):
        worker.finish(worker.claim("setup"), curve)
    advance(plan)
    worker.finish(worker.claim("rate"), [0.1] * EPOCHS, dead=True)
    worker.prune(worker.claim("rate"), "pruned: by median after epoch 2")
    worker.prune(worker.claim("rate"), f"{Reason.DIVERGED}: the loss is nan {HOSTILE}")
    queue = Queue(plan.storage, "rate")
    broken = worker.claim("rate")
    queue.close(broken._trial_id, Reason.ERROR, f"ValueError: {HOSTILE}")
    advance(plan)
    worker.finish(worker.claim("rate"), [0.2, 0.3, 0.4, 0.55])
    worker.report(worker.claim("rate"), [0.3, 0.4])
    worker.report(worker.claim("rate", REMOTE), [0.1, 0.05, 0.05], dead=True)
    (again,) = [t for t in plan.trials("rate") if t.state == TrialState.WAITING]
    assert again.params == broken.params
    worker.claim("rate")
    queue.close(again._trial_id, Reason.ERROR, f"ValueError: {HOSTILE}")
    return plan


def watch(plan: Plan, names: Sequence[str] | None = None) -> Watch:
    """As another process would look at a plan."""
    return Watch(find_plan(storage=plan.storage.url), plan.all_names if names is None else names)


def look(plan: Plan) -> Progress:
    """What a first look finds."""
    return watch(plan).look()
