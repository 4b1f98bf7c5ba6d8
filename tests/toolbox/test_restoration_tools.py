"""Gradient reversal, picture quality, the perceptual loss and probes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from repro.errors import UserError
from repro.toolbox.gradient_reversal import dann_strength, reverse
from repro.toolbox.image_quality import luma, ms_ssim, psnr, ssim, to_8_bit
from repro.toolbox.perceptual import PerceptualLoss
from repro.toolbox.probes import probe_accuracy


def test_reversal_changes_nothing_but_the_gradients_sign_and_size() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reverse(x, 0.7), x)
    (plain,) = torch.autograd.grad(x.sin().sum(), x)
    (turned,) = torch.autograd.grad(reverse(x, 0.7).sin().sum(), x)
    assert torch.equal(turned, -0.7 * plain)
    (second,) = torch.autograd.grad(reverse(x, 0.0).sum(), x)
    assert torch.equal(second, torch.zeros_like(x))


@pytest.mark.parametrize(("done", "strength"), [(0, 0), (0.1, 0.4621), (0.5, 0.9866), (1, 0.9999)])
def test_the_strength_rises_to_one(done: float, strength: float) -> None:
    assert dann_strength(done) == pytest.approx(strength, abs=5e-5)


def test_luma_of_black_and_white() -> None:
    pictures = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 255.0)])
    assert luma(pictures)[:, 0, 0, 0].tolist() == [16, 235]


@pytest.mark.parametrize("size", [12, 32, 175, 176])
def test_similarity_of_maps_at_any_size(size: int) -> None:
    """From 176 pixels on it is the standard one, of five scales."""
    torch.manual_seed(0)
    y = torch.rand(2, 1, size, size)
    noise = torch.randn_like(y)
    assert ms_ssim(y, y).tolist() == pytest.approx([1, 1])
    found = [ms_ssim(y, (y + level * noise).clamp(0, 1)) for level in (0.05, 0.2)]
    assert (found[0] > found[1]).all()
    assert found[0].shape == (2,)
    standard = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
    if size == 176:
        assert found[0].mean() == pytest.approx(standard(y, (y + 0.05 * noise).clamp(0, 1)))


def test_quality_against_scikit_image() -> None:
    torch.manual_seed(0)
    clean = to_8_bit(torch.rand(2, 1, 24, 30))
    noisy = (clean + 20 * torch.randn(2, 1, 24, 30)).clamp(0, 255).round()
    for number in range(2):
        a, b = noisy[number, 0].double().numpy(), clean[number, 0].double().numpy()
        ours = psnr(noisy.double(), clean.double())[number]
        assert ours.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-6)
        theirs = structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(noisy, clean)[number].item() == pytest.approx(theirs, abs=1e-6)


def test_a_difference_of_one_and_none() -> None:
    a = torch.full((1, 1, 16, 16), 100.0)
    assert psnr(a + 1, a).item() == pytest.approx(48.13, abs=0.005)
    assert psnr(a, a) == 100
    assert ssim(a, a).item() == pytest.approx(1)


def test_the_perceptual_loss_reads_published_weights_and_leaves_them(tmp_path: Path) -> None:
    """Against the features of a plain stack of convolutions, named as torchvision names them."""
    torch.manual_seed(0)
    widths = [3, 64, 64, 128, 128, 256, 256, 256]
    places = [0, 2, 5, 7, 10, 12, 14]
    weights = {}
    for place, a, b in zip(places, widths, widths[1:], strict=False):
        weights[f"features.{place}.weight"] = torch.randn(b, a, 3, 3) * (2 / 9 / a) ** 0.5
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(b)
    file = tmp_path / "vgg16.pth"
    torch.save({**weights, "classifier.0.weight": torch.zeros(1)}, file)
    loss = PerceptualLoss(file)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for place in places:
            if place in (5, 10):
                x = F.max_pool2d(x, 2)
            w, b = (weights[f"features.{place}.{kind}"] for kind in ("weight", "bias"))
            x = F.relu(F.conv2d(x, w, b, padding=1))
            if place in (2, 7, 14):
                found.append(x)
        return found

    x, target = torch.rand(2, 1, 3, 16, 16)
    expected = sum(F.mse_loss(a, b) for a, b in zip(features(x), features(target), strict=True)) / 3
    assert loss(x, target).item() == pytest.approx(float(expected), rel=1e-5)
    assert not any(p.requires_grad for p in loss.parameters())
    with pytest.raises(UserError, match="missing"):
        PerceptualLoss(tmp_path / "other.pth")


def test_probes_find_what_is_there_linearly_or_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    linear = (x[:, 0] > 0).long()
    crossed = (x[:, 0] * x[:, 1] > 0).long()  # which no line separates
    for labels, hidden, low, high in (
        (linear, 0, 0.95, 1), (crossed, 0, 0.3, 0.65), (crossed, 16, 0.9, 1)
    ):  # fmt: skip
        found = probe_accuracy((x[:300], labels[:300]), (x[300:], labels[300:]), hidden)
        assert low <= found <= high
