"""The real command, real processes, real images (scikit-learn's digits)."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import hpo as library
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import MODEL, Plan
from hpo.storage.queue import Slots, SlotState
from tests.support.command import hpo, start_hpo, wait_for
from tests.support.fixtures import Cli
from tests.support.pictures import write_folder
from tests.support.plans import SMALL, SMALL_RUN, SMALL_SIZES, accepted_epochs, train, write_study


def n_accepted(plan: Plan) -> dict[str, int]:
    """Per study the number of trials with a result; more than its points would be double results."""
    return {name: sum(t.value is not None for t in plan.trials(name)) for name in plan.all_names}


# --- an undisturbed run -----------------------------------------------------------------------------------


def test_status_json_is_the_contract(finished: Path, cli: Cli) -> None:
    result = cli("status", "--out", finished, "--json")
    assert result.code == 0
    studies = json.loads(result.out)["studies"]
    assert [study["name"] for study in studies] == ["rate", "shape", "final"]
    for study in studies:
        assert study.keys() >= {"name", "section", "state", "points", "best", "inherited"}
        assert study["state"] == "done"
        assert study["points"].keys() == {"waiting", "running", "complete", "pruned", "failed"}
        assert study["best"].keys() == {"trial", "value", "params"}
    assert [sum(study["points"].values()) for study in studies] == [2, 3, 1]
    assert studies[0]["inherited"] is None
    assert studies[1]["inherited"]["study"] == "rate"
    assert studies[1]["inherited"]["params"]["learning_rate"] in (0.003, 0.001)


def test_final_json_is_the_contract(finished: Path, cli: Cli) -> None:
    record = json.loads(cli("final", "--out", finished, "--json").out)
    keys = "config seeds selected_epoch test std per_seed per_epoch per_class confusion_matrix"
    assert record.keys() >= set(keys.split())
    assert record["seeds"] == [10_000, 10_001]
    assert [epoch["epoch"] for epoch in record["per_epoch"]] == [1, 2, 3]
    selected = record["per_epoch"][record["selected_epoch"] - 1]
    assert record["test"] == {key: selected[key] for key in ("accuracy", "loss", "macro_f1")}
    mean = np.mean([seed["macro_f1"] for seed in record["per_seed"]])
    assert record["test"]["macro_f1"] == pytest.approx(mean)
    matrix = np.array(record["confusion_matrix"])
    assert matrix.sum() == pytest.approx(359)  # a fifth of scikit-learn's 1,797 digits
    assert np.trace(matrix) / matrix.sum() == pytest.approx(record["test"]["accuracy"])
    assert record["shrinkage"] == pytest.approx(record["search_value"] - record["fresh_value"])
    wrong = [each["probability"] for each in record["most_confidently_wrong"]]
    assert wrong == sorted(wrong, reverse=True)
    assert all(each["label"] != each["predicted"] for each in record["most_confidently_wrong"])


def test_validation_chooses_the_epoch_of_the_answer(finished: Path) -> None:
    plan = library.find_plan(finished)
    (trial,) = plan.trials("final")
    means = [
        np.mean([seed["metrics"]["macro_f1"] for seed in seeds]) for seeds in epochs_of(trial.user_attrs)
    ]
    assert library.final_result(plan)["selected_epoch"] == 1 + int(np.argmax(means))
    assert trial.value == pytest.approx(max(means))


def test_trials_say_what_they_were_trained_from(finished: Path) -> None:
    plan = library.find_plan(finished)
    for name in plan.all_names:
        for trial in plan.trials(name):
            attrs = trial.user_attrs
            assert attrs["config"]["epochs"] == 3
            assert attrs["versions"].keys() >= {"hpo", "optuna", "torch"}
            assert attrs["precision"] in ("fp32", "bf16")
            assert attrs["threads"] >= 1
            assert len(epochs_of(trial.user_attrs)) == len(trial.intermediate_values) == 3
            assert attrs["owner"]["pid"] != os.getpid()
    for trial in plan.trials("shape"):
        assert trial.params["conv1_channels"] <= trial.params["conv2_channels"]
        assert trial.user_attrs["config"]["conv1_channels"] == trial.params["conv1_channels"]
    attrs = plan.storage.study_attrs()
    decision = plan.decision("rate")
    assert decision is not None
    assert decision.source is not None
    assert attrs["shape"]["inherited"]["params"] == decision.params
    assert attrs["shape"]["inherited"]["source"] == {"study": "rate", "trial": decision.source.trial}
    assert {attrs[name]["identity"]["fingerprint"] for name in plan.all_names} == {plan.identity.fingerprint}


def test_tables_and_csv(finished: Path, cli: Cli) -> None:
    shown = cli("show", "rate", "--out", finished)
    assert shown.code == 0
    assert "learning_rate" in shown.out
    assert "decision: chose learning_rate" in shown.out
    assert "not tested" in cli("best", "--out", finished).out
    assert "which validation chose" in cli("final", "--out", finished).out
    exported = list(csv.DictReader(io.StringIO(cli("export", "--out", finished).out)))
    assert [row["study"] for row in exported] == ["rate"] * 2 + ["shape"] * 3 + ["final"]
    assert all(row["epochs"] == "3" for row in exported)
    as_json = json.loads(cli("export", "--json", "--out", finished).out)
    assert len(as_json) == 6


def test_predict_with_the_saved_model(finished: Path, cli: Cli, tmp_path: Path) -> None:
    digits = load_digits()
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        pixels = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(paths[-1])
    predictions = json.loads(cli("predict", finished / MODEL, *paths, "--json").out)
    right = sum(p["label"] == str(digits.target[i]) for i, p in enumerate(predictions))
    assert right >= 10  # ten classes: two would be chance
    assert all(0 < p["probability"] <= 1 for p in predictions)


def test_verify_trains_again_to_the_same_bits(finished: Path, cli: Cli) -> None:
    for trial in ("rate/1", "shape/2"):
        result = cli("verify", trial, "--out", finished)
        assert (result.code, "equal to the bit" in result.out) == (0, True), result


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert sorted(path.name for path in finished.glob("*.db")) == ["hpo.db"]
    assert (finished / "most-confidently-wrong.png").stat().st_size > 0
    assert not list(finished.glob("checkpoints/**/*.checkpoint"))  # of finished trials none is needed


def test_run_again_trains_nothing_and_says_the_same(finished: Path, cli: Cli) -> None:
    before, model = n_accepted(library.find_plan(finished)), (finished / MODEL).read_bytes()
    (finished / MODEL).write_bytes(b"of another plan, whose folder this was")
    result = cli("run", "--out", finished)
    assert result.code == 0, result.err
    assert "test macro F1" in result.out
    assert n_accepted(library.find_plan(finished)) == before == {"rate": 2, "shape": 3, "final": 1}
    assert (finished / MODEL).read_bytes() == model


def test_the_outcome_fits_a_narrow_terminal(
    finished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        for command in (("status",), ("show", "shape"), ("final",), ("best",)):
            result = cli(*command, "--out", finished)
            assert max(map(len, result.out.splitlines())) <= columns
            assert "…" not in result.out
        shown = cli("show", "shape", "--out", finished).out
        for row in library.rows(library.find_plan(finished), "shape"):
            line = next(line for line in shown.splitlines() if line.startswith(f"{row.trial:5} "))
            values = [str(value) for value in row.params.values()]
            f1, accuracy, loss = (row.metrics[name] for name in ("macro_f1", "accuracy", "loss"))
            assert f1 is not None
            assert accuracy is not None
            assert line.split()[1:-1] == [
                *values,
                f"{100 * f1:.1f}",
                f"{100 * accuracy:.1f}",
                f"{loss:.3f}",
                str(row.best_epoch),
                f"{row.epochs}/{row.epochs_asked}",
            ]


# --- disturbed runs ---------------------------------------------------------------------------------------


def n_epochs(out: Path) -> int:
    """How many epochs the trials of a plan have stored, lost ones included."""
    if not (out / "hpo.db").exists():
        return 0
    import sqlite3

    # by one query: until a plan is opened a small run is over
    try:
        with contextlib.closing(sqlite3.connect(f"file:{out / 'hpo.db'}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM trial_intermediate_values").fetchone()[0])
    except sqlite3.OperationalError:  # it is just being written
        return 0


def kill_everything(process: Any) -> None:
    """SIGKILL to the command and its workers at once, like a power cut for them."""
    import psutil

    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=300)
    process.communicate()


def test_killed_runs_end_bit_for_bit_where_an_undisturbed_one_ends(
    finished: Path, small_studies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("run", "--studies", small_studies, "--out", out, "--workers=2", *SMALL_RUN)
    chance = random.Random(1)
    n_kills = 0
    for _ in range(3):
        goal = n_epochs(out) + chance.randint(1, 3)
        process = start_hpo(*command)
        while n_epochs(out) < goal and process.poll() is None:
            time.sleep(0.02)
        n_kills += process.poll() is None  # a busy machine may let a run end between two looks
        kill_everything(process)
    assert n_kills >= 2
    result = hpo(*command)
    assert result.code == 0, result.err
    disturbed, undisturbed = library.find_plan(out), library.find_plan(finished)
    assert n_accepted(disturbed) == n_accepted(undisturbed)
    assert accepted_epochs(disturbed) == accepted_epochs(undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_puts_trials_back_and_the_run_goes_on(
    number: signal.Signals, code: int, small_studies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--data=digits", "--limit-train=1000", "--limit-valid=100", "--epochs=200", "--final-seeds=1")
    process = start_hpo("run", "rate", "--studies", small_studies, "--out", out, "--workers=2", *options)
    wait_for(lambda: list(out.glob("checkpoints/**/*.checkpoint")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "nothing is lost" in err
    plan = library.find_plan(out)
    slots = Slots.of(plan.trials("rate"))
    assert {slots.state(slot) for slot in slots.attempts} == {SlotState.WAITING}
    assert any(t.user_attrs.get("reason", "").startswith("released") for t in plan.trials("rate"))
    assert list(out.glob("checkpoints/**/*.checkpoint"))


@pytest.mark.slow
def test_runs_started_at_once_share_the_work(small_studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("run", "--studies", small_studies, "--out", out, "--workers=1", *SMALL_RUN)
    processes = [start_hpo(*command) for _ in range(2)]
    outputs = [(process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for _, code in outputs] == [0, 0], outputs
    plan = library.find_plan(out)
    assert n_accepted(plan) == {"rate": 2, "shape": 3, "final": 1}
    owners = {t.user_attrs["owner"]["pid"] for name in plan.all_names for t in plan.trials(name)}
    assert len(owners) == 2


# --- what goes wrong --------------------------------------------------------------------------------------

TINY_MODULE = """
import os
import numpy as np
from hpo import ImageData

