"""Optuna studies that are not ours, wherever Optuna keeps them; they are only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url

from hpo._files import user_path
from hpo.errors import InputError, MissingError, did_you_mean
from hpo.storage.database import first_line, shown

SQLITE_MAGIC = b"SQLite format 3\0"


def foreign_name(source: str) -> str:
    """Return a file or a URL as people may see it."""
    return shown(source) if "://" in source and not source.startswith("redis") else source.rpartition("@")[2]


@dataclass(frozen=True)
class ForeignStudy:
    """What is read of one."""

    name: str
    directions: Sequence[str]
    """maximize or minimize, of each objective."""
    trials: Sequence[FrozenTrial]


def load_foreign(source: str, name: str | None = None) -> ForeignStudy:
    """Read an Optuna study.

    Args:
        source: URL of a database, a SQLite file, or a journal file.
        name: of the study; None: the only one that is there.

    Raises:
        InputError: there is no such storage, Optuna cannot read it, or it has several studies.
        MissingError: it has no study, or none of that name.
    """
    told, storage = foreign_name(source), None
    try:
        storage = _opened(source)
        names = [study.study_name for study in storage.get_all_studies()]
        if not names:
            raise MissingError(f"{told}: holds no Optuna study")
        if name is None and len(names) > 1:
            raise InputError(f"{told}: holds several studies; name one: --optuna-study {' | '.join(names)}")
        if name is not None and name not in names:
            raise MissingError(f"{told}: holds no study {name!r}; {did_you_mean(name, names)}")
        study_id = storage.get_study_id_from_name(name or names[0])
        directions = [each.name.lower() for each in storage.get_study_directions(study_id)]
        return ForeignStudy(name or names[0], directions, storage.get_all_trials(study_id))
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise InputError(f"{told}: is not an Optuna storage that can be read: {first_line(error)}") from None
    except OSError as error:
        raise InputError(f"{told}: {error.strerror or error}") from None
    except (ImportError, RuntimeError, ValueError, KeyError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{told}: is not an Optuna storage that can be read: {why[0]}") from None
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def _opened(source: str) -> BaseStorage:
    if source.startswith("redis"):
        return JournalStorage(JournalRedisBackend(source))
    if "://" in source:
        url = make_url(source)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise MissingError(f"{source}: no such file")  # which SQLite would make
        return RDBStorage(source, skip_table_creation=True)
    file = user_path(source)
    with file.open("rb") as opened:
        is_sqlite = opened.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if is_sqlite:
        return RDBStorage(f"sqlite:///{file.absolute()}", skip_table_creation=True)
    return JournalStorage(JournalFileBackend(str(file)))
