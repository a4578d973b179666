"""Claims in files: what they mean, and what is refused in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo.errors import StudyFileError
from hpo.space.claim_file import Claims, Contrast, load_claims
from hpo.space.study_file import load_studies, load_study, shipped_studies
from tests.support.recipes import SCHEMA

STUDY = "[search]\nbatch_size = [20, 80]\n"
CLAIM = '[[claims]]\ntext = "A claim"\nstudy = "rate"\n[[claims.contrasts]]\n'
BETTER = "better = {batch_norm = true}\nworse = {batch_norm = false}\n"


def load(folder: Path, claims: str, study: str = STUDY) -> Claims:
    (folder / "rate.toml").write_text(study)
    if claims:
        (folder / "claims.toml").write_text(claims)
    return load_claims(folder, load_studies(folder, SCHEMA), SCHEMA)


def contrast(folder: Path, text: str) -> Contrast:
    (claim,) = load(folder, CLAIM + text).claims
    (found,) = claim.contrasts
    return found


def test_a_main_effect_is_the_difference_of_two_cells(tmp_path: Path) -> None:
    assert contrast(tmp_path, BETTER).comparisons == [
        [(1.0, {"batch_norm": True}), (-1.0, {"batch_norm": False})]
    ]


def test_an_interaction_is_a_difference_of_differences_and_across_its_mean(tmp_path: Path) -> None:
    found = contrast(
        tmp_path,
        f"{BETTER}more_at = {{batch_size = 80}}\nless_at = {{batch_size = 20}}\nacross = {{l2 = [0, 1]}}",
    )
    (weighted,) = found.comparisons
    assert len(weighted) == 8
    weights = {(c["batch_norm"], c["batch_size"], c["l2"]): weight for weight, c in weighted}
    assert weights[True, 80, 0.0] == weights[False, 20, 1.0] == 0.5
    assert weights[False, 80, 0.0] == weights[True, 20, 1.0] == -0.5


def test_several_cells_on_a_side_are_their_mean(tmp_path: Path) -> None:
    found = contrast(tmp_path, "better = [{l2 = 0}, {l2 = 1e-5}]\nworse = {l2 = 1e-2}")
    assert found.comparisons == [[(0.5, {"l2": 0.0}), (0.5, {"l2": 1e-5}), (-1.0, {"l2": 1e-2})]]


def test_a_best_value_inside_is_compared_with_both_ends(tmp_path: Path) -> None:
    found = contrast(tmp_path, "inside = {l2 = [0.0, 1e-4, 1e-2]}")
    assert found.comparisons == [
        [(1.0, {"l2": 1e-4}), (-1.0, {"l2": 0.0})],
        [(1.0, {"l2": 1e-4}), (-1.0, {"l2": 1e-2})],
    ]


def test_claims_of_a_study_file_are_of_that_study_and_no_part_of_it(tmp_path: Path) -> None:
    own = '[[claims]]\ntext = "Mine"\n[[claims.contrasts]]\n' + BETTER
    found = load(tmp_path, CLAIM + BETTER, STUDY + own)
    assert [(claim.text, claim.study) for claim in found.claims] == [("A claim", "rate"), ("Mine", "rate")]
    with_claims = load_study(tmp_path / "rate.toml", SCHEMA)
    (tmp_path / "rate.toml").write_text(STUDY)
    assert load_study(tmp_path / "rate.toml", SCHEMA) == with_claims


def test_what_is_stored_is_what_was_read() -> None:
    folder = shipped_studies()
    found = load_claims(folder, load_studies(folder, SCHEMA), SCHEMA)
    assert len(found.claims) == 7
    assert Claims.from_json(json.loads(json.dumps(found.to_json())), SCHEMA) == found
    assert Claims.from_json({}, SCHEMA).claims == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "better = {batch_sise = 20}\nworse = {batch_size = 40}",
            "better.batch_sise is not a parameter; did you mean",
        ),
        ("better = {batch_size = 0}\nworse = {batch_size = 40}", "batch_size = 0: must be at least 1"),
        ("better = {batch_size = 20}", "needs better and worse; one of them is missing"),
        ("better = 3\nworse = {batch_size = 40}", "better = 3: must be a table of parameters"),
        (
            "delta = 0.1",
            "must have better and worse, or inside, or state, at and not_at; none of them is given",
        ),
        (f"{BETTER}inside = {{l2 = [0.0, 0.1, 0.2]}}", "better and worse as well as inside are given"),
        ("inside = {l2 = [0.1, 0.0, 0.2]}", "three numbers or more of one parameter, rising"),
        ("better = {l2 = 0}\nworse = {l2 = 0}", "stands on both sides"),
        (f"{BETTER}more_at = {{batch_size = 80}}", "more_at and less_at go together"),
        (f"{BETTER}across = {{batch_norm = [true]}}", "batch_norm is both in the cells"),
        (f"{BETTER}across = {{batch_size = 20}}", "batch_size must be a list of values"),
        (f"{BETTER}delta = -1", "delta = -1: must be at least 0"),
        (f"{BETTER}detla = 1", "detla = 1: is not known here"),
        (
            'state = "tired"\nat = {l2 = 0}\nnot_at = {l2 = 1}',
            "state = 'tired': is not known; known: dying ReLU",
        ),
    ],
)
def test_mistakes_are_told_with_file_key_and_value(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        load(tmp_path, CLAIM + text)
    assert str(caught.value).startswith(f"{tmp_path / 'claims.toml'}: claims.0.contrasts.0")
    assert problem in str(caught.value)


def test_a_claim_of_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"claims\.0\.study = 'rat': no such study; did you mean 'rate'"):
        load(tmp_path, CLAIM.replace('"rate"', '"rat"') + BETTER)


def test_a_claim_in_the_file_of_another_study(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"rate\.toml: claims\.0\.study = 'l2': a claim in a study file"):
        load(tmp_path, "", STUDY + CLAIM.replace('"rate"', '"l2"') + BETTER)


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"claims\.toml: is not valid TOML"):
        load(tmp_path, "[[claims]")
