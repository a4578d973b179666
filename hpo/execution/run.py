"""`hpo run`: a plan is written or found, and worked on until it has ended."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hpo._files import write_durably
from hpo._process import n_cores, refuse_nested_run
from hpo.data.sources import absolute_source
from hpo.errors import (
    MAX_NAMES,
    ConflictError,
    InputError,
    MissingError,
    RunError,
    StudyFileError,
)
from hpo.execution.backends.base import OpenBackend
from hpo.execution.backends.local import local_processes
from hpo.execution.backends.worker_spec import WorkerSpec
from hpo.execution.identity import Resolve, identify, resolve_here
from hpo.execution.plan_data import load_plan_data
from hpo.execution.plan_recipe import (
    given_options,
    read_folder,
    recipe_of,
    record_of,
    with_costs,
    with_recipe,
)
from hpo.execution.supervisor import supervise
from hpo.monitor.results import final_result, final_trial
from hpo.monitor.status import remarks
from hpo.planning.claims import open_cells, store_claims
from hpo.planning.closing import MAX_FINAL_SHARE, final_seconds, finish
from hpo.planning.compatibility import (
    check_compatible,
    check_sqlite_is_local,
    check_versions,
    with_more_trials,
)
from hpo.planning.plan import CONFIRM, MODEL, WRONG_IMAGES, Plan
from hpo.planning.reuse import Elsewhere, Setting
from hpo.planning.scheduler import advance, fail_stale_trials, require_result, waiting_again
from hpo.planning.studies import (
    Studies,
    check_epochs,
    published_config,
    with_ancestors,
)
from hpo.space.claim_file import Claims, load_claims
from hpo.space.schema import Schema
from hpo.space.study_file import StudySpec, shipped_studies
from hpo.storage.database import default_url, exclusive
from hpo.storage.storage import Storage
from hpo.training.blobs import BlobStore, open_blobs

log = logging.getLogger(__name__)

Begin = Callable[[Plan, Sequence[str] | None, str | None], tuple[bool, list[str]]]
"""`begin_work`, or what does the same elsewhere."""


def find_or_create_plan(
    out: Path,
    *,
    storage: str | None = None,
    studies: Studies | None = None,
    names: Sequence[str] = (),
    threads: int = 1,
    given: Mapping[str, Any] | None = None,
    reuse: str | None = None,
    resolve: Resolve = resolve_here,
) -> Plan:
    """Find the plan of an output folder or database, or write it.

    Args:
        out: output folder.
        storage: database URL; default `out/hpo.db`.
        studies: folder of study files, or what the file of a single one would hold; default the shipped ones.
            They must agree with a plan that exists, but may ask for more trials of a sampled study that has
            not decided.
        names: studies that are going to be asked for, to be checked before anything is written.
        threads: threads that every worker is going to train with.
        given: the options that the user gave, of those in `Options`.
        reuse: output folder or database URL of a plan whose results are taken over where they are the same to
            the bit.
        resolve: says what device, precision and kernels of a new plan mean here.

    Raises:
        InputError: something given cannot be used, or contradicts the plan that is there; or an import or a
            worker called this.
    """
    refuse_nested_run()
    given = given_options(studies, given or {})
    url = default_url(out) if storage is None else storage
    plan = existing_plan(url)
    if plan is not None:
        plan = _agreeing(plan, studies, names, given)
        if reuse is not None:
            Elsewhere.open(reuse, Setting.of(plan), url).copy_into(plan.storage)
        return plan
    options, named, specs = read_folder(studies, given)
    claims = _claims(studies or shipped_studies(), specs, named.recipe.schema)
    # everything that can be refused is refused before anything is written: a mistake must leave no plan
    with_ancestors(specs, (name for name in names if not options.confirm or name != CONFIRM), options.inherit)
    if options.inherit == "published":
        for study in specs.values():
            if study.inherits is not None:
                published_config(specs, study.inherits, options.set)
    check_epochs(specs, options.epochs)
    record = record_of(named)
    record.objective(options.metric)  # refuses a metric that the recipe has not
    identity = identify(options, threads, specs, resolve)
    setting = Setting(options, identity, record, named.recipe.schema)
    if options.keep_checkpoints and named.recipe.may_read_epochs:
        log.warning(
            "--keep-checkpoints: recipe %s does not say reads_epochs = False, so longer trainings will begin "
            "anew; say it now if an epoch does not depend on how many there are: it changes the recipe",
            named.name,
        )
    elsewhere = None if reuse is None else Elsewhere.open(reuse, setting, url)
    database = Storage(url, create=True)
    if elsewhere is not None:
        elsewhere.copy_into(database)
    # another process may have been quicker while the data were read
    with nullcontext() if Plan.find(database) else exclusive(url):
        plan = Plan.find(database)
        if plan is None:
            return with_recipe(Plan.create(database, specs, options, identity, record, claims))
    plan = with_recipe(plan)
    check_compatible(plan, given, specs, _where(studies or shipped_studies()))
    store_claims(plan, claims)
    return with_more_trials(plan, specs)


def _claims(studies: Studies, specs: Mapping[str, StudySpec], schema: Schema) -> Claims:
    return load_claims(studies, specs, schema) if isinstance(studies, Path) else Claims()


def _where(studies: Studies | None) -> Path | str | None:
    """Return what errors name studies by."""
    return "what was asked for" if isinstance(studies, Mapping) else studies


def _agreeing(plan: Plan, studies: Studies | None, names: Sequence[str], given: Mapping[str, Any]) -> Plan:
    """Return a plan that exists, after a check that what was given agrees with it."""
    check_compatible(plan, given)
    specs = None
    if studies is not None:  # else nobody has asked for the shipped ones, which may be another recipe's
        recorded = {"recipe": plan.recipe.name, "set": plan.options.set}
        _, _, specs = read_folder(studies, {**given, **recorded}, plan)
    plan = with_recipe(plan)
    check_compatible(plan, given, specs, _where(studies))
    if isinstance(studies, Path) and specs is not None:
        store_claims(plan, _claims_for(plan, studies, specs))
    plan.with_ancestors(names)
    if given.get("data", plan.options.data) != plan.options.data:
        load_plan_data(plan, given["data"])
    return plan if specs is None else with_more_trials(plan, specs)


def _claims_for(plan: Plan, studies: Path, specs: Mapping[str, StudySpec]) -> Claims:
    try:
        return load_claims(studies, specs, plan.schema)
    except StudyFileError:
        # raises the same where it is a mistake in the files
        load_claims(studies, specs, recipe_of(plan).recipe.schema)
        raise ConflictError(
            f"{studies}: its claims are about parameters that the recipe did not have when the plan in "
            f"{plan.storage.name} was created; leave --studies out to go on, or start anew with another --out"
        ) from None


def existing_plan(url: str) -> Plan | None:
    """Return the plan of a database; None where there is none, or no database."""
    with suppress(MissingError):
        return Plan.find(Storage(url))
    return None


def prepare_plan(
    out: Path,
    *,
    storage: str | None,
    studies: Studies | None,
    names: Sequence[str],
    threads: int,
    given: Mapping[str, Any],
    for_claims: bool = False,
    reuse: str | None = None,
    resolve: Resolve = resolve_here,
) -> tuple[Plan, list[str]]:
    """Return the plan as `find_or_create_plan` does, and what is to be known of the studies asked for.

    Args:
        out: as there.
        storage: likewise.
        studies: likewise.
        names: the studies that are asked for; empty: all, and the final stage.
        threads: likewise.
        given: likewise.
        for_claims: make the study ready that is trained for claims alone; it is what is asked for.
        reuse: likewise.
        resolve: likewise.

    Raises:
        InputError: as there; or no claim can have anything trained.
    """
    checked = () if for_claims else names
    plan = find_or_create_plan(
        out,
        storage=storage,
        studies=studies,
        names=checked,
        threads=threads,
        given=given,
        reuse=reuse,
        resolve=resolve,
    )
    if for_claims:
        open_cells(plan)
    return plan, remarks(plan, plan.with_ancestors(names) if names else plan.all_names)


def begin_work(plan: Plan, names: Sequence[str] | None, data: str | None) -> tuple[bool, list[str]]:
    """Check what every worker would refuse before there is any, and queue what is due.

    Args:
        plan: to be worked on.
        names: the studies to serve, as from `with_ancestors`; None: all, and the final stage.
        data: where the plan's data are on this machine, if elsewhere than where it was created.

    Returns:
        Whether everything asked for has ended; and the trials that wait to be tried again.

    Raises:
        InputError: the plan cannot be worked on from here.
    """
    plan = with_costs(with_recipe(plan))
    check_versions(plan)
    check_sqlite_is_local(plan)
    load_plan_data(plan, data)
    fail_stale_trials(plan, names)
    if advance(plan, names):
        return True, []
    return False, waiting_again(plan, names or plan.all_names)


def threads_each(workers: int | None) -> int:
    """Return the threads that so many local workers get; None: one, with a worker a core.

    Two processes of one thread train 1.5 times as many images a second as one of two threads.
    """
    return 1 if workers is None else max(1, n_cores() // workers)


def run(
    plan: Plan,
    *,
    out: Path,
    studies: Sequence[str] = (),
    workers: int | None = None,
    trials_per_device: int | None = None,
    checkpoints: str | Path | None = None,
    data: str | None = None,
    begin: Begin = begin_work,
    deadline_seconds: float | None = None,
    engine: OpenBackend = local_processes,
    on_tick: Callable[[], object] = lambda: None,
    after_tick: Callable[[], object] = lambda: None,
) -> int | None:
    """Work on a plan until it has ended.

    Args:
        plan: as from `find_or_create_plan`.
        out: folder for checkpoints, logs and the model.
        studies: only these and the earlier ones they need, without a final stage; empty: the whole plan.
        workers: how many processes; None: as many as the engine has room for.
        trials_per_device: how many trials each trains at once; None: one on a CPU, several on a GPU.
        checkpoints: folder or fsspec URL of the checkpoints; default `out/checkpoints`.
        data: where the plan's data are on this machine, if elsewhere than where it was created.
        begin: `begin_work`, or what does the same elsewhere.
        deadline_seconds: have the answer so long from now: what is open then is closed, early enough for the
            final stage as long as it is expected to take; None: train to the end.
        engine: who places the workers; default: processes of this machine.
        on_tick: called about once a second in a thread of its own, to look at what the database says.
        after_tick: called after it, in the caller's own thread; see `supervise`.

    Returns:
        The signal that stopped it, or None.

    Raises:
        InputError: an unknown study; or the plan cannot be worked on from here.
        PointsFailedError: everything has ended, and points failed for good.
        RunError: workers cannot be kept alive.
    """
    refuse_nested_run()
    began = time.monotonic()
    names = plan.with_ancestors(studies) if studies else None

    def tick() -> None:
        if deadline_seconds is not None:
            _finish_in_time(plan, names, began, deadline_seconds)
        on_tick()

    data = absolute_source(data) if data is not None else None
    has_ended, again = begin(plan, names, data)
    if not has_ended:
        if again:
            more = f" and {len(again) - MAX_NAMES} more" if len(again) > MAX_NAMES else ""
            log.warning("tried again: %s%s", ", ".join(again[:MAX_NAMES]), more)
        spec = WorkerSpec.of(plan, out, studies, checkpoints, data, trials_per_device)
        with engine(spec) as backend:
            stopped_by = supervise(backend, plan, names, workers, tick, after_tick)
        if stopped_by is not None:
            return stopped_by
    on_tick()
    after_tick()
    if names is None and final_trial(plan) is not None:
        _fetch_files(final_result(plan), open_blobs(checkpoints or out / "checkpoints"), out)
    require_result(plan, names)
    return None


def _finish_in_time(plan: Plan, names: Sequence[str] | None, began: float, deadline_seconds: float) -> None:
    """Close what is open, once no more time is left than the final stage will take."""
    kept_seconds = 0.0
    if names is None:
        kept_seconds = min(final_seconds(plan), MAX_FINAL_SHARE * deadline_seconds)
    if time.monotonic() - began < deadline_seconds - kept_seconds:
        return
    with suppress(InputError):  # no epoch has ended: the first one that does is waited for
        closed = finish(plan, plan.all_names if names is None else names, by="deadline")
        if closed:
            log.warning("--deadline: closed %s", ", ".join(closed))


def _fetch_files(record: Mapping[str, Any], store: BlobStore, out: Path) -> None:
    """Bring in the model and the worst images where a worker with another folder made them.

    Args:
        record: the result of the final stage.
        store: where the plan's checkpoints are.
        out: the folder that is to have them; what it has of another plan is replaced.

    Raises:
        OSError: the store or the folder fails.
        RunError: the store gives back another file than was put there.
    """
    for name in (MODEL, WRONG_IMAGES):
        digest = record["shared_files"].get(name)
        if (out / name).is_file() and _sha256((out / name).read_bytes()) == digest:
            continue
        file = f"{record['shared_folder']}/{name}"
        try:
            content = store.read(file)
        except FileNotFoundError:
            continue  # there is none, or the worker had another store, and has the file
        if _sha256(content) != digest:
            raise RunError(f"{file} among the checkpoints is damaged; {out / name} was left as it is")
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / name, content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
