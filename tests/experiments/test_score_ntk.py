"""What is special to score regression: what its numbers mean, on hand-made paths."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from repro.experiments.score_ntk.laws import five_points, rows
from repro.experiments.score_ntk.module import (
    TEST_SEED,
    Chosen,
    ScoreRegression,
    Seen,
    picture,
    wasserstein,
)
from rooms import configs, finished, logged, refusal, summaries

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.score_ntk import Regression, Triples, TwoLayer, ntk
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.exact_scores import PointMixture
from repro.training.execute import build_module

PAPER = load_paper("score_ntk")
PROBLEM = Regression(VPProcess(1.0, 1.0))
LAW = five_points(None)


def module(**knobs: Any) -> ScoreRegression:
    found = ScoreRegression(five_points, PROBLEM, steps=4, looks=3, fixed=2, **knobs)
    found.taus = torch.tensor([0, 1, 2, 3, 4])
    return found


def triples(seed: int, size: int = 60) -> Triples:
    return PROBLEM.draw(LAW, size, generator_for(seed))


def path_of(offsets: list[float], hold: Triples, test: Triples, worst: float = 1.0) -> Seen:
    """A training that is off by a number at each look: from labels there, from f_* here."""
    by = torch.tensor(offsets).double()[:, None, None]
    eigenvalues = torch.full((60,), worst, dtype=torch.float64)
    return Seen(eigenvalues, hold.x0 + by, PROBLEM.exact(LAW, test) + by)


def test_every_rule_stops_where_it_says() -> None:
    train, hold, test = triples(0), triples(1), triples(2)
    room = module()
    path = path_of([0.9, 0.5, 0.4, 0.3, 0.7], hold, test)
    chosen = room._choose(path, train, hold, test)
    assert {rule: chosen.steps[rule] for rule in ("none", "one", "fixed", "holdout", "oracle")} == {
        "none": 4, "one": 1, "fixed": 2, "holdout": 3, "oracle": 3,
    }  # fmt: skip
    assert chosen.noise == pytest.approx(0.3)
    assert chosen.loss == pytest.approx(2 * 0.3**2)
    # All eigenvalues are 1: R(1/sqrt t) = 1/sqrt t from step 1, so sqrt t <= 1/(2 e sigma).
    assert chosen.steps["rwy"] == 0
    assert chosen.steps["rwy_half"] == 1
    assert chosen.values["zero"].abs().max() == 0
    torch.testing.assert_close(chosen.values["one"], path.test[1])


def test_rules_by_noise_stop_at_its_inverse_square() -> None:
    """All eigenvalues are 1: the last t <= 1/(2 e sigma)^2."""
    train, hold, test = triples(0), triples(1), triples(2)
    room = module()
    room.taus = torch.arange(100)
    room._exact = lambda triples: triples.x0 - 0.03  # type: ignore[method-assign]
    chosen = room._choose(path_of([0.05] * 100, hold, test), train, hold, test)
    for rule, sigma in {"": 0.05, "_half": 0.025, "_double": 0.1, "_true": 0.03}.items():
        assert chosen.steps[f"rwy{rule}"] == math.floor((2 * math.e * sigma) ** -2)


def test_errors_are_those_of_where_the_rule_stopped() -> None:
    test = triples(2)
    exact, room = PROBLEM.exact(LAW, test), module(radius=2.0)
    room._note_errors("holdout/n9", exact + 0.3, exact, test)
    assert room.table["test/error/holdout/n9"] == pytest.approx(2 * 0.09)
    alpha, h = PROBLEM.signal(test.t)
    weighted = 2 * 0.09 * float((alpha / h).square().mean())
    assert room.table["test/score_error/holdout/n9"] == pytest.approx(weighted)
    room._note_parts("holdout/n9", torch.where(test.t[:, None] < 0.5, 1.0, 0.0).expand(60, 2), test)
    assert room.table["test/bin/early/holdout/n9"] == 2
    assert room.table["test/bin/late/holdout/n9"] == 0
    assert 0 < room.table["test/coordinate/0/holdout/n9"] < 1
    # Of lengths 1.5 and 3 in the direction of a unit vector, the longer is cut to 2.
    unit = torch.tensor([[0.6, 0.8]]).expand(60, 2)
    for length, inside in ((1.5, 1.5), (3.0, 2.0)):
        room._note_errors("none/n9", length * unit, unit, test)
        assert room.table["test/projected/none/n9"] == pytest.approx((inside - 1) ** 2)
    room._note_parts("none/n9", torch.ones(60, 2), test._replace(t=torch.full((60,), 0.7)))
    bins = {name: value for name, value in room.table.items() if "bin" in name and "none" in name}
    assert bins == {"test/bin/middle/none/n9": 2}


HOLD = [0.9, 0.7, 0.5, 0.08, 0.1, 0.3, 0.4]  # off the labels by steps: least after 3
TEST = [0.9, 0.8, 0.7, 0.6, 0.2, 0.4, 0.95]  # off f_*: least after 4
SHARES = {"none": 0.95, "fixed": 0.7, "holdout": 0.6, "rwy": 0.4, "oracle": 0.2}


def trained(room: ScoreRegression) -> dict[str, float]:
    """What is logged of all sizes when paths are off by HOLD and TEST over n^¼, later bins by more.

    All eigenvalues are 1, and the noise seems to be 0.08: the rule ``rwy`` stops after 5 steps.
    """
    room.taus = torch.arange(7)

    def path(train: Triples, hold: Triples, test: Triples, _width: int | None) -> Seen:
        in_bin = 1 + (test.t[:, None] > 0.5).double() + (test.t[:, None] > 1.0)
        off_T = torch.tensor(TEST).double()[:, None, None] * len(train.t) ** -0.25
        seen = path_of(HOLD, hold, test)
        return seen._replace(test=PROBLEM.exact(LAW, test) + off_T * in_bin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_path", path)
        noted = {"test/gap/t6/m1024": 0.5}
        patch.setattr(room, "_note_gap", lambda *_: room.table.update(noted))
        for cell in room.cells:
            room._train(cell)
    return logged(room, room.on_test_epoch_end)


def squares_of_bins() -> tuple[float, dict[str, float]]:
    """2 (1 + bin)², the squared distance for an offset of 1: mean over test triples, and by bin."""
    t = PROBLEM.draw(LAW, 60, generator_for(TEST_SEED)).t
    in_bin = 1 + (t > 0.5).double() + (t > 1.0)
    return float(2 * in_bin.square().mean()), {"early": 2.0, "middle": 8.0, "late": 18.0}


def test_errors_of_known_paths_by_rule_and_size() -> None:
    mean, _ = squares_of_bins()
    found = trained(module(sizes=[100, 200, 400, 800], test_size=60))
    for n in (100, 200, 400, 800):
        for rule in ("none", "fixed", "holdout", "rwy", "oracle"):
            expected = mean * SHARES[rule] ** 2 / n**0.5
            assert found[f"test/error/{rule}/n{n}"] == pytest.approx(expected)
        assert found[f"test/overfit/n{n}"] == pytest.approx((0.95 / 0.6) ** 2)
    for tau, off in enumerate(TEST):  # the path is that of the first size
        assert found[f"test/path/{tau}"] == pytest.approx(mean * off**2 / 10)
    for rule in ("none", "holdout", "rwy"):
        assert found[f"test/slope/error/{rule}"] == pytest.approx(-0.5)
    large = trained(module(sizes=[1000, 5000, 20000], test_size=60))
    for n in (1000, 5000, 20000):
        assert large[f"test/error/none/n{n}"] == pytest.approx(mean * 0.95**2 / n**0.5)
        assert large[f"test/error/holdout/n{n}"] == pytest.approx(mean * 0.6**2 / n**0.5)


def test_errors_of_known_paths_by_bin_of_time() -> None:
    found = trained(module(model="network", size=16, widths=[1024], test_size=60))
    mean, bins = squares_of_bins()
    for name, share in (
        ("test/error/none/m1024", SHARES["none"]),
        ("test/error/holdout/m1024", SHARES["holdout"]),
        ("test/error/oracle/m1024", SHARES["oracle"]),
    ):
        assert found[name] == pytest.approx(mean * share**2 / 4)
    for part in ("early", "middle", "late"):
        expected = bins[part] * 0.6**2 / 4
        assert found[f"test/bin/{part}/holdout/m1024"] == pytest.approx(expected)
    assert found["test/gap/t6/m1024"] == 0.5
    fresh = module(model="network", size=16, widths=[1024], test_size=60, labels="resample")
    assert "test/gap/t6/m1024" not in trained(fresh)  # there is no kernel to be apart from


def test_a_label_has_the_noise_that_a_gaussian_law_leaves() -> None:
    """A variance of h = 1 - exp(-t), t uniform in [0.1, 2]; a quarter as many are held out."""
    room, held = module(sizes=[400], test_size=40_000), []
    room.law_of = lambda _: PointMixture.uniform(torch.zeros(1, 2).double(), 1.0)

    def path(_train: Triples, hold: Triples, test: Triples, _width: None) -> Seen:
        held.append(len(hold.t))
        return Seen(torch.ones(1), hold.x0.expand(5, -1, -1), test.x0.expand(5, -1, -1))

    room._path = path  # type: ignore[method-assign, assignment]
    room._train(room.cells[0])
    h = 1 - (math.exp(-0.1) - math.exp(-2)) / 1.9
    assert room.table["test/noise/true/n400"] == pytest.approx(h**0.5, rel=0.02)
    assert held == [100]
    room.losses = [1.0, 2.0, 6.0]
    assert logged(room, room.on_validation_epoch_end) == {"val/loss": 3}
    # Losses agree; without the weight they are off by their ratio, (alpha / h)^2.
    t = PROBLEM.draw(room._law(), 40_000, generator_for(TEST_SEED)).t
    ratio = ((-t).exp() / (1 - (-t).exp()).square() - 1).abs().max()
    assert room.table["test/identity"] < 1e-10
    assert room.table["test/identity_unweighted"] == pytest.approx(float(ratio))


def test_a_network_is_looked_at_after_so_many_steps() -> None:
    """Beside a plain loop; the eigenvalues add up to the mean of the kernel's diagonal, |z|²/2."""
    room, train, test = module(model="network", size=60, widths=[8]), triples(0), triples(2)
    room.taus = torch.tensor([0, 1, 3])
    z, z_test = PROBLEM.inputs(train), PROBLEM.inputs(test)
    seen = room._descend(train, z_test, z_test, 8)
    network, looks = TwoLayer(z.shape[1], 2, 8, generator_for(room.seed, 60, 8)), []
    for _ in range(4):
        looks.append(network(z_test))
        network.step(z, train.x0, room.rate)
    torch.testing.assert_close(seen.test, torch.stack([looks[0], looks[1], looks[3]]))
    assert float(seen.eigenvalues.sum()) == pytest.approx(float(z.square().sum(1).mean() / 2))


