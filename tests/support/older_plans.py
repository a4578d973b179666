"""A plan as an hpo wrote it whose shipped recipe had fewer parameters."""

from __future__ import annotations

import json
from typing import Any

from hpo.planning.manifest import RecipeRecord


def _number(kind: str, default: float, **bounds: float) -> dict[str, Any]:
    return {"kind": kind, "default": default, **bounds, "choices": []}


def _text(*choices: str) -> dict[str, Any]:
    return {"kind": "text", "default": choices[0], "choices": choices}


_OFF: dict[str, Any] = {"kind": "bool", "default": False, "choices": []}
RECIPE_BEFORE_ACTIVATION = RecipeRecord.model_validate_json(
    json.dumps(
        {
            "name": "constrained-cnn",
            "sources": {},
            "parameters": {
                "parameters": {
                    "conv1_channels": _number("int", 32, ge=1, le=4096),
                    "conv1_kernel": _number("int", 3, ge=1, le=31),
                    "conv2_channels": _number("int", 128, ge=1, le=4096),
                    "conv2_kernel": _number("int", 5, ge=1, le=31),
                    "hidden_units": _number("int", 128, ge=1, le=65536),
                    "batch_norm": _OFF,
                    "mixup_alpha": _number("float", 0.0, ge=0, le=1000),
                    "mixup_first_epoch": _number("int", 1, ge=1, le=100_000),
                    "mixup_last_epoch": _number("int", 10, ge=1, le=100_000),
                    "learning_rate": _number("float", 0.001, gt=0, le=100),
                    "batch_size": _number("int", 20, ge=1, le=65536),
                    "l2": _number("float", 0.0, ge=0, le=100),
                    "optimizer": _text("adam", "adamw", "sgd", "rmsprop"),
                    "momentum": _number("float", 0.0, ge=0, lt=1),
                    "schedule": _text("constant", "cosine", "one-cycle"),
                    "warmup_epochs": _number("int", 0, ge=0, le=100_000),
                    "label_smoothing": _number("float", 0.0, ge=0, lt=1),
                    "class_weights": _text("none", "balanced"),
                    "flip": _OFF,
                    "shift": _number("int", 0, ge=0, le=1024),
                    "cutout": _number("int", 0, ge=0, le=1024),
                    "mixup": _number("float", 0.0, ge=0, le=1000),
                    "epochs": _number("int", 11, ge=1, le=100_000),
                },
                "constraints": ["mixup_first_epoch <= mixup_last_epoch"],
            },
            "metrics": {"macro_f1": "maximize", "accuracy": "maximize", "loss": "minimize"},
        }
    )
)
