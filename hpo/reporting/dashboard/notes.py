"""The note of each study: what it asks, what it starts from and what it decided, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpo._text import show_value
from hpo.monitor.origins import Origin
from hpo.planning.decisions import TrialRef
from hpo.planning.plan import CONFIRM, FINAL
from hpo.reporting import prose
from hpo.reporting.caveats import caveats
from hpo.reporting.data import ReportData, Section
from hpo.reporting.page import markdown_text as md
from hpo.reporting.tables import notes as remarks
from hpo.space.parameters import ParamValue

StudyIds = Mapping[str, int]
"""Optuna's ids of the studies, which the dashboard's addresses are made of."""
MAX_REMARKS = 20


def study_note(report: ReportData, section: Section, ids: StudyIds) -> str:
    """Return a study's section of the report in short."""
    source = section.decision.source if section.decision else None
    carried = f" Carried on: {_trial(source, ids)}." if source else ""
    parts = [
        f"# {md(section.title)}",
        md(prose.question(section)),
        f"**Decision.** {md(prose.decision_text(section))}{carried}",
        f"**Search.** {md(prose.method(section))}",
    ]
    origins = [
        (name, value, origin)
        for origin, values in prose.grouped_origins(report, section)
        for name, value in values.items()
    ]
    if origins:
        parts.append(_origins("fixed or inherited", origins, ids))
    found = remarks(section)
    if found:
        more = [f"- and {len(found) - MAX_REMARKS} more"] if len(found) > MAX_REMARKS else []
        parts.append("\n".join(["**Remarks.**", "", *[f"- {md(x)}" for x in found[:MAX_REMARKS]], *more]))
    return "\n\n".join(parts)


def final_note(report: ReportData, ids: StudyIds) -> str:
    """Return the plan's answer, and where the final configuration comes from."""
    answer = prose.answer(report)
    parts = [f"# {md(answer.headline)}", md(answer.sentence)]
    if report.final is not None:
        origins = [each for each in report.final_origins if each[0] not in report.final_inactive]
        parts += [md(prose.uncertainty(report)), md(prose.shrinkage(report))]
        parts.append(_origins("configuration", origins, ids))
    decided = [section for section in report.sections if section.decision]
    if decided:
        lines = [f"- {_linked(s.label, s.name, 'note', ids)}: {md(prose.decision_text(s))}" for s in decided]
        parts.append("\n".join(["**Decisions.**", "", *lines]))
    warned = [f"- {md(text)}" for text in caveats(report)]
    if warned:
        parts.append("\n".join(["**Warnings.**", "", *warned]))
    return "\n\n".join(part for part in parts if part)


def notes(report: ReportData, ids: StudyIds) -> dict[str, str]:
    """Return the note of every study, the final stage's last."""
    found = {section.name: study_note(report, section, ids) for section in report.sections}
    if report.options.confirm:
        found[CONFIRM] = confirmation_note(report)
    return {**found, FINAL: final_note(report, ids)}


def confirmation_note(report: ReportData) -> str:
    """Return what fresh seeds say of each decision."""
    said = [f"- {md(s.label)}: {md(s.confirmed)}" for s in report.sections if s.confirmed]
    text = (
        prose.confirmation_text(report)
        or "Each adopted decision, tried again on fresh seeds; not decided yet."
    )
    return "\n\n".join(["# On fresh seeds", md(text), *(["\n".join(said)] if said else [])])


def _origins(head: str, origins: Iterable[tuple[str, ParamValue, Origin]], ids: StudyIds) -> str:
    """Return a table of parameters and where their values come from."""
    lines = [f"| {head} | from |", "| --- | --- |"]
    for name, value, origin in origins:
        trial = f": {_trial(origin.trial, ids)}" if origin.trial else ""
        lines.append(f"| {md(f'{name} {show_value(value)}')} | {md(origin.text)}{trial} |")
    return "\n".join(lines)


def _trial(trial: TrialRef, ids: StudyIds) -> str:
    """Return a trial, with a link to where the dashboard shows it."""
    return _linked(trial.name, trial.study, f"trials?numbers={trial.trial}", ids)


def _linked(text: str, study: str, page: str, ids: StudyIds) -> str:
    # not a link itself: those are dark blue on the dashboard's black
    return f"{md(text)} ([show](/dashboard/studies/{ids[study]}/{page}))"
