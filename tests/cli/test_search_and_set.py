"""Studies without a file (`--search`), and parameters that are fixed everywhere (`--set`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo import find_plan
from hpo.errors import InputError
from hpo.execution.plan_recipe import given_options, read_folder
from hpo.execution.run import find_or_create_plan
from hpo.monitor.origins import origins
from hpo.planning.inheritance import context_of, control_config, inherited_by
from hpo.planning.scheduler import advance
from tests.support.fixtures import Cli
from tests.support.plans import SMALL_RUN, SMALL_SIZES, SMALL_STUDIES
from tests.support.scripted_worker import Worker, new_plan

RATE = ("--search", "learning_rate=1e-5..1e-2 log")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_without_a_file_is_that_of_the_file(cli: Cli, folder: Path) -> None:
    (folder / "studies").mkdir()
    (folder / "studies" / "search.toml").write_text(
        """
        trials = 20
        [search]
        learning_rate = {low = 1e-5, high = 1e-2, log = true}
        batch_size = [20, 40, 80]
        """
    )
    searching = (*RATE, "--search", "batch_size=20,40,80", "--trials=20")
    assert cli("create", *searching, *SMALL_RUN).code == 0
    assert cli("create", "--studies=studies", "--out=of-file", *SMALL_RUN).code == 0
    here, there = (find_plan(out).specs["search"] for out in ("hpo-out", "of-file"))
    assert here == there
    # the same command finds its plan, one that asks for more trials adds them, another contradicts it
    assert cli("create", *searching, *SMALL_RUN).code == 0
    assert cli("create", *searching[:-1], "--trials=21", *SMALL_RUN).code == 0
    assert find_plan().spec("search").trials == 21
    other = cli("create", "--search", "batch_size=20,40", *SMALL_RUN)
    assert other.code == 2
    assert "study 'search' differs in search, sampler, trials from the plan in" in other.err


def test_a_study_without_a_file_is_forecast_and_one_for_the_library(cli: Cli, folder: Path) -> None:
    study = {"search": {"batch_size": [40, 80]}}
    plan = find_or_create_plan(folder, studies=study, given=SMALL_SIZES)
    assert list(plan.specs) == ["search"]
    forecast = json.loads(cli("plan", "--search=batch_size=40,80", "--json", *SMALL_RUN).out)
    assert [(line["study"], line["points"]) for line in forecast] == [("search", 2), ("final", 1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (RATE, "--search learning_rate: a range is sampled; say how often, as --trials 20"),
        (["--search=batch_size=20,40", "--trials=3"], "--trials 3: lists alone are a grid"),
        (["--trials=3"], "--trials 3 goes with --search"),
        ([*RATE, "--trials=3", "--studies=x"], "--search and --studies x exclude each other"),
        ([*RATE, *RATE, "--trials=3"], "learning_rate is given twice; keep one"),
        (["--search=batch_size"], "names no value; write PARAM=VALUE"),
        (
            ["--search=batchsize=20"],
            "study 'search': search.batchsize is not a parameter; did you mean 'batch_size'?",
        ),
        (["--search=batch_size=0"], "study 'search': search.batch_size = 0: must be at least 1"),
        (["--search=learning_rate=1e-2..1e-5", "--trials=3"], "low 0.01 must be less than high 1e-05"),
        (["--search=batch_size=20", "nothing"], "nothing is not a study of this plan"),
        (["--set=batch_size"], "names no value; write PARAM=VALUE"),
        (["--set=batch_size=20,40"], "is not a single value; --search batch_size=20,40 tries several"),
        (["--set=l2=1", "--set=l2=2"], "l2 is given twice; keep one"),
        (["--set=batchsize=20"], "--set batchsize is not a parameter; did you mean 'batch_size'?"),
        (["--set=batch_size=0"], "--set batch_size = 0: must be at least 1"),
        (["--set=epochs=3"], "--set epochs=3: epochs have an option of their own, --epochs 3"),
        (
            ["--set=batch_size=40"],
            "--set batch_size=40: study 'batch-size' searches batch_size; leave one of them out",
        ),
        (
            ["--search=batch_size=20", "--set=mixup_first_epoch=9", "--set=mixup_last_epoch=3"],
            "--set mixup_first_epoch=9 --set mixup_last_epoch=3: study 'search': constraints leave no point",
        ),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else None,
)
def test_what_cannot_be_used_is_refused_in_words(
    cli: Cli, folder: Path, arguments: list[str], said: str
) -> None:
    result = cli("run", "--data=digits", *arguments)
    assert result.code == 2, result
    assert said in " ".join(result.err.split())
    assert not list(folder.glob("**/*.db"))


def test_what_is_set_holds_at_every_point_and_is_said(folder: Path, cli: Cli) -> None:
    plan = new_plan(folder, SMALL_STUDIES, set={"batch_size": 40, "conv1_kernel": 5, "l2": 0})
    assert plan.options.set == {"batch_size": 40, "conv1_kernel": 5, "l2": 0.0}
    for name in plan.specs:
        advance(plan)
        worker = Worker(plan)
        while plan.storage.waiting([plan.storage.study_id(name)], 1):
            trial = worker.claim(name)
            config = plan.storage.trial(trial._trial_id).user_attrs["config"]
            assert (config["batch_size"], config["conv1_kernel"]) == (40, 5)
            worker.finish(trial, [0.5])
    advance(plan)
    where = origins(plan)
    assert {of.carried["batch_size"].name for of in where.values()} == {"--set"}
    assert where["rate"].context["conv1_channels"].name == "base of rate"
    assert "fixed in this study: batch_size 40, conv1_kernel 5" in cli("show", "rate", f"--out={folder}").out


def test_what_is_set_is_recorded_and_not_to_be_contradicted(folder: Path, cli: Cli) -> None:
    new_plan(folder, SMALL_STUDIES, set={"batch_size": 40})
    studies = f"--studies={folder / 'studies'}"
    assert cli("create", "--set=batch_size=40", studies, f"--out={folder}").code == 0
    assert cli("create", studies, f"--out={folder}").code == 0
    other = cli("create", "--set=batch_size=20", f"--out={folder}")
    assert other.code == 2
    assert "--set batch_size=20 contradicts the plan" in other.err
    assert "which was created with --set batch_size=40" in other.err
    added = cli("create", "--set=l2=0.1", "--out=other", studies, *SMALL_RUN)
    assert added.code == 0
    again = cli("create", "--set=flip=true", "--out=other")
    assert "--set flip=true contradicts" in again.err


def test_a_published_choice_is_overruled(folder: Path) -> None:
    studies = {
        "rate": f"{SMALL_STUDIES['rate']}[published]\nchoice = {{batch_size = 80, learning_rate = 0.001}}",
        "l2": 'inherits = "rate"\n[search]\nl2 = [0.1]',
    }
    plan = new_plan(folder, studies, inherit="published", set={"batch_size": 40})
    inherited = inherited_by(plan, "l2")
    assert inherited is not None
    assert control_config(plan, inherited)["batch_size"] == 40
    assert context_of(plan, "l2", inherited)["batch_size"] == 40


def test_the_file_of_a_plan_may_set_parameters_and_the_command_adds_to_them(folder: Path) -> None:
    (folder / "plan.toml").write_text("set = {batch_size = 40, l2 = 0.1}")
    (folder / "rate.toml").write_text("[search]\nlearning_rate = [0.1]")
    options, _, specs = read_folder(folder, given_options(folder, {"set": {"l2": 0.2}}))
    assert options.set == specs["rate"].fixed == {"batch_size": 40, "l2": 0.2}
    (folder / "plan.toml").write_text("set = 3")
    with pytest.raises(InputError, match=r"plan\.toml: set = 3: must be a table"):
        given_options(folder, {})
