"""A trained model in one file: weights in safetensors, and everything else as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hpo._files import user_path, write_durably
from hpo._imports import source_hashes
from hpo.data.dataset import DataInfo
from hpo.data.images import FITS, read_image
from hpo.errors import DataError, InputError, MissingError
from hpo.space.parameters import ParamValue, ParamValues, explain
from hpo.training.devices import normaliser, predict
from hpo.training.learner import build
from hpo.training.registry import NamedRecipe, load_recipe

if TYPE_CHECKING:
    from hpo.data import TrainingData

FORMAT = "hpo-model-2"
_KEY, _SUM_KEY = "hpo", "sha256"
_BLOCK = 1000
"""So many pictures are held in memory at once."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about one picture."""

    path: Path
    label: str
    probability: float
    """Softmax of the outputs; not calibrated."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable labels and their probabilities, as many as were asked for."""


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["hpo-model-2"]
    recipe: str
    sources: dict[str, str]
    params: dict[str, Any]
    input_shape: tuple[int, ...]
    is_images: bool
    class_names: tuple[str, ...]
    n_outputs: int
    mean: list[float]
    std: list[float]
    fit: str


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and everything that is needed to show it an input."""

    network: nn.Module
    recipe: str
    params: ParamValues
    info: DataInfo
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    fit: str
    """How a picture becomes a square, a name of `hpo.data.images.FITS`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class; empty where it predicts numbers."""
        return self.info.class_names

    def outputs(self, inputs: NDArray[np.generic]) -> Tensor:
        """Return what the network makes of inputs (n, …) as the data had them: (n, n_outputs) float32."""
        return predict(self.network, inputs, normaliser(self.mean, self.std, self.info, "cpu"))

    def classify(
        self,
        image_paths: Sequence[Path | str],
        top: int = 1,
        on_unreadable: Callable[[DataError], object] | None = None,
    ) -> list[Prediction]:
        """Classify pictures of any size and mode, prepared as the training images were, in fp32.

        Args:
            image_paths: of the pictures.
            top: so many labels are told of each, as far as there are so many.
            on_unreadable: is told of a file that cannot be read as a picture, which is then left out.

        Raises:
            DataError: a file cannot be read as a picture, and nobody is to be told.
            InputError: the model does not classify images, or was trained on images that are not square.
        """
        if not (self.info.is_images and self.class_names):
            raise InputError(f"the model of recipe {self.recipe} does not classify images")
        channels, height, width = self.info.input_shape
        if height != width:
            raise InputError(
                f"the model takes images of {height}×{width} pixels; pictures can only be scaled to a square"
            )
        predictions: list[Prediction] = []
        for start in range(0, len(image_paths), _BLOCK):
            paths, images = list[Path | str](), list[NDArray[np.uint8]]()
            for path in image_paths[start : start + _BLOCK]:
                try:
                    images.append(read_image(path, size=height, channels=channels, fit=self.fit))
                    paths.append(path)
                except DataError as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(error)
            if not images:
                continue
            ordered = self.outputs(np.stack(images)).softmax(dim=1).sort(dim=1, descending=True, stable=True)
            for path, values, indices in zip(paths, ordered.values, ordered.indices, strict=True):
                names = [self.class_names[index] for index in indices[:top].tolist()]
                found = tuple(zip(names, values[:top].tolist(), strict=True))
                predictions.append(Prediction(Path(path), *found[0], found))
        return predictions


def save_model(
    path: Path,
    weights: Mapping[str, Tensor],
    recipe: NamedRecipe,
    params: Mapping[str, ParamValue],
    data: TrainingData,
) -> None:
    """Write a model file; an existing one is replaced in one go, or not at all.

    Args:
        path: the file; its folder exists.
        weights: the state of a trained network.
        recipe: that built it.
        params: all of the recipe's parameters that it was built and trained with.
        data: what it was trained on; normalisation, shapes and class names are taken from it.

    Raises:
        OSError: the disk is full or not writable.
    """
    fields = _Header(
        format=FORMAT,
        recipe=recipe.name,
        sources=dict(recipe.sources),
        params=dict(params),
        input_shape=data.info.input_shape,
        is_images=data.info.is_images,
        class_names=data.info.class_names,
        n_outputs=data.info.n_outputs,
        mean=data.mean.tolist(),
        std=data.std.tolist(),
        fit=data.fit,
    )
    # contiguous and a copy each: the format knows neither strides nor tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    header = fields.model_dump_json()
    metadata = {_KEY: header, _SUM_KEY: checksum(header, tensors)}
    write_durably(path, *_in_order(memoryview(safetensors.torch.save(tensors, metadata))))


def _in_order(content: memoryview) -> tuple[bytes, memoryview]:
    """Return a safetensors file with the keys of its header in order, in two parts.

    The library writes those of the metadata as they come, and the same model would be another file each time.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(bytes(content[8 : 8 + size])), sort_keys=True, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    return len(text).to_bytes(8, "little") + text, content[8 + size :]


