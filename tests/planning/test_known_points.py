"""Points that others measured: a study's sampler learns from them, and none of them wins."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial

from hpo.errors import HpoError
from hpo.execution.run import find_or_create_plan
from hpo.planning.known_points import KnownPoint, import_points, known_points, known_trials, read_points
from hpo.planning.plan import Plan
from hpo.planning.samplers import draw
from hpo.space.axes import Choices, Range
from hpo.storage.storage import Storage
from tests.support import simulated
from tests.support.fixtures import Cli
from tests.support.plans import train

RECIPE = """
import hpo

class Knobs(hpo.LoopParams):
    epochs: int = hpo.Field(1, ge=1, le=9)
    x: float = hpo.Field(0.0, ge=0, le=100)
    n: int = hpo.Field(1, ge=1, le=9)
    kind: str = hpo.Field("a")
    on: bool = False

class Simulated(hpo.Recipe):
    Params = Knobs
    metrics = {"accuracy": "maximize"}
    def train(self, params, data, seed, context, resume=None):
        yield hpo.Epoch({"accuracy": 0.9 - abs(params.x - 42) / 200 - 0.01 * params.n}, state={})
    def test(self, params, data, state):
        return {"accuracy": 0.5}
"""
SIZE = """
trials = 4
constraints = ["n <= x"]
[search]
x = {low = 0.0, high = 90.0}
n = [1, 2, 3]
"""
GOOD = "x,n,accuracy\n40,1,0.88\n41.5,2,0.87\n60,3,0.7\n"


def plan_of(folder: Path, studies: dict[str, str] | None = None) -> Plan:
    """A plan of such a recipe, with nothing trained."""
    recipe = simulated.write(folder, RECIPE, studies or {"size": SIZE})
    options = {"recipe": recipe, "data": "digits", "final_seeds": 1}
    return find_or_create_plan(folder / "out", studies=folder / "studies", given=options)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return plan_of(tmp_path)


def csv(text: str, name: str = "old.csv") -> str:
    """A file in the current folder."""
    Path(name).write_text(text)
    return name


def tried(plan: Plan, name: str = "size") -> list[dict[str, object]]:
    return [dict(trial.params) for trial in plan.trials(name)]


def points(values: Sequence[tuple[float, int, float]]) -> list[KnownPoint]:
    return [
        KnownPoint({"x": x, "n": n}, value, f"old.csv, row {row}")
        for row, (x, n, value) in enumerate(values, start=2)
    ]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_sampler_learns_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    """Both draw their first ten points by chance, unless they know others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_of(tmp_path, {"size": f'{SIZE}[sampler]\nname = "{sampler}"'})
    import_points(plan, "size", points([(x, 1, 0.9 - (x - 42) ** 2 / 3000) for x in range(1, 90, 4)]), 0)
    study, spec = plan.storage.study("size"), plan.spec("size")
    study.ask()
    trial, known = study.trials[-1], spec.context()

    def mean_distance(imported: Sequence[FrozenTrial]) -> float:
        drawn = [draw(study, trial, spec, known, index, 0, imported=imported)["x"] for index in range(5)]
        return fmean(abs(float(x) - 42) for x in drawn)

    assert mean_distance(known_trials(plan, "size")) < 0.6 * mean_distance([])


def test_workers_draw_with_them(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "without")
    without = plan_of(tmp_path / "without")
    import_points(plan, "size", points([(x, 1, 0.9 - (x - 42) ** 2 / 3000) for x in range(1, 90, 4)]), 0)
    for each, out in ((plan, tmp_path / "out"), (without, tmp_path / "without" / "out")):
        train(out, "size")
        assert len(tried(each)) == 4
    assert tried(plan)[0] != tried(without)[0]


def test_the_best_is_trained_first_and_only_what_was_trained_wins(plan: Plan, cli: Cli) -> None:
    Path("old.csv").write_text("x,n,accuracy\n40,1,0.88\n5,3,0.999\n60,3,0.7\n")
    assert cli("import", "old.csv", "--out", "out").code == 0
    train(Path("out"), "size")
    assert tried(plan)[0] == {"x": 5.0, "n": 3}
    assert len(tried(plan)) == 5  # beside the four that the study draws
    decision = plan.decision("size")
    assert decision is not None
    assert decision.winner is not None
    best = max(trial.value or 0.0 for trial in plan.trials("size"))
    assert decision.value == decision.winner.value == best < 0.9
    shown = cli("show", "size", "--out", "out").out
    assert "imported: 3 points that the sampler learns from; none of them can win" in shown
    assert "(old.csv, row 3)" in shown
    imported = json.loads(cli("show", "size", "--json", "--out", "out").out)["imported"]
    assert [(each["value"], each["trial"]) for each in imported] == [(0.999, 0), (0.88, None), (0.7, None)]
    # with Optuna alone, too, the study has what was trained and nothing else
    alone = optuna.load_study(study_name="size", storage=plan.storage.url)
    assert alone.best_value == best


