"""What is special to gradients through samplers: what each number means, on inputs by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.adjoint_dpm.module import Accuracy, Cell, Networks, orders, relative, scaled
from repro.experiments.adjoint_dpm.prompts import MEAN, STD, PromptInversion, Vocabulary
from repro.experiments.adjoint_dpm.tasks import Audit, Inversion, Style, gallery, left
from rooms import configs, logged, refusal, summaries
from torch import Tensor, nn

from repro.methods.adjoint_dpm import WAYS, Pulled, Sampling
from repro.models.diffusion.conditional import ConditionalMLP, ConditionalUNet
from repro.models.diffusion.stable_diffusion import SmallDiffusion
from repro.models.toys.mlp import MLP
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.diffusion import ScaledLinear
from repro.training.execute import build_module

PAPER = load_paper("adjoint_dpm")
PROCESS = ScaledLinear()
SAMPLING = Sampling(PROCESS, steps=6)
SGD: Any = torch.optim.SGD
SHAPE = (1, 2, 2)


def data(size: int = 20) -> Any:
    """Grey images of 2 × 2 pixels between 0 and 1, of two classes in turn."""
    x = torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.0, 1.0
    y = torch.arange(size) % 2

    def take(split: str, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return x[chosen], y[chosen]

    return SimpleNamespace(splits={"train": (x, y), "test": (x, y)}, normalise=None, take=take)


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model": ConditionalMLP(SHAPE, 2, hidden=[8]), "classifier": MLP(SHAPE, 2, [])}


def task(kind: Any, **knobs: Any) -> Any:
    """A task with networks by hand, on noises (B, 1, 2, 2)."""
    found = kind(
        **networks(), sampling=SAMPLING, way="rho", optimizer=lambda p: SGD(p, 1.0), **knobs
    )
    found.data = data()
    found.setup("fit")
    return found


def test_errors_are_medians_relative_to_the_reference() -> None:
    fine = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    ours = fine + torch.tensor([[5.0, 0.0], [0.2, 0.0], [0.0, 1.0]])
    assert relative(ours, fine) == pytest.approx(0.5)
    room = Accuracy(**networks(), process=PROCESS, cells={"a": Cell()})
    exact = Pulled(fine, torch.zeros(()), fine, [fine])
    room.note("rho/a/n5", Pulled(2 * fine, torch.zeros(()), -0.5 * fine, [ours]), exact)
    assert room.table["test/gradient/rho/a/n5"] == pytest.approx(1.5)
    assert room.table["test/forward/rho/a/n5"] == pytest.approx(1.0)
    assert room.table["test/condition/rho/a/n5"] == pytest.approx(0.5)
    assert room.table["test/cosine/rho/a/n5"] == pytest.approx(-1)
    assert room.table["test/norm/rho/a/n5"] == pytest.approx(0.5)
    room.note(
        "identity/a/n5", Pulled(fine, torch.zeros(()), 90 * fine, []), exact._replace(at_inputs=[])
    )
    assert room.table["test/gradient/identity/a/n5"] == pytest.approx(0, abs=1e-6)
    room.table = {"test/gradient/rho/order/n50": 0.2, "test/gradient/rho/order/n100": 0.1}
    assert logged(room, room.on_test_epoch_end)["test/order/rho/order/n50"] == 2
    assert orders({"test/gradient/t/a/n10": 1.0, "test/gradient/t/a/n29": 0.5}) == {}


def test_an_exact_law_is_of_images_on_the_scale_of_the_samples() -> None:
    room = Accuracy(
        **networks(), process=PROCESS, cells={"a": Cell()}, points=20, noises=3, reference_steps=10
    )
    room.data = data()
    low, high = scaled(room.data, room.data.splits["train"][0]).aminmax()
    assert (float(low), float(high)) == (-1, 1)
    predict, noise, targets, inputs = room.problem(0.01)
    assert noise.shape == targets.shape == (3, 4)
    assert inputs == []
    last = torch.full((3,), 1.0, dtype=torch.float64)
    assert torch.cosine_similarity(predict(noise, last), noise).min() > 0.99
    pull: Any = SimpleNamespace(gradients=lambda _way, _predict, _noise, loss, *_: loss)
    loss: Any = room._pull("rho", pull, 0.01)
    assert (loss(targets), loss(targets + 0.5)) == (0, 3)  # a quarter in each of 12 pixels
    room._compare("a", Cell(steps=(4,)))
    assert room.table["test/gradient/checkpoint/a/n4"] > 0.01
    assert room.table["test/own/rho/a/n4"] > 0


def test_bytes_and_calls_are_counted() -> None:
    room = Accuracy(
        **networks(), process=PROCESS, cells={}, memory_steps=(4, 8, 12), memory_batch=32
    )
    room._measure_costs()
    state = 32 * 4 * 4
    assert room.table["test/bytes/rho"] == pytest.approx(state)
    assert room.table["test/bytes/checkpoint"] == pytest.approx(state)
    assert room.table["test/activations/rho"] == pytest.approx(0, abs=1e-6)
    assert room.table["test/activations/checkpoint"] == pytest.approx(0, abs=1e-6)
    assert room.table["test/activations/naive"] > 10 * state
    costs = {
        way: (room.table[f"test/calls/{way}"], room.table[f"test/products/{way}"]) for way in WAYS
    }
    assert costs["rho"] == costs["t"] == costs["checkpoint"] == (40, 20)
    assert costs["naive"] == (20, 20)
    assert costs["identity"] == costs["random"] == (20, 0)
    assert costs["one_step"] == (21, 1)
    assert costs["last_step"] == (40, 1)


CELLS = ["uniform_01", "uniform_05", "uniform_20", "logsnr_01", "logsnr_05", "logsnr_20"]
ERRORS = {"rho": 1.0, "t": 2.0, "checkpoint": 3.0, "identity": 4.0, "one_step": 5.0}


def test_every_number_is_of_its_way_cell_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ways that are off by a number over their steps, across the reference."""
    exact = torch.tensor([[1.0, 0.0]])

    def pull(way: str, sampling: Sampling, variance: float) -> Pulled:
        is_fine = sampling.solver == "rk4"
        error = 0.0 if is_fine else ERRORS[way] * (1 + variance) / sampling.steps
        error *= 10 if sampling.grid == "logsnr" else 1
        off = exact + torch.tensor([[0.0, error]])
        return Pulled(off + off - exact, torch.zeros(()), off, [off])

    room = Accuracy(**networks(), process=PROCESS, cells={})
    monkeypatch.setattr(room, "_pull", pull)
    for name in CELLS:
        grid, variance = name.split("_")
        kind: Any = grid
        room._compare(name, Cell(grid=kind, variance=int(variance) / 100))
    for trained in ("uniform", "logsnr"):
        room._compare(trained, Cell(grid=trained, variance=0.0, ways=tuple(ERRORS)))  # type: ignore[arg-type]
    room._compare("order", Cell(variance=0.0, steps=(50, 100, 200), ways=("rho", "identity")))
    found = logged(room, room.on_test_epoch_end)
    for steps in (10, 20, 29, 49):
        for way in ("rho", "checkpoint"):
            off = ERRORS[way] * 1.01 / steps
            assert found[f"test/gradient/{way}/uniform_01/n{steps}"] == pytest.approx(off)
        for way in ("rho", "t", "checkpoint", "one_step"):
            off = ERRORS[way] / steps
            assert found[f"test/gradient/{way}/uniform/n{steps}"] == pytest.approx(off)
            assert found[f"test/condition/{way}/uniform/n{steps}"] == pytest.approx(off)
            assert found[f"test/gradient/{way}/logsnr/n{steps}"] == pytest.approx(10 * off)
            assert found[f"test/condition/{way}/logsnr/n{steps}"] == pytest.approx(10 * off)
        off = ERRORS["identity"] / steps
        at_best_scale = off / math.hypot(1, off)
        assert found[f"test/gradient/identity/uniform/n{steps}"] == pytest.approx(at_best_scale)
    for cell in CELLS:
        kind, variance = cell.split("_")
        factor = (1 + int(variance) / 100) * (10 if kind == "logsnr" else 1)
        for way in ("rho", "t"):
            off = ERRORS[way] * factor / 20
            assert found[f"test/gradient/{way}/{cell}/n20"] == pytest.approx(off)
            assert found[f"test/forward/{way}/{cell}/n20"] == pytest.approx(2 * off)
    for steps in (50, 100):
        assert found[f"test/order/rho/order/n{steps}"] == pytest.approx(2)
        assert found[f"test/order/identity/order/n{steps}"] == pytest.approx(2, rel=0.01)


