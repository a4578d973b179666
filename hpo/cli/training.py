"""The commands that train, or that make a plan or its points ready to be trained.

Each imports what it needs when it runs: `hpo --help` loads neither torch nor optuna.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import click

from hpo._process import without_garbage_collection
from hpo._text import params_text, printable, write_json
from hpo.cli import options as opt
from hpo.cli.advice import quoted
from hpo.cli.help import with_examples
from hpo.cli.output import say, waiting
from hpo.errors import InputError
from hpo.templates import SCHEMA_FILE, TEMPLATES, write_template

if TYPE_CHECKING:
    from hpo.execution.backends.base import OpenBackend
    from hpo.execution.run import Begin
    from hpo.planning.decisions import Decision
    from hpo.planning.plan import Plan


@with_examples(
    ("hpo init my-plan", "A network on images; `hpo run --studies .` in the folder trains it."),
    ("hpo init prices --template table", "A network on a table of numbers."),
)
@click.argument("folder", type=opt.UserPath(is_folder=True))
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default=next(iter(TEMPLATES)),
    show_default=True,
    help="; ".join(f"{name}: {text}" for name, text in TEMPLATES.items()) + ".",
)
def init(folder: Path, template: str) -> None:
    """Write a folder to begin with, which runs as it is.

    A recipe, two study files, plan.toml, a short README, and the schema by which editors complete study
    files.
    """
    files = write_template(template, folder)
    with waiting("writing the schema"), chdir(folder):
        from hpo.planning.json_schema import study_file_schema
        from hpo.planning.manifest import read_plan_file
        from hpo.training.registry import load_recipe

        named = load_recipe(read_plan_file(Path())["recipe"])
        with Path(SCHEMA_FILE).open("w", encoding="utf-8") as file:
            write_json(study_file_schema(named.name, named.recipe.schema, named.recipe.metrics), file)
        rmtree("__pycache__", ignore_errors=True)  # of loading the recipe
    say(f"{folder}: {', '.join([*files, SCHEMA_FILE])}")
    there = "" if folder.absolute() == Path.cwd() else f"cd {quoted(str(folder))} && "
    say(f"next: {there}hpo run --studies .")


@with_examples(
    (
        "hpo demo",
        "Run it all, in the folder hpo-demo; `hpo report --out hpo-demo` writes the page.",
    ),
    (
        "hpo demo --seeds 3 --confirm --out three",
        "Three seeds a point, and what was adopted tried again on fresh seeds.",
    ),
)
@opt.plan_options
@opt.plan_name
@opt.demo_database
@opt.checkpoints
@opt.workers
@opt.trials_per_device
@opt.as_json_lines
def demo(**options: Any) -> int:
    """Run the whole plan on scikit-learn's handwritten digits."""
    options["data"] = options["data"] or "digits"
    return _run((), options)


@with_examples(
    (
        "hpo run --data folder:photos --seeds 3",
        "Tune on the pictures in photos/train/CLASS/, three seeds a point.",
    ),
    (
        "hpo run learning-rate --recipe python:mine:Mlp --studies my-studies",
        "One study, and the earlier ones it needs, of a network of your own in mine.py.",
    ),
)
@opt.some_studies
@opt.plan_options
@opt.reuse
@opt.plan_name
@opt.database
@opt.checkpoints
@opt.workers
@opt.trials_per_device
@opt.deadline
@opt.engine
@opt.for_claims
@opt.as_json_lines
def run(study: tuple[str, ...], for_claims: bool, **options: Any) -> int:
    """Run the plan, or only STUDY… and the earlier studies they need.

    Continues where an earlier run stopped. Several runs on one --out share the work.
    """
    return _run_for_claims(study, options) if for_claims else _run(study, options)


def _run_for_claims(studies: tuple[str, ...], options: dict[str, Any]) -> int:
    """Train the cells that the plan's claims lack, and say what is shown of these then."""
    from hpo.planning.plan import CLAIMS

    if studies:
        raise InputError(f"--claims and {studies[0]}: the cells of all claims are trained, without any study")
    opt.open_plan(options, reader=True)  # MissingError where there is no plan
    return _run((CLAIMS,), options, for_claims=True)


