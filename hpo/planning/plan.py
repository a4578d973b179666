"""The plan: studies in one database, and what is to be done next.

A plan is written once, whole: every study with its definition, the options that change results and the
identity of the data; no trials. From then on `advance` is an idempotent function of the database that any
idle worker runs. Studies come in inheritance order; the reserved study `final` ends the plan.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import ConflictError, InputError, MissingError, StudyFileError, did_you_mean
from hpo.planning import sampling
from hpo.planning.decisions import Decision, Inherited, TrialRef
from hpo.planning.manifest import (
    MAJOR_VERSIONS,
    Identity,
    Options,
    PlanManifest,
    StudyRecord,
    checked,
    defined,
    unreadable,
)
from hpo.space import study_file as spec
from hpo.space.parameters import Params, ParamValue, TrialConfig
from hpo.space.study_file import StudySpec
from hpo.storage.queue import Slot, is_elsewhere
from hpo.storage.storage import Storage

FINAL = spec.RESERVED_NAME
FINAL_SLOT = Slot("final")
CONTROL_SLOT = Slot("control")
FINAL_SEED_OFFSET = 10_000
"""The final stage's seeds start so far above the search's that the two never meet."""


@dataclass(frozen=True)
class Plan:
    """The studies of one database, with options and identity as recorded."""

    storage: Storage
    specs: Mapping[str, StudySpec]
    """By name, parents before children."""
    options: Options
    identity: Identity
    created_with: Mapping[str, str]
    """Versions of what results depend on, when the plan was created."""

    # --- making and finding ------------------------------------------------------------------------

    @classmethod
    def create(
        cls, storage: Storage, specs: Mapping[str, StudySpec], options: Options, identity: Identity
    ) -> Plan:
        """Write the plan: studies, definitions, options; no trials. Doing it twice does no harm.

        The mark that the plan is whole is written last: killed on the way, the next `create` goes on.
        """
        record = {
            "options": options.model_dump(),
            "identity": identity.model_dump(mode="json"),
            "versions": versions(),
        }
        for name, study in specs.items():
            storage.create_study(name, {"definition": study.to_json(), **record})
        storage.create_study(FINAL, {**record, "plan": list(specs)})
        return cls(storage, specs, options, identity, record["versions"])

    @classmethod
    def find(cls, storage: Storage) -> Plan | None:
        """Return the plan of a database; None where none was written, or not to the end.

        Raises:
            InputError: what is there was changed by hand, or is another version's; the text says where.
        """
        attrs = storage.study_attrs()
        if "plan" not in attrs.get(FINAL, {}):
            return None
        mark = checked(PlanManifest, storage, FINAL, attrs)
        specs: dict[str, StudySpec] = {}
        for name in mark.plan:
            study = defined(storage, name, checked(StudyRecord, storage, name, attrs))
            if study.inherits is not None and study.inherits not in specs:
                raise unreadable(storage, name, f"inherits = {study.inherits!r}: no study before it")
            specs[name] = study
        checked(StudyRecord, storage, FINAL, attrs)
        return cls(storage, specs, mark.options, mark.identity, mark.versions)

    @classmethod
    def open(cls, storage: Storage) -> Plan:
        """Return the plan of a database.

        Raises:
            MissingError: there is none.
        """
        plan = cls.find(storage)
        if plan is None:
            raise MissingError(f"{storage.name}: holds no plan; `hpo run` or `hpo create` writes one")
        return plan

    def check_compatible(
        self,
        given: Mapping[str, Any],
        specs: Mapping[str, StudySpec] | None = None,
        where: Path | None = None,
    ) -> None:
        """Compare options and study files that the user gave now with those of the plan.

        A study that is sampled may ask for more trials than before, until it has decided. Data of the same
        kind may lie elsewhere on this machine: whether they are the same, `check_data` tells.

        Raises:
            ConflictError: one differs; the text names both sides.
        """
        recorded = self.options.model_dump()
        anew = "start anew with another --out" if self.storage.is_sqlite else "use another database"
        for key, value in given.items():
            if key == "data" and value.partition(":")[0] == self.options.data.partition(":")[0]:
                continue
            if value != recorded[key]:
                # the one option that takes no value says the opposite of what is recorded
                option = "no-pruning" if key == "pruning" else f"{key.replace('_', '-')} {value}"
                without = recorded[key] is None or key == "pruning"
                raise ConflictError(
                    f"--{option} contradicts the plan in {self.storage.name}, which "
                    f"was created {'without it' if without else f'with {recorded[key]}'}; "
                    f"leave the option out to go on, or {anew}"
                )
        for name in (specs or {}).keys() | (self.specs.keys() if specs is not None else set()):
            ours, theirs = self.specs.get(name), (specs or {}).get(name)
            if ours != theirs and not (_asks_for_more(ours, theirs) and self._is_open(name)):
                raise ConflictError(
                    f"{where}: study {name!r} {_difference(ours, theirs)} the plan in "
                    f"{self.storage.name}; put the files back to go on, or {anew}"
                )

    def with_more_trials(self, specs: Mapping[str, StudySpec]) -> Plan:
        """Return the plan with the trials that study files now ask for; `check_compatible` has passed them.

        Raises:
            ConflictError: a study has decided meanwhile.
        """
        for name, study in specs.items():
            attrs, study_id = self.storage.study_attrs()[name], self.storage.study_id(name)
            if study == self.specs[name]:
                continue
            expected = {key: attrs.get(key) for key in ("definition", "decision")}
            if not self._is_open(name) or not self.storage.swap_study_attr(
                study_id, "definition", study.to_json(), expected=expected
            ):
                raise ConflictError(
                    f"{self.storage.name}: study {name!r} has decided or changed meanwhile; try again"
                )
        return replace(self, specs={name: specs[name] for name in self.specs})

    def _is_open(self, name: str) -> bool:
        records = self.records()
        decision = records[name].decision  # one for want of any result is made again
        return records[FINAL].inherited is None and (decision is None or not decision.params)

    def check_data(self, fingerprint: str, source: str) -> None:
        """Compare the data at hand with those of the plan.

        Raises:
            ConflictError: the fingerprints differ; both are named.
        """
        if fingerprint != self.identity.fingerprint:
            raise ConflictError(
                f"{source}: fingerprint {fingerprint}, but the plan in {self.storage.name} was created on "
                f"{self.options.data} with fingerprint {self.identity.fingerprint}: not the same images, "
                "labels, classes or split"
            )

    def check_versions(self) -> None:
        """Compare what results depend on here with what the plan was created with.

        Raises:
            ConflictError: a major version differs; both are named.
        """
        here = versions()
        for package in MAJOR_VERSIONS:
            ours, theirs = here[package], self.created_with[package]
            if ours.split(".")[0] != theirs.split(".")[0]:
                raise ConflictError(
                    f"{package} {ours} here, but the plan in {self.storage.name} was created with {package} "
                    f"{theirs}; install the same major version"
                )

    def check_sqlite_is_local(self) -> None:
        """Check that SQLite serves one machine; one that sees its file from another would lose writes.

        Raises:
            ConflictError: a worker of another machine is at work on this SQLite database.
        """
        if not self.storage.is_sqlite:
            return
        for name in self.all_names:
            for _, _, owner in self.storage.running(self.storage.study_id(name)):
                if owner and is_elsewhere(owner):
                    raise ConflictError(
                        f"{self.storage.name}: {owner['host']} is working on it, and SQLite serves one "
                        "machine; for several create the plan on a server: --storage postgresql+psycopg://HOST/NAME"
                    )

    def unshared_checkpoints(self, out: Path, given: str | Path | None) -> str | None:
        """Return a warning of checkpoints that other machines may not reach; None where there is no need."""
        if self.storage.is_sqlite or given is not None:
            return None
        return (
            f"checkpoints stay in {(out / 'checkpoints').absolute()}: where other machines work on this plan "
            "too, give all of them the same --checkpoints, or a trial that changes machines begins anew"
        )

    # --- names ---------------------------------------------------------------------------------------

    def with_ancestors(self, names: Iterable[str]) -> list[str]:
        """Return the named studies and the earlier ones that they need, in order.

        Raises:
            InputError: an unknown name; the text says what is near.
        """
        return with_ancestors(self.specs, names, self.options.inherit)

    @property
    def all_names(self) -> list[str]:
        """Every study, the final stage last."""
        return [*self.specs, FINAL]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The block of seeds that every point of the search is trained on."""
        return tuple(range(self.options.seed, self.options.seed + self.options.seeds))

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """The seeds of the final stage; the search uses none of them."""
        first = self.options.seed + FINAL_SEED_OFFSET
        return tuple(range(first, first + self.options.final_seeds))

    # --- what a study is made of ---------------------------------------------------------------------

    def trials(self, name: str) -> list[FrozenTrial]:
        """Return every Optuna trial of a study, lost and superseded attempts included, by number."""
        return self.storage.trials(self.storage.study_id(name))

    def record(self, name: str) -> StudyRecord:
        """Return what the database holds of a study now.

        Raises:
            InputError: somebody has changed it by hand into something else.
        """
        return checked(StudyRecord, self.storage, name, self.storage.study_attrs())

    def records(self) -> dict[str, StudyRecord]:
        """Return what `record` does, of every study, the final stage last."""
        attrs = self.storage.study_attrs()
        return {name: checked(StudyRecord, self.storage, name, attrs) for name in self.all_names}

    def spec(self, name: str) -> StudySpec:
        """Return a study as the database has it now: more trials of a sampled one may have been asked for."""
        known = self.specs[name]
        return known if known.is_grid else defined(self.storage, name, self.record(name))

    def decision(self, name: str) -> Decision | None:
        """Return what a study decided; None while it is open."""
        return self.record(name).decision

    def inherited(self, name: str) -> Inherited | None:
        """Return the configuration that a study starts from; None where nothing is inherited, or not yet.

        Raises:
            InputError: `--inherit published`, and an ancestor has no published choice.
        """
        parent = self.specs[name].inherits
        if parent is None:
            return None
        if self.options.inherit == "published":
            return Inherited(study=parent, source=None, params=published_config(self.specs, parent).params())
        decision = self.decision(parent)
        if decision is None or not decision.params:
            return None
        return Inherited(study=parent, source=decision.source, params=decision.params, value=decision.value)

    def context(self, name: str, inherited: Inherited | None) -> dict[str, ParamValue]:
        """Return what a point of a study is laid over: defaults, inherited or base, fixed, `--epochs`."""
        params = self.specs[name].context(inherited.params if inherited else None)
        if self.options.epochs is not None:
            params["epochs"] = self.options.epochs
        return params

    def config(self, name: str, inherited: Inherited | None, point: Params) -> TrialConfig:
        """Return the complete configuration of a point."""
        return TrialConfig.from_params({**self.context(name, inherited), **point})

    def inherited_config(self, inherited: Inherited) -> TrialConfig:
        """Return the inherited configuration as the study's control trains it: with `--epochs` applied."""
        epochs = self.options.epochs
        return inherited.config if epochs is None else inherited.config.replace(epochs=epochs)

    def decided_by(self, source: TrialRef) -> FrozenTrial:
        """Return the COMPLETE trial that a decision names."""
        trial = self.storage.numbered(self.storage.study_id(source.study), source.trial)
        assert trial is not None
        return trial

    def trial_config(self, name: str, trial: FrozenTrial, params: Params) -> TrialConfig:
        """Return the configuration that a claimed trial trains."""
        inherited = self.record(name).inherited
        if trial.user_attrs["point"] in (CONTROL_SLOT.point, FINAL_SLOT.point):
            assert inherited is not None  # written before the trial was queued
            return self.inherited_config(inherited)
        return self.config(name, inherited, params)

    def best_decided(self) -> Inherited | None:
        """Return what the final stage trains: as of then, the best of the studies that none inherits from."""
        parents, records = {study.inherits for study in self.specs.values()}, self.records()
        leaves = [(name, record.decision) for name, record in records.items() if name not in parents]
        decided = [(name, decision) for name, decision in leaves if decision and decision.params]
        begun = records[FINAL].inherited
        if begun is not None or not decided:
            return begun
        name, decision = max(decided, key=lambda pair: pair[1].value or 0.0)
        return Inherited(study=name, source=decision.source, params=decision.params, value=decision.value)


