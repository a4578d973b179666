"""Whether hpo's networks are as good as those of the plain script: macro F1 of many seeds each.

    python examples/benchmarks/equality.py PATH [--seeds 100] [--precision auto] [--out hpo-equality.csv]

Claim: the means differ by less than half a point of macro F1, by two one-sided tests at 5 % (Schuirmann
1987). hpo trains in the precision that it chooses or that is given, the plain script in fp32 through a
DataLoader; same network, Adam, learning rate, batches of 20, the same training and validation images, best
epoch on validation on both sides. In fp32 hpo trains by Winograd's kernels where they pay, and the second
claim is that the same seeds by plain kernels are as good, by the same tests of the differences. It holds for
this job, and for a number of seeds that was chosen before: who adds seeds until it holds, tests at more than
5 %. A line a seed in the file; what is there already is not trained again, so it goes on where it was
stopped. CSV on stdout, macro F1 in percent. No times are taken: it may run beside other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sample import sample
from scipy.stats import t, ttest_1samp, ttest_ind
from tables import heading, print_table, read_tables

import hpo
from hpo.monitor.export import export_epochs
from hpo.training.devices import PRECISIONS

MARGIN = 0.5
"""Points of macro F1 within which the means count as equal."""
STUDY = "one"
HPO, PLAIN_KERNELS, PLAIN = "hpo", "hpo, plain kernels", "plain script"
KERNELS = {HPO: "auto", PLAIN_KERNELS: "plain"}
BLOCK = 20
"""Seeds that are trained before they are written down."""


def start_plain(images: Path, epochs: int, rate: float, seeds: range) -> subprocess.Popen[bytes]:
    """The plain script on these seeds, with one thread."""
    script = Path(__file__).with_name("plain_script.py")
    settings = (f"--epochs={epochs}", "--threads=1", f"--learning-rate={rate}", "--points=3")
    command = [sys.executable, str(script), str(images), *settings, "--seeds", *map(str, seeds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def finish_plain(processes: Sequence[subprocess.Popen[bytes]]) -> list[float]:
    """The best epoch of every seed, in order."""
    return [f1 for each in processes for f1 in json.loads(each.communicate()[0])["macro_f1"]]


def train_hpo(images: Path, options: argparse.Namespace, kernels: str, seeds: range) -> list[float]:
    """The best epoch of every seed, in order."""
    with tempfile.TemporaryDirectory(prefix="hpo-equality-") as name:
        folder = Path(name)
        text = f"[base]\nlearning_rate = {options.learning_rate}\n[search]\nl2 = [0.00001]\n"
        (folder / f"{STUDY}.toml").write_text(text)
        plan = hpo.run_plan(
            [STUDY],
            out=folder / "out",
            studies=folder,
            data=f"folder:{images}",
            epochs=options.epochs,
            seed=seeds.start,
            seeds=len(seeds),
            device="cpu",
            precision=options.precision,
            kernels=kernels,
            workers=2,  # one is idle, but a thread each: two threads on busy cores wait for one another
        )
        by_seed: dict[int, list[float]] = {seed: [] for seed in seeds}
        for record in export_epochs(plan):
            by_seed[record["seed"]].append(record["valid_macro_f1"])
    return [max(values) for values in by_seed.values()]


def trained(file: Path) -> dict[str, dict[int, float]]:
    """Macro F1 by contender and seed, as far as it has been trained."""
    found: dict[str, dict[int, float]] = {}
    for row in read_tables(file)[0]:
        found.setdefault(row["contender"], {})[int(row["seed"])] = float(row["macro_f1"])
    return found


def train_missing(options: argparse.Namespace, images: Path) -> None:
    """Trains what the file lacks, a block of seeds after the other."""
    settings = f"# {options.limit_train} + {options.limit_valid} images, {options.epochs} epochs"
    settings += f", learning rate {options.learning_rate:g}"
    settings += f", {options.precision}\n" if options.precision != "auto" else "\n"
    if not options.out.exists():
        options.out.write_text(f"{settings}contender,seed,macro_f1\n")
    elif not options.out.read_text().startswith(settings):
        raise SystemExit(f"{options.out}: of another job than {settings[2:].strip()}")
    for start in range(0, options.seeds, BLOCK):
        stop = min(start + BLOCK, options.seeds)
        done = trained(options.out)
        missing = {
            name: range(
                next((seed for seed in range(start, stop) if seed not in done.get(name, {})), stop), stop
            )
            for name in contenders(options.precision)
        }
        half = (len(missing[PLAIN]) + 1) // 2
        plain = [
            start_plain(images, options.epochs, options.learning_rate, part)
            for part in (missing[PLAIN][:half], missing[PLAIN][half:])
            if part
        ]
        found: dict[str, list[float]] = {}
        for name, kernels in KERNELS.items():
            if missing.get(name):
                found[name] = train_hpo(images, options, kernels, missing[name])
        found[PLAIN] = finish_plain(plain)
        with options.out.open("a") as file:
            for name, values in found.items():
                lines = zip(missing[name], values, strict=True)
                file.writelines(f'"{name}",{seed},{f1:.6f}\n' for seed, f1 in lines)


def main() -> None:
    """Trains both, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("hpo-equality.csv"))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--limit-train", type=int, default=4000)
    parser.add_argument("--limit-valid", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of hpo")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that this one starts
    with tempfile.TemporaryDirectory(prefix="hpo-equality-") as name:
        images = Path(name) / "images"
        os.environ["HPO_CACHE"] = str(Path(name) / "cache")
        sample(options.folder, images, n_train=options.limit_train, n_valid=options.limit_valid)
        train_missing(options, images)
    heading(
        f"{options.seeds} seeds, {options.epochs} epochs of {options.limit_train:,} images, "
        f"learning rate {options.learning_rate:g}, hpo's precision {options.precision}"
    )
    points = {
        name: [100 * f1 for seed, f1 in by_seed.items() if seed < options.seeds]
        for name, by_seed in trained(options.out).items()
    }
    print_table(compared(points))


def contenders(precision: str) -> tuple[str, ...]:
    """Who is trained, where hpo trains in a precision."""
    return (HPO, PLAIN_KERNELS, PLAIN) if precision == "fp32" else (HPO, PLAIN)


def compared(points: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    """A line a contender, and the differences with what can be said of them."""
    rows: list[dict[str, object]] = [
        {"what": name, "macro_f1": fmean(each), "deviation": stdev(each)} for name, each in points.items()
    ]
    ours = points[HPO]
    if PLAIN_KERNELS in points:  # of the same seeds
        differences = [one - other for one, other in zip(ours, points[PLAIN_KERNELS], strict=True)]
        lower, upper = (
            ttest_1samp(differences, bound, alternative=side)
            for bound, side in ((-MARGIN, "greater"), (MARGIN, "less"))
        )
        rows.append(_difference(PLAIN_KERNELS, lower, upper, differences))
    theirs = points[PLAIN]
    lower = ttest_ind([value + MARGIN for value in ours], theirs, equal_var=False, alternative="greater")
    upper = ttest_ind([value - MARGIN for value in ours], theirs, equal_var=False, alternative="less")
    return [*rows, _difference(PLAIN, lower, upper, [fmean(ours) - fmean(theirs)])]


def _difference(against: str, lower: Any, upper: Any, differences: Sequence[float]) -> dict[str, object]:
    """A line of two one-sided tests: that the mean difference is above the lower, below the upper bound."""
    difference, p_value = fmean(differences), max(lower.pvalue, upper.pvalue)
    error = (difference + MARGIN) / lower.statistic
    reach = t.ppf(0.95, lower.df) * error
    return {
        "against": against,
        "difference": difference,
        "interval_90_from": difference - reach,
        "interval_90_to": difference + reach,
        "margin": MARGIN,
        "p_value": float(p_value),
        "verdict": "equal" if p_value < 0.05 else "not shown to be equal",
    }


if __name__ == "__main__":
    main()
