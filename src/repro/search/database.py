"""trials.db: Optuna's storage of a search, opened by the search itself and by each of its runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from repro.errors import ReproError, UserError
from repro.planning.instantiate import instantiate
from repro.records import files
from repro.search.request import Request

FILE = "trials.db"
NAME = "search"
DAMAGED = (
    "{} is damaged or not a database. Delete it to search again; the runs that are done are not "
    "repeated."
)


class Trials(optuna.Study):
    """A study that can write into trials which it did not ask for itself.

    Args:
        storage: where the trials are.
        **settings: sampler and pruner.
    """

    def __init__(self, storage: RDBStorage, **settings: Any) -> None:
        super().__init__(NAME, storage, **settings)
        self.storage = storage

    def note(self, number: int, **attributes: Any) -> None:
        """Writes attributes of a trial."""
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(self._id_of(number), key, value)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Writes a value that a trial has reached, from which its pruner judges."""
        self.storage.set_trial_intermediate_value(self._id_of(number), epoch, value)

    def check(self) -> None:
        """Has SQLite look through its pages, of which it reads only some otherwise.

        Raises:
            UserError: they do not fit together.
        """
        with self.storage.engine.connect() as connection:
            if connection.execute(text("PRAGMA quick_check(1)")).scalar() != "ok":
                raise UserError(DAMAGED.format(self.storage.engine.url.database))

    def _id_of(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(NAME)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)


@contextmanager
def opened(folder: Path, request: Request) -> Iterator[Trials]:
    """Opens the trials of the search in ``folder``, and creates them the first time.

    A `UserError` says so if the file is locked by another process, or is no database; a
    `ReproError`, if it cannot be written to.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / FILE
    files.check_allowed(file)
    with _explained(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # NullPool-like care is not needed, but a lock must not be waited for without end.
        connect = {"connect_args": {"timeout": float(request.settings["lock_seconds"])}}
        storage = RDBStorage(f"sqlite:///{file}", engine_kwargs=connect)
        try:
            is_loss = request.mode == "min"
            direction = StudyDirection.MINIMIZE if is_loss else StudyDirection.MAXIMIZE
            optuna.create_study(
                storage=storage, study_name=NAME, direction=direction, load_if_exists=True
            )
            pruner = instantiate(OmegaConf.create(request.settings["pruner"]), "sweep")
            yield Trials(storage, sampler=sampler(request, 0), pruner=pruner)
        finally:
            storage.engine.dispose()


def sampler(request: Request, number: int) -> Any:
    """The sampler for one trial: its own seed each, so that a search goes on as if never killed."""
    config = OmegaConf.create(request.settings["sampler"])
    config.seed = config.get("seed", 0) + number
    return instantiate(config, "sweep")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turns what SQLite has to say into a line for people.

    Raises:
        UserError: the file is locked by another process, or is no database.
        ReproError: SQLite said something else.
    """
    logger = optuna.logging.get_logger("optuna.storages")
    before, logger.disabled = logger.disabled, True  # it would print the whole SQL statement
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        if "locked" in reason:
            raise UserError(
                f"{file} is locked by another process. End that one, then: "
                f"repro resume {file.parent}"
            ) from error
        if "not a database" in reason or "malformed" in reason:
            raise UserError(DAMAGED.format(file)) from error
        raise ReproError(f"{file}: {reason}") from error
    finally:
        logger.disabled = before