@with_examples(
    ("hpo resume", "Go on with the plan in hpo-out/ until it has ended."),
    ("hpo resume learning-rate --workers 2", "Only one study and the earlier ones it needs, on two workers."),
)
@opt.some_studies
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.workers
@opt.trials_per_device
@opt.deadline
@opt.engine
@opt.as_json_lines
def resume(study: tuple[str, ...], **options: Any) -> int:
    """Resume a plan that exists.

    Like `run`, but never creates one.
    """
    opt.open_plan(options, reader=True)  # MissingError where there is no plan
    return _run(study, options)


def _run(
    studies: tuple[str, ...], options: dict[str, Any], *, is_shown: bool = True, for_claims: bool = False
) -> int:
    with ExitStack() as stack:
        with waiting("loading data and plan"):
            prepare, begin, engine = stack.enter_context(_means(studies, options))
            from hpo.cli.advice import advise_without, command
            from hpo.cli.live import watching
            from hpo.cli.tables import describe, show_claims, show_outcome, stopped_text
            from hpo.errors import PointsFailedError
            from hpo.execution.run import run
            from hpo.planning.claims import judge
            from hpo.planning.compatibility import unshared_checkpoints
            from hpo.planning.plan import CLAIMS

            out, plan_studies = options["out"], opt.studies(options)
            plan, remarks = prepare(
                out,
                storage=options["storage"],
                studies=plan_studies,
                names=studies,
                given=opt.given(options),
                for_claims=for_claims,
                reuse=options.get("reuse"),
            )
            plan = plan.named(options.get("name"))
            reader = opt.open_plan(options, reader=True)
        if options["data"] in (None, plan.options.data):
            advise_without("data")  # the plan knows
        say(describe(plan), err=True)
        unshared = unshared_checkpoints(plan, out, options["checkpoints"])
        for remark in [*remarks, *([unshared] if unshared else [])]:
            say(remark, err=True)
        try:
            with watching(reader, studies, as_json=options["as_json"]) as tick:
                stopped_by = run(
                    plan,
                    out=out,
                    studies=studies,
                    workers=options["workers"],
                    trials_per_device=options["trials_per_device"],
                    checkpoints=options["checkpoints"],
                    data=options["data"],
                    begin=begin,
                    deadline_seconds=options.get("deadline"),
                    engine=engine,
                    on_tick=tick,
                )
        except PointsFailedError:
            if is_shown and not options["as_json"]:
                show_outcome(reader, out)
            raise
        if stopped_by is not None:
            for line in (stopped_text(tick.last), f"resume: {command('resume', *studies)}"):
                say(line, err=True)
            return 128 + stopped_by
        if is_shown and not options["as_json"]:
            if studies == (CLAIMS,) and plan.has_cells:
                show_claims(judge(reader))
            else:
                show_outcome(reader, out)
        return 0


@contextmanager
def _means(
    studies: tuple[str, ...], options: dict[str, Any]
) -> Iterator[tuple[Callable[..., tuple[Plan, list[str]]], Begin, OpenBackend]]:
    """Yield what prepares the plan, what begins its work, and who places the workers.

    Raises:
        InputError: an option of Ray's without it.
    """
    if find_spec("torch") is None:  # a process that is started could not say so in words
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    from hpo.execution.run import begin_work, prepare_plan, threads_each

    cpus, gpus = options.get("cpus_per_worker"), options.get("gpus_per_worker")
    if options.get("engine", "local") == "ray":
        from hpo.execution.backends.ray import ray_cluster

        # a worker on a cluster may use the CPUs it asks for, however many there are here
        prepare = partial(prepare_plan, threads=max(1, int(cpus or 1)))
        yield prepare, begin_work, ray_cluster(options["address"] or "auto", cpus=cpus, gpus=gpus)
        return
    for name in ("address", "cpus_per_worker", "gpus_per_worker"):
        if options.get(name) is not None:
            raise InputError(f"--{name.replace('_', '-')} {options[name]} goes with --engine ray")
    from hpo.execution.forked_run import local_means

    threads = threads_each(options["workers"])
    with local_means(options["out"], studies, options["trials_per_device"], threads) as means:
        yield means


