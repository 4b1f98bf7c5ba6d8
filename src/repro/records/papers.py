"""What the papers' config files say, read without Hydra so that listing them is instant."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from repro.errors import UserError, did_you_mean
from repro.records import layers
from repro.records.files import read_yaml, version_of

WHICH_PAPER = "Which paper? Write paper=SLUG; `repro list` shows all."
CONFIG_DIR_VARIABLE = "REPRO_CONFIG_DIR"  # folders, separated as in PATH
ENTRY_POINTS = "repro.papers"  # the group in which distributions name their config packages
# Keys of a paper's config that no run reads: what `repro.report` does, and what a study does.
OF_REPORTS = ("figures", "reduced")
OF_STUDIES = ("seeds", "max_seeds", "max_minutes", "looks", "report")


@dataclass(frozen=True)
class Paper:
    """One paper as ``conf/paper/<slug>.yaml`` describes it."""

    slug: str
    title: str
    link: str
    question: str
    room: str  # the Python package that holds claims.yaml, README.md and the modules
    arms: dict[str, list[str]]  # with what they inherit
    scales: dict[str, list[str]]  # likewise
    report: list[str]  # the metrics worth a column in the summary table
    reduced: dict[str, list[str]]  # what makes a full scale fit two cores, by scale
    combines: list[str]  # what lets more methods train it, where its defaults stand in their way
    figures: dict[str, Any]  # the stock figures of its studies, see repro.report.figures
    config_file: Path

    @cached_property
    def room_folder(self) -> Path:
        """The folder of the paper's room.

        Raises:
            UserError: the package cannot be imported.
        """
        try:
            return Path(str(files(self.room)))
        except ModuleNotFoundError as error:
            raise UserError(
                f"Paper '{self.slug}' keeps its room in the package '{self.room}', "
                f"which cannot be imported: {error}."
            ) from None

    @property
    def claims_file(self) -> Path:
        """The paper's ``claims.yaml``."""
        return self.room_folder / "claims.yaml"

    def results_file(self, scale: str) -> Path:
        """Where recorded results of one scale are kept."""
        return self.room_folder / "results" / f"{scale}.json"

    @property
    def tuning_file(self) -> Path:
        """Where what its arms were tuned over is kept."""
        return self.room_folder / "results" / "tuning.json"

    @property
    def recorded_scales(self) -> list[str]:
        """The scales with recorded results."""
        return [scale for scale in self.scales if self.results_file(scale).is_file()]


def config_folders() -> tuple[Path, ...]:
    """The config folders in search order: the project's, installed distributions', the user's."""
    return _folders_with(os.environ.get(CONFIG_DIR_VARIABLE, ""))


@cache
def _folders_with(own: str) -> tuple[Path, ...]:
    named = (Path(folder) for folder in own.split(os.pathsep) if folder)
    project = Path(str(files("repro.conf")))
    return tuple(dict.fromkeys([project, *installed_folders(), *named]))


@cache
def installed_folders() -> tuple[Path, ...]:
    """The config folders that other distributions name as entry points of `repro.papers`.

    Raises:
        UserError: one of them is no package.
    """
    from importlib.metadata import entry_points  # a fifth of what `repro --help` takes

    folders: list[Path] = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            spec = find_spec(point.value)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            name = point.dist.name if point.dist else "an unknown distribution"
            raise UserError(
                f"{name} names {point.value} as an entry point of {ENTRY_POINTS}, which is no "
                "package with a config folder. Uninstall it, or mend it."
            )
        folders.extend(map(Path, spec.submodule_search_locations))
    return tuple(folders)


def config_files(group: str) -> dict[str, Path]:
    """The files of a config group by name; the project's come before installed ones and the user's.

    Those in folders inside the group belong to one paper each, and are left out.
    """
    found: dict[str, Path] = {}
    for folder in config_folders():
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def paper_files() -> dict[str, Path]:
    """Maps each known slug to its config file."""
    return config_files("paper")


def load_paper(slug: str) -> Paper:
    """Reads one paper's description, unless that was read and has not changed.

    Raises:
        UserError: no such paper, or its file lacks something or holds a malformed arm or scale.
    """
    known = paper_files()
    if slug not in known:
        raise UserError(f"There is no paper '{slug}'.{did_you_mean(slug, known)} See `repro list`.")
    return _of_now(slug, known[slug])


def load_papers() -> list[Paper]:
    """All papers, by slug."""
    return [_of_now(slug, file) for slug, file in sorted(paper_files().items())]


def _of_now(slug: str, file: Path) -> Paper:
    # Overrides are inherited according to the groups that the folders hold.
    return _described(slug, file, version_of(file), config_folders())


@cache
def _described(slug: str, file: Path, *_version: Hashable) -> Paper:
    """What a config file says of its paper.

    Raises:
        UserError: it lacks something or holds a malformed arm or scale.
    """
    content = read_yaml(file) or {}
    try:
        about = content.get("paper") or {}
        knows_group = cache(is_group)  # arm after arm says the same names
        return Paper(
            slug=slug,
            title=about["title"],
            link=about.get("link", ""),
            question=about.get("question", ""),
            room=about.get("room", f"repro.experiments.{slug}"),
            arms=layers.expand(content["arms"], "arm", knows_group),
            scales=layers.expand(content["scales"], "scale", knows_group),
            report=list(content.get("report") or []),
            reduced=layers.expand(
                layers.inherit(content.get("reduced") or {}, content["scales"]),
                "scale",
                knows_group,
            ),
            combines=list(about.get("combines") or []),
            figures=dict(content.get("figures") or {}),
            config_file=file,
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: a paper needs paper.title, arms and scales ({error}).") from None


def is_group(name: str) -> bool:
    """Whether a name is that of a config group, that is of a config folder."""
    return "." not in name and any((folder / name).is_dir() for folder in config_folders())
