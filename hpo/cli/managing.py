"""The commands about plans as wholes: which there are, and what becomes of what is not needed any more.

None of them needs torch.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from hpo._text import bytes_text, write_json
from hpo.cli import options as opt
from hpo.cli.help import with_examples
from hpo.cli.output import say, waiting
from hpo.errors import InputError


@with_examples(
    ("hpo list", "The plans in this folder, and in those up to three below it."),
    ("hpo list ~/tuning --json", "Those of another folder, for other programs."),
)
@click.argument(
    "place",
    metavar="[FOLDER|URL]",
    type=opt.StorageUrl(),
    default=".",
    envvar="HPO_STORAGE",
)
@opt.as_json
def list(place: str, as_json: bool) -> None:
    """List the plans in a folder, or in a database.

    Name, state, studies that have decided, best value so far, the test set's answer, last sign of work and
    size on disk. Without an argument: of HPO_STORAGE, or of the current folder. What cannot be read is said,
    and the rest is listed.
    """
    with waiting("looking for plans"):
        from hpo.cli.tables import show_plans
        from hpo.monitor.plans import find_plans

        found = find_plans(place)
    if as_json:
        problems = [{"storage": storage, "problem": why} for storage, why in found.problems]
        write_json({"plans": [line.to_json() for line in found.plans], "problems": problems}, sys.stdout)
        return
    if found.plans:
        show_plans(found.plans, place)
    else:
        say(f"{place}: no plan here; `hpo run` or `hpo create` writes one", err=True)
    for storage, why in found.problems:
        say(f"left out {storage}: {why}", err=True)


@with_examples(
    ("hpo delete --out night", "Say what there is of the plan in the folder night, ask, and delete it."),
    (
        "hpo delete --storage @database-url --checkpoints s3://lab/photos --yes",
        "Delete a plan of a server, and its checkpoints, without a question.",
    ),
)
@opt.database
@opt.checkpoints
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
def delete(is_sure: bool, **options: Any) -> int:
    """Delete a plan, after a question.

    Its studies in the database, or the database's file; its checkpoints, and what hpo wrote into OUT: model,
    pictures, report, logs. Files of yours stay. Says what there is and how much before it asks. Refused while
    workers train for the plan.
    """
    with waiting("looking at the plan"):
        from hpo.cli.tables import show_holdings
        from hpo.execution.housekeeping import delete as delete_all
        from hpo.execution.housekeeping import holdings_of, refuse_where_workers_are

        plan = opt.open_plan(options, reader=True)
        refuse_where_workers_are(plan)
        holdings = holdings_of(plan, options["out"], options["checkpoints"])
    show_holdings(holdings)
    if not is_sure:
        if not sys.stdin.isatty():
            raise InputError("nobody can be asked here; --yes deletes it without a question")
        if not click.confirm("Delete all of it?"):
            say("nothing is deleted")
            return 0
    freed = bytes_text(sum(holdings.n_bytes.values()))
    with waiting("deleting"):
        delete_all(holdings)
    say(f"deleted {plan.name}: {freed}")
    return 0


@with_examples(
    ("hpo prune-checkpoints", "Of the plan in hpo-out, also while workers train for it."),
    (
        "hpo prune-checkpoints --storage @database-url --checkpoints s3://lab/photos",
        "Of a plan on a server, in the store that its workers share.",
    ),
)
@opt.database
@opt.checkpoints
def prune_checkpoints(**options: Any) -> None:
    """Remove checkpoints that nothing needs any more.

    Trials remove their own when they end. What was left behind, by workers that were killed just then or
    paused for long, goes by this command; what a trial resumes from stays, and so do the model and the
    pictures of the final stage.
    """
    with waiting("looking at the checkpoints"):
        from hpo.errors import RunError
        from hpo.execution.housekeeping import prune_checkpoints as prune
        from hpo.training.blobs import open_blobs

        plan = opt.open_plan(options, reader=True)
        place = options["checkpoints"] or options["out"] / "checkpoints"
        try:
            found = prune(plan, open_blobs(place))
        except OSError as error:
            raise RunError(f"{place}: {error.strerror or error}") from error
    if not found.freed:
        say("nothing to remove")
    for sizes, what in (
        (found.freed, "freed"),
        (found.kept, "kept, as trials resume from them"),
        (found.unknown, "left, as no trial of this plan names them"),
    ):
        if sizes:
            folders = "1 folder" if len(sizes) == 1 else f"{len(sizes)} folders"
            say(f"{bytes_text(sum(sizes.values()))} in {folders} {what}")
