"""Sparse autoencoders and their selection against limits, closed forms and finite differences."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repro.methods.gsae as gsae
from repro.errors import UserError
from repro.methods.gsae import (
    BatchTopKAutoencoder,
    Fidelity,
    GatedAutoencoder,
    GradientAugmented,
    JumpReLUAutoencoder,
    Magnitude,
    RandomChoice,
    ReLUAutoencoder,
    Site,
    SparseAutoencoder,
    Splicing,
    TopKAutoencoder,
    attribution,
    cross_entropies,
    geometric_median,
    gradient_of,
    kl_divergence,
    recovery,
    steering_effects,
    trace,
)

torch.set_num_threads(1)
D, N, K, B = 12, 40, 4, 64


class TinyAttention(nn.Module):
    """A causal model of tokens, so that positions influence later ones: (B, T) to (B, T, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, D)
        self.block = nn.MultiheadAttention(D, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(D, 24), nn.GELU(), nn.Linear(24, D))
        self.head = nn.Linear(D, 7)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.mlp(self.embed(tokens_BT))
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        y, _ = self.block(x, x, x, attn_mask=later, need_weights=False)
        return self.head(x + y)


@pytest.fixture
def model() -> TinyAttention:
    torch.manual_seed(1)
    return TinyAttention().double().requires_grad_(False)


def data() -> tuple[Tensor, Tensor]:
    """Activations and gradients of different sizes."""
    generator = torch.Generator().manual_seed(3)
    x_BD = torch.randn(B, D, generator=generator)
    return x_BD, torch.randn(B, D, generator=generator) * torch.logspace(-4, 2, B)[:, None]


def trained(make: Callable[[], SparseAutoencoder], steps: int = 20) -> tuple[list[float], dict]:
    """Losses and weights of a short training from a fixed seed."""
    torch.manual_seed(0)
    sae = make()
    x_BD, g_BD = data()
    sae.initialise(x_BD)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sae.loss(x_BD, g_BD)
        loss.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
        losses.append(loss.item())
    return losses, sae.state_dict()


def test_the_docstring_runs() -> None:
    assert doctest.testmod(gsae).failed == 0


# -- selection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [TopKAutoencoder, BatchTopKAutoencoder])
def test_without_beta_it_is_topk_bit_for_bit(variant: type[TopKAutoencoder]) -> None:
    plain = trained(lambda: variant(D, N, K, Magnitude()))
    zero = trained(lambda: variant(D, N, K, GradientAugmented(beta=0.0)))
    assert plain[0] == zero[0]
    for name, value in plain[1].items():
        assert torch.equal(value, zero[1][name]), name
    other = trained(lambda: variant(D, N, K, GradientAugmented(beta=1.0)))
    assert plain[0] != other[0]


@pytest.mark.parametrize("norm", ["token", "batch", "none"])
@pytest.mark.parametrize("mode", ["add", "mul"])
def test_scores_are_the_formula(mode: Any, norm: Any) -> None:
    x_BD, g_BD = (each.double() for each in data())
    W_ND = F.normalize(torch.randn(N, D).double(), dim=1)
    z_BN = (x_BD @ W_ND.T).relu()
    found = GradientAugmented(beta=0.7, mode=mode, grad_norm=norm).scores(z_BN, W_ND, g_BD)
    mean_of_all = sum(abs(sum(g * w)) for g in g_BD for w in W_ND) / (B * N)
    for b in range(0, B, 9):
        a = torch.stack([abs((g_BD[b] * w).sum()) for w in W_ND])  # latent by latent
        a = a / {"token": a.mean(), "batch": mean_of_all, "none": 1.0}[norm]
        expected = z_BN[b] * a if mode == "mul" else z_BN[b] + 0.7 * z_BN[b] * a
        torch.testing.assert_close(found[b], expected)