@with_examples(
    ("hpo create --data folder:photos", "Write the plan into hpo-out/hpo.db; `hpo run` trains it later."),
    (
        "hpo create --storage postgresql+psycopg://lab/photos --workers 8",
        "A plan that machines of eight workers each will train.",
    ),
)
@opt.plan_options
@opt.reuse
@opt.plan_name
@opt.database
@opt.planned_workers
def create(**options: Any) -> None:
    """Write the plan into the database and train nothing."""
    with waiting("loading data"):
        from hpo.cli.advice import advise_without
        from hpo.execution.run import find_or_create_plan, threads_each
        from hpo.planning.reuse import of_other_plans

        plan = find_or_create_plan(
            options["out"],
            storage=options["storage"],
            studies=opt.studies(options),
            threads=threads_each(options["workers"]),
            given=opt.given(options),
            reuse=options["reuse"],
        )
        plan = plan.named(options.get("name"))
    for note in plan.identity.data_notes:
        say(f"data: {note}", err=True)
    if found := of_other_plans(plan):
        say(found, err=True)
    if options["data"] in (None, plan.options.data):
        advise_without("data")  # the plan knows
    then = "then the confirmation and the final stage" if plan.confirms else "then the final stage"
    say(f"{plan.name}, in {plan.storage.name}: {', '.join(plan.specs)}, {then}")
    say("`hpo run` or `hpo worker` trains it")


@with_examples(
    (
        "hpo worker --storage @database-url --checkpoints s3://lab/photos",
        "Train for a plan on another machine; the file database-url holds the database's URL.",
    ),
    ("hpo worker --deadline 7h", "Stop in seven hours; the trial under way goes back to the queue."),
)
@opt.some_studies
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.trials_per_device
@opt.limits
def worker(study: tuple[str, ...], **options: Any) -> int:
    """Train for a plan until it has ended.

    One process; start as many as you like, on any machine that reaches database and checkpoints.
    """
    import logging

    with (
        waiting("loading PyTorch"),
        without_garbage_collection(),
    ):  # it takes a seventh of the 2 s that torch takes, and finds none
        from hpo.execution.worker import Limits, work
        from hpo.storage.storage import RETRY_SECONDS, Storage

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    stopped_by = work(
        # a job may start before its server does
        Storage(opt.storage_url(options), patience_seconds=RETRY_SECONDS),
        out=options["out"],
        studies=study,
        data=options["data"],
        checkpoints=options["checkpoints"],
        limits=Limits(options["idle_timeout"], options["max_trials"], options["deadline"]),
        trials_per_device=options["trials_per_device"],
    )
    return 0 if stopped_by is None else 128 + stopped_by


@with_examples(
    (
        "hpo submit --slurm --workers 16 --storage @database-url",
        "Sixteen tasks of four hours, which come again until the plan has ended.",
    ),
    ("hpo submit --slurm --partition gpu --gpus 1 --time 1d", "Tasks with a GPU each, a day long."),
)
@opt.some_studies
@opt.slurm
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.trials_per_device
def submit(
    study: tuple[str, ...],
    n_workers: int,
    partition: str | None,
    time: float,
    cpus: int | None,
    gpus: int | None,
    **options: Any,
) -> None:
    """Submit workers to SLURM, as an array job.

    For a plan that exists, on a database server; OUT is in a folder that all nodes share. A task whose time
    is up, or that is preempted, puts its trial back, and is queued again until the plan has ended. sbatch's
    own variables, as SBATCH_ACCOUNT, hold here too. Needs submitit.
    """
    from hpo.cli.advice import command
    from hpo.execution.backends.worker_spec import WorkerSpec
    from hpo.execution.submission import slurm_folder
    from hpo.execution.submission import submit as submit_workers

    plan, out = opt.open_plan(options, reader=True), options["out"]
    if study:
        plan.with_ancestors(study)  # refuses unknown names
    spec = WorkerSpec.of(
        plan, out, study, options["checkpoints"], options["data"], options["trials_per_device"]
    )
    with waiting("submitting"):
        jobs = submit_workers(
            spec,
            plan.name,
            n_workers=n_workers,
            seconds=time,
            partition=partition,
            cpus=cpus,
            gpus=gpus,
        )
    say(f"submitted: {jobs[0]}" + (f" to {jobs[-1]}" if len(jobs) > 1 else ""))
    array = jobs[0].partition("_")[0]
    say(f"watch: {command('status', '--watch')}; squeue --job {array}; logs in {slurm_folder(out)}", err=True)
    say(f"end: scancel {array}", err=True)


