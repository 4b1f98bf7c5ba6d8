"""What holds for every paper's room. What is special to one is in a test file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from interruptions import same_after_a_kill
from rooms import configs, refusal, summaries

from repro.claims.file import check_arms, load_claims
from repro.claims.outcomes import Verdict
from repro.claims.relations.pairs import Identity
from repro.claims.studies import judge_study
from repro.errors import UserError
from repro.launching.needs import lacking
from repro.planning.plan import plan_study
from repro.records.papers import Paper, load_papers
from repro.records.run import Run, Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module
from repro.training.metrics import check_declared, declared, undeclared

PAPERS = {paper.slug: paper for paper in load_papers()}
SCALES = [(slug, scale) for slug, paper in PAPERS.items() for scale in paper.scales]
Smoke = Callable[[str], Study]
of_each_paper = pytest.mark.parametrize("slug", PAPERS)
at_each_scale = pytest.mark.parametrize(("slug", "scale"), SCALES)


def arms_at(paper: Paper, scale: str) -> set[str]:
    """The arms that a scale runs."""
    lists = [text for text in paper.scales[scale] if text.startswith("arm=[")]
    named = lists[-1].removeprefix("arm=[").removesuffix("]").split(",") if lists else paper.arms
    return {arm.strip() for arm in named}


@of_each_paper
def test_every_arm_finishes(slug: str, smoke: Smoke) -> None:
    ended = {run.record().arm: run.status() for run in smoke(slug).runs}
    assert set(ended.values()) == {Status.FINISHED}, ended


@of_each_paper
def test_runs_report_what_claims_judged_here_read(slug: str, smoke: Smoke) -> None:
    found = summaries(smoke(slug))
    for claim in load_claims(PAPERS[slug].claims_file).claims:
        for check in claim.checks_at("smoke"):
            for arm in check.arm_names():
                assert set(check.metric_names()) <= found[arm].keys(), (claim.id, arm)


@of_each_paper
def test_metrics_are_declared(slug: str, smoke: Smoke) -> None:
    """Those of all runs, of the report and of claims; some need more than smoke to come about."""
    study, paper = smoke(slug), PAPERS[slug]
    known = {run.record().arm: declared(run.config()) for run in study.runs}
    for run in study.runs:
        assert not undeclared(run.summary(), known[run.record().arm]), run.folder
    assert not undeclared(paper.report, {k: v for each in known.values() for k, v in each.items()})
    for claim in load_claims(paper.claims_file).claims:
        for check in claim.all_checks():
            check_declared(check.metric_names(), check.arm_names(), known, claim.id)


@of_each_paper
def test_every_claim_gets_a_verdict(slug: str, smoke: Smoke) -> None:
    """Or a reason, which says at which scales it is judged or what that needs."""
    verdicts = {verdict.id: verdict for verdict in judge_study(smoke(slug))}
    for claim in load_claims(PAPERS[slug].claims_file).claims:
        found = verdicts[claim.id]
        judged = found.verdict is not Verdict.NOT_AT_SCALE
        assert judged == bool(claim.checks_at("smoke")), claim.id
        for told in [] if judged else [claim.why_not] if claim.why_not else claim.scales:
            assert told in found.reason, claim.id


@of_each_paper
def test_smoke_judges_only_what_holds_by_construction(slug: str) -> None:
    """And by the same checks as mini: a verdict on less than the sentence misleads."""
    for claim in load_claims(PAPERS[slug].claims_file).claims:
        for check in claim.checks_at("smoke"):
            assert isinstance(check, Identity) or getattr(check, "deterministic", False), claim.id
            assert not check.scales, claim.id
        assert claim.checks_at("smoke") in ([], claim.checks_at("mini")), claim.id


@of_each_paper
def test_figures_are_written_as_png_and_svg(slug: str, smoke: Smoke) -> None:
    written = draw_study(smoke(slug))
    stems = {path.stem for path in written}
    assert {path.name for path in written} == {f"{s}.{t}" for s in stems for t in ("png", "svg")}
    assert all(path.stat().st_size > 5000 for path in written)


def one_of_each_kind(study: Study) -> Iterator[Run]:
    """A run for every module and every method in it."""
    seen = set()
    for run in study.runs:
        config = run.config()
        kind = config.module._target_, config.method.get("_target_")
        if kind not in seen:
            seen.add(kind)
            yield run


@of_each_paper
def test_a_killed_run_ends_with_the_same_numbers(
    slug: str, smoke: Smoke, outputs: Path, tmp_path: Path
) -> None:
    """Killed halfway, continued from a checkpoint of an earlier step."""
    for run in one_of_each_kind(smoke(slug)):
        arm, middle = run.record().arm, int(run.summary()["steps"]) // 2
        typed = [f"paper={slug}", "scale=smoke", f"arm={arm}", "seed=0", f"outputs={outputs}"]
        same_after_a_kill(tmp_path / arm, middle, *typed, straight=run)


@of_each_paper
@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("module.nonsense=1", "module.nonsense"),
        ("training.epochs=many", "training.epochs"),
    ],
)
def test_a_bad_setting_is_one_line(slug: str, typed: str, complaint: str, tmp_path: Path) -> None:
    arm = next(iter(PAPERS[slug].arms))
    refused = refusal(tmp_path, f"paper={slug}", "scale=smoke", f"arm={arm}", "seed=0", typed)
    assert complaint in refused


def build(*typed: str) -> None:
    """Builds what is composed; what needs files that are not here may say so instead."""
    for config in configs(*typed).values():
        try:
            with torch.device("meta"):  # where nothing is allocated, however large the model
                build_module(config)
        except RuntimeError:  # it computes with what it builds
            build_module(config)
        except UserError as error:
            if "missing" not in str(error) or len(str(error).splitlines()) > 3:
                raise


@pytest.mark.parametrize(("slug", "scale"), [pair for pair in SCALES if pair[1] != "smoke"])
def test_every_arm_composes_and_builds(slug: str, scale: str) -> None:
    """At smoke they run."""
    build(f"paper={slug}", f"scale={scale}")


@pytest.mark.parametrize(("slug", "scale"), [pair for pair in SCALES if pair[1] != "smoke"])
def test_what_a_scale_lacks_here_is_said_before_it_starts(slug: str, scale: str) -> None:
    problem = lacking(plan_study([f"paper={slug}", f"scale={scale}", "seed=0"]))
    assert problem is None or "cannot run" in problem or "Nothing can run" in problem


@of_each_paper
def test_arms_that_no_scale_runs_compose_and_build_too(slug: str) -> None:
    paper = PAPERS[slug]
    others = set(paper.arms).difference(*(arms_at(paper, scale) for scale in paper.scales))
    if others:
        build(f"paper={slug}", f"arm=[{','.join(sorted(others))}]")


@of_each_paper
def test_claims_speak_of_arms_that_there_are(slug: str) -> None:
    check_arms(load_claims(PAPERS[slug].claims_file), PAPERS[slug].arms)


@of_each_paper
def test_margins_and_bounds_come_with_reasons(slug: str) -> None:
    silent = [
        f"claim {claim.id}: {check.effect_name} {check.claimed} (say margin_because)"
        for claim in load_claims(PAPERS[slug].claims_file).claims
        for check in claim.all_checks()
        if check.chosen_limits and check.margin_because is None
    ]
    assert not silent


@at_each_scale
def test_claims_read_times_only_of_exclusive_runs(slug: str, scale: str) -> None:
    claims = load_claims(PAPERS[slug].claims_file).claims
    timed = [check for claim in claims for check in claim.checks_at(scale) if check.timed]
    arms = {arm for check in timed for arm in check.arm_names()}
    if arms:
        chosen = configs(f"paper={slug}", f"scale={scale}")
        assert [arm for arm in arms if not chosen[arm].exclusive] == []


@at_each_scale
def test_a_scale_runs_the_arms_of_its_claims(slug: str, scale: str) -> None:
    arms = arms_at(PAPERS[slug], scale)
    assert arms <= set(PAPERS[slug].arms)
    for claim in load_claims(PAPERS[slug].claims_file).claims:
        for check in claim.checks_at(scale):
            assert set(check.arm_names()) <= arms, claim.id
