"""Everything the command prints: tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from repro.engine.papers import Paper, config_folders
from repro.engine.runs import Run, Status
from repro.engine.study import Study, count_statuses
from repro.engine.summary import mean_and_spread, state_counts

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from repro.claims.verdicts import ClaimVerdict
    from repro.data.catalog import DatasetInfo
    from repro.engine.plan import Plan

console = Console()
NARROW = 120  # tables are laid out for this width where the output is not a terminal
COLOURS = {"supported": "green", "not supported": "red", "inconclusive": "yellow"}
MARKS = {"read": "", "recalled": " (recalled)", "inferred": " (inferred)"}

if not console.is_terminal:
    console.width = max(console.width, NARROW)


def message(text: str) -> None:
    """A line for the person, on standard error."""
    click.echo(f"repro: {text}", err=True)


def emit(value: Any) -> None:
    """JSON on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the house style."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        # Metrics are named like comm/bytes_per_step: the slash is a good place to break.
        made.add_column(column.replace("/", "/\n"), overflow="fold", no_wrap=number == 0)
    return made


def config(composed: DictConfig) -> None:
    """The composed config as YAML."""
    from omegaconf import OmegaConf

    click.echo(OmegaConf.to_yaml(composed), nl=False)


def plan(planned: Plan, seconds: dict[str, float], as_json: bool) -> None:
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
    shown = table("layer", "arm", "point", "seeds", "overrides", "s/run")
    for number, layer in enumerate(layers):
        groups: dict[tuple[str, str], list[Any]] = {}
        for run in layer:
            point = ", ".join(f"{key}={value}" for key, value in run.point.items())
            groups.setdefault((run.arm, point), []).append(run)
        for (arm, point), runs in groups.items():
            own = [text for text in runs[0].overrides if not text.startswith(("paper=", "seed="))]
            cost = f"{seconds[arm]:.1f}" if arm in seconds else "?"
            seeds = ",".join(str(run.seed) for run in runs)
            shown.add_row(str(number), arm, point, seeds, " ".join(own), cost)
    console.print(shown)
    for note in planned.notes:
        console.print(f"note: {note}", markup=False)
    known = [seconds[run.arm] for run in planned.runs if run.arm in seconds]
    total = f"about {duration(sum(known))} of computing" if known else "cost not yet known"
    console.print(f"{len(planned.runs)} runs, {total}. Nothing was started.")


def papers(all_papers: Sequence[Paper], as_json: bool) -> None:
    """One line a paper."""
    rows = [(paper, recorded_verdicts(paper)) for paper in all_papers]
    if as_json:
        emit(
            [
                {"slug": p.slug, "title": p.title, "link": p.link, "recorded": counts}
                for p, counts in rows
            ]
        )
        return
    shown = table("slug", "paper", "recorded verdicts")
    for paper_, counts in rows:
        text = "; ".join(
            f"{scale}: " + ", ".join(f"{n} {verdict}" for verdict, n in found.items())
            for scale, found in counts.items()
        )
        shown.add_row(paper_.slug, f"{paper_.title} ({paper_.link})", text or "–")
    console.print(shown)
    console.print("Look closer: repro show SLUG. Run one: repro run paper=SLUG")


def recorded_verdicts(paper_: Paper) -> dict[str, dict[str, int]]:
    """How many claims got which verdict, for each scale with recorded results."""
    counts: dict[str, dict[str, int]] = {}
    for scale in paper_.scales:
        file = paper_.results_file(scale)
        if file.is_file():
            found = [claim["verdict"] for claim in json.loads(file.read_text())["claims"]]
            counts[scale] = {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}
    return counts


def paper(shown: Paper, as_json: bool) -> None:
    """A paper's question, claims, arms, scales and knobs."""
    from repro.claims.schema import load_claims

    claims = load_claims(shown.claims_file).claims
    knobs = _knobs(shown)
    if as_json:
        emit(
            {
                "slug": shown.slug,
                "title": shown.title,
                "link": shown.link,
                "question": shown.question,
                "arms": shown.arms,
                "scales": shown.scales,
                "claims": [claim.model_dump(mode="json") for claim in claims],
                "knobs": [
                    {"key": key, "default": default, "meaning": meaning}
                    for key, default, meaning in knobs
                ],
            }
        )
        return
    console.print(f"[bold]{shown.title}[/bold]  {shown.link}", highlight=False)
    if shown.question:
        console.print(shown.question, highlight=False)
    claim_table = table("claim", "statement", "the paper", "scales", title="\nClaims")
    for claim in claims:
        numbers = f"{claim.paper.value}{MARKS[claim.paper.source]}"
        claim_table.add_row(claim.id, claim.statement, numbers, ", ".join(claim.scales) or "–")
    console.print(claim_table)
    for title, named in (("Arms", shown.arms), ("Scales", shown.scales)):
        layer_table = table("name", "overrides", title=f"\n{title}")
        for name, overrides in named.items():
            layer_table.add_row(name, Text(" ".join(map(str, overrides or [])) or "–"))
        console.print(layer_table)
    knob_table = table("key", "default", "meaning", title="\nKnobs")
    for row in knobs:
        knob_table.add_row(*(Text(cell) for cell in row))
    console.print(knob_table)


