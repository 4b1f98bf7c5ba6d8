"""What a search found: the result as one mapping, and its pictures."""

from __future__ import annotations

import math
import shlex
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from repro.records import files
from repro.records.study import Study
from repro.report.draw import save_figures
from repro.search import database, loop
from repro.search.request import UNTESTED, Request, request_of
from repro.search.space import Parameter, to_point

ENOUGH = 4  # completed trials from which on an importance means something
COLOURS = {TrialState.COMPLETE: "tab:blue", TrialState.PRUNED: "tab:gray"}


def conclude(study: Study) -> dict[str, Any]:
    """Writes search.json and the figures of a search; returns what search.json holds."""
    request = request_of(study)
    with database.opened(study.folder, request) as trials:
        known = loop.settled(trials)
        best = _best(known, request)
        result = {
            "metric": request.metric,
            "mode": request.mode,
            "arm": request.arm,
            "wanted": request.trials,
            "trials": [_row(trial, request) for trial in known],
            "best": None if best is None else _row(best, request),
            "command": None if best is None else _command(best, request),
            "importance": _importance(trials, known),
        }
    files.write_json(study.search_file, result)
    if any(trial.value is not None for trial in known):
        save_figures(study, {"search": draw(known, request)})
    return result


def draw(trials: list[FrozenTrial], request: Request) -> Figure:
    """The objective by trial, and against each parameter."""
    count = 1 + len(request.parameters)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    for state, colour in COLOURS.items():
        shown = [trial for trial in trials if trial.state is state and trial.value is not None]
        values = [trial.value for trial in shown]
        label = "to the end" if state is TrialState.COMPLETE else "pruned, last value"
        first.scatter([t.number for t in shown], values, s=14, color=colour, label=label)
        for axes, parameter in zip(others, request.parameters, strict=False):
            axes.scatter([_place(t, parameter) for t in shown], values, s=14, color=colour)
    _draw_best_so_far(first, trials, request.mode)
    first.set(xlabel="trial", ylabel=request.metric, title="history")
    first.legend(frameon=False, fontsize="small")
    for axes, parameter in zip(others, request.parameters, strict=False):
        axes.set(xlabel=parameter.key)
        if getattr(parameter.distribution, "log", False):
            axes.set(xscale="log")
    for axes in (first, *others):
        axes.grid(alpha=0.3)
    for axes in others[len(request.parameters) :]:
        axes.remove()
    return figure


def _draw_best_so_far(axes: Axes, trials: list[FrozenTrial], mode: str) -> None:
    better = min if mode == "min" else max
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best: list[float] = []
    for trial in done:
        assert trial.value is not None
        best.append(better([trial.value, *best[-1:]]))
    numbers = [trial.number for trial in done]
    axes.step(numbers, best, where="post", color="tab:orange", label="best so far")


def _place(trial: FrozenTrial, parameter: Parameter) -> Any:
    """Where a trial lies on a parameter's axis; what is no number is an equally spaced label."""
    value = trial.params[parameter.key]
    return str(value) if isinstance(parameter.distribution, CategoricalDistribution) else value


def _best(trials: list[FrozenTrial], request: Request) -> FrozenTrial | None:
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    sign = 1 if request.mode == "min" else -1
    return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _row(trial: FrozenTrial, request: Request) -> dict[str, Any]:
    duration = trial.duration
    return {
        "trial": trial.number,
        "point": to_point(request.parameters, trial.params),
        "state": trial.user_attrs["reason"] or "finished",
        "value": trial.value if trial.state is TrialState.COMPLETE else None,
        "values": trial.user_attrs["values"],
        "last_value": trial.value,
        "seconds": None if duration is None else round(duration.total_seconds(), 3),
    }


def _command(best: FrozenTrial, request: Request) -> str:
    """The command that runs the best point with the seeds that papers are judged by, and tests."""
    seeds = ("seed=", "seeds=")
    kept = [text for text in request.fixed if not text.startswith(seeds)]
    if UNTESTED in kept and UNTESTED not in request.typed:
        kept.remove(UNTESTED)
    point = [
        f"{each.element}={to_point([each], best.params)[each.key]}" for each in request.parameters
    ]
    return shlex.join(["repro", "run", *kept, *point])


def _importance(trials: optuna.Study, known: list[FrozenTrial]) -> dict[str, float]:
    """How much of the objective's variance each parameter explains; empty if none can be told."""
    values = {trial.value for trial in known if trial.state is TrialState.COMPLETE}
    if len(values) < ENOUGH:
        return {}
    found = get_param_importances(trials, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(value) for key, value in found.items()}
