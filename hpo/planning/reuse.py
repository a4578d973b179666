"""Results of other plans: what was trained to the same bits is taken over instead of being trained again.

`--reuse` copies them, once, into a study of the plan's own database. Workers on any machine find them there,
and the other plan is needed no more. A trial that is claimed looks there for its configuration, seed by seed,
and trains what is missing. So a plan ends as it would have ended without them; but where a pruner would have
stopped a point, the whole of it may be known.

A pruned trial is not taken over: when it stopped depends on the company that it was in. But where the other
plan has kept its checkpoints, a training that has to be longer here begins with what there is of it, whatever
ended it there.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from hpo._files import user_path
from hpo._process import cpu_model
from hpo.errors import HpoError, InputError, MissingError, StudyFileError, did_you_mean
from hpo.planning.decisions import Inherited, epochs_of
from hpo.planning.inheritance import best_decided
from hpo.planning.manifest import Identity, Options, RecipeRecord
from hpo.planning.metrics import Metric
from hpo.planning.plan import CLAIMS, CONFIRM, FINAL, PRICE, Plan, versions
from hpo.space.parameters import ParamValues, canonical_json
from hpo.space.schema import Schema
from hpo.space.study_file import PLAN_PREFIX, Start, StudySpec
from hpo.storage.database import has_password, is_same, url_of
from hpo.storage.queue import Reason, reason_of
from hpo.storage.storage import TRIALS_PER_QUERY, Storage
from hpo.storage.trials import ATTEMPT_KEY, AUDIT_KEY, KEPT_KEY, OUTPUTS_KEY, attempt_key, id_of

log = logging.getLogger(__name__)

LIBRARY = "results of other plans"
"""The Optuna study that holds them. No study of a plan can be called so: the name has blanks."""
BEGINNINGS = "checkpoints of other plans"
"""The Optuna study that says where other plans have kept a checkpoint, and of what."""
ORIGIN_KEY = "reused_from"
"""The attribute of a trial that says whose results it has: a list of plan, study, trial and seeds; and how
many epochs, where only the first ones were trained there."""
ELSEWHERE = f"{Reason.REUSED}: in "
"""What the reason of a trial begins with that has its result from another plan."""
MIXED_BITS = "its last bits are those of no single machine"
"""What is said of a trial that several kinds of machines have trained."""
DECISIVE = ("torch", "numpy", "hpo")
"""The versions that the bits of a result depend on, as far as hpo knows."""

_COPIED = ("seeds", "device", "processor", "versions", "notes", "split_seed")
_RESOLVED = {
    "device": "--device sets it",
    "kernels": "--kernels sets them",
    "precision": "--precision sets it",
    "threads": "a worker; --workers sets them",
}
"""What of an identity bits depend on, beside the data; and what decides on it."""
DATA_OPTIONS = ("data", "limit_train", "limit_valid", "image_size", "fit")
"""The options that say what is trained on."""
Records = list[list[dict[str, Any]]]
"""By epoch and seed."""


@dataclass(frozen=True)
class Setting:
    """What the bits of all results of a plan depend on, beside configuration, seeds and processor."""

    options: Options
    identity: Identity
    recipe: RecipeRecord
    schema: Schema
    """Of the recipe itself, which knows what means nothing in a configuration."""

    @classmethod
    def of(cls, plan: Plan) -> Setting:
        """Return that of a plan that is bound to its recipe."""
        return cls(plan.options, plan.identity, plan.recipe, plan.schema)

    @property
    def objective(self) -> Metric:
        """What the plan tunes for."""
        return self.recipe.objective(self.options.metric)

    @property
    def may_mix(self) -> bool:
        """Whether seeds have the same bits in any company: where they are fused on a GPU they have not."""
        return self.identity.device == "cpu"


@dataclass(frozen=True)
class Beginning:
    """A checkpoint that another plan has kept, and a training here may go on from."""

    epoch: int
    """After which it was stored."""
    store: str
    """A folder or URL, as `hpo.training.blobs.open_blobs` takes it."""
    folder: str
    seeds: list[int]
    """That were trained together."""
    config: ParamValues
    """That was trained there; its `epochs` may be others."""
    origins: list[dict[str, Any]]
    """As under `ORIGIN_KEY`."""

    @property
    def text(self) -> str:
        """Where it was trained, in words."""
        return origins_text(self.origins)


@dataclass(frozen=True)
class Elsewhere:
    """What another plan has trained that counts in a plan of this setting."""

    storage: Storage
    setting: Setting
    trials: Mapping[str, tuple[str, int]]
    """Study and Optuna's id of each trial, by the key that it has in the library."""
    beginnings: Mapping[str, FrozenTrial]
    """Checkpoints that are kept there, by the key that each has in `BEGINNINGS`, as they are stored there."""
    decisions: Mapping[str, ParamValues]
    """The configuration that each study there has decided for."""

    @classmethod
    def open(cls, place: str, setting: Setting, ours: str | None = None) -> Elsewhere:
        """Look what a plan has, which may be at work; only reads there.

        Args:
            place: its output folder or the URL of its database.
            setting: of the plan that is to have it.
            ours: the URL of that plan's database; None: it has none.

        Raises:
            MissingError: there is no plan.
            InputError: nothing of it has the bits that it would have here; the text says by what they differ.
        """
        url = url_of(place)
        try:
            storage = Storage(url, reader=True)
            other = Plan.open(storage)
        except MissingError as error:
            # not what the text advises, which is for who wants to make one there
            raise MissingError(f"--reuse: {str(error).partition(';')[0]}") from None
        except InputError as error:
            raise InputError(f"--reuse: {error}") from None
        if ours is not None and is_same(url, ours):
            raise InputError(f"--reuse {storage.name}: is the plan itself; leave the option out")
        if differs := _difference(setting, other):
            raise _nothing(storage, differs)
        there = Setting(other.options, other.identity, other.recipe, setting.schema)
        trials, reasons, processors = dict[str, tuple[str, int]](), Counter[str](), set[str]()
        for name, trial in _ended(other, reasons):
            config = _completed(setting.schema, trial.user_attrs.get("config", {}))
            if not _is_readable(trial, setting.recipe.metrics):
                reasons["with results that hpo did not write"] += 1
            elif config is None:
                reasons["with other parameters"] += 1
            elif name == LIBRARY and not _is_of(there, config, trial):
                reasons["taken over for another plan"] += 1
            elif why := _unlike(trial.user_attrs) or _of_another_split(setting, other, trial):
                reasons[why] += 1
            else:
                trials.setdefault(_key(setting, config, trial), (name, id_of(trial)))
                processors.add(trial.user_attrs["processor"])
        beginnings = _beginnings_of(other, setting, place)
        if not trials and not beginnings:
            found = [f"{_n_trials(n)} {why}" for why, n in reasons.most_common()]
            raise _nothing(storage, "; ".join(found) or "none of its trials has ended yet")
        if processors and setting.identity.device == "cpu" and cpu_model() not in processors:
            log.warning(
                "--reuse %s: trained on %s, and only workers on the same take it over; this machine has %s",
                *(storage.name, " and ".join(sorted(processors)), cpu_model()),
            )
        decided = {name: record.decision for name, record in other.records().items()}
        return cls(
            storage,
            setting,
            trials,
            beginnings,
            {name: decision.params for name, decision in decided.items() if decision and decision.params},
        )

    def known_seeds(self, config: ParamValues, seeds: Sequence[int]) -> set[int]:
        """Return the seeds of a configuration that a worker of this machine need not train.

        Of GPUs it is taken that they are those which trained it.
        """
        digest = _digest(self.setting, config, None)
        keys = [key.rsplit(" ", 2) for key in self.trials if key.startswith(f"{digest} ")]
        here = str(_kind(cpu_model(), versions())) if self.setting.identity.device == "cpu" else None
        blocks = [_seeds_of(point) for point, kind, _ in keys if here in (None, kind)]
        if self.setting.may_mix:
            return {seed for block in blocks for seed in block} & {*seeds}
        return {*seeds} if tuple(seeds) in blocks else set()

    def known_epochs(
        self,
        config: ParamValues,
        seeds: Sequence[int],
        *,
        depends_on_epochs: bool,
        is_final: bool = False,
    ) -> int:
        """Return after how many epochs a worker of this machine goes on to train a configuration.

        Args:
            config: complete.
            seeds: that are trained together.
            depends_on_epochs: as `Recipe.depends_on_epochs` says of the configuration.
            is_final: whether it is of the final stage.
        """
        digest = _digest(self.setting, config, None, of_any_length=True, is_final=is_final)
        point = f"{digest} {','.join(map(str, seeds))}"
        there = [trial for key, trial in self.beginnings.items() if key.rsplit(" ", 2)[0] == point]
        here = cpu_model() if self.setting.identity.device == "cpu" else None
        longest = _usable(there, config, here, int(config["epochs"]), depends_on_epochs)
        return max((each.epoch for each in longest), default=0)

    def known_final_seeds(self, config: ParamValues, seeds: Sequence[int]) -> int:
        """Return how many seeds of a final stage of this configuration a worker need not train, the first."""
        points = {key.rsplit(" ", 2)[0] for key in self.beginnings}
        known = [n for point, n in _final_points(self.setting, config, seeds).items() if point in points]
        return max(known, default=0)

    def copy_into(self, storage: Storage) -> None:
        """Write it into the library of a database; what is there already stays as it is."""
        record = {"options": self.setting.options.model_dump()}  # as all studies of ours have them
        storage.create_study(LIBRARY, record, self.setting.objective.direction)
        study_id = storage.study_id(LIBRARY)
        plans = storage.study_attr(study_id, "plans") or []
        if self.storage.name not in plans:
            storage.set_study_attr(study_id, "plans", [*plans, self.storage.name])
        places = (trial.user_attrs for trial in storage.outlines.of(study_id))
        there = {attempt_key(each["point"], each["replicate"], each["attempt"]) for each in places}
        new = [(key, *which) for key, which in self.trials.items() if key not in there]
        for start in range(0, len(new), TRIALS_PER_QUERY):
            some = new[start : start + TRIALS_PER_QUERY]
            whole = self.storage.whole([trial_id for _, _, trial_id in some])
            copies = {key: self._copy(name, t) for (key, name, _), t in zip(some, whole, strict=True)}
            storage.enqueue(study_id, copies)
        if self.beginnings:
            storage.create_study(BEGINNINGS, record, self.setting.objective.direction)
            storage.enqueue(storage.study_id(BEGINNINGS), self.beginnings)

    def _copy(self, name: str, trial: FrozenTrial) -> FrozenTrial:
        attrs, objective = trial.user_attrs, self.setting.objective
        origins = _origins(self.storage, name, trial)
        kept = {key: value for key, value in attrs.items() if key in _COPIED or key.startswith("epoch:")}
        kept |= {"config": _completed(self.setting.schema, attrs["config"]), ORIGIN_KEY: origins}
        if trial.state == TrialState.PRUNED:
            return create_trial(state=TrialState.PRUNED, user_attrs={**kept, "reason": attrs["reason"]})
        reports = reports_of(epochs_of(attrs), objective)
        best = objective.best_of(reports)
        assert best is not None  # it is COMPLETE
        return create_trial(state=TrialState.COMPLETE, value=reports[best], user_attrs=kept)


