"""What holds on a GPU: the same numbers as on the CPU, resumed, in bf16, on several of them.

`make gpu` runs these; without CUDA they are left out.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from processes import repro
from rooms import finished
from two_workers import PROCESSES, SIMULATED, assert_same_training

from repro.internals import TorchDispatchMode, tree_leaves
from repro.planning.instantiate import instantiate
from repro.planning.plan import PlannedRun, plan_study
from repro.planning.prepare import create_study
from repro.planning.rehearse import stood_in
from repro.records.papers import load_papers
from repro.records.run import Status
from repro.records.study import find_studies
from repro.report.full_scale import one_of_each_kind
from repro.training.execute import build_module, build_trainer, execute
from repro.training.speed import set_arithmetic
from repro.training.supervised import Supervised

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here"),
]
SLUGS = [paper.slug for paper in load_papers()]
of_each_paper = pytest.mark.parametrize("slug", SLUGS)
# Random numbers of a GPU are others: final measures agree as those of two seeds do.
RELATIVE, ABSOLUTE = 0.3, 0.15
ON_GPU = "hardware=gpu"


def planned(slug: str, *typed: str) -> list[PlannedRun]:
    """One smoke run for every module, model and method of a paper, parents first."""
    plan = plan_study([f"paper={slug}", "scale=smoke", "seed=0", "n_jobs=1", *typed])
    return one_of_each_kind(plan).runs


@of_each_paper
def test_first_gradients_are_those_of_the_cpu(slug: str) -> None:
    """Of supervised losses that draw nothing, as far as float32 goes."""
    set_arithmetic(tf32=False)
    try:
        for run in planned(slug, "hardware=cpu"):
            torch.manual_seed(0)
            data = instantiate(run.config.dataset)
            here: Any = build_module(run.config, data)
            if not isinstance(here, Supervised):
                continue
            batch: Any = next(iter(data.train_dataloader()))
            there: Any = build_module(run.config, data)
            there.load_state_dict(here.state_dict())
            there.to("cuda")
            loss = here.loss(batch)
            if not loss.requires_grad or not torch.equal(loss, here.loss(batch)):
                continue  # a rule without weights; or it draws, and a GPU draws otherwise
            loss.backward()
            loss_there = there.loss(move_data_to_device(batch, torch.device("cuda")))
            loss_there.backward()
            torch.testing.assert_close(loss_there.cpu(), loss, rtol=1e-4, atol=1e-6)
            for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
                if one.grad is not None and other.grad is not None:
                    apart = (other.grad.cpu() - one.grad).norm()
                    assert apart <= 1e-3 * one.grad.norm() + 1e-6, (run.arm, name)
    finally:
        set_arithmetic(tf32=None)


@of_each_paper
def test_smoke_ends_as_on_the_cpu(slug: str, tmp_path: Path) -> None:
    """Every measure of a loss or an accuracy that both log."""
    ends: dict[str, list[dict[str, float]]] = {}
    for hardware in ("hardware=cpu", ON_GPU):
        plan = plan_study([f"paper={slug}", "scale=smoke", "seed=0", "n_jobs=1", hardware])
        study = create_study(one_of_each_kind(plan), tmp_path / hardware)
        for run in study.runs:
            assert execute(run.folder) == Status.FINISHED, run.record().error
            ends.setdefault(run.record().arm, []).append(run.summary())
    for arm, (on_cpu, on_gpu) in ends.items():
        assert on_cpu.keys() == on_gpu.keys(), arm
        for name in on_cpu:
            if name.endswith(("/loss", "/accuracy")):
                close = pytest.approx(on_cpu[name], rel=RELATIVE, abs=ABSOLUTE)
                assert on_gpu[name] == close, (arm, name)


@pytest.mark.parametrize("slug", ["dgc", "lanton", "scalelong"])
def test_bf16_trains(slug: str, tmp_path: Path) -> None:
    typed = (f"paper={slug}", "scale=smoke", f"arm={planned(slug)[0].arm}", "seed=0", ON_GPU)
    plain = finished(tmp_path / "float32", *typed).summary()
    half = finished(tmp_path / "bf16", *typed, "hardware.precision=bf16-mixed").summary()
    assert half["train/loss"] == pytest.approx(plain["train/loss"], rel=0.1)


@of_each_paper
def test_a_killed_run_ends_with_the_same_numbers(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, because smoke models have deterministic kernels."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    arm = planned(slug)[0].arm
    typed = (f"paper={slug}", "scale=smoke", f"arm={arm}", "seed=0", ON_GPU)
    straight = finished(tmp_path / "first", *typed)
    same_after_a_kill(tmp_path, int(straight.summary()["steps"]) // 2, *typed)


def test_gpus_train_together_like_simulated_workers(tmp_path: Path) -> None:
    """Over NCCL, on as many as there are."""
    workers = torch.cuda.device_count()
    simulated = [text for text in SIMULATED if not text.startswith(("method.workers", "dataset."))]
    data = [text for text in PROCESSES if "max_bytes" in text]
    sizes = [f"dataset.batch_size={8 * workers}", f"dataset.eval_batch_size={8 * workers}"]
    typed = [*simulated, *data, *sizes, f"method.workers={workers}", "outputs=simulated", "-q"]
    code, output = repro(["run", *typed], tmp_path)
    assert code == 0, output
    code, output = repro(["run", *PROCESSES, "hardware=ddp", "outputs=real", "-q"], tmp_path)
    assert code == 0, output
    (one,), (other,) = (find_studies(tmp_path / name) for name in ("simulated", "real"))
    assert_same_training(one.runs[0], other.runs[0])


class _OnHost(TorchDispatchMode):
    """Collects the operations that compute with tensors of the host, single numbers apart."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = (each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor))
        if any(each.device.type == "cpu" and each.numel() > 1 for each in inputs):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