class Sign(nn.Module):
    """Sees class 1 where the first pixel is above zero."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return torch.cat([-first, first], 1)


def judged(room: Any) -> dict[str, float]:
    """What a task measures in a test, by the names under which it is logged."""
    return {f"test/{name}": value for name, value in room.measures("test").items()}


class InTurn(nn.Module):
    """Sees classes 0 and 1 in turn."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.arange(len(x)) % 2, 2).float()


def test_success_is_of_noises_that_were_right(monkeypatch: pytest.MonkeyPatch) -> None:
    room = task(Audit, size=4)
    room.classifier = Sign()
    start = room.x_T.detach().clone()
    before = torch.tensor([-1.0, 1.0, 1.0, 1.0])  # labels 0 1 0 1: three are right
    after = torch.tensor([1.0, -1.0, 1.0, 1.0])  # of which two are fooled
    with torch.no_grad():
        room.x_T += 3.0

    def samples(x_T: Tensor, _: Tensor) -> Tensor:
        chosen = before if torch.equal(x_T, start) else after
        return chosen.view(4, 1, 1, 1).expand(4, *SHAPE)

    monkeypatch.setattr(room, "samples", samples)
    found = judged(room)
    assert found["test/success"] == pytest.approx(2 / 3)
    assert found["test/accuracy"] == pytest.approx(3 / 4)
    assert found["test/moved"] == pytest.approx(6)  # 3 in each of four pixels
    assert found["test/distance"] == pytest.approx(0, abs=1e-6)  # black and white are images
    assert found["test/distance_before"] == pytest.approx(0, abs=1e-6)
    assert room.measures("val") == {}


