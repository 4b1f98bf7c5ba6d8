"""What is special to YOLOv9: what its numbers mean, the recipe of the full scale, the controls."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_files import write_coco
from repro.experiments.yolov9 import untrained
from repro.experiments.yolov9.module import Detection
from repro.experiments.yolov9.untrained import Measured, Residual, colours_kept, stack
from rooms import configs, evaluated, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.methods.yolov9 import Pgi
from repro.models.vision.gelan import Predictions
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.detection import AveragePrecision, Detections
from repro.training.execute import build_module

PAPER = load_paper("yolov9")


def built(*typed: str) -> Any:
    """A module, away from any trainer."""
    (*_, config) = configs("paper=yolov9", *typed).values()
    return build_module(config)


class Known(nn.Module):
    """A detector that finds what it is told, in logits of `scores`."""

    def __init__(self, boxes: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.boxes, self.scores = boxes, scores

    def forward(self, x: Tensor) -> Predictions:
        """The same for every image."""
        bins, nothing = torch.zeros(len(x), len(self.boxes), 4, 8), torch.zeros(len(self.boxes))
        boxes = self.boxes.expand(len(x), -1, -1)
        logits = self.scores.logit()[:, None].expand(len(x), -1, 1)
        return Predictions(bins, logits, boxes, torch.zeros(len(self.boxes), 2), nothing)


def test_test_ap_test_ap50_and_test_ap75_are_of_the_detections() -> None:
    """One detection covers 10 of 10 x 12 points more than its object: an overlap of 0.6."""
    module = built("scale=smoke", "arm=gelan")
    big, small = [0.0, 0, 40, 60], [50.0, 50, 60, 60]
    module.network = module.average = Known(
        torch.tensor([[0.0, 0, 40, 36], small]), torch.tensor([0.9, 0.8])
    )
    row = [[0, *big, 0, 2400], [0, *small, 0, 100], [-1, 0, 0, 0, 0, 0, 0]]
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    found = evaluated(module, [(white, torch.tensor([row]))])
    assert found["test/ap50"] == pytest.approx(1.0)
    # Above 0.6 the first detection is wrong: half of the objects, at a precision of 1/2.
    assert found["test/ap75"] == pytest.approx(0.5 * 51 / 101)
    assert found["test/ap"] == pytest.approx((3 * 1.0 + 7 * 0.5 * 51 / 101) / 10)
    assert found["test/ap_small"] == pytest.approx(1.0)
    assert found["test/fitness"] == pytest.approx(0.1 * found["test/ap50"] + 0.9 * found["test/ap"])
    assert found["test/parameters"] == 0  # of a detector that is told everything
    assert module.seen.unique() == 1  # white, for a network


def test_objects_and_losses_of_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two finds its object: half of all objects, at a precision of 1."""
    box, label = torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([0])
    own, other = AveragePrecision(), AveragePrecision()
    own.add(Detections(box, torch.ones(1), label), box, label)
    other.add(Detections(box[:0], torch.ones(0), label[:0]), box, label)

    def gather(parts: list[Any], part: Any) -> None:
        parts[:] = [{0: part, 1: other}[rank] for rank in range(len(parts))]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module = built("scale=smoke", "arm=gelan")
    module.trainer, module.metric = SimpleNamespace(world_size=2), own
    found = module.measured()
    # Boxes are exact, so that all overlaps have the same precision.
    assert [found["ap50"], found["fitness"]] == pytest.approx(2 * [51 / 101])
    logs: list[Any] = []
    module.log = lambda *what, sync_dist: logs.append((*what, sync_dist))
    module.running_loss.add(3.0)
    module.running_loss.add(5.0)
    module.on_train_epoch_end()
    assert logs == [("train/loss", 4.0, True)]