def read_studies(folder: Path) -> dict[str, StudySpec]:
    """Read and check a folder of study files, samplers and pruners included; parents before children.

    Raises:
        StudyFileError: file, key, value, and what would be right.
    """
    specs = spec.load_studies(folder)
    for name, study in specs.items():
        sampling.check(study, folder / f"{name}.toml")
    return specs


def with_ancestors(specs: Mapping[str, StudySpec], names: Iterable[str], inherit: str) -> list[str]:
    """Return the named studies and the earlier ones that they need, in order; published choices need none.

    Raises:
        InputError: an unknown name; the text says what is near.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in specs:
            raise InputError(f"{name} is not a study of this plan; {did_you_mean(name, specs)}")
        wanted |= {study.name for study in lineage(specs, name)} if inherit == "winners" else {name}
    return [name for name in specs if name in wanted]


def lineage(specs: Mapping[str, StudySpec], name: str) -> list[StudySpec]:
    """Return a study and those before it that it inherits from, the study itself last."""
    chain = [specs[name]]
    while (parent := chain[0].inherits) is not None:
        chain.insert(0, specs[parent])
    return chain


def published_config(specs: Mapping[str, StudySpec], name: str) -> TrialConfig:
    """Return what the report carried on after a study: its own choices and those before it.

    Raises:
        InputError: a study on the way has no published choice.
    """
    chain = lineage(specs, name)
    params = {**TrialConfig().params(), **chain[0].base}
    for study in chain:
        if study.published is None or not study.published.choice:
            raise StudyFileError(f"{study.name}.toml", "has no published.choice for --inherit published")
        params.update(study.published.choice)
    return TrialConfig.from_params(params)


@cache  # 2.5 ms a call, and every trial records them
def versions() -> dict[str, str]:
    """Return versions of what results depend on."""
    packages = {"hpo": "hpo-studies", "optuna": "optuna", "torch": "torch", "numpy": "numpy"}
    return {"python": platform.python_version(), **{key: version(name) for key, name in packages.items()}}


def _asks_for_more(ours: StudySpec | None, theirs: StudySpec | None) -> bool:
    """Return whether two definitions of a sampled study differ in nothing but a higher number of trials."""
    if ours is None or theirs is None or ours.trials is None or theirs.trials is None:
        return False
    return theirs.trials > ours.trials and theirs.model_copy(update={"trials": ours.trials}) == ours


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