@dataclass(frozen=True)
class Known:
    """What a plan has, from others, of a configuration at some seeds."""

    trials: Sequence[FrozenTrial]
    """Of the library."""
    seeds: Mapping[int, list[dict[str, Any]]]
    """The records of each seed that is known, by epoch."""
    origins: list[dict[str, Any]]
    """As under `ORIGIN_KEY`."""

    @property
    def text(self) -> str:
        """Where they were trained, in words."""
        return origins_text(self.origins)


def find_known(
    plan: Plan, config: ParamValues, seeds: Sequence[int], split_seed: int | None, processor: str
) -> Known | None:
    """Return what other plans have trained of a configuration, to the bits that it would have here.

    Args:
        plan: bound to its recipe.
        config: complete.
        seeds: that are to be trained together.
        split_seed: of the data, where the trial has a split of its own.
        processor: of the worker.
    """
    try:
        study_id = plan.storage.study_id(LIBRARY)
    except MissingError:
        return None
    digest = _digest(Setting.of(plan), config, split_seed)
    found = [
        (_seeds_of(point), id_of(trial))
        for trial in plan.storage.outlines.of(study_id)
        if (point := trial.user_attrs["point"]).startswith(digest)
    ]
    ids = [id_ for block, id_ in found if block == tuple(seeds)]
    if Setting.of(plan).may_mix:
        ids += [id_ for block, id_ in found if block != tuple(seeds) and not {*seeds}.isdisjoint(block)]
    known, used, origins = dict[int, list[dict[str, Any]]](), list[FrozenTrial](), list[dict[str, Any]]()
    for trial in plan.storage.whole(ids):
        attrs, epochs = trial.user_attrs, epochs_of(trial.user_attrs)
        block: list[int] = attrs["seeds"]
        is_whole = block == list(seeds)
        new = [seed for seed in seeds if seed in block and seed not in known]
        # of divergence nobody knows by which seed
        is_divisible = trial.state == TrialState.COMPLETE
        if not new or _unlike(attrs, processor) or not (is_whole or is_divisible):
            continue
        for seed in new:
            known[seed] = [records[block.index(seed)] for records in epochs]
        used.append(trial)
        parts = [{**each, "seeds": [s for s in each["seeds"] if s in new]} for each in attrs[ORIGIN_KEY]]
        origins += [each for each in parts if each["seeds"]]
        if is_whole:
            break
    return Known(used, known, origins) if used else None


