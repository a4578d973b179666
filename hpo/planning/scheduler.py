"""What is to be done next: an idempotent function of the database that any idle worker runs.

A study is queued once its parent has decided, at most a few of its trials at a time; what was lost is
queued again; a study whose points have all ended decides; when all have decided comes the confirmation,
where there is one, and then the final stage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from hpo._text import point_text
from hpo.errors import PointsFailedError
from hpo.planning.claims import cell_jobs
from hpo.planning.closing import closing
from hpo.planning.confirmation import DIVERGED, FAILED, Arms, Trained, conclude, weigh
from hpo.planning.crossing import crossing_jobs, price_of
from hpo.planning.decisions import (
    Candidate,
    Closed,
    Cut,
    Inherited,
    candidate,
    decide,
    epochs_of,
    was_cut_short,
)
from hpo.planning.inheritance import (
    arms_of,
    best_decided,
    constraints_on,
    context_of,
    control_config,
    decided_trial,
    inherited_by,
)
from hpo.planning.manifest import StudyRecord, deleted_final_trial
from hpo.planning.plan import CLAIMS, CONFIRM, CONTROL_SLOT, FINAL, FINAL_SLOT, PRICE, Plan
from hpo.planning.race import Curves, RaceResult, Standing, Stop, looks, race, result_of
from hpo.planning.samplers import distributions
from hpo.space.parameters import ParamValues, canonical_json
from hpo.space.schema import Rules
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Job, Queue, Reason, Slot, Slots, SlotState, reason_of, slot_of, told_state
from hpo.storage.storage import Storage
from hpo.storage.trials import id_of

NOT_DRAWN = -1
"""The index of a control, and of a known point that is trained: they come before what a study draws."""
MIN_WAITING = 32
"""Optuna reads every unfinished trial at each query: 3,000 WAITING ones made a claim take 487 ms."""


def advance(plan: Plan, names: Sequence[str] | None = None) -> bool:
    """Queue what can be tried, decide what has ended; an idempotent function of the database.

    Args:
        plan: to be advanced.
        names: the studies to serve, as from `with_ancestors`; None: all, and the final stage.

    Returns:
        Whether everything asked for has ended.
    """
    ended: dict[str, bool] = {}
    for name in plan.all_names[:-1] if names is None else names:  # parents come before children
        if name in plan.specs:
            ended[name] = _advance_study(plan, name, ended)
        elif name == CLAIMS:
            ended[name] = _advance_cells(plan)
        elif name == PRICE:
            ended[name] = _advance_price(plan)
        else:
            ended[name] = all(ended.values()) and _advance_confirmation(plan)
    if names is not None or not all(ended.values()):
        return all(ended.values())
    return _advance_final(plan)


def _advance_study(plan: Plan, name: str, ended: Mapping[str, bool]) -> bool:
    record = plan.record(name)
    queue = Queue(plan.storage, name)
    slots = queue.slots()
    decided = record.decision
    if decided is not None and decided.params:  # one without was made for want of any result: look again
        return _have_ended(plan, queue, slots, record.closed)
    inherited, parent = inherited_by(plan, name), plan.specs[name].inherits
    if inherited is None and parent is not None:
        return ended[parent]  # without a result: there is nothing to go on from
    jobs = study_jobs(plan, name, inherited)
    if not slots.attempts and inherited is not None and not _begin(plan, name, inherited):
        return False  # it was taken back meanwhile
    if record.n_points != len(jobs):
        plan.storage.set_study_attr(queue.study_id, "n_points", len(jobs))
    states = [slots.state(job.slot) for job in jobs]
    # while trials run, it is for those who begin others to see what is left
    may_close = SlotState.WAITING in states and SlotState.RUNNING not in states
    closed = closing(plan, name) if may_close else record.closed
    if closed is None:
        _enqueue(plan, queue, jobs, states, slots)
        if any(state.is_open for state in states):
            return False
    elif not _have_ended(plan, queue, slots, closed):
        return False
    raced = None
    if plan.races:
        is_closed = closed is not None and closed.ends_race
        raced = _race(plan, name, inherited, jobs, slots, record.discarded, is_closed=is_closed)
    if raced is not None and raced.due:
        _enqueue_further(plan, queue, raced.due, slots)
        return False
    points = {job.slot: state for job, state in zip(jobs, states, strict=True) if job.slot != CONTROL_SLOT}
    tried = [_judged(slots, slot, raced) for slot in points if not slots.never_began(slot)]
    decision = decide(
        name,
        _deciding(plan, tried, record, inherited),
        inherited,
        _control(plan, name, inherited, slots, raced),
        plan.objective,
        plan.schema,
        always=plan.options.adopt == "always",
        remark=_exhausted(plan.spec(name), len(points)),
        race=raced.result if raced else None,
        cut=_cut(points, slots, closed, raced),
        objectives=plan.objectives_of(name),
        choice=plan.specs[name].choice,
    )
    # unless somebody has asked for more trials or decided since
    return plan.storage.swap_study_attr(
        queue.study_id,
        "decision",
        decision.model_dump(mode="json"),
        expected={
            "definition": record.definition,
            "decision": decided and decided.model_dump(mode="json", exclude_unset=True),
            "discarded": {str(number): why for number, why in record.discarded.items()} or None,
            "trained_first": list(record.trained_first) or None,
        },
    )


def _begin(plan: Plan, name: str, inherited: Inherited) -> bool:
    """Write down what a study starts from, unless that is not what its parent decided any more."""
    parent, elsewhere = plan.specs[name].inherits, dict[int, dict[str, Any]]()
    if parent is not None and plan.options.inherit == "winners":
        stored = plan.storage.study_attrs()[parent].get("decision")
        elsewhere[plan.storage.study_id(parent)] = {"decision": stored}
        if inherited_by(plan, name) != inherited:
            return False
    start = inherited.model_dump(mode="json")
    study_id = plan.storage.study_id(name)
    return plan.storage.swap_study_attr(study_id, "inherited", start, expected={}, elsewhere=elsewhere)


def _have_ended(plan: Plan, queue: Queue, slots: Slots, closed: Closed | None) -> bool:
    """Return whether nothing is open of a study that has decided or is closed; queue again what was lost.

    `hpo retry` may have queued points since; one of them may have been lost again. Of a study that is closed
    only those are queued again that had begun: they end with what they have reached.
    """
    open_ = [s for s in slots.attempts if slots.state(s).is_open]
    if closed is not None:
        open_ = [s for s in open_ if slots.queued(s) or slots.was_under_way(s)]
    missing = [slot for slot in open_ if not slots.queued(slot)]
    queue.enqueue(_jobs_again(plan, slots, missing), slots)
    return not open_


def _deciding(
    plan: Plan,
    points: Sequence[Sequence[FrozenTrial]],
    record: StudyRecord,
    inherited: Inherited | None,
) -> Iterator[list[FrozenTrial]]:
    """Return the trials of each point that decide.

    Where none has a result, and nothing inherited could be kept, what was cut short decides.
    """
    has_result = any(t.state == TrialState.COMPLETE for point in points for t in point)
    counts = was_cut_short if inherited is None and not has_result else _is_complete
    return _whole(plan, points, counts, without=record.discarded)


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _cut(
    points: Mapping[Slot, SlotState], slots: Slots, closed: Closed | None, raced: _Raced | None
) -> Cut | None:
    """Return what was cut from a study; None: nothing."""
    n_short = sum(any(map(was_cut_short, slots.attempts.get(slot, ()))) for slot in points)
    if closed is None and not n_short:
        return None
    n_ended = sum(not state.is_open for state in points.values()) - n_short
    return Cut(
        closed=closed,
        n_points=len(points),
        n_ended=n_ended,
        n_cut_short=n_short,
        was_racing=raced is not None and raced.is_cut,
    )


def _enqueue(
    plan: Plan, queue: Queue, jobs: Sequence[Job], states: Sequence[SlotState], slots: Slots
) -> None:
    waiting = [job for job, state in zip(jobs, states, strict=True) if state == SlotState.WAITING]
    missing = [job for job in waiting if not slots.queued(job.slot)]
    room = max(MIN_WAITING, 2 * states.count(SlotState.RUNNING)) - (len(waiting) - len(missing))
    queue.enqueue([_with_drawn_params(plan, job, slots) for job in missing[: max(0, room)]], slots)


# --- the race --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Raced:
    """Where the race of a study stands."""

    due: Sequence[Slot]
    """What it needs next, as far as that is not trained yet; nothing where it is over."""
    hopeless: Collection[str]
    """Points that cannot win, whatever their seeds so far say."""
    n_replicates: Mapping[str, int]
    """By point, how many were judged; none of those of which none was."""
    result: RaceResult | None
    """None: it is not over."""
    is_cut: bool = False
    """Whether it was closed while seeds were still due."""


def _race(
    plan: Plan,
    name: str,
    inherited: Inherited | None,
    jobs: Sequence[Job],
    slots: Slots,
    discarded: Container[int],
    *,
    is_closed: bool,
) -> _Raced | None:
    """Judge the points of a study by all their replicates.

    Args:
        plan: that the study belongs to.
        name: of the study.
        inherited: the configuration that it started from.
        jobs: its points; each has ended its first replicate, unless the study is closed.
        slots: of the study.
        discarded: the trials that do not count.
        is_closed: the study takes no more seeds.

    Returns:
        None where the study was closed before any point had its first seeds.
    """
    control = _control_slot(plan, name, inherited)
    points = sorted(
        (job.slot.point for job in jobs), key=lambda point: control is None or point != control.point
    )
    curves: dict[str, Curves] = {}
    gone: dict[str, Stop] = {}
    for point in points:
        done, stop = _replicates(slots, point, is_closed=is_closed)
        if any(trial.number in discarded for trial in done):
            done, stop = [], Stop.DISCARDED
        if stop is not None:
            gone[point] = stop
        if done:
            curves[point] = np.concatenate(_of_equal_length(_curves(plan, done)))
    if is_closed and not curves:
        return None
    max_seeds = plan.options.max_seeds
    found = race(curves, plan.delta, max_seeds, gone, is_closed=is_closed)
    if found.due:
        return _Raced([Slot(point, found.block) for point in found.due], (), {}, None)
    first_seeds = len(plan.seeds)
    standings = {point: Standing(first_seeds, gone[point]) for point in points if point in gone}
    standings |= found.standings  # of a study that was closed some points have none
    firsts = {slots.accepted_or_latest(Slot(point)).number: each for point, each in standings.items()}
    return _Raced(
        (),
        gone.keys(),
        {point: looks(max_seeds).index(each.n_seeds) + 1 for point, each in found.standings.items()},
        result_of(firsts.items(), plan.delta, max_seeds),
        is_cut=found.is_cut,
    )


def _judged(slots: Slots, slot: Slot, raced: _Raced | None) -> list[FrozenTrial]:
    """Return the attempts at a point that may decide: in a race, those of the replicates it was judged by."""
    if raced is None:
        return slots.attempts_at(slot.point)
    if slot.point in raced.hopeless:
        return []
    return slots.attempts_at(slot.point, raced.n_replicates.get(slot.point, 0))


def _replicates(slots: Slots, point: str, *, is_closed: bool) -> tuple[list[FrozenTrial], Stop | None]:
    """Return the COMPLETE trials of a point by replicate, and why no more can follow, if none can.

    What was cut short of a study that is closed is as if it had not begun: its rivals got no more, either.
    """
    done: list[FrozenTrial] = []
    for slot in slots.replicates(point):
        trial, state = slots.accepted_or_latest(slot), slots.state(slot)
        if state == SlotState.PRUNED and not (is_closed and was_cut_short(trial)):
            return done, _STOPS.get(reason_of(trial), Stop.PRUNED)
        if state == SlotState.FAILED:
            return done, Stop.FAILED
        if state != SlotState.COMPLETE:
            break
        done.append(trial)
    return done, None


_STOPS: dict[str, Stop] = {
    Reason.DIVERGED: Stop.DIVERGED,
    Reason.INFEASIBLE: Stop.INFEASIBLE,
    Reason.CUT_SHORT: Stop.CUT_SHORT,
}
_CURVES: WeakKeyDictionary[Storage, dict[int, Curves]] = WeakKeyDictionary()
"""Of trials that have ended, which never change: who looks at a race reads each of them once."""


def _curves(plan: Plan, trials: Sequence[FrozenTrial]) -> list[Curves]:
    """Return the scores of COMPLETE trials, each by seed and epoch."""
    known = _CURVES.setdefault(plan.storage, {})
    for trial in plan.storage.whole([id_of(trial) for trial in trials if id_of(trial) not in known]):
        scores = [
            [plan.objective.score(seed["metrics"][plan.objective.name]) for seed in epoch]
            for epoch in epochs_of(trial.user_attrs)
        ]
        known[id_of(trial)] = np.array(scores, dtype=np.float64).T
    return [known[id_of(trial)] for trial in trials]


def _of_equal_length(curves: Sequence[Curves]) -> list[Curves]:
    """Return curves up to the epoch that all have: a loop of a recipe's own may end early."""
    n_epochs = min(each.shape[1] for each in curves)
    return [each[:, :n_epochs] for each in curves]


