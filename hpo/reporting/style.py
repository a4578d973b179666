"""How figures look: one palette for colour-blind eyes, on paper and on screens light and dark.

An SVG holds its light colours plainly, so that every program draws it, and a style sheet that exchanges each
of them where the reader prefers dark. Drawing is deterministic: salted ids, no dates.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hpo._text import printable

INK, FAINT, GRID, PAPER = "#1f2430", "#5b6270", "#d9dce1", "#ffffff"
GREY = "#9aa1ac"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, OCHRE, BLACK = (
    "#0072b2",
    "#d97800",
    "#008a63",
    "#c8442a",
    "#a8559b",
    "#3f9fd8",
    "#8a7a00",
    "#39424e",
)
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, OCHRE, BLACK)
"""After Okabe and Ito, darkened for thin lines on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Series differ in marks too: colour alone tells nothing to some."""

DARK: Mapping[str, str] = {
    INK: "#e7eaf0",
    FAINT: "#a3abb8",
    GRID: "#343a46",
    PAPER: "#171a21",
    GREY: "#6d7583",
    BLUE: "#4aa8ea",
    ORANGE: "#f0a030",
    GREEN: "#35c495",
    RED: "#f0714f",
    PURPLE: "#d68fcb",
    SKY: "#8fd0f7",
    OCHRE: "#d8c84a",
    BLACK: "#c3cad6",
}
"""Each colour's counterpart on a dark page."""

WIDTH = 4.7  # inches; such a figure is still readable on a telephone, two of them stand side by side
LABEL_LENGTH = 26
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, searchable, escaped by the writer
    "svg.hashsalt": "hpo",
    "text.parse_math": False,  # a $ in somebody's class name is a $
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.0,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Drawing:
    """A finished figure."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What there is to see, in a sentence; also for those who do not see it."""
    svg: bytes
    png: bytes


def canvas(height: float = 3.1, width: float = WIDTH) -> Figure:
    """Return an empty figure, sizes in inches, in this style; call it inside `styled`."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def styled() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn."""
    return matplotlib.rc_context(SETTINGS)


def drawn(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """Write a figure as SVG and PNG."""
    svg, png = io.BytesIO(), io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # a script that the font lacks shows as boxes in the PNG, and in the reader's own font in the SVG
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        figure.savefig(svg, format="svg", metadata=nothing)
        figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    return Drawing(name, title, caption, _with_dark(svg.getvalue().decode()).encode(), png.getvalue())


def label(text: str, length: int = LABEL_LENGTH) -> str:
    """Make somebody's name what a figure can show: printable, and short."""
    shown = printable(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def number(value: float, _position: object = None) -> str:
    """Return a tick's label; matplotlib's own on log axes need its mathematical notation."""
    return f"{value:g}"


_RULES = "".join(
    f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
    for light, dark in DARK.items()
    for kind in ("fill", "stroke")
)
_FONTS = re.compile(r'(<text style="[^"]*?font-family: )[^;"]*')


def _with_dark(svg: str) -> str:
    """Add the dark colours, and take out the reference to a DTD on the network."""
    svg = re.sub(r"<!DOCTYPE[^>]*>\s*", "", svg, count=1)
    sheet = f"@media (prefers-color-scheme: dark){{{_RULES}}}"
    svg = svg.replace("</style>", f"{sheet}</style>", 1)
    return _FONTS.sub(r"\1'DejaVu Sans', Verdana, sans-serif", svg)
