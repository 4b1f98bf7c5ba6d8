"""Arithmetic on binary numbers as sequences of symbols, least significant bit first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData, check_fact
from repro.errors import UserError
from repro.knobs import Count, checked

PADDING, ZERO, TIMES = 0, 1, 3  # the digit d is the symbol ZERO + d
SYMBOLS = 4


def multiplication_problems(bits: Tensor, length: int, generator: torch.Generator) -> Split:
    """Problems ``a * b`` with factors of a given number of bits, and their products.

    Args:
        bits: (N,) bits of both factors of each problem; leading zeros are written out.
        length: L of the sequences, at least ``2 * max(bits) + 1``.
        generator: of the factors, uniform over all numbers of so many bits.

    Returns:
        x (N, L): a, the times sign, b, padding; y (N, L): the 2 * bits digits of the product, then
        padding. Both int64.
    """
    limit = 2 ** bits[:, None]
    a, b = ((torch.rand(len(bits), 2, generator=generator).double() * limit).long()).unbind(1)
    place_L = torch.arange(length)
    n = bits[:, None]
    digit_a = (a[:, None] >> place_L.clamp(max=62)) & 1
    digit_b = (b[:, None] >> (place_L - n - 1).clamp(0, 62)) & 1
    x = torch.full((len(bits), length), PADDING)
    x = torch.where(place_L < n, ZERO + digit_a, x)
    x = torch.where(place_L == n, TIMES, x)
    x = torch.where((place_L > n) & (place_L <= 2 * n), ZERO + digit_b, x)
    product = (((a * b)[:, None] >> place_L.clamp(max=62)) & 1) + ZERO
    return x, torch.where(place_L < 2 * n, product, PADDING)


@checked
def binary_multiplication(
    name: str,
    *,
    input_shape: Sequence[int],
    classes: int = SYMBOLS,
    min_bits: int,
    max_bits: int,
    train_size: Count,
    val_size: Count,
    test_size: Count,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Multiplication problems of ``min_bits`` to ``max_bits`` bits in equal parts.

    Small numbers come in all splits; with many bits splits overlap hardly ever.

    Args:
        name: of the data set.
        input_shape: (2 * max_bits + 1,), checked.
        classes: number of symbols: padding, 0, 1 and the times sign.
        min_bits: of each factor.
        max_bits: of each factor, at most 20.
        train_size: problems of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        data_seed: decides every problem.
        facts: see `TensorData`.

    Raises:
        UserError: numbers of bits out of range, or a fact is wrong.
    """
    if not 1 <= min_bits <= max_bits <= 20:
        raise UserError(
            f"Data set '{name}': min_bits={min_bits}, max_bits={max_bits}."
            " Choose 1 <= min_bits <= max_bits <= 20."
        )
    check_fact(name, "input_shape", list(input_shape), [2 * max_bits + 1])
    check_fact(name, "classes", classes, SYMBOLS)

    def load() -> Splits:
        splits = {}
        for key, (split, size) in enumerate(
            zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True)
        ):
            bits = min_bits + torch.arange(size) % (max_bits - min_bits + 1)
            splits[split] = multiplication_problems(
                bits, input_shape[0], generator_for(data_seed, key)
            )
        return splits

    return TensorData(name, load, input_shape=input_shape, **facts)
