"""What tests start as a copy of a process is what they would have started from nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hpo.planning.plan import Plan
from tests.support.command import start_hpo, wait_for


@pytest.fixture(params=["copy", "from nothing"], autouse=True)
def way(request: pytest.FixtureRequest) -> None:
    """Both ways to start."""
    if request.param == "from nothing":
        request.getfixturevalue("from_nothing")


def test_a_copy_is_like_a_process_that_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_OUT", "a folder of mine")
    monkeypatch.chdir(tmp_path)
    with Path("err").open("w") as file:
        command = [sys.executable, "-m", "hpo", "worker", "--idle-timeout=x y"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "'x y' is no" in Path("err").read_text()
    refused = subprocess.run([*command[:-1]], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "a folder of mine/hpo.db" in refused.stderr


def test_a_copy_has_a_session_a_parent_and_words_of_its_own(under_way: Plan) -> None:
    words = ["status", "--watch", "--json", "--storage", under_way.storage.url]
    process = start_hpo(*words)
    mine = psutil.Process(process.pid)
    wait_for(mine.cmdline, process)  # Linux shows none for a moment after exec, and Popen returns at exec
    assert mine.cmdline()[: 3 + len(words)] == [sys.executable, "-m", "hpo", *words]
    assert mine.ppid() == os.getpid()
    assert os.getsid(process.pid) == process.pid
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == -signal.SIGKILL
    process.communicate()
