"""What the world, the mixture and an update cost, against the same written plainly."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from timing import faster
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.worlds.corner_reacher import CornerReacher
from repro.methods.mentor import Agent, TopKMoE, Transitions

ENVS, STEPS = 32, 30


def test_steps_of_the_reacher() -> None:
    """Acting and drawing in copies side by side, against one copy after another."""
    world, action = CornerReacher(), torch.rand(ENVS, 2)
    state = world.reset(ENVS)

    def together() -> None:
        after = state
        for _ in range(STEPS):
            after = world.step(after, action).state
            world.see(after[:, None])

    def alone() -> None:
        for each in range(ENVS):
            one = slice(each, each + 1)
            world.see(world.step(state[one], action[one]).state[:, None])

    together()
    start = time.process_time()  # of this one thread, whatever else the machine does
    together()
    rate = ENVS * STEPS / (time.process_time() - start)
    print(f"\n{rate:.0f} simulated and drawn steps a second of one core")
    assert rate >= 20_000
    faster("30 steps of 32 reachers, against one step of each alone", together, alone, 0.5)


class PlainMoE(nn.Module):
    """Expert after expert, as published."""

    def __init__(self, moe: TopKMoE) -> None:
        super().__init__()
        self.gate, self.top_k = copy.deepcopy(moe.gate), moe.top_k
        first, second = moe.experts[0], moe.experts[2]
        assert isinstance(first.weight, Tensor)
        assert isinstance(second.weight, Tensor)
        self.experts = nn.ModuleList()
        for each in range(len(first.weight)):
            parts = [nn.Linear(w.shape[2], w.shape[1]) for w in (first.weight, second.weight)]
            for part, stack in zip(parts, (first, second), strict=True):
                part.weight.data.copy_(stack.weight[each])  # type: ignore[index]
                part.bias.data.copy_(stack.bias[each])  # type: ignore[index]
            self.experts.append(nn.Sequential(parts[0], nn.ReLU(), parts[1]))

    def forward(self, x: Tensor) -> Tensor:
        kept, chosen = self.gate(x).softmax(1).topk(self.top_k, 1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        picked = outputs.gather(1, chosen[..., None].expand(-1, -1, outputs.shape[2]))
        return (kept[..., None] * picked).sum(1) / (kept.sum(1, keepdim=True) + 1e-9)


def mixtures(width: int, batch: int, factor: float, **sizes: Any) -> None:
    moe, x = TopKMoE(width, width, **sizes).eval(), torch.randn(batch, width)
    plain = PlainMoE(moe).eval()
    torch.testing.assert_close(moe(x), plain(x), atol=1e-5, rtol=1e-4)
    faster(
        f"a mixture of {len(plain.experts)} experts and its gradient, against one after another",
        lambda: moe(x).square().sum().backward(),
        lambda: plain(x).square().sum().backward(),
        factor,
        3,
    )


def test_the_published_mixture() -> None:
    """Large products take the time, and those are the same."""
    mixtures(1024, 256, 0.9)


def test_the_small_mixture() -> None:
    mixtures(128, 128, 1.2, experts=8, top_k=2, hidden=32, gate_hidden=32)


def test_an_update() -> None:
    """All that an agent may do, switched off, against DrQ-v2's update written plainly."""
    off = {"rule": "none"}
    knobs: dict[str, Any] = {"channels": 16, "strides": [2, 2], "trunk": 32, "width": 128}
    agent = Agent([3, 16, 16], 2, **knobs, hidden="mlp", shift=0, mixing=off, perturbing=off)
    plain = copy.deepcopy(agent)
    trained = [each for each in agent.parameters() if each.requires_grad]
    one = torch.optim.Adam(trained, lr=1e-4)
    parts = {name: getattr(plain, name) for name in ("encoder", "critic", "actor")}
    own = {name: torch.optim.Adam(each.parameters(), lr=1e-4) for name, each in parts.items()}
    pixels = torch.randint(256, (2, 128, 3, 16, 16), dtype=torch.uint8)
    batch = Transitions(pixels[0], torch.rand(128, 2), torch.rand(128), torch.ones(128), pixels[1])
    no_joints = (torch.zeros(128, 0), torch.zeros(128, 0))

    def by_hand() -> None:
        x = plain.encoder(pixels[0])
        with torch.no_grad():
            x_next = plain.encoder(pixels[1])
            score = F.relu(plain.actor.policy[0](plain.actor.trunk(x))).abs().mean(0)
            dormant = (score < 0.025 * score.mean()).float().mean()
            mean = plain.actor(x_next)
            action = (mean + (0.1 * torch.randn_like(mean)).clamp(-0.3, 0.3)).clamp(-1, 1)
            y = batch.reward + plain.target(x_next, action).amin(0)
        q1, q2 = plain.critic(x, batch.action)
        for name in ("encoder", "critic"):
            own[name].zero_grad()
        (F.mse_loss(q1, y) + F.mse_loss(q2, y)).backward()
        own["encoder"].step()
        own["critic"].step()
        mean = plain.actor(x.detach())
        action = (mean + (0.1 * torch.randn_like(mean)).clamp(-0.3, 0.3)).clamp(-1, 1)
        own["actor"].zero_grad()
        (-plain.critic(x.detach(), action).amin(0).mean() + 0 * dormant).backward()
        own["actor"].step()
        with torch.no_grad():
            pairs = zip(plain.target.parameters(), plain.critic.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, 0.01)

    def several(step: Any) -> None:
        for _ in range(20):
            step()

    faster(
        "20 updates with dormancy, against DrQ-v2's by hand",
        lambda: several(lambda: agent.update(one, batch, no_joints, 9999)),
        lambda: several(by_hand),
        0.87,
    )