def find_beginnings(
    plan: Plan,
    name: str,
    config: ParamValues,
    seeds: Sequence[int],
    split_seed: int | None,
    processor: str,
    n_epochs: int,
    *,
    depends_on_epochs: bool,
) -> list[Beginning]:
    """Return the checkpoints of other plans that training goes on from to the same bits, the newest first.

    Args:
        plan: bound to its recipe.
        name: of the trial's study.
        config: complete.
        seeds: that are to be trained together.
        split_seed: of the data, where the trial has a split of its own.
        processor: of the worker.
        n_epochs: that the trial is to have.
        depends_on_epochs: as `Recipe.depends_on_epochs` says of the configuration.
    """
    digest = _digest(Setting.of(plan), config, split_seed, of_any_length=True, is_final=name == FINAL)
    there = _at_points(plan, {f"{digest} {','.join(map(str, seeds))}"})
    return _usable(there, config, processor, n_epochs, depends_on_epochs)


def find_outputs(
    plan: Plan, config: ParamValues, seeds: Sequence[int], processor: str, n_epochs: int
) -> list[Beginning]:
    """Return where other plans have kept the outputs of such a final stage, that of the most seeds first.

    Args:
        plan: bound to its recipe.
        config: complete.
        seeds: of the final stage; each that is found has the first of them, or all.
        processor: of the worker.
        n_epochs: that it is to have.
    """
    there = _at_points(plan, _final_points(Setting.of(plan), config, seeds))
    found = _usable(there, config, processor, n_epochs, depends_on_epochs=True)
    whole = [each for each in found if each.epoch == n_epochs]
    return sorted(whole, key=lambda each: -len(each.seeds))