def _enqueue_further(plan: Plan, queue: Queue, due: Sequence[Slot], slots: Slots) -> None:
    """Queue further replicates of points, each with the parameters of the first."""
    states = [slots.state(slot) for slot in due]
    missing = [
        slot
        for slot, state in zip(due, states, strict=True)
        if state == SlotState.WAITING and not slots.queued(slot)
    ]
    n_queued = states.count(SlotState.WAITING) - len(missing)
    room = max(MIN_WAITING, 2 * states.count(SlotState.RUNNING)) - n_queued
    these = missing[: max(0, room)]
    firsts = _jobs_again(plan, slots, [Slot(slot.point) for slot in these])
    jobs = [
        replace(first, slot=slot, seeds=plan.seeds_of(slot.replicate))
        for first, slot in zip(firsts, these, strict=True)
    ]
    queue.enqueue(jobs, slots)


def _control(
    plan: Plan, name: str, inherited: Inherited | None, slots: Slots, raced: _Raced | None
) -> Candidate | None:
    if inherited is None:
        return None
    slot, objectives = _control_slot(plan, name, inherited), plan.specs[name].objectives or ()
    if slot is None:
        assert inherited.source is not None
        source = inherited.source
        return candidate(source.study, [decided_trial(plan, source)], plan.objective, objectives)
    # one that got no further seeds is compared all the same, by those that it has
    judged = None if raced is None else raced.n_replicates.get(slot.point)
    (trials,) = _whole(plan, [slots.attempts_at(slot.point, judged)], _is_complete)
    return candidate(name, trials, plan.objective, objectives)


