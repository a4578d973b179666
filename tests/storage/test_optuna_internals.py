"""Optuna's private parts: named in hpo/storage alone, and here held to what we take them to be.

They may change with any version of Optuna, which is why pyproject.toml pins the minor version. To try a new
one, install it and run this file: what fails says which part changed.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState, create_trial

import hpo
from hpo.storage import database
from hpo.storage.optuna_views import showing

ROOT = Path(hpo.__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # QMC, GP

# --- where they are named -----------------------------------------------------------------------------------


@cache
def private_names() -> frozenset[str]:
    """The private attributes and methods of the kinds of Optuna's objects that we hold."""
    study = optuna.create_study()
    held: list[Any] = [
        study,
        study.ask(),
        create_trial(value=0.0),
        *(TPESampler(), QMCSampler(), GPSampler()),
    ]
    of_objects = {name for each in held for name in dir(each)}
    of_classes = {name for each in (RDBStorage, _CachedStorage) for name in dir(each)}
    return frozenset(
        name for name in of_objects | of_classes if name.startswith("_") and not name.endswith("__")
    )


def is_private(path: str) -> bool:
    """Whether a dotted path leads into Optuna by a name that begins with an underscore."""
    root, *names = path.split(".")
    return root == "optuna" and any(name.startswith("_") and not name.endswith("__") for name in names)


def named_in(source: str) -> set[str]:
    """The private parts of Optuna that a module imports, reads on objects other than itself, or overrides."""
    tree = ast.parse(source)
    of_optuna = {"optuna"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
            of_optuna |= {alias.asname or alias.name for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {path for path in paths if is_private(path)}
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if is_private(ast.unparse(node)) or (node.attr in private_names() and not is_own):
                found.add(node.attr)
        elif isinstance(node, ast.ClassDef) and of_optuna & {
            ast.unparse(base).split(".")[0] for base in node.bases
        }:
            methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            found |= methods & private_names()
    return found


def test_private_parts_are_named_in_storage_alone() -> None:
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        parts = named_in(file.read_text("utf-8"))
        if parts and not name.startswith("storage/"):
            found[name] = parts
    assert not found, "move these to hpo/storage"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import optuna.storages._rdb.models", {"optuna.storages._rdb.models"}),
        ("from optuna.storages._rdb import models", {"optuna.storages._rdb.models"}),
        ("from optuna.storages import _CachedStorage", {"optuna.storages._CachedStorage"}),
        ("import optuna\noptuna.samplers._base", {"_base"}),
        ("trial._trial_id", {"_trial_id"}),
        ("import optuna\nclass A(optuna.Study):\n    def _get_trials(self): ...", {"_get_trials"}),
        ("from optuna import Study as S\nclass A(S):\n    def _get_trials(self): ...", {"_get_trials"}),
        ("class A:\n    def _get_trials(self): return self._study_id", set()),
        ("from optuna.trial import TrialState\nimport optuna\noptuna.__version__", set()),
    ],
)
def test_private_parts_are_found(source: str, parts: set[str]) -> None:
    assert named_in(source) == parts


# --- tables -------------------------------------------------------------------------------------------------

TABLES: dict[Any, str] = {
    models.StudyModel: "studies: study_id study_name",
    models.StudyUserAttributeModel: "study_user_attributes: study_user_attribute_id study_id key value_json",
    models.StudySystemAttributeModel: (
        "study_system_attributes: study_system_attribute_id study_id key value_json"
    ),
    models.TrialModel: "trials: trial_id number study_id state datetime_start datetime_complete",
    models.TrialUserAttributeModel: "trial_user_attributes: trial_user_attribute_id trial_id key value_json",
    models.TrialSystemAttributeModel: (
        "trial_system_attributes: trial_system_attribute_id trial_id key value_json"
    ),
    models.TrialParamModel: "trial_params: param_id trial_id param_name param_value distribution_json",
    models.TrialValueModel: "trial_values: trial_value_id trial_id objective value value_type",
    models.TrialIntermediateValueModel: (
        "trial_intermediate_values: "
        "trial_intermediate_value_id trial_id step intermediate_value intermediate_value_type"
    ),
    models.TrialHeartbeatModel: "trial_heartbeats: trial_heartbeat_id trial_id heartbeat",
    models.VersionInfoModel: "version_info: version_info_id schema_version library_version",
}
UPSERTED: dict[Any, tuple[str, str]] = {
    models.TrialUserAttributeModel: ("trial_id", "key"),
    models.TrialParamModel: ("trial_id", "param_name"),
    models.TrialIntermediateValueModel: ("trial_id", "step"),
    models.TrialValueModel: ("trial_id", "objective"),
}


@pytest.fixture
def rdb(tmp_path: Path) -> Iterator[RDBStorage]:
    """A database as Optuna makes it."""
    rdb = RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    yield rdb
    rdb.engine.dispose()