def test_models_of_bins_share_neurons_and_answer_for_their_own_times() -> None:
    room = module(apart=True)
    asked: list[int] = []

    def path(*parts: Any) -> Any:
        *own, width = parts
        bins = [{(t > 0.5) + (t > 1.0) for t in each.t.tolist()} for each in own]
        assert bins == [{len(asked)}] * 3  # all triples are of the same bin
        asked.append(width)

    def choose(_path: None, _train: Triples, _hold: Triples, test: Triples) -> Chosen:
        index = len(asked)  # 1, 2, 3
        return Chosen({"one": index}, {"one": test.x0 * index}, 2.0 * index, 5.0 * index)

    room._path, room._choose = path, choose  # type: ignore[method-assign, assignment]
    test = triples(2)
    chosen = room._train_apart(triples(0), triples(1), test, 16)
    assert asked == [4, 6, 6]
    assert (chosen.steps["one"], chosen.noise, chosen.loss) == (2, 4, 10)
    by = 1 + (test.t > 0.5).double() + (test.t > 1.0)
    torch.testing.assert_close(chosen.values["one"], test.x0 * by[:, None])


def test_a_gap_is_the_distance_from_the_kernel_of_the_same_features() -> None:
    train, test = triples(0), triples(2)
    room = module()
    room.taus = torch.tensor([0, 10, 50])
    rival = Regression(PROBLEM.process, PROBLEM.t_min, PROBLEM.t_max, not PROBLEM.bias)
    ours, theirs = (
        room._descent(train, each).predict(ntk(each.inputs(test), each.inputs(train)), room.taus)
        for each in (PROBLEM, rival)
    )
    off = torch.tensor([0, 0, 0.1])[:, None, None]
    room._note_gap("m4096", Seen(torch.ones(1), ours, ours + off), train, test)
    assert room.table["test/gap/t10/m4096"] == pytest.approx(0, abs=1e-12)
    assert room.table["test/gap/t50/m4096"] == pytest.approx(0.02)
    own = float((ours[2] - PROBLEM.exact(LAW, test)).square().sum(1).mean())
    assert room.table["test/gap_share/t50/m4096"] == pytest.approx(0.02 / own)
    between = float((ours[1] - theirs[1]).square().sum(1).mean())
    assert room.table["test/gap_other/t10/m4096"] == pytest.approx(between)
    assert between > 1e-4
    room._note_gap("m8", Seen(torch.ones(1), theirs, theirs + off), train, test)
    assert room.table["test/gap_other/t50/m8"] == pytest.approx(0.02)