def test_what_is_deployed_has_neither_the_branch_nor_its_cost(study: Study) -> None:
    """``test/parameters``, ``test/products`` and ``test/difference``."""
    found = summaries(study)
    for arm in ("ds", "pgi", "pgi_wrong_image"):
        assert found[arm]["test/parameters"] == found["gelan"]["test/parameters"]
        assert found[arm]["test/products"] == found["gelan"]["test/products"]
        assert found[arm]["test/difference"] == 0
        assert found[arm]["test/auxiliary_parameters"] > 0
    assert found["gelan"]["test/auxiliary_parameters"] == 0
    fitness = 0.1 * found["pgi"]["test/ap50"] + 0.9 * found["pgi"]["test/ap"]
    assert found["pgi"]["test/fitness"] == pytest.approx(fitness)


def test_a_branch_that_changes_the_outputs_would_be_noticed() -> None:
    module = built("scale=smoke", "arm=pgi")
    x = torch.rand(2, 3, 32, 32)
    module.eval()
    assert module._difference(x) == 0
    assert isinstance(module.network, Pgi)
    first = torch.eye(len(module.network.main(x).boxes[0]), 4)  # no other anchor's box changes
    module.network.main.head.register_forward_hook(  # that remains in one of both
        lambda head, given, out: out._replace(boxes=out.boxes + first * torch.rand(()))
    )
    assert module._difference(x) > 0
    module.seen = x
    module.network.main.leftover = nn.Parameter(torch.zeros(1))
    alone = built("scale=smoke", "arm=gelan")
    alone.seen = x
    assert module._deployed()["parameters"] == alone.eval()._deployed()["parameters"] + 1


@pytest.mark.parametrize(("clip", "sets"), [("joint", 1), ("apart", 2)])
def test_gradients_are_clipped_together_or_apart(clip: str, sets: int) -> None:
    module = built("scale=smoke", "arm=pgi", f"detection.clip={clip}")
    clipped = module._clipped()
    assert len(clipped) == sets
    assert {id(p) for each in clipped for p in each} == {*map(id, module.network.parameters())}


def test_a_detached_branch_leaves_the_detector_as_it_is(tmp_path: Path) -> None:
    """Bit for bit, clipped apart; clipped together it takes part in the length of steps."""
    typed = ["paper=yolov9", "scale=smoke", "seed=0", "training.clip_norm=0.5"]
    weights = {}
    for arm in ("gelan", "pgi_detached", "pgi_detached_joint"):
        run = finished(tmp_path / arm, *typed, f"arm={arm}")
        state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
        prefix = "network." if arm == "gelan" else "network.main."
        weights[arm] = {
            name.removeprefix(prefix): weight
            for name, weight in state["state_dict"].items()
            if name.startswith(prefix)
        }
    same = {
        arm: all(torch.equal(w, weights[arm][name]) for name, w in weights["gelan"].items())
        for arm in ("pgi_detached", "pgi_detached_joint")
    }
    assert same == {"pgi_detached": True, "pgi_detached_joint": False}


def test_sizes_are_counted(study: Study) -> None:
    """``test/parameters_s``, ``test/gflops_s``: of ``_m``, ``_c``, ``_e`` and ``_t`` likewise."""
    found = summaries(study)["audit"]
    assert found["test/parameters_s"] == pytest.approx(7.105888)
    assert found["test/unfolded_s"] == pytest.approx(7.226208)
    assert found["test/training_s"] == pytest.approx(9.804512)
    assert found["test/gflops_s"] == pytest.approx(26.37824 / 100)  # of 64 pixels, not 640
    assert built("scale=mini", "arm=audit").measure.keywords["sizes"] == ["t", "s", "m", "c", "e"]
    assert {"test/parameters_t", "test/parameters_m", "test/parameters_c", "test/parameters_e",
            "test/gflops_t", "test/gflops_m", "test/gflops_c", "test/gflops_e"} == {
        f"test/{what}_{size}" for what in ("parameters", "gflops") for size in "tmce"
    }  # fmt: skip
    assert set(Measured.METRICS) >= {"test/parameters_*", "test/gflops_*"}


def test_the_published_size_s_is_counted() -> None:
    """7.1 million parameters and 26.4 GFLOPs at 640 pixels."""
    found = untrained.audit(None, sizes=["s"])
    assert found["parameters_s"] == pytest.approx(7.1, abs=0.05)
    assert found["gflops_s"] == pytest.approx(26.4, abs=0.05)


