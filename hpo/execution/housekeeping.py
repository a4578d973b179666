"""What is not needed any more goes: checkpoints of points that have a result, or a plan as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from optuna.trial import FrozenTrial

from hpo._files import user_path
from hpo.errors import ConflictError, RunError
from hpo.monitor.files import FOLDERS, beside, bytes_of, files_in, is_artifact, is_checkpoint_folder
from hpo.planning.plan import MODEL, WRONG_IMAGES, Plan
from hpo.storage.database import FILE_NAME, exclusive, remove_room, sqlite_file
from hpo.storage.queue import Slots, workers_at
from hpo.storage.storage import Storage
from hpo.storage.trials import CHECKPOINTS_KEY, id_of
from hpo.training.blobs import BlobStore, open_blobs


@dataclass(frozen=True)
class Holdings:
    """All that there is of a plan."""

    plan: Plan
    out: Path
    studies: Sequence[str]
    n_trials: int
    database: Sequence[Path]
    """The files of its database that go with it; empty where that is a server's, or holds other studies."""
    store: BlobStore
    checkpoints: Mapping[str, int]
    """Bytes of folders of checkpoints in the store, by name."""
    files: Mapping[str, Sequence[Path]]
    """Those in the output folder, by kind: `checkpoints`, `outputs`."""

    @property
    def n_bytes(self) -> dict[str, int]:
        """What each kind takes of the disk; a server's database is not counted."""
        found = {kind: bytes_of(files) for kind, files in self.files.items()}
        found["checkpoints"] = found.get("checkpoints", 0) + sum(self.checkpoints.values())
        return {"database": bytes_of(self.database), **found}


def holdings_of(plan: Plan, out: str | Path, checkpoints: str | None = None) -> Holdings:
    """Return all that there is of a plan, and of no other.

    An output folder with the plan's own database in it is the plan's: what hpo writes into such folders goes
    along, checkpoints of earlier plans too. In all other places it is what the plan's trials name.

    Args:
        plan: that is looked at.
        out: its output folder.
        checkpoints: folder or fsspec URL of its checkpoints; None: `out/checkpoints`.
    """
    out, storage = user_path(out), plan.storage
    attrs = storage.study_attrs()
    ours = {*(name for name in attrs if "options" in attrs[name]), *plan.records()}
    ids = {name: storage.study_id(name) for name in attrs if name in ours}
    counts = storage.counts(dict.fromkeys(ids.values(), 0))
    file = sqlite_file(storage.url)
    is_own = file is not None and file.resolve() == (out / FILE_NAME).resolve()
    needs_trials = checkpoints is not None or not is_own
    trials = [trial for id_ in ids.values() for trial in storage.trials(id_)] if needs_trials else []
    store = open_blobs(checkpoints or out / "checkpoints")
    named = _checkpoint_folders(trials)
    sizes = {folder: store.size(folder) for folder in named}
    found = files_in(out, plan) if is_own else {"outputs": _named_outputs(storage, out, ids.values(), trials)}
    return Holdings(
        plan=plan,
        out=out,
        studies=list(ids),
        n_trials=sum(counts.values()),
        database=beside(file) if file is not None and len(ids) == len(attrs) else [],
        store=store,
        checkpoints={folder: size for folder, size in sizes.items() if size},
        files={kind: files for kind, files in found.items() if kind != "database"},
    )


def _checkpoint_folders(trials: Iterable[FrozenTrial]) -> list[str]:
    """Return the folders of a store that trials name, that of the final stage's files too.

    Anybody may have written into the database: what no folder of ours is called, as ../.., is not removed.
    """
    attrs = [trial.user_attrs for trial in trials]
    shared = {each["final"]["shared_folder"] for each in attrs if "final" in each}
    named = shared | {each[CHECKPOINTS_KEY] for each in attrs if CHECKPOINTS_KEY in each}
    return sorted(filter(is_checkpoint_folder, map(str, named)))


