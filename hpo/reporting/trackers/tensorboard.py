"""Runs as TensorBoard reads them: a folder a run, those of trials in that of their study.

The package tensorboard writes and reads the records itself; TensorFlow is not needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from hpo._files import write_whole
from hpo.errors import InputError
from hpo.reporting.trackers.runs import COMPLETE, DISCARDED, RUNNING, TRIAL, Run
from hpo.reporting.trackers.written import Written, needed

FILE = "events.out.tfevents.0000000000.hpo"
"""One a run, written anew when the run has changed: TensorBoard finds files by the beginning of the name."""
STATE = "hpo.state"
"""Among the parameters, where TensorBoard can show and filter it; no parameter has a dot in its name."""


def write_tensorboard(runs: Sequence[Run], folder: Path) -> Written:
    """Write the runs into folders STUDY and STUDY/NUMBER.

    Raises:
        InputError: tensorboard is not installed, or the folder has runs of those names of another plan.
        OSError: the folder cannot be written.
    """
    files = [folder / run.name / FILE for run in runs]
    contents = [file.read_bytes() if file.exists() else None for file in files]
    for run, content in zip(runs, contents, strict=True):
        if content is not None and run.id.encode() not in content:
            raise InputError(
                f"{folder}: its {run.name} is a run of another plan, which would be lost; give each plan a "
                "folder of its own, and TensorBoard the one above them"
            )
    written = Written(str(folder), f"look: tensorboard --logdir {quote(str(folder))}")
    for run, file, before in zip(runs, files, contents, strict=True):
        is_known = before is not None
        is_same = before is not None and run.digest.encode() in before
        if not is_same:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, _content(run))
        written.count(is_known=is_known, is_same=is_same)
    return written


def _content(run: Run) -> bytes:
    content = io.BytesIO()
    records = needed("tensorboard.summary.writer.record_writer", "tensorboard").RecordWriter(content)
    for event in _events(run):
        records.write(event.SerializeToString())
    return content.getvalue()


def _events(run: Run) -> Iterator[Any]:
    event = needed("tensorboard.compat.proto.event_pb2", "tensorboard").Event
    summary = needed("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
    text = needed("tensorboard.plugins.text.summary_v2", "tensorboard")
    yield event(wall_time=run.began, file_version="brain.Event:2")
    if run.kind == TRIAL:
        yield event(wall_time=run.began, summary=_session_start(run))
    for name, points in run.series.items():
        for point in points:
            value = summary(value=[summary.Value(tag=name, simple_value=point.value)])
            yield event(wall_time=point.time, step=point.step, summary=value)
    end = run.began if run.ended is None else run.ended
    last = max((point.step for points in run.series.values() for point in points), default=0)
    for name, number in run.metrics.items():
        value = summary(value=[summary.Value(tag=f"best/{name}", simple_value=number)])
        yield event(wall_time=end, step=last, summary=value)
    # the bytes of equal events may differ: the digest tells whether a file holds the run as it is
    for name, said in {"state": run.state, **run.tags, "id": run.id, "digest": run.digest}.items():
        yield event(wall_time=end, step=last, summary=text.text_pb(f"hpo/{name}", said))
    if run.kind == TRIAL and run.ended is not None:
        yield event(wall_time=end, step=last, summary=_session_end(run))


def _session_start(run: Run) -> Any:
    hparams = needed("tensorboard.plugins.hparams.summary_v2", "tensorboard")
    values = {**run.params, STATE: run.state}
    return hparams.hparams_pb(values, trial_id=run.name, start_time_secs=run.began)


def _session_end(run: Run) -> Any:
    """Return the record that `hparams` of tensorboard writes only where TensorFlow is installed."""
    summary = needed("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
    api = needed("tensorboard.plugins.hparams.api_pb2", "tensorboard")
    metadata = needed("tensorboard.plugins.hparams.metadata", "tensorboard")
    data = needed("tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard")
    status = api.STATUS_SUCCESS if run.state in (COMPLETE, DISCARDED) else api.STATUS_FAILURE
    ended = data.SessionEndInfo(status=api.STATUS_RUNNING if run.state == RUNNING else status)
    ended.end_time_secs = run.ended
    value = summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(data.HParamsPluginData(session_end_info=ended)),
        tensor=metadata.NULL_TENSOR,
    )
    return summary(value=[value])
