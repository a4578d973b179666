from __future__ import annotations

import itertools
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.errors import InputError, StudyFileError
from hpo.space import study_file
from hpo.space.axes import Choices, Range
from hpo.space.constraints import Constraint
from hpo.space.study_file import MAX_GRID_POINTS, StudySpec, load_studies
from tests.support.recipes import SCHEMA
from tests.support.studies import spec_of, stored
from tests.support.toml import toml

DEFAULTS = SCHEMA.defaults


def load_study(file: Path) -> StudySpec:
    return study_file.load_study(file, SCHEMA)


def load(folder: Path) -> dict[str, StudySpec]:
    return load_studies(folder, SCHEMA)


def parse(text: object) -> Constraint:
    return Constraint.parse(text, SCHEMA.numbers, SCHEMA.parameters)


def write(folder: Path, text: str, name: str = "lr") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text, "utf-8")
    return file


def problem(folder: Path, text: str, name: str = "lr") -> str:
    """What is said about a file, after the file's name."""
    file = write(folder, text, name)
    with pytest.raises(StudyFileError) as caught:
        load_study(file)
    assert str(caught.value) == f"{file}: {caught.value.problem}"
    return caught.value.problem


# --- what a file says --------------------------------------------------------------------------------


def test_the_smallest_file_is_a_grid_over_the_defaults(tmp_path: Path) -> None:
    spec = load_study(write(tmp_path, "search.learning_rate = [0.1, 1]"))
    assert spec.name == "lr"
    assert spec.search == {"learning_rate": Choices((0.1, 1.0))}
    assert spec.is_grid
    assert spec.trials is None
    assert spec.context() == DEFAULTS
    assert spec.grid(DEFAULTS) == [{"learning_rate": 0.1}, {"learning_rate": 1.0}]


def test_every_key(tmp_path: Path) -> None:
    text = """
        title = "Joint"
        section = "3"
        inherits = "l2"
        constraints = ["conv1_channels <= conv2_channels", "hidden_units > 1e1"]
        trials = 30
        [fixed]
        batch_norm = true
        [search]
        conv1_channels = [16, 32]
        learning_rate = {low = 1e-5, high = 1, log = true}
        hidden_units = {low = 64, high = 256, step = 64}
        [sampler]
        name = "tpe"
        n_startup_trials = 5
        [pruner]
        name = "patient"
        patience = 3
        wrapped = {name = "median"}
        [published]
        choice = {batch_norm = false}
        [[published.results]]
        params = {batch_norm = false}
        accuracy = 0.5
        note = "none"
    """
    spec = load_study(write(tmp_path, text))
    assert list(spec.search) == ["conv1_channels", "learning_rate", "hidden_units"]
    assert spec.search["learning_rate"] == Range(1e-5, 1.0, None, log=True)
    assert spec.search["hidden_units"] == Range(64, 256, 64)
    assert spec.constraints[1] == Constraint("hidden_units", ">", 10)
    assert spec.sampler.options == {"n_startup_trials": 5}
    assert spec.pruner.options == {"patience": 3, "wrapped": {"name": "median"}}
    assert spec.published is not None
    assert spec.published.results[0].accuracy == 0.5
    assert (spec.is_grid, spec.trials) == (False, 30)
    inherited = {**DEFAULTS, "l2": 0.5}
    assert spec.context(inherited) == {**inherited, "batch_norm": True}
    assert stored(spec) == spec


def test_the_sampler_is_a_grid_exactly_where_all_axes_can_be_enumerated(tmp_path: Path) -> None:
    stepped = "search.hidden_units = {low = 64, high = 256, step = 64}\nsearch.l2 = [0.0, 0.1]"
    spec = load_study(write(tmp_path, stepped))
    assert [point["hidden_units"] for point in spec.grid({})] == [64, 64, 128, 128, 192, 192, 256, 256]
    spec = load_study(write(tmp_path, "trials = 3\nsearch.hidden_units = {low = 64, high = 256}"))
    assert spec.sampler.name == "tpe"


def test_base_belongs_to_the_context_and_fixed_wins_over_what_is_known(tmp_path: Path) -> None:
    text = """
        constraints = ["conv1_channels <= conv2_channels"]
        base.hidden_units = 7
        fixed.conv2_channels = 32
        search.conv1_channels = [16, 32, 64]
    """
    spec = load_study(write(tmp_path, text))
    assert spec.context()["hidden_units"] == 7
    assert spec.grid({**DEFAULTS, "conv2_channels": 128}) == [{"conv1_channels": 16}, {"conv1_channels": 32}]


