"""What a confirmation compares, when it ends, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.planning.confirmation import (
    CHOSEN,
    DIVERGED,
    FAILED,
    Arms,
    Change,
    Confirmation,
    Obstacle,
    Trained,
    conclude,
    decision_in_words,
    weigh,
)
from hpo.planning.decisions import Inherited
from hpo.planning.inheritance import arms_of
from hpo.planning.metrics import Metric
from hpo.planning.scheduler import advance
from hpo.planning.verdicts import LOOKS, Verdict
from hpo.space.constraints import Constraint
from tests.support.recipes import SCHEMA
from tests.support.scripted_worker import Worker, new_plan

F1, LOSS = Metric("macro_f1", "maximize"), Metric("loss", "minimize")
NARROW = Constraint.parse("a <= b", ("a", "b"), ("a", "b"))


def decided(folder: Path, studies: Mapping[str, str]) -> Arms:
    """What is compared of a plan whose studies each adopted their last point."""
    plan = new_plan(folder, studies)
    worker = Worker(plan)
    advance(plan)
    for place, name in enumerate(studies):
        while plan.storage.waiting([plan.storage.study_id(name)], 1):
            trial = worker.claim(name)
            worker.finish(trial, [0.1 + 0.1 * place + 0.01 * trial.number])
        advance(plan)
    found = arms_of(plan)
    assert found is not None
    return found


def arms(changes: Mapping[str, Mapping[str, int]], start: Mapping[str, int]) -> Arms:
    """Arms of one change after the other."""
    at, made, sets = dict(start), [], {name: dict(each) for name, each in changes.items()}
    for name, change in sets.items():
        rest = dict(start)
        for other, each in sets.items():
            rest |= each if other != name else {}
        made.append(
            Change(study=name, params=dict(change), before={p: at[p] for p in change}, without=dict(rest))
        )
        at |= change
    return Arms(
        chosen=Inherited(study="last", source=None, params=dict(at)), start=dict(start), changes=tuple(made)
    )


TWO = arms({"x": {"a": 4}, "y": {"b": 8}}, {"a": 8, "b": 4})


def scored(compared: Arms, gains: Mapping[str, Sequence[float]]) -> dict[Trained, float]:
    """Scores of all seeds, the chosen configuration's 0.5."""
    found = {(CHOSEN, place): 0.5 for place in range(LOOKS[-1])}
    for change in compared.testable:
        found |= {(change.arm, place): 0.5 - gain for place, gain in enumerate(gains[change.study])}
    return found


def concluded(
    compared: Arms,
    scores: Mapping[Trained, float],
    constraints: Mapping[str, Sequence[Constraint]] | None = None,
    *,
    metric: Metric = F1,
    keep_equivalent: bool = False,
) -> Confirmation:
    weighed = weigh(compared, scores, metric, 0.005)
    assert not weighed.due
    return conclude(
        compared,
        weighed,
        scores,
        constraints or {},
        metric,
        SCHEMA,
        keep_equivalent=keep_equivalent,
        has_own_splits=True,
    )


# --- what is compared --------------------------------------------------------------------------------------


def test_each_arm_is_the_chosen_configuration_without_one_decision(tmp_path: Path) -> None:
    found = decided(
        tmp_path,
        {
            "a": "[search]\nconv1_channels = [4, 8]",
            "b": 'inherits = "a"\n[fixed]\nbatch_size = 77\n[search]\nl2 = [0.0, 0.1]',
            "c": 'inherits = "b"\n[search]\nlearning_rate = [0.001, 0.01]',
        },
    )
    assert [each.study for each in found.testable] == ["b", "c"]  # the first had nothing to compare with
    chosen, without_b, without_c = found.configs.values()
    assert {name for name in chosen if chosen[name] != without_b[name]} == {"l2", "batch_size"}
    assert {name for name in chosen if chosen[name] != without_c[name]} == {"learning_rate"}
    assert chosen["conv1_channels"] == without_b["conv1_channels"] == 8
    assert found.changes[0].before["l2"] == 0.0


def test_what_later_studies_changed_is_left_as_it_is(tmp_path: Path) -> None:
    found = decided(
        tmp_path,
        {
            "a": "[search]\nconv1_channels = [4, 8]",
            "b": 'inherits = "a"\n[search]\nl2 = [0.0, 0.1]',
            "c": 'inherits = "b"\n[search]\nl2 = [0.1, 0.01]',
        },
    )
    first, second = found.changes
    assert first.obstacle == Obstacle.OVERRULED
    assert second.obstacle is None
    assert (second.before, second.params) == ({"l2": 0.1}, {"l2": 0.01})
    assert found.without(["c"])["l2"] == 0.1
    assert found.without(["b", "c"])["l2"] == 0.0


def test_what_means_nothing_in_the_end_is_not_tried_again(tmp_path: Path) -> None:
    found = decided(
        tmp_path,
        {
            "a": "[base]\nmixup_alpha = 0.2\nmixup_last_epoch = 3\n[search]\nconv1_channels = [4, 8]",
            "b": 'inherits = "a"\n[search]\nmixup_first_epoch = [1, 2]',
            "c": 'inherits = "b"\n[search]\nmixup_alpha = [0.2, 0.0]',
        },
    )
    assert [each.obstacle for each in found.changes] == [Obstacle.NO_EFFECT, None]


