"""What a finished study decides: its winner against the configuration that it inherited.

Everything is read from the trials' attributes; nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Literal

from optuna.trial import FrozenTrial, TrialState
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation, ValidationInfo

from hpo._text import params_text, seeds_text, short_duration
from hpo.errors import InputError
from hpo.planning.metrics import Metric
from hpo.planning.race import RaceResult
from hpo.space.choice import Choice
from hpo.space.constraints import SECONDS_AN_EPOCH
from hpo.space.parameters import ParamValue
from hpo.space.schema import Schema
from hpo.storage.queue import Reason, reason_of
from hpo.storage.trials import COSTS_KEY

MIN_SEEDS_TO_TEST = 3
"""With fewer seeds a difference has no deviation worth the name: the decision is marked *not tested*."""


def _complete(params: dict[str, ParamValue], info: ValidationInfo) -> dict[str, ParamValue]:
    """Check that parameters are a whole configuration: what is missing must not become a default unseen."""
    schema: Schema | None = (info.context or {}).get("schema")
    if schema is None:  # not read from a database
        return params
    missing = [name for name in schema.parameters if name not in params]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    try:
        schema.complete(params)
    except InputError as error:
        raise ValueError(str(error)) from None
    return params


_Params = dict[str, Annotated[ParamValue, SkipValidation]]
Configuration = Annotated[_Params, AfterValidator(_complete)]


class Record(BaseModel):
    """What is stored: frozen, and nothing else in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrialRef(Record):
    """A trial of some study of the plan."""

    study: str
    trial: int

    @property
    def name(self) -> str:
        """As `hpo verify` takes it: STUDY/NUMBER."""
        return f"{self.study}/{self.trial}"


class Inherited(Record):
    """The configuration that a study starts from, and where it comes from."""

    study: str
    """The study that it is inherited from, or whose published choice it is; or plan:OUT/STUDY."""
    source: TrialRef | None
    """The trial that trained exactly this configuration at the plan's seeds; None: nobody has."""
    params: Configuration
    value: float | None = None


By = Literal["budget", "stop", "finish", "deadline"]
"""What closes a study before all its points are tried."""


class Closed(Record):
    """That a study takes no more points, and why."""

    by: By
    at: str
    """UTC, as ISO 8601 has it."""
    budget_seconds: float | None = None
    """Of the plan, where it was by the budget."""
    patience: int | None = None
    """By `[stop]`: so many points in a row brought less than `delta`."""
    delta: float | None = None

    @property
    def ends_race(self) -> bool:
        """Whether its points get no further seeds, either."""
        return self.by != "stop"

    @property
    def text(self) -> str:
        """What closed it, in words."""
        if self.budget_seconds is not None:
            return f"the budget of {short_duration(self.budget_seconds)}"
        return {"finish": "`hpo finish`", "deadline": "--deadline", "stop": "[stop]"}.get(self.by, self.by)


class Cut(Record):
    """What was cut from a study: points that were not tried, or not trained to their end."""

    closed: Closed | None
    """None: the study tried all its points, and some of them ran into `trial_timeout`."""
    n_points: int
    """That it was to try."""
    n_ended: int
    """That ended by themselves, or by a pruner."""
    n_cut_short: int
    """That ended after an epoch, with what they had reached."""
    was_racing: bool = False
    """Whether points would have got further seeds."""

    def text(self, objective: Metric) -> str:
        """Return what was cut and why, in words."""
        if self.closed is None:
            verb = "was" if self.n_cut_short == 1 else "were"
            return f"{self.n_cut_short} of {self.n_points} points {verb} cut short by trial_timeout"
        why = self.closed.text
        if self.closed.patience is not None:
            gain = f" of {objective.distance(self.closed.delta)}" if self.closed.delta else ""
            why += f", no gain{gain} in {self.closed.patience} points"
        short = f", {self.n_cut_short} cut short" if self.n_cut_short else ""
        amid = " before its race had ended" if self.was_racing else ""
        return f"closed by {why}{amid}: {self.n_ended} of {self.n_points} points ended{short}"


