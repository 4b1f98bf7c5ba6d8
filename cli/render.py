"""Everything the command prints: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from repro.cli import OUTPUT_LOST
from repro.cli.knobs import Knob, in_words, knobs
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from repro.errors import ReproError
from repro.records.papers import Paper
from repro.records.recorded import (
    OLD,
    OLD_MEANS,
    is_outdated,
    recorded_commit,
    recorded_seconds,
    recorded_verdicts,
)
from repro.records.status import Status
from repro.records.summary import (
    Scored,
    best_first,
    by_arm,
    identical_points,
    mean_and_spread,
    scores,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from optuna.trial import FrozenTrial

    from repro.claims.file import Claim
    from repro.claims.verdicts import ClaimVerdict
    from repro.data.base.catalog import DatasetInfo
    from repro.launching.growing import Look
    from repro.planning.plan import Plan
    from repro.records.run import Run
    from repro.records.study import Study
    from repro.search.request import Request

COMPARED = 16  # columns of the terminal that each of many compared runs gets at least
WIDE = 120  # tables are laid out for this width where neither terminal nor COLUMNS says how wide


class Screen(Console):
    """Standard output, which may end before the work does: `| head`, a full disk, no terminal."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints as Rich does."""
        with _surviving():
            super().print(*args, **kwargs)

    def on_broken_pipe(self) -> None:
        """Nobody reads on."""
        _forget_output()


console = Screen()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = WIDE


def message(text: str) -> None:
    """A line for the person, on standard error."""
    with suppress(OSError):
        click.echo(f"repro: {text}", err=True)


def emit(value: Any) -> None:
    """JSON on standard output."""
    with _surviving():
        click.echo(json.dumps(value, indent=1, default=str))


@contextmanager
def sign_of_life(doing: str, quiet: bool = False) -> Iterator[None]:
    """Moves a sign at a terminal while nothing else would: packages take seconds to import."""
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(Text(doing)):
        yield


@contextmanager
def paged(as_json: bool) -> Iterator[None]:
    """At a terminal, what is longer than it goes through $PAGER, so that its beginning is seen."""
    if as_json or not console.is_terminal:
        yield
        return
    os.environ.setdefault("LESS", "FRX")  # as git has it: colours, and no pager for one screen
    with console.pager(styles=True):
        yield


@contextmanager
def _surviving() -> Iterator[None]:
    """Goes on where standard output cannot be written to; says so, unless nobody wants it."""
    try:
        yield
    except BrokenPipeError:
        _forget_output()
    except OSError as error:
        message(f"What should stand here cannot be written: {error.strerror}.")
        _forget_output()
        context = click.get_current_context(silent=True)
        if context is not None:
            context.find_root().meta[OUTPUT_LOST] = True


def _forget_output() -> None:
    """Lets the output go nowhere, what waits in buffers included."""
    with suppress(OSError, ValueError):  # ValueError: a test's output has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainTable(Table):
    """A table of what people wrote: square brackets in it are no markup."""

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Adds a row; text stays as it is."""
        plain = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*plain, **settings)


def table(*columns: str, title: str | None = None) -> PlainTable:
    """A table in the house style."""
    styled = PlainTable(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        styled.add_column(Text(_header(column)), overflow="fold", no_wrap=number == 0)
    return styled


def _header(name: str) -> str:
    """A metric's name, such as comm/bytes_per_step: the slash is a good place to break."""
    return name.replace("/", "/\n")


def config(composed: DictConfig) -> None:
    """The composed config as YAML."""
    from omegaconf import OmegaConf

    with _surviving():
        click.echo(OmegaConf.to_yaml(composed), nl=False)


