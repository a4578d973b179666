import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hpo.data.dataset import Split, TrainingData
from hpo.errors import Diverged, InputError, Interrupted
from hpo.space.parameters import Params
from hpo.training import loop
from hpo.training.blobs import FolderBlobs
from hpo.training.checkpoints import Checkpoints
from hpo.training.cuda import CudaGraph
from hpo.training.devices import (
    DTYPES,
    Normaliser,
    batches,
    check_usable,
    normaliser,
    predict,
    processor,
    resolve_device,
    resolve_precision,
)
from hpo.training.learner import Learner
from hpo.training.loop import (
    CHUNK_STEPS,
    EpochResult,
    SeedEpoch,
    state_of,
)
from hpo.training.metrics import score
from hpo.training.optimizers import OPTIMIZERS
from tests.support.devices import pretended_mps
from tests.support.recipes import RECIPE, SCHEMA, SMALL_CNN
from tests.support.toy_images import toy_data

DATA = toy_data()
PRECISIONS = ["fp32", "bf16"]


def config(**params: Any) -> dict[str, Any]:
    return SCHEMA.complete({**SMALL_CNN, "epochs": 4, "learning_rate": 3e-3, **params})


def train(
    trial: dict[str, Any], data: TrainingData, seeds: Sequence[int], **options: Any
) -> Iterator[EpochResult]:
    return loop.train(RECIPE, trial, data, seeds, **options)


def new_learner(seed: int = 0, precision: str = "fp32", **params: Any) -> Learner:
    return Learner(RECIPE, RECIPE.params_of(config(**params)), DATA.info, seed, precision=precision)


def logits_of(network: Any, images: Any, precision: str = "fp32") -> Tensor:
    return predict(network, images, normaliser(DATA.mean, DATA.std, DATA.info, "cpu"), precision=precision)


