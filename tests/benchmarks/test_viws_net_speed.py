"""What messengers cost, whole frames against tiles, and how far tiles are from whole frames."""

from __future__ import annotations

from typing import Any

import torch
from timing import faster
from torch import Tensor

from repro.methods.viws_net import TemporalShift, ViWSNet, restore_tiled
from repro.models.vision.shunted import ShuntedTransformer

SMALL: dict[str, Any] = {
    "widths": [16, 32], "depths": [2, 2], "heads": [2, 2], "ratios": [2.0, 2.0],
    "reductions": [2, 1], "drop_path": 0.0, "kernel": 3, "convs": 0,
}  # fmt: skip


def test_messengers_cost_little_in_the_published_encoder() -> None:
    """Five frames of 224 x 224, forwards and backwards: 48 tokens beside 3136 to 49 places."""
    encoder = ShuntedTransformer().train()
    frames, tokens = torch.rand(5, 3, 224, 224), torch.rand(5, 48, 3)

    def step(*given: Any) -> None:
        maps, _ = encoder(frames, *given)
        maps[-1].sum().backward()

    faster(
        "shunted-S with 48 messengers, against none",
        lambda: step(tokens, TemporalShift(5)), lambda: step(None), 0.7, repeats=3,
    )  # fmt: skip


def test_the_shift_against_a_loop_over_tokens() -> None:
    tokens = torch.rand(20, 48, 256)
    shift = TemporalShift(5)

    def loop() -> Tensor:
        clips = tokens.view(4, 5, 48, 256)
        rolled = [clips[:, :, m].roll(shift.shifts[m // 8], 1) for m in range(48)]
        return torch.stack(rolled, 2).flatten(0, 1)

    assert torch.equal(shift(tokens, 0, 2), loop())
    # Measured 1.8 to 1.95: both copy all tokens twice, and only the calls are fewer, 7 for 49.
    faster(
        "the shift, against a loop over tokens",
        lambda: shift(tokens, 0, 2), loop, 1.6, repeats=50,
    )  # fmt: skip


def test_whole_frames_against_tiles_and_how_far_they_are_apart() -> None:
    """Tiles look at overlaps twice; at their borders they know less of the frame."""
    torch.manual_seed(0)
    net = ViWSNet(
        encoder=SMALL, messengers=12, decoder_depth=1, decoder_heads=2, tail_width=8,
        tail_residual=True,
    ).eval()  # fmt: skip
    clips = torch.rand(1, 3, 3, 256, 384)
    with torch.no_grad():
        whole = net(clips).centre
        for tile in (64, 128):
            for overlap in (16, 64)[: tile // 64]:
                tiled = restore_tiled(net, clips, tile, overlap, 8)
                print(f"\n{tile}/{overlap}: {(tiled - whole).abs().max():.2g} from whole frames")
        faster(
            "whole frames, against tiles of 128 that overlap by 16",
            lambda: net(clips), lambda: restore_tiled(net, clips, 128, 16, 8), 1.0,
        )  # fmt: skip