def plan(planned: Plan, seconds: dict[str, float], outputs: Path, as_json: bool) -> None:
    """The runs that a command would start, and what they would cost."""
    layers = planned.layers()
    if as_json:
        listed = [
            {
                "folder": run.folder,
                "layer": number,
                "overrides": run.overrides,
                "seconds": seconds.get(run.arm),
            }
            for number, layer in enumerate(layers)
            for run in layer
        ]
        emit({"paper": planned.paper.slug, "scale": planned.scale, "runs": listed})
        return
    groups = [
        (number, arm, point, runs)
        for number, layer in enumerate(layers)
        for (arm, point), runs in by_arm(layer).items()
    ]
    own = [[t for t in runs[0].overrides if not t.startswith("seed=")] for *_, runs in groups]
    shared = [text for text in own[0] if all(text in texts for texts in own)]
    console.print(f"every run: {' '.join(shared)}", highlight=False, markup=False)
    shown = table("layer", "arm", "point", "seeds", "also", "seconds")
    for (number, arm, point, runs), texts in zip(groups, own, strict=True):
        cost = f"{seconds[arm]:.1f}" if arm in seconds else "?"
        seeds = _seeds([run.seed for run in runs])
        also = " ".join(text for text in texts if text not in shared)
        shown.add_row(str(number), arm, point, seeds, also, cost)
    console.print(shown)
    for note in planned.notes:
        console.print(f"note: {note}", markup=False)
    known = [seconds[run.arm] for run in planned.runs if run.arm in seconds]
    total = f", about {duration(sum(known))} of computing" if known else ""
    console.print(f"{len(planned.runs)} runs{total}. Nothing was started.")
    if not known:
        console.print(_rehearsed(planned.paper, planned.scale, outputs), highlight=False)


def _seeds(seeds: Sequence[int]) -> str:
    """Which seeds; many that follow each other by their ends."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 2 and list(seeds) == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ",".join(map(str, seeds))


def papers(all_papers: Sequence[Paper], as_json: bool) -> None:
    """The papers, each with a line for every scale that is recorded."""
    rows = [(paper, recorded_verdicts(paper)) for paper in all_papers]
    if as_json:
        emit(
            [
                {
                    "slug": p.slug,
                    "title": p.title,
                    "link": p.link,
                    "recorded": counts,
                    "outdated": [scale for scale in counts if is_outdated(p, scale)],
                }
                for p, counts in rows
            ]
        )
        return
    from repro.claims.outcomes import LEGEND, MARKS, tally

    wide = max((len(scale) + 2 for _, counts in rows for scale in counts), default=0)

    def line(name: str, cells: Sequence[str], minutes: str) -> str:
        return f"  {name:<{wide}}" + "".join(f"{cell:>4}" for cell in cells) + f"  {minutes:>7}"

    console.print(Text(line("scale", MARKS, "minutes"), "bold"))
    for each, by_scale in rows:
        link = f" ({each.link})" if each.link else ""
        console.print(Text.assemble((each.slug, "bold"), f"  {each.title}{link}"))
        for scale, counts in by_scale.items():
            minutes = f"{recorded_seconds(each, scale) / 60:.0f}"
            marked = f"{scale} {OLD}" if is_outdated(each, scale) else scale
            console.print(line(marked, tally(counts), minutes), highlight=False)
        if not by_scale:
            console.print("  nothing recorded yet", highlight=False)
    console.print(f"\n{LEGEND}; minutes of one core; {OLD_MEANS}", highlight=False)
    console.print("Look closer: repro show SLUG. Run one: repro run SLUG")


def recorded(paper: Paper) -> dict[str, list[ClaimVerdict]]:
    """The recorded verdicts on a paper's claims, by scale."""
    from repro.claims.studies import recorded_claims

    return {scale: recorded_claims(paper, scale) for scale in paper.recorded_scales}


def paper(shown: Paper, as_json: bool, verbose: bool = False) -> None:
    """What was measured of a paper, then its question, claims, arms, scales and knobs."""
    from repro.claims.file import load_claims
    from repro.report.tables import judged_at

    claims = load_claims(shown.claims_file).claims
    settings, by_scale = knobs(shown), recorded(shown)
    if as_json:
        emit(_plain_paper(shown, claims, settings, by_scale))
        return
    console.print(Text.assemble((shown.title, "bold"), f"  {shown.link}"))
    if shown.question:
        console.print(shown.question, markup=False, highlight=False)
    elsewhere = judged_at(by_scale)
    for scale, verdicts in by_scale.items():
        print_verdicts(verdicts, f"\nRecorded at scale={scale}", verbose, elsewhere)
        since = f"; {OLD_MEANS}" if is_outdated(shown, scale) else ""
        code = f"run by the code of commit {recorded_commit(shown, scale)}{since}"
        console.print(Text(code, "dim"))
    _print_claims(claims)
    _print_margins(claims)
    for title, layers in (("Arms", shown.arms), ("Scales", shown.scales)):
        layer_table = table("name", "overrides", title=f"\n{title}")
        for name, overrides in layers.items():
            # The backslash of a reference that waits for the run is for Hydra, not for readers.
            layer_table.add_row(name, " ".join(overrides).replace("\\${", "${") or "–")
        console.print(layer_table)
    _print_knobs(settings)


