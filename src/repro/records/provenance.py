"""What a result rests on: versions, code, hardware."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("repro", "torch", "lightning", "torchmetrics", "hydra-core", "numpy", "scipy")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_fingerprint() -> dict[str, Any]:
    """A hash over the project's sources, and the git commit where there is one."""
    import repro.conf
    import repro.experiments

    library = Path(__file__).parents[1]
    roots = [library, *(Path(p.__path__[0]) for p in (repro.conf, repro.experiments))]
    digest = hashlib.sha256()
    for root in roots:
        for file in sorted((*root.rglob("*.py"), *root.rglob("*.yaml"))):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return {"sha256": digest.hexdigest()[:16], "commit": _git_commit(library)}


def hardware() -> dict[str, Any]:
    """The machine, as far as it matters to timings. Imports torch."""
    import torch

    found: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _git_commit(folder: Path) -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy belongs to no commit
        dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
