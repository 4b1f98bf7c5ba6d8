"""MAPPO whose actor follows a fixed, random or learned Bayesian network over actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from repro.errors import UserError
from repro.knobs import Count, Known, NonNegative, Positive, Probability, checked
from repro.methods.bn_marl.actor import BayesNetActor
from repro.methods.bn_marl.graphs import FIXED, fixed_graph, open_ratio
from repro.methods.bn_marl.layers import Linear, Trunk, ValueNorm, clip_each
from repro.methods.bn_marl.sampler import DagSample, DagSampler

GRAPHS = (*FIXED, "random", "learned")
LARGEST_EXACT = 5  # agents up to which a policy's value is computed and not sampled


@dataclass
class Annealing:
    """The pull on the graph's density: ``weight · |open_ratio − target|`` in the policy loss.

    Attributes:
        enabled: False leaves the density alone.
        start: part of training until which the target is 1.
        end: part at which it has reached 0, in ``steps`` equal stairs.
        weight: until ``end``.
        final_weight: from ``full`` on; linear in between.
        full: part from which the final weight pulls.
        steps: number of stairs.
    """

    enabled: bool = False
    start: float = 0.4
    end: float = 0.7
    weight: float = 0.1
    final_weight: float = 1.0
    full: float = 0.736
    steps: int = 40

    def __post_init__(self) -> None:
        """Checks the borders.

        Raises:
            UserError: they are not in order.
        """
        if not 0 <= self.start < self.end <= self.full <= 1:
            raise UserError(
                "bn_marl: annealing has 0 <= start < end <= full <= 1, "
                f"not start={self.start}, end={self.end}, full={self.full}."
            )

    def target(self, done: float) -> float:
        """η after a part ``done`` of training."""
        part = min(1.0, max(0.0, (done - self.start) / (self.end - self.start)))
        return 1 - int(part * self.steps + 1e-9) / self.steps

    def pull(self, done: float) -> float:
        """α after a part ``done`` of training."""
        if not self.enabled:
            return 0.0
        late = max(0.0, done - self.end) / max(1e-9, self.full - self.end)
        return self.weight + min(1.0, late) * (self.final_weight - self.weight)


@dataclass
class Rollout:
    """One batch of episodes, time and episodes in one axis B: fields are (R, B, ...).

    ``returns`` are in units of the reward, ``values`` what the critic put out when the batch was
    played: the clip of the value loss is centred on them.
    """

    observations: Tensor
    actions: Tensor
    graph: Tensor
    dag: DagSample | None
    advantages: Tensor
    returns: Tensor
    values: Tensor
    log_probs: Tensor
    score: Tensor  # (R,): mean undiscounted return of an episode


class BayesNetPPO(nn.Module):
    """Trains R independent Bayesian-network policies side by side with PPO.

    Args:
        world: an environment, see `repro.methods.bn_marl.environments`.
        graph: ``none`` (MAPPO), ``full`` (auto-regressive), ``line``, ``line_published``,
            ``random`` (order of the agents' numbers, each edge with probability ``density``), or
            ``learned`` (`DagSampler` on all observations).
        updates: rollouts in the whole training; schedules refer to it.
        replicas: R.
        envs: episodes of a rollout.
        epochs: passes over a rollout, each one whole batch.
        hidden: width of all nets.
        clip: of the probability ratio.
        entropy: weight of the conditionals' mean entropy.
        value_weight: weight of the value loss.
        huber: where the value loss turns linear.
        max_norm: of the actor's and of the critic's gradient; the DAG nets' is not clipped.
        gamma: discount in training.
        gae_lambda: of generalised advantage estimation.
        density: see ``graph``.
        share_observations: see `BayesNetActor`; None for what the paper does in this world.
        dag: arguments of `DagSampler`.
        annealing: arguments of `Annealing`.
        resample_in_update: draw a fresh graph in each epoch, as published, which makes the ratio
            compare different policies; False keeps the graph that acted.
        resimulate_parents: let children see actions drawn anew from the current policy, as
            published for the small games; False shows them those that were played.
        eval_graphs: graphs per state (or episodes, for large games) in `measure`.

    Raises:
        UserError: a knob is out of its range.
    """

    progress: Tensor

    @checked
    def __init__(
        self,
        world: Any,
        graph: Annotated[str, Known(GRAPHS)] = "learned",
        updates: Count = 80,
        replicas: Count = 1,
        envs: Count = 32,
        epochs: Count = 5,
        hidden: Count = 64,
        clip: Positive = 0.2,
        entropy: NonNegative = 0.01,
        value_weight: NonNegative = 1.0,
        huber: Positive = 10.0,
        max_norm: Positive = 10.0,
        gamma: Probability = 0.99,
        gae_lambda: Probability = 0.95,
        density: Probability = 0.5,
        share_observations: bool | None = None,
        dag: dict[str, Any] | None = None,
        annealing: dict[str, Any] | None = None,
        resample_in_update: bool = False,
        resimulate_parents: bool = False,
        eval_graphs: Count = 64,
    ) -> None:
        super().__init__()
        self.annealing = Annealing(**(annealing or {}))
        if self.annealing.enabled and graph != "learned":
            raise UserError(f"bn_marl: only a learned graph can be annealed, not graph={graph}.")
        n, size = world.agents, world.observation
        context = size if world.shared else n * size  # the critic's and the sampler's input
        self.world, self.graph, self.updates, self.replicas = world, graph, updates, replicas
        self.envs, self.epochs, self.clip, self.entropy = envs, epochs, clip, entropy
        self.value_weight, self.huber, self.max_norm = value_weight, huber, max_norm
        self.gamma, self.gae_lambda, self.density = gamma, gae_lambda, density
        self.resample, self.resimulate = resample_in_update, resimulate_parents
        self.eval_graphs = eval_graphs
        share = world.parents_show if share_observations is None else share_observations
        self.actor = BayesNetActor(replicas, n, size, world.actions, hidden, share)
        self.critic = nn.Sequential(
            Trunk(replicas, context, hidden), Linear(replicas, hidden, 1, gain=1.0)
        )
        self.value_norm = ValueNorm(replicas)
        self.sampler = (
            DagSampler(replicas, context, n, **(dag or {})) if graph == "learned" else None
        )
        fixed = fixed_graph(graph if graph in FIXED else "full", n)
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("progress", torch.zeros((), dtype=torch.int64))

    fixed: Tensor

    @property
    def done(self) -> float:
        """The part of training that is done, in [0, 1]."""
        return min(1.0, int(self.progress) / self.updates)

    def advance(self, optimizer: Optimizer, updates: int = 1) -> dict[str, Tensor]:
        """Plays and learns; returns means over replicas of the last update.

        Args:
            optimizer: over all parameters of this module.
            updates: how many rollouts.
        """
        logged: dict[str, Tensor] = {}
        for _ in range(updates):
            batch = self.rollout()
            for _ in range(self.epochs):
                policy_loss, value_loss, density = self.losses(batch)
                optimizer.zero_grad()
                # Summed over replicas: each gets the gradient that it would get alone.
                (policy_loss + self.value_weight * value_loss).sum().backward()
                clip_each(self.actor.parameters(), self.max_norm)
                clip_each(self.critic.parameters(), self.max_norm)
                optimizer.step()
            self.progress += 1
            logged = {
                "loss": (policy_loss + self.value_weight * value_loss).mean().detach(),
                "return": batch.score.mean(),
                "open_ratio": density.mean().detach(),
            }
        return logged

    def draw(self, context: Tensor) -> tuple[Tensor, DagSample | None]:
        """Graphs (R, B, n, n) for contexts (R, B, C)."""
        if self.sampler is not None:
            sample = self.sampler(context)
            return sample.graph, sample
        G = self.fixed.expand(*context.shape[:2], -1, -1)
        if self.graph == "random":
            G = G * (torch.rand(G.shape, device=G.device) < self.density)
        return G, None

    @torch.no_grad()
    def rollout(self) -> Rollout:
        """Plays one episode in each environment and estimates advantages and returns."""
        world = self.world
        state = world.reset((self.replicas, self.envs), self.fixed.device)
        seen, played, drawn, rewards = [], [], [], []
        for _ in range(world.horizon):
            observations = world.observe(state)
            G, sample = self.draw(observations.flatten(2))
            actions = self.actor.act(observations, G)
            state, reward = world.step(state, actions)
            seen.append(observations)
            played.append(actions)
            drawn.append((G, sample))
            rewards.append(reward)
        last = world.observe(state)
        reward_RTE = torch.stack(rewards, 1)
        observations_RTE = torch.stack(seen, 1)
        raw_RTE = self.value(torch.cat([observations_RTE, last[:, None]], 1).flatten(3))
        values_RTE = self.value_norm.restore(raw_RTE)
        advantages_RTE = gae(reward_RTE, values_RTE, self.gamma, self.gae_lambda)
        returns_RTE = advantages_RTE + values_RTE[:, :-1]
        self.value_norm.update(returns_RTE)
        observations, actions = observations_RTE.flatten(1, 2), _join(played)
        graph = _join([G for G, _ in drawn])
        advantages = advantages_RTE.flatten(1)
        centred = advantages - advantages.mean(1, keepdim=True)
        return Rollout(
            observations=observations,
            actions=actions,
            graph=graph,
            dag=None if self.sampler is None else _join_samples([s for _, s in drawn if s]),
            advantages=centred / (advantages.std(1, keepdim=True) + 1e-5),
            returns=returns_RTE.flatten(1),
            values=raw_RTE[:, :-1].flatten(1),
            log_probs=self.actor.evaluate(observations, actions, graph)[0],
            score=reward_RTE.sum(1).mean(1),
        )

    def value(self, contexts: Tensor) -> Tensor:
        """The critic's normalised values (R, ...) of contexts (R, ..., C)."""
        values: Tensor = self.critic(contexts)
        return values.squeeze(-1)

    def losses(self, batch: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Policy loss, value loss and density of the graphs, each (R,)."""
        context = batch.observations.flatten(2)
        G = batch.graph
        if self.sampler is not None:
            sample = self.sampler(context) if self.resample else batch.dag
            assert sample is not None
            G = self.sampler.relax(context, sample)
        elif self.resample:
            G, _ = self.draw(context)
        parents = self.actor.act(batch.observations, G.detach()) if self.resimulate else None
        log_probs, entropy = self.actor.evaluate(batch.observations, batch.actions, G, parents)
        # One ratio per agent, of its own conditional; all share the team's advantage.
        ratio = (log_probs - batch.log_probs).exp()
        advantage = batch.advantages[..., None]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage).mean((1, 2))
        policy_loss = -surrogate - self.entropy * entropy.mean((1, 2))
        density = open_ratio(G).mean(1)
        pull = self.annealing.pull(self.done)
        if pull:
            policy_loss = policy_loss + pull * (density - self.annealing.target(self.done)).abs()

        value = self.value(context)
        target = self.value_norm.normalise(batch.returns)
        near = batch.values + (value - batch.values).clamp(-self.clip, self.clip)
        value_loss = torch.maximum(self._huber(value, target), self._huber(near, target)).mean(1)
        return policy_loss, value_loss, density

    def _huber(self, value: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(value, target, reduction="none", delta=self.huber)

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """How good the policies are now, over replicas.

        For coordination games of few agents ``poa`` is the exact value of the stochastic joint
        policy over the optimum (of the mixture over graphs, estimated with ``eval_graphs`` graphs
        per state), ``poa_greedy`` that of the heads' most likely actions, ``above`` the share of
        replicas whose greedy policy reaches 0.99. For other worlds ``return`` is the mean return
        of ``eval_graphs`` episodes of greedy heads. ``open_ratio`` is the density of graphs.
        """
        game = getattr(self.world, "game", None)
        if game is None or game.agents > LARGEST_EXACT:
            return self._measure_by_playing()
        soft, hard, density = self.joint_policies()
        best = game.optimum()
        poa, greedy = game.objective(soft) / best, game.objective(hard) / best
        return {
            "poa": poa.mean(),
            "poa_greedy": greedy.mean(),
            "above": (greedy > 0.99).double().mean(),
            "open_ratio": density.mean(),
        }

    @torch.no_grad()
    def joint_policies(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tables (R, S, A) of the stochastic and of the greedy policy, and densities (R,)."""
        game, R, K = self.world.game, self.replicas, self.eval_graphs
        S = A = game.states
        bits = game.bits
        observations = self.world.observe(bits.float()).expand(R, S, -1, -1)
        many = observations.repeat_interleave(K, dim=1)
        G, _ = self.draw(many.flatten(2))
        own = self.actor.own_logits(observations).repeat_interleave(K * A, dim=1)
        actions = bits.repeat(S * K, 1).expand(R, -1, -1)
        logits = self.actor.logits(
            own, many.repeat_interleave(A, 1), actions, G.repeat_interleave(A, 1)
        )
        chosen = actions[..., None]
        soft = logits.double().log_softmax(-1).gather(-1, chosen).sum((-1, -2)).exp()
        hard = (logits.argmax(-1, keepdim=True) == chosen).all(-1).all(-1).double()
        shape = (R, S, K, A)
        return soft.view(shape).mean(2), hard.view(shape).mean(2), open_ratio(G).mean(1)

    def _measure_by_playing(self) -> dict[str, Tensor]:
        world = self.world
        state = world.reset((self.replicas, self.eval_graphs), self.fixed.device)
        total, density = torch.zeros(()), torch.zeros(())
        for _ in range(world.horizon):
            observations = world.observe(state)
            G, _ = self.draw(observations.flatten(2))
            state, reward = world.step(state, self.actor.act(observations, G, greedy=True))
            total = total.to(reward) + reward.mean()
            density = density.to(reward) + open_ratio(G).mean() / world.horizon
        return {"return": total, "open_ratio": density}


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates of episodes that are cut off, not over, at their end.

    Args:
        rewards: (R, T, E).
        values: (R, T + 1, E), that of the last state included.
        gamma: discount.
        lam: λ.

    Returns:
        (R, T, E).
    """
    errors = rewards + gamma * values[:, 1:] - values[:, :-1]
    advantage = torch.zeros_like(errors[:, 0])
    advantages = []
    for error in errors.unbind(1)[::-1]:
        advantage = error + gamma * lam * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1], 1)


def _join(steps: list[Tensor]) -> Tensor:
    """T tensors (R, E, ...) as one (R, T·E, ...)."""
    return torch.stack(steps, 1).flatten(1, 2)


def _join_samples(samples: list[DagSample]) -> DagSample:
    noise = zip(*(sample.noise for sample in samples), strict=True)
    order_noise, edge_noise = (_join(list(each)) for each in noise)
    return DagSample(
        graph=_join([sample.graph for sample in samples]),
        order=_join([sample.order for sample in samples]),
        edges=_join([sample.edges for sample in samples]),
        noise=(order_noise, edge_noise),
    )
