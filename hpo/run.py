"""`hpo run`: a plan is written or found, local workers are started, watched and replaced.

The workers are ordinary `hpo worker` processes; this module only starts and stops them. Everything they
do goes through the database, so further workers may be added by hand, on this machine or another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hpo.advance import advance, close_lost, require_result
from hpo.compute import n_cores, resolve_device, resolve_precision
from hpo.config import NetworkConfig
from hpo.data import TrainingData, load_training, prepare
from hpo.database import sqlite_file
from hpo.errors import InputError, RunError, did_you_mean
from hpo.final import fetch_files
from hpo.network import build_network
from hpo.plan import Identity, Options, Plan, published_config, read_studies, with_ancestors
from hpo.queue import Queue, SlotState
from hpo.results import final_result
from hpo.spec import StudySpec, shipped_studies
from hpo.storage import Storage
from hpo.store import open_store
from hpo.worker import PARENT_VARIABLE

TICK_SECONDS = 1.0
STOP_SECONDS = 10.0
MAX_RESTARTS = 20
"""Of local workers in a row without a trial that ended meanwhile."""


def default_storage(out: Path) -> str:
    """The URL of the database in an output folder."""
    return f"sqlite:///{out / 'hpo.db'}"


def open_plan(
    out: Path,
    *,
    storage: str | None = None,
    studies: Path | None = None,
    names: Sequence[str] = (),
    workers: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> Plan:
    """Finds the plan of an output folder or database, or writes it.

    Args:
        out: output folder.
        storage: database URL; default `out/hpo.db`.
        studies: folder of study files; default the shipped ones. They must agree with a plan that exists.
        names: studies that are going to be asked for, to be checked before anything is written.
        workers: local workers that share the cores; None: one a core.
        given: the options that the user gave, of those in `Options`.

    Raises:
        InputError: something given cannot be used, or contradicts the plan that is there.
    """
    given = dict(given or {})
    if "data" in given:
        given["data"] = _absolute(given["data"])
    options = Options.from_given(given)
    specs = read_studies(studies or shipped_studies())
    url = storage or default_storage(out)
    plan = _existing_plan(url)
    if plan is not None:
        plan.refuse_contradiction(given, specs if studies is not None else None, studies)
        plan.with_ancestors(names)
        return plan
    # everything that can be refused is refused before anything is written: a mistake must leave no plan
    with_ancestors(specs, names, options.inherit)
    if options.inherit == "published":
        for study in specs.values():
            if study.inherits is not None:
                published_config(specs, study.inherits)
    refuse_searched_epochs(options, specs)
    identity = identify(options, workers or n_cores())
    database = Storage(url, create=True)
    with database.creating():
        # another process may have been quicker while the data were read
        plan = Plan.find(database)
        if plan is None:
            return Plan.create(database, specs, options, identity)
    plan.refuse_contradiction(given, specs, studies or shipped_studies())
    return plan


def refuse_searched_epochs(options: Options, specs: Mapping[str, StudySpec]) -> None:
    """Checks that `--epochs` overrides no axis.

    Raises:
        InputError: a study searches the epochs.
    """
    searching = [name for name, study in specs.items() if "epochs" in study.search]
    if options.epochs is not None and searching:
        raise InputError(
            f"--epochs {options.epochs}: study {searching[0]!r} searches epochs; leave one of them out"
        )


def _existing_plan(url: str) -> Plan | None:
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return None
    return Plan.find(Storage(url, create=True))


def identify(options: Options, workers: int) -> Identity:
    """Resolves what must be the same wherever the plan is worked on; prepares the data.

    Raises:
        InputError: data, limits, device or precision cannot be had.
    """
    device = resolve_device(options.device)
    data = training_data(options)
    # images that no network can take are refused here, not in every trial
    build_network(NetworkConfig(), data.image_shape, len(data.class_names), torch.Generator())
    return Identity(
        fingerprint=data.fingerprint,
        image_shape=data.image_shape,
        class_names=data.class_names,
        n_train=len(data.train.labels),
        n_valid=len(data.valid.labels),
        precision=resolve_precision(options.precision, device),
        device=device.partition(":")[0],
        # two processes of one thread train 1.5 times as many images a second as one of two threads
        threads=max(1, n_cores() // workers),
    )


def training_data(options: Options) -> TrainingData:
    """The training and validation images that the options name."""
    entry = prepare(options.data, image_size=options.image_size)
    return load_training(entry, limit_train=options.limit_train, limit_valid=options.limit_valid)


def run_plan(
    names: Sequence[str] = (),
    *,
    out: Path | str = "hpo-out",
    storage: str | None = None,
    studies: Path | str | None = None,
    workers: int | None = None,
    **options: Any,
) -> Plan:
    """Writes or finds a plan and works on it until it has ended: `hpo run` as a function.

    Args:
        names: only these studies and the earlier ones they need, without a final stage; empty: all.
        out: output folder.
        storage: database URL; default `out/hpo.db`.
        studies: folder of study files; default the shipped ones.
        workers: local processes; None: one a core.
        options: those that change results, as `hpo.plan.Options` names them (`data`, `epochs`, `seeds`, …).

    Raises:
        InputError: something given cannot be used, or contradicts the plan that is there.
        RunError: points failed for good, or workers cannot be kept alive.
        KeyboardInterrupt: stopped by a signal; the same call goes on.
    """
    for key in options:
        if key not in Options.model_fields:
            raise InputError(f"{key} is not an option; {did_you_mean(key, Options.model_fields)}")
    folder = Path(studies) if studies is not None else None
    plan = open_plan(Path(out), storage=storage, studies=folder, names=names, workers=workers, given=options)
    if run(plan, out=Path(out), studies=names, workers=workers) is not None:
        raise KeyboardInterrupt
    return plan


def find_plan(out: Path | str = "hpo-out", *, storage: str | None = None) -> Plan:
    """The plan of an output folder or database, to be read.

    Raises:
        MissingError: there is none.
    """
    return Plan.open(Storage(storage or default_storage(Path(out)), reader=True))


def run(
    plan: Plan,
    *,
    out: Path,
    studies: Sequence[str] = (),
    workers: int | None = None,
    checkpoints: str | Path | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> int | None:
    """Works on a plan with local workers until it has ended.

    Args:
        plan: as from `open_plan`.
        out: folder for checkpoints, logs and the model.
        studies: only these and the earlier ones they need, without a final stage; empty: the whole plan.
        workers: how many processes; None: one for each so many cores as the plan's threads.
        checkpoints: folder or fsspec URL of the checkpoints; default `out/checkpoints`.
        on_tick: called about once a second, to show what the database says.

    Returns:
        The signal that stopped it, or None.

    Raises:
        InputError: an unknown study.
        RunError: points failed for good, or workers cannot be kept alive.
    """
    names = plan.with_ancestors(studies) if studies else None
    refuse_changed_data(plan)
    close_lost(plan)
    if not advance(plan, names):
        count = workers or max(1, n_cores() // plan.identity.threads)
        stopped_by = _Crew(plan, out, studies, checkpoints, count).work(names, on_tick)
        if stopped_by is not None:
            return stopped_by
    on_tick()
    require_result(plan, names)
    if names is None:
        fetch_files(final_result(plan), open_store(checkpoints or out / "checkpoints"), out)
    return None


def refuse_changed_data(plan: Plan) -> None:
    """Checks that the plan's data are still what they were.

    Raises:
        ConflictError: the fingerprints differ.
        DataError: the data cannot be read any more.
    """
    data = training_data(plan.options)
    plan.refuse_other_data(data.fingerprint, data.source)


class _Crew:
    """The local worker processes of one `hpo run`."""

    def __init__(
        self, plan: Plan, out: Path, studies: Sequence[str], checkpoints: str | Path | None, count: int
    ) -> None:
        self._plan, self._count = plan, count
        self._logs = out / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._command = [sys.executable, "-m", "hpo", "worker", "--out", str(out), *studies]
        self._environment = {
            # what the workers are to do the plan says, not the options of whoever started this process
            **{key: value for key, value in os.environ.items() if key == "HPO_CACHE" or key[:4] != "HPO_"},
            # by environment, not by argument: a URL may hold a password, and arguments are public
            "HPO_STORAGE": plan.storage.url,
            PARENT_VARIABLE: str(os.getpid()),
            # before torch is imported, or its pools are as large as the machine
            "OMP_NUM_THREADS": str(plan.identity.threads),
        }
        if checkpoints is not None:
            self._environment["HPO_CHECKPOINTS"] = str(checkpoints)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._n_ended_before = -1

    def work(self, names: Sequence[str] | None, on_tick: Callable[[], None]) -> int | None:
        """Keeps the workers alive until the plan has ended; returns the signal that stopped it, or None."""
        try:
            with _signals() as received:
                for number in range(1, self._count + 1):
                    self._start(number)
                while self._workers:
                    on_tick()
                    time.sleep(TICK_SECONDS)
                    if received:
                        self._stop(received)
                        on_tick()
                        return received[0]
                    for number, worker in list(self._workers.items()):
                        code = worker.poll()
                        if code is not None:
                            del self._workers[number]
                        if code:
                            self._replace(number, code, names)
        finally:
            self._kill()
        return None

    def _replace(self, number: int, code: int, names: Sequence[str] | None) -> None:
        n_ended = self._n_ended(names)
        self._restarts = self._restarts + 1 if n_ended == self._n_ended_before else 0
        self._n_ended_before = n_ended
        # one that was killed is replaced; one that gave up (1) or refused (2) would do so again
        if code in (1, 2) or self._restarts > MAX_RESTARTS:
            kind = InputError if code == 2 else RunError
            raise kind(f"worker {number} ended with code {code}: {self._last_words(number)}")
        self._start(number)

    def _start(self, number: int) -> None:
        with self._log(number).open("ab") as log:
            # a session of its own: Ctrl-C reaches this process alone, which then stops its workers in order
            self._workers[number] = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _stop(self, received: Sequence[int]) -> None:
        for worker in self._workers.values():
            worker.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and len(received) < 2:
            if all(worker.poll() is not None for worker in self._workers.values()):
                return
            time.sleep(0.05)

    def _kill(self) -> None:
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def _n_ended(self, names: Sequence[str] | None) -> int:
        """How many points have ended; lost attempts are no progress."""
        count = 0
        for name in self._plan.all_names if names is None else names:
            slots = Queue(self._plan.storage, name).slots()
            states = [slots.state(slot) for slot in slots.attempts]
            count += sum(state not in (SlotState.WAITING, SlotState.RUNNING) for state in states)
        return count

    def _log(self, number: int) -> Path:
        return self._logs / f"worker-{number}.log"

    def _last_words(self, number: int) -> str:
        lines = self._log(number).read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {self._log(number)})"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM received while the context lasts, in order."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python handles signals in the main thread alone
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _absolute(data: str) -> str:
    """The same source from every folder."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if kind in ("folder", "cifar10") and path else data
