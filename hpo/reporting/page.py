"""Writes the report: one page, the same as Markdown, and its tables and figures as files."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hpo._files import user_path, write_whole
from hpo._text import params_text, printable
from hpo.errors import RunError
from hpo.planning.plan import WRONG_IMAGES, Plan
from hpo.planning.price import in_words
from hpo.reporting import prose, published, tables
from hpo.reporting.caveats import caveats
from hpo.reporting.data import ReportData, anchor, read
from hpo.reporting.figures import Placed, figures
from hpo.reporting.render.matplotlib import Drawing, draw

MAX_ROWS = 1000
"""A longer table is cut on the page; its CSV file has all of it."""
MAX_IMAGE_BYTES = 2_000_000
VERDICT_MARKS = {"confirmed": "✓", "denied": "✗", "open": "○"}


def write_report(plan: Plan, out: str | Path, to: str | Path | None = None) -> Path:
    """Write report.html, report.md, tables/*.csv, figures/*.svg and *.png.

    Args:
        plan: in whatever state; a reader's storage is enough.
        out: the plan's output folder, where the final stage left its pictures.
        to: the folder that gets the report; None: `out/report`.

    Returns:
        The page's path.

    Raises:
        RunError: the folder cannot be written.
    """
    out = user_path(out)
    folder = out / "report" if to is None else user_path(to)
    report = read(plan)
    drawings = [(placed, draw(placed.figure)) for placed in figures(report)]
    context = _context(report, drawings, out)
    page = folder / "report.html"
    try:
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for table in [*context["tables"].values(), tables.epochs_table(report)]:
            write_whole(folder / "tables" / f"{table.name}.csv", table.csv().encode())
        for placed, drawing in drawings:
            write_whole(folder / "figures" / f"{placed.name}.svg", drawing.svg)
            write_whole(folder / "figures" / f"{placed.name}.png", drawing.png)
        if context["wrong_images"]:
            write_whole(folder / "figures" / WRONG_IMAGES, context["wrong_images"])
        write_whole(folder / "report.md", _markdown(context).encode())
        write_whole(page, _html(context).encode())  # last: it shows what the other files hold
    except OSError as error:
        raise RunError(
            f"{folder}: the report cannot be written: {error.strerror or error}; --to FOLDER names another"
        ) from error
    return page


def _context(report: ReportData, drawings: Sequence[tuple[Placed, Drawing]], out: Path) -> dict[str, Any]:
    """Return what both templates know; they call `prose` for what a study says of itself."""
    all_tables = [
        *[tables.points_table(report, section) for section in report.sections],
        *tables.confirmation_tables(report),
        *tables.final_tables(report),
        *([tables.published_table(published.comparisons(report), report)] if report.repeats_original else []),
        *(tables.claims_tables(report)),
        tables.provenance_table(report, version("hpo-studies")),
    ]
    return {
        "report": report,
        "prose": prose,
        "notes": tables.notes,
        "answer": prose.answer(report),
        "meanings": prose.meanings(report),
        "source": printable(report.options.data),
        "warnings": [printable(text) for text in caveats(report)],
        "claims": report.claims.results if report.claims else (),
        "price": in_words(report.price, report.objective) if report.price else "",
        "noise": report.claims.noise.text(report.objective) if report.claims else "",
        "studies": {section.name for section in report.sections},
        "marks": VERDICT_MARKS,
        "tables": {table.name: table for table in all_tables},
        "drawings": drawings,
        "wrong_images": _wrong_images(report, out),
        "max_rows": MAX_ROWS,
    }


def _wrong_images(report: ReportData, out: Path) -> bytes:
    """Return the sheet that the final stage stored; empty where it is not at hand or too large for a page."""
    file = out / WRONG_IMAGES
    content = b""
    with suppress(OSError):
        if report.final is not None and file.is_file() and file.stat().st_size <= MAX_IMAGE_BYTES:
            content = file.read_bytes()
    return content if content.startswith(b"\x89PNG\r\n") else b""


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("hpo.reporting", "templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["anchor"] = anchor
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["unbroken"] = _unbroken
    environment.filters["md"] = markdown_text
    environment.filters["printable"] = printable
    environment.filters["params"] = params_text
    return environment


def _unbroken(text: str) -> str:
    """Keep numbers and their signs on one line."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[=<])|(?<=p [=<]) ", "\N{NO-BREAK SPACE}", text)


def _html(context: dict[str, Any]) -> str:
    environment = _environment(autoescape=True)
    source, *_ = environment.loader.get_source(environment, "sort.js")  # type: ignore[union-attr]
    style, *_ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    # the page's own rule, should anything of others ever get through: nothing but this one script runs
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    template = environment.get_template("report.html.j2")
    return template.render(**context, policy=policy, script=Markup(source), style=Markup(style))


def _markdown(context: dict[str, Any]) -> str:
    text = _environment(autoescape=False).get_template("report.md.j2").render(**context)
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown_text(text: object) -> str:
    """Escape text of others for Markdown: shown as it is, on one line, also inside a table."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", printable(str(text)))
    escaped = re.sub(r"^(\d+)([.)]\s)", r"\1\\\2", escaped)  # no list
    return re.sub(r"^([-+=])", r"\\\1", escaped)
