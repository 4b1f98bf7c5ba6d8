"""ViWS-Net and its parts: against loops, constant images, published sizes, and itself shuffled."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import KnobError
from repro.methods.viws_net import (
    FrameFilter,
    GatedAttention,
    TemporalShift,
    ViWSNet,
    WeatherDiscriminator,
    adversary_labels,
    restoration_loss,
    restore_tiled,
    weather_loss,
)
from repro.methods.viws_net.network import Refiner

Net = TypeVar("Net", bound=nn.Module)
SMALL: dict[str, Any] = {
    "encoder": {
        "widths": [8, 16], "depths": [2, 1], "heads": [2, 2], "ratios": [2.0, 2.0],
        "reductions": [2, 1], "drop_path": 0.0, "kernel": 3, "convs": 0,
    },
    "messengers": 6, "queries": 6, "decoder_depth": 1, "decoder_heads": 2, "last": [4, 4],
    "tail_width": 4, "attention_width": 8,
}  # fmt: skip
TIGHT: dict[str, Any] = {"depths": [1, 2, 4, 1], "convs": 0}


def small(**knobs: Any) -> ViWSNet:
    torch.manual_seed(0)
    return ViWSNet(**{**SMALL, **knobs}).eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def published() -> ViWSNet:
    with torch.device("meta"):
        return ViWSNet(refiner=TIGHT)


def _louder(net: Net) -> Net:
    """Larger weights, so that what messengers carry can be seen in an untrained network."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 20
    return net


def test_parameters_are_the_published_ones(published: ViWSNet) -> None:
    """57,821,217, of which 219 are of a convolution that the authors' RefineNet never uses."""
    net = published
    named = ("decoder", "up", "discriminator", "tail", "out")
    parts = {name: count(getattr(net, name)) for name in named}
    assert parts == {
        "decoder": 11_880_448, "up": 8_520_056, "discriminator": 132_736, "tail": 32_832, "out": 219
    }  # fmt: skip
    assert count(net.encoder) + net.messengers.numel() == 21_888_464
    assert count(net.refine) == 15_366_462 - 219
    assert count(net) == 57_821_217 - 219


def test_shapes_at_the_published_size(published: ViWSNet) -> None:
    net = published
    with torch.device("meta"), torch.no_grad():
        maps, tokens = net.encoder(torch.empty(2, 3, 224, 224), net.messengers.expand(2, -1, -1))
        below = net.decoder(maps[-1], tokens)
        restored = net(torch.empty(1, 5, 3, 224, 224))
    assert [tuple(each.shape[1:]) for each in maps] == [
        (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)
    ]  # fmt: skip
    assert tokens.shape == (2, 48, 512)
    assert below.shape == (2, 512, 4, 4)
    assert restored.centre.shape == (1, 3, 224, 224)
    assert restored.pixels is not None
    assert restored.pixels.shape == (1, 5, 512)


# -- Shift -----------------------------------------------------------------------------------------


def test_a_shift_is_undone_by_the_next_block() -> None:
    tokens = torch.randn(2 * 5, 12, 3)
    shift = TemporalShift(5)
    assert torch.equal(shift(shift(tokens, 0, 2), 1, 2), tokens)
    assert torch.equal(shift(shift(shift(tokens, 0, 3), 1, 3), 2, 3), tokens)  # the last one rests
    assert torch.equal(shift(tokens, 0, 1), tokens)  # as in the published fourth stage


@pytest.mark.parametrize(("group", "frames"), [(0, 1), (1, 0), (2, -1), (3, 2), (4, 0), (5, -2)])
def test_a_group_goes_where_its_number_says(group: int, frames: int) -> None:
    """Against indices: the token of frame t is found in frame t + s, of the same clip."""
    tokens = torch.arange(2 * 5 * 12).view(10, 12, 1)
    moved = TemporalShift(5)(tokens, 0, 2).view(2, 5, 12)
    for clip in range(2):
        for t in range(5):
            for m in (2 * group, 2 * group + 1):
                assert moved[clip, (t + frames) % 5, m] == tokens.view(2, 5, 12)[clip, t, m]