@pytest.fixture
def study(rdb: RDBStorage) -> optuna.Study:
    """A study in that database."""
    return optuna.create_study(study_name="s", storage=rdb, direction="maximize")


@pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)
def test_a_table_has_the_columns_that_we_read_and_write(rdb: RDBStorage, model: Any) -> None:
    columns = sqlalchemy.inspect(rdb.engine).get_columns(model.__tablename__)
    assert f"{model.__tablename__}: {' '.join(each['name'] for each in columns)}" == TABLES[model]


def test_there_are_no_other_tables(rdb: RDBStorage) -> None:
    known = {text.split(":")[0] for text in TABLES.values()} | {"study_directions", "alembic_version"}
    assert set(sqlalchemy.inspect(rdb.engine).get_table_names()) == known


@pytest.mark.parametrize("model", UPSERTED, ids=lambda model: model.__name__)
def test_a_row_that_we_upsert_is_known_by_these_columns(rdb: RDBStorage, model: Any) -> None:
    unique = sqlalchemy.inspect(rdb.engine).get_unique_constraints(model.__tablename__)
    assert [tuple(each["column_names"]) for each in unique] == [UPSERTED[model]]


def test_a_study_is_found_or_raised(rdb: RDBStorage, study: optuna.Study) -> None:
    find = models.StudyModel.find_or_raise_by_id
    assert list(inspect.signature(find).parameters) == ["study_id", "session", "for_update"]
    with _create_scoped_session(rdb.scoped_session) as session:
        assert find(study._study_id, session, for_update=True).study_name == "s"
        with pytest.raises(KeyError):
            find(study._study_id + 1, session, for_update=True)


def test_the_version_that_wrote_the_tables_is_there(rdb: RDBStorage) -> None:
    with _create_scoped_session(rdb.scoped_session) as session:
        info = models.VersionInfoModel.find(session)
        assert info is not None
        assert info.library_version == optuna.__version__
    assert rdb.get_current_version() == rdb.get_head_version()
    assert rdb.get_head_version() in rdb.get_all_versions()


