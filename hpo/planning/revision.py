"""Decisions that are taken back and derived anew, as long as nothing was trained on top of them.

Nothing is ever deleted: a discarded trial stays as it is, and the old decision is kept among the superseded.
What was trained on top of a decision keeps it: further values of such a study's grid go into a study of their
own, which takes over what the first has trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo._text import show_value
from hpo.errors import ConflictError, InputError, did_you_mean
from hpo.planning.decisions import Decision
from hpo.planning.manifest import StudyRecord, checked, defined
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import is_control
from hpo.space.axes import read_axis
from hpo.space.parameters import ParamValue
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Slots, slot_of


def discard(plan: Plan, name: str, trial: FrozenTrial, reason: str) -> Decision | None:
    """Leave a trial out of what its study decides; the decision is open again, if it was made.

    Args:
        plan: that the trial belongs to.
        name: of its study.
        trial: with a result.
        reason: why, in words, for all who look at the study later.

    Returns:
        The decision that holds no more; None: there was none yet.

    Raises:
        InputError: the trial decides nothing, or is what the others are compared with.
        ConflictError: something was trained on top of the decision, or somebody has decided meanwhile.
    """
    which = f"{name}/{trial.number}"
    if not reason.strip():
        raise InputError("--reason is empty; say why the trial is not to count")
    if name not in plan.specs:
        raise InputError(f"{which}: {name} decides nothing, so there is nothing to leave out")
    if trial.state != TrialState.COMPLETE:
        raise InputError(
            f"{which} has no result that could decide anything; only complete trials are discarded"
        )
    attrs = plan.storage.study_attrs()
    record = checked(StudyRecord, plan.storage, name, attrs, plan.schema)
    if trial.number in record.discarded:
        raise InputError(f"{which} is discarded already: {record.discarded[trial.number]}")
    if is_control(plan, name, slot_of(trial)):
        raise InputError(f"{which} is the control, without which the study has nothing to compare with")
    text = " ".join(reason.split())
    discarded = {**attrs[name].get("discarded", {}), str(trial.number): text}
    because = f"trial {trial.number} was discarded: {text}"
    if on_top := _revise(plan, name, attrs[name], because, {"discarded": discarded}):
        raise _trained_on_top(plan, name, on_top)
    return record.decision


@dataclass(frozen=True)
class Extension:
    """A grid that has further values now."""

    study: str
    """That has them: the one that was asked for, or one that was made from it."""
    before: Decision | None
    """The decision that holds no more; None: there was none, or it still holds."""
    on_top: tuple[str, ...]
    """What was trained on top of the decision of the one that was asked for, and keeps it."""


def extend(plan: Plan, name: str, values: Mapping[str, Sequence[object]]) -> Extension:
    """Add values to the axes of a grid; its points so far keep their results.

    Where something was trained on top of its decision, a new study gets the values, and the results.

    Args:
        plan: that the study belongs to.
        name: of the study.
        values: to be added, by parameter.

    Raises:
        InputError: no grid, no axis of it, or no value that it could have; or it has them all.
        ConflictError: somebody has decided meanwhile.
    """
    plan.with_ancestors([name])
    attrs = plan.storage.study_attrs()
    record = checked(StudyRecord, plan.storage, name, attrs, plan.schema)
    study = defined(plan.storage, name, record, plan.schema)
    if not study.is_grid:
        raise InputError(f"{name} is no grid; raise its trials = {study.trials} in its study file")
    search, added = (
        {param: list(axis.values()) for param, axis in study.search.items()},
        dict(record.extended),
    )
    if later := extended_as(plan, name):
        raise InputError(f"{name} was extended already, as {later}; extend that study instead")
    for param, more in values.items():
        if param not in search:
            hint = did_you_mean(param, search) if search else "it searches nothing, and is a single point"
            raise InputError(f"{param} is not searched by {name}; {hint}")
        axis = read_axis(plan.schema, param, list(more))
        new = [value for value in axis.values() if value not in search[param]]
        if not new:
            raise InputError(f"{name} tries {param} {_listed(axis.values())} already")
        search[param] += new
        added[param] = [*added.get(param, []), *new]
    further = " and ".join(f"{param} {_listed(added[param])}" for param in values)
    # who asks for more points has the study open again
    changes = {"definition": _changed(study, search=search).to_json(), "extended": added, "closed": None}
    if not (on_top := _revise(plan, name, attrs[name], f"{further} came to it", changes)):
        return Extension(name, record.decision, ())
    made = _changed(
        study,
        search=search,
        name=_next_name(plan, name, record),
        title=f"{study.title or name}, with {further}",
        published=None,  # the original has no such study
    )
    plan.with_study(made, name)
    return Extension(made.name, None, tuple(on_top))


def extended_as(plan: Plan, name: str) -> str | None:
    """Return the study that was made from another by further values; None where there is none."""
    return next((other for other, each in plan.records().items() if each.extends == name), None)


def _changed(study: StudySpec, **changes: object) -> StudySpec:
    """Return a study with other values of some keys, checked like one that is read."""
    return StudySpec.from_json(json.dumps({**json.loads(study.to_json()), **changes}), study.parameters)


def _next_name(plan: Plan, name: str, record: StudyRecord) -> str:
    """Return how a study is called that is made from another one: STUDY-2, then STUDY-3."""
    stem = name if record.extends is None else name.rpartition("-")[0]
    return next(found for number in count(2) if (found := f"{stem}-{number}") not in plan.specs)


def _revise(
    plan: Plan, name: str, stored: Mapping[str, Any], because: str, changes: Mapping[str, object]
) -> list[str]:
    """Change what is stored of a study and open its decision again, if nothing was trained on top of that.

    Returns:
        What was trained on top: then nothing is changed.

    Raises:
        ConflictError: the study has decided or changed meanwhile.
    """
    if on_top := _on_top(plan, name):
        return on_top
    decision, superseded = stored.get("decision"), stored.get("superseded", [])
    if decision is not None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        superseded = [*superseded, {"decision": decision, "because": because, "at": now}]
    new = {**changes, "decision": None, "superseded": superseded}
    expected = {key: stored.get(key) for key in ("definition", *new)}
    # what may begin next begins no more between the look and the write
    later = [other for other in plan.all_names if _depends(plan, other, name)]
    final_id = plan.storage.study_id(FINAL)
    idle: dict[int, dict[str, Any]] = {final_id: plan.stored_decisions()[final_id]}
    for other in later:
        other_id = plan.storage.study_id(other)
        idle[other_id] = {**idle.get(other_id, {}), "inherited": None, "arms": None}
    if plan.storage.swap_study_attrs(plan.storage.study_id(name), new, expected=expected, elsewhere=idle):
        return []
    if on_top := _on_top(plan, name):
        return on_top
    raise ConflictError(f"{plan.storage.name}: study {name!r} has decided or changed meanwhile; try again")


def _on_top(plan: Plan, name: str) -> list[str]:
    """Return what was trained because of what a study decided."""
    return [
        other
        for other, record in plan.records().items()
        if (record.inherited is not None or record.arms is not None) and _depends(plan, other, name)
    ]


def _trained_on_top(plan: Plan, name: str, on_top: Sequence[str]) -> ConflictError:
    """Return an error that says what it would take to change a decision all the same."""
    n_points = sum(
        len(Slots.of(plan.storage.outlines.of(plan.storage.study_id(each))).attempts) for each in on_top
    )
    points = f"{n_points} point" if n_points == 1 else f"{n_points} points"
    anew = "another --out" if plan.storage.is_sqlite else "another database"
    return ConflictError(
        f"{', '.join(on_top)}: trained on top of what {name} decided; to change that, "
        f"{points} would have to be trained again: start anew with {anew}"
    )


def _depends(plan: Plan, other: str, name: str) -> bool:
    """Return whether what a study trains depends on what another one decided."""
    if other not in plan.specs:
        return True  # the confirmation and the final stage take the best of all decisions
    if plan.options.inherit != "winners":
        return False
    parent = plan.specs[other].inherits
    return parent is not None and (parent == name or _depends(plan, parent, name))


def _listed(values: Iterable[ParamValue]) -> str:
    return ", ".join(map(show_value, values))
