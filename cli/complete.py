"""Shell completion of papers, data sets and overrides, without importing Hydra."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from repro.errors import UserError
from repro.records.papers import config_folders, load_paper, paper_files


def papers(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Slugs that start as typed."""
    return [CompletionItem(slug) for slug in paper_files() if slug.startswith(incomplete)]


def data_sets(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Data sets that start as typed."""
    return [CompletionItem(name) for name in _options("dataset") if name.startswith(incomplete)]


def overrides(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """``group=choice`` for config groups, and the paper's arms and scales."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        keys = [*_groups(), "arm", "scale", "seed"]
        return [CompletionItem(f"{name}=") for name in sorted(keys) if name.startswith(key)]
    values = _options(key)
    if key in ("arm", "scale"):
        typed = context.params.get("overrides") or ()
        slug = next((o.partition("=")[2] for o in typed if o.startswith("paper=")), None)
        try:
            paper = load_paper(slug) if slug else None
        except UserError:
            paper = None
        if paper is not None:
            values = list(paper.arms if key == "arm" else paper.scales)
    return [CompletionItem(f"{key}={name}") for name in values if name.startswith(value)]


def _groups() -> list[str]:
    return [
        folder.name
        for root in config_folders()
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(("_", "."))
    ]


def _options(group: str) -> list[str]:
    folders = [root / group for root in config_folders()]
    return sorted(
        {
            file.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for file in folder.rglob("*.yaml")
        }
    )
