"""The final stage: the best decided configuration, retrained on seeds of its own, and the test set opened.

This is the only module that calls `load_test`. The stage is a trial of the reserved study `final`, claimed,
checkpointed and queued again like any other; the test metrics are attributes, its value is the validation F1.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hpo._files import write_durably
from hpo._text import printable
from hpo.data.test_set import load_test
from hpo.errors import TrialLost
from hpo.execution.context import WorkerContext
from hpo.execution.trial import TrialCallback
from hpo.planning.inheritance import best_decided
from hpo.planning.plan import MODEL, WRONG_IMAGES, Plan
from hpo.recipes.constrained_cnn.network import build_network
from hpo.space.parameters import TrialConfig, canonical_json
from hpo.training.loop import EpochResult, predict_logits
from hpo.training.metrics import Scores, score
from hpo.training.saved_model import save_model
from hpo.training.tensors import is_like

N_WRONG_IMAGES = 25
METRICS = ("accuracy", "loss", "macro_f1")


class TestSetCallback(TrialCallback):
    """Scores every epoch on the test set, and keeps the networks of the epoch that validation chose."""

    def __init__(self, plan: Plan, trial_id: int, context: WorkerContext, entry: Path, out: Path) -> None:
        super().__init__()
        self._plan, self._trial_id, self._out = plan, trial_id, out
        self._data, self._device, self._blobs = context.data, context.device, context.checkpoints
        self._test = load_test(entry)
        self._labels = torch.from_numpy(np.array(self._test.labels))

    def after_epoch(self, epoch: EpochResult, *, is_best: bool) -> dict[str, Any]:
        """Return test accuracy, loss and macro F1 of every seed."""
        logits = [
            predict_logits(
                learner.network,
                self._test.images,
                self._data.mean,
                self._data.std,
                device=self._device,
                precision=self._plan.identity.precision,
            )
            for learner in epoch.learners
        ]
        scores = [self._score(each) for each in logits]
        metrics = [
            {"seed": seed.seed, **{metric: getattr(scored, metric) for metric in METRICS}}
            for seed, scored in zip(epoch.seeds, scores, strict=True)
        ]
        self.state.setdefault("per_epoch", {})[epoch.number] = metrics
        if is_best:
            networks = [
                {key: value.detach().cpu().clone() for key, value in learner.network.state_dict().items()}
                for learner in epoch.learners
            ]
            valid = [seed.valid_macro_f1 for seed in epoch.seeds]
            self.state["best"] = {"networks": networks, "logits": logits, "valid_macro_f1": valid}
        return {f"test:{epoch.number}": metrics}

    def restore(self, state: dict[str, Any], training: Mapping[str, Any]) -> None:
        """Take over the test metrics of a checkpoint's epochs, and the networks of its best one.

        Raises:
            ValueError: they are not there, or of another kind.
        """
        networks = [learner["network"] for learner in training["learners"]]
        n_seeds, n_classes = len(networks), len(self._data.class_names)
        metrics = [{"seed": 0, **dict.fromkeys(METRICS, 0.0)}] * n_seeds
        example = {
            "per_epoch": dict.fromkeys(range(1, training["epoch"] + 1), metrics),
            "best": {
                "networks": networks,
                "logits": [torch.empty(len(self._labels), n_classes)] * n_seeds,
                "valid_macro_f1": [0.0] * n_seeds,
            },
        }
        if not is_like(state, example):
            raise ValueError("test metrics or best networks are not those of such a trial")
        self.state = state

    def attrs(self) -> dict[str, Any]:
        """Return the test metrics of every epoch so far."""
        return {f"test:{number}": metrics for number, metrics in self.state["per_epoch"].items()}

    def at_end(self, config: TrialConfig, selected_epoch: int) -> dict[str, Any]:
        """Return the answer, at the epoch that validation chose; save the model and the worst images."""
        best = self.state["best"]
        scores = [self._score(logits) for logits in best["logits"]]
        per_seed = self.state["per_epoch"][selected_epoch]
        chosen = int(np.argmax(best["valid_macro_f1"]))  # by validation: the test set chooses nothing
        wrong = most_confidently_wrong(best["logits"][chosen], self._labels)
        seeds = [metrics["seed"] for metrics in per_seed]
        # of these images and this configuration and no others: two plans may share a store
        of_what = canonical_json({"config": config.params(), "seeds": seeds, "data": self._data.fingerprint})
        shared = f"final-files/{hashlib.sha256(of_what.encode()).hexdigest()[:16]}"
        self._save(config, best["networks"][chosen], wrong, shared)
        search_f1 = self._search_f1()
        fresh_f1 = fmean(best["valid_macro_f1"])
        result = {
            "config": config.params(),
            "data": self._data.source,
            "seeds": seeds,
            "selected_epoch": selected_epoch,
            "test": {metric: fmean(each[metric] for each in per_seed) for metric in METRICS},
            "std": {metric: _deviation([each[metric] for each in per_seed]) for metric in METRICS},
            "per_seed": per_seed,
            "per_epoch": [
                {"epoch": epoch, **{metric: fmean(each[metric] for each in metrics) for metric in METRICS}}
                for epoch, metrics in sorted(self.state["per_epoch"].items())
            ],
            "per_class": {
                name: {"f1": fmean(float(scored.per_class_f1[index]) for scored in scores)}
                for index, name in enumerate(self._data.class_names)
            },
            "confusion_matrix": np.mean([np.asarray(s.confusion_matrix) for s in scores], axis=0).tolist(),
            "search_macro_f1": search_f1,
            "fresh_macro_f1": fresh_f1,
            "shrinkage": None if search_f1 is None else search_f1 - fresh_f1,
            "most_confidently_wrong": [
                {
                    "image": index,
                    "label": self._data.class_names[label],
                    "predicted": self._data.class_names[predicted],
                    "probability": probability,
                }
                for index, label, predicted, probability in wrong
            ],
            "model": {"file": MODEL, "seed": seeds[chosen]},
            "shared_folder": shared,
        }
        return {"final": result}

    def _score(self, logits: Tensor) -> Scores:
        return score(logits, self._labels, len(self._data.class_names))

    def _search_f1(self) -> float | None:
        best = best_decided(self._plan)
        return best.value if best else None

    def _save(
        self, config: TrialConfig, weights: dict[str, Tensor], wrong: Sequence[Wrong], shared: str
    ) -> None:
        data = self._data
        network = build_network(config.network, data.image_shape, len(data.class_names), torch.Generator())
        network.load_state_dict(weights)
        self._out.mkdir(parents=True, exist_ok=True)
        save_model(self._out / MODEL, network, config, data)
        sheet = io.BytesIO()
        contact_sheet(self._test.images, wrong, data.class_names).save(sheet, "PNG")
        write_durably(self._out / WRONG_IMAGES, sheet.getbuffer())
        artifacts = self._out / "artifacts"
        artifacts.mkdir(exist_ok=True)
        for file in (self._out / WRONG_IMAGES, self._out / MODEL):
            self._blobs.write(f"{shared}/{file.name}", file.read_bytes())
            self._plan.storage.retry(partial(self._upload, file, artifacts))

    def _upload(self, file: Path, store: Path) -> None:
        try:
            upload_artifact(
                artifact_store=FileSystemArtifactStore(store),
                file_path=str(file),
                study_or_trial=self._plan.storage.trial(self._trial_id),
                storage=self._plan.storage.for_optuna,
            )
        except UpdateFinishedTrialError:
            raise TrialLost("the final stage was closed by somebody else") from None


Wrong = tuple[int, int, int, float]
"""Index of a test image, its label, the predicted class, the probability given to that."""


def most_confidently_wrong(logits: Tensor, labels: Tensor) -> list[Wrong]:
    """Return the wrongly classified images with the highest probabilities, the most confident first.

    Args:
        logits: (n, classes) float.
        labels: (n,) int64.
    """
    probabilities, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probabilities[wrong].argsort(descending=True, stable=True)][:N_WRONG_IMAGES]
    return [(int(i), int(labels[i]), int(predicted[i]), float(probabilities[i])) for i in order]


def contact_sheet(images: Any, wrong: Sequence[Wrong], class_names: Sequence[str]) -> Image.Image:
    """Draw five pictures a row, each with its label and what it was taken for.

    Args:
        images: (n, h, w, c) uint8.
        wrong: which of them, in order.
        class_names: by label.
    """
    import matplotlib  # for its font, which has more scripts than Pillow's; those who only train need none

    file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    # the other layout, where Pillow has it, gives up at some of what a folder may be called
    font = ImageFont.truetype(file, 13, layout_engine=ImageFont.Layout.BASIC)
    cell, line, gap, per_row = 160, 17, 14, 5
    height = cell + 3 * line + gap
    rows = max(1, -(-len(wrong) // per_row))
    sheet = Image.new("RGB", (per_row * (cell + gap) + gap, rows * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for cell_number, (index, label, predicted, probability) in enumerate(wrong):
        x, y = gap + cell_number % per_row * (cell + gap), gap + cell_number // per_row * height
        pixels = np.asarray(images[index])
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
        sheet.paste(picture.resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        texts = (
            f"is {class_names[label]}",
            f"taken for {class_names[predicted]}",
            f"with {100 * probability:.1f} %",
        )
        for number, text in enumerate(texts):
            draw.text((x, y + cell + 2 + number * line), printable(text)[:22], fill="black", font=font)
    return sheet


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
