"""Recipes that bring a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import Diverged, InputError, Interrupted
from hpo.training.dry_run import LoopRun, check_recipe, dry_run
from hpo.training.loop import check_state, state_of, train
from hpo.training.own_loop import packed, unpacked
from hpo.training.recipe import Epoch, LoopContext, Recipe
from tests.support.recipes import LoopRecipeParams, OwnLoop, named
from tests.support.toy_images import toy_data

DATA = toy_data(n_train=30, n_valid=15)
CONFIG = OwnLoop().schema.complete({"epochs": 3})


class Scripted(OwnLoop):
    """Yields what a test says."""

    def __init__(self, script: Callable[[int, LoopContext, Any], Iterator[Any]]) -> None:
        self.script = script

    def train(
        self,
        params: LoopRecipeParams,
        data: Any,
        seed: int,
        context: LoopContext,
        resume: Mapping[str, Any] | None = None,
    ) -> Iterator[Any]:
        return self.script(seed, context, resume)


def yielding(*epochs: Any) -> Recipe:
    return Scripted(lambda seed, context, resume: iter(epochs))


GOOD = Epoch({"accuracy": 0.5})


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (({"accuracy": 0.5},), "train must yield hpo.Epoch, yielded dict"),
        ((), "train ended without having yielded an epoch"),
        (
            (Epoch({"accuracy": 0.5}, state={"model": object()}),),
            r"state\['model'\] is of type object; a state",
        ),
        (
            (Epoch({"accuracy": 0.5}, state={"trees": [1, {"x": {1}}]}),),
            r"state\['trees'\]\[1\]\['x'\] is of type set",
        ),
        (
            (Epoch({"accuracy": 0.5}, state={"names": np.array(["a", None])}),),
            r"state\['names'\] is of type ndarray",
        ),
        ((Epoch({"acuracy": 0.5}),), "train returned no 'accuracy', which metrics declares; did you mean"),
        ((Epoch({"accuracy": "high"}),), "train: accuracy = 'high': must be a number"),  # type: ignore[dict-item]
    ],
)
def test_a_loop_that_breaks_the_contract_is_told_how(epochs: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        list(train(yielding(*epochs), CONFIG, DATA, [0]))


def test_seeds_must_end_together() -> None:
    recipe = Scripted(lambda seed, context, resume: iter([GOOD] * (seed + 1)))
    with pytest.raises(InputError, match="of 2 seeds some ended before epoch 2, others go on"):
        list(train(recipe, CONFIG, DATA, [0, 1]))


def test_a_loop_may_end_before_its_epochs_and_is_not_asked_for_more() -> None:
    assert [result.number for result in train(yielding(GOOD, GOOD), CONFIG, DATA, [0])] == [1, 2]
    assert [result.number for result in train(yielding(*[GOOD] * 9), CONFIG, DATA, [0])] == [1, 2, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["accuracy", "training loss"])
def test_what_is_no_number_is_a_divergence(where: str, value: float) -> None:
    epoch = Epoch({"accuracy": value}) if where == "accuracy" else Epoch({"accuracy": 1.0}, train_loss=value)
    with pytest.raises(Diverged, match=f"^seed 4, epoch 2: {where} {value}$"):
        list(train(yielding(GOOD, epoch), CONFIG, DATA, [4]))


def test_results_are_those_that_were_yielded() -> None:
    recipe = yielding(Epoch({"accuracy": np.float32(0.5), "more": 1.0}, train_loss=2))  # type: ignore[dict-item]
    (result,) = train(recipe, CONFIG, DATA, [3])
    (seed,) = result.seeds
    assert (seed.seed, seed.metrics, seed.train_loss) == (3, {"accuracy": 0.5}, 2.0)
    assert (seed.predicted_classes, seed.layers, result.learners) == (None, {}, ())
    assert state_of(result) is None


def test_without_a_state_of_every_seed_there_is_none() -> None:
    recipe = Scripted(lambda seed, context, resume: iter([Epoch({"accuracy": 0.5}, {} if seed else None)]))
    (both,) = train(recipe, CONFIG, DATA, [0, 1])
    (one,) = train(recipe, CONFIG, DATA, [1])
    assert state_of(both) is None
    assert state_of(one) == {"epoch": 1, "states": [{}]}


def test_the_context_is_the_trials_own() -> None:
    found: dict[int, LoopContext] = {}

    def script(seed: int, context: LoopContext, resume: Any) -> Iterator[Epoch]:
        found[seed] = context
        assert list(context.scratch.iterdir()) == []
        (context.scratch / "file").write_text("x")
        yield GOOD

    list(train(Scripted(script), CONFIG, DATA, [0, 1], precision="bf16"))
    assert found[0].scratch != found[1].scratch
    assert not any(context.scratch.exists() for context in found.values())
    assert [(c.device, c.precision, c.threads) for c in found.values()] == [
        ("cpu", "bf16", torch.get_num_threads())
    ] * 2


def test_a_loop_stops_when_it_is_asked_to() -> None:
    stopping = False

    def script(seed: int, context: LoopContext, resume: Any) -> Iterator[Epoch]:
        nonlocal stopping
        yield GOOD
        stopping = True
        assert context.should_stop()

    epochs = train(Scripted(script), CONFIG, DATA, [0], should_stop=lambda: stopping)
    assert next(epochs).number == 1
    with pytest.raises(Interrupted, match="in epoch 2"):
        next(epochs)
    with pytest.raises(Interrupted, match="before epoch 1"):
        next(train(yielding(GOOD), CONFIG, DATA, [0], should_stop=lambda: True))


def test_a_state_of_something_else_is_refused() -> None:
    recipe = OwnLoop()
    results = list(train(recipe, CONFIG, DATA, [0, 1]))
    state = state_of(results[1])
    assert state is not None
    epochs = {result.number: result.seeds for result in results[:2]}
    check_state(state, epochs, recipe, CONFIG, DATA, [0, 1])
    for wrong, seeds in (
        ({**state, "epoch": 3}, [0, 1]),
        ({**state, "epoch": "2"}, [0, 1]),
        ({**state, "states": state["states"][:1]}, [0, 1]),
        ({"epoch": 2}, [0, 1]),
        ({"epoch": 2, "learners": []}, [0, 1]),
        (state, [1, 0]),
        (state, [0]),
    ):
        with pytest.raises(ValueError, match=r"it is|its"):
            check_state(wrong, epochs, recipe, CONFIG, DATA, seeds)


def test_the_test_part_is_scored_from_the_state() -> None:
    recipe = OwnLoop()
    *_, last = train(recipe, recipe.schema.complete({"epochs": 20, "rate": 0.1}), DATA, [0])
    state = state_of(last)
    assert state is not None
    found = recipe.test(recipe.params_of(CONFIG), DATA.valid, unpacked(state["states"][0]))
    assert found == last.seeds[0].metrics
    assert found["accuracy"] > 0.9


def test_a_loop_is_tried_for_an_epoch() -> None:
    found = dry_run(named(OwnLoop()), DATA, CONFIG, device="cpu", precision="fp32")
    assert isinstance(found, LoopRun)
    assert found.metrics.keys() == OwnLoop.metrics.keys()
    assert found.keeps_state
    assert found.resumes
    check_recipe(named(yielding()), DATA)  # it has no network to be tried
    with pytest.raises(InputError, match=r"^recipe Scripted: train ended without having yielded an epoch"):
        dry_run(named(yielding()), DATA, CONFIG, device="cpu", precision="fp32")


def test_a_loop_with_a_state_that_begins_anew_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(resume: Any, *, heeds: bool, chance: Callable[[], float]) -> Iterator[Epoch]:
        done = resume["epoch"] if resume and heeds else 0
        for epoch in range(done + 1, 4):
            yield Epoch({"accuracy": 0.1 * epoch + chance()}, state={"epoch": epoch})

    def tried(*, heeds: bool, chance: Callable[[], float] = lambda: 0.0) -> LoopRun:
        recipe = Scripted(lambda seed, context, resume: script(resume, heeds=heeds, chance=chance))
        monkeypatch.setattr(recipe, "test", lambda params, part, state: {"accuracy": 0.5})
        found = dry_run(named(recipe), DATA, CONFIG, device="cpu", precision="fp32")
        assert isinstance(found, LoopRun)
        return found

    assert tried(heeds=True).resumes
    with pytest.raises(InputError, match="given it as resume begins anew"):
        tried(heeds=False)
    assert tried(heeds=True, chance=iter((0.01, 0.02, 0.03)).__next__).resumes is False
    # one epoch tells nothing
    config = OwnLoop().schema.complete({"epochs": 1})
    found = dry_run(named(OwnLoop()), DATA, config, device="cpu", precision="fp32")
    assert isinstance(found, LoopRun)
    assert found.resumes is None


class OneCycle(OwnLoop):
    """Whose epochs are others where there are more of them."""

    reads_epochs = False

    def train(self, params: Any, *given: Any, **named: Any) -> Iterator[Epoch]:
        for epoch in super().train(params, *given, **named):
            yield replace(epoch, metrics={"accuracy": epoch.metrics["accuracy"] / params.epochs})


def test_a_loop_that_depends_on_epochs_and_denies_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match="reads_epochs is False, but the first of 3 epochs is not the first of 4"
    ):
        dry_run(named(OneCycle()), DATA, CONFIG, device="cpu", precision="fp32")
    monkeypatch.setattr(OneCycle, "reads_epochs", True)
    assert isinstance(dry_run(named(OneCycle()), DATA, CONFIG, device="cpu", precision="fp32"), LoopRun)
    monkeypatch.setattr(OwnLoop, "reads_epochs", False)
    assert isinstance(dry_run(named(OwnLoop()), DATA, CONFIG, device="cpu", precision="fp32"), LoopRun)


def test_a_test_that_needs_a_state_which_is_not_there_is_found_out_before_the_search() -> None:
    stateless = yielding(Epoch({"accuracy": 0.5}))
    with pytest.raises(
        InputError, match=r"^recipe Scripted: .*recipes\.py:\d+: TypeError: 'NoneType' object"
    ):
        dry_run(named(stateless), DATA, CONFIG, device="cpu", precision="fp32")


DTYPES = [np.bool_, np.uint8, np.int8, np.int32, np.int64, np.float16, np.float32, np.float64, np.complex64]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.builds(
        lambda dtype, shape: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
    ),
)
STATES = st.dictionaries(
    st.sampled_from(["numpy", "weights", "trees"]),
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["numpy", "x"]) | st.integers(0, 3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=3,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and (one == other).all())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


@given(STATES)
def test_law_a_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    file = Path(tmp_path_factory.getbasetemp(), "state.pt")
    torch.save(packed(state), file)
    assert equal(unpacked(torch.load(file, weights_only=True)), state)


def test_tensors_stay_tensors_and_numbers_of_numpy_become_plain() -> None:
    state = {"numpy": torch.ones(2), "n": np.int64(3), "pair": (1, 2.0)}
    found = unpacked(packed(state))
    assert torch.equal(found["numpy"], torch.ones(2))
    assert (found["n"], type(found["n"]), found["pair"]) == (3, int, [1, 2.0])
    assert isinstance(unpacked(packed({"numpy": torch.ones(2)}))["numpy"], torch.Tensor)


def test_what_is_packed_is_a_copy() -> None:
    array, tensor = np.zeros(2), torch.zeros(2)
    state = packed({"array": array, "tensor": tensor})
    array += 1
    tensor += 1
    found = unpacked(state)
    assert found["array"].tolist() == found["tensor"].tolist() == [0, 0]
    found["array"] += 1
    assert unpacked(state)["array"].tolist() == [0, 0]
