"""What is special to LANTON: what probes measure, known optima, and the whole path of full."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.lanton.measures import (
    Pairs,
    iid_pairs,
    largest_change,
    rank_correlation,
    spread,
    sum_over_largest,
    without_shape,
)
from repro.experiments.lanton.module import summary
from rooms import configs, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.lmo import Spectral
from repro.training.execute import build_module
from repro.training.supervised import Supervised

PAPER = load_paper("lanton")
SMOKE = ["paper=lanton", "scale=smoke", "seed=0"]
BALL = Spectral("none", dual_method="exact")


# -- What probes measure --------------------------------------------------------------------------


def test_spreads_shares_and_ranks_of_known_noise() -> None:
    assert spread([4.0, 1.0, 25.0]) == 5
    assert without_shape([4.0, 1.0], [2.0, 4.0]) == [2.0, 0.25]
    assert sum_over_largest([1.0, 9.0, 4.0]) == pytest.approx(6 / 9)
    # Shares 1/4, 1/2, 1/4 become 1/2, 1/2, 0.
    assert largest_change([1.0, 4.0, 1.0], [4.0, 4.0, 0.0]) == pytest.approx(0.25)
    assert largest_change([1.0, 9.0], [4.0, 36.0]) == 0
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)


def test_pairs_measure_half_the_squared_dual_norm_of_a_difference() -> None:
    pairs = Pairs(BALL)
    pairs.add([3 * torch.eye(2), torch.zeros(2, 3)], [torch.eye(2), torch.zeros(2, 3)])
    pairs.add([torch.zeros(2, 2)] * 2, [torch.zeros(2, 2)] * 2)
    assert pairs.variance == pytest.approx([16 / 4, 0])  # |2 I|_* = 4, two pairs, half
    assert pairs.gradients == pytest.approx([4 / 2, 0])


def test_independent_entries_are_the_null_of_every_spread() -> None:
    shapes = [(16, 16)] * 4 + [(48, 16), (16, 48)]
    ball = Spectral(dual_method="exact")
    iid, constants = (
        iid_pairs(ball, shapes, 16, 0).variance,
        iid_pairs(ball, shapes, 64, 1).variance,
    )
    found = summary([probe(0.5, shapes, iid), probe(1.0, shapes, iid)], iid, constants)
    assert found["noise/spread_attention"] == found["noise/spread_attention_iid"] < 1.2
    assert found["noise/spread_all"] == found["noise/spread_all_iid"] < 1.3
    assert found["noise/spread_raw"] > 3  # the shape alone, which would pass for noise
    assert found["noise/largest_change"] == 0


def probe(fraction: float, shapes: Any, variance: Any, **more: Any) -> dict[str, Any]:
    return {
        "fraction": fraction, "shapes": shapes, "variance": variance,
        "gradient": variance, "tracked": [], **more,
    }  # fmt: skip


def test_the_least_late_spread_counts_and_only_square_layers_are_attention() -> None:
    shapes = [(4, 4), (4, 4), (8, 4)]
    records = [
        probe(0.1, shapes, [1.0, 1.1, 1.2], tracked=[3.0, 2.0, 1.0]),
        probe(0.5, shapes, [1.0, 4.0, 900.0], tracked=[1.0, 2.0, 3.0]),
        probe(1.0, shapes, [16.0, 1.0, 900.0], tracked=[1.0, 2.0, 3.0], gradient=[2.0, 1.0, 3.0]),
    ]
    found = summary(records, [1.0, 1.0, 4.0], [1.0, 1.0, 4.0])
    assert found["noise/spread_attention"] == 2
    assert found["noise/spread_attention_iid"] == 1
    assert found["noise/spread_all"] == 15
    assert found["noise/spread_all_iid"] == 1
    assert found["noise/rank_tracked"] == pytest.approx((1 + 0.5) / 2)
    assert found["noise/rank_gradient"] == 1
    assert found["noise/sum_over_largest"] == pytest.approx(35 / 90)


def built(arm: str, *typed: str) -> Any:
    """An arm's module outside of a run, in its first epoch."""
    room: Any = build_module(configs(*SMOKE[:2], f"arm={arm}", *typed)[arm])
    room.trainer = SimpleNamespace(
        global_step=0, current_epoch=0, sanity_checking=False, world_size=1, callback_metrics={}
    )
    return room


