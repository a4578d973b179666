"""Real kernels: the example as it stands, and a cell that is interrupted and run again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo import find_plan, rows
from hpo.api.notebook import is_notebook
from hpo.errors import MissingError
from tests.support.command import wait_for
from tests.support.plans import SMALL, write_study

nbformat = pytest.importorskip("nbformat")
jupyter_client = pytest.importorskip("jupyter_client")

EXAMPLE = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
RUN = """
import hpo
plan = hpo.run_plan("rate", data="digits", studies="studies", epochs=200, limit_train=100, limit_valid=50)
"""
CELL_CLASS = """
import hpo
class Mine(hpo.Recipe):
    pass
hpo.run_plan(recipe=Mine, data="digits", out="none")
"""
WAIT_SECONDS = 300  # of two busy cores


class Kernel:
    """A kernel, and what comes of a cell that it executes."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._client = manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=WAIT_SECONDS)

    def start(self, code: str) -> str:
        """Has a cell executed; returns its name."""
        name: str = self._client.execute(code)
        return name

    def outputs(self, cell: str) -> list[dict[str, Any]]:
        """Waits for the end of a cell; returns the messages that came of it, of outputs alone."""
        found: list[dict[str, Any]] = []
        while True:
            message = self._client.get_iopub_msg(timeout=WAIT_SECONDS)
            if message["parent_header"].get("msg_id") != cell:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return found
            if kind not in ("status", "execute_input"):
                found.append({"kind": kind, **content})

    def stop(self) -> None:
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel in an empty folder, in which this process is, too."""
    monkeypatch.chdir(tmp_path)
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=tmp_path)
    kernel = Kernel(manager)
    yield kernel
    kernel.stop()


def test_no_kernel_runs_here() -> None:
    assert not is_notebook()


@pytest.mark.slow
def test_the_example_runs_and_shows_one_output_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path)
    notebook = nbformat.read(tmp_path / EXAMPLE.name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without
    nbclient.NotebookClient(notebook, timeout=WAIT_SECONDS, kernel_name="python3").execute()
    written: list[Any] = []
    shown: list[Any] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            (written if output["output_type"] == "stream" else shown).append(output)
    assert [output["text"] for output in written] == ["Writing notebook_recipe.py\n"]
    of_run, points, answer, picture, found = [output["data"] for output in shown]
    assert "1 of 1 studies decided" in of_run["text/plain"]
    assert "no worker" not in of_run["text/html"]
    for data in (of_run, points, answer, found):
        assert data["text/html"].startswith('<div class="hpo-shown">')
    assert "image/png" in picture


@pytest.mark.slow
def test_a_cell_that_is_interrupted_resumes_when_it_is_run_again(kernel: Kernel) -> None:
    write_study("rate", f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]")
    cell = kernel.start(RUN)

    def has_begun() -> bool:
        try:
            return any(row.epochs for row in rows(find_plan("hpo-out"), "rate"))
        except MissingError:
            return False

    wait_for(has_begun)
    kernel.manager.interrupt_kernel()
    first, *others, error = kernel.outputs(cell)
    assert first["kind"] == "display_data"
    assert {each["kind"] for each in others} == {"update_display_data"}
    assert {each["transient"]["display_id"] for each in others} == {first["transient"]["display_id"]}
    assert error["ename"] == "KeyboardInterrupt"
    for said in (error["evalue"], others[-1]["data"]["text/html"]):
        assert "nothing is lost" in said
        assert "call run_plan again to resume" in said
    again = kernel.outputs(kernel.start(RUN))
    assert {each["kind"] for each in again} == {"display_data", "update_display_data"}
    plan = find_plan("hpo-out")
    assert plan.decision("rate") is not None
    assert not any("lost" in note for row in rows(plan, "rate") for note in row.earlier)
    assert any(row.earlier for row in rows(plan, "rate"))  # put back by its worker


@pytest.mark.slow
def test_a_class_of_a_cell_is_refused_with_what_to_do(kernel: Kernel) -> None:
    cell = (
        "import hpo\nclass Mine(hpo.Recipe):\n    pass\nhpo.run_plan(recipe=Mine, data='digits', out='none')"
    )
    (error,) = kernel.outputs(kernel.start(cell))
    assert error["ename"] == "InputError"
    assert "Begin its cell with %%writefile mine.py" in error["evalue"]
    assert not Path("none").exists()
