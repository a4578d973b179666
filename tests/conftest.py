from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from hypothesis import settings

from hpo.planning.plan import MODEL, Plan
from tests.support.command import Result, hpo
from tests.support.fixtures import Cli, StartedServers
from tests.support.plans import SMALL_RUN, SMALL_STUDIES
from tests.support.preloaded import preloaded_processes
from tests.support.scripted_worker import plan_under_way

# no test asserts how long something takes; neither does hypothesis, which allows 200 ms an example otherwise.
# Its examples are the same in every run: what fails fails again. --hypothesis-profile=exploring draws others,
# for who changes what has a law
settings.register_profile("exploring", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# before torch is imported, here and in the commands that tests start: threads that spin while they wait take
# the cores from other tests; four commands at once on two cores took 48 and 68 s so, 36 and 22 s with this
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidia0").exists():
    # read when Triton is imported: without a GPU its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores: tests wait for processes and servers as much as they compute."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data cache of this test run's own, and no options from the user's environment."""
    folder = tmp_path_factory.mktemp("cache")
    before = {name: value for name, value in os.environ.items() if name.startswith("HPO_")}
    for name in before:
        del os.environ[name]
    os.environ["HPO_CACHE"] = str(folder)
    yield folder
    del os.environ["HPO_CACHE"]
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def preloaded(own_cache: Path) -> Iterator[None]:
    """Commands of hpo, fork servers too, start as copies of a process that has imported what they need."""
    with preloaded_processes():
        yield


@pytest.fixture
def from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start as they do for users, with imports of their own."""
    monkeypatch.setenv("FROM_NOTHING", "1")  # the others have no such variable


@pytest.fixture(scope="session")
def small_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small studies, one a grid and one sampled."""
    folder = tmp_path_factory.mktemp("studies")
    for name, text in SMALL_STUDIES.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def started_servers() -> Iterator[StartedServers]:
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
    started_servers: StartedServers,
) -> str:
    """The URL of an empty database, on every kind of server that hpo supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hpo.db'}"
    return started_servers(request.param).new_database()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command in this process: quick, for what trains nothing."""
    from hpo.cli import main

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Result(exit_.value.code, captured.out, captured.err)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_studies: Path) -> Path:
    """The output folder of a small plan that ran undisturbed; tests read it alone."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all test processes
        base = base.parent
    out = base / "finished"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / MODEL).exists():
            result = hpo("run", "--studies", small_studies, "--out", out, "--workers=2", *SMALL_RUN)
            assert result.code == 0, result.err
    return out


@pytest.fixture(scope="session")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan amid all that can happen, of `support.scripted_worker`; tests only look at it."""
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