def run(
    trial: dict[str, Any], seeds: Sequence[int] = (0,), data: TrainingData = DATA, **options: Any
) -> tuple[list[list[SeedEpoch]], dict[int, dict[str, Any]]]:
    """All epochs: the results without the clock, and a copy of each learner's final state."""
    epochs = []
    for result in train(trial, data, seeds, **options):
        epochs.append([replace(seed, seconds=0.0) for seed in result.seeds])
    return epochs, {learner.seed: flat(learner.state_dict()) for learner in result.learners}


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(state, dict):
        return {prefix: state.clone() if isinstance(state, torch.Tensor) else state}
    parts = (flat(part, f"{prefix}/{name}") for name, part in state.items())
    return {key: value for part in parts for key, value in part.items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_learns(precision: str, batch_norm: bool) -> None:
    epochs, _ = run(config(batch_norm=batch_norm, epochs=12), precision=precision)
    (first,), (last,) = epochs[0], epochs[-1]
    assert last.metrics["macro_f1"] > 0.95
    assert last.metrics["accuracy"] > 0.95
    assert last.predicted_classes == 3
    assert last.metrics["loss"] < first.metrics["loss"]
    assert last.train_loss is not None
    assert first.train_loss is not None
    assert last.train_loss < first.train_loss


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("extra", [{}, {"batch_norm": True, "mixup_alpha": 0.4, "mixup_last_epoch": 3}])
def test_a_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(
    tmp_path: Path, precision: str, optimizer: str, extra: dict[str, Any]
) -> None:
    trial = config(optimizer=optimizer, l2=1e-3, **extra)
    epochs, states = run(trial, [0, 5], precision=precision)
    checkpoints = Checkpoints(FolderBlobs(tmp_path), "study/point-0", {})
    for result in train(trial, DATA, [0, 5], precision=precision):
        checkpoints.save(0, result.number, state_of(result) or {})
        if result.number == 2:
            break
    resumed_epochs, resumed_states = run(trial, [0, 5], precision=precision, resume=checkpoints.latest(dict))
    assert resumed_epochs == epochs[2:]
    assert all(same(resumed_states[seed], states[seed]) for seed in (0, 5))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_seed_does_not_depend_on_its_companions_nor_on_global_randomness(precision: str) -> None:
    trial = config(mixup_alpha=0.2, epochs=2)
    torch.manual_seed(1)
    together, states = run(trial, [3, 0, 8], precision=precision)
    torch.manual_seed(2)
    alone, state = run(trial, [0], precision=precision)
    assert [epoch[1] for epoch in together] == [epoch[0] for epoch in alone]
    assert same(states[0], state[0])
    assert together[0][0].train_loss != together[0][1].train_loss != together[0][2].train_loss


def test_bf16_follows_fp32() -> None:
    losses = [
        [epoch[0].train_loss for epoch in run(config(epochs=2), precision=precision)[0]]
        for precision in PRECISIONS
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("batch_size", [2, 7, 32, 1000])
def test_every_image_is_seen_once_an_epoch(batch_size: int) -> None:
    # with a rate this small the weights stand still, and the training loss is that of the first weights
    trial = config(optimizer="sgd", learning_rate=1e-30, batch_size=batch_size, epochs=2)
    (result, *_) = train(trial, DATA, [0])
    logits = logits_of(result.learners[0].network, DATA.train.inputs)
    expected = score(logits, torch.from_numpy(DATA.train.targets), 3).loss
    assert result.seeds[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_the_order_of_images_changes_from_epoch_to_epoch() -> None:
    trial = config(optimizer="sgd", learning_rate=1e-30, batch_size=1, epochs=2)
    n_asked = 0

    def should_stop() -> bool:
        nonlocal n_asked
        n_asked += 1
        return False

    for _ in train(trial, toy_data(n_train=40), [0], should_stop=should_stop):
        pass
    assert n_asked == 2 * (40 + 3)  # before every step, and before every chunk of 16 of them
    first, second = (epoch[0].layers["output"].weight_gradient for epoch in run(trial)[0])
    assert first != second  # sampled at the same steps, of other images


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_steps_are_the_same_however_many_are_taken_at_once(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for steps in (1, 5, CHUNK_STEPS, 1000):
        monkeypatch.setattr("hpo.training.loop.CHUNK_STEPS", steps)
        ends.append(run(config(batch_size=7, mixup_alpha=alpha, epochs=2))[1][0])
    assert all(same(ends[0], end) for end in ends[1:])


def test_mixup_begins_and_ends_with_its_epochs() -> None:
    plain, _ = run(config())
    late, _ = run(config(mixup_alpha=0.3, mixup_first_epoch=3))
    assert late[:2] == plain[:2]
    assert late[2] != plain[2]
    short, _ = run(config(mixup_alpha=0.3, mixup_last_epoch=1))
    longer, _ = run(config(mixup_alpha=0.3, mixup_last_epoch=2))
    assert short[0] == longer[0] != plain[0]
    assert short[1] != longer[1]


def test_every_seed_starts_with_weights_of_its_own() -> None:
    zero, again, one = (new_learner(seed).network for seed in (0, 0, 1))
    weight, same_weight, other_weight = (RECIPE.layers(each)["hidden"].weight for each in (zero, again, one))
    assert torch.equal(weight, same_weight)
    assert not torch.equal(weight, other_weight)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_l2_is_added_to_the_gradient_biases_included_but_decoupled_with_adamw(
    precision: str, l2: float
) -> None:
    rate = 0.25
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    steps: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for optimizer in ("sgd", "adam", "adamw"):
        learner = new_learner(0, precision, optimizer=optimizer, l2=l2, learning_rate=rate)
        before = [parameter.detach().clone() for parameter in learner.network.parameters()]
        learner.step(images, labels)
        steps[optimizer] = []
        for old, parameter in zip(before, learner.network.parameters(), strict=True):
            assert parameter.grad is not None
            steps[optimizer].append((old, parameter.grad.clone(), parameter.detach().clone()))
    for old, gradient, new in steps["sgd"]:
        torch.testing.assert_close(new, old - rate * (gradient + l2 * old))
    for old, gradient, new in steps["adam"]:
        slope = gradient + l2 * old
        torch.testing.assert_close(new, old - rate * slope / (slope.abs() + 1e-8))
    for old, gradient, new in steps["adamw"]:
        torch.testing.assert_close(new, old * (1 - rate * l2) - rate * gradient / (gradient.abs() + 1e-8))


def test_the_optimizers_are_those_that_a_configuration_may_name() -> None:
    assert get_args(Params.model_fields["optimizer"].annotation) == tuple(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_the_one_that_pytorch_has_by_that_name(name: str) -> None:
    originals: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": partial(torch.optim.Adam, fused=True),
        "adamw": partial(torch.optim.AdamW, fused=True),
        "sgd": partial(torch.optim.SGD, momentum=0.5, fused=True),
        "rmsprop": partial(torch.optim.RMSprop, momentum=0.5),
    }
    params = Params(learning_rate=0.01, l2=0.1, momentum=0.5)
    ends = []
    builders: tuple[Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], ...] = (
        lambda weights: OPTIMIZERS[name](weights, params),
        lambda weights: originals[name](weights, lr=0.01, weight_decay=0.1),
    )
    for build in builders:
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 50)), torch.nn.Parameter(torch.ones(3))]
        optimizer = build(weights)
        for step in range(3):
            for weight in weights:
                weight.grad = weight.detach() * step + 0.5
            with torch.no_grad():
                optimizer.step()
        ends.append({"weights": dict(enumerate(weights)), "state": optimizer.state_dict()["state"]})
    assert same(*map(flat, ends))


