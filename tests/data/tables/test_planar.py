"""Points of the plane."""

from __future__ import annotations

import pytest
import torch

from repro.data.base.iterators import generator_for
from repro.data.tables.planar import CLASSES, Planar, Shape, planar_points
from repro.errors import UserError

SHAPES: list[Shape] = ["moons", "circles", "spiral"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_set_is_balanced_and_a_function_of_its_seed(dataset, shape: Shape) -> None:
    data, again = dataset(shape), dataset(shape)
    for split, size in (("train", 1000), ("val", 250), ("test", 500 // CLASSES[shape])):
        assert data.splits[split][1].bincount().tolist() == [size] * CLASSES[shape]
        assert torch.equal(data.splits[split][0], again.splits[split][0])
    assert not torch.equal(data.splits["train"][0], dataset(shape, data_seed=1).splits["train"][0])


def test_points_lie_on_their_curves() -> None:
    x, y = planar_points("moons", 2000, generator_for(0))
    upper, lower = x[y == 0], x[y == 1] - torch.tensor([1.0, 0.5])
    for part in (upper, lower):
        assert part.norm(dim=1).mean() == pytest.approx(1, abs=0.02)
        assert (part.norm(dim=1) - 1).std() == pytest.approx(0.1, abs=0.01)
    assert upper[:, 1].mean() > 0.5 > 0 > lower[:, 1].mean()
    x, y = planar_points("circles", 2000, generator_for(0))
    assert x[y == 0].norm(dim=1).mean() == pytest.approx(1, abs=0.02)
    assert x[y == 1].norm(dim=1).median() == pytest.approx(0.3, abs=0.03)
    x, y = planar_points("spiral", 101, generator_for(0))
    r = x.norm(dim=1)
    assert torch.allclose(r, torch.linspace(0, 1, 101).repeat(4), atol=1e-6)
    t = torch.atan2(x[:, 0], x[:, 1])
    expected = torch.cat([torch.linspace(4 * arm, 4 * arm + 4, 101) for arm in range(4)])
    turn = torch.remainder(t - expected + torch.pi, 2 * torch.pi) - torch.pi
    assert turn[r > 0].std() == pytest.approx(0.2, abs=0.03)


def test_one_point_of_each_class_is_the_first_of_its_curve() -> None:
    draws = [planar_points("moons", 1, generator_for(seed))[0] for seed in range(400)]
    assert torch.stack(draws).mean(0).flatten().tolist() == pytest.approx([1, 0, 0, 0.5], abs=0.03)
    assert torch.equal(planar_points("spiral", 1, generator_for(0))[0], torch.zeros(4, 2))


def test_a_set_draws_more_points(dataset) -> None:
    data: Planar = dataset("circles")
    x, y = data.draw(5, generator_for(3))
    assert x.shape == (10, 2)
    assert y.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(x, data.draw(5, generator_for(3))[0])


def test_a_wrong_shape_is_one_line(dataset) -> None:
    with pytest.raises(UserError, match=r"shape is moons, circles or spiral, not 'moon'"):
        dataset("moons", shape="moon")


def test_the_suite_has_its_sets(dataset) -> None:
    suite = dataset("planar_digits")
    assert list(suite.sets) == ["moons", "circles", "spiral", "digits"]
    assert len(suite.sets["digits"].splits["test"][0]) == 540
