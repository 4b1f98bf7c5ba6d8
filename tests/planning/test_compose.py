"""From what is typed to composed configs: who wins, and what is refused with which words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from repro.errors import UserError
from repro.planning.plan import Plan, plan_study
from repro.records.papers import load_paper


def plan(*typed: str, grid: bool = False) -> Plan:
    return plan_study(["paper=toy", *typed], grid=grid)


def config(*typed: str, arm: str = "sgd") -> Any:
    return plan(*typed, f"arm={arm}", "seed=0").runs[-1].config


def refusal(*typed: str, grid: bool = False) -> str:
    with pytest.raises(UserError) as error:
        plan_study(list(typed), grid=grid)
    message = str(error.value)
    assert len(message.splitlines()) <= 3
    return message


@pytest.fixture
def papers(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a paper that starts from toy's config; its own keys are given as text."""
    folder = toy / "a folder, with [odd] 'characters'"
    shutil.copytree(os.environ["REPRO_CONFIG_DIR"], folder)
    monkeypatch.setenv("REPRO_CONFIG_DIR", str(folder))

    def add(**changes: Any) -> None:
        file = folder / "paper" / "toy.yaml"
        content = OmegaConf.merge(OmegaConf.load(file), changes)
        file.write_text(f"# @package _global_\n{OmegaConf.to_yaml(content)}")

    return add


def test_the_paper_overrides_the_project_and_leaves_the_rest(toy: Path) -> None:
    composed = config("scale=mini")
    assert composed.optimizer.lr == 0.05  # the paper's
    assert composed.optimizer.momentum == 0.9  # the project's
    assert composed.training.epochs == 20  # the scale's


def test_scale_beats_paper_arm_beats_scale_and_user_beats_arm(papers: Any) -> None:
    papers(
        training={"epochs": 1, "log_every": 1, "clip_norm": 1.0, "val_every": 1},
        scales={"smoke": ["training.log_every=2", "training.clip_norm=2", "training.val_every=2"]},
        arms={"sgd": ["training.clip_norm=3", "training.val_every=3"]},
    )
    training = config("scale=smoke", "training.val_every=4").training
    assert (training.epochs, training.log_every) == (1, 2)
    assert (training.clip_norm, training.val_every) == (3, 4)


def test_an_arms_group_beats_the_scales(papers: Any) -> None:
    papers(scales={"smoke": ["optimizer=adamw", "optimizer.eps=1e-3"]})
    assert config("scale=smoke").optimizer._target_ == "torch.optim.AdamW"
    composed = config("scale=smoke", arm="adam")
    assert composed.optimizer._target_ == "torch.optim.Adam"
    assert composed.optimizer.eps == 1e-8  # meant for AdamW, so it went with it


def test_the_users_group_beats_an_arms_and_drops_what_the_arm_set_inside(toy: Path) -> None:
    assert config(arm="adam").optimizer.lr == 0.003
    composed = config("optimizer=adamw", arm="adam")
    assert composed.optimizer._target_ == "torch.optim.AdamW"
    assert composed.optimizer.lr == 0.05  # the paper's again
    assert config("optimizer=adamw", "optimizer.lr=1", arm="adam").optimizer.lr == 1


def test_the_users_group_drops_what_the_scale_set_inside(toy: Path) -> None:
    assert config("scale=smoke").model.hidden == [16]
    composed = config("scale=smoke", "model=mlp")
    assert composed.model.hidden == [256, 256]
    assert "dropout" not in composed.model
    assert config("scale=smoke", "dataset=wine", "model=mlp").dataset.name == "wine"


def test_the_users_value_inside_a_group_leaves_the_arms_choice(toy: Path) -> None:
    composed = config("optimizer.betas=[0.5,0.9]", arm="adam")
    assert composed.optimizer._target_ == "torch.optim.Adam"
    assert (composed.optimizer.lr, composed.optimizer.betas) == (0.003, [0.5, 0.9])


@pytest.mark.parametrize("key", ["+optimizer.foreach", "++optimizer.foreach"])
def test_new_keys_need_a_plus(toy: Path, key: str) -> None:
    assert config(f"{key}=false").optimizer.foreach is False
    assert "+optimizer.foreach" in refusal("paper=toy", "optimizer.foreach=false")


def test_keys_can_be_removed(toy: Path) -> None:
    assert "nesterov" not in config("~optimizer.nesterov").optimizer