def test_constraints_on_inherited_values_are_applied_when_they_are_known(tmp_path: Path) -> None:
    text = """
        inherits = "other"
        constraints = ["conv1_channels <= conv2_channels"]
        search.conv1_channels = [16, 32, 64]
    """
    spec = load_study(write(tmp_path, text))
    assert len(spec.grid({})) == 3
    assert spec.grid({**DEFAULTS, "conv2_channels": 16}) == [{"conv1_channels": 16}]
    assert spec.grid({**DEFAULTS, "conv2_channels": 8}) == []


def test_mixup_that_ends_before_it_begins_is_no_point(tmp_path: Path) -> None:
    text = "search.mixup_first_epoch = [1, 5, 9]\nsearch.mixup_last_epoch = [4, 8]"
    spec = load_study(write(tmp_path, text))
    points = spec.grid({**DEFAULTS, "mixup_alpha": 0.2})
    assert len(points) == 3
    for point in points:
        SCHEMA.complete(point)
    with pytest.raises(InputError, match="mixup_first_epoch = 9, mixup_last_epoch = 8: must satisfy"):
        SCHEMA.complete({"mixup_first_epoch": 9, "mixup_last_epoch": 8})
    assert not spec.feasible({**DEFAULTS, "mixup_first_epoch": 9, "mixup_last_epoch": 8})


# --- what is refused, and how ------------------------------------------------------------------------