def _at_points(plan: Plan, points: Collection[str]) -> Iterable[FrozenTrial]:
    """Return what a plan knows of checkpoints of others under these names."""
    try:
        study_id = plan.storage.study_id(BEGINNINGS)
    except MissingError:
        return []
    outlines = plan.storage.outlines.of(study_id)
    return plan.storage.whole([id_of(each) for each in outlines if each.user_attrs["point"] in points])


def _final_points(setting: Setting, config: ParamValues, seeds: Sequence[int]) -> dict[str, int]:
    """Return by what a final stage of the first seeds of another is known, each with how many these are."""
    digest = _digest(setting, config, None, is_final=True)
    first = 1 if setting.may_mix else len(seeds)
    return {f"{digest} {','.join(map(str, seeds[:n]))}": n for n in range(first, len(seeds) + 1)}


def _usable(
    trials: Iterable[FrozenTrial],
    config: ParamValues,
    processor: str | None,
    n_epochs: int,
    depends_on_epochs: bool,
) -> list[Beginning]:
    """Return which of the checkpoints of a configuration can be gone on from, the newest first."""
    found = []
    for trial in trials:
        attrs = trial.user_attrs
        kept = attrs[KEPT_KEY]
        is_like = attrs["config"]["epochs"] == config["epochs"] or not depends_on_epochs
        if is_like and kept["epoch"] <= n_epochs and not _unlike(attrs, processor):
            found.append(Beginning(**kept, config=attrs["config"], origins=attrs[ORIGIN_KEY]))
    found.reverse()  # of the same epoch what was found last: the plan may have been moved since
    return sorted(found, key=lambda each: -each.epoch)


def reports_of(epochs: Sequence[Sequence[Mapping[str, Any]]], objective: Metric) -> dict[int, float]:
    """Return what is reported of epochs: the objective, mean over seeds."""
    return {
        number: fmean(seed["metrics"][objective.name] for seed in seeds)
        for number, seeds in enumerate(epochs, start=1)
    }


