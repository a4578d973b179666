from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from hpo.errors import RunError, StudyFileError
from hpo.execution import worker
from hpo.execution.plan_recipe import with_recipe
from hpo.planning.pruners import PRUNERS, Runs, build_pruner
from hpo.planning.samplers import QMC_POINTS, SAMPLERS, _seed, distributions, draw
from hpo.planning.studies import check_study, read_studies
from hpo.space.study_file import StudySpec, shipped_studies
from tests.support.plans import made_plan
from tests.support.recipes import SCHEMA
from tests.support.studies import spec_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

KNOWN = SCHEMA.defaults
SAMPLED = [name for name in SAMPLERS if name != "grid"]
SPACE: dict[str, Any] = {
    "conv1_channels": [16, 32, 64],
    "conv2_channels": [16, 32, 64],
    "batch_size": {"low": 10, "high": 80, "step": 10},
    "hidden_units": {"low": 32, "high": 512, "log": True},
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "l2": {"low": 0.0, "high": 0.1, "step": 0.02},
    "mixup_alpha": {"low": 0.0, "high": 1.0},
    "optimizer": ["adam", "sgd"],
    "batch_norm": [True],
}
SMALL_SPACE = {name: SPACE[name] for name in ("conv1_channels", "conv2_channels", "batch_size", "batch_norm")}
RANGES_ALONE = ("cma-es",)
"""The samplers that take no lists of values."""


def as_taken(sampler: str, search: dict[str, Any]) -> dict[str, Any]:
    """A space as a sampler takes it: where it takes no lists, ranges of numbers and nothing of texts."""
    if sampler not in RANGES_ALONE:
        return search
    channels = {"low": 16, "high": 64, "step": 16}
    return {
        name: channels if "channels" in name else axis for name, axis in search.items() if name != "optimizer"
    }


def joint(sampler: str, *constraints: str, search: dict[str, Any] = SPACE, **options: object) -> StudySpec:
    return spec_of(
        "joint",
        trials=30,
        search=search,
        constraints=list(constraints),
        sampler={"name": sampler, **options},
    )


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage | str:
    return InMemoryStorage() if request.param == "memory" else f"sqlite:///{tmp_path / 'test.db'}"


def new_study(storage: BaseStorage | str | None = None) -> optuna.Study:
    return optuna.create_study(study_name="joint", storage=storage, direction="maximize")


def claim(study: optuna.Study) -> FrozenTrial:
    """A trial without parameters that runs, as the queue gives it to a worker."""
    study.add_trial(create_trial(state=TrialState.WAITING))
    trial = study.get_trials()[-1]
    assert study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    return study._storage.get_trial(trial._trial_id)


def work(
    study: optuna.Study,
    spec: StudySpec,
    indices: range,
    value: Callable[[dict[str, Any]], float] | None = None,
) -> list[dict[str, Any]]:
    """Draws points, writes them to their trials, and finishes those where there is a value to tell."""
    points = []
    for index in indices:
        trial = claim(study)
        point = draw(study, trial, spec, KNOWN, index, seed=1)
        points.append(point)
        for name, drawn in point.items():
            axis = distributions(spec)[name]
            study._storage.set_trial_param(trial._trial_id, name, axis.to_internal_repr(drawn), axis)
        if value is not None:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value(point)])
    return points


def add_odd_trials(study: optuna.Study) -> None:
    """What a study holds besides its points: controls, lost and diverged trials, trials of others."""
    for _ in range(3):
        study.add_trial(create_trial(value=0.9))
        study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    other = IntDistribution(1, 9)
    study.add_trial(create_trial(value=0.8, params={"batch_size": 4}, distributions={"batch_size": other}))
    claim(study)


# --- axes ----------------------------------------------------------------------------------------------


def axis_of(name: str, axis: object) -> BaseDistribution:
    (found,) = distributions(spec_of(trials=1, sampler={"name": "random"}, search={name: axis})).values()
    return found


