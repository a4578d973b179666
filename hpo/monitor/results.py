"""What the trials of a plan found, as plain records: rows of points, the best configuration, the final one.

Nothing in this room writes, imports torch, or looks anywhere else than into the database.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo._text import seeds_text
from hpo.errors import InputError, MissingError
from hpo.monitor.origins import Origin, origins, origins_of_chosen
from hpo.planning.confirmation import Confirmation, decision_in_words
from hpo.planning.decisions import TrialRef, best_epoch, costs_of, epochs_of, pooled
from hpo.planning.diagnostics import Finding, findings
from hpo.planning.inheritance import best_decided, decided_point
from hpo.planning.known_points import known_points
from hpo.planning.manifest import StudyRecord
from hpo.planning.metrics import Metric
from hpo.planning.plan import CLAIMS, CONFIRM, CONTROL_SLOT, FINAL, FINAL_SLOT, PRICE, Plan
from hpo.planning.race import RaceResult, Stop
from hpo.planning.reuse import ORIGIN_KEY
from hpo.planning.scheduler import is_orphaned
from hpo.planning.studies import lineage
from hpo.space.choice import front
from hpo.space.parameters import ParamValue, canonical_json
from hpo.storage.queue import Reason, Slots, reason_of, slot_of, told_state
from hpo.storage.trials import OBJECTIVES_KEY, id_of

DISCARDED = "discarded"
"""The state of a complete trial that does not count, and the first word of its reason."""


@dataclass(frozen=True)
class TrialRow:
    """One point of a study, as a table shows it. Metrics are of the best epoch, means over seeds."""

    trial: int
    point: str
    params: Mapping[str, ParamValue]
    state: str
    reason: str
    earlier: Sequence[str]
    """How earlier attempts at the point ended, as `trial N: reason`."""
    checkpoint_notes: Sequence[str]
    """Which checkpoints an attempt had to put aside, as `trial N: file put aside: why`."""
    attempt: int
    epochs: int
    best_epoch: int | None
    metrics: Mapping[str, float | None]
    std: Mapping[str, float | None]
    """Standard deviations of the metrics over seeds; None with one."""
    inactive: Sequence[str]
    """Names of the parameters that mean nothing in its configuration."""
    seconds: float
    history: Sequence[Sequence[Mapping[str, Any]]]
    """Per epoch, per seed, what training recorded."""
    findings: Sequence[Finding]
    """What is wrong with the point."""
    traceback: str = ""
    """Of an error in training."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """What its configuration costs, as far as that is known."""
    epochs_asked: int | None = None
    """How many epochs it is trained if nothing stops it; None until it is claimed."""
    seeds: Sequence[int] = ()
    """That its metrics are of, or, before it has any, that it is trained on first."""
    replicates: Sequence[int] = ()
    """The trials that it has, where a race may give it several: one for each block of seeds."""
    stop: Stop | None = None
    """Why a race gave it no further seeds; None where there is none, or it is not over."""

    @property
    def shown_state(self) -> str:
        """The state as people are told it."""
        return told_state(self.state, self.reason)

    @property
    def active_params(self) -> dict[str, ParamValue]:
        """What it searched, without what means nothing there."""
        return {name: value for name, value in self.params.items() if name not in self.inactive}

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo show --json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class AttemptRow:
    """One try at a point."""

    trial: int
    state: str
    reason: str
    host: str
    """Where it was trained; empty until a worker has claimed it."""
    pid: int | None
    began: str
    """Local time with its offset, as ISO 8601 has it."""
    seconds: float | None
    """From the claim to the end."""
    epochs: int
    """That it had when it ended, those before a kill included."""

    @property
    def shown_state(self) -> str:
        """The state as people are told it."""
        return told_state(self.state, self.reason)


@dataclass(frozen=True)
class TrialDetail:
    """One trial, whole."""

    study: str
    row: TrialRow
    """What it found; its state is that of the trial, not of the point."""
    seeds: Sequence[int]
    config: Mapping[str, ParamValue]
    """Empty until a worker has claimed it."""
    origins: Mapping[str, Origin]
    """Where each value of the configuration comes from."""
    attempts: Sequence[AttemptRow]
    """All tries at its point, this one among them."""
    machine: Mapping[str, Any]
    """What it was trained on and with."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo show STUDY/NUMBER --json` prints it."""
        return {
            "study": self.study,
            **self.row.to_json(),
            "seeds": self.seeds,
            "config": self.config,
            "origins": {name: origin.name for name, origin in self.origins.items()},
            "attempts": [asdict(each) for each in self.attempts],
            "machine": self.machine,
        }