def test_a_step_of_the_audit_is_uphill_and_of_the_rates_length() -> None:
    room = task(Audit, size=3)
    room.classifier = Sign()
    gradient = torch.randn(3, *SHAPE)
    room.apply_gradients(Pulled(gradient, torch.zeros(()), gradient, []))
    torch.testing.assert_close(room.x_T.grad.flatten(1).norm(dim=1), torch.ones(3))
    x = torch.full((3, *SHAPE), 0.5)
    assert room.objective(2 * x) > room.objective(x) or room.objective(-x) != room.objective(x)
    right, wrong = torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0])
    shown = [each.view(3, 1, 1, 1).expand(3, *SHAPE) for each in (right, wrong)]
    assert room.objective(shown[1]) < room.objective(shown[0])  # descended: the class is lost


def test_what_is_left_is_of_held_out_noises_by_class() -> None:
    room = task(Inversion, hidden=(0, 1), size=2, held_out=3)
    assert torch.equal(room.condition[0], room.model.embed.blank())
    unchanged = room.measures("test")
    assert unchanged["left"] == pytest.approx(1)
    assert unchanged["start"] > 0
    with torch.no_grad():
        room.condition[0] = room.truth()[0]
    found = room.measures("test")
    assert found["left_0"] == pytest.approx(0, abs=1e-9)
    assert found["left_1"] == pytest.approx(1)
    with torch.no_grad():
        room.condition.copy_(room.truth())
    draws = room.sampling.draw(room.predictor(), room.noises())
    assert float(room.objective(draws)) == pytest.approx(0, abs=1e-9)
    assert float(room.objective(draws + 3)) == pytest.approx(9 + 9)  # of two classes
    assert room.measures("val")["start"] != unchanged["start"]  # other noises


def test_a_condition_of_the_first_half_is_not_heard_later() -> None:
    room = task(Inversion, hidden=(0, 1), until=0.5)
    x = torch.randn(2, *SHAPE)
    for time, heard in ((0.9, True), (0.4, False)):
        times = torch.full((2,), time)
        told, silent = (room.conditioned(c, 1)(x, times) for c in (room.truth(), room.start()))
        assert torch.equal(told, silent) != heard


def test_style_is_left_over_from_what_it_was() -> None:
    room = task(Style, size=2, held_out=4)
    room.untouched = {"test": (2 * room._judged("test")[0], 0.25)}
    found = room.measures("test")
    assert found["left"] == pytest.approx(0.5)
    assert found["accuracy_before"] == 0.25
    room.classifier = InTurn()
    assert room.measures("test")["accuracy"] == 1
    room.classifier.forward = lambda x: torch.zeros(len(x), 2)
    x_0 = torch.rand(4, *SHAPE)
    content = float(room.objective(x_0) - room._style_loss(x_0))
    assert content == pytest.approx(0.1 * math.log(2), rel=1e-3)
    black = torch.zeros(1, *SHAPE)
    assert room.style(black).abs().max() == 0
    assert room.style(black + 1)[0, 0] == 1  # its ink
    room.filters.zero_()[:, 0, 1, 1] = torch.tensor([1.0, 3.0])  # pixels once, and three times
    ink = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]]]])  # of squares 14 in all
    assert room.style(ink)[0].tolist() == [1.5, 3.5, 3 * 3.5, 3 * 3.5, 9 * 3.5]
    reference = room.data.take("train", torch.tensor([0]))[0]
    same = scaled(room.data, reference)  # of one shade, so that thick strokes change nothing
    assert float(room._style_loss(same)) == pytest.approx(0, abs=1e-9)


