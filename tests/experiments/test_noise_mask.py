"""What is special to noise masks: scores by hand, stages, full-scale networks, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from repro.experiments.noise_mask.module import (
    TwoStages,
    balanced_accuracy,
    headless,
    log_odds,
    macro_scores,
    probe,
)
from rooms import configs, finished, plan, refusal, summaries
from sklearn.metrics import roc_auc_score

from repro.data.images.modalities import modal_digits
from repro.errors import UserError
from repro.methods.noise_mask import NoiseMask, flat_loss_scale
from repro.models.vision.small_cnn import SmallCNN
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.costs import CountFlops
from repro.toolbox.method import Method
from repro.training.execute import build_module

PAPER = load_paper("noise_mask")
ARMS = "arm=[scaled_first,const_first,plain,pg,plain_long]"
SMOKE = ["paper=noise_mask", "scale=smoke"]
PROBED = (
    "outline", "digits", "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist",
    "organamnist", "organcmnist", "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist",
    "tissuemnist",
)  # fmt: skip
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
# Right: two of three, one of two, one of one.
FOUND = torch.tensor([0, 0, 1, 1, 2, 2])
LOGITS = torch.nn.functional.one_hot(FOUND).float()


def config_of(scale: str, arm: str) -> DictConfig:
    """The config of one of some arms, which are planned together and once."""
    return configs("paper=noise_mask", f"scale={scale}", ARMS)[arm]


def built(scale: str, arm: str) -> TwoStages:
    """The module of an arm, away from any trainer."""
    module = build_module(config_of(scale, arm))
    assert isinstance(module, TwoStages)
    return module


def checkpoint(study: Study, arm: str) -> dict[str, Any]:
    (run,) = (run for run in study.runs if run.record().arm == arm)
    loaded: dict[str, Any] = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    return loaded


# -- Scores --------------------------------------------------------------------------------------


def test_macro_scores_by_hand() -> None:
    assert balanced_accuracy(LOGITS, LABELS) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    scores = macro_scores(LOGITS, LABELS, auroc=False)
    assert scores["macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores["macro_f1"] == pytest.approx((2 / (1 + 3 / 2) + 1 / 2 + 2 / 3) / 3)
    assert "macro_auroc" not in scores


def test_the_area_is_that_of_pairs_of_classes() -> None:
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    areas = []
    shares = logits.softmax(1).numpy()
    for a in range(3):
        for b in range(a):
            both = ((labels == a) | (labels == b)).numpy()
            for one, other in ((a, b), (b, a)):
                is_one = (labels.numpy() == one)[both]
                areas.append(roc_auc_score(is_one, shares[both, one]))
                assert other != one
    found = {f"test/{n}": value for n, value in macro_scores(logits, labels, True).items()}
    assert found["test/macro_auroc"] == pytest.approx(np.mean(areas))


class Bright(torch.nn.Module):
    """Pixels as logits; those below .7 are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0.7, x, 0.0).flatten(1)


def alone(model: torch.nn.Module, **knobs: Any) -> Any:
    """A module with nothing around it."""
    module: Any = TwoStages(
        model=model, method=Method(), optimizer=torch.optim.SGD, schedule=None, **knobs
    )
    module.trainer = type("Trainer", (), {"world_size": 1})()
    return module


def measured(split: str, fade: float | None = None) -> dict[str, float]:
    """What a module measures of two batches, whose logits are the images themselves."""
    module = alone(Bright(), fade=fade)
    module.on_validation_start()
    module.split = split
    module.evaluate((LOGITS[:4, None, None], LABELS[:4]), 0)
    module.evaluate((LOGITS[4:, None, None], LABELS[4:]), 1)
    return {name: float(value) for name, value in module.measured().items()}


