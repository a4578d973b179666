"""Samplers and pruners of OptunaHub: code of others, by name and commit, run only where that is allowed.

A study file can come from anybody, and so can a database. Neither can allow what it names: who starts a
process does, by a variable of its environment.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import Any, Literal

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from hpo.errors import InputError, did_you_mean, install
from hpo.space.study_file import Component

Kind = Literal["sampler", "pruner"]

PREFIX = "hub:"
ALLOWED = "HPO_ALLOW_HUB_CODE"
"""Who sets this variable to 1 allows this process, and the workers that it starts here, to run such code."""
_MODULES = "optunahub_registry.package."
_BASES: dict[str, type] = {"sampler": BaseSampler, "pruner": BasePruner}
PATTERN = r"^hub:[A-Za-z0-9_-]+@[0-9a-f]{40}$"


def is_hub(component: Component) -> bool:
    """Return whether a sampler or a pruner is one of OptunaHub."""
    return component.name.startswith(PREFIX)


def check_name(kind: Kind, component: Component) -> str:
    """Check how one of OptunaHub is named, without loading it; return how it is shown.

    Raises:
        InputError: there is no commit, or not all of it.
    """
    shown = f"{kind}.name = {component.name!r}"
    if not re.fullmatch(PATTERN, component.name):
        raise InputError(f"{shown}: must be hub:NAME@COMMIT, the commit with all its 40 digits")
    return shown


def from_hub(kind: Kind, component: Component, seed: int | None = None) -> Any:
    """Make a sampler or a pruner of OptunaHub with the options of a study file.

    Args:
        kind: which of the two.
        component: its name, and its options; `class` says which it is, where there are several.
        seed: given to one that takes a seed.

    Raises:
        InputError: it is not allowed, cannot be loaded, or does not take an option; the text starts with the
            key.
    """
    shown = check_name(kind, component)
    name, _, commit = component.name.removeprefix(PREFIX).partition("@")
    package = f"{kind}s/{name}"
    if os.environ.get(ALLOWED) != "1":
        raise InputError(
            f"{shown} is code from OptunaHub, which runs only where you allow it: read "
            f"https://github.com/optuna/optunahub-registry/tree/{commit}/package/{package} "
            f"and set {ALLOWED}=1"
        )
    try:
        module = _load(package, commit)
    except InputError as error:
        raise InputError(f"{shown}: {error}") from None
    options = dict(component.options)
    chosen = _class_of(kind, module, options.pop("class", None))
    taken = inspect.signature(chosen).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    for option in options:
        if option == "seed" or not (option in taken or takes_all):
            names = [each for each in taken if each != "seed"]
            hint = "seeds come from the plan" if option == "seed" else did_you_mean(option, names)
            raise InputError(f"{kind}.{option} is not an option of {chosen.__name__}; {hint}")
    if seed is not None and "seed" in taken:
        options["seed"] = seed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return chosen(**options)
    except Exception as error:  # it is anybody's code
        raise InputError(f"{kind}: {chosen.__name__} takes no such options: {_first_line(error)}") from None


def _class_of(kind: Kind, module: ModuleType, wanted: object) -> type:
    """Return the class of a package that is meant: the only one of its kind, or the one that is named."""
    found = {
        name: each
        for name, each in vars(module).items()
        if isinstance(each, type)
        and issubclass(each, _BASES[kind])
        and each.__module__.startswith(module.__name__)
    }
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"{kind}.class = {wanted!r} is not there; {did_you_mean(str(wanted), found)}")
        return found[str(wanted)]
    if len(found) != 1:
        names = ", ".join(found) or f"none that is a {kind}"
        raise InputError(f"{kind}.class is missing: it has {names}")
    return next(iter(found.values()))


@cache
def _load(package: str, commit: str) -> ModuleType:
    """Load a package as OptunaHub does: from its cache on this machine, or else from GitHub."""
    try:
        import optunahub
    except ImportError as error:  # of GitPython as well, where there is no git
        raise InputError(f"needs the package optunahub ({_first_line(error)}); {install('hub')}") from None
    # a package's own modules stay loaded, and would serve another commit of it as well
    root = _MODULES + package.replace("/", ".")
    for name in [each for each in sys.modules if each == root or each.startswith(f"{root}.")]:
        del sys.modules[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optunahub.load_module(package, ref=commit)
    except Exception as error:  # what git, GitHub, the network or the package itself raise
        raise InputError(
            f"cannot be loaded here: {type(error).__name__}: {_first_line(error)}; it comes from GitHub, or "
            "from OptunaHub's cache, if it lies there"
        ) from None


def _first_line(error: BaseException) -> str:
    """Return the line that says why: git's own where it is git that failed, which comes last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "fatal: " in line), lines[0])
