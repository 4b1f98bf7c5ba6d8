"""The decoder against the reference implementation, and loading of published checkpoints."""

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
from repro.models.language.llama import Llama, load_hugging_face

VOCAB = 37
# Sizes of the published models (config.json of each).
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama_7b": {"width": 4096, "layers": 32, "heads": 32, "mlp_width": 11008},
    "llama_13b": {"width": 5120, "layers": 40, "heads": 40, "mlp_width": 13824},
    "llama_30b": {"width": 6656, "layers": 60, "heads": 52, "mlp_width": 17920},
    "llama2_70b": {"width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "mlp_width": 28672},
    "open_llama_3b": {"width": 3200, "layers": 26, "heads": 32, "mlp_width": 8640},
}
PUBLISHED |= {"llama2_7b": PUBLISHED["llama_7b"], "llama2_13b": PUBLISHED["llama_13b"]}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[(4, False), (2, False), (4, True)], ids=str)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random LLaMA of transformers, and the folder in which it was saved, in shards."""
    transformers = pytest.importorskip("transformers")
    kv_heads, tied = request.param
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=kv_heads, tie_word_embeddings=tied,
        initializer_range=0.3, rope_theta=500.0, rms_norm_eps=1e-6, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model, folder


@torch.no_grad()
def test_logits_equal_those_of_transformers(reference: Any, tokens: Tensor) -> None:
    theirs, folder = reference
    ours = load_hugging_face(folder)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    assert set(dict(ours.named_parameters())) == set(dict(theirs.named_parameters()))


def test_gradients_equal_those_of_transformers(reference: Any, tokens: Tensor) -> None:
    theirs, folder = reference
    ours = load_hugging_face(folder)
    for model in (ours, theirs):
        model.zero_grad()
        output = model(tokens)
        getattr(output, "logits", output).square().sum().backward()
    reference_of = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        other = reference_of[name].grad
        assert mine.grad is not None
        assert (mine.grad - other).norm() < 1e-5 * other.norm(), name


def test_a_single_file_loads_too_and_half_precision_is_kept(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = Llama(VOCAB, 16, 1, 2, mlp_width=8)
    write_config(tmp_path)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of old checkpoints
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    loaded = load_hugging_face(tmp_path.name, root=tmp_path.parent, dtype="bfloat16")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_the_three_stages_make_the_whole_and_the_future_is_not_seen(tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = Llama(VOCAB, 16, 2, 2, 1, 8, init_std=0.3)
    x_BTD = model.embed(tokens)
    for block in model.blocks:
        x_BTD = block(x_BTD)
    assert torch.equal(model.head(x_BTD), model(tokens))
    changed = tokens.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(model(changed)[:, :6], model(tokens)[:, :6])
    assert not torch.allclose(model(changed)[:, 6:], model(tokens)[:, 6:])


def test_angles_made_in_inference_mode_serve_training(tokens: Tensor) -> None:
    model = Llama(VOCAB, 8, 1, 2, mlp_width=8, rope_theta=77.0)
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        model = Llama(32_000, **PUBLISHED[name])
    stated = yaml.safe_load(files("repro.conf").joinpath("model", f"{name}.yaml").read_text())
    assert sum(p.numel() for p in model.parameters()) == stated["parameters"]


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [({"heads": 3}, "must divide"), ({"kv_heads": 3}, "must divide"), ({"layers": 0}, "layers")],
)
def test_sizes_that_cannot_be(sizes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Llama(VOCAB, **sizes)


def write_config(folder: Path, **changes: Any) -> None:
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "asked", "complaint"),
    [
        (None, {}, "is missing: no .*config.json"),
        ({"model_type": "opt"}, {}, "model_type is 'opt'"),
        ({"rope_scaling": {"type": "linear"}}, {}, "rope_scaling=.* not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, {}, "rope_type=yarn is not supported"),
        ({}, {"parameters": 5}, "parameters is .*, but the config says 5"),
        ({}, {"vocab_size": 5}, "vocab_size is 37, but the config says 5"),
        ({}, {"dtype": "float8"}, "dtype is float32, float16 or bfloat16, not 'float8'"),
        ({}, {}, "missing or damaged"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, changes: Any, asked: dict[str, Any], complaint: str
) -> None:
    if changes is not None:
        write_config(tmp_path, **changes)
    with pytest.raises(UserError, match=complaint):
        load_hugging_face(tmp_path, **asked)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    write_config(tmp_path)
    weights = Llama(VOCAB, 16, 1, 2, mlp_width=8).state_dict()
    gain = weights.pop("model.norm.weight")
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lack \['model.norm.weight'\]"):
        load_hugging_face(tmp_path)
    safetensors.save_file(weights | {"model.norm.weight": gain[:3]}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        load_hugging_face(tmp_path)
