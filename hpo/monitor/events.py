"""What happens to a plan, told once: points that end, studies that decide, the answer of the final stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial

from hpo.monitor.status import own_params
from hpo.planning.decisions import Decision, best_epoch
from hpo.planning.plan import FINAL, Plan
from hpo.storage.queue import Slot, Slots, SlotState
from hpo.storage.trials import id_of

ENDED = (SlotState.COMPLETE, SlotState.PRUNED, SlotState.FAILED)


@dataclass(frozen=True)
class Event:
    """Something that happened: a point ended, a study decided, the final stage ended."""

    event: Literal["point", "study", "final"]
    study: str
    record: Mapping[str, Any]
    """The rest, in plain types."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON line has it."""
        return {"event": self.event, "study": self.study, **self.record}


@dataclass
class _Told:
    """What is known of a study already."""

    slots: Slots | None = None
    ended: dict[Slot, int] = field(default_factory=dict)
    """By slot the number of the trial with which it ended last: a point that failed may end again."""
    decision: Decision | None = None

    def ends(self, slots: Slots) -> list[tuple[SlotState, FrozenTrial]]:
        """Return the slots that have ended since, each with its trial; they are known then."""
        if slots is self.slots:
            return []
        self.slots, found = slots, []
        for slot in slots.attempts:
            state, trial = slots.state(slot), slots.accepted_or_latest(slot)
            if state in ENDED and self.ended.get(slot) != trial.number:
                self.ended[slot] = trial.number
                found.append((state, trial))
        return found

    def is_new(self, decision: Decision | None) -> bool:
        """Return whether this has been decided since; it is known then."""
        before, self.decision = self.decision, decision
        return decision != before


class Events:
    """Finds what is new of a plan's studies since they were looked at last."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told: dict[str, _Told] = {}

    def of(self, study: str, slots: Slots, decision: Decision | None) -> list[Event]:
        """Return what has happened to a study since the call before; of the first call: nothing.

        Args:
            study: its name.
            slots: its trials, at least in outline; the same object where nothing has changed.
            decision: what it has decided by now.
        """
        is_first = study not in self._told
        told = self._told.setdefault(study, _Told())
        ends, is_new = told.ends(slots), told.is_new(decision)
        if is_first:
            return []
        events = [self._end(study, state, trial) for state, trial in ends]
        if decision is not None and is_new:
            events.append(Event("study", study, decision.model_dump(mode="json")))
        return events

    def _end(self, study: str, state: SlotState, outline: FrozenTrial) -> Event:
        trial = self._plan.storage.trial(id_of(outline))
        epoch = best_epoch(trial)
        record = {
            "trial": trial.number,
            "point": trial.user_attrs["point"],
            "params": own_params(trial),
            "state": state.value,
            "reason": trial.user_attrs.get("reason", ""),
            "macro_f1": trial.intermediate_values.get(epoch) if epoch else None,
            "best_epoch": epoch,
            "epochs": len(trial.intermediate_values),
        }
        if study != FINAL:
            return Event("point", study, record)
        result = trial.user_attrs.get("final", {})
        answer = {key: result.get(key) for key in ("selected_epoch", "seeds", "test", "std")}
        return Event("final", study, record | answer)
