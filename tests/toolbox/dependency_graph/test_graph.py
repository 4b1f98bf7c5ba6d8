"""Groups and removal on many networks: against counts known from elsewhere, and against zeros."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.models import (
    MLP,
    VGG,
    Llama,
    MobileNet,
    PreActResNet,
    ResNetCIFAR,
    ResNetImageNet,
    SmallCNN,
    VisionTransformer,
)  # fmt: skip
from repro.models.vision.segmentation_unet import SegmentationUNet
from repro.toolbox import dependency_graph
from repro.toolbox.dependency_graph import DependencyGraph, Group, remove, silence, trace
from repro.toolbox.dependency_graph.graph import called


class Dense(nn.Module):
    """Concatenation as in DenseNet: every layer reads what all before it wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(18 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            seen.append(conv(norm(torch.cat(seen, 1)).relu()))
        return self.head(F.adaptive_avg_pool2d(torch.cat(seen, 1), 4).flatten(1))


class Mixed(nn.Module):
    """Group norm, a transposed and a grouped convolution, PReLU, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.GroupNorm(4, 12)
        self.act = nn.PReLU(12)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.squeeze = nn.Linear(8, 4)
        self.excite = nn.Linear(4, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.act(self.norm(self.stem(x))))
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head(self.up(x * gate[:, :, None, None]).relu())


def small_mobilenet() -> nn.Module:
    with patch("repro.models.vision.mobilenet.STAGES", ((8, 1, 1), (16, 2, 2), (24, 2, 1))):
        return MobileNet([3, 32, 32], 5)


def transformers_model(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        settings = getattr(transformers, f"{name.split('For')[0]}Config")(**config)
        model: nn.Module = getattr(transformers, name)(settings)
        return model

    return build


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(20).view(2, 10) % 50
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: MLP([3, 32, 32], 5, [16, 12]), IMAGES),
    "small_cnn": (lambda: SmallCNN([3, 32, 32], 5), IMAGES),
    "vgg": (
        lambda: VGG([3, 32, 32], 5, [[8, 8], [12], [12]], hidden=[16], batch_norm=True), IMAGES,
    ),
    "resnet_cifar": (lambda: ResNetCIFAR([3, 32, 32], 5, depth=8, width=4), IMAGES),
    "preact_resnet": (lambda: PreActResNet([3, 32, 32], 5, depth=11), IMAGES),
    "mobilenet": (small_mobilenet, IMAGES),
    "dense": (Dense, IMAGES),
    "mixed": (Mixed, IMAGES),
    "unet": (lambda: SegmentationUNet([3, 32, 32], width=4), IMAGES),
    "vit": (lambda: VisionTransformer([3, 32, 32], 5, patch=8, width=16, depth=2, heads=4), IMAGES),
    "llama": (lambda: Llama(50, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24), TOKENS),
    "hf_llama": (
        transformers_model(
            "LlamaForCausalLM", vocab_size=50, hidden_size=16, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, use_cache=False,
        ),
        TOKENS,
    ),
    "hf_bert": (
        transformers_model(
            "BertForSequenceClassification", vocab_size=50, hidden_size=16, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=4,
        ),
        TOKENS,
    ),
    "hf_vit": (
        transformers_model(
            "ViTForImageClassification", hidden_size=16, intermediate_size=24, image_size=32,
            num_hidden_layers=2, num_attention_heads=4, patch_size=8,
        ),
        IMAGES,
    ),
    "hf_gpt2": (
        transformers_model(
            "GPT2ForTokenClassification", vocab_size=50, n_embd=16, n_layer=2, n_head=4,
            n_positions=16, use_cache=False,
        ),
        TOKENS,
    ),
    "hf_convnext": (
        transformers_model(
            "ConvNextForImageClassification", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1],
        ),
        IMAGES,
    ),
    "hf_resnet": (
        transformers_model(
            "ResNetForImageClassification", embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1],
        ),
        IMAGES,
    ),
    "hf_regnet": (
        transformers_model(
            "RegNetForImageClassification", embedding_size=8, hidden_sizes=[8, 16, 16, 24],
            depths=[1, 1, 1, 1], groups_width=4, layer_type="y",
        ),
        IMAGES,
    ),
}  # fmt: skip


def first_tensor(output: Any) -> Tensor:
    tensor = output if isinstance(output, Tensor) else output[0]
    assert isinstance(tensor, Tensor)
    return tensor


def settled(model: nn.Module) -> nn.Module:
    """In double precision and evaluation mode; no parameter or statistic has a special value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "inv_freq" not in name:
                shift = 0.3 if name.endswith("running_var") else 0.1
                noise = torch.rand(tensor.shape, generator=generator) * shift
                tensor.add_(noise)
    return model.double().eval()


def some_kept(groups: list[Group]) -> dict[Group, Tensor]:
    """About half of every group."""
    generator = torch.Generator().manual_seed(2)
    return {
        group: torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]
        for group in groups
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_channels_is_the_network_with_zeros(name: str) -> None:
    build, example = NETWORKS[name]
    torch.manual_seed(0)
    model = settled(build())
    x = example.double() if example.is_floating_point() else example
    graph = trace(model, x)
    exact = [group for group in graph.prunable if group.exact]
    assert exact, "nothing can be removed"
    kept = some_kept(exact)
    smaller = remove(model, kept, graph)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert type(smaller) is type(model)
    silenced = copy.deepcopy(model)
    silence(silenced, kept)
    with torch.no_grad():
        whole, part = (first_tensor(called(each, x)) for each in (silenced, smaller))
        before = first_tensor(called(model, x))
    assert (whole - part).abs().max() <= 1e-10 * whole.abs().max()
    assert (before - part).abs().max() > 1e-3 * whole.abs().max()  # and something was removed
    trace(smaller, x)  # whose graph is one again


@pytest.mark.parametrize("name", NETWORKS)
def test_all_groups_can_lose_channels(name: str) -> None:
    """Also those where this is not the same as zeros: one alone, and all together."""
    build, example = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    graph = trace(model, example)
    for kept in ({group: k} for group, k in some_kept(graph.prunable[:1]).items()):
        remove(model, kept, graph)
    smaller = remove(model, some_kept(graph.prunable), graph)
    held = dict(smaller.named_parameters())
    for group in graph.prunable:
        for member in group.members:
            assert (
                held[member.name].shape[member.dim]
                < dict(model.named_parameters())[member.name].shape[member.dim]
            )


# Torch-Pruning stops at rotary positions (LLaMA), couples channels that do not depend on each other
# where a concatenation grows inside a list, and lets a grouped convolution's outputs go one by one.
COMPARED = [
    "mlp", "small_cnn", "vgg", "resnet_cifar", "preact_resnet", "mobilenet", "unet", "vit",
    "hf_resnet", "hf_convnext", "hf_vit", "hf_bert",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_outputs_that_go_together_are_those_of_torch_pruning(name: str) -> None:
    """A part of them where attention's heads go, which it takes apart."""
    pruning = pytest.importorskip("torch_pruning")
    build, example = NETWORKS[name]
    model = build().eval()
    theirs = pruning.DependencyGraph().build_dependency(
        model, example_inputs=example, output_transform=first_tensor
    )
    layers = {
        layer: name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    equal = 0
    for group in trace(model, example).prunable:
        places = {
            member.name.removesuffix(".weight"): member.indices[0].tolist()
            for member in group.members
            if member.role == "producer"
        }
        writers = [layer for layer, name in layers.items() if name in places]
        ours = {(layers[layer], place) for layer in writers for place in places[layers[layer]]}
        cut = theirs.get_pruner_of_module(writers[0]).prune_out_channels
        coupled = theirs.get_pruning_group(writers[0], cut, [places[layers[writers[0]]][0]])
        found = {
            (layers[step.target.module], place)
            for step, gone in coupled
            if step.target.module in layers and theirs.is_out_channel_pruning_fn(step.handler)
            for place in gone
        }
        is_head = any(len(each) > 1 for each in places.values())
        assert found < ours if is_head else found == ours
        equal += found == ours
    assert equal > 1


def count(graph: DependencyGraph) -> int:
    return sum(group.size for group in graph.prunable)


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        # What the authors' package counts, or what follows from the widths (worked out by hand).
        (lambda: ResNetImageNet([3, 32, 32], 10, depth=18, small_images=True), 2_880),
        (lambda: ResNetImageNet([3, 32, 32], 10, depth=50, small_images=True), 11_456),
        (
            lambda: VGG(
                [3, 32, 32], 10, [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
                hidden=[512, 512], batch_norm=True,
            ),
            5_248,
        ),
    ],
)  # fmt: skip
def test_known_counts(build: Callable[[], nn.Module], groups: int) -> None:
    graph = trace(build(), torch.zeros(1, 3, 32, 32))
    assert count(graph) == groups
    assert all(group.exact for group in graph.prunable)


def test_a_stage_of_residual_blocks_is_one_group() -> None:
    model = ResNetImageNet([3, 32, 32], 10, depth=18, small_images=True)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    stream = graph.group("conv1")
    writers = {m.name for m in stream.members if m.role == "producer"}
    assert writers == {"conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight"}
    assert {m.name for m in stream.members if m.role == "consumer"} == {
        "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight",
        "layer2.0.downsample.0.weight",
    }  # fmt: skip
    assert not graph.group("fc").prunable
    assert not graph.unknown


def test_a_channel_that_is_flattened_is_read_by_a_column_for_each_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    group = trace(model, torch.zeros(1, 1, 4, 4)).groups[0]
    reader = group.members[-1]
    assert reader.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_what_a_concatenation_reads_is_found_by_offset() -> None:
    graph = trace(Dense(), IMAGES)
    second = graph.group("convs.1")
    norm = next(m for m in second.members if m.name == "norms.2.weight")
    assert norm.indices.flatten().tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("between", "exact"),
    [
        (nn.ReLU(), True),
        (nn.GELU(), True),
        (nn.Sigmoid(), False),
        (nn.Softplus(), False),
        (nn.LayerNorm(6), False),
        (nn.Sequential(nn.Sigmoid(), nn.BatchNorm1d(6)), True),
        (nn.BatchNorm1d(6, affine=False), False),
    ],
)
def test_what_does_not_keep_zero_is_not_exact(between: nn.Module, exact: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 2)).double()
    graph = trace(model, torch.zeros(2, 4).double())
    group = graph.groups[0]
    assert group.prunable
    assert group.exact == exact
    remove(model, {group: [0, 3]}, graph)


