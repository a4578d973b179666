"""Claims judged by what scripted workers write, with figures of the tests' choice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from hpo.errors import InputError
from hpo.execution.run import find_or_create_plan
from hpo.planning.claims import (
    LOOKS,
    Cell,
    ClaimResult,
    ClaimVerdict,
    Judgement,
    Noise,
    Run,
    compare_cells,
    judge,
    open_cells,
)
from hpo.planning.decisions import TrialRef
from hpo.planning.inheritance import best_decided
from hpo.planning.plan import CLAIMS, Plan
from hpo.planning.revision import discard
from hpo.planning.scheduler import advance
from hpo.planning.verdicts import Verdict
from hpo.reporting.charts import Forest
from hpo.reporting.data import read
from hpo.reporting.figures import figures
from hpo.reporting.render.matplotlib import draw
from tests.support.plans import SMALL_SIZES
from tests.support.scripted_worker import EPOCHS, Worker, new_plan

DYING = "dying ReLU"
RATES = "[search]\nlearning_rate = [0.1, 0.01, 0.001]\n"
LOWER = "better = {learning_rate = 0.001}\nworse = {learning_rate = 0.1}\n"


def stated(*contrasts: str, text: str = "A claim") -> str:
    return f'[[claims]]\ntext = "{text}"\n' + "".join(f"[[claims.contrasts]]\n{each}\n" for each in contrasts)


def trained(folder: Path, claims: str, scores: Mapping[float, list[float]], **options: Any) -> Plan:
    """A plan of three rates that has these scores by seed."""
    n_seeds = len(next(iter(scores.values())))
    plan = new_plan(folder, {"rate": RATES + claims}, **{"seeds": n_seeds, **options})
    advance(plan)
    worker = Worker(plan)
    for values in scores.values():
        trial = worker.claim("rate")
        worker.finish(trial, [[each / 2 for each in values], values])
    advance(plan)
    return plan


def around(center: float, n_seeds: int = 5) -> list[float]:
    """Scores of seeds that have a deviation of about a point."""
    return [center + 0.01 * (-1) ** seed for seed in range(n_seeds)]


def only(judgement: Judgement) -> ClaimResult:
    (found,) = judgement.results
    return found


@pytest.mark.parametrize(
    ("low", "verdict", "said"),
    [
        (0.7, ClaimVerdict.CONFIRMED, "shown to be better: macro F1 +20.0 points, between"),
        (0.3, ClaimVerdict.DENIED, "shown to be worse: macro F1 −20.0 points, between"),
        (0.505, ClaimVerdict.OPEN, "needs more seeds: macro F1 +0.5 points, between"),
    ],
)
def test_a_main_effect(tmp_path: Path, low: float, verdict: ClaimVerdict, said: str) -> None:
    plan = trained(tmp_path, stated(LOWER), {0.1: around(0.5), 0.01: around(0.5), 0.001: around(low)})
    found = only(judge(plan))
    assert found.verdict == verdict
    assert f"learning_rate 0.001 against learning_rate 0.1: {said}" in found.text
    assert [trial.name for trial in found.trials] == ["rate/2", "rate/0"]


def test_a_difference_that_does_not_matter_denies(tmp_path: Path) -> None:
    scores = {0.1: around(0.5, 12), 0.01: around(0.5, 12), 0.001: around(0.501, 12)}
    plan = trained(tmp_path, stated(f"{LOWER}delta = 0.05"), scores)
    found = only(judge(plan))
    assert found.verdict == ClaimVerdict.DENIED
    assert "shown to make no difference that matters" in found.text


def test_all_contrasts_confirm_and_one_denies(tmp_path: Path) -> None:
    middle = "better = {learning_rate = 0.01}\nworse = {learning_rate = 0.1}\n"
    plan = trained(
        tmp_path,
        stated(LOWER, middle) + stated(LOWER),
        {0.1: around(0.5), 0.01: around(0.3), 0.001: around(0.7)},
    )
    assert [each.verdict for each in judge(plan).results] == [ClaimVerdict.DENIED, ClaimVerdict.CONFIRMED]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((0.3, 0.7, 0.5), ClaimVerdict.CONFIRMED),
        ((0.7, 0.5, 0.3), ClaimVerdict.DENIED),
        ((0.5, 0.501, 0.3), ClaimVerdict.OPEN),
    ],
)
def test_the_best_lies_inside(
    tmp_path: Path, scores: tuple[float, float, float], verdict: ClaimVerdict
) -> None:
    claim = stated("inside = {learning_rate = [0.001, 0.01, 0.1]}")
    by_rate = dict(zip((0.1, 0.01, 0.001), map(around, scores), strict=True))
    assert only(judge(trained(tmp_path, claim, by_rate))).verdict == verdict


def test_a_state_is_compared_by_how_many_seeds_are_in_it(tmp_path: Path) -> None:
    claim = stated('state = "dying ReLU"\nat = {learning_rate = 0.1}\nnot_at = {learning_rate = 0.01}')
    plan = new_plan(tmp_path, {"rate": RATES + claim}, seeds=5)
    advance(plan)
    worker = Worker(plan)
    worker.finish(worker.claim("rate"), [0.1] * EPOCHS, dead=True)
    assert only(judge(plan)).verdict == ClaimVerdict.OPEN
    worker.finish(worker.claim("rate"), [0.1, 0.5])
    found = only(judge(plan))
    assert found.verdict == ClaimVerdict.CONFIRMED
    assert "shown to happen more often: 5 of 5 runs against 0 of 5" in found.text


def test_cells_that_nobody_trained_are_missing_and_have_a_price(tmp_path: Path) -> None:
    claim = stated(f"{LOWER}more_at = {{batch_size = 20}}\nless_at = {{batch_size = 40}}\ndelta = 0.02")
    plan = trained(tmp_path, claim, {0.1: around(0.5), 0.01: around(0.5), 0.001: around(0.5)})
    judgement = judge(plan)
    found = only(judgement)
    assert found.verdict == ClaimVerdict.OPEN
    assert [(cell.params["batch_size"], n_seeds) for cell, n_seeds in found.missing] == [(40, 3), (40, 3)]
    assert judgement.price([found]).epochs == 6 * EPOCHS
    at_power = judgement.price([found], at_power=True)
    n_seeds = found.contrasts[0].n_at_power
    assert n_seeds is not None
    assert at_power.seeds == 2 * n_seeds + 2 * (n_seeds - 5)
    # with the deviation of a point, 80 % power for two points takes (1.96 + 0.84)² × 4 cells / 2² seeds or so
    assert 7 < n_seeds < 16


def test_a_decided_claim_asks_for_nothing(tmp_path: Path) -> None:
    plan = trained(tmp_path, stated(LOWER), {0.1: around(0.5), 0.01: around(0.5), 0.001: around(0.9)})
    found = only(judge(plan))
    assert (found.missing, found.at_power) == ([], [])


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    plan = trained(tmp_path, stated(LOWER), {0.1: [0.1], 0.01: [0.5], 0.001: [0.9]})
    found = only(judge(plan))
    assert found.verdict == ClaimVerdict.OPEN
    assert "needs more seeds: macro F1 +80.0 points, one seed a cell" in found.text


def test_what_was_chosen_for_its_score_counts_by_other_seeds_alone(tmp_path: Path) -> None:
    claim = stated("better = {l2 = 0.0}\nworse = {l2 = 0.1}")
    studies = {"rate": RATES, "l2": 'inherits = "rate"\n[search]\nl2 = [0.0, 0.1]\n' + claim}
    plan = new_plan(tmp_path, studies, seeds=5)
    assert only(judge(plan)).text == "its cells are known once rate has decided."
    advance(plan)
    worker = Worker(plan)
    for score in (0.5, 0.6, 0.5):
        worker.finish(worker.claim("rate"), [around(score)])
    advance(plan)
    for score in (0.6, 0.4):
        worker.finish(worker.claim("l2"), [around(score)])
    chosen, other = only(judge(plan)).cells
    assert (chosen.n_seeds(None), other.n_seeds(None)) == (0, 5)


def test_a_figure_shows_the_contrasts_with_their_intervals(tmp_path: Path) -> None:
    state = f'state = "{DYING}"\nat = {{learning_rate = 0.1}}\nnot_at = {{learning_rate = 0.01}}'
    scores = {0.1: around(0.5), 0.01: around(0.5), 0.001: around(0.7)}
    plan = trained(tmp_path, stated(state) + stated(f"{LOWER}delta = 0.02"), scores)
    _, found = judge(plan).results
    (figure,) = [each.figure for each in figures(read(plan)) if each.name == "claims"]
    assert isinstance(figure.chart, Forest)
    (drawn,) = figure.chart.estimates  # a share of runs is no difference of the metric
    assert drawn.row == "2. learning_rate 0.001 against learning_rate 0.1"
    assert (drawn.text, drawn.delta) == ("shown to be better", 2.0)
    interval = found.contrasts[0].comparison.interval
    assert interval is not None
    assert [drawn.low, drawn.high] == [100 * end for end in interval]
    assert drawn.value == pytest.approx(20)
    assert draw(figure).svg


def test_a_discarded_trial_is_no_evidence(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"rate": RATES + stated(LOWER)}, seeds=5)
    advance(plan)
    worker = Worker(plan)
    for center in (0.5, 0.8, 0.7):
        worker.finish(worker.claim("rate"), [around(center)])
    assert only(judge(plan)).verdict == ClaimVerdict.CONFIRMED
    discard(plan, "rate", plan.trials("rate")[0], "broken")
    found = only(judge(plan))
    assert found.verdict == ClaimVerdict.OPEN
    assert "1 of 2 cells have no result" in found.text


def test_on_other_classes_nobody_judges_and_on_less_all_stays_open(tmp_path: Path) -> None:
    scores = {0.1: around(0.5), 0.01: around(0.5), 0.001: around(0.7)}
    plan = trained(tmp_path, "", scores)
    folder = tmp_path / "studies"
    claim = stated(LOWER).replace('text = "A claim"', 'text = "A claim"\nstudy = "rate"')
    found = {}
    for about in ('classes = ["cat"]', "n_train = 201", "epochs = 5", "n_train = 200\nepochs = 4"):
        (folder / "claims.toml").write_text(f"[about]\n{about}\n{claim}")
        plan = find_or_create_plan(tmp_path, studies=folder, given={})
        found[about] = judge(plan)
    first, *others = found.values()
    assert first.off_topic == "the claims are about other classes: cat"
    assert [only(each).verdict for each in others] == ["open", "open", "confirmed"]
    assert "Here that would be confirmed, but only 200 + 100 of the images were used." in only(others[0]).text
    assert "but only 4 of 5 epochs were trained" in only(others[1]).text
    assert not only(others[0]).missing


def test_claims_that_come_or_change_later_are_stored_and_refuse_nothing(tmp_path: Path) -> None:
    plan = trained(tmp_path, "", {0.1: [0.1], 0.01: [0.5], 0.001: [0.9]})
    assert not judge(plan).results
    folder, given = tmp_path / "studies", {**SMALL_SIZES, "epochs": EPOCHS}
    (folder / "rate.toml").write_text(RATES + stated(LOWER, text="First"))
    plan = find_or_create_plan(tmp_path, studies=folder, given=given)
    assert [each.claim.text for each in judge(plan).results] == ["First"]
    find_or_create_plan(tmp_path, given={})  # without the folder they stay
    assert [each.claim.text for each in judge(plan).results] == ["First"]
    (folder / "rate.toml").write_text(RATES + stated(LOWER, text="Second"))
    find_or_create_plan(tmp_path, studies=folder, given=given)
    assert [each.claim.text for each in judge(plan).results] == ["Second"]


def test_claims_that_somebody_changed_by_hand_are_refused(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, {"rate": RATES})
    plan.storage.set_study_attr(plan.storage.study_id("final"), "claims", {"claims": 3})
    with pytest.raises(InputError, match=r"holds no plan that hpo .* can read: study 'final', claims = 3"):
        judge(plan)


# --- cells that are trained for claims alone ---------------------------------------------------------------

INTERACTION = f"{LOWER}more_at = {{batch_size = 20}}\nless_at = {{batch_size = 40}}\ndelta = 0.05"


def cells_by_seed(plan: Plan) -> list[tuple[str, int]]:
    """Every seed of every cell that was queued, by configuration."""
    return [(t.user_attrs["point"], seed) for t in plan.trials(CLAIMS) for seed in t.user_attrs["seeds"]]


def finish_cells(plan: Plan, score: Callable[[Mapping[str, Any]], float]) -> None:
    """Train all that waits, and what is queued then, as `hpo run --claims` does."""
    worker = Worker(plan)
    while not advance(plan, [CLAIMS]):
        trial = worker.claim(CLAIMS)
        config = plan.storage.trial(trial._trial_id).user_attrs["config"]
        seeds = trial.user_attrs["seeds"]
        worker.finish(trial, [[score(config) + 0.005 * (-1) ** seed for seed in seeds]])


def test_only_missing_cells_are_trained_and_no_seed_twice(tmp_path: Path) -> None:
    plan = trained(
        tmp_path,
        stated(INTERACTION) + stated(LOWER),
        {0.1: around(0.5, 3), 0.01: around(0.5, 3), 0.001: around(0.9, 3)},
    )
    open_cells(plan)
    best = best_decided(plan)
    assert not advance(plan, [CLAIMS])
    waiting = [json.loads(trial.user_attrs["point"]) for trial in plan.trials(CLAIMS)]
    assert [(c["learning_rate"], c["batch_size"]) for c in waiting] == [(0.001, 40), (0.1, 40)]
    assert not advance(plan, [CLAIMS])  # a second look queues nothing anew
    assert len(plan.trials(CLAIMS)) == 2
    finish_cells(plan, lambda config: 0.9 if config["learning_rate"] == 0.001 else 0.88)
    both = judge(plan).results
    assert [each.verdict for each in both] == [ClaimVerdict.CONFIRMED, ClaimVerdict.CONFIRMED]
    assert len(set(cells_by_seed(plan))) == len(cells_by_seed(plan)) == 6
    assert best_decided(plan) == best
    assert [name for name, record in plan.records().items() if record.decision] == ["rate"]


def test_seeds_are_added_look_by_look_until_the_claim_is_decided(tmp_path: Path) -> None:
    plan = trained(tmp_path, stated(INTERACTION), {0.1: [0.5], 0.01: [0.5], 0.001: [0.5]})
    open_cells(plan)
    finish_cells(plan, lambda config: 0.5)
    found = only(judge(plan))
    assert found.verdict == ClaimVerdict.DENIED
    n_seeds = found.contrasts[0].comparison.n_seeds
    assert LOOKS[0] <= n_seeds < LOOKS[-1]
    assert len(cells_by_seed(plan)) == 2 * n_seeds + 2 * (n_seeds - 1)
    assert not set(plan.seeds) & {seed for _, seed in cells_by_seed(plan)}
    assert advance(plan, [CLAIMS])


def test_a_cell_that_always_diverges_ends(tmp_path: Path) -> None:
    plan = trained(tmp_path, stated(INTERACTION), dict.fromkeys((0.1, 0.01, 0.001), around(0.5, 3)))
    open_cells(plan)
    worker = Worker(plan)
    for _ in range(10):
        if advance(plan, [CLAIMS]):
            break
        worker.prune(worker.claim(CLAIMS), "diverged: the loss is nan")
    assert advance(plan, [CLAIMS])
    assert only(judge(plan)).verdict == ClaimVerdict.OPEN
    assert len(plan.trials(CLAIMS)) == 2


@pytest.mark.parametrize(
    ("claims", "problem"),
    [("", "the plan has no claims"), (stated(LOWER), r"no study that has claims has decided yet \(rate\)")],
)
def test_where_no_cell_can_be_trained_that_is_said(tmp_path: Path, claims: str, problem: str) -> None:
    plan = new_plan(tmp_path, {"rate": RATES + claims})
    with pytest.raises(InputError, match=problem):
        open_cells(plan)
    with pytest.raises(InputError, match="claims is not a study of this plan"):
        plan.with_ancestors([CLAIMS])


# --- error rates -------------------------------------------------------------------------------------------


def cell(name: str, scores: Iterable[float], n_in_state: int = 0) -> Cell:
    """A cell with these scores, so many of its seeds in a state."""
    runs = {
        seed: Run(TrialRef(study=name, trial=0), score, frozenset({DYING} if seed < n_in_state else ()), True)
        for seed, score in enumerate(scores)
    }
    return Cell({}, {"optimizer": name}, runs, ())


def test_pure_noise_confirms_no_more_often_than_it_may() -> None:
    """Two equal cells, and each look's verdict kept: 2.5 % may be called better, and 2.5 % worse."""
    generator = np.random.default_rng(0)
    n_worlds, called = 600, dict.fromkeys(Verdict, 0)
    for _ in range(n_worlds):
        first, second = generator.standard_normal((2, LOOKS[-1]))
        others = generator.standard_normal((4, 3))
        for n_seeds in LOOKS:
            groups = [first[:n_seeds], second[:n_seeds], *others]
            df = sum(len(group) - 1 for group in groups)
            noise = Noise(sum(float(np.var(group)) * len(group) for group in groups) / df, df)
            sides = [(1.0, cell("adam", first[:n_seeds])), (-1.0, cell("sgd", second[:n_seeds]))]
            found = compare_cells(sides, None, delta=0.0, noise=noise)
            if found.verdict in (Verdict.BETTER, Verdict.WORSE):
                called[found.verdict] += 1
                break
    assert max(called.values()) <= binom.ppf(0.999, n_worlds, 0.025)
    assert sum(called.values()) > 0.015 * n_worlds  # not by never saying anything


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8])
def test_equal_shares_of_a_state_confirm_no_more_often_than_they_may(share: float) -> None:
    """By counting out every outcome of both sides, one look."""
    n_runs, total = LOOKS[-1], 0.0
    for first, second in itertools.product(range(n_runs + 1), repeat=2):
        sides = [(1.0, cell("adam", [0.0] * n_runs, first)), (-1.0, cell("sgd", [0.0] * n_runs, second))]
        found = compare_cells(sides, DYING, delta=0.5, noise=Noise(None, 0))
        if found.verdict == Verdict.BETTER:
            total += math.prod(float(binom.pmf(count, n_runs, share)) for count in (first, second))
    assert total <= 0.025
