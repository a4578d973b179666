"""`hpo doctor`: whether database, data, checkpoints, this machine and a recipe are fit for work."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import psutil
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial

from hpo._process import n_cores
from hpo.errors import ConflictError, HpoError, InputError
from hpo.planning.compatibility import check_sqlite_is_local, check_versions, unshared_checkpoints
from hpo.planning.plan import Plan, versions
from hpo.space.schema import Schema
from hpo.storage import database
from hpo.storage.storage import Storage
from hpo.training.blobs import BlobStore, FolderBlobs, open_blobs

if TYPE_CHECKING:
    from hpo.training.dry_run import DryRun, LoopRun

State = Literal["ok", "warning", "wrong", "skipped"]

LOW_BYTES, EMPTY_BYTES = 2**30, 100 * 2**20
N_RACERS, N_RACED = 4, 16
RACE_SECONDS = 60
N_READS, N_WRITES = 40, 20
SLOW_SECONDS = 0.25
"""A trial of 11 epochs is about 15 writes: slower ones than this are felt."""
CLOCK_WARN_SECONDS = 5.0
SCRATCH_STUDY = re.compile(r"\.doctor-([0-9]+)-[0-9a-f]+")
"""No study file may be named so. The number says when, so that what a killed doctor left can be removed."""
SCRATCH_SECONDS = 86_400  # far more than the clocks of two machines differ

_FAILURES = (HpoError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError, OSError, ValueError)
"""What a place that is not well raises."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """`wrong`: work would fail or be lost; `skipped`: could not be looked at, or has no meaning here."""
    text: str
    """One line: what was found and, where it is not well, what to do."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo doctor --json` prints it."""
        return asdict(self)


def examine(
    url: str, *, out: Path, checkpoints: str | None = None, data: str | None = None
) -> Iterator[Check]:
    """Look at everything that a worker started here would need, one thing after the other.

    Without a plan it looks at what can be looked at; a SQLite database that does not exist is not made, one
    in a temporary folder beside its place is tried instead. Of a server's empty database the tables are made.

    Args:
        url: of the database.
        out: folder of the model and the logs.
        checkpoints: folder or fsspec URL of the checkpoints; default `out/checkpoints`.
        data: where the plan's data are on this machine, if elsewhere than where it was created.

    Raises:
        InputError: the URL is none of a database that several processes can share.
    """
    plan = yield from _database(url)
    yield _checked("data", lambda: _data(plan, data))
    yield _checked("devices", lambda: _devices(plan))
    yield _versions(plan)
    yield _checked("checkpoints", lambda: _checkpoints(plan, out, checkpoints))
    yield _space(out)


@dataclass(frozen=True)
class RecipeCheck:
    """What a few steps of a recipe on real data told."""

    recipe: str
    data: str
    device: str
    precision: str
    schema: Schema
    metrics: Mapping[str, str]
    """Directions by name, the objective first."""
    found: DryRun | LoopRun

    def to_json(self) -> dict[str, Any]:
        """Return the record as `hpo doctor --recipe --json` prints it."""
        kind = "network" if hasattr(self.found, "output_shape") else "loop"
        return {
            "recipe": self.recipe,
            "data": self.data,
            "device": self.device,
            "precision": self.precision,
            "parameters": self.schema.model_dump(mode="json", exclude_defaults=True)["parameters"],
            "constraints": list(self.schema.constraints),
            "metrics": dict(self.metrics),
            kind: asdict(self.found),
        }


def try_recipe(recipe: str, data: str | None, device: str, precision: str) -> RecipeCheck:
    """Try a recipe on data, without a plan: a few steps of its network, or an epoch of its own loop.

    Args:
        recipe: as `--recipe` names it.
        data: as `--data` names it; default: the digits, which every machine has.
        device: as in `Options`.
        precision: as in `Options`.

    Raises:
        InputError: recipe, data or device cannot be used; the text says where in the user's file.
    """
    from hpo.training.registry import load_recipe

    named = load_recipe(recipe)  # what is wrong with it is refused before torch is imported
    import torch

    from hpo.data import load_training, prepare
    from hpo.training.devices import resolve_device, resolve_precision
    from hpo.training.dry_run import dry_run

    training = load_training(prepare(data or "digits"))
    resolved = resolve_device(device)
    exactly = resolve_precision(precision, resolved)
    torch.set_num_threads(1)  # as a worker has, unless it is told otherwise
    try:
        found = dry_run(named, training, named.recipe.schema.defaults, device=resolved, precision=exactly)
    except InputError as error:
        if data is not None:
            raise
        raise InputError(f"{error} (tried on digits; --data names others)") from error
    return RecipeCheck(
        recipe=named.name,
        data=training.source,
        device=resolved,
        precision=exactly,
        schema=named.recipe.schema,
        metrics=dict(named.recipe.metrics),
        found=found,
    )