def own_params(plan: Plan, trial: FrozenTrial) -> Mapping[str, ParamValue]:
    """Return what tells a trial from the others of its study."""
    if _is_cell(trial):
        cell, defaults = json.loads(trial.user_attrs["point"]), plan.schema.defaults
        return {name: value for name, value in cell.items() if value != defaults[name]} or cell
    # a control or the final trial searched nothing: its whole configuration is what it is
    return trial.params or trial.user_attrs.get("config", {})


def _is_cell(trial: FrozenTrial) -> bool:
    """Return whether a trial is of a cell of claims, whose point is a whole configuration."""
    # that of a study which searches nothing is empty
    return not trial.params and str(trial.user_attrs["point"]).startswith('{"')


def rows(plan: Plan, name: str, trials: Sequence[FrozenTrial] | None = None) -> list[TrialRow]:
    """Return one row a point of a study: its accepted trial, or else its latest.

    Args:
        plan: that the study belongs to.
        name: of the study.
        trials: all of the study, by number, where they have been read already.

    Raises:
        InputError: an unknown study.
    """
    if name != FINAL:
        plan.with_ancestors([name])
    slots, record = Slots.of(plan.trials(name) if trials is None else trials), plan.record(name)
    if plan.races and name in plan.specs:
        race = record.decision.race if record.decision else None
        by_index = [
            _point_row(plan, name, point, slots, record.discarded, race) for point in points_of(slots)
        ]
        return [row for _, row in sorted(by_index, key=lambda each: each[0])]
    discarded = record.discarded
    chosen = (slots.accepted_or_latest(slot) for slot in slots.attempts if not slots.never_began(slot))
    ordered = sorted(chosen, key=lambda trial: trial.user_attrs["index"])
    return [_row(plan, name, trial, slots, discarded, slots.state(slot_of(trial)).value) for trial in ordered]


@dataclass(frozen=True)
class ImportedRow:
    """A known point of a study (`hpo.planning.known_points`), as a table shows it."""

    params: Mapping[str, ParamValue]
    value: float
    origin: str
    """Where it is from, as "old.csv, row 7"."""
    trial: int | None
    """The trial of the study that trained the same parameters; None: none has."""


def imported(plan: Plan, name: str, rows: Sequence[TrialRow]) -> list[ImportedRow]:
    """Return the known points of a study, the best first.

    Args:
        plan: that the study belongs to.
        name: of the study.
        rows: of the study, as from `rows`.
    """
    trials = {canonical_json(row.params): row.trial for row in reversed(rows)}
    return [
        ImportedRow(point.params, point.value, point.origin, trials.get(canonical_json(point.params)))
        for point in (known_points(plan, name) if name in plan.specs else [])
    ]


def all_costs(rows: Iterable[TrialRow]) -> list[str]:
    """Return the names of all costs that are known of any point."""
    return list(dict.fromkeys(name for row in rows for name in row.costs))


def points_of(slots: Slots) -> list[str]:
    """Return the points that have been tried, each once."""
    return list(dict.fromkeys(slot.point for slot in slots.attempts))


def _point_row(
    plan: Plan,
    name: str,
    point: str,
    slots: Slots,
    discarded: Mapping[int, str],
    race: RaceResult | None,
) -> tuple[int, TrialRow]:
    """Return the row of a point with all its replicates, after its index."""
    replicates = slots.replicates(point)
    stands = [slots.accepted_or_latest(slot) for slot in replicates]
    done = [trial for trial in stands if trial.state == TrialState.COMPLETE]
    state = slots.state_at(point)
    first = stands[0]
    whole = pooled(done, plan.objective) if done else first
    row = _row(plan, name, whole, slots, discarded, state.value)
    ended = [
        trial
        for trial in stands
        if trial.number in discarded or (trial.state != TrialState.COMPLETE and "reason" in trial.user_attrs)
    ]
    if ended:  # what became of the point is what became of this replicate
        row = replace(
            row,
            state=DISCARDED if ended[-1].number in discarded else row.state,
            reason=reason_text(ended[-1], discarded),
            traceback=ended[-1].user_attrs.get("traceback", ""),
        )
    elif any(reason_of(trial) != Reason.REUSED for trial in done):
        row = replace(row, reason="")  # no more than its first seeds are an earlier study's
    others = [_row(plan, name, trial, slots, discarded, state.value) for trial in stands[1:]]
    finish = race.finish_of(first.number) if race else None
    return first.user_attrs["index"], replace(
        row,
        trial=first.number,
        earlier=[text for each in (row, *others) for text in each.earlier],
        checkpoint_notes=[text for each in (row, *others) for text in each.checkpoint_notes],
        replicates=[trial.number for trial in stands],
        stop=finish.stop if finish else None,
    )


