"""Block by block: what depends on what, equal results on either path, and memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from repro.methods.gblm import ScorePruner
from repro.models import Llama
from repro.toolbox.costs import PeakMemory
from repro.toolbox.pruning import (
    InputMoments,
    LayerStatistics,
    Pattern,
    SparseGPT,
    block_layers,
    decoder_gradients,
    layers_of,
    mean_loss,
    next_token_losses,
    prune_blocks,
    zero_fraction,
)

CPU = torch.device("cpu")


def decoder(layers: int = 3, dtype: torch.dtype = torch.float64) -> Llama:
    torch.manual_seed(0)
    return Llama(11, 16, layers, 2, mlp_width=24, init_std=0.3).to(dtype)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (6, 9), generator=torch.Generator().manual_seed(1))


def embedded(model: Llama, tokens: Tensor) -> Tensor:
    return model.embed(tokens).detach()


def test_losses_are_those_of_the_shifted_tokens(tokens: Tensor) -> None:
    logits = decoder()(tokens).detach()
    chosen = logits[:, :-1].log_softmax(2).gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(next_token_losses(logits, tokens), -chosen.mean(1))


@pytest.mark.parametrize("device", [None, CPU])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_mean_loss_is_over_windows(
    tokens: Tensor, device: torch.device | None, batch_size: int
) -> None:
    """The last of the batches has fewer windows, and each window counts the same."""
    model = decoder()
    with torch.no_grad():
        losses = [float(next_token_losses(model(window), window)) for window in tokens.split(1)]
    found = mean_loss(model, tokens, batch_size, device)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("device", [None, CPU])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_gradients_are_those_of_single_backward_passes(
    tokens: Tensor, device: torch.device | None, batch_size: int
) -> None:
    model = decoder()
    gradients = decoder_gradients(model, tokens, "l1", batch_size, device)
    for p in model.parameters():
        assert p.requires_grad
        assert p.grad is None
    sums = {name: torch.zeros_like(layer.weight) for name, layer in block_layers(model).items()}
    for sequence in tokens.split(1):
        model.zero_grad()
        next_token_losses(model(sequence), sequence).sum().backward()
        for name, layer in block_layers(model).items():
            assert layer.weight.grad is not None
            sums[name] += layer.weight.grad.abs()
    for name, expected in sums.items():
        torch.testing.assert_close(gradients.norm(name), expected, atol=1e-12, rtol=1e-9)
    assert gradients.count == len(tokens)


def test_later_blocks_see_what_pruned_ones_produce(tokens: Tensor) -> None:
    """By hand, from whole forward passes of a model whose earlier blocks are pruned already."""
    model, reference = decoder(), decoder()
    pruner, pattern = ScorePruner("gblm", alpha=10.0), Pattern(0.5)
    gradients = decoder_gradients(reference, tokens)  # of the dense model, for every block
    outputs = prune_blocks(model.blocks, embedded(model, tokens), pruner, pattern, gradients, 2)
    for index, block in enumerate(reference.blocks):
        layers = layers_of(block, f"{index}.")
        with InputMoments(layers) as moments, torch.no_grad():
            reference(tokens)
        for name, layer in layers.items():
            statistics = moments.of(name, gradients.norm(name))
            layer.weight.data = pruner(layer.weight.data, statistics, pattern)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(model.head(outputs), model(tokens))


def test_not_sequential_means_inputs_of_the_dense_model(tokens: Tensor) -> None:
    seen: dict[bool, list[LayerStatistics]] = {}

    class Spy(ScorePruner):
        def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
            notes.append(statistics)
            return super().__call__(weight, statistics, pattern)

    for sequential in (True, False):
        model = decoder()
        notes = seen[sequential] = []
        prune_blocks(
            model.blocks, embedded(model, tokens), Spy("wanda"), Pattern(0.5), sequential=sequential
        )
    dense = decoder()
    with InputMoments(block_layers(dense)) as moments, torch.no_grad():
        dense(tokens)
    for index, name in enumerate(block_layers(dense)):
        expected = moments.of(name).input_norm
        torch.testing.assert_close(seen[False][index].input_norm, expected)
        same = torch.allclose(seen[True][index].input_norm, expected)
        assert same == name.startswith("0.")  # only the first block has no pruned one before it


@pytest.mark.parametrize("pruner", [ScorePruner("wanda"), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_sizes_of_batches_do_not_matter(tokens: Tensor, pruner: ScorePruner | SparseGPT) -> None:
    models = [decoder() for _ in range(2)]
    for model, size in zip(models, (1, 6), strict=True):
        prune_blocks(model.blocks, embedded(model, tokens), pruner, Pattern("2:4"), None, size, CPU)
        assert zero_fraction(block_layers(model)) == 0.5
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert torch.equal(ours == 0, theirs == 0)


def test_head_and_embedding_stay(tokens: Tensor) -> None:
    model, dense = decoder(), decoder()
    pruner = ScorePruner("magnitude", group="matrix")
    prune_blocks(model.blocks, embedded(model, tokens), pruner, Pattern(0.5))
    changed = {
        name
        for (name, a), b in zip(model.named_parameters(), dense.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {f"model.layers.{name[0]}.{name[2:]}.weight" for name in block_layers(model)}


def test_any_chain_of_modules_will_do() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)]
    before = copy.deepcopy(blocks)
    prune_blocks(blocks, torch.randn(10, 8), ScorePruner("wanda"), Pattern(0.75))
    for block, dense in zip(blocks, before, strict=True):
        for a, b in zip(layers_of(block).values(), layers_of(dense).values(), strict=True):
            assert ((a.weight == 0).sum(1) == 6).all()
            assert torch.equal(a.weight[a.weight != 0], b.weight[a.weight != 0])


def peak(layers: int, tokens: Tensor, step: str) -> int:
    """Most bytes alive at a time beyond the model, the gradients of all layers and `x`."""
    model = decoder(layers, torch.float32)
    x, gradients = embedded(model, tokens), None
    with PeakMemory(CPU) as memory:
        if step == "gradients":
            gradients = decoder_gradients(model, tokens, batch_size=2, device=CPU)
        else:
            prune_blocks(model.blocks, x, SparseGPT(), Pattern(0.5), None, 2, CPU)
    kept = 0 if gradients is None else sum(s.nbytes for s in gradients.sums.values())
    return memory.peak - kept


@pytest.mark.parametrize("step", ["prune", "gradients"])
def test_memory_is_that_of_one_block_whatever_the_depth(tokens: Tensor, step: str) -> None:
    tokens = tokens.repeat(1, 4)
    shallow, deep = peak(2, tokens, step), peak(6, tokens, step)
    # The backward pass keeps the input of each block, for the sequences of one batch.
    inputs = 4 * 2 * tokens.shape[1] * 16 * 4 if step == "gradients" else 0
    assert deep <= shallow + inputs + 2000