def _control_slot(plan: Plan, name: str, inherited: Inherited | None) -> Slot | None:
    """Return the slot of this study that has the inherited configuration; None where none has.

    In a race the control gets further seeds as all others do, which no earlier study may have trained.
    """
    if inherited is None or (inherited.source is not None and not plan.races):
        return None
    return _own_control(plan, name, inherited) or CONTROL_SLOT


def _whole(
    plan: Plan,
    points: Sequence[Sequence[FrozenTrial]],
    counts: Callable[[FrozenTrial], bool],
    without: Container[int] = (),
) -> Iterator[list[FrozenTrial]]:
    """Yield the trials of each point that count; only a few are in memory at once."""
    ids = [[id_of(t) for t in point if counts(t) and t.number not in without] for point in points]
    trials = plan.storage.whole([trial_id for of_point in ids for trial_id in of_point])
    return ([next(trials) for _ in of_point] for of_point in ids)


def _advance_cells(plan: Plan) -> bool:
    """Queue the cells that claims lack; return whether nothing is open, and nothing lacking."""
    queue = Queue(plan.storage, CLAIMS)
    slots = queue.slots()
    states = [slots.state(slot) for slot in slots.attempts]
    again = [slot for slot in slots.attempts if slots.state(slot).is_open and not slots.queued(slot)]
    queue.enqueue(_jobs_again(plan, slots, again), slots)
    room = max(MIN_WAITING, 2 * states.count(SlotState.RUNNING)) - states.count(SlotState.WAITING)
    jobs = cell_jobs(plan, slots)
    queue.enqueue(jobs[: max(0, room)], slots)
    n_points = len(slots.attempts) + len(jobs)
    if plan.record(CLAIMS).n_points != n_points:
        plan.storage.set_study_attr(queue.study_id, "n_points", n_points)
    return not jobs and not any(state.is_open for state in states)


