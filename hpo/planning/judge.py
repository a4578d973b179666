"""Pruners asked about a trial: about each of its epochs once, however they arrive."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial


class TrialPruner:
    """Asks a pruner about one trial: about every epoch but the last, once, and in order.

    Optuna's pruners judge the epoch before they are asked, and some note what the trial had reached by then.
    One that is resumed, or that trained through an outage, has several epochs at once: it is judged as if it
    had been asked after each of them.

    Args:
        pruner: of this trial alone.
        study: whose trials it is compared with.
        epochs: how many the trial is going to have; to stop it after the last one would save nothing.
    """

    def __init__(self, pruner: BasePruner, study: optuna.Study, epochs: int) -> None:
        self._pruner, self._study, self._last = pruner, study, epochs - 1
        self._n_judged = 0

    def stops(self, read: Callable[[], FrozenTrial], n_epochs: int) -> bool:
        """Return whether the trial was to be stopped after any of its new epochs, now that it has so many.

        Args:
            read: the trial as it stands in the database, an object that nobody else has.
            n_epochs: that it has reported.
        """
        is_stopped = False
        for epoch in range(self._n_judged + 1, min(n_epochs, self._last) + 1):
            trial = read()  # with what the pruner noted of the epoch before
            reports = trial.intermediate_values
            trial.intermediate_values = {number: f1 for number, f1 in reports.items() if number <= epoch}
            # of several at once any counts: what would have been stopped has not trained the others
            is_stopped = self._pruner.prune(self._study, trial) or is_stopped
            self._n_judged = epoch
        return is_stopped
