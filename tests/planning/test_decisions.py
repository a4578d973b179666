"""What a study decides, on trials as Optuna stores them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import ttest_rel

from hpo.planning import decisions
from hpo.planning.decisions import Candidate, Decision, Inherited, TrialRef
from hpo.planning.metrics import Metric
from tests.support.recipes import SCHEMA

RATES = (0.01, 0.001, 0.0001)
INHERITED = Inherited(study="before", source=TrialRef(study="before", trial=3), params=SCHEMA.defaults)


F1 = Metric("macro_f1", "maximize")


def record(seed: int, value: float, metric: Metric = F1) -> dict[str, Any]:
    return {"seed": seed, "metrics": {metric.name: value}}


def decide(
    study: str,
    points: Sequence[Sequence[FrozenTrial]],
    inherited: Inherited | None,
    control: Candidate | None,
    objective: Metric = F1,
    *,
    always: bool = False,
    remark: str = "",
) -> Decision:
    return decisions.decide(
        study, points, inherited, control, objective, SCHEMA, always=always, remark=remark
    )


def candidate(study: str, trials: Sequence[FrozenTrial], objective: Metric = F1) -> Candidate | None:
    return decisions.candidate(study, trials, objective)


def trial(
    rate: float,
    *f1_of_seeds: float,
    state: TrialState = TrialState.COMPLETE,
    metric: Metric = F1,
    **params: float,
) -> FrozenTrial:
    mean = sum(f1_of_seeds) / len(f1_of_seeds)
    made = create_trial(
        state=state,
        value=mean,
        params={"learning_rate": rate},
        distributions={"learning_rate": CategoricalDistribution(RATES)},
        intermediate_values={1: mean / 2, 2: mean},
        user_attrs={
            "config": {**SCHEMA.defaults, "learning_rate": rate, **params},
            "epoch:1": [record(seed, f1 / 2, metric) for seed, f1 in enumerate(f1_of_seeds)],
            "epoch:2": [record(seed, f1, metric) for seed, f1 in enumerate(f1_of_seeds)],
        },
    )
    made.number = RATES.index(rate)
    return made


def control(*f1_of_seeds: float, metric: Metric = F1) -> Candidate:
    found = candidate("before", [trial(0.001, *f1_of_seeds, metric=metric)], metric)
    assert found is not None
    return found


def points(*trials: FrozenTrial) -> list[Sequence[FrozenTrial]]:
    return [[each] for each in trials]


def test_a_winner_that_beats_its_control_is_adopted() -> None:
    decision = decide("s", points(trial(0.001, 0.6), trial(0.0001, 0.62)), INHERITED, control(0.6))
    assert decision.adopted
    assert decision.params["learning_rate"] == 0.0001
    assert decision.source == TrialRef(study="s", trial=2)
    assert not decision.tested
    assert decision.text == (
        "adopted learning_rate 0.0001: 2.0 points ahead of learning_rate 0.001 (one seed, not tested)"
    )


def test_without_mixup_its_epochs_are_not_told() -> None:
    mixed = trial(0.001, 0.62, mixup_alpha=0.2, mixup_first_epoch=6)
    decision = decide("s", points(mixed), INHERITED, control(0.6))
    told = "adopted mixup_alpha 0.2, mixup_first_epoch 6: 2.0 points ahead of mixup_alpha 0 ("
    assert decision.text.startswith(told)


def test_where_the_control_is_the_best_point_the_test_is_of_the_best_other_one() -> None:
    best = (0.60, 0.61, 0.63, 0.62)
    found = points(
        trial(0.001, *best), trial(0.0001, 0.55, 0.57, 0.58, 0.56), trial(0.01, 0.1, 0.1, 0.1, 0.1)
    )
    decision = decide("s", found, INHERITED, control(*best))
    assert not decision.adopted
    assert decision.p_value == pytest.approx(2 * ttest_rel(best, (0.55, 0.57, 0.58, 0.56)).pvalue)
    assert decision.text.startswith(
        "kept learning_rate 0.001: 5.0 points ahead of learning_rate 0.0001 (4 seeds"
    )


def test_a_control_without_a_result_is_told() -> None:
    decision = decide("s", points(trial(0.0001, 0.6)), INHERITED, None)
    assert decision.adopted
    assert "the inherited configuration has no result" in decision.text


def test_a_tie_keeps_what_was_inherited() -> None:
    decision = decide("s", points(trial(0.0001, 0.6)), INHERITED, control(0.6))
    assert not decision.adopted
    assert decision.params["learning_rate"] == 0.001


def test_what_does_not_beat_its_control_is_told_by_how_much() -> None:
    decision = decide("s", points(trial(0.001, 0.6), trial(0.0001, 0.597)), INHERITED, control(0.6))
    assert not decision.adopted
    assert decision.text == (
        "kept learning_rate 0.001: 0.3 points ahead of learning_rate 0.0001 (one seed, not tested)"
    )


def test_always_adopts_even_what_is_behind() -> None:
    decision = decide("s", points(trial(0.0001, 0.5)), INHERITED, control(0.6), always=True)
    assert decision.adopted
    assert "although 10.0 points behind" in decision.text


def test_without_anything_inherited_the_best_is_chosen_and_the_first_of_equals() -> None:
    decision = decide("s", points(trial(0.01, 0.6), trial(0.0001, 0.6)), None, None)
    assert decision.adopted
    assert decision.params["learning_rate"] == 0.01


def test_a_first_study_compares_its_winner_with_the_runner_up() -> None:
    decision = decide("s", points(trial(0.01, 0.6), trial(0.0001, 0.62)), None, None)
    assert decision.text == (
        "chose learning_rate 0.0001: best of 2, 2.0 points ahead of the runner-up, learning_rate 0.01 "
        "(one seed; nothing inherited to compare with)"
    )


def test_what_is_searched_is_told_before_what_differs_besides() -> None:
    second = trial(0.01, 0.6, hidden_units=64)  # in a configuration its hidden units come first
    decision = decide("s", points(second, trial(0.0001, 0.62)), None, None)
    assert "ahead of the runner-up, learning_rate 0.01, hidden_units 64 (" in decision.text


def test_pruned_and_failed_points_never_win() -> None:
    pruned = trial(0.01, 0.9, state=TrialState.PRUNED)
    decision = decide("s", points(pruned, trial(0.001, 0.5)), None, None)
    assert decision.params["learning_rate"] == 0.001


def test_a_study_without_any_result_keeps_what_it_inherited() -> None:
    pruned = points(trial(0.01, 0.1, state=TrialState.PRUNED))
    decision = decide("s", pruned, INHERITED, control(0.6))
    assert decision.winner is None
    assert decision.params == INHERITED.params
    assert decide("s", pruned, None, None).params == {}


@pytest.mark.parametrize(("n_seeds", "tested"), [(1, False), (2, False), (3, True), (5, True)])
def test_three_seeds_are_needed_to_test(n_seeds: int, tested: bool) -> None:
    ours = trial(0.0001, *[0.62 + seed / 1000 for seed in range(n_seeds)])
    theirs = control(*[0.6 + seed**2 / 1000 for seed in range(n_seeds)])
    decision = decide("s", points(ours), INHERITED, theirs)
    assert decision.tested is tested
    assert ("not tested" in decision.text) is not tested
    if tested:
        assert decision.p_value is not None
        assert 0 < decision.p_value < 0.05


@pytest.mark.parametrize(("n_points", "n_seeds"), [(1, 3), (16, 3), (16, 5)])
def test_of_studies_that_make_no_difference_few_have_a_small_p(n_points: int, n_seeds: int) -> None:
    chance, n_studies = random.Random(n_points), 200

    def f1() -> list[float]:
        return [chance.gauss(0.6, 0.02) for _ in range(n_seeds)]

    n_small = 0
    for _ in range(n_studies):
        tried = points(*[trial(0.0001, *f1()) for _ in range(n_points)])
        decision = decide("s", tried, INHERITED, control(*f1()))
        assert decision.p_value is not None
        n_small += decision.p_value < 0.05
        many = f" for the best of {n_points})"
        assert (many in decision.text) == (n_points > 1)
    assert n_small <= 0.05 * n_studies + 2 * (0.05 * 0.95 * n_studies) ** 0.5


def test_more_seeds_of_a_point_are_pooled() -> None:
    first, second = trial(0.01, 0.6, 0.7), trial(0.01, 0.1)
    second.user_attrs["epoch:2"] = [record(9, 0.5)]
    pooled = candidate("s", [first, second])
    assert pooled is not None
    assert pooled.seeds == {0: 0.6, 1: 0.7, 9: 0.5}
    assert pooled.value == pytest.approx(0.6)


@given(st.permutations([0.3, 0.5, 0.7]), st.floats(0.1, 0.9))
def test_law_the_decision_is_at_least_as_good_as_its_control(values: list[float], at: float) -> None:
    tried = points(*[trial(rate, value) for rate, value in zip(RATES, values, strict=True)])
    decision = decide("s", tried, INHERITED, control(at))
    assert decision.value == max(0.7, at)
    assert decision.adopted is (at < 0.7)


# --- other metrics -------------------------------------------------------------------------------

LOSS = Metric("loss", "minimize")
SCORES = st.lists(st.floats(0.1, 0.9).map(lambda value: round(value, 3)), min_size=3, max_size=3)


@given(tried=st.lists(SCORES, min_size=1, max_size=3), at=SCORES, always=st.booleans())
def test_law_the_same_data_negated_give_the_same_winner_when_less_is_better(
    tried: list[list[float]], at: list[float], always: bool
) -> None:
    up, down = (
        decide(
            "s",
            points(
                *[trial(r, *(sign * v for v in vs), metric=m) for r, vs in zip(RATES, tried, strict=False)]
            ),
            INHERITED,
            control(*(sign * v for v in at), metric=m),
            m,
            always=always,
        )
        for m, sign in ((F1, 1), (LOSS, -1))
    )
    assert up.winner is not None
    assert down.winner is not None
    assert down.winner.source == up.winner.source
    assert (down.adopted, down.params, down.source) == (up.adopted, up.params, up.source)
    assert down.p_value == pytest.approx(up.p_value)
    assert down.value == pytest.approx(-(up.value or 0))


def test_the_lowest_wins_where_less_is_better_and_the_first_of_equals() -> None:
    found = points(
        *[trial(rate, value, metric=LOSS) for rate, value in zip(RATES, (0.9, 0.7, 0.7), strict=True)]
    )
    decision = decide("s", found, None, None, LOSS)
    # its second epoch is twice its first, so the best epoch is the first
    assert (decision.params["learning_rate"], decision.value) == (0.001, 0.35)
    assert decision.text.startswith("chose learning_rate 0.001: best of 3, the first of 2 equal ones")


@pytest.mark.parametrize(("direction", "best"), [("maximize", 2), ("minimize", 3)])
def test_the_best_epoch_is_the_first_of_equal_ones(direction: Any, best: int) -> None:
    made = trial(0.001, 0.5)
    made.intermediate_values = {1: 0.4, 2: 0.8, 3: 0.1, 4: 0.8, 5: 0.1, 6: 0.0}
    made.user_attrs |= {
        f"epoch:{number}": [] for number in range(1, 6)
    }  # of the last only the report is there
    assert decisions.best_epoch(made, Metric("macro_f1", direction)) == best
    # who was told before how long to train has seen the validation part, which then chooses nothing
    made.user_attrs["last_epoch"] = 5
    assert decisions.best_epoch(made, Metric("macro_f1", direction)) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "adopted learning_rate 0.0001: 0.05 ahead of learning_rate 0.001 (one seed, not tested)"),
        (0.624, "kept learning_rate 0.001: 0.012 ahead of learning_rate 0.0001 (one seed, not tested)"),
        (0.6, "kept learning_rate 0.001: level with learning_rate 0.0001 (one seed, not tested)"),
    ],
)
def test_a_metric_that_is_no_share_is_told_as_a_number(value: float, text: str) -> None:
    found = points(trial(0.0001, value, metric=LOSS))
    assert decide("s", found, INHERITED, control(0.6, metric=LOSS), LOSS).text == text


def test_a_metric_s_name_in_a_sentence() -> None:
    names = {"macro_f1": "macro F1", "squared_error": "squared error", "n_parameters": "number of parameters"}
    assert {name: Metric(name, "minimize").label for name in names} == names


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (0.02, "+2.0"),
        (-0.001, "-0.1"),
        (0.00034, "+0.034"),
        (0.00003, "+0.003"),
        (-0.000004, "-0.0004"),
        (0, "+0.0"),
        (0.1 + 0.2 - 0.3, "+0.0"),
    ],
)
def test_of_differences_only_none_is_written_as_zero(difference: float, text: str) -> None:
    assert F1.gap(difference) == text
    assert F1.signed(difference) == f"{text.replace('-', '−')} points"
    assert F1.distance(abs(difference)) == f"{text[1:]} points"


def test_metrics_are_written_as_shares_or_numbers() -> None:
    assert (F1.label, F1.head, F1.axis) == ("macro F1", "F1 %", "macro F1, %")
    assert (F1.text(0.705), F1.with_unit(0.705), F1.gap(0.02)) == ("70.5", "70.5 %", "+2.0")
    error = Metric("squared_error", "minimize")
    assert (error.label, error.head, error.axis) == ("squared error", "squared error", "squared error")
    assert (error.text(0.705), error.with_unit(0.705), error.gap(0.02)) == ("0.705", "0.705", "+0.020")
    assert error.text(0.00012345) == "0.0001234"
    assert error.gain(0.2, 0.5) == pytest.approx(0.3)
    assert F1.gain(0.2, 0.5) == pytest.approx(-0.3)
    assert (error.best_word, F1.best_word) == ("lowest", "highest")
