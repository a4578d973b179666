"""Every place where a path can be given, on the command line and in the library: one rule for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import hpo as library
from hpo.cli import options as opt
from hpo.cli.main import COMMANDS
from hpo.cli.main import hpo as hpo_commands
from hpo.errors import InputError
from hpo.reporting import write_report
from hpo.reporting.dashboard import serve
from hpo.training.saved_model import Model
from tests.support.fixtures import Cli

LONG = "n" * 256
FORMS: dict[type[click.ParamType[Any]], tuple[str, ...]] = {
    opt.UserPath: ("{}",),
    opt.FolderOrUrl: ("{}", "file://{}"),
    opt.DataSource: ("folder:{}", "cifar10:{}"),
    opt.StorageUrl: ("{}", "sqlite:///{}", "@{}"),
}
"""How a path is written into an option of a type."""
NEEDED = {"compare": ["a/0", "a/1"], "show": ["rate"], "verify": ["rate/0"], "predict": ["model", "picture"]}
"""Arguments that a command cannot do without."""


NO_PATHS = {
    LONG: "name too long",
    f"missing/{LONG}": "name too long",
    "n/" * 3000: "name too long",
    "~nobody-s-name/x": "home directory",
    "": "empty",
}
"""What can be no path, and the reason that is said."""


def path_params(command: str) -> Iterator[tuple[click.Parameter, str]]:
    """Parameters of a command that take a path, with every way to write one there."""
    loaded = hpo_commands.resolve_command(click.Context(hpo_commands), [command])[1]
    assert loaded is not None
    for param in loaded.params:
        assert type(param.type) is not click.Path, f"{param.name} takes a path in another way"
        yield from ((param, form) for form in FORMS.get(type(param.type), ()))


def given(command: str, param: click.Parameter, text: str) -> list[str]:
    """The words of a command in which a text stands in one place."""
    needed = NEEDED.get(command, [])
    if isinstance(param, click.Option):
        return [command, *needed, f"{param.opts[0]}={text}"]
    place = ("model", "image").index(str(param.name)) if needed else 0
    return [command, *needed[:place], text, *needed[place + 1 :]]


def test_every_place_is_tried() -> None:
    found = {(name, param.name) for name in COMMANDS for param, _ in path_params(name)}
    assert {("run", "out"), ("predict", "image"), ("export", "file"), ("report", "to")} <= found
    assert {name for name in COMMANDS if (name, "storage") not in found} == {
        *("predict", "plan", "init", "schema", "list")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_be_no_path_is_refused_with_option_and_path(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for param, form in path_params(command):
        for path, reason in NO_PATHS.items():
            if not path and form in ("sqlite:///{}", "folder:{}", "cifar10:{}"):
                continue  # what is missing there, their own tests try
            words = given(command, param, form.format(path))
            result = cli(*words)
            assert result.code == 2, words
            assert "Traceback" not in result.err
            assert (
                param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
            ) in result.err
            assert path in result.err, words
            assert reason in result.err, words
            assert result.out == ""
            assert not list(tmp_path.iterdir()), words


@pytest.mark.parametrize("path", [path for path in NO_PATHS if not path.endswith("/x")])
def test_what_is_no_folder_to_compare_is_refused(cli: Cli, tmp_path: Path, path: str) -> None:
    (tmp_path / "out").mkdir()
    result = cli("compare", tmp_path / "out", path)
    assert result.code == 2
    assert NO_PATHS[path] in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = "postgresql+psycopg://host/name"
    (tmp_path / "x").write_text(url)
    for param, form in path_params(command):
        if form == "@{}":
            assert param.type.convert("@~/x", param, None) == url
        elif not isinstance(param.type, opt.StorageUrl):  # which who opens the database reads
            found = str(param.type.convert(form.format("~/other"), param, None))
            assert found in (str(tmp_path / "other"), form.format(tmp_path / "other")), (command, param.name)


TAKEN: dict[str, Callable[[str], object]] = {
    "find_plan out": library.find_plan,
    "find_plan storage": lambda path: library.find_plan(storage=f"sqlite:///{path}"),
    "run_plan out": lambda path: library.run_plan(out=path, studies="nowhere"),
    "run_plan studies": lambda path: library.run_plan(studies=path, out="nowhere"),
    "run_plan storage": lambda path: library.run_plan(storage=f"sqlite:///{path}", studies="nowhere"),
    "run_plan data": lambda path: library.run_plan(data=f"folder:{path}", out="nowhere"),
    "prepare source": lambda path: library.prepare(f"folder:{path}"),
    "prepare cache": lambda path: library.prepare("digits", cache=path),
    "load_training": library.load_training,
    "load_model": library.load_model,
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN.keys())
@pytest.mark.parametrize("path", [LONG, "~nobody-s-name/x", "a\0b", ""])
def test_the_library_refuses_in_words_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[str], object], path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        take(path)
    assert not list(tmp_path.iterdir())


def test_the_library_knows_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    entry = library.prepare("digits", cache="~/cache")
    assert entry.parent == tmp_path / "cache"
    assert library.load_training(f"~/cache/{entry.name}").n_classes == 10
    for take in (library.find_plan, library.load_model, TAKEN["find_plan storage"]):
        with pytest.raises(library.InputError, match=str(tmp_path / "none")):
            take("~/none")


def public_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """What `import hpo` offers, methods that users call, and what the rooms of pages offer."""
    for name in library.__all__:
        found = getattr(library, name)
        if inspect.isclass(found):
            methods = inspect.getmembers(found, inspect.isfunction)
            yield from ((f"{name}.{key}", each) for key, each in methods if not key.startswith("_"))
        else:
            yield name, found
    yield "Model.classify", Model.classify
    yield "write_report", write_report
    yield "serve", serve


def test_every_public_function_takes_a_path_as_text_too() -> None:
    n_paths = 0
    for name, function in public_functions():
        for param in inspect.signature(function).parameters.values():
            if "Path" in str(param.annotation):
                assert "str" in str(param.annotation), f"{name}({param})"
                n_paths += 1
    assert n_paths >= 8