def test_slopes_are_of_logarithms() -> None:
    room = module()
    room.table = {f"test/error/none/n{n}": 3 * n**-0.5 for n in (100, 200, 800)}
    room.table |= {f"test/gap/t50/m{m}": 1 / m for m in (64, 256)}
    room.table |= {f"test/gap_other/t50/m{m}": m**-0.1 for m in (64, 256)}
    room.table |= {"test/error/one/n100": 1.0}
    found = logged(room, room.on_test_epoch_end)
    assert {k: v for k, v in found.items() if "slope" in k} == {
        "test/slope/error/none": pytest.approx(-0.5),
        "test/slope/gap/t50": pytest.approx(-1.0),
        "test/slope/gap_other/t50": pytest.approx(-0.1),
    }


def test_samples_are_those_of_where_each_rule_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As if f were t sums of the kernel after t steps, and samples off the law by t."""
    room, train = module(samples=20), triples(0)
    room.trainer = SimpleNamespace(default_root_dir=tmp_path)  # type: ignore[assignment]
    truth = LAW.sample(20, generator_for(TEST_SEED, 1))
    z = PROBLEM.inputs(train)
    unit = ntk(z, z).sum(1, keepdim=True)

    class Descent:
        def __init__(self, *_: Any) -> None: ...

        def coefficients(self, taus: torch.Tensor) -> list[torch.Tensor]:
            return [torch.full_like(train.x0, float(tau)) for tau in taus]

    monkeypatch.setattr(room, "_descent", Descent)
    monkeypatch.setattr(room, "_sample", lambda _, f: truth + (f(train) / unit).mean())
    room._note_samples(LAW, train, Chosen({"holdout": 3, "none": 40}, {}, 0.0, 0.0))
    found = logged(room, room.on_test_epoch_end)
    assert found["test/w2/holdout"] == pytest.approx(3 * 2**0.5)
    assert found["test/w2/none"] == pytest.approx(40 * 2**0.5)


def test_a_sampler_is_told_the_noise_in_what_it_starts_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a law of one point: it and that noise make the start again."""
    law = PointMixture.uniform(torch.tensor([[0.3, -0.6]]).double())

    def sampler(process: VPProcess, predict: Any, *_: Any, first: torch.Tensor, **to: Any) -> Any:
        t = torch.full((len(first),), to["start"]).double()
        again = process.noised(law.points.expand(20, 2), t, predict(first, t))
        torch.testing.assert_close(again, first)
        return first

    monkeypatch.setattr(VPProcess, "euler_maruyama", sampler)
    found = module(samples=20)._sample(law, lambda at: PROBLEM.exact(law, at))
    torch.testing.assert_close(found, law.points.expand(20, 2))


