"""The study's pictures: distances to the limits, regression, and likelihood under shift."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
REGRESSORS = {
    "nngp": "NNGP",
    "nngp_ml2": "NNGP, fitted scale",
    "ig": "t process",
    "burr": "Burr XII",
}
SHIFTED = (("test/nll", "clean"), ("test/noise/nll", "noise"), ("test/impulse/nll", "impulse"),
           ("test/roll/nll", "moved"), ("test/blur/nll", "blurred"))  # fmt: skip
SPOILT = ("", "_missing", "_noisy", "_imbalanced")
PAIRS = (("svgp", "svtp"), ("ensemble_normal", "ensemble_heavy"))


def figures(study: Study) -> dict[str, Figure]:
    """Draws what the study has runs for."""
    runs: Runs = {}
    for run in study.runs:
        runs.setdefault(run.record()["arm"], []).append(run.summary())
    drawn = {
        "limits": _limits(runs),
        "regression": _regression(runs),
        "classification": _classification(runs),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _values(runs: Runs, arm: str, metric: str) -> np.ndarray:
    return np.array([run[metric] for run in runs.get(arm, []) if metric in run])


def _line(axes: Axes, x: list[float], values: list[np.ndarray], label: str, style: str) -> None:
    means = [each.mean() for each in values]
    (line,) = axes.plot(x, means, style, label=label)
    low, high = [each.min() for each in values], [each.max() for each in values]
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)


def _limits(runs: Runs) -> Figure | None:
    """Kolmogorov-Smirnov distances against the width."""
    panels = (
        ("wide_", "prior", "as drawn"),
        ("wide_", "last", "last layer trained"),
        ("all_", "all", "all layers trained"),
    )
    curves = (("ks", "Student's t of the paper", "o-"), ("ks_gaussian", "Gaussian", "s--"),
              ("ks_posterior", "t of the posterior", "^:"))  # fmt: skip
    if not any(arm.startswith(("wide_", "all_")) for arm in runs):
        return None
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, (prefix, kind, title) in zip(figure.subplots(1, 3), panels, strict=True):
        widths = sorted(int(arm.removeprefix(prefix)) for arm in runs if arm.startswith(prefix))
        for metric, label, style in curves:
            found = {w: _values(runs, f"{prefix}{w}", f"test/{kind}/{metric}") for w in widths}
            found = {w: values for w, values in found.items() if len(values)}
            if found:
                _line(axes, list(found), list(found.values()), label, style)
        noise = [v for w in widths for v in _values(runs, f"{prefix}{w}", "test/ks_noise")]
        if noise:
            axes.axhline(max(noise), color="grey", lw=0.8, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="width", title=title)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xticks([], minor=True)
        for axis_of in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_of(ScalarFormatter())
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.supylabel("distance between networks and law")
    figure.suptitle("Finite networks and their limits (dotted grey: 5 % bound of the distance)")
    return figure


def _regression(runs: Runs) -> Figure | None:
    """Likelihood against the number of examples, and on every data set."""
    arms = [arm for arm in REGRESSORS if arm in runs]
    if not arms:
        return None
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    few, sets = figure.subplots(1, 2)
    few.set_xscale("log")
    pattern = re.compile(r"test/few/(\d+)/nll/diabetes$")
    for arm in arms:
        sizes = sorted({int(m[1]) for run in runs[arm] for key in run if (m := pattern.match(key))})
        values = [_values(runs, arm, f"test/few/{size}/nll/diabetes") for size in sizes]
        if values:
            _line(few, [float(size) for size in sizes], values, REGRESSORS[arm], "o-")
        few.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    few.set(xlabel="training examples", ylabel="test NLL", title="Diabetes")
    if few.lines:
        few.legend(frameon=False)
    names = sorted({key.split("/")[2] for run in runs[arms[0]] for key in run
                    if key.startswith("test/nll/")})  # fmt: skip
    for position, arm in enumerate(arms):
        heights = [np.median(_values(runs, arm, f"test/nll/{name}")) for name in names]
        places = np.arange(len(names)) + 0.8 * (position / len(arms) - 0.5) + 0.4 / len(arms)
        sets.bar(places, heights, 0.8 / len(arms), label=REGRESSORS[arm])
    sets.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
    sets.set(ylabel="test NLL, median over seeds", title="All training examples")
    for axes in (few, sets):
        axes.grid(alpha=0.3)
    return figure


def _classification(runs: Runs) -> Figure | None:
    """Likelihood of the heavy-tailed arm minus that of the Gaussian one, seed by seed."""
    bars: list[tuple[str, np.ndarray]] = []
    for plain, heavy in PAIRS:
        name = "processes" if plain == "svgp" else "ensembles"
        for metric, label in SHIFTED:
            bars.append((f"{name}: {label}", _paired(runs, plain, heavy, metric)))
    for spoilt in SPOILT[1:]:
        label = (
            f"processes: {spoilt[1:]} classes"
            if spoilt == "_missing"
            else f"processes: {spoilt[1:]}"
        )
        bars.append((label, _paired(runs, f"svgp{spoilt}", f"svtp{spoilt}", "test/nll")))
    bars = [(label, values) for label, values in bars if len(values)]
    if not bars:
        return None
    figure = Figure(figsize=(8, 0.35 * len(bars) + 1.5), layout="constrained")
    axes = figure.subplots()
    for row, (_, values) in enumerate(reversed(bars)):
        axes.plot(values, np.full(len(values), row), "o", color="C0", alpha=0.4)
        axes.plot(values.mean(), row, "|", color="C3", ms=14, mew=2)
    axes.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)])
    axes.axvline(0, color="grey", lw=0.8)
    axes.set(xlabel="test NLL, heavy-tailed minus Gaussian (left: heavy tails are better)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _paired(runs: Runs, plain: str, heavy: str, metric: str) -> np.ndarray:
    one, other = _values(runs, plain, metric), _values(runs, heavy, metric)
    return other - one if len(one) == len(other) else np.array([])
