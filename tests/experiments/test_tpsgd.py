"""What is special to target projection: what is counted, whose rates are whose, adaptation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published import write_images
from repro.experiments.tpsgd.module import LocalRules
from rooms import configs, finished, refusal, summaries
from torch import Tensor, nn
from torch.nn import functional as F

from repro.claims.outcomes import Verdict
from repro.claims.studies import judge_study
from repro.methods.tpsgd import Backprop, DirectFeedback, TargetProjection
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("tpsgd")
SMOKE = ["paper=tpsgd", "scale=smoke"]
SHAPES = {"full_drtp_mnist": (1, 28, 28), "full_drtp_cifar10": (3, 32, 32)}


def built(*typed: str) -> LocalRules:
    """A module, away from any trainer."""
    (module,) = modules(*typed)
    return module


def modules(*typed: str) -> Iterator[LocalRules]:
    """Those of all arms that are planned."""
    for config in configs("paper=tpsgd", *typed).values():
        module = build_module(config)
        assert isinstance(module, LocalRules)
        yield module


@pytest.mark.parametrize("scale", ["mini", "full_mlp", "full_lenet"])
def test_every_arm_has_its_own_rates(scale: str) -> None:
    for arm, config in configs("paper=tpsgd", f"scale={scale}").items():
        rates = config.rates[config.rate_table][arm]
        assert config.optimizer.lr == rates.output
        assert config.method.hidden_lr == rates.hidden
        assert config.method.get("scale") == rates.get("scale")


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [
        ("full_mlp", 784 * 500 + 500 + 500 * 500 + 500 + 500 * 10 + 10),
        ("full_cnn", 32 * 25 + 32 + 14 * 14 * 32 * 1000 + 1000 + 10_010),
        ("full_rnn", 28 * 128 + 128 + 128 * 128 + 1290),
        ("full_drtp_mnist", 32 * 25 + 32 + 14 * 14 * 32 * 1000 + 1000 + 10_010),
        (
            "full_drtp_cifar10",
            64 * 27 + 64 + 256 * 64 * 9 + 256 + 8 * 8 * 256 * 2000 + 2000 + 20_010,
        ),
        # The published convolutions of VGG-11 and VGG-16, and two hidden layers of 512.
        ("full_vgg11", 9_220_480 + 2 * (512 * 512 + 512) + 5130),
        ("full_vgg16", 14_714_688 + 2 * (512 * 512 + 512) + 5130),
        ("full_lenet", 62_006),
    ],
)
def test_full_scales_build_the_networks_they_name(scale: str, parameters: int) -> None:
    with torch.device("meta"):
        module = next(modules(f"scale={scale}"))
    assert sum(p.numel() for p in module.model.parameters()) == parameters


def step_of_drtps_authors(net: Any, x: Tensor, y: Tensor, arm: str, tables: Any) -> None:
    """A step as their code takes it, with their rates: hooks replace gradients behind activations.

    What the hooks put there is of each example, whereas the loss is a mean over examples and, on
    MNIST, over outputs.
    """
    dataset, rule = arm.split("_")
    hot = F.one_hot(y, 10).to(x)
    signals: dict[int, Tensor] = {}
    z = x
    for number, layer in enumerate(net.units, 1):
        is_frozen = dataset == "cifar" and isinstance(layer[-2], nn.Conv2d)
        layer.requires_grad_(not is_frozen)
        z = layer(z)
        if z.requires_grad and rule != "bp":
            z.register_hook(lambda _, number=number: signals[number])
    out = net.head(z)
    if dataset == "mnist":
        loss, seen = F.binary_cross_entropy(out.sigmoid(), hot), out.sigmoid()
    else:
        loss, seen = F.cross_entropy(out, y), out.softmax(1)
    error = {"drtp": hot, "dfa": seen - hot, "sdfa": (seen - hot).sign()}.get(rule, hot)
    for number, table in tables.items():
        sign = -1 if rule == "drtp" else 1  # a target lies where its own matrix does not point
        signals[number] = sign * torch.einsum("bc,c...->b...", error.detach(), table)
    rate = {"mnist": 1e-4, "cifar": 5e-4}[dataset]
    trained = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, nesterov=True)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("scale", "arm"),
    [
        *(("full_drtp_mnist", f"mnist_{rule}") for rule in ("bp", "drtp", "dfa", "sdfa")),
        *(("full_drtp_cifar10", f"cifar_{rule}") for rule in ("bp", "drtp")),
    ],
)
def test_a_step_of_drtps_scales_is_that_of_its_authors(scale: str, arm: str) -> None:
    """Rates times the factors by which signals differ: 100 examples, 10 outputs."""
    torch.manual_seed(0)
    module = built(f"scale={scale}", f"arm={arm}", "model.stages=[[4]]", "model.hidden=[20]")
    net, method = module.model.double().eval(), module.method  # without dropout
    before, reference = copy.deepcopy(net), copy.deepcopy(net)
    x, y = torch.rand(100, *SHAPES[scale], dtype=torch.float64), torch.arange(100) % 10
    method.attach(net)
    optimizer = method.optimizer(net, module.optimizer_factory)
    method.backward(module.loss, (x, y), Tensor.backward)
    optimizer.step()
    rules = TargetProjection | DirectFeedback
    tables = method.projections._tables if isinstance(method, rules) else {}
    for table in tables.values():
        assert float(table.abs().max()) == pytest.approx((6 / table[0].numel()) ** 0.5, rel=0.1)
    step_of_drtps_authors(reference, x, y, arm, tables)
    found, expected = (steps(before, after) for after in (net, reference))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def steps(before: nn.Module, after: nn.Module) -> list[Tensor]:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return [(there - here).detach() for here, there in pairs]


def test_what_a_step_keeps_against_depth() -> None:
    """In units of a layer's outputs, by hand: tanh keeps its output, the next layer its input."""
    sizes = ["module.memory_depths=[4,8,64]", "module.memory_width=64", "module.memory_batch=8"]
    layer = 8 * 64 * 4 / 1024  # KB
    backprop, local, direct = (
        built("scale=mini", f"arm=memory_{arm}", *sizes).memory() for arm in ("bp", "l2", "dfa")
    )
    for kept in (backprop, direct):
        grown = kept["memory/saved_kb_depth_8"] - kept["memory/saved_kb_depth_4"]
        assert grown == pytest.approx(4 * layer)
        grown = kept["memory/saved_kb_depth_64"] - kept["memory/saved_kb_depth_8"]
        assert grown == pytest.approx(56 * layer)
        assert 0.6 < kept["memory/saved_exponent"] < 1.0
    assert local["memory/saved_kb_depth_8"] == local["memory/saved_kb_depth_4"] < 4 * layer
    assert local["memory/saved_exponent"] == pytest.approx(0)
    # All gradients at once are more than all activations here; updated at once, they go.
    assert backprop["memory/peak_kb_depth_8"] > 1.6 * backprop["memory/peak_kb_depth_4"]
    assert local["memory/peak_exponent"] == pytest.approx(0, abs=1e-3)


