"""The commands that only look: at a plan, its results, study files, pictures, or this machine.

Each imports what it needs when it runs: `hpo --help` loads neither torch nor optuna.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo._text import write_json
from hpo.cli import options as opt
from hpo.cli.completion import tracker_names
from hpo.cli.help import with_examples
from hpo.cli.output import say, waiting
from hpo.errors import DataError, InputError
from hpo.planning.defaults import Defaults

if TYPE_CHECKING:
    from hpo.planning.plan import Plan
    from hpo.training.saved_model import Prediction


@with_examples(
    ("hpo status", "Points done, running and open of every study, and the time left."),
    ("hpo status --watch --storage @database-url", "Watch a plan that other machines train."),
)
@click.option("--watch", "is_watch", is_flag=True, help="Look again every second, until no worker is left.")
@opt.database
@opt.as_json
def status(is_watch: bool, as_json: bool, **options: Any) -> None:
    """Show where every study stands, and the time left.

    With --watch and --json: a JSON line for every point that ends, study that decides, and the final stage.
    """
    plan = opt.open_plan(options, reader=True)
    if is_watch:
        from hpo.cli.live import watch

        progress = watch(plan, as_json=as_json)
        left = [study.status.name for study in progress.studies if not study.is_over]
        if left:
            said = f"nobody works on the plan, and nothing is queued; left: {', '.join(left)}"
            say(f"{said}; `hpo resume` trains it", err=True)
        if as_json or sys.stdout.isatty():  # where the last screen stays
            return
    _fail_stale_trials(plan, options)
    if as_json:
        from hpo.monitor.status import status as statuses

        studies = [record.to_json() for record in statuses(plan)]
        write_json({"name": plan.name, "studies": studies}, sys.stdout)
    else:
        from dataclasses import replace

        from rich.text import Text

        from hpo.cli.screen import headline
        from hpo.cli.tables import console, show_status
        from hpo.monitor.watch import Watch
        from hpo.planning.closing import budget_text
        from hpo.planning.reuse import of_other_plans

        with waiting("reading the plan"):
            progress = Watch(plan, plan.all_names).look()
        show_status([study.status for study in progress.studies], progress.objective)
        # the answer stands in the table already
        console().print(headline(replace(progress, test=None)))
        for said in (budget_text(plan), of_other_plans(plan)):
            if said:
                console().print(said)
        console().print(Text(f"plan {plan.name}, in {plan.storage.name}", "dim"), soft_wrap=True)


def _fail_stale_trials(plan: Plan, options: dict[str, Any]) -> None:
    """Put trials back whose worker is gone, so that `running` means what it says."""
    from concurrent.futures import wait

    from hpo.errors import RunError
    from hpo.planning.scheduler import fail_stale_trials
    from hpo.storage.outbox import PATIENCE_SECONDS, in_background

    if not any(plan.storage.running(plan.storage.study_id(name)) for name in plan.records()):
        return
    closed = in_background(lambda: fail_stale_trials(opt.open_plan(options), list(plan.records())))
    if not wait([closed], PATIENCE_SECONDS).done:
        why = "the database's lock is held, or this machine is busy"
        say(f"hpo status: {why}: stale trials are shown as running", err=True)
    elif isinstance(error := closed.exception(), RunError | InputError):
        # one who may only read is told what there is to read
        say(f"hpo status: stale trials could not be put back: {error}", err=True)
    elif error is not None:
        raise error


@with_examples(
    ("hpo show learning-rate", "All points of a study, and its decision."),
    ("hpo show learning-rate/2", "One trial whole, with its curves and, if it failed, the traceback."),
)
@opt.study_or_trial
@opt.costs
@opt.database
@opt.as_json
def show(study: str, costs: bool, as_json: bool, **options: Any) -> None:
    """Show the points of a study and its decision, or one trial whole.

    Of a trial: its configuration with where each value is from, its curves, attempts, hosts and notes.
    """
    from dataclasses import asdict

    from hpo.cli.tables import show_study, show_trial
    from hpo.monitor import results
    from hpo.monitor.status import study_audit
    from hpo.storage.queue import Queue

    plan = opt.open_plan(options, reader=True)
    if "/" in study:
        trial = results.detail(plan, *results.find_trial(plan, study))
        if as_json:
            write_json(trial.to_json(), sys.stdout)
        else:
            show_trial(plan, trial)
        return
    with waiting("reading the trials"):
        rows = results.rows(plan, study)
        record = plan.record(study)
        decision = record.decision
        queue = Queue(plan.storage, study)
        audit = study_audit(plan, decision, queue.slots())
        front = results.pareto_front(plan, study, record, plan.storage.outlines.of(queue.study_id))
    if as_json:
        write_json(
            {
                "study": study,
                "points": [row.to_json() for row in rows],
                "imported": [asdict(each) for each in results.imported(plan, study, rows)],
                "decision": decision.model_dump(mode="json") if decision else None,
                "superseded": [each.model_dump(mode="json") for each in record.superseded],
                "audit": asdict(audit) if audit else None,
                "front": front,
            },
            sys.stdout,
        )
    else:
        show_study(plan, study, rows, audit, with_costs=costs)


@with_examples(
    ("hpo best", "The configuration that the plan has come to, and where each value is from."),
    ("hpo best --json", "The same for other programs."),
)
@opt.database
@opt.as_json
def best(as_json: bool, **options: Any) -> None:
    """Show the best configuration so far, and why."""
    from hpo.cli.tables import show_best
    from hpo.monitor import results

    plan = opt.open_plan(options, reader=True)
    record = results.best(plan)
    if as_json:
        write_json(record, sys.stdout)
    else:
        show_best(record, plan)


@with_examples(
    ("hpo claims", "The verdict on each claim, and what the missing cells would cost."),
    (
        "hpo claims --studies my-claims",
        "Judge the claims in my-claims/claims.toml by what the plan has trained.",
    ),
)
@opt.claim_studies
@opt.database
@opt.as_json
def claims(studies: Path | None, as_json: bool, **options: Any) -> None:
    """Judge the plan's claims, and say what is missing.

    Claims stand in claims.toml beside the study files, or in these. `hpo run --claims` trains the cells that
    are missing.
    """
    from hpo.cli.tables import show_claims
    from hpo.planning.claims import judge
    from hpo.space.claim_file import load_claims

    plan = opt.open_plan(options, reader=True)
    stated = load_claims(studies, plan.specs, plan.schema) if studies is not None else None
    with waiting("reading the trials"):
        found = judge(plan, stated)
    if as_json:
        write_json(found.to_json(), sys.stdout)
    else:
        show_claims(found)


@with_examples(
    ("hpo compare learning-rate/0 learning-rate/2", "Two trials, seed by seed, on the validation part."),
    ("hpo compare hpo-out other-out", "Two plans by their final stages, on the test part."),
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--delta",
    type=opt.Finite(min=0),
    help="A difference below it does not matter.  [default: 0.005 of a share, which is half a point]",
)
@opt.database
@opt.as_json
def compare(first: str, second: str, delta: float | None, as_json: bool, **options: Any) -> None:
    """Show what differs between two trials or plans, and what it makes.

    B is compared with A. Two trials, as learning-rate/0 learning-rate/2, are compared on the validation part;
    two plans, as hpo-out other-out, by their final stages on the test part. Seeds that both have are paired.
    """
    from hpo.cli.tables import show_comparison
    from hpo.monitor.comparison import compare_trained

    found = compare_trained(first, second, lambda: opt.open_plan(options, reader=True), delta)
    if as_json:
        write_json(found.to_json(), sys.stdout)
    else:
        show_comparison(found)


@with_examples(
    (
        "hpo predict hpo-out/model.safetensors cat.jpg dog.jpg",
        "The class of two pictures, with its probability.",
    ),
    (
        "hpo predict hpo-out/model.safetensors photos --top 3 --csv > labels.csv",
        "The three most probable classes of every picture in a folder, as a table.",
    ),
)
@click.argument("model", type=opt.UserPath(is_file=True))
@click.argument("image", nargs=-1, required=True, type=opt.UserPath(), metavar="IMAGE|FOLDER…")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="So many classes of each picture, the most probable first.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a line a picture and class.")
@opt.as_json
def predict(model: Path, image: tuple[Path, ...], top: int, as_csv: bool, as_json: bool) -> int:
    """Classify pictures with the final model.

    MODEL is OUT/model.safetensors, which the final stage saved. Of a folder all pictures are taken, those in
    folders below it as well. A file that cannot be read is named and left out, and the exit code is 1 then.
    """
    if as_csv and as_json:
        raise InputError("--csv and --json exclude each other; leave one of them out")
    with waiting("loading the model"):
        from hpo.data.folder import pictures_below
        from hpo.training.saved_model import load_model

        paths = list[Path]()
        for given in image:
            found, n_others = pictures_below(given) if given.is_dir() else ([given], 0)
            paths += found
            if n_others:
                files = "1 file that is" if n_others == 1 else f"{n_others} files that are"
                say(f"{given}: left out {files} not named as pictures are", err=True)
        loaded, unreadable = load_model(model), list[DataError]()
    with waiting("classifying"):
        predictions = loaded.classify(paths, top, unreadable.append)
    for error in unreadable:
        say(f"left out {error}", err=True)
    if unreadable and not predictions:
        raise InputError("none of the files can be read as a picture")
    if as_csv:
        from hpo.monitor.export import write_csv

        rows = [
            {"image": str(each.path), "rank": rank, "label": label, "probability": probability}
            for each in predictions
            for rank, (label, probability) in enumerate(each.top, start=1)
        ]
        write_csv(rows, sys.stdout)
    elif as_json:
        write_json([_predicted(each, top) for each in predictions], sys.stdout)
    else:
        for each in predictions:
            said = ", ".join(f"{label} ({100 * probability:.1f} %)" for label, probability in each.top)
            say(f"{each.path}: {said}")
    return 1 if unreadable else 0


def _predicted(prediction: Prediction, top: int) -> dict[str, Any]:
    record = {
        "image": str(prediction.path),
        "label": prediction.label,
        "probability": prediction.probability,
    }
    if top == 1:
        return record
    listed = [{"label": label, "probability": probability} for label, probability in prediction.top]
    return {**record, "top": listed}


@with_examples(
    ("hpo export --rows epochs epochs.parquet", "A row for every epoch of every trial and seed."),
    ("hpo export --to mlflow", "Runs for MLflow, nested by study; given again, it adds what is new."),
)
@click.argument("file", required=False, type=opt.UserPath(), metavar="[FILE|FOLDER]")
@click.option(
    "--rows",
    type=click.Choice(["trials", "epochs"]),
    help="One row a trial, or one a trial, epoch and seed.  [default: trials]",
)
@click.option(
    "--to",
    "tracker",
    metavar="tensorboard|mlflow|wandb",
    shell_complete=tracker_names,
    help="Write runs for this tracker instead, into FOLDER.  [default: OUT/tensorboard, OUT/mlflow, OUT]",
)
@opt.database
@opt.as_json
def export(file: Path | None, rows: str | None, tracker: str | None, as_json: bool, **options: Any) -> None:
    """Write every trial as CSV, JSON or Parquet, or for a tracker.

    CSV on stdout, or into FILE, whose name says the format: .csv, .json or .parquet.

    With --to: a run a trial, below one a study, with the epochs' metrics, parameters, how it ended, and the
    decision. What is there already is not written again. MLflow and W&B take what their own environment
    variables say, as MLFLOW_TRACKING_URI and WANDB_MODE; W&B works offline where there is no login.
    """
    plan = opt.open_plan(options, reader=True)
    if tracker is not None:
        if rows is not None or as_json:
            given = "--json" if rows is None else f"--rows {rows}"
            raise InputError(f"--to {tracker} and {given} exclude each other; leave one of them out")
        _export_runs(plan, tracker, file, options["out"])
        return
    from hpo.monitor import export as records

    rows = rows or "trials"
    if file is not None:
        if as_json and file.suffix.lower() != ".json":
            raise InputError(f"--json and {file}: leave --json out, the file's name says the format")
        with waiting("reading the trials"):
            count = records.write_file(plan, rows, file)
        say(f"{file}: {count:,} {rows}")
        return
    write = write_json if as_json else records.write_csv
    with waiting("reading the trials"):
        found = records.ROWS[rows](plan)
    write(found, sys.stdout)


def _export_runs(plan: Plan, tracker: str, folder: Path | None, out: Path) -> None:
    with waiting("reading the trials") as tell:
        from hpo.reporting.trackers import export_runs

        tell(f"writing runs for {tracker}")
        written = export_runs(plan, tracker, folder, out)
    say(f"{written.place}: {written.text}")
    if written.then:
        say(written.then)


@with_examples(
    ("hpo report", "Write hpo-out/report/report.html, with tables and figures."),
    ("hpo report --out /mnt/plan --to page", "Of a plan in a folder that is not yours."),
)
@opt.database
@click.option(
    "--to",
    type=opt.UserPath(is_folder=True),
    metavar="FOLDER",
    help="Folder that gets it, where OUT cannot be written.  [default: OUT/report]",
)
def report(to: Path | None, **options: Any) -> None:
    """Write a page about the plan.

    With tables, figures and claims; also of a plan that is under way.
    """
    with waiting("writing the report"):
        from hpo.reporting import write_report

        page = write_report(opt.open_plan(options, reader=True), options["out"], to)
    say(str(page))


@with_examples(
    ("hpo dashboard --read-only --port 9000", "Of the plan in hpo-out; nobody can change it through that."),
    ("hpo dashboard ~/tuning", "Of all plans in a folder, by a page that lists them."),
)
@click.argument("place", required=False, metavar="[FOLDER|URL]", type=opt.StorageUrl())
@opt.database
@opt.server
def dashboard(
    place: str | None, host: str, port: int | None, read_only: bool, no_browser: bool, **options: Any
) -> int:
    """Serve optuna-dashboard on the plan, or on several.

    With notes, figures and pictures of its own; until stopped. With FOLDER or a database's URL: a page that
    lists the plans there, as `hpo list` does, and leads to the dashboard of each, on a port of its own.
    """
    import webbrowser

    with waiting("loading the dashboard"):
        from hpo.reporting.dashboard import is_loopback, serve, serve_many

    if not is_loopback(host):
        what = "look at this plan" if read_only else "look at this plan and write into its database"
        say(f"warning: --host {host}: there is no password, anyone who reaches it can {what}", err=True)

    def on_ready(address: str) -> None:
        say(address)
        say("Ctrl-C ends it", err=True)
        if sys.stdout.isatty() and not no_browser:
            webbrowser.open(address)

    stopped_by = (serve_many if place else serve)(
        place or opt.storage_url(options),
        options["out"],
        host=host,
        port=port,
        read_only=read_only,
        say=lambda text: say(f"hpo dashboard: {text}", err=True),
        on_ready=on_ready,
    )
    return 128 + stopped_by


@with_examples(
    (
        "hpo schema --recipe python:mine:Mlp > study.schema.json",
        "Of a recipe of yours; it holds for study files that begin with `#:schema study.schema.json`.",
    ),
    ("hpo schema", "Of the recipe that is shipped."),
)
@click.option(
    "--recipe",
    metavar="NAME",
    default=Defaults.recipe,
    show_default=True,
    help="Whose parameters may be searched: constrained-cnn | python:MODULE:CLASS.",
)
def schema(recipe: str) -> None:
    """Print the JSON schema of study files, for editors.

    Draft 2020-12: all keys, and the recipe's parameters with their types, bounds and defaults. Editors that
    know TOML, as by Even Better TOML or Taplo, complete and check study files by it.
    """
    with waiting("loading the recipe"):
        from hpo.planning.json_schema import study_file_schema
        from hpo.training.registry import load_recipe

        named = load_recipe(recipe)
    write_json(study_file_schema(named.name, named.recipe.schema, named.recipe.metrics), sys.stdout)


@with_examples(
    (
        "hpo plan --data folder:photos --seeds 3",
        "What would be trained on these pictures, and how long it would take.",
    ),
    ("hpo plan learning-rate --workers 4", "One study and the earlier ones it needs, on four workers."),
)
@opt.some_studies
@opt.plan_options
@opt.reuse
@opt.workers
@opt.costs
@opt.as_json
def plan(study: tuple[str, ...], costs: bool, as_json: bool, **options: Any) -> None:
    """Show what a run would train, and how long it takes.

    Points, seeds, epochs and predicted time; runs no trial, writes no database.
    """
    with waiting("reading the study files") as tell:
        from hpo.cli.tables import show_forecast
        from hpo.execution.plan_recipe import given_options, read_folder
        from hpo.planning.studies import with_ancestors

        studies = opt.studies(options)
        wanted, _, specs = read_folder(studies, given_options(studies, opt.given(options)))
        with_ancestors(specs, study, wanted.inherit)  # what is wrong is refused before torch is imported
        tell("loading PyTorch and the data")
        from hpo.execution.forecast import forecast

        lines = forecast(
            specs,
            wanted,
            workers=options["workers"],
            names=study,
            reuse=options["reuse"],
            with_costs=costs,
            tell=tell,
        )
    if as_json:
        write_json([line.to_json() for line in lines], sys.stdout)
    else:
        show_forecast(lines, wanted.budget)


@with_examples(
    ("hpo doctor", "Try database, data, checkpoints and devices of this machine."),
    (
        "hpo doctor --recipe python:mine:Mlp --data folder:photos",
        "Build your network and take a few steps, before a plan is made.",
    ),
)
@click.option(
    "--recipe", metavar="NAME", help="Try this recipe instead, constrained-cnn or python:MODULE:CLASS."
)
@click.option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where the recipe is tried.  [default: auto]")
@opt.database
@opt.checkpoints
@opt.doctor_data
@opt.as_json
def doctor(recipe: str | None, device: str | None, as_json: bool, **options: Any) -> int:
    """Try what a worker needs on this machine.

    Database, data, checkpoints and devices, which takes some seconds. Leaves nothing behind; only of a
    server's empty database it makes the tables.

    With --recipe: build its network, take a few steps on the data, and say what was found. Needs no plan.
    """
    if recipe is not None:
        _try_recipe(recipe, options["data"], device or "auto", as_json=as_json)
        return 0
    if device is not None:
        raise InputError(f"--device {device} goes with --recipe")
    with waiting("loading PyTorch"):
        from hpo.cli.tables import show_checks
        from hpo.execution.doctor import examine

    checks = examine(
        opt.storage_url(options),
        out=options["out"],
        checkpoints=options["checkpoints"],
        data=options["data"],
    )
    found = list(checks) if as_json else show_checks(checks)
    is_well = all(check.state != "wrong" for check in found)
    if as_json:
        write_json({"ok": is_well, "checks": [check.to_json() for check in found]}, sys.stdout)
    return 0 if is_well else 1


def _try_recipe(recipe: str, data: str | None, device: str, *, as_json: bool) -> None:
    with waiting(f"trying {recipe}"):
        from hpo.execution.doctor import try_recipe

        found = try_recipe(recipe, data, device, Defaults.precision)
    if as_json:
        write_json({"ok": True, **found.to_json()}, sys.stdout)
    else:
        from hpo.cli.tables import show_recipe

        show_recipe(found)
