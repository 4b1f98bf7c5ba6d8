"""GPT-2 against the reference implementation, and loading of published checkpoints."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from repro.errors import UserError
from repro.models.language.gpt2 import GPT2, load_gpt2

VOCAB = 37
PUBLISHED = {"gpt2": {}, "gpt2_medium": {"width": 1024, "layers": 24, "heads": 16}}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random GPT-2 of transformers, and the folder in which it was saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=16, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3,
        layer_norm_epsilon=1e-4,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_logits_equal_those_of_transformers(reference: Any) -> None:
    theirs, folder = reference
    tokens = torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
    ours = load_gpt2(folder, vocab_size=VOCAB)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    hidden = theirs(tokens, output_hidden_states=True).hidden_states
    found: list[Tensor] = []
    ours.transformer.h[1].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    ours(tokens)
    torch.testing.assert_close(found[0], hidden[1], atol=1e-5, rtol=1e-5)


def test_old_checkpoints_without_a_prefix_load(reference: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    _, folder = reference
    weights = safetensors.load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)  # the causal mask
    safetensors.save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    new = load_gpt2(folder).state_dict()
    assert all(torch.equal(t, new[name]) for name, t in load_gpt2(tmp_path).state_dict().items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_as_many_parameters_as_published(name: str) -> None:
    stated = yaml.safe_load(files("repro.conf").joinpath("model", f"{name}.yaml").read_text())
    with torch.device("meta"):
        model = GPT2(**PUBLISHED[name])
    assert sum(p.numel() for p in model.parameters()) == stated["parameters"]


def test_a_fresh_model_predicts_nothing_yet() -> None:
    torch.manual_seed(0)
    logits = GPT2(VOCAB, 16, 24, 2, 3)(torch.randint(VOCAB, (2, 16)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(VOCAB, (32,)))
    assert loss.item() == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.1)


def test_messages(reference: Any, tmp_path: Path) -> None:
    _, folder = reference
    with pytest.raises(UserError, match="'openai-community/gpt2' is missing"):
        load_gpt2("openai-community/gpt2", root=tmp_path)
    with pytest.raises(UserError, match=r"parameters is .*, but the config says 7"):
        load_gpt2(folder, parameters=7)
    with pytest.raises(UserError, match="longer than its 16"):
        load_gpt2(folder)(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(UserError, match="must divide"):
        GPT2(width=10, heads=3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="not 'gpt2'"):
        load_gpt2(tmp_path)