def point_name(plan: Plan, name: str, attrs: Mapping[str, Any]) -> str:
    """Return what the point of a trial with such attributes is called; in the confirmation arm and seed."""
    point: str = attrs["point"]
    return f"{point}, seed {attrs['seeds'][0]}" if plan.confirms and name == CONFIRM else point


def _row(
    plan: Plan, name: str, trial: FrozenTrial, slots: Slots, discarded: Mapping[int, str], state: str
) -> TrialRow:
    history, values = epochs_of(trial.user_attrs), best_values(plan, trial)
    slot = slot_of(trial)
    return TrialRow(
        trial=trial.number,
        point=point_name(plan, name, trial.user_attrs),
        params=json.loads(slot.point) if _is_cell(trial) else trial.params,
        state=DISCARDED if trial.number in discarded else state,
        reason=reason_text(trial, discarded),
        traceback=trial.user_attrs.get("traceback", ""),
        earlier=[
            f"trial {each.number}{_by(each)}: {each.user_attrs['reason']}, "
            f"epochs finished: {len(each.intermediate_values)}; now trial {trial.number}"
            for each in slots.attempts[slot]
            if each.number < trial.number and "reason" in each.user_attrs
        ],
        checkpoint_notes=[
            f"trial {each.number}: {note}"
            for each in slots.attempts[slot]
            for note in each.user_attrs.get("notes", [])
        ],
        attempt=trial.user_attrs["attempt"],
        epochs=len(history),
        epochs_asked=trial.user_attrs.get("config", {}).get("epochs"),
        seeds=trial.user_attrs["seeds"],
        best_epoch=best_epoch(trial, plan.objective),
        seconds=sum(seed["seconds"] for records in history for seed in records),
        history=history,
        metrics={name: fmean(seeds) if seeds else None for name, seeds in values.items()},
        std={name: deviation(seeds) for name, seeds in values.items()},
        inactive=trial.user_attrs.get("inactive", []),
        costs=costs_of(trial.user_attrs),
        findings=findings(history, plan.objective, plan.chances, is_complete=state == "complete"),
    )


def best_values(plan: Plan, trial: FrozenTrial) -> dict[str, list[float]]:
    """Return the metrics of a trial at its best epoch, by seed; of each none before any report."""
    epoch = best_epoch(trial, plan.objective)
    seeds = trial.user_attrs[f"epoch:{epoch}"] if epoch else []
    return {name: [seed["metrics"][name] for seed in seeds] for name in plan.recipe.metrics}


def mean(values: Iterable[float]) -> float:
    """Return the mean over seeds; NaN where a seed has none, as the loss of a sure and wrong network."""
    found = list(values)
    return fmean(found) if all(map(math.isfinite, found)) else math.nan


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds; None where there is none."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def detail(plan: Plan, name: str, trial: FrozenTrial) -> TrialDetail:
    """Return all that is known of a trial of ours.

    Args:
        plan: that it belongs to.
        name: of its study.
        trial: as from `find_trial`.

    Raises:
        MissingError: others have put the trial into the study.
    """
    slots, attrs, discarded = Slots.of(plan.trials(name)), trial.user_attrs, plan.record(name).discarded
    if "point" not in attrs:
        raise MissingError(f"{name}/{trial.number} is no trial of hpo: others have put it into the study")
    row = _row(plan, name, trial, slots, discarded, attempt_state(trial, {}))
    return TrialDetail(
        study=name,
        row=replace(row, point=attrs["point"]),  # its seeds are told beside it
        seeds=attrs["seeds"],
        config=attrs.get("config", {}),
        origins=_origins(plan, name, trial),
        attempts=[_attempt(each, discarded) for each in slots.attempts[slot_of(trial)]],
        machine={key: attrs[key] for key in _MACHINE if key in attrs},
    )


