"""Neurons that may be renumbered: found, permuted, scaled, grouped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from repro.methods.jlcm import Link, find_links, neuron_groups, permute_neurons, scale_neurons
from repro.models import Llama, MobileNet, PlainCNN, ResNetCIFAR, VisionTransformer
from repro.models.language.llama import Block
from repro.toolbox.reconstruction import weight_layers


def pictures(size: int = 8, channels: int = 1) -> Tensor:
    shape = (4, channels, size, size)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def links(model: nn.Module, x: Tensor) -> dict[tuple[str, ...], Link]:
    """By producers; and every one of them keeps the function, in any order."""
    found = find_links(model, x, weight_layers(model, x))
    before = model(x)
    for link in found:
        permuted = copy.deepcopy(model)
        order = torch.randperm(link.count, generator=torch.Generator().manual_seed(1))
        permute_neurons(permuted, link, order)
        torch.testing.assert_close(permuted(x), before, rtol=1e-5, atol=1e-6)
        weight = model.get_submodule(link.producers[0]).get_parameter("weight")
        moved = permuted.get_submodule(link.producers[0]).get_parameter("weight")
        assert torch.equal(moved, weight[order])
    return {link.producers: link for link in found}


@torch.no_grad()
def test_a_plain_network_is_free_everywhere() -> None:
    torch.manual_seed(0)
    model = PlainCNN([1, 8, 8], 10, widths=[4, 4, 6, 6], hidden=8).eval()
    found = links(model, pictures())
    layers = weight_layers(model, pictures())
    assert [*found] == [(layer,) for layer in layers[:-1]]
    assert found[("stages.1.2",)] == Link(("stages.1.2",), (), "head.1", 6, 4)  # 2 x 2 pixels


@torch.no_grad()
def test_a_transformer_is_free_inside_its_perceptrons() -> None:
    torch.manual_seed(0)
    model = VisionTransformer([1, 8, 8], 10, patch=4, width=8, depth=2, heads=2).eval()
    found = links(model, pictures())
    assert set(found) == {(f"blocks.{i}.mlp.fc1",) for i in range(2)}


@torch.no_grad()
def test_a_decoder_is_free_where_gate_and_values_meet() -> None:
    torch.manual_seed(0)
    model = Llama(11, 8, 2, 2, mlp_width=12, init_std=0.3).eval()
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    found = links(model, tokens)
    assert {link.consumer for link in found.values()} == expected
    assert all(len(producers) == 2 for producers in found)
    block = Block(8, 2, 2, 12, 10000.0, 1e-5).eval()
    alone = links(block, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert set(alone) == {("mlp.gate_proj", "mlp.up_proj")}


@torch.no_grad()
def test_residual_networks_are_free_inside_their_blocks() -> None:
    torch.manual_seed(0)
    model = ResNetCIFAR([1, 8, 8], 10, depth=8, width=4).eval()
    found = links(model, pictures())
    assert set(found) == {(f"layer{i}.0.conv1",) for i in range(1, 4)}
    assert all(len(link.between) == 1 for link in found.values())  # a batch norm


@torch.no_grad()
def test_depthwise_convolutions_follow() -> None:
    torch.manual_seed(0)
    model = MobileNet([3, 32, 32], 10).eval()
    x = pictures(32, 3)
    found = find_links(model, x, weight_layers(model, x)[:4])  # two blocks are enough
    (first,) = [link for link in found if len(link.between) == 3]
    before = model(x)
    permute_neurons(model, first, torch.randperm(first.count))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_that_belongs_to_no_neuron_does_not_bind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 3)).eval()
    assert links(model, pictures()) == {("0",): Link(("0",), (), "2", 4, 1)}


@torch.no_grad()
def test_scaled_neurons_keep_a_relu_network() -> None:
    torch.manual_seed(0)
    model = PlainCNN([1, 8, 8], 10, widths=[4, 4, 6, 6], hidden=8).eval()
    x = pictures()
    before = model(x)
    first = model.stages[0][0].weight.clone()
    for link in find_links(model, x, weight_layers(model, x)):
        scale_neurons(model, link, torch.linspace(0.25, 4, link.count))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.stages[0][0].weight[0], first[0] / 4)


def test_groups() -> None:
    spread = torch.tensor([3.0, 0.1, 2.9, 0.2, 1.0, 1.1])
    weight = spread[:, None] * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    for criterion in ("std", "std_kmeans", "quantiles"):
        found = neuron_groups(weight, 3, criterion)  # type: ignore[arg-type]
        assert found[0] == found[2]
        assert found[1] == found[3]
        assert found[4] == found[5]
        assert sorted(set(found.tolist())) == [0, 1, 2]
    assert neuron_groups(weight, 3, "std").tolist() == [2, 0, 2, 0, 1, 1]
    assert neuron_groups(weight, 4, "contiguous").tolist() == [0, 0, 1, 2, 2, 3]
    drawn = neuron_groups(weight, 3, "random", torch.Generator().manual_seed(1))
    assert torch.bincount(drawn).tolist() == [2, 2, 2]
    assert len(neuron_groups(weight, 99, "std").unique()) == 6


@pytest.mark.parametrize("criterion", ["std", "quantiles"])
def test_groups_of_normalised_rows_do_not_depend_on_a_common_scale(criterion: str) -> None:
    weight = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    first = neuron_groups(weight, 3, criterion)  # type: ignore[arg-type]
    second = neuron_groups(4 * weight, 3, criterion)  # type: ignore[arg-type]
    assert torch.equal(first, second)
