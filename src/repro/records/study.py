"""A study's folder: study.json, a run directory per run, and later verdicts and figures."""

from __future__ import annotations

import functools
import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from repro.errors import ReproError, UserError
from repro.records import files, names
from repro.records.locks import held_alone, holder_of
from repro.records.papers import Paper, load_paper
from repro.records.run import Code, Run
from repro.records.status import Status
from repro.records.typed import Moment, Record, read_record, update_record

NEWEST = 5  # studies that say how long runs take
LOOK_KEYS = ("max_seeds", "max_minutes", "looks.first", "looks.growth")  # settings of seeds=auto


class Looks(Record):
    """When a study that grows (``seeds=auto``) is judged."""

    after: list[int]  # numbers of seeds, rising; the last one is the most
    max_minutes: float | None = None  # of computing, all runs together


class StudyRecord(Record):
    """The content of study.json."""

    paper: str
    scale: str
    typed: list[str] = Field(default_factory=list)  # the command's overrides
    is_grid: bool = False
    notes: list[str] = Field(default_factory=list)
    twins: dict[str, str] = Field(default_factory=dict)  # arm that is not run -> arm it equals
    created: Moment
    code: Code = Code()
    hydra: list[str] = Field(default_factory=list)  # overrides of Hydra's own settings
    layers: list[list[str]] = Field(default_factory=list)  # parents before children
    search: dict[str, Any] | None = None  # what is searched, if runs are trials
    looks: Looks | None = None  # with seeds=auto
    mlflow_run: str | None = None
    rehearsal: dict[str, Any] | None = None  # that it is one, and of how many seeds: no result


@dataclass(frozen=True)
class Study:
    """A study's folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Opens an existing study.

        Raises:
            UserError: ``folder`` is not one.
        """
        if not (folder / names.STUDY_RECORD).is_file():
            raise UserError(f"{folder} is not a study (it has no {names.STUDY_RECORD}).")
        return cls(folder)

    @classmethod
    def around(cls, folder: Path) -> Study:
        """The study that a run directory belongs to.

        Raises:
            UserError: it belongs to none.
        """
        study = cls.above(folder)
        if study is None:
            raise UserError(f"{folder} belongs to no study: no {names.STUDY_RECORD} is above it.")
        return study

    @classmethod
    def above(cls, folder: Path) -> Study | None:
        """The study that a run directory belongs to, if it belongs to one."""
        for parent in folder.absolute().parents:
            if (parent / names.STUDY_RECORD).is_file():
                return cls(parent)
        return None

    @property
    def record_file(self) -> Path:
        """The study's manifest."""
        return self.folder / names.STUDY_RECORD

    @functools.cached_property
    def about(self) -> StudyRecord:
        """The content of study.json.

        A `UserError` says so if it cannot be read.
        """
        return read_record(StudyRecord, self.record_file)

    @property
    def is_readable(self) -> bool:
        """Whether study.json can be read: a damaged one hides no other where studies are sought."""
        try:
            return self.about is not None
        except UserError:
            return False

    def update(self, **changes: Any) -> None:
        """Merges changes into study.json.

        A `TypeError` says so if a `StudyRecord` has no such key.
        """
        update_record(StudyRecord, self.record_file, changes)
        self.__dict__.pop("about", None)

    @property
    def paper(self) -> Paper:
        """The paper that the study is about."""
        return load_paper(self.about.paper)

    @property
    def scale(self) -> str:
        """smoke, mini or full."""
        return self.about.scale

    @property
    def layers(self) -> list[list[Run]]:
        """The runs, parents before children.

        Raises:
            UserError: study.json names a folder outside of the study.
        """
        for path in (path for layer in self.about.layers for path in layer):
            if not path or path[0] == "/" or ".." in path.split("/"):
                raise UserError(f"{self.record_file} names a run outside of its folder: {path!r}.")
        return [[Run(self.folder / path) for path in layer] for layer in self.about.layers]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for layer in self.layers for run in layer]

    @property
    def verdicts_file(self) -> Path:
        """Where the verdicts are kept."""
        return self.folder / names.VERDICTS

    @property
    def search_file(self) -> Path:
        """Where the result of a search is kept."""
        return self.folder / names.SEARCH

    @property
    def figures_folder(self) -> Path:
        """Where the pictures are kept."""
        return self.folder / names.FIGURES

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes this process the only one that executes the study.

        A `UserError` says so if another one does.
        """
        with held_alone(self.folder / names.LOCK), files.anchored(self.folder):
            files.remove_leftovers(self.figures_folder)
            files.remove_leftovers(self.folder, ".*.json.*")  # and no run's, which may be running
            yield

    @property
    def executor(self) -> str | None:
        """Who executes the study, as far as this machine can see."""
        return holder_of(self.folder / names.LOCK)

    @contextmanager
    def confined(self) -> Iterator[None]:
        """Meanwhile nothing is written but below the study, and what studies beside it share."""
        place = self.folder.absolute()
        in_outputs = place.parts[-3:-1] == (self.about.paper, self.scale)
        shared = [place.parents[2] / name for name in names.SHARED] if in_outputs else []
        with files.confined(self.folder, *shared):
            yield

    @property
    def jobs_folder(self) -> Path:
        """Where Slurm's logs are kept."""
        return self.folder / names.JOBS

    @property
    def is_judged(self) -> bool:
        """Whether there are claims to judge: a single arm or a grid has nothing to compare."""
        if self.about.rehearsal is not None:
            return False
        return not self.about.is_grid and len({run.folder.parent for run in self.runs}) > 1

    def discard(self) -> None:
        """Deletes the study: for one of which nothing could be started."""
        shutil.rmtree(self.folder)


def find_studies(outputs: Path) -> list[Study]:
    """All studies under ``outputs``, oldest first."""
    records = outputs.glob(f"*/*/*/{names.STUDY_RECORD}")
    return sorted((Study(file.parent) for file in records), key=_age)


def _age(study: Study) -> tuple[float, int]:
    """When a study was created; among those of a second, its number."""
    try:  # without checking all of it: there may be thousands
        with open(f"{study.folder}/{names.STUDY_RECORD}", "rb") as file:
            created = datetime.fromisoformat(json.load(file)["created"]).timestamp()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # others say so
        created = 0.0
    number = study.folder.name.rpartition("_")[2]
    return created, int(number) if number.isdecimal() else 1


def typical_seconds(paper: Paper, scale: str, outputs: Path) -> dict[str, float]:
    """Median seconds of a run of each arm, from the newest studies or the recorded results."""
    times: dict[str, list[float]] = {}
    folders = sorted(outputs.glob(f"{paper.slug}/{scale}/*"), reverse=True)
    for folder in folders[:NEWEST]:
        with suppress(ReproError):  # what is damaged says nothing
            for run in Study.open(folder).runs:
                record = run.record()
                if record.status is Status.FINISHED and record.seconds is not None:
                    times.setdefault(record.arm, []).append(record.seconds)
    if not times and paper.results_file(scale).is_file():
        for row in files.read_json(paper.results_file(scale))["runs"]:
            times.setdefault(row["arm"], []).append(row["seconds"])
    return {arm: statistics.median(seconds) for arm, seconds in times.items()}
