"""What compressed networks are calibrated on."""

from __future__ import annotations

import pytest
import torch

from repro.errors import UserError
from repro.toolbox.pretrained import Given
from repro.training.compression import Protocol


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
