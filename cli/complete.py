"""Shell completion of papers, data sets and overrides, without importing Hydra."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
)

from repro.errors import UserError
from repro.records.papers import Paper, config_folders, load_paper, paper_files


@add_completion_class
class RejoiningBash(BashComplete):
    """Bash's completion, for which bash has cut ``paper=d`` into three words."""

    # What ends with an equals sign goes on without a space.
    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)",
        "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace",
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that is being typed, put together again."""
        words = os.environ["COMP_WORDS"].split("\n")
        joined: list[str] = []
        for word in words[: int(os.environ["COMP_CWORD"]) + 1]:
            if joined and ("=" in (word, joined[-1][-1:])):
                joined[-1] += word
            else:
                joined.append(word)
        return joined[1:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Only what bash is to put in: what stands behind the last equals sign."""
        key, _, value = item.value.rpartition("=")
        return f"{item.type},{value if key and value else item.value}"


@add_completion_class
class KeysFirstZsh(ZshComplete):
    """Zsh's completion, in which what ends with an equals sign goes on without a space."""

    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "local -a keys=(${(M)completions:#*=}) others=(${completions:#*=})\n"
        "        compadd -U -V unsorted -S '' -a keys\n"
        "        compadd -U -V unsorted -a others",
    )


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
    paper = _paper(context.params.get("overrides") or ())
    if not equals:
        keys = [*_groups(), "paper", "arm", "scale", "seed", "seeds", *_knobs(paper)]
        found = [f"{name}=" for name in dict.fromkeys(keys)]
        if paper is None:  # `repro run dgc` does, too
            found += paper_files()
        return [CompletionItem(name) for name in found if name.startswith(key)]
    values = _options(key)
    if paper is not None and key in ("arm", "scale"):
        values = list(paper.arms if key == "arm" else paper.scales)
    return [CompletionItem(f"{key}={name}") for name in values if name.startswith(value)]


def _paper(typed: tuple[str, ...]) -> Paper | None:
    slugs = paper_files()
    named = (text for text in typed if text.startswith("paper=") or text in slugs)
    slug = next((text.removeprefix("paper=") for text in named), None)
    try:
        return load_paper(slug) if slug else None
    except UserError:
        return None


def _knobs(paper: Paper | None) -> list[str]:
    from . import knobs

    try:
        return [] if paper is None else [knob.key for knob in knobs.knobs(paper)]
    except UserError:  # a malformed config: the command will say so
        return []


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