def images():
    size = int(os.environ.get("TINY_SIZE", "8"))
    generator = np.random.default_rng(int(os.environ.get("TINY_SEED", "0")))
    labels = np.arange(60) % 2
    pixels = generator.integers(0, 128, (60, size, size, 1)) + 100 * labels[:, None, None, None]
    pixels = pixels.astype(np.uint8)
    return ImageData(pixels, labels, pixels[:20], labels[:20], ("dark", "bright"))
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options for a data set of 60 images made by a user's module."""
    (tmp_path / "tiny.py").write_text(TINY_MODULE)
    monkeypatch.chdir(tmp_path)
    return ("--data=python:tiny:images", "--out=out", "--studies=studies", "--epochs=2", "--final-seeds=1")


TINY: dict[str, Any] = {
    "data": "python:tiny:images",
    "studies": Path("studies"),
    "epochs": 2,
    "final_seeds": 1,
}


@pytest.mark.slow
def test_the_search_never_opens_the_test_set(
    tiny: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_CACHE", "cache")
    write_study("rate", f"{SMALL}[search]\nlearning_rate = [0.01, 0.001]")
    assert cli("create", *tiny).code == 0
    files = list(Path("cache").glob("*/test_*"))
    assert len(files) == 2
    contents = {file: file.read_bytes() for file in files}
    for file in files:
        file.unlink()
    searched = hpo("run", "rate", *tiny)
    assert searched.code == 0, searched.err
    assert cli("final", "--out=out").code != 0
    for file, content in contents.items():
        file.write_bytes(content)
    assert cli("final", "--out=out").code == 0


def test_other_data_are_refused_with_both_fingerprints(
    tiny: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study("rate", "[search]\nlearning_rate = [0.01]")
    assert cli("create", *tiny).code == 0
    ours = library.find_plan("out").identity.fingerprint
    monkeypatch.setenv("TINY_SEED", "1")
    for command in (("run", "--out=out"), ("worker", "--out=out")):
        result = cli(*command)
        assert result.code == 2
        assert ours in result.err
        assert result.err.count("fingerprint") >= 2
        assert "Traceback" not in result.err


def test_a_plan_s_data_may_lie_elsewhere_on_another_machine(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_CACHE", "cache-there")
    write_study("rate", f"{SMALL}[search]\nlearning_rate = [0.01]")
    there = write_folder(tmp_path / "there", train=8, test=2, validation=2)
    size = ("--image-size=8", "--epochs=1", "--final-seeds=1", "--studies=studies")
    assert cli("create", f"--data=folder:{there}", *size).code == 0
    here = there.rename(tmp_path / "here")
    monkeypatch.setenv("HPO_CACHE", "cache-here")
    lost = cli("run")
    assert lost.code == 2
    assert "--data says where" in lost.err
    other = write_folder(tmp_path / "other", train=9, test=2, validation=2)
    for command in ("run", "resume", "create"):
        refused = cli(command, f"--data=folder:{other}")
        assert refused.code == 2
        assert "not the same images" in refused.err
    assert hpo("run", "--data=folder:here", "--workers=1").code == 0
    monkeypatch.setenv("HPO_DATA", f"folder:{here}")
    for words in (("run",), ("resume",), ("final",), ("worker",), ("verify", "rate/0")):
        result = cli(*words)
        assert result.code == 0, result.err


@pytest.mark.usefixtures("tiny")
def test_a_plan_with_winograds_kernels_says_so_and_is_verified_to_the_bit(tmp_path: Path, cli: Cli) -> None:
    images = f"folder:{write_folder(tmp_path / 'images', train=12, test=2, validation=4)}"
    write_study("size", "[base]\nhidden_units = 4\n[search]\nconv2_channels = [64, 96]")
    losses = []
    for kernels in ("plain", "winograd"):
        sizes = ("--studies=studies", "--image-size=16", "--epochs=2", "--final-seeds=1", "--workers=1")
        options = ("--precision=fp32", f"--kernels={kernels}", f"--data={images}", f"--out={kernels}")
        result = cli("run", *sizes, *options)
        assert result.code == 0, result.err
        (first, _) = library.find_plan(kernels).trials("size")
        losses.append([seed["train_loss"] for seeds in epochs_of(first.user_attrs) for seed in seeds])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert "fp32 on cpu with winograd kernels" in cli("doctor", "--out=winograd").out
    assert "equal to the bit" in cli("verify", "size/0", "--out=winograd").out
    compared = json.loads(cli("compare", "plain", "winograd", "--json").out)
    assert compared["differing"]["kernels"] == ["plain", "winograd"]
    refused = cli("run", "size", "--out=winograd", "--kernels=plain")
    assert refused.code == 2
    assert "kernels" in refused.err


@pytest.mark.usefixtures("tiny")
def test_a_diverged_trial_is_a_result_and_never_the_best(cli: Cli) -> None:
    write_study("rate", '[base]\noptimizer = "sgd"\n[search]\nlearning_rate = [100.0, 0.001]')
    plan = train(Path("out"), "rate", **TINY, precision="fp32")
    diverged, fine = library.rows(plan, "rate")
    assert (diverged.state, fine.state) == ("pruned", "complete")
    assert diverged.reason.startswith("diverged")
    assert len(plan.trials("rate")) == 2  # never tried again
    decision = plan.decision("rate")
    assert decision is not None
    assert decision.params["learning_rate"] == 0.001
    assert "diverged" in cli("show", "rate", "--out=out").out


def test_a_point_that_always_fails_is_given_up_and_can_be_retried(tiny: tuple[str, ...], cli: Cli) -> None:
    # 64 GB of weights, more than a process under this limit may have on any machine
    write_study(
        "width",
        "[base]\nconv2_channels = 4096\nconv2_kernel = 31\nhidden_units = 4\n"
        "[search]\nconv1_channels = [2, 4096]",
    )
    result = hpo("run", "width", *tiny, "--epochs=1", max_bytes=2**36)
    assert result.code == 1, result.err
    assert "failed for good: width/2 (conv1_channels 4096)" in result.err
    assert "Traceback" not in result.err
    assert "2/2 (1 failed)" in result.out  # and what the others found is shown as ever
    rows = library.rows(library.find_plan("out"), "width")
    assert [row.state for row in rows] == ["complete", "failed"]
    assert "memory" in rows[1].reason
    assert rows[1].attempt == 2
    retried = cli("retry", "--out=out")
    assert retried.out.startswith("queued again: width/2 (error) as width/3; ")
    plan = library.find_plan("out")
    assert [row.state for row in library.rows(plan, "width")] == ["complete", "waiting"]
    shown = cli("show", "width", "--out=out").out
    assert shown.count("error:") == 2
    decision = plan.decision("width")
    assert decision is not None
    assert decision.params["conv1_channels"] == 2


def test_inherit_published_runs_one_section_alone_with_its_control(tmp_path: Path) -> None:
    plan = train(tmp_path / "out", "l2", inherit="published", pruning=False, **SMALL_SIZES)
    states = {study.name: study.state for study in library.status(plan)}
    assert states.pop("l2") == "done"
    assert set(states.values()) == {"pending"}
    rows = library.rows(plan, "l2")
    assert [row.point for row in rows] == ["control", *[row.point for row in rows[1:]]]
    assert len(rows) == 5
    decision = plan.decision("l2")
    assert decision is not None
    assert decision.control is not None
    assert decision.control.params["l2"] == 0.0
    assert decision.control.params["learning_rate"] == 0.0001
    assert decision.control.seeds.keys() == {0}


def test_published_batch_size_needs_no_extra_control(tmp_path: Path) -> None:
    plan = train(tmp_path / "out", "batch-size", inherit="published", seeds=3, **SMALL_SIZES)
    assert [row.params["batch_size"] for row in library.rows(plan, "batch-size")] == [20, 40, 80]
    decision = plan.decision("batch-size")
    assert decision is not None
    assert decision.tested
    assert decision.control is not None
    assert decision.control.params["batch_size"] == 20


@pytest.mark.usefixtures("tiny")
def test_median_pruning_prunes_and_says_so() -> None:
    write_study(
        "rate",
        "[search]\nlearning_rate = [0.003, 0.002, 0.001, 1e-7]\n"
        '[pruner]\nname = "median"\nn_startup_trials = 2\nn_warmup_steps = 2',
    )
    rows = library.rows(train(Path("out"), "rate", **{**TINY, "epochs": 4}), "rate")
    assert rows[-1].state == "pruned"
    assert rows[-1].reason == "pruned: by median after epoch 2"
    assert rows[-1].epochs == 2


FULL = "hpo status: the output could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "redirect", "code", "says"),
    [
        ("status", "> /dev/full", 1, FULL),
        ("export --rows epochs", "| head -1 > /dev/null", 0, ""),
        ("status", ">&-", 0, ""),
        ("worker", "2> /dev/full", 0, ""),  # a log that finds no room stops nobody
    ],
    ids=["full", "gone", "closed", "log"],
)
def test_output_that_does_not_arrive_is_told_by_a_line_or_by_nothing(
    finished: Path, command: str, redirect: str, code: int, says: str
) -> None:
    name, *options = command.split()
    words = f"{sys.executable} -m hpo {name} --out {finished} {' '.join(options)}"
    script = f"set -o pipefail; {words} {redirect}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, says)


def test_a_terminal_of_few_letters_is_shown_the_codes_of_the_others(finished: Path) -> None:
    command = [sys.executable, "-m", "hpo", "status", "--out", str(finished)]
    settings = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    assert "\\xa7" in done.stdout  # §
