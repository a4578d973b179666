"""What samplers and pruners see of a study: each point once, whatever its replicates, and none discarded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import Limits, work
from hpo.planning.history import for_pruner
from hpo.planning.plan import Plan
from hpo.planning.pruners import Runs, TrialPruner, build_pruner
from hpo.planning.revision import discard
from hpo.planning.samplers import distributions, draw
from hpo.storage.queue import Job, Queue, Reason, Slot
from hpo.storage.storage import Storage
from tests.support import simulated
from tests.support.queues import claim_first
from tests.support.recipes import SCHEMA
from tests.support.studies import spec_of

EPOCHS = 4
LEARNERS = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 3}, "cma-es": {"popsize": 4}}
"""The samplers that learn from few points, and how."""


@dataclass(frozen=True)
class Trained:
    """A trial of a point with the curve that it reported."""

    index: int
    curve: tuple[float, ...]
    replicate: int = 0
    n_seeds: int = 1
    state: TrialState = TrialState.COMPLETE
    reason: str = ""


def spec(sampler: str = "random", pruner: dict[str, Any] | None = None) -> Any:
    search = {"mixup_alpha": {"low": 0.0, "high": 1.0}, "hidden_units": {"low": 8, "high": 512, "log": True}}
    chosen = {"name": sampler, **LEARNERS.get(sampler, {})}
    return spec_of("s", trials=30, search=search, sampler=chosen, pruner=pruner or {"name": "none"})


Stored = Callable[[Sequence[Trained]], Queue]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Makes a study that holds such trials, ended in this order, at the points of the random sampler."""
    made: dict[tuple[Trained, ...], Path] = {}

    def copied(trials: Sequence[Trained]) -> Queue:
        key = tuple(trials)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("made")
            fill(Storage(f"sqlite:///{made[key] / 'hpo.db'}", create=True), trials)
        folder = shutil.copytree(made[key], tmp_path_factory.mktemp("copied") / "copy")
        return Queue(Storage(f"sqlite:///{folder / 'hpo.db'}"), "s")

    return copied


def fill(storage: Storage, trials: Sequence[Trained]) -> None:
    storage.create_study("s", {}, "maximize")
    queue, study = Queue(storage, "s"), spec()
    for each in trials:
        slot = Slot(f"#{each.index}", each.replicate)
        queue.enqueue([Job(slot, each.index, tuple(range(each.n_seeds)))], queue.slots())
        trial = claim_first(queue)
        assert trial is not None
        point = draw(storage.study("s"), trial, study, SCHEMA.defaults, each.index, 5)
        reports = dict(enumerate(each.curve, start=1))
        storage.write(trial._trial_id, params=point, distributions=distributions(study), reports=reports)
        value = None if each.reason.startswith("diverged") else max(each.curve)
        attrs = {"reason": each.reason} if each.reason else {}
        storage.finish(trial._trial_id, each.state, value, attrs)


def drawn(queue: Queue, sampler: str, index: int, discarded: Sequence[int] = ()) -> dict[str, Any]:
    queue.enqueue([Job(Slot(f"#{index}"), index, (0,))], queue.slots())
    trial = claim_first(queue)
    assert trial is not None
    return draw(
        queue.storage.study("s"), trial, spec(sampler), SCHEMA.defaults, index, 5, discarded=discarded
    )


FIRSTS = [Trained(n, (0.1, 0.2 + n / 20, 0.3, 0.2), n_seeds=3) for n in range(5)]
REPLICATES = [
    *FIRSTS,
    Trained(3, (0.2, 0.9, 0.8, 0.1), replicate=1),
    Trained(4, (0.4, 0.1, 0.9, 0.1), replicate=1),
    Trained(3, (0.1, 0.3, 0.9, 0.1), replicate=2),
]