_MACHINE = ("device", "processor", "precision", "threads", "versions", "split_seed", ORIGIN_KEY)


def _attempt(trial: FrozenTrial, discarded: Mapping[int, str]) -> AttemptRow:
    owner = trial.user_attrs.get("owner", {})
    began, ended = trial.datetime_start, trial.datetime_complete
    return AttemptRow(
        trial=trial.number,
        state=attempt_state(trial, discarded),
        reason=reason_text(trial, discarded),
        host=owner.get("host", ""),
        pid=owner.get("pid"),
        began=began.astimezone().isoformat(timespec="seconds") if began else "",
        seconds=(ended - began).total_seconds() if began and ended else None,
        epochs=len(trial.intermediate_values),
    )


_OF_CELLS = {CLAIMS: "cell of a claim", PRICE: "point across studies"}


def _origins(plan: Plan, name: str, trial: FrozenTrial) -> Mapping[str, Origin]:
    """Return where each value of a trial's configuration comes from."""
    found = origins(plan)
    if name == FINAL:
        return origins_of_chosen(plan)
    if name == CONFIRM and plan.confirms:
        arms = plan.record(CONFIRM).arms
        assert arms is not None  # written before there are trials
        whole = found[arms.chosen.study].carried
        point, chosen = trial.user_attrs["point"], arms.chosen.params
        differing = [
            (each.study, name)
            for each in arms.changes
            if each.arm == point
            for name in each.params
            if arms.configs[point][name] != chosen[name]  # others a later study changed once more
        ]
        return {**whole, **{name: found[study].inherited[name] for study, name in differing}}
    if name not in plan.specs:
        return dict.fromkeys(plan.schema.parameters, Origin(_OF_CELLS[name]))
    if trial.user_attrs["point"] == CONTROL_SLOT.point:
        return found[name].inherited
    return {**found[name].context, **dict.fromkeys(plan.specs[name].search, Origin("searched"))}


def attempt_state(trial: FrozenTrial, discarded: Container[int]) -> str:
    """Return how an attempt stands; one that was lost, released or superseded is no failure of the point.

    Args:
        trial: the attempt.
        discarded: numbers of the trials of its study that do not count.
    """
    if trial.number in discarded:
        return DISCARDED
    return (reason_of(trial) or "fail") if trial.state == TrialState.FAIL else trial.state.name.lower()


def reason_text(trial: FrozenTrial, discarded: Mapping[int, str]) -> str:
    """Return why an attempt ended as it did, or why it does not count; empty where it just ended."""
    if trial.number in discarded:
        return f"{DISCARDED}: {discarded[trial.number]}"
    reason: str = trial.user_attrs.get("reason", "")
    return reason


def _by(trial: FrozenTrial) -> str:
    owner = trial.user_attrs.get("owner")
    return f" ({owner['host']}, process {owner['pid']})" if owner else ""


def find_trial(plan: Plan, text: str) -> tuple[str, FrozenTrial]:
    """Return the trial that `STUDY/NUMBER` names.

    Raises:
        InputError: not of that form, or an unknown study.
        MissingError: no trial of that number.
    """
    name, slash, number = text.rpartition("/")
    if not slash or not number.isdecimal() or len(number) > 9:
        raise InputError(f"{text!r} does not name a trial; write STUDY/NUMBER, like learning-rate/2")
    if name != FINAL:
        plan.with_ancestors([name])
    study_id = plan.storage.study_id(name)
    trial = plan.storage.numbered(study_id, int(number))
    if trial is None:
        n_trials = sum(plan.storage.counts({study_id: 0}).values())
        raise MissingError(f"{text}: study {name!r} has {n_trials} trials, counted from 0")
    return name, trial


def final_trial(plan: Plan) -> FrozenTrial | None:
    """Return the trial of the final stage, once it has a result; one that diverged has none."""
    trial = Slots.of(plan.trials(FINAL)).accepted(FINAL_SLOT)
    return trial if trial is not None and trial.state == TrialState.COMPLETE else None


def final_result(plan: Plan) -> dict[str, Any]:
    """Return the result of the final stage.

    Raises:
        MissingError: it has not ended yet.
    """
    trial = final_trial(plan)
    if trial is None:
        raise MissingError(f"{plan.storage.name}: the final stage has no result yet; `hpo run` ends with it")
    result: dict[str, Any] = trial.user_attrs["final"]
    return result


