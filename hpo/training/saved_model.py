"""A trained model in one file: weights, configuration, normalisation, class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hpo._files import write_durably
from hpo.data.images import read_image
from hpo.errors import InputError, MissingError
from hpo.recipes.constrained_cnn.network import ImageShape, Network, build_network
from hpo.space.parameters import TrialConfig
from hpo.training.devices import predict_logits
from hpo.training.tensors import dump, is_like, load

if TYPE_CHECKING:
    from hpo.data import TrainingData

_FORMAT = "hpo-model-1"
_BLOCK = 1000
"""So many pictures are held in memory at once."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about one picture."""

    path: Path
    label: str
    probability: float
    """Softmax of the logits; not calibrated."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and everything that is needed to show it a picture."""

    network: Network
    config: TrialConfig
    image_shape: ImageShape
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    class_names: tuple[str, ...]

    def classify(self, image_paths: Sequence[Path | str]) -> list[Prediction]:
        """Classify pictures of any size and mode, prepared as the training images were, in fp32.

        Raises:
            DataError: a file cannot be read as a picture.
            InputError: the model was trained on images that are not square.
        """
        height, width, channels = self.image_shape
        if height != width:
            raise InputError(
                f"the model takes images of {height}×{width} pixels; pictures can only be scaled to a square"
            )
        predictions = []
        for start in range(0, len(image_paths), _BLOCK):
            paths = image_paths[start : start + _BLOCK]
            images = np.stack([read_image(path, size=height, channels=channels) for path in paths])
            logits = predict_logits(self.network, images, self.mean, self.std)
            probabilities, classes = logits.softmax(dim=1).max(dim=1)
            predictions += [
                Prediction(Path(path), self.class_names[index], probability)
                for path, index, probability in zip(
                    paths, classes.tolist(), probabilities.tolist(), strict=True
                )
            ]
        return predictions


def save_model(path: Path, network: Network, config: TrialConfig, data: TrainingData) -> None:
    """Write a model file; an existing one is replaced in one go, or not at all.

    Args:
        path: the file; its folder exists.
        network: trained, on any device.
        config: what it was built and trained from.
        data: what it was trained on; normalisation, image shape and class names are taken from it.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = {
        "format": _FORMAT,
        "params": config.params(),
        "image_shape": list(data.image_shape),
        "mean": torch.tensor(data.mean),
        "std": torch.tensor(data.std),
        "class_names": list(data.class_names),
        "weights": {name: tensor.cpu() for name, tensor in network.state_dict().items()},
    }
    write_durably(path, dump(content))


def load_model(path: Path) -> Model:
    """Read a model file, running no code from it.

    Raises:
        MissingError: there is no such file.
        InputError: it is no model file, or damaged.
    """
    if not path.is_file():
        raise MissingError(f"{path}: there is no such model file")
    try:
        content = load(path.read_bytes())
        if content["format"] != _FORMAT:
            raise InputError(f"{path}: of format {content['format']!r}; this version reads {_FORMAT!r}")
        config = TrialConfig.from_params(content["params"])
        height, width, channels = content["image_shape"]
        class_names = tuple(content["class_names"])
        if len(class_names) < 2:
            raise ValueError("it has no two classes")
        shape = (height, width, channels)
        network = build_network(config.network, shape, len(class_names), torch.Generator())
        network.load_state_dict(content["weights"])
        network.eval()
        mean, std = content["mean"], content["std"]
        example = torch.empty(channels, dtype=torch.float32)
        if not (is_like(mean, example) and is_like(std, example) and bool((std > 0).all())):
            raise ValueError("mean and deviation are not those of its images")
        if not all(isinstance(name, str) for name in class_names):
            raise ValueError("a class has no name")
        if not all(bool(each.isfinite().all()) for each in (mean, std, *network.state_dict().values())):
            raise ValueError("a weight is not finite")
        return Model(network, config, shape, mean.numpy(), std.numpy(), class_names)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: not a model file that hpo saved, or damaged") from error
