"""Checkpoints of a replicate's training, one file per epoch, that survive a kill at any moment.

A file is a SHA-256 digest, because torch checks no sums itself, followed by what `torch.save` writes.
What is damaged, or belongs to something else, is put aside and the one before it used.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hpo.space.parameters import canonical_json
from hpo.training.blobs import BlobStore
from hpo.training.tensors import dump, is_like, load

T = TypeVar("T")

KEPT = 2
_NAME = re.compile(r"epoch-(\d+)-attempt-(\d+)\.checkpoint")
_OUTPUTS = "epoch-{:06}.outputs"
_DIGEST_BYTES = hashlib.sha256().digest_size


def folder_of(study: str, point: str, replicate: int, identity: Mapping[str, Any]) -> str:
    """Return the folder of a store for the checkpoints of one replicate of a point, of all its attempts.

    Args:
        study: the study's name, usable as a file name.
        point: any text that names the point in its study.
        replicate: the number of the block of seeds.
        identity: as of `Checkpoints`, and the plan's; it is in the name, as two plans may share a store.
    """
    name = hashlib.sha256(f"{point} {canonical_json(identity)}".encode()).hexdigest()[:16]
    return f"{study}/{name}-{replicate}"


class Checkpoints:
    """The checkpoints in one folder of a store.

    Args:
        store: where all checkpoints are.
        folder: of the store, as from `folder_of`.
        identity: plain JSON values that a checkpoint must have been saved with to be used: what results
            depend on (configuration, seeds, data, precision, …).
    """

    def __init__(self, store: BlobStore, folder: str, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.notes: list[str] = []
        """One line for every checkpoint that `latest` could not use."""
        self._blobs = store
        self._identity = dict(identity)

    def save(self, attempt: int, epoch: int, state: Mapping[str, Any]) -> None:
        """Store the state after an epoch (tensors and plain types) and drop all but the newest two.

        Raises:
            OSError: the disk is full or not writable; what was stored before is untouched.
        """
        self._write(f"epoch-{epoch:06}-attempt-{attempt:04}.checkpoint", state)
        for old in self._newest_first()[KEPT:]:
            self._blobs.remove(f"{self.folder}/{old}")

    @property
    def newest_epoch(self) -> int | None:
        """The newest epoch that any attempt stored; None where nothing is stored."""
        return next((int(name.split("-")[1]) for name in self._newest_first()), None)

    def latest(self, restore: Callable[[dict[str, Any]], T], *, only_reads: bool = False) -> T | None:
        """Return what is made of the newest epoch that any attempt stored; None where nothing is stored.

        A file that is damaged, was saved with another identity or cannot be restored is renamed to `….bad`,
        noted in `notes`, and the next older one is tried.

        Args:
            restore: makes it of a state, whose tensors are on the CPU; raises ValueError where it is no such
                state as is expected.
            only_reads: leave what cannot be used as it is: the folder is another plan's.
        """
        for name in self._newest_first():
            path = f"{self.folder}/{name}"
            try:
                return restore(self._read(path))
            except FileNotFoundError:
                continue  # another process has just dropped it
            except (ValueError, IsADirectoryError) as error:
                if only_reads:
                    self.notes.append(f"{name} cannot be used: {error}")
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    self._blobs.rename(path, path.removesuffix(".checkpoint") + ".bad")
                self.notes.append(f"{name} put aside: {error}")
        return None

    def save_outputs(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Store what is kept of an epoch besides; it stays until all is removed.

        Raises:
            OSError: as of `save`.
        """
        self._write(_OUTPUTS.format(epoch), state)

    def has_outputs(self, n_epochs: int) -> bool:
        """Return whether `save_outputs` has stored something of each of the first epochs."""
        return {_OUTPUTS.format(epoch) for epoch in range(1, n_epochs + 1)} <= {
            *self._blobs.names(self.folder)
        }

    def outputs(self, epoch: int) -> dict[str, Any]:
        """Return what `save_outputs` stored of an epoch; its tensors are on the CPU.

        Raises:
            ValueError: it is damaged, or of another identity.
            OSError: it is not there, or cannot be read.
        """
        return self._read(f"{self.folder}/{_OUTPUTS.format(epoch)}")

    def keep_newest(self, *, with_outputs: bool) -> None:
        """Remove all but the newest checkpoint; what cannot be removed stays.

        Args:
            with_outputs: whether what `save_outputs` stored stays as well.
        """
        with contextlib.suppress(OSError):
            for name in {*self._blobs.names(self.folder)} - {*self._newest_first()[:1]}:
                if not (with_outputs and name.endswith(".outputs")):
                    self._blobs.remove(f"{self.folder}/{name}")

    def clear(self) -> None:
        """Remove everything that is stored for this replicate; what cannot be removed stays."""
        with contextlib.suppress(OSError):
            self._blobs.remove_folder(self.folder)

    def _newest_first(self) -> list[str]:
        # the numbers are padded: the order of names is the order of epochs, then attempts
        return [name for name in reversed(self._blobs.names(self.folder)) if _NAME.fullmatch(name)]

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        content = dump({"identity": self._identity, "state": dict(state)})
        self._blobs.write(f"{self.folder}/{name}", hashlib.sha256(content).digest(), content)

    def _read(self, path: str) -> dict[str, Any]:
        content = self._blobs.read(path)
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("damaged or cut off")
        stored = load(body)
        identity, state = stored.get("identity"), stored.get("state")
        if not isinstance(identity, dict) or not isinstance(state, dict):
            raise ValueError("not a checkpoint: other things in it")
        differing = [key for key in identity.keys() | self._identity if not self._agrees(identity, key)]
        if differing:
            raise ValueError(f"saved with another {', '.join(sorted(map(str, differing)))}")
        return state

    def _agrees(self, identity: Mapping[Any, Any], key: Any) -> bool:
        theirs, ours = identity.get(key), self._identity.get(key)
        return is_like(theirs, ours) and bool(theirs == ours)  # tensors would not compare like plain values