@with_examples(
    ("hpo confirm", "Try what the plan in hpo-out/ adopted again, on fresh seeds."),
    (
        "hpo confirm --keep equivalent --delta 0.01",
        "Keep what is shown to differ by less than a point, too.",
    ),
)
@opt.of_confirmation
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.workers
@opt.trials_per_device
@opt.engine
@opt.as_json
def confirm(as_json: bool, **options: Any) -> int:
    """Try again, on fresh seeds, what was adopted.

    Once every study has decided, and before the test set is opened: the configuration that they chose is
    compared with itself without each adopted decision, on seeds that the search did not use. What is not
    shown to be better is taken back, and the final stage trains what is left. Seeds are spent only where a
    decision is open, from 4 to 20 of them.
    """
    from hpo.cli.tables import show_confirmation
    from hpo.monitor.results import confirmation
    from hpo.planning.plan import CONFIRM

    plan = opt.open_plan(options, reader=True)
    _refuse_undecided(plan, "confirmation")
    if plan.confirms:
        from hpo.planning.compatibility import check_compatible

        check_compatible(plan, opt.given(options, "data"))
    else:
        opt.open_plan(options).with_confirmation(opt.given(options, "data"))
        plan = opt.open_plan(options, reader=True)
    if plan.record(CONFIRM).confirmation is None:
        code = _run((CONFIRM,), {**options, "studies": None, "as_json": False}, is_shown=False)
        if code:
            return code
    if as_json:
        write_json(confirmation(plan).to_json(), sys.stdout)
    else:
        show_confirmation(plan)
    return 0


@with_examples(
    ("hpo finish", "Time is up: decide by what is trained so far, and open the test set."),
    ("hpo finish l2", "Close one study; a run that is under way goes on with the next."),
)
@opt.some_studies
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.trials_per_device
@opt.as_json_lines
def finish(study: tuple[str, ...], **options: Any) -> int:
    """Close STUDY… now, or the whole plan, and decide by what there is.

    No more points are begun, and what is running ends after its epoch. A study without a result keeps what
    it inherits. The whole plan then ends with its final stage. May be given while others work on the plan.
    """
    from hpo.planning.closing import finish as close_all

    plan = opt.open_plan(options)
    before = [name for name in plan.with_ancestors(study) if name not in study] if study else []
    closed = close_all(plan, study or plan.all_names)
    say(f"closed: {', '.join(closed)}" if closed else "nothing is open", err=True)
    waits_for = [name for name in before if plan.decision(name) is None]
    if waits_for:
        say(f"decided after {', '.join(waits_for)}", err=True)
        return 0
    return _run(study, {**options, "workers": 1})


@with_examples(
    ("hpo price", "Spend a tenth of what the search took, and say what was missed at most."),
    ("hpo price --share 0.5", "Spend more, for a bound that is closer; what was trained before counts."),
)
@opt.share
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.workers
@opt.trials_per_device
@opt.engine
@opt.as_json
def price(share: float, as_json: bool, **options: Any) -> int:
    """Bound what going study by study has missed.

    Study by study a plan never sees what studies have only together. Points that cross them, combinations of
    points of all studies, are drawn at random and trained at the search's own seeds; from all that was
    trained follows how much was missed at most. No decision changes, and the test set stays as it is: this
    can come before the final stage or after it.
    """
    from hpo.cli.tables import show_price
    from hpo.planning.crossing import open_price
    from hpo.planning.plan import PRICE

    reader = opt.open_plan(options, reader=True)
    _refuse_undecided(reader, "price")
    with waiting("drawing points across studies"):
        from hpo.execution.plan_recipe import with_costs, with_recipe

        open_price(with_costs(with_recipe(opt.open_plan(options))), share)
    record = reader.record(PRICE)
    if record.price is None or record.price.n_tried != record.n_points:
        code = _run((PRICE,), {**options, "studies": None, "as_json": False}, is_shown=False)
        if code:
            return code
    found = reader.record(PRICE).price
    assert found is not None  # as soon as all points have ended
    if as_json:
        write_json(found.to_json(), sys.stdout)
    else:
        show_price(found, reader.objective)
    return 0


@with_examples(
    ("hpo retry", "Queue all points again that failed for good."),
    ("hpo retry learning-rate && hpo run", "Those of one study, and train them."),
)
@opt.some_studies
@opt.database
def retry(study: tuple[str, ...], **options: Any) -> None:
    """Queue the points that failed for good once more."""
    from hpo.planning.plan import FINAL
    from hpo.planning.scheduler import retry as queue_again

    plan = opt.open_plan(options)
    plan.with_ancestors(name for name in study if name != FINAL)  # refuses unknown names
    again, hopeless = queue_again(plan, study or list(plan.records()))
    if again:
        say(f"queued again: {', '.join(again)}; `hpo run` trains them")
    else:
        say("no point has failed for good")
    if hopeless:
        say(f"diverged, and would diverge again: {', '.join(hopeless)}")


