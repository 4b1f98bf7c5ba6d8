"""The vision transformer and the plain CNN: published sizes, chains, bad sizes, folded norms."""

from typing import Any

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models import PlainCNN, ResNetImageNet, SmallCNN, VisionTransformer
from repro.models.parts.folding import fold_batch_norm

DIGITS: dict[str, Any] = {"input_shape": [1, 8, 8], "classes": 10}
TINY: dict[str, Any] = {"patch": 2, "width": 8, "depth": 2, "heads": 2}


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [({}, 86_567_656), ({"width": 384, "heads": 6}, 22_050_664)],  # ViT-B/16, DeiT-S/16
)
def test_published_sizes(sizes: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer([3, 224, 224], 1000, **sizes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("model", [VisionTransformer(**DIGITS, **TINY), PlainCNN(**DIGITS)])
def test_a_chain_is_the_model(model: Any) -> None:
    x = torch.randn(3, 1, 8, 8)
    chain = model.chain()
    y = chain.stem(x)
    for unit in chain.units:
        y = unit(y)
    torch.testing.assert_close(chain.head(y), model(x))


def test_attention_is_torchs() -> None:
    attention: Any = VisionTransformer(**DIGITS, **TINY).blocks[0].attn
    torch.nn.init.normal_(attention.qkv.weight)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.in_proj_bias.copy_(attention.qkv.bias)
        reference.out_proj.weight.copy_(attention.proj.weight)
        reference.out_proj.bias.copy_(attention.proj.bias)
    x = torch.randn(4, 5, 8)
    torch.testing.assert_close(attention(x), reference(x, x, x)[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VisionTransformer(**DIGITS, patch=3), "do not tile"),
        (lambda: VisionTransformer(**DIGITS, **{**TINY, "heads": 3}), "do not divide"),
        (lambda: PlainCNN(**DIGITS, widths=[8]), "come in pairs"),
        (lambda: PlainCNN([1, 2, 2], 10), "at least 4x4"),
    ],
)
def test_bad_sizes(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (SmallCNN(**DIGITS), 3),
        (ResNetImageNet([1, 8, 8], 10, depth=18, small_images=True), 20),
        (VisionTransformer(**DIGITS, **TINY), 0),
    ],
)
def test_folding_keeps_the_function(model: nn.Module, norms: int) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.uniform_(module.bias, -1, 1)
    x = torch.randn(3, 1, 8, 8)
    before = model.eval()(x)
    assert fold_batch_norm(model) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
