"""Reads the studies of an output folder. What cannot be read becomes a note, not a failure."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from repro.claims.outcomes import Verdict
from repro.claims.studies import read_verdicts
from repro.claims.verdicts import ClaimVerdict
from repro.errors import ReproError, UserError, did_you_mean
from repro.launching.queue import current_record
from repro.records import files
from repro.records.papers import Paper, load_paper, load_papers
from repro.records.recorded import OLD, OLD_MEANS, is_outdated
from repro.records.run import Code, MeasuredRun, Run
from repro.records.status import Status, count
from repro.records.study import Study, StudyRecord, find_studies
from repro.records.summary import by_arm
from repro.report.tables import judged_at


@dataclass(frozen=True)
class StudyEntry:
    """A study with its runs, verdicts and pictures; single runs and grids have no verdicts."""

    folder: Path
    about: StudyRecord
    runs: list[MeasuredRun]
    verdicts: list[ClaimVerdict]
    figures: list[Path] = field(default_factory=list)
    is_recorded: bool = False  # read from a paper's room: there are no run directories
    is_outdated: bool = False  # recorded, perhaps by older code than the paper's as it is

    @property
    def created(self) -> datetime:
        """When it was started, in local time."""
        return self.about.created.astimezone()

    @property
    def when(self) -> str:
        """The day, or that the results are the recorded ones, and perhaps of older code."""
        if not self.is_recorded:
            return str(self.created.date())
        return f"recorded {OLD}" if self.is_outdated else "recorded"

    @functools.cached_property
    def groups(self) -> dict[str, list[MeasuredRun]]:
        """The runs by what they have in common but the seed."""
        return {runs[0].group: runs for runs in by_arm(self.runs).values()}

    @property
    def statuses(self) -> dict[Status, int]:
        """How many runs stand where, in the order of `Status`."""
        return count(run.status for run in self.runs)

    def count(self, *verdicts: Verdict) -> int:
        """How many claims got one of these verdicts."""
        return sum(claim.verdict in verdicts for claim in self.verdicts)


@dataclass(frozen=True)
class PaperEntry:
    """A paper and its studies, newest first."""

    slug: str
    studies: list[StudyEntry]
    title: str = ""
    link: str = ""
    question: str = ""
    metrics: Sequence[str] = ()  # worth a column

    @property
    def latest(self) -> list[StudyEntry]:
        """For each scale the newest study with verdicts, or else the newest."""
        best: dict[str, StudyEntry] = {}
        for study in self.studies:
            chosen = best.setdefault(study.about.scale, study)
            if study.verdicts and not chosen.verdicts:
                best[study.about.scale] = study
        return list(best.values())

    @functools.cached_property
    def judged_at(self) -> dict[str, str]:
        """The scale at which each claim is judged, by its id."""
        return judged_at({study.about.scale: study.verdicts for study in self.latest})


@dataclass(frozen=True)
class Filters:
    """Which studies to report; what is empty lets everything pass."""

    papers: Collection[str] = ()
    scales: Collection[str] = ()
    since: datetime | None = None  # local time, if it names no zone

    def accept(self, study: StudyRecord) -> bool:
        """Whether a study is wanted."""
        return (
            (not self.papers or study.paper in self.papers)
            and (not self.scales or study.scale in self.scales)
            and (self.since is None or study.created.astimezone() >= self.since.astimezone())
        )


@dataclass
class Collected:
    """Everything a report is made of."""

    found: int  # studies before filtering
    papers: list[PaperEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what could not be read

    @property
    def studies(self) -> list[StudyEntry]:
        """All studies."""
        return [study for paper in self.papers for study in paper.studies]


def collect(outputs: Path, filters: Filters) -> Collected:
    """Reads every wanted study under ``outputs``.

    A `UserError` says so if a filter names a paper or a scale that no study there has.
    """
    found = find_studies(outputs)
    _check_known("paper", filters.papers, {study.folder.parts[-3] for study in found})
    _check_known("scale", filters.scales, {study.folder.parts[-2] for study in found})
    collected = Collected(len(found))
    by_paper: dict[str, list[StudyEntry]] = {}
    for study in found:
        with _noted(study.folder, collected.problems):
            if filters.accept(study.about):
                runs = _read_runs(study.runs, collected.problems)
                verdicts = _read_verdicts(study, collected.problems)
                figures = sorted(study.figures_folder.glob("*.png"))
                entry = StudyEntry(study.folder, study.about, runs, verdicts, figures)
                by_paper.setdefault(study.about.paper, []).append(entry)
    for slug in sorted(by_paper):
        newest_first = sorted(by_paper[slug], key=lambda entry: entry.created, reverse=True)
        collected.papers.append(_describe(slug, newest_first))
    return collected


def collect_recorded(filters: Filters) -> Collected:
    """Reads the results that lie in the papers' rooms, which are shipped: no run is needed.

    A `UserError` says so if a filter names a paper or a scale of which nothing is recorded.
    """
    papers = load_papers()
    recorded = [(paper, scale) for paper in papers for scale in paper.recorded_scales]
    _check_known("paper", filters.papers, {paper.slug for paper, _ in recorded})
    _check_known("scale", filters.scales, {scale for _, scale in recorded})
    collected = Collected(len(recorded))
    for paper in papers:
        entries = []
        for scale in paper.recorded_scales:
            with _noted(paper.results_file(scale), collected.problems):
                entry = _recorded(paper, scale)
                if filters.accept(entry.about):
                    entries.append(entry)
        if entries:
            collected.papers.append(_describe(paper.slug, entries))
    return collected


def _recorded(paper: Paper, scale: str) -> StudyEntry:
    file = paper.results_file(scale)
    content = files.read_json(file)
    written = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
    code = Code(**content["code"])
    runs = [
        MeasuredRun(
            **run,
            paper=paper.slug,
            scale=scale,
            folder=file.parent,
            code=code,
            versions=content["versions"],
            hardware=content["hardware"],
        )
        for run in content["runs"]
    ]
    is_old = is_outdated(paper, scale)
    about = StudyRecord(
        paper=paper.slug,
        scale=scale,
        typed=content["typed"],
        created=written,
        code=code,
        notes=[OLD_MEANS] if is_old else [],
    )
    verdicts = [ClaimVerdict.from_dict(claim) for claim in content["claims"]]
    return StudyEntry(
        file.parent,
        about,
        runs,
        verdicts,
        recorded_pictures(paper, scale),
        is_recorded=True,
        is_outdated=is_old,
    )


def recorded_pictures(paper: Paper, scale: str) -> list[Path]:
    """The pictures of a scale: those of mini_cifar begin with mini_, too."""
    found = sorted(paper.results_file(scale).parent.glob(f"{scale}_*.png"))
    longer = [other for other in paper.scales if other.startswith(f"{scale}_")]
    return [file for file in found if not file.name.startswith(tuple(f"{o}_" for o in longer))]


@contextmanager
def _noted(path: Path, problems: list[str]) -> Iterator[None]:
    """Turns what makes a file unreadable into a note."""
    try:
        yield
    except (ReproError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())  # pydantic's take several lines
        problems.append(reason if str(path) in reason else f"{path}: {reason}")


def _check_known(kind: str, asked: Iterable[str], known: Collection[str]) -> None:
    for name in asked:
        if name not in known:
            there = f"There are: {', '.join(sorted(known))}." if known else "There are no studies."
            raise UserError(f"No study has the {kind} '{name}'.{did_you_mean(name, known)} {there}")


def _read_runs(runs: Sequence[Run], problems: list[str]) -> list[MeasuredRun]:
    entries = []
    for run in runs:
        with _noted(run.folder, problems):
            entries.append(run.measured(current_record(run)))
    return entries


def _read_verdicts(study: Study, problems: list[str]) -> list[ClaimVerdict]:
    with _noted(study.verdicts_file, problems):
        return read_verdicts(study)
    return []


def _describe(slug: str, studies: list[StudyEntry]) -> PaperEntry:
    try:
        paper = load_paper(slug)
    except UserError:  # somebody else's paper: its studies can be read all the same
        return PaperEntry(slug, studies)
    return PaperEntry(slug, studies, paper.title, paper.link, paper.question, paper.report)
