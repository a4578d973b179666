"""Trials and epochs for other programs: the same figures as the database has, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
from optuna.trial import TrialState

import hpo as library
from hpo.execution.run import find_or_create_plan
from hpo.monitor.export import write_csv
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import Plan
from tests.support.fixtures import Cli
from tests.support.recipes import SCHEMA


@pytest.fixture(scope="module")
def plan(finished: Path) -> Plan:
    return library.find_plan(finished)


def test_a_frame_of_trials_has_a_row_each_and_the_parameters_by_name(plan: Plan) -> None:
    frame = library.trials_frame(plan)
    assert list(frame["study"]) == ["rate"] * 2 + ["shape"] * 3 + ["final"]
    assert list(frame.columns[-len(SCHEMA.parameters) :]) == list(SCHEMA.parameters)
    for name in plan.all_names:
        of_study = frame[frame["study"] == name].set_index("trial")
        for trial in plan.trials(name):
            row = of_study.loc[trial.number]
            assert row["macro_f1"] == trial.value
            seeds = epochs_of(trial.user_attrs)[row["best_epoch"] - 1]
            for metric in plan.recipe.metrics:
                assert row[metric] == pytest.approx(fmean(seed["metrics"][metric] for seed in seeds))
            assert {key: row[key] for key in SCHEMA.parameters} == trial.user_attrs["config"]
    assert (frame["complete"] >= frame["start"]).all()


def test_a_frame_of_epochs_has_a_row_a_seed(plan: Plan) -> None:
    frame = library.epochs_frame(plan)
    assert len(frame) == (2 + 3) * 3 + 3 * 2  # the final stage has two seeds
    (final,) = plan.trials("final")
    rows = frame[frame["study"] == "final"]
    for number, seeds in enumerate(epochs_of(final.user_attrs), start=1):
        for seed in seeds:
            ((_, row),) = rows[(rows["epoch"] == number) & (rows["seed"] == seed["seed"])].iterrows()
            assert {metric: row[f"valid_{metric}"] for metric in plan.recipe.metrics} == seed["metrics"]
            assert row["train_loss"] == seed["train_loss"]
            assert row["hidden_dead_share"] == seed["layers"]["hidden"]["dead_share"]
    result = library.final_result(plan)
    assert rows[rows["epoch"] == result["selected_epoch"]]["test_macro_f1"].mean() == pytest.approx(
        result["test"]["macro_f1"]
    )
    assert frame[frame["study"] != "final"]["test_macro_f1"].isna().all()


def test_types_do_not_depend_on_the_values(plan: Plan) -> None:
    kinds = library.trials_frame(plan).dtypes.astype(str)
    assert kinds["l2"] == kinds["mixup_alpha"] == "float64"  # all of them 0.0
    assert (kinds["batch_size"], kinds["batch_norm"], kinds["optimizer"]) == ("Int64", "boolean", "string")


NAMESAKES = """
import hpo


class Names(hpo.LoopParams):
    study: int = 41
    trial: int = 42
    state: int = 43
    seed: int = 44
    epoch: int = 45
    train_loss: float = 46.0
    score: int = 47


class Namesake(hpo.Recipe):
    Params = Names
    metrics = {"score": "maximize", "seeds": "minimize", "start": "minimize"}

    def train(self, params, data, seed, context, resume=None):
        yield hpo.Epoch({"score": 1.0, "seeds": 2.0, "start": 3.0})

    def test(self, params, data, state):
        return {"score": 1.0, "seeds": 2.0, "start": 3.0}
