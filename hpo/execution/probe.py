"""What `hpo doctor` tries on a database and on a checkpoint store; nothing is left behind.

What is tried in a database happens in a scratch study of its own, whose name no study file can have, beside
a plan that may be at work there.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median
from typing import Literal

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial

from hpo.errors import HpoError
from hpo.storage import database
from hpo.storage.storage import Storage
from hpo.training.blobs import BlobStore

State = Literal["ok", "warning", "wrong", "skipped"]

N_RACERS, N_RACED = 4, 16
RACE_SECONDS = 60
N_READS, N_WRITES = 40, 20
SLOW_SECONDS = 0.25
"""A trial of 11 epochs is about 15 writes: slower ones than this are felt."""
CLOCK_WARN_SECONDS = 5.0
SCRATCH_STUDY = re.compile(r"\.doctor-([0-9]+)-[0-9a-f]+")
"""No study file may be named so. The number says when, so that what a killed doctor left can be removed."""
SCRATCH_SECONDS = 3600

FAILURES = (HpoError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError, OSError, ValueError)
"""What a place that is not well raises."""


def why(error: BaseException) -> str:
    """Return what went wrong in one line, without the wrappings of Optuna and SQLAlchemy."""
    if isinstance(error, HpoError | OSError | ValueError):
        return " ".join(str(error).split()) or type(error).__name__
    return database.first_line(error)


def has_tables(url: str) -> bool:
    """Return whether Optuna's tables are there."""
    with database.short_lived_engine(url) as engine, engine.connect() as connection:
        return sqlalchemy.inspect(connection).has_table("studies")


def writable(url: str) -> tuple[State, str]:
    """Write a row and take it back; do not wait for a lock as long as a worker would."""
    insert = sqlalchemy.text("INSERT INTO studies (study_name) VALUES (:name)")
    try:
        with database.short_lived_engine(url) as engine, engine.connect() as connection:
            connection.execute(insert, {"name": scratch_name()})
            connection.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        return "wrong", f"{why(error)}; give the user the right to write, or end who holds a lock"
    return "ok", "a row was written and taken back"


def scratch_name() -> str:
    """Return a name for a scratch study."""
    return f".doctor-{time.time():.0f}-{uuid.uuid4().hex[:12]}"


@contextmanager
def scratch_trials(storage: Storage) -> Iterator[list[int]]:
    """Lend ids of waiting trials in a study that no plan knows and that is gone afterwards."""
    for name in storage.study_attrs():
        found = SCRATCH_STUDY.fullmatch(name)
        if found and time.time() - int(found[1]) > SCRATCH_SECONDS:
            storage.for_optuna.delete_study(storage.study_id(name))
    name = scratch_name()
    storage.create_study(name, {})
    study_id = storage.study_id(name)
    try:
        trials = {str(n): create_trial(state=TrialState.WAITING) for n in range(N_RACED + 1)}
        storage.enqueue(study_id, trials)
        yield [trial_id for _, trial_id in storage.waiting([study_id], len(trials))]
    finally:
        storage.for_optuna.delete_study(study_id)


