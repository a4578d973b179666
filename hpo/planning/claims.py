"""Claims judged by what a plan has trained, and the cells that are still to be trained for them.

A contrast is a weighted sum of cells, the mean over their seeds of each seed's best epoch. What counts is
how far apart seeds of one configuration are: the variance is pooled over all configurations with two seeds
or more, a cell that varies more has its own, and the degrees of freedom are Satterthwaite's (1946). Shares
of seeds in a state have the limits of Clopper & Pearson (1934), and their difference those that Newcombe
(1998) makes of them.

Seeds come in looks, and what is decided is trained no further. Each look spends a part of the error rate, by
α·t² over the share t of the seeds (Kim & DeMets 1987); all parts add up to it, whatever the looks have in
common. An interval is that of its look: it covers with 95 % at least, at whichever look one stops.

A trial that was chosen for its score is favoured by that. So the configuration that a claim's study inherited
counts by other seeds alone than those by which it was chosen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from statistics import fmean
from typing import Any, Self

from optuna.trial import FrozenTrial, TrialState

from hpo._text import duration, params_text, seeds_text, show_value
from hpo.errors import InputError
from hpo.planning.decisions import TrialRef, epochs_of
from hpo.planning.diagnostics import findings
from hpo.planning.inheritance import context_of, control_config, inherited_by
from hpo.planning.manifest import unreadable
from hpo.planning.metrics import Metric
from hpo.planning.plan import CLAIMS, FINAL, Plan
from hpo.planning.verdicts import ERROR_RATE, SAID, Comparison, Verdict, verdict_of
from hpo.space.claim_file import Claim, Claims, Contrast
from hpo.space.parameters import ParamValue, ParamValues, canonical_json
from hpo.storage.queue import Job, Reason, Slot, Slots, reason_of

SEED_OFFSET = 30_000
"""The seeds that claims add start so far above the search's."""
LOOKS = (3, 5, 8, 12)
"""Seeds a cell at each look."""
POWER = 0.8
MIN_DF = 3
"""With fewer degrees of freedom a deviation is too uncertain to tell a price by."""
DELTA_OF_STATE = 0.5
"""A smaller difference of shares does not matter, unless the claim says otherwise: half of the seeds."""


class ClaimVerdict(StrEnum):
    """What a plan says of a claim."""

    CONFIRMED = "confirmed"
    DENIED = "denied"
    OPEN = "open"


@dataclass(frozen=True)
class Run:
    """One seed of one configuration."""

    ref: TrialRef
    score: float
    """The objective at the seed's best epoch, the higher the better."""
    states: frozenset[str]
    is_whole: bool
    """Whether it was trained to its end."""


@dataclass(frozen=True)
class Cell:
    """A configuration that a claim asks about, with what was found of it."""

    params: ParamValues
    """As the claim has it."""
    config: dict[str, ParamValue]
    """Complete, with what means nothing in it at its default."""
    runs: Mapping[int, Run]
    """By seed."""
    asked: Collection[int]
    """The seeds that were queued for claims, however they ended."""

    @property
    def key(self) -> str:
        """What tells it from others; in the study of the claims it is its point."""
        return canonical_json(self.config)

    @property
    def scores(self) -> list[float]:
        """The scores of the seeds that were trained to their end."""
        return [run.score for run in self.runs.values() if run.is_whole]

    @property
    def trials(self) -> list[TrialRef]:
        """The trials that its runs are of."""
        return list({run.ref.name: run.ref for run in self.runs.values()}.values())

    def n_seeds(self, state: str | None) -> int:
        """Return how many seeds bear on a state; of None, on the objective, which takes whole runs."""
        return len(self.runs if state else self.scores)

    def n_tried(self, state: str | None) -> int:
        """Return how many seeds bear on it, will, or were to but have failed."""
        known = {seed for seed, run in self.runs.items() if state or run.is_whole}
        return len(known | set(self.asked))


