"""What runs beside a training leaves it alone."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy

from hpo.execution.heartbeat import HeartbeatThread
from hpo.planning.scheduler import advance
from hpo.storage.trials import id_of
from tests.support.plans import RATES, made_plan
from tests.support.scripted_worker import Worker


def test_beats_and_retries_do_not_draw_from_pythons_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seeded in each epoch for recipes that draw from it."""
    plan = made_plan(tmp_path, RATES, lease_seconds=4)
    advance(plan)
    trial = Worker(plan).claim("rate")
    renew = plan.storage.heartbeat
    n_tries, n_beats, before = 0, 0, random.getstate()

    def locked_twice() -> None:
        nonlocal n_tries
        n_tries += 1
        if n_tries < 3:
            raise sqlalchemy.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked"))

    def beat(trial_id: int) -> None:
        nonlocal n_beats
        renew(trial_id)
        n_beats += 1

    monkeypatch.setattr(plan.storage, "heartbeat", beat)
    with HeartbeatThread(plan, None, plan.storage.check_in_place) as heart, heart.beating_for(id_of(trial)):
        while n_beats < 2:
            time.sleep(0.05)
    plan.storage.retry(locked_twice)
    assert n_tries == 3
    assert random.getstate() == before
