"""The commands. Each imports what it needs when it runs: `hpo --help` loads neither torch nor optuna."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.cli import options as opt
from hpo.cli.text import message, say
from hpo.errors import HpoError, InputError
from hpo.text import printable, write_json

SERVER_START_SECONDS = 60.0

if TYPE_CHECKING:
    from hpo.crew import Engine
    from hpo.plan import Plan


def main() -> None:
    """Runs the command line and exits: 0 done, 1 a run failed, 2 bad input, 130/143 stopped by a signal."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    name = f"hpo {command}".strip()
    try:
        code = hpo.main(prog_name="hpo", standalone_mode=False)
    except HpoError as error:
        click.echo(message(f"{name}: {error}"), err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show(said := io.StringIO())
        click.echo("\n".join(map(printable, said.getvalue().rstrip().split("\n"))), err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hpo-studies", prog_name="hpo")
def hpo() -> None:
    """Tune a small network study by study; resumable, parallel, with verdicts that hold.

    `hpo demo` shows all of it in a minute or two. Everything lives in one database under --out;
    a stopped or killed run goes on with the same command.
    """


# --- working ---------------------------------------------------------------------------------------


@hpo.command()
@opt.plan_options
@opt.demo_out
@opt.storage
@opt.checkpoints
@opt.workers
@opt.as_json_lines
def demo(**options: Any) -> int:
    """Run the report's whole plan on scikit-learn's handwritten digits."""
    options["data"] = options["data"] or "digits"
    return _run((), options)


@hpo.command()
@click.argument("study", nargs=-1)
@opt.plan_options
@opt.out
@opt.storage
@opt.checkpoints
@opt.workers
@opt.engine
@opt.as_json_lines
def run(study: tuple[str, ...], **options: Any) -> int:
    """Run the plan, or only STUDY… and the earlier studies they need.

    Goes on where an earlier run stopped. Started several times on one --out, the runs share the work.
    """
    return _run(study, options)


@hpo.command()
@click.argument("study", nargs=-1)
@opt.out
@opt.storage
@opt.checkpoints
@opt.workers
@opt.engine
@opt.as_json_lines
def resume(study: tuple[str, ...], **options: Any) -> int:
    """Go on with a plan that exists; like `run`, but never creates one."""
    _read(options)  # MissingError where there is no plan
    return _run(study, options)


def _run(studies: tuple[str, ...], options: dict[str, Any]) -> int:
    from hpo.cli.live import watching
    from hpo.cli.tables import describe, show_outcome
    from hpo.results import remarks
    from hpo.run import open_plan, run, threads_each

    out, engine = options["out"], _engine(options)
    if sys.stderr.isatty():  # torch takes seconds to load, a first look at many pictures half a minute
        click.echo("loading data and plan …", err=True)
    plan = open_plan(
        out,
        storage=options["storage"],
        studies=options.get("studies"),
        names=studies,
        # a worker on a cluster may use the CPUs it asks for, however many there are here
        threads=threads_each(options["workers"])
        if options.get("engine", "local") == "local"
        else max(1, int(options["cpus_per_worker"] or 1)),
        given=opt.given(options),
    )
    reader = _read(options)
    say(describe(plan), err=True)
    for remark in remarks(plan):
        say(remark, err=True)
    with watching(reader, studies, as_json=options["as_json"]) as tick:
        stopped_by = run(
            plan,
            out=out,
            studies=studies,
            workers=options["workers"],
            checkpoints=options["checkpoints"],
            engine=engine,
            on_tick=tick,
        )
    if stopped_by is not None:
        click.echo("stopped; nothing is lost, the same command goes on", err=True)
        return 128 + stopped_by
    if not options["as_json"]:
        show_outcome(reader, out)
    return 0


@hpo.command()
@opt.plan_options
@opt.out
@opt.storage
@opt.workers
def create(**options: Any) -> None:
    """Write the plan into the database and train nothing."""
    from hpo.run import open_plan, threads_each

    plan = open_plan(
        options["out"],
        storage=options["storage"],
        studies=options["studies"],
        threads=threads_each(options["workers"]),
        given=opt.given(options),
    )
    say(f"{plan.storage.name}: {', '.join(plan.specs)}, then the final stage")
    click.echo("`hpo run` or `hpo worker` trains it")


@hpo.command()
@click.argument("study", nargs=-1)
@opt.out
@opt.storage
@opt.worker_data
@opt.checkpoints
@opt.limits
def worker(study: tuple[str, ...], **options: Any) -> int:
    """Serve a plan with one process until it has ended; as many as you like, on any machine."""
    import logging

    from hpo.storage import Storage
    from hpo.worker import Limits, work

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    stopped_by = work(
        # a job may start before its server does
        Storage(_storage_url(options), patience_seconds=SERVER_START_SECONDS),
        out=options["out"],
        studies=study,
        data=options["data"],
        checkpoints=options["checkpoints"],
        limits=Limits(options["idle_timeout"], options["max_trials"], options["deadline"]),
    )
    return 0 if stopped_by is None else 128 + stopped_by


@hpo.command()
@click.argument("study", nargs=-1)
@opt.out
@opt.storage
def retry(study: tuple[str, ...], **options: Any) -> None:
    """Queue the points that failed for good once more."""
    from hpo.advance import retry as queue_again
    from hpo.plan import FINAL, Plan
    from hpo.storage import Storage

    plan = Plan.open(Storage(_storage_url(options)))
    plan.with_ancestors(name for name in study if name != FINAL)
    count = queue_again(plan, study or None)
    click.echo(f"{count} queued again; `hpo run` trains them" if count else "nothing has failed for good")


# --- reading ---------------------------------------------------------------------------------------


@hpo.command()
@click.option("--watch", "is_watch", is_flag=True, help="Look again every second, until the plan has ended.")
@opt.out
@opt.storage
@opt.as_json
def status(is_watch: bool, as_json: bool, **options: Any) -> None:
    """Where every study stands.

    With --watch and --json: a JSON line for every point that ends, study that decides, and the final stage.
    """
    from hpo import results
    from hpo.cli.tables import show_status

    plan = _read(options)
    if is_watch:
        from hpo.cli.live import watch

        watch(plan, as_json=as_json)
        return
    _close_lost(plan, options)
    records = results.status(plan)
    if as_json:
        write_json({"studies": [_status_json(record.to_json()) for record in records]}, sys.stdout)
    else:
        show_status(records)


@hpo.command()
@click.argument("study")
@opt.out
@opt.storage
@opt.as_json
def show(study: str, as_json: bool, **options: Any) -> None:
    """The points of a study with their results, the decision, and what went wrong."""
    from hpo import results
    from hpo.cli.tables import show_study

    plan = _read(options)
    rows = results.rows(plan, study)
    if as_json:
        decision = plan.decision(study)
        write_json(
            {
                "study": study,
                "points": [row.to_json() for row in rows],
                "decision": decision.model_dump(mode="json") if decision else None,
            },
            sys.stdout,
        )
    else:
        show_study(plan, study, rows)


@hpo.command()
@opt.out
@opt.storage
@opt.as_json
def best(as_json: bool, **options: Any) -> None:
    """The best configuration decided so far, and the decisions that led to it."""
    from hpo import results
    from hpo.cli.tables import show_best

    record = results.best(_read(options))
    if as_json:
        write_json(record, sys.stdout)
    else:
        show_best(record)


@hpo.command()
@opt.out
@opt.storage
@opt.checkpoints
@opt.as_json
def final(as_json: bool, **options: Any) -> int:
    """The test set's answer; trains the final stage first if every study has decided."""
    from hpo import results
    from hpo.cli.tables import show_final

    plan = _read(options)
    undecided = [name for name in plan.specs if plan.decision(name) is None]
    if undecided:
        raise InputError(f"no final stage before every study has decided; open: {', '.join(undecided)}")
    if results.final_trial(plan) is None:
        code = _train_final(options)
        if code:
            return code
    record = results.final_result(plan)
    if as_json:
        write_json(record, sys.stdout)
    else:
        show_final(record)
    return 0


def _train_final(options: dict[str, Any]) -> int:
    from hpo.cli.live import watching
    from hpo.plan import Plan
    from hpo.run import run
    from hpo.storage import Storage

    with watching(_read(options), ()) as tick:
        stopped_by = run(
            Plan.open(Storage(_storage_url(options))),
            out=options["out"],
            workers=1,
            checkpoints=options["checkpoints"],
            on_tick=tick,
        )
    return 0 if stopped_by is None else 128 + stopped_by


@hpo.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("image", nargs=-1, required=True, type=click.Path(path_type=Path))
@opt.as_json
def predict(model: Path, image: tuple[Path, ...], as_json: bool) -> None:
    """Classify pictures with the model that the final stage saved."""
    from hpo.model import load_model

    predictions = load_model(model).classify(image)
    if as_json:
        write_json(
            [{"image": str(p.path), "label": p.label, "probability": p.probability} for p in predictions],
            sys.stdout,
        )
    else:
        for prediction in predictions:
            say(f"{prediction.path}: {prediction.label} ({100 * prediction.probability:.1f} %)")


@hpo.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--rows",
    type=click.Choice(["trials", "epochs"]),
    default="trials",
    show_default=True,
    help="One row a trial, or one a trial, epoch and seed.",
)
@opt.out
@opt.storage
@opt.as_json
def export(file: Path | None, rows: str, as_json: bool, **options: Any) -> None:
    """Every trial of the plan, as CSV on stdout or into FILE: .csv, .json or .parquet."""
    from hpo import records

    plan = _read(options)
    if file is not None:
        if as_json and file.suffix.lower() != ".json":
            raise InputError(f"--json and {file}: leave --json out, the file's name says the format")
        count = records.write_file(plan, rows, file)
        say(f"{file}: {count:,} {rows}")
        return
    write = write_json if as_json else records.write_csv
    write(records.ROWS[rows](plan), sys.stdout)


@hpo.command()
@opt.out
@opt.storage
def report(**options: Any) -> None:
    """Write OUT/report/: a page with tables, figures and conclusions; also of a plan that is under way."""
    from hpo.report import write_report

    page = write_report(_read(options), options["out"])
    say(str(page))


@hpo.command()
@opt.out
@opt.storage
@opt.server
def dashboard(host: str, port: int | None, read_only: bool, no_browser: bool, **options: Any) -> int:
    """Serve optuna-dashboard on the plan, with notes, figures and pictures of its own; until stopped."""
    import webbrowser

    from hpo.dashboard import is_loopback, serve

    if not is_loopback(host):
        what = "look at this plan" if read_only else "look at this plan and write into its database"
        say(f"warning: --host {host}: there is no password, everybody who reaches it can {what}", err=True)

    def on_ready(address: str) -> None:
        say(address)
        say("Ctrl-C ends it", err=True)
        if sys.stdout.isatty() and not no_browser:
            webbrowser.open(address)

    stopped_by = serve(
        _storage_url(options),
        options["out"],
        host=host,
        port=port,
        read_only=read_only,
        say=lambda text: say(f"hpo dashboard: {text}", err=True),
        on_ready=on_ready,
    )
    return 128 + stopped_by


@hpo.command()
@click.argument("study", nargs=-1)
@opt.plan_options
@opt.workers
@opt.as_json
def plan(study: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """What a run would train: points, seeds, epochs, predicted time. Runs no trial, writes no database."""
    from hpo.attributes import Options
    from hpo.cli.tables import show_forecast
    from hpo.forecast import forecast
    from hpo.plan import read_studies
    from hpo.spec import shipped_studies

    specs = read_studies(options["studies"] or shipped_studies())
    lines = forecast(specs, Options.from_given(opt.given(options)), workers=options["workers"], names=study)
    if as_json:
        write_json([line.to_json() for line in lines], sys.stdout)
    else:
        show_forecast(lines)


@hpo.command()
@click.argument("trial")
@opt.out
@opt.storage
def verify(trial: str, **options: Any) -> int:
    """Train TRIAL (STUDY/NUMBER) again from nothing: equal to the bit, or the first epoch that differs."""
    from hpo import results
    from hpo.verify import verify as train_again

    plan = _read(options)
    difference = train_again(plan, *results.find_trial(plan, trial))
    say(f"{trial}: {difference or 'equal to the bit in every epoch'}")
    return 1 if difference else 0


@hpo.command()
@opt.out
@opt.storage
@opt.checkpoints
@opt.worker_data
@opt.as_json
def doctor(as_json: bool, **options: Any) -> int:
    """Whether database, data, checkpoints and this machine are fit for work; leaves nothing behind."""
    from hpo.cli.tables import show_checks
    from hpo.doctor import examine

    checks = examine(
        _storage_url(options),
        out=options["out"],
        checkpoints=options["checkpoints"],
        data=options["data"],
    )
    is_well = all(check.state != "wrong" for check in checks)
    if as_json:
        write_json({"ok": is_well, "checks": [check.to_json() for check in checks]}, sys.stdout)
    else:
        show_checks(checks)
    return 0 if is_well else 1


# --- helpers -----------------------------------------------------------------------------------------


def _engine(options: dict[str, Any]) -> Engine:
    """Who places the workers.

    Raises:
        InputError: an option of Ray's without it.
    """
    from hpo.cluster import ray_cluster
    from hpo.crew import local_processes

    if options.get("engine", "local") == "ray":
        return ray_cluster(
            options["address"] or "auto", cpus=options["cpus_per_worker"], gpus=options["gpus_per_worker"]
        )
    for name in ("address", "cpus_per_worker", "gpus_per_worker"):
        if options.get(name) is not None:
            raise InputError(f"--{name.replace('_', '-')} {options[name]} goes with --engine ray")
    return local_processes


def _storage_url(options: dict[str, Any]) -> str:
    url: str | None = options["storage"]
    return url or f"sqlite:///{options['out'] / 'hpo.db'}"


def _read(options: dict[str, Any]) -> Plan:
    from hpo.plan import Plan
    from hpo.storage import Storage

    return Plan.open(Storage(_storage_url(options), reader=True))


def _close_lost(plan: Plan, options: dict[str, Any]) -> None:
    """Puts trials back whose worker is gone, so that `running` means what it says."""
    from hpo.advance import close_lost
    from hpo.errors import RunError
    from hpo.plan import Plan
    from hpo.storage import Storage

    if not any(plan.storage.running(plan.storage.study_id(name)) for name in plan.all_names):
        return
    try:
        close_lost(Plan.open(Storage(_storage_url(options))))
    except (RunError, InputError) as error:  # one who may only read is told what there is to read
        click.echo(f"hpo status: lost trials could not be put back: {error}", err=True)


def _status_json(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: record[key] for key in ("name", "section", "state", "points", "best", "inherited", "decision")
    }
