"""The pages that people read: their links lead somewhere, their study files can be used, the API is whole.

The site itself is built with warnings as errors by CI; GitHub and editors show the same files as they are.
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest

import hpo
from hpo.planning.manifest import Options
from hpo.planning.studies import read_studies
from hpo.training.registry import DEFAULT_RECIPE, load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def dead_links(page: Path) -> list[str]:
    """Return the links and pictures of a page that lead to no file; those of the web are not followed."""
    links = [link for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    return [link for link in links if not (page.parent / link.partition("#")[0]).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    assert not dead_links(page)


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 900


def test_a_dead_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[here](page.md#section), [gone](gone.md), ![gone too](a/b.png), [web](https://a.b/c)")
    assert dead_links(page) == ["gone.md", "a/b.png"]


def test_every_name_of_the_library_is_on_the_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)", page, re.M)
    assert sorted([*shown, "Field"]) == sorted(hpo.__all__)  # `Field` is pydantic's


@pytest.mark.parametrize(
    ("page", "inherits"), [("README.md", "network-setup"), ("docs/study-files.md", None)]
)
def test_the_study_file_of_a_page_can_be_used(page: str, inherits: str | None, tmp_path: Path) -> None:
    text = (ROOT / page).read_text("utf-8")
    ((name, study),) = re.findall(r"```toml\n# my-studies/(\w+)\.toml(.*?)```", text, re.S)
    shutil.copy(ROOT / "studies" / "network-setup.toml", tmp_path)
    (tmp_path / f"{name}.toml").write_text(f"#{study}")
    read = read_studies(tmp_path, load_recipe(DEFAULT_RECIPE).recipe.schema)[name]
    assert (read.inherits, read.trials, read.pruner.name) == (inherits, 30, "median")


def test_the_page_names_every_option_that_plan_toml_may_hold() -> None:
    page = (ROOT / "docs" / "study-files.md").read_text("utf-8")
    section = page.partition("## Options of the plan")[2].partition("\n## ")[0]
    assert [name for name in Options.model_fields if f"`{name}" not in section] == []


def test_the_lines_that_a_page_compares_are_counted() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    folder = ROOT / "examples" / "recipes"
    study_files = [file.read_text("utf-8") for file in (folder / "studies-mlp").glob("*.toml")]
    counts = {
        "`mlp.py`, the recipe": _n_lines(folder / "mlp.py"),
        "its two study files": sum(bool(line) for text in study_files for line in text.splitlines()),
        "`plain_optuna.py`": _n_lines(folder / "plain_optuna.py"),
    }
    for what, count in counts.items():
        assert f"| {what} | {count} |" in page


def _n_lines(file: Path) -> int:
    """Count the lines of a module without blank lines, comments and docstrings."""
    text = file.read_text("utf-8")
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(n not in said and bool(line.strip()) and line.strip()[0] != "#" for n, line in lines)


def test_every_module_that_a_page_names_is_there() -> None:
    """The changelog's new places, the rooms' files of CONTRIBUTING, and the path of `learning_rate`."""
    rows = re.findall(r"^\| `hpo\.[^|]*\| ([^|]*) \|$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    modules = [name for row in rows for name in re.findall(r"`(hpo\.[\w.]+)`", row)]
    files = re.findall(r"`(\w+/[\w/]+)\.py`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    modules += [f"hpo.{file.replace('/', '.')}" for file in files if not file.startswith(("hpo/", "tests/"))]
    path = (ROOT / "docs" / "how-it-works.md").read_text("utf-8").partition("## The path of")[2]
    places = [f"hpo.{name}" for name in re.findall(r"`(\w+\.[\w.]+)`", path) if name[0].islower()]
    assert len(modules) > 50
    assert len(places) > 4
    assert [name for name in {*modules, *places} if not _leads_somewhere(name)] == []


def _leads_somewhere(name: str) -> bool:
    """Return whether a dotted name is a module's, or that of something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        room, _, thing = name.rpartition(".")
        return hasattr(importlib.import_module(room), thing)
    return True