def test_axes_in_optunas_terms() -> None:
    assert axis_of("l2", [0.1, 0.2]) == CategoricalDistribution((0.1, 0.2))
    assert axis_of("l2", {"low": 0, "high": 1}) == FloatDistribution(0, 1)
    assert axis_of("l2", {"low": 0.1, "high": 1, "log": True}) == FloatDistribution(0.1, 1, log=True)
    assert axis_of("l2", {"low": 0, "high": 1, "step": 0.1}) == FloatDistribution(0, 1, step=0.1)
    assert axis_of("epochs", {"low": 1, "high": 9}) == IntDistribution(1, 9)
    assert axis_of("epochs", {"low": 1, "high": 9, "log": True}) == IntDistribution(1, 9, log=True)
    assert axis_of("epochs", {"low": 1, "high": 9, "step": 2}) == IntDistribution(1, 9, step=2)


@given(low=st.integers(0, 50), step=st.integers(1, 50), n=st.integers(1, 60), digits=st.integers(1, 6))
def test_every_point_of_a_grid_can_be_queued(low: int, step: int, n: int, digits: int) -> None:
    low_, high, step_ = (float(f"{number}e-{digits}") for number in (low, low + n * step, step))
    if high > 100:
        return
    spec = spec_of(search={"l2": {"low": low_, "high": high, "step": step_}})
    axes = distributions(spec)  # warns where high is not low + n·step
    for value in spec.search["l2"].values():
        # refuses what its axis does not contain
        trial = create_trial(state=TrialState.WAITING, params={"l2": value}, distributions=axes)
        assert trial.params == {"l2": value}


# --- names and options -----------------------------------------------------------------------------------

REFUSED = [
    ("sampler", {"name": "tpee"}, "sampler.name = 'tpee' is not known; did you mean 'tpe'?"),
    ("sampler", {"name": "cmaes"}, "sampler.name = 'cmaes' is not known; did you mean 'cma-es'?"),
    (
        "sampler",
        {"name": "cma-es"},
        "sampler.name = 'cma-es' searches ranges alone, and search.conv1_channels is a list of values; write "
        "it as a range, {low = …, high = …}, or take 'tpe'",
    ),
    ("sampler", {"name": "auto", "popsize": 4}, "sampler.popsize is not an option of 'auto'; it has none"),
    ("sampler", {"name": "random", "seed": 1}, "sampler.seed is not an option of 'random'; it has none"),
    (
        "sampler",
        {"name": "tpe", "n_startup_trial": 1},
        "sampler.n_startup_trial is not an option of 'tpe'; did you mean 'n_startup_trials'?",
    ),
    (
        "sampler",
        {"name": "tpe", "n_startup_trials": -1},
        "sampler.n_startup_trials = -1: must be at least 0",
    ),
    (
        "sampler",
        {"name": "tpe", "n_startup_trials": "5"},
        "sampler.n_startup_trials = '5': must be a whole number",
    ),
    (
        "sampler",
        {"name": "gp", "n_startup_trials": 0},
        "sampler.n_startup_trials = 0: must be at least 1",
    ),
    (
        "sampler",
        {"name": "qmc", "qmc_type": "lhs"},
        "sampler.qmc_type = 'lhs': is not known; known: sobol, halton",
    ),
    (
        "pruner",
        {"name": "wilcoxon"},
        "pruner.name = 'wilcoxon' compares seeds or folds that are trained one after the other; here a "
        "pruner looks after each epoch, at all seeds together. Further seeds for those points alone that "
        "can still win: --seeds race",
    ),
    ("pruner", {"name": "medain"}, "pruner.name = 'medain' is not known; did you mean 'median'?"),
    ("pruner", {"name": "none", "patience": 1}, "pruner.patience is not an option of 'none'; it has none"),
    (
        "pruner",
        {"name": "median", "n_warmup_step": 1},
        "pruner.n_warmup_step is not an option of 'median'; did you mean 'n_warmup_steps'?",
    ),
    (
        "pruner",
        {"name": "median", "n_warmup_steps": 1.5},
        "pruner.n_warmup_steps = 1.5: must be a whole number",
    ),
    ("pruner", {"name": "percentile"}, "pruner.percentile is missing; 'percentile' needs it"),
    (
        "pruner",
        {"name": "percentile", "percentile": 101},
        "pruner.percentile = 101: must be at most 100",
    ),
    (
        "pruner",
        {"name": "successive-halving", "reduction_factor": 1},
        "pruner.reduction_factor = 1: must be at least 2",
    ),
    (
        "pruner",
        {"name": "threshold"},
        "pruner.lower is missing; 'threshold' needs lower or upper, as lower = 0.15",
    ),
    ("pruner", {"name": "threshold", "lower": 1, "upper": 0}, "pruner.lower = 1.0: is above upper = 0.0"),
    ("pruner", {"name": "patient"}, "pruner.patience is missing; 'patient' needs it"),
    (
        "pruner",
        {"name": "patient", "patience": 1, "wrapped": {}},
        "pruner.wrapped.name is missing; known: none, ",
    ),
    (
        "pruner",
        {"name": "patient", "patience": 1, "wrapped": {"name": "medium"}},
        "pruner.wrapped.name = 'medium' is not known; did you mean 'median'?",
    ),
    (
        "pruner",
        {"name": "patient", "patience": 1, "wrapped": {"name": "threshold"}},
        "pruner.wrapped.lower is missing; 'threshold' needs lower or upper",
    ),
]


