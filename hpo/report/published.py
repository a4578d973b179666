"""What the report printed, beside what was found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpo.config import ParamValue
from hpo.report.facts import Facts, Point, Section
from hpo.spec import PublishedResult
from hpo.text import params_text

WORDS = {"macro_f1": "macro F1", "accuracy": "accuracy", "loss": "loss"}
BEST = {"macro_f1": max, "accuracy": max, "loss": min}


@dataclass(frozen=True)
class Comparison:
    """One figure that was printed."""

    section: str
    study: str
    params: str
    figure: str
    """macro_f1, accuracy or loss; empty where the report names a run without figures."""
    published: float | None
    ours: float | None
    """Of the same configuration here, mean over seeds; None while it has no result."""
    point: Point | None
    note: str

    @property
    def what(self) -> str:
        """The figure in words."""
        return WORDS.get(self.figure, "–")

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        return None if self.ours is None or self.published is None else self.ours - self.published


def comparisons(facts: Facts) -> list[Comparison]:
    """Every figure that the study files say was printed, in their order."""
    found = []
    for section in facts.sections:
        published = section.spec.published
        for result in published.results if published else ():
            found += _compare(section, result)
    return found


def _compare(section: Section, result: PublishedResult) -> list[Comparison]:
    point = _same(section, result.params)
    printed = {figure: getattr(result, figure) for figure in WORDS if getattr(result, figure) is not None}
    return [
        Comparison(
            section=section.spec.section,
            study=section.name,
            params=params_text(result.params),
            figure=figure,
            published=value,
            ours=_ours(point, figure) if point and figure else None,
            point=point,
            note=result.note,
        )
        for figure, value in (printed or {"": None}).items()
    ]


def _same(section: Section, params: Mapping[str, ParamValue]) -> Point | None:
    """The best point of the study with these parameters."""
    return next(
        (point for point in section.ranked if all(point.config.get(k) == v for k, v in params.items())), None
    )


def _ours(point: Point, figure: str) -> float:
    return BEST[figure](point.curve(f"valid_{figure}"))
