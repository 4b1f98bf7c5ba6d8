"""LANTON against torch's Muon, closed forms of noise, and limits in which it is its base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.lanton import Lanton, LayerwiseRates, layer_groups, noise_rates
from repro.methods.lanton.layers import views
from repro.methods.lanton.method import Together
from repro.models.language.gpt2 import GPT2
from repro.models.language.llama import Llama
from repro.toolbox.lmo import RMS, NormBall, Sign, Spectral

SPECTRAL = Spectral(method="exact", dual_method="exact")
BALLS: dict[str, NormBall] = {"hidden": SPECTRAL, "embedding": Sign(), "vector": RMS()}
SHAPES = (6, 6), (6, 6), (4, 9), (5,), (5,)
Shape = tuple[int, ...]


def parameters(shapes: Sequence[Shape] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def made(moved: Sequence[nn.Parameter], **knobs: Any) -> Lanton:
    """An optimizer of parameters, each a group of its own; vectors are of another role."""
    groups = [{"params": [p], "role": "vector" if p.dim() == 1 else "hidden"} for p in moved]
    chosen: dict[str, Any] = {"lr": 0.1, "balls": BALLS, **knobs}
    return Lanton(groups, **chosen)


def draws(
    steps: int, stds: Sequence[float] = (), shapes: Sequence[Shape] = SHAPES
) -> list[list[Tensor]]:
    """Independent gradients, of a standard deviation for each layer."""
    generator = torch.Generator().manual_seed(1)
    stds = stds or [1.0] * len(shapes)
    pairs = list(zip(shapes, stds, strict=True))
    return [
        [s * torch.randn(*shape, generator=generator) for shape, s in pairs] for _ in range(steps)
    ]


def led(optimizer: Lanton, steps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Where gradients lead."""
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    for gradients in steps:
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [p.detach() for p in moved]


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- The base -------------------------------------------------------------------------------------


def kept(optimizer: torch.optim.Optimizer) -> int:
    """Numbers in an optimizer's state."""
    states = optimizer.state.values()
    return sum(value.numel() for s in states for value in s.values() if isinstance(value, Tensor))


def test_noise_costs_a_copy_of_the_gradients_and_a_number_for_each_layer() -> None:
    """The base keeps what torch's Muon does: the momentum."""
    shapes = (6, 6), (6, 6), (4, 9)
    weights = sum(a * b for a, b in shapes)
    muon = torch.optim.Muon(moved := parameters(shapes))
    for parameter in moved:
        parameter.grad = torch.ones_like(parameter)
    muon.step()
    base = made(parameters(shapes), noise="off")
    ours = made(parameters(shapes), noise="previous", c_unit="absolute")
    for optimizer in (base, ours):
        led(optimizer, draws(3, shapes=shapes))
    assert kept(base) == kept(muon) == weights
    assert kept(ours) == 2 * weights + len(shapes)


