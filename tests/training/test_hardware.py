"""Hardware configs: what Lightning and Slurm are asked for, and training in real processes."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from processes import repro
from two_workers import PROCESSES, SIMULATED, assert_same_training

from repro.planning.plan import plan_study
from repro.records.study import find_studies
from repro.training.execute import build_trainer


def trainer_of(*overrides: str) -> pl.Trainer:
    planned = plan_study(["paper=toy", "scale=smoke", "arm=sgd", "seed=0", *overrides]).runs[0]
    return build_trainer(planned.config, logger=False, enable_checkpointing=False)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    """Makes Lightning believe in eight GPUs; nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 8)
    monkeypatch.setattr(
        "lightning.pytorch.accelerators.cuda.num_cuda_devices", lambda: 8, raising=False
    )


@pytest.mark.parametrize(
    ("hardware", "strategy", "devices"),
    [
        ("gpu", SingleDeviceStrategy, 1),
        ("ddp", DDPStrategy, 8),
        ("slurm_gpu", SingleDeviceStrategy, 1),
        ("slurm_8gpu", DDPStrategy, 8),
    ],
)
def test_gpu_configs_choose_strategy_and_devices(
    eight_gpus: None, hardware: str, strategy: type, devices: int
) -> None:
    trainer = trainer_of(f"hardware={hardware}")
    assert isinstance(trainer.strategy, strategy)
    assert (trainer.num_devices, trainer.num_nodes) == (devices, 1)
    assert trainer.strategy.root_device.type == "cuda"
    assert trainer.precision == "32-true"


def test_two_nodes_under_slurm_are_one_world(
    eight_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "repro",
        "SLURM_NTASKS": "16",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": "11",
        "SLURM_LOCALID": "3",
        "SLURM_NODEID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of("hardware=slurm_multinode")
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)  # type: ignore[attr-defined]
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (8, 2, 16)
    assert (trainer.global_rank, trainer.local_rank) == (11, 3)


@pytest.mark.parametrize(
    ("precision", "plugin"), [("bf16-mixed", MixedPrecision), ("bf16-true", HalfPrecision)]
)
def test_precision_reaches_lightning(eight_gpus: None, precision: str, plugin: type) -> None:
    trainer = trainer_of("hardware=slurm_8gpu", f"hardware.precision={precision}")
    assert isinstance(trainer.precision_plugin, plugin)


def test_two_processes_train_like_two_simulated_workers(tmp_path: Path) -> None:
    code, output = repro(["run", *SIMULATED, "outputs=simulated", "-q"], tmp_path)
    assert code == 0, output
    code, output = repro(["run", *PROCESSES, "hardware=ddp_cpu", "outputs=real", "-q"], tmp_path)
    assert code == 0, output
    (simulated,) = find_studies(tmp_path / "simulated")
    (real,) = find_studies(tmp_path / "real")
    assert_same_training(simulated.runs[0], real.runs[0])
