"""A run on Linux whose own process loads neither torch nor code of the user's: it looks on, and stays small.

Another process imports torch, which takes longer than all else before the first epoch. Workers are copies of
it; what needs torch, or a module of the user's that may import anything, is called in such a copy before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hpo._process import refuse_nested_run
from hpo.execution.backends import local
from hpo.execution.backends.base import OpenBackend, WorkerBackend
from hpo.execution.backends.fork_server import ForkServer
from hpo.execution.backends.worker_spec import WorkerSpec
from hpo.execution.identity import resolve_here
from hpo.execution.plan_recipe import given_options
from hpo.execution.run import Begin, begin_work, existing_plan, prepare_plan
from hpo.planning.plan import Plan
from hpo.planning.studies import Studies
from hpo.storage.database import default_url
from hpo.storage.storage import Storage


@contextmanager
def local_means(
    out: Path, studies: Sequence[str], trials_per_device: int | None, threads: int
) -> Iterator[tuple[Callable[..., tuple[Plan, list[str]]], Begin, OpenBackend]]:
    """Yield what prepares a plan, begins its work, and places its workers on this machine.

    Args:
        out: output folder.
        studies: that workers are to serve; empty: all.
        trials_per_device: how many trials each trains at once; None: as it sees fit.
        threads: of a worker, where the plan is new.
    """
    if local.local_processes is not local.forked_processes:
        yield partial(prepare_plan, threads=threads), begin_work, local.local_processes
        return
    with forked_run(out, studies, trials_per_device, threads) as forked:
        yield forked.prepare, forked.begin, forked.engine


@contextmanager
def forked_run(
    out: Path, studies: Sequence[str], trials_per_device: int | None, threads: int
) -> Iterator[ForkedRun]:
    """Yield what prepares a plan, begins its work and places its workers; the process behind it ends here.

    Args:
        out: output folder.
        studies: that workers are to serve; empty: all.
        trials_per_device: how many trials each trains at once; None: as it sees fit.
        threads: of a worker, where the plan is new.
    """
    forked = ForkedRun(out, studies, trials_per_device, threads)
    try:
        yield forked
    finally:
        forked.end()


class ForkedRun:
    """`prepare_plan`, `begin_work` and an engine, none of which loads much into this process."""

    def __init__(
        self, out: Path, studies: Sequence[str], trials_per_device: int | None, threads: int
    ) -> None:
        self._out, self._studies, self._trials_per_device = out, studies, trials_per_device
        self._threads = threads
        self._server: ForkServer | None = None
        self._is_users = False

    def prepare(
        self,
        out: Path,
        *,
        storage: str | None,
        studies: Studies | None,
        names: Sequence[str],
        given: Mapping[str, Any],
        for_claims: bool,
        reuse: str | None = None,
    ) -> tuple[Plan, list[str]]:
        """Do what `prepare_plan` does."""
        refuse_nested_run()
        asked = given_options(studies, given)
        url = default_url(out) if storage is None else storage
        plan = existing_plan(url)
        sources = [asked.get("recipe"), asked.get("data")]
        if plan is not None:
            self._threads = plan.identity.threads
            sources += [plan.recipe.name, plan.options.data]
        self._is_users = any(str(source).startswith("python:") for source in sources)
        if not self._is_users:
            return prepare_plan(
                out,
                storage=storage,
                studies=studies,
                names=names,
                threads=self._threads,
                given=given,
                for_claims=for_claims,
                reuse=reuse,
                resolve=self._resolve,
            )
        told = str(studies) if isinstance(studies, Path) else studies
        found = self._call(
            _prepare, str(out), storage, told, names, self._threads, dict(given), for_claims, reuse
        )
        return Plan.open(Storage(url)), found

    def begin(self, plan: Plan, names: Sequence[str] | None, data: str | None) -> tuple[bool, list[str]]:
        """Do what `begin_work` does."""
        if not self._is_users and not any(study.costs for study in plan.specs.values()):
            return begin_work(plan, names, data)
        has_ended, again = self._call(_begin, plan.storage.url, names, data)
        return has_ended, again

    def engine(self, spec: WorkerSpec) -> AbstractContextManager[WorkerBackend]:
        """Open the backend of such workers."""
        server = self._server
        # another process may have written the plan meanwhile, with other threads
        if server is None or spec.threads != self._threads:
            return local.forked_processes(spec)
        self._server = None
        return local.forked_processes(spec, server)

    def end(self) -> None:
        """End the process that no backend has taken over."""
        if self._server is not None:
            self._server.kill()

    def _resolve(self, *arguments: object) -> tuple[str, str, str]:
        device, precision, kernels = self._call(resolve_here, *arguments)
        return device, precision, kernels

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        if self._server is None:
            settings = {"OMP_NUM_THREADS": str(self._threads)}
            out, studies = str(self._out.resolve()), tuple(self._studies)
            spec = WorkerSpec(out, studies, self._threads, "", self._trials_per_device, settings)
            self._server = spec.fork_server(is_early=True)
        return self._server.call(f"{function.__module__}:{function.__name__}", *arguments)


def _prepare(
    out: str,
    storage: str | None,
    studies: str | Mapping[str, Any] | None,
    names: Sequence[str],
    threads: int,
    given: Mapping[str, Any],
    for_claims: bool,
    reuse: str | None,
) -> list[str]:
    """Prepare a plan in this process, for one that opens it then."""
    _, found = prepare_plan(
        Path(out),
        storage=storage,
        studies=Path(studies) if isinstance(studies, str) else studies,
        names=names,
        threads=threads,
        given=given,
        for_claims=for_claims,
        reuse=reuse,
    )
    return found


def _begin(url: str, names: Sequence[str] | None, data: str | None) -> tuple[bool, list[str]]:
    """Begin a plan's work in this process, for one that looks on."""
    return begin_work(Plan.open(Storage(url)), names, data)
