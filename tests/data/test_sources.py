"""The shapes of a data set, its split, and what each source gives."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from hpo.data import SOURCES, ImageData, load_training, prepare, sources
from hpo.data.dataset import hold_out, stratified_order
from hpo.data.test_set import load_test
from hpo.errors import DataError, InputError
from tests.support.pictures import CLASSES, write_folder


def image_data(per_class: int = 5, seed: int = 0) -> ImageData:
    """Images whose every pixel is 10 times their label plus noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(per_class * len(CLASSES)) % len(CLASSES)
    images = (10 * labels[:, None, None, None] + generator.integers(0, 10, (len(labels), 4, 4, 3))).astype(
        np.uint8
    )
    return ImageData(images, labels, images[:6], labels[:6], CLASSES)


# --- ImageData -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train_images": np.zeros((15, 4, 4, 3))}, "train_images: must be a uint8 array .* is float64"),
        ({"train_images": [[1]]}, "train_images: must be a uint8 array .* is list"),
        (
            {"test_images": np.zeros((6, 4, 4), np.uint8)},
            r"test_images: must have the shape .* has \(6, 4, 4\)",
        ),
        (
            {"test_images": np.zeros((6, 4, 4, 1), np.uint8)},
            "test_images: images are 4 × 4 × 1, .* 4 × 4 × 3",
        ),
        ({"train_labels": np.zeros(15)}, "train_labels: must be an integer array, is float64"),
        ({"train_labels": np.zeros(14, int)}, r"train_labels: must have the shape \(15,\).* has \(14,\)"),
        ({"test_labels": np.array([0, 1, 2, 3, 0, 1])}, "test_labels: must be 0 to 2, .* is 3"),
        ({"test_labels": np.array([0, 1, 2, -1, 0, 1])}, "test_labels: must be 0 to 2, .* is -1"),
        ({"test_labels": np.array([0, 1, 0, 1, 0, 1])}, "test_labels: class 'emu' has 0 images"),
        ({"class_names": "cat dog emu"}, "class_names: must be a tuple"),
        ({"class_names": ("cat", "dog", "dog")}, "class_names: must be at least two different names"),
        ({"class_names": ("cat",)}, "class_names: must be at least two different names"),
        ({"valid_labels": np.zeros(3, int)}, "give both"),
        ({"train_labels": np.array([0] * 7 + [1] * 7 + [2])}, "class 'emu' has 1 images; two are needed"),
    ],
)
def test_image_data_is_checked_when_it_is_made(change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        replace(image_data(), **change)


def test_class_names_may_be_a_list_as_torchvision_has_them() -> None:
    names: Any = ["cat", "dog", "emu"]
    assert replace(image_data(), class_names=names).class_names == ("cat", "dog", "emu")


# --- split and order -----------------------------------------------------------------------------

label_arrays = st.lists(st.integers(0, 4), min_size=2, max_size=200).map(np.array)


@given(label_arrays, st.floats(0.05, 0.6))
def test_every_class_is_split_in_the_same_proportion(labels: np.ndarray, share: float) -> None:
    stay, held_out = hold_out(labels, share)

    assert sorted([*stay, *held_out]) == list(range(len(labels)))
    for label in np.unique(labels):
        n_class, n_out = (labels == label).sum(), (labels[held_out] == label).sum()
        if n_class >= 2:
            assert 1 <= n_out < n_class
        if 1 <= share * n_class <= n_class - 1:
            assert abs(n_out - share * n_class) <= 0.5


@given(label_arrays)
def test_every_prefix_of_the_order_is_stratified(labels: np.ndarray) -> None:
    order = stratified_order(labels)
    shuffled = labels[order]

    assert sorted(order) == list(range(len(labels)))
    n_classes = len(np.unique(labels))
    assert len(np.unique(shuffled[:n_classes])) == n_classes
    for n in range(n_classes, len(labels) + 1):
        for label in np.unique(labels):
            expected = n * (labels == label).mean()
            assert abs((shuffled[:n] == label).sum() - expected) <= n_classes + 1


def test_the_order_shuffles_within_the_classes() -> None:
    order = stratified_order(np.repeat(np.arange(10), 500))

    assert abs(np.corrcoef(order % 500, np.arange(5000))[0, 1]) < 0.1


# --- every source --------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory with a function `load`; gives its unique name."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "from hpo.data import ImageData\n"
        "def load():\n"
        "    images = np.load('pixels.npy')\n"
        "    labels = np.arange(len(images)) % 3\n"
        "    return ImageData(images, labels, images[:6], labels[:6], ('cat', 'dog', 'emu'))\n"
        "def fail():\n"
        "    raise KeyError('pixels')\n"
        "def wrong():\n"
        "    return {}\n"
        "def leave():\n"
        "    raise SystemExit(3)\n"
        "number = 3\n"
    )
    np.save(tmp_path / "pixels.npy", image_data().train_images)
    monkeypatch.chdir(tmp_path)
    return name


