"""Heads, decoders and losses against the published architectures and explicit formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.man import (
    Classification,
    Decoder,
    InfoPro,
    PredSim,
    auxiliary_head,
    similarity,
    unit_range,
)


def convolutions(head):
    return [(m.out_channels, m.stride[0]) for m in head.modules() if isinstance(m, nn.Conv2d)]


def linears(head):
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(("channels", "first"), [(16, (32, 2)), (32, (64, 2)), (64, (64, 1))])
def test_default_head_is_the_official_one(channels, first):
    head = auxiliary_head("2c2f", (channels, 8, 8), 10, widest=64)
    assert convolutions(head) == [first, (first[0], 1)]
    assert linears(head) == [(first[0], 128), (128, 10)]
    assert head(torch.randn(2, channels, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("spec", "convs", "fulls"),
    [
        ("0c1f", 0, [(16, 10)]),
        ("0c2f", 0, [(16, 128), (128, 10)]),
        ("1c1f", 1, [(32, 10)]),
        ("1c3f", 1, [(32, 128), (128, 128), (128, 10)]),
    ],
)
def test_specs(spec, convs, fulls):
    head = auxiliary_head(spec, (16, 4, 4), 10, widest=64)
    assert (len(convolutions(head)), linears(head)) == (convs, fulls)


def test_imagenet_head():
    head = auxiliary_head("imagenet", (512, 28, 28), 1000, widest=2048)
    assert convolutions(head) == [(128, 1), (256, 2), (512, 2), (2048, 1)]
    assert linears(head) == [(2048, 1000)]


def test_vectors():
    assert auxiliary_head("0c1f", (7,), 3, widest=7)(torch.randn(2, 7)).shape == (2, 3)
    with pytest.raises(UserError, match=r"method.head=0c1f or 0c2f"):
        auxiliary_head("1c1f", (7,), 3, widest=7)


@pytest.mark.parametrize("spec", ["", "c1f", "1c0f", "two"])
def test_unknown_heads(spec):
    with pytest.raises(UserError, match=r"method\.head is like 1c2f"):
        auxiliary_head(spec, (16, 4, 4), 10, widest=64)


@pytest.mark.parametrize(
    ("kind", "channels", "image", "features", "widths"),
    [
        ("cifar", 16, (3, 32, 32), 8, [12, 3]),
        ("cifar", 16, (1, 8, 16), 4, [12, 1]),
        ("imagenet", 512, (3, 224, 224), 28, [128, 32, 12, 3]),
    ],
)
def test_decoder_paints_the_image(kind, channels, image, features, widths):
    decoder = Decoder(channels, image, kind)
    assert [width for width, _ in convolutions(decoder)] == widths
    assert decoder(torch.randn(2, channels, features, features)).shape == (2, *image)


def test_similarity_is_the_correlation_of_examples():
    features = torch.randn(6, 9)
    torch.testing.assert_close(similarity(features), torch.corrcoef(features), atol=1e-5, rtol=0)


def test_similarity_of_maps_takes_deviations():
    maps = torch.randn(5, 7, 4, 4)
    torch.testing.assert_close(similarity(maps), similarity(maps.std(dim=(2, 3))))


def test_similarity_survives_constant_features():
    features = torch.ones(3, 4, requires_grad=True)
    similarity(features).sum().backward()
    assert similarity(features).abs().max() < 1e-6


def test_losses_are_their_formulas():
    y, image, target = torch.randn(4, 8, 4, 4), torch.rand(4, 1, 8, 8), torch.arange(4)
    head = auxiliary_head("0c1f", (8, 4, 4), 4, widest=8)
    classified = F.cross_entropy(head(y), target)
    torch.testing.assert_close(Classification(head)(y, image, target), classified)

    decoder = Decoder(8, (1, 8, 8))
    z = decoder(y)
    painted = -(image * F.logsigmoid(z) + (1 - image) * F.logsigmoid(-z)).mean()
    found = InfoPro(head, decoder, 2.0, 0.5)(y, image, target)
    torch.testing.assert_close(found, 2 * painted + 0.5 * classified)

    predsim = PredSim((8, 4, 4), 4, beta=0.7)
    alike = similarity(predsim.embed(y)) - similarity(torch.eye(4))
    expected = 0.3 * F.cross_entropy(predsim.head(y), target) + 0.7 * alike.square().mean()
    torch.testing.assert_close(predsim(y, image, target), expected)


def test_beta_is_a_share():
    with pytest.raises(UserError, match="beta lies in"):
        PredSim((8, 4, 4), 4, beta=1.1)


def test_pixels_come_back_into_the_unit_range():
    mean, std = torch.tensor([0.3, 0.6]).view(2, 1, 1), torch.tensor([0.2, 0.4]).view(2, 1, 1)
    pixels = torch.rand(3, 2, 4, 4)
    pixels[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    back = unit_range((pixels - mean) / std, mean, std)
    torch.testing.assert_close(back, pixels)
    assert back.min() >= 0
    assert back.max() <= 1
    own = unit_range(5 * pixels - 2, None, None)
    assert (own.min(), own.max()) == (0, 1)
