"""The table of what combines with what says what happens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from repro.errors import UserError
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Status
from repro.report import combinations, record
from repro.toolbox.method import Method
from repro.training.execute import execute_here


def test_the_page_agrees_with_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CONFIG_DIR", "")  # the project's own papers
    page = combinations.document().read_text()
    now = record.fill(page, "combinations", combinations.generate())
    assert now == page, "run: make combinations"


@pytest.mark.parametrize(
    "typed",
    [
        ["paper=man", "arm=bp", "method=dgc"],
        ["paper=gradient_noise", "arm=simple", "method=fgsm_at", "training.clip_norm=null"],
        ["paper=gbnn", "arm=cnn", "method=gradient_noise"],
        ["paper=dgc", "arm=dense", "model=lstm", "dataset=stdlib_text", "method=gradient_noise"],
    ],
)
def test_what_works_in_the_table_trains(typed: list[str], tmp_path: Path) -> None:
    plan = plan_study([*typed, "scale=smoke", "seed=0", "training.max_steps=2"])
    study = create_study(plan, tmp_path)
    assert execute_here(study.runs[0]) == Status.FINISHED
    assert study.runs[0].summary()["steps"] == 2


def test_what_does_not_work_fails_with_the_line_of_the_table(tmp_path: Path) -> None:
    methods = {"gbnn": combinations.method_configs()["gbnn"]}
    reasons = combinations.try_papers(methods, ["dgc"]).reasons["`dgc`"]
    study = create_study(
        plan_study(["paper=dgc", "arm=dense", "method=gbnn", "scale=smoke", "seed=0"]), tmp_path
    )
    assert execute_here(study.runs[0]) == Status.FAILED
    assert study.runs[0].record().error.message == reasons["gbnn"]
    assert "\n" not in reasons["gbnn"]


def test_an_interpolation_that_leads_nowhere_is_a_reason() -> None:
    config = combinations.config_of("dgc", ["arm=dense", "optimizer=adam"])
    methods = {"dgc": combinations.method_configs()["dgc"]}
    reason = combinations.try_methods(config, methods)["dgc"]
    assert reason == (
        "method.momentum cannot be filled in: the chosen optimizer has no momentum."
        " Choose another optimizer."
    )
    with pytest.raises(UserError) as caught:
        plan_study(["paper=dgc", "arm=dense", "optimizer=adam", "method=dgc"])
    assert str(caught.value) == reason


class Thoughtless(Method):
    """A method that fails without saying why."""

    def before_step(self, model: torch.nn.Module) -> None:
        raise RuntimeError("shape mismatch")


def test_a_fault_is_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro.toolbox.method.Method", Thoughtless)
    plain = OmegaConf.create({"_target_": "repro.toolbox.method.Method"})
    monkeypatch.setattr("repro.planning.instantiate._check_target", lambda target: None)
    reasons = combinations.try_methods(combinations.config_of("dgc"), {"plain": plain})
    assert reasons["plain"] == "Not refused, but fails: RuntimeError: shape mismatch"


class Sculptor(SimpleNamespace):
    """Carves a network from a block.

    Nothing of this is in the table.
    """


def test_a_paper_that_takes_no_method_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combinations, "build_module", lambda config: Sculptor())
    found = combinations.try_papers({}, ["dgc"])
    assert found.without == {"dgc": "`Sculptor`: Carves a network from a block."}
    assert not found.reasons