def study_starts(study: Study) -> None:
    """What is about to happen."""
    about = study.about
    arms = dict.fromkeys(path.split("/")[0] for layer in about["layers"] for path in layer)
    console.print(
        f"{about['paper']} at scale={about['scale']}: {len(study.runs)} runs "
        f"({', '.join(arms)}) in {study.folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for note in about["notes"]:
        console.print(f"note: {note}", markup=False)


def study_result(study: Study, verdicts: Sequence[ClaimVerdict], as_json: bool) -> None:
    """The summary of a study: metrics by arm, then claims and verdicts."""
    if as_json:
        emit(
            {
                "folder": str(study.folder),
                "runs": [
                    {**result.__dict__, "point": dict(result.point)} for result in study.results()
                ],
                "claims": [verdict.to_dict() for verdict in verdicts],
            }
        )
        return
    console.print(summary_table(study))
    if verdicts:
        console.print(verdict_table(verdicts))
        for verdict in verdicts:
            if verdict.reason and verdict.checks:
                console.print(f"{verdict.id}: {verdict.reason}", markup=False, highlight=False)
    overrides = [text for text in study.about["typed"] if not text.startswith("paper=")]
    if overrides:
        console.print(f"With: {' '.join(overrides)}", markup=False, highlight=False)
    figures = sorted(study.figures_folder.glob("*.png"))
    if figures:
        console.print("Figures: " + ", ".join(map(str, figures)), soft_wrap=True, highlight=False)


def summary_table(study: Study) -> Table:
    """Mean and standard deviation over seeds of the paper's report metrics, by arm."""
    results = study.results()
    wanted = study.paper.report
    known = [metric for metric in wanted if any(metric in r.metrics for r in results)]
    groups: dict[tuple[str, str], list[Any]] = {}
    for result in results:
        point = ", ".join(f"{key}={value}" for key, value in result.point.items())
        groups.setdefault((result.arm, point), []).append(result)
    has_points = any(point for _, point in groups)
    shown = table("arm", *(["point"] if has_points else []), "runs", *known)
    for (arm, point), runs in groups.items():
        states = state_counts([Status(run.status) for run in runs])
        cells = [mean_and_spread([r.metrics[m] for r in runs if m in r.metrics]) for m in known]
        shown.add_row(arm, *([point] if has_points else []), states, *cells)
    return shown


def verdict_table(verdicts: Iterable[ClaimVerdict]) -> Table:
    """Claim, the paper's number, ours with its interval, seeds, verdict."""
    shown = table("claim", "", "the paper", "measured here", "seeds", "verdict", title="\nClaims")
    for claim in verdicts:
        paper_text = f"{claim.paper.value}{MARKS[claim.paper.source]}"
        colour = COLOURS.get(str(claim.verdict), "dim")
        first, *rest = claim.checks or (None,)
        shown.add_row(
            claim.id,
            claim.statement,
            paper_text,
            _measured(first) if first else claim.reason,
            str(first.seeds) if first else "",
            Text(str(claim.verdict), style=colour),
        )
        for check in rest:
            shown.add_row(
                "", "", "", _measured(check), str(check.seeds), Text(f"({check.verdict})")
            )
    return shown


def _measured(check: Any) -> str:
    return f"{check.effect_text}\n{check.compared}; claimed {check.claimed}"


def run_result(run: Run, as_json: bool) -> None:
    """The end of a single run."""
    record, summary = run.record(), run.summary()
    if as_json:
        emit({"folder": str(run.folder), "status": record["status"], "metrics": summary})
        return
    shown = table("metric", "value")
    for name, value in summary.items():
        shown.add_row(name, number(value))
    console.print(f"{run.folder}: {record['status']}", soft_wrap=True, highlight=False)
    console.print(shown)


def studies(found: Sequence[Study], as_json: bool) -> None:
    """One line a study."""
    rows = []
    for study in found:
        counts = count_statuses(study.runs)
        given = [str(verdict.verdict) for verdict in study.verdicts()]
        summary = {name: given.count(name) for name in dict.fromkeys(given)}
        rows.append((study, counts, summary))
    if as_json:
        emit(
            [
                {
                    "folder": str(study.folder),
                    "paper": study.about["paper"],
                    "scale": study.scale,
                    "typed": study.about["typed"],
                    "runs": counts,
                    "verdicts": verdicts,
                }
                for study, counts, verdicts in rows
            ]
        )
        return
    if not rows:
        console.print("No studies yet. Start one: repro run paper=<slug>")
        return
    shown = table("study", "typed", "runs", "verdicts")
    for study, counts, verdicts in rows:
        shown.add_row(
            str(study.folder),
            Text(" ".join(study.about["typed"])),
            ", ".join(f"{n} {state}" for state, n in counts.items()),
            ", ".join(f"{n} {name}" for name, n in verdicts.items()) or "–",
        )
    console.print(shown)


def study_status(study: Study, as_json: bool) -> None:
    """One line a run."""
    records = [(run, run.record()) for run in study.runs]
    if as_json:
        emit([{"folder": str(run.folder), **record} for run, record in records])
        return
    shown = table("run", "status", "progress", "time", "error")
    for run, record in records:
        error = (record.get("error") or {}).get("message", "")
        shown.add_row(
            str(run.folder.relative_to(study.folder)),
            record["status"],
            f"{100 * record.get('progress', 0):.0f} %" if record["status"] == "running" else "",
            duration(record["seconds"]) if "seconds" in record else "",
            Text(error),
        )
    console.print(shown)


def comparison(first: Run, second: Run, as_json: bool) -> None:
    """What differs between two runs."""
    from omegaconf import OmegaConf

    from repro.engine.compose import flatten

    def settings(run: Run) -> dict[str, Any]:
        plain: Any = OmegaConf.to_container(OmegaConf.load(run.folder / "config.yaml"))
        plain.pop("module", None)  # it points at the groups above it
        return flatten(plain)

    def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {
            key: (a.get(key), b.get(key))
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key)
        }

    changed = differences(settings(first), settings(second))
    measured = differences(first.summary(), second.summary())
    if as_json:
        emit({"config": changed, "summary": measured})
        return
    for title, found in (("Settings that differ", changed), ("Results that differ", measured)):
        shown = table("", str(first.folder), str(second.folder), title=title)
        for key, (left, right) in found.items():
            shown.add_row(key, Text(number(left)), Text(number(right)))
        console.print(shown if found else f"{title}: none")