def _checked(name: str, look: Callable[[], tuple[State, str]]) -> Check:
    """Return what a look found; one that failed has found something wrong."""
    try:
        return Check(name, *look())
    except _FAILURES as error:
        return Check(name, "wrong", _why(error))


def _why(error: BaseException) -> str:
    """Return what went wrong in one line, without the wrappings of Optuna and SQLAlchemy."""
    if isinstance(error, HpoError | OSError | ValueError):
        return " ".join(str(error).split()) or type(error).__name__
    return database.first_line(error)


# --- the database --------------------------------------------------------------------------------------


def _database(url: str) -> Generator[Check, None, Plan | None]:
    """Look at the database; return the plan that is in it."""
    file, name = database.sqlite_file(url), database.shown(url)
    try:
        is_new = (file is not None and not file.exists()) or not database.has_tables(url)
        if is_new and file is not None:
            # nor in a file that is there: it may be somebody else's
            yield from _in_temporary_database(file)
            yield from (_file_system(file), Check("plan", "skipped", f"none in {name} yet"))
            return None
        if is_new:
            Storage(url, create=True)
        reader = Storage(url, reader=True)  # a plan can be read while somebody holds the lock to write
    except _FAILURES as error:
        text = _why(error)
        if not isinstance(error, HpoError):
            text = f"{name}: cannot be reached: {text}; start the server, or correct --storage"
        yield from _no_database(text)
        yield from (_file_system(file), *_skipped("no database", "plan"))
        return None
    made = "; its tables were missing and have been made" if is_new else ""
    yield Check("storage", "ok", f"{name}: reachable{made}")
    plan, found = _plan(reader)
    yield from _tried(url)
    yield from (_file_system(file), found)
    return plan


def _plan(reader: Storage) -> tuple[Plan | None, Check]:
    plan = None
    try:
        plan = Plan.find(reader)
        if plan is None:
            return None, Check("plan", "skipped", f"none in {reader.name} yet")
        check_sqlite_is_local(plan)
    except HpoError as error:
        return plan, Check("plan", "wrong", _why(error))
    return plan, Check("plan", "ok", f"{len(plan.specs)} studies, then the final stage")


def _no_database(why: str) -> list[Check]:
    return [
        Check("storage", "wrong", why),
        *_skipped("no database", "writable", "claims", "latency", "clock"),
    ]


def _skipped(why: str, *names: str) -> list[Check]:
    return [Check(name, "skipped", why) for name in names]


