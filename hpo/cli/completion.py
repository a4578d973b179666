"""What a shell completes: studies and trials of the plan that the words before name."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from hpo.errors import HpoError

if TYPE_CHECKING:
    from hpo.planning.plan import Plan


def study_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the studies whose names begin so: of the plan, or of the study files where there is none."""
    plan = _plan(context)
    return _beginning(incomplete, plan.specs if plan else _files(context))


def trial_names(context: click.Context, argument: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the trials of the one study that the text may mean, else the studies that it may become."""
    plan = _plan(context)
    if plan is None:
        return []
    study, slash, _ = incomplete.partition("/")
    names = [name for name in plan.records() if name == study or (not slash and name.startswith(study))]
    if len(names) != 1:
        return [CompletionItem(name) for name in names]
    found = {f"{names[0]}/{trial.number}": trial.state.name.lower() for trial in plan.trials(names[0])}
    return [CompletionItem(name, help=state) for name, state in found.items() if name.startswith(incomplete)]


def study_or_trial_names(
    context: click.Context, argument: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the studies and stages whose names begin so, and behind a slash the trials of that one."""
    if "/" in incomplete:
        return trial_names(context, argument, incomplete)
    plan = _plan(context)
    return _beginning(incomplete, plan.all_names if plan else _files(context))


def tracker_names(_: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the trackers whose names begin so."""
    from hpo.reporting.trackers import TRACKERS

    return _beginning(incomplete, TRACKERS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _plan(context: click.Context) -> Plan | None:
    """Return the plan; None where there is none, or nothing can be read: a shell is not told of errors."""
    with suppress(HpoError):
        from hpo.cli.options import storage_url
        from hpo.planning.plan import Plan
        from hpo.storage.storage import Storage

        return Plan.open(Storage(storage_url(context.params), reader=True))
    return None


def _files(context: click.Context) -> list[str]:
    from hpo.space.study_file import CLAIMS_FILE, PLAN_FILE, shipped_studies

    folder = context.params.get("studies") or shipped_studies()
    with suppress(OSError):
        return sorted(
            file.stem for file in folder.glob("*.toml") if file.name not in (PLAN_FILE, CLAIMS_FILE)
        )
    return []
