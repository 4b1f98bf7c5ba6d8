"""trials.db: Optuna's storage of a search, opened by the search itself and by each of its runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from alembic.util import CommandError
from omegaconf import OmegaConf
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from repro.errors import ReproError, UserError, first_line
from repro.planning.instantiate import instantiate
from repro.records import files
from repro.search.request import Request

FILE = "trials.db"
NAME = "search"
AGAIN = "Delete it to search again; the runs that are done are not repeated."
DAMAGED = f"{{}} is damaged or not a database. {AGAIN}"
CHECKSUM = "checksum"  # the attribute of a finished trial; those of earlier versions have none
# What Optuna and its Alembic raise where the database holds what they never wrote.
SENSELESS = (
    AssertionError,
    AttributeError,
    CommandError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
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

    def finish(
        self,
        number: int,
        state: TrialState,
        objective: float | None,
        reason: str,
        values: list[float],
    ) -> FrozenTrial:
        """Writes the outcome of a trial down, with a checksum of all that is known of it.

        Args:
            number: of the trial.
            state: how it ended.
            objective: what it reached, if it came to its end.
            reason: why there is no objective; empty if there is one.
            values: the metric of each seed, as far as it was measured.

        Returns:
            The trial as it stands then.
        """
        trial = self.get_trials(deepcopy=False)[number]
        if state is TrialState.PRUNED and trial.last_step is not None:
            value: float | None = trial.intermediate_values[trial.last_step]  # as `tell` takes it
        else:
            value = objective
        result = {"reason": reason, "values": values}
        trial_id = self._id_of(number)
        for key, each in (result | {CHECKSUM: _checksum(trial, state, value, result)}).items():
            self.storage.set_trial_user_attr(trial_id, key, each)
        return self.tell(number, objective, state=state)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Writes a value that a trial has reached, from which its pruner judges."""
        self.storage.set_trial_intermediate_value(self._id_of(number), epoch, value)

    def check(self) -> None:
        """Looks through all pages, of which SQLite reads only some otherwise, and all trials.

        Raises:
            UserError: the pages do not fit together, or a trial is not what was written.
        """
        file = self.storage.engine.url.database
        with self.storage.engine.connect() as connection:
            if connection.execute(text("PRAGMA quick_check(1)")).scalar() != "ok":
                raise UserError(DAMAGED.format(file))
        with _making_sense(file):
            studies, trials = self.storage.get_all_studies(), self.get_trials(deepcopy=False)
        if [study.study_name for study in studies] != [NAME]:  # what was there lost its name
            raise UserError(DAMAGED.format(file))
        for trial in trials:
            if trial.state.is_finished() and not _is_whole(trial):
                raise UserError(
                    f"{file} is damaged: trial {trial.number} is not what was written. {AGAIN}"
                )

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
        # The wait for a lock has to end some time.
        connect = {"connect_args": {"timeout": float(request.settings["lock_seconds"])}}
        pruner = instantiate(OmegaConf.create(request.settings["pruner"]), "sweep")
        with _making_sense(file):
            storage = RDBStorage(f"sqlite:///{file}", engine_kwargs=connect)
        try:
            with _making_sense(file):
                is_loss = request.mode == "min"
                direction = StudyDirection.MINIMIZE if is_loss else StudyDirection.MAXIMIZE
                optuna.create_study(
                    storage=storage, study_name=NAME, direction=direction, load_if_exists=True
                )
                trials = Trials(storage, sampler=sampler(request, 0), pruner=pruner)
            yield trials
        finally:
            storage.engine.dispose()


def sampler(request: Request, number: int) -> Any:
    """The sampler for one trial: its own seed each, so that a search goes on as if never killed."""
    config = OmegaConf.create(request.settings["sampler"])
    config.seed = config.get("seed", 0) + number
    return instantiate(config, "sweep")


def _is_whole(trial: FrozenTrial) -> bool:
    """Whether a trial that has ended is what `Trials.finish` wrote."""
    result = {key: trial.user_attrs.get(key) for key in ("reason", "values")}
    expected = trial.user_attrs.get(CHECKSUM)
    if expected is None:  # of an earlier version, or killed while its point was being asked for
        return trial.state is TrialState.FAIL or result["values"] is not None
    return bool(expected == _checksum(trial, trial.state, trial.value, result))


def _checksum(
    trial: FrozenTrial, state: TrialState, value: float | None, result: dict[str, Any]
) -> str:
    distributions = {key: distribution_to_json(one) for key, one in trial.distributions.items()}
    content = [trial.number, state.name, value, result, trial.params, distributions]
    content.append(sorted(trial.intermediate_values.items()))
    return files.checksum(json.dumps(content, sort_keys=True).encode())


@contextmanager
def _making_sense(file: object) -> Iterator[None]:
    """Says so where Optuna finds in its tables what it never wrote.

    Raises:
        UserError: it does.
    """
    try:
        yield
    except SENSELESS as error:
        raise UserError(DAMAGED.format(file)) from error


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
        reason = first_line(error.__cause__ or error)
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
