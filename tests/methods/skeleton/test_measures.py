"""What is measured of a skeletonisation: changes of topology, and the operations it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repro.methods.skeleton import Skeletonize, foreign_operations, topology_change
from repro.methods.skeleton.operations import ALLOWED


def test_a_square_and_a_skeleton_of_two_pieces() -> None:
    """Sixteen points become a block of four and a point that touches nothing."""
    mask, skeleton = np.zeros((2, 7, 7), dtype=bool)
    mask[1:5, 1:5] = True
    skeleton[1:3, 1:3] = skeleton[4, 4] = True
    assert topology_change(mask, skeleton) == {
        "betti_0_error": 1, "betti_1_error": 0, "betti_error": 1, "wrong": 1,
        "size": 5 / 16, "thick": 1 / 5,
    }  # fmt: skip


def test_an_operation_outside_the_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreign_operations(Skeletonize()) == set()
    forward = torch.nn.functional.hardtanh
    monkeypatch.setattr(torch.nn.functional, "hardtanh", lambda x, *ends: forward(x.exp(), *ends))
    assert foreign_operations(Skeletonize()) == {"exp"}
    assert "exp" not in ALLOWED