def test_cifar10_is_what_torchvision_says() -> None:
    ours = (sources.CIFAR10_FOLDER, sources.CIFAR10_ARCHIVE, sources.CIFAR10_MD5)
    assert ours == (CIFAR10.base_folder, CIFAR10.filename, CIFAR10.tgz_md5)


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's archive and its batches, of 20 images each, whose checksums torchvision expects."""
    batches = tmp_path / "made" / CIFAR10.base_folder
    batches.mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in names:
        pixels = generator.integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10)) * 2}))
    (batches / CIFAR10.meta["filename"]).write_bytes(
        pickle.dumps({"label_names": [f"c{n}" for n in range(10)]})
    )
    archive = tmp_path / "made" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, arcname=CIFAR10.base_folder)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], md5(batches / names[-1])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches / CIFAR10.meta["filename"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    return tmp_path / "made"


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "python":
        return f"python:{request.getfixturevalue('own_module')}:load"
    if request.param == "folder":
        return f"folder:{write_folder(tmp_path / 'pictures', train=5, test=2)}"
    if request.param == "cifar10":
        return f"cifar10:{request.getfixturevalue('small_cifar10')}"
    return str(request.param)


def test_every_source_keeps_the_contract(source: str, tmp_path: Path) -> None:
    entry = prepare(source, cache=tmp_path / "cache")
    data, test = load_training(entry), load_test(entry)

    n_classes = len(data.class_names)
    for split in (data.train, data.valid, test):
        assert isinstance(split.inputs, np.memmap)
        assert split.inputs.dtype == np.uint8
        height, width, channels = split.inputs.shape[1:]
        assert (channels, height, width) == data.input_shape
        assert split.targets.dtype == np.int64
        assert split.targets.shape == (len(split.inputs),)
        assert set(split.targets) == set(range(n_classes))
    assert data.source == source
    assert len(data.fingerprint) == 16
    n = len(data.train.targets) + len(data.valid.targets)
    assert len(data.valid.targets) == pytest.approx(0.2 * n, abs=0.5 * n_classes)
    scaled = data.train.inputs.astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    std = scaled.std(axis=(0, 1, 2))
    np.testing.assert_allclose(data.std, np.where(std == 0, 1, std), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32

    assert prepare(source, cache=tmp_path / "cache") == entry
    assert prepare(source, cache=tmp_path / "other").name == entry.name
    assert load_training(prepare(source, cache=tmp_path / "other")).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("digit", "did you mean 'digits'"),
        ("imagenet", "known: digits, cifar10, folder, python"),
        ("digits:8", "takes no argument"),
        ("folder", "folder:PATH"),
        ("folder:", "folder:PATH"),
        ("python", "must be python:module:object"),
        ("python:module", "must be python:module:object"),
    ],
)
def test_a_source_that_cannot_be_asked_for(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        prepare(text, cache=tmp_path)


@pytest.mark.parametrize("text", ["digits", "cifar10", "python:a:b"])
def test_only_folders_are_resized(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"image_size = 64: only folder:PATH is resized"):
        prepare(text, image_size=64, cache=tmp_path)


@pytest.mark.parametrize("size", [0, -1, 1025])
def test_sizes_out_of_range_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=rf"image_size = {size}: must be 1 to 1024"):
        prepare(f"folder:{tmp_path}", image_size=size, cache=tmp_path)


# --- digits --------------------------------------------------------------------------------------


def test_digits_are_all_there_once_scaled_to_bytes(tmp_path: Path) -> None:
    entry = prepare("digits", cache=tmp_path)
    data, test = load_training(entry), load_test(entry)

    assert data.input_shape == (1, 8, 8)
    images = np.concatenate([data.train.inputs, data.valid.inputs, test.inputs])
    assert len(images) == 1797
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    assert data.class_names == tuple("0123456789")
    assert np.bincount(test.targets).min() >= 34


# --- cifar10 -------------------------------------------------------------------------------------


