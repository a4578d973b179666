from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hpo
from hpo.training.augmentations import AUGMENTATIONS, active

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


def images_of(n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) + 1  # nowhere 0


def params(name: str, size: int) -> hpo.Params:
    return hpo.Params.model_validate({name: bool(size) if name == "flip" else size})


@pytest.mark.parametrize("name", AUGMENTATIONS)
@given(shape=SHAPES, size=st.integers(1, 9), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_law_shape_type_and_draws(
    name: str, shape: tuple[int, int, int], size: int, sizes: list[int]
) -> None:
    augmentation, made = AUGMENTATIONS[name], params(name, size)
    drawn, again = (augmentation.draw(made, sizes, shape, np.random.default_rng(1)) for _ in range(2))
    assert len(drawn) == sum(sizes)
    assert torch.equal(drawn, again)
    images = images_of(sum(sizes), shape)
    before = images.clone()
    changed = augmentation.apply(made, images, drawn)
    assert torch.equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    # each image is changed by its own row alone
    parts = zip(torch.split(images, sizes), torch.split(drawn, sizes), strict=True)
    assert torch.equal(torch.cat([augmentation.apply(made, *part) for part in parts]), changed)


@given(shape=SHAPES, which=st.lists(st.booleans(), min_size=1, max_size=5))
def test_law_flip_mirrors_those_that_were_drawn_and_twice_is_nothing(
    shape: tuple[int, int, int], which: list[bool]
) -> None:
    images, drawn = images_of(len(which), shape), torch.tensor(which)
    flipped = AUGMENTATIONS["flip"].apply(params("flip", 1), images, drawn)
    for image, new, mirrored in zip(images.numpy(), flipped.numpy(), which, strict=True):
        np.testing.assert_array_equal(new, image[:, :, ::-1] if mirrored else image)
    assert torch.equal(AUGMENTATIONS["flip"].apply(params("flip", 1), flipped, drawn), images)


@given(shape=SHAPES, most=st.integers(1, 9), seed=st.integers(0, 99))
def test_law_shift_moves_by_so_many_pixels_and_fills_with_zeros(
    shape: tuple[int, int, int], most: int, seed: int
) -> None:
    made, images = params("shift", most), images_of(6, shape)
    drawn = AUGMENTATIONS["shift"].draw(made, [6], shape, np.random.default_rng(seed))
    assert drawn.shape == (6, 2)
    assert 0 <= drawn.min() <= drawn.max() <= 2 * most
    moved = AUGMENTATIONS["shift"].apply(made, images, drawn)
    _, height, width = shape
    for image, new, (row, column) in zip(images, moved, drawn.tolist(), strict=True):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + row - most, x + column - most
                inside = 0 <= from_y < height and 0 <= from_x < width
                expected = image[:, from_y, from_x] if inside else torch.zeros(shape[0])
                assert torch.equal(new[:, y, x], expected)


@given(shape=SHAPES, side=st.integers(1, 9), seed=st.integers(0, 99))
def test_law_cutout_blanks_one_square_and_leaves_the_rest(
    shape: tuple[int, int, int], side: int, seed: int
) -> None:
    made, images = params("cutout", side), images_of(6, shape)
    drawn = AUGMENTATIONS["cutout"].draw(made, [6], shape, np.random.default_rng(seed))
    cut = AUGMENTATIONS["cutout"].apply(made, images, drawn)
    _, height, width = shape
    for image, new, (y, x) in zip(images.numpy(), cut.numpy(), drawn.tolist(), strict=True):
        assert 0 <= y < height
        assert 0 <= x < width
        top, left = y - side // 2, x - side // 2
        expected = image.copy()
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
        np.testing.assert_array_equal(new, expected)


def test_every_way_is_taken() -> None:
    rng = np.random.default_rng(0)
    flips = AUGMENTATIONS["flip"].draw(params("flip", 1), [4000], (1, 8, 8), rng)
    assert flips.float().mean().item() == pytest.approx(0.5, abs=0.04)
    shifts = AUGMENTATIONS["shift"].draw(params("shift", 2), [4000], (1, 8, 8), rng)
    assert {tuple(each) for each in shifts.tolist()} == {(y, x) for y in range(5) for x in range(5)}
    centres = AUGMENTATIONS["cutout"].draw(params("cutout", 3), [4000], (1, 3, 8), rng)
    assert {tuple(each) for each in centres.tolist()} == {(y, x) for y in range(3) for x in range(8)}


def test_those_that_are_asked_for_are_active_in_their_order() -> None:
    assert active(hpo.Params()) == []
    assert active(hpo.Params(cutout=2, flip=True, shift=1)) == ["flip", "shift", "cutout"]
