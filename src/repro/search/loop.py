"""The search itself: ask for points, run them like any study's runs, tell what came of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from repro.errors import ReproError, UserError
from repro.launching.local import launch, local_jobs, wait_for
from repro.planning.plan import Plan
from repro.planning.prepare import add_runs, create_study
from repro.planning.trust import PRUNING
from repro.records.run import Run
from repro.records.status import Status
from repro.records.study import Study, find_studies
from repro.search import database
from repro.search.pruning import unknown_metric
from repro.search.request import Request, request_of

Layers = list[list[Run]]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        state: Optuna's word for it.
        values: the metric of each seed, as far as it was measured.
        reason: why there is no objective; empty if there is one.
    """

    state: TrialState
    values: list[float]
    reason: str = ""


def find(request: Request, outputs: Path) -> Study | None:
    """The unfinished search that the same command began, which is to have as many trials as asked.

    The number of trials may differ: more of them make a finished search go on.
    """
    command = _without_trials(request.typed)
    for study in reversed(find_studies(outputs)):
        kept = study.about.search if study.is_readable else None
        if kept is None or _without_trials(study.about.typed) != command:
            continue
        with study.confined():
            unfinished = _is_unfinished(study, request.trials)
        if unfinished:
            study.update(typed=request.typed, search=kept | {"trials": request.trials})
            return study
    return None


def create(request: Request, plan: Plan, outputs: Path) -> Study:
    """Creates a search that has no trial yet."""
    empty = replace(plan, runs=[], notes=[], typed=request.typed)
    return create_study(empty, outputs, search=request.to_dict())


def run(study: Study, announce: Callable[[FrozenTrial], None]) -> bool:
    """Runs what is left of a search.

    Args:
        study: a study with ``search`` in its study.json.
        announce: called after each trial.

    Returns:
        Whether all trials are done; if not, somebody stopped one of them.

    A `UserError` says so if the metric does not exist, say, or the database is locked; a
    `ReproError`, if too many trials in a row failed; a `KeyboardInterrupt`, if the user stopped the
    search.
    """
    request = request_of(study)
    side_by_side = _side_by_side(request)
    with study.held(), database.opened(study.folder, request) as trials:
        trials.check()
        while batch := _next_batch(trials, request, side_by_side):
            executed = _execute(study, request, batch, side_by_side)
            for trial, runs in zip(batch, executed, strict=True):
                outcome = _outcome(request, runs, trials)
                if outcome is None:
                    return False
                announce(_tell(trials, trial, outcome, [r for layer in runs for r in layer]))
                _give_up_if_hopeless(trials, request, runs)
    return True


def settled(trials: database.Trials) -> list[FrozenTrial]:
    """The trials whose outcome is known, by number."""
    return [each for each in trials.get_trials(deepcopy=False) if "values" in each.user_attrs]


def _without_trials(typed: list[str]) -> list[str]:
    return [text for text in typed if not text.startswith("trials=")]


def _is_unfinished(study: Study, trials: int) -> bool:
    with database.opened(study.folder, request_of(study)) as known:
        return len(settled(known)) < trials


def _next_batch(trials: database.Trials, request: Request, size: int) -> list[FrozenTrial]:
    """Trials that a kill left open, or fresh ones: as many as may run side by side."""
    batch = [t for t in trials.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]
    keys = {each.key for each in request.parameters}
    for torn in [trial for trial in batch if set(trial.params) != keys]:  # killed while being asked
        trials.tell(torn.number, state=TrialState.FAIL)
        batch.remove(torn)
    if batch:
        return batch
    done = len(settled(trials))
    for number in range(done, min(done + size, request.trials)):
        trials.sampler = database.sampler(request, number)
        asked = trials.ask({each.key: each.distribution for each in request.parameters})
        batch.append(trials.get_trials(deepcopy=False)[asked.number])
    return batch


def _side_by_side(request: Request) -> int:
    """How many trials run at a time."""
    asked = request.settings["parallel"]
    if asked != "auto":
        return int(asked)
    plan = request.plan({each.key: each.examples()[0] for each in request.parameters})
    config = plan.runs[0].config
    hardware = config.hardware
    if hardware.launcher.name == "basic":
        return max(1, local_jobs(hardware, config.n_jobs, request.trials))
    return int(hardware.launcher.get("array_parallelism", 1))


