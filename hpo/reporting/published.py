"""What the report printed, beside what was found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from hpo._text import params_text
from hpo.planning.plan import FINAL
from hpo.reporting.data import Point, ReportData, Section
from hpo.space.parameters import ParamValue
from hpo.space.study_file import PublishedResult

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
    epoch: str
    """best or last."""
    ours: float | None
    """Of the same configuration here, mean over seeds; None while it has no result."""
    trial: str
    anchor: str
    """Where the page shows the trial."""
    note: str

    @property
    def what(self) -> str:
        """The figure in words."""
        return f"{self.epoch} {WORDS[self.figure]}" if self.figure else "–"

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        return None if self.ours is None or self.published is None else self.ours - self.published


def comparisons(report: ReportData) -> list[Comparison]:
    """Return every figure that the study files say was printed, in their order."""
    found = []
    for section in report.sections:
        published = section.spec.published
        for result in published.results if published else ():
            found += _compare(report, section, result)
    return found


def _compare(report: ReportData, section: Section, result: PublishedResult) -> list[Comparison]:
    is_test = result.on == "test"
    finished = report.final_point if report.final else None
    point = finished if is_test else _same(section, result.params)
    printed = {figure: getattr(result, figure) for figure in WORDS if getattr(result, figure) is not None}
    return [
        Comparison(
            section=section.spec.section if not is_test else "test",
            study=FINAL if is_test else section.name,
            params="what was carried on" if is_test else params_text(result.params),
            figure=figure,
            published=value,
            epoch=result.epoch,
            ours=_ours(_curve(report, point, figure, is_test=is_test), figure, result.epoch)
            if figure
            else None,
            trial=point.name if point else "",
            anchor=("final" if is_test else point.anchor) if point else "",
            note=result.note if number == 0 else "",
        )
        for number, (figure, value) in enumerate((printed or {"": None}).items())
    ]


def _same(section: Section, params: Mapping[str, ParamValue]) -> Point | None:
    """Return the best point of the study with these parameters."""
    return next(
        (point for point in section.ranked if all(point.config.get(k) == v for k, v in params.items())), None
    )


def _curve(report: ReportData, point: Point | None, figure: str, *, is_test: bool) -> list[float]:
    if is_test:
        return [fmean(seed[figure] for seed in epoch) for epoch in report.test_epochs]
    return point.curve(f"valid_{figure}") if point else []


def _ours(curve: list[float], figure: str, epoch: str) -> float | None:
    if not curve:
        return None
    return curve[-1] if epoch == "last" else BEST[figure](curve)
