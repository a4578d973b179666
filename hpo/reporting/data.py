"""Everything that a report shows, read once from the database as plain records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hpo._text import point_text, printable
from hpo.data.sources import without_folders
from hpo.monitor.origins import DEFAULT, Origin, origins, origins_of_chosen
from hpo.monitor.results import TrialRow, attempt_state, confirmed_in_words, final_trial, rows
from hpo.monitor.status import StudyStatus, remarks, status
from hpo.planning.claims import Judgement, judge
from hpo.planning.confirmation import Confirmation
from hpo.planning.decisions import Decision, Inherited, TrialRef, test_epochs_of
from hpo.planning.inheritance import best_decided, context_of, inherited_by
from hpo.planning.manifest import Identity, Options, RecipeRecord, Superseded
from hpo.planning.metrics import Metric
from hpo.planning.plan import CONFIRM, FINAL, PRICE, Plan
from hpo.planning.price import Price
from hpo.planning.reuse import LIBRARY
from hpo.planning.revision import extended_as
from hpo.planning.verdicts import default_delta
from hpo.reporting.test_set import Confusion
from hpo.space.parameters import ParamValue
from hpo.space.study_file import StudySpec
from hpo.storage.database import sqlite_file
from hpo.storage.queue import Reason, reason_of

CIFAR10_CLASSES = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)


def anchor(trial: TrialRef | None) -> str:
    """Return where the page shows a trial; empty for none."""
    return f"trial-{trial.study}-{trial.trial}" if trial else ""


@dataclass(frozen=True)
class Point:
    """One point of a study with its complete configuration; a result only where `has_result`."""

    study: str
    row: TrialRow
    config: Mapping[str, ParamValue]
    value: float | None = None
    """The objective at the best epoch, mean over seeds."""
    seeds: tuple[int, ...] = ()

    @property
    def ref(self) -> TrialRef:
        """The trial that stands for it, as decisions name it."""
        return TrialRef(study=self.study, trial=self.row.trial)

    @property
    def name(self) -> str:
        """The trial's name, STUDY/NUMBER."""
        return self.ref.name

    @property
    def text(self) -> str:
        """What tells it from the others of its study."""
        return point_text(self.row.params, self.row.point)

    @property
    def is_reused(self) -> bool:
        """Whether it has the result of an earlier study's point instead of a training of its own."""
        return self.row.reason.startswith(Reason.REUSED)

    @property
    def n_dying(self) -> int:
        """How many of its seeds died of their ReLUs."""
        return sum(finding.n_seeds for finding in self.row.findings if finding.name == "dying ReLU")

    @property
    def has_collapsed(self) -> bool:
        """Whether a seed of it learnt nothing, or forgot it."""
        return any(finding.is_collapse for finding in self.row.findings)

    @property
    def anchor(self) -> str:
        """Where the page shows it."""
        return anchor(self.ref)

    @property
    def has_result(self) -> bool:
        """Whether its training ended by itself or by the pruner."""
        return self.row.state in ("complete", "pruned") and bool(self.row.history)

    def seeds_by_epoch(self, metric: str) -> list[list[float]]:
        """Return a metric on validation of every epoch and seed."""
        return [[seed["metrics"][metric] for seed in epoch] for epoch in self.row.history]

    def curve(self, metric: str) -> list[float]:
        """Return a metric on validation of every epoch, mean over seeds."""
        return [fmean(seeds) for seeds in self.seeds_by_epoch(metric)]