def test_a_file_is_imported_once(plan: Plan, cli: Cli) -> None:
    command = ("import", csv(GOOD), "size", "--out", "out")
    assert "3 points imported;" in cli(*command).out
    assert "3 points imported, 3 of them known already" in cli(*command).out
    csv(f"{GOOD}10,1,0.5\n")
    assert "4 points imported, 3 of them known already" in cli(*command).out
    assert [point.value for point in known_points(plan, "size")] == [0.88, 0.87, 0.7, 0.5]
    assert plan.record("size").trained_first == ({"x": 40.0, "n": 1},)


def test_two_at_once_do_no_harm(plan: Plan) -> None:
    values = points([(float(x), 1, 0.5) for x in range(1, 40)])

    def import_all(_: int) -> int:
        return import_points(Plan.open(Storage(plan.storage.url)), "size", values, 1)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(import_all, range(3))) == [0, 0, 39]
    assert len(known_points(plan, "size")) == 39
    assert len(plan.record("size").trained_first) == 1


def test_a_long_table_is_written_in_parts_so_that_workers_come_in_between(
    plan: Plan, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.planning.known_points.POINTS_AT_ONCE", 3)
    sizes = list[int]()
    enqueue = Storage.enqueue

    def watched(storage: Storage, study_id: int, trials: Mapping[str, FrozenTrial], **rest: int) -> int:
        sizes.append(len(trials))
        return enqueue(storage, study_id, trials, **rest)

    monkeypatch.setattr(Storage, "enqueue", watched)
    rows = [(float(x), 1, 0.5) for x in range(1, 9)]
    assert import_points(plan, "size", points(rows[:4]), 0) == 4
    assert import_points(plan, "size", points(rows), 0) == 4
    assert sizes == [3, 1, 3, 3, 2]
    assert len(known_points(plan, "size")) == 8


def test_a_space_of_few_points_is_tried_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    study = 'trials = 9\n[search]\nn = [1, 2, 3]\nkind = ["a", "b"]\n[sampler]\nname = "random"'
    plan = plan_of(tmp_path, {"few": study})
    known = [KnownPoint({"n": 3, "kind": "b"}, 0.9, "x"), KnownPoint({"n": 1, "kind": "a"}, 0.8, "x")]
    import_points(plan, "few", known, 2)
    train(Path("out"), "few")
    found = [tuple(point.values()) for point in tried(plan, "few")]
    assert found[:2] == [(3, "b"), (1, "a")]
    assert sorted(found) == [(n, kind) for n in (1, 2, 3) for kind in ("a", "b")]


def test_what_breaks_a_constraint_with_what_is_inherited_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    size = 'inherits = "first"\ntrials = 2\nconstraints = ["n <= x"]\n[search]\nx = {low = 0.0, high = 9.0}'
    plan = plan_of(tmp_path, {"first": "[search]\nn = [4]", "size": size})
    known = [KnownPoint({"x": 1.0}, 0.9, "x"), KnownPoint({"x": 5.0}, 0.8, "x")]
    import_points(plan, "size", known, 2)
    train(Path("out"), "first", "size")
    assert tried(plan)[0] == {"x": 5.0}
    assert all(float(str(point["x"])) >= 4 for point in tried(plan))
    assert len(tried(plan)) == 1 + 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,n\n1,1\n", "old.csv: has no column accuracy, or value"),
        ("y,n,accuracy\n1,1,0.5\n", "old.csv: has no column x"),
        ("x,n,accuracy\nten,1,0.5\n", "old.csv, row 2, column x: x = 'ten': must be a number"),
        ("x,n,accuracy\n5,1,0.5\n5,1.5,0.5\n", "old.csv, row 3, column n: n = 1.5: must be a whole number"),
        ("x,n,accuracy\n500,1,0.5\n", "old.csv, row 2, column x: x = 500.0: must be at most 100"),
        ("x,n,accuracy\n95,1,0.5\n", "old.csv, row 2, column x: x = 95.0: is not in [search] of size"),
        ("x,n,accuracy\n5,4,0.5\n", "old.csv, row 2, column n: n = 4: is not in [search] of size"),
        ("x,n,accuracy\n1,3,0.5\n", "old.csv, row 2: x 1, n 3: must satisfy n <= x"),
        ("x,n,accuracy\n5,1,\n", "old.csv, row 2, column accuracy: accuracy = '': must be a finite number"),
        ("x,n,accuracy\n5,1,nan\n", "row 2, column accuracy: accuracy = nan: must be a finite number"),
        ("x,n,value\n5,1,91\n", "old.csv, row 2, column value: accuracy = 91: must be a share from 0 to 1"),
        ("x,n,kind,accuracy\n5,1,b,0.5\n", "column kind: kind = 'b', and size trains 'a'"),
        ("x,n,x,accuracy\n5,1,6,0.5\n", "old.csv: has 2 columns x"),
        ("x,n,params_n,accuracy\n5,1,2,0.5\n", "old.csv: has 2 columns n"),
        ("x,n,accuracy,accuracy\n5,1,0.5,0.6\n", "old.csv: has 2 columns accuracy"),
        ("x,n,accuracy\n5,1\n", "old.csv, row 2: has fewer cells than the first row"),
        ("x,n,accuracy\n5,1,1,1\n", "old.csv, row 2: has more cells than the first row"),
        ("x,n,accuracy\n", "old.csv: holds no point for size with a result"),
        ("", "old.csv: has no column x"),
        ("x,n,accuracy\n" + "no,1,0.5\n" * 9, "and 4 more"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_place(plan: Plan, cli: Cli, text: str, says: str) -> None:
    result = cli("import", csv(text), "size", "--out", "out")
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert known_points(plan, "size") == []


def test_tables_of_optuna_and_of_hpo_are_read(plan: Plan, cli: Cli) -> None:
    csv("number,value,params_x,params_n,state,note\n0,0.8,40.0,1.0,COMPLETE,\n1,,5.0,1.0,FAIL,broke\n")
    result = cli("import", "old.csv", "--out", "out")
    assert "1 points" not in result.err
    assert "left out: 1 without a result" in result.err
    assert "columns that were not used: number, note" in result.err
    assert [point.params for point in known_points(plan, "size")] == [{"x": 40.0, "n": 1}]
    train(Path("out"), "size")
    cli("export", "all.csv", "--out", "out")
    rows = Path("all.csv").read_text().splitlines()
    csv("\n".join(row for row in rows if not row.startswith("final")), "ours.csv")
    assert len(read_points(plan, "size", "ours.csv").points) == 5


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    """An Optuna study with all that one may hold, in a SQLite file."""
    file = tmp_path / "prior.db"
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="prior", direction="maximize")
    axes = {
        "x": optuna.distributions.FloatDistribution(0, 200),
        "n": optuna.distributions.CategoricalDistribution((1, 2, 3, 4)),
    }
    found = [(40.0, 1, 0.8), (95.0, 1, 0.7), (150.0, 1, 0.7), (10.0, 4, 0.6), (1.0, 2, 0.6), (50.0, 2, 0.75)]
    for x, n, value in found:
        study.add_trial(optuna.trial.create_trial(params={"x": x, "n": n}, distributions=axes, value=value))
    # as some return of what has failed
    study.add_trial(
        optuna.trial.create_trial(params={"x": 60.0, "n": 1}, distributions=axes, value=-math.inf)
    )
    for state in (optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL):
        study.add_trial(optuna.trial.create_trial(params={"x": 3.0, "n": 1}, distributions=axes, state=state))
    return file


def test_a_study_of_optunas_is_read_whatever_keeps_it(plan: Plan, prior: Path, tmp_path: Path) -> None:
    journal = tmp_path / "prior.log"
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    optuna.copy_study(
        from_study_name="prior",
        from_storage=f"sqlite:///{prior}",
        to_storage=optuna.storages.JournalStorage(backend),
    )
    before = prior.read_bytes()
    for source in (f"sqlite:///{prior}", str(prior), str(journal)):
        found = read_points(plan, "size", source)
        assert [(point.params, point.value) for point in found.points] == [
            ({"x": 40.0, "n": 1}, 0.8),
            ({"x": 50.0, "n": 2}, 0.75),
        ]
        assert [point.origin for point in found.points] == [
            f"{source}, study prior, trial {n}" for n in (0, 5)
        ]
        assert found.unfinished == 3
        assert len(found.outside) == 4
        assert "trial 4: x 1, n 2: must satisfy n <= x" in found.outside[-1]
    assert prior.read_bytes() == before


def test_a_study_that_does_not_fit_is_refused(plan: Plan, prior: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{prior}"
    axis = {"depth": optuna.distributions.IntDistribution(1, 9)}
    other = optuna.create_study(storage=url, study_name="depth", direction="maximize")
    two = optuna.create_study(storage=url, study_name="two", directions=["maximize", "minimize"])
    optuna.create_study(storage=url, study_name="loss")
    space = {**axis, "x": optuna.distributions.FloatDistribution(0, 9), "n": axis["depth"]}
    other.add_trial(
        optuna.trial.create_trial(params={"depth": 3, "x": 3.0, "n": 1}, distributions=space, value=0.5)
    )
    assert len(two.directions) == 2
    (tmp_path / "text.txt").write_text("hello\nworld\n")
    for source, name, says in (
        (url, None, "holds several studies; name one: --optuna-study prior | depth | two | loss"),
        (url, "prio", "holds no study 'prio'; did you mean 'prior'?"),
        (url, "depth", "study depth, trial 0, parameter depth: depth is not a parameter"),
        (url, "two", "has 2 objectives"),
        (url, "loss", "to be minimized, and size is to maximize accuracy"),
        ("sqlite:///nowhere.db", None, "nowhere.db: no such file"),
        ("nowhere.db", None, "nowhere.db: No such file or directory"),
        ("text.txt", None, "text.txt: is not an Optuna storage that can be read"),
        ("postgresql://me:secret@127.0.0.1:1/x", None, "me:***@127.0.0.1:1/x: is not an Optuna storage"),
        ("what://x", None, "what://x: is not an Optuna storage"),
    ):
        with pytest.raises(HpoError) as error:
            read_points(plan, "size", source, name)
        assert says in str(error.value)
        assert error.value.exit_code == 2
        assert "secret" not in str(error.value)
    assert not Path("nowhere.db").exists()


def test_what_can_learn_nothing_takes_no_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plan_of(tmp_path, {"grid": "[search]\nn = [1, 2]", "size": SIZE.replace("4", "1")})
    csv("n,x,accuracy\n1,5,0.5\n")
    command = ("import", "old.csv", "--out", "out")
    assert "grid is a grid: each of its points is trained" in cli(*command, "grid").err
    assert "did you mean 'size'?" in cli(*command, "siz").err
    assert cli(*command, "final").code == 2
    train(Path("out"), "size")
    result = cli(*command)  # of the only study that samples
    assert (result.code, result.out) == (2, "")
    assert "size has decided" in result.err


def test_a_url_may_be_in_a_file(plan: Plan, prior: Path, cli: Cli) -> None:
    Path("url").write_text(f"sqlite:///{prior}\n")
    assert "2 points imported" in cli("import", "@url", "--out", "out").out
    Path("url").write_text("two words")
    assert "must hold one database URL" in cli("import", "@url", "--out", "out").err


def test_the_report_and_a_run_say_what_was_imported(plan: Plan, cli: Cli) -> None:
    cli("import", csv(GOOD), "--out", "out")
    train(Path("out"))
    said = "size: points imported from old.csv: 3; its sampler learns from them, and none of them can win"
    cli("report", "--out", "out")
    assert said in Path("out/report/report.md").read_text()


steps = st.sampled_from([0.1, 0.25, 1, 3])


@given(low=st.integers(-50, 50), step=steps, n_steps=st.integers(1, 40), at=st.integers(0, 40))
def test_an_axis_holds_its_values_and_none_between(low: int, step: float, n_steps: int, at: int) -> None:
    axis = Range(float(low), float(round(low + n_steps * step, 6)), step)
    values = [float(str(value)) for value in axis.values()]
    assert all(value in axis for value in values)
    assert values[0] + step / 3 not in axis
    assert axis.high + step not in axis
    choices = Choices(tuple(values))
    assert values[at % len(values)] in choices
    assert values[0] - step not in choices
