"""What a search found: the result as one mapping, and its pictures."""

from __future__ import annotations

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
from repro.report import style
from repro.report.draw import save_figures
from repro.search import database, loop
from repro.search.request import UNTESTED, Request, request_of
from repro.search.space import Parameter, to_point

ENOUGH = 4  # completed trials from which on an importance means something
LOOKS = {
    TrialState.COMPLETE: style.own_look(0, "to the end"),
    TrialState.PRUNED: style.Look("pruned, last value", style.GREYS[1]),
}


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
    with style.settings():
        figure, panels = style.grid([style.PANEL] * (1 + len(request.parameters)), style.COLUMNS)
        history, *others = panels
        for state, look in LOOKS.items():
            shown = [t for t in trials if t.state is state and t.value is not None]
            values = [t.value for t in shown if t.value is not None]
            history.plot([trial.number for trial in shown], values, **look.dots, ms=4)
            for axes, parameter in zip(others, request.parameters, strict=True):
                axes.plot([_place(each, parameter) for each in shown], values, **look.dots, ms=4)
        _draw_best_so_far(history, trials, request.mode)
        history.set(xlabel="trial", ylabel=request.metric, title="history")
        for axes, parameter in zip(others, request.parameters, strict=True):
            is_log = getattr(parameter.distribution, "log", False)
            axes.set(xlabel=parameter.key, xscale="log" if is_log else "linear")
        style.finish(figure, f"{request.arm}: search for the best {request.metric}")
    return figure


def _draw_best_so_far(axes: Axes, trials: list[FrozenTrial], mode: str) -> None:
    better = min if mode == "min" else max
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best: list[float] = []
    for trial in done:
        assert trial.value is not None
        best.append(better([trial.value, *best[-1:]]))
    numbers = [trial.number for trial in done]
    axes.step(numbers, best, where="post", color=style.OTHERS[1], label="best so far")


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
