"""`hpo claims`."""

from __future__ import annotations

import json
from pathlib import Path

from hpo.planning.scheduler import advance
from tests.support.fixtures import Cli
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
    assert "confirmed" in done.out
    assert (
        "learning_rate 0.001 against learning_rate 0.1: shown to be better: macro F1 +40.0 points" in done.out
    )
    assert "Trials: rate/1, rate/0." in done.out
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
