"""Serves the dashboard until a signal comes, and guards what it leaves open: it knows no passwords.

The main thread writes notes and figures, and again when trials have ended; requests are answered by others.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import logging
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from hpo._files import user_path
from hpo._process import STOP_SIGNALS, on_stop_signals
from hpo._text import printable
from hpo.errors import HpoError, InputError
from hpo.monitor.plans import PlanLine, find_plans
from hpo.planning.plan import Plan
from hpo.reporting.dashboard.plans_page import plans_page
from hpo.reporting.dashboard.publish import ArtifactFolder, Publisher
from hpo.storage import database
from hpo.storage.storage import Storage

log = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8080
REFRESH_SECONDS = 10.0
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

READING = ("GET", "HEAD")
OF_THE_PLAN = re.compile(r"/api/(studies/0*(?P<study>\d{1,20})(/rename)?|trials/\d+/(tell|user-attrs))/*")
"""What deletes or renames a study, or ends a trial that a worker trains."""
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
SHOWN_TYPES = re.compile(r"(image/(png|jpeg|gif|webp)|audio/[\w.+-]+|video/[\w.+-]+|text/(plain|csv))\b")
"""What a browser may show of an artifact. Whoever attached it chose its type: a page or an SVG would run
scripts in the dashboard's name."""


class Stopped(BaseException):
    """A signal asked the server to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def serve(
    url: str,
    out: str | Path,
    *,
    host: str = HOST,
    port: int | None = None,
    read_only: bool = False,
    say: Callable[[str], None] = lambda text: None,
    on_ready: Callable[[str], None] = lambda address: None,
) -> int:
    """Serve the dashboard of a plan until SIGINT or SIGTERM.

    Args:
        url: the plan's database; one that takes no writes is served as it is, read-only.
        out: the plan's output folder; artifacts are in `out/artifacts`.
        host: name or address to listen on.
        port: 0: any that is free; None: 8080, or any free one where that is taken.
        read_only: refuse every request that could change something.
        say: takes what the user should know, a line at a time.
        on_ready: called once with the dashboard's address, when it can be opened.

    Returns:
        The signal.

    Raises:
        MissingError: there is no plan.
        InputError: host or port cannot be had.
    """
    with on_stop_signals(_stop):
        try:
            with _serving_plan(url, out, host, port, say, read_only=read_only) as (server, publisher):
                _keep_published(publisher, say, lambda: on_ready(address(host, server.server_port)))
        except Stopped as stopped:
            return stopped.number


def serve_many(
    place: str,
    out: str | Path,
    *,
    host: str = HOST,
    port: int | None = None,
    read_only: bool = False,
    say: Callable[[str], None] = lambda text: None,
    on_ready: Callable[[str], None] = lambda address: None,
) -> int:
    """Serve a page that lists plans, and behind it the dashboard of each, until SIGINT or SIGTERM.

    Args:
        place: of the plans: a folder, or a database URL.
        out: where artifacts are of plans that are in no output folder.
        host: as of `serve`; each plan that is looked at has a port of its own there.
        port: likewise; of the page.
        read_only: likewise.
        say: likewise.
        on_ready: likewise.

    Returns:
        The signal.

    Raises:
        InputError: there is no such place, or host or port cannot be had.
    """
    find_plans(place)  # refuses what is no place before a browser asks
    with contextlib.ExitStack() as stack, on_stop_signals(_stop):
        try:
            page = _PlansPage(place, out, host, say, stack, read_only=read_only)
            server = stack.enter_context(_serving(host, port, page))
            on_ready(address(host, server.server_port))
            while True:
                time.sleep(REFRESH_SECONDS)
        except Stopped as stopped:
            return stopped.number


class _PlansPage:
    """The page of several plans. Of each a dashboard is served from when it is first asked for."""

    def __init__(
        self,
        place: str,
        out: str | Path,
        host: str,
        say: Callable[[str], None],
        stack: contextlib.ExitStack,
        *,
        read_only: bool,
    ) -> None:
        self._place, self._out, self._host, self._say = place, out, host, say
        self._stack, self._read_only = stack, read_only
        self._ports: dict[str, int] = {}
        """Of the plans that are served, by their databases."""
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        refusal = _refusal(environ, frozenset(), read_only=True, names=_names(self._host))
        if refusal is not None:
            return _answered(start_response, refusal[0], refusal[2], *refusal[1])
        found, path = find_plans(self._place), environ["PATH_INFO"]
        if path == "/":
            page = plans_page(found, {line.storage: _key(line.storage) for line in found.plans})
            return _answered(start_response, "200 OK", page, ("Content-Type", "text/html; charset=utf-8"))
        line = next((each for each in found.plans if path == f"/{_key(each.storage)}"), None)
        if line is None:
            return _answered(start_response, "404 Not Found", "no such plan here")
        try:
            port = self._port(line, found.urls[line.storage])
        except HpoError as error:
            return _answered(start_response, "500 Internal Server Error", str(error))
        name = _name(environ.get("HTTP_HOST", "")) or self._host
        return _answered(start_response, "302 Found", "", ("Location", address(name, port)))

    def _port(self, line: PlanLine, url: str) -> int:
        """Return where the dashboard of a plan is served, from now on if it was not before."""
        with self._lock:
            if line.storage not in self._ports:
                serving = _serving_plan(
                    url, line.folder or self._out, self._host, 0, self._say, read_only=self._read_only
                )
                server, publisher = self._stack.enter_context(serving)
                publish = partial(_keep_published, publisher, self._say, lambda: None)
                threading.Thread(target=publish, daemon=True).start()
                self._ports[line.storage] = server.server_port
            return self._ports[line.storage]


def _key(storage: str) -> str:
    """Return how a link names a database."""
    return hashlib.sha256(storage.encode()).hexdigest()[:16]


def _answered(start_response: Any, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    policy = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    kind = ("Content-Type", "text/plain; charset=utf-8")
    is_typed = any(key == "Content-Type" for key, _ in headers)
    nosniff = ("X-Content-Type-Options", "nosniff")
    start_response(status, [*headers, *([] if is_typed else [kind]), policy, nosniff])
    return [text.encode()]


@contextlib.contextmanager
def _serving_plan(
    url: str, out: str | Path, host: str, port: int | None, say: Callable[[str], None], *, read_only: bool
) -> Iterator[tuple[WSGIServer, Publisher | None]]:
    """Serve the dashboard of a plan while the context lasts; who calls publishes notes and figures."""
    out = user_path(out)
    logging.getLogger("optuna_dashboard").setLevel(logging.CRITICAL)  # of a bad request it logs its stack
    plan = Plan.open(Storage(url, reader=True))
    storage = _writable(url, say)
    publisher = Publisher(plan, storage, out) if storage is not None else None
    app = optuna_dashboard.wsgi((storage or plan.storage).for_optuna, ArtifactFolder(out))
    guarded_app = guarded(
        app,
        frozenset(plan.storage.study_id(name) for name in plan.all_names),
        read_only=read_only or storage is None,
        names=_names(host),
    )
    with _serving(host, port, guarded_app) as server:
        yield server, publisher


def _names(host: str) -> frozenset[str] | None:
    """Return the names that a request may be addressed to; None: any."""
    return LOOPBACK_NAMES | {host} if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int) -> str:
    """Return the address that a browser opens; `0.0.0.0` listens everywhere, and is nowhere to go to."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


