"""The colours of figures, for colour-blind eyes: after Okabe and Ito, darkened for thin lines on white."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """A colour on each ground."""

    light: str
    """On white."""
    dark: str
    """On a dark page."""
    middle: str
    """On both: the dashboard puts the same figure on white and on black."""


BLUE = Colour("#0072b2", "#4aa8ea", "#3f9fd8")
ORANGE = Colour("#d97800", "#f0a030", "#d97800")
GREEN = Colour("#008a63", "#35c495", "#35c495")
PURPLE = Colour("#a8559b", "#d68fcb", "#a8559b")
SKY = Colour("#3f9fd8", "#8fd0f7", "#0072b2")
RED = Colour("#c8442a", "#f0714f", "#c8442a")
OCHRE = Colour("#8a7a00", "#d8c84a", "#8a7a00")
BLACK = Colour("#39424e", "#c3cad6", "#5f6875")
GREY = Colour("#9aa1ac", "#6d7583", "#7d8592")
INK = Colour("#1f2430", "#e7eaf0", "#7d8592")
FAINT = Colour("#5b6270", "#a3abb8", "#7d8592")
GRID = Colour("#d9dce1", "#343a46", "rgba(128,128,128,0.25)")
PAPER = Colour("#ffffff", "#171a21", "rgba(0,0,0,0)")

SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, OCHRE, BLACK)
ALL = (*SERIES, GREY, INK, FAINT, GRID, PAPER)


def series(i: int) -> Colour:
    """Return the colour of the i-th of several things."""
    return SERIES[i % len(SERIES)]