class Unfollowed(nn.Module):
    """A sort along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).sort(dim=1).values)


def test_an_unknown_operation_keeps_its_channels() -> None:
    graph = trace(Unfollowed(), torch.zeros(2, 4))
    assert not graph.prunable
    assert [name for name, _ in graph.unknown] == ["sort"]


class Branching(nn.Module):
    """A path that depends on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Branching()))
    with pytest.raises(UserError, match=r"forward pass of '1\.1' \(Branching\) cannot be traced"):
        trace(model, torch.zeros(2, 4))
    assert model.training


class Written(nn.Module):
    """A forward pass with a size written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(-1, 16))


def test_what_cannot_be_removed_is_one_line() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(net, torch.zeros(2, 4))
    hidden, output = graph.groups
    for kept, complaint in (
        ({output: [0]}, "not prunable"),
        ({hidden: []}, "at least one"),
        ({hidden: [6]}, "0 to 5"),
        ({trace(net, torch.zeros(2, 4)).groups[0]: [0]}, "trace the network again"),
    ):
        with pytest.raises(UserError, match=complaint):
            remove(net, kept, graph)
    written = trace(Written(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="sizes written into it"):
        remove(Written(), {written.groups[0]: [0]}, written)


def test_tied_weights_stay_tied() -> None:
    model = Llama(50, width=16, layers=1, heads=2, mlp_width=24, tied=True)
    graph = trace(model, TOKENS)
    stream = graph.group("model.embed_tokens:2")  # the first are its rows, the vocabulary
    smaller: Any = remove(model, {stream: range(10)}, graph)
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    assert smaller.lm_head.weight.shape == (50, 10)


def test_a_small_copy_trains() -> None:
    model = SmallCNN([3, 32, 32], 5)
    graph = trace(model, IMAGES)
    smaller = remove(model, some_kept(graph.prunable), graph)
    assert smaller.training
    smaller(IMAGES).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(dependency_graph).failed == 0
