"""Handing the runs of a study to Hydra launchers, layer by layer, each run to its own."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from repro.claims.studies import judge_study
from repro.errors import ReproError, UserError, first_line
from repro.launching import queue, slurm
from repro.launching.growing import extend
from repro.planning import compose, trust
from repro.records.run import Run
from repro.records.study import Study
from repro.training.execute import job
from repro.training.stopping import PARENT_VARIABLE

if TYPE_CHECKING:
    from repro.planning.plan import Plan

AnyRun = TypeVar("AnyRun")
Overrides = tuple[str, ...]


def run_study(study: Study, wait: bool = True) -> None:
    """Executes every run that is not done, each through its own launcher.

    Args:
        study: whose runs.
        wait: whether to wait for Slurm's jobs; other launchers return when they are done.

    A `KeyboardInterrupt` says so if the user stopped it; what was done stays.
    """
    launch(study, [[r for r in layer if not r.status().is_final] for layer in study.layers])
    if wait:
        wait_for(study.runs)


def conclude(study: Study) -> None:
    """Judges a study whose last job has ended, and submits what its open claims need more.

    A process that waits for the jobs goes on by itself: it holds the study.
    """
    if not study.is_judged:
        return
    judge_study(study)
    if study.about.looks is None:
        return
    try:
        with study.held():
            grown = Study.open(study.folder)  # another job may have been faster
            has_ended = all(run.status().has_ended for run in grown.runs)
            if has_ended and extend(grown) is not None:
                run_study(grown, wait=False)
    except UserError as error:
        logging.getLogger(__name__).warning("The study does not go on by itself: %s", error)


def wait_for(runs: Sequence[Run]) -> None:
    """Waits until no Slurm job is left to work on some runs."""
    while any(queue.is_submitted(run) for run in runs):
        time.sleep(queue.FRESH_SECONDS)


def check(plan: Plan, detach: bool) -> None:
    """Finds out whether a study could be launched, before anything of it is written.

    Args:
        plan: the study.
        detach: whether it is to go on without this process.

    Raises:
        UserError: a launcher's settings are wrong, or there is no cluster here.
    """
    groups = check_launchers(plan)
    if any(map(uses_slurm, groups)):
        slurm.check_available()
    if detach and not all(map(uses_slurm, groups)):
        raise UserError(
            "--detach leaves a study to a cluster. Choose one: hardware=slurm_cpu, slurm_gpu, …"
        )


def check_launchers(plan: Plan) -> list[Overrides]:
    """Finds out whether the launchers of a study take their settings.

    Returns:
        The Hydra overrides that choose each.

    A `UserError` says so if one does not.
    """
    groups = _by_launcher(plan.runs, lambda run: run.content, plan.hydra_overrides)
    with compose.hydra_ready():
        for overrides in groups:
            config = _launcher_config(overrides, Path("none"))
            if uses_slurm(overrides):
                slurm.check_settings(config.hydra.launcher)
            else:
                _launcher(config)
    return list(groups)


def launch(study: Study, layers: Sequence[Sequence[Run]], n_jobs: int | str | None = None) -> None:
    """Runs every layer, each after the one before it is done; Slurm's jobs are only submitted.

    Args:
        study: whose runs.
        layers: the runs to do, parents before children.
        n_jobs: local processes side by side, instead of what the runs' configs say.

    Exclusive runs come after all others and one at a time, whatever the launcher.

    A `UserError` says so if another process executes one of the runs, or Slurm refuses them; a
    `ReproError`, if a worker died, or the outcome of a run could not be recorded; a
    `KeyboardInterrupt`, if the user stopped the study.
    """
    runs = [run for layer in layers for run in layer]
    if not runs:
        return
    _check_free(runs)
    settings = {run: _settings(run) for run in runs}
    layers = _exclusive_last(layers, settings)
    groups = _by_launcher(runs, settings.__getitem__, study.about.hydra, n_jobs)
    chosen = {run: overrides for overrides, group in groups.items() for run in group}
    with compose.hydra_ready():
        _check_trusted(study, [group[0] for group in groups.values()])
        configs = {overrides: _launcher_config(overrides, study.folder) for overrides in groups}
        slurm_configs = {key: config for key, config in configs.items() if uses_slurm(key)}
        launchers = {k: _launcher(config) for k, config in configs.items() if not uses_slurm(k)}
        submitted: list[str] = []
        done = 0
        for depth, layer in enumerate(layers):
            earlier = [run for above in layers[:depth] for run in above]
            try:  # these first, because nobody waits for them here
                for key, config in slurm_configs.items():
                    part = [run for run in layer if chosen[run] == key]
                    after = queue.arrays(run.job for run in earlier)
                    submitted += slurm.submit(part, study, config.hydra.launcher, after, conclude)
            except BaseException:
                slurm.cancel(submitted)
                raise
            for key, launcher in launchers.items():
                part = [run for run in layer if chosen[run] == key]
                if part:
                    wait_for(earlier)  # a parent may be a job
                    _launch_together(launcher, part, study, done)
                    done += len(part)


def _settings(run: Run) -> dict[str, Any]:
    """What a run's config says about how it is launched, and nothing else: there may be thousands.

    Raises:
        UserError: it does not say so.
    """
    config = run.plain_config()
    hardware = config.get("hardware")
    if not (isinstance(hardware, dict) and isinstance(hardware.get("launcher"), dict)):
        raise UserError(f"{run.config_file} is not the config of a run: no hardware.launcher.")
    missing = {"num_nodes", "accelerator", "strategy"} - hardware.keys()
    if missing or "name" not in hardware["launcher"]:
        raise UserError(f"{run.config_file} is not the config of a run: hardware lacks something.")
    n_jobs = config.get("n_jobs")
    if n_jobs != "auto" and not isinstance(n_jobs, int):
        raise UserError(f"{run.config_file} is not the config of a run: n_jobs={n_jobs!r}.")
    return {"hardware": hardware, "n_jobs": n_jobs, "exclusive": config.get("exclusive")}


def _check_free(runs: Iterable[Run]) -> None:
    """Makes sure, before anything starts, that nobody executes one of some runs by itself.

    Raises:
        UserError: somebody does.
    """
    for run in runs:
        if run.is_held and not queue.is_submitted(run):
            raise UserError(f"{run.folder} is being executed by {run.executor}.")


def _check_trusted(study: Study, runs: Iterable[Run]) -> None:
    """Makes sure that launchers do no more than share out runs, unless the study is one's own."""
    if not trust.is_trusted():
        trust.check_hydra(study.about.hydra)
        for run in runs:
            trust.check_launcher(_settings(run)["hardware"]["launcher"])


