"""`hpo report` on real runs: what it writes, and that nothing in it is obeyed or fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Cli = Callable[..., Result]


@pytest.fixture
def report(finished: Path, cli: Cli) -> Path:
    """The report's folder of a small finished plan."""
    result = cli("report", "--out", finished)
    assert (result.code, result.out.strip()) == (0, str(finished / "report" / "report.html")), result.err
    return finished / "report"


def test_files(report: Path) -> None:
    tables = {path.stem for path in (report / "tables").iterdir()}
    assert tables >= {"points-rate", "points-shape", "published", "conclusions", "final-epochs", "epochs"}
    figures = {path.name for path in (report / "figures").iterdir()}
    for name in ("waterfall", "rate-accuracy", "rate-loss", "shape-loss", "confusion-matrix", "time-line"):
        assert {f"{name}.svg", f"{name}.png"} <= figures
    assert (report / "report.md").read_text("utf-8").startswith("# Test macro F1 ")
