"""The confirmation: what the search adopted, tried again on fresh seeds before the test set is opened.

An *arm* is a configuration that is trained on these seeds: the one that the search chose, and for each
adopted decision that one without it. What is not shown to be better is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any

from hpo._text import params_text
from hpo.planning.decisions import Closed, Configuration, Inherited, Record
from hpo.planning.metrics import Metric
from hpo.planning.verdicts import LOOKS, Comparison, Verdict, in_words, judge, p_values
from hpo.space.constraints import Constraint
from hpo.space.parameters import ParamValue, ParamValues
from hpo.space.schema import Schema

CHOSEN = "as chosen"
"""The arm that all others are compared with."""
DIVERGED, FAILED = -math.inf, math.nan
"""Scores of seeds that have none."""


class Obstacle(StrEnum):
    """Why a decision cannot be tried again."""

    OVERRULED = "overruled"
    """Later studies changed all of it once more."""
    NO_EFFECT = "no effect"
    """The final configuration trains the same without it."""
    CONSTRAINT = "constraint"
    """Without it a constraint would not hold."""
    CHOSEN = "chosen"
    """It was made by a rule on two objectives, of which fresh seeds would try the one alone."""
    FAILED = "failed"
    """A training that it takes failed for good."""
    CLOSED = "closed"
    """The confirmation was closed before it had the seeds for a first look."""


class Change(Record):
    """What an adopted decision changed, and the configuration that the search chose, without it."""

    study: str
    params: dict[str, ParamValue]
    before: dict[str, ParamValue]
    without: Configuration | None
    """None where that is no configuration, as a constraint does not hold."""
    obstacle: Obstacle | None = None
    constraint: str = ""
    """The one that would not hold without it."""

    @property
    def arm(self) -> str:
        """The name of the arm without it."""
        return f"without {self.study}"


class Arms(Record):
    """What the confirmation trains, as of its beginning."""

    chosen: Inherited
    """What the final stage would train."""
    start: Configuration
    """What the changes were laid over, one after the other."""
    changes: tuple[Change, ...]

    @property
    def testable(self) -> list[Change]:
        """The changes that can be tried again."""
        return [change for change in self.changes if change.obstacle is None]

    @property
    def configs(self) -> dict[str, dict[str, ParamValue]]:
        """The configuration of each arm, the chosen one first."""
        others = {each.arm: each.without for each in self.testable if each.without is not None}
        return {CHOSEN: self.chosen.params, **others}

    def without(self, studies: Sequence[str]) -> dict[str, ParamValue]:
        """Return the chosen configuration without what these studies changed."""
        return without(self.start, {each.study: each.params for each in self.changes}, studies)


class ConfirmedDecision(Record):
    """What fresh seeds say of a decision."""

    study: str
    change: dict[str, ParamValue]
    before: dict[str, ParamValue]
    verdict: Verdict
    difference: float | None
    """Of the metric with the change against without it, mean over the seeds; None where it was not tested."""
    interval: tuple[float, float] | None
    seeds: int
    p_value: float | None
    p_adjusted: float | None
    """By Holm, among all decisions that were tested."""
    kept: bool
    obstacle: Obstacle | None = None
    constraint: str = ""
    """The one that would not hold without it."""


class Confirmation(Record):
    """What is left of the decisions of a plan, and what the final stage therefore trains."""

    decisions: tuple[ConfirmedDecision, ...]
    inherited: Inherited
    """With the mean over the fresh seeds, where one arm is exactly that."""
    has_own_splits: bool
    """Whether every seed drew its own validation part."""
    closed: Closed | None = None
    """Why it ended before every decision had a verdict; None: it did not."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo confirm --json` prints it."""
        return {
            "decisions": [each.model_dump(mode="json") for each in self.decisions],
            "configuration": self.inherited.params,
            **({"closed": self.closed.model_dump(mode="json")} if self.closed else {}),
        }

    @property
    def taken_back(self) -> list[str]:
        """The studies whose decisions are not kept."""
        return [each.study for each in self.decisions if not each.kept]


def without(
    start: ParamValues, changes: Mapping[str, ParamValues], studies: Sequence[str]
) -> dict[str, ParamValue]:
    """Lay changes over a configuration, one after the other, without those of some studies."""
    params = dict(start)
    for study, change in changes.items():
        if study not in studies:
            params.update(change)
    return params


# --- the seeds -------------------------------------------------------------------------------------------

