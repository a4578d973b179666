"""`hpo price` from the command to the page: trained by real workers, of a recipe that trains nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hpo as library
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import Limits, work
from hpo.planning.plan import FINAL, PRICE, Plan
from hpo.planning.price import in_words
from tests.support import simulated
from tests.support.fixtures import Cli

SIZES = {"data": "digits", "limit_train": 100, "limit_valid": 50, "final_seeds": 1}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan whose test set has been opened."""
    folder = tmp_path_factory.mktemp("priced")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        options = {**SIZES, "recipe": simulated.write(folder)}
        plan = find_or_create_plan(folder / "out", studies=folder / "studies", given=options)
        assert work(plan.storage, out=folder / "out") is None
        return library.find_plan(folder / "out")


def test_it_comes_after_the_final_stage_and_leaves_that_alone(
    ended: Plan, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--storage", ended.storage.url, "--out", str(tmp_path))
    monkeypatch.chdir(Path(ended.storage.url.removeprefix("sqlite:///")).parents[1])  # where its recipe is
    before = [trial.user_attrs for trial in ended.trials(FINAL)]
    result = cli("price", "--share", "0.5", "--workers", "1", *where)
    assert result.code == 0
    found = ended.record(PRICE).price
    assert found is not None
    assert (found.cells, found.n_tried, found.n_seen) == (8, 2, 4)
    assert [trial.user_attrs for trial in ended.trials(FINAL)] == before
    words = in_words(found, ended.objective)
    assert " ".join(result.out.split()) == words

    asked = json.loads(cli("price", "--json", *where).out)
    assert asked["at_most"] == found.at_most
    assert asked["confidence"] == 0.95
    assert len(ended.trials(PRICE)) == 2  # nothing was trained twice

    assert cli("report", "--to", str(tmp_path / "report"), *where).code == 0
    for page in ("report.md", "report.html"):
        text = " ".join((tmp_path / "report" / page).read_text().split())
        assert "The price of going study by study" in text
        assert words.partition("(")[0].strip() in text


def test_a_worker_of_its_own_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    from hpo.execution.plan_recipe import with_recipe
    from hpo.planning.crossing import open_price

    monkeypatch.syspath_prepend(tmp_path)
    options = {**SIZES, "recipe": simulated.write(tmp_path)}
    out = tmp_path / "out"
    plan = find_or_create_plan(out, studies=tmp_path / "studies", given=options)
    assert cli("price", "--out", str(out)).code == 2  # undecided
    assert work(plan.storage, out=out, studies=list(plan.specs)) is None
    open_price(with_recipe(plan), 0.5)
    assert work(plan.storage, out=out, studies=[PRICE], limits=Limits(max_trials=1)) is None
    assert plan.record(PRICE).price is None
    assert work(plan.storage, out=out, studies=[PRICE]) is None
    found = plan.record(PRICE).price
    assert found is not None
    assert found.n_tried == 2
    assert plan.trials(FINAL) == []