L2 = "search.l2 = [0.1]"
FRACTIONS = ("l2", "learning_rate", "mixup_alpha")
NO_POINT = "constraints leave no point: nothing in the search space satisfies "
REFUSED: list[tuple[str, str]] = [
    # the file
    ("search.l2 = [", "is not valid TOML: "),
    (f"title = 'a'\ntitle = 'b'\n{L2}", "is not valid TOML: Cannot overwrite a value"),
    (f"search.l2 = [{'9' * 5000}]", "is not valid TOML: "),
    (f"search.l2 = {'[' * 5000}", "is nested too deeply"),
    (f"trials = 0x{'f' * 5000}\n{L2}", "trials: the number needs more than 64 bits"),
    ("[search]\nl2 = [nan]", "search.l2[0] = nan: must be a finite number"),
    ("search.l2 = {low = 0, high = inf}", "search.l2.high = inf: must be a finite number"),
    (f"sampler.since = 2020-01-01\n{L2}", "sampler.since = 2020-01-01: dates and times mean nothing"),
    # its keys
    ("", "says nothing of a study; give at least a title, [fixed] or [search]"),
    ("[sampler]\nname = 'tpe'\n", "search is missing, which sampler 'tpe' draws points of"),
    ("trials = 3", "trials = 3: there is no [search], and so a single point"),
    (
        "inherits = 'plan:rate'",
        "inherits = 'plan:rate' does not name another plan's study; write plan:OUT/STUDY",
    ),
    ("start = {}", 'start is not a key of a study file; write inherits = "plan:OUT/STUDY"'),
    (f"name = 'x'\n{L2}", "name is not a key of a study file; a study is named by its file"),
    (f"inherit = 'x'\n{L2}", "inherit is not a key of a study file; did you mean 'inherits'?"),
    (f"title = 1\n{L2}", "title = 1: must be text, in quotes"),
    (f"section = 2.1\n{L2}", "section = 2.1: must be text, in quotes"),
    ("search = 3", "search = 3: must be a table"),
    (f"fixed = 3\n{L2}", "fixed = 3: must be a table"),
    ("base.l2 = 0.1\ninherits = 'x'\nsearch.epochs = [1]", "base and inherits exclude each other"),
    (f"published.chosen.l2 = 0.1\n{L2}", "published.chosen is not a key of a study file; did you mean"),
    (f"published.choice.l3 = 0.1\n{L2}", "published.choice.l3 is not a parameter; known: conv1_channels, "),
    (
        "published.results = [{accuracy = 70.5}]\nsearch.l2 = [0.1]",
        "published.results.0.accuracy = 70.5: must be at most 1",
    ),
    (
        "published.results = [{f1 = 0.5}]\nsearch.l2 = [0.1]",
        "published.results.0.f1 is not a key of a study file",
    ),
    (
        "published.results = [{params = {l2 = -1}}]\nsearch.l2 = [0.1]",
        "published.results.params.l2 = -1: must be at least 0",
    ),
    # parameters
    ("search.lr = [0.1]", "search.lr is not a parameter; did you mean 'learning_rate'?"),
    (f"fixed.batchnorm = true\n{L2}", "fixed.batchnorm is not a parameter; did you mean 'batch_norm'?"),
    ("search.l2 = [0.1]\nfixed.l2 = 0.2", "l2 is in both [fixed] and [search]; keep one"),
    ("search.l2 = [0.1]\nbase.l2 = 0.2", "l2 is in both [base] and [search]; keep one"),
    ("search.epochs = [1]\nbase.l2 = 0.2\nfixed.l2 = 1", "l2 is in both [base] and [fixed]; keep one"),
    (f"fixed.batch_size = 2.0\n{L2}", "fixed.batch_size = 2.0: must be a whole number"),
    (f"fixed.batch_size = true\n{L2}", "fixed.batch_size = true: must be a whole number"),
    (f"base.learning_rate = 0\n{L2}", "base.learning_rate = 0: must be greater than 0"),
    (f"fixed.conv1_kernel = 4\n{L2}", "fixed.conv1_kernel = 4: must be odd"),
    (
        "search.optimizer = ['adam', 'lion']",
        "search.optimizer = 'lion': is not known; known: adam, adamw, sgd, rmsprop",
    ),
    # axes
    ("[search]", "search is empty; give at least one parameter"),
    ("search.l2 = []", "search.l2 is empty; give at least one value"),
    ("search.l2 = 0.1", "search.l2 = 0.1: must be a list of values or a range"),
    ("search.l2 = [0.1, '0.2']", "search.l2 = '0.2': must be a number"),
    ("search.l2 = [1, 0.5, 1.0]", "search.l2 repeats 1.0; each value once"),
    ("search.l2 = {low = 0.1}", "search.l2.high is missing; a range needs low and high"),
    ("search.l2 = {low = 0.1, hi = 1}", "search.l2.hi is not a key of a range; did you mean 'high'?"),
    ("search.l2 = {low = 0.1, high = 0.1}", "search.l2: low 0.1 must be less than high 0.1"),
    ("search.l2 = {low = 0, high = 1, log = true}", "search.l2.low = 0.0: a log range starts above 0"),
    (
        "search.l2 = {low = -1, high = 1}",
        "search.l2.low = -1: must be at least 0",
    ),
    ("search.l2 = {low = 0, high = 1, log = 1}", "search.l2.log = 1: must be true or false"),
    ("search.l2 = {low = 1, high = 2, step = 1, log = true}", "search.l2: log and step exclude each other"),
    ("search.l2 = {low = 1, high = 2, step = 0}", "search.l2.step = 0: must be a number above 0"),
    ("search.l2 = {low = 1, high = 2, step = true}", "search.l2.step = true: must be a number above 0"),
    (
        "search.l2 = {low = 1, high = 2, step = 0.3}",
        "search.l2.step = 0.3: does not lead from low 1.0 to high 2.0; the last value is 1.9",
    ),
    ("search.l2 = {low = 1, high = 2, step = 1e-300}", "search.l2.step = 1e-300: too small for the range"),
    (
        "search.epochs = {low = 1, high = 4, step = 1.5}",
        "search.epochs.step = 1.5: must be a whole number above 0",
    ),
    (
        "search.epochs = {low = 1, high = 4, step = 2}",
        "search.epochs.step = 2: does not lead from low 1 to high 4; the last value is 3",
    ),
    (
        "search.conv1_kernel = {low = 3, high = 7, step = 1}",
        "search.conv1_kernel.low + step = 4: must be odd",
    ),
    (
        "trials = 9\nsearch.conv1_kernel = {low = 3, high = 7}",
        "search.conv1_kernel.low + step = 4: must be odd",
    ),
    ("search.optimizer = {low = 1, high = 2}", "search.optimizer: only a number can have a range"),
    ("search.batch_norm = {low = false, high = true}", "search.batch_norm: only a number can have a range"),
    # sampler, trials, grid
    (f"sampler = 'tpe'\n{L2}", "sampler = 'tpe': must be a table"),
    (f"sampler.n_startup_trials = 1\n{L2}", "sampler.name is missing"),
    ("search.l2 = {low = 0, high = 1}", "trials is missing; sampler 'tpe' needs it, as trials = 30"),
    ("trials = 0\nsearch.l2 = {low = 0, high = 1}", "trials = 0: must be at least 1"),
    (f"trials = 3\n{L2}", "trials = 3: a grid tries each of its points; remove the key"),
    (
        "sampler.name = 'grid'\nsearch.l2 = {low = 0, high = 1}",
        "search.l2 has no step, so a grid cannot enumerate it",
    ),
    (
        "".join(f"search.{n} = {{low = 1e-3, high = 1, step = 1e-3}}\n" for n in FRACTIONS),
        "search: the grid has 1,000,000,000 points, at most 100,000 are allowed",
    ),
    # constraints
    (f"constraints = 'l2 < 1'\n{L2}", "constraints = 'l2 < 1': must be a list"),
    (
        f"constraints = ['l3 < 1']\n{L2}",
        "constraints: l3 in 'l3 < 1' is neither a parameter nor a cost; known: ",
    ),
    (f"constraints = ['optimizer == adam']\n{L2}", "constraints: optimizer in 'optimizer == adam' is not a"),
    ("constraints = ['l2 < 0.1']\nsearch.l2 = [0.1, 0.2]", NO_POINT + "l2 < 0.1"),
    ("constraints = ['l2 > 1', 'l2 < 1']\nsearch.l2 = [0.1, 2]", NO_POINT),
    ("constraints = ['l2 > 1']\ntrials = 2\nsearch.l2 = {low = 0, high = 1}", NO_POINT),
    (f"constraints = ['conv1_channels > 900']\n{L2}", NO_POINT),
    (f"constraints = ['epochs > 9']\ninherits = 'x'\nfixed.epochs = 9\n{L2}", NO_POINT),
    ("search.mixup_first_epoch = [11, 12]", NO_POINT + "mixup_first_epoch <= mixup_last_epoch"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_refused_with_key_value_and_what_would_be_right(tmp_path: Path, text: str, said: str) -> None:
    assert problem(tmp_path, text).startswith(said)


@pytest.mark.parametrize("name", ["-lr", "my study", "ä", "x" * 65])
def test_refused_names(tmp_path: Path, name: str) -> None:
    assert "cannot name a study" in problem(tmp_path, "search.l2 = [0.1]", name)


def test_final_is_reserved(tmp_path: Path) -> None:
    assert problem(tmp_path, "search.l2 = [0.1]", "final").startswith(
        "'final' is the name of the final stage"
    )


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="No such file"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("title = 'Grün'".encode("latin-1"))
    with pytest.raises(StudyFileError, match="is not valid TOML"):
        load_study(tmp_path / "latin.toml")
    os.mkfifo(tmp_path / "pipe.toml")  # to read it would wait for a writer
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(StudyFileError, match=f"{name}.toml: is a pipe or a device, not a file"):
            load_study(tmp_path / f"{name}.toml")


def test_a_file_saved_by_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "lr.toml").write_bytes(b"\xef\xbb\xbfsearch.l2 = [0.1]\r\n")
    assert load_study(tmp_path / "lr.toml").search == {"l2": Choices((0.1,))}


VALUES = st.recursive(
    st.one_of(
        st.integers(-3, 200),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.sampled_from(["adam", "tpe", "grid", "l2 <= 1", ""]),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["low", "high", "step", "log", "name", *SCHEMA.parameters]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)
KEYS = [*StudySpec.model_fields, "results", "unknown"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=st.dictionaries(st.sampled_from(KEYS), VALUES), search=st.none() | VALUES)
def test_no_file_raises_anything_else(tmp_path: Path, document: dict[str, Any], search: Any) -> None:
    if search is not None:
        document["search"] = search
    file = write(tmp_path, "\n".join(f"{key} = {toml(value)}" for key, value in document.items()))
    try:
        spec = load_study(file)
    except StudyFileError as error:
        assert str(error).startswith(f"{file}: ")  # noqa: PT017 - most examples raise nothing
    else:
        assert stored(spec) == spec


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_no_bytes_raise_anything_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(StudyFileError):
        load_study(tmp_path / "x.toml")


# --- grids ---------------------------------------------------------------------------------------------

AXES = {
    "conv1_channels": st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    "conv2_channels": st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    "optimizer": st.lists(st.sampled_from(["adam", "adamw", "sgd"]), min_size=1, unique=True),
    "l2": st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True),
}
GRIDS = st.dictionaries(st.sampled_from(list(AXES)), st.none(), min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: AXES[name] for name in names})
)


