"""The study's pictures: loss against active latents, what is recovered, and the label's leak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
KS = ("_k2", "_k4", "", "_k8")  # of the planted features' arms; "" is k = 6
GPT2_KS = ("_k16", "", "_k64")
RIVALS = ("batch_topk", "batch_gsae", "relu", "gated", "jumprelu", "random")
PLACES = {"": "planted features", "digits": "digits", "lm": "residual stream", "mlp": "MLP hidden"}
MODES = {"label": "true label (leaks)", "sampled": "sampled label", "topk": "no gradient"}
COLOURS = {"topk": "C0", "gsae": "C1"}


def figures(study: Study) -> dict[str, Figure]:
    """Draws the frontier, the recovery of planted features, and the modes of evaluation."""
    runs: Runs = {}
    for run in study.runs:
        runs.setdefault(run.record()["arm"], []).append(run.summary())
    drawn = {"frontier": _frontier(runs), "recovery": _recovery(runs), "modes": _modes(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _frontier(runs: Runs) -> Figure | None:
    """What splicing costs against the mean number of active latents: C1 and C4."""
    prefix, ks = ("gpt2_", GPT2_KS) if "gpt2_topk" in runs else ("", KS)
    if f"{prefix}topk" not in runs:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    measures = (("delta_ce", "rise of the cross-entropy (nats)"), ("kl", "KL divergence (nats)"))
    for axes, (measure, label) in zip(panels, measures, strict=True):
        for arm, mode, line in (
            ("topk", "topk", "o-"),
            ("gsae", "sampled", "o-"),
            ("gsae", "topk", "o:"),
        ):
            name = f"test/{measure}/{mode}"
            points = [_mean(runs, f"{prefix}{arm}{k}", f"test/l0/{mode}", name) for k in ks]
            found = np.array([point for point in points if point is not None])
            if len(found):
                text = "TopK" if arm == "topk" else f"g-SAE, {MODES[mode]}"
                axes.plot(*found.T, line, color=COLOURS[arm], label=text)
        for rival, marker in zip(RIVALS, "sD^v<>", strict=True):
            point = _mean(runs, prefix + rival, "test/l0/sampled", f"test/{measure}/sampled")
            if point is not None:
                axes.plot(*point, marker, color="0.4", label=rival)
        axes.set(xlabel="active latents", ylabel=label)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle("What reconstructions cost the model: means over seeds")
    return figure


def _recovery(runs: Runs) -> Figure | None:
    """Best cosines of true features with the dictionary, arm by arm: C7."""
    names = ("test/recovery/influential", "test/recovery/inert")
    arms = [arm for arm, found in runs.items() if any(names[0] in run for run in found)]
    if not arms:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for offset, (name, label) in enumerate(
        zip(names, ("influential (small)", "inert (large)"), strict=True)
    ):
        values = [np.array([run[name] for run in runs[arm] if name in run]) for arm in arms]
        x = np.arange(len(arms)) + 0.4 * offset - 0.2
        axes.bar(x, [each.mean() for each in values], 0.36, label=label, color=f"C{1 - offset}")
        for place, each in zip(x, values, strict=True):
            axes.plot(np.full(len(each), place), each, "k.", ms=3)
    axes.set_xticks(range(len(arms)), arms, rotation=45, ha="right")
    axes.set(ylabel="best cosine with a latent", ylim=(0, 1))
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    axes.set_title("Recovery of planted features: mean, and every seed")
    return figure


def _modes(runs: Runs) -> Figure | None:
    """How much of g-SAE's gain is the label leaking in: C9."""
    places = [place for place in PLACES if _arm(place, "gsae") in runs]
    if not places:
        return None
    figure = Figure(figsize=(3 * len(places) + 1, 3.6), layout="constrained")
    for axes, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        bars: list[tuple[str, str, str]] = [("TopK", _arm(place, "topk"), "topk")]
        bars += [(f"g-SAE,\n{label}", _arm(place, "gsae"), mode) for mode, label in MODES.items()]
        for position, (_, arm, mode) in enumerate(bars):
            name = f"test/delta_ce/{mode}"
            values = np.array([run[name] for run in runs.get(arm, []) if name in run])
            if len(values):
                colour = COLOURS[arm.rpartition("_")[2]]
                axes.bar(position, values.mean(), color=colour, alpha=0.5 if mode == "label" else 1)
                axes.plot(np.full(len(values), position), values, "k.", ms=3)
        axes.set_xticks(range(len(bars)), [bar[0] for bar in bars], rotation=60, fontsize=7)
        axes.set_title(PLACES[place], fontsize=10)
    figure.axes[0].set_ylabel("rise of the cross-entropy (nats)")
    return figure


def _arm(place: str, kind: str) -> str:
    return f"{place}_{kind}" if place else kind


def _mean(runs: Runs, arm: str, *names: str) -> Sequence[Any] | None:
    rows = [[run[name] for name in names] for run in runs.get(arm, []) if names[-1] in run]
    return np.mean(rows, axis=0) if rows else None