def test_a_probe_measures_each_part_of_a_layer_on_pairs_of_batches() -> None:
    """A gradient of c in every entry of a 2 x 2 layer has the dual norm 2 |c|."""
    room = built("noise", "method.fused=[1.weight]", "module.probe.pairs=2")
    room.model = nn.Sequential(nn.Linear(2, 2, False), nn.Linear(2, 6, False), nn.Linear(6, 2))
    heights = torch.tensor([1.0, 3.0, 2.0, 2.0])  # of a batch, two windows each
    shapes: list[torch.Size] = []

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        shapes.extend(tokens.shape for tokens in batch)
        return batch[0].mean() * sum(p.sum() for p in room.model.parameters())

    def sample(count: int, length: int, seed: int) -> Tensor:
        return heights.repeat_interleave(2)[:count, None].expand(count, length)

    room.data = SimpleNamespace(batch_size=2, sequence_length=5, sample=sample)
    room.loss, room.manual_backward = loss, Tensor.backward
    squares = torch.tensor([1.0, 4.0, 9.0, 16.0])
    room.method.lanton = SimpleNamespace(measured_noise=lambda role: squares)
    rows: dict[str, float] = {}
    room.log_now = rows.update
    found = room._measure(0.5)
    assert set(shapes) == {(2, 5)}
    assert found["shapes"] == [[2, 2]] * 4
    assert found["variance"] == pytest.approx([(2 * 2) ** 2 / 2 / 2] * 4)  # 1 and 3, 2 and 2
    assert found["gradient"] == pytest.approx([(6**2 + 4**2) / 2] * 4)
    names = ["0.weight", "1.weight.0", "1.weight.1", "1.weight.2"]
    assert rows == pytest.approx(
        {f"noise/sigma/{name}": 2 for name in names}
        | {f"noise/tracked/{name}": root for name, root in zip(names, (1, 2, 3, 4), strict=True)}
    )


