"""Score estimation as kernel regression (Han, Razaviyayn, Xu; ICLR 2024, arXiv 2401.15604).

Denoising score matching, written with ``s(t, x) = (α f(t, x) − x) / h``, is least squares: f
regresses x_0 on (t, x_t), a label with noise as x_t does not tell x_0. A wide two-layer ReLU
network that descends this loss follows gradient descent in the space of its tangent kernel, and has
to be stopped early. Here are descent at all times at once, the network, and a stopping rule:

>>> import torch
>>> from repro.methods.score_ntk import KernelDescent, Regression, TwoLayer, ntk, rwy_steps
>>> from repro.toolbox.diffusion import VPProcess
>>> from repro.toolbox.exact_scores import PointMixture
>>> law = PointMixture.uniform(torch.tensor([[0.9], [-0.9]], dtype=torch.float64))
>>> problem = Regression(VPProcess(1.0, 1.0), t_min=0.1, t_max=2.0)
>>> generator = torch.Generator().manual_seed(0)
>>> train, test = (problem.draw(law, n, generator) for n in (100, 500))
>>> z, z_test, exact = problem.inputs(train), problem.inputs(test), problem.exact(law, test)
>>> taus = torch.tensor([0, 30, 100_000])
>>> descent = KernelDescent(ntk(z, z), train.x0, rate=1.0)
>>> errors = (descent.predict(ntk(z_test, z), taus) - exact).square().sum(2).mean(1)
>>> bool(errors[1] < errors[0]), bool(errors[2] > 2 * errors[1])  # it learns, then overfits
(True, True)
>>> 1 <= rwy_steps(descent.eigenvalues, rate=1.0, noise=0.6) <= 100
True

The network in a plain loop, and its distance from the kernel:

>>> network = TwoLayer(z.shape[1], 1, width=1000, generator=generator)
>>> for _ in range(30):
...     network.step(z, train.x0, rate=1.0)
>>> float((network(z_test) - descent.predict(ntk(z_test, z), taus[1:2])[0]).square().mean()) < 0.01
True

Tensors carry their shape: N training examples, M others, D outputs, Z features, R neurons, T times.
Losses are means over examples: a rate is N times that of the paper, whose loss is a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Count, NonNegative, Positive, checked
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.exact_scores import PointMixture, tweedie


class Triples(NamedTuple):
    """Examples of a noised law: times (N,), x_0 and x_t (N, D)."""

    t: Tensor
    x0: Tensor
    xt: Tensor

    def where(self, mask_N: Tensor) -> Triples:
        """Those of a mask."""
        return Triples(*(part[mask_N] for part in self))


@checked
@dataclass(frozen=True)
class Regression:
    """Score matching on [t_min, t_max] as a regression of x_0 on features of time and x_t.

    Attributes:
        process: the diffusion; ``VPProcess(1, 1)`` is dx = −x/2 dt + dw.
        t_min: first time, above 0, where the score does not exist.
        t_max: last time.
        bias: whether a constant 1 is a feature (not in the paper).
    """

    process: VPProcess
    t_min: Positive = 0.1
    t_max: Positive = 2.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.t_max <= self.t_min:
            raise UserError(
                f"t_max={self.t_max} is not after t_min={self.t_min}: choose a later one."
            )

    def draw(self, law: PointMixture, size: int, generator: torch.Generator) -> Triples:
        """Triples with uniform times and one draw of the noise each."""
        return self.noised(law.sample(size, generator), generator)

    def noised(self, x0_ND: Tensor, generator: torch.Generator) -> Triples:
        """Triples of given x_0: new times and new noise."""
        share = torch.rand(len(x0_ND), generator=generator, dtype=torch.float64).to(x0_ND)
        noise = torch.randn(x0_ND.shape, generator=generator, dtype=torch.float64).to(x0_ND)
        t = self.t_min + (self.t_max - self.t_min) * share
        return Triples(t, x0_ND, self.process.noised(x0_ND, t, noise))

    def signal(self, t_N: Tensor) -> tuple[Tensor, Tensor]:
        """α and h of times, (N,) each."""
        squared = self.process.alpha_bar(t_N)
        return squared.sqrt(), 1 - squared

    def inputs(self, triples: Triples) -> Tensor:
        """Z = (x_t, t − t_min, 1), (N, Z)."""
        columns = [triples.xt, (triples.t - self.t_min)[:, None]]
        if self.bias:
            columns.append(torch.ones_like(columns[1]))
        return torch.cat(columns, 1)

    def exact(self, law: PointMixture, triples: Triples) -> Tensor:
        """f_* = E[x_0 | x_t], (N, D): what would be learned from endless data."""
        return law.posterior_mean(triples.xt, *self.signal(triples.t))

    def score(self, f_ND: Tensor, triples: Triples) -> Tensor:
        """The score, (N, D), that belongs to a regression function's values (lemma 3.1)."""
        return tweedie(f_ND, triples.xt, *self.signal(triples.t))

    def matching_loss(self, f_ND: Tensor, triples: Triples, *, weighted: bool = True) -> Tensor:
        """λ‖s − ∇log p(x_t | x_0)‖² with λ = h²/α², or 1, of every triple, (N,)."""
        loss = (self.score(f_ND, triples) - self.score(triples.x0, triples)).square().sum(1)
        alpha, h = self.signal(triples.t)
        return loss * (h / alpha).square() if weighted else loss