def _advance_price(plan: Plan) -> bool:
    queue = Queue(plan.storage, PRICE)
    slots, jobs = queue.slots(), crossing_jobs(plan)
    states = [slots.state(job.slot) for job in jobs]
    _enqueue(plan, queue, jobs, states, slots)
    if any(state.is_open for state in states):
        return False
    known = plan.record(PRICE).price
    if known is None or known.n_tried != len(jobs):
        found = price_of(plan).model_dump(mode="json")
        plan.storage.set_study_attr(queue.study_id, "price", found)
    return True


def _advance_confirmation(plan: Plan) -> bool:
    record = plan.record(CONFIRM)
    queue = Queue(plan.storage, CONFIRM)
    slots = queue.slots()
    if record.confirmation is not None:
        return _have_ended(plan, queue, slots, record.closed)
    if record.arms is None:
        decisions = plan.stored_decisions()
        found = arms_of(plan)
        if found is None:
            return True
        # of two that begin at once one is first
        begun = found.model_dump(mode="json")
        if not plan.storage.swap_study_attr(
            queue.study_id, "arms", begun, expected={"arms": None}, elsewhere=decisions
        ):
            return False
        return _advance_confirmation(plan)
    arms, scores = record.arms, _scores(plan, slots)
    weighed = weigh(arms, scores, plan.objective, plan.delta)
    is_running = any(slots.state(slot) == SlotState.RUNNING for slot in slots.attempts)
    closed = record.closed if is_running or not weighed.due else closing(plan, CONFIRM)
    if weighed.due and closed is None:
        jobs = _confirmation_jobs(plan, arms, weighed.due)
        _enqueue(plan, queue, jobs, [slots.state(job.slot) for job in jobs], slots)
        return False
    confirmation = conclude(
        arms,
        weighed,
        scores,
        constraints_on(plan, arms.chosen.study),
        plan.objective,
        plan.schema,
        keep_equivalent=plan.options.keep == "equivalent",
        has_own_splits=_has_own_splits(plan, slots),
        closed=closed,
    )
    return plan.storage.swap_study_attr(
        queue.study_id, "confirmation", confirmation.model_dump(mode="json"), expected={"confirmation": None}
    )