def _plain_paper(
    shown: Paper,
    claims: Iterable[Claim],
    settings: Iterable[Knob],
    by_scale: Mapping[str, Sequence[ClaimVerdict]],
) -> dict[str, Any]:
    """All of a paper as JSON has it."""
    return {
        "slug": shown.slug,
        "title": shown.title,
        "link": shown.link,
        "question": shown.question,
        "arms": shown.arms,
        "scales": shown.scales,
        "recorded": {
            scale: [verdict.to_dict() for verdict in verdicts]
            for scale, verdicts in by_scale.items()
        },
        "code": {
            scale: {
                "commit": recorded_commit(shown, scale),
                "outdated": is_outdated(shown, scale),
            }
            for scale in by_scale
        },
        "claims": [claim.model_dump(mode="json") for claim in claims],
        "knobs": [
            {"key": knob.key, "default": knob.default, "meaning": knob.meaning} for knob in settings
        ],
    }


def _print_claims(claims: Iterable[Claim]) -> None:
    shown = table("claim", "statement", "the paper", "scales", title="\nClaims")
    for claim in claims:
        scales = ", ".join(claim.scales) or "–"
        shown.add_row(claim.id, claim.statement, claim.paper.text, scales)
    console.print(shown)


def _print_margins(claims: Iterable[Claim]) -> None:
    """Why margins and bounds are what they are, each reason once."""
    from repro.report.tables import with_minus

    reasons = {
        (claim.id, check.claimed, check.margin_because): None
        for claim in claims
        for check in claim.all_checks()
        if check.margin_because is not None
    }
    if not reasons:
        return
    shown = table("claim", "limit", "because", title="\nMargins and bounds")
    for name, limit, because in reasons:
        shown.add_row(name, with_minus(limit), because)
    console.print(shown)


def _print_knobs(settings: Iterable[Knob]) -> None:
    """The settings of a paper, those of a table of values in one row."""
    shown = table("key", "default and meaning", title="\nKnobs")
    for key, alike in groupby(settings, key=lambda knob: knob.table or knob.key):
        first, *more = alike
        default = f"{1 + len(more)} values" if more else in_words(first.default)
        name = key if more else first.key
        shown.add_row(name, Text.assemble(default, (f"  {first.meaning}", "dim")))
    console.print(shown)