@dataclass(frozen=True)
class ContrastResult:
    """What was found of a contrast."""

    contrast: Contrast
    what: str
    """What is compared."""
    delta: float
    """A smaller difference does not matter."""
    comparison: Comparison
    text: str
    cells: Sequence[Cell]
    n_wanted: int
    """Seeds that each cell is to have at the next look; 0: there is none."""
    n_at_power: int | None
    """Seeds a cell that would show a difference of delta with a power of 80 %; None: nobody knows."""


@dataclass(frozen=True)
class ClaimResult:
    """What was found of a claim."""

    claim: Claim
    verdict: ClaimVerdict
    contrasts: Sequence[ContrastResult]
    obstacle: str = ""
    """Why its cells are not known yet; empty where they are."""
    limits: Sequence[str] = ()
    """Why it stays open whatever the cells say; empty where it need not."""

    @property
    def cells(self) -> list[Cell]:
        """Its cells, each once."""
        return list({cell.key: cell for each in self.contrasts for cell in each.cells}.values())

    @property
    def trials(self) -> list[TrialRef]:
        """The trials that its cells were found in."""
        return list({ref.name: ref for cell in self.cells for ref in cell.trials}.values())

    @property
    def missing(self) -> list[tuple[Cell, int]]:
        """The cells that the next look needs, each with the number of seeds that it lacks."""
        return self._lacking([each.n_wanted for each in self.contrasts])

    @property
    def at_power(self) -> list[tuple[Cell, int]]:
        """The cells that lack seeds for a power of 80 %, each with their number."""
        return self._lacking([max(each.n_wanted, each.n_at_power or 0) for each in self.contrasts])

    def _lacking(self, wanted: Sequence[int]) -> list[tuple[Cell, int]]:
        if self.verdict != ClaimVerdict.OPEN or self.limits:
            return []
        return most_lacking(
            [(cell, n_seeds - cell.n_tried(each.contrast.state)) for cell in each.cells]
            for each, n_seeds in zip(self.contrasts, wanted, strict=True)
        )

    @property
    def text(self) -> str:
        """What was found, in sentences."""
        if self.obstacle:
            return f"{self.obstacle}."
        found = "; ".join(each.text for each in self.contrasts) + "."
        if not self.limits:
            return found
        would_be = claim_verdict(self.contrasts)
        stays = f"that would be {would_be}, but " if would_be != ClaimVerdict.OPEN else "it stays open: "
        return f"{found} Here {stays}{' and '.join(self.limits)}."


@dataclass(frozen=True)
class Noise:
    """How far seeds of one configuration are apart."""

    variance: float | None
    """Pooled; None where no configuration has two seeds."""
    df: int

    @classmethod
    def of(cls, configurations: Iterable[Collection[Run]]) -> Self:
        """Return the noise between the runs of each configuration."""
        squares, df = 0.0, 0
        for runs in configurations:
            # networks that answer the same to everything agree perfectly, which says nothing of the others
            scores = [run.score for run in runs if run.is_whole]
            if len(scores) > 1 and not any(run.states & _COLLAPSED for run in runs):
                squares += (len(scores) - 1) * _variance(scores)
                df += len(scores) - 1
        return cls(squares / df if df and squares else None, df)

    def text(self, metric: Metric) -> str:
        """Return it in a sentence."""
        if self.variance is None:
            return "No configuration was trained on two seeds, so nobody knows how much seeds alone do."
        return (
            f"{metric.title} of one configuration varies by {metric.distance(math.sqrt(self.variance))} from "
            f"seed to seed (standard deviation; {self.df} degree{'s' * (self.df > 1)} of freedom)."
        )


@dataclass(frozen=True)
class Price:
    """What it takes to train cells."""

    cells: int
    seeds: int
    """Of all cells together."""
    epochs: int
    """Of all seeds together."""
    seconds: float | None
    """On one worker, by what an epoch has taken so far; None before any."""

    @property
    def text(self) -> str:
        """The price in words."""
        time = f", about {duration(self.seconds)} of training" if self.seconds is not None else ""
        cells = "one cell" if self.cells == 1 else f"{self.cells} cells"
        return f"{cells}, {self.seeds:,} seeds in all, {self.epochs:,} epochs{time}"


