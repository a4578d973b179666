"""What is read of trials, at every depth, beside Optuna's own reading of the same database."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.planning.history import for_pruner
from hpo.planning.pruners import PRUNERS, Runs, TrialPruner, build_pruner
from hpo.planning.samplers import distributions, draw
from hpo.planning.scheduler import advance
from hpo.planning.studies import read_studies
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Job, Queue, Reason, Slot, Slots, this_process
from hpo.storage.storage import Storage
from hpo.storage.trials import SECONDS_KEY, SEED_EPOCHS_KEY, id_of
from tests.support.plans import made_plan
from tests.support.queues import claim_first
from tests.support.recipes import SCHEMA

AXES = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_size": IntDistribution(10, 50),
    "optimizer": CategoricalDistribution(["adam", "sgd"]),
}
PARAMS = {"learning_rate": 0.003, "batch_size": 20, "optimizer": "sgd"}


@pytest.fixture
def storage(database_url: str) -> Storage:
    storage = Storage(database_url, create=True)
    storage.create_study("s", {}, "maximize")
    return storage


def made_storage(folder: Path) -> Storage:
    storage = Storage(f"sqlite:///{folder / 'hpo.db'}", create=True)
    storage.create_study("s", {}, "maximize")
    return storage


class Chance:
    """Does to a study, in a random order, all that workers and others do to it."""

    def __init__(self, storage: Storage, seed: int) -> None:
        self.storage, self.random = storage, random.Random(seed)
        self.queue, self.running = Queue(storage, "s"), list[FrozenTrial]()
        self.steps: list[Callable[[], object]] = [
            *[self.enqueue] * 2,
            *[self.claim] * 3,
            *[self.report] * 4,
            self.complete,
            self.prune,
            self.close,
            self.stranger,
        ]

    def step(self) -> None:
        """One change, or none where nothing runs."""
        self.random.choice(self.steps)()

    def enqueue(self) -> None:
        slots = self.queue.slots()
        jobs = [Job(Slot(f"p {n}"), n, (0, 1), PARAMS, AXES) for n in self.random.sample(range(6), 2)]
        self.queue.enqueue(jobs, slots, retry=self.random.random() < 0.2)

    def claim(self) -> None:
        if (trial := claim_first(self.queue)) is not None:
            self.running.append(trial)

    def report(self) -> None:
        if self.running:
            epoch, value = self.random.randint(1, 3), self.random.choice([0.1, 0.5, float("inf")])
            attrs = {f"epoch:{epoch}": [{"seed": 0, "metrics": {"macro_f1": 0.5}}]}
            trial = self.random.choice(self.running)
            self.storage.write(trial._trial_id, attrs=attrs, reports={epoch: value})

    def complete(self) -> None:
        if self.running:
            self.storage.finish(self.running.pop()._trial_id, TrialState.COMPLETE, self.random.random())

    def prune(self) -> None:
        if self.running:
            trial = self.running.pop(0)
            self.storage.finish(trial._trial_id, TrialState.PRUNED, attrs={"reason": "pruned: for a test"})

    def close(self) -> None:
        if self.running:
            reason = self.random.choice([Reason.ERROR, Reason.LOST, Reason.RELEASED])
            self.queue.close(self.running.pop(0)._trial_id, reason)

    def stranger(self) -> None:
        storage = self.storage.for_optuna
        trial_id = storage.create_new_trial(self.queue.study_id)
        storage.set_trial_system_attr(trial_id, "theirs", {"a": [1, None]})
        if self.random.random() < 0.5:
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])


KEPT = {"point", "replicate", "attempt", "index", "seeds", "reason", "audit"}
"""Of what samplers and pruners learn from."""


def test_trials_are_what_optuna_reads_and_outlines_stand_where_they_stand(storage: Storage) -> None:
    chance, watching = Chance(storage, seed=0), Storage(storage.url)
    study_id, states = storage.study_id("s"), set[str]()
    for number in range(100):
        chance.step()
        if number % 3:
            continue  # several things happen between two looks
        theirs = optuna.load_study(study_name="s", storage=storage._rdb).get_trials()
        whole = watching.trials(study_id)
        assert whole == theirs
        history = watching.study("s").get_trials()
        for trial in history:
            attrs = theirs[trial.number].user_attrs
            assert trial.user_attrs == {name: attrs[name] for name in KEPT & attrs.keys()}
            trial.user_attrs = attrs
        assert history == theirs
        outlined, slots = Queue(watching, "s").slots(), Slots.of(theirs)
        assert list(outlined.attempts) == list(slots.attempts)
        for slot in slots.attempts:
            assert outlined.state(slot) == slots.state(slot)
            states.add(slots.state(slot))
            assert outlined.queued(slot) == slots.queued(slot)
            assert outlined.next_attempt(slot) == slots.next_attempt(slot)
            accepted, ours = slots.accepted(slot), outlined.accepted(slot)
            assert (accepted and accepted._trial_id) == (ours and ours._trial_id)
            assert (accepted and accepted.value) == (ours and ours.value)
        first = watching.first_open([study_id])[study_id]
        ours_open = [t for t in theirs if not t.state.is_finished() and "point" in t.user_attrs]
        assert all(trial._trial_id >= first for trial in ours_open)
        waiting = [t._trial_id for t in ours_open if t.state == TrialState.WAITING]
        assert [trial_id for _, trial_id in watching.waiting([study_id], 1000)] == waiting
    assert {trial.state for trial in theirs} >= set(TrialState) - {TrialState.WAITING}
    assert states >= {"waiting", "running", "complete", "pruned"}


def test_whole_trials_come_in_the_order_asked_for_however_many(storage: Storage) -> None:
    queue = Queue(storage, "s")
    queue.enqueue([Job(Slot(f"p{n}"), n, (0,), PARAMS, AXES) for n in range(450)], Slots({}))
    trials = storage.trials(queue.study_id)
    assert [trial.number for trial in trials] == list(range(450))
    ids = [trial._trial_id for trial in trials]
    random.Random(0).shuffle(ids)
    assert [trial._trial_id for trial in storage.whole(ids)] == ids
    assert storage.numbered(queue.study_id, 449) == trials[449]
    assert storage.numbered(queue.study_id, 450) is None


def test_who_queues_from_an_old_look_queues_nothing_twice(storage: Storage) -> None:
    queue = Queue(storage, "s")
    jobs = [Job(Slot(f"p{n}"), n, (0,)) for n in range(3)]
    queue.enqueue(jobs[:1], Slots({}))
    old = queue.slots()
    Queue(Storage(storage.url), "s").enqueue(jobs[1:2], old)
    queue.enqueue(jobs[1:], old)
    assert [trial.user_attrs["index"] for trial in storage.trials(queue.study_id)] == [0, 1, 2]


SAMPLED = """
trials = 30
constraints = ["conv1_channels <= conv2_channels"]
[search]
conv1_channels = {low = 2, high = 32}
conv2_channels = {low = 2, high = 32}
learning_rate = {low = 1e-4, high = 1e-1, log = true}
"""


def learnt(tmp_path: Path, sampler: str) -> tuple[Storage, StudySpec, FrozenTrial]:
    """A sampled study with results, pruned trials, one at work, and one that is to be drawn."""
    (tmp_path / "s.toml").write_text(f'{SAMPLED}[sampler]\nname = "{sampler}"\n')
    (spec,) = read_studies(tmp_path, SCHEMA).values()
    storage = Storage(f"sqlite:///{tmp_path / 'hpo.db'}", create=True)
    storage.create_study("s", {}, "maximize")
    queue, known, chance = Queue(storage, "s"), SCHEMA.defaults, random.Random(0)
    axes = distributions(spec)
    queue.enqueue([Job(Slot(f"#{n}"), n, (0,)) for n in range(20)], Slots({}))
    for index in range(18):
        trial = claim_first(queue)
        assert trial is not None
        point = draw(storage.study("s"), trial, spec, known, index, 0)
        reports = {epoch: chance.random() for epoch in range(1, 5)}
        attrs = {f"epoch:{epoch}": [{"seed": 0}] for epoch in reports}
        storage.write(trial._trial_id, params=point, distributions=axes, attrs=attrs, reports=reports)
        for rung, epoch in enumerate((1, 4)):  # as successive halving leaves them
            storage.for_optuna.set_trial_system_attr(
                trial._trial_id, f"completed_rung_{rung}", reports[epoch]
            )
        if index < 17:
            state = TrialState.PRUNED if index % 5 == 4 else TrialState.COMPLETE
            storage.finish(trial._trial_id, state, max(reports.values()))
    last = claim_first(queue)
    assert last is not None
    return storage, spec, last


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_draw_from_histories_what_they_draw_from_whole_trials(sampler: str, tmp_path: Path) -> None:
    storage, spec, trial = learnt(tmp_path, sampler)
    theirs = optuna.load_study(study_name="s", storage=storage._rdb)
    known = SCHEMA.defaults
    for index in (18, 19):
        drawn = [draw(each, trial, spec, known, index, 7) for each in (storage.study("s"), theirs)]
        assert drawn[0] == drawn[1]
        assert drawn[0]["conv1_channels"] <= drawn[0]["conv2_channels"]  # type: ignore[operator]


PRUNER_OPTIONS = {
    "successive-halving": "reduction_factor = 2",
    "percentile": "percentile = 50.0",
    "patient": "patience = 1",
    "threshold": "lower = 0.5",
    "chance": "factor = 1.0\nat_most = 0.5",
}


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_pruners_judge_by_histories_as_by_whole_trials(pruner: str, tmp_path: Path) -> None:
    verdicts: list[list[bool]] = []
    for is_ours in (True, False):  # a database each: successive halving writes down what it has judged
        folder = tmp_path / str(is_ours)
        folder.mkdir()
        storage, _, trial = learnt(folder, "random")
        text = f'[search]\nbatch_size = [10]\n[pruner]\nname = "{pruner}"\n{PRUNER_OPTIONS.get(pruner, "")}'
        (folder / "s.toml").write_text(text)
        judge = build_pruner(read_studies(folder, SCHEMA)["s"], Runs(4, 2))
        theirs = optuna.load_study(study_name="s", storage=storage._rdb)
        verdicts.append([])
        for epoch, value in enumerate((0.3, 0.2, 0.1, 0.01), start=1):
            storage.write(trial._trial_id, reports={epoch: value})
            study = storage.study("s") if is_ours else theirs
            verdicts[-1].append(judge.prune(study, storage.trial(trial._trial_id)))
    assert verdicts[0] == verdicts[1]
    assert any(verdicts[0])


CURVE_EPOCHS, N_TRIALS = 6, 24
RUNS = Runs(CURVE_EPOCHS, 2)


def verdicts(folder: Path, pruner: str, seed: int, *, is_disturbed: bool) -> list[list[bool]]:
    """What a pruner says of trials with random curves, epoch by epoch, until it stops them.

    Where `is_disturbed`, every other trial is given up in its middle, and another attempt goes on with it:
    what it has by then is written at once.
    """
    folder.mkdir()
    text = f'[search]\nbatch_size = [10]\n[pruner]\nname = "{pruner}"\n{PRUNER_OPTIONS.get(pruner, "")}'
    (folder / "s.toml").write_text(text)
    spec, storage, chance = read_studies(folder, SCHEMA)["s"], made_storage(folder), random.Random(seed)
    queue, said = Queue(storage, "s"), list[list[bool]]()
    for number in range(N_TRIALS):
        # better and better: an early one must not keep out later ones by what it reached later itself
        level, middle = number / N_TRIALS + chance.random(), chance.randint(2, CURVE_EPOCHS)
        curve = [level + 0.2 * epoch + chance.gauss(0, 0.2) for epoch in range(1, CURVE_EPOCHS + 1)]
        job, n_done = Job(Slot(f"p {number}"), number, (0,), PARAMS, AXES), 0
        said.append([])
        for n_goal in (middle, CURVE_EPOCHS) if is_disturbed and number % 2 else (CURVE_EPOCHS,):
            queue.enqueue([job], queue.slots())
            trial = claim_first(queue)
            assert trial is not None
            read = partial(storage.trial, trial._trial_id)
            study = for_pruner(storage.study("s"), set)
            judge = TrialPruner(build_pruner(spec, RUNS), study, CURVE_EPOCHS)
            storage.write(trial._trial_id, reports=dict(enumerate(curve[:n_done], start=1)))
            judge.should_prune(read, n_done)
            while n_done < n_goal and not any(said[-1]):
                n_done += 1
                storage.write(trial._trial_id, reports={n_done: curve[n_done - 1]})
                said[-1].append(judge.should_prune(read, n_done))
            if any(said[-1]):
                storage.finish(trial._trial_id, TrialState.PRUNED, max(curve[:n_done]))
                break
            if n_done < CURVE_EPOCHS:
                queue.close(trial._trial_id, Reason.RELEASED)
            else:
                storage.finish(trial._trial_id, TrialState.COMPLETE, max(curve))
                break
    return said


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_trials_that_go_on_are_judged_as_if_nothing_had_been(pruner: str, tmp_path: Path) -> None:
    n_stopped = 0
    for seed in range(2):
        calm = verdicts(tmp_path / f"calm-{seed}", pruner, seed, is_disturbed=False)
        assert verdicts(tmp_path / f"disturbed-{seed}", pruner, seed, is_disturbed=True) == calm
        n_stopped += sum(map(any, calm))
    assert 0 < n_stopped < 2 * N_TRIALS


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_epochs_that_arrive_together_are_judged_as_if_they_had_come_one_by_one(
    pruner: str, tmp_path: Path
) -> None:
    text = f'[search]\nbatch_size = [10]\n[pruner]\nname = "{pruner}"\n{PRUNER_OPTIONS.get(pruner, "")}'
    bad_begin, good_begin = (0.5, 0.0, 0.0, 0.95, 0.97, 0.98), (0.8, 0.7, 0.9, 0.95, 0.97, 0.98)
    verdicts: list[list[bool]] = []
    for name, arrivals in (("one by one", range(1, CURVE_EPOCHS + 1)), ("together", (4, CURVE_EPOCHS))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "s.toml").write_text(text)
        spec, storage = read_studies(folder, SCHEMA)["s"], made_storage(folder)
        queue = Queue(storage, "s")
        slots = [Slot(f"p {number}") for number in range(8)]
        queue.enqueue([Job(slot, n, (0,), PARAMS, AXES) for n, slot in enumerate(slots)], queue.slots())
        verdicts.append([])
        for number in range(len(slots)):
            trial = claim_first(queue)
            assert trial is not None
            is_last = number >= len(slots) - 2
            curve = bad_begin if is_last and number % 2 else good_begin
            study = for_pruner(storage.study("s"), set)
            judge = TrialPruner(build_pruner(spec, RUNS), study, CURVE_EPOCHS)
            is_stopped, n_done = False, 0
            for n_arrived in arrivals if is_last else range(1, CURVE_EPOCHS + 1):
                reports = dict(enumerate(curve[n_done:n_arrived], start=n_done + 1))
                storage.write(trial._trial_id, reports=reports)
                n_done = n_arrived
                is_stopped |= judge.should_prune(partial(storage.trial, trial._trial_id), n_done)
            verdicts[-1].append(is_stopped)
            storage.finish(trial._trial_id, TrialState.COMPLETE, max(curve))
    assert verdicts[0] == verdicts[1]
    assert any(verdicts[0])


def test_after_the_last_epoch_nothing_is_asked(tmp_path: Path) -> None:
    judge = TrialPruner(optuna.pruners.ThresholdPruner(lower=1.0), made_storage(tmp_path).study("s"), 1)
    assert not judge.should_prune(lambda: pytest.fail("the trial was read"), 1)


def test_a_sampled_point_that_is_lost_keeps_what_was_drawn_for_it(tmp_path: Path) -> None:
    plan = made_plan(tmp_path, {"s": SAMPLED})
    advance(plan, ["s"])
    queue = Queue(plan.storage, "s")
    axes = distributions(plan.specs["s"])
    drawn = {"conv1_channels": 3, "conv2_channels": 5, "learning_rate": 0.01}
    first = claim_first(queue)
    assert first is not None
    plan.storage.write(first._trial_id, attrs={"config": drawn}, params=drawn, distributions=axes)
    queue.close(first._trial_id, Reason.LOST)
    plan.storage.claim(plan.storage.waiting([queue.study_id], 1)[0][1], this_process())
    advance(plan, ["s"])
    (_, again) = queue.slots().attempts[Slot("#0")]
    whole = plan.storage.trial(again._trial_id)
    assert (whole.params, whole.distributions) == (drawn, axes)
    assert whole.user_attrs["seeds"] == list(plan.seeds)


def test_what_all_attempts_trained_is_summed_by_study(storage: Storage) -> None:
    storage.create_study("other", {}, "maximize")
    ids, keys = [storage.study_id(name) for name in ("s", "other")], (SECONDS_KEY, SEED_EPOCHS_KEY)
    assert storage.sums(ids, keys) == {}
    queue = Queue(storage, "s")
    for number, seconds in enumerate((1.25, 1e-05, 3600)):
        queue.enqueue([Job(Slot(str(number)), number, (0,))], queue.slots())
        trial = claim_first(queue)
        assert trial is not None
        storage.write(id_of(trial), attrs={SECONDS_KEY: 0.5, SEED_EPOCHS_KEY: number})
        storage.write(id_of(trial), attrs={SECONDS_KEY: seconds})  # the last counts
        if number == 1:
            queue.close(id_of(trial), Reason.LOST)
    found = storage.sums(ids, keys)
    assert found == {(ids[0], SECONDS_KEY): pytest.approx(3601.25001), (ids[0], SEED_EPOCHS_KEY): 3}


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nine hours before UTC, in which databases have their times."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_trials_with_values_are_added_once_and_as_optuna_adds_them(storage: Storage) -> None:
    trials = {
        f"known {n} 1": create_trial(
            params=PARAMS, distributions=AXES, value=n / 10, user_attrs={"origin": f"row {n}"}
        )
        for n in range(3)
    }
    study_id = storage.study_id("s")
    first = dict(list(trials.items())[:2])
    assert [
        storage.enqueue(study_id, first),
        storage.enqueue(study_id, trials),
        storage.enqueue(study_id, trials),
    ] == [
        2,
        1,
        0,
    ]
    rdb = optuna.storages.RDBStorage(storage.url)
    study = optuna.load_study(study_name="s", storage=rdb)
    of_ours = study.trials
    study.add_trials(trials.values())
    of_optunas = study.trials[3:]
    rdb.remove_session()
    rdb.engine.dispose()
    for n, (ours, theirs) in enumerate(zip(of_ours, of_optunas, strict=True)):
        assert (ours.number, ours.state, ours.value) == (n, TrialState.COMPLETE, theirs.value)
        assert (ours.params, ours.distributions) == (theirs.params, theirs.distributions)
        assert ours.user_attrs["origin"] == f"row {n}"
        for mine, its in (
            (ours.datetime_start, theirs.datetime_start),
            (ours.datetime_complete, theirs.datetime_complete),
        ):
            assert mine is not None
            assert its is not None
            assert abs(mine - its) < timedelta(seconds=2)  # MariaDB keeps no fractions


def test_adding_a_trial_with_a_value_takes_one_statement(storage: Storage) -> None:
    """Of 100,000 known points every further one is felt; what is the same for all is written at once."""
    trials = {
        f"known {n} 1": create_trial(params=PARAMS, distributions=AXES, value=n / 10) for n in range(50)
    }
    said: list[str] = []

    @sqlalchemy.event.listens_for(storage._rdb.engine, "before_cursor_execute")
    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        said.append(statement)

    assert storage.enqueue(storage.study_id("s"), trials) == 50
    assert 50 <= len(said) <= 60