def test_cifar10_pixels_are_in_place(small_cifar10: Path, tmp_path: Path) -> None:
    test = load_test(prepare(f"cifar10:{small_cifar10}", cache=tmp_path / "cache"))

    raw = pickle.loads((small_cifar10 / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    np.testing.assert_array_equal(test.inputs[3, 2, 5], raw[3].reshape(3, 32, 32)[:, 2, 5])
    assert test.targets.tolist() == list(range(10)) * 2


def test_cifar10_archive_and_its_unpacked_folder_hold_the_same(small_cifar10: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (small_cifar10 / CIFAR10.base_folder).rename(unpacked / CIFAR10.base_folder)

    fingerprints = {
        load_training(prepare(f"cifar10:{folder}", cache=tmp_path / "cache")).fingerprint
        for folder in (small_cifar10, unpacked)
    }

    assert len(fingerprints) == 1
    assert [path.name for path in small_cifar10.iterdir()] == [CIFAR10.filename]


@pytest.fixture
def download_from(monkeypatch: pytest.MonkeyPatch, small_cifar10: Path) -> Iterator[Path]:
    """Serves the folder of the small archive by HTTP and lets torchvision download from there."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=small_cifar10)) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        yield small_cifar10
        server.shutdown()
        thread.join()


def test_cifar10_is_downloaded(
    download_from: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_training(prepare("cifar10", cache=tmp_path / "cache"))

    assert (len(data.train.targets), len(data.valid.targets)) == (80, 20)
    assert data.source == "cifar10"
    assert capsys.readouterr().out == ""
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))


@pytest.mark.parametrize("failure", ["damaged", "missing"])
def test_a_failed_download_says_what_to_do(download_from: Path, tmp_path: Path, failure: str) -> None:
    archive = download_from / CIFAR10.filename
    if failure == "damaged":
        archive.write_bytes(archive.read_bytes()[:-100])
    else:
        archive.unlink()

    with pytest.raises(DataError, match=r"cifar10: the download failed: .*--data cifar10:FOLDER"):
        prepare("cifar10", cache=tmp_path / "cache")

    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("damaged", [CIFAR10.filename, f"{CIFAR10.base_folder}/data_batch_3"])
def test_damaged_cifar10_is_named(small_cifar10: Path, tmp_path: Path, damaged: str) -> None:
    folder = tmp_path / "given"
    path = folder / damaged
    (small_cifar10 / damaged.split("/")[0]).rename(tmp_path / "moved")
    folder.mkdir()
    (tmp_path / "moved").rename(folder / damaged.split("/")[0])
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(DataError, match=r"checksum is wrong.*--data cifar10:FOLDER"):
        prepare(f"cifar10:{folder}", cache=tmp_path / "cache")


def test_a_folder_without_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither cifar-10-batches-py nor cifar-10-python\.tar\.gz"):
        prepare(f"cifar10:{tmp_path}", cache=tmp_path)


# --- python --------------------------------------------------------------------------------------


def test_an_own_function_is_asked_each_time(own_module: str, tmp_path: Path) -> None:
    text = f"python:{own_module}:load"
    before = prepare(text, cache=tmp_path / "cache")

    np.save("pixels.npy", image_data(seed=1).train_images)

    assert prepare(text, cache=tmp_path / "cache") != before


def test_where_pixels_lie_in_memory_means_nothing(own_module: str, tmp_path: Path) -> None:
    text = f"python:{own_module}:load"
    before = prepare(text, cache=tmp_path / "cache")

    np.save("pixels.npy", np.asfortranarray(image_data().train_images))

    assert prepare(text, cache=tmp_path / "cache") == before
    assert np.array_equal(
        load_training(prepare(text, cache=tmp_path / "new")).train.inputs, load_training(before).train.inputs
    )


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("laod", r"own_.*\.py has no 'laod'; did you mean 'load'"),
        ("number", "must be a function, is int"),
        ("fail", "KeyError: 'pixels'"),
        ("leave", "SystemExit: 3"),
        ("wrong", "must return hpo.ImageData or hpo.ArrayData, returned dict"),
    ],
)
def test_an_own_function_that_fails_is_named(
    own_module: str, tmp_path: Path, function: str, problem: str
) -> None:
    with pytest.raises(DataError, match=f"python:{own_module}:{function}: .*{problem}"):
        prepare(f"python:{own_module}:{function}", cache=tmp_path)


def test_an_own_module_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_broken.py").write_text("1 / 0")

    with pytest.raises(
        DataError, match=rf"python:own_broken:load: {tmp_path}/own_broken\.py:1: ZeroDivisionError"
    ):
        prepare("python:own_broken:load", cache=tmp_path)
    with pytest.raises(DataError, match=f"No module named 'own_absent'; looked in {tmp_path}"):
        prepare("python:own_absent:load", cache=tmp_path)