def _confirmation_jobs(plan: Plan, arms: Arms, due: Sequence[Trained]) -> list[Job]:
    places = {arm: index for index, arm in enumerate(arms.configs)}
    return [Job(Slot(arm, place), places[arm], (plan.confirm_seed(place),)) for arm, place in due]


def _scores(plan: Plan, slots: Slots) -> dict[Trained, float]:
    """Return the score of each seed of the confirmation that has ended."""
    scores = {}
    for slot in slots.attempts:
        trial, state = slots.accepted_or_latest(slot), slots.state(slot)
        if state == SlotState.COMPLETE and trial.value is not None:
            scores[slot.point, slot.replicate] = plan.objective.score(trial.value)
        elif not state.is_open and not was_cut_short(trial):  # nothing prunes here: what is PRUNED diverged
            scores[slot.point, slot.replicate] = FAILED if state == SlotState.FAILED else DIVERGED
    return scores


def _has_own_splits(plan: Plan, slots: Slots) -> bool:
    """Return whether the seeds of the confirmation drew their own validation parts, as workers noted."""
    trained = (trial for slot in slots.attempts if (trial := slots.accepted(slot)))
    first = next(trained, None)
    return first is not None and "split_seed" in plan.storage.trial(id_of(first)).user_attrs


def _advance_final(plan: Plan) -> bool:
    decisions = plan.stored_decisions() if plan.record(FINAL).inherited is None else {}
    best = best_decided(plan)
    if best is None:
        return True
    opened = plan.record(FINAL).test_opened  # refuses, where somebody has deleted the study
    queue = Queue(plan.storage, FINAL)
    slots = queue.slots()
    numbers = {trial.number for attempts in slots.attempts.values() for trial in attempts}
    if opened is not None and opened not in numbers:
        raise deleted_final_trial(plan.storage, opened)
    if not slots.attempts and decisions and not plan.begin_final(best, decisions):
        return False  # somebody was quicker
    if slots.state(FINAL_SLOT) == SlotState.WAITING and not slots.queued(FINAL_SLOT):
        queue.enqueue([Job(FINAL_SLOT, 0, plan.final_seeds)], slots)
    return not slots.state(FINAL_SLOT).is_open


def study_jobs(plan: Plan, name: str, inherited: Inherited | None) -> list[Job]:
    """Return the ordered jobs of a study: its control first where it trains one, then its points."""
    study = plan.spec(name)
    if study.is_grid:
        known = canonical_json(context_of(plan, name, inherited))
        jobs = list(_grid_jobs(study, study.parameters.rules, known, plan.seeds))
    else:
        context, axes = context_of(plan, name, inherited), distributions(study)
        # what is inherited may break a constraint that held with other values
        first = [each for each in plan.record(name).trained_first if study.feasible({**context, **each})]
        jobs = [Job(Slot(canonical_json(point)), NOT_DRAWN, plan.seeds, point, axes) for point in first]
        count = n_samples(study, context, len(first))
        jobs += [Job(Slot(f"#{index}"), index, plan.seeds) for index in range(count)]
    if _control_slot(plan, name, inherited) == CONTROL_SLOT:
        jobs.insert(0, Job(CONTROL_SLOT, NOT_DRAWN, plan.seeds))
    return jobs


