"""Recorded results: a finished study's numbers in the paper's room, and tables made from them.

``experiments/<slug>/results/<scale>.json`` is the record; the tables in README files stand between
marker comments and are generated from it, never typed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from repro.claims.evidence import RunResult, Series
from repro.claims.file import Claim, ClaimsFile, load_claims
from repro.claims.judge import judge
from repro.claims.outcomes import LEGEND, MARKS, Verdict, tally
from repro.claims.studies import recorded_claims, recorded_results, verdicts_of
from repro.claims.verdicts import ClaimVerdict
from repro.errors import UserError, did_you_mean
from repro.launching.queue import current_record
from repro.records import files
from repro.records.papers import WHICH_PAPER, Paper, load_paper, load_papers
from repro.records.recorded import (
    OLD,
    OLD_MEANS,
    is_outdated,
    recorded_seconds,
    recorded_study,
    recorded_verdicts,
)
from repro.records.study import LOOK_KEYS, Study, find_studies
from repro.records.tuning import Tuning, read_tuning
from repro.report.draw import draw_study, save_figure
from repro.report.figures import recorded_figures
from repro.report.tables import (
    NOWHERE,
    arm_rows,
    escape_cell,
    judged_at,
    markdown_table,
    verdicts_markdown,
)
from repro.report.tuning import tries_markdown

# What a user may type without changing what is measured; folders are not recorded.
HARMLESS = {"paper", "scale", "n_jobs", "hardware", *LOOK_KEYS}
FOLDERS = {"outputs", "data.root"}


def record(typed: dict[str, str], outputs: Path, folder: Path | None = None) -> Path:
    """Writes the results of a finished study into its paper's room and updates its README.

    Where the paper is part of an installed package, they go beside the study instead.

    Args:
        typed: ``paper``, and optionally ``scale`` (mini by default).
        outputs: where studies are.
        folder: the study; by default the latest whole one, run without further overrides.

    Returns:
        The results file.

    A `UserError` says so if there is no such study, or it is not finished.
    """
    study = Study.open(folder) if folder is not None else _latest(*_named(typed), outputs)
    _check_recordable(study)
    paper, scale = study.paper, study.scale
    target = paper.results_file(scale)
    if _is_installed(target):
        target = study.folder / "results" / target.name
    with study.confined():
        content, figures = results_of(study), draw_study(study)
    files.make_folder(target.parent)
    files.write_json(target, content)
    for figure in figures:
        if figure.suffix == ".png":
            picture = target.parent / f"{scale}_{figure.name}"
            files.write_bytes(picture, figure.read_bytes())
    if target == paper.results_file(scale):
        update_readmes(paper)
    return target


def _check_recordable(study: Study) -> None:
    """Refuses what is no finished study of a whole paper.

    Raises:
        UserError: it is unfinished, a rehearsal, a grid, of a scale that the paper has not, or with
            seeds that arms were tuned on.
    """
    runs = [current_record(run) for run in study.runs]
    unfinished = sum(not run.status.is_final for run in runs)
    if unfinished:
        raise UserError(
            f"{study.folder} is not finished ({unfinished} runs are left). "
            f"Finish it first: repro resume {study.folder}"
        )
    if study.about.rehearsal is not None:
        raise UserError(f"{study.folder} is a rehearsal, which has no results.")
    if study.about.is_grid:
        raise UserError(f"{study.folder} is a grid; only whole studies of a paper are recorded.")
    if study.scale not in study.paper.scales:
        raise UserError(f"{study.folder}: {study.paper.slug} has no scale {study.scale!r}.")
    if study.paper.tuning_file.is_file():
        _refuse_tuned_seeds(study, {run.seed for run in runs})


def _refuse_tuned_seeds(study: Study, seeds: set[int]) -> None:
    """Refuses results on seeds that arms were tuned on.

    Raises:
        UserError: there are some.
    """
    both = sorted(seeds & set(read_tuning(study.paper.tuning_file).seeds))
    if both:
        raise UserError(
            f"{study.folder} has seeds that {study.paper.slug} was tuned on: "
            f"{', '.join(map(str, both))}. Report others (with seeds=auto: max_seeds={both[0]})."
        )


def _is_installed(file: Path) -> bool:
    """Whether a file is part of an installed package, which is no place for one's own results."""
    return any(part in ("site-packages", "dist-packages") for part in file.resolve().parts)


