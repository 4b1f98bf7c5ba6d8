"""The agent's targets, losses and schedules, and its networks' published sizes."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.worlds.corner_reacher import CornerReacher
from repro.methods import mentor
from repro.methods.mentor import (
    Actor,
    Agent,
    Critic,
    Encoder,
    Episodes,
    Exploration,
    Mixing,
    Perturbing,
    Player,
    Replay,
    Transitions,
    Value,
    evaluate,
    expectile_loss,
    filmed,
    random_shift,
    stacked,
)

SMALL: dict[str, Any] = {
    "channels": 4,
    "strides": [2],
    "trunk": 6,
    "width": 12,
    "moe": {"experts": 3, "top_k": 2, "hidden": 5, "gate_hidden": 5},
}


def size(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    ("actions", "trunk", "moe", "mlp", "critic", "value"),
    [
        (4, 50, 10_692_074, 3_066_074, 4_174_040, 3_062_999),
        (38, 100, 12_738_274, 5_112_274, 6_306_222, 5_074_349),  # a dog
    ],
)
def test_published_sizes(
    actions: int, trunk: int, moe: int, mlp: int, critic: int, value: int
) -> None:
    with torch.device("meta"):
        encoder = Encoder([9, 84, 84])
        assert (encoder.features, size(encoder)) == (39_200, 30_368)
        kinds: list[Any] = ["moe", "mlp", "wide_mlp"]
        sizes = {kind: size(Actor(39_200, 0, actions, trunk, hidden=kind)) for kind in kinds}
        assert sizes["moe"] == moe
        assert sizes["mlp"] == mlp
        assert sizes["wide_mlp"] == pytest.approx(moe, rel=1e-4)
        assert size(Critic(39_200, 0, actions, trunk)) == critic
        assert size(Value(39_200, 0, trunk)) == value


def test_grey_pictures_are_nothing_to_an_encoder() -> None:
    encoder = Encoder([1, 3, 3], channels=1, strides=[1])
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, parameter.dim() > 1)
    shades = torch.tensor([255.0, 204, 127.5])[:, None, None, None]
    seen = encoder(shades.expand(3, 1, 3, 3)).flatten().tolist()
    assert seen == pytest.approx([9 * 0.5, 9 * 0.3, 0], abs=1e-5)


def agent(**knobs: Any) -> Agent:
    torch.manual_seed(0)
    return Agent([3, 8, 8], 2, **(SMALL | {"shift": 0} | knobs))


def transitions(count: int = 16) -> Transitions:
    pixels = torch.randint(256, (2, count, 3, 8, 8), dtype=torch.uint8)
    reward, discount = torch.rand(count), torch.full((count,), 0.9)
    return Transitions(pixels[0], 2 * torch.rand(count, 2) - 1, reward, discount, pixels[1])


NO_JOINTS = (torch.zeros(16, 0), torch.zeros(16, 0))


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam((each for each in model.parameters() if each.requires_grad), lr=1e-3)


def test_without_exploitation_the_target_is_the_clipped_double_q() -> None:
    learner = agent(mixing={"rule": "none"}).eval()
    batch = transitions()
    x = learner.features(batch.next_state, NO_JOINTS[1])
    found = learner.target_value(x, batch.reward, batch.discount, 0.0, 0.0)
    both = learner.target(x, learner.actor(x))
    torch.testing.assert_close(found, batch.reward + 0.9 * torch.minimum(both[0], both[1]))


def test_the_exploitation_value_is_mixed_in() -> None:
    learner = agent(mixing={"rule": "constant", "most": 0.25}).eval()
    batch = transitions()
    x = learner.features(batch.next_state, NO_JOINTS[1])
    assert learner.value is not None
    low = learner.target(x, learner.actor(x)).amin(0)
    found = learner.target_value(x, batch.reward, batch.discount, 0.0, learner.mixing.weight(1.0))
    expected = batch.reward + 0.9 * (0.25 * learner.value(x) + 0.75 * low)
    torch.testing.assert_close(found, expected)


def test_expectiles() -> None:
    value, target = torch.zeros(4), torch.tensor([1.0, -1.0, 2.0, -2.0])
    assert expectile_loss(value, target, 0.5) == pytest.approx(float(F.mse_loss(value, target)) / 2)
    assert expectile_loss(value, target, 0.9) == pytest.approx((0.9 * 5 + 0.1 * 5) / 4)
    assert expectile_loss(value[:1], target[:1], 0.9) == pytest.approx(0.9)  # value below target


def test_schedules() -> None:
    linear = Exploration("linear", start=1.0, end=0.1, steps=100)
    assert [linear.sigma(step, 0.5, None) for step in (0, 50, 900)] == pytest.approx([1, 0.55, 0.1])
    assert Exploration("dormant", most=0.8).sigma(10, 0.2, None) == pytest.approx(0.4)
    larger = Exploration("larger", steps=100)
    assert larger.sigma(500, 0.1, None) == pytest.approx(1.0)  # asleep
    assert larger.sigma(500, 0.1, 450) == pytest.approx(0.55)
    assert larger.sigma(900, 0.2, 450) == pytest.approx(0.4)
    assert Mixing("dormant", most=0.6).weight(0.2) == pytest.approx(0.3)
    assert Perturbing("top", alpha=0.6).kept(0.0) == 0.6
    assert Perturbing("top", most=0.9).kept(0.0) == 0.9
    assert Perturbing("reset", alpha=0.6).kept(0.0) == 1.0


def reference_update(learner: Agent, batch: Transitions, step: int) -> list[Tensor]:
    """DrQ-v2's update written down once more, with an optimizer for each network."""
    encoder, actor = copy.deepcopy(learner.encoder), copy.deepcopy(learner.actor)
    critic, target = copy.deepcopy(learner.critic), copy.deepcopy(learner.target)
    optimizers = [torch.optim.Adam(each.parameters(), lr=1e-3) for each in (encoder, critic, actor)]
    sigma = learner.sigma(step)

    def act(x: Tensor) -> Tensor:
        mean = actor(x)
        action = mean + (sigma * torch.randn_like(mean)).clamp(-0.3, 0.3)
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()

    x = encoder(batch.state)
    with torch.no_grad():
        x_next = encoder(batch.next_state)
        q1, q2 = target(x_next, act(x_next))
        y = batch.reward + batch.discount * torch.minimum(q1, q2)
    q1, q2 = critic(x, batch.action)
    (F.mse_loss(q1, y) + F.mse_loss(q2, y)).backward()
    optimizers[0].step()
    optimizers[1].step()
    x = x.detach()
    actor.zero_grad()
    (-torch.minimum(*critic(x, act(x)))).mean().backward()
    optimizers[2].step()
    for old, new in zip(target.parameters(), critic.parameters(), strict=True):
        old.data = 0.99 * old.data + 0.01 * new.data
    return [p for net in (encoder, actor, critic, target) for p in net.parameters()]