def origins_text(origins: Iterable[Mapping[str, Any]]) -> str:
    """Return what stands under `ORIGIN_KEY` in words."""
    by_plan: dict[str, list[str]] = {}
    for each in origins:
        by_plan.setdefault(each["plan"], []).append(f"{each['study']}/{each['trial']}")
    return " and ".join(f"{plan} as {', '.join(names)}" for plan, names in by_plan.items())


def of_other_plans(plan: Plan) -> str:
    """Return what a plan has of other plans, in words; empty where it has nothing."""
    attrs = plan.storage.study_attrs()
    if LIBRARY not in attrs:
        return ""
    storage = plan.storage
    n_there = len(storage.outlines.of(storage.study_id(LIBRARY)))
    names = [name for name in (*plan.specs, CONFIRM, CLAIMS, PRICE) if name in attrs]
    outlines = (t for name in names for t in storage.outlines.of(storage.study_id(name)))
    n_taken = sum(map(is_from_another_plan, outlines))
    there = ", ".join(attrs[LIBRARY].get("plans", []))
    plural = "result" if n_there == 1 else "results"
    text = f"{n_there} {plural} of {there} at hand; taken over whole so far: {n_taken}"
    if BEGINNINGS in attrs:
        kept = storage.values_of(storage.study_id(BEGINNINGS), KEPT_KEY).values()
        n_kept = len({each["folder"] for each in kept})
        text += f"; checkpoints of {_n_trials(n_kept)} to go on from"
    return text


def is_from_another_plan(trial: FrozenTrial) -> bool:
    """Return whether a trial, at least in outline, has its whole result from another plan."""
    reason: str = trial.user_attrs.get("reason", "")
    return reason.startswith(ELSEWHERE) or (reason_of(trial) == Reason.DIVERGED and ELSEWHERE in reason)


# --- the winner of another plan --------------------------------------------------------------------------


def with_starts(
    specs: Mapping[str, StudySpec], recipe: str, known: Mapping[str, Start]
) -> dict[str, StudySpec]:
    """Return the studies, with what they start from looked up where that is another plan's winner.

    Args:
        specs: as files have them.
        recipe: the name of the plan's.
        known: what was looked up before, by origin; then the other plan is not needed any more.

    Raises:
        StudyFileError: there is no such plan or study, it has not decided, or its configuration is none of
            this recipe.
    """
    found, complete = dict(known), dict(specs)
    for name, spec in specs.items():
        if spec.start is None:
            continue
        origin = spec.start.origin
        if "://" in origin and has_password(origin.removeprefix(PLAN_PREFIX)):
            raise StudyFileError(
                f"{name}.toml",
                "inherits holds a password, which would be stored with the plan; leave it out and have the "
                "driver find it, as in ~/.pgpass",
            )
        try:
            if origin not in found:
                found[origin] = _winner(origin, recipe, spec.parameters)
            complete[name] = spec.starting_from(found[origin])
        except HpoError as error:
            raise StudyFileError(f"{name}.toml", f"inherits = {origin!r}: {error}") from None
    return complete


def _winner(origin: str, recipe: str, schema: Schema) -> Start:
    place, _, name = origin.removeprefix(PLAN_PREFIX).rpartition("/")
    try:
        other = Plan.at(place)
    except MissingError as error:
        raise MissingError(str(error).partition(";")[0]) from None
    if name == FINAL:
        chosen = best_decided(other)
    elif name not in other.specs:
        raise InputError(f"{name} is not a study of that plan; {did_you_mean(name, [*other.specs, FINAL])}")
    else:
        chosen, decision = None, other.decision(name)
        if decision is not None:
            chosen = Inherited(
                study=name, source=decision.result, params=decision.params, value=decision.value
            )
    if chosen is None or not chosen.params:
        raise InputError(f"{other.storage.name}: {name} has not decided yet")
    try:
        params = schema.complete(chosen.params)
    except InputError as error:
        raise InputError(f"that plan's recipe is {other.recipe.name}, this one's {recipe}: {error}") from None
    return Start(
        origin=origin,
        source=chosen.source.name if chosen.source else "",
        params=params,
        metric=other.objective.name,
        value=chosen.value,
    )


# --- what must be the same -------------------------------------------------------------------------------


