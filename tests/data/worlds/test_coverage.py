"""Coverage maps: what planes say, who shares rooms with whom, and what is left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.data.worlds.coverage import CoverageMaps
from repro.data.worlds.radio import Antennas, Scenes, Walls
from repro.errors import UserError

MATERIALS: dict[str, dict[str, float]] = {
    "concrete": {"loss": 12.0, "loss_per_ghz": 0.35, "reflection": 6.0},
    "glass": {"loss": 2.5, "loss_per_ghz": 0.1, "reflection": 10.0},
}


def maps(**knobs: Any) -> CoverageMaps:
    settings: dict[str, Any] = {
        "size": 16, "rooms": {}, "materials": MATERIALS, "radio": {}, "p_min": -110.0,
        "p_max": -20.0, "train": {"maps": 12, "beams": [40.0, 70.0], "ghz": [2.4, 28.0]},
        "val_maps": 4, "test_maps": 6, "task": "regression", "batch_size": 4,
        "test": {
            "plan": {},
            "new": {"beams": [20.0], "ghz": [5.0], "seen": True},
        },
    }  # fmt: skip
    return CoverageMaps(**{**settings, **knobs})


def stored(data: CoverageMaps, split: str) -> Scenes:
    tensors = data.splits[split]
    return Scenes(Walls(*tensors[:5]), Antennas(*tensors[5:10]))


def shown(data: CoverageMaps) -> tuple[Tensor, ...]:
    """The test split as one batch."""
    (found,) = data.test_dataloader()
    return found


def test_batches_have_planes_and_maps() -> None:
    data = maps(input_shape=[5, 16, 16])
    x, y = next(iter(data.train_dataloader()))
    assert data.planes == ("concrete", "glass", "transmitter", "antenna", "frequency")
    assert (x.shape, y.shape) == ((4, 5, 16, 16), (4, 1, 16, 16))
    assert 0 <= y.min() < y.max() <= 1
    assert x.min() >= 0
    assert x.max() <= 1
    x, y, free, hidden, shift, group = shown(data)
    assert len(x) == len(y) == len(free) == len(hidden) == len(shift) == 12
    assert group.tolist() == 6 * [0] + 6 * [1]
    assert not shift.any()
    # Where nothing stands between, a map is the formula's, or a little more by reflections.
    seen = ~hidden
    assert (y[seen] >= free[seen] - 1e-5).all()
    assert y[hidden].mean() < free[hidden].mean()


def test_seen_groups_show_training_rooms_with_other_beams() -> None:
    data = maps()
    train, test = stored(data, "train"), stored(data, "test")
    seen, new = test.take(slice(6, None)), test.take(slice(6))
    for name in ("place", "start", "material"):
        assert torch.equal(getattr(seen.walls, name), getattr(train.walls, name)[:6])
        assert not torch.equal(getattr(new.walls, name), getattr(train.walls, name)[:6])
    assert torch.equal(seen.antennas.boresight, train.antennas.boresight[:6])
    assert seen.antennas.ghz.unique().tolist() == [5]
    assert seen.antennas.width.rad2deg().unique().tolist() == pytest.approx([20])
    assert train.antennas.ghz.unique().tolist() == pytest.approx([2.4, 28])


def test_maps_of_a_plan_share_its_walls_and_no_split_does() -> None:
    data = maps(train={"maps": 12, "per_plan": 4, "beams": [40.0], "ghz": [5.0]})
    place = stored(data, "train").walls.place[:, 4]
    assert len(place.unique()) == 3
    assert torch.equal(place, place[::4].repeat_interleave(4))
    assert len(stored(data, "train").antennas.x.unique()) == 12
    others = torch.cat([stored(data, "val").walls.place[:, 4], new_places(data)])
    assert not torch.isin(others, place).any()


def new_places(data: CoverageMaps) -> Tensor:
    return stored(data, "test").walls.place[:6, 4]


def test_planes_say_where_things_are() -> None:
    data = maps()
    one = Walls(
        torch.tensor([[True, True, False, False, True]]),
        torch.tensor([[0.0, 16.0, 0.0, 16.0, 5.5]]),
        torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0]]),
        torch.tensor([[16.0, 16.0, 16.0, 16.0, 8.0]]),
        torch.tensor([[0, 0, 0, 0, 1]]),
    )
    antenna = Antennas(*(torch.tensor([each]) for each in (3.5, 9.5, 0.0, math.radians(40), 28.0)))
    x = data.describe(Scenes(one, antenna))[0]
    border = torch.ones(16, 16)
    border[1:-1, 1:-1] = 0
    glass = torch.zeros(16, 16)
    glass[2:8, 5] = 1
    assert torch.equal(x[0], border)
    assert torch.equal(x[1], glass)
    assert x[2].nonzero().tolist() == [[9, 3]]
    assert x[3, 9, 10] == 1  # straight ahead
    assert x[3, 9, 0] == 0  # behind
    assert x[4].unique().tolist() == pytest.approx([1])
    higher = data.describe(Scenes(one, antenna._replace(ghz=torch.tensor([5.0]))))[0, 4]
    assert higher.unique().item() == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize(
    ("inputs", "changed"),
    [
        ({"plan": "none"}, {0, 1}), ({"plan": "other"}, {0, 1}), ({"antenna": "none"}, {3}),
        ({"antenna": "offset"}, {3}), ({"antenna": "other"}, {3}), ({"frequency": "none"}, {4}),
    ],
)  # fmt: skip
def test_inputs_change_their_planes_alone(inputs: dict[str, str], changed: set[int]) -> None:
    whole, part = shown(maps()), shown(maps(inputs=inputs))
    assert {n for n in range(5) if not torch.equal(whole[0][:, n], part[0][:, n])} == changed
    if "none" in inputs.values():
        assert not part[0][:, list(changed)].any()
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], part[1:], strict=True))


def test_another_plan_is_that_of_another_room() -> None:
    whole, other = shown(maps())[0], shown(maps(inputs={"plan": "other"}))[0]
    assert torch.equal(other[:, :2], whole[:, :2].roll(6, 0))


def test_offsets_know_no_pattern() -> None:
    """The same antennas with another width of the beam look the same."""
    beams = [{"seen": True, "beams": [width]} for width in (20.0, 70.0)]
    data = maps(inputs={"antenna": "offset"}, test={"a": beams[0], "b": beams[1]})
    x, y = shown(data)[:2]
    assert torch.equal(x[:6, 3], x[6:, 3])
    assert not torch.equal(y[:6], y[6:])


def test_the_nearest_frequency_comes_with_its_shift() -> None:
    x, _, _, _, shift, _ = shown(maps(inputs={"frequency": "nearest"}))
    assert not shift[:6].any()  # known ones stay
    assert (x[6:, 4] == 0).all()  # 2.4 GHz
    expected = 20 * math.log10(2.4 / 5) / 90
    assert shift[6:].tolist() == pytest.approx(6 * [expected])


def test_equal_seeds_give_equal_maps() -> None:
    first, again, other = (maps(data_seed=seed).fingerprint()["sha256"] for seed in (1, 1, 2))
    assert first == again != other
    assert maps().walls_inside == pytest.approx(3, abs=1)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"p_max": -120.0}, "p_max"),
        ({"train": {"maps": 10, "per_plan": 4, "beams": [40.0], "ghz": [5.0]}}, "per_plan=4"),
        ({"train": {"maps": 10, "beams": [], "ghz": [5.0]}}, "beams"),
        ({"inputs": {"antenna": "gains"}}, "gain"),
        ({"inputs": {"plan": "other"}, "batch_size": 1}, "at least 2"),
        ({"test": {"far": {"maps": 20, "seen": True}}}, "more than the training"),
        ({"input_shape": [6, 16, 16]}, r"input_shape=\[6, 16, 16\]"),
    ],
)
def test_what_cannot_be_is_one_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        maps(**knobs).setup()
    assert len(str(error.value).splitlines()) == 1
