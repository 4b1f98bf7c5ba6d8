"""A study's pictures: what the paper's room draws, written as PNG and SVG."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from repro.records import files
from repro.records.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_study(study: Study) -> list[Path]:
    """Lets the paper's room draw its figures; returns the files."""
    room = f"{study.paper.room}.figures"
    try:
        module = importlib.import_module(room)
    except ModuleNotFoundError as error:
        if error.name != room:
            raise
        return []
    return save_figures(study, module.figures(study))


def save_figures(study: Study, figures: Mapping[str, Figure]) -> list[Path]:
    """Writes figures by name, each as PNG and SVG; returns the files."""
    files.make_folder(study.figures_folder)
    written = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            path = study.figures_folder / f"{name}.{suffix}"
            save = functools.partial(figure.savefig, format=suffix, dpi=150)
            files.write_atomically(path, save)
            written.append(path)
    return written
