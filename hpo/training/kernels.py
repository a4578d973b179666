"""Kernels for GPUs, in Triton: several of PyTorch's operations as one, for what is launched at every step.

Small networks spend most of a step between kernels and in those that do little. What is fused here is what a
profile of the original's network showed (`examples/benchmarks/gpu.py --parts step`). Every function has the
values of the plain operations that it names; sums may be added up in another order, always the same one.

Import it only where `available` has said that it can be used: without a GPU, Triton may not be there.
"""

# Triton reads the parameters of its kernels itself: constants in capitals, and no annotations of the others
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CELLS_AND_CHANNELS = 2048
"""So many elements of a pooled output are one program's."""
ADAM, ADAMW, SGD, RMSPROP = range(4)
_ADAM, _ADAMW, _SGD, _RMSPROP = (tl.constexpr(kind) for kind in range(4))
UPDATE_BLOCK = 1024
"""So many weights are one program's: 132 multiprocessors are to have some each."""


# --- pooling ---------------------------------------------------------------------------------------------


@triton.jit
def _pool_forward(
    images, bias, pooled, corners, n_cells, height, width, n_channels, n_rows, n_columns,
    HAS_BIAS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    cells = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (cells < n_cells)[:, None] & (channels < n_channels)[None, :]
    image, row, column = cells // (n_rows * n_columns), cells // n_columns % n_rows, cells % n_columns
    first = ((image * height + 2 * row) * width + 2 * column)[:, None] * n_channels + channels[None, :]
    if HAS_BIAS:
        shift = tl.load(bias + channels, mask=channels < n_channels, other=0).to(tl.float32)[None, :]
    best = tl.load(images + first, mask=inside, other=0).to(tl.float32)
    if HAS_BIAS:  # rounded, as the sum is where it is an operation of its own: ties are the same then
        best = (best + shift).to(images.dtype.element_ty).to(tl.float32)
    corner = tl.zeros([CELLS, CHANNELS], tl.int8)
    for number in tl.static_range(1, 4):
        offset = ((number // 2) * width + number % 2) * n_channels
        value = tl.load(images + first + offset, mask=inside, other=0).to(tl.float32)
        if HAS_BIAS:
            value = (value + shift).to(images.dtype.element_ty).to(tl.float32)
        is_better = (value > best) | (value != value)
        best = tl.where(is_better, value, best)
        corner = tl.where(is_better, number, corner).to(tl.int8)
    is_dead = best <= 0
    there = cells[:, None] * n_channels + channels[None, :]
    tl.store(pooled + there, tl.where(is_dead, 0, best).to(pooled.dtype.element_ty), mask=inside)
    tl.store(corners + there, tl.where(is_dead, 4, corner).to(tl.int8), mask=inside)


@triton.jit
def _pool_backward(
    gradient, corners, result, sums, n_cells, height, width, n_channels, n_rows, n_columns,
    HAS_BIAS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # of cells that hang over an odd edge, too: nothing of them was pooled, and they get zeros
    all_rows, all_columns = (height + 1) // 2, (width + 1) // 2
    cells = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (cells < n_cells)[:, None] & (channels < n_channels)[None, :]
    image, row, column = (
        cells // (all_rows * all_columns),
        cells // all_columns % all_rows,
        cells % all_columns,
    )
    is_pooled = inside & ((row < n_rows) & (column < n_columns))[:, None]
    there = ((image * n_rows + row) * n_columns + column)[:, None] * n_channels + channels[None, :]
    given = tl.load(gradient + there, mask=is_pooled, other=0).to(tl.float32)
    corner = tl.load(corners + there, mask=is_pooled, other=4)
    for number in tl.static_range(4):
        to_row, to_column = 2 * row + number // 2, 2 * column + number % 2
        place = ((image * height + to_row) * width + to_column)[:, None] * n_channels + channels[None, :]
        exists = inside & ((to_row < height) & (to_column < width))[:, None]
        tl.store(
            result + place, tl.where(corner == number, given, 0).to(result.dtype.element_ty), mask=exists
        )
    if HAS_BIAS:
        part = tl.sum(tl.where(corner < 4, given, 0), 0)
        tl.store(sums + tl.program_id(0) * n_channels + channels, part, mask=channels < n_channels)


@triton.jit
def _sum_rows(rows, total, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, n_rows, ROWS):
        numbers = start + tl.arange(0, ROWS)
        inside = (numbers < n_rows)[:, None] & (columns < n_columns)[None, :]
        sums += tl.load(rows + numbers[:, None] * n_columns + columns[None, :], mask=inside, other=0)
    tl.store(total + columns, tl.sum(sums, 0).to(total.dtype.element_ty), mask=columns < n_columns)


def _blocks(n_cells: int, n_channels: int) -> tuple[tuple[int, int], int, int]:
    channels = min(128, triton.next_power_of_2(n_channels))
    cells = CELLS_AND_CHANNELS // channels
    return (triton.cdiv(n_cells, cells), triton.cdiv(n_channels, channels)), cells, channels


class _BiasMaxPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, bias: Tensor | None) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = images.shape
        shape = n, channels, height // 2, width // 2
        pooled = torch.empty(
            shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last
        )
        corners = torch.empty_like(pooled, dtype=torch.int8)
        n_cells = n * shape[2] * shape[3]
        grid, block_cells, block_channels = _blocks(n_cells, channels)
        _pool_forward[grid](
            images, bias, pooled, corners, n_cells, height, width, channels, shape[2], shape[3],
            HAS_BIAS=bias is not None, CELLS=block_cells, CHANNELS=block_channels,
        )  # fmt: skip
        ctx.save_for_backward(corners)
        ctx.size = height, width
        ctx.bias_dtype = None if bias is None else bias.dtype
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        (corners,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        (n, channels, rows, columns), (height, width) = gradient.shape, ctx.size
        result = torch.empty(
            (n, channels, height, width),
            dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last,
        )  # fmt: skip
        n_cells = n * ((height + 1) // 2) * ((width + 1) // 2)
        grid, block_cells, block_channels = _blocks(n_cells, channels)
        has_bias = ctx.bias_dtype is not None
        sums = torch.empty(
            (grid[0], channels) if has_bias else 0, dtype=torch.float32, device=gradient.device
        )
        _pool_backward[grid](
            gradient, corners, result, sums, n_cells, height, width, channels, rows, columns,
            HAS_BIAS=has_bias, CELLS=block_cells, CHANNELS=block_channels,
        )  # fmt: skip
        if not has_bias:
            return result, None
        total = torch.empty(channels, dtype=ctx.bias_dtype, device=gradient.device)
        _sum_rows[(triton.cdiv(channels, 32),)](sums, total, grid[0], channels, ROWS=64, COLUMNS=32)
        return result, total


def bias_max_pool_relu(images: Tensor, bias: Tensor | None) -> Tensor:
    """Return `relu(max_pool2d(images + bias, 2))`, differentiable, in channels_last memory.

    Args:
        images: (n, c, h, w), float32 or bfloat16.
        bias: (c,) of the same dtype, or None.

    Returns:
        (n, c, h // 2, w // 2). Where several are the maximum, the gradient goes to the first.
    """
    pooled: Tensor = _BiasMaxPoolRelu.apply(images, bias)
    return pooled


# --- inputs ----------------------------------------------------------------------------------------------


@triton.jit
def _gather(images, order, scale, shift, result, n_values, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    values = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = values < n_values
    index = tl.load(order + number)
    pixels = tl.load(images + index * n_values + values, mask=inside, other=0).to(tl.float32)
    normal = tl.load(shift + values, mask=inside, other=0) + pixels * tl.load(
        scale + values, mask=inside, other=0
    )
    tl.store(result + number * n_values + values, normal.to(result.dtype.element_ty), mask=inside)


def gather_normalised(
    images: Tensor, order: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return `(images[order] * scale + shift)` as a network sees it.

    Args:
        images: (all, h, w, c) uint8, contiguous.
        order: (n,) int64.
        scale: (h, w, c) float32.
        shift: (h, w, c) float32.
        dtype: of the result.

    Returns:
        (n, c, h, w) in channels_last memory.
    """
    n, n_values, block = len(order), scale.numel(), 1024
    result = torch.empty((n, *images.shape[1:]), dtype=dtype, device=images.device)
    _gather[(n, triton.cdiv(n_values, block))](images, order, scale, shift, result, n_values, BLOCK=block)
    return result.permute(0, 3, 1, 2)


# --- optimizers ------------------------------------------------------------------------------------------


@triton.jit
def _update(
    weights, lows, gradients, first, second, counters, settings, n,
    KIND: tl.constexpr, HAS_LOWS: tl.constexpr, HAS_MOMENTUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    there = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = there < n
    # every program counts for itself: one counter for all would be read while it is being written
    step = tl.load(counters + program) + 1
    rate = tl.load(settings) * tl.load(settings + 1)
    l2 = tl.load(settings + 2)
    weight = tl.load(weights + there, mask=inside, other=0)
    gradient = tl.load(gradients + there, mask=inside, other=0).to(tl.float32)
    if KIND == _ADAMW:
        weight = weight * (1 - rate * l2).to(tl.float32)
    else:
        gradient += l2.to(tl.float32) * weight
    if KIND == _ADAM or KIND == _ADAMW:  # noqa: SIM109 (Triton has no `in`)
        beta1, beta2, epsilon = tl.load(settings + 4), tl.load(settings + 5), tl.load(settings + 6)
        # in float64: 1 - beta2 ** step is a thousandth at first
        correction1 = 1 - tl.exp(step.to(tl.float64) * tl.log(beta1))
        correction2 = tl.sqrt(1 - tl.exp(step.to(tl.float64) * tl.log(beta2)))
        mean = tl.load(first + there, mask=inside, other=0)
        square = tl.load(second + there, mask=inside, other=0)
        mean += (1 - beta1).to(tl.float32) * (gradient - mean)
        square = beta2.to(tl.float32) * square + (1 - beta2).to(tl.float32) * gradient * gradient
        scale = tl.sqrt(square) / correction2.to(tl.float32) + epsilon.to(tl.float32)
        weight -= (rate / correction1).to(tl.float32) * mean / scale
        tl.store(first + there, mean, mask=inside)
        tl.store(second + there, square, mask=inside)
    else:
        if KIND == _RMSPROP:
            alpha, epsilon = tl.load(settings + 4), tl.load(settings + 6)
            square = tl.load(second + there, mask=inside, other=0)
            square = alpha.to(tl.float32) * square + (1 - alpha).to(tl.float32) * gradient * gradient
            tl.store(second + there, square, mask=inside)
            gradient = gradient / (tl.sqrt(square) + epsilon.to(tl.float32))
        if HAS_MOMENTUM:
            momentum = tl.load(settings + 3).to(tl.float32)
            gradient += momentum * tl.load(first + there, mask=inside, other=0)
            tl.store(first + there, gradient, mask=inside)
        weight -= rate.to(tl.float32) * gradient
    tl.store(weights + there, weight, mask=inside)
    if HAS_LOWS:
        tl.store(lows + there, weight.to(tl.bfloat16), mask=inside)
    tl.debug_barrier()  # all of the program have read the counter
    tl.store(counters + program, step)


def n_counters(n: int) -> int:
    """Return how many counters `update_` needs for so many weights."""
    return triton.cdiv(n, UPDATE_BLOCK)  # type: ignore[no-any-return]


def update_(
    kind: int,
    weights: Tensor,
    lows: Tensor | None,
    gradients: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    counters: Tensor,
    settings: Tensor,
) -> None:
    """Take an optimizer's step, and refresh the bf16 copies of the weights.

    Args:
        kind: ADAM, ADAMW, SGD or RMSPROP, each as PyTorch's class of that name has it.
        weights: (n,) float32.
        lows: (n,) bfloat16 copies, or None.
        gradients: (n,) float32 or bfloat16.
        first: (n,) float32: means, or what momentum has gathered; None: without momentum.
        second: (n,) float32 squares; None for SGD.
        counters: (`n_counters(n)`,) float32: steps taken.
        settings: (7,) float64: learning rate, its factor, l2, momentum, beta1 or alpha, beta2, epsilon.
    """
    grid = (len(counters),)
    _update[grid](
        weights, lows, gradients, first, second, counters, settings, len(weights),
        KIND=kind, HAS_LOWS=lows is not None, HAS_MOMENTUM=first is not None, BLOCK=UPDATE_BLOCK,
    )  # fmt: skip


# --- whether they work -----------------------------------------------------------------------------------


def first_wrong(device: str) -> str | None:
    """Compile and run every kernel on a device; return the name of the first with wrong values, if any."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        # quarters: sums of them are exact in bfloat16, and many are equal
        return (4 * torch.randn(shape, generator=generator)).round().to(device, dtype) / 4

    for dtype in (torch.float32, torch.bfloat16):
        for bias in (drawn(5, dtype=dtype), None):
            if not _pools_well(drawn(3, 5, 7, 8, dtype=dtype), bias, drawn(3, 5, 3, 4, dtype=dtype)):
                return "bias_max_pool_relu"
        images = torch.randint(256, (9, 4, 4, 3), generator=generator, dtype=torch.uint8).to(device)
        order, scale, shift = torch.tensor([7, 0, 7], device=device), drawn(4, 4, 3), drawn(4, 4, 3)
        expected = (images[order] * scale + shift).permute(0, 3, 1, 2)
        # one rounding of bfloat16 is up to 2 ** -8
        if not torch.allclose(
            gather_normalised(images, order, scale, shift, dtype).float(), expected, rtol=2**-7
        ):
            return "gather_normalised"
        if not _updates_well(drawn(UPDATE_BLOCK + 100), drawn(UPDATE_BLOCK + 100, dtype=dtype)):
            return "update_"
    return None


def _pools_well(images: Tensor, bias: Tensor | None, gradient: Tensor) -> bool:
    images = images.contiguous(memory_format=torch.channels_last)

    def plain(images: Tensor, bias: Tensor | None) -> Tensor:
        moved = images if bias is None else images + bias.view(1, -1, 1, 1)
        return torch.nn.functional.relu(torch.nn.functional.max_pool2d(moved, 2))

    found = []
    for function in (bias_max_pool_relu, plain):
        inputs = images.clone().requires_grad_(), None if bias is None else bias.clone().requires_grad_()
        with torch.enable_grad():
            output = function(*inputs)
            output.backward(gradient)
        found.append([output, *(each.grad for each in inputs if each is not None and each.grad is not None)])
    return all(torch.allclose(one, other) for one, other in zip(*found, strict=True))


def _updates_well(weights: Tensor, gradients: Tensor) -> bool:
    # an l2 by which no gradient becomes 0 but for its rounding, whose sign would be a whole step of Adam
    rate, l2, momentum, beta1, beta2, eps = settings = 0.01, 0.03, 0.5, 0.9, 0.99, 1e-8
    plain = torch.nn.Parameter(weights.clone())
    in_float64 = torch.tensor([rate, 1.0, *settings[1:]], dtype=torch.float64, device=weights.device)
    optimizers: Sequence[torch.optim.Optimizer] = (
        torch.optim.Adam([plain], rate, (beta1, beta2), eps, l2),
        torch.optim.AdamW([plain], rate, (beta1, beta2), eps, l2),
        torch.optim.SGD([plain], rate, momentum, weight_decay=l2),
        torch.optim.RMSprop([plain], rate, beta1, eps, l2, momentum),
    )
    for kind, optimizer in enumerate(optimizers):
        plain.data.copy_(weights)
        mine, first, second = weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights)
        lows = None if gradients.dtype == torch.float32 else torch.zeros_like(gradients)
        counters = torch.zeros(n_counters(len(mine)), device=mine.device)
        for sign in (1, -1):
            plain.grad = sign * gradients.float()
            optimizer.step()
            update_(kind, mine, lows, sign * gradients, first, second, counters, in_float64)
        if not torch.allclose(mine, plain, rtol=1e-4, atol=1e-5) or not bool((counters == 2).all()):
            return False
        if lows is not None and not torch.allclose(lows.float(), mine, rtol=2**-7):
            return False
    return True
