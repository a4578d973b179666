"""What a training step takes beside its convolutions alone, as oneDNN computes them: CPU.

    python examples/benchmarks/step.py [--batch-sizes 20 40 80] [--processes 2] [--rounds 15] [--precision P]

Claim: a bf16 step of the report's network (32@3×3 → 128@5×5) reaches at least 60 % of the rate that
oneDNN alone reaches on the same convolutions: forward and both backwards, except that the first one
needs no gradient of its images. Each process has one thread, as a worker of `hpo run` has; all are busy
at once. A round times some steps of a `Learner`, images gathered and normalised, and as many times the
bare convolutions; the share is taken round by round. Medians over rounds and processes; CSV on stdout.
Measured alone on the machine.

In fp32 there are two steps, by plain and by Winograd's kernels, and the claim is that by the second steps are
at least 1.3 times as fast. A CPU with AVX-512 is held to AVX2, which most have, by ONEDNN_MAX_CPU_ISA=AVX2
ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 in the environment.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from tables import Table, heading
from torch import Tensor

from hpo.data import DataInfo
from hpo.training import fused
from hpo.training.devices import DTYPES, Normaliser, keep_freed_memory
from hpo.training.learner import Learner
from hpo.training.registry import load_recipe

IMAGE_SHAPE, N_CLASSES, N_IMAGES = (32, 32, 3), 10, 4000
NETWORK = {"conv1_channels": 32, "conv1_kernel": 3, "conv2_channels": 128, "conv2_kernel": 5}
CONVOLUTIONS = "convolutions"
Measured = list[dict[str, float]]
"""Seconds of a step by its kernels, and of convolutions alone, by round."""


def kernels_of(precision: str) -> tuple[str, ...]:
    """By which steps are computed, the plain ones first."""
    return ("plain", "winograd") if precision == "fp32" else ("plain",)


def steps(batch_size: int, precision: str, kernels: str) -> Callable[[], object]:
    """A function that trains one batch."""
    recipe = load_recipe("constrained-cnn").recipe
    params = recipe.params_of({**NETWORK, "batch_size": batch_size})
    height, width, channels = IMAGE_SHAPE
    info = DataInfo((channels, height, width), tuple(map(str, range(N_CLASSES))), N_CLASSES)
    learner = Learner(recipe, params, info, seed=0, precision=precision)
    normalise = Normaliser(np.full(3, 0.5), np.full(3, 0.25), IMAGE_SHAPE, "cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N_IMAGES, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(N_CLASSES, (N_IMAGES,), generator=generator)

    def step() -> None:
        fused.use(kernels)
        batch = torch.randint(N_IMAGES, (batch_size,), generator=generator)
        learner.step(normalise(images[batch]), labels[batch])

    return step


def convolutions(batch_size: int, precision: str) -> Callable[[], object]:
    """A function that computes the convolutions of one batch, forward and backward, and nothing else."""
    params = load_recipe("constrained-cnn").recipe.params_of(NETWORK)
    dtype = DTYPES[precision]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    def convolution(
        inputs: int, outputs: int, kernel: int, size: int, needs_input: bool
    ) -> Callable[[], None]:
        images, gradient = random(batch_size, inputs, size, size), random(batch_size, outputs, size, size)
        weight, bias = random(outputs, inputs, kernel, kernel), torch.randn(outputs).to(dtype)
        padding = [kernel // 2] * 2

        def both_ways() -> None:
            F.conv2d(images, weight, bias, padding=padding)
            torch.ops.aten.convolution_backward(
                *(gradient, images, weight, [outputs], [1, 1], padding, [1, 1], False, [0, 0], 1),
                [needs_input, True, True],
            )

        return both_ways

    height, _, channels = IMAGE_SHAPE
    first = convolution(channels, params.conv1_channels, params.conv1_kernel, height, needs_input=False)
    second = convolution(
        params.conv1_channels, params.conv2_channels, params.conv2_kernel, height // 2, needs_input=True
    )
    return lambda: (first(), second())


def seconds_each(work: Callable[[], object], repeats: int) -> float:
    """Mean wall time of a call."""
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats


def measure(batch_size: int, precision: str, rounds: int) -> Measured:
    """One process: rounds of all in turn, after one that is not counted."""
    torch.set_num_threads(1)
    keep_freed_memory()
    repeats = max(1, 400 // batch_size)
    contenders = {kernels: steps(batch_size, precision, kernels) for kernels in kernels_of(precision)}
    contenders[CONVOLUTIONS] = convolutions(batch_size, precision)
    measured = [
        {name: seconds_each(work, repeats) for name, work in contenders.items()} for _ in range(rounds + 1)
    ]
    return measured[1:]


def main() -> None:
    """A line a batch size and kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", choices=sorted(DTYPES), default="bf16")
    options = parser.parse_args()
    heading(f"{options.precision}, {options.processes} processes of one thread, {options.rounds} rounds")
    table = Table()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for batch_size in options.batch_sizes:
            order = [(batch_size, options.precision, options.rounds)] * options.processes
            rounds = [each for measured in pool.starmap(measure, order, chunksize=1) for each in measured]
            for kernels in kernels_of(options.precision):
                step = median(each[kernels] for each in rounds)
                speed = options.processes * batch_size / step
                table.add(
                    {
                        "batch_size": batch_size,
                        "kernels": kernels,
                        "images_per_second": round(speed),
                        "step_ms": 1000 * step,
                        "convolutions_ms": 1000 * median(each[CONVOLUTIONS] for each in rounds),
                        "share_of_convolutions_rate": median(
                            each[CONVOLUTIONS] / each[kernels] for each in rounds
                        ),
                        "faster_than_plain_by": median(each["plain"] / each[kernels] for each in rounds),
                    }
                )


if __name__ == "__main__":
    main()
