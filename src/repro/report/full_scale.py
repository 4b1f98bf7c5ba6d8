"""What full scales take: the rehearsals of a study as a table, and of all papers as a page.

``python -m repro.report.full_scale`` rehearses every full scale of every paper at the size that its
config calls ``paper.reduced``, and writes each into docs/full-scale.md as soon as it is done; slugs
say of which papers, ``--missing`` leaves out what the page has already. With ``--whole`` nothing is
reduced, which takes an accelerator; ``--minutes`` ends it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repro.errors import ReproError, first_line
from repro.launching.local import launch
from repro.planning import trust
from repro.planning.plan import Plan, PlannedRun, plan_study
from repro.planning.prepare import create_study
from repro.planning.rehearse import rehearsed
from repro.records import files
from repro.records.papers import Paper, load_papers
from repro.records.rehearsal import Rehearsal, cost, rehearsal_of
from repro.records.run import Run
from repro.records.status import Status
from repro.records.study import Study
from repro.report import record, tables

COLUMNS = (
    "arm", "parameters", "ms a step", "samples/s", "TFLOP/s", "of peak", "memory (MB)",
    "checkpoint (MB)", "steps", "hours", "resumed",
)  # fmt: skip
STEPS = 4  # of each run of the page
MINUTES = {True: 1.0, False: 10.0}  # likewise, at the real size on a GPU and reduced
NOTHING = "–"
DONE, FAILED, ABSENT = "done", "failed", "not here"  # the last: an optional package is missing
EXTRA = "pip install 'gradient-repro["  # in what is said of optional packages
# Words by which devices and systems say that memory is used up.
OUT_OF_MEMORY = ("out of memory", "cannot allocate memory", "not enough memory")
SMALLER = (
    "say hardware.accumulate=2 or more, hardware.activation_checkpointing=true, "
    "hardware.precision=bf16-mixed, or choose a smaller dataset.batch_size"
)


@dataclass(frozen=True)
class Row:
    """What the rehearsal of an arm says.

    Attributes:
        arm: its name.
        measured: None if it did not come to its last step.
        problems: what does not fit, each with the knob that would make it fit.
        state: ``DONE``, ``FAILED`` or ``ABSENT``.
    """

    arm: str
    measured: Rehearsal | None
    problems: list[str] = field(default_factory=list)
    state: str = DONE

    def plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        seen = self.measured
        more = ("samples_per_second", "flops_per_second", "share_of_peak", "hours")
        measured = None
        if seen is not None:
            measured = seen.content() | {name: getattr(seen, name) for name in more}
        return {"arm": self.arm, "measured": measured, "problems": self.problems}

    def cells(self) -> list[str]:
        """The cells below `COLUMNS`."""
        seen = self.measured
        if seen is None:
            return [self.arm, *[NOTHING] * (len(COLUMNS) - 2), self.state]
        rate = seen.flops_per_second
        return [
            self.arm,
            f"{seen.parameters:,}",
            _number(seen.step_ms),
            _number(seen.samples_per_second),
            _number(None if rate is None else rate / 1e12),
            NOTHING if seen.share_of_peak is None else f"{seen.share_of_peak:.0%}",
            _number(seen.memory_mb),
            _number(seen.checkpoint_bytes / 1e6),
            NOTHING if seen.total_steps is None else f"{seen.total_steps:,}",
            _number(seen.hours),
            self.state if self.state != DONE else "yes" if seen.resumed else "one step",
        ]


def rows(study: Study) -> list[Row]:
    """What the rehearsal of each arm of a study says."""
    return [_row(run) for run in study.runs]


def whole(study: Study) -> list[str]:
    """What the whole study would take, all its seeds: lines to print."""
    total = cost(study)
    if total is None:
        return []
    lines = [total.sentence]
    free = shutil.disk_usage(study.folder).free
    if total.disk_bytes > free:
        lines.append(
            f"The disk of {study.folder.parent} has {free / 1e9:.3g} GB left: choose outputs=DIR, "
            "or training.checkpoint.best=false."
        )
    return lines


def _row(run: Run) -> Row:
    record, seen = run.record(), rehearsal_of(run)
    said = None if record.error is None else record.error.message
    # All steps were made, and a test did not find what only the whole run leaves.
    is_test_of_the_whole = (
        seen is not None and seen.is_cut and said is not None and not _of_memory(said)
    )
    if seen is None:
        state = ABSENT if said is not None and EXTRA in said else FAILED
    else:
        is_well = run.status() in (Status.FINISHED, Status.DIVERGED) or is_test_of_the_whole
        state = DONE if is_well else FAILED
    problems = [] if said is None else [_error(said, is_test_of_the_whole)]
    problems += [] if seen is None else _shortages(seen)
    return Row(record.arm, seen, problems, state)


def _of_memory(message: str) -> bool:
    return any(word in message.lower() for word in OUT_OF_MEMORY)


def _error(said: str, is_test_of_the_whole: bool) -> str:
    """What went wrong, with the knob for what does not fit into memory."""
    message = said.splitlines()[0]
    if _of_memory(message):
        return f"does not fit into memory: {SMALLER}."
    if is_test_of_the_whole:
        return f"its test could not be rehearsed, and is not in the hours: {message}"
    return message


def _shortages(seen: Rehearsal) -> Iterator[str]:
    """What is nearly used up, or holds training up, and the knob for it."""
    capacity, used = seen.device_capacity_mb, seen.device_memory_mb
    if capacity is not None and used is not None and used > 0.95 * capacity:
        yield f"{used:.0f} of {capacity:.0f} MB of the device are used: {SMALLER}."
    speed, alone = seen.samples_per_second, seen.loader_samples_per_second
    if speed is not None and alone is not None and alone * seen.devices < 2 * speed:
        yield (
            f"the loader alone makes {alone:.0f} samples/s a process, less than twice what "
            "training takes: raise dataset.workers, or say dataset.on_device=true."
        )


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# -- The page -------------------------------------------------------------------------------------


def full_scales(slugs: Sequence[str] | None = None) -> list[tuple[Paper, str]]:
    """The scales of papers that are neither smoke nor mini; the first of each paper before others.

    Args:
        slugs: only these papers; None for all.
    """
    papers = [paper for paper in load_papers() if not slugs or paper.slug in slugs]
    scales = [[scale for scale in paper.scales if scale.startswith("full")] for paper in papers]
    numbered = [
        (number, order, scale)
        for order, names in enumerate(scales)
        for number, scale in enumerate(names)
    ]
    return [(papers[order], scale) for _, order, scale in sorted(numbered)]


def typed_for(paper: Paper, scale: str, whole: bool) -> list[str]:
    """What is typed to rehearse a scale as it is on one GPU, or reduced on the CPU.

    Choosing the hardware drops what the scale says of it, which is therefore said again.
    """
    own = [text for text in paper.scales[scale] if text.startswith("hardware.")]
    if whole:
        return ["hardware=gpu", *own]
    reduced = paper.reduced.get(scale, [])
    said = {text.partition("=")[0] for text in reduced}
    return ["hardware=cpu", *(text for text in own if text.partition("=")[0] not in said), *reduced]


def one_of_each_kind(plan: Plan) -> Plan:
    """A plan with one run for every module, model and method in it, and those they start from."""
    kinds: dict[tuple[str, ...], PlannedRun] = {}
    for run in plan.runs:
        parts = (run.content[group] for group in ("module", "model", "method"))
        kinds.setdefault(tuple(str((each or {}).get("_target_")) for each in parts), run)
    arms = {run.arm for run in kinds.values()}
    arms |= {run.parent for run in kinds.values() if run.parent is not None}
    return replace(plan, runs=[run for run in plan.runs if run.arm in arms])


def rehearse(paper: Paper, scale: str, outputs: Path, whole: bool) -> Study:
    """Rehearses one of each kind of arm of a scale, here and now."""
    typed = typed_for(paper, scale, whole)
    plan = plan_study([f"paper={paper.slug}", f"scale={scale}", "seed=0", *typed])
    study = create_study(rehearsed(one_of_each_kind(plan), STEPS, MINUTES[whole]), outputs)
    with study.held(), trust.trusted():
        launch(study, study.layers, n_jobs=1)
    return study


def heading(paper: Paper, scale: str) -> str:
    """The line above the part of the page about one scale."""
    return f"### `{paper.slug}` scale={scale}"


def section(title: str, typed: Sequence[str], arms: Sequence[Row], is_busy: bool) -> str:
    """The part of the page about one scale.

    Args:
        title: its heading.
        typed: what it was rehearsed with.
        arms: what was measured.
        is_busy: whether the machine did something else at the same time.
    """
    settings = " ".join(f"`{text}`" for text in typed)
    seen = next((arm.measured for arm in arms if arm.measured is not None), None)
    device = "" if seen is None else f", on {seen.devices} × {seen.device}"
    beside = " beside other work" if is_busy else ""
    lines = [title, "", f"One arm of each kind, at {settings}{device}{beside}:", ""]
    lines += tables.markdown_table(COLUMNS, [arm.cells() for arm in arms])
    lines += [f"* `{arm.arm}`: {problem}" for arm in arms for problem in arm.problems]
    return "\n".join([*lines, "", ""])


def sections(block: str) -> dict[str, str]:
    """The parts of a block of the page, by their headings."""
    parts = re.split(r"^(?=### )", block, flags=re.M)
    return {part.splitlines()[0]: part for part in parts if part.startswith("### ")}


def with_section(text: str, block: str, part: str) -> str:
    """The page with one part put in, or in the place of what it said; in the order of papers.

    Parts about scales that there are no longer are dropped.
    """
    known = sections(record.filled(text, block)) | sections(part)
    titles = sorted(heading(paper, scale) for paper, scale in full_scales())
    parts = [known[title] for title in titles if title in known]
    missing = len(titles) - len(parts)
    lead = f"Not rehearsed yet: {missing} of {len(titles)}.\n\n" if missing else ""
    return record.fill(text, block, lead + "".join(parts))


def document() -> Path:
    """The page, in a checkout."""
    return record.project_readme().parent / "docs" / "full-scale.md"


def is_busy() -> bool:
    """Whether more processes want to run than there are cores."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearses, and writes each scale into the page at once; says what failed.

    Returns:
        The number of scales that did not come to their last step.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("papers", nargs="*", help="slugs; none for all papers")
    parser.add_argument("--missing", action="store_true", help="only what the page does not have")
    parser.add_argument("--whole", action="store_true", help="at the real size")
    parser.add_argument("--minutes", type=float, help="start no further scale after so many")
    asked = parser.parse_args(arguments)
    import torch  # the command, which prints the same rows, has to start without it

    if asked.whole and not torch.cuda.is_available():
        parser.error("--whole takes a GPU, and there is none here; leave it out.")
    began, failed = time.monotonic(), 0
    block = "rehearsals:whole" if asked.whole else "rehearsals"
    scales = full_scales(asked.papers)
    if asked.missing:
        known = sections(record.filled(_page(), block))
        scales = [each for each in scales if not _is_done(known.get(heading(*each)))]
    for paper, scale in scales:
        if asked.minutes is not None and time.monotonic() - began > 60 * asked.minutes:
            break
        typed, was_busy = typed_for(paper, scale, asked.whole), is_busy()
        arms = measured(paper, scale, asked.whole)
        states = {arm.state for arm in arms}
        worst = next(state for state in (FAILED, ABSENT, DONE) if state in states)
        failed += worst == FAILED
        print(f"{paper.slug} {scale}: {worst}", flush=True)
        part = section(heading(paper, scale), typed, arms, was_busy)
        files.write_text(document(), with_section(_page(), block, part))
    return failed


def _is_done(part: str | None) -> bool:
    """Whether a part of the page has measures in all its rows."""
    return part is not None and f" {FAILED} |" not in part and f" {ABSENT} |" not in part


def _page() -> str:
    return document().read_text(encoding="utf-8")


def measured(paper: Paper, scale: str, whole: bool) -> list[Row]:
    """What the rehearsal of one of each kind of arm says; nothing of it is kept."""
    with tempfile.TemporaryDirectory() as outputs:
        try:
            return rows(rehearse(paper, scale, Path(outputs), whole))
        except ReproError as error:
            return [Row("all", None, [first_line(error)], FAILED)]


if __name__ == "__main__":
    sys.exit(main())
