"""Checkpoints of full scales load from a local mirror, by the names and shapes of their makers.

``support/layouts`` has these, as torchvision and timm write them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study

LAYOUTS = Path(__file__).parents[1] / "support" / "layouts"


def layout(file: str) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a published file."""
    maker, name = file.split("/")
    lines = (LAYOUTS / f"{maker}_{Path(name).stem.split('-')[0]}.txt").read_text().splitlines()
    pairs = (line.partition(" ") for line in lines)
    return {name: [int(n) for n in shape.split("x") if n] for name, _, shape in pairs}


def write(file: Path, shapes: dict[str, list[int]]) -> None:
    """Writes such a file, whose tensors are full of their numbers."""
    file.parent.mkdir(parents=True)
    numbered = enumerate(shapes.items())
    weights = {name: torch.tensor(n).short().expand(shape) for n, (name, shape) in numbered}
    if file.suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file({name: each.contiguous() for name, each in weights.items()}, file)
    else:
        torch.save(weights, file)


@pytest.mark.parametrize(
    ("slug", "scale", "base", "model"),
    [
        ("accelat", "full", "starts.published", "model"),
        ("accelat", "full_mobilenet", "starts.published", "model"),
        ("adjoint_dpm", "full_vocabulary", "vocabulary.base", "classifier"),
        ("gradient_ptq", "full", "base", "model"),
        ("gradient_ptq", "full_vit", "base", "model"),
        ("jlcm", "full", "base", "model"),
        ("jlcm", "full_vit", "base", "model"),
        ("lrp_pruning", "full_vgg16_cats", "base", "model"),
        ("lrp_pruning", "full_resnet50_cats", "base", "model"),
        ("lrp_pruning", "full_resnet50_imagenet", "base", "model"),
        ("lrp_pruning", "full_scarce", "base", "model"),
        ("lrp_pruning", "full_scarce_resnet50", "base", "model"),
        ("otov3", "full_imagenet", "base", "model"),
    ],
)
def test_every_tensor_gets_its_own(
    slug: str, scale: str, base: str, model: str, tmp_path: Path
) -> None:
    typed = [f"paper={slug}", f"scale={scale}", "seed=0", f"data.root={tmp_path}", "hardware=cpu"]
    config = plan_study(typed).runs[0].config
    wanted, network = (OmegaConf.select(config, key) for key in (base, model))
    shapes = layout(wanted.file)
    write(tmp_path / wanted.file, shapes)
    built: Any = instantiate(network)
    instantiate(wanted)(built, None, torch.device("cpu"))
    tensors = built.state_dict()
    numbers = {name: n for n, name in enumerate(tensors if wanted.get("in_order") else shapes)}
    own = list(tensors)[-2:] if wanted.get("new_head") else []
    for name, tensor in tensors.items():
        assert (tensor == numbers[name]).all() != (name in own), name
    assert len(tensors) == len(shapes)
    assert sum(map(math.prod, shapes.values())) > 1e6