class Candidate(Record):
    """A configuration with its pooled result over all seeds spent on it."""

    source: TrialRef
    """Its first replicate."""
    params: Configuration
    searched: dict[str, ParamValue] = {}
    value: float
    """Mean over seeds of the objective at the best epoch of that mean."""
    seeds: dict[int, float]
    """The objective of each seed at that epoch."""
    objectives: dict[str, float] = {}
    """Of a study with two objectives the value of each, as far as it is known."""
    is_cut_short: bool = False
    """Whether that is what it had reached when it was cut short; taken only where nothing has a result."""


class Decision(Record):
    """What a study carries on to the next, and why."""

    winner: Candidate | None
    """The best point of the study; None when no point has a result."""
    control: Candidate | None
    """The inherited configuration at the same seeds; None when nothing is inherited."""
    adopted: bool
    """Whether the winner replaces what was inherited."""
    tested: bool
    """Whether winner and control were compared on three seeds or more."""
    p_value: float | None
    """Of a paired two-sided t-test over seeds, where tested: of the winner against the control, or where they
    are the same, of the best other point against it; times the number of points that it is the best of
    (Bonferroni), without which 11 % of studies of 16 points that differ by nothing have p < 0.05."""
    params: Annotated[_Params, AfterValidator(lambda params, info: params and _complete(params, info))]
    """The complete configuration that is carried on; empty where there is no result."""
    source: TrialRef | None
    value: float | None
    race: RaceResult | None = None
    """How many seeds each point got, and why no more; None where all got the same."""
    text: Annotated[str, Field(min_length=1)]
    """The decision in words."""
    cut: Cut | None = None
    """What was cut from the study; None: nothing."""

    @property
    def result(self) -> TrialRef | None:
        """The trial that trained what is carried on, to its end; None: nobody has."""
        return None if self.adopted and self.winner and self.winner.is_cut_short else self.source