@dataclass(frozen=True)
class Section:
    """One study with what it found."""

    spec: StudySpec
    objective: Metric
    status: StudyStatus
    points: Sequence[Point]
    decision: Decision | None
    control: Point | None
    """The point of this or an earlier study that trained the inherited configuration; where this study has a
    point of that configuration, that one: it bears the same result."""
    origins: Mapping[str, Origin]
    """Of every value that the study's points are laid over."""
    carried: Mapping[str, Origin]
    """Of every value that it hands on."""
    context: Mapping[str, ParamValue]
    """What its points are laid over; empty while there is nothing to inherit yet."""
    prunes: bool
    """Whether its pruner is asked at all."""
    confirmed: str
    """What fresh seeds say of its decision, in words; empty while nobody has asked them."""
    superseded: Sequence[Superseded] = ()
    objectives: Sequence[Metric] = ()
    """The two of a study that has two."""
    extended_as: str | None = None
    """The study that was made from it by further values."""
    """The decisions that were taken back, the oldest first."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.spec.name

    @property
    def label(self) -> str:
        """Section and name, as a figure labels it."""
        return f"{self.spec.section} {self.name}".strip()

    @property
    def title(self) -> str:
        """Section and title, as a heading."""
        return printable(f"{self.spec.section} {self.spec.title or self.name}".strip())

    @cached_property
    def ranked(self) -> list[Point]:
        """The points with a result, the best first; of equal ones the earlier."""
        done = [p for p in self.points if p.has_result and p.value is not None]
        n_seeds = {p.ref: len(p.seeds) if p.row.replicates else 0 for p in done}  # who has more has won
        return sorted(
            done,
            key=lambda p: (p.row.state != "complete", -n_seeds[p.ref], -self.objective.score(p.value or 0.0)),
        )


@dataclass(frozen=True)
class Attempt:
    """One worker's try at a trial, for the time line. Times in seconds since the first of all."""

    study: str
    trial: int
    worker: str
    lane: int
    """From 1: which of the trials that the worker trained at the same time."""
    begin: float
    end: float
    state: str
    """complete, pruned, running, or why it does not count: lost, released, superseded, error, discarded."""

    @property
    def row(self) -> str:
        """Worker and lane, as one name."""
        return self.worker if self.lane == 1 else f"{self.worker} ({self.lane})"


