"""Runs as Weights & Biases has them: grouped by study, the study's own run in the group as job type `study`.

Without a login they are kept in a folder, from which `wandb sync` sends them.
"""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from hpo._files import write_whole
from hpo.errors import InputError
from hpo.reporting.trackers.runs import FAILED, Run
from hpo.reporting.trackers.written import Written, needed

MODE, PROJECT, KEY, SERVER = "WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_BASE_URL"
"""W&B's own environment variables."""
CLOUD = "https://api.wandb.ai"
DIGEST = "hpo-digest"
"""The file in a run's folder that says as what it was written; without it, it was not written to its end."""
MAX_TAG = 64


def write_wandb(runs: Sequence[Run], folder: Path) -> Written:
    """Write the runs into folders wandb/offline-run-…, or send them where there is a login.

    Raises:
        InputError: wandb is not installed, or W&B refuses.
        OSError: the folder cannot be written.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would tell its makers of what goes wrong
    wandb, mode = (
        needed("wandb", "wandb"),
        os.environ.get(MODE) or ("online" if _is_logged_in() else "offline"),
    )
    project = os.environ.get(PROJECT) or "hpo"
    base = folder / "wandb"
    written = Written(f"{base}, project {project}", f"send: wandb sync {quote(str(base))}/offline-run-*")
    if mode != "offline":
        written.then = f"look: the page of the project {project}"
    try:
        for run in runs:
            before = [path for path in base.glob(f"*run-*-{run.id}") if path.is_dir()]
            is_same = any(_digest(path) == run.digest for path in before)
            if not is_same:
                for path in before:
                    shutil.rmtree(path)
                _write(wandb, run, folder, project, mode)
            written.count(is_known=bool(before), is_same=is_same)
    except wandb.errors.Error as error:
        raise InputError(f"--to wandb: {error}") from None
    finally:
        wandb.teardown()
    return written


def _write(wandb: Any, run: Run, folder: Path, project: str, mode: str) -> None:
    tags = [run.state, *([run.tags["verdict"]] if "verdict" in run.tags else [])]
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
    )
    times = {"began": run.began, "ended": run.ended}
    told = {f"hpo.{name}": value for name, value in {"state": run.state, **run.tags, **times}.items()}
    opened = wandb.init(
        project=project,
        id=run.id,
        name=run.name,
        group=run.study,
        job_type=run.kind,
        tags=[tag[:MAX_TAG] for tag in tags],
        config={**run.params, **told},
        mode=mode,
        resume="allow" if mode == "online" else None,
        dir=str(folder),
        settings=settings,
    )
    by_step: dict[int, dict[str, float]] = {}
    for name, points in run.series.items():
        for point in points:
            by_step.setdefault(point.step, {})[name] = point.value
    first = opened.step  # of a run that the server has already what it has is not sent again
    for step, values in by_step.items():
        if step >= first:
            opened.log(values, step=step)
    for name, value in run.metrics.items():
        opened.summary[f"best/{name}"] = value
    place = Path(opened.dir).parent
    opened.finish(exit_code=1 if run.state == FAILED else 0)
    write_whole(place / DIGEST, run.digest.encode())


def _digest(path: Path) -> str:
    with suppress(OSError):
        return (path / DIGEST).read_text("utf-8")
    return ""


def _is_logged_in() -> bool:
    """Return whether W&B would find a key, without asking it: that could ask the user."""
    if os.environ.get(KEY):
        return True
    host = urlsplit(os.environ.get(SERVER) or CLOUD).hostname or ""
    with suppress(OSError, netrc.NetrcParseError, RuntimeError):
        file = os.environ.get("NETRC") or Path.home() / ".netrc"
        return netrc.netrc(file).authenticators(host) is not None
    return False
