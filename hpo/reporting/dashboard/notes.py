"""The note of each study: what it asks, what it starts from and what it decided, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from hpo._text import show_value
from hpo.planning.decisions import TrialRef
from hpo.planning.plan import FINAL
from hpo.reporting import prose
from hpo.reporting.data import Origin, ReportData, Section
from hpo.reporting.page import markdown_text as md
from hpo.reporting.tables import notes as remarks

StudyIds = Mapping[str, int]
"""Optuna's ids of the studies, which the dashboard's addresses are made of."""
MAX_REMARKS = 20


def study_note(section: Section, ids: StudyIds) -> str:
    """Return a study's section of the report in short."""
    parts = [
        f"# {md(section.title)}",
        md(prose.question(section)),
        f"**Decision.** {md(prose.decision_text(section))}{_winner(section, ids)}",
        f"**Search.** {md(prose.method(section))}",
    ]
    origins = [
        f"| {md(f'{name} {show_value(value)}')} | {_origin(origin, ids)} |"
        for origin, values in prose.grouped_origins(section)
        for name, value in values.items()
    ]
    if origins:
        parts.append("\n".join(["| fixed or inherited | from |", "| --- | --- |", *origins]))
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
        origins = report.chain[-1].carried
        lines = [
            f"| {md(f'{name} {show_value(value)}')} | {_origin(origins.get(name, Origin('default')), ids)} |"
            for name, value in report.final["config"].items()
        ]
        parts += [
            md(prose.shrinkage(report)),
            "\n".join(["| configuration | from |", "| --- | --- |", *lines]),
        ]
    decided = [section for section in report.sections if section.decision]
    if decided:
        lines = [f"- {_linked(s.label, s.name, 'note', ids)}: {md(prose.decision_text(s))}" for s in decided]
        parts.append("\n".join(["**Decisions.**", "", *lines]))
    warned = [f"- {md(text)}" for text in prose.warnings(report)]
    if warned:
        parts.append("\n".join(["**Warnings.**", "", *warned]))
    return "\n\n".join(part for part in parts if part)


def notes(report: ReportData, ids: StudyIds) -> dict[str, str]:
    """Return the note of every study, the final stage's last."""
    found = {section.name: study_note(section, ids) for section in report.sections}
    return {**found, FINAL: final_note(report, ids)}


def _winner(section: Section, ids: StudyIds) -> str:
    decision = section.decision
    return f" Carried on: {_trial(decision.source, ids)}." if decision and decision.source else ""


def _origin(origin: Origin, ids: StudyIds) -> str:
    text = md(origin.text)
    return text if origin.trial is None else f"{text}: {_trial(origin.trial, ids)}"


def _trial(trial: TrialRef, ids: StudyIds) -> str:
    """Return a trial, with a link to where the dashboard shows it."""
    return _linked(trial.name, trial.study, f"trials?numbers={trial.trial}", ids)


def _linked(text: str, study: str, page: str, ids: StudyIds) -> str:
    # not a link itself: those are dark blue on the dashboard's black
    return f"{md(text)} ([show](/dashboard/studies/{ids[study]}/{page}))"
