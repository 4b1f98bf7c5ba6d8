"""Executing a run is one function of its run directory, in this process or any other.

``python -m repro.training.execute RUN_DIR`` does it in a process of its own, which is also what
Lightning's data-parallel launcher starts again for every further rank.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import INTERRUPTED, ReproError, UserError, first_line
from repro.planning import trust
from repro.records import files, names, provenance
from repro.records.run import Failure, Run, RunRecord, process_identity
from repro.records.status import Status
from repro.records.study import Study
from repro.records.typed import now
from repro.training.log_file import logged_to
from repro.training.startup import import_lightning
from repro.training.stopping import PARENT_VARIABLE, StopRequest, do_not_outlive, parent_of_worker

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig

    from repro.training.checkpoints import Checkpoints
    from repro.training.series import CsvLogger
    from repro.training.watch import Watch

log = logging.getLogger("repro")
KEPT_SUMS = {names.RUN_CONFIG}  # those of files that an attempt does not write anew


def job(config: DictConfig) -> ReproError | None:
    """What a Hydra launcher calls for each run of a study.

    Returns:
        Why nothing could be recorded of the run, if so: of what is raised Hydra prints many lines.

    Raises:
        KeyboardInterrupt: somebody asked to stop, so that the launcher starts no further run.
    """
    parent = parent_of_worker()
    try:
        execute(Path(config.run))
    except ReproError as error:
        return error
    except KeyboardInterrupt:
        if parent is not None and os.getppid() != parent:
            os._exit(1)  # nobody is left to tell; a worker would wait for work for minutes
        raise
    return None


def execute(folder: Path) -> Status:
    """Executes or continues the run in ``folder``; several devices get a process of their own.

    A `KeyboardInterrupt` says so if a signal asked to stop, although the run may have
    ended all the same; a `UserError`, if another process executes the run.
    """
    run = Run.open(folder)
    if _is_multi_process(run.config().hardware):
        return _execute_apart(run)
    return execute_here(run)


def execute_here(run: Run, job: str | None = None) -> Status:
    """Executes or continues a run in this process; failures end up in run.json, not in the air.

    Args:
        run: the run.
        job: the Slurm job that this process is, if it is one.

    A `ReproError` says so if the outcome could not be recorded (the disk is full, say); a
    `UserError`, if another process executes the run.

    A `KeyboardInterrupt` says so if a signal asked to stop; the run may have ended all the
    same.
    """
    import_lightning()  # now, because it sets up loggers that are redirected below
    with _confined(run):
        return _execute(run, job)


def _execute(run: Run, job: str | None) -> Status:
    """Does what `execute_here` promises.

    Raises:
        KeyboardInterrupt: A signal asked to stop. The run may have ended all the same.
        ReproError: The outcome could not be recorded.
    """
    if not is_main_process():
        return _execute_beside(run)
    started = time.monotonic()
    with run.held(), logged_to(run.log_file), StopRequest(run.folder) as stop:
        record = run.record()
        if record.status.is_final:
            return record.status
        if run.job != job:
            run.forget_job()
        _record_start(run, record)
        outcome: dict[str, Any]
        try:
            with _tracked(run) as trackers:
                outcome = _train_and_test(run, stop, trackers, is_main=True)
        except Exception as error:
            outcome = {"status": Status.FAILED, "error": describe_error(error, run)}
            log.error("%s", traceback.format_exc())
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the former into the latter
            outcome = {"status": Status.INTERRUPTED}
        seconds = (record.seconds or 0.0) + time.monotonic() - started
        try:
            _record_outcome(run, outcome, seconds)
        except ReproError as error:
            log.error("%s", error)
            if stop.requested:  # it must not be lost, or the next run would begin
                raise KeyboardInterrupt from error
            raise
    if stop.requested:
        raise KeyboardInterrupt
    return Status(outcome["status"])


def _execute_beside(run: Run) -> Status:
    """Takes part in a run whose files another process writes."""
    status = run.status()
    if status.is_final:
        return status  # as the main process will find, too
    with StopRequest(run.folder) as stop, _tracked(run) as trackers:
        _train_and_test(run, stop, trackers, is_main=False)
    return Status.FINISHED


def _record_start(run: Run, record: RunRecord) -> None:
    """Writes into run.json that another attempt has begun."""
    kept = KEPT_SUMS & record.checksums.keys()
    run.update(
        status=Status.RUNNING,
        started=now(),
        error=None,
        attempts=record.attempts + 1,
        checksums={name: record.checksums[name] for name in kept},
        **process_identity(),
    )


def _record_outcome(run: Run, outcome: dict[str, Any], seconds: float) -> None:
    """Writes into run.json what became of a run, after so many seconds of all attempts."""
    is_final = outcome["status"].is_final
    if is_final:
        outcome["progress"] = 1.0
    run.update(
        **outcome,
        live=None,
        ended=now(),
        seconds=round(seconds, 3),
        peak_memory_mb=_peak_memory_mb(),
    )
    if is_final:
        run.previous_checkpoint.unlink(missing_ok=True)


@contextmanager
def _confined(run: Run) -> Iterator[None]:
    """Keeps a run that may be somebody else's from writing elsewhere.

    Raises:
        UserError: there is a link in its directory.
    """
    if trust.is_trusted():
        yield
        return
    links = [path for path in run.folder.rglob("*") if path.is_symlink()]
    if links:
        raise UserError(f"{links[0]} is a link, which could lead anywhere. {trust.TRUST}")
    study = Study.above(run.folder)
    with files.confined(run.folder) if study is None else study.confined():
        yield


def is_main_process() -> bool:
    """Whether this is the first of a run's processes: the one that writes files."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def describe_error(error: BaseException, run: Run) -> Failure:
    """The record of a failure: whose fault, what happened, where to read more."""
    if isinstance(error, OSError) and error.errno:
        error = files.explain_os_error(error, run.folder)
    message = str(error) if isinstance(error, ReproError) else f"{type(error).__name__}: {error}"
    kind = "user" if isinstance(error, UserError) else "run"
    return Failure(kind=kind, message=message.strip(), traceback=traceback.format_exc())


