"""What every recipe can rely on: bit-equal resuming, independent seeds, what the extras do."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.data.dataset import DataInfo, Split, TrainingData
from hpo.errors import Diverged, InputError
from hpo.space.parameters import Direction
from hpo.training.augmentations import AUGMENTATIONS
from hpo.training.blobs import FolderBlobs
from hpo.training.checkpoints import Checkpoints
from hpo.training.dry_run import DryRun, check_recipe, dry_run
from hpo.training.learner import build
from hpo.training.loop import SeedEpoch, check_state, state_of, train
from hpo.training.optimizers import OPTIMIZERS
from hpo.training.randomness import generator_of
from hpo.training.recipe import Recipe
from hpo.training.registry import RECIPES, load_recipe
from hpo.training.schedules import SCHEDULES
from tests.support.recipes import (
    RECIPE,
    SMALL_CNN,
    Counting,
    Frozen,
    Mlp,
    MlpParams,
    Noisy,
    OwnLoop,
    Regression,
    Words,
    named,
)
from tests.support.toy_images import toy_data
from tests.support.toy_tables import toy_table

IMAGES = toy_data(n_train=40, n_valid=20)
CLASSES = toy_table(n_train=40, n_valid=20, n_classes=3)
NUMBERS = toy_table(n_train=40, n_valid=20)
SEEDS = (3, 0, 8)


def words(n: int) -> Split:
    """Each class has words of its own, beside those that all have."""
    rng, targets = np.random.default_rng(n), np.arange(n) % 3
    own = rng.integers(0, 50, (n, 2)) + 50 * targets[:, None]
    return Split(np.concatenate([own, rng.integers(150, 200, (n, 2))], axis=1), targets)


WORDS = replace(
    CLASSES,
    train=words(40),
    valid=words(20),
    mean=np.zeros(1, np.float32),
    std=np.ones(1, np.float32),
    info=replace(CLASSES.info, input_shape=(4,)),
)


@dataclass(frozen=True)
class Case:
    """A recipe with parameters and data."""

    recipe: Recipe
    data: TrainingData
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        common = (
            {"batch_size": 8, "learning_rate": 3e-3} if "batch_size" in self.recipe.schema.parameters else {}
        )
        return self.recipe.schema.complete({"epochs": 3, **common, **self.params})


CASES = {
    **{name: Case(load_recipe(name).recipe, IMAGES) for name in RECIPES},
    "small cnn with all extras": Case(
        RECIPE,
        IMAGES,
        {
            **SMALL_CNN,
            "batch_norm": True,
            "flip": True,
            "shift": 1,
            "cutout": 2,
            "mixup": 0.3,
            "mixup_last_epoch": 2,
            "schedule": "cosine",
            "warmup_epochs": 1,
            "label_smoothing": 0.1,
            "class_weights": "balanced",
            "optimizer": "sgd",
            "momentum": 0.9,
        },
    ),
    "mlp": Case(Mlp(), CLASSES),
    "dropout, batch norm, noise, schedule": Case(Noisy(), IMAGES),
    "numbers": Case(Regression(), NUMBERS, {"dropout": 0.2}),
    "two numbers": Case(Regression(), toy_table(n_train=40, n_valid=20, n_outputs=2)),
    "frozen layer, two rates": Case(Frozen(), CLASSES, {"depth": 2, "schedule": "cosine"}),
    "buffer": Case(Counting(), CLASSES),
    "words": Case(Words(), WORDS),
    "loop of its own": Case(OwnLoop(), IMAGES),
}


@dataclass
class Run:
    """All epochs without the clock, a copy of the state after each, and the last state of each seed."""

    epochs: list[list[SeedEpoch]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)


def run(case: Case, seeds: Sequence[int] = (0,), **options: Any) -> Run:
    done = Run()
    for result in train(case.recipe, case.config, case.data, seeds, **options):
        done.epochs.append([replace(seed, seconds=0.0) for seed in result.seeds])
        done.states.append(copy.deepcopy(state_of(result)))
    return done


def same(one: Any, other: Any) -> bool:
    """Whether states are equal to the bit."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def learners(state: Any) -> list[Any]:
    found: list[Any] = state["states" if "states" in state else "learners"]
    return found


