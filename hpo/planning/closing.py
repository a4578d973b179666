"""Studies that end before all their points are tried: by a budget, by `[stop]`, or as somebody said so.

That a study is closed is written down once, as a fact, by whoever finds it: from then on it takes no more
points, what runs ends after its epoch, and the study decides by what there is.

How a budget is shared follows from what the database says of the training so far, and of what is to come:

- The final stage's part is kept back: what it takes at the rate of the dearest study so far, with a margin.
- The rest is shared among the studies that have not ended, and the confirmation, equally, but that nobody
  holds more than it needs: what one leaves goes to the others (max-min fairness).
- No point is begun that its study could not train to its end, as long as there is another to decide by. Of
  those that run together and cannot all be ended, the one that began first goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from optuna.trial import TrialState

from hpo._text import duration
from hpo.errors import InputError
from hpo.planning.decisions import By, Closed
from hpo.planning.inheritance import context_of
from hpo.planning.manifest import StudyRecord
from hpo.planning.plan import CONFIRM, FINAL, Plan
from hpo.planning.verdicts import LOOKS
from hpo.space.study_file import Stop
from hpo.storage.queue import Queue, Slot, Slots, SlotState
from hpo.storage.trials import SECONDS_KEY, SEED_EPOCHS_KEY

LOOK_SECONDS, LOOK_PAUSE = 1.0, 10.0
"""How long after a look the next one is due: so many times what it took, but not longer than a second."""
FINAL_MARGIN = 1.25
"""The final stage scores the test set, too, after every epoch, and noise makes epochs longer and shorter."""
MAX_FINAL_SHARE = 0.5
"""Where time is hardly enough for the final stage, or nobody knows, the search has the other half."""


@dataclass(frozen=True)
class Trained:
    """What was trained in a study, lost attempts included."""

    seconds: float = 0.0
    """Of the workers' time."""
    seed_epochs: float = 0.0
    """Epochs times seeds."""


def trained(plan: Plan) -> dict[str, Trained]:
    """Return what was trained so far in each study, the confirmation and the final stage."""
    ids = {name: plan.storage.study_id(name) for name in plan.all_names}
    sums = plan.storage.sums(list(ids.values()), (SECONDS_KEY, SEED_EPOCHS_KEY))
    return {
        name: Trained(sums.get((id_, SECONDS_KEY), 0.0), sums.get((id_, SEED_EPOCHS_KEY), 0.0))
        for name, id_ in ids.items()
    }


def budget_text(plan: Plan) -> str:
    """Return how much of its budget a plan has used, in words; empty where it has none."""
    if plan.options.budget is None:
        return ""
    return f"budget of {duration(plan.options.budget)}: {duration(_seconds(trained(plan)))} used"


def closing(plan: Plan, name: str, number: int | None = None, *, is_further: bool = False) -> Closed | None:
    """Return why a study takes no more points, which is written down when it is found; None where it does.

    Args:
        plan: that it belongs to.
        name: of the study.
        number: of a trial that is to be begun; None: one that nobody has queued yet.
        is_further: whether that trains further seeds of a point, which come after `[stop]`.
    """
    known = _mark(plan, name)
    if known is not None and not (is_further and not known.ends_race):
        return known
    if plan.options.budget is not None:
        found = trained(plan)
        left = _seconds_left(plan, name, plan.options.budget, found)
        if not _fits(plan, name, left, found, number):
            return _close(plan, name, _closed(plan, "budget"), known)
    stop = plan.specs[name].stop if name in plan.specs and not is_further else None
    if stop is not None and _is_done(plan, name, stop):
        return _close(plan, name, _closed(plan, "stop", stop))
    return None


class Ending:
    """Whether a running trial is to end before its last epoch.

    The final stage always has one epoch; and nothing limits what is trained for claims alone.

    Args:
        plan: that the trial belongs to.
        name: of its study.
        number: of the trial.
        is_further: whether it trains further seeds of a point of a race.
    """

    def __init__(self, plan: Plan, name: str, number: int, *, is_further: bool = False) -> None:
        self._plan, self._name, self._number, self._is_further = plan, name, number, is_further
        self._is_limited = name in plan.all_names
        self._next_look = -math.inf
        self._most_seconds = math.inf, math.inf
        """What study and plan may have trained by the next look."""

    def reached(self, n_epochs: int) -> Closed | None:
        """Return why the trial is to end now; None where it is to go on.

        Args:
            n_epochs: that it has had; 0: it is to be begun.
        """
        if not self._is_limited or (self._name == FINAL and n_epochs == 0):
            return None
        budget = self._plan.options.budget
        found = {} if budget is None else trained(self._plan)
        if self._name == FINAL:
            return None if budget is None or _seconds(found) < budget else _closed(self._plan, "budget")
        if time.monotonic() < self._next_look and not self._may_be_over(found):
            return None
        began = time.monotonic()
        closed = self._look(n_epochs, found)
        ended = time.monotonic()
        self._next_look = ended + min(LOOK_SECONDS, LOOK_PAUSE * (ended - began))
        return closed

    def _may_be_over(self, found: Mapping[str, Trained]) -> bool:
        of_study, of_plan = self._most_seconds
        return bool(found) and (found[self._name].seconds >= of_study or _seconds(found) >= of_plan)

    def _look(self, n_epochs: int, found: Mapping[str, Trained]) -> Closed | None:
        plan, name, budget = self._plan, self._name, self._plan.options.budget
        if n_epochs == 0:
            closed = closing(plan, name, self._number, is_further=self._is_further)
            if closed is not None:
                return closed
        known = _mark(plan, name)
        if known is not None and known.by in ("finish", "deadline"):
            return known  # that a study has enough is no reason to waste what is under way
        if budget is None:
            return None
        left = _seconds_left(plan, name, budget, found)
        self._most_seconds = found[name].seconds + left, _seconds(found) + left
        if _fits(plan, name, left, found, self._number, n_epochs):
            return None
        if known is not None and known.ends_race:
            return known
        return _close(plan, name, _closed(plan, "budget"), known)


