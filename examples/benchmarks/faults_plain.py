"""The yardstick of `faults.py`: a grid on plain Optuna, as its documentation advises for unreliable workers.

RDBStorage with heartbeats and `RetryHeartbeatStaleTrialCallback`, a GridSampler, `study.optimize` in every
worker; the trials sleep, report, and train nothing. What comes of it is counted as for hpo.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from siege import LEASE_SECONDS, Places, Tally

EPOCHS = 5
EPOCH_SECONDS = 0.1
GRID: dict[str, list[float]] = {"learning_rate": [0.003, 0.001, 0.0003], "batch_size": [20, 40, 80]}
N_POINTS = 9
PLACES: Places = {
    "after a claim": (RDBStorage, "create_new_trial", "after"),
    "before an epoch is written": (RDBStorage, "set_trial_intermediate_value", "before"),
    "after an epoch is written": (RDBStorage, "set_trial_intermediate_value", "after"),
    "before the end of a trial is written": (RDBStorage, "set_trial_state_values", "before"),
    "after the end of a trial is written": (RDBStorage, "set_trial_state_values", "after"),
}


def _study(url: str) -> optuna.Study:
    warnings.simplefilter("ignore")
    storage = RDBStorage(
        url,
        heartbeat_interval=1,
        grace_period=round(LEASE_SECONDS),
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    return optuna.create_study(
        study_name="plain",
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.GridSampler(GRID, seed=0),
        load_if_exists=True,
    )


class Grid:
    """A grid study that every worker optimises until its sampler has seen all of it."""

    places = PLACES
    misfits: ClassVar[dict[str, Any]] = {}  # it trains nothing and knows of no data

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._end = url, folder / "end"

    def create(self) -> None:
        """Makes the study."""
        _study(self._url)

    def work(self, seed: int) -> int:
        """One worker, until the sampler has seen the whole grid."""
        _study(self._url).optimize(objective)
        self._end.touch()
        return 0

    def ended(self) -> bool:
        """Whether a worker saw the end of the grid."""
        return self._end.exists()

    def judge(self, tally: Tally) -> None:
        """Counts what became of the grid; a killed trial begins anew, as nobody saved its state."""
        study = optuna.load_study(study_name="plain", storage=RDBStorage(self._url))
        trials = study.get_trials(deepcopy=False)
        complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
        results = Counter(str(sorted(trial.params.items())) for trial in complete)
        retried = {t.system_attrs["failed_trial"] for t in trials if "failed_trial" in t.system_attrs}
        repeated = [len(trials[number].intermediate_values) for number in retried]
        tally.unknown = ("false_losses", "resumed", "resumed_equal", "recovery_p50_s", "recovery_p99_s")
        tally.points += N_POINTS
        tally.points_lost += N_POINTS - len(results)
        tally.double_results += sum(n - 1 for n in results.values())
        tally.attempts_lost += sum(trial.state in (TrialState.FAIL, TrialState.RUNNING) for trial in trials)
        tally.max_epochs_repeated = max([tally.max_epochs_repeated, *repeated])


def objective(trial: optuna.Trial) -> float:
    """Sleeps instead of training."""
    rate = trial.suggest_categorical("learning_rate", GRID["learning_rate"])
    size = trial.suggest_categorical("batch_size", GRID["batch_size"])
    for epoch in range(1, EPOCHS + 1):
        time.sleep(EPOCH_SECONDS)
        trial.report(rate * size * epoch, epoch)
    return rate * size