@pytest.mark.parametrize("sampler", LEARNERS)
def test_a_sampler_sees_a_point_once_with_the_mean_of_all_its_seeds(sampler: str, stored: Stored) -> None:
    many = drawn(stored(REPLICATES), sampler, 7)
    pooled = [
        *FIRSTS[:3],
        Trained(3, (0.12, (3 * 0.35 + 0.9 + 0.3) / 5, (3 * 0.3 + 0.8 + 0.9) / 5, 0.16)),
        Trained(4, ((3 * 0.1 + 0.4) / 4, (3 * 0.4 + 0.1) / 4, (3 * 0.3 + 0.9) / 4, 0.175)),
    ]
    assert many == drawn(stored(pooled), sampler, 7)


@pytest.mark.parametrize("sampler", LEARNERS)
@pytest.mark.parametrize(
    ("state", "reason"), [(TrialState.PRUNED, "diverged: NaN"), (TrialState.PRUNED, "cut short: by budget")]
)
def test_a_replicate_that_diverged_stands_for_its_point_and_one_cut_short_does_not(
    sampler: str, state: TrialState, reason: str, stored: Stored
) -> None:
    further = Trained(4, (0.1,), replicate=1, state=state, reason=reason)
    seen = drawn(stored([*FIRSTS, further]), sampler, 7)
    alone = Trained(4, (0.1,), state=state, reason=reason)
    expected = [*FIRSTS[:4], alone if reason.startswith(Reason.DIVERGED) else FIRSTS[4]]
    assert seen == drawn(stored(expected), sampler, 7)


@pytest.mark.parametrize("sampler", LEARNERS)
def test_a_sampler_does_not_see_a_discarded_trial(sampler: str, stored: Stored) -> None:
    seen = drawn(stored(REPLICATES), sampler, 7, discarded=[3])
    without = [each for each in REPLICATES if each.index != 3]
    assert seen == drawn(stored(without), sampler, 7)
    assert seen != drawn(stored(REPLICATES), sampler, 7)


@pytest.mark.parametrize("sampler", LEARNERS)
def test_another_attempt_at_a_point_takes_the_place_of_the_first(sampler: str, stored: Stored) -> None:
    late = [*FIRSTS[:1], *FIRSTS[2:], FIRSTS[1]]
    calm, disturbed = stored(FIRSTS), stored(late)
    assert drawn(calm, sampler, 5) == drawn(disturbed, sampler, 5)


def verdicts(queue: Queue, options: dict[str, Any], discarded: Sequence[int] = ()) -> list[bool]:
    storage, index = queue.storage, 20
    queue.enqueue([Job(Slot(f"#{index}"), index, (0, 1, 2))], queue.slots())
    trial = claim_first(queue)
    assert trial is not None
    study = for_pruner(storage.study("s"), lambda: discarded)
    judge = TrialPruner(build_pruner(spec(pruner=options), Runs(EPOCHS, 2)), study, EPOCHS)
    said = []
    for epoch, value in enumerate((0.1, 0.28, 0.29), start=1):
        storage.write(trial._trial_id, reports={epoch: value})
        said.append(judge.should_prune(partial(storage.trial, trial._trial_id), epoch))
    return said


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_a_pruner_compares_with_the_first_replicate_of_each_point(name: str, stored: Stored) -> None:
    options = {"name": name, **({"percentile": 25.0} if name == "percentile" else {})}
    first = verdicts(stored(FIRSTS), options)
    assert verdicts(stored(REPLICATES), options) == first
    assert any(first)
    # with a point less there are too few to judge by
    assert not any(verdicts(stored(REPLICATES), options, discarded=[0]))


# --- the same by workers ---------------------------------------------------------------------------------

RECIPE = """
import os, pathlib, random, signal, hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(3, ge=1, le=9)
    level: float = hpo.Field(0.5, ge=0, le=1)
    width: int = hpo.Field(8, ge=1, le=1024)

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        noise = random.Random(f"{seed} {params}").gauss(0, 0.002)
        killer = pathlib.Path(__file__).with_name("kill")
        for epoch in range(resume["epoch"] + 1 if resume else 1, params.epochs + 1):
            if epoch == 2 and killer.exists():
                killer.unlink()
                os.kill(os.getpid(), signal.SIGTERM)
            value = params.level * epoch / 10 + noise + params.width / 10**5
            yield hpo.Epoch({"accuracy": value}, state={"epoch": epoch})
    def test(self, params, data, state):
        return {"accuracy": 0.5}
"""


