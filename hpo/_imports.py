"""Objects of the user's own modules, by name: `module:object`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hpo._process import without_runs
from hpo.errors import HpoError, InputError, did_you_mean

_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
"""Not `sys.prefix`: where that is /usr, so is the /usr/src/app of many a container."""


def load_object(name: str, error: type[InputError] = InputError) -> Any:
    """Return what `python:module:object` names; the module is looked for in the current directory, too.

    Args:
        name: as the user gave it.
        error: what is raised.

    Raises:
        InputError: there is no such module or object, or importing it fails; the text says file and line.
    """
    module_name, _, object_name = name.removeprefix("python:").partition(":")
    if not module_name or not object_name:
        raise error(f"{name!r}: must be python:module:object")
    here = _look_here()
    try:
        # what a module prints is no JSON
        with redirect_stdout(sys.stderr), without_runs(f"{name} is being imported"):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as problem:
        place = place_in_user_code(problem)
        if isinstance(problem, ModuleNotFoundError) and not place:  # nothing of the user's runs yet
            file = f"{module_name.replace('.', os.sep)}.py"
            raise error(
                f"{name}: {problem}; looked in {here} and the environment: start it where {file} is, "
                "or set PYTHONPATH"
            ) from problem
        hint = ""
        if isinstance(problem, ModuleNotFoundError):
            hint = f"; install it, or set PYTHONPATH; looked in {here} and the environment, {sys.prefix}"
        raise error(f"{name}: {place or module_name}: {in_one_line(problem)}{hint}") from problem
    if module.__spec__ is None or module.__spec__.name != module_name:
        raise error(
            f"{name}: {module_name} is in this process alone, and others import it by its name: put "
            f"{object_name} into a file of its own, as mine.py, and write python:mine:{object_name}"
        )
    if not hasattr(module, object_name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{name}: {module.__file__} has no {object_name!r}; {did_you_mean(object_name, known)}")
    return getattr(module, object_name)


def _look_here() -> str:
    """Have modules looked for in the current directory, and return it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and it stays: what is loaded may import its neighbours later
    return here


def place_in_user_code(problem: BaseException, kind: type | None = None) -> str:
    """Return file and line where code of the user was when it failed; empty where none was running.

    What is neither hpo's nor installed is the user's. Layers that do not fit fail in PyTorch's code, with
    none of the user's on the way: then it is where `kind` begins, a class of theirs.
    """
    # with the separator: hpo_mine.py beside the package is the user's
    others = [f"{folder}{os.sep}" for folder in (Path(__file__).parent, *_STANDARD_LIBRARY)]
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(problem.__traceback__)
        if not frame.filename.startswith((*others, "<"))
        and not {"site-packages", "dist-packages"}.intersection(Path(frame.filename).parts)
    ]
    if places:
        return places[-1]
    if kind is None or kind.__module__.partition(".")[0] == __package__:
        return ""
    return place_of(kind)


def place_of(kind: type) -> str:
    """Return file and line where a class begins."""
    return f"{inspect.getfile(kind)}:{inspect.getsourcelines(kind)[1]}"


def in_one_line(problem: BaseException) -> str:
    """Return what was raised: its type, and its text without line breaks; of ours the text alone."""
    text = " ".join(str(problem).split())
    if isinstance(problem, HpoError):
        return text
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def source_hashes(module_name: str) -> dict[str, str]:
    """Return SHA-256 of a module's file and of those of the user that it imports, by path from its folder.

    Those are below the folder that holds the module, or its outermost package; of an installed module, in
    its outermost package. No module is run; empty where there is none, or it has no file.
    """
    _look_here()
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        return {}
    file = Path(spec.origin)
    outermost, *others = module_name.split(".")
    root = file.parents[len(others) + (file.name == "__init__.py")]
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(root.parts)
    hashes: dict[str, str] = {}
    open_ = _files_of(root, [outermost, *others])
    while open_:
        path = open_.pop()
        name = Path(os.path.relpath(path, file.parent)).with_suffix("").as_posix()
        if name in hashes:
            continue
        content = path.read_bytes()
        hashes[name] = hashlib.sha256(content).hexdigest()[:16]
        for first, *rest in _imported(content, path.parent.relative_to(root).parts):
            # of hpo itself the plan has the version
            if first != __package__ and (first == outermost or not is_installed):
                open_ += _files_of(root, [first, *rest])
    return dict(sorted(hashes.items()))


def _files_of(root: Path, names: list[str]) -> list[Path]:
    """Return the files that importing a module runs: its own and its packages'; the last may be no module."""
    places = [root.joinpath(*names[:count]) for count in range(1, len(names) + 1)]
    files = [
        file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))
    ]
    return [file for file in files if file.is_file()]


def _imported(source: bytes, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Return the names of all that a source in a package imports, wherever it does, from the outermost on."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return found