def _named_outputs(
    storage: Storage, out: Path, study_ids: Iterable[int], trials: Iterable[FrozenTrial]
) -> list[Path]:
    """Return the files in a folder, which may be that of several plans, that the database names."""
    trials, found = list(trials), []
    for trial in trials:
        digests = trial.user_attrs.get("final", {}).get("shared_files", {})
        for name, digest in ((name, digests[name]) for name in (MODEL, WRONG_IMAGES) if name in digests):
            with suppress(OSError):  # it is not here
                if hashlib.sha256((out / name).read_bytes()).hexdigest() == digest:
                    found.append(out / name)
    attrs = [*(trial.system_attrs for trial in trials), *map(storage.system_attrs, study_ids)]
    for key, text in ((key, text) for each in attrs for key, text in each.items()):
        artifact = json.loads(text) if "artifacts:" in key else None
        if not artifact or not is_artifact(artifact["artifact_id"]):
            continue
        file = out / "artifacts" / artifact["artifact_id"]
        if file.is_file():
            found.append(file)
    return found


@dataclass(frozen=True)
class Pruned:
    """What became of a plan's checkpoints. Bytes of each folder, by its name."""

    freed: Mapping[str, int]
    kept: Mapping[str, int]
    """Trials resume from them, or would if the point is retried."""
    unknown: Mapping[str, int]
    """No trial of the plan names them: they are another plan's, or an earlier one's."""


def prune_checkpoints(plan: Plan, store: BlobStore) -> Pruned:
    """Remove the checkpoints that nothing needs: of points that have a result.

    A trial removes its own when it ends. What is left is of trials that were killed just then, or of workers
    that were paused while another one ended their trial. The final stage's model and pictures stay.

    Raises:
        OSError: the store cannot be read.
    """
    freed, kept, unknown = dict[str, int](), dict[str, int](), dict[str, int]()
    for name in plan.records():
        there = {f"{name}/{folder}" for folder in store.names(name)}
        if not there:
            continue
        study_id = plan.storage.study_id(name)
        # before the trials' states: what has a result by then gets no further checkpoint
        folders = plan.storage.values_of(study_id, CHECKPOINTS_KEY)
        slots = Slots.of(plan.storage.outlines.of(study_id))
        needed, named = set[str](), set[str]()
        for slot, attempts in slots.attempts.items():
            theirs = {folders[id_of(trial)] for trial in attempts if id_of(trial) in folders}
            named |= theirs
            if slots.accepted(slot) is None or slots.queued(slot):
                needed |= theirs
        for folder in sorted(there):
            size = store.size(folder)
            place = unknown if folder not in named else kept if folder in needed else freed
            place[folder] = size
            if place is freed:
                store.remove_folder(folder)
    return Pruned(freed, kept, unknown)


def refuse_where_workers_are(plan: Plan) -> None:
    """Check that nobody trains for a plan.

    Raises:
        ConflictError: somebody does; the text names them.
    """
    workers = workers_at(plan.storage, plan.options.lease_seconds)
    if workers:
        raise ConflictError(
            f"{plan.storage.name}: {', '.join(workers)} {'is' if len(workers) == 1 else 'are'} training for "
            f"this plan; stop {'it' if len(workers) == 1 else 'them'} first (Ctrl-C, or kill PID), then "
            "delete it"
        )


def delete(holdings: Holdings) -> None:
    """Delete a plan; killed on the way, the same again deletes the rest.

    Raises:
        ConflictError: somebody trains for it.
        MissingError: somebody else has deleted it meanwhile.
        RunError: something cannot be removed.
    """
    url = holdings.plan.storage.url
    # on a server one at a time: of two the second would look into tables that are gone
    alone = nullcontext if sqlite_file(url) is not None else partial(exclusive, url)
    with alone():
        storage = Storage(url)
        refuse_where_workers_are(holdings.plan)
    try:
        for files in holdings.files.values():
            _remove(files, holdings.out)
        for folder in holdings.checkpoints:
            holdings.store.remove_folder(folder)
        # last, as it knows what the rest is
        with alone():
            storage = Storage(url)
            storage.delete_studies(holdings.studies)
            remove_room(url)
        _remove(holdings.database, holdings.out)
    except OSError as error:
        raise RunError(
            f"{error.filename or storage.name}: cannot be removed: {error.strerror or error}; "
            "the same command removes the rest"
        ) from error


def _remove(files: Sequence[Path], out: Path) -> None:
    """Remove files, and the folders in an output folder that are empty then."""
    for file in files:
        file.unlink(missing_ok=True)
    tops = [out / name for name in FOLDERS if not (out / name).is_symlink()]  # or in what is anybody's
    folders = [Path(where) for top in tops for where, _, _ in os.walk(top, topdown=False)]
    for folder in (*folders, out):
        with suppress(OSError):  # there is something else in it
            folder.rmdir()
