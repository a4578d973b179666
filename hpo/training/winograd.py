"""Convolutions of 5×5 and 7×7 kernels with fewer multiplications, for CPUs that compute in fp32.

Winograd's minimal filtering (S. Winograd, Arithmetic Complexity of Computations, 1980; for convolutional
networks: Lavin & Gray 2016, section 4): outputs are computed in tiles of 4×4, each from an input tile of
(4 + k - 1)², by one product per transformed element, 64 for 16 outputs of a 5×5 kernel instead of 400. The
transforms are matrix products with constants. On a core of a Zen 4 held to AVX2, forward and backward of the
original's second convolution take half the time; `examples/benchmarks/step.py` measures whole steps.

Sums are rounded otherwise than in a plain convolution: with respect to the root mean square of the outputs,
errors are 3e-6 (5×5) and 2e-5 (7×7) instead of 3e-7. Rounding to bf16 alone is 2e-3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4
"""Outputs of a tile, a side."""
CHUNK_TILES = 80
"""So many tiles are transformed at once, but whole images: the buffers of 80 (5 images of 16×16, 128
channels) stay in a core's cache; with 320, all takes 1.25 times as long."""
LEAST_INPUT_CHANNELS, LEAST_OUTPUT_CHANNELS = 32, 64
"""With fewer channels the transforms cost more than the products save."""
MOST_PADDING = 1.4
"""Outputs that are computed in whole tiles, by those that are wanted, at most."""
_POINTS = {
    5: ("0", "1", "-1", "1/2", "-1/2", "2", "-2"),
    7: ("0", "1/2", "-1/2", "3", "-3", "5/4", "-5/4", "4/5", "-4/5"),
}
"""Where the polynomials are evaluated, by the kernel's size: those with the least error of some thousand sets
of small fractions (Barabasz et al. 2020 say why they decide on it)."""


def pays(images: Tensor, weight: Tensor) -> bool:
    """Return whether `conv2d` can compute a convolution, faster than PyTorch's.

    Args:
        images: (n, c, h, w).
        weight: (k, c, s, s).
    """
    n_outputs, n_inputs, size, _ = weight.shape
    height, width = images.shape[2:]
    return (
        size in _POINTS
        and images.dtype == weight.dtype == torch.float32
        and n_inputs >= LEAST_INPUT_CHANNELS
        and n_outputs >= LEAST_OUTPUT_CHANNELS
        and pays_for((height, width))
    )


