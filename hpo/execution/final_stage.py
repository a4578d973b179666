"""The final stage: the best decided configuration, retrained on seeds of its own, and the test set opened.

This is the only module that calls `load_test`. The stage is a trial of the reserved study `final`, claimed,
checkpointed and queued again like any other; the test metrics are attributes, its value is the objective on
validation.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from PIL import Image, ImageDraw, ImageFont
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hpo._files import write_durably
from hpo._text import printable
from hpo.data.test_set import load_test
from hpo.errors import InputError, TrialLost
from hpo.execution.context import WorkerContext
from hpo.execution.trial import Config, TrialCallback, identity_of
from hpo.execution.uncertainty import uncertainty
from hpo.monitor.results import deviation, mean
from hpo.planning.inheritance import best_decided, chosen_epoch
from hpo.planning.plan import FINAL, MODEL, WRONG_IMAGES, Plan
from hpo.planning.reuse import Known, find_outputs
from hpo.planning.verdicts import mean_interval
from hpo.space.parameters import canonical_json
from hpo.training.blobs import open_blobs
from hpo.training.checkpoints import Checkpoints
from hpo.training.devices import normaliser, predict, processor, targets_tensor
from hpo.training.learner import build
from hpo.training.loop import EpochResult, SeedEpoch, checked_metrics
from hpo.training.metrics import score
from hpo.training.own_loop import unpacked
from hpo.training.registry import load_recipe
from hpo.training.saved_model import save_model
from hpo.training.tensors import is_like

SEEN = "its validation metrics are of examples that it was trained on"
N_WRONG = 25
N_PREDICTIONS = 500
"""Of numbers, so many test examples are stored with what was predicted, for a figure."""


@dataclass(frozen=True)
class _Outputs:
    """What is kept of an epoch of a final stage: of each seed, and the network that it would deliver."""

    records: list[SeedEpoch]
    test: list[dict[str, Any]]
    """Metrics on the test set."""
    outputs: list[Any]
    """(n_test, n_outputs) float32; none where a recipe has a loop of its own."""
    network: dict[str, Any] | None


_OUTPUTS = TypeAdapter(_Outputs)


class _KnownOutputs:
    """What another plan has kept of the first seeds of a final stage.

    Args:
        files: the plan's own, where they are.
        seeds: whose outputs they have.
    """

    def __init__(self, files: Checkpoints, seeds: Sequence[int]) -> None:
        self._files, self.seeds = files, list(seeds)
        self.of = lru_cache(maxsize=1)(self._read)  # the same epoch is asked for several times

    def _read(self, epoch: int) -> _Outputs:
        """Return what is kept of an epoch.

        Raises:
            ValueError: it is damaged, or something else.
            OSError: it cannot be read.
        """
        try:
            found = _OUTPUTS.validate_python(self._files.outputs(epoch))
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise ValueError(f"{key} is not there, or of another kind") from None
        if [each.seed for each in found.records] != self.seeds:
            raise ValueError("its seeds are others")
        return found


class TestSetCallback(TrialCallback):
    """Scores every epoch on the test set, and keeps the models of the epoch that validation chose."""

    def __init__(self, plan: Plan, trial_id: int, context: WorkerContext, entry: Path, out: Path) -> None:
        super().__init__()
        self._plan, self._trial_id, self._out, self._context = plan, trial_id, out, context
        self._known: _KnownOutputs | None = None
        self._recipe, self._data, self._device = context.recipe, context.data, context.device
        self._blobs = context.checkpoints
        self._sees_validation = plan.options.final_data == "train+validation"
        if self._sees_validation:
            self.last_epoch = chosen_epoch(plan)
            self.notes = (SEEN,)
        # said before it is so, and not in the trial: it stays opened if that is deleted
        number = plan.storage.trial(trial_id).number
        plan.storage.set_study_attr(plan.storage.study_id(FINAL), "test_opened", number)
        self._test = load_test(entry)
        self._targets = targets_tensor(np.array(self._test.targets), "cpu")
        self._normalise = normaliser(context.data.mean, context.data.std, context.data.info, context.device)

    def known_elsewhere(self, config: Config) -> Known | None:
        """Return what another plan has kept of a final stage of the first seeds of this one, or of all."""
        seeds, n_epochs = self._plan.final_seeds, self.last_epoch or int(config["epochs"])
        notes = []
        for found in find_outputs(self._plan, config, seeds, processor(self._device), n_epochs):
            try:
                identity = identity_of(self._plan, found.config, self._context, found.seeds)
                files = Checkpoints(open_blobs(found.store), found.folder, identity)
                known, example = (
                    _KnownOutputs(files, found.seeds),
                    self._kept_example(config, len(found.seeds)),
                )
                epochs = [self._checked(known.of(number), example) for number in range(1, n_epochs + 1)]
            except (InputError, OSError, ValueError) as error:
                notes.append(f"all seeds are trained here, as what {found.text} has cannot be used: {error}")
                continue
            self._known = known
            by_seed = {
                seed: [each[index].to_dict() for each in epochs] for index, seed in enumerate(found.seeds)
            }
            return Known([], by_seed, found.origins)
        self.notes += tuple(notes)
        return None

    def _kept_example(self, config: Config, n_seeds: int) -> dict[str, Any]:
        """Return what is kept of an epoch, but for its records, is like."""
        example = self._example(n_seeds)
        if self._recipe.has_own_loop:
            return {**example, "outputs": [], "network": None}
        network = build(self._recipe, self._recipe.params_of(config), self._data.info, 0)
        return {**example, "network": network.state_dict()}

    def _checked(self, found: _Outputs, example: Mapping[str, Any]) -> list[SeedEpoch]:
        """Return the records of an epoch that was kept, if all of it is what such a final stage keeps.

        Raises:
            ValueError: it is not.
        """
        if not is_like(found.test, example["test"]) or not is_like(found.outputs, example["outputs"]):
            raise ValueError("test metrics or outputs are not those of such a trial")
        if not is_like(found.network, example["network"]):
            raise ValueError("its network is not that of this configuration")
        if any(each.metrics.keys() != self._recipe.metrics.keys() for each in found.records):
            raise ValueError("its metrics are others")
        return found.records

    def after_epoch(self, epoch: EpochResult, config: Config, *, is_best: bool) -> dict[str, Any]:
        """Return the metrics on the test set of every seed."""
        outputs = [
            predict(
                learner.network,
                self._test.inputs,
                self._normalise,
                device=self._device,
                precision=self._plan.identity.precision,
            )
            for learner in epoch.learners
        ]
        found: list[object] = [self._recipe.evaluate(each, self._targets) for each in outputs]
        if self._recipe.has_own_loop:
            params = self._recipe.params_of(config)
            found = [self._recipe.test(params, self._test, unpacked(state)) for state in epoch.states]
        where = "test" if self._recipe.has_own_loop else "evaluate"
        metrics = [
            {"seed": seed.seed, **checked_metrics(self._recipe, each, where)}
            for seed, each in zip(epoch.seeds, found, strict=True)
        ]
        valid = [seed.metrics[self._plan.objective.name] for seed in epoch.seeds]
        if self._known is not None:
            there = self._known.of(epoch.number)
            metrics, outputs = [*there.test, *metrics], [*there.outputs, *outputs]
            valid = [*(each.metrics[self._plan.objective.name] for each in there.records), *valid]
        self.state.setdefault("per_epoch", {})[epoch.number] = metrics
        if is_best or self._plan.options.keep_checkpoints:
            network = self._network(epoch, self._chosen(valid))
            if is_best:
                self.state["best"] = {"network": network, "outputs": outputs, "valid": valid}
            if self._plan.options.keep_checkpoints:
                self.kept = {"test": metrics, "outputs": outputs, "network": network}
        return {f"test:{epoch.number}": metrics}

    def _chosen(self, valid: Sequence[float]) -> int:
        """Return the index of the seed whose network is delivered.

        That is by validation, as the test set chooses nothing; what was trained on neither.
        """
        if self._sees_validation:
            return 0
        return int(np.argmax([self._plan.objective.score(value) for value in valid]))

    def _network(self, epoch: EpochResult, index: int) -> dict[str, Tensor] | None:
        """Return a network as it stands after an epoch, on the CPU; None where a recipe has none."""
        n_known = 0
        if self._known is not None:
            n_known = len(self._known.seeds)
            if index < n_known:
                return self._known.of(epoch.number).network
        if not epoch.learners:
            return None
        network = epoch.learners[index - n_known].network
        return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def restore(self, state: dict[str, Any], training: Mapping[str, Any]) -> None:
        """Take over the test metrics of a checkpoint's epochs, and the networks of its best one.

        Raises:
            ValueError: they are not there, or of another kind.
        """
        networks = [learner["network"] for learner in training.get("learners", [])]
        n_seeds = len(self._plan.final_seeds)
        example = {
            "per_epoch": dict.fromkeys(range(1, training["epoch"] + 1), self._example(n_seeds)["test"]),
            "best": {
                "network": networks[0] if networks else None,
                "outputs": self._example(n_seeds)["outputs"] if networks else [],
                "valid": [0.0] * n_seeds,
            },
        }
        if not is_like(state, example):
            raise ValueError("test metrics or best network are not those of such a trial")
        self.state = state

    def _example(self, n_seeds: int) -> dict[str, Any]:
        """Return what test metrics and outputs of an epoch are like."""
        metrics = {"seed": 0, **dict.fromkeys(self._recipe.metrics, 0.0)}
        outputs = torch.empty(len(self._targets), self._data.n_outputs)
        return {"test": [metrics] * n_seeds, "outputs": [outputs] * n_seeds}

    def attrs(self) -> dict[str, Any]:
        """Return the test metrics of every epoch so far."""
        return {f"test:{number}": metrics for number, metrics in self.state["per_epoch"].items()}

    def at_end(self, config: Config, selected_epoch: int, cut_short: str) -> dict[str, Any]:
        """Return the answer, at the epoch that validation chose; save the model and the worst images."""
        best, objective = self.state["best"], self._plan.objective
        per_seed = self.state["per_epoch"][selected_epoch]
        chosen = self._chosen(best["valid"])
        seeds = [metrics["seed"] for metrics in per_seed]
        # two plans may share a store
        what = {"config": config, "seeds": seeds, "data": self._data.fingerprint, **self._plan.mark}
        of_what = canonical_json(what)
        shared = f"final-files/{hashlib.sha256(of_what.encode()).hexdigest()[:16]}"
        self._out.mkdir(parents=True, exist_ok=True)
        files = []
        if best["network"] is not None:
            named = load_recipe(self._plan.recipe.name)
            save_model(self._out / MODEL, best["network"], named, config, self._data)
            files.append(MODEL)
        details, sheet = self._details(best["outputs"], chosen)
        if sheet is not None:
            write_durably(self._out / WRONG_IMAGES, sheet)
            files.append(WRONG_IMAGES)
        sums = self._share(files, shared)
        search = best_decided(self._plan)
        # what a confirmation left may be what no trial of the search trained
        search_value = search.value if search and search.source else None
        fresh_value = None if self._sees_validation else fmean(best["valid"])
        # what was trained on other data does not tell how much the search's value owes to selection
        selected = search_value if self._data.fingerprint == self._plan.identity.fingerprint else None
        metrics = list(self._recipe.metrics)
        result = {
            "config": dict(config),
            "data": self._data.source,
            "final_data": self._plan.options.final_data,
            "n_train": len(self._data.train),
            "metric": objective.name,
            "seeds": seeds,
            "selected_epoch": selected_epoch,
            "cut_short": cut_short or None,
            "test": {metric: mean(each[metric] for each in per_seed) for metric in metrics},
            "std": {metric: deviation([each[metric] for each in per_seed]) for metric in metrics},
            "per_seed": per_seed,
            "per_epoch": [
                {"epoch": epoch, **{metric: mean(each[metric] for each in found) for metric in metrics}}
                for epoch, found in sorted(self.state["per_epoch"].items())
            ],
            "search_value": search_value,
            "fresh_value": fresh_value,
            "shrinkage": None if selected is None else objective.gain(selected, fmean(best["valid"])),
            "shrinkage_interval": None
            if selected is None
            else mean_interval([objective.gain(selected, value) for value in best["valid"]]),
            "uncertainty": uncertainty(self._recipe, per_seed, best["outputs"], self._targets),
            "model": {"file": MODEL, "seed": seeds[chosen]} if best["network"] is not None else None,
            "n_test": len(self._targets),
            "shared_folder": shared,
            "shared_files": sums,
            **details,
        }
        return {"final": result}

    def _details(self, outputs: Sequence[Tensor], chosen: int) -> tuple[dict[str, Any], memoryview | None]:
        """Return what there is to say of single classes or examples, and the picture of the worst images."""
        if not outputs:
            return {}, None
        if not self._data.n_classes:
            best, truth = outputs[chosen].flatten(), self._targets.flatten()
            pairs = torch.stack([truth, best], dim=1)[:N_PREDICTIONS]
            return {"predictions": pairs.tolist()}, None
        names = self._data.class_names
        scores = [score(each, self._targets, len(names)) for each in outputs]
        wrong = most_confidently_wrong(outputs[chosen], self._targets)
        details = {
            "per_class": {
                name: {"f1": fmean(float(scored.per_class_f1[index]) for scored in scores)}
                for index, name in enumerate(names)
            },
            "confusion_matrix": np.mean([np.asarray(s.confusion_matrix) for s in scores], axis=0).tolist(),
            "most_confidently_wrong": [
                {
                    "image": index,
                    "label": names[label],
                    "predicted": names[predicted],
                    "probability": probability,
                }
                for index, label, predicted, probability in wrong
            ],
        }
        if not self._data.info.is_images:
            return details, None
        sheet = io.BytesIO()
        contact_sheet(self._test.inputs, wrong, names).save(sheet, "PNG")
        return details, sheet.getbuffer()

    def _share(self, names: Sequence[str], shared: str) -> dict[str, str]:
        """Put files where other machines and the dashboard find them, and return SHA-256 of each by name."""
        artifacts = self._out / "artifacts"
        artifacts.mkdir(exist_ok=True)
        sums = {}
        for name in reversed(names):
            file = self._out / name
            content = file.read_bytes()
            sums[name] = hashlib.sha256(content).hexdigest()
            self._blobs.write(f"{shared}/{name}", content)
            self._plan.storage.retry(partial(self._upload, file, artifacts))
        return sums

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
    """Return the wrongly classified examples with the highest probabilities, the most confident first.

    Args:
        logits: (n, classes) float.
        labels: (n,) int64.
    """
    probabilities, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probabilities[wrong].argsort(descending=True, stable=True)][:N_WRONG]
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
