"""Workers as processes of this machine: copies of one that has imported what they need, or started anew."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hpo._process import n_workers
from hpo.execution.backends.base import WorkerBackend
from hpo.execution.backends.fork_server import ForkServer
from hpo.execution.backends.worker_spec import WorkerSpec, ask_to_stop


@contextmanager
def forked_processes(spec: WorkerSpec, server: ForkServer | None = None) -> Iterator[WorkerBackend]:
    """Run workers as copies of one process of this machine that has imported what they need.

    Args:
        spec: what they are told.
        server: that process, where it has been started early; it ends with the context.
    """
    backend = _ForkedBackend(spec, server or spec.fork_server())
    try:
        yield backend
    finally:
        backend.kill()


@contextmanager
def spawned_processes(spec: WorkerSpec) -> Iterator[WorkerBackend]:
    """Run workers as processes of this machine, each started from nothing."""
    backend = _SpawnedBackend(spec)
    try:
        yield backend
    finally:
        backend.kill()


local_processes = forked_processes if sys.platform == "linux" else spawned_processes
"""Workers on this machine, as this system starts them best."""


class _LocalBackend:
    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._gpus: list[str] = []
        if spec.device == "cuda":
            from hpo.training.devices import visible_gpus  # torch, which no CPU worker's parent needs

            self._gpus = visible_gpus()

    def room(self) -> int:
        if self._spec.device == "cpu":
            return n_workers(self._spec.threads)
        return len(self._gpus) or 1

    def _place(self, number: int) -> dict[str, str]:
        """Return variables that give a worker a GPU of its own, as far as there are so many."""
        return {"CUDA_VISIBLE_DEVICES": self._gpus[(number - 1) % len(self._gpus)]} if self._gpus else {}

    def last_words(self, number: int) -> str:
        return self._spec.last_words(number)


class _ForkedBackend(_LocalBackend):
    def __init__(self, spec: WorkerSpec, server: ForkServer) -> None:
        super().__init__(spec)
        spec.logs.mkdir(parents=True, exist_ok=True)
        self._server = server
        self._died_with_server: dict[int, int] = {}

    def start(self, number: int) -> None:
        if not self._server.is_alive:
            self._died_with_server |= self._server.ended()
            self._server.kill()
            self._server = self._spec.fork_server()
        variables = {**self._spec.settings, **self._place(number)}  # an early server has not got them all
        self._server.start(number, self._spec.log(number), variables)

    def ended(self) -> dict[int, int]:
        codes = self._died_with_server | self._server.ended()
        self._died_with_server = {}
        return codes

    def terminate(self) -> None:
        self._server.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._server.kill()


class _SpawnedBackend(_LocalBackend):
    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        self._workers[number] = self._spec.start(number, place=self._place(number))

    def ended(self) -> dict[int, int]:
        codes = {number: worker.poll() for number, worker in self._workers.items()}
        ended = {number: code for number, code in codes.items() if code is not None}
        for number in ended:
            del self._workers[number]
        return ended

    def terminate(self) -> None:
        for worker in self._workers.values():
            ask_to_stop(worker)

    def kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.wait()