def _execute(
    study: Study, request: Request, batch: list[FrozenTrial], side_by_side: int
) -> list[Layers]:
    """Runs the trials of a batch; returns the runs of each.

    The first seed goes first: if it is pruned or fails, the other seeds are spared.
    """
    planned = [add_runs(study, request.plan(trial.params)) for trial in batch]
    for trial, layers in zip(batch, planned, strict=True):
        scout = _of_arm(layers, request.arm)[0]
        if not scout.status().is_final:
            scout.update(trial=trial.number, callback=PRUNING)
    _launch(study, side_by_side, [_first_seed(layers) for layers in planned])
    survivors = [
        layers for layers in planned if _of_arm(layers, request.arm)[0].status() is Status.FINISHED
    ]
    _launch(study, side_by_side, survivors)
    return planned


def _launch(study: Study, n_jobs: int, trials: list[Layers]) -> None:
    """Launches what is not done of several trials, layer by layer, side by side."""
    depth = max(map(len, trials), default=0)
    todo: list[list[Run]] = []
    for level in range(depth):
        runs = [run for layers in trials if level < len(layers) for run in layers[level]]
        waiting = [run for run in runs if not run.status().is_final]
        todo.append(list(dict.fromkeys(waiting)))  # two trials may have drawn the same point
    launch(study, todo, n_jobs)
    wait_for([run for layer in todo for run in layer])


def _of_arm(layers: Layers, arm: str) -> list[Run]:
    return [run for layer in layers for run in layer if run.record().arm == arm]


def _first_seed(layers: Layers) -> Layers:
    first = layers[0][0].record().seed
    return [[run for run in layer if run.record().seed == first] for layer in layers]


def _outcome(request: Request, layers: Layers, trials: database.Trials) -> Outcome | None:
    """The outcome of a trial; None while some of its runs are to be continued.

    Raises:
        UserError: the first trial to finish has no such metric.
    """
    runs = _of_arm(layers, request.arm)
    records = [run.record() for run in runs]
    states = [record.status for record in records]
    summaries = [run.summary(record) for run, record in zip(runs, records, strict=True)]
    values = [summary[request.metric] for summary in summaries if request.metric in summary]
    for state, record in zip(states, records, strict=True):
        if state is Status.FAILED:
            return Outcome(TrialState.FAIL, values, record.trouble)
        if state in (Status.PRUNED, Status.DIVERGED):
            return Outcome(TrialState.PRUNED, values, str(state))
    if any(state is not Status.FINISHED for state in states):
        return None
    if len(values) < len(runs):
        if not _has_worked(trials):
            raise UserError(unknown_metric(request.metric, summaries[0]))
        return Outcome(TrialState.FAIL, values, f"{request.metric} is not finite at the end")
    return Outcome(TrialState.COMPLETE, values)


def _tell(
    trials: database.Trials, trial: FrozenTrial, outcome: Outcome, runs: list[Run]
) -> FrozenTrial:
    """Writes the outcome of a trial down: what counts is the last line, for a kill may come."""
    for run in runs:
        if run.status() is Status.WAITING:  # a seed that the first one spared
            run.update(status=Status.PRUNED)
    complete = outcome.state is TrialState.COMPLETE
    objective = statistics.fmean(outcome.values) if complete else None
    return trials.finish(
        trial.number, outcome.state, objective, reason=outcome.reason, values=outcome.values
    )


def _give_up_if_hopeless(trials: database.Trials, request: Request, layers: Layers) -> None:
    """Ends a search whose trials fail one after the other.

    Raises:
        UserError: none has worked so far, by the user's mistake.
        ReproError: too many in a row failed.
    """
    latest = settled(trials)[-request.settings["failures"] :]
    if latest[-1].state is not TrialState.FAIL:
        return
    reason = latest[-1].user_attrs["reason"]
    errors = [run.record().error for run in _of_arm(layers, request.arm)]
    if not _has_worked(trials) and any(error and error.kind == "user" for error in errors):
        raise UserError(f"No trial has worked so far: {reason}")
    all_failed = all(trial.state is TrialState.FAIL for trial in latest)
    if all_failed and len(latest) == request.settings["failures"]:
        raise ReproError(
            f"The last {len(latest)} trials failed: {reason}\n"
            f"Details: log.txt in {_of_arm(layers, request.arm)[0].folder}"
        )


def _has_worked(trials: database.Trials) -> bool:
    """Whether some trial came to its end."""
    return any(each.state is TrialState.COMPLETE for each in settled(trials))
