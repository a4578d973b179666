"""Names and files made by somebody who means harm: shown, refused or put aside, never obeyed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hpo as library
from hpo import ImageData, InputError, load_training, prepare
from hpo._text import printable
from hpo.cli.tables import Screen
from hpo.execution.final_stage import contact_sheet
from hpo.execution.worker import work
from hpo.monitor.export import write_csv
from hpo.planning.claims import stored_claims
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import FINAL, MODEL, Plan
from hpo.storage.storage import Storage
from hpo.training.tensors import dump, load
from tests.support.checkpoints import signed
from tests.support.command import Result, hpo, start_hpo, wait_for
from tests.support.fixtures import Cli
from tests.support.plans import write_study

Attributes = dict[tuple[str, str], tuple[str, Callable[[str], Any]]]

HOSTILE = {
    "upwards": "../../up",
    "line ends": "one\r\nhpo: all is well\nend",
    "formula": "=cmd|' /C calc'!A0",
    "script": "<script>alert(1)</script>",
    "markup": "[red]x[/red]",
    "closing markup": "[/nothing]",
    "emoji code": ":smile: [link=http://a.b]x",
    "ANSI": "\x1b[31mred\x1b[2J\x1b]0;title\x07",
    "C1": "\x9b31mred",
    "bidirectional": "\u202egnp.exe\u2066",
    "long": "n" * 200,
    "format": "%s%n%(x)d{0}{}",
}
FILE_NAMES = {kind: name.replace("/", "⁄").lstrip(".") for kind, name in HOSTILE.items()}
"""A file name holds no slash, and one that starts with a dot is passed over."""
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
hostile_name = pytest.mark.parametrize("name", FILE_NAMES.values(), ids=FILE_NAMES.keys())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, deep enough for `../..` to be seen."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path / "a" / "b"


def refused(result: Result) -> None:
    """Bad input: exit 2, and a message in which nothing can pass for a message of its own."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    assert not OBEYED.search(result.err)
    assert not re.search(r"^hpo: all is well", result.err, re.MULTILINE)


def shown(result: Result) -> str:
    """The output of a command that did what it was asked for."""
    assert result.code == 0, result
    assert not OBEYED.search(result.out + result.err)
    return result.out


def toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x9b", "\\u009b")


# --- text for a terminal -----------------------------------------------------------------------------------


@hostile
def test_what_is_printable_cannot_be_obeyed(text: str) -> None:
    line = printable(text)
    assert not OBEYED.search(line)
    assert "\n" not in line
    assert printable(line) == line


@pytest.mark.parametrize("text", ["café ☕", "日本\u3000語", "👩\u200d🔬", "نعم", "naïve [1] %d \\n"])
def test_honest_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


# --- study files -------------------------------------------------------------------------------------------


@hostile_name
def test_a_study_file_with_such_a_name_is_refused(cli: Cli, folder: Path, name: str) -> None:
    write_study(name, "[search]\nlearning_rate = [0.1]")
    refused(cli("create", "--studies=studies", "--data=digits"))
    assert [path.name for path in folder.iterdir()] == ["studies"]


@pytest.mark.parametrize("key", ["inherits", "constraints", "sampler", "pruner", "search", "trials"])
@hostile
def test_such_a_value_in_a_study_file_is_refused(cli: Cli, text: str, key: str) -> None:
    value = {
        "constraints": f"[{toml(text)}]",
        "sampler": f"{{name = {toml(text)}}}",
        "pruner": f"{{name = {toml(text)}}}",
        "search": f"{{{toml(text)} = [1]}}",
    }.get(key, toml(text))
    search = "" if key == "search" else "[search]\nlearning_rate = [0.1]"
    write_study("rate", f"{key} = {value}\n{search}")
    refused(cli("create", "--studies=studies", "--data=digits"))


@hostile
def test_title_section_and_notes_are_shown_as_they_are(cli: Cli, text: str) -> None:
    results = f"[[published.results]]\nnote = {toml(text)}\nparams = {{learning_rate = 0.1}}"
    write_study(
        "rate", f"title = {toml(text)}\nsection = {toml(text)}\n[search]\nlearning_rate = [0.1]\n{results}"
    )
    sizes = ("--limit-train=100", "--limit-valid=50", "--epochs=1")
    shown(cli("create", "--studies=studies", "--data=digits", *sizes))
    visible = re.sub(r"\s", "", shown(cli("show", "rate")) + shown(cli("status")))
    for line in text.split("\n"):
        assert re.sub(r"\s", "", printable(line.strip("\r"))) in visible
    assert not re.search(r"^hpo: all is well", shown(cli("show", "rate")), re.MULTILINE)


