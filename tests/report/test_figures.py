"""Declared figures against numbers worked out by hand, and what a wrong declaration says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_outputs import EPOCHS, make_study, update_json
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from repro.errors import UserError
from repro.records.papers import Paper, load_paper, load_papers
from repro.records.study import Study
from repro.records.table import Measured, Table, table
from repro.report import style
from repro.report.figures import read_declared, stock

ARMS = ("ours", "ours_k2", "ours_k4", "rival", "ablation")


def paper(**figures: Any) -> Paper:
    return replace(load_paper("dgc"), arms={arm: [] for arm in ARMS}, figures=figures)


def runs(**metrics: dict[str, Any]) -> Table:
    """Runs of each arm: metric -> the values of its seeds."""
    return Table(
        [
            Measured(arm, seed, Path("nowhere"), {name: each[seed] for name, each in named.items()})
            for arm, named in metrics.items()
            for seed in range(len(next(iter(named.values()))))
        ]
    )


def drawn(measured: Table, **figures: Any) -> dict[str, Figure]:
    return stock(measured, paper(**figures), "mini")


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    (found,) = (each for each in axes.lines if each.get_label() == label)
    return list(zip(np.asarray(found.get_xdata()), np.asarray(found.get_ydata()), strict=True))


# -- Tables and curves -----------------------------------------------------------------------------


def test_values_and_paired_differences() -> None:
    measured = runs(ours={"loss": [1.0, 2.0, 3.0]}, rival={"loss": [0.5, 1.0], "kl": [7.0, 8.0]})
    assert measured.arms == ["ours", "rival"]
    assert measured.values("ours", "loss").tolist() == [1.0, 2.0, 3.0]
    assert measured.values("ours", "kl").tolist() == []
    assert measured.differences("ours", "rival", "loss").tolist() == [0.5, 1.0]
    assert measured.matrix("rival", ["kl", "loss"]).tolist() == [[7.0, 0.5], [8.0, 1.0]]
    assert measured.matrix("ours", ["kl", "loss"]).shape == (0, 2)
    assert {(row.arm, row.seed, row.metric, row.value) for row in measured.rows} >= {
        ("ours", 2, "loss", 3.0),
        ("rival", 0, "kl", 7.0),
    }


def test_a_study_is_read_once_and_whole(tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    update_json(folder / "dgc" / "seed=1" / "run.json", status="diverged")
    measured = table(Study.open(folder))
    assert (measured.arms, measured.seeds) == (["dense", "dgc"], 3)
    assert len(measured.values("dgc", "test/accuracy")) == 3
    assert (measured.has_diverged("dense"), measured.has_diverged("dgc")) == (False, True)
    curves = measured.curves("dense", "train/loss")
    assert [len(curve.y) for curve in curves] == [EPOCHS] * 3
    assert curves[0].x[:2].tolist() == [19, 39]
    assert measured.curves("dense", "train/loss", x="epoch")[0].x[:2].tolist() == [1, 2]
    total = measured.curves("dense", "train/loss", x="comm/count_1", total=True)[0]
    assert total.x[:2].tolist() == [20 * 1001, 40 * 1001]
    assert measured.curves("dense", "none") == []


def test_a_total_counts_what_was_done_between_the_rows_of_a_rarer_metric(tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    rows = ["step,epoch,sent,val/loss", "9,0,100.0,", "19,1,1.0,0.5", "29,2,1.0,", "39,3,1.0,0.4"]
    (folder / "dense" / "seed=0" / "metrics.csv").write_text("\n".join(rows) + "\n")
    (curve,) = table(Study.open(folder)).curves("dense", "val/loss", x="sent", total=True)
    assert curve.x.tolist() == [1010, 1030]
    assert curve.y.tolist() == [0.5, 0.4]
    assert curve.step.tolist() == [19, 39]


# -- Stock figures ---------------------------------------------------------------------------------


def test_curves_show_the_mean_and_the_range(tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    update_json(folder / "dgc" / "seed=0" / "run.json", status="diverged")
    measured = table(Study.open(folder))
    spec = {"kind": "curves", "metrics": {"train/loss": {"label": "loss", "log": True}}}
    axes = stock(measured, replace(load_paper("dgc"), figures={"loss": spec}), "mini")["loss"].axes[
        0
    ]
    seeds = np.array([curve.y for curve in measured.curves("dense", "train/loss")])
    assert [y for _, y in line(axes, "dense")] == pytest.approx(seeds.mean(axis=0))
    (band,) = axes.collections[:1]
    edges = np.asarray(band.get_paths()[0].vertices)
    assert edges[:, 1].min() == pytest.approx(seeds.min())
    assert edges[:, 1].max() == pytest.approx(seeds.max())
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "loss", "log")
    crosses = [each for each in axes.lines if each.get_marker() == "x"]
    assert [np.asarray(each.get_xdata()).tolist() for each in crosses] == [[20 * EPOCHS - 1]]


@pytest.mark.parametrize(
    ("y", "diverged", "place", "marker"),
    [
        ([-3.0, 0.2, 0.5, 4.0, 5.0], True, (4, 1.0), "x"),  # it came from outside, too
        ([0.1, 0.2, 0.3, 0.4, 0.5], True, (5, 0.5), "x"),
        ([0.1, 0.2, 0.3, -4.0, -5.0], False, (4, 0.0), "v"),
    ],
)
def test_a_mark_stands_where_an_arm_leaves(
    y: list[float], diverged: bool, place: tuple[float, float], marker: str
) -> None:
    axes = Figure().subplots()
    axes.set_xlim(0, 6)
    axes.set_ylim(0, 1)
    style.mark_leaving(axes, np.arange(1.0, 6.0), np.array(y), style.Look("a", "black"), diverged)
    (mark,) = axes.lines
    assert np.column_stack([mark.get_xdata(), mark.get_ydata()]).tolist() == [list(place)]
    assert mark.get_marker() == marker


def test_a_line_for_each_arm_over_what_its_metric_sweeps() -> None:
    values = {"loss_10": [1.0, 3.0], "loss_5": [1.0, 2.0], "loss_all": [9.0, 9.0]}
    spec = {"kind": "swept", "x": "size", "metrics": {"loss_{x}": "loss"}, "leave_out": ["all"]}
    axes = drawn(runs(ours=values), own=["ours"], sizes=spec)["sizes"].axes[0]
    assert line(axes, "ours") == [(5.0, 1.5), (10.0, 2.0)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10"]


@pytest.mark.parametrize(
    ("largest", "labels"),
    [(5e4, {"1000", "10000"}), (5e5, {"$10^{3}$", "$10^{4}$", "$10^{5}$"})],
)
def test_numbers_on_a_logarithmic_axis_are_of_one_kind(largest: float, labels: set[str]) -> None:
    measured = runs(ours={"cost": [500.0], "loss": [1.0]}, rival={"cost": [largest], "loss": [2.0]})
    spec = {"kind": "scatter", "x": {"metric": "cost", "log": True}, "metrics": {"loss": "loss"}}
    axes = drawn(measured, own=["ours"], cost=spec)["cost"].axes[0]
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert {label.get_text() for place, label in ticks if low <= place <= high} == labels


def test_what_is_swept_may_be_the_arm() -> None:
    measured = runs(ours_k2={"loss": [4.0]}, ours_k4={"loss": [2.0]}, rival={"loss": [3.0]})
    spec = {
        "kind": "swept",
        "x": {"label": "k", "log": True},
        "metrics": {"loss": {"label": "loss", "scale": 10}},
        "lines": {"by name": {"arm": "ours_k{x}"}, "by hand": {"arm": {"ours_k4": 3, "rival": 1}}},
        "reference": {"arm": "rival"},
    }
    axes = drawn(measured, k=spec)["k"].axes[0]
    assert line(axes, "by name") == [(2.0, 40.0), (4.0, 20.0)]
    assert line(axes, "by hand") == [(1.0, 30.0), (3.0, 20.0)]
    assert [y for _, y in line(axes, "rival")] == [30.0, 30.0]


def test_names_are_not_joined_and_differences_are_paired() -> None:
    measured = runs(
        ours={"nll/b": [1.0, 2.0], "nll/a": [3.0, 5.0]},
        rival={"nll/b": [0.0, 1.0], "nll/a": [1.0, 1.0]},
    )
    spec = {"kind": "swept", "x": "set", "metrics": {"nll/{x}": "nll"}, "minus": "rival"}
    axes = drawn(measured, sets=spec)["sets"].axes[0]
    assert [y for _, y in line(axes, "ours") if not math.isnan(y)] == [3.0, 1.0]
    assert all(math.isnan(y) for _, y in line(axes, "ours")[::2])  # a gap before each name
    assert [each.get_label() for each in axes.lines] == ["ours"]


def test_the_median_and_quartiles_of_what_has_no_mean() -> None:
    spec = {"kind": "swept", "x": "n", "metrics": {"nll_{x}": "nll"}, "centre": "median"}
    axes = drawn(runs(ours={"nll_1": [1.0, 2.0, 1e9], "nll_2": [1.0, 2.0, 3.0]}), n=spec)["n"].axes[
        0
    ]
    assert [y for _, y in line(axes, "ours")] == [2.0, 2.0]


def test_dots_show_every_seed_the_mean_and_who_diverged() -> None:
    measured = runs(ours={"kl": [1.0, 100.0]}, rival={"kl": [3.0, 5.0]})
    lost = Measured("ablation", 0, Path("nowhere"), {}, diverged=True)
    measured = Table([*measured.runs, lost])
    spec = {"kind": "dots", "metrics": {"kl": {"label": "KL", "log": True}}}
    axes = drawn(measured, kl=spec)["kl"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "rival", "ablation"]
    dots = [np.asarray(each.get_xdata()).tolist() for each in axes.lines]
    assert [1.0, 100.0] in dots
    assert [pytest.approx(10.0)] in dots  # the geometric mean
    assert [(text.get_text().strip(), text.get_position()[1]) for text in axes.texts] == [("×", 2)]


def test_rows_of_dots_may_come_from_anywhere() -> None:
    measured = runs(ours={"nll": [1.0, 2.0], "far/nll": [4.0, 4.0]}, rival={"nll": [1.0, 1.0]})
    rows = {
        "near": {"arm": "ours", "minus": "rival"},
        "far": {"arm": "ours", "metric": "far/{metric}"},
    }
    axes = drawn(measured, shift={"kind": "dots", "metrics": {"nll": "NLL"}, "rows": rows})[
        "shift"
    ].axes[0]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0.0, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["near", "far"]


def test_a_scatter_joins_from_left_to_right() -> None:
    cost = {"ours": 2.0, "ours_k2": 3.0, "ours_k4": 1.0, "rival": 5.0}
    measured = runs(**{arm: {"cost": [x, x], "gain": [x, 3 * x]} for arm, x in cost.items()})
    spec = {
        "kind": "scatter",
        "x": {"metric": "cost", "label": "MB"},
        "metrics": {"gain": "gain"},
        "arms": ["rival"],
        "lines": {"frontier": {"arms": ["ours", "ours_k2", "ours_k4"]}},
    }
    axes = drawn(measured, frontier=spec)["frontier"].axes[0]
    assert line(axes, "frontier") == [(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]
    assert line(axes, "rival") == [(5.0, 10.0)]


def test_a_table_of_colours() -> None:
    measured = runs(ours={"se/8": [0.5, 0.7], "se/16": [0.1, 0.1]}, rival={"se/8": [1.0, 1.0]})
    lost = Measured("ablation", 0, Path("nowhere"), {}, diverged=True)
    spec = {"kind": "heat", "metrics": {"se/{x}": ""}}
    axes = drawn(Table([*measured.runs, lost]), se=spec)["se"].axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.60", "0.10", "1.00", "–", "×", "×"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16"]


def test_a_picture_of_the_first_seed_of_each_arm(tmp_path: Path) -> None:
    made = []
    for arm in ("ours", "rival"):
        for seed in (0, 1):
            folder = tmp_path / arm / str(seed)
            (folder / "artifacts").mkdir(parents=True)
            np.save(folder / "artifacts" / "mask_9.npy", np.full((2, 3), seed))
            made.append(Measured(arm, seed, folder, {}))
    np.save(tmp_path / "ours" / "0" / "artifacts" / "mask_50.npy", np.full((2, 3), 5))
    spec = {"kind": "pictures", "metrics": {"mask_50.npy": "", "mask_*.npy": ""}}
    axes = drawn(Table(made), masks=spec)["masks"].axes
    assert [each.get_title() for each in axes] == ["ours", "rival"]
    assert [int(np.asarray(each.images[0].get_array())[0, 0]) for each in axes] == [5, 0]


def test_strips_have_a_row_for_each_arm_and_a_column_for_each_frame(tmp_path: Path) -> None:
    made = []
    for arm, count in (("rival", 2), ("ours", 3), ("ablation", 0)):
        for seed in (0, 1):
            folder = tmp_path / arm / str(seed)
            (folder / "artifacts").mkdir(parents=True)
            frames = np.zeros((count, 4, 4, 3), np.uint8)
            frames[:] = 100 * seed + np.arange(count)[:, None, None, None]
            if count:
                np.save(folder / "artifacts" / "film.npy", frames)
            made.append(Measured(arm, seed, folder, {"return": 1.25 + seed} if count == 3 else {}))
    spec = {"kind": "strips", "metrics": {"film.npy": "time"}, "beside": {"return": "R ="}}
    (axes,) = drawn(Table(made), film=spec)["film"].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["ours\nR = 1.25", "rival"]
    assert axes.get_xlabel() == "time"
    places = {
        (round(np.mean(each.get_extent()[2:])), round(np.mean(each.get_extent()[:2]))): each
        for each in axes.images
    }
    shown = {at: int(np.asarray(each.get_array())[0, 0, 0]) for at, each in places.items()}
    assert shown == {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 0): 0, (1, 1): 1}
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 2.5), (1.5, -0.5))


def test_panels_by_metric_and_group_and_nothing_for_what_is_not_there() -> None:
    measured = runs(ours={"loss": [1.0]}, rival={"loss": [2.0], "kl": [1.0]})
    groups = {"first": ["ours*"], "second": ["rival"], "third": ["ablation"]}
    spec = {"kind": "dots", "metrics": {"loss": "loss", "kl": "KL"}, "groups": groups}
    figures = drawn(measured, all=spec, none={"kind": "dots", "metrics": {"missing": ""}})
    titles = [(axes.get_title(), axes.get_xlabel()) for axes in figures["all"].axes]
    assert titles == [("first", "loss"), ("second", "loss"), ("second", "KL")]
    assert list(figures) == ["all"]


# -- One style -------------------------------------------------------------------------------------


def test_the_papers_arm_stands_out_and_an_arm_always_looks_alike() -> None:
    looks = style.looks(ARMS, own={"ours": "", "ours_*": "variants"}, baselines={"rival": ""})
    ours, variant, rival, ablation = (
        looks[arm] for arm in ("ours", "ours_k2", "rival", "ablation")
    )
    assert ours.width > rival.width > ablation.width
    assert variant == looks["ours_k4"]
    assert (ours.label, variant.label) == ("ours", "variants")
    assert rival.colour in style.GREYS
    assert len({look.colour for look in (ours, variant, rival, ablation)}) == 4


def test_what_goes_astray_does_not_stretch_the_axis() -> None:
    good = [np.array([1.0, 0.5, 0.1]) + 0.01 * shift for shift in range(4)]
    bad = np.array([1.0, 1e9, 1e27])
    ends, astray = style.limits([*good, bad], [*good, bad], [False] * 5, log=False)
    assert astray == [False] * 4 + [True]
    assert ends is not None
    assert -0.1 < ends[0] < 0.1
    assert 1.0 < ends[1] < 1.2
    assert style.limits(good, good, [False] * 4, log=False) == (None, [False] * 4)
    wide = [np.array([0.0, 1e3])] * 4
    ends, astray = style.limits(good, wide, [False] * 4, log=False)
    assert ends is not None
    assert ends[1] < 1.2
    assert not any(astray)


def test_the_interval_is_that_of_the_axis() -> None:
    low, high = style.interval(np.array([1.0, 2.0, 3.0]), log=False)
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-5)
    low, high = style.interval(np.array([1.0, 10.0, 100.0]), log=True)
    assert low * high == pytest.approx(100.0)
    assert all(map(math.isnan, style.interval(np.array([1.0]), log=False)))


def test_the_title_counts_seeds() -> None:
    spec = {"kind": "dots", "metrics": {"loss": "loss"}}
    alone, both = (
        drawn(runs(ours={"loss": values}), own=["ours"], all=spec)["all"].texts[0].get_text()
        for values in ([1.0], [1.0, 2.0])
    )
    assert alone == "dgc, scale=mini: 1 seed as dots; bars: mean and its 95 % interval"
    assert "2 seeds as dots" in both


@pytest.mark.parametrize("arms", [ARMS[:1], ARMS])
def test_legend_and_title_are_not_cut(arms: tuple[str, ...]) -> None:
    measured = runs(**{arm: {"a_1": [1.0], "a_2": [number]} for number, arm in enumerate(arms)})
    spec = {"kind": "swept", "x": "x", "metrics": {"a_{x}": "a"}, "title": "a title of some length"}
    figure = drawn(measured, own={"ours": "a name that takes quite some room"}, one=spec)["one"]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    legend = figure.legends[0].get_window_extent()
    title = figure.texts[0].get_window_extent()
    assert figure.bbox.x1 >= legend.x1
    assert figure.bbox.y0 <= legend.y0
    assert title.x1 <= legend.x0
    assert figure.axes[0].get_window_extent().x1 <= legend.x0


# -- Declarations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", [each.slug for each in load_papers()])
def test_what_papers_declare_is_right(slug: str) -> None:
    read_declared(load_paper(slug))


DOTS = {"kind": "dots", "metrics": {"kl": "KL"}}


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"own": ["our"]}, "figures.own: there is no arm 'our'. Did you mean 'ours'?"),
        ({"kl": {**DOTS, "arms": ["rivals"]}}, "there is no arm 'rivals'. Did you mean 'rival'?"),
        ({"kl": {**DOTS, "groups": {"a": ["x*"]}}}, "there is no arm 'x*'."),
        ({"kl": {**DOTS, "kind": "dot"}}, "there is no kind 'dot'. Did you mean 'dots'? Known: "),
        ({"kl": {"metrics": {"kl": ""}}}, "figures.kl: says no kind"),
        ({"kl": {**DOTS, "arm": ["ours"]}}, "there is no such key. Did you mean 'arms'?"),
        ({"kl": {"kind": "dots"}}, "figures.kl.dots.metrics: Field required"),
        ({"kl": {**DOTS, "columns": 0}}, "figures.kl.columns: Input should be greater"),
        ({"kl": []}, "figures.kl"),
    ],
)
def test_a_wrong_declaration_is_one_line(figures: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_declared(paper(**figures))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(load_paper("dgc").config_file))
