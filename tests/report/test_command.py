"""`repro report` on the terminal and in Markdown: what it counts, filters, and survives."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fake_outputs import claim, make_study, update_json

from repro.claims.outcomes import Verdict
from repro.records.papers import load_paper
from repro.report import tables

OUTPUTS = Path("outputs")


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


def studies(report: Any, *arguments: str) -> list[dict[str, Any]]:
    result = report("--json", *arguments)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["studies"]
    return found


def test_the_overview_counts_the_newest_judged_study_of_each_paper_and_scale(report: Any) -> None:
    old = [claim("C1", Verdict.NOT_SUPPORTED)]
    new = [claim(f"C{n}", v) for n, v in enumerate([*Verdict, Verdict.SUPPORTED])]
    make_study(OUTPUTS, created=datetime(2026, 1, 1), verdicts=old)
    make_study(OUTPUTS, created=datetime(2026, 1, 2), verdicts=new)
    make_study(OUTPUTS, created=datetime(2026, 1, 3), verdicts=[])  # a single run, say
    make_study(OUTPUTS, scale="smoke", seeds=1, verdicts=[])
    result = report()
    assert result.exit_code == 0
    mini = next(row for row in rows(result.stdout) if "mini" in row)
    assert mini == ["dgc", "mini", "2", "1", "1", "2", "6", "finished", "2026-01-02"]
    smoke = next(row for row in rows(result.stdout) if "smoke" in row)
    assert smoke[2:6] == ["–"] * 4


def test_filters(report: Any) -> None:
    make_study(OUTPUTS, created=datetime(2026, 1, 1))
    make_study(OUTPUTS, scale="smoke", created=datetime(2026, 1, 2))
    make_study(OUTPUTS, paper="other", created=datetime(2026, 1, 3))
    assert len(studies(report)) == 3
    assert [s["paper"] for s in studies(report, "--paper", "other")] == ["other"]
    assert [s["scale"] for s in studies(report, "--scale", "smoke")] == ["smoke"]
    assert len(studies(report, "--scale", "smoke", "--scale", "mini")) == 3
    assert len(studies(report, "--since", "2026-01-02")) == 2
    assert studies(report, "--since", "2026-01-04") == []
    assert "No study passes" in report("--since", "2026-01-04").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "dcg"], "No study has the paper 'dcg'. Did you mean 'dgc'? There are: dgc."),
        (["--scale", "mni"], "Did you mean 'mini'?"),
        (["--since", "soon"], "'soon' does not match the format"),
        (["--html", "."], "is a directory"),
    ],
)
def test_mistakes_are_explained(report: Any, arguments: list[str], message: str) -> None:
    make_study(OUTPUTS)
    result = report(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bad_setting_is_explained(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(OUTPUTS)
    monkeypatch.setenv("REPRO_CONFIG_DIR", str(tmp_path / "conf"))
    (tmp_path / "conf").mkdir()
    for text, message in (
        ("line: 3", "Did you mean 'lines'?"),
        ("lines: 0", "lines: Input should"),
    ):
        (tmp_path / "conf" / "report.yaml").write_text(text)
        result = report("--html", "r.html")
        assert result.exit_code == 2
        assert message in result.stderr


def test_nothing_there(report: Any) -> None:
    result = report("--html", "r.html", "--markdown", "r.md")
    assert result.exit_code == 0
    assert "No studies in outputs" in result.stdout
    assert Path("r.html").is_file()


def test_what_cannot_be_read_is_named_and_the_rest_is_reported(report: Any) -> None:
    whole = make_study(OUTPUTS, created=datetime(2026, 1, 1))
    for day, damage in enumerate(("study", "verdicts", "run", "summary", "types"), start=2):
        folder = make_study(OUTPUTS, scale="smoke", created=datetime(2026, 1, day))
        if damage in ("study", "verdicts"):
            (folder / f"{damage}.json").write_text("{")
        elif damage == "types":
            update_json(folder / "dgc/seed=0/run.json", point=3, seed="x")
        else:
            (folder / f"dgc/seed=0/{damage}.json").write_text("[1")
        (folder / "dgc/seed=1/metrics.csv").write_bytes(b"step,train/loss\n1,2\n2,\xff\n")
        (folder / "dgc/seed=2/config.yaml").write_text("a: &a [*a]\nb: {")
    result = report("--html", "r.html", "--markdown", "r.md", "--json")
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert len(read["problems"]) == 5
    assert [s["runs"] for s in read["studies"] if s["folder"] == str(whole)] == [{"finished": 6}]
    assert len(read["studies"]) == 5  # all but the one without a readable study.json
    assert "study.json" in result.stderr
    assert "5 files could not be read" in Path("r.html").read_text()


def test_a_study_of_a_paper_that_is_not_known_here(report: Any) -> None:
    make_study(OUTPUTS, paper="elsewhere")
    assert report("--html", "r.html", "--markdown", "r.md").exit_code == 0
    assert "elsewhere" in Path("r.html").read_text()


def test_control_characters_do_not_reach_the_terminal(report: Any) -> None:
    folder = make_study(OUTPUTS)
    update_json(folder / "study.json", paper="\x1b[2Jgone")
    assert "\x1b" not in report().output


def test_markdown_holds_claims_and_arms_and_hostile_text_stays_text(report: Any) -> None:
    verdict = claim("C1", Verdict.INCONCLUSIVE, "a | b\n# <script>alert(1)</script> [x](y) `z`")
    make_study(OUTPUTS, verdicts=[verdict])
    assert report("--markdown", "deep/r.md").exit_code == 0
    text = Path("deep/r.md").read_text()
    assert " | a \\| b \\# \\<script\\>alert(1)\\</script\\> \\[x\\](y) \\`z\\` | " in text
    assert "| C1 | ? **inconclusive** | +0.8 \\[−0.2, +1.9\\] points (" in text
    assert "93.87 against 93.75 % (recalled)" in text
    table = text[text.index("| arm |") :].strip().splitlines()
    assert len(table) == 4
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_markdown_escapes_everything() -> None:
    assert tables.escape_markdown("\\") == "\\\\"


def test_a_report_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    make_study(tmp_path / "outputs")
    script = (
        "import sys\nfrom repro.cli.main import cli\n"
        "cli(['report', '--html', 'r.html', '--markdown', 'r.md'], standalone_mode=False)\n"
        "print(*{'torch', 'lightning', 'hydra', 'pandas'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""
    assert (tmp_path / "r.html").is_file()


def test_claims_of_other_scales_stand_below_the_table() -> None:
    away = claim("C2", Verdict.NOT_AT_SCALE).model_copy(
        update={"checks": (), "reason": "needs a GPU"}
    )
    lines = tables.verdicts_markdown([claim("C1", Verdict.SUPPORTED), away])
    assert lines[0].startswith("| claim | verdict | measured here |")
    assert lines[-1] == "- C2 It costs no accuracy. (needs a GPU)"
    assert tables.verdicts_markdown([away])[1:] == [
        "Not tested at this scale:",
        "",
        "- C2 It costs no accuracy. (needs a GPU)",
    ]


def test_claims_that_are_judged_at_another_scale_take_one_line() -> None:
    away = [claim(name, Verdict.NOT_AT_SCALE) for name in ("C2", "C3", "C4")]
    mini = [claim("C1", Verdict.SUPPORTED), *away]
    wide = [claim("C2", Verdict.INCONCLUSIVE), claim("C3", Verdict.NOT_TESTED)]
    long = [claim("C1", Verdict.SUPPORTED), claim("C4", Verdict.NOT_SUPPORTED)]
    elsewhere = tables.judged_at({"mini": mini, "mini_wide": wide, "mini_Long": long})
    assert elsewhere == {"C1": "mini", "C2": "mini_wide", "C4": "mini_Long"}
    lines = tables.verdicts_markdown(mini, elsewhere=elsewhere)
    assert "Judged at mini_wide: C2; at mini_Long: C4." in lines
    assert [line[:5] for line in lines if line.startswith("- ")] == ["- C3 "]
    assert "Judged at mini: C1." in tables.verdicts_markdown(
        [claim("C1", Verdict.NOT_AT_SCALE)], elsewhere=elsewhere
    )


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "no claim tested"),
        ([Verdict.NOT_AT_SCALE], "no claim tested"),
        ([Verdict.SUPPORTED], "1 of 1 tested claim supported"),
        (
            [*Verdict, Verdict.SUPPORTED],
            "2 of 4 tested claims supported, 1 not supported, 1 inconclusive, 2 not tested",
        ),
    ],
)
def test_the_answer_in_words(verdicts: list[Verdict], said: str) -> None:
    assert tables.answer(claim("C", verdict) for verdict in verdicts) == said


def test_what_is_recorded_is_reported_without_a_run(report: Any) -> None:
    result = report("--recorded", "--paper", "dgc", "--json")
    found = json.loads(result.stdout)["studies"]
    assert {(study["paper"], study["scale"]) for study in found} >= {("dgc", "mini")}
    recorded = json.loads(load_paper("dgc").results_file("mini").read_text())
    assert found[0]["claims"] == {each["id"]: each["verdict"] for each in recorded["claims"]}
    assert report("--recorded", "--markdown", "r.md").exit_code == 0
    assert "### dgc at scale=mini, recorded" in Path("r.md").read_text()
    assert "recorded" in report("--recorded").stdout
    refused = report("--recorded", "--paper", "dcg")
    assert refused.exit_code == 2
    assert "Did you mean 'dgc'?" in refused.stderr