def test_words_behind_the_prompt_are_what_is_found() -> None:
    knobs: dict[str, Any] = {"sampling": SAMPLING, "way": "rho", "optimizer": lambda p: SGD(p, 1.0)}
    model = SmallDiffusion(size=16, tokens=8, width=5)
    room: Any = PromptInversion(
        model=model, classifier=nn.Identity(), prompt="a street", effect=" in oil",
        size=1, held_out=2, **knobs,
    )  # fmt: skip
    room.setup("fit")
    kept = room._kept(torch.full_like(room.condition, 9.0))
    assert torch.equal(kept[:, :4], model.embed("a street")[:, :4])
    assert (kept[:, 4:] == 9).all()
    assert torch.equal(room.start()[:, 4:], model.embed("")[:, 4:])
    assert room.measures("test")["left"] == pytest.approx(1)
    with torch.no_grad():
        room.condition.copy_(room.truth())
    assert room.measures("test")["left"] < 1

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3))], 1)

    words: Any = Vocabulary(
        model=model, classifier=Bright(), prompt="a dog", target=1, base=lambda *_: None,
        size=2, cutouts=3, view=4, **knobs,
    )  # fmt: skip
    words.setup("fit")
    dark, bright = (torch.full((2, 3, 16, 16), shade) for shade in (-9.0, 9.0))
    words.model.decode = lambda x: bright if x.mean() > 0 else dark
    words.sampling = SimpleNamespace(draw=lambda _predict, x_T, _way: x_T)
    words.drawn = lambda *_: -torch.ones(2, *model.input_shape)
    words.x_T.data.fill_(1.0)
    found = judged(words)
    assert found["test/target_share"] == 1
    assert found["test/target_share_before"] == 0
    assert found["test/target_loss"] < 0.1 < 1 < found["test/target_loss_before"]
    assert words.measures("val") == {}
    words.trainer = None
    assert words.objective(torch.ones(2)) < words.objective(-torch.ones(2))
    words.classifier.forward = lambda x: torch.zeros(len(x), 2)
    assert float(words.objective(torch.ones(2))) == pytest.approx(0.05 * math.log(2))


def test_a_cutout_is_a_square_of_a_side_between_the_views_and_the_images() -> None:
    room: Any = SimpleNamespace(
        seed=0, global_step=0, cutouts=200, view=4, power=0.5, target=0, weight=1.0
    )
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    room.model, seen = SimpleNamespace(decode=lambda _: torch.stack([rows, columns])[None]), []

    def note(square: Tensor) -> Tensor:
        seen.append([*square.shape[2:], *square[0, :, 0, 0].int().tolist()])
        return torch.zeros(1, 2)

    room._seen = note
    Vocabulary.objective(room, torch.empty(0))
    tall, wide, tops, starts = (torch.tensor(each) for each in zip(*seen, strict=True))
    assert torch.equal(tall, wide)
    assert (int(tall.min()), int(tall.max())) == (4, 11)  # of 4 + 8 √u, u below one
    assert int((tall < 8).sum()) == pytest.approx(200 / 4, abs=20)
    for corner in (tops, starts):  # anywhere in the upper left square of the image's height
        assert corner.min() == 0
        assert (corner + tall).max() == 12
        assert corner[tall == 8].unique().tolist() == [0, 1, 2, 3, 4]


def test_a_classifier_of_words_sees_pixels_in_its_own_units() -> None:
    room: Any = SimpleNamespace(view=2, classifier=lambda x: x)
    mean, std = (torch.tensor(each)[None, :, None, None] for each in (MEAN, STD))
    image = (mean + 2 * std).expand(1, 3, 4, 4)
    torch.testing.assert_close(Vocabulary._seen(room, image), torch.full((1, 3, 2, 2), 2.0))


def trained(**knobs: Any) -> Any:
    never: Any = None
    return Networks(**networks(), process=PROCESS, optimizer=SGD, schedule=never, seed=1, **knobs)


