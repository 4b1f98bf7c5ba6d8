"""The table of what combines with what says what happens."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from repro.errors import UserError
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper, load_papers
from repro.records.run import Status
from repro.report import combinations, record
from repro.toolbox.method import Method
from repro.training.execute import execute_here

PAGE = combinations.document().read_text()
PAPERS = {
    paper.slug: paper
    for paper in load_papers()
    if f"`{paper.slug}`" in PAGE or paper.results_file("mini").is_file()
}


def read_page() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What `to_markdown` wrote: column -> method -> why not, and paper -> how it trains instead."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.M))
    columns: dict[str, dict[str, str]] = {}
    for title, *rows in (table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M)):
        places = title.strip("| ").split(" | ")[1:]
        for method, *cells in (row.strip("| ").split(" | ") for row in rows[1:]):
            for place, cell in zip(places, cells, strict=True):
                columns.setdefault(place, {})[method.strip("`")] = reasons.get(cell, "")
    return columns, dict(re.findall(r"^\* `(\w+)`, (.*)$", PAGE, re.M))


COLUMNS, WITHOUT = read_page()


@pytest.fixture(scope="session")  # tests of papers come apart, with all that is about the same one
def methods() -> dict[str, DictConfig]:
    return combinations.method_configs()


@pytest.mark.parametrize("slug", PAPERS)
def test_the_page_agrees_with_what_happens_in_a_room(
    slug: str, methods: dict[str, DictConfig]
) -> None:
    found = combinations.try_paper(methods, PAPERS[slug])
    shown = {place: COLUMNS.get(place) for place in combinations.places(PAPERS[slug])}
    expected = {} if slug in WITHOUT else shown
    assert found.reasons == expected, "run: make combinations"
    assert found.without.get(slug) == WITHOUT.get(slug), "run: make combinations"


@pytest.mark.parametrize("name", combinations.MODELS)
def test_the_page_agrees_with_what_happens_to_a_model(
    name: str, methods: dict[str, DictConfig]
) -> None:
    assert combinations.try_model(methods, name) == COLUMNS[name], "run: make combinations"


def test_the_page_is_written_by_the_command() -> None:
    models = {name: COLUMNS[name] for name in combinations.MODELS}
    papers = {place: column for place, column in COLUMNS.items() if place not in models}
    block = combinations.to_markdown(papers, models, WITHOUT)
    assert record.fill(PAGE, "combinations", block) == PAGE, "run: make combinations"


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
    reasons = COLUMNS["`dgc`"]
    study = create_study(
        plan_study(["paper=dgc", "arm=dense", "method=gbnn", "scale=smoke", "seed=0"]), tmp_path
    )
    assert execute_here(study.runs[0]) == Status.FAILED
    error = study.runs[0].record().error
    assert error is not None
    assert error.message == reasons["gbnn"]
    assert "\n" not in reasons["gbnn"]


def test_an_interpolation_that_leads_nowhere_is_a_reason(methods: dict[str, DictConfig]) -> None:
    config = combinations.config_of("dgc", ["arm=dense", "optimizer=adam"])
    reason = combinations.try_methods(config, {"dgc": methods["dgc"]})["dgc"]
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
    found = combinations.try_paper({}, load_paper("dgc"))
    assert found.without == {"dgc": "`Sculptor`: Carves a network from a block."}
    assert not found.reasons