Trained = tuple[str, int]
"""An arm, and the place of a seed among the fresh ones."""


@dataclass(frozen=True)
class Weighed:
    """What the seeds so far say."""

    due: Sequence[Trained]
    """All that the next look needs, as far as it is trained or not; empty where the last look was enough."""
    gains: Mapping[str, Sequence[float]]
    """By study that was tested, the gain of each seed."""
    comparisons: Mapping[str, Comparison]
    """By study that was tested."""
    failed: frozenset[str]
    """Studies whose decisions could not be tested to the end."""


def weigh(arms: Arms, scores: Mapping[Trained, float], objective: Metric, delta: float) -> Weighed:
    """Judge the decisions, and tell what has to be trained for those that are still open.

    What a look asks for follows from whole earlier looks alone: whoever asks finds the same.

    Args:
        arms: that are compared.
        scores: of the seeds that have ended, or `DIVERGED` or `FAILED`.
        objective: whose scores they are.
        delta: differences below it do not matter.
    """
    open_ = arms.testable
    gains: dict[str, list[float]] = {}
    comparisons: dict[str, Comparison] = {}
    failed: set[str] = set()
    for n_seeds in LOOKS if open_ else ():
        names = [CHOSEN, *(each.arm for each in open_)]
        due = [(arm, place) for place, arm in product(range(n_seeds), names)]
        if any(each not in scores for each in due):
            return Weighed(due, gains, comparisons, frozenset(failed))
        worst = 0.0
        if not (objective.is_share and objective.is_maximized):
            worst = min((scores[each] for each in due if math.isfinite(scores[each])), default=0.0)
        for each in open_:
            found = [(scores[CHOSEN, place], scores[each.arm, place]) for place in range(n_seeds)]
            if any(math.isnan(score) for pair in found for score in pair):
                failed.add(each.study)
                gains.pop(each.study, None)
            else:
                gains[each.study] = [max(ours, worst) - max(theirs, worst) for ours, theirs in found]
        comparisons = judge(gains, delta) if gains else {}
        open_ = [
            each for each in open_ if each.study not in failed and comparisons[each.study].verdict is None
        ]
        if not open_:
            break
    return Weighed((), gains, comparisons, frozenset(failed))


# --- what is left ----------------------------------------------------------------------------------------


def conclude(
    arms: Arms,
    weighed: Weighed,
    scores: Mapping[Trained, float],
    constraints: Mapping[str, Sequence[Constraint]],
    objective: Metric,
    schema: Schema,
    *,
    keep_equivalent: bool,
    has_own_splits: bool,
    closed: Closed | None = None,
) -> Confirmation:
    """Take back what is not shown to be better, and say what that leaves.

    Args:
        arms: that were compared.
        weighed: as `weigh` found them in the end.
        scores: as of `weigh`.
        constraints: that have to hold, by the study that demands them; "" for those of the recipe.
        objective: what the plan tunes for.
        schema: of the recipe's parameters; says what configurations cost.
        keep_equivalent: keep what is shown to make no difference that matters as well.
        has_own_splits: whether every seed drew its own validation part.
        closed: why it takes no more seeds, where it was closed before all verdicts.
    """
    wanted = {Verdict.BETTER, *([Verdict.EQUIVALENT] if keep_equivalent else [])}
    back = [study for study, each in weighed.comparisons.items() if each.verdict not in wanted]
    broken: dict[str, str] = {}
    if first_broken(arms.without(back), constraints, back, schema):
        # not all of them together: the later ones first, as far as the constraints let them go
        taken: list[str] = []
        for study in reversed(back):
            tried = [*taken, study]
            constraint = first_broken(arms.without(tried), constraints, tried, schema)
            if constraint:
                broken[study] = constraint
            else:
                taken.append(study)
        back = taken
    p_of = p_values(weighed.gains) if weighed.gains else {}
    decisions = []
    for change in arms.changes:
        study = change.study
        comparison, p = weighed.comparisons.get(study), p_of.get(study, (None, None))
        verdict = comparison and (comparison.verdict or Verdict.NOT_SHOWN)
        obstacle = Obstacle.FAILED if study in weighed.failed else change.obstacle
        if obstacle is None and comparison is None:
            obstacle = Obstacle.CLOSED
        decisions.append(
            ConfirmedDecision(
                study=study,
                change=change.params,
                before=change.before,
                verdict=verdict or Verdict.NOT_TESTED,
                difference=comparison and objective.score(comparison.difference),
                interval=_ends(comparison, objective),
                seeds=comparison.n_seeds if comparison else 0,
                p_value=p[0],
                p_adjusted=p[1],
                kept=study not in back,
                obstacle=Obstacle.CONSTRAINT if study in broken else obstacle,
                constraint=broken.get(study, change.constraint),
            )
        )
    return Confirmation(
        decisions=tuple(decisions),
        inherited=_left(arms, back, scores, objective),
        has_own_splits=has_own_splits,
        closed=closed,
    )