class _OnlyTheGpu(Callback):
    """From the third step on the host may not wait for the GPU, and is watched for its work."""

    def __init__(self) -> None:
        self.host = _OnHost()
        self.watched = ExitStack()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= 2:
            self.watched.enter_context(self.host)
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.watched.close()


@pytest.mark.parametrize(("slug", "arm"), [("dgc", "dense"), ("lanton", "adamw")])
def test_no_step_waits_for_the_gpu_or_works_elsewhere(slug: str, arm: str) -> None:
    typed = [f"paper={slug}", "scale=smoke", f"arm={arm}", "seed=0", ON_GPU]
    config = plan_study([*typed, "training.log_every=100000"]).runs[-1].config
    data = instantiate(config.dataset)
    watching = _OnlyTheGpu()
    trainer = build_trainer(config, logger=False, enable_checkpointing=False, callbacks=[watching])
    try:
        trainer.fit(build_module(config, data), datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watching.host.found == set()


def test_photographs_come_in_memory_that_the_gpu_copies_from() -> None:
    typed = ["paper=dgc", "scale=full_imagenet", "arm=dense", "seed=0", "dataset.batch_size=4"]
    config = stood_in(plan_study([*typed, "dataset.workers=2"]).runs[0].content)
    data: Any = instantiate(config["dataset"])
    assert all(tensor.is_pinned() for tensor in next(iter(data.train_dataloader())))


@pytest.mark.parametrize(
    "typed",
    ["hardware.channels_last=true", "hardware.compile=true", "hardware.tf32=true",
     "hardware.activation_checkpointing=true", "optimizer.fused=true"],
)  # fmt: skip
def test_what_makes_it_fast_leaves_it_the_same(typed: str, tmp_path: Path) -> None:
    common = ("paper=dgc", "scale=smoke", "arm=dense", "seed=0", ON_GPU, "model=resnet20",
              "model.depth=8", "model.width=4")  # fmt: skip
    plain = finished(tmp_path / "plain", *common).summary()
    fast = finished(tmp_path / "fast", *common, typed).summary()
    assert fast["train/loss"] == pytest.approx(plain["train/loss"], rel=0.05)
