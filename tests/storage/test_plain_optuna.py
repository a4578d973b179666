"""The studies of a plan, opened with Optuna alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

import hpo as library
from hpo.planning.plan import Plan
from hpo.storage.queue import reason_of


def test_a_study_opens_with_its_values_parameters_and_space(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "hpo.db", tmp_path / "copy.db")
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    assert set(optuna.get_all_study_names(url)) == {"rate", "shape", "final"}
    study = optuna.load_study(study_name="rate", storage=url)
    rows = library.rows(library.find_plan(finished), "rate")
    assert study.direction == StudyDirection.MAXIMIZE
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert [trial.params for trial in study.trials] == [row.params for row in rows]
    assert [trial.params for trial in study.trials] == [{"learning_rate": 0.003}, {"learning_rate": 0.001}]
    assert [trial.value for trial in study.trials] == pytest.approx([row.metrics["macro_f1"] for row in rows])
    for trial in study.trials:
        assert trial.distributions == {"learning_rate": CategoricalDistribution((0.003, 0.001))}
        assert trial.value == max(trial.intermediate_values.values())
        assert sorted(trial.intermediate_values) == [1, 2, 3]
        assert trial.duration is not None
    best = library.find_plan(finished).decision("rate")
    assert best is not None
    assert best.source is not None
    assert (study.best_trial.number, study.best_value) == (best.source.trial, best.value)
    assert "params_learning_rate" in study.trials_dataframe()


def test_states_are_optunas_with_ours_in_an_attribute(under_way: Plan, tmp_path: Path) -> None:
    source = Path(under_way.storage.url.removeprefix("sqlite:///"))
    for suffix in ("", "-wal"):  # as nobody has closed it
        shutil.copy(f"{source}{suffix}", tmp_path / f"copy.db{suffix}")
    study = optuna.load_study(study_name="rate", storage=f"sqlite:///{tmp_path / 'copy.db'}")
    states = [trial.state for trial in study.trials]
    assert states[:4] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]
    assert {TrialState.RUNNING, TrialState.WAITING} & set(states[4:])
    assert [reason_of(trial) for trial in study.trials[:4]] == ["", "pruned", "diverged", "error"]
    assert study.best_trial.state == TrialState.COMPLETE
