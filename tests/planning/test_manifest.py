"""What is stored with a plan: options, also those of a folder's plan.toml, and the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo.errors import InputError, StudyFileError
from hpo.execution.plan_recipe import given_options, read_folder, record_of
from hpo.planning.manifest import Identity, Options, RecipeRecord, read_plan_file
from hpo.space.study_file import load_studies
from tests.support.recipes import CNN, SCHEMA, Regression, named


def write(folder: Path, text: str) -> Path:
    (folder / "plan.toml").write_text(text, "utf-8")
    (folder / "rate.toml").write_text("search.l2 = [0.1]", "utf-8")
    return folder


def test_a_folder_without_the_file_gives_no_options(tmp_path: Path) -> None:
    assert read_plan_file(tmp_path) == {}


def test_options_of_the_folder_are_those_of_run_and_the_users_win(tmp_path: Path) -> None:
    folder = write(tmp_path, 'data = "digits"\nseeds = 3\nmetric = "loss"\nlease_seconds = 30')
    assert read_plan_file(folder) == {"data": "digits", "seeds": 3, "metric": "loss", "lease_seconds": 30.0}
    options, recipe, specs = read_folder(folder, given_options(folder, {"seeds": 5}))
    assert (options.data, options.seeds, options.metric, options.epochs) == ("digits", 5, "loss", None)
    assert recipe.name == "constrained-cnn"
    assert list(specs) == list(load_studies(folder, SCHEMA)) == ["rate"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [", "is not valid TOML: "),
        ("seeds = " + "[" * 5000, "is nested too deeply"),
        ("sedes = 3", "sedes is not an option of a plan; did you mean 'seeds'?"),
        ("name = 'x'", "name is not an option of a plan; several may begin from this file"),
        ("out = 'x'", "out is not an option of a plan; known: recipe, data, "),
        ("seeds = 0", "seeds = 0: must be at least 1"),
        ("seeds = '3'", "seeds = '3': must be a whole number"),
        ("seeds = 2020-01-01", "seeds = "),
        ("inherit = 'winner'", "inherit = 'winner': is not known; did you mean 'winners'?"),
        ("pruning = 1", "pruning = 1: must be true or false"),
        ("epochs = {}", "epochs = {}: must be a whole number"),
        ("budget = inf", "budget = inf: must be a finite number"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_cannot_be_used_is_refused_with_key_and_value(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(StudyFileError) as caught:
        read_plan_file(write(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'plan.toml'}: {said}")


def test_options_that_are_out_of_range_are_named_as_they_are_given() -> None:
    with pytest.raises(InputError, match=r"^--final-seeds 0: must be at least 1$"):
        Options.from_given({"final_seeds": 0})


def test_the_objective_is_the_first_metric_or_the_one_that_is_asked_for() -> None:
    record = record_of(CNN)
    assert (record.objective(None).name, record.objective(None).direction) == ("macro_f1", "maximize")
    assert (record.objective("loss").name, record.objective("loss").direction) == ("loss", "minimize")
    assert record_of(named(Regression())).objective(None).name == "loss"
    with pytest.raises(InputError, match=r"^--metric los: did you mean 'loss'"):
        record.objective("los")


def test_the_record_of_a_recipe_comes_back_as_it_was() -> None:
    for record in (record_of(CNN), record_of(named(Regression()))):
        text = record.model_dump_json()
        back = RecipeRecord.model_validate_json(text)
        assert back.model_dump_json() == text
        assert list(back.metrics) == list(record.metrics)
        assert back.parameters.defaults == record.parameters.defaults


@pytest.mark.parametrize(
    ("changes", "inputs", "targets"),
    [
        ({}, "images of 8×6×3", "2 classes"),
        ({"input_shape": (5,), "is_images": False}, "rows of 5 numbers", "2 classes"),
        ({"input_shape": (5, 2), "is_images": False, "class_names": ()}, "rows of 5×2 numbers", "2 numbers"),
        ({"class_names": (), "n_outputs": 1}, "images of 8×6×3", "one number"),
    ],
)
def test_an_identity_says_what_its_data_are(changes: dict[str, Any], inputs: str, targets: str) -> None:
    basic: dict[str, Any] = {
        "fingerprint": "0",
        "input_shape": (3, 8, 6),
        "is_images": True,
        "class_names": ("a", "b"),
        "n_outputs": 2,
        "n_train": 9,
        "n_valid": 3,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
    }
    identity = Identity(**{**basic, **changes})
    assert (identity.inputs_text, identity.targets_text) == (inputs, targets)
    assert Identity.model_validate_json(identity.model_dump_json()) == identity
