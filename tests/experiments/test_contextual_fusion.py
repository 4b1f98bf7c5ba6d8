"""What is special to contextual fusion: whose accuracy is which, kept features, layouts."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from published import write_images
from repro.experiments.contextual_fusion import module as room
from repro.experiments.contextual_fusion import streams as streams_module
from repro.experiments.contextual_fusion.bench import CLEAN, Bench, HeadSettings, Perturbations
from repro.experiments.contextual_fusion.module import Fusion
from repro.experiments.contextual_fusion.streams import TrainedStreams, unloaded
from rooms import configs, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.data.images.composites import Composites, digits_in_scenes
from repro.errors import UserError
from repro.methods.contextual_fusion import Stream
from repro.models import SmallCNN
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.corruptions import GaussianBlur
from repro.toolbox.method import Method

PAPER = load_paper("contextual_fusion")
SMOKE = ("paper=contextual_fusion", "scale=smoke", "seed=0")
CPU = torch.device("cpu")
ADAM = partial(torch.optim.Adam, lr=0.05)

# Test pictures have two pixels; the foreground sees the left one, the background the right one. A
# pixel is on the right side of 1/2 by so many levels of 255, or on the wrong one.
LEFT = torch.tensor([0.75, 1.5, 3.0, 6.0, 0.75, 0.25, 3.0, -1.5])
RIGHT = torch.tensor([2.5, -0.25, 6.0, 1.75, -6.0, 1.5, 0.25, 3.0])
BOTH = LEFT + RIGHT
LABELS = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])


class Pixel(nn.Module):
    """Sees one column of pictures of one row."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, :, self.column]


