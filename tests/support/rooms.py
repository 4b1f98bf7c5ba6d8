"""Short words for what tests of papers do all the time: plan, run, read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig

from repro.errors import UserError
from repro.planning.plan import Plan, plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run, Status
from repro.records.study import Study
from repro.training.execute import build_module, execute


@functools.cache  # composing takes longer than building, and many tests look at the same scale
def plan(*typed: str) -> Plan:
    """What is planned for seed 0, unless other seeds are typed; to look at, not to change."""
    return plan_study(["seed=0", *typed])


def configs(*typed: str) -> dict[str, DictConfig]:
    """Composed configs by arm; see `plan`."""
    return {run.arm: run.config for run in plan(*typed).runs}


def prepared(folder: Path, *typed: str) -> Study:
    """A study that is ready to run in this process."""
    return create_study(plan_study(["n_jobs=1", *typed]), folder)


def finished(folder: Path, *typed: str) -> Run:
    """The last run of a study whose runs all finish, parents first."""
    study = prepared(folder, *typed)
    for run in study.runs:
        assert execute(run.folder) == Status.FINISHED, run.record().error
    return study.runs[-1]


def refusal(folder: Path, *typed: str, lines: int = 1) -> str:
    """What planning or the first run says to refuse what was typed, in one line or at most some."""
    try:
        study = prepared(folder, *typed)
    except UserError as error:
        message = str(error)
    else:
        assert execute(study.runs[0].folder) == Status.FAILED
        failure = study.runs[0].record().error
        assert failure is not None
        assert failure.kind == "user", failure.traceback
        message = failure.message
    assert len(message.splitlines()) <= lines, message
    return message


def summaries(study: Study) -> dict[str, dict[str, float]]:
    """Summaries by arm of a study of one seed; an arm that equals another has that one's."""
    found = {run.record().arm: run.summary() for run in study.runs}
    return found | {arm: found[first] for arm, first in study.about.twins.items()}


def logged(module: Any, *hooks: Callable[[], object]) -> dict[str, float]:
    """What a module logs as Lightning would call these hooks of it, outside of a run."""
    found: dict[str, float] = {}
    module.log = lambda name, value, **_: found.update({name: float(value)})
    module.log_dict = lambda values, **_: found.update({k: float(v) for k, v in values.items()})
    for hook in hooks:
        hook()
    return found


def evaluated(module: Any, batches: Iterable[Any]) -> dict[str, float]:
    """What a module logs in a test on these batches, outside of a run."""
    module.trainer = SimpleNamespace(world_size=1, testing=True)
    steps = [functools.partial(module.test_step, each, i) for i, each in enumerate(batches)]
    return logged(module, module.on_test_start, *steps, module.on_test_epoch_end)


def check_compressed_network(paper: str, arm: str, scale: str, parameters: int) -> None:
    """The size of what an arm compresses; at full scale published, not trained here."""
    runs = plan(f"paper={paper}", f"scale={scale}", f"arm={arm}").runs
    with torch.device("meta"):
        module: Any = build_module(runs[-1].config)
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    if scale != "mini":
        assert module.recipe.iterations == 20000
        assert [run.parent for run in runs] == [None]
