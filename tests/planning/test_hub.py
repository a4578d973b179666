"""Samplers and pruners of OptunaHub by its real loader, from a registry on this machine in GitHub's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.errors import InputError
from hpo.execution.backends.worker_spec import KEPT
from hpo.execution.worker import work
from hpo.planning.hub import ALLOWED
from hpo.planning.plan import Plan
from hpo.planning.studies import check_study
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, made_plan
from tests.support.studies import spec_of

SAMPLER = """
import optuna
from ._value import VALUE

class Constant(optuna.samplers.RandomSampler):
    def __init__(self, rate=VALUE, *, seed=None):
        super().__init__(seed)
        self.rate, self.is_seeded, self.began = rate, seed is not None, False

    def before_trial(self, study, trial):
        self.began = True

    def sample_relative(self, study, trial, search_space):
        assert self.began and self.is_seeded
        return {"learning_rate": self.rate}

class Other(Constant):
    pass
"""
PRUNER = """
import optuna
from optuna.pruners import MedianPruner

class Always(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository as OptunaHub's is, and its two commits."""
    root = tmp_path_factory.mktemp("github") / "optuna" / "optunahub-registry"
    commits: list[str] = []

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    for value in (0.002, 0.004):
        files = {
            "samplers/constant/__init__.py": "from .sampler import Constant, Other\n",
            "samplers/constant/sampler.py": SAMPLER,
            "samplers/constant/_value.py": f"VALUE = {value}\n",
            "samplers/broken/__init__.py": "import no_such_module\n",
            "pruners/always/__init__.py": PRUNER,
        }
        for name, text in files.items():
            file = root / "package" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if not commits:
            git("init", "-q")
            git("config", "uploadpack.allowAnySHA1InWant", "true")
        git("add", "-A")
        git("commit", "-qm", "x")
        commits.append(git("rev-parse", "HEAD"))
    return root, commits


@pytest.fixture
def hub(registry: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commits of a registry that git takes for GitHub's, where its code is allowed."""
    root, commits = registry
    monkeypatch.setenv("OPTUNAHUB_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{root.parent.parent}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    monkeypatch.setenv(ALLOWED, "1")
    return commits


def said(**tables: Any) -> str:
    """Why a study with this sampler or pruner is refused."""
    document: dict[str, Any] = {
        "trials": 1,
        "search": {"learning_rate": [0.1, 0.2]},
        "sampler": {"name": "random"},
    }
    with pytest.raises(InputError) as caught:
        check_study(spec_of(**{**document, **tables}), Path("x.toml"))
    return str(caught.value)


def hub_plan(folder: Path, sampler: str, pruner: str = 'name = "none"') -> Plan:
    text = f"""
        trials = 2
        {SMALL}
        [search]
        learning_rate = {{low = 1e-4, high = 1e-2}}
        [sampler]
        {sampler}
        [pruner]
        {pruner}
    """
    return made_plan(folder, {"s": text}, epochs=2, limit_train=40, limit_valid=20)


def test_the_code_of_a_commit_draws_and_prunes(hub: list[str], tmp_path: Path) -> None:
    first, second = hub
    found = {}
    for commit in (first, second):
        sampler = f'name = "hub:constant@{commit}"\nclass = "Constant"'
        plan = hub_plan(tmp_path / commit, sampler, f'name = "hub:always@{commit}"')
        assert commit in plan.storage.study_attrs()["s"]["definition"]
        assert work(plan.storage, out=tmp_path / commit, studies=["s"]) is None
        trials = plan.trials("s")
        assert [trial.state for trial in trials] == [TrialState.PRUNED] * 2
        found[commit] = [trial.params["learning_rate"] for trial in trials]
    assert found == {first: [0.002, 0.002], second: [0.004, 0.004]}
    sampler = f'name = "hub:constant@{first}"\nclass = "Other"\nrate = 0.008'
    plan = hub_plan(tmp_path / "option", sampler)
    assert work(plan.storage, out=tmp_path / "option", studies=["s"]) is None
    assert [trial.params["learning_rate"] for trial in plan.trials("s")] == [0.008, 0.008]


def test_nothing_is_loaded_where_it_is_not_allowed(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    plan = hub_plan(tmp_path / "plan", f'name = "hub:constant@{hub[0]}"\nclass = "Constant"')
    loaded = {name for name in sys.modules if name.startswith("optunahub_registry.")}
    for value in (None, "0"):
        monkeypatch.delenv(ALLOWED) if value is None else monkeypatch.setenv(ALLOWED, value)
        name = f"hub:broken@{hub[0]}"
        where = f"https://github.com/optuna/optunahub-registry/tree/{hub[0]}/package"
        for kind in ("sampler", "pruner"):
            assert said(**{kind: {"name": name}}) == (
                f"x.toml: {kind}.name = {name!r} is code from OptunaHub, which runs only where you allow it: "
                f"read {where}/{kind}s/broken and set HPO_ALLOW_HUB_CODE=1"
            )
        # nor by a worker, whatever the database says
        with pytest.raises(InputError, match=r"^study 's': sampler.name = .* set HPO_ALLOW_HUB_CODE=1"):
            work(plan.storage, out=tmp_path, studies=["s"])
        # nor by who only looks at the plan
        assert cli("status", "--storage", plan.storage.url).code == 0
        assert cli("show", "s", "--storage", plan.storage.url).code == 0
    assert {name for name in sys.modules if name.startswith("optunahub_registry.")} == loaded
    assert ALLOWED in KEPT  # by those that a process starts on its machine


def test_what_cannot_be_used_is_refused_in_words(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub[0]
    for name in ("hub:constant", "hub:constant@main", f"hub:../x@{commit}", f"hub:constant@{commit[:-1]}"):
        assert "must be hub:NAME@COMMIT, the commit with all its 40 digits" in said(sampler={"name": name})
    constant = {"name": f"hub:constant@{commit}", "class": "Constant"}
    assert (
        said(sampler={"name": constant["name"]}) == "x.toml: sampler.class is missing: it has Constant, Other"
    )
    assert said(sampler={**constant, "class": "Constnt"}).endswith("is not there; did you mean 'Constant'?")
    assert said(sampler={**constant, "rte": 1}).endswith(
        "sampler.rte is not an option of Constant; did you mean 'rate'?"
    )
    assert said(sampler={**constant, "seed": 1}).endswith(
        "is not an option of Constant; seeds come from the plan"
    )
    assert "ModuleNotFoundError: No module named 'no_such_module'" in said(
        sampler={"name": f"hub:broken@{commit}"}
    )
    nothing = f"hub:nothing@{commit}"
    assert said(pruner={"name": nothing}).startswith(f"x.toml: pruner.name = '{nothing}': cannot be loaded")
    wrapped = {"name": "patient", "patience": 1, "wrapped": {"name": nothing}}
    assert said(pruner=wrapped).startswith(f"x.toml: pruner.wrapped.name = '{nothing}' is not known")
    monkeypatch.setenv(
        "GIT_CONFIG_KEY_0", f"url.file://{tmp_path}/nowhere/.insteadOf"
    )  # as without a network
    missing = said(sampler={"name": f"hub:constant@{'0' * 40}"})
    assert "cannot be loaded here: GitCommandError: stderr: 'fatal: " in missing
    assert "\n" not in missing
    monkeypatch.setitem(sys.modules, "optunahub", None)
    assert "needs the package optunahub" in said(sampler={"name": f"hub:constant@{'1' * 40}"})
