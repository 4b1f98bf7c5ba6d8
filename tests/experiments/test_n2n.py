"""What is special to N2N: who takes what over, what is counted, full-scale teachers and data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from published import write_images
from repro.experiments.n2n import module as room
from repro.experiments.n2n.module import Compression
from rooms import configs, finished, logged, refusal, summaries
from torch import nn

from repro.errors import UserError
from repro.methods.n2n import (
    Layer,
    Reinforce,
    RemovalPolicy,
    Rollout,
    count_parameters,
    dump,
    fresh,
    load,
    read,
    rows,
)
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("n2n")
STUDENT = (Layer("flatten"), Layer("linear", 10))  # 650 parameters
SMOKE = ["paper=n2n", "scale=smoke", "seed=0"]


def built(*typed: str) -> Compression:
    """A module, away from any trainer."""
    (config,) = list(configs("paper=n2n", *typed).values())[-1:]
    module = build_module(config)
    assert isinstance(module, Compression)
    return module


def kept_of(study: Study, arm: str) -> dict[str, Any]:
    run = next(run for run in study.runs if run.record().arm == arm)
    checkpoint: dict[str, Any] = torch.load(run.last_checkpoint, weights_only=True)
    return checkpoint


def searched() -> Compression:
    """A module of stage 1 after eight updates of one proposal, with results made up."""
    module: Any = built("scale=smoke", "arm=removal", "module.judge.recipe.epochs=2")
    whole = sum(each.numel() for each in module.model.parameters())
    module.data = type("Data", (), {"input_shape": [64]})()
    module.teacher_shares = {"val": 0.9, "test": 0.8}
    module.best = {"reward": 0.7, "student": dump(STUDENT)}
    module.known = {"a": 0.9, "b": 0.85, "c": 0.5}
    module.repeats, module.finals = 2, [0.85, 0.95, 0.5, 0.7]
    made = [
        *((0, 0.1, 900, 0.89, True), (1, -1.0, 0, 0.0, False)),
        *((2, 0.2, 700, 0.95, True), (3, 0.4, 300, 0.5, True)),
        *((4, 0.5, 800, 0.89, False), (5, 0.5, 800, 0.89, True)),
        *((6, 0.7, 650, 0.85, False), (7, 0.9, 650, 0.85, False)),
    ]
    names = ("update", "reward", "parameters", "accuracy", "within")
    module.rollouts = [{**dict(zip(names, row, strict=True)), "valid": row[1] > -1} for row in made]
    module.update, module.whole_size = 8, whole
    return module


def test_what_a_search_logs_by_hand() -> None:
    module: Any = searched()
    found = module.summary()
    assert found["search/reward"] == 0.7
    assert found["search/mean_reward"] == pytest.approx(2.3 / 8)
    assert found["search/late_reward"] == pytest.approx(0.8)  # the last two of eight updates
    assert found["search/within_share"] == pytest.approx(0.0)  # of the last third: two, too
    assert found["search/invalid_share"] == pytest.approx(1 / 8)
    assert found["search/compression_at_drop"] == pytest.approx(module.whole_size / 700)
    assert (found["search/trainings"], found["search/student_epochs"]) == (3, 6)
    assert (found["search/updates"], found["search/rollouts"]) == (8, 8)
    assert found["test/accuracy"] == pytest.approx(0.9)
    assert found["test/plain_accuracy"] == pytest.approx(0.6)
    assert found["test/teacher_accuracy"] == 0.8
    assert found["test/parameters"] == 650
    assert found["test/compression"] == pytest.approx(module.whole_size / 650)
    module.rollouts[-1]["within"] = True
    assert module.summary()["search/within_share"] == pytest.approx(0.5)


def test_the_best_student_is_that_of_the_largest_reward() -> None:
    module: Any = built("scale=smoke", "arm=removal")
    students = [(Layer("flatten"), Layer("linear", width), *STUDENT[1:]) for width in (1, 2, 3)]
    some = [Rollout(0, 0.2), Rollout(0, 0.5), Rollout(0, 0.3)]
    assert logged(module, lambda: module._note(students, some)) == pytest.approx(
        {"train/reward": 1 / 3, "train/best": 0.5}
    )
    found = logged(module, lambda: module._note([STUDENT], [Rollout(1, 0.4)]))
    assert found == pytest.approx({"train/reward": 0.4, "train/best": 0.5})
    assert load(module.best["student"]) == students[1]


@pytest.mark.parametrize("arm", ["removal", "teacher"])
def test_a_step_for_the_teacher_each_update_and_each_final_training(arm: str) -> None:
    module: Any = built("scale=smoke", f"arm={arm}", "module.repeats=3")
    needed = 1 + (module.budget.updates if arm == "removal" else 1) + 3 + 3
    trainer = SimpleNamespace(precision="32-true", max_epochs=needed // 2, num_training_batches=2)
    module.trainer = trainer
    module.on_train_start()
    trainer.max_epochs, trainer.num_training_batches = needed - 1, 1
    with pytest.raises(UserError, match=f"set training.epochs={needed} or more"):
        module.on_train_start()


def test_final_trainings_have_two_losses_and_their_own_weights_and_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = searched()
    orders, losses, students = list[int](), list[str](), list[nn.Module]()

    def batches(epoch: int) -> list[Any]:
        orders.append(epoch)
        return []

    def train(some: list[nn.Module], epochs: Any, recipe: Any, _: nn.Module) -> None:
        epochs(3)
        losses.append(recipe.loss)
        students.extend(some)

    loader = SimpleNamespace(batches=batches)
    module.data.train_dataloader = module.data.test_dataloader = lambda: loader
    monkeypatch.setattr(room, "train", train)
    monkeypatch.setattr(room, "accuracies", lambda *_: [0.5])
    module.finals = []
    for _ in range(4):
        module._train_what_was_found()
    assert [order for order in orders if order] == [10_003, 20_003] * 2
    assert losses == [module.make_judge.keywords["recipe"].loss] * 2 + ["labels"] * 2
    assert [read(student) for student in students] == [STUDENT] * 4
    brief = module._judge().student(STUDENT)
    one, two, again, _, during = [
        next(iter(each.parameters())).detach() for each in (*students, brief)
    ]
    assert one.equal(again)
    assert not one.equal(two)
    assert not during.equal(one)
    assert not during.equal(two)


def second() -> Any:
    """A module of stage 2, whose parent began with 32 units and found a linear student."""
    module: Any = searched()
    began = (Layer("flatten"), Layer("linear", 32), Layer("relu"), Layer("linear", 10))
    weights = fresh(STUDENT, [64], seed=5).state_dict()
    module.parent = {"best": {"student": dump(STUDENT)}, "origin": dump(began), "weights": weights}
    module.data.train_dataloader = lambda: None
    return module


@pytest.mark.parametrize("reference", ["teacher", "parent"])
def test_students_are_judged_against_the_teacher_or_as_released_the_parent(reference: str) -> None:
    module: Any = second()
    module.reference = reference
    judge = module._judge()
    if reference == "teacher":
        assert judge.guide is module.model
        assert judge.parameters == module.whole_size
    else:
        assert read(judge.guide) == STUDENT
        assert judge.guide.state_dict()["1.bias"].equal(module.parent["weights"]["1.bias"])
        assert judge.parameters is None  # those of the guide


def test_rivals_come_from_the_teacher_the_parents_origin_and_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = second()
    pruned = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 10))
    monkeypatch.setattr(room, "prune_to_size", lambda *_: pruned)
    found: dict[str, Any] = {}
    for module.design in ("same_size", "common_factor", "magnitude"):
        found[module.design] = module._designed()
    assert len(found["same_size"]) == len(module.whole)
    assert len(found["common_factor"]) == 4
    assert count_parameters(found["common_factor"], [64]) == 8 * 65 + 9 * 10  # of at most 650
    assert found["magnitude"] == read(pruned)


def test_stage_2_starts_from_the_student_of_stage_1(study: Study) -> None:
    first, second = (kept_of(study, arm) for arm in ("removal", "shrinkage"))
    assert second["kept"]["origin"] == first["kept"]["best"]["student"]
    names = [name for name in first["state_dict"] if name.startswith("model.")]
    assert names
    for name in names:  # one teacher
        assert torch.equal(first["state_dict"][name], second["state_dict"][name])
    found = summaries(study)
    assert found["removal"]["test/teacher_accuracy"] == found["shrinkage"]["test/teacher_accuracy"]
    assert found["teacher"]["test/compression"] == 1
    widths = [row.layer.outputs for row in rows(load(second["kept"]["best"]["student"]))]
    assert widths[-1] == 10


def test_rivals_are_of_the_students_size(study: Study) -> None:
    found = summaries(study)
    size = found["shrinkage"]["test/parameters"]
    for arm in ("common_factor", "magnitude"):
        assert 0.5 * size < found[arm]["test/parameters"] <= size


def test_policies_are_taken_over(study: Study, outputs: Path, tmp_path: Path) -> None:
    typed = [*SMOKE, f"outputs={outputs}", "training.max_steps=1"]
    for arm in ("warm", "warm_marginal", "random_rate"):
        run = finished(tmp_path / arm, *typed, f"arm={arm}")
        module: Any = build_module(run.config())
        parent = run.parent()
        assert parent is not None
        checkpoint = torch.load(parent.last_checkpoint, weights_only=True)
        module.start_from(checkpoint)
        theirs, ours = (checkpoint["state_dict"], module.state_dict())
        same = torch.equal(ours["search.policy.head.weight"], theirs["search.policy.head.weight"])
        assert same == (arm == "warm")
        rates = module.search.policy.distribution(module.origin)[:, 1].exp()
        assert (rates.std() < 1e-6) == (arm != "warm")
        assert module.origin == module.whole


def test_arms_are_what_they_say() -> None:
    arms = "arm=[removal,random,uniform,shared,shrinkage,released]"
    plan = configs("paper=n2n", "scale=mini", arms)
    searches: dict[str, Any] = {arm: build_module(each).search for arm, each in plan.items()}
    assert isinstance(searches["removal"], Reinforce)
    assert isinstance(searches["uniform"].policy, RemovalPolicy)
    assert [searches[arm].learns for arm in ("removal", "random", "uniform")] == [
        True,
        False,
        False,
    ]
    assert searches["shared"].advantage == "shared"
    (group,) = searches["shrinkage"].optimizer.param_groups
    assert group["lr"] == plan["shrinkage"].rates.shrinkage
    edit = searches["shrinkage"].policy.edit
    assert (edit.least_width, list(edit.variables), list(edit.keep)) == (
        2,
        ["outputs"],
        ["avg_pool"],
    )
    released = searches["released"]
    assert (released.baseline_kind, released.steps, released.reinforced) == (
        "released", "rollout", "all",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "parameters", "layers"),
    [
        ("mini", 76_938, 16),
        ("full", 11_173_962, 51),
        ("full_resnet34", 21_282_122, 91),
        ("full_svhn", 11_173_962, 51),
        ("full_cifar100", 11_220_132, 51),
        ("full_cifar100_resnet34", 21_328_292, 91),
        ("full_vgg19", 20_040_522, 54),
        ("full_mnist", 9_416_010 - 2 * 9 * 64, 35),
        ("full_caltech", 11_308_353, 52),
    ],
)
def test_teachers_have_the_published_sizes(scale: str, parameters: int, layers: int) -> None:
    with torch.device("meta"):
        module = built(f"scale={scale}", "arm=removal")
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    assert len(rows(module.whole)) == layers


@pytest.mark.parametrize(("scale", "second_rate"), [("full", 0.1), ("full_vgg19", 0.01)])
def test_full_has_the_released_recipes(scale: str, second_rate: float) -> None:
    config = configs("paper=n2n", f"scale={scale}", "arm=removal")["removal"]
    recipe, teacher = config.module.judge.recipe, config.module.teacher
    assert (recipe.epochs, recipe.lr, recipe.weight_decay) == (5, 5e-4, 5e-4)
    assert (teacher.epochs, teacher.lr, teacher.weight_decay) == (100, 1e-3, 1e-4)
    assert (config.module.budget.updates, config.module.budget.rollouts) == (100, 5)
    assert recipe.loss == "logits"
    assert (config.method.lr, config.rates.shrinkage) == (3e-3, second_rate)


def test_full_runs_on_files_in_the_hubs_layout(tmp_path: Path) -> None:
    files = tmp_path / "uoft-cs/cifar10/plain_text"
    write_images(files, (32, 32, 3), {"train": 18, "test": 10}, "img")
    small = [
        "dataset.val_size=8", "dataset.batch_size=8", "updates.removal=1",
        "module.budget.rollouts=1", "module.judge.recipe.epochs=1", "module.teacher.epochs=1",
        "module.repeats=1", "module.teacher_accuracy=0.5", "hardware=cpu", "seed=0",
        f"data.root={tmp_path}",
    ]  # fmt: skip
    typed = ["paper=n2n", "scale=full", "arm=removal", *small]
    found = finished(tmp_path / "out", *typed).summary()
    assert found["test/compression"] > 0
    assert found["search/rollouts"] == 1


def test_missing_data_is_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=n2n", "scale=full_caltech", "arm=teacher", "seed=0", "hardware=cpu"]
    assert "caltech256" in refusal(tmp_path / "o", *typed, f"data.root={tmp_path}", lines=3)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["arm=removal", "method=none"], "n2n takes method=n2n/removal"),
        (["arm=removal", "module.design=whole"], "n2n takes method=n2n/removal"),
        (["arm=teacher", "module.design=half"], "half_depth"),
        (["arm=teacher", "module.design=same_size"], "say from="),
        (["arm=removal", "training.epochs=3"], "set training.epochs=6"),
        (["arm=removal", "model.activation=tanh"], "n2n knows no layer Tanh"),
        (["arm=removal", "method.lr=0"], "lr is positive"),
    ],
)
def test_a_bad_setting_is_one_line(typed: list[str], complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, *SMOKE, *typed)


@pytest.mark.parametrize("arm", ["removal", "teacher"])
def test_a_policy_is_taken_from_an_arm_that_has_one(arm: str) -> None:
    module = built("scale=smoke", f"arm={arm}", "module.take=policy")
    with pytest.raises(UserError, match="takes over a policy"):
        module.start_from({"state_dict": {}})