def data_sets(found: Sequence[DatasetInfo], as_json: bool) -> None:
    """The data sets and where they are."""
    if as_json:
        emit([each.__dict__ for each in found])
        return
    shown = table("data set", "what", "licence", "MB", "here")
    for each in found:
        here = "comes with it" if each.bundled else str(each.place or "no")
        size = "–" if each.bundled else f"{each.megabytes:g}"
        shown.add_row(each.name, each.description, each.licence, size, here)
    console.print(shown)


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


def _knobs(shown: Paper) -> list[tuple[str, str, str]]:
    """Key, default and meaning of the settings in the groups that the paper chooses."""
    import yaml

    content = yaml.safe_load(shown.config_file.read_text())
    chosen = {"training": None, "optimizer": "sgd", "schedule": "constant"}
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            for key, choice in entry.items():
                chosen[key.removeprefix("override ").strip("/ ")] = choice
    rows = []
    for group, choice in chosen.items():
        if choice is None:
            continue
        files = [folder / group / f"{choice}.yaml" for folder in config_folders()]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            rows += [(f"{group}.{key}", *rest) for key, *rest in _documented(file)]
    return rows  # type: ignore[return-value]


def _documented(file: Path) -> list[tuple[str, str, str]]:
    """The top-level keys of a config file with the comments beside or above them."""
    rows = []
    above = ""
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            above = f"{above} {line.lstrip('# ')}".strip()
            continue
        key, colon, rest = line.partition(":")
        is_key = colon and key.isidentifier() and not key.startswith("_") and key != "defaults"
        if is_key:
            value, _, comment = rest.partition(" #")
            rows.append((key, value.strip(), comment.strip() or above))
        above = ""
    return rows