def test_a_step_towards_class_means_keeps_no_more_with_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a GPU holds beside it does not count on a CPU."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10**9)
    sizes = ["module.memory_depths=[2,4]", "module.memory_width=16", "module.memory_batch=20"]
    kept = built("scale=mini", "arm=class_means", *sizes).memory()
    assert kept["memory/saved_kb_depth_2"] == kept["memory/saved_kb_depth_4"] > 0
    assert kept["memory/peak_kb_depth_2"] > 0


def test_measuring_memory_changes_no_run(tmp_path: Path) -> None:
    typed = [*SMOKE, "arm=memory_l2", "seed=0", "method.update=together"]
    metered = finished(tmp_path / "metered", *typed).summary()
    plain = finished(tmp_path / "plain", *typed, "module.memory_depths=[]").summary()
    assert "memory/saved_exponent" in metered
    assert metered["test/loss"] == plain["test/loss"]


def test_multiplications_of_a_step(study: Study) -> None:
    """Three products a layer in backpropagation, without the inputs' gradient of the first."""
    found = {arm: s.get("cost/multiplications") for arm, s in summaries(study).items()}
    first, second, last = (64 * n * m for n, m in ((64, 16), (16, 16), (16, 10)))
    products = {
        "bp": 2 * first + 3 * second + 3 * last,
        "tpsgd_l2": 2 * first + 2 * second + 2 * last,
        "frozen": first + second + 2 * last,
    }
    for arm, count in products.items():
        counted = found[arm]
        assert counted is not None
        # Besides, elementwise products: of a few outputs each.
        assert count <= counted < count + 64 * 500, arm
    assert found["cnn_l2"] is None


def epochs_to_target(accuracies: list[float]) -> tuple[float, float]:
    """What is logged after validations with these accuracies, one an epoch."""
    module: Any = built("scale=smoke", "arm=bp", "module.target_accuracy=0.9")
    logged: dict[str, float] = {}
    module.log = logged.__setitem__
    module.log_dict = logged.update
    for epoch, accuracy in enumerate(accuracies):
        module.trainer = type("Trainer", (), {"current_epoch": epoch, "world_size": 1})()
        module.split = "val"
        module.means.__init__()
        module.means.add("accuracy", torch.tensor(accuracy))
        module.log_measured()
    return logged["val/epochs_to_target"], logged["val/reached_target"]


