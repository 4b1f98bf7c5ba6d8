"""`repro doctor`: what works on this machine, and how to mend what does not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.text import Text

from repro.records import provenance
from repro.records.papers import config_folders, load_papers

from . import render
from .standing import settings_file

EXTRAS = {
    "datasets": "benchmark data sets: pip install 'gradient-repro[data]'",
    "tokenizers": "published language models: pip install 'gradient-repro[hf]'",
    "optuna": "repro sweep: pip install 'gradient-repro[sweep]'",
    "tensorboard": "logger=tensorboard: pip install 'gradient-repro[tensorboard]'",
    "mlflow-skinny": "logger=mlflow: pip install 'gradient-repro[mlflow]'",
    "wandb": "logger=wandb: pip install 'gradient-repro[wandb]'",
    "hydra-submitit-launcher": "Slurm: pip install 'gradient-repro[slurm]'",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: ok, optional (missing but not needed), or broken."""

    what: str
    state: str
    detail: str


def report(as_json: bool) -> int:
    """Prints all findings; returns 1 if something is broken."""
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        render.emit([finding.__dict__ for finding in findings])
    else:
        shown = render.table("what", "state", "found")
        for finding in findings:
            shown.add_row(finding.what, finding.state, Text(finding.detail))
        render.console.print(shown)
    return int(any(finding.state == "broken" for finding in findings))


def _packages() -> list[Finding]:
    findings = [Finding(name, "ok", version) for name, version in provenance.versions().items()]
    for name, purpose in EXTRAS.items():
        try:
            findings.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "optional", purpose))
    return findings


def _hardware() -> list[Finding]:
    try:
        from repro.training import hardware

        found = hardware.describe()
    except Exception as error:
        return [Finding("torch", "broken", f"{error}; reinstall it: pip install --force torch")]
    gpus = ", ".join(found.get("gpus", [])) or "none; everything runs on the CPU"
    return [
        Finding("cores", "ok", str(len(os.sched_getaffinity(0)))),
        Finding("GPUs", "ok", gpus),
        Finding(
            "Slurm",
            "ok" if shutil.which("sbatch") else "optional",
            shutil.which("sbatch") or "no sbatch here",
        ),
    ]


def _folders() -> list[Finding]:
    outputs = Path("outputs")
    try:
        outputs.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=outputs):
            pass
    except OSError as error:
        hint = f"{error.strerror}; choose another folder with outputs=DIR"
        return [Finding("outputs", "broken", hint)]
    free = shutil.disk_usage(outputs).free / 2**30
    return [Finding("outputs", "ok", f"{outputs.absolute()}, {free:.0f} GiB free")]


def _configs() -> list[Finding]:
    """Where papers, data sets and settings of others come from."""
    _, *others = config_folders()
    findings = [
        Finding("configs", "ok" if folder.is_dir() else "broken", str(folder)) for folder in others
    ]
    file = settings_file()
    known = "config_dirs: [DIR] in it stands for --config-dir"
    return [
        *findings,
        Finding("settings", "ok" if os.path.isfile(file) else "optional", f"{file}: {known}"),
    ]


def _papers() -> list[Finding]:
    from repro.claims.file import load_claims

    broken = []
    papers = load_papers()
    for paper in papers:
        try:
            load_claims(paper.claims_file)
        except Exception as error:
            broken.append(Finding(paper.slug, "broken", str(error)))
    return [Finding("papers", "ok", f"{len(papers) - len(broken)} with their claims"), *broken]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _packages,
    _hardware,
    _folders,
    _configs,
    _papers,
)
