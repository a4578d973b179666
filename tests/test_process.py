"""The cores and the caches that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpo
from hpo._process import WORKER_BYTES, available_bytes, n_cores, n_workers

AFFINITY = len(os.sched_getaffinity(0))


def kernel(root: Path, files: dict[str, str]) -> Path:
    """A root folder with such files below it."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


V1 = "sys/fs/cgroup/cpu,cpuacct"
QUOTAS = {
    "none": ({}, None),
    "v2, half a core": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    "v2, one and a half": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "v2, no limit": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "v2, more than there are": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9990000 10000"},
        None,
    ),
    "v2, of a group above": (
        {
            "proc/self/cgroup": "0::/a.slice/b.scope",
            "sys/fs/cgroup/a.slice/cpu.max": "20000 100000",
            "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000",
        },
        1,
    ),
    "v2, in a container that sees its group as the root": (
        {"proc/self/cgroup": "0::/kubepods/pod1", "sys/fs/cgroup/cpu.max": "100000 100000"},
        1,
    ),
    "v1, half a core": (
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/docker/1\n1:name=systemd:/\n0::/",
            f"{V1}/docker/1/cpu.cfs_quota_us": "50000",
            f"{V1}/docker/1/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/",
            f"{V1}/cpu.cfs_quota_us": "-1",
            f"{V1}/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "v1, in a container, the mount by its other name": (
        {
            "proc/self/cgroup": "3:cpuacct,cpu:/docker/1",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        1,
    ),
}


@pytest.mark.parametrize(("files", "cores"), QUOTAS.values(), ids=QUOTAS.keys())
def test_a_quota_of_cpu_time_is_rounded_up_to_cores(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    assert n_cores(kernel(tmp_path, files)) == (AFFINITY if cores is None else min(cores, AFFINITY))


V1_MEMORY = "sys/fs/cgroup/memory"
LIMITS = {
    "v2, a limit": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "2000000",
            "sys/fs/cgroup/memory.current": "1500000",
            "sys/fs/cgroup/memory.stat": "anon 1000000\ninactive_file 300000\nactive_file 200000",
        },
        800_000,
    ),
    "v2, no limit": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/memory.current": "1500000",
        },
        None,
    ),
    "v2, exceeded": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "1000000",
            "sys/fs/cgroup/memory.current": "1500000",
        },
        0,
    ),
    "v1, of a group above": (
        {
            "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/",
            f"{V1_MEMORY}/docker/memory.limit_in_bytes": "900000",
            f"{V1_MEMORY}/docker/memory.usage_in_bytes": "500000",
            f"{V1_MEMORY}/docker/memory.stat": "inactive_file 1\ntotal_inactive_file 100000",
            f"{V1_MEMORY}/docker/1/memory.limit_in_bytes": "9223372036854771712",
            f"{V1_MEMORY}/docker/1/memory.usage_in_bytes": "400000",
        },
        500_000,
    ),
}


@pytest.mark.parametrize(("files", "free"), LIMITS.values(), ids=LIMITS.keys())
def test_a_limit_of_memory_counts_and_cached_files_are_free(
    tmp_path: Path, files: dict[str, str], free: int | None
) -> None:
    found = available_bytes(kernel(tmp_path, files))
    assert found == free if free is not None else found > 10_000_000


def test_there_are_as_many_workers_as_cores_and_memory_allow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": f"{WORKER_BYTES + 2000}",
        "sys/fs/cgroup/memory.current": "1000",
    }
    assert n_workers(root=kernel(tmp_path, files)) == 1
    assert ("--workers" in caplog.text) == (AFFINITY > 1)
    caplog.clear()
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000")
    assert n_workers(root=tmp_path) == 1
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max")
    assert n_workers(AFFINITY, tmp_path) == n_workers(1_000, tmp_path) == 1


OLD_GROUPS = {"cpu": Path("/sys/fs/cgroup/cpu"), "memory": Path("/sys/fs/cgroup/memory")}
NEW_GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def limited() -> Iterator[list[Path]]:
    """A real control group of half a core and 1.2 GB; the files take the processes that are to be in it."""
    name = f"hpo-test-{os.getpid()}"
    folders = [mount / name for mount in OLD_GROUPS.values() if (mount / "tasks").exists()]
    is_old = bool(folders)
    folders = folders or [NEW_GROUPS / name]
    try:
        for folder in folders:
            folder.mkdir()
        if is_old:
            cpu, memory = (mount / name for mount in OLD_GROUPS.values())
            (cpu / "cpu.cfs_period_us").write_text("100000")
            (cpu / "cpu.cfs_quota_us").write_text("50000")
            (memory / "memory.limit_in_bytes").write_text("1200000000")
        else:
            (folders[0] / "cpu.max").write_text("50000 100000")
            (folders[0] / "memory.max").write_text("1200000000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    else:
        yield [folder / "cgroup.procs" for folder in folders]
    finally:
        for folder in folders:
            if folder.is_dir():
                folder.rmdir()


def test_a_process_in_a_real_control_group_sees_its_limits(limited: list[Path]) -> None:
    code = (
        "import os, sys\n"
        "for file in sys.argv[1:]: open(file, 'w').write(str(os.getpid()))\n"
        "from hpo._process import available_bytes, n_cores\n"
        "print(n_cores(), available_bytes() < 1_200_000_000)"
    )
    command = [sys.executable, "-c", code, *map(str, limited)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["1", "True"], "")


def test_nothing_else_counts_cores() -> None:
    package = Path(hpo.__file__).parent
    others = [
        file.name
        for file in package.rglob("*.py")
        if any(word in file.read_text("utf-8") for word in ("cpu_count", "sched_getaffinity"))
    ]
    assert others == ["_process.py"]


HOMELESS = {
    "no home at all": {},
    "a home that is not there and cannot be": {"HOME": "/dev/null/home"},
    "a cache that cannot be": {"XDG_CACHE_HOME": "/dev/null/cache", "MPLCONFIGDIR": "/dev/null/config"},
}


@pytest.mark.parametrize("variables", HOMELESS.values(), ids=HOMELESS.keys())
def test_a_user_without_a_home_gets_a_report_and_no_warnings(
    tmp_path: Path, finished: Path, variables: dict[str, str]
) -> None:
    code = (
        "import os, pwd, sys\n"
        # as for a user that is a mere number: what looks up the home finds none
        "def nobody(uid): raise KeyError(f'getpwuid(): uid not found: {uid}')\n"
        "pwd.getpwuid = nobody\n"
        "from hpo.__main__ import main\n"
        "main()"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(tmp_path),
    }
    for words in (
        ["create", "--data=digits", "--out", tmp_path / "out"],
        ["report", "--out", finished, "--to", tmp_path / "to"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (ours,) = tmp_path.glob("hpo-of-user-*")
    assert ours.stat().st_mode & 0o777 == 0o700
    assert list(ours.glob("*/hpo/digits-*"))


@pytest.mark.parametrize("cache", ["file/cache", "n" * 256, "~nobody-s-name/x"])
def test_a_cache_that_can_be_nowhere_is_refused_in_words(tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "create", "--data=digits", "--out", str(tmp_path / "out")],
        env={**os.environ, "HPO_CACHE": cache},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "HPO_CACHE" in done.stderr
    assert "Traceback" not in done.stderr
