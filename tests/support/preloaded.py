"""Commands of hpo, and what they start, as copies of one process that has imported all they need; on Linux.

A command that trains takes 5 s of CPU to import what it and its workers need, and hardly any to train what
tests give it. A copy runs the same code in a process of its own, a child of who started it, with its own
arguments, environment, folder, files and session, after 0.1 s. What it does not have is a start of its own.
Tests of that use the fixture `from_nothing`; whoever changes variables that Python, PyTorch or others read
when they start gets a start of its own, too.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODULES = (
    "alembic.command",
    "hpo.cli.live",
    "hpo.cli.main",
    "hpo.cli.reading",
    "hpo.cli.tables",
    "hpo.cli.training",
    "hpo.execution.doctor",
    "hpo.execution.forked_run",
    "hpo.execution.run",
    "hpo.execution.worker",
    "hpo.recipes.constrained_cnn.network",
    "hpo.reporting.page",
    "hpo.reporting.render.matplotlib",
    "sqlalchemy.dialects.sqlite",
)
FREE = (
    *("HPO_", "PYTEST_", "COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR"),
    *("KMP_", "OMP_NUM_THREADS"),  # scikit-learn sets the former, hpo its threads
    *("TINY_", "GUARDED"),  # read by modules that tests write
)
"""How variables begin that are read later than at the start, or change nothing."""
MAX_BYTES, ARGUMENTS_BYTES = 2**17, 2**12
SPARE_FD = 512
"""From here on no process of tests has files open."""
POLL_SECONDS = 0.0005
PR_SET_CHILD_SUBREAPER = 36


class _Process(subprocess.Popen[Any]):
    """Starts `python -m hpo…` as a copy; what is no such command, or asks for another Python, as ever."""

    def _execute_child(self, *arguments: Any) -> None:
        as_ever = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(as_ever).bind(*arguments).arguments
        environment = dict(os.environ if given["env"] is None else given["env"])
        if given["preexec_fn"] or not _is_of_hpo(given["args"]) or not _server.fits(environment):
            as_ever(*arguments)
            return
        standard = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        files = {number: number if file == -1 else file for number, file in enumerate(standard)}
        files |= {file: file for file in given["pass_fds"]}
        order = {
            "arguments": [os.fspath(each) for each in given["args"][2:]],
            "folder": os.fspath(given["cwd"] or Path.cwd()),
            "environment": environment,
            "session": given["start_new_session"],
            "files": list(files),
        }
        self.pid = _server.copy(order, list(files.values()))
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]


class _Server:
    """Whom this process asks for copies: a child of its own, as these are to be."""

    def __init__(self) -> None:
        self._environment: Mapping[str, str] = {}
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def prepare(self, channel: socket.socket | None = None) -> None:
        """Make copies for such an environment as this process has now; ask at the other end of a channel."""
        self._environment, self._channel = _fixed(os.environ), channel

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a copy would be what is started in this environment."""
        return sys.platform == "linux" and _fixed(environment) == self._environment

    def copy(self, order: Mapping[str, Any], files: list[int]) -> int:
        """Return the id of a new child."""
        with self._lock:
            channel = self._channel or self._start()
            # whose own parent has gone is the child of the nearest ancestor that wants to have it
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(channel, [json.dumps(order).encode()], files)
                answer = channel.recv(MAX_BYTES)
            finally:
                libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
        assert answer, "the process that copies are made from has ended"
        return int(answer)

    def _start(self) -> socket.socket:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), " " * ARGUMENTS_BYTES],
                cwd=Path(__file__).parents[2],
                env={**self._environment, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return self._channel

    def end(self) -> None:
        """Have the process end from which copies were made."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.wait()


def _is_of_hpo(command: Any) -> bool:
    if isinstance(command, str | bytes | os.PathLike) or len(command) < 3:
        return False
    python, option, module = command[:3]
    return python == sys.executable and option == "-m" and str(module).partition(".")[0] == "hpo"


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(FREE)}


_server = _Server()


@contextmanager
def preloaded_processes() -> Iterator[None]:
    """Have commands started as copies while the context lasts, in environments like that of its beginning."""
    _server.prepare()
    before, subprocess.Popen = subprocess.Popen, _Process  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = before  # type: ignore[misc]
        _server.end()


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Copy this process as it is told; return in a copy what it is to do, in this one None, at its end."""
    while True:
        message, files, *_ = socket.recv_fds(channel, MAX_BYTES, SPARE_FD)
        if not message:
            return None
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            for file in files:
                os.close(file)
            continue
        middle = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == middle:
            time.sleep(POLL_SECONDS)
        order: dict[str, Any] = json.loads(message)
        _take_files(files, order["files"])
        if order["session"]:
            os.setsid()
        return order


def _take_files(received: list[int], numbers: list[int]) -> None:
    """Give files that came by a message the numbers they are to have."""
    spare = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, SPARE_FD) for file in received]
    for file in received:
        os.close(file)
    for file, number in zip(spare, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, f"__{name}__")
        binary = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
        is_by_lines = number == 2 or binary.isatty()
        stream = io.TextIOWrapper(binary, before.encoding, before.errors, line_buffering=is_by_lines)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _show_arguments(arguments: Sequence[str]) -> None:
    """Have `ps` and others show the arguments of a copy, in place of those it was begun with."""
    # the text after the name, which may hold spaces; these are fields 3 and on
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[48 - 3]), int(fields[49 - 3])
    shown = "".join(f"{each}\0" for each in (sys.executable, "-m", *arguments)).encode()
    ctypes.memmove(begin, shown[: end - begin].ljust(end - begin, b"\0"), end - begin)


def main(channel_fd: int) -> None:
    """Import what copies need, make them, and in a copy be what was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends this one
    gc.disable()
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # or each copy would make its own what it has in common with the others
    channel = socket.socket(fileno=fcntl.fcntl(channel_fd, fcntl.F_DUPFD_CLOEXEC, SPARE_FD))
    os.close(channel_fd)
    while (order := _serve(channel)) is not None:
        asker = channel
        ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # the child is whom this copy asks, should it start one itself; a fork server does not
        if order["arguments"][0] != "hpo" or os.fork():
            channel.close()
            _be(order, ours, asker)
        asker.close()
        ours.close()
        # it has no hand in what passes between others
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in order["files"]:
            if number <= 2:
                os.dup2(nowhere, number)
            else:
                os.close(number)
        os.close(nowhere)
    os._exit(0)


def _be(order: Mapping[str, Any], channel: socket.socket, asker: socket.socket) -> None:
    """Run a module as `python -m` would, and end.

    Args:
        order: what, and with what around it.
        channel: whom to ask for copies.
        asker: who has asked for this one.
    """
    subprocess.Popen = _Process  # type: ignore[misc]
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    _server.prepare(channel)
    sys.path[0] = order["folder"]
    importlib.invalidate_caches()
    # also where a shell has started the tests in the background, and had SIGINT ignored by all they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    _show_arguments(order["arguments"])
    with asker:
        asker.send(str(os.getpid()).encode())
    module, *sys.argv[1:] = order["arguments"]
    warnings.filterwarnings("ignore", module="runpy")  # it was imported under its name, too
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