def _exclusive_last(
    layers: Sequence[Sequence[Run]], settings: Mapping[Run, Mapping[str, Any]]
) -> list[list[Run]]:
    """The layers without the exclusive runs, each of which gets a layer of its own at the end."""
    alone = {run for run in settings if settings[run].get("exclusive")}
    shared = [[run for run in layer if run not in alone] for layer in layers]
    return [*shared, *([run] for layer in layers for run in layer if run in alone)]


def _by_launcher(
    runs: Iterable[AnyRun],
    config_of: Callable[[AnyRun], Mapping[str, Any]],
    typed: Sequence[str],
    n_jobs: int | str | None = None,
) -> dict[Overrides, list[AnyRun]]:
    """Groups runs by the Hydra overrides that choose their launcher."""
    by_settings: dict[str, list[AnyRun]] = {}
    settings: dict[str, tuple[Mapping[str, Any], int | str]] = {}
    for run in runs:
        config = config_of(run)
        own = config["hardware"], config["n_jobs"] if n_jobs is None else n_jobs
        by_settings.setdefault(repr(own), []).append(run)
        settings[repr(own)] = own
    groups: dict[Overrides, list[AnyRun]] = {}
    for key, group in by_settings.items():
        hardware, jobs = settings[key]
        overrides = tuple(launcher_overrides(hardware, jobs, typed, len(group)))
        if not uses_slurm(overrides):
            _check_nodes(hardware["num_nodes"])
        groups.setdefault(overrides, []).extend(group)
    return groups


