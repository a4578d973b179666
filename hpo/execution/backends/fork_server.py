"""Workers as copies of one process that has imported what they need, and functions called in such a copy.

Importing torch takes a process 2 CPU seconds and 0.6 GB: workers started from nothing each pay that while
they share the cores. The server has one thread and computes nothing, so that its copies are sound; it takes
orders by messages over a socket. On Linux alone: the system libraries of macOS do not bear being forked.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil

from hpo._process import PARENT_VARIABLE
from hpo.errors import HpoError, InputError, RunError

PRELOADED = ("hpo.cli.training", "hpo.execution.worker")
"""What a copy needs to be `hpo worker`. By name, as this room lies below that of the commands."""
POLL_SECONDS = 0.05
MAX_BYTES = 2**16
CALLED = 0
"""The number of a copy that a function is called in; workers count from 1."""
END_SECONDS = 1.0
"""So long without news of an end, and what was killed is held fast by the system, or the machine is busy."""


class ForkServer:
    """The server as seen by who starts it.

    Args:
        arguments: of `hpo`, the same for all workers.
        environment: of all workers.
        log: where the server says what keeps it from starting; None: on standard error.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") if log else nullcontext() as file:
            self._process = subprocess.Popen(
                # the workers' own arguments at the end are what `ps` shows
                [sys.executable, "-m", __name__, str(theirs.fileno()), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=[theirs.fileno()],
                # a session of its own: Ctrl-C reaches who started it alone
                start_new_session=True,
            )
        self._running: set[int] = set()

    @property
    def is_alive(self) -> bool:
        """Whether workers can be started."""
        return self._process.poll() is None

    def start(self, number: int, log: Path, variables: Mapping[str, str]) -> None:
        """Start a worker with environment variables of its own; it appends what it says to a file."""
        self._running.add(number)
        self._send({"number": number, "log": str(log), "variables": dict(variables)})

    def call(self, function: str, *arguments: object) -> Any:
        """Return what a function returns in a copy of the server.

        Args:
            function: its module and name, as `module:name`.
            arguments: as JSON can hold them; so must be what it returns.

        Raises:
            InputError: the function raised one.
            RunError: it failed in another way.
        """
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "answer")
            self._running.add(CALLED)
            order = {"call": function, "arguments": arguments, "answer": str(answer)}
            self._send({"number": CALLED, **order})
            while not (codes := self.ended(POLL_SECONDS)):
                pass
            text = answer.read_text() if answer.exists() else ""
        if codes[CALLED] == 0:
            return json.loads(text)
        kind = InputError if codes[CALLED] == InputError.exit_code else RunError
        raise kind(text or f"the process that is to start workers ended with code {codes[CALLED]}")

    def send_signal(self, number: int) -> None:
        """Send a signal to all workers; those that are paused (SIGSTOP) go on, to hear it."""
        self._process.send_signal(signal.SIGCONT)
        self._send({"signal": number})

    def ended(self, timeout_seconds: float = 0.0) -> dict[int, int]:
        """Return exit codes of workers that ended since the last call, -N by signal N; wait for the first."""
        codes: dict[int, int] = {}
        while self._running and select.select([self._channel], [], [], 0.0 if codes else timeout_seconds)[0]:
            message = b""
            with suppress(ConnectionError):
                message = self._channel.recv(MAX_BYTES)
            if not message:  # it was killed, or could not even import; workers notice and put trials back
                codes |= dict.fromkeys(self._running, self._process.wait())
            else:
                answer = json.loads(message)
                codes[answer["number"]] = answer["code"]
            self._running -= codes.keys()
        return codes

    def kill(self) -> None:
        """Kill all workers and the server; return when they are gone, unless the system holds them."""
        self.send_signal(signal.SIGKILL)
        while self._running and self.ended(END_SECONDS):
            pass
        # on a busy machine it may not have come to it yet; nor does it fork any more now
        self._process.send_signal(signal.SIGSTOP)
        with suppress(psutil.NoSuchProcess):
            for worker in psutil.Process(self._process.pid).children(recursive=True):
                worker.kill()
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: Mapping[str, object]) -> None:
        with suppress(ConnectionError):  # `ended` tells that it is gone
            # as text: a date that somebody gave for a number, to be refused there
            self._channel.send(json.dumps(message, default=str).encode())


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork copies as it is told, and tell how they end, until who started it is gone.

    Returns:
        In a copy what it is to do; in the server None, at its end.
    """
    numbers: dict[int, int] = {}
    with suppress(ConnectionError):
        while True:
            if select.select([channel], [], [], POLL_SECONDS)[0]:
                message = channel.recv(MAX_BYTES)
                if not message:
                    break
                order: dict[str, Any] = json.loads(message)
                if "signal" in order:
                    for pid in numbers:  # none of them was waited for yet: their ids are still theirs
                        os.kill(pid, order["signal"])
                        os.kill(pid, signal.SIGCONT)
                elif pid := os.fork():
                    numbers[pid] = order["number"]
                else:
                    return order
            for pid in list(numbers):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    answer = {"number": numbers.pop(pid), "code": os.waitstatus_to_exitcode(status)}
                    channel.send(json.dumps(answer).encode())
    for pid, number in numbers.items():
        if number == CALLED:  # nobody waits for the answer; workers put their trials back first
            os.kill(pid, signal.SIGKILL)
    return None


def main(channel_fd: int, arguments: Sequence[str]) -> None:
    """Be the server; in the copies that it makes of itself `hpo ARGUMENTS…`, or one called function."""
    gc.disable()  # while importing it takes a seventh of the time, and finds nothing
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # a copy that looks through what it has in common with the server would make it its own
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    with socket.socket(fileno=channel_fd) as channel:
        order = serve(channel)
    if order is None:
        os._exit(0)  # workers wait for its end, and Python would take a second of CPU time to put torch away
    gc.enable()
    if "call" in order:
        os._exit(_answer(**order))
    os.environ.update(order["variables"])
    os.setsid()
    file = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard in (sys.stdout, sys.stderr):
        os.dup2(file, standard.fileno())
    os.close(file)
    sys.argv = ["hpo", *arguments]
    importlib.import_module("hpo.__main__").main()


def _answer(call: str, arguments: Sequence[Any], answer: str, number: int) -> int:
    """Call a function, write what it returns or why it refuses into a file, and return the exit code."""
    module, _, name = call.partition(":")
    try:
        with redirect_stdout(sys.stderr):  # what a user's code prints is no JSON
            text, code = json.dumps(getattr(importlib.import_module(module), name)(*arguments)), 0
    except HpoError as error:
        text, code = str(error), error.exit_code
    Path(answer).write_text(text)
    return code


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
