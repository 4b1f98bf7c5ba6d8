"""Stopping a hopeless trial: a Lightning callback between a run and the search's database."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from optuna.trial import TrialState
from typing_extensions import override

from repro.errors import ReproError, UserError, did_you_mean
from repro.records.run import Run
from repro.records.study import Study
from repro.search import database
from repro.search.request import request_of

log = logging.getLogger("repro")


class PruneHopeless(Callback):
    """Reports the metric after every validation, and stops training when the search says so.

    Args:
        run: the first seed of a trial; its run.json holds the trial's number.
    """

    def __init__(self, run: Run) -> None:
        trial = run.record().trial
        assert trial is not None
        self.trial = trial
        study = Study.around(run.folder)
        self.folder = study.folder
        self.request = request_of(study)
        self.pruned = False
        self.validated = False

    @override
    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Notes that there is a fresh value."""
        self.validated = not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Reports a fresh value; every rank learns the decision of the first.

        Raises:
            UserError: there is no such metric.
        """
        if not self.validated:
            return
        self.validated = False
        metric = self.request.metric
        value = trainer.callback_metrics.get(metric)
        if value is None:
            raise UserError(unknown_metric(metric, trainer.callback_metrics))
        hopeless = trainer.is_global_zero and self._is_hopeless(
            trainer.current_epoch + 1, float(value)
        )
        if trainer.world_size > 1:
            hopeless = trainer.strategy.reduce_boolean_decision(hopeless, all=False)
        # The last epoch is done: what it cost is spent, and its value is worth having.
        if hopeless and trainer.current_epoch + 1 != trainer.max_epochs:
            self.pruned = trainer.should_stop = True

    def _is_hopeless(self, epoch: int, value: float) -> bool:
        if not math.isfinite(value):
            return False
        try:
            with database.opened(self.folder, self.request) as trials:
                return _report(trials, self.trial, epoch, value)
        except ReproError as error:  # a busy database is no reason to lose a run
            log.warning("not reported to the search: %s", error)
            return False


def unknown_metric(metric: str, logged: Iterable[str]) -> str:
    """Says which metrics there are instead."""
    known = sorted(name for name in logged if name.startswith("val/"))
    return f"No run logs '{metric}'.{did_you_mean(metric, known)} Known: {', '.join(known)}."


def _report(trials: database.Trials, number: int, epoch: int, value: float) -> bool:
    trial = trials.get_trials(deepcopy=False)[number]
    if trial.state is not TrialState.RUNNING:  # the run is executed again, outside the search
        return False
    trials.report(number, epoch, value)
    return trials.pruner.prune(trials, trials.get_trials(deepcopy=False)[number])
