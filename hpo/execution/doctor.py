"""`hpo doctor`: whether database, data, checkpoints and this machine are fit for a plan's work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpo.errors import HpoError
from hpo.execution import probe
from hpo.execution.probe import State
from hpo.planning.compatibility import check_sqlite_is_local, unshared_checkpoints
from hpo.planning.manifest import MAJOR_VERSIONS
from hpo.planning.plan import Plan, versions
from hpo.storage import database
from hpo.storage.storage import Storage
from hpo.training.blobs import FolderBlobs, open_blobs

LOW_BYTES, EMPTY_BYTES = 2**30, 100 * 2**20


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


def _checked(name: str, look: Callable[[], tuple[State, str]]) -> Check:
    """Return what a look found; one that failed has found something wrong."""
    try:
        return Check(name, *look())
    except probe.FAILURES as error:
        return Check(name, "wrong", probe.why(error))


# --- the database --------------------------------------------------------------------------------------


def _database(url: str) -> Generator[Check, None, Plan | None]:
    """Look at the database; return the plan that is in it."""
    file, name = database.sqlite_file(url), database.shown(url)
    try:
        is_new = (file is not None and not file.exists()) or not probe.has_tables(url)
        if is_new and file is not None:
            # nor in a file that is there: it may be somebody else's
            yield from _in_temporary_database(file)
            yield from (_file_system(file), Check("plan", "skipped", f"none in {name} yet"))
            return None
        if is_new:
            Storage(url, create=True)
        reader = Storage(url, reader=True)  # a plan can be read while somebody holds the lock to write
    except probe.FAILURES as error:
        text = probe.why(error)
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
        return plan, Check("plan", "wrong", probe.why(error))
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
    except probe.FAILURES as error:
        why = f"no database here, and none can be made in {folder}: {probe.why(error)}; name another --out"
        return _no_database(f"{file}: {why}")
    text = f"{file}: no database here yet, one can be made; a temporary one in {folder} was tried"
    return [Check("storage", "ok", text), *checks]


def _tried(url: str) -> list[Check]:
    clock = _checked("clock", lambda: probe.clock(url))
    writable = _checked("writable", lambda: probe.writable(url))
    if writable.state == "wrong":
        return [writable, *_skipped("not writable", "claims", "latency"), clock]
    try:
        storage = Storage(url)
        with probe.scratch_trials(storage) as (*raced, timed):
            claims = _checked("claims", lambda: probe.claims(url, raced))
            latency = _checked("latency", lambda: probe.latency(storage, timed))
    except probe.FAILURES as error:
        why = f"{probe.why(error)}; give it room and the right to write"
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


# --- the plan, and this machine -------------------------------------------------------------------------


def _data(plan: Plan | None, given: str | None) -> tuple[State, str]:
    # torch, which the processes that race do without
    from hpo.data import load_training, prepare
    from hpo.execution.context import load_plan_data

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

    from hpo.training.devices import n_cores, resolve_device, resolve_precision

    names = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    native = "native" if resolve_precision("auto", "cpu") == "bf16" else "emulated"
    here = ", ".join([f"{n_cores()} cores", f"bf16 on them {native}", *(names or ["no CUDA device"])])
    if plan is None:
        return "ok", here
    wanted, options = plan.identity, plan.options
    device = resolve_device("cpu" if wanted.device == "cpu" else options.device)
    text = f"{here}; the plan: {wanted.precision} on {wanted.device}, threads a worker: {wanted.threads}"
    if device.partition(":")[0] != wanted.device:
        return "wrong", f"{text}; this machine cannot serve it"
    if wanted.threads > n_cores():
        return "wrong", f"{text}; there are not so many cores: give this machine's workers more"
    resolve_precision(wanted.precision, device)
    if wanted.precision == "bf16" and resolve_precision("auto", device) != "bf16":
        state: State = "wrong" if options.precision == "auto" else "warning"
        return state, f"{text}, which is slow here; for mixed machines create plans with --precision fp32"
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
    major = [package for package in MAJOR_VERSIONS if package in other]
    if any(here[package].split(".")[0] != other[package].split(".")[0] for package in major):
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
        state, text = probe.checkpoint_store(store)
        return state, f"{url}: {text}"
    there = _nearest_folder(store.root)  # a folder that is to be made is made by the first worker
    state, text = probe.checkpoint_store(FolderBlobs(there))
    room, free = _free(there)
    where = f"{there}" if there == store.root.absolute() else f"{url}: is still to be made; in {there}"
    return (state, f"{where}: {text}") if state == "wrong" else (room, f"{where}: {text}; {free}")


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