def by_levels(left: Tensor, right: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    levels = torch.stack([left, right], 1) * (2 * y - 1)[:, None]
    return (0.5 + levels / 255)[:, None, None, :], y


def source(name: str, *_: object) -> Stream:
    return Stream(Pixel({"fg": 0, "fg2": 0, "bg": 1}[name]), 1)


def bench(**settings: Any) -> Bench:
    """Pictures as above; in training both pixels say equally much, so both count equally."""
    spread = torch.linspace(-1, 5, 20)
    both = torch.cartesian_prod(spread, spread).T.repeat(1, 2)
    train = by_levels(both[0], both[1], torch.arange(800) // 400)
    test = by_levels(LEFT, RIGHT, LABELS)
    data = Composites(
        torch.tensor([0.2, 0.9]), name="pixels", splits={"train": train, "val": test, "test": test},
        task="classification", classes=2,
    )  # fmt: skip
    streams = {"fg": ["fg"], "bg": ["bg"], "joint": ["fg", "bg"], "fg_fg2": ["fg", "fg2"]}
    budgets = {"fg": [0.5, 1.0, 2.0, 4.0], "bg": [1.0], "joint": [1.0]}
    judged = [0.5, 1.0, 2.0]
    perturbations = Perturbations(budgets, {"fg": judged}, [0.3, 0.6], 1, 10, 0.25, judged)
    how: dict[str, Any] = {
        "source": source, "names": ["fg", "fg2", "bg"], "optimizer": ADAM,
        "heads": HeadSettings(streams, 60, 800, 0.0), "perturbations": perturbations, "chunk": 100,
    }  # fmt: skip
    return Bench(data, CPU, **how | settings)


def arm(head: str, made: Bench | None = None, kind: Any = Fusion, **settings: Any) -> Any:
    """The module of an arm whose classifier is trained, away from any trainer."""
    made = made or bench()
    how: dict[str, Any] = {
        "head": head, "bench": None, "optimizer": ADAM, "penalty": None, "muted": [],
        "measured": ["fgsm", "pgd", "blur"], "own": [1.0, 4.0], "context": "fg/fgsm_1",
        "validated": [], "method": Method(),
    }  # fmt: skip
    module = kind(**how | settings)
    module.bench, module.data = made, made.data
    module.fusion = made.head(head).requires_grad_()
    z_ND = module.features("train", CLEAN)
    module.head_training = made.training(module.fusion, z_ND, {})
    return module


def mean(levels: Tensor, budget: float = 0) -> float:
    """Share of pictures that are right by more levels than an attack may move them."""
    return float((levels > budget).double().mean())


def share(levels: Tensor, budget: float = 0) -> Any:
    return pytest.approx(mean(levels, budget))


def test_accuracies_are_of_the_classifier_and_the_attack_that_they_name() -> None:
    """All by hand: an attack moves the pixels that its classifier sees by the budget."""
    made = bench()
    fg, bg, joint = (arm(name, made)._views() for name in ("fg", "bg", "joint"))
    for budget in (0.5, 1, 2):
        name = f"test/fg/fgsm_{budget:g}"
        assert fg[name] == share(LEFT, budget), name
        assert bg[name] == share(RIGHT), name
        assert joint[name] == share(BOTH, budget), name
        # Linear: more steps go no further. (The right pixel stays where it began, at random.)
        assert fg[f"test/fg/pgd_{budget:g}"] == share(LEFT, budget)
    assert joint["test/fg/fgsm_4"] == share(BOTH, 4)
    assert bg["test/bg/fgsm_1"] == share(RIGHT, 1)
    assert fg["test/bg/fgsm_1"] == share(LEFT)
    assert joint["test/bg/fgsm_1"] == share(BOTH, 1)
    assert joint["test/joint/fgsm_1"] == share(BOTH, 2)
    means = [mean(BOTH, budget) for budget in (0.5, 1, 2)]
    assert joint["test/fg/fgsm"] == pytest.approx(sum(means) / 3)
    assert fg["test/fg/pgd"] == fg["test/fg/fgsm"] != joint["test/fg/pgd"]
    assert "test/bg/fgsm" not in joint  # not all of its budgets are there


def test_blurred_pictures() -> None:
    made = bench()
    joint, fg = (arm(name, made)._views() for name in ("joint", "fg"))
    right = []
    for sigma in (0.3, 0.6):
        pictures = torch.stack([LEFT, RIGHT], 1)[:, None, None]
        left = GaussianBlur(sigma)(None, pictures, None)[:, 0, 0, 0]
        assert fg[f"test/blur_{sigma:g}"] == share(left)
        right.append(mean(left))
        assert joint[f"test/blur_{sigma:g}"] == share(BOTH)  # mixing keeps the sum
    assert fg["test/blur"] == pytest.approx(sum(right) / 2)
    assert right[1] != right[0]


def test_the_white_box() -> None:
    made = bench()
    fg, bg, joint = (arm(name, made)._white_box() for name in ("fg", "bg", "joint"))
    assert joint["test/own/fgsm_1"] == share(BOTH, 2)
    assert joint["test/own/fgsm_4"] == share(BOTH, 8)
    assert fg["test/own/fgsm_1"] == share(LEFT, 1)
    assert bg["test/own/fgsm_1"] == share(RIGHT, 1)
    best = max(fg["test/own/fgsm_1"], bg["test/own/fgsm_1"])
    assert joint["test/own/best_single"] == fg["test/own/best_single"] == best
    assert fg["test/own/fgsm_1"] != bg["test/own/fgsm_1"]


def test_gains_over_the_foreground_against_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = torch.tensor([[0], [1]]) == LABELS
    gains = [mean(BOTH[part], 1) - mean(LEFT[part], 1) for part in parts]
    assert gains[0] != gains[1]
    sign = 1.0 if gains[1] > gains[0] else -1.0
    scores = {"between": torch.tensor([0.7, 0.1]), "within": torch.tensor([1.0, 1.0])}
    monkeypatch.setattr(room, "context_scores", lambda *_: scores)
    rho = arm("joint")._contexts()
    expected = {"test/rho/strength": sign, "test/rho/between": -sign, "test/rho/within": 0.0}
    assert rho == pytest.approx(expected)
    assert arm("fg")._contexts()["test/rho/strength"] == 0  # no gain over itself


def test_shares_and_losses_of_streams() -> None:
    module = arm("joint")
    even = module._streams()
    assert even["test/share/fg"] == pytest.approx(0.5, abs=1e-3)
    with torch.no_grad():
        module.fusion.block("fg").mul_(3)
    found = module._streams()
    assert found["test/share/fg"] == pytest.approx(0.75, abs=1e-3)
    assert found["test/share/bg"] == pytest.approx(0.25, abs=1e-3)
    both = mean(3 * LEFT + RIGHT)
    assert found["test/lost/bg"] == pytest.approx(both - mean(LEFT))


def test_clean_accuracy_and_muted_streams() -> None:
    made = bench()
    found = arm("joint", made).measures()
    assert found["test/accuracy"] == share(BOTH)
    assert 0 <= found["test/gradient_norm"] < 0.1
    assert arm("joint", made, measured=[], own=[]).measures().keys() == {
        "test/accuracy", "test/gradient_norm",
        *(f"test/{kind}/{name}" for kind in ("share", "lost") for name in ("fg", "bg")),
    }  # fmt: skip
    module = arm("joint", made, muted=["bg"])
    kept, moved = module.features("test", CLEAN).T
    plain = module.bench.features("test", CLEAN)
    assert torch.equal(kept, plain["fg"][:, 0])
    assert not torch.equal(moved, plain["bg"][:, 0])
    assert torch.equal(moved.sort().values, plain["bg"][:, 0].sort().values)
    assert torch.equal(module.features("val", CLEAN)[:, 1], plain["bg"][:, 0])


def test_validation_is_under_the_attacks_that_are_named() -> None:
    module = arm("joint", validated=["fg/fgsm_1", "bg/fgsm_1", "joint/fgsm_1"])
    found = logged(module, module.on_validation_epoch_end)
    assert found["val/accuracy"] == share(BOTH)
    assert found["val/attacked"] == pytest.approx((2 * mean(BOTH, 1) + mean(BOTH, 2)) / 3)


def test_a_penalty_is_added_to_the_decay() -> None:
    made = bench()
    made.settings.decay = 0.25
    training = made.training(
        made.head("joint"), arm("joint", made).features("train", CLEAN), {"fg": 2}
    )
    assert training.penalties == {"fg": 2.25, "bg": 0.25}


def test_stored_pictures_are_between_0_and_1() -> None:
    stored = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert bench().pictures(stored).tolist() == pytest.approx([0, 0.2, 1])


def test_features_are_kept_under_all_that_they_depend_on(tmp_path: Path) -> None:
    view = bench().perturbations.views()[2]
    how = {"cache": str(tmp_path)}
    first = bench(**how).features("test", view)
    kept = len(list(tmp_path.glob("*.npz")))
    again = bench(**how)
    again.seen = None  # type: ignore[assignment, method-assign]  # whoever computes now fails
    assert all(torch.equal(z, first[name]) for name, z in again.features("test", view).items())
    bench(**how, seed=1).features("test", view)
    bench(**how, optimizer=partial(torch.optim.Adam, lr=0.01)).features(
        "test", view
    )  # another attack
    assert len(list(tmp_path.glob("*.npz"))) > kept + 2


def test_pictures_may_be_resized_before_they_are_attacked() -> None:
    """Then there are more free pixels, and the budget counts for each."""

    def halves(name: str, *_: object) -> Stream:
        return Stream(nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), Pixel(int(name == "bg"))), 1)

    made = bench(size=4, source=halves)
    assert made.pictures(made.data.splits["test"][0]).shape == (8, 1, 4, 4)
    found = arm("joint", made)._views()
    assert found["test/fg/fgsm_2"] == share(BOTH, 2)