def test_migrations_are_the_same_for_all_databases(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        rdb = RDBStorage(f"sqlite:///{tmp_path / name}.db")
        migrations = database._read_migrations(rdb._version_manager)
        found.append((migrations.dir, [each.revision for each in migrations.walk_revisions()]))
        rdb.engine.dispose()
    assert found[0] == found[1]
    assert len(found[0][1]) > 5


@pytest.mark.parametrize("number", [0.5, float("inf"), float("-inf")])
def test_numbers_that_a_column_cannot_hold_have_a_type_beside_them(number: float) -> None:
    value, report = models.TrialValueModel, models.TrialIntermediateValueModel
    assert value.stored_repr_to_value(*value.value_to_stored_repr(number)) == number
    stored = report.intermediate_value_to_stored_repr(number)
    assert report.stored_repr_to_intermediate_value(*stored) == number
    assert [kind.name for _, kind in (value.value_to_stored_repr(number), stored)] == [
        {0.5: "FINITE", float("inf"): "INF_POS", float("-inf"): "INF_NEG"}[number]
    ] * 2


def test_a_trial_is_these_rows(rdb: RDBStorage, study: optuna.Study) -> None:
    trial = study.ask({"rate": FloatDistribution(0.0, 1.0)})
    trial.set_user_attr("ours", {"a": [1]})
    trial.report(0.25, 3)
    rdb.set_trial_system_attr(trial._trial_id, "theirs", "b")
    rdb.record_heartbeat(trial._trial_id)
    study.tell(trial, 0.5)
    with rdb.engine.connect() as connection:
        rows = {
            model.__tablename__: list(connection.execute(sqlalchemy.select(model.__table__)).mappings())
            for model in TABLES
        }
    (row,) = rows["trials"]
    assert row["trial_id"] == trial._trial_id
    assert (row["number"], row["study_id"], row["state"]) == (0, study._study_id, TrialState.COMPLETE)
    (attr,), (system,) = rows["trial_user_attributes"], rows["trial_system_attributes"]
    assert (attr["key"], attr["value_json"]) == ("ours", '{"a": [1]}')
    assert (system["key"], system["value_json"]) == ("theirs", '"b"')
    (param,) = rows["trial_params"]
    assert (param["param_name"], param["param_value"]) == ("rate", trial.params["rate"])
    (value,), (report,) = rows["trial_values"], rows["trial_intermediate_values"]
    assert (value["objective"], value["value"], value["value_type"].name) == (0, 0.5, "FINITE")
    assert (report["step"], report["intermediate_value"]) == (3, 0.25)
    (beat,) = rows["trial_heartbeats"]
    assert beat["trial_id"] == trial._trial_id
    assert abs(beat["heartbeat"] - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)


def test_columns_hold_utc_and_trials_local_time(
    rdb: RDBStorage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        trial = study.ask()
        study.tell(trial, 0.5)
        with rdb.engine.connect() as connection:
            table = models.TrialModel.__table__
            row = connection.execute(sqlalchemy.select(table)).mappings().one()
        (frozen,) = study.get_trials()
        for stored, shown in (
            (row["datetime_start"], frozen.datetime_start),
            (row["datetime_complete"], frozen.datetime_complete),
        ):
            assert shown is not None
            assert stored.tzinfo is shown.tzinfo is None
            assert shown - stored == timedelta(hours=9)
            assert abs(stored - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        time.tzset()


# --- sessions and storages ----------------------------------------------------------------------------------


def test_a_scoped_session_commits_at_its_end_or_rolls_back(rdb: RDBStorage) -> None:
    def names() -> list[Any]:
        with rdb.engine.connect() as connection:
            return list(connection.execute(sqlalchemy.select(models.StudyModel.study_name)).scalars())

    with _create_scoped_session(rdb.scoped_session) as session:
        session.add(models.StudyModel(study_name="kept"))
    with contextlib.suppress(ZeroDivisionError), _create_scoped_session(rdb.scoped_session) as session:
        session.add(models.StudyModel(study_name="lost"))
        session.flush()
        raise ZeroDivisionError
    assert names() == ["kept"]


def test_a_finished_trial_is_not_updatable(rdb: RDBStorage, study: optuna.Study) -> None:
    trial = study.ask()
    rdb.check_trial_is_updatable(trial._trial_id, TrialState.RUNNING)
    with pytest.raises(UpdateFinishedTrialError):
        rdb.check_trial_is_updatable(trial._trial_id, TrialState.COMPLETE)


def test_a_storage_of_ours_is_used_as_it_is_and_asked_for_all_trials(rdb: RDBStorage) -> None:
    assert list(inspect.signature(_CachedStorage).parameters) == ["backend"]
    expected = ["self", "study_id", "deepcopy", "states"]
    assert list(inspect.signature(_CachedStorage.get_all_trials).parameters) == expected
    asked = []

    class Ours(_CachedStorage):
        def get_all_trials(self, study_id: int, *args: Any, **options: Any) -> list[FrozenTrial]:
            asked.append(study_id)
            return super().get_all_trials(study_id, *args, **options)

    ours: BaseStorage = Ours(rdb)
    assert get_storage(ours) is ours
    study = optuna.create_study(study_name="s", storage=ours)
    assert study._storage is ours
    assert asked == []
    study.get_trials()
    assert asked == [study._study_id]
    assert asked == [rdb.get_study_id_from_name("s")]


# --- trials, studies and samplers ---------------------------------------------------------------------------


def test_a_frozen_trial_takes_its_id_and_keeps_it(study: optuna.Study) -> None:
    assert "trial_id" in inspect.signature(FrozenTrial).parameters
    trial = study.ask()
    assert study.get_trials()[0]._trial_id == trial._trial_id
    blank: dict[str, Any] = {
        name: {} for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
    }
    ours = FrozenTrial(
        number=0,
        state=TrialState.WAITING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        trial_id=7,
        **blank,
    )
    assert ours._trial_id == 7


@pytest.mark.parametrize("sampler", [TPESampler(n_startup_trials=1), GPSampler(n_startup_trials=1)])
def test_a_sampler_learns_from_what_the_storage_says_that_it_has(sampler: BaseSampler) -> None:
    assert list(inspect.signature(optuna.Study).parameters) == ["study_name", "storage", "sampler", "pruner"]
    axes: dict[str, BaseDistribution] = {"rate": FloatDistribution(0.0, 1.0)}
    made, asked = optuna.create_study(), 0
    for value in (0.1, 0.2):
        made.add_trial(create_trial(value=value, params={"rate": value}, distributions=axes))
    made.ask()
    *_, running = made.get_trials()

    def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        nonlocal asked
        asked += 1
        return [trial for trial in trials if trial.number != 0]

    ours = showing(made, shown)
    sampler.infer_relative_search_space(ours, running)
    sampler.sample_relative(ours, running, axes)
    sampler.sample_independent(ours, running, "rate", axes["rate"])
    assert asked
    assert [trial.number for trial in ours.get_trials()] == [1, 2]
    assert made.best_trial.number == 0
    assert ours.best_trial.number == 1


def test_a_qmc_sampler_asks_for_the_number_of_its_sample() -> None:
    assert list(inspect.signature(QMCSampler._find_sample_id).parameters) == ["self", "study", "search_space"]

    class Ours(QMCSampler):
        number = 0

        def _find_sample_id(self, *args: Any) -> int:
            return self.number

    def point(number: int) -> dict[str, Any]:
        axes: dict[str, Any] = {"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(0.0, 1.0)}
        sampler, study = Ours(seed=0), optuna.create_study()
        sampler.number = number
        study.ask()
        return sampler.sample_relative(study, study.get_trials()[0], axes)

    assert point(3) == point(3) != point(4)
