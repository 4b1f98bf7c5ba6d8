"""Trackers beside metrics.csv: what a run's logger is called, where it writes, what it is given.

Each function named in conf/logger/ makes the Lightning logger of one subject: a run, or a study,
whose verdicts and figures have no run of their own. Lightning sends it the metrics; `tracked` and
`publish` send the rest.
"""

from __future__ import annotations

import hashlib
import html
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, singledispatch
from pathlib import Path
from shutil import copy

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from repro.planning import extras
from repro.planning.instantiate import instantiate
from repro.records import files
from repro.records.layers import flatten
from repro.records.run import Run, RunRecord
from repro.records.study import Study, StudyRecord
from repro.training.lightning import finish_wandb, quiet_wandb

Subject = Run | Study


def loggers(config: DictConfig, subject: Subject) -> list[Logger]:
    """The trackers that a run's config asks for, besides metrics.csv.

    A `UserError` says so if a package is missing.
    """
    extras.require(config.logger.loggers)
    built = [instantiate(each, "logger") for each in config.logger.loggers.values()]
    return [each(subject) if isinstance(each, partial) else each for each in built]


def tensorboard(subject: Subject) -> TensorBoardLogger:
    """Event files in the run directory: ``tensorboard --logdir outputs`` finds them.

    Args:
        subject: what is tracked.
    """
    return TensorBoardLogger(
        save_dir=subject.folder, name="", version="tensorboard", default_hp_metric=False
    )


def mlflow(subject: Subject, tracking_uri: str | None, experiment: str) -> MLFlowLogger:
    """A run in an MLflow database, which goes on when the run is resumed.

    Args:
        subject: what is tracked.
        tracking_uri: the database or server; None: mlflow.db in the outputs folder.
        experiment: the experiment's name, where ``{paper}`` and ``{scale}`` are filled in.
    """
    from mlflow.store.db import utils  # noqa: F401 - sets up loggers, which are silenced next

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    outputs = _study(subject).folder.parents[2]
    files.check_allowed(outputs / "mlflow.db")
    uri = tracking_uri or f"sqlite:///{outputs / 'mlflow.db'}"
    # Creating the database and the experiment is a race.
    with files.exclusive_lock(outputs / ".mlflow.lock", wait=True):
        logger = MLFlowLogger(
            experiment_name=experiment.format(**_names(subject)),
            run_name=_name(subject),
            tracking_uri=uri,
            artifact_location=None if tracking_uri else str(outputs / "mlflow"),
            run_id=_record(subject).mlflow_run,
            tags={"study": str(_study(subject).folder)},
        )
        if logger.run_id != _record(subject).mlflow_run:
            subject.update(mlflow_run=logger.run_id)
    return logger


def wandb(subject: Subject, project: str, mode: str) -> WandbLogger:
    """A run of Weights & Biases; offline ones wait in the outputs folder for `wandb sync`.

    Args:
        subject: what is tracked.
        project: the project's name.
        mode: ``offline`` or ``online``.
    """
    from wandb import Settings

    study = _study(subject).folder
    files.check_allowed(study.parents[2] / "wandb")
    logger = WandbLogger(
        project=project,
        group=f"{'/'.join(_names(subject).values())}/{study.name}",
        name=_name(subject),
        id=hashlib.sha256(str(subject.folder).encode()).hexdigest()[:16],
        save_dir=study.parents[2],
        mode=mode,
        resume="allow",
        # The terminal belongs to `repro`, and one machine's load is no result.
        settings=Settings(silent=True, console="off", x_disable_stats=True),
    )
    return quiet_wandb(logger)


@contextmanager
def tracked(run: Run, config: DictConfig) -> Iterator[list[Logger]]:
    """The trackers of a run, which get its settings now, and its summary and artifacts at the end.

    A `UserError` says so if a package is missing.
    """
    trackers = loggers(config, run)
    succeeded = False
    try:
        _describe(trackers, config)
        yield trackers
        succeeded = True
        paths = [run.config_file, run.summary_file]
        paths += sorted(run.artifacts_folder.glob("*.*"))
        for logger in trackers:
            attach(logger, [path for path in paths if path.is_file()], {})
    finally:
        close(trackers, succeeded)


def _describe(trackers: Iterable[Logger], config: DictConfig) -> None:
    """Gives every tracker the hyper-parameters: the composed config, flattened."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    flat = flatten({key: value for key, value in plain.items() if key not in ("module", "logger")})
    for logger in trackers:
        if isinstance(logger, TensorBoardLogger):  # its table of settings needs a metric's name
            logger.log_hyperparams(flat, {config.training.monitor: math.nan})
        else:
            logger.log_hyperparams(flat)


@singledispatch
def attach(logger: Logger, paths: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Gives a tracker files and Markdown texts; one that is not known here gets none."""


@attach.register
def attach_to_tensorboard(
    logger: TensorBoardLogger, paths: Sequence[Path], texts: Mapping[str, str]
) -> None:
    """Pictures as images; settings and tables as text."""
    from matplotlib.image import imread

    for path in paths:
        if path.suffix == ".png":
            logger.experiment.add_image(path.stem, imread(path), dataformats="HWC")
        elif path.suffix in (".json", ".yaml"):
            logger.experiment.add_text(path.name, f"```\n{path.read_text(encoding='utf-8')}\n```")
    for name, text in texts.items():
        logger.experiment.add_text(name, text)
    logger.experiment.flush()


@attach.register
def attach_to_mlflow(logger: MLFlowLogger, paths: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Files as artifacts."""
    for path in paths:
        logger.experiment.log_artifact(logger.run_id, str(path))
    for name, text in texts.items():
        logger.experiment.log_text(logger.run_id, text, f"{name}.md")


@attach.register
def attach_to_wandb(logger: WandbLogger, paths: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Pictures as images, texts as pages, and every file with the run."""
    from wandb import Html, Image

    for path in paths:
        if path.suffix == ".png":
            logger.experiment.log({path.stem: Image(str(path))})
        copy(path, logger.experiment.dir)  # all that lies there belongs to the run
    for name, text in texts.items():
        logger.experiment.log({name: Html(f"<pre>{html.escape(text)}</pre>")})


def close(trackers: Iterable[Logger], succeeded: bool = True) -> None:
    """Ends what would otherwise go on into the next run of this process."""
    for logger in trackers:
        logger.finalize("success" if succeeded else "failed")
        if isinstance(logger, WandbLogger):
            finish_wandb(logger, exit_code=0 if succeeded else 1)


def publish(study: Study, texts: Mapping[str, str]) -> None:
    """Gives the trackers of a study its figures, as a run of the study's own.

    Args:
        study: the study.
        texts: what else to send, as Markdown by name.
    """
    config = study.runs[0].config()
    trackers = loggers(config, study)
    results = [study.verdicts_file, study.search_file]
    paths = [*sorted(study.figures_folder.glob("*.*")), *(f for f in results if f.is_file())]
    for logger in trackers:
        logger.log_hyperparams(study.about.model_dump(include={"paper", "scale", "typed"}))
        attach(logger, paths, texts)
    close(trackers)


def _study(subject: Subject) -> Study:
    return subject if isinstance(subject, Study) else Study.around(subject.folder)


def _names(subject: Subject) -> dict[str, str]:
    record = _record(subject)
    return {"paper": record.paper, "scale": record.scale}


def _name(subject: Subject) -> str:
    return subject.folder.relative_to(_study(subject).folder.parent).as_posix()


def _record(subject: Subject) -> RunRecord | StudyRecord:
    return subject.about if isinstance(subject, Study) else subject.record()