@pytest.mark.parametrize(("kind", "table", "said"), REFUSED)
def test_refused_with_key_value_and_what_would_be_right(kind: str, table: dict[str, Any], said: str) -> None:
    document: dict[str, Any] = {"trials": 1, "search": SPACE, "sampler": {"name": "tpe"}, kind: table}
    spec = spec_of(**document)
    with pytest.raises(StudyFileError) as caught:
        check_study(spec, Path("x.toml"))
    assert str(caught.value).startswith(f"x.toml: {said}")


OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 0, "n_ei_candidates": 10},
    "qmc": {"qmc_type": "halton"},
    "gp": {"n_startup_trials": 3},
    "cma-es": {"popsize": 4},
    "median": {"n_startup_trials": 0, "n_warmup_steps": 1, "interval_steps": 2, "n_min_trials": 1},
    "percentile": {"percentile": 25, "n_startup_trials": 0, "n_warmup_steps": 1},
    "successive-halving": {"min_resource": 2, "reduction_factor": 2, "min_early_stopping_rate": 1},
    "hyperband": {"min_resource": 2, "reduction_factor": 2, "bootstrap_count": 1},
    "patient": {"patience": 1, "min_delta": 0.005, "wrapped": {"name": "median", "n_warmup_steps": 2}},
    "threshold": {"lower": 0.15, "upper": 0.9, "interval_steps": 2},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_accepted_with_and_without_options(name: str) -> None:
    def check(**options: Any) -> None:
        trials: dict[str, Any] = {} if name == "grid" else {"trials": 3}
        sampler = {"name": name, **options}
        spec = spec_of(search={"l2": [0.1]}, sampler=sampler, **trials)
        check_study(spec, Path("x.toml"))

    check()
    check(**OPTIONS.get(name, {}))
    with pytest.raises(StudyFileError, match=r"sampler\.no_such_option"):
        check(no_such_option=1)


# --- samplers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLED)
def test_every_point_is_in_the_space_and_satisfies_the_constraints(
    name: str, storage: BaseStorage | str
) -> None:
    options = {"n_startup_trials": 3} if name in ("tpe", "gp") else {}
    # a draw of GP from the large one takes seconds
    search = as_taken(name, SMALL_SPACE if name == "gp" else SPACE)
    constraints = ("conv1_channels <= conv2_channels", "hidden_units > batch_size")
    spec = joint(name, *constraints, search=search, **options)
    study = new_study(storage)
    add_odd_trials(study)

    def value(point: dict[str, Any]) -> float:
        return 1 / float(point["batch_size"])

    points = work(study, spec, range(3), value)
    points += work(study, spec, range(3, 5))  # two stay RUNNING, as a neighbour's
    points += work(study, spec, range(5, 6), value)
    for point in points:
        assert list(point) == list(search)
        assert spec.feasible({**KNOWN, **point})
        assert point["conv1_channels"] <= point["conv2_channels"]
        assert {**KNOWN, **point}["hidden_units"] > point["batch_size"]
        assert point["batch_norm"] is True
        for parameter, drawn in point.items():
            axis = distributions(spec)[parameter]
            assert axis._contains(axis.to_internal_repr(drawn))
            assert SCHEMA.check(parameter, drawn) == drawn
    assert len({tuple(point.values()) for point in points}) == len(points)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_draw_leaves_no_parameters_and_counts_nothing_in_the_study(name: str) -> None:
    study, search = new_study(), as_taken(name, SMALL_SPACE)
    work(study, joint(name, search=search), range(11), value=lambda point: 0.5)
    trial = claim(study)
    before = len(study.trials)
    spec = joint(name, "conv1_channels < conv2_channels", search=search)
    draw(study, trial, spec, KNOWN, 11, seed=1)
    assert len(study.trials) == before
    after = study.trials[-1]
    assert (after.state, after.params, after.user_attrs) == (TrialState.RUNNING, {}, {})
    assert all("relative_params" in key for key in after.system_attrs)
    assert study._storage.get_study_system_attrs(study._study_id) == {}


