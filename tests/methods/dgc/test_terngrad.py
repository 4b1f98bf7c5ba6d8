"""TernGrad: three values, unbiased, counted at two bits."""

import pytest
import torch

from repro.errors import UserError
from repro.methods.dgc import TernGrad


def ternary(grads, step=0, **knobs):
    rows, numel = grads.shape
    method = TernGrad(workers=rows, **knobs)
    model = torch.nn.Linear(numel, 1, bias=False).double()
    method.attach(model)
    method.step = step
    buffer = grads.clone()
    method.cluster.sum_ = lambda tensors: None  # type: ignore[method-assign]  # look at the messages alone
    method.exchange([0], [buffer])
    return buffer, method


def test_messages_have_three_values():
    grads = torch.randn(3, 500, dtype=torch.float64)
    messages, method = ternary(grads, clip_sigmas=None)
    scale = grads.abs().max()
    assert set(messages.unique().tolist()) == {-scale.item(), 0.0, scale.item()}
    assert ((messages == 0) | (messages.sign() == grads.sign())).all()
    method.end_step()
    assert method.metrics()["comm/bytes_per_step"] == 500 / 4 + 4
    assert method.metrics()["comm/density"] == 1


def test_messages_are_unbiased_for_the_gradient():
    grads = torch.randn(2, 30, dtype=torch.float64)
    draws = 4000
    total = sum(ternary(grads, step, clip_sigmas=None)[0] for step in range(draws))
    scale = grads.abs().max()
    deviation = (grads.abs() * (scale - grads.abs()) / draws).sqrt()
    assert ((total / draws - grads).abs() <= 5 * deviation + 1e-12).all()


def test_clipping_and_the_choice_of_scaler():
    grads = torch.zeros(2, 100, dtype=torch.float64)
    grads[0, 0], grads[1, 0] = 1.0, -10.0
    own, _ = ternary(grads, clip_sigmas=None, share_scaler=False)
    assert own[:, 0].tolist() == [1.0, -10.0]  # P(b = 1) = 1 at the largest entry
    clipped, _ = ternary(grads, clip_sigmas=2.5, share_scaler=False)
    sigma = grads.std(dim=1, correction=0)
    torch.testing.assert_close(clipped[:, 0], 2.5 * sigma * torch.tensor([1.0, -1.0]))
    shared, _ = ternary(grads, clip_sigmas=None, share_scaler=True)
    assert shared[0, 0].item() in (0.0, 10.0)
    assert not ternary(torch.zeros(2, 4, dtype=torch.float64))[0].any()


def test_bad_threshold_is_refused():
    with pytest.raises(UserError, match="clip_sigmas"):
        TernGrad(clip_sigmas=0)
