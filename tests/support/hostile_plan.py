"""A plan whose classes, titles and notes were named by somebody who means harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plans import train

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "</style><img src=x onerror=alert(1)>",
    "$\\frac{1}{0}$ _x_ **b** `c` | d",
    "\x1b[31mred\u202e",
    "日本語",
    "n" * 300,
)
HOSTILE_MODULE = f"""
import numpy as np
from hpo import ImageData

NAMES = {HOSTILE_NAMES!r}

def images():
    generator = np.random.default_rng(0)
    labels = np.arange(10 * len(NAMES)) % len(NAMES)
    noise = generator.integers(0, 40, (len(labels), 8, 8, 1))
    pixels = (noise + 30 * labels[:, None, None, None]).astype(np.uint8)
    return ImageData(pixels, labels, pixels[:20], labels[:20], NAMES)
"""
HOSTILE_STUDY = """
title = "<b>bold</b> ]]> & \\"quoted\\" {{ 7 * 7 }}"
section = "=1+1"
[search]
learning_rate = [0.01, 0.001]
[published]
choice = {learning_rate = 0.01}
[[published.results]]
params = {learning_rate = 0.01}
loss = 1.0
note = "-2+3 <img src=x onerror=alert(2)>"
"""
NEXT_STUDY = """
inherits = "rate"
search.batch_size = [10, 40]
published.choice = {batch_size = 40}
"""


def train_hostile(folder: Path) -> Path:
    """Runs the plan to its end; its output folder."""
    (folder / "hostile.py").write_text(HOSTILE_MODULE, "utf-8")
    (folder / "studies").mkdir()
    (folder / "studies" / "rate.toml").write_text(HOSTILE_STUDY, "utf-8")
    (folder / "studies" / "size.toml").write_text(NEXT_STUDY, "utf-8")
    options = {"epochs": 1, "final_seeds": 1, "inherit": "published", "adopt": "always"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        train(folder / "out", studies=folder / "studies", data="python:hostile:images", **options)
    return folder / "out"
