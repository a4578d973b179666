"""How costs grow with the images, 10³ to 10⁶: preparing the cache, opening it, and the memory of workers.

    python examples/benchmarks/images.py [1000 10000 100000 1000000] [--pictures 1000 10000] [--workers 1 2]

Claims: what a process holds for itself does not grow with the images but by some 16 bytes each (labels, the
order of an epoch), neither while the cache is made nor while a network is trained; all workers share the
pages of one file. `arrays` is a data set of one's own, `python:images:synthetic`, mapped from a file;
`pictures` are JPEG files of 32 × 32. A million images take 6 GB of the temporary folder. A worker has the
data open and is 30 steps into its first epoch. A line an entry of the cache and number of workers: the CPU
seconds of the first and of a later `prepare`; the peak of private memory while it is made; of the worker that
needs most, private memory (85 MB of it are PyTorch's) and its share of the images in memory (PSS: of a page
its part among all who map it). Memory in MB, from /proc: Linux alone. CSV on stdout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tables import Table, heading

from hpo.data import ImageData, load_training, prepare
from hpo.errors import Interrupted
from hpo.training.loop import train
from hpo.training.registry import load_recipe

CLASSES, SIDE, STEPS, BLOCK = 10, 32, 30, 4096
FILE_VARIABLE = "HPO_BENCHMARK_IMAGES"
"""Names the file that `synthetic` maps."""
SPAWN = multiprocessing.get_context("spawn")  # a forked child would count what its parent holds


def make_arrays(folder: Path, n_images: int) -> str:
    """Writes a file of random images, and returns the source that reads it."""
    file = folder / "images.npy"
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (n_images, SIDE, SIDE, 3))
    chance = np.random.default_rng(0)
    for start in range(0, n_images, BLOCK):
        images[start : start + BLOCK] = chance.integers(0, 256, images[start : start + BLOCK].shape, np.uint8)
    os.environ[FILE_VARIABLE] = str(file)
    return "python:images:synthetic"


def synthetic() -> ImageData:
    """The images of that file, a tenth of them the test part."""
    images = np.load(os.environ[FILE_VARIABLE], mmap_mode="r")
    labels = np.arange(len(images)) % CLASSES
    n_test = max(CLASSES, len(images) // 10)
    names = tuple(f"class {number}" for number in range(CLASSES))
    return ImageData(images[n_test:], labels[n_test:], images[:n_test], labels[:n_test], names)


def make_pictures(folder: Path, n_images: int) -> str:
    """Writes a folder of small JPEG files, and returns the source that reads it."""
    chance = np.random.default_rng(0)
    for number in range(n_images):
        part = "test" if number < max(CLASSES, n_images // 10) else "train"
        place = folder / part / str(number % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(chance.integers(0, 256, (4, 4, 3), np.uint8))
        colours.resize((SIDE, SIDE)).save(place / f"{number}.jpg", quality=90)
    return f"folder:{folder}"


def private_mb() -> float:
    """What this process has in memory that no file holds, pages of files that it changed included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e3


def images_mb() -> float:
    """This process's share of the images in memory (PSS)."""
    found, is_images = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:  # the addresses that begin a mapping
            is_images = line.endswith("_inputs.npy")
        elif is_images and first == "Pss:":
            found += int(line.split()[1])
    return found / 1e3


def peak_of(work: Callable[[], object]) -> float:
    """The highest private memory while a function runs, looked at every few milliseconds."""
    peak, ended = private_mb(), threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, private_mb())

    watch = threading.Thread(target=look)
    watch.start()
    try:
        work()
    finally:
        ended.set()
        watch.join()
    return peak


def preparing(source: str, cache: Path, answers: Any) -> None:
    """Prepares twice: the entry, the CPU seconds of both, the peak of the first above where it began."""
    before, began = private_mb(), time.process_time()
    peak = peak_of(lambda: prepare(source, cache=cache))
    cold = time.process_time()
    entry = prepare(source, cache=cache)
    answers.put((entry, cold - began, time.process_time() - cold, peak - before))


def working(entry: Path, barrier: Any, answers: Any) -> None:
    """Opens the data and begins an epoch; when all have come so far, tells what this takes."""
    before, step = private_mb(), 0

    def should_stop() -> bool:
        nonlocal step
        step += 1
        if step > STEPS:
            barrier.wait()
            answers.put((private_mb() - before, images_mb()))
            barrier.wait()  # nobody leaves while another one counts what is shared
        return step > STEPS

    small = {"conv1_channels": 4, "conv2_channels": 4, "hidden_units": 8, "batch_size": 20}
    recipe = load_recipe("constrained-cnn").recipe
    try:
        list(train(recipe, recipe.schema.complete(small), load_training(entry), [0], should_stop=should_stop))
    except Interrupted:
        return


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> list[Any]:
    """What so many fresh processes answer."""
    answers = SPAWN.Queue()
    processes = [SPAWN.Process(target=work, args=(*arguments, answers)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    """Sizes one after the other; each data set is gone before the next is made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=int, default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--pictures", nargs="*", type=int, default=[1000, 10_000])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    heading("one run")
    table = Table()
    for kind, make, sizes in (
        ("arrays", make_arrays, options.images),
        ("pictures", make_pictures, options.pictures),
    ):
        for n_images in sizes:
            with tempfile.TemporaryDirectory(prefix="hpo-images-") as name:
                source, cache = make(Path(name), n_images), Path(name) / ".cache"
                ((entry, cold, warm, peak),) = in_processes(1, preparing, source, cache)
                megabytes = sum(file.stat().st_size for file in entry.iterdir()) / 1e6
                for n_workers in options.workers:
                    memory = in_processes(n_workers, working, entry, SPAWN.Barrier(n_workers))
                    private, share = (max(figures) for figures in zip(*memory, strict=True))
                    table.add(
                        {
                            "kind": kind,
                            "images": n_images,
                            "cold_cpu_s": cold,
                            "warm_cpu_s": warm,
                            "cold_peak_mb": peak,
                            "cache_mb": megabytes,
                            "workers": n_workers,
                            "private_mb": private,
                            "images_mb": share,
                        }
                    )


if __name__ == "__main__":
    main()