def test_one_frame_has_nowhere_to_go() -> None:
    tokens = torch.randn(4, 6, 2)
    assert torch.equal(TemporalShift(1)(tokens, 0, 2), tokens)


def test_the_control_goes_to_other_clips_and_stays_in_time() -> None:
    tokens = torch.arange(3.0).repeat_interleave(2).view(6, 1, 1).expand(6, 6, 1)  # clip numbers
    moved = TemporalShift(2, along="clip")(tokens, 0, 2).view(3, 2, 6)
    assert moved[:, 0].tolist() == moved[:, 1].tolist()
    assert moved[:, 0, 0].tolist() == [2, 0, 1]
    assert torch.equal(TemporalShift(2, along="none")(tokens, 0, 2), tokens)


def test_messengers_carry_time_where_nothing_else_does() -> None:
    clips = torch.rand(2, 3, 3, 32, 32)
    others = clips[:, [2, 1, 0]].clone()
    others[:, 0] *= 0.5

    def change(**knobs: Any) -> float:
        net = _louder(small(**knobs))
        return float((net(clips).centre - net(others).centre).abs().max().detach())

    assert change(shift="none", tail_kernel=1) < 1e-6
    assert change(tail_kernel=1) > 1e-4
    assert change(shift="none") > 1e-4
    assert change(frames="centre") == 0


def test_refinenets_messengers_couple_all_frames() -> None:
    refiner = {**SMALL["encoder"], "depths": [2, 1]}
    net = small(refiner=refiner, shift="time", tail_kernel=1)
    assert isinstance(net.refine, Refiner)
    _louder(net.refine)
    clips = torch.rand(1, 3, 3, 32, 32)
    found = net(clips).centre
    assert found.shape == (1, 3, 32, 32)
    clips[:, 0] = 0
    assert (net(clips).centre - found).abs().max() > 1e-5


def test_a_residual_is_taken_off_and_refinement_added() -> None:
    """Of 1, which is as much as there is, and of 1/4; the tail changes nothing."""
    net: Any = small()
    net.tail, net.refine = nn.Identity(), nn.Conv2d(3, 3, 1)
    nn.init.zeros_(net.out.weight)
    nn.init.constant_(net.out.bias, 20.0)
    nn.init.zeros_(net.refine.weight)
    nn.init.constant_(net.refine.bias, 0.25)
    clips = torch.rand(2, 3, 3, 32, 32)
    torch.testing.assert_close(net(clips).centre, clips[:, 1] - 1 + 0.25)


def test_arms_begin_with_the_same_weights_of_common_parts() -> None:
    full = dict(small().state_dict())
    for other in (small(messengers=0), small(shift="none"), small(tail_kernel=1)):
        theirs = other.state_dict()
        same = [n for n, w in theirs.items() if n in full and w.shape == full[n].shape]
        assert all(torch.equal(theirs[name], full[name]) for name in same)
        assert {n.split(".")[0] for n in full.keys() - set(same)} <= {"messengers", "tail"}
    queries = small(messengers=0).state_dict().keys() - full.keys()
    assert queries == {"decoder.blocks.0.queries"}


# -- Discriminator ---------------------------------------------------------------------------------


def test_gated_attention_is_a_weighted_mean_of_frames() -> None:
    pool = GatedAttention(6, 4)
    h = torch.randn(3, 5, 6)
    found = torch.empty(3, 6)
    for b in range(3):
        e = [pool.w(torch.tanh(pool.V(h[b, t])) * torch.sigmoid(pool.U(h[b, t]))) for t in range(5)]
        found[b] = (torch.cat(e).softmax(0)[:, None] * h[b]).sum(0)
    assert torch.allclose(pool(h), found, atol=1e-6)
    assert torch.allclose(pool.weights(h).sum(1), torch.ones(3, 1))
    assert torch.allclose(pool(h[:, [4, 2, 0, 1, 3]]), pool(h), atol=1e-6)
    same = h[:, :1].expand(-1, 5, -1)
    assert torch.allclose(pool(same), h[:, 0], atol=1e-6)