def _mark(plan: Plan, name: str) -> Closed | None:
    mark = plan.storage.study_attr(plan.storage.study_id(name), "closed")
    return None if mark is None else Closed.model_validate(mark)


def _close(plan: Plan, name: str, closed: Closed, known: Closed | None = None) -> Closed:
    """Write down that a study takes no more points; return why, where somebody was quicker as he has it.

    Args:
        plan: that it belongs to.
        name: of the study.
        closed: why.
        known: why it takes no more points already, where it goes on with further seeds.
    """
    mark = closed.model_dump(mode="json")
    study_id = plan.storage.study_id(name)
    before = known and known.model_dump(mode="json")
    if plan.storage.swap_study_attr(study_id, "closed", mark, expected={"closed": before}):
        return closed
    return _mark(plan, name) or closed


def finish(plan: Plan, names: Iterable[str], *, by: By = "finish") -> list[str]:
    """Close studies that have not ended; they decide by what there is.

    Args:
        plan: that they belong to.
        names: of the studies, the confirmation among them.
        by: `finish` or `deadline`.

    Returns:
        Those that were closed by this call.

    Raises:
        InputError: nothing has been trained that could decide anything.
    """
    outlines = (plan.storage.outlines.of(plan.storage.study_id(name)) for name in plan.specs)
    if not any(t.state == TrialState.COMPLETE or t.last_step for of_study in outlines for t in of_study):
        raise InputError(
            f"{plan.storage.name}: no epoch of any trial has ended yet, so there is nothing to decide by; "
            "try again once one has"
        )
    records = plan.records()
    may_close = [name for name in names if name in plan.all_names and name != FINAL]
    open_ = [name for name in may_close if not _has_ended(records[name])]
    newly = [name for name in open_ if (known := records[name].closed) is None or not known.ends_race]
    for name in newly:
        _close(plan, name, _closed(plan, by), records[name].closed)
    return newly


def final_seconds(plan: Plan) -> float:
    """Return how long the final stage will train, as far as the search can tell; 0 before any epoch.

    Infinite where it trains on more data, and how many these are is not recorded.
    """
    return _final_seconds(plan, trained(plan))


def _closed(plan: Plan, by: By, stop: Stop | None = None) -> Closed:
    return Closed(
        by=by,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        budget_seconds=plan.options.budget if by == "budget" else None,
        patience=stop and stop.patience,
        delta=None if stop is None else _delta(plan, stop),
    )


# --- the budget ------------------------------------------------------------------------------------------


def _fits(
    plan: Plan,
    name: str,
    left: float,
    found: Mapping[str, Trained],
    number: int | None = None,
    n_epochs: int = 0,
) -> bool:
    """Return whether what a study may still train is enough for a trial, and those that began before it.

    Args:
        plan: that has the budget.
        name: of the study.
        left: as `_seconds_left` has it.
        found: what was trained so far.
        number: of the trial; None: of one that is not queued yet.
        n_epochs: that the trial has had.
    """
    if left <= 0:
        return False
    outlines = plan.storage.outlines.of(plan.storage.study_id(name))
    older = [t for t in outlines if t.state == TrialState.RUNNING and (number is None or t.number < number)]
    if not older and (n_epochs > 0 or not any(t.state == TrialState.COMPLETE for t in outlines)):
        return True
    rate = _rate(name, found)
    if rate is None:
        return True
    n_seeds, epochs = 1 if name == CONFIRM and plan.confirms else len(plan.seeds), _epochs(plan, name)
    n_left = sum(epochs - (t.last_step or 0) for t in older) + epochs - n_epochs
    return rate * n_seeds * n_left <= left


