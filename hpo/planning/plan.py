"""The plan: studies in one database, with the options and the identity of the data that they share.

A plan is written once, whole: every study with its definition, the options that change results and the
identity of the data; no trials. From then on `scheduler.advance` is an idempotent function of the database
that any idle worker runs. Studies come in inheritance order; the reserved study `final` ends the plan, and
before it comes, where that was asked for, `confirm`.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from optuna.trial import FrozenTrial

from hpo.errors import ConflictError, InputError, MissingError
from hpo.planning.decisions import Decision, Inherited
from hpo.planning.manifest import (
    Identity,
    Options,
    PlanManifest,
    RecipeRecord,
    StudyRecord,
    checked,
    defined,
    deleted,
    unreadable,
)
from hpo.planning.metrics import Metric
from hpo.planning.race import blocks
from hpo.planning.studies import directions, with_ancestors
from hpo.planning.verdicts import default_delta
from hpo.space.claim_file import Claims
from hpo.space.schema import Schema
from hpo.space.study_file import CONFIRM_NAME, FINAL_NAME, StudySpec
from hpo.storage.database import default_name, url_of
from hpo.storage.queue import Slot
from hpo.storage.storage import Storage

FINAL, CONFIRM = FINAL_NAME, CONFIRM_NAME
FINAL_SLOT = Slot("final")
CONTROL_SLOT = Slot("control")
CLAIMS = "claims"
"""The study of what was trained for claims alone; it is there from the first `hpo run --claims` on."""
PRICE = "price"
"""The study of points that cross studies; it is there from the first `hpo price` on."""
MODEL, WRONG_IMAGES = "model.safetensors", "most-confidently-wrong.png"
"""The files that the final stage leaves in an output folder."""
FINAL_SEED_OFFSET = 10_000
"""The final stage's seeds start so far above the search's that the two never meet."""
CONFIRM_SEED_OFFSET = 20_000
"""The confirmation's seeds start above both."""


def final_seeds(options: Options) -> tuple[int, ...]:
    """Return the seeds of the final stage of a plan; the search uses none of them."""
    first = options.seed + FINAL_SEED_OFFSET
    return tuple(range(first, first + options.final_seeds))


