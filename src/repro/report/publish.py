"""Bundles: a finished study as a folder that stands by itself, to be sent or put on a hub.

A bundle is a study's folder without what belongs to one machine (logs, locks, jobs), with a card
and the study's results beside it. The command reads it as any study.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from repro.errors import UserError, first_line
from repro.launching.queue import check_ended
from repro.planning.extras import require
from repro.records import files, names
from repro.records.study import Study
from repro.records.summary import state_counts
from repro.report.draw import draw_study
from repro.report.record import results_markdown, results_of

HUB = "hub:"
RESULTS = "results.json"
CARD = "README.md"
OF_STUDY = (names.STUDY_RECORD, names.VERDICTS, names.SEARCH)
OF_RUN = (names.RUN_RECORD, names.RUN_CONFIG, names.OVERRIDES, names.SERIES, names.SUMMARY)


def publish(study: Study, target: str, checkpoints: bool) -> str:
    """Bundles a study in a folder, or on the Hugging Face hub.

    Args:
        study: the study.
        target: a folder, or ``hub:owner/name``.
        checkpoints: see `bundle`.

    Returns:
        Where the bundle is.
    """
    if not target.startswith(HUB):
        return str(bundle(study, Path(target), checkpoints))
    require(["huggingface_hub"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundle(study, Path(scratch) / study.folder.name, checkpoints)
        return upload(folder, target.removeprefix(HUB))


def bundle(study: Study, target: Path, checkpoints: bool = False) -> Path:
    """Writes a bundle of a finished study.

    Args:
        study: the study.
        target: a folder that does not exist yet, or is empty.
        checkpoints: whether the runs' last checkpoints come along.

    Returns:
        The bundle.

    Raises:
        UserError: the study is not finished, or the target is a file or a folder with content.
    """
    check_ended(study)
    if target.is_file():
        raise UserError(f"{target} is a file. Name a new folder: --to DIR")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty. Name a new folder: --to DIR")
    with study.confined():
        content, figures = results_of(study), draw_study(study)
    parent = target.absolute().parent
    files.make_folder(parent)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        folder = Path(scratch) / "bundle"
        _copy(study.folder, folder, OF_STUDY)
        for run in study.runs:
            place = folder / run.folder.relative_to(study.folder)
            _copy(run.folder, place, OF_RUN)
            if checkpoints:
                last = run.last_checkpoint
                _copy(last.parent, place / names.CHECKPOINTS, [last.name])
        _copy(study.figures_folder, folder / names.FIGURES, [figure.name for figure in figures])
        files.write_json(folder / RESULTS, content)
        files.write_text(folder / CARD, card(study, content))
        folder.replace(target)
    return target


def card(study: Study, content: dict[str, Any]) -> str:
    """The bundle's card, in the hub's format: facts for machines, then the verdicts for people.

    Args:
        study: the study.
        content: its results, as `results_of` gives them.
    """
    paper = study.paper
    facts = {"library_name": "repro", "tags": ["repro", paper.slug, study.scale]}
    where = f"{paper.link}. " if paper.link else ""
    figures = sorted(study.figures_folder.glob("*.png"))
    parts = [
        f"---\n{yaml.safe_dump(facts, sort_keys=False)}---",
        f"# {paper.title}",
        f"{where}A study of `{paper.slug}` at scale={study.scale}: "
        f"{state_counts([run.status() for run in study.runs])}.",
        results_markdown(content).strip(),
        *(f"![{figure.stem}]({names.FIGURES}/{figure.name})" for figure in figures),
        "Whether these verdicts follow from the runs, and agree with the paper's record: "
        "`repro verify DIR`.",
    ]
    return "\n\n".join(parts) + "\n"


def upload(folder: Path, repository: str) -> str:
    """Puts a bundle on the Hugging Face hub; needs the extra ``data`` and a token.

    Args:
        folder: the bundle.
        repository: ``owner/name``; made if there is none.

    Returns:
        The address of the upload.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"The hub did not take {repository}: {first_line(error)} "
            "Log in with `hf auth login`; the bundle itself is written by --to DIR."
        ) from error
    return str(done.commit_url)


def _copy(source: Path, target: Path, filenames: Iterable[str]) -> None:
    """Copies files from one folder to another, those that there are."""
    files.make_folder(target)
    for name in filenames:
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