def test_epochs_to_an_accuracy_are_those_of_its_first_validation() -> None:
    assert epochs_to_target([0.5, 0.91, 0.8]) == (2, 1)
    assert epochs_to_target([0.9]) == (1, 1)
    assert epochs_to_target([0.5, 0.6, 0.7]) == (4, 0)  # never: one more than there are


def test_drtp_is_l1_with_targets_of_one(study: Study) -> None:
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C5"] in (Verdict.SUPPORTED, Verdict.NOT_AT_SCALE)
    found = summaries(study)
    assert found["l1_unit"]["train/loss"] == found["drtp_unit"]["train/loss"]
    assert found["l1_unit"]["train/loss"] != found["tpsgd_l2"]["train/loss"]


def test_class_means_are_other_targets(study: Study) -> None:
    found = summaries(study)
    assert found["class_means"]["test/loss"] != found["tpsgd_l2"]["test/loss"]


def test_adaptation_trains_the_last_hidden_layer_of_the_trained_network(study: Study) -> None:
    weights = {}
    for run in study.runs:
        if run.record().arm in ("bp", "adapt_l2"):
            checkpoint = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
            weights[run.record().arm] = checkpoint["state_dict"]
    changed = {n for n, w in weights["adapt_l2"].items() if not torch.equal(w, weights["bp"][n])}
    assert {name for name in changed if name.startswith("model")} == {
        f"model.{layer}.{part}" for layer in (3, 5) for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model=small_cnn"], "no chain()"),
        (["method.trained=[7]"], "hidden layers 0 to"),
        (["method.loss=l3"], "l2, l1, drtp"),
        (["module.target_accuracy=2"], "target_accuracy"),
        (["method.nonsense=1"], "nonsense"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, "arm=tpsgd_l2", "seed=0", *typed)


@pytest.mark.parametrize("method", ["tpsgd", "tpsgd/fa", "tpsgd/dfa"])
def test_the_rules_train_another_papers_residual_network(tmp_path: Path, method: str) -> None:
    typed = ["paper=man", "scale=smoke", "arm=bp", f"method={method}", "seed=0"]
    assert finished(tmp_path, *typed).summary()["test/accuracy"] > 0


@pytest.mark.parametrize(
    ("scale", "arm"),
    [
        ("full_mlp", "fa"),
        ("full_rnn2", "tpsgd_l2"),
        ("full_vgg11", "tpsgd_l1"),
        ("full_drtp_mnist", "mnist_drtp"),
        ("full_drtp_cifar10", "cifar_drtp"),
        ("full_lenet", "dfa"),
    ],
)
def test_full_scales_train_on_published_files(scale: str, arm: str, tmp_path: Path) -> None:
    """Two steps and an evaluation on images in the layouts of MNIST and CIFAR-10."""
    root, splits = tmp_path / "hf", {"train": 24, "test": 10}
    write_images(root / "ylecun/mnist/mnist", (28, 28), splits, "image")
    write_images(root / "uoft-cs/cifar10/plain_text", (32, 32, 3), splits, "img")
    sizes = ["dataset.val_size=8", "dataset.batch_size=8", "training={epochs:1,max_steps:2}"]
    typed = ["paper=tpsgd", f"scale={scale}", f"arm={arm}", "seed=0", f"data.root={root}"]
    summary = finished(tmp_path / "out", *typed, "hardware=cpu", *sizes).summary()
    assert summary["steps"] == 2
    assert 0 < summary["train/loss"] < 10
    assert 0 <= summary["test/accuracy"] <= 1


def test_a_missing_data_set_is_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=tpsgd", "scale=full_vgg11", "arm=bp", "seed=0", f"data.root={tmp_path}"]
    assert "cifar10" in refusal(tmp_path / "outputs", *typed, "hardware=cpu", lines=3)


def test_other_methods_train_in_this_room(tmp_path: Path) -> None:
    run = finished(tmp_path, *SMOKE, "arm=bp", "seed=0", "method=gradient_noise")
    assert "noise/std" in run.summary()


def test_arms_name_their_rules() -> None:
    assert type(built("scale=mini", "arm=bp").method) is Backprop
    method = built("scale=mini", "arm=rnn_l2_all").method
    assert isinstance(method, TargetProjection)
    assert method.times == "all"
