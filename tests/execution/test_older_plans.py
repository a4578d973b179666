"""Plans that were begun before the shipped recipe had all the parameters it has now."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import ConflictError, StudyFileError
from hpo.execution.run import find_or_create_plan
from hpo.execution.verify import verify
from hpo.execution.worker import work
from hpo.monitor.comparison import compare_trained
from hpo.planning.manifest import RecipeRecord
from hpo.planning.plan import FINAL, Plan
from hpo.reporting.data import read
from hpo.space.study_file import StudySpec
from hpo.storage.storage import Storage
from tests.support.older_plans import RECIPE_BEFORE_ACTIVATION
from tests.support.plans import SMALL, accepted_epochs, made_plan, train

STUDIES = {
    "rate": f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]",
    "norm": 'inherits = "rate"\n[search]\nbatch_norm = [true]',
}


def begun_before(newer: Plan, folder: Path, record: RecipeRecord = RECIPE_BEFORE_ACTIVATION) -> Plan:
    """The same plan, as it was written when the recipe had other parameters."""
    specs = {
        name: StudySpec.from_json(spec.to_json(), record.parameters) for name, spec in newer.specs.items()
    }
    storage = Storage(f"sqlite:///{folder / 'hpo.db'}", create=True)
    return Plan.create(storage, specs, newer.options, newer.identity, record)


def test_an_older_plan_goes_on_with_the_parameters_it_stored_to_the_same_bits(tmp_path: Path) -> None:
    newer = made_plan(tmp_path / "newer", STUDIES, epochs=1)
    older = begun_before(newer, tmp_path)
    assert work(older.storage, out=tmp_path, studies=["rate"]) is None
    # the command that began it, again
    train(tmp_path, studies=tmp_path / "newer" / "studies", epochs=1)
    assert work(newer.storage, out=tmp_path / "newer") is None

    (final,) = older.trials(FINAL)
    assert verify(older, FINAL, final) is None
    assert [point.study for point in read(older).points] == ["rate", "rate", "norm"]
    found = compare_trained(str(tmp_path), str(tmp_path / "newer"), lambda: older)
    assert (found.differing, found.comparison.difference) == ({}, 0)
    expected = {
        slot: ({name: value for name, value in config.items() if name != "activation"}, *found)
        for slot, (config, *found) in accepted_epochs(newer).items()
    }
    assert accepted_epochs(older) == expected
    assert newer.schema.defaults == {**Plan.open(older.storage).schema.defaults, "activation": "relu"}


def test_a_plan_with_parameters_that_are_gone_is_refused(tmp_path: Path) -> None:
    schema = RECIPE_BEFORE_ACTIVATION.parameters
    more = schema.model_copy(update={"parameters": {**schema.parameters, "gone": schema.parameters["flip"]}})
    record = RECIPE_BEFORE_ACTIVATION.model_copy(update={"parameters": more})
    older = begun_before(made_plan(tmp_path / "newer", STUDIES), tmp_path, record)
    with pytest.raises(ConflictError, match="its parameters or metrics are not those of the plan in"):
        work(older.storage, out=tmp_path)


def test_claims_about_what_an_older_plan_has_not_are_refused_with_the_way_out(tmp_path: Path) -> None:
    older = begun_before(made_plan(tmp_path / "newer", STUDIES), tmp_path)
    studies = tmp_path / "newer" / "studies"
    claim = '[[claims]]\ntext = "It leaks"\nstudy = "rate"\n[[claims.contrasts]]\n'
    cells = 'better = {activation = "leaky_relu"}\nworse = {activation = "relu"}\n'
    (studies / "claims.toml").write_text(claim + cells)
    with pytest.raises(ConflictError, match=r"did not have when the plan in .* leave --studies out to go on"):
        find_or_create_plan(tmp_path, studies=studies)
    assert find_or_create_plan(tmp_path).specs == older.specs
    (studies / "claims.toml").write_text(claim + cells.replace("activation", "activatoin"))
    with pytest.raises(StudyFileError, match="did you mean 'activation'"):
        find_or_create_plan(tmp_path, studies=studies)