@with_examples(
    (
        'hpo discard learning-rate/2 --reason "the disk was full"',
        "Have learning-rate decide anew without its trial 2.",
    ),
    ('hpo discard l2/0 --reason "wrong labels" --out night', "The same in another plan's folder."),
)
@opt.one_trial
@click.option("--reason", required=True, help="Why it is not to count; kept with the study.")
@opt.database
def discard(trial: str, reason: str, **options: Any) -> None:
    """Leave a trial out of what its study decides.

    TRIAL is STUDY/NUMBER. It stays in the database, with the reason, and is not trained again. The study
    decides anew, and shows the old decision as superseded. Refused once anything was trained on top of it.
    """
    from hpo.monitor import results
    from hpo.planning.revision import discard as leave_out

    plan = opt.open_plan(options)
    name, found = results.find_trial(plan, trial)
    _decide_anew(plan, name, leave_out(plan, name, found, reason))


@with_examples(
    ("hpo extend learning-rate learning_rate=1e-05", "Try one more learning rate."),
    (
        "hpo extend l2 l2=1e-06,1e-01 --out night",
        "Two values at once, of the plan in the folder night.",
    ),
)
@opt.one_study
@click.argument("value", nargs=-1, required=True, metavar="PARAM=VALUE…")
@opt.database
def extend(study: str, value: tuple[str, ...], **options: Any) -> None:
    """Try further values of a grid.

    As `hpo extend learning-rate learning_rate=1e-05`; several by commas. Nothing is trained twice: the points
    so far keep their results, and the study decides anew once the new ones have ended. Once anything was
    trained on top of its decision, that stays, and a new study is made from it, learning-rate-2, which takes
    over what learning-rate has trained.
    """
    from hpo.planning.plan import FINAL
    from hpo.planning.revision import extend as add_values
    from hpo.space.axes import read_assignment, read_values

    values: dict[str, list[object]] = {}
    for param, text in map(read_assignment, value):
        values.setdefault(param, []).extend(read_values(text))
    made = add_values(opt.open_plan(options), study, values)
    if not made.on_top:
        if made.before is not None:
            say(f"before: {made.before.text}")
        say("`hpo run` trains the new points, and nothing twice; the study decides anew after them")
        return
    say(f"{study} keeps its decision, as {', '.join(made.on_top)} started from it")
    say(f"made {made.study}: {study} with the new values, which takes over what {study} has trained")
    say(f"`hpo run {made.study}` trains the new points alone")
    if FINAL in made.on_top:
        say(
            "the final stage has begun, and stays as it is; to have the test set's answer for what "
            f"{made.study} decides, put the values into {study}.toml and start anew with another --out"
        )
    else:
        say(
            "the final stage takes the best of what the last studies of the plan decide, "
            f"{made.study} among them"
        )