def _execute_apart(run: Run) -> Status:
    """Executes a run in a process of its own, which hears of every signal that this one gets.

    Raises:
        KeyboardInterrupt: one of them asked to stop.
    """
    # Its own session: Ctrl-C would otherwise reach it twice, and twice means at once.
    command = [sys.executable, "-m", "repro.training.execute", str(run.folder)]
    with StopRequest(run.folder) as stop:
        # Lightning starts the ranks, also within an allocation of Slurm, which has its own way.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment[PARENT_VARIABLE] = str(os.getpid())
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        stop.tell = process.send_signal
        code = process.wait()
    if stop.requested:
        raise KeyboardInterrupt
    status = run.status()
    if status is Status.WAITING:  # it did not come far enough to say so itself
        message = f"Its process ended with exit code {code} before the run began."
        status = Status.FAILED
        run.update(status=status, error=Failure(kind="run", message=message, traceback=""))
    return status


def build_module(config: DictConfig, data: Any = None) -> pl.LightningModule:
    """Builds the LightningModule that a composed config describes.

    Args:
        config: a run's config.
        data: what a `repro.training.procedure.Procedure` is to find under that name.
    """
    from repro.planning.instantiate import instantiate

    module: pl.LightningModule = instantiate(config.module, "module")
    if data is not None:
        module.data = data
    return module


def build_trainer(config: DictConfig, **extra: Any) -> pl.Trainer:
    """Builds the Lightning trainer that a composed config describes."""
    import lightning.pytorch as pl

    from repro.training.checkpoints import AtomicFiles
    from repro.training.lightning import NotProfiling, leave_signals_alone, quicken

    hardware, training = config.hardware, config.training
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        sync_batchnorm=hardware.get("sync_batchnorm", False),
        max_epochs=training.epochs,
        max_steps=-1 if training.max_steps is None else training.max_steps,
        limit_train_batches=training.steps_per_epoch,
        check_val_every_n_epoch=training.val_every,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=NotProfiling(),
        detect_anomaly=training.get("detect_anomaly", False),
        plugins=[AtomicFiles()],
        **extra,
    )
    quicken(trainer)
    leave_signals_alone(trainer)  # `StopRequest` handles them
    return trainer


def _train_and_test(
    run: Run, stop: StopRequest, trackers: list[Logger], is_main: bool
) -> dict[str, Any]:
    """Trains a run, tests what was trained and writes its summary; returns what became of it."""
    from repro.training import hardware

    fit = _prepare(run, stop, trackers)
    if is_main:
        run.update(versions=provenance.versions(), hardware=hardware.describe())
    outcome = _train(fit)
    if outcome["status"] == Status.INTERRUPTED and _is_rehearsal(run) and not stop.requested:
        del fit  # or there would be two of them in memory
        gc.collect()
        fit = _prepare(run, stop, trackers)
        outcome = _train(fit)
    if stop.requested and outcome["status"] != Status.DIVERGED:
        outcome = {"status": Status.INTERRUPTED}
    if outcome["status"] == Status.INTERRUPTED:
        return outcome
    final = fit.checkpoints.logged
    if outcome["status"] == Status.FINISHED:
        final = final | (_test(fit) or fit.checkpoints.latest)
        lost = _not_finite(final)
        if lost is not None:
            log.warning("diverged: %s", lost)
            outcome = {"status": Status.DIVERGED, "reason": lost}
    if is_main:
        outcome["checksums"] = run.record().checksums | _summarise(fit, final)
        fingerprint = getattr(fit.data, "fingerprint", None)
        outcome["data"] = None if fingerprint is None else fingerprint()
    return outcome


