from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hpo
from hpo.training.schedules import SCHEDULES, factor

N_STEPS = 2000


def by_pytorch(scheduler: type, **options: object) -> list[float]:
    """The rate of every step of a training whose largest is 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = scheduler(optimizer, **options)
        rates = []
        for _ in range(N_STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return rates


def ours(**params: object) -> list[float]:
    made = hpo.Params.model_validate(params)
    return [factor(made, step / N_STEPS) for step in range(N_STEPS)]


@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    epochs=st.integers(1, 20),
    warmup=st.integers(0, 30),
    progress=st.floats(0, 1, exclude_max=True),
)
def test_law_a_factor_is_between_0_and_1(schedule: str, epochs: int, warmup: int, progress: float) -> None:
    params = hpo.Params.model_validate({"schedule": schedule, "epochs": epochs, "warmup_epochs": warmup})
    assert 0 <= factor(params, progress) <= 1


def test_cosine_is_pytorchs() -> None:
    theirs = by_pytorch(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=N_STEPS)
    assert ours(schedule="cosine") == pytest.approx(theirs, abs=1e-6)


def test_one_cycle_is_pytorchs() -> None:
    theirs = by_pytorch(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=N_STEPS, cycle_momentum=False
    )
    found = ours(schedule="one-cycle")
    # theirs ends with the last step, ours at the end of the training: one step apart
    assert found == pytest.approx(theirs, abs=5e-3)
    assert found[0] == theirs[0] == pytest.approx(1 / 25)


def test_constant_is_1() -> None:
    assert set(ours()) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_evenly_and_the_schedule_follows(schedule: str) -> None:
    found = ours(schedule=schedule, warmup_epochs=2, epochs=10)
    n_warm = N_STEPS // 5
    assert found[:n_warm] == pytest.approx([step / n_warm for step in range(n_warm)])
    assert found[n_warm] == 1
    after = hpo.Params.model_validate({"schedule": schedule})
    rest = [factor(after, step / (N_STEPS - n_warm)) for step in range(N_STEPS - n_warm)]
    assert found[n_warm:] == pytest.approx(rest)


def test_a_warm_up_as_long_as_the_training_only_rises() -> None:
    found = ours(warmup_epochs=20, epochs=10)
    assert found == sorted(found)
    assert found[-1] < 1
    assert ours(schedule="one-cycle", warmup_epochs=5) == ours(schedule="one-cycle")
