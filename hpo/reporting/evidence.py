"""What a recipe's own module says of claims that others have made, for the page to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from hpo.reporting.data import Point, ReportData
from hpo.training.registry import CONCLUSIONS

Verdict = Literal["confirmed", "denied", "open"]


@dataclass(frozen=True)
class Evidence:
    """What the trials say about a claim."""

    verdict: Verdict
    text: str
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Conclusions:
    """Claims, each with its evidence."""

    evidence: Mapping[str, Evidence]
    """By claim, in its author's order."""
    noise: str = ""
    """How far apart seeds are, in a sentence."""
    limits: Sequence[str] = ()
    """Why all claims stay open here; empty where they need not."""


def conclusions(report: ReportData) -> Conclusions | None:
    """Return the conclusions that come with a recipe, judged on a plan; None where there are none.

    Data or studies of somebody's own have nothing to do with them, though the recipe be the same.
    """
    module = CONCLUSIONS.get(report.recipe.name)
    if module is None or not report.repeats_original:
        return None
    judge: Callable[[ReportData], Conclusions] = import_module(module).conclusions
    return judge(report)
