"""The room of the skeletonisation, at scale=smoke and by composition at the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import stop_after, timeless
from repro.experiments.skeleton.operations import ALLOWED, foreign_operations

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.data.base.catalog import describe
from repro.errors import UserError
from repro.launching.local import run_study
from repro.methods.skeleton import Skeletonize
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module, execute_here

PAPER = load_paper("skeleton")
RUN = "boolean,euler,lee,learned_net,learned,seg_dice,reg_dice"
FEW = ["dataset.train_size=16", "dataset.val_size=4", "dataset.test_size=4"]  # pictures


def prepared(folder: Path, *typed: str) -> Study:
    return create_study(plan_study(["paper=skeleton", "n_jobs=1", *typed]), folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study at scale=smoke, run once for all tests here."""
    made = prepared(tmp_path_factory.mktemp("outputs"), "scale=smoke", "seed=0", f"arm=[{RUN}]")
    run_study(made)
    return made


def summary_of(study: Study, arm: str) -> dict[str, float]:
    (run,) = (run for run in study.runs if run.record()["arm"] == arm)
    return run.summary()


@pytest.mark.parametrize("scale", [scale for scale in PAPER.scales if scale != "smoke"])
def test_every_arm_composes_and_builds(scale: str) -> None:
    plan = plan_study(["paper=skeleton", f"scale={scale}", "seed=0"])
    assert not plan.notes  # no arm equals another
    for run in plan.runs:
        build_module(run.config)


def test_smoke_finishes_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    known = set().union(*(run.summary() for run in study.runs))
    assert set(PAPER.report) <= known
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C1"].verdict == Verdict.SUPPORTED
    assert verdicts["C5"].verdict == Verdict.SUPPORTED
    assert verdicts["C2"].verdict == Verdict.NOT_AT_SCALE


def test_the_benchmark_finds_what_is_known(study: Study) -> None:
    boolean, euler, lee = (summary_of(study, arm) for arm in ("boolean", "euler", "lee"))
    assert boolean["test/betti_error"] == lee["test/betti_error"] == 0
    assert boolean["test/usable_gradient"] == 1
    assert lee["test/usable_gradient"] == 0
    assert euler["test/2d/betti_error"] == 0 < euler["test/3d/betti_error"]  # the hollow shell
    assert boolean["test/3d/thick"] == 0
    assert "test/3d/betti_error" not in summary_of(study, "learned")  # a network for images
    assert boolean["test/soft/beta_0.33/dice_1"] > 0.5


def test_applications_report_what_they_are_judged_by(study: Study) -> None:
    segmentation, registration = (summary_of(study, arm) for arm in ("seg_dice", "reg_dice"))
    assert {"test/cldice", "test/betti_0_error", "val/score"} <= segmentation.keys()
    assert registration["test/landmark_error"] < registration["test/start_error"]


def test_pictures_are_written(study: Study) -> None:
    written = {path.name for path in draw_study(study)}
    assert {"topology.png", "topology.svg", "applications.png"} <= written


def test_an_operation_outside_the_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign_operations(Skeletonize()) == set()
    forward = torch.nn.functional.hardtanh
    monkeypatch.setattr(torch.nn.functional, "hardtanh", lambda x, *ends: forward(x.exp(), *ends))
    assert foreign_operations(Skeletonize()) == {"exp"}
    assert "exp" not in ALLOWED


@pytest.mark.parametrize(
    "typed",
    [
        ["arm=boolean", "scale=smoke"],
        ["arm=seg_skeleton", "training.epochs=3", "training.val_every=1", *FEW],
        ["arm=reg_skeleton", "training.epochs=3"],
    ],
    ids=["benchmark", "segmentation", "registration"],
)
def test_a_killed_run_ends_with_the_bits_of_a_straight_one(
    tmp_path: Path, typed: list[str]
) -> None:
    straight, killed = (prepared(tmp_path / name, *typed, "seed=1") for name in "ab")
    assert execute_here(straight.runs[0]) == Status.FINISHED
    stop_after(5, killed.runs[0])
    assert execute_here(killed.runs[0]) == Status.FINISHED
    assert timeless(killed.runs[0]) == timeless(straight.runs[0])
    weights = [
        torch.load(made.runs[0].last_checkpoint, weights_only=True)["state_dict"]
        for made in (straight, killed)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["arm=boolean", "method.simple_points=bolean"], "Did you mean 'boolean'"),
        (["arm=boolean", "method=gradient_noise"], "paper=skeleton takes method=skeleton"),
        (["arm=boolean", "dataset=digits"], "dataset=shapes"),
        (["arm=seg_skeleton", "method=skeleton/classical", *FEW], "passes no gradient"),
        (["arm=reg_skeleton", "share=1.5"], "share=1.5"),
        (["arm=reg_skeleton", "dataset=vessels", *FEW], "dataset=arches"),
        (["arm=zhang", "dataset.pictures=false", "dataset.trees=0"], "none of the shapes"),
        (["arm=learned_net", "method=none"], "takes a teacher"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, typed: list[str], complaint: str) -> None:
    study = prepared(tmp_path, "scale=mini", "seed=0", *typed)
    assert execute_here(study.runs[0]) == Status.FAILED
    error = study.runs[0].record()["error"]
    assert error["kind"] == "user", error["traceback"]
    assert complaint in error["message"]
    assert "\n" not in error["message"]


