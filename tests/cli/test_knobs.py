"""`repro show` reads knobs without Hydra, and finds what Hydra composes."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from repro.cli.knobs import Knob, in_words, knobs

from repro.planning.compose import Layer, compose_config, hydra_ready, stack
from repro.planning.plan import STUDY_KEYS
from repro.records.papers import load_paper, paper_files


@pytest.mark.parametrize("slug", paper_files())
def test_every_default_is_that_of_the_composed_config(slug: str) -> None:
    paper = load_paper(slug)
    with hydra_ready():
        texts = [text.replace("\\$", "$") for text in paper.scales["mini"]]
        layer, study = Layer.parse(texts, "scale").pop(*STUDY_KEYS)
        config = compose_config([f"paper={slug}", *stack([layer])])
    composed = OmegaConf.to_container(config, resolve=False)
    found = {knob.key: knob for knob in knobs(paper)}
    assert {"training.epochs", "seeds", "optimizer.lr"} <= set(found)
    for key, knob in found.items():
        if key in study or knob.default == "…":
            continue
        value = composed
        for name in key.split("."):
            assert isinstance(value, dict), key
            assert name in value, key
            value = value[name]
        written = OmegaConf.create(f"- {knob.default}")
        assert OmegaConf.to_container(written, resolve=False) == [value], key


@pytest.mark.parametrize("slug", paper_files())
def test_every_knob_has_a_meaning(slug: str) -> None:
    assert [knob.key for knob in knobs(load_paper(slug)) if not knob.meaning] == []


def test_a_file_beside_or_elsewhere_lends_its_comments(toy: Path) -> None:
    """As `published` does to `small`, by an absolute path, without a package of its own."""
    found = {knob.key: knob for knob in knobs(load_paper("mentor"))}
    assert found["method.n_step"].meaning.startswith("of the returns")
    assert found["method.agent.noise_clip"].default == "0.3"


@pytest.mark.parametrize(
    ("default", "words"),
    [
        ("0.1", "0.1"),
        ("${optimizer.lr}", "= optimizer.lr"),
        ("${.modulus}", "= modulus"),
        ("${oc.select:dataset.classes,${oc.select:dataset.targets,null}}", "= dataset.classes"),
        ("${oc.env:REPRO_DATA_ROOT,null}", "$REPRO_DATA_ROOT"),
        ("${outputs}/.cache", "${outputs}/.cache"),
        ("${a}${b}", "${a}${b}"),
    ],
)
def test_a_default_that_follows_another_setting_says_which(default: str, words: str) -> None:
    assert in_words(default) == words


def test_the_meaning_stands_beside_or_above_a_key(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "paper").mkdir()
    (toy / "paper" / "mine.yaml").write_text(
        """# @package _global_
# A title.
defaults: [override /optimizer: adam, /autoencoder: batch_topk, _self_]
paper: {title: Mine}
arms: {}
scales:
  smoke: [optimizer=sgd]
  mini: [optimizer.lr=7, "own={deep:{one:5}}", ~own.two, 'own.three=\\${seed}']
own:  # not of its keys
  deep:
    # above,
    # in two lines
    one: 1
  two: 2
  three: 3  # beside
  list:  # of the list
    - {a: 1}
rates:  # by arm
  one: 0.1
  two: {deep: 0.2}
  three: 0.3  # guessed
training:
  epochs: 4
"""
    )
    monkeypatch.setenv("REPRO_CONFIG_DIR", str(toy))
    found = knobs(load_paper("mine"))
    assert found[:7] == [
        Knob("training.epochs", "4", "passes over the training data"),
        Knob("own.deep.one", "5", "above, in two lines"),
        Knob("own.three", "${seed}", "beside"),
        Knob("own.list", "…", "of the list"),
        Knob("rates.one", "0.1", "by arm", table="rates"),
        Knob("rates.two.deep", "0.2", "by arm", table="rates"),
        Knob("rates.three", "0.3", "guessed"),
    ]
    rest = {knob.key: knob for knob in found[7:]}
    assert rest["optimizer.lr"] == Knob("optimizer.lr", "7", "step size")
    assert "optimizer.betas" in rest  # of adam, which only smoke replaces
    assert rest["autoencoder.k"].meaning  # of topk, from which batch_topk starts
    assert not {"own.two", "paper.title", "arms", "dataset.info"} & set(rest)
