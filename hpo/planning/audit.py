"""The audit of pruning: a random share of the pruned points is trained on, to see what pruning misses.

Who is audited is drawn by point, so that it is the same after a kill and on every machine. An audited trial
stays PRUNED: samplers, pruners and decisions see it as it was when the pruner stopped it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import comb

from optuna.trial import FrozenTrial, TrialState

from hpo.planning.metrics import Metric
from hpo.space.parameters import canonical_json
from hpo.storage.queue import Reason, reason_of
from hpo.storage.trials import AUDIT_KEY

ALPHA = 0.05

_NOT_PRUNED = (Reason.DIVERGED, Reason.CUT_SHORT, Reason.INFEASIBLE)
"""Why trials are PRUNED that no pruner stopped."""


@dataclass(frozen=True)
class Audit:
    """What the audit of a study, or of several, found."""

    pruned: int
    """Points that a pruner stopped."""
    audited: int
    """Those of them that were trained on to their end."""
    within_delta: int
    """Those of the audited that came within `delta` of the winner, or beat it."""
    delta: float
    interval: tuple[int, int] | None
    """How many of all the pruned would have, with 95 % confidence; None: nothing was audited."""


def is_audited(share: float, seed: int, study: str, point: str) -> bool:
    """Draw whether a point is trained on if a pruner stops it.

    Args:
        share: of all points.
        seed: of the plan.
        study: that the point belongs to.
        point: as `Slot` has it.
    """
    drawn = hashlib.sha256(canonical_json({"seed": seed, "study": study, "point": point}).encode()).digest()
    return int.from_bytes(drawn[:8]) < share * 2**64


def audit_of(trials: Iterable[FrozenTrial], winner: float, metric: Metric, delta: float) -> Audit:
    """Return what the audit of a study found.

    Args:
        trials: the accepted ones, at least in outline.
        winner: the value that the study hands on.
        metric: the plan's objective.
        delta: a difference up to it does not matter.
    """
    pruned = [t for t in trials if t.state == TrialState.PRUNED and reason_of(t) not in _NOT_PRUNED]
    reached = [trial.user_attrs[AUDIT_KEY]["value"] for trial in pruned if AUDIT_KEY in trial.user_attrs]
    near = sum(value is not None and metric.gain(winner, value) <= delta for value in reached)
    return _audit(len(pruned), len(reached), near, delta)


def together(audits: Iterable[Audit]) -> Audit | None:
    """Return the audits of several studies as one; None of none."""
    found = list(audits)
    if not found:
        return None
    pruned, audited, near = (
        sum(getattr(a, name) for a in found) for name in ("pruned", "audited", "within_delta")
    )
    return _audit(pruned, audited, near, found[0].delta)


def _audit(pruned: int, audited: int, near: int, delta: float) -> Audit:
    return Audit(pruned, audited, near, delta, _interval(pruned, audited, near) if audited else None)


@cache
def _interval(total: int, drawn: int, hits: int) -> tuple[int, int]:
    """Return between which numbers of hits in a finite population lies, of which some were drawn at random.

    It is the exact interval of Clopper and Pearson (1934) with the hypergeometric distribution in place of
    the binomial (Buonaccorsi 1987): of few points many may have been drawn, and of all there is no doubt.
    """

    def at_least(true: int) -> float:
        """Probability of so many hits or more, if so many of all are."""
        ways = sum(comb(true, k) * comb(total - true, drawn - k) for k in range(hits, drawn + 1))
        return ways / comb(total, drawn)

    def at_most(true: int) -> float:
        ways = sum(comb(true, k) * comb(total - true, drawn - k) for k in range(hits + 1))
        return ways / comb(total, drawn)

    possible = range(hits, total - (drawn - hits) + 1)
    low = bisect_left(possible, True, key=lambda true: at_least(true) > ALPHA / 2)
    high = bisect_left(possible, True, key=lambda true: at_most(true) <= ALPHA / 2) - 1
    return possible[low], possible[high]


def in_words(audit: Audit, metric: Metric) -> str:
    """Return what the audit found."""
    of_pruned = f"{audit.audited} of {audit.pruned} pruned points"
    if audit.interval is None:
        return f"audit of pruning: none of {audit.pruned} pruned points was drawn to be trained on"
    low, high = audit.interval
    number = f"{low}" if low == high else f"{low} to {high}"
    within = (
        f"came within {metric.distance(audit.delta)} of the winner" if audit.delta else "reached the winner"
    )
    near = f"{audit.within_delta or 'none'} of them {within}"
    unknown = audit.audited < audit.pruned
    of_all = f", and of all {audit.pruned} it would be {number} (95 % confidence)" if unknown else ""
    return f"audit of pruning: {of_pruned} were trained on to their end; {near}{of_all}"