def test_test_scores_are_over_all_batches() -> None:
    found = {f"test/{name}": value for name, value in measured("test", fade=0.5).items()}
    assert found["test/balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["test/macro_f1"] == pytest.approx((2 / (1 + 3 / 2) + 1 / 2 + 2 / 3) / 3)
    assert found["test/macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    # All faded images are taken for the first class.
    assert found["test/faded_balanced_accuracy"] == pytest.approx(1 / 3)


def test_scores_are_over_the_outputs_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(parts: list[Any], own: Any) -> None:
        parts[:] = [
            {0: own, 1: [(LOGITS[4:, None], LABELS[4:])]}[rank] for rank in range(len(parts))
        ]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module = alone(Bright())
    module.on_validation_start()
    strategy = SimpleNamespace(reduce=lambda total, reduce_op: total)
    module.trainer = SimpleNamespace(world_size=2, strategy=strategy)
    module.evaluate((LOGITS[:4, None, None], LABELS[:4]), 0)
    found = module.measured()
    assert float(found["balanced_accuracy"]) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_validation_has_its_balanced_accuracy_and_no_other_score() -> None:
    assert measured("val").keys() == {"loss", "accuracy", "balanced_accuracy"}


def test_log_odds_stay_finite() -> None:
    assert log_odds(0.75, 100) == pytest.approx(math.log(3))
    assert log_odds(1.0, 100) == pytest.approx(math.log(199))
    assert log_odds(0.0, 100) == pytest.approx(-math.log(199))


def test_probes_read_features_that_say_the_class() -> None:
    x = torch.nn.functional.one_hot(LABELS).float()
    assert probe(x, LABELS, x, LABELS) == 1
    assert probe(x, LABELS, x, (LABELS + 1) % 3) == 0


def outlines() -> Any:
    sizes: dict[str, Any] = {"train_size": 600, "val_size": 10, "test_size": 200}
    return modal_digits(modalities=["outline"], task="classification", tail=1.0, **sizes)


def probing(shots: list[int]) -> Any:
    model = SmallCNN([1, 16, 16], 3, widths=[4], strides=[2], pool=4)
    return alone(model, transfer={name: outlines() for name in PROBED}, shots=shots, draws=2)


def test_probes_know_more_with_more_shots() -> None:
    module = probing([5, 50])
    found = module._probed("outline", module.transfer["outline"])
    assert 0.1 < found["probe_outline_5"] < found["probe_outline_50"]
    assert found == module._probed("outline", module.transfer["outline"])


def test_accuracies_by_shots_and_their_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten classes; 5 and 50 shots give odds of 1 to 39 and 1 to 3."""
    monkeypatch.setattr(
        "repro.experiments.noise_mask.module.probe", lambda x, *_: len(x) / 10 / 200
    )
    module = probing([5, 50])
    data = module.transfer["outline"]
    found = {
        f"test/{key}": value for name in PROBED for key, value in module._probed(name, data).items()
    }
    assert len(found) == 3 * len(PROBED)
    for name in (
        "test/probe_outline_5", "test/probe_digits_5", "test/probe_bloodmnist_5",
        "test/probe_breastmnist_5", "test/probe_chestmnist_5", "test/probe_dermamnist_5",
        "test/probe_octmnist_5", "test/probe_organamnist_5", "test/probe_organcmnist_5",
        "test/probe_organsmnist_5", "test/probe_pathmnist_5", "test/probe_pneumoniamnist_5",
        "test/probe_retinamnist_5", "test/probe_tissuemnist_5",
    ):  # fmt: skip
        assert found[name] == pytest.approx(0.025)
    assert found["test/probe_outline_50"] == pytest.approx(0.25)
    for name in ("test/probe_gap_outline", "test/probe_gap_digits", "test/probe_gap_retinamnist"):
        assert found[name] == pytest.approx(-math.log(39 / 3))


@pytest.mark.parametrize("scale", ["mini", "mini_concepts", "full"])
def test_claims_read_probes_that_there_are(scale: str) -> None:
    config = config_of(scale, "plain")
    assert list(config.module.shots) == [5, 50]
    assert set(config.module.transfer) <= set(PROBED)


def test_features_are_what_the_classifier_reads() -> None:
    model: Any = built("mini", "plain_first").model
    x = torch.randn(3, 1, 16, 16)
    with headless(model) as features:
        seen = features(x)
        assert not model.training
    torch.testing.assert_close(model.fc(seen), model.eval()(x))


# -- Stages --------------------------------------------------------------------------------------


def test_the_second_stage_starts_from_the_first_ones_classifier_alone(study: Study) -> None:
    heated, tuned = checkpoint(study, "pg_first"), checkpoint(study, "pg")
    assert {"base_alpha", "base_beta"} <= heated["method"]["policy"].keys()
    assert tuned["method"] == {}
    assert not any("policy" in name or "base_" in name for name in tuned["state_dict"])
    assert heated["state_dict"].keys() == tuned["state_dict"].keys()
    module = built("smoke", "pg")
    module.start_from(heated)
    for name, weight in module.model.state_dict().items():
        assert torch.equal(weight, heated["state_dict"][f"model.{name}"])


def test_an_untrained_network_keeps_its_weights(study: Study) -> None:
    trained, untrained = (checkpoint(study, arm)["state_dict"] for arm in ("plain", "untrained"))
    torch.manual_seed(0)
    weights = {name for name in trained if name.endswith("weight")}
    assert all(not torch.equal(trained[name], untrained[name]) for name in weights)
    assert "test/probe_outline_1" in summaries(study)["untrained"]


def test_the_mean_of_the_last_epochs_is_tested() -> None:
    module = alone(Bright(), average_last=2)
    module.trainer.max_epochs = 3
    module.log = module.log_dict = lambda *_, **__: None
    for epoch in range(3):
        module.trainer.current_epoch = epoch
        torch.nn.init.constant_(module.model.fc.weight, float(epoch))
        module.on_train_epoch_end()
    module.on_test_start()
    assert module.model.fc.weight.unique().tolist() == [1.5]


def test_masked_training_measures_its_masks(study: Study) -> None:
    found = summaries(study)["pg_first"]
    assert found["mask/lse"] == pytest.approx(flat_loss_scale(8), abs=0.4)
    assert 0 < found["mask/std"] < 0.2
    assert found["mask/policy_gradient"] > 0


# -- Arms and scales -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_every_arm_has_its_own_rates_and_one_schedule(scale: str) -> None:
    for run in plan("paper=noise_mask", f"scale={scale}", ARMS).runs:
        config, name = run.config, run.arm.removesuffix("_first")
        rates = config.rates[config.rate_table][name]
        if run.arm in ("plain", "pg"):
            assert config.optimizer.lr == rates.second
            assert config.training.epochs == config.second.epochs
            assert config.schedule.warmup == config.second.warmup
            assert config.method._target_ == "repro.toolbox.method.Method"
        else:
            whole = config.long if run.arm == "plain_long" else config.first
            assert config.optimizer.lr == rates.first
            assert config.training.epochs == whole.epochs
            assert config.schedule.warmup == 0


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_controls_have_the_loss_scale_of_flat_masks(scale: str) -> None:
    found = {arm: config_of(scale, arm) for arm in ("scaled_first", "const_first", "pg_first")}
    assert found["scaled_first"].method.loss_scale == pytest.approx(
        flat_loss_scale(found["pg_first"].method.policy.grid)
    )
    assert found["const_first"].method.loss_scale == found["scaled_first"].method.loss_scale
    noises = {arm: config.method.get("noise") for arm, config in found.items()}
    assert noises == {"scaled_first": "none", "const_first": "constant", "pg_first": None}
    assert found["const_first"].method.strength == 0.5  # the masks' mean


def test_ablations_say_what_they_change() -> None:
    arms = "arm=[rand_first,bases_first,rand_unscaled_first,pg_normalised_first,pg_baseline_first]"
    built_of = {
        arm: instantiate(config.method)
        for arm, config in configs("paper=noise_mask", "scale=mini_controls", arms).items()
    }
    assert all(isinstance(method, NoiseMask) for method in built_of.values())
    assert not built_of["rand_first"].learns
    assert built_of["rand_unscaled_first"].loss_scale == "none"
    assert built_of["bases_first"].source == "bases"
    assert built_of["pg_normalised_first"].loss_scale == "normalised"
    assert built_of["pg_baseline_first"].objective == "reinforce_baseline"


def test_the_full_scale_builds_the_networks_of_the_paper() -> None:
    with torch.device("meta"):
        module = built("full", "pg_first")
    assert isinstance(module.method, NoiseMask)
    policy = module.method.policy
    assert sum(p.numel() for p in module.model.parameters()) == 23_846_117
    assert sum(p.numel() for p in policy.parameters()) == 10_179_704
    assert sum(p.numel() for p in policy.body.parameters()) == 4_922_488
    assert (policy.grid, module.method.kernel, module.method.sigma) == (64, 13, 6.0)


@pytest.mark.parametrize(
    ("scale", "parameters"), [("full_resnet18", 11_261_157), ("full_resnet10t", 5_007_133)]
)
def test_light_classifiers_are_those_of_the_paper(scale: str, parameters: int) -> None:
    (config,) = configs("paper=noise_mask", f"scale={scale}", "arm=plain_first").values()
    with torch.device("meta"):
        model = instantiate(config.model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_longer_training_costs_what_the_policy_does() -> None:
    """Multiplications of a forward pass, of which a step has three, on the small networks."""
    config = config_of("mini", "pg_first")
    module: Any = build_module(config)
    counts = []
    for network in (module.model, module.method.policy):
        with torch.no_grad(), CountFlops() as counted:
            network.eval()(torch.randn(1, 1, 16, 16))
        counts.append(counted.flops)
    assert config.long.epochs == config.first.epochs + config.second.epochs
    extra = config.first.epochs * counts[1] / counts[0]
    assert extra <= config.long.longer - config.long.epochs <= extra + 1


def write_medical(folder: Path) -> Path:
    """RadImageNet with two classes and MedMNIST's smallest set, in their published layouts."""
    for split in ("train", "val", "test"):
        for number, name in enumerate(("CT__abd__normal", "US__liver")):
            place = folder / "radimagenet" / split / name
            place.mkdir(parents=True)
            for image in range(4):
                Image.new("L", (40, 30), 90 * number + image).save(place / f"{image}.png")
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((6, 32, 32, 3), 7, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(6)[:, None] % 5
    (folder / "medmnist").mkdir()
    np.savez(folder / "medmnist" / "retinamnist_64.npz", **arrays)
    return folder / "hf"


def test_the_full_scale_trains_and_probes_on_published_layouts(tmp_path: Path) -> None:
    """Both stages, with the policy, on tiny files and images of 64 pixels."""
    small = "transfers.medical.retinamnist"
    run = finished(
        tmp_path / "outputs", "paper=noise_mask", "scale=full_resnet10t", "arm=pg", "seed=0",
        f"data.root={write_medical(tmp_path)}", "hardware=cpu", "dataset.classes=2",
        "dataset.workers=0", "dataset.batch_size=4", "dataset.input_shape=[3,32,32]",
        "first.epochs=1", "second.epochs=1", "shots=[1]", "mask.kernel=3", "mask.grid=8",
        f"module.transfer={{retina: ${{{small}}}}}", f"{small}.size=64",
        f"{small}.input_shape=[3,32,32]", f"{small}.eval_batch_size=4", "module.auroc=false",
    )  # fmt: skip
    assert run.summary()["steps"] == 2
    assert 0 <= run.summary()["test/probe_retina_1"] <= 1


# -- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shots", "message"),
    [(Bright(), [5, 1], "rise"), (torch.nn.Flatten(), [1], r"module.shots=\[\]")],
)
def test_probes_that_cannot_be(model: Any, shots: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        alone(model, shots=shots)
    assert len(str(error.value).splitlines()) == 1


def test_missing_medical_images_are_one_clear_message(tmp_path: Path) -> None:
    typed = [
        "paper=noise_mask",
        "scale=full",
        "arm=plain_first",
        "seed=0",
        f"data.root={tmp_path}/hf",
    ]
    assert "radimagenet.com" in refusal(tmp_path / "outputs", *typed, "hardware=cpu", lines=3)


def test_masks_train_another_papers_network(tmp_path: Path) -> None:
    typed = ["paper=man", "scale=smoke", "arm=bp", "method=noise_mask", "method.policy.grid=4"]
    run = finished(tmp_path, *typed, "seed=0")
    assert run.summary()["mask/lse"] > 0
