"""The hot paths of learned codebooks against what they replace."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from timing import faster

from repro.methods.jlcm import mapped
from repro.toolbox.codebooks import kmeans_1d, pack, packed_product


def test_kmeans_of_four_million_numbers() -> None:
    x = torch.randn(1, 2**22)
    column = x.view(-1, 1).numpy()

    def reference() -> None:
        KMeans(16, n_init=1, max_iter=25, tol=0, random_state=0).fit(column)

    faster("k-means of 4 M numbers, 16 values", lambda: kmeans_1d(x, 16), reference, 5, 1)


def test_weighted_kmeans_of_all_rows_at_once() -> None:
    x, weights = torch.randn(256, 4096), torch.rand(256, 4096)

    def reference() -> None:
        for row, weight in zip(x.numpy(), weights.numpy(), strict=True):
            kmeans = KMeans(8, n_init=1, max_iter=25, tol=0, random_state=0)
            kmeans.fit(row[:, None], sample_weight=weight)

    faster("weighted k-means of 256 rows", lambda: kmeans_1d(x, 8, weights), reference, 5, 1)


def test_hard_look_ups_against_autograd_through_the_relaxed_weight() -> None:
    logits = torch.randn(1024, 1024, 4).requires_grad_()
    tables = torch.randn(1, 4).requires_grad_()
    groups, g = torch.zeros(1024, dtype=torch.int64), torch.randn(1024, 1024)

    def relaxed() -> None:
        torch.autograd.grad((logits.softmax(-1) * tables[0]).sum(-1), (logits, tables), g)

    def ours() -> None:
        torch.autograd.grad(mapped(logits, tables, groups), (logits, tables), g)

    faster("look-up and both gradients", ours, relaxed, 1.5, 3)


def test_products_from_packed_codes() -> None:
    codes = torch.randint(4, (4096, 4096))
    groups, tables = torch.arange(4096) // 1024, torch.randn(4, 4)
    data, x = pack(codes, 2), torch.randn(32, 4096)
    weight = tables[groups].gather(1, codes)

    def unpacked_first() -> None:
        _ = x @ tables[groups].gather(1, codes).T

    def ours() -> None:
        packed_product(x, data, 2, groups, tables)

    faster("product from 2 bits, against codes as integers", ours, unpacked_first, 1, 3)
    # Sixteen times less memory; a product with floats in memory costs less time.
    faster("product from 2 bits, against floats", ours, lambda: x @ weight.T, 0.25, 3)
