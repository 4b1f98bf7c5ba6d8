"""The agent: DrQ-v2's actor and critics, DrM's value and dormant ratio, MENTOR's perturbation.

Shape suffixes: B samples, K stacked frames, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.internals import foreach_lerp_
from repro.knobs import (
    Count,
    Fraction,
    Inside,
    Natural,
    NonNegative,
    Positive,
    Probability,
    checked,
)
from repro.methods.mentor.dormant import (
    Layers,
    dormant_ratio,
    exploitation_weight,
    exploration_noise,
    kept_share,
    recorded_layers,
)
from repro.methods.mentor.experts import TopKMoE
from repro.methods.mentor.networks import (
    Actor,
    Critic,
    Encoder,
    Value,
    clipped_noise,
    critic_loss,
    expectile_loss,
    random_shift,
)
from repro.methods.mentor.perturbation import Rule, TopSet, perturb, perturbed_weights
from repro.methods.mentor.replay import Transitions


@checked
@dataclass(frozen=True)
class Exploration:
    """σ of the noise on actions, while acting, in the target and in the actor's loss.

    Attributes:
        rule: ``linear`` from ``start`` to ``end`` over so many ``steps``; ``dormant`` is σ(β);
            ``larger`` the larger of σ(β) and a linear one that begins when the agent awakes.
        start: of the linear schedule.
        end: of the linear schedule.
        steps: of the agent, of the linear schedule.
        most: σ_max of σ(β).
        awake: β below which the agent is awake.
        asleep: the agent does not awake before this step.
    """

    rule: Literal["linear", "dormant", "larger"] = "dormant"
    start: NonNegative = 1.0
    end: NonNegative = 0.1
    steps: Count = 500_000
    most: NonNegative = 0.8
    awake: Probability = 0.2
    asleep: Natural = 2000

    def sigma(self, step: int, beta: float, awoke: int | None) -> float:
        """σ at a step of the agent, which awoke at an earlier one or is still asleep."""
        by_beta = exploration_noise(beta, self.most)
        if self.rule == "dormant":
            return by_beta
        since = step if self.rule == "linear" else 0 if awoke is None else step - awoke
        linear = self.start + (self.end - self.start) * min(1.0, since / self.steps)
        return linear if self.rule == "linear" else max(by_beta, linear)


@checked
@dataclass(frozen=True)
class Mixing:
    """λ: how much of the target is the exploitation value V.

    Attributes:
        rule: ``none`` has no V; ``constant`` is ``most``; ``dormant`` is λ(β).
        most: λ_max.
        expectile: of V's regression on the critic's values.
    """

    rule: Literal["none", "constant", "dormant"] = "dormant"
    most: Probability = 0.6
    expectile: Inside = 0.9

    def weight(self, beta: float) -> float:
        """λ."""
        if self.rule == "none":
            return 0.0
        return self.most if self.rule == "constant" else exploitation_weight(beta, self.most)


@checked
@dataclass(frozen=True)
class Perturbing:
    """When weights are perturbed, and how much is left of them.

    Attributes:
        rule: see `repro.methods.mentor.perturbation.candidate`.
        interval: updates between two perturbations.
        alpha: share of the weights that is kept; None for ``clip(1 − rate · β, least, most)``.
        rate: of that rule.
        least: of that rule.
        most: of that rule.
        members: of the set of agents that candidates are drawn from.
    """

    rule: Rule = "top"
    interval: Count = 10_000
    alpha: Probability | None = None
    rate: NonNegative = 2.0
    least: Probability = 0.2
    most: Probability = 0.9
    members: Count = 10

    def kept(self, beta: float) -> float:
        """α."""
        if self.rule == "reset":
            return 1.0
        if self.alpha is not None:
            return self.alpha
        return kept_share(beta, self.rate, self.least, self.most)


class Agent(nn.Module):
    """Learns from transitions of pictures; one optimizer serves all networks.

    Args:
        shape: (channels, height, width) of an observation, all its frames together.
        actions: A.
        joints: readings beside the picture.
        channels: of the encoder.
        strides: of the encoder.
        trunk: width that every network reduces features to.
        width: of hidden layers.
        hidden: the actor's second layer: ``mlp``, ``wide_mlp`` or ``moe``.
        moe: arguments of `TopKMoE`.
        gamma: discount.
        polyak: rate of the target critic.
        noise_clip: of the noise in the target and in the actor's loss.
        shift: pixels of the random shift.
        exploration: arguments of `Exploration`.
        mixing: arguments of `Mixing`.
        perturbing: arguments of `Perturbing`.
        dormant_threshold: see `dormant_ratio`.
        dormant_layers: likewise.
        auxiliary: weight of the mixture's auxiliary loss.
        actor_clip: largest norm of the actor's gradient; None: any.
        critic_dropout: in the critic's hidden layers.
        critic_norm: layer norms in them.
    """

    @checked
    def __init__(
        self,
        shape: Sequence[int],
        actions: Count,
        joints: Natural = 0,
        channels: Count = 32,
        strides: Sequence[Count] = (2, 1, 1, 1),
        trunk: Count = 50,
        width: Count = 1024,
        hidden: Literal["mlp", "wide_mlp", "moe"] = "moe",
        moe: Mapping[str, Any] | None = None,
        gamma: Probability = 0.99,
        polyak: Probability = 0.01,
        noise_clip: Positive = 0.3,
        shift: Natural = 4,
        exploration: Mapping[str, Any] | None = None,
        mixing: Mapping[str, Any] | None = None,
        perturbing: Mapping[str, Any] | None = None,
        dormant_threshold: NonNegative = 0.025,
        dormant_layers: Layers = "all",
        auxiliary: NonNegative = 0.002,
        actor_clip: Positive | None = None,
        critic_dropout: Fraction = 0.0,
        critic_norm: bool = False,
    ) -> None:
        super().__init__()
        self.gamma, self.polyak, self.noise_clip, self.shift = gamma, polyak, noise_clip, shift
        self.exploration = Exploration(**(exploration or {}))
        self.mixing, self.perturbing = Mixing(**(mixing or {})), Perturbing(**(perturbing or {}))
        self.dormant_threshold = dormant_threshold
        self.auxiliary, self.actor_clip = auxiliary, actor_clip
        self.encoder = Encoder(shape, channels, strides)
        features = self.encoder.features
        self.actor = Actor(features, joints, actions, trunk, width, hidden, moe)
        self.critic = Critic(features, joints, actions, trunk, width, critic_dropout, critic_norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        has_value = self.mixing.rule != "none"
        self.value = Value(features, joints, trunk, width) if has_value else None
        self.beta, self.awoke, self.updates = 1.0, -1, 0  # −1: asleep
        # Lists that every update needs: walking over the modules takes as long as a small network.
        self.shares: dict[str, list[nn.Parameter]] = {
            "critic": [*self.encoder.parameters(), *self.critic.parameters()],
            "actor": list(self.actor.parameters()),
            "value": list(self.value.parameters()) if self.value else [],
        }
        self.averages: list[list[Tensor]] = [
            [*each.parameters()] for each in (self.target, self.critic)
        ]
        self.recorded = list(recorded_layers(self.actor, dormant_layers))
        keep: Literal["best", "latest"] = "latest" if self.perturbing.rule == "recent" else "best"
        self.top = TopSet(self.perturbing.members, keep)

    # -- Acting -----------------------------------------------------------------------------------

    def features(self, pixels: Tensor, joints: Tensor) -> Tensor:
        """What the networks see of observations (B, C, H, W) and readings (B, J)."""
        return torch.cat([self.encoder(pixels), joints], 1)

    def sigma(self, step: int) -> float:
        """The exploration noise at a step of the agent."""
        return self.exploration.sigma(step, self.beta, self.awoke if self.awoke >= 0 else None)

    @torch.no_grad()
    def act(self, pixels: Tensor, joints: Tensor, sigma: float = 0.0) -> Tensor:
        """Actions (B, A), in evaluation mode; with noise only where σ is positive."""
        was_training = self.actor.training
        self.actor.eval()
        action: Tensor = self.actor(self.features(pixels, joints))
        self.actor.train(was_training)
        return clipped_noise(action, sigma) if sigma else action

    # -- Learning ---------------------------------------------------------------------------------

    def update(
        self,
        optimizer: Optimizer,
        batch: Transitions,
        joints: tuple[Tensor, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """One update of all networks, after a perturbation where one is due.

        Args:
            optimizer: over all parameters of the agent; each network's share of it steps alone.
            batch: transitions whose frames are observations (B, C, H, W).
            joints: (B, J) of both observations.
            step: of the agent.

        Returns:
            The losses.
        """
        self.updates += 1
        if self.perturbing.rule != "none" and self.updates % self.perturbing.interval == 0:
            self.perturb(optimizer)
        x = self.features(random_shift(batch.state, self.shift), joints[0])
        with torch.no_grad():
            x_next = self.features(random_shift(batch.next_state, self.shift), joints[1])
        self._measure_dormancy(x, step)
        sigma, weight = self.sigma(step), self.mixing.weight(self.beta)
        losses: dict[str, Tensor] = {}
        if self.value is not None:
            with torch.no_grad():
                value = self.critic(x, batch.action).amin(0)
            losses["value"] = expectile_loss(self.value(x.detach()), value, self.mixing.expectile)
            self._descend(optimizer, losses["value"], "value")
        target = self.target_value(x_next, batch.reward, batch.discount, sigma, weight)
        losses["critic"] = critic_loss(self.critic(x, batch.action), target)
        self._descend(optimizer, losses["critic"], "critic")
        losses["actor"] = self.actor_loss(x.detach(), sigma)
        self._descend(optimizer, losses["actor"], "actor", self.actor_clip)
        with torch.no_grad():
            foreach_lerp_(self.averages[0], self.averages[1], self.polyak)
        losses = {name: loss.detach() for name, loss in losses.items()}
        return losses | {"loss": torch.stack(list(losses.values())).sum()}

    @torch.no_grad()
    def target_value(
        self, x_next: Tensor, reward: Tensor, discount: Tensor, sigma: float, weight: float
    ) -> Tensor:
        """``r + γⁿ [λ V(s') + (1 − λ) min(Q̄₁, Q̄₂)(s', a')]``, (B,)."""
        action = clipped_noise(self.actor(x_next), sigma, self.noise_clip)
        following: Tensor = self.target(x_next, action).amin(0)
        if self.value is not None:
            following = weight * self.value(x_next) + (1 - weight) * following
        return reward + discount * following

    def actor_loss(self, x: Tensor, sigma: float) -> Tensor:
        """``−mean min Q(s, μ(s) + ε)``, and the mixture's auxiliary loss."""
        action = clipped_noise(self.actor(x), sigma, self.noise_clip)
        loss: Tensor = -self.critic(x, action).amin(0).mean()
        if self.auxiliary and isinstance(self.actor.hidden, TopKMoE):
            loss = loss + self.auxiliary * self.actor.hidden.auxiliary_loss()
        return loss

    def _measure_dormancy(self, x: Tensor, step: int) -> None:
        """Sets β, in training mode as published."""
        self.beta = dormant_ratio(self.recorded, lambda: self.actor(x), self.dormant_threshold)
        ready = step >= self.exploration.asleep and self.beta < self.exploration.awake
        if self.awoke < 0 and ready:
            self.awoke = step

    def _descend(
        self, optimizer: Optimizer, loss: Tensor, share: str, max_norm: float | None = None
    ) -> None:
        """Steps the optimizer with gradients in this share of the weights: it skips all others."""
        weights = self.shares[share]
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        if max_norm is not None:
            nn.utils.clip_grad_norm_(weights, max_norm)
        optimizer.step()
        for weight in weights:
            weight.grad = None

    # -- Perturbation -----------------------------------------------------------------------------

    def moved(self) -> list[nn.Parameter]:
        """The weights that perturbations mix: of all networks but the encoder, which has none."""
        networks = [self.actor, self.critic, self.target]
        return perturbed_weights([*networks, *([self.value] if self.value else [])])

    def offer(self, score: float) -> None:
        """Offers the agent as it is to the set of the best, by the return of its last episode."""
        if self.perturbing.rule in ("top", "recent", "mean"):
            self.top.offer(score, self.moved())

    def perturb(self, optimizer: Optimizer) -> None:
        """Mixes the weights with a candidate, and forgets the optimizer's state."""
        rule = self.perturbing.rule
        perturb(self.moved(), self.perturbing.kept(self.beta), rule, self.top)
        optimizer.state.clear()

    # -- State ------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """What a checkpoint needs besides the weights."""
        names = ("beta", "awoke", "updates")
        return {name: getattr(self, name) for name in names} | {"top": self.top.state_dict()}

    def recall(self, state: Mapping[str, Any]) -> None:
        """Takes over a `memory`."""
        self.top.load_state_dict(state["top"])
        self.beta, self.awoke, self.updates = state["beta"], state["awoke"], state["updates"]