def _seconds_left(plan: Plan, name: str, budget: float, found: Mapping[str, Trained]) -> float:
    """Return how much of its share of the budget a study has left."""
    records = plan.records()
    for_search = budget - min(_final_seconds(plan, found), MAX_FINAL_SHARE * budget)
    open_ = {each for each in found if each != FINAL and not _has_ended(records[each])}
    needs = {each: _need(plan, each, records[each], found) for each in open_ | {name}}
    for_open = for_search - _seconds({each: found[each] for each in found if each not in needs})
    level = fair_level(for_open, needs.values())
    # of the others none holds more than it needs, so that what the needs say of this one does not matter
    for_others = math.fsum(min(need, level) for each, need in needs.items() if each != name)
    return min(for_open - for_others - found[name].seconds, for_search - _seconds(found))


def fair_level(capacity: float, needs: Collection[float]) -> float:
    """Return what nobody gets more of, where a capacity is shared max-min fairly; infinite if all fits."""
    left = capacity
    for place, need in enumerate(sorted(needs)):
        fair = left / (len(needs) - place)
        if need > fair:
            return fair
        left -= need
    return math.inf


def _seconds(found: Mapping[str, Trained]) -> float:
    return math.fsum(each.seconds for each in found.values())


def _final_seconds(plan: Plan, found: Mapping[str, Trained]) -> float:
    """Return what the final stage takes at the rate of the dearest study."""
    rates = [each.seconds / each.seed_epochs for each in found.values() if each.seed_epochs]
    if not rates:
        return 0.0
    epochs = max(_epochs(plan, name) for name in plan.specs)
    return FINAL_MARGIN * max(rates) * epochs * len(plan.final_seeds) * _final_factor(plan)


def _final_factor(plan: Plan) -> float:
    """Return on how many times as many examples the final stage trains; infinite where nobody here knows."""
    identity, options = plan.identity, plan.options
    if options.final_data == "limited":
        return 1.0
    if options.limit_train is not None:
        return math.inf
    return 1.0 if options.final_data == "all" else (identity.n_train + identity.n_valid) / identity.n_train


def _need(plan: Plan, name: str, record: StudyRecord, found: Mapping[str, Trained]) -> float:
    """Return what a study takes in all if nothing is pruned; infinite while nobody knows."""
    so_far, rate = found[name].seconds, _rate(name, found)
    if record.closed is not None:
        return so_far  # but for what is under way
    return math.inf if rate is None else max(so_far, rate * _seed_epochs(plan, name, record))


def _rate(name: str, found: Mapping[str, Trained]) -> float | None:
    """Return seconds per epoch and seed of a study, or of all as long as it has none; None: nobody knows."""
    known = [found[name]] if found[name].seed_epochs else [*found.values()]
    seed_epochs = math.fsum(each.seed_epochs for each in known)
    return math.fsum(each.seconds for each in known) / seed_epochs if seed_epochs else None


def _seed_epochs(plan: Plan, name: str, record: StudyRecord) -> float:
    """Return how many epochs times seeds a study trains at most."""
    if name == CONFIRM and plan.confirms:
        n_arms = 1 + sum(study.has_control for study in plan.specs.values())
        if record.arms is not None:
            n_arms = len(record.arms.configs)
        return n_arms * LOOKS[-1] * _epochs(plan, name)
    study, n_points = plan.specs[name], record.n_points
    if n_points is None:  # before it begins
        # whoever asks may be training: no time to build networks, which draws random numbers, too
        known = context_of(plan, name, record.inherited)
        n_points = study.trials or len(study.grid(known, with_costs=False))
    return n_points * len(plan.seeds) * _epochs(plan, name)


def _epochs(plan: Plan, name: str) -> float:
    """Return the most epochs that a trial of a study, or of the confirmation, has."""
    if name not in plan.specs:
        return max(_epochs(plan, each) for each in plan.specs)
    axis = plan.specs[name].search.get("epochs")
    return float(context_of(plan, name, None)["epochs"] if axis is None else axis.bounds[1])


def _has_ended(record: StudyRecord) -> bool:
    decision = record.decision  # one without a configuration is made again
    return record.confirmation is not None or (decision is not None and bool(decision.params))


# --- [stop] ----------------------------------------------------------------------------------------------


def _delta(plan: Plan, stop: Stop) -> float:
    return plan.delta if stop.delta is None else stop.delta


def _is_done(plan: Plan, name: str, stop: Stop) -> bool:
    """Return whether the last points brought no gain; only those count before which all have ended."""
    slots, delta = Queue(plan.storage, name).slots(), _delta(plan, stop)
    best, n_without = -math.inf, 0
    for index in count():
        score = _score(plan, slots, Slot(f"#{index}"))
        if score is None or n_without >= stop.patience:
            break
        is_gain = score > best and score - best >= delta
        best, n_without = (score, 0) if is_gain else (best, n_without + 1)
    return n_without >= stop.patience


def _score(plan: Plan, slots: Slots, slot: Slot) -> float | None:
    """Return the score of a point, minus infinity where it has no result; None while it is open."""
    state = slots.state(slot)
    if state.is_open:
        return None
    trial = slots.accepted(slot)
    if state != SlotState.COMPLETE or trial is None or trial.value is None:
        return -math.inf
    return plan.objective.score(trial.value)