def _difference(setting: Setting, other: Plan) -> str:
    """Return the first thing by which all bits of another plan differ; empty where they need not."""
    ours, theirs = setting.identity, other.identity
    if other.recipe.name != setting.recipe.name:
        return f"its recipe is {other.recipe.name}, not {setting.recipe.name}"
    for module in sorted(other.recipe.sources.keys() | setting.recipe.sources.keys()):
        if other.recipe.sources.get(module) != setting.recipe.sources.get(module):
            return f"its recipe was another {module}.py, which has been changed since"
    if theirs.fingerprint != ours.fingerprint:
        given = ((key, getattr(other.options, key), getattr(setting.options, key)) for key in DATA_OPTIONS)
        told = [
            f"--{key.replace('_', '-')} {_given(there)} there, {_given(here)} here"
            for key, there, here in given
            if there != here
        ]
        return f"its data are others ({'; '.join(told) or 'in content, labels or split'})"
    for key, advice in _RESOLVED.items():
        there, here = getattr(theirs, key), getattr(ours, key)
        if there != here:
            return f"{key}: {there} there, {here} here ({advice})"
    return ""


def _given(value: object) -> str:
    return "left out" if value is None else str(value)


def _unlike(attrs: Mapping[str, Any], processor: str | None = None) -> str:
    """Return why what a trial has found may have other bits here; empty where it has the same.

    Args:
        attrs: of the trial.
        processor: of who asks; None: any will do.
    """
    theirs, here = attrs.get("versions", {}), versions()
    for package in DECISIVE:
        if theirs.get(package) != here[package]:
            return f"by {package} {theirs.get(package, 'unknown')}, here is {here[package]}"
    if "processor" not in attrs or attrs["processor"] != (processor or attrs["processor"]):
        return f"on {attrs.get('processor', 'an unknown processor')}"
    if any(note.endswith(MIXED_BITS) for note in attrs.get("notes", [])):
        return "on several kinds of machines, one after the other"
    return ""


def _of_another_split(setting: Setting, other: Plan, trial: FrozenTrial) -> str:
    limits = [(each.limit_train, each.limit_valid) for each in (setting.options, other.options)]
    return "on other splits" if "split_seed" in trial.user_attrs and limits[0] != limits[1] else ""


def _origins(storage: Storage, name: str, trial: FrozenTrial) -> list[dict[str, Any]]:
    """Return where a trial of a plan was trained: elsewhere, where that plan has it from, and there."""
    before: list[dict[str, Any]] = trial.user_attrs.get(ORIGIN_KEY, [])
    others = {seed for each in before if "epochs" not in each for seed in each["seeds"]}
    own = [seed for seed in trial.user_attrs["seeds"] if seed not in others]
    place = {"plan": storage.name, "study": name, "trial": trial.number, "seeds": own}
    return [*before, place] if own else before


def _beginnings_of(other: Plan, setting: Setting, place: str) -> dict[str, FrozenTrial]:
    """Return the checkpoints that a plan has kept and that count in this setting, by key.

    Args:
        other: has been found to have the same data and the like.
        setting: of the plan that is to have them.
        place: by which the other was found.
    """
    found, beside = dict(_passed_on(other, setting)), user_path(place) / "checkpoints"
    for key in (KEPT_KEY, OUTPUTS_KEY):
        for name, trial, kept, config in _kept_in(other, setting, key):
            attrs, is_beginning = trial.user_attrs, key == KEPT_KEY
            if (beside / kept.folder).is_dir():  # the output folder may have been moved since
                kept = kept.model_copy(update={"store": str(beside.absolute())})
            origins = [
                {**({"epochs": kept.epoch} if is_beginning else {}), **each, "seeds": seeds}
                for each in _origins(other.storage, name, trial)
                if (seeds := [seed for seed in each["seeds"] if seed in kept.seeds])
            ]
            copied = {
                "config": config,
                "processor": attrs["processor"],
                "versions": attrs["versions"],
                KEPT_KEY: kept.model_dump(),
                ORIGIN_KEY: origins,
            }
            if "split_seed" in attrs:
                copied["split_seed"] = attrs["split_seed"]
            split_seed, is_final = attrs.get("split_seed"), name == FINAL
            digest = _digest(setting, config, split_seed, of_any_length=is_beginning, is_final=is_final)
            point = f"{digest} {','.join(map(str, kept.seeds))}"
            where = zlib.crc32(
                f"{_kind(attrs['processor'], attrs['versions'])} {kept.store} {kept.folder}".encode()
            )
            found[attempt_key(point, where, kept.epoch)] = create_trial(
                state=TrialState.PRUNED, user_attrs=copied
            )
    return found