def epochs_of(attrs: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the epochs among a trial's attributes, in order; of each a record per seed."""
    return _numbered(attrs, "epoch:")


def costs_of(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Return what a trial's configuration costs, by its attributes: told before, and measured."""
    seconds = [seed["seconds"] for seeds in epochs_of(attrs) for seed in seeds]
    return {**attrs.get(COSTS_KEY, {}), **({SECONDS_AN_EPOCH: fmean(seconds)} if seconds else {})}


def test_epochs_of(attrs: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the metrics on the test set, by epoch and seed; only the final trial has any."""
    return _numbered(attrs, "test:")


def _numbered(attrs: Mapping[str, Any], prefix: str) -> list[list[dict[str, Any]]]:
    numbers = sorted(int(key.removeprefix(prefix)) for key in attrs if key.startswith(prefix))
    return [attrs[f"{prefix}{number}"] for number in numbers]


def best_epoch(trial: FrozenTrial, objective: Metric) -> int | None:
    """Return the first epoch, from 1, of the best mean of the objective; None before any report.

    Of a trial that was told before how long to train it is the last.
    """
    # other databases than SQLite may show a report before the metrics that were written with it
    told = trial.intermediate_values.items()
    reports = {n: value for n, value in told if f"epoch:{n}" in trial.user_attrs}
    if "last_epoch" in trial.user_attrs:
        return max(reports, default=None)
    return objective.best_of(reports)


def pooled(trials: Sequence[FrozenTrial], objective: Metric) -> FrozenTrial:
    """Return COMPLETE trials of one point as one trial that trained the seeds of all, the first for the rest.

    Its best epoch is that of the mean over all these seeds, and so is its value.
    """
    first, *more = trials
    if not more:
        return first
    by_trial = [epochs_of(trial.user_attrs) for trial in trials]
    epochs = [[record for seeds in epoch for record in seeds] for epoch in zip(*by_trial, strict=False)]
    attrs = {key: value for key, value in first.user_attrs.items() if not key.startswith("epoch:")}
    attrs["seeds"] = [record["seed"] for record in epochs[0]]
    attrs |= {f"epoch:{number}": seeds for number, seeds in enumerate(epochs, start=1)}
    whole = copy(first)
    whole.user_attrs = attrs
    whole.intermediate_values = {
        number: fmean(record["metrics"][objective.name] for record in seeds)
        for number, seeds in enumerate(epochs, start=1)
    }
    epoch = best_epoch(whole, objective)
    whole.value = whole.intermediate_values[epoch] if epoch else None
    return whole


def objectives_at(attrs: Mapping[str, Any], epoch: int | None, names: Iterable[str]) -> dict[str, float]:
    """Return the values of objectives, means of metrics over seeds and costs, as far as they are known.

    Args:
        attrs: of the trial.
        epoch: the best one; None: there is none.
        names: of the objectives.
    """
    seeds = attrs[f"epoch:{epoch}"] if epoch else []
    known = costs_of(attrs)
    if seeds:
        known |= {name: fmean(seed["metrics"][name] for seed in seeds) for name in seeds[0]["metrics"]}
    return {name: known[name] for name in names if name in known}


def candidate(
    study: str, trials: Iterable[FrozenTrial], objective: Metric, objectives: Sequence[str] = ()
) -> Candidate | None:
    """Pool the trials of one point that have a result, COMPLETE or cut short; None when it has none.

    Args:
        study: that they belong to.
        trials: all of the point.
        objective: of the plan.
        objectives: names of the two that the deciding study has, if it has two.
    """
    done = [trial for trial in trials if trial.value is not None and _has_result(trial)]
    if not done:
        return None
    whole = pooled(done, objective)
    records = whole.user_attrs[f"epoch:{best_epoch(whole, objective)}"]
    seeds = {record["seed"]: record["metrics"][objective.name] for record in records}
    return Candidate(
        source=TrialRef(study=study, trial=whole.number),
        params=whole.user_attrs["config"],
        searched=whole.params,
        value=fmean(seeds.values()),
        seeds=seeds,
        objectives=objectives_at(whole.user_attrs, best_epoch(whole, objective), objectives)
        if objectives
        else {},
        is_cut_short=any(trial.state != TrialState.COMPLETE for trial in done),
    )


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE or was_cut_short(trial)


def was_cut_short(trial: FrozenTrial) -> bool:
    """Return whether a trial ended after an epoch by a limit on time, with what it had reached."""
    return trial.state == TrialState.PRUNED and reason_of(trial) == Reason.CUT_SHORT


def decide(
    study: str,
    points: Iterable[Sequence[FrozenTrial]],
    inherited: Inherited | None,
    control: Candidate | None,
    objective: Metric,
    schema: Schema,
    *,
    always: bool,
    remark: str = "",
    race: RaceResult | None = None,
    cut: Cut | None = None,
    objectives: Sequence[Metric] = (),
    choice: Choice | None = None,
) -> Decision:
    """Decide a study whose points all have ended.

    Args:
        study: its name.
        points: the trials of each point, in the order of the points; of two equal values the first wins.
        inherited: the configuration that the study started from.
        control: that configuration's result at the same seeds.
        objective: what is tuned for.
        schema: of the recipe's parameters; says what means nothing in a configuration.
        always: adopt the winner even where it does not beat the control (`--adopt always`).
        remark: what the decision's text is to say besides.
        race: that gave the points unequal numbers of seeds. Who has fewer than another has lost to it.
        cut: what was cut from the study.
        objectives: the two of the study, if it has two.
        choice: which point is carried on; None: the best by `objective`.
    """
    remarks = [*([remark] if remark else []), *([cut.text(objective)] if cut else [])]
    names = [each.name for each in objectives]
    found = [candidate(study, trials, objective, names) for trials in points]
    candidates = [each for each in found if each is not None]
    ranks = _ranks(choice, [*([control] if control else []), *candidates], objectives)
    if choice and ranks is None and candidates:
        remarks.append(f"nothing satisfies '{choice}', so that {objective.label} decides")
        choice = None

    def rank(each: Candidate) -> tuple[float, float]:
        if ranks is not None:
            return ranks[id(each)]
        return len(each.seeds) if race else 0, objective.score(each.value)

    winner = max(candidates, key=rank, default=None)
    if winner is None:
        adopted = False
    elif control is None or always:
        adopted = True
    else:
        adopted = rank(winner) > rank(control)
    rival, p_value, n_tried = winner, None, 0
    if control is not None:
        same = schema.effective(control.params)
        others = [found for found in candidates if schema.effective(found.params) != same]
        if not adopted:  # the control may be a point itself, and then the best of them
            rival = max(others, key=rank, default=None)
        # what was pruned or failed was tried as well
        n_tried = len(found) - (len(candidates) - len(others))
        # a t-test knows nothing of the looks of a race, which has shown what it could
        p_value = _paired_p_value(rival, control, n_tried) if rival and not race else None
    carried = winner if adopted else control
    params = carried.params if carried else (inherited.params if inherited else {})
    return Decision(
        winner=winner,
        control=control,
        adopted=adopted,
        tested=p_value is not None or (race is not None and control is not None and rival is not None),
        p_value=p_value,
        params=params,
        source=carried.source if carried else (inherited.source if inherited else None),
        value=carried.value if carried else None,
        race=race,
        cut=cut,
        text="".join(f"{each}; " for each in remarks)
        + _in_words(
            candidates,
            winner,
            rival,
            control,
            objective,
            schema,
            is_first=inherited is None,
            adopted=adopted,
            p_value=p_value,
            n_tried=n_tried,
            race=race,
            rule=_Rule(choice, objectives) if choice else None,
        ),
    )


def _ranks(
    choice: Choice | None, candidates: Sequence[Candidate], objectives: Sequence[Metric]
) -> dict[int, tuple[float, float]] | None:
    """Return the rank of each candidate by a rule; None where there is none, or nothing satisfies it."""
    if choice is None:
        return None
    directions = {each.name: each.direction for each in objectives}
    ranks = choice.ranks([each.objectives for each in candidates], directions)
    if ranks is None:
        return None
    return {id(each): rank for each, rank in zip(candidates, ranks, strict=True)}


@dataclass(frozen=True)
class _Rule:
    """A rule of choice in words."""

    choice: Choice
    objectives: Sequence[Metric]

    def lead(self, one: Candidate, other: Candidate | None = None) -> str:
        """Return what speaks for a candidate: its value of the second objective, instead of another's."""
        second = self.objectives[1]
        text = f"{self.choice}: {second.label} {second.amount(one.objectives[second.name])}"
        if other is None or second.name not in other.objectives:
            return text
        return f"{text} instead of {second.amount(other.objectives[second.name])}"


def _paired_p_value(best: Candidate, control: Candidate, n_tried: int) -> float | None:
    """Return p of a paired t-test, where `best` was selected among so many by its mean."""
    shared = sorted(best.seeds.keys() & control.seeds.keys())
    if len(shared) < MIN_SEEDS_TO_TEST:
        return None
    from scipy.stats import ttest_rel  # scipy takes 0.3 s to import; most decisions do not need it

    ours, theirs = [best.seeds[s] for s in shared], [control.seeds[s] for s in shared]
    if len({a - b for a, b in zip(ours, theirs, strict=True)}) == 1:
        return 1.0 if ours == theirs else 0.0  # no deviation: the statistic is undefined
    return min(1.0, n_tried * float(ttest_rel(ours, theirs).pvalue))


def _confidence(winner: Candidate, p_value: float | None, n_tried: int, *, is_chosen: bool) -> str:
    if p_value is None:
        return f"{seeds_text(len(winner.seeds))}, not tested"
    of_many = f" for {'one' if is_chosen else 'the best'} of {n_tried}" if n_tried > 1 else ""
    return f"{len(winner.seeds)} seeds, p = {p_value:.2g}{of_many}"


def _in_words(
    candidates: Sequence[Candidate],
    winner: Candidate | None,
    rival: Candidate | None,
    control: Candidate | None,
    objective: Metric,
    schema: Schema,
    *,
    is_first: bool,
    adopted: bool,
    p_value: float | None,
    n_tried: int,
    race: RaceResult | None,
    rule: _Rule | None,
) -> str:
    if winner is None:
        return "no point has a result" + ("" if is_first else "; the inherited configuration stays")
    confidence = _confidence(winner, p_value, n_tried, is_chosen=rule is not None)
    if race is not None:
        latter = control if adopted else rival
        confidence = race.in_words(latter.source.trial if latter and control else None, objective)
    if control is None:
        if not is_first:
            confidence = f"the inherited configuration has no result; {confidence}"
        else:
            how = race.in_words(None, objective) if race else seeds_text(len(winner.seeds))
            confidence = f"{how}; nothing inherited to compare with"
        if not winner.searched:
            return f"took the single point that there is ({confidence})"
        if rule is not None:
            of_all = f"{params_text(winner.searched)} of {len(candidates)}"
            return f"chose {of_all}: {rule.lead(winner)} ({confidence})"
        place = _place(winner, candidates, objective)
        return f"chose {params_text(winner.searched)}: best of {len(candidates)}{place} ({confidence})"
    if not adopted:
        if rival is None:
            return f"kept what was inherited: nothing else has a result ({confidence})"
        changed = _differing(rival, control)
        kept = _in_effect(control, changed, schema)
        lead = _lead(control, rival, objective)
        way = f"{objective.distance(lead)} ahead of" if lead > 0 else "level with"
        if rule is not None:
            way = f"{objective.distance(-lead)} behind" if lead < 0 else way
            way = f"{rule.lead(control, rival)}, {way}"
        return f"kept {kept}: {way} {params_text(changed)} ({confidence})"
    changed = _differing(winner, control) or winner.searched
    ahead = _lead(winner, control, objective)
    distance = objective.distance(abs(ahead))
    way = f"{distance} ahead of" if ahead >= 0 else f"although {distance} behind"
    if rule is not None:
        way = f"{rule.lead(winner, control)}, {way}"
    before = _in_effect(control, changed, schema)
    return f"adopted {params_text(changed)}: {way} {before} ({confidence})"


def _place(winner: Candidate, candidates: Sequence[Candidate], objective: Metric) -> str:
    """Return how far the winner of a study is ahead of the runner-up, in words."""
    level = [each for each in candidates if len(each.seeds) == len(winner.seeds)]
    n_equal = sum(found.value == winner.value for found in level)
    if n_equal > 1:
        return f", the first of {n_equal} equal ones"
    others = [found for found in candidates if found is not winner]
    if not others:
        return ""
    second = max(others, key=lambda found: (len(found.seeds), objective.score(found.value)))
    lead = objective.distance(_lead(winner, second, objective))
    return f", {lead} ahead of the runner-up, {params_text(_differing(second, winner) or second.searched)}"


def _lead(one: Candidate, other: Candidate, objective: Metric) -> float:
    """Return by how much one is better than the other, at the seeds of both where they share any."""
    shared = one.seeds.keys() & other.seeds.keys()
    values = [fmean(each.seeds[s] for s in shared) if shared else each.value for each in (one, other)]
    return objective.gain(*values)


def _differing(one: Candidate, other: Candidate) -> dict[str, ParamValue]:
    """Return the parameters that another has otherwise, in the order in which they are searched."""
    ordered = {name: one.params[name] for name in (*one.searched, *one.params)}
    return {name: value for name, value in ordered.items() if other.params.get(name) != value}


def _in_effect(candidate: Candidate, names: Iterable[str], schema: Schema) -> str:
    """Return these of its parameters in words, without those that mean nothing in it."""
    idle = schema.inactive(candidate.params)
    found = {name: candidate.params[name] for name in names}
    return params_text({name: value for name, value in found.items() if name not in idle} or found)