def test_a_key_that_an_arm_adds_can_be_overridden_without_a_plus(papers: Any) -> None:
    papers(arms={"sgd": ["+optimizer.foreach=true"]})
    assert config("optimizer.foreach=false").optimizer.foreach is False


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("paper.question='a, b=c {d} [e]'", "a, b=c {d} [e]"),
        ('paper.question="it\'s"', "it's"),
        ("paper.question=", ""),
        (r"paper.question=\{\}", "{}"),
    ],
)
def test_quoted_values_arrive_as_meant(toy: Path, typed: str, value: str) -> None:
    assert config(typed).paper.question == value


def test_composed_configs_resolve_to_plain_values(toy: Path) -> None:
    for run in plan("scale=smoke").runs:
        plain = OmegaConf.to_container(run.config, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        assert plain["module"]["model"]["classes"] == 10
        assert plain["dataset"]["seed"] == run.seed
        assert not {"arms", "scales", "seeds", "report"} & plain.keys()


def test_a_study_is_arms_times_seeds_with_parents_first(toy: Path) -> None:
    planned = plan("scale=smoke")
    assert [[run.folder for run in layer] for layer in planned.layers()] == [
        ["sgd/seed=0", "sgd/seed=1", "adam/seed=0", "adam/seed=1"],
        ["tuned/seed=0", "tuned/seed=1"],
        ["tuned_twice/seed=0", "tuned_twice/seed=1"],
    ]
    assert not planned.is_grid


def test_parents_come_along(toy: Path) -> None:
    planned = plan("arm=tuned_twice", "seed=4")
    assert [run.folder for run in planned.runs] == [
        "sgd/seed=4",
        "tuned/seed=4",
        "tuned_twice/seed=4",
    ]
    assert any("'sgd' is run too" in note for note in planned.notes)


def test_the_user_can_choose_the_parent(toy: Path) -> None:
    planned = plan("arm=tuned", "seed=0", "from=adam")
    assert [(run.arm, run.parent) for run in planned.runs] == [("adam", None), ("tuned", "adam")]
    planned = plan("arm=tuned", "seed=0", "from=null")
    assert [(run.arm, run.parent) for run in planned.runs] == [("tuned", None)]


def test_unknown_parents_and_circles_are_refused(papers: Any) -> None:
    assert "Did you mean 'adam'" in refusal("paper=toy", "arm=tuned", "from=adm")
    papers(arms={"sgd": ["from=tuned_twice"]})
    assert "circle" in refusal("paper=toy")
    assert "circle" in refusal("paper=toy", "arm=tuned")


def test_what_starts_from_an_exclusive_run_is_exclusive_too(toy: Path) -> None:
    alone = "arms.sgd=['exclusive=true']"
    message = refusal("paper=toy", "arm=tuned", alone)
    assert message == (
        "Arm 'tuned' starts from 'sgd', whose runs are exclusive and come last. "
        "Say exclusive=true for 'tuned', too."
    )
    assert plan("arm=[sgd,adam]", alone).runs
    assert plan("arm=tuned", "exclusive=true").runs


def test_arms_that_an_override_makes_equal_run_once(toy: Path) -> None:
    planned = plan("scale=smoke", "optimizer.lr=1", "optimizer=sgd", "arm=[sgd,adam]")
    assert {run.arm for run in planned.runs} == {"sgd"}
    assert planned.twins == {"adam": "sgd"}
    assert any("'adam' is not run" in note for note in planned.notes)


def test_children_of_a_left_out_twin_start_from_its_double(toy: Path) -> None:
    planned = plan("optimizer=sgd", "optimizer.lr=1", "arm=[sgd,adam,tuned]", "from=null")
    assert [run.arm for run in planned.runs] == ["sgd"] * 3


def test_a_grid_spans_values_groups_arms_and_seeds(toy: Path) -> None:
    planned = plan("arm=sgd,adam", "seed=0,3", "model=mlp,noisy", "training.epochs=1,2", grid=True)
    assert planned.is_grid
    assert len({run.folder for run in planned.runs}) == len(planned.runs) == 16
    assert planned.runs[-1].point == {"model": "noisy", "training.epochs": 2}


def test_a_grid_of_arms_and_seeds_is_an_ordinary_study(toy: Path) -> None:
    planned = plan("arm=sgd,adam", "seed=0,3", grid=True)
    assert not planned.is_grid
    assert {run.folder for run in planned.runs} == {
        f"{arm}/seed={seed}" for arm in ("sgd", "adam") for seed in (0, 3)
    }


def test_a_grid_makes_no_run_twice(toy: Path) -> None:
    planned = plan("arm=tuned,sgd", "seed=0,0", grid=True)
    assert [run.folder for run in planned.runs] == ["sgd/seed=0", "tuned/seed=0"]
    assert len(planned.notes) == len(set(planned.notes))


def test_a_grid_takes_ranges_and_keeps_points_apart(toy: Path) -> None:
    planned = plan("arm=tuned", "seed=0", "training.epochs=range(1,3)", grid=True)
    assert [(run.folder, run.parent) for run in planned.runs] == [
        ("sgd/training.epochs=1/seed=0", None),
        ("tuned/training.epochs=1/seed=0", "sgd"),
        ("sgd/training.epochs=2/seed=0", None),
        ("tuned/training.epochs=2/seed=0", "sgd"),
    ]


def test_points_of_a_grid_get_folders_of_their_own(toy: Path) -> None:
    planned = plan("arm=sgd", "seed=0", "paper.link=a/b,a_b", grid=True)
    assert len({run.folder for run in planned.runs}) == 2
    long = "x" * 300
    planned = plan("arm=sgd", "seed=0", f"paper.link={long}1,{long}2", grid=True)
    assert len({run.folder for run in planned.runs}) == 2
    assert all(len(part) < 256 for run in planned.runs for part in run.folder.split("/"))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["paper=tyo"], "Did you mean 'toy'"),
        ([], "Which paper?"),
        (["paper=toy", "arm=adm"], "Did you mean 'adam'"),
        (["paper=toy", "scale=smok"], "Did you mean 'smoke'"),
        (["paper=toy", "optimizer=adamm"], "Did you mean 'adam'"),
        (["paper=toy", "method=skeleton/sift"], "Did you mean 'skeleton/soft'"),
        (["paper=toy", "trainig.epochs=3"], "Did you mean 'training.epochs'"),
        (["paper=toy", "epochs=3"], "Did you mean 'training.epochs'"),
        (["paper=toy", "training.epochs=many"], "training.epochs takes a whole number"),
        (["paper=toy", "training.epochs=1.5"], "training.epochs takes a whole number"),
        (["paper=toy", "training.epochs=[1]"], "training.epochs takes a whole number"),
        (["paper=toy", "optimizer.nesterov=3"], "optimizer.nesterov takes true or false"),
        (["paper=toy", "optimizer=3"], "no optimizer '3'"),
        (["paper=toy", "training=3"], "training takes a mapping"),
        (["paper=toy", "model.hidden=3"], "model.hidden takes a list"),
        (["paper=toy", "training.epochs=0"], "training.epochs"),
        (["paper=toy", "training.epochs=-1"], "training.epochs"),
        (["paper=toy", "training.epochs=null"], "training.epochs"),
        (["paper=toy", "training.max_steps=0"], "training.max_steps"),
        (["paper=toy", "training.val_every=0"], "training.val_every"),
        (["paper=toy", "training.log_every=0"], "training.log_every"),
        (["paper=toy", "training.mode=maximal"], "training.mode"),
        (["paper=toy", "training.test_with=first"], "training.test_with"),
        (["paper=toy", "training.monitor=test/loss"], "never a test metric"),
        (["paper=toy", "seed=3", "seed=4"], "'seed' is given twice"),
        (["paper=toy", "+seed=3", "seed=4"], "'seed' is given twice"),
        (["paper=toy", "paper=toy"], "'paper' is given twice"),
        (["paper=toy", "seeds=[1,2,1]"], "names 1 more than once"),
        (["paper=toy", "seeds=[]"], "seeds takes a list"),
        (["paper=toy", "seed=-1"], "between 0 and"),
        (["paper=toy", "seed=4294967296"], "between 0 and"),
        (["paper=toy", "seed=one"], "seeds takes a list"),
        (["paper=toy", "seed=true"], "seeds takes a list"),
        (["paper=toy", "optimizer.lr=1,2"], "add -m"),
        (["paper=toy", "nonsense"], "is not an override"),
        (["paper=toy", "=3"], "Write key=value"),
        (["paper=toy", "n_jobs="], "n_jobs"),
        (["paper=toy", "outputs=null"], "outputs"),
        (["paper=toy", "data.root=${nowhere}"], "data.root"),
        (["paper=toy", "hardware.threads=0"], "hardware.threads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_answered_in_a_line_that_helps(
    toy: Path, typed: list[str], words: str
) -> None:
    assert words in refusal(*typed)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["paper=toy", "optimizer.lr=interval(0,1)"], "is an interval"),
        (["paper=toy", "scale=smoke,mini"], "scale"),
        (["paper=toy,dgc"], "paper"),
        (["paper=toy", "training.epochs=1,many"], "training.epochs takes a whole number"),
        (["paper=toy", "arm=sgd,adm"], "Did you mean 'adam'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_grids_with_mistakes_are_refused(toy: Path, typed: list[str], words: str) -> None:
    assert words in refusal(*typed, grid=True)


def test_mistakes_of_a_papers_author_name_the_arm_or_scale(papers: Any) -> None:
    papers(arms={"broken": ["optimizer.lr:3"]})
    assert "arm 'broken'" in refusal("paper=toy")
    papers(arms={"broken": []}, scales={"smoke": ["seeds=[0,1]", "seeds=[2]"]})
    assert "scale 'smoke'" in refusal("paper=toy", "scale=smoke")


def test_a_broken_paper_file_is_named(papers: Any, toy: Path) -> None:
    papers()
    file = next(toy.glob("*/paper/toy.yaml"))
    for broken in ("arms: [", "arms: {}", "[]", ""):
        file.write_text(broken)
        assert "toy.yaml" in refusal("paper=toy")


def test_arms_and_scales_inherit(papers: Any) -> None:
    papers(
        arms={"tall": ["optimizer=adam", "optimizer.lr=0.5"], "taller": ["like=tall", "from=sgd"]},
        scales={"mini": ["like=smoke", "training.epochs=7"]},
    )
    tall, taller = (
        plan("scale=mini", f"arm={arm}", "seed=0").runs[-1] for arm in ("tall", "taller")
    )
    assert {**tall.content, "from": "sgd", "arm": "taller"} == taller.content
    assert taller.parent == "sgd"
    assert tall.config.training.epochs == 7
    assert tall.config.model.hidden == [16]
    assert [run.seed for run in plan("scale=mini", "arm=sgd").runs] == [0, 1]


def test_what_an_arm_inherits_can_be_typed(toy: Path) -> None:
    typed = ["arms.sgd=['optimizer.momentum=0.5']", "+arms.more=['like=sgd','optimizer.lr=1']"]
    assert config(*typed, arm="more").optimizer.momentum == 0.5
    assert "Did you mean 'sgd'" in refusal("paper=toy", "+arms.more=['like=sdg']")


@pytest.mark.parametrize("kind", ["arms", "scales"])
@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["optimizer.lr 3"], "is not an override"),
        (["like=smok"], "which is no"),
        (["like=odd"], "in a circle"),
    ],
)
def test_every_arm_and_scale_is_checked_when_its_paper_is_loaded(
    papers: Any, kind: str, texts: list[str], words: str
) -> None:
    papers(**{kind: {"odd": texts}})
    with pytest.raises(UserError, match=words) as error:
        load_paper("toy")
    assert "toy.yaml" in str(error.value)
    assert f"{kind[:-1]}" in str(error.value)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("optimizer.momentum=0.5", r"Arm 'adam' has no setting 'optimizer.momentum'.*arm=\[sgd"),
        ("arm=adam optimizer.momentum=0.5", r"Arm 'adam' has no setting .*arm=\[sgd"),
        ("optimizer.momentun=0.5", "no setting 'optimizer.momentun'. Did you mean 'optimizer.mo"),
        ("optimizer=3", "There is no optimizer '3'"),
    ],
)
def test_a_setting_that_an_arm_lacks_names_the_arms_that_have_it(
    toy: Path, typed: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        plan_study(["paper=toy", "scale=smoke", *typed.split()])


def test_a_config_file_that_changed_is_read_again(papers: Any) -> None:
    """What a file says is remembered from study to study, but not beyond its next change."""
    file = Path(os.environ["REPRO_CONFIG_DIR"]) / "paper" / "toy.yaml"
    assert config("scale=mini").training.epochs == 20
    file.write_text(file.read_text().replace("training.epochs=20", "training.epochs=210"))
    assert config("scale=mini").training.epochs == 210
    runs = [config("scale=mini", "optimizer.lr=0.5"), config("scale=mini")]
    assert [run.optimizer.lr for run in runs] != [0.5, 0.5]  # what is typed is not remembered
