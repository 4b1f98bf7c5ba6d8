"""A study's pictures: the stock figures that its paper declares, and those of the paper's room.

``conf/paper/<slug>.yaml`` declares figures under ``figures:``. ``own`` and ``baselines`` name the
paper's own arms and those that it compares with (names or patterns such as ``*_noise``; a mapping
says what the legend calls them); every other key is a figure::

    figures:
      own: [dgc]
      baselines: [dense, dropping*]
      accuracy:                       # figures/accuracy.png
        kind: curves
        metrics: {val/accuracy: accuracy, train/loss: {label: loss, log: true}}

A figure has a panel for each metric and each of its ``groups`` of arms; one whose panels differ
more than that lists them under ``panels``, and what they have in common beside it. What has no
numbers in a study is left out. `repro.report.kinds` has the kinds and their keys.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field, ValidationError, model_validator

from repro.errors import UserError, did_you_mean
from repro.records.papers import Paper
from repro.records.study import Study
from repro.records.table import Table, recorded_table, table
from repro.report import style
from repro.report.kinds import Along, Chain, Context, Declaration, Kind, NamedArms, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(study: Study) -> dict[str, Figure]:
    """Draws a study's figures, by name: those declared, and those of the room.

    A `UserError` says so if the paper's declarations are wrong.

    Raises:
        ModuleNotFoundError: what the room's figures.py imports is not installed.
    """
    with style.settings():
        found = stock(table(study), study.paper, study.scale)
        room = f"{study.paper.room}.figures"
        try:
            special = importlib.import_module(room)
        except ModuleNotFoundError as error:
            if error.name != room:
                raise
            return found
        return found | special.figures(study)


def recorded_figures(content: Mapping[str, Any], paper: Paper) -> dict[str, Figure]:
    """Draws those declared figures for which a record suffices: no curves and no pictures.

    Args:
        content: of the paper's results file.
        paper: whose it is.
    """
    with style.settings():
        measured = recorded_table(content)
        return stock(measured, paper, content["scale"], with_runs=False)


def stock(measured: Table, paper: Paper, scale: str, with_runs: bool = True) -> dict[str, Figure]:
    """Draws the figures that a paper declares.

    Args:
        measured: what the study measured.
        paper: whose study it is.
        scale: of the study.
        with_runs: whether run directories are there; otherwise what needs them is left out.
    """
    declared = read_declared(paper)
    context = declared.context(measured, list(paper.arms))
    drawn = {
        name: drawing.draw(context, f"{paper.slug}, scale={scale}")
        for name, drawing in declared.drawings.items()
        if with_runs or not any(panel.needs_runs for panel in drawing.panels)
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def read_declared(paper: Paper) -> Declared:
    """The figures that a paper declares.

    Raises:
        UserError: a declaration is wrong: an unknown arm, kind or key.
    """
    try:
        return Declared.model_validate(paper.figures, context={"arms": list(paper.arms)})
    except ValidationError as error:
        # A misspelt key or arm comes first: it explains what else is wrong.
        order = ("extra_forbidden", "value_error")
        details = sorted(error.errors(), key=lambda each: each["type"] not in order)
        raise UserError(f"{paper.config_file}, {_explain(details[0])}") from None


class Drawing(Declaration):
    """A figure; keys beside ``panels`` hold for all of them, and if they suffice it has no list.

    Attributes:
        panels: the panels, kind by kind.
        columns: how many panels stand beside each other.
        share: whether panels of the same metric have the same axis.
        title: instead of what the first kind says of itself.
    """

    panels: list[Kind] = Field(min_length=1)
    columns: int | None = Field(None, ge=1)
    share: bool = False
    title: str = ""

    @model_validator(mode="before")
    @classmethod
    def _keys_for_all_panels(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        about = {key: raw[key] for key in ("columns", "share", "title") if key in raw}
        common = {key: raw[key] for key in raw if key not in (*about, "panels")}
        panels = raw.get("panels", [{}])
        if not isinstance(panels, list) or not all(isinstance(panel, dict) for panel in panels):
            return raw
        return {**about, "panels": [{**common, **panel} for panel in panels]}

    def draw(self, context: Context, study: str) -> Figure | None:
        """The figure, or nothing if the study has no numbers for it."""
        panels = [panel for kind in self.panels for panel in kind.panels(context)]
        if not panels:
            return None
        titles = dict.fromkeys(panel.title for panel in panels)
        metrics = len(panels) // len(titles)
        is_table = len(titles) > 1 and metrics > 1 and metrics * len(titles) == len(panels)
        columns = self.columns or (len(titles) if is_table else min(style.COLUMNS, len(panels)))
        sizes = [panel.kind.size(panel) for panel in panels]
        figure, grid = style.grid(sizes, columns)
        for axes, panel in zip(grid, panels, strict=True):
            panel.kind.paint(axes, panel)
            axes.set_title(panel.title)
        if self.share:
            named = [(axes, panel.metric) for axes, panel in zip(grid, panels, strict=True)]
            style.share(named, panels[0].kind.measure)
        count = context.table.seeds
        seeds = f"{count} seed{'s' * (count != 1)}"
        says = self.title or panels[0].kind.says.format(seeds=seeds)
        style.finish(figure, f"{study}: {says}")
        return figure


class Declared(Declaration):
    """All that a paper declares.

    Attributes:
        own: the paper's own arms.
        baselines: the arms that it compares with.
        drawings: the figures, by name.
    """

    own: NamedArms = Field(default_factory=dict)
    baselines: NamedArms = Field(default_factory=dict)
    drawings: dict[str, Drawing]

    @model_validator(mode="before")
    @classmethod
    def _figures_beside_arms(cls, raw: dict[str, Any]) -> Any:
        arms = {key: raw[key] for key in ("own", "baselines") if key in raw}
        return {**arms, "drawings": {key: raw[key] for key in raw if key not in arms}}

    def context(self, measured: Table, arms: Sequence[str]) -> Context:
        """What the figures of a study share; ``arms`` are the paper's, in its order."""
        known = list(dict.fromkeys([*arms, *measured.arms]))
        present = [arm for arm in known if arm in measured.arms]
        return Context(measured, present, style.looks(known, self.own, self.baselines))


def _explain(detail: Any) -> str:
    """What is wrong with a declaration, in one line."""
    place = [str(part) for part in detail["loc"]]
    if "[key]" in place:  # a key that is wrong follows what holds it
        place = place[: place.index("[key]") - 1]
    place = [part for part in place if part not in ("drawings", "panels", "0") and "[" not in part]
    where = ".".join(["figures", *place])
    if detail["type"] == "extra_forbidden":
        parts = [*get_args(get_args(Kind)[0]), Drawing, Along, Source, Chain]
        known = {key for part in parts for key in part.model_fields} - {place[-1]}
        return f"{where}: there is no such key.{did_you_mean(place[-1], known)}"
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        kinds = context["expected_tags"].replace("'", "").split(", ")
        hint = did_you_mean(context["tag"], kinds)
        return f"{where}: there is no kind '{context['tag']}'.{hint} Known: {', '.join(kinds)}."
    if detail["type"] == "union_tag_not_found":
        return f"{where}: says no kind."
    return f"{where}: {detail['msg'].removeprefix('Value error, ')}"