@lru_cache(maxsize=16)
def _grid_jobs(study: StudySpec, rules: Rules, known: str, seeds: tuple[int, ...]) -> tuple[Job, ...]:
    """Return the points of a grid over a context; every look asks for them, and 10,000 take 0.1 s.

    Studies are equal whether or not they know which points are the same, and what they cost, so that the
    rules are asked for as well.
    """
    axes = distributions(study)
    points = enumerate(study.grid(json.loads(known)))
    return tuple(Job(Slot(canonical_json(point)), index, seeds, point, axes) for index, point in points)


def n_samples(study: StudySpec, known: ParamValues, n_given: int = 0) -> int:
    """Return how many points a sampled study draws: no more than its space has besides those it is given."""
    return _n_samples(study, study.parameters.rules, canonical_json(known), n_given)


@lru_cache(maxsize=16)
def _n_samples(study: StudySpec, rules: Rules, known: str, n_given: int) -> int:
    listed = study.listed(json.loads(known))
    return min(study.trials or 0, len(listed) - n_given) if listed is not None else study.trials or 0


def _exhausted(study: StudySpec, n_points: int) -> str:
    """Return what is to be said where a space had fewer points than the study was to try."""
    if study.trials is None or n_points >= study.trials:
        return ""
    if n_points == 0:
        return "nothing in the space satisfies the constraints"
    return f"the space has {n_points} points, all tried"


def _own_control(plan: Plan, name: str, inherited: Inherited) -> Slot | None:
    """Return the grid point that is exactly the inherited configuration."""
    study = plan.spec(name)
    if not study.is_grid:
        return None
    control = canonical_json(plan.schema.effective(control_config(plan, inherited)))
    known = canonical_json(context_of(plan, name, inherited))
    return _grid_slot(study, study.parameters.rules, known, control)


@lru_cache(maxsize=16)
def _grid_slot(study: StudySpec, rules: Rules, known: str, key: str) -> Slot | None:
    """Return the point of a grid that trains what a key says, as `StudySpec.key` has it."""
    context = json.loads(known)
    found = (point for point in study.grid(context) if study.key(context, point) == key)
    point = next(found, None)
    return None if point is None else Slot(canonical_json(point))


def fail_stale_trials(plan: Plan, names: Sequence[str] | None = None) -> list[str]:
    """Close the trials whose worker is gone; `advance` queues them again.

    Args:
        plan: whose trials.
        names: only these studies; None: all, and the final stage.

    Returns:
        The trials that this call closed, as STUDY/NUMBER.
    """
    closed = []
    for name in plan.all_names if names is None else names:
        numbers = Queue(plan.storage, name).fail_stale_trials(plan.options.lease_seconds)
        closed += [f"{name}/{number}" for number in numbers]
    return closed


def is_orphaned(plan: Plan, name: str, records: Mapping[str, StudyRecord] | None = None) -> bool:
    """Return whether a study never begins: its parent decided nothing, or never begins itself.

    Args:
        plan: that the study belongs to.
        name: of the study.
        records: as `Plan.records` has them, where they have been read already.
    """
    parent = plan.specs[name].inherits
    if parent is None or plan.options.inherit != "winners":
        return False
    records = records or plan.records()
    decision = records[parent].decision
    return is_orphaned(plan, parent, records) if decision is None else not decision.params


def is_control(plan: Plan, name: str, slot: Slot) -> bool:
    """Return whether a study's winner will be compared with this slot."""
    control = _control_slot(plan, name, inherited_by(plan, name)) if name in plan.specs else None
    return control is not None and slot.point == control.point