@dataclass(frozen=True)
class Judgement:
    """What a plan says of its claims."""

    metric: Metric
    results: Sequence[ClaimResult] = ()
    noise: Noise = Noise(None, 0)
    off_topic: str = ""
    """Why nobody judges them on these data; empty where they are about them."""
    seconds_per_epoch: float | None = None
    """Of one seed, mean over all that were trained."""

    def price(self, results: Sequence[ClaimResult], *, at_power: bool = False) -> Price:
        """Return what these claims lack: seeds for the next look, or for a power of 80 %."""
        lacking = most_lacking(each.at_power if at_power else each.missing for each in results)
        epochs = sum(n_seeds * int(cell.config["epochs"]) for cell, n_seeds in lacking)
        rate = self.seconds_per_epoch
        seconds = None if rate is None else rate * epochs
        return Price(len(lacking), sum(n_seeds for _, n_seeds in lacking), epochs, seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo claims --json` prints it."""
        deviation = None if self.noise.variance is None else math.sqrt(self.noise.variance)
        return {
            "metric": self.metric.name,
            "noise": {"deviation": deviation, "df": self.noise.df},
            "off_topic": self.off_topic,
            "claims": [self._claim_to_json(each) for each in self.results],
        }

    def _claim_to_json(self, result: ClaimResult) -> dict[str, Any]:
        return {
            "text": result.claim.text,
            "study": result.claim.study,
            "verdict": result.verdict,
            "evidence": result.text,
            "contrasts": [self._contrast_to_json(each) for each in result.contrasts],
            "missing": [{"params": cell.params, "seeds": n_seeds} for cell, n_seeds in result.missing],
            "price": asdict(self.price([result])),
            "price_at_power": asdict(self.price([result], at_power=True)),
        }

    def _contrast_to_json(self, result: ContrastResult) -> dict[str, Any]:
        found, state = result.comparison, result.contrast.state
        signed = float if state else self.metric.score
        return {
            **result.contrast.model_dump(mode="json", exclude_defaults=True),
            "text": result.text,
            "verdict": found.verdict,
            "difference": signed(found.difference),
            "interval": found.interval and sorted(map(signed, found.interval)),
            "seeds": found.n_seeds,
            "seeds_at_power": result.n_at_power,
            "cells": [
                {
                    "params": cell.params,
                    "seeds": cell.n_seeds(state),
                    "trials": [ref.name for ref in cell.trials],
                }
                for cell in result.cells
            ],
        }


def most_lacking(parts: Iterable[Sequence[tuple[Cell, int]]]) -> list[tuple[Cell, int]]:
    """Return each cell once, with the most seeds that are asked of it."""
    found: dict[str, tuple[Cell, int]] = {}
    for cell, n_seeds in (each for part in parts for each in part):
        if n_seeds > found.get(cell.key, (cell, 0))[1]:
            found[cell.key] = cell, n_seeds
    return list(found.values())


def judge(plan: Plan, claims: Claims | None = None) -> Judgement:
    """Judge claims by what a plan has trained so far.

    Args:
        plan: to be judged by.
        claims: None: those that are stored with the plan.
    """
    stated = stored_claims(plan) if claims is None else claims
    classes = stated.about.classes
    if classes and set(classes) != set(plan.identity.class_names):
        return Judgement(
            plan.objective, off_topic=f"the claims are about other classes: {', '.join(classes)}"
        )
    if not stated.claims:
        return Judgement(plan.objective)
    evidence = _Evidence(plan)
    results = [_judge_one(plan, claim, stated, evidence) for claim in stated.claims]
    return Judgement(plan.objective, results, evidence.noise, seconds_per_epoch=evidence.seconds_per_epoch)


def _judge_one(plan: Plan, claim: Claim, claims: Claims, evidence: _Evidence) -> ClaimResult:
    try:
        context, chosen = _start(plan, claim.study)
        cell_of = partial(evidence.cell, context=context, chosen=chosen)
        results = [
            judge_contrast(each, cell_of, evidence.noise, plan.objective, _delta(each, plan))
            for each in claim.contrasts
        ]
    except _UnknownError as error:
        return ClaimResult(claim, ClaimVerdict.OPEN, (), str(error))
    limits = _limits(plan, claims, context)
    verdict = ClaimVerdict.OPEN if limits else claim_verdict(results)
    return ClaimResult(claim, verdict, results, limits=limits)


class _UnknownError(Exception):
    """It is not known yet what a claim's cells are; the text says why."""


def _start(plan: Plan, name: str) -> tuple[dict[str, ParamValue], ParamValues | None]:
    """Return what a claim's cells are laid over, and what was chosen for its score, if anything was."""
    inherited = inherited_by(plan, name)
    parent = plan.specs[name].inherits
    if inherited is None and parent is not None:
        raise _UnknownError(f"its cells are known once {parent} has decided")
    chosen = control_config(plan, inherited) if inherited and inherited.source else None
    return context_of(plan, name, inherited), chosen


def _limits(plan: Plan, claims: Claims, context: ParamValues) -> list[str]:
    """Return why the runs here say too little about what the claims are about; empty where they do not."""
    about, identity, reasons = claims.about, plan.identity, []
    if identity.n_train < about.n_train:
        examples = "images" if identity.is_images else "rows"
        reasons.append(f"only {identity.n_train:,} + {identity.n_valid:,} of the {examples} were used")
    if int(context["epochs"]) < about.epochs:
        reasons.append(f"only {context['epochs']} of {about.epochs} epochs were trained")
    return reasons


def claim_verdict(contrasts: Iterable[ContrastResult]) -> ClaimVerdict:
    """Return what the contrasts of a claim say of it."""
    found = {each.comparison.verdict for each in contrasts}
    if found & _DENYING:
        return ClaimVerdict.DENIED
    return ClaimVerdict.CONFIRMED if found == {Verdict.BETTER} else ClaimVerdict.OPEN


# --- evidence --------------------------------------------------------------------------------------------


class _Evidence:
    """All seeds of a plan that bear on claims, by what they train."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._runs: dict[str, dict[int, Run]] = {}
        self._inactive: dict[str, frozenset[str]] = {}
        self._asked: dict[str, set[int]] = {}
        seconds, n_epochs = 0.0, 0
        for name in [*plan.specs, FINAL, *([CLAIMS] if plan.has_cells else [])]:
            discarded = plan.record(name).discarded
            for slot, attempts in Slots.of(plan.trials(name)).attempts.items():
                if name == CLAIMS:
                    self._asked.setdefault(slot.point, set()).update(attempts[0].user_attrs["seeds"])
                for trial in attempts:
                    if trial.number in discarded:
                        continue
                    epochs = epochs_of(trial.user_attrs)
                    if trial.state in _ENDED and epochs and reason_of(trial) != Reason.DIVERGED:
                        self._add(TrialRef(study=name, trial=trial.number), trial, epochs)
                        seconds += sum(seed["seconds"] for epoch in epochs for seed in epoch)
                        n_epochs += sum(map(len, epochs))
        self.seconds_per_epoch = seconds / n_epochs if n_epochs else None
        self.noise = Noise.of(runs.values() for runs in self._runs.values())

    def _add(self, ref: TrialRef, trial: FrozenTrial, epochs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        objective, attrs = self._plan.objective, trial.user_attrs
        inactive = frozenset(attrs.get("inactive", ()))
        defaults = self._plan.schema.defaults
        config = {
            name: defaults[name] if name in inactive else value for name, value in attrs["config"].items()
        }
        key = canonical_json(config)
        self._inactive[key] = inactive
        for seed, history in zip(attrs["seeds"], zip(*epochs, strict=True), strict=True):
            is_whole = trial.state == TrialState.COMPLETE
            found = findings(
                [[epoch] for epoch in history], objective, self._plan.chances, is_complete=is_whole
            )
            run = Run(
                ref,
                max(objective.score(epoch["metrics"][objective.name]) for epoch in history),
                frozenset(each.name for each in found),
                is_whole,
            )
            known = self._runs.setdefault(key, {}).get(seed)
            # the same run in a later study says nothing new, unless the first was pruned
            if known is None or (is_whole and not known.is_whole):
                self._runs[key][seed] = run

    def cell(self, params: ParamValues, context: ParamValues, chosen: ParamValues | None) -> Cell:
        """Return a cell with what was found of it.

        Args:
            params: of the claim.
            context: what they are laid over.
            chosen: the configuration that was chosen for its score at the seeds of the search.

        Raises:
            _UnknownError: there is no such configuration.
        """
        schema = self._plan.schema
        try:
            config = schema.effective(schema.complete({**context, **params}))
        except InputError as error:
            raise _UnknownError(f"{params_text(params)} cannot be trained: {error}") from None
        runs = self._runs.get(self._key_of(config), {})
        if chosen is not None and self._key_of(schema.effective(chosen)) == self._key_of(config):
            runs = {seed: run for seed, run in runs.items() if seed not in self._plan.search_seeds}
        asked = self._asked.get(canonical_json(config), set())
        return Cell(params, config, runs, asked)

    def _key_of(self, config: ParamValues) -> str:
        """Return the key of what a configuration trains: where the recipe is not here, as trials tell it."""
        if self._plan.schema.inactive_rule is None:
            for key, inactive in self._inactive.items():
                known = json.loads(key)
                if all(known[name] == value for name, value in config.items() if name not in inactive):
                    return key
        return canonical_json(config)


_DENYING = {Verdict.WORSE, Verdict.EQUIVALENT}
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_COLLAPSED = frozenset({"dying ReLU", "constant prediction"})


# --- contrasts -------------------------------------------------------------------------------------------


def judge_contrast(
    contrast: Contrast, cell_of: Callable[[ParamValues], Cell], noise: Noise, metric: Metric, delta: float
) -> ContrastResult:
    """Say what is shown of a contrast, and how many seeds its cells are to have next.

    Args:
        contrast: of a claim.
        cell_of: finds what was trained of one of its cells.
        noise: of the plan.
        metric: the objective.
        delta: a smaller difference does not matter.
    """
    sums = [[(weight, cell_of(cell)) for weight, cell in weighted] for weighted in contrast.comparisons]
    cells = list({cell.key: cell for weighted in sums for _, cell in weighted}.values())
    n_seeds = min(cell.n_seeds(contrast.state) for cell in cells)
    # the best of the values within is looked for, and either end may deny it
    n_tests = max(2, len(sums) // 2) if contrast.inside else 1
    compared = [compare_cells(each, contrast.state, delta, noise, n_tests) for each in sums]
    comparison, place = _innermost(compared) if contrast.inside else (compared[0], 0)
    is_decided = comparison.verdict is not None
    return ContrastResult(
        contrast,
        _contrast_text(contrast, sums[place]),
        delta,
        comparison,
        _in_words(contrast, comparison, sums[place], metric),
        cells,
        0 if is_decided else _next_look(cells, contrast.state, n_seeds),
        None if is_decided or contrast.state else _n_at_power(sums, delta, noise),
    )


def _delta(contrast: Contrast, plan: Plan) -> float:
    if contrast.delta is not None:
        return contrast.delta
    return DELTA_OF_STATE if contrast.state else plan.delta


def _error_rate(n_seeds: int) -> float:
    """Return what the latest look at so many seeds a cell may spend; 0 before the first look."""
    taken = [0, *(look for look in LOOKS if look <= n_seeds)]
    before, latest = taken[-2:] if len(taken) > 1 else (0, 0)
    return ERROR_RATE * (latest**2 - before**2) / LOOKS[-1] ** 2


def _next_look(cells: Sequence[Cell], state: str | None, n_seeds: int) -> int:
    n_tried = min(cell.n_tried(state) for cell in cells)
    # seeds that are under way are waited for; of what fails no more are asked for than of the rest
    return next((look for look in LOOKS if look > n_seeds and look >= n_tried), LOOKS[-1])


def compare_cells(
    weighted: Sequence[tuple[float, Cell]], state: str | None, delta: float, noise: Noise, n_tests: int = 1
) -> Comparison:
    """Say what is shown of a weighted sum of cells by the seeds so far.

    Args:
        weighted: weights, which add up to 0, and cells.
        state: the sum is of the shares of seeds in this state; None: of the means of the objective.
        delta: a smaller sum does not matter.
        noise: of the plan.
        n_tests: how many such sums share the error rate.
    """
    n_seeds = min(cell.n_seeds(state) for _, cell in weighted)
    level = _error_rate(n_seeds) / n_tests
    if n_seeds == 0:
        return Comparison(None, 0, math.nan, None)
    if state:
        difference, intervals = _of_shares(weighted, state, level)
    else:
        difference, intervals = _of_means(weighted, level, noise)
    if not intervals:
        return Comparison(None, n_seeds, difference, None)
    verdict: Verdict | None = verdict_of(*intervals, delta)
    if verdict == Verdict.NOT_SHOWN and n_seeds < LOOKS[-1]:
        verdict = None
    return Comparison(verdict, n_seeds, difference, intervals[0])


Interval = tuple[float, float]
Intervals = tuple[Interval, Interval] | None
"""At 1 - level and at 1 - 2·level; None before the first look, and where no deviation is known."""


def _of_means(weighted: Sequence[tuple[float, Cell]], level: float, noise: Noise) -> tuple[float, Intervals]:
    from scipy.special import stdtrit  # most plans that are just begun have no use for scipy

    difference, pooled, terms = 0.0, 0.0, []
    for weight, cell in _summed(weighted):
        scores = cell.scores
        difference += weight * fmean(scores)
        own = _variance(scores) if len(scores) > 1 else 0.0
        if own > (noise.variance or 0.0):
            terms.append((weight**2 * own / len(scores), len(scores) - 1))
        else:
            pooled += weight**2 * (noise.variance or 0.0) / len(scores)
    terms += [(pooled, noise.df)] if pooled else []
    total = math.fsum(term for term, _ in terms)
    if not level or not total:
        return difference, None
    df = total**2 / math.fsum(term**2 / df for term, df in terms)

    def interval(rate: float) -> Interval:
        reach = float(stdtrit(df, 1 - rate / 2)) * math.sqrt(total)
        return difference - reach, difference + reach

    return difference, (interval(level), interval(2 * level))


def _variance(values: Sequence[float]) -> float:
    # `statistics.variance` counts in fractions
    center = fmean(values)
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def _summed(weighted: Sequence[tuple[float, Cell]]) -> list[tuple[float, Cell]]:
    """Return each cell once."""
    cells = {cell.key: cell for _, cell in weighted}
    weights = dict.fromkeys(cells, 0.0)
    for weight, cell in weighted:
        weights[cell.key] += weight
    return [(weights[key], cell) for key, cell in cells.items()]


def _counts(weighted: Sequence[tuple[float, Cell]], state: str) -> list[tuple[int, int]]:
    """Return how many runs are in a state, of how many; where they are to be, and where not."""
    sides = []
    for sign in (1, -1):
        cells = {cell.key: cell for weight, cell in weighted if weight * sign > 0}
        runs = [run for cell in cells.values() for run in cell.runs.values()]
        sides.append((sum(state in run.states for run in runs), len(runs)))
    return sides


def _of_shares(weighted: Sequence[tuple[float, Cell]], state: str, level: float) -> tuple[float, Intervals]:
    (n_first, first_of), (n_second, second_of) = _counts(weighted, state)
    one, other = n_first / first_of, n_second / second_of
    if not level:
        return one - other, None

    def interval(rate: float) -> Interval:
        low, high = _exact_limits(n_first, first_of, rate)
        other_low, other_high = _exact_limits(n_second, second_of, rate)
        below, above = math.hypot(one - low, other_high - other), math.hypot(high - one, other - other_low)
        return one - other - below, one - other + above

    return one - other, (interval(level), interval(2 * level))


def _exact_limits(count: int, n_runs: int, level: float) -> tuple[float, float]:
    """Return the limits of Clopper and Pearson of a share."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, n_runs - count + 1, level / 2)) if count else 0.0
    high = float(betaincinv(count + 1, n_runs - count, 1 - level / 2)) if count < n_runs else 1.0
    return low, high


def _innermost(compared: Sequence[Comparison]) -> tuple[Comparison, int]:
    """Return the comparison that tells whether the best lies inside, and its place.

    Args:
        compared: of every value within the two against the ends, one after the other.
    """
    pairs = [(place, compared[place : place + 2]) for place in range(0, len(compared), 2)]
    weaker = {place + min((0, 1), key=lambda end: pair[end].difference): pair for place, pair in pairs}
    place = max(weaker, key=lambda place: compared[place].difference)
    found = compared[place]
    verdicts = [{each.verdict for each in pair} for pair in weaker.values()]
    if any(pair == {Verdict.BETTER} for pair in verdicts):
        return replace(found, verdict=Verdict.BETTER), place
    if all(pair & _DENYING for pair in verdicts):
        verdict = found.verdict if found.verdict in _DENYING else Verdict.WORSE
        return replace(found, verdict=verdict), place
    undecided = None if None in set().union(*verdicts) else Verdict.NOT_SHOWN
    return replace(found, verdict=undecided), place


def _n_at_power(sums: Sequence[Sequence[tuple[float, Cell]]], delta: float, noise: Noise) -> int | None:
    from scipy.special import stdtrit

    if not noise.variance or not delta or noise.df < MIN_DF:
        return None
    quantiles = stdtrit(noise.df, 1 - _error_rate(LOOKS[-1]) / 2) + stdtrit(noise.df, POWER)
    weights = max(math.fsum(weight**2 for weight, _ in _summed(weighted)) for weighted in sums)
    return max(LOOKS[0], math.ceil(noise.variance * weights * float(quantiles) ** 2 / delta**2))


# --- words -----------------------------------------------------------------------------------------------


def _in_words(
    contrast: Contrast, found: Comparison, weighted: Sequence[tuple[float, Cell]], metric: Metric
) -> str:
    what = _contrast_text(contrast, weighted)
    if not found.n_seeds:
        cells = {cell.key: cell for _, cell in weighted}.values()
        n_missing = sum(not cell.n_seeds(contrast.state) for cell in cells)
        return f"{what}: {n_missing} of {len(cells)} cells have no result"
    seeds = f"{seeds_text(found.n_seeds)} a cell"
    if contrast.state:
        (n_first, first_of), (n_second, second_of) = _counts(weighted, contrast.state)
        value = f"{n_first} of {first_of} runs against {n_second} of {second_of}"
        unit: Callable[[float], str] = _share_text
    else:
        value = f"{metric.label} {metric.signed(metric.score(found.difference))}"
        unit = metric.signed
    if found.interval is None:
        return f"{what}: needs more seeds: {value}, {seeds}"
    low, high = sorted(map(float if contrast.state else metric.score, found.interval))
    between = f"between {unit(low).removesuffix(' points')} and {unit(high)}"
    said = _STATE_SAID[found.verdict] if contrast.state else SAID[found.verdict]
    return f"{what}: {said}: {value}, {between} with 95 % confidence, {seeds}"


_STATE_SAID: dict[Verdict | None, str] = {
    None: SAID[None],
    Verdict.BETTER: "shown to happen more often",
    Verdict.WORSE: "shown to happen less often",
    Verdict.EQUIVALENT: "shown to happen about as often",
    Verdict.NOT_SHOWN: SAID[Verdict.NOT_SHOWN],
}


def _share_text(share: float) -> str:
    return f"{'+' if share >= 0 else '−'}{100 * abs(share):.0f} points"


def _contrast_text(contrast: Contrast, weighted: Sequence[tuple[float, Cell]]) -> str:
    """Return what is compared, as the beginning of a sentence."""
    if contrast.inside:
        ((name, values),) = contrast.inside.items()
        best = weighted[0][1].params[name]
        what = f"{name} {show_value(best)} against {show_value(values[0])} and {show_value(values[-1])}"
    else:
        sides = contrast.at or contrast.better, contrast.not_at or contrast.worse
        one, other = (" or ".join(map(params_text, side)) for side in sides)
        what = f"{f'{contrast.state} at ' if contrast.state else ''}{one} against {other}"
    if contrast.more_at:
        what += f", at {params_text(contrast.more_at)} beyond {params_text(contrast.less_at)}"
    over = [f"{name} {', '.join(map(show_value, values))}" for name, values in contrast.across.items()]
    return f"{what}, mean over {' and '.join(over)}" if over else what


# --- what is stored, and what is to be trained -----------------------------------------------------------


def stored_claims(plan: Plan) -> Claims:
    """Return the claims that are stored with a plan; one that was begun before there were any has none.

    Raises:
        InputError: somebody has changed them by hand into something else.
    """
    record = plan.storage.study_attrs()[FINAL].get("claims", {})
    try:
        return Claims.from_json(record, plan.schema)
    except InputError as error:
        raise unreadable(plan.storage, FINAL, str(error)) from None


def store_claims(plan: Plan, claims: Claims) -> None:
    """Store claims with a plan that exists, in place of those that it had: they change no result."""
    if claims != stored_claims(plan):
        plan.storage.set_study_attr(plan.storage.study_id(FINAL), "claims", claims.to_json())


def open_cells(plan: Plan) -> None:
    """Make the study that holds what is trained for claims alone; do nothing where it is there.

    Raises:
        InputError: no claim can have any cells trained; the text says why.
    """
    if CLAIMS in plan.specs:
        raise InputError(f"the plan has a study {CLAIMS!r}, whose name the cells of claims would need")
    found = judge(plan)
    if found.off_topic or not found.results:
        raise InputError(
            found.off_topic or "the plan has no claims; --studies DIR names a folder that has some"
        )
    if not any(map(partial(_has_ended, plan), found.results)):
        names = ", ".join(dict.fromkeys(each.claim.study for each in found.results))
        raise InputError(f"no study that has claims has decided yet ({names}); `hpo run` trains them first")
    if not plan.has_cells:
        plan.storage.create_study(CLAIMS, {"n_points": 0}, plan.objective.direction)


def cell_jobs(plan: Plan, slots: Slots) -> list[Job]:
    """Return what is still to be queued for claims: the seeds that cells lack for their next look.

    A cell is a point of its own, whatever claims share it, and further seeds are a replicate of it. Claims
    about a study wait until that has decided: its points are evidence, and nothing is trained twice.

    Args:
        plan: bound to its recipe.
        slots: of the study of the claims.
    """
    results = [each for each in judge(plan).results if _has_ended(plan, each)]
    jobs = list[Job]()
    for cell, n_seeds in most_lacking(each.missing for each in results):
        replicate = sum(slot.point == cell.key for slot in slots.attempts)
        first = max(cell.asked, default=plan.options.seed + SEED_OFFSET - 1) + 1
        place = len(slots.attempts) + len(jobs)
        jobs.append(Job(Slot(cell.key, replicate), place, tuple(range(first, first + n_seeds))))
    return jobs


def _has_ended(plan: Plan, result: ClaimResult) -> bool:
    return plan.decision(result.claim.study) is not None
