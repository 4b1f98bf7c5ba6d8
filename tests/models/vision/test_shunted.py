"""The shunted transformer and TransWeather: sizes, attention in loops, published names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from repro.errors import UserError
from repro.models.parts.maps import to_map, to_sequence, tokens_of
from repro.models.vision.shunted import Shunt, ShuntedTransformer
from repro.models.vision.transweather import TransWeather


def test_parameters_of_the_published_networks() -> None:
    """22.4 M and 11.5 M with a head; TransWeather without 296,667 that get no gradient."""
    with torch.device("meta"):
        networks = [
            ShuntedTransformer(),
            ShuntedTransformer(depths=[1, 2, 4, 1], convs=0),
            TransWeather(),
        ]
    small, tiny, transweather = (sum(p.numel() for p in n.parameters()) for n in networks)
    head = 512 * 1000 + 1000
    assert round((small + head) / 1e6, 1) == 22.4
    assert round((tiny + head) / 1e6, 2) == 11.55  # published as 11.5
    assert transweather == 38_052_078 - 296_667


@pytest.mark.parametrize("ratio", [None, 2])
def test_attention_of_pooled_keys_in_a_loop(ratio: int | None) -> None:
    """Values get a convolution of themselves, tokens themselves, before pooling or after."""
    torch.manual_seed(0)
    shunt: Any = Shunt(6, 4, 2, ratio).double()
    x_map, tokens = torch.randn(1, 6, 4, 4).double(), torch.randn(1, 3, 6).double()
    x = to_sequence(x_map, tokens)
    q = torch.randn(1, 19, 4).double()

    size = (4, 4)
    keys = x
    if ratio is not None:
        size = (2, 2)
        constant = tokens @ shunt.sr.weight.sum((2, 3)).T + shunt.sr.bias
        keys = F.gelu(shunt.norm(to_sequence(shunt.sr(x_map), constant)))
    k, v = shunt.kv(keys).split(4, -1)
    local = v.clone()  # of tokens: themselves
    local[:, : size[0] * size[1]] = to_sequence(shunt.local_conv(to_map(v, size)))
    if ratio is not None:
        v = v + local
    found = torch.empty(1, 19, 4).double()
    for place in range(19):
        for part in (slice(0, 2), slice(2, 4)):
            scores = (k[0, :, part] @ q[0, place, part]) / 2**0.5
            found[0, place, part] = scores.softmax(0) @ v[0, :, part]
    if ratio is None:
        found = found + local
    assert torch.allclose(shunt(q, x, (4, 4)), found)


def tiny() -> Any:
    torch.manual_seed(0)
    return ShuntedTransformer([8, 16], [1, 2], [2, 2], [2.0, 2.0], [2, 1], 0.0, 3, 1).eval()


def test_tokens_and_pixels_of_one_colour_agree_behind_the_stem() -> None:
    """Before anything but the first convolution and the norm."""
    stem = tiny().stages[0].embed
    colours = torch.rand(2, 1, 3)
    sequence, size = stem(colours[:, 0, :, None, None].expand(2, 3, 32, 32), colours)
    first = stem.conv[0](colours[:, 0, :, None, None].expand(2, 3, 32, 32))[:, :, 8, 8]
    assert torch.allclose(tokens_of(sequence, size)[:, 0], stem.norm(first), atol=1e-5)


def test_without_tokens_the_maps_are_those_of_the_plain_network() -> None:
    """They take part in attention: with them, maps differ."""
    network, x = tiny(), torch.rand(2, 3, 32, 32)
    maps, none = network(x)
    assert none.shape == (2, 0, 16)
    with_tokens, tokens = network(x, torch.rand(2, 5, 3))
    assert tokens.shape == (2, 5, 16)
    assert [m.shape for m in maps] == [m.shape for m in with_tokens]
    assert not torch.allclose(maps[0], with_tokens[0], atol=1e-4)


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of the authors' file."""
    found = {}
    for name, value in weights.items():
        match = re.match(r"stages\.(\d)\.(embed|blocks|norm)\.(.*)", name)
        assert match
        theirs = {"embed": "patch_embed", "blocks": "block", "norm": "norm"}[match[2]]
        rest = match[3]
        one = re.match(r"(\d)\.shunts\.(\d)\.(\w+)\.(\w+)", rest)
        if one:
            paired = f"{match[1]}" == "0"  # only this stage of `tiny` pools its keys
            number = str(int(one[2]) + 1) if paired else ""
            rest = f"{one[1]}.attn.{one[3]}{number}.{one[4]}"
        rest = re.sub(r"^(\d)\.(q|proj)\.", r"\1.attn.\2.", rest)
        rest = rest.replace("mlp.dwconv", "mlp.dwconv.dwconv")
        found[f"{theirs}{int(match[1]) + 1}.{rest}"] = value
    return found


def test_published_weights_go_where_they_belong() -> None:
    network = tiny()
    weights = published({n: torch.randn_like(w.float()) for n, w in network.state_dict().items()})
    del weights["patch_embed1.conv.0.bias"]  # theirs has none
    bias = network.stages[0].embed.conv[0].bias.clone()
    network.load_published({**weights, "head.weight": torch.zeros(2, 16)})
    loaded = published(dict(network.state_dict()))
    for name, value in weights.items():
        assert torch.equal(loaded[name].float(), value.to(loaded[name].dtype).float()), name
    assert torch.equal(network.stages[0].embed.conv[0].bias, bias)
    known = {"attn.sr2.weight", "attn.kv2.bias", "mlp.dwconv.dwconv.weight", "norm1.weight"}
    assert {f"block1.0.{name}" for name in known} | {"block2.1.attn.kv.bias"} <= loaded.keys()
    del weights["block2.1.attn.kv.bias"]
    with pytest.raises(UserError, match=r"lack stages\.1\.blocks\.1\.shunts\.0\.kv\.bias"):
        network.load_published(weights)


def test_transweather_restores_images_of_their_size() -> None:
    net = TransWeather([8, 16], [1, 1], [1, 2], 2.0, [2, 1], 0.0, 3, 6, 1, 2, [4, 4])
    out = net(torch.rand(2, 3, 32, 48))
    assert out.shape == (2, 3, 32, 48)
    assert out.abs().max() <= 1
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="an entry for each stage"):
        ShuntedTransformer([8, 16], [1], [2, 2], [2.0, 2.0], [2, 1])
    with pytest.raises(UserError, match="even"):
        ShuntedTransformer([9], [1], [3], [2.0], [2])
