"""TernGrad (Wen et al., NeurIPS 2017, arXiv 1705.07878): three-valued gradients.

Shapes: N workers in all, K of them local, n entries of one tensor, T tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repro.knobs import Count, Natural, Positive, checked
from repro.methods.dgc.data_parallel import DataParallel


class TernGrad(DataParallel):
    """Sends ``s * sign(g) * b`` per tensor, with ``s = max |g|`` and ``P(b = 1) = |g| / s``.

    The ternary gradient t is unbiased: ``E[t] = g``. Its variance grows with s, so the gradient is
    first clipped, tensor by tensor, to ``clip_sigmas`` standard deviations; it is then unbiased
    for the clipped gradient. Workers share the scaler, ``s = max_k s_k``, so that the sum of
    their messages again has few levels. (Clipping at 2.5 sigma and scaler sharing are stated from
    memory of the paper.)

    There is no memory: nothing is fed back. Every tensor is ternarised by itself, biases
    included. Messages count 2 bits per entry and one 4-byte scaler per tensor. Momentum is the
    receiving optimizer's.

    Args:
        clip_sigmas: clipping threshold in standard deviations, or None.
        share_scaler: whether workers use the largest of their scalers.
        workers: number of simulated workers; under DDP the processes are the workers.
        min_dims: tensors with at least this many dimensions are reported as compressible.
        seed: seed of the ternary draws.

    Raises:
        UserError: a knob is out of range.
    """

    @checked
    def __init__(
        self,
        clip_sigmas: Positive | None = 2.5,
        share_scaler: bool = True,
        workers: Count = 4,
        min_dims: Natural = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(workers, min_dims, seed)
        self.clip_sigmas = clip_sigmas
        self.share_scaler = share_scaler

    def exchange(self, tensors: Sequence[int], grads_Kn: Sequence[Tensor]) -> None:
        """See `DataParallel.exchange`."""
        if self.clip_sigmas is not None:
            for g_Kn in grads_Kn:
                limit_K1 = self.clip_sigmas * g_Kn.std(dim=1, correction=0, keepdim=True)
                # A single entry has no spread to clip by.
                if g_Kn.shape[1] > 1:
                    g_Kn.clamp_(-limit_K1, limit_K1)
        scale_KT = torch.stack([torch.linalg.vector_norm(g, torch.inf, dim=1) for g in grads_Kn], 1)
        if self.share_scaler:
            self.cluster.max_(scale_KT)
        for i, g_Kn, s_K in zip(tensors, grads_Kn, scale_KT.unbind(dim=1), strict=True):
            self._ternarise_(g_Kn, s_K[:, None], i)
            self._book_ternary(i, g_Kn)
        self.cluster.sum_(grads_Kn)

    def _ternarise_(self, g_Kn: Tensor, s_K1: Tensor, tensor: int) -> None:
        key = self.key(tensor)
        for row, g_n in enumerate(g_Kn):
            uniform_n = torch.rand(
                g_n.shape,
                generator=key.generator(row, g_n.device),
                device=g_n.device,
                dtype=g_n.dtype,
            )
            kept_n = uniform_n * s_K1[row] < g_n.abs()
            g_n.sign_().mul_(kept_n).mul_(s_K1[row])

    def _book_ternary(self, tensor: int, g_Kn: Tensor) -> None:
        rows, numel = g_Kn.shape
        nbytes = rows * (-(-numel // 4) + 4)
        if self.compressible(tensor):
            self.ledger.book(entries=rows * numel, sparse_bytes=nbytes)
        else:
            self.ledger.book(dense_bytes=nbytes)
