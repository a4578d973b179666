"""Habits of this project that no linter checks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hpo

TESTS = Path(__file__).parent
MODULES = {
    ".".join(file.relative_to(TESTS.parent).with_suffix("").parts): file for file in TESTS.rglob("*.py")
}


def imported(source: str, package: str) -> set[str]:
    """Every dotted name that a module of a package imports, what it takes from modules included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -node.level + 1 or None]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_tests_share_is_in_support(name: str) -> None:
    found = imported(MODULES[name].read_text("utf-8"), name.rpartition(".")[0])
    last_names = {each.rpartition(".")[2] for each in MODULES if "support" not in each} - {"__init__"}
    shared = {each for each in found if each in MODULES or each in last_names}
    assert all(each.startswith("tests.support.") for each in shared), shared


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import tests.space.test_study_file", {"tests.space.test_study_file"}),
        ("from tests.data.test_cache import x", {"tests.data.test_cache", "tests.data.test_cache.x"}),
        ("from tests.data import test_cache", {"tests.data", "tests.data.test_cache"}),
        ("from .test_cache import x", {"tests.data.test_cache", "tests.data.test_cache.x"}),
        ("from ..space import test_x", {"tests.space", "tests.space.test_x"}),
        ("def f():\n    from conftest import x", {"conftest", "conftest.x"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, names: set[str]) -> None:
    assert imported(source, "tests.data") == names


def test_type_checkers_of_users_read_our_annotations() -> None:
    assert (Path(hpo.__file__).parent / "py.typed").is_file()
