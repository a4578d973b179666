"""Recipes by name, of a user's own module."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hpo._imports import source_hashes
from hpo.errors import InputError
from hpo.planning.defaults import Defaults
from hpo.training.recipe import Recipe
from hpo.training.registry import DEFAULT_RECIPE, RECIPES, NamedRecipe, load_recipe

HEAD = "import hpo\nfrom typing import Literal\n"
BUILD = "    def build(self, params, data): ...\n"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module in the current folder; gives its name, which no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name}"

    def module(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(HEAD + source)
        return name

    return module


def problem(name: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(name)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_keep_the_contract(name: str) -> None:
    named = load_recipe(name)
    assert (named.name, dict(named.sources)) == (name, {})
    assert isinstance(named.recipe, Recipe)
    assert named.recipe.schema.complete({}) == named.recipe.schema.defaults
    assert load_recipe(name) is named
    assert DEFAULT_RECIPE in RECIPES
    assert Defaults.recipe == DEFAULT_RECIPE


def test_an_own_recipe_is_loaded_with_the_hash_of_its_source(write: Write, tmp_path: Path) -> None:
    module = write(f"class Mine(hpo.Recipe):\n{BUILD}")
    named = load_recipe(f"python:{module}:Mine")
    assert isinstance(named, NamedRecipe)
    assert named.name == f"python:{module}:Mine"
    assert type(named.recipe).__name__ == "Mine"
    content = (tmp_path / f"{module}.py").read_bytes()
    assert named.sources == {module: hashlib.sha256(content).hexdigest()[:16]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("constrained", "recipe = 'constrained' is not known; did you mean 'constrained-cnn'"),
        ("mlp", "recipe = 'mlp' is not known; known: constrained-cnn"),
        ("python:", "'python:': must be python:module:object"),
        ("python:own", "'python:own': must be python:module:object"),
        ("python:own_absent:Mine", "python:own_absent:Mine: No module named 'own_absent'; looked in "),
        ("python:__main__:Mine", "python:__main__:Mine: __main__ is in this process alone"),
        ("python:made_here:Mine", "python:made_here:Mine: made_here is in this process alone"),
    ],
)
def test_what_is_no_recipe_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_here", ModuleType("made_here"))  # as in a notebook
    assert problem(name).startswith(said)
    if not name.startswith("python:"):
        assert "python:module:Class" in problem(name)


TRAIN = "    def train(self, params, data, seed, context, resume=None): ...\n"
REFUSED = [
    ("class Mine: ...", "must be a subclass of hpo.Recipe, is Mine"),
    ("def Mine(): ...", "must be a subclass of hpo.Recipe, is function"),
    ("Mine = 3", "must be a subclass of hpo.Recipe, is int"),
    ("class Mine(hpo.Recipe): ...", "has no build(self, params, data), which returns the network"),
    (f"class Mine(hpo.Recipe):\n{TRAIN}", "has train, so it needs test(self, params, data, state)"),
    (
        f"class P(hpo.LoopParams): ...\nclass Mine(hpo.Recipe):\n    Params = P\n{BUILD}",
        "Params is a P; a recipe without a train of its own needs a subclass of hpo.Params",
    ),
    (
        f"class Mine(hpo.Recipe):\n    def __init__(self, size): ...\n{BUILD}",
        "cannot be made without arguments: ",
    ),
    (
        f"class P(hpo.Params):\n    width: int\nclass Mine(hpo.Recipe):\n    Params = P\n{BUILD}",
        "P.width has no default; give one, as hpo.Field(2, ge=1)",
    ),
    (
        f"class Mine(hpo.Recipe):\n    constraints = ('width < 3',)\n{BUILD}",
        "constraints: width in 'width < 3' is neither a parameter nor a cost",
    ),
    *(
        (f"class Mine(hpo.Recipe):\n    metrics = {metrics}\n{BUILD}", said)
        for metrics, said in (
            ("{}", "metrics must be a mapping, as {'macro_f1': 'maximize', 'loss': 'minimize'}"),
            ("('loss',)", "metrics must be a mapping"),
            ("{'loss': 'min'}", "metrics['loss'] = 'min': must be 'maximize' or 'minimize'"),
            ("{'log loss': 'minimize'}", "metrics: 'log loss' must be a name of letters, digits and '_'"),
            ("{1: 'minimize'}", "metrics: 1 must be a name of letters, digits and '_'"),
        )
    ),
]


@pytest.mark.parametrize(("source", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_an_own_recipe_that_breaks_the_contract_is_named(
    write: Write, tmp_path: Path, source: str, said: str
) -> None:
    module = write(source)
    text = problem(f"python:{module}:Mine")
    assert text.startswith(f"python:{module}:Mine: ")
    assert said in text
    if "(hpo.Recipe)" in source:
        line = (HEAD + source).splitlines().index(next(x for x in source.splitlines() if "Mine(" in x)) + 1
        assert text.startswith(f"python:{module}:Mine: {tmp_path}/{module}.py:{line}: class Mine: {said}")


def test_a_module_that_fails_is_named_with_its_line(write: Write, tmp_path: Path) -> None:
    module = write("\n1 / 0")
    text = problem(f"python:{module}:Mine")
    assert text == f"python:{module}:Mine: {tmp_path}/{module}.py:4: ZeroDivisionError: division by zero"


def test_what_a_module_prints_is_not_on_standard_output(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    module = write(
        "import hpo\nprint('hello')\nclass Mine(hpo.Recipe):\n    def build(self, params, data): ...\n"
    )
    load_recipe(f"python:{module}:Mine")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_a_class_that_is_not_there_is_named_with_what_is_near(write: Write) -> None:
    module = write(f"class Perceptron(hpo.Recipe):\n{BUILD}")
    assert f"{module}.py has no 'Percepton'; did you mean 'Perceptron'" in problem(
        f"python:{module}:Percepton"
    )


def test_hashes_follow_imports_beside_the_file(write: Write, tmp_path: Path) -> None:
    name = tmp_path.name
    (tmp_path / f"near_{name}.py").write_text(f"import far_{name}")
    (tmp_path / f"far_{name}.py").write_text("SIZE = 1")
    (tmp_path / f"late_{name}.py").write_text(f"import near_{name}")
    (tmp_path / f"other_{name}.py").write_text("SIZE = 2")
    source = f"""
    import json
    from near_{name} import far_{name}
    class Mine(hpo.Recipe):
        def build(self, params, data):
            import late_{name}
    """
    module = write(textwrap.dedent(source))
    asked = f"python:{module}:Mine"
    before = load_recipe(asked).sources
    assert set(before) == {module, f"near_{name}", f"far_{name}", f"late_{name}"}
    (tmp_path / f"other_{name}.py").write_text("SIZE = 3")
    load_recipe.cache_clear()  # as another process would
    assert load_recipe(asked).sources == before
    (tmp_path / f"far_{name}.py").write_text("SIZE = 4")
    load_recipe.cache_clear()
    after = load_recipe(asked).sources
    assert {key for key in before if before[key] != after[key]} == {f"far_{name}"}


@pytest.mark.parametrize("changed", ["__init__", "sizes", "deep/__init__", "deep/layers", "../beside", None])
def test_hashes_follow_imports_through_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name}"
    package = tmp_path / name
    (package / "deep").mkdir(parents=True)
    for file, text in {
        "__init__": "",
        "sizes": "WIDTH = 8",
        "deep/__init__": f"import {name}_beside",
        "deep/layers": "from ..sizes import WIDTH",
        "deep/unused": "",
        "recipe": f"{HEAD}from .deep import layers\nclass Mine(hpo.Recipe):\n{BUILD}",
    }.items():
        (package / f"{file}.py").write_text(text)
    beside = tmp_path / f"{name}_beside.py"
    beside.write_text("")
    asked = f"python:{name}.recipe:Mine"
    before = load_recipe(asked).sources
    known = {"__init__", "sizes", "deep/__init__", "deep/layers", "recipe", f"../{name}_beside"}
    assert set(before) == known
    if changed:
        changed = changed.replace("beside", beside.stem)
        (package / f"{changed}.py").write_text("# changed")
        load_recipe.cache_clear()  # as another process would
    found = source_hashes(f"{name}.recipe")
    differing = {key for key in before.keys() | found.keys() if before.get(key) != found.get(key)}
    assert changed in differing if changed else not differing


def test_hashes_of_an_installed_recipe_keep_to_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, site = f"own_{tmp_path.name}", tmp_path / "site-packages"
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(f"import {name}_other\nfrom . import sizes")
    (site / name / "sizes.py").write_text("")
    (site / f"{name}_other.py").write_text("")
    monkeypatch.syspath_prepend(site)
    assert set(source_hashes(name)) == {"__init__", "sizes"}


BUILDS = """
import hpo

