"""`hpo predict`: pictures and folders of them, the most probable classes, as lines, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from hpo.data.dataset import TrainingData
from hpo.planning.plan import MODEL
from hpo.training.learner import build
from hpo.training.saved_model import save_model
from tests.support.fixtures import Cli
from tests.support.recipes import CNN, SCHEMA, SMALL_CNN
from tests.support.toy_images import toy_data

NAMES = ["b.png", "a.PNG", "below/c.png", ".hidden/d.png", "Thumbs.db", "note.txt"]
PICTURES = ["a.PNG", "b.png", "below/c.png"]
"""Those of them that are taken, in their order."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: what it says is as good as any."""
    data: TrainingData = toy_data(shape=(8, 8, 3))
    config = SCHEMA.complete(SMALL_CNN)
    network = build(CNN.recipe, CNN.recipe.params_of(config), data.info, 0)
    path = tmp_path_factory.mktemp("model") / MODEL
    save_model(path, network.state_dict(), CNN, config, data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * number, 200, 100)).save(tmp_path / name, "PNG")
    return tmp_path


def test_a_folder_is_all_its_pictures_and_what_is_left_out_is_said(
    model: Path, folder: Path, cli: Cli
) -> None:
    result = cli("predict", model, folder)
    assert result.code == 0
    assert result.err == f"{folder}: left out 1 file that is not named as pictures are\n"
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == [
        str(folder / name) for name in PICTURES
    ]
    both = cli("predict", model, folder / "b.png", folder / "below")
    assert [line.partition(": ")[0] for line in both.out.splitlines()] == [
        str(folder / name) for name in ("b.png", "below/c.png")
    ]
    assert both.err == ""


def test_the_most_probable_classes_are_told_alike_in_every_form(model: Path, folder: Path, cli: Cli) -> None:
    table = list(csv.DictReader(io.StringIO(cli("predict", model, folder, "--top=2", "--csv").out)))
    records = json.loads(cli("predict", model, folder, "--top=2", "--json").out)
    lines = cli("predict", model, folder, "--top=2").out.splitlines()
    assert [(row["image"], row["rank"]) for row in table] == [
        (str(folder / name), str(rank)) for name in PICTURES for rank in (1, 2)
    ]
    for number, (record, line) in enumerate(zip(records, lines, strict=True)):
        first, second = record["top"]
        assert (record["label"], record["probability"]) == (first["label"], first["probability"])
        assert first["probability"] >= second["probability"]
        rows = table[2 * number : 2 * number + 2]
        assert [row["label"] for row in rows] == [first["label"], second["label"]]
        assert [float(row["probability"]) for row in rows] == [first["probability"], second["probability"]]
        assert re.fullmatch(rf".*: {first['label']} \([\d.]+ %\), {second['label']} \([\d.]+ %\)", line)


def test_of_more_classes_than_there_are_all_are_told(model: Path, folder: Path, cli: Cli) -> None:
    (record,) = json.loads(cli("predict", model, folder / "b.png", "--top=99", "--json").out)
    assert {each["label"] for each in record["top"]} == {"class 0", "class 1", "class 2"}
    assert sum(each["probability"] for each in record["top"]) == pytest.approx(1, abs=1e-5)


def test_without_top_json_is_what_it_was(model: Path, folder: Path, cli: Cli) -> None:
    (record,) = json.loads(cli("predict", model, folder / "b.png", "--json").out)
    assert record.keys() == {"image", "label", "probability"}


def test_what_cannot_be_read_is_named_and_the_rest_is_classified(model: Path, folder: Path, cli: Cli) -> None:
    (folder / "below" / "x.png").write_text("no picture")
    result = cli("predict", model, folder)
    assert result.code == 1
    named = (
        f"left out {folder / 'below' / 'x.png'}: cannot be read: not a picture in a format that Pillow knows"
    )
    assert named in result.err.splitlines()
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == [
        str(folder / name) for name in PICTURES
    ]
    nothing = cli("predict", model, folder / "below" / "x.png", "--csv")
    assert (nothing.code, nothing.out) == (2, "")
    assert named in nothing.err.splitlines()


def test_what_cannot_be_done_is_refused(model: Path, folder: Path, cli: Cli) -> None:
    (folder / "empty").mkdir()
    for words, said in (
        (["--csv", "--json"], "--csv and --json exclude each other"),
        ([folder / "empty"], "empty: holds no pictures"),
        (["--top=0"], "--top"),
    ):
        result = cli("predict", model, folder / "b.png", *words)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
