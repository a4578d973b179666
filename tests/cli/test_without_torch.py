"""An environment without PyTorch: what only looks works there, and what trains says what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from hpo.planning.plan import MODEL

ROOT = Path(__file__).resolve().parents[2]
OF_TORCH = re.compile(r"(torch|functorch|triton|nvidia|cuda)", re.IGNORECASE)
LOOKING = [
    ("status",),
    ("status", "--json"),
    ("show", "rate"),
    ("show", "rate/0"),
    ("best",),
    ("final",),
    ("final", "--json"),
    ("claims",),
    ("compare", "rate/0", "rate/1"),
    ("list", "."),
    ("export",),
    ("export", "--to", "tensorboard", "runs"),
    ("report", "--to", "to"),
    ("retry",),
]
TRAINING = [("run",), ("resume",), ("worker",), ("verify", "rate/0"), ("plan", "--data=digits")]
# each in this process, as the interpreter and Optuna take longest
SCRIPT = """
import importlib.util, os, sys
from hpo.cli import main
import hpo.reporting.dashboard.publish, hpo.reporting.dashboard.server
assert importlib.util.find_spec("torch") is None
for words in {commands}:
    sys.argv = ["hpo", *words]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, *words, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed but PyTorch and what came with it."""
    folder = tmp_path_factory.mktemp("packages")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not OF_TORCH.match(entry.name):
                (folder / entry.name).symlink_to(entry)
    return folder


def endings(packages: Path, folder: Path, commands: list[tuple[str, ...]]) -> tuple[list[str], str]:
    """How commands end that are run on a plan, and all that they say on stderr."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT.format(commands=commands)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^ended with (\S+)", done.stderr, re.MULTILINE), done.stderr


def test_what_looks_works_where_torch_is_not_installed(
    packages: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_OUT", str(finished))
    codes, said = endings(packages, tmp_path, LOOKING)
    assert codes == ["0"] * len(LOOKING), said
    assert "Traceback" not in said
    assert (tmp_path / "to" / "report.html").exists()


def test_what_trains_says_that_torch_is_missing(
    packages: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_OUT", str(finished))
    commands = [*TRAINING, ("predict", str(finished / MODEL), str(finished / MODEL))]
    codes, said = endings(packages, tmp_path, commands)
    assert codes == ["2"] * len(commands), said
    assert said.count("PyTorch is not installed") == len(commands), said
    assert "Traceback" not in said


def test_the_documented_install_without_torch_has_all_else_that_hpo_needs() -> None:
    page = (ROOT / "docs" / "get-started.md").read_text("utf-8")
    (line,) = re.findall(r"^pip install (.*) && pip install --no-deps -e \.$", page, re.MULTILINE)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    named, listed = (
        {re.split(r"[^\w-]", each.strip("'"))[0] for each in some} for some in (needed, line.split())
    )
    assert listed == named - {"torch", "torchvision"}