def retry(plan: Plan, names: Iterable[str] | None = None) -> tuple[list[str], list[str]]:
    """Queue every failed point once more, with its caps counted anew.

    Returns:
        What was queued, as "STUDY/NUMBER (reason) as STUDY/NUMBER"; and the trials that diverged, which would
        diverge again.
    """
    again, diverged = [], []
    for name in plan.all_names if names is None else names:
        queue = Queue(plan.storage, name)
        slots = queue.slots()
        failed = [slot for slot in slots.attempts if slots.state(slot) == SlotState.FAILED]
        queue.enqueue(_jobs_again(plan, slots, failed), slots, retry=True)
        again += _tried_again(name, queue.slots(), failed)
        accepted = [trial for slot in slots.attempts if (trial := slots.accepted(slot))]
        diverged += [f"{name}/{t.number}" for t in accepted if reason_of(t) == Reason.DIVERGED]
    return again, diverged


def waiting_again(plan: Plan, names: Iterable[str]) -> list[str]:
    """Return the trials of these studies that wait to be tried again, as `retry` does."""
    found = []
    for name in names:
        slots = Queue(plan.storage, name).slots()
        latest = {slot: trials[-1] for slot, trials in slots.attempts.items() if len(trials) > 1}
        again = [slot for slot, trial in latest.items() if trial.state == TrialState.WAITING]
        found += _tried_again(name, slots, again)
    return found


def _tried_again(name: str, slots: Slots, these: Iterable[Slot]) -> list[str]:
    found = []
    for slot in these:
        before, after = slots.attempts[slot][-2:]
        found.append(f"{name}/{before.number} ({reason_of(before)}) as {name}/{after.number}")
    return found


def _with_drawn_params(plan: Plan, job: Job, slots: Slots) -> Job:
    """Return the job with the parameters that an earlier attempt drew, if one did."""
    for outline in reversed(slots.attempts.get(job.slot, [])):
        trial = plan.storage.trial(id_of(outline))
        if "config" in trial.user_attrs:
            return _job_again(trial)
    return job


def _jobs_again(plan: Plan, slots: Slots, these: Sequence[Slot]) -> list[Job]:
    latest = [id_of(slots.attempts[slot][-1]) for slot in these]
    return [_job_again(trial) for trial in plan.storage.whole(latest)]


def _job_again(trial: FrozenTrial) -> Job:
    attrs = trial.user_attrs
    return Job(slot_of(trial), attrs["index"], tuple(attrs["seeds"]), trial.params, trial.distributions)


def require_result(plan: Plan, names: Sequence[str] | None) -> None:
    """Check that a finished run has something to show for every study asked for.

    Raises:
        PointsFailedError: points failed for good, or a study could decide nothing; the text names them.
    """
    failed, empty, advice = list[str](), list[str](), list[str]()
    for name in plan.all_names if names is None else names:
        slots = Queue(plan.storage, name).slots()
        broken = [slot for slot in slots.attempts if slots.state(slot) == SlotState.FAILED]
        for trial in plan.storage.whole([id_of(slots.attempts[slot][-1]) for slot in broken]):
            failed.append(f"{name}/{trial.number} ({point_text(trial.params, slot_of(trial).point)})")
            advice.append(f"`hpo show {name}/{trial.number}` says why, `hpo retry` tries again")
        if name == FINAL:
            final = slots.accepted(FINAL_SLOT)
            if final is not None and final.state != TrialState.COMPLETE:  # the same seeds would diverge again
                empty.append(f"{name}/{final.number} {final.user_attrs['reason']}: no answer on the test set")
                advice.append(f"`hpo show {name}/{final.number}` says more")
        elif name not in plan.specs:
            continue  # claims may stay open, and a confirmation has nothing to show where no study has
        elif is_orphaned(plan, name):
            empty.append(f"{name}: not begun, as {plan.specs[name].inherits} has nothing to go on from")
        elif not ((decision := plan.decision(name)) and decision.params):
            empty.append(f"{name}: no point has a result{_ended_badly(slots)}")
            advice.append(f"`hpo show {name}` says why")
    if failed or empty:
        said = [f"failed for good: {'; '.join(failed)}"] if failed else []
        raise PointsFailedError(f"{'; '.join([*said, *empty])}. {next(iter(advice), '')}".rstrip())


def _ended_badly(slots: Slots) -> str:
    """Return how the points of a study ended that has no result, in words."""
    words = Counter[str]()
    for slot in slots.attempts:
        reason = slots.accepted_or_latest(slot).user_attrs.get("reason", "")
        words[told_state(slots.state(slot).value, reason)] += 1
    counts = ", ".join(f"{count} {word}" for word, count in words.items())
    return f" ({counts})" if counts else ""
