"""Small plans: their studies and sizes, made or worked on in this process, and what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.execution.identity import identify
from hpo.execution.plan_recipe import read_folder, record_of
from hpo.execution.run import find_or_create_plan
from hpo.execution.worker import work
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import Plan
from hpo.storage.queue import Slots
from hpo.storage.storage import Storage

SMALL_STUDIES = {
    "rate": """
        title = "Learning rate"
        section = "1"
        [base]
        conv1_channels = 8
        conv2_channels = 8
        [search]
        learning_rate = [0.003, 0.001]
    """,
    "shape": """
        title = "A sampled study under a constraint"
        section = "2"
        inherits = "rate"
        trials = 3
        constraints = ["conv1_channels <= conv2_channels"]
        [search]
        conv1_channels = [4, 8, 16]
        conv2_channels = [4, 8, 16]
        [sampler]
        name = "random"
    """,
}
SMALL_SIZES: dict[str, Any] = {
    "data": "digits",
    "limit_train": 200,
    "limit_valid": 100,
    "epochs": 3,
    "final_seeds": 2,
}
TINY_SIZES: dict[str, Any] = {
    "data": "digits",
    "limit_train": 100,
    "limit_valid": 50,
    "epochs": 3,
    "final_seeds": 1,
}
# what studies of a small network begin with
SMALL = "[base]\nconv1_channels = 4\nconv2_channels = 4\nhidden_units = 16\n"
RATES = {"rate": f"{SMALL}[search]\nlearning_rate = [0.01, 0.001, 0.0001]"}


def as_options(sizes: dict[str, Any]) -> list[str]:
    """The command's options for what a plan is made of."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]


SMALL_RUN = as_options(SMALL_SIZES)


def write_study(name: str, text: str) -> None:
    """A study file in `studies` of the current folder."""
    Path("studies").mkdir(exist_ok=True)
    Path("studies", f"{name}.toml").write_text(text)


def made_plan(folder: Path, studies: dict[str, str], url: str | None = None, **options: Any) -> Plan:
    """A plan in a database of its own, ready to be worked on."""
    (folder / "studies").mkdir(parents=True)
    for name, text in studies.items():
        (folder / "studies" / f"{name}.toml").write_text(text)
    storage = Storage(url or f"sqlite:///{folder / 'hpo.db'}", create=True)
    chosen, named, specs = read_folder(folder / "studies", {**TINY_SIZES, **options})
    return Plan.create(storage, specs, chosen, identify(chosen, 1, specs), record_of(named))


def train(out: Path, *names: str, studies: Path | None = None, **given: Any) -> Plan:
    """A plan written and worked on in this process: for tests of what comes after."""
    plan = find_or_create_plan(out, studies=studies, names=names, given=given)
    assert work(plan.storage, out=out, studies=names) is None
    return plan


def accepted_epochs(plan: Plan) -> dict[tuple[str, str, int], Any]:
    """Per point and replicate: parameters and every stored epoch, seconds apart."""
    found = {}
    for name in plan.all_names:
        slots = Slots.of(plan.trials(name))
        for slot in slots.attempts:
            trial = slots.accepted(slot)
            assert trial is not None
            records = [
                [{key: value for key, value in seed.items() if key != "seconds"} for seed in seeds]
                for seeds in epochs_of(trial.user_attrs)
            ]
            tests = {key: value for key, value in trial.user_attrs.items() if key.startswith("test:")}
            found[name, *slot] = (trial.user_attrs["config"], records, tests, trial.value)
    return found
