from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))  # real servers are started there and here alike

import servers  # noqa: E402

if TYPE_CHECKING:
    from hpo.planning.plan import Plan

SMALL_STUDIES = {
    "rate": """
        title = "Learning rate"
        section = "1"
        [base]
        conv1_channels = 8
        conv2_channels = 8
        [search]
        learning_rate = [0.003, 0.001]
    """,
    "shape": """
        title = "A sampled study under a constraint"
        section = "2"
        inherits = "rate"
        trials = 3
        constraints = ["conv1_channels <= conv2_channels"]
        [search]
        conv1_channels = [4, 8, 16]
        conv2_channels = [4, 8, 16]
        [sampler]
        name = "random"
    """,
}
SMALL_SIZES: dict[str, Any] = {
    "data": "digits",
    "limit_train": 200,
    "limit_valid": 100,
    "epochs": 3,
    "final_seeds": 2,
}


def as_options(sizes: dict[str, Any]) -> list[str]:
    """The command's options for what a plan is made of."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]


SMALL_RUN = as_options(SMALL_SIZES)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores: tests wait for processes and servers as much as they compute."""
    return (os.cpu_count() or 1) + 1


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data cache of this test run's own, and no options from the user's environment."""
    folder = tmp_path_factory.mktemp("cache")
    before = {name: value for name, value in os.environ.items() if name.startswith("HPO_")}
    for name in before:
        del os.environ[name]
    os.environ["HPO_CACHE"] = str(folder)
    yield folder
    del os.environ["HPO_CACHE"]
    os.environ.update(before)


@pytest.fixture(scope="session")
def small_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small studies, one a grid and one sampled."""
    folder = tmp_path_factory.mktemp("studies")
    for name, text in SMALL_STUDIES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def hpo(*arguments: object, timeout: float = 120, max_bytes: int | None = None) -> Result:
    """Runs the real command to its end, with so much address space at most for it and for each worker."""
    command = [sys.executable, "-m", "hpo", *map(str, arguments)]
    if max_bytes is not None:
        command = ["bash", "-c", f'ulimit -v {max_bytes // 1024}; exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def start_hpo(*arguments: object) -> subprocess.Popen[str]:
    """Starts the real command in a process group of its own."""
    command = [sys.executable, "-m", "hpo", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="session")
def started_servers() -> Iterator[Callable[[str], servers.Server]]:
    """Database servers by kind, each started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        started: dict[str, servers.Server] = {}

        def server(kind: str) -> servers.Server:
            if not servers.is_installed(kind):
                pytest.skip(f"no {kind} server on this machine")
            if kind not in started:
                started[kind] = stack.enter_context(servers.running(kind))
            return started[kind]

        yield server


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    started_servers: Callable[[str], servers.Server],
) -> str:
    """The URL of an empty database, on every kind of server that hpo supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hpo.db'}"
    return started_servers(request.param).new_database()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process: quick, for what trains nothing."""
    from hpo.cli import main

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Result(exit_.value.code, captured.out, captured.err)  # type: ignore[arg-type]

    return run


def train(out: Path, *names: str, studies: Path | None = None, **given: Any) -> Plan:
    """A plan written and worked on in this process: for tests of what comes after."""
    from hpo.execution.run import open_plan
    from hpo.execution.worker import work

    plan = open_plan(out, studies=studies, names=names, given=given)
    assert work(plan.storage, out=out, studies=names) is None
    return plan


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_studies: Path) -> Path:
    """The output folder of a small plan that ran undisturbed; tests read it alone."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all test processes
        base = base.parent
    out = base / "finished"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "model.pt").exists():
            result = hpo("run", "--studies", small_studies, "--out", out, "--workers=2", *SMALL_RUN)
            assert result.code == 0, result.err
    return out


@pytest.fixture(scope="session")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan amid all that can happen, of `scripted_worker`; tests only look at it."""
    from scripted_worker import plan_under_way

    return plan_under_way(tmp_path_factory.mktemp("under-way"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