@dataclass
class _Fit:
    """Everything that training a run takes."""

    run: Run
    config: DictConfig
    data: Any
    module: pl.LightningModule
    trainer: pl.Trainer
    series: CsvLogger
    watch: Watch
    checkpoints: Checkpoints
    own: list[Any]


def _prepare(run: Run, stop: StopRequest, trackers: list[Logger]) -> _Fit:
    """Builds data, module and trainer, in this order, from the run's seed."""
    import lightning.pytorch as pl
    import torch

    from repro.planning.instantiate import instantiate
    from repro.training.checkpoints import Checkpoints
    from repro.training.series import CsvLogger
    from repro.training.speed import set_arithmetic, speed_up
    from repro.training.watch import Watch

    config = run.config()
    training = config.training
    torch.set_num_threads(config.hardware.threads)
    on_cpu = config.hardware.accelerator == "cpu" or not torch.cuda.is_available()
    set_arithmetic(config.hardware.get("tf32"))
    torch.use_deterministic_algorithms(config.hardware.deterministic, warn_only=not on_cpu)
    pl.seed_everything(config.seed, workers=True, verbose=False)

    data = instantiate(config.dataset, "dataset")
    module = build_module(config, data)
    speed_up(module, config.hardware)
    _start_from_parent(run, module)
    series = CsvLogger(run.series_file)
    checkpoints = Checkpoints(
        folder=run.checkpoints_folder,
        monitor=training.monitor,
        mode=training.mode,
        should_stop=lambda: stop.requested,
        **training.checkpoint,
    )
    watch = Watch(training.log_every, report=_Reporter(run, training.monitor, checkpoints))
    own = _own_callback(run)
    trainer = build_trainer(
        config,
        default_root_dir=run.folder,
        logger=[series, *trackers],
        callbacks=[watch, *own, *_callbacks(config), checkpoints],
    )
    return _Fit(run, config, data, module, trainer, series, watch, checkpoints, own)


class _Reporter:
    """Notes in run.json how far training is.

    Args:
        run: the run.
        monitor: the metric that it selects by.
        checkpoints: which knows that metric, as a number, since the last validation.
    """

    def __init__(self, run: Run, monitor: str, checkpoints: Checkpoints) -> None:
        self.run, self.monitor, self.checkpoints = run, monitor, checkpoints
        self.started = time.monotonic()
        self.first: float | None = None  # what was done before

    def __call__(self, done: float, steps_per_second: float, loss: float | None) -> None:
        """Writes it down."""
        if self.first is None:
            self.first, self.started = done, time.monotonic()
        elapsed, fresh = time.monotonic() - self.started, done - self.first
        measures = {"loss": loss, self.monitor: self.checkpoints.validated.get(self.monitor)}
        self.run.update(
            progress=round(done, 4),
            live={
                "steps_per_second": round(steps_per_second, 3),
                "seconds_left": round(elapsed / fresh * (1 - done), 1) if fresh > 0 else None,
                "measures": {
                    name: value
                    for name, value in measures.items()
                    if value is not None and math.isfinite(value)
                },
            },
        )


def _train(fit: _Fit) -> dict[str, Any]:
    """Trains from the last checkpoint, if there is one; returns what became of it.

    Raises:
        UserError: the checkpoint does not belong to the run's model.
    """
    from repro.training.checkpoints import Interrupted, newest_state
    from repro.training.watch import Diverged

    last = fit.run.last_checkpoint
    resume_from = newest_state(fit.run)
    if resume_from is not None:
        fit.series.continue_from(resume_from.get("series"), resume_from["global_step"])
        log.info("continuing after step %d", resume_from["global_step"])
    try:
        fit.trainer.fit(
            fit.module,
            datamodule=fit.data,
            ckpt_path=None if resume_from is None else last,
            weights_only=True,
        )
    except Interrupted:
        return {"status": Status.INTERRUPTED}
    except Diverged as reason:
        log.warning("diverged: %s", reason)
        return {"status": Status.DIVERGED, "reason": str(reason)}
    except Exception as error:
        could_be_foreign = isinstance(error, RuntimeError | KeyError | ValueError)
        if could_be_foreign and resume_from is not None and not fit.watch.steps:
            raise UserError(
                f"{last} does not belong to this run's model: {first_line(error)}\n"
                "Delete it to start this run again."
            ) from error
        raise
    pruned = any(each.pruned for each in fit.own)
    return {"status": Status.PRUNED if pruned else Status.FINISHED}


