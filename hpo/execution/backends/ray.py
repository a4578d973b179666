"""Workers on somebody else's cluster: Ray places them, and places them again when a machine is lost."""

from __future__ import annotations

import importlib
import logging
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from hpo.errors import InputError, install
from hpo.execution.backends.base import OpenBackend, WorkerBackend
from hpo.execution.backends.worker_spec import KEPT, WorkerSpec, ask_to_stop

CONNECT_SECONDS = 20.0
GONE = -9
"""The exit code of a worker of which nothing is known any more."""
MISSES = 5
"""So often in a row an actor must fail to answer, a second apart, to be gone: Ray makes lost ones anew."""


def ray_cluster(address: str, *, cpus: float | None = None, gpus: float | None = None) -> OpenBackend:
    """Return what opens the backend that places workers on a Ray cluster.

    Args:
        address: `auto` (the cluster that this machine belongs to), `HOST:PORT`, or `ray://HOST:PORT`.
        cpus: CPUs a worker; default: the threads that the plan trains with.
        gpus: GPUs a worker, a part of one too; default: one where the plan trains on CUDA.

    Returns:
        An engine; it raises InputError when Ray is not installed, when there is no such cluster, when the
        cluster has no room for a worker, or when its machines cannot share what the plan is in.
    """

    def engine(spec: WorkerSpec) -> AbstractContextManager[WorkerBackend]:
        default_gpus = float(spec.device.startswith("cuda"))
        return _connected(address, spec, float(cpus or spec.threads), default_gpus if gpus is None else gpus)

    return engine


@contextmanager
def _connected(address: str, spec: WorkerSpec, cpus: float, gpus: float) -> Iterator[WorkerBackend]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise InputError(f"--engine ray: Ray is not installed; {install('ray')}") from None
    _refuse_unreachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = str(error).strip().splitlines()[0]
        raise InputError(f"--address {address}: no Ray cluster answers: {text}") from None
    try:
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        _refuse_what_is_not_shared(spec, hosts)
        backend = _RayBackend(ray, spec, cpus, gpus)
        if backend.room() < 1:
            raise InputError(
                f"--address {address}: the cluster has no machine with {cpus:g} CPUs and {gpus:g} GPUs for a "
                "worker; --cpus-per-worker and --gpus-per-worker say what one gets"
            )
        try:
            yield backend
        finally:
            backend.kill()
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    # Ray itself tries for minutes
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--address {address}: it is auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: nobody answers there: {error}") from None


def _refuse_what_is_not_shared(spec: WorkerSpec, hosts: set[str]) -> None:
    """Check that several machines have a database server, and checkpoints that all reach."""
    others = sorted(hosts - {socket.gethostname()})
    if not others:
        return
    if spec.settings["HPO_STORAGE"].startswith("sqlite"):
        raise InputError(
            f"--storage: SQLite serves one machine, and this cluster has {', '.join(others)} too; create "
            "the plan on a server: --storage postgresql+psycopg://HOST/NAME"
        )
    if "HPO_CHECKPOINTS" not in spec.settings:
        raise InputError(
            f"--checkpoints: {', '.join(others)} must reach the checkpoints too; give a folder that all "
            "machines share, or s3://…, gs://…"
        )


class Worker:
    """The actor: a worker process on the machine where Ray put it. Ray makes it anew if that is lost."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def attend(self, spec: WorkerSpec, number: int) -> int | None:
        """Start the worker if there is none yet; return its exit code, None while it works.

        The spec holds the database's URL, which may hold a password: they are the argument of a call, which
        goes from process to process. Ray keeps what a constructor is given with the cluster's state, and
        shows the environment variables of a runtime_env in its dashboard and logs.
        """
        if self._process is None:
            # the data may lie elsewhere on this machine; where, its administrator has said in HPO_DATA
            self._process = spec.start(number, keep=(*KEPT, "HPO_DATA"))
        return self._process.poll()

    def last_words(self, spec: WorkerSpec, number: int) -> str:
        """Return what it said last, and where."""
        return f"{spec.last_words(number)} on {socket.gethostname()}"

    def terminate(self) -> None:
        """Ask it to put its trial back and end."""
        if self._process is not None:
            ask_to_stop(self._process)


class _RayBackend:
    def __init__(self, ray: Any, spec: WorkerSpec, cpus: float, gpus: float) -> None:
        self._ray, self._spec, self._cpus, self._gpus = ray, spec, cpus, gpus
        self._actors: dict[int, Any] = {}
        self._polls: dict[int, Any] = {}
        self._misses: dict[int, int] = {}
        self._make: Callable[..., Any] = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1
        )

    def room(self) -> int:
        count = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
                rooms = [cpus / self._cpus] + ([gpus / self._gpus] if self._gpus else [])
                count += int(min(rooms))
        return count

    def start(self, number: int) -> None:
        if number in self._actors:
            self._ray.kill(self._actors[number])
        self._actors[number] = self._make.remote()  # type: ignore[attr-defined]
        self._polls.pop(number, None)
        self._misses[number] = 0

    def ended(self) -> dict[int, int]:
        codes = {}
        for number, actor in self._actors.items():
            poll = self._polls.get(number)
            if poll is None:
                poll = self._polls[number] = actor.attend.remote(self._spec, number)
            # an actor that waits for room, or is made anew, answers later
            ready, _ = self._ray.wait([poll], timeout=0)
            if not ready:
                continue
            del self._polls[number]
            try:
                code = self._ray.get(poll)
                self._misses[number] = 0
            except self._ray.exceptions.RayActorError:
                self._misses[number] = self._misses.get(number, 0) + 1
                code = GONE if self._misses[number] >= MISSES else None
            if code is not None:
                codes[number] = code
        for number in codes:
            if codes[number] == 0:
                self._ray.kill(self._actors.pop(number))
        return codes

    def last_words(self, number: int) -> str:
        try:
            said = self._actors[number].last_words.remote(self._spec, number)
            words: str = self._ray.get(said, timeout=CONNECT_SECONDS)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            return f"Ray lost it: {str(error).strip().splitlines()[0]}"
        return words

    def terminate(self) -> None:
        for actor in self._actors.values():
            actor.terminate.remote()

    def kill(self) -> None:
        # the workers themselves end too: they notice that their actor is gone
        for actor in self._actors.values():
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
