"""A homogeneous graph network for precoding and power allocation in wireless networks (ICGNN).

After Sun, Wu, Wang, Liu, Li and Zhang, arXiv 2408.17252, of which only the abstract could be read:
the equations are this project's construction of its idea.

>>> import torch
>>> from repro.methods.icgnn import Downlink, LearnedPrecoder, regularised_zero_forcing, wmmse
>>> generator = torch.Generator().manual_seed(0)
>>> _ = torch.manual_seed(0)
>>> def cells(batch, users, antennas):  # one antenna a user, 15 dB
...     H = torch.randn(batch, users, antennas, dtype=torch.complex64, generator=generator)
...     return Downlink.of(H, snr=30.0)
>>> precoder = LearnedPrecoder(cg_steps=6)
>>> optimizer = torch.optim.Adam(precoder.parameters(), lr=1e-2)
>>> for step in range(60):
...     cell = cells(64, users=4 + step % 3, antennas=6)
...     loss = -cell.rates(precoder(cell)).mean()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> unseen = cells(200, users=8, antennas=8)
>>> learned = unseen.rates(precoder(unseen)).sum(1).mean()
>>> same_cost = unseen.rates(
...     regularised_zero_forcing(unseen.streams(), unseen.snr, cg_steps=6)).sum(1).mean()
>>> iterated = unseen.rates(wmmse(unseen.H, unseen.snr)).sum(1).mean()
>>> bool(same_cost < learned < iterated)
True
"""

from typing import Any, Literal

from repro.data.worlds.channels import CellFree, Downlink
from repro.knobs import checked
from repro.methods.icgnn.cellfree import (
    ClassicalPower,
    ascend_power,
    fractional_power,
    power_from_logits,
)
from repro.methods.icgnn.downlink import (
    ClassicalPrecoder,
    gram,
    mrt,
    regularised_zero_forcing,
    structured_precoder,
    water_filling,
    wmmse,
    wmmse_path,
    zero_forcing,
)
from repro.methods.icgnn.equivariance import permutation_error
from repro.methods.icgnn.network import CompleteGraph, GridGraph, InformationCarryingGNN
from repro.methods.icgnn.power import LearnedPower
from repro.methods.icgnn.precoder import FixedSizePrecoder, LearnedPrecoder
from repro.toolbox.linear_algebra.conjugate_gradient import conjugate_gradient


@checked
def learned(
    kind: Literal["cellular", "cellfree"],
    cg_steps: int | None = 8,
    jacobi: bool = True,
    **network: Any,
) -> LearnedPrecoder | LearnedPower:
    """Builds the graph network for one of the two problems.

    Args:
        kind: ``cellular`` for precoding, ``cellfree`` for power allocation.
        cg_steps: see `LearnedPrecoder`; not used by `LearnedPower`; likewise
        jacobi: see there.
        **network: width, layers, carry and zero_init_head of `InformationCarryingGNN`.
    """
    if kind == "cellular":
        return LearnedPrecoder(cg_steps, jacobi, **network)
    return LearnedPower(**network)


__all__ = [
    "CellFree",
    "ClassicalPower",
    "ClassicalPrecoder",
    "CompleteGraph",
    "Downlink",
    "FixedSizePrecoder",
    "GridGraph",
    "InformationCarryingGNN",
    "LearnedPower",
    "LearnedPrecoder",
    "ascend_power",
    "conjugate_gradient",
    "fractional_power",
    "gram",
    "learned",
    "mrt",
    "permutation_error",
    "power_from_logits",
    "regularised_zero_forcing",
    "structured_precoder",
    "water_filling",
    "wmmse",
    "wmmse_path",
    "zero_forcing",
]
