"""Every file of conf/model builds its model from the sizes of a data set."""

from importlib.resources import files

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

DATASET = {"input_shape": [3, 64, 64], "classes": 10, "vocab_size": 50}
LAYERS = {  # weight layers by name of the config
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
}
# Built by the tests that feed them: they read stories, symbols, noise or radio channels, draw
# masks, or are many at once.
ELSEWHERE = {"stacked_mlp", "memory_network", "neural_gpu", "unet_segmentation"}
ELSEWHERE |= {"icgnn"}
ELSEWHERE |= {"skip_mlp", "uvit", "ddpm_unet"}
ELSEWHERE |= {"none"}  # for methods that bring their own
FOUND = {f.name.removesuffix(".yaml") for f in files("repro.conf").joinpath("model").iterdir()}
# Published weights, which test_llama.py and test_gpt2.py look at.
LOADED = {"llama_7b", "llama_13b", "llama_30b", "llama2_7b", "llama2_13b", "llama2_70b"}
LOADED |= {"open_llama_3b", "gpt2", "gpt2_medium"}
NAMES = sorted(FOUND - ELSEWHERE - LOADED)


def compose(name: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_module("repro.conf", version_base=None):
        config = hydra.compose(overrides=[f"+model={name}", *overrides])
    return OmegaConf.create(OmegaConf.to_container(config) | {"dataset": DATASET})


def test_there_is_a_file_for_every_choice() -> None:
    others = {"lstm", "lstm_ptb", "llama_tiny", "mlp_per_set", "vit_b16", "vit_tiny"}
    assert set(NAMES) == set(LAYERS) | others


@pytest.mark.parametrize("name", NAMES)
def test_builds(name: str) -> None:
    with torch.device("meta"):
        model = hydra.utils.instantiate(compose(name).model)
        if name == "mlp_per_set":
            model = model(input_shape=DATASET["input_shape"], classes=DATASET["classes"])
        if name.startswith(("lstm", "llama")):
            tokens = torch.zeros(2, 5, dtype=torch.int64)
            assert model(tokens).shape == (2, 5, DATASET["vocab_size"])
        else:
            images = torch.empty(2, *DATASET["input_shape"])
            assert model(images).shape == (2, DATASET["classes"])


@pytest.mark.parametrize("name", LAYERS)
def test_has_the_depth_of_its_name(name: str) -> None:
    with torch.device("meta"):
        model = hydra.utils.instantiate(compose(name).model)
    weights = [n for n, p in model.named_parameters() if p.ndim > 1 and "downsample" not in n]
    assert len(weights) == LAYERS[name]


def test_a_typed_knob_wins() -> None:
    assert compose("resnet56", "model.width=8").model.width == 8
