"""The exceptions that hpo raises on purpose, those of one module alone apart.

HpoError                     caught by the CLI: one line, no traceback
├── InputError               the user gave something that cannot be used; exit 2
│   ├── StudyFileError       a study file: file, key, value, what would be right
│   ├── DataError            images or labels that cannot be used
│   ├── ConflictError        an option, a study or data contradicts what the plan recorded
│   └── MissingError         a plan, study, trial or result that does not exist (yet)
└── RunError                 the work itself failed; exit 1
    ├── DeviceLostError      the GPU does nothing more for this process, a new one may be served; exit 75
    ├── PointsFailedError    everything has ended, and points failed for good
    └── StorageError         the database was away for too long, or takes no more writes
        └── DatabaseGoneError    its file was removed or replaced under those who use it
TrialEnd                     control flow inside a worker, never shown as an error
├── Interrupted              asked to stop in the middle of an epoch; the trial goes back to the queue
├── Diverged                 a loss is not finite; the trial ends as PRUNED, reason "diverged"
├── DeviceFull               the device's memory does not hold the trial beside others; back to the queue
└── TrialLost                the trial was declared lost or superseded; this worker no longer owns it
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class HpoError(Exception):
    """Base of all errors whose text is written for the user."""

    exit_code = 1


class InputError(HpoError):
    """Something the user gave cannot be used; the text says what, where, and what would be right."""

    exit_code = 2


class StudyFileError(InputError):
    """A study file cannot be used; each line of the text is a problem, and starts with its path."""

    def __init__(self, file: Path | str, problem: str) -> None:
        self.file = str(file)
        self.problem = problem
        super().__init__("\n".join(f"{file}: {line}" for line in problem.split("\n")))


class DataError(InputError):
    """Images or labels cannot be used."""


class ConflictError(InputError):
    """An option, a study file or the data contradicts what the plan recorded when it was created."""


class MissingError(InputError):
    """A plan, study, trial or result that was asked for does not exist (yet)."""


class RunError(HpoError):
    """The work itself failed; everything finished until then is kept."""


class DeviceLostError(RunError):
    """The GPU does nothing more for this process; whoever started it is to start it again (EX_TEMPFAIL)."""

    exit_code = 75


class PointsFailedError(RunError):
    """Everything asked for has ended, and points failed for good; the text names them."""


class StorageError(RunError):
    """The database was away for too long, or takes no more writes; the lease gives the trial at hand back."""


class DatabaseGoneError(StorageError):
    """The file of the database is not where it was opened, or another one is."""


class TrialEnd(Exception):
    """Base of what ends a trial early inside a worker."""


class Interrupted(TrialEnd):
    """The worker was asked to stop in the middle of an epoch."""


class Diverged(TrialEnd):
    """A training or validation loss became infinite or NaN."""


class DeviceFull(TrialEnd):
    """The device's memory did not hold the trial beside others of the same process."""


class TrialLost(TrialEnd):
    """The trial was closed by somebody else: declared lost, or superseded by a lower number."""


MAX_NAMES = 20


def install(extra: str) -> str:
    """Return how what an extra brings is installed; hpo comes from its clone, not from PyPI."""
    return f"in hpo's clone: pip install -e '.[{extra}]'"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest known one, or the list of all.

    >>> did_you_mean("lr", ["learning_rate", "l2"])
    "did you mean 'learning_rate'?"
    """
    import difflib  # every command imports this module, and few have a mistake to explain

    names = list(known)
    if not names:
        return "there are none"
    close = difflib.get_close_matches(wrong.lower(), names, n=1, cutoff=0.6)
    if not close:
        close = [name for name in names if _initials(name) == wrong.lower()]
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:MAX_NAMES])
    return f"known: {shown}, …" if len(names) > MAX_NAMES else f"known: {shown}"


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.replace("-", "_").split("_") if word)
