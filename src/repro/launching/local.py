"""Handing the runs of a study to a Hydra launcher, layer by layer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from repro.errors import ReproError, UserError
from repro.launching import slurm
from repro.planning import compose
from repro.records.run import Run
from repro.training.execute import PARENT_VARIABLE, job

if TYPE_CHECKING:
    from repro.planning.plan import Plan


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
        jobs = local_jobs(hardware, n_jobs, runs)
        if jobs > 1:
            name, launcher = "joblib", {"n_jobs": jobs}
    options = [_launcher_option(key, value) for key, value in launcher.items()]
    return [f"hydra/launcher={name}", *options, *typed]


def check(plan: Plan, detach: bool) -> None:
    """Finds out whether a study could be launched, before anything of it is written.

    Args:
        plan: the study.
        detach: whether it is to go on without this process.

    Raises:
        UserError: the launcher's settings are wrong, or there is no cluster here.
    """
    config = plan.runs[0].config
    overrides = launcher_overrides(
        config.hardware, config.n_jobs, plan.hydra_overrides, len(plan.runs)
    )
    with compose.hydra_ready():
        _launcher_config(overrides, Path("none"))
    if uses_slurm(overrides):
        slurm.check_available()
    elif detach:
        raise UserError(
            "--detach leaves a study to a cluster. Choose one: hardware=slurm_cpu, slurm_gpu, …"
        )


def uses_slurm(overrides: Sequence[str]) -> bool:
    """Whether these overrides choose Slurm."""
    return f"hydra/launcher={slurm.LAUNCHER}" in overrides


def launch(layers: Sequence[Sequence[Run]], study: Path, overrides: Sequence[str]) -> None:
    """Runs every layer, each after the one before it is done; Slurm's jobs are only submitted.

    Raises:
        UserError: another process executes one of the runs, or Slurm refuses them.
        ReproError: a worker died, or the outcome of a run could not be recorded.
        KeyboardInterrupt: the user stopped the study.
    """
    with compose.hydra_ready():
        config = _launcher_config(overrides, study)
        if uses_slurm(overrides):
            slurm.submit(layers, study, config.hydra.launcher)
            return
        where = f"study={compose.quoted(str(study))}"
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
            jobs = [[f"run={compose.quoted(str(run.folder))}", where] for run in layer]
            if jobs:
                _launch_layer(launcher, jobs, done)
            done += len(jobs)


def _launcher_config(overrides: Sequence[str], study: Path) -> DictConfig:
    where = f"study={compose.quoted(str(study))}"
    return compose.compose_config([*overrides, where, "run=none"], "launch", with_hydra=True)


def _launcher_option(key: str, value: Any) -> str:
    add = "++" if OmegaConf.is_dict(value) else ""  # else a mapping may only lose keys
    return f"{add}hydra.launcher.{key}={_typed(value)}"


def _typed(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if OmegaConf.is_dict(value):
        return "{" + ",".join(f"{key}:{_typed(each)}" for key, each in value.items()) + "}"
    if OmegaConf.is_list(value):
        return "[" + ",".join(_typed(each) for each in value) + "]"
    return compose.quoted(value) if isinstance(value, str) else json.dumps(value)


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


def local_jobs(hardware: DictConfig, n_jobs: int | str, runs: int) -> int:
    """How many of a study's runs go side by side on this machine."""
    cores = len(os.sched_getaffinity(0))
    if n_jobs == "auto":
        is_light = hardware.accelerator in ("auto", "cpu") and hardware.strategy == "auto"
        # A worker takes seconds to import torch: worth it for some runs, not for a handful.
        return min(cores, runs // 4) if is_light and not _has_gpu() else 1
    return min(int(n_jobs), runs)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