def _passed_on(other: Plan, setting: Setting) -> Iterator[tuple[str, FrozenTrial]]:
    """Yield what a plan knows of checkpoints of others, as far as that counts in this setting, by key."""
    try:
        study_id = other.storage.study_id(BEGINNINGS)
    except MissingError:
        return
    kinds: list[dict[str, bool]] = [
        {"of_any_length": True},
        {"of_any_length": True, "is_final": True},
        {"is_final": True},
    ]
    for trial in other.storage.whole([id_of(each) for each in other.storage.outlines.of(study_id)]):
        try:
            attrs = _Beginning.model_validate(trial.user_attrs)
        except ValueError:
            continue
        config, key = _completed(setting.schema, attrs.config), str(trial.user_attrs[ATTEMPT_KEY])
        if config is None or _unlike(trial.user_attrs):
            continue
        digests = (_digest(setting, config, attrs.split_seed, **kind) for kind in kinds)
        if key.partition(" ")[0] in digests:
            copied = attrs.model_dump(by_alias=True, exclude_unset=True)
            yield key, create_trial(state=TrialState.PRUNED, user_attrs={**copied, "config": config})


def _kept_in(
    other: Plan, setting: Setting, key: str
) -> Iterator[tuple[str, FrozenTrial, _Kept, ParamValues]]:
    """Yield trials of a plan with what it has kept of them, each with its complete configuration."""
    attrs_of = other.storage.study_attrs()
    options, objective = other.options, other.objective.name
    # the checkpoints of a final stage hold what it has found on the test set, at the best epoch by then
    is_like = (options.final_data, objective) == (setting.options.final_data, setting.objective.name)
    for name in (*other.specs, CONFIRM, CLAIMS, PRICE, *([FINAL] if is_like else [])):
        if name not in attrs_of:
            continue
        ids = list(other.storage.values_of(other.storage.study_id(name), key))
        discarded = attrs_of[name].get("discarded", {})
        for trial in other.storage.whole(ids):
            attrs = trial.user_attrs
            if str(trial.number) in discarded:
                continue
            config = _completed(setting.schema, attrs.get("config"))
            if config is None or not _is_readable(trial, setting.recipe.metrics):
                continue
            if _unlike(attrs) or _of_another_split(setting, other, trial):
                continue
            try:
                kept = _Kept.model_validate(attrs[key])
            except ValueError:
                continue
            yield name, trial, kept, config


def _nothing(storage: Storage, why: str) -> InputError:
    return InputError(f"--reuse {storage.name}: nothing of it has the bits that it would have here: {why}")


def _n_trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


def _ended(other: Plan, left_out: Counter[str]) -> Iterator[tuple[str, FrozenTrial]]:
    """Yield the trials of a plan that trained to their end, or diverged; count why others are left out."""
    attrs = other.storage.study_attrs()
    for name in (*other.specs, CONFIRM, CLAIMS, PRICE, LIBRARY):
        if name not in attrs:
            continue
        discarded = attrs[name].get("discarded", {})
        ids = []
        for trial in other.storage.outlines.of(other.storage.study_id(name)):
            has_diverged = reason_of(trial) == Reason.DIVERGED and AUDIT_KEY not in trial.user_attrs
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            if str(trial.number) in discarded:
                left_out["discarded"] += 1
            elif trial.state == TrialState.COMPLETE or has_diverged:
                ids.append(id_of(trial))
            else:
                left_out["pruned or cut short, which depends on the company that a trial is in"] += 1
        yield from ((name, trial) for trial in other.storage.whole(ids))


# --- by what they are found ------------------------------------------------------------------------------


class _Origin(BaseModel):
    plan: str
    study: str
    trial: int
    seeds: list[int]
    epochs: int | None = None


class _Kept(BaseModel):
    model_config = ConfigDict(strict=True)

    epoch: Annotated[int, Field(ge=1)]
    store: str
    folder: str
    seeds: Annotated[list[int], Field(min_length=1)]
    """That were trained together: not those that are from another plan."""