def test_exactly_k_stay_on_at_the_value_of_z() -> None:
    torch.manual_seed(0)
    x_BD, g_BD = data()
    sae = TopKAutoencoder(D, N, K, GradientAugmented(beta=5.0))
    z_BN = sae.linear(x_BD).relu()
    f_BN = sae.encode(x_BD, g_BD)
    on = f_BN > 0
    assert (on.sum(1) == K).all()
    assert torch.equal(f_BN[on], z_BN[on])
    assert not torch.equal(on, sae.encode(x_BD, selector=Magnitude()) > 0)
    with torch.no_grad():
        sae.b_enc.fill_(-1.5)  # now some tokens have fewer than k positive latents
    few = (sae.encode(x_BD, g_BD) > 0).sum(1)
    assert (few <= K).all()
    assert (few == sae.linear(x_BD).gt(0).sum(1).clamp_max(K)).all()


def test_indices_ignore_the_scale_and_the_sign_of_the_gradient() -> None:
    torch.manual_seed(0)
    x_BD, g_BD = data()
    sae = TopKAutoencoder(D, N, K, GradientAugmented(beta=1.0))

    def on(gradient: Tensor) -> Tensor:
        return sae.encode(x_BD, gradient) > 0

    scales = torch.logspace(-8, 8, B)[:, None]  # also a different one for each token
    for changed in (1e-6 * g_BD, 1e6 * g_BD, -g_BD, scales * g_BD):
        assert torch.equal(on(g_BD), on(changed))


def test_tokens_without_a_gradient_fall_back_to_topk() -> None:
    torch.manual_seed(0)
    x_BD, g_BD = data()
    g_BD[::2] = 0
    sae = TopKAutoencoder(D, N, K, GradientAugmented(beta=1.0))
    augmented, plain = sae.encode(x_BD, g_BD), sae.encode(x_BD, selector=Magnitude())
    assert torch.equal(augmented[::2], plain[::2])
    assert not torch.equal(augmented, plain)


def test_a_linear_model_neglects_what_it_cannot_see() -> None:
    # L = c·x with c the first axis: latents orthogonal to it have no influence.
    torch.manual_seed(0)
    sae = TopKAutoencoder(D, N, K, GradientAugmented(mode="mul"))
    blind = torch.arange(N) % 2 == 0
    with torch.no_grad():
        sae.W_dec[blind, 0] = 0
        sae.after_step()
    x_BD = torch.randn(B, D)
    leaf = x_BD.clone().requires_grad_()
    g_BD = torch.autograd.grad(leaf[:, 0].sum(), leaf)[0]
    assert torch.equal(g_BD, torch.eye(D)[0].expand(B, D))
    assert not (sae.encode(x_BD, g_BD)[:, blind] > 0).any()
    z_BN = sae.linear(x_BD).detach().relu()
    added = GradientAugmented(beta=2.0).scores(z_BN, sae.W_dec.detach(), g_BD)
    torch.testing.assert_close(added[:, blind], z_BN[:, blind], rtol=0, atol=0)


def test_random_choice_keeps_positive_latents() -> None:
    torch.manual_seed(0)
    sae = TopKAutoencoder(D, N, K, RandomChoice())
    x_BD, _ = data()
    first, second = sae.encode(x_BD), sae.encode(x_BD)
    assert ((first > 0).sum(1) == K).all()
    assert not torch.equal(first, second)