@given(search=GRIDS)
def test_a_grid_is_the_product_of_its_axes_less_what_constraints_exclude(
    search: dict[str, list[Any]],
) -> None:
    free = spec_of(search=search)
    product = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    assert free.grid(DEFAULTS) == product
    text = "conv1_channels <= conv2_channels"
    allowed = [
        point for point in product if operator.le(*({**DEFAULTS, **point}[n] for n in text.split(" <= ")))
    ]
    document = {"name": "x", "search": search, "constraints": [text]}
    if not allowed:
        with pytest.raises(InputError, match="leave no point"):
            StudySpec.model_validate(document, context={"schema": SCHEMA})
        return
    spec = StudySpec.model_validate(document, context={"schema": SCHEMA})
    assert spec.grid(DEFAULTS) == allowed
    assert all(spec.feasible({**DEFAULTS, **point}) for point in allowed)


@given(low=st.integers(0, 50), step=st.integers(1, 50), n=st.integers(1, 60), digits=st.integers(0, 6))
def test_a_range_with_a_step_has_no_rounding_errors(low: int, step: int, n: int, digits: int) -> None:
    def shifted(number: int) -> float:
        return float(f"{number}e-{digits}")

    high = low + n * step
    if shifted(high) > 100:
        return
    axis = {"low": shifted(low), "high": shifted(high), "step": shifted(step)}
    spec = spec_of(search={"l2": axis})
    assert spec.search["l2"].values() == tuple(shifted(low + i * step) for i in range(n + 1))
    assert spec.search["l2"].size == n + 1


