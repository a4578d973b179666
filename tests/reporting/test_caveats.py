"""What report and dashboard say before anybody believes an answer, on data that are hard to believe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpo.planning.plan import Plan
from hpo.reporting import test_set
from hpo.reporting.caveats import caveats
from hpo.reporting.dashboard.notes import final_note
from hpo.reporting.data import ReportData, read
from hpo.reporting.page import write_report
from tests.support.plans import SMALL, train

MODULE = """
import numpy as np
from hpo import ImageData

def clothes():
    "Seven times as many tops as hats; and hats look like tops."
    def part(n_tops, n_shoes, n_hats):
        labels = np.repeat([0, 1, 2], [n_tops, n_shoes, n_hats])
        generator = np.random.default_rng(len(labels))
        pixels = generator.integers(0, 60, (len(labels), 8, 8, 1)) + 150 * (labels == 1)[:, None, None, None]
        return pixels.astype(np.uint8), labels
    return ImageData(*part(140, 40, 20), *part(70, 20, 10), ("tops", "shoes", "hats"))
"""


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Path]]:
    """A plan on uneven classes, one of which cannot be told; two seeds everywhere."""
    folder = tmp_path_factory.mktemp("clothes")
    (folder / "wardrobe.py").write_text(MODULE)
    (folder / "studies").mkdir()
    (folder / "studies" / "rate.toml").write_text(f"{SMALL}[search]\nlearning_rate = [0.01, 0.003]")
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield (
            train(
                out,
                studies=folder / "studies",
                data="python:wardrobe:clothes",
                epochs=3,
                seeds=2,
                final_seeds=2,
            ),
            out,
        )


@pytest.fixture(scope="module")
def report(clothes: tuple[Plan, Path]) -> ReportData:
    plan, _ = clothes
    return read(plan)


@pytest.mark.parametrize(
    "said",
    [
        "The deviation of the test result is of two seeds",
        "Never right on the test set, F1 0: hats.",
        " with 95 % confidence, for other seeds and other test images; the ",
        "The classes are uneven: of tops there are 112 training images, 7.0 times as many as of hats (16).",
        "Always answering tops, the most frequent class of the test set, would have macro F1 27.5 % and",
        "Every point of the search was trained on two seeds",
    ],
)
def test_report_and_dashboard_warn(clothes: tuple[Plan, Path], report: ReportData, said: str) -> None:
    assert [text for text in caveats(report) if said in text]
    plan, out = clothes
    write_report(plan, out)
    note = final_note(report, dict.fromkeys(plan.all_names, 0))
    for text in (note, (out / "report" / "report.md").read_text("utf-8")):
        assert said in text.replace("\\", "")


def test_what_is_no_better_than_a_constant_answer_is_said_to_be(report: ReportData) -> None:
    assert report.final is not None
    of_accuracy = {"interval": [0.6, 0.8], "seeds": 0.0, "examples": 0.05}
    constant = {
        **report.final,
        "confusion_matrix": [[70, 0, 0], [20, 0, 0], [10, 0, 0]],
        "uncertainty": {"macro_f1": {**of_accuracy, "interval": [0.2, 0.3]}, "accuracy": of_accuracy},
    }
    (said,) = [text for text in caveats(replace(report, final=constant)) if "constant answer" in text]
    assert said.startswith("By macro F1 and accuracy it is not shown to be better than a constant answer.")
    assert not [text for text in caveats(report) if "By macro F1" in text]


def test_nothing_is_said_of_a_test_set_that_leaves_no_doubt(report: ReportData) -> None:
    assert report.final is not None
    counts = [[9000, 100, 100], [100, 9000, 100], [100, 100, 9000]]
    sure = {
        **report.final,
        "seeds": [0, 1, 2],
        "confusion_matrix": counts,
        "per_class": {name: {"f1": 0.98} for name in report.final["per_class"]},
        "uncertainty": {"macro_f1": {"interval": [0.975, 0.985], "seeds": 0.001, "examples": 0.002}},
    }
    even = report.identity.model_copy(update={"class_counts": (100, 100, 100)})
    said = " ".join(caveats(replace(report, final=sure, identity=even)))
    assert not [word for word in ("test set", "test result", "uneven", "Never", "constant") if word in said]


def test_a_few_numbers_to_be_predicted_are_few(report: ReportData) -> None:
    numbers = {
        key: value
        for key, value in (report.final or {}).items()
        if key not in ("per_class", "confusion_matrix")
    }
    said = caveats(replace(report, final={**numbers, "n_test": 30}))
    assert [text for text in said if text.startswith("The test set has only 30 images")]


def test_the_baseline_is_a_constant_answer() -> None:
    reached, frequent = test_set.baseline(np.array([[3.0, 1.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    assert frequent == 1
    assert reached == {"accuracy": 0.6, "macro_f1": pytest.approx((0.0 + 0.75) / 2)}