def test_the_shape_is_taken_out_by_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken out by the same draws, independent entries would seem to have no spread at all."""
    monkeypatch.setattr(Supervised, "on_test_epoch_end", lambda _: None)
    room = built("noise", "module.probe.pairs=2")
    room.records = [probe(1.0, [[4, 4], [4, 4], [8, 4]], [1.0, 2.0, 3.0])]
    assert logged(room, room.on_test_epoch_end)["noise/spread_all_iid"] > 1


def test_noise_is_counted_against_passes_and_directions() -> None:
    """Ten weights and batches of 3 x 5 tokens: 6 x 10 x 15 operations."""
    room = built("lanton")
    room.model, room.data = nn.Linear(4, 2), SimpleNamespace(batch_size=3, sequence_length=5)
    counted = {"lanton/flops_noise": 250.0, "lanton/flops_direction": 100.0}
    room.method = SimpleNamespace(metrics=lambda: counted)
    assert logged(room, room.on_train_epoch_end)["cost/noise_share"] == 0.25


def test_the_loss_of_the_first_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervised, "on_validation_epoch_end", lambda _: None)
    room = built("lanton")
    for epoch, loss in enumerate((3.0, 2.0)):
        room.trainer.current_epoch, room.trainer.callback_metrics["val/loss"] = epoch, loss
        assert logged(room, room.on_validation_epoch_end) == {"val/loss_early": 3}


def test_known_matrices_have_their_noise_their_rates_and_their_distance() -> None:
    typed = ["module.noise=[1,1,3]", "module.width=64", "module.loud_rate=0.5"]
    room = built("theory_base", *typed)
    room.schedule = None
    scales = [group["scale"] for group in room.configure_optimizers().param_groups]
    assert scales == [1, 1, 0.5]
    norms = room._noise(generator_for(0)).norm(dim=(1, 2))
    assert norms.tolist() == pytest.approx([1, 1, 3], rel=0.05)
    with torch.no_grad():
        for weight, target in zip(room.weights, room.targets, strict=True):
            weight.copy_(target + 1)
    assert logged(room, room.on_validation_epoch_end) == {"val/dual_norm": 0}
    room.total, room.done = 6.0, 4
    assert logged(room, room.on_validation_epoch_end) == {"val/dual_norm": 1.5}
    found = logged(room, room.on_test_epoch_end)
    assert found["test/dual_norm"] == 1.5
    assert found["test/objective"] == pytest.approx(0.5 * 3 * 64**2, rel=1e-4)


# -- Runs -----------------------------------------------------------------------------------------


def test_smoke(study: Study) -> None:
    found = summaries(study)
    assert found["base"]["lanton/rate_hidden"] == found["muon"]["lanton/rate_hidden"] == 1
    assert found["base"]["cost/noise_share"] == 0
    assert (
        0 < found["lanton"]["lanton/least_rate_hidden"] < found["lanton"]["lanton/rate_hidden"] < 1
    )
    assert found["lanton"]["lanton/rate_embedding"] == 1  # tied: a group of one
    assert found["noise"]["noise/spread_attention"] > 1
    # The same rates, dealt to other layers.
    rates = [found[arm]["lanton/rate_hidden"] for arm in ("lanton", "shuffled")]
    assert rates[0] == pytest.approx(rates[1], rel=0.2)


def test_early_is_the_first_validation_and_probes_leave_rows(study: Study) -> None:
    (run,) = (run for run in study.runs if run.record().arm == "noise")
    losses = run.series("val/loss")
    assert run.summary()["val/loss_early"] == losses[min(losses)] != losses[max(losses)]
    sigma = run.series("noise/sigma/model.layers.0.self_attn.q_proj.weight")
    tracked = run.series("noise/tracked/model.layers.0.self_attn.q_proj.weight")
    assert len(sigma) > len(tracked) > 0  # the first probe comes before the first difference
    assert min(sigma.values()) > 0


def test_the_cost_is_counted(study: Study) -> None:
    """One block of width 16, SwiGLU of 24; batches of 4 x 16 tokens, by hand."""
    square, wide = 5 * (4 * 16**3 + 2 * 16**3), 5 * (4 * 16**2 * 24 + 2 * 16**3)
    weights = 98 * 16 + 4 * 16**2 + 3 * 16 * 24 + 3 * 16
    noise = 4 * square + 3 * wide
    share = noise / (6 * weights * 4 * 16 + noise)
    assert summaries(study)["lanton"]["cost/noise_share"] == pytest.approx(share, rel=1e-6)


def test_without_noise_matrices_fall_as_the_rate_says(tmp_path: Path) -> None:
    """Every singular value of X* is walked down by the rate; the sum of them is the dual norm."""
    typed = ["paper=lanton", "arm=theory_base", "seed=0", "module.noise=[0,0]", "module.width=3",
        "schedule=constant", "optimizer.beta1=0", "optimizer.lr=0.01", "training.epochs=1",
        "training.steps_per_epoch=5", "training.val_every=1"]  # fmt: skip
    run = finished(tmp_path, *typed)
    values = torch.linalg.svdvals(torch.randn(2, 3, 3, generator=generator_for(0)) / 3**0.5)
    walked = [(values - 0.01 * step).abs().sum() for step in range(5)]
    assert run.summary()["test/dual_norm"] == pytest.approx(float(sum(walked)) / 5, rel=1e-3)
    end = 0.5 * (values - 0.05).square().sum()
    assert run.summary()["test/objective"] == pytest.approx(float(end), rel=1e-3)


@pytest.mark.parametrize(
    ("arm", "typed", "message"),
    [
        ("adamw", "module.probe.at=[0.5]", "probes layers of method=lanton"),
        ("base", "dataset=digits", "has no vocab_size"),
        ("lanton", "method.power=0", "power is positive"),
        ("lanton_ii", "dataset.batch_size=1", "halves batches"),
        ("theory_base", "method=gradient_noise", "have an optimizer for a method"),
        ("theory_base", "optimizer=sgd", "need optimizer=lanton"),
        ("noise", "module.probe.pairs=0", "pairs is a whole number"),
    ],
)
def test_what_cannot_work_is_one_line(arm: str, typed: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, f"arm={arm}", typed)


# -- Full -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [
        ("full", 124_439_808),
        ("full_gpt2_medium", 354_823_168),
        ("full_llama1b", 1_100_048_384 - 32000 * 2048),  # TinyLlama's, with a tied head
        ("full_llama05b", 516_814_080),
        ("full_minipile", 516_814_080),
    ],
)
def test_full_has_the_models_of_the_paper(scale: str, parameters: int) -> None:
    config = configs("paper=lanton", f"scale={scale}", "arm=lanton")["lanton"]
    with torch.device("meta"):
        model = instantiate(config.model)
    assert sum(p.numel() for p in model.parameters()) == parameters


SMALL = ["dataset.vocab_size=300", "dataset.shards=1", "dataset.held_out=0.2",
    "dataset.sequence_length=16", "dataset.batch_size=2", "dataset.eval_batch_size=2",
    "training={epochs:2,steps_per_epoch:2}", "hardware=cpu", "seed=0"]  # fmt: skip


@pytest.mark.parametrize("arm", ["muon", "noise"])
def test_full_runs_on_a_tiny_gpt2(arm: str, hub: Path) -> None:
    small = ["model.width=16", "model.layers=1", "model.heads=2", "model.positions=16"]
    typed = ["paper=lanton", "scale=full", f"arm={arm}", f"data.root={hub}", *SMALL, *small]
    summary = finished(hub.parent / "out", *typed).summary()
    assert summary["test/loss"] < 7
    if arm == "noise":
        assert summary["noise/spread_attention"] > 1


def test_full_runs_on_a_tiny_llama(hub: Path) -> None:
    small = [
        "model.width=16",
        "model.layers=1",
        "model.heads=4",
        "model.kv_heads=2",
        "model.mlp_width=24",
    ]
    typed = ["paper=lanton", "scale=full_llama1b", "arm=lanton", f"data.root={hub}", *SMALL, *small]
    assert finished(hub.parent / "out", *typed).summary()["cost/noise_share"] > 0


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """OpenWebText and C4 in their layouts, with byte-level tokenizers."""
    tokenizers = pytest.importorskip("tokenizers")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = tmp_path / "hf"
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet
    )
    words.train_from_iterator(["some words"], trainer)
    for model in ("openai-community/gpt2", "huggyllama/llama-7b"):
        (root / model).mkdir(parents=True)
        words.save(str(root / model / "tokenizer.json"))
    texts = [f"{number} {'some words ' * 20}" for number in range(60)]
    web, c4 = root / "Skylion007/openwebtext/plain_text", root / "allenai/c4/en"
    web.mkdir(parents=True)
    parquet.write_table(pa.table({"text": texts}), web / "train-00000-of-00080.parquet")
    c4.mkdir(parents=True)
    with gzip.open(c4 / "c4-train.00000-of-01024.json.gz", "wt") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return root
