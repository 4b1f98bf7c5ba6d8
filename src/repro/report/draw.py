"""A study's pictures, written as PNG and SVG."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from repro.records import files
from repro.records.study import Study
from repro.report.figures import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_study(study: Study) -> list[Path]:
    """Draws what the paper declares and what its room adds; returns the files."""
    drawn = figures(study)
    return save_figures(study, drawn) if drawn else []


def save_figures(study: Study, drawn: Mapping[str, Figure]) -> list[Path]:
    """Writes figures by name, each as PNG and SVG; returns the files."""
    files.make_folder(study.figures_folder)
    written = []
    for name, figure in drawn.items():
        for suffix in ("png", "svg"):
            path = study.figures_folder / f"{name}.{suffix}"
            save_figure(figure, path)
            written.append(path)
    return written


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that its suffix names."""
    save = functools.partial(figure.savefig, format=path.suffix[1:], dpi=150)
    files.write_atomically(path, save)
