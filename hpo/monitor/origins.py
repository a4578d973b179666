"""Where the values of a plan's configurations come from: defaults, study files, options, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from hpo.planning.decisions import Decision, TrialRef
from hpo.planning.inheritance import best_decided, chain_of
from hpo.planning.metrics import Metric
from hpo.planning.plan import CONFIRM, Plan
from hpo.planning.studies import published_config
from hpo.space.study_file import PLAN_PREFIX, Start, StudySpec


@dataclass(frozen=True)
class Origin:
    """Where a value of a configuration comes from."""

    text: str
    trial: TrialRef | None = None
    """The trial whose study chose the value; None where none did."""

    @property
    def name(self) -> str:
        """The origin in words."""
        return f"{self.text}, {self.trial.name}" if self.trial else self.text


DEFAULT = Origin("default")


def start_text(start: Start) -> str:
    """Return where the winner of another plan is from, in words; those who read need not know a disk."""
    place = PurePath(start.origin.removeprefix(PLAN_PREFIX))
    origin = start.origin
    if place.is_absolute():
        origin = PLAN_PREFIX + "/".join(place.parts[-2:])
    metric = Metric(start.metric, "maximize")  # its direction is not told
    value = f"{metric.label} {metric.with_unit(start.value)}" if start.value is not None else ""
    there = ", ".join(each for each in (start.source and f"trial {start.source}", value) if each)
    return f"{origin} ({there})" if there else origin


@dataclass(frozen=True)
class Origins:
    """Where the values of a study come from, by parameter."""

    inherited: Mapping[str, Origin]
    """Of the configuration that it starts from."""
    context: Mapping[str, Origin]
    """Of what its points are laid over."""
    carried: Mapping[str, Origin]
    """Of what it hands on."""


def origins(plan: Plan) -> dict[str, Origins]:
    """Return where the values of every study come from, as far as studies have decided."""
    records = plan.records()
    found: dict[str, Origins] = {}
    for name, spec in plan.specs.items():  # parents come before children
        inherited = _inherited(plan, spec, found)
        if plan.options.epochs is not None:
            inherited["epochs"] = Origin("--epochs")
        everywhere = dict.fromkeys(plan.options.set or {}, Origin("--set"))
        inherited |= everywhere
        fixed = dict.fromkeys(spec.fixed, Origin("fixed here")) | everywhere
        found[name] = Origins(
            inherited, inherited | fixed, _carried(spec, inherited, records[name].decision) | everywhere
        )
    return found


def origins_of_chosen(plan: Plan) -> dict[str, Origin]:
    """Return where the values come from that the final stage trains; empty before anything has decided."""
    found, chosen = origins(plan), best_decided(plan)
    if chosen is None:
        return {}
    confirmation = plan.record(CONFIRM).confirmation if plan.confirms else None
    if confirmation is None:
        return dict(found[chosen.study].carried)
    root = chain_of(plan, chosen.study)[0]
    at = dict(found[root.name].inherited if root.has_control else found[root.name].carried)
    for decision in confirmation.decisions:
        if decision.kept:
            at.update({name: found[decision.study].carried[name] for name in decision.change})
    return at


def _inherited(plan: Plan, spec: StudySpec, found: Mapping[str, Origins]) -> dict[str, Origin]:
    """Return where the values of the configuration come from that a study starts with."""
    defaults = plan.schema.defaults
    if spec.start is not None:
        return dict.fromkeys(defaults, Origin(start_text(spec.start)))
    if spec.inherits is None:
        return dict.fromkeys(defaults, DEFAULT) | dict.fromkeys(spec.base, Origin(f"base of {spec.name}"))
    if plan.options.inherit == "winners":
        return dict(found[spec.inherits].carried)
    published = published_config(plan.specs, spec.inherits, plan.options.set)
    return {
        param: DEFAULT if value == defaults[param] else Origin("published choice")
        for param, value in published.items()
    }


def _carried(spec: StudySpec, inherited: dict[str, Origin], decision: Decision | None) -> dict[str, Origin]:
    """Return where the values come from that a study hands on."""
    if decision is None or not decision.adopted or decision.winner is None:
        return inherited
    source = decision.winner.source
    fixed = dict.fromkeys(spec.fixed, Origin(f"fixed by {spec.name}", source))
    return inherited | fixed | dict.fromkeys(spec.search, Origin(f"chosen by {spec.name}", source))
