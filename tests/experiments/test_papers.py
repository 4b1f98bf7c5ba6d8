"""What holds for every paper's claims and scales, whatever its room does."""

from __future__ import annotations

import pytest

from repro.claims.file import check_arms, load_claims
from repro.records.papers import load_paper, load_papers

# How many claims each paper's table has; a room may split one or add its own.
CLAIMS = {
    "accelat": 5,
    "bn_marl": 6,
    "dgc": 9,
    "gblm": 10,
    "gbnn": 8,
    "gradient_noise": 12,
    "gradient_ptq": 9,
    "gsae": 8,
    "icgnn": 7,
    "man": 7,
    "nngp_mixture": 8,
    "scalelong": 8,
    "skeleton": 8,
}
SCALES = [(paper.slug, scale) for paper in load_papers() for scale in paper.scales]


def test_every_paper_is_here() -> None:
    assert {paper.slug for paper in load_papers()} == set(CLAIMS)


@pytest.mark.parametrize("slug", CLAIMS)
def test_every_claim_has_a_row_that_names_arms_there_are(slug: str) -> None:
    paper = load_paper(slug)
    claims = load_claims(paper.claims_file)
    letter = claims.claims[0].id[0]
    numbered = {f"{letter}{number}" for number in range(1, CLAIMS[slug] + 1)}
    assert numbered <= {claim.id for claim in claims.claims}
    check_arms(claims, paper.arms)


@pytest.mark.parametrize(("slug", "scale"), SCALES)
def test_a_scale_runs_the_arms_of_its_claims(slug: str, scale: str) -> None:
    paper = load_paper(slug)
    lists = [text for text in paper.scales[scale] if text.startswith("arm=[")]
    named = lists[-1].removeprefix("arm=[").removesuffix("]").split(",") if lists else paper.arms
    arms = {arm.strip() for arm in named}
    assert arms <= set(paper.arms)
    for claim in load_claims(paper.claims_file).claims:
        for check in claim.checks_at(scale):
            assert set(check.arm_names()) <= arms, claim.id