@pytest.mark.parametrize("name", ["random", "qmc"])
def test_points_depend_on_seed_study_and_index_alone(name: str) -> None:
    spec = joint(name, "conv1_channels <= conv2_channels")
    forwards = work(new_study(), spec, range(6), value=lambda point: 0.5)
    backwards = work(new_study(), spec, range(5, -1, -1))
    assert forwards == backwards[::-1]
    study = new_study()
    trial = claim(study)
    assert draw(study, trial, spec, KNOWN, 0, seed=2) != forwards[0]
    renamed = spec.model_copy(update={"name": "other"})
    assert draw(study, trial, renamed, KNOWN, 0, seed=1) != forwards[0]


def test_points_are_the_same_in_every_process_and_version() -> None:
    (point,) = work(new_study(), joint("random", search={"l2": {"low": 0, "high": 1}}), range(1))
    assert point == {"l2": pytest.approx(0.4369144414772349, rel=1e-12)}


@pytest.mark.parametrize(("qmc_type", "engine"), [("sobol", qmc.Sobol), ("halton", qmc.Halton)])
def test_qmc_shares_one_sequence_out_among_workers(qmc_type: str, engine: Any) -> None:
    unit = {"low": 0.0, "high": 1.0}
    spec = joint("qmc", qmc_type=qmc_type, search={"l2": unit, "mixup_alpha": unit})
    points = [tuple(point.values()) for point in work(new_study(), spec, range(16))]
    sequence = engine(2, seed=_seed(1, "joint"), scramble=True).random(16)
    assert points == [pytest.approx(tuple(sample)) for sample in sequence]


def test_qmc_redraws_take_samples_that_are_nobodys() -> None:
    unit = {"low": 0.0, "high": 1.0}
    spec = joint("qmc", "l2 <= mixup_alpha", search={"l2": unit, "mixup_alpha": unit})
    points = [tuple(point.values()) for point in work(new_study(), spec, range(spec.trials or 0))]
    sequence = qmc.Sobol(2, seed=_seed(1, "joint"), scramble=True).random(2**17)
    ids = [int(np.abs(sequence - point).sum(axis=1).argmin()) for point in points]
    assert [sample % QMC_POINTS for sample in ids] == list(range(30))
    assert max(ids) >= QMC_POINTS  # some were redrawn, past what a study with more points would draw


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_models_learn_from_the_points_and_not_from_the_odd_trials(name: str) -> None:
    def value(point: dict[str, Any]) -> float:
        return -(float(point["mixup_alpha"] - 0.8) ** 2)

    unit = {"low": 0.0, "high": 1.0}
    spec = joint(name, search={"mixup_alpha": unit}, n_startup_trials=10)
    study = new_study()
    add_odd_trials(study)
    points = work(study, spec, range(10), value)
    assert points == work(new_study(), joint("random", search={"mixup_alpha": unit}), range(10))
    learnt = work(study, spec, range(10, 40 if name == "tpe" else 13), value)[-10:]
    # by chance it would be 0.34
    assert sum(abs(point["mixup_alpha"] - 0.8) for point in learnt) / len(learnt) < 0.15