def test_training_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from tests.support.toy_images import toy_data\n"
        "from hpo.training.loop import state_of, train\n"
        "from hpo.training.registry import load_recipe\n"
        "recipe = load_recipe('constrained-cnn').recipe\n"
        "config = recipe.schema.complete({'epochs': 2, 'conv2_channels': 64})\n"
        "first = state_of(next(train(recipe, config, toy_data(), [0])))\n"
        "next(train(recipe, config, toy_data(), [0], resume=first))\n"
        "sys.exit(bool({'torch._dynamo', 'sympy'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_norms_are_those_of_autograd(precision: str) -> None:
    learner = new_learner(0, precision, batch_norm=True)
    reference = new_learner(batch_norm=True).network
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    learner.step(images, labels)
    loss = torch.nn.functional.cross_entropy(reference(images), labels)
    wanted = [
        [
            gradient.norm().item()
            for gradient in torch.autograd.grad(loss, (layer.weight, layer.bias), retain_graph=True)
        ]
        for layer in RECIPE.layers(reference).values()
    ]
    torch.testing.assert_close(
        learner.gradient_norms(),
        torch.tensor(wanted),
        rtol={"fp32": 1e-4, "bf16": 0.05}[precision],
        atol=1e-3,
    )


def test_results_are_means_over_seeds_and_plain_json() -> None:
    (result,) = train(config(epochs=1), DATA, [0, 1])
    one, two = result.seeds
    assert result.number == 1
    for name in ("macro_f1", "accuracy", "loss"):
        assert result.mean(name) == pytest.approx((one.metrics[name] + two.metrics[name]) / 2)
    assert result.seconds == one.seconds + two.seconds > 0
    assert list(one.layers) == ["conv1", "conv2", "hidden", "output"]
    assert one.layers["output"].dead_share is None
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_validation_figures_are_those_of_the_predictions(precision: str) -> None:
    (result,) = train(config(epochs=1, batch_norm=True), DATA, [0], precision=precision)
    network = result.learners[0].network
    logits = logits_of(network, DATA.valid.inputs, precision)
    scores = score(logits, torch.from_numpy(DATA.valid.targets), 3)
    assert (result.mean("loss"), result.mean("macro_f1")) == (scores.loss, scores.macro_f1)
    assert network.training  # as it was


def test_images_are_normalised_by_channel_and_lie_channels_last() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    mean, std = np.array([0.1, 0.5, 0.9], np.float32), np.array([0.2, 0.3, 1.0], np.float32)
    normalised = Normaliser(mean, std, (5, 4, 3), "cpu")(torch.from_numpy(images))
    expected = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2))
    torch.testing.assert_close(normalised, expected.float())
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions_do_not_depend_on_the_images_beside_them(precision: str) -> None:
    network = new_learner(batch_norm=True).network
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 1), dtype=np.uint8)
    everything = logits_of(network, images, precision)
    last = logits_of(network, images[-1:], precision)
    assert everything.dtype == torch.float32
    torch.testing.assert_close(everything[-1:], last)


def test_a_loss_that_is_not_finite_ends_the_trial() -> None:
    with pytest.raises(Diverged, match="seed 4, epoch 1: training loss nan"):
        run(config(optimizer="sgd", learning_rate=100.0, l2=100.0), [4])


def test_training_stops_in_the_middle_of_an_epoch() -> None:
    left = iter(range(12 + 5))
    epochs = train(config(), DATA, [0], should_stop=lambda: next(left, None) is None)
    assert next(epochs).number == 1
    with pytest.raises(Interrupted, match="seed 0"):
        next(epochs)


def test_a_state_of_another_seed_is_refused() -> None:
    (result, *_) = train(config(epochs=1), DATA, [0])
    with pytest.raises(ValueError, match="belongs to seed 0, not 1"):
        next(train(config(), DATA, [1], resume=state_of(result)))


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="3×3 pixels are too small"):
        next(train(config(), toy_data(shape=(3, 3, 1)), [0]))


def test_a_constant_network_is_dead_where_its_images_are() -> None:
    dark = Split(np.zeros((30, 8, 8, 1), np.uint8), np.arange(30) % 3)
    (result,) = train(config(epochs=1), replace(DATA, valid=dark), [0])
    (seed,) = result.seeds
    assert seed.predicted_classes == 1
    assert seed.metrics["accuracy"] == pytest.approx(1 / 3)
    assert math.isfinite(seed.metrics["loss"])


