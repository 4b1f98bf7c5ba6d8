"""The room of GBLM-Pruner: at scale=smoke, with a tiny published-style model, by composition."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import unplugged
from repro.experiments.gblm.module import Pruning

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.models import Llama
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Run, Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.toolbox.pruning import Pattern, Pruner
from repro.training.execute import execute

PAPER = load_paper("gblm")
SCALES = ["full_13b", "full_30b", "full_llama2", "full_llama2_13b", "full_llama2_70b", "full_open"]
SMOKE = ["paper=gblm", "scale=smoke", "n_jobs=1"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that the base model is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def study(outputs: Path) -> Study:
    """The whole study at scale=smoke, run once for all tests here."""
    made = create_study(plan_study([*SMOKE, f"outputs={outputs}"]), outputs)
    run_study(made)
    return made


def run_of(outputs: Path, *typed: str) -> Run:
    return create_study(plan_study([*SMOKE, f"outputs={outputs}", "seed=0", *typed]), outputs).runs[
        0
    ]


def numbers(run: Run) -> dict[str, float]:
    return {k: v for k, v in run.summary().items() if not k.startswith("time/")}


def test_smoke_prunes_measures_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        arm, summary = run.record()["arm"], run.summary()
        if arm == "dense":
            assert summary["pruned/fraction_0"] == 0
            continue
        assert summary["pruned/fraction_2of4"] == 0.5
        assert summary["pruned/fraction_60"] == pytest.approx(0.6, abs=0.02)
        assert {"val/loss", "test/loss_2of4", "test/perplexity_60"} <= summary.keys()
    assert len(list((study.folder.parents[2] / ".cache").glob("*.pt"))) == 1
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C1"].verdict == Verdict.NOT_AT_SCALE
    names = {path.name for path in draw_study(study)}
    assert names == {"pruning.png", "pruning.svg", "masks.png", "masks.svg"}


def test_seeds_differ_in_the_calibration_alone(study: Study) -> None:
    found: dict[str, set[float]] = {}
    for run in study.runs:
        loss = run.summary().get("test/loss_60", run.summary().get("test/loss_0"))
        assert loss is not None
        found.setdefault(run.record()["arm"], set()).add(loss)
    assert {arm: len(losses) for arm, losses in found.items()} == {
        "dense": 1, "magnitude": 1, "wanda": 2, "sparsegpt": 2, "gradient": 2, "gblm": 2,
    }  # fmt: skip


def test_the_checkpoint_holds_the_model_that_was_pruned_last(study: Study) -> None:
    run = next(run for run in study.runs if run.record()["arm"] == "gblm")
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    weight = weights["model.model.layers.0.mlp.up_proj.weight"]
    assert ((weight == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_alpha_zero_is_wanda(study: Study, outputs: Path) -> None:
    run = run_of(outputs, "arm=gblm", "method.alpha=0")
    assert execute(run.folder) == Status.FINISHED
    wanda = next(r for r in study.runs if (r.record()["arm"], r.record()["seed"]) == ("wanda", 0))
    assert numbers(run) == numbers(wanda)


@pytest.mark.parametrize("arm", ["gblm", "sparsegpt"])
def test_streaming_and_other_batches_change_nothing(study: Study, outputs: Path, arm: str) -> None:
    run = run_of(outputs, f"arm={arm}", "module.stream=true", "module.calibration.batch_size=3")
    assert execute(run.folder) == Status.FINISHED
    whole = next(r for r in study.runs if (r.record()["arm"], r.record()["seed"]) == (arm, 0))
    expected = numbers(whole)
    assert numbers(run) == {name: pytest.approx(expected[name], rel=1e-4) for name in expected}


def test_a_killed_run_ends_with_the_same_numbers(study: Study, outputs: Path) -> None:
    run = run_of(outputs, "arm=gblm", "training.checkpoint.every_seconds=0")
    with unplugged(Pruning, lambda module, index: module.global_step == 1):
        assert execute(run.folder) == Status.INTERRUPTED
    assert execute(run.folder) == Status.FINISHED
    straight = next(r for r in study.runs if (r.record()["arm"], r.record()["seed"]) == ("gblm", 0))
    assert numbers(run) == numbers(straight)
    weights = [torch.load(r.last_checkpoint, weights_only=True) for r in (run, straight)]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name])


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_every_arm_composes(scale: str) -> None:
    runs = plan_study(["paper=gblm", f"scale={scale}", "seed=0"]).runs
    # A tuned arm whose best value is the published one is left out as the twin that it is.
    assert set(PAPER.arms) - {run.arm for run in runs} <= {"gblm_tuned", "sparsegpt_tuned"}
    for run in runs:
        assert isinstance(instantiate(run.config.method), Pruner)
        assert all(Pattern(text).sparsity < 1 for text in run.config.module.patterns)


@pytest.mark.parametrize("scale", ["full", *SCALES])
def test_full_has_the_published_calibration(scale: str) -> None:
    (run,) = plan_study(["paper=gblm", f"scale={scale}", "arm=gblm", "seed=0"]).runs
    config = run.config
    assert config.module.calibration.sequences == 128
    assert config.dataset.sequence_length == 2048
    assert (config.method.alpha, config.method.grad_norm, config.method.grad_reduce) == (
        100.0, "l1", "sum",
    )  # fmt: skip
    assert config.base._target_.endswith("Given")
    assert config.module.patterns == [0.5, "2:4", "4:8"]


def test_the_small_decoder_has_the_stated_size() -> None:
    (run,) = plan_study(["paper=gblm", "arm=gblm", "seed=0"]).runs
    assert sum(p.numel() for p in instantiate(run.config.model).parameters()) == 163_520


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder of downloads: a tiny LLaMA with its tokenizer, documents, and WikiText-2."""
    safetensors = pytest.importorskip("safetensors.torch")
    tokenizers = pytest.importorskip("tokenizers")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = ["the cat sat on the mat .", "", "a dog ran after the cat , and the cat ran ."] * 60
    folder = tmp_path / "huggyllama" / "llama-7b"
    folder.mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    model = Llama(tokenizer.get_vocab_size(), 16, 2, 2, mlp_width=32)
    safetensors.save_file(model.state_dict(), folder / "model.safetensors")
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    documents = tmp_path / "allenai" / "c4" / "en" / "c4-train.00000-of-01024.json.gz"
    documents.parent.mkdir(parents=True)
    with gzip.open(documents, "wt") as file:
        file.writelines(json.dumps({"text": " ".join(lines[:n])}) + "\n" for n in (2, 30, 50))
    wikitext = tmp_path / "Salesforce" / "wikitext" / "wikitext-2-raw-v1"
    wikitext.mkdir(parents=True)
    for split in ("validation", "test"):
        table = pyarrow.table({"text": lines})
        parquet.write_table(table, wikitext / f"{split}-00000-of-00001.parquet")
    return tmp_path


