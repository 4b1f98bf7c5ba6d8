"""A killed and resumed Lightning run takes the batches and ends with the bits of a straight one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.data.base.modules import TensorData

EPOCHS, BATCHES = 3, 6


class KilledError(Exception):
    """Stands for the end of the process."""


class Recorder(pl.LightningModule):
    """A linear classifier that writes down what it was trained on, and dies when told to."""

    def __init__(self, die_after: int | None = None):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.die_after = die_after
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if len(self.seen) == self.die_after:
            raise KilledError
        self.seen.append(batch[0].clone())
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data() -> TensorData:
    x = torch.randn(50, 1, 2, 2, generator=generator_for(0))
    split = (x, torch.arange(50) % 3)
    return TensorData(
        "toy",
        {"train": split, "val": split, "test": split},
        task="classification",
        batch_size=8,
        eval_batch_size=20,
        augment={"pad": 1, "flip": True},
        seed=5,
    )


def fit(
    where: Path, die_after: int | None = None, resume: Path | None = None, **options: Any
) -> Recorder:
    trainer_options = {k: v for k, v in options.items() if k.startswith(("limit", "val_"))}
    saving = {k: v for k, v in options.items() if k not in trainer_options}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model = Recorder(die_after)
    checkpoint = ModelCheckpoint(where, save_last=True, **saving)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", pl.utilities.warnings.PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        try:
            trainer.fit(model, datamodule=data(), ckpt_path=resume, weights_only=True)
        except KilledError:
            assert die_after is not None
    return model


@pytest.mark.parametrize("die_after", [3, 6, 13])
@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 1},
        {"every_n_epochs": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_train_steps": 1, "val_check_interval": 2},
        {"every_n_train_steps": 1, "limit_train_batches": 4},
        {"every_n_epochs": 1, "limit_train_batches": 4},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_resumed_run_equals_straight_run(tmp_path, options, die_after):
    batches = options.get("limit_train_batches", BATCHES)
    straight = fit(tmp_path / "straight", **options)
    assert len(straight.seen) == EPOCHS * batches
    killed = fit(tmp_path / "killed", die_after, **options)
    last = tmp_path / "killed" / "last.ckpt"
    resumed = fit(tmp_path / "killed", None, last if last.exists() else None, **options)
    done = EPOCHS * batches - len(resumed.seen)
    if "every_n_train_steps" in options:
        assert done == min(die_after, EPOCHS * batches)
    else:
        assert done == min(die_after // batches, EPOCHS) * batches
    assert all(map(torch.equal, straight.seen, killed.seen[:done] + resumed.seen))
    assert torch.equal(straight.layer.weight, resumed.layer.weight)
