"""Training images a second of `hpo run` beside the same study as a plain Optuna + DataLoader script.

    python examples/benchmarks/throughput.py PATH [--limit-train 8000] [--epochs 2] [--rounds 3] [--fp32]

Claim: on two cores without a GPU `hpo run` trains about 3 times (the goal) the images a second of the plain
script (fp32, PyTorch's default of one thread a core). PATH has images of 32×32 pixels in ten classes. Four
equal trials (`l2`: Adam, batches of 20, the network 32@3×3 → 128@5×5), validation after each epoch included
on both sides, start-up and decoding on neither. Each round runs hpo, the plain script, and that script as
two processes of one thread, which is what somebody would do by hand who knows that this is faster, all on the
same images and with the round's number as the seed; beside them hpo in fp32, which shows what is not due to
bf16. Where a CPU has no bf16, `hpo run` trains in fp32 by Winograd's kernels: `--fp32` compares that, and the
same by plain kernels, on any CPU. Medians over the rounds, and mean and deviation of the macro F1 in percent;
CSV on stdout. Whether the networks are equally good is what `equality.py` asks, with more seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev

from sample import sample
from tables import Table, heading

import hpo

STUDY = """
[base]
learning_rate = 0.0001
[search]
l2 = [0.01, 0.001, 0.0001, 0.00001]
"""
Run = tuple[float, list[float]]


def hpo_run(images: Path, epochs: int, seed: int, precision: str = "auto", kernels: str = "auto") -> Run:
    """Seconds from the first claim to the last result, by the database; macro F1 of the four points."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "l2.toml").write_text(STUDY)
        plan = hpo.run_plan(
            ["l2"],
            out=Path(folder) / "out",
            studies=Path(folder),
            data=f"folder:{images}",
            epochs=epochs,
            seed=seed,
            workers=2,
            device="cpu",
            precision=precision,
            kernels=kernels,
        )
        trials = plan.trials("l2")
        begin = min(trial.datetime_start for trial in trials if trial.datetime_start)
        end = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
        return (end - begin).total_seconds(), [trial.value for trial in trials if trial.value is not None]


def plain(images: Path, epochs: int, seed: int, *arguments: str) -> subprocess.Popen[bytes]:
    """The plain script as a process."""
    script = Path(__file__).with_name("plain_script.py")
    command = [sys.executable, str(script), str(images), f"--epochs={epochs}", f"--seeds={seed}"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE)


def result(process: subprocess.Popen[bytes]) -> Run:
    """What the plain script printed."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the plain script failed with {process.returncode}")
    record = json.loads(output)
    return record["seconds"], record["macro_f1"]


def plain_one(images: Path, epochs: int, seed: int) -> Run:
    """One process with PyTorch's default threads."""
    return result(plain(images, epochs, seed))


def plain_two(images: Path, epochs: int, seed: int) -> Run:
    """Two processes of one thread, two points each, side by side."""
    halves = (("0", "1"), ("2", "3"))
    processes = [plain(images, epochs, seed, "--threads=1", "--points", *points) for points in halves]
    runs = [result(process) for process in processes]
    return max(seconds for seconds, _ in runs), [f1 for _, values in runs for f1 in values]


Contenders = dict[str, Callable[[Path, int, int], Run]]
PLAIN: Contenders = {"plain script": plain_one, "plain script, 2 processes of 1 thread": plain_two}
FP32: Contenders = {"hpo run, fp32": partial(hpo_run, precision="fp32")}
CONTENDERS: Contenders = {"hpo run": hpo_run, **FP32, **PLAIN}
CONTENDERS_IN_FP32: Contenders = {
    **FP32,
    "hpo run, fp32, plain kernels": partial(hpo_run, precision="fp32", kernels="plain"),
    **PLAIN,
}
"""The first is what the others are compared with."""


def main() -> None:
    """Runs the contenders in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit-train", type=int, default=8000)
    parser.add_argument("--limit-valid", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fp32", action="store_true", help="as on a CPU without bf16")
    options = parser.parse_args()
    contenders = CONTENDERS_IN_FP32 if options.fp32 else CONTENDERS
    n_images = 4 * options.epochs * options.limit_train
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(prefix="hpo-throughput-") as folder:
        os.environ["HPO_CACHE"] = f"{folder}/cache"
        images = Path(folder) / "images"
        sample(options.folder, images, n_train=options.limit_train, n_valid=options.limit_valid)
        for number in range(options.rounds):
            for name, contender in contenders.items():
                run = contender(images, options.epochs, number)
                runs[name].append(run)
                print(f"round {number + 1}: {name}: {n_images / run[0]:,.0f} images/s", file=sys.stderr)
    heading(f"{options.rounds} rounds of {n_images:,} images")
    table = Table()
    first = next(iter(runs.values()))
    for name, measured in runs.items():
        speeds = [n_images / seconds for seconds, _ in measured]
        ratios = [theirs[0] / ours[0] for ours, theirs in zip(first, measured, strict=True)]
        f1 = [100 * fmean(values) for _, values in measured]
        table.add(
            {
                "contender": name,
                "images_per_second": round(median(speeds)),
                "min": round(min(speeds)),
                "max": round(max(speeds)),
                "hpo_is_faster_by": median(ratios),
                "macro_f1": fmean(f1),
                "macro_f1_deviation": stdev(f1) if len(f1) > 1 else 0.0,
            }
        )


if __name__ == "__main__":
    main()