def test_the_first_images_are_looked_at_in_units_of_white() -> None:
    """Three of five batches of two images."""
    batches = iter([(torch.full((2, 3, 4, 4), 51 * n, dtype=torch.uint8), None) for n in range(5)])
    images = untrained.first_images(SimpleNamespace(train_dataloader=lambda: batches), 5)
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.0, 0, 0.2, 0.2, 0.4]))
    assert len(list(batches)) == 2


def test_residual_blocks_add_to_what_came() -> None:
    """Here 1, whatever it was."""
    block: Any = Residual(2)
    nn.init.zeros_(block.second.norm.weight)
    nn.init.ones_(block.second.norm.bias)
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(block(x), nn.functional.silu(x + 1))


def test_retention_is_a_regression_from_points_to_their_colours() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 3, 12, 12)
    mixed = torch.einsum("dc,bchw->bdhw", torch.randn(5, 3), images)
    assert colours_kept(mixed, images, 1e-6) == pytest.approx(1, abs=1e-4)
    assert colours_kept(mixed, images, 1e-6, other=True) < 0
    assert abs(colours_kept(torch.rand(8, 5, 12, 12), images, 1.0)) < 0.1


@pytest.mark.parametrize(
    ("kind", "blocks"), [("plain", 24), ("resnet", 12), ("csp", 6), ("gelan", 2)]
)
def test_stacks_are_of_equal_depth(kind: Any, blocks: int) -> None:
    layers = stack(kind, 8, 24)
    assert len(layers) == blocks
    x = torch.randn(2, 8, 6, 6)
    for layer in layers:
        x = layer(x)
    assert x.shape == (2, 8, 6, 6)


class Keeps(nn.Module):
    """A layer of a stack that loses all colours but the first few."""

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.colours = colours

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.colours], torch.zeros_like(x[:, self.colours :])], 1)


