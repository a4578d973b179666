"""Notes, figures, metric names and pictures, written into a plan's database where the dashboard finds them.

All of it follows from the database, under names that stay the same: writing it again changes nothing. What
the dashboard's own functions would write is first gathered in memory; then a study gets it in one
transaction, so that two dashboards, or one that is killed, never leave half a figure. Every attribute stays
far below what MySQL holds (64 kB): those functions cut a text into pieces of 2 kB.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import bottle
import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from hpo._files import write_durably
from hpo.monitor.results import final_trial
from hpo.planning.metrics import Metric
from hpo.planning.plan import FINAL, WRONG_IMAGES, Plan
from hpo.reporting.charts import Figure
from hpo.reporting.dashboard.notes import notes
from hpo.reporting.data import ReportData, read
from hpo.reporting.figures import Placed, figures, trial_curves
from hpo.reporting.render import matplotlib, plotly
from hpo.storage.storage import Storage
from hpo.storage.trials import id_of

NOTE, OUR_NOTE = "dashboard:note_", "hpo:note"
OWNED = ("study:metric_names", NOTE, OUR_NOTE, "dashboard:plot_data:hpo-")
"""What the system attributes begin with that are ours to replace."""
MAX_PICTURES = 50
"""So many runs of a study, the best, have a picture of their curves."""
DELETED = "null"
"""What the dashboard writes in the place of an artifact that somebody has deleted there."""


class ArtifactFolder(FileSystemArtifactStore):
    """The artifacts of a plan: files that appear whole, and one that is not here is simply not found.

    Args:
        out: the plan's output folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / "artifacts"
        super().__init__(self.folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the file of an artifact.

        Raises:
            bottle.HTTPError: 404, it is not in this folder; another machine's has it.
        """
        try:
            return super().open_reader(artifact_id)
        except ArtifactNotFound:
            raise bottle.HTTPError(404, f"no such file in {self.folder} on this machine") from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store an artifact; killed meanwhile, nothing is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._get_filepath(artifact_id), content_body.read())

    def has(self, artifact_id: str) -> bool:
        """Return whether its file is here."""
        return bool(self._get_filepath(artifact_id).exists())


@dataclass(frozen=True)
class Picture:
    """A PNG that belongs to a trial, as an artifact; it is drawn only where it is missing."""

    study: str
    trial: int
    file_name: str
    figure: Figure


class Publisher:
    """Writes what the dashboard shows beside the trials, and again whenever it has changed.

    Args:
        plan: to be read; a reader's storage is enough.
        storage: to be written.
        out: the plan's output folder; artifacts are in `out/artifacts`.
    """

    def __init__(self, plan: Plan, storage: Storage, out: Path) -> None:
        self._plan, self._storage, self._out = plan, storage, out
        self._artifacts = ArtifactFolder(out)
        self._ids = {name: plan.storage.study_id(name) for name in plan.all_names}
        self._published: object = None
        self._report: ReportData | None = None

    def notes_and_figures(self) -> None:
        """Write note, figures and metric name of every study that lacks them or whose have changed.

        Raises:
            StorageError: the database is away or takes no writes.
        """
        state = self._state()
        if state == self._published:
            return
        report = read(self._plan)
        bodies, placed = notes(report, self._ids), list(figures(report))
        for name, id_ in self._ids.items():
            there = self._storage.system_attrs(id_)
            ours = [each for each in placed if (each.study or FINAL) == name]
            wanted = _system_attrs(there, bodies[name], ours, report.objective)
            if wanted != {key: value for key, value in there.items() if key.startswith(OWNED)}:
                self._storage.replace_system_attrs(id_, OWNED, wanted)
        self._published, self._report = state, report

    def _state(self) -> object:
        """Return what notes and figures depend on: ended trials and what is stored, not single epochs."""
        counts = self._plan.storage.counts(dict.fromkeys(self._ids.values(), 0))
        ended = {key: n for key, n in counts.items() if key[1].is_finished()}
        return ended, self._plan.records()

    def pictures(self) -> None:
        """Draw the pictures that are missing of what was published last, and attach them to their trials.

        Optuna refuses to attach anything to a trial that has ended; the dashboard also looks into the study's
        attributes, which is where these are.

        Raises:
            StorageError: the database is away or takes no writes.
            OSError: the folder of artifacts cannot be written.
        """
        if self._report is None:
            return
        there = {name: self._storage.system_attrs(id_) for name, id_ in self._ids.items()}
        trials = {name: self._plan.trials(name) for name in self._ids}
        for picture in _pictures(self._report):
            trial = trials[picture.study][picture.trial]
            artifact = _artifact_id(self._plan, picture, trial)
            key = f"dashboard:artifacts:{id_of(trial)}:{artifact}"
            meta = there[picture.study].get(key)
            if meta == DELETED:
                continue
            if not self._artifacts.has(artifact):
                self._artifacts.write(artifact, io.BytesIO(matplotlib.draw(picture.figure).png))
            if meta is None:
                about = {"artifact_id": artifact, "filename": picture.file_name, "mimetype": "image/png"}
                attrs = {key: json.dumps({**about, "encoding": None})}
                self._storage.replace_system_attrs(self._ids[picture.study], [key], attrs)
        _find_worst_images(self._plan, self._artifacts, self._out)
        self._report = None


def _pictures(report: ReportData) -> Iterator[Picture]:
    """Yield the pictures of all trials that have ended, the final stage's first."""
    if report.final_point is not None:
        for each in figures(report):
            if each.entry.picture:
                yield Picture(FINAL, report.final_point.row.trial, each.entry.picture, each.figure)
    for section in report.sections:
        # in a race they are to have all their seeds
        for point in section.ranked[:MAX_PICTURES] if section.decision or not report.options.races else ():
            yield Picture(section.name, point.row.trial, "curves.png", trial_curves(report, point))


def _system_attrs(
    there: Mapping[str, Any], body: str, placed: Iterable[Placed], objective: Metric
) -> dict[str, Any]:
    """Return the attributes that Optuna and its dashboard would write for a study.

    A note that somebody has edited is theirs from then on.
    """
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, direction=objective.direction)
    study_id = storage.get_study_id_from_name(study.study_name)
    for key, value in there.items():
        if key.startswith((NOTE, OUR_NOTE)):
            storage.set_study_system_attr(study_id, key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([f"validation {objective.label}"])
    old = optuna_dashboard.get_note(study)
    is_ours = not old or there.get(OUR_NOTE) == _digest(old)
    if is_ours and old != body:
        optuna_dashboard.save_note(study, body)
        storage.set_study_system_attr(study_id, OUR_NOTE, _digest(body))
    for each in placed:
        if each.entry.dashboard and plotly.is_drawn(each.figure):
            plot = plotly.Plot(each.figure)
            optuna_dashboard.save_plotly_graph_object(study, plot, graph_object_id=each.entry.dashboard)
    return storage.get_study_system_attrs(study_id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _artifact_id(plan: Plan, picture: Picture, trial: FrozenTrial) -> str:
    """Return the same on every machine and at every start; another in another plan."""
    # the moment, not the local time that Optuna shows
    begin = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    of_what = (plan.identity.fingerprint, begin, picture.study, trial.number)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([*of_what, picture.file_name])))


def _find_worst_images(plan: Plan, artifacts: ArtifactFolder, out: Path) -> None:
    """Store the sheet that the final stage attached to its trial, once `hpo run` has brought the file."""
    trial = final_trial(plan)
    if trial is None or not (out / WRONG_IMAGES).is_file():
        return
    for meta in get_all_artifact_meta(trial, storage=plan.storage.for_optuna):
        if meta.filename == WRONG_IMAGES and not artifacts.has(meta.artifact_id):
            artifacts.write(meta.artifact_id, io.BytesIO((out / WRONG_IMAGES).read_bytes()))
