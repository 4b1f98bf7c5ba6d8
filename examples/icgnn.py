"""ICGNN: a graph network that learns to precode, and works at sizes it has never seen.

It is trained on cells of 4 to 6 users and tested on 8. Run it: ``python examples/icgnn.py``.
"""

import torch

from repro.methods.icgnn import Downlink, LearnedPrecoder, regularised_zero_forcing, wmmse

torch.manual_seed(0)
SNR = 30.0  # 15 dB


def cells(batch: int, users: int, antennas: int) -> Downlink:
    return Downlink.of(torch.randn(batch, users, antennas, dtype=torch.complex64), snr=SNR)


precoder = LearnedPrecoder(cg_steps=6)
optimizer = torch.optim.Adam(precoder.parameters(), lr=1e-2)
for step in range(100):
    cell = cells(64, users=4 + step % 3, antennas=6)
    loss = -cell.rates(precoder(cell)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

unseen = cells(200, users=8, antennas=8)
zero_forcing = regularised_zero_forcing(unseen.streams(), unseen.snr, cg_steps=6)
precoders = {
    "zero forcing, 6 CG steps": zero_forcing,
    "learned, 6 CG steps": precoder(unseen),
    "WMMSE, iterated": wmmse(unseen.H, unseen.snr),
}
for name, directions in precoders.items():
    rate = unseen.rates(directions).sum(1).mean()
    print(f"{name}: {rate:.2f} bit/s/Hz for 8 users")