def test_its_loss_reaches_the_encoder_reversed_and_no_decoder() -> None:
    net = small().double().train()
    clips, weather = torch.rand(3, 3, 3, 32, 32).double(), torch.arange(3)

    def gradients(strength: float | None) -> dict[str, Tensor]:
        net.zero_grad()
        pixels = net(clips).pixels
        assert pixels is not None
        if strength is None:
            F.cross_entropy(net.discriminator(pixels), weather).backward()
        else:
            weather_loss(net.discriminator, pixels, weather, strength).backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    plain, turned = gradients(None), gradients(0.3)
    assert {name.split(".")[0] for name in turned} == {"encoder", "messengers", "discriminator"}
    for name, gradient in turned.items():
        factor = 1 if name.startswith("discriminator") else -0.3
        assert torch.allclose(gradient, factor * plain[name]), name


def test_at_the_beginning_it_knows_nothing() -> None:
    torch.manual_seed(0)
    features, weather = 0.1 * torch.randn(60, 3, 32), torch.arange(60) % 3
    loss = weather_loss(WeatherDiscriminator(32), features, weather, 1.0)
    assert loss.item() == pytest.approx(math.log(3), abs=0.02)


def test_shuffled_labels_are_those_of_the_batch() -> None:
    labels = torch.arange(12) % 3
    drawn = torch.Generator().manual_seed(0)
    shuffled = adversary_labels(labels, "shuffled", drawn)
    assert not torch.equal(shuffled, labels)
    assert torch.equal(shuffled.sort().values, labels.sort().values)
    assert torch.equal(adversary_labels(labels, "reversed", drawn), labels)


# -- Loss, baselines, tiles ------------------------------------------------------------------------


def test_the_loss_is_half_the_squared_error_below_one() -> None:
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert restoration_loss(a, b).item() == pytest.approx(0.5 * F.mse_loss(a, b).item())
    assert restoration_loss(a, a) == 0


def test_filters_look_at_the_centre_or_at_the_median() -> None:
    clips = torch.rand(2, 3, 3, 4, 4)
    assert torch.equal(FrameFilter("input")(clips).centre, clips[:, 1])
    sorted_ = clips.sort(1).values[:, 1]
    assert torch.equal(FrameFilter("median")(clips).centre, sorted_)


def test_tiles_cover_a_frame_and_the_later_one_wins() -> None:
    clips = torch.rand(1, 3, 3, 40, 56)
    assert torch.equal(restore_tiled(FrameFilter("input"), clips, 16, 4), clips[:, 1])

    class Numbered(nn.Module):
        """Answers with how often it was asked."""

        calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return type("R", (), {"centre": torch.full_like(x[:, 1], float(self.calls))})

    out = restore_tiled(Numbered(), torch.rand(1, 3, 3, 16, 40), 16, 4)[0, 0, 0]
    assert out.tolist() == [1] * 12 + [2] * 12 + [3] * 16


def test_a_frame_with_no_room_for_tiles_is_padded_and_cut_again() -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(FrameFilter):
        def forward(self, x: Tensor) -> Any:
            seen.append(tuple(x.shape))
            return super().forward(x)

    clips = torch.rand(2, 3, 3, 30, 70)
    assert torch.equal(restore_tiled(Watched("input"), clips, 64, 8, multiple=32), clips[:, 1])
    assert seen == [(2, 3, 3, 32, 96)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(messengers=7), "7 messengers do not make 6 equal groups"),
        (lambda: small(tail_kernel=2), "tail_kernel"),
        (lambda: TemporalShift(3)(torch.rand(3, 4, 2), 0, 2), "4 messengers"),
        (lambda: restore_tiled(FrameFilter("input"), torch.rand(1, 3, 3, 8, 8), 8, 8), "overlap"),
        (lambda: FrameFilter("mean"), "input or median"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_one_line(make: Any, message: str) -> None:
    with pytest.raises((UserError, KnobError)) as error:
        make()
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
