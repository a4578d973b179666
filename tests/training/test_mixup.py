import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hpo.training.mixup import Mix, draw_mixes


def test_images_and_losses_are_weighted_alike() -> None:
    mix = Mix(torch.tensor(0.75), torch.tensor([1, 2, 0]))
    assert mix.inputs(torch.tensor([[0.0], [4.0], [8.0]])).tolist() == [[1.0], [5.0], [6.0]]
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    soft = 0.75 * F.one_hot(labels, 4) + 0.25 * F.one_hot(labels[[1, 2, 0]], 4)
    torch.testing.assert_close(
        mix.loss(lambda each: F.cross_entropy(logits, each), labels), F.cross_entropy(logits, soft)
    )


@pytest.mark.parametrize("alpha", [1e-6, 0.2, 1.0, 50.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    rng = np.random.default_rng(0)
    weights = draw_mixes([1] * 4000, alpha, rng)[0].numpy()
    assert ((weights >= 0) & (weights <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.mean() == pytest.approx(0.5, abs=4 * (variance / 4000) ** 0.5)
    assert weights.var() == pytest.approx(variance, rel=0.1)


def test_draws_depend_on_the_generator_alone() -> None:
    sizes = [50, 50, 7]
    drawn = [draw_mixes(sizes, 0.2, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    (weights, partners), again, other = drawn
    assert [sorted(each.tolist()) for each in torch.split(partners, sizes)] == [list(range(n)) for n in sizes]
    assert len(set(weights.tolist())) == 3
    for mine, same, different in zip((weights, partners), again, other, strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, different)
