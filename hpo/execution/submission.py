"""Workers as the tasks of a SLURM array job, which submitit writes, submits and queues again.

A task is `hpo worker` in a process of its own. When the task's time is up, SLURM sends a signal a minute
before, and submitit has the task queued again; when it is preempted, SLURM does so by itself. Either way the
worker puts its trial back first, and whoever claims that resumes it.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo._process import PARENT_VARIABLE
from hpo.errors import InputError, RunError, install
from hpo.execution.backends.worker_spec import KEPT, WorkerSpec

MANY = 10_000
"""So often a task is queued again when its time is up."""
SIGNAL_SECONDS = 60
"""So long before the end of a task's time the signal comes; the worker needs ten."""
NAME = "HPO_STORAGE"
"""The setting that may hold a password: it travels in the job's environment, and in no file."""


def submit(
    spec: WorkerSpec,
    name: str,
    *,
    n_workers: int,
    seconds: float,
    partition: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
) -> list[str]:
    """Submit workers as an array, and return the ids of its jobs; logs are in the output's folder `slurm`.

    Args:
        spec: of a worker.
        name: of the plan; the job's has it.
        n_workers: tasks of the array.
        seconds: the limit on each task's time; it comes again then.
        partition: SLURM's; None: its default.
        cpus: of a task; None: the plan's threads.
        gpus: of a task; None: one where the plan trains on GPUs.

    Raises:
        InputError: submitit or SLURM is not here, or workers could not serve the plan so.
        RunError: SLURM refuses the job; the text says why.
    """
    try:
        import submitit
    except ImportError:
        raise InputError(f"--slurm needs submitit, which is not installed; {install('slurm')}") from None
    if spec.settings[NAME].startswith("sqlite"):
        raise InputError(
            "--storage: SQLite serves one machine, and SLURM places workers on several; create the plan on a "
            "server: --storage postgresql+psycopg://HOST/NAME"
        )
    folder = slurm_folder(spec.out)
    if found := re.search(r"[%\\\n]", str(folder.absolute())):
        raise InputError(
            f"--out {spec.out}: SLURM reads {found[0]!r} in the path of a log as its own; choose a folder "
            "without it"
        )
    if cpus is not None and cpus < spec.threads:
        raise InputError(f"--cpus {cpus}: a worker of this plan trains with {spec.threads} threads")
    if gpus is None:
        gpus = 0 if spec.device == "cpu" else 1
    settings = {"HPO_CHECKPOINTS": str(Path(spec.out, "checkpoints")), **spec.settings}
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MANY)
    except RuntimeError:
        raise InputError("--slurm: there is no srun here; submit where SLURM's commands are") from None
    options: dict[str, Any] = {
        # a line of the script, in which nothing is to end it
        "job_name": re.sub(r"[^\w.-]+", "-", f"hpo-{name}", flags=re.ASCII)[:60].strip("-"),
        "time": max(1, math.ceil(seconds / 60)),
        "cpus_per_task": cpus or spec.threads,
        "array_parallelism": n_workers,
        "signal_delay_s": SIGNAL_SECONDS,
        "additional_parameters": {"requeue": True},
    }
    options |= {"partition": partition} if partition else {}
    options |= {"gpus_per_node": gpus} if gpus else {}
    executor.update_parameters(**options)
    public = replace(spec, settings={key: value for key, value in settings.items() if key != NAME})
    try:
        with _environment({NAME: settings[NAME]}):
            jobs = executor.map_array(SubmittedWorker(public), range(1, n_workers + 1))
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError) as error:
        raise RunError(f"--slurm: the job could not be submitted: {str(error).strip()}") from None
    return [job.job_id for job in jobs]


def slurm_folder(out: str | Path) -> Path:
    """Return where submitit keeps the script, the tasks and their logs."""
    return Path(out, "slurm")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which sbatch hands to the job, while the context lasts."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class SubmittedWorker:
    """A task: what submitit stores, and calls on the node.

    Args:
        spec: of the worker, without the database's URL.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, number: int) -> None:
        """Be a worker until the plan has ended.

        Raises:
            SystemExit: the worker did not end well; with its exit code.
        """
        environment = self._spec.environment((*KEPT, NAME))
        self._process = subprocess.Popen(
            # a node is not held for what others still train
            [sys.executable, "-m", "hpo", *self._spec.arguments, "--idle-timeout=30m"],
            env={**environment, PARENT_VARIABLE: str(os.getpid())},
            preexec_fn=_ignore_submitits_signals,
        )
        # SLURM tells all processes of a task; submitit would pass over it
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        _await_end(self._process)
        code = self._process.wait()
        if code:
            # 143: preempted or cancelled, and SLURM knows whether the task comes back
            raise SystemExit(code if code > 0 else 128 - code)

    def _end(self) -> None:
        """Ask the worker to put its trial back and end."""
        if self._process is not None:
            self._process.terminate()

    def checkpoint(self, number: int) -> Any:
        """End the worker, and return what the task is to do when it comes again: the same.

        Called by submitit, in the handler of the signal that time is up.
        """
        import submitit

        self._end()
        if self._process is not None:
            _await_end(self._process)
        return submitit.helpers.DelayedSubmission(SubmittedWorker(self._spec), number)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended, also in a signal handler while this waits for it outside of that.

    `Popen.wait` holds a lock meanwhile, on which it would wait for itself for ever.
    """
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _ignore_submitits_signals() -> None:
    """Leave the signal that time is up, which all processes of a task get, to submitit alone."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
