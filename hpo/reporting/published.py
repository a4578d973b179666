"""What the original printed, beside what was found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpo._text import params_text
from hpo.monitor.results import mean
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL
from hpo.reporting.data import Point, ReportData, Section
from hpo.space.parameters import ParamValue
from hpo.space.study_file import PublishedResult


@dataclass(frozen=True)
class Comparison:
    """One number that was printed."""

    section: str
    study: str
    params: str
    metric: Metric | None
    """None where the original names a run without numbers."""
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
        """The metric in words."""
        return f"{self.epoch} {self.metric.label}" if self.metric else "–"

    @property
    def difference(self) -> float | None:
        """Ours minus published."""
        return None if self.ours is None or self.published is None else self.ours - self.published


def comparisons(report: ReportData) -> list[Comparison]:
    """Return every number that the study files say was printed, in their order."""
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
    values = [(metric, getattr(result, metric.name, None)) for metric in report.metrics]
    none: list[tuple[Metric | None, None]] = [(None, None)]
    printed = [(metric, value) for metric, value in values if value is not None] or none
    return [
        Comparison(
            section="test" if is_test else section.spec.section,
            study=FINAL if is_test else section.name,
            params="what was carried on" if is_test else params_text(result.params),
            metric=metric,
            published=value,
            epoch=result.epoch,
            ours=_ours(report, point, metric, result) if metric else None,
            trial=point.name if point else "",
            anchor=("final" if is_test else point.anchor) if point else "",
            note=result.note if number == 0 else "",
        )
        for number, (metric, value) in enumerate(printed)
    ]


def _same(section: Section, params: Mapping[str, ParamValue]) -> Point | None:
    """Return the best point of the study with these parameters."""
    return next(
        (point for point in section.ranked if all(point.config.get(k) == v for k, v in params.items())), None
    )


def _ours(report: ReportData, point: Point | None, metric: Metric, result: PublishedResult) -> float | None:
    if result.on == "test":
        curve = [mean(seed[metric.name] for seed in epoch) for epoch in report.test_epochs]
    else:
        curve = point.curve(metric.name) if point else []
    if not curve:
        return None
    return curve[-1] if result.epoch == "last" else max(curve, key=metric.score)