def disturb() -> None:
    """Leave the process's generators elsewhere."""
    for generator in (torch.rand, np.random.rand, lambda n: random.random()):
        generator(3)
    torch.manual_seed(torch.initial_seed() + 1)
    np.random.seed(7)
    random.seed(7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_run_resumed_after_any_epoch_ends_bit_for_bit_like_an_undisturbed_one(
    name: str, precision: str, tmp_path: Path
) -> None:
    case = CASES[name]
    whole = run(case, (0, 5), precision=precision)
    assert len(whole.epochs) == 3
    for epoch in (1, 2):
        checkpoints = Checkpoints(FolderBlobs(tmp_path), f"study/{epoch}-0", {})
        checkpoints.save(0, epoch, whole.states[epoch - 1])
        disturb()
        state = checkpoints.latest(dict)
        assert state is not None
        epochs = {number: tuple(each) for number, each in enumerate(whole.epochs[:epoch], start=1)}
        check_state(state, epochs, case.recipe, case.config, case.data, (0, 5))
        resumed = run(case, (0, 5), precision=precision, resume=state)
        assert resumed.epochs == whole.epochs[epoch:]
        assert same(resumed.states[-1], whole.states[-1])


@pytest.mark.parametrize("name", CASES)
def test_a_seed_depends_neither_on_its_companions_nor_on_global_randomness(name: str) -> None:
    together = run(CASES[name], SEEDS)
    disturb()
    alone = run(CASES[name], (0,))
    assert [epoch[1] for epoch in together.epochs] == [epoch[0] for epoch in alone.epochs]
    assert same(learners(together.states[-1])[1], learners(alone.states[-1])[0])
    first, second, _ = learners(together.states[-1])
    assert not same(first, {**second, "seed": first.get("seed")})


# --- the extras ----------------------------------------------------------------------------------

EXTRAS: list[dict[str, Any]] = [
    *({name: {"flip": True}.get(name, 2)} for name in AUGMENTATIONS),
    *({"schedule": name, "warmup_epochs": 1} for name in SCHEDULES),
    *({"schedule": name} for name in SCHEDULES if name != "constant"),
    *({"optimizer": name, "l2": 0.01 if name == "adamw" else 0.0} for name in OPTIMIZERS if name != "adam"),
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "rmsprop", "momentum": 0.9},
    {"label_smoothing": 0.2},
    {"class_weights": "balanced"},
    {"mixup": 0.3},
    {"l2": 0.01},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("recipe", [RECIPE, Noisy()], ids=["cnn", "noisy"])
def test_every_extra_changes_the_training_and_keeps_its_promises(
    recipe: Recipe, extra: dict[str, Any]
) -> None:
    sizes = {**SMALL_CNN} if recipe is RECIPE else {"schedule": "constant"}
    if recipe is RECIPE and "mixup" in extra:
        extra = {"mixup_alpha": extra["mixup"]}
    plain, case = Case(recipe, IMAGES, sizes), Case(recipe, IMAGES, {**sizes, **extra})
    whole = run(case, SEEDS)
    assert not same(learners(whole.states[-1]), learners(run(plain, SEEDS).states[-1]))
    epochs = {number: tuple(each) for number, each in enumerate(whole.epochs[:2], start=1)}
    check_state(whole.states[1], epochs, recipe, case.config, case.data, SEEDS)
    disturb()
    resumed = run(case, SEEDS, resume=whole.states[1])
    assert same(resumed.states[-1], whole.states[-1])
    alone = run(case, (0,))
    assert same(learners(alone.states[-1])[0], learners(whole.states[-1])[1])


class Cooling(Mlp):
    """Its rate falls by itself."""

    def optimizer(self, params: Any, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().optimizer(params, model)
        optimizer.register_step_post_hook(cool)
        return optimizer


def cool(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.9


def test_an_optimizer_that_changes_its_settings_by_itself_is_not_resumed() -> None:
    case = Case(Cooling(), CLASSES)
    first = next(train(case.recipe, case.config, case.data, (0,)))
    assert state_of(first) is None


def test_without_extras_training_is_a_plain_loop_to_the_bit() -> None:
    case = Case(Mlp(), CLASSES)
    params = case.recipe.params_of(case.config)
    network = build(case.recipe, params, case.data.info, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    inputs = torch.from_numpy((case.data.train.inputs - case.data.mean) / case.data.std)
    targets = torch.from_numpy(case.data.train.targets)
    for epoch in (1, 2, 3):
        order = torch.randperm(len(targets), generator=generator_of(4, epoch, "order"))
        for batch in torch.split(order, 8):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs[batch]), targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    ours = learners(run(case, (4,)).states[-1])[0]["network"]
    assert same(dict(ours), dict(network.state_dict()))


def test_extras_that_are_off_are_as_if_not_mentioned() -> None:
    off = {"momentum": 0.0, "schedule": "constant", "warmup_epochs": 0, "label_smoothing": 0.0}
    off |= {"class_weights": "none", "flip": False, "shift": 0, "cutout": 0, "mixup": 0.0}
    few = {**SMALL_CNN, "epochs": 2}
    mentioned, silent = (list(train(RECIPE, config, IMAGES, [0])) for config in ({**few, **off}, few))
    assert same(state_of(mentioned[-1]), state_of(silent[-1]))


IDLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"momentum": 0.9}, {"momentum": 0.0}),
    ({"mixup": 0.3}, {}),  # the CNN has a parameter of its own
    ({"optimizer": "adamw", "momentum": 0.9}, {"optimizer": "adamw"}),
    ({"schedule": "one-cycle", "warmup_epochs": 2}, {"schedule": "one-cycle"}),
    ({"mixup_first_epoch": 2, "mixup_last_epoch": 3}, {}),
    ({"mixup_alpha": 0.3, "mixup_first_epoch": 4}, {"mixup_first_epoch": 4}),
    ({"mixup_alpha": 0.3, "mixup_first_epoch": 4}, {}),
]