def test_no_gradient_flows_through_the_choice() -> None:
    torch.manual_seed(0)
    x_BD, g_BD = data()
    sae = TopKAutoencoder(D, N, K, GradientAugmented(beta=1.0))
    _, indices_BK = sae.keep(sae.linear(x_BD).relu(), g_BD)
    g_BD.requires_grad_()
    sae.loss(x_BD, g_BD).backward()
    assert g_BD.grad is None
    mine = [p.grad.clone() for p in sae.parameters() if p.grad is not None]
    sae.zero_grad()
    # The same choice as a constant mask, in dense matrices.
    mask_BN = torch.zeros(B, N).scatter_(1, indices_BK, 1.0)
    f_BN = mask_BN * F.relu((x_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc)
    (f_BN @ sae.W_dec + sae.b_pre - x_BD).square().sum(1).mean().backward()
    for parameter, grad in zip(sae.parameters(), mine, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_with_all_latents_on_beta_makes_no_difference() -> None:
    torch.manual_seed(0)
    x_BD, g_BD = data()
    sae = TopKAutoencoder(D, N, k=N)
    torch.testing.assert_close(
        sae(x_BD, g_BD, GradientAugmented(beta=9.0)), sae(x_BD), rtol=0, atol=0
    )


# -- sites and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side"), [("mlp", "output"), ("block", "input"), ("mlp.2", "input")]
)
def test_replacing_by_the_same_changes_nothing(model: TinyAttention, name: str, side: Any) -> None:
    tokens = torch.randint(7, (3, 5))
    site = Site(model, name, side)
    with site.replace(lambda x: x):
        assert torch.equal(model(tokens), model(tokens))
        inside = model(tokens)
    assert torch.equal(inside, model(tokens))
    with site.replace(torch.zeros_like):
        assert not torch.allclose(model(tokens), inside)


def test_the_gradient_is_the_first_order_effect(model: TinyAttention) -> None:
    # L(x + εw) - L(x) = ε w·g, on the real model, by central differences.
    tokens, targets = torch.randint(7, (1, 6)), torch.randint(7, (1, 6))
    site = Site(model, "mlp")
    output, x = trace(site, tokens)
    g = gradient_of(output, targets, x)
    W_ND = F.normalize(torch.randn(5, D).double(), dim=1)
    for position in (0, 3, 5):
        for w, a in zip(W_ND, attribution(W_ND, g)[position], strict=True):
            losses = []
            for epsilon in (1e-4, -1e-4):
                moved = x.detach().clone()
                moved[position] += epsilon * w
                with site.replace(lambda _, moved=moved: moved):  # type: ignore[misc]
                    losses.append(cross_entropies(model(tokens), targets).sum())
            slope = (losses[0] - losses[1]) / 2e-4
            assert abs(slope) == pytest.approx(a.item(), rel=1e-5, abs=1e-8)


def test_gradients_do_not_depend_on_who_shares_the_batch(model: TinyAttention) -> None:
    tokens, targets = torch.randint(7, (2, 6)), torch.randint(7, (2, 6))
    site = Site(model, "mlp")

    def gradient(rows: slice) -> Tensor:
        output, x = trace(site, tokens[rows])
        return gradient_of(output, targets[rows], x)

    both = gradient(slice(0, 2))
    torch.testing.assert_close(both, torch.cat([gradient(slice(0, 1)), gradient(slice(1, 2))]))
    # The first position's gradient includes what it does to later ones.
    alone, x = trace(site, tokens[:1])
    first = torch.autograd.grad(F.cross_entropy(alone[:, 0], targets[:1, 0]), x)[0]
    assert not torch.allclose(first[0], both[0])


def test_the_model_is_left_alone(model: TinyAttention) -> None:
    before = copy.deepcopy(model.state_dict())
    hooks = len(model.mlp._forward_hooks)
    output, x = trace(Site(model, "mlp"), torch.randint(7, (2, 6)))
    gradient_of(output, torch.randint(7, (2, 6)), x)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(model.mlp._forward_hooks) == hooks


def test_it_works_where_autograd_is_switched_off(model: TinyAttention) -> None:
    tokens, targets = torch.randint(7, (2, 6)), torch.randint(7, (2, 6))
    expected = gradient_of(*_swap(trace(Site(model, "mlp"), tokens), targets))
    with torch.no_grad():
        found = gradient_of(*_swap(trace(Site(model, "mlp"), tokens), targets))
    torch.testing.assert_close(found, expected)


def _swap(traced: tuple[Tensor, Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return traced[0], targets, traced[1]


def test_skipped_positions_stay_as_they_are(model: TinyAttention) -> None:
    tokens = torch.randint(7, (2, 6))
    seen = []

    def zero(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return torch.zeros_like(x)

    clean = model(tokens)
    with Site(model, "mlp", skip=2).replace(zero):
        changed = model(tokens)
    assert seen == [(8, D)]
    torch.testing.assert_close(changed[:, :2], clean[:, :2])
    assert not torch.allclose(changed[:, 2:], clean[:, 2:])
    assert trace(Site(model, "mlp", skip=2), tokens)[1].shape == (8, D)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("mpl",), "Did you mean 'mlp'"),
        (("mlp", "middle"), "not 'middle'"),
        (("mlp", "input", -1), "at least 0"),
    ],
)
def test_sites_that_are_none(model: TinyAttention, arguments: tuple, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Site(model, *arguments)


def test_a_module_that_runs_twice_is_no_site() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="2 times"):
        trace(Site(nn.Sequential(layer, layer), "0"), torch.zeros(1, 3))


# -- autoencoders ---------------------------------------------------------------------------------

VARIANTS: dict[str, Callable[[], SparseAutoencoder]] = {
    "topk": lambda: TopKAutoencoder(D, N, K),
    "gsae": lambda: TopKAutoencoder(D, N, K, GradientAugmented()),
    "auxk": lambda: TopKAutoencoder(D, N, K, auxk=0.03, dead_after=B),
    "batch": lambda: BatchTopKAutoencoder(D, N, K),
    "batch gsae": lambda: BatchTopKAutoencoder(D, N, K, GradientAugmented()),
    "relu": lambda: ReLUAutoencoder(D, N, 0.03),
    "gated": lambda: GatedAutoencoder(D, N, 0.03),
    "jump": lambda: JumpReLUAutoencoder(D, N, 0.003, bandwidth=0.1, threshold=0.1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_with_unit_directions(name: str) -> None:
    losses, state = trained(VARIANTS[name], steps=150)
    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(state["W_dec"].norm(dim=1), torch.ones(N))


def test_the_decoder_gradient_has_no_part_along_its_directions() -> None:
    torch.manual_seed(0)
    sae = TopKAutoencoder(D, N, K)
    sae.loss(data()[0]).backward()
    assert sae.W_dec.grad is not None
    before = (sae.W_dec.grad * sae.W_dec).sum(1).abs().max()
    sae.before_step()
    assert sae.W_dec.grad is not None
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6 * before + 1e-7


def test_the_start_is_tied_and_centred() -> None:
    sae = TopKAutoencoder(D, N, K)
    x_BD = data()[0] + 5
    sae.initialise(x_BD)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not sae.b_enc.any()
    torch.testing.assert_close(sae.variance, x_BD.var(0, unbiased=False).sum())
    # At the geometric median the unit vectors to all points sum to zero.
    to_points = F.normalize(x_BD - sae.b_pre.detach(), dim=1)
    assert to_points.sum(0).norm() < 1e-2


def test_the_geometric_median_shrugs_off_an_outlier() -> None:
    points = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [1e6, 1e6]])
    assert geometric_median(points).norm() < 2
    kite = torch.tensor([[0.0, 0], [1, 0], [0, 1], [5, 5]])
    for unit in (1e-4, 1e4):  # where its diagonals cross, in any unit
        median = geometric_median(unit * kite) / unit
        torch.testing.assert_close(median, torch.full((2,), 0.5), rtol=1e-3, atol=0)
    # It stops by how far it moved, in distances of the points: here at once.
    far = 1000 + 100 * kite + torch.tensor([[30.0, 10]])
    assert torch.equal(geometric_median(far, tolerance=1.0), geometric_median(far, iterations=1))


def test_batch_topk_keeps_k_a_token_on_average_and_alone() -> None:
    torch.manual_seed(0)
    sae = BatchTopKAutoencoder(D, N, K, GradientAugmented(), decay=0.5)
    x_BD, g_BD = data()
    for _ in range(30):
        sae.loss(x_BD, g_BD)
    on = sae.encode(x_BD, g_BD) > 0
    assert on.sum() == K * B
    assert on.sum(1).min() < K < on.sum(1).max()
    sae.eval()
    for selector in (None, Magnitude()):
        together = sae.encode(x_BD, g_BD, selector)
        assert (together > 0).sum() / B == pytest.approx(K, rel=0.01)
        alone = torch.cat([sae.encode(x_BD[i, None], g_BD[i, None], selector) for i in range(B)])
        torch.testing.assert_close(alone, together)


def test_the_jump_has_the_published_straight_through_gradient() -> None:
    torch.manual_seed(0)
    sae = JumpReLUAutoencoder(D, N, sparsity=0.5, bandwidth=0.4, threshold=0.3)
    x_BD = data()[0]
    sae.loss(x_BD).backward()
    z_BN = sae.linear(x_BD).detach().relu()
    theta = 0.3
    error_BD = sae.decode(z_BN * (z_BN > theta)).detach() - x_BD
    near_BN = ((z_BN - theta) / 0.4).abs() < 0.5
    of_mse = 2 / B * error_BD @ sae.W_dec.detach().T * (-theta / 0.4)
    of_l0 = 0.5 / B * (-1 / 0.4)
    expected_N = ((of_mse + of_l0) * near_BN).sum(0) * theta  # by the chain rule: of log θ
    torch.testing.assert_close(sae.log_theta.grad, expected_N, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_shift_of_activations_is_one_of_reconstructions(name: str) -> None:
    torch.manual_seed(0)
    sae, (x_BD, g_BD) = VARIANTS[name](), data()
    reconstructed, loss = sae(x_BD, g_BD), sae.loss(x_BD, g_BD)
    fired = (sae.encode(x_BD, g_BD) > 0).any(0)
    assert sae.idle.tolist() == [0 if each else B for each in fired]
    with torch.no_grad():
        sae.b_pre.add_(2.0)
    sae.idle.zero_()
    torch.testing.assert_close(sae(x_BD + 2, g_BD), reconstructed + 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.loss(x_BD + 2, g_BD), loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "loss", "slope"),
    [
        # f = 3, x̂ = 6: an error of 9/4, and ½ · 6/2 of L1.
        (ReLUAutoencoder, 9 / 4 + 1.5, 3 * (3 + 0.5)),
        # π = 3.5 and f = 3 · 3 + 1, x̂ = 20 and 7: errors of 17²/4 and 4²/4, and ½ · 3.5/2 of L1.
        (GatedAutoencoder, 17**2 / 4 + 4 + 0.875, 3 * (3 * 17 + 4 + 0.25)),
        # As the first, with ½ for the one latent that is on.
        (JumpReLUAutoencoder, 9 / 4 + 0.5, 3 * 3),
    ],
)
def test_losses_of_one_latent(make: Any, loss: float, slope: float) -> None:
    """x = 3, encoded with 1 and decoded with 2; the variance is 4."""
    sae = make(1, 1, sparsity=0.5)
    with torch.no_grad():
        sae.W_enc.fill_(1)
        sae.W_dec.fill_(2)
        sae.variance.fill_(4)
        if isinstance(sae, GatedAutoencoder):
            sae.b_enc.fill_(0.5)
            sae.r_mag.fill_(math.log(3))
            sae.b_mag.fill_(1)
    found = sae.loss(torch.tensor([[3.0]]))
    found.backward()
    assert float(found) == pytest.approx(loss)
    assert float(sae.W_enc.grad) == pytest.approx(slope)


def test_a_jump_means_the_same_at_every_site() -> None:
    """Its threshold and its kernel count in standard deviations of the site, too."""
    x_BD, found = data()[0], []
    for size in (1.0, 3.0):
        torch.manual_seed(0)
        sae = JumpReLUAutoencoder(D, N, sparsity=0.5, bandwidth=0.2, threshold=0.1)
        sae.initialise(size * x_BD)
        loss = sae.loss(size * x_BD)
        loss.backward()
        found.append((loss.detach(), sae.log_theta.grad))
        spread = (size * x_BD).var(0, unbiased=False).sum().sqrt()
        torch.testing.assert_close(sae.log_theta.exp(), (0.1 * spread).expand(N))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_thresholds_of_batches_are_running_means() -> None:
    """Of l and twice l, with a quarter for the new one."""
    torch.manual_seed(0)
    sae = BatchTopKAutoencoder(D, N, K, decay=0.75)
    x_BD = data()[0]
    sae.loss(x_BD)
    first = sae.thresholds.clone()
    sae.loss(2 * x_BD)
    torch.testing.assert_close(sae.thresholds, 1.25 * first)


@pytest.mark.parametrize("kind", [ReLUAutoencoder, GatedAutoencoder])
def test_a_sparsity_means_the_same_at_every_site(kind: Any) -> None:
    """It counts in standard deviations of the site: scaled activations have the same loss."""
    torch.manual_seed(0)
    sae = kind(D, N, sparsity=0.5)
    x_BD = data()[0]
    small = sae.loss(x_BD)
    sae.variance.fill_(9.0)
    torch.testing.assert_close(sae.loss(3 * x_BD), small)
    # Unscaled, the penalty is λ times the sum of what the decoder's unit directions are given.
    sae.variance.fill_(1.0)
    without = kind(D, N, sparsity=0.0)
    without.load_state_dict(sae.state_dict())
    given = sae.linear(x_BD).relu().sum(1).mean()
    torch.testing.assert_close(small - without.loss(x_BD), 0.5 * given)


def test_the_gate_decides_and_its_own_loss_leaves_the_decoder_alone() -> None:
    torch.manual_seed(0)
    sae = GatedAutoencoder(D, N, sparsity=0.0)
    x_BD = data()[0]
    with torch.no_grad():
        sae.b_enc.sub_(0.5)
        sae.b_mag.add_(0.3)
    f_BN = sae.encode(x_BD)
    pi_BN = (x_BD - sae.b_pre) @ sae.W_enc.T + sae.b_enc
    assert not (f_BN[pi_BN <= 0] > 0).any()
    torch.testing.assert_close(f_BN[pi_BN > 0], (pi_BN + 0.8).relu()[pi_BN > 0])
    sae.loss(x_BD).backward()
    assert sae.W_dec.grad is not None
    mine = sae.W_dec.grad.clone()
    sae.zero_grad()
    (sae.decode(sae.encode(x_BD)) - x_BD).square().sum(1).mean().backward()
    torch.testing.assert_close(sae.W_dec.grad, mine)  # nothing was added by the gate's loss
    assert sae.b_enc.grad is None or not sae.b_enc.grad.any()  # nor does a hard gate learn


def test_more_sparsity_means_fewer_latents() -> None:
    def l0(make: Callable[[], SparseAutoencoder]) -> float:
        _, state = trained(make, steps=200)
        sae = make()
        sae.load_state_dict(state)
        return float((sae.encode(data()[0]) > 0).sum(1).float().mean())

    assert l0(lambda: ReLUAutoencoder(D, N, 0.2)) < l0(lambda: ReLUAutoencoder(D, N, 0.01))
    assert l0(lambda: GatedAutoencoder(D, N, 0.2)) < l0(lambda: GatedAutoencoder(D, N, 0.01))


@pytest.mark.parametrize("variant", [TopKAutoencoder, BatchTopKAutoencoder])
def test_auxk_is_the_dead_latents_guess_at_the_error(variant: type[TopKAutoencoder]) -> None:
    torch.manual_seed(0)
    sae = variant(D, N, K, auxk=0.5, auxk_latents=3, dead_after=10)
    x_BD = data()[0]
    plain = copy.deepcopy(sae)
    plain.auxk = 0.0
    sae.idle[[2, 5, 7, 11]] = plain.idle[[2, 5, 7, 11]] = 1000
    with torch.no_grad():  # dead because TopK never takes them: all others are larger
        for each in (sae, plain):
            each.b_enc.add_(2)
            each.b_enc[[2, 5, 7, 11]] = 0
            each.W_enc[[2, 5, 7, 11]] *= 0.1
    extra = sae.loss(x_BD) - plain.loss(x_BD)
    z_BN = sae.linear(x_BD).relu()
    e_BD = x_BD - sae(x_BD)
    dead = (sae.idle >= 10).nonzero().squeeze(1)
    assert dead.tolist() == [2, 5, 7, 11]
    best = z_BN[:, dead].topk(3)
    guess = torch.einsum("bk,bkd->bd", best.values, sae.W_dec[dead][best.indices])
    expected = (guess - e_BD).square().mean() / (e_BD - e_BD.mean(0)).square().mean()
    torch.testing.assert_close(extra, 0.5 * expected)


def test_resampling_revives_only_the_dead() -> None:
    torch.manual_seed(0)
    sae = ReLUAutoencoder(D, N, 0.01, dead_after=100)
    x_BD = data()[0]
    optimizer = torch.optim.Adam(sae.parameters())
    sae.loss(x_BD).backward()
    optimizer.step()
    assert sae.resample(x_BD, optimizer) == 0
    before = copy.deepcopy(sae.state_dict())
    sae.idle[:3] = 200
    assert sae.resample(x_BD, optimizer) == 3
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(getattr(sae, name)[3:], before[name][3:])
        moments = optimizer.state[getattr(sae, name)]["exp_avg"]
        assert not moments[:3].any()
        assert moments[3:].any()
    cosine = (sae.W_dec[:3] @ F.normalize(x_BD - sae.b_pre, dim=1).T).max(1).values
    torch.testing.assert_close(cosine, torch.ones(3))
    norms = sae.W_enc.norm(dim=1)
    torch.testing.assert_close(norms[:3], 0.2 * norms[3:].mean().expand(3))


def test_resampling_points_at_what_is_reconstructed_worst() -> None:
    """Two latents have both axes; nothing has what lies opposite, seen from b_pre."""
    sae = ReLUAutoencoder(2, 3, 0.01, dead_after=100)
    with torch.no_grad():
        sae.b_pre.fill_(1)
        for weight in (sae.W_enc, sae.W_dec):
            weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0]]))
        sae.b_enc[2] = -9
    sae.idle[2] = 200
    optimizer = torch.optim.SGD(sae.parameters())
    assert sae.resample(torch.tensor([[4.0, 1], [1, 5], [0, 0]]), optimizer) == 1
    torch.testing.assert_close(sae.W_dec[2].detach(), torch.full((2,), -(0.5**0.5)))
    sae.idle.fill_(200)
    assert sae.resample(torch.randn(4, 2), optimizer) == 0  # no living one to take a norm from


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: TopKAutoencoder(D, N, 0), "k is a whole number of at least 1"),
        (lambda: TopKAutoencoder(D, N, N + 1), "k lies between"),
        (lambda: TopKAutoencoder(D, 0, 1), "latents is a whole number of at least 1"),
        (lambda: TopKAutoencoder(D, N, 1, auxk=-1), "auxk"),
        (lambda: ReLUAutoencoder(D, N, -1), "sparsity"),
        (lambda: JumpReLUAutoencoder(D, N, 1, bandwidth=0), "bandwidth"),
        (lambda: GradientAugmented(beta=-1), "beta"),
        (lambda: GradientAugmented(mode="ad"), "Did you mean 'add'"),  # type: ignore[arg-type]
        (lambda: GradientAugmented(grad_norm="tokens"), "Did you mean 'token'"),  # type: ignore[arg-type]
    ],
)
def test_bad_knobs_are_one_line(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        make()
    assert "\n" not in str(error.value)


# -- measures -------------------------------------------------------------------------------------


def test_fidelity_of_a_perfect_and_of_a_mean_reconstruction(model: TinyAttention) -> None:
    tokens, targets = torch.randint(7, (4, 6)), torch.randint(7, (4, 6))
    site, clean = Site(model, "mlp"), model(tokens)
    x = trace(site, tokens)[1].detach()
    mean = x.mean(0).expand_as(x)
    perfect, average = Fidelity(), Fidelity()
    for fidelity, x_hat in ((perfect, x), (average, mean)):
        for part in (slice(0, 1), slice(1, 4)):  # in two batches of different size
            rows = slice(6 * part.start, 6 * part.stop)
            with site.replace(lambda _, x_hat=x_hat, rows=rows: x_hat[rows]):  # type: ignore[misc]
                spliced = model(tokens[part])
            fidelity.update(x[rows], x_hat[rows], x_hat[rows], clean[part], spliced, targets[part])
    same, ablated = perfect.values(), average.values()
    assert abs(same["delta_ce"]) < 1e-6
    assert abs(same["kl"]) < 1e-6
    assert same["fvu"] == 0
    assert ablated["fvu"] == pytest.approx(1)
    with site.replace(lambda _: mean):
        spliced = model(tokens)
    expected = F.cross_entropy(spliced.flatten(0, 1), targets.flatten())
    expected -= F.cross_entropy(clean.flatten(0, 1), targets.flatten())
    assert ablated["delta_ce"] == pytest.approx(expected.item())
    assert ablated["kl"] == pytest.approx(kl_divergence(clean, spliced).item())


def test_fidelity_counts_firing_over_all_batches() -> None:
    fidelity = Fidelity()
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    for f in ([[1.0, 0, 0, 0], [1, 2, 0, 0]], [[0, 0, 0, 0], [0, 0, 3, 0]]):
        fidelity.update(
            torch.randn(2, 4), torch.zeros(2, 4), torch.tensor(f), logits, logits, target
        )
    assert fidelity.values()["dead"] == pytest.approx(0.25)
    assert fidelity.values()["l0"] == pytest.approx(1.0)


class ByHand(nn.Module):
    """Halves activations, or moves them by 2 against the signs of their gradient.

    Two latents are the positive parts of what comes out, and two the negative ones.
    """

    needs_gradient = True

    def encode(self, x_BD: Tensor, g_BD: Tensor | None, _selector: Any) -> Tensor:
        out_BD = 0.5 * x_BD if g_BD is None else x_BD - 2 * g_BD.sign()
        return torch.cat([out_BD.relu(), (-out_BD).relu()], 1)

    def decode(self, f_BN: Tensor) -> Tensor:
        return f_BN[:, :2] - f_BN[:, 2:]


def loss_of(*leads: float) -> float:
    """Mean cross-entropy of logits whose right one leads the other of two by so much."""
    return sum(math.log1p(math.exp(-lead)) for lead in leads) / len(leads)


def divergence(clean: float, spliced: float) -> float:
    """KL of two classes by the leads of the first."""
    p, q = 1 / (1 + math.exp(-clean)), 1 / (1 + math.exp(-spliced))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_splicing_a_dictionary_that_was_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits (2, 0) and (0, 1) are the activations; class 0 is right, class 1 and 0 are drawn."""
    drawn = torch.tensor([1, 0])
    monkeypatch.setattr("repro.methods.gsae.splicing.sampled_labels", lambda *_: drawn)
    made: Any = ByHand()
    splicing = Splicing(Site(nn.Identity(), "", "input"), made, torch.tensor([1.0, 0.5]))
    splicing.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    found, clean = splicing.values(), loss_of(2, -1)
    # Halved: (1, 0), (0, ½). Against the gradient of class 0: (4, -2), (2, -1); of class 1: (0, 2).
    assert found["delta_ce/topk"] == pytest.approx(loss_of(1, -0.5) - clean)
    assert found["delta_ce/label"] == pytest.approx(loss_of(6, 3) - clean)
    assert found["delta_ce/sampled"] == pytest.approx(loss_of(-2, 3) - clean)
    kl = (divergence(2, -2) + divergence(-1, 3)) / 2
    assert found["kl/sampled"] == pytest.approx(kl, rel=1e-5)
    # Errors of 8; the variance is 5/2 - (1² + ½²).
    assert found["fvu/sampled"] == pytest.approx(8 / 1.25)
    assert found["dead/topk"] == 2 / 4
    assert found["dead/sampled"] == 1 / 4
    assert found["clean_loss"] == pytest.approx(clean)
    ablation = loss_of(0.5, 0.5) - clean
    assert found["ablation_delta_ce"] == pytest.approx(ablation)
    assert found["loss_recovered/topk"] == pytest.approx(1 - found["delta_ce/topk"] / ablation)


def test_recovery_is_the_best_cosine() -> None:
    features = torch.tensor([[2.0, 0, 0], [0, 1, 1]])
    W = torch.tensor([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    torch.testing.assert_close(recovery(features, W), torch.tensor([0.0, 0.5**0.5]))


def test_steering_is_the_change_of_the_logits(model: TinyAttention) -> None:
    tokens = torch.randint(7, (4, 6))
    site = Site(model, "head", "input")
    directions = F.normalize(torch.randn(3, D).double(), dim=1)
    found = steering_effects(site, tokens, directions, length=0.5)
    clean = model(tokens)
    for w, effect in zip(directions, found, strict=True):
        moved = clean + 0.5 * model.head.weight @ w  # the head is linear
        change = moved.log_softmax(-1) - clean.log_softmax(-1)
        torch.testing.assert_close(effect, change.abs().amax(-1).mean())
