"""The step against the published product, limits that are plain training, and the bases' law."""

from __future__ import annotations

import copy
import doctest
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repro.methods.noise_mask as noise_mask
from repro.errors import UserError
from repro.methods.noise_mask import InputNoise, MaskPolicy, NoiseMask, flat_loss_scale
from repro.methods.noise_mask.masks import generator_of_step, log_sum_density
from repro.models.vision.small_cnn import SmallCNN
from repro.toolbox.method import Method

X, Y = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
CPU = torch.device("cpu")


def classifier() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN([1, 8, 8], 3, widths=[6, 6])


def policy(grid: int = 4, **knobs: Any) -> MaskPolicy:
    torch.manual_seed(1)
    body = SmallCNN([1, 8, 8], 1, widths=[5], strides=[2], pool=1)
    return MaskPolicy(body, grid=grid, **knobs)


def method_of(grid: int = 4, **knobs: Any) -> NoiseMask:
    return NoiseMask(policy(grid), kernel=3, sigma=1.0, **knobs)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def gradients(method: Method, model: nn.Module) -> list[Tensor]:
    """The model's gradients of one step."""
    method.attach(model)
    method.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), (X, Y), Tensor.backward)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def policy_gradients(method: NoiseMask) -> list[Tensor]:
    return [p.grad for p in method.policy.parameters() if p.grad is not None]


def published(model: nn.Module, own: MaskPolicy, constant_lse: bool = False) -> None:
    """The authors' step written out: one product of two batch means, one backward."""
    logits = own(X)
    mask = logits.sample(generator_of_step(0, 0, CPU))
    upsampling = noise_mask.SmoothUpsampling(own.grid, (8, 8), 3, 1.0)
    lse = log_sum_density(logits.log_density(mask)).mean()
    if constant_lse:
        lse = lse.detach()
    (lse * F.cross_entropy(model(X * upsampling(mask)), Y)).backward()


def test_the_docstring_runs() -> None:
    assert doctest.testmod(noise_mask).failed == 0


def test_a_step_is_the_published_product() -> None:
    method, model, other, own = method_of(), classifier(), classifier(), policy()
    found = gradients(method, model)
    published(other, own)
    for one, parameter in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    expected = [p.grad for p in own.parameters()]
    for one, two in zip(policy_gradients(method), expected, strict=True):
        torch.testing.assert_close(one, two)
    assert max(g.abs().max() for g in policy_gradients(method)) > 1e-5


def test_no_gradient_comes_through_the_mask() -> None:
    own = policy()
    published(classifier(), own, constant_lse=True)
    assert all(p.grad is None for p in own.parameters())


def test_flat_masks_scale_the_classifiers_gradient_by_log_cells() -> None:
    """Beta(1, 1) everywhere: bases and heads of zero."""
    scaled, plain = (method_of(loss_scale=scale) for scale in ("code", "none"))
    for method in (scaled, plain):
        for name, tensor in method.policy.state_dict().items():
            if name.startswith("base_") or name.rsplit(".", 1)[0] in ("alpha.6", "beta.6"):
                tensor.zero_()
    ours, theirs = gradients(scaled, classifier()), gradients(plain, classifier())
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, flat_loss_scale(4) * two)


def test_normalised_divides_by_log_cells() -> None:
    ours, theirs = (
        gradients(method_of(loss_scale=s), classifier()) for s in ("normalised", "code")
    )
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one * flat_loss_scale(4), two)


