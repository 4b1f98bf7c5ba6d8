"""A study's folder: created from a plan, run to its end, resumed, read and judged."""

from __future__ import annotations

import functools
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import UserError
from repro.launching import slurm
from repro.records import files, provenance
from repro.records.papers import Paper, load_paper
from repro.records.run import Run, Status, now
from repro.records.summary import Scored, best_first, state_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.claims.judge import RunResult
    from repro.claims.verdicts import ClaimVerdict
    from repro.planning.plan import Plan


@dataclass(frozen=True)
class Study:
    """A folder with study.json, a run directory per run, and later verdicts and figures."""

    folder: Path

    @classmethod
    def create(cls, plan: Plan, outputs: Path, **about: Any) -> Study:
        """Prepares the study's folder and every run directory in it.

        Args:
            plan: the runs.
            outputs: where studies are.
            **about: what study.json says beyond the plan.
        """
        folder = _new_folder(outputs / plan.paper.slug / plan.scale)
        _prepare_runs(plan, folder)
        # Written last: a folder without study.json was never completely prepared.
        study = {
            "paper": plan.paper.slug,
            "scale": plan.scale,
            "typed": plan.typed,
            "is_grid": plan.is_grid,
            "notes": plan.notes,
            "twins": plan.twins,
            "created": now(),
            "code": provenance.code_fingerprint(),
            "hydra": plan.hydra_overrides,
            "layers": [[run.folder for run in layer] for layer in plan.layers()],
            **about,
        }
        files.write_json(folder / "study.json", study)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Opens an existing study.

        Raises:
            UserError: ``folder`` is not one.
        """
        if not (folder / "study.json").is_file():
            raise UserError(f"{folder} is not a study (it has no study.json).")
        return cls(folder)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """The content of study.json."""
        about: dict[str, Any] = files.read_json(self.folder / "study.json")
        return about

    def update(self, **changes: Any) -> None:
        """Merges changes into study.json."""
        files.write_json(self.folder / "study.json", {**self.about, **changes})
        self.__dict__.pop("about", None)

    def add(self, plan: Plan) -> list[list[Run]]:
        """Adds runs to the study; those that it has already stay as they are.

        Returns:
            The runs of ``plan``, parents before children.
        """
        _prepare_runs(plan, self.folder)
        added = [[run.folder for run in layer] for layer in plan.layers()]
        none: list[str] = []
        both = zip_longest(self.about["layers"], added, fillvalue=none)
        self.update(layers=[list(dict.fromkeys([*old, *new])) for old, new in both])
        return [[Run(self.folder / path) for path in layer] for layer in added]

    @property
    def paper(self) -> Paper:
        """The paper that the study is about."""
        return load_paper(self.about["paper"])

    @property
    def scale(self) -> str:
        """smoke, mini or full."""
        return str(self.about["scale"])

    @property
    def layers(self) -> list[list[Run]]:
        """The runs, parents before children."""
        return [[Run(self.folder / path) for path in layer] for layer in self.about["layers"]]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for layer in self.layers for run in layer]

    @property
    def verdicts_file(self) -> Path:
        """Where the verdicts are kept."""
        return self.folder / "verdicts.json"

    @property
    def figures_folder(self) -> Path:
        """Where the pictures are kept."""
        return self.folder / "figures"

    def run(self, wait: bool = True) -> None:
        """Executes every run that is not done, through the study's launcher.

        Args:
            wait: whether to wait for Slurm's jobs; other launchers return when they are done.

        Raises:
            KeyboardInterrupt: the user stopped it; what was done stays.
        """
        from repro.launching.local import launch, launcher_overrides

        todo = [[run for run in layer if not run.status().is_final] for layer in self.layers]
        first = next((run for layer in todo for run in layer), None)
        if first is None:
            return
        config = first.config()
        overrides = launcher_overrides(
            config.hardware, config.n_jobs, self.about["hydra"], sum(map(len, todo))
        )
        launch(todo, self.folder, overrides)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until no Slurm job is left to work on this study."""
        while any(run.is_submitted() for run in self.runs):
            time.sleep(slurm.FRESH_SECONDS)

    def jobs(self) -> list[str]:
        """The Slurm jobs and job arrays that still work on this study."""
        return slurm.arrays([run.job for run in self.runs if run.is_submitted()])

    @property
    def is_judged(self) -> bool:
        """Whether there are claims to judge: a single arm or a grid has nothing to compare."""
        return not self.about["is_grid"] and len({run.folder.parent for run in self.runs}) > 1

    def discard(self) -> None:
        """Deletes the study: for one of which nothing could be started."""
        shutil.rmtree(self.folder)

    def results(self) -> list[RunResult]:
        """What claims read of each run."""
        from repro.claims.judge import RunResult

        results = []
        for run in self.runs:
            record = run.record()
            results.append(
                RunResult(
                    arm=record["arm"],
                    seed=record["seed"],
                    point=record["point"],
                    status=record["status"],
                    metrics=run.summary(),
                )
            )
        return results

    def scores(self) -> tuple[list[Scored], str, str]:
        """The points of a grid with the validation metric that the paper selects by.

        Returns:
            The points, best first; the metric; and whether ``min`` or ``max`` is best.
        """
        training = self.runs[0].config().training
        groups: dict[tuple[str, str], list[RunResult]] = {}
        for result in self.results():
            groups.setdefault((result.arm, str(result.point)), []).append(result)
        scored = [
            Scored(
                names=(arm,),
                point=runs[0].point,
                values=[r.metrics[training.monitor] for r in runs if training.monitor in r.metrics],
                state=state_counts([Status(run.status) for run in runs]),
            )
            for (arm, _), runs in groups.items()
        ]
        return best_first(scored, training.mode), training.monitor, training.mode

    def judge(self) -> list[ClaimVerdict]:
        """Judges the paper's claims on this study's runs and writes verdicts.json."""
        from repro.claims.judge import judge
        from repro.claims.schema import load_claims

        results = self.results()
        for arm, first in self.about.get("twins", {}).items():
            results += [replace(result, arm=arm) for result in results if result.arm == first]
        verdicts = judge(load_claims(self.paper.claims_file), results, self.scale)
        files.write_json(self.verdicts_file, [verdict.to_dict() for verdict in verdicts])
        return verdicts

    def verdicts(self) -> list[ClaimVerdict]:
        """The verdicts as they were written, or an empty list."""
        from repro.claims.verdicts import ClaimVerdict

        if not self.verdicts_file.is_file():
            return []
        return [ClaimVerdict.from_dict(raw) for raw in files.read_json(self.verdicts_file)]

    def draw(self) -> list[Path]:
        """Draws the figures that the paper declares and those of its room; writes PNG and SVG."""
        from repro.report.figures import figures

        return self.save_figures(figures(self))

    def save_figures(self, figures: Mapping[str, Figure]) -> list[Path]:
        """Writes figures by name, each as PNG and SVG."""
        files.make_folder(self.figures_folder)
        written = []
        for name, figure in figures.items():
            for suffix in ("png", "svg"):
                path = self.figures_folder / f"{name}.{suffix}"
                save = functools.partial(figure.savefig, format=suffix, dpi=150)
                files.write_atomically(path, save)
                written.append(path)
        return written


