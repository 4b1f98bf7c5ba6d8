"""The table of verdicts on the terminal: narrow, short, verdict first."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fake_outputs import claim
from repro.cli.main import SIMILAR
from repro.cli.render import recorded
from repro.cli.verdicts import verdict_table
from rich.console import Console

from repro.claims.outcomes import Verdict
from repro.claims.verdicts import ClaimVerdict, Recorded
from repro.records.papers import load_paper, load_papers
from repro.report.tables import answer, in_reach

RECORDED = [
    (paper.slug, scale)
    for paper in load_papers()
    for scale in paper.scales
    if paper.results_file(scale).is_file()
]


def shown(verdicts: Iterable[ClaimVerdict], width: int = 80, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(verdict_table(verdicts, **options), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def several(*verdicts: Verdict) -> ClaimVerdict:
    """A claim with a check of each of these verdicts."""
    (check,) = claim("C1", Verdict.SUPPORTED).checks
    checks = tuple(
        check.model_copy(update={"verdict": verdict, "compared": f"arm{n} − dense"})
        for n, verdict in enumerate(verdicts)
    )
    update = {"checks": checks, "reason": "too few seeds"}
    return claim("C1", verdicts[0]).model_copy(update=update)


def test_dgc_fits_one_screen_of_80_columns() -> None:
    verdicts = recorded(load_paper("dgc"))["mini"]
    assert len(verdicts) == 9
    lines = shown(verdicts)
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"Claims: {answer(in_reach(verdicts))}"
    first, *_ = verdicts
    assert lines[1].startswith(f"C1 {first.verdict.mark} {first.verdict}  ")
    away = ", ".join(each.id for each in verdicts if each.verdict is Verdict.NOT_AT_SCALE)
    assert lines[-1] == f"– not tested at this scale: {away}"


@pytest.mark.parametrize(("slug", "scale"), RECORDED)
def test_effects_of_every_record_stay_whole(slug: str, scale: str) -> None:
    verdicts = recorded(load_paper(slug))[scale]
    lines = shown(verdicts)
    assert max(map(len, lines)) <= 80
    for line in lines:
        if re.match(r"\s*(\S+ )?[✓✗?] ", line):
            start, end = line.find("["), line.find("]")  # the interval's; a formula may be wrapped
            assert start < end or start == end == -1, line
    for each in verdicts:
        if each.checks:
            assert any(
                line.startswith(f"{each.id} ") and str(each.verdict) in line for line in lines
            )


def test_checks_are_listed_where_they_differ_or_on_demand() -> None:
    agreeing = several(Verdict.SUPPORTED, Verdict.SUPPORTED)
    assert shown([agreeing])[1:] == [
        "C1 ✓ supported  +0.8 [−0.2, +1.9] points (claimed ≥ −1 %, 3 seeds, first of 2)",
        "   It costs no accuracy.",
    ]
    assert sum("arm" in line for line in shown([agreeing], verbose=True)) == 2
    divided = several(Verdict.INCONCLUSIVE, Verdict.SUPPORTED)
    assert shown([divided])[1:] == [
        "C1 ? inconclusive  1 of 2 checks hold, 3 seeds",
        "   It costs no accuracy.",
        "   ? +0.8 [−0.2, +1.9] points  arm0 − dense; claimed ≥ −1 %",
        "   ✓ +0.8 [−0.2, +1.9] points  arm1 − dense; claimed ≥ −1 %",
        "   too few seeds",
    ]


def test_everything_about_a_claim_on_demand() -> None:
    (check,) = claim("C1", Verdict.SUPPORTED).checks
    explained = check.model_copy(update={"margin_because": "half of 2 points"})
    whole = claim("C1", Verdict.SUPPORTED).model_copy(update={"checks": (explained,)})
    away = claim("C2", Verdict.NOT_AT_SCALE).model_copy(update={"reason": "needs a GPU"})
    text = "\n".join(shown([whole, away], width=120, verbose=True))
    for part in (
        "It costs no accuracy. (table 2)",
        "the paper: 93.87 against 93.75 % (recalled); CIFAR-10",
        "dgc − dense, test/accuracy; claimed ≥ −1 %, 3 seeds",
        "C1 ≥ −1 %, because half of 2 points",
        "C2 It costs no accuracy. not tested at this scale: needs a GPU",
    ):
        assert part in text, part


def test_what_another_scale_judges_is_named_with_it() -> None:
    away = [claim(name, Verdict.NOT_AT_SCALE) for name in ("C2", "C3")]
    lines = shown([claim("C1", Verdict.SUPPORTED), *away], elsewhere={"C3": "mini"})
    assert lines[-2:] == [
        "– judged at mini: C3",
        "– not tested at this scale: C2",
    ]


def test_brackets_in_a_statement_are_text() -> None:
    odd = claim("C1", Verdict.SUPPORTED, "The error lies in [low, high] or [/l, u].")
    assert "   The error lies in [low, high] or [/l, u]." in shown([odd])


def test_signs_that_a_terminal_lacks_are_written_otherwise() -> None:
    text = "✓ −0.5 [−∞, 1] × ≥ ± † ü"
    assert text.encode("ascii", SIMILAR) == b"+ -0.5 [-inf, 1] x >= +- * ?"


def test_piped_output_is_as_wide_as_columns_says(tmp_path: Path) -> None:
    def widest(**environment: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "repro.cli.main", "list"],
            env={**os.environ, "REPRO_CONFIG_DIR": "", **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return max(map(len, done.stdout.splitlines()))

    assert widest(COLUMNS="70") <= 70
    assert 100 < widest(COLUMNS="140") <= 140


def test_the_recorded_verdict_and_what_would_decide_stand_below() -> None:
    (check,) = claim("C1", Verdict.INCONCLUSIVE).checks
    before = Recorded(verdict=Verdict.SUPPORTED, effect=0.012, low=0.004, high=0.02, seeds=5)
    open_ = check.model_copy(update={"seeds_needed": 12, "recorded": before})
    fresh = claim("C1", Verdict.INCONCLUSIVE).model_copy(
        update={"checks": (open_,), "reason": "too few seeds", "recorded": Verdict.SUPPORTED}
    )
    assert shown([fresh])[-2:] == [
        "   too few seeds; about 12 seeds would probably decide it",
        "   recorded: ✓ supported  +1.2 [+0.4, +2.0] points",
    ]