def search(trials: int, sampler: str, options: str = "", highest: float = 1.0) -> str:
    axes = f"level = {{low = 0.0, high = {highest}}}\nwidth = {{low = 8, high = 64, log = true}}"
    return f'trials = {trials}\n[search]\n{axes}\n[sampler]\nname = "{sampler}"\n{options}\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for recipe, studies and plans."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def planned(out: Path, study: str, **given: Any) -> Plan:
    name = simulated.write(out.parent, RECIPE, {})
    (out.parent / "studies" / "s.toml").write_text(study)
    sizes = {"data": "digits", "limit_train": 40, "limit_valid": 20, "final_seeds": 1, "recipe": name}
    return find_or_create_plan(out, studies=out.parent / "studies", given={**sizes, **given})


def worked(plan: Plan, out: Path, n_trials: int | None = None) -> Plan:
    limits = Limits(max_trials=n_trials)
    assert work(plan.storage, out=out, studies=["s"], limits=limits) is None
    return plan


def points(plan: Plan) -> dict[int, dict[str, Any]]:
    trials = [each for each in plan.trials("s") if each.params and not each.user_attrs["replicate"]]
    return {each.user_attrs["index"]: each.params for each in trials}


def test_a_worker_leaves_discarded_trials_out_of_what_the_sampler_learns_from(place: Path) -> None:
    by_chance = points(worked(planned(place / "chance", search(4, "random")), place / "chance"))
    plan = worked(planned(place / "out", search(4, "tpe", "n_startup_trials = 3")), place / "out", 3)
    discard(plan, "s", plan.trials("s")[1], "broken")
    found = points(worked(plan, place / "out"))
    assert found == by_chance  # two points that count are too few to learn from


def test_a_worker_shows_the_sampler_points_and_not_replicates(place: Path) -> None:
    race = {"seeds": "race", "max_seeds": 6, "delta": 0.0}
    by_chance = points(
        worked(planned(place / "chance", search(5, "random", "", 0.01), **race), place / "chance")
    )
    startup = "n_startup_trials = 5"
    plan = planned(place / "out", search(3, "tpe", startup, 0.01), **race)
    worked(plan, place / "out", 5)
    assert [trial.user_attrs["replicate"] for trial in plan.trials("s")][:5] == [0, 0, 0, 1, 1]
    plan = planned(place / "out", search(5, "tpe", startup, 0.01), **race)
    assert points(worked(plan, place / "out")) == by_chance


def test_a_worker_prunes_by_no_discarded_trial(place: Path) -> None:
    study = '[search]\nlevel = [0.9, 0.1]\n[pruner]\nname = "median"\nn_startup_trials = 1\n'
    plan = worked(planned(place / "out", study), place / "out", 1)
    discard(plan, "s", plan.trials("s")[0], "broken")
    trials: list[FrozenTrial] = worked(plan, place / "out").trials("s")
    assert [each.state for each in trials] == [TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.parametrize("sampler", LEARNERS)
def test_a_worker_alone_draws_after_a_kill_what_it_would_have_drawn(sampler: str, place: Path) -> None:
    study = search(8, sampler, "\n".join(f"{key} = {value}" for key, value in LEARNERS[sampler].items()))
    calm = points(worked(planned(place / "calm", study), place / "calm"))
    plan = worked(planned(place / "out", study), place / "out", 4)
    (place / "kill").touch()
    assert work(plan.storage, out=place / "out", studies=["s"]) is not None
    assert points(worked(plan, place / "out")) == calm
    assert len(plan.trials("s")) == 9