def _ends(comparison: Comparison | None, objective: Metric) -> tuple[float, float] | None:
    if comparison is None or comparison.interval is None:
        return None
    low, high = sorted(map(objective.score, comparison.interval))
    return low, high


def _left(arms: Arms, back: Sequence[str], scores: Mapping[Trained, float], objective: Metric) -> Inherited:
    """Return what the final stage trains."""
    if not back:
        return arms.chosen
    params = arms.without(back)
    same = next((arm for arm, config in arms.configs.items() if config == params), None)
    found = [score for (arm, _), score in scores.items() if arm == same and math.isfinite(score)]
    value = objective.score(math.fsum(found) / len(found)) if found else None
    return Inherited(study=arms.chosen.study, source=None, params=params, value=value)


def first_broken(
    params: ParamValues,
    constraints: Mapping[str, Sequence[Constraint]],
    studies: Sequence[str],
    schema: Schema,
) -> str:
    """Return a constraint that a configuration breaks; empty where all hold.

    Args:
        params: a whole configuration.
        constraints: as of `conclude`.
        studies: that it is without; their own constraints do not count: what they inherited may break them.
        schema: as of `conclude`.
    """
    demanded = (each for name, some in constraints.items() if name not in studies for each in some)
    broken = schema.first_broken(demanded, params)
    return str(broken) if broken else ""


# --- in words --------------------------------------------------------------------------------------------


def decision_in_words(decision: ConfirmedDecision, metric: Metric, *, has_own_splits: bool) -> str:
    """Return what fresh seeds say of a decision, and what becomes of it."""
    becomes = "kept" if decision.kept else "taken back"
    why = {
        None: "",
        Obstacle.OVERRULED: "later studies changed all of it once more",
        Obstacle.NO_EFFECT: "the chosen configuration trains the same without it",
        Obstacle.CONSTRAINT: f"without it {decision.constraint} would not hold",
        Obstacle.CHOSEN: "it follows a rule on two objectives, and fresh seeds would try one alone",
        Obstacle.FAILED: "a training that the test takes failed for good",
        Obstacle.CLOSED: "the confirmation was closed before",
    }[decision.obstacle]
    if decision.difference is None:
        return f"{becomes}, not tested: {why}"
    becomes = f"{becomes}, as {why};" if why else f"{becomes},"
    sign = metric.score(1.0)
    interval = decision.interval and (sign * decision.interval[0], sign * decision.interval[1])
    found = Comparison(decision.verdict, decision.seeds, sign * decision.difference, interval)
    fresh = f"{decision.seeds} fresh seeds{', each with its own split' if has_own_splits else ''}"
    p = ""
    if decision.verdict in (Verdict.BETTER, Verdict.NOT_SHOWN) and decision.p_adjusted is not None:
        p = f"; p ≤ {decision.p_adjusted:.2g}"
    return f"{becomes} {in_words(found, metric)} ({fresh}{p})"


def change_text(decision: ConfirmedDecision) -> str:
    """Return what a decision changed, in a few words."""
    return f"{params_text(decision.change)} instead of {params_text(decision.before)}"


def outcome_in_words(confirmation: Confirmation) -> str:
    """Return what is left of the decisions, in a line, with what the configuration has for each."""
    if not confirmation.decisions:
        return "nothing to confirm: no study adopted a change"
    params = confirmation.inherited.params
    said: dict[bool, list[str]] = {True: [], False: []}
    for each in confirmation.decisions:
        left = params_text({name: params[name] for name in each.change})
        said[each.kept].append(f"{each.study} ({left})")
    parts = [f"closed by {confirmation.closed.text}"] if confirmation.closed else []
    parts += [f"took back {', '.join(said[False])}"] if said[False] else []
    return "; ".join([*parts, f"kept {', '.join(said[True]) or 'nothing'}"])