# -- The kernel ------------------------------------------------------------------------------------


def ntk(z_NZ: Tensor, z_MZ: Tensor) -> Tensor:
    """Tangent kernel of the first layer of a wide two-layer ReLU network with signs as readout.

    κ(z, z') = zᵀz' (π − θ) / 2π, θ the angle between them; the same for every output.

    Returns:
        (N, M).
    """
    products = z_NZ @ z_MZ.mT
    lengths = z_NZ.norm(dim=1)[:, None] * z_MZ.norm(dim=1)
    angles = (products / lengths.clamp(min=1e-300)).clamp_(-1, 1).acos_()
    return products.mul_(angles.neg_().add_(math.pi)).div_(2 * math.pi)


class KernelDescent:
    """Gradient descent from 0 on ½ mean ‖f − y‖² in the space of a kernel, in closed form.

    With K = U diag(λ) Uᵀ, after τ steps ``f_τ(z) = κ(z, Z) U diag((1 − (1 − ηλ/N)^τ) / λ) Uᵀ Y``.

    Args:
        K_NN: kernel matrix of the training inputs.
        y_ND: labels.
        rate: η of the mean loss.

    Raises:
        UserError: the rate is too large to converge.
    """

    @checked
    def __init__(self, K_NN: Tensor, y_ND: Tensor, rate: Positive) -> None:
        self.values_N, self.U_NN = torch.linalg.eigh(K_NN)
        self.values_N = self.values_N.clamp(min=0)  # rounding aside, no kernel has negative ones
        self.rate = rate
        largest = float(self.eigenvalues[-1])
        if rate * largest >= 2:
            raise UserError(
                f"rate={rate} diverges: the kernel's largest eigenvalue over N is {largest:.3g}, "
                f"choose less than {2 / largest:.3g}."
            )
        self.rotated_ND = self.U_NN.mT @ y_ND

    @property
    def eigenvalues(self) -> Tensor:
        """Those of K/N, (N,), rising."""
        return self.values_N / len(self.values_N)

    def filters(self, tau_T: Tensor) -> Tensor:
        """(1 − (1 − ηλ/N)^τ) / λ, (T, N); at λ = 0 its limit ητ/N."""
        decay_N = 1 - self.rate * self.eigenvalues
        tau_T1 = tau_T.to(decay_N)[:, None]
        # expm1 keeps the digits of small eigenvalues; a negative base belongs to rates beyond 1/λ.
        slow = -torch.expm1(tau_T1 * torch.log1p(-self.rate * self.eigenvalues))
        learned = torch.where(decay_N > 0, slow, 1 - decay_N.pow(tau_T1))
        limit = self.rate * tau_T1 / len(decay_N)
        tiny = self.values_N <= 1e-300
        return torch.where(tiny, limit, learned / self.values_N.masked_fill(tiny, 1.0))

    def coefficients(self, tau_T: Tensor) -> Tensor:
        """C with f_τ(z) = κ(z, Z) c, (T, N, D)."""
        learned_NTD = self.filters(tau_T).mT[..., None] * self.rotated_ND[:, None]
        return _applied(self.U_NN, learned_NTD).movedim(1, 0)

    def predict(self, K_MN: Tensor, tau_T: Tensor) -> Tensor:
        """f_τ at M inputs, whose kernel with the training inputs is given, (T, M, D)."""
        return _applied(K_MN, self.coefficients(tau_T).movedim(0, 1)).movedim(1, 0)


