"""Commands that messages advise: completed so that they can be pasted, and find the plan that was meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import click
from click.core import ParameterSource

from hpo._text import printable
from hpo.planning.defaults import Defaults

_ADVISED = re.compile(r"`hpo ([a-z]+(?:-[a-z]+)*)([^`]*)`")
_META = "hpo.cli.advice"
_RECORDED = {*Defaults.__annotations__, "name", "studies", "search", "trials", "no_pruning"} - {"data"}
"""What a plan that exists needs no more."""
_PLACE: ContextVar[Sequence[str]] = ContextVar("_PLACE", default=())


@contextmanager
def about(*options: str) -> Iterator[None]:
    """Have commands that the library advises meanwhile name a plan by these options."""
    token = _PLACE.set(options)
    try:
        yield
    finally:
        _PLACE.reset(token)


def completed(text: str) -> str:
    """Return a text in which every `hpo COMMAND` names the plan of the command that is being carried out."""
    return _ADVISED.sub(lambda found: f"`{command(found[1], *shlex.split(found[2]))}`", text)


def command(name: str, *words: str) -> str:
    """Return a command for the shell, about the plan of the command that is being carried out.

    It bears the options that the two share and that the user gave; those that are recorded with the plan it
    needs no more, and those of the environment the shell still has.
    """
    parts = ["hpo", name, *map(quoted, words)]
    context = click.get_current_context(silent=True)
    root = context and context.find_root()
    if context is None or root is None or not isinstance(root.command, click.Group):
        return " ".join([*parts, *map(quoted, _PLACE.get())])
    _, advised, _ = root.command.resolve_command(root, [name])
    theirs = {each.name: each for each in advised.params if each.envvar} if advised else {}
    for option in context.command.params:
        key = str(option.name)
        if key not in theirs or key in _RECORDED:
            continue
        value, written = context.params[key], context.meta.get(f"{_META}.{key}")
        is_given = context.get_parameter_source(key) == ParameterSource.COMMANDLINE
        if (is_given and value is not None and written != "") or (
            key == "out" and str(value) != theirs[key].default
        ):
            parts.append(option.opts[0])
            if value is not True:
                parts.append(written or quoted(str(value)))
    return " ".join(parts)


def remember(context: click.Context | None, key: str, text: str) -> None:
    """Keep how the value of an option is written in a shell, where it is not what the option became."""
    if context is not None:
        context.meta[f"{_META}.{key}"] = text


def advise_without(key: str) -> None:
    """Leave an option out of what is advised from here on: where it was given, it is not needed any more."""
    click.get_current_context().meta[f"{_META}.{key}"] = ""


def quoted(word: str) -> str:
    """Return a word as a shell reads it."""
    if printable(word) == word:
        return shlex.quote(word)
    escaped = printable(word.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{escaped}'"
