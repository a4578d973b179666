import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpo.data.dataset import TrainingData
from hpo.errors import DataError, InputError, MissingError
from hpo.recipes.constrained_cnn.network import Network
from hpo.space.parameters import TrialConfig
from hpo.training.loop import predict_logits, train
from hpo.training.saved_model import load_model, save_model
from tests.support.toy_images import toy_data

SMALL = {"conv1_channels": 4, "conv2_channels": 8, "hidden_units": 16, "batch_size": 8}


def trained(data: TrainingData, **params: Any) -> tuple[Network, TrialConfig]:
    config = TrialConfig.from_params({**SMALL, "learning_rate": 3e-3, "epochs": 10, **params})
    *_, last = train(config, data, [0])
    return last.learners[0].network, config


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return toy_data(shape=(8, 8, 3))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory, data: TrainingData) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, *trained(data, batch_norm=True), data)
    return path


def test_a_saved_model_is_the_trained_one(tmp_path: Path, data: TrainingData) -> None:
    network, config = trained(data, batch_norm=True, epochs=1)
    save_model(tmp_path / "model.pt", network, config, data)
    model = load_model(tmp_path / "model.pt")
    assert (model.config, model.image_shape, model.class_names) == (config, (8, 8, 3), data.class_names)
    before, after = (
        predict_logits(one, data.valid.images, data.mean, data.std) for one in (network, model.network)
    )
    assert torch.equal(before, after)
    assert np.array_equal(model.mean, data.mean)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_pictures_of_any_size_and_mode_are_classified(
    tmp_path: Path, data: TrainingData, model_file: Path
) -> None:
    paths = []
    for index, label in enumerate(data.valid.labels[:6]):
        picture = Image.fromarray(data.valid.images[index])
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


def test_what_is_no_picture_is_named(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(DataError, match=r"note\.png"):
        load_model(model_file).classify([tmp_path / "note.png"])


def test_a_model_of_images_that_are_not_square_refuses_pictures(tmp_path: Path) -> None:
    data = toy_data(shape=(8, 12, 3))
    save_model(tmp_path / "model.pt", *trained(data, epochs=1), data)
    with pytest.raises(InputError, match="8×12"):
        load_model(tmp_path / "model.pt").classify([tmp_path / "any.png"])


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of a model file was run",))


def test_what_is_no_model_is_refused(tmp_path: Path, model_file: Path) -> None:
    whole = model_file.read_bytes()
    path = tmp_path / "model.pt"
    with pytest.raises(MissingError, match=r"model\.pt"):
        load_model(path)
    for content in (b"", b"text", whole[:-50], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.pt: not a model file"):
            load_model(path)
    others: tuple[object, ...] = ({"weights": {}}, [1], Bomb())
    for other in others:
        torch.save(other, path)
        with pytest.raises(InputError, match="not a model file"):
            load_model(path)
    torch.save({**torch.load(model_file, weights_only=True), "format": "hpo-model-9"}, path)
    with pytest.raises(InputError, match="'hpo-model-9'; this version reads 'hpo-model-1'"):
        load_model(path)


NAN = torch.tensor([math.nan])


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5] * 3},
        {"mean": torch.zeros(2)},
        {"mean": torch.zeros(3, 3)},
        {"mean": torch.zeros(3, dtype=torch.bool)},
        {"mean": NAN.repeat(3)},
        {"std": torch.zeros(3)},
        {"class_names": [1, 2, 3]},
        {"class_names": []},
    ],
    ids=str,
)
def test_a_model_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, model_file: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "model.pt"
    content = torch.load(model_file, weights_only=True)
    torch.save({**content, **change}, path)
    with pytest.raises(InputError, match="not a model file"):
        load_model(path)
    content["weights"]["output.bias"] += math.nan
    torch.save(content, path)
    with pytest.raises(InputError, match="not a model file"):
        load_model(path)