class _Beginning(BaseModel):
    """What is read of a checkpoint that another plan knows of."""

    model_config = ConfigDict(strict=True)

    config: dict[str, bool | int | float | str]
    processor: str
    versions: dict[str, str]
    split_seed: int | None = None
    kept: Annotated[_Kept, Field(alias=KEPT_KEY)]
    origins: Annotated[list[_Origin], Field(alias=ORIGIN_KEY)]


class _SeedEpoch(BaseModel):
    seed: int
    metrics: dict[str, FiniteFloat]
    train_loss: FiniteFloat | None
    predicted_classes: int | None
    seconds: FiniteFloat
    layers: dict[str, dict[str, float | None]] = {}


class _Result(BaseModel):
    """What is read of a trial of another plan: its database may be anybody's, and damaged."""

    model_config = ConfigDict(strict=True)

    config: dict[str, bool | int | float | str]
    seeds: Annotated[list[int], Field(min_length=1)]
    device: str
    processor: str = ""
    versions: dict[str, str] = {}
    notes: list[str] = []
    split_seed: int | None = None
    reason: str = ""
    origins: Annotated[list[_Origin], Field(alias=ORIGIN_KEY)] = []
    epochs: list[list[_SeedEpoch]]


def _is_readable(trial: FrozenTrial, metrics: Collection[str]) -> bool:
    """Return whether a trial has what results have, a record for each seed and epoch."""
    try:
        found = _Result.model_validate({**trial.user_attrs, "epochs": epochs_of(trial.user_attrs)})
    except ValueError:
        return False
    return bool(found.epochs or trial.state == TrialState.PRUNED) and all(
        [each.seed for each in epoch] == found.seeds
        and all(each.metrics.keys() >= {*metrics} for each in epoch)
        for epoch in found.epochs
    )


def _completed(schema: Schema, config: object) -> ParamValues | None:
    """Return a configuration with the parameters that came since at their defaults; None: it is another's."""
    try:
        return schema.complete(config) if isinstance(config, dict) else None
    except InputError:
        return None


def _digest(
    setting: Setting,
    config: ParamValues,
    split_seed: int | None,
    *,
    of_any_length: bool = False,
    is_final: bool = False,
) -> str:
    """Return a text that is equal exactly for what trains the same at the same seeds.

    The setting is in it, too: a library may be that of a plan whose making was cut short, or refused because
    another was there first.

    Args:
        setting: of the plan that asks.
        config: complete.
        split_seed: of the data, where the trial has a split of its own.
        of_any_length: whether trainings of more or fewer epochs have the same.
        is_final: whether it is of the final stage, whose checkpoints hold more.
    """
    effective, options = dict(setting.schema.effective(config)), setting.options
    if of_any_length:
        del effective["epochs"]
    identity = setting.identity.model_dump(mode="json", include={"fingerprint", *_RESOLVED})
    trained = canonical_json(
        {
            "config": effective,
            "split_seed": split_seed,
            "limits": [options.limit_train, options.limit_valid],
            "identity": identity,
            "recipe": [setting.recipe.name, setting.recipe.sources],
            **({"final": [options.final_data, setting.objective.name]} if is_final else {}),
        }
    )
    return hashlib.sha256(trained.encode()).hexdigest()[:32]


def _is_of(setting: Setting, config: ParamValues, trial: FrozenTrial) -> bool:
    """Return whether a trial of a library was taken over for a plan of this setting."""
    digest, attrs = _digest(setting, config, trial.user_attrs.get("split_seed")), trial.user_attrs
    return str(attrs[ATTEMPT_KEY]).startswith(f"{digest} ")


def _seeds_of(point: str) -> tuple[int, ...]:
    return tuple(map(int, point.rpartition(" ")[2].split(",")))


def _key(setting: Setting, config: ParamValues, trial: FrozenTrial) -> str:
    """Return what the library knows a trial by: what it trained and, in place of a replicate, on what."""
    attrs = trial.user_attrs
    seeds = ",".join(map(str, attrs["seeds"]))
    point = f"{_digest(setting, config, attrs.get('split_seed'))} {seeds}"
    return attempt_key(point, _kind(attrs["processor"], attrs["versions"]), 1)


def _kind(processor: str, packages: Mapping[str, str]) -> int:
    """Return a number for a processor and the versions that bits depend on."""
    return zlib.crc32(" ".join([processor, *(packages[name] for name in DECISIVE)]).encode())