def test_a_grid_of_the_largest_size_is_accepted_and_one_above_refused() -> None:
    n = MAX_GRID_POINTS // 10
    search = {"batch_size": {"low": 1, "high": n, "step": 1}, "epochs": list(range(1, 11))}
    assert len(spec_of(search=search).grid({})) == MAX_GRID_POINTS
    search = {"batch_size": {"low": 1, "high": 9091, "step": 1}, "epochs": list(range(1, 12))}
    with pytest.raises(InputError, match="100,001 points"):
        spec_of(search=search)


# --- constraints -----------------------------------------------------------------------------------------

COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@given(
    comparison=st.sampled_from(list(COMPARISONS)),
    number=st.integers(-5, 5) | st.floats(-5, 5),
    value=st.integers(-5, 5),
    space=st.sampled_from(["", " ", "\t "]),
    swap=st.booleans(),
)
def test_a_constraint_means_what_python_would(
    comparison: str, number: float, value: int, space: str, swap: bool
) -> None:
    sides = [str(number), "epochs"] if swap else ["epochs", str(number)]
    constraint = parse(space + f"{space}{comparison}{space}".join(sides) + space)
    values = [number, value] if swap else [value, number]
    assert constraint.holds({"epochs": value}) == COMPARISONS[comparison](*values)
    assert constraint.possible({"epochs": (value, value)}) == constraint.holds({"epochs": value})
    assert parse(str(constraint)) == constraint
    assert constraint.names == {"epochs"}


@given(
    comparison=st.sampled_from(list(COMPARISONS)),
    values=st.tuples(*[st.integers(0, 3)] * 2),
    spans=st.tuples(*[st.integers(0, 3)] * 2),
)
def test_a_constraint_that_holds_somewhere_is_possible(
    comparison: str, values: tuple[int, int], spans: tuple[int, int]
) -> None:
    constraint = parse(f"epochs {comparison} batch_size")
    bounds = [(value, value + span) for value, span in zip(values, spans, strict=True)]
    corners = itertools.product(*(range(low, high + 1) for low, high in bounds))
    holds = any(constraint.holds({"epochs": a, "batch_size": b}) for a, b in corners)
    assert constraint.possible(dict(zip(("epochs", "batch_size"), bounds, strict=True))) == holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epochs",
        "epochs <",
        "< 3",
        "1 < 2",
        "epochs = 3",
        "epochs < 3 < 4",
        "epochs < 2 + 2",
        "epochs < inf",
        "epochs < 1e999",
        "epochs < __import__('os').getpid()",
        "epochs.real < 3",
        "(epochs < 3)",
        "epochs < ３",
        "not epochs < 3",
        "epochs < 3; epochs < 4",
        "batch_norm == 1",
        3,
        None,
        ["epochs < 3"],
    ],
)
def test_no_comparison(text: object) -> None:
    with pytest.raises(InputError, match=r"^constraints: "):
        parse(text)


