"""The room of g-SAE: at scale=smoke through the engine, by composition at the others."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import run_until, timeless
from omegaconf import OmegaConf
from repro.experiments.gsae.module import Dictionary, DictionaryLearning

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.methods.gsae import ReLUAutoencoder
from repro.planning.instantiate import instantiate
from repro.planning.plan import Plan, plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.toolbox.pretrained import Given
from repro.training.execute import build_module

PAPER = load_paper("gsae")
SMOKE = ["paper=gsae", "scale=smoke", "n_jobs=1", "seed=0"]


@functools.cache
def plan(scale: str) -> Plan:
    """What the paper runs at a scale, for one seed."""
    return plan_study(["paper=gsae", f"scale={scale}", "seed=0"])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all studies here, so that the language model is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def study(outputs: Path) -> Study:
    """The whole study at scale=smoke."""
    made = create_study(plan_study([*SMOKE, f"outputs={outputs}"]), outputs)
    run_study(made)
    return made


def test_smoke_runs_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    summaries = {run.record()["arm"]: run.summary() for run in study.runs}
    for arm in ("topk", "gsae", "gated"):
        assert set(PAPER.report) <= summaries[arm].keys()
    assert summaries["topk"]["test/l0/topk"] == 6
    assert summaries["lm_gsae"]["test/l0/sampled"] == 2
    assert all(name in summaries["lm_gsae"] for name in ("val/kl", "test/loss_recovered/label"))
    # The same model is dissected in both arms, and only gradients tell the modes apart.
    assert summaries["lm_topk"]["test/clean_loss"] == summaries["lm_gsae"]["test/clean_loss"]
    assert summaries["topk"]["test/clean_loss"] == summaries["gsae"]["test/clean_loss"]
    assert summaries["topk"]["test/kl/label"] == summaries["topk"]["test/kl/topk"]
    assert summaries["gsae"]["test/kl/label"] != summaries["gsae"]["test/kl/topk"]
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert set(verdicts.values()) == {Verdict.NOT_AT_SCALE}
    assert {path.name for path in draw_study(study)} >= {
        "frontier.png",
        "recovery.svg",
        "modes.png",
    }


def test_every_arm_composes_and_builds() -> None:
    more = plan_study(["paper=gsae", "seed=0", "arm=[random,batch_gsae]"]).runs
    medium = plan_study(["paper=gsae", "seed=0", "arm=gpt2_gsae", "scale=full_medium"]).runs
    runs = [*plan("mini").runs, *more, *plan("full").runs, *medium]
    assert {run.arm for run in runs} == set(PAPER.arms)
    with torch.device("meta"):
        for run in runs:
            config = copy.deepcopy(run.config)
            if run.arm.startswith("gpt2"):  # the model and the data need their files
                config.model = {"_target_": "repro.models.language.gpt2.GPT2", "layers": 24}
                config.dataset = {"task": "language"}
            build_module(config)


def test_a_missing_gpt2_is_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'openai-community/gpt2' is missing"):
        instantiate(plan("full").runs[0].config.model, root=str(tmp_path))


def test_full_runs_on_a_tiny_gpt2(tmp_path: Path) -> None:
    """The whole path of scale=full: checkpoint, tokenizer and shards in the hub's layout."""
    _write_tiny_hub(tmp_path)
    small = [
        "model.parameters=null", "dataset.vocab_size=300", "dataset.sequence_length=16",
        "dataset.held_out=0.2", "training.steps_per_epoch=4",
        "module.dictionary.site=transformer.h.1", "module.dictionary.sample=32",
        "module.dictionary.steered=3", "autoencoder.latents=48", "autoencoder.k=4",
        "autoencoder.dead_after=50", "hardware=cpu",
    ]  # fmt: skip
    typed = ["paper=gsae", "scale=full", "arm=gpt2_gsae", "seed=0", "n_jobs=1"]
    made = create_study(plan_study([*typed, f"data.root={tmp_path}", *small]), tmp_path / "out")
    run_study(made)
    for run in made.runs:
        assert run.status() == Status.FINISHED, run.record()["error"]
        assert 0 < run.summary()["test/l0/sampled"] <= 4
        assert run.summary()["test/steering"] > 0


def _write_tiny_hub(root: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = root / "openai-community" / "gpt2"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 300, "n_positions": 16, "n_embd": 24, "n_layer": 3}
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, n_head=2, initializer_range=0.3)
    ).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    words.train_from_iterator(["some words"], trainer)
    words.save(str(folder / "tokenizer.json"))
    shards = root / "Skylion007" / "openwebtext" / "plain_text"
    shards.mkdir(parents=True)
    texts = [f"{number} {'some words ' * 20}" for number in range(60)]
    parquet.write_table(pa.table({"text": texts}), shards / "train-00000-of-00080.parquet")


def test_a_killed_run_ends_with_the_same_numbers(outputs: Path, tmp_path: Path) -> None:
    typed = [
        *SMOKE, f"outputs={outputs}", "arm=lm_gsae", "training.steps_per_epoch=6",
        "training.checkpoint.every_steps=2", "module.dictionary.labels=sampled",
    ]  # fmt: skip
    straight, killed = (create_study(plan_study(typed), tmp_path / name) for name in "ab")
    run_study(straight)
    run_until(killed, DictionaryLearning, lambda module, index: module.global_step == 4, run=-1)
    run_study(killed)
    ends = [timeless(made.runs[-1]) for made in (straight, killed)]
    assert ends[0] == ends[1]
    assert killed.runs[-1].record()["attempts"] == 2


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["autoencoder.k=1000"], "k lies between"),
        (["method=man"], "choose autoencoder="),
        (["model=mlp"], "input_shape"),
    ],
)
def test_a_bad_choice_is_one_line(typed: list[str], complaint: str, outputs: Path) -> None:
    try:
        made = create_study(
            plan_study([*SMOKE, f"outputs={outputs}", "arm=lm_gsae", *typed]), outputs / "bad"
        )
    except UserError as error:
        message = str(error)
    else:
        run_study(made)
        record = made.runs[0].record()["error"]
        assert record["kind"] == "user", record["traceback"]
        message = record["message"]
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"labels": "sample"}, "Did you mean 'sampled'"),
        ({"mode": "lable"}, "Did you mean 'label'"),
        ({"steered": 0}, "steered is at least 1"),
    ],
)
def test_a_bad_knob_is_one_line(knobs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        Dictionary(autoencoder=ReLUAutoencoder, base=Given(), **knobs)
    assert "\n" not in str(error.value)


def test_one_device_only(study: Study) -> None:
    config = OmegaConf.load(study.runs[-1].folder / "config.yaml")
    module = build_module(config)
    assert isinstance(module.dictionary, Dictionary)
    module.trainer = type("Trainer", (), {"world_size": 2})()
    with pytest.raises(UserError, match="one device"):
        module.setup("fit")