def find_studies(outputs: Path) -> list[Study]:
    """All studies under ``outputs``, oldest first."""
    return sorted(
        (Study(file.parent) for file in outputs.glob("*/*/*/study.json")),
        key=lambda study: study.folder.name,
    )


def typical_seconds(paper: Paper, scale: str, outputs: Path) -> dict[str, float]:
    """Median seconds of a run of each arm, from earlier studies or the recorded results."""
    times: dict[str, list[float]] = {}
    for study in find_studies(outputs):
        if (study.about["paper"], study.scale) != (paper.slug, scale):
            continue
        for run in study.runs:
            record = run.record()
            if record["status"] == Status.FINISHED:
                times.setdefault(record["arm"], []).append(record["seconds"])
    if not times and paper.results_file(scale).is_file():
        for row in files.read_json(paper.results_file(scale))["runs"]:
            times.setdefault(row["arm"], []).append(row["seconds"])
    return {arm: statistics.median(seconds) for arm, seconds in times.items()}


def count_statuses(runs: Sequence[Run]) -> dict[str, int]:
    """How many runs stand where, in the order of `Status`."""
    seen = [run.status() for run in runs]
    return {str(status): seen.count(status) for status in Status if status in seen}


def _prepare_runs(plan: Plan, folder: Path) -> None:
    """Prepares the run directories of a plan that are not there yet."""
    for run in (run for layer in plan.layers() for run in layer):
        if (folder / run.folder / "run.json").is_file():
            continue
        parent = next(
            (
                other.folder
                for other in plan.runs
                if (other.arm, other.seed, other.point) == (run.parent, run.seed, run.point)
            ),
            None,
        )
        depth = run.folder.count("/") + 1
        record = {
            "paper": plan.paper.slug,
            "scale": plan.scale,
            "arm": run.arm,
            "seed": run.seed,
            "point": run.point,
            "parent": None if parent is None else "../" * depth + parent,
            "code": provenance.code_fingerprint(),
        }
        Run.create(folder / run.folder, run.content, run.overrides, record)


def _new_folder(parent: Path) -> Path:
    """Creates a folder named for the present second; a number is added if it is taken."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        folder = (parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")).absolute()
        try:
            files.make_folder(folder, exist_ok=False)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{parent} holds too many studies of this very second.")
