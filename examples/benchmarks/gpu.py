"""What a GPU makes of the report: one trial, recipes of one's own, sixteen at once, all six studies.

    python examples/benchmarks/gpu.py PATH [--minutes 8] [--parts trial slots recipes together report]

Goals for one H200 and the full data: one trial at batch 20 trains at least 3 times the images a second of an
eager loop over images that are on the GPU too, and 15 times those of the plain script; a user's own recipe at
least 4 times those of its eager loop; the first epoch in a warm slot takes at most 1.1 times as long as
later ones; the sixteen points of `network-setup` at once take a third of the time that they take one after
the other; the whole report (six studies and the final stage with one seed, 11 epochs, nothing pruned) trains
in under 40 s.

PATH is an image folder as `hpo run --data folder:PATH` takes it. Validation after each epoch is included
everywhere, decoding and the start of processes nowhere; CUDA's own start is in the parts together and report.
The parts share the minutes: what one leaves, the later ones get, and what has not ended in time is stopped
and says so in its row. CSV on stdout, each row as soon as it is known. Each is run once: compare the ratios
of one run of this file, on a machine that does nothing else. With `--device cpu` the same calls run without
graphs and streams, which shows that they run and nothing more.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bounded import GRACE_SECONDS, Child, exit_at_sigterm
from tables import Table, heading

import hpo

PARTS = {"trial": 80, "slots": 30, "recipes": 80, "together": 170, "report": 150}
"""How the parts share the time: seconds of eight minutes."""
LEAST_SECONDS = 20.0
"""Imports, CUDA's start and a first decoding take most of it: a part that gets less is left out."""
LIMITS = ("limit_train", "limit_valid")


class Clock:
    """The time that is left, and a share of it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - time.monotonic())

    def share(self, weight: float, of: float) -> Clock | None:
        """A clock with a part's share; None where that is too little to begin."""
        seconds = min(self.left, max(LEAST_SECONDS, self.left * weight / of))
        return Clock(seconds) if seconds >= LEAST_SECONDS else None


def loops(part: str, options: argparse.Namespace, clock: Clock, table: Table) -> None:
    """A part of `gpu_loops.py`: its rows, and of those that it does not come to why."""
    script = str(Path(__file__).with_name("gpu_loops.py"))
    command = [sys.executable, script, str(options.folder), part, f"--device={options.device}"]
    with Child([*command, *limits_of(options)], clock.left) as child:
        lines = child.lines()
        names: list[dict[str, Any]] = json.loads(next(lines, "[]"))
        rows: list[dict[str, Any]] = []
        for line in lines:
            rows.append(json.loads(line))
            table.add(rows[-1])
        if child.outcome == "done":
            return
        print(child.err, file=sys.stderr)
        columns = dict.fromkeys(rows[0], "") if rows else {}
        for number, missing in enumerate(names[len(rows) :] or [{"part": part}]):
            table.add({**columns, **missing, "outcome": "not begun" if number else child.outcome})


def hpo_run(out: Path, clock: Clock, *arguments: str) -> dict[str, Any]:
    """Runs `hpo run` with these arguments; what ended, seconds from first claim to last end."""
    command = [sys.executable, "-m", "hpo", "run", "--no-pruning", "--workers=1", "--out", str(out)]
    with Child([*command, *arguments], clock.left) as child:
        child.wait()
        outcome = child.outcome
        if outcome != "done":
            print(child.err, file=sys.stderr)
    trials = []
    with suppress(hpo.InputError):  # stopped before there was a plan
        plan = hpo.find_plan(out)
        trials = [trial for name in plan.all_names for trial in plan.trials(name)]
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    begins = [trial.datetime_start for trial in done if trial.datetime_start]
    ends = [trial.datetime_complete for trial in done if trial.datetime_complete]
    seconds = (max(ends) - min(begins)).total_seconds() if done else ""
    return {"trials_done": len(done), "seconds": seconds, "outcome": outcome}


def together(options: argparse.Namespace, clock: Clock, work: Path, table: Table) -> None:
    """The points of `network-setup`, as many at once as told; "auto": as many as hpo takes by itself."""
    one_by_one: float | None = None
    for number, count in enumerate(options.at_once):
        mine = clock.share(1, len(options.at_once) - number)
        row: dict[str, Any] = {"trials_done": "", "seconds": "", "outcome": "not begun: no time is left"}
        if mine:
            at_once = [] if count == "auto" else [f"--trials-per-device={count}"]
            arguments = [*data_of(options), "--epochs=2", *at_once, "network-setup"]
            row = hpo_run(work / f"together-{count}", mine, *arguments)
        outcome = row.pop("outcome")
        faster: float | str = ""
        if outcome == "done":
            one_by_one = one_by_one or row["seconds"]
            faster = one_by_one / row["seconds"] if one_by_one else ""
        table.add({"trials_at_once": count, **row, "faster_than_the_first_by": faster, "outcome": outcome})


def report(options: argparse.Namespace, clock: Clock, work: Path, table: Table) -> None:
    """All six studies and the final stage."""
    arguments = [*data_of(options), f"--epochs={options.epochs}", "--final-seeds=1"]
    table.add({"epochs": options.epochs, **hpo_run(work / "report", clock, *arguments)})


def limits_of(options: argparse.Namespace) -> list[str]:
    """The limits as arguments."""
    given = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def data_of(options: argparse.Namespace) -> list[str]:
    """Data and device as arguments of `hpo run`."""
    return [f"--data=folder:{options.folder}", f"--device={options.device}", *limits_of(options)]


def main() -> None:
    """A table a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--at-once", nargs="+", default=["1", "4", "16", "auto"], help="of the part together")
    parser.add_argument("--epochs", type=int, default=11, help="of the part report; together has two")
    for name in LIMITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    options = parser.parse_args()
    seconds = 60 * options.minutes
    exit_at_sigterm()
    # the device may keep this process, too, which asks it for its name
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    clock = Clock(seconds - GRACE_SECONDS)
    table = Table()
    with tempfile.TemporaryDirectory(prefix="hpo-gpu-") as folder:
        work = Path(folder)
        os.environ.setdefault("HPO_CACHE", str(work / "cache"))
        os.environ["TMPDIR"] = folder  # what a child that was stopped leaves there goes with it
        parts: dict[str, Callable[[Clock], None]] = {
            "trial": lambda clock: loops("trial", options, clock, table),
            "slots": lambda clock: loops("slots", options, clock, table),
            "recipes": lambda clock: loops("recipes", options, clock, table),
            "together": lambda clock: together(options, clock, work, table),
            "report": lambda clock: report(options, clock, work, table),
        }
        heading(f"one run, {options.minutes:g} minutes", device=options.device)
        left = {part: weight for part, weight in PARTS.items() if part in options.parts}
        while left:
            part = next(iter(left))
            share = clock.share(left[part], sum(left.values()))
            del left[part]
            if share is None:
                outcome = f"left out: {clock.left:.0f} s remain, it needs {LEAST_SECONDS:.0f}"
                table.add({"part": part, "outcome": outcome})
            else:
                parts[part](share)


if __name__ == "__main__":
    main()
