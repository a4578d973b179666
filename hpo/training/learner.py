"""One seed's network and optimizer, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.recipes.constrained_cnn.network import ImageShape, build_network
from hpo.space.parameters import TrialConfig
from hpo.training.devices import DTYPES, bf16_copy
from hpo.training.mixup import Mix
from hpo.training.optimizers import OPTIMIZERS


class Learner:
    """One seed's network and optimizer.

    `network` is the fp32 network on the device, whatever the precision of the arithmetic.
    """

    def __init__(
        self,
        config: TrialConfig,
        image_shape: ImageShape,
        n_classes: int,
        seed: int,
        *,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        generator = generator_of(seed, 0, "init")
        self.seed = seed
        self.network = build_network(config.network, image_shape, n_classes, generator).to(device)
        self.optimizer = OPTIMIZERS[config.training.optimizer](
            list(self.network.parameters()), config.training.learning_rate, config.training.l2
        )
        self._dtype = DTYPES[precision]
        self._runner = bf16_copy(self.network) if precision == "bf16" else self.network
        pairs = zip(self.network.parameters(), self._runner.parameters(), strict=True)
        copies = [(master, low) for master, low in pairs if master is not low]
        self._masters: list[Tensor] = [master for master, _ in copies]
        self._lows: list[Tensor] = [low for _, low in copies]
        for master in self._masters:
            master.grad = torch.zeros_like(master)

    def step(self, images: Tensor, labels: Tensor, mix: Mix | None = None) -> Tensor:
        """Take one step on a batch of normalised images (n, c, h, w) float32; return the loss before it.

        The gradients stay on `network.parameters()` until the next step.
        """
        self._runner.zero_grad(set_to_none=True)
        if mix:
            images = mix.images(images)
        logits = self._runner(images.to(self._dtype)).float()
        loss = mix.loss(logits, labels) if mix else F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if self._lows:  # a call for all of them is one kernel on a GPU
                torch._foreach_copy_(_gradients(self._masters), _gradients(self._lows))
            self.optimizer.step()
            self._refresh()
        return loss.detach()

    def _refresh(self) -> None:
        """Give the bf16 copy the values of the network."""
        if self._lows:
            torch._foreach_copy_(self._lows, self._masters)

    def gradient_norms(self) -> Tensor:
        """Return norms of the last step's gradients, (layers, 2): weight and bias of each layer."""
        layers = map(self.network.weight_and_bias, self.network.layer_names)
        norms = [torch.linalg.vector_norm(gradient) for pair in layers for gradient in _gradients(pair)]
        return torch.stack(norms).view(-1, 2)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on; the tensors are the live ones, not copies."""
        return {
            "seed": self.seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],  # its settings are the configuration's
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a stored state of the same configuration and seed."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state belongs to seed {state['seed']}, not {self.seed}")
        self.network.load_state_dict(state["network"])
        stored = copy.deepcopy(state["optimizer"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": stored})
        with torch.no_grad():
            self._refresh()


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


_PURPOSES = {"init": 0, "order": 1, "mixup": 2}


def entropy(seed: int, epoch: int, purpose: str) -> np.random.SeedSequence:
    """Return what all randomness of a seed is derived from; purposes are init, order and mixup."""
    return np.random.SeedSequence([seed, epoch, _PURPOSES[purpose]])


def generator_of(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return PyTorch's generator on the CPU of that entropy."""
    (state,) = entropy(seed, epoch, purpose).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
