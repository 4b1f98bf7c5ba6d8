"""Keys that make training faster, or smaller, and give the same numbers."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rooms import finished, refusal
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.models.language.gpt2 import GPT2
from repro.models.language.llama import Llama
from repro.models.vision.resnet_cifar import ResNetCIFAR
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.records.papers import load_papers
from repro.report.full_scale import one_of_each_kind
from repro.toolbox.costs import SavedForBackward
from repro.toolbox.method import Method
from repro.training import speed
from repro.training.execute import build_module
from repro.training.supervised import Supervised

IMAGES = torch.randn(8, 3, 16, 16, generator=generator_for(0)).double(), torch.arange(8) % 4
TOKENS = torch.arange(8 * 12).view(8, 12) % 11, torch.arange(1, 8 * 12 + 1).view(8, 12) % 11


def decoder() -> nn.Module:
    return Llama(11, width=16, layers=2, heads=2, mlp_width=24)


def gpt2() -> nn.Module:
    return GPT2(11, positions=12, width=16, layers=2, heads=2)


def resnet() -> nn.Module:
    return ResNetCIFAR([3, 16, 16], 4, depth=8, width=4)


KINDS: dict[str, tuple[Any, Any, str]] = {
    "decoder": (decoder, TOKENS, "language"),
    "gpt2": (gpt2, TOKENS, "language"),
    "resnet": (resnet, IMAGES, "classification"),
}


def supervised(kind: str, method: Method | None = None) -> Supervised:
    """A module that steps outside of Lightning, on the same weights every time."""
    build, _, task = KINDS[kind]
    torch.manual_seed(0)
    sgd: Any = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    module = Supervised(build().double(), method or Method(), sgd, lambda *_: None, task=task)  # type: ignore[arg-type]
    module._backward = Tensor.backward  # type: ignore[method-assign]
    return module


def after(kind: str, **hardware: Any) -> dict[str, Tensor]:
    """Gradients, weights and buffers after a step with these keys."""
    module, batch = supervised(kind), KINDS[kind][1]
    speed.speed_up(module, OmegaConf.create(hardware))
    loss_of = module.loss if module.parts == 1 else module.accumulated_loss
    loss = module.method.backward(loss_of, batch, Tensor.backward)
    gradients = {
        f"{n}.grad": p.grad.clone()
        for n, p in module.model.named_parameters()
        if p.grad is not None
    }
    torch.optim.SGD(module.model.parameters(), lr=0.1).step()
    return {"loss": loss, **gradients, **module.model.state_dict()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "hardware",
    [{"activation_checkpointing": True}, {"channels_last": True}, {"compile": "aot_eager"}],
    ids=str,
)
def test_a_step_is_the_same(kind: str, hardware: dict[str, Any]) -> None:
    """Batch norm's running statistics, which a second pass would move twice, included."""
    assert_same(after(kind, **hardware), after(kind))


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_parts_of_a_batch_sum_up_to_it(kind: str, parts: int) -> None:
    assert_same(after(kind, accumulate=parts), after(kind))


@pytest.mark.parametrize(("typed", "backend"), [(True, "inductor"), ("aot_eager", "aot_eager")])
def test_what_compiles(typed: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, backend: used.append(backend))
    for compile_ in (typed, False, None):  # None: what older runs say
        speed.speed_up(supervised("decoder"), OmegaConf.create({"compile": compile_}))
    assert used == [backend]


def kept(kind: str, **hardware: Any) -> int:
    """Bytes that a step keeps for its way back."""
    module, batch = supervised(kind), KINDS[kind][1]
    speed.speed_up(module, OmegaConf.create(hardware))
    loss_of = module.loss if module.parts == 1 else module.accumulated_loss
    with SavedForBackward(module.parameters()) as saved:
        module.method.backward(loss_of, batch, Tensor.backward)
    return saved.peak


@pytest.mark.parametrize("kind", ["decoder", "resnet"])
def test_less_is_kept(kind: str) -> None:
    whole = kept(kind)
    assert kept(kind, accumulate=4) < 0.4 * whole
    assert kept(kind, activation_checkpointing=True) < 0.8 * whole


def test_blocks_are_the_outermost_that_there_are_several_of() -> None:
    model = decoder()
    assert speed._blocks(model) == list(model.blocks)  # type: ignore[arg-type]
    assert len(speed._blocks(resnet())) == 3


def test_a_copy_of_a_model_recomputes_its_own_blocks() -> None:
    model = decoder()
    speed.recompute_blocks(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(TOKENS[0]).abs().max() == 0
    assert model(TOKENS[0]).abs().max() > 0


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no repeated blocks"):
        speed.recompute_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_a_method_that_looks_at_whole_batches_is_refused() -> None:
    class Own(Method):
        def backward(self, *args: Any) -> Tensor:
            return super().backward(*args)

    with pytest.raises(UserError, match="Own"):
        speed.accumulate(supervised("decoder", Own()), 2)


def test_the_whole_engine_takes_them(toy: Path) -> None:
    typed = ("paper=toy", "scale=smoke", "arm=sgd", "seed=0", "model=mlp", "training.epochs=2")
    plain = finished(toy / "plain", *typed).summary()
    parts = finished(toy / "parts", *typed, "hardware.accumulate=3").summary()
    for name, value in plain.items():
        if not name.startswith("time/"):
            assert parts[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("slug", [paper.slug for paper in load_papers()])
def test_every_paper_that_trains_on_batches_takes_them_or_says_why(slug: str) -> None:
    """One way forward and back of its smoke models."""
    plan = plan_study([f"paper={slug}", "scale=smoke", "seed=0", "n_jobs=1", "hardware=cpu"])
    for run in one_of_each_kind(plan).runs:
        data: Any = instantiate(run.config.dataset)
        module: Any = build_module(run.config, data)
        batch = next(iter(data.train_dataloader()))
        # Rules without weights, such as a baseline in closed form, have nothing to train.
        if not isinstance(module, Supervised) or not module.loss(batch).requires_grad:
            continue
        for hardware in ({"accumulate": 2}, {"activation_checkpointing": True}):
            faster: Any = build_module(run.config, data)
            faster._backward = Tensor.backward
            with contextlib.suppress(UserError):
                speed.speed_up(faster, OmegaConf.create(hardware))
                loss = faster.accumulated_loss if faster.parts > 1 else faster.loss
                loss(batch).backward()
                assert any(parameter.grad is not None for parameter in faster.parameters())


def test_a_procedure_of_its_own_refuses_them(tmp_path: Path) -> None:
    typed = ("paper=bn_marl", "scale=smoke", "arm=none", "seed=0", "hardware.accumulate=2")
    assert "procedure of its own" in refusal(tmp_path, *typed)


@pytest.mark.parametrize(("tf32", "words"), [(True, "high"), (False, "highest"), (None, "highest")])
def test_arithmetic_of_gpus(tf32: bool | None, words: str) -> None:
    try:
        speed.set_arithmetic(tf32)
        assert torch.get_float32_matmul_precision() == words
        assert torch.backends.cudnn.allow_tf32 is (tf32 is not False)
    finally:
        speed.set_arithmetic(None)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimizer_makes_the_same_update(name: str, toy: Path) -> None:
    typed = (
        "paper=toy",
        "scale=smoke",
        "arm=sgd",
        "seed=0",
        "training.epochs=1",
        f"optimizer={name}",
    )
    plain = finished(toy / "plain", *typed).summary()
    fused = finished(toy / "fused", *typed, "optimizer.fused=true").summary()
    assert fused["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)