@with_examples(
    (
        "hpo import old.csv size",
        "A row a point: columns named as the parameters that size searches, and macro_f1.",
    ),
    (
        "hpo import sqlite:///old.db size --optuna-study resnet --train-first 3",
        "Points of an Optuna study; the three best are trained first.",
    ),
)
@click.argument("source", metavar="FILE|URL", type=opt.PointsSource())
@opt.maybe_study
@click.option(
    "--optuna-study", metavar="NAME", help="Which of the Optuna studies there.  [default: the only one]"
)
@click.option(
    "--train-first",
    type=click.IntRange(0, 100),
    default=1,
    show_default=True,
    metavar="N",
    help="So many of the best are trained, before the study samples further.",
)
@opt.database
def import_(
    source: str, study: str | None, optuna_study: str | None, train_first: int, **options: Any
) -> None:
    """Have a study learn from points that others measured.

    FILE is a CSV table, or a SQLite or journal file of Optuna's; URL is that of Optuna's storage, or @FILE
    that holds it. STUDY is one that samples, and may be left out where the plan has but one. The points are
    no trials: its sampler learns from them, and none of them can win: what wins, this plan has trained.
    """
    from hpo.planning.known_points import check_importable, import_points, read_points, sampled_study

    plan = opt.open_plan(options)
    name = sampled_study(plan) if study is None else plan.with_ancestors([study])[-1]
    check_importable(plan, name)
    with waiting("reading the points"):
        found = read_points(plan, name, source, optuna_study)
    n_new = import_points(plan, name, found.points, train_first)
    n_known = len(found.points) - n_new  # from an earlier import, or an earlier row
    known = f", {n_known:,} of them known already" if n_known else ""
    say(f"{name}: {len(found.points):,} points imported{known}; its sampler learns from them")
    best = max(found.points, key=lambda point: plan.objective.score(point.value))
    value = plan.objective.with_unit(best.value)
    say(f"best: {plan.objective.label} {value} at {params_text(best.params)} ({best.origin})")
    n_first = len(plan.record(name).trained_first)
    if n_first:
        say(f"points that are trained besides those it draws: {n_first}; only what this plan trains can win")
    if found.unfinished:
        say(f"left out: {found.unfinished:,} without a result, or without these parameters", err=True)
    if found.outside:
        say(f"left out: {len(found.outside):,} outside of the search, as {found.outside[0]}", err=True)
    if found.unused:
        say(f"columns that were not used: {', '.join(found.unused)}", err=True)


def _decide_anew(plan: Plan, name: str, before: Decision | None) -> None:
    with waiting("deciding anew"):
        from hpo.execution.plan_recipe import with_costs, with_recipe
        from hpo.planning.scheduler import advance

        if before is not None:
            advance(with_costs(with_recipe(plan)), plan.with_ancestors([name]))
        after = plan.decision(name)
    if before is not None:
        say(f"before: {before.text}")
    say(f"now: {after.text}" if after else f"{name} has not decided; `hpo run` trains what is open")


@with_examples(
    ("hpo final", "Show the test set's answer; train the final stage before it if need be."),
    ("hpo final --json", "The same for other programs."),
)
@opt.database
@opt.worker_data
@opt.checkpoints
@opt.as_json
def final(as_json: bool, **options: Any) -> int:
    """Show the test set's answer; train it first if need be.

    Once every study has decided: the final stage is trained unless it has been.
    """
    from hpo.cli.tables import show_final
    from hpo.monitor import results

    plan = opt.open_plan(options, reader=True)
    _refuse_undecided(plan, "final stage")
    if results.final_trial(plan) is None:
        of_one = {"studies": None, "workers": 1, "trials_per_device": None, "as_json": False}
        code = _run((), {**options, **of_one}, is_shown=False)
        if code:
            return code
    record = results.final_result(plan)
    if as_json:
        write_json(record, sys.stdout)
    else:
        show_final(record, plan)
    return 0


def _refuse_undecided(plan: Plan, what: str) -> None:
    from hpo.planning.scheduler import is_orphaned

    undecided = [name for name in plan.specs if plan.decision(name) is None and not is_orphaned(plan, name)]
    if undecided:
        raise InputError(
            f"no {what} before every study has decided; open: {', '.join(undecided)}; "
            "`hpo resume` trains them"
        )


@with_examples(
    ("hpo verify learning-rate/0", "Train a trial again; its epochs must have the same bits."),
    (
        "hpo verify final/0 --data folder:/mnt/photos",
        "The final stage, where the data are in another place here.",
    ),
)
@opt.one_trial
@opt.database
@opt.worker_data
def verify(trial: str, **options: Any) -> int:
    """Train TRIAL again and compare every bit.

    TRIAL is STUDY/NUMBER. Says that all epochs are equal, or the first that differs.
    """
    from hpo.monitor import results
    from hpo.planning.reuse import ORIGIN_KEY, is_from_another_plan, origins_text

    plan = opt.open_plan(options, reader=True)
    found = results.find_trial(plan, trial)  # what is not there is refused before torch is imported
    with waiting(f"training {printable(trial)} again"):
        from hpo.execution.verify import verify as train_again

        difference = train_again(plan, *found, options["data"])
    origins = origins_text(found[1].user_attrs.get(ORIGIN_KEY, ()))
    how = "taken over" if is_from_another_plan(found[1]) else "taken over in part"
    origin = f"; {how} from {origins}" if origins else ""
    say(f"{trial}: {difference or 'equal to the bit in every epoch'}{origin}")
    return 1 if difference else 0
