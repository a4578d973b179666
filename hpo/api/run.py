"""`hpo run` as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hpo._files import user_path
from hpo._text import MAX_PLAN_NAME, read_plan_name
from hpo.api.notebook import live_output
from hpo.api.records import DEFAULT_OUT, Plan, find_plan
from hpo.cli.tables import stopped_text
from hpo.errors import InputError, did_you_mean
from hpo.execution.forked_run import local_means
from hpo.execution.run import run, threads_each
from hpo.monitor.watch import Progress, Watch
from hpo.planning.manifest import Options

RESUME = "call run_plan again to resume"


def run_plan(
    names: Sequence[str] | str = (),
    *,
    out: Path | str = DEFAULT_OUT,
    storage: str | None = None,
    studies: Path | str | Mapping[str, Any] | None = None,
    workers: int | None = None,
    trials_per_device: int | None = None,
    deadline_seconds: float | None = None,
    reuse: Path | str | None = None,
    plan_name: str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    **options: Any,
) -> Plan:
    """Write or find a plan and work on it until it has ended: `hpo run` as a function.

    In a notebook the cell shows how the plan gets on; elsewhere nothing is printed.

    Args:
        names: only these studies, or this one, and the earlier ones that they need, without a final stage;
            empty: all.
        out: output folder.
        storage: database URL; default `out/hpo.db`.
        studies: folder of study files; or what the file of a single one would hold, as `{"search": {…}}`;
            default the shipped ones.
        workers: local processes; None: one a core, or one a GPU.
        trials_per_device: how many trials each of them trains at once; None: one on a CPU, several on a GPU.
        deadline_seconds: have the answer so long from now, as of `run`.
        reuse: output folder or database URL of another plan, whose results are taken over where they are the
            same to the bit.
        plan_name: what lists and reports call the plan, 1 to 100 characters; default its folder's name.
        on_progress: called about once a second, by the thread that called this, with what one look at the
            database found. What it raises ends the run as Ctrl-C does, and is raised here.
        options: those of `hpo create` that change results, as they may stand in plan.toml (`data`, `epochs`,
            `budget`, …). `recipe` and `data` may be the class or the function itself, of a module that
            workers can import.

    Raises:
        InputError: something given cannot be used, or contradicts the plan that is there.
        PointsFailedError: everything has ended, and points failed for good.
        RunError: workers cannot be kept alive.
        KeyboardInterrupt: stopped by a signal; call it again to resume.
    """
    for key in options:
        if key not in Options.model_fields:
            raise InputError(f"{key} is not an option; {did_you_mean(key, Options.model_fields)}")
    if on_progress is not None and not callable(on_progress):
        raise InputError(f"on_progress = {on_progress!r}: must be a function that takes an hpo.Progress")
    called = None if plan_name is None else read_plan_name(plan_name)
    if called is None and plan_name is not None:
        raise InputError(f"plan_name = {plan_name!r}: must have 1 to {MAX_PLAN_NAME} characters")
    given = dict(options)
    for key in ("recipe", "data"):
        if key in given:
            given[key] = by_name(key, given[key])
    names = [names] if isinstance(names, str) else names
    folder = user_path(studies) if isinstance(studies, str | Path) else studies
    out = user_path(out)
    with ExitStack() as stack:
        output = stack.enter_context(live_output())
        means = local_means(out, names, trials_per_device, threads_each(workers))
        prepare, begin, engine = stack.enter_context(means)
        worked_on, remarks = prepare(
            out,
            storage=storage,
            studies=folder,
            names=names,
            given=given,
            for_claims=False,
            reuse=None if reuse is None else str(reuse),
        )
        worked_on = worked_on.named(called)
        if output is not None:
            output.notes.texts += remarks
        plan, watched = find_plan(out, storage=storage), find_plan(out, storage=storage)
        eyes = Watch(watched, plan.with_ancestors(names) if names else plan.all_names)
        last = shown = eyes.look()  # events count from here on

        def look() -> None:
            nonlocal last
            last = eyes.look()

        def tell() -> None:
            nonlocal shown
            if last is shown:  # the database is away
                return
            shown = last
            if output is not None:
                output.draw(shown)
            if on_progress is None:
                return
            try:
                on_progress(shown)
            except Exception as error:
                text = f"on_progress raised {type(error).__name__}; nothing is lost: {RESUME}"
                error.add_note(text)
                if output is not None:  # tracebacks of notebooks leave notes out
                    output.notes.texts.append(text)
                raise

        if output is not None:
            output.draw(shown)
        try:
            stopped_by = run(
                worked_on,
                out=out,
                studies=names,
                workers=workers,
                trials_per_device=trials_per_device,
                data=given.get("data"),
                begin=begin,
                deadline_seconds=deadline_seconds,
                engine=engine,
                on_tick=look,
                after_tick=tell,
            )
            if stopped_by is not None:
                text = f"{stopped_text(last)}; {RESUME}"
                if output is not None:
                    output.notes.texts.append(text)
                raise KeyboardInterrupt(text)
        finally:
            if output is not None:
                output.draw(last, has_workers=False)
    return plan


def by_name(key: str, value: object) -> str:
    """Return the name by which workers import a class or function; a name as it is.

    Raises:
        InputError: it is neither, or no other process can import it.
    """
    if isinstance(value, str):
        in_main = value.startswith("python:__main__:")
        name = value.rpartition(":")[2]
    else:
        name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", "")
        if not callable(value) or not name:
            what = {"recipe": "the class itself, not an object of it", "data": "the function itself"}[key]
            raise InputError(f"{key} = {value!r}: must be a text, as python:module:name, or {what}")
        in_main = module == "__main__"
        if "<" in name:
            raise InputError(
                f"{key}: {name} is made inside a function, and workers import it by its name: "
                "define it at the top of a module"
            )
    if not in_main:
        return value if isinstance(value, str) else f"python:{module}:{name}"
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if file is None:
        raise InputError(
            f"{key}: {name} is defined in this process alone, in a cell or at the prompt; workers are other "
            "processes and import it by its name. Begin its cell with %%writefile mine.py, with the imports "
            f"that it needs, and give {key}='python:mine:{name}'"
        )
    return f"python:{spec.name if spec else Path(file).stem}:{name}"