@pytest.mark.parametrize(("one", "other"), IDLE, ids=str)
def test_configurations_that_differ_only_in_what_means_nothing_train_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    cases = [Case(RECIPE, IMAGES, {**SMALL_CNN, **params}) for params in (one, other)]
    first, second = (case.config for case in cases)
    assert first != second
    assert RECIPE.schema.effective(first) == RECIPE.schema.effective(second)
    assert same(*(run(case).states[-1] for case in cases))


class OwnLoss(Mlp):
    """Squared error of classes; smooths them as it likes."""

    def loss(self, params: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[1]) * (1 - params.label_smoothing))


NO_IMAGES = r"changes images, and the inputs are arrays \(5,\)"
NO_CLASSES = "is for classes, and the targets are numbers"
WEIGHED = {"class_weights": "balanced"}
MEANINGLESS: dict[str, tuple[Recipe, TrainingData, dict[str, Any]]] = {
    f"flip = true: {NO_IMAGES}": (Mlp(), CLASSES, {"flip": True}),
    f"shift = 2: {NO_IMAGES}": (Mlp(), CLASSES, {"shift": 2}),
    f"cutout = 1: {NO_IMAGES}": (Mlp(), CLASSES, {"cutout": 1}),
    "mixup = 0.3: weighs inputs, and the inputs are integers": (Words(), WORDS, {"mixup": 0.3}),
    f"label_smoothing = 0.2: {NO_CLASSES}": (Regression(), NUMBERS, {"label_smoothing": 0.2}),
    f"class_weights = 'balanced': {NO_CLASSES}": (Regression(), NUMBERS, WEIGHED),
    "class_weights = 'balanced': is for the default loss.*": (OwnLoss(), CLASSES, WEIGHED),
}


@pytest.mark.parametrize("says", MEANINGLESS)
def test_an_extra_that_can_do_nothing_is_refused_before_and_in_training(says: str) -> None:
    case = Case(*MEANINGLESS[says])
    with pytest.raises(InputError, match=f"^{says}$"):
        run(case)
    with pytest.raises(InputError, match=says):
        check_recipe(named(case.recipe), case.data, case.config)


def test_a_loss_of_ones_own_may_smooth_labels() -> None:
    run(Case(OwnLoss(), CLASSES, {"label_smoothing": 0.2}))


@pytest.mark.parametrize("batch_size", [1, 3, 13, 39, 40])
def test_a_last_batch_that_the_network_cannot_train_on_is_found_before(batch_size: int) -> None:
    class Normed(Mlp):
        def build(self, params: Any, data: DataInfo) -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(data.input_shape[0]), super().build(params, data))

    case = Case(Normed(), CLASSES, {"batch_size": batch_size})
    if 40 % batch_size == 1 % batch_size:
        with pytest.raises(InputError, match=f"= {batch_size}: of 40 examples the last is a batch"):
            check_recipe(named(case.recipe), case.data, case.config)
    else:
        check_recipe(named(case.recipe), case.data, case.config)
        run(case)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_and_unused_weights_stay_as_they_are(precision: str) -> None:
    case = CASES["frozen layer, two rates"]
    before = build(case.recipe, case.recipe.params_of(case.config), case.data.info, 0).state_dict()
    after = learners(run(case, precision=precision).states[-1])[0]["network"]
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"1.weight", "1.bias", "unused"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_network_keeps_count_of_is_kept(precision: str) -> None:
    states = run(CASES["buffer"], precision=precision).states
    assert [learners(state)[0]["network"]["0.seen"].item() for state in states] == [40, 80, 120]