def _in_temporary_database(file: Path) -> list[Check]:
    folder = _nearest_folder(file.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as temporary:
            url = f"sqlite:///{temporary}/hpo.db"
            Storage(url, create=True)
            checks = _tried(url)
    except _FAILURES as error:
        why = f"no database here, and none can be made in {folder}: {_why(error)}; name another --out"
        return _no_database(f"{file}: {why}")
    text = f"{file}: no database here yet, one can be made; a temporary one in {folder} was tried"
    return [Check("storage", "ok", text), *checks]


def _tried(url: str) -> list[Check]:
    clock = _checked("clock", lambda: _try_clock(url))
    writable = _checked("writable", lambda: _try_writing(url))
    if writable.state == "wrong":
        return [writable, *_skipped("not writable", "claims", "latency"), clock]
    try:
        storage = Storage(url)
        with _scratch_trials(storage) as (*raced, timed):
            claims = _checked("claims", lambda: _try_claims(url, raced))
            latency = _checked("latency", lambda: _try_latency(storage, timed))
    except _FAILURES as error:
        why = f"{_why(error)}; give it room and the right to write"
        return [Check("writable", "wrong", why), *_skipped("not writable", "claims", "latency"), clock]
    return [writable, claims, latency, clock]


def _file_system(file: Path | None) -> Check:
    if file is None:
        return Check("file system", "skipped", "the database is a server's")
    folder = _nearest_folder(file.parent)
    kind = database.filesystem_kind(folder)
    if kind in database.NETWORK_FILE_SYSTEMS:
        return Check(
            "file system",
            "wrong",
            f"{folder}: {kind}, a network's, where SQLite loses writes; put --out on a local disk, or use "
            "--storage postgresql+psycopg://HOST/NAME",
        )
    return Check("file system", "ok", f"{folder}: {kind or 'of an unknown kind'}")


# --- what is tried in a database, in a scratch study whose name no study file can have; nothing is left ---


def _try_writing(url: str) -> tuple[State, str]:
    """Write a row and take it back; do not wait for a lock as long as a worker would."""
    insert = sqlalchemy.text("INSERT INTO studies (study_name) VALUES (:name)")
    try:
        with database.short_lived_connection(url, impatient=True) as connection:
            connection.execute(insert, {"name": _scratch_name()})
            connection.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        return "wrong", f"{_why(error)}; give the user the right to write, or end who holds a lock"
    return "ok", "a row was written and taken back"


def _scratch_name() -> str:
    """Return a name for a scratch study."""
    return f".doctor-{time.time():.0f}-{uuid.uuid4().hex[:12]}"


@contextmanager
def _scratch_trials(storage: Storage) -> Iterator[list[int]]:
    """Lend ids of waiting trials in a study that no plan knows and that is gone afterwards."""
    for name in storage.study_attrs():
        found = SCRATCH_STUDY.fullmatch(name)
        if found and time.time() - int(found[1]) > SCRATCH_SECONDS:
            storage.for_optuna.delete_study(storage.study_id(name))
    name = _scratch_name()
    storage.create_study(name, {}, "maximize")
    study_id = storage.study_id(name)
    try:
        trials = {str(n): create_trial(state=TrialState.WAITING) for n in range(N_RACED + 1)}
        storage.enqueue(study_id, trials)
        yield [trial_id for _, trial_id in storage.waiting([study_id], len(trials))]
    finally:
        storage.for_optuna.delete_study(study_id)


def _try_claims(url: str, trial_ids: Sequence[int]) -> tuple[State, str]:
    """Let several processes claim the same trials at once; each must go to one of them."""
    if sys.platform == "win32":
        return "skipped", "several processes at once: cannot be tried on Windows"
    what = f"{len(trial_ids)} trials, {N_RACERS} processes at once"
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
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
            answers, said = _answer(racers, order)
        except subprocess.TimeoutExpired:
            return "wrong", f"{what}: no answer, and nothing done for {RACE_SECONDS} s"
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


def _answer(racers: subprocess.Popen[str], order: str) -> tuple[str, str]:
    """Return what processes print when they have ended.

    Raises:
        TimeoutExpired: they all stand still. On a busy machine they may take as long as they like.
    """
    used, unsent = -1.0, [order]
    while True:
        try:
            return racers.communicate(unsent.pop() if unsent else None, RACE_SECONDS)
        except subprocess.TimeoutExpired:
            before, used = used, _cpu_seconds(racers.pid)
            if used == before:
                raise


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and those below it have used."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times())
    return total


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


def _try_latency(storage: Storage, trial_id: int) -> tuple[State, str]:
    """Return how long it takes to read and to write a trial."""
    reads = [_seconds(partial(storage.trial, trial_id)) for _ in range(N_READS)]
    writes = [_seconds(partial(storage.write, trial_id, attrs={"n": n})) for n in range(N_WRITES)]
    text = f"a read takes {_milliseconds(reads)}, a write {_milliseconds(writes)}"
    if max(median(reads), median(writes)) > SLOW_SECONDS:
        why = "use a database that is nearer or a faster disk, unless it is this machine that is busy"
        return "warning", f"{text}: slow; {why}"
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


def _try_clock(url: str) -> tuple[State, str]:
    """Return how far the clocks of server and machine differ. Leases are counted by the server's alone."""
    query = _CLOCKS.get(database.parse(url).get_backend_name())
    if query is None:
        return "ok", "the database uses this machine's clock"
    looks = []
    with database.short_lived_connection(url) as connection:
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


# --- the plan, and this machine -------------------------------------------------------------------------


def _data(plan: Plan | None, given: str | None) -> tuple[State, str]:
    # what reads pictures, which the processes that race do without
    from hpo.data import load_training, prepare
    from hpo.execution.plan_data import load_plan_data

    if plan is None:
        if given is None:
            return "skipped", "no plan to compare with, and no --data"
        training = load_training(prepare(given))
        return (
            "ok",
            f"{training.source}: can be read, fingerprint {training.fingerprint}; no plan to compare with",
        )
    _, training = load_plan_data(plan, given)
    return "ok", f"{training.source}: fingerprint {training.fingerprint}, as in the plan"


def _devices(plan: Plan | None) -> tuple[State, str]:
    import torch

    from hpo.execution.context import check_machine
    from hpo.training.devices import resolve_precision
    from hpo.training.fused import triton_hindrance

    names = []
    for number in range(torch.cuda.device_count()):
        hindrance = triton_hindrance(f"cuda:{number}")
        kernels = (
            f"plain kernels, as Triton's cannot be used: {hindrance}" if hindrance else "Triton's kernels"
        )
        names.append(f"cuda:{number} {torch.cuda.get_device_name(number)} ({kernels})")
    if torch.backends.mps.is_available():
        names.append("an Apple GPU (mps, untested)")
    native = "native" if resolve_precision("auto", "cpu") == "bf16" else "emulated"
    here = ", ".join([f"{n_cores()} cores", f"bf16 on them {native}", *(names or ["no CUDA device"])])
    if plan is None:
        return "ok", here
    wanted = plan.identity
    text = f"{here}; the plan: {wanted.precision} on {wanted.device_text}, threads a worker: {wanted.threads}"
    try:
        device = check_machine(plan)
    except ConflictError as error:
        return "wrong", f"{text}; {error}"
    if wanted.precision == "bf16" and resolve_precision("auto", device) != "bf16":
        return "warning", f"{text}, which is slow here; for mixed machines create plans with --precision fp32"
    if device == "mps":
        return "warning", f"{text}; hpo has never been tested on mps: compare a trial with one on the CPU"
    return "ok", text


def _versions(plan: Plan | None) -> Check:
    here = versions()
    text = ", ".join(f"{package} {version}" for package, version in here.items())
    if plan is None:
        return Check("versions", "ok", text)
    other = {
        package: version for package, version in plan.created_with.items() if here.get(package) != version
    }
    if not other:
        return Check("versions", "ok", f"{text}, as in the plan")
    text += "; the plan: " + ", ".join(f"{package} {version}" for package, version in other.items())
    try:
        check_versions(plan)
    except ConflictError:
        return Check("versions", "wrong", f"{text}; install the same major versions")
    if "torch" in other:
        return Check("versions", "warning", f"{text}; results may differ in their last bits")
    return Check("versions", "ok", text)


def _checkpoints(plan: Plan | None, out: Path, given: str | None) -> tuple[State, str]:
    state, text = _tried_blobs(given or str(out / "checkpoints"))
    unshared = unshared_checkpoints(plan, out, given) if plan is not None else None
    if unshared is None or state == "wrong":
        return state, text
    return "warning", f"{text}; {unshared}"


def _tried_blobs(url: str) -> tuple[State, str]:
    store = open_blobs(url)
    if not isinstance(store, FolderBlobs):
        state, text = _try_blobs(store)
        return state, f"{url}: {text}"
    there = _nearest_folder(store.root)  # a folder that is to be made is made by the first worker
    state, text = _try_blobs(FolderBlobs(there))
    room, free = _free(there)
    where = f"{there}" if there == store.root.absolute() else f"{url}: is still to be made; in {there}"
    return (state, f"{where}: {text}") if state == "wrong" else (room, f"{where}: {text}; {free}")


def _try_blobs(store: BlobStore) -> tuple[State, str]:
    """Write a file again and again while it is read: it must never be seen half written."""
    contents = [bytes([n]) * 2**18 for n in range(8)]
    folder = _scratch_name()
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


def _space(out: Path) -> Check:
    from hpo.data.cache import cache_folder

    looks = [(folder, *_free(_nearest_folder(folder))) for folder in (out, cache_folder())]
    states = {state for _, state, _ in looks}
    worst: State = next(state for state in ("wrong", "warning", "ok") if state in states)
    return Check("space", worst, "; ".join(f"{folder}: {text}" for folder, _, text in looks))


def _free(folder: Path) -> tuple[State, str]:
    n_bytes = shutil.disk_usage(folder).free
    text = f"{n_bytes / 2**30:.1f} GiB free"
    if n_bytes < EMPTY_BYTES:
        return "wrong", f"{text}, make room"
    return ("warning", f"{text}, not much") if n_bytes < LOW_BYTES else ("ok", text)


def _nearest_folder(path: Path) -> Path:
    """Return the folder, or the one above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


if __name__ == "__main__":
    race()