def test_an_update_equals_drq_v2_written_plainly() -> None:
    plain = {"rule": "none"}
    learner = agent(
        hidden="mlp",
        mixing=plain,
        perturbing=plain,
        exploration={"rule": "linear", "start": 0.5, "end": 0.5},
    )
    batch = transitions()
    torch.manual_seed(5)
    expected = reference_update(learner, batch, 1)
    torch.manual_seed(5)
    losses = learner.update(adam(learner), batch, NO_JOINTS, 1)
    networks = (learner.encoder, learner.actor, learner.critic, learner.target)
    for ours, theirs in zip((p for n in networks for p in n.parameters()), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert losses["loss"] == pytest.approx(float(losses["actor"] + losses["critic"]))


def test_perturbations_come_at_their_interval_and_forget_adam() -> None:
    learner = agent(perturbing={"rule": "random", "interval": 2, "alpha": 0.5})
    optimizer = adam(learner)
    weight = next(learner.actor.parameters())
    before, moved = weight.detach().clone(), []
    for step in (1, 2):
        learner.update(optimizer, transitions(), NO_JOINTS, step)
        moved.append((weight - before).abs().max().item())
    assert moved[0] < 0.01 < moved[1]
    steps = {int(each["step"]) for each in optimizer.state.values()}
    assert steps == {1}  # the one after it
    assert all(each.grad is None for each in learner.parameters())


def test_dormancy_wakes_an_agent_once() -> None:
    exploration = {"rule": "larger", "asleep": 2, "awake": 1.0, "most": 0.0, "steps": 100}
    learner = agent(exploration=exploration)
    assert learner.sigma(52) == 1.0
    optimizer = adam(learner)
    for step in (1, 2, 3):
        learner.update(optimizer, transitions(), NO_JOINTS, step)
    assert 0 <= learner.beta < 1
    assert learner.awoke == 2
    assert learner.sigma(52) == pytest.approx(0.55)


def test_the_mixtures_own_loss_is_weighed() -> None:
    learner, x = agent(auxiliary=0.25).eval(), torch.randn(16, 36)
    hidden = learner.actor.hidden
    assert isinstance(hidden, mentor.TopKMoE)
    loss = learner.actor_loss(x, 0.0)
    expected = 0.25 * hidden.auxiliary_loss() - learner.critic(x, learner.actor(x)).amin(0).mean()
    torch.testing.assert_close(loss, expected)


def test_joint_readings_reach_every_network() -> None:
    learner = agent(joints=3)
    x = learner.features(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.randn(4, 3))
    action = torch.zeros(4, 2)
    assert learner.value is not None
    for output in (learner.actor(x), learner.critic(x, action)[0], learner.value(x)):
        assert len({tuple(each.flatten().tolist()) for each in output.detach()}) == 4


def test_shifts_are_those_that_drq_v2_samples_bilinearly() -> None:
    pad, pixels = 4, torch.rand(6, 3, 12, 12)
    torch.manual_seed(3)
    found = random_shift(pixels, pad)
    torch.manual_seed(3)
    down, right = torch.randint(2 * pad + 1, (2, 6, 1)) - pad
    for each in range(6):
        padded = F.pad(pixels[each : each + 1], (pad,) * 4, mode="replicate")
        line = torch.linspace(-1 + 1 / 20, 1 - 1 / 20, 20)[:12] + 2 * pad / 20  # the middle
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
        moved = grid + 2 / 20 * torch.stack([right[each], down[each]], -1)[None, None]
        expected = F.grid_sample(padded, moved, align_corners=False)
        torch.testing.assert_close(found[each], expected[0], atol=1e-5, rtol=0)
    assert random_shift(pixels, 0) is pixels


# -- Replay ----------------------------------------------------------------------------------------


def episodes(count: int, steps: int, first: float = 0.0) -> Episodes:
    """States are 100 · episode + step."""
    number = first + torch.arange(count, dtype=torch.float32)[:, None]
    state = (100 * number + torch.arange(steps + 1))[..., None]
    reward = torch.rand(count, steps)
    return Episodes(state, state[:, :-1], reward, torch.ones(count, steps))


def test_transitions_are_those_of_a_plain_sum() -> None:
    new = episodes(3, 8)
    new.discount[1, 4] = 0.0
    replay = Replay(episodes=5, horizon=8, n_step=3, stack=2)
    replay.add(new)
    for episode, start in [(0, 0), (1, 2), (1, 3), (2, 5)]:
        found = replay.at(torch.tensor([episode]), torch.tensor([start]), 0.9)
        reward, discount = 0.0, 1.0
        for step in range(start, start + 3):
            reward += discount * float(new.reward[episode, step])
            discount *= 0.9 * float(new.discount[episode, step])
        assert float(found.reward) == pytest.approx(reward)
        assert float(found.discount) == pytest.approx(discount)
        ends = [100 * episode + step for step in (max(0, start - 1), start, start + 2, start + 3)]
        frames = torch.cat([found.state, found.next_state], 1).flatten().tolist()
        assert frames == pytest.approx(ends)
        assert float(found.action) == ends[1]


def test_samples_start_where_n_steps_are_left_and_episodes_are_alike() -> None:
    replay = Replay(episodes=4, horizon=8, n_step=3)
    replay.add(episodes(1, 8))
    replay.add(episodes(2, 4, first=1))
    replay.add(episodes(1, 2, first=3))  # too short to start one
    states = replay.sample(6000, 0.9).state.flatten()
    counts = [(states // 100 == k).float().mean().item() for k in range(4)]
    assert counts == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.03)
    assert set((states[states < 100]).tolist()) == set(range(6))
    assert set((states[(states >= 100) & (states < 200)] - 100).tolist()) == {0, 1}


def test_the_oldest_make_place_and_tasks_can_be_asked_for() -> None:
    replay = Replay(episodes=3, horizon=2, n_step=1)
    for first in range(5):
        replay.add(episodes(1, 2, first=first), torch.tensor([first % 2]))
    again = Replay(episodes=3, horizon=2, n_step=1)
    again.load_state_dict(replay.state_dict())
    for each in (replay, again):
        assert set((each.sample(200, 1.0).state // 100).flatten().tolist()) == {2, 3, 4}
        assert set((each.sample(200, 1.0, task=1).state // 100).flatten().tolist()) == {3}


def test_first_frames_are_repeated_or_black() -> None:
    states = torch.arange(1.0, 5).view(1, 4, 1)
    where = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    assert stacked(states, *where, 3, "repeat").flatten().tolist() == [1, 1, 2]
    assert stacked(states, *where, 3, "zeros").flatten().tolist() == [0, 1, 2]


# -- Playing ---------------------------------------------------------------------------------------


def player(**knobs: Any) -> Player:
    torch.manual_seed(0)
    settings = {"envs": 4, "episodes": 40, "n_step": 1, "batch": 8, "random_steps": 20,
                "learning_from": 15, "update_every": 1}  # fmt: skip
    return Player(CornerReacher(8), SMALL | {"shift": 1}, **(settings | knobs))


def test_a_player_stores_whole_episodes_and_learns_on_time() -> None:
    playing = player()
    optimizer = adam(playing)
    assert playing.advance(optimizer, 14) == {}
    assert playing.replay.size == 0
    playing.advance(optimizer, 6)
    assert playing.replay.size == 4
    assert playing.replay.tasks[:4].tolist() == [0, 1, 2, 3]
    assert playing.agent.updates == 5  # after the 16th to the 20th step
    kept = playing.replay.kept
    assert kept is not None
    rerun = playing.world.step(kept.state[:4, 3], kept.action[:4, 3])
    torch.testing.assert_close(rerun.reward, kept.reward[:4, 3])
    torch.testing.assert_close(rerun.state, kept.state[:4, 4])
    assert len(playing.agent.top) == 1
    assert playing.agent.top.scores == [playing.score]


def test_a_player_goes_on_where_it_was() -> None:
    one, two = player(), player()
    optimizer = adam(one)
    one.advance(optimizer, 24)
    state, memory = copy.deepcopy(one.state_dict()), copy.deepcopy(one.memory())
    slopes = copy.deepcopy(optimizer.state_dict())
    torch.manual_seed(7)
    one.advance(optimizer, 10)
    two.load_state_dict(state)
    two.recall(memory)
    again = adam(two)
    again.load_state_dict(slopes)
    torch.manual_seed(7)
    two.advance(again, 10)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_plays_the_mean_and_leaves_the_mode() -> None:
    playing = player()
    draw = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    first = evaluate(playing.agent, playing.world, 16, draw())
    second = evaluate(playing.agent, playing.world, 16, draw())
    assert torch.equal(first[0], second[0])
    assert playing.agent.training


def test_a_film_shows_the_world_while_the_mean_acts() -> None:
    playing = player()
    world, learner = playing.world, playing.agent
    draw = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    states, rewards = [world.reset(1, draw())], []
    for _ in range(world.horizon):
        step = world.step(states[-1], learner.act(*world.see(states[-1][:, None])))
        states.append(step.state)
        rewards.append(float(step.reward))
    every = world.see(torch.stack(states, 1)[0, :, None]).pixels
    frames, result = filmed(learner, world, 100, draw())
    assert torch.equal(frames, every)
    assert len(frames.unique(dim=0)) > 1
    assert result == pytest.approx(sum(rewards))
    some, again = filmed(learner, world, 4, draw())
    assert torch.equal(some, every[[0, 5, 10, 15]])
    assert again == result


def test_the_docstring_shows_plain_loops_that_run() -> None:
    assert doctest.testmod(mentor).failed == 0