def _applied(A_MN: Tensor, x_NTD: Tensor) -> Tensor:
    """A x, (M, T, D), as one product: a batch of T narrow ones takes ten times as long."""
    return (A_MN @ x_NTD.flatten(1)).unflatten(1, x_NTD.shape[1:])


def rwy_steps(eigenvalues_N: Tensor, rate: float, noise: float) -> int:
    """The stopping time of Raskutti, Wainwright and Yu (2014).

    The last τ with ``R(1/√η_τ) ≤ 1 / (2e σ η_τ)``, where η_τ = ητ and
    ``R(ε)² = mean min(λ, ε²)`` over the eigenvalues λ of K/N.

    Args:
        eigenvalues_N: of K/N.
        rate: η of the mean loss.
        noise: σ, standard deviation of a label's noise.

    Raises:
        UserError: there is no noise to stop for, or no kernel.
    """
    if noise <= 0 or float(eigenvalues_N.max()) <= 0:
        raise UserError(f"rwy_steps has nothing to stop for: noise={noise}; train to the end.")

    def is_over(tau: int) -> bool:
        time = rate * tau
        complexity = (eigenvalues_N * time**2).clamp(max=time).mean().sqrt()  # η_τ R, rising in τ
        return float(complexity) > 1 / (2 * math.e * noise)

    first = 1
    while not is_over(first):
        first *= 2
    low, first = first // 2, first
    while first - low > 1:
        middle = (low + first) // 2
        low, first = (low, middle) if is_over(middle) else (middle, first)
    return first - 1


# -- The network -----------------------------------------------------------------------------------


class TwoLayer:
    """f(z) = s Σ_r a_r relu(w_rᵀ z) with rows w_r that descend and signs a_r (D,) that do not.

    Args:
        inputs: Z.
        outputs: D.
        width: R; even where neurons are paired.
        generator: of the start, w_r from N(0, I).
        scale: ``ntk``: s = 1/√R; ``meanfield``: s = 1/R with R times the rate, which moves f as far
            in the first step but leaves the regime where features stay what they were.
        paired: neurons come in pairs of equal w and opposite a, so that f = 0 at the start.
        train_readout: also descends in a.
        dtype: of the weights.
        device: where they are.

    Raises:
        UserError: the width is odd and neurons are paired.
    """

    @checked
    def __init__(
        self,
        inputs: Count,
        outputs: Count,
        width: Count,
        generator: torch.Generator,
        *,
        scale: Literal["ntk", "meanfield"] = "ntk",
        paired: bool = True,
        train_readout: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if paired and width % 2:
            raise UserError(f"width={width} is odd, but neurons come in pairs: choose an even one.")
        drawn = width // 2 if paired else width
        W = torch.randn(drawn, inputs, generator=generator, dtype=torch.float64)
        a = 2.0 * torch.randint(2, (drawn, outputs), generator=generator) - 1
        if paired:
            W, a = torch.cat([W, W]), torch.cat([a, -a])
        self.W_RZ, self.a_RD = W.to(device, dtype), a.to(device, dtype)
        self.start_RZ = self.W_RZ.clone()
        is_ntk = scale == "ntk"
        self.output_scale: float = width**-0.5 if is_ntk else 1 / width
        self.speed: float = 1.0 if is_ntk else width
        self.train_readout = train_readout

    def __call__(self, z_MZ: Tensor) -> Tensor:
        """f, (M, D)."""
        return self.output_scale * ((z_MZ @ self.W_RZ.mT).relu_() @ self.a_RD)

    def step(self, z_NZ: Tensor, y_ND: Tensor, rate: NonNegative) -> None:
        """One step of gradient descent on ½ mean ‖f − y‖², the gradient by hand."""
        hidden_NR = (z_NZ @ self.W_RZ.mT).relu_()
        residual_ND = self.output_scale * (hidden_NR @ self.a_RD) - y_ND
        step = -rate * self.speed * self.output_scale / len(z_NZ)
        back_NR = residual_ND @ self.a_RD.mT
        if self.train_readout:
            self.a_RD.addmm_(hidden_NR.mT, residual_ND, alpha=step)
        self.W_RZ.addmm_(back_NR.mul_(hidden_NR.sign_()).mT, z_NZ, alpha=step)

    def moved(self) -> float:
        """The largest distance of a row of W from its start."""
        return float((self.W_RZ - self.start_RZ).norm(dim=1).max())
