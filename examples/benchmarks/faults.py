"""Workers are killed, stopped and cut off from their database; nothing may be lost or counted twice.

    python examples/benchmarks/faults.py [sqlite postgresql mariadb] [--faults 200] [--seed 0]

Claim: of every plan each point gets exactly one accepted result, a kill costs at most one epoch, no live
worker loses its trial because the database was away, no worker crashes, and a resumed trial ends bit for bit
like an undisturbed one. Real processes (forked from this one: a worker starts in 0.2 s), real servers, real
training (scikit-learn's digits), seeded faults: SIGKILL at a named place in the code (around a claim, in
the middle of a transaction, around an epoch, in the middle of a checkpoint, around the end of a trial, while
trials are queued again, while a study decides, in the final stage), SIGKILL from outside, of one worker and
of all, SIGSTOP past the lease, SIGTERM, the server restarted, crashed, paused, a minute away; 16 processes
that create the plan at once and 16 workers; a full disk (a small tmpfs, as root on Linux); a trial that gets
no memory; a learning rate that ends in NaN; a worker with other data. About every other worker poses as
another machine's, so that only its lease tells that it died; time zones differ.

After each back end the faults of processes and servers strike plain Optuna (`faults_plain.py`). CSV.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults_plain
import servers
import torch
from optuna.trial import FrozenTrial
from PIL import Image
from siege import LEASE_SECONDS, NO_SPACE, REFUSED, Places, Siege, Tally
from tables import heading, print_table

from hpo.errors import ConflictError, RunError
from hpo.execution import run, worker
from hpo.execution import trial as objective
from hpo.monitor.status import status
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import Plan
from hpo.storage import queue, storage
from hpo.storage.queue import Reason, Slots, reason_of
from hpo.storage.storage import Storage
from hpo.training.loop import EpochResult, train

STUDIES = {
    "rate": """
        [base]
        conv1_channels = 4
        conv2_channels = 4
        hidden_units = 16
        [search]
        learning_rate = [0.003, 0.001, 0.0003]
        batch_size = [20, 40]
    """,
    "norm": """
        inherits = "rate"
        [search]
        batch_norm = [false, true]
    """,
    "wild": """
        inherits = "norm"
        [fixed]
        optimizer = "sgd"
        l2 = 1.0
        [search]
        learning_rate = [100.0, 0.001]
    """,
}
OPTIONS: dict[str, Any] = {
    "data": "digits",
    "limit_train": 400,
    "limit_valid": 100,
    "epochs": 5,
    "final_seeds": 2,
    "precision": "fp32",
}
CROWD_LEASE_SECONDS = 20.0
"""16 workers on two cores wait for seconds until they may as much as renew their leases."""
PLACES: Places = {
    "before a claim": (Storage, "claim", "before"),
    "after a claim": (Storage, "claim", "after"),
    "before an epoch is written": (Storage, "write", "before"),
    "after an epoch is written": (Storage, "write", "after"),
    "in the middle of a transaction": (storage, "set_attrs", "after"),
    "in the middle of a checkpoint": (os, "fsync", "before"),
    "before the end of a trial is written": (Storage, "finish", "before"),
    "after the end of a trial is written": (Storage, "finish", "after"),
    "before trials are queued": (Storage, "enqueue", "before"),
    "after trials were queued": (Storage, "enqueue", "after"),
    "before what is inherited is written": (Storage, "set_study_attr", "before"),
    "after what is inherited is written": (Storage, "set_study_attr", "after"),
    "before a decision is written": (Storage, "swap_study_attr", "before"),
    "after a decision is written": (Storage, "swap_study_attr", "after"),
}


class HpoPlan:
    """A plan of hpo with three small studies and a final stage."""

    places = PLACES

    def __init__(self, url: str, folder: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self._url, self._folder, self._lease_seconds = url, folder, lease_seconds
        self.misfits = {"out of memory": self._out_of_memory, "other data": self._other_data}
        self._found: Plan | None = None
        (folder / "studies").mkdir()
        for name, text in STUDIES.items():
            (folder / "studies" / f"{name}.toml").write_text(text)

    def create(self) -> None:
        """Writes the plan, as `hpo create` does."""
        out, studies = self._folder / "out", self._folder / "studies"
        given = {**OPTIONS, "lease_seconds": self._lease_seconds}
        run.find_or_create_plan(out, storage=self._url, studies=studies, given=given)

    def work(self, seed: int) -> int:
        """A worker in some time zone, perhaps of another machine."""
        chance = random.Random(seed)
        os.environ["TZ"] = chance.choice(["UTC", "America/New_York", "Asia/Kathmandu"])
        time.tzset()
        if chance.random() < 0.5:
            pose_as_elsewhere(f"machine-{seed}")
        try:
            stopped_by = worker.work(Storage(self._url, patience_seconds=90), out=self._folder / "out")
        except RunError as error:
            if "full" not in str(error) and "No space" not in str(error):
                raise
            print(error)
            return NO_SPACE
        return 0 if stopped_by is None else 128 + stopped_by

    def _out_of_memory(self, seed: int) -> int:
        """A worker whose first trial asks for more memory than there is, after an epoch."""

        def greedy(*arguments: Any, **options: Any) -> Generator[EpochResult, None, None]:
            objective.train = train  # type: ignore[attr-defined]
            yield next(train(*arguments, **options))
            torch.empty(2**60)

        objective.train = greedy  # type: ignore[attr-defined]
        return self.work(seed)

    def _other_data(self, _seed: int) -> int:
        """A worker that has other data than the plan; it must not touch a trial."""
        with tempfile.TemporaryDirectory(prefix="hpo-pictures-") as pictures:
            for part, label in itertools.product(("train", "test"), ("a", "b")):
                folder = Path(pictures, part, label)
                folder.mkdir(parents=True)
                for number in range(320):
                    Image.new("L", (8, 8), number % 256).save(folder / f"{number}.png")
            try:
                worker.work(
                    Storage(self._url, patience_seconds=90),
                    out=self._folder / "out",
                    data=f"folder:{pictures}",
                )
            except ConflictError as error:
                print(error)
                return REFUSED
        return 99

    @property
    def plan(self) -> Plan:
        """The plan as a reader sees it."""
        if self._found is None:
            self._found = Plan.open(Storage(self._url, reader=True))
        return self._found

    def ended(self) -> bool:
        """Whether every study and the final stage have ended."""
        return all(study.state in ("done", "failed") for study in status(self.plan))

    def measured(self) -> dict[str, dict[str, str]]:
        """By study and point what its accepted trial measured."""
        return {
            name: {
                slot.point: bits(trial)
                for slot in slots.attempts
                if (trial := slots.accepted(slot)) is not None
            }
            for name in self.plan.all_names
            for slots in [Slots.of(self.plan.trials(name))]
        }

    def judge(self, tally: Tally, hurt: dict[int, float], reference: dict[str, dict[str, str]]) -> None:
        """Counts what was lost, doubled, repeated, and what differs from an undisturbed plan."""
        measured = self.measured()
        for name in self.plan.all_names:
            tally.points += len(reference[name])
            tally.points_lost += len(reference[name].keys() - measured[name].keys())
            for slot, attempts in Slots.of(self.plan.trials(name)).attempts.items():
                accepted = [trial for trial in attempts if trial.state.name in ("COMPLETE", "PRUNED")]
                tally.double_results += max(0, len(accepted) - 1)
                judge_attempts(attempts, tally, hurt)
                for trial in attempts:
                    if reason_of(trial) == Reason.ERROR:
                        tally.count("out of memory")
                    elif reason_of(trial) == Reason.DIVERGED:
                        tally.count("NaN in training")
                if accepted and len(attempts) > 1:
                    tally.resumed += 1
                    tally.resumed_equal += measured[name][slot.point] == reference[name][slot.point]


def pose_as_elsewhere(name: str) -> None:
    """Makes this process look like one of another container: nobody here can tell whether it lives."""
    me = {**queue.this_process(), "host": name, "boot": f"{queue._boot_id().split()[0]} {name}"}
    queue.this_process = lambda: me  # type: ignore[assignment]


def judge_attempts(attempts: list[FrozenTrial], tally: Tally, hurt: dict[int, float]) -> None:
    """Counts what the attempts at one point say: losses, how soon they were mended, epochs trained twice."""
    for before, after in pairwise(attempts):
        pid = before.user_attrs.get("owner", {}).get("pid")
        if reason_of(before) == Reason.LOST:
            tally.attempts_lost += 1
            if pid not in hurt:
                tally.false_losses += 1
            elif after.datetime_start is not None:
                recovered = after.datetime_start.timestamp() - hurt[pid]
                tally.recovery_seconds.append(max(0.0, recovered))
        # what is taken over from an earlier study trains nothing, however often it is written
        if after.state.name in ("COMPLETE", "PRUNED") and reason_of(after) != Reason.REUSED:
            repeated = len(before.intermediate_values) - after.user_attrs.get("resumed_after_epoch", 0)
            tally.max_epochs_repeated = max(tally.max_epochs_repeated, repeated)


def bits(trial: Any) -> str:
    """Everything that a trial measured, seconds apart."""
    records = epochs_of(trial.user_attrs)
    for seeds in records:
        for seed in seeds:
            seed.pop("seconds", None)
    tests = {key: value for key, value in trial.user_attrs.items() if key.startswith("test:")}
    return json.dumps([trial.value, records, tests], sort_keys=True)


def undisturbed() -> dict[str, dict[str, str]]:
    """What every point of the plan measures when nothing happens."""
    with tempfile.TemporaryDirectory(prefix="hpo-faults-") as name:
        folder = Path(name)
        subject = HpoPlan(f"sqlite:///{folder / 'hpo.db'}", folder)
        Siege(subject, folder / "log", None, Tally("", ""), random.Random(0), n_faults=0).hold()
        return subject.measured()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Puts a file system of 24 MB on a folder, as root on Linux; says whether it could."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            # lazily: a connection to the database there may still be open
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def back_end(kind: str) -> Iterator[servers.Server | None]:
    """The server of a back end; None for SQLite."""
    with ExitStack() as stack:
        yield None if kind == "sqlite" else stack.enter_context(servers.running(kind))


def besiege(subject: str, kind: str, n_faults: int, seed: int, reference: dict[str, Any]) -> Tally:
    """Plans after plans on one back end until so many faults have happened."""
    chance = random.Random(seed)
    tally = Tally(subject, kind)
    is_long = n_faults >= 100  # a minute's outage and a crowd are not for a short look
    with back_end(kind) as server:
        while tally.faults < n_faults:
            with ExitStack() as stack:
                folder, logs = (
                    Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpo-faults-")))
                    for _ in range(2)
                )
                is_third = is_long and tally.plans == 3 and subject == "hpo"
                is_small = is_third and stack.enter_context(small_disk(folder))
                crowded = is_long and tally.plans == 1
                special: dict[str, Any] = {
                    "crowded": crowded,
                    "long_outage": is_long and tally.plans == 2,
                    "disk": folder if is_small else None,
                }
                url = server.new_database() if server else f"sqlite:///{folder / 'hpo.db'}"
                before = tally.trouble()
                if subject == "hpo":
                    plan = HpoPlan(url, folder, CROWD_LEASE_SECONDS if crowded else LEASE_SECONDS)
                    siege = Siege(plan, logs / "log", server, tally, chance, **special)
                    siege.hold()
                    plan.judge(tally, siege.hurt, reference)
                    if tally.trouble() != before:
                        print((logs / "log").read_text()[-20_000:], file=sys.stderr)
                else:
                    grid = faults_plain.Grid(url, folder)
                    Siege(grid, logs / "log", server, tally, chance, **special).hold()
                    grid.judge(tally)
            tally.plans += 1
            print(f"{subject} on {kind}: {tally.faults} faults in {tally.plans} plans", file=sys.stderr)
    return tally


def main() -> None:
    """Runs the back ends one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("back_ends", nargs="*", default=["sqlite", "postgresql", "mariadb"])
    parser.add_argument("--faults", type=int, default=200, help="on each back end (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", nargs="+", default=["hpo", "optuna"], choices=["hpo", "optuna"])
    parser.add_argument("--json", action="store_true", help="records instead of CSV")
    options = parser.parse_args()
    reference = undisturbed()
    records = []
    for kind in options.back_ends:
        if kind != "sqlite" and not servers.is_installed(kind):
            print(f"{kind}: not installed here", file=sys.stderr)
            continue
        for subject in options.subjects:
            records.append(besiege(subject, kind, options.faults, options.seed, reference).record())
    if options.json:
        print(json.dumps(records, indent=2))
        return
    heading(f"seed {options.seed}")
    for record in records:
        kinds = record.pop("kinds")
        text = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        print(f"# {record['subject']} on {record['back_end']}: {text}")
    print_table(records)


if __name__ == "__main__":
    main()
