"""What samplers and pruners see of a study: each of its points once, and none of a discarded trial.

To Optuna every trial is a point of its own. With `--seeds race` a good point has many: a sampler would take
each replicate for further evidence that such points are good, and a pruner would compare newcomers with
those that are left, each as often as it has replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.optuna_views import showing
from hpo.storage.queue import Reason, reason_of
from hpo.storage.trials import id_of


def for_sampler(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    imported: Sequence[FrozenTrial] = (),
    discarded: Collection[int] = (),
) -> optuna.Study:
    """Return a study as its sampler sees it: each point once, with what all its seeds together reached.

    Points come, and are numbered, in the order of their study: another attempt at one takes the place of the
    first. What has ended without being a point of this space, as a control, is left out. Imported points come
    before all others, with numbers below 0.

    Args:
        study: as `Storage.study` has it.
        space: the axes that are searched.
        imported: known points, to learn from as well.
        discarded: numbers of the trials that do not count.
    """
    first = [each for each in imported if _is_sample(each, space)]
    first = [_numbered(each, number) for number, each in enumerate(first, start=-len(first))]
    is_maximized = study.direction == StudyDirection.MAXIMIZE

    def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        points: dict[object, list[FrozenTrial]] = {}
        for trial in _counting(trials, discarded):
            points.setdefault(trial.user_attrs.get("point", trial.number), []).append(trial)
        found = [_pooled(of_point, is_maximized) for of_point in points.values()]
        found = [each for each in found if not each.state.is_finished() or _is_sample(each, space)]
        found.sort(key=lambda each: (each.user_attrs.get("index", each.number), each.number))
        return [*first, *(_numbered(each, number) for number, each in enumerate(found))]

    return showing(study, shown)


def as_shown(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with the number that it has in a study which `for_sampler` made."""
    numbers = {id_of(each): each.number for each in study.get_trials(deepcopy=False)}
    return _numbered(trial, numbers.get(id_of(trial), trial.number))  # without: it was closed meanwhile


def for_pruner(study: optuna.Study, discarded: Callable[[], Collection[int]]) -> optuna.Study:
    """Return a study as its pruner sees it: of each point the first replicate, with its own curve.

    That alone is pruned, and it was trained on the seeds of the trial that is judged: what these do to all
    cancels out, and no answer depends on how far a race is.

    Args:
        study: as `Storage.study` has it.
        discarded: returns the numbers of the trials that do not count, as of now.
    """

    def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        counting = _counting(trials, discarded())
        return [as_judged(each) for each in counting if each.user_attrs.get("replicate", 0) == 0]

    return showing(study, shown)


def as_judged(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with the number of its point: Hyperband's bracket is by that, at every attempt alike."""
    return _numbered(trial, trial.user_attrs.get("index", trial.number))


def _counting(trials: Sequence[FrozenTrial], discarded: Collection[int]) -> list[FrozenTrial]:
    """Return the trials that count: a point with a discarded one wins no race, so it goes as a whole."""
    gone = {each.user_attrs.get("point", each.number) for each in trials if each.number in discarded}
    return [
        each
        for each in trials
        if each.state != TrialState.FAIL and each.user_attrs.get("point", each.number) not in gone
    ]


def _pooled(trials: Sequence[FrozenTrial], is_maximized: bool) -> FrozenTrial:
    """Return the trial that stands for a point: its COMPLETE ones as one that trained the seeds of all."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    diverged = next((trial for trial in ended if reason_of(trial) == Reason.DIVERGED), None)
    done = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if diverged is not None or len(done) < 2:
        return diverged or next(iter([*done, *ended, *trials]))
    weights = [len(trial.user_attrs["seeds"]) for trial in done]
    epochs = sorted(set.intersection(*(set(trial.intermediate_values) for trial in done)))
    whole = copy(done[0])
    whole.intermediate_values = {
        epoch: sum(
            weight * trial.intermediate_values[epoch] for weight, trial in zip(weights, done, strict=True)
        )
        / sum(weights)
        for epoch in epochs
    }
    whole.value = (max if is_maximized else min)(whole.intermediate_values.values())
    return whole


def _is_sample(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    return all(trial.distributions.get(name) == axis for name, axis in space.items())


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    if trial.number == number:
        return trial
    other = copy(trial)
    other.number = number
    return other