def rejudge(typed: dict[str, str]) -> Path:
    """Judges and draws a recorded study again, by the paper's claims and figures as they stand now.

    A claim keeps its recorded verdict, and a figure stays as it is, where the record does not hold
    what it reads: the curve of a run.

    Args:
        typed: ``paper``, and optionally ``scale`` (mini by default).

    Returns:
        The results file, rewritten; the tables of the README files are, too.

    Raises:
        UserError: nothing is recorded at this scale, or a new claim reads what is not recorded.
    """
    paper, scale = _named(typed)
    target = paper.results_file(scale)
    if not target.is_file():
        raise UserError(
            f"Nothing is recorded of {paper.slug} at scale={scale}. "
            f"Run it: repro run paper={paper.slug} scale={scale}"
        )
    content = files.read_json(target)
    content["claims"] = judged_again(load_claims(paper.claims_file), content)
    files.write_json(target, content)
    for name, figure in recorded_figures(content, paper).items():
        save_figure(figure, target.parent / f"{scale}_{name}.png")
    update_readmes(paper)
    return target


def judged_again(claims: ClaimsFile, content: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts on a paper's claims, computed from the runs that a record holds.

    Args:
        claims: the paper's claims.
        content: of the results file.

    Returns:
        One verdict a claim, as results files hold them; recorded ones where a curve is needed.

    Raises:
        UserError: a new claim reads what is not recorded.
    """
    old = {claim["id"]: claim for claim in content["claims"]}
    runs = [replace(run, series=_not_recorded) for run in recorded_results(content)]
    verdicts = []
    for claim in claims.claims:
        verdict = _judged_again(claims, claim, runs, content) or old.get(claim.id)
        if verdict is None:
            raise UserError(
                f"The record of {content['paper']} does not hold what claim {claim.id} reads. "
                f"Run it again: repro run paper={content['paper']} scale={content['scale']}"
            )
        verdicts.append(verdict)
    return verdicts


class _NotRecordedError(Exception):
    """A claim reads what a record does not hold."""


def _not_recorded(_metric: str) -> Series:
    raise _NotRecordedError


def _judged_again(
    claims: ClaimsFile, claim: Claim, runs: list[RunResult], content: dict[str, Any]
) -> dict[str, Any] | None:
    scale = content["scale"]
    read = {arm for check in claim.checks_at(scale) for arm in check.arm_names()}
    if not read <= {run.arm for run in runs}:
        return None
    one = claims.model_copy(update={"claims": [claim]})
    try:
        (verdict,) = judge(one, runs, scale, content.get("looks", ()))
    except _NotRecordedError:
        return None
    return verdict.to_dict()


def update_readmes(paper: Paper) -> None:
    """Rewrites the generated tables of the room's README and of the project's, where they are."""
    room = paper.room_folder / "README.md"
    if room.is_file():
        files.write_text(room, with_tables(room.read_text(encoding="utf-8"), paper))
    project = project_readme()
    if project.is_file():
        files.write_text(
            project, fill(project.read_text(encoding="utf-8"), "overview", overview_markdown())
        )


def project_readme() -> Path:
    """The project's README.md in a checkout; an installed package has none."""
    return Path(str(package_files("repro.experiments"))).resolve().parent / "README.md"


def with_tables(text: str, paper: Paper) -> str:
    """A README's text with its blocks filled from what is recorded.

    They are ``<!-- results:SCALE -->`` and those of `repro.report.tuning.tries_markdown`.
    """
    scales = paper.recorded_scales
    elsewhere = judged_at({scale: recorded_claims(paper, scale) for scale in scales})
    for scale in scales:
        table = results_markdown(recorded_study(paper, scale), elsewhere)
        text = fill(text, f"results:{scale}", table)
    if paper.tuning_file.is_file():
        text = with_tries(text, read_tuning(paper.tuning_file))
    return text


def with_tries(text: str, tuning: Tuning) -> str:
    """A README's text with its blocks of tries filled, ``<!-- tuning -->`` and the like."""
    for name in re.findall(r"<!-- (tuning(?::[^>]+)?) -->\n", text):
        text = fill(text, name, tries_markdown(name, tuning))
    return text


def fill(text: str, name: str, content: str) -> str:
    """Replaces what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    return _block(name).sub(lambda match: match[1] + content + match[3], text)


def filled(text: str, name: str) -> str:
    """What stands between ``<!-- name -->`` and ``<!-- /name -->``; nothing where they are not."""
    found = _block(name).search(text)
    return found[2] if found else ""


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- /{re.escape(name)} -->)", re.S)


def results_markdown(recorded: dict[str, Any], elsewhere: Mapping[str, str] = NOWHERE) -> str:
    """The claim table and the table of arms, in Markdown.

    Args:
        recorded: what a results file holds.
        elsewhere: other scales at which claims are judged, see `judged_at`.
    """
    claims = [ClaimVerdict.from_dict(raw) for raw in recorded["claims"]]
    typed = " ".join(recorded["typed"])
    known = recorded["code"].get("commit")
    commit = f" (commit {known})" if known else ""
    arms = recorded["arms"]
    metrics = list(dict.fromkeys(name for arm in arms.values() for name in arm["metrics"]))
    rows = [
        [name, arm["runs"], *(arm["metrics"].get(metric, "–") for metric in metrics)]
        for name, arm in arms.items()
    ]
    lines = [
        f"`repro run {typed}`, code {recorded['code']['sha256']}{commit}:",
        "",
        *verdicts_markdown(claims, elsewhere=elsewhere),
        "",
        "Mean ± standard deviation over seeds:",
        "",
        *markdown_table(["arm", "runs", *metrics], [map(escape_cell, row) for row in rows]),
    ]
    return "\n".join(lines) + "\n"


def overview_markdown() -> str:
    """The table of the project's papers for its README: of the studies that judge a claim."""
    rows = []
    rooms = project_readme().parent / "experiments"
    for paper in load_papers():
        if not paper.room_folder.resolve().is_relative_to(rooms):
            continue  # a user's own: a link to it would lead nowhere
        link = f"[`{paper.slug}`](experiments/{paper.slug}/README.md)"
        recorded = recorded_verdicts(paper)
        if not recorded:
            rows.append([link, _titled(paper), "not yet", *[""] * (len(MARKS) + 1)])
        for scale, counts in recorded.items():
            if set(counts) != {Verdict.NOT_AT_SCALE}:
                minutes = f"{recorded_seconds(paper, scale) / 60:.0f}"
                shown = f"{scale} {OLD}" if is_outdated(paper, scale) else scale
                rows.append([link, _titled(paper), shown, *tally(counts), minutes])
    columns = ("paper", "title", "scale", *MARKS, "minutes")
    legend = f"{LEGEND}; minutes of one core; {OLD_MEANS}."
    return "\n".join(["", *markdown_table(columns, rows), "", legend]) + "\n"


def _titled(paper: Paper) -> str:
    title = escape_cell(paper.title)
    number = paper.link.removeprefix("arXiv ")
    return title if number == paper.link else f"[{title}](https://arxiv.org/abs/{number})"


def _named(typed: dict[str, str]) -> tuple[Paper, str]:
    """The paper and the scale that somebody typed.

    Raises:
        UserError: no paper is named, or something else is.
    """
    unknown = sorted(set(typed) - {"paper", "scale"})
    if unknown:
        hint = did_you_mean(unknown[0], ("paper", "scale"))
        raise UserError(f"record knows paper=… and scale=…, not {unknown[0]}.{hint}")
    if "paper" not in typed:
        raise UserError(WHICH_PAPER)
    return load_paper(typed["paper"]), typed.get("scale", "mini")


def _latest(paper: Paper, scale: str, outputs: Path) -> Study:
    studies = [
        study
        for study in reversed(find_studies(outputs))
        if study.is_readable and (study.about.paper, study.scale) == (paper.slug, scale)
    ]
    for study in studies:
        if all(map(_is_plain, study.about.typed)):
            return study
    hint = f"Run one: repro run paper={paper.slug} scale={scale}"
    if studies:
        typed = " ".join(text for text in studies[0].about.typed if not _is_plain(text))
        hint += f"\nThe newest was run with {typed}; record that: --study {studies[0].folder}"
    raise UserError(
        f"There is no study of {paper.slug} at scale={scale} without further overrides in "
        f"{outputs}. {hint}"
    )


def _is_plain(override: str) -> bool:
    return override == "seeds=auto" or _key(override) in HARMLESS | FOLDERS


def _key(override: str) -> str:
    return override.partition("=")[0]


def results_of(study: Study) -> dict[str, Any]:
    """What a record says of a finished study: its code and machine, verdicts, arms and runs."""
    records = [run.record() for run in study.runs]
    return {
        "paper": study.about.paper,
        "scale": study.scale,
        "typed": [text for text in study.about.typed if _key(text) not in FOLDERS],
        "code": study.about.code.model_dump(mode="json", exclude_none=True),
        **({"twins": study.about.twins} if study.about.twins else {}),
        **({"looks": study.about.looks.after} if study.about.looks else {}),
        "versions": records[0].versions,
        "hardware": records[0].hardware,
        "claims": [verdict.to_dict() for verdict in verdicts_of(study)],
        "arms": {
            row.arm: {"runs": row.states, "metrics": row.metrics}
            for row in arm_rows([run.measured() for run in study.runs], study.paper.report)
        },
        "runs": [
            {
                **record.model_dump(mode="json", include={"arm", "seed", "status", "seconds"}),
                "metrics": run.summary(),
            }
            for run, record in zip(study.runs, records, strict=True)
        ],
    }