class Mine(hpo.Recipe):
    def build(self, params, data):
        return params.learning_rate
    reads_epochs = SAID

class Scheduled(Mine):
    reads_epochs = False
    def schedule(self, params, progress):
        return 1.0

class Derived(Mine):
    def at_epoch(self, params, epoch):
        return params if epoch < params.epochs / 2 else params.model_copy(update={"cutout": 1})
"""


@pytest.mark.parametrize(
    ("kind", "said", "given", "depends"),
    [
        ("Mine", "True", {}, True),
        ("Mine", "False", {}, False),
        ("Mine", "False", {"schedule": "cosine"}, True),
        ("Mine", "False", {"warmup_epochs": 1}, True),
        ("Scheduled", "False", {}, True),
        ("Derived", "False", {}, True),  # it has said nothing of itself
    ],
)
def test_epochs_depend_on_how_many_there_are_unless_a_recipe_says_no_and_the_rate_is_constant(
    kind: str,
    said: str,
    given: dict[str, Any],
    depends: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"reading_{said.lower()}.py").write_text(BUILDS.replace("SAID", said))
    recipe = load_recipe(f"python:reading_{said.lower()}:{kind}").recipe
    assert recipe.depends_on_epochs(recipe.params_of(given)) == depends
    assert Recipe().depends_on_epochs(Recipe().params_of({}))


def test_what_a_recipe_says_of_epochs_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reading_no.py").write_text(BUILDS.replace("SAID", "'no'"))
    with pytest.raises(InputError, match="reads_epochs = 'no': must be True or False"):
        load_recipe("python:reading_no:Mine")


@pytest.mark.parametrize(("said", "is_right"), [("True", True), ("'device'", True), ("'gpu'", False)])
def test_what_a_recipe_says_of_its_draws_is_checked(
    said: str, is_right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = f"drawing_{''.join(filter(str.isalpha, said))}"
    (tmp_path / f"{module}.py").write_text(
        BUILDS.replace("reads_epochs = SAID", f"draws_in_training = {said}")
    )
    if is_right:
        load_recipe(f"python:{module}:Mine")
        return
    with pytest.raises(InputError, match="draws_in_training = 'gpu': must be True, False or 'device'"):
        load_recipe(f"python:{module}:Mine")
