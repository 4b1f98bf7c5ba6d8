"""Lightning's loop over the steps of an epoch, short of what no module here asks of it."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden

# Hooks of a module or a data module that are called around a step, if somebody wrote them.
AROUND_A_STEP = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "on_train_batch_end",
)


class Steps(_TrainingEpochLoop):
    """Calls the step and the callbacks directly where Lightning would do no more than that.

    A module that optimises by hand on a CPU needs its batch, its step, the callbacks around it and
    the counters that checkpoints keep. Lightning also calls five hooks that do nothing, each with
    its ceremony: together they take as long as the step of a small network. Whatever is not that
    plain (other devices, automatic optimisation, a hook that somebody wrote) goes Lightning's way.
    """

    is_plain = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Looks once an epoch whether its steps are plain."""
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        module, data = trainer.lightning_module, trainer.datamodule
        self.is_plain = (
            trainer.world_size == 1
            and trainer.strategy.root_device.type == "cpu"
            and not module.automatic_optimization
            and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and not any(is_overridden(hook, module) for hook in AROUND_A_STEP)
            and not any(is_overridden(hook, data) for hook in AROUND_A_STEP[:3])
        )

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One step, in the order of Lightning's own."""
        if self.restarting or not self.is_plain:
            super().advance(data_fetcher)
            return
        trainer: Any = self.trainer
        module, progress = trainer.lightning_module, self.batch_progress
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = trainer.precision_plugin.convert_input(batch)
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        for callback in trainer.callbacks:
            callback.on_train_batch_start(trainer, module, batch, index)
        progress.increment_started()
        output = self.manual_optimization.run(self._build_kwargs(OrderedDict(), batch, index))
        progress.increment_processed()
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, output, batch, index)
        trainer._logger_connector.on_batch_end()
        progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()


class NotProfiling(PassThroughProfiler):
    """Measures nothing, and at less cost than Lightning's: a step enters it often."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        """A context in which nothing is measured."""
        return self.nothing