def test_masks_of_ones_are_plain_training() -> None:
    """α/β → ∞: nothing is masked any more, and training is that without masks."""
    method = method_of(loss_scale="none", learns=False)
    method.policy.base_alpha.fill_(20.0)
    method.policy.base_beta.fill_(-5.0)
    for one, two in zip(
        gradients(method, classifier()), gradients(Method(), classifier()), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_one_cell_is_reinforce_with_the_mean_cost() -> None:
    """The log of a sum of one density is that log density."""
    code, textbook = (method_of(1, objective=o, loss_scale="none") for o in ("code", "reinforce"))
    gradients(code, classifier())
    model = classifier()
    textbook.attach(model)
    mean = lambda x, labels: F.cross_entropy(model(x), labels).expand(len(x))  # noqa: E731
    textbook._costs = mean  # type: ignore[method-assign, assignment]
    textbook.backward(lambda b: b[0].sum(), (X, Y), Tensor.backward)
    for one, two in zip(policy_gradients(code), policy_gradients(textbook), strict=True):
        torch.testing.assert_close(one, two)


def test_reinforce_credits_each_image() -> None:
    own, model, method = policy(), classifier(), method_of(objective="reinforce")
    gradients(method, model)
    logits = own(X)
    mask = logits.sample(generator_of_step(0, 0, CPU))
    pictures = noise_mask.SmoothUpsampling(4, (8, 8), 3, 1.0)(mask)
    costs = F.cross_entropy(classifier()(X * pictures), Y, reduction="none").detach()
    (costs * logits.log_density(mask).sum(1)).mean().backward()
    for one, parameter in zip(policy_gradients(method), own.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_a_baseline_of_the_first_batch_is_its_mean() -> None:
    method = method_of(objective="reinforce_baseline")
    costs = torch.tensor([1.0, 3.0])
    assert method._advantages(costs).tolist() == [-1.0, 1.0]
    assert method._advantages(costs + 2).tolist() == [1.0, 3.0]


def test_bases_approach_a_constant_head_and_count_from_the_next_step() -> None:
    own = policy()
    for head in (own.alpha, own.beta):
        nn.init.zeros_(head.get_parameter("6.weight"))
        nn.init.constant_(head.get_parameter("6.bias"), 0.7)
    start = own.base_alpha.clone()
    for step in range(5):
        base = 0.7 + (start - 0.7) * 0.99**step
        logits = own(X)
        torch.testing.assert_close(logits.log_alpha, (0.9 * base + 0.07).expand(12, -1))
    torch.testing.assert_close(own.base_alpha, 0.7 + (start - 0.7) * 0.99**5)


def test_a_frozen_policy_keeps_its_weights_while_bases_move() -> None:
    method, model = method_of(learns=False), classifier()
    before = copy.deepcopy(method.policy.state_dict())
    method.attach(model)
    method.optimizer(model, sgd)
    gradients(method, model)
    method.before_step(model)
    changed = {n for n, t in method.policy.state_dict().items() if not torch.equal(t, before[n])}
    assert {"base_alpha", "base_beta"} <= changed
    assert not changed & {name for name, _ in method.policy.named_parameters()}
    assert method.policy.training


def test_bases_alone_run_no_policy() -> None:
    method = method_of(source="bases")
    before = copy.deepcopy(method.policy.state_dict())
    gradients(method, classifier())
    assert all(torch.equal(t, before[n]) for n, t in method.policy.state_dict().items())
    assert not method.learns


def test_the_policy_learns_where_images_are_to_be_dimmed() -> None:
    """A cost that is the masks' mean on one half of the images, and minus it on the other."""
    method = NoiseMask(
        policy(2, mix=1.0), 1, 1.0, "reinforce_baseline", policy_rate=4.0, loss_scale="none"
    )
    sign = torch.where(Y.bool(), 1.0, -1.0)
    x = sign[:, None, None, None].expand(12, 1, 8, 8).contiguous()

    class Cost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

    model = Cost()
    method.attach(model)
    method.optimizer(model, sgd)

    def costs(masked: Tensor, *_: Tensor) -> Tensor:
        return masked.mean((1, 2, 3)) + 0 * model.one

    method._costs = costs  # type: ignore[method-assign, assignment]
    for _ in range(30):
        method.backward(lambda b: b[0].mean(), (x, Y), Tensor.backward)
        method.before_step(model)
    logits = method.policy(x)
    means = torch.sigmoid(logits.log_alpha - logits.log_beta).mean(1)
    assert means[sign < 0].mean() > means[sign > 0].mean() + 0.1


def test_the_policys_rate_falls_by_a_cosine_an_epoch() -> None:
    method, model = method_of(epochs=4, policy_rate=0.1), classifier()
    method.optimizer(model, sgd)
    optimizer = method.policy_optimizer
    assert optimizer is not None
    rates = []
    for epoch in range(4):
        method.start_epoch(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)])