def test_a_picture_counts_by_both_coordinates() -> None:
    """Cells of 3/40: x = 1.4 is in the 39th of its direction, y = -1.4 in the second."""
    found = picture(torch.tensor([[1.4, -1.4], [1.4, -1.4], [2.0, 0.0]]))
    assert found.shape == (40, 40)
    assert {tuple(at) for at in np.argwhere(found)} == {(1, 38)}
    assert found[1, 38] == pytest.approx(math.log(3))


def test_wasserstein_is_that_of_the_best_assignment() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 1.0]])
    assert wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-3)
    assert wasserstein(x, x.flip(0) + torch.tensor([3.0, 4.0])) == pytest.approx(5)


def test_smoke_measures_what_claims_read(study: Study) -> None:
    found = summaries(study)
    kernel = found["kernel"]
    assert kernel["test/identity"] < 1e-10 < 0.1 < kernel["test/identity_unweighted"]
    ratio = kernel["test/error/none/n30"] / kernel["test/error/holdout/n30"]
    assert kernel["test/overfit/n30"] == pytest.approx(ratio)
    zero = kernel["test/error/zero/n30"]
    assert zero == kernel["test/error/zero/n60"] == found["nn"]["test/error/zero/m32"]
    assert kernel["test/error/holdout/n30"] < zero
    # More training data, the same choice; cleaner labels, no overfitting.
    refit = found["kernel_refit"]
    assert refit["test/tau/holdout/n30"] == kernel["test/tau/holdout/n30"]
    assert refit["test/error/holdout/n30"] != kernel["test/error/holdout/n30"]
    assert found["kernel_clean"]["test/overfit/n60"] < 1.05
    assert found["kernel_short"]["test/noise/true/n30"] < kernel["test/noise/true/n30"]
    # Networks: paired ones begin at zero, moving less the wider they are.
    assert found["nn"]["test/moved/m128"] < found["nn"]["test/moved/m32"]
    assert "test/gap/t50/m32" not in found["resample"]
    assert found["apart"]["test/bin/early/holdout/m32"] > 0
    assert {f"test/w2/{rule}" for rule in ("exact", "holdout", "none")} <= found["sampling"].keys()


