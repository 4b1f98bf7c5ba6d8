"""Handing the runs of a study to a Hydra launcher, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from repro.engine import compose
from repro.engine.execute import job
from repro.errors import UserError, did_you_mean


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

    Raises:
        UserError: n_jobs is neither ``auto`` nor a positive number.
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
        UserError: the launcher is not installed.
        KeyboardInterrupt: the user stopped the study.
    """
    with compose.hydra_ready():
        _check_launcher(overrides)
        where = f"study={quote(study)}"
        config = compose.compose_config([*overrides, where, "run=none"], "launch", with_hydra=True)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks()),
            task_function=job,
            config=config,
        )
        done = 0
        for layer in layers:
            jobs = [[f"run={quote(folder)}", where] for folder in layer]
            if jobs:
                launcher.launch(jobs, initial_job_idx=done)
            done += len(jobs)


def quote(path: Path) -> str:
    """A path as a quoted value in Hydra's override grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _local_jobs(hardware: DictConfig, n_jobs: int | str, runs: int) -> int:
    cores = len(os.sched_getaffinity(0))
    if n_jobs == "auto":
        is_light = hardware.accelerator in ("auto", "cpu") and hardware.strategy == "auto"
        # A worker takes seconds to import torch: worth it for some runs, not for a handful.
        return min(cores, runs // 4) if is_light and not _has_gpu() else 1
    if not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs < 1:
        raise UserError(f"n_jobs is 'auto' or a number of processes from 1 on, not {n_jobs!r}.")
    return min(n_jobs, runs)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _check_launcher(overrides: Sequence[str]) -> None:
    asked = next((o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher=")), None)
    known = compose.launcher_names()
    if asked is not None and asked not in known:
        extra = " It comes with: pip install 'repro[slurm]'." if "submitit" in asked else ""
        raise UserError(
            f"There is no Hydra launcher '{asked}'.{did_you_mean(asked, known)}{extra} "
            f"Installed: {', '.join(known)}."
        )