"""


def test_no_name_of_a_parameter_or_metric_hides_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "namesake.py").write_text(NAMESAKES)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "only.toml").write_text("[search]\nscore = [1, 2]\n")
    plan = library.run_plan(
        recipe="python:namesake:Namesake",
        data="digits",
        studies=tmp_path / "studies",
        out=tmp_path / "out",
        final_seeds=2,
        workers=1,
    )
    ours = {"study": 41, "trial": 42, "state": 43, "seed": 44, "epoch": 45, "train_loss": 46.0}
    trials = [row for row in library.export(plan) if row["study"] == "only"]
    assert [(row["trial"], row["state"]) for row in trials] == [(0, "complete"), (1, "complete")]
    assert [(row["seeds"], row["score"], row["param_score"]) for row in trials] == [("0", 1, 1), ("0", 1, 2)]
    assert all(row["metric_seeds"] == 2 and row["metric_start"] == 3 for row in trials)
    assert trials[0]["start"].startswith("20")
    epochs = [row for row in library.export_epochs(plan) if row["study"] == "only"]
    assert [(row["trial"], row["epoch"], row["seed"], row["train_loss"]) for row in epochs] == [
        (0, 1, 0, None),
        (1, 1, 0, None),
    ]
    for row in (*trials, *epochs):
        assert ours == {name: row.get(f"param_{name}", row.get(name)) for name in ours}
    for frame in (library.trials_frame(plan), library.epochs_frame(plan)):
        assert set(frame["study"]) == {"only", "final"}


@pytest.mark.parametrize("rows", ["trials", "epochs"])
def test_every_format_says_the_same(finished: Path, cli: Cli, tmp_path: Path, rows: str) -> None:
    expected = library.export(library.find_plan(finished))
    if rows == "epochs":
        expected = library.export_epochs(library.find_plan(finished))
    command = ("export", "--out", finished, "--rows", rows)
    for name in ("x.csv", "x.json", "x.parquet"):
        assert f"{len(expected)} {rows}" in cli(*command, tmp_path / name).out
    assert (tmp_path / "x.csv").read_text() == cli(*command).out
    assert (tmp_path / "x.json").read_text() == cli(*command, "--json").out
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    table = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [row["study"] for row in table] == [record["study"] for record in expected]
    figure = "macro_f1" if rows == "trials" else "valid_macro_f1"
    assert [float(row[figure]) for row in table] == [record[figure] for record in expected]
    frame = library.trials_frame if rows == "trials" else library.epochs_frame
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), frame(library.find_plan(finished)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x.xlsx"], ".parquet"),
        (["nowhere/x.csv"], "nowhere/x.csv: cannot be written"),
        (["x.csv", "--json"], "--json"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    finished: Path,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("export", "--out", finished, *arguments)
    assert result.code == 2
    assert says in result.err
    assert not list(tmp_path.iterdir())


def test_trials_of_others_are_shown_as_far_as_they_are_like_ours(small_studies: Path, tmp_path: Path) -> None:
    plan = find_or_create_plan(tmp_path, studies=small_studies, given={"data": "digits"})
    theirs = plan.storage.study("rate").ask()
    for key, value in (("seeds", 3), ("config", "a.yaml"), ("point", "x"), ("epoch:1", "x")):
        theirs.set_user_attr(key, value)
    plan.storage.study("rate").tell(theirs, state=TrialState.FAIL)
    (record,) = library.export(plan)
    assert (record["study"], record["trial"], record["state"], record["seeds"]) == ("rate", 0, "fail", "")
    assert library.export_epochs(plan) == []
    assert library.rows(plan, "rate") == []


def test_names_that_are_no_text_are_written_out(plan: Plan, tmp_path: Path) -> None:
    records = [{"=1+1": 1, "a\nb\x1b[31m": "\udcff"}]
    library_csv = io.StringIO()
    write_csv(records, library_csv)
    assert library_csv.getvalue() == "'=1+1,a\\nb\\x1b[31m\n1,\\udcff\n"


def test_a_plan_without_trials_has_no_rows(cli: Cli, small_studies: Path, tmp_path: Path) -> None:
    cli("create", "--data=digits", "--limit-train=200", "--studies", small_studies, "--out", tmp_path)
    plan = library.find_plan(tmp_path)
    assert library.trials_frame(plan).empty
    assert library.epochs_frame(plan).empty