def test_the_exact_score_samples_the_law(tmp_path: Path) -> None:
    typed = ["arm=sampling", "seed=0", "samples=500", "sizes.one=[60]"]
    run = finished(tmp_path, "paper=score_ntk", "scale=smoke", *typed)
    found = run.summary()
    assert found["test/w2/exact"] < 0.4  # two samples of 500 from the law itself: about 0.3
    assert found["test/w2/exact"] < found["test/w2/holdout"]
    assert np.load(run.artifacts_folder / "samples.npy").shape == (40, 120)


def test_full_has_its_sizes_and_its_laws() -> None:
    nn: Any = build_module(configs("paper=score_ntk", "scale=full")["nn"].copy())
    assert nn.cells[-1] == (1000, 65536)
    assert nn.taus[-1] == 4000
    config = configs("paper=score_ntk", "scale=full_sizes")["kernel"]
    room: Any = build_module(config)
    assert (room.cells[-1], room.rate) == ((20_000, None), 0.1)
    assert int(room.taus[-1]) == 100_000


def test_rows_are_a_law_of_principal_components() -> None:
    pictures = torch.rand(30, 3, 16, 16)
    data = SimpleNamespace(name="pictures", splits={"train": (pictures,)})
    law = rows(data, components=5, limit=20, pool=4)
    assert law.points.shape == (20, 5)
    assert float(law.points.norm(dim=1).max()) == pytest.approx(1)
    torch.testing.assert_close(law.points.mean(0), torch.zeros(5).double())
    products = law.points.T @ law.points
    torch.testing.assert_close(products, products.diag().diag(), atol=1e-9, rtol=0)
    assert (products.diag().diff() < 0).all()
    with pytest.raises(UserError, match="has 16 coordinates"):
        rows(data, components=17, pool=4)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=kernel module.labels=resample", "has no fixed kernel matrix"),
        ("arm=nn module.refit=true", "refit and samples are for the kernel"),
        ("arm=nn widths.all=[33]", "width=33 is odd"),
        ("arm=kernel module.rate=5.0", "choose less than"),
        ("arm=kernel module.problem.t_max=0.05", "is not after t_min"),
        ("arm=digits laws.digits.components=65", "has 64 coordinates"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    refused = refusal(tmp_path, "paper=score_ntk", "scale=smoke", "seed=0", *typed.split())
    assert complaint in refused