@pytest.mark.parametrize("name", ["tpe", "qmc", "random", "cma-es"])
def test_a_point_that_is_hard_to_hit_is_found_by_chance(name: str) -> None:
    spec = joint(name, "l2 < 0.001", search={"l2": {"low": 0.0, "high": 1.0}})
    study = new_study()
    for number in range(12):  # the model believes in 1
        axis: dict[str, BaseDistribution] = {"l2": FloatDistribution(0, 1)}
        study.add_trial(create_trial(value=number / 12, params={"l2": number / 12}, distributions=axis))
    (point,) = work(study, spec, range(1))
    assert point["l2"] < 0.001


def test_a_point_that_is_never_hit_ends_with_what_was_asked_for() -> None:
    search = {"l2": {"low": 0.0, "high": 0.9}}
    spec = joint("random", "l2 == learning_rate", "l2 <= epochs", search=search)
    study = new_study()
    with pytest.raises(RunError) as caught:
        draw(study, claim(study), spec, KNOWN, 0, seed=1)
    assert str(caught.value) == (
        "study 'joint': 10,000 draws found no new point with l2 == learning_rate and l2 <= epochs "
        "and epochs = 11 and learning_rate = 0.001; widen [search], relax its constraints, or ask for fewer "
        "trials"
    )


THREE: list[dict[str, Any]] = [
    {"optimizer": ["adam", "sgd"], "momentum": [0.0, 0.9]},  # with adam momentum means nothing
    {"batch_size": {"low": 8, "high": 10}},
    {"batch_norm": [True, False], "conv1_channels": [8, 4], "conv2_channels": [4, 8]},
]


@pytest.mark.parametrize(
    ("name", "search"),
    [
        pytest.param(name, search, id=f"{name}-{'-'.join(search)}")
        for name in SAMPLED
        for search in (THREE[1:2] if name in RANGES_ALONE else THREE)
    ],
)
def test_law_no_point_is_drawn_twice(name: str, search: dict[str, Any]) -> None:
    constraints = ["conv1_channels == conv2_channels", "conv1_channels < 8"] if len(search) == 3 else []
    spec = joint(name, *constraints, search=search)
    study, keys = new_study(), set[str]()
    left = spec.listed(KNOWN)
    assert left is not None
    assert len(left) == (2 if constraints else 3)
    for index in range(len(left)):
        trial = claim(study)
        point = draw(study, trial, spec, KNOWN, index, seed=1, tried=keys)
        assert spec.feasible({**KNOWN, **point})
        assert spec.key(KNOWN, point) not in keys
        keys.add(spec.key(KNOWN, point))
        for parameter, axis in distributions(spec).items():
            drawn = axis.to_internal_repr(point[parameter])
            study._storage.set_trial_param(trial._trial_id, parameter, drawn, axis)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])
    assert keys == {spec.key(KNOWN, point) for point in left}


def test_where_every_point_was_tried_there_is_none_to_draw() -> None:
    spec = joint("random", search={"batch_norm": [True, False]})
    keys = {spec.key(KNOWN, point) for point in spec.listed(KNOWN) or []}
    study = new_study()
    with pytest.raises(RunError, match=r"found no new point; widen .search., .* or ask for fewer trials"):
        draw(study, claim(study), spec, KNOWN, 2, seed=1, tried=keys)


def test_only_small_spaces_are_listed() -> None:
    assert joint("tpe", search={"l2": {"low": 0.0, "high": 1.0}}).listed(KNOWN) is None
    steps = {"low": 0.0, "high": 1.0, "step": 0.25}
    assert joint("tpe", search={"l2": steps}).listed(KNOWN) == [{"l2": n / 4} for n in range(5)]
    whole = {"low": 1, "high": 101}
    wide = {"conv1_channels": whole, "conv2_channels": whole}
    assert joint("tpe", search=wide).listed(KNOWN) is None


