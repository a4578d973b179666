"""What a terminal shows, as HTML for a notebook: one look at a plan, and the tables of the commands.

Each output brings its own style sheet: a notebook that is saved, printed or put on a page has nothing else.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.text import Text

from hpo._text import duration, params_text, point_text, printable
from hpo.cli.grid import Grid, Kind, shortened
from hpo.cli.screen import VERY_WIDE, headline, place, study_title, trial_name, troubles
from hpo.cli.tables import STATE_STYLES, Screen
from hpo.monitor.watch import Progress
from hpo.planning.metrics import Metric

_HERE = Path(__file__).parent
_CLASSES = {"green": "good", "cyan": "busy", "yellow": "warn", "magenta": "behind", "red": "bad"}
"""The page's classes by the terminal's colours."""
_WIDTH, _HEIGHT, _MARGIN = 132, 26, 3
"""Pixels of a curve, and what its line and ends need at each side."""


def progress_html(
    progress: Progress, notes: Sequence[str] = (), *, has_workers: bool = False, about: str = ""
) -> str:
    """Return one look at a plan: the live screen's record, as wide as the page.

    Args:
        progress: what was found.
        notes: what else has to be said.
        has_workers: whether who looks has workers of its own: where none trains, they are about to.
        about: what is run on what.
    """
    is_starting = has_workers and not progress.running and not progress.is_over
    return _render(
        "progress.html.j2",
        headline=_spans(headline(progress, is_starting=is_starting)),
        notes=[printable(note) for note in notes],
        about=printable(about),
        studies=_studies(progress, is_starting=is_starting),
        running=_running(progress),
        objective=progress.objective,
    )


def sheet_html(pieces: Iterable[object]) -> str:
    """Return grids and lines of text as a terminal has them below one another."""
    return _render("sheet.html.j2", pieces=[_piece(each) for each in pieces])


def text_html(text: str) -> str:
    """Return one line of text."""
    return sheet_html([Text(text, "dim")])


def _studies(progress: Progress, *, is_starting: bool) -> list[dict[str, Any]]:
    busy = {each.study for each in progress.running} | {progress.studies[progress.current].status.name}
    found, above = [], None
    for index, study in enumerate(progress.studies):
        status = study.status
        state = "starting" if is_starting and status.shown_state == "idle" else status.shown_state
        found.append(
            {
                "section": shortened(Text(printable(status.section)), 8),
                "name": shortened(Text(printable(status.name)), 24),
                "state": state,
                "style": _class(STATE_STYLES.get(state, "cyan")),
                "is_current": index == progress.current and not progress.is_over,
                "is_pending": status.state == "pending",
                "percent": 100 * status.n_ended / status.n_points if status.n_points else 0,
                "count": f"{status.n_ended}/{status.n_points}",
                "title": _spans(study_title(study, above)),
                "decision": printable(status.decision),
                "troubles": [_spans(text) for text in troubles(study)] if status.name in busy else [],
            }
        )
        above = status.name
    return found


def _running(progress: Progress) -> list[dict[str, Any]]:
    """Return a row a trial that is being trained, below the best so far, as far as there are any."""
    best, objective = progress.best, progress.objective
    if not progress.running:
        return []
    rows: list[dict[str, Any]] = []
    curves = [each.curve for each in progress.running] + ([best.curve] if best else [])
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    n_epochs = max([len(curve) for curve in curves] + [each.epochs for each in progress.running])
    ends = (min(values), max(values)) if values else (0.0, 1.0)
    best_curve = best.curve if best else []
    if best is not None:
        rows.append(
            {
                "trial": trial_name(best),
                "is_best": True,
                "curve": _curve([], best.curve, n_epochs, ends, objective),
                "value": objective.text(best.value),
                "point": params_text(best.params),
            }
        )
    for each in progress.running:
        done = len(each.curve)
        gap, left = each.beyond(best_curve), each.seconds_left
        rows.append(
            {
                "trial": trial_name(each),
                "is_best": False,
                "percent": 100 * done / each.epochs if each.epochs else 0,
                "epochs": f"{done}/{each.epochs}" if each.epochs else "starting",
                "curve": _curve(each.curve, best_curve, n_epochs, ends, objective),
                "value": objective.text(each.curve[-1]) if each.curve else "",
                "gap": "" if gap is None else objective.gap(gap),
                "is_behind": gap is not None and objective.score(gap) < 0,
                "left": "" if left is None else duration(left),
                "point": point_text(each.params, each.point),
                "place": _spans(place(each, VERY_WIDE)),
            }
        )
    return rows


def _curve(
    curve: Sequence[float],
    best: Sequence[float],
    n_epochs: int,
    ends: tuple[float, float],
    objective: Metric,
) -> Markup:
    """Return a curve over that of the best trial, as a drawing in the text."""
    lines = [("of-best", best)]
    if curve:
        is_behind = len(best) >= len(curve) and objective.gain(curve[-1], best[len(curve) - 1]) < 0
        lines.append(("behind" if is_behind else "good", curve))
    paths = "".join(f'<path class="{kind}" d="{_path(line, n_epochs, ends)}"/>' for kind, line in lines)
    said = ", ".join(objective.text(value) for value in curve or best)
    label = Markup.escape(f"{objective.head} by epoch: {said}")
    return Markup(
        f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{_HEIGHT}">'
        f"<title>{label}</title>{paths}</svg>"
    )


def _path(curve: Sequence[float], n_epochs: int, ends: tuple[float, float]) -> str:
    """Return the line of a curve; what is not finite is a gap in it."""
    low, high = ends
    parts, is_drawn = [], False
    for epoch, value in enumerate(curve):
        if not math.isfinite(value):
            is_drawn = False
            continue
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * (epoch / (n_epochs - 1) if n_epochs > 1 else 0.5)
        height = (value - low) / (high - low) if high > low else 0.5
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * height
        parts.append(f"L{x:.1f} {y:.1f}" if is_drawn else f"M{x:.1f} {y:.1f}h0")  # alone it is a dot
        is_drawn = True
    return "".join(parts)


def _piece(piece: object) -> dict[str, Any]:
    if isinstance(piece, Grid):
        columns, rows = piece.table()
        return {
            "heads": [(head, _column_class(kind)) for head, kind in columns],
            "rows": [
                (
                    _class(style),
                    [
                        (_spans(cell), _column_class(kind))
                        for cell, (_, kind) in zip(cells, columns, strict=True)
                    ],
                )
                for cells, style in rows
            ],
        }
    return {"text": _spans(piece if isinstance(piece, Text) else Text(str(piece)))}


def _column_class(kind: Kind) -> str:
    return kind.name.lower()


def _spans(text: Text) -> Markup:
    """Return a text with the terminal's styles as the page's classes."""
    parts = []
    if not text.spans:  # rich leaves the style of the whole to who prints it
        text = Text.assemble((text.plain, text.style))
    for segment in text.render(_console()):
        content = Markup.escape(printable(segment.text))
        style = _class(str(segment.style)) if segment.style else ""
        parts.append(Markup('<span class="{}">{}</span>').format(style, content) if style else content)
    return Markup("").join(parts)


def _class(style: str) -> str:
    """Return the page's classes of a style, as "bold red"."""
    words = [_CLASSES.get(word, word) for word in style.split()]
    return " ".join(word for word in words if word in {"bold", "dim", "italic", *_CLASSES.values()})


@cache
def _console() -> Screen:
    return Screen(file=io.StringIO())


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(name).render(style=_style(), **values)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _style() -> Markup:
    return Markup((_HERE / "notebook.css").read_text())