def answer_text(result: Mapping[str, Any], objective: Metric) -> str:
    """Return the result of the final stage in words."""
    value = objective.with_unit(result["test"][objective.name], result["std"][objective.name])
    return f"test {objective.label} {value}, at epoch {result['selected_epoch']}{cut_short_text(result)}"


def cut_short_text(result: Mapping[str, Any]) -> str:
    """Return by what the final stage was cut short, to go after its epoch; empty where it was not."""
    return f"; {result['cut_short']}" if result.get("cut_short") else ""


def trained_text(result: Mapping[str, Any], examples: str) -> str:
    """Return at which epoch the result of the final stage is, and what it was trained on, in words.

    Args:
        result: what the final stage stored.
        examples: what the data are made of, as "images".
    """
    epoch, which, cut = result["selected_epoch"], result.get("final_data", "limited"), cut_short_text(result)
    if which == "train+validation":
        return (
            f"after {epoch} epochs, settled before, on all {result['n_train']:,} {examples} of the training "
            f"and the validation part{cut}"
        )
    on = f", on all {result['n_train']:,} {examples} of the training part" if which == "all" else ""
    return f"at epoch {epoch}, which validation chose{on}{cut}"


def uncertainty_text(result: Mapping[str, Any], objective: Metric, examples: str) -> str:
    """Return how far the result of the final stage may be off, in words; empty where nobody knows.

    Args:
        result: what the final stage stored; hpo before 0.2 stored nothing of it.
        objective: the plan's.
        examples: what the test set is made of, as "images".
    """
    found = (result.get("uncertainty") or {}).get(objective.name)
    if found is None or found["interval"] is None:
        return ""
    low, high = found["interval"]
    if low == high:  # as where few test examples are all right: such numbers have nothing to estimate from
        value = objective.with_unit(low)
        return f"{value} with each seed; what other seeds and other test {examples} would change is not known"
    between = f"between {objective.text(low)} and {objective.with_unit(high)} with 95 % confidence"
    of_seeds, of_examples = found["seeds"], found["examples"]
    n_seeds, n_test = seeds_text(len(result["seeds"])), f"{result['n_test']:,} {examples}"
    if of_seeds is None:
        return f"{between}, for other test {examples}; what other seeds would change, one seed cannot tell"
    if of_examples is None:
        return f"{between}, for other seeds; what other test {examples} would change is not known"
    parts = [(of_examples, f"the {n_test} of the test"), (of_seeds, f"the {n_seeds}")]
    (more, larger), (less, smaller) = sorted(parts, key=lambda part: -part[0])
    return (
        f"{between}, for other seeds and other test {examples}; {larger} leave more open than {smaller} "
        f"(standard errors {objective.distance(more)} and {objective.distance(less)})"
    )


def shrinkage_text(result: Mapping[str, Any], objective: Metric) -> str:
    """Return what fresh seeds say of the value that was selected in the search; empty where there is none."""
    if result["shrinkage"] is None:
        return ""
    search, fresh = (objective.with_unit(result[key]) for key in ("search_value", "fresh_value"))
    # the interval is told for the direction that the sentence names
    sign = 1 if result["shrinkage"] >= 0 else -1
    way = "the search's value was too good by" if sign > 0 else "these did better by"
    found = (
        f"{objective.label} {search} in the search, {fresh} on {seeds_text(len(result['seeds']))} that it "
        f"did not use: {way} {objective.distance(abs(result['shrinkage']))}"
    )
    if result.get("shrinkage_interval") is None:
        return found
    low, high = sorted(sign * end for end in result["shrinkage_interval"])
    if objective.is_share:  # two seeds give intervals beyond what shares can differ by
        low, high = max(low, -1.0), min(high, 1.0)
    between = f"between {objective.signed(low).removesuffix(' points')} and {objective.signed(high)}"
    chance = ", which may be chance alone" if low <= 0 <= high else ""
    return f"{found}{chance} ({between} with 95 % confidence)"


def confirmation(plan: Plan) -> Confirmation:
    """Return what a plan's confirmation found.

    Raises:
        MissingError: there is none, or it has not ended yet.
    """
    found = plan.record(CONFIRM).confirmation if plan.confirms else None
    if found is None:
        raise MissingError(f"{plan.storage.name}: no confirmation has ended yet; `hpo confirm` trains one")
    return found


