"""Noise predictors with conditions: what they hear, and Stable Diffusion's published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.errors import UserError
from repro.methods.adjoint_dpm import sample, time_grid
from repro.models.diffusion.conditional import ConditionalMLP, ConditionalUNet
from repro.models.diffusion.ddpm_unet import DDPMUNet
from repro.models.diffusion.stable_diffusion import StableDiffusion
from repro.toolbox.diffusion import Discrete

SMALL_UNET: dict[str, Any] = {
    "width": 8,
    "multipliers": [1, 1],
    "blocks": 1,
    "groups": 4,
    "dropout": 0.0,
}


@pytest.mark.parametrize("kind", [ConditionalMLP, ConditionalUNet])
def test_noise_depends_on_time_and_class(kind: Any) -> None:
    torch.manual_seed(0)
    net = kind((1, 4, 4), 3, **(SMALL_UNET if kind is ConditionalUNet else {"hidden": [8]}))
    x, early, late = torch.randn(2, 1, 4, 4), torch.full((2,), 0.1), torch.full((2,), 0.9)
    conditions = net.embed(torch.tensor([0, 2]))
    assert conditions.shape == (2, *net.condition_shape)
    noise = net(x, early, conditions)
    assert noise.shape == x.shape
    assert not torch.equal(noise, net(x, late, conditions))
    assert not torch.equal(noise, net(x, early, conditions.flip(0)))
    torch.testing.assert_close(
        net.embed.blank(), net.embed(torch.arange(3)).mean(0), msg="the mean of all classes"
    )


def test_a_unet_without_a_condition_is_the_old_one() -> None:
    torch.manual_seed(0)
    net = ConditionalUNet((1, 4, 4), 3, **SMALL_UNET)
    plain = DDPMUNet((1, 4, 4), **SMALL_UNET)
    plain.load_state_dict(net.state_dict(), strict=False)
    x, time = torch.randn(2, 1, 4, 4), torch.tensor([0.2, 0.7])
    told = net(x, time, torch.zeros(2, *net.condition_shape))
    torch.testing.assert_close(told, plain(x, 999 * time))


def test_the_mlp_has_the_parameters_that_its_config_says() -> None:
    assert sum(p.numel() for p in ConditionalMLP((1, 8, 8), 10).parameters()) == 177_120


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Random networks of Stable Diffusion's kinds, laid out as published."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    diffusers.AutoencoderKL(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    ids = {"bos_token_id": 998, "eos_token_id": 999}
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=1000, **ids,
    )  # fmt: skip
    transformers.CLIPTextModel(text).save_pretrained(tmp_path / "text_encoder")
    letters = [chr(code) + end for end in ("", "</w>") for code in range(33, 127)]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 998, "<|endoftext|>": 999}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    return tmp_path


def test_stable_diffusion_is_guided_and_differentiated(tiny: Path) -> None:
    net = StableDiffusion(str(tiny), size=64, width=32)
    plain = StableDiffusion(str(tiny), size=64, width=32, guidance=1.0)
    assert list(net.parameters()) == []  # no checkpoint of a run holds them
    condition = net.embed("a dog").clone().requires_grad_()
    assert condition.shape == (1, 77, 32)
    assert net.length("a dog") == 6  # letters, begin and end
    x, time = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    blank = net.embed("")
    guided = plain(x, time, blank) + 7.5 * (plain(x, time, condition) - plain(x, time, blank))
    torch.testing.assert_close(net(x, time, condition), guided, rtol=1e-3, atol=1e-4)
    assert net.decode(x).shape == (1, 3, 64, 64)

    def gradient(net: StableDiffusion, way: Any) -> torch.Tensor:
        times = time_grid(Discrete(), 5)
        x_0 = sample(
            lambda x, t: net(x, t, condition),
            x,
            times,
            Discrete(),
            gradient=way,
            inputs=[condition],
        )
        return torch.autograd.grad(net.decode(x_0).square().mean(), condition)[0]

    naive = gradient(net, "naive")
    torch.testing.assert_close(gradient(net, "checkpoint"), naive, rtol=1e-3, atol=1e-8)
    frugal = StableDiffusion(str(tiny), size=64, width=32, checkpointing=True)
    torch.testing.assert_close(gradient(frugal, "naive"), naive, rtol=1e-3, atol=1e-8)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diffusers|nothing at"):
        StableDiffusion("nobody/nothing", root=str(tmp_path)).embed("a dog")


def test_its_unet_has_the_published_size() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
