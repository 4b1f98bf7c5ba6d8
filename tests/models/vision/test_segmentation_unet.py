"""The U-Net for masks: sizes, parameters, and what it refuses."""

import pytest
import torch

from repro.errors import UserError
from repro.models.vision.segmentation_unet import SegmentationUNet


@pytest.mark.parametrize("shape", [(3, 20, 17), (1, 9, 8, 11)])
def test_logits_have_the_size_of_any_picture(shape):
    logits = SegmentationUNet(shape, width=2, depth=2)(torch.randn(2, *shape))
    assert logits.shape == (2, 1, *shape[1:])


def test_has_the_parameters_that_its_config_states():
    model = SegmentationUNet((1, 48, 48))
    blocks = [(1, 8), (8, 16), (16, 32), (48, 16), (24, 8)]
    counted = sum(9 * (i * o + o * o) + 4 * o for i, o in blocks) + 8 + 1
    assert sum(p.numel() for p in model.parameters()) == counted == 29_777


def test_sees_what_lies_far_away():
    torch.manual_seed(0)
    model = SegmentationUNet((1, 32, 32), width=8, depth=3).eval()
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    model(x)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0, 0, 12:, 12:] != 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((1, 8),), "pictures or volumes"), (((1, 8, 8), 0), "width"), (((1, 8, 8), 4, 0), "depth")],
)
def test_refuses_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        SegmentationUNet(*arguments)