def test_networks_learn_noise_and_classes() -> None:
    room = trained()
    room.data = data()
    room.model.forward = lambda x, _t, _c: torch.zeros_like(x)
    error, logits = room.losses(room.data.splits["train"], 0)
    assert float(error) == pytest.approx(1, abs=0.5)  # the noise has unit variance
    assert logits.shape == (20, 2)
    found: dict[str, float] = {}
    room.note = lambda values, _size: found.update(values)
    room.classifier = Sign()
    batch = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(4, 1, 1, 1).expand(4, *SHAPE)
    room.evaluate((batch, torch.tensor([0, 0, 1, 1])), 0)  # black is seen as 0, white as 1
    assert found["accuracy"] == 3 / 4


def test_networks_see_times_from_the_end_on_and_a_little_noise() -> None:
    room = trained(end=0.6, classifier_noise=0.1)
    room.data, seen = data(500), []

    def forward(x: Tensor, time_B: Tensor, _c: Tensor) -> Tensor:
        seen.append(time_B)
        return x

    room.model.forward = forward
    room.classifier.forward = lambda x: x
    _, blurred = room.losses(room.data.splits["train"], 0)
    (times,) = seen
    assert (float(times.min()), float(times.max())) == pytest.approx((0.6, 1), abs=0.01)
    blur = blurred - scaled(room.data, room.data.splits["train"][0])
    assert float(blur.std()) == pytest.approx(0.1, rel=0.1)


def test_images_are_scaled_by_the_ends_of_their_pixels() -> None:
    x = torch.tensor([2.0, 3.0, 6.0]).view(3, 1, 1, 1)
    for normalise in (None, lambda each: each / 2 - 3):
        given: Any = SimpleNamespace(splits={"train": (x, None)}, normalise=normalise)
        shown = x if normalise is None else normalise(x)
        assert scaled(given, shown).flatten().tolist() == [-1, -0.5, 1]


def test_what_is_left_is_a_geometric_mean() -> None:
    found = left({"1": (0.2, 0.1), "7": (0.4, 0.05)})
    assert (found["left_1"], found["left_7"], found["left"]) == pytest.approx((1 / 2, 1 / 8, 1 / 4))
    assert found["start"] == pytest.approx(0.3)


def test_galleries_are_rows_of_images() -> None:
    shades = torch.linspace(-2, 2, 20)[:, None, None, None]
    picture = gallery([shades.expand(20, 1, 2, 2), torch.zeros(5, 3, 2, 2)])
    assert picture.shape == (4, 20)
    assert (picture[0, 0], picture[1, -1]) == (-1, 1)  # the first and the last, within the range
    assert (picture[2:] == 0).all()


def test_smoke_measures_what_claims_read(study: Study) -> None:
    found = summaries(study)
    assert found["audit_rho"]["test/moved"] == pytest.approx(0.1, rel=0.05)
    assert 0 < found["invert_rho"]["test/left"] < 1
    assert found["style_rho"]["test/left"] != 1
    for run in study.runs:
        has_pictures = "test/left" in run.summary() or "test/success" in run.summary()
        assert (run.artifacts_folder / "samples.npy").is_file() == has_pictures
    assert {"test/condition/one_step/logsnr/n4", "test/own/t/uniform/n4"} <= found[
        "gradients"
    ].keys()
    assert found["exact_sd"]["test/order/identity/order/n4"] == pytest.approx(1, abs=0.2)


def test_published_sizes() -> None:
    full = configs("paper=adjoint_dpm", "scale=full", "arm=[network,audit_rho]")
    with torch.device("meta"):
        room: Any = build_module(full["audit_rho"].copy())
    assert isinstance(room.model, ConditionalUNet)
    unconditional = 35_746_307  # DDPM's on CIFAR-10
    assert sum(p.numel() for p in room.model.parameters()) == unconditional + 10 * 512
    config = configs("paper=adjoint_dpm", "scale=full_inversion", "arm=prompt_rho")["prompt_rho"]
    assert (config.sampling.steps, config.optimizer.lr, config.optimizer.weight_decay) == (
        49,
        0.05,
        0.01,
    )
    assert len(Sampling(PROCESS, 49).times) == 50
    words = configs("paper=adjoint_dpm", "scale=full_vocabulary", "arm=words_rho")["words_rho"]
    assert (words.sampling.steps, words.optimizer.lr, words.training.steps_per_epoch) == (
        29,
        0.01,
        30,
    )


def test_a_wrong_way_is_one_line(tmp_path: Path) -> None:
    said = refusal(
        tmp_path, "paper=adjoint_dpm", "scale=smoke", "arm=network", "seed=0",
        "networks.classifier_noise=-1.0",
    )  # fmt: skip
    assert "classifier_noise is at least 0" in said
