"""The shipped study files against the facts of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo.planning.pruners import PRUNERS
from hpo.planning.samplers import SAMPLERS
from hpo.planning.studies import check_study
from hpo.space.claim_file import load_claims
from hpo.space.study_file import StudySpec, load_studies, shipped_studies
from tests.support.recipes import SCHEMA

CHAIN = ["network-setup", "learning-rate", "batch-size", "l2", "batch-norm", "mixup"]


@pytest.fixture(scope="module")
def specs() -> dict[str, StudySpec]:
    return load_studies(shipped_studies(), SCHEMA)


def test_each_section_inherits_from_the_one_before(specs: dict[str, StudySpec]) -> None:
    assert list(specs) == CHAIN
    assert [spec.inherits for spec in specs.values()] == [None, *CHAIN[:-1]]
    assert [spec.section for spec in specs.values()] == ["2.1", "2.2", "2.3", "2.4.1", "2.4.2", "2.5"]
    assert all(spec.title and spec.published for spec in specs.values())


def test_of_a_rate_that_kills_a_relu_there_are_cells_with_a_leaky_one(specs: dict[str, StudySpec]) -> None:
    third = load_claims(shipped_studies(), specs, SCHEMA).claims[2]
    relu = SCHEMA.defaults["activation"]
    cells = {
        (cell["learning_rate"], cell["batch_size"], cell.get("activation", relu))
        for contrast in third.contrasts
        for weighted in contrast.comparisons
        for _, cell in weighted
    }
    at_both = {(0.01, size, kind) for size in (20, 40) for kind in ("relu", "leaky_relu")}
    assert cells == at_both | {(0.001, size, "relu") for size in (20, 40)}


def test_the_claims_of_the_small_run_are_the_shipped_ones_at_its_size(
    specs: dict[str, StudySpec], tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "examples/cifar10/claims.toml").read_text("utf-8")
    (tmp_path / "claims.toml").write_text(text, "utf-8")
    for name in specs:
        (tmp_path / f"{name}.toml").write_text(
            (shipped_studies() / f"{name}.toml").read_text("utf-8"), "utf-8"
        )
    shipped, small = (load_claims(folder, specs, SCHEMA) for folder in (shipped_studies(), tmp_path))
    assert (small.about.n_train, small.about.epochs) == (1_000, 4)
    assert small.about.classes == shipped.about.classes
    assert small.claims[:-1] == shipped.claims[:-1]
    assert small.claims[-1].contrasts[1:] == shipped.claims[-1].contrasts[1:]


def test_points_are_those_of_the_report(specs: dict[str, StudySpec]) -> None:
    known = SCHEMA.defaults
    points = {name: spec.grid(known) for name, spec in specs.items()}
    assert {name: len(p) for name, p in points.items()} == dict(zip(CHAIN, (16, 3, 3, 4, 3, 2), strict=True))
    assert [p["learning_rate"] for p in points["learning-rate"]] == [0.01, 0.001, 0.0001]
    assert [p["l2"] for p in points["l2"]] == [1e-2, 1e-3, 1e-4, 1e-5]
    assert points["batch-size"] == points["batch-norm"] == [{"batch_size": n} for n in (20, 40, 80)]
    assert specs["batch-norm"].fixed == {"batch_norm": True}
    assert [p["mixup_first_epoch"] for p in points["mixup"]] == [1, 6]
    assert specs["mixup"].fixed == {"mixup_alpha": 0.2, "mixup_last_epoch": 10}


def test_published_choices_make_one_configuration_after_the_other(specs: dict[str, StudySpec]) -> None:
    params = specs["network-setup"].context()
    for spec in specs.values():
        assert spec.published is not None
        params = {**params, **spec.fixed, **spec.published.choice}
        assert spec.feasible(SCHEMA.complete(params))
    assert SCHEMA.complete(params) == SCHEMA.complete(
        {
            "conv1_channels": 32,
            "conv1_kernel": 3,
            "conv2_channels": 128,
            "conv2_kernel": 5,
            "learning_rate": 1e-4,
            "batch_size": 20,
            "l2": 1e-5,
            "batch_norm": True,
            "mixup_alpha": 0.0,
        }
    )


def test_published_figures_are_those_of_the_report(specs: dict[str, StudySpec]) -> None:
    def row(study: str, epoch: str = "best", on: str = "validation", **params: object) -> tuple[Any, ...]:
        published = specs[study].published
        assert published is not None
        (found,) = [r for r in published.results if (r.params, r.epoch, r.on) == (params, epoch, on)]
        return found.accuracy, found.loss, found.macro_f1

    assert row("learning-rate", learning_rate=0.01) == (None, None, None)
    assert row("learning-rate", learning_rate=0.001) == (0.71, 0.905, 0.71)
    assert row("learning-rate", learning_rate=0.0001) == (0.705, 0.877, 0.81)
    assert row("batch-size", batch_size=20) == (0.71, 0.83, 0.71)
    assert row("batch-size", batch_size=80) == (0.67, 0.92, 0.67)
    assert row("l2", l2=0.01) == (0.657, 1.0, None)
    assert row("learning-rate", "last", learning_rate=0.001) == (0.69, 1.5, None)
    assert row("l2", l2=0.00001) == (0.714, None, None)
    assert row("l2", "last", l2=0.00001) == (None, 0.82, None)
    assert row("batch-norm", batch_norm=True, batch_size=20) == (0.724, 0.80, None)
    assert row("batch-norm", batch_norm=True, batch_size=80) == (None, 0.82, None)
    assert row("batch-norm", "last", batch_norm=True, batch_size=80) == (None, 1.0, None)
    assert row("mixup", on="test") == (0.725, 0.84, 0.72)
    assert row("mixup", "last", "test") == (0.7175, 1.28, None)
    mixup = row("mixup", mixup_alpha=0.2, mixup_first_epoch=1, mixup_last_epoch=10)
    assert mixup == (0.097, 2.333, None)


@pytest.mark.parametrize("name", CHAIN)
def test_samplers_and_pruners_are_known(specs: dict[str, StudySpec], name: str) -> None:
    spec = specs[name]
    assert spec.sampler.name in SAMPLERS
    assert spec.pruner.name in PRUNERS
    check_study(spec, shipped_studies() / f"{name}.toml")  # raises where an option is not one


def test_constraint_bites_on_wider_axes() -> None:
    spec = load_studies(shipped_studies(), SCHEMA)["network-setup"]
    document = spec.model_dump()
    document["search"] |= {"conv1_channels": [32, 64, 128], "conv1_kernel": [3, 5, 7]}
    wider = StudySpec.model_validate(document, context={"schema": SCHEMA})
    # of 3 × 2 pairs of channels 5 are left, of 3 × 2 pairs of kernels 5
    assert len(wider.grid(wider.context())) == 25
    assert {
        "conv1_channels": 128,
        "conv1_kernel": 7,
        "conv2_channels": 64,
        "conv2_kernel": 5,
    } not in wider.grid({})