def test_the_loss_of_smoothed_and_weighted_labels_is_pytorchs() -> None:
    still = {"optimizer": "sgd", "learning_rate": 1e-30, "label_smoothing": 0.2, "class_weights": "balanced"}
    case = Case(Mlp(), CLASSES, {**still, "batch_size": 40})
    (result, *_) = train(case.recipe, case.config, case.data, [0])
    inputs = torch.from_numpy((case.data.train.inputs - case.data.mean) / case.data.std)
    targets = torch.from_numpy(case.data.train.targets)
    counts = torch.bincount(targets, minlength=3)
    assert len(set(counts.tolist())) > 1
    with torch.inference_mode():
        outputs = result.learners[0].network(inputs)
        loss = F.cross_entropy(outputs, targets, 40 / (3 * counts), label_smoothing=0.2)
    assert result.seeds[0].train_loss == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_has_the_rate_of_its_progress(schedule: str) -> None:
    case = Case(Mlp(), CLASSES, {"schedule": schedule, "warmup_epochs": 1, "optimizer": "sgd"})
    params = case.recipe.params_of(case.config)
    for result in train(case.recipe, case.config, case.data, [0]):
        (group,) = result.learners[0].optimizer.param_groups
        last_step = 5 * result.number - 1
        assert group["lr"] == pytest.approx(3e-3 * case.recipe.schedule(params, last_step / 15))


class Halved(Mlp):
    """A schedule of its own."""

    def schedule(self, params: MlpParams, progress: float) -> float:
        assert 0 <= progress < 1
        return 0.5


def test_a_schedule_of_its_own_is_the_rate() -> None:
    half = Case(Mlp(), CLASSES, {"learning_rate": 1.5e-3})
    assert same(
        learners(run(Case(Halved(), CLASSES)).states[-1])[0]["network"],
        learners(run(half).states[-1])[0]["network"],
    )


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_classes_are_learnt_by_any_recipe(alpha: float) -> None:
    data = toy_table(n_train=300, n_classes=3)
    case = Case(Mlp(), data, {"epochs": 12, "learning_rate": 0.01, "mixup": alpha, "dropout": 0.1})
    last = run(case).epochs[-1][0]
    assert last.metrics["macro_f1"] > 0.9
    assert last.predicted_classes == 3
    assert last.layers == {}


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_numbers_are_learnt(n_outputs: int) -> None:
    data = toy_table(n_train=300, n_outputs=n_outputs)
    case = Case(Regression(), data, {"epochs": 20, "learning_rate": 0.01, "mixup": 0.1})
    first, *_, last = run(case).epochs
    assert last[0].metrics["r2"] > 0.9
    assert last[0].metrics["loss"] < first[0].metrics["loss"]
    assert last[0].metrics.keys() == Regression.metrics.keys()
    assert last[0].predicted_classes is None


def test_watched_layers_are_told() -> None:
    (epoch, *_) = run(Case(Noisy(), IMAGES)).epochs
    (health,) = epoch[0].layers.values()
    assert list(epoch[0].layers) == ["hidden"]
    assert health.weight_gradient > 0
    assert health.dead_share is not None
    assert 0 <= health.dead_share < 1


# --- what breaks the contract --------------------------------------------------------------------


class Wide(Mlp):
    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        return super().build(params, replace(data, n_outputs=data.n_outputs + 1))


class NoModule(Mlp):
    def build(self, params: MlpParams, data: DataInfo) -> Any:
        return 3


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.linear(inputs.flatten(1))
        return outputs, outputs


class Tuple(Mlp):
    def build(self, params: MlpParams, data: DataInfo) -> nn.Module:
        return Pair()


def evaluating(found: object) -> Recipe:
    """A recipe whose `evaluate` returns this."""

    class Evaluating(Mlp):
        metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": "maximize", "cost": "minimize"}

        def evaluate(self, outputs: Tensor, targets: Tensor) -> Any:
            return found

    return Evaluating()