@dataclass(frozen=True)
class Plan:
    """The studies of one database, with options and identity as recorded."""

    storage: Storage
    specs: Mapping[str, StudySpec]
    """By name, parents before children."""
    options: Options
    identity: Identity
    recipe: RecipeRecord
    created_with: Mapping[str, str]
    """Versions of what results depend on, when the plan was created."""
    given_name: str = ""
    """As `--name` gave it."""
    id: str = ""
    """What tells its files from those of others in a store; plans of before 2026-11-28 have none."""

    # --- making and finding ------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        specs: Mapping[str, StudySpec],
        options: Options,
        identity: Identity,
        recipe: RecipeRecord,
        claims: Claims | None = None,
    ) -> Plan:
        """Write the plan: studies, definitions, options; no trials. Doing it twice does no harm.

        The mark that the plan is whole is written last: killed on the way, the next `create` goes on.
        """
        record = {
            "options": options.model_dump(),
            "identity": identity.model_dump(mode="json"),
            "recipe": recipe.model_dump(mode="json"),
            "versions": versions(),
        }
        direction = recipe.objective(options.metric).direction
        for name, study in specs.items():
            storage.create_study(name, {"definition": study.to_json(), **record}, direction)
        if options.confirm:
            storage.create_study(CONFIRM, record, direction)
        stated = {} if claims is None else {"claims": claims.to_json()}
        id_ = storage.study_attrs().get(FINAL, {}).get("id") or secrets.token_hex(8)
        storage.create_study(FINAL, {**record, **stated, "id": id_, "plan": list(specs)}, direction)
        return cls(storage, specs, options, identity, recipe, record["versions"], id=id_)

    @classmethod
    def find(cls, storage: Storage) -> Self | None:
        """Return the plan of a database; None where none was written, or not to the end.

        Raises:
            InputError: what is there was changed or deleted, or is another version's; the text says where.
        """
        attrs = storage.study_attrs()
        if "plan" not in attrs.get(FINAL, {}):
            # a plan whose making was cut short has not begun; what has been tested must not be tested again
            if any("n_points" in of_study for of_study in attrs.values()):
                raise deleted(storage, FINAL)
            return None
        if "recipe" not in attrs[FINAL]:
            raise InputError(
                f"{storage.name}: its plan was created by an hpo that had no recipes; finish it with that "
                "version, or start anew with another --out"
            )
        mark = checked(PlanManifest, storage, FINAL, attrs)
        schema, specs = mark.recipe.parameters, dict[str, StudySpec]()
        for name in mark.plan:
            record = checked(StudyRecord, storage, name, attrs, schema)
            study = defined(storage, name, record, schema)
            if study.inherits is not None and study.inherits not in specs:
                raise unreadable(storage, name, f"inherits = {study.inherits!r}: no study before it")
            specs[name] = study
        for name in (CONFIRM, FINAL) if mark.options.confirm else (FINAL,):
            checked(StudyRecord, storage, name, attrs, schema)
        return cls(
            storage, specs, mark.options, mark.identity, mark.recipe, mark.versions, mark.name, mark.id
        )

    @classmethod
    def open(cls, storage: Storage) -> Self:
        """Return the plan of a database.

        Raises:
            MissingError: there is none.
        """
        plan = cls.find(storage)
        if plan is None:
            raise MissingError(f"{storage.name}: holds no plan; `hpo run` or `hpo create` writes one")
        return plan

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """Return the plan of an output folder or of a database URL, to be read.

        Raises:
            MissingError: there is none.
        """
        return cls.open(Storage(url_of(str(place)), reader=True))

    @property
    def mark(self) -> dict[str, str]:
        """What goes into the names of its folders in a store, where another plan may train the same."""
        return {"plan": self.id} if self.id else {}

    @property
    def name(self) -> str:
        """What people call the plan: by default as its folder, or its database on a server."""
        return self.given_name or default_name(self.storage.url)

    def named(self, name: str | None) -> Plan:
        """Return the plan under a name, written down where it is another; None changes nothing."""
        if name in (None, self.name):
            return self
        self.storage.set_study_attr(self.storage.study_id(FINAL), "name", name)
        return replace(self, given_name=name)

    def with_confirmation(self, given: Mapping[str, Any]) -> Plan:
        """Return the plan with a confirmation before its final stage, and write that down.

        Args:
            given: options of the confirmation, as `Options` names them.

        Raises:
            InputError: an option cannot be used.
            ConflictError: the final stage has begun, or a study of the plan has that name.
        """
        options = Options.from_given({**self.options.model_dump(), **given, "confirm": True})
        if CONFIRM in self.specs:
            raise ConflictError(
                f"{self.storage.name}: a study of this plan is called {CONFIRM!r}, which is the name of the "
                "confirmation; rename its file, and start anew with --confirm"
            )
        final_id, attrs = self.storage.study_id(FINAL), self.storage.study_attrs()[FINAL]
        record = {key: attrs[key] for key in ("identity", "recipe", "versions")}
        record["options"] = options.model_dump()
        self.storage.create_study(CONFIRM, record, self.objective.direction)
        # the step that counts: a final stage that has begun, or begins now, comes before or after it
        if not self.storage.swap_study_attr(
            final_id,
            "options",
            record["options"],
            expected={"options": attrs["options"], "inherited": None},
        ):
            raise ConflictError(
                f"{self.storage.name}: the final stage has begun, and with it the test set was opened on the "
                "configuration as it was; a confirmation has to come before that: start anew with --confirm "
                "and another --out"
            )
        return replace(self, options=options)

    def stored_decisions(self) -> dict[int, dict[str, Any]]:
        """Return what the studies have decided, as `Storage.swap_study_attrs` is told what must still hold.

        Ask before what is going to be written is derived from the decisions: then none of them can be taken
        back between the look and the write.

        Raises:
            ConflictError: the plan was given a confirmation or a study since this process read it.
        """
        attrs = self.storage.study_attrs()
        mark, was_given = checked(PlanManifest, self.storage, FINAL, attrs), ""
        if mark.options != self.options:
            was_given = "a confirmation"
        elif more := [name for name in mark.plan if name not in self.specs]:
            was_given = f"the study {more[0]}"
        if was_given:
            raise ConflictError(
                f"{self.storage.name}: the plan was given {was_given} meanwhile; run the command again"
            )
        found = {
            self.storage.study_id(name): {"decision": attrs[name].get("decision")} for name in self.specs
        }
        final = {key: attrs[FINAL][key] for key in ("options", "plan")}
        return {**found, self.storage.study_id(FINAL): final}

    def begin_final(self, inherited: Inherited, decisions: Mapping[int, Mapping[str, Any]]) -> bool:
        """Write down what the final stage trains, unless somebody has, or a decision was taken back.

        Args:
            inherited: the configuration.
            decisions: as `stored_decisions` had them before.
        """
        final_id = self.storage.study_id(FINAL)
        return self.storage.swap_study_attr(
            final_id,
            "inherited",
            inherited.model_dump(mode="json"),
            expected={**decisions[final_id], "inherited": None},
            elsewhere=decisions,
        )

    def with_study(self, study: StudySpec, extends: str) -> Plan:
        """Return the plan with one more study, and write that down.

        Args:
            study: the new one.
            extends: the name of the study whose results it takes over.

        Raises:
            ConflictError: the plan was given another study meanwhile.
        """
        attrs, definition = self.storage.study_attrs(), study.to_json()
        record = {key: attrs[FINAL][key] for key in ("options", "identity", "recipe", "versions")}
        self.storage.create_study(study.name, {**record, "extends": extends}, self.objective.direction)
        names = list(self.specs)
        names.insert(names.index(extends) + 1, study.name)
        study_id, final_id = self.storage.study_id(study.name), self.storage.study_id(FINAL)
        # of two who make it at once it has the definition, and is in the plan, of the same one; what a kill
        # between the two steps leaves is in no plan, and the next one makes it his
        if not self.storage.swap_study_attr(
            study_id,
            "definition",
            definition,
            expected={"definition": attrs.get(study.name, {}).get("definition")},
            elsewhere={final_id: {"plan": list(self.specs)}},
        ) or not self.storage.swap_study_attr(
            final_id,
            "plan",
            names,
            expected={"plan": list(self.specs)},
            elsewhere={study_id: {"definition": definition}},
        ):
            raise ConflictError(
                f"{self.storage.name}: the plan was given another study meanwhile; run the command again"
            )
        specs = {**self.specs, study.name: study}
        return replace(self, specs={name: specs[name] for name in names})

    def bound_to(self, schema: Schema) -> Plan:
        """Return the plan with the schema of the recipe itself, which knows what means nothing in a point."""
        return replace(
            self,
            recipe=self.recipe.model_copy(update={"parameters": schema}),
            specs={name: study.bound_to(schema) for name, study in self.specs.items()},
        )

    @property
    def schema(self) -> Schema:
        """The recipe's parameters."""
        return self.recipe.parameters

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The recipe's metrics, in its order."""
        return tuple(Metric(name, direction) for name, direction in self.recipe.metrics.items())

    @cached_property
    def objective(self) -> Metric:
        """The metric that the plan tunes for."""
        return self.recipe.objective(self.options.metric)

    def objectives_of(self, name: str) -> list[Metric]:
        """Return the two objectives of a study, costs as if they were metrics; none where it has the one."""
        study = self.specs[name]
        return [Metric(each, way) for each, way in directions(study, self.recipe.metrics).items()]

    @cached_property
    def chances(self) -> dict[Metric, float]:
        """What guessing reaches, by metric as far as that is known."""
        found = {metric: metric.chance(len(self.identity.class_names)) for metric in self.metrics}
        return {metric: chance for metric, chance in found.items() if chance is not None}

    # --- names and seeds -----------------------------------------------------------------------------

    def with_ancestors(self, names: Iterable[str]) -> list[str]:
        """Return the named studies and the earlier ones that they need, in order.

        Raises:
            InputError: an unknown name; the text says what is near.
        """
        names = list(names)
        if (names == [CLAIMS] and self.has_cells) or (names == [PRICE] and self.has_price):
            return names
        if self.confirms and CONFIRM in names:
            return [*self.specs, CONFIRM]
        return with_ancestors(self.specs, names, self.options.inherit)

    @property
    def has_cells(self) -> bool:
        """Whether anything is trained for claims alone, in a study of its own."""
        return CLAIMS not in self.specs and CLAIMS in self.storage.study_attrs()

    @property
    def has_price(self) -> bool:
        """Whether points across studies are trained, in a study of their own."""
        return PRICE not in self.specs and PRICE in self.storage.study_attrs()

    @property
    def confirms(self) -> bool:
        """Whether a confirmation comes before the final stage."""
        return self.options.confirm

    @property
    def all_names(self) -> list[str]:
        """Every study, the confirmation where there is one, the final stage last."""
        return [*self.specs, *([CONFIRM] if self.confirms else []), FINAL]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The block of seeds that every point of the search is trained on."""
        return self.seeds_of(0)

    def seeds_of(self, replicate: int) -> tuple[int, ...]:
        """Return the seeds that a replicate of a point of the search is trained on."""
        found = blocks(self.options.max_seeds) if self.races else [range(self.options.first_seeds)]
        return tuple(self.options.seed + place for place in found[replicate])

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """All seeds that a point of the search may be trained on."""
        return tuple(range(self.options.seed, self.options.seed + self.options.most_seeds))

    @property
    def races(self) -> bool:
        """Whether points get further seeds where a decision is open."""
        return self.options.races

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """The seeds of the final stage; the search uses none of them."""
        return final_seeds(self.options)

    def confirm_seed(self, place: int) -> int:
        """Return one of the confirmation's seeds, counted from 0; neither search nor final stage uses it."""
        return self.options.seed + CONFIRM_SEED_OFFSET + place

    @property
    def delta(self) -> float:
        """Differences of the objective below it do not matter."""
        return default_delta(self.objective) if self.options.delta is None else self.options.delta

    # --- what a study is made of ---------------------------------------------------------------------

    def trials(self, name: str) -> list[FrozenTrial]:
        """Return every Optuna trial of a study, lost and superseded attempts included, by number."""
        return self.storage.trials(self.storage.study_id(name))

    def record(self, name: str) -> StudyRecord:
        """Return what the database holds of a study now.

        Raises:
            InputError: somebody has changed it by hand into something else.
        """
        return checked(StudyRecord, self.storage, name, self.storage.study_attrs(), self.schema)

    def records(self) -> dict[str, StudyRecord]:
        """Return what `record` does, of every study, those of claims and price too; the final stage last."""
        attrs = self.storage.study_attrs()
        *others, final = self.all_names
        more = [name for name in (CLAIMS, PRICE) if name in attrs and name not in self.specs]
        names = [*others, *more, final]
        return {name: checked(StudyRecord, self.storage, name, attrs, self.schema) for name in names}

    def discarded(self, name: str) -> set[int]:
        """Return the numbers of the trials of a study that do not count now; much cheaper than `record`."""
        found = self.storage.study_attr(self.storage.study_id(name), "discarded")
        return {int(number) for number in found or ()}

    def spec(self, name: str) -> StudySpec:
        """Return a study as the database has it now: it may have been extended since it was read."""
        known, record = self.specs[name], self.record(name)
        is_same = record.definition == known.to_json()
        return known if is_same else defined(self.storage, name, record, self.schema)

    def decision(self, name: str) -> Decision | None:
        """Return what a study decided; None while it is open."""
        return self.record(name).decision


def opened(plan: Plan | Path | str) -> Plan:
    """Return a plan; of an output folder or a database URL that which is there.

    Raises:
        MissingError: there is none.
    """
    return plan if isinstance(plan, Plan) else Plan.at(plan)


@cache  # 2.5 ms a call, and every trial records them
def versions() -> dict[str, str]:
    """Return versions of what results depend on."""
    packages = {"hpo": "hpo-studies", "optuna": "optuna", "torch": "torch", "numpy": "numpy"}
    return {"python": platform.python_version(), **{key: version(name) for key, name in packages.items()}}
