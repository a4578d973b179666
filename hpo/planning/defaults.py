"""The options that change results, as they are where nobody says otherwise.

Apart from `hpo.planning.manifest.Options`, which is made of them, so that help texts need no pydantic.
"""

from __future__ import annotations

from typing import Literal

Fit = Literal["crop", "pad", "squash"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Kernels = Literal["auto", "plain", "triton", "winograd"]
Inherit = Literal["winners", "published"]
Adopt = Literal["better", "always"]
Keep = Literal["better", "equivalent"]
FinalData = Literal["limited", "all", "train+validation"]


class Defaults:
    """By the names of the options; None: what the study files or the data say."""

    recipe: str = "constrained-cnn"
    data: str = "cifar10"
    image_size: int | None = None
    fit: Fit = "crop"
    seed: int = 0
    seeds: int | Literal["race"] = 1
    max_seeds: int = 12
    final_seeds: int = 5
    budget: float | None = None
    epochs: int | None = None
    set: dict[str, bool | int | float | str] | None = None
    metric: str | None = None
    limit_train: int | None = None
    limit_valid: int | None = None
    final_data: FinalData = "limited"
    precision: Precision = "auto"
    kernels: Kernels = "auto"
    device: str = "auto"
    pruning: bool = True
    audit: float = 0.0
    keep_checkpoints: bool = False
    inherit: Inherit = "winners"
    adopt: Adopt = "better"
    confirm: bool = False
    keep: Keep = "better"
    delta: float | None = None
    same_split: bool = False
    lease_seconds: float = 60.0
