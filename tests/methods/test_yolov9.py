"""PGI: published sizes of the training networks, where gradients go, and what is cut off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.yolov9 import DeepSupervision, ImagePath, Pgi, pgi_loss
from repro.models.vision.gelan import Gelan, Predictions, gelan
from repro.toolbox.detection import DetectionLoss

TINY: dict[str, Any] = {
    "stem": [8],
    "first": None,
    "stages": [[8, 8, 4], [12, 12, 6], [16, 16, 8]],
    "down": "adown",
    "downs": [8, 12, 16],
    "pooled": [16, 8],
    "top_down": [[12, 12, 6], [8, 8, 4]],
    "neck_downs": [8, 8],
    "bottom_up": [[12, 12, 6], [16, 16, 8]],
    "head": {"bins": 8, "box_width": 8, "class_width": 8, "depth": 1, "groups": 1},
}
LABELS = torch.tensor([[0, 1], [1, -1]])
OBJECTS = torch.tensor([[[2.0, 3, 20, 30], [10, 8, 31, 31]], [[5, 5, 30, 28], [0, 0, 0, 0]]])


def network(branch: Any = "icn", **changes: Any) -> Pgi:
    torch.manual_seed(0)
    return Pgi(Gelan(2, **TINY), branch, **changes)


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model: Pgi, weight: float, **how: Any) -> dict[str, Tensor]:
    model.zero_grad()
    main, auxiliary = model(images())
    pgi_loss(DetectionLoss(), main, auxiliary, LABELS, OBJECTS, weight, **how).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def auxiliary_gradients(model: Pgi) -> dict[str, Tensor]:
    """Of the auxiliary loss alone: the difference between two weights of it."""
    one, other = gradients(model, 2.0), gradients(model, 1.0)
    return {name: one[name] - other[name] for name in one}


@pytest.mark.parametrize(
    ("size", "branch", "count"),
    [
        ("t", "fpn", 3_717_680),
        ("s", "fpn", 9_804_512),
        ("m", "icn", 32_878_432),
        ("c", "icn", 51_182_080),
        ("e", "fpn", 69_529_664),
    ],
)
def test_published_sizes_of_training_networks(size: Any, branch: Any, count: int) -> None:
    with torch.device("meta"):
        model = Pgi(gelan(size), branch)
    assert sum(p.numel() for p in model.parameters()) == count
    cut = sum(p.numel() for p in model.auxiliary())
    assert count - cut == sum(p.numel() for p in model.strip().parameters())


@pytest.mark.parametrize("branch", ["icn", "fpn", "pfh"])
def test_the_auxiliary_loss_reaches_the_backbone_and_never_the_neck(branch: Any) -> None:
    found = auxiliary_gradients(network(branch))
    backbone = [g for name, g in found.items() if name.startswith("main.backbone")]
    rest = [
        g
        for name, g in found.items()
        if name.startswith("main.") and not name.startswith("main.backbone")
    ]
    assert all(g.abs().max() > 1e-6 for g in backbone)
    assert all(g.abs().max() < 1e-6 for g in rest)
    cut = auxiliary_gradients(network(branch, detached=True))
    assert all(g.abs().max() < 1e-6 for name, g in cut.items() if name.startswith("main."))


def test_a_weight_of_zero_leaves_the_gradients_of_the_detector_alone() -> None:
    model = network()
    found = gradients(model, 0.0)
    alone = model.main
    alone.zero_grad()
    DetectionLoss()(alone(images()), LABELS, OBJECTS).backward()
    for name, p in alone.named_parameters():
        if p.requires_grad:
            assert torch.allclose(found[f"main.{name}"], p.grad, atol=1e-6)  # type: ignore[arg-type]


def test_the_loss_is_that_of_both_groups() -> None:
    model, loss = network(), DetectionLoss()
    main, auxiliary = model(images())
    one, other = (loss(p, LABELS, OBJECTS) for p in (main, auxiliary))
    both = pgi_loss(loss, main, auxiliary, LABELS, OBJECTS)
    assert both.item() == pytest.approx((one + 0.25 * other).item())
    led = pgi_loss(loss, main, auxiliary, LABELS, OBJECTS, lead=True)
    assigned = loss.assign(main, LABELS, OBJECTS)
    theirs = loss.weighted(loss.parts(auxiliary, assigned))
    assert led.item() == pytest.approx((one + 0.25 * theirs).item())
    assert led.item() != pytest.approx(both.item())


def test_cutting_the_branch_off_leaves_the_outputs_as_they_are() -> None:
    model = network().eval()
    found = model(images())
    assert isinstance(found, Predictions)
    for one, other in zip(found, model.strip()(images()), strict=True):
        assert torch.equal(one, other)
    taps, pyramid = model.main.features(images())
    auxiliary = model.head(model.branch(images(), taps))
    assert not torch.equal(auxiliary.boxes, found.boxes)
    assert torch.equal(model.main.head(pyramid).boxes, found.boxes)


def test_without_projections_the_branch_is_a_backbone() -> None:
    model = network().eval()
    branch = model.branch
    assert isinstance(branch, ImagePath)
    for projection in branch.projections:
        for p in projection.parameters():
            nn.init.zeros_(p)
    taps, _ = model.main.features(images())
    for one, other in zip(branch(images(), taps), branch.path(images())[-3:], strict=True):
        assert torch.equal(one, other)


def test_levels_are_added_before_blocks_and_only_deeper_ones() -> None:
    model = network().eval()
    branch = model.branch
    taps, _ = model.main.features(images())
    changed = [taps[0] + 1, taps[1], taps[2]]
    before, after = branch(images(), taps), branch(images(), changed)
    assert not torch.equal(before[0], after[0])
    kept = branch.projections[0].chunks
    assert [p.chunks for p in branch.projections] == [kept, [8, 12], [8, 12, 16]]


def test_controls_read_another_image_or_none() -> None:
    other, black = network(image="another").eval(), network(image="black").eval()
    x, (taps, _) = images(), network().main.eval().features(images())
    own = network().eval().branch
    assert torch.equal(other.branch(x, taps)[0], own(x.roll(1, 0), taps)[0])
    assert torch.equal(black.branch(x, taps)[0], own(torch.zeros_like(x), taps)[0])
    with pytest.raises(UserError, match="at least 2"):
        other.branch(x[:1], [tap[:1] for tap in taps])


def test_deep_supervision_can_be_as_large() -> None:
    plain, wide = network("pfh"), network("pfh", width=16)
    assert isinstance(wide.branch, DeepSupervision)
    assert len(list(plain.branch.parameters())) == 0
    count = sum(p.numel() for p in wide.auxiliary())
    assert count > 2 * sum(p.numel() for p in plain.auxiliary())


@pytest.mark.parametrize(
    ("branch", "changes", "message"),
    [
        ("fpn", {"image": "black"}, "reads no image"),
        ("icn", {"width": 3}, "is for branch=pfh"),
        ("pan", {}, "Pgi.branch is icn, fpn or pfh"),
    ],
)
def test_what_makes_no_sense_is_one_line(branch: Any, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(branch, **changes)