# --- notes and figures -------------------------------------------------------------------------------------


def _writable(url: str, say: Callable[[str], None]) -> Storage | None:
    try:
        return Storage(url)
    except HpoError as error:
        say(f"the database takes no writes, so it is served read-only, without new notes: {error}")
        return None


_publishing = threading.Lock()
"""Of several plans one at a time: they are drawn by the same library."""


def _keep_published(
    publisher: Publisher | None, say: Callable[[str], None], on_ready: Callable[[], None]
) -> NoReturn:
    """Publish now and whenever something has changed; what goes wrong is tried again, but said once."""
    said = ""

    def attempt(publish: Callable[[], None]) -> None:
        nonlocal said
        try:
            with _publishing:
                publish()
        except Exception as error:  # whatever it is, people go on looking, and the next time may be better
            if str(error) != said:
                said = str(error)
                say(f"notes and figures could not be written: {said or type(error).__name__}")
                log.debug("while notes and figures were written", exc_info=True)

    if publisher is not None:
        attempt(publisher.notes_and_figures)
    on_ready()
    while True:
        if publisher is not None:
            attempt(publisher.pictures)  # they take longer: they are drawn while people look already
        time.sleep(REFRESH_SECONDS)
        if publisher is not None:
            attempt(publisher.notes_and_figures)


# --- the guard ---------------------------------------------------------------------------------------------