def test_devices_are_named_exactly() -> None:
    count = torch.cuda.device_count()
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda:0" if count else "cpu")
    with pytest.raises(InputError, match="known: auto, cpu, cuda"):
        resolve_device("cuda0")
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", ""):
        with pytest.raises(InputError, match="device = "):
            resolve_device(wrong)
    with pytest.raises(InputError, match=f"there are {count}" if count else "no CUDA device"):
        resolve_device(f"cuda:{count}")


def test_a_device_that_does_nothing_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"^device = 'cuda:99' cannot be used: [^\n]+; see what else"):
        check_usable("cuda:99")


def test_apples_gpu_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="no Apple GPU here"):
            resolve_device("mps")
    with pretended_mps(monkeypatch):
        assert resolve_device("mps") == "mps"
        assert not resolve_device("auto").startswith("mps")
    assert resolve_precision("auto", "mps") == resolve_precision("fp32", "mps") == "fp32"
    for other in ("bf16", "tf32"):
        with pytest.raises(InputError, match=f"precision = '{other}': on mps hpo trains in fp32"):
            resolve_precision(other, "mps")
    assert processor("mps") == "Apple GPU"


@pytest.mark.parametrize(
    "extra",
    [{}, {"schedule": "cosine", "flip": True, "shift": 1, "cutout": 2, "mixup_alpha": 0.3}],
    ids=["plain", "everything"],
)
def test_apples_gpu_takes_the_same_steps(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trial = config(**CHUNKS, **extra)
    on_cpu, learners = run(trial, (0, 1))
    with pretended_mps(monkeypatch):
        on_mps, theirs = run(trial, (0, 1), device="mps")
    assert all(same(learners[seed], theirs[seed]) for seed in (0, 1))
    for mine, other in zip(on_cpu, on_mps, strict=True):
        # its sums of losses are of fewer digits
        assert [each.train_loss for each in mine] == pytest.approx([each.train_loss for each in other])
        first, second = ([replace(each, train_loss=None) for each in epoch] for epoch in (mine, other))
        assert first == second


def test_precisions_are_named_exactly() -> None:
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert resolve_precision("auto", "cpu") in PRECISIONS
    with pytest.raises(InputError, match="precision = 'fp16': did you mean"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(
    ("side", "sizes"), [(8, [250, 50]), (32, [250, 50]), (64, [62, 62, 62, 62, 52]), (600, [1] * 300)]
)
def test_larger_images_are_evaluated_in_smaller_batches(side: int, sizes: list[int]) -> None:
    images = torch.zeros(300, 1, 1, 1, dtype=torch.uint8).expand(300, side, side, 1)
    normalise = Normaliser(np.zeros(1), np.ones(1), (side, side, 1), "cpu")
    assert [len(batch) for batch in batches(images, normalise, "fp32")] == sizes


# the first chunk of steps runs as it is, the second is recorded, the third replays it, the last is not whole
CHUNKS = {"batch_size": 2, "epochs": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("extra", [{}, {"mixup_alpha": 0.3, "mixup_first_epoch": 2}], ids=str)
def test_a_gpu_trains_as_the_cpu_does(precision: str, extra: dict[str, Any]) -> None:
    trial, data = config(**CHUNKS, **extra), toy_data(n_train=2 * (3 * CHUNK_STEPS + 1))
    on_cpu, on_gpu, again = (
        run(trial, (0, 1), data, device=device, precision=precision)[0]
        for device in ("cpu", "cuda:0", "cuda:0")
    )
    assert on_gpu == again
    for mine, theirs in zip(on_cpu, on_gpu, strict=True):
        assert [each.train_loss for each in mine] == pytest.approx(
            [each.train_loss for each in theirs], rel=0.02
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recording_takes_memory_that_pytorch_kept() -> None:
    size = 2**28
    twos = partial(torch.full, (size,), 2, dtype=torch.uint8, device="cuda:0")
    graph = CudaGraph(lambda x: (twos()[0] * x,), "cuda:0")
    graph(torch.ones(1, device="cuda:0"))
    _, total = torch.cuda.mem_get_info()
    kept = torch.empty(2 * size, dtype=torch.uint8, device="cuda:0")
    allowed = torch.cuda.memory_reserved() + size // 2  # without what is kept a recording does not fit
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    del kept
    try:
        assert [graph(torch.ones(1, device="cuda:0"))[0].item() for _ in range(2)] == [2, 2]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replayed_steps_end_where_single_steps_end(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, data = config(**CHUNKS, optimizer=optimizer), toy_data(n_train=2 * (3 * CHUNK_STEPS + 1))
    replayed = run(trial, data=data, device="cuda:0")
    monkeypatch.setattr("hpo.training.loop.CudaGraph", lambda function, device: function)
    single = run(trial, data=data, device="cuda:0")
    assert replayed[0] == single[0]
    assert same(replayed[1][0], single[1][0])
