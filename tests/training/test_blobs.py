"""The contract of every kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import InputError
from hpo.training.blobs import BlobStore, open_blobs
from hpo.training.checkpoints import Checkpoints


@pytest.fixture(params=["folder", "file", "memory", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    urls = {
        "folder": str(tmp_path / "a folder"),
        "file": f"file://{tmp_path / 'f'}",
        "memory": f"memory://{tmp_path.name}",  # fsspec's own, as an object store behaves
        "fsspec": f"local://{tmp_path / 'l'}",
    }
    return open_blobs(urls[request.param])


def test_what_is_written_is_read(store: BlobStore) -> None:
    assert store.names("a/b") == []
    with pytest.raises(FileNotFoundError):
        store.read("a/b/one")
    store.write("a/b/two", b"2", memoryview(b"22"))
    store.write("a/b/one", b"1")
    store.write("a/b/one", b"11")
    assert store.names("a/b") == ["one", "two"]
    assert store.read("a/b/one") == b"11"
    assert store.read("a/b/two") == b"222"
    assert (store.size("a/b"), store.size("a/c")) == (5, 0)


def test_names_change_and_go(store: BlobStore) -> None:
    for name in ("a/one", "a/two", "a/three"):
        store.write(name, name.encode())
    store.rename("a/one", "a/1")
    store.remove("a/two")
    store.remove("a/two")
    assert store.names("a") == ["1", "three"]
    assert store.read("a/1") == b"a/one"
    store.remove_folder("a")
    store.remove_folder("a")
    assert store.names("a") == []


def test_checkpoints_travel_by_any_store(store: BlobStore) -> None:
    here = Checkpoints(store, "study/point-0", {"data": "abc"})
    for epoch in (1, 2, 3):
        here.save(1, epoch, {"epoch": epoch})
    there = Checkpoints(store, "study/point-0", {"data": "abc"})
    assert there.latest(dict) == {"epoch": 3}
    newest = f"{there.folder}/{store.names(there.folder)[-1]}"
    store.write(newest, store.read(newest)[:-1])
    assert there.latest(dict) == {"epoch": 2}
    assert len(there.notes) == 1
    there.clear()
    assert here.latest(dict) is None


@pytest.mark.parametrize("kind", ["nonsense", "reference"])  # fsspec's own kind needs more than an URL
def test_a_kind_that_cannot_be_used_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=rf"--checkpoints {kind}://.*folders"):
        open_blobs(f"{kind}://bucket/x")
