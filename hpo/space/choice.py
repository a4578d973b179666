"""Which of the points of a study with two objectives is carried on: one short sentence, parsed, never run.

best macro_f1 with n_parameters <= 100_000
smallest n_parameters within 0.01 of best macro_f1
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpo.errors import InputError
from hpo.space.constraints import Constraint
from hpo.space.parameters import Direction

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_CHOICE = re.compile(
    rf"\s*(best|smallest|largest)\s+({_NAME})"
    rf"(?:\s+within\s+(\S+)\s+of\s+best\s+({_NAME}))?"
    r"(?:\s+with\s+(\S.*))?"
)
_WORDS: Mapping[str, Direction] = {"smallest": "minimize", "largest": "maximize"}
FORM = (
    "must read '<best|smallest|largest> NAME', then, if need be, 'within NUMBER of best NAME' and "
    "'with COMPARISON and …', as 'smallest n_parameters within 0.01 of best macro_f1' or "
    "'best macro_f1 with n_parameters <= 100_000'"
)


@dataclass(frozen=True)
class Choice:
    """One rule: the best by an objective, of those that are near enough to the best by the other."""

    word: str
    """`best`, or what that means of `objective`."""
    objective: str
    other: str
    within: float | None
    """Of the best by the other; None: however far."""
    limits: tuple[Constraint, ...]
    """What the values of the objectives have to satisfy."""

    @classmethod
    def parse(cls, text: str, objectives: Sequence[str]) -> Choice:
        """Read a rule.

        Args:
            text: as in the module's own.
            objectives: the two of the study.

        Raises:
            InputError: the text is no rule, or names something else than the objectives.
        """
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise InputError(f"choose = {text!r}: {FORM}")
        word, objective, within, near, limits = match.groups()
        named = re.findall(rf"(?<![\w.]){_NAME}", re.sub(r"\band\b", " ", limits or ""))
        for name in (objective, *([near] if near else []), *named):
            if name not in objectives:
                # which of the two is misspelt nobody knows
                known = " and ".join(objectives)
                raise InputError(f"choose = {text!r}: {name} is not one of the objectives, {known}")
        if near == objective:
            raise InputError(f"choose = {text!r}: {near} is on both sides; {FORM}")
        try:
            parsed = [Constraint.parse(each, objectives, objectives) for each in _parts(limits)]
        except InputError as error:
            raise InputError(f"choose = {text!r}: {str(error).removeprefix('constraints: ')}") from None
        (other,) = set(objectives) - {objective}
        return cls(word, objective, other, _distance(text, within), tuple(parsed))

    def check_directions(self, directions: Mapping[str, Direction]) -> None:
        """Check that it asks for what is better.

        Raises:
            InputError: it asks for the smallest of what is maximized, or the other way round.
        """
        direction = directions[self.objective]
        if _WORDS.get(self.word, direction) != direction:
            raise InputError(
                f"choose = '{self}': {self.objective} is {direction}d, so the {self.word} is the worst; "
                f"write 'best {self.objective}'"
            )

    def ranks(
        self, found: Sequence[Mapping[str, float]], directions: Mapping[str, Direction]
    ) -> list[tuple[float, float]] | None:
        """Return the rank of each thing, the higher the better; None where nothing satisfies the rule.

        Args:
            found: values by objective, of each thing; what lacks one is out of the question.
            directions: of the objectives.
        """

        def score(values: Mapping[str, float], name: str) -> float:
            return values[name] if directions[name] == "maximize" else -values[name]

        def may_be(values: Mapping[str, float]) -> bool:
            return directions.keys() <= values.keys() and all(limit.holds(values) for limit in self.limits)

        allowed = [values for values in found if may_be(values)]
        if not allowed:
            return None
        least = -math.inf
        if self.within is not None:
            least = max(score(values, self.other) for values in allowed) - self.within
        return [
            (score(values, self.objective), score(values, self.other))
            if may_be(values) and score(values, self.other) >= least
            else (-math.inf, -math.inf)
            for values in found
        ]

    def __str__(self) -> str:
        near = "" if self.within is None else f" within {self.within:g} of best {self.other}"
        limits = f" with {' and '.join(map(str, self.limits))}" if self.limits else ""
        return f"{self.word} {self.objective}{near}{limits}"


def front(scores: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places that no other is better than by one score and at least level with by the other.

    Args:
        scores: two of each thing, the higher the better.
    """
    kept: list[int] = []
    best = -math.inf
    order = sorted(range(len(scores)), key=lambda place: (-scores[place][0], -scores[place][1], place))
    for place in order:
        first, second = scores[place]
        is_level = bool(kept) and scores[kept[-1]] == (first, second)
        if second > best or is_level:
            kept.append(place)
            best = second
    return sorted(kept)


def _parts(limits: str | None) -> list[str]:
    return [] if limits is None else re.split(r"\s+and\s+", limits.strip())


def _distance(text: str, within: str | None) -> float | None:
    if within is None:
        return None
    try:
        distance = float(within)
    except ValueError:
        distance = math.nan
    if not 0 <= distance < math.inf:
        raise InputError(f"choose = {text!r}: within {within}: must be a number that is not negative")
    return distance
