"""Where the studies of a plan stand, as plain records: for tables, for `--json`, for the live screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial

from hpo._text import show_value
from hpo.monitor.results import answer_text, best_trial, own_params, pareto_front, points_of
from hpo.planning.audit import Audit, audit_of
from hpo.planning.confirmation import outcome_in_words
from hpo.planning.decisions import Decision
from hpo.planning.inheritance import context_of
from hpo.planning.known_points import known_points
from hpo.planning.manifest import StudyRecord
from hpo.planning.plan import CLAIMS, CONFIRM, FINAL, FINAL_SLOT, PRICE, Plan
from hpo.planning.price import bound_in_words
from hpo.planning.reuse import is_from_another_plan, of_other_plans
from hpo.planning.scheduler import study_jobs
from hpo.storage.queue import Reason, Slots, SlotState, reason_of

StudyState = Literal["pending", "running", "done", "failed"]


@dataclass(frozen=True)
class StudyStatus:
    """One line of `hpo status`."""

    name: str
    section: str
    state: StudyState
    points: Mapping[str, int]
    """Points in each `SlotState`."""
    diverged: int
    """How many of the pruned points were stopped by nobody: their loss became infinite, or no number."""
    infeasible: int
    """How many of the pruned points were found to break a constraint while they trained."""
    discarded: int
    """How many of the complete points do not count."""
    best: Mapping[str, Any] | None
    """trial, value, params of the best complete trial."""
    inherited: Mapping[str, Any] | None
    """study, trial, params that the study started from."""
    decision: str = ""
    """What was decided, in words; of the final stage what it found."""
    front: Sequence[Mapping[str, Any]] = ()
    """Of a study with two objectives the Pareto front: of each of its points trial and objectives."""
    audit: Audit | None = None
    """What the audit of pruning found, where there is one and the study has decided."""
    reused: int = 0
    """How many of its trials have their result from another plan."""

    @property
    def n_points(self) -> int:
        """How many points the study has, as far as is known yet."""
        return sum(self.points.values())

    @property
    def n_ended(self) -> int:
        """How many of them have ended."""
        return sum(self.points[state] for state in ("complete", "pruned", "failed"))

    @property
    def ended_badly(self) -> dict[str, int]:
        """Points that have ended without a result that counts, by the word that people are told."""
        pruned = self.points["pruned"] - self.diverged - self.infeasible
        counts = {
            "pruned": pruned,
            "diverged": self.diverged,
            "infeasible": self.infeasible,
            "failed": self.points["failed"],
            "discarded": self.discarded,
        }
        return {word: count for word, count in counts.items() if count}

    @property
    def shown_state(self) -> str:
        """The state as people are told it: `idle` where a study has begun and nobody works on it."""
        # `running` is the contract's word for a study that has begun
        return "idle" if self.state == "running" and not self.points["running"] else self.state

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo status --json` prints it."""
        return asdict(self)


def status(plan: Plan) -> list[StudyStatus]:
    """Return where every study stands, the final stage last."""
    storage = plan.storage
    return [
        study_status(plan, name, record, storage.outlines.of(storage.study_id(name)))
        for name, record in plan.records().items()
    ]


def study_status(plan: Plan, name: str, record: StudyRecord, trials: Sequence[FrozenTrial]) -> StudyStatus:
    """Return where a study stands.

    Args:
        plan: that it belongs to.
        name: of the study.
        record: what is stored of it.
        trials: its trials, at least in outline.
    """
    slots = Slots.of(trials)
    decision, inherited = record.decision, record.inherited
    states = _states(plan, name, record, slots)
    points = {state.value: states.count(state) for state in SlotState}
    is_confirmation = name == CONFIRM and plan.confirms
    # its arms are not rivals
    best = None if is_confirmation else best_trial(plan, name, record, trials)
    accepted = [trial for slot in slots.attempts if (trial := slots.accepted(slot))]
    final = best.user_attrs.get("final") if best else None
    return StudyStatus(
        name=name,
        section=plan.specs[name].section if name in plan.specs else "",
        state=_confirmation_state(record, slots)
        if is_confirmation
        else _state(name, states, slots, decision),
        points=points,
        diverged=sum(reason_of(trial) == Reason.DIVERGED for trial in accepted),
        infeasible=sum(reason_of(trial) == Reason.INFEASIBLE for trial in accepted),
        discarded=len({trial.user_attrs["point"] for trial in trials if trial.number in record.discarded}),
        best=None
        if best is None
        else {"trial": best.number, "value": best.value, "params": own_params(plan, best)},
        inherited=None
        if inherited is None
        else {
            "study": inherited.source.study if inherited.source else inherited.study,
            "trial": inherited.source.trial if inherited.source else None,
            "params": inherited.params,
        },
        decision=_decision_text(plan, record, final),
        front=pareto_front(plan, name, record, trials),
        audit=study_audit(plan, decision, slots),
        reused=sum(is_from_another_plan(trial) for trial in trials),
    )