@dataclass(frozen=True)
class ReportData:
    """What a report is made of."""

    options: Options
    """A folder of images by its name."""
    identity: Identity
    recipe: RecipeRecord
    objective: Metric
    metrics: Sequence[Metric]
    """The recipe's metrics, in its order."""
    versions: Mapping[str, str]
    """Of what results depend on, when the plan was created."""
    name: str
    """Of the plan."""
    storage: str
    """The database as people may see it; a file by its name."""
    sections: Sequence[Section]
    confirmation: Confirmation | None
    """What fresh seeds left of the decisions, once they have told."""
    confirmation_points: Sequence[Point]
    final: Mapping[str, Any] | None
    """What the final stage stored, once it has ended."""
    final_point: Point | None
    final_inherited: Inherited | None
    chosen_origins: Mapping[str, Origin]
    """Of every value of that."""
    test_epochs: Sequence[Sequence[Mapping[str, Any]]] = ()
    """Metrics on the test set per epoch, per seed."""
    attempts: Sequence[Attempt] = ()
    began: str = ""
    """Local time of the first trial's start."""
    ended: str = ""
    remarks: Sequence[str] = ()
    machines: Mapping[str, int] = field(default_factory=dict)
    """Trials by machine that trained them."""
    price: Price | None = None
    """What points across studies say; None where there is nothing yet."""
    claims: Judgement | None = None
    """What is said of the plan's claims; None where there is nothing to be said."""

    @property
    def delta(self) -> float:
        """Differences of the objective below it do not matter."""
        return default_delta(self.objective) if self.options.delta is None else self.options.delta

    @property
    def points(self) -> list[Point]:
        """The points of all studies."""
        return [point for section in self.sections for point in section.points]

    @property
    def trained(self) -> list[Point]:
        """The points of all studies, and the final stage's."""
        return [*self.points, *([self.final_point] if self.final_point else [])]

    @property
    def chain(self) -> list[Section]:
        """The studies that led to the best decided configuration, in order; all, before any has decided."""
        if self.final_inherited is None:
            return list(self.sections)
        by_name = {section.name: section for section in self.sections}
        found, at = [], by_name.get(self.final_inherited.study)
        while at is not None:
            found.append(at)
            at = by_name.get(at.spec.inherits or "")
        return found[::-1]

    @property
    def final_origins(self) -> list[tuple[str, ParamValue, Origin]]:
        """The parameters of the final configuration, with where each value comes from."""
        config = self.told(self.final["config"]) if self.final else {}
        return [(name, value, self.chosen_origins.get(name, DEFAULT)) for name, value in config.items()]

    @property
    def final_inactive(self) -> Sequence[str]:
        """The parameters that mean nothing in the final configuration."""
        return self.final_point.row.inactive if self.final_point else ()

    @property
    def repeats_original(self) -> bool:
        """Whether studies say what the original printed, and the images are its own by classes and shape."""
        identity = self.identity
        return (
            any(section.spec.published and section.spec.published.results for section in self.sections)
            and frozenset(identity.class_names) == CIFAR10_CLASSES
            and identity.input_shape == (3, 32, 32)
        )

    @property
    def confusion(self) -> Confusion | None:
        """Test examples by true and predicted class, means over seeds; None where there are none."""
        counts = (self.final or {}).get("confusion_matrix")
        return None if counts is None else np.array(counts, dtype=float)

    @property
    def n_test(self) -> int | None:
        """How many test examples there are; None before the final stage has told."""
        if self.confusion is not None:
            return round(float(self.confusion.sum()))
        n_test: int | None = (self.final or {}).get("n_test")
        return n_test

    @property
    def shares(self) -> list[Metric]:
        """The metrics that follow from the confusion matrix, the objective first."""
        return sorted((m for m in self.metrics if m.is_share), key=lambda metric: metric != self.objective)

    @property
    def examples(self) -> str:
        """What the data are made of, in a word."""
        return self.identity.examples

    def told(self, config: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Return a configuration as sentences and tables tell it."""
        return self.recipe.parameters.told(config)


def read(plan: Plan) -> ReportData:
    """Read a plan in whatever state it is."""
    trials = {name: plan.trials(name) for name in plan.all_names}
    others = _other_plans(plan)
    points = {name: _points(plan, name, trials[name], others) for name in plan.all_names}
    by_ref = {point.ref: point for found in points.values() for point in found}
    statuses = {each.name: each for each in status(plan)}
    of_study = origins(plan)
    confirmed = confirmed_in_words(plan)
    sections: dict[str, Section] = {}
    for name, spec in plan.specs.items():
        record, inherited = plan.record(name), inherited_by(plan, name)
        decision = record.decision
        ready = spec.inherits is None or inherited is not None
        control = decision.control.source if decision and decision.control else None
        sections[name] = Section(
            spec=spec,
            objective=plan.objective,
            status=statuses[name],
            points=points[name],
            decision=decision,
            control=_control(points[name], by_ref, control) if control else None,
            origins=of_study[name].context,
            carried=of_study[name].carried,
            context=context_of(plan, name, inherited) if ready else {},
            prunes=plan.options.pruning,
            superseded=record.superseded,
            extended_as=extended_as(plan, name),
            confirmed=confirmed.get(name, ""),
            objectives=plan.objectives_of(name),
        )
    final = final_trial(plan)
    file = sqlite_file(plan.storage.url)
    claimed = [
        (name, trial) for name, found in trials.items() for trial in found if "owner" in trial.user_attrs
    ]
    trained = [(name, trial) for name, trial in claimed if reason_of(trial) != Reason.REUSED]
    claims = judge(plan)
    starts = [trial.datetime_start for _, trial in claimed if trial.datetime_start]
    ends = [trial.datetime_complete for _, trial in claimed if trial.datetime_complete]
    return ReportData(
        options=plan.options.model_copy(update={"data": without_folders(plan.options.data)}),
        identity=plan.identity,
        recipe=plan.recipe,
        objective=plan.objective,
        metrics=plan.metrics,
        versions=plan.created_with,
        name=plan.name,
        storage=f"sqlite:///{file.name}" if file else plan.storage.name,
        sections=list(sections.values()),
        confirmation=plan.record(CONFIRM).confirmation if plan.confirms else None,
        confirmation_points=points[CONFIRM] if plan.confirms else (),
        final=final.user_attrs.get("final") if final else None,
        final_point=points[FINAL][0] if points[FINAL] else None,
        final_inherited=best_decided(plan),
        chosen_origins=origins_of_chosen(plan),
        test_epochs=test_epochs_of(final.user_attrs) if final else [],
        attempts=_attempts(plan, trained),
        began=f"{min(starts).astimezone():%Y-%m-%d %H:%M %Z}" if starts else "",
        ended=f"{max(ends).astimezone():%Y-%m-%d %H:%M %Z}" if ends else "",
        remarks=[
            _told(each, others) for each in remarks(plan, [name for name in plan.specs if trials[name]])
        ],
        machines=_machines(trial for _, trial in trained),
        price=plan.record(PRICE).price if plan.has_price else None,
        claims=claims if claims.results else None,
    )


def _control(points: Sequence[Point], by_ref: Mapping[TrialRef, Point], control: TrialRef) -> Point | None:
    has_its_result = f"{Reason.REUSED}: {control.name} "
    return next((p for p in points if p.row.reason.startswith(has_its_result)), by_ref.get(control))


def _other_plans(plan: Plan) -> dict[str, str]:
    """Return the plans whose results this one has, each with its name without the folders before its own."""
    names = plan.storage.study_attrs().get(LIBRARY, {}).get("plans", [])
    files = {name: file for name in names if (file := sqlite_file(name)) and file.is_absolute()}
    return {name: f"sqlite:///{file.parent.name}/{file.name}" for name, file in files.items()}


def _told(text: str, others: Mapping[str, str]) -> str:
    for name, told in others.items():
        text = text.replace(name, told)
    return text


def _points(plan: Plan, name: str, trials: Sequence[FrozenTrial], others: Mapping[str, str]) -> list[Point]:
    found = []
    for whole in rows(plan, name, trials):
        notes = [_told(each, others) for each in whole.checkpoint_notes]
        row = replace(whole, reason=_told(whole.reason, others), checkpoint_notes=notes)
        attrs = trials[row.trial].user_attrs
        found.append(
            Point(
                study=name,
                row=row,
                config=attrs.get("config", {}),
                value=row.metrics[plan.objective.name],
                seeds=tuple(row.seeds),
            )
        )
    return found


def _attempts(plan: Plan, trained: Iterable[tuple[str, FrozenTrial]]) -> list[Attempt]:
    taken = [(name, trial) for name, trial in trained if trial.datetime_start is not None]
    times = [t for _, trial in taken for t in (trial.datetime_start, trial.datetime_complete) if t]
    if not times:
        return []
    zero, last, records = min(times), max(times), plan.records()
    return _in_lanes(
        Attempt(
            study=name,
            trial=trial.number,
            worker=f"{trial.user_attrs['owner']['host']}:{trial.user_attrs['owner']['pid']}",
            lane=1,
            begin=((trial.datetime_start or zero) - zero).total_seconds(),
            end=((trial.datetime_complete or last) - zero).total_seconds(),
            state=attempt_state(trial, records[name].discarded),
        )
        for name, trial in taken
    )


def _in_lanes(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts as they began, each in the first lane of its worker that is free."""
    ends: dict[str, list[float]] = {}
    placed = []
    for attempt in sorted(attempts, key=lambda attempt: attempt.begin):
        lanes = ends.setdefault(attempt.worker, [])
        free = (lane for lane, end in enumerate(lanes) if end <= attempt.begin)
        lane = next(free, len(lanes))
        lanes[lane : lane + 1] = [math.inf if attempt.state == "running" else attempt.end]
        placed.append(replace(attempt, lane=lane + 1))
    return placed


def _machines(trained: Iterable[FrozenTrial]) -> dict[str, int]:
    """Return how many trials each machine ended, by what is known of it."""
    counts = Counter[str]()
    for attrs in (trial.user_attrs for trial in trained):
        if "device" in attrs:
            model = attrs.get("processor", attrs["device"])
            counts[
                f"{attrs['owner']['host']}: {model}, {attrs['precision']}, threads {attrs['threads']}"
            ] += 1
    return dict(sorted(counts.items()))