def test_it_is_no_training_method(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "method=skeleton", "seed=0", "n_jobs=1"]
    study = create_study(plan_study(typed), tmp_path)
    assert execute_here(study.runs[0]) == Status.FAILED
    assert "a skeleton is a layer" in study.runs[0].record()["error"]["message"]


@pytest.mark.parametrize(("scale", "name"), [("full", "DRIVE"), ("full_vessap", "VesSAP")])
def test_missing_data_are_one_clear_line(tmp_path: Path, scale: str, name: str) -> None:
    root = f"data.root={tmp_path}/hf"
    study = prepared(tmp_path, f"scale={scale}", "arm=boolean", "seed=0", "hardware=cpu", root)
    assert execute_here(study.runs[0]) == Status.FAILED
    error = study.runs[0].record()["error"]
    assert error["kind"] == "user", error["traceback"]
    assert f"{name} is missing" in error["message"]
    assert {e.name for e in describe(tmp_path / "hf") if not e.present} >= {"drive", "vessap"}


def write_drive(folder: Path) -> None:
    """A tiny copy of DRIVE's layout, of 40 × 35 points."""
    from PIL import Image

    for part, first in (("training", 21), ("test", 1)):
        for sub in ("images", "1st_manual"):
            (folder / part / sub).mkdir(parents=True)
        for number in range(first, first + 3):
            mask = torch.zeros(40, 35, dtype=torch.uint8)
            mask[10:14, 4:30] = mask[4:36, 15:18] = 255
            picture = Image.fromarray(mask.numpy())
            picture.convert("RGB").save(folder / part / "images" / f"{number:02}_{part}.tif")
            picture.save(folder / part / "1st_manual" / f"{number:02}_manual1.gif")


def test_full_runs_on_files_laid_out_like_drive(tmp_path: Path) -> None:
    write_drive(tmp_path / "drive")
    small = ["model.width=4", "model.depth=2", "training.epochs=1", "dataset.val_size=1"]
    own = [f"data.root={tmp_path}/hf", "hardware=cpu", "seed=0", "training.val_every=1"]
    masks = prepared(tmp_path, "scale=full", "arm=boolean", "dataset.val_size=1", *own)
    assert execute_here(masks.runs[0]) == Status.FINISHED
    assert masks.runs[0].summary()["test/betti_error"] == 0
    shape = ["dataset.input_shape=[3,40,35]", "dataset.batch_size=2"]
    network = prepared(tmp_path, "scale=full", "arm=drive_skeleton", *own, *small, *shape)
    assert execute_here(network.runs[0]) == Status.FINISHED
    assert 0 <= network.runs[0].summary()["test/cldice"] <= 1


def test_volumes_are_cut_into_cubes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    for folder in ("raw", "seg"):
        (tmp_path / "vessap" / folder).mkdir(parents=True)
        for number in range(3):
            volume = torch.zeros(17, 16, 9)
            volume[:, 4:7, 3:6] = 1 + number
            image = nibabel.Nifti1Image(volume.numpy(), None)
            nibabel.save(image, tmp_path / "vessap" / folder / f"{number}.nii.gz")
    typed = ["paper=skeleton", "scale=full_vessap", "arm=vessap_dice", "seed=0"]
    typed += ["dataset.input_shape=[1,8,8,8]", f"data.root={tmp_path}/hf"]

    def cubes_of(edge: int) -> Any:
        plan = plan_study([*typed, f"dataset.patch={edge}"])
        return instantiate(plan.runs[0].config.dataset)

    data = cubes_of(8)
    x, y = data.splits["train"]
    assert x.shape == y.shape == (4, 1, 8, 8, 8)
    assert set(y.unique().tolist()) == {0, 1}
    assert data.splits["test"][0].max() == 1
    with pytest.raises(UserError, match="Choose a smaller patch"):
        cubes_of(32).setup()
