"""The JSON schema of study files: it knows every key, accepts what hpo accepts and refuses what is wrong."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo._text import read_duration
from hpo.errors import InputError
from hpo.planning.json_schema import study_file_schema
from hpo.planning.pruners import PRUNERS
from hpo.planning.samplers import SAMPLERS
from hpo.planning.studies import check_objectives, read_studies
from hpo.space.claim_file import Claim, Contrast
from hpo.space.schema import Schema
from hpo.space.study_file import Published, PublishedResult, StudySpec
from hpo.training.registry import load_recipe
from tests.support.fixtures import Cli
from tests.support.recipes import SCHEMA, Mlp

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = study_file_schema("constrained-cnn", SCHEMA, load_recipe("constrained-cnn").recipe.metrics)
VALIDATOR = jsonschema.Draft202012Validator(DOCUMENT)
OF_EXAMPLES = {
    "mlp": "mlp:Mlp",
    "other": "other_program:Program",
    "regression": "regression:Regressor",
    "resnet": "resnet:ResNet",
    "sklearn": "sklearn_partial_fit:LinearSgd",
}


def mistakes(document: dict[str, Any], schema: dict[str, Any] = DOCUMENT) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [".".join(map(str, error.absolute_path)) for error in found]


def study_files(folder: Path) -> list[Path]:
    found = [file for file in folder.glob("*.toml") if file.name not in ("plan.toml", "claims.toml")]
    assert found
    return found


def test_it_is_a_schema_of_its_draft() -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)


@pytest.mark.parametrize("folder", ["studies", "examples/joint_search"])
def test_every_study_file_that_is_shipped_or_shown_is_valid(folder: str) -> None:
    for file in study_files(ROOT / folder):
        assert mistakes(tomllib.loads(file.read_text())) == [], file


@pytest.mark.parametrize(("name", "recipe"), OF_EXAMPLES.items())
def test_those_of_the_example_recipes_are_valid_for_these(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ROOT / "examples" / "recipes"
    monkeypatch.syspath_prepend(folder)
    loaded = load_recipe(f"python:{recipe}").recipe
    schema = study_file_schema(recipe, loaded.schema, loaded.metrics)
    for file in study_files(folder / f"studies-{name}"):
        assert mistakes(tomllib.loads(file.read_text()), schema) == [], file


def test_it_knows_every_key_and_no_other() -> None:
    properties = DOCUMENT["properties"]
    assert properties.keys() == StudySpec.model_fields.keys() - {"name", "start"} | {"claims"}
    published = properties["published"]["properties"]
    assert published.keys() == Published.model_fields.keys()
    assert published["results"]["items"]["properties"].keys() == PublishedResult.model_fields.keys()
    claim = properties["claims"]["items"]["properties"]
    assert claim.keys() == Claim.model_fields.keys()
    assert claim["contrasts"]["items"]["properties"].keys() == Contrast.model_fields.keys()
    assert DOCUMENT["$defs"]["values"]["properties"].keys() == SCHEMA.parameters.keys()


def test_it_knows_every_sampler_and_pruner_of_the_page() -> None:
    page = (ROOT / "docs" / "study-files.md").read_text("utf-8")
    for kind, table, schema in (
        ("Samplers", SAMPLERS, DOCUMENT["properties"]["sampler"]),
        ("Pruners", PRUNERS, DOCUMENT["$defs"]["pruner"]),
    ):
        assert schema["properties"]["name"]["anyOf"][0]["enum"] == list(table)
        rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page.partition(f"## {kind}")[2], re.M)
        told = {name: {*re.findall(r"`(\w+)", text)} for name, text in rows[: len(table)]}
        *known, of_hub = schema["oneOf"]
        assert of_hub["properties"]["name"]["pattern"].startswith("^hub:")
        for variant in known:
            options = {*variant["properties"]} - {"name"}
            said = told[variant["properties"]["name"]["const"]]
            assert said <= options | {"median"}, variant
            assert options <= said | ({*told["median"]} if "median" in said else set()), variant


WRONG = {
    "": "[serch]\nl2 = [0.1]",
    "title": "title = 3\n[search]\nl2 = [0.1]",
    "search": "[search]\nlr = [0.1]",
    "search.l2": "[search]\nl2 = 0.1",
    "search.learning_rate": "[search]\nlearning_rate = [0.0]",
    "search.batch_size": "[search]\nbatch_size = [0]",
    "search.optimizer.0": "[search]\noptimizer = ['adma']",
    "search.flip": "[search]\nflip = {low = 0, high = 1}",
    "search.shift": "[search]\nshift = {low = 0}",
    "trials": "trials = 0\n[search]\nl2 = {low = 0.0, high = 1.0}",
    "trial_timeout": "trial_timeout = '20x'\n[search]\nl2 = [0.1]",
    "base.batch_size": "base = {batch_size = 1.5}\n[search]\nl2 = [0.1]",
    "fixed": "fixed = {batchsize = 20}\n[search]\nl2 = [0.1]",
    "sampler": "sampler = {name = 'tpe', n_startup = 3}\ntrials = 3\n[search]\nl2 = [0.1]",
    "pruner": "pruner = {name = 'percentile'}\n[search]\nl2 = [0.1]",
    "published.results.0.accuracy": "published.results = [{accuracy = 70.5}]\n[search]\nl2 = [0.1]",
}


@pytest.mark.parametrize(("where", "text"), WRONG.items())
def test_a_wrong_file_is_refused_at_its_place_as_hpo_refuses_it(
    where: str, text: str, tmp_path: Path
) -> None:
    assert where in mistakes(tomllib.loads(text))
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(InputError):
        read_studies(tmp_path, SCHEMA)


def test_objectives_are_metrics_and_costs_of_the_recipe(tmp_path: Path) -> None:
    metrics = load_recipe("constrained-cnn").recipe.metrics
    for second, is_wrong in (("n_parameters", False), ("seconds_an_epoch", False), ("n_paramters", True)):
        text = f"objectives = ['macro_f1', '{second}']\n[search]\nl2 = [0.1]"
        assert mistakes(tomllib.loads(text)) == ["objectives.1"] * is_wrong
        (tmp_path / "two.toml").write_text(text)
        with pytest.raises(InputError, match="neither a metric nor a cost") if is_wrong else nullcontext():
            check_objectives(read_studies(tmp_path, SCHEMA), metrics, None, lambda name: name, races=False)


@pytest.mark.parametrize("text", ["20m", "1.5 h", "90", " 2d ", "1e3s"])
def test_every_way_to_write_a_duration_is_valid(text: str) -> None:
    assert read_duration(text) is not None
    assert mistakes({"title": "t", "trial_timeout": text}) == []


def test_the_pruner_in_a_pruner_is_checked() -> None:
    study: dict[str, Any] = {"search": {"l2": [0.1]}}
    patient: dict[str, Any] = {"name": "patient", "patience": 2}
    inner = {"name": "median", "n_warmup_steps": 3}
    assert mistakes({**study, "pruner": {**patient, "wrapped": inner}}) == []
    assert mistakes({**study, "pruner": {**patient, "wrapped": {"name": "medain"}}}) == ["pruner"]


@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_one_of_optuna_hub_has_a_commit_and_options_of_its_own(kind: str) -> None:
    study: dict[str, Any] = {"trials": 3, "search": {"l2": [0.1]}}
    named = {"name": f"hub:some_name@{'0a' * 20}", "class": "Some", "anything": [1]}
    assert mistakes({**study, kind: named}) == []
    assert mistakes({**study, kind: {**named, "name": "hub:some_name@main"}}) == [f"{kind}.name", kind]


ANYTHING = st.one_of(
    st.booleans(),
    st.integers(-3, 70_000),
    st.floats(-1, 101, allow_nan=False),
    st.sampled_from(["adam", "sgd", "cosine", "relu", "tanh", "x"]),
)
OF_MLP = Schema.of(Mlp.Params)
MLP_VALIDATOR = jsonschema.Draft202012Validator(study_file_schema("mlp", OF_MLP, Mlp.metrics))


@given(st.sampled_from(list(OF_MLP.parameters)), ANYTHING)
def test_a_value_is_valid_exactly_where_hpo_takes_it(name: str, value: bool | int | float | str) -> None:
    """But for 20.0, which JSON does not tell from 20."""
    try:
        OF_MLP.check(name, value)
        is_taken = True
    except InputError:
        is_taken = isinstance(value, float) and value.is_integer() and OF_MLP.parameters[name].kind == "int"
        if is_taken:
            return
    for document in ({"base": {name: value}, "search": {"l2": [0.1]}}, {"search": {name: [value]}}):
        assert MLP_VALIDATOR.is_valid(document) == is_taken


def test_the_command_prints_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(cli("schema").out) == json.loads(json.dumps(DOCUMENT))
    monkeypatch.chdir(tmp_path)
    result = cli("schema", "--recipe=python:nothing:Here")
    assert (result.code, result.out) == (2, "")
    assert "nothing.py is" in result.err
