"""Handing the runs of a study to a Hydra launcher, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from repro.engine import compose
from repro.engine.execute import PARENT_VARIABLE, job
from repro.errors import ReproError


def launcher_overrides(
    hardware: DictConfig, n_jobs: int | str, typed: Sequence[str], runs: int
) -> list[str]:
    """The Hydra overrides that choose the launcher of a study.

    What the user typed wins; then the launcher that the hardware config names; then ``n_jobs``
    local processes.

    Args:
        hardware: the composed hardware config.
        n_jobs: processes side by side, or ``auto``.
        typed: overrides of Hydra's own settings from the command line.
        runs: how many runs the study has.
    """
    if any(text.startswith("hydra/launcher=") for text in typed):
        return list(typed)
    launcher = dict(hardware.launcher)
    name = launcher.pop("name")
    if name == "basic":
        jobs = _local_jobs(hardware, n_jobs, runs)
        if jobs > 1:
            name, launcher = "joblib", {"n_jobs": jobs}
    options = [f"hydra.launcher.{key}={value}" for key, value in launcher.items()]
    return [f"hydra/launcher={name}", *options, *typed]


def launch(layers: Sequence[Sequence[Path]], study: Path, overrides: Sequence[str]) -> None:
    """Runs every layer of run directories, a layer after the one before it is done.

    Raises:
        UserError: another process executes one of the runs.
        ReproError: a worker died, or the outcome of a run could not be recorded.
        KeyboardInterrupt: the user stopped the study.
    """
    with compose.hydra_ready():
        where = f"study={compose.quoted(str(study))}"
        config = compose.compose_config([*overrides, where, "run=none"], "launch", with_hydra=True)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks()),
            task_function=job,
            config=config,
        )
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        done = 0
        for layer in layers:
            jobs = [[f"run={compose.quoted(str(folder))}", where] for folder in layer]
            if jobs:
                _launch_layer(launcher, jobs, done)
            done += len(jobs)


def _launch_layer(launcher: Launcher, jobs: list[list[str]], first: int) -> None:
    """Launches jobs and raises what one of them raised: runs record failures of their own."""
    try:
        returned = launcher.launch(jobs, initial_job_idx=first)
    except Exception as error:
        if type(error).__name__ == "TerminatedWorkerError":
            raise ReproError(
                "A worker process was killed, perhaps because memory ran out. What was written "
                "stays valid: `repro resume` continues."
            ) from error
        raise
    for done in returned:
        if isinstance(done._return_value, Exception):
            raise done._return_value


def _local_jobs(hardware: DictConfig, n_jobs: int | str, runs: int) -> int:
    cores = len(os.sched_getaffinity(0))
    if n_jobs == "auto":
        is_light = hardware.accelerator in ("auto", "cpu") and hardware.strategy == "auto"
        # A worker takes seconds to import torch: worth it for some runs, not for a handful.
        return min(cores, runs // 4) if is_light and not _has_gpu() else 1
    return min(int(n_jobs), runs)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
