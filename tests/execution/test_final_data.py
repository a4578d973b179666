"""What the final stage trains on: what the search did, all training data, or the validation part too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpo import final_result, find_plan, load_model
from hpo.data import load_training, prepare
from hpo.errors import Interrupted
from hpo.execution import final_stage
from hpo.execution.context import set_up
from hpo.execution.plan_data import data_of_trial
from hpo.execution.trial import run_trial
from hpo.execution.verify import verify
from hpo.execution.worker import work
from hpo.monitor.results import final_trial
from hpo.planning.decisions import epochs_of
from hpo.planning.plan import FINAL, Plan
from hpo.planning.scheduler import advance
from hpo.reporting import write_report
from hpo.storage.queue import Queue
from hpo.training.blobs import open_blobs
from tests.support.fixtures import Cli
from tests.support.plans import SMALL, accepted_epochs
from tests.support.queues import claim_first
from tests.support.scripted_worker import Worker, new_plan

SIZES: dict[str, Any] = {"limit_train": 100, "limit_valid": 50, "epochs": 3, "final_seeds": 2}
N_TRAIN, N_VALID = 1151, 287
"""Of the digits, without limits."""


def decided(folder: Path, final_data: str, **options: Any) -> Plan:
    """A plan whose only study has decided, for a trial whose second epoch was its best."""
    folder.mkdir(exist_ok=True)
    study = f"{SMALL}batch_size = 50\n[search]\nlearning_rate = [0.003]"
    plan = new_plan(folder, {"rate": study}, **SIZES | options, final_data=final_data)
    advance(plan)
    Worker(plan).finish_all("rate", [0.2, 0.6, 0.5])
    return plan


@pytest.fixture(scope="module", params=["all", "train+validation"])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    plan = decided(folder, request.param)
    assert work(plan.storage, out=folder) is None
    return folder


def test_the_model_was_trained_on_all_that_was_asked_for(ended: Path) -> None:
    plan, entry = find_plan(ended), prepare("digits")
    result = final_result(plan)
    with_validation = plan.options.final_data == "train+validation"
    whole = load_training(entry, with_validation=with_validation)
    assert result["n_train"] == len(whole.train) == N_TRAIN + with_validation * N_VALID
    assert plan.identity.n_train == 100
    model = load_model(ended / "model.safetensors")
    np.testing.assert_array_equal(model.mean, whole.mean)
    # by the same seeds, and as many steps, whoever trains it again has the same bits
    trial = final_trial(plan)
    assert trial is not None
    assert verify(plan, FINAL, trial) is None


def test_who_saw_the_validation_part_trains_for_as_long_as_was_chosen_before(ended: Path) -> None:
    plan, trial = find_plan(ended), final_trial(find_plan(ended))
    assert trial is not None
    result, is_settled = final_result(plan), plan.options.final_data == "train+validation"
    n_epochs = 2 if is_settled else SIZES["epochs"]
    assert len(epochs_of(trial.user_attrs)) == len(result["per_epoch"]) == n_epochs
    assert trial.user_attrs["config"]["epochs"] == SIZES["epochs"]  # a schedule is that of the search
    validation = [epoch for epoch, _ in sorted(trial.intermediate_values.items(), key=lambda item: -item[1])]
    assert result["selected_epoch"] == (2 if is_settled else validation[0])
    assert result["test"]["macro_f1"] == pytest.approx(
        result["per_epoch"][result["selected_epoch"] - 1]["macro_f1"]
    )
    assert result["search_value"] == 0.6
    # other data than the search's: the difference is not what selection made
    assert (result["shrinkage"], result["shrinkage_interval"]) == (None, None)
    assert (result["fresh_value"] is None) == is_settled
    notes = trial.user_attrs.get("notes", [])
    assert notes == (["its validation metrics are of examples that it was trained on"] if is_settled else [])


def test_it_is_said_wherever_the_answer_is(ended: Path, cli: Cli) -> None:
    plan = find_plan(ended)
    said = {
        "all": "which validation chose, on all 1,151 images of the training part",
        "train+validation": "after 2 epochs, settled before, on all 1,438 images of the training and the "
        "validation part",
    }[plan.options.final_data]
    page = write_report(plan, ended, None).with_suffix(".md").read_text()
    for text in (cli("final", f"--out={ended}").out, page):
        assert said in " ".join(text.split())
    assert "cut to 100 training and 50 validation images; the final stage was trained on more" in page
    assert ("trained on the validation images, too" in page) == (plan.options.final_data != "all")
    shown = cli("show", "final", f"--out={ended}")
    assert shown.code == 0
    other = cli("create", "--final-data=limited", f"--out={ended}")
    assert "--final-data limited contradicts the plan" in other.err


def test_killed_between_two_epochs_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    undisturbed, killed = (decided(tmp_path / name, "train+validation") for name in ("a", "b"))
    assert work(undisturbed.storage, out=tmp_path / "a") is None
    plan, out = killed, tmp_path / "b"
    torch.set_num_threads(plan.identity.threads)
    advance(plan)
    trial = claim_first(Queue(plan.storage, FINAL))
    assert trial is not None

    def should_stop() -> bool:
        return len(epochs_of(plan.storage.trial(trial._trial_id).user_attrs)) == 1

    entry, context = set_up(plan, None, open_blobs(out / "checkpoints"), should_stop)
    data = data_of_trial(plan, FINAL, trial, entry, context.data)
    context = replace(context, data=data)
    with pytest.raises(Interrupted):
        run_trial(
            plan,
            FINAL,
            trial,
            context,
            final_stage.TestSetCallback(plan, trial._trial_id, context, entry, out),
        )
    assert work(plan.storage, out=out) is None
    accepted = final_trial(plan)
    assert accepted is not None
    assert accepted.user_attrs["resumed_after_epoch"] == 1
    ours, theirs = (
        {key: found for key, found in accepted_epochs(each).items() if key[0] == FINAL}
        for each in (plan, undisturbed)
    )
    assert ours == theirs


def test_without_a_limit_all_is_what_the_search_had(tmp_path: Path) -> None:
    plan = decided(tmp_path / "plan", "all", limit_train=None)
    advance(plan)
    trial = claim_first(Queue(plan.storage, FINAL))
    assert trial is not None
    entry = prepare("digits")
    data = load_training(entry, limit_valid=50)
    assert data_of_trial(plan, FINAL, trial, entry, data) is data