def claims(url: str, trial_ids: Sequence[int]) -> tuple[State, str]:
    """Return several processes claim the same trials at once; each must go to one of them."""
    what = f"{len(trial_ids)} trials, {N_RACERS} processes at once"
    with subprocess.Popen(
        [sys.executable, "-c", "from hpo.execution.probe import race; race()"],
        # by environment, not by argument: a URL may hold a password, and arguments are public
        env={**os.environ, "HPO_STORAGE": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as racers:
        try:
            order = json.dumps({"n_racers": N_RACERS, "trial_ids": list(trial_ids)})
            answers, said = racers.communicate(order, RACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "wrong", f"{what}: no answer for {RACE_SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(racers.pid, signal.SIGKILL)
    if racers.returncode:
        return "wrong", f"{what}: one of them failed: {(said.strip() or 'it was killed').splitlines()[-1]}"
    won = Counter(int(trial_id) for trial_id in answers.split())
    n_wrong = sum(won[trial_id] != 1 for trial_id in trial_ids)
    if n_wrong:
        return "wrong", (
            f"{what}: {n_wrong} were not claimed exactly once, and so would be trained twice or never; "
            "this database does not lock: put it on a local disk, or use PostgreSQL"
        )
    return "ok", f"{what}: each trial was claimed once"


def race() -> None:
    """Copy itself; the copies claim the same trials at once. An order on stdin, what they won on stdout.

    Processes, not threads: SQLite's locks on the file are held by processes, and they fail on a bad disk.
    Copies, because four that each import Optuna and SQLAlchemy take 4 CPU seconds.
    """
    order = json.load(sys.stdin)
    (opened, opening), (gate, gatekeeper) = os.pipe(), os.pipe()
    racers = []
    for _ in range(order["n_racers"]):
        if pid := os.fork():
            racers.append(pid)
            continue
        os.close(gatekeeper)
        code = 1
        try:
            storage = Storage(os.environ["HPO_STORAGE"])
            os.close(opening)
            os.read(gate, 1)  # it ends for all of them at once
            won = [i for i in order["trial_ids"] if storage.claim(i, {"doctor": os.getpid()})]
            os.write(1, f"{' '.join(map(str, won))}\n".encode())  # in one piece
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(opening)
    os.read(opened, 1)  # it ends when the last of them has opened the database, or failed
    os.close(gatekeeper)
    codes = [os.waitpid(pid, 0)[1] for pid in racers]
    sys.exit(any(codes))


def latency(storage: Storage, trial_id: int) -> tuple[State, str]:
    """Return how long it takes to read and to write a trial."""
    reads = [_seconds(lambda: storage.trial(trial_id)) for _ in range(N_READS)]
    writes = [_seconds(lambda n=n: storage.write(trial_id, attrs={"n": n})) for n in range(N_WRITES)]  # type: ignore[misc]
    text = f"a read takes {_milliseconds(reads)}, a write {_milliseconds(writes)}"
    if max(median(reads), median(writes)) > SLOW_SECONDS:
        return "warning", f"{text}: slow; use a database that is nearer, or a disk that is faster"
    return "ok", text


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _milliseconds(times: Sequence[float]) -> str:
    p95 = sorted(times)[math.ceil(0.95 * len(times)) - 1]
    return f"{1000 * median(times):.1f} ms (19 of 20 at most {1000 * p95:.1f})"


_CLOCKS = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(now(6))",
    "mariadb": "SELECT unix_timestamp(now(6))",
}


def clock(url: str) -> tuple[State, str]:
    """Return how far the clocks of server and machine differ. Leases are counted by the server's alone."""
    query = _CLOCKS.get(database.parse(url).get_backend_name())
    if query is None:
        return "ok", "the database uses this machine's clock"
    looks = []
    with database.short_lived_engine(url) as engine, engine.connect() as connection:
        for _ in range(5):
            began = time.time()
            theirs = float(connection.exec_driver_sql(query).scalar_one())
            ended = time.time()
            looks.append((ended - began, theirs - (began + ended) / 2))
    difference = min(looks)[1]  # of the quickest answer
    text = f"the server's is {abs(difference):.1f} s {'ahead' if difference > 0 else 'behind'}"
    if abs(difference) > CLOCK_WARN_SECONDS:
        return "warning", f"{text}: work is safe, times that are shown may be wrong; set both by NTP"
    return "ok", text


def checkpoint_store(store: BlobStore) -> tuple[State, str]:
    """Write a file again and again while it is read: it must never be seen half written."""
    contents = [bytes([n]) * 2**18 for n in range(8)]
    folder = scratch_name()
    name = f"{folder}/probe"
    try:
        try:
            store.write(name, contents[0])
            with _reading(store, name) as found:
                for content in contents[1:]:
                    store.write(name, content)
            found.add(last := store.read(name))
            store.rename(name, f"{name}.bad")
            renamed = store.names(folder) == ["probe.bad"]
        finally:
            store.remove_folder(folder)
    except OSError as error:
        text = error.strerror or str(error)
        return "wrong", f"{text}; give it room and the right to write, or name other --checkpoints"
    if not renamed or last != contents[-1] or found - set(contents):
        return "wrong", "a file was seen half written, or came back otherwise; name other --checkpoints"
    return "ok", "written, replaced, read back, renamed, removed"


@contextmanager
def _reading(store: BlobStore, name: str) -> Iterator[set[bytes]]:
    """Read a file all the time, as a worker does that resumes a trial; lend what it saw."""
    found: set[bytes] = set()
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            with suppress(FileNotFoundError):
                found.add(store.read(name))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        stopped.set()
        reader.join()