def study_audit(plan: Plan, decision: Decision | None, slots: Slots) -> Audit | None:
    """Return what the audit of pruning found in a study; None where nothing can be said."""
    if not plan.options.audit or decision is None or decision.value is None:
        return None
    accepted = [trial for slot in slots.attempts if (trial := slots.accepted(slot))]
    found = audit_of(accepted, decision.value, plan.objective, plan.delta)
    return found if found.pruned else None


def _decision_text(plan: Plan, record: StudyRecord, final: Mapping[str, Any] | None) -> str:
    if record.decision is not None:
        return record.decision.text
    if record.confirmation is not None:
        return outcome_in_words(record.confirmation)
    if record.price is not None:
        return bound_in_words(record.price, plan.objective)
    return answer_text(final, plan.objective) if final else ""


def _confirmation_state(record: StudyRecord, slots: Slots) -> StudyState:
    if record.confirmation is not None:
        return "done"
    return "running" if slots.attempts else "pending"


def _state(name: str, states: Sequence[SlotState], slots: Slots, decision: Decision | None) -> StudyState:
    open_ = any(state.is_open for state in states)
    if name == FINAL:
        if not slots.attempts:
            return "pending"
        return "running" if open_ else ("done" if states == [SlotState.COMPLETE] else "failed")
    if name in (CLAIMS, PRICE) and slots.attempts and not open_:
        return "done"
    if decision is not None:
        return "done" if decision.params else "failed"
    return "running" if slots.attempts else "pending"


def _states(plan: Plan, name: str, record: StudyRecord, slots: Slots) -> list[SlotState]:
    """Return the states of a study's points: those with attempts, and those that are still to be queued."""
    if name == FINAL:
        return [slots.state(FINAL_SLOT)]
    if plan.races and name in plan.specs:
        begun = [slots.state_at(point) for point in points_of(slots)]
    else:
        begun = [slots.state(slot) for slot in slots.attempts]
    n_points = record.n_points
    if name == CONFIRM and plan.confirms:
        n_points = len(begun)  # how many more there will be, the seeds so far have to say
    if n_points is None:  # as far as is known before it begins
        n_points = len(study_jobs(plan, name, record.inherited))
    if record.closed is not None and record.decision is not None:
        return [state for state in begun if not state.is_open]  # the decision says what was not tried
    return [*begun, *[SlotState.WAITING] * (n_points - len(begun))]


def remarks(plan: Plan, names: Sequence[str]) -> list[str]:
    """Return what is to be known of the data, and what in the files of these studies has no effect here.

    Which values of a grid change nothing, only the recipe knows; where it is not at hand, none are named.
    """
    texts = [f"data: {note}" for note in plan.identity.data_notes]
    texts += [found] if (found := of_other_plans(plan)) else []
    for name, study in ((name, plan.specs[name]) for name in names if name in plan.specs):
        if study.pruner.name == "chance" and not (plan.objective.is_share and plan.identity.class_names):
            unknown = f"the chance level of {plan.objective.label} is not known"
            texts.append(f"{name}: pruner 'chance' stops nothing, as {unknown}")
        if known := known_points(plan, name):
            sources = ", ".join(dict.fromkeys(point.source for point in known))
            texts.append(
                f"{name}: points imported from {sources}: {len(known)}; its sampler learns from them, and "
                "none of them can win"
            )
        if study.is_grid:
            idle = study.idle_values(context_of(plan, name, None))
            texts += [
                f"{name}: {param} {', '.join(map(show_value, values))} has no effect beside the others"
                for param, values in idle.items()
            ]
    return texts
