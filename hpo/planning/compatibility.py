"""Checks that options, study files, data, versions and machine fit the plan; refuses in words if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.errors import ConflictError
from hpo.planning.manifest import MAJOR_VERSIONS, option_text, option_value
from hpo.planning.plan import CONFIRM, FINAL, Plan, versions
from hpo.planning.reuse import DATA_OPTIONS
from hpo.space.study_file import StudySpec
from hpo.storage.queue import is_elsewhere

_OTHER_BITS = (*DATA_OPTIONS, "recipe", "device", "precision", "kernels", "seed", "epochs")
"""Options by which a plan trains everything anew: it has nothing to take over, unless it is checkpoints."""


def check_compatible(
    plan: Plan,
    given: Mapping[str, Any],
    specs: Mapping[str, StudySpec] | None = None,
    where: Path | str | None = None,
) -> None:
    """Compare options and study files that the user gave now with those of the plan.

    A study that is sampled may ask for more trials than before, until it has decided. Data of the same
    kind may lie elsewhere on this machine: whether they are the same, `check_data` tells.

    Raises:
        ConflictError: one differs; the text names both sides.
    """
    recorded = plan.options.model_dump()
    anew = "start anew with another --out" if plan.storage.is_sqlite else "use another database"
    this = plan.storage.name if plan.storage.is_sqlite else "with the URL of this one"
    reusing = f"{anew}, where --reuse {this} takes over what is the same"
    for key, value in given.items():
        if key == "data" and value.partition(":")[0] == plan.options.data.partition(":")[0]:
            continue
        if value != recorded[key]:
            # an option that takes no value says the opposite of what is recorded
            without = recorded[key] is None or isinstance(value, bool)
            adding = "`hpo confirm` adds it, " if key == "confirm" else ""
            goes_on = key == "epochs" and plan.options.keep_checkpoints
            again = anew if key in _OTHER_BITS and not goes_on else reusing
            raise ConflictError(
                f"{option_text(key, value)} contradicts the plan in {plan.storage.name}, which "
                f"was created {'without it' if without else f'with {option_value(key, recorded[key])}'}; "
                f"{adding}leave the option out to go on, or {again}"
            )
    for name in (specs or {}).keys() | (plan.specs.keys() if specs is not None else set()):
        ours, theirs = plan.specs.get(name), (specs or {}).get(name)
        if _is_extended(plan, name, ours, theirs) or (theirs is None and plan.record(name).extends):
            continue
        if ours != theirs and not (_asks_for_more(ours, theirs) and _is_open(plan, name)):
            raise ConflictError(
                f"{where}: study {name!r} {_difference(ours, theirs)} the plan in "
                f"{plan.storage.name}; put the files back to go on, or {reusing}"
            )


def with_more_trials(plan: Plan, specs: Mapping[str, StudySpec]) -> Plan:
    """Return the plan with the trials that study files now ask for; `check_compatible` has passed them.

    Raises:
        ConflictError: a study has decided meanwhile.
    """
    for name, study in specs.items():
        attrs, study_id = plan.storage.study_attrs()[name], plan.storage.study_id(name)
        if study == plan.specs[name] or study.is_grid:
            continue
        expected = {key: attrs.get(key) for key in ("definition", "decision")}
        if not _is_open(plan, name) or not plan.storage.swap_study_attr(
            study_id, "definition", study.to_json(), expected=expected
        ):
            raise ConflictError(
                f"{plan.storage.name}: study {name!r} has decided or changed meanwhile; try again"
            )
    sampled = {name: study for name, study in specs.items() if not study.is_grid}
    return replace(plan, specs={**plan.specs, **sampled})


def _is_open(plan: Plan, name: str) -> bool:
    records = plan.records()
    decision = records[name].decision  # one for want of any result is made again
    is_settled = records[FINAL].inherited is not None or (plan.confirms and records[CONFIRM].arms is not None)
    return not is_settled and (decision is None or not decision.params)


def check_data(plan: Plan, fingerprint: str, source: str) -> None:
    """Compare the data at hand with those of the plan.

    Raises:
        ConflictError: the fingerprints differ; both are named.
    """
    if fingerprint != plan.identity.fingerprint:
        raise ConflictError(
            f"{source}: fingerprint {fingerprint}, but the plan in {plan.storage.name} was created on "
            f"{plan.options.data} with fingerprint {plan.identity.fingerprint}: not the same images, "
            "labels, classes or split"
        )


def check_versions(plan: Plan) -> None:
    """Compare what results depend on here with what the plan was created with.

    Raises:
        ConflictError: a major version differs; both are named.
    """
    here = versions()
    for package in MAJOR_VERSIONS:
        ours, theirs = here[package], plan.created_with[package]
        if ours.split(".")[0] != theirs.split(".")[0]:
            raise ConflictError(
                f"{package} {ours} here, but the plan in {plan.storage.name} was created with {package} "
                f"{theirs}; install the same major version"
            )


def check_sqlite_is_local(plan: Plan) -> None:
    """Check that SQLite serves one machine; one that sees its file from another would lose writes.

    Raises:
        ConflictError: a worker of another machine is at work on this SQLite database.
    """
    if not plan.storage.is_sqlite:
        return
    for name in plan.all_names:
        for _, _, owner in plan.storage.running(plan.storage.study_id(name)):
            if owner and is_elsewhere(owner):
                raise ConflictError(
                    f"{plan.storage.name}: {owner['host']} is working on it, and SQLite serves one "
                    "machine; for several create the plan on a server: --storage postgresql+psycopg://HOST/NAME"
                )


def unshared_checkpoints(plan: Plan, out: Path, given: str | Path | None) -> str | None:
    """Return a warning of checkpoints that other machines may not reach; None where there is no need."""
    if plan.storage.is_sqlite or given is not None:
        return None
    return (
        f"checkpoints stay in {(out / 'checkpoints').absolute()}: where other machines work on this plan "
        "too, give all of them the same --checkpoints, or a trial that changes machines begins anew"
    )


def _asks_for_more(ours: StudySpec | None, theirs: StudySpec | None) -> bool:
    """Return whether two definitions of a sampled study differ in nothing but a higher number of trials."""
    if ours is None or theirs is None or ours.trials is None or theirs.trials is None:
        return False
    return theirs.trials > ours.trials and theirs.model_copy(update={"trials": ours.trials}) == ours


def _is_extended(plan: Plan, name: str, ours: StudySpec | None, theirs: StudySpec | None) -> bool:
    """Return whether a study file says what the plan had before `hpo extend`, or has now in another order."""
    if ours is None or theirs is None or ours == theirs:
        return False
    extended = plan.record(name).extended
    if not extended or ours.search.keys() != theirs.search.keys():
        return False
    for param, added in extended.items():
        all_, told = set(ours.search[param].values()), set(theirs.search[param].values())
        if told not in (all_, all_ - set(added)):
            return False
    search = {**theirs.search, **{param: ours.search[param] for param in extended}}
    return theirs.model_copy(update={"search": search}) == ours


def _difference(ours: StudySpec | None, theirs: StudySpec | None) -> str:
    if ours is None:
        return "is not in"
    if theirs is None:
        return "is missing here, but is in"
    old, new = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    keys = [key for key in old if old[key] != new[key]] or ["search"]  # else only the order of axes differs
    if keys == ["trials"]:
        return (
            f"has trials = {theirs.trials}, which can only be raised, and only until the study has decided; "
            f"it is {ours.trials} in"
        )
    return f"differs in {', '.join(keys)} from"
