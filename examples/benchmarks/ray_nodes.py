"""The study `batch-size` on a Ray cluster of which one node is killed while trials run.

    python examples/benchmarks/ray_nodes.py [--nodes 3] [--kill-after 4] [options of `hpo run`]

Claim: every point gets exactly one result, the node's death costs at most an epoch of its trial, Ray places
the lost worker on another node, and `hpo run` ends with exit code 0. The nodes are Ray's own local ones
(`ray.cluster_utils`), on a loopback address, one CPU each; without options the images are digits.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tables import heading, print_table

import hpo
from hpo.storage.queue import Reason, Slots, reason_of

HOST = "127.0.0.2"  # Ray takes 127.0.0.1 for the machine's address, where nobody listens
OBJECT_STORE_BYTES = 80 * 2**20


@contextlib.contextmanager
def nodes(count: int) -> Iterator[tuple[str, list[Any], Any]]:
    """A Ray cluster of so many nodes with one CPU: its address, the nodes, and the cluster."""
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"node_ip_address": HOST, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(
        initialize_head=True, head_node_args={**common, "num_cpus": 0, "include_dashboard": False}
    )
    try:
        yield cluster.address, [cluster.add_node(num_cpus=1, **common) for _ in range(count)], cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def epochs_by_pid(out: Path) -> dict[int, int]:
    """How many epochs every process has delivered so far."""
    try:
        plan = hpo.find_plan(out)
    except hpo.InputError:  # it is just being written
        return {}
    epochs: dict[int, int] = {}
    for name in plan.all_names:
        for trial in plan.trials(name):
            if trial.state.name == "RUNNING" and trial.intermediate_values:
                epochs[trial.user_attrs["owner"]["pid"]] = len(trial.intermediate_values)
    return epochs


def node_of(pid: int, at: list[Any]) -> Any | None:
    """The Ray node that a worker process runs on: the one whose raylet is among its forebears."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        forebears = {process.pid for process in psutil.Process(pid).parents()}
        for node in at:
            raylets = node.all_processes["raylet"]
            if any(each.process.pid in forebears for each in raylets):
                return node
    return None


def run(out: Path, n_nodes: int, kill_after: int, options: list[str]) -> dict[str, Any]:
    """Runs the study, kills the node of a worker that has trained so many epochs, and counts."""
    with nodes(n_nodes) as (address, alive, cluster):
        command = [
            sys.executable,
            "-m",
            "hpo",
            "run",
            "batch-size",
            "--inherit",
            "published",
            "--out",
            str(out),
        ]
        began = time.monotonic()
        run = subprocess.Popen([*command, "--engine", "ray", "--address", address, *options])
        victim = None
        while run.poll() is None and victim is None:
            time.sleep(0.1)
            for pid, epochs in epochs_by_pid(out).items():
                victim = victim or (node_of(pid, alive) if epochs >= kill_after else None)
        if victim is not None:
            cluster.remove_node(victim, allow_graceful=False)
            cluster.add_node(num_cpus=1, node_ip_address=HOST, object_store_memory=OBJECT_STORE_BYTES)
        code = run.wait()
        seconds = time.monotonic() - began
    attempts = Slots.of(hpo.find_plan(out).trials("batch-size")).attempts
    accepted = [sum(t.state.name in ("COMPLETE", "PRUNED") for t in trials) for trials in attempts.values()]
    repeated = [
        len(before.intermediate_values) - after.user_attrs.get("resumed_after_epoch", 0)
        for trials in attempts.values()
        for before, after in pairwise(trials)
    ]
    return {
        "nodes": n_nodes,
        "nodes_killed": int(victim is not None),
        "exit_code": code,
        "points": len(attempts),
        "results_a_point": sorted(set(accepted)),
        "attempts_lost": sum(reason_of(t) == Reason.LOST for trials in attempts.values() for t in trials),
        "max_epochs_repeated": max(repeated, default=0),
        "wall_s": round(seconds, 1),
    }


def main() -> None:
    """Runs it once and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kill-after", type=int, default=4, metavar="EPOCHS")
    options, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="hpo-ray-") as folder:
        given = others or ["--data", "digits"]
        record = run(Path(folder, "out"), options.nodes, options.kill_after, given)
    heading("one run")
    print_table([record])


if __name__ == "__main__":
    main()