def best_complete(plan: Plan, trials: Iterable[FrozenTrial], discarded: Container[int]) -> FrozenTrial | None:
    """Return the best of the trials that trained to their end and count, of equal ones the first."""
    done = [
        t
        for t in trials
        if t.state == TrialState.COMPLETE and t.value is not None and t.number not in discarded
    ]
    return max(done, key=lambda t: (plan.objective.score(t.value or 0.0), -t.number), default=None)


def best_trial(
    plan: Plan, name: str, record: StudyRecord, trials: Sequence[FrozenTrial]
) -> FrozenTrial | None:
    """Return the best point of a study so far as one whole trial; None before any has a result.

    Args:
        plan: that the study belongs to.
        name: of the study.
        record: what is stored of it.
        trials: its trials, at least in outline.
    """
    if plan.races and name in plan.specs:
        return _best_of_race(plan, record, Slots.of(trials))
    if name in plan.specs and plan.specs[name].choice is not None:
        trials = _chosen(plan, name, record, trials)
    best = best_complete(plan, trials, record.discarded)
    return None if best is None else plan.storage.trial(id_of(best))


def _chosen(
    plan: Plan, name: str, record: StudyRecord, trials: Sequence[FrozenTrial]
) -> Sequence[FrozenTrial]:
    """Return the one trial that a study's rule would choose; all where nothing satisfies it."""
    choice, objectives = plan.specs[name].choice, plan.objectives_of(name)
    assert choice is not None
    found = _with_objectives(record, trials)
    directions = {each.name: each.direction for each in objectives}
    ranks = choice.ranks([trial.user_attrs[OBJECTIVES_KEY] for trial in found], directions)
    if ranks is None:
        return trials
    return [found[ranks.index(max(ranks))]]


def _with_objectives(record: StudyRecord, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials that count of a study with two objectives, the control of its own apart."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and OBJECTIVES_KEY in trial.user_attrs
        and trial.number not in record.discarded
        and slot_of(trial) != CONTROL_SLOT
        and not slot_of(trial).replicate
    ]


def pareto_front(
    plan: Plan, name: str, record: StudyRecord, trials: Iterable[FrozenTrial]
) -> list[dict[str, Any]]:
    """Return the trials that no other is better than by one objective and level with by the other.

    Each with its values by objective, the best by the first one first; none where a study has one alone.

    Args:
        plan: that the study belongs to.
        name: of the study.
        record: what is stored of it.
        trials: its trials, at least in outline.
    """
    objectives = plan.objectives_of(name) if name in plan.specs else []
    if not objectives:
        return []
    found = [
        {"trial": trial.number, **values}
        for trial in _with_objectives(record, trials)
        if (values := trial.user_attrs[OBJECTIVES_KEY]).keys() >= {each.name for each in objectives}
    ]
    first, second = objectives
    scores = [(first.score(each[first.name]), second.score(each[second.name])) for each in found]
    kept = front(scores)
    return [found[place] for place in sorted(kept, key=lambda place: scores[place], reverse=True)]


def _best_of_race(plan: Plan, record: StudyRecord, slots: Slots) -> FrozenTrial | None:
    """Return the best of the points that still race, at the seeds that all of these have."""
    if record.decision is not None and record.decision.source is not None:
        return decided_point(plan, record.decision.source)  # its control has a trial of this study, too
    done: dict[str, list[FrozenTrial]] = {}
    for point in points_of(slots):
        accepted = [slots.accepted(slot) for slot in slots.replicates(point)]
        found = [trial for trial in accepted if trial and trial.state == TrialState.COMPLETE]
        if found and not any(trial.number in record.discarded for trial in found):
            done[point] = found
    most = max((len(slots.replicates(point)) for point in done), default=0)
    racing = [point for point in done if len(slots.replicates(point)) == most]
    n_common = min((len(done[point]) for point in racing), default=0)
    if n_common == 1:  # of trials with as many seeds outlines tell enough
        best = best_complete(plan, [done[point][0] for point in racing], record.discarded)
        return None if best is None else plan.storage.trial(id_of(best))
    whole = [
        pooled(list(plan.storage.whole([id_of(t) for t in done[point][:n_common]])), plan.objective)
        for point in racing
    ]
    return best_complete(plan, whole, record.discarded)