def pays_for(size: tuple[int, int]) -> bool:
    """Return whether `conv2d` can be faster than PyTorch's for images of (height, width)."""
    n_tiles = math.prod(-(-side // TILE) for side in size)
    return n_tiles > 1 and n_tiles * TILE**2 <= MOST_PADDING * math.prod(size)


def conv2d(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `torch.nn.functional.conv2d(images, weight, bias, padding="same")`, differentiable once.

    Args:
        images: (n, c, h, w) float32, on a CPU.
        weight: (k, c, s, s) float32, s = 5 or 7.
        bias: (k,) float32, or None.

    Returns:
        (n, k, h, w) in channels_last memory.
    """
    result: Tensor = _Convolution.apply(images, weight, bias)
    return result


@dataclass(frozen=True)
class _Transforms:
    """Matrices of a transform in two dimensions: Kronecker products of those in one with themselves."""

    inputs: Tensor
    """(a², a²), for a = TILE + s - 1."""
    weights: Tensor
    """(a², s²)."""
    outputs: Tensor
    """(TILE², a²)."""


@cache
def _transforms(size: int) -> _Transforms:
    """Return the matrices for kernels of a size, by the construction of Cook and Toom."""
    points = [Fraction(text) for text in _POINTS[size]]
    others = [[other for other in points if other != point] for point in points]
    # the last row of each is of the point at infinity
    inputs = [[*_coefficients(roots), Fraction(0)] for roots in others] + [_coefficients(points)]
    scales = [
        math.prod((point - other for other in roots), start=Fraction(1))
        for point, roots in zip(points, others, strict=True)
    ]
    weights = [
        [point**power / scale for power in range(size)] for point, scale in zip(points, scales, strict=True)
    ] + [_unit(size)]
    outputs = [[point**power for point in points] + [_unit(TILE)[power]] for power in range(TILE)]

    def twice(matrix: Sequence[Sequence[Fraction]]) -> Tensor:
        one = torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)
        return torch.kron(one, one).float()

    return _Transforms(twice(inputs), twice(weights), twice(outputs))


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), from the constant on."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            higher - root * lower
            for higher, lower in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return found


def _unit(size: int) -> list[Fraction]:
    return [Fraction(int(number == size - 1)) for number in range(size)]


@dataclass(frozen=True)
class _Shape:
    """What is computed, and how it is cut into tiles and chunks of images."""

    n: int
    height: int
    width: int
    n_inputs: int
    n_outputs: int
    size: int

    @property
    def side(self) -> int:
        """Of an input tile."""
        return TILE + self.size - 1

    @property
    def tiles(self) -> tuple[int, int]:
        """In a column and in a row of an image."""
        return -(-self.height // TILE), -(-self.width // TILE)

    def padded(self) -> tuple[int, int, int, int]:
        """Shape of all images as their tiles read them, (n, rows, columns, channels)."""
        rows, columns = (TILE * count + self.size - 1 for count in self.tiles)
        return self.n, rows, columns, self.n_inputs

    @property
    def images_a_chunk(self) -> int:
        """How many are transformed at once."""
        return max(1, CHUNK_TILES // math.prod(self.tiles))

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the first image of each chunk, and how many images it has."""
        for first in range(0, self.n, self.images_a_chunk):
            yield first, min(self.images_a_chunk, self.n - first)

    def buffer(self, like: Tensor, n_rows: int, n_channels: int) -> Tensor:
        """Return memory for what a chunk of images has.

        Every chunk uses the same, which is still in the cache: with new memory for each all takes 1.2 times
        as long.
        """
        return like.new_empty(n_rows * self.images_a_chunk * math.prod(self.tiles) * n_channels)

    def view(self, buffer: Tensor, n_rows: int, n_images: int) -> Tensor:
        """Return a buffer as (rows, everything else) of so many images."""
        return buffer[: buffer.numel() // self.images_a_chunk * n_images].view(n_rows, -1)

    def windows(self, padded: Tensor, first: int, n_images: int, rows: range, columns: range) -> Tensor:
        """Return a view of the elements in these rows and columns of every input tile.

        It is (rows, columns, n, tiles in a column, tiles in a row, channels); those of neighbouring tiles may
        be the same.
        """
        image, row, column, channel = padded.stride()
        return padded.as_strided(
            (len(rows), len(columns), n_images, *self.tiles, self.n_inputs),
            (row, column, image, TILE * row, TILE * column, channel),
            first * image + rows.start * row + columns.start * column,
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (n, n_inputs, height, width), (n_outputs, _, size, _) = images.shape, weight.shape
        shape = _Shape(n, height, width, n_inputs, n_outputs, size)
        to, all_of = _transforms(shape.size), range(shape.side)
        _, rows, columns, _ = shape.padded()
        margin, n_elements = shape.size // 2, shape.side**2
        padded = F.pad(
            images.permute(0, 2, 3, 1),
            (0, 0, margin, columns - shape.width - margin, margin, rows - shape.height - margin),
        )
        weights = (to.weights @ weight.permute(2, 3, 1, 0).reshape(shape.size**2, -1)).view(
            n_elements, shape.n_inputs, shape.n_outputs
        )
        products = shape.buffer(images, n_elements, shape.n_outputs)
        outputs = shape.buffer(images, TILE**2, shape.n_outputs)
        high, wide = shape.tiles
        result = images.new_empty(n, high, TILE, wide, TILE, shape.n_outputs)
        inputs = []
        for first, count in shape.chunks():
            tiles = shape.windows(padded, first, count, all_of, all_of).reshape(n_elements, -1)
            inputs.append((to.inputs @ tiles).view(n_elements, -1, shape.n_inputs))
            product = shape.view(products, n_elements, count).view(n_elements, -1, shape.n_outputs)
            torch.bmm(inputs[-1], weights, out=product)
            output = shape.view(outputs, TILE**2, count)
            torch.mm(to.outputs, product.view(n_elements, -1), out=output)
            tiled = output.view(TILE, TILE, count, high, wide, -1).permute(2, 3, 0, 4, 1, 5)
            target = result[first : first + count]
            if bias is None:
                target.copy_(tiled)
            else:
                torch.add(tiled, bias, out=target)
        ctx.save_for_backward(weights, *inputs)
        ctx.shape, ctx.has_bias = shape, bias is not None
        whole = result.view(n, TILE * high, TILE * wide, shape.n_outputs)
        return whole[:, : shape.height, : shape.width].contiguous().permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (weights, *inputs), shape = ctx.saved_tensors, ctx.shape
        to, n_elements = _transforms(shape.size), shape.side**2
        high, wide = shape.tiles
        gradient = gradient.permute(0, 2, 3, 1)
        of_bias = gradient.sum((0, 1, 2)) if ctx.has_bias else None
        missing = TILE * high - shape.height, TILE * wide - shape.width
        given = F.pad(gradient, (0, 0, 0, missing[1], 0, missing[0])) if any(missing) else gradient
        given = given.reshape(shape.n, high, TILE, wide, TILE, shape.n_outputs)
        products = shape.buffer(given, n_elements, shape.n_outputs)
        of_inputs = shape.buffer(given, n_elements, shape.n_inputs)
        of_tiles = torch.empty_like(of_inputs)
        of_weights = torch.zeros_like(weights)
        padded = given.new_zeros(shape.padded())
        for (first, count), transformed in zip(shape.chunks(), inputs, strict=True):
            tiles = given[first : first + count].permute(2, 4, 0, 1, 3, 5).reshape(TILE**2, -1)
            product = shape.view(products, n_elements, count)
            torch.mm(to.outputs.t(), tiles, out=product)
            product = product.view(n_elements, -1, shape.n_outputs)
            of_weights.baddbmm_(transformed.transpose(1, 2), product)
            of_input = shape.view(of_inputs, n_elements, count)
            torch.bmm(product, weights.transpose(1, 2), out=of_input.view(n_elements, -1, shape.n_inputs))
            of_tile = shape.view(of_tiles, n_elements, count)
            torch.mm(to.inputs.t(), of_input, out=of_tile)
            of_tile = of_tile.view(shape.side, shape.side, count, high, wide, -1)
            # neighbouring tiles overlap: what is added at a time is a part of each that does not
            parts = [range(start, min(start + TILE, shape.side)) for start in range(0, shape.side, TILE)]
            for rows in parts:
                for columns in parts:
                    shape.windows(padded, first, count, rows, columns).add_(
                        of_tile[rows.start : rows.stop, columns.start : columns.stop]
                    )
        margin = shape.size // 2
        inner = padded[:, margin : margin + shape.height, margin : margin + shape.width]
        of_weight = (to.weights.t() @ of_weights.view(n_elements, -1)).view(
            shape.size, shape.size, shape.n_inputs, shape.n_outputs
        )
        return inner.contiguous().permute(0, 3, 1, 2), of_weight.permute(3, 2, 0, 1), of_bias