def guarded(app: Wsgi, study_ids: frozenset[int], *, read_only: bool, names: frozenset[str] | None) -> Wsgi:
    """Return the dashboard behind a guard.

    Args:
        app: the dashboard.
        study_ids: Optuna's ids of the plan's studies.
        read_only: refuse all methods but GET and HEAD.
        names: hosts that a request may be addressed to: a page of others, whose name is made to lead
            here, must not read or change anything. None: any.
    """

    def guard(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        refusal = _refusal(environ, study_ids, read_only=read_only, names=names)
        if refusal is not None:
            status, headers, reason = refusal
            text = json.dumps({"reason": reason}).encode()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
            start_response(status, [*head, *headers])
            return [text]
        is_artifact = environ["PATH_INFO"].startswith("/artifacts")

        def respond(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            safe = harmless(headers) if is_artifact else [*headers, ("X-Content-Type-Options", "nosniff")]
            return start_response(status, safe, *rest)

        with io.StringIO() as errors:
            reads = environ["REQUEST_METHOD"] in READING
            with database.reading() if reads else contextlib.nullcontext():
                body = app({**environ, "wsgi.errors": errors}, respond)
            if errors.getvalue():  # a traceback, of which our user needs the last line
                last = errors.getvalue().rstrip().rpartition("\n")[2]
                log.warning("%s: %s", printable(environ["PATH_INFO"]), printable(last))
        return body

    return guard


def _refusal(
    environ: dict[str, Any], study_ids: frozenset[int], *, read_only: bool, names: frozenset[str] | None
) -> tuple[str, list[tuple[str, str]], str] | None:
    """Return status, headers and words for a request that is not passed on."""
    path = environ["PATH_INFO"]
    if not (path.isascii() and path.isprintable()):
        # the dashboard leaves out bytes that are no UTF-8, reads every script's digits, and overlooks a line
        # end at the end: it would see another path than we look at
        return "400 Bad Request", [], "no page of the dashboard has such an address"
    host = environ.get("HTTP_HOST", "")
    if names is not None and _name(host) not in names:
        reason = f"{host!r} is not this dashboard; hpo dashboard serves other names with --host"
        return "403 Forbidden", [], reason
    if environ["REQUEST_METHOD"] in READING:
        return None
    if read_only:
        return (
            "405 Method Not Allowed",
            [("Allow", ", ".join(READING))],
            "this dashboard is read-only (hpo dashboard --read-only): it shows and changes nothing",
        )
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and urlsplit(origin).netloc != host:
        return "403 Forbidden", [], "another site's page may change nothing here"
    found = OF_THE_PLAN.fullmatch(path)
    if found and (found["study"] is None or int(found["study"]) in study_ids):
        reason = "studies and trials of a plan are not deleted, renamed or ended here: hpo builds on them"
        return "403 Forbidden", [], reason
    return None


def _name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def harmless(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return headers of an artifact that no browser obeys: pictures are shown, all else is saved."""
    kept = [
        (key, value)
        for key, value in headers
        if key.lower() not in ("access-control-allow-origin", "content-type", "content-disposition")
    ]
    kind = next((value for key, value in headers if key.lower() == "content-type"), "").strip().lower()
    found = SHOWN_TYPES.match(kind)
    if found is None:
        kept.append(("Content-Disposition", "attachment"))
    return [
        *kept,
        ("Content-Type", found[0] if found else "application/octet-stream"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "sandbox; default-src 'none'; img-src 'self'; media-src 'self'"),
    ]


# --- the server --------------------------------------------------------------------------------------------


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind as WSGIServer does, without asking the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a browser that leaves in the middle of an answer."""
        log.debug("a request ended early", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


@contextlib.contextmanager
def _serving(host: str, port: int | None, app: Wsgi) -> Iterator[WSGIServer]:
    """Serve in threads of its own while the context lasts."""
    with _server(host, port, app) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def _server(host: str, port: int | None, app: Wsgi) -> WSGIServer:
    kind = _Server6 if ":" in host else _Server
    if port is None:
        with contextlib.suppress(OSError, UnicodeError):
            return make_server(host, PORT, app, server_class=kind, handler_class=_Quiet)
        port = 0
    try:
        return make_server(host, port, app, server_class=kind, handler_class=_Quiet)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot listen there: {why}") from None


def _stop(number: int, _frame: object) -> NoReturn:
    """End what the main thread does, once; files and transactions stay whole."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