def best_so_far(
    plan: Plan, records: Mapping[str, StudyRecord], values: Mapping[str, tuple[int, float]]
) -> tuple[str, TrialRef] | None:
    """Return the trial of the best configuration so far, whoever asks, and the study that chose it.

    That is the one which the final stage trains, once every study has decided; until then the best of all.
    None: there is none, or it is what a confirmation left.

    Args:
        plan: that is asked about.
        records: as `Plan.records` has them.
        values: number and value of the best trial of each study that has one.
    """
    if all(records[name].decision or is_orphaned(plan, name, records) for name in plan.specs):
        chosen = best_decided(plan)
        if chosen is not None and chosen.source is not None:
            return chosen.study, chosen.source
        if plan.confirms and records[CONFIRM].confirmation is not None:
            return None  # of what it left no trial of the search is a result
    if not values:
        return None
    name = max(values, key=lambda name: plan.objective.score(values[name][1]))
    best = TrialRef(study=name, trial=values[name][0])
    decisions = {name: record.decision for name, record in records.items() if record.decision}
    names = [name for name, decision in decisions.items() if decision.source == best]
    return (names or [best.study])[-1], best  # a study that keeps what it inherited has decided for it, too


def in_effect(plan: Plan, config: Mapping[str, ParamValue], studies: Iterable[str]) -> dict[str, ParamValue]:
    """Return a configuration as it is told, without what means nothing in it.

    Args:
        plan: that it is of.
        config: as it was trained.
        studies: where; of one that nobody has trained there, nobody knows what means nothing.
    """
    attrs = [trial.user_attrs for name in studies for trial in plan.trials(name)]
    trained = (each for each in attrs if "inactive" in each and config.items() <= each["config"].items())
    idle = next((each["inactive"] for each in trained), ())
    return {name: value for name, value in plan.schema.told(config).items() if name not in idle}


_OF_FINAL = (
    "seeds",
    "search_value",
    "fresh_value",
    "shrinkage",
    "shrinkage_interval",
    "n_test",
    "uncertainty",
)
"""What `best` tells of the final stage beside its test metrics."""


def best(plan: Plan) -> dict[str, Any]:
    """Return the best configuration so far, with where it comes from.

    Raises:
        MissingError: no trial has a result yet.
    """
    records, storage = plan.records(), plan.storage
    trials = {
        name: best_trial(plan, name, records[name], storage.outlines.of(storage.study_id(name)))
        for name in plan.specs
    }
    values = {name: (trial.number, trial.value or 0.0) for name, trial in trials.items() if trial}
    found = best_so_far(plan, records, values)
    confirmed = records[CONFIRM].confirmation if plan.confirms else None
    decided = {name: record.decision for name, record in records.items() if record.decision}
    if found is not None:
        name, ref = found
        trial = decided_point(plan, ref)
        decision = decided.get(name)
        is_decided = decision is not None and decision.source == ref
        record = {
            "study": name,
            "source": ref.model_dump(),
            "value": trial.value,
            "deviation": deviation(best_values(plan, trial)[plan.objective.name]),
            "decided": is_decided,
            "tested": decision is not None and is_decided and decision.tested,
            "params": trial.user_attrs["config"],
        }
    elif (left := confirmed.inherited if confirmed else best_decided(plan)) is not None:
        # what a confirmation left, or had been reached when everything was cut short
        name = left.study
        record = {"study": name, "source": None, "value": left.value, "deviation": None, "decided": True}
        record |= {"tested": confirmed is not None, "params": left.params}
    else:
        raise MissingError(
            f"{storage.name}: no trial has a result yet; `hpo status` shows how far the studies are"
        )
    said, final = confirmed_in_words(plan), final_trial(plan)
    return {
        **record,
        "decisions": {
            each.name: "; on fresh seeds ".join(
                [decided[each.name].text, *([said[each.name]] if each.name in said else [])]
            )
            for each in lineage(plan.specs, name)
            if each.name in decided
        },
        "confirmation": confirmed and confirmed.to_json(),
        "test": final.user_attrs["final"]["test"] if final else None,
        "final": {key: final.user_attrs["final"].get(key) for key in _OF_FINAL} if final else None,
    }


def confirmed_in_words(plan: Plan) -> dict[str, str]:
    """Return what fresh seeds say of each decision, by study; empty while nobody has asked them."""
    found = plan.record(CONFIRM).confirmation if plan.confirms else None
    if found is None:
        return {}
    return {
        each.study: decision_in_words(each, plan.objective, has_own_splits=found.has_own_splits)
        for each in found.decisions
    }
