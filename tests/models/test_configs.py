"""Files of conf/model build their models from the sizes of a data set."""

from __future__ import annotations

import inspect
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from repro.errors import UserError
from repro.models.language.gpt2 import GPT2
from repro.models.language.llama import Llama, unloaded

DATASET: dict[str, Any] = {"input_shape": [3, 64, 64], "classes": 10, "vocab_size": 50}
FOLDER = Path(str(files("repro.conf"))) / "model"
NAMES = sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml"))
LAYERS = {  # weight layers, where the name or the paper states them
    "resnet20": 20,
    "resnet32": 32,
    "resnet44": 44,
    "resnet56": 56,
    "resnet110": 110,
    "resnet18": 18,
    "resnet50": 50,
    "alexnet": 8,
    "mlp": 3,
    "mobilenet": 28,
    "small_cnn": 4,
    "plain_cnn": 6,
    "vgg11": 11,
    "vgg16": 16,
    "pooled_cnn": 4,
    "preresnet110": 110,
}


def compose(name: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_module("repro.conf", version_base=None):
        config = hydra.compose(overrides=[f"+model={name}", *overrides])
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.create(plain | {"dataset": DATASET})


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_a_number_for_each_class_or_next_token(name: str) -> None:
    """Rooms build the others: what reads other things, or comes with published weights."""
    config = compose(name).model
    with torch.device("meta"):
        if {"input_shape", "classes"} <= config.keys():
            model = hydra.utils.instantiate(config)
            parameters = inspect.signature(model.forward).parameters.values()
            if sum(each.default is each.empty for each in parameters) > 1:  # conditions, too
                return
            logits = model(torch.empty(2, *DATASET["input_shape"]))
            assert logits.shape[-2:] == (2, DATASET["classes"])  # (networks, batch, classes)
        elif "vocab_size" in config and "root" not in config:
            tokens = torch.zeros(2, 5, dtype=torch.int64)
            assert hydra.utils.instantiate(config)(tokens).shape == (2, 5, DATASET["vocab_size"])


@pytest.mark.parametrize("name", LAYERS)
def test_has_the_depth_of_its_name(name: str) -> None:
    with torch.device("meta"):
        model = hydra.utils.instantiate(compose(name).model)
    weights = [
        n
        for n, p in model.named_parameters()
        if p.ndim > 1 and "downsample" not in n and "shortcut" not in n
    ]
    assert len(weights) == LAYERS[name]


def test_a_typed_knob_wins() -> None:
    assert compose("resnet56", "model.width=8").model.width == 8


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "sizes:" in (FOLDER / f"{name}.yaml").read_text()]
)
def test_the_sizes_of_published_models_give_their_number_of_parameters(name: str) -> None:
    config = compose(name).model
    kind = GPT2 if "gpt2" in name else Llama
    vocab_size = 50257 if kind is GPT2 else 32000
    with torch.device("meta"):
        model = kind(vocab_size, **config.info.sizes)
    assert sum(each.numel() for each in model.parameters()) == config.parameters


def test_made_up_weights_are_there_and_of_the_stated_type() -> None:
    sizes = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 16}
    model = unloaded(info={"sizes": sizes}, vocab_size=11, dtype="bfloat16", folder="none")
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert model(torch.zeros(1, 3, dtype=torch.int64)).isfinite().all()


def test_made_up_weights_beyond_memory_are_refused() -> None:
    sizes = {"width": 2**17, "layers": 500, "heads": 2, "mlp_width": 2**17}
    with pytest.raises(UserError, match="GB of host memory"):
        unloaded(info={"sizes": sizes}, vocab_size=11)