def launcher_overrides(
    hardware: Mapping[str, Any], n_jobs: int | str, typed: Sequence[str], runs: int
) -> list[str]:
    """The Hydra overrides that choose the launcher of runs.

    What the user typed wins; then the launcher that the hardware config names; then ``n_jobs``
    local processes.

    Args:
        hardware: the composed hardware config.
        n_jobs: processes side by side, or ``auto``.
        typed: overrides of Hydra's own settings from the command line.
        runs: how many runs it is for.
    """
    if any(text.startswith("hydra/launcher=") for text in typed):
        return list(typed)
    launcher = dict(hardware["launcher"])
    name = launcher.pop("name")
    if name == "basic" and not launcher:
        jobs = local_jobs(hardware, n_jobs, runs)
        if jobs > 1:
            name, launcher = "joblib", {"n_jobs": jobs}
    options = [_launcher_option(key, value) for key, value in launcher.items()]
    return [f"hydra/launcher={name}", *options, *typed]


def uses_slurm(overrides: Sequence[str]) -> bool:
    """Whether these overrides choose Slurm."""
    return f"hydra/launcher={slurm.LAUNCHER}" in overrides


def _launcher_config(overrides: Sequence[str], study: Path) -> DictConfig:
    where = f"study={compose.quoted(str(study))}"
    return compose.compose_config([*overrides, where, "run=none"], "launch", with_hydra=True)


def _launcher_option(key: str, value: Any) -> str:
    add = "++" if isinstance(value, Mapping) else ""  # else a mapping may only lose keys
    return f"{add}hydra.launcher.{key}={_typed(value)}"


def _typed(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(_typed(each) for each in value) + "]"
    return compose.quoted(value) if isinstance(value, str) else json.dumps(value)


def _check_nodes(several: int) -> None:
    """Refuses to wait for machines that nobody is going to start.

    Raises:
        UserError: a run takes several nodes, and this process is not one of several.
    """
    if several != 1 and not any(name in os.environ for name in ("SLURM_NNODES", "NODE_RANK")):
        raise UserError(
            f"hardware.num_nodes={several} takes a cluster: choose hardware=slurm_multinode, or "
            "start this on every node with MASTER_ADDR and NODE_RANK set."
        )


class _JobConfigs:
    """Gives launchers the config of each job, which is their own but for the run.

    Hydra's loader gives the same, composed anew from all its files.
    """

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """A copy of the launcher's config with the values of a job."""
        config = copy.deepcopy(master_config)
        for override in compose.Layer.parse(sweep_overrides, "job").overrides:
            config[override.key_or_group] = override.value()
        config.hydra.overrides.task = sweep_overrides
        return config


def _launcher(config: DictConfig) -> Launcher:
    """The launcher that a config describes.

    Raises:
        UserError: it does not take its settings.
    """
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    # These have the methods that launchers call of Hydra's own loader and of its list of callbacks.
    context = HydraContext(_JobConfigs(), Callback())  # type: ignore[arg-type]
    try:
        return Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=job, config=config
        )
    except (InstantiationException, RuntimeError) as error:  # the latter of what is no launcher
        reason = first_line(error.__cause__ or error)
        raise UserError(f"hardware.launcher: {reason}") from error


def _launch_together(launcher: Launcher, runs: Sequence[Run], study: Study, first: int) -> None:
    """Launches runs and raises what one of them could not record: failures are recorded by runs.

    Raises:
        ReproError: there is such a thing, or a worker process was killed.
    """
    where = f"study={compose.quoted(str(study.folder))}"
    jobs = [[f"run={compose.quoted(str(run.folder))}", where] for run in runs]
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
        if done.return_value is not None:  # or raises what the job raised
            raise done.return_value


def local_jobs(hardware: Mapping[str, Any], n_jobs: int | str, runs: int) -> int:
    """How many of a study's runs go side by side on this machine."""
    cores = len(os.sched_getaffinity(0))
    if n_jobs == "auto":
        is_light = hardware["accelerator"] in ("auto", "cpu") and hardware["strategy"] == "auto"
        # A worker takes seconds to import torch: worth it for some runs, not for a handful.
        return max(1, min(cores, runs // 4)) if is_light and not _has_gpu() else 1
    return min(int(n_jobs), runs)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