def study_starts(study: Study) -> None:
    """What is about to happen."""
    about = study.about
    arms = dict.fromkeys(path.split("/")[0] for layer in about.layers for path in layer)
    console.print(
        f"{about.paper} at scale={about.scale}: {len(study.runs)} runs "
        f"({', '.join(arms)}) in {study.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    expected = _expected(study)
    if expected is not None:
        console.print(expected, highlight=False)
    for note in about.notes:
        console.print(f"note: {note}", markup=False)


def _rehearsed(paper: Paper, scale: str, outputs: Path) -> str:
    """What a scale takes that was never run here, by its rehearsal."""
    from repro.records.rehearsal import rehearsed_cost

    found = rehearsed_cost(paper, scale, outputs)
    if found is not None:
        return f"Rehearsed: {found.sentence}"
    if scale == "smoke":
        return "Each run takes a few seconds."
    return (
        "How long that takes is not known: no such run was made before. Measure it: "
        f"repro run {paper.slug} scale={scale} --rehearse"
    )


def _expected(study: Study) -> str | None:
    """How long what is left of a study will take, as far as earlier runs of its arms tell."""
    from repro.launching.local import local_jobs
    from repro.records.study import typical_seconds

    ends = {run: run.end() for run in study.runs}
    left = [run for run, end in ends.items() if end is None or not end.is_final]
    if not left:
        return None
    outputs = study.folder.parents[2]
    known = typical_seconds(study.paper, study.scale, outputs)
    arms = [run.folder.relative_to(study.folder).parts[0] for run in left]
    timed = [known[arm] for arm in arms if arm in known]
    if not timed:
        return _rehearsed(study.paper, study.scale, outputs)
    total = len(left) * sum(timed) / len(timed)  # an arm that is not known takes the mean
    config = left[0].plain_config()
    expected = f"Expected: {duration(total)} of computing"
    if config["hardware"]["launcher"]["name"] != "basic":
        return f"{expected}."
    together = local_jobs(config["hardware"], config["n_jobs"], len(left))
    return f"{expected}, {duration(total / together)} with {together} runs at a time."


def look(added: Look) -> None:
    """What a growing study runs next, and why."""
    first, last = added.seeds[0], added.seeds[-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    text = f"{', '.join(added.claims)} not decided yet: {seeds} of {', '.join(added.arms)}"
    console.print(text, highlight=False, markup=False)


def submitted(study: Study, as_json: bool) -> None:
    """Which Slurm jobs work on a study, and how to watch and stop them."""
    from repro.launching.queue import jobs_of

    jobs = jobs_of(study.runs)
    if as_json:
        emit({"folder": str(study.folder), "jobs": jobs})
        return
    lines = [
        f"Submitted to Slurm: {', '.join(jobs) or 'nothing was left to do'}",
        f"  look: repro status {study.folder}",
        f"  wait: repro resume {study.folder}",
        *([f"  stop: scancel {' '.join(jobs)}"] if jobs else []),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_verdicts(
    verdicts: Sequence[ClaimVerdict], title: str, verbose: bool, elsewhere: Mapping[str, str] = {}
) -> None:
    """The verdicts on a paper's claims, see `verdict_table`."""
    from repro.cli.verdicts import verdict_table  # `list` does without

    console.print(verdict_table(verdicts, title, verbose, elsewhere), highlight=False)


def study_result(
    study: Study, verdicts: Sequence[ClaimVerdict], as_json: bool, verbose: bool = False
) -> None:
    """The summary of a study: metrics by arm, then claims and verdicts."""
    points, metric, mode = scores(study) if study.about.is_grid else ([], "", "")
    if as_json:
        from repro.claims.studies import results

        emit(
            {
                "folder": str(study.folder),
                "runs": [
                    {name: value for name, value in result.__dict__.items() if name != "series"}
                    for result in results(study)
                ],
                "points": [{"metric": metric, **point.__dict__} for point in points],
                "claims": [verdict.to_dict() for verdict in verdicts],
            }
        )
        return
    for part in summary(study, console.width):
        console.print(part)
    if points:
        console.print(Text(f"\nBest first, by {metric}", "bold"))
        console.print(scores_table(("arm",), points, metric, mode))
        for alike in identical_points(study):
            console.print(
                f"note: identical numbers, to the last digit: {'; '.join(alike)}", markup=False
            )
    if study.scale == "smoke":
        console.print("smoke only shows that things run; what they mean is judged at other scales.")
    if any(verdict.checks for verdict in verdicts):
        print_verdicts(verdicts, "\nClaims", verbose)
    overrides = [text for text in study.about.typed if not text.startswith("paper=")]
    if overrides:
        console.print(f"With: {' '.join(overrides)}", markup=False, highlight=False)
    _print_figures(study)


def _print_figures(study: Study) -> None:
    figures = sorted(study.figures_folder.glob("*.png"))
    if figures:
        console.print("Figures: " + ", ".join(map(str, figures)), soft_wrap=True, highlight=False)


def search_starts(study: Study, request: Request) -> None:
    """What is about to be searched."""
    console.print(
        f"{study.about.paper} at scale={study.scale}: {request.trials} trials of arm "
        f"{request.arm} for the {request.mode}imum of {request.metric} in {study.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def trial(done: FrozenTrial, request: Request) -> None:
    """One line about a trial that came to its end."""
    from repro.search.space import write

    point = ", ".join(f"{k}={_short_number(write(v))}" for k, v in done.params.items())
    outcome = done.user_attrs["reason"] or f"{request.metric} {number(done.value)}"
    line = f"[{done.number + 1}/{request.trials}] {point}: {outcome}"
    console.print(line, markup=False, highlight=False)


def search_result(study: Study, result: dict[str, Any], as_json: bool) -> None:
    """The trials of a search, best first, what mattered, and how to run the best point."""
    if as_json:
        emit({"folder": str(study.folder), **result})
        return
    from repro.search.request import request_of

    rows = [
        Scored((f"trial {row['trial']}",), row["point"], row["values"], row["state"])
        for row in result["trials"]
    ]
    limit = request_of(study).settings["table_rows"]
    console.print(scores_table(("trial",), rows, result["metric"], result["mode"], limit))
    if len(rows) > limit:
        left = f"… and {len(rows) - limit} more in {study.folder / 'search.json'}"
        console.print(left, soft_wrap=True, highlight=False)
    if result["importance"]:
        importance = table("parameter", "importance", title="\nWhat mattered")
        for key, share in result["importance"].items():
            importance.add_row(key, f"{100 * share:.0f} %")
        console.print(importance)
    _print_figures(study)
    if result["command"] is None:
        console.print("No trial came to its end, so there is no best point.")
    else:
        console.print("The best point, with the paper's seeds and tested:")
        console.print(result["command"], soft_wrap=True, highlight=False, markup=False)


def scores_table(
    names: Sequence[str], rows: Sequence[Scored], metric: str, mode: str, limit: int | None = None
) -> Table:
    """Points of a grid or a search and their validation metric, best first."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    shown = table(*names, *keys, metric, "runs")
    for row in best_first(rows, mode)[:limit]:
        point = [Text(_short_number(row.point.get(key, ""))) for key in keys]
        shown.add_row(*row.names, *point, mean_and_spread(row.values), Text(row.state))
    return shown


def summary(study: Study, width: int) -> Iterator[Table]:
    """Mean and standard deviation over seeds of the paper's report metrics, by arm.

    Args:
        study: whose runs.
        width: of the terminal: where all metrics do not fit beside each other, tables follow.
    """
    from repro.report.tables import arm_rows, metrics_of

    rows = arm_rows([run.measured() for run in study.runs], study.paper.report)
    named = {
        "arm": [row.arm for row in rows],
        "point": [row.point for row in rows] if any(row.point for row in rows) else [],
        "runs": [row.states for row in rows],
    }
    named = {name: cells for name, cells in named.items() if cells}
    measured = {
        name: [row.metrics.get(name, "–") for row in rows]
        for name in metrics_of(rows, study.paper.report)
    }
    left = width - sum(map(_column_width, named, named.values()))
    for block in _side_by_side(measured, left):
        shown = table(*named, *block)
        for cells in zip(*named.values(), *(measured[name] for name in block), strict=True):
            shown.add_row(*cells)
        yield shown


def _side_by_side(columns: Mapping[str, Sequence[str]], width: int) -> list[list[str]]:
    """Shares out columns to lines of tables that are no wider than `width`."""
    blocks: list[list[str]] = [[]]
    left = width
    for name, cells in columns.items():
        needed = _column_width(name, cells)
        if needed > left and blocks[-1]:
            blocks.append([])
            left = width
        blocks[-1].append(name)
        left -= needed
    return blocks


def _column_width(name: str, cells: Sequence[str]) -> int:
    return 2 + max(len(text) for text in (*_header(name).split("\n"), *cells))


def run_result(run: Run, as_json: bool) -> None:
    """The end of a single run."""
    record, summary = run.record(), run.summary()
    if as_json:
        emit({"folder": str(run.folder), "status": record.status, "metrics": summary})
        return
    shown = table("metric", "value")
    for name, value in summary.items():
        shown.add_row(name, number(value))
    console.print(f"{run.folder}: {record.status}", soft_wrap=True, highlight=False)
    console.print(shown)


def studies(found: Sequence[Study], as_json: bool) -> None:
    """A few lines for each study: where it is, how it stands, and what was typed."""
    from repro.claims.outcomes import Verdict
    from repro.claims.studies import read_verdicts
    from repro.launching.queue import count_statuses

    rows = []
    for study in found:
        try:
            counts = count_statuses(study.runs)
            given = [verdict.verdict for verdict in read_verdicts(study)]
        except ReproError as error:  # one that is damaged hides no other
            message(f"left out: {error}")
            continue
        summary = {str(name): given.count(name) for name in Verdict if name in given}
        rows.append((study, counts, summary))
    if as_json:
        emit(
            [
                {
                    "folder": str(study.folder),
                    "paper": study.about.paper,
                    "scale": study.scale,
                    "typed": study.about.typed,
                    "runs": counts,
                    "verdicts": verdicts,
                }
                for study, counts, verdicts in rows
            ]
        )
        return
    if not rows:
        console.print("No studies yet. Start one: repro run SLUG")
        return
    for study, counts, verdicts in rows:
        total = ", ".join(f"{n} {name}" for name, n in (*counts.items(), *verdicts.items()))
        typed = Text(" ".join(study.about.typed), "dim")
        console.print(Text(str(study.folder), "bold"), soft_wrap=True)
        console.print(Padding(Group(Text(total), typed), (0, 0, 0, 3)))


def study_status(study: Study, as_json: bool, verbose: bool = False) -> None:
    """One line a run."""
    from repro.claims.studies import read_verdicts
    from repro.launching.progress import in_words
    from repro.launching.queue import current_record

    records = [(run, current_record(run)) for run in study.runs]
    if as_json:
        emit([{"folder": str(run.folder), **record.content()} for run, record in records])
        return
    shown = table("run", "status", "progress", "time", "error")
    for run, record in records:
        is_running = record.status is Status.RUNNING
        shown.add_row(
            str(run.folder.relative_to(study.folder)),
            record.status,
            f"{100 * record.progress:.0f} %  {in_words(record.live)}" if is_running else "",
            "" if record.seconds is None else duration(record.seconds),
            Text(record.error.message if record.error else record.queue),
        )
    console.print(shown)
    verdicts = read_verdicts(study)
    if verdicts:
        print_verdicts(verdicts, "\nClaims", verbose)


def comparison(folders: Sequence[Path], as_json: bool) -> None:
    """What differs between runs, or between studies."""
    from repro.report.compare import compare

    compared = compare(folders)
    if as_json:
        emit(compared.tables)
        return
    if compared.common:
        console.print(f"in {compared.common}", highlight=False, markup=False, soft_wrap=True)
    for title, rows in compared.titled().items():
        console.print(Text(f"\n{title}{'' if rows else ': none'}", "bold"))
        room = console.width - max(map(len, rows), default=0)
        beside = max(2, room // COMPARED)
        for first in range(0, len(compared.names) if rows else 0, beside):
            part = slice(first, first + beside)
            shown = table("", *compared.names[part])
            for key, values in rows.items():
                cells = ("–" if value is None else number(value) for value in values[part])
                shown.add_row(key, *cells)
            console.print(shown)


def data_sets(found: Sequence[DatasetInfo], as_json: bool) -> None:
    """The data sets and where they are."""
    if as_json:
        emit([each.__dict__ for each in found])
        return
    shown = table("data set", "here", "what")
    for each in found:
        # How large a download is stands in a column of its own.
        what = re.sub(r" (No download|Download of [^.]*)\.", "", each.description)
        shown.add_row(each.name, _whereabouts(each), what)
    console.print(shown)
    console.print("Where it lies, and its licence: repro data list --json", highlight=False)


def _whereabouts(found: DatasetInfo) -> str:
    """Whether a data set is here, or what it takes to get it."""
    from repro.data.base.files import size

    if found.bundled:
        return "built in"
    if found.present:
        return "yes"
    return f"no, {size(found.megabytes)}" if found.megabytes >= 1 else "no"


def _short_number(typed: Any) -> str:
    """A number as typed, to four digits; what is not a number stays as it is."""
    text = str(typed)
    try:
        return text if text.lstrip("+-").isdigit() else f"{float(text):.4g}"
    except ValueError:
        return text


def number(value: Any) -> str:
    """A value to four significant digits; what is not a number stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
