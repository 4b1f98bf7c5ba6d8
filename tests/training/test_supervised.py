"""`Supervised` does what a bare PyTorch loop does, bit for bit, and measures correctly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run, Status
from repro.records.series import read_series
from repro.toolbox import schedules
from repro.training.execute import build_module, execute_here
from repro.training.supervised import TASKS

PLAIN = ["arm=sgd", "seed=3", "model=mlp", "model.hidden=[16]"]


def execute(folder: Path, *typed: str, epochs: int = 2) -> Run:
    plan = plan_study(["paper=toy", *PLAIN, f"training.epochs={epochs}", *typed])
    run = create_study(plan, folder / "outputs").runs[0]
    assert execute_here(run) == Status.FINISHED, run.record()
    return run


def weights(run: Run, name: str = "last") -> dict[str, Tensor]:
    state = torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items()}


def bare_loop(
    run: Run, steps: int, clip: float | None, steps_per_epoch: int | None
) -> tuple[nn.Module, list[float]]:
    """The same training without the engine: what the README's plain loop would be."""
    config = run.config()
    data = instantiate(config.dataset)
    torch.manual_seed(config.seed)
    model = instantiate(config.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    scheduler = schedules.cosine(optimizer, steps, warmup=0.1)
    losses: list[float] = []
    batches = data.train_dataloader()
    while len(losses) < steps:
        for inputs, target in itertools.islice(batches, steps_per_epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), target)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            losses.append(float(loss))
            if len(losses) == steps:
                break
    return model.eval(), losses


@pytest.mark.parametrize(
    ("typed", "steps", "clip", "steps_per_epoch"),
    [
        ([], 40, None, None),
        (["training.clip_norm=0.5"], 40, 0.5, None),
        (["training.max_steps=33"], 33, None, None),
        (["training.steps_per_epoch=7"], 14, None, 7),
    ],
    ids=["plain", "clipped", "max_steps", "steps_per_epoch"],
)
def test_training_equals_a_bare_loop_bit_for_bit(
    toy: Path, typed: list[str], steps: int, clip: float | None, steps_per_epoch: int | None
) -> None:
    common = ["schedule=cosine", "schedule.warmup=0.1", "optimizer.lr=0.2"]
    run = execute(toy, *common, "optimizer.weight_decay=0.001", "training.log_every=1", *typed)
    model, losses = bare_loop(run, steps, clip, steps_per_epoch)
    rows = read_series(run.folder / "metrics.csv")
    assert [row["train/step_loss"] for row in rows if "train/step_loss" in row] == losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights(run)[name]), name
    x, y = instantiate(run.config().dataset).splits["test"]
    output = model(x)
    assert run.summary()["test/accuracy"] == pytest.approx(
        float((output.argmax(1) == y).float().mean()), rel=1e-6
    )
    assert run.summary()["test/loss"] == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-5)


@pytest.mark.parametrize(("asked", "is_said"), [(20, False), (21, True)])
def test_epochs_without_so_many_steps_are_said(toy: Path, asked: int, is_said: bool) -> None:
    run = execute(toy, f"training.steps_per_epoch={asked}")
    said = f"training.steps_per_epoch={asked}, but an epoch has 20 batches: it takes 20 steps"
    assert (said in run.log_file.read_text()) == is_said


def test_measures_do_not_depend_on_how_the_batches_fall(toy: Path) -> None:
    whole = execute(toy, "dataset.eval_batch_size=1000").summary()
    uneven = execute(toy, "dataset.eval_batch_size=77").summary()
    for name in ("val/loss", "val/accuracy", "test/loss", "test/accuracy"):
        assert whole[name] == pytest.approx(uneven[name], rel=1e-5), name


def test_the_epochs_loss_is_the_mean_over_its_steps(toy: Path) -> None:
    run = execute(toy, "training.log_every=1")
    rows = read_series(run.folder / "metrics.csv")
    steps = [row["train/step_loss"] for row in rows if "train/step_loss" in row]
    epochs = [row["train/loss"] for row in rows if "train/loss" in row]
    assert epochs == pytest.approx([sum(steps[:20]) / 20, sum(steps[20:]) / 20], rel=1e-6)


def test_training_that_ends_within_an_epoch_is_validated(toy: Path) -> None:
    run = execute(toy, "training.max_steps=5")
    assert run.summary()["steps"] == 5
    assert "val/accuracy" in run.summary()
    assert run.best_checkpoint.is_file()


def test_the_best_checkpoint_is_that_of_the_best_validation(toy: Path) -> None:
    run = execute(toy, "optimizer.lr=1.5", "schedule=constant", "training.test_with=best", epochs=6)
    rows = [row for row in read_series(run.folder / "metrics.csv") if "val/accuracy" in row]
    best = max(row["val/accuracy"] for row in rows)
    assert len({row["val/accuracy"] for row in rows}) > 1
    model = instantiate(run.config().model)
    model.load_state_dict(weights(run, "best"))
    data = instantiate(run.config().dataset)
    for split, expected in (("val", best), ("test", run.summary()["test/accuracy"])):
        x, y = data.splits[split]
        assert float((model(x).argmax(1) == y).float().mean()) == pytest.approx(expected)


def test_a_monitor_that_is_never_logged_is_said(toy: Path) -> None:
    plan = plan_study(
        [
            "paper=toy",
            *PLAIN,
            "training.epochs=1",
            "training.test_with=best",
            "training.monitor=val/acuracy",
        ]
    )
    run = create_study(plan, toy / "outputs").runs[0]
    assert execute_here(run) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert "val/acuracy" in error.message


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_means_over_the_batch(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, Any] = {"classification": (6, 4), "regression": (6, 1), "language": (3, 2, 4)}
    output = torch.randn(shapes[task], generator=generator)
    if task == "regression":
        target = torch.randn(6, generator=generator)
        expected = ((output[:, 0] - target) ** 2).mean()
    else:
        target = torch.randint(4, output.shape[:-1], generator=generator)
        logs = output.log_softmax(-1).gather(-1, target.unsqueeze(-1))
        expected = -logs.mean()
    assert float(TASKS[task](output, target)["loss"]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["module.task=clasification"], "Did you mean 'classification'"),
        (["training.clip_norm=0"], "training.clip_norm"),
        (["training.clip_norm=-1.0"], "training.clip_norm"),
    ],
)
def test_senseless_settings_are_refused(toy: Path, typed: list[str], words: str) -> None:
    plan = plan_study(["paper=toy", *PLAIN, *typed])
    config: Any = OmegaConf.create(OmegaConf.to_yaml(plan.runs[0].config))
    with pytest.raises(UserError, match=words):
        build_module(config)
