"""`run_plan` as programs call it: followed, stopped, from threads, event loops, scripts without a guard."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hpo as library
from hpo.api.run import by_name, run_plan
from hpo.errors import InputError
from hpo.monitor.watch import Progress
from tests.support.command import at_work
from tests.support.plans import SMALL, TINY_SIZES, write_study

RATES = f"{SMALL}[search]\nlearning_rate = [0.01]"
RECIPE = """
import math
import hpo
from torch import nn

class Sizes(hpo.Params):
    width: int = hpo.Field({width}, ge=1)

class Mine(hpo.Recipe):
    Params = Sizes
    def build(self, params, data):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.input_shape), params.width),
            nn.ReLU(), nn.Linear(params.width, data.n_classes))
"""
SCRIPT = """
import sys
from mine import Mine
import hpo
{before}
plan = hpo.run_plan(recipe=Mine, data="digits", studies={{"search": {{"width": [2, 3]}}}}, epochs=1,
    limit_train=100, limit_valid=50, final_seeds=1, workers=2, out="of-script")
print(hpo.final_result(plan)["config"]["width"], *({{"torch", "IPython"}} & sys.modules.keys()))
"""
SPAWN = "import hpo.execution.backends.local as local; local.local_processes = local.spawned_processes"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a study to stand in."""
    monkeypatch.chdir(tmp_path)
    write_study("rate", RATES)
    return tmp_path


def run_rates(**given: Any) -> Any:
    """Runs the one study."""
    return run_plan("rate", studies="studies", workers=1, **{**TINY_SIZES, "epochs": 1, **given})


def n_epochs(progress: Progress) -> int:
    return max((len(each.curve) for each in progress.running), default=0)


def test_on_progress_is_given_every_look_and_every_event(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    threads = set()

    def follow(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.current_thread())

    plan = run_rates(on_progress=follow)
    assert threads == {threading.main_thread()}
    assert len({id(each) for each in seen}) == len(seen)  # none is told twice
    assert not seen[0].events
    assert seen[-1].is_over
    assert isinstance(seen[0], library.Progress)
    with pytest.raises(FrozenInstanceError):
        seen[0].current = 1  # type: ignore[misc]
    events = [(event.event, event.record.get("trial")) for each in seen for event in each.events]
    assert sorted(events, key=str) == [("point", 0), ("study", None)]
    assert plan.decision("rate") is not None
    assert capfd.readouterr() == ("", "")  # no notebook is here
    again: list[Progress] = []
    run_rates(on_progress=again.append)
    assert [each.is_over for each in again] == [True]


def test_an_option_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="epoch is not an option; did you mean 'epochs'"):
        run_rates(epoch=3)


def test_a_plan_is_called_as_one_likes() -> None:
    assert run_rates().name == "hpo-out"
    assert run_rates(plan_name=" three rates ").name == "three rates"
    assert run_rates().name == library.find_plan("hpo-out").name == "three rates"
    for wrong in ("", "  ", "n" * 101):
        with pytest.raises(InputError, match="plan_name"):
            run_rates(plan_name=wrong)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_on_progress_raises_ends_the_run_and_loses_nothing(error: type[BaseException]) -> None:
    def stop(progress: Progress) -> None:
        if n_epochs(progress) >= 2:
            raise error("enough")

    with pytest.raises(error, match="enough") as raised:
        run_rates(epochs=60, on_progress=stop)
    if error is ZeroDivisionError:
        (note,) = raised.value.__notes__
        assert note.startswith("on_progress raised ZeroDivisionError; nothing is lost")
    assert not at_work()
    last: list[Progress] = []
    plan = run_rates(epochs=60, on_progress=last.append)
    (study,) = last[-1].studies
    assert study.status.points["complete"] == 1
    assert study.n_lost == 0  # the trial was put back, not found dead
    assert any(trial.user_attrs.get("reason") for trial in plan.trials("rate"))


def test_ctrl_c_says_what_is_done_and_the_next_call_resumes() -> None:
    def interrupt(progress: Progress) -> None:
        if n_epochs(progress) >= 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"nothing is lost.*call run_plan again to resume"):
        run_rates(epochs=60, on_progress=interrupt)
    assert not at_work()
    assert run_rates(epochs=60).decision("rate") is not None


def test_a_second_ctrl_c_ends_a_callback_that_hangs() -> None:
    passed = []

    def hang(progress: Progress) -> None:
        if progress.running:
            os.kill(os.getpid(), signal.SIGINT)
            passed.append(True)  # the first waits
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        run_rates(epochs=60, on_progress=hang)
    assert passed
    assert not at_work()


def test_from_a_thread_and_inside_a_running_event_loop() -> None:
    async def main() -> list[Any]:
        in_loop = run_rates(out="in-loop")
        return [in_loop, await asyncio.to_thread(run_rates, out="in-thread")]

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for plan in asyncio.run(main()):
        assert plan.decision("rate") is not None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.slow  # it starts as it does for users
@pytest.mark.parametrize("before", ["", SPAWN], ids=["forked", "spawned"])
def test_a_script_without_a_guard(before: str, folder: Path) -> None:
    (folder / "mine.py").write_text(RECIPE.format(width=4))
    (folder / "script.py").write_text(SCRIPT.format(before=before))
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("2", "3")
    assert before or done.stdout.split()[1:] == ["torch"]  # which `mine` imports; IPython nobody does
    assert done.stderr == ""


def test_a_changed_file_is_read_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    (folder / "mine.py").write_text(RECIPE.format(width=4))
    mine = importlib.import_module("mine")
    sizes = {**TINY_SIZES, "epochs": 1, "studies": {"search": {"learning_rate": [0.01]}}, "workers": 1}
    for width in (4, 5):
        (folder / "mine.py").write_text(RECIPE.format(width=width))
        plan = run_plan("search", recipe=mine.Mine, out=f"of-{width}", **sizes)
        (trial,) = plan.trials("search")
        assert trial.user_attrs["config"]["width"] == width
    del sys.modules["mine"]


def test_what_workers_can_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cell = type("Mine", (library.Recipe,), {"__module__": "__main__"})
    assert by_name("recipe", "constrained-cnn") == "constrained-cnn"
    assert by_name("data", "digits") == "digits"
    assert by_name("recipe", Path) == f"python:{Path.__module__}:Path"
    for here in (cell, "python:__main__:Mine"):
        with pytest.raises(InputError, match=r"%%writefile mine.py.*recipe='python:mine:Mine'"):
            by_name("recipe", here)
    with pytest.raises(InputError, match="inside a function"):
        by_name("data", lambda: None)
    main.__file__ = "/somewhere/of_script.py"
    assert by_name("recipe", cell) == "python:of_script:Mine"
    for mistake in ({"recipe": library.Recipe()}, {"data": 3}, {"data": None}, {"on_progress": 3}):
        (key,) = mistake
        with pytest.raises(InputError, match=f"^{key} = .*: must be"):
            run_plan(out="none", **mistake)
        assert not Path("none").exists()
