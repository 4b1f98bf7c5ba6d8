"""Sparse autoencoders of activations: TopK and its relatives, ReLU with L1, Gated, JumpReLU.

All have an encoder, a decoder whose N directions have unit norm, and a bias b_pre that is taken off
before and put back after. Shapes: activations (B, D), latents (B, N), decoder (N, D). Losses are in
units of the activations' variance, so that a coefficient means the same at every site.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, NonNegative, Positive, checked
from repro.methods.gsae.selection import Magnitude, Selector


def geometric_median(points_BD: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least summed distance to all others, by Weiszfeld's iteration: (D,).

    Args:
        points_BD: the points.
        iterations: most of them.
        tolerance: stops when the point moves less, relative to its distance to the others.
    """
    median_D = points_BD.mean(dim=0)
    for _ in range(iterations):
        distance_B = (points_BD - median_D).norm(dim=1).clamp_min(1e-12)
        weight_B = 1 / distance_B
        new_D = (weight_B[:, None] * points_BD).sum(dim=0) / weight_B.sum()
        moved = (new_D - median_D).norm() / distance_B.mean()
        median_D = new_D
        if moved < tolerance:
            break
    return median_D


class SparseAutoencoder(nn.Module):
    """What all variants share; a variant says how latents come about and what is minimised.

    A loop calls `initialise` once, then `loss`, ``backward``, `before_step`, ``optimizer.step`` and
    `after_step` for each batch.

    Args:
        d: numbers in an activation.
        latents: N.
        dead_after: tokens without a firing after which a latent counts as dead in training.

    Raises:
        UserError: a size below 1.
    """

    variance: Tensor
    idle: Tensor

    @checked
    def __init__(self, d: Count, latents: Count, dead_after: Count = 10_000_000) -> None:
        super().__init__()
        self.dead_after = dead_after
        W_dec_ND = F.normalize(torch.randn(latents, d), dim=1)
        self.W_dec = nn.Parameter(W_dec_ND)
        self.W_enc = nn.Parameter(W_dec_ND.clone())  # tied at the start only
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_pre = nn.Parameter(torch.zeros(d))
        self.register_buffer("variance", torch.ones(()))  # of an activation, summed over D
        self.register_buffer("idle", torch.zeros(latents, dtype=torch.long))

    @torch.no_grad()
    def initialise(self, sample_BD: Tensor) -> None:
        """Sets b_pre to the sample's geometric median and notes its variance."""
        self.b_pre.copy_(geometric_median(sample_BD))
        self.variance.copy_((sample_BD - sample_BD.mean(dim=0)).square().sum(dim=1).mean())

    @property
    def needs_gradient(self) -> bool:
        """Whether latents are chosen by the gradient."""
        return False

    def linear(self, x_BD: Tensor) -> Tensor:
        """The encoder before its nonlinearity, W_enc (x - b_pre) + b_enc."""
        return F.linear(x_BD - self.b_pre, self.W_enc, self.b_enc)

    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents (B, N), at least 0, 0 where inactive.

        Args:
            x_BD: activations.
            g_BD: gradient of the summed loss there, for selectors that need it.
            selector: chooses latents in place of the own one; only k-sparse variants have one.
        """
        raise NotImplementedError

    def decode(self, f_BN: Tensor) -> Tensor:
        """Reconstructions of latents."""
        return f_BN @ self.W_dec + self.b_pre

    def forward(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """Reconstructions of activations; arguments as for `encode`."""
        return self.decode(self.encode(x_BD, g_BD, selector))

    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """What training minimises; also counts how long each latent has been idle."""
        raise NotImplementedError

    @torch.no_grad()
    def before_step(self) -> None:
        """Takes the part of the decoder's gradient along its directions away (Bricken et al.)."""
        assert self.W_dec.grad is not None
        along_N = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
        self.W_dec.grad -= along_N * self.W_dec

    @torch.no_grad()
    def after_step(self) -> None:
        """Gives the decoder's directions unit norm again."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def resample(self, x_BD: Tensor, optimizer: torch.optim.Optimizer) -> int:
        """Gives dead latents a new life (Bricken et al. 2023) and returns how many there were.

        Each is pointed at an activation drawn with a probability proportional to its squared loss;
        its encoder gets a fifth of the mean norm of the living ones, its bias 0, and the
        optimizer's moments of all of them are forgotten.

        Args:
            x_BD: activations to draw from.
            optimizer: that of this autoencoder.
        """
        dead_M = (self.idle >= self.dead_after).nonzero().squeeze(1)
        alive = len(self.idle) - len(dead_M)
        if not len(dead_M) or not alive:
            return 0
        living_N = self.idle < self.dead_after
        squared_B = (x_BD - self(x_BD)).square().sum(dim=1)
        drawn_M = torch.multinomial(squared_B.square(), len(dead_M), replacement=True)
        direction_MD = F.normalize(x_BD[drawn_M] - self.b_pre, dim=1)
        norm = 0.2 * self.W_enc[living_N].norm(dim=1).mean()
        self.W_dec[dead_M] = direction_MD
        self.W_enc[dead_M] = norm * direction_MD
        for parameter in self.parameters():
            if len(parameter) != len(self.idle):
                continue  # b_pre
            if parameter is not self.W_dec and parameter is not self.W_enc:
                parameter[dead_M] = 0
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[dead_M] = 0
        self.idle[dead_M] = 0
        return len(dead_M)

    def _error(self, x_BD: Tensor, x_hat_BD: Tensor) -> Tensor:
        """Mean squared error of a token over the variance of a token."""
        return (x_hat_BD - x_BD).square().sum(dim=1).mean() / self.variance

    @torch.no_grad()
    def _note_firing(self, active_BN: Tensor) -> None:
        self.idle += len(active_BN)
        self.idle[active_BN.any(dim=0)] = 0


class TopKAutoencoder(SparseAutoencoder):
    """The k best latents of each token stay on (Gao et al. 2024); what is best says a selector.

    z = ReLU(W_enc (x - b_pre) + b_enc);  S = the k latents with the largest score;  f = z on S;
    x̂ = W_dec f + b_pre;  loss = |x - x̂|² / Var + auxk · AuxK. With `GradientAugmented` this is
    g-SAE: the gradient says which latents stay on, and nothing else.

    AuxK lets the ``auxk_latents`` dead latents with the largest z reconstruct the error.

    Args:
        d: numbers in an activation.
        latents: N.
        k: how many stay on; fewer where fewer are positive.
        selector: scores the latents; None for `Magnitude`.
        auxk: weight of AuxK; 0 switches it off, 1/32 is the published one.
        auxk_latents: dead latents it uses; None for d / 2.
        dead_after: see `SparseAutoencoder`.

    Raises:
        UserError: k is not between 1 and N, or auxk is negative.
    """

    @checked
    def __init__(
        self,
        d: Count,
        latents: Count,
        k: Count,
        selector: Selector | None = None,
        auxk: NonNegative = 0.0,
        auxk_latents: Count | None = None,
        dead_after: Count = 10_000_000,
    ) -> None:
        super().__init__(d, latents, dead_after)
        if not 1 <= k <= latents:
            raise UserError(f"gsae: k lies between 1 and the {latents} latents; it is {k}.")
        self.k, self.selector = k, selector or Magnitude()
        self.auxk, self.auxk_latents = auxk, min(auxk_latents or max(1, d // 2), latents)

    @property
    @override
    def needs_gradient(self) -> bool:
        """What the selector says."""
        return self.selector.needs_gradient

    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents, at most k of them positive for each token."""
        z_BN = self.linear(x_BD).relu()
        values_BK, indices_BK = self.keep(z_BN, g_BD, selector)
        return torch.zeros_like(z_BN).scatter(1, indices_BK, values_BK)

    def keep(
        self, z_BN: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> tuple[Tensor, Tensor]:
        """The values of the chosen latents and their indices, (B, k) each.

        No gradient flows through the choice.
        """
        chosen_by = selector or self.selector
        scores_BN = chosen_by.scores(z_BN.detach(), self.W_dec.detach(), g_BD)
        indices_BK = scores_BN.topk(self.k, dim=1, sorted=False).indices
        return z_BN.gather(1, indices_BK), indices_BK

    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """Error over variance, and AuxK."""
        z_BN = self.linear(x_BD).relu()
        values_BK, indices_BK = self.keep(z_BN, g_BD)
        # Sums k rows of the decoder a token instead of multiplying by N of them, also in backward.
        x_hat_BD = self.b_pre + F.embedding_bag(
            indices_BK, self.W_dec, per_sample_weights=values_BK, mode="sum"
        )
        fired_BN = torch.zeros_like(z_BN, dtype=torch.bool).scatter_(1, indices_BK, values_BK > 0)
        self._note_firing(fired_BN)
        loss = self._error(x_BD, x_hat_BD)
        if self.auxk:
            loss = loss + self.auxk * self._auxk(z_BN, (x_BD - x_hat_BD).detach())
        return loss

    def _auxk(self, z_BN: Tensor, error_BD: Tensor) -> Tensor:
        """Normalised error of the dead latents' reconstruction of what is left; 0 if none is."""
        dead_N = self.idle >= self.dead_after
        count = min(self.auxk_latents, int(dead_N.sum()))
        if count == 0:
            return z_BN.new_zeros(())
        values_BK, indices_BK = (z_BN * dead_N).topk(count, dim=1, sorted=False)
        guess_BD = F.embedding_bag(indices_BK, self.W_dec, per_sample_weights=values_BK, mode="sum")
        spread = (error_BD - error_BD.mean(dim=0)).square().mean()
        return ((guess_BD - error_BD).square().mean() / spread).nan_to_num(0.0)


class BatchTopKAutoencoder(TopKAutoencoder):
    """The k · B best latents of a batch stay on (Bussmann et al. 2024), however many to a token.

    In training it keeps the mean of the least score that was kept; in evaluation what scores more
    stays on, so that a token's code does not depend on its neighbours. The mean is kept for the
    own selector and for `Magnitude`; other selectors choose over the batch at evaluation, too.

    Args:
        *args: see `TopKAutoencoder`; likewise the keywords.
        decay: of the running mean.
        **kwargs: see `TopKAutoencoder`.
    """

    thresholds: Tensor

    def __init__(self, *args: Any, decay: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay = decay
        self.register_buffer("thresholds", torch.full((2,), -1.0))  # own selector, Magnitude

    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents; on average about k of them positive for each token."""
        z_BN = self.linear(x_BD).relu()
        chosen_by = selector or self.selector
        scores_BN = chosen_by.scores(z_BN.detach(), self.W_dec.detach(), g_BD)
        if chosen_by == self.selector:
            threshold = float(self.thresholds[0])
        else:
            threshold = float(self.thresholds[1]) if chosen_by == Magnitude() else -1.0
        if threshold < 0 or self.training:
            threshold = float(self._least_kept(scores_BN))
        return z_BN * (scores_BN >= threshold)

    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """Error over variance, and AuxK."""
        z_BN = self.linear(x_BD).relu()
        scores_BN = self.selector.scores(z_BN.detach(), self.W_dec.detach(), g_BD)
        least = self._least_kept(scores_BN)
        self._update(0, least)
        self._update(1, self._least_kept(z_BN.detach()))
        f_BN = z_BN * (scores_BN >= least)
        self._note_firing(f_BN > 0)
        x_hat_BD = self.decode(f_BN)
        loss = self._error(x_BD, x_hat_BD)
        if self.auxk:
            loss = loss + self.auxk * self._auxk(z_BN, (x_BD - x_hat_BD).detach())
        return loss

    def _least_kept(self, scores_BN: Tensor) -> Tensor:
        """The least positive score among the k · B largest."""
        largest = scores_BN.flatten().topk(self.k * len(scores_BN)).values
        positive = largest[largest > 0]
        return positive[-1] if len(positive) else scores_BN.new_tensor(math.inf)

    @torch.no_grad()
    def _update(self, which: int, least: Tensor) -> None:
        if torch.isfinite(least):
            old = self.thresholds[which]
            self.thresholds[which] = old.lerp(least, 1 - self.decay) if old >= 0 else least


class ReLUAutoencoder(SparseAutoencoder):
    """f = ReLU(W_enc (x - b_pre) + b_enc), loss = |x - x̂|² + λ Σ f ‖w‖ (Bricken et al. 2023).

    With activations of standard deviation s per token, λ is multiplied by s.

    Args:
        d: numbers in an activation.
        latents: N.
        sparsity: λ.
        dead_after: see `SparseAutoencoder`.
    """

    @checked
    def __init__(
        self, d: Count, latents: Count, sparsity: NonNegative, dead_after: Count = 10_000_000
    ) -> None:
        super().__init__(d, latents, dead_after)
        self.sparsity = sparsity

    @override
    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents; gradient and selector make no difference."""
        return self.linear(x_BD).relu()

    @override
    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """Error over variance, and the L1 penalty."""
        f_BN = self.encode(x_BD)
        self._note_firing(f_BN > 0)
        l1 = (f_BN * self.W_dec.norm(dim=1)).sum(dim=1).mean()
        return self._error(x_BD, self.decode(f_BN)) + self.sparsity * l1 / self.variance.sqrt()


class GatedAutoencoder(SparseAutoencoder):
    """A gate says which latents are on, another reading of the same directions how much.

    Rajamanoharan et al. (2024a): π = W_gate (x - b_pre) + b_gate;
    f = 1[π > 0] ∘ ReLU(exp(r) ∘ W_gate (x - b_pre) + b_mag);
    loss = |x - x̂|² + λ ‖ReLU(π)‖₁ + |x - x̂(ReLU(π))|², the last with a frozen decoder.

    Args:
        d: numbers in an activation.
        latents: N.
        sparsity: λ, in the units of `ReLUAutoencoder`.
        dead_after: see `SparseAutoencoder`.
    """

    @checked
    def __init__(
        self, d: Count, latents: Count, sparsity: NonNegative, dead_after: Count = 10_000_000
    ) -> None:
        super().__init__(d, latents, dead_after)
        self.sparsity = sparsity
        self.r_mag = nn.Parameter(torch.zeros(latents))
        self.b_mag = nn.Parameter(torch.zeros(latents))

    @override
    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents; gradient and selector make no difference."""
        return self._gate_and_latents(x_BD)[1]

    @override
    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """Error over variance, L1 of the gate, and the error of the gate's own reconstruction."""
        pi_BN, f_BN = self._gate_and_latents(x_BD)
        self._note_firing(f_BN > 0)
        gate_BN = pi_BN.relu()
        from_gate_BD = gate_BN @ self.W_dec.detach() + self.b_pre.detach()
        l1 = gate_BN.sum(dim=1).mean()
        return (
            self._error(x_BD, self.decode(f_BN))
            + self.sparsity * l1 / self.variance.sqrt()
            + self._error(x_BD, from_gate_BD)
        )

    def _gate_and_latents(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        projected_BN = F.linear(x_BD - self.b_pre, self.W_enc)
        pi_BN = projected_BN + self.b_enc
        magnitude_BN = (self.r_mag.exp() * projected_BN + self.b_mag).relu()
        return pi_BN, (pi_BN > 0) * magnitude_BN


class _Jump(torch.autograd.Function):
    """z · 1[z > θ]; θ's gradient is that of a rectangle around it (a straight-through estimate)."""

    @staticmethod
    def forward(ctx: Any, z_BN: Tensor, theta_N: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z_BN, theta_N, bandwidth)
        return z_BN * (z_BN > theta_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        z_BN, theta_N, bandwidth = ctx.saved_tensors
        near_BN = (z_BN - theta_N).abs() < bandwidth / 2
        theta_grad_N = (-theta_N / bandwidth * near_BN * grads[0]).sum(dim=0)
        return grads[0] * (z_BN > theta_N), theta_grad_N, None


class _Step(torch.autograd.Function):
    """1[z > θ]; only θ has a gradient, estimated in the same way."""

    @staticmethod
    def forward(ctx: Any, z_BN: Tensor, theta_N: Tensor, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(z_BN, theta_N, bandwidth)
        return (z_BN > theta_N).to(z_BN.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        z_BN, theta_N, bandwidth = ctx.saved_tensors
        near_BN = (z_BN - theta_N).abs() < bandwidth / 2
        return None, (-1 / bandwidth * near_BN * grads[0]).sum(dim=0), None


class JumpReLUAutoencoder(SparseAutoencoder):
    """f = z · 1[z > θ] with a learned threshold, loss = |x - x̂|² + λ ‖f‖₀.

    Rajamanoharan et al. (2024b); θ = exp(log θ) is learned with a rectangular kernel.

    Args:
        d: numbers in an activation.
        latents: N.
        sparsity: λ, of the variance of a token.
        bandwidth: of the kernel, in standard deviations of a token.
        threshold: θ at the start, likewise.
        dead_after: see `SparseAutoencoder`.
    """

    @checked
    def __init__(
        self,
        d: Count,
        latents: Count,
        sparsity: NonNegative,
        bandwidth: Positive = 1e-3,
        threshold: Positive = 1e-3,
        dead_after: Count = 10_000_000,
    ) -> None:
        super().__init__(d, latents, dead_after)
        self.sparsity = sparsity
        self.bandwidth = bandwidth
        # In units of the activations, which only `initialise` knows.
        self.log_theta = nn.Parameter(torch.full((latents,), math.log(threshold)))

    @torch.no_grad()
    def initialise(self, sample_BD: Tensor) -> None:
        """Also brings the thresholds to the scale of the activations."""
        super().initialise(sample_BD)
        self.log_theta.add_(0.5 * self.variance.log())

    @override
    def encode(
        self, x_BD: Tensor, g_BD: Tensor | None = None, selector: Selector | None = None
    ) -> Tensor:
        """The latents; gradient and selector make no difference."""
        f_BN: Tensor = _Jump.apply(self.linear(x_BD).relu(), *self._kernel())
        return f_BN

    @override
    def loss(self, x_BD: Tensor, g_BD: Tensor | None = None) -> Tensor:
        """Error over variance, and the L0 penalty."""
        z_BN, kernel = self.linear(x_BD).relu(), self._kernel()
        f_BN = _Jump.apply(z_BN, *kernel)
        self._note_firing(f_BN > 0)
        l0 = _Step.apply(z_BN, *kernel).sum(dim=1).mean()
        return self._error(x_BD, self.decode(f_BN)) + self.sparsity * l0

    def _kernel(self) -> tuple[Tensor, Tensor]:
        return self.log_theta.exp(), self.bandwidth * self.variance.sqrt()