def test_what_is_measured_is_what_was_drawn() -> None:
    method = method_of(source="bases")
    method.policy.base_alpha.zero_()
    method.policy.base_beta.zero_()
    gradients(method, classifier())
    found = method.metrics()
    assert found["mask/lse"] == pytest.approx(flat_loss_scale(4))
    assert found["mask/base_spread"] == 0
    mask = method.policy.bases(12).sample(generator_of_step(0, 0, CPU))
    pictures = noise_mask.SmoothUpsampling(4, (8, 8), 3, 1.0)(mask)
    assert found["mask/mean"] == pytest.approx(pictures.mean().item())
    assert found["mask/std"] == pytest.approx(pictures.std(0, correction=0).mean().item())


def test_state_makes_another_one_go_on_alike() -> None:
    def trained(steps: int, method: NoiseMask, model: nn.Module) -> None:
        optimizer = sgd(model.parameters())
        for _ in range(steps):
            optimizer.zero_grad()
            method.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), (X, Y), Tensor.backward)
            method.before_step(model)
            optimizer.step()

    one, model = method_of(objective="reinforce_baseline"), classifier()
    one.attach(model)
    one.optimizer(model, sgd)
    trained(2, one, model)
    state, weights = copy.deepcopy(one.state_dict()), copy.deepcopy(model.state_dict())
    trained(1, one, model)
    two, other = NoiseMask(policy(), 3, 1.0, "reinforce_baseline"), classifier()
    two.attach(other)
    two.optimizer(other, sgd)
    two.load_state_dict(state)
    other.load_state_dict(weights)
    trained(1, two, other)
    assert one.metrics() == two.metrics()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("knobs", "batch", "complaint"),
    [
        ({}, (torch.randn(4, 9), torch.zeros(4, dtype=torch.long)), "masks images"),
        ({"objective": "reinforce"}, (X, torch.randn(12)), "objective=code"),
        ({"base": -9.0}, (X, Y), "would climb"),
    ],
)
def test_what_cannot_work_is_one_line(knobs: dict[str, Any], batch: Any, complaint: str) -> None:
    base = knobs.pop("base", None)
    method, model = method_of(grid=1, **knobs), classifier()
    if base is not None:  # densities far below one
        method.policy.base_alpha.fill_(base)
        method.policy.base_beta.fill_(base)
    method.attach(model)
    with pytest.raises(UserError, match=complaint) as error:
        method.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), batch, Tensor.backward)
    assert len(str(error.value).splitlines()) == 1


def test_a_policy_needs_a_head_to_replace() -> None:
    with pytest.raises(UserError, match="fc"):
        MaskPolicy(nn.Sequential(nn.Flatten()))
    with pytest.raises(UserError, match="MaskPolicy"):
        NoiseMask(nn.Identity())


# -- Controls ------------------------------------------------------------------------------------


def test_a_loss_scale_is_another_rate_and_decay() -> None:
    """By SGD c on the loss at (lr, decay) is (c lr, decay / c), step for step."""
    ends = []
    for scale, lr, decay in ((4.0, 0.02, 0.1), (1.0, 0.08, 0.025)):
        model, method = classifier(), InputNoise(loss_scale=scale)
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=decay)
        for _ in range(4):
            optimizer.zero_grad()
            gradients(method, model)
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_noises_by_name() -> None:
    x = torch.ones(200, 2, 8, 8)
    assert torch.equal(InputNoise("none").disturbed(x), x)
    assert torch.equal(InputNoise("constant", 0.5).disturbed(x), x / 2)
    noise = InputNoise("gaussian", 0.5).disturbed(x) - x
    assert noise.std().item() == pytest.approx(0.5, abs=0.01)
    cut = InputNoise("cutout", 0.5).disturbed(x)
    zeros = (cut == 0).all(1).flatten(1).sum(1)
    assert zeros.max() == 16  # a square of four pixels, cut off at the border
    assert zeros.min() < 16
    assert ((cut == 0) | (cut == 1)).all()


def test_each_step_draws_anew() -> None:
    method = InputNoise("gaussian")
    first = method.disturbed(X)
    assert torch.equal(method.disturbed(X), first)
    method.load_state_dict({"step": 1})
    assert not torch.equal(method.disturbed(X), first)
    assert method.state_dict() == {"step": 1}


@pytest.mark.parametrize(
    ("noise", "x", "complaint"),
    [("gaussian", torch.zeros(2, 3, dtype=torch.long), "tokens"), ("cutout", X[:, 0, 0], "images")],
)
def test_noise_for_other_inputs_is_refused(noise: Any, x: Tensor, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        InputNoise(noise).disturbed(x)
