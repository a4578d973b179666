"""What trackers of experiments hold, as their own readers see it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """A run."""

    kind: str = ""
    state: str = ""
    parent: str | None = None
    """The name of the run above it."""
    status: str = ""
    """As the tracker has it."""
    params: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    series: dict[str, dict[int, float]] = field(default_factory=dict)


def in_tensorboard(folder: Path) -> dict[str, Seen]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    found = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        name = str(file.parent.relative_to(folder))
        run = EventAccumulator(str(file.parent))
        run.Reload()
        study, _, trial = name.partition("/")
        seen = found[name] = Seen("trial" if trial else "study", parent=study if trial else None)
        for tag in run.Tags()["scalars"]:
            if not tag.startswith("best/"):
                seen.series[tag] = {event.step: event.value for event in run.Scalars(tag)}
        for tag in run.Tags()["tensors"]:
            if tag.startswith("hpo/"):
                (event,) = run.Tensors(tag)
                seen.said[tag.removeprefix("hpo/")] = event.tensor_proto.string_val[0].decode()
        seen.state = seen.said["state"]
        hparams = run.SummaryMetadata
        if trial:
            start = metadata.parse_session_start_info_plugin_data(
                hparams(metadata.SESSION_START_INFO_TAG).plugin_data.content
            )
            assert start.hparams["hpo.state"].string_value == seen.state
            seen.params = {
                key: str(getattr(value, str(value.WhichOneof("kind"))))
                for key, value in start.hparams.items()
                if key != "hpo.state"
            }
        if metadata.SESSION_END_INFO_TAG in run.Tags()["tensors"]:
            end = metadata.parse_session_end_info_plugin_data(
                hparams(metadata.SESSION_END_INFO_TAG).plugin_data.content
            )
            seen.status = api_pb2.Status.Name(end.status)
    return found


def in_mlflow(folder: Path) -> dict[str, Seen]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri := f"sqlite:///{folder / 'mlflow.db'}", uri)
    experiment = client.get_experiment_by_name("hpo")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names)
    found = {}
    for run in runs:
        tags = run.data.tags
        said = {key.removeprefix("hpo."): value for key, value in tags.items() if key.startswith("hpo.")}
        parent = tags.get("mlflow.parentRunId")
        seen = Seen(said["kind"], said["state"], names[parent] if parent else None, run.info.status)
        seen.params, seen.said = run.data.params, said
        for key in run.data.metrics:
            if not key.startswith("best_"):
                history = client.get_metric_history(run.info.run_id, key)
                seen.series[key] = {point.step: point.value for point in history}
                assert len(seen.series[key]) == len(history)
        found[run.info.run_name] = seen
    return found


def in_wandb(folder: Path) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        seen = Seen(status="unfinished")
        for record in _records(file):
            match record.WhichOneof("record_type"):
                case "run":
                    run = record.run
                    assert run.display_name not in found
                    found[run.display_name] = seen
                    config = {each.key: json.loads(each.value_json) for each in run.config.update}
                    seen.kind = run.job_type
                    seen.parent = run.run_group if run.job_type == "trial" else None
                    seen.params = {
                        key: str(value)
                        for key, value in config.items()
                        if not key.startswith(("hpo.", "_wandb"))
                    }
                    seen.said = {
                        key.removeprefix("hpo."): str(value)
                        for key, value in config.items()
                        if key.startswith("hpo.")
                    }
                    seen.state = seen.said["state"]
                    assert seen.state in run.tags
                case "history":
                    values = {
                        each.key or each.nested_key[0]: json.loads(each.value_json)
                        for each in record.history.item
                    }
                    step = values.pop("_step")
                    for key, value in values.items():
                        if not key.startswith("_"):
                            seen.series.setdefault(key, {})[step] = value
                case "exit":
                    seen.status = f"exit {record.exit.exit_code}"
    return found


def _records(file: Path) -> Iterator[Any]:
    """The records of W&B's offline file, a LevelDB log behind seven bytes: W&B has no reader of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


READERS: Mapping[str, Callable[[Path], dict[str, Seen]]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "wandb": in_wandb,
}