def checksum(header: str, weights: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of a header and of all weights with their names; safetensors checks no sums itself."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(path: str | Path) -> Model:
    """Read a model file. Code is run only of the recipe that it names, which must be the one that saved it.

    Raises:
        MissingError: there is no such file.
        InputError: it is no model file, or damaged; or its recipe is not here.
    """
    path = user_path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; the model is a file, model.safetensors in the plan's folder")
    if not path.is_file():
        raise MissingError(f"{path}: there is no such model file")
    header, weights = _read(path)
    _check_sources(path, header)
    named = load_recipe(header.recipe)
    info = DataInfo(header.input_shape, header.class_names, header.n_outputs, header.is_images)
    try:
        params = named.recipe.schema.complete(header.params)
        network = build(named.recipe, named.recipe.params_of(params), info, 0)
        network.load_state_dict(weights)
        network.eval()
        mean, std = np.array(header.mean, dtype=np.float32), np.array(header.std, dtype=np.float32)
        n_features = info.input_shape[0] if info.is_images or len(info.input_shape) == 1 else 1
        if mean.shape != std.shape or mean.shape not in ((n_features,), (1,)) or not (std > 0).all():
            raise ValueError("mean and deviation are not those of its inputs")
        if info.class_names and len(info.class_names) != info.n_outputs:
            raise ValueError("it has more or fewer outputs than classes")
        if header.fit not in FITS:
            raise ValueError(f"fit = {header.fit!r}")
        if not all(bool(each.isfinite().all()) for each in network.state_dict().values()):
            raise ValueError("a weight is not finite")
    except (ValueError, KeyError, TypeError, RuntimeError, InputError) as error:
        raise InputError(f"{path}: not a model file that hpo saved, or damaged: {error}") from error
    return Model(network, named.name, params, info, mean, std, header.fit)


def _check_sources(path: Path, header: _Header) -> None:
    """Check that a user's recipe is the one that saved the model, before any of its code is run.

    Raises:
        InputError: its files are not here, or others.
    """
    if not header.recipe.startswith("python:"):
        return
    here = source_hashes(header.recipe.split(":")[1])
    others = [f"{name}.py" for name, digest in header.sources.items() if here.get(name) != digest]
    if here and (others or not header.sources):
        raise InputError(f"{path}: was saved with another version of {', '.join(others) or header.recipe}")


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    """Return the header and the weights of a model file, running no code from it."""
    try:
        with path.open("rb") as opened:
            if opened.read(4) == b"PK\3\4":
                raise ValueError("a zip archive, as torch.save and hpo 0.1 wrote them")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not {_KEY, _SUM_KEY} <= metadata.keys():
                raise ValueError("a safetensors file of another program")
            content = json.loads(metadata[_KEY])
            if isinstance(content, dict) and content.get("format") != FORMAT:
                raise InputError(
                    f"{path}: of format {content.get('format')!r}; this version reads {FORMAT!r}"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata[_SUM_KEY] != checksum(metadata[_KEY], weights):
                raise ValueError("its checksum is wrong")
            return _Header.model_validate(content), weights
    except ValidationError as error:
        raise InputError(f"{path}: not a model file that hpo saved, or damaged: {explain(error)}") from error
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path}: not a model file that hpo saved, or damaged: {error}") from error
