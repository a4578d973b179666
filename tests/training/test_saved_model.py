import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from hpo.data.dataset import TrainingData
from hpo.data.images import FITS
from hpo.errors import DataError, InputError, MissingError
from hpo.planning.plan import MODEL
from hpo.training.devices import normaliser, predict
from hpo.training.loop import train
from hpo.training.registry import NamedRecipe, load_recipe
from hpo.training.saved_model import checksum, load_model, save_model
from tests.support.recipes import CNN, SCHEMA, SMALL_CNN
from tests.support.toy_images import toy_data
from tests.support.toy_tables import toy_table


def weights_of(named: NamedRecipe, config: dict[str, Any], data: TrainingData) -> dict[str, torch.Tensor]:
    *_, last = train(named.recipe, config, data, [0])
    return last.learners[0].network.state_dict()


def save_cnn(path: Path, data: TrainingData, **params: Any) -> dict[str, Any]:
    """Train the shipped recipe, and save it; its parameters."""
    config = SCHEMA.complete({**SMALL_CNN, "learning_rate": 3e-3, "epochs": 10, **params})
    save_model(path, weights_of(CNN, config, data), CNN, config, data)
    return config


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return toy_data(shape=(8, 8, 3))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory, data: TrainingData) -> Path:
    path = tmp_path_factory.mktemp("model") / MODEL
    save_cnn(path, data, batch_norm=True)
    return path


def test_a_saved_model_is_the_trained_one(tmp_path: Path, data: TrainingData) -> None:
    config = save_cnn(tmp_path / MODEL, data, batch_norm=True, epochs=1)
    *_, last = train(CNN.recipe, config, data, [0])
    model = load_model(tmp_path / MODEL)
    assert (model.recipe, model.params, model.info) == ("constrained-cnn", config, data.info)
    assert model.class_names == data.class_names
    normalise = normaliser(data.mean, data.std, data.info, "cpu")
    before = predict(last.learners[0].network, data.valid.inputs, normalise)
    assert torch.equal(before, model.outputs(data.valid.inputs))
    assert np.array_equal(model.mean, data.mean)
    assert np.array_equal(model.std, data.std)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]


def test_the_same_model_is_the_same_file(tmp_path: Path, data: TrainingData) -> None:
    config = SCHEMA.complete({**SMALL_CNN, "epochs": 1})
    weights = weights_of(CNN, config, data)
    for number in range(10):  # by itself the library writes one of two at random
        save_model(tmp_path / str(number), weights, CNN, config, data)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


OWN_RECIPE = """
import math
import hpo
from torch import nn
from own_sizes_{name} import DEFAULT

class Sizes(hpo.Params):
    width: int = hpo.Field(DEFAULT, ge=1)

class Mlp(hpo.Recipe):
    Params = Sizes
    metrics = {{"loss": "minimize"}}
    def build(self, params, data):
        first = nn.Linear(math.prod(data.input_shape), params.width)
        last = nn.Linear(params.width, data.n_outputs)
        return nn.Sequential(first, nn.BatchNorm1d(params.width), nn.ReLU(), last)
"""


@pytest.fixture
def own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NamedRecipe:
    """A recipe of the user's, in the current folder, with a module beside it."""
    name = tmp_path.name
    (tmp_path / f"own_sizes_{name}.py").write_text("DEFAULT = 8")
    (tmp_path / f"own_mlp_{name}.py").write_text(OWN_RECIPE.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return load_recipe(f"python:own_mlp_{name}:Mlp")


@pytest.mark.parametrize("kind", [{"n_classes": 3}, {"n_outputs": 1}, {"n_outputs": 2}], ids=str)
def test_a_saved_model_of_a_table_by_an_own_recipe_is_the_trained_one(
    tmp_path: Path, own_recipe: NamedRecipe, kind: dict[str, int]
) -> None:
    data = toy_table(**kind)
    config = own_recipe.recipe.schema.complete({"width": 4, "epochs": 2})
    weights = weights_of(own_recipe, config, data)
    save_model(tmp_path / MODEL, weights, own_recipe, config, data)
    model = load_model(tmp_path / MODEL)
    assert (model.recipe, model.params, model.info) == (own_recipe.name, config, data.info)
    assert model.network.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.network.state_dict().items())
    standard = torch.from_numpy((data.valid.inputs - data.mean) / data.std)
    with torch.inference_mode():
        torch.testing.assert_close(model.outputs(data.valid.inputs), model.network(standard))
    with pytest.raises(InputError, match=f"the model of recipe {own_recipe.name} does not classify images"):
        model.classify([tmp_path / "any.png"])


