"""Runs as MLflow has them: nested below the run of their study, in a database of their own or on a server."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from hpo.errors import InputError
from hpo.reporting.trackers.runs import COMPLETE, DISCARDED, DIVERGED, FAILED, RUNNING, STUDY, Run
from hpo.reporting.trackers.written import Written, needed

TRACKING_URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
"""MLflow's own environment variables."""
ID, DIGEST = "hpo.id", "hpo.digest"
"""Tags by which a run is found again, and known to be as it was."""
AT_ONCE = 500
"""So many values MLflow takes in one call, at least."""
MAX_TAG = 5000
PAGE = 1000
STATUS = {
    COMPLETE: "FINISHED",
    DISCARDED: "FINISHED",
    RUNNING: "RUNNING",
    FAILED: "FAILED",
    DIVERGED: "FAILED",
}
"""In MLflow's words; what was stopped otherwise, by a pruner or because it was lost, is KILLED."""
STATUS_OF_STUDY = {"done": "FINISHED", "failed": "FAILED"}


def write_mlflow(runs: Sequence[Run], folder: Path) -> Written:
    """Write the runs into mlflow.db in a folder, or to what MLFLOW_TRACKING_URI names.

    Raises:
        InputError: mlflow-skinny is not installed, or the server refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of each call
    is_local = not os.environ.get(TRACKING_URI)
    uri = f"sqlite:///{folder.absolute() / 'mlflow.db'}" if is_local else os.environ[TRACKING_URI]
    needed("mlflow", "mlflow")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # that it makes tables is no news
    error = needed("mlflow.exceptions", "mlflow").MlflowException
    try:
        client = needed("mlflow.tracking", "mlflow").MlflowClient(uri, uri)
        name = os.environ.get(EXPERIMENT) or "hpo"
        experiment = _experiment(
            client, name, (folder.absolute() / "artifacts").as_uri() if is_local else None
        )
        look = f"look: mlflow ui --backend-store-uri {quote(str(uri))} (of the package mlflow)"
        written = Written(f"{_shown(uri)}, experiment {name}", look if is_local else "")
        known = {run.data.tags[ID]: run for run in _found(client, experiment)}
        places = {key: run.info.run_id for key, run in known.items()}
        for run in runs:
            before = known.get(run.id)
            is_same = before is not None and before.data.tags.get(DIGEST) == run.digest
            if not is_same:
                places[run.id] = _write(client, experiment, run, before, places)
            written.count(is_known=before is not None, is_same=is_same)
    except error as problem:
        raise InputError(_shown(f"{uri}: {str(problem).splitlines()[0]}")) from None
    return written


def _shown(text: str) -> str:
    """Return a text without the users and the passwords that may stand in its URLs."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, artifacts))


def _found(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{ID}` != ''", max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _write(client: Any, experiment: str, run: Run, before: Any, places: Mapping[str, str]) -> str:
    """Write what a run has beyond what is there, its digest last; return MLflow's own id of it."""
    entities = needed("mlflow.entities", "mlflow")
    if before is None:
        tags = {ID: run.id} | ({} if run.parent is None else {"mlflow.parentRunId": places[run.parent]})
        before = client.create_run(experiment, int(1000 * run.began), tags, run.name)
    run_id: str = before.info.run_id
    params = {name: value for name, value in run.params.items() if name not in before.data.params}
    metrics = [
        entities.Metric(name, point.value, int(1000 * point.time), point.step)
        for name, points in run.series.items()
        for point in points[len(client.get_metric_history(run_id, name)) if before.data.metrics else 0 :]
    ]
    end = run.began if run.ended is None else run.ended
    metrics += [
        entities.Metric(f"best_{name}", value, int(1000 * end), 0)
        for name, value in run.metrics.items()
        if before.data.metrics.get(f"best_{name}") != value
    ]
    if params:
        client.log_batch(run_id, params=[entities.Param(name, str(value)) for name, value in params.items()])
    rest = iter(metrics)
    while some := list(islice(rest, AT_ONCE)):
        client.log_batch(run_id, metrics=some)
    said = {"kind": run.kind, "study": run.study, "state": run.state, **run.tags}
    gone = before.data.tags.keys() - {f"hpo.{name}" for name in said} - {ID, DIGEST}
    for name in gone:
        if name.startswith("hpo."):
            client.delete_tag(run_id, name)
    told = [entities.RunTag(f"hpo.{name}", value[:MAX_TAG]) for name, value in said.items()]
    client.log_batch(run_id, tags=told)
    status = (
        STATUS_OF_STUDY.get(run.state, "RUNNING") if run.kind == STUDY else STATUS.get(run.state, "KILLED")
    )
    if run.ended is None:
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status, int(1000 * run.ended))
    client.set_tag(run_id, DIGEST, run.digest)
    return run_id