@pytest.mark.parametrize("name", SAMPLED)
def test_a_study_of_few_points_trains_each_once_and_ends_early(name: str, tmp_path: Path) -> None:
    lists = 'optimizer = ["adam", "sgd"]\nmomentum = [0.0, 0.9]'
    axes = "batch_size = {low = 8, high = 10}" if name in RANGES_ALONE else lists
    text = f"""
        trials = 30
        [fixed]
        conv1_channels = 4
        conv2_channels = 4
        hidden_units = 8
        [search]
        {axes}
        [sampler]
        name = "{name}"
    """
    plan = made_plan(tmp_path, {"few": text}, epochs=1, limit_train=40, limit_valid=20)
    bound = with_recipe(plan)
    assert worker.work(plan.storage, out=tmp_path) is None
    trials = [trial for trial in plan.trials("few") if trial.state == TrialState.COMPLETE]
    keys = [bound.spec("few").key(bound.spec("few").context(), trial.params) for trial in trials]
    assert len(keys) == len(set(keys)) == 3
    decision = plan.decision("few")
    assert decision is not None
    assert decision.text.startswith("the space has 3 points, all tried; ")


# --- CMA-ES, and the choice of one -----------------------------------------------------------------------

NUMBERS = {name: axis for name, axis in as_taken("cma-es", SPACE).items() if "channels" not in name}
GOAL = {"batch_size": 60, "hidden_units": 300, "learning_rate": 1e-3, "l2": 0.04, "mixup_alpha": 0.7}


def distance(point: dict[str, Any]) -> float:
    """How far a point is from the goal, in parts of the axes."""
    parts = []
    for name, goal in GOAL.items():
        scale = np.log if SPACE[name].get("log") else float
        low, high, at, to = map(scale, (SPACE[name]["low"], SPACE[name]["high"], point[name], goal))
        parts.append(abs(at - to) / (high - low))
    return float(np.sqrt(np.mean(np.square(parts))))


def ended(
    points: list[dict[str, Any]], spec: StudySpec, value: Callable[[dict[str, Any]], float]
) -> optuna.Study:
    """A study in which these points have ended."""
    study, axes = new_study(), distributions(spec)
    for point in points:
        study.add_trial(create_trial(value=value(point), params=point, distributions=axes))
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_cma_es_comes_to_the_goal_on_ranges_of_every_kind(direction: Literal["maximize", "minimize"]) -> None:
    sign = -1 if direction == "maximize" else 1
    study = optuna.create_study(study_name="joint", direction=direction)
    points = work(study, joint("cma-es", search=NUMBERS), range(96), lambda point: sign * distance(point))
    assert np.mean([distance(point) for point in points[:8]]) > 0.2
    assert np.mean([distance(point) for point in points[-8:]]) < 0.07  # l2 and batch size come in steps


def test_cma_es_waits_for_a_point_that_is_open() -> None:
    """Or what it draws would depend on which of two workers is the faster."""
    spec = joint("cma-es", search=NUMBERS, popsize=4)
    points = work(new_study(), joint("random", search=NUMBERS), range(12))

    def drawn(n_ended: int, n_after: int) -> dict[str, Any]:
        study = ended(points[:n_ended], spec, lambda point: -distance(point))
        if n_after:
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=points[-1],
                    distributions=distributions(spec),
                    user_attrs={"point": "x"},
                )
            )
        for trial in ended(points[n_ended : n_ended + n_after], spec, distance).get_trials():
            study.add_trial(trial)
        return draw(study, claim(study), spec, KNOWN, 20, 1)

    assert drawn(5, 6) == drawn(5, 0) == drawn(4, 0) != drawn(8, 0)


@pytest.mark.parametrize("n_imported", [3, 60])
def test_cma_es_begins_where_imported_points_are_good(n_imported: int) -> None:
    spec = joint("cma-es", search=NUMBERS)
    chance = work(new_study(), joint("random", search=NUMBERS), range(60))
    best = sorted(chance, key=distance)[:n_imported]
    imported = ended(best, spec, lambda point: -distance(point)).get_trials()
    study = new_study()
    trial = claim(study)
    points = [draw(study, trial, spec, KNOWN, index, 1, imported=imported) for index in range(20)]
    assert np.mean([distance(point) for point in points]) < 0.7 * np.mean(
        [distance(point) for point in chance]
    )


