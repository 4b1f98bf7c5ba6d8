"""Curves, axes and differences against values worked out by hand."""

from __future__ import annotations

import doctest
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_outputs import make_study, update_json
from hypothesis import given
from hypothesis import strategies as st

from repro.claims.verdicts import CheckVerdict
from repro.records.series import read_series
from repro.report import forest, html, pictures, tables
from repro.report.collect import Filters, StudyEntry, collect
from repro.report.curves import Curve, average, claimed_first, curves_of, read_columns
from repro.report.differences import differences, monitored, read_settings
from repro.report.pictures import draw, nice_values
from repro.report.settings import Settings


@pytest.fixture
def study(tmp_path: Path) -> StudyEntry:
    make_study(tmp_path)
    return collect(tmp_path, Filters()).studies[0]


@pytest.mark.parametrize("module", [forest, html, pictures, tables])
def test_examples_in_docstrings(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_mean_and_the_band_over_seeds() -> None:
    curve = average("a", [{1: 1.0, 2: 2.0}, {1: 3.0, 2: 8.0}, {1: 5.0}], points=10)
    assert curve.steps == [1, 2]
    assert curve.mean == [3.0, 5.0]  # the second rests on the two seeds that went on
    assert curve.low == [1.0, 2.0]
    assert curve.high == [5.0, 8.0]


@given(st.integers(1, 500), st.integers(2, 50))
def test_thinning_keeps_both_ends_and_the_order(steps: int, points: int) -> None:
    thin = average("a", [dict.fromkeys(range(steps), 0.0)], points).steps
    assert len(thin) == min(steps, points)
    assert thin == sorted(set(thin))
    assert (thin[0], thin[-1]) == (0, steps - 1)


def test_columns_are_read_as_the_engine_reads_them(study: StudyEntry) -> None:
    file = study.runs[0].folder / "metrics.csv"
    expected = {row["step"]: row["train/loss"] for row in read_series(file)}
    assert read_columns(file, ["train/loss", "none"]) == {"train/loss": expected}


def test_values_that_are_not_finite_and_rows_after_damage_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,epoch,loss\n1,0,nan\n2,0,inf\n3,0,1.5\n4,0,\n5,0,broken\n6,0,1\n")
    assert read_columns(file, ["loss"]) == {"loss": {3: 1.5}}
    file.write_text("")
    assert read_columns(file, ["loss"]) == {}
    assert read_columns(tmp_path / "missing.csv", ["loss"]) == {}


def test_only_metrics_logged_more_than_once_are_drawn(study: StudyEntry) -> None:
    wanted = ["test/loss", "val/accuracy", "train/loss", "val/loss"]
    settings = Settings(
        studies=1, curves=2, lines=16, points=100, pixels=900, pictures_kb=900, log_above=1000
    )
    found = curves_of(study, wanted, settings)
    assert list(found) == ["val/accuracy", "train/loss"]
    assert [curve.name for curve in found["train/loss"]] == ["dense", "dgc"]


def test_a_picture_places_its_points() -> None:
    curve = average("a", [{0: 0.0, 10: 1.0}, {0: 0.0, 10: 0.5}], points=10)
    picture = draw("loss", [curve], log_above=1000)
    (line,) = picture.lines
    bottom, right = pictures.HEIGHT - pictures.BOTTOM, pictures.WIDTH - pictures.RIGHT
    middle = bottom - 0.75 * (bottom - pictures.TOP)
    assert line.mean == f"M{pictures.LEFT:.1f} {bottom:.1f}L{right:.1f} {middle:.1f}"
    assert line.band.count("L") == 3
    assert [tick.label for tick in picture.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert not picture.is_log


def test_a_wide_range_is_logarithmic() -> None:
    curve = average("a", [{0: 1e-3, 1: 1e3}], points=10)
    picture = draw("loss", [curve], log_above=1000)
    assert picture.is_log
    assert [tick.label for tick in picture.y_ticks] == ["0.001", "0.1", "10", "1000"]
    assert not draw("loss", [average("a", [{0: 0.0, 1: 1e9}], 9)], log_above=1000).is_log


CHECK = {"relation": "greater", "compared": "a − b, m", "claimed": "> 0"}
SETTINGS = Settings(
    studies=1, curves=4, lines=16, points=100, pixels=900, pictures_kb=900, log_above=1000
)
finite = st.floats(-1e300, 1e300)


@given(st.dictionaries(st.integers(0, 10**9), finite, min_size=1, max_size=20))
def test_every_curve_lies_within_its_picture(series: dict[int, float]) -> None:
    picture = draw("m", [average("a", [series], 100)], log_above=1000)
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", picture.lines[0].mean)]
    assert all(math.isfinite(number) and 0 <= number <= pictures.WIDTH for number in numbers)


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    values = nice_values(low, low + width)
    assert len(values) <= 2 * pictures.TICKS + 2
    slack = 1e-6 * max(abs(low), width, 1.0)
    assert all(low - slack <= value <= low + width + slack for value in values)


def test_settings_that_differ_between_arms(study: StudyEntry) -> None:
    found = differences(study, most=16)
    assert found.arms == ["dense", "dgc"]
    assert found.rows == {"optimizer.lr": ["0.1", "0.2"], "method.name": ["dense", "dgc"]}
    assert differences(study, most=1).rows == {}
    assert monitored(study) == "val/accuracy"


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: {", "a: &a {b: *a}\n", "!!python/object:os.system {}"]
)
def test_a_config_that_cannot_be_read_has_no_settings(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert read_settings(file) == {}


def curve(name: str, values: list[float], **more: Any) -> Curve:
    return replace(average(name, [dict(enumerate(values))], points=1000), **more)


def heights(picture: pictures.Picture, name: str) -> list[float]:
    (line,) = [line for line in picture.lines if line.name == name]
    return [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", line.mean)]


def test_a_few_far_points_do_not_stretch_the_axis() -> None:
    steady = [1.0 - 0.005 * step for step in range(100)]
    even = draw("m", [curve("a", steady)], log_above=1000)
    assert (even.y_ends, even.is_cut) == ((pytest.approx(0.505), 1.0), False)
    jump = draw("m", [curve("a", [50.0, *steady[1:]])], log_above=1000)
    assert jump.is_cut
    assert jump.y_ends[0] == pytest.approx(0.505)
    assert 0.98 < jump.y_ends[1] < 1.1
    assert heights(jump, "a")[0] == 0.0  # above the frame, which cuts it off


def test_an_arm_that_diverged_has_no_say_in_the_axis_and_is_marked() -> None:
    lost = curve("lost", [1.0, 1e27], lost=[(1, 1e27)], is_lost=True)
    picture = draw("loss", [curve("a", [1.0, 0.5]), lost], log_above=1000)
    assert picture.y_ends == (0.5, 1.0)
    assert not picture.is_log
    (mark,) = [line.lost for line in picture.lines if line.name == "lost"]
    right, top = pictures.WIDTH - pictures.RIGHT, pictures.TOP
    assert mark.startswith(f"M{right - 4:.1f} {top:.1f}l8 8")
    assert draw("loss", [lost], log_above=1000).y_ends[1] == pytest.approx(1e27)


def test_seeds_that_diverged_do_not_count_in_the_mean(tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    whole = curves_of(collect(tmp_path, Filters()).studies[0], ["train/loss"], SETTINGS)
    update_json(folder / "dgc/seed=0/run.json", status="diverged")
    cut = curves_of(collect(tmp_path, Filters()).studies[0], ["train/loss"], SETTINGS)
    dense, dgc = cut["train/loss"]
    assert dense == whole["train/loss"][0]
    assert [step for step, _ in dgc.lost] == [599]
    assert dgc.mean != whole["train/loss"][1].mean
    assert not dgc.is_lost
    for seed in (1, 2):
        update_json(folder / f"dgc/seed={seed}/run.json", status="diverged")
    lost = curves_of(collect(tmp_path, Filters()).studies[0], ["train/loss"], SETTINGS)
    assert lost["train/loss"][1].is_lost
    assert lost["train/loss"][1].mean == whole["train/loss"][1].mean


def test_constants_are_not_drawn_and_arms_of_claims_come_first(tmp_path: Path) -> None:
    make_study(tmp_path, arms=["other", "dense", "dgc"])
    study = collect(tmp_path, Filters()).studies[0]
    assert list(curves_of(study, ["comm/count_0", "train/loss"], SETTINGS)) == ["train/loss"]
    assert claimed_first(study) == (["dense", "dgc", "other"], {"dense", "dgc"})
    unjudged = replace(study, verdicts=[])
    assert claimed_first(unjudged) == (["other", "dense", "dgc"], {"other", "dense", "dgc"})


def effect(**fields: Any) -> forest.Row:
    known = {**CHECK, "verdict": "supported", "effect": 1.0}
    row = forest.row(CheckVerdict.model_validate({**known, **fields}))
    assert row is not None
    return row


def test_a_row_of_the_forest_places_interval_and_region() -> None:
    row = effect(low=0.5, high=2.0)
    (limit,) = row.limits
    assert limit.label == "0"
    assert limit.at < row.interval[0] < row.effect < row.interval[1]
    assert row.claimed == (limit.at, forest.WIDTH - forest.EDGE)
    # A linear axis from 0 to 2, with 8 % left free on both sides.
    inner = forest.WIDTH - 2 * forest.EDGE
    assert row.effect == pytest.approx(forest.EDGE + inner / 2)
    assert limit.at == pytest.approx(forest.EDGE + inner * 0.08 / 1.16)


def test_percentages_lie_where_their_limit_does() -> None:
    row = effect(effect=-0.005, low=-0.01, high=0.0, claimed="≥ -1 %", percent=True)
    (limit,) = row.limits
    assert limit.label == "−1"
    assert limit.at == pytest.approx(row.interval[0])


def test_wide_ratios_are_on_a_logarithmic_axis() -> None:
    row = effect(effect=10.0, low=1.0, high=100.0, claimed="≥ 10")
    assert row.effect == pytest.approx(forest.WIDTH / 2) == row.limits[0].at


def test_an_end_without_a_limit_reaches_the_edge() -> None:
    row = effect(low=None, high=2.0)
    assert row.interval[0] == forest.EDGE
    point = effect(low=None, high=None)
    assert point.interval == (point.effect, point.effect)
    assert forest.row(CheckVerdict.model_validate({**CHECK, "verdict": "not tested"})) is None


@given(finite, finite, finite, st.text())
def test_no_row_leaves_its_picture(one: float, other: float, third: float, claimed: str) -> None:
    low, middle, high = sorted((one, other, third))
    row = effect(low=low, effect=middle, high=high, claimed=claimed)
    places = (*row.claimed, *row.interval, row.effect)
    assert all(forest.EDGE <= place <= forest.WIDTH - forest.EDGE for place in places)