# --- what is typed -----------------------------------------------------------------------------------------


@hostile
def test_such_arguments(cli: Cli, folder: Path, text: str) -> None:
    for arguments in (
        [text],
        ["status", "--storage", text],
        ["status", "--storage", f"sqlite:///{text}.db"],
        ["status", "--out", text],
        ["create", "--studies", text],
        ["create", "--data", text],
        ["create", "--data", f"folder:{text}"],
        ["create", "--data", f"cifar10:{text}"],
        ["create", "--data", f"python:{text}:{text}"],
        ["create", "--data=digits", "--device", text],
        ["predict", text, text],
    ):
        refused(cli(*arguments))
    assert list(folder.iterdir()) == []


# --- classes and pictures ----------------------------------------------------------------------------------


def write_pictures(root: Path, names: list[str]) -> Path:
    for part, count in (("train", 6), ("validation", 3), ("test", 3)):
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (250 - 20 * label, 20 * label, 10 * number)
                Image.new("RGB", (8, 8), colour).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished plan on pictures whose classes, files and folder have hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    names = list(FILE_NAMES.values())
    pictures = write_pictures(root / "[red]data\x1b[31m\u202e", names)
    (root / "studies").mkdir()
    (root / "studies" / "rate.toml").write_text(
        "[base]\nconv1_channels = 4\nconv2_channels = 4\nhidden_units = 8\n[search]\nlearning_rate = [0.01]"
    )
    options = ("--image-size=8", "--epochs=1", "--final-seeds=1", "--workers=1")
    result = hpo(
        *("run", "--studies", root / "studies", "--out", root / "out", "--data", f"folder:{pictures}"),
        *options,
    )
    shown(result)
    return root


def test_hostile_classes_reach_the_model_as_they_are(trained: Path) -> None:
    names = sorted(FILE_NAMES.values())
    assert list(library.find_plan(trained / "out").identity.class_names) == names
    assert list(library.load_model(trained / "out" / MODEL).class_names) == names
    with Image.open(trained / "out" / "most-confidently-wrong.png") as sheet:
        sheet.verify()
    assert {path.name for path in trained.iterdir()} == {"[red]data\x1b[31m\u202e", "studies", "out"}


@given(st.text(st.characters(codec=None), max_size=30))  # lone surrogates too: folders may be called so
def test_law_whatever_a_class_is_called_its_pictures_can_be_drawn(name: str) -> None:
    sheet = contact_sheet(np.zeros((1, 8, 8, 1), np.uint8), [(0, 0, 0, 0.5)], (name,))
    assert np.asarray(sheet).min() == 0


def test_hostile_classes_are_shown_and_not_obeyed(trained: Path, cli: Cli) -> None:
    out = trained / "out"
    text = shown(cli("final", "--out", out))
    for name in (FILE_NAMES["markup"], FILE_NAMES["formula"], FILE_NAMES["emoji code"], r"\x1b[31mred"):
        assert name in text
    assert "data folder:" in " ".join(text.split())  # the line wraps
    for command in ("status", "export", "best", "run"):
        shown(cli(command, "--out", out))
    shown(cli("show", "rate", "--out", out))
    record = json.loads(cli("final", "--json", "--out", out).out)
    assert list(record["per_class"]) == sorted(FILE_NAMES.values())
    logs = "".join(log.read_text() for log in (out / "logs").iterdir())
    assert "rate/0: complete" in logs
    assert not OBEYED.search(logs)


@hostile_name
def test_predict_names_hostile_files(trained: Path, cli: Cli, folder: Path, name: str) -> None:
    good, broken = folder / f"{name}.png", folder / f"{name}.txt"
    Image.new("RGB", (8, 8), (250, 0, 0)).save(good)
    lines = shown(cli("predict", trained / "out" / MODEL, good)).splitlines()
    assert len(lines) == 1
    assert printable(name) in lines[0]
    broken.write_text("no picture")
    refused(cli("predict", trained / "out" / MODEL, broken))


@hostile_name
def test_broken_pictures_of_that_name_are_refused(cli: Cli, folder: Path, name: str) -> None:
    pictures = write_pictures(folder / "pictures", ["a", "b"])
    (pictures / "train" / "a" / name).write_text("no picture")
    result = cli("create", "--data=folder:pictures")
    refused(result)
    assert "1 problem" in result.err


