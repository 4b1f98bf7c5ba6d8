"""Programmable gradient information (Wang, Yeh and Liao, "YOLOv9", 2024, arXiv 2402.13616).

A deep head's gradient may tie the wrong evidence to the target, because layers on the way have lost
it. PGI adds a branch in training that starts anew from the image, gets linear projections of
several levels of the main network's backbone, and has heads of its own. The gradient of its loss
flows through these projections into the backbone. Afterwards the branch is cut off.

    >>> from repro.models.vision.gelan import gelan
    >>> from repro.toolbox.detection import DetectionLoss, detect
    >>> _ = torch.manual_seed(0)
    >>> network = Pgi(gelan("t", classes=2), "icn")
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    >>> images = torch.rand(2, 3, 64, 64)
    >>> labels = torch.tensor([[0], [1]])
    >>> objects = torch.tensor([[[8.0, 8, 40, 40]], [[20.0, 10, 60, 50]]])
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     main, auxiliary = network(images)
    ...     pgi_loss(DetectionLoss(), main, auxiliary, labels, objects).backward()
    ...     optimizer.step()
    >>> detector = network.strip().eval().fold()
    >>> found = detector(images)
    >>> len(detect(found.boxes, found.logits))
    2

Shapes: B images of H × W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, NonNegative, checked
from repro.models.vision.gelan import (
    CBLinear,
    DetectionHead,
    Gelan,
    Predictions,
    TopDown,
)
from repro.models.vision.gelan.blocks import Elan
from repro.models.vision.gelan.network import Backbone
from repro.toolbox.detection import DetectionLoss

Branch = Literal["icn", "fpn", "pfh"]
Image = Literal["own", "another", "black"]


class ImagePath(nn.Module):
    """The auxiliary reversible branch (ICN): a second backbone that each level is added to.

    The projections of backbone level i are added to the levels 3 … i of the branch before their
    blocks (CBFuse), so that each of them knows the image and all deeper levels.

    Args:
        main: the detector; the branch has the sizes of its backbone.
        image: what the branch reads: ``own`` image, ``another`` of the batch or a ``black`` one
            (controls).
    """

    def __init__(self, main: Gelan, image: Image = "own") -> None:
        super().__init__()
        self.image = image
        self.path = Backbone(**main.backbone_sizes)
        widths = self.path.entries[-3:]
        self.projections = nn.ModuleList(
            CBLinear(channels, widths[: level + 1]) for level, channels in enumerate(main.taps)
        )
        self.exits = self.path.exits[-3:]

    def forward(self, x: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:
        """The branch's three levels.

        Args:
            x: images (B, 3, H, W).
            taps: the backbone's P3, P4 and P5.

        Raises:
            UserError: another image is wanted of a batch of one.
        """
        if self.image == "another" and len(x) < 2:
            raise UserError("image=another needs batches of at least 2 images.")
        read = {"own": x, "another": x.roll(1, 0), "black": torch.zeros_like(x)}[self.image]
        chunks = [project(tap) for project, tap in zip(self.projections, taps, strict=True)]
        added: list[list[Tensor]] = [[] for _ in self.path.stem]
        added += [[chunk[level] for chunk in chunks[level:]] for level in range(3)]
        return self.path(read, added)[-3:]


class Pyramid(nn.Module):
    """Multi-level auxiliary information alone (FPN): a second way down from the backbone.

    Args:
        main: the detector; the branch has the sizes of its pyramid's way down.
    """

    def __init__(self, main: Gelan) -> None:
        super().__init__()
        self.top_down = TopDown(main.taps, **main.top_down_sizes)
        self.exits = self.top_down.exits

    def forward(self, x: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002
        """The branch's three levels; see `ImagePath`."""
        levels: list[Tensor] = self.top_down(taps)
        return levels


class DeepSupervision(nn.Module):
    """Plain deep supervision (PFH): heads on the backbone's levels.

    Args:
        main: the detector.
        width: channels inside a block before each head, for as many parameters as other branches
            have; None: no block.
    """

    def __init__(self, main: Gelan, width: int | None = None) -> None:
        super().__init__()
        self.exits = main.taps
        self.blocks = nn.ModuleList(
            nn.Identity() if width is None else Elan(c, c, width, width, **main.shape)
            for c in main.taps
        )

    def forward(self, x: Tensor, taps: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002
        """The branch's three levels; see `ImagePath`."""
        return [block(tap) for block, tap in zip(self.blocks, taps, strict=True)]


@checked
class Pgi(nn.Module):
    """A detector with an auxiliary branch, which is there in training only.

    Args:
        main: the detector.
        branch: ``icn`` (`ImagePath`, published for M and C), ``fpn`` (`Pyramid`, published for T, S
            and E) or ``pfh`` (`DeepSupervision`).
        image: see `ImagePath`; of that branch alone.
        detached: cuts the gradient between branch and backbone (control).
        width: see `DeepSupervision`; of that branch alone.

    Raises:
        UserError: an image or a width for a branch that has none.
    """

    def __init__(
        self,
        main: Gelan,
        branch: Branch,
        image: Image = "own",
        detached: bool = False,
        width: Count | None = None,
    ) -> None:
        super().__init__()
        if image != "own" and branch != "icn":
            raise UserError(f"branch={branch} reads no image: leave out image={image}.")
        if width is not None and branch != "pfh":
            raise UserError(f"width={width} is for branch=pfh, not for {branch}.")
        self.main, self.detached = main, detached
        self.branch: Any
        if branch == "icn":
            self.branch = ImagePath(main, image)
        elif branch == "fpn":
            self.branch = Pyramid(main)
        else:
            self.branch = DeepSupervision(main, width)
        self.head = DetectionHead(self.branch.exits, **main.head_sizes)

    def forward(self, x: Tensor) -> Any:
        """(main, auxiliary) `Predictions` in training, those of the main network otherwise."""
        if not self.training:
            return self.main(x)
        taps, pyramid = self.main.features(x)
        seen = [tap.detach() for tap in taps] if self.detached else taps
        return self.main.head(pyramid), self.head(self.branch(x, seen))

    def auxiliary(self) -> list[nn.Parameter]:
        """The parameters that are cut off after training."""
        return [*self.branch.parameters(), *self.head.parameters()]

    def strip(self) -> Gelan:
        """The main network, alone."""
        return self.main


def pgi_loss(
    loss: DetectionLoss,
    main: Predictions,
    auxiliary: Predictions,
    labels_BM: Tensor,
    objects_BM4: Tensor,
    weight: NonNegative = 0.25,
    lead: bool = False,
) -> Tensor:
    """The loss of both groups of heads, as a number for an image on average.

    Args:
        loss: of one group.
        main: predictions of the main heads.
        auxiliary: of the auxiliary ones.
        labels_BM: classes of the objects; −1 for padding.
        objects_BM4: their boxes in pixels.
        weight: of the auxiliary loss.
        lead: lead-head guidance: auxiliary heads learn what was assigned to the main ones.
    """
    assigned = loss.assign(main, labels_BM, objects_BM4)
    theirs = assigned if lead else loss.assign(auxiliary, labels_BM, objects_BM4)
    return loss.weighted(loss.parts(main, assigned)) + weight * loss.weighted(
        loss.parts(auxiliary, theirs)
    )