@pytest.mark.parametrize("module", ["own_mlp", "own_sizes"])
def test_a_model_of_another_version_of_its_recipe_is_refused(
    tmp_path: Path, own_recipe: NamedRecipe, module: str
) -> None:
    data, config = toy_table(), own_recipe.recipe.schema.complete({"epochs": 1})
    save_model(tmp_path / MODEL, weights_of(own_recipe, config, data), own_recipe, config, data)
    source = tmp_path / f"{module}_{tmp_path.name}.py"
    source.write_text(source.read_text() + "# changed\n")
    load_recipe.cache_clear()  # as another process would
    with pytest.raises(InputError, match=f"was saved with another version of .*{module}_"):
        load_model(tmp_path / MODEL)


def test_pictures_of_any_size_and_mode_are_classified(
    tmp_path: Path, data: TrainingData, model_file: Path
) -> None:
    paths = []
    for index, label in enumerate(data.valid.targets[:6]):
        picture = Image.fromarray(data.valid.inputs[index])
        picture = picture.resize((8 * (index + 1),) * 2, Image.Resampling.NEAREST)
        paths.append(tmp_path / f"{label}-{index}.png")
        (picture.convert("RGBA") if index % 2 else picture).save(paths[-1])
    model = load_model(model_file)
    predictions = model.classify(paths)
    assert [prediction.path for prediction in predictions] == paths
    assert [prediction.label for prediction in predictions] == [f"class {path.name[0]}" for path in paths]
    assert all(1 / 3 < prediction.probability <= 1 for prediction in predictions)
    Image.new("L", (30, 20)).save(tmp_path / "grey.jpg")
    assert len(model.classify([str(tmp_path / "grey.jpg")])) == 1
    assert model.classify([]) == []


def test_pictures_that_are_no_squares_become_what_training_made_of_them(
    tmp_path: Path, data: TrainingData, model_file: Path
) -> None:
    image, label = data.valid.inputs[0], data.valid.targets[0]
    wide = Image.new("RGB", (48, 16), "white")
    wide.paste(Image.fromarray(image).resize((16, 16), Image.Resampling.NEAREST), (16, 0))
    wide.save(tmp_path / "wide.png")
    (cropped,) = load_model(model_file).classify([tmp_path / "wide.png"])
    assert cropped.label == f"class {label}"
    probabilities = set()
    for fit in FITS:
        write_changed(model_file, tmp_path / MODEL, {"fit": fit})
        (found,) = load_model(tmp_path / MODEL).classify([tmp_path / "wide.png"])
        probabilities.add(found.probability)
        assert fit != "crop" or found == cropped
    assert len(probabilities) == len(FITS)