def full(published: Path, *typed: str) -> Run:
    config = json.loads((published / "huggyllama" / "llama-7b" / "config.json").read_text())
    more = [
        "paper=gblm", "scale=full", "seed=0", f"data.root={published}", "hardware=cpu",
        "model.parameters=null", f"dataset.vocab_size={config['vocab_size']}",
        "dataset.sequence_length=32", "module.calibration.sequences=3", f"outputs={published}",
        *typed,
    ]  # fmt: skip
    return create_study(plan_study(more), published / "outputs").runs[0]


@pytest.mark.parametrize("stream", ["true", "false"])
def test_full_prunes_a_published_checkpoint(published: Path, stream: str) -> None:
    run = full(published, "arm=gblm", f"module.stream={stream}")
    assert execute(run.folder) == Status.FINISHED, run.record()["error"]
    assert run.summary()["pruned/fraction_4of8"] == 0.5
    assert run.record()["data"]["sizes"]["test"] > 500


@pytest.mark.parametrize(
    ("gone", "complaint"),
    [
        ("huggyllama/llama-7b/config.json", "Model 'huggyllama/llama-7b' is missing"),
        ("huggyllama/llama-7b/tokenizer.json", "The tokenizer of .* is missing"),
        ("allenai/c4/en/c4-train.00000-of-01024.json.gz", "Fetch it .about 320 MB."),
        ("Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet", "repro data fetch"),
    ],
)
def test_what_is_missing_at_full_is_one_line(published: Path, gone: str, complaint: str) -> None:
    run = full(published, "arm=wanda")
    (published / gone).unlink()
    assert execute(run.folder) == Status.FAILED
    error = run.record()["error"]
    assert error["kind"] == "user"
    with pytest.raises(UserError, match=complaint):
        raise UserError(error["message"])


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("module.patterns=[0.5,0.5]", "say each pattern once"),
        ("module.patterns=[1.5]", "A pattern is a fraction"),
        ("module.patterns=['3:5']", "groups of 5; a layer has 32"),
        ("method.score=wonda", "Did you mean 'wanda'"),
        ("module.calibration.sequences=0", "sequences=0"),
        ("module.calibration.length=1000000", "too few for 1000000"),
        ("method=none", "choose method=gblm"),
        ("model=lstm", "has no blocks"),
        (
            "dataset=digits model.vocab_size=98 module.calibration.length=8"
            " module.evaluation.length=8",
            "is no text",
        ),
        ("base.steps=0", "steps=0"),
    ],
)
def test_a_bad_setting_is_one_line(outputs: Path, typed: str, complaint: str) -> None:
    run = run_of(outputs, "arm=gblm", *typed.split())
    assert execute(run.folder) == Status.FAILED
    error = run.record()["error"]
    assert error["kind"] == "user", error
    assert complaint.lower() in error["message"].lower()


def test_training_papers_refuse_pruners(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "method=gblm"]
    run = create_study(plan_study(typed), tmp_path).runs[0]
    assert execute(run.folder) == Status.FAILED
    assert "trained already" in run.record()["error"]["message"]
