"""What compressed networks are calibrated on, and how they are measured."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rooms import evaluated
from torch import nn

from repro.errors import UserError
from repro.toolbox.pretrained import Given
from repro.training.compression import Compression, Protocol


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (3 + 2 * torch.randn(20, 1, 4, 4, generator=generator), torch.arange(20) % 10)
        for _ in range(5)
    ]


def test_calibration_examples() -> None:
    x, y = Protocol(Given(), size=50).calibration(batches(), 10)
    assert torch.equal(x[:20], batches()[0][0])
    assert y is not None
    assert len(x) == len(y) == 50
    _, labels = Protocol(Given(), size=50, source="unbalanced").calibration(batches(), 10)
    assert labels is not None
    assert set(labels.tolist()) == set(range(5))
    noise, none = Protocol(Given(), size=80, source="noise").calibration(batches(), 10)
    assert none is None
    assert float(noise.mean()) == pytest.approx(3, abs=0.2)
    assert float(noise.std()) == pytest.approx(2, abs=0.2)
    tokens = [(torch.arange(40).view(4, 10), torch.arange(40).view(4, 10))]
    drawn, _ = Protocol(Given(), size=4, source="noise").calibration(tokens, None)
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 40
    with pytest.raises(UserError, match="needs classes"):
        Protocol(Given(), source="unbalanced").calibration(tokens, None)


def test_images_are_measured_as_they_are_and_in_noisy_copies() -> None:
    seen: list[torch.Tensor] = []
    protocol: Any = SimpleNamespace(eval_batches=None, copies=2, noise=0.5, seed=0)
    room: Any = Compression(nn.Identity(), protocol)

    def reference(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    room.units = SimpleNamespace(reference=reference)
    evaluated(room, [(torch.full((50, 200), 3.0), torch.zeros(50, dtype=torch.int64))])
    clean, *noisy = seen
    assert (clean == 3).all()
    assert len(noisy) == 2
    assert not torch.equal(*noisy)
    assert float(torch.cat(noisy).mean()) == pytest.approx(3, abs=0.02)
    assert float(torch.cat(noisy).std()) == pytest.approx(0.5, rel=0.02)


def test_measures_of_known_predictions() -> None:
    """The compressed network is right on one of two examples, the float one on none."""
    compressed, exact = (
        torch.tensor([[0.8, 0.2], [0.6, 0.4]]),
        torch.tensor([[0.3, 0.7], [0.9, 0.1]]),
    )
    protocol: Any = SimpleNamespace(eval_batches=None, copies=1, noise=0.0, seed=0)
    room: Any = Compression(nn.Identity(), protocol)
    room.units = SimpleNamespace(reference=lambda _: exact.log())
    found = evaluated(room, [(compressed.log(), torch.tensor([0, 1]))])
    assert found["test/accuracy"] == 0.5
    assert found["test/float_accuracy"] == 0
    # Of the float network's law from the compressed one's, not the other way round.
    terms = [
        0.3 * math.log(3 / 8),
        0.7 * math.log(7 / 2),
        0.9 * math.log(9 / 6),
        0.1 * math.log(1 / 4),
    ]
    assert found["test/kl"] == pytest.approx(sum(terms) / 2)
