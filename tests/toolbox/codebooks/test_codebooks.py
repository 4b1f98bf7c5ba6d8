"""Codebooks: k-means against exact and independent ones, bits, packing, products, files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from torch import Tensor, nn

from repro.errors import UserError
from repro.models import Llama
from repro.toolbox.codebooks import (
    CodedWeight,
    kmeans_1d,
    memory_bits,
    nearest_codes,
    pack,
    packed_product,
    read_packed,
    unpack,
    weight_bits,
    write_packed,
)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(x: Tensor, centres: Tensor, weights: Tensor | None = None) -> float:
    """The weighted squared distance to the nearest centre."""
    distance = (x[:, None] - centres).square().min(1).values
    return float((distance * (torch.ones_like(x) if weights is None else weights)).sum())


def best_objective(x: Tensor, k: int) -> float:
    """Of all cuts of the sorted numbers into k intervals: dynamic programming, O(k n²)."""
    values = np.sort(x.double().numpy())
    sums, squares = (np.concatenate([[0], np.cumsum(values**p)]) for p in (1, 2))
    n = len(values)

    def cost(i: int, j: int) -> float:
        return float(squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i))

    best = [0.0] + [cost(0, j) for j in range(1, n + 1)]
    for _ in range(k - 1):
        best = [0.0] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, n + 1)]
    return best[n]


# -- k-means --


@pytest.mark.parametrize("k", [2, 4])
def test_kmeans_is_the_best_of_all_where_lloyds_iterations_find_it(k: int) -> None:
    """On a log-concave density they do; on few numbers drawn at random they need not."""
    x = torch.special.ndtri((torch.arange(150) + 0.5) / 150)
    found = objective(x, kmeans_1d(x[None], k, iterations=300)[0])
    assert found == pytest.approx(best_objective(x, k), rel=0.01)
    x = seeded(100).sign() + 0.1 * seeded(100, seed=1)  # two clear clusters
    assert objective(x, kmeans_1d(x[None], 2)[0]) == pytest.approx(best_objective(x, 2), rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_lloyds_iterations_are_those_of_scikit_learn(weighted: bool) -> None:
    x_GN, weights = seeded(3, 500), seeded(3, 500, seed=1).square() if weighted else None
    start = torch.tensor([-2.0, -0.1, 0.0, 0.4]).expand(3, 4)
    found = kmeans_1d(x_GN, 4, weights, 300, start)
    for row in range(3):
        reference = KMeans(4, init=start[row][:, None].numpy(), n_init=1, max_iter=300, tol=0)
        how = {} if weights is None else {"sample_weight": weights[row].numpy()}
        reference.fit(x_GN[row][:, None].numpy(), **how)
        expected = np.sort(reference.cluster_centers_.flatten())
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-4)


def test_iterations_never_raise_the_objective() -> None:
    x = seeded(1000).exp()
    values = [objective(x, kmeans_1d(x[None], 8, iterations=i)[0]) for i in range(12)]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(values))
    assert values[-1] < values[0]


def test_weights_count() -> None:
    x = torch.tensor([[0.0, 1.0, 10.0, 11.0]])
    centres = kmeans_1d(x, 2, torch.tensor([[3.0, 1.0, 0.0, 1.0]]))
    torch.testing.assert_close(centres, torch.tensor([[0.25, 11.0]]))
    nothing = kmeans_1d(x, 2, torch.zeros(1, 4))
    torch.testing.assert_close(nothing, torch.tensor([[0.5, 10.5]]))
    # Numbers of weight zero change nothing.
    filled = torch.cat([seeded(1, 50), 7 * torch.ones(1, 9)], 1)
    weights = torch.cat([torch.ones(1, 50), torch.zeros(1, 9)], 1)
    torch.testing.assert_close(kmeans_1d(filled, 4, weights), kmeans_1d(seeded(1, 50), 4))


def test_few_distinct_numbers_are_their_own_centres() -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 5.0, 5.0, 2.0]])
    assert kmeans_1d(x, 4).tolist() == [[1.0, 2.0, 5.0, 5.0]]


def test_scale_and_order_do_not_matter() -> None:
    x, shuffled = seeded(1, 300), torch.randperm(300)
    torch.testing.assert_close(kmeans_1d(8 * x[:, shuffled], 4), 8 * kmeans_1d(x, 4))


# -- Codes --


def example(
    rows: int = 24, columns: int = 20, k: int = 4, groups: int = 3, scaled: bool = False
) -> tuple[CodedWeight, Tensor]:
    """A random coded weight, and the weight by an independent, dense look-up."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(k, (rows, columns), generator=generator)
    books = seeded(1 if scaled else groups, k).half()
    scales = seeded(groups).abs().half() if scaled else None
    member = torch.randint(groups, (rows,), generator=generator)
    member[:groups] = torch.arange(groups)
    coded = CodedWeight(
        codes.to(torch.uint8), books, member, scales, (rows, columns), implied=False
    )
    dense = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            book = books[0 if scaled else int(member[i])].float()
            factor = 1.0 if scales is None else scales[member[i]].float()
            dense[i, j] = factor * book[codes[i, j]]
    return coded, dense


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("k", "columns"), [(4, 20), (4, 21), (8, 20), (3, 7), (16, 20), (256, 5)])
def test_look_ups_products_and_files_are_the_dense_weight(
    k: int, columns: int, scaled: bool, tmp_path: Path
) -> None:
    coded, dense = example(k=k, columns=columns, scaled=scaled)
    assert torch.equal(coded.weight(), dense)
    x = seeded(5, columns, seed=2)
    bits = (k - 1).bit_length()
    data = pack(coded.codes, bits)
    product = packed_product(x, data, bits, coded.groups, coded.tables)
    torch.testing.assert_close(product, x @ dense.T)
    file = tmp_path / "weights.safetensors"
    written = write_packed(file, {"a.layer": coded})
    again = read_packed(file)["a.layer"]
    assert torch.equal(again.weight(), dense)
    assert torch.equal(again.groups, coded.groups)
    # Whole bytes of codes and of the list of groups; nothing else but a header.
    assert coded.bits() <= written < coded.bits() + 16
    parts = load_file(file)
    assert written == 8 * sum(part.nbytes for part in parts.values())
    assert file.stat().st_size - written // 8 < 1000


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_exact_at_every_length(bits: int) -> None:
    for count in (1, 7, 8, 9, 1000):
        codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(bits))
        data = pack(codes, bits)
        assert len(data) == -(-count * bits // 8)
        assert torch.equal(unpack(data, bits, count).long(), codes)


def test_products_of_more_rows_than_are_decoded_at_a_time() -> None:
    coded, _ = example(rows=1030, columns=9, k=8)
    x = seeded(2, 9)
    found = packed_product(x, pack(coded.codes, 3), 3, coded.groups, coded.tables)
    torch.testing.assert_close(found, x @ coded.weight().T)


def test_nearest_codes() -> None:
    tables = torch.tensor([[-1.0, 0.0, 2.0], [0.0, 1.0, 1.5]])
    weight = torch.tensor([[-0.6, 0.9, 1.1], [-5.0, 0.6, 9.0]])
    assert nearest_codes(weight, tables).tolist() == [[0, 1, 2], [0, 1, 2]]
    distance = (weight[..., None] - tables[:, None]).abs()
    assert torch.equal(nearest_codes(weight, tables), distance.argmin(-1))


def test_bits_are_those_of_the_formula() -> None:
    # Four codebooks for 256 x 256 weights: 2.004 bits a weight.
    assert weight_bits(256, 65536, 4, codebooks=4) == 131072 + 256
    assert weight_bits(256, 65536, 4, codebooks=1, scales=4) == 131072 + 128
    assert weight_bits(256, 65536, 4, 4, listed=4) == 131072 + 256 + 512
    coded, _ = example(rows=24, columns=20, k=4, groups=3)
    assert coded.bits() == 24 * 20 * 2 + 16 * 12 + 24 * 2
    assert coded.used() == 12
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    assert memory_bits(model, ["0"], 4) == 32 * 2 + 64 + 32 * (4 + 8 + 2)


def test_llama_7b_is_two_gigabytes() -> None:
    with torch.device("meta"):
        model = Llama(32000, 4096, 32, 32, mlp_width=11008).to(torch.float16)
    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]  # fmt: skip
    assert len(layers) == 224
    four, eight = (memory_bits(model, layers, k) / 8 for k in (4, 8))
    assert four == pytest.approx(2.14e9, rel=0.005)
    assert four / 2**30 == pytest.approx(2.00, abs=0.005)
    assert eight / 2**30 == pytest.approx(2.75, abs=0.01)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_packed(file, {"layer": example()[0]})
    whole = file.read_bytes()
    for content in (b"", whole[:40], whole[:-30], b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(UserError, match="write it anew"):
            read_packed(file)