def test_what_would_break_a_constraint_is_not_tried_again(tmp_path: Path) -> None:
    found = decided(
        tmp_path,
        {
            "a": "[base]\nconv1_channels = 4\nconv2_channels = 4\n[search]\nl2 = [0.0, 0.1]",
            "b": 'inherits = "a"\n[search]\nconv2_channels = [4, 16]',
            "c": 'inherits = "b"\nconstraints = ["conv1_channels <= conv2_channels"]\n'
            "[search]\nconv1_channels = [4, 8]",
        },
    )
    first, second = found.changes
    assert (first.obstacle, first.constraint) == (Obstacle.CONSTRAINT, "conv1_channels <= conv2_channels")
    assert second.obstacle is None
    assert list(found.configs) == [CHOSEN, "without c"]


# --- when it ends ------------------------------------------------------------------------------------------


def test_a_look_asks_for_open_decisions_alone() -> None:
    scores: dict[Trained, float] = {}
    asked = []
    gains = {"x": [0.1] * LOOKS[-1], "y": [0.02, -0.03, 0.025, -0.01, 0.04] * 4}
    everything = scored(TWO, gains)
    while due := weigh(TWO, scores, F1, 0.005).due:
        asked.append([each for each in due if each not in scores])
        scores |= {each: everything[each] for each in due}
    assert len(asked[0]) == 3 * LOOKS[0]
    assert all("without x" not in {arm for arm, _ in each} for each in asked[1:])
    assert len(asked[1]) == 2 * (LOOKS[1] - LOOKS[0])


@settings(max_examples=40)
@given(st.data())
def test_it_asks_for_the_same_in_whatever_order_seeds_end(data: st.DataObject) -> None:
    numbers = st.lists(
        st.sampled_from([-0.1, -0.01, 0.0, 0.004, 0.01, 0.1, DIVERGED, FAILED]),
        min_size=LOOKS[-1],
        max_size=LOOKS[-1],
    )
    everything = scored(TWO, {"x": data.draw(numbers), "y": data.draw(numbers)})
    everything = {key: DIVERGED if score == math.inf else score for key, score in everything.items()}
    metric = data.draw(st.sampled_from([F1, LOSS]))
    scores: dict[Trained, float] = {}
    while due := weigh(TWO, scores, metric, 0.005).due:
        missing = [each for each in due if each not in scores]
        for each in data.draw(st.permutations(missing)):
            assert weigh(TWO, scores, metric, 0.005).due == due  # until the last of them has ended
            scores[each] = everything[each]
    confirmation = concluded(TWO, scores, metric=metric)
    assert Confirmation.model_validate(confirmation.model_dump(mode="json")) == confirmation
    assert {each.kept for each in confirmation.decisions if each.verdict == Verdict.BETTER} <= {True}
    assert {each.kept for each in confirmation.decisions if each.verdict == Verdict.WORSE} <= {False}


def test_of_a_plan_without_a_decision_nothing_is_trained() -> None:
    nothing = arms({}, {"a": 1})
    confirmation = concluded(nothing, {})
    assert confirmation.decisions == ()
    assert confirmation.inherited == nothing.chosen


# --- what it leaves ----------------------------------------------------------------------------------------


def test_what_is_not_shown_is_taken_back() -> None:
    better, luck = [0.1, 0.11, 0.09, 0.1] * 5, [0.001, -0.001, 0.0, 0.0] * 5
    scores = scored(TWO, {"x": better, "y": luck})
    confirmation = concluded(TWO, scores)
    assert [(each.verdict, each.kept) for each in confirmation.decisions] == [
        ("better", True),
        ("equivalent", False),
    ]
    assert confirmation.inherited.params == {"a": 4, "b": 4}
    assert confirmation.inherited.value == pytest.approx(0.5)  # of the arm that is just that
    kept = concluded(TWO, scores, keep_equivalent=True)
    assert kept.taken_back == []
    assert kept.inherited == TWO.chosen


def test_together_they_may_break_a_constraint_that_each_alone_keeps() -> None:
    luck = [0.001, -0.001, 0.0, 0.0] * 5
    confirmation = concluded(TWO, scored(TWO, {"x": luck, "y": luck}), {"z": [NARROW]})
    first, second = confirmation.decisions
    assert (first.kept, first.obstacle, first.constraint) == (True, Obstacle.CONSTRAINT, "a <= b")
    assert not second.kept
    assert confirmation.inherited.params == {"a": 4, "b": 4}
    words = decision_in_words(first, F1, has_own_splits=False)
    assert words.startswith("kept, as without it a <= b would not hold; shown to make no difference")


def test_where_less_is_better_words_and_numbers_are_of_the_metric_itself() -> None:
    scores = scored(TWO, {"x": [0.1, 0.11, 0.09, 0.1] * 5, "y": [0.1, 0.11, 0.09, 0.1] * 5})
    confirmation = concluded(TWO, {key: score - 1.0 for key, score in scores.items()}, metric=LOSS)
    decision = confirmation.decisions[0]
    assert decision.verdict == Verdict.BETTER
    assert decision.difference == pytest.approx(-0.1)
    assert decision.interval is not None
    assert decision.interval[0] < -0.1 < decision.interval[1]
    assert "kept, shown to be better: loss −0.1, between −0.1" in decision_in_words(
        decision, LOSS, has_own_splits=True
    )