def test_names_that_are_no_text_are_refused(cli: Cli, folder: Path) -> None:
    raw = os.fsdecode(b"\xff\xfe")
    try:
        pictures = write_pictures(folder / "pictures", ["a", raw])
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    result = cli("create", "--data=folder:pictures")
    refused(result)
    assert "rename the class" in result.err
    pictures.rename(folder / raw)
    result = cli("create", "--data", f"folder:{raw}")
    refused(result)
    assert "not valid text" in result.err
    (folder / f"{raw}.txt").write_text("no picture")
    refused(cli("predict", folder / f"{raw}.txt", "x"))
    with pytest.raises(InputError, match="not valid text"):
        prepare("folder:a\0b")


@hostile
def test_classes_of_a_function_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    code = (
        "import numpy as np\nfrom hpo import ImageData\n"
        "def load():\n"
        "    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])\n"
        f"    return ImageData(images, labels, images, labels, ({text!r}, 'b'))\n"
    )
    module = f"hostile_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    (folder / f"{module}.py").write_text(code)
    assert load_training(prepare(f"python:{module}:load")).class_names == (text, "b")


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_class_names_that_nothing_can_store_are_refused(name: str) -> None:
    import numpy as np

    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(InputError, match="rename the class"):
        ImageData(images, labels, images, labels, (name, "b"))


# --- CSV ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", " ", "\t", "\n", "\u00a0"])
@pytest.mark.parametrize("start", "=+-@")
def test_no_cell_is_a_formula(capsys: pytest.CaptureFixture[str], before: str, start: str) -> None:
    write_csv([{"reason": f"{before}{start}cmd|' /C calc'!A0", "number": -2.5}], sys.stdout)
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["reason"].startswith("'")
    assert row["number"] == "-2.5"


@hostile
def test_every_record_is_one_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    write_csv([{"reason": text}, {"reason": "plain"}], sys.stdout)
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    assert len(out.splitlines()) == 3


# --- a plan that was changed by hand -----------------------------------------------------------------------

MARK = ("plan", "recipe", "options", "identity", "versions")
"""What of the final stage alone is read; the other studies hold a copy of most of it."""
NO_RECORD = ("", "{", "5", "[]", '"x"', "[" * 100_000)


@pytest.fixture
def attributes(finished: Path, folder: Path) -> Iterator[Attributes]:
    """The attributes of a finished plan in `out`, by study and key, each with what writes it anew."""
    out = shutil.copytree(finished, folder / "out")
    with closing(sqlite3.connect(out / "hpo.db", isolation_level=None)) as connection:
        query = (
            "SELECT study_name, key, study_id, value_json FROM study_user_attributes "
            "JOIN studies USING (study_id)"
        )
        update = "UPDATE study_user_attributes SET value_json = ? WHERE study_id = ? AND key = ?"

        def writer(study_id: int, key: str) -> Callable[[str], object]:
            return lambda new: connection.execute(update, (new, study_id, key))

        yield {
            (study, key): (text, writer(id_, key))
            for study, key, id_, text in connection.execute(query).fetchall()
            if study == FINAL or key not in MARK
        }


def without_or_beside(value: object) -> Iterator[object]:
    """JSON with a key missing, of another type, or too many."""
    if isinstance(value, dict):
        yield {**value, "of a newer version": 1}
        for key, each in value.items():
            yield {other: value[other] for other in value if other != key}
            yield {**value, key: [each, {}]}
            yield from ({**value, key: damaged} for damaged in without_or_beside(each))


def test_whatever_is_wrong_with_a_plan_is_said_in_words(attributes: Attributes) -> None:
    storage, n_refused = Storage("sqlite:///out/hpo.db", reader=True), 0
    for (study, key), (text, write) in attributes.items():
        value = json.loads(text)
        damaged = without_or_beside(json.loads(value) if key == "definition" else value)
        records = [json.dumps(json.dumps(each) if key == "definition" else each) for each in damaged]
        for new in (*NO_RECORD, *records):
            write(new)
            said = complaint(storage)
            is_right = key in ("n_points", "test_opened") and new == "5"
            if (new in NO_RECORD and not is_right) or said:  # what has a default may be missing
                assert said.startswith("sqlite:///out/hpo.db: ")
                # without a parameter of its recipe it is the plan's studies that cannot be read
                names = [study] if key != "recipe" else ["rate", "shape", FINAL]
                assert any(f"study {name!r}" in said for name in names)
                n_refused += 1
        write(text)
    assert n_refused > 300
    assert not complaint(storage)


