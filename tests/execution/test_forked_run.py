"""A run that only looks on: copies of another process load the user's modules, and say the same words."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpo.errors import InputError
from hpo.execution.forked_run import forked_run
from hpo.execution.run import begin_work, prepare_plan
from hpo.planning.plan import Plan
from tests.support.command import start_hpo, wait_for
from tests.support.plans import TINY_SIZES, write_study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")

RECIPE = """
import hpo
from torch import nn

print("imported")

class Sizes(hpo.Params):
    width: int = hpo.Field(4, ge=1)
    dropout: float = hpo.Field(0.0, ge=0, lt=1)

class Mine(hpo.Recipe):
    Params = Sizes
    def build(self, params, data):
        print("built")
        return nn.Sequential(nn.Flatten(), nn.Linear(64, params.width), nn.Linear(params.width, 10))
    def inactive(self, params):
        return ["dropout"]

class Unfit(Mine):
    def build(self, params, data):
        return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))

class Failing(Mine):
    def build(self, params, data):
        raise ValueError("no network")

def load():
    print("loaded")
    raise OSError("no disk")
"""
MISTAKES: dict[str, dict[str, Any]] = {
    "no such module": {"recipe": "python:nobody:Mine"},
    "a module that fails": {"recipe": "python:broken:Mine"},
    "no Python": {"recipe": "python:syntax:Mine"},
    "no such class": {"recipe": "python:mine:Mien"},
    "no recipe": {"recipe": "python:mine:load"},
    "a network that does not fit": {"recipe": "python:mine:Unfit"},
    "a network that fails": {"recipe": "python:mine:Failing"},
    "data that fail": {"recipe": "python:mine:Mine", "data": "python:mine:load"},
    "data that fail, of the shipped recipe": {"data": "python:mine:load"},
    "a limit": {"recipe": "python:mine:Mine", "limit_train": 5},
    "a study": {"recipe": "python:mine:Mine", "names": ["withd"]},
    "a study without a file": {"recipe": "python:mine:Mine", "studies": {"search": {"witdh": [2]}}},
    "a parameter": {"recipe": "python:mine:Mine", "studies": Path("other-studies")},
}


def said(prepare: Any, name: str, **mistake: Any) -> str:
    """What a mistake is refused with."""
    out = Path(name)
    places: dict[str, Any] = {"storage": None, "studies": Path("studies"), "names": [], "for_claims": False}
    places |= {key: mistake.pop(key) for key in ("studies", "names") if key in mistake}
    with pytest.raises(InputError) as refused:
        prepare(out, given={**TINY_SIZES, **mistake}, **places)
    assert not out.exists()
    return str(refused.value)


def here(out: Path, **options: Any) -> tuple[Plan, list[str]]:
    return prepare_plan(out, threads=1, **options)


def test_a_copy_prepares_and_begins_a_plan_as_one_process_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {"mine": RECIPE, "broken": "x = 1\nx.y\n", "syntax": "class :\n"}.items():
        Path(f"{name}.py").write_text(code)
    write_study("width", "[search]\nwidth = [2, 4]\ndropout = [0.0, 0.5]")
    Path("other-studies").mkdir()
    Path("other-studies", "width.toml").write_text("[search]\nwitdh = [2, 4]")
    found = dict[str, tuple[Plan, list[str]]]()
    with forked_run(Path("out"), (), None, 1) as forked:
        told = {name: said(forked.prepare, name, **mistake) for name, mistake in MISTAKES.items()}
        capfd.readouterr()
        given = {**TINY_SIZES, "recipe": "python:mine:Mine"}
        options: dict[str, Any] = {"storage": None, "studies": Path("studies"), "names": ["width"]}
        found["there"] = forked.prepare(Path("there"), given=given, for_claims=False, **options)
        begun = forked.begin(found["there"][0], ["width"], None)
        assert not {"mine", "broken", "syntax"} & sys.modules.keys()
    printed = capfd.readouterr()
    assert told == {name: said(here, name, **mistake) for name, mistake in MISTAKES.items()}
    assert f"{tmp_path / 'broken.py'}:2: AttributeError" in told["a module that fails"]
    assert printed.out == ""
    assert {"imported", "built"} <= set(printed.err.split())
    found["here"] = here(Path("here"), given=given, **options)
    assert begun == begin_work(found["here"][0], ["width"], None) == (False, [])
    (there, remarks), (plan, expected) = found["there"], found["here"]
    assert (there.specs, there.options, there.identity) == (plan.specs, plan.options, plan.identity)
    assert remarks == expected == ["width: dropout 0, 0.5 has no effect beside the others"]
    assert [len(each.trials("width")) for each in (there, plan)] == [2, 2]  # only the recipe knows


@pytest.mark.usefixtures("from_nothing")  # a copy has one child more
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_while_a_user_s_module_loads_leaves_nothing_behind(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(10_000)\n")
    write_study("width", "[search]\nwidth = [2, 4]")
    process = start_hpo("run", "--recipe=python:slow:Mine", "--data=digits", "--studies=studies")
    wait_for(Path("begun").exists, process)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 2  # the server, and the copy that loads the module
    process.send_signal(number)
    process.wait(300)
    _, alive = psutil.wait_procs(below, timeout=300)
    for left in alive:
        left.kill()
    assert not alive
    _, err = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert err.strip() == ""
    assert not Path("hpo-out").exists()