def test_what_is_no_picture_is_named(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(DataError, match=r"note\.png"):
        load_model(model_file).classify([tmp_path / "note.png"])


def test_a_model_of_images_that_are_not_square_refuses_pictures(tmp_path: Path) -> None:
    data = toy_data(shape=(8, 12, 3))
    save_cnn(tmp_path / MODEL, data, epochs=1)
    with pytest.raises(InputError, match="8×12"):
        load_model(tmp_path / MODEL).classify([tmp_path / "any.png"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\3\4 and more", "a zip archive, as torch.save and hpo 0.1 wrote them"),
        (safetensors.torch.save({"a": torch.zeros(1)}), "a safetensors file of another program"),
        (b"\x08\x07 an ONNX file", "Error while deserializing header"),
        (None, "is a folder; the model is a file, model.safetensors in the plan's folder"),
    ],
    ids=["model.pt", "of others", "ONNX", "folder"],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_of_another_kind_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str, kind: type[str | Path]
) -> None:
    path = tmp_path / "model.pt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"model\.pt: .*{reason}"):
        load_model(kind(path))


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of a model file was run",))


def test_what_is_no_model_is_refused(tmp_path: Path, model_file: Path) -> None:
    whole = model_file.read_bytes()
    path = tmp_path / MODEL
    with pytest.raises(MissingError, match=r"model\.safetensors: there is no such model file"):
        load_model(path)
    for content in (b"", b"text", whole[:-50], whole[: len(whole) // 2], whole + b"more", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: not a model file"):
            load_model(path)
    others: tuple[object, ...] = ({"weights": {}}, [1], Bomb())
    for other in others:
        torch.save(other, path)
        with pytest.raises(InputError, match="not a model file"):
            load_model(path)
    tensors = safetensors.torch.load_file(model_file)
    for metadata in (None, {}, {"hpo": "text"}, {"hpo": "[]"}, {"hpo": "{}"}):
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(InputError, match=r"model\.safetensors: (not a model file|of format None)"):
            load_model(path)
    with safe_open(model_file, framework="pt") as file:
        without_sum = {"hpo": file.metadata()["hpo"]}
    safetensors.torch.save_file(tensors, path, without_sum)
    with pytest.raises(InputError, match="not a model file"):
        load_model(path)
    write_changed(model_file, path, {"format": "hpo-model-9"})
    with pytest.raises(InputError, match="of format 'hpo-model-9'; this version reads 'hpo-model-2'"):
        load_model(path)


def write_changed(
    model_file: Path,
    path: Path,
    header: dict[str, Any],
    weights: dict[str, torch.Tensor | None] | None = None,
) -> None:
    """Write a whole model file with other entries in its header and other weights; None: without them."""
    with safe_open(model_file, framework="pt") as file:
        content = {**json.loads(file.metadata()["hpo"]), **header}
    content = {key: value for key, value in content.items() if value is not None}
    tensors = {**safetensors.torch.load_file(model_file), **(weights or {})}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    text = json.dumps(content)
    safetensors.torch.save_file(kept, path, {"hpo": text, "sha256": checksum(text, kept)})


def test_a_model_with_one_bit_flipped_is_refused(tmp_path: Path, model_file: Path) -> None:
    path, whole = tmp_path / MODEL, model_file.read_bytes()
    for place in range(0, len(whole), 61):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: (not a model file|of format)"):
            load_model(path)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": 0.5},
        {"mean": None},
        {"mean": ["a", "b", "c"]},
        {"mean": [0.5] * 2},
        {"mean": [[0.5] * 3] * 3},
        {"mean": [math.nan] * 3},
        {"std": [0.0] * 3},
        {"std": [-1.0] * 3},
        {"class_names": [1, 2, 3]},
        {"class_names": []},
        {"class_names": ["a", "b"]},
        {"n_outputs": 4},
        {"fit": "stretch"},
        {"input_shape": [3, 8]},
        {"input_shape": [1, 8, 8]},
        {"input_shape": [3, 2, 2]},
        {"params": {"conv1_channels": 5}},
        {"params": {"width": 5}},
        {"params": {"conv1_channels": "4"}},
        {"params": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_model_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, model_file: Path, change: dict[str, Any]
) -> None:
    write_changed(model_file, tmp_path / MODEL, change)
    with pytest.raises(InputError, match=r"model\.safetensors: not a model file"):
        load_model(tmp_path / MODEL)


@pytest.mark.parametrize(
    "weights",
    [
        {"output.bias": torch.full((3,), math.nan)},
        {"norm1.running_mean": torch.full((4,), math.inf)},
        {"output.bias": torch.zeros(4)},
        {"output.bias": None},
        {"more": torch.zeros(1)},
    ],
    ids=lambda weights: next(iter(weights)),
)
def test_weights_that_are_not_the_networks_are_refused(
    tmp_path: Path, model_file: Path, weights: dict[str, torch.Tensor | None]
) -> None:
    write_changed(model_file, tmp_path / MODEL, {}, weights)
    with pytest.raises(InputError, match=r"model\.safetensors: not a model file"):
        load_model(tmp_path / MODEL)


def test_a_model_of_a_recipe_that_is_not_here_says_which(tmp_path: Path, model_file: Path) -> None:
    write_changed(model_file, tmp_path / MODEL, {"recipe": "python:own_absent:Mlp"})
    with pytest.raises(InputError, match="python:own_absent:Mlp: No module named 'own_absent'"):
        load_model(tmp_path / MODEL)
    write_changed(model_file, tmp_path / MODEL, {"recipe": "constrained"})
    with pytest.raises(
        InputError, match="recipe = 'constrained' is not known; did you mean 'constrained-cnn'"
    ):
        load_model(tmp_path / MODEL)