def test_retraining_moves_the_network_only_where_it_may(study: Study) -> None:
    """And fusion on top of it takes it over as it is."""
    states = {}
    for run in study.runs:
        checkpoint = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
        states[run.record().arm] = checkpoint["state_dict"]
    key = "fusion.streams.{}.network.features.0.weight"
    frozen = states["joint"]
    assert torch.equal(frozen[key.format("fg")], states["fg"][key.format("fg")])
    assert not torch.equal(frozen[key.format("fg")], states["retrained"][key.format("fg")])
    inherited = states["retrained_joint"]
    assert torch.equal(inherited[key.format("fg")], states["retrained"][key.format("fg")])
    assert torch.equal(inherited[key.format("bg")], frozen[key.format("bg")])


def test_retraining_of_the_head_alone_leaves_the_network(tmp_path: Path) -> None:
    run = finished(tmp_path, *SMOKE, "arm=retrained_head", "module.measured=[]", "module.own=[]")
    state = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    plain = finished(tmp_path, *SMOKE, "arm=fg", "module.measured=[]", "module.own=[]")
    before = torch.load(plain.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in before.items():
        assert torch.equal(value, state[name]) == ("head" not in name), name


def test_arms_of_a_seed_look_at_the_same_attack(study: Study) -> None:
    found = summaries(study)
    assert found["fg"]["test/fg/fgsm_1"] == found["fg"]["test/own/fgsm_1"]
    assert found["penalty"]["test/share/fg"] < found["joint"]["test/share/fg"]
    assert found["joint"]["test/gradient_norm"] > 0


NETWORKS = {
    "fg": ("torchvision/resnet18-f37072fd.pth", 1000),
    "bg": ("places365/resnet18_places365.pth.tar", 365),
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in both published layouts, CIFAR-10 and COCO in the hub's."""
    root = tmp_path_factory.mktemp("downloads")
    torch.manual_seed(0)
    for name, (file, classes) in NETWORKS.items():
        state: dict[str, Any] = ResNetImageNet([3, 224, 224], classes, depth=18).state_dict()
        if name == "bg":
            weights = {f"module.{key}": value for key, value in state.items()}
            state = {"epoch": 90, "arch": "resnet18", "state_dict": weights, "best_prec1": 54.2}
        (root / file).parent.mkdir()
        torch.save(state, root / file, _use_new_zipfile_serialization=name == "fg")
    folder = root / "uoft-cs" / "cifar10" / "plain_text"
    write_images(folder, (32, 32, 3), {"train": 40, "test": 20}, "img")
    write_photographs(root / "detection-datasets" / "coco" / "data", {"train": 80, "val": 20})
    return root


def write_photographs(folder: Path, splits: dict[str, int]) -> None:
    """Noise of 48 × 40 pixels with one large object of ten classes, in the layout of COCO's hub."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, count in splits.items():
        rows = []
        for number in range(count):
            encoded = io.BytesIO()
            pixels = draw.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(encoded, "PNG")
            objects = {"category": [number % 10], "bbox": [[0.0, 0.0, 40.0, 40.0]]}
            picture = {"bytes": encoded.getvalue(), "path": None}
            rows.append({"image": picture, "width": 48, "height": 40, "objects": objects})
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def test_both_published_layouts_load_into_one_network(downloads: Path) -> None:
    typed = ["paper=contextual_fusion", "scale=full", "arm=joint", f"data.root={downloads}"]
    (config,) = configs(*typed, "base.size=64").values()
    source, nothing = instantiate(config.base), cast(Any, None)
    x = torch.rand(2, 3, 64, 64)
    for name, (file, classes) in NETWORKS.items():
        stream = source(name, nothing, CPU, 0)
        network = ResNetImageNet([3, 224, 224], classes, depth=18).eval()
        if name == "fg":
            assert sum(p.numel() for p in network.parameters()) == 11_689_512
        saved = torch.load(downloads / file, weights_only=True)
        network.load_state_dict(
            {k.removeprefix("module."): v for k, v in saved.get("state_dict", saved).items()}
        )
        read: list[Tensor] = []
        network.fc.register_forward_pre_hook(lambda _, inputs, kept=read: kept.extend(inputs))
        network((x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / stream.std)
        z = stream(x)
        assert z.shape == (2, stream.width) == (2, 512)
        assert z.min() >= 0  # behind the last ReLU
        torch.testing.assert_close(z, read[0].detach())
    with pytest.raises(UserError, match=r"base\.streams\.fg2\.file="):
        source("fg2", nothing, CPU, 0)
    facts: Any = {"file": "any", "classes": 7, "depth": 18}
    assert unloaded({"x": facts}, size=8, mean=[0.5], std=[0.2])("x", nothing, CPU, 0).width == 512


@pytest.mark.parametrize(
    ("scale", "smaller"),
    [("full", []), ("full_coco", ["dataset.classes=10", "dataset.input_shape=[3,32,32]"])],
)
def test_full_scales_run_on_what_was_downloaded(
    scale: str, smaller: list[str], downloads: Path, tmp_path: Path
) -> None:
    typed = [
        "paper=contextual_fusion", f"scale={scale}", "seed=0", f"data.root={downloads}", *smaller,
        "hardware=cpu", "base.size=32", "dataset.val_size=10", "dataset.batch_size=10",
        "head_epochs=2", "module.bench.names=[fg,bg]", "module.own=[1.0]",
        "module.measured=[fgsm]",
        "module.bench.perturbations.fgsm={fg:[1.0,4.0],bg:[1.0],joint:[],fg2:[]}",
    ]  # fmt: skip
    run = finished(tmp_path, *typed, "arm=joint")
    assert run.summary().keys() >= {"test/accuracy", "test/fg/fgsm_4", "test/rho/between"}


@pytest.mark.parametrize("scale", ["full", "full_224", "full_coco", "full_resnet50"])
def test_full_scales_are_of_published_networks(scale: str) -> None:
    (config,) = configs("paper=contextual_fusion", f"scale={scale}", "arm=joint").values()
    streams = instantiate(config.base).streams
    depth = 50 if scale == "full_resnet50" else 18
    assert {streams[name]["depth"] for name in ("fg", "bg")} == {depth}
    assert config.dataset.name == ("coco_objects" if scale == "full_coco" else "cifar10")
    assert config.module.bench.size == (224 if scale == "full_224" else None)


SMALL_CNN = partial(SmallCNN, widths=[8, 16], strides=[2, 2], pool=1)


def scenes(source_size: int) -> Composites:
    facts: Any = {"task": "classification", "input_shape": [3, 32, 32], "classes": 10}
    sizes: Any = {"train_size": 20, "val_size": 20, "test_size": 20, "source_size": source_size}
    return digits_in_scenes("d", **facts, **sizes)


def test_rates_of_streams_fall_until_the_last_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four epochs of three batches; what is learnt is kept below the cache."""
    lengths, taken, kept = [], [], []

    def cosine(_optimizer: Any, steps: int, _warmup: float) -> Any:
        lengths.append(steps)
        return SimpleNamespace(step=lambda: taken.append(1))

    def once(_model: Any, train: Any, file: Path) -> None:
        kept.append(file.parent)
        train()

    monkeypatch.setattr(streams_module, "cosine", cosine)
    monkeypatch.setattr(streams_module, "trained_once", once)
    tasks: Any = {"fg": {"task": "object", "draw": 1}}
    made = TrainedStreams(SMALL_CNN, tasks, 4, lr=0.02, warmup=0.2, batch_size=5, cache="below")
    made("fg", scenes(15), CPU, 0)
    assert (lengths, len(taken), kept) == ([12], 12, [Path("below")])


def test_trained_streams_learn_their_tasks() -> None:
    data = scenes(600)
    tasks: Any = {"bg": {"task": "scene", "draw": 2}, "none": {"task": "nothing", "draw": 2}}
    streams = TrainedStreams(SMALL_CNN, tasks, epochs=4, lr=0.02, warmup=0.2, batch_size=50)
    x, _, scene = data.splits["source"]
    x = x.float() / 255
    spread = {}
    for name in tasks:
        z = streams(name, data, CPU, 0)(x)
        means = torch.stack([z[scene == k].mean(0) for k in range(12)])
        spread[name] = float(means.std(0).norm() / (z - means[scene]).std(0).norm())
    assert spread["bg"] > 1.2 * spread["none"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["module.head=jiont"], "Did you mean 'joint'"),
        (["module.head=bg_bg2"], "list it in module.bench.names"),
        (["dataset.augment={pad: 1}"], "dataset.augment=null"),
        (["dataset.normalise={mean:[0.5,0.5,0.5],std:[1,1,1]}"], "dataset.normalise={mean"),
        (["dataset=digits"], "say base=contextual_fusion/published"),
        (["dataset=iris"], "takes pictures in memory"),
        (["method=gradient_noise"], "say method=none"),
        (["base.epochs=0"], "epochs"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, "arm=joint", *typed)