def complaint(storage: Storage) -> str:
    try:
        plan = Plan.open(storage)
        library.status(plan)
        stored_claims(plan)  # read by who shows or trains them alone
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", [("run",), ("worker",), ("report",), ("show", "rate"), ("export",)])
@pytest.mark.parametrize("key", ["definition", "decision"])
def test_who_works_on_such_a_plan_or_reads_it_is_told(
    attributes: Attributes, cli: Cli, command: tuple[str, ...], key: str
) -> None:
    _, write = attributes["rate", key]
    write('{"of a newer version": 1}')
    result = cli(*command, "--out=out")
    refused(result)
    ours = version("hpo-studies")
    assert f"out/hpo.db: holds no plan that hpo {ours} can read: study 'rate', {key}" in result.err


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan whose only trial was stopped with two checkpoints."""
    root = tmp_path_factory.mktemp("stopped")
    (root / "studies").mkdir()
    (root / "studies" / "rate.toml").write_text(
        "[base]\nconv1_channels = 4\nconv2_channels = 4\nhidden_units = 8\n[search]\nlearning_rate = [0.01]"
    )
    sizes = ("--data=digits", "--limit-train=100", "--limit-valid=50", "--epochs=20", "--final-seeds=1")
    shown(hpo("create", "--studies", root / "studies", "--out", root / "out", "--workers=2", *sizes))
    worker = start_hpo("worker", "rate", "--out", root / "out")
    wait_for(lambda: len(list(root.glob("out/checkpoints/**/*.checkpoint"))) >= 2, worker)
    worker.send_signal(signal.SIGTERM)
    err = worker.communicate(timeout=300)[1]
    assert worker.returncode == 128 + signal.SIGTERM, err
    return root / "out"


class Bomb:
    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.fuse,))


def truncated(content: bytes, fuse: Path) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes, fuse: Path) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def from_another_trial(content: bytes, fuse: Path) -> bytes:
    stored = load(content[32:])
    stored["identity"]["seeds"] = [7]
    stored["identity"]["\x1b[31mhpo: all is well\n"] = 1
    return signed(bytes(dump(stored)))


def running_code(content: bytes, fuse: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"identity": load(content[32:])["identity"], "state": Bomb(fuse)}, buffer)
    return signed(buffer.getvalue())


@pytest.mark.parametrize("damage", [truncated, flipped, from_another_trial, running_code])
def test_a_hostile_checkpoint_is_put_aside_reported_and_the_one_before_it_used(
    stopped: Path, folder: Path, cli: Cli, damage: Callable[[bytes, Path], bytes]
) -> None:
    out = shutil.copytree(stopped, folder / "out")
    *_, before, newest = sorted(out.glob("checkpoints/**/*.checkpoint"))
    newest.write_bytes(damage(newest.read_bytes(), folder / "fuse"))
    assert work(Storage(f"sqlite:///{out / 'hpo.db'}"), out=out, studies=["rate"]) is None
    first, second = library.find_plan(out).trials("rate")
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE")
    assert second.user_attrs["resumed_after_epoch"] == int(before.name.split("-")[1])
    assert len(epochs_of(second.user_attrs)) == 20
    assert not (folder / "fuse").exists()
    text = shown(cli("show", "rate", "--out", out))
    assert f"trial 1: {newest.name} put aside" in text
    assert not re.search(r"^hpo: all is well", text, re.MULTILINE)
    (point,) = json.loads(cli("show", "rate", "--json", "--out", out).out)["points"]
    assert len(point["checkpoint_notes"]) == 1


def test_a_damaged_file_of_the_final_stage_replaces_none(finished: Path, folder: Path, cli: Cli) -> None:
    out = shutil.copytree(finished, folder / "out")
    (shared,) = out.glob(f"checkpoints/**/{MODEL}")
    whole = shared.read_bytes()
    (out / MODEL).write_bytes(b"cut off")
    shared.write_bytes(flipped(whole, folder))
    result = cli("run", "--out", out)
    assert (result.code, (out / MODEL).read_bytes()) == (1, b"cut off")
    assert f"/{MODEL} among the checkpoints is damaged; {out / MODEL} was left as it is" in result.err
    shared.write_bytes(whole)
    shown(cli("run", "--out", out))
    assert (out / MODEL).read_bytes() == whole


def test_wrapped_text_is_whole_and_a_line_end_in_a_name_is_written_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Screen(width=24).print("a text that is longer than a line of the terminal, with a\nname")
    assert " ".join(capsys.readouterr().out.split()) == (
        r"a text that is longer than a line of the terminal, with a\nname"
    )