@given(text=st.text(max_size=20) | st.from_regex(r"[a-z_0-9]+ ?[<>=!]{1,2} ?[-+.eE0-9a-z_]+", fullmatch=True))
def test_parsing_raises_nothing_else(text: str) -> None:
    try:
        constraint = parse(text)
    except InputError:
        return
    assert constraint.names <= SCHEMA.numbers.keys()
    assert parse(str(constraint)) == constraint


# --- canonical JSON --------------------------------------------------------------------------------------


def test_json_forgets_only_orders_that_mean_nothing(tmp_path: Path) -> None:
    def spec(text: str) -> StudySpec:
        return load_study(write(tmp_path, text))

    a = spec("fixed.epochs = 1\nfixed.l2 = 0\nsearch.batch_size = [1, 2]\nsearch.hidden_units = [3]")
    assert a == spec(
        "fixed.l2 = 0.0\nfixed.epochs = 1\nsearch.batch_size = [1, 2]\nsearch.hidden_units = [3]"
    )
    pruner = "pruner = {{name = 'median', {}, {}}}\nsearch.l2 = [0.1]"
    options = ("n_min_trials = 1", "n_warmup_steps = 2")
    assert spec(pruner.format(*options)) == spec(pruner.format(*reversed(options)))
    assert hash(a) == hash(stored(a))
    assert a != spec("fixed.epochs = 1\nfixed.l2 = 0\nsearch.hidden_units = [3]\nsearch.batch_size = [1, 2]")
    assert a != spec("fixed.epochs = 1\nfixed.l2 = 0\nsearch.batch_size = [2, 1]\nsearch.hidden_units = [3]")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": "x"}', '{"name":"x","search":{"lr":[1]}}'])
def test_what_is_no_stored_study_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        StudySpec.from_json(text, SCHEMA)


# --- folders ---------------------------------------------------------------------------------------------


def tree(folder: Path, **studies: tuple[str, str | None]) -> None:
    for name, (section, parent) in studies.items():
        inherits = f"inherits = '{parent}'\n" if parent else ""
        write(folder, f"section = '{section}'\n{inherits}search.l2 = [0.1]", name)


def test_parents_come_first_then_sections_by_number_then_names(tmp_path: Path) -> None:
    tree(
        tmp_path,
        a=("", None),
        z=("2.10", None),
        y=("2.9", None),
        c=("2.1", "y"),
        b=("2.11", "z"),
        d=("2.2", "z"),
        e=("1", "d"),
    )
    (tmp_path / ".#lock.toml").write_text("not a study")
    (tmp_path / "notes.md").write_text("not a study")
    assert list(load(tmp_path)) == ["y", "c", "z", "d", "e", "b", "a"]


def test_a_chain_of_any_depth(tmp_path: Path) -> None:
    tree(tmp_path, **{f"s{i}": ("", f"s{i + 1}") for i in range(60)}, s60=("", None))
    assert list(load(tmp_path)) == [f"s{i}" for i in reversed(range(61))]


def test_unknown_parents_and_cycles_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, child=("", "parnet"), parent=("", None))
    with pytest.raises(
        StudyFileError, match=r"child.toml: inherits = 'parnet' is not in this folder; did you mean 'parent'"
    ):
        load(tmp_path)
    tree(tmp_path, child=("", "b"), b=("", "c"), c=("", "b"))
    with pytest.raises(StudyFileError, match=r"[bc].toml: inherits from itself: (b → c → b|c → b → c)"):
        load(tmp_path)
    tree(tmp_path, child=("", "child"), b=("", None))
    with pytest.raises(StudyFileError, match="child → child"):
        load(tmp_path)


def test_folders_without_studies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(StudyFileError, match="holds no study files"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["b.TOML", "b.Toml", "plan.TOML"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_file_that_would_be_left_out_is_named(tmp_path: Path, name: str, is_alone: bool) -> None:
    if not is_alone:
        tree(tmp_path, a=("", None))
    (tmp_path / name).write_text("[search]\nlearning_rate = [0.1]")
    with pytest.raises(StudyFileError, match=rf"{name}: would be left out: names end in \.toml"):
        load(tmp_path)


def test_importing_the_module_is_light() -> None:
    heavy = {"torch", "optuna", "numpy", "sklearn"}
    code = f"import hpo.space.study_file, sys; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