@pytest.mark.parametrize(
    ("adjust", "factor"), [("original", "muon"), ("match_rms_adamw", "rms_adamw")]
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_without_noise_it_is_torchs_muon(adjust: Any, factor: Any, nesterov: bool) -> None:
    shapes = (12, 20), (20, 12)
    start, reference = parameters(shapes), parameters(shapes)
    muon = torch.optim.Muon(reference, 0.1, 0.1, nesterov=nesterov, adjust_lr_fn=adjust)
    steps = draws(5, shapes=shapes)
    for gradients in steps:
        for parameter, gradient in zip(reference, gradients, strict=True):
            parameter.grad = gradient
        muon.step()
    balls = {"hidden": Spectral(factor, dtype="bfloat16")}
    knobs = {"nesterov": nesterov, "noise": "off", "weight_decay": 0.1, "balls": balls}
    ours = led(made(parameters(shapes), **knobs), steps)
    for mine, theirs, was in zip(ours, reference, start, strict=True):
        assert (theirs - was).abs().max() > 0.05
        torch.testing.assert_close(mine, theirs.detach(), atol=1e-3, rtol=1e-3)  # of bfloat16


def test_scion_is_the_base_with_unit_decay() -> None:
    """X <- (1 - lr) X - lr radius direction: it ends on the sphere of that radius."""
    scion = Lanton(
        [{"params": [nn.Parameter(torch.zeros(6, 4))], "role": "hidden", "scale": 5.0}],
        0.1,
        BALLS,
        noise="off",
        weight_decay=1,
    )
    (end,) = led(scion, [[torch.eye(6, 4)]] * 200)
    torch.testing.assert_close(SPECTRAL.norm(end[None]), torch.tensor([5.0]))


@pytest.mark.parametrize(
    "knobs",
    [
        {"c": 1e30, "c_unit": "absolute"},
        {"power": 1e-30},
        {"control": "shuffled", "power": 1e-30},
    ],
)
def test_where_rates_are_one_it_is_the_base(knobs: dict[str, Any]) -> None:
    steps = draws(6)
    base = led(made(parameters(), noise="off"), steps)
    assert equal(led(made(parameters(), **knobs), steps), base)
    assert not equal(led(made(parameters()), steps), base)


def test_a_step_has_the_length_of_its_rate() -> None:
    moved = parameters()
    before = [p.detach().clone() for p in moved]
    optimizer = made(moved, weight_decay=0)
    steps = draws(3)
    led(optimizer, steps[:2])
    before = [p.detach().clone() for p in moved]
    after = led(optimizer, steps[2:])
    balls = [BALLS["hidden"]] * 3 + [BALLS["vector"]] * 2
    rates = torch.cat([optimizer.rates["hidden"], optimizer.rates["vector"]])
    for ball, was, now, rate in zip(balls, before, after, rates, strict=True):
        assert float(ball.norm((was - now)[None])) == pytest.approx(0.1 * float(rate), rel=1e-3)


# -- Noise ----------------------------------------------------------------------------------------


def test_rates_are_the_papers_form() -> None:
    """alpha_l = alpha / sqrt(alpha^2 + H), rate sqrt(alpha_l / max alpha_j), c = alpha^2."""
    h = torch.tensor([0.5, 2.0, 9.0])
    alpha = 0.7
    layer = alpha / (alpha**2 + h).sqrt()
    torch.testing.assert_close(noise_rates(h, alpha**2, 0.25), (layer / layer.max()).sqrt())
    torch.testing.assert_close(
        noise_rates(torch.tensor([1.0, 4.0, 16.0]), 0, 0.25), torch.tensor([1, 0.5**0.5, 0.5])
    )
    assert noise_rates(torch.zeros(3), 0, 0.5).tolist() == [1, 1, 1]
    assert noise_rates(torch.tensor([0.0, 1.0]), 0, 0.5).tolist() == [1, 0]


def test_noise_is_the_squared_dual_norm_of_the_difference() -> None:
    """By hand, with a nuclear norm of numpy-like singular values, three steps long."""
    steps = draws(3)
    optimizer = made(parameters(), beta2=0.9)
    led(optimizer, steps)
    first = [SPECTRAL.dual((steps[1][i] - steps[0][i])[None]) ** 2 for i in range(3)]
    second = [SPECTRAL.dual((steps[2][i] - steps[1][i])[None]) ** 2 for i in range(3)]
    h = torch.cat([0.9 * a + 0.1 * b for a, b in zip(first, second, strict=True)])
    measured = optimizer.measured_noise("hidden")
    assert measured is not None
    torch.testing.assert_close(measured, h)
    # The first step has nothing to compare with; c is a tenth of the present median.
    expected = noise_rates(h, 0.1 * h.median(), 0.25)
    torch.testing.assert_close(optimizer.rates["hidden"], expected)
    assert optimizer.rates["hidden"].max() == 1


def test_the_first_step_is_the_bases() -> None:
    assert equal(led(made(parameters()), draws(1)), led(made(parameters(), noise="off"), draws(1)))


def test_a_constant_gradient_has_no_noise() -> None:
    steps = draws(1) * 4
    optimizer = made(parameters())
    assert equal(led(optimizer, steps), led(made(parameters(), noise="off"), steps))
    assert optimizer.measured_noise("hidden").tolist() == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("option", ["previous", "independent"])
def test_noise_of_known_size(option: str) -> None:
    """Layers of one shape with noise 1, 2, 4: H as their squares, rates as sqrt(sigma)."""
    shapes = [(8, 8)] * 3
    moved = parameters(shapes)
    optimizer = made(moved, noise=option, c=0.0, beta2=0.99)
    steps, others = draws(400, [1, 2, 4], shapes), iter(draws(400, [1, 2, 4], shapes)[::-1])
    for gradients in steps:
        if option == "independent":
            for parameter, gradient in zip(moved, next(others), strict=True):
                parameter.grad = gradient
            optimizer.keep_reference()
        led(optimizer, [gradients])
    h = optimizer.measured_noise("hidden")
    assert h is not None
    torch.testing.assert_close(h / h[0], torch.tensor([1.0, 4.0, 16.0]), rtol=0.15, atol=0)
    # Twice the variance of one gradient; a nuclear norm of about 8 / (3 pi) n^1.5.
    assert float(h[0]) == pytest.approx(2 * (0.849 * 8**1.5) ** 2, rel=0.2)
    torch.testing.assert_close(optimizer.rates["hidden"], (h[0] / h) ** 0.25)


def test_scaling_gradients_changes_nothing() -> None:
    steps = draws(5)
    scaled = [[1024 * gradient for gradient in gradients] for gradients in steps]
    ours = led(made(parameters(), noise="previous"), scaled)
    theirs = led(made(parameters(), noise="previous"), steps)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_roles_do_not_influence_each_other() -> None:
    steps = draws(4)
    louder = [[*gradients[:3], *(100 * g for g in gradients[3:])] for gradients in steps]
    for one, other in zip(
        led(made(parameters()), steps)[:3], led(made(parameters()), louder)[:3], strict=True
    ):
        assert torch.equal(one, other)


def test_c_is_kept_after_it_settled() -> None:
    moved = parameters()
    optimizer = made(moved, c=1.0, settle=2)
    steps = draws(4)
    led(optimizer, steps[:2])
    kept = float(optimizer.state[moved[0]]["c"])
    led(optimizer, [[9 * g for g in gradients] for gradients in steps[2:]])
    assert float(optimizer.state[moved[0]]["c"]) == kept


def test_controls_deal_out_the_same_rates() -> None:
    steps = draws(3, [1, 5, 2, 1, 1])
    optimizers = {
        c: made(parameters(), control=c, seed=1) for c in ("none", "mean_matched", "shuffled")
    }
    for optimizer in optimizers.values():
        led(optimizer, steps)
    rates = {control: optimizer.rates["hidden"] for control, optimizer in optimizers.items()}
    torch.testing.assert_close(rates["mean_matched"], rates["none"].mean().expand(3))
    assert rates["shuffled"].tolist() != rates["none"].tolist()
    torch.testing.assert_close(rates["shuffled"].sort()[0], rates["none"].sort()[0])


def test_rates_by_shape_alone() -> None:
    optimizer = made(parameters([(16, 16), (16, 16), (48, 16)]), noise="shape")
    led(optimizer, draws(1, shapes=[(16, 16), (16, 16), (48, 16)]))
    square, same, wide = optimizer.rates["hidden"].tolist()
    assert square == same == 1
    assert wide < 0.7  # sqrt(48/16) times the larger nuclear norm, and a root of it


def test_a_resumed_optimizer_goes_on() -> None:
    steps = draws(8)
    straight = led(made(parameters()), steps)
    first = made(parameters())
    middle = led(first, steps[:4])
    moved = [nn.Parameter(p.clone()) for p in middle]
    second = made(moved)
    second.load_state_dict(first.state_dict())
    assert equal(led(second, steps[4:]), straight)


# -- Layers ---------------------------------------------------------------------------------------


def test_layers_of_a_llama() -> None:
    groups = {
        g["role"]: g
        for g in layer_groups(Llama(20, width=8, layers=2, heads=2, mlp_width=24, tied=True))
    }
    assert {role: len(g["params"]) for role, g in groups.items()} == {
        "hidden": 14,
        "embedding": 1,
        "vector": 5,
    }
    untied = {
        g["role"]: g for g in layer_groups(Llama(20, width=8, layers=2, heads=2, mlp_width=24))
    }
    assert untied["embedding"]["names"] == ["model.embed_tokens.weight", "lm_head.weight"]


def test_layers_of_a_gpt2() -> None:
    model: Any = GPT2(20, positions=8, width=8, layers=1, heads=2)
    transposed = ["*.c_attn.weight", "*.c_proj.weight", "*.c_fc.weight"]
    groups = layer_groups(model, transposed, ["*.c_attn.weight"])
    assert [g["role"] for g in groups] == ["hidden", "hidden", "embedding", "positions", "vector"]
    q, k, v = views(model.transformer.h[0].attn.c_attn.weight, groups[0])
    assert q.shape == k.shape == v.shape == (8, 8)
    x = torch.randn(3, 8)
    attention = model.transformer.h[0].attn
    torch.testing.assert_close(x @ k.T, F.linear(x, attention.c_attn.weight.T)[:, 8:16])
    assert views(model.transformer.h[0].mlp.c_fc.weight, groups[1])[0].shape == (32, 8)


def test_fused_matrices_move_as_if_they_were_apart() -> None:
    apart = parameters([(6, 6)] * 3)
    fused = nn.Parameter(torch.cat([p.detach() for p in apart]).T.contiguous())
    steps = draws(4, [1, 2, 3], [(6, 6)] * 3)
    group = {"params": [fused], "role": "hidden", "transposed": True, "parts": 3}
    together = led(Lanton([group], 0.1, BALLS), [[torch.cat(g).T] for g in steps])
    torch.testing.assert_close(together[0].T, torch.cat(led(made(apart), steps)))


def test_kernels_are_matrices() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = Lanton(layer_groups(model), 0.1)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    assert optimizer.layers()["hidden"][0].of(model[0].weight).shape == (4, 27)


# -- The method -----------------------------------------------------------------------------------

PARTS: dict[str, Any] = {
    "lr": 0.1,
    "hidden": SPECTRAL,
    "embedding": Sign(),
    "positions": Sign(),
    "vector": RMS(),
    "lengths": {"embedding": 0.5},
}
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def test_kinds_without_a_ball_go_to_the_other_optimizer() -> None:
    model = Llama(20, width=8, layers=1, heads=2, mlp_width=24, tied=True)
    method = LayerwiseRates(**(PARTS | {"embedding": None, "vector": None}))
    optimizer = method.optimizer(model, ADAMW)
    assert isinstance(optimizer, Together)
    adamw = optimizer.optimizers[1]
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(2):
        model(torch.randint(20, (2, 5))).sum().backward()
        optimizer.step()
        scheduler.step()
    assert [
        group["lr"] for each in optimizer.optimizers for group in each.param_groups
    ] == pytest.approx([0.1 / 3, 1e-3 / 3])
    again = LayerwiseRates(**(PARTS | {"embedding": None, "vector": None})).optimizer(model, ADAMW)
    again.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in again.param_groups] == pytest.approx([0.1 / 3, 1e-3 / 3])
    assert again.optimizers[0].param_groups[0] is again.param_groups[0]  # type: ignore[attr-defined]


