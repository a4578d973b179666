"""Augmentations of training batches, by the names of their parameters. To add one: a class and a line.

Each has two halves, so that a GPU can record the second: `draw` takes all random numbers of an epoch from a
generator of (seed, epoch, name), and `apply` changes a batch by its part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.space.parameters import Params


class Augmentation(Protocol):
    """One way to change images by chance."""

    def draw(
        self, params: Params, sizes: Sequence[int], shape: tuple[int, ...], rng: np.random.Generator
    ) -> Tensor:
        """Return what an epoch needs: one row an image, (sum of sizes, …).

        Args:
            params: of the recipe.
            sizes: of the epoch's batches.
            shape: (c, h, w) of an image.
            rng: the only source of randomness.
        """

    def apply(self, params: Params, images: Tensor, drawn: Tensor) -> Tensor:
        """Return changed images (n, c, h, w) by the n rows that were drawn for them."""


class _Flip:
    def draw(
        self, params: Params, sizes: Sequence[int], shape: tuple[int, ...], rng: np.random.Generator
    ) -> Tensor:
        return torch.from_numpy(rng.random(sum(sizes)) < 0.5)

    def apply(self, params: Params, images: Tensor, drawn: Tensor) -> Tensor:
        return torch.where(drawn.view(-1, 1, 1, 1), images.flip(3), images)


class _Shift:
    def draw(
        self, params: Params, sizes: Sequence[int], shape: tuple[int, ...], rng: np.random.Generator
    ) -> Tensor:
        return torch.from_numpy(rng.integers(0, 2 * params.shift + 1, (sum(sizes), 2)))

    def apply(self, params: Params, images: Tensor, drawn: Tensor) -> Tensor:
        # zeros are what a normalised image has on average
        padded = F.pad(images, [params.shift] * 4)
        height, width = images.shape[2:]
        rows = drawn[:, :1] + torch.arange(height, device=images.device)
        columns = drawn[:, 1:] + torch.arange(width, device=images.device)
        numbers = torch.arange(len(images), device=images.device)
        moved = padded[numbers.view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)]
        return moved.permute(0, 3, 1, 2)  # (n, h, w, c) in memory: channels_last


class _Cutout:
    def draw(
        self, params: Params, sizes: Sequence[int], shape: tuple[int, ...], rng: np.random.Generator
    ) -> Tensor:
        _, height, width = shape
        return torch.from_numpy(rng.integers(0, [height, width], (sum(sizes), 2)))

    def apply(self, params: Params, images: Tensor, drawn: Tensor) -> Tensor:
        first = drawn - params.cutout // 2
        inside = [
            (place >= start) & (place < start + params.cutout)
            for start, place in (
                (first[:, axis : axis + 1], torch.arange(images.shape[2 + axis], device=images.device))
                for axis in (0, 1)
            )
        ]
        hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
        return images.masked_fill(hole.unsqueeze(1), 0.0)


AUGMENTATIONS: dict[str, Augmentation] = {"flip": _Flip(), "shift": _Shift(), "cutout": _Cutout()}
"""Name of the parameter that switches it on → augmentation; applied in this order, mixup after them."""


def active(params: Params) -> list[str]:
    """Return the augmentations that parameters switch on, in their order."""
    return [name for name in AUGMENTATIONS if getattr(params, name)]
