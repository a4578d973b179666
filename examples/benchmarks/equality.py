"""Whether hpo's networks are as good as those of the plain script: macro F1 of many seeds each.

    python examples/benchmarks/equality.py PATH [--seeds 48] [--limit-train 4000] [--epochs 4]

Claim: the means differ by less than half a point of macro F1, by two one-sided tests at 5 % (Schuirmann
1987). hpo trains in the precision that it chooses, the plain script in fp32 through a DataLoader; same
network, Adam, learning rate, batches of 20, the same training and validation images, best epoch on
validation on both sides. CSV on stdout. No times are taken: it may run beside other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

from sample import sample
from scipy.stats import t, ttest_ind
from tables import heading, print_table

import hpo
from hpo.records import export_epochs

MARGIN = 0.5
"""Points of macro F1 within which the means count as equal."""
STUDY = "one"


def start_plain(images: Path, epochs: int, rate: float, seeds: range) -> subprocess.Popen[bytes]:
    """The plain script on these seeds, with one thread."""
    script = Path(__file__).with_name("plain_script.py")
    settings = (f"--epochs={epochs}", "--threads=1", f"--learning-rate={rate}", "--points=3")
    command = [sys.executable, str(script), str(images), *settings, "--seeds", *map(str, seeds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def train_hpo(images: Path, folder: Path, epochs: int, rate: float, n_seeds: int) -> list[float]:
    """The best epoch of every seed."""
    (folder / "studies").mkdir()
    text = f"[base]\nlearning_rate = {rate}\n[search]\nl2 = [0.00001]\n"
    (folder / "studies" / f"{STUDY}.toml").write_text(text)
    plan = hpo.run_plan(
        [STUDY],
        out=folder / "out",
        studies=folder / "studies",
        data=f"folder:{images}",
        epochs=epochs,
        seeds=n_seeds,
        workers=2,  # one has nothing to do, but a thread each: two threads on busy cores wait for one another
    )
    best: dict[int, float] = defaultdict(float)
    for record in export_epochs(plan):
        best[record["seed"]] = max(best[record["seed"]], record["valid_macro_f1"])
    return list(best.values())


def main() -> None:
    """Trains both, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--limit-train", type=int, default=4000)
    parser.add_argument("--limit-valid", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that this one starts
    with tempfile.TemporaryDirectory(prefix="hpo-equality-") as name:
        images, folder = Path(name) / "images", Path(name)
        os.environ["HPO_CACHE"] = str(folder / "cache")
        sample(options.folder, images, n_train=options.limit_train, n_valid=options.limit_valid)
        half = options.seeds // 2
        plain = [
            start_plain(images, options.epochs, options.learning_rate, seeds)
            for seeds in (range(half), range(half, options.seeds))
            if seeds
        ]
        found = {"hpo": train_hpo(images, folder, options.epochs, options.learning_rate, options.seeds)}
        found["plain script"] = [f1 for each in plain for f1 in json.loads(each.communicate()[0])["macro_f1"]]
    points = {name: [100 * value for value in values] for name, values in found.items()}
    heading(f"{options.seeds} seeds, learning rate {options.learning_rate:g}, {options.limit_train:,} images")
    print_table(
        {"contender": name, "seeds": len(values), "macro_f1": fmean(values), "deviation": stdev(values)}
        for name, values in points.items()
    )
    ours, theirs = points.values()
    lower = ttest_ind([value + MARGIN for value in ours], theirs, equal_var=False, alternative="greater")
    upper = ttest_ind([value - MARGIN for value in ours], theirs, equal_var=False, alternative="less")
    difference = fmean(ours) - fmean(theirs)
    error = (stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs)) ** 0.5
    reach = t.ppf(0.95, lower.df) * error
    p_value = max(lower.pvalue, upper.pvalue)
    print(f"# difference {difference:+.2f} points, 90 % interval {difference - reach:+.2f} to", end=" ")
    verdict = "equal" if p_value < 0.05 else "not shown to be equal"
    print(f"{difference + reach:+.2f}; p = {p_value:.4f} for ±{MARGIN} points: {verdict}")


if __name__ == "__main__":
    main()