def test_option_two_compares_the_halves_of_a_batch() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    method = LayerwiseRates(noise="independent", **PARTS)
    optimizer = method.optimizer(model, ADAMW)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))

    def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    method.backward(loss_of, (x, y), Tensor.backward)
    half, other = (
        torch.autograd.grad(loss_of((x[part], y[part])), model[0].weight)[0]
        for part in (slice(4), slice(4, 8))
    )
    assert torch.equal(model[0].weight.grad, other)
    optimizer.step()
    assert method.lanton is not None
    h = method.lanton.measured_noise("hidden")
    torch.testing.assert_close(h, SPECTRAL.dual((other - half)[None]) ** 2)
    assert method.metrics()["lanton/rate_hidden"] == 1
    assert method.metrics()["lanton/flops_noise"] > 0
    with pytest.raises(UserError, match="halves batches"):
        method.backward(loss_of, (x[:1], y[:1]), Tensor.backward)


def test_scales_reach_the_layers() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8, bias=False), nn.Linear(8, 9))
    method = LayerwiseRates(wide_scale=3.0, **PARTS)
    method.optimizer(model, ADAMW)
    model(torch.zeros(1, dtype=torch.long)).sum().backward()
    assert method.lanton is not None
    lengths = {role: layers[0].length for role, layers in method.lanton.layers().items()}
    assert lengths == pytest.approx({"hidden": 0.3, "embedding": 0.05, "vector": 0.1})