BROKEN: list[tuple[Recipe, str]] = [
    (Wide(), r"the network returned outputs of shape \(8, 4\) for 8 inputs; 3 classes need \(8, 3\)"),
    (NoModule(), "build must return a torch.nn.Module, returned int"),
    (Tuple(), "the network must return a tensor, returned tuple"),
    (
        evaluating({"accuracy": 1.0, "costs": 1}),
        "evaluate returned no 'cost', which metrics declares; did you",
    ),
    (evaluating([1.0]), "evaluate must return a mapping of metrics, returned list"),
    (evaluating({"accuracy": 1.0, "cost": "high"}), "evaluate: cost = 'high': must be a number"),
    (evaluating({"accuracy": 1.0, "cost": torch.ones(2)}), r"evaluate: cost = tensor\(.*: must be a number"),
]


@pytest.mark.parametrize(("recipe", "said"), BROKEN, ids=[said[:40] for _, said in BROKEN])
def test_a_recipe_that_breaks_the_contract_is_told_how(recipe: Recipe, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        run(Case(recipe, IMAGES))
    with pytest.raises(InputError, match=f"^recipe {type(recipe).__name__}: {said}"):
        check_recipe(named(recipe), IMAGES)


class SaysItDrawsNothing(Mlp):
    """Has dropout, if its parameters say so."""

    draws_in_training = False


def test_who_says_that_training_draws_nothing_is_tried() -> None:
    recipe = named(SaysItDrawsNothing())
    check_recipe(recipe, IMAGES)
    config = recipe.recipe.schema.complete({"dropout": 0.1})
    with pytest.raises(InputError, match="draws_in_training is False, but a step of training draws random"):
        check_recipe(recipe, IMAGES, config)


def test_numbers_need_as_many_outputs_as_there_are() -> None:
    case = Case(Wide(), toy_table(n_outputs=2))
    with pytest.raises(InputError, match=r"\(8, 3\) for 8 inputs; 2 numbers to predict need \(8, 2\)"):
        run(case)


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (-1e200, "-inf"), (torch.tensor(1e308).double(), "inf")],
)
def test_a_metric_that_is_no_number_is_a_divergence(value: Any, told: str) -> None:
    with pytest.raises(Diverged, match=f"^seed 0, epoch 1: cost {told}$"):
        run(Case(evaluating({"accuracy": 1.0, "cost": value}), IMAGES))


def test_metrics_of_numbers_are_told_with_their_directions() -> None:
    declared = "{'loss': 'minimize', 'mae': 'minimize', 'r2': 'maximize'}"
    with pytest.raises(InputError, match=re.escape(f"declare what it returns, as metrics = {declared}")):
        run(Case(Mlp(), toy_table(n_outputs=1)))


def test_metrics_may_be_tensors_and_more_than_are_declared() -> None:
    recipe = evaluating({"accuracy": torch.tensor(0.5), "cost": np.float32(2), "more": "text"})
    assert run(Case(recipe, IMAGES)).epochs[0][0].metrics == {"accuracy": 0.5, "cost": 2.0}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.recipe.has_own_loop])
def test_a_dry_run_tells_what_a_recipe_is(name: str) -> None:
    case = CASES[name]
    check_recipe(named(case.recipe), case.data, case.config)
    found = dry_run(named(case.recipe), case.data, case.config, device="cpu", precision="fp32")
    assert isinstance(found, DryRun)
    network = build(case.recipe, case.recipe.params_of(case.config), case.data.info, 0)
    assert found.n_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.output_shape == (case.config["batch_size"], case.data.n_outputs)
    assert found.repeats
    assert found.ms_per_step > 0


class Slower(Mlp):
    """Whose rate is the lower the more epochs there are."""

    reads_epochs = False

    def optimizer(self, params: Any, model: nn.Module) -> torch.optim.Optimizer:
        slower = params.model_copy(update={"learning_rate": params.learning_rate / params.epochs})
        return super().optimizer(slower, model)


def test_who_says_that_epochs_do_not_depend_on_how_many_there_are_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="reads_epochs is False, but the first of"):
        check_recipe(named(Slower()), CLASSES)
    monkeypatch.setattr(Slower, "reads_epochs", True)
    check_recipe(named(Slower()), CLASSES)
    monkeypatch.setattr(Mlp, "reads_epochs", False)
    check_recipe(named(Mlp()), CLASSES)
