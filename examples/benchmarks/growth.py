"""How costs grow with the trials in one storage, 10² to 10⁵: to read, look for work, claim, show.

    python examples/benchmarks/growth.py [100 1000 10000 100000] [--repeats 5]

Claims: `hpo status` on 10,000 trials takes less than a second beyond its start-up; the first look of a worker
takes less than two, and 300 MB; a claim and the end of a trial stay under ten milliseconds. What grows by
some microseconds a trial: a later look, and the verdict of a pruner, which reads all figures of an epoch. One
trial of 11 epochs is written by the functions that workers use, and copied by SQL for all the other points of
a grid: writing 10⁵ one by one would take hours; the last 64 points are left for `advance` to queue and to be
claimed. SQLite. Medians over repeats, the worker in a fresh process, memory without the pages of files (from
/proc: Linux alone); CSV on stdout. Measured alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from images import SPAWN, private_mb
from optuna.pruners import MedianPruner
from optuna.trial import TrialState
from report_size import finish, plan_of
from sqlalchemy import text
from tables import Table, heading

from hpo.planning.plan import Plan
from hpo.planning.scheduler import advance, study_jobs
from hpo.storage.queue import Queue, Reason, claim
from hpo.storage.storage import Storage

STUDY, EPOCHS, LEFT = "grid", 11, 64
COPIES = (
    "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete) "
    "SELECT :new, :number, study_id, state, datetime_start, datetime_complete "
    "FROM trials WHERE trial_id = :old",
    "INSERT INTO trial_values (trial_id, objective, value, value_type) "
    "SELECT :new, objective, value, value_type FROM trial_values WHERE trial_id = :old",
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
    "SELECT :new, param_name, param_value, distribution_json FROM trial_params WHERE trial_id = :old",
    "INSERT INTO trial_intermediate_values "
    "(trial_id, step, intermediate_value, intermediate_value_type) "
    "SELECT :new, step, intermediate_value, intermediate_value_type "
    "FROM trial_intermediate_values WHERE trial_id = :old",
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
    "SELECT :new, key, CASE key WHEN 'point' THEN :point WHEN 'index' THEN :place "
    "WHEN 'attempt_key' THEN :attempt ELSE value_json END FROM trial_user_attributes WHERE trial_id = :old",
)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fill(folder: Path, n_trials: int) -> str:
    """The URL of a plan of so many points, of which all but `LEFT` have ended."""
    plan = plan_of(folder, n_trials, EPOCHS)
    advance(plan, [STUDY])
    claimed = claim(plan.storage, [STUDY])
    assert claimed is not None
    trial = claimed.trial
    finish(plan, trial, EPOCHS, random.Random(0))
    with plan.storage._rdb.engine.begin() as connection:
        # what `advance` has queued is queued again later, under the numbers that follow
        for table in ("trial_params", "trial_user_attributes", "trial_system_attributes", "trials"):
            connection.execute(text(f"DELETE FROM {table} WHERE trial_id <> :old"), {"old": trial._trial_id})
        for number, job in enumerate(study_jobs(plan, STUDY, None)[1:-LEFT], start=1):
            values = {
                "old": trial._trial_id,
                "new": trial._trial_id + number,
                "number": number,
                "point": json.dumps(job.slot.point),
                "place": json.dumps(job.index),
                "attempt": json.dumps(f"{job.slot.point} {job.slot.replicate} 1"),
            }
            for statement in COPIES:
                connection.execute(text(statement), values)
    return plan.storage.url


def costs(url: str, repeats: int) -> dict[str, float]:
    """What a worker that has just started does again and again, and what its memory grows by."""
    plan = Plan.open(Storage(url))
    before = private_mb()
    first_look = seconds(lambda: advance(plan, [STUDY]))
    first_look_mb = private_mb() - before
    looks, claims, ends = [], [], []
    for _ in range(repeats):
        looks.append(seconds(lambda: advance(plan, [STUDY])))
        began = time.perf_counter()
        claimed = claim(plan.storage, [STUDY])
        claims.append(time.perf_counter() - began)
        assert claimed is not None
        ends.append(seconds(partial(plan.storage.finish, claimed.trial._trial_id, TrialState.COMPLETE, 0.5)))
    claimed = claim(plan.storage, [STUDY])
    assert claimed is not None
    trial = claimed.trial
    pruner, study = MedianPruner(), plan.storage.study(STUDY)
    verdicts = []
    for epoch in range(1, repeats + 2):
        plan.storage.write(trial._trial_id, reports={epoch: 0.9})
        verdicts.append(seconds(lambda: pruner.prune(study, plan.storage.trial(trial._trial_id))))
    Queue(plan.storage, STUDY).close(trial._trial_id, Reason.RELEASED)
    return {
        "first_look_s": first_look,
        "first_look_mb": first_look_mb,
        "look_s": median(looks),
        "claim_s": median(claims),
        "end_s": median(ends),
        "first_verdict_s": verdicts[0],
        "verdict_s": median(verdicts[1:]),
        "worker_mb": private_mb() - before,
    }


def measure(n_trials: int, repeats: int) -> dict[str, float]:
    """The costs on a storage with so many ended trials."""
    with tempfile.TemporaryDirectory(prefix="hpo-growth-") as name:
        url = fill(Path(name), n_trials)
        with ProcessPoolExecutor(1, SPAWN) as fresh:
            record = fresh.submit(costs, url, repeats).result()
        command = [sys.executable, "-m", "hpo", "status", "--out", name, "--json"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (study,) = (each for each in json.loads(shown)["studies"] if each["name"] == STUDY)
        assert study["points"]["complete"] == n_trials - LEFT + repeats, study["points"]
        status = [
            seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(repeats)
        ]
        database_mb = sum(file.stat().st_size for file in Path(name).glob("hpo.db*")) / 1e6
        return {"trials": n_trials, **record, "status_s": median(status), "database_mb": database_mb}


def main() -> None:
    """A line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="*", type=int, default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    heading(f"{options.repeats} repeats")
    table = Table()
    for n_trials in sorted(options.trials):
        table.add(measure(n_trials, options.repeats))


if __name__ == "__main__":
    main()