def test_cma_es_runs_nothing_that_lies_in_the_database(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    storage = f"sqlite:///{tmp_path / 'test.db'}"
    study, spec = new_study(storage), joint("cma-es", search=NUMBERS)
    work(study, spec, range(10), lambda point: 0.5)
    theirs = pickle.dumps(Bomb()).hex()
    study.add_trial(create_trial(value=0.9, system_attrs={"cma:optimizer:0": theirs, "cma:generation": 0}))
    assert len(work(study, spec, range(10, 12))) == 2
    assert not (tmp_path / "ran").exists()


def test_cma_es_that_stands_still_begins_anew() -> None:
    spec = joint("cma-es", search={"mixup_alpha": {"low": 0.0, "high": 1.0}}, popsize=4)

    def spread(n_points: int) -> float:
        study = ended([{"mixup_alpha": 0.3}] * n_points, spec, lambda point: 0.5)
        points = work(study, spec, range(n_points, n_points + 6))
        return float(np.median([abs(point["mixup_alpha"] - 0.3) for point in points]))

    assert spread(180) < 1e-6
    assert spread(192) > 0.05


def test_cma_es_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    for name, trials in (("cma-es", 1), ("auto", 251)):
        spec = spec_of(trials=trials, search=NUMBERS, sampler={"name": name})
        said = rf"x.toml: sampler.name = '{name}'.* needs the package cmaes; .*\[cma-es\]"
        with pytest.raises(StudyFileError, match=said):
            check_study(spec, Path("x.toml"))
        check_study(spec, Path("x.toml"), here=False)  # who only looks at a plan
    check_study(spec_of(trials=250, search=NUMBERS, sampler={"name": "auto"}), Path("x.toml"))


@pytest.mark.parametrize(("search", "chosen"), [(SMALL_SPACE, "tpe"), (NUMBERS, "gp")])
def test_auto_chooses_by_the_axes(search: dict[str, Any], chosen: str) -> None:
    drawn = []
    for name in ("auto", chosen):
        spec = joint(name, search=search)
        known = work(new_study(), joint("random", search=search), range(12))
        study = ended(known, spec, lambda point: 1 / float(point["batch_size"]))
        drawn += work(study, spec, range(12, 13))
    assert drawn[0] == drawn[1] != work(new_study(), joint("random", search=search), range(12, 13))[0]


def test_auto_goes_on_by_cma_es_from_the_first_250_points() -> None:
    chance = work(new_study(), joint("random", search=NUMBERS), range(250))

    def drawn(sampler: str, n_ended: int, indices: range) -> list[dict[str, Any]]:
        spec = joint(sampler, search=NUMBERS)
        return work(ended(chance[:n_ended], spec, lambda point: -distance(point)), spec, indices)

    spread = np.mean([distance(point) for point in chance])
    assert np.mean([distance(point) for point in drawn("auto", 250, range(250, 262))]) < 0.6 * spread
    # which is for the number of the point to say, and not for how many have ended
    assert drawn("auto", 12, range(249, 250)) == drawn("gp", 12, range(249, 250))
    assert drawn("auto", 0, range(250, 252)) == drawn("cma-es", 0, range(250, 252))


# --- pruners ---------------------------------------------------------------------------------------------


def first_pruned(study: optuna.Study, pruner: optuna.pruners.BasePruner, values: list[float]) -> int | None:
    """The epoch, from 1, at which a run with these values is stopped."""
    study.add_trial(create_trial(state=TrialState.RUNNING))
    trial_id = study.trials[-1]._trial_id
    stopped = None
    for epoch, value in enumerate(values, start=1):
        study._storage.set_trial_intermediate_value(trial_id, epoch, value)
        if pruner.prune(study, study._storage.get_trial(trial_id)):
            stopped = epoch
            break
    state = TrialState.PRUNED if stopped else TrialState.COMPLETE
    study._storage.set_trial_state_values(trial_id, state, [max(values)])
    return stopped


def pruner(table: dict[str, Any], epochs: int = 11) -> optuna.pruners.BasePruner:
    spec = spec_of(search={"l2": [0.1]}, pruner=table)
    check_study(spec, Path("x.toml"))
    return build_pruner(spec, Runs(epochs, 10))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("epochs", [1, 11])
def test_every_pruner_judges_runs_beside_a_control(name: str, epochs: int) -> None:
    required: dict[str, dict[str, Any]] = {
        "percentile": {"percentile": 25.0},
        "patient": {"patience": 1},
        "threshold": {"lower": 0.15},
    }
    for options in (required.get(name, {}), OPTIONS.get(name, {})):
        study = new_study()
        study.add_trial(create_trial(value=0.9))
        rising = [0.5 + 0.01 * e for e in range(epochs)]
        good = [first_pruned(study, pruner({"name": name, **options}, epochs), rising) for _ in range(8)]
        if epochs == 1 or "min_resource" not in options:  # hyperband may stop one of two that are equal
            assert not any(good)
        bad = [0.14 - 0.01 * e for e in range(epochs)]
        n_runs = 6 if name == "hyperband" else 1  # one of its brackets stops nothing before the end
        stopped = [first_pruned(study, pruner({"name": name, **options}, epochs), bad) for _ in range(n_runs)]
        waits = name == "patient" or "min_resource" in options  # for a second epoch
        assert any(stopped) is (name != "none" and not (waits and epochs == 1))


@pytest.mark.parametrize("name", ["learning-rate", "batch-size", "l2", "batch-norm", "mixup"])
def test_the_other_shipped_studies_stop_networks_at_chance_level_from_epoch_3_on(name: str) -> None:
    shipped = read_studies(shipped_studies(), SCHEMA)[name]

    def stopped(n_classes: int, values: list[float]) -> int | None:
        return first_pruned(new_study(), build_pruner(shipped, Runs(11, n_classes)), values)

    assert stopped(10, [0.018] * 11) == 3
    assert stopped(10, [0.018, 0.1, 0.2, 0.3, 0.16]) is None
    assert stopped(60, [0.0005] * 11) == 3
    assert stopped(60, [0.01, 0.03, 0.06, 0.3, 0.7]) is None  # chance is 0.017
    assert stopped(2, [0.33] * 11) is None  # on two classes who has yet to learn looks the same


@pytest.mark.parametrize(("n_classes", "is_share"), [(0, False), (0, True), (10, False)])
def test_what_has_no_chance_level_is_not_stopped_there(n_classes: int, is_share: bool) -> None:
    shipped = read_studies(shipped_studies(), SCHEMA)["l2"]
    pruner = build_pruner(shipped, Runs(11, n_classes, is_share))
    assert first_pruned(new_study(), pruner, [0.01] * 11) is None  # of a loss that is very good


def test_the_shipped_halving_judges_after_epochs_2_and_6() -> None:
    shipped = read_studies(shipped_studies(), SCHEMA)["network-setup"]

    def halving() -> optuna.pruners.BasePruner:
        return build_pruner(shipped, Runs(11, 10))

    study = new_study()
    assert first_pruned(study, halving(), [0.5] * 11) is None
    assert first_pruned(study, halving(), [0.9, *[0.4] * 10]) == 2
    assert first_pruned(study, halving(), [0.1, *[0.6] * 4, *[0.4] * 6]) == 6
    assert first_pruned(study, halving(), [0.1, *[0.6] * 10]) is None


def test_patience_gives_the_wrapped_pruner_its_turn_only_without_progress() -> None:
    table = {"name": "patient", "patience": 2, "wrapped": {"name": "threshold", "lower": 0.5}}
    study = new_study()
    assert first_pruned(study, pruner(table), [0.1, 0.2, 0.3, 0.4]) is None
    assert first_pruned(study, pruner(table), [0.3, 0.2, 0.2, 0.2, 0.2]) == 4
    assert first_pruned(study, pruner(table), [0.9, 0.8, 0.8, 0.8, 0.8]) is None


def test_hyperband_knows_how_long_a_run_is() -> None:
    study = new_study()
    hyperband = pruner({"name": "hyperband", "min_resource": 1, "reduction_factor": 3}, epochs=9)
    stopped = {first_pruned(study, hyperband, [0.5 - 0.01 * n] * 9) for n in range(30)}
    assert stopped - {None} <= {1, 3, 9}  # the rungs of 9 epochs
    assert {1, 3} <= stopped
