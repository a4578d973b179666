"""`hpo claims`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpo.planning.scheduler import advance
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, TINY_SIZES, train, write_study
from tests.support.scripted_worker import HOSTILE, Worker, new_plan

CLAIM = f"""
[[claims]]
text = {json.dumps(HOSTILE)}
[[claims.contrasts]]
better = {{learning_rate = 0.001}}
worse = {{learning_rate = 0.1}}
"""
STUDY = "[search]\nlearning_rate = [0.1, 0.001]\n"


def plan_with_claim(folder: Path, scores: tuple[float, float]) -> None:
    plan = new_plan(folder, {"rate": STUDY + CLAIM}, seeds=5)
    advance(plan)
    worker = Worker(plan)
    for score in scores:
        worker.finish(worker.claim("rate"), [score])


def test_verdict_evidence_and_trials(tmp_path: Path, cli: Cli) -> None:
    plan_with_claim(tmp_path, (0.3, 0.7))
    done = cli("claims", "--out", tmp_path)
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "confirmed" in text
    assert "learning_rate 0.001 against learning_rate 0.1: shown to be better: macro F1 +40.0 points" in text
    assert "Trials: rate/1, rate/0." in text
    assert "\x1b[2J" not in done.out
    record = json.loads(cli("claims", "--out", tmp_path, "--json").out)
    (claim,) = record["claims"]
    (contrast,) = claim["contrasts"]
    low, high = contrast["interval"]
    assert (claim["verdict"], contrast["verdict"], contrast["seeds"]) == ("confirmed", "better", 5)
    assert low < contrast["difference"] < high
    assert [cell["trials"] for cell in contrast["cells"]] == [["rate/1"], ["rate/0"]]
    assert claim["price"]["seeds"] == 0


def test_claims_of_another_folder_are_judged_and_not_stored(tmp_path: Path, cli: Cli) -> None:
    plan_with_claim(tmp_path, (0.3, 0.7))
    other = tmp_path / "other"
    other.mkdir()
    (other / "rate.toml").write_text(STUDY + CLAIM.replace(json.dumps(HOSTILE), '"Another"'))
    assert "Another" in cli("claims", "--out", tmp_path, "--studies", other).out
    assert "Another" not in cli("claims", "--out", tmp_path).out
    (other / "rate.toml").write_text(STUDY + CLAIM.replace("better", "beter"))
    refused = cli("claims", "--out", tmp_path, "--studies", other)
    assert refused.code == 2
    assert "rate.toml: claims.0.contrasts.0" in refused.err


def test_a_plan_without_claims_says_where_they_would_stand(tmp_path: Path, cli: Cli) -> None:
    new_plan(tmp_path, {"rate": STUDY})
    assert "write claims.toml beside its study files" in cli("claims", "--out", tmp_path).out


def test_cells_that_are_missing_are_trained_alone_and_once(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    claim = CLAIM.replace(json.dumps(HOSTILE), '"A claim"')
    claim += "more_at = {batch_size = 20}\nless_at = {batch_size = 40}\n"
    write_study("rate", f"{SMALL}[search]\nlearning_rate = [0.1, 0.001]\n{claim}")
    train(tmp_path / "out", studies=Path("studies"), **{**TINY_SIZES, "seeds": 12, "epochs": 1})
    refused = cli("run", "rate", "--claims", "--out", tmp_path / "out")
    assert (refused.code, "--claims and rate" in refused.err) == (2, True)
    before = rows_of(cli, tmp_path / "out")
    done = cli("run", "--claims", "--out", tmp_path / "out", "--workers", 2)
    assert done.code == 0, done.err
    assert "A claim" in done.out
    assert "12 seeds a cell" in done.out
    after = rows_of(cli, tmp_path / "out")
    assert {row["study"] for row in after} == {"rate", "final", "claims"}
    assert [row for row in after if row["study"] != "claims"] == before
    assert cli("run", "--claims", "--out", tmp_path / "out").code == 0
    assert rows_of(cli, tmp_path / "out") == after
    status = json.loads(cli("status", "--json", "--out", tmp_path / "out").out)
    states = {study["name"]: study["state"] for study in status["studies"]}
    assert states == {"rate": "done", "claims": "done", "final": "done"}
    shown = cli("show", "claims", "--out", tmp_path / "out").out
    assert shown.startswith("Cells of claims")
    assert "learning_rate" in shown.splitlines()[1]
    assert "cell of a claim" in cli("show", "claims/0", "--out", tmp_path / "out").out


def rows_of(cli: Cli, out: Path) -> list[dict[str, Any]]:
    """Every trial, as exported."""
    found: list[dict[str, Any]] = json.loads(cli("export", "--json", "--out", out).out)
    return found


def test_without_a_plan_there_are_no_cells(tmp_path: Path, cli: Cli) -> None:
    refused = cli("run", "--claims", "--out", tmp_path / "none")
    assert refused.code == 2
    assert not (tmp_path / "none").exists()


def test_the_report_has_the_claims(tmp_path: Path, cli: Cli) -> None:
    plan_with_claim(tmp_path, (0.3, 0.7))
    assert cli("report", "--out", tmp_path).code == 0
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert page.count('<span class="verdict confirmed">✓ confirmed</span>') == 2
    assert (
        '<p class="note">Trials: <a href="#trial-rate-1">rate/1</a>, <a href="#trial-rate-0">rate/0</a>'
        in page
    )
    assert "\x1b" not in page
    table = (tmp_path / "report" / "tables" / "claim-cells.csv").read_text()
    assert table.splitlines()[1].startswith("1,learning_rate 0.001,5,0.7")
