"""All that touches private parts of Lightning, and its loop over steps short of what nobody asks.

The loop is only speed: with a version of Lightning that is not known here, Lightning's own runs.
Import Lightning through this module or after `repro.training`, whose import of torchmetrics is
quick.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning
import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.enums import LightningEnum
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from typing_extensions import override

KNOWN_VERSIONS = ("2.6.",)  # whose loop over steps is the one that `Steps` shortens

# Hooks of a module or a data module that are called around a step, if somebody wrote them.
AROUND_A_STEP = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "on_train_batch_end",
)


def is_known() -> bool:
    """Whether the installed Lightning is one whose loop over steps may be replaced."""
    return lightning.__version__.startswith(KNOWN_VERSIONS)


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keeps Lightning from handling SIGTERM: it would leave without saving."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def quicken(trainer: pl.Trainer) -> None:
    """Spares a trainer what takes as long as the step of a small network; changes no number.

    For the rest of the process three functions of Lightning are replaced by faster ones with the
    same results, and this trainer's loop over steps by `Steps`. Lightning's Fabric would need none
    of that, but brings no callbacks, loggers and strategies as people have them for a `Trainer`.
    """
    if not is_known():
        return
    # Lightning inspects the signature of training_step at every step: once a function is enough.
    training_epoch_loop.is_param_in_hook_signature = _is_parameter_of  # type: ignore[assignment]
    _ResultMetric.to = _to  # type: ignore[assignment,method-assign]
    RunningStage.__eq__ = _is_same  # type: ignore[assignment,method-assign]
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = Steps(trainer, loop.min_steps, loop.max_steps)


def step_plainly(optimizer: Any) -> None:
    """Does what Lightning's ``optimizer.step()`` does where no loss is scaled, at less cost.

    Args:
        optimizer: what a module's ``self.optimizers()`` returns.
    """
    if not is_known():
        optimizer.step()
        return
    with counted_step(optimizer) as plain:
        plain.step()


class counted_step:  # noqa: N801 - used like a function; a generator would take as long as a step
    """A context in which an optimizer is stepped otherwise than by Lightning, which counts it.

    Args:
        optimizer: what a module's ``self.optimizers()`` returns; the context gives the plain one.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __enter__(self) -> Any:
        self.optimizer._on_before_step()
        return self.optimizer.optimizer

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self.optimizer._on_after_step()


def restore_loaders(trainer: pl.Trainer) -> None:
    """Puts the training data where the checkpoint had it; once more does no harm.

    Lightning does so itself unless ``configure_optimizers`` asked for the number of steps: then the
    loaders were there before the checkpoint was read, and would start the epoch anew.
    """
    trainer.fit_loop._load_combined_loader_states()


def epoch_row(trainer: pl.Trainer) -> tuple[dict[str, Any], int]:
    """What was logged in the epoch that ends, and the step whose row Lightning will write it in.

    For callbacks' ``on_train_epoch_end``: Lightning itself logs later.
    """
    step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
    return trainer._logger_connector.metrics["log"], step


def fresh_metrics(trainer: pl.Trainer) -> dict[str, Any]:
    """What was logged in the epoch, or the validation, that ends; Lightning keeps all it ever saw.

    For callbacks' ``on_train_epoch_end`` and ``on_validation_end``.
    """
    assert trainer._results is not None
    names = {result.meta.name for _, result in trainer._results.valid_items()}
    return {name: value for name, value in trainer.logged_metrics.items() if name in names}


def quiet_wandb(logger: WandbLogger) -> WandbLogger:
    """Takes out of a logger an argument that wandb warns of, and Lightning always gives it."""
    logger._wandb_init.pop("anonymous", None)
    return logger


def finish_wandb(logger: WandbLogger, exit_code: int) -> None:
    """Ends a logger's run, which would otherwise go on into the next run of this process."""
    if logger._experiment is not None:
        logger.experiment.finish(exit_code=exit_code)
        logger._experiment = None


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
        if self.val_loop.restarting:
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

    @override
    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        """A context in which nothing is measured."""
        return self.nothing


_to_anywhere = _ResultMetric.to


def _to(metric: _ResultMetric, *args: Any, **kwargs: Any) -> _ResultMetric:
    """Leaves what was logged where it is, if that is where it should be.

    Lightning copies all that it knows of a metric to find out: a third of what an epoch costs.
    """
    if metric.is_tensor and args == (metric.value.device,) and not kwargs:
        return metric
    return _to_anywhere(metric, *args, **kwargs)


def _is_same(stage: RunningStage, other: object) -> bool:
    """Compares stages, which Lightning does by their names in small letters, 16 times a step."""
    return stage is other if isinstance(other, RunningStage) else LightningEnum.__eq__(stage, other)


def _is_parameter_of(hook: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    return _is_parameter_of_function(getattr(hook, "__func__", hook), *args, **kwargs)


@functools.cache
def _is_parameter_of_function(function: Any, *args: Any, **kwargs: Any) -> bool:
    return is_param_in_hook_signature(function, *args, **kwargs)