class Stacked(nn.Linear):
    members = 3


@pytest.mark.parametrize(
    ("model", "message"),
    [(Stacked(2, 2), "stacks many networks"), (nn.Embedding(3, 2, sparse=True), "sparse=False")],
)
def test_what_it_cannot_train(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LayerwiseRates(**PARTS).attach(model)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"power": 0.0}, "power is positive"),
        ({"noise": "prev"}, "noise is off"),
        ({"beta2": 1.0}, "beta2 lies in"),
        ({"hidden": None, "embedding": None, "positions": None, "vector": None}, "method=none"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LayerwiseRates(**(PARTS | knobs))


def test_missing_pieces_are_said() -> None:
    with pytest.raises(UserError, match="no norm ball for layers 'vector'"):
        Lanton([{"params": [torch.zeros(3)], "role": "vector"}], 0.1, {"hidden": SPECTRAL})
    with pytest.raises(UserError, match="call keep_reference"):
        led(made(parameters(), noise="independent"), draws(1))


def test_any_supervised_model_learns_with_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    method = LayerwiseRates(**(PARTS | {"lr": 0.02}))
    method.attach(model)
    optimizer = method.optimizer(model, ADAMW)
    x = torch.randn(128, 8)
    y = (x[:, 0] > x[:, 1]).long()
    for _ in range(40):
        optimizer.zero_grad()
        method.backward(
            lambda batch: F.cross_entropy(model(batch[0]), batch[1]), (x, y), Tensor.backward
        )
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95