def _test(fit: _Fit) -> dict[str, float]:
    """Tests what was trained, unless the config says not to; returns what the test logged."""
    from repro.training.checkpoints import scalars

    if fit.config.training.test_with == "none":
        return {}
    _load_for_test(fit.run, fit.module, fit.config)
    fit.trainer.test(fit.module, datamodule=fit.data, verbose=False)
    return scalars(fit.trainer.logged_metrics)


def _summarise(fit: _Fit, metrics: dict[str, float]) -> dict[str, str]:
    """Writes metrics.csv and summary.json; returns their checksums."""
    fit.series.write()
    final = {name: value for name, value in metrics.items() if math.isfinite(value)}
    final |= {"steps": fit.trainer.global_step, **fit.watch.times()}
    files.write_json(fit.run.summary_file, dict(sorted(final.items())))
    written = (fit.run.series_file, fit.run.summary_file)
    return {file.name: files.checksum(file.read_bytes()) for file in written}


@contextmanager
def _tracked(run: Run) -> Iterator[list[Logger]]:
    """The trackers of a run beside metrics.csv; importing them takes long, so only if asked for."""
    config = run.config()
    if not config.logger.loggers:
        yield []
        return
    from repro.training import loggers

    with loggers.tracked(run, config) as trackers:
        yield trackers


def _own_callback(run: Run) -> list[Any]:
    """The callback that run.json asks for, such as a search's, which may find a run hopeless."""
    from omegaconf import OmegaConf

    from repro.planning.instantiate import instantiate

    name = run.record().callback
    if name is None:
        return []
    callback = OmegaConf.create({"_target_": name, "_partial_": True})
    return [instantiate(callback, "callback")(run)]


def _callbacks(config: DictConfig) -> list[Any]:
    """The callbacks that were chosen, and the profiler."""
    from repro.planning.instantiate import instantiate

    chosen = list((config.get("callbacks") or {}).values())
    if config.get("profiler"):
        chosen.append(config.profiler)
    return [instantiate(each, "callback") for each in chosen]


def _is_rehearsal(run: Run) -> bool:
    """Whether the run stops by itself halfway, to be resumed."""
    return run.record().callback == trust.REHEARSING


def _not_finite(metrics: dict[str, float]) -> str | None:
    """Says which loss is not finite, if one is; other metrics may be undefined without harm."""
    lost = [name for name, value in metrics.items() if not math.isfinite(value)]
    for name in lost:
        log.warning("%s is %s at the end and is left out of the summary", name, metrics[name])
    losses = [name for name in lost if name.endswith("/loss")]
    return f"{', '.join(losses)} not finite at the end" if losses else None


def _start_from_parent(run: Run, module: pl.LightningModule) -> None:
    from repro.training.checkpoints import read_checkpoint
    from repro.training.procedure import Procedure

    parent = run.parent()
    if parent is None:
        return
    checkpoint = read_checkpoint(parent.last_checkpoint)
    if checkpoint is None:
        raise ReproError(
            f"It starts from {parent.folder}, which has no checkpoint ({parent.status()}). "
            "Resume the study once that run is finished."
        )
    if isinstance(module, Procedure):
        module.start_from(checkpoint)
    else:
        module.load_state_dict(checkpoint["state_dict"])


def _load_for_test(run: Run, module: pl.LightningModule, config: DictConfig) -> None:
    from repro.training.checkpoints import read_checkpoint

    if config.training.test_with == "best":
        checkpoint = read_checkpoint(run.best_checkpoint)
        if checkpoint is None:
            raise UserError(
                f"training.test_with=best, but nothing named {config.training.monitor} was logged."
            )
        module.load_state_dict(checkpoint["state_dict"])


def _is_multi_process(hardware: DictConfig) -> bool:
    one_device = hardware.devices in (1, "1") and hardware.num_nodes == 1
    return hardware.strategy != "auto" or not one_device


def _peak_memory_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def main() -> int:
    """Executes the run directory given on the command line."""
    parent = parent_of_worker()
    if parent is not None:
        threading.Thread(target=do_not_outlive, args=(parent,), daemon=True).start()
    try:
        status = execute_here(Run.open(Path(sys.argv[1])))
    except KeyboardInterrupt:
        return INTERRUPTED
    except ReproError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0 if status.is_final else 1


if __name__ == "__main__":
    sys.exit(main())
