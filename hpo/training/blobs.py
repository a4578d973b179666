"""Where checkpoints are kept: a folder, or a place that fsspec knows (`s3://bucket/path`, `gs://…`).

A name is stored whole or not at all, and what is stored survives the process and, in a folder, the power.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import tenacity

from hpo._files import user_path, write_durably
from hpo.errors import InputError, install

P = ParamSpec("P")
T = TypeVar("T")
TRIES = 5


class BlobStore(Protocol):
    """A tree of small files; names are relative, with `/`. All methods raise OSError if the place fails."""

    @property
    def url(self) -> str:
        """What `open_blobs` opens it by, from wherever it is reached."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; empty where there is no such folder."""

    def read(self, name: str) -> bytes:
        """Return what was written; FileNotFoundError where nothing was."""

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Store a file, whole or not at all; folders on the way are made."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""

    def size(self, folder: str) -> int:
        """Return how many bytes the files in a folder have; 0 where there is no such folder."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; it may be gone already."""


def open_blobs(url: str | Path) -> BlobStore:
    """Return the store that a folder or an URL names.

    Raises:
        InputError: an URL of a kind that is not known or not installed here, or a folder that cannot be one.
    """
    text = str(url)
    kind, colon, rest = text.partition("://")
    if not colon or kind == "file":
        try:
            return FolderBlobs(user_path(rest if colon else text))
        except InputError as error:
            raise InputError(f"--checkpoints {error}") from None
    try:
        import fsspec  # half a second that a local folder does not need

        filesystem, path = fsspec.url_to_fs(text)
    except OSError:
        raise
    except Exception as error:  # every file system of fsspec has its own
        raise InputError(
            f"--checkpoints {kind}://…: {error}; known are folders and what fsspec has installed; s3:// "
            f"{install('s3')}"
        ) from None
    return RemoteBlobs(filesystem, path)


class FolderBlobs:
    """A folder, of this machine or one that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder, from the root of the file system."""
        return str(self.root.absolute())

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; empty where there is no such folder."""
        path = self.root / folder
        return sorted(each.name for each in path.iterdir()) if path.is_dir() else []

    def read(self, name: str) -> bytes:
        """Return what was written; FileNotFoundError where nothing was."""
        return (self.root / name).read_bytes()

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Store a file, whole or not at all; folders on the way are made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, *parts)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        (self.root / name).replace(self.root / new)

    def size(self, folder: str) -> int:
        """Return how many bytes the files in a folder have; 0 where there is no such folder."""
        path, total = self.root / folder, 0
        for each in path.iterdir() if path.is_dir() else ():
            with suppress(FileNotFoundError):  # another process has just dropped it
                total += each.stat().st_size
        return total

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; it may be gone already."""
        shutil.rmtree(self.root / folder, ignore_errors=True)


def _steadily(call: Callable[P, T]) -> Callable[P, T]:
    """Try a remote call a few times and raise OSError whatever the library raised."""

    @wraps(call)
    def steady(*args: P.args, **kwargs: P.kwargs) -> T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_not_exception_type((FileNotFoundError, PermissionError)),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
            stop=tenacity.stop_after_attempt(TRIES),
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:  # every file system of fsspec has its own
            raise OSError(f"checkpoint store: {type(error).__name__}: {error}") from error

    return steady


class RemoteBlobs:
    """A place of fsspec's, an object store above all: there a file that was put appears whole."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem, self._root = filesystem, root.rstrip("/")

    @property
    def url(self) -> str:
        """What `open_blobs` opens it by."""
        return str(self._filesystem.unstrip_protocol(self._root))

    @_steadily
    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; empty where there is no such folder."""
        self._filesystem.invalidate_cache()  # other machines write too
        try:
            found = self._filesystem.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    @_steadily
    def read(self, name: str) -> bytes:
        """Return what was written; FileNotFoundError where nothing was."""
        return bytes(self._filesystem.cat_file(self._path(name)))

    @_steadily
    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Store a file, whole or not at all; folders on the way are made."""
        path = self._path(name)
        self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._filesystem.pipe_file(path, b"".join(parts))

    @_steadily
    def rename(self, name: str, new: str) -> None:
        """Give a file another name."""
        self._filesystem.mv(self._path(name), self._path(new))

    @_steadily
    def size(self, folder: str) -> int:
        """Return how many bytes the files in a folder have; 0 where there is no such folder."""
        self._filesystem.invalidate_cache()
        try:
            found = self._filesystem.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return 0
        return sum(int(each["size"] or 0) for each in found)

    @_steadily
    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            self._filesystem.rm_file(self._path(name))
        except FileNotFoundError:
            return

    @_steadily
    def remove_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; it may be gone already."""
        try:
            self._filesystem.rm(self._path(folder), recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