def test_retention_is_the_share_of_colours_that_layers_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three independent colours: with k of them kept a regression explains k / 3."""
    kept = {  # by kind, up to the depths 12, 24, 48 and 96
        "gelan": (3, 3, 2, 2), "plain": (1, 0, 0, 0), "csp": (2, 1, 0, 0), "resnet": (3, 2, 1, 1),
    }  # fmt: skip

    def known(kind: str, _channels: int, depth: int) -> list[nn.Module]:
        assert depth == 96
        blocks = [0, 1, 2, 2, 3, 3, 3, 3]  # of twelve layers, and the depth that each leads to
        return [Keeps(kept[kind][number]) for number in blocks]

    monkeypatch.setattr(untrained, "stack", known)
    monkeypatch.setattr(untrained, "Conv", lambda *_: nn.Identity())
    images = (255 * torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0))).round()
    module = built("scale=mini", "arm=retention")
    module.found = dict(
        module.measure(type("Data", (), {"train_dataloader": lambda _: [(images, None)]})())
    )
    found = logged(module, module.on_test_epoch_end)
    near = functools.partial(pytest.approx, abs=0.02)
    assert found["test/r2_gelan_12"] == near(1)
    assert found["test/r2_gelan_24"] == near(1)
    assert found["test/r2_gelan_96"] == near(2 / 3)
    assert found["test/r2_plain_12"] == near(1 / 3)
    assert found["test/r2_plain_24"] == near(0)
    assert found["test/r2_csp_12"] == near(2 / 3)
    assert found["test/r2_csp_24"] == near(1 / 3)
    assert found["test/r2_resnet_96"] == near(1 / 3)
    # Two colours that have nothing to do with each other differ by twice their variance: 1 - 2.
    assert found["test/null_gelan_12"] == pytest.approx(-1, abs=0.1)
    assert found["test/null_gelan_24"] == pytest.approx(-1, abs=0.1)


def test_parameters_are_grouped_as_published() -> None:
    module = built("scale=smoke", "arm=pgi")
    biases, weights, scales = (group["params"] for group in module.groups())
    assert {p.dim() for p in weights} == {4}
    count = sum(1 for p in module.network.parameters() if p.requires_grad)
    assert len(biases) + len(weights) + len(scales) == count
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in module.network.modules())
    assert len(scales) == norms
    assert [group.get("weight_decay") for group in module.groups()] == [0.0, None, 0.0]


def test_the_average_follows_the_detector() -> None:
    module = built("scale=smoke", "arm=pgi", "detection.average=0.9", "detection.average_steps=5.0")
    assert isinstance(module, Detection)
    before = copy.deepcopy(module.average.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        for tensor in module.detector.state_dict().values():
            tensor += 1
    module._update_average(10)
    decay = 0.9 * (1 - torch.tensor(-2.0).exp())
    for name, tensor in module.average.state_dict().items():  # type: ignore[union-attr]
        if tensor.is_floating_point():
            assert torch.allclose(tensor, before[name] + (1 - decay), atol=1e-5)
    assert module.evaluated is module.average


def test_the_full_recipe() -> None:
    arms = configs("paper=yolov9", "scale=full")
    pgi = arms["pgi"]
    assert (pgi.optimizer.lr, pgi.optimizer.momentum, pgi.optimizer.weight_decay) == (
        0.01, 0.937, 1e-3)  # fmt: skip
    assert (pgi.detection.weight, pgi.detection.clip, pgi.training.epochs) == (0.25, "joint", 500)
    assert pgi.detection.branch == "icn"
    with torch.device("meta"):
        model: Any = build_module(pgi).network
    assert sum(p.numel() for p in model.parameters()) == 51_182_080
    small = configs("paper=yolov9", "scale=full_s")["pgi"]
    assert small.detection.branch == "fpn"


def test_full_scale_trains_and_tests_on_files(tmp_path: Path) -> None:
    """COCO's layout, T, two steps: mosaic, warm-up, half precision, the average, the branch."""
    write_coco(tmp_path, "train2017", 6, ((64, 48),))
    write_coco(tmp_path, "val2017", 2, ((64, 48),))
    run = finished(
        tmp_path / "out",
        "paper=yolov9",
        "scale=full_t",
        "arm=pgi",
        "seed=0",
        f"data.root={tmp_path / 'hf'}",
        "dataset.classes=2",
        "dataset.val_size=2",
        "dataset.input_shape=[3,64,64]",
        "dataset.batch_size=2",
        "dataset.eval_batch_size=2",
        "dataset.workers=0",
        "training.epochs=1",
        "training.max_steps=2",
    )
    assert 0 <= run.summary()["test/ap"] <= 1


def test_what_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    typed = ("paper=yolov9", "scale=smoke", "seed=0", "arm=fpn")
    assert "reads no image" in refusal(tmp_path, *typed, "detection.image=black")
    assert "clip is joint or apart" in refusal(tmp_path, *typed, "detection.clip=both")
    assert "yolov9 trains detectors by itself" in refusal(tmp_path, *typed, "method=gradient_noise")


def test_biases_fall_and_others_rise_in_the_warm_up() -> None:
    """Rates and momentum meet those of the schedule at the end."""
    module = built("scale=smoke", "arm=gelan", "detection.warmup=10")
    groups = [{"lr": 0.0, "momentum": 0.937, "is_bias": bias} for bias in (True, False)]
    optimizer = type("Optimizer", (), {"param_groups": groups})()
    module.lr_schedulers = lambda: type("Schedule", (), {"get_last_lr": lambda _: [0.01, 0.01]})()
    for step, bias, other, momentum in (
        (0, 0.1, 0.0, 0.8),
        (5, 0.055, 0.005, 0.8685),
        (10, 0.01, 0.01, 0.937),
    ):
        module._warm_up(optimizer, step)
        assert groups[0]["lr"] == pytest.approx(bias)
        assert groups[1]["lr"] == pytest.approx(other)
        assert groups[1]["momentum"] == pytest.approx(momentum)
